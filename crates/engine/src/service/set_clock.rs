//! Watches whether the machine's clock is plausible, and logs each change.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::clock::{self, Clock};
use crate::keys::KeyCacheContext;
use crate::supervise::Task;

/// How often the clock is checked.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A task that is aborted on drop.
pub(super) struct ClockWatch(Option<JoinHandle<()>>);

impl ClockWatch {
    /// Notifies health checks when the clock becomes plausible or implausible. A fixed clock is not watched.
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
                        log_change(plausible, &clock);
                        changed.notify_one();
                    }
                    sleep(POLL_INTERVAL).await;
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

fn log_change(plausible: bool, clock: &Clock) {
    let now = clock::rfc3339(clock.now());
    if plausible {
        tracing::info!(%now, hint = "tokens are checked from now on", "clock set");
    } else {
        tracing::error!(
            %now,
            built = clock::rfc3339(clock::built_at()),
            hint = "set the clock of this machine: it is before this program was built, so no token is checked", "clock not set"
        );
    }
}
