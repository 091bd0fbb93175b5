//! What stands between a process and its issuer: replicas whose clocks differ or that lag, caches, redirects, documents
//! that move, faults, and a folder on a disk that can be full.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use http::header::{AGE, CACHE_CONTROL, DATE, ETAG, HeaderMap, IF_NONE_MATCH, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use portcullis::keys::fetch_error::FetchError;
use portcullis::keys::folder::{Folder, FolderError};
use portcullis::keys::transport::{Answer, Request, ResponseFuture, Transport};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tokio::time::{Instant, sleep};
use url::Url;

use super::keys::{ISSUER, Key, jwks};
use super::plan::{Mood, Shape, Validators};

/// The true time at the start of every world, in seconds since the Unix epoch.
pub const START: i64 = 1_800_000_000;

/// The issuer and everything in front of it.
#[derive(Clone)]
pub struct World(Arc<Mutex<State>>);

struct State {
    shape: Shape,
    rng: SmallRng,
    started: Instant,
    /// How long our machine has slept: everybody else's time went on.
    slept: Duration,
    /// What was published since when.
    history: Vec<(Duration, Vec<Key>)>,
    mood: Mood,
    answers: u64,
    latency: Duration,
    /// The sets of places that the document does not name any more.
    left: Vec<Vec<Key>>,
    edges: Vec<HashMap<String, Stored>>,
}

/// What an edge has kept.
#[derive(Clone)]
struct Stored {
    answer: Made,
    until: Duration,
}

/// An answer of the issuer.
#[derive(Clone)]
struct Made {
    status: StatusCode,
    body: String,
    tag: Option<String>,
    /// The true time.
    at: Duration,
    offset: i64,
}

impl World {
    pub fn new(seed: u64, shape: Shape, first: Key) -> Self {
        let edges = vec![HashMap::new(); usize::from(shape.edges)];
        Self(Arc::new(Mutex::new(State {
            shape,
            rng: SmallRng::seed_from_u64(seed ^ 0x5eed),
            started: Instant::now(),
            slept: Duration::ZERO,
            history: vec![(Duration::ZERO, vec![first])],
            mood: Mood::Well,
            answers: 0,
            latency: Duration::from_millis(5),
            left: Vec::new(),
            edges,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no world has panicked here")
    }

    /// The true time in microseconds since the start.
    pub fn now_micros(&self) -> u64 {
        self.state().now().as_micros() as u64
    }

    pub fn published(&self) -> Vec<Key> {
        self.state().history.last().expect("there was a first set").1.clone()
    }

    pub fn publish(&self, keys: Vec<Key>) {
        let mut state = self.state();
        let now = state.now();
        state.history.push((now, keys));
    }

    pub fn becomes(&self, mood: Mood) {
        self.state().mood = mood;
    }

    pub fn takes(&self, latency: Duration) {
        self.state().latency = latency;
    }

    pub fn moves(&self) {
        let mut state = self.state();
        let left = state.history.last().expect("there was a first set").1.clone();
        state.left.push(left);
    }

    pub fn sleeps(&self, time: Duration) {
        self.state().slept += time;
    }

    async fn answer(&self, request: Request) -> Result<Answer, FetchError> {
        let doubted = request.headers.contains_key(CACHE_CONTROL);
        let path = request.url.path().to_owned();
        let edge = self.state().choose_edge();
        let stored = edge.and_then(|edge| self.state().stored(edge, &path, doubted));
        if let Some(stored) = stored {
            return Ok(self.state().render(&request, stored, true));
        }
        let latency = self.state().latency;
        sleep(latency / 2).await;
        let made = self.state().make(&path, doubted);
        let made = match made {
            Some(made) => made,
            None => return std::future::pending().await,
        };
        if let Some(edge) = edge {
            self.state().store(edge, &path, &made);
        }
        sleep(latency / 2).await;
        Ok(self.state().render(&request, made, false))
    }
}

impl State {
    fn now(&self) -> Duration {
        self.started.elapsed() + self.slept
    }

    fn choose_edge(&mut self) -> Option<usize> {
        let count = self.edges.len();
        (count > 0).then(|| self.rng.random_range(0..count))
    }

    fn stored(&self, edge: usize, path: &str, doubted: bool) -> Option<Made> {
        if doubted && self.shape.edges_heed_no_cache {
            return None;
        }
        let stored = self.edges[edge].get(path)?;
        (stored.until > self.now()).then(|| stored.answer.clone())
    }

    fn store(&mut self, edge: usize, path: &str, made: &Made) {
        if made.status == StatusCode::OK {
            let until = made.at + Duration::from_millis(self.shape.edge_ttl_ms);
            self.edges[edge].insert(path.to_owned(), Stored { answer: made.clone(), until });
        }
    }

    /// What one of the issuer's replicas answers; none where it hangs.
    fn make(&mut self, path: &str, doubted: bool) -> Option<Made> {
        self.answers += 1;
        let replicas =
            self.shape.replica_offsets_secs.len().max(if self.shape.replica_lag_ms > 0 { 2 } else { 1 });
        let replica = self.rng.random_range(0..replicas);
        let offset = self.shape.replica_offsets_secs.get(replica).copied().unwrap_or_default();
        let at = self.now();
        let made = |status: u16, body: &str| {
            let status = StatusCode::from_u16(status).expect("a status");
            Some(Made { status, body: body.to_owned(), tag: None, at, offset })
        };
        match self.mood {
            Mood::Hangs => return None,
            Mood::Fails(status) => return made(status, ""),
            Mood::FailsForced if doubted => return made(500, ""),
            Mood::Flaps if self.answers.is_multiple_of(2) => return made(503, ""),
            Mood::Garbage => return made(200, "<html>"),
            Mood::EmptySet => return made(200, r#"{"keys":[]}"#),
            Mood::Well | Mood::FailsForced | Mood::Flaps => {}
        }
        let body = self.body(path, replica);
        let mut made = made(200, &body)?;
        made.tag = match self.shape.validators {
            Validators::None => None,
            Validators::Constant => Some("\"1\"".to_owned()),
            Validators::Honest => {
                use std::hash::{DefaultHasher, Hash as _, Hasher as _};
                let mut hasher = DefaultHasher::new();
                body.hash(&mut hasher);
                Some(format!("\"{:x}\"", hasher.finish()))
            }
        };
        Some(made)
    }

    fn body(&self, path: &str, replica: usize) -> String {
        if path == "/doc" {
            let place = format!("{ISSUER}/keys-{}", self.left.len());
            return json!({"issuer": ISSUER, "jwks_uri": place}).to_string();
        }
        let place: usize = path.trim_start_matches("/keys-").parse().unwrap_or_default();
        if let Some(left) = self.left.get(place).filter(|_| self.shape.discovery) {
            return jwks(left);
        }
        let lag = if replica > 0 { Duration::from_millis(self.shape.replica_lag_ms) } else { Duration::ZERO };
        let as_of = self.now().saturating_sub(lag);
        let set = self.history.iter().rev().find(|(since, _)| *since <= as_of).or(self.history.first());
        jwks(&set.expect("there was a first set").1)
    }

    /// An answer as it arrives, to a request that may be conditional.
    fn render(&self, request: &Request, made: Made, from_edge: bool) -> Answer {
        let mut headers = HeaderMap::new();
        let text = |text: String| HeaderValue::from_str(&text).expect("a header value");
        if self.shape.dates {
            headers.insert(DATE, text(http_date(START + made.offset + made.at.as_secs() as i64)));
        }
        if from_edge {
            headers.insert(AGE, text(self.now().saturating_sub(made.at).as_secs().to_string()));
        }
        if let Some(tag) = &made.tag {
            headers.insert(ETAG, text(tag.clone()));
        }
        if made.status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("30"));
        }
        // For the oracle alone: the true time, and what the replica's clock shows.
        let offset = if self.shape.dates { made.offset } else { 0 };
        headers.insert("x-cache", text(format!("made={} offset={offset}", made.at.as_micros())));
        let same = made.tag.is_some()
            && request.headers.get(IF_NONE_MATCH).map(HeaderValue::as_bytes)
                == made.tag.as_ref().map(String::as_bytes);
        let (status, body) = match made.status {
            StatusCode::OK if same => (StatusCode::NOT_MODIFIED, Vec::new()),
            StatusCode::OK => (StatusCode::OK, made.body.into_bytes()),
            status => (status, Vec::new()),
        };
        let mut url = request.url.clone();
        if self.shape.redirects && url.path() != "/doc" {
            url.set_path(&format!("/redirected{}", request.url.path()));
        }
        Answer { status, url, headers, body }
    }
}

impl Transport for World {
    fn get(&self, request: Request) -> ResponseFuture<'_> {
        Box::pin(self.answer(request))
    }
}

/// Where a document or a key set of this world is.
pub fn place(path: &str) -> Url {
    format!("{ISSUER}{path}").parse().expect("a URL")
}

fn http_date(seconds: i64) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp(seconds).expect("a time");
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    at.format(&format).expect("a date")
}

/// A folder in memory that processes share.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<DiskState>>);

#[derive(Debug, Default)]
struct DiskState {
    files: HashMap<String, Vec<u8>>,
    full: bool,
}

impl Disk {
    fn state(&self) -> MutexGuard<'_, DiskState> {
        self.0.lock().expect("no disk has panicked here")
    }

    pub fn fill(&self, full: bool) {
        self.state().full = full;
    }

    pub fn is_full(&self) -> bool {
        self.state().full
    }

    pub fn file(&self, name: &str) -> Option<Vec<u8>> {
        self.state().files.get(name).cloned()
    }
}

impl Folder for Disk {
    fn read(&self, name: &str, _max_bytes: usize) -> Result<Option<Vec<u8>>, FolderError> {
        Ok(self.file(name))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), FolderError> {
        let mut state = self.state();
        if state.full {
            return Err(FolderError::Io(std::io::ErrorKind::StorageFull));
        }
        state.files.insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), FolderError> {
        self.state().files.remove(name);
        Ok(())
    }

    fn lock(&self, _name: &str) -> Result<Box<dyn Send>, FolderError> {
        Ok(Box::new(()))
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/simulated").join(name)
    }

    fn blocks(&self) -> bool {
        false
    }
}
