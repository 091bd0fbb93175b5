//! The latest refusals, to be found by the decision's id: a user reports the id, and the operator sees what was found
//! and wanted.
//!
//! The memory is bounded by the number of entries and by the length of each text. An entry has what the log line has,
//! and the steps; it never has a token, a signature or a header's value. An allowed request costs nothing here; a
//! refused one waits at most for another to be moved in or for one search.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Decided, DecisionId};
use crate::access_request::AccessRequest;
use crate::decision::{Refused, Step};
use crate::telemetry::{on_one_line, path_for_log};
use crate::validation::UnixTime;

/// The most refusals that can be kept: each takes a few hundred bytes, and at most about 16 KiB.
pub const MAX_REFUSALS: u32 = 10_000;

/// A refused request.
#[derive(Clone, Debug, PartialEq)]
pub struct RecentRefusal {
    /// The id in the log and in the proxy's metadata.
    pub id: DecisionId,
    /// When it was refused.
    pub time: UnixTime,
    /// How long the decision took, waiting for keys included, in microseconds.
    pub took_us: u64,
    /// The label of the door.
    pub door: &'static str,
    /// `deny` or `unavailable`.
    pub verdict: &'static str,
    /// The reason.
    pub reason: &'static str,
    /// The provider of the token's issuer, if one matched.
    pub provider: Option<String>,
    /// The realm, for a provider with several.
    pub realm: Option<String>,
    /// The rule, if one matched.
    pub rule: Option<String>,
    /// The method.
    pub method: String,
    /// The host.
    pub host: String,
    /// The path without its query.
    pub path: String,
    /// The address of the client, as the proxy reports it.
    pub client: Option<String>,
    /// The `kid` of the token's header, which is not verified.
    pub kid: Option<String>,
    /// What was found and what was wanted.
    pub detail: Option<String>,
    /// What an operator can do about it.
    pub advice: Option<String>,
    /// The steps in their order; the last one refused.
    pub steps: Vec<RecentStep>,
}

/// A step of a refused decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecentStep {
    /// Its name.
    pub step: &'static str,
    /// The outcome, as a word or a reason.
    pub outcome: String,
    /// What was found and what was wanted; may be empty.
    pub detail: String,
}

impl RecentRefusal {
    pub(super) fn new(
        door: &'static str,
        request: &AccessRequest<'_>,
        decided: &Decided<'_>,
        time: UnixTime,
        took_us: u64,
    ) -> Self {
        let Decided { id, decision } = decided;
        let record = &decision.record;
        let text = |bytes: &[u8]| on_one_line(&String::from_utf8_lossy(bytes));
        let step = |step: Step<'_>| RecentStep {
            step: step.name.as_str(),
            outcome: on_one_line(&step.outcome),
            detail: step.detail(),
        };
        Self {
            id: *id,
            time,
            took_us,
            door,
            verdict: decision.verdict.as_str(),
            reason: decision.verdict.reason().as_str(),
            provider: record.provider().map(|provider| provider.name.clone()),
            realm: record.realm().map(on_one_line),
            rule: record.rule().map(|rule| rule.name.clone()),
            method: text(request.method),
            host: text(request.host),
            path: path_for_log(request.path),
            client: request.source_address.map(on_one_line),
            kid: record.kid().map(|kid| on_one_line(kid.as_str())),
            detail: record.refused().and_then(Refused::detail),
            advice: None,
            steps: record.steps().map(step).collect(),
        }
    }
}

/// The latest refusals of a service; a reload keeps them.
#[derive(Default)]
pub struct RecentRefusals {
    /// The maximum number of entries; 0 keeps none.
    capacity: AtomicUsize,
    /// The oldest first.
    entries: Mutex<VecDeque<Arc<RecentRefusal>>>,
}

impl RecentRefusals {
    /// The maximum number of entries; 0 means that none is kept.
    pub fn capacity(&self) -> usize {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Changes the maximum number of entries. The oldest ones beyond it are dropped.
    pub fn set_capacity(&self, capacity: usize) {
        self.capacity.store(capacity, Ordering::Relaxed);
        let mut entries = self.entries();
        let beyond = entries.len().saturating_sub(capacity);
        let dropped: Vec<_> = entries.drain(..beyond).collect();
        entries.shrink_to(capacity);
        drop(entries);
        drop(dropped);
    }

    pub(super) fn keep(&self, refusal: RecentRefusal) {
        let refusal = Arc::new(refusal);
        let mut entries = self.entries();
        let beyond = (entries.len() + 1).saturating_sub(self.capacity());
        let dropped: Vec<_> = (0..beyond).map_while(|_| entries.pop_front()).collect();
        if self.capacity() > 0 {
            entries.push_back(refusal);
        }
        drop(entries);
        // Freed without the lock.
        drop(dropped);
    }

    /// The refusal with this id.
    pub fn find(&self, id: &str) -> Option<Arc<RecentRefusal>> {
        let id: DecisionId = DecisionId::parse(id)?;
        // Most likely a recent one.
        self.entries().iter().rev().find(|refusal| refusal.id == id).map(Arc::clone)
    }

    /// No code that holds the lock can panic midway, so a poisoned lock is still sound.
    fn entries(&self) -> MutexGuard<'_, VecDeque<Arc<RecentRefusal>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for RecentRefusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecentRefusals").field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(number: u64) -> RecentRefusal {
        RecentRefusal {
            id: DecisionId { authorizer: 1, number },
            time: UnixTime::from_secs(0),
            took_us: 0,
            door: "tower",
            verdict: "deny",
            reason: "expired",
            provider: None,
            realm: None,
            rule: None,
            method: String::new(),
            host: String::new(),
            path: String::new(),
            client: None,
            kid: None,
            detail: None,
            advice: None,
            steps: Vec::new(),
        }
    }

    fn found(refusals: &RecentRefusals) -> Vec<u64> {
        let id = |number: &u64| DecisionId { authorizer: 1, number: *number }.to_string();
        (1..=9).filter(|number| refusals.find(&id(number)).is_some()).collect()
    }

    #[test]
    fn the_latest_refusals_are_kept_and_the_capacity_may_change() {
        let refusals = RecentRefusals::default();
        refusals.keep(refusal(1));
        assert_eq!(found(&refusals), [0; 0], "off");
        refusals.set_capacity(3);
        for number in 2..=6 {
            refusals.keep(refusal(number));
        }
        assert_eq!(found(&refusals), [4, 5, 6]);
        refusals.set_capacity(2);
        assert_eq!(found(&refusals), [5, 6]);
        refusals.keep(refusal(7));
        assert_eq!(found(&refusals), [6, 7]);
        refusals.set_capacity(0);
        refusals.keep(refusal(8));
        assert_eq!(found(&refusals), [0; 0]);
    }

    #[test]
    fn an_id_is_found_only_as_it_is_written() {
        let refusals = RecentRefusals::default();
        refusals.set_capacity(1);
        refusals.keep(refusal(0x1f));
        assert!(refusals.find("0000000000000001-1f").is_some());
        for other in
            ["", "-", "1-1f", "0000000000000001-1F", "0000000000000001-01f", "0000000000000001-+1f", "é"]
        {
            assert!(refusals.find(other).is_none(), "{other}");
        }
    }
}
