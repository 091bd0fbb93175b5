//! How much memory ten thousand callers with the worst tokens make a service hold while they wait for keys that
//! do not come. The service is a process of its own; its issuer answers at the start and then no more.
//!
//! ```sh
//! cargo build --release && cargo run --release --example waiting_memory -- target/release/portcullis
//! ```
//!
//! More arguments are lines of the provider's `refresh`, such as `max_waiting_bytes: 1GiB` for what it would be
//! without that bound. Linux only: it reads `/proc`.

#![allow(clippy::print_stdout, clippy::indexing_slicing, reason = "a measurement that is run by hand")]

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

/// The most that the service may hold at any time.
const BAR_MIB: u64 = 200;

type Failed = Box<dyn Error>;

/// The service, killed when dropped.
struct Service {
    child: Child,
    ports: (u16, u16),
}

impl Drop for Service {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let mut arguments = std::env::args().skip(1);
    let binary = arguments.next().ok_or("usage: waiting_memory PORTCULLIS [LINE OF refresh]...")?;
    let more: String = arguments.map(|line| format!(", {line}")).collect();
    let issuer = Issuer::start().await?;
    issuer.rotate(SigningAlgorithm::RS256);
    let folder = tempfile::tempdir()?;
    let service = Service::start(Path::new(&binary), folder.path(), &issuer, &more).await?;
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
                Err(_) => "no answer".to_owned(),
            }
        });
    }
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    let mut most_waiting = 0;
    while !callers.is_empty() {
        most_waiting = most_waiting.max(service.metric("portcullis_jwks_waiters{").await?);
        sleep(Duration::from_millis(100)).await;
        while let Some(answer) = callers.try_join_next() {
            *answers.entry(answer?).or_default() += 1;
        }
    }
    drop(clients);
    let highest = service.memory("VmHWM")?;
    let rejected = service.metric("portcullis_jwks_waiters_rejected_total{").await?;
    println!("callers {CALLERS}, tokens of {TOKEN_BYTES} bytes, connections {CONNECTIONS}");
    println!("answers: {answers:?}; waiting at one time: {most_waiting}; turned away: {rejected}");
    println!(
        "resident before: {before} MiB, at the highest: {highest} MiB, behind it: {} MiB",
        service.memory("VmRSS")?
    );
    println!("bar: {BAR_MIB} MiB, {}", if highest < BAR_MIB { "kept" } else { "broken" });
    Ok(())
}

/// Good claims, as many small numbers as a token may have by default, and text up to the largest token.
fn worst_claims(issuer: &Issuer) -> Result<String, Failed> {
    let now = std::time::UNIX_EPOCH.elapsed()?.as_secs();
    let mut claims = issuer.claims(i64::try_from(now)? + 300);
    claims["numbers"] = vec![1; 4_000].into();
    claims["text"] = "".into();
    let room = (TOKEN_BYTES - unsigned(0, "").len()) / 4 * 3;
    claims["text"] = "x".repeat(room.saturating_sub(claims.to_string().len())).into();
    Ok(claims.to_string())
}

/// A token that no key ever signed, under a `kid` of its own.
fn unsigned(number: usize, claims: &str) -> String {
    let header = json!({"alg": "RS256", "kid": format!("made-up-{number:06}")}).to_string();
    let signature = "A".repeat(342);
    format!("{}.{}.{signature}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
}

impl Service {
    /// Serves from this folder until it has had the issuer's keys.
    async fn start(binary: &Path, folder: &Path, issuer: &Issuer, more: &str) -> Result<Self, Failed> {
        let ports = (free_port()?, free_port()?);
        let file = folder.join("portcullis.yaml");
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
        Err("the service never was ready".into())
    }

    /// Whether a page of the operator's door was found, and its text.
    async fn page(&self, path: &str) -> Result<(bool, String), Failed> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let page = client.get(format!("http://127.0.0.1:{}{path}", self.ports.1)).send().await?;
        Ok((page.status().is_success(), page.text().await?))
    }

    /// A metric of the one provider, 0 where it is not there.
    async fn metric(&self, begin: &str) -> Result<u64, Failed> {
        let (_, page) = self.page("/metrics").await?;
        let value =
            page.lines().find(|line| line.starts_with(begin)).and_then(|line| line.rsplit(' ').next());
        Ok(value.map_or(Ok(0), str::parse)?)
    }

    /// A size of the process, in MiB.
    fn memory(&self, name: &str) -> Result<u64, Failed> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with(name)).ok_or("no such size")?;
        let kib: u64 = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
        Ok(kib / 1024)
    }
}

fn free_port() -> Result<u16, Failed> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
