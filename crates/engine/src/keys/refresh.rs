//! The refreshing half of a key cache: the tasks that make fetches, take in what they bring, say what an
//! operator has to know, and read and keep the snapshot file.
//!
//! It never answers a caller; who waits is told of every end of a fetch and looks for itself.

use std::collections::HashMap;
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinSet};
use tokio::time::{sleep, timeout};

use super::fetch::{Ask, Fetch, Fetched, Interim, Wanted};
use super::fetch_error::FetchError;
use super::policy::RefreshPolicy;
use super::published::{Effect, Published, Withdrawn};
use super::schedule::{Begun, Ending, GivenBy};
use super::snapshot::{NotStored, Outdated, Present, Snapshot, SnapshotFile};
use super::{Confirmation, Confirmed, KeySnapshot, Shared, State};
use crate::clock::Instant;
use crate::telemetry::Trigger;
use crate::telemetry::{FetchOutcome, on_one_line};
use crate::validation::Kid;
use crate::validation::key_set::{Key, KeyName, KeySet, KeySetError};

/// How often a clock is looked at that has not been set.
const CLOCK_LOOK: Duration = Duration::from_secs(1);

/// How long after a snapshot could not be written the next try is made, if no fetch ends before.
const STORE_RETRY: Duration = Duration::from_secs(5);

/// Of how many keys one refresh logs what became of them.
const LOGGED_KEYS: usize = 20;

/// How long after the start the first answer waits at most for a snapshot that a slow disk does not bring.
pub const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(2);

/// And at least, however short a request's wait is: a disk that is merely busy brings it by then.
const LEAST_PATIENCE: Duration = Duration::from_millis(250);

/// Half of what a request waits, so that the token that opened a realm is still served by the first answer.
pub(super) fn snapshot_patience(policy: &RefreshPolicy) -> Duration {
    (policy.wait / 2).clamp(LEAST_PATIENCE, SNAPSHOT_PATIENCE)
}

/// After so many answers in a row that are older by their date alone, and that no cache says to have kept, it is the
/// issuer's clock that was set back: the next one counts, whatever its date.
const OLDER_IN_A_ROW: u32 = 3;

type Ended = Result<Fetched, FetchError>;

/// Makes every fetch of one provider for as long as the cache lives.
pub(super) async fn drive(shared: Arc<Shared>, fetch: Arc<dyn Fetch>) {
    shared.abandon();
    let mut under_way = JoinSet::new();
    let mut begun: HashMap<Id, Begun> = HashMap::new();
    loop {
        while let Some((one, wanted)) = shared.begin() {
            let fetching = fetch_once(Arc::clone(&shared), Arc::clone(&fetch), one, wanted);
            begun.insert(under_way.spawn(fetching).id(), one);
        }
        // Listened to before the next start is asked for, so that no move in between is missed.
        let mut moved_up = pin!(shared.budget.moved_up());
        // Who stands in no line is not told: there may be thousands.
        let in_line = shared.budget.accounts().stands_in_line(shared.member);
        if in_line {
            moved_up.as_mut().enable();
        }
        let next_start = shared.next_start();
        tokio::select! {
            biased;
            Some(ended) = under_way.join_next_with_id() => {
                let (id, ended) = match ended {
                    Ok((id, ended)) => (id, ended),
                    Err(error) => (error.id(), Err(FetchError::BrokeOff)),
                };
                if let Some(one) = begun.remove(&id) {
                    shared.snapshot_is_read().await;
                    shared.record_fetch(one, ended);
                }
            }
            () = shared.wake.notified() => {}
            () = moved_up, if in_line => {}
            () = async {
                match next_start {
                    Some(next_start) => shared.context.clock.sleep_until(next_start).await,
                    None => pending().await,
                }
            } => {}
        }
    }
}

async fn fetch_once(shared: Arc<Shared>, fetch: Arc<dyn Fetch>, begun: Begun, wanted: Wanted) -> Ended {
    let limit = shared.policy.timeout;
    let taking = Arc::clone(&shared);
    let ask = Ask {
        trigger: begun.trigger,
        doubts: begun.doubts,
        wanted,
        published: Arc::new(shared.snapshot.load().published.clone()),
        clock: shared.clock.clone(),
        deadline: shared.now() + limit,
        interim: Interim::to(move |fetched| taking.record_interim(begun.trigger, fetched)),
    };
    timeout(limit, fetch.fetch(ask)).await.unwrap_or(Err(FetchError::TimedOut(limit)))
}

/// Makes the driver read a source again soon after it is seen to have changed.
pub(super) async fn watch_source(shared: Arc<Shared>, fetch: Arc<dyn Fetch>) {
    while let Some(change) = fetch.change() {
        change.await;
        shared.state().schedule.hurry(shared.now());
        shared.wake.notify_one();
    }
}

/// Reads what a process before this one left behind, once the clock can say how old that is.
pub(super) async fn restore(shared: Arc<Shared>, file: SnapshotFile) {
    while !shared.context.clock.is_plausible() {
        sleep(CLOCK_LOOK).await;
    }
    let (provider, path) = (&shared.provider, file.path());
    let path = path.display();
    match file.read(shared.present(), shared.policy.max_stale).await {
        Ok(None) => {}
        Ok(Some(snapshot)) => {
            if let Some(error) = &snapshot.unusable {
                tracing::warn!(%provider, %path, %error, "the snapshot is not used");
            }
            shared.absorb(snapshot);
        }
        Err(error) => tracing::warn!(%provider, %path, %error, "the snapshot is not used"),
    }
    shared.snapshot_read.send_replace(true);
}

/// Writes the set in hand to its file whenever it has changed, and now and then when it was confirmed, so
/// that the file's age tells how long the issuer has been away. What came from the file is never written back.
///
/// `finished` tells of the ends of fetches.
pub(super) async fn keep_snapshot(
    shared: Arc<Shared>,
    mut finished: watch::Receiver<()>,
    file: SnapshotFile,
) {
    let mut written: Option<(u64, Confirmed)> = None;
    let mut failing = false;
    loop {
        let snapshot = shared.snapshot.load_full();
        let kept = shared.kept.load(Ordering::Acquire);
        // What a clock says that has not been set is no age that another process could go by.
        let is_dated = |one: &Confirmed| shared.context.clock.may_have_shown(one.wall);
        let confirmed =
            snapshot.confirmed.filter(|one| kept && one.by == Confirmation::Source && is_dated(one));
        let current = confirmed.is_none_or(|confirmed| {
            written.as_ref().is_some_and(|(generation, before)| {
                *generation == snapshot.generation
                    && confirmed.taken_in.saturating_duration_since(before.taken_in)
                        < shared.policy.interval / 2
            })
        });
        if let Some(confirmed) = confirmed.filter(|_| !current) {
            match file.store(snapshot.published.clone(), confirmed.wall, shared.present()).await {
                Ok(()) => {
                    written = Some((snapshot.generation, confirmed));
                    failing = false;
                }
                Err(error) => {
                    shared.tell_not_stored(&file, &error, failing);
                    failing = true;
                }
            }
        }
        let ended = finished.changed();
        let ended = if failing {
            let again = shared.now() + STORE_RETRY;
            shared.context.clock.until(again, ended).await.unwrap_or(Ok(()))
        } else {
            ended.await
        };
        // An error means that the cache is gone, and this task with it.
        if ended.is_err() {
            return;
        }
    }
}

impl Shared {
    fn begin(&self) -> Option<(Begun, Wanted)> {
        let now = self.now();
        let mut state = self.state();
        let begun = state.schedule.begin(&mut self.budget.accounts(), now)?;
        state.last_trigger = Some(begun.trigger);
        self.started.store(state.schedule.started(), Ordering::Release);
        let wanted = std::mem::take(&mut state.wanted);
        drop(state);
        self.budget.tell_moved_up();
        Some((begun, wanted))
    }

    fn next_start(&self) -> Option<Instant> {
        let now = self.now();
        self.state().schedule.next_start(&self.budget.accounts(), now)
    }

    /// What a driver before this one had begun is gone with it.
    fn abandon(&self) {
        let now = self.now();
        self.state().schedule.abandon(&mut self.budget.accounts(), self.context.jitter.next(), now);
        self.finished.send_replace(());
    }

    fn present(&self) -> Present {
        Present::of(&self.context.clock, &self.clock)
    }

    /// Waits for the snapshot, but not for long: what it says of withdrawn keys counts for the first answer already.
    async fn snapshot_is_read(&self) {
        let mut read = self.snapshot_read.subscribe();
        // Where the disk is slow the answer counts as it is.
        let read = read.wait_for(|read| *read);
        let _slow = self.context.clock.until(self.snapshot_awaited, read).await;
    }

    /// Takes in what a process before this one left behind: what was withdrawn at once, its keys once the first fetch
    /// has ended without any.
    pub(super) fn absorb(&self, snapshot: Snapshot) {
        let Snapshot { published, fetched_at, unusable } = snapshot;
        let now = self.now();
        let mut state = self.state();
        let current = self.snapshot.load_full();
        let withdrawn = published.withdrawn().to_vec();
        self.snapshot.store(Arc::new(KeySnapshot {
            published: current.published.without(&withdrawn),
            ..(*current).clone()
        }));
        // A file was there, so its name is not made up: it is brought up to date.
        self.kept.store(true, Ordering::Release);
        let published = published.without(current.published.withdrawn());
        if unusable.is_some() {
            drop(state);
            self.learn_earlier(published.key_names());
            return;
        }
        if published.origin().is_none() || current.generation > 0 {
            return;
        }
        let max_stale = self.policy.max_stale;
        let seconds = (self.context.clock.now().as_secs_f64() - fetched_at.as_secs_f64()).max(0.0);
        let age_then = Duration::try_from_secs_f64(seconds).unwrap_or(max_stale);
        let confirmed = Confirmed { wall: fetched_at, taken_in: now, age_then, by: Confirmation::Snapshot };
        let pending = KeySnapshot { published, generation: 1, confirmed: Some(confirmed), max_stale };
        state.pending = Some(pending);
        if state.schedule.has_ended_one() {
            self.serve_pending(&mut state);
            drop(state);
            self.publish_gauges();
            self.finished.send_replace(());
            self.context.serving_changed.notify_one();
        }
    }

    /// Takes note of keys that were withdrawn where others have seen it.
    pub(super) fn learn_withdrawn(&self, withdrawn: &[Withdrawn]) {
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

    /// Takes note of keys that the issuer had before, elsewhere or too long ago to count.
    pub(super) fn learn_earlier(&self, keys: Vec<KeyName>) {
        let mut state = self.state();
        let current = self.snapshot.load_full();
        if current.published.origin().is_none() {
            state.earlier.extend(keys);
            return;
        }
        let published = current.published.after_earlier(&keys);
        self.snapshot.store(Arc::new(KeySnapshot { published, ..(*current).clone() }));
    }

    fn serve_pending(&self, state: &mut State) {
        let Some(pending) = state.pending.take().filter(|one| one.published.origin().is_some()) else {
            return;
        };
        tracing::info!(
            provider = %self.provider,
            age_seconds = pending.confirmed.map(|confirmed| confirmed.age(self.now()).as_secs()),
            keys = pending.published.keys().keys().len(),
            "the keys of the snapshot serve until the issuer answers"
        );
        self.snapshot.store(Arc::new(pending));
    }

    /// Takes in the result of a fetch: the snapshot first, so that whoever hears of the end finds it.
    pub(super) fn record_fetch(&self, begun: Begun, ended: Ended) {
        let Begun { number, trigger, .. } = begun;
        let now = self.now();
        let mut state = self.state();
        let (outcome, ending, error) = match ended {
            Ok(fetched) => {
                let fresh_for = fetched.fresh_for;
                let by = if fetched.origin.is_kept() { GivenBy::Cache } else { GivenBy::Issuer };
                if !fetched.place_asked {
                    state.place_remembered = state.place_remembered.max(number);
                }
                match self.store(&mut state, trigger, fetched) {
                    FetchOutcome::Older => (FetchOutcome::Older, Ending::Older, None),
                    outcome => (outcome, Ending::Succeeded { fresh_for, by }, None),
                }
            }
            Err(error) => {
                self.serve_pending(&mut state);
                let ending = Ending::Failed { retry_after: error.retry_after() };
                (FetchOutcome::Failed, ending, Some(error))
            }
        };
        let jitter = self.context.jitter.next();
        state.schedule.finish(&mut self.budget.accounts(), number, ending, jitter, now);
        let previous = std::mem::replace(&mut state.last_error, error.clone());
        drop(state);
        self.budget.tell_moved_up();
        self.context.metrics.fetch(&self.provider, trigger, outcome);
        self.finished.send_replace(());
        self.context.serving_changed.notify_one();
        self.publish_gauges();
        self.tell(trigger, error.as_ref(), previous.as_ref());
    }

    /// Takes in a set while its fetch goes on: whom it serves does not wait for the rest.
    fn record_interim(&self, trigger: Trigger, fetched: Fetched) {
        // The first set waits for what a snapshot says of withdrawn keys.
        if self.snapshot.load().generation == 0 {
            return;
        }
        let mut state = self.state();
        // The end of the fetch counts it.
        let counted = state.older_in_a_row;
        self.store(&mut state, trigger, fetched);
        state.older_in_a_row = counted;
        drop(state);
        self.finished.send_replace(());
    }

    fn store(&self, state: &mut State, trigger: Trigger, fetched: Fetched) -> FetchOutcome {
        let before = self.snapshot.load_full();
        let restored = state.pending.take().filter(|_| before.generation == 0);
        let base = restored.as_ref().unwrap_or(&before);
        let asked_before = base.published.origin().is_some_and(|own| fetched.origin.is_asked_before(own));
        let by_date_alone = !fetched.origin.has_age() && !asked_before;
        let lapsed = (by_date_alone && state.older_in_a_row >= OLDER_IN_A_ROW)
            || base.confirmed.is_some_and(|confirmed| confirmed.age(self.now()) > self.policy.max_stale);
        let known = if lapsed { base.published.undated() } else { base.published.clone() };
        let (mut published, effect) = known.after(&fetched.keys, fetched.origin);
        if published.origin().is_some() && !state.earlier.is_empty() {
            published = published.after_earlier(&std::mem::take(&mut state.earlier));
        }
        // What caches have kept says nothing of the issuer's clock.
        match effect {
            Effect::Older { .. } if by_date_alone => state.older_in_a_row += 1,
            Effect::Older { .. } => {}
            Effect::Renewed | Effect::Unchanged => state.older_in_a_row = 0,
        }
        let changed =
            before.generation == 0 || matches!(effect, Effect::Renewed | Effect::Older { added: true });
        let generation = before.generation + u64::from(changed);
        let (outcome, confirmed) = match effect {
            // What it has added or shown to be gone came from the source, and is written down.
            Effect::Older { added: true } => {
                let by = Confirmation::Source;
                (FetchOutcome::Older, base.confirmed.map(|confirmed| Confirmed { by, ..confirmed }))
            }
            Effect::Older { added: false } => (FetchOutcome::Older, base.confirmed),
            _ if changed => (FetchOutcome::Renewed, Some(self.confirmed_now())),
            _ => (FetchOutcome::Unchanged, Some(self.confirmed_now())),
        };
        self.tell_of_set(trigger, outcome, generation, &fetched, &before.published, &published);
        let max_stale = self.policy.max_stale;
        if published.origin().is_some() {
            self.snapshot.store(Arc::new(KeySnapshot { published, generation, confirmed, max_stale }));
        }
        outcome
    }

    fn confirmed_now(&self) -> Confirmed {
        Confirmed {
            wall: self.context.clock.now(),
            taken_in: self.now(),
            age_then: Duration::ZERO,
            by: Confirmation::Source,
        }
    }

    fn tell_of_set(
        &self,
        trigger: Trigger,
        outcome: FetchOutcome,
        generation: u64,
        fetched: &Fetched,
        before: &Published,
        after: &Published,
    ) {
        let (provider, trigger, place) = (&self.provider, trigger.as_str(), fetched.place.as_str());
        let (before, after) = (before.keys(), after.keys());
        tracing::info!(
            %provider, trigger, outcome = outcome.as_str(), generation, place,
            added = kids(before.lacks(after)), removed = kids(after.lacks(before)),
            skipped = after.skipped().len(), "key set refreshed"
        );
        if outcome == FetchOutcome::Older {
            tracing::warn!(
                %provider, trigger, place, caches = fetched.caches,
                "an answer is older than the set in hand and takes nothing away from it: a cache or a replica lags"
            );
        }
        self.tell_of_keys(before, after);
    }

    fn tell_not_stored(&self, file: &SnapshotFile, not_stored: &NotStored, told_before: bool) {
        let (provider, path, NotStored { error, outdated }) = (&self.provider, file.path(), not_stored);
        let path = path.display();
        match outdated {
            Outdated::Remains(still) => tracing::error!(
                %provider, %path, %error, %still,
                "the snapshot has a key that was withdrawn and can neither be written nor removed: remove it by hand"
            ),
            Outdated::Removed => tracing::warn!(
                %provider, %path, %error,
                "the snapshot cannot be written; the one before had a key that was withdrawn and was removed"
            ),
            Outdated::None if told_before => {}
            Outdated::None => tracing::warn!(%provider, %path, %error, "the snapshot cannot be written"),
        }
    }

    /// What became of single keys, each told once: it is the step from the old set to the new.
    fn tell_of_keys(&self, before: &KeySet, now: &KeySet) {
        let provider = &self.provider;
        for skipped in now.skipped().iter().filter(|key| !before.skipped().contains(key)).take(LOGGED_KEYS) {
            let kid = skipped.kid.as_ref().map(|kid| on_one_line(kid.as_str()));
            tracing::warn!(%provider, kid, reason = skipped.reason, "key skipped");
        }
        for gone in now.lacks(before).filter(|key| key.was_used()).take(LOGGED_KEYS) {
            let kid = gone.kid().map(|kid| on_one_line(kid.as_str()));
            let thumbprint = gone.thumbprint().map(|thumbprint| thumbprint.to_string());
            tracing::warn!(
                %provider, kid, thumbprint,
                "a key that was in use is gone: tokens that it signed are refused from now on"
            );
        }
    }

    /// Says how a fetch failed; aloud where that is news.
    fn tell(&self, trigger: Trigger, error: Option<&FetchError>, previous: Option<&FetchError>) {
        let (provider, trigger) = (&self.provider, trigger.as_str());
        let Some(error) = error else {
            self.state().ageing_told = false;
            return;
        };
        if previous == Some(error) {
            tracing::info!(%provider, trigger, outcome = "failed", %error, "key set not refreshed");
        } else {
            tracing::warn!(%provider, trigger, outcome = "failed", %error, "key set not refreshed");
        }
        let snapshot = self.snapshot.load();
        let Some(confirmed) = snapshot.confirmed else { return };
        let unusable = |error: Option<&FetchError>| {
            matches!(error, Some(FetchError::KeySet(KeySetError::NothingUsable { .. })))
        };
        if unusable(Some(error)) && !unusable(previous) {
            tracing::warn!(
                %provider,
                "the issuer publishes no key that can be used any more: the last good set keeps serving"
            );
        }
        let age = confirmed.age(self.now());
        if age > self.policy.max_stale / 2 && !std::mem::replace(&mut self.state().ageing_told, true) {
            let (age_seconds, max_stale_seconds) = (age.as_secs(), self.policy.max_stale.as_secs());
            tracing::warn!(
                %provider, age_seconds, max_stale_seconds,
                "the key set is half-way to max_stale: after that no token of this provider is accepted"
            );
        }
    }
}

/// The ids of some keys, for a line of the log.
fn kids<'k>(keys: impl Iterator<Item = &'k Arc<Key>>) -> String {
    let kids: Vec<String> =
        keys.map(|key| on_one_line(key.kid().map_or("", Kid::as_str))).take(LOGGED_KEYS).collect();
    kids.join(" ")
}
