//! A scripted key source, and callers that verify tokens against a key cache, for tests with paused time and without
//! a network.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use portcullis::clock::{self, Instant};
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use portcullis::config::RefreshPolicy;
use portcullis::keys::fetch::{Fetch, FetchContext, FetchFuture, Fetched};
use portcullis::keys::fetch_error::FetchError;
use portcullis::keys::origin::Origin;
use portcullis::keys::{KeyCache, KeyCacheContext, Newer, ObservedKeys, StaleToken};
use portcullis::validation::StaleCause::{self, BadSignature, UnknownKid};
use portcullis::validation::algorithm::Algorithm;
use portcullis::validation::key_set::{Key, KeySet};
use portcullis::validation::{Kid, ValidationError};
use tokio::sync::Semaphore;
use tokio::time::{advance, sleep};

pub const SECOND: Duration = Duration::from_secs(1);

/// A scripted issuer: the keys that it publishes, its latency, and whether it answers.
#[derive(Clone, Default)]
pub struct Script(Arc<Inner>);

#[derive(Default)]
struct Inner {
    published: Mutex<Vec<SigningKey>>,
    latency: Mutex<Duration>,
    down: Mutex<bool>,
    /// The freshness lifetime of its answers.
    fresh_for: Mutex<Option<Duration>>,
    /// `Retry-After` of its answers while it is down.
    retry_after: Mutex<Option<Duration>>,
    /// `Age` and `Date` of its answers, in seconds.
    age_and_date: Mutex<(Option<i64>, Option<i64>)>,
    /// If set, each answer waits for a permit.
    gate: Mutex<Option<Arc<Semaphore>>>,
    starts: Mutex<Vec<Instant>>,
    concurrent_fetches: AtomicUsize,
    max_concurrent_fetches: AtomicUsize,
}

impl Script {
    pub fn publishing(kids: &[&str]) -> Self {
        let script = Self::default();
        script.publish(kids);
        script
    }

    /// Publishes a new key for each of these kids, also for a kid that was published before.
    pub fn publish(&self, kids: &[&str]) {
        *self.0.published.lock().unwrap() =
            kids.iter().map(|kid| SigningKey::generate(*kid, SigningAlgorithm::ES256)).collect();
    }

    /// A published key with its private part.
    pub fn key(&self, kid: &str) -> SigningKey {
        let published = self.0.published.lock().unwrap();
        published.iter().find(|key| key.kid() == Some(kid)).expect("is published").clone()
    }

    pub fn withdraw(&self, kid: &str) {
        self.0.published.lock().unwrap().retain(|key| key.kid() != Some(kid));
    }

    /// Publishes an empty set and returns the keys that were published.
    pub fn take_all(&self) -> Vec<SigningKey> {
        std::mem::take(&mut self.0.published.lock().unwrap())
    }

    pub fn put_back(&self, keys: Vec<SigningKey>) {
        *self.0.published.lock().unwrap() = keys;
    }

    pub fn key_set(&self) -> KeySet {
        KeySet::parse(self.jwks().as_bytes()).expect("published keys are usable")
    }

    pub fn thumbprint(&self, kid: &str) -> String {
        let jwks = self.jwks();
        let set = KeySet::parse(jwks.as_bytes()).unwrap();
        let kid = Kid::new(kid).unwrap();
        let key = set.fitting(Some(&kid), Algorithm::ES256).next().unwrap();
        key.thumbprint().unwrap().to_string()
    }

    pub fn jwks(&self) -> String {
        let keys: Vec<_> = self.0.published.lock().unwrap().iter().map(SigningKey::public_jwk).collect();
        serde_json::json!({ "keys": keys }).to_string()
    }

    pub fn set_latency(&self, latency: Duration) {
        *self.0.latency.lock().unwrap() = latency;
    }

    pub fn set_down(&self, down: bool) {
        *self.0.down.lock().unwrap() = down;
    }

    pub fn set_age_and_date(&self, age: Option<i64>, date: Option<i64>) {
        *self.0.age_and_date.lock().unwrap() = (age, date);
    }

    pub fn set_fresh_for(&self, time: Duration) {
        *self.0.fresh_for.lock().unwrap() = Some(time);
    }

    pub fn set_retry_after(&self, time: Duration) {
        *self.0.retry_after.lock().unwrap() = Some(time);
    }

    pub fn hold(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.0.gate.lock().unwrap() = Some(Arc::clone(&gate));
        gate
    }

    pub fn stop_holding(&self) {
        *self.0.gate.lock().unwrap() = None;
    }

    /// The largest number of concurrent fetches.
    pub fn max_concurrent_fetches(&self) -> usize {
        self.0.max_concurrent_fetches.load(Ordering::SeqCst)
    }

    pub fn fetches(&self) -> usize {
        self.0.starts.lock().unwrap().len()
    }
}

impl Fetch for Script {
    fn fetch(&self, ask: FetchContext) -> FetchFuture<'_> {
        Box::pin(async move {
            let asked = ask.clock.now_micros();
            let concurrent = self.0.concurrent_fetches.fetch_add(1, Ordering::SeqCst) + 1;
            self.0.max_concurrent_fetches.fetch_max(concurrent, Ordering::SeqCst);
            self.0.starts.lock().unwrap().push(clock::monotonic());
            // The answer has the state at the time of the request.
            let answer = (self.jwks(), *self.0.down.lock().unwrap());
            let (fresh_for, retry_after) =
                (*self.0.fresh_for.lock().unwrap(), *self.0.retry_after.lock().unwrap());
            let (age, date) = *self.0.age_and_date.lock().unwrap();
            let latency = *self.0.latency.lock().unwrap();
            let gate = self.0.gate.lock().unwrap().clone();
            if let Some(gate) = gate {
                gate.acquire().await.unwrap().forget();
            }
            sleep(latency).await;
            self.0.concurrent_fetches.fetch_sub(1, Ordering::SeqCst);
            match answer {
                (_, true) => Err(FetchError::Status { status: 500, retry_after }),
                (jwks, false) => {
                    let keys = KeySet::parse(jwks.as_bytes()).map_err(FetchError::KeySet)?;
                    let origin = Origin::new(asked, ask.clock.now_micros(), age, date);
                    let (keys, location, caches) = (Arc::new(keys), "script".to_owned(), String::new());
                    Ok(Fetched {
                        keys,
                        origin,
                        location,
                        caches,
                        fresh_for,
                        ahead: None,
                        rank: 0,
                        passed_over: None,
                        location_asked: true,
                    })
                }
            }
        })
    }
}

pub fn policy() -> RefreshPolicy {
    RefreshPolicy { interval: 3600 * SECOND, max_stale: 7200 * SECOND, ..RefreshPolicy::default() }
}

/// A cache whose first fetch has not begun.
pub fn fetching(script: &Script, policy: RefreshPolicy, context: KeyCacheContext) -> KeyCache {
    KeyCache::fetched("p", policy, Arc::new(script.clone()), context, None, None, Arc::default())
}

/// A cache that has completed its first fetch.
pub async fn warm(script: &Script, policy: RefreshPolicy) -> Arc<KeyCache> {
    warm_with(script, policy, KeyCacheContext::default()).await
}

/// A cache in this context that has completed its first fetch.
pub async fn warm_with(script: &Script, policy: RefreshPolicy, context: KeyCacheContext) -> Arc<KeyCache> {
    let cache = Arc::new(fetching(script, policy, context));
    while !cache.has_keys() {
        sleep(Duration::from_millis(1)).await;
    }
    // Longer than every spacing, so that each test begins with a full budget.
    advance(60 * SECOND).await;
    cache
}

pub type Verifier = Box<dyn Fn(&KeySet) -> Result<(), ValidationError> + Send + Sync>;

/// Verifies a token with this `kid` against a key set. With `thumbprint`, the key with that thumbprint has signed it.
pub fn verifier(
    kid: &str,
    thumbprint: Option<String>,
) -> impl Fn(&KeySet) -> Result<(), ValidationError> + use<> {
    let kid = Kid::new(kid).expect("short enough");
    let has_thumbprint =
        |key: &Key, thumbprint: &str| key.thumbprint().is_some_and(|own| own.to_string() == thumbprint);
    move |keys: &KeySet| {
        let mut fitting = keys.fitting(Some(&kid), Algorithm::ES256).peekable();
        match (fitting.peek().is_some(), &thumbprint) {
            (false, _) => Err(ValidationError::Stale(UnknownKid)),
            (true, None) => Ok(()),
            (true, Some(thumbprint)) if fitting.any(|key| has_thumbprint(key, thumbprint)) => Ok(()),
            (true, Some(_)) => Err(ValidationError::Stale(BadSignature)),
        }
    }
}

/// A stale token of a caller that waits until `deadline`.
pub fn stale(cause: StaleCause, deadline: Instant) -> StaleToken {
    StaleToken { kid: None, cause, deadline, held_bytes: 1 }
}

/// Why newer keys did not verify a stale token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetryError {
    Refused(ValidationError),
    Unavailable,
}

/// Waits for newer keys for a token that was stale under `observed`, and verifies it against each newer set.
pub async fn retry<T>(
    cache: &KeyCache,
    observed: ObservedKeys,
    token: StaleToken,
    verify: impl Fn(&KeySet) -> Result<T, ValidationError>,
) -> Result<T, RetryError> {
    let mut cause = token.cause;
    let mut wait = cache.wait_for_newer(observed, token);
    let result = loop {
        match wait.next(cause).await {
            Newer::Unavailable(_) => break Err(RetryError::Unavailable),
            Newer::No(_) => break Err(still_stale(cause)),
            Newer::Keys(keys) => match verify(&keys) {
                Ok(verified) => break Ok(verified),
                Err(ValidationError::Stale(next)) => cause = next,
                Err(permanent) => break Err(RetryError::Refused(permanent)),
            },
        }
    };
    match &result {
        Ok(_) => wait.verified(),
        Err(_) => wait.refused(),
    }
    result
}

pub async fn ask_with(
    cache: &KeyCache,
    wait: Duration,
    verify: impl Fn(&KeySet) -> Result<(), ValidationError>,
) -> Result<(), RetryError> {
    let observed: ObservedKeys = cache.observe();
    match verify(&observed.keys()) {
        Ok(()) => Ok(()),
        Err(ValidationError::Permanent(_)) => panic!("no permanent error in these tests"),
        Err(ValidationError::Stale(cause)) => {
            retry(cache, observed, stale(cause, clock::monotonic() + wait), verify).await
        }
    }
}

pub async fn ask(cache: &KeyCache, kid: &str) -> Result<(), RetryError> {
    ask_with(cache, 2 * SECOND, verifier(kid, None)).await
}

/// The token is stale under the newest key set too.
pub fn still_stale(cause: StaleCause) -> RetryError {
    RetryError::Refused(ValidationError::Stale(cause))
}

/// Lets all other tasks run until they are idle, without advancing time.
pub async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}
