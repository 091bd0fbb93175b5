//! `portcullis drill` as a user runs it: with its own service, against a service in another process and against
//! faulty gateways.

use std::fs;
use std::process::{Command, Output};

use axum::Router;
use axum::http::StatusCode;
use serde_json::json;

use crate::support::drill::{SHORT, arguments, drill, drill_async, result, text};
use crate::support::real::{Portcullis, Process, TIMEOUT, eventually, folder, free_address, serve_http};
use crate::support::snapshots::settings;

/// Long enough for every kind of rotation and fault once.
const FULL: [&str; 6] = ["--duration", "18s", "--rotations", "6", "--attack-rate", "100"];

/// The number of drills until one must pass. A drill measures whether responses are in time, and on a busy machine any
/// service may be late.
const ATTEMPTS: usize = 3;

/// Whether no good token was denied. In every run, no forged token may be allowed and the fetches must be within the bound.
#[track_caller]
fn passed(output: &Output) -> bool {
    let result = result(output);
    assert_eq!(result["forged"]["allowed"], 0, "{result:#}");
    assert_eq!(result["fetches"]["within_bound"], true, "{result:#}");
    let passed = result["passed"] == true;
    assert_eq!(output.status.code(), Some(i32::from(!passed)), "{result:#}");
    assert_eq!(passed, result["failures"] == json!([]), "{result:#}");
    assert!(!passed || result["good"]["refused"] == 0, "{result:#}");
    passed
}

#[test]
fn the_drills_own_service_passes_every_rotation_and_fault() {
    let drills = (0..ATTEMPTS).map(|_| drill(&[&FULL[..], &["--format", "json"]].concat()));
    let output = drills.into_iter().find(passed).expect("one of them passes");
    let result = result(&output);
    assert_eq!(result["rotations"].as_array().map(Vec::len), Some(5), "{result:#}");
    assert_eq!(result["forged"]["by_kind"].as_array().map(Vec::len), Some(7), "{result:#}");
    assert_eq!(result["faults"], 6);
    assert!(result["good"]["sent"].as_u64() > Some(200), "{result:#}");
    assert!(text(&output.stderr).contains("rotations 6"), "progress: {}", text(&output.stderr));
}

#[tokio::test]
async fn a_service_in_another_process_passes_with_the_printed_configuration() {
    let issuer = free_address();
    let providers = format!(
        "providers:
  - name: drill
    issuer: http://{issuer}/realms/demo
    audiences: [orders-api]
    jwks_uri: http://{issuer}/realms/demo/keys
    refresh: {{min_spacing: 500ms, min_spacing_bad_signature: 500ms, timeout: 300ms}}
"
    );
    let portcullis = Portcullis::serve(&providers).await;
    let target = format!("grpc://{}", portcullis.ext_authz);
    let mut output = drill_async(arguments(&FULL, target.clone(), issuer)).await;
    for _ in 1..ATTEMPTS {
        if passed(&output) {
            break;
        }
        output = drill_async(arguments(&FULL, target.clone(), issuer)).await;
    }
    assert!(passed(&output), "{:#}", result(&output));
    let printed = text(&output.stderr);
    for line in providers.lines().filter(|line| !line.contains("audiences")) {
        assert!(printed.contains(line), "{line}\n{printed}");
    }
}

#[tokio::test]
async fn a_gateway_that_allows_everything_fails_for_every_forged_token() {
    let open = Router::new().fallback(async || StatusCode::NO_CONTENT);
    let (gateway, _server) = serve_http(open).await;
    let output = drill_async(arguments(&SHORT, format!("http://{gateway}"), free_address())).await;
    let result = result(&output);
    assert_eq!((output.status.code(), &result["passed"]), (Some(1), &json!(false)));
    assert_eq!(result["good"]["refused"], 0);
    assert_eq!(result["forged"]["sent"], result["forged"]["allowed"], "{result:#}");
}

#[tokio::test]
async fn a_gateway_that_allows_nothing_is_an_error_after_a_timeout() {
    let closed = Router::new().fallback(async || StatusCode::FORBIDDEN);
    let (gateway, _server) = serve_http(closed).await;
    let short = [&SHORT[..], &["--wait", "1s"]].concat();
    let output = drill_async(arguments(&short, format!("http://{gateway}"), free_address())).await;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    let errors = text(&output.stderr);
    assert!(errors.contains("no first token was allowed within 1 s"), "{errors}");
    assert!(errors.contains("status 403"), "{errors}");
}

#[test]
fn invalid_arguments_are_errors_with_a_hint() {
    let mut errors = String::new();
    for arguments in [
        &["--duration", "10"][..],
        &["--duration", "100ms"],
        &["--duration", "1s", "--rotations", "3"],
        &["--rotations", "0"],
        &["--attack-rate=-1"],
        &["--attack-rate", "20001"],
        &["--target", "ftp://x:1", "--issuer-address", "127.0.0.1:0"],
        &["--target", "grpc://x", "--issuer-address", "127.0.0.1:0"],
        &["--issuer-address", "192.0.2.1:1"],
        &["--format", "xml"],
    ] {
        let output = drill(arguments);
        assert_ne!(output.status.code(), Some(0), "{arguments:?}");
        errors.push_str(&format!("$ portcullis drill {}\n{}\n", arguments.join(" "), text(&output.stderr)));
    }
    settings(&[]).bind(|| insta::assert_snapshot!("drill_that_cannot_be", errors));
}

#[tokio::test]
async fn a_stopped_drill_reports_its_result_so_far_and_fails() {
    let folder = folder();
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(["drill", "--duration", "5m", "--rotations", "20"]);
    let mut process = Process::start("drill", &mut command, folder.path());
    let log = folder.path().join("drill.log");
    eventually("the drill is on its way", TIMEOUT, async || {
        process.assert_running();
        fs::read_to_string(&log).ok().filter(|text| text.contains("   2 s: good"))
    })
    .await;
    process.terminate();
    let status = eventually("it ends", TIMEOUT, async || process.exit_status()).await;
    assert_eq!(status.code(), Some(1));
    let text = fs::read_to_string(&log).expect("the log is there");
    assert!(text.contains("good tokens sent") && text.contains("Stopped"), "{text}");
}
