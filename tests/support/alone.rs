//! A test that has to be alone in its process, such as one that sets what a process has once: the same test
//! binary is started again, with that test and no other.

use std::process::{Command, Stdio};

/// Says to a process that it was started for one test.
const ALONE: &str = "PORTCULLIS_TEST_ALONE";

/// Runs `body` in a process of its own, and gives what that wrote on its standard error. `test` is the test
/// function that calls this, and has to return at once where there is nothing: it is that process.
///
/// # Panics
/// The test failed there.
pub fn alone<T: Fn()>(test: T, body: impl FnOnce()) -> Option<String> {
    if std::env::var_os(ALONE).is_some() {
        body();
        return None;
    }
    // As `it::module::sentence`, where libtest leaves out the name of the binary.
    let (_, name) = std::any::type_name_of_val(&test).split_once("::").expect("a path");
    let output = Command::new(std::env::current_exe().expect("it has a path"))
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, "1")
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let said = String::from_utf8(output.stderr).expect("text");
    let counted = String::from_utf8_lossy(&output.stdout).contains("1 passed");
    assert!(output.status.success() && counted, "{name}, alone: {}\n{said}", output.status);
    Some(said)
}
