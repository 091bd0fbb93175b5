//! `portcullis drill`: the proof of rotation survival. An issuer of its own rotates keys in every way that
//! issuers do, while good tokens and an attack arrive together and the issuer fails now and then.
//!
//! `plan` says what happens when, `field` is what happens, `traffic` are the tokens, `target` is the gateway
//! that is put to the test, `reach` where that is, `configuration` what it has to trust, `tally` counts,
//! `report` judges, `page` prints. All that the drill knows is what it sent, what came back, and what the issuer
//! was asked.
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
//!
//! # What is proved
//! A forged token is refused by an answer that says so: a status other than 2xx, or an ext_authz denial. A
//! redirect is such an answer, and is not followed. One without an answer is no proof, and the drill is not
//! passed; nor is one that sent none, or could not send some for want of descriptors, ports or a route of its
//! own. What was not tried is named in the report.

mod configuration;
mod field;
mod page;
mod plan;
mod reach;
mod report;
mod tally;
mod target;
mod traffic;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::configuration::Trusted;
use self::field::{Field, Rules};
use self::plan::Step;
use self::reach::Place;
use self::report::Report;
use self::target::{Target, TargetUrl};
use super::embedded::Embedded;
use super::issuer::Issuer;
use super::signals::End;
use super::{Failure, output};
use crate::config;

/// Prove that no good token is refused while keys rotate under load, attack and outages
///
/// An issuer inside the drill publishes keys, rotates them and fails now and then. Good tokens and an attack
/// are sent to the gateway at the same time. Without --target that is a Portcullis inside the drill; with it,
/// any gateway that trusts the drill's issuer, after the drill has printed what to configure. Exits with 0 if
/// no good token was refused and every forged one was, with 1 otherwise: if any was allowed or had no answer, if
/// none was sent, or if the drill itself could not send some.
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
    /// Bad tokens a second, 0 to 20000; with 0 nothing is proved of them, and the drill is not passed
    #[arg(long, value_name = "R", default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=20_000))]
    attack_rate: u32,
    /// How long it takes, up to 24h
    #[arg(long, value_name = "S", default_value = "60s", value_parser = duration)]
    duration: Duration,
    /// How the result is printed; progress goes to standard error
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Where the issuer listens and the gateway reaches it [default: a free port; with --target 127.0.0.1:9195]
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

/// Runs the drill. Exits with 0 if no good token was refused and every forged one was, with 1 otherwise.
pub async fn run(args: DrillArgs) -> ExitCode {
    match play(&args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            output::complain(&format!("the drill broke off: {failure}"));
            ExitCode::FAILURE
        }
    }
}

/// A drill that can begin.
struct Stage {
    steps: Vec<Step>,
    gateway: String,
    field: Arc<Field>,
    embedded: Option<Embedded>,
}

async fn play(args: &DrillArgs) -> Result<bool, Failure> {
    let mut end = End::new()?;
    let stage = tokio::select! {
        stage = prepare(args) => stage?,
        () = end.asked_for() => return Err("it was stopped before it began".into()),
    };
    let Stage { steps, gateway, field, embedded } = stage;
    let played = tokio::select! {
        played = field::play(Arc::clone(&field), steps, args.wait) => played,
        () = end.asked_for() => Ok(()),
    };
    let passed = match (field.report(gateway), played) {
        (Some(mut report), played) => {
            report.broke_off = played.err().map(|failure| failure.to_string());
            print(&report, args.format)?;
            report.passed()
        }
        (None, Err(failure)) => return Err(failure),
        (None, Ok(())) => return Err("it was stopped before a first token was allowed".into()),
    };
    drop(field);
    if let Some(service) = embedded {
        service.end().await?;
    }
    Ok(passed)
}

async fn prepare(args: &DrillArgs) -> Result<Stage, Failure> {
    let steps = plan::plan(args.duration, args.rotations)?;
    allow_many_descriptors();
    let rules = Rules { audience: args.audience.clone(), attack_rate: args.attack_rate };
    let (field, embedded) = match &args.target {
        Some(url) => {
            let url = TargetUrl::parse(url, &args.path)?;
            let place = Place::locate(url.authority()).await?;
            let (issuer, keys) = start_issuer(args, Some(&place)).await?;
            let trusted = Trusted::new(&issuer, &args.audience);
            output::complain(trusted.instructions(&url, &place, args.wait).trim_end());
            (Field::new(issuer, Target::new(&url, place.addresses), keys, rules), None)
        }
        None => {
            let (issuer, keys) = start_issuer(args, None).await?;
            let free = (Ipv4Addr::LOCALHOST, 0).into();
            let configuration = Trusted::new(&issuer, &args.audience).configuration(free, free);
            let service = Embedded::start(&configuration).await?;
            (Field::new(issuer, Target::grpc(service.ext_authz()), keys, rules), Some(service))
        }
    };
    let gateway = args.target.clone().unwrap_or_else(|| "a Portcullis inside the drill".to_owned());
    Ok(Stage { steps, gateway, field: Arc::new(field), embedded })
}

/// Tokens that wait for their answers are many, and over HTTP each has a connection: as many descriptors as the
/// machine gives. Where it gives few, the report says which tokens were not sent.
fn allow_many_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _as_before = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

async fn start_issuer(args: &DrillArgs, gateway: Option<&Place>) -> Result<(Issuer, traffic::Keys), Failure> {
    let address = reach::issuer_address(args.issuer_address, gateway)?;
    let issuer = Issuer::start_at(address).await.map_err(|error| {
        format!("the issuer cannot listen at {address}: {error}; choose another --issuer-address")
    })?;
    let keys = traffic::Keys::new(issuer.issuer());
    issuer.publish(&[&keys.first()]);
    Ok((issuer, keys))
}

/// # Errors
/// It cannot be written, so that nobody knows how the drill ended. One that nobody reads is told by the exit code.
fn print(report: &Report, format: Format) -> Result<(), Failure> {
    let text = match format {
        Format::Text => page::table(report),
        Format::Json => format!("{}\n", page::json(report)),
    };
    output::print(&text).map_err(|error| format!("the report cannot be written: {error}"))?;
    Ok(())
}
