//! A subscriber that panics does not end the supervisor. Alone in its process, because the global subscriber is set once
//! per process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use portcullis::supervise::{Supervisor, Task, Tasks};
use portcullis::telemetry::Metrics;
use tokio::runtime::Builder;
use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::support::subprocess::run_in_subprocess;

/// A subscriber that panics at each event.
struct PanickingSubscriber(Arc<AtomicU64>);

impl Subscriber for PanickingSubscriber {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _span: &Id, _values: &Record<'_>) {}
    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}
    fn event(&self, event: &Event<'_>) {
        if event.metadata().target().starts_with("portcullis") {
            self.0.fetch_add(1, Ordering::SeqCst);
            panic!("intended by the test");
        }
    }
    fn enter(&self, _span: &Id) {}
    fn exit(&self, _span: &Id) {}
}

#[test]
fn a_log_that_panics_ends_no_supervisor() {
    let paused = Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    run_in_subprocess(a_log_that_panics_ends_no_supervisor, || {
        paused.block_on(a_supervisor_outlives_its_log())
    });
}

async fn a_supervisor_outlives_its_log() {
    let lines = Arc::new(AtomicU64::new(0));
    tracing::subscriber::set_global_default(PanickingSubscriber(Arc::clone(&lines))).expect("the first one");
    let supervisor = Supervisor::new(Tasks::default(), Arc::new(Metrics::new()), Arc::new(Notify::new()));
    let starts = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&starts);
    let task = supervisor.keep(Task::named("follow"), move || {
        let start = counter.fetch_add(1, Ordering::SeqCst);
        async move {
            if start >= 2 {
                std::future::pending::<()>().await;
            }
        }
    });
    sleep(Duration::from_secs(5)).await;
    assert_eq!((lines.load(Ordering::SeqCst), starts.load(Ordering::SeqCst)), (2, 3));
    assert!(!task.is_finished());
}
