//! When the next fetch of a provider's keys starts, and what it is for: the spacing of the refresh
//! rule as a state machine that is told the time.
//!
//! Pure: no IO, no clock, no randomness. One fetch at a time is under way.

use std::time::Duration;

use crate::clock::Instant;
use crate::config::RefreshPolicy;
use crate::validation::StaleCause;

/// Why a fetch was started; the `trigger` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// The first fetch of a cache, and those after it until one succeeds.
    Startup,
    /// It was time.
    Scheduled,
    /// A token failed against the set in hand.
    Forced(StaleCause),
}

impl Trigger {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Trigger::Startup => "startup",
            Trigger::Scheduled => "scheduled",
            Trigger::Forced(StaleCause::UnknownKid) => "unknown_kid",
            Trigger::Forced(StaleCause::BadSignature) => "bad_signature",
        }
    }
}

/// Where a stale caller stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A fetch that began after the caller arrived has succeeded: what is in hand now is the answer.
    Fresh,
    /// A fetch that began after the caller arrived has failed, or one failed so recently that another
    /// is not worth the try.
    Failed,
    /// A fetch is under way. It counts for the caller, but where it began before the caller arrived it
    /// may bring the old set once more.
    UnderWay,
    /// A fetch will start at its slot, and that is after the caller has to answer; the driver has to be
    /// woken.
    OutOfReach,
    /// A fetch will start at its slot; the driver has to be woken.
    Demanded,
}

/// How a fetch ended, as far as the next one depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Keys came, or the word that they are the same as before.
    Succeeded {
        /// How long the issuer says that they stay fresh (RFC 9111 §4.2.1), where it says so.
        fresh_for: Option<Duration>,
    },
    /// No keys came.
    Failed {
        /// How long the issuer wants to be left alone (RFC 9110 §10.2.3), where it says so.
        retry_after: Option<Duration>,
    },
}

/// The state of a provider's fetches. Fetches are numbered from 1 in the order of their start.
#[derive(Debug)]
pub struct Schedule {
    policy: RefreshPolicy,
    started: u64,
    finished: u64,
    succeeded: u64,
    /// What the last fetch was started for.
    trigger: Trigger,
    next_scheduled: Instant,
    /// The source changed since the last fetch began.
    hurried: bool,
    failures_in_a_row: u32,
    last_failure: Option<Instant>,
    unknown_kid: Lane,
    bad_signature: Lane,
}

/// The budget of one cause: it counts from the last fetch that this cause forced.
#[derive(Debug, Default)]
struct Lane {
    /// When the next one may start; at any time where there has been none.
    free_at: Option<Instant>,
    demanded: bool,
}

impl Schedule {
    /// The first fetch is due at once.
    pub fn new(policy: RefreshPolicy, now: Instant) -> Self {
        Self {
            policy,
            started: 0,
            finished: 0,
            succeeded: 0,
            trigger: Trigger::Startup,
            next_scheduled: now,
            hurried: false,
            failures_in_a_row: 0,
            last_failure: None,
            unknown_kid: Lane::default(),
            bad_signature: Lane::default(),
        }
    }

    /// The caller arrived when `arrival` fetches had started and is stale because of `cause`. Where
    /// nothing is under way, it demands the next fetch; by `deadline` it has to answer.
    pub fn stand(&mut self, arrival: u64, cause: StaleCause, now: Instant, deadline: Instant) -> Standing {
        if self.succeeded > arrival {
            return Standing::Fresh;
        }
        if self.finished > arrival {
            return Standing::Failed;
        }
        if self.started > self.finished {
            return Standing::UnderWay;
        }
        let failed_just_now =
            self.last_failure.is_some_and(|failure| now < failure + self.policy.min_spacing);
        if cause == StaleCause::UnknownKid && failed_just_now {
            return Standing::Failed;
        }
        // Demanded also for a caller that cannot wait for it: the next one finds the keys there.
        self.lane(cause).demanded = true;
        // Whatever starts a fetch, it serves everybody who waits.
        let start = self.slot(cause, now).min(self.next_scheduled);
        if start > deadline { Standing::OutOfReach } else { Standing::Demanded }
    }

    /// Whether a fetch has ended, well or badly.
    pub fn has_ended_one(&self) -> bool {
        self.finished > 0
    }

    /// When the driver has to look again.
    pub fn next_start(&self, now: Instant) -> Instant {
        [StaleCause::UnknownKid, StaleCause::BadSignature]
            .into_iter()
            .filter(|cause| self.lane_ref(*cause).demanded)
            .map(|cause| self.slot(cause, now))
            .fold(self.next_scheduled, Instant::min)
    }

    /// Starts a fetch if one is due. What it serves is everybody who demanded one until now, so that
    /// demands of the other cause are met without spending that cause's budget.
    pub fn begin(&mut self, now: Instant) -> Option<Trigger> {
        let due = |cause| self.lane_ref(cause).demanded && self.slot(cause, now) <= now;
        let trigger = if due(StaleCause::UnknownKid) {
            Trigger::Forced(StaleCause::UnknownKid)
        } else if due(StaleCause::BadSignature) {
            Trigger::Forced(StaleCause::BadSignature)
        } else if self.next_scheduled <= now {
            if self.succeeded == 0 { Trigger::Startup } else { Trigger::Scheduled }
        } else {
            return None;
        };
        if let Trigger::Forced(cause) = trigger {
            self.lane(cause).free_at = Some(now + self.spacing(cause));
        }
        self.trigger = trigger;
        self.unknown_kid.demanded = false;
        self.bad_signature.demanded = false;
        self.hurried = false;
        self.started += 1;
        Some(trigger)
    }

    /// Ends the fetch under way. `jitter`, from 0 to 1, spreads the next scheduled one: over the last
    /// tenth of the time until then after a success, over the second half of the back-off after a failure.
    ///
    /// A failure that follows a success gives back what the fetch took of its cause's budget: the next
    /// may start `min_spacing` later. Those after it do not, so that an outage is not asked for more often
    /// than health.
    pub fn finish(&mut self, ending: Ending, jitter: f64, now: Instant) {
        self.finished = self.started;
        let RefreshPolicy { interval, min_spacing, .. } = self.policy;
        let jitter = jitter.clamp(0.0, 1.0);
        match ending {
            Ending::Succeeded { fresh_for } => {
                self.succeeded = self.started;
                self.failures_in_a_row = 0;
                self.last_failure = None;
                let period = fresh_for.unwrap_or(interval).min(interval);
                self.next_scheduled = now + period.mul_f64(1.0 - 0.1 * jitter).max(min_spacing);
            }
            Ending::Failed { retry_after } => {
                if let Trigger::Forced(cause) = self.trigger
                    && self.failures_in_a_row == 0
                {
                    let lane = self.lane(cause);
                    lane.free_at = lane.free_at.map(|free_at| free_at.min(now + min_spacing));
                }
                let doubled = min_spacing.saturating_mul(1 << self.failures_in_a_row.min(20));
                let back_off = doubled.min(interval).mul_f64(1.0 - 0.5 * jitter);
                self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
                self.last_failure = Some(now);
                self.next_scheduled = now + back_off.max(retry_after.unwrap_or_default().min(interval));
            }
        }
        // What changed while the fetch was under way it may have missed.
        if self.hurried {
            self.next_scheduled = now;
        }
    }

    /// The source is known to have changed: the next scheduled fetch is due.
    pub fn hurry(&mut self, now: Instant) {
        self.hurried = true;
        self.next_scheduled = self.next_scheduled.min(now);
    }

    /// How many fetches have started.
    pub fn started(&self) -> u64 {
        self.started
    }

    /// When the next scheduled fetch is due.
    pub fn next_scheduled(&self) -> Instant {
        self.next_scheduled
    }

    /// The earliest start of a fetch that `cause` forces.
    fn slot(&self, cause: StaleCause, now: Instant) -> Instant {
        self.lane_ref(cause).free_at.map_or(now, |free_at| now.max(free_at))
    }

    fn spacing(&self, cause: StaleCause) -> Duration {
        match cause {
            StaleCause::UnknownKid => self.policy.min_spacing,
            StaleCause::BadSignature => self.policy.min_spacing_bad_signature,
        }
    }

    fn lane(&mut self, cause: StaleCause) -> &mut Lane {
        match cause {
            StaleCause::UnknownKid => &mut self.unknown_kid,
            StaleCause::BadSignature => &mut self.bad_signature,
        }
    }

    fn lane_ref(&self, cause: StaleCause) -> &Lane {
        match cause {
            StaleCause::UnknownKid => &self.unknown_kid,
            StaleCause::BadSignature => &self.bad_signature,
        }
    }
}
