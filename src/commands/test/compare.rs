//! Compares a decision with what its case expects.

use http::{HeaderName, HeaderValue};

use super::super::explain::redacted;
use crate::access_request::AccessRequest;
use crate::config::Config;
use crate::config::cases::{Case, Expected};
use crate::decision::{Decision, Step, StepName};
use crate::identity::RemovedHeader;

/// The result of a case.
pub(super) struct Outcome {
    /// What differs from what is expected, each in one line; empty if nothing does.
    pub(super) differences: Vec<String>,
    /// The decision and its steps, each in one line. The last one decided.
    pub(super) steps: Vec<String>,
}

impl Outcome {
    /// Compares a decision with its case.
    pub(super) fn of(
        case: &Case,
        request: &AccessRequest<'_>,
        decision: &Decision<'_>,
        config: &Config,
    ) -> Self {
        let Expected { is_allowed, reason, rule, headers } = &case.expect;
        let mut differences = Vec::new();
        let mut compare = |what: &str, found: &str, wanted: &str| {
            if found != wanted {
                differences.push(format!("{what}: found {found}, wanted {wanted}"));
            }
        };
        if let Some(is_allowed) = is_allowed {
            compare("verdict", decision.verdict.as_str(), if *is_allowed { "allow" } else { "deny" });
        }
        if let Some(reason) = reason {
            compare("reason", decision.verdict.reason().as_str(), reason);
        }
        if let Some(rule) = rule {
            let found = decision.record.rule().map(|rule| &*rule.name);
            compare("rule", &shown_rule(found), &shown_rule(rule.as_deref()));
        }
        if !headers.is_empty() {
            let found = Headers::of(request, decision, config);
            differences.extend(
                headers.iter().filter_map(|(name, wanted)| found.difference(name, wanted.as_deref())),
            );
        }
        Self { differences, steps: steps(decision) }
    }
}

fn shown_rule(name: Option<&str>) -> String {
    name.map_or_else(|| "none".to_owned(), |name| format!("`{name}`"))
}

/// The steps of a decision, the last of which decided, without those about the keys of this process.
fn steps(decision: &Decision<'_>) -> Vec<String> {
    let verdict = format!("{}: {}", decision.verdict.as_str(), decision.verdict.reason().as_str());
    let decided = match decision.record.refused() {
        None => verdict,
        Some(refused) => format!("{verdict}, decided by the step {}", refused.step.as_str()),
    };
    let is_of_case = |step: &Step<'_>| !matches!(step.name, StepName::Refresh | StepName::Key);
    let steps: Vec<Step<'_>> = decision.record.steps().filter(is_of_case).collect();
    let widest = steps.iter().map(|step| step.outcome.chars().count()).max().unwrap_or_default();
    let lines = steps.iter().map(|step| {
        let line = format!("{:<8}  {:<widest$}  {}", step.name.as_str(), step.outcome, step.detail());
        line.trim_end().to_owned()
    });
    [decided].into_iter().chain(lines).collect()
}

/// The headers of the request to the upstream, or of the answer if the request is refused.
struct Headers<'d> {
    /// Each with its value as it is shown.
    set: Vec<(HeaderName, HeaderValue, String)>,
    /// Headers of the client that reach the upstream, whose values are not shown.
    kept: Vec<&'d [u8]>,
}

impl<'d> Headers<'d> {
    fn of(request: &'d AccessRequest<'_>, decision: &Decision<'_>, config: &Config) -> Self {
        let provider = decision.record.provider().map(|provider| &**provider);
        let shown = |name: HeaderName, value: HeaderValue| {
            let shown = redacted(&name, &value, provider);
            (name, value, shown)
        };
        match decision.allowed(&config.responses, &request.headers) {
            Err(denial) => {
                let set = denial.headers.into_iter().map(|(name, value)| shown(name, value));
                Self { set: set.collect(), kept: Vec::new() }
            }
            Ok(allowed) => {
                let changes = allowed.changes();
                let set = changes.set().map(|(name, value)| shown(name.clone(), value.clone()));
                let removed: Vec<&str> = changes.remove.iter().map(RemovedHeader::as_str).collect();
                let names = request.headers.iter().map(|(name, _)| name);
                let is_removed =
                    |name: &[u8]| removed.iter().any(|one| one.as_bytes().eq_ignore_ascii_case(name));
                Self { set: set.collect(), kept: names.filter(|name| !is_removed(name)).collect() }
            }
        }
    }

    /// What differs; `None` if the header is as wanted.
    fn difference(&self, name: &HeaderName, wanted: Option<&str>) -> Option<String> {
        let set: Vec<_> = self.set.iter().filter(|(set, ..)| set == name).collect();
        let is_kept = self.kept.iter().any(|kept| kept.eq_ignore_ascii_case(name.as_str().as_bytes()));
        let is_as_wanted = match (wanted, set.as_slice()) {
            (None, []) => !is_kept,
            (Some(wanted), [(_, value, _)]) => value.as_bytes() == wanted.as_bytes(),
            (None, [_, ..]) | (Some(_), [] | [_, _, ..]) => false,
        };
        if is_as_wanted {
            return None;
        }
        let values: Vec<&str> = set.iter().map(|(.., shown)| &**shown).collect();
        let found = match values.as_slice() {
            [] if is_kept => "the client's".to_owned(),
            [] => "no such header".to_owned(),
            values => format!("{:?}", values.join(", ")),
        };
        let wanted = wanted.map_or_else(|| "no such header".to_owned(), |wanted| format!("{wanted:?}"));
        Some(format!("header {name}: found {found}, wanted {wanted}"))
    }
}
