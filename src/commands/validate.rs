//! `portcullis validate`: prints all errors in a configuration, or that it is valid.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::output;
use crate::clock;
use crate::config::{self, Config};
use crate::service::{OnlineCheck, check_online};

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
    /// Fetch the documents and keys of every issuer once, as `serve` does, and say what was found
    #[arg(long)]
    online: bool,
    /// Print the JSON Schema of configurations, for editors, and do nothing else
    #[arg(long, conflicts_with_all = ["print", "strict", "online"])]
    schema: bool,
}

/// Exits with 0 if the file is valid; otherwise every error goes to stderr, one a line as
/// `FILE:LINE:COLUMN: path: message`, and it exits with 1. Warnings about valid but dangerous settings go there too, and count as errors with `--strict`. With `--online` a
/// provider whose keys cannot be fetched is an error, too.
pub async fn run(args: ValidateArgs) -> ExitCode {
    match args.config.clone() {
        _ if args.schema => output::print_result(&config::json_schema_text(), ExitCode::SUCCESS),
        Some(file) => validate(&file, &args).await,
        // clap has rejected this command line.
        None => ExitCode::FAILURE,
    }
}

async fn validate(file: &Path, args: &ValidateArgs) -> ExitCode {
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
        Ok(config) => {
            let (online, code) =
                if args.online { check(&config).await } else { (String::new(), ExitCode::SUCCESS) };
            if args.print {
                return output::print_result(&config.to_yaml(), code);
            }
            let names: Vec<&str> = config.providers.iter().map(|config| &*config.provider.name).collect();
            let names =
                format!("{} is valid: {} provider(s): {}\n", file.display(), names.len(), names.join(", "));
            output::print_result(&(names + &online + &proxy_requirements::requirements(&config)), code)
        }
        Err(errors) => {
            output::print_error(&errors.to_string());
            ExitCode::FAILURE
        }
    }
}

/// What the issuers answered; errors go to stderr. Fails if a provider has no keys.
async fn check(config: &Config) -> (String, ExitCode) {
    let (mut text, mut code) = (String::new(), ExitCode::SUCCESS);
    for OnlineCheck { provider, name, result } in check_online(config, clock::Clock::System).await {
        match result {
            Ok(found) => text.push_str(&format!("{name}: {found}\n")),
            Err(error) => {
                let setting = config.places.key_source(&provider);
                output::print_error(&format!("{name}: {setting}: {error}"));
                code = ExitCode::FAILURE;
            }
        }
    }
    (text, code)
}
