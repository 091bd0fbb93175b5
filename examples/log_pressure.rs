//! Measures how many Checks per second the service answers while its log is read, stalled or flooded. Each scenario is
//! a process of its own with inline keys; they are measured in turns of one second.
//!
//! ```sh
//! cargo build --release && cargo run --release --example log_pressure -- target/release/portcullis
//! ```
//!
//! A second argument is the number of turns, 6 by default. Good and denied tokens cost the same, because the denied
//! ones have a wrong signature. Linux only: a full pipe of 64 KiB stalls the log from its first line on.

#![allow(
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a measurement that is run by hand"
)]

use std::error::Error;
use std::fs::{self, File};
use std::io::{Read, Write, pipe};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use portcullis::clock::monotonic;
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use portcullis::ext_authz::client::CheckClient;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;

const CALLERS: usize = 32;
const TURN: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(10);
const PIPE_BYTES: usize = 64 << 10;

type Failure = Box<dyn Error + Send + Sync>;

/// The destination of standard error.
#[derive(Clone, Copy)]
enum Log {
    Read,
    Stalled,
    Null,
}

/// A scenario, in which `refused` of `of` Checks are denied.
struct Scenario {
    name: &'static str,
    log: Log,
    level: &'static str,
    refused: usize,
    of: usize,
}

const SCENARIOS: [Scenario; 6] = [
    Scenario { name: "none denied, log read", log: Log::Read, level: "info", refused: 0, of: 1 },
    Scenario { name: "half denied, log read", log: Log::Read, level: "info", refused: 1, of: 2 },
    Scenario { name: "half denied, log stalled", log: Log::Stalled, level: "info", refused: 1, of: 2 },
    Scenario { name: "all denied, log to /dev/null", log: Log::Null, level: "info", refused: 1, of: 1 },
    Scenario {
        name: "none denied, each logged, log read",
        log: Log::Read,
        level: "debug",
        refused: 0,
        of: 1,
    },
    Scenario {
        name: "none denied, each logged, log stalled",
        log: Log::Stalled,
        level: "debug",
        refused: 0,
        of: 1,
    },
];

/// A service, killed when dropped.
struct Service {
    child: Child,
    clients: Vec<CheckClient>,
    /// Kept open so that the stalled pipe does not break.
    _unread: Option<std::io::PipeReader>,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Service {
    async fn start(
        binary: &Path,
        config: PathBuf,
        scenario: &Scenario,
        key: &SigningKey,
    ) -> Result<Self, Failure> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let text = format!(
            "listen: {{ext_authz: '127.0.0.1:{port}'}}\nlog: {{level: {}}}\nproviders: [{{name: p, issuer: https://i, \
             audiences: [a], jwks: {}}}]\n",
            scenario.level,
            json!({"keys": [key.public_jwk()]})
        );
        fs::write(&config, text)?;
        let mut command = Command::new(binary);
        command.args(["serve", "--config"]).arg(config);
        let mut unread = None;
        match scenario.log {
            Log::Null => {
                command.stderr(Stdio::null());
            }
            Log::Read => {
                command.stderr(Stdio::piped());
            }
            Log::Stalled => {
                let (reader, mut writer) = pipe()?;
                writer.write_all(&[b'\n'; PIPE_BYTES])?;
                command.stderr(writer);
                unread = Some(reader);
            }
        }
        let mut child = command.spawn()?;
        if let Some(mut log) = child.stderr.take() {
            std::thread::spawn(move || {
                let mut buffer = [0; 1 << 16];
                while log.read(&mut buffer).is_ok_and(|read| read > 0) {}
            });
        }
        let mut service = Self { child, clients: Vec::new(), _unread: unread };
        let deadline = monotonic() + TIMEOUT;
        while service.clients.len() < 4 {
            match CheckClient::connect(format!("127.0.0.1:{port}")).await {
                Ok(client) => service.clients.push(client),
                Err(error) if monotonic() > deadline => return Err(error.to_string().into()),
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
        Ok(service)
    }

    /// The number of Checks that are answered in one turn.
    async fn turn(&self, scenario: &Scenario, good: &str, bad: &str) -> Result<usize, Failure> {
        let (until, mut callers) = (monotonic() + TURN, JoinSet::new());
        for caller in 0..CALLERS {
            let client = self.clients[caller % self.clients.len()].clone();
            let (refused, of) = (scenario.refused, scenario.of);
            let (good, bad) = (format!("Bearer {good}"), format!("Bearer {bad}"));
            callers.spawn(async move {
                let mut answered = 0;
                while monotonic() < until {
                    let is_bad = answered % of < refused;
                    let token = if is_bad { &bad } else { &good };
                    let answer = client.check(&[("authorization", token)], TIMEOUT).await;
                    if answer.map_err(|error| error.to_string())?.allowed == is_bad {
                        return Err("a token got the wrong verdict".to_owned());
                    }
                    answered += 1;
                }
                Ok(answered)
            });
        }
        let mut answered = 0;
        while let Some(caller) = callers.join_next().await {
            answered += caller??;
        }
        Ok(answered)
    }
}

fn median(mut rates: Vec<usize>) -> usize {
    rates.sort_unstable();
    rates[rates.len() / 2]
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let binary = arguments.next().ok_or("usage: log_pressure PORTCULLIS [TURNS]")?;
    File::open(&binary).map_err(|error| format!("{binary}: {error}"))?;
    let turns: usize = arguments.next().map_or(Ok(6), |turns| turns.parse())?;
    let directory = tempfile::tempdir()?;
    let key = SigningKey::generate("k", SigningAlgorithm::ES256);
    let claims = json!({"iss": "https://i", "aud": "a", "sub": "alice", "exp": 4_000_000_000_i64});
    let good = key.sign(&claims);
    let bad = SigningKey::generate("k", SigningAlgorithm::ES256).sign(&claims);
    let mut services = Vec::new();
    for (number, scenario) in SCENARIOS.iter().enumerate() {
        let config = directory.path().join(format!("{number}.yaml"));
        services.push(Service::start(Path::new(&binary), config, scenario, &key).await?);
    }
    let mut rates = vec![Vec::new(); SCENARIOS.len()];
    // The first turn warms up.
    for turn in 0..=turns {
        for ((scenario, service), rates) in SCENARIOS.iter().zip(&services).zip(&mut rates) {
            let answered = service.turn(scenario, &good, &bad).await?;
            if turn > 0 {
                rates.push(answered);
            }
        }
    }
    let medians: Vec<usize> = rates.into_iter().map(median).collect();
    println!("{:<40} {:>10} {:>8}", "", "Checks/s", "ratio");
    for (scenario, rate) in SCENARIOS.iter().zip(&medians) {
        println!("{:<40} {rate:>10} {:>8.2}", scenario.name, *rate as f64 / medians[0].max(1) as f64);
    }
    Ok(())
}
