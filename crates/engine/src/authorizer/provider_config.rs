//! What one provider is configured with.

use std::path::PathBuf;
use std::sync::Arc;

use url::Url;

use super::template::{RealmKeys, Realms};
use crate::keys::names::RealmName;
use crate::keys::{IssuerHttp, RefreshPolicy};
use crate::validation::key_set::KeySet;
use crate::validation::provider::Provider;

/// A provider's rules, where its keys are, and how they are kept fresh.
#[derive(Clone, Debug)]
pub struct ProviderConfig {
    /// The rules for its tokens.
    pub provider: Arc<Provider>,
    /// Where its keys are.
    pub keys: KeySource,
    /// How that place is reached.
    pub http: IssuerHttp,
    /// How they are kept fresh.
    pub refresh: RefreshPolicy,
    /// The issuers that it stands for, where those are many: then `keys` and the provider's issuer have the
    /// placeholder in them.
    pub realms: Option<Realms>,
    /// Whether the service counts as ready while this provider has had no keys yet; default false.
    pub ready_without_keys: bool,
}

/// Where a provider's keys are.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// The key set's URL (RFC 7517 §5).
    JwksUri(Url),
    /// The URL of a discovery document that names the key set (OpenID Connect Discovery §4, RFC 8414 §3).
    Discovery(Url),
    /// A file, read again when it changes.
    File(PathBuf),
    /// Written into the configuration, and the only place where a shared secret may stand.
    Inline(Arc<KeySet>),
}

impl ProviderConfig {
    /// The provider of one realm, which has to be an allowed one.
    pub fn of_realm(&self, realms: &Realms, name: &RealmName) -> ProviderConfig {
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
