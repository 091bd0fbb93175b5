//! Prints values as YAML that is parsed as the same values.

use std::fmt::Display;

/// A value of a configuration as YAML.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Yaml {
    /// A scalar as it is written.
    Scalar(String),
    /// A list.
    List(Vec<Yaml>),
    /// A mapping; keys as they are written.
    Mapping(Vec<(String, Yaml)>),
    /// A value with a part left out, and a comment that says so.
    Redacted(String, Box<Yaml>),
}

impl Yaml {
    /// Text. A JSON string is a YAML string; `${` is escaped because expanded text must not be expanded again.
    pub(super) fn text(text: impl Display) -> Self {
        Yaml::Scalar(serde_json::Value::from(text.to_string().replace("${", "$${")).to_string())
    }

    /// A number, a boolean or a word that needs no quotes.
    pub(super) fn word(word: impl Display) -> Self {
        Yaml::Scalar(word.to_string())
    }

    /// The value on one line.
    pub(super) fn inline(&self) -> String {
        match self {
            Yaml::Scalar(text) => text.clone(),
            Yaml::List(items) => {
                format!("[{}]", items.iter().map(Yaml::inline).collect::<Vec<_>>().join(", "))
            }
            Yaml::Mapping(members) => {
                let members = members.iter().map(|(key, value)| format!("{key}: {}", value.inline()));
                format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
            }
            Yaml::Redacted(_, value) => value.inline(),
        }
    }

    fn is_block(&self) -> bool {
        match self {
            Yaml::Scalar(_) => false,
            Yaml::List(items) => items.iter().any(|item| matches!(item, Yaml::Mapping(_))),
            Yaml::Mapping(members) => !members.is_empty(),
            Yaml::Redacted(_, value) => value.is_block(),
        }
    }
}

/// A user-defined key of a mapping. It is not expanded.
pub(super) fn own_key(text: impl Display) -> String {
    serde_json::Value::from(text.to_string()).to_string()
}

/// The members of a mapping as a document.
pub(super) fn document(members: &[(String, Yaml)]) -> String {
    let mut lines = Vec::new();
    write_members(&mut lines, members);
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn write_members(lines: &mut Vec<String>, members: &[(String, Yaml)]) {
    for (key, value) in members {
        write_member(lines, key, value);
    }
}

/// A key may exceed the 1,024 characters that YAML allows for an implicit key.
fn write_member(lines: &mut Vec<String>, key: &str, value: &Yaml) {
    const MAX_CHARS: usize = 1_000;
    let value = match value {
        Yaml::Redacted(comment, value) => {
            lines.push(format!("# {comment}"));
            value
        }
        value => value,
    };
    if key.chars().count() > MAX_CHARS {
        lines.push(format!("? {key}"));
        lines.push(format!(": {}", value.inline()));
        return;
    }
    match value {
        value if !value.is_block() => lines.push(format!("{key}: {}", value.inline())),
        Yaml::List(items) => {
            lines.push(format!("{key}:"));
            items.iter().for_each(|item| write_item(lines, item));
        }
        Yaml::Mapping(members) => {
            lines.push(format!("{key}:"));
            let mut nested = Vec::new();
            write_members(&mut nested, members);
            lines.extend(nested.iter().map(|line| format!("  {line}")));
        }
        other => lines.push(format!("{key}: {}", other.inline())),
    }
}

fn write_item(lines: &mut Vec<String>, item: &Yaml) {
    let Yaml::Mapping(members) = item else {
        return lines.push(format!("  - {}", item.inline()));
    };
    let mut nested = Vec::new();
    write_members(&mut nested, members);
    // A comment cannot be between the dash and the first key.
    if nested.first().is_some_and(|line| line.starts_with('#')) {
        lines.push("  -".to_owned());
        return lines.extend(nested.iter().map(|line| format!("    {line}")));
    }
    let prefixes = std::iter::once("  - ").chain(std::iter::repeat("    "));
    lines.extend(nested.iter().zip(prefixes).map(|(line, prefix)| format!("{prefix}{line}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_mappings_and_mappings_are_blocks_and_all_else_is_one_line() {
        let member = |key: &str, value: Yaml| (key.to_owned(), value);
        let members = [
            member("a", Yaml::word(1)),
            member("b", Yaml::List(vec![Yaml::text("x"), Yaml::text("${y}")])),
            member(
                "c",
                Yaml::List(vec![Yaml::Mapping(vec![
                    member("d", Yaml::word(true)),
                    member("e", Yaml::Mapping(vec![member("f", Yaml::word("5m"))])),
                ])]),
            ),
            member("g", Yaml::Redacted("the rest is not shown".to_owned(), Box::new(Yaml::text("h")))),
            member("i", Yaml::Mapping(Vec::new())),
        ];
        let expected = "a: 1
b: [\"x\", \"$${y}\"]
c:
  - d: true
    e:
      f: 5m
# the rest is not shown
g: \"h\"
i: {}
";
        assert_eq!(document(&members), expected);
    }
}
