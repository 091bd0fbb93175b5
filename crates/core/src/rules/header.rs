//! Headers by which rules match.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::access_request::Headers;

/// A header that a request has to have, with one of these values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Its name, in lower case.
    pub name: String,
    /// Compared with the complete value, without white space around it; never empty.
    pub any_of: Vec<String>,
}

/// A header whose value programs interpret differently: it has several lines, a comma, with which proxies join lines
/// (RFC 9110 §5.3), or an encoding that cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ambiguous;

impl HeaderMatch {
    /// Whether the request has the header with one of the values.
    ///
    /// # Errors
    /// The header is ambiguous.
    pub(super) fn matches(&self, headers: &Headers<'_>) -> Result<bool, Ambiguous> {
        let mut lines = headers.all(&self.name);
        let Some(value) = lines.next() else { return Ok(false) };
        if lines.next().is_some() || value.contains(&b',') {
            return Err(Ambiguous);
        }
        let value = decoded(&self.name, value.trim_ascii())?;
        Ok(self.any_of.iter().any(|wanted| wanted.as_bytes() == &*value))
    }
}

/// Headers of the Model Context Protocol begin so.
const MCP: &str = "mcp-";

/// How their values begin and end that are no plain ASCII (MCP 2026-07-28, Streamable HTTP, "Value encoding").
const ENCODED: (&[u8], &[u8]) = (b"=?base64?", b"?=");

/// The value of a header, decoded if it has the encoding of the Model Context Protocol.
///
/// # Errors
/// It begins as an encoded value and is none, so that one program decodes it and another one does not.
pub(super) fn decoded<'v>(name: &str, value: &'v [u8]) -> Result<Cow<'v, [u8]>, Ambiguous> {
    let is_mcp = name.get(..MCP.len()).is_some_and(|start| start.eq_ignore_ascii_case(MCP));
    let start = value.get(..ENCODED.0.len()).unwrap_or_default();
    if !is_mcp || !start.eq_ignore_ascii_case(ENCODED.0) {
        return Ok(Cow::Borrowed(value));
    }
    let encoded = value.strip_prefix(ENCODED.0).and_then(|rest| rest.strip_suffix(ENCODED.1));
    let decoded = STANDARD.decode(encoded.ok_or(Ambiguous)?).map_err(|_| Ambiguous)?;
    match std::str::from_utf8(&decoded) {
        Ok(_) => Ok(Cow::Owned(decoded)),
        Err(_) => Err(Ambiguous),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matched(name: &str, lines: &[&str]) -> Result<bool, Ambiguous> {
        let header =
            HeaderMatch { name: name.to_owned(), any_of: vec!["refund".to_owned(), "ä".to_owned()] };
        header.matches(&lines.iter().map(|line| (name.as_bytes(), line.as_bytes())).collect())
    }

    #[test]
    fn a_header_matches_with_exactly_one_of_the_values() {
        for (lines, expected) in [
            (&["refund"][..], Ok(true)),
            (&[" refund\t"], Ok(true)),
            (&["ä"], Ok(true)),
            (&[], Ok(false)),
            (&[""], Ok(false)),
            (&["Refund"], Ok(false)),
            (&["refunds"], Ok(false)),
            (&["=?base64?cmVmdW5k?="], Ok(false)),
            (&["refund", "refund"], Err(Ambiguous)),
            (&["refund,other"], Err(Ambiguous)),
            (&["other", "refund"], Err(Ambiguous)),
        ] {
            assert_eq!(matched("x-name", lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn values_of_the_model_context_protocol_are_decoded_before_they_are_compared() {
        for (value, expected) in [
            ("refund", Ok(true)),
            ("=?base64?cmVmdW5k?=", Ok(true)),
            ("=?base64?w6Q=?=", Ok(true)),
            ("=?base64?b3RoZXI=?=", Ok(false)),
            // Other programs decode some of these.
            ("=?BASE64?cmVmdW5k?=", Err(Ambiguous)),
            ("=?base64?cmVmdW5k", Err(Ambiguous)),
            ("=?base64?w6Q?=", Err(Ambiguous)),
            ("=?base64?w6R=?=", Err(Ambiguous)),
            ("=?base64?_w==?=", Err(Ambiguous)),
            ("=?base64?/w==?=", Err(Ambiguous)),
        ] {
            assert_eq!(matched("mcp-name", &[value]), expected, "{value}");
        }
    }
}
