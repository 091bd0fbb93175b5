//! The log on standard error: one line per event, as JSON or text.
//!
//! A stalled or failing standard error never blocks or fails a caller: see `lines`. A line that was not written is
//! counted in `portcullis_log_dropped_total`. If the process was started with standard error closed, Rust has opened
//! `/dev/null` in its place, and the lines go there.

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

use super::lines::{Capacity, LineWriter, Lines};
use super::settings::{Log, LogFormat, LogLevel};

/// Capacity of the buffer: a few seconds of heavy logging.
const CAPACITY: Capacity = Capacity { lines: 4096, bytes: 1 << 20 };

/// The log of this process, once started.
static LOG: OnceLock<Arc<Lines>> = OnceLock::new();

static DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);

thread_local! {
    /// Receives the writer thread's own line instead of the buffer, which may be full.
    static OWN_LINE: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// The counter of lines that this process has dropped.
pub(super) fn dropped() -> Counter {
    DROPPED.clone()
}

/// Starts the log on standard error. `PORTCULLIS_LOG` overrides the level. Libraries log nothing.
///
/// A second call in one process changes nothing.
///
/// # Errors
/// The thread or the descriptor cannot be created.
pub fn start_log(log: &Log) -> io::Result<()> {
    if LOG.get().is_some() {
        return Ok(());
    }
    let lines = Arc::new(Lines::new(CAPACITY, dropped()));
    // A descriptor of its own: Rust's has a lock, which anything that prints would wait for while a write stalls.
    let out = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let writer = Arc::clone(&lines);
    thread::Builder::new().name("log".to_owned()).spawn(move || writer.run_writer(out, notice))?;
    let variable = std::env::var("PORTCULLIS_LOG").ok();
    let parsed = variable.as_deref().map(parse_level);
    let level = parsed.flatten().unwrap_or(log.level);
    let to_lines = LineWriter(Arc::clone(&lines));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter(level))
        .with_writer(move || destination(&to_lines))
        // They would be printed on standard error.
        .log_internal_errors(false)
        .with_target(false);
    // An error means that a subscriber was set before, as tests do.
    let _already_started = match log.format {
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
        LogFormat::Text => subscriber.with_ansi(false).try_init(),
    };
    let _already_started = LOG.set(lines);
    if parsed == Some(None) {
        tracing::warn!(
            configured = level.name(),
            hint = "use one of error, warn, info, debug, trace",
            "PORTCULLIS_LOG ignored"
        );
    }
    Ok(())
}

/// Waits until the lines logged so far are written, for `limit` at most: for the end of the process.
pub fn flush_log(limit: Duration) {
    if let Some(lines) = LOG.get() {
        lines.flush(limit);
    }
}

/// Logs panics from now on, instead of letting Rust print them on standard error, which may stall. Logged are the
/// location, and the message if it is a literal: a formatted one may contain a part of a request.
pub fn log_panics() {
    std::panic::set_hook(Box::new(log_panic));
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let message = panic.payload().downcast_ref::<&'static str>().copied();
    match LOG.get() {
        Some(_) => tracing::error!(place, message, hint = "report this as a bug", "panic"),
        None => {
            let message = message.unwrap_or_default();
            let _unwritten = writeln!(io::stderr(), "panic at {place}: {message}: report this as a bug");
        }
    }
}

/// The formatted line that reports dropped lines; empty if the level excludes it.
fn notice(dropped: u64) -> Vec<u8> {
    OWN_LINE.set(Some(Vec::new()));
    tracing::warn!(dropped, "log lines dropped");
    OWN_LINE.take().unwrap_or_default()
}

/// Where a line is written to.
enum Destination {
    Buffer(LineWriter),
    OwnLine,
}

fn destination(lines: &LineWriter) -> Destination {
    // The thread-local may be destroyed already in a thread that is ending.
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

/// The lines of this service alone: a library would tell again what a line of ours says in words, at a level of its own, and
/// at debug it would print headers, and tokens in them.
fn filter(level: LogLevel) -> EnvFilter {
    EnvFilter::new(format!("off,portcullis={}", level.name()))
}

fn parse_level(text: &str) -> Option<LogLevel> {
    LogLevel::NAMED.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, level)| level)
}
