//! Reads the configuration again on SIGHUP, and when the file has changed and come to rest. A broken file changes nothing,
//! and a provider whose new keys cannot be had stays as it was: that is tried again until it is whole.
//!
//! A file that is cut off while it is written can be valid, and lack the rules that would have closed something, or end in
//! the middle of one that opens: what decisions go by has to rest for longer, unless it only adds or exchanges and came
//! whole. SIGHUP takes it at once, since somebody has sent it who knows.

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

/// How often the file is looked at for changes.
const FILE_POLL: Duration = Duration::from_secs(2);

/// For how long a file has to stand unchanged that decides otherwise than the one before, and may be half written.
const CHANGE_RESTS: Duration = Duration::from_secs(10);

/// How long a file may change, or not have rested for long enough, before that is told, and how long until it is again.
const UNSETTLED: Duration = Duration::from_secs(60);

/// A SIGHUP that comes earlier than this after the one before waits until then, so that a storm of them does not keep the
/// service busy.
const BETWEEN_HANGUPS: Duration = Duration::from_millis(200);

/// How long after one try the next begins to take over what stayed as it was.
const RETRY: Duration = Duration::from_secs(10);

/// At the start the second look comes this long after the first, and if the file is still being written then others, so many
/// at most: a start does not wait for ever.
const BETWEEN_FIRST_LOOKS: Duration = Duration::from_millis(50);
const FIRST_LOOKS: usize = 40;

/// Of what a change takes away this much is told by name.
const TOLD: usize = 20;

/// Takes SIGHUP from where it is made, so that the signal does not end the process.
#[derive(Debug)]
pub struct Hangups(Signal);

impl Hangups {
    /// Listens from now on. Needs a tokio runtime.
    ///
    /// # Errors
    /// The process may not.
    pub fn new() -> io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }
}

/// The file that a configuration was read from, and what stood there: from that on it is followed.
#[derive(Debug)]
pub struct ConfigFile {
    path: PathBuf,
    contents: Contents,
    hangups: Hangups,
}

impl ConfigFile {
    /// Reads the configuration in a file, twice, so that it is not one that is just being written. It may be a pipe: that is
    /// read once and waited for, on a thread that keeps nobody from leaving.
    ///
    /// # Errors
    /// All that is wrong.
    pub async fn load(path: &Path, hangups: Hangups) -> Result<(Config, Self), ConfigErrors> {
        let unreadable = |error: FileError| ConfigErrors::unreadable(path, &error.kind.to_string());
        let set = set_of(path);
        let mut contents = set.read_detached().await.map_err(unreadable)?;
        for _ in 1..FIRST_LOOKS {
            if !contents.can_change() {
                break;
            }
            sleep(BETWEEN_FIRST_LOOKS).await;
            let again = set.clone();
            // One that is gone for a moment is being replaced.
            let Ok(Ok(again)) = spawn_blocking(move || again.read_regular()).await else { continue };
            if std::mem::replace(&mut contents, again.clone()) == again {
                break;
            }
        }
        let config = parse(path, &contents).await.unwrap_or_else(|Broken| {
            Err(ConfigErrors::unreadable(path, "a fault of this program: reading it broke off"))
        })?;
        Ok((config, Self { path: path.to_owned(), contents, hangups }))
    }
}

fn set_of(path: &Path) -> FileSet {
    FileSet::new([path.to_owned()], MAX_FILE_BYTES)
}

/// A thread has panicked.
struct Broken;

/// Reads a configuration on a thread of its own, since it looks at the files that it names.
async fn parse(path: &Path, contents: &Contents) -> Result<Result<Config, ConfigErrors>, Broken> {
    let (path, bytes) = (path.to_owned(), contents.of(path).cloned().unwrap_or_default());
    spawn_blocking(move || Config::from_bytes(bytes.to_vec(), &path)).await.map_err(|_| Broken)
}

/// A file that is being read, however long that takes.
type Reading = Pin<Box<dyn Future<Output = Result<Contents, FileError>> + Send + Sync>>;

/// What the service was asked for last, beside its decisions.
pub(super) struct Asked {
    pub(super) shutdown: Shutdown,
    pub(super) listeners: Listeners,
}

/// Goes from one configuration to the next for as long as the service runs.
pub(super) struct Reloads {
    service: Arc<Service>,
    asked: Arc<Mutex<Asked>>,
    path: PathBuf,
    hangups: Hangups,
    followed: WatchedFiles,
    /// When the last SIGHUP was done with, and when the next one's turn is, where one has come.
    hung_up: Instant,
    next_hangup: Option<Instant>,
    /// A pipe that is being read because of a SIGHUP.
    piped: Option<Reading>,
    /// When it is told that the pipe has not been written to.
    piped_until: Option<Instant>,
    started: Config,
    /// What was asked for last and was valid, and its text.
    last_good: Config,
    last_text: Contents,
    waiting: Option<Waiting>,
    unsettled: Option<Unsettled>,
    next_try: Option<Instant>,
}

/// A valid change that has not rested for long enough.
struct Waiting {
    contents: Contents,
    /// Since when what it decides has stood there.
    since: Instant,
    config: Config,
    change: Change,
    came_whole: bool,
}

impl Waiting {
    /// How long it has to rest.
    fn rests(&self) -> Duration {
        let may_be_torn = (self.change.decides || self.change.unfinished) && !self.came_whole;
        if may_be_torn || !self.change.lost.is_empty() { CHANGE_RESTS } else { Duration::ZERO }
    }

    /// What it waits for.
    fn announce(&self) {
        let seconds = CHANGE_RESTS.as_secs();
        if self.change.lost.is_empty() {
            return tracing::info!(
                "the changed configuration counts once it has rested for {seconds} s, since it may be half written: \
                 SIGHUP takes it at once"
            );
        }
        tracing::warn!(
            "the changed configuration waits until it has rested for {seconds} s because it lacks {}: SIGHUP takes it at \
             once",
            told(&self.change.lost)
        );
    }
}

/// The file has not been for a while what was taken.
struct Unsettled {
    since: Instant,
    told: Option<Instant>,
    /// When it was again what was taken.
    back: Option<Instant>,
}

impl Reloads {
    pub(super) fn new(
        service: Arc<Service>,
        asked: Arc<Mutex<Asked>>,
        started: Config,
        file: ConfigFile,
    ) -> Self {
        let ConfigFile { path, contents, hangups } = file;
        Self {
            service,
            asked,
            hangups,
            followed: WatchedFiles::since(set_of(&path), contents.clone(), FILE_POLL),
            hung_up: clock::monotonic(),
            next_hangup: None,
            piped: None,
            piped_until: None,
            path,
            last_good: started.clone(),
            started,
            last_text: contents,
            waiting: None,
            unsettled: None,
            next_try: None,
        }
    }

    /// Reads the file again on SIGHUP and when it changes. What comes while a reload is under way is seen once that has
    /// ended, which its timeouts bound.
    pub(super) async fn run(&mut self) {
        loop {
            tokio::select! {
                _ = self.hangups.0.recv() => {
                    let next = self.hung_up.checked_add(BETWEEN_HANGUPS);
                    self.next_hangup = self.next_hangup.or(next);
                }
                () = come(self.next_hangup) => {
                    self.told().await;
                    (self.hung_up, self.next_hangup) = (clock::monotonic(), None);
                }
                found = self.followed.next_event() => self.found(found).await,
                read = piped(&mut self.piped) => {
                    (self.piped, self.piped_until) = (None, None);
                    self.piped(read).await;
                }
                () = come(self.piped_until) => {
                    self.piped_until = None;
                    self.refused(&FileError { path: self.path.clone(), kind: FileErrorKind::Timeout(READ_TIMEOUT) });
                }
                () = come(self.next_try) => {
                    self.next_try = next_after(self.service.retry_pending().await.is_empty());
                }
            }
        }
    }

    /// SIGHUP: what stands there counts, whether it has come to rest or not. A pipe counts whenever it is written to.
    async fn told(&mut self) {
        match self.followed.read_now().await {
            Ok(contents) if contents.can_change() => self.read_at_once(Ok(contents)).await,
            Ok(_) | Err(FileError { kind: FileErrorKind::NotRegular, .. }) => {
                let set = set_of(&self.path);
                // One that was being read may be another one.
                self.piped = Some(Box::pin(async move { set.read_pipes().await }));
                self.piped_until = clock::monotonic().checked_add(READ_TIMEOUT);
            }
            Err(error) => self.refused(&error),
        }
    }

    /// A pipe has been written to. Where a regular file has taken its place meanwhile, that counts.
    async fn piped(&mut self, read: Result<Contents, FileError>) {
        match self.followed.read_now().await {
            Ok(contents) if contents.can_change() => self.read_at_once(Ok(contents)).await,
            _ => self.read_at_once(read).await,
        }
    }

    async fn read_at_once(&mut self, read: Result<Contents, FileError>) {
        (self.piped, self.piped_until) = (None, None);
        match read {
            Ok(contents) => {
                self.settled(&contents);
                if let Some(config) = self.valid(&contents).await {
                    self.go_over(contents, config).await;
                }
            }
            Err(error) => self.refused(&error),
        }
    }

    /// Nothing is waited for any more: this stands there.
    fn settled(&mut self, contents: &Contents) {
        self.followed.accept(contents.clone());
        (self.waiting, self.unsettled) = (None, None);
    }

    async fn found(&mut self, found: FileEvent) {
        match found {
            FileEvent::Reverted => {
                self.waiting = None;
                if let Some(unsettled) = &mut self.unsettled {
                    unsettled.back = Some(clock::monotonic());
                }
            }
            FileEvent::Changing(contents) => {
                let waited_for = match (&self.waiting, contents) {
                    (Some(waiting), Some(contents)) => {
                        !self.change(&waiting.contents, &contents).await.decides
                    }
                    _ => false,
                };
                if !waited_for {
                    self.waiting = None;
                }
                self.unsettled();
            }
            FileEvent::Settled { contents, settled_for, atomic } => {
                self.rested(contents, settled_for, atomic).await
            }
            FileEvent::Unreadable(error @ FileError { kind: FileErrorKind::TooLarge(_), .. }) => {
                self.refused(&error)
            }
            FileEvent::Unreadable(error) => {
                tracing::warn!(%error, "the configuration cannot be read: the last good one keeps serving");
            }
        }
    }

    /// Two looks at least have shown this.
    async fn rested(&mut self, contents: Contents, rested: Duration, came_whole: bool) {
        let waiting = match self.waiting.take() {
            Some(waiting) if waiting.contents == contents => waiting,
            before => {
                let Some(config) = self.valid(&contents).await else { return self.settled(&contents) };
                let change = self.change(&self.last_text, &contents).await;
                let mut since = clock::monotonic().checked_sub(rested).unwrap_or_else(clock::monotonic);
                let mut announced = false;
                if let Some(before) = before
                    && !self.change(&before.contents, &contents).await.decides
                {
                    (since, announced) = (before.since, true);
                }
                let waiting = Waiting { contents, since, config, change, came_whole };
                if !announced && !waiting.rests().is_zero() {
                    waiting.announce();
                }
                waiting
            }
        };
        if clock::elapsed_since(waiting.since) < waiting.rests() {
            self.waiting = Some(waiting);
            return self.unsettled();
        }
        let Waiting { contents, config, change, came_whole, .. } = waiting;
        self.settled(&contents);
        if change.unfinished && !came_whole {
            return self.refused(
                &"its last line has no end, so that it may be half written: end it, or send SIGHUP",
            );
        }
        if !change.lost.is_empty() {
            tracing::warn!(
                "the configuration that is taken lacks what the one before had: {}",
                told(&change.lost)
            );
        }
        self.go_over(contents, config).await;
    }

    /// The file is not what was taken. Where that lasts, it is told and counted.
    fn unsettled(&mut self) {
        let now = clock::monotonic();
        let rested = |back: Instant| now.saturating_duration_since(back) >= CHANGE_RESTS;
        let before = self.unsettled.take().filter(|unsettled| !unsettled.back.is_some_and(rested));
        let unsettled =
            self.unsettled.insert(before.unwrap_or(Unsettled { since: now, told: None, back: None }));
        unsettled.back = None;
        let last = unsettled.told.unwrap_or(unsettled.since);
        if now.saturating_duration_since(last) < UNSETTLED {
            return;
        }
        let since = now.saturating_duration_since(unsettled.since).as_secs();
        if unsettled.told.replace(now).is_none() {
            self.service.metrics().reload_rejected();
        }
        tracing::warn!(
            "the configuration has changed again and again for {since} s and has not rested, or cannot be read: the last \
             good one keeps serving, SIGHUP takes what stands there"
        );
    }

    /// How one configuration differs from another.
    async fn change(&self, before: &Contents, after: &Contents) -> Change {
        let text = |contents: &Contents| contents.of(&self.path).cloned().unwrap_or_default();
        let (before, after) = (text(before), text(after));
        let compared = spawn_blocking(move || {
            Change::between(&String::from_utf8_lossy(&before), &String::from_utf8_lossy(&after))
        });
        // A comparison that breaks off says nothing.
        let unknown = || Change { decides: true, unfinished: true, ..Change::default() };
        compared.await.unwrap_or_else(|_| unknown())
    }

    /// The configuration; `None` where it is broken, which is told.
    async fn valid(&self, contents: &Contents) -> Option<Config> {
        match timeout(READ_TIMEOUT, parse(&self.path, contents)).await {
            Ok(Ok(Ok(config))) => return Some(config),
            Ok(Ok(Err(errors))) => {
                for error in errors.iter() {
                    tracing::error!(%error, "configuration not reloaded: the last good one keeps serving");
                }
            }
            Ok(Err(Broken)) => {
                tracing::error!("configuration not reloaded: a fault of this program, reading it broke off");
            }
            Err(_) => tracing::error!(
                "configuration not reloaded: a file that it names cannot be read within {} s",
                READ_TIMEOUT.as_secs()
            ),
        }
        self.service.metrics().reload_rejected();
        None
    }

    fn refused(&self, error: &dyn fmt::Display) {
        tracing::error!(%error, "configuration not reloaded: the last good one keeps serving");
        self.service.metrics().reload_rejected();
    }

    async fn go_over(&mut self, contents: Contents, config: Config) {
        let asked = Arc::clone(&self.asked);
        let mut asked = asked.lock().await;
        // All that the new one listens at is there before anything changes.
        let exchange = match asked.listeners.prepare(&config.listen).await {
            Ok(exchange) => exchange,
            Err(error) => return self.refused(&error),
        };
        let kept = match self.service.reload(&config).await {
            Ok(kept) => kept,
            Err(error) => {
                tracing::error!(%error, "configuration not reloaded: the last good one keeps serving");
                return;
            }
        };
        asked.shutdown = config.shutdown;
        if asked.listeners.exchange(exchange) {
            tracing::info!("listeners were exchanged");
        }
        drop(asked);
        let before = &self.last_good.warnings;
        for warning in config.warnings.iter().filter(|warning| !before.contains(warning)) {
            tracing::warn!(%warning, "in the configuration");
        }
        match (kept.is_empty(), config.log != self.started.log) {
            (true, false) => tracing::info!("configuration reloaded"),
            (true, true) => tracing::warn!("configuration reloaded; changes of log need a restart"),
            (false, _) => tracing::warn!(
                kept = kept.len(),
                "configuration reloaded in part: what stayed as it was is tried again every {} s",
                RETRY.as_secs()
            ),
        }
        self.next_try = next_after(kept.is_empty());
        (self.last_good, self.last_text) = (config, contents);
    }
}

/// Names, for a line of the log.
fn told(lost: &[String]) -> String {
    let more = lost.len().saturating_sub(TOLD);
    let names = lost.iter().take(TOLD).map(String::as_str).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{names} and {more} more") } else { names }
}

/// When to try again, of something that is whole or is not.
fn next_after(whole: bool) -> Option<Instant> {
    (!whole).then(|| clock::monotonic() + RETRY)
}

/// Waits for this moment; for ever where there is none.
async fn come(moment: Option<Instant>) {
    match moment {
        Some(moment) => clock::sleep_until(moment).await,
        None => pending().await,
    }
}

/// Waits for what is being read; for ever where nothing is.
async fn piped(reading: &mut Option<Reading>) -> Result<Contents, FileError> {
    match reading {
        Some(reading) => reading.await,
        None => pending().await,
    }
}
