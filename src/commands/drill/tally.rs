//! What was sent and what came of it, and whether that is as it should be.
//!
//! Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::plan::{Rotation, SPACING};
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
}

/// Good tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Good {
    pub(super) sent: u64,
    /// All that were not allowed.
    pub(super) refused: u64,
    /// Of these, with a 5xx: the gateway said that it cannot say.
    pub(super) unavailable: u64,
    /// Of these, without any answer.
    pub(super) unanswered: u64,
    /// The longest time to an answer.
    pub(super) slowest: Duration,
}

/// Bad tokens of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attack {
    pub(super) sent: u64,
    pub(super) allowed: u64,
}

/// Rotations of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rotated {
    pub(super) count: u32,
    /// How many times the first token of the new key was not allowed.
    pub(super) first_refused: u32,
    /// The longest time to the answer about a first token.
    pub(super) slowest_first: Duration,
}

impl Tally {
    /// A good token was answered.
    pub(super) fn good(&mut self, outcome: &Outcome, took: Duration) {
        let good = &mut self.good;
        good.sent += 1;
        good.slowest = good.slowest.max(took);
        good.refused += u64::from(*outcome != Outcome::Allowed);
        good.unavailable += u64::from(matches!(outcome, Outcome::Refused(500..)));
        good.unanswered += u64::from(matches!(outcome, Outcome::NoAnswer(_)));
    }

    /// The first token after a rotation was answered; it is a good one too.
    pub(super) fn first(&mut self, rotation: Rotation, outcome: &Outcome, took: Duration) {
        self.good(outcome, took);
        let rotated = self.rotations.entry(rotation).or_default();
        rotated.count += 1;
        rotated.first_refused += u32::from(*outcome != Outcome::Allowed);
        rotated.slowest_first = rotated.slowest_first.max(took);
    }

    /// A bad token was answered.
    pub(super) fn bad(&mut self, kind: Bad, outcome: &Outcome) {
        let attack = self.bad.entry(kind).or_default();
        attack.sent += 1;
        attack.allowed += u64::from(*outcome == Outcome::Allowed);
    }

    /// Bad tokens of all kinds.
    pub(super) fn attack(&self) -> Attack {
        self.bad.values().fold(Attack::default(), |sum, attack| Attack {
            sent: sum.sent + attack.sent,
            allowed: sum.allowed + attack.allowed,
        })
    }
}

/// The result of a drill.
#[derive(Clone, Debug)]
pub(super) struct Report {
    /// What was put to the test, in words.
    pub(super) gateway: String,
    /// Whether it was played to its end.
    pub(super) completed: bool,
    pub(super) tally: Tally,
    pub(super) elapsed: Duration,
    /// Requests for the key set that the issuer saw.
    pub(super) fetches: u64,
}

impl Report {
    /// Whether no good token was refused and no bad one allowed, to the end, and there were good ones at all.
    pub(super) fn passed(&self) -> bool {
        self.completed
            && self.tally.good.sent > 0
            && self.tally.good.refused == 0
            && self.tally.attack().allowed == 0
    }

    /// The most fetches of a Portcullis that is configured as the drill says: those that each of two causes may
    /// force, [`SPACING`] apart; the one of its start; and after a fault its own retries, of which three fit
    /// into the time until they succeed.
    pub(super) fn fetch_bound(&self) -> u64 {
        let forced = self.elapsed.as_millis() / SPACING.as_millis() + 1;
        2 * u64::try_from(forced).unwrap_or(u64::MAX / 4) + 1 + 3 * u64::from(self.tally.faults)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(fill: impl FnOnce(&mut Tally)) -> Report {
        let mut tally = Tally::default();
        tally.good(&Outcome::Allowed, Duration::from_millis(1));
        fill(&mut tally);
        let elapsed = Duration::from_secs(10);
        Report { gateway: String::new(), completed: true, tally, elapsed, fetches: 0 }
    }

    #[test]
    fn one_good_token_refused_or_one_bad_one_allowed_is_a_failure() {
        let took = Duration::from_millis(700);
        for (passed, fill) in [
            (true, (|_| {}) as fn(&mut Tally)),
            (true, |tally| tally.bad(Bad::Expired, &Outcome::Refused(401))),
            (true, |tally| tally.bad(Bad::MadeUpKid, &Outcome::NoAnswer(String::new()))),
            (true, |tally| tally.first(Rotation::AtUse, &Outcome::Allowed, Duration::ZERO)),
            (false, |tally| tally.good(&Outcome::Refused(401), Duration::ZERO)),
            (false, |tally| tally.good(&Outcome::Refused(503), Duration::ZERO)),
            (false, |tally| tally.good(&Outcome::NoAnswer(String::new()), Duration::ZERO)),
            (false, |tally| tally.first(Rotation::SameKid, &Outcome::Refused(401), Duration::ZERO)),
            (false, |tally| tally.bad(Bad::Expired, &Outcome::Allowed)),
        ] {
            assert_eq!(report(fill).passed(), passed, "{:?}", report(fill).tally);
        }
        let mut tally = Tally::default();
        tally.first(Rotation::SameKid, &Outcome::Refused(503), took);
        let counted = Good { sent: 1, refused: 1, unavailable: 1, unanswered: 0, slowest: took };
        assert_eq!(tally.good, counted);
        assert_eq!(
            tally.rotations[&Rotation::SameKid],
            Rotated { count: 1, first_refused: 1, slowest_first: took }
        );
    }

    #[test]
    fn a_drill_that_sent_nothing_or_was_stopped_proves_nothing() {
        let nothing = Report { tally: Tally::default(), ..report(|_| {}) };
        assert!(!nothing.passed());
        let stopped = Report { completed: false, ..report(|_| {}) };
        assert!(!stopped.passed());
    }

    #[test]
    fn the_bound_counts_both_causes_the_start_and_retries_after_faults() {
        assert_eq!(report(|_| {}).fetch_bound(), 2 * 21 + 1);
        assert_eq!(report(|tally| tally.faults = 2).fetch_bound(), 2 * 21 + 1 + 6);
    }
}
