//! A request's wait for newer keys than those it has observed.
//!
//! Each step returns the next set, or that no newer one is available. The fetch belongs to the cache: dropping a wait
//! releases its permit and cancels nothing.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

use super::schedule::{Caller, RefreshOutcome};
use super::waiting::WaitPermit;
use super::{KeySnapshot, ObservedKeys, Shared};
use crate::clock::Instant;
use crate::telemetry::StaleOutcome;
use crate::validation::key_set::KeySet;
use crate::validation::{Kid, StaleCause};

/// A token that failed against the current set, and how long its request can wait.
#[derive(Clone, Debug)]
pub struct StaleToken {
    /// Its `kid`, if any.
    pub kid: Option<Kid>,
    /// Why verification failed.
    pub cause: StaleCause,
    /// The request's deadline.
    pub deadline: Instant,
    /// The memory that the request holds while it waits.
    pub held_bytes: usize,
}

/// A step of a wait.
#[derive(Clone, Debug)]
pub enum Newer {
    /// A newer set, to verify against.
    Keys(Arc<KeySet>),
    /// The last set is the newest, or a forgery is more likely. Final.
    No(Arc<KeySet>),
    /// Newer keys cannot be obtained. Final.
    Unavailable(Unavailable),
}

/// Why newer keys cannot be obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unavailable {
    /// The last fetch failed, and the next one is not due yet.
    FetchFailed,
    /// The issuer's answer is older than the current keys.
    Older,
    /// No fetch ended before the request's deadline, or none can.
    TimedOut,
    /// The limit of waiting requests is reached.
    TooManyWaiters,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unavailable::FetchFailed => "the issuer's keys could not be fetched",
            Unavailable::Older => "the issuer's answer is older than the current keys",
            Unavailable::TimedOut => "the issuer's keys were not received before the request's deadline",
            Unavailable::TooManyWaiters => {
                "the limit of requests that wait for keys is reached (refresh.max_waiters, max_waiting_bytes)"
            }
        })
    }
}

/// The wait of one request.
pub struct KeyWait<'c> {
    shared: &'c Shared,
    token: StaleToken,
    /// How many fetches had started when the request arrived.
    arrival: u64,
    /// The same, unchanged when a fetch that asks the discovery document again is demanded.
    first_arrival: u64,
    /// The last set that the token was verified against.
    seen: Arc<KeySnapshot>,
    /// Set once it has to wait.
    waiting: Option<Waiting<'c>>,
    outcome: StaleOutcome,
}

/// What a request holds while it waits.
struct Waiting<'c> {
    /// Subscribed before the schedule is consulted, so that no end of a fetch is missed in between.
    finished: watch::Receiver<()>,
    _permit: WaitPermit<'c>,
    _gauge: WaiterGauge<'c>,
}

impl<'c> KeyWait<'c> {
    pub(super) fn new(shared: &'c Shared, observed: ObservedKeys, token: StaleToken) -> Self {
        let ObservedKeys { snapshot, arrival, .. } = observed;
        Self {
            shared,
            token,
            arrival,
            first_arrival: arrival,
            seen: snapshot,
            waiting: None,
            outcome: StaleOutcome::StillStale,
        }
    }

    /// The next set, by the token's deadline. `cause` is why the token failed against the last one.
    pub async fn next(&mut self, cause: StaleCause) -> Newer {
        if let Some(keys) = self.if_newer() {
            return Newer::Keys(keys);
        }
        if !self.shared.refreshable {
            return self.no_newer();
        }
        let Some(mut waiting) = self.waiting.take().or_else(|| self.acquire()) else {
            self.shared.context.metrics.waiter_rejected(&self.shared.provider);
            return self.unavailable(Unavailable::TooManyWaiters);
        };
        loop {
            if let Some(end) = self.join_or_demand(cause) {
                self.waiting = Some(waiting);
                return end;
            }
            // Each iteration ends with a fetch; the first one that started after the arrival is the last.
            let clock = &self.shared.context.clock;
            match clock.until(self.token.deadline, waiting.finished.changed()).await {
                Some(Ok(())) => {}
                Some(Err(_)) | None => return self.unavailable(Unavailable::TimedOut),
            }
            if let Some(keys) = self.if_newer() {
                self.waiting = Some(waiting);
                return Newer::Keys(keys);
            }
        }
    }

    /// Joins the fetch in progress or demands one; `None` if there is one to wait for.
    fn join_or_demand(&mut self, cause: StaleCause) -> Option<Newer> {
        let shared = self.shared;
        loop {
            let caller = Caller { arrival: self.arrival, cause, deadline: self.token.deadline };
            let Some(outcome) = shared.join_or_demand(caller, self.token.kid.as_ref(), &self.seen) else {
                match self.if_newer() {
                    Some(keys) => return Some(Newer::Keys(keys)),
                    None => continue,
                }
            };
            return match outcome {
                RefreshOutcome::Fresh if self.location_may_have_changed(cause) => {
                    self.arrival = shared.started.load(Ordering::Acquire);
                    continue;
                }
                RefreshOutcome::Fresh => Some(self.if_newer().map_or_else(|| self.no_newer(), Newer::Keys)),
                // The issuer's current keys are unknown, but a key that it has withdrawn stays withdrawn.
                RefreshOutcome::Older if self.was_withdrawn() => Some(self.no_newer()),
                RefreshOutcome::Older => Some(self.unavailable(Unavailable::Older)),
                RefreshOutcome::Failed => Some(self.unavailable(Unavailable::FetchFailed)),
                RefreshOutcome::TooLate => {
                    shared.wake.notify_one();
                    Some(match cause {
                        StaleCause::BadSignature => self.no_newer(),
                        StaleCause::UnknownKid => self.unavailable(Unavailable::TimedOut),
                    })
                }
                RefreshOutcome::Demanded => {
                    shared.wake.notify_one();
                    None
                }
                RefreshOutcome::InProgress => None,
            };
        }
    }

    /// A key with this `kid` came from the remembered `jwks_uri` and has other material: the `jwks_uri` may have
    /// changed, which a bad signature reveals. Once per wait: the fetch that it demands asks the discovery document.
    fn location_may_have_changed(&self, cause: StaleCause) -> bool {
        self.token.cause == StaleCause::UnknownKid
            && cause == StaleCause::BadSignature
            && self.arrival == self.first_arrival
            && self.shared.state().location_remembered > self.arrival
    }

    fn was_withdrawn(&self) -> bool {
        self.token.kid.as_ref().is_some_and(|kid| self.shared.was_withdrawn(kid))
    }

    /// The current set, if it is newer than the last one seen.
    fn if_newer(&mut self) -> Option<Arc<KeySet>> {
        let current = self.shared.snapshot.load_full();
        if Arc::ptr_eq(&current, &self.seen) {
            return None;
        }
        self.seen = current;
        Some(self.seen.keys_at(self.shared.now()))
    }

    fn acquire(&self) -> Option<Waiting<'c>> {
        let shared = self.shared;
        let permit = shared.budget.waiting().acquire(self.token.held_bytes, &shared.policy)?;
        let gauge = WaiterGauge::increment(&shared.waiters);
        Some(Waiting { finished: shared.finished.subscribe(), _permit: permit, _gauge: gauge })
    }

    fn no_newer(&self) -> Newer {
        Newer::No(self.seen.keys_at(self.shared.now()))
    }

    fn unavailable(&mut self, reason: Unavailable) -> Newer {
        self.outcome = match reason {
            Unavailable::FetchFailed | Unavailable::Older => StaleOutcome::FetchFailed,
            Unavailable::TimedOut | Unavailable::TooManyWaiters => StaleOutcome::TimedOut,
        };
        Newer::Unavailable(reason)
    }

    /// Ends the wait of a token that a newer key verified, and counts it.
    pub fn verified(self) {
        self.count(StaleOutcome::Rescued);
    }

    /// Ends the wait of a token that was denied, and counts it.
    pub fn refused(self) {
        self.count(self.outcome);
    }

    fn count(&self, outcome: StaleOutcome) {
        self.shared.context.metrics.stale_token(&self.shared.provider, self.token.cause, outcome);
    }
}

/// Counts one waiting request in the gauge until dropped.
struct WaiterGauge<'c>(&'c AtomicUsize);

impl<'c> WaiterGauge<'c> {
    fn increment(waiters: &'c AtomicUsize) -> Self {
        waiters.fetch_add(1, Ordering::AcqRel);
        Self(waiters)
    }
}

impl Drop for WaiterGauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
