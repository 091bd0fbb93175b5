//! From a configuration to an authorizer with its keys, at the start and at every reload.

use std::sync::Arc;

use crate::authorizer::{Authorizer, KeyedProvider, NamesKept, OpenRealm, RealmProviders, RequestPolicy};
use crate::config::{Config, KeySource, ProviderConfig, Realms, RefreshPolicy};
use crate::keys::discovery::Discovery;
use crate::keys::fetch::{Fetch, FileKeys};
use crate::keys::http::{HttpKeys, HttpReader};
use crate::keys::names::RealmNames;
use crate::keys::snapshot::SnapshotFile;
use crate::keys::{KeyCache, Surroundings};
use crate::validation::provider::Provider;

use super::ServiceError;

/// An authorizer for `config`, with the keys of the running one where their source is the same.
pub(super) fn authorizer(
    config: &Config,
    running: Option<(&Config, &Authorizer)>,
    around: &Surroundings,
) -> Result<Authorizer, ServiceError> {
    let (mut providers, mut templates) = (Vec::new(), Vec::new());
    for wanted in &config.providers {
        match &wanted.realms {
            None => {
                let running = running.and_then(|(config, authorizer)| same_keys(wanted, config, authorizer));
                let running = running.as_ref().map(|(config, keys)| (*config, keys));
                let keys = key_cache(wanted, None, running, around)?;
                providers.push(keyed(wanted, None, keys));
            }
            Some(realms) => templates.push(realm_providers(wanted, realms, running, around)?),
        }
    }
    let policy = RequestPolicy {
        rules: config.rules.clone(),
        limits: config.limits,
        responses: config.responses.clone(),
        trusted_proxies: config.trusted_proxies.clone(),
    };
    Ok(Authorizer::new(providers, templates, policy, around.clock.clone(), Arc::clone(&around.metrics)))
}

fn keyed(config: &ProviderConfig, realm: Option<String>, keys: Arc<KeyCache>) -> KeyedProvider {
    KeyedProvider { provider: Arc::clone(&config.provider), realm, keys, refresh: config.refresh.clone() }
}

/// A provider that stands for many, with the realms that the running one knows and this one allows.
fn realm_providers(
    wanted: &ProviderConfig,
    realms: &Realms,
    running: Option<(&Config, &Authorizer)>,
    around: &Surroundings,
) -> Result<Arc<RealmProviders>, ServiceError> {
    let before = running.and_then(|(_, authorizer)| {
        authorizer.realms().iter().find(|before| before.template().provider.name == wanted.provider.name)
    });
    let http = http_reader(wanted)?;
    let mut known = Vec::new();
    for old in before.iter().flat_map(|before| before.known()) {
        let (Some(name), Some(before)) = (old.realm.as_deref(), before) else { continue };
        let Some(old_realms) = &before.template().realms else { continue };
        let (was, is) = (before.template().of_realm(old_realms, name), wanted.of_realm(realms, name));
        let same = was.provider.issuer == is.provider.issuer && same_source(&was.keys, &is.keys);
        if same && old.keys.has_keys() && realms.allowed.contains(name) {
            let realm = Realm { name, http: &http };
            let keys = key_cache(&is, Some(realm), Some((&was, &old.keys)), around)?;
            known.push(keyed(&is, Some(name.to_owned()), keys));
        }
    }
    let kept = names_kept(wanted, realms, around);
    let around = around.clone();
    let open: OpenRealm = Arc::new(move |config, name| {
        key_cache(config, Some(Realm { name, http: &http }), None, &around)
            .inspect_err(|error| tracing::error!(realm = name, %error, "a realm cannot be opened"))
            .ok()
    });
    Ok(RealmProviders::new(wanted.clone(), realms.clone(), open, kept, known, before.map(|before| &**before)))
}

/// Where the names of realms that had keys are kept: beside their snapshots.
fn names_kept(wanted: &ProviderConfig, realms: &Realms, around: &Surroundings) -> NamesKept {
    let Some(folder) = &wanted.refresh.snapshot_dir else { return NamesKept::InMemory };
    let names = RealmNames::new(folder, &wanted.provider.name, &realms.issuer.to_string());
    if around.snapshots_read_only { NamesKept::ReadFrom(names) } else { NamesKept::In(names) }
}

/// The keys that come from the same place as those that are wanted, and what they are configured with.
fn same_keys<'a>(
    wanted: &ProviderConfig,
    config: &'a Config,
    authorizer: &Authorizer,
) -> Option<(&'a ProviderConfig, Arc<KeyCache>)> {
    let same = |running: &&ProviderConfig| {
        running.provider.name == wanted.provider.name
            && running.provider.issuer == wanted.provider.issuer
            && same_source(&running.keys, &wanted.keys)
    };
    let running = config.providers.iter().find(same)?;
    let known = authorizer.providers();
    let keyed = known.iter().find(|keyed| keyed.key_name() == running.provider.name)?;
    Some((running, Arc::clone(&keyed.keys)))
}

fn same_source(a: &KeySource, b: &KeySource) -> bool {
    match (a, b) {
        (KeySource::JwksUri(a), KeySource::JwksUri(b))
        | (KeySource::Discovery(a), KeySource::Discovery(b)) => a == b,
        (KeySource::File(a), KeySource::File(b)) => a == b,
        (KeySource::Inline(a), KeySource::Inline(b)) => a.same_keys(b),
        _ => false,
    }
}

/// One of the issuers that a provider stands for.
#[derive(Clone, Copy)]
struct Realm<'a> {
    name: &'a str,
    /// One client for all of them: it holds the authorities that are trusted.
    http: &'a Arc<HttpReader>,
}

fn http_reader(config: &ProviderConfig) -> Result<Arc<HttpReader>, ServiceError> {
    HttpReader::new(config.http.clone(), config.refresh.max_bytes).map(Arc::new).map_err(|error| {
        ServiceError(format!("providers: {}: no HTTP client: {error}", config.provider.name))
    })
}

/// The running cache where nothing about it changes; else a new one, which begins with the keys of one
/// that differs in its policy alone.
fn key_cache(
    config: &ProviderConfig,
    realm: Option<Realm<'_>>,
    running: Option<(&ProviderConfig, &Arc<KeyCache>)>,
    around: &Surroundings,
) -> Result<Arc<KeyCache>, ServiceError> {
    if let Some((running, keys)) = running
        && running.refresh == config.refresh
        && running.http == config.http
    {
        return Ok(Arc::clone(keys));
    }
    let Provider { name, issuer, .. } = &*config.provider;
    let RefreshPolicy { max_bytes, interval, .. } = config.refresh;
    let http = || realm.map_or_else(|| http_reader(config), |realm| Ok(Arc::clone(realm.http)));
    let (fetch, source): (Arc<dyn Fetch>, String) = match &config.keys {
        KeySource::Inline(keys) => {
            return Ok(Arc::new(KeyCache::fixed(name, Arc::clone(keys), around.clone())));
        }
        KeySource::File(path) => (Arc::new(FileKeys::at(path, max_bytes)), path.display().to_string()),
        KeySource::JwksUri(url) => (Arc::new(HttpKeys::at(url.clone(), http()?)), url.to_string()),
        KeySource::Discovery(url) => {
            // Half an interval: a forced fetch mostly costs one request, a scheduled one asks the document again.
            let discovery = Discovery::new(url.clone(), issuer, interval / 2);
            (Arc::new(HttpKeys::discovered(discovery, http()?)), url.to_string())
        }
    };
    let folder = config.refresh.snapshot_dir.as_deref();
    let file_name = realm.map_or_else(|| name.clone(), |realm| RealmNames::snapshot_name(name, realm.name));
    let file = folder.map(|folder| SnapshotFile::new(folder, &file_name, issuer, &source, max_bytes));
    let before = running.map(|(_, keys)| &**keys);
    let key_name = realm.map_or_else(|| name.clone(), |realm| format!("{name}/{}", realm.name));
    let cache = KeyCache::fetched(&key_name, config.refresh.clone(), fetch, around.clone(), before, file);
    Ok(Arc::new(if realm.is_some() { cache.passing() } else { cache }))
}
