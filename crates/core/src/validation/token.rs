//! A compact JWS taken apart (RFC 7515 §7.1, RFC 7519 §7.2), strictly and without a key.
//!
//! Everything here is still the sender's word: nothing that this file returns has been verified.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::json::{Json, JsonError, JsonLimits};
use super::kid::Kid;

const NOT_A_JWT: TokenError = TokenError::Malformed(Malformation::NotAJwt);

/// A token that is well formed, and no more than that.
#[derive(Clone, Debug)]
pub struct Token<'a> {
    /// The `alg` of the header, not yet known to be one that is supported.
    pub alg: Box<str>,
    /// The `kid` of the header; `None` where there is none.
    pub kid: Option<Kid>,
    /// The `typ` of the header in lower case without `application/` (RFC 7515 §4.1.9).
    pub typ: Option<String>,
    /// The payload; always an object.
    pub claims: Arc<Json>,
    /// Its text.
    pub(super) compact: Compact<'a>,
}

/// The text of a token, and where its parts are (RFC 7515 §7.1).
#[derive(Clone, Debug)]
pub(super) struct Compact<'a> {
    text: Cow<'a, str>,
    /// Where the first dot is.
    header_end: usize,
    /// Where the second dot is.
    payload_end: usize,
}

impl<'a> Compact<'a> {
    /// Three parts, none of them looked at.
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

    /// The second part.
    pub(super) fn payload(&self) -> &str {
        self.text.get(self.header_end + 1..self.payload_end).unwrap_or_default()
    }

    /// What was signed: the first two parts with the dot between them (RFC 7515 §5.2).
    pub(super) fn signing_input(&self) -> &[u8] {
        self.text.as_bytes().get(..self.payload_end).unwrap_or_default()
    }

    /// The third part; of a [`Token`] valid base64url, and not empty but where `alg` is `none`.
    pub(super) fn signature(&self) -> &str {
        self.text.get(self.payload_end + 1..).unwrap_or_default()
    }
}

/// The token cannot be a JWT that this service accepts, with any key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenError {
    /// It cannot be read as a JWT.
    Malformed(Malformation),
    /// The header has no `alg`, or one that is not a string (RFC 7515 §4.1.1).
    Algorithm,
}

/// Why a token cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Malformation {
    /// Not three parts, not base64url without padding, not JSON, or a header parameter that has
    /// the wrong type or that may not be in a JWT.
    NotAJwt,
    /// Its header or its payload has more members and values than `limits.token_values`.
    TooManyValues,
    /// Its header or its payload is nested deeper than `limits.token_depth`.
    TooDeep,
}

impl<'a> Token<'a> {
    /// Takes a token apart.
    ///
    /// `jwk`, `jku`, `x5u`, `x5c` and other parameters are ignored (RFC 7515 §4); `crit` is refused
    /// whatever it names, since no extension is understood (§4.1.11), and with it or without it
    /// `b64` is (RFC 7797 §7). A nested token (`cty: JWT`) and a compressed payload are refused too.
    ///
    /// # Errors
    /// See [`TokenError`]. `limits` hold for the header and for the payload, each by itself.
    pub fn parse(text: impl Into<Cow<'a, str>>, limits: &JsonLimits) -> Result<Self, TokenError> {
        let compact = Compact::split(text.into()).ok_or(NOT_A_JWT)?;
        let header = decode_object(compact.header(), limits)?;
        let alg = match header.member("alg") {
            Some(Json::String(alg)) => alg.clone(),
            _ => return Err(TokenError::Algorithm),
        };
        if ["crit", "b64", "zip"].iter().any(|name| header.member(name).is_some()) {
            return Err(NOT_A_JWT);
        }
        let kid = string_parameter(&header, "kid")?.map(Kid::new).transpose().map_err(|_| NOT_A_JWT)?;
        let typ = string_parameter(&header, "typ")?.map(canonical_media_type);
        let cty = string_parameter(&header, "cty")?.map(canonical_media_type);
        if cty.as_deref() == Some("jwt") {
            return Err(NOT_A_JWT);
        }

        // `none` has an empty signature by definition; it is refused by its name, which tells more.
        if compact.signature().is_empty() && !alg.eq_ignore_ascii_case("none") {
            return Err(NOT_A_JWT);
        }
        decode(compact.signature())?;
        let claims = Arc::new(decode_object(compact.payload(), limits)?);
        Ok(Token { alg, kid, typ, claims, compact })
    }
}

/// A media type as it is compared: lower case, and without the prefix that RFC 7515 §4.1.9 lets
/// senders leave out.
pub fn canonical_media_type(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    match lower.strip_prefix("application/") {
        Some(rest) if !rest.contains('/') => rest.to_owned(),
        _ => lower,
    }
}

fn string_parameter<'h>(header: &'h Json, name: &str) -> Result<Option<&'h str>, TokenError> {
    match header.member(name) {
        None => Ok(None),
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
