//! Reads the values of a document one by one, so that all errors are found in one pass: an invalid value is
//! reported, and reading continues.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use super::document::{Member, Node, Value, expand, plain_json, variables};
use super::error::{ConfigError, Position, Problems, member_path};
use super::{IssuerHttp, TlsFiles};

/// The proof that an error was reported; there is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reported(());

/// A value, or the proof that its error was reported.
pub(super) type Read<T> = Result<T, Reported>;

/// Reads all values; fails if any value fails.
pub(super) fn all<T>(read: impl IntoIterator<Item = Read<T>>) -> Read<Vec<T>> {
    let read: Vec<Read<T>> = read.into_iter().collect();
    read.into_iter().collect()
}

/// The environment and the collected results of one reading.
pub(super) struct ReadContext<'e> {
    variable: &'e dyn Fn(&str) -> Option<String>,
    errors: RefCell<Problems>,
    /// Settings that are valid but dangerous.
    warnings: RefCell<Problems>,
    /// The files that the document names, for checks that need a file system.
    files: RefCell<Vec<NamedFile>>,
    listeners: RefCell<Vec<(String, TlsFiles)>>,
    issuers: RefCell<Vec<(String, IssuerHttp)>>,
}

impl<'e> ReadContext<'e> {
    pub(super) fn new(variable: &'e dyn Fn(&str) -> Option<String>) -> Self {
        Self {
            variable,
            errors: RefCell::default(),
            warnings: RefCell::default(),
            files: RefCell::default(),
            listeners: RefCell::default(),
            issuers: RefCell::default(),
        }
    }

    /// The collected results.
    pub(super) fn into_parts(self) -> ReadOutput {
        ReadOutput {
            errors: self.errors.into_inner(),
            warnings: self.warnings.into_inner(),
            files: self.files.into_inner(),
            listeners: self.listeners.into_inner(),
            issuers: self.issuers.into_inner(),
        }
    }
}

/// A file that the document names.
pub(super) struct NamedFile {
    pub(super) at: Position,
    /// Its path in the document.
    pub(super) path: String,
    pub(super) file: PathBuf,
    /// The text before variables are expanded: an expanded variable may be a secret that was mistaken for a path.
    pub(super) written: String,
}

/// The collected results of one reading.
pub(super) struct ReadOutput {
    pub(super) errors: Problems,
    pub(super) warnings: Problems,
    pub(super) files: Vec<NamedFile>,
    pub(super) listeners: Vec<(String, TlsFiles)>,
    pub(super) issuers: Vec<(String, IssuerHttp)>,
}

/// A value with its position and its path.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    node: &'a Node,
    path: String,
    context: &'a ReadContext<'a>,
}

impl<'a> Cursor<'a> {
    pub(super) fn root(node: &'a Node, context: &'a ReadContext<'a>) -> Self {
        Self { node, path: String::new(), context }
    }

    /// Reports an error in this value, unless it was refused as YAML already.
    pub(super) fn refuse<T>(&self, message: impl Into<String>) -> Read<T> {
        if self.node.value != Value::Refused {
            self.report(self.node.at, self.path.clone(), self.without_variables(message.into()));
        }
        Err(Reported(()))
    }

    /// The message, unless it quotes the value of an environment variable, which may be a secret.
    fn without_variables(&self, message: String) -> String {
        /// Shorter values are not secrets.
        const MIN_LEN: usize = 6;
        let Value::Scalar { text: written, .. } = &self.node.value else { return message };
        // Also a part of it, as an error about an expression quotes, and in upper case, as a suggestion may be.
        let message_in_lower_case = message.to_ascii_lowercase();
        let is_shown =
            |part: &str| part.len() >= MIN_LEN && message_in_lower_case.contains(&part.to_ascii_lowercase());
        let words = |value: &str, more: &[char]| {
            value.split(|letter: char| !letter.is_alphanumeric() && !more.contains(&letter)).any(is_shown)
        };
        let quotes = |value: String| {
            value.lines().any(is_shown)
                || [&[][..], &['_'], &['_', '-']].iter().any(|more| words(&value, more))
        };
        match variables(written).filter_map(self.context.variable).any(quotes) {
            true => format!(
                "{written:?} expands to an invalid value, which is not shown because it may be a secret: try it as a \
                 plain value"
            ),
            false => message,
        }
    }

    /// Reports a setting that is valid but probably not intended.
    pub(super) fn warn(&self, message: impl Into<String>) {
        let warning =
            ConfigError { at: Some(self.node.at), path: self.path.clone(), message: message.into() };
        self.context.warnings.borrow_mut().add(|| warning);
    }

    fn report(&self, at: Position, path: String, message: String) {
        self.context.errors.borrow_mut().add(|| ConfigError { at: Some(at), path, message });
    }

    pub(super) fn is_mapping(&self) -> bool {
        matches!(self.node.value, Value::Mapping(_))
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.value, Value::Sequence(_))
    }

    /// Whether it is null: unquoted, and empty, `null` or `~`. Reports nothing.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.node.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "null" | "~"))
    }

    /// Whether it is a text without characters, which has to be quoted.
    pub(super) fn is_quoted_empty(&self) -> bool {
        matches!(&self.node.value, Value::Scalar { text, plain: false } if text.is_empty())
    }

    /// The line, for errors elsewhere that refer to this value.
    pub(super) fn line(&self) -> usize {
        self.node.at.line
    }

    /// The value of a key, if present. Reports nothing.
    pub(super) fn peek(&self, key: &str) -> Option<Cursor<'a>> {
        let Value::Mapping(members) = &self.node.value else { return None };
        members.iter().find(|member| member.key == key).map(|member| self.member(member))
    }

    /// The text of a scalar after expansion; an unquoted empty text, `null` or `~` is a missing value.
    pub(super) fn text(&self) -> Read<String> {
        match self.peek_text() {
            Ok(text) => Ok(text),
            Err(message) => self.refuse(message),
        }
    }

    /// The same without a report.
    pub(super) fn peek_text(&self) -> Result<String, String> {
        let Value::Scalar { text, plain } = &self.node.value else {
            return Err("expected a single value, not a list or a mapping".to_owned());
        };
        let text = expand(text, self.context.variable)?;
        if text.is_empty() || (*plain && (text == "null" || text == "~")) {
            return Err("a value is missing: write one, or remove the key".to_owned());
        }
        Ok(text)
    }

    /// A scalar's text before expansion, which an error elsewhere may show.
    pub(super) fn peek_written(&self) -> Option<&'a str> {
        let Value::Scalar { text, .. } = &self.node.value else { return None };
        Some(text)
    }

    fn unquoted(&self, wanted: &str) -> Read<String> {
        let text = self.text()?;
        match self.node.value {
            Value::Scalar { plain: true, .. } => Ok(text),
            _ => self.refuse(format!("expected {wanted} without quotes")),
        }
    }

    pub(super) fn boolean(&self) -> Read<bool> {
        match self.unquoted("`true` or `false`")?.as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => self.refuse("expected `true` or `false`"),
        }
    }

    pub(super) fn integer(&self, min: u64, max: u64) -> Read<u64> {
        match self.unquoted("a number")?.parse::<u64>() {
            Ok(number) if (min..=max).contains(&number) => Ok(number),
            _ => self.refuse(format!("expected a whole number from {min} to {max}")),
        }
    }

    /// An integer in a 32-bit range.
    pub(super) fn count(&self, min: u32, max: u32) -> Read<usize> {
        // The range is that of 32 bits.
        self.integer(min.into(), max.into()).map(|number| usize::try_from(number).unwrap_or(usize::MAX))
    }

    pub(super) fn duration(&self, min: Duration, max: Duration) -> Read<Duration> {
        let text = self.text()?;
        let Some(duration) = parse_duration(&text) else {
            return self.refuse("expected a duration with its unit: 250ms, 30s, 5m or 24h");
        };
        if !(min..=max).contains(&duration) {
            let (min, max) = (show_duration(min), show_duration(max));
            return self.refuse(format!("expected a duration from {min} to {max}"));
        }
        Ok(duration)
    }

    pub(super) fn bytes(&self, min: usize, max: usize) -> Read<usize> {
        let text = self.text()?;
        let Some(bytes) = parse_bytes(&text) else {
            return self.refuse("expected a size: 512B, 16KiB, 1MiB, or a number of bytes");
        };
        if !(min..=max).contains(&bytes) {
            return self.refuse(format!("expected a size from {min} to {max} bytes"));
        }
        Ok(bytes)
    }

    /// One of the choices.
    pub(super) fn one_of<T: Clone>(&self, choices: &[(&str, T)]) -> Read<T> {
        let text = self.text()?;
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, value)) => Ok(value.clone()),
            None => {
                let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
                self.refuse(format!("expected one of: {}", names.join(", ")))
            }
        }
    }

    /// The path of a file, which is checked later.
    pub(super) fn file(&self) -> Read<PathBuf> {
        let file = PathBuf::from(self.text()?);
        let Value::Scalar { text: written, .. } = &self.node.value else { return Ok(file) };
        self.context.files.borrow_mut().push(NamedFile {
            at: self.node.at,
            path: self.path.clone(),
            file: file.clone(),
            written: written.clone(),
        });
        Ok(file)
    }

    /// Records the files of a listener, even if the configuration is invalid elsewhere.
    pub(super) fn record_listener(&self, files: &TlsFiles) {
        self.context.listeners.borrow_mut().push((self.path.clone(), files.clone()));
    }

    /// Records how an issuer is reached.
    pub(super) fn record_issuer(&self, http: &IssuerHttp) {
        self.context.issuers.borrow_mut().push((self.path.clone(), http.clone()));
    }

    /// The elements of a list.
    pub(super) fn elements(&self) -> Read<Vec<Cursor<'a>>> {
        let Value::Sequence(nodes) = &self.node.value else {
            return self.refuse("expected a list");
        };
        let element = |(i, node)| Cursor { node, path: format!("{}[{i}]", self.path), context: self.context };
        Ok(nodes.iter().enumerate().map(element).collect())
    }

    /// A list without duplicates; `empty` says what to do about an empty list.
    pub(super) fn list<T>(
        &self,
        empty: &str,
        read: impl Fn(&Cursor<'a>) -> Read<T>,
        same: impl Fn(&T, &T) -> bool,
    ) -> Read<Vec<T>> {
        let elements = self.elements()?;
        if elements.is_empty() {
            return self.refuse(empty);
        }
        let items: Vec<Read<T>> = elements.iter().map(read).collect();
        let mut unique = Ok(());
        for (i, (element, item)) in elements.iter().zip(&items).enumerate() {
            let Ok(item) = item else { continue };
            if items.iter().take(i).flatten().any(|earlier| same(earlier, item)) {
                unique = element.refuse("duplicate in the list: keep one");
            }
        }
        unique?;
        items.into_iter().collect()
    }

    /// Every element of a list, which may be empty.
    pub(super) fn each<T>(&self, read: impl Fn(&Cursor<'a>) -> Read<T>) -> Read<Vec<T>> {
        all(self.elements()?.iter().map(read))
    }

    /// The members of a mapping: `known` keys are read, `later` keys belong to later versions. Any other key is
    /// reported.
    pub(super) fn mapping(&self, known: &[&str], later: &[&str]) -> Read<Mapping<'a>> {
        for Member { key, at, .. } in self.members()? {
            let path = member_path(&self.path, key);
            if later.contains(&key.as_str()) {
                self.report(*at, path, "not supported yet: remove it".to_owned());
            } else if !known.contains(&key.as_str()) {
                let (path, message) = match nearest(key, known) {
                    Some(name) => (path, format!("unknown key; did you mean `{name}`?")),
                    None if may_be_a_secret(key) => {
                        let known = known.join(", ");
                        let message = format!("unknown key, which is not shown; known keys: {known}");
                        (self.path.clone(), message)
                    }
                    None => (path, format!("unknown key; known keys: {}", known.join(", "))),
                };
                self.report(*at, path, message);
            }
        }
        Ok(Mapping { cursor: self.clone() })
    }

    /// The members of a mapping with user-defined keys.
    pub(super) fn entries(&self) -> Read<Vec<Entry<'a>>> {
        let entry = |member: &'a Member| {
            let entry = Entry { key: &member.key, at: member.at, value: self.member(member) };
            if entry.key.contains("${") {
                return entry.refuse_key("only values are expanded: a key must not contain `${`");
            }
            Ok(entry)
        };
        all(self.members()?.iter().map(entry))
    }

    /// The value as JSON. Unquoted text is null, a boolean or a number if it parses as such.
    pub(super) fn json(&self) -> Read<serde_json::Value> {
        match &self.node.value {
            Value::Sequence(_) => Ok(self.each(Cursor::json)?.into()),
            Value::Mapping(_) => {
                let member = |Entry { key, value, .. }| Ok((key.to_owned(), value.json()?));
                Ok(all(self.entries()?.into_iter().map(member))?.into_iter().collect())
            }
            Value::Scalar { .. } if self.is_null() => Ok(serde_json::Value::Null),
            Value::Scalar { text, .. } if text.is_empty() => Ok(text.as_str().into()),
            Value::Scalar { plain, .. } => {
                let text = self.text()?;
                let typed = if *plain { plain_json(&text) } else { None };
                Ok(typed.unwrap_or_else(|| text.into()))
            }
            // Reported by the YAML reader.
            Value::Refused => Err(Reported(())),
        }
    }

    fn members(&self) -> Read<&'a [Member]> {
        match &self.node.value {
            Value::Mapping(members) => Ok(members),
            _ => self.refuse("expected a mapping"),
        }
    }

    fn member(&self, member: &'a Member) -> Cursor<'a> {
        let path = member_path(&self.path, &member.key);
        Cursor { node: &member.node, path, context: self.context }
    }
}

/// A member of a mapping with user-defined keys.
pub(super) struct Entry<'a> {
    pub(super) key: &'a str,
    at: Position,
    pub(super) value: Cursor<'a>,
}

impl Entry<'_> {
    /// Reports an error in the key.
    pub(super) fn refuse_key<T>(&self, message: impl Into<String>) -> Read<T> {
        self.value.report(self.at, self.value.path.clone(), message.into());
        Err(Reported(()))
    }
}

/// Whether a key is long and has characters that keys do not have. In a partly overwritten file, a part of a secret
/// may be in the place of a key.
fn may_be_a_secret(key: &str) -> bool {
    const MIN_LEN: usize = 16;
    let is_key_byte = |byte: u8| byte.is_ascii_lowercase() || matches!(byte, b'_' | b'-' | b' ');
    key.len() >= MIN_LEN && !key.bytes().all(is_key_byte)
}

/// The known key that was probably meant: at most one typo per three letters, since otherwise short keys would
/// match anything.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    let distance = |name: &str| strsim::damerau_levenshtein(name, key);
    let nearest = |name: &&str| key.len() <= 2 * name.len() && distance(name) <= (name.len() / 3).clamp(1, 3);
    known.iter().copied().filter(nearest).min_by_key(|name| distance(name))
}

/// A mapping with checked keys.
pub(super) struct Mapping<'a> {
    cursor: Cursor<'a>,
}

impl<'a> Mapping<'a> {
    /// The value of a key, if present.
    pub(super) fn get(&self, key: &str) -> Option<Cursor<'a>> {
        self.cursor.peek(key)
    }

    /// The value of a required key.
    pub(super) fn required(&self, key: &str, why: &str) -> Read<Cursor<'a>> {
        match self.get(key) {
            None => self.cursor.refuse(format!("`{key}` is missing: {why}")),
            Some(value) => Ok(value),
        }
    }

    /// Reads an optional key.
    pub(super) fn optional<T>(&self, key: &str, read: impl FnOnce(Cursor<'a>) -> Read<T>) -> Read<Option<T>> {
        self.get(key).map(read).transpose()
    }

    /// Reads a key that has a default.
    pub(super) fn or<T>(
        &self,
        key: &str,
        default: impl FnOnce() -> T,
        read: impl FnOnce(Cursor<'a>) -> Read<T>,
    ) -> Read<T> {
        Ok(self.optional(key, read)?.unwrap_or_else(default))
    }

    /// Reports an error in this key, or in the mapping if the key is absent.
    pub(super) fn refuse_at<T>(&self, key: &str, message: impl Into<String>) -> Read<T> {
        match self.get(key) {
            Some(cursor) => cursor.refuse(message),
            None => self.cursor.refuse(message),
        }
    }

    /// Reports an error in the mapping.
    pub(super) fn refuse<T>(&self, message: impl Into<String>) -> Read<T> {
        self.cursor.refuse(message)
    }

    /// The mapping itself.
    pub(super) fn cursor(&self) -> &Cursor<'a> {
        &self.cursor
    }
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit.trim_start()))
}

/// A duration in the form of the configuration: `250ms`, `30s`, `5m`, `1h`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let milliseconds = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => None,
    };
    milliseconds.map(Duration::from_millis)
}

fn parse_bytes(text: &str) -> Option<usize> {
    let (number, unit) = split_unit(text)?;
    let bytes = match unit {
        "" | "B" => Some(number),
        "KiB" => number.checked_mul(1 << 10),
        "MiB" => number.checked_mul(1 << 20),
        "GiB" => number.checked_mul(1 << 30),
        _ => None,
    };
    bytes.and_then(|bytes| usize::try_from(bytes).ok())
}

/// A duration in the largest unit without a fraction; it is parsed as the same value.
pub(super) fn show_duration(duration: Duration) -> String {
    match duration.as_millis() {
        0 => "0s".to_owned(),
        whole if whole % 3_600_000 == 0 => format!("{}h", whole / 3_600_000),
        whole if whole % 60_000 == 0 => format!("{}m", whole / 60_000),
        whole if whole % 1_000 == 0 => format!("{}s", whole / 1_000),
        part => format!("{part}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit_and_does_not_overflow() {
        for (text, expected) in [
            ("250ms", Some(250)),
            ("30s", Some(30_000)),
            ("5m", Some(300_000)),
            ("24h", Some(86_400_000)),
            ("0s", Some(0)),
            ("5 m", Some(300_000)),
            ("30", None),
            ("", None),
            ("s", None),
            ("1.5s", None),
            ("-1s", None),
            ("+1s", None),
            ("1d", None),
            ("1S", None),
            ("1m30s", None),
            ("18446744073709551615ms", Some(u64::MAX)),
            ("18446744073709551615h", None),
            ("18446744073709551616ms", None),
        ] {
            assert_eq!(parse_duration(text), expected.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn a_shown_duration_is_parsed_as_the_same() {
        for milliseconds in [0, 1, 250, 1_000, 1_001, 90_000, 60_000, 3_600_000, 86_400_000] {
            let duration = Duration::from_millis(milliseconds);
            assert_eq!(parse_duration(&show_duration(duration)), Some(duration));
        }
    }

    #[test]
    fn a_size_is_bytes_or_has_a_unit_and_does_not_overflow() {
        for (text, expected) in [
            ("512B", Some(512)),
            ("16KiB", Some(16 << 10)),
            ("1MiB", Some(1 << 20)),
            ("4096", Some(4096)),
            ("1KB", None),
            ("1kib", None),
            ("1.5MiB", None),
            ("-1", None),
            ("", None),
            ("18446744073709551615GiB", None),
            ("18446744073709551616", None),
        ] {
            assert_eq!(parse_bytes(text), expected, "{text}");
        }
    }

    #[test]
    fn only_a_similar_name_is_suggested() {
        let known = ["listen", "providers", "log", "tls", "min_spacing"];
        for (key, expected) in [
            ("provider", Some("providers")),
            ("lsiten", Some("listen")),
            ("lgo", Some("log")),
            ("Log", Some("log")),
            ("minspacing", Some("min_spacing")),
            ("min-spacing", Some("min_spacing")),
            ("1", None),
            ("", None),
            ("xyz", None),
            ("tracing", None),
        ] {
            assert_eq!(nearest(key, &known), expected, "{key}");
        }
        assert_eq!(nearest(&"x".repeat(1 << 20), &known), None);
    }
}
