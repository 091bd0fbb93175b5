//! What happens when: rotations of every kind in turn, and between two of them a fault of the issuer.
//!
//! Pure.

use std::time::Duration;

/// What the embedded service, and a Portcullis that is configured as printed, is given as `min_spacing` and
/// `min_spacing_bad_signature`: a key that is made anew under its old name is promised to be found only where
/// the latter is within a request's wait.
pub(super) const SPACING: Duration = Duration::from_millis(500);

/// Their `timeout` of one fetch.
pub(super) const FETCH_TIMEOUT: Duration = Duration::from_millis(300);

/// How long a fault lasts.
pub(super) const FAULT: Duration = Duration::from_millis(600);

/// After a fault nothing rotates for this long: a fetch that began in it has ended, and so has what follows
/// from its failure; and a little for a machine that is busy.
pub(super) const RECOVERY: Duration =
    Duration::from_millis((FETCH_TIMEOUT.as_millis() + SPACING.as_millis() + 200) as u64);

/// How long after a rotation its fault begins.
const CALM: Duration = Duration::from_millis(800);

/// How an issuer goes over to another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rotation {
    /// The new key signs the moment it is published, beside the old one. Keycloak does this.
    AtUse,
    /// The key of the same name is made anew.
    SameKid,
    /// The new key is published some time before it signs.
    Announced,
    /// The new key is of another algorithm, and signs at once.
    Algorithm,
    /// The new key signs at once, and the old one is gone.
    Withdrawn,
}

impl Rotation {
    /// In the order in which they come.
    pub(super) const ALL: [Rotation; 5] =
        [Rotation::AtUse, Rotation::SameKid, Rotation::Announced, Rotation::Algorithm, Rotation::Withdrawn];

    /// What it is, in a few words.
    pub(super) fn name(self) -> &'static str {
        match self {
            Rotation::AtUse => "new key published at use",
            Rotation::SameKid => "new material under the same kid",
            Rotation::Announced => "new key published before use",
            Rotation::Algorithm => "another algorithm",
            Rotation::Withdrawn => "old key withdrawn at once",
        }
    }
}

/// How the issuer fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Status 500.
    Status,
    /// It takes a request and never answers.
    Hang,
    /// A page of HTML with status 200.
    Html,
    /// An empty key set.
    EmptySet,
    /// It closes the connection without an answer.
    Dropped,
    /// It refuses connections.
    Down,
}

impl Trouble {
    const ALL: [Trouble; 6] =
        [Trouble::Status, Trouble::Hang, Trouble::Html, Trouble::EmptySet, Trouble::Dropped, Trouble::Down];
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Not before this long after the start.
    pub(super) at: Duration,
    /// What it is.
    pub(super) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// The keys rotate.
    Rotate(Rotation),
    /// The issuer fails, for [`FAULT`].
    Fail(Trouble),
    /// The drill ends.
    End,
}

/// Every rotation has the same share of the time. Where that is too short for a fault and what has to follow
/// it, there are none.
///
/// # Errors
/// The rotations would be closer to each other than [`SPACING`].
pub(super) fn plan(duration: Duration, rotations: u32) -> Result<Vec<Step>, String> {
    let period = duration / rotations.max(1);
    if period < SPACING {
        return Err(format!(
            "{rotations} rotations in {} s are more than one in {} ms: fewer --rotations, or a longer --duration",
            duration.as_secs_f64(),
            SPACING.as_millis()
        ));
    }
    let mut steps = Vec::new();
    let kinds = Rotation::ALL.into_iter().cycle().zip(Trouble::ALL.into_iter().cycle());
    for (i, (rotation, trouble)) in (0..rotations).zip(kinds) {
        let at = period * i + period / 10;
        steps.push(Step { at, what: What::Rotate(rotation) });
        if period >= CALM + FAULT + RECOVERY + SPACING {
            steps.push(Step { at: at + CALM, what: What::Fail(trouble) });
        }
    }
    steps.push(Step { at: duration, what: What::End });
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_has_its_rotations_in_time_and_every_kind_of_them_and_of_faults() {
        let minute = Duration::from_secs(60);
        let steps = plan(minute, 20).expect("one every three seconds");
        let rotations: Vec<&Step> =
            steps.iter().filter(|step| matches!(step.what, What::Rotate(_))).collect();
        assert_eq!(rotations.len(), 20);
        assert!(rotations.windows(2).all(|pair| pair[1].at - pair[0].at == Duration::from_secs(3)));
        for kind in Rotation::ALL {
            assert_eq!(steps.iter().filter(|step| step.what == What::Rotate(kind)).count(), 4, "{kind:?}");
        }
        for trouble in Trouble::ALL {
            assert!(steps.iter().any(|step| step.what == What::Fail(trouble)), "{trouble:?}");
        }
        assert_eq!(steps.last(), Some(&Step { at: minute, what: What::End }));
    }

    #[test]
    fn a_fault_is_over_and_forgotten_when_the_keys_rotate() {
        let steps = plan(Duration::from_secs(60), 20).expect("one every three seconds");
        for pair in steps.windows(2) {
            if let What::Fail(_) = pair[0].what {
                assert!(pair[1].at - pair[0].at >= FAULT + RECOVERY || pair[1].what == What::End);
            }
        }
        let close = plan(Duration::from_secs(10), 10).expect("one each second");
        assert!(!close.iter().any(|step| matches!(step.what, What::Fail(_))), "no room for faults");
    }

    #[test]
    fn rotations_that_no_fetch_could_follow_are_refused() {
        let error = plan(Duration::from_secs(1), 3).expect_err("one in 333 ms");
        assert!(error.contains("--rotations"), "{error}");
        assert!(plan(Duration::from_secs(1), 2).is_ok());
    }
}
