//! What a decision has found out so far: for the log, for the denial, and for whoever wants to know why.
//!
//! Here a step's failure becomes the reason of a denial, with a detail for the log that no caller sees.

use std::sync::Arc;

use super::trace::Trace;
use crate::bearer_token::{FoundToken, NoToken};
use crate::identity::{Unfit, UpstreamChanges};
use crate::reason::Reason;
use crate::rules::{Rule, Unmet, Unruled};
use crate::validation::algorithm::Algorithm;
use crate::validation::json::Json;
use crate::validation::key_set::Key;
use crate::validation::provider::Provider;
use crate::validation::{Kid, StaleCause, Validated, ValidationError};

/// What a decision has found out so far, for the log, the denial and whoever wants to know why.
#[derive(Default)]
pub(super) struct Findings<'s> {
    pub(super) trace: Trace,
    pub(super) rule: Option<&'s Rule>,
    pub(super) provider: Option<Arc<Provider>>,
    pub(super) realm: Option<String>,
    pub(super) verified_by: Option<(Arc<Key>, Algorithm)>,
    pub(super) refreshed_for: Option<StaleCause>,
    pub(super) kid: Option<String>,
    pub(super) subject: Option<String>,
    pub(super) shared_claims: Vec<(String, Json)>,
    pub(super) detail: Option<String>,
}

impl<'s> Findings<'s> {
    pub(super) fn note_rule(&mut self, rule: Option<&'s Rule>) {
        self.rule = rule;
        match rule {
            None => self.trace.tell("rule", "none", || "a valid token of any provider is enough".to_owned()),
            Some(rule) => self.trace.tell("rule", &rule.name, || rule.effect.to_string()),
        }
    }

    pub(super) fn take_token<'t>(
        &mut self,
        found: Result<FoundToken<'t>, NoToken>,
    ) -> Result<FoundToken<'t>, Reason> {
        match found {
            Ok(found) => {
                self.trace.tell("token", "found", || {
                    let places: Vec<String> = found.places.iter().map(ToString::to_string).collect();
                    format!("{} bytes in {}", found.text.len(), places.join(", "))
                });
                Ok(found)
            }
            Err(no_token) => {
                let reason = match no_token {
                    NoToken::Missing => Reason::TokenMissing,
                    NoToken::Several => Reason::MultipleTokens,
                    NoToken::Malformed => Reason::Malformed,
                };
                self.trace.tell("token", reason.as_str(), String::new);
                Err(reason)
            }
        }
    }

    pub(super) fn note_verification(&mut self, outcome: Result<&Validated, &Reason>) {
        match self.refreshed_for {
            None => self.trace.tell("refresh", "none", || "the keys in hand were enough".to_owned()),
            Some(cause) => {
                let cause = Reason::from(&ValidationError::Stale(cause));
                self.trace.tell("refresh", "waited", || {
                    format!("for newer keys: {} under those in hand", cause.as_str())
                });
            }
        }
        match outcome {
            Err(reason) => self.trace.tell("key", reason.as_str(), String::new),
            Ok(validated) => {
                let (key, algorithm) = (validated.key(), validated.algorithm());
                self.trace.tell("key", key.kid().map_or("without a kid", Kid::as_str), || {
                    let of_secret = || "of a secret".to_owned();
                    let thumbprint = key.thumbprint().map_or_else(of_secret, |known| known.to_string());
                    format!("{algorithm}, thumbprint {thumbprint}")
                });
                self.verified_by = Some((Arc::clone(key), algorithm));
            }
        }
    }

    pub(super) fn note_claims(&mut self, claims: &Json, provider: &Provider) {
        self.subject = claims.member("sub").and_then(|sub| sub.as_str()).map(str::to_owned);
        self.shared_claims = provider
            .metadata_claims
            .iter()
            .filter_map(|path| Some((path.to_string(), path.resolve(claims)?.clone())))
            .collect();
    }

    pub(super) fn refuse_unruled(&mut self, unruled: Unruled) -> Reason {
        let (reason, detail) = match unruled {
            Unruled::NoSuchRule => (Reason::RuleDenied, "portcullis_rule names no rule for such a request"),
            Unruled::AmbiguousPath => (Reason::RequestMalformed, "an ambiguous path"),
            Unruled::NotPlainPath => {
                (Reason::RequestMalformed, "a path with a dot segment, `//` at its start or a fragment")
            }
            Unruled::RepeatedSlashes => {
                (Reason::RequestMalformed, "a path that means another rule once its repeated slashes are one")
            }
            Unruled::MalformedHost => (Reason::RequestMalformed, "a host that cannot be compared"),
            Unruled::MalformedMethod => (Reason::RequestMalformed, "a method that is no token in upper case"),
            Unruled::SeveralValues(name) => {
                let detail = format!("several values of {name}, which the rule's condition reads");
                return self.refuse("rule", Reason::RequestMalformed, Some(detail));
            }
        };
        self.refuse("rule", reason, Some(detail.to_owned()))
    }

    pub(super) fn take_requirements(&mut self, met: Result<(), Unmet>) -> Result<(), Reason> {
        match met {
            Ok(()) => {
                self.trace.tell("require", "met", String::new);
                Ok(())
            }
            Err(unmet) => {
                if let (Unmet::Undecided(why), Some(rule)) = (&unmet, self.rule) {
                    tracing::info!(
                        rule = rule.name,
                        why,
                        "a condition cannot be evaluated: the request is refused"
                    );
                }
                let reason = match unmet {
                    Unmet::Scope => Reason::InsufficientScope,
                    Unmet::Provider | Unmet::Claim(_) | Unmet::Condition | Unmet::Undecided(_) => {
                        Reason::RuleDenied
                    }
                };
                Err(self.refuse("require", reason, Some(unmet.to_string())))
            }
        }
    }

    pub(super) fn take_changes(
        &mut self,
        changes: Result<UpstreamChanges, Unfit>,
    ) -> Result<UpstreamChanges, Reason> {
        let (reason, detail) = match changes {
            Ok(changes) => {
                self.trace.tell("headers", "made", || {
                    format!("{} set, {} removed", changes.set.len(), changes.remove.len())
                });
                return Ok(changes);
            }
            Err(Unfit::ClaimTooLarge) => (Reason::ClaimTooLarge, None),
            Err(Unfit::LookAlike) => {
                let detail = "a look-alike of a claim header or of one that the decision reads";
                (Reason::RequestMalformed, Some(detail))
            }
            Err(Unfit::Override) => {
                let detail = "a header that takes the place of method, path or host: the proxy's file has to remove it";
                (Reason::RequestMalformed, Some(detail))
            }
            Err(Unfit::ClaimHeaderOfClient) => {
                let detail = "a claim header of the client's own: the proxy's file has to remove it first";
                (Reason::RequestMalformed, Some(detail))
            }
            Err(Unfit::TokenInQuery) => (
                Reason::RequestMalformed,
                Some("forward_token: the proxy cannot take the token out of this query"),
            ),
        };
        Err(self.refuse("headers", reason, detail.map(str::to_owned)))
    }

    pub(super) fn refuse(&mut self, step: &'static str, reason: Reason, detail: Option<String>) -> Reason {
        self.trace.tell(step, reason.as_str(), || detail.clone().unwrap_or_default());
        self.detail = detail;
        reason
    }
}
