//! YAML as a tree that knows where everything stands, with `${VAR}` expanded. It knows nothing of what
//! the keys mean.
//!
//! Less than YAML on purpose: one document, text keys, no anchors, aliases or tags. What is left out is
//! an error and never ignored.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::error::{ConfigError, Position, member_path};

/// A deeper document is refused.
const MAX_DEPTH: usize = 32;
/// A longer mapping or list is refused: entries are compared with each other, and a file must not make
/// a reload take minutes.
const MAX_MEMBERS: usize = 1_000;
const MAX_ENTRIES: usize = 10_000;

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) value: Value,
}

/// What a value is, as far as YAML goes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Scalar {
        text: String,
        /// Not quoted: may be a number, a boolean or nothing at all.
        plain: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<Member>),
    /// Something that is left out of this YAML; reported already.
    Refused,
}

/// A key of a mapping and its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Member {
    pub(super) key: String,
    pub(super) at: Position,
    pub(super) node: Node,
}

/// Reads one document and what is wrong with it as YAML. The document is as far as it could be read;
/// `None` where its structure cannot be known.
pub(super) fn parse(text: &str) -> (Option<Node>, Vec<ConfigError>) {
    let mut builder = Builder::default();
    let read = builder.read(text);
    let Builder { root, mut errors, .. } = builder;
    match read {
        Err(end) => {
            errors.push(end);
            (None, errors)
        }
        Ok(()) if root.is_none() && errors.is_empty() => {
            let message = "the file is empty; the shortest one has `listen` and `providers`".to_owned();
            (None, vec![ConfigError { at: None, path: String::new(), message }])
        }
        Ok(()) => (root, errors),
    }
}

/// A collection whose end has not come yet.
enum Open {
    Sequence(Position, Vec<Node>),
    Mapping(Position, Vec<Member>, Key),
}

/// What an open mapping waits for.
enum Key {
    /// A key.
    Wanted,
    /// The value of this key.
    Read(String, Position),
    /// The value of a key that was refused.
    Refused,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
    errors: Vec<ConfigError>,
}

impl Builder {
    /// Collects problems as it goes on.
    ///
    /// # Errors
    /// The one after which nothing can be known of the rest.
    fn read(&mut self, text: &str) -> Result<(), ConfigError> {
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| ConfigError {
                at: Some(Position { line: error.marker().line(), column: error.marker().col() + 1 }),
                path: String::new(),
                message: format!("not YAML: {}{}", error.info(), hint(text, error.marker().line())),
            })?;
            self.take(event, span)?;
        }
        Ok(())
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), ConfigError> {
        let at = Position { line: span.start.line(), column: span.start.col() + 1 };
        match &event {
            Event::Scalar(_, _, anchor, tag)
            | Event::SequenceStart(anchor, tag)
            | Event::MappingStart(anchor, tag)
                if *anchor != 0 || tag.is_some() =>
            {
                let error = self.error(at, "anchors and tags are not supported: write the value itself");
                self.errors.push(error);
            }
            _ => {}
        }
        match event {
            Event::Alias(_) => {
                let error = self.error(at, "aliases are not supported: write the value itself");
                self.errors.push(error);
                self.put(Node { at, value: Value::Refused })
            }
            Event::SequenceStart(..) | Event::MappingStart(..) if self.open.len() >= MAX_DEPTH => {
                Err(self.error(at, "nested too deeply"))
            }
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(self.error(at, "only one document may stand in the file"))
            }
            Event::Scalar(text, style, ..) => {
                let plain = style == ScalarStyle::Plain;
                self.put(Node { at, value: Value::Scalar { text: text.into_owned(), plain } })
            }
            Event::SequenceStart(..) => {
                self.open.push(Open::Sequence(at, Vec::new()));
                Ok(())
            }
            Event::MappingStart(..) => {
                self.open.push(Open::Mapping(at, Vec::new(), Key::Wanted));
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::Sequence(at, nodes)) => self.put(Node { at, value: Value::Sequence(nodes) }),
                Some(Open::Mapping(at, members, _)) => self.put(Node { at, value: Value::Mapping(members) }),
                None => Ok(()),
            },
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    /// A finished node goes where the innermost open collection wants it.
    fn put(&mut self, node: Node) -> Result<(), ConfigError> {
        let refused = match self.open.last_mut() {
            None => {
                self.root = Some(node);
                None
            }
            Some(Open::Sequence(_, nodes)) if nodes.len() < MAX_ENTRIES => {
                nodes.push(node);
                None
            }
            Some(Open::Mapping(_, members, key @ Key::Wanted)) if members.len() < MAX_MEMBERS => {
                let (next, refused) = read_key(members, node);
                *key = next;
                refused
            }
            Some(Open::Sequence(..)) => {
                return Err(self.error(node.at, format!("more than {MAX_ENTRIES} entries")));
            }
            Some(Open::Mapping(_, _, Key::Wanted)) => {
                return Err(self.error(node.at, format!("more than {MAX_MEMBERS} entries")));
            }
            Some(Open::Mapping(_, members, key)) => {
                if let Key::Read(key, at) = std::mem::replace(key, Key::Wanted) {
                    members.push(Member { key, at, node });
                }
                None
            }
        };
        if let Some((at, key, message)) = refused {
            let mut error = self.error(at, message);
            if let Some(key) = key {
                error.path = member_path(&error.path, &key);
            }
            self.errors.push(error);
        }
        Ok(())
    }

    fn error(&self, at: Position, message: impl Into<String>) -> ConfigError {
        let path = self.open.iter().fold(String::new(), |path, open| match open {
            Open::Sequence(_, nodes) => format!("{path}[{}]", nodes.len()),
            Open::Mapping(_, _, Key::Read(key, _)) => member_path(&path, key),
            Open::Mapping(..) => path,
        });
        ConfigError { at: Some(at), path, message: message.into() }
    }
}

/// In `[a, ${B}]` the brace of the variable is YAML's own, which its error does not say.
fn hint(text: &str, line: usize) -> &'static str {
    match line.checked_sub(1).and_then(|line| text.lines().nth(line)) {
        Some(line) if line.contains("${") => {
            "; between `[` and `]` or `{` and `}` write \"${...}\" with its quotes, or use a line of its own"
        }
        _ => "",
    }
}

/// What is wrong with a key, and how it is called where it can be.
type RefusedKey = (Position, Option<String>, String);

fn read_key(members: &[Member], Node { at, value }: Node) -> (Key, Option<RefusedKey>) {
    let not_text = |shown: Option<String>| {
        (Key::Refused, Some((at, shown, "a key must be text; put it in quotes if it is".to_owned())))
    };
    match value {
        Value::Scalar { text, plain: true } if is_typed(&text) => not_text(Some(text)),
        Value::Scalar { text, .. } => match members.iter().find(|member| member.key == text) {
            None => (Key::Read(text, at), None),
            Some(first) => {
                let line = first.at.line;
                let message = format!("stands here a second time, first in line {line}: keep one");
                (Key::Refused, Some((at, Some(text), message)))
            }
        },
        Value::Sequence(_) | Value::Mapping(_) => not_text(None),
        Value::Refused => (Key::Refused, None),
    }
}

/// Whether a value without quotes is something else than text: nothing, a boolean or a number.
fn is_typed(text: &str) -> bool {
    matches!(text, "" | "~") || plain_json(text).is_some()
}

/// What a value without quotes is as JSON where it is no text. Never a list or a mapping: an expanded
/// variable must not become structure.
pub(super) fn plain_json(text: &str) -> Option<serde_json::Value> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    (value.is_null() || value.is_boolean() || value.is_number()).then_some(value)
}

/// The names of the variables that a text would be expanded with.
pub(super) fn variables(text: &str) -> impl Iterator<Item = &str> {
    text.split("${").skip(1).filter_map(|rest| rest.split(['}', ':']).next())
}

/// Expands `${VAR}` and `${VAR:-default}`; `$${` is a literal `${`. A variable that is empty counts as not
/// set, as in a shell's `:-`. The result is text inside the one value and never structure.
///
/// # Errors
/// A variable that is not set and has no default, a `${` that is not closed, or one inside another: that would
/// end at the inner `}`, and what was meant as a value would be the text of a variable.
pub(super) fn expand(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, after) = rest.split_at(start);
        let after = after.get(2..).unwrap_or_default();
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = after;
            continue;
        }
        out.push_str(before);
        let Some((inside, behind)) = after.split_once('}') else {
            return Err("`${` without its `}`; a literal one is written `$${`".to_owned());
        };
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        if inside.contains("${") {
            let name: String = name.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            if name.is_empty() {
                return Err(
                    "`${...}` takes the name of an environment variable, and not another `${`".to_owned()
                );
            }
            return Err(format!(
                "`${{` inside `${{{name}...}}`: a variable's default is plain text; set {name} itself to what it should be"
            ));
        }
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err("`${...}` takes the name of an environment variable".to_owned());
        }
        match (variable(name).filter(|value| !value.is_empty()), default) {
            (Some(value), _) => out.push_str(&value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => {
                return Err(format!(
                    "the environment variable {name} is not set or empty; set it or write a default: ${{{name}:-...}}"
                ));
            }
        }
        rest = behind;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_expand_inside_a_value() {
        let variable = |name: &str| match name {
            "A" => Some("a: [1]".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (text, expected) in [
            ("x${A}y", Ok("xa: [1]y")),
            ("${B:-z}", Ok("z")),
            ("${B:-}", Ok("")),
            ("${EMPTY:-d}", Ok("d")),
            ("${A}${A}", Ok("a: [1]a: [1]")),
            ("$${A}", Ok("${A}")),
            ("$A $", Ok("$A $")),
            ("${B}", Err("B is not set or empty")),
            ("${EMPTY}", Err("EMPTY is not set or empty")),
            ("${A", Err("without its `}`")),
            ("${}", Err("name of an environment variable")),
            ("${a b}", Err("name of an environment variable")),
            ("${A:-${B}}", Err("`${` inside `${A...}`")),
            ("${B:-x$${A}}", Err("`${` inside `${B...}`")),
            ("${${A}}", Err("takes the name of an environment variable, and not another")),
        ] {
            match (expand(text, &variable), expected) {
                (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{text}"),
                (Err(got), Err(expected)) => assert!(got.contains(expected), "{text}: {got}"),
                (got, expected) => panic!("{text}: {got:?} instead of {expected:?}"),
            }
        }
    }
}
