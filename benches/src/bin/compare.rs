//! One core against one core: the empty server, and Portcullis as it is asked in different ways, side by side and interleaved.
//!
//!     compare EMPTY PORTCULLIS [ROUNDS] [NAME...]
//!
//! Servers run on core 0; start this on another one.

use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use portcullis_benches::load::Load;
use portcullis_benches::process::{Server, free};
use portcullis_benches::request::{check, claims};
use portcullis_issuer::{Issuer, SigningAlgorithm, SigningKey, with_claim};
use serde_json::Value;

type Failure = Box<dyn Error + Send + Sync>;

/// How long one server is loaded at a time.
const SLICE: Duration = Duration::from_secs(2);
const WARM: Duration = Duration::from_millis(300);

/// Streams of each of the 8 connections, where a row says nothing else.
const STREAMS_OF_EACH: usize = 16;

/// Other numbers of streams, for the empty server and a cached token: the names of the rows, connections, and streams of
/// each.
const STREAMS: [(&str, &str, usize, usize); 3] = [
    ("empty, 1 stream", "cached, 1 stream", 1, 1),
    ("empty, 1 connection of 100", "cached, 1 connection of 100", 1, 100),
    ("empty, 8 of 1,250", "cached, 8 of 1,250", 8, 1_250),
];

/// What is asked of a server, and how it came out.
struct Row {
    name: &'static str,
    server: usize,
    /// The row of the empty server under the same load.
    reference: usize,
    load: Load,
    /// Checks for each second of processor time, one a round.
    per_cpu_second: Vec<f64>,
    latencies: Vec<Duration>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [empty, portcullis, rest @ ..] = &*arguments else {
        return Err("usage: compare EMPTY PORTCULLIS [ROUNDS] [NAME...]".into());
    };
    let (rounds, names) = match rest {
        [rounds, names @ ..] => (rounds.parse()?, names),
        [] => (3, rest),
    };
    let folder = std::env::temp_dir().join(format!("portcullis-benches-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = measure(empty, portcullis, rounds, names, &folder).await;
    std::fs::remove_dir_all(&folder)?;
    result
}

async fn measure(
    empty: &str,
    portcullis: &str,
    rounds: usize,
    names: &[String],
    folder: &Path,
) -> Result<(), Failure> {
    let issuer = Issuer::start().await?;
    let mut servers = Vec::new();
    let address = free()?;
    servers.push(Server::start(0, empty, &[&address.to_string()])?);
    let scenarios = Scenarios::new(&issuer)?;
    let mut rows = vec![Row::new(
        "empty tonic server",
        0,
        0,
        scenarios.load(address, vec![scenarios.cached.clone()], 0),
    )];
    for (name, configuration, bodies, expected) in scenarios.all() {
        if !(names.is_empty() || names.iter().any(|one| one == name)) {
            continue;
        }
        let address = free()?;
        let file = folder.join(format!("{}.yaml", servers.len()));
        std::fs::write(&file, configuration.replace("ADDRESS", &address.to_string()))?;
        servers.push(Server::start(
            0,
            portcullis,
            &["serve", "--config", file.to_str().ok_or("a path of text")?],
        )?);
        let load = scenarios.load(address, bodies, expected);
        rows.push(Row::new(name, servers.len() - 1, 0, load.clone()));
        if name != "cached" {
            continue;
        }
        for (empty_name, name, connections, streams) in STREAMS {
            let with = |address| Load { address, connections, streams, ..load.clone() };
            let reference = rows.len();
            rows.push(Row::new(empty_name, 0, reference, with(rows[0].load.address)));
            rows.push(Row::new(name, servers.len() - 1, reference, with(address)));
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for round in 0..rounds {
        for row in &mut rows {
            row.load.saturate(WARM).await.map_err(|error| format!("{}: {error}", row.name))?;
            let before = servers[row.server].cpu();
            let answered =
                row.load.saturate(SLICE).await.map_err(|error| format!("{}: {error}", row.name))?;
            let took = servers[row.server].cpu().saturating_sub(before);
            row.per_cpu_second.push(answered as f64 / took.as_secs_f64());
            // At a fixed rate, only so many streams are open as it takes.
            if round == 0 && row.load.streams == STREAMS_OF_EACH {
                row.latencies =
                    row.load.at_rate(1_000, SLICE).await.map_err(|error| format!("{}: {error}", row.name))?;
            }
        }
    }
    print(&rows, &servers);
    Ok(())
}

fn print(rows: &[Row], servers: &[Server]) {
    let empty = median(&rows[0].per_cpu_second);
    println!(
        "| {:<32} | {:>6} | {:>13} | {:>7} | {:>7} | {:>7} | {:>7} |",
        "one core, 8 connections of 16", "ratio", "rounds", "p50 ms", "p99", "p99.9", "MiB"
    );
    println!("|{}|", ["-"; 7].map(|dash| dash.repeat(5)).join("|"));
    for row in rows {
        let of = |value: f64| value / median(&rows[row.reference].per_cpu_second);
        let (least, most) =
            row.per_cpu_second.iter().fold((f64::MAX, 0f64), |(a, b), v| (a.min(*v), b.max(*v)));
        let at = |share: f64| {
            let index = (row.latencies.len() as f64 * share) as usize;
            row.latencies.get(index).map_or("-".to_owned(), |took| format!("{:.2}", took.as_secs_f64() * 1e3))
        };
        println!(
            "| {:<32} | {:>6.2} | {:>5.2} to {:>4.2} | {:>7} | {:>7} | {:>7} | {:>7.1} |",
            row.name,
            of(median(&row.per_cpu_second)),
            of(least),
            of(most),
            at(0.5),
            at(0.99),
            at(0.999),
            servers[row.server].resident_kib() as f64 / 1024.0,
        );
    }
    println!("\n(the empty server: {empty:.0} Checks for a second of its core)");
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Row {
    fn new(name: &'static str, server: usize, reference: usize, load: Load) -> Self {
        Self { name, server, reference, load, per_cpu_second: Vec::new(), latencies: Vec::new() }
    }
}

/// Tokens, and what Portcullis is told.
struct Scenarios {
    issuer: String,
    jwks_uri: String,
    claims: Value,
    keys: [SigningKey; 3],
    cached: Bytes,
}

impl Scenarios {
    fn new(issuer: &Issuer) -> Result<Self, Failure> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let claims = claims(issuer, now);
        let keys = [
            ("rs", SigningAlgorithm::RS256),
            ("es", SigningAlgorithm::ES256),
            ("ed", SigningAlgorithm::EdDSA),
        ]
        .map(|(kid, algorithm)| SigningKey::generate(kid, algorithm));
        issuer.publish(&keys.each_ref());
        let cached = check("/orders/1", &keys[0].sign(&claims), 0);
        Ok(Self { issuer: issuer.issuer().to_owned(), jwks_uri: issuer.jwks_uri(), claims, keys, cached })
    }

    fn load(&self, address: SocketAddr, bodies: Vec<Bytes>, expected: i32) -> Load {
        Load { address, connections: 8, streams: STREAMS_OF_EACH, bodies: Arc::new(bodies), expected }
    }

    fn configuration(&self, more: &str) -> String {
        let Self { issuer, jwks_uri, .. } = self;
        format!(
            "listen: {{ext_authz: ADDRESS}}
providers:
  - name: sso
    issuer: {issuer}
    audiences: [orders-api]
    jwks_uri: {jwks_uri}
    claim_headers: {{x-auth-subject: sub, x-auth-tenant: tenant_id}}
{more}"
        )
    }

    /// Name, configuration, messages and the code of their answers.
    fn all(&self) -> Vec<(&'static str, String, Vec<Bytes>, i32)> {
        let off = "token_cache: {entries: 0}\n";
        let one = |key: &SigningKey| vec![check("/orders/1", &key.sign(&self.claims), 0)];
        let [rs, es, ed] = &self.keys;
        let rules: String = (0..49)
            .map(|i| format!("  - {{name: r{i}, match: {{path_prefix: /p{i}}}, require: {{scopes: [a]}}}}\n"))
            .collect();
        let rules = format!(
            "rules:\n{rules}  - {{name: last, match: {{path_prefix: /}}, require: {{condition: 'claims.tenant_id == \"acme\"'}}}}\n"
        );
        let large = with_claim(self.claims.clone(), "fill", "x".repeat(5_500));
        let expired = with_claim(self.claims.clone(), "exp", 1_000_000_000);
        let providers: String = (0..99)
            .map(|i| {
                format!(
                    "  - {{name: p{i}, issuer: 'https://i{i}.example.com', audiences: [a], ready_without_keys: true, jwks: {}}}\n",
                    serde_json::json!({"keys": [es.public_jwk()]})
                )
            })
            .collect();
        vec![
            ("cached", self.configuration(""), vec![self.cached.clone()], 0),
            ("first-sight RS256", self.configuration(off), one(rs), 0),
            ("first-sight ES256", self.configuration(off), one(es), 0),
            ("first-sight EdDSA", self.configuration(off), one(ed), 0),
            ("refused: expired", self.configuration(""), vec![check("/o", &rs.sign(&expired), 0)], 16),
            ("cached, 50 rules and CEL", self.configuration(&rules), vec![self.cached.clone()], 0),
            ("cached, 100 providers", self.configuration(&providers), vec![self.cached.clone()], 0),
            ("cached, token of 8 KiB", self.configuration(""), vec![check("/o", &rs.sign(&large), 0)], 0),
            (
                "cached, 60 headers more",
                self.configuration(""),
                vec![check("/o", &rs.sign(&self.claims), 60)],
                0,
            ),
        ]
    }
}
