//! The refresh rule through the whole service: real sockets, a real issuer in the test, real
//! signatures. The rule's own properties, on a paused clock, are in `tests/it/key_cache.rs`.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{self, Answer, Ask, Running, config, fetching, fixed_clock, prompt_refresh, provider};
use portcullis::access_request::AccessRequest;
use portcullis::clock::{self, Clock};
use portcullis::commands::issuer::{Fault, Issuer, SigningAlgorithm, SigningKey, with_claim, without_claim};
use portcullis::config::{Config, IssuerHttp, KeySource, ProviderConfig, RefreshPolicy};
use serde_json::json;

const ES256: SigningAlgorithm = SigningAlgorithm::ES256;

/// Nothing is fetched by itself, and forced fetches keep the distances of the defaults.
fn default_spacing() -> RefreshPolicy {
    RefreshPolicy { interval: Duration::from_secs(3600), ..RefreshPolicy::default() }
}

struct House {
    issuer: Issuer,
    service: Arc<Running>,
}

impl House {
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

    /// Asks until the issuer, which is well again, has been found to be: the failure before may still
    /// be on its way, and for the spacing after it nobody tries.
    async fn recovers(&self, token: &str) {
        for _ in 0..500 {
            let answer = self.service.bearer(token).await;
            if answer.is_allowed() {
                return;
            }
            is(&answer, "keys_unavailable");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the issuer is well and nobody noticed");
    }

    /// Asks so many times at once.
    async fn herd(&self, token: &str, size: usize) -> Vec<Answer> {
        let mut herd = tokio::task::JoinSet::new();
        for _ in 0..size {
            let (service, token) = (Arc::clone(&self.service), token.to_owned());
            herd.spawn(async move { service.bearer(&token).await });
        }
        herd.join_all().await
    }
}

#[track_caller]
fn is(answer: &Answer, reason: &str) {
    assert_eq!(answer.faults(reason, &[]), Vec::<String>::new());
}

#[tokio::test]
async fn the_first_token_after_each_rotation_is_allowed_at_its_first_try_by_one_fetch() {
    let (house, _) = House::start(prompt_refresh()).await;
    for (rotation, algorithm) in
        SigningAlgorithm::ALL.into_iter().filter(|alg| !alg.name().starts_with("HS")).enumerate()
    {
        let key = house.issuer.rotate(algorithm);
        is(&house.service.bearer(&house.token(&key)).await, "ok");
        assert_eq!(house.issuer.key_fetches(), rotation as u64 + 2, "{algorithm}");
    }
}

#[tokio::test]
async fn a_herd_of_a_thousand_on_one_new_key_costs_one_fetch() {
    let (house, _) = House::start(default_spacing()).await;
    let key = house.issuer.rotate(ES256);
    for answer in house.herd(&house.token(&key), 1000).await {
        is(&answer, "ok");
    }
    assert_eq!(house.issuer.key_fetches(), 2);
}

#[tokio::test]
async fn a_fetch_that_began_before_the_rotation_does_not_cost_the_new_token_its_answer() {
    let (house, _) = House::start(prompt_refresh()).await;
    house.issuer.hold();
    let stranger = SigningKey::generate("made-up", ES256);
    let early = tokio::spawn({
        let (service, token) = (Arc::clone(&house.service), house.token(&stranger));
        async move { service.bearer(&token).await }
    });
    house.issuer.wait_for_held(1).await;
    let key = house.issuer.rotate(ES256);
    let good = tokio::spawn({
        let (service, token) = (Arc::clone(&house.service), house.token(&key));
        async move { service.bearer(&token).await }
    });
    // The held answer is the old set; the good token must wait for the one after it.
    house.issuer.release();
    is(&early.await.expect("answered"), "key_unknown");
    is(&good.await.expect("answered"), "ok");
    assert_eq!(house.issuer.key_fetches(), 3);
}

#[tokio::test]
async fn a_flood_of_made_up_kids_stays_within_the_spacing_while_a_rotation_is_survived() {
    let (house, _) = House::start(default_spacing()).await;
    let began = clock::monotonic();
    let mut flood = tokio::task::JoinSet::new();
    for i in 0..300 {
        let (service, token) = (
            Arc::clone(&house.service),
            house.token(&SigningKey::generate(format!("kid-{i}").as_str(), ES256)),
        );
        flood.spawn(async move { service.bearer(&token).await });
    }
    house.issuer.wait_for_fetches(2).await;
    let key = house.issuer.rotate(ES256);
    is(&house.service.bearer(&house.token(&key)).await, "ok");
    for answer in flood.join_all().await {
        is(&answer, "key_unknown");
    }
    let bound = 1 + began.elapsed().as_secs() + 1;
    assert!(house.issuer.key_fetches() <= bound, "{} fetches, at most {bound}", house.issuer.key_fetches());
}

#[tokio::test]
async fn what_no_key_could_mend_costs_no_fetch_whatever_its_kid() {
    let (house, _) = House::start(prompt_refresh()).await;
    let stranger = SigningKey::generate("made-up", ES256);
    let claims = house.issuer.claims(support::NOW);
    for (claims, reason) in [
        (with_claim(claims.clone(), "exp", support::NOW - 31), "expired"),
        (with_claim(claims.clone(), "aud", "other"), "audience_mismatch"),
        (with_claim(claims.clone(), "iss", "https://other"), "issuer_unknown"),
        (without_claim(claims.clone(), "exp"), "claim_missing"),
    ] {
        is(&house.service.bearer(&stranger.sign(&claims)).await, reason);
    }
    for (token, reason) in [("a.b.c", "malformed"), ("nonsense", "malformed")] {
        is(&house.service.bearer(token).await, reason);
    }
    is(&house.service.ask(Ask::default()).await, "token_missing");
    assert_eq!(house.issuer.key_fetches(), 1);
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
    let stranger = SigningKey::generate("made-up", ES256);
    for claims in [
        without_claim(issuer.claims(support::NOW), "tenant_id"),
        with_claim(issuer.claims(support::NOW), "tenant_id", ""),
        with_claim(issuer.claims(support::NOW), "tenant_id", json!(null)),
        with_claim(issuer.claims(support::NOW), "tenant_id", json!([])),
    ] {
        is(&service.bearer(&stranger.sign(&claims)).await, "claim_missing");
    }
    assert_eq!(issuer.key_fetches(), 1);
}

#[tokio::test]
async fn an_issuer_in_trouble_costs_no_token_of_a_known_key_and_blames_none_of_a_new_one() {
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
        let (house, key) = House::start(prompt_refresh()).await;
        house.issuer.set_fault(Some(fault.clone()));
        let new = house.issuer.rotate_beside(ES256);
        let answer = house.service.bearer(&house.token(&new)).await;
        assert_eq!(answer.faults("keys_unavailable", &[]), Vec::<String>::new(), "{fault:?}");
        assert_eq!(answer.set.get("retry-after").map(String::as_str), Some("1"));
        is(&house.service.bearer(&house.token(&key)).await, "ok");
        house.issuer.set_fault(None);
        house.recovers(&house.token(&new)).await;
    }
}

#[tokio::test]
async fn an_issuer_that_is_down_and_comes_back_with_other_keys_is_found_again() {
    let (house, key) = House::start(prompt_refresh()).await;
    house.issuer.stop().await;
    let new = SigningKey::generate("new", ES256);
    is(&house.service.bearer(&house.token(&new)).await, "keys_unavailable");
    is(&house.service.bearer(&house.token(&key)).await, "ok");
    house.issuer.publish(&[&new]);
    house.issuer.restart().await.expect("the port is still ours");
    house.recovers(&house.token(&new)).await;
    is(&house.service.bearer(&house.token(&key)).await, "key_unknown");
}

#[tokio::test]
async fn a_slow_issuer_costs_a_caller_no_more_than_its_own_deadline() {
    let (house, key) = House::start(prompt_refresh()).await;
    house.issuer.set_fault(Some(Fault::Hang));
    let new = house.issuer.rotate_beside(ES256);
    let check = Ask::default().header("authorization", format!("Bearer {}", house.token(&new))).into_check();
    let mut request = tonic::Request::new(check);
    request.set_timeout(Duration::from_millis(1500));
    // An answer and not a deadline that was exceeded: the service was faster than its caller's patience.
    let answer = house.service.send_request(request).await.expect("answered before the deadline");
    is(&Answer::read(answer), "keys_unavailable");
    is(&house.service.bearer(&house.token(&key)).await, "ok");
}

#[tokio::test]
async fn a_caller_that_cancels_takes_nobody_elses_fetch_away() {
    let (house, _) = House::start(default_spacing()).await;
    let key = house.issuer.rotate(ES256);
    house.issuer.hold();
    let caller = tokio::spawn({
        let (service, token) = (Arc::clone(&house.service), house.token(&key));
        async move { service.bearer(&token).await }
    });
    house.issuer.wait_for_held(1).await;
    caller.abort();
    assert!(caller.await.expect_err("it gave up").is_cancelled());
    let other = tokio::spawn({
        let (service, token) = (Arc::clone(&house.service), house.token(&key));
        async move { service.bearer(&token).await }
    });
    house.issuer.release();
    is(&other.await.expect("answered"), "ok");
    assert_eq!(house.issuer.key_fetches(), 2);
}

#[tokio::test]
async fn a_check_before_the_first_keys_waits_for_them_and_readiness_tells_the_truth() {
    let issuer = Issuer::start().await.expect("port 0 can be bound");
    let key = issuer.rotate(ES256);
    issuer.hold();
    let providers = vec![fetching(provider("demo", issuer.issuer()), &issuer, prompt_refresh())];
    let service = Arc::new(Running::start_without_keys(config(providers), fixed_clock()).await);
    issuer.wait_for_held(1).await;
    assert!(service.admin("/readyz").await.contains("no keys yet: demo"));
    let asked = tokio::spawn({
        let (service, token) = (Arc::clone(&service), key.sign(&issuer.claims(support::NOW)));
        async move { service.bearer(&token).await }
    });
    issuer.release();
    is(&asked.await.expect("answered"), "ok");
    assert_eq!(service.admin("/readyz").await, "ok\n");
    assert_eq!(issuer.key_fetches(), 1);
}

#[tokio::test]
async fn without_any_keys_nobody_is_allowed_and_nobody_is_blamed() {
    let issuer = Issuer::start().await.expect("port 0 can be bound");
    let key = issuer.rotate(ES256);
    issuer.set_fault(Some(Fault::Status(503)));
    let providers = vec![fetching(provider("demo", issuer.issuer()), &issuer, prompt_refresh())];
    let service = Running::start_without_keys(config(providers), fixed_clock()).await;
    is(&service.bearer(&key.sign(&issuer.claims(support::NOW))).await, "keys_unavailable");
}

#[tokio::test]
async fn a_withdrawn_key_is_refused_once_a_fetch_has_shown_it() {
    let (house, old) = House::start(prompt_refresh()).await;
    is(&house.service.bearer(&house.token(&old)).await, "ok");
    let new = house.issuer.rotate(ES256);
    is(&house.service.bearer(&house.token(&old)).await, "ok");
    is(&house.service.bearer(&house.token(&new)).await, "ok");
    is(&house.service.bearer(&house.token(&old)).await, "key_unknown");
}

#[tokio::test]
async fn a_kid_with_new_material_heals_at_its_first_token() {
    let (house, old) = House::start(prompt_refresh()).await;
    let kid = old.kid().expect("the issuer names its keys").to_owned();
    let rekeyed = SigningKey::generate(kid.as_str(), ES256);
    house.issuer.publish(&[&rekeyed]);
    is(&house.service.bearer(&house.token(&rekeyed)).await, "ok");
    is(&house.service.bearer(&house.token(&old)).await, "bad_signature");
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
    is(&service.bearer(&key_of_one.sign(&claims_one)).await, "ok");
    is(&service.bearer(&key_of_two.sign(&claims_two)).await, "ok");
    is(&service.bearer(&key_of_two.sign(&claims_one)).await, "bad_signature");
    is(&service.bearer(&only_two.sign(&claims_one)).await, "key_unknown");
    let (answer, fetches) = (service.bearer(&only_two.sign(&claims_two)).await, two.key_fetches());
    is(&answer, "ok");
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
        ready_without_keys: false,
    };
    let service =
        Running::start(config(vec![discovering(provider("demo", issuer.issuer()))]), fixed_clock()).await;
    is(&service.bearer(&key.sign(&issuer.claims(support::NOW))).await, "ok");
    let new = issuer.rotate(ES256);
    is(&service.bearer(&new.sign(&issuer.claims(support::NOW))).await, "ok");
    assert_eq!((issuer.discovery_fetches(), issuer.key_fetches()), (1, 2), "a forced refresh is one request");

    let service = Running::start_without_keys(
        config(vec![discovering(provider("demo", "https://other"))]),
        fixed_clock(),
    )
    .await;
    let claims = with_claim(issuer.claims(support::NOW), "iss", "https://other");
    is(&service.bearer(&new.sign(&claims)).await, "keys_unavailable");
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
        ready_without_keys: false,
    };
    let house = House {
        service: Arc::new(Running::start(config(vec![discovering]), fixed_clock()).await),
        issuer: issuer.clone(),
    };
    assert_eq!(issuer.discovery_fetches(), 1);
    issuer.set_fault(Some(Fault::Hang));
    let new = issuer.rotate(ES256);
    is(&house.service.bearer(&house.token(&new)).await, "keys_unavailable");
    issuer.set_fault(None);
    house.recovers(&house.token(&new)).await;
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
        ready_without_keys: false,
    };
    let service = Running::start(config(vec![keys]), fixed_clock()).await;
    let claims = json!({"iss": "https://file.example.com", "aud": "orders-api", "exp": support::NOW + 60});
    is(&service.bearer(&old.sign(&claims)).await, "ok");
    std::fs::write(&file, "{").expect("the file can be written");
    is(&service.bearer(&new.sign(&claims)).await, "keys_unavailable");
    is(&service.bearer(&old.sign(&claims)).await, "ok");
    write(&[&new]);
    let noticed = async {
        while !service.bearer(&new.sign(&claims)).await.is_allowed() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), noticed).await.expect("noticed within 5 s");
    // Withdrawn without anybody asking for a new key: the change alone is noticed.
    let (spare, gone) = (SigningKey::generate("spare", ES256), new);
    write(&[&spare]);
    let noticed = async {
        while !service.admin("/keys").await.contains("spare") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), noticed).await.expect("noticed within 5 s");
    is(&service.bearer(&gone.sign(&claims)).await, "key_unknown");
}

#[tokio::test]
async fn the_operators_door_shows_what_happened_and_no_private_half() {
    let (house, _) = House::start(prompt_refresh()).await;
    let key = house.issuer.rotate(ES256);
    let mut jwks = house.issuer.published();
    let keys = jwks["keys"].as_array_mut().expect("a key set");
    keys.push(json!({"kty": "oct", "kid": "shared", "k": "c2VjcmV0LXNlY3JldA"}));
    keys.push(json!({"kty": "AKP", "kid": "future", "alg": "ML-DSA-65", "pub": "AA"}));
    house.issuer.publish_json(jwks);
    is(&house.service.bearer(&house.token(&key)).await, "ok");

    let text = house.service.admin("/keys").await;
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

    let metrics = house.service.admin("/metrics").await;
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
    is(&answer, "ok");
    assert_eq!(answer.set["x-auth-subject"], "alice");
}

#[tokio::test]
async fn what_can_be_decided_from_the_keys_in_hand_is_and_the_rest_waits_only_where_it_is_told_to() {
    let (house, known) = House::start(prompt_refresh()).await;
    house.issuer.hold();
    let new = house.issuer.rotate(ES256);
    let (service, fetched) = (house.service.service(), house.issuer.key_fetches());
    let authorizer = service.authorizer();
    let values = [&known, &new].map(|key| format!("Bearer {}", house.token(key)));
    let [known, new] = values.each_ref().map(|value| {
        let headers = [(&b"authorization"[..], value.as_bytes())].into_iter().collect();
        AccessRequest::new(b"GET", b"h", b"/", headers, clock::monotonic().into_std())
    });
    let counted = || service.metrics().encode().expect("text").matches("door=\"door\"").count();
    let decided = authorizer.try_decide("door", &known).map_err(drop).expect("its key is in hand");
    assert_eq!(decided.decision.verdict.reason().as_str(), "ok");
    let before = counted();
    assert!(before > 0);
    for _ in 0..3 {
        assert!(authorizer.try_decide("other door", &new).is_err(), "its key is not");
    }
    assert!(!service.metrics().encode().expect("text").contains("other door"), "nothing was decided");
    assert_eq!(house.issuer.key_fetches(), fetched, "and nobody asked for more");
    let undecided = authorizer.try_decide("door", &new).expect_err("its key is not");
    let (decided, ()) = tokio::join!(undecided.decided(), async {
        house.issuer.wait_for_held(1).await;
        house.issuer.release();
    });
    assert_eq!(decided.decision.verdict.reason().as_str(), "ok");
    assert_eq!(house.issuer.key_fetches(), fetched + 1);
}
