//! The built binary with a clock that a test sets, and its log.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::support::serving::Serving;
use crate::support::subprocess::StartCommand;

/// Longer than any step takes that succeeds.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// The wall clock of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The time at the start, in seconds since the Unix epoch.
    pub seconds: i64,
    /// The year as the log prints it.
    pub year: &'static str,
}

/// Before 1970, 1970, after 9999, and the first and last day that the system can represent.
pub const WRONG_CLOCKS: [Clock; 6] = [
    Clock { seconds: i64::MIN + 86_400, year: "-292277022657-" },
    Clock { seconds: -62_167_219_201 - 86_400, year: "-0001-" },
    Clock { seconds: -86_400, year: "1969-" },
    Clock { seconds: 1, year: "1970-" },
    Clock { seconds: 253_402_300_800, year: "+10000-" },
    Clock { seconds: i64::MAX - 86_400, year: "+292277026596-" },
];

impl Clock {
    /// Whether it is before the build of the program; otherwise it is after the expiry of all its certificates.
    pub fn is_before_the_build(self) -> bool {
        self.seconds < 1_700_000_000
    }

    /// The exit code of `explain` for a token that is valid today: no usable keys, or long expired.
    pub fn explain_exit_code(self) -> i32 {
        if self.is_before_the_build() { 3 } else { 2 }
    }

    /// The binary with this clock.
    pub fn portcullis(self) -> Command {
        let mut command = portcullis();
        command.env("LD_PRELOAD", shim()).env("CLOCK_SHIM_SECONDS", self.seconds.to_string());
        command
    }
}

/// The binary with the clock of this machine, and with an environment that redirects nothing.
pub fn portcullis() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command.env_remove("PORTCULLIS_LOG");
    command
}

/// The compiled clock of `clock_shim.c`.
fn shim() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/clock_shim.c");
        let shim = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clock_shim.so");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([&shim, &source])
            .run_and_read()
            .expect("cc runs");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        shim
    })
}

/// The exit code and the output of a command. No clock makes it panic.
pub fn run(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = command.run_and_read().expect("the binary runs");
    let output = [stdout, stderr].map(|text| String::from_utf8(text).expect("text")).concat();
    assert_eq!(panics(&output), "", "{command:?}");
    (status.code(), output)
}

/// The lines that report a panic, in the form of the log, of the binary without a log, and of Rust.
fn panics(output: &str) -> String {
    output
        .lines()
        .filter(|line| ["\"panic\"", "panic at", "panicked"].iter().any(|text| line.contains(text)))
        .collect()
}

/// `portcullis serve`, killed when dropped.
pub struct Server {
    child: Child,
    log: Receiver<String>,
    seen: String,
    /// The addresses that it listens on.
    pub serving: Serving,
}

impl Drop for Server {
    fn drop(&mut self) {
        // An error means that it has already ended.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Server {
    /// Serves with this configuration; it listens when this returns.
    pub fn start(mut command: Command, config: &Path) -> Self {
        command.args(["serve", "--config"]).arg(config).stderr(Stdio::piped());
        let mut child = command.start().expect("the binary runs");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (line, log) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|one| line.send(one)));
        let nowhere = Serving { ext_authz: Vec::new(), forward_auth: Vec::new(), admin: None };
        let mut server = Self { child, log, seen: String::new(), serving: nowhere };
        let line = server.wait_for("\"serving\"");
        server.serving = Serving::read(&line).expect("the line has the addresses");
        server
    }

    /// Reads the log until a line contains this. No earlier line may report a panic.
    pub fn wait_for(&mut self, text: &str) -> String {
        loop {
            let line = self.log.recv_timeout(TIMEOUT);
            let line = line.unwrap_or_else(|error| panic!("the log has no {text}, {error}:\n{}", self.seen));
            self.seen.push_str(&line);
            self.seen.push('\n');
            assert_eq!(panics(&line), "", "{}", self.seen);
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Terminates it and waits until it has ended. Returns its whole log, which reports no panic.
    pub fn stop(mut self) -> String {
        let status = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).run();
        assert!(status.expect("kill runs").success());
        self.wait_for("\"stopped\"");
        let status = self.child.wait().expect("is ours");
        self.seen.extend(self.log.iter().map(|line| line + "\n"));
        let seen = std::mem::take(&mut self.seen);
        assert_eq!((status.code(), panics(&seen)), (Some(0), String::new()), "{seen}");
        seen
    }
}
