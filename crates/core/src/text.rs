//! Formats untrusted text for logs and explanations: short, on one line, and with every token masked, even where no
//! token is expected, such as in a host or an argument.

mod time;

use std::borrow::Cow;

pub use self::time::{duration, timestamp};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Replaces every JWT in the text: the start of a JSON object in base64url, and what follows it.
pub fn without_tokens(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let (mut rest, mut from) = (text, 0);
    while let Some(at) = rest.get(from..).and_then(|after| after.find('e')) {
        let (before, after) = rest.split_at_checked(from + at).unwrap_or((rest, ""));
        let token = after.len() - after.trim_start_matches(is_token_char).len();
        if !is_object(after.get(..token).unwrap_or_default()) {
            from += at + 1;
            continue;
        }
        out.push_str(before);
        out.push_str("(a token)");
        (rest, from) = (after.get(token..).unwrap_or_default(), 0);
    }
    match out.is_empty() {
        true => Cow::Borrowed(text),
        false => Cow::Owned(out + rest),
    }
}

fn is_token_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '=' | '+' | '/')
}

/// Whether a word is long and begins like the base64url of a JSON object: a brace, white space, and a quote.
fn is_object(word: &str) -> bool {
    const MIN_LEN: usize = 10;
    let first = word.get(..8).filter(|_| word.len() >= MIN_LEN);
    let Some(decoded) = first.and_then(|first| URL_SAFE_NO_PAD.decode(first).ok()) else { return false };
    let Some((b'{', inside)) = decoded.split_first() else { return false };
    let is_white_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
    inside.iter().find(|byte| !is_white_space(byte)).is_none_or(|byte| *byte == b'"')
}

/// Untrusted text, such as a `kid` or a host, for the log: at most 64 characters, no line breaks or control
/// characters, and no token.
pub fn on_one_line(text: &str) -> String {
    escaped(text, 64)
}

/// The path of a request target for the log, like [`on_one_line`] but of at most 256 characters: without its query, and
/// without what programs behind the proxy may read as one, also percent-encoded. A target that is no path, such as a
/// URL with a user name and a password, is not shown.
///
/// ```
/// use portcullis_core::text::path_for_log;
///
/// assert_eq!(path_for_log(b"/orders/7?access_token=abc"), "/orders/7");
/// ```
pub fn path_for_log(target: &[u8]) -> String {
    const MAX_CHARS: usize = 256;
    const NO_PATH: &str = "(no path)";
    const ENDS: [&[u8]; 6] = [b"?", b"#", b";", b"%3f", b"%23", b"%3b"];
    if !target.starts_with(b"/") {
        return NO_PATH.to_owned();
    }
    // A character takes at most 4 bytes.
    let target = target.get(..MAX_CHARS * 4).unwrap_or(target);
    let is_end = |at: &usize| {
        let rest = target.get(*at..).unwrap_or_default();
        ENDS.iter().any(|end| rest.get(..end.len()).is_some_and(|start| start.eq_ignore_ascii_case(end)))
    };
    let end = (0..target.len()).find(is_end).unwrap_or(target.len());
    escaped(&String::from_utf8_lossy(target.get(..end).unwrap_or_default()), MAX_CHARS)
}

/// Text of a token or of a request in quotes: at most 128 characters, escaped, and no token.
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(text, MAX_QUOTED))
}

/// The most characters of a quoted text.
pub(crate) const MAX_QUOTED: usize = 128;

fn escaped(text: &str, max_chars: usize) -> String {
    let cut: String = text.chars().take(max_chars).collect();
    without_tokens(&cut).chars().flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_replaced_and_no_other_text() {
        for (text, expected) in [
            ("", ""),
            ("p.yaml: no such file", "p.yaml: no such file"),
            ("eyJhbGciOiJub25lIn0.eyJhIjoxfQ.c2ln: no such file", "(a token): no such file"),
            ("a 'eyJhbGciOiJub25lIn0.e30.' b eyJhbGciOiJub25lIn0", "a '(a token)' b (a token)"),
            ("keyJ and eyJoe", "keyJ and eyJoe"),
            ("eyAiYWxnIjoiSFMyNTYifQ.eyAiYSI6MX0.U0lH: no such file", "(a token): no such file"),
            ("a ewoJImFsZyI6IkhTMjU2In0.e30.c2ln b", "a (a token) b"),
            ("eyewear.example.com, eeyeyewearshop", "eyewear.example.com, eeyeyewearshop"),
            ("eéeyJhbGciOiJub25lIn0", "eé(a token)"),
        ] {
            assert_eq!(without_tokens(text), expected);
        }
    }

    #[test]
    fn the_path_of_a_target_has_no_query_in_any_spelling_and_no_token() {
        for (target, expected) in [
            ("/", "/"),
            ("/a/b%20c", "/a/b%20c"),
            ("/a?access_token=x", "/a"),
            ("/a#access_token=x", "/a"),
            ("/a;jsessionid=x/b", "/a"),
            ("/a%3Faccess_token=x", "/a"),
            ("/a%3bsid=x", "/a"),
            ("/a%23x", "/a"),
            ("/a\n", "/a\\n"),
            ("/verify/eyJhbGciOiJub25lIn0.e30.c2ln/b", "/verify/(a token)"),
            ("*", "(no path)"),
            ("", "(no path)"),
            ("http://user:secret@h/a", "(no path)"),
            ("api.example.com:443", "(no path)"),
        ] {
            assert_eq!(path_for_log(target.as_bytes()), expected, "{target}");
        }
        assert_eq!(path_for_log(b"/\xff\xfe"), "/\u{fffd}\u{fffd}");
        assert_eq!(path_for_log(&[&b"/"[..], &[b'x'; 5_000]].concat()).len(), 256);
    }

    #[test]
    fn untrusted_text_becomes_one_short_line_without_a_token() {
        let token = format!("eyJ{}", "a".repeat(2_000));
        assert_eq!(on_one_line(&token), "(a token)");
        assert_eq!(on_one_line(&format!("h.example.com:{token}")), "h.example.com:(a token)");
        assert_eq!(on_one_line("a\nb\u{1b}"), "a\\nb\\u{1b}");
        assert_eq!(on_one_line(&"x".repeat(100)).len(), 64);
        assert_eq!(quoted("a\n\"b"), r#""a\n\"b""#);
        assert_eq!(quoted(&token), "\"(a token)\"");
        assert_eq!(quoted(&"x".repeat(200)).len(), 130);
    }
}
