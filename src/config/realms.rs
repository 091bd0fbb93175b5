//! A provider that stands for many issuers: `{realm}` in its issuer, and the realms that are allowed.

use std::sync::Arc;

use url::Url;

use crate::rules::WholeRegex;
use crate::validation::provider::Provider;

use super::cursor::{Cursor, Mapping};
use super::{KeySource, ProviderConfig};

/// What stands for a realm's name.
pub(super) const PLACEHOLDER: &str = "{realm}";

/// The longest name of a realm, in bytes.
const MAX_NAME_BYTES: usize = 128;
const DEFAULT_MOST: u64 = 256;

/// The realms of a provider that stands for many.
#[derive(Clone, Debug, PartialEq)]
pub struct Realms {
    /// The issuers that it stands for.
    pub issuer: Template,
    /// Where the keys of a realm are.
    pub keys: RealmKeys,
    /// The names that are allowed.
    pub allowed: AllowedRealms,
    /// Realms with a verified token whose keys are held at one time; default 256. Few others have places besides.
    pub most: usize,
}

/// Where the keys of a realm are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RealmKeys {
    /// At this URL.
    JwksUri(Template),
    /// Where the document at this URL says.
    Discovery(Template),
}

/// A text with a realm's name in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    before: String,
    behind: String,
}

/// The names of realms that are allowed.
#[derive(Clone, Debug, PartialEq)]
pub enum AllowedRealms {
    /// These; never empty.
    Listed(Vec<String>),
    /// Those that this expression matches as a whole.
    Matching(WholeRegex),
}

impl AllowedRealms {
    /// Whether this realm is allowed. What cannot be a segment of a URL never is, whatever the expression says.
    pub fn contains(&self, name: &str) -> bool {
        is_name(name)
            && match self {
                AllowedRealms::Listed(names) => names.iter().any(|one| one == name),
                AllowedRealms::Matching(pattern) => pattern.matches(name),
            }
    }
}

/// One segment of a path, of unreserved characters alone (RFC 3986 §2.3), that leads nowhere else.
fn is_name(name: &str) -> bool {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    !matches!(name, "" | "." | "..") && name.len() <= MAX_NAME_BYTES && name.bytes().all(unreserved)
}

impl Template {
    /// `None` where the text does not have the placeholder once, as a whole segment of a URL's path.
    fn parse(text: &str) -> Option<Self> {
        let (before, behind) = text.split_once(PLACEHOLDER)?;
        let (_, below_scheme) = before.split_once("://")?;
        let in_path = below_scheme.contains('/') && !before.contains(['?', '#']);
        let whole = before.ends_with('/') && (behind.is_empty() || behind.starts_with('/'));
        (in_path && whole && !behind.contains(PLACEHOLDER))
            .then(|| Self { before: before.to_owned(), behind: behind.to_owned() })
    }

    /// With this realm.
    pub fn of(&self, realm: &str) -> String {
        format!("{}{realm}{}", self.before, self.behind)
    }

    /// The realm in a text that this template makes.
    pub fn realm_of<'t>(&self, text: &'t str) -> Option<&'t str> {
        let realm = text.strip_prefix(self.before.as_str())?.strip_suffix(self.behind.as_str())?;
        is_name(realm).then_some(realm)
    }
}

impl std::fmt::Display for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{PLACEHOLDER}{}", self.before, self.behind)
    }
}

impl ProviderConfig {
    /// The provider of one realm, which has to be an allowed one.
    pub fn of_realm(&self, realms: &Realms, name: &str) -> ProviderConfig {
        let provider = Provider { issuer: realms.issuer.of(name), ..(*self.provider).clone() };
        let keys = match &realms.keys {
            RealmKeys::JwksUri(url) => url.of(name).parse::<Url>().ok().map(KeySource::JwksUri),
            RealmKeys::Discovery(url) => url.of(name).parse::<Url>().ok().map(KeySource::Discovery),
        };
        ProviderConfig {
            provider: Arc::new(provider),
            // The template has been tried with a name; every name is as good in a URL.
            keys: keys.unwrap_or_else(|| self.keys.clone()),
            http: self.http.clone(),
            refresh: self.refresh.clone(),
            realms: None,
            ready_without_keys: self.ready_without_keys,
        }
    }
}

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
            let name = element.text()?;
            if is_name(&name) {
                return Some(name);
            }
            element.refuse(format!(
                "expected a realm's name: at most {MAX_NAME_BYTES} letters, digits, `-`, `.`, `_` and `~`"
            ))
        };
        let empty = "an empty list allows no realm: name at least one";
        return cursor.list(empty, name, |a, b| a == b).map(AllowedRealms::Listed);
    }
    match WholeRegex::parse(&cursor.text()?) {
        Ok(pattern) => Some(AllowedRealms::Matching(pattern)),
        Err(error) => cursor.refuse(format!("expected a list of realms, or a regular expression: {error}")),
    }
}
