//! Counts and logs decisions.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use super::{Authorizer, Decided, RecentRefusal};
use crate::access_request::AccessRequest;
use crate::clock;
use crate::decision::Refused;
use crate::reason::{DenyReason, Outcome, Refusal};
use crate::telemetry::{on_one_line, path_for_log};
use crate::verdict::Verdict;

impl Authorizer {
    /// Counts a decision and logs it: an allowed request at debug, a denied one at info, within the rate limit of its
    /// kind.
    pub(super) fn record(&self, door: &'static str, request: &AccessRequest<'_>, decided: &Decided<'_>) {
        let Decided { id, decision } = decided;
        let (verdict, outcome) = (decision.verdict.as_str(), decision.verdict.reason());
        let record = &decision.record;
        let provider = record.provider().map(|provider| &*provider.name).unwrap_or_default();
        let elapsed = clock::elapsed_since(super::arrived(request));
        self.metrics.count(door, &decision.verdict, provider, elapsed);
        self.rule_metrics.count(record.rule().map_or("", |rule| &rule.name), &decision.verdict);
        self.log_untrusted(request.described_by, outcome);
        let reason = outcome.as_str();
        let took_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let is_denial = !matches!(decision.verdict, Verdict::Allow(_));
        if is_denial && self.refusals.capacity() > 0 {
            let advice = record.advice(&self.places);
            let refusal = RecentRefusal::new(door, request, decided, self.clock.now(), took_us);
            self.refusals.keep(RecentRefusal { advice, ..refusal });
        }
        let is_logged = match is_denial {
            true => self.denial_log.should_log(reason, provider),
            // The fields below are built for lines that are written, and for no other.
            false => tracing::enabled!(tracing::Level::DEBUG),
        };
        if !is_logged {
            return;
        }
        let (kid, detail) =
            (record.kid().map(|kid| on_one_line(kid.as_str())), record.refused().and_then(Refused::detail));
        let (kid, detail) = (kid.as_deref(), detail.as_deref());
        let (method, host) = (printable(request.method), printable(request.host));
        let (path, client) = (path_for_log(request.path), request.source_address.map(on_one_line));
        let client = client.as_deref();
        let (rule, realm) = (record.rule().map(|rule| rule.name.as_str()), record.realm());
        let decision_id = id.to_string();
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
                    "request allowed"
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
                    path,
                    client,
                    kid,
                    detail,
                    decision_id,
                    took_us,
                    "request denied"
                );
            }
        }
    }

    /// Logged once per configuration: the proxy is missing in the configuration, or the peer must not reach this
    /// door.
    fn log_untrusted(&self, peer: Option<IpAddr>, outcome: Outcome) {
        let is_untrusted = outcome == Outcome::Refused(Refusal::Denied(DenyReason::UntrustedProxy));
        if let Some(peer) = peer.filter(|_| is_untrusted)
            && !self.untrusted_logged.swap(true, Ordering::Relaxed)
        {
            let peer = peer.to_canonical();
            tracing::warn!(
                %peer,
                hint = self.places.with_lines(
                    "add it to trusted_proxies if it is your proxy, else block its access to this listener"
                ),
                "untrusted peer denied"
            );
        }
    }
}

/// A part of a request, for the log.
fn printable(bytes: &[u8]) -> String {
    on_one_line(&String::from_utf8_lossy(bytes))
}
