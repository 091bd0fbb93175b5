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
//! - A token that the newest set has refused is refused again at once ([`KeyCache::refused_lately`]), for
//!   `min_spacing` or until the set changes.
//!
//! One task per provider, the driver in `keys/refresh.rs`, makes all fetches, so there is never more than
//! one at a time. The set is swapped atomically.
//!
//! # Architecture invariant
//! The one home of `reqwest`. Nothing here knows of requests, proxies or verdicts: what a caller does
//! with a set is a closure.

mod caching;
pub mod discovery;
pub mod fetch;
pub mod http;
pub mod names;
mod refresh;
mod refused;
pub mod schedule;
pub mod snapshot;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout_at;

use crate::clock::{self, Clock, Instant};
use crate::config::RefreshPolicy;
use crate::telemetry::{Metrics, StaleOutcome};
use crate::validation::key_set::KeySet;
use crate::validation::{Permanent, StaleCause, UnixTime, ValidationError};

use self::fetch::{Fetch, FetchError};
use self::refused::RefusedTokens;
use self::schedule::{Schedule, Standing, Trigger};
use self::snapshot::SnapshotFile;

/// A provider's key set at one moment.
#[derive(Debug)]
pub struct KeySnapshot {
    keys: Arc<KeySet>,
    generation: u64,
    /// Never for keys of the configuration.
    confirmed: Option<Confirmed>,
    max_stale: Duration,
}

/// When a set was last confirmed by its source.
#[derive(Clone, Copy, Debug)]
struct Confirmed {
    wall: UnixTime,
    /// When it was taken in here.
    taken_in: Instant,
    /// How old it was then: a snapshot is not new.
    age_then: Duration,
}

impl Confirmed {
    fn age(&self) -> Duration {
        self.age_then.saturating_add(clock::elapsed_since(self.taken_in))
    }
}

impl KeySnapshot {
    /// None yet.
    fn empty(max_stale: Duration) -> Self {
        Self { keys: Arc::default(), generation: 0, confirmed: None, max_stale }
    }

    /// Holds something against the keys. There are none once the last good fetch is longer ago than
    /// `max_stale`.
    fn look<T>(
        &self,
        look: impl FnOnce(&KeySet) -> Result<T, ValidationError>,
    ) -> Result<T, ValidationError> {
        match self.confirmed {
            Some(confirmed) if confirmed.age() > self.max_stale => {
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
    /// Whether snapshots are only read: so does whoever looks at a service's files and is none.
    pub snapshots_read_only: bool,
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
    /// Whether nothing is to remain of it in the metrics.
    passing: bool,
}

impl Drop for KeyCache {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        if self.passing {
            self.shared.around.metrics.forget_keys(&self.shared.provider);
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
    refused: Mutex<RefusedTokens>,
    /// How many tokens that remembers, for readers that take no lock.
    refused_count: AtomicUsize,
    /// Whether a fetch can bring anything new; keys of the configuration never change.
    refreshable: bool,
}

struct State {
    schedule: Schedule,
    last_trigger: Option<Trigger>,
    last_error: Option<FetchError>,
    /// Whether it was told that the set is half-way to being too old.
    ageing_told: bool,
}

impl KeyCache {
    /// Keys that are fetched. Spawns the driver; the first fetch starts at once. Until it succeeds, the
    /// keys of `before` serve, a cache of the same source whose policy has changed, or those of the
    /// snapshot, which is kept up to date from then on.
    ///
    /// Reads the snapshot, a small file, on this thread.
    pub fn fetched(
        provider: &str,
        policy: RefreshPolicy,
        fetch: Arc<dyn Fetch>,
        around: Surroundings,
        before: Option<&KeyCache>,
        file: Option<SnapshotFile>,
    ) -> Self {
        let max_stale = policy.max_stale;
        let before = before.map(|before| before.shared.snapshot.load_full());
        let snapshot = match (before.filter(|old| old.generation > 0), &file) {
            (Some(old), _) => {
                let KeySnapshot { keys, generation, confirmed, .. } = &*old;
                KeySnapshot {
                    keys: Arc::clone(keys),
                    generation: *generation,
                    confirmed: *confirmed,
                    max_stale,
                }
            }
            (None, Some(file)) => refresh::from_file(provider, file, max_stale, &around.clock),
            (None, None) => KeySnapshot::empty(max_stale),
        };
        let shared = Arc::new(Shared::new(provider, policy, snapshot, true, around));
        shared.publish_gauges();
        let mut tasks = Vec::new();
        if let Some(path) = fetch.watched_file() {
            tasks.push(tokio::spawn(refresh::watch_file(Arc::clone(&shared), path)));
        }
        if let Some(file) = file.filter(|_| !shared.around.snapshots_read_only) {
            let finished = shared.finished.subscribe();
            tasks.push(tokio::spawn(refresh::keep_snapshot(Arc::clone(&shared), finished, file)));
        }
        tasks.push(tokio::spawn(refresh::drive(Arc::clone(&shared), fetch)));
        Self { shared, tasks, passing: false }
    }

    /// The same, as one of many that come and go: when the last of its name goes, its label values go from the
    /// metrics.
    pub fn passing(self) -> Self {
        let mut cache = self;
        cache.passing = true;
        cache.shared.around.metrics.hold_keys(&cache.shared.provider);
        cache
    }

    /// Keys that are written into the configuration: nothing is ever fetched.
    pub fn fixed(provider: &str, keys: Arc<KeySet>, around: Surroundings) -> Self {
        let policy = RefreshPolicy::default();
        let snapshot = KeySnapshot { keys, generation: 1, confirmed: None, max_stale: policy.max_stale };
        let shared = Arc::new(Shared::new(provider, policy, snapshot, false, around));
        shared.publish_gauges();
        Self { shared, tasks: Vec::new(), passing: false }
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

    /// Waits until the first fetch has ended, well or badly; not at all where nothing is fetched.
    pub async fn first_fetch_ended(&self) {
        // Subscribed before the schedule is asked, so that no end is missed in between.
        let mut finished = self.shared.finished.subscribe();
        while self.shared.refreshable
            && !self.shared.state().schedule.has_ended_one()
            && finished.changed().await.is_ok()
        {}
    }

    /// Why the newest set has refused this token within the last `min_spacing`, if it has and is still the
    /// set in hand. Costs next to nothing where no token was.
    pub fn refused_lately(&self, token: &str) -> Option<StaleCause> {
        let shared = &self.shared;
        if shared.refused_count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let cause = shared.recall(token)?;
        shared.around.metrics.stale_token(&shared.provider, cause, StaleOutcome::StillStale);
        Some(cause)
    }

    /// Gives a token that was stale under `sighting` its second look, under a set that is newer than
    /// the caller's arrival, by `deadline` at the latest. `token` is what it is remembered by, if it is refused.
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
        token: &str,
        look: impl Fn(&KeySet) -> Result<T, ValidationError>,
    ) -> Result<T, NotRescued> {
        let result = self.shared.rescue(sighting, cause, deadline, token, look).await;
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
            state: Mutex::new(State { schedule, last_trigger: None, last_error: None, ageing_told: false }),
            finished: watch::Sender::new(()),
            wake: Notify::new(),
            waiters: AtomicUsize::new(0),
            refused: Mutex::default(),
            refused_count: AtomicUsize::new(0),
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
        token: &str,
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
            self.around.metrics.waiter_rejected(&self.provider);
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
                    return second_look.if_newer().unwrap_or_else(|| {
                        self.remember(token, second_look.cause, second_look.seen.generation);
                        Err(still_stale(second_look.cause))
                    });
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

    fn remember(&self, token: &str, cause: StaleCause, generation: u64) {
        let until = clock::monotonic() + self.policy.min_spacing;
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.remember(token, cause, generation, until);
        self.refused_count.store(refused.len(), Ordering::Relaxed);
    }

    fn recall(&self, token: &str) -> Option<StaleCause> {
        let generation = self.snapshot.load().generation;
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let cause = refused.recall(token, generation, clock::monotonic());
        self.refused_count.store(refused.len(), Ordering::Relaxed);
        cause
    }

    fn status(&self) -> KeyStatus {
        let snapshot = self.snapshot.load_full();
        let state = self.state();
        let until_next = state.schedule.next_scheduled().saturating_duration_since(clock::monotonic());
        let next = self.around.clock.now().as_secs_f64() + until_next.as_secs_f64();
        KeyStatus {
            keys: Arc::clone(&snapshot.keys),
            generation: snapshot.generation,
            fetched_at: snapshot.confirmed.map(|confirmed| confirmed.wall),
            age: snapshot.confirmed.map(|confirmed| confirmed.age()),
            next_refresh_at: self.refreshable.then(|| UnixTime::from_secs(next.ceil() as i64)),
            last_trigger: state.last_trigger,
            last_error: state.last_error.clone(),
        }
    }

    fn publish_gauges(&self) {
        let snapshot = self.snapshot.load();
        let age = snapshot.confirmed.map(|confirmed| confirmed.age());
        let metrics = &self.around.metrics;
        metrics.key_set(&self.provider, snapshot.keys.keys().len(), snapshot.generation, age);
        metrics.waiters(&self.provider, self.waiters.load(Ordering::Relaxed));
    }
}

fn still_stale(cause: StaleCause) -> Unrescued {
    (NotRescued::Refused(ValidationError::Stale(cause)), StaleOutcome::StillStale)
}

fn past_mending(permanent: Permanent) -> Unrescued {
    (NotRescued::Refused(ValidationError::Permanent(permanent)), StaleOutcome::StillStale)
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
