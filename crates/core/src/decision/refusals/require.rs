//! Refusals of valid tokens, by the requirements of a rule.

use super::{Hint, Refused, StepName};
use crate::decision::shown::{claim, json, list, source};
use crate::reason::DenyReason;
use crate::rules::condition::Condition;
use crate::rules::{RequirementRejection, Requirements, has_scope};
use crate::validation::json::Json;
use crate::validation::provider::Provider;

/// A valid token that does not meet the requirements of its rule.
pub(in super::super) fn requirement_rejected(
    rejection: &RequirementRejection,
    requirements: &Requirements,
    provider: &Provider,
    claims: &Json,
) -> Refused {
    let refused = |reason| Refused::new(StepName::Require, reason).hint(Hint::Requirement(rejection.clone()));
    let denied = || refused(DenyReason::RuleDenied);
    let condition = || source(requirements.condition.as_ref().map_or("", Condition::source));
    match rejection {
        RequirementRejection::Scope => {
            let granted = ["scope", "scp"]
                .into_iter()
                .filter_map(|name| claims.member(name).map(|value| claim(name, Some(value))));
            let granted: Vec<String> = granted.collect();
            let found = if granted.is_empty() { "no scope".to_owned() } else { granted.join(", ") };
            let missing = requirements.scopes.iter().filter(|scope| !has_scope(claims, scope));
            refused(DenyReason::InsufficientScope).found(found).wanted(list(missing, String::clone))
        }
        RequirementRejection::Provider => denied()
            .found(format!("a token of {}", provider.name))
            .wanted(format!("one of {}", list(requirements.providers.iter(), String::clone))),
        RequirementRejection::Claim(name) => {
            let required = requirements.claims.iter().find(|required| required.claim.to_string() == *name);
            let value = required.and_then(|required| required.claim.resolve(claims));
            let any_of = required.map(|required| &*required.any_of).unwrap_or_default();
            denied().found(claim(name, value)).wanted(format!("one of {}", list(any_of.iter(), json)))
        }
        RequirementRejection::Condition => denied().found("the condition is not true").wanted(condition()),
        RequirementRejection::Undecided(_) => denied().found(rejection.to_string()).wanted(condition()),
    }
}
