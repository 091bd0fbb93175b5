//! A provider with its keys, lent to one request.

use std::ops::Deref;
use std::sync::Arc;

use super::RealmProviders;
use super::held::Uses;
use crate::authorizer::keyed::KeyedProvider;
use crate::clock::Instant;

/// A provider with its keys, for one request.
pub(in crate::authorizer) struct Lent {
    keyed: Arc<KeyedProvider>,
    tenant: Option<Tenant>,
}

impl Lent {
    /// Of an issuer that is named.
    pub(in crate::authorizer) fn of_one(keyed: Arc<KeyedProvider>) -> Self {
        Self { keyed, tenant: None }
    }

    /// Of a realm.
    pub(in crate::authorizer) fn of_realm(keyed: Arc<KeyedProvider>, tenant: Tenant) -> Self {
        Self { keyed, tenant: Some(tenant) }
    }

    /// The request that arrived at this time had a token that these keys verified: nobody made its realm up.
    pub(in crate::authorizer) fn token_verified(&self, arrived: Instant) {
        if let Some(tenant) = &self.tenant {
            tenant.token_verified(&self.keyed, arrived);
        }
    }
}

impl Deref for Lent {
    type Target = KeyedProvider;

    fn deref(&self) -> &KeyedProvider {
        &self.keyed
    }
}

/// The realm of a request whose keys have been lent.
pub(in crate::authorizer) struct Tenant {
    pub(super) realms: Arc<RealmProviders>,
    pub(super) uses: Arc<Uses>,
}

impl Tenant {
    /// One load and one store, but for the first token.
    pub(in crate::authorizer) fn token_verified(&self, keyed: &Arc<KeyedProvider>, arrived: Instant) {
        let at = self.realms.micros(arrived);
        if self.uses.verify(at) {
            self.realms.become_known(keyed, &self.uses, at);
        }
    }
}
