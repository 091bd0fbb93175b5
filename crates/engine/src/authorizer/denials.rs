//! A rate limit for log lines of denials, since any client can cause them: under a flood each reason and provider has
//! a limited number of lines per second, and a line from time to time reports how many were suppressed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::sleep;

use crate::clock::{self, Instant};

/// Interval between lines of one kind.
const INTERVAL: Duration = Duration::from_millis(100);

/// Lines that may be logged at once after a pause.
const BURST: u32 = 20;

/// Delay of the report after the first suppressed line.
const REPORT_AFTER: Duration = Duration::from_secs(10);

/// Beyond this many kinds, providers are no longer distinguished.
const MAX_KINDS: usize = 4096;

/// The provider's name for the kinds beyond the limit.
const OTHERS: &str = "(others)";

/// The denials of one authorizer. Remaining counts are reported when it is dropped.
#[derive(Debug, Default)]
pub(super) struct DenialLog(Mutex<Kinds>);

#[derive(Debug, Default)]
struct Kinds {
    /// By reason and provider.
    kinds: BTreeMap<&'static str, HashMap<String, Kind>>,
    count: usize,
    /// Whether a report is scheduled.
    reporting: bool,
}

/// The denials of one reason and provider.
#[derive(Debug)]
struct Kind {
    /// When the full burst is available again.
    full_at: Instant,
    suppressed: u64,
}

/// The number of suppressed lines.
#[derive(Debug, PartialEq, Eq)]
struct Suppressed {
    reason: &'static str,
    provider: String,
    suppressed: u64,
}

impl DenialLog {
    /// Whether this denial is logged. If not, it is counted for the next report.
    pub(super) fn should_log(self: &Arc<Self>, reason: &'static str, provider: &str) -> bool {
        let now = clock::monotonic();
        let mut kinds = self.kinds();
        let logged = kinds.should_log(reason, provider, now);
        let is_first = !logged && !std::mem::replace(&mut kinds.reporting, true);
        drop(kinds);
        if is_first {
            self.report_later();
        }
        logged
    }

    fn report_later(self: &Arc<Self>) {
        // Outside of a runtime, the count is reported on drop or with the next report.
        let Ok(runtime) = Handle::try_current() else {
            self.kinds().reporting = false;
            return;
        };
        let log = Arc::clone(self);
        runtime.spawn(async move {
            sleep(REPORT_AFTER).await;
            log.report();
        });
    }

    fn report(&self) {
        let suppressed = self.kinds().take_suppressed(clock::monotonic());
        for Suppressed { reason, provider, suppressed } in suppressed {
            tracing::info!(reason, provider, suppressed, "request denied lines suppressed");
        }
    }

    /// No code that holds the lock can panic midway, so a poisoned lock is still sound.
    fn kinds(&self) -> MutexGuard<'_, Kinds> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DenialLog {
    fn drop(&mut self) {
        self.report();
    }
}

impl Kinds {
    fn should_log(&mut self, reason: &'static str, provider: &str, now: Instant) -> bool {
        let kinds = self.kinds.entry(reason).or_default();
        if let Some(kind) = kinds.get_mut(provider) {
            return kind.should_log(now);
        }
        let provider = if self.count < MAX_KINDS { provider } else { OTHERS };
        let kind = kinds.entry(provider.to_owned()).or_insert_with(|| {
            self.count += 1;
            Kind { full_at: now, suppressed: 0 }
        });
        kind.should_log(now)
    }

    /// Also removes the kinds that are not limited any more.
    fn take_suppressed(&mut self, now: Instant) -> Vec<Suppressed> {
        let mut all = Vec::new();
        for (reason, kinds) in &mut self.kinds {
            for (provider, kind) in kinds.iter_mut() {
                let suppressed = std::mem::take(&mut kind.suppressed);
                if suppressed > 0 {
                    all.push(Suppressed { reason, provider: provider.clone(), suppressed });
                }
            }
            kinds.retain(|_, kind| kind.full_at > now);
        }
        self.count = self.kinds.values().map(HashMap::len).sum();
        self.reporting = false;
        all
    }
}

impl Kind {
    fn should_log(&mut self, now: Instant) -> bool {
        let next_at = self.full_at.max(now);
        if next_at.saturating_duration_since(now) > INTERVAL * (BURST - 1) {
            self.suppressed = self.suppressed.saturating_add(1);
            return false;
        }
        self.full_at = next_at + INTERVAL;
        true
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// How many of `denials` are logged.
    fn lines(log: &Arc<DenialLog>, provider: &str, denials: u32) -> u32 {
        (0..denials).map(|_| u32::from(log.should_log("expired", provider))).sum()
    }

    fn suppressed(log: &DenialLog) -> Vec<Suppressed> {
        let mut all = log.kinds().take_suppressed(clock::monotonic());
        all.sort_by(|one, other| one.provider.cmp(&other.provider));
        all
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_logs_a_few_lines_per_second_and_counts_the_rest() {
        let log = Arc::new(DenialLog::default());
        assert_eq!(lines(&log, "p", 1000), BURST);
        for _ in 0..5 {
            advance(Duration::from_secs(1)).await;
            assert_eq!(lines(&log, "p", 1000), 10);
        }
        let expected = Suppressed { reason: "expired", provider: "p".to_owned(), suppressed: 6000 - 70 };
        assert_eq!(suppressed(&log), [expected]);
        assert_eq!(suppressed(&log), []);
        advance(Duration::from_secs(60)).await;
        assert_eq!(lines(&log, "p", 1000), BURST, "the burst is the limit after any pause");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_one_kind_does_not_suppress_the_others() {
        let log = Arc::new(DenialLog::default());
        lines(&log, "p", 1000);
        assert_eq!(lines(&log, "q", 1), 1);
        assert!(log.should_log("bad_signature", "p"));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_denials_are_all_logged() {
        let log = Arc::new(DenialLog::default());
        for _ in 0..1000 {
            assert!(log.should_log("expired", "p"));
            advance(INTERVAL).await;
        }
        assert_eq!(suppressed(&log), []);
    }

    #[tokio::test(start_paused = true)]
    async fn many_kinds_take_bounded_memory() {
        let log = Arc::new(DenialLog::default());
        for i in 0..3 * MAX_KINDS {
            log.should_log("expired", &i.to_string());
        }
        assert_eq!(log.kinds().count, MAX_KINDS + 1);
        let [others] = &suppressed(&log)[..] else { panic!("one kind") };
        assert_eq!((&*others.provider, others.suppressed), (OTHERS, 2 * MAX_KINDS as u64 - u64::from(BURST)));
        advance(REPORT_AFTER).await;
        assert_eq!(suppressed(&log), []);
        assert_eq!(log.kinds().count, 0, "kinds that are not limited are removed");
    }

    #[tokio::test(start_paused = true)]
    async fn suppressed_lines_are_reported_in_time_and_again_when_there_are_more() {
        let log = Arc::new(DenialLog::default());
        for _ in 0..3 {
            lines(&log, "p", 1000);
            assert_eq!(Arc::strong_count(&log), 2, "one report is scheduled");
            assert!(log.kinds().reporting);
            sleep(REPORT_AFTER + INTERVAL).await;
            assert_eq!((Arc::strong_count(&log), suppressed(&log)), (1, Vec::new()), "it was reported");
        }
    }

    #[test]
    fn outside_of_a_runtime_nothing_is_lost() {
        let log = Arc::new(DenialLog::default());
        assert_eq!(lines(&log, "p", 100), BURST);
        assert_eq!(suppressed(&log).len(), 1);
    }
}
