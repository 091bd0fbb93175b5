//! Tasks that drive a provider's keys and must not end: one that panics is started again, counted, and told of.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};

use super::Shared;

/// How long a task that panicked rests.
const PAUSE: Duration = Duration::from_millis(100);

/// Spawns a task that lives as long as what it returns is not aborted. It ends when what it runs ends by itself.
pub(super) fn spawn<F>(
    shared: &Arc<Shared>,
    task: &'static str,
    run: impl Fn() -> F + Send + 'static,
) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        loop {
            // A set of one, which ends with this task.
            let mut inner = JoinSet::new();
            inner.spawn(run());
            match inner.join_next().await {
                Some(Err(error)) if error.is_panic() => {}
                _ => return,
            }
            shared.around.metrics.task_restarted(&shared.provider, task);
            let provider = shared.provider.clone();
            // In a task of its own, since the log may be what panicked.
            tokio::spawn(async move {
                tracing::error!(%provider, task, "a task that keeps keys has panicked and is started again");
            });
            tokio::time::sleep(PAUSE).await;
        }
    })
}
