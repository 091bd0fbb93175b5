//! Responses, in process: challenges, bodies and headers of denials for each kind of client, claims in headers and in Envoy's
//! metadata, and the protected resource metadata (RFC 9728).

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::header::VARY;
use axum::http::{HeaderMap, HeaderName, Request};
use axum::routing::any;
use envoy_types::pb::google::protobuf::Value as ProtoValue;
use envoy_types::pb::google::protobuf::value::Kind;
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey, with_claim};
use portcullis::config::{Config, Profile};
use portcullis_tower::AuthorizationLayer;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tower::{Layer, ServiceExt as _};

use crate::support::{Answer, Ask, NOW, Running, fixed_clock, with_http_doors};

const ISSUER: &str = "https://sso.example.com";
const METADATA: &str = "https://api.example.com/.well-known/oauth-protected-resource";

struct TestEnv {
    key: SigningKey,
    service: Running,
}

impl TestEnv {
    /// A service with one provider that has these lines, followed by these sections.
    async fn with(provider: &str, sections: &str) -> Self {
        let (key, config) = Self::config(provider, sections);
        Self { key, service: Running::start(with_http_doors(config), fixed_clock()).await }
    }

    fn config(provider: &str, sections: &str) -> (SigningKey, Config) {
        let key = SigningKey::generate("k", SigningAlgorithm::ES256);
        let jwks = json!({"keys": [key.public_jwk()]});
        let provider: String = provider.lines().map(|line| format!("    {line}\n")).collect();
        let text = format!(
            "listen: {{ext_authz: '127.0.0.1:0', admin: '127.0.0.1:0'}}
providers:
  - name: p
    issuer: {ISSUER}
    audiences: [a]
    jwks: {jwks}
{provider}{sections}"
        );
        let config = Config::parse(&text, &|_| None).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        (key, config)
    }

    /// A service with one provider and these sections, of which not every provider has keys.
    async fn without_waiting(sections: &str) -> Self {
        let (key, config) = Self::config("", sections);
        Self { key, service: Running::start_without_keys(with_http_doors(config), fixed_clock()).await }
    }

    async fn ask(&self, claims: &Value) -> Answer {
        self.service.bearer(&self.key.sign(claims)).await
    }
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": "a", "sub": "alice", "exp": NOW + 300})
}

#[tokio::test]
async fn a_challenge_has_each_scheme_and_realm_of_a_rule_once() {
    let second = "  - {name: q, issuer: 'https://other.example.com', audiences: [a], realm: globex, jwks_file: /dev/null,
     token_from: [{header: authorization, scheme: Bearer}, {header: x-api, scheme: Token}]}
  - {name: r, issuer: 'https://third.example.com', audiences: [a], jwks_file: /dev/null, token_from: [{cookie: t}]}
  - {name: s, issuer: 'https://fourth.example.com', audiences: [a], realm: acme, jwks_file: /dev/null,
     token_from: [{header: authorization, scheme: bearer}]}
";
    let rules = "rules:
  - {name: one, match: {path: /one}, providers: [q]}
  - {name: two, match: {path: /two}, providers: [p]}
";
    let env = {
        let key = SigningKey::generate("k", SigningAlgorithm::ES256);
        let jwks = json!({"keys": [key.public_jwk()]});
        let text = format!(
            "listen: {{ext_authz: '127.0.0.1:0', admin: '127.0.0.1:0'}}
providers:
  - {{name: p, issuer: {ISSUER}, audiences: [a], realm: acme, jwks: {jwks}}}
{second}{rules}"
        );
        let config = Config::parse(&text, &|_| None).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        TestEnv { key, service: Running::start_without_keys(config, fixed_clock()).await }
    };
    let challenge = async |path: &str| {
        let answer = env.service.ask(Ask::default().path(path)).await;
        answer.www_authenticate().expect("a challenge").to_owned()
    };
    assert_eq!(challenge("/one").await, "Bearer realm=\"globex\", Token realm=\"globex\"");
    assert_eq!(challenge("/two").await, "Bearer realm=\"acme\"");
    assert_eq!(
        challenge("/").await,
        "Bearer realm=\"acme\", Bearer realm=\"globex\", Token realm=\"globex\", Bearer realm=\"portcullis\""
    );
    // The challenge for a token with a known issuer has only that provider's realm.
    let expired = env.ask(&with_claim(claims(), "exp", NOW - 3600)).await;
    assert_eq!(
        expired.www_authenticate(),
        Some("Bearer realm=\"acme\", error=\"invalid_token\", error_description=\"the token has expired\"")
    );
}

#[tokio::test]
async fn every_challenge_has_the_resource_metadata_url() {
    let rules = "rules:\n  - {name: s, match: {path: /scope}, require: {scopes: [x]}}\n";
    let env = TestEnv::with("", &format!("{rules}responses: {{resource_metadata: '{METADATA}'}}\n")).await;
    let parameter = format!("resource_metadata=\"{METADATA}\"");
    let missing = env.service.ask(Ask::default().path("/other")).await;
    assert_eq!(missing.www_authenticate(), Some(&*format!("Bearer realm=\"portcullis\", {parameter}")));
    let expired = env.ask(&with_claim(claims(), "exp", 1)).await;
    assert!(expired.www_authenticate().expect("a challenge").ends_with(&parameter));
    let token = env.key.sign(&claims());
    let ask = Ask::default().path("/scope").header("authorization", format!("Bearer {token}"));
    let scope = env.service.ask(ask).await;
    assert!(scope.www_authenticate().expect("a challenge").ends_with(&format!("scope=\"x\", {parameter}")));
}

#[tokio::test]
async fn an_http_listener_serves_the_resource_metadata_and_still_decides_checks() {
    let rules = "rules:\n  - {name: s, match: {path: /scope}, require: {scopes: [x, b]}}\n";
    let provider = "token_from: [{header: authorization, scheme: Bearer}, {cookie: c}, {query: q}]";
    let responses = format!("responses: {{resource_metadata: '{METADATA}/orders'}}\n");
    let env = TestEnv::with(provider, &format!("{rules}{responses}")).await;
    let client = Client::builder().no_proxy().build().expect("a plain client");
    let path = "/.well-known/oauth-protected-resource/orders";
    for (name, profile) in Profile::NAMED {
        let url = |path: &str| format!("http://{}{path}", env.service.http_door(profile));
        let get = client.get(url(path)).send().await.expect("the listener answers");
        if profile == Profile::Envoy {
            // With this profile every request is a check, and a 200 would allow it.
            assert_eq!(get.status(), StatusCode::UNAUTHORIZED);
            continue;
        }
        assert_eq!(get.status(), StatusCode::OK, "{name}");
        assert_eq!(get.headers()["content-type"], "application/json");
        assert_eq!(get.headers()["access-control-allow-origin"], "*");
        let document: Value = serde_json::from_str(&get.text().await.expect("text")).expect("JSON");
        let expected = json!({
            "resource": "https://api.example.com/orders",
            "authorization_servers": [ISSUER],
            "bearer_methods_supported": ["header", "query"],
            "scopes_supported": ["b", "x"],
        });
        assert_eq!(document, expected, "{name}");
        for (header, value) in [("x-original-uri", path), ("x-forwarded-uri", path)] {
            let check = client.get(url(path)).header(header, value).header("x-original-method", "GET");
            let check = check.header("x-forwarded-method", "GET").header("x-forwarded-host", "h");
            let status = check.send().await.expect("the listener answers").status();
            assert_ne!(status, StatusCode::OK, "{name} {header}");
        }
        for (method, path) in [("POST", path), ("GET", "/.well-known/oauth-protected-resource"), ("GET", "/")]
        {
            let method = method.parse().expect("a method");
            let other = client.request(method, url(path)).send().await.expect("the listener answers");
            assert_eq!(other.status(), StatusCode::BAD_REQUEST, "{name} {path}");
        }
    }
}

#[tokio::test]
async fn a_denial_depends_on_the_kind_of_client() {
    let env = TestEnv::with("", "").await;
    for (content_type, has_body, grpc_status) in [
        ("application/json", true, None),
        ("text/html", true, None),
        ("application/grpc", false, None),
        ("application/grpc+proto", false, None),
        ("APPLICATION/GRPC;x", false, None),
        ("application/grpc-web", false, Some("16")),
        ("application/grpc-web-text", false, Some("16")),
        ("application/grpc-web+proto", false, Some("16")),
    ] {
        let answer = env.service.ask(Ask::default().header("content-type", content_type)).await;
        assert_eq!(answer.http_status, 401, "{content_type}");
        assert_eq!(!answer.body.is_empty(), has_body, "{content_type}");
        assert_eq!(answer.set.contains_key("content-type"), has_body, "{content_type}");
        assert_eq!(answer.set.get("grpc-status").map(String::as_str), grpc_status, "{content_type}");
        let message = grpc_status.map(|_| "a bearer token is required");
        assert_eq!(answer.set.get("grpc-message").map(String::as_str), message, "{content_type}");
        assert!(answer.www_authenticate().is_some());
    }
}

#[tokio::test]
async fn a_reason_may_have_its_own_body_and_headers_on_every_listener() {
    let responses = r#"responses:
  body: {token_missing: '<p>log in</p>', expired: '{"again": true}'}
  headers:
    token_missing: {Content-Type: text/html, x-login: 'https://sso.example.com/login'}
    keys_unavailable: {x-none: 'none'}
"#;
    let env = TestEnv::with("", responses).await;
    let missing = env.service.ask(Ask::default()).await;
    assert_eq!((missing.http_status, missing.body.as_str()), (401, "<p>log in</p>"));
    assert_eq!(missing.set["content-type"], "text/html");
    assert_eq!(missing.set["x-login"], "https://sso.example.com/login");
    assert!(missing.www_authenticate().is_some());
    let expired = env.ask(&with_claim(claims(), "exp", 1)).await;
    assert_eq!(expired.body, r#"{"again": true}"#);
    assert_eq!(expired.set["content-type"], "application/json");
    assert!(!expired.set.contains_key("x-login"));
    let other = env.ask(&with_claim(claims(), "aud", "b")).await;
    assert!(other.body.contains("invalid_token"), "other reasons have the default body");
    let grpc = env.service.ask(Ask::default().header("content-type", "application/grpc")).await;
    assert_eq!(grpc.body, "");
    let door = format!("http://{}/", env.service.http_door(Profile::Envoy));
    let client = Client::builder().no_proxy().build().expect("a plain client");
    let answer = client.get(door).send().await.expect("the listener answers");
    assert_eq!(answer.headers()["x-login"], "https://sso.example.com/login");
    assert_eq!(answer.text().await.expect("text"), "<p>log in</p>");
}

/// The headers of CORS in a denial.
fn cors_headers(headers: &HeaderMap) -> BTreeMap<String, String> {
    let is_cors = |name: &HeaderName| name.as_str().starts_with("access-control-") || *name == VARY;
    let of_cors = headers.iter().filter(|(name, _)| is_cors(name));
    of_cors.map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned())).collect()
}

/// The status and the headers of CORS at every door for a request to this path, with this origin and token.
async fn cors_at_every_door(
    service: &Running,
    path: &str,
    origin: &str,
    token: Option<&str>,
) -> Vec<(String, u16, BTreeMap<String, String>)> {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let mut ask = Ask::default().path(path).header("origin", origin);
    if let Some(bearer) = &bearer {
        ask = ask.header("authorization", bearer);
    }
    let grpc = service.ask(ask).await;
    let names =
        grpc.set.iter().map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")));
    let status = u16::try_from(grpc.http_status).expect("a status");
    let mut all = vec![("ext_authz".to_owned(), status, cors_headers(&names.collect()))];
    let client = Client::builder().no_proxy().build().expect("a plain client");
    for (name, profile) in Profile::NAMED {
        let target = if profile == Profile::Envoy { path } else { "/" };
        let mut request =
            client.get(format!("http://{}{target}", service.http_door(profile))).header("origin", origin);
        request = match profile {
            Profile::Envoy => request,
            Profile::Nginx => request.header("x-original-method", "GET").header("x-original-uri", path),
            Profile::IngressNginx => request
                .header("x-original-method", "GET")
                .header("x-original-url", format!("https://api.example.com{path}")),
            Profile::Haproxy | Profile::Caddy | Profile::Traefik => request
                .header("x-forwarded-method", "GET")
                .header("x-forwarded-uri", path)
                .header("x-forwarded-host", "api.example.com"),
        };
        if let Some(bearer) = &bearer {
            request = request.header("authorization", bearer);
        }
        let response = request.send().await.expect("the listener answers");
        all.push((name.to_owned(), response.status().as_u16(), cors_headers(response.headers())));
    }
    let mut request = Request::get(path).header("host", "api.example.com").header("origin", origin);
    if let Some(bearer) = &bearer {
        request = request.header("authorization", bearer);
    }
    let layer = AuthorizationLayer::new(Arc::clone(service.shared_service()));
    let routes = layer.layer(Router::new().fallback(any(async || "ok")));
    let response =
        routes.oneshot(request.body(Body::empty()).expect("a request")).await.expect("never fails");
    all.push(("tower".to_owned(), response.status().as_u16(), cors_headers(response.headers())));
    all
}

#[tokio::test]
async fn a_page_of_a_listed_origin_can_read_every_denial_of_every_door() {
    let sections = "rules:
  - {name: closed, match: {path_prefix: /closed}, deny: true}
  - {name: unavailable, match: {path_prefix: /down}, providers: [down]}
responses: {cors: {allow_origins: ['https://app.example.com', 'https://*.example.org'], allow_credentials: true}}
";
    let down = "  - {name: down, issuer: 'https://down.example.com', audiences: [a], jwks_file: /dev/null,
     refresh: {wait: 50ms}}\n";
    let env = TestEnv::without_waiting(&format!("{down}{sections}")).await;
    let token = env.key.sign(&claims());
    let no_keys = env.key.sign(&with_claim(claims(), "iss", "https://down.example.com"));
    let readable = |origin: &str| {
        BTreeMap::from([
            ("access-control-allow-origin".to_owned(), origin.to_owned()),
            ("access-control-allow-credentials".to_owned(), "true".to_owned()),
            ("access-control-expose-headers".to_owned(), "WWW-Authenticate".to_owned()),
            ("vary".to_owned(), "Origin".to_owned()),
        ])
    };
    let not_readable = BTreeMap::from([("vary".to_owned(), "Origin".to_owned())]);
    for (path, token, status) in [
        ("/orders", None, 401),
        ("/closed/a", Some(&token), 403),
        ("/a%2fb", Some(&token), 400),
        ("/down", Some(&no_keys), 503),
    ] {
        let token = token.map(String::as_str);
        for origin in ["https://app.example.com", "https://a.b.example.org"] {
            for (door, sent, headers) in cors_at_every_door(&env.service, path, origin, token).await {
                assert_eq!((sent, headers), (status, readable(origin)), "{door} {path}");
            }
        }
        for origin in ["https://evil.example", "https://example.org", "null"] {
            for (door, sent, headers) in cors_at_every_door(&env.service, path, origin, token).await {
                assert_eq!((sent, &headers), (status, &not_readable), "{door} {path} {origin}");
            }
        }
    }
    let allowed = cors_at_every_door(&env.service, "/orders", "https://app.example.com", Some(&token)).await;
    for (door, status, headers) in allowed {
        assert_eq!((status, headers), (200, BTreeMap::new()), "{door}: the application answers");
    }
}

#[tokio::test]
async fn without_cors_no_denial_has_a_header_of_it() {
    let env = TestEnv::with("", "").await;
    for (door, status, headers) in
        cors_at_every_door(&env.service, "/orders", "https://app.example.com", None).await
    {
        assert_eq!((status, headers), (401, BTreeMap::new()), "{door}");
    }
}

#[tokio::test]
async fn claims_are_sent_as_headers_payload_and_metadata() {
    let provider = "claim_headers: {x-name: {claim: name, encoding: base64url}, x-plain: name}
payload_header: x-payload
metadata_claims: [tenant, /a/b, missing, count, large, list]";
    let env = TestEnv::with(provider, "").await;
    let mut claims = claims();
    claims["name"] = json!("Zoë \n");
    claims["tenant"] = json!("acme");
    claims["a"] = json!({"b": {"c": [true, null]}});
    claims["count"] = json!(3);
    claims["large"] = json!(9_007_199_254_740_993_u64);
    claims["list"] = json!(["x"]);
    let token = env.key.sign(&claims);
    let ask = Ask::default().header("authorization", format!("Bearer {token}")).header("x-payload", "forged");
    let answer = env.service.ask(ask).await;
    assert_eq!(answer.set["x-name"], "Wm_DqyAK");
    assert_eq!(answer.set["x-plain"], "Zo%C3%AB %0A");
    assert_eq!(Some(answer.set["x-payload"].as_str()), token.split('.').nth(1));
    let metadata = answer.response.dynamic_metadata.expect("metadata");
    let Some(Kind::StructValue(shared)) = &metadata.fields["claims"].kind else { panic!("{metadata:?}") };
    let names: Vec<&str> = {
        let mut names: Vec<&str> = shared.fields.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(names, ["/a/b", "count", "large", "list", "tenant"]);
    let kind = |name: &str| shared.fields[name].kind.clone().expect("a value");
    assert_eq!(kind("count"), Kind::NumberValue(3.0));
    assert_eq!(kind("large"), Kind::StringValue("9007199254740993".into()), "a double does not hold it");
    let Kind::ListValue(list) = kind("list") else { panic!("a list") };
    assert_eq!(list.values, [ProtoValue { kind: Some(Kind::StringValue("x".into())) }]);
}

#[tokio::test]
async fn the_payload_header_counts_towards_the_header_limit_and_is_removed_from_requests() {
    let env = TestEnv::with("payload_header: x-payload", "limits: {claim_header_bytes: 512}\n").await;
    let large = with_claim(claims(), "note", "x".repeat(600));
    assert_eq!(env.ask(&large).await.reason(), "claim_too_large");
    let token = env.key.sign(&claims());
    let ask = Ask::default().header("authorization", format!("Bearer {token}")).header("x_payload", "forged");
    assert!(env.service.ask(ask).await.removed.contains(&"x_payload".to_owned()));
}
