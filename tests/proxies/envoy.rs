//! The gRPC door behind a real Envoy with its configuration of `deploy/envoy`, an issuer in the test process, and an
//! upstream that echoes what it received.
//!
//! The tests assert what a client and an upstream observe, never the internals of the service.

use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use portcullis::clock::Clock;
use portcullis::commands::issuer::{Issuer, SigningAlgorithm, SigningKey, with_claim};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::{Mutex as AsyncMutex, MutexGuard};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::launch;
use crate::suite::{Proxy, proxy_tests};
use crate::support::real::{
    self, Envoy, Portcullis, TIMEOUT, Upstream, client, eventually, folder, program_path,
};
use crate::support::subprocess::StartCommand;

/// The number of clients of a load test, each of which sends one request at a time.
const CLIENTS: usize = 16;

/// Held by each load test: parallel load tests would cause timeouts on a small machine.
static SERIAL: AsyncMutex<()> = AsyncMutex::const_new(());

/// Seconds since 1970.
fn now() -> i64 {
    Clock::System.now().as_secs_f64() as i64
}

/// An issuer, the service, Envoy, an upstream and a client.
struct TestEnv {
    issuer: Issuer,
    key: SigningKey,
    portcullis: Portcullis,
    upstream: Upstream,
    envoy: Envoy,
    client: Client,
}

impl TestEnv {
    async fn start() -> Self {
        Self::start_with("").await
    }

    /// `more` follows the provider in the configuration; lines indented by four belong to the provider.
    async fn start_with(more: &str) -> Self {
        let issuer = Issuer::start().await.expect("a free port");
        let key = issuer.rotate(SigningAlgorithm::ES256);
        let env = Self::start_without_keys(issuer, key, more).await;
        env.portcullis.ready().await;
        env
    }

    /// Does not wait for keys.
    async fn start_without_keys(issuer: Issuer, key: SigningKey, more: &str) -> Self {
        let providers = format!(
            "providers:
  - name: test
    issuer: {}
    audiences: [orders-api]
    jwks_uri: {}
    claim_headers: {{x-auth-subject: sub, x-auth-tenant: tenant_id, x-auth-roles: /realm_access/roles}}
{more}",
            issuer.issuer(),
            issuer.jwks_uri(),
        );
        let portcullis = Portcullis::serve(&providers).await;
        let upstream = Upstream::start().await;
        let envoy = Envoy::start(portcullis.ext_authz, upstream.address).await;
        Self { issuer, key, portcullis, upstream, envoy, client: client() }
    }

    fn claims(&self) -> Value {
        self.issuer.claims(now())
    }

    fn get(&self, token: &str) -> RequestBuilder {
        self.client.get(self.envoy.url("/orders")).bearer_auth(token)
    }

    async fn send(&self, token: &str) -> Response {
        self.get(token).send().await.expect("Envoy answers")
    }

    /// Sends a request that has to be allowed, and returns what the upstream received.
    async fn forwarded_request(&self, request: RequestBuilder) -> Value {
        let answer = request.send().await.expect("Envoy answers");
        assert_eq!(answer.status(), StatusCode::OK);
        real::json(answer).await
    }

    /// Publishes `key` with the current key, replaces the current key by it, and returns a token that it signed.
    fn rotate_to(&mut self, key: SigningKey) -> String {
        self.issuer.publish(&[&key, &self.key]);
        self.key = key;
        self.key.sign(&self.claims())
    }
}

#[tokio::test]
async fn a_good_token_passes_with_its_claims_as_headers() {
    let env = TestEnv::start().await;
    let claims = with_claim(env.claims(), "/realm_access/roles", json!(["admin", "ops"]));
    let token = env.key.sign(&claims);
    let received = env.forwarded_request(env.get(&token)).await;
    assert_eq!(received["x-auth-subject"], "alice");
    assert_eq!(received["x-auth-tenant"], "acme");
    assert_eq!(received["x-auth-roles"], "admin,ops");
    assert_eq!(received["authorization"], format!("Bearer {token}"));
}

#[tokio::test]
async fn an_expired_token_is_refused_with_a_challenge_and_a_body_in_json() {
    let env = TestEnv::start().await;
    let token = env.key.sign(&with_claim(env.claims(), "exp", now() - 3600));
    let answer = env.send(&token).await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(answer.headers()["content-type"], "application/json");
    let challenge = answer.headers()["www-authenticate"].to_str().expect("is text").to_owned();
    assert!(challenge.starts_with("Bearer realm=\"portcullis\""), "{challenge}");
    assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
    assert_eq!(real::json(answer).await["error"], "invalid_token");
    assert_eq!(env.upstream.received(), 0);
}

#[tokio::test]
async fn without_a_token_the_challenge_has_no_error_code() {
    let env = TestEnv::start().await;
    let request = env.client.get(env.envoy.url("/orders"));
    let answer = request.send().await.expect("Envoy answers");
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(answer.headers()["www-authenticate"], "Bearer realm=\"portcullis\"");
    assert_eq!(real::json(answer).await["error"], "missing_token");
    assert_eq!(env.upstream.received(), 0);
}

#[tokio::test]
async fn a_clients_own_identity_headers_never_reach_the_upstream() {
    let env = TestEnv::start().await;
    let mut request = env.get(&env.key.sign(&env.claims()));
    for forged in [
        "x-auth-subject",
        "x_auth_subject",
        "x.auth.subject",
        "X-Auth_Subject",
        "x-auth-roles",
        "x_auth.roles",
    ] {
        request = request.header(forged, "mallory");
    }
    let received = env.forwarded_request(request.header("x-other_one", "kept")).await;
    assert_eq!(received["x-auth-subject"], "alice");
    // A client cannot set a claim header whose claim the token lacks.
    assert!(!received.to_string().contains("mallory"), "{received}");
    assert_eq!(received["x-other_one"], "kept", "other headers are unchanged");
}

#[tokio::test]
async fn a_grpc_caller_is_refused_with_grpc_status_16() {
    let env = TestEnv::start().await;
    let http2 = Client::builder().no_proxy().http2_prior_knowledge().build().expect("a plain client");
    let answer = http2
        .post(env.envoy.url("/orders.Orders/List"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .send()
        .await
        .expect("Envoy answers");
    assert_eq!(answer.status(), StatusCode::OK, "the gRPC status is in a header");
    assert_eq!(answer.headers()["grpc-status"], "16");
    assert_eq!(env.upstream.received(), 0);
}

#[tokio::test]
async fn without_keys_the_answer_is_503_with_retry_after() {
    let issuer = Issuer::start().await.expect("a free port");
    let key = issuer.rotate(SigningAlgorithm::ES256);
    issuer.stop().await;
    let env = TestEnv::start_without_keys(issuer, key, "").await;
    let token = env.key.sign(&env.claims());
    let answer = env.send(&token).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()["retry-after"], "1");
    assert_eq!(real::json(answer).await["error"], "temporarily_unavailable");
    assert_eq!(env.upstream.received(), 0);

    env.issuer.restart().await.expect("its port is free");
    eventually("the issuer is up again and the same token passes", TIMEOUT, async || {
        (env.send(&token).await.status() == StatusCode::OK).then_some(())
    })
    .await;
}

#[tokio::test]
async fn when_the_service_is_down_envoy_lets_nothing_pass() {
    let mut env = TestEnv::start().await;
    let token = env.key.sign(&env.claims());
    assert_eq!(env.send(&token).await.status(), StatusCode::OK);
    let before = env.upstream.received();
    env.portcullis.process.terminate();
    wait_for_exit(&mut env.portcullis).await;
    assert_eq!(env.send(&token).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(env.upstream.received(), before);
}

#[tokio::test]
async fn a_request_in_flight_is_answered_before_the_service_exits() {
    let more = "shutdown: {drain_delay: 10ms, grace: 10s}\n";
    let mut env = TestEnv::start_with(more).await;
    env.issuer.hold();
    let next = SigningKey::generate("next", SigningAlgorithm::ES256);
    let token = env.rotate_to(next);
    let in_flight = tokio::spawn(env.get(&token).send());
    let held = env.issuer.wait_for_held(1);
    timeout(TIMEOUT, held).await.expect("the new kid makes the service fetch keys");

    env.portcullis.process.terminate();
    let address = env.portcullis.ext_authz;
    eventually("the service accepts no new connections", TIMEOUT, async || {
        tokio::net::TcpStream::connect(address).await.is_err().then_some(())
    })
    .await;
    env.issuer.release();
    let answer = in_flight.await.expect("does not panic").expect("Envoy answers");
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(wait_for_exit(&mut env.portcullis).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_sign_immediately_refuse_no_good_token_under_load() {
    let mut env = TestEnv::start().await;
    let mut load = Load::start(&env).await;
    let algorithms =
        [SigningAlgorithm::ES256, SigningAlgorithm::EdDSA, SigningAlgorithm::RS256, SigningAlgorithm::ES384];
    for (number, algorithm) in algorithms.into_iter().enumerate() {
        let key = SigningKey::generate(format!("next-{number}").as_str(), algorithm);
        load.use_token(env.rotate_to(key)).await;
    }
    load.stop().await;
    assert_eq!(env.issuer.key_fetches(), 1 + algorithms.len() as u64, "one fetch per rotation");
    assert_eq!(env.portcullis.fetches("unknown_kid").await, algorithms.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn new_keys_under_the_same_kid_refuse_no_good_token_under_load() {
    let more = "    refresh: {min_spacing_bad_signature: 200ms}\n";
    let mut env = TestEnv::start_with(more).await;
    let kid = env.key.kid().expect("has a kid").to_owned();
    let mut load = Load::start(&env).await;
    for _ in 0..4 {
        let key = SigningKey::generate(kid.as_str(), SigningAlgorithm::ES256);
        load.use_token(env.rotate_to(key)).await;
    }
    load.stop().await;
    assert_eq!(env.portcullis.fetches("bad_signature").await, 4, "one fetch per rotation");
    assert_eq!(env.issuer.key_fetches(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_made_up_kids_refuses_no_good_token_and_lets_no_forged_one_pass() {
    let mut env = TestEnv::start().await;
    let mut load = Load::start(&env).await;
    let flood = Flood::start(&env);
    for number in 0..3 {
        let kid = format!("next-{number}");
        let key = SigningKey::generate(kid.as_str(), SigningAlgorithm::ES256);
        load.use_token(env.rotate_to(key)).await;
    }
    assert!(flood.stop().await > 0, "the flood was answered");
    load.stop().await;
}

/// Waits until the service has exited and returns its exit code.
async fn wait_for_exit(portcullis: &mut Portcullis) -> Option<i32> {
    eventually("the service exits", TIMEOUT, async || portcullis.process.exit_status()).await.code()
}

/// Clients that send requests with a valid token, none of which may be refused.
struct Load {
    token: Arc<Mutex<String>>,
    allowed: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
    clients: JoinSet<()>,
    _serial: MutexGuard<'static, ()>,
}

impl Load {
    async fn start(env: &TestEnv) -> Self {
        let serial = SERIAL.lock().await;
        let token = Arc::new(Mutex::new(env.key.sign(&env.claims())));
        let (allowed, stopped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let (token, allowed, stopped) = (Arc::clone(&token), Arc::clone(&allowed), Arc::clone(&stopped));
            let (client, url) = (env.client.clone(), env.envoy.url("/orders"));
            clients.spawn(async move {
                while !stopped.load(Ordering::SeqCst) {
                    let token = token.lock().expect("not poisoned").clone();
                    let answer = client.get(&url).bearer_auth(token).send().await;
                    let answer = answer.expect("Envoy answers");
                    let status = answer.status();
                    let body = answer.text().await.expect("a complete body");
                    assert_eq!(status, StatusCode::OK, "a valid token was refused: {body}");
                    allowed.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        Self { token, allowed, stopped, clients, _serial: serial }
    }

    /// Makes all clients use this token, and waits for 20 allowed requests for each client.
    async fn use_token(&mut self, token: String) {
        *self.token.lock().expect("not poisoned") = token;
        let target = self.allowed.load(Ordering::SeqCst) + 20 * CLIENTS as u64;
        eventually("clients are allowed with the new token", TIMEOUT, async || {
            if let Some(refused) = self.clients.try_join_next() {
                refused.expect("no valid token was refused");
            }
            (self.allowed.load(Ordering::SeqCst) >= target).then_some(())
        })
        .await;
    }

    async fn stop(mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        while let Some(client) = self.clients.join_next().await {
            client.expect("no valid token was refused");
        }
    }
}

/// Clients that send forged tokens, each with another made-up kid, none of which may be allowed.
struct Flood {
    stopped: Arc<AtomicBool>,
    clients: JoinSet<u64>,
}

impl Flood {
    fn start(env: &TestEnv) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for number in 0..4 {
            let stopped = Arc::clone(&stopped);
            let (client, url, claims) = (env.client.clone(), env.envoy.url("/orders"), env.claims());
            let key = SigningKey::generate(None, SigningAlgorithm::ES256);
            clients.spawn(async move {
                let mut answered = 0;
                while !stopped.load(Ordering::SeqCst) {
                    let kid = format!("made-up-{number}-{answered}");
                    let token = key.with_kid(kid.as_str()).sign(&claims);
                    let answer = client.get(&url).bearer_auth(token).send().await;
                    let status = answer.expect("Envoy answers").status();
                    assert!(
                        matches!(status, StatusCode::UNAUTHORIZED | StatusCode::SERVICE_UNAVAILABLE),
                        "{status} for a forged token"
                    );
                    answered += 1;
                }
                answered
            });
        }
        Self { stopped, clients }
    }

    /// Stops the clients and returns how many forged tokens were answered.
    async fn stop(mut self) -> u64 {
        self.stopped.store(true, Ordering::SeqCst);
        let mut answered = 0;
        while let Some(client) = self.clients.join_next().await {
            answered += client.expect("no forged token was allowed");
        }
        answered
    }
}

const PROXY: Proxy = Proxy {
    profile: "envoy",
    start: launch::envoy_grpc,
    start_with_recipe: launch::envoy_grpc_with_recipe,
    status_when_down: StatusCode::SERVICE_UNAVAILABLE,
    keeps_empty_headers: false,
};

proxy_tests!(
    PROXY,
    any_claim_value_arrives_unchanged_in_one_header,
    denials_reach_the_client_unchanged,
    large_claim_headers_and_a_large_token_pass,
    the_upstream_never_sees_a_token,
    a_websocket_passes_with_a_token_and_not_without,
    no_upgrade_but_a_websocket_passes,
    a_client_cannot_nominate_identity_headers_for_removal,
    a_trailer_never_reaches_the_upstream,
    override_headers_are_correct_or_absent,
    several_hosts_do_not_select_the_last,
    the_printed_file_sets_the_claim_headers_and_removes_the_token,
    a_request_without_identity_has_no_claim_header,
    a_page_can_read_a_denial,
    a_door_with_tls_is_asked_over_tls,
    a_door_with_mutual_tls_is_asked_with_the_proxys_certificate,
);

#[test]
fn envoy_accepts_the_printed_file_for_a_socket_file_of_any_path() {
    for path in ["/run/portcullis/authz.sock", "/run/a \"b\" {c: d}, #e $F %g \\h ü\u{85}😀.sock"] {
        let path = serde_json::to_string(&format!("unix:{path}")).expect("JSON");
        let config = format!(
            "listen: {{ext_authz: {path}}}\nproviders: [{{name: p, issuer: 'https://i', audiences: [a]}}]\n"
        );
        let folder = folder();
        let file = folder.path().join("envoy.yaml");
        std::fs::write(&file, real::printed_file("envoy", &config)).expect("the folder can be written to");
        let mut envoy = Command::new(program_path("PORTCULLIS_TEST_ENVOY", ".cache/envoy"));
        let output = envoy.args(["--mode", "validate", "--config-path"]).arg(&file).run_and_read();
        let output = output.expect("it runs");
        assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
