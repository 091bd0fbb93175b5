//! Reloads the configuration on SIGHUP and when the file has changed and settled. An invalid file changes nothing. A
//! provider whose new keys are not available keeps its old configuration, and is retried until it can be replaced.
//!
//! A partly written file can be valid and lack rules that deny something, or end in the middle of a rule that allows
//! something. So a change that affects decisions has to settle for longer, unless it only adds or replaces entries and
//! the file was replaced atomically. SIGHUP applies the file immediately, because an operator has sent it on purpose.

use std::fmt;
use std::future::pending;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::clock::{self, Instant};
use crate::config::{Change, Config, ConfigErrors, MAX_FILE_BYTES, Shutdown};
use crate::files::{Contents, FileError, FileErrorKind, FileEvent, FileSet, READ_TIMEOUT, WatchedFiles};
use crate::service::Service;

use super::listeners::Listeners;

/// How often the file is polled for changes.
const FILE_POLL: Duration = Duration::from_secs(2);

/// How long a file must be unchanged if its change affects decisions and it may be partly written.
const SETTLE_TIME: Duration = Duration::from_secs(10);

/// How long a file may keep changing without settling before a warning is logged, and the interval of further warnings.
const UNSETTLED_WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// The minimum time between two SIGHUPs. An earlier one is delayed, so that many of them do not keep the service busy.
const MIN_SIGHUP_INTERVAL: Duration = Duration::from_millis(200);

/// The interval at which parts that were not reloaded are retried.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// At the start the file is read at this interval until two reads agree, but at most this often, so that the start is not
/// delayed forever. Nothing else shows that it is complete: not its age, which another machine's clock may tell, nor a link
/// that was made after the last write.
const INITIAL_READ_INTERVAL: Duration = Duration::from_millis(30);
const MAX_INITIAL_READS: usize = 40;

/// How many removed entries are logged by name.
const MAX_LOGGED_NAMES: usize = 20;

/// The hint of log lines about a configuration that is not applied.
const STAYS_IN_USE: &str = "fix the configuration; the previous one stays in use";

/// Receives SIGHUP from its creation on, so that the signal does not end the process.
#[derive(Debug)]
pub struct Hangups(Signal);

impl Hangups {
    /// Starts to listen. Needs a tokio runtime.
    ///
    /// # Errors
    /// The signal handler cannot be registered.
    pub fn new() -> io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }
}

/// The file of a configuration and its contents, from which it is watched for changes.
#[derive(Debug)]
pub struct ConfigFile {
    path: PathBuf,
    contents: Contents,
    hangups: Hangups,
}

impl ConfigFile {
    /// Loads the configuration. The file is read until two reads agree, so that it is not partly written. It may be a
    /// pipe, which is read once, on a thread that does not delay the process's exit.
    ///
    /// # Errors
    /// All errors in the configuration.
    pub async fn load(path: &Path, hangups: Hangups) -> Result<(Config, Self), ConfigErrors> {
        let unreadable = |error: FileError| ConfigErrors::unreadable(path, &error.kind.to_string());
        let set = file_set(path);
        let mut contents = set.read_detached().await.map_err(unreadable)?;
        for _ in 1..MAX_INITIAL_READS {
            if !contents.can_change() {
                break;
            }
            sleep(INITIAL_READ_INTERVAL).await;
            let again = set.clone();
            // A file that is missing for a moment is being replaced.
            let Ok(Ok(again)) = spawn_blocking(move || again.read_regular()).await else { continue };
            if std::mem::replace(&mut contents, again.clone()) == again {
                break;
            }
        }
        let config = parse(path, &contents).await.unwrap_or_else(|ParsePanicked| {
            Err(ConfigErrors::unreadable(path, "internal error: reading it panicked"))
        })?;
        Ok((config, Self { path: path.to_owned(), contents, hangups }))
    }
}

fn file_set(path: &Path) -> FileSet {
    FileSet::new([path.to_owned()], MAX_FILE_BYTES)
}

/// The parsing thread has panicked.
struct ParsePanicked;

/// Parses a configuration on a blocking thread, because it reads the files that the configuration names.
async fn parse(path: &Path, contents: &Contents) -> Result<Result<Config, ConfigErrors>, ParsePanicked> {
    let (path, bytes) = (path.to_owned(), contents.of(path).cloned().unwrap_or_default());
    spawn_blocking(move || Config::from_bytes(bytes.to_vec(), &path)).await.map_err(|_| ParsePanicked)
}

/// A read that is pending without a timeout.
type PendingRead = Pin<Box<dyn Future<Output = Result<Contents, FileError>> + Send + Sync>>;

/// The parts of the applied configuration that do not affect decisions.
pub(super) struct Applied {
    pub(super) shutdown: Shutdown,
    pub(super) listeners: Listeners,
}

/// Reloads the configuration while the service runs.
pub(super) struct Reloads {
    service: Arc<Service>,
    applied: Arc<Mutex<Applied>>,
    path: PathBuf,
    hangups: Hangups,
    watched: WatchedFiles,
    /// When the last SIGHUP was processed, and when the next one is due if one was received.
    last_sighup: Instant,
    next_sighup: Option<Instant>,
    /// A read of a pipe that a SIGHUP has started.
    pipe_read: Option<PendingRead>,
    /// When an error is logged because the pipe was not written to.
    pipe_deadline: Option<Instant>,
    initial: Config,
    /// The last valid configuration, and its text.
    last_good: Config,
    last_text: Contents,
    pending: Option<PendingChange>,
    unsettled: Option<Unsettled>,
    next_retry: Option<Instant>,
}

/// A valid change that has not settled yet.
struct PendingChange {
    contents: Contents,
    /// Since when the file has had these decisions.
    since: Instant,
    config: Config,
    change: Change,
    is_atomic: bool,
}

impl PendingChange {
    /// How long the file must be unchanged before it is applied.
    fn settle_time(&self) -> Duration {
        let may_be_partial = (self.change.decides || self.change.unfinished) && !self.is_atomic;
        if may_be_partial || !self.change.lost.is_empty() { SETTLE_TIME } else { Duration::ZERO }
    }

    /// Logs what it waits for.
    fn log_pending(&self) {
        let seconds = SETTLE_TIME.as_secs();
        if self.change.lost.is_empty() {
            return tracing::info!(
                settle_seconds = seconds,
                hint = "send SIGHUP to apply it now",
                "configuration change pending"
            );
        }
        tracing::warn!(
            settle_seconds = seconds,
            removed = join_names(&self.change.lost),
            hint = "check what it removes, or send SIGHUP to apply it now",
            "configuration change pending"
        );
    }
}

/// The file differs from the applied contents and has not settled.
struct Unsettled {
    since: Instant,
    logged_at: Option<Instant>,
    /// When the file had the applied contents again.
    reverted_at: Option<Instant>,
}

impl Reloads {
    pub(super) fn new(
        service: Arc<Service>,
        applied: Arc<Mutex<Applied>>,
        initial: Config,
        file: ConfigFile,
    ) -> Self {
        let ConfigFile { path, contents, hangups } = file;
        Self {
            service,
            applied,
            hangups,
            watched: WatchedFiles::since(file_set(&path), contents.clone(), FILE_POLL),
            last_sighup: clock::monotonic(),
            next_sighup: None,
            pipe_read: None,
            pipe_deadline: None,
            path,
            last_good: initial.clone(),
            initial,
            last_text: contents,
            pending: None,
            unsettled: None,
            next_retry: None,
        }
    }

    /// Reloads on SIGHUP and on changes. Events during a reload are processed after it has ended, which its timeouts
    /// bound.
    pub(super) async fn run(&mut self) {
        loop {
            tokio::select! {
                _ = self.hangups.0.recv() => {
                    let next = self.last_sighup.checked_add(MIN_SIGHUP_INTERVAL);
                    self.next_sighup = self.next_sighup.or(next);
                }
                () = sleep_until(self.next_sighup) => {
                    self.on_sighup().await;
                    (self.last_sighup, self.next_sighup) = (clock::monotonic(), None);
                }
                event = self.watched.next_event() => self.on_file_event(event).await,
                read = wait_for_read(&mut self.pipe_read) => {
                    (self.pipe_read, self.pipe_deadline) = (None, None);
                    self.on_pipe_read(read).await;
                }
                () = sleep_until(self.pipe_deadline) => {
                    self.pipe_deadline = None;
                    self.reject(&FileError { path: self.path.clone(), kind: FileErrorKind::Timeout(READ_TIMEOUT) });
                }
                () = sleep_until(self.next_retry) => {
                    self.next_retry = next_retry(self.service.retry_pending().await.is_empty());
                }
            }
        }
    }

    /// Applies the file, whether it has settled or not. A pipe is applied whenever it is written to.
    async fn on_sighup(&mut self) {
        match self.watched.read_now().await {
            Ok(contents) if contents.can_change() => self.apply_now(Ok(contents)).await,
            Ok(_) | Err(FileError { kind: FileErrorKind::NotRegular, .. }) => {
                let set = file_set(&self.path);
                // A pending read is replaced, because it may be of another pipe.
                self.pipe_read = Some(Box::pin(async move { set.read_pipes().await }));
                self.pipe_deadline = clock::monotonic().checked_add(READ_TIMEOUT);
            }
            Err(error) => self.reject(&error),
        }
    }

    /// Applies what was written to the pipe, or the regular file that has replaced it in the meantime.
    async fn on_pipe_read(&mut self, read: Result<Contents, FileError>) {
        match self.watched.read_now().await {
            Ok(contents) if contents.can_change() => self.apply_now(Ok(contents)).await,
            _ => self.apply_now(read).await,
        }
    }

    async fn apply_now(&mut self, read: Result<Contents, FileError>) {
        (self.pipe_read, self.pipe_deadline) = (None, None);
        match read {
            Ok(contents) => {
                self.mark_settled(&contents);
                if let Some(config) = self.parse_valid(&contents).await {
                    self.apply(contents, config).await;
                }
            }
            Err(error) => self.reject(&error),
        }
    }

    /// Records these contents as settled and drops any pending change.
    fn mark_settled(&mut self, contents: &Contents) {
        self.watched.accept(contents.clone());
        (self.pending, self.unsettled) = (None, None);
    }

    async fn on_file_event(&mut self, event: FileEvent) {
        match event {
            FileEvent::Reverted => {
                self.pending = None;
                if let Some(unsettled) = &mut self.unsettled {
                    unsettled.reverted_at = Some(clock::monotonic());
                }
            }
            FileEvent::Changing(contents) => {
                let same_decisions = match (&self.pending, contents) {
                    (Some(pending), Some(contents)) => {
                        !self.change(&pending.contents, &contents).await.decides
                    }
                    _ => false,
                };
                if !same_decisions {
                    self.pending = None;
                }
                self.record_unsettled();
            }
            FileEvent::Settled { contents, settled_for, atomic } => {
                self.on_settled(contents, settled_for, atomic).await
            }
            FileEvent::Unreadable(error @ FileError { kind: FileErrorKind::TooLarge(_), .. }) => {
                self.reject(&error)
            }
            FileEvent::Unreadable(error) => {
                tracing::warn!(%error, hint = STAYS_IN_USE, "configuration not readable");
            }
        }
    }

    /// Applies contents that at least two reads have returned, or keeps them pending. `unchanged` is for how long.
    async fn on_settled(&mut self, contents: Contents, unchanged: Duration, is_atomic: bool) {
        let pending = match self.pending.take() {
            Some(pending) if pending.contents == contents => pending,
            previous => {
                let Some(config) = self.parse_valid(&contents).await else {
                    return self.mark_settled(&contents);
                };
                let change = self.change(&self.last_text, &contents).await;
                let mut since = clock::monotonic().checked_sub(unchanged).unwrap_or_else(clock::monotonic);
                let mut is_logged = false;
                if let Some(previous) = previous
                    && !self.change(&previous.contents, &contents).await.decides
                {
                    (since, is_logged) = (previous.since, true);
                }
                let pending = PendingChange { contents, since, config, change, is_atomic };
                if !is_logged && !pending.settle_time().is_zero() {
                    pending.log_pending();
                }
                pending
            }
        };
        if clock::elapsed_since(pending.since) < pending.settle_time() {
            self.pending = Some(pending);
            return self.record_unsettled();
        }
        let PendingChange { contents, config, change, is_atomic, .. } = pending;
        self.mark_settled(&contents);
        if change.unfinished && !is_atomic {
            return self.reject(
        &"the last line has no line break, so the file may be partly written: add the line break, or send SIGHUP",
        );
        }
        if !change.lost.is_empty() {
            tracing::warn!(removed = join_names(&change.lost), "configuration change removes entries");
        }
        self.apply(contents, config).await;
    }

    /// Records that the file differs from the applied contents. If that lasts, it is logged and counted.
    fn record_unsettled(&mut self) {
        let now = clock::monotonic();
        let is_over = |reverted_at: Instant| now.saturating_duration_since(reverted_at) >= SETTLE_TIME;
        let previous = self.unsettled.take().filter(|unsettled| !unsettled.reverted_at.is_some_and(is_over));
        let unsettled = self.unsettled.insert(previous.unwrap_or(Unsettled {
            since: now,
            logged_at: None,
            reverted_at: None,
        }));
        unsettled.reverted_at = None;
        let last = unsettled.logged_at.unwrap_or(unsettled.since);
        if now.saturating_duration_since(last) < UNSETTLED_WARNING_INTERVAL {
            return;
        }
        let since = now.saturating_duration_since(unsettled.since).as_secs();
        if unsettled.logged_at.replace(now).is_none() {
            self.service.metrics().reload_rejected();
        }
        tracing::warn!(
            since_seconds = since,
            hint = "stop changing the file, make it readable, or send SIGHUP to apply it now",
            "configuration file does not settle"
        );
    }

    /// How one configuration differs from another.
    async fn change(&self, before: &Contents, after: &Contents) -> Change {
        let text = |contents: &Contents| contents.of(&self.path).cloned().unwrap_or_default();
        let (before, after) = (text(before), text(after));
        let compared = spawn_blocking(move || {
            Change::between(&String::from_utf8_lossy(&before), &String::from_utf8_lossy(&after))
        });
        // If the comparison panics, the change may be of any kind.
        let unknown = || Change { decides: true, unfinished: true, ..Change::default() };
        compared.await.unwrap_or_else(|_| unknown())
    }

    /// Parses the configuration. Errors are logged and counted.
    async fn parse_valid(&self, contents: &Contents) -> Option<Config> {
        match timeout(READ_TIMEOUT, parse(&self.path, contents)).await {
            Ok(Ok(Ok(config))) => return Some(config),
            Ok(Ok(Err(errors))) => {
                for error in errors.iter() {
                    tracing::error!(%error, hint = STAYS_IN_USE, "configuration not reloaded");
                }
            }
            Ok(Err(ParsePanicked)) => {
                tracing::error!(error = "internal error: reading it panicked", "configuration not reloaded");
            }
            Err(_) => tracing::error!(
                error = %format_args!("reading it, and the files that it names, takes longer than {} s", READ_TIMEOUT.as_secs()),
                hint = STAYS_IN_USE,
                "configuration not reloaded"
            ),
        }
        self.service.metrics().reload_rejected();
        None
    }

    fn reject(&self, error: &dyn fmt::Display) {
        tracing::error!(%error, hint = STAYS_IN_USE, "configuration not reloaded");
        self.service.metrics().reload_rejected();
    }

    async fn apply(&mut self, contents: Contents, config: Config) {
        let applied = Arc::clone(&self.applied);
        let mut applied = applied.lock().await;
        // All new listeners are bound before anything changes.
        let listeners = match applied.listeners.prepare(&config.listen).await {
            Ok(listeners) => listeners,
            Err(error) => return self.reject(&error.with_lines(&config.places)),
        };
        let kept = match self.service.reload(&config).await {
            Ok(kept) => kept,
            Err(error) => {
                tracing::error!(%error, hint = STAYS_IN_USE, "configuration not reloaded");
                return;
            }
        };
        applied.shutdown = config.shutdown;
        if applied.listeners.replace(listeners) {
            tracing::info!("listeners reloaded");
        }
        drop(applied);
        let known = &self.last_good.warnings;
        for warning in config.warnings.iter().filter(|warning| !known.contains(warning)) {
            tracing::warn!(%warning, "configuration warning");
        }
        match (kept.is_empty(), config.log != self.initial.log) {
            (true, false) => tracing::info!("configuration reloaded"),
            (true, true) => {
                tracing::warn!(hint = "restart to apply changes of log", "configuration reloaded")
            }
            (false, _) => tracing::warn!(
                kept = kept.len(),
                retry_seconds = RETRY_INTERVAL.as_secs(),
                "configuration reloaded partially"
            ),
        }
        self.next_retry = next_retry(kept.is_empty());
        (self.last_good, self.last_text) = (config, contents);
    }
}

/// Joins names for a log line.
fn join_names(removed: &[String]) -> String {
    let more = removed.len().saturating_sub(MAX_LOGGED_NAMES);
    let names = removed.iter().take(MAX_LOGGED_NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{names} and {more} more") } else { names }
}

/// The time of the next retry, if the last attempt was not complete.
fn next_retry(is_complete: bool) -> Option<Instant> {
    (!is_complete).then(|| clock::monotonic() + RETRY_INTERVAL)
}

/// Sleeps until the deadline; forever without one.
async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => clock::sleep_until(deadline).await,
        None => pending().await,
    }
}

/// Waits for the pending read; forever without one.
async fn wait_for_read(read: &mut Option<PendingRead>) -> Result<Contents, FileError> {
    match read {
        Some(read) => read.await,
        None => pending().await,
    }
}
