//! Values as they are written: YAML that is read again as the same.

use std::fmt::Display;

/// A value of a configuration as YAML.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Yaml {
    /// A scalar as it stands in the file.
    Scalar(String),
    /// A list.
    List(Vec<Yaml>),
    /// A mapping; keys as they stand in the file.
    Mapping(Vec<(String, Yaml)>),
    /// A value of which something is left out, and the comment that says so.
    Without(String, Box<Yaml>),
}

impl Yaml {
    /// Text. A JSON string is a YAML string; and what was expanded must not be expanded again.
    pub(super) fn text(text: impl Display) -> Self {
        Yaml::Scalar(serde_json::Value::from(text.to_string().replace("${", "$${")).to_string())
    }

    /// A number, a truth or a word, which needs no quotes.
    pub(super) fn word(word: impl Display) -> Self {
        Yaml::Scalar(word.to_string())
    }

    /// In one line, as it stands within brackets.
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
            Yaml::Without(_, value) => value.inline(),
        }
    }

    fn is_block(&self) -> bool {
        match self {
            Yaml::Scalar(_) => false,
            Yaml::List(items) => items.iter().any(|item| matches!(item, Yaml::Mapping(_))),
            Yaml::Mapping(members) => !members.is_empty(),
            Yaml::Without(_, value) => value.is_block(),
        }
    }
}

/// The key of a mapping whose keys are the user's own. It is not expanded.
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

/// A key may be longer than the 1,024 characters that YAML takes without being told that it is one.
fn write_member(lines: &mut Vec<String>, key: &str, value: &Yaml) {
    const LONGEST: usize = 1_000;
    let value = match value {
        Yaml::Without(comment, value) => {
            lines.push(format!("# {comment}"));
            value
        }
        value => value,
    };
    if key.chars().count() > LONGEST {
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
            let mut within = Vec::new();
            write_members(&mut within, members);
            lines.extend(within.iter().map(|line| format!("  {line}")));
        }
        other => lines.push(format!("{key}: {}", other.inline())),
    }
}

fn write_item(lines: &mut Vec<String>, item: &Yaml) {
    let Yaml::Mapping(members) = item else {
        return lines.push(format!("  - {}", item.inline()));
    };
    let mut within = Vec::new();
    write_members(&mut within, members);
    // A comment cannot stand between the dash and the first key.
    if within.first().is_some_and(|line| line.starts_with('#')) {
        lines.push("  -".to_owned());
        return lines.extend(within.iter().map(|line| format!("    {line}")));
    }
    let marks = std::iter::once("  - ").chain(std::iter::repeat("    "));
    lines.extend(within.iter().zip(marks).map(|(line, mark)| format!("{mark}{line}")));
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
            member("g", Yaml::Without("the rest is not shown".to_owned(), Box::new(Yaml::text("h")))),
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
