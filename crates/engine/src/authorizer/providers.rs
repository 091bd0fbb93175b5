//! Finds the provider of an issuer: one that the configuration names, or a [realm](super::realms) of a template.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::keyed::KeyedProvider;
use super::realms::{Issuer, ProviderHandle, RealmProviders};
use super::shared::SharedProvider;
use super::template::{AllowedRealms, Template};
use crate::clock::Instant;
use crate::validation::provider::SelectedBy;

/// Every provider of a configuration.
pub(super) struct Providers {
    exact: HashMap<String, Arc<KeyedProvider>>,
    /// Those whose issuers share one key set.
    shared: Vec<Arc<SharedProvider>>,
    templates: Vec<Arc<RealmProviders>>,
}

impl Providers {
    /// If two have the same issuer, the later one is used; the configuration rejects that.
    pub(super) fn new(exact: Vec<KeyedProvider>, templates: Vec<Arc<RealmProviders>>) -> Self {
        let (shared, exact): (Vec<_>, Vec<_>) =
            exact.into_iter().map(Arc::new).partition(|keyed: &Arc<KeyedProvider>| keyed.shared.is_some());
        let shared = shared.iter().filter_map(SharedProvider::of).map(Arc::new).collect();
        let exact = exact.into_iter().map(|keyed| (keyed.provider.issuer.clone(), keyed)).collect();
        Self { exact, shared, templates }
    }

    /// The provider with exactly this issuer, else the first one or the first template with such a realm. `arrived` is when the
    /// request was received.
    pub(super) fn of_issuer(&self, issuer: &str, arrived: Instant) -> Option<Issuer> {
        if let Some(keyed) = self.exact.get(issuer) {
            return Some(Issuer::Loaded(ProviderHandle::of_provider(Arc::clone(keyed))));
        }
        let shared = self.shared.iter().find_map(|shared| {
            let keyed = shared.of_issuer(issuer)?;
            Some(Issuer::Loaded(ProviderHandle::of_shared(keyed, Arc::clone(shared))))
        });
        shared.or_else(|| {
            self.templates.iter().find_map(|realms| RealmProviders::of_issuer(realms, issuer, arrived))
        })
    }

    /// All that are loaded, in no particular order.
    pub(super) fn all(&self) -> Vec<Arc<KeyedProvider>> {
        let realms = self.templates.iter().flat_map(|realms| realms.known());
        let shared = self.shared.iter().map(|shared| Arc::clone(shared.keyed()));
        self.exact.values().map(Arc::clone).chain(shared).chain(realms).collect()
    }

    /// Every issuer that the configuration names, without those that only match a pattern, and without trust domains, which
    /// issue no tokens to clients.
    pub(super) fn issuers(&self) -> BTreeSet<String> {
        let listed = |issuer: &Template, allowed: &AllowedRealms| match allowed {
            AllowedRealms::Listed(names) => names.iter().map(|name| issuer.of(name)).collect(),
            AllowedRealms::Matching(_) => Vec::new(),
        };
        let of_templates = self.templates.iter().map(|template| template.realms());
        let of_templates = of_templates.flat_map(|realms| listed(&realms.issuer, &realms.allowed));
        let of_shared = self.shared.iter().map(|shared| shared.realms());
        let of_shared = of_shared.flat_map(|realms| listed(&realms.issuer, &realms.allowed));
        let is_issuer = |keyed: &&Arc<KeyedProvider>| keyed.provider.selected_by == SelectedBy::Issuer;
        let exact = self.exact.values().filter(is_issuer).map(|keyed| keyed.provider.issuer.clone());
        exact.chain(of_templates).chain(of_shared).collect()
    }

    /// The templates.
    pub(super) fn templates(&self) -> &[Arc<RealmProviders>] {
        &self.templates
    }

    /// Whether every configured issuer that readiness depends on has had keys.
    pub(super) fn are_ready(&self) -> bool {
        let shared = self.shared.iter().map(|shared| shared.keyed());
        !self.exact.values().chain(shared).any(|keyed| keyed.is_awaited())
    }
}
