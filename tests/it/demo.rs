//! `portcullis demo` as a user runs it: the process, its table, its exit code.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::support::snapshots::settings;
use crate::support::subprocess::StartCommand;

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.arg("demo").env_remove("PORTCULLIS_LOG");
    command
}

#[test]
fn every_step_has_the_expected_result_and_the_process_succeeds() {
    let output = demo().arg("--once").run_and_read().expect("the demo can be started");
    let text = String::from_utf8(output.stdout).expect("the demo prints text");
    assert!(output.status.success(), "{text}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "nothing else is printed");

    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    let changes = [
        // The number of fetches during a flood depends on its duration.
        (r"(-> 1 allowed, 50 denied); \d+ fetch(es)?", "$1; N fetches"),
        (r"(?m)^(16 .*) <=\d+ +\d+$", "$1 <=N N"),
    ];
    settings(&changes).bind(|| insta::assert_snapshot!("demo", text));
}

#[test]
fn the_demo_needs_no_ca_certificates() {
    let nowhere = [("SSL_CERT_FILE", "/nonexistent"), ("SSL_CERT_DIR", "/nonexistent")];
    let output = demo().arg("--once").envs(nowhere).run_and_read().expect("the demo can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A running demo, killed when dropped.
struct RunningDemo(Child);

impl Drop for RunningDemo {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn without_once_it_keeps_running_with_a_request_to_try_and_exits_with_0_on_sigterm() {
    let mut demo_process =
        RunningDemo(demo().stdout(Stdio::piped()).start().expect("the demo can be started"));
    let mut lines = BufReader::new(demo_process.0.stdout.take().expect("its output is piped"));
    let mut text = String::new();
    while !text.ends_with("Press Ctrl-C to stop.\n") {
        assert_ne!(lines.read_line(&mut text).expect("the demo prints text"), 0, "it ended: {text}");
    }
    let path = text.split("Authorization/Check < ").nth(1).and_then(|rest| rest.lines().next());
    let path = path.map(PathBuf::from).expect("the request's file is named");
    let request = std::fs::read_to_string(&path).expect("the request can be read");
    let request: serde_json::Value = serde_json::from_str(&request).expect("the request is JSON");
    let token = &request["attributes"]["request"]["http"]["headers"]["authorization"];
    assert!(token.as_str().is_some_and(|token| token.starts_with("Bearer ey")), "{request}");

    let killed = Command::new("kill").args(["-TERM", &demo_process.0.id().to_string()]).run();
    assert!(killed.expect("kill can be run").success());
    lines.read_to_string(&mut text).expect("the demo prints text");
    assert_eq!(demo_process.0.wait().expect("it ends").code(), Some(0), "{text}");
    assert!(!path.exists(), "the demo removes the request");
}

#[test]
fn a_folder_with_files_of_somebody_else_is_left_as_it_is() {
    for name in ["envoy.yaml", "authorization"] {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let file = folder.path().join(name);
        std::fs::write(&file, "mine").expect("written");
        let output = demo().arg("--behind-envoy").arg(folder.path()).run_and_read().expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(&format!("{} is not the demo's", file.display())), "{error}");
        assert_eq!(std::fs::read_to_string(&file).expect("it is there"), "mine");
    }
}
