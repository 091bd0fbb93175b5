//! Parses YAML into a tree with positions, and expands `${VAR}`. It does not know the meaning of keys.
//!
//! It supports a subset of YAML: one document, text keys, no tags. Everything else is an error and never ignored.
//! Anchors and aliases are those of YAML 1.2; merge keys are those of YAML 1.1 (`tag:yaml.org,2002:merge`), which
//! 1.2 removed but which are still in use.

mod aliases;

use aliases::{Anchors, Merge, Refusal, depth};
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use super::error::{ConfigError, Position, Problems, member_path};

/// The deepest nesting.
const MAX_DEPTH: usize = 32;
/// The largest mapping and list: entries are compared with each other, and a file must not make a reload take
/// minutes.
const MAX_MEMBERS: usize = 1_000;
const MAX_ENTRIES: usize = 10_000;

const TOO_DEEP: &str = "nested too deeply";

/// The merge key if it is unquoted; a quoted one is an ordinary key.
const MERGE: &str = "<<";

/// A part of the parser's message about an alias without an anchor.
const UNKNOWN_ANCHOR: &str = "unknown anchor";

/// A value and its position.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) value: Value,
}

/// The YAML kind of a value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Scalar {
        text: String,
        /// Unquoted: may be a number, a boolean or null.
        plain: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<Member>),
    /// A value that is not supported; the error has been reported.
    Refused,
}

/// A key of a mapping and its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Member {
    pub(super) key: String,
    pub(super) at: Position,
    pub(super) node: Node,
}

/// Parses one document and collects its YAML errors; `empty` is the one of an empty text. The document contains everything that could be parsed; it is
/// `None` if its structure is unknown. Top-level keys that begin with `x-` are left out: they only hold anchors,
/// and their values are used through aliases only.
pub(super) fn parse(text: &str, empty: &str) -> (Option<Node>, Problems) {
    let mut builder = Builder::default();
    let read = builder.read(text);
    let Builder { root, mut errors, .. } = builder;
    match read {
        Err(end) => {
            errors.add(|| end);
            (None, errors)
        }
        Ok(()) if root.is_none() && errors.is_empty() => {
            let message = empty.to_owned();
            (None, vec![ConfigError { at: None, path: String::new(), message }].into())
        }
        Ok(()) => (root.map(without_extensions), errors),
    }
}

fn without_extensions(mut root: Node) -> Node {
    if let Value::Mapping(members) = &mut root.value {
        members.retain(|member| !member.key.starts_with("x-"));
    }
    root
}

/// A collection that has not ended.
struct Open {
    at: Position,
    /// The number of its anchor; 0 for none.
    anchor: usize,
    collection: Collection,
}

enum Collection {
    Sequence(Vec<Node>),
    Mapping(OpenMapping),
}

#[derive(Default)]
struct OpenMapping {
    members: Vec<Member>,
    merge: Option<Merge>,
    expected: Expected,
}

/// What an open mapping expects next.
#[derive(Default)]
enum Expected {
    #[default]
    Key,
    /// The value of this key.
    Value(String, Position),
    /// The value of `<<`.
    Merge(Position),
    /// The value of a refused key.
    Nothing,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: Anchors,
    root: Option<Node>,
    errors: Problems,
}

impl Builder {
    /// Collects errors.
    ///
    /// # Errors
    /// A fatal error, after which the structure is unknown.
    fn read(&mut self, text: &str) -> Result<(), ConfigError> {
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| self.fatal_error(text, &error))?;
            self.handle(event, span)?;
        }
        Ok(())
    }

    /// The last error of the parser.
    fn fatal_error(&self, text: &str, error: &ScanError) -> ConfigError {
        let (line, column) = (error.marker().line(), error.marker().col() + 1);
        let at = Position { line, column, alias: None };
        if error.info().contains(UNKNOWN_ANCHOR) {
            let message = "unknown anchor: write `&` and the name before a value above, or add the text \
                           in quotes if the `*` is part of it";
            return self.error(at, message);
        }
        let message = format!("not YAML: {}{}", error.info(), hint(text, line));
        ConfigError { at: Some(at), path: String::new(), message }
    }

    fn handle(&mut self, event: Event<'_>, span: Span) -> Result<(), ConfigError> {
        let at = Position { line: span.start.line(), column: span.start.col() + 1, alias: None };
        match &event {
            Event::Scalar(.., tag) | Event::SequenceStart(_, tag) | Event::MappingStart(_, tag)
                if tag.is_some() =>
            {
                self.report(at, "tags are not supported: write the value itself");
            }
            _ => {}
        }
        match event {
            Event::Alias(anchor) => self.handle_alias(anchor, at),
            Event::SequenceStart(..) | Event::MappingStart(..) if self.open.len() >= MAX_DEPTH => {
                Err(self.error(at, TOO_DEEP))
            }
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(self.error(at, "the file must contain only one document"))
            }
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                self.add(anchor, Node { at, value: Value::Scalar { text: text.into_owned(), plain } })
            }
            Event::SequenceStart(anchor, _) => {
                self.open.push(Open { at, anchor, collection: Collection::Sequence(Vec::new()) });
                Ok(())
            }
            Event::MappingStart(anchor, _) => {
                self.open.push(Open { at, anchor, collection: Collection::Mapping(OpenMapping::default()) });
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    /// Puts the value of the anchor in place of an alias. An alias cannot be a key: the keys of a mapping have to
    /// be readable in place.
    fn handle_alias(&mut self, anchor: usize, at: Position) -> Result<(), ConfigError> {
        let innermost = self.open.last().map(|open| &open.collection);
        if let Some(Collection::Mapping(OpenMapping { expected: Expected::Key, .. })) = innermost {
            self.report(at, "an alias cannot be a key: write the key itself");
            return self.add(0, Node { at, value: Value::Refused });
        }
        match self.anchors.resolve(anchor, at.line) {
            Ok(node) if self.open.len().saturating_add(depth(&node)) > MAX_DEPTH => {
                Err(self.error(at, TOO_DEEP))
            }
            Ok(node) => self.add(0, node),
            Err(refusal @ Refusal::Recursive) => {
                self.report(at, refusal.message());
                self.add(0, Node { at, value: Value::Refused })
            }
            Err(refusal @ Refusal::TooLarge) => Err(self.error(at, refusal.message())),
        }
    }

    /// Ends the innermost open collection.
    fn close(&mut self) -> Result<(), ConfigError> {
        let Some(Open { at, anchor, collection }) = self.open.pop() else { return Ok(()) };
        let value = match collection {
            Collection::Sequence(nodes) => Value::Sequence(nodes),
            Collection::Mapping(OpenMapping { mut members, merge, .. }) => {
                if let Some(merge) = merge {
                    merge.into_mapping(&mut members);
                }
                if members.len() > MAX_MEMBERS {
                    return Err(self.error(at, too_many_members()));
                }
                Value::Mapping(members)
            }
        };
        self.add(anchor, Node { at, value })
    }

    /// Adds a complete node to the innermost open collection.
    fn add(&mut self, anchor: usize, node: Node) -> Result<(), ConfigError> {
        if let Err(refusal) = self.anchors.store(anchor, &node) {
            return Err(self.error(node.at, refusal.message()));
        }
        let refused = match self.open.last_mut().map(|open| &mut open.collection) {
            None => {
                self.root = Some(node);
                None
            }
            Some(Collection::Sequence(nodes)) if nodes.len() < MAX_ENTRIES => {
                nodes.push(node);
                None
            }
            Some(Collection::Sequence(_)) => {
                return Err(self.error(node.at, format!("more than {MAX_ENTRIES} entries")));
            }
            Some(Collection::Mapping(mapping)) if mapping.members.len() < MAX_MEMBERS => mapping.add(node),
            Some(Collection::Mapping(_)) => return Err(self.error(node.at, too_many_members())),
        };
        if let Some(Refused { at, key, message }) = refused {
            let mut errors = std::mem::take(&mut self.errors);
            errors.add(|| {
                let mut error = self.error(at, message);
                if let Some(key) = key {
                    error.path = member_path(&error.path, &key);
                }
                error
            });
            self.errors = errors;
        }
        Ok(())
    }

    fn report(&mut self, at: Position, message: impl Into<String>) {
        let mut errors = std::mem::take(&mut self.errors);
        errors.add(|| self.error(at, message));
        self.errors = errors;
    }

    fn error(&self, at: Position, message: impl Into<String>) -> ConfigError {
        let path = self.open.iter().fold(String::new(), |path, open| match &open.collection {
            Collection::Sequence(nodes) => format!("{path}[{}]", nodes.len()),
            Collection::Mapping(OpenMapping { expected: Expected::Value(key, _), .. }) => {
                member_path(&path, key)
            }
            Collection::Mapping(OpenMapping { expected: Expected::Merge(_), .. }) => {
                member_path(&path, MERGE)
            }
            Collection::Mapping(_) => path,
        });
        ConfigError { at: Some(at), path, message: message.into() }
    }
}

fn too_many_members() -> String {
    format!("more than {MAX_MEMBERS} entries")
}

/// An error in a member, with its key if it is known.
struct Refused {
    at: Position,
    key: Option<String>,
    message: String,
}

impl OpenMapping {
    /// Adds a complete node as a key or as a value.
    fn add(&mut self, node: Node) -> Option<Refused> {
        let (expected, refused) = match std::mem::take(&mut self.expected) {
            Expected::Key => self.read_key(node),
            Expected::Value(key, at) => {
                self.members.push(Member { key, at, node });
                (Expected::Key, None)
            }
            Expected::Merge(at) => (Expected::Key, self.read_merge(at, node)),
            Expected::Nothing => (Expected::Key, None),
        };
        self.expected = expected;
        refused
    }

    fn read_key(&self, Node { at, value }: Node) -> (Expected, Option<Refused>) {
        let refused =
            |key: Option<String>, message: String| (Expected::Nothing, Some(Refused { at, key, message }));
        let not_text = |key| refused(key, "a key must be text: put it in quotes".to_owned());
        match value {
            Value::Scalar { text, plain: true } if text == MERGE => match &self.merge {
                None => (Expected::Merge(at), None),
                Some(first) => {
                    let line = first.at.line;
                    let message =
                        format!("duplicate key, first in line {line}: write one with a list, `<<: [*a, *b]`");
                    refused(Some(text), message)
                }
            },
            Value::Scalar { text, plain: true } if is_typed(&text) => not_text(Some(text)),
            Value::Scalar { text, .. } => match self.members.iter().find(|member| member.key == text) {
                None => (Expected::Value(text, at), None),
                Some(first) => {
                    let message = format!("duplicate key, first in line {}: keep one", first.at.line);
                    refused(Some(text), message)
                }
            },
            Value::Sequence(_) | Value::Mapping(_) => not_text(None),
            Value::Refused => (Expected::Nothing, None),
        }
    }

    fn read_merge(&mut self, at: Position, node: Node) -> Option<Refused> {
        match Merge::of(self.members.len(), at, node) {
            Ok(merge) => {
                self.merge = Some(merge);
                None
            }
            Err(at) => {
                let message = "expected a mapping or a list of mappings, usually as aliases";
                Some(Refused { at, key: Some(MERGE.to_owned()), message: message.to_owned() })
            }
        }
    }
}

/// In `[a, ${B}]` YAML takes the brace of the variable for its own, which its error does not mention.
fn hint(text: &str, line: usize) -> &'static str {
    match line.checked_sub(1).and_then(|line| text.lines().nth(line)) {
        Some(line) if line.contains("${") => {
            "; between `[` and `]` or `{` and `}` write \"${...}\" with its quotes, or use a line of its own"
        }
        _ => "",
    }
}

/// Whether an unquoted value is null, a boolean or a number.
fn is_typed(text: &str) -> bool {
    matches!(text, "" | "~") || plain_json(text).is_some()
}

/// The JSON value of unquoted text that is not a string. Never a list or a mapping: an expanded variable must not
/// become structure.
pub(super) fn plain_json(text: &str) -> Option<serde_json::Value> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    (value.is_null() || value.is_boolean() || value.is_number()).then_some(value)
}

/// The names of the variables in a text.
pub(super) fn variables(text: &str) -> impl Iterator<Item = &str> {
    text.split("${").skip(1).filter_map(|rest| rest.split(['}', ':']).next())
}

/// Expands `${VAR}` and `${VAR:-default}`; `$${` is a literal `${`. An empty variable is treated as unset, like
/// `:-` in a shell. The result is always the text of one value, never structure.
///
/// # Errors
/// A variable that is unset and has no default, an unclosed `${`, or a nested one: it would end at the inner `}`,
/// and a value would be taken for the name of a variable.
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
        let Some((inside, after)) = after.split_once('}') else {
            return Err("`${` without `}`; write `$${` for a literal `${`".to_owned());
        };
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        if inside.contains("${") {
            let name: String = name.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            if name.is_empty() {
                return Err("`${...}` needs the name of an environment variable, not another `${`".to_owned());
            }
            return Err(format!(
                "`${{` inside `${{{name}...}}`: a default is plain text: set {name} itself instead"
            ));
        }
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err("`${...}` needs the name of an environment variable".to_owned());
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
        rest = after;
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
            ("${A", Err("without `}`")),
            ("${}", Err("name of an environment variable")),
            ("${a b}", Err("name of an environment variable")),
            ("${A:-${B}}", Err("`${` inside `${A...}`")),
            ("${B:-x$${A}}", Err("`${` inside `${B...}`")),
            ("${${A}}", Err("needs the name of an environment variable, not another")),
        ] {
            match (expand(text, &variable), expected) {
                (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{text}"),
                (Err(got), Err(expected)) => assert!(got.contains(expected), "{text}: {got}"),
                (got, expected) => panic!("{text}: {got:?} instead of {expected:?}"),
            }
        }
    }
}
