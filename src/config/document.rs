//! YAML as a tree that knows where everything stands, with `${VAR}` expanded. It knows nothing of what
//! the keys mean.
//!
//! Less than YAML on purpose: one document, text keys, no anchors, aliases or tags. What is left out is
//! an error and never ignored.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::error::{ConfigError, Position};

/// A deeper document is refused.
const MAX_DEPTH: usize = 32;

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
}

/// A key of a mapping and its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Member {
    pub(super) key: String,
    pub(super) at: Position,
    pub(super) node: Node,
}

/// Reads one document.
///
/// # Errors
/// The text is not YAML or uses what is left out; the first such place ends the reading.
pub(super) fn parse(text: &str) -> Result<Node, ConfigError> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| ConfigError {
            at: Some(Position { line: error.marker().line(), column: error.marker().col() + 1 }),
            path: String::new(),
            message: format!("not YAML: {}", error.info()),
        })?;
        builder.take(event, span)?;
    }
    builder.root.ok_or_else(|| ConfigError {
        at: None,
        path: String::new(),
        message: "the file is empty; the shortest one has `listen` and `providers`".to_owned(),
    })
}

/// A collection whose end has not come yet.
enum Open {
    Sequence(Position, Vec<Node>),
    Mapping(Position, Vec<Member>, Option<(String, Position)>),
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), ConfigError> {
        let at = Position { line: span.start.line(), column: span.start.col() + 1 };
        let refuse = |message: &str| Err(error(at, message));
        match event {
            Event::Scalar(_, _, anchor, tag) if anchor != 0 || tag.is_some() => {
                refuse("anchors and tags are not supported: write the value itself")
            }
            Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag)
                if anchor != 0 || tag.is_some() =>
            {
                refuse("anchors and tags are not supported: write the value itself")
            }
            Event::Alias(_) => refuse("aliases are not supported: write the value itself"),
            Event::SequenceStart(..) | Event::MappingStart(..) if self.open.len() >= MAX_DEPTH => {
                refuse("nested too deeply")
            }
            Event::DocumentStart(_) if self.root.is_some() => {
                refuse("only one document may stand in the file")
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
                self.open.push(Open::Mapping(at, Vec::new(), None));
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
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::Sequence(_, nodes)) => nodes.push(node),
            Some(Open::Mapping(_, members, key @ None)) => match node.value {
                Value::Scalar { text, .. } if members.iter().any(|member| member.key == text) => {
                    return Err(error(node.at, &format!("`{text}` stands here a second time")));
                }
                Value::Scalar { text, .. } => *key = Some((text, node.at)),
                _ => return Err(error(node.at, "a key must be text")),
            },
            Some(Open::Mapping(_, members, key)) => {
                if let Some((key, at)) = key.take() {
                    members.push(Member { key, at, node });
                }
            }
        }
        Ok(())
    }
}

fn error(at: Position, message: &str) -> ConfigError {
    ConfigError { at: Some(at), path: String::new(), message: message.to_owned() }
}

/// Expands `${VAR}` and `${VAR:-default}`; `$${` is a literal `${`. The result is text inside the one
/// value and never structure.
///
/// # Errors
/// A variable that is not set and has no default, or a `${` that is not closed.
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
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err("`${...}` takes the name of an environment variable".to_owned());
        }
        match (variable(name).filter(|value| !value.is_empty()), default) {
            (Some(value), _) => out.push_str(&value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => {
                return Err(format!(
                    "the environment variable {name} is not set; set it or write a default: ${{{name}:-...}}"
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
            ("${B}", Err("B is not set")),
            ("${A", Err("without its `}`")),
            ("${}", Err("name of an environment variable")),
            ("${a b}", Err("name of an environment variable")),
        ] {
            match (expand(text, &variable), expected) {
                (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{text}"),
                (Err(got), Err(expected)) => assert!(got.contains(expected), "{text}: {got}"),
                (got, expected) => panic!("{text}: {got:?} instead of {expected:?}"),
            }
        }
    }
}
