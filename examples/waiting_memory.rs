//! Measures the memory of a service while ten thousand requests with the worst tokens wait for keys that do not arrive.
//! The service is a process of its own; its issuer responds at the start only.
//!
//! ```sh
//! cargo build --release && cargo run --release --example waiting_memory -- target/release/portcullis
//! ```
//!
//! Further arguments are settings of the provider's `refresh`, such as `max_waiting_bytes: 1GiB` to measure without
//! that limit. Linux only: it reads `/proc`.

#![allow(
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a measurement that is run by hand"
)]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis::commands::issuer::{Issuer, SigningAlgorithm};
use portcullis::ext_authz::client::CheckClient;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;

const CALLERS: usize = 10_000;
const CONNECTIONS: usize = 4;
const TOKEN_BYTES: usize = 16 * 1024;

/// The limit of the service's memory.
const LIMIT_MIB: u64 = 200;

type Failure = Box<dyn Error>;

/// The service, killed when dropped.
struct Service {
    child: Child,
    ports: (u16, u16),
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let binary = arguments.next().ok_or("usage: waiting_memory PORTCULLIS [REFRESH SETTING]...")?;
    let more: String = arguments.map(|line| format!(", {line}")).collect();
    let issuer = Issuer::start().await?;
    issuer.rotate(SigningAlgorithm::RS256);
    let directory = tempfile::tempdir()?;
    let service = Service::start(Path::new(&binary), directory.path(), &issuer, &more).await?;
    let before = service.memory("VmRSS")?;
    issuer.hold();

    let claims = worst_claims(&issuer)?;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(CheckClient::connect(format!("127.0.0.1:{}", service.ports.0)).await?);
    }
    let mut callers = JoinSet::new();
    for (number, client) in (0..CALLERS).zip(clients.iter().cycle()) {
        let (client, authorization) = (client.clone(), format!("Bearer {}", unsigned(number, &claims)));
        callers.spawn(async move {
            let headers = [("authorization", authorization.as_str()), ("user-agent", "waiting_memory")];
            match client.check(&headers, Duration::from_secs(120)).await {
                Ok(answer) => answer.reason,
                Err(_) => "no response".to_owned(),
            }
        });
    }
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    let mut max_waiting = 0;
    while !callers.is_empty() {
        max_waiting = max_waiting.max(service.metric("portcullis_jwks_waiters{").await?);
        sleep(Duration::from_millis(100)).await;
        while let Some(answer) = callers.try_join_next() {
            *answers.entry(answer?).or_default() += 1;
        }
    }
    drop(clients);
    let peak = service.memory("VmHWM")?;
    let rejected = service.metric("portcullis_jwks_waiters_rejected_total{").await?;
    println!("callers {CALLERS}, tokens of {TOKEN_BYTES} bytes, connections {CONNECTIONS}");
    println!("responses: {answers:?}; waiting at the same time: {max_waiting}; rejected: {rejected}");
    println!("resident before: {before} MiB, peak: {peak} MiB, after: {} MiB", service.memory("VmRSS")?);
    println!("limit: {LIMIT_MIB} MiB, {}", if peak < LIMIT_MIB { "kept" } else { "exceeded" });
    Ok(())
}

/// Valid claims with the default maximum of values, and text up to the largest token.
fn worst_claims(issuer: &Issuer) -> Result<String, Failure> {
    let now = std::time::UNIX_EPOCH.elapsed()?.as_secs();
    let mut claims = issuer.claims(i64::try_from(now)? + 300);
    claims["numbers"] = vec![1; 4_000].into();
    claims["text"] = "".into();
    let capacity = (TOKEN_BYTES - unsigned(0, "").len()) / 4 * 3;
    claims["text"] = "x".repeat(capacity.saturating_sub(claims.to_string().len())).into();
    Ok(claims.to_string())
}

/// A token with an invalid signature and a unique `kid`.
fn unsigned(number: usize, claims: &str) -> String {
    let header = json!({"alg": "RS256", "kid": format!("made-up-{number:06}")}).to_string();
    let signature = "A".repeat(342);
    format!("{}.{}.{signature}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
}

impl Service {
    /// Starts the service in this directory and waits until it has the issuer's keys.
    async fn start(binary: &Path, directory: &Path, issuer: &Issuer, more: &str) -> Result<Self, Failure> {
        let ports = (free_port()?, free_port()?);
        let file = directory.join("portcullis.yaml");
        let text = format!(
            "listen: {{ext_authz: 127.0.0.1:{}, admin: 127.0.0.1:{}}}
log: {{level: error}}
providers:
  - name: demo
    issuer: {}
    jwks_uri: {}
    any_audience: true
    refresh: {{interval: 1h, wait: 40s, timeout: 40s{more}}}
",
            ports.0,
            ports.1,
            issuer.issuer(),
            issuer.jwks_uri()
        );
        fs::write(&file, text)?;
        let child = Command::new(binary).arg("serve").arg("--config").arg(&file).spawn()?;
        let service = Self { child, ports };
        for _ in 0..400 {
            if service.page("/readyz").await.is_ok_and(|(ready, _)| ready) {
                return Ok(service);
            }
            sleep(Duration::from_millis(50)).await;
        }
        Err("the service did not become ready".into())
    }

    /// Whether a page of the admin door was successful, and its text.
    async fn page(&self, path: &str) -> Result<(bool, String), Failure> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let page = client.get(format!("http://127.0.0.1:{}{path}", self.ports.1)).send().await?;
        Ok((page.status().is_success(), page.text().await?))
    }

    /// A metric of the provider, 0 if it is missing.
    async fn metric(&self, begin: &str) -> Result<u64, Failure> {
        let (_, page) = self.page("/metrics").await?;
        let value =
            page.lines().find(|line| line.starts_with(begin)).and_then(|line| line.rsplit(' ').next());
        Ok(value.map_or(Ok(0), str::parse)?)
    }

    /// A memory size of the process, in MiB.
    fn memory(&self, name: &str) -> Result<u64, Failure> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with(name)).ok_or("no such size")?;
        let kib: u64 = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
        Ok(kib / 1024)
    }
}

fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
