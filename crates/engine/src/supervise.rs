//! Tasks that the service lives on: listeners, followers of files, and what keeps a provider's keys. One that panics, or
//! ends though it must not, is started again after a short pause, counted, logged, and seen by whoever asks whether
//! the service is well.
//!
//! [`Supervisor::keep`] is for tasks that must not end, [`Supervisor::complete`] for those that end when their work is
//! done. Either gives back a handle: aborting it ends the task for good.
//!
//! # Architecture invariant
//! Nothing that a task does can end its supervisor, its own log lines included.

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

/// How long a task rests before it is started again.
const PAUSE: Duration = Duration::from_millis(100);

/// The same of one that keeps failing.
const LONG_PAUSE: Duration = Duration::from_secs(1);

/// A task that was started again this often within [`WINDOW`] keeps failing.
const TOO_OFTEN: usize = 3;

/// For how long a restart counts.
const WINDOW: Duration = Duration::from_secs(60);

/// What a task is called in the log, in the metrics and at `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Task {
    /// The provider that it belongs to; empty for those that belong to none.
    pub provider: String,
    /// What it does.
    pub name: &'static str,
}

impl Task {
    /// A task that belongs to no provider.
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

/// The tasks of one service that run under supervision, and how they are.
#[derive(Clone, Debug, Default)]
pub struct Tasks(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    next: u64,
    tasks: BTreeMap<u64, (Task, Course)>,
}

/// How a task has been.
#[derive(Debug, Default)]
struct Course {
    /// Whether it rests before it is started again.
    down: bool,
    /// Its last restarts, [`TOO_OFTEN`] at most.
    restarts: VecDeque<Instant>,
    failing: bool,
}

impl Course {
    /// It ended at this moment, and will be started again.
    fn fell(&mut self, now: Instant) {
        self.down = true;
        self.restarts.push_back(now);
        if self.restarts.len() > TOO_OFTEN {
            self.restarts.pop_front();
        }
        let recent = |at: &&Instant| now.saturating_duration_since(**at) < WINDOW;
        self.failing |= self.restarts.iter().filter(recent).count() >= TOO_OFTEN;
    }

    /// When it counts as well again, if it keeps running until then.
    fn is_well_at(&self) -> Option<Instant> {
        self.restarts.back().filter(|_| self.failing).map(|last| *last + WINDOW)
    }
}

impl Tasks {
    /// The tasks that are down right now, each waiting for its restart.
    pub fn down(&self) -> Vec<Task> {
        self.that(|course| course.down)
    }

    /// The tasks that were started again three times within a minute, and have not run for a minute since.
    pub fn failing(&self) -> Vec<Task> {
        self.that(|course| course.failing)
    }

    fn that(&self, is: impl Fn(&Course) -> bool) -> Vec<Task> {
        let known = self.known();
        let mut tasks: Vec<Task> =
            known.tasks.values().filter(|(_, course)| is(course)).map(|(task, _)| task.clone()).collect();
        tasks.sort();
        tasks.dedup();
        tasks
    }

    /// No code that holds the lock can panic half-way, so a poisoned one is still sound.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What starts tasks and keeps them running. Needs a tokio runtime.
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
    /// What it starts is seen in `tasks` and counted in `metrics`; `changed` is told when a task begins to keep failing
    /// and when it is well again.
    pub fn new(tasks: Tasks, metrics: Arc<Metrics>, changed: Arc<Notify>) -> Self {
        Self { tasks, metrics, changed }
    }

    /// Spawns a task that must not end: it runs until what this returns is aborted. `run` makes it, anew for each start.
    pub fn keep<F>(&self, task: Task, run: impl Fn() -> F + Send + Sync + 'static) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn(task, End::Never, run)
    }

    /// Spawns a task that ends when its work is done, and is started again only where it panics.
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
        // Known from here on, not only once the runtime comes to it.
        let entry = self.enter(task);
        let run = Arc::new(run);
        tokio::spawn(async move {
            loop {
                let run = Arc::clone(&run);
                // A set of one, which ends with this task.
                let mut inner = JoinSet::new();
                inner.spawn(async move { run().await });
                let how = match entry.watch(&mut inner).await {
                    Some(Ok(())) if end == End::Never => "ended",
                    Some(Err(error)) if error.is_panic() => "panicked",
                    _ => return,
                };
                let pause = entry.fell(how);
                tokio::time::sleep(pause).await;
                entry.starts();
            }
        })
    }

    fn enter(&self, task: Task) -> Entry {
        let mut known = self.tasks.known();
        let number = known.next;
        known.next += 1;
        known.tasks.insert(number, (task, Course::default()));
        drop(known);
        Entry { supervisor: self.clone(), number }
    }
}

/// A task's place in the list, for as long as it is supervised.
struct Entry {
    supervisor: Supervisor,
    number: u64,
}

impl Entry {
    /// Waits until the task ends. One that kept failing and has run for long enough is well again.
    async fn watch(&self, inner: &mut JoinSet<()>) -> Option<Result<(), tokio::task::JoinError>> {
        if let Some(well) = self.with(|_, course| course.is_well_at()).flatten() {
            tokio::select! {
                ended = inner.join_next() => return ended,
                () = clock::sleep_until(well) => {}
            }
            self.with(|_, course| course.failing = false);
            self.supervisor.changed.notify_one();
        }
        inner.join_next().await
    }

    /// Counts and tells of it. Gives the time for which the task rests.
    fn fell(&self, how: &'static str) -> Duration {
        let now = clock::monotonic();
        let told = self.with(|task, course| {
            let failed_before = course.failing;
            course.fell(now);
            (task.clone(), failed_before, course.failing)
        });
        let Some((Task { provider, name }, failed_before, failing)) = told else { return PAUSE };
        if failing != failed_before {
            self.supervisor.changed.notify_one();
        }
        self.supervisor.metrics.task_restarted(&provider, name);
        // The log may be what panicked. What a panic said is told by the panic hook, if by anybody.
        let _untold = catch_unwind(AssertUnwindSafe(|| {
            tracing::error!(%provider, task = name, failing, "a task has {how} and is started again");
        }));
        if failing { LONG_PAUSE } else { PAUSE }
    }

    fn starts(&self) {
        self.with(|_, course| course.down = false);
    }

    fn with<T>(&self, act: impl FnOnce(&Task, &mut Course) -> T) -> Option<T> {
        self.supervisor.tasks.known().tasks.get_mut(&self.number).map(|(task, course)| act(task, course))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let gone = self.supervisor.tasks.known().tasks.remove(&self.number);
        if gone.is_some_and(|(_, course)| course.failing) {
            self.supervisor.changed.notify_one();
        }
    }
}
