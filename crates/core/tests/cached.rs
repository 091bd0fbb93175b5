//! Tests that a token from a cache is decided as if it were not cached: whatever has changed since it was verified.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use portcullis_core::access_request::{AccessRequest, Headers};
use portcullis_core::decision::{
    CachedKeys, Decision, Evaluation, IssuerState, Lookup, Policy, RequestLimits, Trusted, VerifiedToken,
    evaluate,
};
use portcullis_core::rules::{Effect, Match, PathPattern, Requirements, Rule, Rules};
use portcullis_core::validation::UnixTime;
use portcullis_core::validation::algorithm::Algorithm;
use portcullis_core::validation::json::SharedValues;
use portcullis_core::validation::key_set::KeySet;
use portcullis_core::validation::provider::{
    Audiences, ClaimHeader, ClaimPath, Encoding, Provider, SelectedBy, TokenSource, TokenTypes,
};
use portcullis_issuer::{SigningAlgorithm, SigningKey};
use serde_json::{Value, json};

const ISSUER: &str = "https://issuer.example";
const NOW: i64 = 1_800_000_000;
const SKEW: i64 = 30;
const EXPIRED: i64 = NOW + 300 + SKEW;
const EARLY: i64 = NOW - 100 - SKEW - 1;

fn provider(audience: &str) -> Arc<Provider> {
    let path = |text| ClaimPath::parse(text).expect("a claim's name");
    Arc::new(Provider {
        name: "demo".to_owned(),
        issuer: ISSUER.to_owned(),
        audiences: Audiences::AnyOf(vec![audience.to_owned()]),
        algorithms: Algorithm::default_set(),
        clock_skew: Duration::from_secs(30),
        audience_claims: vec![ClaimPath::aud()],
        max_lifetime: None,
        keys_name_issuers: false,
        selected_by: SelectedBy::Issuer,
        token_types: TokenTypes::Default,
        required_claims: Vec::new(),
        token_from: vec![TokenSource::default()],
        forward_token: false,
        claim_headers: vec![ClaimHeader {
            header: "x-auth-tenant".parse().expect("a header's name"),
            claim: path("tenant_id"),
            encoding: Encoding::default(),
        }],
        payload_header: Some("x-auth-payload".parse().expect("a header's name")),
        metadata_claims: vec![path("tenant_id")],
        realm: None,
    })
}

/// A policy for the provider and for another one, whose tokens may be in a cookie; `/write` requires a scope.
fn policy(provider: &Provider, limits: RequestLimits) -> Policy {
    let other = Provider {
        issuer: "https://other.example".to_owned(),
        token_from: vec![TokenSource::Cookie("t".to_owned())],
        ..provider.clone()
    };
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
    Policy::new([provider, &other], Rules::new(vec![rule]), limits, Trusted::default())
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": "orders-api", "sub": "alice", "exp": NOW + 300, "nbf": NOW - 100,
           "tenant_id": "acme", "scope": "orders:read"})
}

fn keys(of: &[&SigningKey]) -> Arc<KeySet> {
    let keys: Vec<Value> = of.iter().map(|key| key.public_jwk()).collect();
    Arc::new(KeySet::parse(json!({"keys": keys}).to_string().as_bytes()).expect("usable keys"))
}

/// What is known: the issuer, and perhaps the token.
struct Known {
    token: Option<Arc<VerifiedToken>>,
    issuer: IssuerState,
}

impl Lookup for Known {
    fn verified(&mut self, _token: &str) -> Option<Arc<VerifiedToken>> {
        self.token.clone()
    }

    fn issuer(&mut self, issuer: &str) -> Option<IssuerState> {
        (issuer == ISSUER).then(|| self.issuer.clone())
    }
}

/// A request with its token in one of two places.
fn with_request<T>(token: &str, path: &str, in_cookie: bool, run: impl FnOnce(&AccessRequest<'_>) -> T) -> T {
    let (name, value) = match in_cookie {
        true => ("cookie", format!("t={token}")),
        false => ("authorization", format!("Bearer {token}")),
    };
    let headers: Headers<'_> = [(name.as_bytes(), value.as_bytes())].into_iter().collect();
    #[allow(clippy::disallowed_methods, reason = "there is no other way to have an instant")]
    let arrived = std::time::Instant::now();
    run(&AccessRequest::new(b"GET", b"api.example.com", path.as_bytes(), headers, arrived))
}

/// Everything that anyone can see of a decision.
fn visible(decision: &Decision<'_>) -> String {
    let record = &decision.record;
    let steps: Vec<String> = record.steps().map(|step| format!("{step:?}")).collect();
    let claims: Vec<String> = record.shared_claims().map(|claim| format!("{claim:?}")).collect();
    format!(
        "{:?}\n{:?}\n{steps:#?}\n{claims:?}\n{:?}\n{:?}\n{:?}",
        decision.verdict,
        decision.challenge,
        decision.subject(),
        record.kid(),
        record.provider(),
    )
}

fn visible_evaluation(evaluation: &Evaluation<'_>) -> String {
    match evaluation {
        Evaluation::Done(decision) => visible(decision),
        Evaluation::NeedsKeys(needed) => format!("needs keys: {:?} {:?}", needed.need(), needed.kid()),
    }
}

#[test]
fn a_cached_token_is_decided_as_if_it_were_not_cached_whatever_has_changed() {
    let (signer, other) = (
        SigningKey::generate("k", SigningAlgorithm::ES256),
        SigningKey::generate("k", SigningAlgorithm::ES256),
    );
    let renamed = signer.with_kid("renamed");
    let token = signer.sign(&claims());
    let first = provider("orders-api");
    let at = |seconds| Some(UnixTime::from_secs(seconds));
    let issuer = |provider: &Arc<Provider>, keys: &CachedKeys| IssuerState {
        provider: Arc::clone(provider),
        realm: Some("acme".into()),
        keys: keys.clone(),
        clock_ahead: None,
    };
    let current = CachedKeys::Fetched(keys(&[&other, &signer]));
    let known = Known { token: None, issuer: issuer(&first, &current) };
    let first_policy = policy(&first, RequestLimits::default());
    let cached = with_request(&token, "/", false, |request| {
        let Evaluation::Done(decision) = evaluate(request, &first_policy, known, at(NOW)) else {
            panic!("its key is current");
        };
        assert!(!decision.record.is_from_cache());
        let verified = decision.record.newly_verified().expect("it was verified");
        // As a cache keeps it, after another token.
        let mut values = SharedValues::default();
        let _before = verified.share(&mut values);
        Arc::new(verified.share(&mut values))
    });

    let sets = [
        (current, true),
        // The same key, parsed again.
        (CachedKeys::Fetched(keys(&[&signer])), true),
        (CachedKeys::Fixed(keys(&[&signer])), true),
        (CachedKeys::Fetched(keys(&[&other])), false),
        (CachedKeys::Fixed(keys(&[&other])), false),
        (CachedKeys::Fetched(keys(&[&renamed])), false),
        (CachedKeys::Fetched(Arc::default()), false),
        (CachedKeys::NotFetched, false),
    ];
    let providers =
        [(Arc::clone(&first), true), (provider("orders-api"), false), (provider("billing"), false)];
    let times = [
        (at(NOW), true),
        (at(EARLY + 1), true),
        (at(EARLY), false),
        (at(EXPIRED - 1), true),
        (at(EXPIRED), false),
        (None, false),
    ];
    let mut short = RequestLimits::default();
    short.token.bytes = token.len() - 1;
    let limits = [(RequestLimits::default(), true), (short, false)];
    let (mut hits, mut decided) = (0, 0);
    for (keys, same_keys) in &sets {
        for (provider, same_provider) in &providers {
            for (now, in_time) in times {
                for (limits, fits) in &limits {
                    let policy = policy(provider, *limits);
                    for (path, in_cookie) in [("/", false), ("/write", false), ("/", true)] {
                        with_request(&token, path, in_cookie, |request| {
                            let known = |token| Known { token, issuer: issuer(provider, keys) };
                            let fresh = evaluate(request, &policy, known(None), now);
                            let reused = evaluate(request, &policy, known(Some(Arc::clone(&cached))), now);
                            assert_eq!(visible_evaluation(&reused), visible_evaluation(&fresh));
                            let is_hit =
                                matches!(&reused, Evaluation::Done(done) if done.record.is_from_cache());
                            let expected = *same_keys && *same_provider && in_time && *fits && !in_cookie;
                            assert_eq!(is_hit, expected, "{keys:?} {now:?} {path} {in_cookie}");
                            hits += u32::from(is_hit);
                            decided += 1;
                        });
                    }
                }
            }
        }
    }
    assert_eq!((hits, decided), (18, 864), "each combination once");
}

#[test]
fn a_token_is_only_new_where_its_signature_was_verified() {
    let signer = SigningKey::generate("k", SigningAlgorithm::ES256);
    let provider = provider("orders-api");
    let policy = policy(&provider, RequestLimits::default());
    let state = IssuerState {
        provider: Arc::clone(&provider),
        realm: None,
        keys: CachedKeys::Fixed(keys(&[&signer])),
        clock_ahead: None,
    };
    let stranger = SigningKey::generate("k", SigningAlgorithm::ES256);
    let mut expired = claims();
    expired["exp"] = json!(NOW - 3_600);
    for (token, path, is_new) in [
        (signer.sign(&claims()), "/", true),
        // The rule refuses it, but the signature is good: another request may pass with it.
        (signer.sign(&claims()), "/write", true),
        (stranger.sign(&claims()), "/", false),
        (signer.sign(&expired), "/", false),
        ("a.b.c".to_owned(), "/", false),
    ] {
        with_request(&token, path, false, |request| {
            let known = Known { token: None, issuer: state.clone() };
            let Evaluation::Done(decision) =
                evaluate(request, &policy, known, Some(UnixTime::from_secs(NOW)))
            else {
                panic!("fixed keys are never waited for");
            };
            assert_eq!(decision.record.newly_verified().is_some(), is_new, "{path}");
        });
    }
}
