//! Supervision of the tasks that the service depends on: listeners, file watchers, key refresh. A task that panics,
//! or ends although it must not, is restarted after a short delay, counted, logged and shown by the readiness probe.
//!
//! [`Supervisor::keep`] is for tasks that must not end, [`Supervisor::complete`] for tasks that end when their work
//! is done. Both return a handle; aborting it ends the task for good.
//!
//! # Architecture invariant
//! Nothing that a task does can end its supervisor, including its own log lines.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

use crate::clock::{self, Instant};
use crate::telemetry::Metrics;

/// Delay before a task is restarted.
const RESTART_DELAY: Duration = Duration::from_millis(100);

/// Delay before a failing task is restarted.
const FAILING_RESTART_DELAY: Duration = Duration::from_secs(1);

/// A task with this many restarts within [`WINDOW`] is failing.
const FAILING_RESTARTS: usize = 3;

/// How long a restart is remembered.
const WINDOW: Duration = Duration::from_secs(60);

/// A task's name in the log, in the metrics and at `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Task {
    /// The task's provider; empty if it has none.
    pub provider: String,
    /// What it does.
    pub name: &'static str,
}

impl Task {
    /// A task without a provider.
    pub fn named(name: &'static str) -> Self {
        Self { provider: String::new(), name }
    }

    /// A task of this provider.
    pub fn of(provider: &str, name: &'static str) -> Self {
        Self { provider: provider.to_owned(), name }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.provider {
            "" => f.write_str(self.name),
            provider => write!(f, "{} of {provider}", self.name),
        }
    }
}

/// The supervised tasks of one service and their states.
#[derive(Clone, Debug, Default)]
pub struct Tasks(Arc<Mutex<Registry>>);

#[derive(Debug, Default)]
struct Registry {
    next: u64,
    tasks: BTreeMap<u64, (Task, TaskState)>,
}

/// The state of a task.
#[derive(Debug, Default)]
struct TaskState {
    /// Whether it is waiting for its restart.
    down: bool,
    /// Its last restarts, at most [`FAILING_RESTARTS`].
    restarts: VecDeque<Instant>,
    failing: bool,
}

impl TaskState {
    /// The task ended at `now` and will be restarted.
    fn record_exit(&mut self, now: Instant) {
        self.down = true;
        self.restarts.push_back(now);
        if self.restarts.len() > FAILING_RESTARTS {
            self.restarts.pop_front();
        }
        let recent = |at: &&Instant| now.saturating_duration_since(**at) < WINDOW;
        self.failing |= self.restarts.iter().filter(recent).count() >= FAILING_RESTARTS;
    }

    /// When a failing task recovers, if it keeps running until then.
    fn recovers_at(&self) -> Option<Instant> {
        self.restarts.back().filter(|_| self.failing).map(|last| *last + WINDOW)
    }
}

impl Tasks {
    /// The tasks that are down, each waiting for its restart.
    pub fn down(&self) -> Vec<Task> {
        self.filtered(|state| state.down)
    }

    /// The tasks that were restarted three times within a minute and have not yet run for a minute since.
    pub fn failing(&self) -> Vec<Task> {
        self.filtered(|state| state.failing)
    }

    fn filtered(&self, is: impl Fn(&TaskState) -> bool) -> Vec<Task> {
        let registry = self.registry();
        let mut tasks: Vec<Task> =
            registry.tasks.values().filter(|(_, state)| is(state)).map(|(task, _)| task.clone()).collect();
        tasks.sort();
        tasks.dedup();
        tasks
    }

    /// No code that holds the lock can panic midway, so a poisoned lock is still sound.
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts tasks and restarts them when they end. Needs a tokio runtime.
#[derive(Clone, Debug)]
pub struct Supervisor {
    tasks: Tasks,
    metrics: Arc<Metrics>,
    changed: Arc<Notify>,
}

/// Whether a task may end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Never,
    WhenDone,
}

impl Supervisor {
    /// Supervised tasks are listed in `tasks` and restarts counted in `metrics`; `changed` is notified when a task
    /// starts failing and when it recovers.
    pub fn new(tasks: Tasks, metrics: Arc<Metrics>, changed: Arc<Notify>) -> Self {
        Self { tasks, metrics, changed }
    }

    /// Spawns a task that must not end: it runs until the returned handle is aborted. `run` creates its future at
    /// each start.
    pub fn keep<F>(&self, task: Task, run: impl Fn() -> F + Send + Sync + 'static) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn(task, End::Never, run)
    }

    /// Spawns a task that ends when its work is done, and is restarted only if it panics.
    pub fn complete<F>(&self, task: Task, run: impl Fn() -> F + Send + Sync + 'static) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn(task, End::WhenDone, run)
    }

    fn spawn<F>(&self, task: Task, end: End, run: impl Fn() -> F + Send + Sync + 'static) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // Registered before the runtime first polls the task.
        let registration = self.register(task);
        let run = Arc::new(run);
        tokio::spawn(async move {
            loop {
                let run = Arc::clone(&run);
                // A set of one task, which is aborted together with this one.
                let mut inner = JoinSet::new();
                inner.spawn(async move { run().await });
                let cause = match registration.watch(&mut inner).await {
                    Some(Ok(())) if end == End::Never => "ended",
                    Some(Err(error)) if error.is_panic() => "panicked",
                    _ => return,
                };
                let delay = registration.record_exit(cause);
                tokio::time::sleep(delay).await;
                registration.record_start();
            }
        })
    }

    fn register(&self, task: Task) -> Registration {
        let mut registry = self.tasks.registry();
        let number = registry.next;
        registry.next += 1;
        registry.tasks.insert(number, (task, TaskState::default()));
        drop(registry);
        Registration { supervisor: self.clone(), number }
    }
}

/// A task's entry in the list, removed when supervision ends.
struct Registration {
    supervisor: Supervisor,
    number: u64,
}

impl Registration {
    /// Waits until the task ends. A failing task that has run long enough recovers.
    async fn watch(&self, inner: &mut JoinSet<()>) -> Option<Result<(), tokio::task::JoinError>> {
        if let Some(recovery) = self.with(|_, state| state.recovers_at()).flatten() {
            tokio::select! {
                ended = inner.join_next() => return ended,
                () = clock::sleep_until(recovery) => {}
            }
            self.with(|_, state| state.failing = false);
            self.supervisor.changed.notify_one();
        }
        inner.join_next().await
    }

    /// Counts and logs the exit. Returns the delay before the restart.
    fn record_exit(&self, cause: &'static str) -> Duration {
        let now = clock::monotonic();
        let exit = self.with(|task, state| {
            let failed_before = state.failing;
            state.record_exit(now);
            (task.clone(), failed_before, state.failing)
        });
        let Some((Task { provider, name }, failed_before, failing)) = exit else { return RESTART_DELAY };
        if failing != failed_before {
            self.supervisor.changed.notify_one();
        }
        self.supervisor.metrics.task_restarted(&provider, name);
        // Logging may be what panicked. The panic hook logs the message of the panic.
        let _panicked = catch_unwind(AssertUnwindSafe(|| {
            tracing::error!(%provider, task = name, failing, cause = cause, "task restarted");
        }));
        if failing { FAILING_RESTART_DELAY } else { RESTART_DELAY }
    }

    fn record_start(&self) {
        self.with(|_, state| state.down = false);
    }

    fn with<T>(&self, act: impl FnOnce(&Task, &mut TaskState) -> T) -> Option<T> {
        self.supervisor.tasks.registry().tasks.get_mut(&self.number).map(|(task, state)| act(task, state))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let removed = self.supervisor.tasks.registry().tasks.remove(&self.number);
        if removed.is_some_and(|(_, state)| state.failing) {
            self.supervisor.changed.notify_one();
        }
    }
}
