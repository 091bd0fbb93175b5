//! A provider with a realm pattern, in process: when keys of realms are fetched and evicted. The test issuer has many realms,
//! counts its requests and can hold responses.

mod floods;
mod names;
mod shared;
mod world;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{Answer, NOW, Running, fixed_clock};
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use portcullis::access_request::AccessRequest;
use portcullis::app::App;
use portcullis::clock::Clock;
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use portcullis::config::Config;
use portcullis::keys::KeyCacheContext;
use portcullis::service::Service;
use portcullis::telemetry::Metrics;
use portcullis::validation::UnixTime;
use serde_json::{Value, json};
use tokio::sync::watch;

/// An issuer of many realms.
#[derive(Clone)]
struct Realms(Arc<Inner>);

struct Inner {
    address: SocketAddr,
    keys: Mutex<HashMap<String, SigningKey>>,
    fetches: Mutex<BTreeMap<String, u64>>,
    held: watch::Sender<bool>,
}

impl Realms {
    async fn start(names: &[&str]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let inner = Inner {
            address: listener.local_addr().expect("is bound"),
            keys: Mutex::default(),
            fetches: Mutex::default(),
            held: watch::Sender::new(false),
        };
        let realms = Self(Arc::new(inner));
        names.iter().for_each(|name| realms.publish(name));
        let routes = Router::new()
            .route("/realms/{realm}/keys", get(answer))
            .fallback(async || StatusCode::NOT_FOUND)
            .with_state(realms.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        realms
    }

    fn publish(&self, name: &str) {
        let key = SigningKey::generate("k", SigningAlgorithm::ES256);
        self.0.keys.lock().expect("not poisoned").insert(name.to_owned(), key);
    }

    fn issuer(&self, name: &str) -> String {
        format!("http://{}/realms/{name}", self.0.address)
    }

    /// A valid token of this realm; its key is random if none is published.
    fn token(&self, name: &str) -> String {
        let key = self.0.keys.lock().expect("not poisoned").get(name).cloned();
        let key = key.unwrap_or_else(|| SigningKey::generate("k", SigningAlgorithm::ES256));
        key.sign(&json!({"iss": self.issuer(name), "aud": "orders-api", "sub": name, "exp": NOW + 300}))
    }

    /// The number of key requests of each realm.
    fn fetches(&self) -> BTreeMap<String, u64> {
        self.0.fetches.lock().expect("not poisoned").clone()
    }

    fn hold(&self) {
        self.0.held.send_replace(true);
    }

    fn release(&self) {
        self.0.held.send_replace(false);
    }
}

async fn answer(State(realms): State<Realms>, Path(name): Path<String>) -> Response {
    *realms.0.fetches.lock().expect("not poisoned").entry(name.clone()).or_default() += 1;
    let mut held = realms.0.held.subscribe();
    held.wait_for(|held| !held).await.expect("the issuer is running");
    match realms.0.keys.lock().expect("not poisoned").get(&name) {
        Some(key) => json!({"keys": [key.public_jwk()]}).to_string().into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Polls until the condition holds.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let seen = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let within = Duration::from_secs(20);
    tokio::time::timeout(within, seen).await.unwrap_or_else(|_| panic!("{what}: not within {within:?}"));
}

/// The configuration of a provider for the realms of this issuer, with these additional lines.
fn configuration(realms: &Realms, lines: &str) -> Config {
    let lines: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    let text = format!(
        "listen: {{ext_authz: '127.0.0.1:0', admin: '127.0.0.1:0'}}
providers:
  - name: keycloak
    issuer: '{}'
    jwks_uri: '{}/keys'
    audiences: [orders-api]
    claim_headers: {{x-auth-subject: sub}}
    refresh: {{interval: 1h, min_spacing: 10m, wait: 5s}}
{lines}",
        realms.issuer("{realm}"),
        realms.issuer("{realm}"),
    );
    Config::parse(&text, &|_| None).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

async fn service(realms: &Realms, lines: &str) -> Running {
    Running::start(configuration(realms, lines), fixed_clock()).await
}

#[track_caller]
fn is(answer: &Answer, reason: &str) {
    assert_eq!(answer.faults(reason, &[]), [""; 0]);
}

#[tokio::test]
async fn the_first_token_of_a_realm_is_allowed_and_costs_one_fetch() {
    let realms = Realms::start(&["acme", "globex"]).await;
    let service = service(&realms, "realms: [acme, globex]").await;
    assert_eq!(realms.fetches(), BTreeMap::new(), "no fetch before the first token");
    for name in ["acme", "acme", "globex", "acme"] {
        let answer = service.bearer(&realms.token(name)).await;
        is(&answer, "ok");
        assert_eq!(answer.set["x-auth-subject"], name);
        assert_eq!(answer.metadata["provider"], "keycloak");
    }
    assert_eq!(realms.fetches(), BTreeMap::from([("acme".into(), 1), ("globex".into(), 1)]));
}

#[tokio::test]
async fn concurrent_first_tokens_cost_one_fetch() {
    let realms = Realms::start(&["acme"]).await;
    for lines in ["realms: [acme]", "realms: '[a-z]+'"] {
        let service = Arc::new(service(&realms, lines).await);
        realms.hold();
        let token = realms.token("acme");
        let checks: Vec<_> = (0..50)
            .map(|_| {
                let (service, token) = (Arc::clone(&service), token.clone());
                tokio::spawn(async move { service.bearer(&token).await.is_allowed() })
            })
            .collect();
        let before = realms.fetches().get("acme").copied().unwrap_or_default();
        let waiting = "portcullis_jwks_waiters{provider=\"keycloak/acme\"} 50";
        eventually("all requests wait", async || {
            service.admin("/metrics").await.lines().any(|line| line == waiting)
        })
        .await;
        realms.release();
        for one in checks {
            assert!(one.await.expect("is answered"));
        }
        assert!(realms.fetches()["acme"] - before <= 1);
    }
    assert_eq!(realms.fetches()["acme"], 2, "one for each service");
}

#[tokio::test]
async fn a_realm_that_is_not_allowed_is_an_unknown_issuer_and_nothing_is_fetched() {
    let realms = Realms::start(&["acme", "evil", "UPPER"]).await;
    let long = "a".repeat(129);
    for lines in ["realms: [acme]", "realms: '[a-d]+'"] {
        let service = service(&realms, lines).await;
        for name in [
            "evil", "UPPER", "", ".", "..", "a/b", "../acme", "a%2fb", "a b", "acme?x=", "acme#", &long,
            "{realm}",
        ] {
            is(&service.bearer(&realms.token(name)).await, "issuer_unknown");
        }
        // The same host without a realm, and another host.
        for issuer in [
            "http://evil.example.com/realms/acme".to_owned(),
            realms.issuer("acme/keys"),
            realms.issuer("acme").replace("/acme", ""),
        ] {
            let key = SigningKey::generate("k", SigningAlgorithm::ES256);
            let token = key.sign(&json!({"iss": issuer, "aud": "orders-api", "exp": NOW + 300}));
            is(&service.bearer(&token).await, "issuer_unknown");
        }
    }
    assert_eq!(realms.fetches(), BTreeMap::new());
}

#[tokio::test]
async fn a_token_with_invalid_claims_opens_no_realm() {
    let realms = Realms::start(&["acme"]).await;
    let service = service(&realms, "realms: '[a-z]+'").await;
    let key = SigningKey::generate("k", SigningAlgorithm::ES256);
    let claims = |more: Value| {
        let mut claims = json!({"iss": realms.issuer("acme"), "aud": "orders-api", "exp": NOW + 300});
        claims.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        key.sign(&claims)
    };
    is(&service.bearer(&claims(json!({"exp": NOW - 300}))).await, "expired");
    is(&service.bearer(&claims(json!({"aud": "billing"}))).await, "audience_mismatch");
    is(&service.bearer(&claims(json!({"nbf": NOW + 300}))).await, "not_yet_valid");
    assert_eq!(realms.fetches(), BTreeMap::new());
}

#[tokio::test]
async fn a_realm_has_its_own_keys_and_no_other_ones() {
    let realms = Realms::start(&["acme", "globex"]).await;
    let service = service(&realms, "realms: [acme, globex]").await;
    is(&service.bearer(&realms.token("globex")).await, "ok");
    // Signed by globex's key with the same kid and acme's issuer.
    let key = realms.0.keys.lock().expect("not poisoned")["globex"].clone();
    let forged = key.sign(&json!({"iss": realms.issuer("acme"), "aud": "orders-api", "exp": NOW + 300}));
    is(&service.bearer(&forged).await, "bad_signature");
}

#[tokio::test]
async fn unknown_realms_that_match_neither_evict_known_ones_nor_exceed_their_budget() {
    let realms = Realms::start(&["acme", "late"]).await;
    let mut config = configuration(&realms, "realms: '[a-z0-9]+'\nmax_realms: 2");
    config.providers[0].refresh.wait = Duration::from_millis(300);
    let service = Arc::new(Running::start(config, fixed_clock()).await);
    is(&service.bearer(&realms.token("acme")).await, "ok");
    let unknown: Vec<_> = (0..200)
        .map(|i| {
            let (service, token) = (Arc::clone(&service), realms.token(&format!("made{i}")));
            tokio::spawn(async move { is(&service.bearer(&token).await, "keys_unavailable") })
        })
        .collect();
    for one in unknown {
        one.await.expect("is answered so");
    }
    let fetches: u64 = realms.fetches().values().sum();
    assert!(fetches <= 17, "{fetches} for one real realm and a burst of 16");
    // The budget is spent: the reason is keys_unavailable.
    is(&service.bearer(&realms.token("late")).await, "keys_unavailable");
    is(&service.bearer(&realms.token("acme")).await, "ok");
    assert_eq!(realms.fetches()["acme"], 1, "the realm is still known");
    let metrics = service.admin("/metrics").await;
    assert!(!metrics.contains("keycloak/made"), "{metrics}");
    assert!(metrics.contains("keycloak/acme"));
}

#[tokio::test]
async fn the_least_recently_verified_realm_is_evicted() {
    let realms = Realms::start(&["a", "b", "c"]).await;
    for lines in ["realms: [a, b, c]\nmax_realms: 2", "realms: '[abc]'\nmax_realms: 2"] {
        realms.0.fetches.lock().expect("not poisoned").clear();
        let service = service(&realms, lines).await;
        let known = async || {
            let page: Value = serde_json::from_str(&service.admin("/keys").await).expect("JSON");
            let listed = page["providers"].as_array().expect("a list").clone();
            listed.iter().map(|one| one["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
        };
        for (name, then) in [
            ("a", &["keycloak/a"][..]),
            ("b", &["keycloak/a", "keycloak/b"]),
            ("a", &["keycloak/a", "keycloak/b"]),
            ("c", &["keycloak/a", "keycloak/c"]),
        ] {
            is(&service.bearer(&realms.token(name)).await, "ok");
            eventually("exactly these realms are known", async || known().await == then).await;
        }
        let metrics = service.admin("/metrics").await;
        assert!(!metrics.contains("keycloak/b"), "{lines}: {metrics}");
        is(&service.bearer(&realms.token("b")).await, "ok");
        assert_eq!(realms.fetches()["b"], 2, "{lines}");
        assert_eq!(realms.fetches()["c"], 1, "{lines}");
    }
}

#[tokio::test]
async fn forged_tokens_cannot_make_listed_realms_evict_each_other() {
    let realms = Realms::start(&["a", "b", "c"]).await;
    let service = service(&realms, "realms: [a, b, c]\nmax_realms: 2").await;
    let unknown_key = SigningKey::generate("k", SigningAlgorithm::ES256);
    for name in ["a", "b", "c"].into_iter().cycle().take(90) {
        let claims = json!({"iss": realms.issuer(name), "aud": "orders-api", "exp": NOW + 300});
        assert!(!service.bearer(&unknown_key.sign(&claims)).await.is_allowed());
    }
    let fetches: u64 = realms.fetches().values().sum();
    // A burst of 16 first fetches, and for each cache at most one that a bad signature forces.
    assert!(fetches <= 32, "{fetches} of 90");
}

#[tokio::test]
async fn the_first_matching_template_that_allows_the_realm_is_used() {
    let realms = Realms::start(&["a", "b"]).await;
    let (one, two) = (realms.issuer("{realm}"), format!("http://{}/{{realm}}/b", realms.0.address));
    let text = format!(
        "listen: {{ext_authz: '127.0.0.1:0', admin: '127.0.0.1:0'}}
providers:
  - {{name: one, issuer: '{one}', jwks_uri: '{one}/keys', realms: [b], audiences: [orders-api]}}
  - {{name: two, issuer: '{two}', jwks_uri: '{one}/keys', realms: '.*', audiences: [orders-api]}}
"
    );
    let at = text.find("  - {name: two").expect("is there");
    let (head, second) = text.split_at(at);
    let first = &head[head.find("  - {name: one").expect("is there")..];
    let reversed = text.replace(first, "").replace(second, &format!("{second}{first}"));
    let narrower = text.replace("realms: [b]", "realms: [a]");
    for (text, provider) in [(&text, "one"), (&reversed, "two"), (&narrower, "two")] {
        let config = Config::parse(text, &|_| None).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        let service = Running::start(config, fixed_clock()).await;
        assert_eq!(service.bearer(&realms.token("b")).await.metadata["provider"], provider, "{text}");
    }
}

#[tokio::test]
async fn keys_shows_the_issuer_of_a_realm_and_a_template_is_ready_immediately() {
    let realms = Realms::start(&["acme"]).await;
    let service = service(&realms, "realms: [acme]").await;
    assert_eq!(service.admin("/readyz").await, "ok\n");
    is(&service.bearer(&realms.token("acme")).await, "ok");
    let page: Value = serde_json::from_str(&service.admin("/keys").await).expect("JSON");
    assert_eq!(page["providers"][0]["issuer"], realms.issuer("acme"));
    assert_eq!(page["providers"][0]["keys"][0]["kid"], "k");
}

#[tokio::test]
async fn a_named_issuer_precedes_a_matching_template() {
    let realms = Realms::start(&["acme", "special"]).await;
    let special = format!(
        "- name: special\n  issuer: {}\n  jwks_uri: {}/keys\n  audiences: [orders-api]",
        realms.issuer("special"),
        realms.issuer("special")
    );
    let config = {
        let lines: String = special.lines().map(|line| format!("  {line}\n")).collect();
        let text = configuration(&realms, "realms: '[a-z]+'").to_yaml();
        let (head, rest) = text.split_once("providers:\n").expect("providers");
        let text = format!("{head}providers:\n{lines}{rest}");
        Config::parse(&text, &|_| None).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
    };
    let service = Running::start(config, fixed_clock()).await;
    assert_eq!(service.bearer(&realms.token("special")).await.metadata["provider"], "special");
    assert_eq!(service.bearer(&realms.token("acme")).await.metadata["provider"], "keycloak");
}

#[tokio::test]
async fn realms_have_separate_snapshots_that_are_used_while_the_issuer_is_down() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let realms = Realms::start(&["acme", "globex"]).await;
    let mut config = configuration(&realms, "realms: '[a-z]+'");
    config.providers[0].refresh.snapshot_dir = Some(folder.path().to_owned());
    // The snapshot is used once the first fetch has failed.
    config.providers[0].refresh.timeout = Duration::from_millis(500);
    let first = Running::start(config.clone(), fixed_clock()).await;
    for name in ["acme", "globex"] {
        is(&first.bearer(&realms.token(name)).await, "ok");
    }
    let files = || {
        let mut names: Vec<String> = std::fs::read_dir(folder.path())
            .expect("a folder")
            .map(|file| file.expect("an entry").file_name().into_string().expect("text"))
            .collect();
        names.sort();
        names
    };
    eventually("both are written", async || {
        files() == ["keycloak@@realms.json", "keycloak@acme.json", "keycloak@globex.json"]
    })
    .await;
    drop(first);
    realms.hold();
    let second = Running::start(config, fixed_clock()).await;
    is(&second.bearer(&realms.token("acme")).await, "ok");
    realms.release();
}

#[tokio::test]
async fn a_reload_keeps_the_keys_of_realms_that_are_still_allowed() {
    let realms = Realms::start(&["acme", "globex"]).await;
    let before = configuration(&realms, "realms: '[a-z]+'");
    let service = Service::start(&before, Clock::Fixed(UnixTime::from_secs(NOW))).expect("no file is needed");
    let decide = async |name: &str| {
        let token = format!("Bearer {}", realms.token(name));
        let headers = [(&b"authorization"[..], token.as_bytes())];
        let request = AccessRequest::new(
            b"GET",
            b"h",
            b"/",
            headers.into_iter().collect(),
            portcullis::clock::monotonic().into_std(),
        );
        service.authorizer().decide("test", &request).await.decision.verdict.reason().as_str()
    };
    assert_eq!(decide("acme").await, "ok");
    assert_eq!(decide("globex").await, "ok");
    let after = configuration(&realms, "realms: [acme]\nrequired_claims: [sub]");
    assert_eq!(service.reload(&after).await, Ok(Vec::new()));
    realms.hold();
    assert_eq!(decide("acme").await, "ok");
    assert_eq!(decide("globex").await, "issuer_unknown");
    realms.release();
    assert_eq!(realms.fetches(), BTreeMap::from([("acme".into(), 1), ("globex".into(), 1)]));
}

/// A configuration with the keys of realms at another path of the same host.
fn with_key_path(realms: &Realms, path: &str) -> Config {
    let text = configuration(realms, "realms: '[a-z]+'").to_yaml();
    let moved = text.replace("{realm}/keys", path);
    assert_ne!(text, moved);
    Config::parse(&moved, &|_| None).unwrap_or_else(|errors| panic!("{errors}\n{moved}"))
}

/// The decision for a valid token of this realm: the provider and the reason.
async fn decided(service: &Service, realms: &Realms, name: &str) -> String {
    let token = format!("Bearer {}", realms.token(name));
    let headers = [(&b"authorization"[..], token.as_bytes())];
    let request = AccessRequest::new(
        b"GET",
        b"h",
        b"/",
        headers.into_iter().collect(),
        portcullis::clock::monotonic().into_std(),
    );
    let authorizer = service.authorizer();
    let decision = authorizer.decide("test", &request).await.decision;
    let provider = decision.record.provider().map(|provider| &*provider.name);
    format!("{} {}", provider.unwrap_or_default(), decision.verdict.reason().as_str())
}

#[tokio::test]
async fn a_template_with_a_broken_key_url_is_not_changed_until_one_realm_has_answered() {
    let realms = Realms::start(&["acme", "globex"]).await;
    let before = configuration(&realms, "realms: '[a-z]+'");
    let service = Service::start(&before, fixed_clock()).expect("no file is needed");
    // Without a known realm there is no source to check.
    assert_eq!(service.reload(&with_key_path(&realms, "{realm}/kyes")).await, Ok(Vec::new()));
    assert_eq!(service.reload(&before).await, Ok(Vec::new()));
    for name in ["acme", "globex"] {
        assert_eq!(decided(&service, &realms, name).await, "keycloak ok");
    }
    let pending = service.reload(&with_key_path(&realms, "{realm}/kyes")).await.expect("valid");
    assert!(pending.len() == 1 && pending[0].error.contains("404"), "{pending:?}");
    realms.hold();
    for name in ["acme", "globex"] {
        assert_eq!(decided(&service, &realms, name).await, "keycloak ok");
    }
    realms.release();
    // One of the two is removed. The other has answered at the new URL and needs no further fetch.
    realms.0.keys.lock().expect("not poisoned").remove("globex");
    assert_eq!(service.reload(&with_key_path(&realms, "{realm}/keys?new")).await, Ok(Vec::new()));
    realms.hold();
    assert_eq!(decided(&service, &realms, "acme").await, "keycloak ok");
    realms.release();
}

#[tokio::test]
async fn keys_of_a_realm_are_kept_across_renames_while_the_issuer_is_down() {
    let realms = Realms::start(&["acme"]).await;
    let template = configuration(&realms, "realms: '[a-z]+'");
    let named = |path: &str| {
        let entry = format!(
            "providers:\n  - {{name: named, issuer: '{issuer}', jwks_uri: '{issuer}/{path}', audiences: [orders-api]}}\n",
            issuer = realms.issuer("acme")
        );
        let text = template.to_yaml().replacen("providers:\n", &entry, 1);
        Config::parse(&text, &|_| None).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
    };
    let service = Service::start(&template, fixed_clock()).expect("no file is needed");
    assert_eq!(decided(&service, &realms, "acme").await, "keycloak ok");
    // A named provider must answer before the realm is removed.
    let pending = service.reload(&named("kyes")).await.expect("valid");
    assert!(pending.len() == 1 && pending[0].provider == "named", "{pending:?}");
    assert_eq!(decided(&service, &realms, "acme").await, "named ok");
    realms.hold();
    assert_eq!(service.reload(&named("keys")).await, Ok(Vec::new()), "the source of the realm is the same");
    assert_eq!(decided(&service, &realms, "acme").await, "named ok");
    assert_eq!(service.reload(&template).await, Ok(Vec::new()));
    assert_eq!(decided(&service, &realms, "acme").await, "keycloak ok");
    let mut renamed = template.clone();
    Arc::make_mut(&mut renamed.providers[0].provider).name = "other".to_owned();
    assert_eq!(service.reload(&renamed).await, Ok(Vec::new()));
    assert_eq!(decided(&service, &realms, "acme").await, "other ok");
    realms.release();
}

#[tokio::test]
async fn a_reopened_realm_keeps_its_metrics_when_the_old_cache_is_dropped() {
    let world = world::World::of(&["acme".to_owned()]);
    let metrics = Arc::new(Metrics::new());
    let shown = || metrics.encode().expect("text").contains("\"keycloak/acme\"");
    let opened = async || {
        let context = KeyCacheContext { metrics: Arc::clone(&metrics), ..KeyCacheContext::default() };
        let keys = world.keys("keycloak/acme", "acme", context);
        keys.first_fetch_ended().await;
        keys
    };
    let (old, new) = (opened().await, opened().await);
    drop(old);
    assert!(shown());
    drop(new);
    assert!(!shown());
}

#[tokio::test]
async fn a_drain_writes_the_pending_names() {
    let folder = world::folder();
    let realms = Realms::start(&["acme", "globex"]).await;
    let mut config = configuration(&realms, "realms: '[a-z]+'");
    config.providers[0].refresh.snapshot_dir = Some(folder.path().to_owned());
    config.shutdown.drain_delay = Duration::ZERO;
    let app = App::bind(config, fixed_clock()).await.expect("port 0 can be bound");
    let service = app.service();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(app.serve(async { stopped.await.expect("the test stops it") }));
    let list = folder.path().join("keycloak@@realms.json");
    let listed = async |name| std::fs::read_to_string(&list).unwrap_or_default().contains(name);
    assert_eq!(world::decide(&service.authorizer(), &realms.token("acme")).await, "ok");
    eventually("the first is written", async || listed("acme").await).await;
    assert_eq!(world::decide(&service.authorizer(), &realms.token("globex")).await, "ok");
    stop.send(()).expect("serving");
    serving.await.expect("ends");
    // Nothing is written after that.
    drop(service);
    eventually("the second is written", async || listed("globex").await).await;
}
