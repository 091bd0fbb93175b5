//! The refresh tasks of a key cache: they make fetches, record and log their results, and read and write the snapshot
//! file.
//!
//! They never answer a caller; waiting callers are notified of every end of a fetch.

use std::collections::HashMap;
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinSet};
use tokio::time::sleep;

use super::failures::{Count, Line};
use super::fetch::{Asking, Fetch, FetchContext, Fetched, Interim, Wanted, fetch_within};
use super::fetch_error::FetchError;
use super::policy::RefreshPolicy;
use super::published::{Effect, Published, Withdrawn};
use super::schedule::{AnswerSource, FetchEnd, StartedFetch};
use super::snapshot::{ClockReading, PreviousSnapshot, Snapshot, SnapshotFile, StoreError};
use super::{Confirmation, Confirmed, KeySnapshot, Shared, State};
use crate::clock::Instant;
use crate::telemetry::Trigger;
use crate::telemetry::{FetchOutcome, on_one_line};
use crate::validation::Kid;
use crate::validation::key_set::{Key, KeyName, KeySet, KeySetError};

/// How often a clock that is not set is checked.
const CLOCK_POLL: Duration = Duration::from_secs(1);

/// How long after a failed write of the snapshot it is retried, unless a fetch ends before.
const STORE_RETRY: Duration = Duration::from_secs(5);

/// How often the warning about the clock of an issuer is repeated.
const CLOCK_WARNING_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// How many keys one refresh logs.
const LOGGED_KEYS: usize = 20;

/// How long after the start the first answer waits for the snapshot file of a slow disk.
pub const MAX_SNAPSHOT_WAIT: Duration = Duration::from_secs(2);

/// The same at least, however short a request's wait is: enough for a busy disk.
const MIN_SNAPSHOT_WAIT: Duration = Duration::from_millis(250);

/// Half of a request's wait, so that the first answer still serves the token that opened the realm.
pub(super) fn snapshot_wait(policy: &RefreshPolicy) -> Duration {
    (policy.wait / 2).clamp(MIN_SNAPSHOT_WAIT, MAX_SNAPSHOT_WAIT)
}

/// After this many consecutive answers that are older by their `Date` alone and come from no cache, the issuer's
/// clock was set back: the next answer is accepted, whatever its date.
const MAX_OLDER_IN_A_ROW: u32 = 3;

type FetchResult = Result<Fetched, FetchError>;

/// Makes every fetch of one provider while the cache exists.
pub(super) async fn drive(shared: Arc<Shared>, fetch: Arc<dyn Fetch>) {
    shared.abandon();
    let mut in_progress = JoinSet::new();
    let mut started: HashMap<Id, StartedFetch> = HashMap::new();
    loop {
        while let Some((one, wanted)) = shared.start() {
            let fetching = fetch_once(Arc::clone(&shared), Arc::clone(&fetch), one, wanted);
            started.insert(in_progress.spawn(fetching).id(), one);
        }
        // Enabled before the next start is determined, so that no change of the queue in between is missed.
        let mut queue_changed = pin!(shared.budget.queue_changed());
        // Caches that are not queued are not notified: there may be thousands.
        let queued = shared.budget.accounts().is_queued(shared.member);
        if queued {
            queue_changed.as_mut().enable();
        }
        let next_start = shared.next_start();
        tokio::select! {
            biased;
            Some(result) = in_progress.join_next_with_id() => {
                let (id, result) = match result {
                    Ok((id, result)) => (id, result),
                    Err(error) => (error.id(), Err(FetchError::Panicked)),
                };
                if let Some(one) = started.remove(&id) {
                    shared.wait_for_snapshot().await;
                    shared.record_fetch(one, result);
                }
            }
            () = shared.wake.notified() => {}
            () = queue_changed, if queued => {}
            () = async {
                match next_start {
                    Some(next_start) => shared.context.clock.sleep_until(next_start).await,
                    None => pending().await,
                }
            } => {}
        }
    }
}

async fn fetch_once(
    shared: Arc<Shared>,
    fetch: Arc<dyn Fetch>,
    started: StartedFetch,
    wanted: Wanted,
) -> FetchResult {
    let limit = shared.policy.timeout;
    let recorder = Arc::clone(&shared);
    let context = FetchContext {
        trigger: started.trigger,
        mode: started.mode,
        wanted,
        published: Arc::new(shared.snapshot.load().published.clone()),
        clock: shared.clock.clone(),
        deadline: shared.now() + limit,
        interim: Interim::to(move |fetched| recorder.record_interim(started.trigger, fetched)),
        asking: Asking::default(),
    };
    fetch_within(limit, &*fetch, context).await
}

/// Schedules a fetch soon after the source is seen to have changed.
pub(super) async fn watch_source(shared: Arc<Shared>, fetch: Arc<dyn Fetch>) {
    while let Some(change) = fetch.change() {
        change.await;
        shared.state().schedule.source_changed(shared.now());
        shared.wake.notify_one();
    }
}

/// Reads the snapshot of an earlier process, once the clock can tell its age.
pub(super) async fn restore(shared: Arc<Shared>, file: SnapshotFile) {
    while !shared.context.clock.is_plausible() {
        sleep(CLOCK_POLL).await;
    }
    let (provider, path) = (&shared.provider, file.path());
    let path = path.display();
    match file.read(shared.clock_reading(), shared.policy.max_stale).await {
        Ok(None) => {}
        Ok(Some(snapshot)) => {
            if let Some(error) = &snapshot.unusable {
                tracing::warn!(%provider, %path, %error, "key snapshot not used");
            }
            shared.restore_snapshot(snapshot);
        }
        Err(error) => tracing::warn!(%provider, %path, %error, "key snapshot not used"),
    }
    shared.snapshot_read.send_replace(true);
}

/// Writes the current set to its file when it has changed, and from time to time when it was confirmed, so that the
/// file's age tells how long the issuer has been unavailable. A restored snapshot is not written back.
///
/// `finished` is notified at the end of every fetch.
pub(super) async fn keep_snapshot(
    shared: Arc<Shared>,
    mut finished: watch::Receiver<()>,
    file: SnapshotFile,
) {
    let mut written: Option<(u64, Confirmed)> = None;
    let mut failing = false;
    loop {
        let snapshot = shared.snapshot.load_full();
        let persisted = shared.persisted.load(Ordering::Acquire);
        // A time of a clock that is not set is of no use to another process.
        let is_dated = |confirmed: &Confirmed| shared.context.clock.is_plausible_reading(confirmed.wall);
        let confirmed =
            snapshot.confirmed.filter(|one| persisted && one.source == Confirmation::Source && is_dated(one));
        let current = confirmed.is_none_or(|confirmed| {
            written.as_ref().is_some_and(|(generation, before)| {
                *generation == snapshot.generation
                    && confirmed.recorded_at.saturating_duration_since(before.recorded_at)
                        < shared.policy.interval / 2
            })
        });
        if let Some(confirmed) = confirmed.filter(|_| !current) {
            match file.store(snapshot.published.clone(), confirmed.wall, shared.clock_reading()).await {
                Ok(()) => {
                    written = Some((snapshot.generation, confirmed));
                    failing = false;
                }
                Err(error) => {
                    shared.log_store_error(&file, &error, failing);
                    failing = true;
                }
            }
        }
        let result = finished.changed();
        let result = if failing {
            let retry_at = shared.now() + STORE_RETRY;
            shared.context.clock.until(retry_at, result).await.unwrap_or(Ok(()))
        } else {
            result.await
        };
        // An error means that the cache was dropped, and this task ends.
        if result.is_err() {
            return;
        }
    }
}

impl Shared {
    fn start(&self) -> Option<(StartedFetch, Wanted)> {
        let now = self.now();
        let mut state = self.state();
        let started = state.schedule.start(&mut self.budget.accounts(), now)?;
        state.last_trigger = Some(started.trigger);
        self.started.store(state.schedule.started(), Ordering::Release);
        let wanted = std::mem::take(&mut state.wanted);
        drop(state);
        self.budget.notify_queue();
        Some((started, wanted))
    }

    fn next_start(&self) -> Option<Instant> {
        let now = self.now();
        self.state().schedule.next_start(&self.budget.accounts(), now)
    }

    /// Ends the fetches of a driver that has panicked.
    fn abandon(&self) {
        let now = self.now();
        self.state().schedule.abandon(&mut self.budget.accounts(), self.context.jitter.next(), now);
        self.finished.send_replace(());
    }

    fn clock_reading(&self) -> ClockReading {
        ClockReading::of(&self.context.clock, &self.clock)
    }

    /// Waits a limited time for the snapshot: its withdrawn keys apply to the first answer already.
    async fn wait_for_snapshot(&self) {
        let mut read = self.snapshot_read.subscribe();
        // On timeout the answer is recorded without the snapshot.
        let read = read.wait_for(|read| *read);
        let _timed_out = self.context.clock.until(self.snapshot_deadline, read).await;
    }

    /// Records the snapshot of an earlier process: its withdrawn keys at once, its keys once the first fetch has
    /// failed.
    pub(super) fn restore_snapshot(&self, snapshot: Snapshot) {
        let Snapshot { published, fetched_at, unusable } = snapshot;
        let now = self.now();
        let mut state = self.state();
        let current = self.snapshot.load_full();
        let withdrawn = published.withdrawn().to_vec();
        self.snapshot.store(Arc::new(KeySnapshot {
            published: current.published.without(&withdrawn),
            ..(*current).clone()
        }));
        // The file exists, so the realm's name is not made up: it is kept up to date.
        self.persisted.store(true, Ordering::Release);
        let published = published.without(current.published.withdrawn());
        if unusable.is_some() {
            drop(state);
            self.add_earlier(published.key_names());
            return;
        }
        if published.origin().is_none() || current.generation > 0 {
            return;
        }
        let max_stale = self.policy.max_stale;
        let seconds = (self.context.clock.now().as_secs_f64() - fetched_at.as_secs_f64()).max(0.0);
        let initial_age = Duration::try_from_secs_f64(seconds).unwrap_or(max_stale);
        let confirmed =
            Confirmed { wall: fetched_at, recorded_at: now, initial_age, source: Confirmation::Snapshot };
        let pending = KeySnapshot { published, generation: 1, confirmed: Some(confirmed), max_stale };
        state.pending = Some(pending);
        if state.schedule.any_ended() {
            self.serve_pending(&mut state);
            drop(state);
            self.publish_gauges();
            self.finished.send_replace(());
            self.context.serving_changed.notify_one();
        }
    }

    /// Records keys that were withdrawn elsewhere.
    pub(super) fn add_withdrawn(&self, withdrawn: &[Withdrawn]) {
        if withdrawn.is_empty() {
            return;
        }
        let mut state = self.state();
        if let Some(pending) = &mut state.pending {
            pending.published = pending.published.without(withdrawn);
        }
        let current = self.snapshot.load_full();
        let published = current.published.without(withdrawn);
        self.snapshot.store(Arc::new(KeySnapshot { published, ..(*current).clone() }));
    }

    /// Records keys that the issuer published before, from another source or in an expired snapshot.
    pub(super) fn add_earlier(&self, keys: Vec<KeyName>) {
        let mut state = self.state();
        let current = self.snapshot.load_full();
        if current.published.origin().is_none() {
            state.earlier.extend(keys);
            return;
        }
        let published = current.published.withdraw_missing(&keys);
        self.snapshot.store(Arc::new(KeySnapshot { published, ..(*current).clone() }));
    }

    fn serve_pending(&self, state: &mut State) {
        let Some(pending) = state.pending.take().filter(|pending| pending.published.origin().is_some())
        else {
            return;
        };
        tracing::info!(
            provider = %self.provider,
            age_seconds = pending.confirmed.map(|confirmed| confirmed.age(self.now()).as_secs()),
            keys = pending.published.keys().keys().len(),
            "serving keys from snapshot"
        );
        self.snapshot.store(Arc::new(pending));
    }

    /// Records the result of a fetch. The snapshot is stored before callers are notified.
    pub(super) fn record_fetch(&self, started: StartedFetch, result: FetchResult) {
        let StartedFetch { number, trigger, .. } = started;
        let now = self.now();
        let mut state = self.state();
        let (outcome, end, error) = match result {
            Ok(fetched) => {
                let fresh_for = fetched.fresh_for;
                self.log_passed_over(&mut state, &fetched);
                self.record_clock(&mut state, fetched.ahead);
                let source =
                    if fetched.origin.is_from_cache() { AnswerSource::Cache } else { AnswerSource::Issuer };
                if !fetched.location_asked {
                    state.location_remembered = state.location_remembered.max(number);
                }
                match self.store(&mut state, trigger, fetched) {
                    FetchOutcome::Older => (FetchOutcome::Older, FetchEnd::Older, None),
                    outcome => (outcome, FetchEnd::Succeeded { fresh_for, source }, None),
                }
            }
            Err(error) => {
                self.serve_pending(&mut state);
                let end = FetchEnd::Failed { retry_after: error.retry_after() };
                (FetchOutcome::Failed, end, Some(error))
            }
        };
        let jitter = self.context.jitter.next();
        state.schedule.finish(&mut self.budget.accounts(), number, end, jitter, now);
        state.last_error.clone_from(&error);
        drop(state);
        self.budget.notify_queue();
        self.context.metrics.fetch(&self.provider, trigger, outcome);
        self.finished.send_replace(());
        self.context.serving_changed.notify_one();
        self.publish_gauges();
        self.log_failure(trigger, error.as_ref());
    }

    /// Records a set while its fetch continues, so that the callers that it serves need not wait for the rest.
    fn record_interim(&self, trigger: Trigger, fetched: Fetched) {
        // The first set waits for the withdrawn keys of the snapshot file.
        if self.snapshot.load().generation == 0 {
            return;
        }
        let mut state = self.state();
        // The end of the fetch counts it.
        let older_before = state.older_in_a_row;
        self.store(&mut state, trigger, fetched);
        state.older_in_a_row = older_before;
        drop(state);
        self.finished.send_replace(());
    }

    fn store(&self, state: &mut State, trigger: Trigger, fetched: Fetched) -> FetchOutcome {
        let before = self.snapshot.load_full();
        let restored = state.pending.take().filter(|_| before.generation == 0);
        let base = restored.as_ref().unwrap_or(&before);
        let requested_before =
            base.published.origin().is_some_and(|own| fetched.origin.is_requested_before(own));
        let stands_in = fetched.rank > state.authority;
        let by_date_alone = !stands_in && !fetched.origin.has_age() && !requested_before;
        // A replica of a SPIFFE bundle that lags, whatever its date. As with dates, several in a row are the current bundle:
        // a trust domain that was set up again counts from the beginning.
        let is_behind = match (base.published.keys().sequence(), fetched.keys.sequence()) {
            (Some(own), Some(other)) => other < own,
            _ => false,
        };
        let is_dated = base.published.origin().is_none_or(|own| !fetched.origin.is_older_than(own));
        let counts = by_date_alone || (is_behind && is_dated && !stands_in && !requested_before);
        let expired = (counts && state.older_in_a_row >= MAX_OLDER_IN_A_ROW)
            || base.confirmed.is_some_and(|confirmed| confirmed.age(self.now()) > self.policy.max_stale);
        let known = if expired { base.published.without_origin() } else { base.published.clone() };
        let has_set = known.origin().is_some();
        // A URL that stands in for the one that the set is from may add keys, but neither replaces nor withdraws any, and
        // brings none back: its answer counts as made before.
        let is_substitute = stands_in || (!has_set && fetched.rank > 0);
        let is_before = is_substitute || is_behind;
        let origin = if is_before { known.before_all(fetched.origin) } else { fetched.origin };
        let (mut published, effect) = known.apply(&fetched.keys, origin);
        if !has_set || matches!(effect, Effect::Renewed | Effect::Unchanged) {
            state.authority = fetched.rank;
        }
        if published.origin().is_some() && !state.earlier.is_empty() {
            published = published.withdraw_missing(&std::mem::take(&mut state.earlier));
        }
        // An answer of a cache tells nothing about the issuer's clock.
        match effect {
            Effect::Older { .. } if counts => state.older_in_a_row += 1,
            Effect::Older { .. } => {}
            Effect::Renewed | Effect::Unchanged => state.older_in_a_row = 0,
        }
        let changed =
            before.generation == 0 || matches!(effect, Effect::Renewed | Effect::Older { added: true });
        let generation = before.generation + u64::from(changed);
        let (outcome, confirmed) = match effect {
            // The keys that it added or withdrew come from the source, and are written.
            Effect::Older { added: true } => {
                let source = Confirmation::Source;
                (FetchOutcome::Older, base.confirmed.map(|confirmed| Confirmed { source, ..confirmed }))
            }
            Effect::Older { added: false } => (FetchOutcome::Older, base.confirmed),
            _ if changed => (FetchOutcome::Renewed, Some(self.confirmed_now())),
            _ => (FetchOutcome::Unchanged, Some(self.confirmed_now())),
        };
        self.log_key_set(trigger, outcome, generation, &fetched, &before.published, &published);
        // That of a URL that stands in only counts as older.
        if outcome == FetchOutcome::Older && !is_substitute {
            tracing::warn!(
                provider = %self.provider, trigger = trigger.as_str(), location = %fetched.location,
                caches = fetched.caches, sequence = fetched.keys.sequence(),
                current_sequence = base.published.keys().sequence(),
                hint = "check the caches and replicas between this service and the issuer", "older key set received"
            );
        }
        let max_stale = self.policy.max_stale;
        if published.origin().is_some() {
            self.snapshot.store(Arc::new(KeySnapshot { published, generation, confirmed, max_stale }));
        }
        outcome
    }

    /// Records the difference from the issuer's clock, and warns once if it is larger than the leeway of tokens.
    fn record_clock(&self, state: &mut State, ahead: Option<i64>) {
        let Some(ahead) = ahead else { return };
        // The clock that orders answers never steps, the one that tokens are checked with may have.
        let stepped = self.context.clock.now().as_secs_f64() - self.clock.now_micros() as f64 / 1e6;
        let ahead = ahead.saturating_add(stepped.round() as i64);
        self.clock_ahead.store(ahead, Ordering::Relaxed);
        let skew = i64::try_from(self.context.clock_skew.as_secs()).unwrap_or(i64::MAX);
        let is_wrong = self.clock_ahead().is_some_and(|ahead| ahead.saturating_abs() > skew);
        let now = self.now();
        // The clocks of an issuer's replicas may differ.
        let was_warned = state
            .clock_warned
            .is_some_and(|then| now.saturating_duration_since(then) < CLOCK_WARNING_INTERVAL);
        if is_wrong && !was_warned {
            state.clock_warned = Some(now);
            tracing::warn!(
                provider = %self.provider, ahead_seconds = ahead, clock_skew_seconds = skew,
                hint = "set the clock of this machine or of the issuer: good tokens are refused as expired or not yet valid",
                "the clocks of the issuer and of this machine differ"
            );
        }
    }

    fn confirmed_now(&self) -> Confirmed {
        Confirmed {
            wall: self.context.clock.now(),
            recorded_at: self.now(),
            initial_age: Duration::ZERO,
            source: Confirmation::Source,
        }
    }

    fn log_key_set(
        &self,
        trigger: Trigger,
        outcome: FetchOutcome,
        generation: u64,
        fetched: &Fetched,
        before: &Published,
        after: &Published,
    ) {
        let (provider, trigger, location) = (&self.provider, trigger.as_str(), fetched.location.as_str());
        let (before, after) = (before.keys(), after.keys());
        tracing::info!(
            %provider, trigger, outcome = outcome.as_str(), generation, location,
            added = kids(before.lacks(after)), removed = kids(after.lacks(before)),
            skipped = after.skipped().len(), "key set refreshed"
        );
        self.log_keys(before, after);
    }

    fn log_store_error(&self, file: &SnapshotFile, store_error: &StoreError, logged_before: bool) {
        let (provider, path, StoreError { error, previous }) = (&self.provider, file.path(), store_error);
        let path = path.display();
        match previous {
            PreviousSnapshot::Remains(remove_error) => tracing::error!(
                %provider, %path, %error, %remove_error,
                hint = "remove the file by hand: it has a withdrawn key", "key snapshot not written"
            ),
            PreviousSnapshot::Removed => tracing::warn!(
                %provider, %path, %error,
                removed = true, "key snapshot not written"
            ),
            PreviousSnapshot::None if logged_before => {}
            PreviousSnapshot::None => tracing::warn!(%provider, %path, %error, "key snapshot not written"),
        }
    }

    /// Logs changes of single keys, each once: the difference between the old set and the new.
    fn log_keys(&self, before: &KeySet, now: &KeySet) {
        let provider = &self.provider;
        for skipped in now.skipped().iter().filter(|key| !before.skipped().contains(key)).take(LOGGED_KEYS) {
            let kid = skipped.kid.as_ref().map(|kid| on_one_line(kid.as_str()));
            let reason = skipped.reason;
            // One for encryption, or for another kind of token, is as it should be.
            match skipped.may_sign() {
                true => tracing::warn!(%provider, kid, reason, "key skipped"),
                false => tracing::info!(%provider, kid, reason, "key skipped"),
            }
        }
        for withdrawn in now.lacks(before).filter(|key| key.was_used()).take(LOGGED_KEYS) {
            let kid = withdrawn.kid().map(|kid| on_one_line(kid.as_str()));
            let thumbprint = withdrawn.thumbprint().map(|thumbprint| thumbprint.to_string());
            tracing::warn!(
                %provider, kid, thumbprint,
                hint = "tokens that it signed are denied", "signing key withdrawn"
            );
        }
    }

    /// The setting that says where the keys are.
    fn setting(&self) -> String {
        // A realm's keys have the name of its provider and its own.
        let name = self.provider.split('/').next().unwrap_or_default();
        self.context.places.load().key_source(name)
    }

    /// Logs what was passed over on the way to this answer, as failed fetches: the keys are there, but who waits until
    /// nothing answers has waited too long.
    fn log_passed_over(&self, state: &mut State, fetched: &Fetched) {
        let (provider, location, now) = (&self.provider, &fetched.location, self.now());
        let Some(error) = &fetched.passed_over else {
            if fetched.location_asked
                && let Some(Count { failures, lasting }) = state.passed_over.succeeded(now)
            {
                let lasting_seconds = lasting.as_secs();
                tracing::info!(%provider, failures, lasting_seconds, "every source of keys answers again");
            }
            return;
        };
        match state.passed_over.failed(error, now) {
            Line::Told => tracing::warn!(
                %provider, setting = self.setting(), %error, location, "a source of keys failed, another one stands in"
            ),
            Line::Counted(Count { failures, lasting }) => tracing::warn!(
                %provider, failures, lasting_seconds = lasting.as_secs(), setting = self.setting(), %error, location,
                "a source of keys still fails, another one stands in"
            ),
            Line::None => {}
        }
    }

    /// Logs a failed fetch, unless such a one was logged since the last success, and the first success after failures.
    fn log_failure(&self, trigger: Trigger, error: Option<&FetchError>) {
        let (provider, trigger) = (&self.provider, trigger.as_str());
        let now = self.now();
        let Some(error) = error else {
            let mut state = self.state();
            state.age_warned = false;
            let ended = state.failures.succeeded(now);
            drop(state);
            if let Some(Count { failures, lasting }) = ended {
                let lasting_seconds = lasting.as_secs();
                tracing::info!(%provider, trigger, failures, lasting_seconds, "key set refresh works again");
            }
            return;
        };
        let line = self.state().failures.failed(error, now);
        let (is_told, setting) = (line == Line::Told, || self.setting());
        match line {
            Line::Told => tracing::warn!(
                %provider, trigger, outcome = "failed", setting = setting(), %error, "key set refresh failed"
            ),
            Line::Counted(Count { failures, lasting }) => tracing::warn!(
                %provider, trigger, failures, lasting_seconds = lasting.as_secs(), setting = setting(), %error,
                "key set refresh still fails"
            ),
            Line::None => {}
        }
        let snapshot = self.snapshot.load();
        let Some(confirmed) = snapshot.confirmed else { return };
        let is_unusable = matches!(error.cause(), FetchError::KeySet(KeySetError::NothingUsable { .. }));
        if is_told && is_unusable {
            tracing::warn!(
                %provider,
                hint = "the last good key set stays in use", "no usable key published"
            );
        }
        let age = confirmed.age(self.now());
        if age > self.policy.max_stale / 2 && !std::mem::replace(&mut self.state().age_warned, true) {
            let (age_seconds, max_stale_seconds) = (age.as_secs(), self.policy.max_stale.as_secs());
            tracing::warn!(
                %provider, age_seconds, max_stale_seconds,
                hint = "tokens are denied after max_stale", "key set past half of max_stale"
            );
        }
    }
}

/// The ids of keys, for a log line.
fn kids<'k>(keys: impl Iterator<Item = &'k Arc<Key>>) -> String {
    let kids: Vec<String> =
        keys.map(|key| on_one_line(key.kid().map_or("", Kid::as_str))).take(LOGGED_KEYS).collect();
    kids.join(" ")
}
