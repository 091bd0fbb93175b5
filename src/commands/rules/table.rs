//! Renders the rows of the table: as columns of text, as Markdown, and as JSON.

use serde_json::{Map, Value, json};

use super::row::{PREFIX, PREFLIGHT, REGEX, Row};

const TITLES: [&str; 9] =
    ["#", "rule", "requests", "effect", "providers", "audiences", "scopes", "claims", "condition"];

/// What is shown where a part has no value.
const NOTHING: &str = "-";

/// Columns of text; those that are empty in every row are left out.
pub(super) fn text(rows: &[Row]) -> String {
    let mut lines = vec![TITLES.map(str::to_owned)];
    lines.extend(rows.iter().enumerate().map(|(at, row)| cells(at, row)));
    let mut out = vec![String::new(); lines.len()];
    for at in 0..TITLES.len() {
        let column: Vec<&str> = lines.iter().filter_map(|line| line.get(at)).map(String::as_str).collect();
        if column.iter().skip(1).all(|cell| *cell == NOTHING) {
            continue;
        }
        let width = column.iter().map(|cell| cell.chars().count()).max().unwrap_or_default();
        for (line, cell) in out.iter_mut().zip(column) {
            line.push_str(&format!("{cell:<width$}  "));
        }
    }
    out.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// A table with every column.
pub(super) fn markdown(rows: &[Row]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut out = line(&TITLES.map(str::to_owned)) + &line(&TITLES.map(|_| "---".to_owned()));
    for (at, row) in rows.iter().enumerate() {
        out.push_str(&line(&cells(at, row).map(|cell| in_markdown(&cell))));
    }
    out
}

/// The rules in order, and what no rule matches.
pub(super) fn json(rows: &[Row]) -> String {
    let of_kind = |is_rule: bool| rows.iter().filter(move |row| row.rule.is_some() == is_rule).map(in_json);
    let document = json!({
        "rules": of_kind(true).collect::<Vec<_>>(),
        "default": of_kind(false).next(),
    });
    format!("{document:#}\n")
}

fn cells(at: usize, row: &Row) -> [String; 9] {
    let (number, rule) = match &row.rule {
        Some(rule) => ((at + 1).to_string(), rule.clone()),
        None => (NOTHING.to_owned(), "(default)".to_owned()),
    };
    let named = |(name, values): &(String, Vec<String>)| format!("{name}: {}", values.join(" or "));
    [
        number,
        rule,
        requests(row),
        row.effect.to_owned(),
        joined(row.providers.iter().cloned()),
        audiences(row),
        joined(row.scopes.iter().cloned()),
        joined(row.claims.iter().map(named)),
        row.condition.clone().unwrap_or_else(|| NOTHING.to_owned()),
    ]
    .map(|cell| on_one_line(&cell))
}

fn joined(values: impl Iterator<Item = String>) -> String {
    let values: Vec<String> = values.collect();
    if values.is_empty() { NOTHING.to_owned() } else { values.join(", ") }
}

/// The requests in words: methods, paths, hosts and headers, and whether a route can name the rule.
fn requests(row: &Row) -> String {
    let mut parts = Vec::new();
    if row.effect == PREFLIGHT {
        parts.push("CORS preflights".to_owned());
    }
    if !row.methods.is_empty() {
        parts.push(row.methods.join(", "));
    }
    if !row.paths.is_empty() {
        parts.push(joined(row.paths.iter().map(shown_path)));
    }
    if !row.hosts.is_empty() {
        parts.push(format!("at {}", row.hosts.join(", ")));
    }
    let headers = row.headers.iter();
    parts.extend(headers.map(|(name, values)| format!("with {name}: {}", values.join(" or "))));
    if parts.is_empty() {
        parts.push(if row.rule.is_some() { "every request" } else { "every other request" }.to_owned());
    }
    if row.ambiguous_paths {
        parts.push("(ambiguous paths too)".to_owned());
    }
    if row.by_name {
        parts.push("(or a route that names the rule)".to_owned());
    }
    parts.join(" ")
}

fn shown_path((kind, path): &(&str, String)) -> String {
    match *kind {
        PREFIX => format!("{path} and below"),
        REGEX => format!("regex {path}"),
        _ => path.clone(),
    }
}

/// The audiences, by provider if they differ.
fn audiences(row: &Row) -> String {
    let shown = |audiences: &Option<Vec<String>>| {
        audiences.as_ref().map_or_else(|| "any".to_owned(), |audiences| audiences.join(" or "))
    };
    match row.audiences.as_slice() {
        [] => NOTHING.to_owned(),
        [(_, first), others @ ..] if others.iter().all(|(_, other)| other == first) => shown(first),
        all => joined(all.iter().map(|(provider, audiences)| format!("{provider}: {}", shown(audiences)))),
    }
}

/// A condition can have several lines.
fn on_one_line(text: &str) -> String {
    let line: String =
        text.trim().chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    if line.is_empty() { NOTHING.to_owned() } else { line }
}

/// Characters that Markdown gives a meaning are escaped (CommonMark §2.4).
fn in_markdown(cell: &str) -> String {
    let mut out = String::with_capacity(cell.len());
    for letter in cell.chars() {
        if matches!(letter, '\\' | '|' | '*' | '_' | '`' | '<' | '>' | '[' | ']' | '&' | '~' | '#') {
            out.push('\\');
        }
        out.push(letter);
    }
    out
}

fn in_json(row: &Row) -> Value {
    let mapping = |entries: &[(String, Vec<String>)]| -> Map<String, Value> {
        entries.iter().map(|(name, values)| (name.clone(), values.clone().into())).collect()
    };
    let claims = row.claims.iter().map(|(name, values)| {
        let values = values.iter().map(|value| serde_json::from_str(value).unwrap_or(Value::Null));
        (name.clone(), values.collect::<Vec<_>>().into())
    });
    let audiences = row
        .audiences
        .iter()
        .map(|(provider, audiences)| (provider.clone(), audiences.clone().map_or(Value::Null, Value::from)));
    let paths =
        row.paths.iter().map(|(kind, path)| Map::from_iter([((*kind).to_owned(), path.as_str().into())]));
    let mut object = json!({
        "effect": row.effect,
        "providers": row.providers,
        "audiences": audiences.collect::<Map<_, _>>(),
        "scopes": row.scopes,
        "claims": claims.collect::<Map<_, _>>(),
        "condition": row.condition,
    });
    if let (Some(rule), Some(members)) = (&row.rule, object.as_object_mut()) {
        members.insert("name".to_owned(), rule.as_str().into());
        members.insert(
            "match".to_owned(),
            json!({
                "paths": paths.collect::<Vec<Map<_, _>>>(), "methods": row.methods, "hosts": row.hosts, "headers": mapping(&row.headers),
            }),
        );
        members.insert("by_name".to_owned(), row.by_name.into());
        members.insert("ambiguous_paths".to_owned(), row.ambiguous_paths.into());
    }
    object
}
