//! Renders the record of a decision as steps.

use std::borrow::Cow;

use super::record::{ChangeCounts, Record, Refused, TokenSummary};
use super::steps::{Step, StepName};
use super::verified::ScreenSummary;
use crate::reason::{DenyReason, Refusal};
use crate::text::{on_one_line, quoted, timestamp};
use crate::validation::Kid;

impl Record<'_> {
    /// The steps in their order. The last one decided.
    pub fn steps(&self) -> impl Iterator<Item = Step<'_>> {
        let steps = [
            self.rule_step(),
            self.token_step(),
            self.provider_step(),
            self.screen_step(),
            self.refresh_step(),
            self.key_step(),
            self.require_step(),
            self.headers_step(),
            self.refused_step(),
        ];
        steps.into_iter().flatten()
    }

    fn rule_step(&self) -> Option<Step<'_>> {
        Some(match self.rule? {
            None => step(StepName::Rule, "none", "a valid token of any provider is enough"),
            Some(rule) => step(StepName::Rule, &*rule.name, rule.effect.to_string()),
        })
    }

    fn token_step(&self) -> Option<Step<'_>> {
        let TokenSummary { bytes, places } = self.token.as_ref()?;
        let places: Vec<String> = places.iter().map(ToString::to_string).collect();
        Some(step(StepName::Token, "found", format!("{bytes} bytes in {}", places.join(", "))))
    }

    fn provider_step(&self) -> Option<Step<'_>> {
        let provider = self.provider.as_ref()?;
        Some(step(StepName::Provider, &*provider.name, &*provider.issuer))
    }

    fn screen_step(&self) -> Option<Step<'_>> {
        let ScreenSummary { algorithm, typ, expires } = self.screened.as_ref()?;
        let named = [("kid", self.kid().map(Kid::as_str)), ("typ", typ.as_deref())];
        let named = named.into_iter().filter_map(|(name, text)| Some(format!(", {name} {}", quoted(text?))));
        let named: String = named.collect();
        let until = timestamp(expires.as_secs_f64());
        let found = format!(
            "alg {algorithm}{named}; iss, aud, times and required claims are valid until {until}, skew included"
        );
        Some(step(StepName::Screen, "passed", found))
    }

    fn refresh_step(&self) -> Option<Step<'_>> {
        if let Some(cause) = self.refreshed_for {
            let cause = DenyReason::from(cause).as_str();
            return Some(step(
                StepName::Refresh,
                "waited",
                format!("for newer keys: {cause} under the current ones"),
            ));
        }
        if self.first_fetch {
            return Some(step(StepName::Refresh, "waited", "for the first keys of this issuer"));
        }
        let is_denied = |refused: &Refused| {
            refused.step == StepName::Key && matches!(refused.refusal, Refusal::Denied(_))
        };
        let was_verified = self.verified.is_some() || self.refused.as_ref().is_some_and(is_denied);
        was_verified.then(|| step(StepName::Refresh, "none", "the current keys were enough"))
    }

    fn key_step(&self) -> Option<Step<'_>> {
        let (key, algorithm) = self.verified_by()?;
        let shared_secret = || "of a shared secret".to_owned();
        let thumbprint = key.thumbprint().map_or_else(shared_secret, |known| known.to_string());
        let kid = key.kid().map_or_else(|| "without a kid".to_owned(), |kid| on_one_line(kid.as_str()));
        Some(step(StepName::Key, kid, format!("{algorithm}, thumbprint {thumbprint}")))
    }

    fn require_step(&self) -> Option<Step<'_>> {
        self.requirements_met.then(|| step(StepName::Require, "met", ""))
    }

    fn headers_step(&self) -> Option<Step<'_>> {
        let ChangeCounts { set, removed } = self.changes?;
        Some(step(StepName::Headers, "made", format!("{set} set, {removed} removed")))
    }

    fn refused_step(&self) -> Option<Step<'_>> {
        let Refused { step, refusal, found, wanted, .. } = self.refused.as_ref()?;
        // A rule that denies everything is already reported as the chosen rule.
        if *step == StepName::Rule && self.rule.is_some() {
            return None;
        }
        Some(Step {
            name: *step,
            outcome: Cow::Borrowed(refusal.as_str()),
            found: Cow::Borrowed(found),
            wanted: wanted.as_deref().map(Cow::Borrowed),
        })
    }
}

fn step<'r>(name: StepName, outcome: impl Into<Cow<'r, str>>, found: impl Into<Cow<'r, str>>) -> Step<'r> {
    Step { name, outcome: outcome.into(), found: found.into(), wanted: None }
}
