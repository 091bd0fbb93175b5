//! A folder of small files that survive a restart: read only if no other user could have written them, replaced
//! atomically, by one process at a time.

use std::fmt;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// How often a lock that another process holds is tried, and the delay in between.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Concurrent file operations of one provider, all of its realms together, each on a thread: a disk that does not
/// respond blocks it.
const MAX_THREADS: usize = 4;

/// A limit of blocking threads for a provider's files. Clones share it.
#[derive(Clone, Debug)]
pub struct FileThreads(Arc<Semaphore>);

impl Default for FileThreads {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_THREADS)))
    }
}

impl FileThreads {
    /// A limit with every thread blocked.
    #[cfg(test)]
    pub(crate) fn exhausted() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Runs `work` on a thread, once one is available; `None` if it panicked.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let permit = Arc::clone(&self.0).acquire_owned().await.ok()?;
        let task = spawn_blocking(move || {
            let output = work();
            // The permit is released when the thread ends, not when the caller gives up.
            drop(permit);
            output
        });
        task.await.ok()
    }
}

/// A place for files.
pub trait Folder: Send + Sync + fmt::Debug {
    /// The content of the file; `None` if there is none.
    ///
    /// # Errors
    /// It must not be used.
    fn read(&self, name: &str, max_bytes: usize) -> Result<Option<Vec<u8>>, FolderError>;

    /// Replaces the file atomically.
    ///
    /// # Errors
    /// It cannot be written, or what is written would not be accepted.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), FolderError>;

    /// Removes the file, if it exists.
    ///
    /// # Errors
    /// It still exists.
    fn remove(&self, name: &str) -> Result<(), FolderError>;

    /// Keeps other processes from replacing the file until the returned value is dropped; does nothing if the file
    /// does not exist.
    ///
    /// # Errors
    /// Another process holds the lock.
    fn lock(&self, name: &str) -> Result<Box<dyn Send>, FolderError>;

    /// The path of a file, for messages.
    fn path(&self, name: &str) -> PathBuf;

    /// Whether these calls may block, and so need a thread.
    fn blocks(&self) -> bool {
        true
    }
}

/// Why a file is not used or not written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FolderError {
    /// It cannot be read or written.
    Io(io::ErrorKind),
    /// A link, a folder or anything else that is not a regular file.
    NotAFile,
    /// The file or its folder belongs to a user other than this process's or root.
    OtherOwner {
        /// Which of the two.
        item: FolderItem,
        /// Its owner.
        uid: u32,
    },
    /// Others than its owner may write the file, or replace it in its folder, which is not sticky.
    OthersMayWrite {
        /// Which of the two.
        item: FolderItem,
        /// Its permission bits.
        mode: u32,
    },
    /// Longer than this many bytes.
    TooLarge(usize),
    /// Another process holds the lock.
    Locked,
}

/// A file or its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolderItem {
    /// The file.
    File,
    /// Its folder.
    Folder,
}

impl fmt::Display for FolderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FolderError::Io(kind) => write!(f, "it cannot be read or written: {kind}"),
            FolderError::NotAFile => f.write_str("it is not a regular file"),
            FolderError::OtherOwner { item: FolderItem::File, uid } => {
                write!(f, "it belongs to another user (uid {uid})")
            }
            FolderError::OtherOwner { item: FolderItem::Folder, uid } => {
                write!(f, "its folder belongs to another user (uid {uid})")
            }
            FolderError::OthersMayWrite { item, mode } => {
                let who = if mode & 0o002 != 0 { "anyone" } else { "its group" };
                let (object, hint) = match item {
                    FolderItem::File => ("it", "expected 0600"),
                    FolderItem::Folder => ("its folder, which is not sticky", "expected 0700 or 0755"),
                };
                write!(f, "{who} may write {object} (mode {:04o}, {hint})", mode & 0o7777)
            }
            FolderError::TooLarge(limit) => write!(f, "it is longer than {limit} bytes"),
            FolderError::Locked => f.write_str("another process holds its lock"),
        }
    }
}

impl std::error::Error for FolderError {}

impl From<io::Error> for FolderError {
    fn from(error: io::Error) -> Self {
        FolderError::Io(error.kind())
    }
}

/// A folder on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFolder(PathBuf);

impl DiskFolder {
    /// The folder at this path; it is created if missing, for this process's user alone.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl Folder for DiskFolder {
    fn read(&self, name: &str, max_bytes: usize) -> Result<Option<Vec<u8>>, FolderError> {
        // Links are not followed, and opening a pipe does not block.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(self.path(name));
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // A link (ELOOP), or a socket (ENXIO).
            Err(error)
                if [Errno::LOOP, Errno::NXIO]
                    .iter()
                    .any(|one| error.raw_os_error() == Some(one.raw_os_error())) =>
            {
                return Err(FolderError::NotAFile);
            }
            Err(error) => return Err(error.into()),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(FolderError::NotAFile);
        }
        check_owner(&fs::metadata(&self.0)?, FolderItem::Folder)?;
        check_owner(&metadata, FolderItem::File)?;
        let mut bytes = Vec::new();
        file.take(max_bytes as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > max_bytes { Err(FolderError::TooLarge(max_bytes)) } else { Ok(Some(bytes)) }
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), FolderError> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        // A folder that would not be read from is not written to.
        check_owner(&fs::metadata(&self.0)?, FolderItem::Folder)?;
        let mut file = tempfile::Builder::new()
            .prefix(".")
            .suffix(".partial")
            .permissions(Permissions::from_mode(0o600))
            .tempfile_in(&self.0)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(self.path(name)).map_err(|error| error.error)?;
        // Makes the rename survive a power failure.
        Ok(File::open(&self.0)?.sync_all()?)
    }

    fn remove(&self, name: &str) -> Result<(), FolderError> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn lock(&self, name: &str) -> Result<Box<dyn Send>, FolderError> {
        // The file itself is locked: other users cannot open it, though they may read the folder.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let path = self.path(name);
        for _ in 0..LOCK_TRIES {
            let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path);
            // If it does not exist or cannot be written, no other process can change it either.
            let Ok(file) = opened else { return Ok(Box::new(())) };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // The holder of the lock may have replaced it meanwhile.
                Ok(()) if is_same_file(&file, &path) => return Ok(Box::new(file)),
                Ok(()) => {}
                Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(LOCK_PAUSE),
                // A file system without locks: replacements are atomic, but not ordered.
                Err(_) => return Ok(Box::new(())),
            }
        }
        Err(FolderError::Locked)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// Whether this is the file at this path.
fn is_same_file(file: &File, path: &Path) -> bool {
    let (Ok(own), Ok(there)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    (own.dev(), own.ino()) == (there.dev(), there.ino())
}

/// Whether no other user but root can have written a file, or can replace one in a folder.
pub(super) fn check_owner(metadata: &Metadata, item: FolderItem) -> Result<(), FolderError> {
    let ours = rustix::process::geteuid().as_raw();
    let (uid, mode) = (metadata.uid(), metadata.mode());
    let sticky = item == FolderItem::Folder && mode & 0o1000 != 0;
    if uid != ours && uid != 0 {
        Err(FolderError::OtherOwner { item, uid })
    } else if mode & 0o022 != 0 && !sticky {
        Err(FolderError::OthersMayWrite { item, mode })
    } else {
        Ok(())
    }
}
