//! `portcullis explain` of the built binary: its decisions are those of `serve`, and it never shows tokens or secrets.

mod doors;
mod reasons;
mod tokens;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::support::rule_cases::{Bearer, Case, PATH_CASES, RULE_CASES, RulesFixture};
use crate::support::snapshots::{redact_path, settings};
use crate::support::subprocess::StartCommand;
use portcullis::clock::Clock;
use portcullis::commands::issuer::{Fault, Issuer, SigningAlgorithm, SigningKey};
use portcullis::config::Config;
use portcullis::service::Service;
use portcullis::validation::UnixTime;
use serde_json::{Value, json};
use tempfile::TempDir;

const NOW: i64 = 1_800_000_000;

fn explain(config: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .arg("explain")
        .arg("--config")
        .arg(config)
        .args(["--now", &NOW.to_string()])
        .args(arguments)
        .env_remove("PORTCULLIS_LOG")
        .run_and_read()
        .expect("the binary runs")
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build folder can be written to"))
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).expect("the folder can be written to");
        path
    }

    /// A configuration with these sections.
    fn config(&self, sections: &str) -> PathBuf {
        self.file("portcullis.yaml", format!("listen: {{ext_authz: '127.0.0.1:0'}}\n{sections}"))
    }
}

#[test]
fn explain_decides_every_case_of_the_tables_as_serve_does() {
    let (fixture, folder) = (RulesFixture::new(), Folder::new());
    let config = folder.config(&fixture.providers_and_rules());
    let mut wrong = Vec::new();
    for case in RULE_CASES.iter().chain(PATH_CASES) {
        let Case { method, host, target, .. } = *case;
        let token = fixture.token(case.bearer, NOW);
        let mut headers: serde_json::Map<String, Value> =
            case.headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
        if let Some(token) = &token {
            headers.insert("Authorization".to_owned(), format!("Bearer {token}").into());
        }
        let request = json!({"method": method, "host": host, "path": target, "headers": headers}).to_string();
        let request = folder.file("request.json", request);
        let request = request.to_str().expect("a plain path");
        let output = explain(&config, &["--request", request, "--format", "json"]);
        let decision = json_of(&output);
        let code = match case.reason {
            "ok" | "anonymous" => 0,
            _ => 2,
        };
        let rule = decision["rule"].as_str().unwrap_or_default();
        let right = decision["reason"] == case.reason
            && decision["status"] == case.status()
            && output.status.code() == Some(code)
            && (rule == case.rule || case.reason == "request_malformed");
        if !right {
            wrong.push(format!("{case:?}: {decision}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_text_shows_each_step_and_never_the_token() {
    let (fixture, folder) = (RulesFixture::new(), Folder::new());
    let config = folder.config(&fixture.providers_and_rules());
    let token = fixture.token(Bearer::With(r#"{"scope": "orders:read"}"#), NOW).expect("a token");
    let header = format!("Authorization: Bearer {token}");
    let expired = fixture.token(Bearer::With(r#"{"scope": "orders:read"}"#), NOW - 7200).expect("a token");
    let expired = format!("Authorization: Bearer {expired}");
    let no_scope = fixture.token(Bearer::With("{}"), NOW).expect("a token");
    let no_scope = format!("Authorization: Bearer {no_scope}");
    for (name, arguments) in [
        ("explain_allow", &["--path", "/orders/7", "--header", &header, "--header", "x_auth_tenant: m"][..]),
        ("explain_no_token", &["--path", "/orders/7"]),
        ("explain_no_jwt", &["--path", "/orders/7", "--header", "Authorization: Bearer opaque"]),
        ("explain_expired", &["--path", "/orders/7", "--header", &expired]),
        ("explain_scope", &["--path", "/orders/7", "--header", &no_scope]),
        ("explain_admin", &["--path", "/admin", "--header", &header]),
        ("explain_malformed_path", &["--path", "/orders/%zz", "--header", &header]),
    ] {
        let text = String::from_utf8(explain(&config, arguments).stdout).expect("text");
        settings(&[]).bind(|| insta::assert_snapshot!(name, text));
    }
    for format in ["text", "json"] {
        for path in ["/orders", "/else", "/admin"] {
            let output = explain(&config, &["--path", path, "--header", &header, "--format", format]);
            let printed = [output.stdout, output.stderr].concat();
            let printed = String::from_utf8(printed).expect("text");
            for part in token.split('.') {
                assert!(!printed.contains(part), "{printed}");
            }
        }
    }
}

#[test]
fn a_payload_header_and_a_rewritten_cookie_are_named_and_not_shown() {
    let (key, folder) = (SigningKey::generate("k", SigningAlgorithm::ES256), Folder::new());
    let jwks = json!({"keys": [key.public_jwk()]});
    let config = folder.config(&format!(
        "providers:
  - name: p
    issuer: https://i
    audiences: [a]
    jwks: {jwks}
    token_from: [{{cookie: session}}]
    forward_token: false
    payload_header: x-payload\n"
    ));
    let token = key.sign(&json!({"iss": "https://i", "aud": "a", "exp": NOW + 60}));
    let cookie = format!("cookie: session={token}; other=secret-of-another");
    let output = explain(&config, &["--header", &cookie, "--format", "json"]);
    let decision = json_of(&output);
    assert_eq!(decision["verdict"], "allow");
    assert_eq!(decision["headers"]["set"]["cookie"], "(the cookies without the token)");
    let text = decision.to_string();
    assert!(!text.contains("secret-of-another"));
    assert!(token.split('.').all(|part| !text.contains(part)), "{text}");
}

#[test]
fn a_token_over_a_limit_is_malformed_and_the_step_names_the_limit() {
    let (key, folder) = (SigningKey::generate("k", SigningAlgorithm::ES256), Folder::new());
    let jwks = json!({"keys": [key.public_jwk()]});
    let provider = format!("providers: [{{name: p, issuer: https://i, audiences: [a], jwks: {jwks}}}]\n");
    let config = folder.config(&format!("{provider}limits: {{token_values: 64, token_depth: 4}}\n"));
    let claims = |x: Value| json!({"iss": "https://i", "aud": "a", "exp": NOW + 60, "x": x});
    for (x, verdict, detail) in [
        (json!(vec![1; 60]), "allow", ""),
        (
            json!(vec![1; 61]),
            "deny",
            "more members and values than limits.token_values allows; wanted at most 64",
        ),
        (json!([[[1]]]), "allow", ""),
        (json!([[[[1]]]]), "deny", "nested deeper than limits.token_depth allows; wanted at most 4"),
    ] {
        let authorization = format!("authorization: Bearer {}", key.sign(&claims(x)));
        let decision = json_of(&explain(&config, &["--header", &authorization, "--format", "json"]));
        assert_eq!(decision["verdict"], verdict, "{decision}");
        if verdict == "deny" {
            let last = decision["steps"].as_array().and_then(|steps| steps.last()).expect("a step");
            let expected = json!({"step": "screen", "outcome": "malformed", "detail": detail});
            assert_eq!((&decision["reason"], last), (&json!("malformed"), &expected));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_fetched_as_at_the_start_and_a_snapshot_is_used_while_the_issuer_is_down() {
    let folder = Folder::new();
    let issuer = Issuer::start().await.expect("a free port");
    let key = issuer.rotate(SigningAlgorithm::ES256);
    let sections = |more: &str| {
        format!(
            "providers:
  - name: p
    issuer: {}
    audiences: [orders-api]
    jwks_uri: {}
    refresh: {{timeout: 500ms, wait: 700ms{more}}}\n",
            issuer.issuer(),
            issuer.jwks_uri()
        )
    };
    let config = folder.config(&sections(""));
    let ask = |key: &SigningKey, config: &Path| {
        let header = format!("authorization: Bearer {}", key.sign(&issuer.claims(NOW)));
        let output = explain(config, &["--header", &header, "--format", "json"]);
        (json_of(&output), output.status.code())
    };
    let (known, code) = tokio::task::block_in_place(|| ask(&key, &config));
    assert_eq!((&known["reason"], &known["refresh"], code), (&json!("ok"), &json!("none"), Some(0)));
    let jwk = &known["key"];
    assert_eq!((&jwk["kid"], &jwk["alg"]), (&json!(key.kid()), &json!("ES256")));
    assert_eq!(jwk["thumbprint"].as_str().map(str::len), Some(43));
    let (unknown, code) = tokio::task::block_in_place(|| ask(&key.with_kid("unknown"), &config));
    assert_eq!((&unknown["reason"], code), (&json!("key_unknown"), Some(2)));
    assert_eq!(unknown["refresh"], "unknown_kid");

    let snapshots = folder.0.path().join("snapshots");
    fs::create_dir(&snapshots).expect("a folder");
    let file_count = || fs::read_dir(&snapshots).expect("a folder").count();
    let text = sections(&format!(", snapshot_dir: '{}'", snapshots.display()));
    let with_snapshots =
        folder.file("snapshots.yaml", format!("listen: {{ext_authz: '127.0.0.1:0'}}\n{text}"));
    tokio::task::block_in_place(|| ask(&key, &with_snapshots));
    assert_eq!(file_count(), 0, "`explain` writes no snapshot");
    // The snapshot of `serve`.
    let config_of_serve = Config::load(&with_snapshots).expect("valid");
    let service =
        Service::start(&config_of_serve, Clock::Fixed(UnixTime::from_secs(NOW))).expect("no file is needed");
    let is_written = async {
        // The file has another name while it is written.
        while !snapshots.join("p.json").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), is_written).await.expect("a snapshot is written");
    drop(service);
    issuer.set_fault(Some(Fault::Status(503)));
    let (down, code) = tokio::task::block_in_place(|| ask(&key, &config));
    assert_eq!((&down["verdict"], code), (&json!("unavailable"), Some(3)));
    assert_eq!(down["status"], 503);
    let (from_snapshot, code) = tokio::task::block_in_place(|| ask(&key, &with_snapshots));
    assert_eq!(
        (&from_snapshot["verdict"], &from_snapshot["refresh"], code),
        (&json!("allow"), &json!("none"), Some(0)),
        "{from_snapshot}"
    );
}

#[test]
fn invalid_arguments_and_requests_are_errors_without_a_decision() {
    let (fixture, folder) = (RulesFixture::new(), Folder::new());
    let config = folder.config(&fixture.providers_and_rules());
    let file_count = |text: &[u8]| folder.file("request.json", text).display().to_string();
    let mut decision = String::new();
    for text in [
        &b"{"[..],
        b"[]",
        br#"{"method": "GET", "host": "h"}"#,
        br#"{"method": "GET", "host": "h", "path": "/", "header": {}}"#,
        br#"{"method": "GET", "host": "h", "path": "/", "headers": {"authorization": 1}}"#,
        br#"{"method": "GET", "host": "h", "path": "/", "headers": {"authorization": secret-token}}"#,
        b"\xff",
    ] {
        let output = explain(&config, &["--request", &file_count(text)]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("request.json"), "{error}");
        assert!(!error.contains("secret-token"), "{error}");
        assert!(output.stdout.is_empty());
        decision.push_str(&format!(
            "{}\n{}\n",
            String::from_utf8_lossy(text),
            redact_path(&error, folder.0.path())
        ));
    }
    settings(&[]).bind(|| insta::assert_snapshot!("explain_requests_that_cannot_be_read", decision));
    for arguments in [
        &["--request", "/no/such/file"][..],
        &["--header", "no colon"],
        &["--now", "yesterday"],
        &["--request", "a", "--path", "/"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(["explain", "--config"])
            .arg(&config)
            .args(arguments)
            .run_and_read()
            .expect("the binary runs");
        // 2 is a denial.
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}
