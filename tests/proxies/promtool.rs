//! The alert rules of `deploy/`, checked and tested by promtool. `it::observability` tests that their metrics are exported.

use std::path::Path;
use std::process::Command;

use crate::support::real::program_path;
use crate::support::subprocess::StartCommand;

fn promtool(arguments: &[&str]) {
    let output = Command::new(program_path("PORTCULLIS_TEST_PROMTOOL", ".cache/promtool"))
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus"))
        .run_and_read()
        .expect("it runs");
    let log = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&log));
}

#[test]
fn promtool_accepts_the_rules_and_their_tests_pass() {
    promtool(&["check", "rules", "alerts.yaml"]);
    promtool(&["test", "rules", "alerts_test.yaml"]);
}
