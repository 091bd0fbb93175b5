//! Reads the configuration again on SIGHUP and when the file changes. A broken file changes nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, MAX_FILE_BYTES};
use crate::service::Service;

/// How often the file is looked at for changes.
const FILE_POLL: Duration = Duration::from_secs(2);

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
    if let Err(error) = service.reload(running, &config) {
        tracing::error!(%error, "configuration not reloaded: the last good one keeps serving");
        return None;
    }
    for warning in config.warnings.iter().filter(|warning| !running.warnings.contains(warning)) {
        tracing::warn!(%warning, "in the configuration");
    }
    if config.listen != started.listen || config.log != started.log || config.shutdown != started.shutdown {
        tracing::warn!("configuration reloaded; changes of listen, log and shutdown need a restart");
    } else {
        tracing::info!("configuration reloaded");
    }
    Some(config)
}
