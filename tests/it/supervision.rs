//! Supervised tasks: a task that panics or ends is restarted, counter, and shown by `/readyz`.

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

/// A supervisor with its metrics and task states.
struct TestEnv {
    tasks: Tasks,
    metrics: Arc<Metrics>,
    changed: Arc<Notify>,
}

impl TestEnv {
    fn new() -> (Self, Supervisor) {
        let env = Self { tasks: Tasks::default(), metrics: Arc::default(), changed: Arc::default() };
        let (metrics, changed) = (Arc::clone(&env.metrics), Arc::clone(&env.changed));
        let supervisor = Supervisor::new(env.tasks.clone(), metrics, changed);
        (env, supervisor)
    }

    fn restarts(&self, labels: &str) -> u64 {
        let text = self.metrics.encode().expect("metrics can be written");
        let name = format!("portcullis_task_restarts_total{{{labels}}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or_default()
    }

    fn failing(&self) -> Vec<String> {
        self.tasks.failing().iter().map(ToString::to_string).collect()
    }
}

/// A task that counts its starts and ends this many times before it keeps running.
fn ending(times: usize) -> (Arc<AtomicUsize>, impl Fn() -> BoxedTask + Send + Sync + 'static) {
    let starts = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&starts);
    let run = move || -> BoxedTask {
        let start = counter.fetch_add(1, Ordering::SeqCst);
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
async fn a_task_that_ends_unexpectedly_is_down_and_then_restarted_and_counted() {
    let (env, supervisor) = TestEnv::new();
    let (starts, run) = ending(1);
    let task = supervisor.keep(Task::named("follow"), run);
    tokio::task::yield_now().await;
    while env.tasks.down().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(env.tasks.down(), [Task::named("follow")]);
    sleep(SECOND).await;
    assert!(env.tasks.down().is_empty());
    assert_eq!(starts.load(Ordering::SeqCst), 2);
    assert_eq!(env.restarts("provider=\"\",task=\"follow\""), 1);
    assert!(env.tasks.failing().is_empty() && !task.is_finished(), "one restart is not failing");
}

#[tokio::test(start_paused = true)]
async fn a_completed_task_is_not_restarted() {
    let (env, supervisor) = TestEnv::new();
    let (starts, run) = ending(1);
    supervisor.complete(Task::of("p", "restore"), run).await.expect("no panic");
    sleep(SECOND).await;
    assert_eq!((starts.load(Ordering::SeqCst), env.restarts("provider=\"p\",task=\"restore\"")), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_panics_at_creation_or_while_running_is_restarted() {
    let (env, supervisor) = TestEnv::new();
    let starts = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&starts);
    let done = supervisor.complete(Task::of("p", "restore"), move || {
        let start = counter.fetch_add(1, Ordering::SeqCst);
        assert_ne!(start, 0, "intended by the test");
        async move { assert_ne!(start, 1, "intended by the test") }
    });
    done.await.expect("completed at the third start");
    assert_eq!((starts.load(Ordering::SeqCst), env.restarts("provider=\"p\",task=\"restore\"")), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn three_restarts_within_a_minute_are_failing_until_it_has_run_for_a_minute() {
    let (env, supervisor) = TestEnv::new();
    let (_starts, run) = ending(3);
    supervisor.keep(Task::of("p", "drive"), run);
    env.changed.notified().await;
    assert_eq!(env.failing(), ["drive of p"]);
    sleep(50 * SECOND).await;
    assert_eq!(env.failing(), ["drive of p"]);
    env.changed.notified().await;
    assert!(env.tasks.failing().is_empty(), "the recovery is notified");
}

#[tokio::test(start_paused = true)]
async fn infrequent_restarts_are_not_failing() {
    let (env, supervisor) = TestEnv::new();
    let starts = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&starts);
    supervisor.keep(Task::named("follow"), move || {
        counter.fetch_add(1, Ordering::SeqCst);
        sleep(40 * SECOND)
    });
    for _ in 0..500 {
        sleep(SECOND).await;
        assert!(env.tasks.failing().is_empty());
    }
    assert!(starts.load(Ordering::SeqCst) > 10);
}

#[tokio::test(start_paused = true)]
async fn an_aborted_task_is_neither_restarted_nor_failing() {
    let (env, supervisor) = TestEnv::new();
    let (starts, run) = ending(usize::MAX);
    let task = supervisor.keep(Task::named("follow"), run);
    env.changed.notified().await;
    assert_eq!(env.failing(), ["follow"]);
    task.abort();
    assert!(task.await.expect_err("aborted").is_cancelled());
    assert!(env.tasks.failing().is_empty() && env.tasks.down().is_empty());
    let before = starts.load(Ordering::SeqCst);
    advance(100 * SECOND).await;
    tokio::task::yield_now().await;
    assert_eq!(starts.load(Ordering::SeqCst), before);
}

#[tokio::test]
async fn a_failing_task_is_shown_by_readyz_until_it_ends() {
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
