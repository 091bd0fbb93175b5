//! The service while its log cannot be written: the binary with a standard error that stalls, is full, is closed, or has no
//! reader.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::ports::free_port;
use crate::support::real::MAX_ATTEMPTS;
use crate::support::subprocess::{StartCommand, run_in_subprocess};
use crate::support::{Answer, Ask};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use portcullis::commands::issuer::{Fault, Issuer, SigningAlgorithm, SigningKey};
use portcullis::config::{Log, LogFormat, LogLevel};
use portcullis::telemetry;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};

const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The capacity of a pipe on Linux.
const PIPE_BYTES: usize = 64 << 10;

/// `portcullis serve`, killed when dropped.
struct Served {
    process: Child,
    client: AuthorizationClient<Channel>,
    admin: u16,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _killed = self.process.kill();
        let _reaped = self.process.wait();
    }
}

fn now() -> i64 {
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    i64::try_from(now).expect("a time of this age")
}

/// The binary with this standard error, or with a closed one.
fn binary(closed: bool, error: Stdio) -> Command {
    let binary = env!("CARGO_BIN_EXE_portcullis");
    let mut command = Command::new(if closed { "sh" } else { binary });
    if closed {
        command.args(["-c", "exec \"$0\" \"$@\" 2>&-", binary]);
    }
    command.env_remove("PORTCULLIS_LOG").stderr(error);
    command
}

impl Served {
    /// Starts the service and waits until it is ready. Its log may have neither its addresses nor its error: a process that
    /// exits at the start is assumed to have an occupied port and is started again with other ports.
    async fn start(mut command: Command, folder: &Path, issuer: &Issuer, level: &str) -> Self {
        let file: PathBuf = folder.join("p.yaml");
        command.args(["serve", "--config"]).arg(&file);
        for _ in 0..MAX_ATTEMPTS {
            let (door, admin) = (free_port(), free_port());
            let text = format!(
                "listen: {{ext_authz: '127.0.0.1:{door}', admin: '127.0.0.1:{admin}'}}
shutdown: {{drain_delay: 0s, grace: 1s}}
log: {{level: {level}}}
providers:
  - {{name: demo, issuer: '{}', audiences: [orders-api], jwks_uri: '{}', refresh: {{min_spacing: 100ms}}}}
",
                issuer.issuer(),
                issuer.jwks_uri()
            );
            std::fs::write(&file, text).expect("written");
            let process = command.start().expect("the binary runs");
            let channel =
                Endpoint::try_from(format!("http://127.0.0.1:{door}")).expect("a URL").connect_lazy();
            let mut served = Self { process, client: AuthorizationClient::new(channel), admin };
            if timeout(TEST_TIMEOUT, served.wait_until_ready()).await.expect("ready in time") {
                return served;
            }
        }
        panic!("the process exited {MAX_ATTEMPTS} times at the start");
    }

    /// Waits until it is ready; `false` if it exits before.
    async fn wait_until_ready(&mut self) -> bool {
        while self.page("/readyz").await != "ok\n" {
            if self.process.try_wait().expect("a child process").is_some() {
                return false;
            }
            sleep(Duration::from_millis(20)).await;
        }
        true
    }

    async fn eventually(&self, what: &str, holds: impl AsyncFn() -> bool) {
        let wait = async {
            while !holds().await {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(TEST_TIMEOUT, wait).await.unwrap_or_else(|_| panic!("timeout: {what}"));
    }

    /// A page of the admin listener; empty if the connection fails.
    async fn page(&self, path: &str) -> String {
        let page = timeout(TEST_TIMEOUT, reqwest::get(format!("http://127.0.0.1:{}{path}", self.admin)));
        match page.await.expect("answered in time") {
            Ok(page) => page.text().await.expect("text"),
            Err(_) => String::new(),
        }
    }

    async fn dropped(&self) -> u64 {
        let page = self.page("/metrics").await;
        let value = page.lines().find_map(|line| line.strip_prefix("portcullis_log_dropped_total "));
        value.expect("it is exported").parse().expect("a number")
    }

    async fn ask(&self, token: &str) -> Answer {
        let check = Ask::default().header("authorization", format!("Bearer {token}")).into_check();
        let mut client = self.client.clone();
        let answer = timeout(TEST_TIMEOUT, client.check(check)).await.expect("answered in time");
        Answer::read(answer.expect("answered").into_inner())
    }

    /// Sends this many checks, 16 concurrently, and asserts each verdict.
    async fn flood(&self, token: &str, times: usize, allowed: bool) {
        let mut workers = JoinSet::new();
        for worker in 0..16 {
            let (client, token) = (self.client.clone(), token.to_owned());
            workers.spawn(async move {
                for _ in (worker..times).step_by(16) {
                    let check = Ask::default().header("authorization", format!("Bearer {token}"));
                    let answer = timeout(TEST_TIMEOUT, client.clone().check(check.into_check())).await;
                    let answer = answer.expect("answered in time").expect("answered").into_inner();
                    assert_eq!(Answer::read(answer).is_allowed(), allowed);
                }
            });
        }
        while let Some(done) = workers.join_next().await {
            done.expect("each is answered");
        }
    }

    async fn assert_exits_on_sigterm(&mut self) {
        let killed = Command::new("kill").arg(self.process.id().to_string()).run().expect("kill runs");
        assert!(killed.success());
        let ended = async {
            loop {
                match self.process.try_wait().expect("a child process") {
                    Some(status) => return status,
                    None => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        assert_eq!(timeout(TEST_TIMEOUT, ended).await.expect("exited").code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unread_log_blocks_nothing_and_later_reports_dropped_lines() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let issuer = Issuer::start().await.expect("bound");
    let key = issuer.rotate(SigningAlgorithm::ES256);
    let mut served = Served::start(binary(false, Stdio::piped()), folder.path(), &issuer, "debug").await;
    let valid = key.sign(&issuer.claims(now()));
    let forged = SigningKey::generate("forged", SigningAlgorithm::ES256).sign(&issuer.claims(now()));
    served.flood(&forged, 2_100, false).await;
    // Denials log few lines; at this level each allowed request logs one. They fill the pipe and the buffer.
    for _ in 0..40 {
        served.flood(&valid, 500, true).await;
        if served.dropped().await > 100 {
            break;
        }
    }
    let dropped = served.dropped().await;
    assert!(dropped > 100, "{dropped}");
    assert!(served.ask(&valid).await.is_allowed());
    assert_eq!(served.page("/livez").await, "ok\n");

    let log = BufReader::new(served.process.stderr.take().expect("piped"));
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let reading = std::thread::spawn(move || {
        let (mut missing, mut suppressed) = (0, 0);
        for line in log.lines() {
            let line: Value = serde_json::from_str(&line.expect("text")).expect("each line is complete");
            missing += line["dropped"].as_u64().unwrap_or_default();
            if line["reason"] == "key_unknown" {
                suppressed += line["suppressed"].as_u64().unwrap_or_default();
            }
            if line["dropped"].is_u64() {
                let _test_continues = sender.send(missing);
            }
        }
        (missing, suppressed)
    });
    assert!(timeout(TEST_TIMEOUT, receiver.recv()).await.expect("logged") > Some(100));
    served.flood(&forged, 300, false).await;
    served.assert_exits_on_sigterm().await;
    let (missing, suppressed) = reading.join().expect("no line is torn");
    assert!(missing >= dropped, "{missing} of {dropped}");
    assert!(suppressed > 0, "suppressed denials are logged, at shutdown at the latest");
}

/// A standard error that cannot be written.
enum Unwritable {
    Full,
    Closed,
    ReaderGone,
    /// From the first line to the end.
    Stalled,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_affects_no_task_and_no_answer() {
    for stderr in [Unwritable::Full, Unwritable::Closed, Unwritable::ReaderGone, Unwritable::Stalled] {
        let (_unread, mut writer) = std::io::pipe().expect("a pipe");
        let folder = tempfile::tempdir().expect("a temporary directory");
        let issuer = Issuer::start().await.expect("bound");
        issuer.rotate(SigningAlgorithm::ES256);
        let command = match stderr {
            Unwritable::Full => {
                let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
                binary(false, full.into())
            }
            Unwritable::Closed => binary(true, Stdio::null()),
            Unwritable::ReaderGone => binary(false, Stdio::piped()),
            Unwritable::Stalled => {
                writer.write_all(&[b'\n'; PIPE_BYTES]).expect("an empty pipe takes that");
                binary(false, writer.into())
            }
        };
        let mut served = Served::start(command, folder.path(), &issuer, "info").await;
        drop(served.process.stderr.take());
        let forged = SigningKey::generate("forged", SigningAlgorithm::ES256).sign(&issuer.claims(now()));
        served.flood(&forged, 200, false).await;
        // A failed fetch, which the key task logs, and a rotation after it.
        issuer.set_fault(Some(Fault::Status(503)));
        let key = issuer.rotate(SigningAlgorithm::ES256);
        let token = key.sign(&issuer.claims(now()));
        served
            .eventually("a fetch fails", async || {
                served.ask(&token).await;
                served.page("/metrics").await.lines().any(|line| line.contains("outcome=\"failed\""))
            })
            .await;
        issuer.set_fault(None);
        served.eventually("the new key is known", async || served.ask(&token).await.is_allowed()).await;
        assert_eq!(served.page("/livez").await, "ok\n");
        assert_eq!(served.page("/readyz").await, "ok\n");
        // Rust replaces a standard error that is closed at the start by /dev/null, which accepts everything; a few lines fit
        // in the buffer.
        if matches!(stderr, Unwritable::Full | Unwritable::ReaderGone) {
            assert!(served.dropped().await > 10);
        }
        assert!(!served.page("/metrics").await.contains("task_restarts_total{"), "no task has ended");
        served.assert_exits_on_sigterm().await;
    }
}

#[test]
fn panics_are_logged_without_request_data() {
    let output = run_in_subprocess(panics_are_logged_without_request_data, panic_in_three_ways);
    let Some(output) = output else { return };
    let panics: Vec<Value> = output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(panics.len(), 3, "{output}");
    for panic in &panics {
        assert_eq!(panic["level"], "ERROR");
        assert!(panic["place"].as_str().is_some_and(|place| place.contains("stalled_log.rs:")), "{panic}");
    }
    assert!(output.contains("a message of the source"), "{output}");
    assert!(!output.contains("the-token-of-a-request"), "{output}");
}

fn panic_in_three_ways() {
    telemetry::log_panics();
    telemetry::start_log(&Log { format: LogFormat::Json, level: LogLevel::Info }).expect("started");
    let token = std::hint::black_box("the-token-of-a-request");
    let panics = [
        std::thread::spawn(move || panic!("at {token}")),
        std::thread::spawn(|| panic!("a message of the source")),
        std::thread::spawn(move || {
            let _cut = &format!("{token}é")[..23];
        }),
    ];
    for panic in panics {
        panic.join().expect_err("it panics");
    }
    telemetry::flush_log(TEST_TIMEOUT);
}
