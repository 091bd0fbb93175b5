//! The realms of a provider that stands for many issuers.

use serde_json::json;

use super::cursor::{Cursor, Mapping, Read};
use super::forms::text_schema;
use super::section::{Form, FormDescription};
use super::yaml::Yaml;
use super::{AllowedRealms, KeySource, RealmKeys, Realms, Template};
use portcullis_core::rules::FullMatchRegex;
use portcullis_engine::authorizer::PLACEHOLDER;
use portcullis_engine::keys::names::{MAX_REALM_NAME_BYTES, RealmName};

/// Realms whose keys are held at one time, by default.
pub(super) const DEFAULT_MOST: usize = 256;

/// The realms of a provider; `None` of one that stands for itself. The URLs of its keys have been read as
/// they stand, with the placeholder in them.
pub(super) fn make_realms(
    allowed: Read<Option<AllowedRealms>>,
    max: Read<usize>,
    mapping: &Mapping<'_>,
    issuer: &str,
    keys: &KeySource,
) -> Read<Option<Realms>> {
    let Some(template) = Template::parse(issuer) else {
        if issuer.contains(PLACEHOLDER) {
            return mapping.refuse_at(
                "issuer",
                "`{realm}` stands for one whole segment of the path, once: https://sso.example.com/realms/{realm}",
            );
        }
        return match ["realms", "max_realms"].into_iter().find(|key| mapping.get(key).is_some()) {
            None => Ok(None),
            Some(key) => mapping
                .refuse_at(key, "goes with `{realm}` in the issuer: https://sso.example.com/realms/{realm}"),
        };
    };
    if mapping.get("realms").is_none() {
        return mapping.refuse(
            "`realms` is missing: the realms that `{realm}` stands for, or a pattern for their names",
        );
    }
    let keys = read_realm_keys(mapping, keys)?;
    // Where it is not there, that was told.
    allowed?.map(|allowed| Ok(Realms { issuer: template, keys, allowed, most: max? })).transpose()
}

/// The names of realms: a list, or an expression for whole names.
pub(super) struct RealmNames;

impl Form for RealmNames {
    type Value = AllowedRealms;

    fn read(&self, cursor: &Cursor<'_>) -> Read<AllowedRealms> {
        read_allowed(cursor)
    }

    fn print(&self, value: &AllowedRealms) -> Yaml {
        match value {
            AllowedRealms::Listed(names) => Yaml::List(names.iter().map(Yaml::text).collect()),
            AllowedRealms::Matching(pattern) => Yaml::text(pattern.source()),
        }
    }

    fn describe(&self) -> FormDescription {
        let schema = json!({"anyOf": [text_schema(), {"type": "array", "items": text_schema()}]});
        FormDescription::new("a list of names, or a regular expression for their whole names", schema)
    }
}

fn read_realm_keys(mapping: &Mapping<'_>, keys: &KeySource) -> Read<RealmKeys> {
    let written =
        |key: &str| mapping.required(key, "where the keys of a realm are").and_then(|cursor| cursor.text());
    let template = |key: &str| match Template::parse(&written(key)?) {
        Some(template) => Ok(template),
        None => mapping.refuse_at(
            key,
            "needs `{realm}` as one whole segment of its path, once: each realm has keys of its own",
        ),
    };
    match keys {
        KeySource::JwksUri(_) => template("jwks_uri").map(RealmKeys::JwksUri),
        KeySource::Discovery(_) if mapping.get("discovery_uri").is_some() => {
            template("discovery_uri").map(RealmKeys::Discovery)
        }
        KeySource::Discovery(_) => {
            let issuer = written("issuer")?;
            let below = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
            match Template::parse(&below) {
                Some(template) => Ok(RealmKeys::Discovery(template)),
                None => mapping.refuse_at("issuer", "keys cannot be discovered below it"),
            }
        }
        KeySource::File(_) => {
            mapping.refuse_at("jwks_file", "has the keys of one issuer: realms need a URL with `{realm}`")
        }
        KeySource::Inline(_) => {
            mapping.refuse_at("jwks", "has the keys of one issuer: realms need a URL with `{realm}`")
        }
    }
}

fn read_allowed(cursor: &Cursor<'_>) -> Read<AllowedRealms> {
    if cursor.is_list() {
        let name = |element: &Cursor<'_>| {
            match RealmName::new(&element.text()?) {
                Some(name) => Ok(name),
                None => element.refuse(format!(
                    "expected a realm's name: at most {MAX_REALM_NAME_BYTES} letters, digits, `-`, `.`, `_` and `~`"
                )),
            }
        };
        let empty = "an empty list allows no realm: name at least one";
        return cursor.list(empty, name, |a, b| a == b).map(AllowedRealms::Listed);
    }
    match FullMatchRegex::parse(&cursor.text()?) {
        Ok(pattern) => Ok(AllowedRealms::Matching(pattern)),
        Err(error) => cursor.refuse(format!("expected a list of realms, or a regular expression: {error}")),
    }
}
