//! The tasks that the service lives on: that one which panics or ends is started again, counted, and seen at `/readyz`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{Running, config, fixed_clock, inline, provider};
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use portcullis::supervise::{Supervisor, Task, Tasks};
use portcullis::telemetry::Metrics;
use tokio::sync::Notify;
use tokio::time::{advance, sleep};

const SECOND: Duration = Duration::from_secs(1);

/// A supervisor with all that it tells.
struct House {
    tasks: Tasks,
    metrics: Arc<Metrics>,
    changed: Arc<Notify>,
}

impl House {
    fn new() -> (Self, Supervisor) {
        let house = Self { tasks: Tasks::default(), metrics: Arc::default(), changed: Arc::default() };
        let (metrics, changed) = (Arc::clone(&house.metrics), Arc::clone(&house.changed));
        let supervisor = Supervisor::new(house.tasks.clone(), metrics, changed);
        (house, supervisor)
    }

    fn restarts(&self, labels: &str) -> u64 {
        let page = self.metrics.encode().expect("metrics can be written");
        let name = format!("portcullis_task_restarts_total{{{labels}}} ");
        page.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or_default()
    }

    fn failing(&self) -> Vec<String> {
        self.tasks.failing().iter().map(ToString::to_string).collect()
    }
}

/// A task that says how often it was started, and ends so often before it stays.
fn ending(times: usize) -> (Arc<AtomicUsize>, impl Fn() -> BoxedTask + Send + Sync + 'static) {
    let starts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&starts);
    let run = move || -> BoxedTask {
        let start = counted.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            if start >= times {
                std::future::pending::<()>().await;
            }
        })
    };
    (starts, run)
}

type BoxedTask = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

#[tokio::test(start_paused = true)]
async fn a_task_that_ends_though_it_must_not_is_down_and_then_started_again_and_counted() {
    let (house, supervisor) = House::new();
    let (starts, run) = ending(1);
    let task = supervisor.keep(Task::named("follow"), run);
    tokio::task::yield_now().await;
    while house.tasks.down().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(house.tasks.down(), [Task::named("follow")]);
    sleep(SECOND).await;
    assert!(house.tasks.down().is_empty());
    assert_eq!(starts.load(Ordering::SeqCst), 2);
    assert_eq!(house.restarts("provider=\"\",task=\"follow\""), 1);
    assert!(house.tasks.failing().is_empty() && !task.is_finished(), "once is not often");
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_work_is_done_is_not_started_again() {
    let (house, supervisor) = House::new();
    let (starts, run) = ending(1);
    supervisor.complete(Task::of("p", "restore"), run).await.expect("no panic");
    sleep(SECOND).await;
    assert_eq!((starts.load(Ordering::SeqCst), house.restarts("provider=\"p\",task=\"restore\"")), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_panics_is_started_again_whether_the_panic_is_in_its_making_or_in_its_run() {
    let (house, supervisor) = House::new();
    let starts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&starts);
    let done = supervisor.complete(Task::of("p", "restore"), move || {
        let start = counted.fetch_add(1, Ordering::SeqCst);
        assert_ne!(start, 0, "as this test wants it");
        async move { assert_ne!(start, 1, "as this test wants it") }
    });
    done.await.expect("it is done at the third start");
    assert_eq!((starts.load(Ordering::SeqCst), house.restarts("provider=\"p\",task=\"restore\"")), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn three_restarts_within_a_minute_are_failing_until_it_has_run_for_a_minute() {
    let (house, supervisor) = House::new();
    let (_starts, run) = ending(3);
    supervisor.keep(Task::of("p", "drive"), run);
    house.changed.notified().await;
    assert_eq!(house.failing(), ["drive of p"]);
    sleep(50 * SECOND).await;
    assert_eq!(house.failing(), ["drive of p"]);
    house.changed.notified().await;
    assert!(house.tasks.failing().is_empty(), "told when it is well again");
}

#[tokio::test(start_paused = true)]
async fn restarts_that_are_far_apart_are_not_failing() {
    let (house, supervisor) = House::new();
    let starts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&starts);
    supervisor.keep(Task::named("follow"), move || {
        counted.fetch_add(1, Ordering::SeqCst);
        sleep(40 * SECOND)
    });
    for _ in 0..500 {
        sleep(SECOND).await;
        assert!(house.tasks.failing().is_empty());
    }
    assert!(starts.load(Ordering::SeqCst) > 10);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_aborted_is_neither_started_again_nor_failing() {
    let (house, supervisor) = House::new();
    let (starts, run) = ending(usize::MAX);
    let task = supervisor.keep(Task::named("follow"), run);
    house.changed.notified().await;
    assert_eq!(house.failing(), ["follow"]);
    task.abort();
    assert!(task.await.expect_err("aborted").is_cancelled());
    assert!(house.tasks.failing().is_empty() && house.tasks.down().is_empty());
    let before = starts.load(Ordering::SeqCst);
    advance(100 * SECOND).await;
    tokio::task::yield_now().await;
    assert_eq!(starts.load(Ordering::SeqCst), before);
}

#[tokio::test]
async fn a_task_that_keeps_failing_is_seen_at_readyz_and_so_is_its_end() {
    let key = SigningKey::generate("a", SigningAlgorithm::ES256);
    let keyed = inline(provider("p", "https://issuer.example.com"), &[key.public_jwk()]);
    let running = Running::start(config(vec![keyed]), fixed_clock()).await;
    assert_eq!(running.admin("/readyz").await, "ok\n");
    let task = running.service().supervisor().keep(Task::named("listener"), || async {});
    let failing = async {
        while running.service().is_serving() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(20 * SECOND, failing).await.expect("it keeps failing");
    assert_eq!(running.admin("/readyz").await, "task keeps failing: listener\n");
    task.abort();
    assert!(task.await.is_err());
    assert!(running.service().is_serving());
    assert_eq!(running.admin("/readyz").await, "ok\n");
}
