//! A provider that stands for many issuers: `{realm}` in its issuer, and the realms that are allowed.

use crate::keys::names::RealmName;
use crate::rules::FullMatchRegex;

/// What stands for a realm's name.
pub const PLACEHOLDER: &str = "{realm}";

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
    Listed(Vec<RealmName>),
    /// Those that this expression matches as a whole.
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
    /// `None` where the text does not have the placeholder once, as a whole segment of a URL's path.
    pub fn parse(text: &str) -> Option<Self> {
        let (before, behind) = text.split_once(PLACEHOLDER)?;
        let (_, below_scheme) = before.split_once("://")?;
        let in_path = below_scheme.contains('/') && !before.contains(['?', '#']);
        let whole = before.ends_with('/') && (behind.is_empty() || behind.starts_with('/'));
        (in_path && whole && !behind.contains(PLACEHOLDER))
            .then(|| Self { before: before.to_owned(), behind: behind.to_owned() })
    }

    /// With this realm.
    pub fn of(&self, realm: &RealmName) -> String {
        format!("{}{realm}{}", self.before, self.behind)
    }

    /// The realm in a text that this template makes.
    pub fn realm_of(&self, text: &str) -> Option<RealmName> {
        RealmName::new(text.strip_prefix(self.before.as_str())?.strip_suffix(self.behind.as_str())?)
    }
}

impl std::fmt::Display for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{PLACEHOLDER}{}", self.before, self.behind)
    }
}
