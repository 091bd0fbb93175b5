//! The JSON Schema of the configuration, for editors and pipelines, and its reference page, for people: both made of the
//! descriptions of the sections.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Config;
use super::section::{Description, Key, Requirement, Section};

/// The schema (JSON Schema 2020-12) as JSON text, with a line end.
pub fn json_schema_text() -> String {
    let root = Config::description();
    let mut definitions: BTreeMap<&str, Value> = BTreeMap::new();
    for section in within(&root) {
        definitions.insert(section.name, section.schema());
    }
    let mut schema = root.schema();
    if let Some(members) = schema.as_object_mut() {
        members.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        members.insert("title".to_owned(), json!("Portcullis"));
        // Keys that are not read: room for anchors.
        members.insert("patternProperties".to_owned(), json!({"^x-": {}}));
        members.insert("$defs".to_owned(), json!(definitions));
    }
    format!("{schema:#}\n")
}

/// The sections that stand in this one, those within them included, in the order in which they come; each once.
fn within(section: &Description) -> Vec<&Description> {
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

/// The reference of every key, in Markdown.
pub fn reference_text() -> String {
    let root = Config::description();
    let mut page = format!(
        "# Configuration\n\n{}\n\nUnknown keys are errors. Anchors, aliases and merge keys (`<<`) work, and a top-level key that begins with `x-` is not read. Durations have a unit (`250ms`, `30s`, `5m`, `24h`), and sizes may have one \
         (`512B`, `16KiB`, `1MiB`). `portcullis validate` tells every error at once, with `--print` what counts, and with \
         `--schema` a JSON Schema for editors.\n",
        root.description
    );
    write_table(&mut page, &root);
    for section in within(&root) {
        // Writing to a text does not fail.
        let _written = write!(page, "\n## {}\n\n{}\n", section.name, section.description);
        write_table(&mut page, section);
    }
    page
}

fn write_table(page: &mut String, section: &Description) {
    page.push_str("\n| key | what it means | what stands there | default |\n|---|---|---|---|\n");
    for Key { name, description, form, requirement } in &section.keys {
        let default = match requirement {
            Requirement::Required => "required".to_owned(),
            // A section's own defaults stand with it.
            Requirement::Default(_) if !form.sections.is_empty() => "see there".to_owned(),
            Requirement::Default(default) => format!("`{default}`"),
            Requirement::Optional => String::new(),
        };
        let cells = [description.replace('|', "\\|"), form.summary.replace('|', "\\|"), default];
        let _written = writeln!(page, "| `{name}` | {} |", cells.join(" | "));
    }
}
