//! Checks the text of a condition before it is parsed.
//!
//! The parser recurses for every bracket and operator, so depth is limited here, on the text. The scan and the
//! parser agree on the bounds of every string: ambiguous text is refused.

use std::str::Chars;

use super::Fault;

/// The longest source, in bytes.
const MAX_BYTES: usize = 4096;

/// The deepest nesting: brackets, and chained operators between two commas.
const MAX_DEPTH: usize = 32;

/// Checks the limits of the text.
///
/// # Errors
/// It is empty, too long or too deep, has an unclosed bracket or string, or has a character that no condition can
/// have.
pub(super) fn scan(source: &str) -> Result<(), Fault> {
    if source.trim().is_empty() {
        return Err(Fault::new(None, "the condition is empty"));
    }
    if source.len() > MAX_BYTES {
        return Err(Fault::new(None, format!("the condition is longer than {MAX_BYTES} bytes")));
    }
    let mut scanner = Scanner { chars: source.chars(), at: 0, levels: vec![Level::default()] };
    while scanner.token()? {}
    match scanner.levels.pop() {
        Some(Level { closing: Some(_), opened, .. }) => {
            Err(Fault::new(Some(opened), "this bracket is not closed"))
        }
        _ => Ok(()),
    }
}

/// An open bracket.
#[derive(Default)]
struct Level {
    closing: Option<char>,
    opened: usize,
    /// The operators and brackets since the last `,`, `&&`, `||`, `?` or `:`; each may nest the previous one.
    chained: usize,
    /// The `? :` since the last comma; each nests the next one.
    conditionals: usize,
}

struct Scanner<'a> {
    chars: Chars<'a>,
    /// The number of consumed characters.
    at: usize,
    levels: Vec<Level>,
}

impl Scanner<'_> {
    /// Consumes one token; `false` at the end.
    fn token(&mut self) -> Result<bool, Fault> {
        let start = self.at;
        let Some(char) = self.next() else { return Ok(false) };
        match char {
            ' ' | '\t' | '\r' | '\n' | '\x0c' => {}
            '/' if self.consume("/") => while self.next().is_some_and(|char| char != '\n') {},
            '"' | '\'' => self.string(char, false, start)?,
            '_' | 'a'..='z' | 'A'..='Z' | '0'..='9' => self.word(char, start)?,
            '(' => self.open(')', start),
            '[' => self.open(']', start),
            '{' => self.open('}', start),
            ')' | ']' | '}' => self.close(char, start)?,
            ',' => self.separate(true),
            ':' => self.separate(false),
            '&' if self.consume("&") => self.separate(false),
            '|' if self.consume("|") => self.separate(false),
            '?' => self.conditional(),
            '=' | '!' | '<' | '>' => {
                self.consume("=");
                self.chain();
            }
            '.' | '+' | '-' | '*' | '/' | '%' => self.chain(),
            _ => return Err(Fault::new(Some(start), format!("unexpected character {char:?}"))),
        }
        let depth: usize = self.levels.iter().map(|level| 1 + level.chained + level.conditionals).sum();
        if depth > MAX_DEPTH {
            return Err(Fault::new(Some(start), format!("nested more than {MAX_DEPTH} levels deep")));
        }
        Ok(true)
    }

    fn next(&mut self) -> Option<char> {
        let char = self.chars.next()?;
        self.at += 1;
        Some(char)
    }

    /// Consumes this ASCII text if it comes next.
    fn consume(&mut self, text: &str) -> bool {
        match self.chars.as_str().strip_prefix(text) {
            Some(rest) => {
                self.chars = rest.chars();
                self.at += text.len();
                true
            }
            None => false,
        }
    }

    fn chain(&mut self) {
        if let Some(level) = self.levels.last_mut() {
            level.chained += 1;
        }
    }

    fn conditional(&mut self) {
        if let Some(level) = self.levels.last_mut() {
            level.conditionals += 1;
            level.chained = 0;
        }
    }

    fn separate(&mut self, and_conditionals: bool) {
        if let Some(level) = self.levels.last_mut() {
            level.chained = 0;
            if and_conditionals {
                level.conditionals = 0;
            }
        }
    }

    fn open(&mut self, closing: char, opened: usize) {
        self.chain();
        self.levels.push(Level { closing: Some(closing), opened, ..Level::default() });
    }

    fn close(&mut self, closing: char, at: usize) -> Result<(), Fault> {
        match self.levels.last() {
            Some(level) if level.closing == Some(closing) => {
                self.levels.pop();
                Ok(())
            }
            _ => Err(Fault::new(Some(at), format!("unmatched `{closing}`"))),
        }
    }

    /// A name, a number, or the prefix of a string.
    fn word(&mut self, first: char, start: usize) -> Result<(), Fault> {
        let mut word = String::from(first);
        while let Some(char) =
            self.chars.as_str().chars().next().filter(|char| char.is_ascii_alphanumeric() || *char == '_')
        {
            self.next();
            word.push(char);
        }
        let quote = self.chars.as_str().chars().next().filter(|char| matches!(char, '"' | '\''));
        if let Some(quote) = quote {
            self.next();
            return match word.to_ascii_lowercase().as_str() {
                "b" => self.string(quote, false, start),
                "r" | "br" => self.string(quote, true, start),
                _ => Err(Fault::new(Some(start), format!("a string cannot follow `{word}`"))),
            };
        }
        if word == "in" {
            self.chain();
        }
        Ok(())
    }

    /// A string whose first quote has been consumed.
    fn string(&mut self, quote: char, raw: bool, start: usize) -> Result<(), Fault> {
        let pair = String::from_iter([quote, quote]);
        let triple = self.consume(&pair);
        loop {
            let at = self.at;
            match self.next() {
                None => return Err(Fault::new(Some(start), "this string is not closed")),
                Some(char) if char == quote && (!triple || self.consume(&pair)) => return Ok(()),
                Some('\r' | '\n') if !triple => {
                    return Err(Fault::new(Some(start), "this string is not closed on its line"));
                }
                Some('\\') if !raw => self.escape(at)?,
                Some(_) => {}
            }
        }
    }

    /// The text after a backslash.
    fn escape(&mut self, at: usize) -> Result<(), Fault> {
        let known = match self.next() {
            Some('a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '"' | '\'' | '\\' | '?' | '`') => true,
            Some('x' | 'X') => self.digits(2, 16),
            Some('u') => self.digits(4, 16),
            Some('U') => self.digits(8, 16),
            Some('0'..='3') => self.digits(2, 8),
            _ => false,
        };
        if known {
            return Ok(());
        }
        Err(Fault::new(Some(at), "unknown escape: a backslash is written `\\\\`, or the string r\"...\""))
    }

    fn digits(&mut self, count: usize, radix: u32) -> bool {
        (0..count).all(|_| self.next().is_some_and(|char| char.is_digit(radix)))
    }
}
