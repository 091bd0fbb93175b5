//! Extracts the token from a request: from headers with a scheme, cookies, query parameters (RFC 6750 §2) and the protocols
//! of a WebSocket, strictly.
//!
//! Pure. The extracted token is not verified. The same token in two places is one token; two different tokens are
//! refused.
//!
//! If one source reads a header by a scheme and another reads the same header without one, a value that begins with
//! that scheme belongs to the first source only: no token contains a space.

use std::borrow::Cow;

use http::HeaderName;
use http::header::{AUTHORIZATION, COOKIE, SEC_WEBSOCKET_PROTOCOL};
use percent_encoding::percent_decode;

use crate::access_request::AccessRequest;
use crate::validation::provider::TokenSource;

/// A token and every configured place that contains it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundToken<'a> {
    /// The token's text.
    pub text: Cow<'a, str>,
    /// Where it was found; never empty.
    pub places: Vec<&'a TokenSource>,
}

/// Why there is no token to validate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoToken {
    /// No place has a token.
    Missing,
    /// Two places, or one place twice, have different tokens (RFC 6750 §2).
    Several,
    /// A place has text that cannot be a token.
    Malformed,
}

/// Searches the places of all providers.
///
/// # Errors
/// There is not exactly one token.
pub fn find<'a>(request: &AccessRequest<'a>, sources: &'a [TokenSource]) -> Result<FoundToken<'a>, NoToken> {
    let mut found: Option<FoundToken<'a>> = None;
    for source in sources {
        let mut take = |candidate: Candidate<'a>| {
            let text = candidate?;
            match &mut found {
                None => found = Some(FoundToken { text, places: vec![source] }),
                Some(known) if known.text == text => {
                    if !known.places.contains(&source) {
                        known.places.push(source);
                    }
                }
                Some(_) => return Err(NoToken::Several),
            }
            Ok(())
        };
        match source {
            TokenSource::Header { name, scheme } => {
                let (mut line_count, mut token_count) = (0, 0);
                for value in request.headers.all(name.as_str()) {
                    line_count += 1;
                    let value = value.trim_ascii();
                    let candidate = match scheme {
                        Some(scheme) => by_scheme(value, scheme).or_else(|| after_comma(value, scheme)),
                        None => whole_value(value, sources.iter().filter_map(|other| scheme_in(name, other))),
                    };
                    if let Some(candidate) = candidate {
                        token_count += 1;
                        take(candidate)?;
                    }
                }
                // The header also carries credentials of another scheme: it is unknown which line the upstream
                // uses.
                if token_count > 0 && token_count < line_count {
                    return Err(NoToken::Several);
                }
            }
            TokenSource::Cookie(name) => {
                let is_source_cookie = |(cookie, value): &(&[u8], &[u8])| {
                    *cookie == name.as_bytes() && !without_quotes(value).is_empty()
                };
                for pair in
                    request.headers.all("cookie").flat_map(|header| header.split(|byte| *byte == b';'))
                {
                    let cookie = name_and_value(pair).filter(is_source_cookie);
                    if let Some((_, value)) = cookie {
                        take(utf8(without_quotes(value)).map(Cow::Borrowed))?;
                    }
                    if after_commas(pair).any(|cookie| is_source_cookie(&cookie)) {
                        take(Err(NoToken::Malformed))?;
                    }
                }
            }
            TokenSource::Query(name) => query_values(request.path, name).try_for_each(take)?,
            TokenSource::WebSocketProtocol(name) => {
                behind_protocol(request, name).into_iter().try_for_each(take)?;
            }
        }
    }
    found.ok_or(NoToken::Missing)
}

/// What the `Authorization` header of a request without a token is, in words that contain nothing of its value; `None`
/// if there is none. The name of a scheme that is not known here is not shown, since it may be a token without one.
pub fn other_credentials(request: &AccessRequest<'_>) -> Option<&'static str> {
    const KNOWN: [(&[u8], &str); 8] = [
        (b"basic", "an Authorization header of the scheme Basic"),
        (b"bearer", "an Authorization header of the scheme Bearer"),
        (b"dpop", "an Authorization header of the scheme DPoP"),
        (b"token", "an Authorization header of the scheme Token"),
        (b"digest", "an Authorization header of the scheme Digest"),
        (b"negotiate", "an Authorization header of the scheme Negotiate"),
        (b"ntlm", "an Authorization header of the scheme NTLM"),
        (b"aws4-hmac-sha256", "an Authorization header of the scheme AWS4-HMAC-SHA256"),
    ];
    let value = request.headers.all(AUTHORIZATION.as_str()).next()?.trim_ascii();
    let first = value.split(u8::is_ascii_whitespace).next().unwrap_or_default();
    let known = KNOWN.iter().find(|(scheme, _)| first.eq_ignore_ascii_case(scheme));
    Some(match known {
        Some((_, words)) => words,
        None if value.is_empty() => "an empty Authorization header",
        None if first.len() == value.len() => "an Authorization header without a scheme",
        None => "an Authorization header of another scheme",
    })
}

/// Whether this source has a value in the request, a token or not.
pub fn is_present(request: &AccessRequest<'_>, source: &TokenSource) -> bool {
    !matches!(find(request, std::slice::from_ref(source)), Err(NoToken::Missing))
}

/// The cookies of a header as name and value, without the white space around them (RFC 6265 §4.2.1).
///
/// Text after a comma is one more cookie: Envoy joins several `Cookie` lines with commas in its check request, and
/// the upstream gets the separate lines.
pub fn cookies(header: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    header
        .split(|byte| *byte == b';')
        .flat_map(|pair| name_and_value(pair).into_iter().chain(after_commas(pair)))
}

/// The cookies after a comma, if the pair is made of several joined lines.
fn after_commas(pair: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    pair.split(|byte| *byte == b',').skip(1).filter_map(name_and_value)
}

fn name_and_value(cookie: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = cookie.iter().position(|byte| *byte == b'=')?;
    let (name, value) = cookie.split_at_checked(equals)?;
    Some((name.trim_ascii(), value.get(1..).unwrap_or_default().trim_ascii()))
}

/// A cookie's value without the double quotes around it (RFC 6265 §4.1.1).
fn without_quotes(value: &[u8]) -> &[u8] {
    let inner = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    inner.unwrap_or(value)
}

/// The items of `Sec-WebSocket-Protocol`, of all its lines (RFC 6455 §11.3.4).
pub fn websocket_protocols<'a>(request: &AccessRequest<'a>) -> Vec<&'a [u8]> {
    let lines = request.headers.all(SEC_WEBSOCKET_PROTOCOL.as_str());
    // Empty elements of a list are ignored (RFC 9110 §5.6.1).
    let items = lines.flat_map(|line| line.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    items.filter(|item| !item.is_empty()).collect()
}

/// The items behind each item of this name. An item without one is no token.
fn behind_protocol<'a>(request: &AccessRequest<'a>, name: &str) -> Vec<Candidate<'a>> {
    let items = websocket_protocols(request);
    let named = items.iter().enumerate().filter(|(_, item)| **item == name.as_bytes());
    let tokens = named.map(|(at, _)| match items.get(at + 1) {
        Some(token) => utf8(token).map(Cow::Borrowed),
        None => Err(NoToken::Malformed),
    });
    tokens.collect()
}

type Candidate<'a> = Result<Cow<'a, str>, NoToken>;

/// The header that this source reads.
pub fn source_header(source: &TokenSource) -> Option<HeaderName> {
    match source {
        TokenSource::Header { name, .. } => Some(name.clone()),
        TokenSource::Cookie(_) => Some(COOKIE),
        TokenSource::Query(_) => None,
        TokenSource::WebSocketProtocol(_) => Some(SEC_WEBSOCKET_PROTOCOL),
    }
}

/// The scheme that this source expects in that header.
fn scheme_in<'a>(header: &HeaderName, source: &'a TokenSource) -> Option<&'a str> {
    match source {
        TokenSource::Header { name, scheme } if name == header => scheme.as_deref(),
        _ => None,
    }
}

/// The whole value; `None` if it is empty, or if it has credentials of another source's scheme.
fn whole_value<'a, 's>(value: &'a [u8], mut schemes: impl Iterator<Item = &'s str>) -> Option<Candidate<'a>> {
    let is_under = |scheme: &str| {
        value.split_at_checked(scheme.len()).is_some_and(|(named, rest)| {
            named.eq_ignore_ascii_case(scheme.as_bytes()) && rest.first() == Some(&b' ')
        })
    };
    if value.is_empty() || schemes.any(is_under) { None } else { Some(utf8(value).map(Cow::Borrowed)) }
}

/// The credentials after the scheme; `None` if the header has another scheme and therefore no token of this source.
fn by_scheme<'a>(value: &'a [u8], scheme: &str) -> Option<Candidate<'a>> {
    let (named, rest) = value.split_at_checked(scheme.len())?;
    if !named.eq_ignore_ascii_case(scheme.as_bytes()) {
        return None;
    }
    let credentials = match rest.first() {
        // RFC 9110 §11.4: at least one space, and nothing else, before the credentials.
        Some(b' ') => {
            let start = rest.iter().position(|byte| *byte != b' ').unwrap_or(rest.len());
            rest.get(start..).unwrap_or_default()
        }
        None | Some(b'\t' | b',') => return Some(Err(NoToken::Malformed)),
        // Another scheme that begins with the name of this one.
        Some(_) => return None,
    };
    Some(utf8(credentials).map(Cow::Borrowed))
}

/// The values of a query parameter. A parameter whose name matches only after decoding is refused: a proxy that is
/// asked to remove the parameter would not remove it.
fn query_values<'a>(path: &'a [u8], name: &'a str) -> impl Iterator<Item = Candidate<'a>> {
    let query = path.split(|byte| *byte == b'#').next().unwrap_or_default();
    let query = query
        .iter()
        .position(|byte| *byte == b'?')
        .and_then(|mark| query.get(mark + 1..))
        .unwrap_or_default();
    query.split(|byte| *byte == b'&').filter_map(move |pair| {
        let mut halves = pair.splitn(2, |byte| *byte == b'=');
        let (raw_name, value) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
        if raw_name != name.as_bytes() {
            let decoded: Cow<'_, [u8]> = percent_decode(raw_name).into();
            return (decoded.as_ref() == name.as_bytes()).then_some(Err(NoToken::Malformed));
        }
        if value.is_empty() {
            return None;
        }
        Some(percent_decode(value).decode_utf8().map_err(|_| NoToken::Malformed))
    })
}

/// Refuses credentials of this scheme after those of another scheme: Envoy joins several lines of a header with
/// commas in its check request, and the upstream gets the separate lines.
fn after_comma<'a>(value: &'a [u8], scheme: &str) -> Option<Candidate<'a>> {
    let mut items = value.split(|byte| *byte == b',').skip(1);
    items.any(|item| by_scheme(item.trim_ascii(), scheme).is_some()).then_some(Err(NoToken::Malformed))
}

fn utf8(bytes: &[u8]) -> Result<&str, NoToken> {
    std::str::from_utf8(bytes).map_err(|_| NoToken::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access_request::Headers;
    use crate::access_request::tests::arrived;

    #[track_caller]
    fn check(
        headers: &[(&str, &str)],
        path: &str,
        sources: &[TokenSource],
        expected: Result<(&str, usize), NoToken>,
    ) {
        let sent = headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let request =
            AccessRequest::new(b"GET", b"api.example.com", path.as_bytes(), sent.collect(), arrived());
        let found = find(&request, sources);
        let found =
            found.as_ref().map(|found| (found.text.as_ref(), found.places.len())).map_err(|error| *error);
        assert_eq!(found, expected, "{headers:?} {path}");
    }

    #[test]
    fn other_credentials_are_described_without_their_value() {
        for (value, expected) in [
            ("Basic dXNlcjpwYXNz", "an Authorization header of the scheme Basic"),
            ("BASIC", "an Authorization header of the scheme Basic"),
            ("dpop x", "an Authorization header of the scheme DPoP"),
            ("eyJhbGciOiJub25lIn0.e30.", "an Authorization header without a scheme"),
            ("opaque", "an Authorization header without a scheme"),
            ("secret scheme", "an Authorization header of another scheme"),
            ("", "an empty Authorization header"),
        ] {
            let headers = [(&b"Authorization"[..], value.as_bytes())].into_iter().collect();
            let request = AccessRequest::new(b"GET", b"h", b"/", headers, arrived());
            assert_eq!(other_credentials(&request), Some(expected), "{value}");
        }
        let request = AccessRequest::new(b"GET", b"h", b"/", Headers::default(), arrived());
        assert_eq!(other_credentials(&request), None);
    }

    #[test]
    fn the_authorization_header_is_read_by_its_scheme() {
        use NoToken::{Malformed, Missing};
        let sources = [TokenSource::default()];
        for (value, expected) in [
            ("Bearer a.b.c", Ok(("a.b.c", 1))),
            ("bearer a.b.c", Ok(("a.b.c", 1))),
            ("BEARER   a.b.c", Ok(("a.b.c", 1))),
            (" Bearer a.b.c ", Ok(("a.b.c", 1))),
            ("Bearer\ta.b.c", Err(Malformed)),
            ("Bearer", Err(Malformed)),
            ("Bearer ", Err(Malformed)),
            ("Bearera.b.c", Err(Missing)),
            ("Basic dTpw", Err(Missing)),
            ("DPoP a.b.c", Err(Missing)),
            ("a.b.c", Err(Missing)),
            ("", Err(Missing)),
            ("Bearer a,Bearer b", Ok(("a,Bearer b", 1))),
            ("Bearer,Bearer b", Err(Malformed)),
            ("Basic dTpw,Bearer a.b.c", Err(Malformed)),
            ("Basic dTpw, bearer a.b.c", Err(Malformed)),
            ("Digest a=b, bearera=c", Err(Missing)),
        ] {
            check(&[("authorization", value)], "/", &sources, expected);
            check(&[("Authorization", value)], "/", &sources, expected);
        }
        for other in ["proxy-authorization", "x-forwarded-authorization", "x-original-authorization"] {
            check(&[(other, "Bearer a.b.c")], "/?access_token=a.b.c", &sources, Err(Missing));
        }
    }

    #[test]
    fn one_token_in_several_places_is_accepted_and_two_different_ones_are_refused() {
        let sources = [
            TokenSource::default(),
            TokenSource::Cookie("access_token".into()),
            TokenSource::Query("access_token".into()),
            TokenSource::Header { name: HeaderName::from_static("x-token"), scheme: None },
        ];
        let (good, path) = (("authorization", "Bearer a"), "/p?x=1&access_token=a#f");
        for (headers, path, expected) in [
            (vec![good, ("cookie", "q=1; access_token=a")], path, Ok(("a", 3))),
            (vec![good, ("cookie", "access_token=b")], path, Err(NoToken::Several)),
            (vec![good, good], "/", Ok(("a", 1))),
            (vec![good, ("authorization", "Bearer b")], "/", Err(NoToken::Several)),
            (vec![], "/?access_token=a&access_token=b", Err(NoToken::Several)),
            (vec![], "/?access_token=a&%61ccess_token=a", Err(NoToken::Malformed)),
            (vec![], "/?access_token=a%2Eb", Ok(("a.b", 1))),
            (vec![], "/?access_token=%ff", Err(NoToken::Malformed)),
            (vec![], "/?x=1;access_token=a", Err(NoToken::Missing)),
            (vec![], "/#?access_token=a", Err(NoToken::Missing)),
            (vec![("cookie", "access_token=a; access_token=b")], "/", Err(NoToken::Several)),
            (vec![("cookie", "access_token=a"), ("cookie", "access_token=b")], "/", Err(NoToken::Several)),
            (vec![("cookie", "q=1,access_token=a")], "/", Err(NoToken::Malformed)),
            (vec![("cookie", "q=1; r=2, access_token=b; access_token=a")], "/", Err(NoToken::Malformed)),
            (vec![good, ("cookie", "q=1,access_token=b")], "/", Err(NoToken::Malformed)),
            (vec![("cookie", "q=1,2; access_token=a")], "/", Ok(("a", 1))),
            (vec![("cookie", "__Host-access_token=a; ACCESS_TOKEN=a")], "/", Err(NoToken::Missing)),
            (vec![("cookie", "access_token=\"a\"")], "/", Ok(("a", 1))),
            (vec![("cookie", "access_token=\"a")], "/", Ok(("\"a", 1))),
            (vec![("cookie", "access_token=\"")], "/", Ok(("\"", 1))),
            (vec![("cookie", "access_token=\"\"; b=2"), ("x-token", "a")], "/", Ok(("a", 1))),
            (vec![("x-token", "a")], "/?access_token=", Ok(("a", 1))),
        ] {
            check(&headers, path, &sources, expected);
        }
    }

    #[test]
    fn a_header_read_with_and_without_a_scheme_has_one_token_per_line() {
        use NoToken::{Malformed, Several};
        let header = |scheme: Option<&str>| TokenSource::Header {
            name: AUTHORIZATION,
            scheme: scheme.map(str::to_owned),
        };
        let sources = [header(None), header(Some("Bearer")), header(Some("DPoP"))];
        let mut reversed = sources.clone();
        reversed.reverse();
        for sources in [&sources, &reversed] {
            for (lines, expected) in [
                (&["Bearer a.b.c"][..], Ok(("a.b.c", 1))),
                (&["bearer   a.b.c"], Ok(("a.b.c", 1))),
                (&["DPoP a.b.c"], Ok(("a.b.c", 1))),
                (&["a.b.c"], Ok(("a.b.c", 1))),
                // A scheme that no source names is part of the whole value, which then fails as a token.
                (&["Basic dTpw"], Ok(("Basic dTpw", 1))),
                (&["Bearera.b.c"], Ok(("Bearera.b.c", 1))),
                (&["Bearer"], Err(Malformed)),
                (&["Bearer "], Err(Malformed)),
                (&["Bearer\ta.b.c"], Err(Malformed)),
                (&["a.b.c", "a.b.c"], Ok(("a.b.c", 1))),
                (&["Bearer a", "b"], Err(Several)),
                (&["a", "Bearer b"], Err(Several)),
                (&["Bearer a", "DPoP b"], Err(Several)),
                // One token, but it is unknown which line the upstream uses.
                (&["Bearer a", "a"], Err(Several)),
            ] {
                let headers: Vec<_> = lines.iter().map(|line| ("authorization", *line)).collect();
                check(&headers, "/", sources, expected);
            }
        }
        // A scheme that is configured for another header does not apply here.
        let x_token = HeaderName::from_static("x-token");
        let other = TokenSource::Header { name: x_token, scheme: Some("Bearer".into()) };
        check(&[("authorization", "Bearer a")], "/", &[header(None), other], Ok(("Bearer a", 1)));
    }

    #[test]
    fn schemes_are_compared_without_case_and_not_by_prefix() {
        let header = |scheme: &str| TokenSource::Header { name: AUTHORIZATION, scheme: Some(scheme.into()) };
        let sources = [header("Bearer"), header("bearer")];
        check(&[("authorization", "BEARER a.b.c")], "/", &sources, Ok(("a.b.c", 2)));
        let sources = [header("Token"), header("Token-X"), header("TokenY")];
        for (value, expected) in [("Token a", "a"), ("token-x a", "a"), ("TOKENY a", "a")] {
            check(&[("authorization", value)], "/", &sources, Ok((expected, 1)));
        }
        check(&[("authorization", "Token-Z a")], "/", &sources, Err(NoToken::Missing));
    }

    #[test]
    fn a_token_of_a_websocket_is_the_item_behind_the_configured_one() {
        use NoToken::{Malformed, Missing, Several};
        let sources = [TokenSource::WebSocketProtocol("bearer".into()), TokenSource::default()];
        for (lines, expected) in [
            (&["bearer, a.b.c"][..], Ok(("a.b.c", 1))),
            (&["bearer,a.b.c,chat"], Ok(("a.b.c", 1))),
            (&["chat, bearer, a.b.c"], Ok(("a.b.c", 1))),
            (&["chat", "bearer", "a.b.c"], Ok(("a.b.c", 1))),
            (&["bearer, a, bearer, a"], Ok(("a", 1))),
            (&["bearer, a, bearer, b"], Err(Several)),
            (&["bearer, a", "bearer, b"], Err(Several)),
            (&["chat, bearer"], Err(Malformed)),
            (&["bearer, , a"], Ok(("a", 1))),
            (&["bearer,", ",a"], Ok(("a", 1))),
            (&["bearer, "], Err(Malformed)),
            (&["chat, Bearer, a", "bearerx, a"], Err(Missing)),
            (&[], Err(Missing)),
        ] {
            let headers: Vec<_> = lines.iter().map(|line| ("Sec-WebSocket-Protocol", *line)).collect();
            check(&headers, "/", &sources, expected);
        }
        let both = [("sec-websocket-protocol", "bearer, a"), ("authorization", "Bearer a")];
        check(&both, "/", &sources, Ok(("a", 2)));
    }
}
