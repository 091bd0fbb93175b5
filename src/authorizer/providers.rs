//! Which provider's rules and keys an issuer's tokens are judged by: issuers that the configuration names one by
//! one, and realms, of which a template stands for many.
//!
//! The keys of a realm are fetched from its first token on, and only if the configuration allows its name. A
//! realm counts as known once its keys have been had; until then it is on probation, and few are at one time:
//! names that somebody makes up neither push known realms out nor cost more than a first fetch now and then.
//! Least recently used realms go when there are too many.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::clock::{self, Instant};
use crate::config::{AllowedRealms, ProviderConfig, Realms, RefreshPolicy};
use crate::keys::KeyCache;
use crate::validation::provider::Provider;

/// Realms that may be on probation at one time, and first fetches that may start in a burst.
const MAX_ON_PROBATION: usize = 16;

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
}

impl KeyedProvider {
    /// The name of its keys in metrics and at `/keys`: the provider's, and the realm's behind a slash.
    pub fn key_name(&self) -> String {
        match &self.realm {
            None => self.provider.name.clone(),
            Some(realm) => format!("{}/{realm}", self.provider.name),
        }
    }
}

/// Makes the keys of a realm from its own configuration; `None` where that cannot be done.
pub type OpenRealm = Arc<dyn Fn(&ProviderConfig, &str) -> Option<Arc<KeyCache>> + Send + Sync>;

/// Every provider of a configuration.
pub(super) struct Providers {
    exact: HashMap<String, Arc<KeyedProvider>>,
    templates: Vec<Arc<RealmProviders>>,
}

/// Whose tokens an issuer's are.
pub(super) enum Issuer {
    /// One whose keys are there or on their way.
    Known(Arc<KeyedProvider>),
    /// A realm that is allowed and has had no token yet.
    New(Box<NewRealm>),
}

/// A realm without keys.
pub(super) struct NewRealm {
    realms: Arc<RealmProviders>,
    config: ProviderConfig,
    name: String,
}

impl Issuer {
    /// The rules for its tokens.
    pub(super) fn provider(&self) -> &Arc<Provider> {
        match self {
            Issuer::Known(keyed) => &keyed.provider,
            Issuer::New(new) => &new.config.provider,
        }
    }

    /// The realm's name, of a provider that stands for many.
    pub(super) fn realm(&self) -> Option<&str> {
        match self {
            Issuer::Known(keyed) => keyed.realm.as_deref(),
            Issuer::New(new) => Some(&new.name),
        }
    }

    /// The keys, of a token that has passed the screen: those of a new realm begin to be fetched. `None` where
    /// too many realms are new at this time.
    pub(super) fn keyed(self) -> Option<Arc<KeyedProvider>> {
        match self {
            Issuer::Known(keyed) => Some(keyed),
            Issuer::New(new) => {
                let NewRealm { realms, config, name } = *new;
                realms.open(&config, name)
            }
        }
    }
}

impl Providers {
    /// Where two name the same issuer the later one counts; the configuration has refused that.
    pub(super) fn new(exact: Vec<KeyedProvider>, templates: Vec<RealmProviders>) -> Self {
        let exact = exact.into_iter().map(|keyed| (keyed.provider.issuer.clone(), Arc::new(keyed))).collect();
        Self { exact, templates: templates.into_iter().map(Arc::new).collect() }
    }

    /// The provider of this issuer, by exact comparison; else of the first template that has such a realm.
    pub(super) fn of_issuer(&self, issuer: &str) -> Option<Issuer> {
        if let Some(keyed) = self.exact.get(issuer) {
            return Some(Issuer::Known(Arc::clone(keyed)));
        }
        self.templates.iter().find_map(|realms| RealmProviders::of_issuer(realms, issuer))
    }

    /// All that have keys or are about to, in no particular order.
    pub(super) fn all(&self) -> Vec<Arc<KeyedProvider>> {
        let realms = self.templates.iter().flat_map(|realms| realms.known());
        self.exact.values().map(Arc::clone).chain(realms).collect()
    }

    /// Every issuer that the configuration names. Those that only match a pattern have no end.
    pub(super) fn issuers(&self) -> BTreeSet<String> {
        let listed = self.templates.iter().flat_map(|realms| match &realms.realms.allowed {
            AllowedRealms::Listed(names) => names.iter().map(|name| realms.realms.issuer.of(name)).collect(),
            AllowedRealms::Matching(_) => Vec::new(),
        });
        self.exact.keys().cloned().chain(listed).collect()
    }

    /// Those that stand for many.
    pub(super) fn templates(&self) -> &[Arc<RealmProviders>] {
        &self.templates
    }

    /// Whether every issuer that is named has had keys. Realms come as their tokens do.
    pub(super) fn are_ready(&self) -> bool {
        self.exact.values().all(|keyed| keyed.keys.has_keys())
    }
}

/// A provider that stands for many, with the realms that have had tokens.
pub struct RealmProviders {
    template: ProviderConfig,
    realms: Realms,
    open: OpenRealm,
    known: RwLock<HashMap<String, KnownRealm>>,
    /// Counts uses, so that the least recent one can be told.
    uses: AtomicU64,
    probation: Mutex<Probation>,
}

struct KnownRealm {
    keyed: Arc<KeyedProvider>,
    last_use: AtomicU64,
}

/// Realms whose first keys are on their way, and how many more may come.
struct Probation {
    realms: HashMap<String, Arc<KeyedProvider>>,
    /// First fetches that may start now; one more comes with each `min_spacing`.
    budget: usize,
    filled: Instant,
}

impl RealmProviders {
    /// A template with the realms that a configuration before this one knew.
    pub fn new(template: ProviderConfig, realms: Realms, open: OpenRealm, known: Vec<KeyedProvider>) -> Self {
        let known = known.into_iter().filter_map(|keyed| {
            let name = keyed.realm.clone()?;
            Some((name, KnownRealm { keyed: Arc::new(keyed), last_use: AtomicU64::new(0) }))
        });
        let probation =
            Probation { realms: HashMap::new(), budget: MAX_ON_PROBATION, filled: clock::monotonic() };
        Self {
            template,
            realms,
            open,
            known: RwLock::new(known.collect()),
            uses: AtomicU64::new(1),
            probation: Mutex::new(probation),
        }
    }

    /// What it was configured with.
    pub fn template(&self) -> &ProviderConfig {
        &self.template
    }

    /// The realms whose keys have been had, and those on probation.
    pub fn known(&self) -> Vec<Arc<KeyedProvider>> {
        let mut all: Vec<_> = self.read().values().map(|known| Arc::clone(&known.keyed)).collect();
        all.extend(self.probation().realms.values().map(Arc::clone));
        all
    }

    fn of_issuer(this: &Arc<Self>, issuer: &str) -> Option<Issuer> {
        let name = this.realms.issuer.realm_of(issuer)?;
        if let Some(known) = this.read().get(name) {
            known.last_use.store(this.uses.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
            return Some(Issuer::Known(Arc::clone(&known.keyed)));
        }
        if !this.realms.allowed.contains(name) {
            return None;
        }
        if let Some(keyed) = this.probation().realms.get(name) {
            return Some(Issuer::Known(Arc::clone(keyed)));
        }
        let config = this.template.of_realm(&this.realms, name);
        Some(Issuer::New(Box::new(NewRealm { realms: Arc::clone(this), config, name: name.to_owned() })))
    }

    /// The keys of a new realm. Those of a list that has room for all come at once. Names that only match a pattern
    /// may be anybody's, and of a list that is too long, tokens that nobody signed could push out and fetch again
    /// one realm after the other: both have a budget.
    fn open(self: Arc<Self>, config: &ProviderConfig, name: String) -> Option<Arc<KeyedProvider>> {
        match &self.realms.allowed {
            AllowedRealms::Listed(names) if names.len() <= self.realms.most => {
                let mut known = self.write();
                if let Some(known) = known.get(&name) {
                    return Some(Arc::clone(&known.keyed));
                }
                let keyed = self.make(config, &name)?;
                self.keep(&mut known, name, Arc::clone(&keyed));
                Some(keyed)
            }
            AllowedRealms::Listed(_) | AllowedRealms::Matching(_) => self.open_on_probation(config, name),
        }
    }

    fn open_on_probation(
        self: Arc<Self>,
        config: &ProviderConfig,
        name: String,
    ) -> Option<Arc<KeyedProvider>> {
        let mut probation = self.probation();
        if let Some(keyed) = probation.realms.get(&name) {
            return Some(Arc::clone(keyed));
        }
        // Another token's realm may have become known since this one was screened.
        if let Some(known) = self.read().get(&name) {
            return Some(Arc::clone(&known.keyed));
        }
        probation.fill(self.template.refresh.min_spacing);
        if probation.budget == 0 || probation.realms.len() >= MAX_ON_PROBATION {
            return None;
        }
        let keyed = self.make(config, &name)?;
        probation.budget -= 1;
        probation.realms.insert(name.clone(), Arc::clone(&keyed));
        drop(probation);
        let waiting = Arc::clone(&keyed);
        tokio::spawn(async move {
            waiting.keys.first_fetch_ended().await;
            self.end_probation(name, waiting);
        });
        Some(keyed)
    }

    fn end_probation(&self, name: String, keyed: Arc<KeyedProvider>) {
        // Known first: a token in between finds it in one of the two.
        if keyed.keys.has_keys() {
            self.keep(&mut self.write(), name.clone(), keyed);
        }
        self.probation().realms.remove(&name);
    }

    fn make(&self, config: &ProviderConfig, name: &str) -> Option<Arc<KeyedProvider>> {
        let keys = (self.open)(config, name)?;
        let provider = Arc::clone(&config.provider);
        let refresh = config.refresh.clone();
        Some(Arc::new(KeyedProvider { provider, realm: Some(name.to_owned()), keys, refresh }))
    }

    fn keep(&self, known: &mut HashMap<String, KnownRealm>, name: String, keyed: Arc<KeyedProvider>) {
        while known.len() >= self.realms.most {
            let least = known.iter().min_by_key(|(_, realm)| realm.last_use.load(Ordering::Relaxed));
            let Some(least) = least.map(|(name, _)| name.clone()) else { break };
            known.remove(&least);
        }
        let last_use = AtomicU64::new(self.uses.fetch_add(1, Ordering::Relaxed));
        known.insert(name, KnownRealm { keyed, last_use });
    }

    // No code that holds a lock can panic half-way, so a poisoned one is still sound.

    fn read(&self) -> RwLockReadGuard<'_, HashMap<String, KnownRealm>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<String, KnownRealm>> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn probation(&self) -> MutexGuard<'_, Probation> {
        self.probation.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probation {
    /// Adds what has come since the last time.
    fn fill(&mut self, spacing: std::time::Duration) {
        let spacing = spacing.max(std::time::Duration::from_millis(1));
        while self.budget < MAX_ON_PROBATION && clock::elapsed_since(self.filled) >= spacing {
            self.filled += spacing;
            self.budget += 1;
        }
        if self.budget == MAX_ON_PROBATION {
            self.filled = clock::monotonic();
        }
    }
}
