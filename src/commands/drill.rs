//! `portcullis drill`: tests that a gateway survives key rotations. An embedded issuer rotates its keys in every common
//! way and fails now and then, while good tokens and an attack are sent.
//!
//! `plan` is the schedule, `runner` executes it, `traffic` makes the tokens, `target` is the gateway under test,
//! `network` finds its address, `configuration` is what the gateway has to trust, `counts` counts the results, `report`
//! evaluates them, and `render` formats the report. The drill knows only what it sent, the responses, and the issuer's
//! requests.
//!
//! # Good tokens
//! A token is good if its key is published for the whole duration of the request. A rotation that removes an old key
//! waits until the tokens of that key have their responses. A rotation never happens within `min_spacing` of the end of
//! a fault, because a failed fetch may make tokens of unknown keys *unavailable* for that long; during a fault only
//! tokens of keys that the gateway has already used are sent.
//!
//! # Bad tokens
//! All tokens of the attack are bad. Tokens of a key that was withdrawn or replaced are bad once the gateway has
//! allowed a token that requires a fetch after that.
//!
//! # What is proved
//! A forged token is refused by a response with a status other than 2xx, or by an ext_authz denial. A redirect is such
//! a response, and is not followed. A missing response proves nothing, and fails the drill. So does a drill that sent
//! no forged token, or could not send some because the machine lacked descriptors, ports or a route. The report lists
//! what was not tested.

mod configuration;
mod counts;
mod network;
mod plan;
mod render;
mod report;
mod runner;
mod target;
mod traffic;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::configuration::TrustedIssuer;
use self::network::GatewayLocation;
use self::plan::Step;
use self::report::Report;
use self::runner::{Runner, Settings};
use self::target::{Target, TargetUrl};
use super::embedded::Embedded;
use super::issuer::Issuer;
use super::signals::ShutdownSignal;
use super::{Failure, output};
use crate::config;

/// Test that no good token is refused while keys rotate under load, attack and outages
///
/// An issuer inside the drill publishes keys, rotates them and fails now and then. Good tokens and an attack
/// are sent to the gateway at the same time. Without --target that is a Portcullis inside the drill; with --target
/// it is any gateway that trusts the drill's issuer, and the drill first prints what to configure. Exits with 0 if
/// no good token was refused and every forged one was. Exits with 1 if a forged token was allowed or got no
/// response, if none was sent, or if the drill could not send some tokens.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  portcullis drill
  portcullis drill --duration 10s --rotations 5 --attack-rate 1000
  portcullis drill --target grpc://127.0.0.1:9191    # an ext_authz service
  portcullis drill --target http://127.0.0.1:10000   # a gateway")]
pub struct DrillArgs {
    /// The gateway: grpc://HOST:PORT for an ext_authz service, or http://HOST:PORT for an HTTP gateway
    #[arg(long, value_name = "URL")]
    target: Option<String>,
    /// The number of key rotations, 1 to 10000; at most one every 500ms
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rotations: u32,
    /// Bad tokens per second, 0 to 20000; with 0 the drill fails, because refusal is not tested
    #[arg(long, value_name = "R", default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=20_000))]
    attack_rate: u32,
    /// The duration of the drill, up to 24h
    #[arg(long, value_name = "S", default_value = "60s", value_parser = duration)]
    duration: Duration,
    /// The format of the result; progress goes to standard error
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// The address of the issuer, which the gateway must reach [default: a free port; with --target 127.0.0.1:9195]
    #[arg(long, value_name = "IP:PORT")]
    issuer_address: Option<SocketAddr>,
    /// The audience of the tokens
    #[arg(long, value_name = "NAME", default_value = "orders-api")]
    audience: String,
    /// The path of requests to an http:// target
    #[arg(long, value_name = "PATH", default_value = "/")]
    path: String,
    /// How long to wait until the target allows a first token
    #[arg(long, value_name = "S", default_value = "60s", value_parser = duration)]
    wait: Duration,
}

/// The format of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table.
    Text,
    /// One JSON object.
    Json,
}

fn duration(text: &str) -> Result<Duration, String> {
    const MAX: Duration = Duration::from_secs(24 * 60 * 60);
    config::parse_duration(text)
        .filter(|duration| (Duration::from_secs(1)..=MAX).contains(duration))
        .ok_or_else(|| "expected a duration with its unit, from 1s to 24h: 30s, 5m".to_owned())
}

/// Runs the drill. Exits with 0 if no good token was refused and every forged one was, with 1 otherwise.
pub async fn run(args: DrillArgs) -> ExitCode {
    match run_drill(&args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            output::print_error(&format!("the drill was aborted: {failure}"));
            ExitCode::FAILURE
        }
    }
}

/// A drill that is ready to start.
struct Prepared {
    steps: Vec<Step>,
    gateway: String,
    runner: Arc<Runner>,
    embedded: Option<Embedded>,
}

async fn run_drill(args: &DrillArgs) -> Result<bool, Failure> {
    let mut shutdown = ShutdownSignal::new()?;
    let prepared = tokio::select! {
        prepared = prepare(args) => prepared?,
        () = shutdown.recv() => return Err("stopped before it started".into()),
    };
    let Prepared { steps, gateway, runner, embedded } = prepared;
    let result = tokio::select! {
        result = runner::run(Arc::clone(&runner), steps, args.wait) => result,
        () = shutdown.recv() => Ok(()),
    };
    let passed = match (runner.report(gateway), result) {
        (Some(mut report), result) => {
            report.aborted = result.err().map(|failure| failure.to_string());
            print(&report, args.format)?;
            report.passed()
        }
        (None, Err(failure)) => return Err(failure),
        (None, Ok(())) => return Err("stopped before a first token was allowed".into()),
    };
    drop(runner);
    if let Some(service) = embedded {
        service.stop().await?;
    }
    Ok(passed)
}

async fn prepare(args: &DrillArgs) -> Result<Prepared, Failure> {
    let steps = plan::plan(args.duration, args.rotations)?;
    raise_descriptor_limit();
    let settings = Settings { audience: args.audience.clone(), attack_rate: args.attack_rate };
    let (runner, embedded) = match &args.target {
        Some(url) => {
            let url = TargetUrl::parse(url, &args.path)?;
            let location = GatewayLocation::resolve(url.authority()).await?;
            let (issuer, keys) = start_issuer(args, Some(&location)).await?;
            let trusted = TrustedIssuer::new(&issuer, &args.audience);
            output::print_error(trusted.instructions(&url, &location, args.wait).trim_end());
            (Runner::new(issuer, Target::new(&url, location.addresses), keys, settings), None)
        }
        None => {
            let (issuer, keys) = start_issuer(args, None).await?;
            let any_port = (Ipv4Addr::LOCALHOST, 0).into();
            let configuration = TrustedIssuer::new(&issuer, &args.audience).configuration(any_port, any_port);
            let service = Embedded::start(&configuration).await?;
            (Runner::new(issuer, Target::grpc(service.ext_authz()), keys, settings), Some(service))
        }
    };
    let gateway = args.target.clone().unwrap_or_else(|| "a Portcullis inside the drill".to_owned());
    Ok(Prepared { steps, gateway, runner: Arc::new(runner), embedded })
}

/// Raises the limit on open files, because many tokens wait for responses and over HTTP each has a connection. If the
/// limit is still too low, the report counts the tokens that were not sent.
fn raise_descriptor_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _unchanged = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

async fn start_issuer(
    args: &DrillArgs,
    gateway: Option<&GatewayLocation>,
) -> Result<(Issuer, traffic::Keys), Failure> {
    let address = network::issuer_address(args.issuer_address, gateway)?;
    let issuer = Issuer::start_at(address).await.map_err(|error| {
        format!("the issuer cannot listen on {address}: {error}; choose another --issuer-address")
    })?;
    let keys = traffic::Keys::new(issuer.issuer());
    issuer.publish(&[&keys.first()]);
    Ok((issuer, keys))
}

/// # Errors
/// The report cannot be written. If the reader has closed the output, the exit code still has the result.
fn print(report: &Report, format: Format) -> Result<(), Failure> {
    let text = match format {
        Format::Text => render::table(report),
        Format::Json => format!("{}\n", render::json(report)),
    };
    output::print(&text).map_err(|error| format!("the report cannot be written: {error}"))?;
    Ok(())
}
