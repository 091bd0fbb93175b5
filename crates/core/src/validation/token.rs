//! Parses a compact JWS (RFC 7515 §7.1, RFC 7519 §7.2), strictly and without a key.
//!
//! Nothing that this module returns has been verified.

use std::borrow::Cow;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::{DecodeError, Engine as _};

use super::json::{Json, JsonError, JsonLimits};
use super::kid::Kid;

/// Parameters of a header that this service does not support, each with the words for it.
const UNSUPPORTED: [(&str, &str); 3] = [
    ("crit", "crit in the header: no critical extension is supported"),
    ("b64", "b64 in the header: an unencoded payload is not supported"),
    ("zip", "zip in the header: a compressed payload is not supported"),
];

fn not_a_jwt(why: &'static str) -> TokenError {
    TokenError::Malformed(Malformation::NotAJwt(why))
}

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
    fn split(text: Cow<'a, str>) -> Result<Self, TokenError> {
        let mut dots = text.bytes().enumerate().filter(|(_, byte)| *byte == b'.').map(|(at, _)| at);
        match (dots.next(), dots.next(), dots.next()) {
            (Some(header_end), Some(payload_end), None) => Ok(Self { text, header_end, payload_end }),
            (None, ..) => Err(not_a_jwt("one part instead of three, as an opaque token has")),
            (Some(_), None, _) => Err(not_a_jwt("two parts instead of three")),
            // Two more dots: RFC 7516 §7.1.
            (Some(_), Some(_), Some(_)) => match (dots.next(), dots.next()) {
                (Some(_), None) => Err(not_a_jwt("five parts instead of three, as an encrypted token has")),
                _ => Err(not_a_jwt("more than three parts")),
            },
        }
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
    /// not allowed in a JWT: what is wrong, in words that contain nothing of the token.
    NotAJwt(&'static str),
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
        let compact = Compact::split(text.into())?;
        let header = decode_object(compact.header(), limits).map_err(in_header)?;
        let alg: Box<str> = match header.member("alg") {
            Some(Json::String(alg)) => alg.as_str().into(),
            _ => return Err(TokenError::Algorithm),
        };
        for (name, why) in UNSUPPORTED {
            if header.member(name).is_some() {
                return Err(not_a_jwt(why));
            }
        }
        let kid = string_parameter(&header, "kid", "kid in the header is no string")?;
        let kid = kid.map(Kid::new).transpose();
        let kid = kid.map_err(|_| not_a_jwt("kid in the header is longer than 1024 bytes"))?;
        let typ = string_parameter(&header, "typ", "typ in the header is no string")?;
        let typ = typ.map(canonical_media_type);
        string_parameter(&header, "cty", "cty in the header is no string")?;

        // `none` has an empty signature by definition; it is refused later by its name, which gives a clearer
        // reason.
        if compact.signature().is_empty() && !alg.eq_ignore_ascii_case("none") {
            return Err(not_a_jwt("an empty signature"));
        }
        decode(compact.signature()).map_err(|_| not_a_jwt("a signature that is not base64url"))?;
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

fn string_parameter<'h>(
    header: &'h Json,
    name: &str,
    otherwise: &'static str,
) -> Result<Option<&'h str>, TokenError> {
    match header.member(name) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(text)) => Ok(Some(text)),
        Some(_) => Err(not_a_jwt(otherwise)),
    }
}

/// The error of a header that [`decode_object`] cannot read.
fn in_header(error: TokenError) -> TokenError {
    match error {
        TokenError::Malformed(Malformation::NotAJwt(_)) => {
            not_a_jwt("a header that is not the base64url of a JSON object")
        }
        other => other,
    }
}

fn decode(part: &str) -> Result<Vec<u8>, DecodeError> {
    URL_SAFE_NO_PAD.decode(part)
}

pub(super) fn decode_object(part: &str, limits: &JsonLimits) -> Result<Json, TokenError> {
    const PAYLOAD: &str = "a payload that is not the base64url of a JSON object, or with a repeated member";
    let decoded = decode(part).map_err(|_| not_a_jwt(PAYLOAD))?;
    match Json::parse(&decoded, limits) {
        Ok(json @ Json::Object(_)) => Ok(json),
        Ok(_) | Err(JsonError::NotJson) => Err(not_a_jwt(PAYLOAD)),
        Err(JsonError::TooManyValues) => Err(TokenError::Malformed(Malformation::TooManyValues)),
        Err(JsonError::TooDeep) => Err(TokenError::Malformed(Malformation::TooDeep)),
    }
}
