//! What a decision has looked at, step by step: the one record that the log and an explanation are written from.
//!
//! It keeps what was found and makes no text of it before somebody asks. It never holds a token, a signature or the value
//! of a header that came with the request.

use std::borrow::Cow;
use std::sync::Arc;

use super::steps::{StepName, join};
use crate::reason::Refusal;
use crate::rules::Rule;
use crate::validation::algorithm::Algorithm;
use crate::validation::json::Json;
use crate::validation::key_set::Key;
use crate::validation::provider::{ClaimPath, Provider, TokenSource};
use crate::validation::{Kid, StaleCause, UnixTime};

/// Why and where a decision ended without an allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The step that ended it.
    pub step: StepName,
    /// Why.
    pub refusal: Refusal,
    /// What was found, for the operator and never for the caller; may be empty.
    pub found: Cow<'static, str>,
    /// What would have done.
    pub wanted: Option<Cow<'static, str>>,
}

impl Refused {
    pub(super) fn new(step: StepName, refusal: impl Into<Refusal>) -> Self {
        Self { step, refusal: refusal.into(), found: Cow::Borrowed(""), wanted: None }
    }

    pub(super) fn found(self, found: impl Into<Cow<'static, str>>) -> Self {
        Self { found: found.into(), ..self }
    }

    pub(super) fn wanted(self, wanted: impl Into<Cow<'static, str>>) -> Self {
        Self { wanted: Some(wanted.into()), ..self }
    }

    /// What was found and what was wanted, in one line of at most 1,024 characters; `None` where the reason says it all.
    pub fn detail(&self) -> Option<String> {
        Some(join(&self.found, self.wanted.as_deref())).filter(|detail| !detail.is_empty())
    }
}

/// What a decision has looked at so far.
#[derive(Clone, Debug, Default)]
pub struct Record<'p> {
    /// The rule, once it was chosen; the inner `None` is none.
    pub(super) rule: Option<Option<&'p Rule>>,
    pub(super) token: Option<TokenFound<'p>>,
    pub(super) kid: Option<Kid>,
    pub(super) provider: Option<Arc<Provider>>,
    pub(super) realm: Option<String>,
    pub(super) screened: Option<ScreenPassed>,
    /// Whether the issuer had never been asked for its keys before.
    pub(super) opened: bool,
    pub(super) refreshed_for: Option<StaleCause>,
    pub(super) verified_by: Option<(Arc<Key>, Algorithm)>,
    /// The claims of a verified token.
    pub(super) claims: Option<Arc<Json>>,
    pub(super) requirements_met: bool,
    pub(super) changes: Option<ChangesMade>,
    pub(super) refused: Option<Refused>,
}

/// A token that was found.
#[derive(Clone, Debug)]
pub(super) struct TokenFound<'p> {
    pub(super) bytes: usize,
    pub(super) places: Vec<&'p TokenSource>,
}

/// What let a token pass the screen.
#[derive(Clone, Debug)]
pub(super) struct ScreenPassed {
    pub(super) algorithm: Algorithm,
    /// Cut short.
    pub(super) typ: Option<String>,
    pub(super) expires: UnixTime,
}

/// How many headers are changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChangesMade {
    pub(super) set: usize,
    pub(super) removed: usize,
}

impl<'p> Record<'p> {
    /// The rule that the request falls under, where there is one.
    pub fn rule(&self) -> Option<&'p Rule> {
        self.rule.flatten()
    }

    /// The provider that the token names, where it names one.
    pub fn provider(&self) -> Option<&Arc<Provider>> {
        self.provider.as_ref()
    }

    /// The realm that it names, of a provider that stands for many.
    pub fn realm(&self) -> Option<&str> {
        self.realm.as_deref()
    }

    /// The `kid` of the token's header, where it could be read and has one: the sender's word.
    pub fn kid(&self) -> Option<&Kid> {
        self.kid.as_ref()
    }

    /// Why newer keys were waited for, where they were.
    pub fn refreshed_for(&self) -> Option<StaleCause> {
        self.refreshed_for
    }

    /// The key that verified the token, and the algorithm of its signature.
    pub fn verified_by(&self) -> Option<&(Arc<Key>, Algorithm)> {
        self.verified_by.as_ref()
    }

    /// The claims of the token, once its signature was verified.
    pub fn claims(&self) -> Option<&Json> {
        self.claims.as_deref()
    }

    /// Where and why it ended; `None` where it has not, or with an allow.
    pub fn refused(&self) -> Option<&Refused> {
        self.refused.as_ref()
    }

    pub(super) fn places(&self) -> &[&'p TokenSource] {
        self.token.as_ref().map_or(&[], |token| &token.places)
    }

    /// Every claim of a verified token that its provider shares with the proxy and the token has.
    pub fn shared_claims(&self) -> impl Iterator<Item = (&ClaimPath, &Json)> {
        let paths = self.provider.iter().flat_map(|provider| &provider.metadata_claims);
        let claims = self.claims.as_deref();
        paths.filter_map(move |path| Some((path, path.resolve(claims?)?)))
    }
}
