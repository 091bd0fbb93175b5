//! The alert rules of `deploy/`, read and tried by Prometheus' own tool. `it::observability` holds that what they ask for is
//! exported.

use std::path::Path;
use std::process::Command;

use crate::support::real::program_path;

fn promtool(arguments: &[&str]) {
    let output = Command::new(program_path("PORTCULLIS_TEST_PROMTOOL", ".cache/promtool"))
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus"))
        .output()
        .expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn prometheus_reads_the_rules_and_they_fire_where_they_should() {
    promtool(&["check", "rules", "alerts.yaml"]);
    promtool(&["test", "rules", "alerts_test.yaml"]);
}
