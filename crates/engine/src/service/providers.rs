//! Creates an authorizer and its keys from a configuration, at the start and at every reload.

use std::sync::Arc;

use super::settings::Settings;
use crate::authorizer::{Authorizer, KeyedProvider, NameStorage, OpenRealm, ProviderConfig};
use crate::authorizer::{RealmProviders, Realms, RecentRefusals};
use crate::keys::budget::Budget;
use crate::keys::folder::FileThreads;
use crate::keys::names::{RealmName, RealmNames};
use crate::keys::{KeyCache, KeyCacheContext};

use super::ServiceError;
use super::sources::{Realm, http_client, key_cache, keyed, same_source};

/// A provider with its keys, for an authorizer.
pub(super) enum Part {
    /// A provider of one issuer.
    One(Box<KeyedProvider>),
    /// A template.
    Many(Arc<RealmProviders>),
}

/// A running provider.
#[derive(Clone)]
pub(super) enum Running {
    /// A provider of one issuer, which may be a realm.
    One(Box<RunningKeys>),
    /// A template.
    Many(Arc<RealmProviders>),
}

/// The keys of a running issuer, and their configuration.
#[derive(Clone)]
pub(super) struct RunningKeys {
    pub(super) config: ProviderConfig,
    pub(super) keys: Arc<KeyCache>,
}

impl RunningKeys {
    /// The keys of this provider of the running configuration.
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
    /// Its configuration.
    pub(super) fn config(&self) -> &ProviderConfig {
        match self {
            Running::One(running_keys) => &running_keys.config,
            Running::Many(realms) => realms.template(),
        }
    }

    /// The running provider of this issuer or template: a configured one, else a realm with keys.
    pub(super) fn of_issuer(issuer: &str, running: &Settings, authorizer: &Authorizer) -> Option<Self> {
        match running.providers.iter().find(|config| config.provider.issuer == issuer) {
            Some(named) => Self::of(named, running, authorizer),
            None => {
                let providers = authorizer.providers();
                let of_issuer = |keyed: &&Arc<KeyedProvider>| keyed.provider.issuer == issuer;
                let with_keys = providers.iter().find(of_issuer).filter(|keyed| keyed.keys.has_keys())?;
                RunningKeys::of(with_keys, running).map(|running_keys| Running::One(Box::new(running_keys)))
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
        RunningKeys::of(providers.iter().find(same)?, running)
            .map(|running_keys| Running::One(Box::new(running_keys)))
    }
}

/// The running keys that a template can use: those of its realms, and of issuers that were configured individually
/// and no longer are.
pub(super) fn keys_for_realms(
    new: &ProviderConfig,
    named: &Settings,
    running: &Settings,
    authorizer: &Authorizer,
) -> Vec<RunningKeys> {
    let Some(realms) = &new.realms else { return Vec::new() };
    let is_usable = |keyed: &&Arc<KeyedProvider>| {
        let issuer = &keyed.provider.issuer;
        realms.issuer.realm_of(issuer).is_some()
            && keyed.keys.has_keys()
            && !named.providers.iter().any(|other| other.provider.issuer == *issuer)
    };
    authorizer
        .providers()
        .iter()
        .filter(is_usable)
        .filter_map(|keyed| RunningKeys::of(keyed, running))
        .collect()
}

/// An authorizer of these providers, which keeps its refusals among these.
pub(super) fn authorizer(
    parts: Vec<Part>,
    config: &Settings,
    context: &KeyCacheContext,
    refusals: &Arc<RecentRefusals>,
) -> Authorizer {
    refusals.set_capacity(config.refusals);
    let (mut providers, mut templates) = (Vec::new(), Vec::new());
    for part in parts {
        match part {
            Part::One(keyed) => providers.push(*keyed),
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
    .keeping(Arc::clone(refusals))
    .with_places(Arc::clone(&config.places))
}

/// The provider of this configuration: with the keys of its source's answer in `answered`, else with the `running`
/// ones of the same source, else without keys.
///
/// An HTTP client cannot be created from the configuration.
pub(super) fn part(
    new: &ProviderConfig,
    running_keys: Vec<RunningKeys>,
    mut answered: Vec<KeyedProvider>,
    before: Option<&RealmProviders>,
    context: &KeyCacheContext,
) -> Result<Part, ServiceError> {
    if let Some(realms) = &new.realms {
        return realm_providers(new, realms, running_keys, answered, before, context).map(Part::Many);
    }
    if let Some(keyed) = answered.pop() {
        return Ok(Part::One(Box::new(keyed)));
    }
    let keys = reuse_keys(new, None, running_keys.first(), context)?;
    Ok(Part::One(Box::new(keyed(new, None, keys))))
}

/// The running keys if their configuration is unchanged; else a new cache, which starts with the keys of the same
/// source.
fn reuse_keys(
    new: &ProviderConfig,
    realm: Option<&Realm>,
    running_keys: Option<&RunningKeys>,
    context: &KeyCacheContext,
) -> Result<Arc<KeyCache>, ServiceError> {
    let same = running_keys.filter(|running_keys| same_source(&running_keys.config, new));
    if let Some(RunningKeys { config, keys }) = same
        && config.provider.name == new.provider.name
        && config.refresh == new.refresh
        && config.http == new.http
    {
        return Ok(Arc::clone(keys));
    }
    key_cache(new, realm, same.map(|running_keys| &*running_keys.keys), context)
}

/// A template, with its allowed realms whose keys are running.
fn realm_providers(
    new: &ProviderConfig,
    realms: &Realms,
    running_keys: Vec<RunningKeys>,
    answered: Vec<KeyedProvider>,
    before: Option<&RealmProviders>,
    context: &KeyCacheContext,
) -> Result<Arc<RealmProviders>, ServiceError> {
    let http = http_client(new, context)?;
    let budget = budget_of(
        running_keys
            .iter()
            .map(|running_keys| &running_keys.keys)
            .chain(answered.iter().map(|keyed| &keyed.keys)),
    );
    let files = FileThreads::default();
    let answered_realms: Vec<RealmName> = answered.iter().filter_map(|keyed| keyed.realm.clone()).collect();
    let mut known = answered;
    for running_keys in running_keys {
        let Some(name) = realms.issuer.realm_of(&running_keys.config.provider.issuer) else { continue };
        let config = new.of_realm(realms, &name);
        let allowed = realms.allowed.contains(&name);
        if allowed && same_source(&running_keys.config, &config) && !answered_realms.contains(&name) {
            let realm =
                Realm { name, http: Arc::clone(&http), budget: Arc::clone(&budget), files: files.clone() };
            let keys = reuse_keys(&config, Some(&realm), Some(&running_keys), context)?;
            known.push(keyed(&config, Some(realm.name), keys));
        }
    }
    let storage = name_storage(new, realms, context);
    let context = context.clone();
    let open: OpenRealm = Arc::new(move |config, name| {
        let realm = Realm {
            name: name.clone(),
            http: Arc::clone(&http),
            budget: Arc::clone(&budget),
            files: files.clone(),
        };
        key_cache(config, Some(&realm), None, &context)
            .inspect_err(|error| tracing::error!(realm = name.as_str(), %error, "realm not opened"))
            .ok()
    });
    Ok(RealmProviders::new(new.clone(), realms.clone(), open, storage, known, before))
}

/// Where the names of realms that had keys are stored: beside their snapshots.
fn name_storage(new: &ProviderConfig, realms: &Realms, context: &KeyCacheContext) -> NameStorage {
    let Some(folder) = &new.refresh.snapshot_dir else { return NameStorage::InMemory };
    let names = RealmNames::new(folder, &new.provider.name, &realms.issuer.to_string());
    if context.snapshots_read_only { NameStorage::ReadOnly(names) } else { NameStorage::File(names) }
}

/// The budget of forced fetches of a template's realms: the existing one, if any of its realms is running.
pub(super) fn budget_of<'k>(mut realms: impl Iterator<Item = &'k Arc<KeyCache>>) -> Arc<Budget> {
    realms.next().map(|keys| Arc::clone(keys.budget())).unwrap_or_default()
}
