//! Responses, in process: challenges, bodies and headers of denials for each kind of client, claims in headers and in Envoy's
//! metadata, and the protected resource metadata (RFC 9728).

use crate::support::{Answer, Ask, NOW, Running, fixed_clock, with_http_doors};
use envoy_types::pb::google::protobuf::Value as ProtoValue;
use envoy_types::pb::google::protobuf::value::Kind;
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey, with_claim};
use portcullis::config::{Config, Profile};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

const ISSUER: &str = "https://sso.example.com";
const METADATA: &str = "https://api.example.com/.well-known/oauth-protected-resource";

struct TestEnv {
    key: SigningKey,
    service: Running,
}

impl TestEnv {
    /// A service with one provider that has these lines, followed by these sections.
    async fn with(provider: &str, sections: &str) -> Self {
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
        Self { key, service: Running::start(with_http_doors(config), fixed_clock()).await }
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
