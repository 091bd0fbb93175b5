//! What the text of a condition may look like before the parser sees it.
//!
//! The parser descends once for every bracket and operator, so depth is bounded here, on the text
//! alone. What this scan takes for a string the parser takes for the same string: anything doubtful
//! is refused, never guessed.

use std::str::Chars;

use super::Fault;

/// Longer sources are refused.
const MAX_BYTES: usize = 4096;

/// Deeper nesting is refused: brackets, and what hangs on one another between two commas.
const MAX_DEPTH: usize = 32;

/// Holds the text to its bounds.
///
/// # Errors
/// It is empty, too long, too deep, has a bracket or string that does not close, or a character that
/// no condition has.
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
        Some(Level { closer: Some(_), opened, .. }) => {
            Err(Fault::new(Some(opened), "this bracket is never closed"))
        }
        _ => Ok(()),
    }
}

/// What is open at one place of the text.
#[derive(Default)]
struct Level {
    closer: Option<char>,
    opened: usize,
    /// Operators and brackets since the last `,`, `&&`, `||`, `?` or `:`; each may hold the one before.
    chained: usize,
    /// Every `? :` since the last comma holds the one after it.
    choices: usize,
}

struct Scanner<'a> {
    chars: Chars<'a>,
    /// Characters taken.
    at: usize,
    levels: Vec<Level>,
}

impl Scanner<'_> {
    /// Takes one token; `false` at the end.
    fn token(&mut self) -> Result<bool, Fault> {
        let start = self.at;
        let Some(char) = self.next() else { return Ok(false) };
        match char {
            ' ' | '\t' | '\r' | '\n' | '\x0c' => {}
            '/' if self.take("/") => while self.next().is_some_and(|char| char != '\n') {},
            '"' | '\'' => self.string(char, false, start)?,
            '_' | 'a'..='z' | 'A'..='Z' | '0'..='9' => self.word(char, start)?,
            '(' => self.open(')', start),
            '[' => self.open(']', start),
            '{' => self.open('}', start),
            ')' | ']' | '}' => self.close(char, start)?,
            ',' => self.separate(true),
            ':' => self.separate(false),
            '&' if self.take("&") => self.separate(false),
            '|' if self.take("|") => self.separate(false),
            '?' => self.choose(),
            '=' | '!' | '<' | '>' => {
                self.take("=");
                self.chain();
            }
            '.' | '+' | '-' | '*' | '/' | '%' => self.chain(),
            _ => return Err(Fault::new(Some(start), format!("{char:?} means nothing here"))),
        }
        let depth: usize = self.levels.iter().map(|level| 1 + level.chained + level.choices).sum();
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

    /// Takes this ASCII text if it comes next.
    fn take(&mut self, text: &str) -> bool {
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

    fn choose(&mut self) {
        if let Some(level) = self.levels.last_mut() {
            level.choices += 1;
            level.chained = 0;
        }
    }

    fn separate(&mut self, choices_too: bool) {
        if let Some(level) = self.levels.last_mut() {
            level.chained = 0;
            if choices_too {
                level.choices = 0;
            }
        }
    }

    fn open(&mut self, closer: char, opened: usize) {
        self.chain();
        self.levels.push(Level { closer: Some(closer), opened, ..Level::default() });
    }

    fn close(&mut self, closer: char, at: usize) -> Result<(), Fault> {
        match self.levels.last() {
            Some(level) if level.closer == Some(closer) => {
                self.levels.pop();
                Ok(())
            }
            _ => Err(Fault::new(Some(at), format!("`{closer}` closes nothing here"))),
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
                _ => Err(Fault::new(Some(start), format!("a string cannot begin right after `{word}`"))),
            };
        }
        if word == "in" {
            self.chain();
        }
        Ok(())
    }

    /// A string whose first quote is taken.
    fn string(&mut self, quote: char, raw: bool, start: usize) -> Result<(), Fault> {
        let pair = String::from_iter([quote, quote]);
        let triple = self.take(&pair);
        loop {
            let at = self.at;
            match self.next() {
                None => return Err(Fault::new(Some(start), "this string is never closed")),
                Some(char) if char == quote && (!triple || self.take(&pair)) => return Ok(()),
                Some('\r' | '\n') if !triple => {
                    return Err(Fault::new(Some(start), "this string does not close on its line"));
                }
                Some('\\') if !raw => self.escape(at)?,
                Some(_) => {}
            }
        }
    }

    /// What stands behind a backslash.
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
        Err(Fault::new(Some(at), "no such escape; a backslash is written `\\\\`, or the string r\"...\""))
    }

    fn digits(&mut self, count: usize, radix: u32) -> bool {
        (0..count).all(|_| self.next().is_some_and(|char| char.is_digit(radix)))
    }
}
