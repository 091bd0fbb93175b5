//! Reads the configuration again on SIGHUP and when the file changes. A broken file changes nothing, and a
//! provider whose new keys cannot be had stays as it was: that is tried again until it is whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::clock::{self, Instant};
use crate::config::{Config, ConfigErrors, MAX_FILE_BYTES};
use crate::service::Service;

/// How often the file is looked at for changes.
const FILE_POLL: Duration = Duration::from_secs(2);

/// How long the file, and a look at those that it names, may take: a disk or a pipe that does not answer holds up no
/// later reload.
const READING: Duration = Duration::from_secs(5);

/// How long after one try the next begins to take over what stayed as it was.
const RETRY: Duration = Duration::from_secs(10);

/// Reads the file again on SIGHUP and when it changes, for as long as the service runs. What comes while a
/// reload is under way is seen once that has ended, which its timeouts bound.
pub(super) async fn watch(service: Arc<Service>, started: Config, file: PathBuf) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => {
            tracing::error!(%error, "SIGHUP cannot be listened for: the configuration will not be reloaded");
            return;
        }
    };
    let mut last_good = started.clone();
    let mut before = beginning_of(&file).await;
    let mut next_try = None;
    loop {
        tokio::select! {
            _ = hangup.recv() => before = beginning_of(&file).await,
            () = sleep(FILE_POLL) => {
                let after = beginning_of(&file).await;
                // A file that is gone for a moment is being replaced.
                if after.is_none() || after == before {
                    continue;
                }
                before = after;
            }
            () = come(next_try) => {
                next_try = next_after(service.reload_rest().await.is_empty());
                continue;
            }
        }
        if let Some((config, whole)) = reload(&service, &started, &last_good, &file).await {
            last_good = config;
            next_try = next_after(whole);
        }
    }
}

/// When to try again, of something that is whole or is not.
fn next_after(whole: bool) -> Option<Instant> {
    (!whole).then(|| clock::monotonic() + RETRY)
}

/// Waits for this moment; for ever where there is none.
async fn come(moment: Option<Instant>) {
    match moment {
        Some(moment) => clock::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// As much of a file as is enough to see it change: one that is longer is refused anyway. `None` where there is none, it
/// is a pipe, which would be waited for, or its disk does not answer.
async fn beginning_of(file: &Path) -> Option<Vec<u8>> {
    let read = async {
        if !tokio::fs::metadata(file).await.ok()?.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        let file = tokio::fs::File::open(file).await.ok()?;
        file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes).await.ok()?;
        Some(bytes)
    };
    timeout(READING, read).await.ok().flatten()
}

/// The configuration in a file, read on a thread of its own; `None` where that takes too long, or broke off.
async fn load(file: &Path) -> Option<Result<Config, ConfigErrors>> {
    let file = file.to_owned();
    timeout(READING, spawn_blocking(move || Config::load(&file))).await.ok()?.ok()
}

/// The configuration that was read, and whether all of it runs from now on; `None` where nothing has changed.
async fn reload(
    service: &Service,
    started: &Config,
    last_good: &Config,
    file: &Path,
) -> Option<(Config, bool)> {
    let config = match load(file).await {
        Some(Ok(config)) => config,
        None => {
            tracing::error!(
                "configuration not reloaded: it, or a file that it names, cannot be read within {} s",
                READING.as_secs()
            );
            service.metrics().reload_rejected();
            return None;
        }
        Some(Err(errors)) => {
            for error in errors.iter() {
                tracing::error!(%error, "configuration not reloaded: the last good one keeps serving");
            }
            service.metrics().reload_rejected();
            return None;
        }
    };
    let kept = match service.reload(&config).await {
        Ok(kept) => kept,
        Err(error) => {
            tracing::error!(%error, "configuration not reloaded: the last good one keeps serving");
            return None;
        }
    };
    for warning in config.warnings.iter().filter(|warning| !last_good.warnings.contains(warning)) {
        tracing::warn!(%warning, "in the configuration");
    }
    // Of these only a restart makes what they say.
    let restart =
        config.listen != started.listen || config.log != started.log || config.shutdown != started.shutdown;
    match (kept.is_empty(), restart) {
        (true, false) => tracing::info!("configuration reloaded"),
        (true, true) => {
            tracing::warn!("configuration reloaded; changes of listen, log and shutdown need a restart");
        }
        (false, _) => tracing::warn!(
            kept = kept.len(),
            "configuration reloaded in part: what stayed as it was is tried again every {} s",
            RETRY.as_secs()
        ),
    }
    Some((config, kept.is_empty()))
}
