//! The Prometheus metrics.
//!
//! Labels have few values by construction: names from the configuration and enum values, never text from a token or a
//! request. Nothing here receives a token, a header value or a secret.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::decisions::{DecisionFamilies, DecisionMetrics};
use super::log;
use super::process::ProcessMetrics;
use super::rules::{RuleFamily, RuleMetrics};
use super::tls::TlsMetrics;
use crate::validation::key_set::KeySet;
use crate::validation::{StaleCause, UnixTime};
use crate::verdict::Verdict;

/// Why a fetch was started; the `trigger` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Trigger {
    /// The first fetch of a cache, and those after it until one succeeds.
    Startup,
    /// The schedule.
    Scheduled,
    /// A token failed against the current set.
    Forced(StaleCause),
}

impl Trigger {
    /// Every trigger.
    pub const ALL: [Trigger; 4] = [
        Trigger::Startup,
        Trigger::Scheduled,
        Trigger::Forced(StaleCause::UnknownKid),
        Trigger::Forced(StaleCause::BadSignature),
    ];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Trigger::Startup => "startup",
            Trigger::Scheduled => "scheduled",
            Trigger::Forced(StaleCause::UnknownKid) => "unknown_kid",
            Trigger::Forced(StaleCause::BadSignature) => "bad_signature",
        }
    }
}

/// How a fetch ended; the `outcome` label of `portcullis_jwks_fetches_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FetchOutcome {
    /// The keys have changed.
    Renewed,
    /// The keys are the same.
    Unchanged,
    /// The answer is older than the current set, which stays.
    Older,
    /// No keys were received; the last good set stays.
    Failed,
}

impl FetchOutcome {
    const ALL: [FetchOutcome; 4] =
        [FetchOutcome::Renewed, FetchOutcome::Unchanged, FetchOutcome::Older, FetchOutcome::Failed];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            FetchOutcome::Renewed => "renewed",
            FetchOutcome::Unchanged => "unchanged",
            FetchOutcome::Older => "older",
            FetchOutcome::Failed => "failed",
        }
    }
}

/// The result of a stale token; the `outcome` label of `portcullis_stale_tokens_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StaleOutcome {
    /// A newer set verified it.
    Rescued,
    /// The newest set did not verify it, or a forced fetch for a bad signature was not allowed soon enough.
    StillStale,
    /// The fetch failed.
    FetchFailed,
    /// The fetch did not end in time, or too many requests were waiting.
    TimedOut,
}

impl StaleOutcome {
    const ALL: [StaleOutcome; 4] =
        [StaleOutcome::Rescued, StaleOutcome::StillStale, StaleOutcome::FetchFailed, StaleOutcome::TimedOut];

    fn as_str(self) -> &'static str {
        match self {
            StaleOutcome::Rescued => "rescued",
            StaleOutcome::StillStale => "still_stale",
            StaleOutcome::FetchFailed => "fetch_failed",
            StaleOutcome::TimedOut => "timed_out",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FetchLabels {
    provider: String,
    trigger: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StaleLabels {
    provider: String,
    cause: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProviderLabels {
    provider: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TaskLabels {
    provider: String,
    task: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DoorLabels {
    door: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClosedLabels {
    door: &'static str,
    cause: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenCacheLabels {
    outcome: &'static str,
}

const APPLIED: ReloadLabels = ReloadLabels { outcome: "applied" };
const REJECTED: ReloadLabels = ReloadLabels { outcome: "rejected" };

/// The metrics of the cache of verified tokens, without a lookup by label for each request.
#[derive(Debug)]
pub struct TokenCacheMetrics {
    hits: Counter,
    misses: Counter,
    entries: Gauge,
}

impl TokenCacheMetrics {
    /// Counts a request with a token.
    pub fn count(&self, is_hit: bool) {
        if is_hit {
            self.hits.inc()
        } else {
            self.misses.inc()
        };
    }

    /// Sets the number of tokens in the cache.
    pub fn set_entries(&self, entries: usize) {
        self.entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }
}

/// Every metric of the service. Each running service has its own, so that tests do not share them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// The metrics whose names have no prefix.
    process: Registry,
    decisions: DecisionFamilies,
    rules: RuleFamily,
    fetches: Family<FetchLabels, Counter>,
    stale_tokens: Family<StaleLabels, Counter>,
    keys: Family<ProviderLabels, Gauge>,
    skipped_keys: Family<ProviderLabels, Gauge>,
    age: Family<ProviderLabels, Gauge<f64, std::sync::atomic::AtomicU64>>,
    issuer_clock: Family<ProviderLabels, Gauge>,
    generation: Family<ProviderLabels, Gauge>,
    waiters: Family<ProviderLabels, Gauge>,
    waiters_rejected: Family<ProviderLabels, Counter>,
    task_restarts: Family<TaskLabels, Counter>,
    connections: Family<DoorLabels, Gauge>,
    connections_refused: Family<DoorLabels, Counter>,
    connections_closed: Family<ClosedLabels, Counter>,
    reloads: Family<ReloadLabels, Counter>,
    last_reload: Gauge<f64, std::sync::atomic::AtomicU64>,
    token_cache: Family<TokenCacheLabels, Counter>,
    token_cache_entries: Gauge,
    tls: TlsMetrics,
    /// The number of temporary key caches by name.
    temporary_caches: Mutex<HashMap<String, usize>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("portcullis");
        let mut process = Registry::default();
        process.register_collector(Box::new(ProcessMetrics));
        // The build of a release sets the revision.
        let revision = option_env!("PORTCULLIS_REVISION").unwrap_or("unknown");
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION")), ("revision", revision)]);
        registry.register("build", "The version of this program", build);
        let decisions = DecisionFamilies::registered_in(&mut registry);
        let rules = RuleFamily::registered_in(&mut registry);
        let fetches = Family::default();
        registry.register("jwks_fetches", "Fetches of a key set by what started them", fetches.clone());
        let stale_tokens = Family::default();
        registry.register(
            "stale_tokens",
            "Tokens that failed against the current key set",
            stale_tokens.clone(),
        );
        let keys = Family::default();
        registry.register("jwks_keys", "Usable keys of the current key set", keys.clone());
        let skipped_keys = Family::default();
        registry.register(
            "jwks_skipped_keys",
            "Keys for signatures in the current key set that cannot be used",
            skipped_keys.clone(),
        );
        let age = Family::default();
        registry.register(
            "jwks_age_seconds",
            "Time since the current key set was last confirmed",
            age.clone(),
        );
        let issuer_clock = Family::default();
        registry.register(
            "issuer_clock_difference_seconds",
            "How far this machine's clock is ahead of the issuer's; 0 up to 5 s",
            issuer_clock.clone(),
        );
        let generation = Family::default();
        registry.register("jwks_generation", "Changes of the key set since the start", generation.clone());
        let waiters = Family::default();
        registry.register("jwks_waiters", "Requests that are waiting for a refresh", waiters.clone());
        let waiters_rejected = Family::default();
        registry.register(
            "jwks_waiters_rejected",
            "Requests answered unavailable because max_waiters requests were waiting",
            waiters_rejected.clone(),
        );
        let task_restarts = Family::default();
        registry.register(
            "task_restarts",
            "Restarts of tasks that panicked or ended unexpectedly",
            task_restarts.clone(),
        );
        registry.register(
            "log_dropped",
            "Log lines of this process that were dropped: the buffer was full, or they could not be written",
            log::dropped(),
        );
        let connections = Family::default();
        registry.register("connections", "Open connections", connections.clone());
        let connections_refused = Family::default();
        registry.register(
            "connections_refused",
            "Connections that were refused, or closed to make room, because of the connection limit",
            connections_refused.clone(),
        );
        let connections_closed = Family::default();
        registry.register(
            "connections_closed",
            "Connections that were closed because they were idle, incomplete, did not read answers, or sent too much",
            connections_closed.clone(),
        );
        let reloads = Family::default();
        registry.register("config_reloads", "Reloads of the configuration", reloads.clone());
        // Created at the start, so that the first event of either kind shows as an increase.
        for outcome in [APPLIED, REJECTED] {
            let _at_zero: Counter = reloads.get_or_create_owned(&outcome);
        }
        let last_reload = Gauge::default();
        registry.register(
            "config_last_reload_success_timestamp_seconds",
            "Unix time at which the configuration was last applied completely",
            last_reload.clone(),
        );
        let token_cache = Family::<TokenCacheLabels, Counter>::default();
        registry.register(
            "token_cache",
            "Requests with a token, by whether its signature had been verified before",
            token_cache.clone(),
        );
        for outcome in ["hit", "miss"] {
            let _at_zero: Counter = token_cache.get_or_create_owned(&TokenCacheLabels { outcome });
        }
        let token_cache_entries = Gauge::default();
        registry.register("token_cache_entries", "Verified tokens in the cache", token_cache_entries.clone());
        let tls = TlsMetrics::registered_in(&mut registry);
        Self {
            registry,
            process,
            tls,
            decisions,
            rules,
            fetches,
            stale_tokens,
            keys,
            skipped_keys,
            age,
            issuer_clock,
            generation,
            waiters,
            waiters_rejected,
            task_restarts,
            connections,
            connections_refused,
            connections_closed,
            reloads,
            last_reload,
            token_cache,
            token_cache_entries,
            temporary_caches: Mutex::default(),
        }
    }

    /// Hits and misses of the cache of verified tokens, and its entries.
    pub fn token_cache(&self) -> TokenCacheMetrics {
        let of = |outcome| self.token_cache.get_or_create_owned(&TokenCacheLabels { outcome });
        TokenCacheMetrics { hits: of("hit"), misses: of("miss"), entries: self.token_cache_entries.clone() }
    }

    /// The metrics of TLS at the listeners.
    pub fn tls(&self) -> &TlsMetrics {
        &self.tls
    }

    /// The metrics of decisions under a configuration with these providers.
    pub fn decisions<'a>(&self, providers: impl Iterator<Item = &'a str>) -> DecisionMetrics {
        DecisionMetrics::new(self.decisions.clone(), providers)
    }

    /// The counters of the decisions under a configuration with these rules.
    pub fn rules<'a>(&self, names: impl Iterator<Item = &'a str>) -> RuleMetrics {
        RuleMetrics::new(self.rules.clone(), names)
    }

    /// Counts a decision that was made without a configuration.
    pub fn decision(&self, door: &'static str, verdict: &Verdict, provider: &str, took: Duration) {
        self.decisions.count(door, verdict, provider, took);
    }

    /// Counts a fetch that ended.
    pub fn fetch(&self, provider: &str, trigger: Trigger, outcome: FetchOutcome) {
        let labels = FetchLabels {
            provider: provider.to_owned(),
            trigger: trigger.as_str(),
            outcome: outcome.as_str(),
        };
        self.fetches.get_or_create(&labels).inc();
    }

    /// Counts a stale token and its result.
    pub fn stale_token(&self, provider: &str, cause: StaleCause, outcome: StaleOutcome) {
        let labels = StaleLabels {
            provider: provider.to_owned(),
            cause: Trigger::Forced(cause).as_str(),
            outcome: outcome.as_str(),
        };
        self.stale_tokens.get_or_create(&labels).inc();
    }

    /// The state of a provider's set. `age` is `None` for keys that are not fetched.
    pub fn key_set(&self, provider: &str, keys: &KeySet, generation: u64, age: Option<Duration>) {
        let labels = ProviderLabels { provider: provider.to_owned() };
        let skipped = keys.skipped().iter().filter(|key| key.may_sign()).count();
        self.keys.get_or_create(&labels).set(i64::try_from(keys.keys().len()).unwrap_or(i64::MAX));
        self.skipped_keys.get_or_create(&labels).set(i64::try_from(skipped).unwrap_or(i64::MAX));
        self.generation.get_or_create(&labels).set(i64::try_from(generation).unwrap_or(i64::MAX));
        match age {
            Some(age) => {
                self.age.get_or_create(&labels).set(age.as_secs_f64());
            }
            None => {
                self.age.remove(&labels);
            }
        }
    }

    /// By how many seconds this machine's clock is ahead of the issuer's.
    pub fn issuer_clock(&self, provider: &str, ahead: i64) {
        let labels = ProviderLabels { provider: provider.to_owned() };
        self.issuer_clock.get_or_create(&labels).set(ahead);
    }

    /// The number of requests that wait for a provider's refresh.
    pub fn waiters(&self, provider: &str, waiting: usize) {
        let labels = ProviderLabels { provider: provider.to_owned() };
        self.waiters.get_or_create(&labels).set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    /// Counts a request that was rejected because of `max_waiters`.
    pub fn waiter_rejected(&self, provider: &str) {
        let labels = ProviderLabels { provider: provider.to_owned() };
        self.waiters_rejected.get_or_create(&labels).inc();
    }

    /// Counts a restart of a task. `provider` is empty for tasks without one.
    pub fn task_restarted(&self, provider: &str, task: &'static str) {
        self.task_restarts.get_or_create(&TaskLabels { provider: provider.to_owned(), task }).inc();
    }

    /// Counts a connection that was opened.
    pub fn connection_opened(&self, door: &'static str) {
        self.connections.get_or_create(&DoorLabels { door }).inc();
    }

    /// Counts a connection that has ended.
    pub fn connection_ended(&self, door: &'static str) {
        self.connections.get_or_create(&DoorLabels { door }).dec();
    }

    /// Counts connections that were refused or closed to make room.
    pub fn connections_refused(&self, door: &'static str, refused: usize) {
        self.connections_refused.get_or_create(&DoorLabels { door }).inc_by(refused as u64);
    }

    /// Counts a connection that was closed because of a limit.
    pub fn connection_closed(&self, door: &'static str, cause: &'static str) {
        self.connections_closed.get_or_create(&ClosedLabels { door, cause }).inc();
    }

    /// The service started with its configuration at this time.
    pub fn started_with_configuration(&self, now: UnixTime) {
        self.last_reload.set(now.as_secs_f64());
    }

    /// A configuration was applied completely at this time.
    pub fn reload_applied(&self, now: UnixTime) {
        self.reloads.get_or_create(&APPLIED).inc();
        self.last_reload.set(now.as_secs_f64());
    }

    /// A configuration was rejected, completely or in part.
    pub fn reload_rejected(&self) {
        self.reloads.get_or_create(&REJECTED).inc();
    }

    /// Removes a provider that the configuration no longer has.
    pub fn remove_provider(&self, provider: &str) {
        let labels = ProviderLabels { provider: provider.to_owned() };
        self.waiters.remove(&labels);
        self.keys.remove(&labels);
        self.skipped_keys.remove(&labels);
        self.generation.remove(&labels);
        self.issuer_clock.remove(&labels);
        self.age.remove(&labels);
    }

    /// Registers a temporary key cache of this name. Its metrics stay until [`Metrics::remove_cache`] has been called
    /// as often.
    pub fn register_cache(&self, name: &str) {
        *self.temporary_caches().entry(name.to_owned()).or_default() += 1;
    }

    /// Runs `publish` if a temporary key cache of this name is registered.
    pub fn if_registered(&self, name: &str, publish: impl FnOnce()) {
        // The lock is held to the end, so that the labels are not removed in between.
        let caches = self.temporary_caches();
        if caches.contains_key(name) {
            publish();
        }
    }

    /// Removes every label value of this name, counters too, unless another cache of that name is registered. `tasks`
    /// are the names of its tasks.
    pub fn remove_cache(&self, name: &str, tasks: &[&'static str]) {
        // The lock is held to the end, so that the labels of a cache that registers meanwhile are not removed.
        let mut caches = self.temporary_caches();
        if let Some(count) = caches.get_mut(name)
            && *count > 1
        {
            *count -= 1;
            return;
        }
        caches.remove(name);
        self.remove_provider(name);
        let causes = [StaleCause::UnknownKid, StaleCause::BadSignature].map(Trigger::Forced);
        for trigger in Trigger::ALL {
            for outcome in FetchOutcome::ALL {
                self.fetches.remove(&FetchLabels {
                    provider: name.to_owned(),
                    trigger: trigger.as_str(),
                    outcome: outcome.as_str(),
                });
            }
        }
        for cause in causes {
            for outcome in StaleOutcome::ALL {
                self.stale_tokens.remove(&StaleLabels {
                    provider: name.to_owned(),
                    cause: cause.as_str(),
                    outcome: outcome.as_str(),
                });
            }
        }
        for task in tasks {
            self.task_restarts.remove(&TaskLabels { provider: name.to_owned(), task });
        }
        self.waiters_rejected.remove(&ProviderLabels { provider: name.to_owned() });
    }

    /// No code that holds the lock can panic midway, so a poisoned lock is still sound.
    fn temporary_caches(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.temporary_caches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The metrics in the format of OpenMetrics 1.0.
    ///
    /// # Errors
    /// A metric cannot be written, which none of these can cause.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.process)?;
        encode_registry(&mut text, &self.registry)?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_of_a_removed_cache_do_not_come_back() {
        let metrics = Metrics::default();
        let publish =
            || metrics.if_registered("p/realm", || metrics.key_set("p/realm", &KeySet::default(), 1, None));
        let is_shown = || metrics.encode().expect("text").contains("p/realm");
        publish();
        assert!(!is_shown(), "no cache is registered yet");
        metrics.register_cache("p/realm");
        metrics.register_cache("p/realm");
        publish();
        metrics.remove_cache("p/realm", &[]);
        assert!(is_shown(), "another cache of that name is registered");
        metrics.remove_cache("p/realm", &[]);
        publish();
        assert!(!is_shown());
    }
}
