//! Where keys come from: what a source is, what it brings, and why it may bring nothing. Files are read
//! here, URLs in [`http`](super::http). Bounded in size, and in time by the caller.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::clock::{Clock, Instant, SteadyClock};
use crate::validation::Kid;
use crate::validation::key_set::KeySet;

use super::fetch_error::FetchError;
use super::folder::FileThreads;
use super::origin::Origin;
use super::published::Published;
use super::schedule::Doubts;
use crate::files::{LOOKING, read_regular_file};
use crate::telemetry::Trigger;

/// Where keys come from. One implementation per kind of source; tests script their own.
pub trait Fetch: Send + Sync {
    /// Reads the current key set once.
    fn fetch(&self, ask: Ask) -> Fetching<'_>;

    /// Waits until the source is seen to have something else than the last fetch read; `None` of a source that cannot be
    /// looked at.
    fn change(&self) -> Option<Changing<'_>> {
        None
    }
}

/// Who asks for a key set, and what it has already.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Why it is asked for.
    pub trigger: Trigger,
    /// Whether tokens wait for it.
    pub doubts: Doubts,
    /// The keys that they name.
    pub wanted: Wanted,
    /// What is in hand.
    pub published: Arc<Published>,
    /// The time, for telling which of two answers is the newer one.
    pub clock: SteadyClock,
    /// By when the answer has to be there, in as far as there is a choice.
    pub deadline: Instant,
    /// Told of a set that has come while more is asked for.
    pub interim: Interim,
}

impl Ask {
    /// For the keys of a source of which nothing is known, while nobody waits.
    pub fn first(clock: &Clock, timeout: Duration) -> Self {
        Self {
            trigger: Trigger::Startup,
            doubts: Doubts::Nothing,
            wanted: Wanted::default(),
            published: Arc::default(),
            clock: SteadyClock::beginning_now(clock),
            deadline: clock.monotonic() + timeout,
            interim: Interim::default(),
        }
    }
}

/// The `kid`s of the tokens that wait, each once; `None` is one of a token without.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    kids: Vec<Option<Kid>>,
    /// Whether there are more than are kept.
    others: bool,
}

impl Wanted {
    /// More than these are not told apart.
    const MOST: usize = 32;

    /// One more.
    pub fn note(&mut self, kid: Option<&Kid>) {
        if self.kids.iter().any(|known| known.as_ref() == kid) {
            return;
        }
        if self.kids.len() < Self::MOST {
            self.kids.push(kid.cloned());
        } else {
            self.others = true;
        }
    }

    /// Whether a set has something new for every token: a key of its name that is not in hand.
    pub fn is_met_by(&self, keys: &KeySet, in_hand: &KeySet) -> bool {
        let new = || in_hand.lacks(keys);
        let met = |kid: &Option<Kid>| new().any(|key| kid.is_none() || key.kid() == kid.as_ref());
        !self.others && self.kids.iter().all(met) && new().next().is_some()
    }
}

/// Who takes in a set before the fetch has ended.
#[derive(Clone, Default)]
pub struct Interim(Option<Arc<dyn Fn(Fetched) + Send + Sync>>);

impl Interim {
    /// This one.
    pub fn to(take: impl Fn(Fetched) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(take)))
    }

    /// Hands it a set.
    pub fn tell(&self, fetched: &Fetched) {
        if let Some(take) = &self.0 {
            take(fetched.clone());
        }
    }
}

impl fmt::Debug for Interim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Interim").field(&self.0.is_some()).finish()
    }
}

/// A fetch under way.
pub type Fetching<'f> = Pin<Box<dyn Future<Output = Result<Fetched, FetchError>> + Send + 'f>>;

/// A change that is waited for.
pub type Changing<'f> = Pin<Box<dyn Future<Output = ()> + Send + 'f>>;

/// What a fetch brought.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The keys.
    pub keys: Arc<KeySet>,
    /// When the answer was made.
    pub origin: Origin,
    /// Where it came from, after redirects; without a query.
    pub place: String,
    /// What caches on the way said of the answer, for the log.
    pub caches: String,
    /// How long the issuer says that they stay fresh (RFC 9111 §4.2.1), where it says so.
    pub fresh_for: Option<Duration>,
    /// Whether the source was also asked where its keys are, if anybody can say so; false where a remembered place was
    /// enough.
    pub place_asked: bool,
}

impl Fetched {
    /// A set of a source on this machine: it was read in between these two times, and nobody says how long it stays
    /// fresh.
    pub fn locally(keys: KeySet, place: String, asked: i64, received: i64) -> Self {
        let origin = Origin::at(asked, received);
        Self {
            keys: Arc::new(keys),
            origin,
            place,
            caches: String::new(),
            fresh_for: None,
            place_asked: true,
        }
    }
}

/// How often a key file is looked at for changes.
const FILE_POLL: Duration = Duration::from_secs(1);

/// How long after one look the next has to show the same, so that nothing counts that is half written; less where the
/// fetch has less time.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// Keys in a file.
pub struct FileKeys {
    path: PathBuf,
    max_bytes: usize,
    threads: FileThreads,
    /// What the last fetch read, whether it could be used or not, or why it could read nothing.
    read: Mutex<Option<Look>>,
}

/// What one look at a key file shows.
type Look = Result<Vec<u8>, FetchError>;

impl FileKeys {
    /// Keys in the file at `path`, of which at most `max_bytes` are read.
    pub fn at(path: &Path, max_bytes: usize) -> Self {
        Self { path: path.to_owned(), max_bytes, threads: FileThreads::default(), read: Mutex::default() }
    }

    /// Reads until two looks in a row have shown the same, or one what was read before.
    async fn read(&self, ask: &Ask) -> Result<KeySet, FetchError> {
        let pause = ask.deadline.saturating_duration_since(ask.clock.monotonic()) / 4;
        let mut before = self.last().clone();
        let look = loop {
            let look = self.look().await;
            if look.is_err() || before.as_ref() == Some(&look) {
                break look;
            }
            before = Some(look);
            sleep(pause.min(BETWEEN_LOOKS)).await;
        };
        *self.last() = Some(look.clone());
        KeySet::parse(&look?).map_err(FetchError::KeySet)
    }

    async fn look(&self) -> Look {
        let (path, max_bytes) = (self.path.clone(), self.max_bytes);
        match self.threads.run(move || read_regular_file(&path, max_bytes)).await {
            Some(Ok(document)) => Ok(document),
            Some(Err(why)) => Err(FetchError::File(why)),
            None => Err(FetchError::BrokeOff),
        }
    }

    fn last(&self) -> MutexGuard<'_, Option<Look>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fetch for FileKeys {
    fn fetch(&self, ask: Ask) -> Fetching<'_> {
        Box::pin(async move {
            let asked = ask.clock.now_micros();
            let keys = self.read(&ask).await?;
            Ok(Fetched::locally(keys, self.path.display().to_string(), asked, ask.clock.now_micros()))
        })
    }

    fn change(&self) -> Option<Changing<'_>> {
        Some(Box::pin(async move {
            let mut failed = false;
            loop {
                sleep(FILE_POLL).await;
                // A disk that does not answer is left to the fetches, which say so.
                let Ok(look) = timeout(LOOKING, self.look()).await else { continue };
                if self.last().as_ref() == Some(&look) {
                    failed = false;
                    continue;
                }
                // A file that cannot be read in one look is being replaced.
                if look.is_ok() || failed {
                    return;
                }
                failed = true;
            }
        }))
    }
}
