//! Tokens whose signature was verified, with everything about them that does not depend on the request: what a cache of
//! verified tokens holds.
//!
//! # Architecture invariant
//! A [`VerifiedToken`] is created in this crate only, from a [`Validated`] token. It is used again only for the provider
//! that it was accepted for, while the key that verified it is among the current keys, and between `nbf` and `exp`.
//! Rules, audiences and the place of the token are checked for each request.

use std::sync::Arc;

use ecow::EcoString;
use http::{HeaderName, HeaderValue};

use super::{CachedKeys, IssuerState};
use crate::identity::UpstreamRejection;
use crate::validation::algorithm::Algorithm;
use crate::validation::json::SharedValues;
use crate::validation::provider::{Audiences, Provider};
use crate::validation::{self, Kid, UnixTime, Validated, Validity};

/// The values of a token that has passed the screen.
#[derive(Clone, Debug)]
pub(super) struct ScreenSummary {
    pub(super) algorithm: Algorithm,
    /// Truncated.
    pub(super) typ: Option<EcoString>,
    pub(super) expires: UnixTime,
}

/// A token whose signature was verified, and what was derived from it. It does not contain the token's text, except
/// for the payload if the provider has a `payload_header`.
#[derive(Clone, Debug)]
pub struct VerifiedToken {
    pub(super) provider: Arc<Provider>,
    pub(super) realm: Option<Arc<str>>,
    pub(super) kid: Option<Kid>,
    /// Truncated.
    pub(super) typ: Option<EcoString>,
    pub(super) validity: Validity,
    pub(super) validated: Validated,
    /// The claim headers for the upstream, or that they are too large.
    pub(super) headers: Result<Arc<[(HeaderName, HeaderValue)]>, UpstreamRejection>,
    /// The length of the token's text.
    pub(super) bytes: usize,
}

impl VerifiedToken {
    /// The provider that accepted it; its `issuer` is the token's.
    pub fn provider(&self) -> &Arc<Provider> {
        &self.provider
    }

    /// The length of the token's text and of its claim headers, in bytes.
    pub fn bytes(&self) -> usize {
        let headers = self.headers.iter().flat_map(|headers| headers.iter());
        headers.map(|(_, value)| value.len()).fold(self.bytes, usize::saturating_add)
    }

    /// The memory that its claims take, in bytes, as if it shared none of it.
    pub fn claims_memory(&self) -> usize {
        self.validated.claims().memory()
    }

    /// When the token expires, leeway included.
    pub fn expires(&self) -> UnixTime {
        self.validity.expires
    }

    /// The same token, with its `kid` and parts of its claims shared with its key and with earlier tokens: for a cache,
    /// which holds many.
    pub fn share(&self, values: &mut SharedValues) -> Self {
        let key_kid = self.validated.key().kid();
        let kid = self.kid.as_ref();
        let kid = key_kid.filter(|key_kid| Some(*key_kid) == kid).or(kid).cloned();
        Self { kid, validated: self.validated.share(values), ..self.clone() }
    }

    /// What the screen found.
    pub(super) fn screened(&self) -> ScreenSummary {
        let algorithm = self.validated.algorithm();
        ScreenSummary { algorithm, typ: self.typ.clone(), expires: self.validity.expires }
    }

    /// Whether the token is still accepted without another look at its signature: by the same provider, with the
    /// current keys, at this time, with these audiences or those of the provider.
    pub(super) fn is_current(
        &self,
        issuer: &IssuerState,
        audiences: Option<&Audiences>,
        now: UnixTime,
    ) -> bool {
        let keys = match &issuer.keys {
            CachedKeys::Fetched(keys) | CachedKeys::Fixed(keys) => keys,
            CachedKeys::NotFetched => return false,
        };
        Arc::ptr_eq(&self.provider, &issuer.provider)
            && self.validity.contains(now)
            && validation::check_audience(
                &self.validated,
                &self.provider,
                audiences.unwrap_or(&self.provider.audiences),
            )
            .is_ok()
            && keys.accepts_again(self.validated.key())
    }
}
