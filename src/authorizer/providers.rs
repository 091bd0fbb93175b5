//! Which provider's rules and keys an issuer's tokens are judged by: issuers that the configuration names one by
//! one, and [realms](super::realms), of which a template stands for many.

use std::collections::{BTreeSet, HashMap};
use std::ops::Deref;
use std::sync::Arc;

use super::realms::{NewRealm, RealmProviders, Tenant};
use crate::clock::Instant;
use crate::config::{AllowedRealms, RefreshPolicy};
use crate::keys::KeyCache;
use crate::validation::provider::Provider;

/// A provider with its keys.
pub struct KeyedProvider {
    /// The rules for its tokens.
    pub provider: Arc<Provider>,
    /// The realm, of a provider that stands for many.
    pub realm: Option<String>,
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

/// Every provider of a configuration.
pub(super) struct Providers {
    exact: HashMap<String, Arc<KeyedProvider>>,
    templates: Vec<Arc<RealmProviders>>,
}

/// Whose tokens an issuer's are.
pub(super) enum Issuer {
    /// One whose keys are there or on their way.
    Held(Lent),
    /// A realm that is allowed and has no keys here.
    New(Box<NewRealm>),
}

/// A provider with its keys, for one request.
pub(super) struct Lent {
    keyed: Arc<KeyedProvider>,
    tenant: Option<Tenant>,
}

impl Lent {
    pub(super) fn of_realm(keyed: Arc<KeyedProvider>, tenant: Tenant) -> Self {
        Self { keyed, tenant: Some(tenant) }
    }

    /// The request that arrived at this time had a token that these keys verified: nobody made its realm up.
    pub(super) fn token_verified(&self, arrived: Instant) {
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

impl Issuer {
    /// The rules for its tokens.
    pub(super) fn provider(&self) -> &Arc<Provider> {
        match self {
            Issuer::Held(lent) => &lent.provider,
            Issuer::New(new) => &new.config().provider,
        }
    }

    /// The realm's name, of a provider that stands for many.
    pub(super) fn realm(&self) -> Option<&str> {
        match self {
            Issuer::Held(lent) => lent.realm.as_deref(),
            Issuer::New(new) => Some(new.name()),
        }
    }
}

impl Providers {
    /// Where two name the same issuer the later one counts; the configuration has refused that.
    pub(super) fn new(exact: Vec<KeyedProvider>, templates: Vec<Arc<RealmProviders>>) -> Self {
        let exact = exact.into_iter().map(|keyed| (keyed.provider.issuer.clone(), Arc::new(keyed))).collect();
        Self { exact, templates }
    }

    /// The provider of this issuer, by exact comparison; else of the first template that has such a realm.
    /// `arrived` is when the request did that names it.
    pub(super) fn of_issuer(&self, issuer: &str, arrived: Instant) -> Option<Issuer> {
        if let Some(keyed) = self.exact.get(issuer) {
            return Some(Issuer::Held(Lent { keyed: Arc::clone(keyed), tenant: None }));
        }
        self.templates.iter().find_map(|realms| RealmProviders::of_issuer(realms, issuer, arrived))
    }

    /// All that have keys or are about to, in no particular order.
    pub(super) fn all(&self) -> Vec<Arc<KeyedProvider>> {
        let realms = self.templates.iter().flat_map(|realms| realms.known());
        self.exact.values().map(Arc::clone).chain(realms).collect()
    }

    /// Every issuer that the configuration names. Those that only match a pattern have no end.
    pub(super) fn issuers(&self) -> BTreeSet<String> {
        let listed = self.templates.iter().flat_map(|template| match &template.realms().allowed {
            AllowedRealms::Listed(names) => {
                names.iter().map(|name| template.realms().issuer.of(name)).collect()
            }
            AllowedRealms::Matching(_) => Vec::new(),
        });
        self.exact.keys().cloned().chain(listed).collect()
    }

    /// Those that stand for many.
    pub(super) fn templates(&self) -> &[Arc<RealmProviders>] {
        &self.templates
    }

    /// Whether every issuer that is named, and that is waited for, has had keys.
    pub(super) fn are_ready(&self) -> bool {
        !self.exact.values().any(|keyed| keyed.is_awaited())
    }
}
