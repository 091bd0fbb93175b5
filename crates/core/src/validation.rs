//! Whether a token is good, as a pure function of the token, the rules, a key set and a time.
//!
//! Two steps, because only the second one can be mended by newer keys:
//!
//! 1. [`screen`] needs no key. What it refuses is [`Permanent`], and costs the issuer nothing.
//! 2. [`try_validate`] verifies the signature against the set in hand. Where that set may simply be
//!    too old (no key for the `kid`, or a signature that no key of that `kid` made), the answer is
//!    [`ValidationError::Stale`].
//!
//! # Where no RFC decides
//!
//! - A token without `exp` is refused; one that lives very long, or whose `iat` lies ahead, is not. `nbf`
//!   or `iat` of null counts as absent.
//! - A key without `kid` serves only tokens without one, and a token without one is tried with every key
//!   that fits its algorithm, up to [`MAX_KEYS_TRIED`].
//! - A token that is bound to a sender (`cnf`) passes as a plain bearer token.
//! - RSA exponents from 3 are accepted, and weak moduli are not looked for. Of an ECDSA signature the twin
//!   `(r, n - s)` is accepted too, so two different texts can be the same token.
//!
//! # Architecture invariant
//! No IO, no clock, no logging and no `async` below this module: the time comes in as an argument.
//! It is the one home of `jsonwebtoken`, whose own claim checks are not used since they read the
//! clock themselves.

pub mod algorithm;
mod claims;
pub mod digest;
pub mod json;
pub mod key_set;
mod kid;
pub mod provider;
mod token;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

pub use self::kid::{Kid, KidTooLong};
pub use self::token::{Malformation, Token, TokenError, canonical_media_type};

use self::algorithm::Algorithm;
use self::json::{Json, JsonLimits};
use self::key_set::{Key, KeySet};
use self::provider::{Provider, TokenTypes};
use self::token::Compact;

/// Without a `kid`, or with many keys of one `kid`, at most this many keys are tried: the work that
/// one token can cause is bounded.
pub const MAX_KEYS_TRIED: usize = 16;

/// Wall time as seconds since the Unix epoch, leap seconds ignored (NumericDate, RFC 7519 §2).
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct UnixTime(f64);

impl UnixTime {
    /// That many seconds after the epoch; negative before it.
    pub fn from_secs(seconds: i64) -> Self {
        // Exact for every date of the next hundred million years.
        Self(seconds as f64)
    }

    /// This long after the epoch.
    pub fn from_epoch(since: Duration) -> Self {
        Self(since.as_secs_f64())
    }

    /// That many seconds after the epoch, with fractions; negative before it.
    pub fn from_secs_f64(seconds: f64) -> Self {
        Self(seconds)
    }

    /// Seconds since the epoch, with fractions.
    pub fn as_secs_f64(self) -> f64 {
        self.0
    }
}

/// What one token may make us hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenLimits {
    /// The longest token, in bytes; default 16 KiB.
    pub bytes: usize,
    /// Of its header, and of its payload.
    pub json: JsonLimits,
}

impl Default for TokenLimits {
    fn default() -> Self {
        Self { bytes: 16 * 1024, json: JsonLimits::default() }
    }
}

/// Why a token was refused that no key could have mended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Permanent {
    /// Longer than `limits.token_bytes`.
    TokenTooLarge,
    /// Not a JWT that this service reads.
    Malformed(Malformation),
    /// `alg` is missing, unknown, `none`, or not on the provider's list.
    AlgorithmNotAllowed,
    /// `typ` is not on the provider's list.
    TypeNotAllowed,
    /// `iss` names no provider.
    IssuerUnknown,
    /// `aud` names none of the provider's audiences.
    AudienceMismatch,
    /// `exp` has come.
    Expired,
    /// `nbf` has not come.
    NotYetValid,
    /// This claim is absent, null or empty.
    ClaimMissing(String),
    /// This claim has a type or a value that it cannot have.
    ClaimMalformed(String),
}

/// Why the set in hand may no longer be the issuer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StaleCause {
    /// No key of the set fits the token's `kid` and `alg`; or, for a token without `kid`, none verifies.
    UnknownKid,
    /// Keys of that `kid` fit, and none of them made the signature.
    BadSignature,
}

/// Why a token was not accepted, by what can be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValidationError {
    /// Newer keys may accept it: refresh once, look once more.
    Stale(StaleCause),
    /// Nothing can be done.
    Permanent(Permanent),
}

impl From<Permanent> for ValidationError {
    fn from(permanent: Permanent) -> Self {
        ValidationError::Permanent(permanent)
    }
}

/// A token that has passed the screen of the provider whose issuer it names. Its signature has not
/// been looked at.
#[derive(Clone, Debug)]
pub struct Screened<'a> {
    parked: Parked<'a>,
    claims: Arc<Json>,
}

/// A token that has passed the screen, for the time that it has to wait for keys: its text and a few words, and
/// not the tree of its claims, which may be several times as large.
#[derive(Clone, Debug)]
pub struct Parked<'a> {
    compact: Compact<'a>,
    kid: Option<Kid>,
    algorithm: Algorithm,
    expires: UnixTime,
}

/// The proof that a signature was verified, and the claims that it covers.
#[derive(Clone, Debug)]
pub struct Validated {
    claims: Arc<Json>,
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

    /// The same, for whoever keeps it.
    pub(crate) fn shared_claims(&self) -> Arc<Json> {
        Arc::clone(&self.claims)
    }
}

/// Takes a token apart within the limits. The first half of the screen, before a provider is
/// known.
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

/// The `iss` of a token: what chooses the provider, by exact comparison (RFC 8725 §3.8).
///
/// # Errors
/// [`Permanent::ClaimMissing`] or [`Permanent::ClaimMalformed`] for `iss`.
pub fn issuer<'t>(token: &'t Token<'_>) -> Result<&'t str, Permanent> {
    match token.claims.member("iss") {
        None | Some(Json::Null) => Err(Permanent::ClaimMissing("iss".to_owned())),
        Some(Json::String(issuer)) => Ok(issuer),
        Some(_) => Err(Permanent::ClaimMalformed("iss".to_owned())),
    }
}

/// Everything that can be said about a token without a key, under the rules of the provider whose
/// issuer it names.
///
/// # Errors
/// The first rule that is not met: `alg`, `typ`, `iss`, times, `aud`, `sub`, required claims.
pub fn screen<'a>(token: Token<'a>, provider: &Provider, now: UnixTime) -> Result<Screened<'a>, Permanent> {
    let passed = check(&token, provider, now)?;
    Ok(Screened::new(token, passed))
}

/// What the screen has found out about a token that it lets pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passed {
    /// The algorithm of its signature.
    pub(crate) algorithm: Algorithm,
    /// From when on it is expired, leeway included.
    pub(crate) expires: UnixTime,
}

/// The screen of a token that stays with its caller.
///
/// # Errors
/// Those of [`screen`].
pub(crate) fn check(token: &Token<'_>, provider: &Provider, now: UnixTime) -> Result<Passed, Permanent> {
    let algorithm = Algorithm::from_name(&token.alg)
        .filter(|algorithm| provider.algorithms.contains(algorithm))
        .ok_or(Permanent::AlgorithmNotAllowed)?;
    let type_allowed = match (&provider.token_types, token.typ.as_deref()) {
        (TokenTypes::Default, typ) => matches!(typ, None | Some("at+jwt" | "jwt")),
        (TokenTypes::AnyOf(_), None) => false,
        (TokenTypes::AnyOf(types), Some(typ)) => types.iter().any(|one| one == typ),
    };
    if !type_allowed {
        return Err(Permanent::TypeNotAllowed);
    }
    if issuer(token)? != provider.issuer {
        return Err(Permanent::IssuerUnknown);
    }
    let expires = claims::check(&token.claims, provider, now)?;
    Ok(Passed { algorithm, expires })
}

/// Verifies a screened token against the set in hand.
///
/// # Errors
/// Those of [`Parked::verify`].
pub fn try_validate(
    screened: &Screened<'_>,
    keys: &KeySet,
    now: UnixTime,
) -> Result<Validated, ValidationError> {
    let Verified { key, algorithm, .. } = screened.parked.verify(keys, now)?;
    Ok(Validated { claims: Arc::clone(&screened.claims), key, algorithm })
}

impl<'a> Screened<'a> {
    /// The token that has passed.
    pub(crate) fn new(token: Token<'a>, passed: Passed) -> Self {
        let Token { kid, claims, compact, .. } = token;
        let Passed { algorithm, expires } = passed;
        Self { parked: Parked { compact, kid, algorithm, expires }, claims }
    }

    /// The second part of its text.
    pub(crate) fn payload(&self) -> &str {
        self.parked.payload()
    }

    /// Lets go of the claims, which are read again once the signature has been verified.
    pub fn park(self) -> Parked<'a> {
        self.parked
    }
}

impl Parked<'_> {
    /// The second part of its text.
    pub(crate) fn payload(&self) -> &str {
        self.compact.payload()
    }

    /// The `kid` of its header, where it has one.
    pub fn kid(&self) -> Option<&Kid> {
        self.kid.as_ref()
    }

    /// Verifies the signature against the set in hand.
    ///
    /// Keys are chosen by `kid` and by what they may be used for; where several fit, each is tried, at
    /// most [`MAX_KEYS_TRIED`].
    ///
    /// # Errors
    /// [`ValidationError::Stale`] where a newer set may hold the key that this one lacks;
    /// [`ValidationError::Permanent`] where the token has expired since it was screened, as one may that
    /// waited for newer keys.
    pub fn verify(&self, keys: &KeySet, now: UnixTime) -> Result<Verified<'_>, ValidationError> {
        if now >= self.expires {
            return Err(Permanent::Expired.into());
        }
        let mut fitting = keys.fitting(self.kid.as_ref(), self.algorithm).peekable();
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
    /// Reads the claims again from the bytes that the signature covers, under the limits of the first time.
    ///
    /// # Errors
    /// None where the limits are the same: these bytes have been read before.
    pub fn read(self, limits: &TokenLimits) -> Result<Validated, Permanent> {
        let claims = token::decode_object(self.payload, &limits.json).map_err(permanent)?;
        Ok(Validated { claims: Arc::new(claims), key: self.key, algorithm: self.algorithm })
    }
}

fn permanent(error: TokenError) -> Permanent {
    match error {
        TokenError::Malformed(how) => Permanent::Malformed(how),
        TokenError::Algorithm => Permanent::AlgorithmNotAllowed,
    }
}
