//! The built binary: a configuration that is truncated while it is written, or is a pipe, and signals during the start.

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
use crate::support::subprocess::StartCommand;

/// Longer than any step takes that succeeds.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Signals and their numbers.
#[derive(Clone, Copy)]
enum Signal {
    Hangup = 1,
    Terminate = 15,
}

/// `portcullis serve`, killed when dropped.
struct Server {
    child: Child,
    log: Receiver<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Server {
    fn start(config: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command.args(["serve", "--config"]).arg(config).env_remove("PORTCULLIS_LOG").stderr(Stdio::piped());
        let mut child = command.start().expect("the binary runs");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (line, log) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|one| line.send(one)));
        Self { child, log }
    }

    /// Reads the log until a line contains all of these.
    fn wait_for(&self, texts: &[&str]) -> String {
        let mut seen = String::new();
        loop {
            let line = self.log.recv_timeout(TIMEOUT);
            let line = line.unwrap_or_else(|error| panic!("the log has no {texts:?}, {error}:\n{seen}"));
            if texts.iter().all(|text| line.contains(text)) {
                return line;
            }
            seen = seen + &line + "\n";
        }
    }

    /// Waits until it serves; returns the address of its HTTP listener.
    fn wait_serving(&self) -> SocketAddr {
        Serving::read(&self.wait_for(&["\"serving\""])).expect("the line has the addresses").http()
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).run();
        assert!(sent.expect("kill runs").success());
    }

    /// Whether it handles this signal.
    fn handles(&self, signal: Signal) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
        // The lowest bit is signal 1.
        caught.is_some_and(|bits| bits >> (signal as u32 - 1) & 1 == 1)
    }

    async fn wait_until_it_handles(&mut self, signal: Signal) {
        let handles = async {
            while !self.handles(signal) {
                assert_eq!(self.child.try_wait().expect("is ours"), None, "it ended");
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(TIMEOUT, handles).await.expect("it handles the signal");
    }

    async fn wait_exit(&mut self) -> ExitStatus {
        let exit = async {
            loop {
                match self.child.try_wait().expect("is ours") {
                    Some(status) => return status,
                    None => sleep(Duration::from_millis(10)).await,
                }
            }
        };
        timeout(TIMEOUT, exit).await.expect("it ends")
    }
}

/// A configuration with an HTTP listener, which drains immediately.
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
        let listener = "  forward_auth: {address: 127.0.0.1:0, profile: envoy}\n";
        let head = head(&self.key).replace("providers:\n", &format!("{listener}providers:\n"));
        format!("shutdown: {{drain_delay: 0s}}\n{head}{rules}")
    }

    fn pipe(&self) -> PathBuf {
        let pipe = self.at("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).run().expect("mkfifo runs").success());
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
async fn a_truncated_configuration_allows_nothing_under_load_and_sighup_applies_it_immediately() {
    let files = Files::new();
    let file = files.at("p.yaml");
    let [first, second] = rules().map(|rules| files.text(rules));
    fs::write(&file, &first).expect("written");
    let mut server = Server::start(&file);
    let at = server.wait_serving();
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    for (whole, end, lost) in [
        (&second, "  - name: admin", "rules \\\"admin\\\", rules \\\"rest\\\""),
        (&first, "    require:", "rules \\\"admin\\\".require"),
        (&first, "    deny: true", "rules \\\"blocked\\\".deny"),
    ] {
        let cut = &whole[..whole.find(end).expect("there")];
        fs::write(&file, cut).expect("written");
        // Until it has been seen twice and is pending.
        let waits = tokio::task::spawn_blocking(move || {
            let line = server.wait_for(&["configuration change pending", "send SIGHUP"]);
            (server, line)
        });
        let mut asked = 0;
        while !waits.is_finished() {
            for path in ["/admin/x", "/internal/x"] {
                assert_eq!(files.status(&client, at, path).await, 403, "{path} under {cut}");
            }
            asked += 1;
        }
        let line;
        (server, line) = waits.await.expect("no panic");
        assert!(line.contains("\"WARN\"") && line.contains(lost) && asked > 0, "{line}");
    }
    server.signal("-HUP");
    server.wait_for(&["configuration reloaded"]);
    assert_eq!(files.status(&client, at, "/internal/x").await, 200, "the truncated file is in use");
    server.signal("-TERM");
    assert_eq!(server.wait_exit().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_from_a_pipe_is_read_once_and_does_not_delay_the_shutdown() {
    let files = Files::new();
    let pipe = files.pipe();
    let mut server = Server::start(&pipe);
    fs::write(&pipe, files.text(rules()[0])).expect("is read");
    let at = server.wait_serving();
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    assert_eq!(files.status(&client, at, "/internal/x").await, 403);
    // The pipe has no writer, and a pending reload does not delay the shutdown.
    server.signal("-HUP");
    server.wait_for(&["not reloaded", "cannot be read within"]);
    server.signal("-TERM");
    server.wait_for(&["\"stopped\""]);
    assert_eq!(server.wait_exit().await.code(), Some(0));

    // Data that is written later, but before the end of file, is part of the configuration.
    let server = Server::start(&pipe);
    fs::write(&pipe, files.text(rules()[0])).expect("is read");
    server.wait_for(&["\"serving\""]);
    server.signal("-HUP");
    server.wait_for(&["not reloaded", "cannot be read within"]);
    fs::write(&pipe, files.text(rules()[1])).expect("is read");
    server.wait_for(&["configuration reloaded"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_to_a_pipe_that_a_regular_file_has_replaced_are_ignored() {
    let files = Files::new();
    let pipe = files.pipe();
    let server = Server::start(&pipe);
    fs::write(&pipe, files.text(rules()[0])).expect("is read");
    let at = server.wait_serving();
    server.signal("-HUP");
    // The other end of the pipe is open now.
    server.wait_for(&["not reloaded", "cannot be read within"]);
    fs::rename(&pipe, files.at("old")).expect("renamed");
    fs::write(&pipe, files.text(rules()[1])).expect("written");
    fs::write(files.at("old"), files.text("rules: []\n")).expect("is read");
    server.wait_for(&["configuration reloaded"]);
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    assert_eq!(files.status(&client, at, "/internal/x").await, 403);
    assert_eq!(files.status(&client, at, "/more").await, 403, "the second version serves");
    // The file is watched.
    fs::write(&pipe, files.text(rules()[1]) + "log: {level: warn}\n").expect("written");
    server.wait_for(&["configuration reloaded", "restart to apply changes of log"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sighups_cause_few_reloads() {
    let files = Files::new();
    let file = files.at("p.yaml");
    fs::write(&file, files.text(rules()[0])).expect("written");
    let mut server = Server::start(&file);
    server.wait_for(&["\"serving\""]);
    let started_at = portcullis::clock::monotonic();
    for _ in 0..200 {
        server.signal("-HUP");
    }
    server.wait_for(&["configuration reloaded"]);
    let most = portcullis::clock::elapsed_since(started_at).as_millis() / 200 + 2;
    server.signal("-TERM");
    assert_eq!(server.wait_exit().await.code(), Some(0));
    let reloads = server.log.iter().filter(|line| line.contains("configuration reloaded")).count();
    assert!((reloads as u128) < most, "{reloads} of {most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_waits_for_a_pipe_can_be_terminated() {
    let files = Files::new();
    let mut server = Server::start(&files.pipe());
    server.wait_until_it_handles(Signal::Terminate).await;
    server.signal("-TERM");
    assert_eq!(server.wait_exit().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_during_a_start_does_not_end_it_and_reloads_once_it_serves() {
    let files = Files::new();
    // The start blocks at the first file that it reads.
    let pipe = files.pipe();
    let server = Server::start(&pipe);
    // Opened once the other end is open; signals are handled by then.
    let mut writer = fs::File::options().write(true).open(&pipe).expect("it is read");
    server.signal("-HUP");
    writer.write_all(files.text(rules()[0]).as_bytes()).expect("is read");
    drop(writer);
    server.wait_for(&["\"serving\""]);
    server.wait_for(&["not reloaded", "cannot be read within"]);
    drop(server);

    // Also in the middle of as many starts.
    let file = files.at("p.yaml");
    fs::write(&file, files.text(rules()[0])).expect("written");
    for _ in 0..50 {
        let mut server = Server::start(&file);
        server.wait_until_it_handles(Signal::Hangup).await;
        for _ in 0..3 {
            server.signal("-HUP");
        }
        server.wait_for(&["\"serving\""]);
    }
}
