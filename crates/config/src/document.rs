//! YAML as a tree that knows where everything stands, with `${VAR}` expanded. It knows nothing of what
//! the keys mean.
//!
//! Less than YAML on purpose: one document, text keys, no tags. What is left out is an error and never ignored.
//! Anchors and aliases are YAML 1.2's; merge keys are YAML 1.1's (`tag:yaml.org,2002:merge`), which 1.2 took out and
//! people go on writing.

mod aliases;

use aliases::{Anchors, Merge, Refusal, depth};
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use super::error::{ConfigError, Position, member_path};

/// A deeper document is refused.
const MAX_DEPTH: usize = 32;
/// A longer mapping or list is refused: entries are compared with each other, and a file must not make
/// a reload take minutes.
const MAX_MEMBERS: usize = 1_000;
const MAX_ENTRIES: usize = 10_000;

const TOO_DEEP: &str = "nested too deeply";

/// The key of what is merged, where it stands without quotes: in quotes it is a key like another.
const MERGE: &str = "<<";

/// Of the parser's message about an alias that has no anchor.
const UNKNOWN_ANCHOR: &str = "unknown anchor";

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
/// `None` where its structure cannot be known. Keys at the top that begin with `x-` are left out: they are room for
/// anchors, and what stands there is nothing but what aliases make of it.
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
        Ok(()) => (root.map(without_extensions), errors),
    }
}

fn without_extensions(mut root: Node) -> Node {
    if let Value::Mapping(members) = &mut root.value {
        members.retain(|member| !member.key.starts_with("x-"));
    }
    root
}

/// A collection whose end has not come yet.
struct Open {
    at: Position,
    /// The number of its anchor, 0 without one.
    anchor: usize,
    so_far: Collection,
}

enum Collection {
    Sequence(Vec<Node>),
    Mapping(OpenMapping),
}

#[derive(Default)]
struct OpenMapping {
    members: Vec<Member>,
    merge: Option<Merge>,
    wanted: Wanted,
}

/// What an open mapping waits for.
#[derive(Default)]
enum Wanted {
    #[default]
    Key,
    /// The value of this key.
    Value(String, Position),
    /// The value of `<<`.
    Merge(Position),
    /// The value of a key that was refused.
    Nothing,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: Anchors,
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
            let (event, span) = event.map_err(|error| self.broken(text, &error))?;
            self.take(event, span)?;
        }
        Ok(())
    }

    /// What the parser has no more to say after.
    fn broken(&self, text: &str, error: &ScanError) -> ConfigError {
        let (line, column) = (error.marker().line(), error.marker().col() + 1);
        let at = Position { line, column, alias: None };
        if error.info().contains(UNKNOWN_ANCHOR) {
            let message = "no anchor has this alias's name so far: write `&` and the name before a value above, or put the text \
                           in quotes if the `*` is part of it";
            return self.error(at, message);
        }
        let message = format!("not YAML: {}{}", error.info(), hint(text, line));
        ConfigError { at: Some(at), path: String::new(), message }
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), ConfigError> {
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
            Event::Alias(anchor) => self.take_alias(anchor, at),
            Event::SequenceStart(..) | Event::MappingStart(..) if self.open.len() >= MAX_DEPTH => {
                Err(self.error(at, TOO_DEEP))
            }
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(self.error(at, "only one document may stand in the file"))
            }
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                self.put(anchor, Node { at, value: Value::Scalar { text: text.into_owned(), plain } })
            }
            Event::SequenceStart(anchor, _) => {
                self.open.push(Open { at, anchor, so_far: Collection::Sequence(Vec::new()) });
                Ok(())
            }
            Event::MappingStart(anchor, _) => {
                self.open.push(Open { at, anchor, so_far: Collection::Mapping(OpenMapping::default()) });
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

    /// The value of its anchor stands where an alias stands. None is a key: what a mapping has is to be read off it.
    fn take_alias(&mut self, anchor: usize, at: Position) -> Result<(), ConfigError> {
        let innermost = self.open.last().map(|open| &open.so_far);
        if let Some(Collection::Mapping(OpenMapping { wanted: Wanted::Key, .. })) = innermost {
            self.report(at, "an alias cannot be a key: write the key itself");
            return self.put(0, Node { at, value: Value::Refused });
        }
        match self.anchors.meant(anchor, at.line) {
            Ok(node) if self.open.len().saturating_add(depth(&node)) > MAX_DEPTH => {
                Err(self.error(at, TOO_DEEP))
            }
            Ok(node) => self.put(0, node),
            Err(refusal @ Refusal::Encloses) => {
                self.report(at, refusal.message());
                self.put(0, Node { at, value: Value::Refused })
            }
            Err(refusal @ Refusal::TooMuch) => Err(self.error(at, refusal.message())),
        }
    }

    /// The innermost open collection has come to its end.
    fn close(&mut self) -> Result<(), ConfigError> {
        let Some(Open { at, anchor, so_far }) = self.open.pop() else { return Ok(()) };
        let value = match so_far {
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
        self.put(anchor, Node { at, value })
    }

    /// A finished node goes where the innermost open collection wants it.
    fn put(&mut self, anchor: usize, node: Node) -> Result<(), ConfigError> {
        if let Err(refusal) = self.anchors.keep(anchor, &node) {
            return Err(self.error(node.at, refusal.message()));
        }
        let refused = match self.open.last_mut().map(|open| &mut open.so_far) {
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
            Some(Collection::Mapping(mapping)) if mapping.members.len() < MAX_MEMBERS => mapping.put(node),
            Some(Collection::Mapping(_)) => return Err(self.error(node.at, too_many_members())),
        };
        if let Some(Refused { at, key, message }) = refused {
            let mut error = self.error(at, message);
            if let Some(key) = key {
                error.path = member_path(&error.path, &key);
            }
            self.errors.push(error);
        }
        Ok(())
    }

    fn report(&mut self, at: Position, message: impl Into<String>) {
        let error = self.error(at, message);
        self.errors.push(error);
    }

    fn error(&self, at: Position, message: impl Into<String>) -> ConfigError {
        let path = self.open.iter().fold(String::new(), |path, open| match &open.so_far {
            Collection::Sequence(nodes) => format!("{path}[{}]", nodes.len()),
            Collection::Mapping(OpenMapping { wanted: Wanted::Value(key, _), .. }) => member_path(&path, key),
            Collection::Mapping(OpenMapping { wanted: Wanted::Merge(_), .. }) => member_path(&path, MERGE),
            Collection::Mapping(_) => path,
        });
        ConfigError { at: Some(at), path, message: message.into() }
    }
}

fn too_many_members() -> String {
    format!("more than {MAX_MEMBERS} entries")
}

/// What is wrong with a member, and how its key is called where it can be.
struct Refused {
    at: Position,
    key: Option<String>,
    message: String,
}

impl OpenMapping {
    /// A finished node is a key or a value.
    fn put(&mut self, node: Node) -> Option<Refused> {
        let (wanted, refused) = match std::mem::take(&mut self.wanted) {
            Wanted::Key => self.read_key(node),
            Wanted::Value(key, at) => {
                self.members.push(Member { key, at, node });
                (Wanted::Key, None)
            }
            Wanted::Merge(at) => (Wanted::Key, self.read_merge(at, node)),
            Wanted::Nothing => (Wanted::Key, None),
        };
        self.wanted = wanted;
        refused
    }

    fn read_key(&self, Node { at, value }: Node) -> (Wanted, Option<Refused>) {
        let refused =
            |key: Option<String>, message: String| (Wanted::Nothing, Some(Refused { at, key, message }));
        let not_text = |key| refused(key, "a key must be text; put it in quotes if it is".to_owned());
        match value {
            Value::Scalar { text, plain: true } if text == MERGE => match &self.merge {
                None => (Wanted::Merge(at), None),
                Some(first) => {
                    let line = first.at.line;
                    let message = format!(
                        "stands here a second time, first in line {line}: write one with a list, `<<: [*a, *b]`"
                    );
                    refused(Some(text), message)
                }
            },
            Value::Scalar { text, plain: true } if is_typed(&text) => not_text(Some(text)),
            Value::Scalar { text, .. } => match self.members.iter().find(|member| member.key == text) {
                None => (Wanted::Value(text, at), None),
                Some(first) => {
                    let message =
                        format!("stands here a second time, first in line {}: keep one", first.at.line);
                    refused(Some(text), message)
                }
            },
            Value::Sequence(_) | Value::Mapping(_) => not_text(None),
            Value::Refused => (Wanted::Nothing, None),
        }
    }

    fn read_merge(&mut self, at: Position, node: Node) -> Option<Refused> {
        match Merge::of(self.members.len(), at, node) {
            Ok(merge) => {
                self.merge = Some(merge);
                None
            }
            Err(at) => {
                let message = "a mapping or a list of mappings is expected here, as a rule by their aliases";
                Some(Refused { at, key: Some(MERGE.to_owned()), message: message.to_owned() })
            }
        }
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
