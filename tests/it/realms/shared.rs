//! Realms that share one key set, as the tenants of Entra ID do: one cache, fetched once, and keys that name an issuer.

use portcullis::commands::issuer::Issuer;

use super::*;

const V2: &str = "https://login.example.com/{realm}/v2.0";

fn configuration(issuer: &Issuer, template: &str, more: &str) -> Config {
    let text = format!(
        "listen: {{ext_authz: 127.0.0.1:0, admin: 127.0.0.1:0}}
providers:
  - name: entra
    issuer: {template}
    realms: {{realms}}
    audiences: [orders-api]
    jwks_uri: {}
    claim_headers: {{x-tenant: tid}}
    refresh: {{interval: 1h, min_spacing: 10ms, wait: 10s{more}}}
",
        issuer.jwks_uri()
    );
    Config::parse(&text.replace("{realms}", "[acme, globex]"), &|_| None)
        .unwrap_or_else(|errors| panic!("{errors}"))
}

fn token(key: &SigningKey, iss: &str) -> String {
    key.sign(&json!({"iss": iss, "aud": "orders-api", "sub": "alice", "tid": iss, "exp": NOW + 60}))
}

fn of(realm: &str) -> String {
    V2.replace("{realm}", realm)
}

/// The public key with this `issuer` member.
fn naming(key: &SigningKey, issuer: Value) -> Value {
    let mut jwk = key.public_jwk();
    jwk["issuer"] = issuer;
    jwk
}

#[tokio::test]
async fn tokens_of_every_allowed_realm_are_verified_with_one_set_that_is_fetched_once() {
    let issuer = Issuer::start().await.expect("a free port");
    let key = issuer.rotate(SigningAlgorithm::RS256);
    let service = Running::start(configuration(&issuer, V2, ""), fixed_clock()).await;
    for realm in ["acme", "globex", "acme"] {
        let answer = service.bearer(&token(&key, &of(realm))).await;
        assert!(answer.is_allowed(), "{realm}: {}", answer.reason());
    }
    for iss in
        [of("initech"), of("{realm}"), of("%7Brealm%7D"), of(""), of("acme/x"), format!("{}/", of("acme"))]
    {
        assert_eq!(service.bearer(&token(&key, &iss)).await.reason(), "issuer_unknown", "{iss}");
    }
    assert_eq!(issuer.key_fetches(), 1);
    // A rotation is one more fetch, whatever the realms of the tokens.
    let new = issuer.rotate(SigningAlgorithm::ES256);
    for realm in ["globex", "acme"] {
        assert!(service.bearer(&token(&new, &of(realm))).await.is_allowed(), "{realm}");
    }
    assert_eq!(issuer.key_fetches(), 2);
    let page: Value = serde_json::from_str(&service.admin("/keys").await).expect("JSON");
    assert_eq!(page["providers"].as_array().map(Vec::len), Some(1), "{page}");
    let metrics = service.admin("/metrics").await;
    assert!(metrics.contains("portcullis_jwks_keys{provider=\"entra\"} 1\n"), "{metrics}");
}

#[tokio::test]
async fn a_key_that_names_an_issuer_serves_that_issuer_alone() {
    let issuer = Issuer::start().await.expect("a free port");
    let [any, every, acme, odd] =
        ["any", "every", "acme", "odd"].map(|kid| SigningKey::generate(kid, SigningAlgorithm::ES256));
    issuer.publish_json(json!({"keys": [
        any.public_jwk(),
        naming(&every, "https://login.example.com/{tenantid}/v2.0".into()),
        naming(&acme, of("acme").into()),
        naming(&odd, json!(["https://login.example.com"])),
    ]}));
    let service = Running::start(configuration(&issuer, V2, ""), fixed_clock()).await;
    for (key, realm, reason) in [
        (&any, "acme", "ok"),
        (&any, "globex", "ok"),
        (&every, "acme", "ok"),
        (&every, "globex", "ok"),
        (&acme, "acme", "ok"),
        (&acme, "globex", "key_unknown"),
        (&odd, "acme", "key_unknown"),
        // Again, from the cache of verified tokens or not.
        (&acme, "acme", "ok"),
        (&acme, "globex", "key_unknown"),
    ] {
        let answer = service.bearer(&token(key, &of(realm))).await;
        assert_eq!(answer.reason(), reason, "{:?} {realm}", key.kid());
    }
    // The key now names another issuer: what it verified before no longer counts.
    issuer.publish_json(json!({"keys": [any.public_jwk(), naming(&acme, of("globex").into())]}));
    let unknown = SigningKey::generate("unknown", SigningAlgorithm::ES256);
    assert_eq!(service.bearer(&token(&unknown, &of("acme"))).await.reason(), "key_unknown");
    assert_eq!(service.bearer(&token(&acme, &of("acme"))).await.reason(), "key_unknown");
    assert!(service.bearer(&token(&acme, &of("globex"))).await.is_allowed());
}

#[tokio::test]
async fn a_snapshot_keeps_the_issuer_that_a_key_names() {
    let (issuer, folder) =
        (Issuer::start().await.expect("a free port"), tempfile::tempdir().expect("a folder"));
    let acme = SigningKey::generate("acme", SigningAlgorithm::ES256);
    issuer.publish_json(json!({"keys": [naming(&acme, of("acme").into())]}));
    let more = format!(", snapshot_dir: '{}'", folder.path().display());
    let first = Running::start(configuration(&issuer, V2, &more), fixed_clock()).await;
    assert!(first.bearer(&token(&acme, &of("acme"))).await.is_allowed());
    let is_written = || std::fs::read_dir(folder.path()).is_ok_and(|mut files| files.next().is_some());
    while !is_written() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    drop(first);
    issuer.stop().await;
    let second = Running::start(configuration(&issuer, V2, &more), fixed_clock()).await;
    assert!(second.bearer(&token(&acme, &of("acme"))).await.is_allowed());
    assert!(!second.bearer(&token(&acme, &of("globex"))).await.is_allowed());
}

#[tokio::test]
async fn an_issuer_with_a_slash_at_its_end_is_a_template_too_and_a_reload_fetches_nothing() {
    let issuer = Issuer::start().await.expect("a free port");
    let key = issuer.rotate(SigningAlgorithm::RS256);
    let v1 = "https://sts.example.com/{realm}/";
    let service = Running::start(configuration(&issuer, v1, ""), fixed_clock()).await;
    let acme = token(&key, &v1.replace("{realm}", "acme"));
    assert!(service.bearer(&acme).await.is_allowed());
    assert_eq!(service.bearer(&token(&key, "https://sts.example.com/acme")).await.reason(), "issuer_unknown");
    let mut changed = configuration(&issuer, v1, "");
    Arc::make_mut(&mut changed.providers[0].provider).clock_skew = Duration::from_secs(1);
    assert_eq!(service.service().reload(&changed).await, Ok(Vec::new()));
    assert!(service.bearer(&acme).await.is_allowed());
    assert_eq!(issuer.key_fetches(), 1);
    let printed = configuration(&issuer, v1, "").to_yaml();
    let again = Config::parse(&printed, &|_| None).expect("what is printed is valid");
    assert_eq!(again.to_yaml(), printed);
}
