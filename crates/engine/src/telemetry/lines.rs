//! A bounded buffer between log lines and an output that may stall or fail.
//!
//! A caller appends a line under a lock that is never held during a write, and continues. One thread takes the lines
//! and writes each with one call, so that lines are not interleaved. Lines that exceed the capacity or cannot be
//! written are dropped and counted; once writing works again, a line reports how many were dropped.
//!
//! `tracing-appender` has a similar writer. It limits lines but not their bytes, ignores write errors without
//! counting them, and prints on standard output and standard error, with macros that panic, if it cannot end in time.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

use crate::clock::{self, Instant};

/// Least time between two lines that report dropped lines.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Delay after a write to a non-blocking descriptor that is not ready.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// Delay after a panic in the writer.
const PANIC_DELAY: Duration = Duration::from_millis(100);

/// How much may be buffered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capacity {
    pub(super) lines: usize,
    pub(super) bytes: usize,
}

/// The buffered lines.
#[derive(Debug)]
pub(super) struct Lines {
    capacity: Capacity,
    /// Counts every dropped line.
    dropped: Counter,
    state: Mutex<State>,
    /// Notified when there is something to write.
    arrived: Condvar,
    /// Notified when there is nothing left to write.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Box<[u8]>>,
    /// Of the queue and of the line being written.
    bytes: usize,
    /// The length of the line being written.
    writer: Option<usize>,
    /// Dropped lines that no line has reported yet.
    unreported: u64,
    reported_at: Option<Instant>,
    /// Whether a flush is waiting, which includes the report of dropped lines.
    flushing: bool,
}

/// The next thing to write.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Line(Box<[u8]>),
    /// This many lines were dropped.
    Dropped(u64),
}

impl Lines {
    /// An empty buffer. Dropped lines are counted in `dropped`.
    pub(super) fn new(capacity: Capacity, dropped: Counter) -> Self {
        Self { capacity, dropped, state: Mutex::default(), arrived: Condvar::new(), emptied: Condvar::new() }
    }

    /// Appends a line, including its newline, or drops it if the buffer is full.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.state();
        if state.queue.len() >= self.capacity.lines
            || state.bytes.saturating_add(line.len()) > self.capacity.bytes
        {
            drop(state);
            self.drop_one();
            return;
        }
        state.bytes = state.bytes.saturating_add(line.len());
        state.queue.push_back(line.into());
        drop(state);
        self.arrived.notify_one();
    }

    /// Writes lines as they arrive and never returns. `notice` formats the line that reports dropped lines. After a
    /// panic, which the panic hook logs, writing restarts; the line being written is lost.
    pub(super) fn run_writer(&self, mut out: impl Write, notice: impl Fn(u64) -> Vec<u8>) {
        loop {
            let _panicked = catch_unwind(AssertUnwindSafe(|| self.write_to(&mut out, &notice)));
            self.drop_one();
            thread::sleep(PANIC_DELAY);
        }
    }

    fn write_to(&self, out: impl Write, notice: impl Fn(u64) -> Vec<u8>) {
        let mut out = LineOutput { out, partial: false };
        loop {
            match self.next() {
                Next::Line(line) => {
                    if out.write(&line).is_err() {
                        self.drop_one();
                    }
                }
                Next::Dropped(lines) => {
                    // A notice is not a caller's line: it is retried and not counted.
                    if out.write(&notice(lines)).is_err() {
                        self.state().unreported += lines;
                    }
                }
            }
        }
    }

    /// Waits until everything is written, for `limit` at most.
    pub(super) fn flush(&self, limit: Duration) {
        let mut state = self.state();
        state.flushing = true;
        self.arrived.notify_one();
        let unwritten =
            |state: &mut State| !state.queue.is_empty() || state.writer.is_some() || state.flushing;
        let _timed_out = self.emptied.wait_timeout_while(state, limit, unwritten);
    }

    /// Waits for the next thing to write. The previous line has been written or dropped.
    fn next(&self) -> Next {
        let mut state = self.state();
        if let Some(written) = state.writer.take() {
            state.bytes = state.bytes.saturating_sub(written);
        }
        loop {
            let now = clock::monotonic();
            let remaining =
                state.reported_at.map(|reported| (reported + REPORT_INTERVAL).saturating_duration_since(now));
            let remaining = remaining.filter(|remaining| !remaining.is_zero());
            let flush_notice = state.flushing && state.queue.is_empty();
            state.flushing &= !flush_notice;
            if state.unreported > 0 && (flush_notice || remaining.is_none()) {
                state.reported_at = Some(now);
                state.writer = Some(0);
                return Next::Dropped(std::mem::take(&mut state.unreported));
            }
            if let Some(line) = state.queue.pop_front() {
                state.writer = Some(line.len());
                return Next::Line(line);
            }
            self.emptied.notify_all();
            state = match remaining.filter(|_| state.unreported > 0) {
                None => self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(remaining) => {
                    self.arrived.wait_timeout(state, remaining).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn drop_one(&self) {
        self.dropped.inc();
        self.state().unreported += 1;
    }

    /// No code that holds the lock can panic midway, so a poisoned lock is still sound.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An output of complete lines.
struct LineOutput<W> {
    out: W,
    /// Whether the last line was written in part.
    partial: bool,
}

impl<W: Write> LineOutput<W> {
    /// # Errors
    /// The line cannot be written, or not all of it.
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if !self.partial {
            return self.write_all(line);
        }
        // The partial line gets a newline, or this line would be appended to it.
        self.write_all(&[b"\n", line].concat())
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        let mut remaining = line;
        while !remaining.is_empty() {
            match self.out.write(remaining) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    remaining = remaining.get(written..).unwrap_or_default();
                    self.partial = !remaining.is_empty();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Another process that shares the descriptor has made it non-blocking.
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY_DELAY),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Appends each line to the buffer.
#[derive(Clone, Debug)]
pub(super) struct LineWriter(pub(super) Arc<Lines>);

impl Write for LineWriter {
    /// The log formatter writes complete lines.
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

    const TIMEOUT: Duration = Duration::from_secs(20);

    fn lines(lines: usize, bytes: usize) -> Lines {
        Lines::new(Capacity { lines, bytes }, Counter::default())
    }

    fn line(text: &str) -> Next {
        Next::Line(text.as_bytes().into())
    }

    #[tokio::test(start_paused = true)]
    async fn lines_beyond_the_capacity_in_lines_or_bytes_are_dropped_and_counted() {
        for (capacity, fit) in [((2, 1000), 2), ((1000, 14), 3)] {
            let lines = lines(capacity.0, capacity.1);
            for _ in 0..5 {
                lines.push(b"abc\n");
            }
            assert_eq!(lines.dropped.get(), 5 - fit);
            assert_eq!(lines.next(), Next::Dropped(5 - fit));
            for _ in 0..fit {
                assert_eq!(lines.next(), line("abc\n"));
            }
            lines.push(b"def\n");
            assert_eq!(lines.next(), line("def\n"), "there is capacity again");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_being_written_counts_towards_the_capacity() {
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
    async fn dropped_lines_are_reported_once_a_second() {
        let lines = lines(1, 100);
        for expected in [Next::Dropped(1), line("a\n")] {
            lines.push(b"a\n");
            lines.push(b"a\n");
            assert_eq!(lines.next(), expected);
        }
        tokio::time::advance(REPORT_INTERVAL).await;
        lines.push(b"a\n");
        assert_eq!(lines.next(), Next::Dropped(2));
    }

    /// Accepts as many bytes as a test allows.
    struct StepWriter {
        steps: mpsc::Receiver<io::Result<usize>>,
        accepted: mpsc::Sender<Vec<u8>>,
    }

    impl Write for StepWriter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Blocks forever after the test has ended.
            let accepted = self.steps.recv().unwrap_or(Err(ErrorKind::WouldBlock.into()))?.min(bytes.len());
            self.accepted.send(bytes[..accepted].to_vec()).expect("the test reads");
            Ok(accepted)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Steps = mpsc::Sender<io::Result<usize>>;

    fn written(lines: &Arc<Lines>) -> (Steps, mpsc::Receiver<Vec<u8>>) {
        let ((step, steps), (accepted, read)) = (mpsc::channel(), mpsc::channel());
        let writer = Arc::clone(lines);
        let out = StepWriter { steps, accepted };
        thread::spawn(move || writer.write_to(out, |lines| format!("{lines} dropped\n").into_bytes()));
        (step, read)
    }

    fn read(from: &mpsc::Receiver<Vec<u8>>) -> String {
        String::from_utf8(from.recv_timeout(TIMEOUT).expect("written in time")).expect("text")
    }

    /// A disk that may be full.
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
    fn a_line_that_cannot_be_written_is_counted_and_reported_once_writing_works_again() {
        let (lines, disk) = (Arc::new(lines(100, 1000)), Disk::default());
        let (writer, out) = (Arc::clone(&lines), disk.clone());
        thread::spawn(move || writer.write_to(out, |lines| format!("{lines} dropped\n").into_bytes()));
        disk.full.store(true, Ordering::SeqCst);
        lines.push(b"lost\n");
        lines.flush(TIMEOUT);
        assert_eq!(lines.dropped.get(), 1, "a notice is not counted");
        disk.full.store(false, Ordering::SeqCst);
        lines.push(b"next\n");
        lines.flush(TIMEOUT);
        let file = disk.file.lock().expect("no test has panicked").clone();
        let mut all: Vec<&str> = std::str::from_utf8(&file).expect("text").lines().collect();
        all.sort();
        assert_eq!(all, ["1 dropped", "next"]);
        assert_eq!(lines.dropped.get(), 1);
    }

    /// Panics at the first line and writes all others.
    struct PanicsOnce {
        panics: bool,
        disk: Disk,
    }

    impl Write for PanicsOnce {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if std::mem::take(&mut self.panics) {
                panic!("panic of the test");
            }
            self.disk.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_writer_that_panics_loses_one_line_counts_it_and_continues() {
        let (lines, disk) = (Arc::new(lines(100, 1000)), Disk::default());
        let (writer, out) = (Arc::clone(&lines), PanicsOnce { panics: true, disk: disk.clone() });
        thread::spawn(move || {
            writer.run_writer(out, |lines| format!("{lines} dropped\n").into_bytes());
        });
        for line in ["lost\n", "next\n"] {
            lines.push(line.as_bytes());
        }
        lines.flush(TIMEOUT);
        let file = disk.file.lock().expect("the lock is not poisoned").clone();
        let mut all: Vec<&str> = std::str::from_utf8(&file).expect("text").lines().collect();
        all.sort();
        assert_eq!(all, ["1 dropped", "next"]);
        assert_eq!(lines.dropped.get(), 1);
    }

    #[test]
    fn a_partial_line_is_ended_before_the_next_one() {
        let lines = Arc::new(lines(100, 1000));
        let (step, accepted) = written(&lines);
        for steps in [Ok(2), Err(ErrorKind::StorageFull.into()), Ok(usize::MAX), Ok(usize::MAX)] {
            step.send(steps).expect("it writes");
        }
        lines.push(b"partial line\n");
        lines.push(b"next line\n");
        let all = [read(&accepted), read(&accepted), read(&accepted)].concat();
        assert_eq!(all, "pa\n1 dropped\nnext line\n");
    }

    #[test]
    fn a_line_written_in_pieces_stays_one_line() {
        let lines = Arc::new(lines(100, 1000));
        let (step, accepted) = written(&lines);
        let later = || Err(ErrorKind::WouldBlock.into());
        for steps in [Ok(2), later(), Err(ErrorKind::Interrupted.into()), Ok(1), Ok(usize::MAX)] {
            step.send(steps).expect("it writes");
        }
        lines.push(b"abcdef\n");
        assert_eq!([read(&accepted), read(&accepted), read(&accepted)].concat(), "abcdef\n");
        lines.flush(TIMEOUT);
        assert_eq!(lines.dropped.get(), 0);
    }

    #[test]
    fn a_flush_ends_at_its_limit_while_the_output_stalls() {
        let lines = Arc::new(lines(1, 1000));
        let (_turn, _taken) = written(&lines);
        lines.push(b"stalled\n");
        // This returns.
        lines.flush(Duration::from_millis(1));
        for _ in 0..1000 {
            lines.push(b"dropped\n");
        }
        assert!(lines.dropped.get() >= 998, "logging does not block");
    }
}
