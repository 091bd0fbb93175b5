//! A provider with its keys.

use std::sync::Arc;

use crate::keys::names::RealmName;
use crate::keys::{KeyCache, RefreshPolicy};
use crate::validation::provider::Provider;

/// A provider with its keys.
pub struct KeyedProvider {
    /// The rules for its tokens.
    pub provider: Arc<Provider>,
    /// The realm, of a provider that stands for many.
    pub realm: Option<RealmName>,
    /// Its keys; shared with the authorizer of a configuration that was reloaded.
    pub keys: Arc<KeyCache>,
    /// How they are kept fresh.
    pub refresh: RefreshPolicy,
    /// Whether the service is ready without them.
    pub ready_without_keys: bool,
}

impl KeyedProvider {
    /// The name of its keys in metrics and at `/keys`: the provider's, and the realm's behind a slash.
    pub fn key_name(&self) -> String {
        match &self.realm {
            None => self.provider.name.clone(),
            Some(realm) => format!("{}/{realm}", self.provider.name),
        }
    }

    /// Whether the service is not ready because of it. Realms come as their tokens do.
    pub fn is_awaited(&self) -> bool {
        self.realm.is_none() && !self.ready_without_keys && !self.keys.has_keys()
    }
}
