//! Files that are reloaded when they change. A change is accepted once two consecutive polls have read the same
//! contents, of all files of a set together, so that no half-written file is used.
//!
//! Files are compared by content. A path is resolved at each poll, so that the replacement of a symbolic link
//! (Kubernetes' `..data`) is noticed like any other change. A file that is not regular, such as a pipe, is read once
//! and not opened again until a regular file has replaced it. A disk that does not respond blocks one thread of each
//! set and nothing else.
//!
//! This module does not interpret the contents and logs nothing.

use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::OFlags;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use crate::clock::{self, Instant};

/// How long a poll may take. A slower one is reported as [`FileErrorKind::Timeout`].
pub const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Files that belong together, and the size limit of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSet {
    paths: Vec<PathBuf>,
    max_bytes: usize,
}

/// The contents of a set of files. `Debug` shows the paths alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Contents(Vec<Content>);

#[derive(Clone)]
struct Content {
    path: PathBuf,
    bytes: Bytes,
    /// A file that is not regular is not opened again.
    regular: bool,
    /// The file that was read; `None` if it changed meanwhile or is not regular.
    source: Option<Source>,
}

/// The source is ignored.
impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        (&self.path, self.regular, &self.bytes) == (&other.path, other.regular, &other.bytes)
    }
}

impl Eq for Content {}

/// The file that was read.
#[derive(Clone, PartialEq, Eq)]
struct Source {
    /// Its path without symbolic links.
    path: PathBuf,
    /// Whether it was last modified, and its inode last changed, before the newest symbolic link on the path was made.
    older_than_links: bool,
}

impl Source {
    /// Whether a symbolic link now points to this file, which was complete at that time and has not been modified
    /// since. A rename is not detected, since a hard link, a `chmod` and a rename leave the same traces.
    fn replaced_atomically(&self, other: &Source) -> bool {
        self.path != other.path && self.older_than_links
    }
}

/// The ctime of the newest symbolic link on a path, in seconds and nanoseconds; `None` if there is none.
fn newest_link(path: &Path) -> io::Result<Option<(i64, i64)>> {
    /// The limit of Linux.
    const MAX_LINKS: usize = 40;
    let mut newest = None;
    let mut pending: Vec<PathBuf> = vec![std::path::absolute(path)?];
    let mut at = PathBuf::new();
    let mut links = 0;
    while let Some(part) = pending.pop() {
        let mut components = part.components();
        let Some(component) = components.next() else { continue };
        pending.push(components.as_path().to_owned());
        let next = match component {
            // `..` is resolved after links have been followed.
            Component::ParentDir => at.parent().map_or_else(PathBuf::new, Path::to_owned),
            component => at.join(component),
        };
        let metadata = fs::symlink_metadata(&next)?;
        if !metadata.file_type().is_symlink() {
            at = next;
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(ErrorKind::Other.into());
        }
        newest = newest.max(Some((metadata.ctime(), metadata.ctime_nsec())));
        pending.push(fs::read_link(&next)?);
    }
    Ok(newest)
}

/// An error about one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// The error.
    pub kind: FileErrorKind,
}

/// Why a file cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileErrorKind {
    /// It cannot be opened or read.
    Io(ErrorKind),
    /// It is not a regular file, or no longer.
    NotRegular,
    /// Longer than this many bytes.
    TooLarge(usize),
    /// It could not be read within this time.
    Timeout(Duration),
}

impl FileErrorKind {
    /// Maps the errors of the functions below.
    fn of(error: &io::Error, max_bytes: usize) -> Self {
        match error.kind() {
            ErrorKind::FileTooLarge => FileErrorKind::TooLarge(max_bytes),
            ErrorKind::InvalidInput => FileErrorKind::NotRegular,
            kind => FileErrorKind::Io(kind),
        }
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.kind)
    }
}

impl fmt::Display for FileErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileErrorKind::Io(kind) => write!(f, "the file cannot be read: {kind}"),
            FileErrorKind::NotRegular => f.write_str("it is not a regular file"),
            FileErrorKind::TooLarge(limit) => write!(f, "the file is longer than {limit} bytes"),
            FileErrorKind::Timeout(time) => write!(f, "the file cannot be read within {} s", time.as_secs()),
        }
    }
}

impl std::error::Error for FileError {}

impl FileSet {
    /// These files, with a limit of `max_bytes` for each.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>, max_bytes: usize) -> Self {
        Self { paths: paths.into_iter().collect(), max_bytes }
    }

    /// Reads all files. Blocks, for a pipe until its other end is closed.
    ///
    /// # Errors
    /// The first file that cannot be read.
    pub fn read(&self) -> Result<Contents, FileError> {
        self.paths.iter().map(|path| self.read_one(path, read_any)).collect::<Result<_, _>>().map(Contents)
    }

    /// Reads all files, each of which must be a regular file. Blocks, but never on a pipe.
    ///
    /// # Errors
    /// As for [`FileSet::read`].
    pub fn read_regular(&self) -> Result<Contents, FileError> {
        self.paths
            .iter()
            .map(|path| self.read_one(path, read_regular))
            .collect::<Result<_, _>>()
            .map(Contents)
    }

    /// Like [`FileSet::read`], on a thread that does not delay the end of the process: for files that may be pipes
    /// without a writer.
    ///
    /// # Errors
    /// As for [`FileSet::read`].
    pub async fn read_detached(&self) -> Result<Contents, FileError> {
        let (sender, read) = oneshot::channel();
        let set = self.clone();
        let read_and_send = move || {
            // The receiver may be gone.
            let _receiver_gone = sender.send(set.read());
        };
        let started = std::thread::Builder::new().name("read-file".to_owned()).spawn(read_and_send);
        match started {
            Ok(_) => read.await.unwrap_or_else(|_| Err(self.failed(FileErrorKind::Io(ErrorKind::Other)))),
            Err(error) => Err(self.failed(FileErrorKind::Io(error.kind()))),
        }
    }

    /// Reads pipes, each until its writer closes it. Cancel safe. Needs a tokio runtime.
    ///
    /// # Errors
    /// One is not a pipe, cannot be read, or is too long.
    pub async fn read_pipes(&self) -> Result<Contents, FileError> {
        let mut contents = Vec::new();
        for path in &self.paths {
            let bytes = read_pipe(path, self.max_bytes).await.map_err(|error| FileError {
                path: path.clone(),
                kind: FileErrorKind::of(&error, self.max_bytes),
            })?;
            contents.push(Content { path: path.clone(), bytes: bytes.into(), regular: false, source: None });
        }
        Ok(Contents(contents))
    }

    /// Reads the regular files again; a file that was not regular and is not now keeps its content. Blocks, but never
    /// on a pipe.
    fn poll(&self, before: &Contents) -> Result<Contents, FileError> {
        let is_regular = |path: &Path| fs::metadata(path).is_ok_and(|file| file.is_file());
        let poll = |path: &PathBuf| match before.content(path) {
            Some(content) if !content.regular && !is_regular(path) => Ok(content.clone()),
            _ => self.read_one(path, read_regular),
        };
        self.paths.iter().map(poll).collect::<Result<_, _>>().map(Contents)
    }

    fn read_one(
        &self,
        path: &Path,
        read: fn(&Path, usize) -> io::Result<FileRead>,
    ) -> Result<Content, FileError> {
        match read(path, self.max_bytes) {
            Ok(FileRead { bytes, regular, source }) => {
                Ok(Content { path: path.to_owned(), bytes: bytes.into(), regular, source })
            }
            Err(error) => {
                Err(FileError { path: path.to_owned(), kind: FileErrorKind::of(&error, self.max_bytes) })
            }
        }
    }

    fn failed(&self, kind: FileErrorKind) -> FileError {
        FileError { path: self.paths.first().cloned().unwrap_or_default(), kind }
    }
}

impl Contents {
    /// The content of this file; `None` if it is not in the set.
    pub fn of(&self, path: &Path) -> Option<&Bytes> {
        self.content(path).map(|content| &content.bytes)
    }

    /// Whether any of them was a regular file: pipes are not read again.
    pub fn can_change(&self) -> bool {
        self.0.iter().any(|content| content.regular)
    }

    /// Whether each changed file was complete when it replaced the previous one: a symbolic link was replaced.
    fn replaced_atomically(&self, before: &Contents) -> bool {
        let atomic = |content: &Content| {
            let Some(old) = before.content(&content.path) else { return false };
            let sources = content.source.as_ref().zip(old.source.as_ref());
            content == old || sources.is_some_and(|(new, old)| new.replaced_atomically(old))
        };
        self.0.iter().all(atomic)
    }

    fn content(&self, path: &Path) -> Option<&Content> {
        self.0.iter().find(|content| content.path == path)
    }
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|content| &content.path)).finish()
    }
}

/// A file that was read.
struct FileRead {
    bytes: Vec<u8>,
    regular: bool,
    source: Option<Source>,
}

/// Reads a regular file of at most `max_bytes`. Never blocks on a pipe.
///
/// # Errors
/// It cannot be read, is not a regular file, or is too long.
pub fn read_regular_file(path: &Path, max_bytes: usize) -> Result<Vec<u8>, FileErrorKind> {
    read_regular(path, max_bytes).map(|read| read.bytes).map_err(|error| FileErrorKind::of(&error, max_bytes))
}

fn read_regular(path: &Path, max_bytes: usize) -> io::Result<FileRead> {
    // Checked before opening, which would release a writer that waits for a reader of a pipe.
    if !fs::metadata(path)?.is_file() {
        return Err(ErrorKind::InvalidInput.into());
    }
    let target = fs::canonicalize(path)?;
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let before = file.metadata()?;
    if !before.is_file() {
        return Err(ErrorKind::InvalidInput.into());
    }
    let bytes = read_bounded(&file, max_bytes)?;
    Ok(FileRead { bytes, regular: true, source: source_if_unchanged(path, target, &before, &file) })
}

/// The source, if the file did not change while it was read.
fn source_if_unchanged(path: &Path, target: PathBuf, before: &Metadata, file: &File) -> Option<Source> {
    let timestamps = |of: &Metadata| (of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec());
    let same =
        timestamps(&file.metadata().ok()?) == timestamps(before) && fs::canonicalize(path).ok()? == target;
    let modified = (before.mtime(), before.mtime_nsec()).max((before.ctime(), before.ctime_nsec()));
    let older_than_links = newest_link(path).ok()?.is_some_and(|link| modified < link);
    same.then_some(Source { path: target, older_than_links })
}

/// Reads any kind of file.
fn read_any(path: &Path, max_bytes: usize) -> io::Result<FileRead> {
    match read_regular(path, max_bytes) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => {}
        read => return read,
    }
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NOCTTY.bits() as i32).open(path)?;
    Ok(FileRead { bytes: read_bounded(file, max_bytes)?, regular: false, source: None })
}

async fn read_pipe(path: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
    let pipe = pipe::OpenOptions::new().open_receiver(path)?;
    let mut bytes = Vec::new();
    pipe.take((max_bytes as u64).saturating_add(1)).read_to_end(&mut bytes).await?;
    if bytes.len() > max_bytes { Err(ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

fn read_bounded(file: impl Read, max_bytes: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than allowed distinguishes a file that is too long from one that just fits.
    file.take((max_bytes as u64).saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() > max_bytes { Err(ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

/// Decides when a change is accepted. Pure: observations and their times are arguments.
#[derive(Clone, Debug)]
pub struct Debounce<C> {
    accepted: C,
    candidate: Option<Candidate<C>>,
}

/// A state that differs from the current one, when it was first observed, and in how many consecutive polls.
#[derive(Clone, Debug)]
struct Candidate<C> {
    state: Result<C, FileError>,
    since: Instant,
    polls: u32,
}

/// The result of a poll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// The current state.
    Unchanged,
    /// It differs from the current state and from the previous poll: it is being written or replaced.
    Changing,
    /// It differs, and has been the same for this long, in at least two polls.
    Settled(Duration),
    /// It failed with the same error for the second time in a row. Reported once.
    Unreadable(FileError),
}

impl<C: PartialEq> Debounce<C> {
    /// Starts with the state that was read.
    pub fn at(accepted: C) -> Self {
        Self { accepted, candidate: None }
    }

    /// The accepted state.
    pub fn accepted(&self) -> &C {
        &self.accepted
    }

    /// Whether the last poll differed from the accepted state.
    pub fn differs(&self) -> bool {
        self.candidate.is_some()
    }

    /// Records a poll.
    pub fn poll(&mut self, read: Result<C, FileError>, now: Instant) -> Observation {
        let read = match read {
            Ok(read) if read == self.accepted => {
                self.accept(read);
                return Observation::Unchanged;
            }
            read => read,
        };
        let Some(candidate) = self.candidate.as_mut().filter(|candidate| candidate.state == read) else {
            self.candidate = Some(Candidate { state: read, since: now, polls: 1 });
            return Observation::Changing;
        };
        candidate.polls = candidate.polls.saturating_add(1);
        match &candidate.state {
            Ok(_) => Observation::Settled(now.saturating_duration_since(candidate.since)),
            Err(error) if candidate.polls == 2 => Observation::Unreadable(error.clone()),
            Err(_) => Observation::Changing,
        }
    }

    /// Accepts this state.
    pub fn accept(&mut self, contents: C) {
        self.accepted = contents;
        self.candidate = None;
    }
}

/// A set of files that is polled.
#[derive(Debug)]
pub struct WatchedFiles {
    set: Arc<FileSet>,
    interval: Duration,
    debounce: Debounce<Contents>,
    next_poll: Instant,
    in_progress: Option<JoinHandle<Result<Contents, FileError>>>,
}

/// A change of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileEvent {
    /// One poll has read other contents: they are being written. `None` if a file cannot be read.
    Changing(Option<Contents>),
    /// The accepted contents are back.
    Reverted,
    /// Two consecutive polls have read the same new contents. They become current with [`WatchedFiles::accept`].
    Settled {
        /// The contents of both polls; nothing is read again.
        contents: Contents,
        /// How long they have been the same.
        settled_for: Duration,
        /// Whether each changed file was complete when it replaced the previous one.
        atomic: bool,
    },
    /// Two consecutive polls could not read a file; the accepted contents stay current.
    Unreadable(FileError),
}

impl WatchedFiles {
    /// Polls the files at this interval. It starts from contents that were read before, so that no change in between
    /// is missed.
    pub fn since(set: FileSet, accepted: Contents, interval: Duration) -> Self {
        let next_poll = clock::monotonic() + interval;
        Self { set: Arc::new(set), interval, debounce: Debounce::at(accepted), next_poll, in_progress: None }
    }

    /// Waits for the next event. Settled contents that are not accepted are reported again at every poll that reads
    /// them. Cancel safe.
    pub async fn next_event(&mut self) -> FileEvent {
        loop {
            clock::sleep_until(self.next_poll).await;
            let read = self.poll().await;
            let now = clock::monotonic();
            self.next_poll = now + self.interval;
            let contents = read.as_ref().ok().cloned();
            let differed = self.debounce.differs();
            match (self.debounce.poll(read, now), contents) {
                (Observation::Unchanged, _) if differed => return FileEvent::Reverted,
                (Observation::Unchanged, _) => {}
                (Observation::Settled(settled_for), Some(contents)) => {
                    let atomic = contents.replaced_atomically(self.debounce.accepted());
                    return FileEvent::Settled { contents, settled_for, atomic };
                }
                (Observation::Unreadable(error), _) => return FileEvent::Unreadable(error),
                (Observation::Changing | Observation::Settled(_), contents) => {
                    return FileEvent::Changing(contents);
                }
            }
        }
    }

    /// Waits for changed contents and accepts them. `unreadable` is called when two consecutive polls have failed.
    pub async fn changed(&mut self, mut unreadable: impl FnMut(FileError)) -> Contents {
        loop {
            match self.next_event().await {
                FileEvent::Settled { contents, .. } => {
                    self.accept(contents.clone());
                    return contents;
                }
                FileEvent::Unreadable(error) => unreadable(error),
                FileEvent::Changing(_) | FileEvent::Reverted => {}
            }
        }
    }

    /// Reads the files now and accepts the contents, settled or not.
    ///
    /// # Errors
    /// A file cannot be read, or not within [`READ_TIMEOUT`]; nothing has changed then.
    pub async fn read_now(&mut self) -> Result<Contents, FileError> {
        if self.in_progress.is_some() {
            // That poll began earlier and may have read the previous contents.
            self.poll().await?;
        }
        let contents = self.poll().await?;
        self.next_poll = clock::monotonic() + self.interval;
        self.accept(contents.clone());
        Ok(contents)
    }

    /// Accepts these contents.
    pub fn accept(&mut self, contents: Contents) {
        self.debounce.accept(contents);
    }

    /// Polls on a blocking thread. A poll that does not end is awaited again, and no second one is started.
    async fn poll(&mut self) -> Result<Contents, FileError> {
        let in_progress = self.in_progress.get_or_insert_with(|| {
            let (set, before) = (Arc::clone(&self.set), self.debounce.accepted().clone());
            spawn_blocking(move || set.poll(&before))
        });
        match timeout(READ_TIMEOUT, in_progress).await {
            Ok(read) => {
                self.in_progress = None;
                read.unwrap_or_else(|_| Err(self.set.failed(FileErrorKind::Io(ErrorKind::Other))))
            }
            Err(_) => Err(self.set.failed(FileErrorKind::Timeout(READ_TIMEOUT))),
        }
    }
}

#[cfg(test)]
mod tests;
