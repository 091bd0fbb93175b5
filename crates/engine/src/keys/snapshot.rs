//! What a provider is known to publish in a file, so that a start in the middle of an outage has keys, and a start at
//! any time knows which keys were withdrawn.
//!
//! The file holds public keys alone and is replaced as a whole. Whoever can write it chooses whose tokens are
//! accepted, so one that others than its owner may write, or that is not what was written, is refused. Processes that
//! share a folder never replace what is newer by what is older, and a set that has a key which was withdrawn since is
//! removed where it cannot be replaced.
//!
//! It is JSON: `{"sha256": ..., "content": {"issuer", "source", "fetched_at", "keys", "origin", "withdrawn",
//! "brought", "written"}}`, the digest being that of the content's text.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::clock::{BootTime, Clock, SteadyClock};
use crate::validation::UnixTime;
use crate::validation::digest::Sha256Digest;
use crate::validation::key_set::{KeySet, KeySetError};

use super::folder::{DiskFolder, FileThreads, Folder, FolderError};
use super::origin::Origin;
use super::published::{Brought, Published, Withdrawn};

/// How far ahead the time of a snapshot may be: clocks are set now and then.
const CLOCK_SLACK: Duration = Duration::from_secs(300);

/// Besides the keys, a snapshot has this many bytes at most: the names of withdrawn keys take most of them.
const FRAME_BYTES: usize = 2 * 1024 * 1024;

/// Where a provider's snapshot is, and whose it has to be.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    folder: Arc<dyn Folder>,
    threads: FileThreads,
    name: String,
    issuer: String,
    source: String,
    max_bytes: usize,
}

/// A snapshot that was read.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The keys, when the answer that brought them was made, and what was withdrawn.
    pub published: Published,
    /// When their source last confirmed them.
    pub fetched_at: UnixTime,
    /// Why its keys are not to be used, where they are not. What was withdrawn was so all the same.
    pub unusable: Option<SnapshotError>,
}

/// The present, as a snapshot is judged by it.
#[derive(Clone, Debug)]
pub struct Present {
    /// Wall time.
    pub wall: UnixTime,
    /// The same on the line of [`Origin`], in microseconds since the Unix epoch.
    pub micros: i64,
    /// Where that line begins for this process.
    pub beginning: i64,
    /// The time since the machine was started.
    pub boot_time: BootTime,
}

impl Present {
    /// Now, by this clock on the wall and this line.
    pub fn of(clock: &Clock, line: &SteadyClock) -> Self {
        /// Two processes may ask this close to each other; the two clocks have to be read closer.
        const CLOSE_MICROS: i64 = 50;
        const TRIES: usize = 20;
        let mut before = line.boot_time();
        let (mut micros, mut boot_time) = (line.now_micros(), line.boot_time());
        for _ in 0..TRIES {
            if boot_time.micros.saturating_sub(before.micros) <= CLOSE_MICROS {
                break;
            }
            // This thread was held up in between.
            before = boot_time;
            (micros, boot_time) = (line.now_micros(), line.boot_time());
        }
        Self { wall: clock.now(), micros, beginning: line.beginning_micros(), boot_time }
    }

    /// An origin that another process has written down, on this process's line. Within one run of the machine that
    /// is exact, whatever became of the clock on the wall; else the wall is all that there is.
    fn read(&self, origin: Origin, written: Option<&Written>) -> Origin {
        let same =
            written.filter(|one| one.boot_time.boot.is_some() && one.boot_time.boot == self.boot_time.boot);
        let shift = same.map_or(0, |one| {
            let own = self.micros.saturating_sub(self.boot_time.micros);
            own.saturating_sub(one.micros.saturating_sub(one.boot_time.micros))
        });
        origin.shifted(shift).not_ahead_of(self.micros, self.beginning)
    }
}

/// When a snapshot was written, by two clocks.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Written {
    /// On the line of its origins, in microseconds since the Unix epoch.
    micros: i64,
    boot_time: BootTime,
}

/// Why a snapshot is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file must not be used, or cannot be.
    Folder(FolderError),
    /// Not a whole snapshot, or not as it was written.
    Damaged,
    /// It is of another issuer.
    OtherIssuer,
    /// Its keys came from another place than the one that is configured.
    OtherSource,
    /// It was confirmed longer ago than `max_stale`.
    TooOld,
    /// It was confirmed in the future.
    FromTheFuture,
    /// Its keys cannot be used.
    KeySet(KeySetError),
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SnapshotError::Folder(error) => return error.fmt(f),
            SnapshotError::KeySet(error) => return error.fmt(f),
            SnapshotError::Damaged => "it is damaged",
            SnapshotError::OtherIssuer => "it is of another issuer",
            SnapshotError::OtherSource => "its keys came from another place than the one configured",
            SnapshotError::TooOld => "it is older than max_stale",
            SnapshotError::FromTheFuture => "it is from the future: a clock was wrong",
        })
    }
}

impl std::error::Error for SnapshotError {}

impl From<FolderError> for SnapshotError {
    fn from(error: FolderError) -> Self {
        SnapshotError::Folder(error)
    }
}

/// Why a snapshot was not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotStored {
    /// What was in the way.
    pub error: FolderError,
    /// What became of a snapshot that has a key which was withdrawn since.
    pub outdated: Outdated,
}

/// What became of the snapshot before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outdated {
    /// There is none, or all its keys are still published.
    None,
    /// It was removed, so that no start accepts what was withdrawn.
    Removed,
    /// It could not even be removed: a start while the issuer is down would accept a key that was withdrawn.
    Remains(FolderError),
}

#[derive(Serialize, Deserialize)]
struct Sealed<'a> {
    sha256: Sha256Digest,
    #[serde(borrow)]
    content: &'a RawValue,
}

#[derive(Serialize, Deserialize)]
struct Content {
    issuer: String,
    source: String,
    /// Seconds since the epoch.
    fetched_at: f64,
    keys: Vec<serde_json::Value>,
    /// None in files of earlier versions.
    #[serde(default)]
    origin: Option<Origin>,
    #[serde(default)]
    withdrawn: Vec<Withdrawn>,
    #[serde(default)]
    brought: Vec<Brought>,
    #[serde(default)]
    written: Option<Written>,
}

impl SnapshotFile {
    /// `NAME.json` in a folder of this machine, for the keys that `issuer` publishes at `source`, a URL or a path.
    pub fn new(folder: &Path, name: &str, issuer: &str, source: &str, max_bytes: usize) -> Self {
        Self::within(Arc::new(DiskFolder::at(folder)), name, issuer, source, max_bytes)
    }

    /// The same in any folder.
    pub fn within(folder: Arc<dyn Folder>, name: &str, issuer: &str, source: &str, max_bytes: usize) -> Self {
        Self {
            folder,
            threads: FileThreads::default(),
            name: format!("{name}.json"),
            issuer: issuer.to_owned(),
            source: source.to_owned(),
            max_bytes: max_bytes.saturating_add(FRAME_BYTES),
        }
    }

    /// The same by this share of threads.
    pub fn by(self, threads: &FileThreads) -> Self {
        Self { threads: threads.clone(), ..self }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.folder.path(&self.name)
    }

    /// Reads it; `None` where there is none.
    ///
    /// # Errors
    /// Nothing of it must be used, see [`SnapshotError`].
    pub async fn read(
        &self,
        present: Present,
        max_stale: Duration,
    ) -> Result<Option<Snapshot>, SnapshotError> {
        let file = self.clone();
        let read = move || file.read_now(&present, max_stale);
        if !self.folder.blocks() {
            return read();
        }
        self.threads.run(read).await.unwrap_or(Err(SnapshotError::Damaged))
    }

    /// Brings the file up to what is published, confirmed by its source at `fetched_at`. A file that is newer keeps its
    /// keys; what either of the two knows to be withdrawn is not in it afterwards.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn store(
        &self,
        published: Published,
        fetched_at: UnixTime,
        present: Present,
    ) -> Result<(), NotStored> {
        let file = self.clone();
        let store = move || file.store_now(&published, fetched_at, &present);
        if !self.folder.blocks() {
            return store();
        }
        let broke_off =
            NotStored { error: FolderError::Io(std::io::ErrorKind::Other), outdated: Outdated::None };
        self.threads.run(store).await.unwrap_or(Err(broke_off))
    }

    fn read_now(&self, present: &Present, max_stale: Duration) -> Result<Option<Snapshot>, SnapshotError> {
        let Some(bytes) = self.folder.read(&self.name, self.max_bytes)? else { return Ok(None) };
        let text = std::str::from_utf8(&bytes).map_err(|_| SnapshotError::Damaged)?;
        self.check(text, present, max_stale).map(Some)
    }

    fn check(&self, text: &str, present: &Present, max_stale: Duration) -> Result<Snapshot, SnapshotError> {
        let sealed: Sealed<'_> = serde_json::from_str(text).map_err(|_| SnapshotError::Damaged)?;
        if sealed.sha256 != seal(sealed.content) {
            return Err(SnapshotError::Damaged);
        }
        let content: Content =
            serde_json::from_str(sealed.content.get()).map_err(|_| SnapshotError::Damaged)?;
        if content.issuer != self.issuer {
            return Err(SnapshotError::OtherIssuer);
        }
        let since_epoch =
            Duration::try_from_secs_f64(content.fetched_at).map_err(|_| SnapshotError::Damaged)?;
        let fetched_micros = i64::try_from(since_epoch.as_micros()).map_err(|_| SnapshotError::Damaged)?;
        let origin = content.origin.unwrap_or(Origin::at(fetched_micros, fetched_micros));
        let withdrawn = content
            .withdrawn
            .iter()
            .cloned()
            .map(|one| Withdrawn { shown_by: present.read(one.shown_by, content.written.as_ref()), ..one })
            .collect();
        let published = if content.keys.is_empty() {
            Published::without_keys(withdrawn)
        } else {
            let jwks = serde_json::json!({ "keys": content.keys }).to_string();
            let keys = KeySet::parse(jwks.as_bytes()).map_err(SnapshotError::KeySet)?;
            let here = |origin| present.read(origin, content.written.as_ref());
            let brought = content.brought.iter().cloned().map(|one| Brought { by: here(one.by), ..one });
            Published::restored(Arc::new(keys), here(origin), withdrawn).with_brought(brought)
        };
        let age = present.wall.as_secs_f64() - content.fetched_at;
        let unusable = if content.source != self.source {
            Some(SnapshotError::OtherSource)
        } else if age > max_stale.as_secs_f64() {
            Some(SnapshotError::TooOld)
        } else if age < -CLOCK_SLACK.as_secs_f64() {
            Some(SnapshotError::FromTheFuture)
        } else {
            None
        };
        Ok(Snapshot { published, fetched_at: UnixTime::from_epoch(since_epoch), unusable })
    }

    fn store_now(&self, own: &Published, fetched_at: UnixTime, present: &Present) -> Result<(), NotStored> {
        let not_stored = |error, outdated| Err(NotStored { error, outdated });
        let locked = self.folder.lock(&self.name);
        // A file that cannot be used is as good as none.
        let before = self.read_now(present, Duration::MAX).ok().flatten();
        // Keys of another place are nobody's here; what was withdrawn there is.
        let before = before.map(|before| match before.unusable {
            Some(SnapshotError::OtherSource) => Snapshot {
                published: Published::without_keys(before.published.withdrawn().to_vec()),
                ..before
            },
            _ => before,
        });
        let (published, fetched_at) = match &before {
            None => (own.clone(), fetched_at),
            Some(before) => merged(before, own, fetched_at),
        };
        let stored = match &locked {
            Ok(_) => self.write(&published, fetched_at, present),
            Err(error) => Err(error.clone()),
        };
        let Err(error) = stored else { return Ok(()) };
        let outdated = before.is_some_and(|before| {
            before.published.keys().keys().iter().any(|key| !published.keys().has(key))
        });
        if !outdated {
            return not_stored(error, Outdated::None);
        }
        match self.folder.remove(&self.name) {
            Ok(()) => not_stored(error, Outdated::Removed),
            Err(still) => not_stored(error, Outdated::Remains(still)),
        }
    }

    fn write(
        &self,
        published: &Published,
        fetched_at: UnixTime,
        present: &Present,
    ) -> Result<(), FolderError> {
        let content = serde_json::value::to_raw_value(&Content {
            issuer: self.issuer.clone(),
            source: self.source.clone(),
            fetched_at: fetched_at.as_secs_f64(),
            keys: published.keys().keys().iter().filter_map(|key| key.public_jwk()).collect(),
            origin: published.origin().copied(),
            withdrawn: published.withdrawn().to_vec(),
            brought: published.brought().to_vec(),
            written: Some(Written { micros: present.micros, boot_time: present.boot_time.clone() }),
        });
        let sealed = content
            .and_then(|content| serde_json::to_vec(&Sealed { sha256: seal(&content), content: &content }));
        let sealed = sealed.map_err(|error| FolderError::from(std::io::Error::from(error)))?;
        self.folder.replace(&self.name, &sealed)
    }
}

/// What the file is to hold, and when that was confirmed: what this process has, unless the file has what is newer.
fn merged(before: &Snapshot, own: &Published, fetched_at: UnixTime) -> (Published, UnixTime) {
    let Some(origin) = own.origin() else {
        return (before.published.without(own.withdrawn()), before.fetched_at);
    };
    let older = before.published.origin().is_some_and(|theirs| origin.is_older_than(theirs));
    // What was there before the set in the file was asked for has no key that is new to it: one that lacks there is gone.
    if before.published.origin().is_some_and(|theirs| origin.is_there_before(theirs)) {
        return (before.published.without(own.withdrawn()), before.fetched_at);
    }
    let (published, _effect) = before.published.after(own.keys(), *origin);
    // Of a key that is new to the file because an older answer of this process has it, this process knows which one.
    let is_known = |one: &&Brought| own.brought().iter().any(|own| own.key.is_same_material(&one.key));
    let added = published.brought().iter().filter(|one| !is_known(one));
    let brought: Vec<Brought> =
        own.brought().iter().chain(before.published.brought()).chain(added).cloned().collect();
    let fetched_at = if older { before.fetched_at } else { fetched_at };
    (published.with_brought(brought).without(own.withdrawn()), fetched_at)
}

fn seal(content: &RawValue) -> Sha256Digest {
    Sha256Digest::of(content.get().as_bytes())
}
