//! Reading a document's values one by one, so that every problem is found in one pass. A value that is
//! wrong is reported and read as nothing; the reader goes on.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use super::document::{Member, Node, Value, expand};
use super::error::{ConfigError, Position};

/// What one reading collects.
pub(super) struct Findings<'e> {
    variable: &'e dyn Fn(&str) -> Option<String>,
    errors: RefCell<Vec<ConfigError>>,
    /// Files that the document names, to be looked at by whoever has a file system.
    files: RefCell<Vec<(Position, String, PathBuf)>>,
}

impl<'e> Findings<'e> {
    pub(super) fn new(variable: &'e dyn Fn(&str) -> Option<String>) -> Self {
        Self { variable, errors: RefCell::default(), files: RefCell::default() }
    }

    /// The problems, and the files that the document names.
    pub(super) fn into_parts(self) -> (Vec<ConfigError>, Vec<(Position, String, PathBuf)>) {
        (self.errors.into_inner(), self.files.into_inner())
    }
}

/// A value, where it stands, and how it is called.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    node: &'a Node,
    path: String,
    findings: &'a Findings<'a>,
}

impl<'a> Cursor<'a> {
    pub(super) fn root(node: &'a Node, findings: &'a Findings<'a>) -> Self {
        Self { node, path: String::new(), findings }
    }

    /// Reports a problem with this value.
    pub(super) fn refuse<T>(&self, message: impl Into<String>) -> Option<T> {
        self.report(self.node.at, self.path.clone(), message.into());
        None
    }

    fn report(&self, at: Position, path: String, message: String) {
        self.findings.errors.borrow_mut().push(ConfigError { at: Some(at), path, message });
    }

    pub(super) fn is_mapping(&self) -> bool {
        matches!(self.node.value, Value::Mapping(_))
    }

    /// A scalar's text after expansion; what is empty, `null` or `~` without quotes is a value left out.
    pub(super) fn text(&self) -> Option<String> {
        let Value::Scalar { text, plain } = &self.node.value else {
            return self.refuse("one value is expected here, not a list or a mapping");
        };
        let text = match expand(text, self.findings.variable) {
            Ok(text) => text,
            Err(message) => return self.refuse(message),
        };
        if text.is_empty() || (*plain && (text == "null" || text == "~")) {
            return self.refuse("a value is missing");
        }
        Some(text)
    }

    fn unquoted(&self, wanted: &str) -> Option<String> {
        let text = self.text()?;
        match self.node.value {
            Value::Scalar { plain: true, .. } => Some(text),
            _ => self.refuse(format!("{wanted} is written without quotes")),
        }
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        match self.unquoted("`true` or `false`")?.as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => self.refuse("expected `true` or `false`"),
        }
    }

    pub(super) fn integer(&self, least: u64, most: u64) -> Option<u64> {
        match self.unquoted("a number")?.parse::<u64>() {
            Ok(number) if (least..=most).contains(&number) => Some(number),
            _ => self.refuse(format!("expected a whole number from {least} to {most}")),
        }
    }

    pub(super) fn duration(&self, least: Duration, most: Duration) -> Option<Duration> {
        let text = self.text()?;
        let Some(duration) = parse_duration(&text) else {
            return self.refuse("expected a duration with its unit: 250ms, 30s, 5m or 24h");
        };
        if !(least..=most).contains(&duration) {
            return self.refuse(format!("expected a duration from {least:?} to {most:?}"));
        }
        Some(duration)
    }

    pub(super) fn bytes(&self, least: usize, most: usize) -> Option<usize> {
        let text = self.text()?;
        let Some(bytes) = parse_bytes(&text) else {
            return self.refuse("expected a size: 512B, 16KiB, 1MiB, or a number of bytes");
        };
        if !(least..=most).contains(&bytes) {
            return self.refuse(format!("expected a size from {least} to {most} bytes"));
        }
        Some(bytes)
    }

    /// One of these words.
    pub(super) fn one_of<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, value)) => Some(*value),
            None => {
                let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
                self.refuse(format!("expected one of: {}", names.join(", ")))
            }
        }
    }

    /// A file's path; whether it can be read is found out later.
    pub(super) fn file(&self) -> Option<PathBuf> {
        let path = PathBuf::from(self.text()?);
        self.findings.files.borrow_mut().push((self.node.at, self.path.clone(), path.clone()));
        Some(path)
    }

    /// The elements of a list.
    pub(super) fn elements(&self) -> Option<Vec<Cursor<'a>>> {
        let Value::Sequence(nodes) = &self.node.value else {
            return self.refuse("a list is expected here");
        };
        let element =
            |(i, node)| Cursor { node, path: format!("{}[{i}]", self.path), findings: self.findings };
        Some(nodes.iter().enumerate().map(element).collect())
    }

    /// A list of texts, none of them twice; `empty` says what to do about a list of none.
    pub(super) fn texts(&self, empty: &str) -> Option<Vec<String>> {
        let mut texts: Vec<String> = Vec::new();
        let elements = self.elements()?;
        if elements.is_empty() {
            return self.refuse(empty);
        }
        for element in elements {
            let text = element.text()?;
            if texts.contains(&text) {
                return element.refuse("stands in the list a second time");
            }
            texts.push(text);
        }
        Some(texts)
    }

    /// The members of a mapping, of which `known` are read now and `later` belong to later versions.
    /// Any other key is reported.
    pub(super) fn mapping(&self, known: &[&str], later: &[&str]) -> Option<Mapping<'a>> {
        let members = self.members()?;
        for Member { key, at, .. } in members {
            let path = self.below(key);
            if later.contains(&key.as_str()) {
                self.report(*at, path, "not supported yet: take it out".to_owned());
            } else if !known.contains(&key.as_str()) {
                let near = known
                    .iter()
                    .map(|name| (strsim::damerau_levenshtein(name, key), name))
                    .filter(|(distance, _)| *distance <= 3)
                    .min();
                let message = match near {
                    Some((_, name)) => format!("unknown key; did you mean `{name}`?"),
                    None => format!("unknown key; known here: {}", known.join(", ")),
                };
                self.report(*at, path, message);
            }
        }
        Some(Mapping { cursor: self.clone(), members })
    }

    /// The members of a mapping whose keys are the user's own.
    pub(super) fn entries(&self) -> Option<Vec<(&'a str, Cursor<'a>)>> {
        Some(self.members()?.iter().map(|member| (member.key.as_str(), self.member(member))).collect())
    }

    /// The value as JSON, as YAML 1.2's core schema types it.
    pub(super) fn json(&self) -> Option<serde_json::Value> {
        match &self.node.value {
            Value::Sequence(_) => self.elements()?.iter().map(Cursor::json).collect(),
            Value::Mapping(_) => self
                .entries()?
                .into_iter()
                .map(|(key, value)| Some((key.to_owned(), value.json()?)))
                .collect(),
            Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "null" | "~") => {
                Some(serde_json::Value::Null)
            }
            Value::Scalar { text, .. } if text.is_empty() => Some(text.as_str().into()),
            Value::Scalar { plain, .. } => {
                let text = self.text()?;
                let typed = serde_json::from_str::<serde_json::Value>(&text).ok();
                Some(typed.filter(|value| *plain && !value.is_string()).unwrap_or_else(|| text.into()))
            }
        }
    }

    fn members(&self) -> Option<&'a [Member]> {
        match &self.node.value {
            Value::Mapping(members) => Some(members),
            _ => self.refuse("a mapping is expected here"),
        }
    }

    fn member(&self, member: &'a Member) -> Cursor<'a> {
        Cursor { node: &member.node, path: self.below(&member.key), findings: self.findings }
    }

    fn below(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// A mapping whose keys have been checked.
pub(super) struct Mapping<'a> {
    cursor: Cursor<'a>,
    members: &'a [Member],
}

impl<'a> Mapping<'a> {
    /// The value of a key, where it is there.
    pub(super) fn get(&self, key: &str) -> Option<Cursor<'a>> {
        self.members.iter().find(|member| member.key == key).map(|member| self.cursor.member(member))
    }

    /// The value of a key that must be there.
    pub(super) fn need(&self, key: &str, why: &str) -> Option<Cursor<'a>> {
        match self.get(key) {
            None => self.cursor.refuse(format!("`{key}` is missing: {why}")),
            found => found,
        }
    }

    /// Reads a key that may be left out. `None` only where it is there and wrong.
    pub(super) fn optional<T>(
        &self,
        key: &str,
        read: impl FnOnce(Cursor<'a>) -> Option<T>,
    ) -> Option<Option<T>> {
        match self.get(key) {
            None => Some(None),
            Some(cursor) => read(cursor).map(Some),
        }
    }

    /// Reads a key that has a default.
    pub(super) fn or<T>(
        &self,
        key: &str,
        default: T,
        read: impl FnOnce(Cursor<'a>) -> Option<T>,
    ) -> Option<T> {
        self.optional(key, read).map(|value| value.unwrap_or(default))
    }

    pub(super) fn refuse<T>(&self, message: impl Into<String>) -> Option<T> {
        self.cursor.refuse(message)
    }
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit.trim_start()))
}

fn parse_duration(text: &str) -> Option<Duration> {
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
