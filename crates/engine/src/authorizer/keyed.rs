//! A provider with its keys.

use std::sync::Arc;

use super::template::SharedRealms;
use crate::keys::names::RealmName;
use crate::keys::{KeyCache, RefreshPolicy};
use crate::validation::provider::Provider;

/// A provider with its keys.
pub struct KeyedProvider {
    /// The rules for its tokens.
    pub provider: Arc<Provider>,
    /// The realm, if the provider is a template's.
    pub realm: Option<RealmName>,
    /// The realms that share these keys, if the provider has any: its issuer then contains the placeholder.
    pub shared: Option<SharedRealms>,
    /// Its keys, shared with the authorizer of the previous configuration.
    pub keys: Arc<KeyCache>,
    /// The settings of key refresh.
    pub refresh: RefreshPolicy,
    /// Whether the service is ready while it has no keys.
    pub ready_without_keys: bool,
}

impl KeyedProvider {
    /// The name of its keys in metrics and at `/keys`: the provider's, or `PROVIDER/REALM`.
    pub fn key_name(&self) -> String {
        match &self.realm {
            None => self.provider.name.clone(),
            Some(realm) => format!("{}/{realm}", self.provider.name),
        }
    }

    /// Whether the service is not ready because of it. Readiness does not depend on realms.
    pub fn is_awaited(&self) -> bool {
        self.realm.is_none() && !self.ready_without_keys && !self.keys.has_keys()
    }
}
