//! Key refresh through the complete service: real sockets, a real issuer and real signatures. The properties on a paused
//! clock are tested in `tests/it/key_cache.rs`.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{self, Answer, Ask, Running, config, fetching, fixed_clock, prompt_refresh, provider};
use portcullis::access_request::AccessRequest;
use portcullis::clock::{self, Clock};
use portcullis::commands::issuer::{Fault, Issuer, SigningAlgorithm, SigningKey, with_claim, without_claim};
use portcullis::config::{Config, IssuerHttp, KeySource, ProviderConfig, RefreshPolicy};
use serde_json::json;

const ES256: SigningAlgorithm = SigningAlgorithm::ES256;

/// No scheduled fetch after the first, and the default spacings of forced fetches.
fn default_spacing() -> RefreshPolicy {
    RefreshPolicy { interval: Duration::from_secs(3600), ..RefreshPolicy::default() }
}

struct TestEnv {
    issuer: Issuer,
    service: Arc<Running>,
}

impl TestEnv {
    async fn start(refresh: RefreshPolicy) -> (Self, SigningKey) {
        let issuer = Issuer::start().await.expect("port 0 can be bound");
        let key = issuer.rotate(ES256);
        let providers = vec![fetching(provider("demo", issuer.issuer()), &issuer, refresh)];
        let service = Arc::new(Running::start(config(providers), fixed_clock()).await);
        (Self { issuer, service }, key)
    }

    fn token(&self, key: &SigningKey) -> String {
        key.sign(&self.issuer.claims(support::NOW))
    }

    /// Waits until the recovered issuer is used: the failed fetch may still be in progress, and no fetch starts during the
    /// spacing after it.
    async fn wait_for_recovery(&self, token: &str) {
        for _ in 0..500 {
            let answer = self.service.bearer(token).await;
            if answer.is_allowed() {
                return;
            }
            assert_reason(&answer, "keys_unavailable");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the recovered issuer is not used");
    }

    /// Sends this many concurrent checks.
    async fn check_concurrently(&self, token: &str, size: usize) -> Vec<Answer> {
        let mut checks = tokio::task::JoinSet::new();
        for _ in 0..size {
            let (service, token) = (Arc::clone(&self.service), token.to_owned());
            checks.spawn(async move { service.bearer(&token).await });
        }
        checks.join_all().await
    }
}

#[track_caller]
fn assert_reason(answer: &Answer, reason: &str) {
    assert_eq!(answer.faults(reason, &[]), Vec::<String>::new());
}

#[tokio::test]
async fn the_first_token_after_each_rotation_is_allowed_at_its_first_try_by_one_fetch() {
    let (env, _) = TestEnv::start(prompt_refresh()).await;
    for (rotation, algorithm) in
        SigningAlgorithm::ALL.into_iter().filter(|alg| !alg.name().starts_with("HS")).enumerate()
    {
        let key = env.issuer.rotate(algorithm);
        assert_reason(&env.service.bearer(&env.token(&key)).await, "ok");
        assert_eq!(env.issuer.key_fetches(), rotation as u64 + 2, "{algorithm}");
    }
}

#[tokio::test]
async fn a_thousand_concurrent_tokens_of_one_new_key_cost_one_fetch() {
    let (env, _) = TestEnv::start(default_spacing()).await;
    let key = env.issuer.rotate(ES256);
    for answer in env.check_concurrently(&env.token(&key), 1000).await {
        assert_reason(&answer, "ok");
    }
    assert_eq!(env.issuer.key_fetches(), 2);
}

#[tokio::test]
async fn a_token_of_a_new_key_waits_for_the_fetch_after_one_started_before_the_rotation() {
    let (env, _) = TestEnv::start(prompt_refresh()).await;
    env.issuer.hold();
    let unknown_key = SigningKey::generate("made-up", ES256);
    let early = tokio::spawn({
        let (service, token) = (Arc::clone(&env.service), env.token(&unknown_key));
        async move { service.bearer(&token).await }
    });
    env.issuer.wait_for_held(1).await;
    let key = env.issuer.rotate(ES256);
    let good = tokio::spawn({
        let (service, token) = (Arc::clone(&env.service), env.token(&key));
        async move { service.bearer(&token).await }
    });
    // The held response is the old set; the valid token must wait for the next one.
    env.issuer.release();
    assert_reason(&early.await.expect("answered"), "key_unknown");
    assert_reason(&good.await.expect("answered"), "ok");
    assert_eq!(env.issuer.key_fetches(), 3);
}

#[tokio::test]
async fn a_flood_of_unknown_kids_stays_within_the_spacing_during_a_rotation() {
    let (env, _) = TestEnv::start(default_spacing()).await;
    let started = clock::monotonic();
    let mut flood = tokio::task::JoinSet::new();
    for i in 0..300 {
        let (service, token) =
            (Arc::clone(&env.service), env.token(&SigningKey::generate(format!("kid-{i}").as_str(), ES256)));
        flood.spawn(async move { service.bearer(&token).await });
    }
    env.issuer.wait_for_fetches(2).await;
    let key = env.issuer.rotate(ES256);
    assert_reason(&env.service.bearer(&env.token(&key)).await, "ok");
    for answer in flood.join_all().await {
        assert_reason(&answer, "key_unknown");
    }
    let bound = 1 + started.elapsed().as_secs() + 1;
    assert!(env.issuer.key_fetches() <= bound, "{} fetches, at most {bound}", env.issuer.key_fetches());
}

#[tokio::test]
async fn a_token_invalid_with_any_key_costs_no_fetch() {
    let (env, _) = TestEnv::start(prompt_refresh()).await;
    let unknown_key = SigningKey::generate("made-up", ES256);
    let claims = env.issuer.claims(support::NOW);
    for (claims, reason) in [
        (with_claim(claims.clone(), "exp", support::NOW - 31), "expired"),
        (with_claim(claims.clone(), "aud", "other"), "audience_mismatch"),
        (with_claim(claims.clone(), "iss", "https://other"), "issuer_unknown"),
        (without_claim(claims.clone(), "exp"), "claim_missing"),
    ] {
        assert_reason(&env.service.bearer(&unknown_key.sign(&claims)).await, reason);
    }
    for (token, reason) in [("a.b.c", "malformed"), ("nonsense", "malformed")] {
        assert_reason(&env.service.bearer(token).await, reason);
    }
    assert_reason(&env.service.ask(Ask::default()).await, "token_missing");
    assert_eq!(env.issuer.key_fetches(), 1);
}

#[tokio::test]
async fn a_required_claim_that_is_missing_is_refused_without_a_fetch() {
    let issuer = Issuer::start().await.expect("port 0 can be bound");
    issuer.rotate(ES256);
    let mut rules = provider("demo", issuer.issuer());
    rules.required_claims =
        vec![portcullis::validation::provider::ClaimPath::parse("tenant_id").expect("a name")];
    let service =
        Running::start(config(vec![fetching(rules, &issuer, prompt_refresh())]), fixed_clock()).await;
    let unknown_key = SigningKey::generate("made-up", ES256);
    for claims in [
        without_claim(issuer.claims(support::NOW), "tenant_id"),
        with_claim(issuer.claims(support::NOW), "tenant_id", ""),
        with_claim(issuer.claims(support::NOW), "tenant_id", json!(null)),
        with_claim(issuer.claims(support::NOW), "tenant_id", json!([])),
    ] {
        assert_reason(&service.bearer(&unknown_key.sign(&claims)).await, "claim_missing");
    }
    assert_eq!(issuer.key_fetches(), 1);
}

#[tokio::test]
async fn a_failing_issuer_does_not_affect_known_keys_and_new_ones_are_unavailable() {
    for fault in [
        Fault::Status(500),
        Fault::Status(404),
        Fault::Status(204),
        Fault::Html,
        Fault::EmptySet,
        Fault::EmptyBody,
        Fault::Huge(10 << 20),
        Fault::HalfBody,
        Fault::DropConnection,
        Fault::Redirect("http://example.invalid/keys".to_owned()),
        Fault::Redirect("file:///etc/passwd".to_owned()),
    ] {
        let (env, key) = TestEnv::start(prompt_refresh()).await;
        env.issuer.set_fault(Some(fault.clone()));
        let new = env.issuer.rotate_beside(ES256);
        let answer = env.service.bearer(&env.token(&new)).await;
        assert_eq!(answer.faults("keys_unavailable", &[]), Vec::<String>::new(), "{fault:?}");
        assert_eq!(answer.set.get("retry-after").map(String::as_str), Some("1"));
        assert_reason(&env.service.bearer(&env.token(&key)).await, "ok");
        env.issuer.set_fault(None);
        env.wait_for_recovery(&env.token(&new)).await;
    }
}

#[tokio::test]
async fn an_issuer_that_recovers_with_other_keys_is_used_again() {
    let (env, key) = TestEnv::start(prompt_refresh()).await;
    env.issuer.stop().await;
    let new = SigningKey::generate("new", ES256);
    assert_reason(&env.service.bearer(&env.token(&new)).await, "keys_unavailable");
    assert_reason(&env.service.bearer(&env.token(&key)).await, "ok");
    env.issuer.publish(&[&new]);
    env.issuer.restart().await.expect("the port is still ours");
    env.wait_for_recovery(&env.token(&new)).await;
    assert_reason(&env.service.bearer(&env.token(&key)).await, "key_unknown");
}

#[tokio::test]
async fn a_slow_issuer_delays_a_request_at_most_until_its_deadline() {
    let (env, key) = TestEnv::start(prompt_refresh()).await;
    env.issuer.set_fault(Some(Fault::Hang));
    let new = env.issuer.rotate_beside(ES256);
    let check = Ask::default().header("authorization", format!("Bearer {}", env.token(&new))).into_check();
    let mut request = tonic::Request::new(check);
    request.set_timeout(Duration::from_millis(1500));
    // The service answers before the deadline of the client.
    let answer = env.service.send_request(request).await.expect("answered before the deadline");
    assert_reason(&Answer::read(answer), "keys_unavailable");
    assert_reason(&env.service.bearer(&env.token(&key)).await, "ok");
}

#[tokio::test]
async fn a_cancelled_request_does_not_cancel_the_fetch() {
    let (env, _) = TestEnv::start(default_spacing()).await;
    let key = env.issuer.rotate(ES256);
    env.issuer.hold();
    let caller = tokio::spawn({
        let (service, token) = (Arc::clone(&env.service), env.token(&key));
        async move { service.bearer(&token).await }
    });
    env.issuer.wait_for_held(1).await;
    caller.abort();
    assert!(caller.await.expect_err("cancelled").is_cancelled());
    let other = tokio::spawn({
        let (service, token) = (Arc::clone(&env.service), env.token(&key));
        async move { service.bearer(&token).await }
    });
    env.issuer.release();
    assert_reason(&other.await.expect("answered"), "ok");
    assert_eq!(env.issuer.key_fetches(), 2);
}

#[tokio::test]
async fn a_check_before_the_first_keys_waits_for_them_and_readiness_reports_them() {
    let issuer = Issuer::start().await.expect("port 0 can be bound");
    let key = issuer.rotate(ES256);
    issuer.hold();
    let providers = vec![fetching(provider("demo", issuer.issuer()), &issuer, prompt_refresh())];
    let service = Arc::new(Running::start_without_keys(config(providers), fixed_clock()).await);
    issuer.wait_for_held(1).await;
    assert!(service.admin("/readyz").await.contains("no keys yet: demo"));
    let pending = tokio::spawn({
        let (service, token) = (Arc::clone(&service), key.sign(&issuer.claims(support::NOW)));
        async move { service.bearer(&token).await }
    });
    issuer.release();
    assert_reason(&pending.await.expect("answered"), "ok");
    assert_eq!(service.admin("/readyz").await, "ok\n");
    assert_eq!(issuer.key_fetches(), 1);
}

#[tokio::test]
async fn without_keys_every_token_is_unavailable() {
    let issuer = Issuer::start().await.expect("port 0 can be bound");
    let key = issuer.rotate(ES256);
    issuer.set_fault(Some(Fault::Status(503)));
    let providers = vec![fetching(provider("demo", issuer.issuer()), &issuer, prompt_refresh())];
    let service = Running::start_without_keys(config(providers), fixed_clock()).await;
    assert_reason(&service.bearer(&key.sign(&issuer.claims(support::NOW))).await, "keys_unavailable");
}

#[tokio::test]
async fn a_withdrawn_key_is_refused_once_a_fetch_has_shown_it() {
    let (env, old) = TestEnv::start(prompt_refresh()).await;
    assert_reason(&env.service.bearer(&env.token(&old)).await, "ok");
    let new = env.issuer.rotate(ES256);
    assert_reason(&env.service.bearer(&env.token(&old)).await, "ok");
    assert_reason(&env.service.bearer(&env.token(&new)).await, "ok");
    assert_reason(&env.service.bearer(&env.token(&old)).await, "key_unknown");
}

#[tokio::test]
async fn a_kid_with_new_material_is_accepted_at_its_first_token() {
    let (env, old) = TestEnv::start(prompt_refresh()).await;
    let kid = old.kid().expect("the issuer names its keys").to_owned();
    let rekeyed = SigningKey::generate(kid.as_str(), ES256);
    env.issuer.publish(&[&rekeyed]);
    assert_reason(&env.service.bearer(&env.token(&rekeyed)).await, "ok");
    assert_reason(&env.service.bearer(&env.token(&old)).await, "bad_signature");
}

#[tokio::test]
async fn a_kid_is_looked_up_at_the_tokens_own_issuer_alone() {
    let (one, two) = (Issuer::start().await.expect("bound"), Issuer::start().await.expect("bound"));
    let (key_of_one, key_of_two) = (one.rotate(ES256), two.rotate(ES256));
    assert_eq!(key_of_one.kid(), key_of_two.kid(), "both issuers use the same name");
    let only_two = two.rotate_beside(ES256);
    let providers = vec![
        fetching(provider("one", one.issuer()), &one, prompt_refresh()),
        fetching(provider("two", two.issuer()), &two, prompt_refresh()),
    ];
    let service = Running::start(config(providers), fixed_clock()).await;
    let (claims_one, claims_two) = (one.claims(support::NOW), two.claims(support::NOW));
    assert_reason(&service.bearer(&key_of_one.sign(&claims_one)).await, "ok");
    assert_reason(&service.bearer(&key_of_two.sign(&claims_two)).await, "ok");
    assert_reason(&service.bearer(&key_of_two.sign(&claims_one)).await, "bad_signature");
    assert_reason(&service.bearer(&only_two.sign(&claims_one)).await, "key_unknown");
    let (answer, fetches) = (service.bearer(&only_two.sign(&claims_two)).await, two.key_fetches());
    assert_reason(&answer, "ok");
    assert_eq!((answer.metadata["provider"].as_str(), fetches), ("two", 1));
}

#[tokio::test]
async fn discovery_finds_the_keys_and_refuses_another_issuers_document() {
    let issuer = Issuer::start().await.expect("port 0 can be bound");
    let key = issuer.rotate(ES256);
    let discovering = |rules| ProviderConfig {
        provider: Arc::new(rules),
        keys: KeySource::Discovery(issuer.discovery_uri().parse().expect("a URL")),
        http: IssuerHttp::default(),
        refresh: prompt_refresh(),
        realms: None,
        shared: None,
        ready_without_keys: false,
    };
    let service =
        Running::start(config(vec![discovering(provider("demo", issuer.issuer()))]), fixed_clock()).await;
    assert_reason(&service.bearer(&key.sign(&issuer.claims(support::NOW))).await, "ok");
    let new = issuer.rotate(ES256);
    assert_reason(&service.bearer(&new.sign(&issuer.claims(support::NOW))).await, "ok");
    assert_eq!((issuer.discovery_fetches(), issuer.key_fetches()), (1, 2), "a forced fetch is one request");

    let service = Running::start_without_keys(
        config(vec![discovering(provider("demo", "https://other"))]),
        fixed_clock(),
    )
    .await;
    let claims = with_claim(issuer.claims(support::NOW), "iss", "https://other");
    assert_reason(&service.bearer(&new.sign(&claims)).await, "keys_unavailable");
    assert!(service.admin("/keys").await.contains("is not the configured one"));
}

#[tokio::test]
async fn a_key_url_that_does_not_answer_is_asked_for_again() {
    let issuer = Issuer::start().await.expect("port 0 can be bound");
    issuer.rotate(ES256);
    let discovering = ProviderConfig {
        provider: Arc::new(provider("demo", issuer.issuer())),
        keys: KeySource::Discovery(issuer.discovery_uri().parse().expect("a URL")),
        http: IssuerHttp::default(),
        refresh: RefreshPolicy { timeout: Duration::from_millis(200), ..prompt_refresh() },
        realms: None,
        shared: None,
        ready_without_keys: false,
    };
    let env = TestEnv {
        service: Arc::new(Running::start(config(vec![discovering]), fixed_clock()).await),
        issuer: issuer.clone(),
    };
    assert_eq!(issuer.discovery_fetches(), 1);
    issuer.set_fault(Some(Fault::Hang));
    let new = issuer.rotate(ES256);
    assert_reason(&env.service.bearer(&env.token(&new)).await, "keys_unavailable");
    issuer.set_fault(None);
    env.wait_for_recovery(&env.token(&new)).await;
    assert!(issuer.discovery_fetches() >= 2, "the keys may have moved");
}

#[tokio::test]
async fn a_key_file_is_read_again_when_it_changes_and_a_broken_one_changes_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("keys.json");
    let write = |keys: &[&SigningKey]| {
        let keys: Vec<_> = keys.iter().map(|key| key.public_jwk()).collect();
        std::fs::write(&file, json!({ "keys": keys }).to_string()).expect("the file can be written");
    };
    let (old, new) = (SigningKey::generate("old", ES256), SigningKey::generate("new", ES256));
    write(&[&old]);
    let keys = ProviderConfig {
        provider: Arc::new(provider("file", "https://file.example.com")),
        keys: KeySource::File(file.clone()),
        http: IssuerHttp::default(),
        refresh: prompt_refresh(),
        realms: None,
        shared: None,
        ready_without_keys: false,
    };
    let service = Running::start(config(vec![keys]), fixed_clock()).await;
    let claims = json!({"iss": "https://file.example.com", "aud": "orders-api", "exp": support::NOW + 60});
    assert_reason(&service.bearer(&old.sign(&claims)).await, "ok");
    std::fs::write(&file, "{").expect("the file can be written");
    assert_reason(&service.bearer(&new.sign(&claims)).await, "keys_unavailable");
    assert_reason(&service.bearer(&old.sign(&claims)).await, "ok");
    write(&[&new]);
    let noticed = async {
        while !service.bearer(&new.sign(&claims)).await.is_allowed() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), noticed).await.expect("noticed within 5 s");
    // A withdrawal without a token of a new key: the change of the file is noticed.
    let (spare, withdrawn) = (SigningKey::generate("spare", ES256), new);
    write(&[&spare]);
    let noticed = async {
        while !service.admin("/keys").await.contains("spare") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), noticed).await.expect("noticed within 5 s");
    assert_reason(&service.bearer(&withdrawn.sign(&claims)).await, "key_unknown");
}

#[tokio::test]
async fn the_admin_listener_shows_fetches_and_no_private_key() {
    let (env, _) = TestEnv::start(prompt_refresh()).await;
    let key = env.issuer.rotate(ES256);
    let mut jwks = env.issuer.published();
    let keys = jwks["keys"].as_array_mut().expect("a key set");
    keys.push(json!({"kty": "oct", "kid": "shared", "k": "c2VjcmV0LXNlY3JldA"}));
    keys.push(json!({"kty": "AKP", "kid": "future", "alg": "ML-DSA-65", "pub": "AA"}));
    env.issuer.publish_json(jwks);
    assert_reason(&env.service.bearer(&env.token(&key)).await, "ok");

    let text = env.service.admin("/keys").await;
    assert!(!text.contains("c2VjcmV0LXNlY3JldA"));
    let keys: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let provider = &keys["providers"][0];
    assert_eq!(provider["name"], "demo");
    assert_eq!(provider["generation"], 2);
    assert_eq!(provider["last_trigger"], "unknown_kid");
    assert_eq!(provider["last_error"], json!(null));
    assert_eq!(provider["fetched_at"], "2027-01-15T08:00:00Z");
    assert_eq!(provider["keys"][0]["kid"], key.kid().expect("a name"));
    assert_eq!(provider["keys"][0]["thumbprint"].as_str().map(str::len), Some(43));
    let skipped: Vec<_> =
        provider["skipped"].as_array().expect("a list").iter().map(|key| &key["kid"]).collect();
    assert_eq!(skipped, ["shared", "future"]);

    let metrics = env.service.admin("/metrics").await;
    for line in [
        r#"portcullis_decisions_total{door="ext_authz",verdict="allow",reason="ok",provider="demo"} 1"#,
        r#"portcullis_jwks_fetches_total{provider="demo",trigger="startup",outcome="renewed"} 1"#,
        r#"portcullis_jwks_fetches_total{provider="demo",trigger="unknown_kid",outcome="renewed"} 1"#,
        r#"portcullis_stale_tokens_total{provider="demo",cause="unknown_kid",outcome="rescued"} 1"#,
        r#"portcullis_jwks_keys{provider="demo"} 1"#,
        r#"portcullis_jwks_generation{provider="demo"} 2"#,
        r#"portcullis_decision_duration_seconds_count{door="ext_authz",verdict="allow"} 1"#,
        r#"portcullis_jwks_age_seconds{provider="demo"} "#,
    ] {
        assert!(metrics.contains(line), "{line}\nis not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_configuration_from_text_serves() {
    let issuer = Issuer::start().await.expect("port 0 can be bound");
    let key = issuer.rotate(ES256);
    let text = format!(
        "listen: {{ext_authz: 127.0.0.1:0, admin: 127.0.0.1:0}}
providers:
  - {{name: demo, issuer: '{}', audiences: [orders-api], claim_headers: {{x-auth-subject: sub}}}}
",
        issuer.issuer()
    );
    let config = Config::parse(&text, &|_| None).expect("the configuration is valid");
    let service =
        Running::start(config, Clock::Fixed(portcullis::validation::UnixTime::from_secs(support::NOW))).await;
    let answer = service.bearer(&key.sign(&issuer.claims(support::NOW))).await;
    assert_reason(&answer, "ok");
    assert_eq!(answer.set["x-auth-subject"], "alice");
}

#[tokio::test]
async fn try_decide_decides_with_current_keys_and_never_waits() {
    let (env, known) = TestEnv::start(prompt_refresh()).await;
    env.issuer.hold();
    let new = env.issuer.rotate(ES256);
    let (service, fetched) = (env.service.service(), env.issuer.key_fetches());
    let authorizer = service.authorizer();
    let values = [&known, &new].map(|key| format!("Bearer {}", env.token(key)));
    let [known, new] = values.each_ref().map(|value| {
        let headers = [(&b"authorization"[..], value.as_bytes())].into_iter().collect();
        AccessRequest::new(b"GET", b"h", b"/", headers, clock::monotonic().into_std())
    });
    let decisions = || service.metrics().encode().expect("text").matches("door=\"door\"").count();
    let decided = authorizer.try_decide("door", &known).map_err(drop).expect("its key is known");
    assert_eq!(decided.decision.verdict.reason().as_str(), "ok");
    let before = decisions();
    assert!(before > 0);
    for _ in 0..3 {
        assert!(authorizer.try_decide("other door", &new).is_err(), "its key is unknown");
    }
    assert!(!service.metrics().encode().expect("text").contains("other door"), "no decision is counted");
    assert_eq!(env.issuer.key_fetches(), fetched, "no fetch is forced");
    let undecided = authorizer.try_decide("door", &new).expect_err("its key is unknown");
    let (decided, ()) = tokio::join!(undecided.decided(), async {
        env.issuer.wait_for_held(1).await;
        env.issuer.release();
    });
    assert_eq!(decided.decision.verdict.reason().as_str(), "ok");
    assert_eq!(env.issuer.key_fetches(), fetched + 1);
}
