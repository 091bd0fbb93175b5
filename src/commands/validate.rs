//! `portcullis validate`: prints all errors in a configuration, or that it is valid.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::output;
use crate::clock;
use crate::config::{self, Config};

use certificates::Findings;

mod certificates;
mod proxy_requirements;

/// Check a configuration and report all errors and warnings
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  portcullis validate --config portcullis.yaml --print")]
pub struct ValidateArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CONFIG", required_unless_present = "schema")]
    config: Option<PathBuf>,
    /// Print the effective configuration: defaults filled in, variables expanded, secrets left out
    #[arg(long)]
    print: bool,
    /// Make warnings errors
    #[arg(long)]
    strict: bool,
    /// Print the JSON Schema of configurations, for editors, and do nothing else
    #[arg(long, conflicts_with_all = ["print", "strict"])]
    schema: bool,
}

/// Exits with 0 if the file is valid; otherwise every error goes to stderr, one a line as
/// `FILE:LINE:COLUMN: path: message`, and it exits with 1. Warnings about valid but dangerous settings go there too, and count as errors with `--strict`.
pub fn run(args: ValidateArgs) -> ExitCode {
    match args.config.clone() {
        _ if args.schema => output::print_result(&config::json_schema_text(), ExitCode::SUCCESS),
        Some(file) => validate(&file, &args),
        // clap has rejected this command line.
        None => ExitCode::FAILURE,
    }
}

fn validate(file: &Path, args: &ValidateArgs) -> ExitCode {
    let examined = Config::examine(file);
    let Findings { errors, warnings } = certificates::check(&examined, clock::Clock::System.now());
    let loaded = examined.with_errors(file, errors).config;
    let config_warnings = loaded.iter().flat_map(|config| &config.warnings);
    let mut count = 0usize;
    for warning in config_warnings.chain(&warnings) {
        output::print_error(&warning.in_file(file, if args.strict { "" } else { "warning: " }));
        count += 1;
    }
    if args.strict && count > 0 && loaded.is_ok() {
        return ExitCode::FAILURE;
    }
    match loaded {
        Ok(config) if args.print => output::print_result(&config.to_yaml(), ExitCode::SUCCESS),
        Ok(config) => {
            let names: Vec<&str> = config.providers.iter().map(|config| &*config.provider.name).collect();
            let names =
                format!("{} is valid: {} provider(s): {}\n", file.display(), names.len(), names.join(", "));
            output::print_result(&(names + &proxy_requirements::requirements(&config)), ExitCode::SUCCESS)
        }
        Err(errors) => {
            output::print_error(&errors.to_string());
            ExitCode::FAILURE
        }
    }
}
