//! The log on standard error: one line an event, as JSON or text.
//!
//! Nothing that becomes of standard error holds up or ends who logs: see `lines`. A line that was not written is counted
//! in `portcullis_log_dropped_total`. Where the process was started with standard error closed, Rust has put `/dev/null`
//! in its place, and the lines go there.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::sync::{Arc, LazyLock, OnceLock};
use std::thread;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tracing_subscriber::EnvFilter;

use super::lines::{LineWriter, Lines, Room};
use super::settings::{Log, LogFormat, LogLevel};

/// What may wait to be written: what a flood logs within a few seconds.
const ROOM: Room = Room { lines: 4096, bytes: 1 << 20 };

/// The log of this process, once it is started.
static LOG: OnceLock<Arc<Lines>> = OnceLock::new();

static DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);

thread_local! {
    /// Where the writer's own line goes: past the buffer, which may be full.
    static OWN_LINE: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// The count of lines that this process has dropped.
pub(super) fn dropped() -> Counter {
    DROPPED.clone()
}

/// Starts the log on standard error. `PORTCULLIS_LOG` overrides the level. Libraries never log below
/// warn: on debug they would print headers, and with them tokens.
///
/// A second call in one process changes nothing.
///
/// # Errors
/// There is no thread or no descriptor for it.
pub fn start_log(log: &Log) -> io::Result<()> {
    if LOG.get().is_some() {
        return Ok(());
    }
    let lines = Arc::new(Lines::new(ROOM, dropped()));
    // A descriptor of its own: Rust's has a lock, which whoever prints would wait for while a write stalls.
    let out = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let writing = Arc::clone(&lines);
    thread::Builder::new().name("log".to_owned()).spawn(move || writing.write_for_ever_to(out, notice))?;
    let wanted = std::env::var("PORTCULLIS_LOG").ok();
    let named = wanted.as_deref().map(level_named);
    let level = named.flatten().unwrap_or(log.level);
    let to_lines = LineWriter(Arc::clone(&lines));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter(level))
        .with_writer(move || past_or_into(&to_lines))
        // It would print them on standard error.
        .log_internal_errors(false)
        .with_target(false);
    // An error means that somebody started it before, as tests do.
    let _already_started = match log.format {
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
        LogFormat::Text => subscriber.with_ansi(false).try_init(),
    };
    let _already_started = LOG.set(lines);
    if named == Some(None) {
        tracing::warn!(
            "PORTCULLIS_LOG is none of error, warn, info, debug, trace: the configuration's level counts"
        );
    }
    Ok(())
}

/// Waits until the lines that were logged are written, at most so long: for the end of the process.
pub fn flush_log(limit: Duration) {
    if let Some(lines) = LOG.get() {
        lines.flush(limit);
    }
}

/// From now on panics are told in the log, not by Rust on standard error, which may stall. What is told of a panic is
/// where it was, and its message where that stands in the source: one that was put together may hold a part of a request.
pub fn tell_panics_in_log() {
    std::panic::set_hook(Box::new(tell_panic));
}

fn tell_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let message = panic.payload().downcast_ref::<&'static str>().copied();
    match LOG.get() {
        Some(_) => tracing::error!(place, message, "a panic: please report it"),
        None => {
            let message = message.unwrap_or_default();
            let _unwritten = writeln!(io::stderr(), "a panic at {place}: {message}: please report it");
        }
    }
}

/// The line that tells of lines that were dropped, as the log formats it; empty where the level leaves it out.
fn notice(dropped: u64) -> Vec<u8> {
    OWN_LINE.set(Some(Vec::new()));
    tracing::warn!(dropped, "log lines were dropped: nobody took them in time, or they could not be written");
    OWN_LINE.take().unwrap_or_default()
}

/// Where a line goes.
enum Destination {
    Buffer(LineWriter),
    OwnLine,
}

fn past_or_into(lines: &LineWriter) -> Destination {
    // A thread that is about to end may have no such place any more.
    let own = OWN_LINE.try_with(|own| own.borrow().is_some()).unwrap_or_default();
    if own { Destination::OwnLine } else { Destination::Buffer(lines.clone()) }
}

impl Write for Destination {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self {
            Destination::Buffer(lines) => lines.write(line),
            Destination::OwnLine => {
                OWN_LINE.with_borrow_mut(|own| own.get_or_insert_default().extend_from_slice(line));
                Ok(line.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn filter(level: LogLevel) -> EnvFilter {
    let others = if level == LogLevel::Error { "error" } else { "warn" };
    EnvFilter::new(format!("{others},portcullis={}", level.name()))
}

fn level_named(text: &str) -> Option<LogLevel> {
    LogLevel::NAMED.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, level)| level)
}
