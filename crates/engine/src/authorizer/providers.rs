//! Finds the provider of an issuer: one that the configuration names, or a [realm](super::realms) of a template.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::keyed::KeyedProvider;
use super::realms::{Issuer, ProviderHandle, RealmProviders};
use super::template::AllowedRealms;
use crate::clock::Instant;

/// Every provider of a configuration.
pub(super) struct Providers {
    exact: HashMap<String, Arc<KeyedProvider>>,
    templates: Vec<Arc<RealmProviders>>,
}

impl Providers {
    /// If two have the same issuer, the later one is used; the configuration rejects that.
    pub(super) fn new(exact: Vec<KeyedProvider>, templates: Vec<Arc<RealmProviders>>) -> Self {
        let exact = exact.into_iter().map(|keyed| (keyed.provider.issuer.clone(), Arc::new(keyed))).collect();
        Self { exact, templates }
    }

    /// The provider with exactly this issuer, else the first template with such a realm. `arrived` is when the
    /// request was received.
    pub(super) fn of_issuer(&self, issuer: &str, arrived: Instant) -> Option<Issuer> {
        if let Some(keyed) = self.exact.get(issuer) {
            return Some(Issuer::Loaded(ProviderHandle::of_provider(Arc::clone(keyed))));
        }
        self.templates.iter().find_map(|realms| RealmProviders::of_issuer(realms, issuer, arrived))
    }

    /// All that are loaded, in no particular order.
    pub(super) fn all(&self) -> Vec<Arc<KeyedProvider>> {
        let realms = self.templates.iter().flat_map(|realms| realms.known());
        self.exact.values().map(Arc::clone).chain(realms).collect()
    }

    /// Every issuer that the configuration names, without those that only match a pattern.
    pub(super) fn issuers(&self) -> BTreeSet<String> {
        let listed = self.templates.iter().flat_map(|template| match &template.realms().allowed {
            AllowedRealms::Listed(names) => {
                names.iter().map(|name| template.realms().issuer.of(name)).collect()
            }
            AllowedRealms::Matching(_) => Vec::new(),
        });
        self.exact.keys().cloned().chain(listed).collect()
    }

    /// The templates.
    pub(super) fn templates(&self) -> &[Arc<RealmProviders>] {
        &self.templates
    }

    /// Whether every configured issuer that readiness depends on has had keys.
    pub(super) fn are_ready(&self) -> bool {
        !self.exact.values().any(|keyed| keyed.is_awaited())
    }
}
