//! JWT-SVIDs: providers with `spiffe`, their keys in bundles, and what tokens they accept.

use std::fs;

use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use portcullis::config::Config;
use portcullis::validation::key_set::{KeySet, KeyUse};
use serde_json::{Value, json};

use crate::support::{self, NOW, Running, fixed_clock};
use crate::transport::answer::Answer;
use crate::transport::env::{eventually, folder};
use crate::transport::key_server::KeyServer;

const RS256: SigningAlgorithm = SigningAlgorithm::RS256;

/// A bundle (SPIFFE Trust Domain and Bundle §4) with these keys for JWT-SVIDs, and one for X.509-SVIDs.
fn bundle(keys: &[&SigningKey]) -> String {
    let authority = with(SigningKey::pooled(7, None, RS256).public_jwk(), &json!({"use": "x509-svid"}));
    let svids = keys.iter().map(|key| with(key.public_jwk(), &json!({"use": "jwt-svid"})));
    let keys: Vec<Value> = std::iter::once(authority).chain(svids).collect();
    json!({"spiffe_sequence": 7, "spiffe_refresh_hint": 300, "keys": keys}).to_string()
}

/// This object with these members; null removes one.
fn with(mut object: Value, changes: &Value) -> Value {
    let members = object.as_object_mut().expect("an object");
    for (name, value) in changes.as_object().expect("an object") {
        match value {
            Value::Null => drop(members.remove(name)),
            value => drop(members.insert(name.clone(), value.clone())),
        }
    }
    object
}

/// The claims of a JWT-SVID.
fn claims() -> Value {
    json!({"sub": "spiffe://example.org/ns/shop/sa/checkout", "aud": ["orders"], "exp": NOW + 300})
}

struct World {
    folder: tempfile::TempDir,
    key: SigningKey,
    service: Running,
}

impl World {
    /// A service whose first provider is a trust domain with its bundle in a file; the other one has an issuer, and the same
    /// key.
    async fn start() -> Self {
        let (folder, key) = (folder(), SigningKey::pooled(0, "a", RS256));
        fs::write(folder.path().join("bundle.json"), bundle(&[&key])).expect("written");
        let config = Config::parse(&text(&folder, &key), &|_| None);
        let config = config.unwrap_or_else(|errors| panic!("{errors}"));
        let service = Running::start(config, fixed_clock()).await;
        Self { folder, key, service }
    }

    async fn ask(&self, changes: Value) -> support::Answer {
        self.service.bearer(&self.key.sign(&with(claims(), &changes))).await
    }
}

fn text(folder: &tempfile::TempDir, key: &SigningKey) -> String {
    format!(
        "
listen: {{ext_authz: '127.0.0.1:0', admin: '127.0.0.1:0'}}
providers:
  - name: mesh
    spiffe: example.org
    jwks_file: '{}'
    audiences: [orders]
    claim_headers: {{x-auth-subject: sub}}
    refresh: {{min_spacing: 10ms, min_spacing_bad_signature: 10ms}}
  - name: staff
    issuer: https://staff.example.com
    jwks: {}
    audiences: [orders]
",
        folder.path().join("bundle.json").display(),
        json!({"keys": [key.public_jwk()]})
    )
}

#[track_caller]
fn assert_reason(answer: &support::Answer, reason: &str, of: &dyn std::fmt::Debug) {
    assert_eq!(answer.faults(reason, &[]), Vec::<String>::new(), "{of:?}");
}

#[tokio::test]
async fn a_token_without_iss_belongs_to_the_provider_of_the_trust_domain_of_its_sub() {
    let world = World::start().await;
    for (changes, reason) in [
        (json!({}), "ok"),
        (json!({"iss": "https://staff.example.com"}), "ok"),
        (json!({"iss": "https://staff.example.com", "sub": "alice"}), "ok"),
        (json!({"sub": "spiffe://example.org"}), "ok"),
        (json!({"iss": "spiffe://example.org"}), "issuer_unknown"),
        (json!({"iss": "example.org"}), "issuer_unknown"),
        (json!({"iss": ""}), "issuer_unknown"),
        (json!({"iss": "https://spire.example.org"}), "issuer_unknown"),
        (json!({"iss": ["spiffe://example.org"]}), "claim_malformed"),
        (json!({"sub": "spiffe://other.example.org/a"}), "issuer_unknown"),
        (json!({"sub": "spiffe://example.org.evil.example/a"}), "issuer_unknown"),
        (json!({"sub": "spiffe://example.org/a/../b"}), "claim_malformed"),
        (json!({"sub": "spiffe://example.org/"}), "claim_malformed"),
        (json!({"sub": "spiffe://example.org:443/a"}), "claim_malformed"),
        (json!({"sub": "Spiffe://example.org/a"}), "claim_malformed"),
        (json!({"sub": "example.org"}), "claim_missing"),
        (json!({"sub": ["spiffe://example.org/a"]}), "claim_missing"),
        (json!({"sub": null}), "claim_missing"),
        (json!({"aud": null}), "claim_missing"),
        (json!({"aud": ["other"]}), "audience_mismatch"),
        (json!({"exp": null}), "claim_missing"),
        (json!({"exp": NOW - 60}), "expired"),
    ] {
        let answer = world.ask(changes.clone()).await;
        assert_reason(&answer, reason, &changes);
    }
    let null_iss = claims().to_string().replacen('{', r#"{"iss":null,"#, 1);
    let token = world.key.sign_raw(world.key.header().to_string().as_bytes(), null_iss.as_bytes());
    let answer = world.service.bearer(&token).await;
    assert_reason(&answer, "ok", &null_iss);
    assert_eq!(answer.set["x-auth-subject"], "spiffe://example.org/ns/shop/sa/checkout");
}

#[tokio::test]
async fn the_header_of_a_jwt_svid_has_typ_jwt_jose_or_none_and_an_algorithm_of_its_specification() {
    let world = World::start().await;
    let header = world.key.header();
    for (typ, reason) in [
        (json!(null), "ok"),
        (json!("JWT"), "ok"),
        (json!("jwt"), "ok"),
        (json!("JOSE"), "ok"),
        (json!("at+jwt"), "type_not_allowed"),
        (json!("logout+jwt"), "type_not_allowed"),
    ] {
        let token = world.key.sign_with_header(&with(header.clone(), &json!({ "typ": typ })), &claims());
        assert_reason(&world.service.bearer(&token).await, reason, &typ);
    }
    // Tokens of an issuer have other types.
    let claims = with(claims(), &json!({"iss": "https://staff.example.com"}));
    for (typ, reason) in [(json!("at+jwt"), "ok"), (json!("JOSE"), "type_not_allowed")] {
        let token = world.key.sign_with_header(&with(header.clone(), &json!({ "typ": typ })), &claims);
        assert_reason(&world.service.bearer(&token).await, reason, &typ);
    }
    let ed25519 = SigningKey::pooled(0, "a", SigningAlgorithm::EdDSA).sign(&self::claims());
    assert_reason(&world.service.bearer(&ed25519).await, "algorithm_not_allowed", &"EdDSA");
}

#[tokio::test]
async fn the_first_token_of_a_new_key_of_the_bundle_is_allowed_and_a_key_of_x509_svids_verifies_none() {
    let world = World::start().await;
    assert_reason(&world.ask(json!({})).await, "ok", &"the first key");
    let authority = SigningKey::pooled(7, None, RS256);
    assert_reason(&world.service.bearer(&authority.sign(&claims())).await, "key_unknown", &"x509-svid");
    let next = SigningKey::pooled(1, "b", RS256);
    let renamed = world.folder.path().join("next.json");
    fs::write(&renamed, bundle(&[&next])).expect("written");
    fs::rename(&renamed, world.folder.path().join("bundle.json")).expect("renamed");
    assert_reason(&world.service.bearer(&next.sign(&claims())).await, "ok", &"the next key");
    assert_reason(&world.ask(json!({})).await, "key_unknown", &"the withdrawn key");
    let keys: Value = serde_json::from_str(&world.service.admin("/keys").await).expect("JSON");
    let mesh = &keys["providers"][0];
    assert_eq!(mesh["issuer"], "spiffe://example.org");
    assert_eq!(mesh["keys"][0]["use"], "jwt-svid");
    assert_eq!(mesh["keys"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_refusal_of_a_jwt_svid_says_what_its_provider_needs() {
    let world = World::start().await;
    for (changes, parts) in [
        (
            json!({"iss": "https://spire.example.org"}),
            [
                r#"iss "https://spire.example.org", and a sub of "spiffe://example.org""#,
                r#"add a provider with the issuer "https://spire.example.org""#,
            ],
        ),
        (
            json!({"sub": "spiffe://other.example.org/a"}),
            [
                r#"no iss, and a sub of "spiffe://other.example.org"; wanted exactly "https://staff.example.com", or no iss and a sub of "spiffe://example.org""#,
                "add a provider with `spiffe: other.example.org`",
            ],
        ),
        (
            json!({"sub": "spiffe://example.org/"}),
            [
                r#"no iss, and sub "spiffe://example.org/", which is no SPIFFE ID"#,
                "have the issuer write sub as a SPIFFE ID",
            ],
        ),
    ] {
        let answer = world.ask(changes.clone()).await;
        let id = &answer.metadata["decision_id"];
        let explained = world.service.admin(&format!("/decisions/{id}")).await;
        let explained: Value = serde_json::from_str(&explained).expect("JSON");
        let shown = format!("{} {}", explained["detail"].as_str().unwrap_or_default(), explained["advice"]);
        let shown = shown.replace("\\\"", "\"");
        for part in parts {
            assert!(shown.contains(part), "{changes}: {explained:#}");
        }
    }
}

#[test]
fn of_a_bundle_only_keys_for_jwt_svids_are_read_and_other_sets_need_no_use() {
    let jwk = |slot: usize| SigningKey::pooled(slot, Some("k"), RS256).public_jwk();
    let of_use = |slot, declared: &str| match declared {
        "" => with(jwk(slot), &json!({"use": null})),
        declared => with(jwk(slot), &json!({ "use": declared })),
    };
    for (uses, kept) in [
        (&["jwt-svid", "x509-svid", "wit-svid", "sig", "", "JWT-SVID", "enc"][..], &["jwt-svid"][..]),
        (&["x509-svid", "", "sig"], &[]),
        // The set of the Workload API, and that of SPIRE's discovery provider.
        (&["", ""], &["", ""]),
        (&["sig", ""], &["sig", ""]),
    ] {
        let keys: Vec<Value> =
            uses.iter().enumerate().map(|(slot, declared)| of_use(slot, declared)).collect();
        let document = json!({ "keys": keys }).to_string();
        let parsed = KeySet::parse_for(document.as_bytes(), KeyUse::Svids);
        let read: Vec<&str> =
            parsed.iter().flat_map(KeySet::keys).map(|key| key.key_use().unwrap_or("")).collect();
        assert_eq!(read, kept, "{uses:?}");
        // An issuer's keys are those for signatures, whatever else is in its set.
        let of_issuer: Vec<&str> =
            uses.iter().copied().filter(|declared| matches!(*declared, "" | "sig")).collect();
        let issuers = KeySet::parse(document.as_bytes());
        let read: Vec<&str> =
            issuers.iter().flat_map(KeySet::keys).map(|key| key.key_use().unwrap_or("")).collect();
        assert_eq!(read, of_issuer, "{uses:?}");
        let skipped = parsed.iter().flat_map(KeySet::skipped);
        assert!(skipped.clone().all(|key| !key.may_sign()), "{:?}", skipped.collect::<Vec<_>>());
    }
}

#[test]
fn a_trust_domain_is_printed_as_it_was_written() {
    let (folder, key) = (folder(), SigningKey::pooled(0, "a", RS256));
    let text = text(&folder, &key);
    let mesh_alone = text.split("  - name: staff").next().expect("a first provider");
    let config = Config::parse(mesh_alone, &|_| None).unwrap_or_else(|errors| panic!("{errors}"));
    let printed = config.to_yaml();
    assert!(printed.contains("spiffe: \"example.org\"") && !printed.contains("issuer:"), "{printed}");
    let again = Config::parse(&printed, &|_| None).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(again.providers[0].provider, config.providers[0].provider);
}

/// A trust domain with these keys and further settings.
fn mesh(keys: &str, more: &str) -> String {
    format!(
        "
listen: {{ext_authz: '127.0.0.1:0', admin: '127.0.0.1:0'}}
providers:
  - name: mesh
    spiffe: example.org
    {keys}
    audiences: [orders]
    refresh: {{interval: 1h, min_spacing: 10ms, min_spacing_bad_signature: 10ms{more}}}
"
    )
}

async fn serve(text: &str) -> Running {
    let config = Config::parse(text, &|_| None).unwrap_or_else(|errors| panic!("{errors}"));
    Running::start(config, fixed_clock()).await
}

#[tokio::test]
async fn a_bundle_with_a_lower_sequence_withdraws_no_key_and_brings_none_back_unless_it_stays() {
    let (server, [a, b, c, d]) = (KeyServer::start().await, [0, 1, 2, 3].map(|slot| key(slot, slot)));
    let publish = |sequence: u64, keys: &[&SigningKey]| {
        let mut document: Value = serde_json::from_str(&bundle(keys)).expect("JSON");
        document["spiffe_sequence"] = sequence.into();
        server.respond_with(Answer::status(200).body(document.to_string()));
    };
    publish(7, &[&a]);
    let service = serve(&mesh(&format!("jwks_uri: '{}'", server.http("/bundle")), "")).await;
    let reason = async |key: &SigningKey| service.bearer(&key.sign(&claims())).await.reason().to_owned();
    assert_eq!(reason(&a).await, "ok");
    publish(8, &[&b]);
    assert_eq!((reason(&b).await, reason(&a).await), ("ok".to_owned(), "key_unknown".to_owned()));
    // A replica lags now and then.
    for _ in 0..4 {
        publish(7, &[&a]);
        assert_ne!(reason(&a).await, "ok", "it was withdrawn");
        publish(8, &[&b]);
        assert_eq!((reason(&key(0, 9)).await, reason(&b).await), ("key_unknown".to_owned(), "ok".to_owned()));
    }
    publish(7, &[&a, &c]);
    assert_eq!(reason(&c).await, "ok", "a key that no bundle has withdrawn is added");
    publish(9, &[&b, &c]);
    assert_eq!(reason(&a).await, "key_unknown");
    // The trust domain is set up again, and counts from the beginning.
    publish(1, &[&d]);
    assert_eq!(reason(&d).await, "ok");
    let mut reasons = Vec::new();
    for _ in 0..4 {
        reasons.push(reason(&key(0, 9)).await);
    }
    assert_eq!(
        (reason(&b).await, reason(&d).await),
        ("key_unknown".to_owned(), "ok".to_owned()),
        "{reasons:?}"
    );
    publish(2, &[&d, &a]);
    assert_eq!((reason(&a).await, reason(&d).await), ("ok".to_owned(), "ok".to_owned()));
}

#[tokio::test]
async fn a_trust_domain_behind_a_cache_that_counts_anew_is_followed() {
    let (server, [a, b]) = (KeyServer::start().await, [0, 1].map(|slot| key(slot, slot)));
    let publish = |sequence: u64, key: &SigningKey| {
        let document =
            bundle(&[key]).replace("\"spiffe_sequence\":7", &format!("\"spiffe_sequence\":{sequence}"));
        server.respond_with(Answer::status(200).header("age", "1").body(document));
    };
    publish(u64::MAX, &a);
    let service = serve(&mesh(&format!("jwks_uri: '{}'", server.http("/bundle")), "")).await;
    assert!(service.bearer(&a.sign(&claims())).await.is_allowed());
    publish(1, &b);
    let allowed = async || service.bearer(&b.sign(&claims())).await.is_allowed();
    for _ in 0..3 {
        assert!(!allowed().await);
    }
    assert!(allowed().await, "the fourth answer counts");
    assert_reason(&service.bearer(&a.sign(&claims())).await, "key_unknown", &"withdrawn");
}

#[tokio::test]
async fn a_url_that_stands_in_has_numbers_of_its_own() {
    let (first, second, [a, b]) =
        (KeyServer::start().await, KeyServer::start().await, [0, 1].map(|slot| key(slot, slot)));
    let publish = |server: &KeyServer, sequence: u64, key: &SigningKey| {
        let document =
            bundle(&[key]).replace("\"spiffe_sequence\":7", &format!("\"spiffe_sequence\":{sequence}"));
        server.respond_with(Answer::status(200).body(document));
    };
    first.respond_with(Answer::status(503));
    publish(&second, 500, &a);
    let keys = format!("jwks_uri: ['{}', '{}']", first.http("/bundle"), second.http("/bundle"));
    let service = serve(&mesh(&keys, "")).await;
    assert!(service.bearer(&a.sign(&claims())).await.is_allowed());
    publish(&first, 3, &b);
    assert!(service.bearer(&b.sign(&claims())).await.is_allowed());
    assert_reason(&service.bearer(&a.sign(&claims())).await, "key_unknown", &"the first URL decides");
}

fn key(slot: usize, kid: usize) -> SigningKey {
    SigningKey::pooled(slot, &*format!("key-{kid}"), RS256)
}

#[tokio::test]
async fn a_snapshot_has_every_key_of_the_set_that_was_in_use_whatever_its_use() {
    let (folder, server, [a, b]) = (folder(), KeyServer::start().await, [0, 1].map(|slot| key(slot, slot)));
    let plain = with(a.public_jwk(), &json!({"use": null}));
    server.respond_with(Answer::status(200).body(json!({"keys": [plain]}).to_string()));
    let snapshots = format!(", snapshot_dir: '{}'", folder.path().display());
    let text = mesh(&format!("jwks_uri: '{}'", server.http("/bundle")), &snapshots);
    let service = serve(&text).await;
    assert!(service.bearer(&a.sign(&claims())).await.is_allowed());
    server.respond_with(Answer::status(200).body(bundle(&[&a, &b])));
    assert!(service.bearer(&b.sign(&claims())).await.is_allowed());
    eventually("the snapshot has both", async || {
        let written = fs::read_to_string(folder.path().join("mesh.json")).unwrap_or_default();
        written.contains("key-0") && written.contains("key-1")
    })
    .await;
    drop(service);
    server.respond_with(Answer::status(503));
    let service = serve(&text).await;
    for key in [&a, &b] {
        assert!(service.bearer(&key.sign(&claims())).await.is_allowed());
    }
}

#[test]
fn a_rule_for_workloads_that_tokens_of_an_issuer_meet_is_warned_about() {
    let key = key(0, 0);
    let both = text(&folder(), &key);
    let alone = both.split("  - name: staff").next().expect("a first provider").to_owned();
    for (providers, rule, is_warned) in [
        (&both, "require: {claims: {sub: ['spiffe://example.org/a']}}", true),
        (&both, "require: {condition: 'claims.sub.startsWith(\"spiffe://example.org/\")'}", true),
        (&both, "providers: [mesh, staff]\n    require: {claims: {sub: ['spiffe://example.org/a']}}", true),
        (&both, "providers: [mesh]\n    require: {claims: {sub: ['spiffe://example.org/a']}}", false),
        (&both, "require: {claims: {sub: [alice]}}", false),
        (&alone, "require: {claims: {sub: ['spiffe://example.org/a']}}", false),
    ] {
        let text =
            format!("{providers}default: deny\nrules:\n  - name: r\n    match: {{path: /a}}\n    {rule}\n");
        let config = Config::parse(&text, &|_| None).unwrap_or_else(|errors| panic!("{errors}"));
        let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(warnings.len(), usize::from(is_warned), "{rule}: {warnings:?}");
        let expected = "tokens of staff with such a claim pass, too: write `providers: [mesh]` in this rule";
        assert!(warnings.iter().all(|warning| warning.contains(expected)), "{warnings:?}");
    }
}

#[tokio::test]
async fn with_trust_domains_alone_a_token_without_a_spiffe_id_is_told_so() {
    let (folder, key) = (folder(), key(0, 0));
    fs::write(folder.path().join("bundle.json"), bundle(&[&key])).expect("written");
    let file = format!("jwks_file: '{}'", folder.path().join("bundle.json").display());
    let service = serve(&mesh(&file, "")).await;
    for (sub, found) in [(json!("alice"), r#"no iss, and sub "alice""#), (json!(null), "no iss, and no sub")]
    {
        let answer = service.bearer(&key.sign(&with(claims(), &json!({ "sub": sub })))).await;
        assert_reason(&answer, "claim_missing", &sub);
        let page = service.admin(&format!("/decisions/{}", answer.metadata["decision_id"])).await;
        let page: Value = serde_json::from_str(&page).expect("JSON");
        let expected = format!(r#"{found}; wanted no iss and a sub of "spiffe://example.org""#);
        assert_eq!(page["detail"], expected);
        let advice = page["advice"].as_str().expect("text");
        assert!(advice.contains("a SPIFFE ID of the provider's trust domain into sub"), "{advice}");
    }
}
