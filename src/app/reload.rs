//! From a configuration to an authorizer, at the start and again when the file changes.
//!
//! A broken file changes nothing. Keys of a provider whose source is the same are carried over, so
//! that a reload forgets nothing, and fetches only where the refresh policy changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

use crate::authorizer::{Authorizer, KeyedProvider};
use crate::config::{Config, KeySource, MAX_FILE_BYTES, ProviderConfig, RefreshPolicy};
use crate::keys::discovery::Discovery;
use crate::keys::fetch::{Fetch, FileKeys};
use crate::keys::http::{HttpKeys, HttpReader};
use crate::keys::snapshot::SnapshotFile;
use crate::keys::{KeyCache, Surroundings};
use crate::validation::provider::Provider;

use super::Service;
use super::listener::BindError;

/// How often the file is looked at for changes.
const FILE_POLL: Duration = Duration::from_secs(2);

/// An authorizer for `config`, with the keys of the running one where their source is the same.
pub(super) fn authorizer(
    config: &Config,
    running: Option<(&Config, &Authorizer)>,
    around: &Surroundings,
) -> Result<Authorizer, BindError> {
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
        .collect::<Result<_, BindError>>()?;
    let (limits, responses) = (config.limits, config.responses.clone());
    Ok(Authorizer::new(providers, limits, responses, around.clock.clone(), Arc::clone(&around.metrics)))
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
) -> Result<Arc<KeyCache>, BindError> {
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
            .map_err(|error| BindError::new("providers", format!("{name}: no HTTP client"), error))
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

/// Reads the file again on SIGHUP and when it changes, for as long as the service runs.
pub(super) async fn watch(service: Arc<Service>, mut running: Config, file: PathBuf) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => {
            tracing::error!(%error, "SIGHUP cannot be listened for: the configuration will not be reloaded");
            return;
        }
    };
    // Of these only a restart makes what they say.
    let started = running.clone();
    let mut before = beginning_of(&file).await;
    loop {
        tokio::select! {
            _ = hangup.recv() => before = beginning_of(&file).await,
            () = tokio::time::sleep(FILE_POLL) => {
                let after = beginning_of(&file).await;
                // A file that is gone for a moment is being replaced.
                if after.is_none() || after == before {
                    continue;
                }
                before = after;
            }
        }
        if let Some(config) = reload(&service, &started, &running, &file) {
            running = config;
        }
    }
}

/// As much of a file as is enough to see it change: one that is longer is refused anyway.
async fn beginning_of(file: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = tokio::fs::File::open(file).await.ok()?;
    file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes).await.ok()?;
    Some(bytes)
}

/// The configuration that runs from now on; `None` leaves the old one.
fn reload(service: &Service, started: &Config, running: &Config, file: &Path) -> Option<Config> {
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(errors) => {
            for error in errors.iter() {
                tracing::error!(%error, "configuration not reloaded: the last good one keeps serving");
            }
            return None;
        }
    };
    let before = service.authorizer.load_full();
    match authorizer(&config, Some((running, &before)), &service.around) {
        Ok(authorizer) => service.authorizer.store(Arc::new(authorizer)),
        Err(error) => {
            tracing::error!(%error, "configuration not reloaded: the last good one keeps serving");
            return None;
        }
    }
    for gone in running.providers.iter().map(|old| &old.provider.name) {
        if !config.providers.iter().any(|new| new.provider.name == *gone) {
            service.metrics().forget_provider(gone);
        }
    }
    service.around.serving_changed.notify_one();
    if config.listen != started.listen || config.log != started.log || config.shutdown != started.shutdown {
        tracing::warn!("configuration reloaded; changes of listen, log and shutdown need a restart");
    } else {
        tracing::info!("configuration reloaded");
    }
    Some(config)
}
