//! Tests of the file that `portcullis recipe` prints for another configuration than that of `deploy/`, and of what a
//! proxy's file does with a request without an identity and with a page of another origin.

use portcullis::commands::issuer::{Issuer, SigningAlgorithm, with_claim};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Proxy, SERIAL, SHIPPED_CLAIMS, TestEnv};
use crate::support::pki::{Authority, write};
use crate::support::real::{self, Upstream, folder};

/// The certificates of Portcullis, and those of a proxy under the names that a printed file has.
pub struct Certificates {
    pub(super) folder: TempDir,
    client_ca: bool,
}

impl Certificates {
    fn new(client_ca: bool) -> Self {
        let folder = folder();
        let (server, client) = (Authority::new("server"), Authority::new("client"));
        let (own, proxys) = (server.issue(&["portcullis", "127.0.0.1"]), client.issue(&["proxy.mesh"]));
        for (name, text) in [
            ("cert.pem", own.pem),
            ("key.pem", own.key),
            ("client-ca.pem", client.pem),
            ("portcullis-ca.pem", server.pem),
            ("portcullis-client.pem", proxys.pem),
            ("portcullis-client-key.pem", proxys.key),
        ] {
            write(folder.path(), name, &text);
        }
        Self { folder, client_ca }
    }

    /// The TLS settings of the doors.
    pub(super) fn of_the_doors(&self) -> String {
        let file = |name: &str| self.folder.path().join(name).display().to_string();
        let client = match self.client_ca {
            true => format!(", client_ca_file: '{}', client_names: [proxy.mesh]", file("client-ca.pem")),
            false => String::new(),
        };
        format!(", tls: {{cert_file: '{}', key_file: '{}'{client}}}", file("cert.pem"), file("key.pem"))
    }
}

/// For a proxy that can present a certificate of its own.
pub async fn a_door_with_mutual_tls_is_asked_with_the_proxys_certificate(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    passes_with_tls(proxy, &Certificates::new(true)).await;
}

pub async fn a_door_with_tls_is_asked_over_tls(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    passes_with_tls(proxy, &Certificates::new(false)).await;
    // Another authority than that of the door.
    let other = Certificates::new(false);
    write(other.folder.path(), "portcullis-ca.pem", &Authority::new("other").pem);
    let env = start_with_tls(proxy, &other).await;
    assert!(env.send(&env.token()).await.status().is_server_error());
    assert_eq!(env.upstream.received(), 0);
}

async fn passes_with_tls(proxy: Proxy, certificates: &Certificates) {
    let env = start_with_tls(proxy, certificates).await;
    let received = env.forwarded_request(env.get(&env.token())).await;
    assert_eq!(received["x-auth-subject"], "alice");
    assert_eq!(
        env.client.get(env.url("/orders")).send().await.expect("answers").status(),
        StatusCode::UNAUTHORIZED
    );
}

async fn start_with_tls(proxy: Proxy, certificates: &Certificates) -> TestEnv {
    let issuer = Issuer::start().await.expect("a free port");
    let key = issuer.rotate(SigningAlgorithm::ES256);
    let own = Upstream::start().await;
    let address = own.address;
    let proxy = Proxy { start: proxy.start_with_recipe, ..proxy };
    let env =
        TestEnv::build_with_tls(proxy, (issuer, key), (own, address), Some(certificates), SHIPPED_CLAIMS)
            .await;
    env.portcullis.ready().await;
    env
}

pub async fn the_printed_file_sets_the_claim_headers_and_removes_the_token(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let provider = "    claim_headers: {x-user: sub, x-team: tenant_id}
    payload_header: x-claims
    forward_token: false
    refresh: {wait: 1500ms}
";
    let env = TestEnv::start_with_recipe(proxy, provider).await;
    let token = env.token();
    let request =
        env.client.get(env.url("/orders")).header("cookie", format!("a=b; access_token={token}; c=d"));
    let mut request = request.header("x-other", "kept");
    for forged in ["x-user", "X-Team", "x-claims"] {
        request = request.header(forged, "mallory");
    }
    let received = env.forwarded_request(request).await;
    assert_eq!((&received["x-user"], &received["x-team"]), (&"alice".into(), &"acme".into()), "{received}");
    assert_eq!(
        (&received["cookie"], &received["x-other"]),
        (&"a=b; c=d".into(), &"kept".into()),
        "{received}"
    );
    assert_eq!(received["x-claims"].as_str(), token.split('.').nth(1), "{received}");
    assert!(
        !received.to_string().contains(&token) && !received.to_string().contains("mallory"),
        "{received}"
    );
    let received = env.forwarded_request(env.get(&token)).await;
    assert!(received.get("authorization").is_none_or(|value| value == ""), "{received}");
}

pub async fn a_request_without_identity_has_no_claim_header(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let rules = "rules:
  - {name: health, match: {path: /healthz}, allow: anonymous}
  - {name: catalog, match: {path: /catalog}, allow: optional}
";
    let env = TestEnv::start(proxy, rules).await;
    let without_tenant = env.key.sign(&with_claim(env.claims(), "tenant_id", Value::Null));
    let get = |path: &str| env.client.get(env.url(path));
    for (request, subject) in [
        (get("/healthz"), None),
        (get("/healthz").header("x-auth-subject", "mallory").header("x-auth-tenant", "evil"), None),
        (get("/healthz").bearer_auth(&without_tenant), None),
        (get("/catalog"), None),
        (get("/catalog").header("x-auth-subject", "mallory").header("x-auth-tenant", "evil"), None),
        (get("/catalog").bearer_auth(&without_tenant), Some("alice")),
        (get("/orders").bearer_auth(&without_tenant).header("x-auth-tenant", "evil"), Some("alice")),
    ] {
        let received = env.forwarded_request(request).await;
        let absent = proxy.keeps_empty_headers.then(|| Value::from(""));
        let expected = subject.map(Value::from).or(absent.clone());
        assert_eq!(received.get("x-auth-subject"), expected.as_ref(), "{received}");
        assert_eq!(received.get("x-auth-tenant"), absent.as_ref(), "{received}");
    }
}

pub async fn a_page_can_read_a_denial(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let more = "responses: {cors: {allow_origins: ['https://app.example.com'], allow_credentials: true}}
rules:
  - {name: internal, match: {path_prefix: /internal}, deny: true}
";
    let env = TestEnv::start(proxy, more).await;
    for (path, status) in [("/orders", StatusCode::UNAUTHORIZED), ("/internal", StatusCode::FORBIDDEN)] {
        for (origin, allowed) in [("https://app.example.com", true), ("https://evil.example.com", false)] {
            let answer = env.client.get(env.url(path)).header("origin", origin).send().await;
            let answer = answer.expect("the proxy answers");
            assert_eq!(answer.status(), status);
            let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().expect("text"));
            assert_eq!(header("access-control-allow-origin"), allowed.then_some(origin), "{path} {origin}");
            assert_eq!(
                header("access-control-allow-credentials"),
                allowed.then_some("true"),
                "{path} {origin}"
            );
            let exposed = allowed.then_some("WWW-Authenticate");
            assert_eq!(header("access-control-expose-headers"), exposed, "{path} {origin}");
            assert_eq!(header("vary"), Some("Origin"), "{path} {origin}");
        }
    }
    // The headers of an answer of the app are its own.
    let answer = env.get(&env.token()).header("origin", "https://app.example.com").send().await;
    let answer = answer.expect("the proxy answers");
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(!answer.headers().contains_key("access-control-allow-origin"), "{:?}", answer.headers());
}

/// For a proxy whose door serves it.
pub async fn the_resource_metadata_needs_no_token(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let path = "/.well-known/oauth-protected-resource/orders";
    let url = format!("https://api.example.com{path}");
    let env =
        TestEnv::start_with_recipe(proxy, &format!("responses: {{resource_metadata: '{url}'}}\n")).await;
    let denied = env.client.get(env.url("/orders")).send().await.expect("the proxy answers");
    let challenge = denied.headers()["www-authenticate"].to_str().expect("text");
    assert!(challenge.ends_with(&format!("resource_metadata=\"{url}\"")), "{challenge}");
    // A client cannot make it an authorization request.
    for name in
        ["x-original-uri", "x-original-url", "x-original-method", "x-forwarded-uri", "x-forwarded-method"]
    {
        let request = env.client.get(env.url(path)).header(name, "https://a/orders").bearer_auth(env.token());
        let answer = request.send().await.expect("the proxy answers");
        assert_eq!(answer.status(), StatusCode::OK, "{name}");
        let document = real::json(answer).await;
        assert_eq!(document["resource"], "https://api.example.com/orders", "{name}");
        assert_eq!(document["authorization_servers"], json!([env.issuer.issuer()]), "{name}");
    }
    for path in ["/.well-known/oauth-protected-resource", &format!("{path}/x"), "/x"] {
        let answer = env.client.get(env.url(path)).send().await.expect("the proxy answers");
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
    assert_eq!(env.upstream.received(), 0);
}

pub async fn without_keys_the_status_is_that_of_the_configuration(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    for status in [429, 502] {
        let issuer = Issuer::start().await.expect("a free port");
        let key = issuer.rotate(SigningAlgorithm::ES256);
        issuer.stop().await;
        let own = Upstream::start().await;
        let address = own.address;
        let more = format!("responses: {{keys_unavailable_status: {status}}}\n");
        let proxy = Proxy { start: proxy.start_with_recipe, ..proxy };
        let env = TestEnv::build(proxy, (issuer, key), (own, address), &more).await;
        let answer = env.send(&env.token()).await;
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["retry-after"]),
            (status, &"1".parse().expect("a value"))
        );
        assert_eq!(real::json(answer).await["error"], "temporarily_unavailable");
        assert_eq!(env.upstream.received(), 0);
    }
}
