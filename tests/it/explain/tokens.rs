//! Where the token of `explain` comes from, which keys it fetches, and what it says without a token.

use std::process::{Child, Command, Output, Stdio};

use portcullis::commands::issuer::{Fault, Issuer, SigningAlgorithm, SigningKey};
use serde_json::{Value, json};

use super::{Folder, NOW, explain, json_of};
use crate::support::snapshots::settings;
use crate::support::subprocess::StartCommand;

fn path_of(path: &std::path::Path) -> &str {
    path.to_str().expect("a plain path")
}

fn steps(decision: &Value, name: &str) -> Vec<Value> {
    let steps = decision["steps"].as_array().expect("steps");
    steps.iter().filter(|step| step["step"] == name).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_keys_of_the_tokens_provider_are_fetched_and_only_if_the_token_needs_them() {
    let folder = Folder::new();
    let (issuer, other) =
        (Issuer::start().await.expect("a free port"), Issuer::start().await.expect("a free port"));
    let key = issuer.rotate(SigningAlgorithm::ES256);
    let provider = |name: &str, issuer: &Issuer| {
        format!(
            "  - {{name: {name}, issuer: {}, audiences: [orders-api], jwks_uri: {}, refresh: {{timeout: 500ms, wait: 700ms}}}}\n",
            issuer.issuer(),
            issuer.jwks_uri()
        )
    };
    let config = folder.config(&format!("providers:\n{}{}", provider("a", &issuer), provider("b", &other)));
    let ask = |now: i64| {
        let header = format!("authorization: Bearer {}", key.sign(&issuer.claims(now)));
        let output =
            tokio::task::block_in_place(|| explain(&config, &["--header", &header, "--format", "json"]));
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        json_of(&output)
    };
    let expired = ask(NOW - 100_000);
    assert_eq!((&expired["reason"], steps(&expired, "keys").len()), (&json!("expired"), 0), "{expired}");
    assert_eq!(issuer.key_fetches(), 0, "no key could change that");
    let allowed = ask(NOW);
    let kid = key.kid().expect("a kid");
    let step = json!({"step": "keys", "outcome": "fetched", "detail": format!("\"{kid}\" (ES256)")});
    assert_eq!((&allowed["reason"], steps(&allowed, "keys")), (&json!("ok"), vec![step]), "{allowed}");
    assert_eq!((issuer.key_fetches(), other.key_fetches()), (1, 0));
    issuer.set_fault(Some(Fault::Status(503)));
    let failed = ask(NOW);
    assert_eq!(failed["reason"], "keys_unavailable");
    let detail = format!("key set at {}: the answer's status is 503, not 200", issuer.jwks_uri());
    let step = json!({"step": "keys", "outcome": "failed", "detail": detail});
    assert_eq!(steps(&failed, "keys"), [step]);
    assert_eq!(other.key_fetches(), 0);
}

const CONFIG: &str = "providers:
  - name: staff
    issuer: https://staff.example.com
    audiences: [orders-api, billing-api]
    jwks_uri: https://staff.example.com/keys
    claim_headers: {x-user: sub}
  - name: tenants
    issuer: https://sso.example.com/realms/{realm}
    realms: [acme]
    audiences: [orders-api]
    token_from: [{cookie: session}]
rules:
  - name: write
    match: {path_prefix: /orders}
    require: {scopes: ['orders:read', 'orders:write'], claims: {role: [admin, ops]}, condition: 'claims.level > 3'}
  - {name: any, match: {path_prefix: /any}, providers: [staff]}
";

#[test]
fn without_a_token_it_says_what_the_request_needs() {
    let folder = Folder::new();
    let config = folder.config(CONFIG);
    let text = String::from_utf8(explain(&config, &["--path", "/orders"]).stdout).expect("text");
    settings(&[]).bind(|| insta::assert_snapshot!("explain_needs", text));
    let asked = json_of(&explain(&config, &["--path", "/any", "--format", "json"]));
    let token = json!({"provider": "staff", "audiences": ["orders-api", "billing-api"], "token_from": ["header authorization (Bearer)"]});
    assert_eq!(asked["asks"], json!({"tokens": [token], "scopes": [], "claims": {}, "condition": null}));
}

#[test]
fn claims_are_judged_without_a_signature_and_nothing_is_fetched() {
    let folder = Folder::new();
    let config = folder.config(CONFIG);
    let claims = folder.file("claims.json", r#"{"sub": "alice", "scope": "orders:read"}"#);
    let arguments = ["--path", "/any", "--claims", path_of(&claims), "--provider", "staff"];
    let text = String::from_utf8(explain(&config, &arguments).stdout).expect("text");
    settings(&[]).bind(|| insta::assert_snapshot!("explain_claims", text));
    let realm = folder.file("realm.json", r#"{"iss": "https://sso.example.com/realms/acme"}"#);
    let of_realm = json_of(&explain(&config, &["--claims", path_of(&realm), "--format", "json"]));
    assert_eq!(
        (&of_realm["reason"], &of_realm["provider"], &of_realm["key"]),
        (&json!("ok"), &json!("tenants"), &Value::Null)
    );
    for (text, arguments, error) in [
        ("[]", &[][..], "line 1, column 0: expected one JSON object of claims"),
        ("{\"a\": secret}", &[], "line 1, column 7: expected one JSON object"),
        ("{}", &[], "expected the issuer of the claims, one of staff, tenants"),
        ("{}", &["--provider", "secret"], "one of staff, tenants"),
        ("{}", &["--provider", "tenants"], "`iss` is missing"),
    ] {
        let claims = folder.file("claims.json", text);
        let output = explain(&config, &[&["--claims", path_of(&claims)], arguments].concat());
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{printed}");
        assert!(printed.contains(error) && !printed.contains("secret"), "{printed}");
    }
}

/// `explain` with this standard input.
fn explain_input(config: &std::path::Path, input: std::fs::File) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.arg("explain").arg("--config").arg(config).args(["--now", &NOW.to_string(), "--token", "-"]);
    command.args(["--format", "json"]).env_remove("PORTCULLIS_LOG").stdin(Stdio::from(input));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.start().and_then(Child::wait_with_output).expect("the binary runs")
}

#[test]
fn a_token_is_read_from_a_file_or_from_standard_input_and_put_where_its_provider_accepts_it() {
    let (key, folder) = (SigningKey::generate("k", SigningAlgorithm::ES256), Folder::new());
    let jwks = json!({"keys": [key.public_jwk()]});
    let config = folder.config(&format!(
        "providers:
  - {{name: p, issuer: https://p, audiences: [a], jwks: {jwks}}}
  - {{name: q, issuer: https://q, audiences: [a], jwks: {jwks}, token_from: [{{cookie: session}}]}}
"
    ));
    for (issuer, place) in [("https://p", "header authorization (Bearer)"), ("https://q", "cookie session")] {
        let token = key.sign(&json!({"iss": issuer, "aud": "a", "exp": NOW + 60}));
        let file = folder.file("token.txt", format!("  {token}\n"));
        let input = std::fs::File::open(&file).expect("written");
        let from_file = explain(&config, &["--token", path_of(&file), "--format", "json"]);
        for output in [from_file, explain_input(&config, input)] {
            let decision = json_of(&output);
            assert_eq!(decision["reason"], "ok", "{decision}");
            let found = steps(&decision, "token");
            assert!(found[0]["detail"].as_str().expect("text").ends_with(place), "{decision}");
        }
    }
    for text in [&b""[..], b"Bearer s3cr3t", b"s3cr3t\xff", &[b'x'; 2 << 20]] {
        let file = folder.file("token.txt", text);
        let output = explain(&config, &["--token", path_of(&file)]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{error}");
        assert!(error.contains("the file of --token: ") && !error.contains("s3cr3t"), "{error}");
    }
}

#[test]
fn the_protocols_of_a_websocket_are_never_shown() {
    let folder = Folder::new();
    let key = SigningKey::generate("k", SigningAlgorithm::ES256);
    let jwks = json!({"keys": [key.public_jwk()]});
    let config = folder.config(&format!(
        "  forward_auth: {{address: '127.0.0.1:0', profile: nginx}}
providers:
  - name: staff
    issuer: https://staff.example.com
    audiences: [orders-api]
    forward_token: false
    token_from: [{{header: authorization, scheme: Bearer}}, {{websocket_protocol: bearer}}]
    jwks: {jwks}
rules: [{{name: open, match: {{path_prefix: /open}}, allow: anonymous}}]
"
    ));
    let text = std::fs::read_to_string(&config).expect("written");
    let text = text.replacen("listen: {ext_authz: '127.0.0.1:0'}", "listen:\n  ext_authz: '127.0.0.1:0'", 1);
    std::fs::write(&config, text).expect("written");
    let claims = json!({"iss": "https://staff.example.com", "aud": "orders-api", "exp": NOW + 300});
    let token = key.sign(&claims);
    for (path, protocols) in [
        ("/open", format!("bearer,,{token}")),
        ("/open", format!("BEARER, {token}, chat")),
        ("/orders", format!("bearer, {token}, chat")),
        ("/orders", format!("base64url.bearer.authorization.k8s.io.{token}")),
    ] {
        for door in ["nginx", "envoy"] {
            for format in ["text", "json"] {
                let (bearer, protocols) = (
                    format!("Authorization: Bearer {token}"),
                    format!("Sec-WebSocket-Protocol: {protocols}"),
                );
                let mut arguments =
                    vec!["--door", door, "--format", format, "--path", path, "--header", &protocols];
                arguments.extend(["--header", &bearer].iter().filter(|_| path == "/orders"));
                let output = explain(&config, &arguments);
                let shown = String::from_utf8([output.stdout, output.stderr].concat()).expect("text");
                assert_eq!(output.status.code(), Some(0), "{shown}");
                assert!(!shown.contains(&token[..20]), "{door} {path}: {shown}");
            }
        }
    }
}
