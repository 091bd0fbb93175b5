//! `portcullis rules`: the table of who may reach what.

pub(super) mod row;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use self::row::Row;
use super::output;
use crate::config::Config;

/// Print who may reach what: every rule in order, and at the end what no rule matches
///
/// The first row that matches a request applies. Values are effective ones: HEAD where a rule has GET, and the audiences
/// of the providers where a rule has none.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  portcullis rules --config portcullis.yaml --format markdown > rules.md")]
pub struct RulesArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CONFIG")]
    config: PathBuf,
    /// The output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// The output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Columns of text.
    Text,
    /// A table in Markdown.
    Markdown,
    /// One JSON object.
    Json,
}

/// Prints the table. Exits with 0 if the configuration is valid.
pub fn run(args: RulesArgs) -> ExitCode {
    match Config::load(&args.config) {
        Ok(config) => {
            let rows = Row::all(&config);
            let text = match args.format {
                Format::Text => table::text(&rows),
                Format::Markdown => table::markdown(&rows),
                Format::Json => table::json(&rows),
            };
            output::print_result(&text, ExitCode::SUCCESS)
        }
        Err(errors) => {
            output::print_error(&errors.to_string());
            ExitCode::FAILURE
        }
    }
}
