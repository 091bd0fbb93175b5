//! What becomes of a decision besides its answer: it is counted and logged.

use super::Authorizer;
use super::findings::Findings;
use crate::access_request::AccessRequest;
use crate::clock;
use crate::telemetry::on_one_line;
use crate::verdict::{Decision, Verdict};

impl Authorizer {
    /// Counts each decision, and logs it: what was allowed at debug, what was not at info unless there are too many of
    /// its kind.
    pub(super) fn account(
        &self,
        door: &'static str,
        request: &AccessRequest<'_>,
        decision: &Decision,
        findings: &Findings<'_>,
    ) {
        let (verdict, reason) = (decision.verdict.as_str(), decision.verdict.reason());
        let provider = decision.provider.as_deref().unwrap_or_default();
        let took = clock::elapsed_since(super::arrived(request));
        self.metrics.decision(door, verdict, reason, provider, took);
        let reason = reason.as_str();
        let is_refusal = !matches!(decision.verdict, Verdict::Allow(_));
        if is_refusal && !self.refusals.admits(reason, provider) {
            return;
        }
        let (kid, detail) = (findings.kid.as_deref(), findings.detail.as_deref());
        let (method, host) = (shown(request.method), shown(request.host));
        let (rule, realm) = (decision.rule.as_deref(), findings.realm.as_deref());
        let decision_id = decision.decision_id.as_str();
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        match decision.verdict {
            Verdict::Allow(_) => {
                tracing::debug!(
                    door,
                    verdict,
                    reason,
                    provider,
                    realm,
                    rule,
                    method,
                    host,
                    kid,
                    decision_id,
                    took_us,
                    "decided"
                );
            }
            Verdict::Deny(_) | Verdict::Unavailable => {
                tracing::info!(
                    door,
                    verdict,
                    reason,
                    provider,
                    realm,
                    rule,
                    method,
                    host,
                    kid,
                    detail,
                    decision_id,
                    took_us,
                    "decided"
                );
            }
        }
    }
}

/// A part of a request for the log.
fn shown(bytes: &[u8]) -> String {
    on_one_line(&String::from_utf8_lossy(bytes))
}
