//! Removes tokens that are not forwarded from a request, wherever a program may find them: from headers, cookies, the query and
//! the protocols of a WebSocket.

use std::collections::HashSet;

use http::HeaderValue;
use http::header::{COOKIE, SEC_WEBSOCKET_PROTOCOL};
use percent_encoding::percent_decode;

use super::{RemovedHeader, UpstreamChanges, UpstreamRejection};
use crate::access_request::{AccessRequest, Removal};
use crate::bearer_token;
use crate::protected_headers::ProtectedHeaders;
use crate::rules::query::folded;
use crate::validation::provider::TokenSource;

/// Sets the remaining cookies if tokens in cookies are not forwarded, except in these places, where this token's provider
/// forwards it. A proxy that sets only the headers that its configuration names needs them with every answer, since it copies
/// the answer's header even if it is absent. Other proxies need them only if a cookie's name is folded to that of a token by
/// some programs.
pub(super) fn set_remaining_cookies<'p>(
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
    let sent = request.headers.all("cookie").flat_map(|header| header.split(|byte| *byte == b';'));
    if request.removal == Removal::NamedHeaders
        || sent.flat_map(cookie_names).any(|name| names.removes_cookie(name))
    {
        set_cookies(changes, request, &names);
    }
}

/// The names of cookies, or of protocols, from which tokens are removed.
#[derive(Debug)]
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
pub(super) fn set_remaining_protocols<'p>(
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
        let is_marker = names.kept.contains(&item);
        let is_removed =
            names.removes_protocol(item) || is_behind(at) || (!is_token && removed.contains(item));
        is_marker || !is_removed
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
pub(super) fn remove_token<'p>(
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

/// The names that some program reads in one pair of a Cookie header: Python's parser takes white space for a separator, and
/// allows it before `=`.
fn cookie_names(pair: &[u8]) -> impl Iterator<Item = &[u8]> {
    let is_separator = |byte: &u8| byte.is_ascii_whitespace() || *byte == b',';
    let equals = pair.iter().enumerate().filter(|(_, byte)| **byte == b'=');
    equals.filter_map(move |(at, _)| pair.get(..at)?.trim_ascii_end().rsplit(is_separator).next())
}

/// Sets the cookies of the request except those with these names.
fn set_cookies(changes: &mut UpstreamChanges, request: &AccessRequest<'_>, names: &Names<'_>) {
    let kept: Vec<&[u8]> = request
        .headers
        .all("cookie")
        .flat_map(|header| header.split(|byte| *byte == b';'))
        .map(<[u8]>::trim_ascii)
        .filter(|pair| !pair.is_empty() && !cookie_names(pair).any(|name| names.removes_cookie(name)))
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

    fn request<'a>(headers: &[(&'a [u8], &'a [u8])]) -> AccessRequest<'a> {
        AccessRequest::new(b"GET", b"api.example.com", b"/", headers.iter().copied().collect(), arrived())
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
