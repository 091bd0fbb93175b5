//! The gRPC door behind a real Envoy that runs under the shipped configuration (`deploy/envoy`), with an
//! issuer inside the test and an upstream that answers with what it received.
//!
//! It asserts what a client and an upstream can see, and must never look inside the service.

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

use crate::behind::{Recipe, tests_behind};
use crate::launch;
use crate::support::real::{self, Envoy, Portcullis, TIMEOUT, Upstream, client, eventually};

/// Callers that send one request after the other, in the tests under load.
const CALLERS: usize = 16;

/// Tests under load take turns: two at once would time each other out on a small machine.
static TURN: AsyncMutex<()> = AsyncMutex::const_new(());

/// Seconds since 1970.
fn now() -> i64 {
    Clock::System.now().as_secs_f64() as i64
}

/// A whole installation: client, Envoy, Portcullis, issuer and upstream.
struct Stage {
    issuer: Issuer,
    key: SigningKey,
    portcullis: Portcullis,
    upstream: Upstream,
    envoy: Envoy,
    client: Client,
}

impl Stage {
    async fn set() -> Self {
        Self::set_with("").await
    }

    /// `more` is what follows the provider in the configuration; indented by four, it belongs to it.
    async fn set_with(more: &str) -> Self {
        let issuer = Issuer::start().await.expect("a free port");
        let key = issuer.rotate(SigningAlgorithm::ES256);
        let stage = Self::set_before(issuer, key, more).await;
        stage.portcullis.ready().await;
        stage
    }

    /// As it is before the first keys have been fetched.
    async fn set_before(issuer: Issuer, key: SigningKey, more: &str) -> Self {
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

    /// What the upstream received, of a request that must have reached it.
    async fn reaches_upstream(&self, request: RequestBuilder) -> Value {
        let answer = request.send().await.expect("Envoy answers");
        assert_eq!(answer.status(), StatusCode::OK);
        real::json(answer).await
    }

    /// Publishes `key` beside the one in use, which it replaces from now on.
    fn rotate_to(&mut self, key: SigningKey) -> String {
        self.issuer.publish(&[&key, &self.key]);
        self.key = key;
        self.key.sign(&self.claims())
    }
}

#[tokio::test]
async fn a_good_token_passes_with_its_claims_as_headers() {
    let stage = Stage::set().await;
    let claims = with_claim(stage.claims(), "/realm_access/roles", json!(["admin", "ops"]));
    let token = stage.key.sign(&claims);
    let received = stage.reaches_upstream(stage.get(&token)).await;
    assert_eq!(received["x-auth-subject"], "alice");
    assert_eq!(received["x-auth-tenant"], "acme");
    assert_eq!(received["x-auth-roles"], "admin,ops");
    assert_eq!(received["authorization"], format!("Bearer {token}"));
}

#[tokio::test]
async fn an_expired_token_is_refused_with_a_challenge_and_a_body_in_json() {
    let stage = Stage::set().await;
    let token = stage.key.sign(&with_claim(stage.claims(), "exp", now() - 3600));
    let answer = stage.send(&token).await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(answer.headers()["content-type"], "application/json");
    let challenge = answer.headers()["www-authenticate"].to_str().expect("is text").to_owned();
    assert!(challenge.starts_with("Bearer realm=\"portcullis\""), "{challenge}");
    assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
    assert_eq!(real::json(answer).await["error"], "invalid_token");
    assert_eq!(stage.upstream.received(), 0);
}

#[tokio::test]
async fn without_a_token_the_challenge_has_no_error_code() {
    let stage = Stage::set().await;
    let request = stage.client.get(stage.envoy.url("/orders"));
    let answer = request.send().await.expect("Envoy answers");
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(answer.headers()["www-authenticate"], "Bearer realm=\"portcullis\"");
    assert_eq!(real::json(answer).await["error"], "missing_token");
    assert_eq!(stage.upstream.received(), 0);
}

#[tokio::test]
async fn a_clients_own_identity_headers_never_reach_the_upstream() {
    let stage = Stage::set().await;
    let mut request = stage.get(&stage.key.sign(&stage.claims()));
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
    let received = stage.reaches_upstream(request.header("x-other_one", "kept")).await;
    assert_eq!(received["x-auth-subject"], "alice");
    // A managed header whose claim the token lacks is not the client's to set either.
    assert!(!received.to_string().contains("mallory"), "{received}");
    assert_eq!(received["x-other_one"], "kept", "what is not managed is none of our business");
}

#[tokio::test]
async fn a_grpc_caller_is_refused_with_grpc_status_16() {
    let stage = Stage::set().await;
    let http2 = Client::builder().no_proxy().http2_prior_knowledge().build().expect("a plain client");
    let answer = http2
        .post(stage.envoy.url("/orders.Orders/List"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .send()
        .await
        .expect("Envoy answers");
    assert_eq!(answer.status(), StatusCode::OK, "gRPC has its status beside HTTP's");
    assert_eq!(answer.headers()["grpc-status"], "16");
    assert_eq!(stage.upstream.received(), 0);
}

#[tokio::test]
async fn before_any_keys_can_be_had_the_answer_is_503_with_retry_after() {
    let issuer = Issuer::start().await.expect("a free port");
    let key = issuer.rotate(SigningAlgorithm::ES256);
    issuer.stop().await;
    let stage = Stage::set_before(issuer, key, "").await;
    let token = stage.key.sign(&stage.claims());
    let answer = stage.send(&token).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()["retry-after"], "1");
    assert_eq!(real::json(answer).await["error"], "temporarily_unavailable");
    assert_eq!(stage.upstream.received(), 0);

    stage.issuer.restart().await.expect("its port is still its own");
    eventually("the issuer is up again and the same token passes", TIMEOUT, async || {
        (stage.send(&token).await.status() == StatusCode::OK).then_some(())
    })
    .await;
}

#[tokio::test]
async fn when_the_service_is_down_envoy_lets_nothing_pass() {
    let mut stage = Stage::set().await;
    let token = stage.key.sign(&stage.claims());
    assert_eq!(stage.send(&token).await.status(), StatusCode::OK);
    let before = stage.upstream.received();
    stage.portcullis.process.terminate();
    ends(&mut stage.portcullis).await;
    assert_eq!(stage.send(&token).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(stage.upstream.received(), before);
}

#[tokio::test]
async fn a_request_in_flight_is_answered_before_the_service_ends() {
    let more = "shutdown: {drain_delay: 10ms, grace: 10s}\n";
    let mut stage = Stage::set_with(more).await;
    stage.issuer.hold();
    let next = SigningKey::generate("next", SigningAlgorithm::ES256);
    let token = stage.rotate_to(next);
    let in_flight = tokio::spawn(stage.get(&token).send());
    let held = stage.issuer.wait_for_held(1);
    timeout(TIMEOUT, held).await.expect("the new kid makes the service fetch keys");

    stage.portcullis.process.terminate();
    let door = stage.portcullis.ext_authz;
    eventually("the service takes no new connections", TIMEOUT, async || {
        tokio::net::TcpStream::connect(door).await.is_err().then_some(())
    })
    .await;
    stage.issuer.release();
    let answer = in_flight.await.expect("does not panic").expect("Envoy answers");
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(ends(&mut stage.portcullis).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_sign_at_once_refuse_no_good_token_under_load() {
    let mut stage = Stage::set().await;
    let mut load = Load::start(&stage).await;
    let algorithms =
        [SigningAlgorithm::ES256, SigningAlgorithm::EdDSA, SigningAlgorithm::RS256, SigningAlgorithm::ES384];
    for (number, algorithm) in algorithms.into_iter().enumerate() {
        let key = SigningKey::generate(format!("next-{number}").as_str(), algorithm);
        load.use_token(stage.rotate_to(key)).await;
    }
    load.stop().await;
    assert_eq!(stage.issuer.key_fetches(), 1 + algorithms.len() as u64, "one fetch per rotation");
    assert_eq!(stage.portcullis.fetches("unknown_kid").await, algorithms.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn new_keys_under_the_same_kid_refuse_no_good_token_under_load() {
    let more = "    refresh: {min_spacing_bad_signature: 200ms}\n";
    let mut stage = Stage::set_with(more).await;
    let kid = stage.key.kid().expect("has a kid").to_owned();
    let mut load = Load::start(&stage).await;
    for _ in 0..4 {
        let key = SigningKey::generate(kid.as_str(), SigningAlgorithm::ES256);
        load.use_token(stage.rotate_to(key)).await;
    }
    load.stop().await;
    assert_eq!(stage.portcullis.fetches("bad_signature").await, 4, "one fetch per rotation");
    assert_eq!(stage.issuer.key_fetches(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_made_up_kids_refuses_no_good_token_and_lets_no_forged_one_pass() {
    let mut stage = Stage::set().await;
    let mut load = Load::start(&stage).await;
    let flood = Flood::start(&stage);
    for number in 0..3 {
        let kid = format!("next-{number}");
        let key = SigningKey::generate(kid.as_str(), SigningAlgorithm::ES256);
        load.use_token(stage.rotate_to(key)).await;
    }
    assert!(flood.stop().await > 0, "the flood was answered");
    load.stop().await;
}

/// Waits until the service has ended by itself and returns its exit code.
async fn ends(portcullis: &mut Portcullis) -> Option<i32> {
    eventually("the service ends", TIMEOUT, async || portcullis.process.exit_status()).await.code()
}

/// Callers with the token of the hour, none of whom may ever be refused.
struct Load {
    token: Arc<Mutex<String>>,
    allowed: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    callers: JoinSet<()>,
    _turn: MutexGuard<'static, ()>,
}

impl Load {
    async fn start(stage: &Stage) -> Self {
        let turn = TURN.lock().await;
        let token = Arc::new(Mutex::new(stage.key.sign(&stage.claims())));
        let (allowed, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let (token, allowed, over) = (Arc::clone(&token), Arc::clone(&allowed), Arc::clone(&over));
            let (client, url) = (stage.client.clone(), stage.envoy.url("/orders"));
            callers.spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    let token = token.lock().expect("no caller panics with it").clone();
                    let answer = client.get(&url).bearer_auth(token).send().await;
                    let answer = answer.expect("Envoy answers");
                    let status = answer.status();
                    let body = answer.text().await.expect("a whole body");
                    assert_eq!(status, StatusCode::OK, "a good token was refused: {body}");
                    allowed.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        Self { token, allowed, over, callers, _turn: turn }
    }

    /// Lets all callers use this token, and waits until each has had time to be allowed with it.
    async fn use_token(&mut self, token: String) {
        *self.token.lock().expect("no caller panics with it") = token;
        let enough = self.allowed.load(Ordering::SeqCst) + 20 * CALLERS as u64;
        eventually("callers are allowed with the new token", TIMEOUT, async || {
            if let Some(refused) = self.callers.try_join_next() {
                refused.expect("no good token was refused");
            }
            (self.allowed.load(Ordering::SeqCst) >= enough).then_some(())
        })
        .await;
    }

    async fn stop(mut self) {
        self.over.store(true, Ordering::SeqCst);
        while let Some(caller) = self.callers.join_next().await {
            caller.expect("no good token was refused");
        }
    }
}

/// Forgers, each token under another made-up kid, none of whom may ever pass.
struct Flood {
    over: Arc<AtomicBool>,
    forgers: JoinSet<u64>,
}

impl Flood {
    fn start(stage: &Stage) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let mut forgers = JoinSet::new();
        for forger in 0..4 {
            let over = Arc::clone(&over);
            let (client, url, claims) = (stage.client.clone(), stage.envoy.url("/orders"), stage.claims());
            let key = SigningKey::generate(None, SigningAlgorithm::ES256);
            forgers.spawn(async move {
                let mut answered = 0;
                while !over.load(Ordering::SeqCst) {
                    let kid = format!("made-up-{forger}-{answered}");
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
        Self { over, forgers }
    }

    /// Ends it and says how many forged tokens were answered.
    async fn stop(mut self) -> u64 {
        self.over.store(true, Ordering::SeqCst);
        let mut answered = 0;
        while let Some(forger) = self.forgers.join_next().await {
            answered += forger.expect("no forged token passed");
        }
        answered
    }
}

/// What holds behind every proxy. Portcullis removes the token itself, so that no line has to be switched on.
const RECIPE: Recipe =
    Recipe { profile: "envoy", start: launch::envoy_grpc, service_down: StatusCode::SERVICE_UNAVAILABLE };

tests_behind!(
    RECIPE,
    any_claim_value_arrives_whole_and_as_one_header,
    denials_come_as_portcullis_made_them,
    large_claim_headers_and_a_large_token_pass,
    the_upstream_never_sees_a_token,
    a_websocket_passes_with_a_token_and_not_without,
    no_upgrade_but_a_websocket_passes,
    a_client_cannot_have_our_headers_taken_away,
    a_trailer_never_reaches_the_upstream,
    what_frameworks_believe_is_true_or_not_there,
    several_hosts_are_not_the_last_of_them,
);
