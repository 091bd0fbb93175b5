//! One caller's wait for keys that are newer than those that it has seen.
//!
//! Each turn gives the next set that there is, or says that no newer one is to come. The fetch belongs to the cache: a caller
//! that gives up gives back its place and cancels nothing.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

use super::schedule::{Caller, RefreshOutcome};
use super::waiting::Place;
use super::{KeySnapshot, ObservedKeys, Shared};
use crate::clock::Instant;
use crate::telemetry::StaleOutcome;
use crate::validation::key_set::KeySet;
use crate::validation::{Kid, StaleCause};

/// A token that failed against the set in hand, and for how long its caller can wait.
#[derive(Clone, Debug)]
pub struct StaleToken {
    /// The `kid` that it names, where it names one.
    pub kid: Option<Kid>,
    /// Why it failed.
    pub cause: StaleCause,
    /// By when its caller has to answer.
    pub deadline: Instant,
    /// What the caller holds in memory while it waits.
    pub held_bytes: usize,
}

/// What a turn of the wait brings.
#[derive(Clone, Debug)]
pub enum Newer {
    /// Another set than the last one, to be looked at.
    Keys(Arc<KeySet>),
    /// The set that was looked at last is the newest, or a forgery is the likelier guess. Final.
    No(Arc<KeySet>),
    /// Nobody can say. Final.
    Unavailable(Unavailable),
}

/// Why nobody can say what the issuer's keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unavailable {
    /// The last fetch failed, and the next one is not due yet.
    FetchFailed,
    /// What the issuer answers is older than the keys in hand.
    Older,
    /// No answer came by the deadline of the caller, or none can.
    TimedOut,
    /// As many requests wait as may.
    TooManyWait,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unavailable::FetchFailed => "the issuer's keys could not be fetched",
            Unavailable::Older => "the issuer answers with older keys than those in hand",
            Unavailable::TimedOut => "the issuer's keys did not come before the request's deadline",
            Unavailable::TooManyWait => {
                "as many requests wait for keys as refresh.max_waiters and max_waiting_bytes allow"
            }
        })
    }
}

/// One caller's wait.
pub struct KeyWait<'c> {
    shared: &'c Shared,
    token: StaleToken,
    /// How many fetches had begun when the caller arrived.
    arrival: u64,
    /// The same, until a fetch that asks for the place of the keys again is demanded.
    first_arrival: u64,
    /// The newest set that the token has been held against.
    seen: Arc<KeySnapshot>,
    /// Once it has to wait.
    waiting: Option<Waiting<'c>>,
    outcome: StaleOutcome,
}

/// What a caller takes while it waits.
struct Waiting<'c> {
    /// Subscribed before the standing is asked, so that no end of a fetch is missed in between.
    finished: watch::Receiver<()>,
    _place: Place<'c>,
    _counted: Counted<'c>,
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

    /// The next set that there is, by the token's deadline at the latest. `cause` is why the token failed against the last one.
    pub async fn next(&mut self, cause: StaleCause) -> Newer {
        if let Some(keys) = self.if_newer() {
            return Newer::Keys(keys);
        }
        if !self.shared.refreshable {
            return self.no_newer();
        }
        let Some(mut waiting) = self.waiting.take().or_else(|| self.take_place()) else {
            self.shared.context.metrics.waiter_rejected(&self.shared.provider);
            return self.unavailable(Unavailable::TooManyWait);
        };
        loop {
            if let Some(ended) = self.join_or_demand(cause) {
                self.waiting = Some(waiting);
                return ended;
            }
            // Each turn ends with a fetch; the one that began after the arrival is the last.
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

    /// Joins the fetch that is under way, or demands one; `None` where there is one to wait for.
    fn join_or_demand(&mut self, cause: StaleCause) -> Option<Newer> {
        let shared = self.shared;
        loop {
            let caller = Caller { arrival: self.arrival, cause, deadline: self.token.deadline };
            let Some(standing) = shared.join_or_demand(caller, self.token.kid.as_ref(), &self.seen) else {
                match self.if_newer() {
                    Some(keys) => return Some(Newer::Keys(keys)),
                    None => continue,
                }
            };
            return match standing {
                RefreshOutcome::Fresh if self.place_may_have_moved(cause) => {
                    self.arrival = shared.started.load(Ordering::Acquire);
                    continue;
                }
                RefreshOutcome::Fresh => Some(self.if_newer().map_or_else(|| self.no_newer(), Newer::Keys)),
                // What the issuer has now nobody knows; but a key that it has withdrawn is no news.
                RefreshOutcome::Older if self.was_withdrawn() => Some(self.no_newer()),
                RefreshOutcome::Older => Some(self.unavailable(Unavailable::Older)),
                RefreshOutcome::Failed => Some(self.unavailable(Unavailable::FetchFailed)),
                RefreshOutcome::OutOfReach => {
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
                RefreshOutcome::UnderWay => None,
            };
        }
    }

    /// A key of its name came from a remembered place, and it is another key: the place may have moved, which a
    /// bad signature finds out. Once: the fetch that it demands asks for the place.
    fn place_may_have_moved(&self, cause: StaleCause) -> bool {
        self.token.cause == StaleCause::UnknownKid
            && cause == StaleCause::BadSignature
            && self.arrival == self.first_arrival
            && self.shared.state().place_remembered > self.arrival
    }

    fn was_withdrawn(&self) -> bool {
        self.token.kid.as_ref().is_some_and(|kid| self.shared.was_withdrawn(kid))
    }

    /// The set in hand, if it is another one than was seen last.
    fn if_newer(&mut self) -> Option<Arc<KeySet>> {
        let current = self.shared.snapshot.load_full();
        if Arc::ptr_eq(&current, &self.seen) {
            return None;
        }
        self.seen = current;
        Some(self.seen.keys_at(self.shared.now()))
    }

    fn take_place(&self) -> Option<Waiting<'c>> {
        let shared = self.shared;
        let place = shared.budget.waiting().place(self.token.held_bytes, &shared.policy)?;
        let counted = Counted::one(&shared.waiters);
        Some(Waiting { finished: shared.finished.subscribe(), _place: place, _counted: counted })
    }

    fn no_newer(&self) -> Newer {
        Newer::No(self.seen.keys_at(self.shared.now()))
    }

    fn unavailable(&mut self, why: Unavailable) -> Newer {
        self.outcome = match why {
            Unavailable::FetchFailed | Unavailable::Older => StaleOutcome::FetchFailed,
            Unavailable::TimedOut | Unavailable::TooManyWait => StaleOutcome::TimedOut,
        };
        Newer::Unavailable(why)
    }

    /// Ends the wait of a token that a newer key verified, and counts it.
    pub fn verified(self) {
        self.count(StaleOutcome::Rescued);
    }

    /// Ends the wait of a token that was refused, and counts it.
    pub fn refused(self) {
        self.count(self.outcome);
    }

    fn count(&self, outcome: StaleOutcome) {
        self.shared.context.metrics.stale_token(&self.shared.provider, self.token.cause, outcome);
    }
}

/// One more that waits for this set, for the gauge; one less when dropped.
struct Counted<'c>(&'c AtomicUsize);

impl<'c> Counted<'c> {
    fn one(waiters: &'c AtomicUsize) -> Self {
        waiters.fetch_add(1, Ordering::AcqRel);
        Self(waiters)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
