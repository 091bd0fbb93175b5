//! The record of a decision, from which the log and explanations are written.
//!
//! It keeps values and formats text only on request. It never holds a token, a signature or the value of a request
//! header.

use std::borrow::Cow;
use std::sync::Arc;

use super::hint::Hint;
use super::steps::{StepName, joined};
use super::verified::{ScreenSummary, VerifiedToken};
use crate::reason::Refusal;
use crate::rules::Rule;
use crate::validation::algorithm::Algorithm;
use crate::validation::json::Json;
use crate::validation::key_set::Key;
use crate::validation::provider::{ClaimPath, Provider, TokenSource};
use crate::validation::{Kid, StaleCause};

/// Why and at which step a request was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The step that refused it.
    pub step: StepName,
    /// Why.
    pub refusal: Refusal,
    /// What was found, for the operator and never for the client; may be empty.
    pub found: Cow<'static, str>,
    /// What would have been accepted.
    pub wanted: Option<Cow<'static, str>>,
    /// What the advice is made from.
    pub(super) hint: Hint,
}

impl Refused {
    pub(super) fn new(step: StepName, refusal: impl Into<Refusal>) -> Self {
        Self { step, refusal: refusal.into(), found: Cow::Borrowed(""), wanted: None, hint: Hint::None }
    }

    pub(super) fn found(self, found: impl Into<Cow<'static, str>>) -> Self {
        Self { found: found.into(), ..self }
    }

    /// With one more thing that was found, if there is one.
    pub(super) fn also(self, found: Option<String>) -> Self {
        match found {
            Some(more) => Self { found: format!("{}; {more}", self.found).into(), ..self },
            None => self,
        }
    }

    pub(super) fn wanted(self, wanted: impl Into<Cow<'static, str>>) -> Self {
        Self { wanted: Some(wanted.into()), ..self }
    }

    pub(super) fn hint(self, hint: Hint) -> Self {
        Self { hint, ..self }
    }

    /// What was found and what was wanted, in one line of at most 1,024 characters; `None` if the reason is enough.
    pub fn detail(&self) -> Option<String> {
        Some(joined(&self.found, self.wanted.as_deref())).filter(|detail| !detail.is_empty())
    }
}

/// What a decision has evaluated so far.
#[derive(Clone, Debug, Default)]
pub struct Record<'p> {
    /// The rule, once it was chosen; the inner `None` means that no rule matched.
    pub(super) rule: Option<Option<&'p Rule>>,
    pub(super) token: Option<TokenSummary<'p>>,
    pub(super) kid: Option<Kid>,
    pub(super) provider: Option<Arc<Provider>>,
    pub(super) realm: Option<Arc<str>>,
    pub(super) screened: Option<ScreenSummary>,
    /// Whether this request needs the first fetch of the issuer's keys.
    pub(super) first_fetch: bool,
    pub(super) refreshed_for: Option<StaleCause>,
    /// The token, once its signature was verified.
    pub(super) verified: Option<Arc<VerifiedToken>>,
    /// Whether its signature was verified for an earlier request.
    pub(super) from_cache: bool,
    pub(super) requirements_met: bool,
    pub(super) changes: Option<ChangeCounts>,
    pub(super) refused: Option<Refused>,
}

/// The token of the request.
#[derive(Clone, Debug)]
pub(super) struct TokenSummary<'p> {
    pub(super) bytes: usize,
    pub(super) places: Vec<&'p TokenSource>,
}

/// The number of changed headers.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChangeCounts {
    pub(super) set: usize,
    pub(super) removed: usize,
}

impl<'p> Record<'p> {
    /// The rule of the request, if one matched.
    pub fn rule(&self) -> Option<&'p Rule> {
        self.rule.flatten()
    }

    /// The provider of the token's issuer, if one matched.
    pub fn provider(&self) -> Option<&Arc<Provider>> {
        self.provider.as_ref()
    }

    /// The realm of the token's issuer, for a provider with several.
    pub fn realm(&self) -> Option<&str> {
        self.realm.as_deref()
    }

    /// The `kid` of the token's header, if it was read and has one. It is not verified.
    pub fn kid(&self) -> Option<&Kid> {
        self.kid.as_ref()
    }

    /// Why the request waited for newer keys, if it did.
    pub fn refreshed_for(&self) -> Option<StaleCause> {
        self.refreshed_for
    }

    /// The key that verified the token, and the algorithm of its signature.
    pub fn verified_by(&self) -> Option<(&Arc<Key>, Algorithm)> {
        let validated = &self.verified.as_ref()?.validated;
        Some((validated.key(), validated.algorithm()))
    }

    /// The token, if this request has verified its signature: to be kept for later requests.
    pub fn newly_verified(&self) -> Option<&Arc<VerifiedToken>> {
        self.verified.as_ref().filter(|_| !self.from_cache)
    }

    /// Whether the token was verified for an earlier request, and not again for this one.
    pub fn is_from_cache(&self) -> bool {
        self.from_cache
    }

    /// The claims of the token, once its signature was verified.
    pub fn claims(&self) -> Option<&Json> {
        Some(self.verified.as_ref()?.validated.claims())
    }

    /// The algorithm of the token's signature, once the token has passed the screen.
    pub(super) fn algorithm(&self) -> Option<Algorithm> {
        self.screened.as_ref().map(|screened| screened.algorithm)
    }

    /// Where and why the request was refused; `None` if it was not.
    pub fn refused(&self) -> Option<&Refused> {
        self.refused.as_ref()
    }

    pub(super) fn places(&self) -> &[&'p TokenSource] {
        self.token.as_ref().map_or(&[], |token| &token.places)
    }

    /// Every claim of a verified token that its provider shares with the proxy.
    pub fn shared_claims(&self) -> impl Iterator<Item = (&ClaimPath, &Json)> {
        let paths = self.provider.iter().flat_map(|provider| &provider.metadata_claims);
        let claims = self.claims();
        paths.filter_map(move |path| Some((path, path.resolve(claims?)?)))
    }
}
