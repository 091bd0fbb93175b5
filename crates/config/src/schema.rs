//! Generates the JSON Schema of the configuration and its reference page from the descriptions of the sections.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Config;
use super::section::{Description, Key, Requirement, Section};

/// The schema (JSON Schema 2020-12) as JSON text with a final line end.
pub fn json_schema_text() -> String {
    let root = Config::description();
    let mut definitions: BTreeMap<&str, Value> = BTreeMap::new();
    for section in nested_sections(&root) {
        definitions.insert(section.name, section.schema());
    }
    let mut schema = root.schema();
    if let Some(members) = schema.as_object_mut() {
        members.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        members.insert("title".to_owned(), json!("Portcullis"));
        // Keys that are ignored; they may hold anchors.
        members.insert("patternProperties".to_owned(), json!({"^x-": {}}));
        members.insert("$defs".to_owned(), json!(definitions));
    }
    format!("{schema:#}\n")
}

/// All nested sections, at every depth, in order and without duplicates.
fn nested_sections(section: &Description) -> Vec<&Description> {
    let mut found: Vec<&Description> = Vec::new();
    let mut next: Vec<&Description> = section.keys.iter().flat_map(|key| &key.form.sections).collect();
    while !next.is_empty() {
        let mut deeper = Vec::new();
        for section in next {
            if found.iter().all(|known| known.name != section.name) {
                found.push(section);
                deeper.extend(section.keys.iter().flat_map(|key| &key.form.sections));
            }
        }
        next = deeper;
    }
    found
}

/// The reference of all keys, in Markdown.
pub fn reference_text() -> String {
    let root = Config::description();
    let mut page = format!(
        "# Configuration\n\n{}\n\nUnknown keys are errors. Anchors, aliases and merge keys (`<<`) work, and a top-level key that begins with `x-` is not read. A relative path is relative to the folder in which Portcullis is started. Durations have a unit (`250ms`, `30s`, `5m`, `24h`), and sizes may have one \
         (`512B`, `16KiB`, `1MiB`). `portcullis validate` reports all errors, prints the effective configuration with `--print`, and prints \
         a JSON Schema for editors with `--schema`.\n",
        root.description
    );
    write_table(&mut page, &root);
    for section in nested_sections(&root) {
        // Writing to a string does not fail.
        let _written = write!(page, "\n## {}\n\n{}\n", section.name, section.description);
        write_table(&mut page, section);
    }
    page
}

fn write_table(page: &mut String, section: &Description) {
    page.push_str("\n| key | meaning | value | default |\n|---|---|---|---|\n");
    for Key { name, description, form, requirement } in &section.keys {
        let default = match requirement {
            Requirement::Required => "required".to_owned(),
            // A section has its own defaults.
            Requirement::Default(_) if !form.sections.is_empty() => "see the section".to_owned(),
            Requirement::Default(default) => format!("`{default}`"),
            Requirement::Alternative => "one of these".to_owned(),
            Requirement::Optional => String::new(),
        };
        let cells = [description.replace('|', "\\|"), form.summary.replace('|', "\\|"), default];
        let _written = writeln!(page, "| `{name}` | {} |", cells.join(" | "));
    }
}
