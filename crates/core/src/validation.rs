//! Token validation as a pure function of the token, the provider's rules, a key set and the time.
//!
//! It has two steps, because newer keys can only change the result of the second one:
//!
//! 1. [`screen`] needs no key. A token that it refuses is [`Permanent`] and causes no fetch.
//! 2. [`try_validate`] verifies the signature with the current key set. If that set may be outdated (no key for the
//!    `kid`, or no key of that `kid` verifies the signature), the result is [`ValidationError::Stale`].
//!
//! # Choices that no RFC makes
//!
//! - A token without `exp` is refused; a token with a very long lifetime is accepted unless its provider has a longest one,
//!   and so is an `iat` in the future. An `nbf` or `iat` of null is treated as absent.
//! - A key without `kid` verifies only tokens without one; a token without `kid` is tried with every key that fits
//!   its algorithm, up to [`MAX_KEYS_TRIED`].
//! - A JWT-SVID is chosen by the trust domain of `sub` only if it has no `iss`.
//! - A sender-constrained token (`cnf`) is accepted as a plain bearer token.
//! - RSA exponents from 3 are accepted, and weak moduli are not detected. The second form `(r, n - s)` of an ECDSA
//!   signature is accepted, so two different texts can be the same token.
//!
//! # Architecture invariant
//! No IO, no clock, no logging and no `async` in this module: the time is an argument. Only this module verifies
//! signatures, with `aws_lc_rs`: `jsonwebtoken` parses an RSA or EC key anew for each token.

pub mod algorithm;
mod claims;
pub mod digest;
pub mod json;
pub mod key_set;
mod kid;
pub mod provider;
pub mod spiffe;
mod token;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

pub use self::kid::{Kid, KidTooLong};
pub use self::token::{Malformation, Token, TokenError, canonical_media_type};

use self::algorithm::Algorithm;
use self::json::{Json, JsonLimits, SharedValues};
use self::key_set::{Key, KeySet};
use self::provider::{Audiences, Provider, SelectedBy, TokenTypes};
use self::token::Compact;

/// The most keys that are tried for a token without a `kid`, or for a `kid` with several keys: it bounds the work
/// that one token can cause.
pub const MAX_KEYS_TRIED: usize = 16;

/// Wall time as seconds since the Unix epoch, leap seconds ignored (NumericDate, RFC 7519 §2).
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct UnixTime(f64);

impl UnixTime {
    /// This many seconds after the epoch; negative before it.
    pub fn from_secs(seconds: i64) -> Self {
        // Exact for every date of the next hundred million years.
        Self(seconds as f64)
    }

    /// This long after the epoch.
    pub fn from_epoch(since: Duration) -> Self {
        Self(since.as_secs_f64())
    }

    /// This many seconds after the epoch, with fractions; negative before it.
    pub fn from_secs_f64(seconds: f64) -> Self {
        Self(seconds)
    }

    /// Seconds since the epoch, with fractions.
    pub fn as_secs_f64(self) -> f64 {
        self.0
    }
}

/// The most memory that one token may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenLimits {
    /// The longest token, in bytes; default 16 KiB.
    pub bytes: usize,
    /// The limits of its header, and of its payload.
    pub json: JsonLimits,
}

impl Default for TokenLimits {
    fn default() -> Self {
        Self { bytes: 16 * 1024, json: JsonLimits::default() }
    }
}

/// Why a token was refused, where newer keys cannot change the result.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Permanent {
    /// Longer than `limits.token_bytes`.
    TokenTooLarge,
    /// Not a JWT that this service supports.
    Malformed(Malformation),
    /// `alg` is missing, unknown, `none`, or not on the provider's list.
    AlgorithmNotAllowed,
    /// `typ` is not on the provider's list.
    TypeNotAllowed,
    /// `iss` names no provider.
    IssuerUnknown,
    /// `aud` names none of the provider's audiences.
    AudienceMismatch,
    /// `exp` has passed.
    Expired,
    /// `nbf` has not been reached.
    NotYetValid,
    /// `exp` is further ahead than `max_lifetime`.
    LifetimeTooLong,
    /// This claim is absent, null or empty.
    ClaimMissing(String),
    /// This claim has a wrong type or value.
    ClaimMalformed(String),
}

/// Why the current key set may be outdated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StaleCause {
    /// No key of the set fits the token's `kid` and `alg`; or, for a token without `kid`, no key verifies it.
    UnknownKid,
    /// Keys with that `kid` fit, but none of them verifies the signature.
    BadSignature,
}

/// Why a token was not accepted, by whether newer keys can change that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValidationError {
    /// Newer keys may verify it: refresh once and try again.
    Stale(StaleCause),
    /// Newer keys cannot change the result.
    Permanent(Permanent),
}

impl From<Permanent> for ValidationError {
    fn from(permanent: Permanent) -> Self {
        ValidationError::Permanent(permanent)
    }
}

/// A token that has passed the screen of the provider with its issuer. Its signature is not verified.
#[derive(Clone, Debug)]
pub struct Screened<'a> {
    parked: Parked<'a>,
    claims: Json,
}

/// A screened token that waits for keys: its text and a few fields, but not its claims, which may take several
/// times as much memory.
#[derive(Clone, Debug)]
pub struct Parked<'a> {
    compact: Compact<'a>,
    kid: Option<Kid>,
    algorithm: Algorithm,
    validity: Validity,
    /// The issuer, if keys may be those of one issuer of several.
    issuer: Option<Box<str>>,
}

/// The proof that a signature was verified, with the claims that it covers.
#[derive(Clone, Debug)]
pub struct Validated {
    claims: Json,
    key: Arc<Key>,
    algorithm: Algorithm,
}

impl Validated {
    /// The key that verified it.
    pub fn key(&self) -> &Arc<Key> {
        &self.key
    }

    /// The algorithm of its signature.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The payload; always an object.
    pub fn claims(&self) -> &Json {
        &self.claims
    }

    /// The same, with parts of the claims shared with earlier tokens.
    pub(crate) fn share(&self, values: &mut SharedValues) -> Self {
        Self { claims: values.share(&self.claims), ..self.clone() }
    }
}

/// Parses a token within the limits. The first part of the screen, before the provider is known.
///
/// # Errors
/// [`Permanent::TokenTooLarge`], [`Permanent::Malformed`] or [`Permanent::AlgorithmNotAllowed`].
pub fn parse<'a>(token: impl Into<Cow<'a, str>>, limits: &TokenLimits) -> Result<Token<'a>, Permanent> {
    let token = token.into();
    if token.len() > limits.bytes {
        return Err(Permanent::TokenTooLarge);
    }
    Token::parse(token, &limits.json).map_err(permanent)
}

/// What of a token selects its provider, by exact comparison with [`Provider::issuer`]: its `iss` (RFC 8725 §3.8), or the
/// SPIFFE ID of the trust domain of its `sub`, if it has no `iss`.
///
/// # Errors
/// [`Permanent::ClaimMissing`] or [`Permanent::ClaimMalformed`] for `iss`; [`Permanent::ClaimMalformed`] for `sub`, if there is
/// no `iss`, and `sub` is meant as a SPIFFE ID, but is none.
pub fn issuer<'t>(token: &'t Token<'_>) -> Result<&'t str, Permanent> {
    selecting(token).map(|(issuer, _)| issuer)
}

/// The same, with what it was read from.
///
/// # Errors
/// Those of [`issuer`].
pub(crate) fn selecting<'t>(token: &'t Token<'_>) -> Result<(&'t str, SelectedBy), Permanent> {
    match token.claims.member("iss") {
        Some(Json::String(issuer)) => return Ok((issuer, SelectedBy::Issuer)),
        None | Some(Json::Null) => {}
        Some(_) => return Err(Permanent::ClaimMalformed("iss".to_owned())),
    }
    let id = token.claims.member("sub").and_then(Json::as_str).filter(|sub| spiffe::is_meant(sub));
    let id = id.ok_or_else(|| Permanent::ClaimMissing("iss".to_owned()))?;
    let trust_domain = spiffe::trust_domain_id(id);
    let trust_domain = trust_domain.ok_or_else(|| Permanent::ClaimMalformed("sub".to_owned()))?;
    Ok((trust_domain, SelectedBy::TrustDomain))
}

/// The trust domain of a token's `sub`, if that is a SPIFFE ID: that of a JWT-SVID, whatever its `iss`.
pub(crate) fn trust_domain<'t>(token: &'t Token<'_>) -> Option<&'t str> {
    spiffe::trust_domain_id(token.claims.member("sub").and_then(Json::as_str)?)
}

/// Checks everything that needs no key, with the rules of the provider with this issuer.
///
/// # Errors
/// The first rule that is not met: `alg`, `typ`, `iss`, times, `aud`, `sub`, required claims.
pub fn screen<'a>(token: Token<'a>, provider: &Provider, now: UnixTime) -> Result<Screened<'a>, Permanent> {
    let passed = check(&token, provider, &provider.audiences, now)?;
    Ok(Screened::new(token, passed))
}

/// The result of the screen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passed {
    /// The algorithm of its signature.
    pub(crate) algorithm: Algorithm,
    /// When the token is accepted.
    pub(crate) validity: Validity,
    /// See [`Provider::keys_name_issuers`].
    pub(crate) keys_name_issuers: bool,
}

/// When a token is accepted, by its `exp` and `nbf` and the provider's leeway.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Validity {
    /// The time from which the token is expired, leeway included.
    pub(crate) expires: UnixTime,
    /// `nbf`, in seconds since the epoch.
    not_before: Option<f64>,
    /// The leeway in seconds.
    skew: f64,
}

impl Validity {
    fn is_early(&self, now: UnixTime) -> bool {
        self.not_before.is_some_and(|nbf| now.as_secs_f64() + self.skew < nbf)
    }

    /// Whether the token is neither expired nor early.
    pub(crate) fn contains(&self, now: UnixTime) -> bool {
        now < self.expires && !self.is_early(now)
    }
}

/// The screen of a token that the caller keeps, with these audiences instead of the provider's.
///
/// # Errors
/// Those of [`screen`].
pub(crate) fn check(
    token: &Token<'_>,
    provider: &Provider,
    audiences: &Audiences,
    now: UnixTime,
) -> Result<Passed, Permanent> {
    let algorithm = Algorithm::from_name(&token.alg)
        .filter(|algorithm| provider.algorithms.contains(algorithm))
        .ok_or(Permanent::AlgorithmNotAllowed)?;
    let type_allowed = match (&provider.token_types, token.typ.as_deref()) {
        (TokenTypes::Default, typ) => {
            typ.is_none_or(|typ| provider.selected_by.default_types().contains(&typ))
        }
        (TokenTypes::AnyOf(_), None) => false,
        (TokenTypes::AnyOf(types), Some(typ)) => types.iter().any(|one| one == typ),
    };
    if !type_allowed {
        return Err(Permanent::TypeNotAllowed);
    }
    // An `iss` with the text of a SPIFFE ID does not select the provider of a trust domain, nor the other way round.
    if selecting(token)? != (&*provider.issuer, provider.selected_by) {
        return Err(Permanent::IssuerUnknown);
    }
    let validity = claims::check(&token.claims, provider, audiences, now)?;
    Ok(Passed { algorithm, validity, keys_name_issuers: provider.keys_name_issuers })
}

/// Checks the audiences alone, of a token of this provider that was accepted before.
///
/// # Errors
/// [`Permanent::AudienceMismatch`], or the claim is missing or malformed.
pub(crate) fn check_audience(
    validated: &Validated,
    provider: &Provider,
    audiences: &Audiences,
) -> Result<(), Permanent> {
    claims::check_audience(validated.claims(), &provider.audience_claims, audiences)
}

/// Verifies a screened token with the current key set.
///
/// # Errors
/// Those of [`Parked::verify`].
pub fn try_validate(
    screened: &Screened<'_>,
    keys: &KeySet,
    now: UnixTime,
) -> Result<Validated, ValidationError> {
    let Verified { key, algorithm, .. } = screened.parked.verify(keys, now)?;
    Ok(Validated { claims: screened.claims.clone(), key, algorithm })
}

impl<'a> Screened<'a> {
    /// A token with the result of its screen.
    pub(crate) fn new(token: Token<'a>, passed: Passed) -> Self {
        let Token { kid, claims, compact, .. } = token;
        let Passed { algorithm, validity, keys_name_issuers } = passed;
        let issuer = claims.member("iss").and_then(Json::as_str).filter(|_| keys_name_issuers);
        let issuer = issuer.map(Into::into);
        Self { parked: Parked { compact, kid, algorithm, validity, issuer }, claims }
    }

    /// The payload part of its text.
    pub(crate) fn payload(&self) -> &str {
        self.parked.payload()
    }

    /// When the token is accepted.
    pub(crate) fn validity(&self) -> Validity {
        self.parked.validity
    }

    /// Drops the claims, which are parsed again after the signature has been verified.
    pub fn park(self) -> Parked<'a> {
        self.parked
    }
}

impl Parked<'_> {
    /// The payload part of its text.
    pub(crate) fn payload(&self) -> &str {
        self.compact.payload()
    }

    /// When the token is accepted.
    pub(crate) fn validity(&self) -> Validity {
        self.validity
    }

    /// The `kid` of its header, if any.
    pub fn kid(&self) -> Option<&Kid> {
        self.kid.as_ref()
    }

    /// Verifies the signature with the current key set.
    ///
    /// Keys are selected by `kid` and by their permitted use; if several fit, each is tried, up to
    /// [`MAX_KEYS_TRIED`].
    ///
    /// # Errors
    /// [`ValidationError::Stale`] if a newer set may have the key; [`ValidationError::Permanent`] if the token has
    /// expired since it was screened, while it waited for newer keys.
    pub fn verify(&self, keys: &KeySet, now: UnixTime) -> Result<Verified<'_>, ValidationError> {
        if now >= self.validity.expires {
            return Err(Permanent::Expired.into());
        }
        let serves = |key: &&Arc<Key>| self.issuer.as_ref().is_none_or(|issuer| key.serves(issuer));
        let mut fitting = keys.fitting(self.kid.as_ref(), self.algorithm).filter(serves).peekable();
        let none_fits = fitting.peek().is_none();
        let verifying = fitting
            .take(MAX_KEYS_TRIED)
            .find(|key| key.verifies(self.algorithm, self.compact.signing_input(), self.compact.signature()));
        if let Some(key) = verifying {
            Ok(Verified { payload: self.payload(), key: Arc::clone(key), algorithm: self.algorithm })
        } else if none_fits || self.kid.is_none() {
            Err(ValidationError::Stale(StaleCause::UnknownKid))
        } else {
            Err(ValidationError::Stale(StaleCause::BadSignature))
        }
    }
}

/// The proof that the signature of a parked token was verified.
#[derive(Clone, Debug)]
pub struct Verified<'a> {
    payload: &'a str,
    key: Arc<Key>,
    algorithm: Algorithm,
}

impl Verified<'_> {
    /// Parses the claims from the signed bytes again, with the same limits.
    ///
    /// # Errors
    /// None if the limits are the same: these bytes have been parsed before.
    pub fn read(self, limits: &TokenLimits) -> Result<Validated, Permanent> {
        let claims = token::decode_object(self.payload, &limits.json).map_err(permanent)?;
        Ok(Validated { claims, key: self.key, algorithm: self.algorithm })
    }
}

fn permanent(error: TokenError) -> Permanent {
    match error {
        TokenError::Malformed(how) => Permanent::Malformed(how),
        TokenError::Algorithm => Permanent::AlgorithmNotAllowed,
    }
}
