//! Rows that are measured side by side: in every round each of them once, one after the other.

use std::error::Error;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::http1::HttpLoad;
use crate::load::Load;
use crate::process::Server;
use crate::upstream::Upstream;

type Failure = Box<dyn Error + Send + Sync>;

const WARM: Duration = Duration::from_millis(100);
/// Requests a second where latency is measured.
const RATE: u32 = 1_000;
/// How long a row may take until it answers for the first time.
const START: Duration = Duration::from_secs(20);

/// HTTP statuses and gRPC codes that refuse a token. Open Policy Agent's status for a decision without a result is 404.
const REFUSALS: [i32; 5] = [401, 403, 404, 16, 7];

/// What is asked, over which protocol.
pub enum Asked {
    Grpc(Load),
    Http(HttpLoad),
}

impl Asked {
    fn expected(&self) -> i32 {
        match self {
            Self::Grpc(load) => load.expected,
            Self::Http(load) => load.expected.into(),
        }
    }

    fn first(&self) -> Bytes {
        match self {
            Self::Grpc(load) => load.bodies[0].clone(),
            Self::Http(load) => load.requests[0].clone(),
        }
    }

    async fn code(&self, body: &Bytes) -> Result<i32, Failure> {
        match self {
            Self::Grpc(load) => load.code(body).await,
            Self::Http(load) => load.status(body).await.map(i32::from),
        }
    }

    async fn saturate(&self, time: Duration) -> Result<u64, Failure> {
        match self {
            Self::Grpc(load) => load.saturate(time).await,
            Self::Http(load) => load.saturate(time).await,
        }
    }

    async fn at_rate(&self, time: Duration) -> Result<Vec<Duration>, Failure> {
        match self {
            Self::Grpc(load) => load.at_rate(RATE, time).await,
            Self::Http(load) => load.at_rate(RATE, time).await,
        }
    }
}

/// One way to answer the same request.
pub struct Row {
    pub name: String,
    /// The processes that take part, in the order of the table's columns.
    pub servers: Vec<Rc<Server>>,
    pub asked: Asked,
    /// Requests that must be refused. Without any, nothing is authorized and every request passes.
    pub refused: Vec<Bytes>,
    rounds: Vec<Round>,
    latencies: Vec<Duration>,
}

/// Processor time for each request, in microseconds: one number for each server.
struct Round {
    /// With as many requests as are answered.
    busy: Vec<f64>,
    /// At the fixed rate.
    paced: Vec<f64>,
}

impl Round {
    fn total(&self) -> f64 {
        self.busy.iter().sum()
    }
}

/// How long a row is loaded in each round.
#[derive(Clone, Copy)]
pub struct Slices {
    pub busy: Duration,
    /// At the fixed rate. Zero: not at all.
    pub paced: Duration,
}

impl Row {
    /// A row that is not measured yet.
    pub fn new(name: &str, servers: Vec<Rc<Server>>, asked: Asked, refused: Vec<Bytes>) -> Self {
        Self { name: name.to_owned(), servers, asked, refused, rounds: Vec::new(), latencies: Vec::new() }
    }

    /// Waits until it answers, and makes sure that it answers what it should. With an upstream, one that refuses must also
    /// tell the upstream who the client is.
    ///
    /// # Errors
    /// It does not.
    pub async fn verify(&self, upstream: Option<&Upstream>) -> Result<(), Failure> {
        let (began, expected, first) = (Instant::now(), self.asked.expected(), self.asked.first());
        loop {
            match self.asked.code(&first).await {
                Ok(code) if code == expected => break,
                other if began.elapsed() > START => {
                    return Err(format!("{}: {other:?} instead of {expected}", self.name).into());
                }
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        for body in &self.refused {
            let code = self.asked.code(body).await?;
            if !REFUSALS.contains(&code) {
                return Err(format!("{}: {code} for a token that is not valid", self.name).into());
            }
        }
        let Some(upstream) = upstream else { return Ok(()) };
        let before = upstream.identified();
        self.asked.code(&first).await?;
        let identified = upstream.identified() > before;
        if identified == self.refused.is_empty() {
            return Err(format!("{}: the upstream was told the subject: {identified}", self.name).into());
        }
        Ok(())
    }

    async fn round(&mut self, slices: Slices) -> Result<(), Failure> {
        let failed = |error| format!("{}: {error}", self.name);
        self.asked.saturate(WARM).await.map_err(failed)?;
        let before = self.cpu();
        let answered = self.asked.saturate(slices.busy).await.map_err(failed)?;
        let busy = self.cost(before, answered);
        let before = self.cpu();
        let mut latencies = self.asked.at_rate(slices.paced).await.map_err(failed)?;
        let paced = self.cost(before, latencies.len() as u64);
        self.rounds.push(Round { busy, paced });
        self.latencies.append(&mut latencies);
        self.latencies.sort_unstable();
        Ok(())
    }

    fn cpu(&self) -> Vec<Duration> {
        self.servers.iter().map(|server| server.cpu()).collect()
    }

    /// Microseconds for each of so many requests, for each server.
    fn cost(&self, before: Vec<Duration>, requests: u64) -> Vec<f64> {
        let took = self.cpu().into_iter().zip(before).map(|(now, before)| now.saturating_sub(before));
        took.map(|took| took.as_secs_f64() * 1e6 / requests as f64).collect()
    }

    /// Requests for a second of processor time, against another row: the least, the median and the most of the rounds.
    fn against(&self, other: &Self) -> [f64; 3] {
        spread(self.rounds.iter().zip(&other.rounds).map(|(own, other)| other.total() / own.total()))
    }

    fn latency(&self, share: f64) -> f64 {
        let index = (self.latencies.len() as f64 * share) as usize;
        self.latencies.get(index).map_or(f64::NAN, |took| took.as_secs_f64() * 1e3)
    }
}

/// Rows that are compared with each other.
pub struct Table {
    pub title: &'static str,
    /// What the servers of a row are.
    pub servers: &'static [&'static str],
    pub rows: Vec<Row>,
    /// The rows that all are compared with, by number.
    pub references: Vec<usize>,
    pub slices: Slices,
}

/// Measures each row of all tables in each round.
///
/// # Errors
/// A connection ended, or an answer is not the expected one.
pub async fn measure(tables: &mut [Table], rounds: usize) -> Result<(), Failure> {
    for _ in 0..rounds {
        for table in &mut *tables {
            for row in &mut table.rows {
                row.round(table.slices).await?;
            }
        }
    }
    Ok(())
}

impl Table {
    /// Prints it as Markdown: microseconds of processor time, then requests for a second of processor time against each of
    /// the references; then microseconds at the fixed rate, and latency in milliseconds.
    pub fn print(&self) {
        let head = self.head();
        println!("| {} |\n|{}", head.join(" | "), "---|".repeat(head.len()));
        for row in &self.rows {
            println!("| {} |", self.cells(row).join(" | "));
        }
        println!();
    }

    fn head(&self) -> Vec<String> {
        let mut head = vec![self.title.to_owned()];
        head.extend(self.servers.iter().map(|server| format!("{server} µs")));
        head.extend(self.references.iter().map(|number| format!("against {}", self.rows[*number].name)));
        if !self.slices.paced.is_zero() {
            head.extend(self.servers.iter().map(|server| format!("{server} µs at {RATE}/s")));
            head.extend(["p50 ms", "p99 ms", "p99.9 ms"].map(str::to_owned));
        }
        head
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let costs = |of: fn(&Round) -> &Vec<f64>| {
            let columns = 0..self.servers.len();
            columns.map(move |number| {
                let values = row.rounds.iter().filter_map(|round| of(round).get(number).copied());
                let [least, median, most] = spread(values);
                if median.is_nan() {
                    "-".to_owned()
                } else {
                    format!("{median:.1} ({least:.1} to {most:.1})")
                }
            })
        };
        let mut cells = vec![row.name.clone()];
        cells.extend(costs(|round| &round.busy));
        cells.extend(self.references.iter().map(|number| {
            let [least, median, most] = row.against(&self.rows[*number]);
            format!("{median:.2} ({least:.2} to {most:.2})")
        }));
        if !self.slices.paced.is_zero() {
            cells.extend(costs(|round| &round.paced));
            cells.extend([0.5, 0.99, 0.999].map(|share| format!("{:.2}", row.latency(share))));
        }
        cells
    }
}

/// The least, the median and the most.
fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    [at(0), at(sorted.len() / 2), at(sorted.len().saturating_sub(1))]
}
