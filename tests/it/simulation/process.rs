//! One process of a simulation: an authorizer, the key cache of its provider and the results of the fetches.

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
use portcullis::validation::provider::{Audiences, ClaimPath, Provider, SelectedBy, TokenSource, TokenTypes};
use portcullis::verdict::{Responses, Verdict};
use tokio::time::Instant;

use super::keys::ISSUER;
use super::oracle::{Observations, ResponseTimes};
use super::plan::Shape;
use super::world::{Disk, World, url_of};

/// The timeout of one fetch.
pub const TIMEOUT: Duration = Duration::from_secs(2);

pub struct Process {
    pub authorizer: Arc<Authorizer>,
    pub keys: Arc<KeyCache>,
    pub observed: Arc<Mutex<Observations>>,
    pub metrics: Arc<Metrics>,
    clock: Clock,
}

impl Process {
    /// Starts a process with these initial observations.
    pub fn start(
        world: &World,
        shape: &Shape,
        disk: &Disk,
        clock: &Arc<SimulatedClock>,
        observed: Observations,
    ) -> Self {
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
            let discovery = Discovery::new(url_of("/doc"), ISSUER, interval / 2);
            (HttpKeys::discovered(discovery, transport), url_of("/doc"))
        } else {
            (HttpKeys::at(vec![url_of("/keys-0")], transport), url_of("/keys-0"))
        };
        let observed = Arc::new(Mutex::new(observed));
        let fetch = Arc::new(RecordingFetch { keys, world: world.clone(), observed: Arc::clone(&observed) });
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
            shared: None,
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
        Self { authorizer: Arc::new(authorizer), keys, observed, metrics, clock }
    }

    /// Checks a token as a proxy with this timeout.
    pub fn check(
        &self,
        token: String,
        timeout: Duration,
    ) -> impl Future<Output = CheckResult> + Send + use<> {
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
            request.timeout = Some(timeout);
            let started = Instant::now();
            let decision = authorizer.decide("simulation", &request).await.decision;
            let allowed = matches!(decision.verdict, Verdict::Allow(_));
            CheckResult {
                allowed,
                reason: decision.verdict.reason().as_str(),
                started,
                finished: Instant::now(),
            }
        }
    }
}

/// The result of a check.
#[derive(Clone, Copy, Debug)]
pub struct CheckResult {
    pub allowed: bool,
    pub reason: &'static str,
    pub started: Instant,
    pub finished: Instant,
}

fn provider() -> Provider {
    Provider {
        name: "p".to_owned(),
        issuer: ISSUER.to_owned(),
        audiences: Audiences::AnyOf(vec!["orders-api".to_owned()]),
        algorithms: Algorithm::default_set(),
        clock_skew: Duration::from_secs(30),
        audience_claims: vec![ClaimPath::aud()],
        max_lifetime: None,
        keys_name_issuers: false,
        selected_by: SelectedBy::Issuer,
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

/// The real source of keys; records its requests and results.
struct RecordingFetch {
    keys: HttpKeys,
    world: World,
    observed: Arc<Mutex<Observations>>,
}

impl Fetch for RecordingFetch {
    fn fetch(&self, mut context: FetchContext) -> FetchFuture<'_> {
        Box::pin(async move {
            if let Trigger::Forced(cause) = context.trigger {
                self.observed.lock().expect("not poisoned").forced(cause, context.clock.monotonic());
            }
            let requested = self.world.now_micros();
            let (world, observed, interim) =
                (self.world.clone(), Arc::clone(&self.observed), context.interim);
            context.interim = Interim::to(move |fetched| {
                record(&world, &observed, requested, &fetched);
                interim.send(&fetched);
            });
            let fetched = self.keys.fetch(context).await;
            match &fetched {
                Ok(fetched) => record(&self.world, &self.observed, requested, fetched),
                Err(_) => self.observed.lock().expect("not poisoned").failed(),
            }
            fetched
        })
    }
}

fn record(world: &World, observed: &Mutex<Observations>, requested: u64, fetched: &Fetched) {
    let (generated, offset) = generated_at(&fetched.caches);
    let dated = generated as i64 + offset * 1_000_000;
    let times = ResponseTimes { generated, requested, received: world.now_micros(), dated };
    observed.lock().expect("not poisoned").record_response(&key_ids(&fetched.keys), times);
}

/// The true time at which a response was generated, in microseconds since the start of the world, and the offset of the
/// replica's clock in seconds.
fn generated_at(caches: &str) -> (u64, i64) {
    let after = |name: &str| caches.split(name).nth(1).and_then(|behind| behind.split([' ', ';']).next());
    let number = |name: &str| -> i64 { after(name).expect("the world sets it").parse().expect("a number") };
    (number("generated=").unsigned_abs(), number("offset="))
}

/// The `kid` and the thumbprint of each key of a set.
pub fn key_ids(keys: &KeySet) -> Vec<(String, String)> {
    let key_id = |key: &Arc<portcullis::validation::key_set::Key>| {
        (
            key.kid().map_or_else(String::new, |kid| kid.as_str().to_owned()),
            key.thumbprint().map_or_else(String::new, |known| known.to_string()),
        )
    };
    keys.keys().iter().map(key_id).collect()
}

/// For [`Observations`]: why a fetch was forced.
pub type Cause = StaleCause;
