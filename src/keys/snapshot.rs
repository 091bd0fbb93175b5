//! The last good set of a provider in a file, so that a start in the middle of an outage has keys.
//!
//! The file holds public keys alone and is replaced as a whole. Whoever can write it chooses whose tokens
//! are accepted, so one that others than its owner may write, or that is not what was written, is refused.
//! It is JSON: `{"sha256": ..., "content": {"issuer", "source", "fetched_at", "keys"}}`, the digest being
//! that of the content's text.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::validation::UnixTime;
use crate::validation::key_set::{KeySet, KeySetError};

/// How far ahead the time of a snapshot may be: clocks are set now and then.
const CLOCK_SLACK: Duration = Duration::from_secs(300);

/// Besides the keys, a snapshot has this many bytes at most.
const FRAME_BYTES: usize = 16 * 1024;

/// Where a provider's snapshot is, and whose it has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    path: PathBuf,
    issuer: String,
    source: String,
    max_bytes: usize,
}

/// A snapshot that was read.
#[derive(Debug)]
pub struct Snapshot {
    /// The keys.
    pub keys: KeySet,
    /// When their source last confirmed them.
    pub fetched_at: UnixTime,
}

/// Why a snapshot is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotError {
    /// It cannot be read.
    Unreadable(io::ErrorKind),
    /// A link, a folder or anything else that is no file.
    NotAFile,
    /// It belongs to another user, neither this process's nor root.
    OtherOwner,
    /// Everybody may write the file.
    WorldWritable,
    /// Everybody may replace the file: its folder is writable for all, and not sticky.
    FolderWorldWritable,
    /// Longer than this many bytes.
    TooLarge(usize),
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
            SnapshotError::Unreadable(kind) => return write!(f, "it cannot be read: {kind}"),
            SnapshotError::TooLarge(limit) => return write!(f, "it is longer than {limit} bytes"),
            SnapshotError::KeySet(error) => return error.fmt(f),
            SnapshotError::NotAFile => "it is not a regular file",
            SnapshotError::OtherOwner => "it belongs to another user",
            SnapshotError::WorldWritable => "everybody may write it",
            SnapshotError::FolderWorldWritable => "everybody may write its folder, which is not sticky",
            SnapshotError::Damaged => "it is damaged",
            SnapshotError::OtherIssuer => "it is of another issuer",
            SnapshotError::OtherSource => "its keys came from another place than the one configured",
            SnapshotError::TooOld => "it is older than max_stale",
            SnapshotError::FromTheFuture => "it is from the future: a clock was wrong",
        })
    }
}

impl std::error::Error for SnapshotError {}

impl From<io::Error> for SnapshotError {
    fn from(error: io::Error) -> Self {
        SnapshotError::Unreadable(error.kind())
    }
}

#[derive(Serialize, Deserialize)]
struct Sealed<'a> {
    sha256: String,
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
}

impl SnapshotFile {
    /// `NAME.json` in `folder`, for the keys that `issuer` publishes at `source`, a URL or a path.
    pub fn new(folder: &Path, name: &str, issuer: &str, source: &str, max_bytes: usize) -> Self {
        let max_bytes = max_bytes.saturating_add(FRAME_BYTES);
        let path = folder.join(format!("{name}.json"));
        Self { path, issuer: issuer.to_owned(), source: source.to_owned(), max_bytes }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it; `None` where there is none. Blocks.
    ///
    /// # Errors
    /// It must not be used, see [`SnapshotError`].
    pub fn read(&self, now: UnixTime, max_stale: Duration) -> Result<Option<Snapshot>, SnapshotError> {
        let Some(file) = open_checked(&self.path)? else { return Ok(None) };
        let mut text = String::new();
        let read = file.take(self.max_bytes as u64 + 1).read_to_string(&mut text);
        if text.len() > self.max_bytes {
            return Err(SnapshotError::TooLarge(self.max_bytes));
        }
        match read {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(SnapshotError::Damaged),
            read => read?,
        };
        self.check(&text, now, max_stale).map(Some)
    }

    fn check(&self, text: &str, now: UnixTime, max_stale: Duration) -> Result<Snapshot, SnapshotError> {
        let sealed: Sealed<'_> = serde_json::from_str(text).map_err(|_| SnapshotError::Damaged)?;
        if sealed.sha256 != seal(sealed.content) {
            return Err(SnapshotError::Damaged);
        }
        let content: Content =
            serde_json::from_str(sealed.content.get()).map_err(|_| SnapshotError::Damaged)?;
        if content.issuer != self.issuer {
            return Err(SnapshotError::OtherIssuer);
        }
        if content.source != self.source {
            return Err(SnapshotError::OtherSource);
        }
        let age = now.as_secs_f64() - content.fetched_at;
        if age > max_stale.as_secs_f64() {
            return Err(SnapshotError::TooOld);
        }
        if age < -CLOCK_SLACK.as_secs_f64() {
            return Err(SnapshotError::FromTheFuture);
        }
        let jwks = serde_json::json!({ "keys": content.keys }).to_string();
        let keys = KeySet::parse(jwks.as_bytes()).map_err(SnapshotError::KeySet)?;
        let since_epoch =
            Duration::try_from_secs_f64(content.fetched_at).map_err(|_| SnapshotError::Damaged)?;
        Ok(Snapshot { keys, fetched_at: UnixTime::from_epoch(since_epoch) })
    }

    /// Replaces it; its folder is made where there is none. Only this process's user can read the file or
    /// write it. Blocks.
    ///
    /// # Errors
    /// The folder cannot be written to; what was there before is still there.
    pub fn write(&self, keys: &KeySet, fetched_at: UnixTime) -> io::Result<()> {
        let content = serde_json::value::to_raw_value(&Content {
            issuer: self.issuer.clone(),
            source: self.source.clone(),
            fetched_at: fetched_at.as_secs_f64(),
            keys: keys.keys().iter().filter_map(|key| key.public_jwk()).collect(),
        })?;
        let sealed = serde_json::to_vec(&Sealed { sha256: seal(&content), content: &content })?;
        replace(&self.path, &sealed)
    }
}

/// Opens a file that nobody but its owner can have written; `None` where there is none. Blocks.
pub(super) fn open_checked(path: &Path) -> Result<Option<File>, SnapshotError> {
    // Looked at before it is opened, since opening a pipe would wait for a writer.
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
        Ok(metadata) if !metadata.is_file() => return Err(SnapshotError::NotAFile),
        Ok(_) => {}
    }
    if let Some(folder) = path.parent() {
        check_folder(&fs::metadata(folder)?)?;
    }
    let file = File::open(path)?;
    check_file(&file.metadata()?)?;
    Ok(Some(file))
}

/// Replaces a file as a whole; its folder is made where there is none. Blocks.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut file = tempfile::Builder::new()
        .prefix(".")
        .suffix(".partial")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    // The new name has to survive a loss of power as well.
    File::open(folder)?.sync_all()
}

pub(super) fn check_folder(metadata: &Metadata) -> Result<(), SnapshotError> {
    let (writable, sticky) = (metadata.mode() & 0o002 != 0, metadata.mode() & 0o1000 != 0);
    if writable && !sticky { Err(SnapshotError::FolderWorldWritable) } else { Ok(()) }
}

pub(super) fn check_file(metadata: &Metadata) -> Result<(), SnapshotError> {
    let ours = rustix::process::geteuid().as_raw();
    if !metadata.is_file() {
        Err(SnapshotError::NotAFile)
    } else if metadata.uid() != ours && metadata.uid() != 0 {
        Err(SnapshotError::OtherOwner)
    } else if metadata.mode() & 0o002 != 0 {
        Err(SnapshotError::WorldWritable)
    } else {
        Ok(())
    }
}

fn seal(content: &RawValue) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, content.get().as_bytes()))
}
