//! Values of tokens and of the configuration, as refusals show them.

use crate::text::{on_one_line, quoted};
use crate::validation::json::Json;

/// The most items that a list shows.
const MAX_LISTED: usize = 4;

/// A claim with its name.
pub(super) fn claim(name: &str, value: Option<&Json>) -> String {
    match value {
        None => format!("no {name}"),
        Some(Json::Array(members)) if members.is_empty() => format!("{name} is an empty list"),
        Some(Json::Array(members)) => format!("{name} {}", list(members.iter(), json)),
        Some(value) => format!("{name} {}", json(value)),
    }
}

/// A value of a token.
pub(super) fn json(value: &Json) -> String {
    match value {
        Json::Null => "null".to_owned(),
        Json::Bool(true) => "true".to_owned(),
        Json::Bool(false) => "false".to_owned(),
        Json::Number(digits) => on_one_line(digits),
        Json::String(text) => quoted(text),
        Json::Array(_) => "(a list)".to_owned(),
        Json::Object(_) => "(an object)".to_owned(),
    }
}

/// The type of a value of a token.
pub(super) fn kind(value: Option<&Json>) -> &'static str {
    match value {
        None => "absent",
        Some(Json::Null) => "null",
        Some(Json::Bool(_)) => "a boolean",
        Some(Json::Number(_)) => "a number",
        Some(Json::String(_)) => "a string",
        Some(Json::Array(_)) => "a list",
        Some(Json::Object(_)) => "an object",
    }
}

/// The first items and the number of the others.
pub(super) fn list<T>(all: impl Iterator<Item = T>, shown: impl Fn(T) -> String) -> String {
    list_of(MAX_LISTED, all, shown)
}

/// The first `most` items and the number of the others.
pub(super) fn list_of<T>(
    most: usize,
    mut all: impl Iterator<Item = T>,
    shown: impl Fn(T) -> String,
) -> String {
    let first: Vec<String> = all.by_ref().take(most).map(shown).collect();
    match all.count() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// As much of an expression of the configuration as is shown, on one line.
pub(super) fn source(text: &str) -> String {
    const MAX_CHARS: usize = 256;
    let on_one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("`{}`", on_one_line.chars().take(MAX_CHARS).collect::<String>())
}
