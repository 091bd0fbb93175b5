//! Captures what is logged on the thread of a test. The test has to use a current-thread runtime.
//!
//! All threads share one global subscriber, since tracing caches the interest of each callsite for the whole
//! process. Lines are captured only for threads that have called [`capture`].

use std::cell::RefCell;
use std::io;
use std::sync::Once;

use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt};

thread_local! {
    /// What was logged on this thread, in each [`Format`]; `None` before [`capture`].
    static CAPTURED: RefCell<Option<[Vec<u8>; 2]>> = const { RefCell::new(None) };
}

/// The format of log lines.
#[derive(Clone, Copy)]
pub enum Format {
    /// JSON objects.
    Json,
    /// Text without colours.
    Text,
}

impl io::Write for Format {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        CAPTURED.with_borrow_mut(|captured| {
            if let Some(captured) = captured {
                captured[*self as usize].extend(bytes);
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Passes events of threads that capture.
struct CapturingThreads;

impl<S: Subscriber> Layer<S> for CapturingThreads {
    fn register_callsite(&self, _metadata: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, _metadata: &Metadata<'_>, _context: Context<'_, S>) -> bool {
        // A thread may log while its thread-local values are destroyed.
        CAPTURED.try_with(|captured| captured.borrow().is_some()).unwrap_or(false)
    }
}

/// Captures what is logged on this thread from now on, at level trace, and discards what was captured before.
pub fn capture() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let json = fmt::layer().json().flatten_event(true).with_writer(|| Format::Json);
        let text = fmt::layer().with_ansi(false).with_writer(|| Format::Text);
        tracing_subscriber::registry()
            .with(CapturingThreads)
            .with(EnvFilter::new("warn,portcullis=trace"))
            .with(json.with_target(false))
            .with(text.with_target(false))
            .init();
    });
    CAPTURED.with_borrow_mut(|captured| *captured = Some([Vec::new(), Vec::new()]));
}

/// What was logged on this thread since [`capture`].
pub fn logged(format: Format) -> String {
    let bytes =
        CAPTURED.with_borrow(|captured| captured.as_ref().map(|captured| captured[format as usize].clone()));
    String::from_utf8(bytes.expect("the thread captures its log")).expect("the log is text")
}

/// The text lines that contain `text`.
pub fn lines(text: &str) -> Vec<String> {
    logged(Format::Text).lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
}

/// The number of warnings that contain `text`.
pub fn warnings(text: &str) -> usize {
    let log = logged(Format::Json);
    log.lines().filter(|line| line.contains("\"level\":\"WARN\"") && line.contains(text)).count()
}
