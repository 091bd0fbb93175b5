//! The result of a drill: whether it passed, why not, and what it does not prove.
//!
//! Pure.

use std::time::Duration;

use super::counts::Counts;
use super::plan::{Rotation, SPACING};
use super::traffic::BadToken;

/// The result of a drill.
#[derive(Clone, Debug)]
pub(super) struct Report {
    /// A description of the gateway under test.
    pub(super) gateway: String,
    /// Whether all steps were run.
    pub(super) completed: bool,
    /// The error that aborted the drill.
    pub(super) aborted: Option<String>,
    pub(super) counts: Counts,
    /// The time from the start until now, or until the last response.
    pub(super) elapsed: Duration,
    /// For how long tokens were sent.
    pub(super) sent_for: Duration,
    /// The requested number of bad tokens per second.
    pub(super) attack_rate: u32,
    /// The number of key-set requests to the issuer.
    pub(super) fetches: u64,
}

impl Report {
    /// Whether [`Report::failures`] is empty.
    pub(super) fn passed(&self) -> bool {
        self.failures().is_empty()
    }

    /// Why the drill failed. Missing responses and tokens that were not sent are failures too.
    pub(super) fn failures(&self) -> Vec<String> {
        let good = &self.counts.good;
        let attack = self.counts.attack();
        let suffix =
            |cause: &Option<String>| cause.as_ref().map_or(String::new(), |cause| format!(": {cause}"));
        let mut failures: Vec<String> = Vec::new();
        let mut push = |count: u64, what: &str, cause: String| {
            if count > 0 {
                failures.push(format!("{count} {what}{cause}"));
            }
        };
        // The issuer runs in this process, so it may have lacked the same resource and made the gateway fail.
        let cause = format!("{}; other failures may be a consequence", suffix(&self.counts.not_sent_because));
        push(good.not_sent + attack.not_sent, "tokens could not be sent by the drill", cause);
        push(good.refused, "good tokens were refused", String::new());
        push(attack.allowed, "forged tokens were allowed", String::new());
        let cause = suffix(&self.counts.unanswered_because);
        push(attack.unanswered, "forged tokens had no response", cause);
        if let Some(cause) = &self.aborted {
            failures.push(format!("the drill was aborted: {cause}"));
        } else if !self.completed {
            failures.push("it was stopped early".to_owned());
        }
        if good.sent == 0 {
            failures.push("no good token was sent".to_owned());
        }
        if attack.sent == 0 {
            let cause = if self.attack_rate == 0 { ", because the attack rate is 0" } else { "" };
            failures.push(format!("no forged token was sent{cause}"));
        }
        failures
    }

    /// What this drill does not prove, because it was not tested.
    pub(super) fn not_proved(&self) -> Vec<String> {
        let mut not_proved = Vec::new();
        let sent = self.counts.attack().sent;
        let expected = u128::from(self.attack_rate) * self.sent_for.as_millis() / 1000;
        if sent == 0 {
            not_proved.push("that forged tokens are refused: none was sent".to_owned());
        } else {
            let kinds = BadToken::ALL.into_iter();
            let missing =
                kinds.filter(|kind| self.counts.bad.get(kind).is_none_or(|attack| attack.sent == 0));
            not_proved.extend(
                missing.map(|kind| format!("that forged tokens are refused, {}: none was sent", kind.name())),
            );
            // Tolerates a few missed ticks.
            if u128::from(sent) + 2 < expected - expected / 10 {
                not_proved.push(format!(
                    "an attack of {} tokens per second: {sent} of {expected} were sent",
                    self.attack_rate
                ));
            }
        }
        for rotation in Rotation::ALL {
            let rotated = self.counts.rotations.get(&rotation);
            if rotated.is_none_or(|rotated| rotated.count == rotated.first_not_sent) {
                not_proved.push(format!("a rotation, {}: there was none", rotation.name()));
            }
        }
        if self.counts.faults == 0 {
            not_proved.push("an outage of the issuer: there was none".to_owned());
        }
        not_proved
    }

    /// The maximum number of fetches of a Portcullis with the drill's configuration: those that each of the two causes
    /// may force, [`SPACING`] apart, the one at its start, and up to three retries after each fault.
    pub(super) fn fetch_bound(&self) -> u64 {
        let forced = self.elapsed.as_millis() / SPACING.as_millis() + 1;
        2 * u64::try_from(forced).unwrap_or(u64::MAX / 4) + 1 + 3 * u64::from(self.counts.faults)
    }
}

#[cfg(test)]
mod tests {
    use super::super::target::Outcome;
    use super::*;

    const NOT_SENT: &str =
        "1 tokens could not be sent by the drill: no descriptors; other failures may be a consequence";
    const ELAPSED: Duration = Duration::from_millis(700);

    /// A report with one allowed good token, one refused forged token of each kind, and the counts that `fill` adds.
    fn report(fill: impl FnOnce(&mut Counts)) -> Report {
        let mut counts = Counts::default();
        counts.good(&Outcome::Allowed, Duration::from_millis(1));
        for kind in BadToken::ALL {
            counts.bad(kind, &Outcome::Refused(401));
        }
        fill(&mut counts);
        with_counts(counts)
    }

    fn with_counts(counts: Counts) -> Report {
        Report {
            gateway: String::new(),
            completed: true,
            aborted: None,
            counts,
            elapsed: Duration::from_secs(10),
            sent_for: Duration::from_secs(10),
            attack_rate: 0,
            fetches: 0,
        }
    }

    #[test]
    fn a_drill_passes_only_if_every_good_token_is_allowed_and_every_forged_one_is_refused() {
        let no_response = || Outcome::NoResponse("closed".to_owned());
        let not_sent = || Outcome::NotSent("no descriptors".to_owned());
        for (expected, report) in [
            ("", report(|_| {})),
            ("", report(|counts| counts.bad(BadToken::Expired, &Outcome::Refused(302)))),
            ("", report(|counts| counts.first(Rotation::AtUse, &Outcome::Allowed, ELAPSED))),
            ("1 good tokens were refused", report(|counts| counts.good(&Outcome::Refused(401), ELAPSED))),
            ("1 good tokens were refused", report(|counts| counts.good(&Outcome::Refused(302), ELAPSED))),
            ("1 good tokens were refused", report(|counts| counts.good(&no_response(), ELAPSED))),
            (
                "1 good tokens were refused",
                report(|counts| counts.first(Rotation::SameKid, &Outcome::Refused(401), ELAPSED)),
            ),
            (
                "1 forged tokens were allowed",
                report(|counts| counts.bad(BadToken::Expired, &Outcome::Allowed)),
            ),
            (
                "1 forged tokens had no response: closed",
                report(|counts| counts.bad(BadToken::Expired, &no_response())),
            ),
            (NOT_SENT, report(|counts| counts.bad(BadToken::Expired, &not_sent()))),
            (NOT_SENT, report(|counts| counts.good(&not_sent(), ELAPSED))),
            ("it was stopped early", Report { completed: false, ..report(|_| {}) }),
            (
                "the drill was aborted: no port",
                Report { completed: false, aborted: Some("no port".to_owned()), ..report(|_| {}) },
            ),
        ] {
            assert_eq!(report.failures().join("; "), expected, "{:?}", report.counts);
            assert_eq!(report.passed(), expected.is_empty());
        }
    }

    #[test]
    fn a_drill_that_sent_no_good_token_or_no_forged_one_fails() {
        let mut good = Counts::default();
        good.good(&Outcome::Allowed, ELAPSED);
        let mut bad = Counts::default();
        bad.bad(BadToken::Expired, &Outcome::Refused(401));
        for (expected, report) in [
            ("no good token was sent", with_counts(bad)),
            ("no forged token was sent, because the attack rate is 0", with_counts(good.clone())),
            ("no forged token was sent", Report { attack_rate: 5, ..with_counts(good) }),
        ] {
            assert_eq!(report.failures(), [expected]);
        }
    }

    #[test]
    fn what_was_not_tested_is_not_proved() {
        let complete = report(|counts| {
            counts.faults = 1;
            for rotation in Rotation::ALL {
                counts.first(rotation, &Outcome::Allowed, ELAPSED);
            }
        });
        assert_eq!(complete.not_proved(), [""; 0]);

        let mut less = complete.clone();
        less.counts.faults = 0;
        less.counts.bad.remove(&BadToken::Withdrawn);
        less.counts.rotations.remove(&Rotation::Algorithm);
        less.attack_rate = 200;
        assert_eq!(
            less.not_proved(),
            [
                "that forged tokens are refused, key withdrawn or made anew: none was sent",
                "an attack of 200 tokens per second: 6 of 2000 were sent",
                "a rotation, another algorithm: there was none",
                "an outage of the issuer: there was none",
            ]
        );

        let mut unsent = complete.clone();
        let not_sent = Outcome::NotSent("no descriptors".to_owned());
        unsent.counts.rotations.remove(&Rotation::AtUse);
        unsent.counts.first(Rotation::AtUse, &not_sent, ELAPSED);
        unsent.counts.bad.remove(&BadToken::Expired);
        unsent.counts.bad(BadToken::Expired, &not_sent);
        assert_eq!(
            unsent.not_proved(),
            [
                "that forged tokens are refused, expired: none was sent",
                "a rotation, new key published at use: there was none",
            ]
        );

        let mut none = complete;
        none.counts.bad.clear();
        assert_eq!(none.not_proved(), ["that forged tokens are refused: none was sent"]);
    }

    #[test]
    fn the_bound_counts_both_causes_the_start_and_retries_after_faults() {
        assert_eq!(report(|_| {}).fetch_bound(), 2 * 21 + 1);
        assert_eq!(report(|counts| counts.faults = 2).fetch_bound(), 2 * 21 + 1 + 6);
    }
}
