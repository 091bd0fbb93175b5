//! `portcullis demo`: the whole service on an issuer of its own, told step by step, with nothing to install.
//!
//! `stage` sets up the issuer and the real service on real sockets, `story` plays the steps and holds each
//! against what it told, `report` prints them. Nothing is decided here: all that a step knows is what came
//! back over gRPC and what the issuer counted.

mod report;
mod stage;
mod story;
mod try_it;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::time::sleep;

use self::report::Report;
use self::stage::Stage;
use self::try_it::CheckFile;
use super::issuer::SigningAlgorithm;
use super::signals::End;
use super::{Failure, output};

/// How long a key of the issuer lives once the story is told.
const ROTATE_EVERY: Duration = Duration::from_secs(30);

/// Show the main job at work, with nothing to install
///
/// Starts an issuer whose keys rotate, and the service on it, on ports that the system chooses. Plays good
/// tokens, rotations, bad and forged tokens and an outage of the issuer, and ends with a table. Then it stays up
/// and prints what to try, until Ctrl-C. Exits with 1 if a step did not come out as told.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  portcullis demo\n  portcullis demo --once   # ends after the table")]
pub struct DemoArgs {
    /// End after the table
    #[arg(long)]
    once: bool,
}

/// Plays the demo. Exits with 0 if every step came out as told, with 1 otherwise.
pub async fn run(args: DemoArgs) -> ExitCode {
    match play(&args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            output::complain(&format!("the demo broke off: {failure}"));
            ExitCode::FAILURE
        }
    }
}

/// Whether every step came out as told.
async fn play(args: &DemoArgs) -> Result<bool, Failure> {
    let mut end = End::with_terminal()?;
    let stage = Stage::set_up().await?;
    let mut report = Report::new(output::print);
    let (as_told, stopped) = tokio::select! {
        as_told = story::tell(&stage, &mut report) => (as_told?, false),
        // Who stops a demo that would have stayed has got what they wanted; a single run was not finished.
        () = end.asked_for() => (!args.once, true),
    };
    if !args.once && !stopped && report.is_read() {
        stay(&stage, &mut report, &mut end).await?;
    }
    stage.take_down().await?;
    Ok(as_told)
}

/// Prints what to try, and keeps the issuer rotating until the end is asked for or nobody reads any more.
async fn stay(stage: &Stage, report: &mut Report, end: &mut End) -> Result<(), Failure> {
    use SigningAlgorithm::{ES256, EdDSA, RS256};

    let mut key = stage.issuer().rotate(RS256);
    let file = CheckFile::create();
    if let Ok(file) = &file {
        file.write(&stage.token(&key))?;
    }
    report.line(&try_it::lines(stage, file.as_ref(), ROTATE_EVERY))?;
    for algorithm in [ES256, EdDSA, RS256].into_iter().cycle() {
        tokio::select! {
            () = end.asked_for() => break,
            () = sleep(ROTATE_EVERY) => {}
        }
        let withdrawn = key;
        key = stage.issuer().rotate(algorithm);
        if let Ok(file) = &file {
            file.write(&stage.token(&key))?;
        }
        let fetches = stage.issuer().key_fetches();
        report.line(&format!(
            "{} replaces {} at the issuer; key-set fetches so far: {fetches}.",
            story::named(&key),
            story::named(&withdrawn)
        ))?;
        if !report.is_read() {
            break;
        }
    }
    Ok(())
}
