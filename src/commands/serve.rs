//! `portcullis serve`: runs the service until it is told to stop.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::signals::End;
use crate::app::App;
use crate::clock::Clock;
use crate::config::Config;
use crate::{server, telemetry};

/// Run the service
///
/// SIGTERM and SIGINT drain and then exit with 0. SIGHUP, and a change of the file, reload it; a broken
/// file changes nothing and is reported, and so is a provider whose new keys cannot be had.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  portcullis serve --config portcullis.yaml")]
pub struct ServeArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CONFIG")]
    config: PathBuf,
}

/// Serves until a signal. Exits with 0 after a drain, with 1 on a configuration or bind error.
pub async fn run(args: ServeArgs) -> ExitCode {
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::FAILURE;
        }
    };
    telemetry::start_log(&config.log);
    for warning in &config.warnings {
        tracing::warn!(%warning, "in the configuration");
    }
    let (mut end, end_at_once) = match End::new().and_then(|end| Ok((end, End::new()?))) {
        Ok(ends) => ends,
        Err(error) => {
            eprintln!("signals cannot be listened for: {error}");
            return ExitCode::FAILURE;
        }
    };
    server::raise_limit();
    let app = match App::bind(config, Clock::System).await {
        Ok(app) => app.reloading_from(args.config),
        Err(error) => {
            eprintln!("{error}");
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
