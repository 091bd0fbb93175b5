//! Prints a decision with its steps, as text or as JSON. The output contains no token, no signature and no cookie of the
//! client.

use std::borrow::Cow;

use http::header::{COOKIE, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderName, HeaderValue};
use serde_json::{Value, json};

use super::asks::Asks;
use crate::access_request::AccessRequest;
use crate::config::Config;
use crate::decision::{Decision, Step, StepName};
use crate::identity::RemovedHeader;
use crate::reason::Outcome;
use crate::telemetry::Trigger;
use crate::validation::provider::Provider;
use crate::verdict::{DenialResponse, Verdict};

/// How the keys were obtained, or why none were needed.
pub(super) struct Keys {
    pub(super) outcome: &'static str,
    pub(super) detail: String,
    /// Whether the keys are those of this process, which signed the claims itself.
    pub(super) are_own: bool,
}

/// The printed explanation.
pub(super) struct Explanation<'a> {
    decision: &'a Decision<'a>,
    keys: Option<Keys>,
    door: &'static str,
    advice: Option<String>,
    asks: Option<Asks>,
    status: u16,
    set: Vec<(HeaderName, String)>,
    remove: &'a [RemovedHeader],
    remove_query: &'a [String],
}

impl<'a> Explanation<'a> {
    /// An explanation of this decision of a request at this door.
    pub(super) fn new(
        decision: &'a Decision<'a>,
        request: &AccessRequest<'_>,
        door: &'static str,
        keys: Option<Keys>,
        config: &Config,
    ) -> Self {
        let record = &decision.record;
        let (advice, asks) = (record.advice(&config.places), Asks::of(&decision.verdict, record, config));
        let shared = |status, set, remove, remove_query| Self {
            decision,
            keys,
            door,
            advice,
            asks,
            status,
            set,
            remove,
            remove_query,
        };
        let allowed = match decision.allowed(&config.responses, &request.headers) {
            Ok(allowed) => allowed,
            Err(denial) => {
                let DenialResponse { status, headers, .. } = *denial;
                let set = headers.into_iter().map(|(name, value)| (name, text(&value))).collect();
                return shared(status, set, &[], &[]);
            }
        };
        let changes = allowed.changes();
        let provider = record.provider().map(|provider| &**provider);
        let set = changes.set().map(|(name, value)| (name.clone(), redacted(name, value, provider)));
        shared(200, set.collect(), &changes.remove, &changes.remove_query)
    }

    /// The verdict.
    pub(super) fn verdict(&self) -> &Verdict {
        &self.decision.verdict
    }

    fn reason(&self) -> Outcome {
        self.decision.verdict.reason()
    }

    /// Why the request waited for newer keys, or `none`.
    fn refresh(&self) -> &'static str {
        self.decision.record.refreshed_for().map_or("none", |cause| Trigger::Forced(cause).as_str())
    }

    fn has_own_keys(&self) -> bool {
        self.keys.as_ref().is_some_and(|keys| keys.are_own)
    }

    /// The steps, with the one about the keys in its place.
    fn steps(&self) -> Vec<Step<'_>> {
        let is_shown =
            |step: &Step<'_>| !self.has_own_keys() || !matches!(step.name, StepName::Refresh | StepName::Key);
        let mut steps: Vec<Step<'_>> = self.decision.record.steps().filter(is_shown).collect();
        if let Some(Keys { outcome, detail, .. }) = &self.keys {
            let at = steps.iter().position(|step| step.name > StepName::Keys).unwrap_or(steps.len());
            let step = Step {
                name: StepName::Keys,
                outcome: Cow::Borrowed(*outcome),
                found: Cow::Borrowed(detail),
                wanted: None,
            };
            steps.insert(at, step);
        }
        steps
    }

    /// One JSON object.
    pub(super) fn to_json(&self) -> Value {
        let (decision, record) = (self.decision, &self.decision.record);
        let key = record.verified_by().filter(|_| !self.has_own_keys()).map(
            |(key, algorithm)| json!({"kid": key.kid(), "alg": algorithm.name(), "thumbprint": key.thumbprint()}),
        );
        let step = |step: &Step<'_>| json!({"step": step.name.as_str(), "outcome": step.outcome, "detail": step.detail()});
        let steps: Vec<Value> = self.steps().iter().map(step).collect();
        let set: serde_json::Map<String, Value> =
            self.set.iter().map(|(name, value)| (name.to_string(), value.as_str().into())).collect();
        let removed: Vec<&str> = self.remove.iter().map(RemovedHeader::as_str).collect();
        json!({
            "verdict": decision.verdict.as_str(),
            "reason": self.reason().as_str(),
            "status": self.status,
            "door": self.door,
            "provider": record.provider().map(|provider| &provider.name),
            "rule": record.rule().map(|rule| &rule.name),
            "key": key,
            "refresh": self.refresh(),
            "headers": {"set": set, "remove": removed, "remove_query": self.remove_query},
            "asks": self.asks.as_ref().map(Asks::to_json),
            "advice": self.advice,
            "steps": steps,
        })
    }

    /// Text for people.
    pub(super) fn to_text(&self) -> String {
        let (verdict, reason) = (&self.decision.verdict, self.reason().as_str());
        let (status, door) = (self.status, self.door);
        let mut text = format!("{}: {reason} ({status}) at the door {door}\n\n", verdict.as_str());
        let steps = self.steps();
        let widest = steps.iter().map(|step| step.outcome.chars().count()).max().unwrap_or_default();
        for step in &steps {
            let (name, outcome, detail) = (step.name.as_str(), &step.outcome, step.detail());
            text.push_str(format!("{name:<8}  {outcome:<widest$}  {detail}").trim_end());
            text.push('\n');
        }
        if let Some(asks) = &self.asks {
            text.push_str("\nthe request needs\n");
            asks.lines().iter().for_each(|line| text.push_str(&format!("  {line}\n")));
        }
        let title = match verdict {
            Verdict::Allow(_) => "the upstream gets",
            Verdict::Deny(_) | Verdict::Unavailable(_) => "the client gets",
        };
        text.push_str(&format!("\n{title}\n"));
        for (name, value) in &self.set {
            text.push_str(&format!("  {name}: {value}\n"));
        }
        for header in self.remove {
            // Escaped, because a client may have sent any octets.
            text.push_str(&format!("  no {}\n", header.as_str().escape_debug()));
        }
        for name in self.remove_query {
            text.push_str(&format!("  no query parameter {name}\n"));
        }
        if let Some(advice) = &self.advice {
            text.push_str(&format!("\nadvice: {advice}\n"));
        }
        text
    }
}

/// A header's value with the token's payload and the client's cookies replaced.
pub(in super::super) fn redacted(
    name: &HeaderName,
    value: &HeaderValue,
    provider: Option<&Provider>,
) -> String {
    if provider.is_some_and(|provider| provider.payload_header.as_ref() == Some(name)) {
        format!("(the token's payload, {} bytes)", value.len())
    } else if name == COOKIE {
        "(the cookies without the token)".to_owned()
    } else if name == SEC_WEBSOCKET_PROTOCOL {
        "(the protocols without the token)".to_owned()
    } else {
        text(value)
    }
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}
