//! Starts processes, and runs a test alone in a process of its own.
//!
//! A process that is being started has a copy of every descriptor until it executes its program. Connections that a test
//! of another thread closes stay open that long, while a paused clock may advance by hours. [`wait_for_starts`] prevents
//! that.

use std::io;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

/// Read while a process is being started.
static STARTS: RwLock<()> = RwLock::new(());

/// Starts processes in a way that [`wait_for_starts`] can see.
pub trait StartCommand {
    /// Starts the process; returns once its program is executed.
    fn start(&mut self) -> io::Result<Child>;

    /// Starts the process and waits for it.
    fn run(&mut self) -> io::Result<ExitStatus>;

    /// Starts the process without an input, waits for it and collects what it writes.
    fn run_and_read(&mut self) -> io::Result<Output>;
}

impl StartCommand for Command {
    #[expect(clippy::disallowed_methods, reason = "every process is started here")]
    fn start(&mut self) -> io::Result<Child> {
        let _starting = STARTS.read().unwrap_or_else(PoisonError::into_inner);
        self.spawn()
    }

    fn run(&mut self) -> io::Result<ExitStatus> {
        self.start()?.wait()
    }

    fn run_and_read(&mut self) -> io::Result<Output> {
        self.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).start()?.wait_with_output()
    }
}

/// Stops the paused clock of this runtime while a process is being started, for tests that measure when connections are
/// closed. The clock is then at most a second ahead.
pub fn wait_for_starts() -> JoinHandle<()> {
    tokio::spawn(async {
        loop {
            sleep(Duration::from_secs(1)).await;
            if STARTS.try_write().is_err() {
                // A paused clock does not advance while a blocking task runs.
                let until_started = || drop(STARTS.write().unwrap_or_else(PoisonError::into_inner));
                spawn_blocking(until_started).await.expect("no panic");
            }
        }
    })
}

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
    let mut command = Command::new(std::env::current_exe().expect("it has a path"));
    command.args(["--exact", name, "--nocapture"]).env(SUBPROCESS, "1");
    let output = command.run_and_read().expect("it runs");
    let stderr = String::from_utf8(output.stderr).expect("text");
    let passed = String::from_utf8_lossy(&output.stdout).contains("1 passed");
    assert!(output.status.success() && passed, "{name} in a subprocess: {}\n{stderr}", output.status);
    Some(stderr)
}
