//! Errors of a configuration: where they are and what to write instead. They never contain a secret.

use std::fmt;
use std::path::{Path, PathBuf};

/// A position in the file, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
    /// The line of the alias through which this value is used elsewhere; `None` if it is used in place.
    pub alias: Option<usize>,
}

impl Position {
    /// The suffix of a message about this position: the alias that may have to be changed.
    fn by_alias(self) -> String {
        self.alias.map(|line| format!(" (by the alias in line {line})")).unwrap_or_default()
    }
}

/// One error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The position in the file; `None` if the whole file is the problem.
    pub at: Option<Position>,
    /// The path in the document, such as `providers[0].refresh.wait`; empty for the whole document.
    pub path: String,
    /// The problem and what to write instead.
    pub message: String,
}

impl ConfigError {
    /// Formats it as `FILE:LINE:COLUMN: path: message`, which editors and terminals can follow. `kind` comes before
    /// the path.
    pub fn in_file(&self, file: &Path, kind: &str) -> String {
        let place = self.at.map(|at| format!("{}:{}:", at.line, at.column)).unwrap_or_default();
        let alias = self.at.map(Position::by_alias).unwrap_or_default();
        let path = if self.path.is_empty() { String::new() } else { format!("{}: ", self.path) };
        format!("{}:{place} {kind}{path}{}{alias}", file.display(), self.message)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Position { line, column, .. }) = self.at {
            write!(f, "line {line}, column {column}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        f.write_str(&self.at.map(Position::by_alias).unwrap_or_default())
    }
}

impl std::error::Error for ConfigError {}

/// The most that is reported at once: a generated file with the same mistake a thousand times must not fill a log.
const REPORTED: usize = 100;

/// Everything that is wrong, in the order of the file, at most 100 and the number of the others; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    file: Option<PathBuf>,
    errors: Vec<ConfigError>,
    /// How many of the errors are not among them.
    omitted: usize,
    /// The same as an error, where there are any.
    rest: Option<Box<ConfigError>>,
}

/// The most that is collected: a large file with a mistake in each value must not fill the memory.
const COLLECTED: usize = 10 * REPORTED;

/// Errors or warnings as they are found, at most [`COLLECTED`], and the number of the others.
#[derive(Debug, Default)]
pub(super) struct Problems {
    found: Vec<ConfigError>,
    omitted: usize,
}

impl Problems {
    /// Adds a problem, which is only built if there is room for it.
    pub(super) fn add(&mut self, problem: impl FnOnce() -> ConfigError) {
        if self.found.len() < COLLECTED {
            self.found.push(problem())
        } else {
            self.omitted += 1
        };
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(super) fn append(&mut self, other: Self) {
        self.omitted += other.omitted;
        other.found.into_iter().for_each(|problem| self.add(|| problem));
    }

    /// Those that were collected, in the order in which they were found.
    #[cfg(test)]
    pub(super) fn into_found(self) -> Vec<ConfigError> {
        self.found
    }
}

impl From<Vec<ConfigError>> for Problems {
    fn from(found: Vec<ConfigError>) -> Self {
        Self { found, omitted: 0 }
    }
}

/// In the order of the file, at most [`REPORTED`]; and how many more there were.
fn capped(problems: Problems) -> (Vec<ConfigError>, usize) {
    let Problems { mut found, omitted } = problems;
    found.sort_by_key(|problem| problem.at);
    let omitted = omitted.saturating_add(found.len().saturating_sub(REPORTED));
    found.truncate(REPORTED);
    (found, omitted)
}

/// What is said of the problems that are not reported.
fn rest(omitted: usize, what: &str) -> Option<ConfigError> {
    let message = format!("{omitted} more {what} are not shown: correct these first");
    (omitted > 0).then_some(ConfigError { at: None, path: String::new(), message })
}

/// Warnings in the order of the file, at most [`REPORTED`] and the number of the others.
pub(super) fn capped_warnings(warnings: Problems) -> Vec<ConfigError> {
    let (mut warnings, omitted) = capped(warnings);
    warnings.extend(rest(omitted, "warnings"));
    warnings
}

impl ConfigErrors {
    pub(super) fn new(errors: impl Into<Problems>) -> Self {
        let (errors, omitted) = capped(errors.into());
        Self { file: None, errors, omitted, rest: rest(omitted, "errors").map(Box::new) }
    }

    /// The file cannot be read.
    pub fn unreadable(file: &Path, why: &str) -> Self {
        Self::for_file(why.to_owned()).in_file(file)
    }

    /// An error without a position in the file.
    pub(super) fn for_file(message: String) -> Self {
        Self::new(vec![ConfigError { at: None, path: String::new(), message }])
    }

    /// Sets the file name. A text that is probably not a path is not shown, since it may be an opaque token in
    /// the wrong argument.
    pub(super) fn in_file(self, file: &Path) -> Self {
        self.in_file_or(file, Path::new("(the configuration file)"))
    }

    /// Sets the file name, or `unnamed` if the text is probably not a path.
    pub(super) fn in_file_or(self, file: &Path, unnamed: &Path) -> Self {
        let file = if looks_like_a_path(file) { file } else { unnamed };
        Self { file: Some(file.to_owned()), ..self }
    }

    /// With others.
    pub(super) fn and(self, more: Vec<ConfigError>) -> Self {
        let both = Self::new([self.errors, more].concat());
        let omitted = both.omitted.saturating_add(self.omitted);
        Self { file: self.file, omitted, rest: rest(omitted, "errors").map(Box::new), ..both }
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.errors.iter().chain(self.rest.as_deref())
    }
}

/// Whether a text is probably a path: it exists, is written as one, or has the extension of a configuration.
fn looks_like_a_path(file: &Path) -> bool {
    let begins = file.is_absolute() || file.starts_with(".") || file.starts_with("..");
    let ends = file
        .extension()
        .is_some_and(|extension| ["yaml", "yml", "json", "conf"].iter().any(|known| extension == *known));
    begins || ends || file.exists()
}

/// One error per line, with its file in the format of [`ConfigError::in_file`].
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            match &self.file {
                None => error.fmt(f)?,
                Some(file) => f.write_str(&error.in_file(file, ""))?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// The path of a mapping's member. A key that is not a plain word is quoted and truncated, so that an error stays
/// on one line.
pub(super) fn member_path(path: &str, key: &str) -> String {
    const MAX_LEN: usize = 64;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b':');
    if !key.is_empty() && key.len() <= MAX_LEN && key.bytes().all(is_plain) {
        return if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    }
    let shown: String = key.chars().take(MAX_LEN).collect();
    let cut = if shown.len() < key.len() { "..." } else { "" };
    format!("{path}[{shown:?}{cut}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_short_line_whatever_the_key() {
        for (path, key, expected) in [
            ("", "listen", "listen"),
            ("listen", "admin", "listen.admin"),
            ("a", ":path", "a.:path"),
            ("a", "x.y", r#"a["x.y"]"#),
            ("", "", r#"[""]"#),
            ("a", "b\nc\u{1b}", r#"a["b\nc\u{1b}"]"#),
            ("a", &"é".repeat(1000), &format!("a[\"{}\"...]", "é".repeat(64))),
        ] {
            assert_eq!(member_path(path, key), expected);
        }
    }

    #[test]
    fn with_its_file_an_error_is_written_as_editors_follow_it() {
        let at = |line, column, path: &str, message: &str| ConfigError {
            at: Some(Position { line, column, alias: None }),
            path: path.to_owned(),
            message: message.to_owned(),
        };
        let mut aliased = at(4, 1, "c", "z");
        aliased.at = aliased.at.map(|at| Position { alias: Some(30), ..at });
        assert_eq!(aliased.to_string(), "line 4, column 1: c: z (by the alias in line 30)");
        assert_eq!(
            aliased.in_file(Path::new("p"), "warning: "),
            "p:4:1: warning: c: z (by the alias in line 30)"
        );
        let whole = ConfigError { at: None, path: String::new(), message: "m".to_owned() };
        let errors = ConfigErrors::new(vec![at(3, 2, "a.b", "x"), at(1, 9, "", "y"), whole]);
        assert_eq!(errors.to_string(), "m\nline 1, column 9: y\nline 3, column 2: a.b: x");
        let errors = errors.in_file(Path::new("/etc/p.yaml"));
        assert_eq!(errors.to_string(), "/etc/p.yaml: m\n/etc/p.yaml:1:9: y\n/etc/p.yaml:3:2: a.b: x");
    }
}
