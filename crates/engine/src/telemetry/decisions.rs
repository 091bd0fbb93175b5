//! The metrics of decisions. Their counters are looked up by labels once; counting a decision then takes no lock and
//! allocates nothing.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

use crate::reason::Outcome;
use crate::verdict::Verdict;

/// The `door` labels of this product's doors. Any other is looked up for each decision.
const DOORS: [&str; 3] = ["ext_authz", "forward_auth", "tower"];

/// The upper bounds of the buckets of durations, in nanoseconds: from 10 µs, for a decision without waiting, to 5 s,
/// above the longest wait for a refresh.
const BOUNDS: [u64; 18] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
];

const NANOS_PER_SECOND: f64 = 1e9;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    door: &'static str,
    verdict: &'static str,
    reason: &'static str,
    provider: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurationLabels {
    door: &'static str,
    verdict: &'static str,
}

/// The families of the metrics.
#[derive(Clone, Debug)]
pub(super) struct DecisionFamilies {
    decisions: Family<DecisionLabels, Counter>,
    durations: Family<DurationLabels, DurationHistogram>,
}

impl DecisionFamilies {
    pub(super) fn registered_in(registry: &mut Registry) -> Self {
        let families = Self { decisions: Family::default(), durations: Family::default() };
        registry.register("decisions", "Decisions by verdict and reason", families.decisions.clone());
        registry.register(
            "decision_duration_seconds",
            "Time from a request's arrival to its verdict, waiting for a refresh included",
            families.durations.clone(),
        );
        families
    }

    /// Counts a decision, by its labels.
    pub(super) fn count(&self, door: &'static str, verdict: &Verdict, provider: &str, took: Duration) {
        self.decision(door, verdict, provider).inc();
        self.duration(door, verdict).observe(took);
    }

    fn decision(&self, door: &'static str, verdict: &Verdict, provider: &str) -> Counter {
        let (verdict, reason) = (verdict.as_str(), verdict.reason().as_str());
        let labels = DecisionLabels { door, verdict, reason, provider: provider.to_owned() };
        self.decisions.get_or_create_owned(&labels)
    }

    fn duration(&self, door: &'static str, verdict: &Verdict) -> DurationHistogram {
        self.durations.get_or_create_owned(&DurationLabels { door, verdict: verdict.as_str() })
    }
}

/// The metrics of the decisions under one configuration.
#[derive(Debug)]
pub struct DecisionMetrics {
    families: DecisionFamilies,
    /// By the name of the provider; the empty one is that of decisions without.
    providers: HashMap<String, ByDoor<ByOutcome>>,
    durations: ByDoor<ByVerdict>,
}

type ByDoor<T> = [T; DOORS.len()];
type ByOutcome = [OnceLock<Counter>; Outcome::COUNT];
type ByVerdict = [OnceLock<DurationHistogram>; 3];

impl DecisionMetrics {
    pub(super) fn new<'a>(families: DecisionFamilies, providers: impl Iterator<Item = &'a str>) -> Self {
        let by_outcome = || std::array::from_fn(|_| std::array::from_fn(|_| OnceLock::new()));
        Self {
            families,
            providers: providers.chain([""]).map(|name| (name.to_owned(), by_outcome())).collect(),
            durations: Default::default(),
        }
    }

    /// Counts a decision. `provider` is empty if there is none.
    pub fn count(&self, door: &'static str, verdict: &Verdict, provider: &str, took: Duration) {
        let place = DOORS.iter().position(|known| *known == door);
        let decisions = self.providers.get(provider).zip(place).and_then(|(by_door, place)| {
            let counter = by_door.get(place)?.get(verdict.reason().index())?;
            Some(counter.get_or_init(|| self.families.decision(door, verdict, provider)))
        });
        let durations = place.and_then(|place| {
            let histogram = self.durations.get(place)?.get(index_of(verdict))?;
            Some(histogram.get_or_init(|| self.families.duration(door, verdict)))
        });
        match decisions.zip(durations) {
            Some((decisions, durations)) => {
                decisions.inc();
                durations.observe(took);
            }
            None => self.families.count(door, verdict, provider, took),
        }
    }
}

/// The place of the verdict in a list of three.
pub(super) fn index_of(verdict: &Verdict) -> usize {
    match verdict {
        Verdict::Allow(_) => 0,
        Verdict::Deny(_) => 1,
        Verdict::Unavailable(_) => 2,
    }
}

/// A histogram of durations. Observing takes no lock: a scrape may see a count whose sum it does not see yet.
#[derive(Clone, Default)]
struct DurationHistogram(Arc<Buckets>);

#[derive(Default)]
struct Buckets {
    /// One for each bound, and one above the last.
    counts: [AtomicU64; BOUNDS.len() + 1],
    sum_nanos: AtomicU64,
}

impl DurationHistogram {
    fn observe(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < nanos);
        if let Some(count) = self.0.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.0.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

impl fmt::Debug for DurationHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurationHistogram").finish_non_exhaustive()
    }
}

impl TypedMetric for DurationHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for DurationHistogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        // The bound of the last bucket is "+Inf" for the encoder, which also adds up the counts.
        let bounds = BOUNDS.iter().map(|bound| *bound as f64 / NANOS_PER_SECOND).chain([f64::INFINITY]);
        let counts = self.0.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.0.sum_nanos.load(Ordering::Relaxed) as f64 / NANOS_PER_SECOND;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use crate::reason::DenyReason;
    use crate::telemetry::Metrics;
    use crate::verdict::Verdict;

    use super::*;

    #[test]
    fn decisions_are_counted_by_their_labels_with_and_without_handles() {
        let metrics = Metrics::new();
        let decisions = metrics.decisions(["p"].into_iter());
        let expired = Verdict::Deny(DenyReason::Expired);
        // The handle, a provider without one, a door without one, no provider, and no configuration.
        for (door, provider) in [("ext_authz", "p"), ("ext_authz", "other"), ("door", "p"), ("tower", "")] {
            decisions.count(door, &expired, provider, Duration::ZERO);
            decisions.count(door, &expired, provider, Duration::ZERO);
        }
        metrics.decision("ext_authz", &Verdict::Deny(DenyReason::Malformed), "p", Duration::ZERO);
        metrics.decision("ext_authz", &expired, "p", Duration::ZERO);
        let text = metrics.encode().expect("text");
        for (door, reason, provider, count) in [
            ("ext_authz", "expired", "p", 3),
            ("ext_authz", "expired", "other", 2),
            ("door", "expired", "p", 2),
            ("tower", "expired", "", 2),
            ("ext_authz", "malformed", "p", 1),
        ] {
            let line = format!(
                "portcullis_decisions_total{{door=\"{door}\",verdict=\"deny\",reason=\"{reason}\",provider=\"{provider}\"}} {count}\n"
            );
            assert!(text.contains(&line), "{line}{text}");
        }
        assert!(
            text.contains(
                "portcullis_decision_duration_seconds_count{door=\"ext_authz\",verdict=\"deny\"} 6\n"
            )
        );
    }

    #[test]
    fn a_duration_is_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let metrics = Metrics::new();
        let decisions = metrics.decisions([].into_iter());
        for nanos in [0, 10_000, 10_001, 4_999_999_999, 5_000_000_000, 5_000_000_001, u64::MAX / 4] {
            let took = Duration::from_nanos(nanos);
            decisions.count("tower", &Verdict::Deny(DenyReason::Expired), "", took);
        }
        let text = metrics.encode().expect("text");
        for (bound, count) in [("0.00001", 2), ("0.000025", 3), ("2.5", 3), ("5.0", 5), ("+Inf", 7)] {
            let line = format!(
                "portcullis_decision_duration_seconds_bucket{{le=\"{bound}\",door=\"tower\",verdict=\"deny\"}} {count}\n"
            );
            assert!(text.contains(&line), "{line}{text}");
        }
    }
}
