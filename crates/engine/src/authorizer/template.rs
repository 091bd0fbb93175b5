//! Templates: providers with `{realm}` in their issuer, and the allowed realms.

use crate::decision::REALM_PLACEHOLDER;
use crate::keys::names::RealmName;
use crate::rules::FullMatchRegex;

/// The placeholder of a realm's name.
pub const PLACEHOLDER: &str = REALM_PLACEHOLDER;

/// The realms of a template.
#[derive(Clone, Debug, PartialEq)]
pub struct Realms {
    /// The issuer.
    pub issuer: Template,
    /// The source of a realm's keys.
    pub keys: RealmKeys,
    /// The allowed names.
    pub allowed: AllowedRealms,
    /// Realms with a verified token whose keys may be in memory at the same time; default 256. A few others are held
    /// in addition.
    pub most: usize,
}

/// The realms of a provider whose issuers share one key set: its keys are fetched once, for all of them.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedRealms {
    /// The issuer.
    pub issuer: Template,
    /// The allowed names.
    pub allowed: AllowedRealms,
    /// The most realms that are kept in memory; default 256.
    pub most: usize,
}

impl SharedRealms {
    /// The allowed realm that has this issuer.
    pub fn realm_of(&self, issuer: &str) -> Option<RealmName> {
        self.issuer.realm_of(issuer).filter(|name| self.allowed.contains(name))
    }
}

/// The source of a realm's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RealmKeys {
    /// The key set's URL.
    JwksUri(Template),
    /// The discovery document's URL.
    Discovery(Template),
}

/// A text with the placeholder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    prefix: String,
    suffix: String,
}

/// The allowed names of realms.
#[derive(Clone, Debug, PartialEq)]
pub enum AllowedRealms {
    /// These; never empty.
    Listed(Vec<RealmName>),
    /// Names that match this expression completely.
    Matching(FullMatchRegex),
}

impl AllowedRealms {
    /// Whether this realm is allowed.
    pub fn contains(&self, name: &RealmName) -> bool {
        match self {
            AllowedRealms::Listed(names) => names.contains(name),
            AllowedRealms::Matching(pattern) => pattern.matches(name.as_str()),
        }
    }
}

impl Template {
    /// `None` unless the text has the placeholder exactly once, as a complete segment of a URL's path.
    pub fn parse(text: &str) -> Option<Self> {
        let (prefix, suffix) = text.split_once(PLACEHOLDER)?;
        let (_, after_scheme) = prefix.split_once("://")?;
        let in_path = after_scheme.contains('/') && !prefix.contains(['?', '#']);
        let is_segment = prefix.ends_with('/') && (suffix.is_empty() || suffix.starts_with('/'));
        (in_path && is_segment && !suffix.contains(PLACEHOLDER))
            .then(|| Self { prefix: prefix.to_owned(), suffix: suffix.to_owned() })
    }

    /// The text for this realm.
    pub fn of(&self, realm: &RealmName) -> String {
        format!("{}{realm}{}", self.prefix, self.suffix)
    }

    /// What stands at the place of the realm in the path of another URL, whatever its host and the rest of its path.
    pub fn realm_in_path(&self, path: &str) -> Option<RealmName> {
        let (_, after_scheme) = self.prefix.split_once("://")?;
        let before = after_scheme.find('/').and_then(|slash| after_scheme.get(slash..))?;
        let segment = path.strip_prefix(before)?.split('/').next()?;
        RealmName::new(segment)
    }

    /// The realm in a text of this template.
    pub fn realm_of(&self, text: &str) -> Option<RealmName> {
        RealmName::new(text.strip_prefix(self.prefix.as_str())?.strip_suffix(self.suffix.as_str())?)
    }
}

impl std::fmt::Display for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{PLACEHOLDER}{}", self.prefix, self.suffix)
    }
}
