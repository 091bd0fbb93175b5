//! The built binary under a clock that a test sets, and what it writes to its log.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::support::serving::Serving;

/// Longer than anything takes that happens at all.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A wall clock of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// What it shows at the start, in seconds since the Unix epoch.
    pub seconds: i64,
    /// How the log writes its year.
    pub year: &'static str,
}

/// Before 1970, at its beginning, after 9999, and the first and last day of all that the system can say.
pub const IMPOSSIBLE: [Clock; 6] = [
    Clock { seconds: i64::MIN + 86_400, year: "-292277022657-" },
    Clock { seconds: -62_167_219_201 - 86_400, year: "-0001-" },
    Clock { seconds: -86_400, year: "1969-" },
    Clock { seconds: 1, year: "1970-" },
    Clock { seconds: 253_402_300_800, year: "+10000-" },
    Clock { seconds: i64::MAX - 86_400, year: "+292277026596-" },
];

impl Clock {
    /// Whether it stands before the program was built, rather than after all of its certificates.
    pub fn is_before_the_build(self) -> bool {
        self.seconds < 1_700_000_000
    }

    /// How `explain` exits for a token of today: no keys count, or it has long expired.
    pub fn explained(self) -> i32 {
        if self.is_before_the_build() { 3 } else { 2 }
    }

    /// The binary under this clock.
    pub fn portcullis(self) -> Command {
        let mut command = portcullis();
        command.env("LD_PRELOAD", shim()).env("CLOCK_SHIM_SECONDS", self.seconds.to_string());
        command
    }
}

/// The binary under the clock of this machine, with nothing in its environment that would lead elsewhere.
pub fn portcullis() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command.env_remove("PORTCULLIS_LOG");
    command
}

/// The clock of `clock_shim.c`, compiled.
fn shim() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/clock_shim.c");
        let shim = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clock_shim.so");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([&shim, &source])
            .output()
            .expect("cc runs");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        shim
    })
}

/// What a command printed, and its exit code. No clock makes it panic.
pub fn run(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = command.output().expect("the binary runs");
    let said = [stdout, stderr].map(|text| String::from_utf8(text).expect("text")).concat();
    assert_eq!(panics(&said), "", "{command:?}");
    (status.code(), said)
}

/// The lines that tell of a panic, in the words of the log, of the binary without one, and of Rust.
fn panics(said: &str) -> String {
    said.lines().filter(|line| ["a panic", "panicked"].iter().any(|text| line.contains(text))).collect()
}

/// `portcullis serve`, killed when dropped.
pub struct Served {
    child: Child,
    log: Receiver<String>,
    seen: String,
    /// Where it listens.
    pub serving: Serving,
}

impl Drop for Served {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Served {
    /// Serves by this configuration; it listens when this returns.
    pub fn start(mut command: Command, config: &Path) -> Self {
        command.args(["serve", "--config"]).arg(config).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (line, log) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|one| line.send(one)));
        let nowhere = Serving { ext_authz: Vec::new(), forward_auth: Vec::new(), admin: None };
        let mut served = Self { child, log, seen: String::new(), serving: nowhere };
        let line = served.wait_for("\"serving\"");
        served.serving = Serving::read(&line).expect("the line says where");
        served
    }

    /// Reads the log until a line has this. None before it tells of a panic.
    pub fn wait_for(&mut self, text: &str) -> String {
        loop {
            let line = self.log.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("the log has no {text}, {error}:\n{}", self.seen));
            self.seen.push_str(&line);
            self.seen.push('\n');
            assert_eq!(panics(&line), "", "{}", self.seen);
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Tells it to end and waits until it has. Everything that it logged, which tells of no panic.
    pub fn ends(mut self) -> String {
        let told = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(told.expect("kill runs").success());
        self.wait_for("\"stopped\"");
        let status = self.child.wait().expect("is ours");
        self.seen.extend(self.log.iter().map(|line| line + "\n"));
        let seen = std::mem::take(&mut self.seen);
        assert_eq!((status.code(), panics(&seen)), (Some(0), String::new()), "{seen}");
        seen
    }
}
