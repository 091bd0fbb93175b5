//! What counts of files that change: the rule with given looks and times, then real files on a paused clock.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use rustix::fs::{CWD, Mode, Timespec, Timestamps, UTIME_OMIT, mkfifoat, utimensat};
use tempfile::TempDir;
use tokio::time::advance;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn gone() -> Unreadable {
    Unreadable { file: "f".into(), why: Why::Io(ErrorKind::NotFound) }
}

/// What looks one second apart say, where a letter is what the file holds and `-` that it is gone. What has rested is
/// taken after `least` seconds.
fn steps(looks: &str, least: u64) -> Vec<String> {
    let start = clock::monotonic();
    let mut rest = Rest::at('a');
    let mut step = |(second, look): (u32, char)| {
        let shown = if look == '-' { Err(gone()) } else { Ok(look) };
        match rest.look(shown, start + SECOND * second) {
            Step::Unchanged => "same".to_owned(),
            Step::Moving => "moving".to_owned(),
            Step::Rested(time) if time >= Duration::from_secs(least) => {
                rest.take(look);
                format!("takes {look}")
            }
            Step::Rested(time) => format!("rests {}", time.as_secs()),
            Step::Unreadable(_) => "unreadable".to_owned(),
        }
    };
    (0..).zip(looks.chars()).map(&mut step).collect()
}

#[test]
fn what_two_looks_in_a_row_show_is_taken_and_nothing_else() {
    for (looks, expected) in [
        ("aaa", "same same same"),
        ("abb", "same moving takes b"),
        ("abbb", "same moving takes b same"),
        ("abcdd", "same moving moving moving takes d"),
        ("abab", "same moving same moving"),
        ("a-a", "same moving same"),
        ("a-bb", "same moving moving takes b"),
        ("ab-bb", "same moving moving moving takes b"),
        ("a---a", "same moving unreadable moving same"),
        ("abbaa", "same moving takes b moving takes a"),
        ("a--b--a", "same moving unreadable moving moving unreadable same"),
    ] {
        assert_eq!(steps(looks, 0).join(" "), expected, "{looks}");
    }
}

#[test]
fn what_has_to_rest_longer_begins_anew_with_every_change() {
    for (looks, expected) in [
        ("abbbb", "same moving rests 1 rests 2 takes b"),
        ("abbccccb", "same moving rests 1 moving rests 1 rests 2 takes c moving"),
        ("abb-bbb", "same moving rests 1 moving moving rests 1 rests 2"),
        ("abbabbb", "same moving rests 1 same moving rests 1 rests 2"),
    ] {
        assert_eq!(steps(looks, 3).join(" "), expected, "{looks}");
    }
}

/// What has come to rest, and whether it came whole; or what cannot be read.
async fn rested(followed: &mut Followed) -> Result<(Contents, bool), Unreadable> {
    loop {
        match followed.found().await {
            Found::Rested { contents, came_whole, .. } => return Ok((contents, came_whole)),
            Found::Unreadable(error) => return Err(error),
            Found::Moving(_) | Found::Back => {}
        }
    }
}

/// Two files that are followed every two seconds.
struct House {
    folder: TempDir,
    followed: Followed,
}

impl House {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("a"), "a1").expect("written");
        fs::write(folder.path().join("b"), "b1").expect("written");
        Self::of(folder)
    }

    fn of(folder: TempDir) -> Self {
        let set = FileSet::new([folder.path().join("a"), folder.path().join("b")], 16);
        let contents = set.read().expect("both are there");
        let followed = Followed::since(set, contents, 2 * SECOND);
        Self { folder, followed }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.at(name), text).expect("written");
    }

    /// What is found within a minute, and then after two looks.
    async fn found(&mut self) -> Option<String> {
        let start = clock::monotonic();
        let found = timeout(60 * SECOND, rested(&mut self.followed)).await.ok()?;
        assert!(clock::elapsed_since(start) <= 5 * SECOND, "{found:?}");
        Some(match found {
            Ok((contents, _)) => {
                self.followed.take(contents.clone());
                self.text(&contents)
            }
            Err(error) => error.to_string(),
        })
    }

    fn text(&self, contents: &Contents) -> String {
        let of = |name| contents.of(&self.at(name)).expect("of the set").to_vec();
        String::from_utf8([of("a"), of("b")].concat()).expect("text")
    }
}

#[tokio::test(start_paused = true)]
async fn all_files_of_a_set_are_taken_together_once_they_have_come_to_rest() {
    let mut house = House::new();
    house.write("a", "a2");
    advance(3 * SECOND).await;
    tokio::select! {
        biased;
        found = rested(&mut house.followed) => panic!("one look alone has shown it: {found:?}"),
        () = tokio::time::sleep(SECOND) => {}
    }
    house.write("b", "b2");
    assert_eq!(house.found().await, Some("a2b2".to_owned()));
    assert_eq!(house.found().await, None, "and once");
}

#[tokio::test(start_paused = true)]
async fn a_file_with_the_same_time_and_length_and_inode_is_another_one() {
    let mut house = House::new();
    let path = house.at("a");
    let before = fs::metadata(&path).expect("there").modified().expect("a time");
    let since = before.duration_since(std::time::UNIX_EPOCH).expect("later");
    house.write("a", "a2");
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let time = Timespec { tv_sec: since.as_secs() as i64, tv_nsec: since.subsec_nanos().into() };
    let times = Timestamps { last_access: omit, last_modification: time };
    utimensat(CWD, &path, &times, rustix::fs::AtFlags::empty()).expect("set");
    assert_eq!(fs::metadata(&path).expect("there").modified().expect("a time"), before);
    assert_eq!(house.found().await, Some("a2b1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_exchanged_link_is_a_change() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    for version in ["1", "2"] {
        fs::create_dir(at(version)).expect("made");
        fs::write(at(version).join("a"), format!("a{version}")).expect("written");
        fs::write(at(version).join("b"), format!("b{version}")).expect("written");
    }
    symlink("1", at("..data")).expect("linked");
    symlink("..data/a", at("a")).expect("linked");
    symlink("..data/b", at("b")).expect("linked");
    let mut house = House::of(folder);
    symlink("2", house.at("..data_tmp")).expect("linked");
    fs::rename(house.at("..data_tmp"), house.at("..data")).expect("renamed");
    assert_eq!(house.found().await, Some("a2b2".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_gone_keeps_what_was_taken_and_is_told_of_once() {
    let mut house = House::new();
    fs::remove_file(house.at("a")).expect("removed");
    let error = format!("{}: the file cannot be read: entity not found", house.at("a").display());
    assert_eq!(house.found().await, Some(error));
    assert_eq!(house.found().await, None);
    house.write("a", "a1");
    assert_eq!(house.found().await, None, "it is back as it was");
    house.write("a", &"x".repeat(17));
    let error = format!("{}: the file is longer than 16 bytes", house.at("a").display());
    assert_eq!(house.found().await, Some(error));
    house.write("a", "a2");
    assert_eq!(house.found().await, Some("a2b1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn what_stands_there_can_be_had_at_once() {
    let mut house = House::new();
    house.write("a", "a2");
    let contents = house.followed.look_now().await.expect("readable");
    assert_eq!(house.text(&contents), "a2b1");
    assert_eq!(house.found().await, None, "it was taken");
    fs::remove_file(house.at("a")).expect("removed");
    assert_eq!(house.followed.look_now().await.expect_err("gone").why, Why::Io(ErrorKind::NotFound));
}

#[tokio::test(start_paused = true)]
async fn a_look_that_is_given_up_half_way_is_gone_on_with() {
    let mut house = House::new();
    house.write("a", "a2");
    for _ in 0..20 {
        tokio::select! {
            biased;
            found = rested(&mut house.followed) => return assert!(found.is_ok()),
            () = tokio::time::sleep(Duration::from_millis(300)) => {}
        }
    }
    panic!("never found");
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_does_not_answer_takes_one_thread_and_is_told_of_and_what_comes_later_counts() {
    let mut house = House::new();
    let (let_go, held) = std::sync::mpsc::channel::<()>();
    house.followed.under_way = Some(spawn_blocking(move || {
        let _let_go = held.recv();
        Err(gone())
    }));
    let thread = house.followed.under_way.as_ref().map(JoinHandle::id);
    // A thread that blocks keeps the paused clock from going on by itself.
    let time = async {
        for _ in 0..60 {
            advance(SECOND).await;
        }
    };
    let found = tokio::select! {
        found = rested(&mut house.followed) => found,
        () = time => panic!("nothing was told"),
    };
    assert_eq!(found.expect_err("not read").why, Why::NoAnswer(LOOKING));
    assert_eq!(house.followed.under_way.as_ref().map(JoinHandle::id), thread, "none beside it");
    house.write("a", "a2");
    let_go.send(()).expect("it is held");
    assert!(rested(&mut house.followed).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_pipe_is_read_once_and_neither_followed_nor_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    fs::write(at("a"), "a1").expect("written");
    mkfifoat(CWD, at("b"), Mode::RUSR | Mode::WUSR).expect("made");
    let pipe = at("b");
    let writer = std::thread::spawn(move || fs::write(pipe, "b1"));
    let mut house = House::of(folder);
    writer.join().expect("no panic").expect("written");
    house.write("a", "a2");
    assert_eq!(house.found().await, Some("a2b1".to_owned()));
    // A regular file that has become a pipe is told of, and not waited for.
    fs::remove_file(house.at("a")).expect("removed");
    mkfifoat(CWD, house.at("a"), Mode::RUSR | Mode::WUSR).expect("made");
    let error = format!("{}: it is not a regular file", house.at("a").display());
    assert_eq!(house.found().await, Some(error));
}

#[tokio::test(start_paused = true)]
async fn a_pipe_is_followed_once_a_regular_file_has_taken_its_place_and_its_writer_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("pipe");
    mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).expect("made");
    let set = FileSet::new([pipe.clone()], 16);
    let content = Content { path: pipe.clone(), bytes: Bytes::new(), regular: false, source: None };
    let mut followed = Followed::since(set.clone(), Contents(vec![content]), SECOND);
    let writes = |file: &Path| {
        let file = file.to_owned();
        std::thread::spawn(move || fs::write(file, "late"))
    };
    let writer = writes(&pipe);
    assert!(timeout(60 * SECOND, followed.found()).await.is_err(), "nothing has changed");
    assert!(set.read_regular().is_err());
    assert!(!writer.is_finished(), "nobody has opened the other end");
    fs::rename(&pipe, folder.path().join("old")).expect("renamed");
    fs::write(&pipe, "new").expect("written");
    let (contents, came_whole) = rested(&mut followed).await.expect("readable");
    assert_eq!((contents.of(&pipe).map(Bytes::as_ref), came_whole), (Some(&b"new"[..]), false));
    assert_eq!(fs::read(folder.path().join("old")).expect("readable"), b"late");
    writer.join().expect("no panic").expect("written");
}

/// Lets the clock of the file system go on: it has ticks of some milliseconds, whatever the test's own clock does.
fn tick() {
    std::thread::sleep(Duration::from_millis(20));
}

#[tokio::test(start_paused = true)]
async fn what_a_link_leads_to_was_whole_unless_anything_was_done_to_it_since() {
    type Change = fn(&House);
    let linked: Change = |house| {
        symlink("new", house.at("link")).expect("linked");
        fs::rename(house.at("link"), house.at("a")).expect("renamed");
    };
    let through_a_folder: Change = |house| {
        fs::create_dir(house.at("1")).expect("made");
        fs::rename(house.at("new"), house.at("1").join("a")).expect("renamed");
        tick();
        symlink("1", house.at("..data")).expect("linked");
        symlink("..data/a", house.at("link")).expect("linked");
        fs::rename(house.at("link"), house.at("a")).expect("renamed");
    };
    let linked_and_rewritten: Change = |house| {
        symlink("new", house.at("link")).expect("linked");
        fs::rename(house.at("link"), house.at("a")).expect("renamed");
        tick();
        house.write("a", "a3");
    };
    let linked_before_it_is_written: Change = |house| {
        symlink("later", house.at("link")).expect("linked");
        fs::rename(house.at("link"), house.at("a")).expect("renamed");
        tick();
        house.write("later", "a2");
    };
    let linked_and_another_rewritten: Change = |house| {
        symlink("new", house.at("link")).expect("linked");
        fs::rename(house.at("link"), house.at("a")).expect("renamed");
        house.write("b", "b2");
    };
    let renamed: Change = |house| fs::rename(house.at("new"), house.at("a")).expect("renamed");
    let renamed_and_given_another_mode: Change = |house| {
        fs::rename(house.at("a"), house.at("a.bak")).expect("renamed");
        house.write("a", "a2");
        tick();
        fs::set_permissions(house.at("a"), fs::Permissions::from_mode(0o640)).expect("set");
    };
    let rewritten: Change = |house| house.write("a", "a2");
    let written_anew: Change = |house| {
        fs::remove_file(house.at("a")).expect("removed");
        house.write("a", "a2");
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
        let mut house = House::new();
        fs::write(house.at("new"), "a2").expect("written");
        tick();
        change(&house);
        let (_, came_whole) = rested(&mut house.followed).await.expect("readable");
        assert_eq!(came_whole, expected, "{what}");
    }
}
