//! A real Keycloak that rotates its keys and its algorithm, with Portcullis behind a real Envoy. A proxy in front of
//! Keycloak's key endpoint counts the fetches, which are compared with the metrics of Portcullis.
//!
//! The tests assert what a client and the issuer observe, never the internals of the service.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode as ProxyStatus;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::{JoinHandle, JoinSet};

use crate::support::real::{
    self, Envoy, Portcullis, Process, TIMEOUT, Upstream, client, eventually, serve_http,
};
use crate::support::subprocess::StartCommand;

/// Keycloak builds itself and its database at each start, which takes nearly a minute on two idle cores.
const KEYCLOAK_TIMEOUT: Duration = Duration::from_secs(600);

/// The interval of blocking polls.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

const ADMIN: &str = "admin";
const REALM_FILE: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/proxies/keycloak/acme-realm.json"));

/// Algorithms, the key provider for each, and the provider's option.
const ALGORITHMS: [(&str, &str, (&str, &str)); 4] = [
    ("ES256", "ecdsa-generated", ("ecdsaEllipticCurveKey", "P-256")),
    ("EdDSA", "eddsa-generated", ("eddsaEllipticCurveKey", "Ed25519")),
    ("ES512", "ecdsa-generated", ("ecdsaEllipticCurveKey", "P-521")),
    ("PS256", "rsa-generated", ("algorithm", "PS256")),
];

/// Held by each test: each measures the fetches from the shared Keycloak.
static SERIAL: AsyncMutex<()> = AsyncMutex::const_new(());

/// The Keycloak that all tests share, until the last test drops it.
static SHARED: AsyncMutex<Weak<Keycloak>> = AsyncMutex::const_new(Weak::new());

/// Held during each start: parallel starts would cause timeouts on a small machine.
static STARTING: AsyncMutex<()> = AsyncMutex::const_new(());

struct Keycloak {
    process: Process,
    base: String,
    _home: TempDir,
}

impl Keycloak {
    /// Starts Keycloak on a free port and waits until it has imported its realm.
    async fn start() -> (Self, SocketAddr) {
        let _starting = STARTING.lock().await;
        let what = "Keycloak has imported its realm";
        real::start_on_free_port(what, KEYCLOAK_TIMEOUT, Self::spawn, async |keycloak, _| {
            keycloak.has_imported_its_realm().await
        })
        .await
    }

    /// Starts Keycloak at the address of a killed one and waits until it has imported its realm.
    async fn start_at(address: SocketAddr) -> Self {
        let _starting = STARTING.lock().await;
        let mut keycloak = Self::spawn(address);
        eventually("Keycloak has imported its realm", KEYCLOAK_TIMEOUT, async || {
            keycloak.process.assert_running();
            keycloak.has_imported_its_realm().await.then_some(())
        })
        .await;
        keycloak
    }

    /// Kills Keycloak without a shutdown.
    fn kill(mut self) {
        self.process.kill_all();
    }

    async fn has_imported_its_realm(&self) -> bool {
        let answer = client().get(format!("{}/realms/acme", self.base)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    async fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().await;
        match shared.upgrade() {
            Some(started) => started,
            None => {
                let started = Arc::new(Self::start().await.0);
                *shared = Arc::downgrade(&started);
                started
            }
        }
    }

    /// Starts a copy of the installed Keycloak, since Keycloak writes into its own folder.
    fn spawn(address: SocketAddr) -> Self {
        let installed = real::program_path("PORTCULLIS_TEST_KEYCLOAK", ".cache/keycloak");
        let folder = real::folder();
        let home = folder.path().join("home");
        let copied = Command::new("cp").arg("-rL").arg(installed).arg(&home).run();
        assert!(copied.is_ok_and(|status| status.success()), "Keycloak can be copied");
        let import = home.join("data/import");
        fs::create_dir_all(&import).expect("the copy can be written to");
        fs::write(import.join("acme-realm.json"), REALM_FILE).expect("the copy can be written to");

        let mut command = Command::new(home.join("bin/kc.sh"));
        command
            .args(["start-dev", "--import-realm", "--db=dev-mem", "--cache=local"])
            .arg(format!("--http-host={}", address.ip()))
            .arg(format!("--http-port={}", address.port()))
            .env("JAVA_OPTS_KC_HEAP", "-Xms64m -Xmx512m")
            .env("KC_BOOTSTRAP_ADMIN_USERNAME", ADMIN)
            .env("KC_BOOTSTRAP_ADMIN_PASSWORD", ADMIN);
        let process = Process::start("keycloak", &mut command, folder.path());
        Self { process, base: format!("http://{address}"), _home: folder }
    }
}

impl AsMut<Process> for Keycloak {
    fn as_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Drop for Keycloak {
    /// `kc.sh` forwards SIGTERM to Java. SIGKILL would leave Java running.
    fn drop(&mut self) {
        let process = &mut self.process;
        let mut remaining = TIMEOUT;
        if process.exit_status().is_none() {
            process.terminate();
        }
        while process.exit_status().is_none() && !remaining.is_zero() {
            thread::sleep(POLL_INTERVAL);
            remaining = remaining.saturating_sub(POLL_INTERVAL);
        }
    }
}

/// A realm of Keycloak, and the requests of its administrator and its client.
#[derive(Clone)]
struct Realm {
    base: String,
    name: &'static str,
    client: Client,
}

impl Realm {
    /// The realm that Keycloak imports at its start.
    fn imported(keycloak: &Keycloak) -> Self {
        Self { base: keycloak.base.clone(), name: "acme", client: client() }
    }

    /// Creates a realm from the same file.
    async fn create(keycloak: &Keycloak, name: &'static str) -> Self {
        let mut realm: Value = serde_json::from_str(REALM_FILE).expect("is JSON");
        realm["realm"] = json!(name);
        let this = Self { base: keycloak.base.clone(), name, client: client() };
        this.admin(Method::POST, "/admin/realms", Some(realm)).await;
        this
    }

    fn issuer(&self) -> String {
        format!("{}/realms/{}", self.base, self.name)
    }

    /// An access token for these credentials.
    async fn token_of(&self, realm: &str, form: String) -> String {
        let answer = self
            .client
            .post(format!("{}/realms/{realm}/protocol/openid-connect/token", self.base))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form)
            .send()
            .await
            .expect("Keycloak answers");
        let answer = real::json(answer).await;
        answer["access_token"].as_str().unwrap_or_else(|| panic!("no token: {answer}")).to_owned()
    }

    /// An access token of the client `orders`.
    async fn token(&self) -> String {
        let form = "grant_type=client_credentials&client_id=orders&client_secret=orders-secret";
        self.token_of(self.name, form.to_owned()).await
    }

    async fn admin(&self, method: Method, path: &str, body: Option<Value>) -> Response {
        // An administrator's token expires after a minute.
        let form = format!("grant_type=password&client_id=admin-cli&username={ADMIN}&password={ADMIN}");
        let token = self.token_of("master", form).await;
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.bearer_auth(token).send().await.expect("Keycloak answers");
        answer.error_for_status().expect("Keycloak accepts the request")
    }

    fn admin_path(&self, path: &str) -> String {
        format!("/admin/realms/{}{path}", self.name)
    }

    /// Adds a key with this priority. Above 100, it signs tokens of its algorithm from now on.
    async fn add_key(&self, provider: &str, option: (&str, &str), priority: u32) {
        let realm = self.admin(Method::GET, &self.admin_path(""), None).await;
        let component = json!({
            "name": format!("{provider}-{priority}"),
            "providerType": "org.keycloak.keys.KeyProvider",
            "providerId": provider,
            "parentId": real::json(realm).await["id"],
            "config": {
                "priority": [priority.to_string()],
                "enabled": ["true"],
                "active": ["true"],
                option.0: [option.1],
            },
        });
        self.admin(Method::POST, &self.admin_path("/components"), Some(component)).await;
    }

    /// Withdraws the keys of this provider.
    async fn disable_key(&self, name: &str) {
        let path = self.admin_path("/components?type=org.keycloak.keys.KeyProvider");
        let components = real::json(self.admin(Method::GET, &path, None).await).await;
        let mut component = components
            .as_array()
            .and_then(|all| all.iter().find(|component| component["name"] == name))
            .unwrap_or_else(|| panic!("no {name} in {components}"))
            .clone();
        component["config"]["active"] = json!(["false"]);
        component["config"]["enabled"] = json!(["false"]);
        let id = component["id"].as_str().expect("a component has an id").to_owned();
        let path = self.admin_path(&format!("/components/{id}"));
        self.admin(Method::PUT, &path, Some(component)).await;
    }

    /// Signs with a new key of this algorithm from now on.
    async fn sign_with(&self, algorithm: &str, provider: &str, option: (&str, &str)) {
        self.add_key(provider, option, 300).await;
        let change = json!({"defaultSignatureAlgorithm": algorithm});
        self.admin(Method::PUT, &self.admin_path(""), Some(change)).await;
    }
}

/// Forwards to the key endpoint and counts the requests.
struct CountingProxy {
    jwks_uri: String,
    requests: Arc<AtomicU64>,
    server: JoinHandle<()>,
}

impl CountingProxy {
    async fn start(realm: &Realm) -> Self {
        let requests = Arc::new(AtomicU64::new(0));
        let (count, client, base) = (Arc::clone(&requests), realm.client.clone(), realm.base.clone());
        let forward = async move |request: Request| {
            count.fetch_add(1, Ordering::SeqCst);
            let Ok(answer) = client.get(format!("{base}{}", request.uri())).send().await else {
                return (ProxyStatus::BAD_GATEWAY, [("cache-control", String::new())], "".into());
            };
            // Keycloak sends no-cache, which must not cause continuous fetches.
            let cache_control = answer.headers().get("cache-control");
            let cache_control = cache_control.and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
            let status = answer.status();
            let body = answer.bytes().await.unwrap_or_default();
            (status, [("cache-control", cache_control)], body)
        };
        let (address, server) = serve_http(Router::new().fallback(forward)).await;
        let jwks_uri = format!("http://{address}/realms/{}/protocol/openid-connect/certs", realm.name);
        Self { jwks_uri, requests, server }
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for CountingProxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The service, Envoy and an upstream for one realm.
struct TestEnv {
    realm: Realm,
    keys: CountingProxy,
    portcullis: Portcullis,
    envoy: Envoy,
    client: Client,
    _upstream: Upstream,
}

impl TestEnv {
    async fn start(realm: Realm) -> Self {
        Self::start_with(realm, "").await
    }

    /// `more` follows the provider's configuration.
    async fn start_with(realm: Realm, more: &str) -> Self {
        let keys = CountingProxy::start(&realm).await;
        let providers = format!(
            "providers:
  - name: keycloak
    issuer: {}
    audiences: [orders-api]
    jwks_uri: {}
    required_claims: [tenant_id]
    claim_headers: {{x-auth-subject: sub, x-auth-tenant: tenant_id}}
{more}",
            realm.issuer(),
            keys.jwks_uri
        );
        let portcullis = Portcullis::serve(&providers).await;
        portcullis.ready().await;
        let upstream = Upstream::start().await;
        let envoy = Envoy::start(portcullis.ext_authz, upstream.address).await;
        Self { realm, keys, portcullis, envoy, client: client(), _upstream: upstream }
    }

    async fn send(&self, token: &str) -> Response {
        let request = self.client.get(self.envoy.url("/orders")).bearer_auth(token);
        request.send().await.expect("Envoy answers")
    }

    async fn status(&self, token: &str) -> StatusCode {
        self.send(token).await.status()
    }

    /// The number of key fetches: counted by the proxy, counted by Portcullis, and those of Portcullis that an unknown
    /// kid forced.
    async fn fetches(&self) -> (u64, u64, u64) {
        let all = self.portcullis.metric("portcullis_jwks_fetches_total", &[]).await;
        (self.keys.requests(), all, self.portcullis.fetches("unknown_kid").await)
    }

    /// Asserts that the first token of a new key is allowed at the first request, with exactly one fetch. Returns the
    /// token.
    async fn first_token_passes_for_one_fetch(&self, algorithm: &str) -> String {
        let (requests, all, forced) = self.fetches().await;
        let token = self.realm.token().await;
        assert_eq!(header(&token)["alg"], algorithm);
        let answer = self.send(&token).await;
        assert_eq!(answer.status(), StatusCode::OK, "the first token by {algorithm}");
        assert_eq!(real::json(answer).await["x-auth-tenant"], "acme");
        assert_eq!(self.fetches().await, (requests + 1, all + 1, forced + 1), "by {algorithm}");
        token
    }
}

fn header(token: &str) -> Value {
    let (header, _) = token.split_once('.').expect("a JWT");
    let header = URL_SAFE_NO_PAD.decode(header).expect("base64url");
    serde_json::from_slice(&header).expect("JSON")
}

#[tokio::test]
async fn the_first_token_after_each_rotation_passes_immediately_and_a_disabled_key_is_refused() {
    let keycloak = Keycloak::shared().await;
    let _serial = SERIAL.lock().await;
    let env = TestEnv::start(Realm::imported(&keycloak)).await;
    let realm = &env.realm;

    let old = realm.token().await;
    let answer = env.send(&old).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let received = real::json(answer).await;
    assert_eq!(received["x-auth-tenant"], "acme");
    assert!(received["x-auth-subject"].is_string(), "{received}");
    assert_eq!(env.fetches().await, (1, 1, 0), "no fetch after the first");

    realm.add_key("rsa-generated", ("algorithm", "RS256"), 200).await;
    let new = env.first_token_passes_for_one_fetch("RS256").await;
    assert_ne!(header(&new)["kid"], header(&old)["kid"]);
    let before = env.fetches().await;
    assert_eq!(env.status(&old).await, StatusCode::OK, "the old key is still published");
    assert_eq!(env.fetches().await, before);

    realm.disable_key("rsa-generated").await;
    let mut tokens = vec![new];
    for (algorithm, provider, option) in ALGORITHMS {
        realm.sign_with(algorithm, provider, option).await;
        tokens.push(env.first_token_passes_for_one_fetch(algorithm).await);
        assert_eq!(env.status(&old).await, StatusCode::UNAUTHORIZED, "its key was disabled");
    }
    let before = env.fetches().await;
    for token in &tokens {
        assert_eq!(env.status(token).await, StatusCode::OK, "{}", header(token));
    }
    assert_eq!(env.fetches().await, before, "every other key is still published");
}

#[tokio::test(flavor = "multi_thread")]
async fn rotations_under_load_refuse_no_good_token() {
    let keycloak = Keycloak::shared().await;
    let _serial = SERIAL.lock().await;
    let env = Arc::new(TestEnv::start(Realm::create(&keycloak, "acme-load").await).await);
    let current = Arc::new(Mutex::new(env.realm.token().await));
    let allowed = Arc::new(AtomicU64::new(0));
    let stopped = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for number in 0..9 {
        let (env, current) = (Arc::clone(&env), Arc::clone(&current));
        let (allowed, stopped) = (Arc::clone(&allowed), Arc::clone(&stopped));
        clients.spawn(async move {
            while !stopped.load(Ordering::SeqCst) {
                // The first client always sends a new token, and so the first token of a new key. The others send
                // the latest token of the first.
                let token = if number == 0 {
                    let fresh = env.realm.token().await;
                    current.lock().expect("not poisoned").clone_from(&fresh);
                    fresh
                } else {
                    current.lock().expect("not poisoned").clone()
                };
                let answer = env.send(&token).await;
                let (status, head) = (answer.status(), header(&token));
                let body = answer.text().await.expect("a complete body");
                assert_eq!(status, StatusCode::OK, "a valid token {head} was refused: {body}");
                allowed.fetch_add(1, Ordering::SeqCst);
            }
        });
    }

    let kid = || header(&current.lock().expect("not poisoned"))["kid"].clone();
    let mut rotations = 0;
    for (algorithm, provider, option) in ALGORITHMS {
        let old = kid();
        env.realm.sign_with(algorithm, provider, option).await;
        rotations += 1;
        eventually("clients send a token of the new key", TIMEOUT, async || (kid() != old).then_some(()))
            .await;
        let target = allowed.load(Ordering::SeqCst) + 200;
        eventually("clients are allowed with it", TIMEOUT, async || {
            if let Some(refused) = clients.try_join_next() {
                refused.expect("no valid token was refused");
            }
            (allowed.load(Ordering::SeqCst) >= target).then_some(())
        })
        .await;
    }
    stopped.store(true, Ordering::SeqCst);
    while let Some(client) = clients.join_next().await {
        client.expect("no valid token was refused");
    }
    assert_eq!(env.fetches().await, (1 + rotations, 1 + rotations, rotations));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keycloak_that_is_killed_and_restarts_with_other_keys_costs_no_good_token_and_no_intervention() {
    let _serial = SERIAL.lock().await;
    let (keycloak, address) = Keycloak::start().await;
    let refresh = "    refresh: {interval: 2s}\n";
    let env = Arc::new(TestEnv::start_with(Realm::imported(&keycloak), refresh).await);
    let old = env.realm.token().await;

    let allowed = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..4 {
        let (env, old, allowed) = (Arc::clone(&env), old.clone(), Arc::clone(&allowed));
        clients.spawn(async move {
            // A steady load that leaves Keycloak time to start.
            let mut interval = tokio::time::interval(Duration::from_millis(10));
            // The token must not be refused before the service has the new key set.
            while env.status(&old).await == StatusCode::OK {
                allowed.fetch_add(1, Ordering::SeqCst);
                interval.tick().await;
            }
            assert_eq!(env.portcullis.metric("portcullis_jwks_generation", &[]).await, 2, "a known key");
        });
    }
    let wait_for_allowed = async |count: u64, what: &str| {
        let target = allowed.load(Ordering::SeqCst) + count;
        eventually(what, TIMEOUT, async || (allowed.load(Ordering::SeqCst) >= target).then_some(())).await;
    };
    wait_for_allowed(200, "clients are allowed").await;
    keycloak.kill();
    eventually("refreshes fail", TIMEOUT, async || {
        let failed = env.portcullis.metric("portcullis_jwks_fetches_total", &[("outcome", "failed")]).await;
        (failed >= 2).then_some(())
    })
    .await;
    wait_for_allowed(200, "clients are allowed while Keycloak is down").await;
    assert_eq!(clients.try_join_next().map(|result| result.is_ok()), None, "no client was refused");
    assert_eq!(env.portcullis.fetches("unknown_kid").await, 0, "known keys force nothing");

    // The database is in memory, so the realm is imported again with new keys.
    let _keycloak = Keycloak::start_at(address).await;
    eventually("the new keys are fetched without a token that needs them", TIMEOUT, async || {
        (env.portcullis.metric("portcullis_jwks_generation", &[]).await == 2).then_some(())
    })
    .await;
    let new = env.realm.token().await;
    assert_ne!(header(&new)["kid"], header(&old)["kid"]);
    assert_eq!(env.status(&new).await, StatusCode::OK, "at the first request");
    assert_eq!(env.status(&old).await, StatusCode::UNAUTHORIZED, "its key is withdrawn");
    while let Some(client) = clients.join_next().await {
        client.expect("refused only after its key was withdrawn");
    }
}
