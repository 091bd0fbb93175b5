//! Whether a drill came out as it should, why not, and what it does not prove.
//!
//! Pure.

use std::time::Duration;

use super::plan::{Rotation, SPACING};
use super::tally::Tally;
use super::traffic::Bad;

/// The result of a drill.
#[derive(Clone, Debug)]
pub(super) struct Report {
    /// What was put to the test, in words.
    pub(super) gateway: String,
    /// Whether it was played to its end.
    pub(super) completed: bool,
    /// What kept the drill itself from going on.
    pub(super) broke_off: Option<String>,
    pub(super) tally: Tally,
    /// From the start to now, or to the last answer.
    pub(super) elapsed: Duration,
    /// For how long tokens were sent.
    pub(super) sent_for: Duration,
    /// Bad tokens a second that were asked for.
    pub(super) attack_rate: u32,
    /// Requests for the key set that the issuer saw.
    pub(super) fetches: u64,
}

impl Report {
    /// Whether there is nothing in [`Report::failures`].
    pub(super) fn passed(&self) -> bool {
        self.failures().is_empty()
    }

    /// Why the drill is not passed. Silence is no refusal, and nothing sent proves nothing: each is a failure.
    pub(super) fn failures(&self) -> Vec<String> {
        let good = &self.tally.good;
        let attack = self.tally.attack();
        let because = |why: &Option<String>| why.as_ref().map_or(String::new(), |why| format!(": {why}"));
        let mut failures: Vec<String> = Vec::new();
        let mut count = |count: u64, what: &str, why: String| {
            if count > 0 {
                failures.push(format!("{count} {what}{why}"));
            }
        };
        // The issuer shares this process, so that a gateway may have failed for want of the same thing.
        let why = format!("{}; what else failed may come of it", because(&self.tally.not_sent_because));
        count(good.not_sent + attack.not_sent, "tokens could not be sent by the drill itself", why);
        count(good.refused, "good tokens were refused", String::new());
        count(attack.allowed, "forged tokens were allowed", String::new());
        let why = because(&self.tally.unanswered_because);
        count(attack.unanswered, "forged tokens had no answer", why);
        if let Some(why) = &self.broke_off {
            failures.push(format!("the drill itself broke off: {why}"));
        } else if !self.completed {
            failures.push("it was stopped before its end".to_owned());
        }
        if good.sent == 0 {
            failures.push("no good token was sent".to_owned());
        }
        if attack.sent == 0 {
            let asked = if self.attack_rate == 0 { ", since the attack rate is 0" } else { "" };
            failures.push(format!("no forged token was sent{asked}"));
        }
        failures
    }

    /// What nobody may conclude from this drill, since it was not tried.
    pub(super) fn not_proved(&self) -> Vec<String> {
        let mut not_proved = Vec::new();
        let sent = self.tally.attack().sent;
        let due = u128::from(self.attack_rate) * self.sent_for.as_millis() / 1000;
        if sent == 0 {
            not_proved.push("that forged tokens are refused: none was sent".to_owned());
        } else {
            let kinds = Bad::ALL.into_iter();
            let missing = kinds.filter(|kind| self.tally.bad.get(kind).is_none_or(|attack| attack.sent == 0));
            not_proved.extend(
                missing.map(|kind| format!("that forged tokens are refused, {}: none was sent", kind.name())),
            );
            // A tick more or less is no other attack.
            if u128::from(sent) + 2 < due - due / 10 {
                not_proved.push(format!(
                    "an attack of {} tokens a second: {sent} of {due} were sent",
                    self.attack_rate
                ));
            }
        }
        for rotation in Rotation::ALL {
            let rotated = self.tally.rotations.get(&rotation);
            if rotated.is_none_or(|rotated| rotated.count == rotated.first_not_sent) {
                not_proved.push(format!("a rotation, {}: there was none", rotation.name()));
            }
        }
        if self.tally.faults == 0 {
            not_proved.push("an outage of the issuer: there was none".to_owned());
        }
        not_proved
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
    use super::super::target::Outcome;
    use super::*;

    const OWN: &str =
        "1 tokens could not be sent by the drill itself: no descriptors; what else failed may come of it";
    const TOOK: Duration = Duration::from_millis(700);

    /// One good token allowed, one forged one of each kind refused, and what `fill` adds.
    fn report(fill: impl FnOnce(&mut Tally)) -> Report {
        let mut tally = Tally::default();
        tally.good(&Outcome::Allowed, Duration::from_millis(1));
        for kind in Bad::ALL {
            tally.bad(kind, &Outcome::Refused(401));
        }
        fill(&mut tally);
        of(tally)
    }

    fn of(tally: Tally) -> Report {
        Report {
            gateway: String::new(),
            completed: true,
            broke_off: None,
            tally,
            elapsed: Duration::from_secs(10),
            sent_for: Duration::from_secs(10),
            attack_rate: 0,
            fetches: 0,
        }
    }

    #[test]
    fn only_a_drill_with_every_good_token_allowed_and_every_forged_one_refused_is_passed() {
        let silence = || Outcome::NoAnswer("closed".to_owned());
        let own = || Outcome::NotSent("no descriptors".to_owned());
        for (expected, report) in [
            ("", report(|_| {})),
            ("", report(|tally| tally.bad(Bad::Expired, &Outcome::Refused(302)))),
            ("", report(|tally| tally.first(Rotation::AtUse, &Outcome::Allowed, TOOK))),
            ("1 good tokens were refused", report(|tally| tally.good(&Outcome::Refused(401), TOOK))),
            ("1 good tokens were refused", report(|tally| tally.good(&Outcome::Refused(302), TOOK))),
            ("1 good tokens were refused", report(|tally| tally.good(&silence(), TOOK))),
            (
                "1 good tokens were refused",
                report(|tally| tally.first(Rotation::SameKid, &Outcome::Refused(401), TOOK)),
            ),
            ("1 forged tokens were allowed", report(|tally| tally.bad(Bad::Expired, &Outcome::Allowed))),
            ("1 forged tokens had no answer: closed", report(|tally| tally.bad(Bad::Expired, &silence()))),
            (OWN, report(|tally| tally.bad(Bad::Expired, &own()))),
            (OWN, report(|tally| tally.good(&own(), TOOK))),
            ("it was stopped before its end", Report { completed: false, ..report(|_| {}) }),
            (
                "the drill itself broke off: no port",
                Report { completed: false, broke_off: Some("no port".to_owned()), ..report(|_| {}) },
            ),
        ] {
            assert_eq!(report.failures().join("; "), expected, "{:?}", report.tally);
            assert_eq!(report.passed(), expected.is_empty());
        }
    }

    #[test]
    fn a_drill_that_sent_no_good_token_or_no_forged_one_is_not_passed() {
        let mut good = Tally::default();
        good.good(&Outcome::Allowed, TOOK);
        let mut bad = Tally::default();
        bad.bad(Bad::Expired, &Outcome::Refused(401));
        for (expected, report) in [
            ("no good token was sent", of(bad)),
            ("no forged token was sent, since the attack rate is 0", of(good.clone())),
            ("no forged token was sent", Report { attack_rate: 5, ..of(good) }),
        ] {
            assert_eq!(report.failures(), [expected]);
        }
    }

    #[test]
    fn what_was_not_tried_is_not_proved() {
        let whole = report(|tally| {
            tally.faults = 1;
            for rotation in Rotation::ALL {
                tally.first(rotation, &Outcome::Allowed, TOOK);
            }
        });
        assert_eq!(whole.not_proved(), [""; 0]);

        let mut less = whole.clone();
        less.tally.faults = 0;
        less.tally.bad.remove(&Bad::Withdrawn);
        less.tally.rotations.remove(&Rotation::Algorithm);
        less.attack_rate = 200;
        assert_eq!(
            less.not_proved(),
            [
                "that forged tokens are refused, key withdrawn or made anew: none was sent",
                "an attack of 200 tokens a second: 6 of 2000 were sent",
                "a rotation, another algorithm: there was none",
                "an outage of the issuer: there was none",
            ]
        );

        let mut unsent = whole.clone();
        let own = Outcome::NotSent("no descriptors".to_owned());
        unsent.tally.rotations.remove(&Rotation::AtUse);
        unsent.tally.first(Rotation::AtUse, &own, TOOK);
        unsent.tally.bad.remove(&Bad::Expired);
        unsent.tally.bad(Bad::Expired, &own);
        assert_eq!(
            unsent.not_proved(),
            [
                "that forged tokens are refused, expired: none was sent",
                "a rotation, new key published at use: there was none",
            ]
        );

        let mut none = whole;
        none.tally.bad.clear();
        assert_eq!(none.not_proved(), ["that forged tokens are refused: none was sent"]);
    }

    #[test]
    fn the_bound_counts_both_causes_the_start_and_retries_after_faults() {
        assert_eq!(report(|_| {}).fetch_bound(), 2 * 21 + 1);
        assert_eq!(report(|tally| tally.faults = 2).fetch_bound(), 2 * 21 + 1 + 6);
    }
}
