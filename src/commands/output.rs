//! Output of a command: its result on standard output, errors on standard error.
//!
//! # Architecture invariant
//! Nothing else in the crate prints, and nothing here panics, as Rust's print macros do when the reader has closed the
//! pipe. A reader may close it early (`portcullis explain ... | head -1`); the exit code stays that of the result. No
//! token is printed on standard error, even if it was passed as another argument.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind as UsageError};

use crate::telemetry::without_tokens;

/// The state of standard output's reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// Not known to be closed.
    Open,
    /// The reader has closed the pipe.
    Closed,
}

/// Prints text on standard output.
///
/// # Errors
/// It cannot be written for a reason other than a closed pipe, such as a full disk.
pub(super) fn print(text: &str) -> io::Result<Reader> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::Open),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Closed),
        Err(error) => Err(error),
    }
}

/// Prints a result. Returns its exit code, or 1 if it cannot be written.
pub(super) fn print_result(text: &str, code: ExitCode) -> ExitCode {
    match print(text) {
        Ok(Reader::Open | Reader::Closed) => code,
        Err(error) => {
            print_error(&format!("the result cannot be written: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints an error or progress on standard error. A write error is ignored.
pub fn print_error(text: &str) {
    let _ignored = io::stderr().lock().write_all(format!("{}\n", without_tokens(text)).as_bytes());
}

/// Prints an error of the command line, or the requested help, and returns the exit code.
///
/// An unexpected argument is not repeated, because it may be a token.
pub fn print_usage_error(error: &clap::Error, args: &[String]) -> ExitCode {
    match error.kind() {
        UsageError::DisplayHelp
        | UsageError::DisplayVersion
        | UsageError::DisplayHelpOnMissingArgumentOrSubcommand => {
            if let Err(write_error) = error.print()
                && write_error.kind() != ErrorKind::BrokenPipe
            {
                print_error(&format!("the help cannot be written: {write_error}"));
                return ExitCode::FAILURE;
            }
        }
        _ => {
            print_error(&format!("error: {}", usage_error(error, args)));
            if let Some(usage) = error.get(ContextKind::Usage) {
                print_error(&format!("\n{usage}"));
            }
            print_error("\nFor more information, try '--help'.");
        }
    }
    // clap's own exit code for a usage error is 2, which means a denial for `explain`.
    if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The text of a usage error. clap's own text would repeat the argument.
fn usage_error(error: &clap::Error, args: &[String]) -> String {
    // A known argument is shown with its name in the help.
    let argument = || context(error.get(ContextKind::InvalidArg));
    match error.kind() {
        UsageError::UnknownArgument => {
            let unknown = context(error.get(ContextKind::InvalidArg));
            let position =
                args.iter().position(|arg| arg.starts_with(&unknown)).map(|index| index.to_string());
            let position =
                position.map_or_else(|| "an argument".to_owned(), |index| format!("argument {index}"));
            let suggestion = match error.get(ContextKind::SuggestedArg) {
                Some(suggested) => format!("; did you mean {suggested}?"),
                None => String::new(),
            };
            format!("{position} is unknown (not repeated here, because it may be a secret){suggestion}")
        }
        UsageError::InvalidSubcommand => "unknown command".to_owned(),
        UsageError::MissingSubcommand => "a command is missing".to_owned(),
        UsageError::MissingRequiredArgument => format!("missing: {}", argument()),
        UsageError::ArgumentConflict => {
            let (first, second) = (argument(), context(error.get(ContextKind::PriorArg)));
            match first == second {
                true => format!("{first} cannot be used more than once"),
                false => format!("{first} cannot be used with {second}"),
            }
        }
        UsageError::InvalidUtf8 => "an argument is not UTF-8".to_owned(),
        _ => {
            let valid = context(error.get(ContextKind::ValidValue));
            let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            let cause = match (&*valid, &*cause) {
                ("", "") => "its value is missing or invalid".to_owned(),
                ("", cause) => cause.to_owned(),
                (valid, _) => format!("expected one of {valid}"),
            };
            format!("{}: {cause}", argument())
        }
    }
}

fn context(value: Option<&ContextValue>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}
