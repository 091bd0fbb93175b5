//! A provider of many issuers that share one key set, such as the tenants of Entra ID: the keys are fetched once, and each
//! realm has only its own rules, which differ in the issuer.
//!
//! The rules of a realm are kept from its first verified token on, so that its verified tokens can be cached. A name that
//! may be made up is not kept.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::keyed::KeyedProvider;
use super::template::SharedRealms;
use crate::keys::names::RealmName;
use crate::validation::provider::Provider;

/// The provider with the realms whose rules are kept.
pub(super) struct SharedProvider {
    /// Its issuer contains the placeholder, so that no token is of it.
    keyed: Arc<KeyedProvider>,
    realms: SharedRealms,
    kept: RwLock<HashMap<String, Arc<KeyedProvider>>>,
}

impl SharedProvider {
    /// `None` for a provider of one issuer.
    pub(super) fn of(keyed: &Arc<KeyedProvider>) -> Option<Self> {
        let realms = keyed.shared.clone()?;
        Some(Self { keyed: Arc::clone(keyed), realms, kept: RwLock::default() })
    }

    /// The provider with the placeholder.
    pub(super) fn keyed(&self) -> &Arc<KeyedProvider> {
        &self.keyed
    }

    /// Its realms.
    pub(super) fn realms(&self) -> &SharedRealms {
        &self.realms
    }

    /// The realm with this issuer, if it is allowed.
    pub(super) fn of_issuer(&self, issuer: &str) -> Option<Arc<KeyedProvider>> {
        let name = self.realms.realm_of(issuer)?;
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        Some(kept.get(name.as_str()).map_or_else(|| self.of_realm(name), Arc::clone))
    }

    fn of_realm(&self, name: RealmName) -> Arc<KeyedProvider> {
        let KeyedProvider { provider, keys, refresh, ready_without_keys, .. } = &*self.keyed;
        let provider = Provider { issuer: self.realms.issuer.of(&name), ..(**provider).clone() };
        Arc::new(KeyedProvider {
            provider: Arc::new(provider),
            realm: Some(name),
            shared: None,
            keys: Arc::clone(keys),
            refresh: refresh.clone(),
            ready_without_keys: *ready_without_keys,
        })
    }

    /// Keeps a realm of which a token was verified. If there are too many, another one is dropped: its cached tokens are
    /// verified again.
    pub(super) fn token_verified(&self, keyed: &Arc<KeyedProvider>) {
        let Some(name) = keyed.realm.as_ref().map(RealmName::as_str) else { return };
        if self.kept.read().unwrap_or_else(PoisonError::into_inner).contains_key(name) {
            return;
        }
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= self.realms.most
            && let Some(other) = kept.keys().next().cloned()
        {
            kept.remove(&other);
        }
        kept.entry(name.to_owned()).or_insert_with(|| Arc::clone(keyed));
    }
}
