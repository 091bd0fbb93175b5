//! What becomes of the service when its log cannot be written: the running binary with a standard error that stalls, is
//! full, is closed, or has lost its reader.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::ports::free_port;
use crate::support::real::MAX_ATTEMPTS;
use crate::support::subprocess::run_in_subprocess;
use crate::support::{Answer, Ask};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use portcullis::commands::issuer::{Fault, Issuer, SigningAlgorithm, SigningKey};
use portcullis::config::{Log, LogFormat, LogLevel};
use portcullis::telemetry;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};

const PATIENCE: Duration = Duration::from_secs(60);

/// What a pipe of Linux holds.
const PIPE_BYTES: usize = 64 << 10;

/// `portcullis serve`, killed when dropped.
struct Served {
    process: Child,
    client: AuthorizationClient<Channel>,
    admin: u16,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

fn now() -> i64 {
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    i64::try_from(now).expect("a time of this age")
}

/// The binary, with this standard error unless the shell takes it away.
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
    /// Serves once it is ready. Its log may not say where it listens, nor why it ended: one that does so at its start is
    /// taken for one that found somebody else at its address, and is started again at others.
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
            let process = command.spawn().expect("the binary runs");
            let channel =
                Endpoint::try_from(format!("http://127.0.0.1:{door}")).expect("a URL").connect_lazy();
            let mut served = Self { process, client: AuthorizationClient::new(channel), admin };
            if timeout(PATIENCE, served.gets_ready()).await.expect("ready in time") {
                return served;
            }
        }
        panic!("it ended {MAX_ATTEMPTS} times at its start");
    }

    /// Whether it gets ready before it ends.
    async fn gets_ready(&mut self) -> bool {
        while self.page("/readyz").await != "ok\n" {
            if self.process.try_wait().expect("is ours").is_some() {
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
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
    }

    /// A page of the operator's door; nothing where it does not answer.
    async fn page(&self, path: &str) -> String {
        let page = timeout(PATIENCE, reqwest::get(format!("http://127.0.0.1:{}{path}", self.admin)));
        match page.await.expect("it answers or refuses") {
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
        let answer = timeout(PATIENCE, client.check(check)).await.expect("an answer comes");
        Answer::read(answer.expect("answered").into_inner())
    }

    /// Asks so often, several at a time. Each has to be answered so.
    async fn flood(&self, token: &str, times: usize, allowed: bool) {
        let mut asking = JoinSet::new();
        for worker in 0..16 {
            let (client, token) = (self.client.clone(), token.to_owned());
            asking.spawn(async move {
                for _ in (worker..times).step_by(16) {
                    let check = Ask::default().header("authorization", format!("Bearer {token}"));
                    let answer = timeout(PATIENCE, client.clone().check(check.into_check())).await;
                    let answer = answer.expect("an answer comes").expect("answered").into_inner();
                    assert_eq!(Answer::read(answer).is_allowed(), allowed);
                }
            });
        }
        while let Some(done) = asking.join_next().await {
            done.expect("each is answered");
        }
    }

    async fn ends_on_sigterm(&mut self) {
        let killed = Command::new("kill").arg(self.process.id().to_string()).status().expect("kill runs");
        assert!(killed.success());
        let ended = async {
            loop {
                match self.process.try_wait().expect("is asked") {
                    Some(status) => return status,
                    None => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        assert_eq!(timeout(PATIENCE, ended).await.expect("it ends").code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_holds_up_nothing_and_says_later_how_much_is_missing() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let issuer = Issuer::start().await.expect("bound");
    let key = issuer.rotate(SigningAlgorithm::ES256);
    let mut served = Served::start(binary(false, Stdio::piped()), folder.path(), &issuer, "debug").await;
    let good = key.sign(&issuer.claims(now()));
    let forged = SigningKey::generate("forged", SigningAlgorithm::ES256).sign(&issuer.claims(now()));
    served.flood(&forged, 2_100, false).await;
    // Those have few lines; what is allowed has one each at this level. They fill the pipe and the buffer behind it.
    for _ in 0..40 {
        served.flood(&good, 500, true).await;
        if served.dropped().await > 100 {
            break;
        }
    }
    let dropped = served.dropped().await;
    assert!(dropped > 100, "{dropped}");
    assert!(served.ask(&good).await.is_allowed());
    assert_eq!(served.page("/livez").await, "ok\n");

    let log = BufReader::new(served.process.stderr.take().expect("piped"));
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let reading = std::thread::spawn(move || {
        let (mut missing, mut suppressed) = (0, 0);
        for line in log.lines() {
            let line: Value = serde_json::from_str(&line.expect("text")).expect("each line is whole");
            missing += line["dropped"].as_u64().unwrap_or_default();
            if line["reason"] == "key_unknown" {
                suppressed += line["suppressed"].as_u64().unwrap_or_default();
            }
            if line["dropped"].is_u64() {
                let _test_goes_on = tell.send(missing);
            }
        }
        (missing, suppressed)
    });
    assert!(timeout(PATIENCE, told.recv()).await.expect("it tells") > Some(100));
    served.flood(&forged, 300, false).await;
    served.ends_on_sigterm().await;
    let (missing, suppressed) = reading.join().expect("no line is torn");
    assert!(missing >= dropped, "{missing} of {dropped}");
    assert!(suppressed > 0, "refusals without a line are told of, at the end at last");
}

/// A standard error that takes nothing.
enum Bad {
    Full,
    Closed,
    ReaderGone,
    /// From the first line on, and to the end.
    Stalled,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_ends_no_task_and_no_answer() {
    for bad in [Bad::Full, Bad::Closed, Bad::ReaderGone, Bad::Stalled] {
        let (_unread, mut writer) = std::io::pipe().expect("a pipe");
        let folder = tempfile::tempdir().expect("a temporary directory");
        let issuer = Issuer::start().await.expect("bound");
        issuer.rotate(SigningAlgorithm::ES256);
        let command = match bad {
            Bad::Full => {
                let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
                binary(false, full.into())
            }
            Bad::Closed => binary(true, Stdio::null()),
            Bad::ReaderGone => binary(false, Stdio::piped()),
            Bad::Stalled => {
                writer.write_all(&[b'\n'; PIPE_BYTES]).expect("an empty pipe takes that");
                binary(false, writer.into())
            }
        };
        let mut served = Served::start(command, folder.path(), &issuer, "info").await;
        drop(served.process.stderr.take());
        let forged = SigningKey::generate("forged", SigningAlgorithm::ES256).sign(&issuer.claims(now()));
        served.flood(&forged, 200, false).await;
        // A fetch that fails, with a line of the task that keeps the keys, and a rotation after that.
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
        served.eventually("the new key is followed", async || served.ask(&token).await.is_allowed()).await;
        assert_eq!(served.page("/livez").await, "ok\n");
        assert_eq!(served.page("/readyz").await, "ok\n");
        // Where it was closed at the start, Rust has put /dev/null there, which takes everything; a few lines fit in
        // the buffer.
        if matches!(bad, Bad::Full | Bad::ReaderGone) {
            assert!(served.dropped().await > 10);
        }
        assert!(!served.page("/metrics").await.contains("task_restarts_total{"), "no task has ended");
        served.ends_on_sigterm().await;
    }
}

#[test]
fn panics_are_told_in_the_log_without_what_a_request_may_be_a_part_of() {
    let said = run_in_subprocess(
        panics_are_told_in_the_log_without_what_a_request_may_be_a_part_of,
        panic_in_three_ways,
    );
    let Some(said) = said else { return };
    let panics: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(panics.len(), 3, "{said}");
    for panic in &panics {
        assert_eq!(panic["level"], "ERROR");
        assert!(panic["place"].as_str().is_some_and(|place| place.contains("stalled_log.rs:")), "{panic}");
    }
    assert!(said.contains("as it stands in the source"), "{said}");
    assert!(!said.contains("the-token-of-a-request"), "{said}");
}

fn panic_in_three_ways() {
    telemetry::log_panics();
    telemetry::start_log(&Log { format: LogFormat::Json, level: LogLevel::Info }).expect("started");
    let token = std::hint::black_box("the-token-of-a-request");
    let panics = [
        std::thread::spawn(move || panic!("at {token}")),
        std::thread::spawn(|| panic!("as it stands in the source")),
        std::thread::spawn(move || {
            let _cut = &format!("{token}é")[..23];
        }),
    ];
    for panic in panics {
        panic.join().expect_err("it panics");
    }
    telemetry::flush_log(PATIENCE);
}
