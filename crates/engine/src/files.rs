//! Files that are read again when they change: what is taken is what two looks in a row have shown, of all files of a
//! set together, so that nobody goes by a file that is half written.
//!
//! Files are told apart by what is in them. A path is resolved anew at each look, so that the exchange of a symbolic
//! link (Kubernetes' `..data`) is a change like any other. What is no regular file, a pipe for one, is read once and not
//! opened again before a regular file stands in its place. A disk that does not answer takes one thread of each set, and
//! holds up nobody else.
//!
//! It knows nothing of what is in the files, and logs nothing.

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

/// How long one look is waited for. One that takes longer counts as a file that does not answer.
pub const LOOKING: Duration = Duration::from_secs(5);

/// Which files belong together, and how much of each is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSet {
    paths: Vec<PathBuf>,
    max_bytes: usize,
}

/// What is in the files of a set. What is shown of it for people is their names alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Contents(Vec<Content>);

#[derive(Clone)]
struct Content {
    path: PathBuf,
    bytes: Bytes,
    /// What is none is not opened again.
    regular: bool,
    /// What the bytes were read from; `None` where it changed meanwhile, and of what is no regular file.
    source: Option<Source>,
}

/// Where it was read from makes no difference.
impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        (&self.path, self.regular, &self.bytes) == (&other.path, other.regular, &other.bytes)
    }
}

impl Eq for Content {}

/// Where a file was read.
#[derive(Clone, PartialEq, Eq)]
struct Source {
    /// Its path without symbolic links.
    place: PathBuf,
    /// Whether it was last written, and changed in any other way, before the newest symbolic link that leads there.
    older_than_its_links: bool,
}

impl Source {
    /// A symbolic link leads elsewhere, to a file that was whole when it began to: nothing has been done to that since. What was
    /// renamed is no proof, since a link to the file, another mode and a rename look the same afterwards.
    fn took_the_place_of(&self, other: &Source) -> bool {
        self.place != other.place && self.older_than_its_links
    }
}

/// When the newest symbolic link of those that a path leads through was made, in seconds and nanoseconds; `None` where
/// there is none.
fn newest_link(path: &Path) -> io::Result<Option<(i64, i64)>> {
    /// As many as Linux follows.
    const MOST: usize = 40;
    let mut newest = None;
    let mut left: Vec<PathBuf> = vec![std::path::absolute(path)?];
    let mut at = PathBuf::new();
    let mut followed = 0;
    while let Some(part) = left.pop() {
        let mut steps = part.components();
        let Some(step) = steps.next() else { continue };
        left.push(steps.as_path().to_owned());
        let next = match step {
            // What `..` leads to is known once links are followed.
            Component::ParentDir => at.parent().map_or_else(PathBuf::new, Path::to_owned),
            step => at.join(step),
        };
        let found = fs::symlink_metadata(&next)?;
        if !found.file_type().is_symlink() {
            at = next;
            continue;
        }
        followed += 1;
        if followed > MOST {
            return Err(ErrorKind::Other.into());
        }
        newest = newest.max(Some((found.ctime(), found.ctime_nsec())));
        left.push(fs::read_link(&next)?);
    }
    Ok(newest)
}

/// A file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Which.
    pub file: PathBuf,
    /// Why.
    pub why: Why,
}

/// Why a file cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It cannot be opened or read.
    Io(ErrorKind),
    /// It is no regular file, or none any more.
    NotRegular,
    /// Longer than this many bytes.
    TooLong(usize),
    /// No answer for so long.
    NoAnswer(Duration),
}

impl Why {
    /// As the functions below tell it.
    fn of(error: &io::Error, max_bytes: usize) -> Self {
        match error.kind() {
            ErrorKind::FileTooLarge => Why::TooLong(max_bytes),
            ErrorKind::InvalidInput => Why::NotRegular,
            kind => Why::Io(kind),
        }
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.why)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Io(kind) => write!(f, "the file cannot be read: {kind}"),
            Why::NotRegular => f.write_str("it is not a regular file"),
            Why::TooLong(limit) => write!(f, "the file is longer than {limit} bytes"),
            Why::NoAnswer(time) => write!(f, "the file cannot be read within {} s", time.as_secs()),
        }
    }
}

impl std::error::Error for Unreadable {}

impl FileSet {
    /// These files, of each of which at most so many bytes are read.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>, max_bytes: usize) -> Self {
        Self { paths: paths.into_iter().collect(), max_bytes }
    }

    /// Reads all of them, pipes as well, whose other end is waited for. Blocks.
    ///
    /// # Errors
    /// The first that cannot be read.
    pub fn read(&self) -> Result<Contents, Unreadable> {
        self.paths.iter().map(|path| self.read_one(path, read_any)).collect::<Result<_, _>>().map(Contents)
    }

    /// Reads all of them, of which each has to be a regular file: nobody is waited for. Blocks.
    ///
    /// # Errors
    /// As for [`FileSet::read`].
    pub fn read_regular(&self) -> Result<Contents, Unreadable> {
        self.paths
            .iter()
            .map(|path| self.read_one(path, read_regular))
            .collect::<Result<_, _>>()
            .map(Contents)
    }

    /// As [`FileSet::read`], on a thread that nothing waits for at the end of the process: for what may be a pipe whose other end
    /// nobody ever opens.
    ///
    /// # Errors
    /// As for [`FileSet::read`].
    pub async fn read_apart(&self) -> Result<Contents, Unreadable> {
        let (done, read) = oneshot::channel();
        let set = self.clone();
        let read_and_tell = move || {
            // Nobody may be waiting for it any more.
            let _unheard = done.send(set.read());
        };
        let started = std::thread::Builder::new().name("read-file".to_owned()).spawn(read_and_tell);
        match started {
            Ok(_) => read.await.unwrap_or_else(|_| Err(self.failed(Why::Io(ErrorKind::Other)))),
            Err(error) => Err(self.failed(Why::Io(error.kind()))),
        }
    }

    /// Reads pipes, each once somebody has written to it and closed it. Nothing is left behind where the future is dropped. Needs
    /// a tokio runtime.
    ///
    /// # Errors
    /// One is no pipe, cannot be read, or is longer.
    pub async fn read_pipes(&self) -> Result<Contents, Unreadable> {
        let mut contents = Vec::new();
        for path in &self.paths {
            let bytes = read_pipe(path, self.max_bytes)
                .await
                .map_err(|error| Unreadable { file: path.clone(), why: Why::of(&error, self.max_bytes) })?;
            contents.push(Content { path: path.clone(), bytes: bytes.into(), regular: false, source: None });
        }
        Ok(Contents(contents))
    }

    /// Reads those again that are regular files; one that was none before and is none now is as it was. Blocks, but for
    /// nobody at the other end of a pipe.
    fn look(&self, before: &Contents) -> Result<Contents, Unreadable> {
        let is_regular = |path: &Path| fs::metadata(path).is_ok_and(|file| file.is_file());
        let look = |path: &PathBuf| match before.content(path) {
            Some(content) if !content.regular && !is_regular(path) => Ok(content.clone()),
            _ => self.read_one(path, read_regular),
        };
        self.paths.iter().map(look).collect::<Result<_, _>>().map(Contents)
    }

    fn read_one(
        &self,
        path: &Path,
        read: fn(&Path, usize) -> io::Result<Bounded>,
    ) -> Result<Content, Unreadable> {
        match read(path, self.max_bytes) {
            Ok(Bounded { bytes, regular, source }) => {
                Ok(Content { path: path.to_owned(), bytes: bytes.into(), regular, source })
            }
            Err(error) => Err(Unreadable { file: path.to_owned(), why: Why::of(&error, self.max_bytes) }),
        }
    }

    fn failed(&self, why: Why) -> Unreadable {
        Unreadable { file: self.paths.first().cloned().unwrap_or_default(), why }
    }
}

impl Contents {
    /// What is in this file of the set; `None` where it is none of the set.
    pub fn of(&self, path: &Path) -> Option<&Bytes> {
        self.content(path).map(|content| &content.bytes)
    }

    /// Whether any of them was a regular file: what was read of a pipe is not read again.
    pub fn can_change(&self) -> bool {
        self.0.iter().any(|content| content.regular)
    }

    /// Whether each file that differs was whole when it took the place of the other: a symbolic link was exchanged.
    fn came_whole_after(&self, before: &Contents) -> bool {
        let came_whole = |content: &Content| {
            let Some(old) = before.content(&content.path) else { return false };
            let sources = content.source.as_ref().zip(old.source.as_ref());
            content == old || sources.is_some_and(|(new, old)| new.took_the_place_of(old))
        };
        self.0.iter().all(came_whole)
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

/// What was read of a file.
struct Bounded {
    bytes: Vec<u8>,
    regular: bool,
    source: Option<Source>,
}

/// The bytes of a regular file, of which no more than these are read. Nobody is waited for at the other end of a pipe.
///
/// # Errors
/// It cannot be read, is no regular file, or is longer.
pub fn read_regular_file(path: &Path, max_bytes: usize) -> Result<Vec<u8>, Why> {
    read_regular(path, max_bytes).map(|read| read.bytes).map_err(|error| Why::of(&error, max_bytes))
}

fn read_regular(path: &Path, max_bytes: usize) -> io::Result<Bounded> {
    // Before it is opened: a writer that waits at a pipe for its reader is left alone.
    if !fs::metadata(path)?.is_file() {
        return Err(ErrorKind::InvalidInput.into());
    }
    let place = fs::canonicalize(path)?;
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let before = file.metadata()?;
    if !before.is_file() {
        return Err(ErrorKind::InvalidInput.into());
    }
    let bytes = bounded(&file, max_bytes)?;
    Ok(Bounded { bytes, regular: true, source: unchanged(path, place, &before, &file) })
}

/// What was read, if it is the same as before it was.
fn unchanged(path: &Path, place: PathBuf, before: &Metadata, file: &File) -> Option<Source> {
    let times = |of: &Metadata| (of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec());
    let same = times(&file.metadata().ok()?) == times(before) && fs::canonicalize(path).ok()? == place;
    let written = (before.mtime(), before.mtime_nsec()).max((before.ctime(), before.ctime_nsec()));
    let older_than_its_links = newest_link(path).ok()?.is_some_and(|link| written < link);
    same.then_some(Source { place, older_than_its_links })
}

/// Whatever it is.
fn read_any(path: &Path, max_bytes: usize) -> io::Result<Bounded> {
    match read_regular(path, max_bytes) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => {}
        read => return read,
    }
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NOCTTY.bits() as i32).open(path)?;
    Ok(Bounded { bytes: bounded(file, max_bytes)?, regular: false, source: None })
}

async fn read_pipe(path: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
    let pipe = pipe::OpenOptions::new().open_receiver(path)?;
    let mut bytes = Vec::new();
    pipe.take((max_bytes as u64).saturating_add(1)).read_to_end(&mut bytes).await?;
    if bytes.len() > max_bytes { Err(ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

fn bounded(file: impl Read, max_bytes: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too long from one that just fits.
    file.take((max_bytes as u64).saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() > max_bytes { Err(ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

/// Which of the states that looks have shown counts. Pure: looks and their times are handed in.
#[derive(Clone, Debug)]
pub struct Rest<C> {
    taken: C,
    seen: Option<Standing<C>>,
}

/// What differs from what was taken, since which look, and in how many looks in a row.
#[derive(Clone, Debug)]
struct Standing<C> {
    what: Result<C, Unreadable>,
    since: Instant,
    looks: u32,
}

/// What a look says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is as it was taken.
    Unchanged,
    /// It differs, and not from the look before alone: it is still being written, or gone to be replaced.
    Moving,
    /// It differs, and has stood so for this long, in two looks at least.
    Rested(Duration),
    /// It cannot be read for the second time in a row, by the same cause. Said once.
    Unreadable(Unreadable),
}

impl<C: PartialEq> Rest<C> {
    /// Begins with what was read and counts.
    pub fn at(taken: C) -> Self {
        Self { taken, seen: None }
    }

    /// What counts.
    pub fn taken(&self) -> &C {
        &self.taken
    }

    /// Whether the last look showed something else than what counts.
    pub fn differs(&self) -> bool {
        self.seen.is_some()
    }

    /// Takes note of a look.
    pub fn look(&mut self, shown: Result<C, Unreadable>, now: Instant) -> Step {
        let shown = match shown {
            Ok(shown) if shown == self.taken => {
                self.take(shown);
                return Step::Unchanged;
            }
            shown => shown,
        };
        let Some(seen) = self.seen.as_mut().filter(|seen| seen.what == shown) else {
            self.seen = Some(Standing { what: shown, since: now, looks: 1 });
            return Step::Moving;
        };
        seen.looks = seen.looks.saturating_add(1);
        match &seen.what {
            Ok(_) => Step::Rested(now.saturating_duration_since(seen.since)),
            Err(error) if seen.looks == 2 => Step::Unreadable(error.clone()),
            Err(_) => Step::Moving,
        }
    }

    /// This counts from now on.
    pub fn take(&mut self, contents: C) {
        self.taken = contents;
        self.seen = None;
    }
}

/// Files of a set that are looked at again and again.
#[derive(Debug)]
pub struct Followed {
    set: Arc<FileSet>,
    every: Duration,
    rest: Rest<Contents>,
    next_look: Instant,
    under_way: Option<JoinHandle<Result<Contents, Unreadable>>>,
}

/// What the files have come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Other contents that one look has shown: they are still being written. `None` where a file cannot be read.
    Moving(Option<Contents>),
    /// What was taken stands there again.
    Back,
    /// Other contents, which two looks in a row have shown. They count once they are taken ([`Followed::take`]).
    Rested {
        /// What two looks have shown: nothing is read again.
        contents: Contents,
        /// How long they have stood so.
        rested: Duration,
        /// Whether they took the place of what was taken as whole files.
        came_whole: bool,
    },
    /// A file has been beyond reading for two looks: what was taken goes on to count.
    Unreadable(Unreadable),
}

impl Followed {
    /// Looks at the files at this distance, beginning with what was read of them before: no change in between is missed.
    pub fn since(set: FileSet, taken: Contents, every: Duration) -> Self {
        let next_look = clock::monotonic() + every;
        Self { set: Arc::new(set), every, rest: Rest::at(taken), next_look, under_way: None }
    }

    /// Waits until there is something to tell. Contents that are not taken are told of again at every look that still
    /// shows them. Nothing is lost where the future is dropped.
    pub async fn found(&mut self) -> Found {
        loop {
            clock::sleep_until(self.next_look).await;
            let shown = self.look().await;
            let now = clock::monotonic();
            self.next_look = now + self.every;
            let contents = shown.as_ref().ok().cloned();
            let differed = self.rest.differs();
            match (self.rest.look(shown, now), contents) {
                (Step::Unchanged, _) if differed => return Found::Back,
                (Step::Unchanged, _) => {}
                (Step::Rested(rested), Some(contents)) => {
                    let came_whole = contents.came_whole_after(self.rest.taken());
                    return Found::Rested { contents, rested, came_whole };
                }
                (Step::Unreadable(error), _) => return Found::Unreadable(error),
                (Step::Moving | Step::Rested(_), contents) => return Found::Moving(contents),
            }
        }
    }

    /// Waits for other contents, and takes them. `unreadable` is told of what cannot be read for two looks.
    pub async fn changed(&mut self, mut unreadable: impl FnMut(Unreadable)) -> Contents {
        loop {
            match self.found().await {
                Found::Rested { contents, .. } => {
                    self.take(contents.clone());
                    return contents;
                }
                Found::Unreadable(error) => unreadable(error),
                Found::Moving(_) | Found::Back => {}
            }
        }
    }

    /// Reads the files at once and takes what stands there, whether it has come to rest or not.
    ///
    /// # Errors
    /// One that cannot be read, or not within [`LOOKING`]; then nothing has changed.
    pub async fn look_now(&mut self) -> Result<Contents, Unreadable> {
        if self.under_way.is_some() {
            // That began earlier, and may have seen what stood there before.
            self.look().await?;
        }
        let contents = self.look().await?;
        self.next_look = clock::monotonic() + self.every;
        self.take(contents.clone());
        Ok(contents)
    }

    /// These contents count from now on.
    pub fn take(&mut self, contents: Contents) {
        self.rest.take(contents);
    }

    /// One look, on a thread of its own: one that does not end is waited for again, and none begins beside it.
    async fn look(&mut self) -> Result<Contents, Unreadable> {
        let under_way = self.under_way.get_or_insert_with(|| {
            let (set, before) = (Arc::clone(&self.set), self.rest.taken().clone());
            spawn_blocking(move || set.look(&before))
        });
        match timeout(LOOKING, under_way).await {
            Ok(shown) => {
                self.under_way = None;
                shown.unwrap_or_else(|_| Err(self.set.failed(Why::Io(ErrorKind::Other))))
            }
            Err(_) => Err(self.set.failed(Why::NoAnswer(LOOKING))),
        }
    }
}

#[cfg(test)]
mod tests;
