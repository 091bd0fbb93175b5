//! The running binary: a configuration that is cut off while it is written, or is a pipe, and signals while it starts.

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::configuration::{head, rules};
use crate::support::serving::Serving;

/// Longer than anything takes that happens at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// Signals, by their numbers.
#[derive(Clone, Copy)]
enum Signal {
    Hangup = 1,
    Terminate = 15,
}

/// `portcullis serve`, killed when dropped.
struct Served {
    child: Child,
    log: Receiver<String>,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Served {
    fn start(config: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command.args(["serve", "--config"]).arg(config).env_remove("PORTCULLIS_LOG").stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (line, log) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|one| line.send(one)));
        Self { child, log }
    }

    /// Reads the log until a line has all of these.
    fn wait_for(&self, texts: &[&str]) -> String {
        let mut seen = String::new();
        loop {
            let line = self.log.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("the log has no {texts:?}, {error}:\n{seen}"));
            if texts.iter().all(|text| line.contains(text)) {
                return line;
            }
            seen = seen + &line + "\n";
        }
    }

    /// Waits until it serves. Gives the address of its HTTP listener.
    fn serves_at(&self) -> SocketAddr {
        Serving::read(&self.wait_for(&["\"serving\""])).expect("the line says where").http()
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Whether it takes this signal instead of being ended by it.
    fn takes(&self, signal: Signal) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
        // The lowest bit is that of the signal with number 1.
        caught.is_some_and(|bits| bits >> (signal as u32 - 1) & 1 == 1)
    }

    async fn until_it_takes(&mut self, signal: Signal) {
        let takes = async {
            while !self.takes(signal) {
                assert_eq!(self.child.try_wait().expect("is ours"), None, "it ended");
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, takes).await.expect("it takes the signal");
    }

    async fn ended(&mut self) -> ExitStatus {
        let ended = async {
            loop {
                match self.child.try_wait().expect("is ours") {
                    Some(status) => return status,
                    None => sleep(Duration::from_millis(10)).await,
                }
            }
        };
        timeout(PATIENCE, ended).await.expect("it ends")
    }
}

/// A configuration with an HTTP door, which drains at once.
struct Files {
    folder: TempDir,
    key: SigningKey,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let key = SigningKey::generate("k", SigningAlgorithm::ES256);
        Self { folder, key }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, rules: &str) -> String {
        let door = "  forward_auth: {address: 127.0.0.1:0, profile: envoy}\n";
        let head = head(&self.key).replace("providers:\n", &format!("{door}providers:\n"));
        format!("shutdown: {{drain_delay: 0s}}\n{head}{rules}")
    }

    fn pipe(&self) -> PathBuf {
        let pipe = self.at("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
        pipe
    }

    async fn status(&self, client: &reqwest::Client, at: SocketAddr, path: &str) -> u16 {
        let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
        let token = self.key.sign(&json!({"iss": "https://i.example.com", "aud": "a", "exp": now + 600}));
        let url = format!("http://{at}{path}");
        let answer = client.get(url).bearer_auth(token).send().await.expect("answered");
        answer.status().as_u16()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_is_cut_off_under_load_opens_nothing_and_is_taken_at_once_by_sighup() {
    let files = Files::new();
    let file = files.at("p.yaml");
    let [first, second] = rules().map(|rules| files.text(rules));
    fs::write(&file, &first).expect("written");
    let mut served = Served::start(&file);
    let at = served.serves_at();
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    for (whole, end, lost) in [
        (&second, "  - name: admin", "rules \\\"admin\\\", rules \\\"rest\\\""),
        (&first, "    require:", "rules \\\"admin\\\".require"),
        (&first, "    deny: true", "rules \\\"blocked\\\".deny"),
    ] {
        let cut = &whole[..whole.find(end).expect("there")];
        fs::write(&file, cut).expect("written");
        // Until it has been seen twice and waits.
        let waits = tokio::task::spawn_blocking(move || {
            let line = served.wait_for(&["configuration change pending", "send SIGHUP"]);
            (served, line)
        });
        let mut asked = 0;
        while !waits.is_finished() {
            for path in ["/admin/x", "/internal/x"] {
                assert_eq!(files.status(&client, at, path).await, 403, "{path} under {cut}");
            }
            asked += 1;
        }
        let line;
        (served, line) = waits.await.expect("no panic");
        assert!(line.contains("\"WARN\"") && line.contains(lost) && asked > 0, "{line}");
    }
    served.signal("-HUP");
    served.wait_for(&["configuration reloaded"]);
    assert_eq!(files.status(&client, at, "/internal/x").await, 200, "as it stands there");
    served.signal("-TERM");
    assert_eq!(served.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_from_a_pipe_is_read_once_and_keeps_nobody_from_leaving() {
    let files = Files::new();
    let pipe = files.pipe();
    let mut served = Served::start(&pipe);
    fs::write(&pipe, files.text(rules()[0])).expect("is read");
    let at = served.serves_at();
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    assert_eq!(files.status(&client, at, "/internal/x").await, 403);
    // Nobody writes again, and who is told to read it waits for nobody at the end.
    served.signal("-HUP");
    served.wait_for(&["not reloaded", "cannot be read within"]);
    served.signal("-TERM");
    served.wait_for(&["\"stopped\""]);
    assert_eq!(served.ended().await.code(), Some(0));

    // What is written later, but before the end, counts whenever it comes.
    let served = Served::start(&pipe);
    fs::write(&pipe, files.text(rules()[0])).expect("is read");
    served.wait_for(&["\"serving\""]);
    served.signal("-HUP");
    served.wait_for(&["not reloaded", "cannot be read within"]);
    fs::write(&pipe, files.text(rules()[1])).expect("is read");
    served.wait_for(&["configuration reloaded"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_to_a_pipe_after_a_regular_file_took_its_place_does_not_count() {
    let files = Files::new();
    let pipe = files.pipe();
    let served = Served::start(&pipe);
    fs::write(&pipe, files.text(rules()[0])).expect("is read");
    let at = served.serves_at();
    served.signal("-HUP");
    // It is open at its other end now.
    served.wait_for(&["not reloaded", "cannot be read within"]);
    fs::rename(&pipe, files.at("old")).expect("renamed");
    fs::write(&pipe, files.text(rules()[1])).expect("written");
    fs::write(files.at("old"), files.text("rules: []\n")).expect("is read");
    served.wait_for(&["configuration reloaded"]);
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    assert_eq!(files.status(&client, at, "/internal/x").await, 403);
    assert_eq!(files.status(&client, at, "/more").await, 403, "the second version serves");
    // And it is followed.
    fs::write(&pipe, files.text(rules()[1]) + "log: {level: warn}\n").expect("written");
    served.wait_for(&["configuration reloaded", "restart to apply changes of log"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_hangups_is_a_reload_now_and_then() {
    let files = Files::new();
    let file = files.at("p.yaml");
    fs::write(&file, files.text(rules()[0])).expect("written");
    let mut served = Served::start(&file);
    served.wait_for(&["\"serving\""]);
    let began = portcullis::clock::monotonic();
    for _ in 0..200 {
        served.signal("-HUP");
    }
    served.wait_for(&["configuration reloaded"]);
    let most = portcullis::clock::elapsed_since(began).as_millis() / 200 + 2;
    served.signal("-TERM");
    assert_eq!(served.ended().await.code(), Some(0));
    let reloads = served.log.iter().filter(|line| line.contains("configuration reloaded")).count();
    assert!((reloads as u128) < most, "{reloads} of {most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_that_nobody_ever_writes_to_keeps_nobody_from_ending_the_start() {
    let files = Files::new();
    let mut served = Served::start(&files.pipe());
    served.until_it_takes(Signal::Terminate).await;
    served.signal("-TERM");
    assert_eq!(served.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_during_a_start_does_not_end_it_and_is_heeded_once_it_serves() {
    let files = Files::new();
    // The start stands still at the very first thing that is read.
    let pipe = files.pipe();
    let served = Served::start(&pipe);
    // Opened once the other end is, by which time signals are listened for.
    let mut writer = fs::File::options().write(true).open(&pipe).expect("it is read");
    served.signal("-HUP");
    writer.write_all(files.text(rules()[0]).as_bytes()).expect("is read");
    drop(writer);
    served.wait_for(&["\"serving\""]);
    served.wait_for(&["not reloaded", "cannot be read within"]);
    drop(served);

    // And in the middle of as many starts.
    let file = files.at("p.yaml");
    fs::write(&file, files.text(rules()[0])).expect("written");
    for _ in 0..50 {
        let mut served = Served::start(&file);
        served.until_it_takes(Signal::Hangup).await;
        for _ in 0..3 {
            served.signal("-HUP");
        }
        served.wait_for(&["\"serving\""]);
    }
}
