//! Tests the decision as a value: which keys it needs, and that its result is right for any answers in any order.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use portcullis_core::access_request::{AccessRequest, Headers};
use portcullis_core::decision::{
    CachedKeys, Decision, Evaluation, IssuerState, KeysNeeded, Need, NoKeys, Policy, RequestLimits, StepName,
    Trusted, evaluate,
};
use portcullis_core::rules::{Effect, Match, PathPattern, Requirements, Rule, Rules};
use portcullis_core::validation::algorithm::Algorithm;
use portcullis_core::validation::key_set::KeySet;
use portcullis_core::validation::provider::{
    Audiences, ClaimHeader, ClaimPath, Encoding, Provider, SelectedBy, TokenSource, TokenTypes,
};
use portcullis_core::validation::{Kid, StaleCause, UnixTime};
use portcullis_issuer::{SigningAlgorithm, SigningKey};
use proptest::prelude::*;
use serde_json::{Value, json};

const ISSUER: &str = "https://issuer.example";
const NOW: i64 = 1_800_000_000;
/// The time from which the tokens of these tests are expired, leeway included.
const EXPIRED: i64 = NOW + 300 + 30;

fn provider() -> Provider {
    let path = |text| ClaimPath::parse(text).expect("a claim's name");
    Provider {
        name: "demo".to_owned(),
        issuer: ISSUER.to_owned(),
        audiences: Audiences::AnyOf(vec!["orders-api".to_owned()]),
        algorithms: Algorithm::default_set(),
        clock_skew: Duration::from_secs(30),
        audience_claims: vec![ClaimPath::aud()],
        max_lifetime: None,
        keys_name_issuers: false,
        selected_by: SelectedBy::Issuer,
        token_types: TokenTypes::Default,
        required_claims: vec![path("tenant_id")],
        token_from: vec![TokenSource::default()],
        forward_token: true,
        claim_headers: vec![ClaimHeader {
            header: "x-auth-tenant".parse().expect("a header's name"),
            claim: path("tenant_id"),
            encoding: Encoding::default(),
        }],
        payload_header: Some("x-auth-payload".parse().expect("a header's name")),
        metadata_claims: vec![path("tenant_id")],
        realm: None,
    }
}

/// A policy with a rule for `/write` that requires a scope.
fn policy(provider: &Provider) -> Policy {
    let rule = Rule {
        name: "write".to_owned(),
        matches: Match { paths: vec![PathPattern::exact("/write").expect("a path")], ..Match::default() },
        by_name: false,
        ambiguous_paths: false,
        effect: Effect::Require(Requirements {
            scopes: vec!["orders:write".to_owned()],
            ..Requirements::default()
        }),
    };
    Policy::new([provider], Rules::new(vec![rule]), RequestLimits::default(), Trusted::default())
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": "orders-api", "sub": "alice", "exp": NOW + 300, "tenant_id": "acme",
           "scope": "orders:read"})
}

fn keys(of: &[&SigningKey]) -> Arc<KeySet> {
    let keys: Vec<Value> = of.iter().map(|key| key.public_jwk()).collect();
    Arc::new(KeySet::parse(json!({"keys": keys}).to_string().as_bytes()).expect("usable keys"))
}

/// A request for this path, with this token unless it is empty.
fn with_request<T>(token: &str, path: &str, run: impl FnOnce(&AccessRequest<'_>) -> T) -> T {
    let value = format!("Bearer {token}");
    let sent = [(&b"authorization"[..], value.as_bytes())].into_iter().filter(|_| !token.is_empty());
    let headers: Headers<'_> = sent.collect();
    #[allow(clippy::disallowed_methods, reason = "there is no other way to have an instant")]
    let arrived = std::time::Instant::now();
    run(&AccessRequest::new(b"GET", b"api.example.com", path.as_bytes(), headers, arrived))
}

fn at(seconds: i64) -> Option<UnixTime> {
    Some(UnixTime::from_secs(seconds))
}

/// Which key with the `kid` `new` a set has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum New {
    /// None.
    None,
    /// The key that signed the token.
    Signer,
    /// Another key with the same `kid`.
    Impostor,
}

/// An answer and the time of its arrival; `None` is an invalid clock.
#[derive(Clone, Copy, Debug)]
struct Answer {
    keys: New,
    now: Option<i64>,
}

/// The expected result, derived without the code under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Reason(&'static str),
    Needs(StaleCause),
}

impl Answer {
    const TIMES: [Option<i64>; 4] = [Some(NOW), Some(EXPIRED - 1), Some(EXPIRED), None];

    fn all() -> impl Iterator<Item = Answer> {
        let sets = [New::None, New::Signer, New::Impostor];
        sets.into_iter().flat_map(|keys| Self::TIMES.into_iter().map(move |now| Answer { keys, now }))
    }

    fn expected(self) -> Expected {
        match (self.now, self.keys) {
            (None, _) => Expected::Reason("keys_unavailable"),
            (Some(EXPIRED..), _) => Expected::Reason("expired"),
            (_, New::Signer) => Expected::Reason("ok"),
            (_, New::None) => Expected::Needs(StaleCause::UnknownKid),
            (_, New::Impostor) => Expected::Needs(StaleCause::BadSignature),
        }
    }
}

/// Three key sets, the provider, and the number of decisions.
struct Explorer {
    none: Arc<KeySet>,
    signer: Arc<KeySet>,
    impostor: Arc<KeySet>,
    provider: Arc<Provider>,
    decided: u32,
}

impl Explorer {
    fn keys(&self, of: New) -> &Arc<KeySet> {
        match of {
            New::None => &self.none,
            New::Signer => &self.signer,
            New::Impostor => &self.impostor,
        }
    }

    fn issuer(&self, keys: Option<New>) -> IssuerState {
        let keys =
            keys.map_or(CachedKeys::NotFetched, |keys| CachedKeys::Fetched(Arc::clone(self.keys(keys))));
        IssuerState { provider: Arc::clone(&self.provider), realm: None, keys, clock_ahead: None }
    }

    /// Compares the result with the expected one, and continues with every possible next answer.
    fn explore(
        &mut self,
        evaluation: Evaluation<'_>,
        expected: Expected,
        first: Option<StaleCause>,
        depth: u32,
    ) {
        let needed = match (evaluation, expected) {
            (Evaluation::Done(decision), Expected::Reason(reason)) => {
                return self.check(&decision, reason, first);
            }
            (Evaluation::NeedsKeys(needed), Expected::Needs(cause)) => {
                assert_eq!(needed.need(), Need::Newer(cause));
                needed
            }
            (evaluation, expected) => panic!("{evaluation:?} instead of {expected:?}"),
        };
        assert_eq!(needed.kid().map(Kid::as_str), Some("new"));
        let Expected::Needs(cause) = expected else { unreachable!("checked above") };
        self.conclude(&needed, cause, first);
        if depth > 0 {
            for answer in Answer::all() {
                let keys = Arc::clone(self.keys(answer.keys));
                let next = needed.clone().resume(&keys, answer.now.map(UnixTime::from_secs));
                self.explore(next, answer.expected(), first, depth - 1);
            }
        }
    }

    fn conclude(&mut self, needed: &KeysNeeded<'_>, cause: StaleCause, first: Option<StaleCause>) {
        let reason = match cause {
            StaleCause::UnknownKid => "key_unknown",
            StaleCause::BadSignature => "bad_signature",
        };
        let refused = needed.clone().conclude(NoKeys::UpToDate(&self.none));
        self.check(&refused, reason, first);
        let unavailable = needed.clone().conclude(NoKeys::Unavailable("the issuer is down".into()));
        self.check(&unavailable, "keys_unavailable", first);
    }

    fn check(&mut self, decision: &Decision<'_>, reason: &str, first: Option<StaleCause>) {
        self.decided += 1;
        assert_eq!(decision.verdict.reason().as_str(), reason);
        let record = &decision.record;
        assert_eq!(record.refreshed_for(), first, "the record has the cause of the refresh");
        assert_eq!(record.verified_by().is_some(), reason == "ok");
        assert_eq!(record.claims().is_some(), reason == "ok", "unverified claims are not exposed");
        assert_eq!(record.refused().is_none(), reason == "ok");
        let last = record.steps().last().expect("a step");
        assert_eq!(last.outcome, if reason == "ok" { "made" } else { reason });
    }
}

/// Every sequence of answers: the cached keys and up to three more answers, each at one of four times, followed by
/// either kind of conclusion.
#[test]
fn for_any_answers_an_allow_needs_a_set_that_verifies_the_token_in_time() {
    let old = SigningKey::generate("old", SigningAlgorithm::ES256);
    let signer = SigningKey::generate("new", SigningAlgorithm::ES256);
    let impostor = SigningKey::generate("new", SigningAlgorithm::ES256);
    let provider = provider();
    let policy = policy(&provider);
    let mut explorer = Explorer {
        none: keys(&[&old]),
        signer: keys(&[&old, &signer]),
        impostor: keys(&[&old, &impostor]),
        provider: Arc::new(provider),
        decided: 0,
    };
    with_request(&signer.sign(&claims()), "/", |request| {
        for answer in Answer::all() {
            let issuer = explorer.issuer(Some(answer.keys));
            let evaluation = evaluate(
                request,
                &policy,
                |_: &str| Some(issuer.clone()),
                answer.now.map(UnixTime::from_secs),
            );
            let expected = answer.expected();
            let first = match expected {
                Expected::Needs(cause) => Some(cause),
                Expected::Reason(_) => None,
            };
            explorer.explore(evaluation, expected, first, 3);
        }
    });
    assert!(explorer.decided > 1_000, "{} decisions were checked", explorer.decided);
}

#[test]
fn an_issuer_without_keys_is_fetched_first_and_then_for_newer_keys() {
    let old = SigningKey::generate("old", SigningAlgorithm::ES256);
    let signer = SigningKey::generate("new", SigningAlgorithm::ES256);
    let provider = provider();
    let policy = policy(&provider);
    let provider = Arc::new(provider);
    with_request(&signer.sign(&claims()), "/", |request| {
        let issuer = IssuerState {
            provider,
            realm: Some("acme".into()),
            keys: CachedKeys::NotFetched,
            clock_ahead: None,
        };
        let needed = match evaluate(request, &policy, |_: &str| Some(issuer.clone()), at(NOW)) {
            Evaluation::NeedsKeys(needed) => needed,
            Evaluation::Done(decision) => panic!("{decision:?}"),
        };
        assert_eq!((needed.need(), &*needed.provider().name), (Need::First, "demo"));
        let refused = needed.clone().conclude(NoKeys::Unavailable("no such realm".into()));
        assert_eq!(refused.verdict.reason().as_str(), "keys_unavailable");
        assert_eq!(
            refused.record.refused().and_then(|refused| refused.detail()).as_deref(),
            Some("no such realm")
        );
        let steps: Vec<StepName> = refused.record.steps().map(|step| step.name).collect();
        assert!(steps.contains(&StepName::Refresh), "it waited for the first keys");
        let Evaluation::NeedsKeys(needed_again) = needed.resume(&keys(&[&old]), at(NOW)) else {
            panic!("another key signed it");
        };
        assert_eq!(needed_again.need(), Need::Newer(StaleCause::UnknownKid));
        let Evaluation::Done(decision) = needed_again.resume(&keys(&[&signer]), at(NOW)) else {
            panic!("it is signed by this key");
        };
        assert_eq!(decision.verdict.reason().as_str(), "ok");
        assert_eq!(decision.record.realm(), Some("acme"));
    });
}

/// The result of an evaluation, whether it waited or not.
fn outcome(decision: &Decision<'_>) -> String {
    let record = &decision.record;
    let steps = record.steps().filter(|step| step.name != StepName::Refresh);
    let steps: Vec<String> =
        steps.map(|step| format!("{} {}: {}", step.name.as_str(), step.outcome, step.detail())).collect();
    let changes = match &decision.verdict {
        portcullis_core::verdict::Verdict::Allow(allowed) => format!("{:?}", allowed.changes()),
        _ => String::new(),
    };
    let shared: Vec<String> =
        record.shared_claims().map(|(path, claim)| format!("{path}={claim:?}")).collect();
    format!(
        "{:?} {steps:?} {changes} {shared:?} {:?} {:?}",
        decision.verdict.reason(),
        decision.subject(),
        decision.challenge
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_decision_that_waited_equals_an_immediate_one(
        tenant in "\\PC{0,40}",
        scopes in prop::sample::select(vec!["orders:write", "orders:read", ""]),
        path in prop::sample::select(vec!["/write", "/read"]),
        issuer in any::<bool>(),
        stale in 0..3_usize,
    ) {
        let old = SigningKey::generate("old", SigningAlgorithm::ES256);
        let signer = SigningKey::generate("new", SigningAlgorithm::ES256);
        let (provider, mut claims) = (provider(), claims());
        let policy = policy(&provider);
        let provider = Arc::new(provider);
        claims["tenant_id"] = json!(tenant);
        claims["scope"] = json!(scopes);
        let (old_keys, new_keys) = (keys(&[&old]), keys(&[&old, &signer]));
        with_request(&signer.sign(&claims), path, |request| {
            let issuer_with = |keys: Option<&Arc<KeySet>>| IssuerState { provider: Arc::clone(&provider), realm: None, keys: keys.cloned().map_or(CachedKeys::NotFetched, CachedKeys::Fetched), clock_ahead: None };
            let immediate = match evaluate(request, &policy, |_: &str| Some(issuer_with(Some(&new_keys))), at(NOW)) {
                Evaluation::Done(decision) => decision,
                Evaluation::NeedsKeys(needed) => panic!("{needed:?}"),
            };
            let mut evaluation = evaluate(request, &policy, |_: &str| Some(issuer_with(issuer.then_some(&old_keys))), at(NOW));
            for _ in 0..stale {
                if let Evaluation::NeedsKeys(needed) = evaluation {
                    evaluation = needed.resume(&old_keys, at(NOW));
                }
            }
            let waited = match evaluation {
                Evaluation::Done(decision) => decision,
                Evaluation::NeedsKeys(needed) => match needed.resume(&new_keys, at(NOW)) {
                    Evaluation::Done(decision) => decision,
                    Evaluation::NeedsKeys(needed) => panic!("{needed:?}"),
                },
            };
            let lacks_scope = path == "/write" && scopes != "orders:write";
            let expected = match tenant.is_empty() {
                true => "claim_missing",
                false if lacks_scope => "insufficient_scope",
                false => "ok",
            };
            prop_assert_eq!(immediate.verdict.reason().as_str(), expected);
            let met = immediate.record.steps().any(|step| step.name == StepName::Require && step.outcome == "met");
            prop_assert_eq!(met, path == "/write" && expected == "ok");
            prop_assert_eq!(outcome(&waited), outcome(&immediate));
            Ok(())
        })?;
    }

    #[test]
    fn a_permanent_failure_is_decided_without_keys(
        broken in prop::sample::select(vec!["exp", "aud", "tenant_id", "nbf", "sub"]),
        has_keys in any::<bool>(),
    ) {
        let signer = SigningKey::generate("new", SigningAlgorithm::ES256);
        let (provider, mut claims) = (provider(), claims());
        let policy = policy(&provider);
        claims[broken] = match broken {
            "exp" => json!(NOW - 30),
            "nbf" => json!(NOW + 31),
            "sub" => json!(["alice"]),
            "aud" => json!("another-api"),
            _ => json!(null),
        };
        let keys = match has_keys {
            true => CachedKeys::Fetched(Arc::default()),
            false => CachedKeys::NotFetched,
        };
        with_request(&signer.sign(&claims), "/", |request| {
            let issuer = IssuerState { provider: Arc::new(provider), realm: None, keys, clock_ahead: None };
            let evaluation = evaluate(request, &policy, |_: &str| Some(issuer.clone()), at(NOW));
            let Evaluation::Done(decision) = evaluation else { panic!("{evaluation:?}") };
            let refused = decision.record.refused().expect("it is refused");
            prop_assert_eq!(refused.step, StepName::Screen);
            prop_assert!(refused.detail().is_some_and(|detail| !detail.is_empty()), "{:?}", refused);
            Ok(())
        })?;
    }
}

#[test]
fn a_request_without_a_token_needs_no_keys() {
    let provider = provider();
    let rule = |name: &str, path: &str, effect| Rule {
        name: name.to_owned(),
        matches: Match { paths: vec![PathPattern::exact(path).expect("a path")], ..Match::default() },
        by_name: false,
        ambiguous_paths: false,
        effect,
    };
    let rules =
        Rules::new(vec![rule("open", "/open", Effect::Anonymous), rule("shut", "/shut", Effect::Deny)]);
    let policy = Policy::new([&provider], rules, RequestLimits::default(), Trusted::default());
    for (path, token, reason) in [
        ("/open", "", "anonymous"),
        ("/open", "not.a.token", "anonymous"),
        ("/shut", "not.a.token", "rule_denied"),
        ("/", "", "token_missing"),
        // Whether the token is valid depends on the time, which is unknown here.
        ("/", "not.a.token", "keys_unavailable"),
    ] {
        with_request(token, path, |request| {
            let no_lookup = |issuer: &str| panic!("asked for the keys of {issuer}");
            let evaluation = evaluate(request, &policy, no_lookup, None);
            let Evaluation::Done(decision) = evaluation else { panic!("{evaluation:?}") };
            assert_eq!(decision.verdict.reason().as_str(), reason, "{path} {token}");
        });
    }
}

#[test]
fn a_pending_decision_is_small_for_any_token() {
    assert!(size_of::<KeysNeeded<'_>>() <= 512, "{}", size_of::<KeysNeeded<'_>>());
}

#[test]
fn with_static_keys_an_unverified_token_is_refused_immediately() {
    let (old, signer) = (
        SigningKey::generate("old", SigningAlgorithm::ES256),
        SigningKey::generate("new", SigningAlgorithm::ES256),
    );
    let impostor = SigningKey::generate("new", SigningAlgorithm::ES256);
    let provider = provider();
    let policy = policy(&provider);
    let provider = Arc::new(provider);
    for (keys, reason) in
        [(keys(&[&old]), "key_unknown"), (keys(&[&impostor]), "bad_signature"), (keys(&[&signer]), "ok")]
    {
        with_request(&signer.sign(&claims()), "/", |request| {
            let keys = CachedKeys::Fixed(keys);
            let issuer =
                IssuerState { provider: Arc::clone(&provider), realm: None, keys, clock_ahead: None };
            let evaluation = evaluate(request, &policy, |_: &str| Some(issuer.clone()), at(NOW));
            let Evaluation::Done(decision) = evaluation else { panic!("{evaluation:?}") };
            assert_eq!(decision.verdict.reason().as_str(), reason);
            assert_eq!(decision.record.refreshed_for(), None, "it did not wait");
        });
    }
}

#[test]
fn a_challenge_names_the_schemes_of_the_accepted_providers_once_in_the_order_of_the_configuration() {
    let with_schemes = |name: &str, schemes: &[&str]| Provider {
        name: name.to_owned(),
        token_from: schemes
            .iter()
            .map(|scheme| TokenSource::Header {
                name: http::header::AUTHORIZATION,
                scheme: Some((*scheme).to_owned()),
            })
            .collect(),
        ..provider()
    };
    let providers = [
        with_schemes("a", &["Bearer"]),
        with_schemes("b", &["Token", "bearer"]),
        with_schemes("c", &["Key", "Token"]),
    ];
    for (accepted, expected) in [
        (&[][..], &["Bearer", "Token", "Key"][..]),
        (&["b"], &["Token", "Bearer"]),
        (&["c"], &["Key", "Token"]),
        (&["c", "a"], &["Bearer", "Key", "Token"]),
        (&["c", "b", "c"], &["Token", "Bearer", "Key"]),
    ] {
        let rule = Rule {
            name: "all".to_owned(),
            matches: Match::default(),
            by_name: false,
            ambiguous_paths: false,
            effect: Effect::Require(Requirements {
                providers: accepted.iter().map(|name| (*name).to_owned()).collect(),
                ..Requirements::default()
            }),
        };
        let policy =
            Policy::new(&providers, Rules::new(vec![rule]), RequestLimits::default(), Trusted::default());
        with_request("", "/", |request| {
            let evaluation = evaluate(request, &policy, |_: &str| None, at(NOW));
            let Evaluation::Done(decision) = evaluation else { panic!("{evaluation:?}") };
            let schemes: Vec<&str> =
                decision.challenge.schemes.iter().map(|scheme| &*scheme.scheme).collect();
            assert_eq!(schemes, expected, "{accepted:?}");
        });
    }
}
