//! Counts of the tokens that were sent and of their outcomes.
//!
//! Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::plan::Rotation;
use super::target::Outcome;
use super::traffic::BadToken;

/// The counts of a drill.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) good: Good,
    pub(super) bad: BTreeMap<BadToken, Attack>,
    pub(super) rotations: BTreeMap<Rotation, RotationCounts>,
    /// The number of issuer faults.
    pub(super) faults: u32,
    /// Why the first forged token without a response has none.
    pub(super) unanswered_because: Option<String>,
    /// Why the first token that could not be sent was not sent.
    pub(super) not_sent_because: Option<String>,
}

/// The number of refused tokens by status.
pub(super) type Statuses = BTreeMap<u16, u64>;

/// Good tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Good {
    /// Tokens that were sent.
    pub(super) sent: u64,
    /// Sent tokens that were not allowed.
    pub(super) refused: u64,
    /// Refused tokens with a 5xx: the gateway could not decide.
    pub(super) unavailable: u64,
    /// Refused tokens without a response.
    pub(super) unanswered: u64,
    /// Refused tokens by status.
    pub(super) statuses: Statuses,
    /// Tokens that the drill could not send.
    pub(super) not_sent: u64,
    /// The longest response time.
    pub(super) slowest: Duration,
}

/// Bad tokens of one kind. Each sent token is allowed, refused with a status, or unanswered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attack {
    /// Tokens that were sent.
    pub(super) sent: u64,
    pub(super) allowed: u64,
    pub(super) unanswered: u64,
    /// Refused tokens by status, including redirects.
    pub(super) statuses: Statuses,
    /// Tokens that the drill could not send.
    pub(super) not_sent: u64,
}

/// Rotations of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RotationCounts {
    pub(super) count: u32,
    /// How often the first token of the new key was sent and not allowed.
    pub(super) first_refused: u32,
    /// How often the first token could not be sent.
    pub(super) first_not_sent: u32,
    /// The longest response time of a first token.
    pub(super) slowest_first: Duration,
}

impl Attack {
    /// The number of refused tokens with any status.
    pub(super) fn refused(&self) -> u64 {
        self.statuses.values().sum()
    }

    fn add(&mut self, other: &Attack) {
        self.sent += other.sent;
        self.allowed += other.allowed;
        self.unanswered += other.unanswered;
        self.not_sent += other.not_sent;
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
    }
}

impl Counts {
    /// Counts the outcome of a good token.
    pub(super) fn good(&mut self, outcome: &Outcome, elapsed: Duration) {
        let good = &mut self.good;
        if let Outcome::NotSent(cause) = outcome {
            good.not_sent += 1;
            self.not_sent_because.get_or_insert_with(|| cause.clone());
            return;
        }
        good.sent += 1;
        good.slowest = good.slowest.max(elapsed);
        good.refused += u64::from(*outcome != Outcome::Allowed);
        good.unavailable += u64::from(matches!(outcome, Outcome::Refused(500..)));
        good.unanswered += u64::from(matches!(outcome, Outcome::NoResponse(_)));
        if let Outcome::Refused(status) = outcome {
            *good.statuses.entry(*status).or_default() += 1;
        }
    }

    /// Counts the outcome of the first token after a rotation, which is also a good one.
    pub(super) fn first(&mut self, rotation: Rotation, outcome: &Outcome, elapsed: Duration) {
        self.good(outcome, elapsed);
        let rotated = self.rotations.entry(rotation).or_default();
        rotated.count += 1;
        match outcome {
            Outcome::NotSent(_) => rotated.first_not_sent += 1,
            Outcome::Allowed => rotated.slowest_first = rotated.slowest_first.max(elapsed),
            Outcome::Refused(_) | Outcome::NoResponse(_) => {
                rotated.first_refused += 1;
                rotated.slowest_first = rotated.slowest_first.max(elapsed);
            }
        }
    }

    /// Counts the outcome of a bad token.
    pub(super) fn bad(&mut self, kind: BadToken, outcome: &Outcome) {
        let attack = self.bad.entry(kind).or_default();
        attack.sent += u64::from(!matches!(outcome, Outcome::NotSent(_)));
        match outcome {
            Outcome::Allowed => attack.allowed += 1,
            Outcome::Refused(status) => *attack.statuses.entry(*status).or_default() += 1,
            Outcome::NoResponse(cause) => {
                attack.unanswered += 1;
                self.unanswered_because.get_or_insert_with(|| cause.clone());
            }
            Outcome::NotSent(cause) => {
                attack.not_sent += 1;
                self.not_sent_because.get_or_insert_with(|| cause.clone());
            }
        }
    }

    /// The sum over all kinds of bad tokens.
    pub(super) fn attack(&self) -> Attack {
        let mut sum = Attack::default();
        self.bad.values().for_each(|attack| sum.add(attack));
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_response() -> Outcome {
        Outcome::NoResponse("closed".to_owned())
    }

    fn not_sent() -> Outcome {
        Outcome::NotSent("no descriptors".to_owned())
    }

    #[test]
    fn a_first_token_is_counted_for_its_rotation_and_as_a_good_token() {
        let elapsed = Duration::from_millis(700);
        let mut counts = Counts::default();
        counts.first(Rotation::SameKid, &Outcome::Refused(503), elapsed);
        let statuses = Statuses::from([(503, 1)]);
        let counted =
            Good { sent: 1, refused: 1, unavailable: 1, statuses, slowest: elapsed, ..Good::default() };
        assert_eq!(counts.good, counted);
        let rotated =
            RotationCounts { count: 1, first_refused: 1, first_not_sent: 0, slowest_first: elapsed };
        assert_eq!(counts.rotations[&Rotation::SameKid], rotated);
    }

    #[test]
    fn every_forged_token_is_counted_once() {
        let mut counts = Counts::default();
        for outcome in [
            Outcome::Allowed,
            Outcome::Refused(401),
            Outcome::Refused(302),
            Outcome::Refused(401),
            no_response(),
            not_sent(),
        ] {
            counts.bad(BadToken::Expired, &outcome);
        }
        counts.bad(BadToken::MadeUpKid, &Outcome::Refused(401));
        let attack = counts.attack();
        let statuses = Statuses::from([(302, 1), (401, 3)]);
        assert_eq!(attack, Attack { sent: 6, allowed: 1, unanswered: 1, statuses, not_sent: 1 });
        assert_eq!(attack.sent, attack.allowed + attack.refused() + attack.unanswered);
        assert_eq!(counts.unanswered_because.as_deref(), Some("closed"));
        assert_eq!(counts.not_sent_because.as_deref(), Some("no descriptors"));
    }

    #[test]
    fn tokens_that_were_not_sent_do_not_count_as_outcomes_of_the_gateway() {
        let mut counts = Counts::default();
        counts.good(&not_sent(), Duration::from_secs(9));
        counts.first(Rotation::AtUse, &not_sent(), Duration::from_secs(9));
        assert_eq!(counts.good, Good { not_sent: 2, ..Good::default() });
        let rotated = RotationCounts { count: 1, first_not_sent: 1, ..RotationCounts::default() };
        assert_eq!(counts.rotations[&Rotation::AtUse], rotated);
    }
}
