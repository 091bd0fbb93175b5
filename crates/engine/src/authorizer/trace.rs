//! The steps of a decision, told while it is taken, for whoever wants to know why.
//!
//! Off, as it is for every request that a door brings, it costs a look at an empty option for each step. It
//! never holds a token, a signature or the value of a header that came with the request.

use std::fmt;

/// One step of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What was looked at: `rule`, `token`, `provider`, `screen`, `key`, `refresh`, `require`, `headers`.
    pub step: &'static str,
    /// How it came out, in a word or as a reason.
    pub outcome: String,
    /// More about it; may be empty.
    pub detail: String,
}

/// Steps, where somebody wants them.
#[derive(Debug, Default)]
pub(super) struct Trace(Option<Vec<Step>>);

impl Trace {
    /// One that keeps what it is told.
    pub(super) fn on() -> Self {
        Self(Some(Vec::new()))
    }

    /// Keeps a step. The detail is only made where it is wanted.
    pub(super) fn tell(
        &mut self,
        step: &'static str,
        outcome: impl fmt::Display,
        detail: impl FnOnce() -> String,
    ) {
        if let Some(steps) = &mut self.0 {
            steps.push(Step { step, outcome: outcome.to_string(), detail: detail() });
        }
    }

    /// What it was told.
    pub(super) fn into_steps(self) -> Vec<Step> {
        self.0.unwrap_or_default()
    }
}
