//! The decisions of each rule, in a counter of its own: beside the other labels of `portcullis_decisions_total` the
//! number of series would be a product. Counting takes no lock and allocates nothing.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::decisions::index_of;
use crate::verdict::Verdict;

/// The most rules with a series of their own, over all reloads: their series stay.
const MAX_RULES: usize = 1_000;

/// The label of the rules beyond the limit.
const OTHERS: &str = "(others)";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RuleLabels {
    rule: String,
    verdict: &'static str,
}

/// The family of the counter.
#[derive(Clone, Debug, Default)]
pub(super) struct RuleFamily {
    decisions: Family<RuleLabels, Counter>,
    /// The rules with a series of their own.
    named: Arc<Mutex<BTreeSet<String>>>,
}

impl RuleFamily {
    pub(super) fn registered_in(registry: &mut Registry) -> Self {
        let family = Self::default();
        registry.register(
            "rule_decisions",
            "Decisions by the rule of the request and verdict; without a rule the label is empty",
            family.decisions.clone(),
        );
        family
    }

    /// The label of this rule.
    fn label(&self, rule: &str) -> String {
        // No code that holds the lock can panic midway, so a poisoned lock is still sound.
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.len() < MAX_RULES {
            named.insert(rule.to_owned());
        }
        if named.contains(rule) { rule.to_owned() } else { OTHERS.to_owned() }
    }
}

/// The counters of the rules of one configuration.
#[derive(Debug)]
pub struct RuleMetrics {
    family: RuleFamily,
    /// By the name of the rule; the empty one is that of decisions without.
    rules: HashMap<String, RuleCounters>,
}

#[derive(Debug)]
struct RuleCounters {
    label: String,
    by_verdict: [OnceLock<Counter>; 3],
}

impl RuleMetrics {
    pub(super) fn new<'a>(family: RuleFamily, names: impl Iterator<Item = &'a str>) -> Self {
        let counters =
            |name: &str| RuleCounters { label: family.label(name), by_verdict: Default::default() };
        let rules = [""].into_iter().chain(names).map(|name| (name.to_owned(), counters(name))).collect();
        Self { family, rules }
    }

    /// Counts a decision. `rule` is empty if there is none.
    pub fn count(&self, rule: &str, verdict: &Verdict) {
        let Some(RuleCounters { label, by_verdict }) = self.rules.get(rule) else { return };
        let labels = || RuleLabels { rule: label.clone(), verdict: verdict.as_str() };
        let counter = by_verdict.get(index_of(verdict));
        if let Some(counter) = counter {
            counter.get_or_init(|| self.family.decisions.get_or_create_owned(&labels())).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::DenyReason;
    use crate::telemetry::Metrics;

    #[test]
    fn decisions_are_counted_by_rule_and_a_thousand_rules_have_a_series_of_their_own() {
        let metrics = Metrics::new();
        let denied = Verdict::Deny(DenyReason::RuleDenied);
        let first = metrics.rules(["a", "b"].into_iter());
        first.count("a", &denied);
        first.count("a", &denied);
        first.count("", &denied);
        // Reloads with other names.
        for number in 0..2_000 {
            let name = format!("rule-{number}");
            metrics.rules([name.as_str()].into_iter()).count(&name, &denied);
        }
        metrics.rules(["a"].into_iter()).count("a", &denied);
        let text = metrics.encode().expect("text");
        let line = |rule: &str, count: u32| {
            format!("portcullis_rule_decisions_total{{rule=\"{rule}\",verdict=\"deny\"}} {count}\n")
        };
        for expected in [line("a", 3), line("", 1), line("rule-0", 1), line(OTHERS, 1_003)] {
            assert!(text.contains(&expected), "{expected}");
        }
        // An empty one, a, b, which was never used, and 997 others.
        assert_eq!(text.matches("portcullis_rule_decisions_total{").count(), MAX_RULES);
    }
}
