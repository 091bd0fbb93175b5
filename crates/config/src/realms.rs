//! The realms of a provider that stands for many issuers.

use super::cursor::{Cursor, Mapping};
use super::{AllowedRealms, KeySource, RealmKeys, Realms, Template};
use portcullis_core::rules::WholeRegex;
use portcullis_engine::authorizer::PLACEHOLDER;
use portcullis_engine::keys::names::{MAX_REALM_NAME_BYTES, RealmName};

const DEFAULT_MOST: u64 = 256;

/// The realms of a provider; `Some(None)` of one that stands for itself. The URLs of its keys have been read as
/// they stand, with the placeholder in them.
pub(super) fn read_realms(mapping: &Mapping<'_>, issuer: &str, keys: &KeySource) -> Option<Option<Realms>> {
    let allowed = mapping.optional("realms", |cursor| read_allowed(&cursor));
    let most = mapping.or("max_realms", DEFAULT_MOST, |cursor| cursor.integer(1, 10_000));
    let Some(template) = Template::parse(issuer) else {
        if issuer.contains(PLACEHOLDER) {
            return mapping.get("issuer")?.refuse(
                "`{realm}` stands for one whole segment of the path, once: https://sso.example.com/realms/{realm}",
            );
        }
        return match ["realms", "max_realms"].into_iter().find_map(|key| mapping.get(key)) {
            None => Some(None),
            Some(written) => {
                written.refuse("goes with `{realm}` in the issuer: https://sso.example.com/realms/{realm}")
            }
        };
    };
    if mapping.get("realms").is_none() {
        return mapping.refuse(
            "`realms` is missing: the realms that `{realm}` stands for, or a pattern for their names",
        );
    }
    let keys = read_realm_keys(mapping, keys)?;
    Some(Some(Realms { issuer: template, keys, allowed: allowed??, most: usize::try_from(most?).ok()? }))
}

fn read_realm_keys(mapping: &Mapping<'_>, keys: &KeySource) -> Option<RealmKeys> {
    let template = |key: &str| {
        let written = mapping.get(key)?;
        match Template::parse(&written.text()?) {
            Some(template) => Some(template),
            None => written.refuse(
                "needs `{realm}` as one whole segment of its path, once: each realm has keys of its own",
            ),
        }
    };
    match keys {
        KeySource::JwksUri(_) => template("jwks_uri").map(RealmKeys::JwksUri),
        KeySource::Discovery(_) if mapping.get("discovery_uri").is_some() => {
            template("discovery_uri").map(RealmKeys::Discovery)
        }
        KeySource::Discovery(_) => {
            let issuer = mapping.get("issuer")?.text()?;
            let below = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
            Template::parse(&below).map(RealmKeys::Discovery)
        }
        KeySource::File(_) => {
            mapping.get("jwks_file")?.refuse("has the keys of one issuer: realms need a URL with `{realm}`")
        }
        KeySource::Inline(_) => {
            mapping.get("jwks")?.refuse("has the keys of one issuer: realms need a URL with `{realm}`")
        }
    }
}

fn read_allowed(cursor: &Cursor<'_>) -> Option<AllowedRealms> {
    if cursor.is_list() {
        let name = |element: &Cursor<'_>| {
            RealmName::new(&element.text()?).or_else(|| {
                element.refuse(format!(
                    "expected a realm's name: at most {MAX_REALM_NAME_BYTES} letters, digits, `-`, `.`, `_` and `~`"
                ))
            })
        };
        let empty = "an empty list allows no realm: name at least one";
        return cursor.list(empty, name, |a, b| a == b).map(AllowedRealms::Listed);
    }
    match WholeRegex::parse(&cursor.text()?) {
        Ok(pattern) => Some(AllowedRealms::Matching(pattern)),
        Err(error) => cursor.refuse(format!("expected a list of realms, or a regular expression: {error}")),
    }
}
