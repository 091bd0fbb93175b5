//! What was sent and what came of it.
//!
//! Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::plan::Rotation;
use super::target::Outcome;
use super::traffic::Bad;

/// Counts of a drill.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) good: Good,
    pub(super) bad: BTreeMap<Bad, Attack>,
    pub(super) rotations: BTreeMap<Rotation, Rotated>,
    /// Faults of the issuer.
    pub(super) faults: u32,
    /// Why the first forged token without an answer has none.
    pub(super) unanswered_because: Option<String>,
    /// Why the first token that the drill could not send was not sent.
    pub(super) not_sent_because: Option<String>,
}

/// How many tokens were refused with each status.
pub(super) type Statuses = BTreeMap<u16, u64>;

/// Good tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Good {
    /// Those that left this machine.
    pub(super) sent: u64,
    /// All of these that were not allowed.
    pub(super) refused: u64,
    /// Of these, with a 5xx: the gateway said that it cannot say.
    pub(super) unavailable: u64,
    /// Of these, without any answer.
    pub(super) unanswered: u64,
    /// Of these, with each status.
    pub(super) statuses: Statuses,
    /// Those that the drill could not send.
    pub(super) not_sent: u64,
    /// The longest time to an answer.
    pub(super) slowest: Duration,
}

/// Bad tokens of one kind. Each that was sent is allowed, refused with a status, or unanswered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attack {
    /// Those that left this machine.
    pub(super) sent: u64,
    pub(super) allowed: u64,
    pub(super) unanswered: u64,
    /// Refused with each status; redirects are among them.
    pub(super) statuses: Statuses,
    /// Those that the drill could not send.
    pub(super) not_sent: u64,
}

/// Rotations of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rotated {
    pub(super) count: u32,
    /// How many times the first token of the new key was sent and not allowed.
    pub(super) first_refused: u32,
    /// How many times the drill could not send it.
    pub(super) first_not_sent: u32,
    /// The longest time to the answer about a first token.
    pub(super) slowest_first: Duration,
}

impl Attack {
    /// How many were refused, with whatever status.
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

impl Tally {
    /// A good token was answered, or not.
    pub(super) fn good(&mut self, outcome: &Outcome, took: Duration) {
        let good = &mut self.good;
        if let Outcome::NotSent(why) = outcome {
            good.not_sent += 1;
            self.not_sent_because.get_or_insert_with(|| why.clone());
            return;
        }
        good.sent += 1;
        good.slowest = good.slowest.max(took);
        good.refused += u64::from(*outcome != Outcome::Allowed);
        good.unavailable += u64::from(matches!(outcome, Outcome::Refused(500..)));
        good.unanswered += u64::from(matches!(outcome, Outcome::NoAnswer(_)));
        if let Outcome::Refused(status) = outcome {
            *good.statuses.entry(*status).or_default() += 1;
        }
    }

    /// The same of the first token after a rotation; it is a good one too.
    pub(super) fn first(&mut self, rotation: Rotation, outcome: &Outcome, took: Duration) {
        self.good(outcome, took);
        let rotated = self.rotations.entry(rotation).or_default();
        rotated.count += 1;
        match outcome {
            Outcome::NotSent(_) => rotated.first_not_sent += 1,
            Outcome::Allowed => rotated.slowest_first = rotated.slowest_first.max(took),
            Outcome::Refused(_) | Outcome::NoAnswer(_) => {
                rotated.first_refused += 1;
                rotated.slowest_first = rotated.slowest_first.max(took);
            }
        }
    }

    /// A bad token was answered, or not.
    pub(super) fn bad(&mut self, kind: Bad, outcome: &Outcome) {
        let attack = self.bad.entry(kind).or_default();
        attack.sent += u64::from(!matches!(outcome, Outcome::NotSent(_)));
        match outcome {
            Outcome::Allowed => attack.allowed += 1,
            Outcome::Refused(status) => *attack.statuses.entry(*status).or_default() += 1,
            Outcome::NoAnswer(why) => {
                attack.unanswered += 1;
                self.unanswered_because.get_or_insert_with(|| why.clone());
            }
            Outcome::NotSent(why) => {
                attack.not_sent += 1;
                self.not_sent_because.get_or_insert_with(|| why.clone());
            }
        }
    }

    /// Bad tokens of all kinds.
    pub(super) fn attack(&self) -> Attack {
        let mut sum = Attack::default();
        self.bad.values().for_each(|attack| sum.add(attack));
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_answer() -> Outcome {
        Outcome::NoAnswer("closed".to_owned())
    }

    fn not_sent() -> Outcome {
        Outcome::NotSent("no descriptors".to_owned())
    }

    #[test]
    fn a_first_token_counts_for_its_rotation_and_among_the_good_ones() {
        let took = Duration::from_millis(700);
        let mut tally = Tally::default();
        tally.first(Rotation::SameKid, &Outcome::Refused(503), took);
        let statuses = Statuses::from([(503, 1)]);
        let counted =
            Good { sent: 1, refused: 1, unavailable: 1, statuses, slowest: took, ..Good::default() };
        assert_eq!(tally.good, counted);
        let rotated = Rotated { count: 1, first_refused: 1, first_not_sent: 0, slowest_first: took };
        assert_eq!(tally.rotations[&Rotation::SameKid], rotated);
    }

    #[test]
    fn every_forged_token_is_in_one_column() {
        let mut tally = Tally::default();
        for outcome in [
            Outcome::Allowed,
            Outcome::Refused(401),
            Outcome::Refused(302),
            Outcome::Refused(401),
            no_answer(),
            not_sent(),
        ] {
            tally.bad(Bad::Expired, &outcome);
        }
        tally.bad(Bad::MadeUpKid, &Outcome::Refused(401));
        let attack = tally.attack();
        let statuses = Statuses::from([(302, 1), (401, 3)]);
        assert_eq!(attack, Attack { sent: 6, allowed: 1, unanswered: 1, statuses, not_sent: 1 });
        assert_eq!(attack.sent, attack.allowed + attack.refused() + attack.unanswered);
        assert_eq!(tally.unanswered_because.as_deref(), Some("closed"));
        assert_eq!(tally.not_sent_because.as_deref(), Some("no descriptors"));
    }

    #[test]
    fn what_the_drill_could_not_send_counts_neither_for_nor_against_the_gateway() {
        let mut tally = Tally::default();
        tally.good(&not_sent(), Duration::from_secs(9));
        tally.first(Rotation::AtUse, &not_sent(), Duration::from_secs(9));
        assert_eq!(tally.good, Good { not_sent: 2, ..Good::default() });
        let rotated = Rotated { count: 1, first_not_sent: 1, ..Rotated::default() };
        assert_eq!(tally.rotations[&Rotation::AtUse], rotated);
    }
}
