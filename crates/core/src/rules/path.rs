//! Canonical paths for comparison in rules, and the targets that have no canonical form.
//!
//! Pure. The proxy forwards the target as the client wrote it, and the upstream parses it in its own way. So a
//! target is evaluated only if every program reads the same path: a target that programs read as different paths is
//! refused instead of resolved, because the upstream might resolve it differently.

use std::borrow::Cow;

/// The path of a request for comparison in rules, without its query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestPath<'a> {
    merged: Cow<'a, str>,
    unmerged: Option<String>,
    as_written: Option<String>,
    ambiguous: bool,
}

/// The target has no canonical path: programs resolve it to different paths, or cut it at different places. It
/// contains a dot segment in some spelling (RFC 3986 §5.2.4), a leading `//` (§4.2: a host follows), or a fragment
/// (§3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotPlain;

impl RequestPath<'_> {
    /// The path to compare, ambiguous or not, with repeated slashes merged.
    pub fn as_str(&self) -> &str {
        &self.merged
    }

    /// The path with its repeated slashes, if it has any.
    pub fn unmerged(&self) -> Option<&str> {
        self.unmerged.as_deref()
    }

    /// The path before percent-decoding, with repeated slashes merged, if it differs from the canonical one: a
    /// router that compares paths without decoding them uses this form.
    pub fn as_written(&self) -> Option<&str> {
        self.as_written.as_deref()
    }

    /// Whether programs differ about its segments or their names.
    pub fn is_ambiguous(&self) -> bool {
        self.ambiguous
    }
}

/// The path of a request target (RFC 9112 §3.2) in canonical form: without the query, with needless
/// percent-encodings decoded and everything else encoded with upper-case digits. Its case is kept.
///
/// A path is ambiguous if it contains an encoded slash, backslash, semicolon, control character or double encoding
/// (`%25` before two hexadecimal digits), a backslash, a semicolon, a `%` without two digits, or octets that are
/// not UTF-8 after decoding, or if it does not begin with a slash.
///
/// # Errors
/// [`NotPlain`].
pub fn canonical(target: &[u8]) -> Result<RequestPath<'_>, NotPlain> {
    if target.contains(&b'#') {
        return Err(NotPlain);
    }
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    if is_plain(path)
        && let Ok(path) = std::str::from_utf8(path)
    {
        return Ok(RequestPath {
            merged: Cow::Borrowed(path),
            unmerged: None,
            as_written: None,
            ambiguous: false,
        });
    }
    if !resolves_the_same_everywhere(path) {
        return Err(NotPlain);
    }
    let mut reader = Reader { rest: path, ambiguous: path.first() != Some(&b'/') };
    let mut rewritten = reader.rewrite();
    reader.ambiguous |= is_encoded_twice(&rewritten) || !is_utf8_when_decoded(path);
    if !rewritten.starts_with('/') {
        rewritten.insert(0, '/');
    }
    let unmerged = rewritten.contains("//").then(|| rewritten.clone());
    let merged = if unmerged.is_some() { merge_slashes(&rewritten) } else { rewritten };
    let as_written = std::str::from_utf8(path).ok().map(merge_slashes).filter(|text| *text != merged);
    Ok(RequestPath { merged: merged.into(), unmerged, as_written, ambiguous: reader.ambiguous })
}

/// Why a path is ambiguous, in words that contain nothing of it; `None` if it is not.
pub(crate) fn ambiguity(target: &[u8]) -> Option<&'static str> {
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    let has = |parts: &[&str]| {
        let is_part = |window: &[u8], part: &str| window.eq_ignore_ascii_case(part.as_bytes());
        parts.iter().any(|part| path.windows(part.len()).any(|window| is_part(window, part)))
    };
    let known = [
        (path.first() != Some(&b'/'), "it does not begin with a slash"),
        (has(&["%2f"]), "an encoded slash, `%2F`"),
        (has(&["%5c", "\\"]), "a backslash, also as `%5C`"),
        (has(&["%3b", ";"]), "a semicolon, also as `%3B`"),
        (!is_utf8_when_decoded(path), "octets that are not UTF-8"),
    ];
    let known = known.into_iter().find(|(is_so, _)| *is_so).map(|(_, words)| words);
    known.or_else(|| {
        let is_ambiguous = canonical(target).is_ok_and(|path| path.is_ambiguous());
        is_ambiguous.then_some(
            "an encoded control character, an encoding of an encoding, or a `%` without two digits",
        )
    })
}

/// Whether a target contains only octets that a request line allows: no space, no control character, no DEL (RFC
/// 9112 §3.2). Some programs end the target at a raw space.
pub fn is_request_target(target: &[u8]) -> bool {
    !target.iter().any(|byte| *byte == b' ' || byte.is_ascii_control())
}

/// The query of a request target: the part after its first question mark.
pub fn query(target: &[u8]) -> &[u8] {
    let mark = target.iter().position(|byte| *byte == b'?');
    mark.and_then(|mark| target.get(mark + 1..)).unwrap_or_default()
}

/// Whether a path is canonical already, as nearly all are.
fn is_plain(path: &[u8]) -> bool {
    let mut last = b' ';
    path.first() == Some(&b'/')
        && path.iter().all(|byte| {
            let is_plain_byte = match byte {
                b'/' => last != b'/',
                b'.' => last != b'/' && last != b'.',
                byte => is_literal(*byte),
            };
            last = *byte;
            is_plain_byte
        })
}

/// Octets that need no encoding in a path segment: `pchar` of RFC 3986 §3.3, without the semicolon.
fn is_literal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&byte)
}

/// Rewrites a path octet by octet, before dot segments are checked.
struct Reader<'a> {
    rest: &'a [u8],
    ambiguous: bool,
}

impl Reader<'_> {
    fn rewrite(&mut self) -> String {
        let mut out = String::with_capacity(self.rest.len());
        while let Some((byte, rest)) = self.rest.split_first() {
            self.rest = rest;
            match byte {
                b'%' => self.rewrite_encoded(&mut out),
                b'/' => out.push('/'),
                byte if is_literal(*byte) => out.push(char::from(*byte)),
                b'\\' | b';' => {
                    self.ambiguous = true;
                    out.push(char::from(*byte));
                }
                byte => {
                    self.ambiguous |= byte.is_ascii_control();
                    push_encoded(&mut out, *byte);
                }
            }
        }
        out
    }

    /// Rewrites the octets after a percent sign.
    fn rewrite_encoded(&mut self, out: &mut String) {
        let Some((byte, rest)) = decode(self.rest) else {
            self.ambiguous = true;
            out.push('%');
            return;
        };
        self.rest = rest;
        if is_literal(byte) {
            out.push(char::from(byte));
            return;
        }
        self.ambiguous |= byte.is_ascii_control() || matches!(byte, b'/' | b'\\' | b';');
        push_encoded(out, byte);
    }
}

/// The octet that two hexadecimal digits encode, and the rest.
fn decode(digits: &[u8]) -> Option<(u8, &[u8])> {
    let ([high, low], rest) = digits.split_first_chunk::<2>()?;
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some((digit(*high)? << 4 | digit(*low)?, rest))
}

fn push_encoded(out: &mut String, byte: u8) {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or('0');
    out.extend(['%', digit(byte >> 4), digit(byte & 0x0f)]);
}

/// Whether the path can be decoded again after decoding. It checks the rewritten text, since the digits may be
/// encoded too: `%25%32%65` becomes `%2e`, which is a dot.
fn is_encoded_twice(rewritten: &str) -> bool {
    rewritten.match_indices("%25").any(|(at, percent)| {
        rewritten.as_bytes().get(at + percent.len()..).is_some_and(|rest| decode(rest).is_some())
    })
}

/// An overlong encoding of a slash or a dot is not valid UTF-8, but some programs decode it.
fn is_utf8_when_decoded(path: &[u8]) -> bool {
    percent_encoding::percent_decode(path).decode_utf8().is_ok()
}

/// How often a path is decoded in the search for dot segments. A path that can be decoded more often is refused.
const MAX_DECODINGS: usize = 4;

/// Whether the path stays in place for every program that resolves it, however often it decodes it first: no dot
/// segments, and no first segment that could be a host.
fn resolves_the_same_everywhere(path: &[u8]) -> bool {
    let mut reading = path.to_vec();
    for _ in 0..MAX_DECODINGS {
        if starts_with_host(&reading) || has_dot_segment(&reading) {
            return false;
        }
        let decoded = decode_leniently(&reading);
        if decoded == reading {
            return true;
        }
        reading = decoded;
    }
    false
}

/// Programs differ about which of these separate segments.
fn is_separator(byte: u8) -> bool {
    matches!(byte, b'/' | b'\\')
}

fn starts_with_host(path: &[u8]) -> bool {
    matches!(path, [first, second, ..] if is_separator(*first) && is_separator(*second))
}

/// A segment is compared without its parameters (`..;x`), without a NUL and the text after it, and without
/// surrounding spaces: some programs strip each of these first.
fn has_dot_segment(path: &[u8]) -> bool {
    path.split(|byte| is_separator(*byte)).any(|segment| {
        let name = segment.split(|byte| matches!(byte, b';' | 0)).next().unwrap_or_default();
        matches!(name.trim_ascii(), b"." | b"..")
    })
}

/// Decodes as much as possible, including overlong UTF-8, and keeps the rest, like the most lenient program.
fn decode_leniently(path: &[u8]) -> Vec<u8> {
    let decoded: Vec<u8> = percent_encoding::percent_decode(path).collect();
    let mut out = Vec::with_capacity(decoded.len());
    let mut rest = decoded.as_slice();
    while let Some((byte, after)) = rest.split_first() {
        let (octet, after) = overlong_ascii(rest).unwrap_or((*byte, after));
        out.push(octet);
        rest = after;
    }
    out
}

/// An ASCII character that is encoded in two, three or four octets of UTF-8, and the rest (RFC 3629 §3 forbids it).
fn overlong_ascii(octets: &[u8]) -> Option<(u8, &[u8])> {
    match octets {
        [lead @ (0xc0 | 0xc1), last @ 0x80..=0xbf, after @ ..]
        | [0xe0, lead @ (0x80 | 0x81), last @ 0x80..=0xbf, after @ ..]
        | [0xf0, 0x80, lead @ (0x80 | 0x81), last @ 0x80..=0xbf, after @ ..] => {
            Some(((lead & 1) << 6 | (last & 0x3f), after))
        }
        _ => None,
    }
}

fn merge_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for letter in path.chars() {
        if letter != '/' || !out.ends_with('/') {
            out.push(letter);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn read(target: &[u8]) -> RequestPath<'_> {
        canonical(target).unwrap_or_else(|_| panic!("{} is plain", String::from_utf8_lossy(target)))
    }

    #[test]
    fn every_spelling_of_a_path_becomes_one() {
        for (target, expected) in [
            ("/", "/"),
            ("/admin", "/admin"),
            ("/admin/", "/admin/"),
            ("/admin?x=/../y", "/admin"),
            ("/public?/../admin", "/public"),
            ("/a///b//", "/a/b/"),
            ("/%61dmin", "/admin"),
            ("/ADMIN", "/ADMIN"),
            ("/admin.", "/admin."),
            ("/...", "/..."),
            ("/a..b/.c", "/a..b/.c"),
            ("/..a/b../.well-known", "/..a/b../.well-known"),
            ("/users/%40me", "/users/@me"),
            ("/a%20b", "/a%20b"),
            ("/caf\u{e9}", "/caf%C3%A9"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/e\u{301}", "/e%CC%81"),
            ("/a%3fb", "/a%3Fb"),
            ("/a%23b", "/a%23b"),
            ("/100%25", "/100%25"),
            ("/a%25z", "/a%25z"),
            ("/?", "/"),
            ("/?//..//", "/"),
        ] {
            let path = read(target.as_bytes());
            assert_eq!((path.as_str(), path.is_ambiguous()), (expected, false), "{target}");
        }
    }

    #[test]
    fn repeated_slashes_are_read_in_both_ways() {
        for (target, unmerged) in [
            ("/a///b//", Some("/a///b//")),
            ("/admin//users?x=//", Some("/admin//users")),
            ("/%61//b", Some("/a//b")),
            ("/a/b/?x=//", None),
        ] {
            assert_eq!(read(target.as_bytes()).unmerged(), unmerged, "{target}");
        }
    }

    #[test]
    fn a_target_that_some_programs_resolve_differently_is_not_plain() {
        let texts = [
            "/.",
            "/..",
            "/./admin/",
            "/admin/.",
            "/x/../admin",
            "/x/..",
            "/../../admin",
            "/%2e%2e/admin",
            "/x/%2E./admin",
            "/x/.%2e/admin",
            "/admin//../users",
            "/x/..%2fadmin",
            "/x/..%2F..%2Fadmin",
            "/x%2f..%2fadmin",
            "/x%5c..%5cadmin",
            "/x\\..\\admin",
            "/x/..;/admin",
            "/x/..;a=b/admin",
            "/x/.%3b/admin",
            "/x/..%00/admin",
            "/x/..%20/admin",
            "/%252e%252e/admin",
            "/x%252f..%252fadmin",
            "/%25%32%65%252%65/admin",
            "/%25252e%25252e/admin",
            "/x/%c0%ae%c0%ae/admin",
            "/x/..%c0%afadmin",
            "/x/%e0%80%ae%e0%80%ae/admin",
            "/x/%f0%80%80%ae./admin",
            "/a%25252525252541",
            "//admin",
            "//public/admin/users",
            "///admin",
            "/\\public/admin",
            "/%2fpublic/admin",
            "/%5cpublic/admin",
            "\\\\public/admin",
            "/a#b",
            "/a?x#y",
            "../admin",
            "http://api.example.com/../admin",
        ];
        for target in texts {
            assert_eq!(canonical(target.as_bytes()), Err(NotPlain), "{target}");
        }
    }

    #[test]
    fn a_path_that_programs_parse_differently_is_ambiguous() {
        let invalid: [&[u8]; 3] = [b"/\xff", b"/%ff", b"/a%c0%af"];
        let texts = [
            "/a%2fb",
            "/a%5cb",
            "/a\\b",
            "/a%00",
            "/a%0d%0ab",
            "/a\tb",
            "/admin;a=b",
            "/admin%3ba",
            "/;/admin",
            "/a%25%32f",
            "/a%252f",
            "/a%",
            "/a%zz",
            "/a%4",
            "",
            "*",
            "admin",
            "http://api.example.com/admin",
            "api.example.com:443",
        ];
        for target in texts.iter().map(|text| text.as_bytes()).chain(invalid) {
            assert!(read(target).is_ambiguous(), "{}", String::from_utf8_lossy(target));
            assert!(ambiguity(target).is_some(), "{}", String::from_utf8_lossy(target));
        }
        assert_eq!(ambiguity(b"/a%2Fb?x=;"), Some("an encoded slash, `%2F`"));
        assert_eq!(ambiguity(b"/a?x=;"), None);
    }

    #[test]
    fn an_ambiguous_path_is_compared_as_it_was_sent() {
        for (target, expected) in [
            ("/files/a%2fb", "/files/a%2Fb"),
            ("/files/x;v=1", "/files/x;v=1"),
            ("/files/100%", "/files/100%"),
            ("files", "/files"),
        ] {
            assert_eq!(read(target.as_bytes()).as_str(), expected, "{target}");
        }
    }

    #[test]
    fn a_target_has_no_white_space_or_control_characters() {
        for (target, expected) in
            [("/a?b=c d", false), ("/a b", false), ("/a\t", false), ("/a\u{7f}", false), ("/\u{e9}%20", true)]
        {
            assert_eq!(is_request_target(target.as_bytes()), expected, "{target:?}");
        }
    }

    #[test]
    fn the_query_begins_after_the_first_question_mark() {
        for (target, expected) in [("/a?b?c", "b?c"), ("/a", ""), ("/a?", ""), ("?x", "x")] {
            assert_eq!(query(target.as_bytes()), expected.as_bytes(), "{target}");
        }
    }

    proptest! {
        #[test]
        fn the_canonical_form_of_a_canonical_form_is_itself(target in "/[a-z%2eEfF0-9./;?\\\\\u{e9}]{0,24}") {
            let Ok(once) = canonical(target.as_bytes()) else { return Ok(()) };
            prop_assume!(!once.is_ambiguous());
            let twice = canonical(once.as_str().as_bytes());
            let twice = twice.expect("a canonical path is plain");
            prop_assert_eq!(once.as_str(), twice.as_str());
            prop_assert!(!twice.is_ambiguous());
        }

        #[test]
        fn a_canonical_path_has_no_dot_segment_and_no_empty_one(
            target in prop::collection::vec(prop::sample::select(b"/.%2eEfFcC0aA\\;?#\0 ab".to_vec()), 0..24)
        ) {
            let Ok(path) = canonical(&target) else { return Ok(()) };
            let segments: Vec<&str> = path.as_str().split('/').collect();
            let inner = segments.get(1..segments.len() - 1).unwrap_or_default();
            prop_assert!(path.as_str().starts_with('/'));
            prop_assert!(inner.iter().all(|segment| !segment.is_empty()), "{:?}", path);
            let decoded = percent_encoding::percent_decode_str(path.as_str()).decode_utf8_lossy().into_owned();
            prop_assert!(decoded.split(['/', '\\']).all(|segment| !matches!(segment, "." | "..")), "{:?}", path);
        }
    }
}
