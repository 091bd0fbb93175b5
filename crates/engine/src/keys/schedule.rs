//! When the next fetch of a provider's keys starts, and why: the spacing of the refresh rule as a state machine. The
//! time is an argument.
//!
//! Pure: no IO, no clock, no randomness. Fetches normally run one at a time. If a caller can wait neither for the
//! fetch in progress nor for the one after it, the next fetch starts concurrently, as soon as the budget allows it
//! and no earlier than the caller needs it. Results are ordered by the start of their fetches, not by their end.

use std::time::Duration;

use super::policy::RefreshPolicy;
use crate::clock::Instant;
use crate::telemetry::Trigger;
use crate::validation::StaleCause;

use super::budget::{Accounts, Member};

/// Concurrent fetches of one provider.
const MAX_CONCURRENT: usize = 4;

/// A fetch is expected to take a quarter of the last one's duration longer, and this much.
const DURATION_SLACK: Duration = Duration::from_millis(10);

const CAUSES: [StaleCause; 2] = [StaleCause::UnknownKid, StaleCause::BadSignature];

/// A caller whose token is stale.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// How many fetches had started when it observed the set that its token failed against.
    pub arrival: u64,
    /// Why the token is stale.
    pub cause: StaleCause,
    /// When it has to answer.
    pub deadline: Instant,
}

/// The state of a refresh for a stale caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefreshOutcome {
    /// A fetch that started after the caller arrived has returned the issuer's answer, which is the current set now.
    Fresh,
    /// A fetch that started after the caller arrived has failed, or one failed so recently that another is not
    /// worthwhile.
    Failed,
    /// A fetch that started after the caller arrived has returned an answer older than the current set.
    Older,
    /// A fetch is in progress. If it started before the caller arrived, it may return the old set again.
    InProgress,
    /// A fetch will start at its slot, which is after the caller's deadline; the driver has to be woken.
    TooLate,
    /// A fetch will start at its slot; the driver has to be woken.
    Demanded,
}

/// The result of a fetch, as far as the next one depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchEnd {
    /// It returned keys, changed or not.
    Succeeded {
        /// How long the issuer says that they stay fresh (RFC 9111 §4.2.1), if it does.
        fresh_for: Option<Duration>,
        /// Whether a cache may have stored the answer.
        source: AnswerSource,
    },
    /// The answer was older than the current set: the issuer's current keys are unknown.
    Older,
    /// It returned no keys.
    Failed {
        /// `Retry-After` (RFC 9110 §10.2.3), if present.
        retry_after: Option<Duration>,
    },
}

/// A fetch that has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartedFetch {
    /// Fetches are numbered from 1 in the order of their start.
    pub number: u64,
    /// What started it.
    pub trigger: Trigger,
    /// How it is requested. Unless it is forced, it serves a token only if its answer comes from no cache: otherwise
    /// it may be the set that the token failed against.
    pub mode: FetchMode,
}

/// How a fetch is requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchMode {
    /// Forced by a token: without validators and caches.
    Forced,
    /// Scheduled while tokens wait for it, which may have failed against a set that validators would confirm: without
    /// validators. Caches are allowed, since a scheduled fetch must succeed even if only caches answer for the
    /// issuer.
    Unconditional,
    /// Scheduled: with validators.
    Conditional,
}

/// The source of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerSource {
    /// The issuer, as far as the answer shows.
    Issuer,
    /// A cache.
    Cache,
}

/// The state of a provider's fetches, which are numbered from 1 in the order of their start.
#[derive(Debug)]
pub struct Schedule {
    policy: RefreshPolicy,
    member: Member,
    started: u64,
    /// The latest fetch, by its start, that has ended.
    ended: u64,
    /// The latest fetch that has succeeded.
    succeeded: u64,
    /// The latest fetch that was answered by the issuer.
    answered: u64,
    /// The latest forced fetch that has failed.
    failed: u64,
    /// The latest fetch with an older answer.
    older: u64,
    in_progress: Vec<InProgress>,
    next_scheduled: Instant,
    /// The source changed since the last fetch started.
    changed: bool,
    failures_in_a_row: u32,
    last_failure: Option<Instant>,
    /// How long the last successful fetch took.
    last_duration: Option<Duration>,
    unknown_kid: Demand,
    bad_signature: Demand,
}

#[derive(Clone, Copy, Debug)]
struct InProgress {
    started_fetch: StartedFetch,
    at: Instant,
}

/// What callers of one cause demand.
#[derive(Clone, Copy, Debug, Default)]
struct Demand {
    /// A fetch, once none is in progress.
    queued: bool,
    /// A concurrent fetch, from this time on.
    concurrent_from: Option<Instant>,
}

impl Schedule {
    /// The first fetch is due at once. Forced fetches are charged to this member of a budget.
    pub fn new(policy: RefreshPolicy, member: Member, now: Instant) -> Self {
        Self {
            policy,
            member,
            started: 0,
            ended: 0,
            succeeded: 0,
            answered: 0,
            failed: 0,
            older: 0,
            in_progress: Vec::new(),
            next_scheduled: now,
            changed: false,
            failures_in_a_row: 0,
            last_failure: None,
            last_duration: None,
            unknown_kid: Demand::default(),
            bad_signature: Demand::default(),
        }
    }

    /// The state of the refresh for a caller. Demands a fetch if none serves it.
    pub fn join_or_demand(
        &mut self,
        accounts: &mut Accounts,
        caller: Caller,
        now: Instant,
    ) -> RefreshOutcome {
        let Caller { arrival, cause, deadline } = caller;
        if self.answered > arrival {
            return RefreshOutcome::Fresh;
        }
        let serves_caller = |fetch: &InProgress| {
            fetch.started_fetch.number > arrival && fetch.started_fetch.mode == FetchMode::Forced
        };
        if self.in_progress.iter().any(serves_caller) {
            return RefreshOutcome::InProgress;
        }
        if self.older > arrival {
            return RefreshOutcome::Older;
        }
        if self.failed > arrival {
            return RefreshOutcome::Failed;
        }
        if !self.in_progress.is_empty() {
            return self.join_or_demand_concurrent(accounts, caller, now);
        }
        let failed_just_now =
            self.last_failure.is_some_and(|failure| now < failure + self.policy.min_spacing);
        if cause == StaleCause::UnknownKid && failed_just_now {
            return RefreshOutcome::Failed;
        }
        // Demanded even if the caller cannot wait for it: later callers find the keys. But it is denied, and gets no
        // priority over callers that wait.
        self.demand(cause).queued = true;
        let earliest_start = accounts.earliest_start_if_awaited(cause, self.member, self.spacing(cause), now);
        accounts.enqueue(cause, self.member, (earliest_start <= deadline).then_some(deadline));
        // A fetch serves every waiting caller, whatever starts it.
        let start = self.next_start(accounts, now);
        if start.is_none_or(|start| start > deadline) {
            RefreshOutcome::TooLate
        } else {
            RefreshOutcome::Demanded
        }
    }

    /// All fetches in progress started before the caller arrived or are not forced. The caller waits for them; if the
    /// fetch after them would end too late, it starts concurrently while it can still serve the caller.
    fn join_or_demand_concurrent(
        &mut self,
        accounts: &mut Accounts,
        caller: Caller,
        now: Instant,
    ) -> RefreshOutcome {
        let Caller { cause, deadline, .. } = caller;
        // Before the first answer the duration is unknown, and any answer is newer.
        let Some(last_duration) = self.last_duration else { return RefreshOutcome::InProgress };
        let expected = last_duration + last_duration / 4 + DURATION_SLACK;
        let spacing = self.spacing(cause);
        let Some(latest) = deadline.checked_sub(expected).filter(|latest| *latest >= now) else {
            return RefreshOutcome::InProgress;
        };
        if self.in_progress.len() >= MAX_CONCURRENT {
            return RefreshOutcome::InProgress;
        }
        if accounts.earliest_start_if_awaited(cause, self.member, spacing, now) > latest {
            return RefreshOutcome::InProgress;
        }
        // It is queued then: earlier it would block those behind it.
        let demand = self.demand(cause);
        demand.concurrent_from = Some(demand.concurrent_from.map_or(latest, |sooner| sooner.min(latest)));
        RefreshOutcome::Demanded
    }

    /// Whether a fetch has ended, successfully or not.
    pub fn any_ended(&self) -> bool {
        self.ended > 0
    }

    /// When the next fetch may start; `None` until a fetch ends if too many are in progress or none is due.
    pub fn next_start(&self, accounts: &Accounts, now: Instant) -> Option<Instant> {
        if self.in_progress.len() >= MAX_CONCURRENT {
            return None;
        }
        let earliest_start = |cause| accounts.earliest_start(cause, self.member, self.spacing(cause), now);
        // A concurrent fetch is queued for its caller, who waits, when it is due.
        let awaited_start =
            |cause| accounts.earliest_start_if_awaited(cause, self.member, self.spacing(cause), now);
        let forced = CAUSES.into_iter().filter_map(|cause| {
            let Demand { queued, concurrent_from } = *self.demand_ref(cause);
            if self.in_progress.is_empty() {
                queued.then(|| earliest_start(cause))
            } else {
                concurrent_from.map(|from| awaited_start(cause).max(from))
            }
        });
        let scheduled = self.in_progress.is_empty().then_some(self.next_scheduled);
        forced.chain(scheduled).min()
    }

    /// Starts a fetch if one is due. It serves every caller that has demanded one, so that demands of the other cause
    /// are met without charging its budget.
    pub fn start(&mut self, accounts: &mut Accounts, now: Instant) -> Option<StartedFetch> {
        if self.in_progress.len() >= MAX_CONCURRENT {
            return None;
        }
        let idle = self.in_progress.is_empty();
        // The first fetch is not charged: opening a realm leaves the budget to open ones.
        let is_first = self.started == 0;
        let forced = CAUSES.into_iter().filter(|_| !is_first).find(|cause| {
            let Demand { queued, concurrent_from } = *self.demand_ref(*cause);
            let due = if idle { queued } else { concurrent_from.is_some_and(|from| from <= now) };
            if due && !idle {
                accounts.enqueue(*cause, self.member, Some(now + self.policy.wait));
            }
            due && accounts.take_slot(*cause, self.member, self.spacing(*cause), now)
        });
        let trigger = match forced {
            Some(cause) => Trigger::Forced(cause),
            None if !idle || self.next_scheduled > now => return None,
            None if self.succeeded == 0 => Trigger::Startup,
            None => Trigger::Scheduled,
        };
        let awaited = self.unknown_kid.queued || self.bad_signature.queued;
        let mode = match forced {
            Some(_) => FetchMode::Forced,
            None if awaited => FetchMode::Unconditional,
            None => FetchMode::Conditional,
        };
        self.unknown_kid = Demand::default();
        self.bad_signature = Demand::default();
        accounts.dequeue(self.member);
        self.changed = false;
        self.started += 1;
        let started_fetch = StartedFetch { number: self.started, trigger, mode };
        self.in_progress.push(InProgress { started_fetch, at: now });
        Some(started_fetch)
    }

    /// Ends the fetch of this number. `jitter`, from 0 to 1, spreads the next scheduled one: over the last tenth of
    /// the interval after a success, over the second half of the back-off after a failure.
    pub fn finish(&mut self, accounts: &mut Accounts, number: u64, end: FetchEnd, jitter: f64, now: Instant) {
        let ended = self.in_progress.iter().find(|fetch| fetch.started_fetch.number == number).copied();
        self.in_progress.retain(|fetch| fetch.started_fetch.number != number);
        let forced = ended.is_some_and(|fetch| fetch.started_fetch.mode == FetchMode::Forced);
        self.ended = self.ended.max(number);
        // A caller that still needs a concurrent fetch demands it again, now that one has ended.
        if self.unknown_kid.concurrent_from.take().is_some()
            | self.bad_signature.concurrent_from.take().is_some()
        {
            accounts.dequeue(self.member);
        }
        let RefreshPolicy { interval, min_spacing, .. } = self.policy;
        let jitter = jitter.clamp(0.0, 1.0);
        let after =
            |period: Duration| now + period.min(interval).mul_f64(1.0 - 0.1 * jitter).max(min_spacing);
        match end {
            FetchEnd::Succeeded { fresh_for, source } => {
                self.succeeded = self.succeeded.max(number);
                self.failures_in_a_row = 0;
                self.last_failure = None;
                if forced || source == AnswerSource::Issuer {
                    self.answered = self.answered.max(number);
                }
                self.last_duration =
                    ended.map(|fetch| now.saturating_duration_since(fetch.at)).or(self.last_duration);
                self.next_scheduled = after(fresh_for.unwrap_or(interval));
            }
            FetchEnd::Older => {
                if forced {
                    self.older = self.older.max(number);
                }
                self.next_scheduled = after(interval);
            }
            // A fetch that started later has succeeded already.
            FetchEnd::Failed { .. } if number < self.succeeded => {}
            FetchEnd::Failed { retry_after } => {
                if forced {
                    self.failed = self.failed.max(number);
                }
                let doubled = min_spacing.saturating_mul(1 << self.failures_in_a_row.min(20));
                let back_off = doubled.min(self.max_back_off()).mul_f64(1.0 - 0.5 * jitter);
                self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
                self.last_failure = Some(now);
                self.next_scheduled = now + back_off.max(retry_after.unwrap_or_default().min(interval));
            }
        }
        // The fetch may have missed a change during it.
        if self.changed {
            self.next_scheduled = now;
        }
    }

    /// All fetches in progress are lost.
    pub fn abandon(&mut self, accounts: &mut Accounts, jitter: f64, now: Instant) {
        while let Some(fetch) = self.in_progress.first().copied() {
            self.finish(
                accounts,
                fetch.started_fetch.number,
                FetchEnd::Failed { retry_after: None },
                jitter,
                now,
            );
        }
    }

    /// The source has changed: the next scheduled fetch is due.
    pub fn source_changed(&mut self, now: Instant) {
        self.changed = true;
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

    /// Without keys, the back-off is short, so that the issuer's recovery is noticed within seconds.
    fn max_back_off(&self) -> Duration {
        const WITHOUT_KEYS: Duration = Duration::from_secs(10);
        if self.succeeded == 0 { self.policy.interval.min(WITHOUT_KEYS) } else { self.policy.interval }
    }

    fn spacing(&self, cause: StaleCause) -> Duration {
        match cause {
            StaleCause::UnknownKid => self.policy.min_spacing,
            StaleCause::BadSignature => self.policy.min_spacing_bad_signature,
        }
    }

    fn demand(&mut self, cause: StaleCause) -> &mut Demand {
        match cause {
            StaleCause::UnknownKid => &mut self.unknown_kid,
            StaleCause::BadSignature => &mut self.bad_signature,
        }
    }

    fn demand_ref(&self, cause: StaleCause) -> &Demand {
        match cause {
            StaleCause::UnknownKid => &self.unknown_kid,
            StaleCause::BadSignature => &self.bad_signature,
        }
    }
}
