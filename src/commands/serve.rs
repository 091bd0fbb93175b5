//! `portcullis serve`: runs the service until it is told to stop.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::output;
use super::signals::End;
use crate::app::{App, ConfigFile, Hangups};
use crate::clock::Clock;
use crate::{server, telemetry};

/// Run the service
///
/// SIGTERM and SIGINT drain and then exit with 0; a second one ends at once, with 1. SIGHUP reloads the file, and so does a
/// change of it once it has rested for 10 s, or sooner where it came whole by a symbolic link and takes nothing away. A
/// broken file changes nothing and is reported, and so is a provider whose new keys cannot be had.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  portcullis serve --config portcullis.yaml")]
pub struct ServeArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CONFIG")]
    config: PathBuf,
}

/// Serves until a signal. Exits with 0 after a drain, with 1 on a configuration or bind error.
pub async fn run(args: ServeArgs) -> ExitCode {
    // First of all, so that none of them ends the process while it starts.
    let signals = Hangups::new().and_then(|hangups| Ok((hangups, End::new()?, End::new()?)));
    let (hangups, mut end, end_at_once) = match signals {
        Ok(signals) => signals,
        Err(error) => {
            output::complain(&format!("signals cannot be listened for: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let loaded = tokio::select! {
        loaded = ConfigFile::load(&args.config, hangups) => loaded,
        // The file may be a pipe that nobody writes to.
        () = end.asked_for() => return ExitCode::SUCCESS,
    };
    let (config, file) = match loaded {
        Ok(loaded) => loaded,
        Err(errors) => {
            output::complain(&errors.to_string());
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = telemetry::start_log(&config.log) {
        output::complain(&format!("the log cannot be started: {error}"));
        return ExitCode::FAILURE;
    }
    for warning in &config.warnings {
        tracing::warn!(%warning, "in the configuration");
    }
    server::raise_limit();
    let app = match App::bind(config, Clock::System).await {
        Ok(app) => app.reloading_from(file),
        Err(error) => {
            output::complain(&error.to_string());
            return ExitCode::FAILURE;
        }
    };
    let shown = |addresses: Vec<SocketAddr>| {
        (!addresses.is_empty())
            .then(|| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    };
    tracing::info!(
        ext_authz = shown(app.ext_authz_addresses()),
        forward_auth = shown(app.forward_auth_addresses()),
        admin = shown(app.admin_address().into_iter().collect()),
        "serving"
    );
    tokio::select! {
        () = app.serve(async move { end.asked_for().await }) => ExitCode::SUCCESS,
        () = asked_twice(end_at_once) => {
            tracing::warn!("told to end a second time: what is in flight is cut off");
            ExitCode::FAILURE
        }
    }
}

/// A second signal means that whoever sent the first one waits no longer.
async fn asked_twice(mut end: End) {
    end.asked_for().await;
    end.asked_for().await;
}
