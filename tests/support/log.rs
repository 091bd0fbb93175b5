//! What is logged on this thread, which a test's runtime does not leave, kept for the test to read.
//!
//! One log for all threads of the process: tracing remembers of each place in the code whether anybody listens
//! there, and threads with logs of their own would disagree about it. Nothing is kept for threads that have not
//! asked for it with [`listen`].

use std::cell::RefCell;
use std::io;
use std::sync::Once;

use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt};

thread_local! {
    /// What was logged on this thread, in each [`Form`]; none where it has not asked for it.
    static KEPT: RefCell<Option<[Vec<u8>; 2]>> = const { RefCell::new(None) };
}

/// How a line is written.
#[derive(Clone, Copy)]
pub enum Form {
    /// As a JSON object.
    Json,
    /// As text, without colours.
    Text,
}

impl io::Write for Form {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        KEPT.with_borrow_mut(|kept| {
            if let Some(kept) = kept {
                kept[*self as usize].extend(bytes);
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lets lines pass of threads that have asked for them.
struct OfThreadsThatListen;

impl<S: Subscriber> Layer<S> for OfThreadsThatListen {
    fn register_callsite(&self, _place: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, _place: &Metadata<'_>, _context: Context<'_, S>) -> bool {
        // A thread that ends may log when its own values are gone.
        KEPT.try_with(|kept| kept.borrow().is_some()).unwrap_or(false)
    }
}

/// Keeps what is logged on this thread from now on, with the service's own filter at its most talkative, and
/// forgets what was logged before.
pub fn listen() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let json = fmt::layer().json().flatten_event(true).with_writer(|| Form::Json);
        let text = fmt::layer().with_ansi(false).with_writer(|| Form::Text);
        tracing_subscriber::registry()
            .with(OfThreadsThatListen)
            .with(EnvFilter::new("warn,portcullis=trace"))
            .with(json.with_target(false))
            .with(text.with_target(false))
            .init();
    });
    KEPT.with_borrow_mut(|kept| *kept = Some([Vec::new(), Vec::new()]));
}

/// What was logged on this thread since [`listen`].
pub fn logged(form: Form) -> String {
    let bytes = KEPT.with_borrow(|kept| kept.as_ref().map(|kept| kept[form as usize].clone()));
    String::from_utf8(bytes.expect("it listens")).expect("the log is text")
}

/// The lines of text with this in them.
pub fn lines(text: &str) -> Vec<String> {
    logged(Form::Text).lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
}

/// How many warnings there were that say this.
pub fn warnings(text: &str) -> usize {
    let log = logged(Form::Json);
    log.lines().filter(|line| line.contains("\"level\":\"WARN\"") && line.contains(text)).count()
}
