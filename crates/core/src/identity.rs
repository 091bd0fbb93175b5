//! Turns the claims of a verified token into headers for the upstream, and removes client headers that could fake
//! an identity.
//!
//! Pure. A claim header of any provider reaches the upstream with the value of this service or not at all; the
//! spellings that many backends take for the same name are removed, as are all other protected headers
//! ([`crate::protected_headers`]).

mod tokens;

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{COOKIE, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use self::tokens::{remove_token, set_remaining_cookies, set_remaining_protocols};
use crate::access_request::{AccessRequest, ClaimHeaders, Removal};
use crate::bearer_token;
use crate::protected_headers::{Protected, ProtectedHeaders};
use crate::validation::json::Json;
use crate::validation::provider::{Encoding, Provider, TokenSource};

/// Characters that a header value cannot contain, and the escape character itself. Everything outside ASCII is
/// always encoded.
const UNSAFE: &AsciiSet = &CONTROLS.add(b'%');
/// The same inside an array, whose members are separated by commas.
const UNSAFE_IN_LIST: &AsciiSet = &UNSAFE.add(b',');

/// What the proxy changes about a request before the upstream sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamChanges {
    /// Claim headers to set; they replace the client's headers of the same name.
    pub claims: Arc<[(HeaderName, HeaderValue)]>,
    /// The `Cookie` header to set instead of the client's.
    pub cookie: Option<HeaderValue>,
    /// The `Sec-WebSocket-Protocol` header to set instead of the client's.
    pub websocket_protocol: Option<HeaderValue>,
    /// Headers to remove; none of those that are set.
    pub remove: Vec<RemovedHeader>,
    /// Query parameters to remove.
    pub remove_query: Vec<String>,
}

impl UpstreamChanges {
    /// Every header to set.
    pub fn set(&self) -> impl DoubleEndedIterator<Item = (&HeaderName, &HeaderValue)> {
        static NAMES: [HeaderName; 2] = [COOKIE, SEC_WEBSOCKET_PROTOCOL];
        let claims = self.claims.iter().map(|(name, value)| (name, value));
        let rewritten = NAMES.iter().zip([&self.cookie, &self.websocket_protocol]);
        claims.chain(rewritten.filter_map(|(name, value)| Some((name, value.as_ref()?))))
    }

    /// Whether it sets this header, in any case.
    fn sets(&self, name: &[u8]) -> bool {
        self.set().any(|(set, _)| name.eq_ignore_ascii_case(set.as_str().as_bytes()))
    }
}

/// A header that must not reach the upstream, by a name under which the request has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemovedHeader {
    /// A name of the configuration, removed whether the request has it or not.
    Known(HeaderName),
    /// A name from the request, as the client spelled it. Not a [`HeaderName`], which has no upper case and not
    /// every octet that a proxy may accept. Always UTF-8, as Envoy's list of such names requires.
    AsSent(Box<str>),
}

impl RemovedHeader {
    /// Its name.
    pub fn as_str(&self) -> &str {
        match self {
            RemovedHeader::Known(name) => name.as_str(),
            RemovedHeader::AsSent(name) => name,
        }
    }

    /// Adds a known name unless it is there already.
    fn add(removed: &mut Vec<RemovedHeader>, name: &HeaderName) {
        let name = RemovedHeader::Known(name.clone());
        if !removed.contains(&name) {
            removed.push(name);
        }
    }
}

/// Why a request cannot be forwarded to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UpstreamRejection {
    /// The claim headers would be larger than allowed.
    ClaimTooLarge,
    /// The request has a look-alike of a protected header, and the proxy cannot remove it.
    LookAlike,
    /// The request has a header that overrides its method, path or host, and the proxy cannot remove it.
    Override,
    /// The client sent a claim header, and the proxy's configuration may not name that header.
    ClaimHeaderOfClient,
    /// The token has to be removed from the query, and the proxy cannot do that.
    TokenInQuery,
    /// The token has to be removed from a place from which the proxy's configuration does not remove tokens: only another
    /// provider's tokens, which are forwarded, may be there.
    TokenElsewhere,
}

/// The claim headers of a verified token of `provider` with this payload part: the same for every request.
///
/// # Errors
/// Names and values together exceed `max_bytes`. No more of them is made than that.
pub fn claim_headers(
    claims: &Json,
    provider: &Provider,
    payload: &str,
    max_bytes: usize,
) -> Result<Arc<[(HeaderName, HeaderValue)]>, UpstreamRejection> {
    let mut headers = Vec::new();
    let mut left = max_bytes;
    let mut add = |name: &HeaderName, value: HeaderValue| {
        let rest = left.checked_sub(name.as_str().len().saturating_add(value.len()));
        left = rest.ok_or(UpstreamRejection::ClaimTooLarge)?;
        headers.push((name.clone(), value));
        Ok(())
    };
    for claim_header in &provider.claim_headers {
        let claim = claim_header.claim.resolve(claims);
        let value = claim.and_then(|claim| match claim_header.encoding {
            Encoding::Percent => header_value(claim),
            Encoding::Base64Url => base64url_value(claim),
        });
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            add(&claim_header.header, value)?;
        }
    }
    if let Some(header) = &provider.payload_header {
        // The payload of a verified token is base64url. Any other text is left out.
        if let Ok(payload) = HeaderValue::from_str(payload) {
            add(header, payload)?;
        }
    }
    Ok(headers.into())
}

/// The changes for a request with a verified token of `provider`, in these places and with these claim headers.
///
/// # Errors
/// [`UpstreamRejection`].
pub fn upstream_changes(
    claim_headers: &Arc<[(HeaderName, HeaderValue)]>,
    provider: &Provider,
    protected: &ProtectedHeaders,
    request: &AccessRequest<'_>,
    places: &[&TokenSource],
) -> Result<UpstreamChanges, UpstreamRejection> {
    let mut changes = UpstreamChanges { claims: Arc::clone(claim_headers), ..UpstreamChanges::default() };
    remove_protected(&mut changes, protected, request)?;
    // Most configurations forward every token.
    if protected.not_forwarded().is_empty() {
        return Ok(changes);
    }
    if !provider.forward_token {
        remove_token(&mut changes, protected, request, places)?;
    }
    let is_forwarded = |place: &&&TokenSource| provider.forward_token && provider.token_from.contains(place);
    let forwarded: Vec<&TokenSource> = places.iter().filter(is_forwarded).copied().collect();
    set_remaining_cookies(&mut changes, protected, request, &forwarded);
    set_remaining_protocols(&mut changes, protected, request, &forwarded);
    Ok(changes)
}

/// The changes for a request that passes without a token: claim headers and their look-alikes are removed, as is
/// any token that is not forwarded, since it is not verified.
///
/// # Errors
/// [`UpstreamRejection`].
pub fn anonymous_changes(
    protected: &ProtectedHeaders,
    request: &AccessRequest<'_>,
) -> Result<UpstreamChanges, UpstreamRejection> {
    let mut changes = UpstreamChanges::default();
    remove_protected(&mut changes, protected, request)?;
    let places: Vec<&TokenSource> =
        protected.not_forwarded().iter().filter(|source| bearer_token::is_present(request, source)).collect();
    remove_token(&mut changes, protected, request, &places)?;
    set_remaining_cookies(&mut changes, protected, request, &[]);
    set_remaining_protocols(&mut changes, protected, request, &[]);
    Ok(changes)
}

/// A claim in base64url (RFC 4648 §5): the text of a string, the JSON of any other type.
fn base64url_value(claim: &Json) -> Option<String> {
    let text = match claim {
        Json::Null => return None,
        Json::String(text) => Cow::Borrowed(&**text),
        other => Cow::Owned(other.to_compact()),
    };
    (!text.is_empty()).then(|| URL_SAFE_NO_PAD.encode(text.as_bytes()))
}

/// A claim as a header value; `None` if it is empty.
fn header_value(claim: &Json) -> Option<String> {
    let value = match claim {
        Json::Null => String::new(),
        Json::Bool(true) => "true".to_owned(),
        Json::Bool(false) => "false".to_owned(),
        Json::Number(digits) => digits.to_string(),
        Json::String(text) => encode(text, UNSAFE),
        Json::Object(_) => encode(&claim.to_compact(), UNSAFE),
        Json::Array(members) => {
            let members: Vec<String> =
                members.iter().filter(|member| **member != Json::Null).map(list_member).collect();
            members.join(",")
        }
    };
    (!value.is_empty()).then_some(value)
}

fn list_member(member: &Json) -> String {
    let text = member.as_str().map_or_else(|| Cow::Owned(member.to_compact()), Cow::Borrowed);
    encode(&text, UNSAFE_IN_LIST)
}

/// Leading and trailing spaces are encoded too: HTTP strips them (RFC 9110 §5.5, §5.6.1), and `"admin "` must not
/// arrive as `admin`.
fn encode(text: &str, unsafe_set: &'static AsciiSet) -> String {
    let inner = text.trim_matches(' ');
    let leading = if inner.is_empty() { 0 } else { text.len() - text.trim_start_matches(' ').len() };
    let trailing = text.len() - leading - inner.len();
    let inner = utf8_percent_encode(inner, unsafe_set);
    format!("{}{inner}{}", "%20".repeat(leading), "%20".repeat(trailing))
}

/// Removes the protected headers, or refuses the request if the proxy cannot remove them.
fn remove_protected(
    changes: &mut UpstreamChanges,
    protected: &ProtectedHeaders,
    request: &AccessRequest<'_>,
) -> Result<(), UpstreamRejection> {
    remove_claims(changes, protected);
    if protected.is_token_disguised(request.path) {
        return Err(UpstreamRejection::TokenInQuery);
    }
    for (sent, _) in request.headers.iter() {
        match protected.kind_of(sent, request.set_by_proxy) {
            None => {}
            Some(Protected::Claim) => {
                let is_removed = || request.removal != Removal::NamedHeaders && !changes.sets(sent);
                if request.claim_headers == ClaimHeaders::MaybeKept && !is_removed() {
                    return Err(UpstreamRejection::ClaimHeaderOfClient);
                }
            }
            Some(Protected::Override) if request.removal == Removal::NamedHeaders => {
                return Err(UpstreamRejection::Override);
            }
            Some(Protected::LookAlike) if request.removal == Removal::NamedHeaders => {
                return Err(UpstreamRejection::LookAlike);
            }
            // A header that is sent twice is listed twice: this is harmless and cheaper than a search.
            Some(Protected::Override | Protected::LookAlike) => {
                // A name that is not UTF-8 cannot be sent to the proxy.
                let name = std::str::from_utf8(sent).map_err(|_| UpstreamRejection::LookAlike)?;
                changes.remove.push(RemovedHeader::AsSent(name.into()));
            }
        }
    }
    Ok(())
}

/// Removes the claim headers that are not set, in time that is not their product with those that are.
fn remove_claims(changes: &mut UpstreamChanges, protected: &ProtectedHeaders) {
    // Few are on the stack.
    let (mut few, mut many) = ([false; 32], Vec::new());
    let count = protected.claims().len();
    let is_set = few.get_mut(..count).unwrap_or_else(|| {
        many.resize(count, false);
        &mut many
    });
    for (name, _) in changes.set() {
        let at = protected.claim_position(name.as_str().as_bytes());
        at.and_then(|at| is_set.get_mut(at)).into_iter().for_each(|is_set| *is_set = true);
    }
    let removed = protected.claims().iter().zip(&*is_set).filter(|(_, is_set)| !**is_set);
    changes.remove.extend(removed.map(|(name, _)| RemovedHeader::Known(name.clone())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access_request::tests::arrived;
    use crate::rules::Rules;
    use crate::validation::json::JsonLimits;

    #[test]
    fn a_claim_becomes_a_header_value_or_none() {
        for (claim, expected) in [
            (r#""acme""#, Some("acme")),
            (r#""a, b""#, Some("a, b")),
            (r#""100%""#, Some("100%25")),
            (r#""a\r\nx-admin: 1\u0000\u007f""#, Some("a%0D%0Ax-admin: 1%00%7F")),
            (r#""Zoë 😀""#, Some("Zo%C3%AB %F0%9F%98%80")),
            ("12345678901234567890.10", Some("12345678901234567890.10")),
            ("1E+2", Some("1E+2")),
            ("true", Some("true")),
            ("false", Some("false")),
            (r#"["a","b,c",1,true,null]"#, Some("a,b%2Cc,1,true")),
            (r#"[["x","y"],{"k":1}]"#, Some(r#"["x"%2C"y"],{"k":1}"#)),
            (r#"{ "a" : [1, 2.0], "é": null }"#, Some(r#"{"a":[1,2.0],"%C3%A9":null}"#)),
            ("null", None),
            (r#""""#, None),
            ("[]", None),
            ("[null]", None),
        ] {
            let json = Json::parse(claim.as_bytes(), &JsonLimits::default())
                .expect("the claim of this test is JSON");
            assert_eq!(header_value(&json).as_deref(), expected, "{claim}");
        }
    }

    #[test]
    fn a_base64url_claim_decodes_to_the_original() {
        for (claim, expected) in [
            (r#""Zoë\r\n""#, Some("Zoë\r\n")),
            (r#"["a,b", 1]"#, Some(r#"["a,b",1]"#)),
            (r#"{"a": null}"#, Some(r#"{"a":null}"#)),
            ("12345678901234567890.10", Some("12345678901234567890.10")),
            ("null", None),
            (r#""""#, None),
        ] {
            let json = Json::parse(claim.as_bytes(), &JsonLimits::default())
                .expect("the claim of this test is JSON");
            let decoded = base64url_value(&json).map(|text| URL_SAFE_NO_PAD.decode(text).expect("base64url"));
            assert_eq!(decoded.as_deref(), expected.map(str::as_bytes), "{claim}");
        }
    }

    fn request<'a>(headers: &[(&'a [u8], &'a [u8])]) -> AccessRequest<'a> {
        AccessRequest::new(b"GET", b"api.example.com", b"/", headers.iter().copied().collect(), arrived())
    }

    #[test]
    fn a_look_alike_is_removed_by_its_original_spelling_and_refused_if_that_is_not_utf8() {
        let read = [HeaderName::from_static("x-forwarded-host")];
        let protected = ProtectedHeaders::new([].into_iter(), &Rules::default(), &read);
        for (sent, removed) in [
            (&b"X_Forwarded_Host"[..], Ok(&["X_Forwarded_Host"][..])),
            // Neither is a valid HTTP header name.
            (b"x-forwarded host", Ok(&["x-forwarded host"])),
            (b"x,forwarded\nhost", Ok(&["x,forwarded\nhost"])),
            (b"x\xffforwarded\xffhost", Err(UpstreamRejection::LookAlike)),
            (b"x-other\xff", Ok(&[])),
            (b"x-forwarded-host", Ok(&[])),
        ] {
            let changes = anonymous_changes(&protected, &request(&[(sent, b"evil")]));
            let changes = changes.as_ref().map(|changes| &changes.remove).map_err(|rejection| *rejection);
            let names = changes.map(|remove| remove.iter().map(RemovedHeader::as_str).collect::<Vec<_>>());
            assert_eq!(names, removed.map(<[_]>::to_vec), "{}", sent.escape_ascii());
        }
    }
}
