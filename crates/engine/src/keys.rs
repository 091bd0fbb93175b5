//! The keys of one provider, kept fresh by the refresh rule.
//!
//! Readers take the current set ([`KeyCache::observe`]) and never wait. A caller whose token is stale under it waits
//! for newer keys ([`KeyCache::wait_for_newer`]), and gets them or a final answer:
//!
//! - The set has been replaced since: verify against it, without a fetch.
//! - A fetch is in progress: join it. If it started before the caller arrived, it may return the old set again; then
//!   wait for the next one.
//! - Otherwise demand a fetch. It starts when the budget of the cause allows it ([`schedule`], [`budget`]), serves
//!   every waiting caller, and belongs to the cache: a caller that gives up cancels nothing.
//! - A failed fetch, or an answer that is older ([`origin`], [`published`]), leaves the current set unchanged.
//!
//! One task per provider, the driver in `keys/refresh.rs`, starts all fetches and records their results. The set is
//! swapped atomically. A task that panics is restarted.
//!
//! # Architecture invariant
//! Only [`http_client`] uses `reqwest`. Nothing here depends on requests, proxies or verdicts: callers verify tokens.

pub mod budget;
mod caching;
pub mod discovery;
mod failures;
pub mod fetch;
pub mod fetch_error;
pub mod folder;
pub mod http;
pub mod http_client;
mod issuer_http;
pub mod names;
pub mod origin;
mod policy;
pub mod published;
mod refresh;
pub mod schedule;
pub mod snapshot;
pub mod transport;
mod wait;
pub mod waiting;

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::clock::{Clock, Instant, SteadyClock};
use crate::decision::ConfigPlaces;
use crate::supervise::{Supervisor, Task, Tasks};
use crate::telemetry::{Metrics, StaleOutcome};
use crate::validation::key_set::{KeyName, KeySet};
use crate::validation::{Kid, StaleCause, UnixTime};

use self::budget::{Budget, KnownKeys, Member};
pub use self::issuer_http::{BearerTokenFile, ClientCertificate, ForwardProxy, IssuerHttp, ProxyUrl};
pub use self::policy::RefreshPolicy;

use self::failures::Failures;
use self::fetch::{Fetch, Wanted};
use self::fetch_error::FetchError;
use self::published::Published;
pub use self::refresh::MAX_SNAPSHOT_WAIT;
use self::schedule::{Caller, RefreshOutcome, Schedule};
use self::snapshot::SnapshotFile;
pub use self::wait::{KeyWait, Newer, StaleToken, Unavailable};
use crate::telemetry::Trigger;

/// The names of the tasks of one key cache.
pub const TASKS: [&str; 4] = [WATCH_FILE, RESTORE, KEEP_SNAPSHOT, DRIVE];

const WATCH_FILE: &str = "watch_file";
const RESTORE: &str = "restore";
const KEEP_SNAPSHOT: &str = "keep_snapshot";
const DRIVE: &str = "drive";

/// A provider's key set at a point in time.
#[derive(Clone, Debug)]
pub struct KeySnapshot {
    published: Published,
    generation: u64,
    /// `None` for keys of the configuration.
    confirmed: Option<Confirmed>,
    max_stale: Duration,
}

/// When a set was last confirmed by its source.
#[derive(Clone, Copy, Debug)]
struct Confirmed {
    wall: UnixTime,
    /// When this process recorded it.
    recorded_at: Instant,
    /// Its age then: a restored snapshot is not new.
    initial_age: Duration,
    /// What confirmed it.
    source: Confirmation,
}

/// What confirmed a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Confirmation {
    /// Its source, in this process.
    Source,
    /// A snapshot file, which is not written again.
    Snapshot,
}

impl Confirmed {
    fn age(&self, now: Instant) -> Duration {
        self.initial_age.saturating_add(now.saturating_duration_since(self.recorded_at))
    }
}

impl KeySnapshot {
    /// No keys.
    fn empty(max_stale: Duration) -> Self {
        Self { published: Published::default(), generation: 0, confirmed: None, max_stale }
    }

    /// The keys; empty if they were confirmed longer ago than `max_stale`.
    fn keys_at(&self, now: Instant) -> Arc<KeySet> {
        static NONE: LazyLock<Arc<KeySet>> = LazyLock::new(Arc::default);
        match self.confirmed {
            Some(confirmed) if confirmed.age(now) > self.max_stale => Arc::clone(&NONE),
            _ => Arc::clone(self.published.keys()),
        }
    }
}

/// The set that a caller verifies against, and how many fetches had started before.
#[derive(Clone, Debug)]
pub struct ObservedKeys {
    snapshot: Arc<KeySnapshot>,
    arrival: u64,
    at: Instant,
}

impl ObservedKeys {
    /// The keys; empty if the set is older than `max_stale`.
    pub fn keys(&self) -> Arc<KeySet> {
        self.snapshot.keys_at(self.at)
    }
}

/// The surroundings of key caches; the same for all caches of a service.
#[derive(Clone, Debug, Default)]
pub struct KeyCacheContext {
    /// Wall time, for `fetched_at`.
    pub clock: Clock,
    /// Where fetches and stale tokens are counted.
    pub metrics: Arc<Metrics>,
    /// Notified of changes that readiness depends on; one task listens.
    pub serving_changed: Arc<Notify>,
    /// The supervised tasks of key caches.
    pub tasks: Tasks,
    /// Whether snapshots are read but not written, for commands that inspect a service's files.
    pub snapshots_read_only: bool,
    /// The jitter of scheduled fetches.
    pub jitter: Jitter,
    /// Where the settings are in the current configuration file, for the log.
    pub places: Arc<ArcSwap<ConfigPlaces>>,
    /// A larger difference from the issuer's clock is warned about: the leeway of the provider's tokens. Default 0.
    pub clock_skew: Duration,
}

impl KeyCacheContext {
    /// A supervisor for these tasks.
    pub fn supervisor(&self) -> Supervisor {
        Supervisor::new(self.tasks.clone(), Arc::clone(&self.metrics), Arc::clone(&self.serving_changed))
    }
}

/// A source of numbers from 0 to 1 that spread fetches over time.
#[derive(Clone, Debug, Default)]
pub enum Jitter {
    /// Random numbers.
    #[default]
    Random,
    /// Always this number; for reproducible simulations.
    Fixed(f64),
}

impl Jitter {
    fn next(&self) -> f64 {
        match self {
            Jitter::Random => rand::random(),
            Jitter::Fixed(number) => *number,
        }
    }
}

/// The status of a provider's keys.
#[derive(Debug)]
pub struct KeyStatus {
    /// The current set.
    pub keys: Arc<KeySet>,
    /// The number of changes of the set; 0 before the first.
    pub generation: u64,
    /// When it was last confirmed by its source.
    pub fetched_at: Option<UnixTime>,
    /// The time since then.
    pub age: Option<Duration>,
    /// The time since then.
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
    /// Whether the cache that this one replaces was persisted.
    persisted_before: bool,
}

impl Drop for KeyCache {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        let published = &self.shared.snapshot.load().published;
        let known = KnownKeys { withdrawn: published.withdrawn().to_vec(), keys: published.key_names() };
        self.shared.budget.store_known(&self.shared.provider, known);
        self.shared.budget.remove(self.shared.member);
        if self.shared.temporary.load(Ordering::Acquire) {
            self.shared.context.metrics.remove_cache(&self.shared.provider, &TASKS);
        }
    }
}

/// No answer has said what the issuer's clock shows.
const UNKNOWN_CLOCK: i64 = i64::MIN;

/// A smaller difference of the clocks, in seconds, is none: answers take time.
const CLOCK_TOLERANCE_SECS: i64 = 5;

struct Shared {
    provider: String,
    policy: RefreshPolicy,
    context: KeyCacheContext,
    clock: SteadyClock,
    budget: Arc<Budget>,
    member: Member,
    snapshot: ArcSwap<KeySnapshot>,
    /// The number of fetches that have started; a copy of the schedule's count for readers without the lock.
    started: AtomicU64,
    state: Mutex<State>,
    /// Notified at the end of every fetch.
    finished: watch::Sender<()>,
    wake: Notify,
    waiters: AtomicUsize,
    /// Whether the snapshot file has been read; true if there is none.
    snapshot_read: watch::Sender<bool>,
    /// How long the first answer waits for the snapshot file.
    snapshot_deadline: Instant,
    /// Whether the set is persisted in a file; for a realm only once one of its tokens was verified.
    persisted: AtomicBool,
    /// Whether the keys can be fetched; those of the configuration cannot.
    refreshable: bool,
    /// Whether its label values are removed from the metrics with it.
    temporary: AtomicBool,
    /// By how many seconds this clock is ahead of the issuer's; [`UNKNOWN_CLOCK`] if no answer has said it.
    clock_ahead: AtomicI64,
}

struct State {
    schedule: Schedule,
    last_trigger: Option<Trigger>,
    last_error: Option<FetchError>,
    /// The failures since the last success, for the log.
    failures: Failures,
    /// Those of what was passed over on the way to an answer.
    passed_over: Failures,
    /// Whether the warning about the set's age was logged.
    age_warned: bool,
    /// When the warning about the issuer's clock was last logged.
    clock_warned: Option<Instant>,
    /// The rank of the URL that the current set is from; that of a snapshot may be any, and counts as the first.
    authority: usize,
    /// The restored snapshot, until the first fetch has ended.
    pending: Option<KeySnapshot>,
    /// Keys that the issuer published before, from another source or in an expired snapshot, until the first answer.
    earlier: Vec<KeyName>,
    /// The keys that tokens wait for, since the last fetch started.
    wanted: Wanted,
    /// How many consecutive answers were older than the current set, without coming from a cache.
    older_in_a_row: u32,
    /// The latest fetch that used the remembered `jwks_uri`.
    location_remembered: u64,
}

impl KeyCache {
    /// Keys that are fetched. Spawns the driver; the first fetch starts at once. Until it succeeds, the keys of
    /// `before` are used, a cache of the same source with another policy. Without them, the keys of the snapshot file
    /// are used once the first fetch has ended; the file is kept up to date from then on. Fetches that tokens force
    /// are charged to `budget`, which the realms of one provider share.
    pub fn fetched(
        provider: &str,
        policy: RefreshPolicy,
        fetch: Arc<dyn Fetch>,
        context: KeyCacheContext,
        before: Option<&KeyCache>,
        file: Option<SnapshotFile>,
        budget: Arc<Budget>,
    ) -> Self {
        let max_stale = policy.max_stale;
        let persisted_before = before.is_some_and(|before| before.shared.persisted.load(Ordering::Acquire));
        let before = before.filter(|before| before.has_keys()).map(|before| &before.shared);
        let (snapshot, clock) = match before {
            Some(before) => {
                let snapshot = before.snapshot.load_full();
                (KeySnapshot { max_stale, ..(*snapshot).clone() }, before.clock.clone())
            }
            None => (KeySnapshot::empty(max_stale), SteadyClock::start(&context.clock)),
        };
        let restored = file.as_ref().filter(|_| snapshot.generation == 0).cloned();
        let persisted = file.filter(|_| !context.snapshots_read_only);
        let shared = Arc::new(Shared::new(provider, policy, snapshot, true, context, clock, budget));
        let KnownKeys { withdrawn, keys } = shared.budget.load_known(provider);
        shared.add_withdrawn(&withdrawn);
        shared.add_earlier(keys);
        shared.publish_gauges();
        let (mut tasks, supervisor) = (Vec::new(), shared.context.supervisor());
        if fetch.change().is_some() {
            let (watching, fetch) = (Arc::clone(&shared), Arc::clone(&fetch));
            tasks.push(supervisor.keep(Task::of(provider, WATCH_FILE), move || {
                refresh::watch_source(Arc::clone(&watching), Arc::clone(&fetch))
            }));
        }
        if let Some(file) = restored {
            shared.snapshot_read.send_replace(false);
            let reading = Arc::clone(&shared);
            tasks.push(supervisor.complete(Task::of(provider, RESTORE), move || {
                refresh::restore(Arc::clone(&reading), file.clone())
            }));
        }
        if let Some(file) = persisted {
            let persisting = Arc::clone(&shared);
            tasks.push(supervisor.keep(Task::of(provider, KEEP_SNAPSHOT), move || {
                refresh::keep_snapshot(Arc::clone(&persisting), persisting.finished.subscribe(), file.clone())
            }));
        }
        let driving = Arc::clone(&shared);
        tasks.push(supervisor.keep(Task::of(provider, DRIVE), move || {
            refresh::drive(Arc::clone(&driving), Arc::clone(&fetch))
        }));
        Self { shared, tasks, persisted_before }
    }

    /// Marks it as temporary: when the last cache of its name is dropped, its label values are removed from the
    /// metrics.
    pub fn temporary(self) -> Self {
        // The name of a realm may be made up, so nothing is persisted yet.
        self.shared.persisted.store(self.persisted_before, Ordering::Release);
        self.shared.context.metrics.register_cache(&self.shared.provider);
        self.shared.temporary.store(true, Ordering::Release);
        self
    }

    /// Keys of the configuration, which are never fetched.
    pub fn fixed(provider: &str, keys: Arc<KeySet>, context: KeyCacheContext) -> Self {
        let policy = RefreshPolicy::default();
        let published = Published::configured(keys);
        let snapshot = KeySnapshot { published, generation: 1, confirmed: None, max_stale: policy.max_stale };
        let clock = SteadyClock::start(&context.clock);
        let budget = Arc::default();
        let shared = Arc::new(Shared::new(provider, policy, snapshot, false, context, clock, budget));
        shared.publish_gauges();
        Self { shared, tasks: Vec::new(), persisted_before: false }
    }

    /// Learns what another cache knows of the same issuer's keys, such as that of a source that this one replaces:
    /// keys that were withdrawn there are withdrawn here, and keys that it has are withdrawn if the first answer here
    /// lacks them.
    pub fn learn_from(&self, other: &KeyCache) {
        let known = other.shared.snapshot.load_full();
        self.shared.add_withdrawn(known.published.withdrawn());
        self.shared.add_earlier(known.published.key_names());
    }

    /// Called when a token was verified: a realm's set is persisted from now on.
    pub fn persist(&self) {
        if !self.shared.persisted.swap(true, Ordering::AcqRel) {
            self.shared.finished.send_replace(());
        }
    }

    /// The current set. Never waits.
    pub fn observe(&self) -> ObservedKeys {
        // In this order, a fetch that starts between the two loads is regarded as started after the arrival.
        let arrival = self.shared.started.load(Ordering::Acquire);
        ObservedKeys { snapshot: self.shared.snapshot.load_full(), arrival, at: self.shared.now() }
    }

    /// Whether the keys can be fetched; those of the configuration cannot.
    pub fn is_refreshable(&self) -> bool {
        self.shared.refreshable
    }

    /// Counts a token that fixed keys do not verify; there are no newer keys to wait for.
    pub fn count_still_stale(&self, cause: StaleCause) {
        self.shared.context.metrics.stale_token(&self.shared.provider, cause, StaleOutcome::StillStale);
    }

    /// The budget of forced fetches.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.shared.budget
    }

    /// Whether there have been keys at least once.
    pub fn has_keys(&self) -> bool {
        self.shared.snapshot.load().generation > 0
    }

    /// Waits until the first fetch has ended, successfully or not; returns at once if keys are not fetched.
    pub async fn first_fetch_ended(&self) {
        // Subscribed before the schedule is consulted, so that no end is missed in between.
        let mut finished = self.shared.finished.subscribe();
        while self.shared.refreshable
            && !self.shared.state().schedule.any_ended()
            && finished.changed().await.is_ok()
        {}
    }

    /// A wait for keys newer than the caller's arrival, for a token that is stale under `observed`.
    pub fn wait_for_newer(&self, observed: ObservedKeys, token: StaleToken) -> KeyWait<'_> {
        KeyWait::new(&self.shared, observed, token)
    }

    /// The status of the keys.
    pub fn status(&self) -> KeyStatus {
        self.shared.status()
    }

    /// Why the last fetch failed; `None` once one succeeds. Contains nothing of the issuer's answer, and no URL.
    pub fn last_error(&self) -> Option<FetchError> {
        self.shared.state().last_error.clone()
    }

    /// By how many seconds this machine's clock is ahead of the issuer's, negative if it is behind; `None` as long as they
    /// differ by 5 s at most, or no answer has said it.
    pub fn clock_ahead(&self) -> Option<i64> {
        self.shared.clock_ahead()
    }

    /// Updates the gauges of age and size.
    pub fn publish_gauges(&self) {
        self.shared.publish_gauges();
    }
}

impl Shared {
    fn new(
        provider: &str,
        policy: RefreshPolicy,
        snapshot: KeySnapshot,
        refreshable: bool,
        context: KeyCacheContext,
        clock: SteadyClock,
        budget: Arc<Budget>,
    ) -> Self {
        let member = budget.accounts().join();
        let schedule = Schedule::new(policy.clone(), member, context.clock.monotonic());
        let snapshot_deadline = context.clock.monotonic() + refresh::snapshot_wait(&policy);
        let state = State {
            schedule,
            last_trigger: None,
            last_error: None,
            failures: Failures::default(),
            passed_over: Failures::default(),
            age_warned: false,
            clock_warned: None,
            authority: 0,
            pending: None,
            earlier: Vec::new(),
            wanted: Wanted::default(),
            older_in_a_row: 0,
            location_remembered: 0,
        };
        Self {
            provider: provider.to_owned(),
            policy,
            context,
            clock,
            budget,
            member,
            snapshot: ArcSwap::from_pointee(snapshot),
            started: AtomicU64::new(0),
            state: Mutex::new(state),
            finished: watch::Sender::new(()),
            wake: Notify::new(),
            waiters: AtomicUsize::new(0),
            snapshot_read: watch::Sender::new(true),
            snapshot_deadline,
            persisted: AtomicBool::new(true),
            refreshable,
            temporary: AtomicBool::new(false),
            clock_ahead: AtomicI64::new(UNKNOWN_CLOCK),
        }
    }

    fn now(&self) -> Instant {
        self.context.clock.monotonic()
    }

    /// No code that holds the lock can panic midway, so a poisoned lock is still sound.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn was_withdrawn(&self, kid: &Kid) -> bool {
        self.snapshot.load().published.was_withdrawn(kid)
    }

    /// `None` if the current set is no longer `seen`: it may have been replaced after the caller's last look, and a
    /// fetch would be demanded needlessly.
    fn join_or_demand(
        &self,
        caller: Caller,
        kid: Option<&Kid>,
        seen: &Arc<KeySnapshot>,
    ) -> Option<RefreshOutcome> {
        let now = self.now();
        // Sets are replaced under this lock.
        let mut state = self.state();
        if !Arc::ptr_eq(&self.snapshot.load(), seen) {
            return None;
        }
        let outcome = state.schedule.join_or_demand(&mut self.budget.accounts(), caller, now);
        if matches!(outcome, RefreshOutcome::Demanded | RefreshOutcome::TooLate) {
            state.wanted.add(kid);
        }
        Some(outcome)
    }

    fn status(&self) -> KeyStatus {
        let snapshot = self.snapshot.load_full();
        let state = self.state();
        let until_next = state.schedule.next_scheduled().saturating_duration_since(self.now());
        let next = self.context.clock.now().as_secs_f64() + until_next.as_secs_f64();
        KeyStatus {
            keys: Arc::clone(snapshot.published.keys()),
            generation: snapshot.generation,
            fetched_at: snapshot.confirmed.map(|confirmed| confirmed.wall),
            age: snapshot.confirmed.map(|confirmed| confirmed.age(self.now())),
            next_refresh_at: self.refreshable.then(|| UnixTime::from_secs(next.ceil() as i64)),
            last_trigger: state.last_trigger,
            last_error: state.last_error.clone(),
        }
    }

    fn clock_ahead(&self) -> Option<i64> {
        let ahead = self.clock_ahead.load(Ordering::Relaxed);
        (ahead != UNKNOWN_CLOCK && ahead.saturating_abs() > CLOCK_TOLERANCE_SECS).then_some(ahead)
    }

    fn publish_gauges(&self) {
        let snapshot = self.snapshot.load();
        let age = snapshot.confirmed.map(|confirmed| confirmed.age(self.now()));
        let metrics = &self.context.metrics;
        let publish = || {
            metrics.key_set(&self.provider, snapshot.published.keys(), snapshot.generation, age);
            metrics.issuer_clock(&self.provider, self.clock_ahead().unwrap_or(0));
            metrics.waiters(&self.provider, self.waiters.load(Ordering::Relaxed));
        };
        // An aborted task may still run here after its label values were removed.
        match self.temporary.load(Ordering::Acquire) {
            true => metrics.if_registered(&self.provider, publish),
            false => publish(),
        }
    }
}
