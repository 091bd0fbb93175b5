//! What holds behind every proxy that asks over HTTP, said once: a client, the real proxy under its shipped
//! configuration, the built binary, an issuer inside the test, and an upstream that answers with what it
//! received.
//!
//! The tests of a proxy say how the proxy is started ([`Recipe`]) and call [`tests_behind!`]. It asserts
//! what a client and an upstream can see, and must never look inside the service.

mod octets;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use portcullis::clock::Clock;
use portcullis::commands::issuer::{Issuer, SigningAlgorithm, SigningKey, with_claim};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::launch::{Places, Started, listening};
use crate::support::real::{self, Portcullis, TIMEOUT, Upstream, client, eventually};

pub use octets::*;

/// Callers that send one request after the other, in the test under load.
const CALLERS: u64 = 8;

/// How a proxy is started.
#[derive(Clone, Copy)]
pub struct Recipe {
    /// The profile of the HTTP door that it asks.
    pub profile: &'static str,
    /// Starts it under its shipped configuration, where nothing but addresses is changed.
    pub start: fn(&Places) -> Started,
    /// What a client gets while the service is down; the upstream must see nothing.
    pub service_down: StatusCode,
}

/// A whole installation.
pub struct Stage {
    pub issuer: Issuer,
    pub key: SigningKey,
    pub portcullis: Portcullis,
    pub upstream: Upstream,
    pub client: Client,
    address: SocketAddr,
    _proxy: Started,
}

/// Tests under load, and those that start a proxy beside them, take turns: two at once would time each other
/// out on a small machine.
static TURN: Mutex<()> = Mutex::const_new(());

/// Seconds since 1970.
fn now() -> i64 {
    Clock::System.now().as_secs_f64() as i64
}

impl Stage {
    /// `more` is what follows the provider in the configuration; indented by four, it belongs to it.
    pub async fn set(recipe: Recipe, more: &str) -> Self {
        let issuer = Issuer::start().await.expect("a free port");
        let key = issuer.rotate(SigningAlgorithm::ES256);
        let stage = Self::set_before(recipe, issuer, key, more).await;
        stage.portcullis.ready().await;
        stage
    }

    /// In front of this upstream instead of its own.
    pub async fn set_in_front_of(recipe: Recipe, upstream: SocketAddr, more: &str) -> Self {
        let issuer = Issuer::start().await.expect("a free port");
        let key = issuer.rotate(SigningAlgorithm::ES256);
        let own = Upstream::start().await;
        let stage = Self::build(recipe, (issuer, key), (own, upstream), more).await;
        stage.portcullis.ready().await;
        stage
    }

    /// As it is before the first keys have been fetched.
    pub async fn set_before(recipe: Recipe, issuer: Issuer, key: SigningKey, more: &str) -> Self {
        let own = Upstream::start().await;
        let address = own.address;
        Self::build(recipe, (issuer, key), (own, address), more).await
    }

    /// `to` is where the proxy forwards to.
    async fn build(
        recipe: Recipe,
        (issuer, key): (Issuer, SigningKey),
        (upstream, to): (Upstream, SocketAddr),
        more: &str,
    ) -> Self {
        let providers = format!(
            "providers:
  - name: test
    issuer: {}
    audiences: [orders-api]
    jwks_uri: {}
    token_from:
      - {{header: authorization, scheme: Bearer}}
      - {{query: access_token}}
      - {{cookie: access_token}}
    claim_headers: {{x-auth-subject: sub, x-auth-tenant: tenant_id, x-auth-roles: /realm_access/roles}}
{more}",
            issuer.issuer(),
            issuer.jwks_uri(),
        );
        let portcullis = Portcullis::serve_with_profile(recipe.profile, &providers).await;
        let places = Places {
            door: portcullis.forward_auth,
            ext_authz: portcullis.ext_authz,
            admin: portcullis.admin,
            upstream: to,
        };
        let (mut proxy, address) = listening(recipe.start, &places).await;
        let client = client();
        eventually("the proxy has its routes", TIMEOUT, async || {
            proxy.process.assert_running();
            // Traefik listens before it knows what to do.
            let answer = client.get(format!("http://{address}/")).send().await.ok()?;
            (answer.status() != StatusCode::NOT_FOUND).then_some(())
        })
        .await;
        Self { issuer, key, portcullis, upstream, client, address, _proxy: proxy }
    }

    /// Where the proxy listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn claims(&self) -> Value {
        self.issuer.claims(now())
    }

    pub fn token(&self) -> String {
        self.key.sign(&self.claims())
    }

    pub fn get(&self, token: &str) -> RequestBuilder {
        self.client.get(self.url("/orders")).bearer_auth(token)
    }

    pub async fn send(&self, token: &str) -> Response {
        self.get(token).send().await.expect("the proxy answers")
    }

    /// What the upstream received, of a request that must have reached it.
    pub async fn reaches_upstream(&self, request: RequestBuilder) -> Value {
        let answer = request.send().await.expect("the proxy answers");
        assert_eq!(answer.status(), StatusCode::OK);
        real::json(answer).await
    }
}

pub async fn a_good_token_passes_with_its_claims_as_headers(recipe: Recipe) {
    let _turn = TURN.lock().await;
    let stage = Stage::set(recipe, "").await;
    let token = stage.key.sign(&with_claim(stage.claims(), "/realm_access/roles", json!(["admin", "ops"])));
    let received = stage.reaches_upstream(stage.get(&token)).await;
    assert_eq!(received["x-auth-subject"], "alice");
    assert_eq!(received["x-auth-tenant"], "acme");
    assert_eq!(received["x-auth-roles"], "admin,ops");
    assert_eq!(received["authorization"], format!("Bearer {token}"));
    let posted = stage.client.post(stage.url("/orders")).bearer_auth(&token).body("twelve bytes");
    let received = stage.reaches_upstream(posted).await;
    assert_eq!(received["content-length"], "12", "the body goes to the upstream");
    let answer = stage.client.get(stage.url(&format!("/orders?access_token={token}"))).send().await;
    assert_eq!(answer.expect("the proxy answers").status(), StatusCode::OK, "the query is judged as it is");
}

pub async fn rules_say_who_may_do_what(recipe: Recipe) {
    let _turn = TURN.lock().await;
    let rules = "rules:
  - {name: health, match: {path: /healthz}, allow: anonymous}
  - {name: internal, match: {path_prefix: /internal}, deny: true}
  - {name: orders, match: {path_prefix: /orders, methods: [GET]}, require: {scopes: ['orders:read']}}
";
    let stage = Stage::set(recipe, rules).await;
    let plain = stage.token();
    let scoped = stage.key.sign(&with_claim(stage.claims(), "scope", "orders:read"));
    let health = stage.client.get(stage.url("/healthz")).header("x-auth-subject", "root");
    let received = stage.reaches_upstream(health).await;
    assert!(received.get("x-auth-subject").is_none_or(|subject| subject == ""), "{received}");
    stage.reaches_upstream(stage.client.get(stage.url("/orders")).bearer_auth(&scoped)).await;
    stage.reaches_upstream(stage.client.post(stage.url("/orders")).bearer_auth(&plain)).await;
    let before = stage.upstream.received();
    for (path, token, status) in [
        ("/orders", &plain, StatusCode::FORBIDDEN),
        ("/internal/x", &scoped, StatusCode::FORBIDDEN),
        ("/x/%2e%2e/internal", &scoped, StatusCode::FORBIDDEN),
        ("/healthz/..%2finternal", &scoped, StatusCode::BAD_REQUEST),
        ("/healthz;x=1", &scoped, StatusCode::BAD_REQUEST),
    ] {
        let answer = stage.client.get(stage.url(path)).bearer_auth(token).send().await;
        assert_eq!(answer.expect("the proxy answers").status(), status, "{path}");
    }
    assert_eq!(stage.upstream.received(), before, "none of them has passed");
}

/// Characters that some program on the way may take for something else than a part of a value.
const ODD: &str = "aZ09 \t\r\n\0\u{7f}\u{80}\u{85}é漢😀\u{2028}\u{feff}%,;:\"'\\<>(){}[]=&?#/@$`|^~+-*";

pub async fn any_claim_value_arrives_whole_and_as_one_header(recipe: Recipe) {
    let _turn = TURN.lock().await;
    let stage = Stage::set(recipe, "").await;
    let odd: Vec<char> = ODD.chars().collect();
    // The same values each time: a multiplicative generator (Knuth's MMIX) from a fixed start.
    let mut state = 27_u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for _ in 0..60 {
        let value: String = (0..=next(12)).map(|_| odd[next(odd.len())]).collect();
        let token = stage.key.sign(&with_claim(stage.claims(), "tenant_id", value.as_str()));
        let received = stage.reaches_upstream(stage.get(&token)).await;
        let arrived = received["x-auth-tenant"].as_str().expect("one value");
        let decoded = percent_encoding::percent_decode_str(arrived).decode_utf8().expect("UTF-8");
        assert_eq!(decoded, value, "{arrived}");
        assert!(arrived.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{arrived:?}");
        assert_eq!(received["x-auth-subject"], "alice");
    }
}

pub async fn a_denial_reaches_the_client_with_its_challenge(recipe: Recipe) {
    let _turn = TURN.lock().await;
    let stage = Stage::set(recipe, "").await;
    let answer = stage.client.get(stage.url("/orders")).send().await.expect("the proxy answers");
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(answer.headers()["www-authenticate"], "Bearer realm=\"portcullis\"");
    let expired = stage.key.sign(&with_claim(stage.claims(), "exp", now() - 3600));
    let answer = stage.send(&expired).await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let challenge = answer.headers()["www-authenticate"].to_str().expect("is text").to_owned();
    assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
    let refused = stage.client.post(stage.url("/orders")).body("twelve bytes").send().await;
    assert_eq!(refused.expect("the proxy answers").status(), StatusCode::UNAUTHORIZED);
    assert_eq!(stage.upstream.received(), 0);
}

pub async fn denials_come_as_portcullis_made_them(recipe: Recipe) {
    let _turn = TURN.lock().await;
    let rules = "rules:
  - {name: open, match: {path_prefix: /open}, allow: anonymous}
  - {name: internal, match: {path_prefix: /internal}, deny: true}
  - {name: orders, match: {path_prefix: /orders}, require: {scopes: ['orders:read']}}
";
    let stage = Stage::set(recipe, rules).await;
    let expired = stage.key.sign(&with_claim(stage.claims(), "exp", now() - 3600));
    let challenge = "Bearer realm=\"portcullis\"";
    let invalid = "Bearer realm=\"portcullis\", error=\"invalid_token\"";
    let scope = "Bearer realm=\"portcullis\", error=\"insufficient_scope\"";
    for (path, token, status, error, challenge) in [
        ("/x", None, StatusCode::UNAUTHORIZED, "missing_token", Some(challenge)),
        ("/x", Some(&expired), StatusCode::UNAUTHORIZED, "invalid_token", Some(invalid)),
        ("/orders", Some(&stage.token()), StatusCode::FORBIDDEN, "insufficient_scope", Some(scope)),
        ("/internal", Some(&stage.token()), StatusCode::FORBIDDEN, "access_denied", None),
        ("/open;x=1", Some(&stage.token()), StatusCode::BAD_REQUEST, "invalid_request", None),
    ] {
        let mut request = stage.client.get(stage.url(path));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.expect("the proxy answers");
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(answer.headers()["content-type"], "application/json", "{path}");
        assert!(!answer.headers().contains_key("retry-after"), "{path}");
        let challenges: Vec<_> = answer.headers().get_all("www-authenticate").iter().collect();
        assert_eq!(challenges.len(), usize::from(challenge.is_some()), "{path}: {challenges:?}");
        for (found, wanted) in challenges.iter().zip(challenge) {
            assert!(found.to_str().is_ok_and(|found| found.starts_with(wanted)), "{path}: {found:?}");
        }
        let body = real::json(answer).await;
        assert_eq!(body["error"], error, "{path}");
        assert!(body["error_description"].as_str().is_some_and(|text| !text.is_empty()), "{path}");
    }
    assert_eq!(stage.upstream.received(), 0);
}

/// The largest of both that the limits of a default configuration let through, beside each other.
pub async fn large_claim_headers_and_a_large_token_pass(recipe: Recipe) {
    let _turn = TURN.lock().await;
    let stage = Stage::set(recipe, "").await;
    let roles: Vec<String> = (0..730).map(|number| format!("role-{number:05}")).collect();
    let claims = with_claim(stage.claims(), "/realm_access/roles", json!(roles));
    let token = stage.key.sign(&with_claim(claims, "filler", "x".repeat(2200)));
    assert!((15 * 1024..16 * 1024).contains(&token.len()), "{}", token.len());
    let cookies = format!("c={}", "x".repeat(12 * 1024));
    let received = stage.reaches_upstream(stage.get(&token).header("cookie", cookies)).await;
    let sent = received["x-auth-roles"].as_str().expect("a header");
    assert!(sent.len() > 8000, "{}", sent.len());
    assert_eq!(sent, roles.join(","));
}

/// Of a recipe whose lines for `forward_token: false` are switched on.
pub async fn the_upstream_never_sees_a_token(recipe: Recipe) {
    let _turn = TURN.lock().await;
    let stage = Stage::set(recipe, "    forward_token: false\n").await;
    let token = stage.token();
    let received = stage.reaches_upstream(stage.get(&token)).await;
    assert_eq!(received["x-auth-subject"], "alice");
    assert!(!received.to_string().contains(&token), "{received}");
    let orders = || stage.client.get(stage.url("/orders"));
    let cookies = format!("a=b; access_token={token}; c=d");
    let received = stage.reaches_upstream(orders().header("cookie", cookies)).await;
    assert_eq!((&received["x-auth-subject"], &received["cookie"]), (&json!("alice"), &json!("a=b; c=d")));
    let alone = format!("access_token={token}");
    let received = stage.reaches_upstream(orders().header("cookie", &alone)).await;
    assert_eq!(received["x-auth-subject"], "alice");
    assert!(received.get("cookie").is_none_or(|cookies| cookies == ""), "{received}");
    let received = stage.reaches_upstream(stage.get(&token).header("cookie", &alone)).await;
    assert!(!received.to_string().contains(&token), "{received}");
}

pub async fn a_clients_own_identity_headers_never_reach_the_upstream(recipe: Recipe) {
    let _turn = TURN.lock().await;
    let stage = Stage::set(recipe, "").await;
    let token = stage.token();
    let mut request = stage.get(&token);
    for forged in ["x-auth-subject", "X-Auth-Tenant", "x-auth-roles"] {
        request = request.header(forged, "mallory").header(forged, "mallory");
    }
    let received = stage.reaches_upstream(request.header("x-other", "kept")).await;
    assert_eq!((&received["x-auth-subject"], &received["x-other"]), (&json!("alice"), &json!("kept")));
    // A managed header whose claim the token lacks is not the client's to set either.
    assert!(!received.to_string().contains("mallory"), "{received}");
    for forged in ["x_auth_subject", "x.auth.subject", "X-Auth_Roles"] {
        let answer = stage.get(&token).header(forged, "mallory").send().await.expect("the proxy answers");
        match answer.status() {
            StatusCode::OK => {
                let received = real::json(answer).await;
                assert!(!received.to_string().contains("mallory"), "{forged}: {received}");
            }
            status => assert_eq!(status, StatusCode::BAD_REQUEST, "{forged}"),
        }
    }
}

/// Each names a request target with a good token in its query: whoever believed it would let the request pass.
pub async fn what_a_client_says_in_a_proxys_headers_is_noise(recipe: Recipe) {
    let _turn = TURN.lock().await;
    let stage = Stage::set(recipe, "").await;
    let target = format!("/orders?access_token={}", stage.token());
    for name in [
        "x-original-uri",
        "x-original-url",
        "x-forwarded-uri",
        "x-forwarded-path",
        "x-envoy-original-path",
        "x-rewrite-url",
    ] {
        let request = stage.client.get(stage.url("/orders")).header(name, &target);
        let answer = request.header(name, &target).send().await.expect("the proxy answers");
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{name}");
        // And beside a good token it does no harm.
        let request = stage.get(&stage.token()).header(name, "/nowhere?access_token=x");
        assert_eq!(request.send().await.expect("the proxy answers").status(), StatusCode::OK, "{name}");
    }
}

pub async fn rotations_under_load_refuse_no_good_token(recipe: Recipe) {
    let _turn = TURN.lock().await;
    let mut stage = Stage::set(recipe, "    refresh: {min_spacing: 100ms}\n").await;
    let current = Arc::new(std::sync::Mutex::new(stage.token()));
    let done = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicU64::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (client, url) = (stage.client.clone(), stage.url("/orders"));
        let (current, done, sent) = (Arc::clone(&current), Arc::clone(&done), Arc::clone(&sent));
        callers.spawn(async move {
            let mut refused = Vec::new();
            while !done.load(Ordering::SeqCst) {
                let token = current.lock().expect("nobody panicked").clone();
                let answer = client.get(&url).bearer_auth(token).send().await.expect("the proxy answers");
                if answer.status() != StatusCode::OK {
                    refused.push(answer.status());
                }
                sent.fetch_add(1, Ordering::SeqCst);
            }
            refused
        });
    }
    for rotation in 1..=3 {
        let before = sent.load(Ordering::SeqCst);
        eventually("the load goes on", TIMEOUT, async || {
            (sent.load(Ordering::SeqCst) >= before + 50).then_some(())
        })
        .await;
        // Tokens under the key before are still good when the next one begins to sign.
        let next = SigningKey::generate(format!("next-{rotation}").as_str(), SigningAlgorithm::ES256);
        stage.issuer.publish(&[&next, &stage.key]);
        stage.key = next;
        *current.lock().expect("nobody panicked") = stage.token();
    }
    let before = sent.load(Ordering::SeqCst);
    eventually("the load goes on", TIMEOUT, async || {
        (sent.load(Ordering::SeqCst) >= before + 50).then_some(())
    })
    .await;
    done.store(true, Ordering::SeqCst);
    for refused in callers.join_all().await {
        assert!(refused.is_empty(), "good tokens: {refused:?}");
    }
}

pub async fn before_any_keys_can_be_had_the_answer_is_503(recipe: Recipe) {
    let _turn = TURN.lock().await;
    let issuer = Issuer::start().await.expect("a free port");
    let key = issuer.rotate(SigningAlgorithm::ES256);
    issuer.stop().await;
    let stage = Stage::set_before(recipe, issuer, key, "").await;
    let answer = stage.send(&stage.token()).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()["retry-after"], "1");
    assert_eq!(real::json(answer).await["error"], "temporarily_unavailable");
    assert_eq!(stage.upstream.received(), 0);
    stage.issuer.restart().await.expect("its port is still its own");
    eventually("the issuer is up again and the same token passes", TIMEOUT, async || {
        (stage.send(&stage.token()).await.status() == StatusCode::OK).then_some(())
    })
    .await;
}

pub async fn when_the_service_is_down_nothing_passes(recipe: Recipe) {
    let _turn = TURN.lock().await;
    let mut stage = Stage::set(recipe, "").await;
    let token = stage.token();
    assert_eq!(stage.send(&token).await.status(), StatusCode::OK);
    let before = stage.upstream.received();
    stage.portcullis.process.terminate();
    eventually("the service ends", TIMEOUT, async || stage.portcullis.process.exit_status()).await;
    assert_eq!(stage.send(&token).await.status(), recipe.service_down);
    assert_eq!(stage.upstream.received(), before);
}

pub async fn a_proxy_that_is_not_trusted_gets_403_whatever_it_says(recipe: Recipe) {
    let _turn = TURN.lock().await;
    let stage = Stage::set(recipe, "trusted_proxies: [192.0.2.0/24]\n").await;
    assert_eq!(stage.send(&stage.token()).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(stage.upstream.received(), 0);
}

/// The tests of a proxy, each a function of this file.
macro_rules! tests_behind {
    ($recipe:expr, $($name:ident),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                $crate::behind::$name($recipe).await;
            }
        )+
    };
}

pub(crate) use tests_behind;
