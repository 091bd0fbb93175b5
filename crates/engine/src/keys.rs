//! The keys of one provider, kept fresh by the refresh rule.
//!
//! Readers take the set in hand ([`KeyCache::observe`]) and never wait. A caller whose token is stale
//! under it waits for newer keys ([`KeyCache::wait_for_newer`]), and gets them or a final answer:
//!
//! - Has the cache moved on since? Look again, without a fetch.
//! - Is a fetch under way? Join it. It may have begun before the caller arrived and bring the old set
//!   once more; then wait for the next one.
//! - Otherwise demand a fetch. It starts when the budget of the cause allows ([`schedule`], [`budget`]), serves
//!   everybody who waits, and belongs to the cache: callers that give up cancel nothing.
//! - A failed fetch leaves the set in hand as it is, and so does an answer that is older ([`origin`],
//!   [`published`]).
//!
//! One task per provider, the driver in `keys/refresh.rs`, starts all fetches and takes in what they bring. The set
//! is swapped atomically. A task that panics is started again.
//!
//! # Architecture invariant
//! The one home of `reqwest`, in [`http_client`]. Nothing here knows of requests, proxies or verdicts: what a set is held
//! against is its caller's business.

pub mod budget;
mod caching;
pub mod discovery;
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

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::clock::{Clock, Instant, SteadyClock};
use crate::supervise::{Supervisor, Task, Tasks};
use crate::telemetry::{Metrics, StaleOutcome};
use crate::validation::key_set::{KeyName, KeySet};
use crate::validation::{Kid, StaleCause, UnixTime};

use self::budget::{Budget, Known, Member};
pub use self::issuer_http::{ClientCertificate, IssuerHttp, ProxyUrl};
pub use self::policy::RefreshPolicy;

use self::fetch::{Fetch, Wanted};
use self::fetch_error::FetchError;
use self::published::Published;
pub use self::refresh::SNAPSHOT_PATIENCE;
use self::schedule::{Caller, RefreshOutcome, Schedule};
use self::snapshot::SnapshotFile;
pub use self::wait::{KeyWait, Newer, StaleToken, Unavailable};
use crate::telemetry::Trigger;

/// The names of the tasks that keep one provider's keys.
pub const TASKS: [&str; 4] = [WATCH_FILE, RESTORE, KEEP_SNAPSHOT, DRIVE];

const WATCH_FILE: &str = "watch_file";
const RESTORE: &str = "restore";
const KEEP_SNAPSHOT: &str = "keep_snapshot";
const DRIVE: &str = "drive";

/// A provider's key set at one moment.
#[derive(Clone, Debug)]
pub struct KeySnapshot {
    published: Published,
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
    /// Who says so.
    by: Confirmation,
}

/// Who confirmed a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Confirmation {
    /// Its source, in this process.
    Source,
    /// A snapshot, which is never written back.
    Snapshot,
}

impl Confirmed {
    fn age(&self, now: Instant) -> Duration {
        self.age_then.saturating_add(now.saturating_duration_since(self.taken_in))
    }
}

impl KeySnapshot {
    /// None yet.
    fn empty(max_stale: Duration) -> Self {
        Self { published: Published::default(), generation: 0, confirmed: None, max_stale }
    }

    /// The keys. There are none once the last good fetch is longer ago than `max_stale`.
    fn keys_at(&self, now: Instant) -> Arc<KeySet> {
        static NONE: LazyLock<Arc<KeySet>> = LazyLock::new(Arc::default);
        match self.confirmed {
            Some(confirmed) if confirmed.age(now) > self.max_stale => Arc::clone(&NONE),
            _ => Arc::clone(self.published.keys()),
        }
    }
}

/// What a caller saw: the set that it verifies against, and how many fetches had begun before.
#[derive(Clone, Debug)]
pub struct ObservedKeys {
    snapshot: Arc<KeySnapshot>,
    arrival: u64,
    at: Instant,
}

impl ObservedKeys {
    /// The keys that were seen. A set that is past `max_stale` is as good as empty.
    pub fn keys(&self) -> Arc<KeySet> {
        self.snapshot.keys_at(self.at)
    }
}

/// What a key cache is surrounded by; the same for all caches of a service.
#[derive(Clone, Debug, Default)]
pub struct KeyCacheContext {
    /// Wall time, for `fetched_at`.
    pub clock: Clock,
    /// Where fetches and stale tokens are counted.
    pub metrics: Arc<Metrics>,
    /// Told when anything happened that health depends on; one task listens.
    pub serving_changed: Arc<Notify>,
    /// The tasks that keep keys, and how they are.
    pub tasks: Tasks,
    /// Whether snapshots are only read: so does whoever looks at a service's files and is none.
    pub snapshots_read_only: bool,
    /// What spreads fetches in time.
    pub jitter: Jitter,
}

impl KeyCacheContext {
    /// What keeps tasks running here.
    pub fn supervisor(&self) -> Supervisor {
        Supervisor::new(self.tasks.clone(), Arc::clone(&self.metrics), Arc::clone(&self.serving_changed))
    }
}

/// Where the numbers from 0 to 1 come from that spread fetches in time.
#[derive(Clone, Debug, Default)]
pub enum Jitter {
    /// Chance.
    #[default]
    Random,
    /// Always this number; for simulations that are played again.
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
    /// Whether a cache before it was kept in a file.
    kept_before: bool,
}

impl Drop for KeyCache {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        let published = &self.shared.snapshot.load().published;
        let known = Known { withdrawn: published.withdrawn().to_vec(), keys: published.key_names() };
        self.shared.budget.remember(&self.shared.provider, known);
        self.shared.budget.resign(self.shared.member);
        if self.shared.passing.load(Ordering::Acquire) {
            self.shared.context.metrics.forget_keys(&self.shared.provider, &TASKS);
        }
    }
}

struct Shared {
    provider: String,
    policy: RefreshPolicy,
    context: KeyCacheContext,
    clock: SteadyClock,
    budget: Arc<Budget>,
    member: Member,
    snapshot: ArcSwap<KeySnapshot>,
    /// How many fetches have begun; the schedule's own count, for readers that take no lock.
    started: AtomicU64,
    state: Mutex<State>,
    /// Told of every fetch that ends.
    finished: watch::Sender<()>,
    wake: Notify,
    waiters: AtomicUsize,
    /// Whether the snapshot has been read, or there is none to read.
    snapshot_read: watch::Sender<bool>,
    /// Until when the first answer waits for it.
    snapshot_awaited: Instant,
    /// Whether the set is kept in a file: of a realm only once one of its tokens was verified.
    kept: AtomicBool,
    /// Whether a fetch can bring anything new; keys of the configuration never change.
    refreshable: bool,
    /// Whether nothing is to remain of it in the metrics.
    passing: AtomicBool,
}

struct State {
    schedule: Schedule,
    last_trigger: Option<Trigger>,
    last_error: Option<FetchError>,
    /// Whether it was told that the set is half-way to being too old.
    ageing_told: bool,
    /// What the snapshot holds, until the first fetch has ended.
    pending: Option<KeySnapshot>,
    /// Keys that the issuer had before, elsewhere or too long ago to count, until the first answer.
    earlier: Vec<KeyName>,
    /// The keys that tokens wait for, of which no fetch has been told yet.
    wanted: Wanted,
    /// How many answers in a row were older than the set in hand, though no cache says to have kept them.
    older_in_a_row: u32,
    /// The latest fetch that read a remembered place without asking where the keys are.
    place_remembered: u64,
}

impl KeyCache {
    /// Keys that are fetched. Spawns the driver; the first fetch starts at once. Until it succeeds, the
    /// keys of `before` serve, a cache of the same source whose policy has changed. Where there are none, those of the
    /// snapshot count once the first fetch has ended; it is kept up to date from then on. What tokens force is paid
    /// from `budget`, which the realms of one provider share.
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
        let kept_before = before.is_some_and(|before| before.shared.kept.load(Ordering::Acquire));
        let before = before.filter(|before| before.has_keys()).map(|before| &before.shared);
        let (snapshot, clock) = match before {
            Some(before) => {
                let snapshot = before.snapshot.load_full();
                (KeySnapshot { max_stale, ..(*snapshot).clone() }, before.clock.clone())
            }
            None => (KeySnapshot::empty(max_stale), SteadyClock::beginning_now(&context.clock)),
        };
        let restored = file.as_ref().filter(|_| snapshot.generation == 0).cloned();
        let kept = file.filter(|_| !context.snapshots_read_only);
        let shared = Arc::new(Shared::new(provider, policy, snapshot, true, context, clock, budget));
        let Known { withdrawn, keys } = shared.budget.known_of(provider);
        shared.learn_withdrawn(&withdrawn);
        shared.learn_earlier(keys);
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
        if let Some(file) = kept {
            let keeping = Arc::clone(&shared);
            tasks.push(supervisor.keep(Task::of(provider, KEEP_SNAPSHOT), move || {
                refresh::keep_snapshot(Arc::clone(&keeping), keeping.finished.subscribe(), file.clone())
            }));
        }
        let driving = Arc::clone(&shared);
        tasks.push(supervisor.keep(Task::of(provider, DRIVE), move || {
            refresh::drive(Arc::clone(&driving), Arc::clone(&fetch))
        }));
        Self { shared, tasks, kept_before }
    }

    /// The same, as one of many that come and go: when the last of its name goes, its label values go from the
    /// metrics.
    pub fn passing(self) -> Self {
        // Nothing is kept of a realm whose name somebody may have made up.
        self.shared.kept.store(self.kept_before, Ordering::Release);
        self.shared.context.metrics.hold_keys(&self.shared.provider);
        self.shared.passing.store(true, Ordering::Release);
        self
    }

    /// Keys that are written into the configuration: nothing is ever fetched.
    pub fn fixed(provider: &str, keys: Arc<KeySet>, context: KeyCacheContext) -> Self {
        let policy = RefreshPolicy::default();
        let published = Published::configured(keys);
        let snapshot = KeySnapshot { published, generation: 1, confirmed: None, max_stale: policy.max_stale };
        let clock = SteadyClock::beginning_now(&context.clock);
        let budget = Arc::default();
        let shared = Arc::new(Shared::new(provider, policy, snapshot, false, context, clock, budget));
        shared.publish_gauges();
        Self { shared, tasks: Vec::new(), kept_before: false }
    }

    /// What is known of the same issuer's keys from elsewhere, such as those of a source that this one replaces: keys
    /// that were withdrawn there stay so here, and those that it has are withdrawn where the first answer here lacks them.
    pub fn learn_from(&self, other: &KeyCache) {
        let known = other.shared.snapshot.load_full();
        self.shared.learn_withdrawn(known.published.withdrawn());
        self.shared.learn_earlier(known.published.key_names());
    }

    /// A token of it was verified: of a realm the set is kept in its file from now on.
    pub fn keep_from_now_on(&self) {
        if !self.shared.kept.swap(true, Ordering::AcqRel) {
            self.shared.finished.send_replace(());
        }
    }

    /// The set in hand. Never waits.
    pub fn observe(&self) -> ObservedKeys {
        // In this order: a fetch that begins between the two loads counts as begun after arrival.
        let arrival = self.shared.started.load(Ordering::Acquire);
        ObservedKeys { snapshot: self.shared.snapshot.load_full(), arrival, at: self.shared.now() }
    }

    /// Whether a fetch can bring other keys than these: not those of the configuration.
    pub fn is_refreshable(&self) -> bool {
        self.shared.refreshable
    }

    /// Counts a token that fixed keys do not verify: there are no newer ones to wait for.
    pub fn count_still_stale(&self, cause: StaleCause) {
        self.shared.context.metrics.stale_token(&self.shared.provider, cause, StaleOutcome::StillStale);
    }

    /// What pays for the fetches that tokens force.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.shared.budget
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

    /// The wait of a caller whose token was stale under `observed` for keys that are newer than its arrival.
    pub fn wait_for_newer(&self, observed: ObservedKeys, token: StaleToken) -> KeyWait<'_> {
        KeyWait::new(&self.shared, observed, token)
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
        let snapshot_awaited = context.clock.monotonic() + refresh::snapshot_patience(&policy);
        let state = State {
            schedule,
            last_trigger: None,
            last_error: None,
            ageing_told: false,
            pending: None,
            earlier: Vec::new(),
            wanted: Wanted::default(),
            older_in_a_row: 0,
            place_remembered: 0,
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
            snapshot_awaited,
            kept: AtomicBool::new(true),
            refreshable,
            passing: AtomicBool::new(false),
        }
    }

    fn now(&self) -> Instant {
        self.context.clock.monotonic()
    }

    /// No code that holds the lock can panic half-way, so a poisoned one is still sound.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn was_withdrawn(&self, kid: &Kid) -> bool {
        self.snapshot.load().published.was_withdrawn(kid)
    }

    /// `None` where the set in hand is another one by now than the one that was seen: it may have come after the last
    /// look, and a fetch would be demanded for nothing.
    fn join_or_demand(
        &self,
        caller: Caller,
        kid: Option<&Kid>,
        seen: &Arc<KeySnapshot>,
    ) -> Option<RefreshOutcome> {
        let now = self.now();
        // Sets are exchanged under this lock.
        let mut state = self.state();
        if !Arc::ptr_eq(&self.snapshot.load(), seen) {
            return None;
        }
        let standing = state.schedule.join_or_demand(&mut self.budget.accounts(), caller, now);
        if matches!(standing, RefreshOutcome::Demanded | RefreshOutcome::OutOfReach) {
            state.wanted.note(kid);
        }
        Some(standing)
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

    fn publish_gauges(&self) {
        let snapshot = self.snapshot.load();
        let age = snapshot.confirmed.map(|confirmed| confirmed.age(self.now()));
        let metrics = &self.context.metrics;
        let publish = || {
            metrics.key_set(&self.provider, snapshot.published.keys().keys().len(), snapshot.generation, age);
            metrics.waiters(&self.provider, self.waiters.load(Ordering::Relaxed));
        };
        // A task that is told to end may be here still, after what it published was taken out.
        match self.passing.load(Ordering::Acquire) {
            true => metrics.while_held(&self.provider, publish),
            false => publish(),
        }
    }
}
