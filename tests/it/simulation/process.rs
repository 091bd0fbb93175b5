//! One process of a simulation: an authorizer with the keys of its provider, and what the fetches of those brought.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use portcullis::access_request::{AccessRequest, Headers};
use portcullis::authorizer::{Authorizer, KeyedProvider, RequestPolicy, TokenCacheConfig};
use portcullis::clock::{Clock, SimulatedClock};
use portcullis::config::{Limits, RefreshPolicy};
use portcullis::keys::discovery::Discovery;
use portcullis::keys::fetch::{Fetch, FetchContext, FetchFuture, Fetched, Interim};
use portcullis::keys::http::HttpKeys;
use portcullis::keys::snapshot::SnapshotFile;
use portcullis::keys::{Jitter, KeyCache, KeyCacheContext};
use portcullis::rules::Rules;
use portcullis::telemetry::Metrics;
use portcullis::telemetry::Trigger;
use portcullis::validation::StaleCause;
use portcullis::validation::algorithm::Algorithm;
use portcullis::validation::key_set::KeySet;
use portcullis::validation::provider::{Audiences, Provider, TokenSource, TokenTypes};
use portcullis::verdict::{Responses, Verdict};
use tokio::time::Instant;

use super::keys::ISSUER;
use super::oracle::{Seen, Times};
use super::plan::Shape;
use super::world::{Disk, World, place};

/// The longest that one fetch may take.
pub const TIMEOUT: Duration = Duration::from_secs(2);

pub struct Process {
    pub authorizer: Arc<Authorizer>,
    pub keys: Arc<KeyCache>,
    pub seen: Arc<Mutex<Seen>>,
    pub metrics: Arc<Metrics>,
    clock: Clock,
}

impl Process {
    /// Starts one that knows of the world what `seen` says.
    pub fn start(world: &World, shape: &Shape, disk: &Disk, clock: &Arc<SimulatedClock>, seen: Seen) -> Self {
        let transport = Arc::new(world.clone());
        let interval = Duration::from_millis(shape.interval_ms);
        let refresh = RefreshPolicy {
            interval,
            min_spacing_bad_signature: Duration::from_millis(shape.bad_signature_spacing_ms),
            wait: Duration::from_millis(shape.wait_ms),
            timeout: TIMEOUT,
            ..RefreshPolicy::default()
        };
        let (keys, source) = if shape.discovery {
            let discovery = Discovery::new(place("/doc"), ISSUER, interval / 2);
            (HttpKeys::discovered(discovery, transport), place("/doc"))
        } else {
            (HttpKeys::at(place("/keys-0"), transport), place("/keys-0"))
        };
        let seen = Arc::new(Mutex::new(seen));
        let fetch = Arc::new(Recorded { keys, world: world.clone(), seen: Arc::clone(&seen) });
        let clock = Clock::Simulated(Arc::clone(clock));
        let context = KeyCacheContext {
            clock: clock.clone(),
            jitter: Jitter::Fixed(0.5),
            ..KeyCacheContext::default()
        };
        let metrics = Arc::clone(&context.metrics);
        let file = SnapshotFile::in_folder(Arc::new(disk.clone()), "p", ISSUER, source.as_str(), 1 << 20);
        let keys = KeyCache::fetched("p", refresh.clone(), fetch, context, None, Some(file), Arc::default());
        let keys = Arc::new(keys);
        let keyed = KeyedProvider {
            provider: Arc::new(provider()),
            realm: None,
            keys: Arc::clone(&keys),
            refresh,
            ready_without_keys: false,
        };
        let policy = RequestPolicy {
            token_cache: TokenCacheConfig::default(),
            rules: Rules::new(Vec::new()),
            limits: Limits::default(),
            responses: Responses::default(),
            trusted_proxies: Vec::new(),
            trusted_headers: Vec::new(),
        };
        let authorizer =
            Authorizer::new(vec![keyed], Vec::new(), policy, clock.clone(), Arc::clone(&metrics));
        Self { authorizer: Arc::new(authorizer), keys, seen, metrics, clock }
    }

    /// Asks about a token, as a proxy does that waits for so long.
    pub fn ask(&self, token: String, patience: Duration) -> impl Future<Output = Asked> + Send + use<> {
        let (authorizer, clock) = (Arc::clone(&self.authorizer), self.clock.clone());
        async move {
            let value = format!("Bearer {token}");
            let headers: Headers<'_> = [(&b"authorization"[..], value.as_bytes())].into_iter().collect();
            let mut request = AccessRequest::new(
                b"GET",
                b"api.example.com",
                b"/",
                headers,
                portcullis::clock::monotonic().into_std(),
            );
            request.arrived = clock.monotonic().into_std();
            request.timeout = Some(patience);
            let began = Instant::now();
            let decision = authorizer.decide("simulation", &request).await.decision;
            let allowed = matches!(decision.verdict, Verdict::Allow(_));
            Asked { allowed, reason: decision.verdict.reason().as_str(), began, ended: Instant::now() }
        }
    }
}

/// What became of a token.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub allowed: bool,
    pub reason: &'static str,
    pub began: Instant,
    pub ended: Instant,
}

fn provider() -> Provider {
    Provider {
        name: "p".to_owned(),
        issuer: ISSUER.to_owned(),
        audiences: Audiences::AnyOf(vec!["orders-api".to_owned()]),
        algorithms: Algorithm::default_set(),
        clock_skew: Duration::from_secs(30),
        token_types: TokenTypes::Default,
        required_claims: Vec::new(),
        token_from: vec![TokenSource::default()],
        forward_token: true,
        claim_headers: Vec::new(),
        payload_header: None,
        metadata_claims: Vec::new(),
        realm: None,
    }
}

/// The real source of keys, and a record of what it was asked and what it brought.
struct Recorded {
    keys: HttpKeys,
    world: World,
    seen: Arc<Mutex<Seen>>,
}

impl Fetch for Recorded {
    fn fetch(&self, mut ask: FetchContext) -> FetchFuture<'_> {
        Box::pin(async move {
            if let Trigger::Forced(cause) = ask.trigger {
                self.seen.lock().expect("no oracle has panicked").forced(cause, ask.clock.monotonic());
            }
            let asked = self.world.now_micros();
            let (world, seen, taking) = (self.world.clone(), Arc::clone(&self.seen), ask.interim);
            ask.interim = Interim::to(move |fetched| {
                record(&world, &seen, asked, &fetched);
                taking.send(&fetched);
            });
            let fetched = self.keys.fetch(ask).await;
            match &fetched {
                Ok(fetched) => record(&self.world, &self.seen, asked, fetched),
                Err(_) => self.seen.lock().expect("no oracle has panicked").failed(),
            }
            fetched
        })
    }
}

fn record(world: &World, seen: &Mutex<Seen>, asked: u64, fetched: &Fetched) {
    let (made, offset) = made_at(&fetched.caches);
    let dated = made as i64 + offset * 1_000_000;
    let times = Times { made, asked, received: world.now_micros(), dated };
    seen.lock().expect("no oracle has panicked").answer(&names(&fetched.keys), times);
}

/// The true time at which an answer was made, in microseconds since the start of the world, and how many seconds the
/// clock of who made it is from that.
fn made_at(caches: &str) -> (u64, i64) {
    let after = |name: &str| caches.split(name).nth(1).and_then(|behind| behind.split([' ', ';']).next());
    let number =
        |name: &str| -> i64 { after(name).expect("this world's answers say so").parse().expect("a number") };
    (number("made=").unsigned_abs(), number("offset="))
}

/// A key as a set shows it: its name and its thumbprint.
pub fn names(keys: &KeySet) -> Vec<(String, String)> {
    let name = |key: &Arc<portcullis::validation::key_set::Key>| {
        (
            key.kid().map_or_else(String::new, |kid| kid.as_str().to_owned()),
            key.thumbprint().map_or_else(String::new, |known| known.to_string()),
        )
    };
    keys.keys().iter().map(name).collect()
}

/// For [`Seen`]: why a fetch was forced.
pub type Cause = StaleCause;
