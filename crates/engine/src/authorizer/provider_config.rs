//! The configuration of one provider.

use std::path::PathBuf;
use std::sync::Arc;

use url::Url;

use super::template::{RealmKeys, Realms, SharedRealms};
use crate::keys::names::RealmName;
use crate::keys::{IssuerHttp, RefreshPolicy};
use crate::validation::key_set::KeySet;
use crate::validation::provider::Provider;

/// A provider's rules, the source of its keys, and the settings of their refresh.
#[derive(Clone, Debug)]
pub struct ProviderConfig {
    /// The rules for its tokens.
    pub provider: Arc<Provider>,
    /// The source of its keys.
    pub keys: KeySource,
    /// HTTP settings of the source.
    pub http: IssuerHttp,
    /// The settings of key refresh.
    pub refresh: RefreshPolicy,
    /// The realms, if it is a template: then `keys` and the provider's issuer contain the placeholder.
    pub realms: Option<Realms>,
    /// The realms, if they share one key set: then the provider's issuer contains the placeholder, and `keys` does not.
    pub shared: Option<SharedRealms>,
    /// Whether the service is ready while this provider has had no keys yet; default false.
    pub ready_without_keys: bool,
}

/// The source of a provider's keys.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// The key set's URLs (RFC 7517 §5), asked in this order if one fails; never empty.
    JwksUri(Vec<Url>),
    /// The URL of a discovery document that names the key set (OpenID Connect Discovery §4, RFC 8414 §3).
    Discovery(Url),
    /// A file, reloaded when it changes.
    File(PathBuf),
    /// Keys in the configuration; the only source of shared secrets.
    Inline(Arc<KeySet>),
}

impl KeySource {
    /// The URLs that are fetched; none for a file or inline keys.
    pub fn urls(&self) -> &[Url] {
        match self {
            KeySource::JwksUri(urls) => urls,
            KeySource::Discovery(url) => std::slice::from_ref(url),
            KeySource::File(_) | KeySource::Inline(_) => &[],
        }
    }
}

impl ProviderConfig {
    /// Whether its issuer contains the placeholder of a realm.
    pub fn has_realms(&self) -> bool {
        self.realms.is_some() || self.shared.is_some()
    }

    /// The allowed realm that has this issuer, and the rules for its tokens.
    pub fn realm_of(&self, issuer: &str) -> Option<(RealmName, Arc<Provider>)> {
        let (template, allowed) = match (&self.realms, &self.shared) {
            (Some(realms), _) => (&realms.issuer, &realms.allowed),
            (None, Some(shared)) => (&shared.issuer, &shared.allowed),
            (None, None) => return None,
        };
        let name = template.realm_of(issuer).filter(|name| allowed.contains(name))?;
        let provider = Provider { issuer: template.of(&name), ..(*self.provider).clone() };
        Some((name, Arc::new(provider)))
    }

    /// The provider of one realm, which must be an allowed one.
    pub fn of_realm(&self, realms: &Realms, name: &RealmName) -> ProviderConfig {
        let provider = Provider { issuer: realms.issuer.of(name), ..(*self.provider).clone() };
        let keys = match &realms.keys {
            RealmKeys::JwksUri(url) => {
                url.of(name).parse::<Url>().ok().map(|url| KeySource::JwksUri(vec![url]))
            }
            RealmKeys::Discovery(url) => url.of(name).parse::<Url>().ok().map(KeySource::Discovery),
        };
        ProviderConfig {
            provider: Arc::new(provider),
            // The template was checked with one name, and every name is valid in a URL.
            keys: keys.unwrap_or_else(|| self.keys.clone()),
            http: self.http.clone(),
            refresh: self.refresh.clone(),
            realms: None,
            shared: None,
            ready_without_keys: self.ready_without_keys,
        }
    }
}
