//! The tasks that keep a provider's keys: what becomes of one that panics, of a disk that does not answer, and of the
//! time that the machine slept.

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

/// A source that panics now and then.
struct Panicking {
    script: Script,
    turns: AtomicUsize,
}

impl Fetch for Panicking {
    fn fetch(&self, ask: FetchContext) -> FetchFuture<'_> {
        assert!(self.turns.fetch_add(1, Ordering::SeqCst).is_multiple_of(2), "as this test wants it");
        self.script.fetch(ask)
    }
}

fn restarts(context: &KeyCacheContext, task: &str) -> u64 {
    let page = context.metrics.encode().expect("metrics can be written");
    let name = format!("portcullis_task_restarts_total{{provider=\"p\",task=\"{task}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_panics_is_a_fetch_that_failed() {
    let script = Script::publishing(&["a"]);
    let source = Arc::new(Panicking { script: script.clone(), turns: AtomicUsize::new(0) });
    let cache =
        KeyCache::fetched("p", policy(), source, KeyCacheContext::default(), None, None, Arc::default());
    assert_eq!(ask(&cache, "a").await, Ok(()));
    script.publish(&["a", "b"]);
    assert_eq!(ask(&cache, "b").await, Err(RetryError::Unavailable), "this one panics");
    assert_eq!(cache.status().last_error, Some(FetchError::Panicked));
    sleep(2 * SECOND).await;
    assert_eq!(ask(&cache, "b").await, Ok(()));
}

/// A folder that does what a test says when it is written to or read.
#[derive(Debug)]
struct Odd(fn());

impl Folder for Odd {
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
async fn a_task_that_panics_is_started_again_and_counted_and_the_keys_are_kept_all_the_same() {
    let script = Script::publishing(&["a"]);
    let context = KeyCacheContext::default();
    let file =
        SnapshotFile::in_folder(Arc::new(Odd(|| panic!("as this test wants it"))), "p", "i", "s", 1 << 20);
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

/// A disk on which a read takes until it is let go.
#[derive(Clone, Debug, Default)]
struct Slow(Arc<(Mutex<bool>, Condvar)>);

impl Slow {
    fn lets_go(&self) {
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
async fn a_disk_that_does_not_answer_holds_up_neither_the_worker_nor_the_first_keys_for_long() {
    // One worker, and a read that takes as long as this test wants.
    let (disk, script) = (Slow::default(), Script::publishing(&["a"]));
    let file = SnapshotFile::in_folder(Arc::new(disk.clone()), "p", "i", "s", 1 << 20);
    let (fetch, patient) = (Arc::new(script.clone()), RefreshPolicy { wait: 20 * SECOND, ..policy() });
    let cache =
        KeyCache::fetched("p", patient, fetch, KeyCacheContext::default(), None, Some(file), Arc::default());
    // Nobody is let go: what runs here runs beside the read.
    settle().await;
    assert!(!cache.has_keys());
    tokio::time::timeout(20 * SECOND, cache.first_fetch_ended()).await.expect("it goes on without the disk");
    assert_eq!(ask(&cache, "a").await, Ok(()));
    disk.lets_go();
}

#[tokio::test(start_paused = true)]
async fn a_token_that_came_first_is_served_though_the_disk_does_not_answer() {
    let (disk, script) = (Slow::default(), Script::publishing(&["a"]));
    let file = SnapshotFile::in_folder(Arc::new(disk.clone()), "p", "i", "s", 1 << 20);
    let fetch = Arc::new(script.clone());
    let context = KeyCacheContext::default();
    let cache = KeyCache::fetched("p", policy(), fetch, context, None, Some(file), Arc::default());
    let asking = tokio::spawn(async move { ask(&cache, "a").await });
    settle().await;
    tokio::time::advance(policy().wait - SECOND / 2).await;
    settle().await;
    let in_time = asking.is_finished();
    disk.lets_go();
    assert!(in_time);
    assert_eq!(asking.await.expect("is answered"), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn the_time_that_the_machine_slept_counts_for_ages_and_intervals() {
    let script = Script::publishing(&["a", "b"]);
    let clock = Arc::new(SimulatedClock::starting_at(UnixTime::from_secs(1_800_000_000)));
    let context =
        KeyCacheContext { clock: Clock::Simulated(Arc::clone(&clock)), ..KeyCacheContext::default() };
    let cache = warm_with(&script, policy(), context.clone()).await;
    let fetches = script.fetches();
    script.publish(&["a"]);
    // An interval is an hour.
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
