//! From a configuration to an authorizer with its keys, at the start and at every reload.

use std::sync::Arc;

use super::settings::Settings;
use crate::authorizer::{Authorizer, KeyedProvider, NamesKept, OpenRealm, RealmProviders};
use crate::authorizer::{ProviderConfig, Realms};
use crate::keys::budget::Budget;
use crate::keys::folder::FileThreads;
use crate::keys::names::{RealmName, RealmNames};
use crate::keys::{KeyCache, KeyCacheContext};

use super::ServiceError;
use super::sources::{Realm, http_client, key_cache, keyed, same_source};

/// A provider with its keys, as an authorizer takes it.
pub(super) enum Part {
    /// Of one issuer.
    One(KeyedProvider),
    /// That stands for many.
    Many(Arc<RealmProviders>),
}

/// A provider that runs.
#[derive(Clone)]
pub(super) enum Running {
    /// Of one issuer, which may be a realm's.
    One(Box<Held>),
    /// That stands for many.
    Many(Arc<RealmProviders>),
}

/// The keys of one issuer that are held, and what they are configured with.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) config: ProviderConfig,
    pub(super) keys: Arc<KeyCache>,
}

impl Held {
    /// Of a provider that the authorizer of this configuration has.
    fn of(keyed: &KeyedProvider, running: &Settings) -> Option<Self> {
        let config = running.providers.iter().find(|config| config.provider.name == keyed.provider.name)?;
        let config = match (&config.realms, &keyed.realm) {
            (Some(realms), Some(name)) => config.of_realm(realms, name),
            _ => config.clone(),
        };
        Some(Self { config, keys: Arc::clone(&keyed.keys) })
    }
}

impl Running {
    /// What it was configured with.
    pub(super) fn config(&self) -> &ProviderConfig {
        match self {
            Running::One(held) => &held.config,
            Running::Many(realms) => realms.template(),
        }
    }

    /// What runs for this issuer, or for those of this template: what is named, else a realm that has keys.
    pub(super) fn of_issuer(issuer: &str, running: &Settings, authorizer: &Authorizer) -> Option<Self> {
        match running.providers.iter().find(|config| config.provider.issuer == issuer) {
            Some(named) => Self::of(named, running, authorizer),
            None => {
                let providers = authorizer.providers();
                let of_issuer = |keyed: &&Arc<KeyedProvider>| keyed.provider.issuer == issuer;
                let with_keys = providers.iter().find(of_issuer).filter(|keyed| keyed.keys.has_keys())?;
                Held::of(with_keys, running).map(|held| Running::One(Box::new(held)))
            }
        }
    }

    /// A provider of the running configuration.
    pub(super) fn of(config: &ProviderConfig, running: &Settings, authorizer: &Authorizer) -> Option<Self> {
        if config.realms.is_some() {
            let mut templates = authorizer.realms().iter();
            let same = templates.find(|realms| realms.template().provider.name == config.provider.name)?;
            return Some(Running::Many(Arc::clone(same)));
        }
        let providers = authorizer.providers();
        let same = |keyed: &&Arc<KeyedProvider>| keyed.provider.issuer == config.provider.issuer;
        Held::of(providers.iter().find(same)?, running).map(|held| Running::One(Box::new(held)))
    }
}

/// Every issuer's keys that are held and that a provider which stands for many would have: those of its realms,
/// and of issuers that were named one by one and no longer are.
pub(super) fn held_for_realms(
    wanted: &ProviderConfig,
    named: &Settings,
    running: &Settings,
    authorizer: &Authorizer,
) -> Vec<Held> {
    let Some(realms) = &wanted.realms else { return Vec::new() };
    let fits = |keyed: &&Arc<KeyedProvider>| {
        let issuer = &keyed.provider.issuer;
        realms.issuer.realm_of(issuer).is_some()
            && keyed.keys.has_keys()
            && !named.providers.iter().any(|other| other.provider.issuer == *issuer)
    };
    authorizer.providers().iter().filter(fits).filter_map(|keyed| Held::of(keyed, running)).collect()
}

/// An authorizer of these.
pub(super) fn authorizer(parts: Vec<Part>, config: &Settings, context: &KeyCacheContext) -> Authorizer {
    let (mut providers, mut templates) = (Vec::new(), Vec::new());
    for part in parts {
        match part {
            Part::One(keyed) => providers.push(keyed),
            Part::Many(realms) => templates.push(realms),
        }
    }
    Authorizer::new(
        providers,
        templates,
        config.policy.clone(),
        context.clock.clone(),
        Arc::clone(&context.metrics),
    )
}

/// The provider of this configuration: with the keys that its source has just `answered`, else with those that
/// are `held` and come from the same place, else with none yet.
///
/// # Errors
/// No HTTP client can be made with what the configuration says of it.
pub(super) fn part(
    wanted: &ProviderConfig,
    held: Vec<Held>,
    mut answered: Vec<KeyedProvider>,
    before: Option<&RealmProviders>,
    context: &KeyCacheContext,
) -> Result<Part, ServiceError> {
    if let Some(realms) = &wanted.realms {
        return realm_providers(wanted, realms, held, answered, before, context).map(Part::Many);
    }
    if let Some(keyed) = answered.pop() {
        return Ok(Part::One(keyed));
    }
    let keys = carried(wanted, None, held.first(), context)?;
    Ok(Part::One(keyed(wanted, None, keys)))
}

/// The keys that are held where nothing about them changes; else new ones, which begin with those of the same
/// source.
fn carried(
    wanted: &ProviderConfig,
    realm: Option<&Realm>,
    held: Option<&Held>,
    context: &KeyCacheContext,
) -> Result<Arc<KeyCache>, ServiceError> {
    let same = held.filter(|held| same_source(&held.config, wanted));
    if let Some(Held { config, keys }) = same
        && config.provider.name == wanted.provider.name
        && config.refresh == wanted.refresh
        && config.http == wanted.http
    {
        return Ok(Arc::clone(keys));
    }
    key_cache(wanted, realm, same.map(|held| &*held.keys), context)
}

/// A provider that stands for many, with those of its realms whose keys are there and which it allows.
fn realm_providers(
    wanted: &ProviderConfig,
    realms: &Realms,
    held: Vec<Held>,
    answered: Vec<KeyedProvider>,
    before: Option<&RealmProviders>,
    context: &KeyCacheContext,
) -> Result<Arc<RealmProviders>, ServiceError> {
    let http = http_client(wanted, context)?;
    let budget =
        budget_of(held.iter().map(|held| &held.keys).chain(answered.iter().map(|keyed| &keyed.keys)));
    let files = FileThreads::default();
    let tried: Vec<RealmName> = answered.iter().filter_map(|keyed| keyed.realm.clone()).collect();
    let mut known = answered;
    for held in held {
        let Some(name) = realms.issuer.realm_of(&held.config.provider.issuer) else { continue };
        let is = wanted.of_realm(realms, &name);
        let allowed = realms.allowed.contains(&name);
        if allowed && same_source(&held.config, &is) && !tried.contains(&name) {
            let realm =
                Realm { name, http: Arc::clone(&http), budget: Arc::clone(&budget), files: files.clone() };
            let keys = carried(&is, Some(&realm), Some(&held), context)?;
            known.push(keyed(&is, Some(realm.name), keys));
        }
    }
    let kept = names_kept(wanted, realms, context);
    let context = context.clone();
    let open: OpenRealm = Arc::new(move |config, name| {
        let realm = Realm {
            name: name.clone(),
            http: Arc::clone(&http),
            budget: Arc::clone(&budget),
            files: files.clone(),
        };
        key_cache(config, Some(&realm), None, &context)
            .inspect_err(|error| tracing::error!(realm = name.as_str(), %error, "a realm cannot be opened"))
            .ok()
    });
    Ok(RealmProviders::new(wanted.clone(), realms.clone(), open, kept, known, before))
}

/// Where the names of realms that had keys are kept: beside their snapshots.
fn names_kept(wanted: &ProviderConfig, realms: &Realms, context: &KeyCacheContext) -> NamesKept {
    let Some(folder) = &wanted.refresh.snapshot_dir else { return NamesKept::InMemory };
    let names = RealmNames::new(folder, &wanted.provider.name, &realms.issuer.to_string());
    if context.snapshots_read_only { NamesKept::ReadFrom(names) } else { NamesKept::In(names) }
}

/// What pays for the fetches that tokens of a provider's realms force: the budget that it had before, if any of its
/// realms is there.
pub(super) fn budget_of<'k>(mut realms: impl Iterator<Item = &'k Arc<KeyCache>>) -> Arc<Budget> {
    realms.next().map(|keys| Arc::clone(keys.budget())).unwrap_or_default()
}
