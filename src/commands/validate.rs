//! `portcullis validate`: says everything that is wrong with a configuration, or that nothing is.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::output;
use crate::clock;
use crate::config::{self, Config};

use certificates::Told;

mod certificates;
mod recipes;

/// Check a configuration and report every error at once, and what is legal but dangerous
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  portcullis validate --config portcullis.yaml --print")]
pub struct ValidateArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CONFIG", required_unless_present = "schema")]
    config: Option<PathBuf>,
    /// Print the effective configuration: defaults filled in, variables expanded, secrets left out
    #[arg(long)]
    print: bool,
    /// Print the JSON Schema of configurations, for editors, and do nothing else
    #[arg(long, conflicts_with = "print")]
    schema: bool,
}

/// Exits with 0 if the file is valid; otherwise every error goes to stderr, one a line as
/// `FILE:LINE:COLUMN: path: message`, and it exits with 1. What is legal and dangerous goes there too, as a warning.
pub fn run(args: ValidateArgs) -> ExitCode {
    match args.config {
        _ if args.schema => output::answer(&config::json_schema_text(), ExitCode::SUCCESS),
        Some(file) => validate(&file, args.print),
        // The command line has refused that.
        None => ExitCode::FAILURE,
    }
}

fn validate(file: &Path, print: bool) -> ExitCode {
    let examined = Config::examine(file);
    let Told { errors, warnings } = certificates::check(&examined, clock::Clock::System.now());
    let loaded = examined.with_errors(file, errors).config;
    let of_rules = loaded.iter().flat_map(|config| &config.warnings);
    for warning in of_rules.chain(&warnings) {
        output::complain(&warning.in_file(file, "warning: "));
    }
    match loaded {
        Ok(config) if print => output::answer(&config.to_yaml(), ExitCode::SUCCESS),
        Ok(config) => {
            let names: Vec<&str> = config.providers.iter().map(|config| &*config.provider.name).collect();
            let names =
                format!("{} is valid: {} provider(s): {}\n", file.display(), names.len(), names.join(", "));
            output::answer(&(names + &recipes::needs(&config)), ExitCode::SUCCESS)
        }
        Err(errors) => {
            output::complain(&errors.to_string());
            ExitCode::FAILURE
        }
    }
}
