//! `portcullis serve`: runs the service until a signal stops it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::output;
use super::signals::ShutdownSignal;
use crate::app::{App, ConfigFile, Hangups};
use crate::clock::Clock;
use crate::{server, telemetry};

/// Run the service
///
/// SIGTERM and SIGINT drain and then exit with 0; a second one exits immediately with 1. SIGHUP reloads the file. A
/// changed file is reloaded once it has been unchanged for 10 s, or sooner if it was replaced atomically by a symbolic
/// link and removes nothing. An invalid file is reported and changes nothing; so is a provider whose new keys are not
/// available.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  portcullis serve --config portcullis.yaml\n\nOn a socket file, Envoy's google_grpc and other gRPC clients of grpc-core, Java and Swift have to set\ngrpc.default_authority to localhost: they send the file's path otherwise, which is rejected."
)]
pub struct ServeArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CONFIG")]
    config: PathBuf,
}

/// Serves until a signal. Exits with 0 after a drain, with 1 on a configuration or bind error.
pub async fn run(args: ServeArgs) -> ExitCode {
    // Done first, so that no signal ends the process while it starts.
    let signals =
        Hangups::new().and_then(|hangups| Ok((hangups, ShutdownSignal::new()?, ShutdownSignal::new()?)));
    let (hangups, mut shutdown, abort) = match signals {
        Ok(signals) => signals,
        Err(error) => {
            output::print_error(&format!("signal handlers cannot be registered: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let loaded = tokio::select! {
        loaded = ConfigFile::load(&args.config, hangups) => loaded,
        // The file may be a pipe without a writer.
        () = shutdown.recv() => return ExitCode::SUCCESS,
    };
    let (config, file) = match loaded {
        Ok(loaded) => loaded,
        Err(errors) => {
            output::print_error(&errors.to_string());
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = telemetry::start_log(&config.log) {
        output::print_error(&format!("the log cannot be started: {error}"));
        return ExitCode::FAILURE;
    }
    for warning in &config.warnings {
        tracing::warn!(%warning, "configuration warning");
    }
    server::raise_limit();
    let app = match App::bind(config, Clock::System).await {
        Ok(app) => app.reloading_from(file),
        Err(error) => {
            output::print_error(&error.to_string());
            return ExitCode::FAILURE;
        }
    };
    let format_addresses = |addresses: Vec<SocketAddr>| {
        (!addresses.is_empty())
            .then(|| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    };
    tracing::info!(
        ext_authz = format_addresses(app.ext_authz_addresses()),
        forward_auth = format_addresses(app.forward_auth_addresses()),
        admin = format_addresses(app.admin_address().into_iter().collect()),
        "serving"
    );
    tokio::select! {
        () = app.serve(async move { shutdown.recv().await }) => ExitCode::SUCCESS,
        () = second_signal(abort) => {
            tracing::warn!("second signal, closing connections");
            ExitCode::FAILURE
        }
    }
}

/// Waits for a second signal, which aborts the drain.
async fn second_signal(mut signal: ShutdownSignal) {
    signal.recv().await;
    signal.recv().await;
}
