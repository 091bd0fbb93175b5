//! A provider with its keys, for one request.

use std::ops::Deref;
use std::sync::Arc;

use super::RealmProviders;
use super::table::Usage;
use crate::authorizer::keyed::KeyedProvider;
use crate::authorizer::shared::SharedProvider;
use crate::clock::Instant;

/// A provider with its keys, for one request.
pub(in crate::authorizer) struct ProviderHandle {
    keyed: Arc<KeyedProvider>,
    tenant: Option<Tenant>,
    shared: Option<Arc<SharedProvider>>,
}

impl ProviderHandle {
    /// Of a configured issuer.
    pub(in crate::authorizer) fn of_provider(keyed: Arc<KeyedProvider>) -> Self {
        Self { keyed, tenant: None, shared: None }
    }

    /// Of a realm.
    pub(in crate::authorizer) fn of_realm(keyed: Arc<KeyedProvider>, tenant: Tenant) -> Self {
        Self { keyed, tenant: Some(tenant), shared: None }
    }

    /// Of a realm that shares its keys.
    pub(in crate::authorizer) fn of_shared(keyed: Arc<KeyedProvider>, shared: Arc<SharedProvider>) -> Self {
        Self { keyed, tenant: None, shared: Some(shared) }
    }

    /// Records that these keys verified the token of a request that arrived at this time, so the realm exists.
    pub(in crate::authorizer) fn token_verified(&self, arrived: Instant) {
        if let Some(tenant) = &self.tenant {
            tenant.token_verified(&self.keyed, arrived);
        }
        if let Some(shared) = &self.shared {
            shared.token_verified(&self.keyed);
        }
    }
}

impl Deref for ProviderHandle {
    type Target = KeyedProvider;

    fn deref(&self) -> &KeyedProvider {
        &self.keyed
    }
}

/// The realm of a request.
pub(in crate::authorizer) struct Tenant {
    pub(super) realms: Arc<RealmProviders>,
    pub(super) usage: Arc<Usage>,
}

impl Tenant {
    /// One load and one store, except for the first token.
    pub(in crate::authorizer) fn token_verified(&self, keyed: &Arc<KeyedProvider>, arrived: Instant) {
        let at = self.realms.micros(arrived);
        if self.usage.record_verified(at) {
            self.realms.mark_known(keyed, &self.usage, at);
        }
    }
}
