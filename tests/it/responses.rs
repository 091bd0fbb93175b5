//! What goes out, in process: challenges, bodies and headers of denials for each kind of caller, claims in
//! headers and in Envoy's metadata, and the metadata of the resource.

use crate::support::{Answer, Ask, NOW, Running, fixed_clock, with_http_doors};
use envoy_types::pb::google::protobuf::Value as ProtoValue;
use envoy_types::pb::google::protobuf::value::Kind;
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey, with_claim};
use portcullis::config::{Config, Profile};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

const ISSUER: &str = "https://sso.example.com";
const METADATA: &str = "https://api.example.com/.well-known/oauth-protected-resource";

struct House {
    key: SigningKey,
    service: Running,
}

impl House {
    /// A service with one provider that has these lines, and these sections behind it.
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
async fn a_challenge_offers_each_scheme_and_realm_that_a_rule_lets_in_once() {
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
    let house = {
        let key = SigningKey::generate("k", SigningAlgorithm::ES256);
        let jwks = json!({"keys": [key.public_jwk()]});
        let text = format!(
            "listen: {{ext_authz: '127.0.0.1:0', admin: '127.0.0.1:0'}}
providers:
  - {{name: p, issuer: {ISSUER}, audiences: [a], realm: acme, jwks: {jwks}}}
{second}{rules}"
        );
        let config = Config::parse(&text, &|_| None).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        House { key, service: Running::start_without_keys(config, fixed_clock()).await }
    };
    let challenge = async |path: &str| {
        let answer = house.service.ask(Ask::default().path(path)).await;
        answer.www_authenticate().expect("a challenge").to_owned()
    };
    assert_eq!(challenge("/one").await, "Bearer realm=\"globex\", Token realm=\"globex\"");
    assert_eq!(challenge("/two").await, "Bearer realm=\"acme\"");
    assert_eq!(
        challenge("/").await,
        "Bearer realm=\"acme\", Bearer realm=\"globex\", Token realm=\"globex\", Bearer realm=\"portcullis\""
    );
    // A token that names its provider is answered in that one's name alone.
    let expired = house.ask(&with_claim(claims(), "exp", NOW - 3600)).await;
    assert_eq!(
        expired.www_authenticate(),
        Some("Bearer realm=\"acme\", error=\"invalid_token\", error_description=\"the token has expired\"")
    );
}

#[tokio::test]
async fn every_challenge_names_the_metadata_of_the_resource() {
    let rules = "rules:\n  - {name: s, match: {path: /scope}, require: {scopes: [x]}}\n";
    let house = House::with("", &format!("{rules}responses: {{resource_metadata: '{METADATA}'}}\n")).await;
    let named = format!("resource_metadata=\"{METADATA}\"");
    let missing = house.service.ask(Ask::default().path("/other")).await;
    assert_eq!(missing.www_authenticate(), Some(&*format!("Bearer realm=\"portcullis\", {named}")));
    let expired = house.ask(&with_claim(claims(), "exp", 1)).await;
    assert!(expired.www_authenticate().expect("a challenge").ends_with(&named));
    let token = house.key.sign(&claims());
    let ask = Ask::default().path("/scope").header("authorization", format!("Bearer {token}"));
    let scope = house.service.ask(ask).await;
    assert!(scope.www_authenticate().expect("a challenge").ends_with(&format!("scope=\"x\", {named}")));
}

#[tokio::test]
async fn an_http_door_serves_the_metadata_and_takes_no_question_for_a_request_for_it() {
    let rules = "rules:\n  - {name: s, match: {path: /scope}, require: {scopes: [x, b]}}\n";
    let provider = "token_from: [{header: authorization, scheme: Bearer}, {cookie: c}, {query: q}]";
    let responses = format!("responses: {{resource_metadata: '{METADATA}/orders'}}\n");
    let house = House::with(provider, &format!("{rules}{responses}")).await;
    let client = Client::builder().no_proxy().build().expect("a plain client");
    let path = "/.well-known/oauth-protected-resource/orders";
    for (name, profile) in Profile::NAMED {
        let url = |path: &str| format!("http://{}{path}", house.service.http_door(profile));
        let get = client.get(url(path)).send().await.expect("the door answers");
        if profile == Profile::Envoy {
            // There every request is a question, and an answer of 200 would let it pass.
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
            let question = client.get(url(path)).header(header, value).header("x-original-method", "GET");
            let question = question.header("x-forwarded-method", "GET").header("x-forwarded-host", "h");
            let status = question.send().await.expect("the door answers").status();
            assert_ne!(status, StatusCode::OK, "{name} {header}");
        }
        for (method, path) in [("POST", path), ("GET", "/.well-known/oauth-protected-resource"), ("GET", "/")]
        {
            let method = method.parse().expect("a method");
            let other = client.request(method, url(path)).send().await.expect("the door answers");
            assert_eq!(other.status(), StatusCode::BAD_REQUEST, "{name} {path}");
        }
    }
}

#[tokio::test]
async fn a_denial_is_made_for_its_kind_of_caller() {
    let house = House::with("", "").await;
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
        let answer = house.service.ask(Ask::default().header("content-type", content_type)).await;
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
async fn a_reason_may_have_a_body_and_headers_of_its_own_on_every_door() {
    let responses = r#"responses:
  body: {token_missing: '<p>log in</p>', expired: '{"again": true}'}
  headers:
    token_missing: {Content-Type: text/html, x-login: 'https://sso.example.com/login'}
    keys_unavailable: {x-none: 'none'}
"#;
    let house = House::with("", responses).await;
    let missing = house.service.ask(Ask::default()).await;
    assert_eq!((missing.http_status, missing.body.as_str()), (401, "<p>log in</p>"));
    assert_eq!(missing.set["content-type"], "text/html");
    assert_eq!(missing.set["x-login"], "https://sso.example.com/login");
    assert!(missing.www_authenticate().is_some());
    let expired = house.ask(&with_claim(claims(), "exp", 1)).await;
    assert_eq!(expired.body, r#"{"again": true}"#);
    assert_eq!(expired.set["content-type"], "application/json");
    assert!(!expired.set.contains_key("x-login"));
    let other = house.ask(&with_claim(claims(), "aud", "b")).await;
    assert!(other.body.contains("invalid_token"), "the others stay as they are");
    let grpc = house.service.ask(Ask::default().header("content-type", "application/grpc")).await;
    assert_eq!(grpc.body, "");
    let door = format!("http://{}/", house.service.http_door(Profile::Envoy));
    let client = Client::builder().no_proxy().build().expect("a plain client");
    let answer = client.get(door).send().await.expect("the door answers");
    assert_eq!(answer.headers()["x-login"], "https://sso.example.com/login");
    assert_eq!(answer.text().await.expect("text"), "<p>log in</p>");
}

#[tokio::test]
async fn claims_go_out_whole_encoded_and_as_metadata_where_that_is_configured() {
    let provider = "claim_headers: {x-name: {claim: name, encoding: base64url}, x-plain: name}
payload_header: x-payload
metadata_claims: [tenant, /a/b, missing, count, large, list]";
    let house = House::with(provider, "").await;
    let mut claims = claims();
    claims["name"] = json!("Zoë \n");
    claims["tenant"] = json!("acme");
    claims["a"] = json!({"b": {"c": [true, null]}});
    claims["count"] = json!(3);
    claims["large"] = json!(9_007_199_254_740_993_u64);
    claims["list"] = json!(["x"]);
    let token = house.key.sign(&claims);
    let ask = Ask::default().header("authorization", format!("Bearer {token}")).header("x-payload", "forged");
    let answer = house.service.ask(ask).await;
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
async fn the_payload_counts_towards_the_size_of_the_headers_and_is_managed() {
    let house = House::with("payload_header: x-payload", "limits: {claim_header_bytes: 512}\n").await;
    let large = with_claim(claims(), "note", "x".repeat(600));
    assert_eq!(house.ask(&large).await.reason(), "claim_too_large");
    let token = house.key.sign(&claims());
    let ask = Ask::default().header("authorization", format!("Bearer {token}")).header("x_payload", "forged");
    assert!(house.service.ask(ask).await.removed.contains(&"x_payload".to_owned()));
}
