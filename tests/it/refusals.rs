//! The latest refusals at the admin address, `portcullis explain --decision`, and the log lines of refusals.

use std::process::{Command, Output};

use portcullis::commands::issuer::{SigningAlgorithm, SigningKey, with_claim};
use portcullis::config::Profile;
use serde_json::{Value, json};

use crate::support::log::{Format, capture, logged};
use crate::support::subprocess::StartCommand;
use crate::support::{Answer, Ask, NOW, Running, config, fixed_clock, inline, provider, with_http_doors};

const ISSUER: &str = "https://issuer.example";

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": "orders-api", "sub": "alice", "exp": NOW + 300})
}

/// A service that keeps this many refusals, and the key of its issuer.
async fn keeping(refusals: usize) -> (Running, SigningKey) {
    let key = SigningKey::generate("real", SigningAlgorithm::ES256);
    let mut config = config(vec![inline(provider("demo", ISSUER), &[key.public_jwk()])]);
    config.listen.admin.as_mut().expect("on").refusals = refusals;
    (Running::start(with_http_doors(config), fixed_clock()).await, key)
}

/// The status and the body of the page of this decision.
async fn page(service: &Running, id: &str) -> (u16, Value) {
    let url = format!("http://{}/decisions/{id}", service.admin_address());
    let response = reqwest::get(url).await.expect("the admin door answers");
    let status = response.status().as_u16();
    let body = response.text().await.expect("text");
    (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}")))
}

fn id_of(answer: &Answer) -> &str {
    &answer.metadata["decision_id"]
}

#[tokio::test]
async fn a_refusal_is_found_by_its_decision_id_and_an_allowed_request_is_not_kept() {
    let (service, key) = keeping(2).await;
    let expired = key.sign(&with_claim(claims(), "exp", NOW - 3_600));
    let ask = Ask::default()
        .method("POST")
        .path("/orders/7?access_token=secret")
        .from("192.0.2.7", "")
        .header("authorization", format!("Bearer {expired}"));
    let refused = service.ask(ask).await;
    let allowed = service.bearer(&key.sign(&claims())).await;
    let (status, refusal) = page(&service, id_of(&refused)).await;
    assert_eq!(status, 200, "{refusal}");
    for (member, expected) in [
        ("id", id_of(&refused)),
        ("time", "2027-01-15T08:00:00Z"),
        ("door", "ext_authz"),
        ("verdict", "deny"),
        ("reason", "expired"),
        ("provider", "demo"),
        ("method", "POST"),
        ("host", "api.example.com"),
        ("path", "/orders/7"),
        ("client", "192.0.2.7"),
        ("kid", "real"),
        ("detail", "expired 1 h ago, at 2027-01-15T07:00:00Z; skew 30 s"),
        ("advice", "get a new token from the issuer, and compare its clock with that of this machine"),
    ] {
        assert_eq!(refusal[member], expected, "{member}: {refusal}");
    }
    let steps: Vec<&str> =
        refusal["steps"].as_array().expect("steps").iter().filter_map(|step| step["step"].as_str()).collect();
    assert_eq!(steps, ["rule", "token", "provider", "screen"]);
    let text = refusal.to_string();
    for secret in expired.split('.').chain(["secret"]) {
        assert!(!text.contains(secret), "{text}");
    }
    let (status, unknown) = page(&service, id_of(&allowed)).await;
    assert_eq!((status, &unknown["error"]), (404, &json!("not_found")));

    // Two later ones replace it, at any door.
    let client = reqwest::Client::builder().no_proxy().build().expect("a plain client");
    for _ in 0..2 {
        let url = format!("http://{}/http-door", service.http_door(Profile::Envoy));
        assert_eq!(client.get(url).send().await.expect("an answer").status().as_u16(), 401);
    }
    assert_eq!(page(&service, id_of(&refused)).await.0, 404);
}

#[tokio::test]
async fn with_0_no_refusal_is_kept_and_the_page_says_how_to_keep_them() {
    let (service, _) = keeping(0).await;
    let refused = service.ask(Ask::default()).await;
    let (status, body) = page(&service, id_of(&refused)).await;
    assert_eq!(status, 404);
    assert_eq!(body["error_description"], "refusals are not kept: set listen.admin.refusals");
}

#[tokio::test]
async fn texts_of_a_refusal_are_cut() {
    let (service, key) = keeping(1).await;
    let long = "x".repeat(4_000);
    let token = key.with_kid(&*long).sign(&with_claim(claims(), "aud", long.as_str()));
    let ask = Ask::default()
        .method(long.as_str())
        .host(long.as_str())
        .path(format!("/{long}"))
        .header("authorization", format!("Bearer {token}"));
    let refused = service.ask(ask).await;
    let (_, refusal) = page(&service, id_of(&refused)).await;
    assert!(refusal.to_string().len() < 4_000, "{refusal}");
}

/// Runs `portcullis explain` with these arguments.
async fn explain(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.arg("explain").args(arguments).env_remove("PORTCULLIS_LOG").env_remove("PORTCULLIS_CONFIG");
    let run = move || command.run_and_read().expect("the binary runs");
    tokio::task::spawn_blocking(run).await.expect("it does not panic")
}

#[tokio::test]
async fn explain_prints_a_refusal_of_the_running_service() {
    let (service, key) = keeping(8).await;
    let admin = service.admin_address().to_string();
    let refused = service.bearer(&key.sign(&with_claim(claims(), "aud", "billing-api"))).await;
    let id = id_of(&refused);
    let printed = explain(&["--decision", id, "--admin", &admin]).await;
    assert_eq!(printed.status.code(), Some(2));
    let text = String::from_utf8(printed.stdout).expect("text");
    assert!(text.starts_with("deny: audience_mismatch\n"), "{text}");
    for line in [
        "path      /orders\n",
        "provider  demo\n",
        "screen    audience_mismatch  aud \"billing-api\"; wanted \"orders-api\"\n",
        "\nadvice: ask the issuer for a token for this service, or add \"billing-api\" to `audiences` of the provider `demo`",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
    let printed = explain(&["--decision", id, "--admin", &admin, "--format", "json"]).await;
    let json: Value = serde_json::from_slice(&printed.stdout).expect("JSON");
    assert_eq!(json, page(&service, id).await.1);

    let http_door = service.http_door(Profile::Envoy).to_string();
    for (id, admin, expected) in [
        ("0000000000000000-1", &admin, "not among the latest 8 refusals; allowed requests are not kept"),
        (id, &http_door, "unexpected response with status 401: is it the admin address"),
    ] {
        let printed = explain(&["--decision", id, "--admin", admin]).await;
        let error = String::from_utf8(printed.stderr).expect("text");
        assert_eq!(printed.status.code(), Some(1), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn explain_of_a_decision_needs_an_id_and_an_address_and_repeats_neither() {
    for arguments in [
        &["--decision", "eyJhbGciOiJub25lIn0.e30.c2ln", "--admin", "127.0.0.1:9193"][..],
        &["--decision", "1-1", "--admin", "http://user:hunter2@127.0.0.1:9193"],
        &["--decision", "1-1", "--admin", "user:hunter2@127.0.0.1:9193"],
        &["--decision", "1-1", "--admin", "127.0.0.1"],
        &["--decision", "1-1"],
        &["--admin", "127.0.0.1:9193"],
        &["--decision", "1-1", "--admin", "127.0.0.1:9193", "--path", "/"],
        &[],
    ] {
        let printed = explain(arguments).await;
        let error = String::from_utf8(printed.stderr).expect("text");
        assert_ne!(printed.status.code(), Some(0), "{arguments:?}");
        assert!(!error.is_empty() && printed.stdout.is_empty(), "{arguments:?}");
        assert!(!error.contains("hunter2") && !error.contains("eyJ"), "{error}");
    }
}

#[tokio::test]
async fn credentials_of_another_scheme_are_named_and_never_shown() {
    let (service, key) = keeping(1).await;
    let token = key.sign(&claims());
    for (value, found) in [
        ("Basic dXNlcjpwYXNzd29yZA==".to_owned(), "an Authorization header of the scheme Basic"),
        (token, "an Authorization header without a scheme"),
    ] {
        let refused = service.ask(Ask::default().header("authorization", value.as_str())).await;
        assert_eq!(refused.reason(), "token_missing");
        let (_, refusal) = page(&service, id_of(&refused)).await;
        assert_eq!(refusal["detail"], format!("{found}; wanted header authorization (Bearer)"));
        assert!(!refusal.to_string().contains(&value), "{refusal}");
    }
}

#[tokio::test]
async fn the_log_line_of_a_refusal_has_the_path_without_its_query_and_the_client() {
    capture();
    let (service, _) = keeping(0).await;
    service.ask(Ask::default().path("/orders/7?access_token=secret").from("192.0.2.7", "")).await;
    let text = logged(Format::Json);
    let line = text.lines().find(|line| line.contains("request denied")).unwrap_or_else(|| panic!("{text}"));
    let line: Value = serde_json::from_str(line).expect("JSON");
    assert_eq!((&line["path"], &line["client"]), (&json!("/orders/7"), &json!("192.0.2.7")), "{line}");
    assert!(!text.contains("secret"), "{text}");
}
