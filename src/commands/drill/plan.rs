//! The schedule: rotations of every kind in turn, with an issuer fault between two of them.
//!
//! Pure.

use std::time::Duration;

/// The `min_spacing` and `min_spacing_bad_signature` of the embedded service and of the printed configuration. A key
/// that is replaced under the same `kid` is found only if the latter is shorter than a request's wait.
pub(super) const SPACING: Duration = Duration::from_millis(500);

/// The fetch `timeout` of that configuration.
pub(super) const FETCH_TIMEOUT: Duration = Duration::from_millis(300);

/// The duration of a fault.
pub(super) const FAULT_DURATION: Duration = Duration::from_millis(600);

/// The time without a rotation after a fault: until a fetch that started during the fault has ended, the spacing after
/// its failure has passed, and some margin for a busy machine.
pub(super) const RECOVERY: Duration =
    Duration::from_millis((FETCH_TIMEOUT.as_millis() + SPACING.as_millis() + 200) as u64);

/// The time between a rotation and the following fault.
const FAULT_DELAY: Duration = Duration::from_millis(800);

/// How an issuer changes to another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rotation {
    /// The new key is published next to the old one and signs immediately, as in Keycloak.
    AtUse,
    /// The key is replaced under the same `kid`.
    SameKid,
    /// The new key is published before it signs.
    Announced,
    /// The new key has another algorithm and signs immediately.
    Algorithm,
    /// The new key signs immediately, and the old one is removed.
    Withdrawn,
}

impl Rotation {
    /// All kinds in the order of the schedule.
    pub(super) const ALL: [Rotation; 5] =
        [Rotation::AtUse, Rotation::SameKid, Rotation::Announced, Rotation::Algorithm, Rotation::Withdrawn];

    /// A short description.
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

/// A fault of the issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IssuerFault {
    /// Status 500.
    Status,
    /// It accepts a request and never responds.
    Hang,
    /// An HTML page with status 200.
    Html,
    /// An empty key set.
    EmptySet,
    /// It closes the connection without a response.
    Dropped,
    /// It refuses connections.
    Down,
}

impl IssuerFault {
    const ALL: [IssuerFault; 6] = [
        IssuerFault::Status,
        IssuerFault::Hang,
        IssuerFault::Html,
        IssuerFault::EmptySet,
        IssuerFault::Dropped,
        IssuerFault::Down,
    ];
}

/// One step of the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// The earliest time, measured from the start.
    pub(super) at: Duration,
    pub(super) action: Action,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Rotate the keys.
    Rotate(Rotation),
    /// Make the issuer fail for [`FAULT_DURATION`].
    Fail(IssuerFault),
    /// End the drill.
    End,
}

/// Divides the time equally among the rotations. Without enough time for a fault and the recovery from it there are no
/// faults.
///
/// # Errors
/// The rotations would be closer to each other than [`SPACING`].
pub(super) fn plan(duration: Duration, rotations: u32) -> Result<Vec<Step>, String> {
    let period = duration / rotations.max(1);
    if period < SPACING {
        return Err(format!(
            "{rotations} rotations in {} s are more than one every {} ms: use fewer --rotations or a longer --duration",
            duration.as_secs_f64(),
            SPACING.as_millis()
        ));
    }
    let mut steps = Vec::new();
    let kinds = Rotation::ALL.into_iter().cycle().zip(IssuerFault::ALL.into_iter().cycle());
    for (i, (rotation, fault)) in (0..rotations).zip(kinds) {
        let at = period * i + period / 10;
        steps.push(Step { at, action: Action::Rotate(rotation) });
        if period >= FAULT_DELAY + FAULT_DURATION + RECOVERY + SPACING {
            steps.push(Step { at: at + FAULT_DELAY, action: Action::Fail(fault) });
        }
    }
    steps.push(Step { at: duration, action: Action::End });
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_has_evenly_spaced_rotations_and_every_kind_of_rotation_and_fault() {
        let minute = Duration::from_secs(60);
        let steps = plan(minute, 20).expect("one every three seconds");
        let rotations: Vec<&Step> =
            steps.iter().filter(|step| matches!(step.action, Action::Rotate(_))).collect();
        assert_eq!(rotations.len(), 20);
        assert!(rotations.windows(2).all(|pair| pair[1].at - pair[0].at == Duration::from_secs(3)));
        for kind in Rotation::ALL {
            assert_eq!(
                steps.iter().filter(|step| step.action == Action::Rotate(kind)).count(),
                4,
                "{kind:?}"
            );
        }
        for fault in IssuerFault::ALL {
            assert!(steps.iter().any(|step| step.action == Action::Fail(fault)), "{fault:?}");
        }
        assert_eq!(steps.last(), Some(&Step { at: minute, action: Action::End }));
    }

    #[test]
    fn the_recovery_from_a_fault_is_complete_before_the_next_rotation() {
        let steps = plan(Duration::from_secs(60), 20).expect("one every three seconds");
        for pair in steps.windows(2) {
            if let Action::Fail(_) = pair[0].action {
                assert!(
                    pair[1].at - pair[0].at >= FAULT_DURATION + RECOVERY || pair[1].action == Action::End
                );
            }
        }
        let close = plan(Duration::from_secs(10), 10).expect("one each second");
        assert!(
            !close.iter().any(|step| matches!(step.action, Action::Fail(_))),
            "too little time for faults"
        );
    }

    #[test]
    fn rotations_faster_than_the_spacing_are_refused() {
        let error = plan(Duration::from_secs(1), 3).expect_err("one in 333 ms");
        assert!(error.contains("--rotations"), "{error}");
        assert!(plan(Duration::from_secs(1), 2).is_ok());
    }
}
