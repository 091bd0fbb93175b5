//! The HTTP listener, in process: how each profile parses requests and responds, and that all listeners have the same verdicts.
//! Other tests run it with real proxies.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::support::pki::Pki;
use crate::support::{self, Ask, NOW, Running, config, fixed_clock, inline, provider, with_http_doors};
use portcullis::access_request::ClaimHeaders;
use portcullis::app::App;
use portcullis::commands::issuer::{Issuer, SigningAlgorithm, SigningKey, with_claim};
use portcullis::config::{Config, HttpListener, Profile, ProviderConfig, Shutdown, TlsFiles};
use portcullis::validation::provider::{Provider, TokenSource};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

const ISSUER: &str = "https://sso.example.com";

/// The profiles whose proxies describe the request in headers.
const PROFILES_WITH_HEADERS: [Profile; 5] =
    [Profile::Nginx, Profile::IngressNginx, Profile::Haproxy, Profile::Caddy, Profile::Traefik];

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": "orders-api", "sub": "alice", "tenant_id": "acme", "exp": NOW + 300})
}

/// A service with a listener for each profile, and a key whose tokens it accepts.
struct Listeners {
    service: Running,
    key: SigningKey,
    client: Client,
}

impl Listeners {
    async fn open(adjust: impl FnOnce(&mut Provider), change: impl FnOnce(&mut Config)) -> Self {
        let key = SigningKey::generate("k", SigningAlgorithm::ES256);
        let mut rules = provider("p", ISSUER);
        adjust(&mut rules);
        let mut config = with_http_doors(config(vec![inline(rules, &[key.public_jwk()])]));
        change(&mut config);
        let service = Running::start(config, fixed_clock()).await;
        let client = Client::builder().no_proxy().build().expect("a plain client");
        Self { service, key, client }
    }

    async fn plain() -> Self {
        Self::open(|_| {}, |_| {}).await
    }

    fn token(&self) -> String {
        self.key.sign(&claims())
    }

    /// A check of a GET request for this path, as the proxy of this profile sends it.
    fn ask(&self, profile: Profile, path: &str) -> RequestBuilder {
        let address = self.service.http_door(profile);
        let ask = |path: &str| self.client.get(format!("http://{address}{path}"));
        match profile {
            Profile::Nginx => ask("/").header("x-original-method", "GET").header("x-original-uri", path),
            Profile::IngressNginx => ask("/")
                .header("x-original-method", "GET")
                .header("x-original-url", format!("http://api.example.com{path}")),
            Profile::Haproxy | Profile::Caddy | Profile::Traefik => ask("/")
                .header("x-forwarded-method", "GET")
                .header("x-forwarded-uri", path)
                .header("x-forwarded-host", "api.example.com"),
            Profile::Envoy => ask(path),
        }
    }
}

async fn send(request: RequestBuilder) -> Response {
    request.send().await.expect("it responds")
}

#[tokio::test]
async fn an_allowed_request_gets_its_claims_as_headers_and_the_others_empty() {
    let listeners = Listeners::plain().await;
    let token = listeners.key.sign(&with_claim(claims(), "tenant_id", Value::Null));
    for profile in PROFILES_WITH_HEADERS {
        let answer = send(listeners.ask(profile, "/orders").bearer_auth(&token)).await;
        assert_eq!(answer.status(), StatusCode::OK, "{profile:?}");
        assert_eq!(answer.headers()["x-auth-subject"], "alice");
        assert_eq!(answer.headers()["x-auth-tenant"], "", "{profile:?}");
        assert!(!answer.headers().contains_key("x-envoy-auth-headers-to-remove"));
    }
    let request =
        listeners.ask(Profile::Envoy, "/orders").bearer_auth(&token).header("x_auth_tenant", "mallory");
    let answer = send(request).await;
    assert_eq!(answer.headers()["x-auth-subject"], "alice");
    assert!(!answer.headers().contains_key("x-auth-tenant"));
    assert_eq!(answer.headers()["x-envoy-auth-headers-to-remove"], "x-auth-tenant,x_auth_tenant");
}

#[tokio::test]
async fn a_similar_header_is_denied_for_a_proxy_that_cannot_remove_it() {
    let listeners = Listeners::plain().await;
    for profile in PROFILES_WITH_HEADERS {
        for name in ["x_auth_subject", "x.auth.tenant", "X_Auth-Subject"] {
            let request = listeners.ask(profile, "/").bearer_auth(listeners.token()).header(name, "mallory");
            let answer = send(request).await;
            assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{profile:?} {name}");
            let body: Value = serde_json::from_str(&answer.text().await.expect("text")).expect("JSON");
            assert_eq!(body["error"], "invalid_request");
        }
    }
}

#[tokio::test]
async fn a_claim_header_of_the_client_is_denied_unless_the_proxy_overwrites_all_of_them() {
    for (client_headers, expected) in
        [(ClaimHeaders::MaybeKept, StatusCode::BAD_REQUEST), (ClaimHeaders::Overwritten, StatusCode::OK)]
    {
        let listeners = Listeners::open(
            |_| {},
            |config| {
                config
                    .listen
                    .forward_auth
                    .iter_mut()
                    .for_each(|listener| listener.client_headers = client_headers);
            },
        );
        let listeners = listeners.await;
        for (_, profile) in Profile::NAMED {
            let request = listeners.ask(profile, "/").bearer_auth(listeners.token());
            let answer = send(request.header("X-Auth-Subject", "mallory")).await;
            assert_eq!(answer.status(), expected, "{profile:?}");
            if expected == StatusCode::OK {
                assert_eq!(answer.headers()["x-auth-subject"], "alice", "{profile:?}");
            }
        }
        // There is no value for this header, so Envoy can remove it.
        let token = listeners.key.sign(&with_claim(claims(), "tenant_id", Value::Null));
        let request = listeners.ask(Profile::Envoy, "/").bearer_auth(token);
        let answer = send(request.header("x-auth-tenant", "evil")).await;
        assert_eq!(answer.headers()["x-envoy-auth-headers-to-remove"], "x-auth-tenant");
    }
}

#[tokio::test]
async fn no_listener_allows_an_upgrade_to_h2c_or_a_hop_by_hop_claim_header() {
    let listeners = Listeners::plain().await;
    for (_, profile) in Profile::NAMED {
        for (name, value) in [
            ("http2-settings", "AAMAAABkAAQAAP__"),
            ("upgrade", "websocket, h2c"),
            ("proxy-connection", "close, X-Auth-Subject"),
            ("trailer", "x-auth-tenant"),
        ] {
            let request = listeners.ask(profile, "/").bearer_auth(listeners.token()).header(name, value);
            assert_eq!(send(request).await.status(), StatusCode::BAD_REQUEST, "{profile:?} {name}");
        }
        let request = listeners.ask(profile, "/").bearer_auth(listeners.token());
        assert_eq!(
            send(request.header("upgrade", "websocket")).await.status(),
            StatusCode::OK,
            "{profile:?}"
        );
    }
}

#[tokio::test]
async fn every_response_has_no_store() {
    let listeners = Listeners::plain().await;
    for (_, profile) in Profile::NAMED {
        for request in
            [listeners.ask(profile, "/"), listeners.ask(profile, "/").bearer_auth(listeners.token())]
        {
            assert_eq!(send(request).await.headers()["cache-control"], "no-store", "{profile:?}");
        }
    }
}

#[tokio::test]
async fn each_profile_reads_only_its_own_headers() {
    let listeners =
        Listeners::open(|rules| rules.token_from.push(TokenSource::Query("access_token".into())), |_| {})
            .await;
    let with_token = format!("/orders?access_token={}", listeners.token());
    for (_, profile) in Profile::NAMED {
        let answer = send(listeners.ask(profile, &with_token)).await;
        assert_eq!(answer.status(), StatusCode::OK, "{profile:?} reads the query of the request");
        for other in ["x-original-uri", "x-forwarded-uri", "x-original-url", "x-envoy-original-path"] {
            if send(listeners.ask(profile, "/")).await.status() == StatusCode::OK {
                panic!("{profile:?}: without a token");
            }
            let mine = match profile {
                Profile::Nginx => "x-original-uri",
                Profile::IngressNginx => "x-original-url",
                Profile::Envoy => "",
                _ => "x-forwarded-uri",
            };
            if other != mine {
                let answer = send(listeners.ask(profile, "/").header(other, &with_token)).await;
                assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{profile:?} {other}");
            }
        }
        // Only Envoy sends the client's request line; the others send their own.
        if profile != Profile::Envoy {
            let url = format!("http://{}{with_token}", listeners.service.http_door(profile));
            let asked = listeners.ask(profile, "/").build().expect("a request");
            let request = listeners.client.get(url).headers(asked.headers().clone());
            assert_eq!(send(request).await.status(), StatusCode::UNAUTHORIZED, "{profile:?}");
        }
    }
}

#[tokio::test]
async fn a_request_with_a_missing_or_repeated_description_is_malformed() {
    let listeners = Listeners::plain().await;
    for profile in PROFILES_WITH_HEADERS {
        let complete = listeners.ask(profile, "/").bearer_auth(listeners.token());
        let headers = complete.build().expect("a request").headers().clone();
        let url = format!("http://{}/", listeners.service.http_door(profile));
        for name in headers.keys().filter(|name| name.as_str().starts_with("x-")) {
            let mut without = headers.clone();
            without.remove(name);
            let answer = send(listeners.client.get(&url).headers(without)).await;
            // An HTTP/1.0 request may have no host; it then matches no rule with a host.
            let expected = match name.as_str() {
                "x-forwarded-host" => StatusCode::OK,
                _ => StatusCode::BAD_REQUEST,
            };
            assert_eq!(answer.status(), expected, "{profile:?} without {name}");
            let mut twice = headers.clone();
            twice.append(name, headers[name].clone());
            let answer = send(listeners.client.get(&url).headers(twice)).await;
            assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{profile:?} with {name} twice");
        }
    }
}

#[tokio::test]
async fn an_untrusted_peer_gets_403_if_the_profile_reads_headers() {
    let elsewhere = vec!["192.0.2.0/24".parse().expect("a network")];
    let listeners = Listeners::open(|_| {}, |config| config.trusted_proxies = elsewhere).await;
    for profile in PROFILES_WITH_HEADERS {
        let answer = send(listeners.ask(profile, "/").bearer_auth(listeners.token())).await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{profile:?}");
    }
    let answer = send(listeners.ask(Profile::Envoy, "/").bearer_auth(listeners.token())).await;
    assert_eq!(answer.status(), StatusCode::OK, "Envoy sends the request as the client sent it");
    let metrics = listeners.service.admin("/metrics").await;
    let counted = r#"portcullis_decisions_total{door="forward_auth",verdict="deny",reason="request_malformed",provider=""} 5"#;
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test]
async fn any_method_and_any_path_is_a_check() {
    let listeners = Listeners::plain().await;
    let token = listeners.token();
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"] {
        for path in ["/", "/metrics", "/a/b?c=d", "/%2e%2e/", "//x"] {
            let url = format!("http://{}{path}", listeners.service.http_door(Profile::Envoy));
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            let request = listeners.client.request(method.clone(), url);
            let answer = send(request.try_clone().expect("no body").bearer_auth(&token)).await;
            assert_eq!(answer.status(), StatusCode::OK, "{method} {path}");
            assert_eq!(send(request).await.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
        }
    }
    let with_a_body = listeners.ask(Profile::Envoy, "/").bearer_auth(&token).body(vec![b'x'; 1 << 20]);
    assert_eq!(send(with_a_body).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_token_that_is_not_forwarded_is_removed_or_the_request_is_denied() {
    let listeners = Listeners::open(
        |rules| {
            rules.forward_token = false;
            rules.token_from.push(TokenSource::Cookie("t".into()));
            rules.token_from.push(TokenSource::Query("t".into()));
        },
        |_| {},
    )
    .await;
    let token = listeners.token();
    for profile in PROFILES_WITH_HEADERS {
        let answer = send(listeners.ask(profile, "/").bearer_auth(&token)).await;
        assert_eq!(answer.headers()["authorization"], "", "{profile:?}");
        let answer = send(listeners.ask(profile, "/").header("cookie", format!("a=1; t={token}; b=ü"))).await;
        assert_eq!(answer.headers()["cookie"].as_bytes(), "a=1; b=ü".as_bytes(), "{profile:?}");
    }
    let answer = send(listeners.ask(Profile::Envoy, "/").bearer_auth(&token)).await;
    assert_eq!(answer.headers()["x-envoy-auth-headers-to-remove"], "authorization");
    for (_, profile) in Profile::NAMED {
        let answer = send(listeners.ask(profile, &format!("/?t={token}"))).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{profile:?} cannot change the query");
    }
}

#[tokio::test]
async fn every_listener_has_the_same_verdict() {
    let other = SigningKey::generate("k", SigningAlgorithm::ES256);
    let listeners = Listeners::open(|_| {}, |_| {}).await;
    let token = listeners.token();
    let signed = |claims: Value| format!("Bearer {}", listeners.key.sign(&claims));
    let large = "x".repeat(10_000);
    for (what, headers) in [
        ("good", vec![("authorization", format!("Bearer {token}"))]),
        ("none", vec![]),
        ("empty", vec![("authorization", String::new())]),
        ("basic", vec![("authorization", "Basic dTpw".to_owned())]),
        ("no token", vec![("authorization", "Bearer x".to_owned())]),
        ("two", vec![("authorization", format!("Bearer {token}, Bearer {token}"))]),
        ("forged", vec![("authorization", format!("Bearer {}", other.sign(&claims())))]),
        ("other kid", vec![("authorization", format!("Bearer {}", other.with_kid("z").sign(&claims())))]),
        ("expired", vec![("authorization", signed(with_claim(claims(), "exp", NOW - 60)))]),
        ("early", vec![("authorization", signed(with_claim(claims(), "nbf", NOW + 60)))]),
        ("elsewhere", vec![("authorization", signed(with_claim(claims(), "aud", "other")))]),
        ("stranger", vec![("authorization", signed(with_claim(claims(), "iss", "https://x")))]),
        ("large", vec![("authorization", signed(with_claim(claims(), "tenant_id", large)))]),
        ("grpc", vec![("content-type", "application/grpc".to_owned())]),
        (
            "controls",
            vec![("authorization", signed(with_claim(claims(), "tenant_id", "a\r\nx-evil: 1\u{e9}")))],
        ),
    ] {
        let mut ask = Ask::default();
        for (name, value) in &headers {
            ask = ask.header(*name, value);
        }
        let expected = listeners.service.ask(ask).await;
        for (_, profile) in Profile::NAMED {
            let mut request = listeners.ask(profile, "/orders");
            for (name, value) in &headers {
                request = request.header(*name, value);
            }
            let answer = send(request).await;
            assert_eq!(i32::from(answer.status().as_u16()), expected.http_status, "{what} {profile:?}");
            for (name, value) in &expected.set {
                assert_eq!(answer.headers()[name.as_str()], value.as_str(), "{what} {profile:?}");
            }
            assert_eq!(answer.text().await.expect("text"), expected.body, "{what} {profile:?}");
        }
    }
}

#[tokio::test]
async fn unavailable_keys_are_503_with_retry_after() {
    let issuer = Issuer::start().await.expect("a free port");
    let key = issuer.rotate(SigningAlgorithm::ES256);
    issuer.stop().await;
    let providers: Vec<ProviderConfig> =
        vec![support::fetching(provider("p", issuer.issuer()), &issuer, support::prompt_refresh())];
    let service = Running::start_without_keys(with_http_doors(config(providers)), fixed_clock()).await;
    let url = format!("http://{}/", service.http_door(Profile::Envoy));
    let request = reqwest::Client::new().get(url).bearer_auth(key.sign(&issuer.claims(NOW)));
    let answer = send(request).await;
    assert_eq!(
        (answer.status(), &answer.headers()["retry-after"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().expect("a value"))
    );
}

/// The response to these bytes, until the listener closes the connection or this much has arrived.
fn exchange(address: SocketAddr, bytes: Vec<u8>) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    // A listener may close the connection before all is sent.
    let _closed_early = stream.write_all(&bytes);
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    while answer.len() < 64 * 1024 && !answer.ends_with(b"\r\n\r\n") {
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(count) => answer.extend_from_slice(&chunk[..count]),
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// Listeners with this rule, and one that denies /admin.
async fn with_rules(rule: &str) -> Listeners {
    let text = format!(
        "listen: {{ext_authz: '127.0.0.1:0'}}
providers: [{{name: p, issuer: https://i, audiences: [a]}}]
rules:{rule}
  - {{name: admin, match: {{path_prefix: /admin}}, deny: true}}
"
    );
    let rules = Config::parse(&text, &|_| None).expect("is valid").rules;
    Listeners::open(|_| {}, |config| config.rules = rules).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_url_of_ingress_nginx_has_a_host_and_a_path_that_all_programs_read_alike() {
    // By host the core itself refuses an invalid one.
    let by_host = "
  - {name: public, match: {path_prefix: /public, hosts: [a.example]}, allow: anonymous}";
    let by_path = "
  - {name: public, match: {path_prefix: /public}, allow: anonymous}";
    for (public, elsewhere) in [(by_host, "HTTP/1.1 401"), (by_path, "HTTP/1.1 200")] {
        let listeners = with_rules(public).await;
        let address = listeners.service.http_door(Profile::IngressNginx);
        for (url, expected) in [
            ("http://a.example/public/x", "HTTP/1.1 200"),
            ("https://A.EXAMPLE:8443/public", "HTTP/1.1 200"),
            ("http://b.example/public/x", elsewhere),
            ("http://a.example/admin/x", "HTTP/1.1 403"),
            ("http://a.example/public/../admin", "HTTP/1.1 400"),
            // What NGINX sends for `Host: a.example?` and other hosts that it accepts.
            ("http://a.example?/admin/x", "HTTP/1.1 400"),
            ("http://a.example?/public/x", "HTTP/1.1 400"),
            ("http://a.example#/public/x", "HTTP/1.1 400"),
            ("http://user@a.example/public/x", "HTTP/1.1 400"),
            ("http://b.example,a.example/public/x", "HTTP/1.1 400"),
            ("http:///public/x", "HTTP/1.1 400"),
            ("http://a.example", "HTTP/1.1 400"),
            ("/public/x", "HTTP/1.1 400"),
            ("", "HTTP/1.1 400"),
        ] {
            // Everything else of the request describes one that is allowed.
            let head = "GET /public/x HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\nx-original-method: GET\r\n";
            let bytes = format!("{head}x-original-url: {url}\r\n\r\n").into_bytes();
            let answer =
                tokio::task::spawn_blocking(move || exchange(address, bytes)).await.expect("no panic");
            assert!(answer.starts_with(expected), "{url}: {answer:.200}");
        }
    }
    let listeners = with_rules(by_path).await;
    let address = listeners.service.http_door(Profile::IngressNginx);
    // The client's, since the annotations replace it in no request.
    let bytes = b"GET / HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\nx-original-method: GET\r\n\
        x-original-url: http://a.example/public\r\nx-original-uri: /admin\r\n\r\n";
    let answer =
        tokio::task::spawn_blocking(move || exchange(address, bytes.to_vec())).await.expect("no panic");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer:.200}");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_or_too_long_headers_are_rejected_and_invalid_http_is_never_allowed() {
    let listeners = Listeners::plain().await;
    let address = listeners.service.http_door(Profile::Envoy);
    let bearer = format!("authorization: Bearer {}\r\n", listeners.token());
    let request = |headers: String| {
        format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}\r\n").into_bytes()
    };
    let numbered = |count: usize| (0..count).map(|i| format!("x-{i}: 1\r\n")).collect::<String>();
    let (few, many, too_many) = (numbered(400), numbered(600), numbered(1_100));
    for (what, bytes, expected) in [
        ("good", request(bearer.clone()), "HTTP/1.1 200"),
        ("good, with many that fit", request(format!("{bearer}{}", few)), "HTTP/1.1 200"),
        ("long that fits", request(format!("{bearer}x: {}\r\n", "y".repeat(100_000))), "HTTP/1.1 200"),
        ("many", request(format!("{bearer}{many}")), "HTTP/1.1 431"),
        ("too many to be read", request(format!("{bearer}{too_many}")), "HTTP/1.1 431"),
        ("long", request(format!("{bearer}x: {}\r\n", "y".repeat(150_000))), "HTTP/1.1 431"),
        ("too long to be read", request(format!("{bearer}x: {}\r\n", "y".repeat(300_000))), "HTTP/1.1 431"),
        (
            "long path",
            format!("GET /{} HTTP/1.1\r\nhost: a\r\n{bearer}\r\n", "y".repeat(100_000)).into_bytes(),
            "HTTP/1.1 4",
        ),
        ("not HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), ""),
        ("not HTTP either", b"NONSENSE\r\n\r\n".to_vec(), "HTTP/1.1 400"),
        ("a space before the colon", request(format!("{bearer}x : a\r\n")), "HTTP/1.1 400"),
    ] {
        let answer = tokio::task::spawn_blocking(move || exchange(address, bytes)).await.expect("no panic");
        assert!(answer.starts_with(expected), "{what}: {answer:.200}");
    }
    let malformed = r#"verdict="deny",reason="request_malformed""#;
    let metrics = listeners.service.admin("/metrics").await;
    assert!(metrics.lines().any(|line| line.contains(malformed) && line.ends_with("} 8")), "{metrics}");
    // RFC 9112 §6.3: chunked encoding overrides a content length, and data after the last chunk is ignored.
    let two_lengths = "content-length: 4\r\ntransfer-encoding: chunked\r\n";
    let bytes = format!("POST / HTTP/1.1\r\nhost: a\r\n{two_lengths}{bearer}\r\n0\r\n\r\n").into_bytes();
    let answer = tokio::task::spawn_blocking(move || exchange(address, bytes)).await.expect("no panic");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn http2_without_tls_and_many_requests_on_one_connection_are_supported() {
    let listeners = Listeners::plain().await;
    let http2 = Client::builder().no_proxy().http2_prior_knowledge().build().expect("a plain client");
    let url = format!("http://{}/orders", listeners.service.http_door(Profile::Envoy));
    for _ in 0..100 {
        let answer = send(http2.get(&url).bearer_auth(listeners.token())).await;
        assert_eq!((answer.status(), answer.version()), (StatusCode::OK, reqwest::Version::HTTP_2));
    }
    let address = listeners.service.http_door(Profile::Envoy);
    let one = format!("GET / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n", listeners.token());
    let twice = format!("{one}GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").into_bytes();
    let answers = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(&twice).expect("is sent");
        let mut answers = String::new();
        stream.read_to_string(&mut answers).expect("text, and then the end");
        answers
    });
    let answers = answers.await.expect("no panic");
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 1, "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 401").count(), 1, "a token applies to one request");
}

#[tokio::test(start_paused = true)]
async fn slow_headers_and_silent_connections_time_out() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let listeners = Listeners::plain().await;
    for sent in ["", "PRI * HTTP/2.0\r\n", "G", "GET / HTTP/1.1\r\nhost: a\r\nauthorization: Bear"] {
        let address = listeners.service.http_door(Profile::Envoy);
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
        stream.write_all(sent.as_bytes()).await.expect("is sent");
        let mut answer = String::new();
        // Ends with the connection. The paused clock advances while all tasks are idle.
        let _reset = stream.read_to_string(&mut answer).await;
        assert!(!answer.contains("200"), "{sent}: {answer}");
    }
}

#[tokio::test]
async fn a_request_in_flight_is_completed_before_the_service_stops() {
    let issuer = Issuer::start().await.expect("a free port");
    let key = issuer.rotate(SigningAlgorithm::ES256);
    let providers =
        vec![support::fetching(provider("p", issuer.issuer()), &issuer, support::prompt_refresh())];
    let mut config = with_http_doors(config(providers));
    config.shutdown = Shutdown { drain_delay: Duration::ZERO, grace: Duration::from_secs(20) };
    let app = App::bind(config, fixed_clock()).await.expect("port 0 can be bound");
    let address = *app.forward_auth_addresses().last().expect("the listener of the envoy profile");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(app.serve(async {
        let _closed = stopped.await;
    }));
    let client = Client::builder().no_proxy().build().expect("a plain client");
    let ask = |key: &SigningKey| {
        client.get(format!("http://{address}/")).bearer_auth(key.sign(&issuer.claims(NOW)))
    };
    assert_eq!(send(ask(&key)).await.status(), StatusCode::OK);
    issuer.hold();
    let new = issuer.rotate_beside(SigningAlgorithm::ES256);
    let in_flight = tokio::spawn(send(ask(&new)));
    issuer.wait_for_held(1).await;
    stop.send(()).expect("is serving");
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    issuer.release();
    assert_eq!(in_flight.await.expect("no panic").status(), StatusCode::OK);
    serving.await.expect("no panic");
}

#[tokio::test]
async fn a_tls_listener_requires_client_certificates_if_configured() {
    let pki = Pki::new();
    let key = SigningKey::generate("k", SigningAlgorithm::ES256);
    let mut config = config(vec![inline(provider("p", ISSUER), &[key.public_jwk()])]);
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = |tls| HttpListener {
        address,
        profile: Profile::Envoy,
        client_headers: ClaimHeaders::MaybeKept,
        tls: Some(tls),
    };
    config.listen.forward_auth =
        vec![listener(pki.files()), listener(TlsFiles { client_ca_file: None, ..pki.files() })];
    let app = App::bind(config, fixed_clock()).await.expect("port 0 can be bound");
    let ports: Vec<u16> = app.forward_auth_addresses().iter().map(SocketAddr::port).collect();
    tokio::spawn(app.serve(std::future::pending()));

    let trusting = || {
        let authority = reqwest::Certificate::from_pem(pki.ca.as_bytes()).expect("a certificate");
        Client::builder().no_proxy().tls_certs_only([authority])
    };
    let identity = reqwest::Identity::from_pem([&*pki.client.0, &*pki.client.1].concat().as_bytes());
    let stranger = trusting().build().expect("a client");
    let known = trusting().identity(identity.expect("a pair")).build().expect("a client");
    let ask = |client: &Client, port: u16| {
        client.get(format!("https://localhost:{port}/")).bearer_auth(key.sign(&claims())).send()
    };
    assert!(ask(&stranger, ports[0]).await.is_err(), "without a certificate");
    assert_eq!(ask(&known, ports[0]).await.expect("answers").status(), StatusCode::OK);
    let answer = ask(&stranger, ports[1]).await.expect("answers");
    assert_eq!((answer.status(), answer.version()), (StatusCode::OK, reqwest::Version::HTTP_2));
    assert!(reqwest::get(format!("http://localhost:{}/", ports[1])).await.is_err(), "without TLS");
}

#[tokio::test]
async fn invalid_tls_files_fail_the_start_with_their_key_and_path() {
    let pki = Pki::new();
    let wrong = pki.directory.path().join("wrong.pem");
    std::fs::write(&wrong, "no PEM").expect("can be written");
    for (name, files) in [
        ("cert_file", TlsFiles { cert_file: wrong.clone(), ..pki.files() }),
        ("key_file", TlsFiles { key_file: wrong.clone(), ..pki.files() }),
        ("client_ca_file", TlsFiles { client_ca_file: Some(wrong.clone()), ..pki.files() }),
    ] {
        let key = SigningKey::generate("k", SigningAlgorithm::ES256);
        let mut config = config(vec![inline(provider("p", ISSUER), &[key.public_jwk()])]);
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        config.listen.forward_auth = vec![HttpListener {
            address,
            profile: Profile::Nginx,
            client_headers: ClaimHeaders::MaybeKept,
            tls: Some(files),
        }];
        let refused = App::bind(config, fixed_clock()).await.expect_err("no PEM").to_string();
        assert!(
            refused.starts_with(&format!("listen.forward_auth.tls.{name}: "))
                && refused.contains("wrong.pem"),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn a_token_that_must_not_be_forwarded_is_refused_where_the_proxy_removes_none() {
    let key = SigningKey::generate("k", SigningAlgorithm::ES256);
    let mut kept_back = provider("a", "https://a.example.com");
    kept_back.forward_token = false;
    let x_tok = TokenSource::Header { name: "x-tok".parse().expect("a name"), scheme: None };
    kept_back.token_from = vec![x_tok];
    let mut forwarded = provider("b", "https://b.example.com");
    forwarded.token_from = vec![TokenSource::default(), TokenSource::Cookie("t".into())];
    let jwks = [key.public_jwk()];
    let config = with_http_doors(config(vec![inline(kept_back, &jwks), inline(forwarded, &jwks)]));
    let service = Running::start(config, fixed_clock()).await;
    let claims = json!({"iss": "https://a.example.com", "aud": "orders-api", "sub": "alice", "exp": NOW + 60, "tenant_id": "acme"});
    let token = key.sign(&claims);
    for (profile, method, uri) in [
        (Profile::Nginx, "x-original-method", "x-original-uri"),
        (Profile::Traefik, "x-forwarded-method", "x-forwarded-uri"),
    ] {
        let url = format!("http://{}/", service.http_door(profile));
        let ask = || {
            reqwest::Client::new()
                .get(&url)
                .header(method, "GET")
                .header(uri, "/orders")
                .header("x-tok", &token)
        };
        let status = async |request: reqwest::RequestBuilder| {
            request.send().await.expect("an answer").status().as_u16()
        };
        assert_eq!(status(ask()).await, 200, "{profile:?}");
        assert_eq!(status(ask().bearer_auth(&token)).await, 400, "{profile:?}");
        assert_eq!(status(ask().header("cookie", format!("t={token}; s=1"))).await, 400, "{profile:?}");
    }
}
