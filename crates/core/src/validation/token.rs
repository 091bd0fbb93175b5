//! Parses a compact JWS (RFC 7515 §7.1, RFC 7519 §7.2), strictly and without a key.
//!
//! Nothing that this module returns has been verified.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::json::{Json, JsonError, JsonLimits};
use super::kid::Kid;

const NOT_A_JWT: TokenError = TokenError::Malformed(Malformation::NotAJwt);

/// A well-formed token that has not been verified.
#[derive(Clone, Debug)]
pub struct Token<'a> {
    /// The `alg` of the header, which may be unsupported.
    pub alg: Box<str>,
    /// The `kid` of the header, if any.
    pub kid: Option<Kid>,
    /// The `typ` of the header in lower case without `application/` (RFC 7515 §4.1.9).
    pub typ: Option<String>,
    /// The payload; always an object.
    pub claims: Json,
    /// Its text.
    pub(super) compact: Compact<'a>,
}

/// The text of a token and the positions of its parts (RFC 7515 §7.1).
#[derive(Clone, Debug)]
pub(super) struct Compact<'a> {
    text: Cow<'a, str>,
    /// The position of the first dot.
    header_end: usize,
    /// The position of the second dot.
    payload_end: usize,
}

impl<'a> Compact<'a> {
    /// Splits the text into three parts without parsing them.
    fn split(text: Cow<'a, str>) -> Option<Self> {
        let mut dots = text.bytes().enumerate().filter(|(_, byte)| *byte == b'.').map(|(at, _)| at);
        let (Some(header_end), Some(payload_end), None) = (dots.next(), dots.next(), dots.next()) else {
            return None;
        };
        Some(Self { text, header_end, payload_end })
    }

    fn header(&self) -> &str {
        self.text.get(..self.header_end).unwrap_or_default()
    }

    /// The payload part.
    pub(super) fn payload(&self) -> &str {
        self.text.get(self.header_end + 1..self.payload_end).unwrap_or_default()
    }

    /// The signed bytes: the first two parts with the dot between them (RFC 7515 §5.2).
    pub(super) fn signing_input(&self) -> &[u8] {
        self.text.as_bytes().get(..self.payload_end).unwrap_or_default()
    }

    /// The signature part; for a [`Token`] it is valid base64url, and empty only if `alg` is `none`.
    pub(super) fn signature(&self) -> &str {
        self.text.get(self.payload_end + 1..).unwrap_or_default()
    }
}

/// Why a token cannot be a JWT that this service accepts, with any key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenError {
    /// It cannot be parsed as a JWT.
    Malformed(Malformation),
    /// The header has no `alg`, or one that is not a string (RFC 7515 §4.1.1).
    Algorithm,
}

/// Why a token cannot be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Malformation {
    /// Not three parts, not base64url without padding, not JSON, or a header parameter that has a wrong type or is
    /// not allowed in a JWT.
    NotAJwt,
    /// Its header or its payload has more members and values than `limits.token_values`.
    TooManyValues,
    /// Its header or its payload is nested deeper than `limits.token_depth`.
    TooDeep,
}

impl<'a> Token<'a> {
    /// Parses a token.
    ///
    /// `jwk`, `jku`, `x5u`, `x5c` and other parameters are ignored (RFC 7515 §4); any `crit` is refused, since no
    /// extension is supported (§4.1.11), and `b64` is refused with or without it (RFC 7797 §7). A compressed payload is
    /// refused too, and so is a nested token (RFC 7519 §5.2), whose payload is no object; `cty: JWT` says nothing, since
    /// several signers write it over claims. A `kid`, `typ` or `cty` of null is as if it were absent.
    ///
    /// # Errors
    /// See [`TokenError`]. `limits` apply to the header and to the payload separately.
    pub fn parse(text: impl Into<Cow<'a, str>>, limits: &JsonLimits) -> Result<Self, TokenError> {
        let compact = Compact::split(text.into()).ok_or(NOT_A_JWT)?;
        let header = decode_object(compact.header(), limits)?;
        let alg: Box<str> = match header.member("alg") {
            Some(Json::String(alg)) => alg.as_str().into(),
            _ => return Err(TokenError::Algorithm),
        };
        if ["crit", "b64", "zip"].iter().any(|name| header.member(name).is_some()) {
            return Err(NOT_A_JWT);
        }
        let kid = string_parameter(&header, "kid")?.map(Kid::new).transpose().map_err(|_| NOT_A_JWT)?;
        let typ = string_parameter(&header, "typ")?.map(canonical_media_type);
        string_parameter(&header, "cty")?;

        // `none` has an empty signature by definition; it is refused later by its name, which gives a clearer
        // reason.
        if compact.signature().is_empty() && !alg.eq_ignore_ascii_case("none") {
            return Err(NOT_A_JWT);
        }
        decode(compact.signature())?;
        let claims = decode_object(compact.payload(), limits)?;
        Ok(Token { alg, kid, typ, claims, compact })
    }
}

/// A media type for comparison: lower case, and without the prefix that senders may omit (RFC 7515 §4.1.9).
pub fn canonical_media_type(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    match lower.strip_prefix("application/") {
        Some(rest) if !rest.contains('/') => rest.to_owned(),
        _ => lower,
    }
}

fn string_parameter<'h>(header: &'h Json, name: &str) -> Result<Option<&'h str>, TokenError> {
    match header.member(name) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(text)) => Ok(Some(text)),
        Some(_) => Err(NOT_A_JWT),
    }
}

fn decode(part: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| NOT_A_JWT)
}

pub(super) fn decode_object(part: &str, limits: &JsonLimits) -> Result<Json, TokenError> {
    match Json::parse(&decode(part)?, limits) {
        Ok(json @ Json::Object(_)) => Ok(json),
        Ok(_) | Err(JsonError::NotJson) => Err(NOT_A_JWT),
        Err(JsonError::TooManyValues) => Err(TokenError::Malformed(Malformation::TooManyValues)),
        Err(JsonError::TooDeep) => Err(TokenError::Malformed(Malformation::TooDeep)),
    }
}
