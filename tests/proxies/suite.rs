//! Tests that all proxies share. Each uses a client, the real proxy with its configuration of `deploy/`, the built
//! binary, an issuer in the test process, and an upstream that echoes what it received.
//!
//! The module of a proxy defines a [`Proxy`] and calls [`proxy_tests!`]. The tests assert what a client and an
//! upstream observe, never the internals of the service.

mod keys;
mod octets;
mod recipes;

use std::net::SocketAddr;

use portcullis::clock::Clock;
use portcullis::commands::issuer::{Issuer, SigningAlgorithm, SigningKey, with_claim};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::launch::{Addresses, RunningProxy, start_proxy};
use crate::support::real::{self, Portcullis, TIMEOUT, Upstream, client, eventually};

pub use keys::*;
pub use octets::*;
pub use recipes::*;

/// A proxy to test.
#[derive(Clone, Copy)]
pub struct Proxy {
    /// The profile of the HTTP door that it uses.
    pub profile: &'static str,
    /// Starts it with its configuration of `deploy/`, where only addresses are changed.
    pub start: fn(&Addresses) -> RunningProxy,
    /// Starts it with the file that `portcullis recipe` prints.
    pub start_with_recipe: fn(&Addresses) -> RunningProxy,
    /// The status that a client gets while the service is down.
    pub status_when_down: StatusCode,
    /// Whether a claim header without a value reaches the upstream, as an empty one.
    pub keeps_empty_headers: bool,
}

/// The claim headers that the files of `deploy/` name.
const SHIPPED_CLAIMS: &str =
    "    claim_headers: {x-auth-subject: sub, x-auth-tenant: tenant_id, x-auth-roles: /realm_access/roles}\n";

/// An issuer, the service, a proxy and an upstream.
pub struct TestEnv {
    pub issuer: Issuer,
    pub key: SigningKey,
    pub portcullis: Portcullis,
    pub upstream: Upstream,
    pub client: Client,
    address: SocketAddr,
    pub proxy: RunningProxy,
}

/// Held by each test: parallel tests would cause timeouts on a small machine.
static SERIAL: Mutex<()> = Mutex::const_new(());

/// Seconds since 1970.
fn now() -> i64 {
    Clock::System.now().as_secs_f64() as i64
}

impl TestEnv {
    /// `more` follows the provider in the configuration; lines indented by four belong to the provider.
    pub async fn start(proxy: Proxy, more: &str) -> Self {
        let issuer = Issuer::start().await.expect("a free port");
        let key = issuer.rotate(SigningAlgorithm::ES256);
        let env = Self::start_without_keys(proxy, issuer, key, more).await;
        env.portcullis.ready().await;
        env
    }

    /// Forwards to this upstream instead of its own.
    pub async fn start_with_upstream(proxy: Proxy, upstream: SocketAddr, more: &str) -> Self {
        let issuer = Issuer::start().await.expect("a free port");
        let key = issuer.rotate(SigningAlgorithm::ES256);
        let own = Upstream::start().await;
        let more = format!("{SHIPPED_CLAIMS}{more}");
        let env = Self::build(proxy, (issuer, key), (own, upstream), &more).await;
        env.portcullis.ready().await;
        env
    }

    /// Does not wait for keys.
    pub async fn start_without_keys(proxy: Proxy, issuer: Issuer, key: SigningKey, more: &str) -> Self {
        let own = Upstream::start().await;
        let address = own.address;
        let more = format!("{SHIPPED_CLAIMS}{more}");
        Self::build(proxy, (issuer, key), (own, address), &more).await
    }

    /// Starts the proxy with the file that `portcullis recipe` prints for a provider with these keys, without the claim
    /// headers of `deploy/`.
    pub async fn start_with_recipe(proxy: Proxy, provider: &str) -> Self {
        let issuer = Issuer::start().await.expect("a free port");
        let key = issuer.rotate(SigningAlgorithm::ES256);
        let own = Upstream::start().await;
        let address = own.address;
        let proxy = Proxy { start: proxy.start_with_recipe, ..proxy };
        let env = Self::build(proxy, (issuer, key), (own, address), provider).await;
        env.portcullis.ready().await;
        env
    }

    /// `forward_to` is the upstream of the proxy.
    async fn build(
        proxy: Proxy,
        issuer_and_key: (Issuer, SigningKey),
        upstreams: (Upstream, SocketAddr),
        more: &str,
    ) -> Self {
        Self::build_with_tls(proxy, issuer_and_key, upstreams, None, more).await
    }

    /// The doors use these certificates.
    async fn build_with_tls(
        proxy: Proxy,
        (issuer, key): (Issuer, SigningKey),
        (upstream, forward_to): (Upstream, SocketAddr),
        certificates: Option<&Certificates>,
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
      - {{websocket_protocol: bearer}}
{more}",
            issuer.issuer(),
            issuer.jwks_uri(),
        );
        let tls = certificates.map(Certificates::of_the_doors).unwrap_or_default();
        let portcullis = Portcullis::serve_with_tls(proxy.profile, &tls, &providers).await;
        let certificates = certificates.map(|certificates| certificates.folder.path().to_owned());
        let addresses = Addresses { certificates, ..Addresses::new(&portcullis, forward_to) };
        let (mut running, address) = start_proxy(proxy.start, &addresses).await;
        let client = client();
        eventually("the proxy has its routes", TIMEOUT, async || {
            running.process.assert_running();
            // Traefik listens before it has its routes.
            let answer = client.get(format!("http://{address}/")).send().await.ok()?;
            (answer.status() != StatusCode::NOT_FOUND).then_some(())
        })
        .await;
        Self { issuer, key, portcullis, upstream, client, address, proxy: running }
    }

    /// The address of the proxy.
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

    /// Sends a request that has to be allowed, and returns what the upstream received.
    pub async fn forwarded_request(&self, request: RequestBuilder) -> Value {
        let answer = request.send().await.expect("the proxy answers");
        assert_eq!(answer.status(), StatusCode::OK);
        real::json(answer).await
    }
}

pub async fn a_good_token_passes_with_its_claims_as_headers(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let env = TestEnv::start(proxy, "").await;
    let token = env.key.sign(&with_claim(env.claims(), "/realm_access/roles", json!(["admin", "ops"])));
    let received = env.forwarded_request(env.get(&token)).await;
    assert_eq!(received["x-auth-subject"], "alice");
    assert_eq!(received["x-auth-tenant"], "acme");
    assert_eq!(received["x-auth-roles"], "admin,ops");
    assert_eq!(received["authorization"], format!("Bearer {token}"));
    let posted = env.client.post(env.url("/orders")).bearer_auth(&token).body("twelve bytes");
    let received = env.forwarded_request(posted).await;
    assert_eq!(received["content-length"], "12", "the body goes to the upstream");
    let answer = env.client.get(env.url(&format!("/orders?access_token={token}"))).send().await;
    assert_eq!(
        answer.expect("the proxy answers").status(),
        StatusCode::OK,
        "a token in the query is accepted"
    );
}

pub async fn rules_say_who_may_do_what(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let rules = "rules:
  - {name: health, by_name: true, match: {path: /healthz}, allow: anonymous}
  - {name: internal, match: {path_prefix: /internal}, deny: true}
  - {name: orders, match: {path_prefix: /orders, methods: [GET]}, require: {scopes: ['orders:read']}}
";
    let env = TestEnv::start(proxy, rules).await;
    let plain = env.token();
    let scoped = env.key.sign(&with_claim(env.claims(), "scope", "orders:read"));
    let health = env.client.get(env.url("/healthz")).header("x-auth-subject", "root");
    let received = env.forwarded_request(health).await;
    assert!(received.get("x-auth-subject").is_none_or(|subject| subject == ""), "{received}");
    env.forwarded_request(env.client.get(env.url("/orders")).bearer_auth(&scoped)).await;
    env.forwarded_request(env.client.post(env.url("/orders")).bearer_auth(&plain)).await;
    let before = env.upstream.received();
    for (path, token, status) in [
        ("/orders", &plain, StatusCode::FORBIDDEN),
        ("/internal/x", &scoped, StatusCode::FORBIDDEN),
        ("/x/%2e%2e/internal", &scoped, StatusCode::FORBIDDEN),
        ("/healthz/..%2finternal", &scoped, StatusCode::BAD_REQUEST),
        ("/healthz;x=1", &scoped, StatusCode::BAD_REQUEST),
    ] {
        let answer = env.client.get(env.url(path)).bearer_auth(token).send().await;
        assert_eq!(answer.expect("the proxy answers").status(), status, "{path}");
    }
    // A client names no rule with the path of its own request.
    for path in ["/rule/health", "/rule/health?x=1", "/x?/rule/health", "/?uri=/rule/health"] {
        let answer = env.client.get(env.url(path)).header("x-forwarded-prefix", "/rule/health").send().await;
        let status = answer.expect("the proxy answers").status();
        assert!(matches!(status.as_u16(), 400 | 401), "{path}: {status}");
    }
    assert_eq!(env.upstream.received(), before, "none is forwarded");
}

/// `proxy` asks with the path `/rule/orders`.
pub async fn a_route_names_its_rule(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let rules = "default: deny
rules:
  - {name: orders, by_name: true, match: {path: /nowhere}, require: {scopes: ['orders:read']}}
  - {name: health, by_name: true, match: {path: /healthz}, allow: anonymous}
";
    let env = TestEnv::start(proxy, rules).await;
    let scoped = env.key.sign(&with_claim(env.claims(), "scope", "orders:read"));
    for path in ["/orders/7", "/healthz", "/rule/health", "/?/rule/health"] {
        env.forwarded_request(env.client.get(env.url(path)).bearer_auth(&scoped)).await;
        let plain = env.client.get(env.url(path)).bearer_auth(env.token()).send().await;
        assert_eq!(plain.expect("the proxy answers").status(), StatusCode::FORBIDDEN, "{path}");
        let without = env.client.get(env.url(path)).header("x-original-uri", "/rule/health").send().await;
        assert_eq!(without.expect("the proxy answers").status(), StatusCode::UNAUTHORIZED, "{path}");
    }
}

/// Characters that a program may not treat as part of a value.
const SPECIAL_CHARACTERS: &str =
    "aZ09 \t\r\n\0\u{7f}\u{80}\u{85}é漢😀\u{2028}\u{feff}%,;:\"'\\<>(){}[]=&?#/@$`|^~+-*";

pub async fn any_claim_value_arrives_unchanged_in_one_header(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let env = TestEnv::start(proxy, "").await;
    let special: Vec<char> = SPECIAL_CHARACTERS.chars().collect();
    // Deterministic values: a linear congruential generator (Knuth's MMIX) with a fixed seed.
    let mut state = 27_u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for _ in 0..60 {
        let value: String = (0..=next(12)).map(|_| special[next(special.len())]).collect();
        let token = env.key.sign(&with_claim(env.claims(), "tenant_id", value.as_str()));
        let received = env.forwarded_request(env.get(&token)).await;
        let arrived = received["x-auth-tenant"].as_str().expect("one value");
        let decoded = percent_encoding::percent_decode_str(arrived).decode_utf8().expect("UTF-8");
        assert_eq!(decoded, value, "{arrived}");
        assert!(arrived.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{arrived:?}");
        assert_eq!(received["x-auth-subject"], "alice");
    }
}

pub async fn a_denial_reaches_the_client_with_its_challenge(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let env = TestEnv::start(proxy, "").await;
    let answer = env.client.get(env.url("/orders")).send().await.expect("the proxy answers");
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(answer.headers()["www-authenticate"], "Bearer realm=\"portcullis\"");
    let expired = env.key.sign(&with_claim(env.claims(), "exp", now() - 3600));
    let answer = env.send(&expired).await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let challenge = answer.headers()["www-authenticate"].to_str().expect("is text").to_owned();
    assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
    let refused = env.client.post(env.url("/orders")).body("twelve bytes").send().await;
    assert_eq!(refused.expect("the proxy answers").status(), StatusCode::UNAUTHORIZED);
    assert_eq!(env.upstream.received(), 0);
}

pub async fn denials_reach_the_client_unchanged(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let rules = "rules:
  - {name: open, match: {path_prefix: /open}, allow: anonymous}
  - {name: internal, match: {path_prefix: /internal}, deny: true}
  - {name: orders, match: {path_prefix: /orders}, require: {scopes: ['orders:read']}}
";
    let env = TestEnv::start(proxy, rules).await;
    let expired = env.key.sign(&with_claim(env.claims(), "exp", now() - 3600));
    let challenge = "Bearer realm=\"portcullis\"";
    let invalid = "Bearer realm=\"portcullis\", error=\"invalid_token\"";
    let scope = "Bearer realm=\"portcullis\", error=\"insufficient_scope\"";
    for (path, token, status, error, challenge) in [
        ("/x", None, StatusCode::UNAUTHORIZED, "missing_token", Some(challenge)),
        ("/x", Some(&expired), StatusCode::UNAUTHORIZED, "invalid_token", Some(invalid)),
        ("/orders", Some(&env.token()), StatusCode::FORBIDDEN, "insufficient_scope", Some(scope)),
        ("/internal", Some(&env.token()), StatusCode::FORBIDDEN, "access_denied", None),
        ("/open;x=1", Some(&env.token()), StatusCode::BAD_REQUEST, "invalid_request", None),
    ] {
        let mut request = env.client.get(env.url(path));
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
    assert_eq!(env.upstream.received(), 0);
}

/// The largest claim headers and the largest token of the default limits, in one request.
pub async fn large_claim_headers_and_a_large_token_pass(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let env = TestEnv::start(proxy, "").await;
    let roles: Vec<String> = (0..730).map(|number| format!("role-{number:05}")).collect();
    let claims = with_claim(env.claims(), "/realm_access/roles", json!(roles));
    let token = env.key.sign(&with_claim(claims, "filler", "x".repeat(2200)));
    assert!((15 * 1024..16 * 1024).contains(&token.len()), "{}", token.len());
    let cookies = format!("c={}", "x".repeat(12 * 1024));
    let received = env.forwarded_request(env.get(&token).header("cookie", cookies)).await;
    let sent = received["x-auth-roles"].as_str().expect("a header");
    assert!(sent.len() > 8000, "{}", sent.len());
    assert_eq!(sent, roles.join(","));
}

pub async fn the_upstream_never_sees_a_token(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let proxy = Proxy { start: proxy.start_with_recipe, ..proxy };
    let env = TestEnv::start(proxy, "    forward_token: false\n").await;
    let token = env.token();
    let received = env.forwarded_request(env.get(&token)).await;
    assert_eq!(received["x-auth-subject"], "alice");
    assert!(!received.to_string().contains(&token), "{received}");
    let orders = || env.client.get(env.url("/orders"));
    let cookies = format!("a=b; access_token={token}; c=d");
    let received = env.forwarded_request(orders().header("cookie", cookies)).await;
    assert_eq!((&received["x-auth-subject"], &received["cookie"]), (&json!("alice"), &json!("a=b; c=d")));
    let cookie = format!("access_token={token}");
    let received = env.forwarded_request(orders().header("cookie", &cookie)).await;
    assert_eq!(received["x-auth-subject"], "alice");
    assert_eq!(received.get("cookie"), None, "{received}");
    let received = env.forwarded_request(env.get(&token).header("cookie", &cookie)).await;
    assert!(!received.to_string().contains(&token), "{received}");
    // The protocols of a WebSocket, with empty elements and beside another place of the token.
    for (sent, kept) in [
        (format!("chat, bearer, {token}"), Some("chat")),
        (format!("bearer,, {token}"), None),
        (format!("bearer, {token}, BEARER, {token}"), None),
    ] {
        for request in [orders(), env.get(&token)] {
            let received = env.forwarded_request(request.header("sec-websocket-protocol", &sent)).await;
            assert_eq!(received["x-auth-subject"], "alice");
            assert_eq!(
                received.get("sec-websocket-protocol"),
                kept.map(Value::from).as_ref(),
                "{sent}: {received}"
            );
        }
    }
    let received = env.forwarded_request(env.get(&token)).await;
    assert_eq!(received.get("sec-websocket-protocol"), None, "{received}");
}

pub async fn a_clients_own_identity_headers_never_reach_the_upstream(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let env = TestEnv::start(proxy, "").await;
    let token = env.token();
    let mut request = env.get(&token);
    for forged in ["x-auth-subject", "X-Auth-Tenant", "x-auth-roles"] {
        request = request.header(forged, "mallory").header(forged, "mallory");
    }
    let received = env.forwarded_request(request.header("x-other", "kept")).await;
    assert_eq!((&received["x-auth-subject"], &received["x-other"]), (&json!("alice"), &json!("kept")));
    // A client cannot set a claim header whose claim the token lacks.
    assert!(!received.to_string().contains("mallory"), "{received}");
    for forged in ["x_auth_subject", "x.auth.subject", "X-Auth_Roles"] {
        let answer = env.get(&token).header(forged, "mallory").send().await.expect("the proxy answers");
        match answer.status() {
            StatusCode::OK => {
                let received = real::json(answer).await;
                assert!(!received.to_string().contains("mallory"), "{forged}: {received}");
            }
            status => assert_eq!(status, StatusCode::BAD_REQUEST, "{forged}"),
        }
    }
}

/// Each header names a request target with a valid token in the query, which would be allowed.
pub async fn proxy_headers_of_a_client_are_ignored(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let env = TestEnv::start(proxy, "").await;
    let target = format!("/orders?access_token={}", env.token());
    for name in [
        "x-original-uri",
        "x-original-url",
        "x-forwarded-uri",
        "x-forwarded-path",
        "x-envoy-original-path",
        "x-rewrite-url",
    ] {
        let request = env.client.get(env.url("/orders")).header(name, &target);
        let answer = request.header(name, &target).send().await.expect("the proxy answers");
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{name}");
        // With a valid token it has no effect.
        let request = env.get(&env.token()).header(name, "/nowhere?access_token=x");
        assert_eq!(request.send().await.expect("the proxy answers").status(), StatusCode::OK, "{name}");
    }
}

pub async fn an_untrusted_proxy_gets_403(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let env = TestEnv::start(proxy, "trusted_proxies: [192.0.2.0/24]\n").await;
    assert_eq!(env.send(&env.token()).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(env.upstream.received(), 0);
}

/// Defines the tests of a proxy, each a function of this module: all of them, or the named ones.
macro_rules! proxy_tests {
    ($proxy:expr) => {
        $crate::suite::proxy_tests!(
            $proxy,
            a_good_token_passes_with_its_claims_as_headers,
            rules_say_who_may_do_what,
            any_claim_value_arrives_unchanged_in_one_header,
            a_denial_reaches_the_client_with_its_challenge,
            denials_reach_the_client_unchanged,
            large_claim_headers_and_a_large_token_pass,
            the_upstream_never_sees_a_token,
            a_clients_own_identity_headers_never_reach_the_upstream,
            proxy_headers_of_a_client_are_ignored,
            rotations_under_load_refuse_no_good_token,
            without_keys_the_answer_is_503,
            when_the_service_is_down_nothing_passes,
            an_untrusted_proxy_gets_403,
            a_websocket_passes_with_a_token_and_not_without,
            no_upgrade_but_a_websocket_passes,
            a_client_cannot_nominate_identity_headers_for_removal,
            a_trailer_never_reaches_the_upstream,
            override_headers_are_correct_or_absent,
            several_hosts_do_not_select_the_last,
            the_upstream_gets_the_path_that_is_checked_and_no_absolute_uri,
            a_query_of_any_octets_passes,
            the_printed_file_sets_the_claim_headers_and_removes_the_token,
            a_request_without_identity_has_no_claim_header,
            a_page_can_read_a_denial,
            a_door_with_tls_is_asked_over_tls,
            without_keys_the_status_is_that_of_the_configuration,
        );
    };
    ($proxy:expr, $($name:ident),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                $crate::suite::$name($proxy).await;
            }
        )+
    };
}

pub(crate) use proxy_tests;
