//! Text of somebody else's as logs and explanations show it: short, on one line, and with every token masked, wherever one
//! stands that nobody expected there, such as in a host or an argument.

use std::borrow::Cow;

/// The text with every JWT in it replaced: base64url of `{"`, and what follows.
pub fn without_tokens(text: &str) -> Cow<'_, str> {
    const BEGINNING: &str = "eyJ";
    const SHORTEST: usize = 10;
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, from)) = rest.split_once(BEGINNING) {
        let of_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '=' | '+');
        let behind = from.trim_start_matches(of_token);
        out.push_str(before);
        if from.len() - behind.len() + BEGINNING.len() < SHORTEST {
            out.push_str(BEGINNING);
            rest = from;
        } else {
            out.push_str("(a token)");
            rest = behind;
        }
    }
    match out.is_empty() && rest.len() == text.len() {
        true => Cow::Borrowed(text),
        false => Cow::Owned(out + rest),
    }
}

/// Text of somebody else's, such as a `kid` or a host, as the log shows it: at most 64 characters, no line breaks or control
/// characters, and no token.
pub fn on_one_line(text: &str) -> String {
    escaped(text, 64)
}

/// Text of a token or of a request in quotes: at most 128 characters of it, escaped, and no token.
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(text, MAX_QUOTED))
}

/// The most characters of a text that is quoted.
pub(crate) const MAX_QUOTED: usize = 128;

fn escaped(text: &str, most: usize) -> String {
    let cut: String = text.chars().take(most).collect();
    without_tokens(&cut).chars().flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_replaced_wherever_it_stands_and_nothing_else_is() {
        for (text, expected) in [
            ("", ""),
            ("p.yaml: no such file", "p.yaml: no such file"),
            ("eyJhbGciOiJub25lIn0.eyJhIjoxfQ.c2ln: no such file", "(a token): no such file"),
            ("a 'eyJhbGciOiJub25lIn0.e30.' b eyJhbGciOiJub25lIn0", "a '(a token)' b (a token)"),
            ("keyJ and eyJoe", "keyJ and eyJoe"),
        ] {
            assert_eq!(without_tokens(text), expected);
        }
    }

    #[test]
    fn what_somebody_else_wrote_is_one_short_line_without_a_token() {
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
