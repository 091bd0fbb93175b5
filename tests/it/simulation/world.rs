//! The network between a process and its issuer: replicas with clock offsets and lag, caches, redirects, moving key URLs
//! and faults; and a folder on a disk that can be full.

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
use super::plan::{IssuerMode, Shape, Validators};

/// The true time at the start of every world, in seconds since the Unix epoch.
pub const START: i64 = 1_800_000_000;

/// The issuer and everything in front of it.
#[derive(Clone)]
pub struct World(Arc<Mutex<State>>);

struct State {
    shape: Shape,
    rng: SmallRng,
    started: Instant,
    /// How long our machine was suspended, while the true time advanced.
    suspended: Duration,
    /// The published sets and the time since which each is published.
    history: Vec<(Duration, Vec<Key>)>,
    mode: IssuerMode,
    requests: u64,
    latency: Duration,
    /// The sets of previous key URLs.
    previous_sets: Vec<Vec<Key>>,
    edges: Vec<HashMap<String, Stored>>,
}

/// A response in an edge cache.
#[derive(Clone)]
struct Stored {
    answer: Response,
    until: Duration,
}

/// A response of the issuer.
#[derive(Clone)]
struct Response {
    status: StatusCode,
    body: String,
    tag: Option<String>,
    /// The true time of generation.
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
            suspended: Duration::ZERO,
            history: vec![(Duration::ZERO, vec![first])],
            mode: IssuerMode::Healthy,
            requests: 0,
            latency: Duration::from_millis(5),
            previous_sets: Vec::new(),
            edges,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("not poisoned")
    }

    /// The true time in microseconds since the start.
    pub fn now_micros(&self) -> u64 {
        self.state().now().as_micros() as u64
    }

    pub fn published(&self) -> Vec<Key> {
        self.state().history.last().expect("the first set exists").1.clone()
    }

    pub fn publish(&self, keys: Vec<Key>) {
        let mut state = self.state();
        let now = state.now();
        state.history.push((now, keys));
    }

    pub fn set_mode(&self, mode: IssuerMode) {
        self.state().mode = mode;
    }

    pub fn set_latency(&self, latency: Duration) {
        self.state().latency = latency;
    }

    pub fn move_key_url(&self) {
        let mut state = self.state();
        let current = state.history.last().expect("the first set exists").1.clone();
        state.previous_sets.push(current);
    }

    pub fn suspend(&self, time: Duration) {
        self.state().suspended += time;
    }

    async fn answer(&self, request: Request) -> Result<Answer, FetchError> {
        let no_cache = request.headers.contains_key(CACHE_CONTROL);
        let path = request.url.path().to_owned();
        let edge = self.state().choose_edge();
        let stored = edge.and_then(|edge| self.state().stored(edge, &path, no_cache));
        if let Some(stored) = stored {
            return Ok(self.state().render(&request, stored, true));
        }
        let latency = self.state().latency;
        sleep(latency / 2).await;
        let response = self.state().generate(&path, no_cache);
        let response = match response {
            Some(response) => response,
            None => return std::future::pending().await,
        };
        if let Some(edge) = edge {
            self.state().store(edge, &path, &response);
        }
        sleep(latency / 2).await;
        Ok(self.state().render(&request, response, false))
    }
}

impl State {
    fn now(&self) -> Duration {
        self.started.elapsed() + self.suspended
    }

    fn choose_edge(&mut self) -> Option<usize> {
        let count = self.edges.len();
        (count > 0).then(|| self.rng.random_range(0..count))
    }

    fn stored(&self, edge: usize, path: &str, no_cache: bool) -> Option<Response> {
        if no_cache && self.shape.edges_honour_no_cache {
            return None;
        }
        let stored = self.edges[edge].get(path)?;
        (stored.until > self.now()).then(|| stored.answer.clone())
    }

    fn store(&mut self, edge: usize, path: &str, response: &Response) {
        if response.status == StatusCode::OK {
            let until = response.at + Duration::from_millis(self.shape.edge_ttl_ms);
            self.edges[edge].insert(path.to_owned(), Stored { answer: response.clone(), until });
        }
    }

    /// The response of a random replica; `None` if it hangs.
    fn generate(&mut self, path: &str, no_cache: bool) -> Option<Response> {
        self.requests += 1;
        let replicas =
            self.shape.replica_offsets_secs.len().max(if self.shape.replica_lag_ms > 0 { 2 } else { 1 });
        let replica = self.rng.random_range(0..replicas);
        let offset = self.shape.replica_offsets_secs.get(replica).copied().unwrap_or_default();
        let at = self.now();
        let respond = |status: u16, body: &str| {
            let status = StatusCode::from_u16(status).expect("a status");
            Some(Response { status, body: body.to_owned(), tag: None, at, offset })
        };
        match self.mode {
            IssuerMode::Hangs => return None,
            IssuerMode::Fails(status) => return respond(status, ""),
            IssuerMode::FailsNoCache if no_cache => return respond(500, ""),
            IssuerMode::Flaps if self.requests.is_multiple_of(2) => return respond(503, ""),
            IssuerMode::Garbage => return respond(200, "<html>"),
            IssuerMode::EmptySet => return respond(200, r#"{"keys":[]}"#),
            IssuerMode::Healthy | IssuerMode::FailsNoCache | IssuerMode::Flaps => {}
        }
        let body = self.body(path, replica);
        let mut response = respond(200, &body)?;
        response.tag = match self.shape.validators {
            Validators::None => None,
            Validators::Constant => Some("\"1\"".to_owned()),
            Validators::Honest => {
                use std::hash::{DefaultHasher, Hash as _, Hasher as _};
                let mut hasher = DefaultHasher::new();
                body.hash(&mut hasher);
                Some(format!("\"{:x}\"", hasher.finish()))
            }
        };
        Some(response)
    }

    fn body(&self, path: &str, replica: usize) -> String {
        if path == "/doc" {
            let jwks_uri = format!("{ISSUER}/keys-{}", self.previous_sets.len());
            return json!({"issuer": ISSUER, "jwks_uri": jwks_uri}).to_string();
        }
        let index: usize = path.trim_start_matches("/keys-").parse().unwrap_or_default();
        if let Some(previous) = self.previous_sets.get(index).filter(|_| self.shape.discovery) {
            return jwks(previous);
        }
        let lag = if replica > 0 { Duration::from_millis(self.shape.replica_lag_ms) } else { Duration::ZERO };
        let as_of = self.now().saturating_sub(lag);
        let set = self.history.iter().rev().find(|(since, _)| *since <= as_of).or(self.history.first());
        jwks(&set.expect("the first set exists").1)
    }

    /// The response as received, to a request that may be conditional.
    fn render(&self, request: &Request, response: Response, from_edge: bool) -> Answer {
        let mut headers = HeaderMap::new();
        let text = |text: String| HeaderValue::from_str(&text).expect("a header value");
        if self.shape.dates {
            headers.insert(DATE, text(http_date(START + response.offset + response.at.as_secs() as i64)));
        }
        if from_edge {
            headers.insert(AGE, text(self.now().saturating_sub(response.at).as_secs().to_string()));
        }
        if let Some(tag) = &response.tag {
            headers.insert(ETAG, text(tag.clone()));
        }
        if response.status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("30"));
        }
        // For the oracle only: the true time and the offset of the replica's clock.
        let offset = if self.shape.dates { response.offset } else { 0 };
        headers.insert("x-cache", text(format!("generated={} offset={offset}", response.at.as_micros())));
        let same = response.tag.is_some()
            && request.headers.get(IF_NONE_MATCH).map(HeaderValue::as_bytes)
                == response.tag.as_ref().map(String::as_bytes);
        let (status, body) = match response.status {
            StatusCode::OK if same => (StatusCode::NOT_MODIFIED, Vec::new()),
            StatusCode::OK => (StatusCode::OK, response.body.into_bytes()),
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

/// The URL of a document or a key set of this world.
pub fn url_of(path: &str) -> Url {
    format!("{ISSUER}{path}").parse().expect("a URL")
}

fn http_date(seconds: i64) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp(seconds).expect("a time");
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    at.format(&format).expect("a date")
}

/// An in-memory folder that processes share.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<DiskState>>);

#[derive(Debug, Default)]
struct DiskState {
    files: HashMap<String, Vec<u8>>,
    full: bool,
}

impl Disk {
    fn state(&self) -> MutexGuard<'_, DiskState> {
        self.0.lock().expect("not poisoned")
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
