//! Snapshot files of what an issuer is known to publish: a start during an outage has keys, and every start knows
//! which keys were withdrawn.
//!
//! A file contains public keys alone and is replaced atomically. Write access to it decides whose tokens are
//! accepted, so a file that others than its owner may write, or whose digest is wrong, is rejected. Processes that
//! share a folder never replace newer content by older, and a set with a key that was withdrawn since is removed if
//! it cannot be replaced.
//!
//! It is JSON: `{"sha256": ..., "content": {"issuer", "source", "fetched_at", "keys", "origin", "withdrawn",
//! "brought", "written"}}`, with the digest of the content's text.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::clock::{BootTime, Clock, SteadyClock};
use crate::validation::UnixTime;
use crate::validation::digest::Sha256Digest;
use crate::validation::key_set::{KeySet, KeySetError, KeyUse};

use super::folder::{DiskFolder, FileThreads, Folder, FolderError};
use super::origin::Origin;
use super::published::{AddedKey, Published, Withdrawn};

/// How far in the future the time of a snapshot may be: clocks are set now and then.
const CLOCK_SLACK: Duration = Duration::from_secs(300);

/// The limit of a snapshot's size without the keys, in bytes: mostly the names of withdrawn keys.
const FRAME_BYTES: usize = 2 * 1024 * 1024;

/// The path of a provider's snapshot, and what it must belong to.
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
    /// The keys, their origin, and what was withdrawn.
    pub published: Published,
    /// When their source last confirmed them.
    pub fetched_at: UnixTime,
    /// Why its keys must not be used, if so. Its withdrawn keys apply all the same.
    pub unusable: Option<SnapshotError>,
}

/// A reading of the clocks, to judge a snapshot by.
#[derive(Clone, Debug)]
pub struct ClockReading {
    /// Wall time.
    pub wall: UnixTime,
    /// The time of the clock of [`Origin`], in microseconds since the Unix epoch.
    pub micros: i64,
    /// The start of that clock.
    pub start: i64,
    /// The time since boot.
    pub boot_time: BootTime,
    clock: Clock,
    steady: SteadyClock,
}

impl ClockReading {
    /// Reads these clocks.
    pub fn of(clock: &Clock, steady: &SteadyClock) -> Self {
        /// The clocks have to be read within this time, since processes compare their readings.
        const MAX_GAP_MICROS: i64 = 50;
        const TRIES: usize = 20;
        let mut before = steady.boot_time();
        let (mut micros, mut boot_time) = (steady.now_micros(), steady.boot_time());
        for _ in 0..TRIES {
            if boot_time.micros.saturating_sub(before.micros) <= MAX_GAP_MICROS {
                break;
            }
            // The thread was preempted in between.
            before = boot_time;
            (micros, boot_time) = (steady.now_micros(), steady.boot_time());
        }
        let (clock, steady) = (clock.clone(), steady.clone());
        Self { wall: clock.now(), micros, start: steady.start_micros(), boot_time, clock, steady }
    }

    /// Reads the same clocks now. A file may be newer than a reading from before it was locked, and must not be taken
    /// for one that was written under a wrong clock.
    fn again(&self) -> Self {
        Self::of(&self.clock, &self.steady)
    }

    /// Converts an origin of another process to this process's clock. Within one boot this is exact, even if the wall
    /// clock was set; otherwise only the wall clock is available.
    fn rebase(&self, origin: Origin, written: Option<&Written>) -> Origin {
        let same_boot = written.filter(|written| {
            written.boot_time.boot.is_some() && written.boot_time.boot == self.boot_time.boot
        });
        let shift = same_boot.map_or(0, |written| {
            let own = self.micros.saturating_sub(self.boot_time.micros);
            own.saturating_sub(written.micros.saturating_sub(written.boot_time.micros))
        });
        origin.shifted(shift).clamped(self.micros, self.start)
    }
}

/// When a snapshot was written, by two clocks.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Written {
    /// By the clock of its origins, in microseconds since the Unix epoch.
    micros: i64,
    boot_time: BootTime,
}

/// Why a snapshot is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file must not or cannot be used.
    Folder(FolderError),
    /// It is incomplete, or its digest is wrong.
    Damaged,
    /// It belongs to another issuer.
    OtherIssuer,
    /// Its keys are from another source than the configured one.
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
            SnapshotError::OtherIssuer => "it belongs to another issuer",
            SnapshotError::OtherSource => "its keys are from another source than the configured one",
            SnapshotError::TooOld => "it is older than max_stale",
            SnapshotError::FromTheFuture => "it is from the future: check the clock of this machine",
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
pub struct StoreError {
    /// The error.
    pub error: FolderError,
    /// What happened to the previous snapshot, if it has a key that was withdrawn since.
    pub previous: PreviousSnapshot,
}

/// What happened to the previous snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PreviousSnapshot {
    /// There is none, or all its keys are still published.
    None,
    /// It was removed, so that no start accepts a withdrawn key.
    Removed,
    /// It could not be removed: a start while the issuer is unavailable would accept a withdrawn key.
    Remains(FolderError),
}

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    sha256: Sha256Digest,
    #[serde(borrow)]
    content: &'a RawValue,
}

#[derive(Serialize, Deserialize)]
struct Content {
    issuer: String,
    source: String,
    /// Seconds since the Unix epoch.
    fetched_at: f64,
    keys: Vec<serde_json::Value>,
    /// Missing in files of earlier versions.
    #[serde(default)]
    origin: Option<Origin>,
    #[serde(default)]
    withdrawn: Vec<Withdrawn>,
    #[serde(default)]
    brought: Vec<AddedKey>,
    #[serde(default)]
    written: Option<Written>,
    /// That of a SPIFFE bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
}

impl SnapshotFile {
    /// `NAME.json` in a folder on this machine, for the keys that `issuer` publishes at `source`, a URL or a path.
    pub fn new(folder: &Path, name: &str, issuer: &str, source: &str, max_bytes: usize) -> Self {
        Self::in_folder(Arc::new(DiskFolder::at(folder)), name, issuer, source, max_bytes)
    }

    /// The same in any folder.
    pub fn in_folder(
        folder: Arc<dyn Folder>,
        name: &str,
        issuer: &str,
        source: &str,
        max_bytes: usize,
    ) -> Self {
        Self {
            folder,
            threads: FileThreads::default(),
            name: format!("{name}.json"),
            issuer: issuer.to_owned(),
            source: source.to_owned(),
            max_bytes: max_bytes.saturating_add(FRAME_BYTES),
        }
    }

    /// Uses this limit of threads.
    pub fn with_threads(self, threads: &FileThreads) -> Self {
        Self { threads: threads.clone(), ..self }
    }

    /// Its path.
    pub fn path(&self) -> PathBuf {
        self.folder.path(&self.name)
    }

    /// Reads it; `None` if there is none.
    ///
    /// # Errors
    /// Nothing of it must be used, see [`SnapshotError`].
    pub async fn read(
        &self,
        now: ClockReading,
        max_stale: Duration,
    ) -> Result<Option<Snapshot>, SnapshotError> {
        let file = self.clone();
        let read = move || file.read_blocking(&now, max_stale);
        if !self.folder.blocks() {
            return read();
        }
        self.threads.run(read).await.unwrap_or(Err(SnapshotError::Damaged))
    }

    /// Updates the file with what is published, confirmed by its source at `fetched_at`. A newer file keeps its keys;
    /// keys that either of the two knows as withdrawn are removed.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn store(
        &self,
        published: Published,
        fetched_at: UnixTime,
        now: ClockReading,
    ) -> Result<(), StoreError> {
        let file = self.clone();
        let store = move || file.store_blocking(&published, fetched_at, &now);
        if !self.folder.blocks() {
            return store();
        }
        let panicked = StoreError {
            error: FolderError::Io(std::io::ErrorKind::Other),
            previous: PreviousSnapshot::None,
        };
        self.threads.run(store).await.unwrap_or(Err(panicked))
    }

    fn read_blocking(
        &self,
        now: &ClockReading,
        max_stale: Duration,
    ) -> Result<Option<Snapshot>, SnapshotError> {
        let Some(bytes) = self.folder.read(&self.name, self.max_bytes)? else { return Ok(None) };
        let text = std::str::from_utf8(&bytes).map_err(|_| SnapshotError::Damaged)?;
        self.check(text, &now.again(), max_stale).map(Some)
    }

    fn check(&self, text: &str, now: &ClockReading, max_stale: Duration) -> Result<Snapshot, SnapshotError> {
        let envelope: Envelope<'_> = serde_json::from_str(text).map_err(|_| SnapshotError::Damaged)?;
        if envelope.sha256 != digest(envelope.content) {
            return Err(SnapshotError::Damaged);
        }
        let content: Content =
            serde_json::from_str(envelope.content.get()).map_err(|_| SnapshotError::Damaged)?;
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
            .map(|entry| Withdrawn {
                shown_by: now.rebase(entry.shown_by, content.written.as_ref()),
                ..entry
            })
            .collect();
        let published = if content.keys.is_empty() {
            Published::without_keys(withdrawn)
        } else {
            let jwks = serde_json::json!({ "keys": content.keys }).to_string();
            let keys = KeySet::parse_for(jwks.as_bytes(), KeyUse::Any).map_err(SnapshotError::KeySet)?;
            let keys = keys.with_sequence(content.sequence);
            let rebased = |origin| now.rebase(origin, content.written.as_ref());
            let brought =
                content.brought.iter().cloned().map(|entry| AddedKey { by: rebased(entry.by), ..entry });
            Published::restored(Arc::new(keys), rebased(origin), withdrawn).with_added_keys(brought)
        };
        let age = now.wall.as_secs_f64() - content.fetched_at;
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

    fn store_blocking(
        &self,
        own: &Published,
        fetched_at: UnixTime,
        now: &ClockReading,
    ) -> Result<(), StoreError> {
        let store_error = |error, previous| Err(StoreError { error, previous });
        let lock = self.folder.lock(&self.name);
        // A file that cannot be used is ignored.
        let before = self.read_blocking(now, Duration::MAX).ok().flatten();
        // The keys of another source are not used; its withdrawn keys are.
        let before = before.map(|before| match before.unusable {
            Some(SnapshotError::OtherSource) => Snapshot {
                published: Published::without_keys(before.published.withdrawn().to_vec()),
                ..before
            },
            _ => before,
        });
        let (published, fetched_at) = match &before {
            None => (own.clone(), fetched_at),
            Some(before) => merge(before, own, fetched_at),
        };
        let stored = match &lock {
            Ok(_) => self.write(&published, fetched_at, now),
            Err(error) => Err(error.clone()),
        };
        let Err(error) = stored else { return Ok(()) };
        let is_outdated = before.is_some_and(|before| {
            before.published.keys().keys().iter().any(|key| !published.keys().has(key))
        });
        if !is_outdated {
            return store_error(error, PreviousSnapshot::None);
        }
        match self.folder.remove(&self.name) {
            Ok(()) => store_error(error, PreviousSnapshot::Removed),
            Err(remove_error) => store_error(error, PreviousSnapshot::Remains(remove_error)),
        }
    }

    fn write(
        &self,
        published: &Published,
        fetched_at: UnixTime,
        now: &ClockReading,
    ) -> Result<(), FolderError> {
        let now = now.again();
        let content = serde_json::value::to_raw_value(&Content {
            issuer: self.issuer.clone(),
            source: self.source.clone(),
            fetched_at: fetched_at.as_secs_f64(),
            keys: published.keys().keys().iter().filter_map(|key| key.public_jwk()).collect(),
            origin: published.origin().copied(),
            withdrawn: published.withdrawn().to_vec(),
            brought: published.added_keys().to_vec(),
            written: Some(Written { micros: now.micros, boot_time: now.boot_time.clone() }),
            sequence: published.keys().sequence(),
        });
        let envelope = content.and_then(|content| {
            serde_json::to_vec(&Envelope { sha256: digest(&content), content: &content })
        });
        let envelope = envelope.map_err(|error| FolderError::from(std::io::Error::from(error)))?;
        self.folder.replace(&self.name, &envelope)
    }
}

/// The content of the new file and when it was confirmed: this process's, unless the file is newer.
fn merge(before: &Snapshot, own: &Published, fetched_at: UnixTime) -> (Published, UnixTime) {
    let Some(origin) = own.origin() else {
        return (before.published.without(own.withdrawn()), before.fetched_at);
    };
    let older = before.published.origin().is_some_and(|theirs| origin.is_older_than(theirs));
    // Keys that were received before the set in the file was requested are not newer: those that it lacks are
    // withdrawn.
    if before.published.origin().is_some_and(|theirs| origin.is_received_before(theirs)) {
        return (before.published.without(own.withdrawn()), before.fetched_at);
    }
    let (published, _effect) = before.published.apply(own.keys(), *origin);
    // A key may be new to the file because of an older answer of this process, which knows that answer's origin.
    let is_known =
        |entry: &&AddedKey| own.added_keys().iter().any(|own| own.key.is_same_material(&entry.key));
    let added = published.added_keys().iter().filter(|entry| !is_known(entry));
    let brought: Vec<AddedKey> =
        own.added_keys().iter().chain(before.published.added_keys()).chain(added).cloned().collect();
    let fetched_at = if older { before.fetched_at } else { fetched_at };
    (published.with_added_keys(brought).without(own.withdrawn()), fetched_at)
}

fn digest(content: &RawValue) -> Sha256Digest {
    Sha256Digest::of(content.get().as_bytes())
}
