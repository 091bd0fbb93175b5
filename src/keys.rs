//! The keys of one provider, kept fresh by the refresh rule.
//!
//! Readers take the set in hand ([`KeyCache::sight`]) and never wait. A caller whose token is stale
//! under it calls [`KeyCache::rescue`], once, and gets a final answer:
//!
//! - Has the cache moved on since? Look again, without a fetch.
//! - Is a fetch under way? Join it. It may have begun before the caller arrived and bring the old set
//!   once more; then wait for the next one.
//! - Otherwise demand a fetch. It starts when the budget of the cause allows ([`schedule`]), serves
//!   everybody who waits, and belongs to the cache: callers that give up cancel nothing.
//! - A failed fetch leaves the set in hand as it is.
//!
//! One task per provider, the driver, makes all fetches, so there is never more than one at a time.
//! The set is swapped atomically.
//!
//! # Architecture invariant
//! The one home of `reqwest`. Nothing here knows of requests, proxies or verdicts: what a caller does
//! with a set is a closure.

pub mod discovery;
pub mod fetch;
pub mod schedule;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout, timeout_at};

use crate::clock::{self, Clock, Instant};
use crate::config::RefreshPolicy;
use crate::telemetry::{FetchOutcome, Metrics, StaleOutcome, on_one_line};
use crate::validation::key_set::KeySet;
use crate::validation::{Permanent, StaleCause, UnixTime, ValidationError};

use self::fetch::{Fetch, FetchError};
use self::schedule::{Schedule, Standing, Trigger};

/// How often a key file is looked at for changes.
const FILE_POLL: Duration = Duration::from_secs(2);

/// Of how many keys one refresh logs what became of them.
const LOGGED_KEYS: usize = 20;

/// A provider's key set at one moment.
#[derive(Debug)]
pub struct KeySnapshot {
    keys: Arc<KeySet>,
    generation: u64,
    fetched: Option<Fetched>,
    max_stale: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Fetched {
    wall: UnixTime,
    monotonic: Instant,
}

impl KeySnapshot {
    /// Holds something against the keys. There are none once the last good fetch is longer ago than
    /// `max_stale`.
    fn look<T>(
        &self,
        look: impl FnOnce(&KeySet) -> Result<T, ValidationError>,
    ) -> Result<T, ValidationError> {
        match self.fetched {
            Some(fetched) if clock::elapsed_since(fetched.monotonic) > self.max_stale => {
                Err(ValidationError::Stale(StaleCause::UnknownKid))
            }
            _ => look(&self.keys),
        }
    }
}

/// What a caller saw: the set that it verifies against, and how many fetches had begun before.
#[derive(Clone, Debug)]
pub struct Sighting {
    snapshot: Arc<KeySnapshot>,
    arrival: u64,
}

impl Sighting {
    /// Verifies against what was seen. A set that is past `max_stale` is as good as empty.
    ///
    /// # Errors
    /// Those of `look`.
    pub fn look<T>(
        &self,
        look: impl FnOnce(&KeySet) -> Result<T, ValidationError>,
    ) -> Result<T, ValidationError> {
        self.snapshot.look(look)
    }
}

/// What a key cache is surrounded by; the same for all caches of a service.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Wall time, for `fetched_at`.
    pub clock: Clock,
    /// Where fetches and stale tokens are counted.
    pub metrics: Arc<Metrics>,
    /// Told when anything happened that health depends on; one task listens.
    pub serving_changed: Arc<Notify>,
}

/// Why a stale token could not be rescued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotRescued {
    /// The issuer's current set does not verify it either, or a forgery is the likelier guess; or the
    /// token became past mending while it waited.
    Refused(ValidationError),
    /// Nobody can say: the issuer did not answer, or not in time.
    Unavailable,
}

/// What there is to know about a provider's keys.
#[derive(Debug)]
pub struct KeyStatus {
    /// The set in hand.
    pub keys: Arc<KeySet>,
    /// Counts the changes of the set; 0 before the first.
    pub generation: u64,
    /// When it was last confirmed by its source.
    pub fetched_at: Option<UnixTime>,
    /// How long ago that was.
    pub age: Option<Duration>,
    /// When the next scheduled fetch is due; never for keys of the configuration.
    pub next_refresh_at: Option<UnixTime>,
    /// What started the last fetch.
    pub last_trigger: Option<Trigger>,
    /// Why the last fetch failed; `None` once one succeeds.
    pub last_error: Option<FetchError>,
}

/// The keys of one provider. Dropping it ends its fetches.
pub struct KeyCache {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for KeyCache {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

struct Shared {
    provider: String,
    policy: RefreshPolicy,
    around: Surroundings,
    snapshot: ArcSwap<KeySnapshot>,
    /// How many fetches have begun; the schedule's own count, for readers that take no lock.
    started: AtomicU64,
    state: Mutex<State>,
    /// Told of every fetch that ends.
    finished: watch::Sender<()>,
    wake: Notify,
    waiters: AtomicUsize,
    /// Whether a fetch can bring anything new; keys of the configuration never change.
    refreshable: bool,
}

struct State {
    schedule: Schedule,
    last_trigger: Option<Trigger>,
    last_error: Option<FetchError>,
}

impl KeyCache {
    /// Keys that are fetched. Spawns the driver; the first fetch starts at once. Until it succeeds, the
    /// keys of `before` serve: a cache of the same source, whose policy has changed.
    pub fn fetched(
        provider: &str,
        policy: RefreshPolicy,
        fetch: Arc<dyn Fetch>,
        around: Surroundings,
        before: Option<&KeyCache>,
    ) -> Self {
        let max_stale = policy.max_stale;
        let snapshot = match before.map(|before| before.shared.snapshot.load_full()) {
            None => KeySnapshot { keys: Arc::default(), generation: 0, fetched: None, max_stale },
            Some(old) => KeySnapshot {
                keys: Arc::clone(&old.keys),
                generation: old.generation,
                fetched: old.fetched,
                max_stale,
            },
        };
        let shared = Arc::new(Shared::new(provider, policy, snapshot, true, around));
        shared.publish_gauges();
        let mut tasks = Vec::new();
        if let Some(path) = fetch.watched_file() {
            tasks.push(tokio::spawn(watch_file(Arc::clone(&shared), path)));
        }
        tasks.push(tokio::spawn(drive(Arc::clone(&shared), fetch)));
        Self { shared, tasks }
    }

    /// Keys that are written into the configuration: nothing is ever fetched.
    pub fn fixed(provider: &str, keys: Arc<KeySet>, around: Surroundings) -> Self {
        let policy = RefreshPolicy::default();
        let snapshot = KeySnapshot { keys, generation: 1, fetched: None, max_stale: policy.max_stale };
        let shared = Arc::new(Shared::new(provider, policy, snapshot, false, around));
        shared.publish_gauges();
        Self { shared, tasks: Vec::new() }
    }

    /// The set in hand. Never waits.
    pub fn sight(&self) -> Sighting {
        // In this order: a fetch that begins between the two loads counts as begun after arrival.
        let arrival = self.shared.started.load(Ordering::Acquire);
        Sighting { snapshot: self.shared.snapshot.load_full(), arrival }
    }

    /// Whether keys have been had at least once.
    pub fn has_keys(&self) -> bool {
        self.shared.snapshot.load().generation > 0
    }

    /// Gives a token that was stale under `sighting` its second look, under a set that is newer than
    /// the caller's arrival, by `deadline` at the latest.
    ///
    /// # Errors
    /// [`NotRescued::Refused`] if the newest set does not verify it either, or if a bad signature
    /// would have to wait past the deadline for its turn; [`NotRescued::Unavailable`] if the fetch failed, did not come in
    /// time, or `max_waiters` are waiting already.
    pub async fn rescue<T>(
        &self,
        sighting: Sighting,
        cause: StaleCause,
        deadline: Instant,
        look: impl Fn(&KeySet) -> Result<T, ValidationError>,
    ) -> Result<T, NotRescued> {
        let result = self.shared.rescue(sighting, cause, deadline, look).await;
        let outcome = match &result {
            Ok(_) => StaleOutcome::Rescued,
            Err((_, outcome)) => *outcome,
        };
        self.shared.around.metrics.stale_token(&self.shared.provider, cause, outcome);
        result.map_err(|(not_rescued, _)| not_rescued)
    }

    /// What there is to know.
    pub fn status(&self) -> KeyStatus {
        self.shared.status()
    }

    /// Brings the gauges of age and size up to now.
    pub fn publish_gauges(&self) {
        self.shared.publish_gauges();
    }
}

type Unrescued = (NotRescued, StaleOutcome);

impl Shared {
    fn new(
        provider: &str,
        policy: RefreshPolicy,
        snapshot: KeySnapshot,
        refreshable: bool,
        around: Surroundings,
    ) -> Self {
        let schedule = Schedule::new(policy.clone(), clock::monotonic());
        Self {
            provider: provider.to_owned(),
            policy,
            around,
            snapshot: ArcSwap::from_pointee(snapshot),
            started: AtomicU64::new(0),
            state: Mutex::new(State { schedule, last_trigger: None, last_error: None }),
            finished: watch::Sender::new(()),
            wake: Notify::new(),
            waiters: AtomicUsize::new(0),
            refreshable,
        }
    }

    /// No code that holds the lock can panic half-way, so a poisoned one is still sound.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn rescue<T>(
        &self,
        sighting: Sighting,
        cause: StaleCause,
        deadline: Instant,
        look: impl Fn(&KeySet) -> Result<T, ValidationError>,
    ) -> Result<T, Unrescued> {
        let mut second_look = SecondLook { shared: self, seen: sighting.snapshot, cause, look };
        if let Some(result) = second_look.if_newer() {
            return result;
        }
        if !self.refreshable {
            return Err(still_stale(second_look.cause));
        }
        let Some(_place) = Place::take(&self.waiters, self.policy.max_waiters) else {
            return Err((NotRescued::Unavailable, StaleOutcome::TimedOut));
        };
        // Subscribed before the standing is asked, so that no end of a fetch is missed in between.
        let mut finished = self.finished.subscribe();
        loop {
            let standing = self.state().schedule.stand(
                sighting.arrival,
                second_look.cause,
                clock::monotonic(),
                deadline,
            );
            match standing {
                Standing::Fresh => {
                    return second_look.if_newer().unwrap_or_else(|| Err(still_stale(second_look.cause)));
                }
                Standing::Failed => {
                    return Err((NotRescued::Unavailable, StaleOutcome::FetchFailed));
                }
                Standing::OutOfReach => {
                    self.wake.notify_one();
                    return Err(match second_look.cause {
                        StaleCause::BadSignature => still_stale(StaleCause::BadSignature),
                        StaleCause::UnknownKid => (NotRescued::Unavailable, StaleOutcome::TimedOut),
                    });
                }
                Standing::Demanded => self.wake.notify_one(),
                Standing::UnderWay => {}
            }
            // Each turn ends with a fetch; the one that began after the arrival is the last.
            match timeout_at(deadline, finished.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => {
                    return Err((NotRescued::Unavailable, StaleOutcome::TimedOut));
                }
            }
            if let Some(result) = second_look.if_newer() {
                return result;
            }
        }
    }

    /// Takes in the result of a fetch: the snapshot first, so that whoever hears of the end finds it.
    fn take_in(&self, trigger: Trigger, fetched: Result<KeySet, FetchError>) {
        let now = clock::monotonic();
        let (outcome, error) = match fetched {
            Ok(keys) => (self.store(trigger, keys, now), None),
            Err(error) => {
                tracing::warn!(
                    provider = %self.provider, trigger = trigger.as_str(), outcome = "failed", %error,
                    "key set not refreshed"
                );
                (FetchOutcome::Failed, Some(error))
            }
        };
        self.around.metrics.fetch(&self.provider, trigger, outcome);
        let mut state = self.state();
        state.schedule.finish(error.is_none(), rand::random(), now);
        state.last_error = error;
        drop(state);
        self.publish_gauges();
        self.finished.send_replace(());
        self.around.serving_changed.notify_one();
    }

    fn store(&self, trigger: Trigger, keys: KeySet, now: Instant) -> FetchOutcome {
        let before = self.snapshot.load_full();
        let fetched = Some(Fetched { wall: self.around.clock.now(), monotonic: now });
        let unchanged = before.generation > 0 && before.keys.same_keys(&keys);
        let generation = if unchanged { before.generation } else { before.generation + 1 };
        let outcome = if unchanged { FetchOutcome::Unchanged } else { FetchOutcome::Renewed };
        tracing::info!(
            provider = %self.provider, trigger = trigger.as_str(), outcome = outcome.as_str(), generation,
            added = missing_in(&before.keys, &keys), removed = missing_in(&keys, &before.keys),
            skipped = keys.skipped().len(), "key set refreshed"
        );
        let newly_skipped = keys.skipped().iter().filter(|key| !before.keys.skipped().contains(key));
        for skipped in newly_skipped.take(LOGGED_KEYS) {
            let kid = skipped.kid.as_deref().map(on_one_line);
            tracing::warn!(provider = %self.provider, kid, reason = skipped.reason, "key skipped");
        }
        let max_stale = self.policy.max_stale;
        self.snapshot.store(Arc::new(KeySnapshot { keys: Arc::new(keys), generation, fetched, max_stale }));
        outcome
    }

    fn status(&self) -> KeyStatus {
        let snapshot = self.snapshot.load_full();
        let state = self.state();
        let until_next = state.schedule.next_scheduled().saturating_duration_since(clock::monotonic());
        let next = self.around.clock.now().as_secs_f64() + until_next.as_secs_f64();
        KeyStatus {
            keys: Arc::clone(&snapshot.keys),
            generation: snapshot.generation,
            fetched_at: snapshot.fetched.map(|fetched| fetched.wall),
            age: snapshot.fetched.map(|fetched| clock::elapsed_since(fetched.monotonic)),
            next_refresh_at: self.refreshable.then(|| UnixTime::from_secs(next.ceil() as i64)),
            last_trigger: state.last_trigger,
            last_error: state.last_error.clone(),
        }
    }

    fn publish_gauges(&self) {
        let snapshot = self.snapshot.load();
        let age = snapshot.fetched.map(|fetched| clock::elapsed_since(fetched.monotonic));
        self.around.metrics.key_set(&self.provider, snapshot.keys.keys().len(), snapshot.generation, age);
    }
}

fn still_stale(cause: StaleCause) -> Unrescued {
    (NotRescued::Refused(ValidationError::Stale(cause)), StaleOutcome::StillStale)
}

fn past_mending(permanent: Permanent) -> Unrescued {
    (NotRescued::Refused(ValidationError::Permanent(permanent)), StaleOutcome::StillStale)
}

/// The key ids of `b` that `a` lacks, for a line of the log.
fn missing_in(a: &KeySet, b: &KeySet) -> String {
    let missing = b.keys().iter().filter(|key| {
        !a.keys().iter().any(|known| known.kid() == key.kid() && known.thumbprint() == key.thumbprint())
    });
    let kids: Vec<String> =
        missing.map(|key| on_one_line(key.kid().unwrap_or_default())).take(LOGGED_KEYS).collect();
    kids.join(" ")
}

/// A caller's token, and the newest set that it has been held against.
struct SecondLook<'c, F> {
    shared: &'c Shared,
    seen: Arc<KeySnapshot>,
    cause: StaleCause,
    look: F,
}

impl<T, F: Fn(&KeySet) -> Result<T, ValidationError>> SecondLook<'_, F> {
    /// Looks again if the cache has moved on since the last look. `None` if it has not, or if the token
    /// is still stale.
    fn if_newer(&mut self) -> Option<Result<T, Unrescued>> {
        let current = self.shared.snapshot.load_full();
        if Arc::ptr_eq(&current, &self.seen) {
            return None;
        }
        self.seen = current;
        match self.seen.look(&self.look) {
            Ok(verified) => Some(Ok(verified)),
            Err(ValidationError::Permanent(permanent)) => Some(Err(past_mending(permanent))),
            Err(ValidationError::Stale(cause)) => {
                self.cause = cause;
                None
            }
        }
    }
}

/// A place among those who wait, given back when dropped.
struct Place<'c>(&'c AtomicUsize);

impl<'c> Place<'c> {
    fn take(waiters: &'c AtomicUsize, most: usize) -> Option<Self> {
        waiters
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| (count < most).then_some(count + 1))
            .ok()
            .map(|_| Self(waiters))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Makes every fetch of one provider, one after the other, for as long as the cache lives.
async fn drive(shared: Arc<Shared>, fetch: Arc<dyn Fetch>) {
    loop {
        let next_start = shared.state().schedule.next_start(clock::monotonic());
        tokio::select! {
            () = sleep_until(next_start) => {}
            () = shared.wake.notified() => continue,
        }
        let begun = {
            let mut state = shared.state();
            let begun = state.schedule.begin(clock::monotonic());
            if begun.is_some() {
                state.last_trigger = begun;
            }
            shared.started.store(state.schedule.started(), Ordering::Release);
            begun
        };
        if let Some(trigger) = begun {
            let fetched = timeout(shared.policy.timeout, fetch.fetch()).await;
            shared.take_in(trigger, fetched.unwrap_or(Err(FetchError::TimedOut(shared.policy.timeout))));
        }
    }
}

/// Makes the driver read a key file again soon after it changes.
async fn watch_file(shared: Arc<Shared>, path: PathBuf) {
    let stamp = async || {
        let metadata = tokio::fs::metadata(&path).await.ok()?;
        Some((metadata.modified().ok(), metadata.len(), std::os::unix::fs::MetadataExt::ino(&metadata)))
    };
    let mut before = stamp().await;
    loop {
        tokio::time::sleep(FILE_POLL).await;
        let after = stamp().await;
        if after != before {
            before = after;
            shared.state().schedule.hurry(clock::monotonic());
            shared.wake.notify_one();
        }
    }
}
