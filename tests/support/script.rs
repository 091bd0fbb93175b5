//! A key source that is scripted by hand, and callers that ask a key cache about tokens, for tests on a
//! paused clock and without a network.

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

/// An issuer that is scripted by hand: what it publishes, how long it takes, and whether it answers.
#[derive(Clone, Default)]
pub struct Script(Arc<Inner>);

#[derive(Default)]
struct Inner {
    published: Mutex<Vec<SigningKey>>,
    latency: Mutex<Duration>,
    down: Mutex<bool>,
    /// For how long it calls an answer fresh.
    fresh_for: Mutex<Option<Duration>>,
    /// How long it wants to be left alone while it is down.
    retry_after: Mutex<Option<Duration>>,
    /// What its answers say of when they were made: `Age` and `Date`, in seconds.
    dated: Mutex<(Option<i64>, Option<i64>)>,
    /// Where it is set, each answer waits to be let go.
    gate: Mutex<Option<Arc<Semaphore>>>,
    starts: Mutex<Vec<Instant>>,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
}

impl Script {
    pub fn publishing(kids: &[&str]) -> Self {
        let script = Self::default();
        script.publish(kids);
        script
    }

    /// Fresh material under these names, even where a name was published before.
    pub fn publish(&self, kids: &[&str]) {
        *self.0.published.lock().unwrap() =
            kids.iter().map(|kid| SigningKey::generate(*kid, SigningAlgorithm::ES256)).collect();
    }

    /// The private half of a published key.
    pub fn key(&self, kid: &str) -> SigningKey {
        let published = self.0.published.lock().unwrap();
        published.iter().find(|key| key.kid() == Some(kid)).expect("is published").clone()
    }

    pub fn withdraw(&self, kid: &str) {
        self.0.published.lock().unwrap().retain(|key| key.kid() != Some(kid));
    }

    /// Publishes an empty set; gives back what was published.
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

    pub fn takes(&self, latency: Duration) {
        *self.0.latency.lock().unwrap() = latency;
    }

    pub fn goes_down(&self, down: bool) {
        *self.0.down.lock().unwrap() = down;
    }

    pub fn dates_answers(&self, age: Option<i64>, date: Option<i64>) {
        *self.0.dated.lock().unwrap() = (age, date);
    }

    pub fn calls_fresh_for(&self, time: Duration) {
        *self.0.fresh_for.lock().unwrap() = Some(time);
    }

    pub fn wants_peace_for(&self, time: Duration) {
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

    /// How many fetches there were at one time, at most.
    pub fn most_under_way(&self) -> usize {
        self.0.most_under_way.load(Ordering::SeqCst)
    }

    pub fn fetches(&self) -> usize {
        self.0.starts.lock().unwrap().len()
    }
}

impl Fetch for Script {
    fn fetch(&self, ask: FetchContext) -> FetchFuture<'_> {
        Box::pin(async move {
            let asked = ask.clock.now_micros();
            let under_way = self.0.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.0.most_under_way.fetch_max(under_way, Ordering::SeqCst);
            self.0.starts.lock().unwrap().push(clock::monotonic());
            // An issuer answers with what it had when it was asked.
            let answer = (self.jwks(), *self.0.down.lock().unwrap());
            let (fresh_for, retry_after) =
                (*self.0.fresh_for.lock().unwrap(), *self.0.retry_after.lock().unwrap());
            let (age, date) = *self.0.dated.lock().unwrap();
            let latency = *self.0.latency.lock().unwrap();
            let gate = self.0.gate.lock().unwrap().clone();
            if let Some(gate) = gate {
                gate.acquire().await.unwrap().forget();
            }
            sleep(latency).await;
            self.0.under_way.fetch_sub(1, Ordering::SeqCst);
            match answer {
                (_, true) => Err(FetchError::Status { status: 500, retry_after }),
                (jwks, false) => {
                    let keys = KeySet::parse(jwks.as_bytes()).map_err(FetchError::KeySet)?;
                    let origin = Origin::new(asked, ask.clock.now_micros(), age, date);
                    let (keys, location, caches) = (Arc::new(keys), "script".to_owned(), String::new());
                    Ok(Fetched { keys, origin, location, caches, fresh_for, location_asked: true })
                }
            }
        })
    }
}

pub fn policy() -> RefreshPolicy {
    RefreshPolicy { interval: 3600 * SECOND, max_stale: 7200 * SECOND, ..RefreshPolicy::default() }
}

/// A cache whose first fetch is about to begin.
pub fn fetching(script: &Script, policy: RefreshPolicy, context: KeyCacheContext) -> KeyCache {
    KeyCache::fetched("p", policy, Arc::new(script.clone()), context, None, None, Arc::default())
}

/// A cache whose first fetch is done.
pub async fn warm(script: &Script, policy: RefreshPolicy) -> Arc<KeyCache> {
    warm_in(script, policy, KeyCacheContext::default()).await
}

/// The same, with something around it.
pub async fn warm_in(script: &Script, policy: RefreshPolicy, context: KeyCacheContext) -> Arc<KeyCache> {
    let cache = Arc::new(fetching(script, policy, context));
    while !cache.has_keys() {
        sleep(Duration::from_millis(1)).await;
    }
    // Past every spacing, so that each test begins with a full budget.
    advance(60 * SECOND).await;
    cache
}

pub type Look = Box<dyn Fn(&KeySet) -> Result<(), ValidationError> + Send + Sync>;

/// What a token that asks for `kid` is held against. With `thumbprint` its signature is of that key.
pub fn look(
    kid: &str,
    thumbprint: Option<String>,
) -> impl Fn(&KeySet) -> Result<(), ValidationError> + use<> {
    let kid = Kid::new(kid).expect("short enough");
    let is_of =
        |key: &Key, thumbprint: &str| key.thumbprint().is_some_and(|own| own.to_string() == thumbprint);
    move |keys: &KeySet| {
        let mut fitting = keys.fitting(Some(&kid), Algorithm::ES256).peekable();
        match (fitting.peek().is_some(), &thumbprint) {
            (false, _) => Err(ValidationError::Stale(UnknownKid)),
            (true, None) => Ok(()),
            (true, Some(thumbprint)) if fitting.any(|key| is_of(key, thumbprint)) => Ok(()),
            (true, Some(_)) => Err(ValidationError::Stale(BadSignature)),
        }
    }
}

/// A token that is stale for this reason, of a caller that can wait until then.
pub fn stale(cause: StaleCause, deadline: Instant) -> StaleToken {
    StaleToken { kid: None, cause, deadline, held_bytes: 1 }
}

/// Why a stale token was not rescued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotRescued {
    Refused(ValidationError),
    Unavailable,
}

/// Waits for newer keys with a token that was stale under `observed`, and holds it against each set that comes.
pub async fn rescue<T>(
    cache: &KeyCache,
    observed: ObservedKeys,
    token: StaleToken,
    look: impl Fn(&KeySet) -> Result<T, ValidationError>,
) -> Result<T, NotRescued> {
    let mut cause = token.cause;
    let mut wait = cache.wait_for_newer(observed, token);
    let result = loop {
        match wait.next(cause).await {
            Newer::Unavailable(_) => break Err(NotRescued::Unavailable),
            Newer::No(_) => break Err(still(cause)),
            Newer::Keys(keys) => match look(&keys) {
                Ok(verified) => break Ok(verified),
                Err(ValidationError::Stale(again)) => cause = again,
                Err(permanent) => break Err(NotRescued::Refused(permanent)),
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
    look: impl Fn(&KeySet) -> Result<(), ValidationError>,
) -> Result<(), NotRescued> {
    let observed: ObservedKeys = cache.observe();
    match look(&observed.keys()) {
        Ok(()) => Ok(()),
        Err(ValidationError::Permanent(_)) => panic!("these tokens are stale at worst"),
        Err(ValidationError::Stale(cause)) => {
            rescue(cache, observed, stale(cause, clock::monotonic() + wait), look).await
        }
    }
}

pub async fn ask(cache: &KeyCache, kid: &str) -> Result<(), NotRescued> {
    ask_with(cache, 2 * SECOND, look(kid, None)).await
}

/// Refused, since the newest set does not verify it either.
pub fn still(cause: StaleCause) -> NotRescued {
    NotRescued::Refused(ValidationError::Stale(cause))
}

/// Lets everybody who can run do so, without letting time pass.
pub async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}
