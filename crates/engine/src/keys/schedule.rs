//! When the next fetch of a provider's keys starts, and what it is for: the spacing of the refresh rule as a state
//! machine that is told the time.
//!
//! Pure: no IO, no clock, no randomness. One fetch after the other is the rule. Where a caller can wait neither for
//! what is under way nor for the one behind it, the next one begins beside it, as early as the budget allows and no
//! earlier than the caller needs. What fetches bring is ordered by their start, not by their end.

use std::time::Duration;

use super::policy::RefreshPolicy;
use crate::clock::Instant;
use crate::telemetry::Trigger;
use crate::validation::StaleCause;

use super::budget::{Accounts, Member};

/// Fetches of one provider that may be under way at one time.
const MAX_UNDER_WAY: usize = 4;

/// Besides a quarter of it, a fetch is expected to take this much longer than the last one did.
const DURATION_SLACK: Duration = Duration::from_millis(10);

const CAUSES: [StaleCause; 2] = [StaleCause::UnknownKid, StaleCause::BadSignature];

/// A caller whose token is stale.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// How many fetches had begun when it took the set that its token failed against.
    pub arrival: u64,
    /// Why the token is stale.
    pub cause: StaleCause,
    /// By when it has to answer.
    pub deadline: Instant,
}

/// What a stale caller can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefreshOutcome {
    /// A fetch that began after the caller arrived has brought the issuer's answer: that is in hand now.
    Fresh,
    /// A fetch that began after the caller arrived has failed, or one failed so recently that another is not worth
    /// the try.
    Failed,
    /// A fetch that began after the caller arrived has brought an answer that is older than the set in hand.
    Older,
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
        /// Whether a cache may have kept them for a while.
        by: GivenBy,
    },
    /// An answer came that is older than the set in hand: what the issuer has now, nobody knows.
    Older,
    /// No keys came.
    Failed {
        /// How long the issuer wants to be left alone (RFC 9110 §10.2.3), where it says so.
        retry_after: Option<Duration>,
    },
}

/// A fetch that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Fetches are numbered from 1 in the order of their start.
    pub number: u64,
    /// Why it was started.
    pub trigger: Trigger,
    /// Whether it doubts what is in hand and what caches have. One that does not serves a token only where its answer
    /// turns out to come from no cache: else it may be what the token failed against.
    pub doubts: Doubts,
}

/// Whether a fetch doubts what is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubts {
    /// A token forced it.
    Everything,
    /// It was time, and tokens wait for it: they may have failed against what a validator stands for. What is due has to
    /// succeed also where an issuer answers from caches alone.
    Validators,
    /// It was time.
    Nothing,
}

/// Who gave an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenBy {
    /// The issuer, as far as the answer says.
    Issuer,
    /// A cache that had it.
    Cache,
}

/// The state of a provider's fetches. Fetches are numbered from 1 in the order of their start.
#[derive(Debug)]
pub struct Schedule {
    policy: RefreshPolicy,
    member: Member,
    started: u64,
    /// The latest by its start that has ended.
    ended: u64,
    /// The latest by its start that has succeeded.
    succeeded: u64,
    /// The latest by its start whose answer was the issuer's.
    answered: u64,
    /// The latest by its start that doubted everything and has failed.
    failed: u64,
    /// The latest by its start that brought an older answer.
    older: u64,
    under_way: Vec<UnderWay>,
    next_scheduled: Instant,
    /// The source changed since the last fetch began.
    hurried: bool,
    failures_in_a_row: u32,
    last_failure: Option<Instant>,
    /// How long the last fetch that succeeded took.
    took: Option<Duration>,
    unknown_kid: Demand,
    bad_signature: Demand,
}

#[derive(Clone, Copy, Debug)]
struct UnderWay {
    begun: Begun,
    at: Instant,
}

/// What callers of one cause ask for.
#[derive(Clone, Copy, Debug, Default)]
struct Demand {
    /// A fetch, once none is under way.
    next: bool,
    /// A fetch beside the one that is under way, from then on.
    beside: Option<Instant>,
}

impl Schedule {
    /// The first fetch is due at once. What tokens force, this member of a budget pays.
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
            under_way: Vec::new(),
            next_scheduled: now,
            hurried: false,
            failures_in_a_row: 0,
            last_failure: None,
            took: None,
            unknown_kid: Demand::default(),
            bad_signature: Demand::default(),
        }
    }

    /// Where a caller stands. One that no fetch serves demands the next.
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
        let serves =
            |fetch: &UnderWay| fetch.begun.number > arrival && fetch.begun.doubts == Doubts::Everything;
        if self.under_way.iter().any(serves) {
            return RefreshOutcome::UnderWay;
        }
        if self.older > arrival {
            return RefreshOutcome::Older;
        }
        if self.failed > arrival {
            return RefreshOutcome::Failed;
        }
        if !self.under_way.is_empty() {
            return self.join_or_demand_beside(accounts, caller, now);
        }
        let failed_just_now =
            self.last_failure.is_some_and(|failure| now < failure + self.policy.min_spacing);
        if cause == StaleCause::UnknownKid && failed_just_now {
            return RefreshOutcome::Failed;
        }
        // Demanded also for a caller that cannot wait for it: the next one finds the keys there. But it is turned away,
        // and goes before nobody who waits.
        self.demand(cause).next = true;
        let turn = accounts.turn_if_awaited(cause, self.member, self.spacing(cause), now);
        accounts.stand_in_line(cause, self.member, (turn <= deadline).then_some(deadline));
        // Whatever starts a fetch, it serves everybody who waits.
        let start = self.next_start(accounts, now);
        if start.is_none_or(|start| start > deadline) {
            RefreshOutcome::OutOfReach
        } else {
            RefreshOutcome::Demanded
        }
    }

    /// All that is under way began before the caller arrived, or doubts nothing. It waits for that; and where the fetch behind it would
    /// end too late, that one begins while the caller can still be served by it.
    fn join_or_demand_beside(
        &mut self,
        accounts: &mut Accounts,
        caller: Caller,
        now: Instant,
    ) -> RefreshOutcome {
        let Caller { cause, deadline, .. } = caller;
        // Before the first answer nobody knows how long one takes, and any is news.
        let Some(took) = self.took else { return RefreshOutcome::UnderWay };
        let expected = took + took / 4 + DURATION_SLACK;
        let spacing = self.spacing(cause);
        let Some(latest) = deadline.checked_sub(expected).filter(|latest| *latest >= now) else {
            return RefreshOutcome::UnderWay;
        };
        if self.under_way.len() >= MAX_UNDER_WAY {
            return RefreshOutcome::UnderWay;
        }
        if accounts.turn_if_awaited(cause, self.member, spacing, now) > latest {
            return RefreshOutcome::UnderWay;
        }
        // It stands in line from then on: before that it would hold up who is behind it.
        let demand = self.demand(cause);
        demand.beside = Some(demand.beside.map_or(latest, |sooner| sooner.min(latest)));
        RefreshOutcome::Demanded
    }

    /// Whether a fetch has ended, well or badly.
    pub fn has_ended_one(&self) -> bool {
        self.ended > 0
    }

    /// When the driver has to look again; never before a fetch ends where too many are under way or none is due.
    pub fn next_start(&self, accounts: &Accounts, now: Instant) -> Option<Instant> {
        if self.under_way.len() >= MAX_UNDER_WAY {
            return None;
        }
        let turn = |cause| accounts.turn(cause, self.member, self.spacing(cause), now);
        let forced = CAUSES.into_iter().filter_map(|cause| {
            let Demand { next, beside } = *self.demand_ref(cause);
            if self.under_way.is_empty() {
                next.then(|| turn(cause))
            } else {
                beside.map(|from| turn(cause).max(from))
            }
        });
        let scheduled = self.under_way.is_empty().then_some(self.next_scheduled);
        forced.chain(scheduled).min()
    }

    /// Starts a fetch if one is due. What it serves is everybody who demanded one until now,
    /// so that demands of the other cause are met without spending that cause's budget.
    pub fn begin(&mut self, accounts: &mut Accounts, now: Instant) -> Option<Begun> {
        if self.under_way.len() >= MAX_UNDER_WAY {
            return None;
        }
        let alone = self.under_way.is_empty();
        // The first keys are nobody's demand: a realm that is opened leaves the budget to those that are.
        let is_first = self.started == 0;
        let forced = CAUSES.into_iter().filter(|_| !is_first).find(|cause| {
            let Demand { next, beside } = *self.demand_ref(*cause);
            let due = if alone { next } else { beside.is_some_and(|from| from <= now) };
            if due && !alone {
                accounts.stand_in_line(*cause, self.member, Some(now + self.policy.wait));
            }
            due && accounts.take(*cause, self.member, self.spacing(*cause), now)
        });
        let trigger = match forced {
            Some(cause) => Trigger::Forced(cause),
            None if !alone || self.next_scheduled > now => return None,
            None if self.succeeded == 0 => Trigger::Startup,
            None => Trigger::Scheduled,
        };
        let awaited = self.unknown_kid.next || self.bad_signature.next;
        let doubts = match forced {
            Some(_) => Doubts::Everything,
            None if awaited => Doubts::Validators,
            None => Doubts::Nothing,
        };
        self.unknown_kid = Demand::default();
        self.bad_signature = Demand::default();
        accounts.leave(self.member);
        self.hurried = false;
        self.started += 1;
        let begun = Begun { number: self.started, trigger, doubts };
        self.under_way.push(UnderWay { begun, at: now });
        Some(begun)
    }

    /// Ends the fetch of this number. `jitter`, from 0 to 1, spreads the next scheduled one: over the last
    /// tenth of the time until then after a success, over the second half of the back-off after a failure.
    pub fn finish(
        &mut self,
        accounts: &mut Accounts,
        number: u64,
        ending: Ending,
        jitter: f64,
        now: Instant,
    ) {
        let ended = self.under_way.iter().find(|fetch| fetch.begun.number == number).copied();
        self.under_way.retain(|fetch| fetch.begun.number != number);
        let doubted = ended.is_some_and(|fetch| fetch.begun.doubts == Doubts::Everything);
        self.ended = self.ended.max(number);
        // Who still needs a fetch beside another asks for it again, now that one of them has ended.
        if self.unknown_kid.beside.take().is_some() | self.bad_signature.beside.take().is_some() {
            accounts.leave(self.member);
        }
        let RefreshPolicy { interval, min_spacing, .. } = self.policy;
        let jitter = jitter.clamp(0.0, 1.0);
        let after =
            |period: Duration| now + period.min(interval).mul_f64(1.0 - 0.1 * jitter).max(min_spacing);
        match ending {
            Ending::Succeeded { fresh_for, by } => {
                self.succeeded = self.succeeded.max(number);
                self.failures_in_a_row = 0;
                self.last_failure = None;
                if doubted || by == GivenBy::Issuer {
                    self.answered = self.answered.max(number);
                }
                self.took = ended.map(|fetch| now.saturating_duration_since(fetch.at)).or(self.took);
                self.next_scheduled = after(fresh_for.unwrap_or(interval));
            }
            Ending::Older => {
                if doubted {
                    self.older = self.older.max(number);
                }
                self.next_scheduled = after(interval);
            }
            // One that began later has told already how the issuer is.
            Ending::Failed { .. } if number < self.succeeded => {}
            Ending::Failed { retry_after } => {
                if doubted {
                    self.failed = self.failed.max(number);
                }
                let doubled = min_spacing.saturating_mul(1 << self.failures_in_a_row.min(20));
                let back_off = doubled.min(self.longest_back_off()).mul_f64(1.0 - 0.5 * jitter);
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

    /// All fetches under way are gone without a word.
    pub fn abandon(&mut self, accounts: &mut Accounts, jitter: f64, now: Instant) {
        while let Some(fetch) = self.under_way.first().copied() {
            self.finish(accounts, fetch.begun.number, Ending::Failed { retry_after: None }, jitter, now);
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

    /// While there are no keys at all, an issuer that comes back is found within seconds.
    fn longest_back_off(&self) -> Duration {
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
