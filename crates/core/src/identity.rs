//! Turns the claims of a verified token into headers for the upstream, and removes client headers that could fake
//! an identity.
//!
//! Pure. A claim header of any provider reaches the upstream with the value of this service or not at all; the
//! spellings that many backends take for the same name are removed, as are all other protected headers
//! ([`crate::protected_headers`]).

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{COOKIE, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode, utf8_percent_encode};

use crate::access_request::{AccessRequest, ClaimHeaders, Removal};
use crate::bearer_token::{self, cookies};
use crate::protected_headers::{Protected, ProtectedHeaders};
use crate::rules::query::folded;
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
    let is_forwarded = |place: &&&TokenSource| provider.forward_token && provider.token_from.contains(place);
    let forwarded: Vec<&TokenSource> = places.iter().filter(is_forwarded).copied().collect();
    if !provider.forward_token {
        remove_token(&mut changes, protected, request, places)?;
    }
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

/// Sets the remaining cookies if tokens in cookies are not forwarded, except in these places, where this token's provider
/// forwards it. A proxy that sets only the headers that its configuration names needs them with every answer, since it copies
/// the answer's header even if it is absent. Other proxies need them only if a cookie's name is folded to that of a token by
/// some programs.
fn set_remaining_cookies<'p>(
    changes: &mut UpstreamChanges,
    protected: &'p ProtectedHeaders,
    request: &AccessRequest<'_>,
    forwarded: &[&'p TokenSource],
) {
    let is_done =
        changes.sets(COOKIE.as_str().as_bytes()) || changes.remove.contains(&RemovedHeader::Known(COOKIE));
    if is_done || !protected.not_forwarded().iter().any(|source| cookie_name(source).is_some()) {
        return;
    }
    let names = Names::of(protected, forwarded, cookie_name);
    let mut sent = request.headers.all("cookie").flat_map(cookies);
    if request.removal == Removal::NamedHeaders || sent.any(|(name, _)| names.removes_cookie(name)) {
        set_cookies(changes, request, &names);
    }
}

/// The names of cookies, or of protocols, from which tokens are removed.
#[derive(Debug, Default)]
struct Names<'p> {
    removed: Vec<&'p [u8]>,
    /// These stay as they are written, though other spellings of them are removed: this request's token is forwarded there.
    kept: Vec<&'p [u8]>,
}

impl<'p> Names<'p> {
    /// Those of all places that are not forwarded, but for `forwarded`.
    fn of(
        protected: &'p ProtectedHeaders,
        forwarded: &[&'p TokenSource],
        name: fn(&'p TokenSource) -> Option<&'p [u8]>,
    ) -> Self {
        Self {
            removed: protected.not_forwarded().iter().filter_map(name).collect(),
            kept: forwarded.iter().copied().filter_map(name).collect(),
        }
    }

    /// Whether some program takes a cookie of this name for one that is removed: PHP folds cookie names like parameter names.
    fn removes_cookie(&self, name: &[u8]) -> bool {
        let as_read = |name: &[u8]| folded(&percent_decode(name).decode_utf8_lossy());
        let is_one = |one: &&[u8]| *one == name || as_read(one) == as_read(name);
        !self.kept.contains(&name) && self.removed.iter().any(is_one)
    }

    /// Whether some program takes an item for a protocol that is removed: names of protocols are compared with their case (RFC
    /// 6455 §11.3.4), but not by every program.
    fn removes_protocol(&self, item: &[u8]) -> bool {
        !self.kept.contains(&item) && self.removed.iter().any(|name| name.eq_ignore_ascii_case(item))
    }
}

fn cookie_name(source: &TokenSource) -> Option<&[u8]> {
    match source {
        TokenSource::Cookie(name) => Some(name.as_bytes()),
        TokenSource::Header { .. } | TokenSource::Query(_) | TokenSource::WebSocketProtocol(_) => None,
    }
}

fn protocol_name(source: &TokenSource) -> Option<&[u8]> {
    match source {
        TokenSource::WebSocketProtocol(name) => Some(name.as_bytes()),
        TokenSource::Header { .. } | TokenSource::Query(_) | TokenSource::Cookie(_) => None,
    }
}

/// Sets the remaining protocols of a WebSocket for a proxy that copies the header from every answer, as
/// [`set_remaining_cookies`].
fn set_remaining_protocols<'p>(
    changes: &mut UpstreamChanges,
    protected: &'p ProtectedHeaders,
    request: &AccessRequest<'_>,
    forwarded: &[&'p TokenSource],
) {
    let is_done = changes.websocket_protocol.is_some()
        || changes.remove.contains(&RemovedHeader::Known(SEC_WEBSOCKET_PROTOCOL));
    if is_done || !protected.not_forwarded().iter().any(|source| protocol_name(source).is_some()) {
        return;
    }
    let names = Names::of(protected, forwarded, protocol_name);
    let sent = bearer_token::websocket_protocols(request);
    if request.removal == Removal::NamedHeaders || sent.iter().any(|item| names.removes_protocol(item)) {
        set_protocols(changes, request, &names);
    }
}

/// Sets the protocols of a WebSocket except these and the item behind each.
fn set_protocols(changes: &mut UpstreamChanges, request: &AccessRequest<'_>, names: &Names<'_>) {
    let items = bearer_token::websocket_protocols(request);
    let before = |at: usize| at.checked_sub(1).and_then(|at| items.get(at)).copied();
    let is_behind = |at: usize| before(at).is_some_and(|name| names.removes_protocol(name));
    let behind = items.iter().enumerate().filter(|(at, _)| is_behind(*at)).map(|(_, item)| *item);
    // Also another copy of such an item, wherever it is, unless it is the token that is forwarded.
    let removed: HashSet<&[u8]> = behind.collect();
    let is_kept = |at: usize, item: &[u8]| {
        let is_token = before(at).is_some_and(|name| names.kept.contains(&name));
        !names.removes_protocol(item) && !is_behind(at) && (is_token || !removed.contains(item))
    };
    let kept = items.iter().enumerate().filter(|(at, item)| is_kept(*at, item)).map(|(_, item)| *item);
    let kept: Vec<&[u8]> = kept.collect();
    let kept = HeaderValue::from_bytes(&kept.join(&b", "[..])).ok();
    match kept.filter(|kept| kept.to_str().is_ok_and(|text| !text.is_empty())) {
        Some(kept) => changes.websocket_protocol = Some(kept),
        None => changes.remove.push(RemovedHeader::Known(SEC_WEBSOCKET_PROTOCOL)),
    }
}

/// Removes the token from every place.
fn remove_token<'p>(
    changes: &mut UpstreamChanges,
    protected: &'p ProtectedHeaders,
    request: &AccessRequest<'_>,
    places: &[&'p TokenSource],
) -> Result<(), UpstreamRejection> {
    // Beside the places of this token all others from which tokens are removed: what is there was not verified.
    let with_places = |name: fn(&'p TokenSource) -> Option<&'p [u8]>| {
        let mut names = Names::of(protected, &[], name);
        let found: Vec<&[u8]> = places.iter().copied().filter_map(name).collect();
        (!found.is_empty()).then(|| {
            names.removed.extend(found);
            names
        })
    };
    let (cookie_names, protocol_names) = (with_places(cookie_name), with_places(protocol_name));
    for place in places {
        let is_header = matches!(place, TokenSource::Header { .. });
        // The proxy's file is made for the places that are never forwarded.
        let is_removable = match request.removal {
            Removal::HeadersAndQuery => true,
            Removal::Headers => is_header || protected.not_forwarded().contains(place),
            Removal::NamedHeaders => protected.not_forwarded().contains(place),
        };
        if !is_removable {
            return Err(UpstreamRejection::TokenElsewhere);
        }
        match place {
            TokenSource::Header { name, .. } => RemovedHeader::add(&mut changes.remove, name),
            TokenSource::Query(_) if request.removal != Removal::HeadersAndQuery => {
                return Err(UpstreamRejection::TokenInQuery);
            }
            TokenSource::Query(name) => changes.remove_query.push(name.clone()),
            TokenSource::Cookie(_) | TokenSource::WebSocketProtocol(_) => {}
        }
    }
    if let Some(names) = cookie_names {
        set_cookies(changes, request, &names);
    }
    if let Some(names) = protocol_names {
        set_protocols(changes, request, &names);
    }
    Ok(())
}

/// Sets the cookies of the request except those with these names.
fn set_cookies(changes: &mut UpstreamChanges, request: &AccessRequest<'_>, names: &Names<'_>) {
    let kept: Vec<&[u8]> = request
        .headers
        .all("cookie")
        .flat_map(|header| header.split(|byte| *byte == b';'))
        .map(<[u8]>::trim_ascii)
        .filter(|pair| !pair.is_empty() && !cookies(pair).any(|(name, _)| names.removes_cookie(name)))
        .collect();
    // A value that is not plain text cannot be rewritten; the header is then removed.
    let cookie = String::from_utf8(kept.join(&b"; "[..])).ok();
    let plain =
        cookie.filter(|cookie| !cookie.is_empty() && !cookie.contains(|c: char| c.is_ascii_control()));
    match plain.and_then(|cookie| HeaderValue::try_from(cookie).ok()) {
        Some(cookie) => changes.cookie = Some(cookie),
        None => changes.remove.push(RemovedHeader::Known(COOKIE)),
    }
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

    #[test]
    fn cookies_of_plain_text_are_set_and_others_are_removed() {
        for (sent, kept) in [
            (&b"a=1; t=x; b=2"[..], Some(&b"a=1; b=2"[..])),
            ("a=ü; t=x".as_bytes(), Some("a=ü".as_bytes())),
            (b"t=x", None),
            (b"a=\xff; t=x", None),
            (b"a=1\t2; t=x", None),
            (b"a=1\x7f; t=x", None),
        ] {
            let mut changes = UpstreamChanges::default();
            let names = Names { removed: vec![b"t"], kept: Vec::new() };
            set_cookies(&mut changes, &request(&[(b"cookie", sent)]), &names);
            let set: Vec<_> = changes.set().map(|(name, value)| (name, value.as_bytes())).collect();
            assert_eq!(set, kept.map(|kept| (&COOKIE, kept)).into_iter().collect::<Vec<_>>());
            let removed = kept.is_none().then_some(RemovedHeader::Known(COOKIE));
            assert_eq!(changes.remove, Vec::from_iter(removed), "{}", sent.escape_ascii());
        }
    }

    #[test]
    fn the_protocols_of_a_websocket_are_set_without_the_token_and_removed_if_none_is_left() {
        for (sent, kept) in [
            (&[&b"bearer, a.b.c, chat"[..]][..], Some(&b"chat"[..])),
            (&[b"chat, bearer, a.b.c", b"v2"], Some(b"chat, v2")),
            (&[b"bearer, a", b"bearer, a"], None),
            (&[b"bearer", b"a.b.c"], None),
            (&[b"bearer,, a.b.c, chat"], Some(b"chat")),
            (&[b"chat, BEARER, a.b.c"], Some(b"chat")),
            (&[b"Bearer, bearer, a.b.c, chat"], Some(b"chat")),
            (&[b"a.b.c, bearer, a.b.c, a.b.c, chat"], Some(b"chat")),
            (&[b"bearer, a, \xff"], None),
        ] {
            let mut changes = UpstreamChanges::default();
            let headers: Vec<_> = sent.iter().map(|line| (&b"Sec-WebSocket-Protocol"[..], *line)).collect();
            let names = Names { removed: vec![b"bearer"], kept: Vec::new() };
            set_protocols(&mut changes, &request(&headers), &names);
            let set: Vec<_> = changes.set().map(|(name, value)| (name, value.as_bytes())).collect();
            assert_eq!(set, Vec::from_iter(kept.map(|kept| (&SEC_WEBSOCKET_PROTOCOL, kept))));
            let removed = kept.is_none().then_some(RemovedHeader::Known(SEC_WEBSOCKET_PROTOCOL));
            assert_eq!(changes.remove, Vec::from_iter(removed));
        }
    }
}
