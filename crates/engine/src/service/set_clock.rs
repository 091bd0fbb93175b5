//! Whether the machine's clock has been set: said once where it has not, and once when it has.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::clock::{self, Clock};
use crate::keys::KeyCacheContext;
use crate::supervise::Task;

/// How often the clock is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A task that ends with this value.
pub(super) struct ClockWatch(Option<JoinHandle<()>>);

impl ClockWatch {
    /// Tells who listens for health when the clock is set, or set back. A clock that is given needs no watch.
    pub(super) fn start(context: &KeyCacheContext) -> Self {
        if let Clock::Fixed(_) = context.clock {
            return Self(None);
        }
        let (clock, changed) = (context.clock.clone(), Arc::clone(&context.serving_changed));
        let watch = move || {
            let (clock, changed) = (clock.clone(), Arc::clone(&changed));
            async move {
                let mut plausible = true;
                loop {
                    let before = std::mem::replace(&mut plausible, clock.is_plausible());
                    if before != plausible {
                        tell(plausible, &clock);
                        changed.notify_one();
                    }
                    sleep(LOOK).await;
                }
            }
        };
        Self(Some(context.supervisor().keep(Task::named("clock"), watch)))
    }
}

impl Drop for ClockWatch {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

fn tell(plausible: bool, clock: &Clock) {
    let now = clock::rfc3339(clock.now());
    if plausible {
        tracing::info!(%now, "the clock of this machine has been set: tokens are judged from now on");
    } else {
        tracing::error!(
            %now,
            built = clock::rfc3339(clock::built_at()),
            "the clock of this machine stands before this program was built: no token is judged until it is set"
        );
    }
}
