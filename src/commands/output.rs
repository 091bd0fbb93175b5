//! What a command prints: its answer on standard output, what is wrong on standard error.
//!
//! # Architecture invariant
//! Nothing else in the crate prints, and nothing here panics: Rust's own macros do where nobody reads. The reader of an
//! answer may go before its end (`portcullis explain ... | head -1`): the exit code is the answer's all the same. No
//! token is printed on standard error, whatever somebody mistook it for.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind as Mistake};

use crate::telemetry::without_tokens;

/// Whether somebody reads what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// As far as one can know.
    There,
    /// No more is read.
    Gone,
}

/// Prints a piece of an answer on standard output.
///
/// # Errors
/// It cannot be written, for another reason than that its reader has gone: a full disk, say.
pub(super) fn print(text: &str) -> io::Result<Reader> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(error),
    }
}

/// Prints a whole answer. Gives its exit code, or 1 where the answer cannot be written.
pub(super) fn answer(text: &str, code: ExitCode) -> ExitCode {
    match print(text) {
        Ok(Reader::There | Reader::Gone) => code,
        Err(error) => {
            complain(&format!("the answer cannot be written: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Says on standard error what is wrong, or how far it is. Where nobody reads that, nothing can be done about it.
pub fn complain(text: &str) {
    let _unwritten = io::stderr().lock().write_all(format!("{}\n", without_tokens(text)).as_bytes());
}

/// Says what is wrong with a command line, and gives the exit code; or prints the help that was asked for.
///
/// What the line has in the wrong place is not repeated: it may be a token.
pub fn mistaken(error: &clap::Error, line: &[String]) -> ExitCode {
    match error.kind() {
        Mistake::DisplayHelp
        | Mistake::DisplayVersion
        | Mistake::DisplayHelpOnMissingArgumentOrSubcommand => {
            if let Err(unwritten) = error.print()
                && unwritten.kind() != ErrorKind::BrokenPipe
            {
                complain(&format!("the help cannot be written: {unwritten}"));
                return ExitCode::FAILURE;
            }
        }
        _ => {
            complain(&format!("error: {}", mistake(error, line)));
            if let Some(usage) = error.get(ContextKind::Usage) {
                complain(&format!("\n{usage}"));
            }
            complain("\nFor more information, try '--help'.");
        }
    }
    // clap's own code for a mistake is 2, which is a denial to whoever asks `explain`.
    if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// A mistake in words of ours: clap's would repeat what stands in the line.
fn mistake(error: &clap::Error, line: &[String]) -> String {
    // Of arguments that are known, the name that they have in the help.
    let named = || listed(error.get(ContextKind::InvalidArg));
    match error.kind() {
        Mistake::UnknownArgument => {
            let unknown = listed(error.get(ContextKind::InvalidArg));
            let place = line.iter().position(|one| one.starts_with(&unknown)).map(|place| place.to_string());
            let place = place.map_or_else(|| "an argument".to_owned(), |place| format!("argument {place}"));
            let meant = match error.get(ContextKind::SuggestedArg) {
                Some(meant) => format!("; there is {meant}"),
                None => String::new(),
            };
            format!("{place} is not known (it is not repeated here, since it may be a secret){meant}")
        }
        Mistake::InvalidSubcommand => "there is no such command".to_owned(),
        Mistake::MissingSubcommand => "a command is missing".to_owned(),
        Mistake::MissingRequiredArgument => format!("missing: {}", named()),
        Mistake::ArgumentConflict => {
            let (one, other) = (named(), listed(error.get(ContextKind::PriorArg)));
            match one == other {
                true => format!("{one} cannot be used several times"),
                false => format!("{one} cannot be used with {other}"),
            }
        }
        Mistake::InvalidUtf8 => "an argument is not UTF-8".to_owned(),
        _ => {
            let valid = listed(error.get(ContextKind::ValidValue));
            let why = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            let why = match (&*valid, &*why) {
                ("", "") => "its value is missing or cannot be used".to_owned(),
                ("", why) => why.to_owned(),
                (valid, _) => format!("expected one of {valid}"),
            };
            format!("{}: {why}", named())
        }
    }
}

fn listed(value: Option<&ContextValue>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}
