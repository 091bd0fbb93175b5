//! Paths in the one form in which rules compare them, and which paths have no such form.
//!
//! Pure. A path that two programs may read as two different ones is *ambiguous*: a rule must not choose one of
//! the readings, since the upstream may choose the other.

use std::borrow::Cow;

/// A request's path as rules see it, without its query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestPath<'a> {
    /// Everybody reads it as this.
    Canonical(Cow<'a, str>),
    /// Programs differ about it. Held in its best reading: what is ambiguous stands in it as it was sent.
    Ambiguous(String),
}

impl RequestPath<'_> {
    /// The path to compare, ambiguous or not.
    pub fn as_str(&self) -> &str {
        match self {
            RequestPath::Canonical(path) => path,
            RequestPath::Ambiguous(path) => path,
        }
    }

    /// Whether programs differ about it.
    pub fn is_ambiguous(&self) -> bool {
        matches!(self, RequestPath::Ambiguous(_))
    }
}

/// The path of a request target (RFC 9112 §3.2) in canonical form: the query cut off, what needs no
/// percent-encoding decoded, everything else encoded with upper-case digits, dot segments resolved (RFC 3986 §5.2.4)
/// and repeated slashes made one. Its case is kept.
///
/// Ambiguous are: an encoded slash, backslash, semicolon, control character or second encoding (`%25` before
/// two hexadecimal digits); a backslash, a semicolon, a fragment; a `%` without two digits; what is not UTF-8
/// when it is decoded; and whatever does not begin with a slash.
pub fn canonical(target: &[u8]) -> RequestPath<'_> {
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    if is_plain(path)
        && let Ok(path) = std::str::from_utf8(path)
    {
        return RequestPath::Canonical(Cow::Borrowed(path));
    }
    let mut reader = Reader { rest: path, ambiguous: path.first() != Some(&b'/') };
    let written = reader.write();
    reader.ambiguous |= is_encoded_twice(&written) || !is_utf8_when_decoded(path);
    let resolved = resolve(&written);
    if reader.ambiguous { RequestPath::Ambiguous(resolved) } else { RequestPath::Canonical(resolved.into()) }
}

/// The query of a request target: what stands behind its first question mark.
pub fn query(target: &[u8]) -> &[u8] {
    let mark = target.iter().position(|byte| *byte == b'?');
    mark.and_then(|mark| target.get(mark + 1..)).unwrap_or_default()
}

/// Whether a path is canonical at the first look, as nearly all are.
fn is_plain(path: &[u8]) -> bool {
    let mut last = b' ';
    path.first() == Some(&b'/')
        && path.iter().all(|byte| {
            let fine = match byte {
                b'/' => last != b'/',
                b'.' => last != b'/' && last != b'.',
                byte => is_literal(*byte),
            };
            last = *byte;
            fine
        })
}

/// What stands for itself in a path segment: `pchar` of RFC 3986 §3.3, without the semicolon.
fn is_literal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&byte)
}

/// Rewrites a path octet by octet, before anything is resolved.
struct Reader<'a> {
    rest: &'a [u8],
    ambiguous: bool,
}

impl Reader<'_> {
    fn write(&mut self) -> String {
        let mut out = String::with_capacity(self.rest.len());
        while let Some((byte, rest)) = self.rest.split_first() {
            self.rest = rest;
            match byte {
                b'%' => self.write_encoded(&mut out),
                b'/' => out.push('/'),
                byte if is_literal(*byte) => out.push(char::from(*byte)),
                b'\\' | b';' | b'#' => {
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

    /// What follows a percent sign.
    fn write_encoded(&mut self, out: &mut String) {
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

/// The octet that two hexadecimal digits stand for, and what follows them.
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

/// Whether something is left to decode once everything is decoded. Looked for in what was written, since the
/// digits may be encoded too: `%25%32%65` is `%2e`, and that is a dot.
fn is_encoded_twice(written: &str) -> bool {
    written.match_indices("%25").any(|(at, percent)| {
        written.as_bytes().get(at + percent.len()..).is_some_and(|rest| decode(rest).is_some())
    })
}

/// An overlong encoding of a slash or a dot is no UTF-8, and some programs decode it all the same.
fn is_utf8_when_decoded(path: &[u8]) -> bool {
    percent_encoding::percent_decode(path).decode_utf8().is_ok()
}

/// Resolves dot segments and drops empty ones. What would lead above the root stays at the root.
fn resolve(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_in_folder = true;
    for segment in path.split('/') {
        ends_in_folder = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            name => segments.push(name),
        }
    }
    let mut out = String::with_capacity(path.len() + 1);
    for segment in &segments {
        out.push('/');
        out.push_str(segment);
    }
    if ends_in_folder || out.is_empty() {
        out.push('/');
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_spelling_of_a_path_becomes_one() {
        for (target, expected) in [
            ("/", "/"),
            ("/admin", "/admin"),
            ("/admin/", "/admin/"),
            ("/admin?x=/../y", "/admin"),
            ("/public?/../admin", "/public"),
            ("//admin", "/admin"),
            ("/a///b//", "/a/b/"),
            ("/./admin/.", "/admin/"),
            ("/x/../admin", "/admin"),
            ("/x/..", "/"),
            ("/../../admin", "/admin"),
            ("/a/b/../../c/./d", "/c/d"),
            ("/%61dmin", "/admin"),
            ("/%2e%2e/admin", "/admin"),
            ("/x/%2E./admin", "/admin"),
            ("/x/.%2e/admin", "/admin"),
            ("/ADMIN", "/ADMIN"),
            ("/admin.", "/admin."),
            ("/...", "/..."),
            ("/a..b/.c", "/a..b/.c"),
            ("/users/%40me", "/users/@me"),
            ("/a%20b", "/a%20b"),
            ("/a b", "/a%20b"),
            ("/caf\u{e9}", "/caf%C3%A9"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/e\u{301}", "/e%CC%81"),
            ("/a%3fb", "/a%3Fb"),
            ("/a%23b", "/a%23b"),
            ("/100%25", "/100%25"),
            ("/a%25z", "/a%25z"),
            ("/?", "/"),
        ] {
            assert_eq!(canonical(target.as_bytes()), RequestPath::Canonical(expected.into()), "{target}");
        }
    }

    #[test]
    fn a_path_that_programs_read_differently_is_ambiguous() {
        let invalid: [&[u8]; 4] = [b"/\xff", b"/%ff", b"/%c0%af", b"/..%c0%afadmin"];
        let texts = [
            "/a%2fb",
            "/..%2Fadmin",
            "/public%5c..%5cadmin",
            "/a\\b",
            "/a%00",
            "/a%0d%0ab",
            "/a\tb",
            "/admin;a=b",
            "/admin%3ba",
            "/;/admin",
            "/%252e%252e/admin",
            "/%25%32%65%252%65/admin",
            "/a%25%32f",
            "/a%252f",
            "/a%",
            "/a%zz",
            "/a%4",
            "/a#b",
            "",
            "*",
            "admin",
            "http://api.example.com/admin",
            "api.example.com:443",
        ];
        for target in texts.iter().map(|text| text.as_bytes()).chain(invalid) {
            assert!(canonical(target).is_ambiguous(), "{}", String::from_utf8_lossy(target));
        }
    }

    #[test]
    fn an_ambiguous_path_is_compared_as_it_was_sent() {
        for (target, expected) in [
            ("/files/a%2fb", "/files/a%2Fb"),
            ("/files/../x;v=1", "/x;v=1"),
            ("/files/100%", "/files/100%"),
            ("files", "/files"),
        ] {
            assert_eq!(canonical(target.as_bytes()), RequestPath::Ambiguous(expected.to_owned()), "{target}");
        }
    }

    #[test]
    fn the_query_begins_behind_the_first_question_mark() {
        for (target, expected) in [("/a?b?c", "b?c"), ("/a", ""), ("/a?", ""), ("?x", "x")] {
            assert_eq!(query(target.as_bytes()), expected.as_bytes(), "{target}");
        }
    }

    proptest! {
        #[test]
        fn the_canonical_form_of_a_canonical_form_is_itself(target in "/[a-z%2eEfF0-9./;?\\\\\u{e9}]{0,24}") {
            let once = canonical(target.as_bytes());
            prop_assume!(!once.is_ambiguous());
            let twice = canonical(once.as_str().as_bytes());
            prop_assert_eq!(once.as_str(), twice.as_str());
            prop_assert!(!twice.is_ambiguous());
        }

        #[test]
        fn a_canonical_path_has_no_dot_segment_and_no_empty_one(target in prop::collection::vec(any::<u8>(), 0..64)) {
            let path = canonical(&target);
            let segments: Vec<&str> = path.as_str().split('/').collect();
            let inner = segments.get(1..segments.len() - 1).unwrap_or_default();
            prop_assert!(path.as_str().starts_with('/'));
            prop_assert!(inner.iter().all(|segment| !segment.is_empty()), "{:?}", path);
            prop_assert!(segments.iter().all(|segment| !matches!(*segment, "." | "..")), "{:?}", path);
        }
    }
}
