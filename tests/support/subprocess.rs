//! Runs a test alone in a process of its own, for tests that change global state of the process: starts the same
//! test binary again with that test only.

use std::process::{Command, Stdio};

/// Set in the environment of the subprocess.
const SUBPROCESS: &str = "PORTCULLIS_TEST_SUBPROCESS";

/// Runs `body` in a subprocess and returns the subprocess's standard error. `test` is the test function that calls
/// this. In the subprocess it returns `None`, and `test` has to return immediately.
///
/// # Panics
/// The test failed in the subprocess.
pub fn run_in_subprocess<T: Fn()>(test: T, body: impl FnOnce()) -> Option<String> {
    if std::env::var_os(SUBPROCESS).is_some() {
        body();
        return None;
    }
    // `it::module::test`; libtest names it without the binary.
    let (_, name) = std::any::type_name_of_val(&test).split_once("::").expect("a path");
    let output = Command::new(std::env::current_exe().expect("it has a path"))
        .args(["--exact", name, "--nocapture"])
        .env(SUBPROCESS, "1")
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let stderr = String::from_utf8(output.stderr).expect("text");
    let passed = String::from_utf8_lossy(&output.stdout).contains("1 passed");
    assert!(output.status.success() && passed, "{name} in a subprocess: {}\n{stderr}", output.status);
    Some(stderr)
}
