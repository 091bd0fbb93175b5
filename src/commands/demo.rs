//! `portcullis demo`: the service with its own issuer, step by step, with nothing to install.
//!
//! `environment` starts the issuer and the service on real sockets, `scenario` runs the steps and compares each result
//! with the expected one, `report` prints them. Nothing is decided here: a step knows only the gRPC responses and the
//! issuer's count of fetches.

mod behind_envoy;
mod environment;
mod report;
mod scenario;
mod try_it;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::time::sleep;

use self::behind_envoy::BehindEnvoy;
use self::environment::Environment;
use self::report::Report;
use self::try_it::CheckFile;
use super::issuer::{SigningAlgorithm, SigningKey};
use super::signals::ShutdownSignal;
use super::{Failure, output};

/// The interval of key rotations after the scenario.
const ROTATION_INTERVAL: Duration = Duration::from_secs(30);

/// Show what the service does, with nothing to install
///
/// Starts an issuer that rotates its keys and a service that trusts it, on free ports. Sends good, bad and forged
/// tokens during rotations and an outage of the issuer, and prints a table of the results. Then it keeps running and
/// prints what to try, until Ctrl-C. Exits with 1 if a step had an unexpected result.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  portcullis demo\n  portcullis demo --once   # exits after the table\n  portcullis demo --behind-envoy try"
)]
pub struct DemoArgs {
    /// Exit after the table
    #[arg(long)]
    once: bool,
    /// Instead of the table: run an upstream too, and write Envoy's file and a token into this folder
    #[arg(long, value_name = "DIR", conflicts_with = "once")]
    behind_envoy: Option<PathBuf>,
}

/// Runs the demo. Exits with 0 if every step had the expected result, with 1 otherwise.
pub async fn run(args: DemoArgs) -> ExitCode {
    match run_demo(&args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            output::print_error(&format!("the demo was aborted: {failure}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs the demo and returns whether every step had the expected result.
async fn run_demo(args: &DemoArgs) -> Result<bool, Failure> {
    let mut shutdown = ShutdownSignal::with_terminal()?;
    let environment = Environment::start().await?;
    let mut report = Report::new(output::print);
    if let Some(folder) = &args.behind_envoy {
        run_behind_envoy(folder, &environment, &mut report, &mut shutdown).await?;
        environment.stop().await?;
        return Ok(true);
    }
    let (as_expected, stopped) = tokio::select! {
        as_expected = scenario::run(&environment, &mut report) => (as_expected?, false),
        // Stopping a demo that keeps running is a success; stopping `--once` leaves it incomplete.
        () = shutdown.recv() => (!args.once, true),
    };
    if !args.once && !stopped && report.is_open() {
        keep_running(&environment, &mut report, &mut shutdown).await?;
    }
    environment.stop().await?;
    Ok(as_expected)
}

/// Runs an upstream, writes Envoy's file and rotates the issuer's keys until a signal arrives or the output is closed.
async fn run_behind_envoy(
    folder: &Path,
    environment: &Environment,
    report: &mut Report,
    shutdown: &mut ShutdownSignal,
) -> Result<(), Failure> {
    let key = environment.first_key().clone();
    let files = BehindEnvoy::start(folder, environment).await?;
    files.write(&environment.token(&key))?;
    report.line(&files.lines())?;
    rotate(key, environment, report, shutdown, |token| files.write(token)).await
}

/// Prints what to try, and rotates the issuer's keys until a signal arrives or the output is closed.
async fn keep_running(
    environment: &Environment,
    report: &mut Report,
    shutdown: &mut ShutdownSignal,
) -> Result<(), Failure> {
    let key = environment.issuer().rotate(SigningAlgorithm::RS256);
    let file = CheckFile::create();
    if let Ok(file) = &file {
        file.write(&environment.token(&key))?;
    }
    report.line(&try_it::lines(environment, file.as_ref(), ROTATION_INTERVAL))?;
    rotate(key, environment, report, shutdown, |token| match &file {
        Ok(file) => Ok(file.write(token)?),
        Err(_) => Ok(()),
    })
    .await
}

/// Rotates the issuer's keys, and has a token of each written, until a signal arrives or the output is closed.
async fn rotate(
    mut key: SigningKey,
    environment: &Environment,
    report: &mut Report,
    shutdown: &mut ShutdownSignal,
    write: impl Fn(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    use SigningAlgorithm::{ES256, EdDSA, RS256};

    for algorithm in [ES256, EdDSA, RS256].into_iter().cycle() {
        tokio::select! {
            () = shutdown.recv() => break,
            () = sleep(ROTATION_INTERVAL) => {}
        }
        let withdrawn = key;
        key = environment.issuer().rotate(algorithm);
        write(&environment.token(&key))?;
        let fetches = environment.issuer().key_fetches();
        report.line(&format!(
            "{} replaces {} at the issuer; key-set fetches so far: {fetches}.",
            scenario::describe(&key),
            scenario::describe(&withdrawn)
        ))?;
        if !report.is_open() {
            break;
        }
    }
    Ok(())
}
