//! Which refusals have a line of the log each. Anybody can send what is refused: under a flood there are so many lines a
//! second for each reason and provider, and of the rest one line a while that says how many there were.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::sleep;

use crate::clock::{self, Instant};

/// A line of one kind this often.
const EVERY: Duration = Duration::from_millis(100);

/// So many at once, where there were none for a while.
const BURST: u32 = 20;

/// How long after the first refusal without a line the log says how many there were.
const REPORT_AFTER: Duration = Duration::from_secs(10);

/// More kinds than that are told apart by their reasons alone.
const MAX_KINDS: usize = 4096;

/// The name of the providers that are not told apart.
const OTHERS: &str = "(others)";

/// The refusals of one authorizer. What it has not told of, it tells when it goes.
#[derive(Debug, Default)]
pub(super) struct RefusalLog(Mutex<Kinds>);

#[derive(Debug, Default)]
struct Kinds {
    /// By reason and provider.
    kinds: BTreeMap<&'static str, HashMap<String, Kind>>,
    count: usize,
    /// Whether a report is on its way.
    reporting: bool,
}

/// The refusals of one reason and provider.
#[derive(Debug)]
struct Kind {
    /// When as many lines may be written at once as ever.
    rested_at: Instant,
    left_out: u64,
}

/// Refusals without a line.
#[derive(Debug, PartialEq, Eq)]
struct LeftOut {
    reason: &'static str,
    provider: String,
    left_out: u64,
}

impl RefusalLog {
    /// Whether this refusal has a line. Where it has none, it is counted, and the log is told of it later on.
    pub(super) fn admits(self: &Arc<Self>, reason: &'static str, provider: &str) -> bool {
        let now = clock::monotonic();
        let mut kinds = self.kinds();
        let admitted = kinds.admit(reason, provider, now);
        let is_first = !admitted && !std::mem::replace(&mut kinds.reporting, true);
        drop(kinds);
        if is_first {
            self.report_later();
        }
        admitted
    }

    fn report_later(self: &Arc<Self>) {
        // Who decides outside of a runtime has its report when this goes, or with the next one.
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
        let left_out = self.kinds().take_left_out(clock::monotonic());
        for LeftOut { reason, provider, left_out } in left_out {
            tracing::info!(
                reason,
                provider,
                left_out,
                "refusals without a line of their own: too many at once"
            );
        }
    }

    /// No code that holds the lock can panic half-way, so a poisoned one is still sound.
    fn kinds(&self) -> MutexGuard<'_, Kinds> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RefusalLog {
    fn drop(&mut self) {
        self.report();
    }
}

impl Kinds {
    fn admit(&mut self, reason: &'static str, provider: &str, now: Instant) -> bool {
        let kinds = self.kinds.entry(reason).or_default();
        if let Some(kind) = kinds.get_mut(provider) {
            return kind.admit(now);
        }
        let provider = if self.count < MAX_KINDS { provider } else { OTHERS };
        let kind = kinds.entry(provider.to_owned()).or_insert_with(|| {
            self.count += 1;
            Kind { rested_at: now, left_out: 0 }
        });
        kind.admit(now)
    }

    /// Forgets what has had its lines.
    fn take_left_out(&mut self, now: Instant) -> Vec<LeftOut> {
        let mut all = Vec::new();
        for (reason, kinds) in &mut self.kinds {
            for (provider, kind) in kinds.iter_mut() {
                let left_out = std::mem::take(&mut kind.left_out);
                if left_out > 0 {
                    all.push(LeftOut { reason, provider: provider.clone(), left_out });
                }
            }
            kinds.retain(|_, kind| kind.rested_at > now);
        }
        self.count = self.kinds.values().map(HashMap::len).sum();
        self.reporting = false;
        all
    }
}

impl Kind {
    fn admit(&mut self, now: Instant) -> bool {
        let from = self.rested_at.max(now);
        if from.saturating_duration_since(now) > EVERY * (BURST - 1) {
            self.left_out = self.left_out.saturating_add(1);
            return false;
        }
        self.rested_at = from + EVERY;
        true
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// How many of so many refusals have a line.
    fn lines(log: &Arc<RefusalLog>, provider: &str, refusals: u32) -> u32 {
        (0..refusals).map(|_| u32::from(log.admits("expired", provider))).sum()
    }

    fn left_out(log: &RefusalLog) -> Vec<LeftOut> {
        let mut all = log.kinds().take_left_out(clock::monotonic());
        all.sort_by(|one, other| one.provider.cmp(&other.provider));
        all
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_has_a_few_lines_a_second_and_the_rest_is_counted() {
        let log = Arc::new(RefusalLog::default());
        assert_eq!(lines(&log, "p", 1000), BURST);
        for _ in 0..5 {
            advance(Duration::from_secs(1)).await;
            assert_eq!(lines(&log, "p", 1000), 10);
        }
        let expected = LeftOut { reason: "expired", provider: "p".to_owned(), left_out: 6000 - 70 };
        assert_eq!(left_out(&log), [expected]);
        assert_eq!(left_out(&log), []);
        advance(Duration::from_secs(60)).await;
        assert_eq!(lines(&log, "p", 1000), BURST, "no more than that after any rest");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_one_kind_leaves_the_lines_of_the_others() {
        let log = Arc::new(RefusalLog::default());
        lines(&log, "p", 1000);
        assert_eq!(lines(&log, "q", 1), 1);
        assert!(log.admits("bad_signature", "p"));
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_that_come_slowly_have_a_line_each() {
        let log = Arc::new(RefusalLog::default());
        for _ in 0..1000 {
            assert!(log.admits("expired", "p"));
            advance(EVERY).await;
        }
        assert_eq!(left_out(&log), []);
    }

    #[tokio::test(start_paused = true)]
    async fn ever_so_many_kinds_take_bounded_memory() {
        let log = Arc::new(RefusalLog::default());
        for i in 0..3 * MAX_KINDS {
            log.admits("expired", &i.to_string());
        }
        assert_eq!(log.kinds().count, MAX_KINDS + 1);
        let [others] = &left_out(&log)[..] else { panic!("one kind") };
        assert_eq!((&*others.provider, others.left_out), (OTHERS, 2 * MAX_KINDS as u64 - u64::from(BURST)));
        advance(REPORT_AFTER).await;
        assert_eq!(left_out(&log), []);
        assert_eq!(log.kinds().count, 0, "what has rested is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_left_out_is_reported_in_time_once_for_all_and_again_when_there_is_more() {
        let log = Arc::new(RefusalLog::default());
        for _ in 0..3 {
            lines(&log, "p", 1000);
            assert_eq!(Arc::strong_count(&log), 2, "one report is on its way");
            assert!(log.kinds().reporting);
            sleep(REPORT_AFTER + EVERY).await;
            assert_eq!((Arc::strong_count(&log), left_out(&log)), (1, Vec::new()), "and has told it");
        }
    }

    #[test]
    fn outside_of_a_runtime_nothing_is_lost_or_breaks() {
        let log = Arc::new(RefusalLog::default());
        assert_eq!(lines(&log, "p", 100), BURST);
        assert_eq!(left_out(&log).len(), 1);
    }
}
