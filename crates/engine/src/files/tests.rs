//! When a change is accepted: the rule alone, then real files on a paused clock.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use rustix::fs::{CWD, Mode, Timespec, Timestamps, UTIME_OMIT, mkfifoat, utimensat};
use tempfile::TempDir;
use tokio::time::advance;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn missing() -> FileError {
    FileError { path: "f".into(), kind: FileErrorKind::Io(ErrorKind::NotFound) }
}

/// The results of polls one second apart, where a letter is the content of the file and `-` means that it is missing.
/// A settled state is accepted after `least` seconds.
fn observations(polls: &str, least: u64) -> Vec<String> {
    let start = clock::monotonic();
    let mut debounce = Debounce::at('a');
    let mut observe = |(second, poll): (u32, char)| {
        let read = if poll == '-' { Err(missing()) } else { Ok(poll) };
        match debounce.poll(read, start + SECOND * second) {
            Observation::Unchanged => "same".to_owned(),
            Observation::Changing => "changing".to_owned(),
            Observation::Settled(time) if time >= Duration::from_secs(least) => {
                debounce.accept(poll);
                format!("accepts {poll}")
            }
            Observation::Settled(time) => format!("settles {}", time.as_secs()),
            Observation::Unreadable(_) => "unreadable".to_owned(),
        }
    };
    (0..).zip(polls.chars()).map(&mut observe).collect()
}

#[test]
fn a_state_is_accepted_after_two_consecutive_polls() {
    for (polls, expected) in [
        ("aaa", "same same same"),
        ("abb", "same changing accepts b"),
        ("abbb", "same changing accepts b same"),
        ("abcdd", "same changing changing changing accepts d"),
        ("abab", "same changing same changing"),
        ("a-a", "same changing same"),
        ("a-bb", "same changing changing accepts b"),
        ("ab-bb", "same changing changing changing accepts b"),
        ("a---a", "same changing unreadable changing same"),
        ("abbaa", "same changing accepts b changing accepts a"),
        ("a--b--a", "same changing unreadable changing changing unreadable same"),
    ] {
        assert_eq!(observations(polls, 0).join(" "), expected, "{polls}");
    }
}

#[test]
fn every_change_restarts_the_settling_time() {
    for (polls, expected) in [
        ("abbbb", "same changing settles 1 settles 2 accepts b"),
        ("abbccccb", "same changing settles 1 changing settles 1 settles 2 accepts c changing"),
        ("abb-bbb", "same changing settles 1 changing changing settles 1 settles 2"),
        ("abbabbb", "same changing settles 1 same changing settles 1 settles 2"),
    ] {
        assert_eq!(observations(polls, 3).join(" "), expected, "{polls}");
    }
}

/// The next settled contents and whether they were replaced atomically, or the error.
async fn settled(watched: &mut WatchedFiles) -> Result<(Contents, bool), FileError> {
    loop {
        match watched.next_event().await {
            FileEvent::Settled { contents, atomic, .. } => return Ok((contents, atomic)),
            FileEvent::Unreadable(error) => return Err(error),
            FileEvent::Changing(_) | FileEvent::Reverted => {}
        }
    }
}

/// Two files that are polled every two seconds.
struct TestFiles {
    folder: TempDir,
    watched: WatchedFiles,
}

impl TestFiles {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("a"), "a1").expect("written");
        fs::write(folder.path().join("b"), "b1").expect("written");
        Self::of(folder)
    }

    fn of(folder: TempDir) -> Self {
        let set = FileSet::new([folder.path().join("a"), folder.path().join("b")], 16);
        let contents = set.read().expect("both are there");
        let watched = WatchedFiles::since(set, contents, 2 * SECOND);
        Self { folder, watched }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    /// The next settled contents or error within a minute, which two polls must be enough for.
    async fn next(&mut self) -> Option<String> {
        let start = clock::monotonic();
        let next = timeout(60 * SECOND, settled(&mut self.watched)).await.ok()?;
        assert!(clock::elapsed_since(start) <= 5 * SECOND, "{next:?}");
        Some(match next {
            Ok((contents, _)) => {
                self.watched.accept(contents.clone());
                self.text(&contents)
            }
            Err(error) => error.to_string(),
        })
    }

    fn text(&self, contents: &Contents) -> String {
        let of = |name| contents.of(&self.path(name)).expect("of the set").to_vec();
        String::from_utf8([of("a"), of("b")].concat()).expect("text")
    }
}

#[tokio::test(start_paused = true)]
async fn all_files_of_a_set_are_accepted_together_once_they_have_settled() {
    let mut files = TestFiles::new();
    files.write("a", "a2");
    advance(3 * SECOND).await;
    tokio::select! {
        biased;
        next = settled(&mut files.watched) => panic!("accepted after one poll: {next:?}"),
        () = tokio::time::sleep(SECOND) => {}
    }
    files.write("b", "b2");
    assert_eq!(files.next().await, Some("a2b2".to_owned()));
    assert_eq!(files.next().await, None, "reported once");
}

#[tokio::test(start_paused = true)]
async fn a_change_is_noticed_under_the_same_time_length_and_inode() {
    let mut files = TestFiles::new();
    let path = files.path("a");
    let before = fs::metadata(&path).expect("there").modified().expect("a time");
    let since = before.duration_since(std::time::UNIX_EPOCH).expect("later");
    files.write("a", "a2");
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let time = Timespec { tv_sec: since.as_secs() as i64, tv_nsec: since.subsec_nanos().into() };
    let times = Timestamps { last_access: omit, last_modification: time };
    utimensat(CWD, &path, &times, rustix::fs::AtFlags::empty()).expect("set");
    assert_eq!(fs::metadata(&path).expect("there").modified().expect("a time"), before);
    assert_eq!(files.next().await, Some("a2b1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_replaced_link_is_a_change() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    for version in ["1", "2"] {
        fs::create_dir(path(version)).expect("made");
        fs::write(path(version).join("a"), format!("a{version}")).expect("written");
        fs::write(path(version).join("b"), format!("b{version}")).expect("written");
    }
    symlink("1", path("..data")).expect("linked");
    symlink("..data/a", path("a")).expect("linked");
    symlink("..data/b", path("b")).expect("linked");
    let mut files = TestFiles::of(folder);
    symlink("2", files.path("..data_tmp")).expect("linked");
    fs::rename(files.path("..data_tmp"), files.path("..data")).expect("renamed");
    assert_eq!(files.next().await, Some("a2b2".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_missing_file_keeps_the_accepted_contents_and_is_reported_once() {
    let mut files = TestFiles::new();
    fs::remove_file(files.path("a")).expect("removed");
    let error = format!("{}: the file cannot be read: entity not found", files.path("a").display());
    assert_eq!(files.next().await, Some(error));
    assert_eq!(files.next().await, None);
    files.write("a", "a1");
    assert_eq!(files.next().await, None, "the accepted contents are back");
    files.write("a", &"x".repeat(17));
    let error = format!("{}: the file is longer than 16 bytes", files.path("a").display());
    assert_eq!(files.next().await, Some(error));
    files.write("a", "a2");
    assert_eq!(files.next().await, Some("a2b1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn the_files_can_be_read_at_once() {
    let mut files = TestFiles::new();
    files.write("a", "a2");
    let contents = files.watched.read_now().await.expect("readable");
    assert_eq!(files.text(&contents), "a2b1");
    assert_eq!(files.next().await, None, "it was accepted");
    fs::remove_file(files.path("a")).expect("removed");
    assert_eq!(
        files.watched.read_now().await.expect_err("missing").kind,
        FileErrorKind::Io(ErrorKind::NotFound)
    );
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_poll_is_continued() {
    let mut files = TestFiles::new();
    files.write("a", "a2");
    for _ in 0..20 {
        tokio::select! {
            biased;
            next = settled(&mut files.watched) => return assert!(next.is_ok()),
            () = tokio::time::sleep(Duration::from_millis(300)) => {}
        }
    }
    panic!("never settled");
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_does_not_respond_blocks_one_thread_and_is_reported_and_a_late_read_is_used() {
    let mut files = TestFiles::new();
    let (release, released) = std::sync::mpsc::channel::<()>();
    files.watched.in_progress = Some(spawn_blocking(move || {
        let _release = released.recv();
        Err(missing())
    }));
    let thread = files.watched.in_progress.as_ref().map(JoinHandle::id);
    // A blocking thread stops the paused clock from advancing by itself.
    let time = async {
        for _ in 0..60 {
            advance(SECOND).await;
        }
    };
    let next = tokio::select! {
        next = settled(&mut files.watched) => next,
        () = time => panic!("no event"),
    };
    assert_eq!(next.expect_err("not read").kind, FileErrorKind::Timeout(READ_TIMEOUT));
    assert_eq!(files.watched.in_progress.as_ref().map(JoinHandle::id), thread, "no second thread");
    files.write("a", "a2");
    release.send(()).expect("it is released");
    assert!(settled(&mut files.watched).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_pipe_is_read_once_and_neither_polled_nor_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("a"), "a1").expect("written");
    mkfifoat(CWD, path("b"), Mode::RUSR | Mode::WUSR).expect("made");
    let pipe = path("b");
    let writer = std::thread::spawn(move || fs::write(pipe, "b1"));
    let mut files = TestFiles::of(folder);
    writer.join().expect("no panic").expect("written");
    files.write("a", "a2");
    assert_eq!(files.next().await, Some("a2b1".to_owned()));
    // A regular file that was replaced by a pipe is reported, and not waited for.
    fs::remove_file(files.path("a")).expect("removed");
    mkfifoat(CWD, files.path("a"), Mode::RUSR | Mode::WUSR).expect("made");
    let error = format!("{}: it is not a regular file", files.path("a").display());
    assert_eq!(files.next().await, Some(error));
}

#[tokio::test(start_paused = true)]
async fn a_pipe_is_polled_once_a_regular_file_has_replaced_it_and_its_writer_is_not_released() {
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("pipe");
    mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).expect("made");
    let set = FileSet::new([pipe.clone()], 16);
    let content = Content { path: pipe.clone(), bytes: Bytes::new(), regular: false, source: None };
    let mut watched = WatchedFiles::since(set.clone(), Contents(vec![content]), SECOND);
    let writes = |file: &Path| {
        let file = file.to_owned();
        std::thread::spawn(move || fs::write(file, "late"))
    };
    let writer = writes(&pipe);
    assert!(timeout(60 * SECOND, watched.next_event()).await.is_err(), "nothing has changed");
    assert!(set.read_regular().is_err());
    assert!(!writer.is_finished(), "the pipe was not opened");
    fs::rename(&pipe, folder.path().join("old")).expect("renamed");
    fs::write(&pipe, "new").expect("written");
    let (contents, atomic) = settled(&mut watched).await.expect("readable");
    assert_eq!((contents.of(&pipe).map(Bytes::as_ref), atomic), (Some(&b"new"[..]), false));
    assert_eq!(fs::read(folder.path().join("old")).expect("readable"), b"late");
    writer.join().expect("no panic").expect("written");
}

/// Waits for a tick of the file system's clock, which has some milliseconds and does not follow the test's clock.
fn tick() {
    std::thread::sleep(Duration::from_millis(20));
}

#[tokio::test(start_paused = true)]
async fn the_target_of_a_new_link_is_complete_unless_it_was_modified_since() {
    type Change = fn(&TestFiles);
    let linked: Change = |files| {
        symlink("new", files.path("link")).expect("linked");
        fs::rename(files.path("link"), files.path("a")).expect("renamed");
    };
    let through_a_folder: Change = |files| {
        fs::create_dir(files.path("1")).expect("made");
        fs::rename(files.path("new"), files.path("1").join("a")).expect("renamed");
        tick();
        symlink("1", files.path("..data")).expect("linked");
        symlink("..data/a", files.path("link")).expect("linked");
        fs::rename(files.path("link"), files.path("a")).expect("renamed");
    };
    let linked_and_rewritten: Change = |files| {
        symlink("new", files.path("link")).expect("linked");
        fs::rename(files.path("link"), files.path("a")).expect("renamed");
        tick();
        files.write("a", "a3");
    };
    let linked_before_it_is_written: Change = |files| {
        symlink("later", files.path("link")).expect("linked");
        fs::rename(files.path("link"), files.path("a")).expect("renamed");
        tick();
        files.write("later", "a2");
    };
    let linked_and_another_rewritten: Change = |files| {
        symlink("new", files.path("link")).expect("linked");
        fs::rename(files.path("link"), files.path("a")).expect("renamed");
        files.write("b", "b2");
    };
    let renamed: Change = |files| fs::rename(files.path("new"), files.path("a")).expect("renamed");
    let renamed_and_given_another_mode: Change = |files| {
        fs::rename(files.path("a"), files.path("a.bak")).expect("renamed");
        files.write("a", "a2");
        tick();
        fs::set_permissions(files.path("a"), fs::Permissions::from_mode(0o640)).expect("set");
    };
    let rewritten: Change = |files| files.write("a", "a2");
    let written_anew: Change = |files| {
        fs::remove_file(files.path("a")).expect("removed");
        files.write("a", "a2");
    };
    for (what, change, expected) in [
        ("linked", linked, true),
        ("through a folder", through_a_folder, true),
        ("linked and rewritten", linked_and_rewritten, false),
        ("linked before it is written", linked_before_it_is_written, false),
        ("linked and another rewritten", linked_and_another_rewritten, false),
        ("renamed", renamed, false),
        ("renamed and given another mode", renamed_and_given_another_mode, false),
        ("rewritten", rewritten, false),
        ("written anew", written_anew, false),
    ] {
        let mut files = TestFiles::new();
        fs::write(files.path("new"), "a2").expect("written");
        tick();
        change(&files);
        let (_, atomic) = settled(&mut files.watched).await.expect("readable");
        assert_eq!(atomic, expected, "{what}");
    }
}
