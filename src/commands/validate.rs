//! `portcullis validate`: says everything that is wrong with a configuration, or that nothing is.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::config::Config;

/// Check a configuration and report every error at once, and what is legal but dangerous
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  portcullis validate --config portcullis.yaml --print")]
pub struct ValidateArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CONFIG")]
    config: PathBuf,
    /// Print the effective configuration: defaults filled in, variables expanded, secrets left out
    #[arg(long)]
    print: bool,
}

/// Exits with 0 if the file is valid; otherwise every error goes to stderr, one a line as
/// `FILE:LINE:COLUMN: path: message`, and it exits with 1. What is legal and dangerous goes there too, as a warning.
pub fn run(args: ValidateArgs) -> ExitCode {
    let loaded = Config::load(&args.config);
    for warning in loaded.iter().flat_map(|config| &config.warnings) {
        eprintln!("{}", warning.in_file(&args.config, "warning: "));
    }
    match loaded {
        Ok(config) if args.print => {
            print!("{}", config.to_yaml());
            ExitCode::SUCCESS
        }
        Ok(config) => {
            let names: Vec<&str> = config.providers.iter().map(|config| &*config.provider.name).collect();
            println!("{} is valid: {} provider(s): {}", args.config.display(), names.len(), names.join(", "));
            ExitCode::SUCCESS
        }
        Err(errors) => {
            eprintln!("{errors}");
            ExitCode::FAILURE
        }
    }
}
