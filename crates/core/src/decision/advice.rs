//! What an operator can do about a refusal: one line for each, with the keys of the configuration that it is about.
//!
//! A refusal keeps what the line needs; the text is made where it is shown, and never for the client.

use super::hint::Hint;
use super::issuers::{Difference, Near};
use super::places::{ConfigPlaces, Setting};
use super::record::Record;
use super::steps::shortened;
use crate::rules::{RequirementRejection, Rule};

impl Record<'_> {
    /// What an operator can do about the refusal, in one line of at most 1,024 characters, with the places of the settings
    /// that it is about; `None` if the request was not refused. It is not for the client.
    pub fn advice(&self, places: &ConfigPlaces) -> Option<String> {
        let hint = &self.refused()?.hint;
        let advice = Adviser { record: self, places };
        let text = advice.about_request(hint).or_else(|| advice.about_token(hint))?;
        Some(shortened(text))
    }
}

/// Writes the lines.
struct Adviser<'r> {
    record: &'r Record<'r>,
    places: &'r ConfigPlaces,
}

impl Adviser<'_> {
    fn about_request(&self, hint: &Hint) -> Option<String> {
        let or_header = |name: &Option<String>| name.clone().unwrap_or_else(|| "this header".to_owned());
        Some(match hint {
            Hint::Text(text) => (*text).to_owned(),
            Hint::UntrustedProxy(peer) => format!(
                "add {peer} to {} if it is your proxy, or block its access to this listener",
                self.top("trusted_proxies")
            ),
            Hint::MessageTooLarge => format!(
                "raise {}, or have the proxy send less of the body along",
                self.top("limits.message_bytes")
            ),
            Hint::RuleNotByName(name) => format!(
                "say `by_name: true` in {}, or name another rule in the proxy's route",
                self.places.name(Setting::Rule(name, ""))
            ),
            Hint::DeniedByRule => {
                format!("change {}, or add a rule before it, if this request has to pass", self.rule("deny"))
            }
            Hint::NoRule => format!(
                "add a rule that matches this request to {}, or change {}",
                self.top("rules"),
                self.top("default")
            ),
            Hint::NoToken => {
                "send a token in a place that is wanted, or add the place where the client has it to \
                              token_from of its provider"
                    .to_owned()
            }
            Hint::NoSuchRule(near) => {
                let near = near.as_ref().map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
                format!("correct the name of the rule in the proxy's route{near}")
            }
            Hint::Place(found) => {
                format!("add {found} to {}, or send the token elsewhere", self.provider("token_from"))
            }
            Hint::Header(name) => format!("remove {} at the proxy, or correct the client", or_header(name)),
            Hint::Override(name) => format!(
                "remove {} at the proxy, or add it to {} if an outer proxy of yours sets it",
                or_header(name),
                self.top("trusted_headers")
            ),
            Hint::ClaimHeader(name) => format!(
                "remove {} at the proxy as its recipe in deploy/ does, then say `client_headers: overwrite` in {}",
                or_header(name),
                self.top("listen.forward_auth")
            ),
            _ => return None,
        })
    }

    fn about_token(&self, hint: &Hint) -> Option<String> {
        Some(match hint {
            Hint::Limit(key) => format!("raise {}, or have the issuer write smaller tokens", self.top(key)),
            Hint::NotAJwt => {
                "send a signed JWT as the issuer wrote it, complete; if the issuer's access tokens are opaque, as Google's, \
                 its ID token"
                    .to_owned()
            }
            Hint::Algorithm(Some(algorithm)) => format!(
                "add {algorithm} to {}, or have the issuer sign with another algorithm",
                self.provider("algorithms")
            ),
            Hint::Algorithm(None) => format!(
                "have the issuer sign with an algorithm of {}: the token's is not supported",
                self.provider("algorithms")
            ),
            Hint::Type(Some(typ)) => {
                format!("send an access token, or add {typ} to {}", self.provider("token_types"))
            }
            Hint::Type(None) => format!(
                "have the issuer write typ into its tokens, or remove {}",
                self.provider("token_types")
            ),
            Hint::Issuer(found) => self.about_issuer(&found.0, found.1.as_ref()),
            Hint::TrustDomain(name) => format!(
                "have the issuer write iss, or add a provider with `spiffe: {name}` and the keys of its bundle to {}",
                self.top("providers")
            ),
            Hint::IssuerOfSvid(issuer) => format!(
                "add a provider with the issuer {issuer} to {}: one with `spiffe` has the tokens without iss",
                self.top("providers")
            ),
            Hint::Audience(found) => self.about_audience(found.as_deref()),
            // Access tokens of these issuers have no `aud`, and ID tokens have.
            Hint::AudienceElsewhere("aud") => {
                "send an access token: this one names the audience in aud, where audience_claims of its provider does not look"
                    .to_owned()
            }
            Hint::AudienceElsewhere(name) => format!(
                "have the issuer write the audience into aud, or add {name} to {}, if it may name the audience",
                self.provider("audience_claims")
            ),
            Hint::LifetimeTooLong => {
                format!(
                    "have the issuer write tokens of a shorter lifetime, or raise {}",
                    self.provider("max_lifetime")
                )
            }
            Hint::Clock { is_near: false } => {
                "get a new token from the issuer, and compare its clock with that of this machine".to_owned()
            }
            Hint::Clock { is_near: true } => format!(
                "get a new token; if the clocks of the issuer and of this machine differ, set them, or raise {}",
                self.provider("clock_skew")
            ),
            Hint::ClaimMissing(name) => self.about_missing(name),
            Hint::ClaimMalformed(name, wanted) => format!("have the issuer write {name} as {wanted}"),
            Hint::KeyUnknown { is_other_alg: true } => format!(
                "have the issuer publish a key of another kid for that alg, or correct the alg of the key; its provider is {}",
                self.provider("")
            ),
            Hint::KeyUnknown { is_other_alg: false } => format!(
                "check that {} is that of this issuer, and that the issuer publishes the key",
                self.key_source()
            ),
            Hint::BadSignature => format!(
                "get a new token, since this one was changed or another key signed it; if every token is refused, check \
                 that {} is that of this issuer",
                self.key_source()
            ),
            Hint::KeysUnavailable => format!(
                "correct what the error names, or {}; `portcullis validate --online` tries it, and `/keys` of the admin \
                 listener and the log of a running service have the error",
                self.key_source()
            ),
            Hint::TooManyWaiters => format!(
                "see why the keys take so long from {}, or raise {} and max_waiting_bytes",
                self.key_source(),
                self.provider("refresh.max_waiters")
            ),
            Hint::Requirement(rejection) => self.about_requirement(rejection),
            Hint::ClaimTooLarge => format!(
                "raise {}, or pass fewer claims in {}",
                self.top("limits.claim_header_bytes"),
                self.provider("claim_headers")
            ),
            _ => return None,
        })
    }

    fn about_issuer(&self, issuer: &str, near: Option<&Near>) -> String {
        match near {
            None => format!(
                "get a token from an issuer in {}, or add a provider with the issuer {issuer}",
                self.top("providers")
            ),
            Some(Near { provider, difference: Difference::Parts(_) }) => format!(
                "write {issuer} in {}, if this is the issuer's own name for itself",
                self.places.name(Setting::Provider(provider, "issuer"))
            ),
            Some(Near { provider, difference: Difference::Realm(_) }) => format!(
                "add the realm to {}, if its tokens are to be accepted",
                self.places.name(Setting::Provider(provider, "realms"))
            ),
        }
    }

    fn about_audience(&self, found: Option<&str>) -> String {
        let of_rule = self
            .record
            .rule()
            .filter(|rule| rule.requirements().is_some_and(|requirements| requirements.audiences.is_some()));
        let setting = match of_rule {
            Some(_) => self.rule("audiences"),
            None => self.provider("audiences"),
        };
        match found {
            Some(found) => format!(
                "ask the issuer for a token for this service, or add {found} to {setting} if such tokens are to be accepted"
            ),
            None => format!("ask the issuer for a token with one of {setting} in aud"),
        }
    }

    fn about_missing(&self, name: &str) -> String {
        match name {
            "exp" => "have the issuer write exp: tokens without an end are never accepted".to_owned(),
            "iss" => "have the issuer write iss: it selects the provider".to_owned(),
            "aud" => format!(
                "have the issuer write one of {} into aud, or say `any_audience: true` instead",
                self.provider("audiences")
            ),
            name => format!(
                "have the issuer write {name}, or remove it from {}",
                self.provider("required_claims")
            ),
        }
    }

    fn about_requirement(&self, rejection: &RequirementRejection) -> String {
        match rejection {
            RequirementRejection::Provider => {
                format!("get a token of another provider, or add this one to {}", self.rule("providers"))
            }
            RequirementRejection::Claim(name) => format!(
                "have the issuer write such a value into {name}, or change {}",
                self.rule("require.claims")
            ),
            RequirementRejection::Scope => {
                let wanted = self.record.refused().and_then(|refused| refused.wanted.as_deref());
                let missing = wanted.unwrap_or("the scopes");
                format!(
                    "ask the issuer for a token with {missing}, or change {}",
                    self.rule("require.scopes")
                )
            }
            RequirementRejection::Condition | RequirementRejection::Undecided(_) => format!(
                "send a request and a token for which it is true, or change {}",
                self.rule("require.condition")
            ),
        }
    }

    fn top(&self, key: &str) -> String {
        self.places.name(Setting::Top(key))
    }

    /// Where the keys of the token's provider are from.
    fn key_source(&self) -> String {
        self.places.key_source(self.record.provider().map_or("", |provider| &*provider.name))
    }

    /// A setting of the token's provider.
    fn provider(&self, key: &str) -> String {
        let name = self.record.provider().map_or("", |provider| &*provider.name);
        self.places.name(Setting::Provider(name, key))
    }

    /// A setting of the request's rule.
    fn rule(&self, key: &str) -> String {
        let name = self.record.rule().map_or("", |rule: &Rule| &*rule.name);
        self.places.name(Setting::Rule(name, key))
    }
}
