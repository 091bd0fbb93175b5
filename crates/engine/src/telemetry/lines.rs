//! Log lines on their way to a writer that may stall or fail.
//!
//! Who logs puts a whole line into a bounded buffer, under a lock that nobody holds while anything is written, and goes
//! on. One thread takes the lines out and writes each with one call, so that lines stay whole. What does not fit, and what
//! cannot be written, is dropped and counted; as soon as lines are written again, one says how many were dropped.
//!
//! `tracing-appender` has a writer of the kind. It bounds lines and not their bytes, forgets write errors without
//! counting them, and prints on standard output and standard error, with macros that panic, when it cannot end in time.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

use crate::clock::{self, Instant};

/// How often the log says at most how many lines were dropped.
const TELLING: Duration = Duration::from_secs(1);

/// How long the writer rests where standard error takes nothing right now and does not make it wait.
const NOT_NOW: Duration = Duration::from_millis(10);

/// How long nothing is written after a fault of this program.
const AFTER_A_FAULT: Duration = Duration::from_millis(100);

/// How much may wait to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) lines: usize,
    pub(super) bytes: usize,
}

/// The lines that wait.
#[derive(Debug)]
pub(super) struct Lines {
    room: Room,
    /// Every line that was dropped.
    dropped: Counter,
    state: Mutex<State>,
    /// Told when there is something to write.
    arrived: Condvar,
    /// Told when there is nothing left to write.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Box<[u8]>>,
    /// Of the queue and of the line that is being written.
    bytes: usize,
    /// The length of the line that is being written.
    writing: Option<usize>,
    /// Lines that were dropped and that the log has not told of.
    untold: u64,
    told_at: Option<Instant>,
    /// Whether somebody waits for everything to be written, what was dropped included.
    last_notice: bool,
}

/// What is to be written next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Line(Box<[u8]>),
    /// How many lines were dropped.
    Dropped(u64),
}

impl Lines {
    /// None yet. What is dropped is added to `dropped`.
    pub(super) fn new(room: Room, dropped: Counter) -> Self {
        Self { room, dropped, state: Mutex::default(), arrived: Condvar::new(), emptied: Condvar::new() }
    }

    /// Takes a line, with its end, unless there is no room.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.state();
        if state.queue.len() >= self.room.lines || state.bytes.saturating_add(line.len()) > self.room.bytes {
            drop(state);
            self.drop_one();
            return;
        }
        state.bytes = state.bytes.saturating_add(line.len());
        state.queue.push_back(line.into());
        drop(state);
        self.arrived.notify_one();
    }

    /// Writes lines as they come, for ever. `notice` makes the line that tells of so many dropped ones. After a fault of this
    /// program, of which the log tells like of any panic, it begins anew; the line that was being written is lost.
    pub(super) fn write_for_ever_to(&self, mut out: impl Write, notice: impl Fn(u64) -> Vec<u8>) {
        loop {
            let _panicked = catch_unwind(AssertUnwindSafe(|| self.write_to(&mut out, &notice)));
            self.drop_one();
            thread::sleep(AFTER_A_FAULT);
        }
    }

    fn write_to(&self, out: impl Write, notice: impl Fn(u64) -> Vec<u8>) {
        let mut out = WholeLines { out, torn: false };
        loop {
            match self.next() {
                Next::Line(line) => {
                    if out.write(&line).is_err() {
                        self.drop_one();
                    }
                }
                Next::Dropped(lines) => {
                    // A notice is no line of anybody's: it is tried again and not counted.
                    if out.write(&notice(lines)).is_err() {
                        self.state().untold += lines;
                    }
                }
            }
        }
    }

    /// Waits until everything is written, at most so long.
    pub(super) fn flush(&self, limit: Duration) {
        let mut state = self.state();
        state.last_notice = true;
        self.arrived.notify_one();
        let unwritten =
            |state: &mut State| !state.queue.is_empty() || state.writing.is_some() || state.last_notice;
        let _timed_out = self.emptied.wait_timeout_while(state, limit, unwritten);
    }

    /// Waits for what is to be written next. The line that was given before has been written, or cannot be.
    fn next(&self) -> Next {
        let mut state = self.state();
        if let Some(written) = state.writing.take() {
            state.bytes = state.bytes.saturating_sub(written);
        }
        loop {
            let now = clock::monotonic();
            let rest = state.told_at.map(|told| (told + TELLING).saturating_duration_since(now));
            let rest = rest.filter(|rest| !rest.is_zero());
            let is_last = state.last_notice && state.queue.is_empty();
            state.last_notice &= !is_last;
            if state.untold > 0 && (is_last || rest.is_none()) {
                state.told_at = Some(now);
                state.writing = Some(0);
                return Next::Dropped(std::mem::take(&mut state.untold));
            }
            if let Some(line) = state.queue.pop_front() {
                state.writing = Some(line.len());
                return Next::Line(line);
            }
            self.emptied.notify_all();
            state = match rest.filter(|_| state.untold > 0) {
                None => self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(rest) => {
                    self.arrived.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn drop_one(&self) {
        self.dropped.inc();
        self.state().untold += 1;
    }

    /// No code that holds the lock can panic half-way, so a poisoned one is still sound.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is written to, one whole line after the other.
struct WholeLines<W> {
    out: W,
    /// Whether a line broke off in its midst.
    torn: bool,
}

impl<W: Write> WholeLines<W> {
    /// # Errors
    /// The line cannot be written, or not all of it.
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if !self.torn {
            return self.write_all(line);
        }
        // What there is of the torn line gets an end, or this one would be taken for the rest of it.
        self.write_all(&[b"\n", line].concat())
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        let mut rest = line;
        while !rest.is_empty() {
            match self.out.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    rest = rest.get(written..).unwrap_or_default();
                    self.torn = !rest.is_empty();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Somebody who shares the descriptor has made it one that does not wait.
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(NOT_NOW),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Puts each line that it is given into the buffer.
#[derive(Clone, Debug)]
pub(super) struct LineWriter(pub(super) Arc<Lines>);

impl Write for LineWriter {
    /// A whole line, with its end: that is how the log is formatted.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn lines(lines: usize, bytes: usize) -> Lines {
        Lines::new(Room { lines, bytes }, Counter::default())
    }

    fn line(text: &str) -> Next {
        Next::Line(text.as_bytes().into())
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_fit_is_dropped_and_counted_by_lines_and_by_bytes() {
        for (room, fit) in [((2, 1000), 2), ((1000, 14), 3)] {
            let lines = lines(room.0, room.1);
            for _ in 0..5 {
                lines.push(b"abc\n");
            }
            assert_eq!(lines.dropped.get(), 5 - fit);
            assert_eq!(lines.next(), Next::Dropped(5 - fit));
            for _ in 0..fit {
                assert_eq!(lines.next(), line("abc\n"));
            }
            lines.push(b"def\n");
            assert_eq!(lines.next(), line("def\n"), "there is room again");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_is_being_written_takes_room_until_it_is_written() {
        let lines = lines(10, 8);
        lines.push(b"abc\n");
        assert_eq!(lines.next(), line("abc\n"));
        lines.push(b"abc\n");
        lines.push(b"abc\n");
        assert_eq!(lines.dropped.get(), 1);
        assert_eq!(lines.next(), Next::Dropped(1));
        lines.push(b"abc\n");
        assert_eq!(lines.dropped.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn how_many_were_dropped_is_told_once_a_second() {
        let lines = lines(1, 100);
        for expected in [Next::Dropped(1), line("a\n")] {
            lines.push(b"a\n");
            lines.push(b"a\n");
            assert_eq!(lines.next(), expected);
        }
        tokio::time::advance(TELLING).await;
        lines.push(b"a\n");
        assert_eq!(lines.next(), Next::Dropped(2));
    }

    /// Takes what a test lets it take.
    struct Taking {
        turns: mpsc::Receiver<io::Result<usize>>,
        taken: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Taking {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // A test that has ended stalls it for ever.
            let taken = self.turns.recv().unwrap_or(Err(ErrorKind::WouldBlock.into()))?.min(bytes.len());
            self.taken.send(bytes[..taken].to_vec()).expect("the test reads");
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Turns = mpsc::Sender<io::Result<usize>>;

    fn written(lines: &Arc<Lines>) -> (Turns, mpsc::Receiver<Vec<u8>>) {
        let ((turn, turns), (taken, read)) = (mpsc::channel(), mpsc::channel());
        let writing = Arc::clone(lines);
        let out = Taking { turns, taken };
        thread::spawn(move || writing.write_to(out, |lines| format!("{lines} dropped\n").into_bytes()));
        (turn, read)
    }

    fn read(from: &mpsc::Receiver<Vec<u8>>) -> String {
        String::from_utf8(from.recv_timeout(PATIENCE).expect("written in time")).expect("text")
    }

    /// A disk that is full or is not.
    #[derive(Clone, Default)]
    struct Disk {
        full: Arc<AtomicBool>,
        file: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.full.load(Ordering::SeqCst) {
                return Err(ErrorKind::StorageFull.into());
            }
            self.file.lock().expect("no test has panicked").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_cannot_be_written_is_counted_and_told_of_once_lines_are_taken_again() {
        let (lines, disk) = (Arc::new(lines(100, 1000)), Disk::default());
        let (writing, out) = (Arc::clone(&lines), disk.clone());
        thread::spawn(move || writing.write_to(out, |lines| format!("{lines} dropped\n").into_bytes()));
        disk.full.store(true, Ordering::SeqCst);
        lines.push(b"lost\n");
        lines.flush(PATIENCE);
        assert_eq!(lines.dropped.get(), 1, "a notice is no line");
        disk.full.store(false, Ordering::SeqCst);
        lines.push(b"next\n");
        lines.flush(PATIENCE);
        let file = disk.file.lock().expect("no test has panicked").clone();
        let mut all: Vec<&str> = std::str::from_utf8(&file).expect("text").lines().collect();
        all.sort();
        assert_eq!(all, ["1 dropped", "next"]);
        assert_eq!(lines.dropped.get(), 1);
    }

    /// Panics when it is given the first line, and writes all others.
    struct Faulty {
        faulty: bool,
        disk: Disk,
    }

    impl Write for Faulty {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if std::mem::take(&mut self.faulty) {
                panic!("a fault of the test");
            }
            self.disk.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_writer_that_panics_loses_one_line_which_is_counted_and_goes_on() {
        let (lines, disk) = (Arc::new(lines(100, 1000)), Disk::default());
        let (writing, out) = (Arc::clone(&lines), Faulty { faulty: true, disk: disk.clone() });
        thread::spawn(move || {
            writing.write_for_ever_to(out, |lines| format!("{lines} dropped\n").into_bytes());
        });
        for line in ["lost\n", "next\n"] {
            lines.push(line.as_bytes());
        }
        lines.flush(PATIENCE);
        let file = disk.file.lock().expect("it panics without the lock").clone();
        let mut all: Vec<&str> = std::str::from_utf8(&file).expect("text").lines().collect();
        all.sort();
        assert_eq!(all, ["1 dropped", "next"]);
        assert_eq!(lines.dropped.get(), 1);
    }

    #[test]
    fn a_line_that_was_torn_is_ended_before_the_next_one_begins() {
        let lines = Arc::new(lines(100, 1000));
        let (turn, taken) = written(&lines);
        for turns in [Ok(2), Err(ErrorKind::StorageFull.into()), Ok(usize::MAX), Ok(usize::MAX)] {
            turn.send(turns).expect("it writes");
        }
        lines.push(b"torn line\n");
        lines.push(b"whole line\n");
        let all = [read(&taken), read(&taken), read(&taken)].concat();
        assert_eq!(all, "to\n1 dropped\nwhole line\n");
    }

    #[test]
    fn what_is_taken_in_pieces_or_only_later_is_one_line() {
        let lines = Arc::new(lines(100, 1000));
        let (turn, taken) = written(&lines);
        let later = || Err(ErrorKind::WouldBlock.into());
        for turns in [Ok(2), later(), Err(ErrorKind::Interrupted.into()), Ok(1), Ok(usize::MAX)] {
            turn.send(turns).expect("it writes");
        }
        lines.push(b"abcdef\n");
        assert_eq!([read(&taken), read(&taken), read(&taken)].concat(), "abcdef\n");
        lines.flush(PATIENCE);
        assert_eq!(lines.dropped.get(), 0);
    }

    #[test]
    fn who_waits_for_the_last_lines_waits_no_longer_than_it_wants_where_nobody_takes_them() {
        let lines = Arc::new(lines(1, 1000));
        let (_turn, _taken) = written(&lines);
        lines.push(b"stalled\n");
        // It comes back.
        lines.flush(Duration::from_millis(1));
        for _ in 0..1000 {
            lines.push(b"dropped\n");
        }
        assert!(lines.dropped.get() >= 998, "and nobody waits to log");
    }
}
