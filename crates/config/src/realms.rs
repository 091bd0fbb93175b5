//! The realms of a provider whose issuer is a template.

use serde_json::json;
use url::Url;

use super::cursor::{Cursor, Mapping, Read};
use super::forms::text_schema;
use super::section::{Form, FormDescription};
use super::yaml::Yaml;
use super::{AllowedRealms, KeySource, RealmKeys, Realms, SharedRealms, Template};
use portcullis_core::rules::FullMatchRegex;
use portcullis_engine::authorizer::PLACEHOLDER;
use portcullis_engine::keys::names::{MAX_REALM_NAME_BYTES, RealmName};

/// The placeholder as it is in the path of a parsed URL.
const ENCODED_PLACEHOLDER: &str = "%7Brealm%7D";

/// The default number of realms whose keys are cached at once.
pub(super) const DEFAULT_MAX_REALMS: usize = 256;

/// The realms of a provider with several issuers.
#[derive(Debug)]
pub(super) enum MadeRealms {
    /// Each has its own keys.
    Own(Realms),
    /// They share one key set.
    Shared(SharedRealms),
}

/// The realms of a provider; `None` for a provider with one issuer. The URLs of its keys still contain the
/// placeholder, unless the realms share them.
pub(super) fn make_realms(
    allowed: Read<Option<AllowedRealms>>,
    max: Read<usize>,
    mapping: &Mapping<'_>,
    issuer: &str,
    keys: &KeySource,
) -> Read<Option<MadeRealms>> {
    let Some(template) = Template::parse(issuer) else {
        if issuer.contains(PLACEHOLDER) {
            return mapping.refuse_at(
                "issuer",
                "`{realm}` has to be one complete path segment, used once: https://sso.example.com/realms/{realm}",
            );
        }
        return match ["realms", "max_realms"].into_iter().find(|key| mapping.get(key).is_some()) {
            None => Ok(None),
            Some(key) => mapping
                .refuse_at(key, "requires `{realm}` in the issuer: https://sso.example.com/realms/{realm}"),
        };
    };
    if mapping.get("realms").is_none() {
        return mapping.refuse("`realms` is missing: the names of the realms, or a pattern for them");
    }
    let is_shared = match keys {
        KeySource::JwksUri(urls) => !urls.iter().any(|url| {
            [PLACEHOLDER, ENCODED_PLACEHOLDER].iter().any(|placeholder| url.as_str().contains(placeholder))
        }),
        _ => false,
    };
    if is_shared {
        let allowed = allowed?;
        if let (KeySource::JwksUri(urls), Some(allowed)) = (keys, &allowed) {
            check_shared(mapping, &template, allowed, urls)?;
        }
        return allowed
            .map(|allowed| Ok(MadeRealms::Shared(SharedRealms { issuer: template, allowed, most: max? })))
            .transpose();
    }
    let keys = read_realm_keys(mapping, keys)?;
    // An absent value has been reported.
    allowed?
        .map(|allowed| Ok(MadeRealms::Own(Realms { issuer: template, keys, allowed, most: max? })))
        .transpose()
}

/// The names of realms: a list, or a regular expression for complete names.
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
        FormDescription::new("a list of names, or a regular expression for complete names", schema)
    }
}

/// Refuses, or warns of, a key set for all realms that is that of one realm: its keys would verify tokens of the others.
fn check_shared(mapping: &Mapping<'_>, issuer: &Template, allowed: &AllowedRealms, urls: &[Url]) -> Read<()> {
    let one =
        urls.iter().filter_map(|url| issuer.realm_in_path(url.path())).find(|name| allowed.contains(name));
    let Some(one) = one else { return Ok(()) };
    let message = format!(
        "these are the keys of the realm {one}, which would verify tokens of every realm: write `{PLACEHOLDER}` instead of its name"
    );
    match (allowed, mapping.get("jwks_uri")) {
        (AllowedRealms::Listed(_), _) | (_, None) => mapping.refuse_at("jwks_uri", message),
        // The pattern may match a name that is no realm.
        (AllowedRealms::Matching(_), Some(cursor)) => {
            cursor.warn(message);
            Ok(())
        }
    }
}

fn read_realm_keys(mapping: &Mapping<'_>, keys: &KeySource) -> Read<RealmKeys> {
    let text_of =
        |key: &str| mapping.required(key, "the URL of a realm's keys").and_then(|cursor| cursor.text());
    let template = |key: &str| {
        match Template::parse(&text_of(key)?) {
        Some(template) => Ok(template),
        None => mapping.refuse_at(
            key,
            "`{realm}` has to be one complete path segment, once; without it all realms share one key set (`jwks_uri` alone)",
        ),
    }
    };
    match keys {
        KeySource::JwksUri(urls) if urls.len() > 1 => {
            mapping.refuse_at("jwks_uri", "realms have one URL with `{realm}` instead of a list")
        }
        KeySource::JwksUri(_) => template("jwks_uri").map(RealmKeys::JwksUri),
        KeySource::Discovery(_) if mapping.get("discovery_uri").is_some() => {
            template("discovery_uri").map(RealmKeys::Discovery)
        }
        KeySource::Discovery(_) => {
            let issuer = text_of("issuer")?;
            let discovery_url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
            match Template::parse(&discovery_url) {
                Some(template) => Ok(RealmKeys::Discovery(template)),
                None => mapping.refuse_at("issuer", "it cannot be the base of a discovery URL"),
            }
        }
        KeySource::File(_) => mapping
            .refuse_at("jwks_file", "contains the keys of one issuer: realms need a URL with `{realm}`"),
        KeySource::Inline(_) => {
            mapping.refuse_at("jwks", "contains the keys of one issuer: realms need a URL with `{realm}`")
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
