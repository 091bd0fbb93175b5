//! `portcullis drill`: the proof of rotation survival. An issuer of its own rotates keys in every way that
//! issuers do, while good tokens and an attack arrive together and the issuer fails now and then.
//!
//! `plan` says what happens when, `field` is what happens, `traffic` are the tokens, `target` is the gateway
//! that is put to the test, `tally` counts, `page` prints. Nothing is decided here: all that the drill knows
//! is what it sent, what came back, and what the issuer was asked.
//!
//! # What is good
//! A token under a key that is published while the request is under way. Where a rotation takes an old key
//! away, it waits until the tokens of that key are answered. It never comes within `min_spacing` of the end of
//! a fault, since a fetch that fails may make tokens of unknown keys *unavailable* for that long; all that is
//! sent during a fault are tokens of keys that the gateway has been shown.
//!
//! # What is bad
//! Everything that the attack sends; and tokens of a key that was withdrawn or made anew, once the gateway has
//! allowed a token that it can only know from a fetch after that.

mod field;
mod page;
mod plan;
mod tally;
mod target;
mod traffic;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};

use self::field::{Field, Rules};
use self::target::Target;
use super::Failure;
use super::embedded::Embedded;
use super::issuer::Issuer;
use super::signals::End;
use crate::config;

/// Where the issuer of a drill with a target is, so that the target can be configured beforehand.
const ISSUER_ADDRESS: &str = "127.0.0.1:9195";

/// Prove that no good token is refused while keys rotate under load, attack and outages
///
/// An issuer inside the drill publishes keys, rotates them and fails now and then. Good tokens and an attack
/// are sent to the gateway at the same time. Without --target that is a Portcullis inside the drill; with it,
/// any gateway that trusts the drill's issuer, after the drill has printed what to configure. Exits with 0 if
/// no good token was refused and no bad one allowed, with 1 otherwise.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  portcullis drill
  portcullis drill --duration 10s --rotations 5 --attack-rate 1000
  portcullis drill --target grpc://127.0.0.1:9191    # an ext_authz service
  portcullis drill --target http://127.0.0.1:10000   # a gateway")]
pub struct DrillArgs {
    /// The gateway: grpc://HOST:PORT, asked as Envoy asks ext_authz, or http://HOST:PORT, sent requests
    #[arg(long, value_name = "URL")]
    target: Option<String>,
    /// How often the issuer's keys rotate, 1 to 10000; at most once in 500ms
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rotations: u32,
    /// Bad tokens a second, 0 to 20000
    #[arg(long, value_name = "R", default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=20_000))]
    attack_rate: u32,
    /// How long it takes, up to 24h
    #[arg(long, value_name = "S", default_value = "60s", value_parser = duration)]
    duration: Duration,
    /// How the result is printed; progress goes to standard error
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Where the issuer listens [default: a free port; with --target 127.0.0.1:9195]
    #[arg(long, value_name = "IP:PORT")]
    issuer_address: Option<SocketAddr>,
    /// The audience of the tokens
    #[arg(long, value_name = "NAME", default_value = "orders-api")]
    audience: String,
    /// The path of requests to an http:// target
    #[arg(long, value_name = "PATH", default_value = "/")]
    path: String,
    /// How long to wait for the target to allow a first token
    #[arg(long, value_name = "S", default_value = "60s", value_parser = duration)]
    wait: Duration,
}

/// How the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table.
    Text,
    /// One JSON object.
    Json,
}

fn duration(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
    config::parse_duration(text)
        .filter(|duration| (Duration::from_secs(1)..=LONGEST).contains(duration))
        .ok_or_else(|| "expected a duration with its unit, from 1s to 24h: 30s, 5m".to_owned())
}

/// Runs the drill. Exits with 0 if no good token was refused and no bad one allowed, with 1 otherwise.
pub async fn run(args: DrillArgs) -> ExitCode {
    match play(&args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("the drill broke off: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn play(args: &DrillArgs) -> Result<bool, Failure> {
    let steps = plan::plan(args.duration, args.rotations)?;
    let mut end = End::new()?;
    let issuer = start_issuer(args).await?;
    let rules = Rules { audience: args.audience.clone(), attack_rate: args.attack_rate };
    let keys = traffic::Keys::new(issuer.issuer());
    issuer.publish(&[&keys.first()]);

    let (target, embedded) = match &args.target {
        Some(url) => {
            eprint!("{}", page::instructions(&issuer, &args.audience, args.wait));
            (Target::parse(url, &args.path)?, None)
        }
        None => {
            let doors = "{ext_authz: 127.0.0.1:0, admin: 127.0.0.1:0}";
            let configuration = page::configuration(&issuer, &args.audience, doors);
            let service = Embedded::start(&configuration).await?;
            (Target::grpc(service.ext_authz()), Some(service))
        }
    };
    let gateway = args.target.clone().unwrap_or_else(|| "a Portcullis inside the drill".to_owned());
    let field = Arc::new(Field::new(issuer, target, keys, rules));
    let played = tokio::select! {
        played = field::play(Arc::clone(&field), steps, args.wait) => played,
        () = end.asked_for() => Ok(()),
    };
    let report = field.report(gateway);
    played?;
    match args.format {
        Format::Text => print!("{}", page::table(&report)),
        Format::Json => println!("{}", page::json(&report)),
    }
    drop(field);
    if let Some(service) = embedded {
        service.end().await?;
    }
    Ok(report.passed())
}

async fn start_issuer(args: &DrillArgs) -> Result<Issuer, Failure> {
    let default = if args.target.is_some() { ISSUER_ADDRESS } else { "127.0.0.1:0" };
    let address = match args.issuer_address {
        Some(address) => address,
        None => default.parse()?,
    };
    Issuer::start_at(address).await.map_err(|error| {
        format!("the issuer cannot listen at {address}: {error}; choose another --issuer-address").into()
    })
}
