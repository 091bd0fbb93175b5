//! What becomes of a decision besides its answer: it is counted and logged.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use super::{Authorizer, Decided};
use crate::access_request::AccessRequest;
use crate::clock;
use crate::decision::Refused;
use crate::reason::{DenyReason, Outcome, Refusal};
use crate::telemetry::on_one_line;
use crate::verdict::Verdict;

impl Authorizer {
    /// Counts each decision, and logs it: what was allowed at debug, what was not at info unless there are too many of
    /// its kind.
    pub(super) fn account(&self, door: &'static str, request: &AccessRequest<'_>, decided: &Decided<'_>) {
        let Decided { id, decision } = decided;
        let (verdict, outcome) = (decision.verdict.as_str(), decision.verdict.reason());
        let record = &decision.record;
        let provider = record.provider().map(|provider| &*provider.name).unwrap_or_default();
        let took = clock::elapsed_since(super::arrived(request));
        self.metrics.decision(door, verdict, outcome, provider, took);
        self.tell_untrusted(request.described_by, outcome);
        let reason = outcome.as_str();
        let is_refusal = !matches!(decision.verdict, Verdict::Allow(_));
        if is_refusal && !self.refusals.admits(reason, provider) {
            return;
        }
        let (kid, detail) =
            (record.kid().map(|kid| on_one_line(kid.as_str())), record.refused().and_then(Refused::detail));
        let (kid, detail) = (kid.as_deref(), detail.as_deref());
        let (method, host) = (shown(request.method), shown(request.host));
        let (rule, realm) = (record.rule().map(|rule| rule.name.as_str()), record.realm());
        let decision_id = id.to_string();
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
            Verdict::Deny(_) | Verdict::Unavailable(_) => {
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

    /// Aloud once: it is a proxy that was forgotten in the configuration, or somebody who should not get here.
    fn tell_untrusted(&self, peer: Option<IpAddr>, outcome: Outcome) {
        let is_untrusted = outcome == Outcome::Refused(Refusal::Denied(DenyReason::UntrustedProxy));
        if let Some(peer) = peer.filter(|_| is_untrusted)
            && !self.untrusted_told.swap(true, Ordering::Relaxed)
        {
            let peer = peer.to_canonical();
            tracing::warn!(
                %peer,
                "who asks is not in trusted_proxies and is refused: add it there if it is your proxy, and keep \
                 everybody else away from this door"
            );
        }
    }
}

/// A part of a request for the log.
fn shown(bytes: &[u8]) -> String {
    on_one_line(&String::from_utf8_lossy(bytes))
}
