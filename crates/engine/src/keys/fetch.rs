//! Sources of keys: the trait, and files. URLs are read in [`http`](super::http). The size of an answer is limited
//! here, the time by the caller.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use url::Url;

use crate::clock::{Clock, Instant, SteadyClock};
use crate::validation::Kid;
use crate::validation::key_set::{KeySet, KeyUse};

use super::fetch_error::{Document, FetchError};
use super::folder::FileThreads;
use super::origin::Origin;
use super::published::Published;
use super::schedule::FetchMode;
use crate::files::{READ_TIMEOUT, read_regular_file};
use crate::telemetry::Trigger;

/// A source of keys. One implementation per kind of source; tests have their own.
pub trait Fetch: Send + Sync {
    /// Fetches the current key set once.
    fn fetch(&self, context: FetchContext) -> FetchFuture<'_>;

    /// Completes when the source has changed since the last fetch; `None` for a source that cannot be polled.
    fn change(&self) -> Option<ChangeFuture<'_>> {
        None
    }
}

/// The context of a fetch: why it was started, and the current state.
#[derive(Clone, Debug)]
pub struct FetchContext {
    /// What started it.
    pub trigger: Trigger,
    /// How it is requested.
    pub mode: FetchMode,
    /// The keys that waiting tokens name.
    pub wanted: Wanted,
    /// The current keys.
    pub published: Arc<Published>,
    /// The clock that orders answers.
    pub clock: SteadyClock,
    /// When the answer is needed, if there is a choice.
    pub deadline: Instant,
    /// Receives a set while more is requested.
    pub interim: Interim,
    /// What is being requested, for the error of a fetch that takes too long.
    pub asking: Asking,
}

/// Fetches the current key set once, for at most this long.
///
/// # Errors
/// Those of the source, and [`FetchError::TimedOut`].
pub async fn fetch_within(
    limit: Duration,
    source: &dyn Fetch,
    context: FetchContext,
) -> Result<Fetched, FetchError> {
    let asking = context.asking.clone();
    match timeout(limit, source.fetch(context)).await {
        Ok(result) => result,
        Err(_) => Err(asking.named(FetchError::TimedOut(limit))),
    }
}

/// What a fetch is requesting.
#[derive(Clone, Debug, Default)]
pub struct Asking(Arc<Mutex<Option<(Document, Url)>>>);

impl Asking {
    /// Notes a request.
    pub(super) fn set(&self, document: Document, url: &Url) {
        *self.lock() = Some((document, url.clone()));
    }

    /// The error with what was requested last, if that is known.
    fn named(&self, error: FetchError) -> FetchError {
        match &*self.lock() {
            Some((document, url)) => error.at(*document, url),
            None => error,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Document, Url)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FetchContext {
    /// For an unknown source, without waiting tokens.
    pub fn first(clock: &Clock, timeout: Duration) -> Self {
        Self {
            trigger: Trigger::Startup,
            mode: FetchMode::Conditional,
            wanted: Wanted::default(),
            published: Arc::default(),
            clock: SteadyClock::start(clock),
            deadline: clock.monotonic() + timeout,
            interim: Interim::default(),
            asking: Asking::default(),
        }
    }
}

/// The `kid`s of waiting tokens, without duplicates; `None` for a token without one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    kids: Vec<Option<Kid>>,
    /// Whether there are more than the limit.
    overflow: bool,
}

impl Wanted {
    /// Further `kid`s are not distinguished.
    const MAX: usize = 32;

    /// Adds a token's `kid`.
    pub fn add(&mut self, kid: Option<&Kid>) {
        if self.kids.iter().any(|known| known.as_ref() == kid) {
            return;
        }
        if self.kids.len() < Self::MAX {
            self.kids.push(kid.cloned());
        } else {
            self.overflow = true;
        }
    }

    /// Whether a set has a new key for every token: one with its `kid` that the current set lacks.
    pub fn is_satisfied_by(&self, keys: &KeySet, current: &KeySet) -> bool {
        let new = || current.lacks(keys);
        let satisfied = |kid: &Option<Kid>| new().any(|key| kid.is_none() || key.kid() == kid.as_ref());
        !self.overflow && self.kids.iter().all(satisfied) && new().next().is_some()
    }
}

/// Receives a set before the fetch has ended.
#[derive(Clone, Default)]
pub struct Interim(Option<Arc<dyn Fn(Fetched) + Send + Sync>>);

impl Interim {
    /// Calls `receive`.
    pub fn to(receive: impl Fn(Fetched) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(receive)))
    }

    /// Sends it a set.
    pub fn send(&self, fetched: &Fetched) {
        if let Some(receive) = &self.0 {
            receive(fetched.clone());
        }
    }
}

impl fmt::Debug for Interim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Interim").field(&self.0.is_some()).finish()
    }
}

/// The future of a fetch.
pub type FetchFuture<'f> = Pin<Box<dyn Future<Output = Result<Fetched, FetchError>> + Send + 'f>>;

/// The future of a change.
pub type ChangeFuture<'f> = Pin<Box<dyn Future<Output = ()> + Send + 'f>>;

/// The result of a fetch.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The keys.
    pub keys: Arc<KeySet>,
    /// When the answer was made.
    pub origin: Origin,
    /// The URL after redirects, without a query, or the path.
    pub location: String,
    /// The caching headers of the answer, for the log.
    pub caches: String,
    /// How long the issuer says that they stay fresh (RFC 9111 §4.2.1), if it does.
    pub fresh_for: Option<Duration>,
    /// By how many seconds the clock that orders answers is ahead of the answer's `Date`, negative if it is behind; `None`
    /// for an answer without one, or from a cache that says so.
    pub ahead: Option<i64>,
    /// Whether the discovery document was asked where the keys are; false if the remembered URL was used, true for
    /// sources without one.
    pub location_asked: bool,
    /// The position of the URL that answered among several: all but the first stand in for those before them.
    pub rank: usize,
    /// Why what was to be asked before did not serve: earlier URLs, or the discovery document, whose last `jwks_uri` was used.
    pub passed_over: Option<FetchError>,
}

impl Fetched {
    /// A set from a source on this machine, read between these two times, without a freshness lifetime.
    pub fn local(keys: KeySet, location: String, requested_at: i64, received: i64) -> Self {
        let origin = Origin::at(requested_at, received);
        Self {
            keys: Arc::new(keys),
            origin,
            location,
            caches: String::new(),
            fresh_for: None,
            ahead: None,
            location_asked: true,
            rank: 0,
            passed_over: None,
        }
    }
}

/// How often a key file is polled.
const FILE_POLL: Duration = Duration::from_secs(1);

/// A second read after this delay has to return the same, so that no half-written file is used; shorter if the fetch
/// has less time.
const SETTLE_DELAY: Duration = Duration::from_millis(50);

/// Keys in a file.
pub struct FileKeys {
    path: PathBuf,
    max_bytes: usize,
    threads: FileThreads,
    /// What the last fetch read, valid or not, or why it failed.
    read: Mutex<Option<FileRead>>,
    key_use: KeyUse,
}

/// The result of reading a key file.
type FileRead = Result<Vec<u8>, FetchError>;

impl FileKeys {
    /// Keys in the file at `path`, of at most `max_bytes`.
    pub fn at(path: &Path, max_bytes: usize) -> Self {
        Self {
            path: path.to_owned(),
            max_bytes,
            threads: FileThreads::default(),
            read: Mutex::default(),
            key_use: KeyUse::default(),
        }
    }

    /// Those of this use.
    #[must_use]
    pub fn of_use(self, key_use: KeyUse) -> Self {
        Self { key_use, ..self }
    }

    /// Reads until two consecutive reads return the same, or one returns what was read before.
    async fn read(&self, context: &FetchContext) -> Result<KeySet, FetchError> {
        let delay = context.deadline.saturating_duration_since(context.clock.monotonic()) / 4;
        let mut before = self.last().clone();
        let content = loop {
            let content = self.read_file().await;
            if content.is_err() || before.as_ref() == Some(&content) {
                break content;
            }
            before = Some(content);
            sleep(delay.min(SETTLE_DELAY)).await;
        };
        *self.last() = Some(content.clone());
        let keys = KeySet::parse_for(&content?, self.key_use).map_err(FetchError::KeySet)?;
        // Who replaces the file knows which bundle is the current one.
        Ok(keys.with_sequence(None))
    }

    async fn read_file(&self) -> FileRead {
        let (path, max_bytes) = (self.path.clone(), self.max_bytes);
        match self.threads.run(move || read_regular_file(&path, max_bytes)).await {
            Some(Ok(document)) => Ok(document),
            Some(Err(error)) => Err(FetchError::File(error)),
            None => Err(FetchError::Panicked),
        }
    }

    fn last(&self) -> MutexGuard<'_, Option<FileRead>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fetch for FileKeys {
    fn fetch(&self, context: FetchContext) -> FetchFuture<'_> {
        Box::pin(async move {
            let requested_at = context.clock.now_micros();
            let keys = self.read(&context).await?;
            Ok(Fetched::local(
                keys,
                self.path.display().to_string(),
                requested_at,
                context.clock.now_micros(),
            ))
        })
    }

    fn change(&self) -> Option<ChangeFuture<'_>> {
        Some(Box::pin(async move {
            let mut failed = false;
            loop {
                sleep(FILE_POLL).await;
                // The fetches report a disk that does not respond.
                let Ok(content) = timeout(READ_TIMEOUT, self.read_file()).await else { continue };
                if self.last().as_ref() == Some(&content) {
                    failed = false;
                    continue;
                }
                // A file that one read cannot open is being replaced.
                if content.is_ok() || failed {
                    return;
                }
                failed = true;
            }
        }))
    }
}
