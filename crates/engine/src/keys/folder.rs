//! A folder of small files that hold what has to outlive a restart: read only if nobody else could have written them,
//! replaced as a whole, by one process at a time.

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

/// Another process that has a file locked is waited for this often, each time for so long.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Files of one provider, all of its realms together, that may be worked on at one time, each on a thread: a disk that
/// does not answer keeps it.
const MAX_THREADS: usize = 4;

/// A provider's share of the threads that block, for its files. Clones are the same share.
#[derive(Clone, Debug)]
pub struct FileThreads(Arc<Semaphore>);

impl Default for FileThreads {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_THREADS)))
    }
}

impl FileThreads {
    /// A share of which a disk that does not answer has taken every thread.
    #[cfg(test)]
    pub(crate) fn taken() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Does this on a thread, once there is one; `None` if it panicked.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let place = Arc::clone(&self.0).acquire_owned().await.ok()?;
        let on_a_thread = spawn_blocking(move || {
            let done = work();
            // The place is given back when the thread is, not when somebody gives up.
            drop(place);
            done
        });
        on_a_thread.await.ok()
    }
}

/// Where files are kept.
pub trait Folder: Send + Sync + fmt::Debug {
    /// The file's bytes; `None` where there is none.
    ///
    /// # Errors
    /// It must not be used.
    fn read(&self, name: &str, max_bytes: usize) -> Result<Option<Vec<u8>>, FolderError>;

    /// Replaces the file as a whole, or leaves what was there.
    ///
    /// # Errors
    /// It cannot be written, or what is written could not be used.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), FolderError>;

    /// Removes the file; nothing where there is none.
    ///
    /// # Errors
    /// It is still there.
    fn remove(&self, name: &str) -> Result<(), FolderError>;

    /// Keeps other processes from replacing the file, until what it returns is dropped; nothing where there is none.
    ///
    /// # Errors
    /// Another process does not let it go.
    fn lock(&self, name: &str) -> Result<Box<dyn Send>, FolderError>;

    /// Where a file is, for people.
    fn path(&self, name: &str) -> PathBuf;

    /// Whether these calls may take time, so that they belong on a thread of their own.
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
    /// A link, a folder or anything else that is no file.
    NotAFile,
    /// The file or its folder belongs to another user, neither this process's nor root.
    OtherOwner {
        /// Which of the two.
        what: What,
        /// Whose it is.
        uid: u32,
    },
    /// Others than its owner may write the file, or replace it in its folder, which is not sticky.
    OthersMayWrite {
        /// Which of the two.
        what: What,
        /// Its permission bits.
        mode: u32,
    },
    /// Longer than this many bytes.
    TooLarge(usize),
    /// Another process keeps it locked.
    Locked,
}

/// A file, or the folder that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
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
            FolderError::OtherOwner { what: What::File, uid } => {
                write!(f, "it belongs to another user (uid {uid})")
            }
            FolderError::OtherOwner { what: What::Folder, uid } => {
                write!(f, "its folder belongs to another user (uid {uid})")
            }
            FolderError::OthersMayWrite { what, mode } => {
                let who = if mode & 0o002 != 0 { "everybody" } else { "its group" };
                let (object, hint) = match what {
                    What::File => ("it", "expected 0600"),
                    What::Folder => ("its folder, which is not sticky", "expected 0700 or 0755"),
                };
                write!(f, "{who} may write {object} (mode {:04o}, {hint})", mode & 0o7777)
            }
            FolderError::TooLarge(limit) => write!(f, "it is longer than {limit} bytes"),
            FolderError::Locked => f.write_str("another process keeps it locked"),
        }
    }
}

impl std::error::Error for FolderError {}

impl From<io::Error> for FolderError {
    fn from(error: io::Error) -> Self {
        FolderError::Io(error.kind())
    }
}

/// A folder of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFolder(PathBuf);

impl DiskFolder {
    /// At this path; it is made where there is none, for this process's user alone.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl Folder for DiskFolder {
    fn read(&self, name: &str, max_bytes: usize) -> Result<Option<Vec<u8>>, FolderError> {
        // Neither a link is followed nor a pipe's other end waited for.
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
        check(&fs::metadata(&self.0)?, What::Folder)?;
        check(&metadata, What::File)?;
        let mut bytes = Vec::new();
        file.take(max_bytes as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > max_bytes { Err(FolderError::TooLarge(max_bytes)) } else { Ok(Some(bytes)) }
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), FolderError> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        // What would not be read is not written.
        check(&fs::metadata(&self.0)?, What::Folder)?;
        let mut file = tempfile::Builder::new()
            .prefix(".")
            .suffix(".partial")
            .permissions(Permissions::from_mode(0o600))
            .tempfile_in(&self.0)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(self.path(name)).map_err(|error| error.error)?;
        // The new name has to survive a loss of power as well.
        Ok(File::open(&self.0)?.sync_all()?)
    }

    fn remove(&self, name: &str) -> Result<(), FolderError> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn lock(&self, name: &str) -> Result<Box<dyn Send>, FolderError> {
        // The file itself, which nobody else can open: whoever may only read the folder cannot hold it.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let path = self.path(name);
        for _ in 0..LOCK_TRIES {
            let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path);
            // Where there is none, or none that can be written, nobody changes anything that could be lost.
            let Ok(file) = opened else { return Ok(Box::new(())) };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // It may have been replaced meanwhile by who had it locked.
                Ok(()) if is_at(&file, &path) => return Ok(Box::new(file)),
                Ok(()) => {}
                Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(LOCK_PAUSE),
                // A file system without such locks, where the order of replacements is all that there is.
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
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(own), Ok(there)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    (own.dev(), own.ino()) == (there.dev(), there.ino())
}

/// Whether nobody but this process's user or root can have written a file, or can replace one in a folder.
pub(super) fn check(metadata: &Metadata, what: What) -> Result<(), FolderError> {
    let ours = rustix::process::geteuid().as_raw();
    let (uid, mode) = (metadata.uid(), metadata.mode());
    let sticky = what == What::Folder && mode & 0o1000 != 0;
    if uid != ours && uid != 0 {
        Err(FolderError::OtherOwner { what, uid })
    } else if mode & 0o022 != 0 && !sticky {
        Err(FolderError::OthersMayWrite { what, mode })
    } else {
        Ok(())
    }
}
