//! The refreshing half of a key cache: the tasks that make fetches, take in what they bring, say what an
//! operator has to know, and keep the snapshot file.
//!
//! It never answers a caller; who waits is told of every end of a fetch and looks for itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, sleep_until, timeout};

use super::fetch::{Fetch, FetchError, Fetched, FetchedKeys, FileStamp};
use super::schedule::{Ending, Trigger};
use super::snapshot::SnapshotFile;
use super::{Confirmed, KeySnapshot, Shared};
use crate::clock::{self, Clock};
use crate::telemetry::{FetchOutcome, on_one_line};
use crate::validation::key_set::{Key, KeySet, KeySetError};

/// How often a key file is looked at for changes.
const FILE_POLL: Duration = Duration::from_secs(2);

/// Of how many keys one refresh logs what became of them.
const LOGGED_KEYS: usize = 20;

/// What a restart begins with: the keys of a snapshot, or none, and the log says why.
pub(super) fn from_file(
    provider: &str,
    file: &SnapshotFile,
    max_stale: Duration,
    clock: &Clock,
) -> KeySnapshot {
    let path = file.path().display();
    let now = clock.now();
    match file.read(now, max_stale) {
        Ok(Some(snapshot)) => {
            let seconds = (now.as_secs_f64() - snapshot.fetched_at.as_secs_f64()).max(0.0);
            let age_then = Duration::try_from_secs_f64(seconds).unwrap_or(max_stale);
            tracing::info!(
                provider, %path, age_seconds = age_then.as_secs(), keys = snapshot.keys.keys().len(),
                "the keys of the snapshot serve until the issuer answers"
            );
            let confirmed = Confirmed { wall: snapshot.fetched_at, taken_in: clock::monotonic(), age_then };
            KeySnapshot {
                keys: Arc::new(snapshot.keys),
                generation: 1,
                confirmed: Some(confirmed),
                max_stale,
            }
        }
        Ok(None) => KeySnapshot::empty(max_stale),
        Err(error) => {
            tracing::warn!(provider, %path, %error, "the snapshot is not used");
            KeySnapshot::empty(max_stale)
        }
    }
}

/// Makes every fetch of one provider, one after the other, for as long as the cache lives.
pub(super) async fn drive(shared: Arc<Shared>, fetch: Arc<dyn Fetch>) {
    loop {
        let next_start = shared.state().schedule.next_start(clock::monotonic());
        tokio::select! {
            () = sleep_until(next_start) => {}
            () = shared.wake.notified() => continue,
        }
        if let Some(trigger) = shared.begin() {
            let limit = shared.policy.timeout;
            let fetched = timeout(limit, fetch.fetch(trigger)).await;
            shared.take_in(trigger, fetched.unwrap_or(Err(FetchError::TimedOut(limit))));
        }
    }
}

/// Makes the driver read a key file again soon after it changes.
pub(super) async fn watch_file(shared: Arc<Shared>, path: PathBuf) {
    let mut before = FileStamp::of(&path).await;
    loop {
        sleep(FILE_POLL).await;
        let after = FileStamp::of(&path).await;
        if after != before {
            before = after;
            shared.state().schedule.hurry(clock::monotonic());
            shared.wake.notify_one();
        }
    }
}

/// Writes the set in hand to its file whenever it has changed, and now and then when it was confirmed, so
/// that the file's age tells how long the issuer has been away.
///
/// `finished` tells of the ends of fetches, and has to be there before the first one begins.
pub(super) async fn keep_snapshot(
    shared: Arc<Shared>,
    mut finished: watch::Receiver<()>,
    file: SnapshotFile,
) {
    let mut written: Option<(u64, Confirmed)> = None;
    let mut failing = false;
    // An error means that the cache is gone, and this task with it.
    while finished.changed().await.is_ok() {
        let snapshot = shared.snapshot.load_full();
        let Some(confirmed) = snapshot.confirmed else { continue };
        let current = written.as_ref().is_some_and(|(generation, before)| {
            *generation == snapshot.generation
                && confirmed.taken_in.saturating_duration_since(before.taken_in) < shared.policy.interval / 2
        });
        if current {
            continue;
        }
        let (target, keys) = (file.clone(), Arc::clone(&snapshot.keys));
        let outcome = spawn_blocking(move || target.write(&keys, confirmed.wall)).await;
        let (provider, path) = (&shared.provider, file.path().display());
        match outcome.unwrap_or_else(|error| Err(error.into())) {
            Ok(()) => {
                written = Some((snapshot.generation, confirmed));
                failing = false;
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(%provider, %path, %error, "the snapshot cannot be written");
                }
                failing = true;
            }
        }
    }
}

impl Shared {
    fn begin(&self) -> Option<Trigger> {
        let mut state = self.state();
        let begun = state.schedule.begin(clock::monotonic());
        if begun.is_some() {
            state.last_trigger = begun;
        }
        self.started.store(state.schedule.started(), Ordering::Release);
        begun
    }

    /// Takes in the result of a fetch: the snapshot first, so that whoever hears of the end finds it.
    pub(super) fn take_in(&self, trigger: Trigger, fetched: Result<Fetched, FetchError>) {
        let now = clock::monotonic();
        let (outcome, ending, error) = match fetched {
            Ok(Fetched { keys, fresh_for }) => {
                (self.store(trigger, keys), Ending::Succeeded { fresh_for }, None)
            }
            Err(error) => {
                let ending = Ending::Failed { retry_after: error.retry_after() };
                (FetchOutcome::Failed, ending, Some(error))
            }
        };
        self.around.metrics.fetch(&self.provider, trigger, outcome);
        let mut state = self.state();
        state.schedule.finish(ending, rand::random(), now);
        let previous = std::mem::replace(&mut state.last_error, error.clone());
        drop(state);
        self.tell(trigger, error.as_ref(), previous.as_ref());
        self.publish_gauges();
        self.finished.send_replace(());
        self.around.serving_changed.notify_one();
    }

    fn store(&self, trigger: Trigger, fetched: FetchedKeys) -> FetchOutcome {
        let before = self.snapshot.load_full();
        let keys = match fetched {
            FetchedKeys::NotModified => None,
            FetchedKeys::Set(keys) => Some(keys),
        };
        let changed =
            keys.as_ref().is_some_and(|keys| before.generation == 0 || !before.keys.same_keys(keys));
        let generation = before.generation + u64::from(changed);
        let outcome = if changed { FetchOutcome::Renewed } else { FetchOutcome::Unchanged };
        let keys = match keys {
            None => Arc::clone(&before.keys),
            Some(mut keys) => {
                keys.adopt(&before.keys);
                Arc::new(keys)
            }
        };
        tracing::info!(
            provider = %self.provider, trigger = trigger.as_str(), outcome = outcome.as_str(), generation,
            added = kids(before.keys.lacks(&keys)), removed = kids(keys.lacks(&before.keys)),
            skipped = keys.skipped().len(), "key set refreshed"
        );
        self.tell_of_keys(&before.keys, &keys);
        let (wall, taken_in) = (self.around.clock.now(), clock::monotonic());
        let confirmed = Some(Confirmed { wall, taken_in, age_then: Duration::ZERO });
        let max_stale = self.policy.max_stale;
        self.snapshot.store(Arc::new(KeySnapshot { keys, generation, confirmed, max_stale }));
        outcome
    }

    /// What became of single keys, each told once: it is the step from the old set to the new.
    fn tell_of_keys(&self, before: &KeySet, now: &KeySet) {
        let provider = &self.provider;
        for skipped in now.skipped().iter().filter(|key| !before.skipped().contains(key)).take(LOGGED_KEYS) {
            let kid = skipped.kid.as_deref().map(on_one_line);
            tracing::warn!(%provider, kid, reason = skipped.reason, "key skipped");
        }
        for gone in now.lacks(before).filter(|key| key.was_used()).take(LOGGED_KEYS) {
            let kid = gone.kid().map(on_one_line);
            tracing::warn!(
                %provider, kid, thumbprint = gone.thumbprint(),
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
        let age = confirmed.age();
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
        keys.map(|key| on_one_line(key.kid().unwrap_or_default())).take(LOGGED_KEYS).collect();
    kids.join(" ")
}
