//! The tasks that refresh a provider's keys: after a panic, with a blocked disk, and after the machine was suspended.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::support::script::{self, RetryError, SECOND, Script, ask, policy, settle, still_stale, warm_with};
use portcullis::clock::{Clock, SimulatedClock};
use portcullis::config::RefreshPolicy;
use portcullis::keys::fetch::{Fetch, FetchContext, FetchFuture};
use portcullis::keys::fetch_error::FetchError;
use portcullis::keys::folder::{Folder, FolderError};
use portcullis::keys::snapshot::SnapshotFile;
use portcullis::keys::{KeyCache, KeyCacheContext};
use portcullis::validation::StaleCause::UnknownKid;
use portcullis::validation::UnixTime;
use tokio::time::sleep;

/// A source that panics at every other fetch.
struct Panicking {
    script: Script,
    calls: AtomicUsize,
}

impl Fetch for Panicking {
    fn fetch(&self, ask: FetchContext) -> FetchFuture<'_> {
        assert!(self.calls.fetch_add(1, Ordering::SeqCst).is_multiple_of(2), "expected by the test");
        self.script.fetch(ask)
    }
}

fn restarts(context: &KeyCacheContext, task: &str) -> u64 {
    let page = context.metrics.encode().expect("metrics can be written");
    let name = format!("portcullis_task_restarts_total{{provider=\"p\",task=\"{task}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_fetch_is_a_failed_fetch() {
    let script = Script::publishing(&["a"]);
    let source = Arc::new(Panicking { script: script.clone(), calls: AtomicUsize::new(0) });
    let cache =
        KeyCache::fetched("p", policy(), source, KeyCacheContext::default(), None, None, Arc::default());
    assert_eq!(ask(&cache, "a").await, Ok(()));
    script.publish(&["a", "b"]);
    assert_eq!(ask(&cache, "b").await, Err(RetryError::Unavailable), "this one panics");
    assert_eq!(cache.status().last_error, Some(FetchError::Panicked));
    sleep(2 * SECOND).await;
    assert_eq!(ask(&cache, "b").await, Ok(()));
}

/// A folder that calls a function at each read or write.
#[derive(Debug)]
struct FakeFolder(fn());

impl Folder for FakeFolder {
    fn read(&self, _name: &str, _max_bytes: usize) -> Result<Option<Vec<u8>>, FolderError> {
        Ok(None)
    }

    fn replace(&self, _name: &str, _bytes: &[u8]) -> Result<(), FolderError> {
        self.0();
        Ok(())
    }

    fn remove(&self, _name: &str) -> Result<(), FolderError> {
        Ok(())
    }

    fn lock(&self, _name: &str) -> Result<Box<dyn Send>, FolderError> {
        Ok(Box::new(()))
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(name)
    }

    fn blocks(&self) -> bool {
        false
    }
}

#[tokio::test(start_paused = true)]
async fn a_panicked_task_is_restarted_and_counted_and_the_keys_are_kept() {
    let script = Script::publishing(&["a"]);
    let context = KeyCacheContext::default();
    let file = SnapshotFile::in_folder(
        Arc::new(FakeFolder(|| panic!("expected by the test"))),
        "p",
        "i",
        "s",
        1 << 20,
    );
    let fetch = Arc::new(script.clone());
    let cache = KeyCache::fetched("p", policy(), fetch, context.clone(), None, Some(file), Arc::default());
    for kid in ["a", "b", "c"] {
        script.publish(&["a", "b", kid]);
        assert_eq!(ask(&cache, kid).await, Ok(()));
        sleep(2 * SECOND).await;
    }
    assert!(restarts(&context, "keep_snapshot") >= 3);
    assert_eq!(restarts(&context, "drive"), 0);
}

/// A disk on which a read blocks until it is released.
#[derive(Clone, Debug, Default)]
struct Slow(Arc<(Mutex<bool>, Condvar)>);

impl Slow {
    fn release(&self) {
        *self.0.0.lock().expect("no test has panicked") = true;
        self.0.1.notify_all();
    }
}

impl Folder for Slow {
    fn read(&self, _name: &str, _max_bytes: usize) -> Result<Option<Vec<u8>>, FolderError> {
        let free = self.0.0.lock().expect("no test has panicked");
        let _free = self.0.1.wait_while(free, |free| !*free).expect("no test has panicked");
        Ok(None)
    }

    fn replace(&self, _name: &str, _bytes: &[u8]) -> Result<(), FolderError> {
        Ok(())
    }

    fn remove(&self, _name: &str) -> Result<(), FolderError> {
        Ok(())
    }

    fn lock(&self, _name: &str) -> Result<Box<dyn Send>, FolderError> {
        Ok(Box::new(()))
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(name)
    }
}

#[tokio::test]
async fn a_blocked_disk_delays_neither_the_worker_nor_the_first_keys_for_long() {
    // One worker thread, and a read that blocks until the test releases it.
    let (disk, script) = (Slow::default(), Script::publishing(&["a"]));
    let file = SnapshotFile::in_folder(Arc::new(disk.clone()), "p", "i", "s", 1 << 20);
    let (fetch, slow_policy) = (Arc::new(script.clone()), RefreshPolicy { wait: 20 * SECOND, ..policy() });
    let cache = KeyCache::fetched(
        "p",
        slow_policy,
        fetch,
        KeyCacheContext::default(),
        None,
        Some(file),
        Arc::default(),
    );
    // The read stays blocked: this runs concurrently with it.
    settle().await;
    assert!(!cache.has_keys());
    tokio::time::timeout(20 * SECOND, cache.first_fetch_ended())
        .await
        .expect("it continues without the disk");
    assert_eq!(ask(&cache, "a").await, Ok(()));
    disk.release();
}

#[tokio::test(start_paused = true)]
async fn an_early_token_is_served_while_the_disk_blocks() {
    let (disk, script) = (Slow::default(), Script::publishing(&["a"]));
    let file = SnapshotFile::in_folder(Arc::new(disk.clone()), "p", "i", "s", 1 << 20);
    let fetch = Arc::new(script.clone());
    let context = KeyCacheContext::default();
    let cache = KeyCache::fetched("p", policy(), fetch, context, None, Some(file), Arc::default());
    let pending = tokio::spawn(async move { ask(&cache, "a").await });
    settle().await;
    tokio::time::advance(policy().wait - SECOND / 2).await;
    settle().await;
    let in_time = pending.is_finished();
    disk.release();
    assert!(in_time);
    assert_eq!(pending.await.expect("is answered"), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn time_in_suspend_counts_for_ages_and_intervals() {
    let script = Script::publishing(&["a", "b"]);
    let clock = Arc::new(SimulatedClock::starting_at(UnixTime::from_secs(1_800_000_000)));
    let context =
        KeyCacheContext { clock: Clock::Simulated(Arc::clone(&clock)), ..KeyCacheContext::default() };
    let cache = warm_with(&script, policy(), context.clone()).await;
    let fetches = script.fetches();
    script.publish(&["a"]);
    // The interval is an hour.
    clock.sleep(Duration::from_secs(5_000));
    assert!(cache.status().age.is_some_and(|age| age >= Duration::from_secs(5_000)));
    sleep(6 * SECOND).await;
    assert_eq!(script.fetches(), fetches + 1, "it was due");
    let observed = cache.observe();
    let deadline = context.clock.monotonic() + 2 * SECOND;
    assert_eq!(
        script::retry(&cache, observed, script::stale(UnknownKid, deadline), script::verifier("b", None))
            .await,
        Err(still_stale(UnknownKid))
    );
    script.set_down(true);
    clock.sleep(Duration::from_secs(7_300));
    let observed = cache.observe();
    assert!(script::verifier("a", None)(&observed.keys()).is_err(), "older than max_stale");
}
