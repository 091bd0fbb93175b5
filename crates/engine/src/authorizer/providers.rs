//! Which provider's rules and keys an issuer's tokens are judged by: issuers that the configuration names one by
//! one, and [realms](super::realms), of which a template stands for many.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::keyed::KeyedProvider;
use super::realms::{Issuer, Lent, RealmProviders};
use super::template::AllowedRealms;
use crate::clock::Instant;

/// Every provider of a configuration.
pub(super) struct Providers {
    exact: HashMap<String, Arc<KeyedProvider>>,
    templates: Vec<Arc<RealmProviders>>,
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
            return Some(Issuer::Held(Lent::of_one(Arc::clone(keyed))));
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
