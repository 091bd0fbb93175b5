//! From a configuration to an authorizer with its keys, at the start and at every reload.

use std::sync::Arc;

use crate::authorizer::{Authorizer, KeyedProvider, RequestPolicy};
use crate::config::{Config, KeySource, ProviderConfig, RefreshPolicy};
use crate::keys::discovery::Discovery;
use crate::keys::fetch::{Fetch, FileKeys};
use crate::keys::http::{HttpKeys, HttpReader};
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
    let providers = config
        .providers
        .iter()
        .map(|wanted| {
            let running = running.and_then(|(config, authorizer)| same_keys(wanted, config, authorizer));
            let keys = key_cache(wanted, running, around)?;
            Ok(KeyedProvider {
                provider: Arc::clone(&wanted.provider),
                keys,
                refresh: wanted.refresh.clone(),
            })
        })
        .collect::<Result<_, ServiceError>>()?;
    let policy = RequestPolicy {
        rules: config.rules.clone(),
        limits: config.limits,
        responses: config.responses.clone(),
        trusted_proxies: config.trusted_proxies.clone(),
    };
    Ok(Authorizer::new(providers, policy, around.clock.clone(), Arc::clone(&around.metrics)))
}

/// The keys that come from the same place as those that are wanted, and what they are configured with.
fn same_keys<'a>(
    wanted: &ProviderConfig,
    config: &'a Config,
    authorizer: &'a Authorizer,
) -> Option<(&'a ProviderConfig, &'a Arc<KeyCache>)> {
    let same = |running: &&ProviderConfig| {
        running.provider.name == wanted.provider.name
            && running.provider.issuer == wanted.provider.issuer
            && same_source(&running.keys, &wanted.keys)
    };
    let running = config.providers.iter().find(same)?;
    let keyed = authorizer.providers().find(|keyed| keyed.provider.name == running.provider.name)?;
    Some((running, &keyed.keys))
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

/// The running cache where nothing about it changes; else a new one, which begins with the keys of one
/// that differs in its policy alone.
fn key_cache(
    config: &ProviderConfig,
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
    let http = || {
        HttpReader::new(config.http.clone(), max_bytes)
            .map_err(|error| ServiceError(format!("providers: {name}: no HTTP client: {error}")))
    };
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
    let file = folder.map(|folder| SnapshotFile::new(folder, name, issuer, &source, max_bytes));
    let before = running.map(|(_, keys)| &**keys);
    Ok(Arc::new(KeyCache::fetched(name, config.refresh.clone(), fetch, around.clone(), before, file)))
}
