//! `portcullis explain`: decides one request as `serve` does, and prints why.
//!
//! The core decides, and its record is printed step by step. The output never contains the token, its signature or the
//! client's cookies.

mod asks;
mod past;
mod request;
mod show;
mod token;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use self::show::{Explanation, Keys};
use super::at_door::AtDoor;
use super::issuers::Issuers;
use super::{Failure, output};
use crate::clock::{self, Clock};
use crate::config::cases::{CaseRequest, CaseToken};
use crate::config::{Config, Log, LogLevel};
use crate::service::{Beside, KeysStep};
use crate::telemetry;
use crate::validation::UnixTime;
use crate::verdict::Verdict;

pub(super) use self::show::redacted;

/// The exit codes besides success.
const DENIED: u8 = 2;
const UNAVAILABLE: u8 = 3;

/// Decide one request as `serve` does, and explain the decision
///
/// The request is judged as at the first door of the configuration, or at that of --door. Of the keys, only those of the
/// token's provider are fetched, once the token has passed the checks that need none; a snapshot is used if the issuer
/// is down. Without a token it says what the request needs. A refusal ends with what to do about it. Exits with 0 if the
/// request is allowed, 2 if it is denied, 3 if the keys are not available, and 1 if there is no decision. With
/// --decision, a refusal of the running service is explained instead. No output contains a token.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  portcullis explain --config portcullis.yaml --path /orders --token token.txt
  echo \"$TOKEN\" | portcullis explain --config portcullis.yaml --path /orders --token -
  portcullis explain --config portcullis.yaml --path /orders --claims claims.json --door nginx
  portcullis explain --config portcullis.yaml --request request.json --format json
  portcullis explain --decision 3f8a9c0d1e2b4a5f-1c --admin 127.0.0.1:9193
where request.json is {\"method\": \"GET\", \"host\": \"api.example.com\", \"path\": \"/orders\",
                       \"headers\": {\"authorization\": \"Bearer ...\"}}")]
pub struct ExplainArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CONFIG", required_unless_present = "decision")]
    config: Option<PathBuf>,
    #[command(flatten)]
    past: past::PastArgs,
    #[command(flatten)]
    request: request::RequestArgs,
    #[command(flatten)]
    token: token::TokenArgs,
    /// Decide at this time instead of now: RFC 3339 or Unix seconds
    #[arg(long, value_name = "TIME", value_parser = clock::parse_time)]
    now: Option<UnixTime>,
    /// The output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// The output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Text for people.
    Text,
    /// One JSON object.
    Json,
}

/// Explains the decision. The exit code is the verdict.
pub async fn run(args: ExplainArgs) -> ExitCode {
    match explain(&args).await {
        Ok((text, code)) => output::print_result(&text, code),
        Err(failure) => {
            output::print_error(&failure.to_string());
            ExitCode::FAILURE
        }
    }
}

async fn explain(args: &ExplainArgs) -> Result<(String, ExitCode), Failure> {
    if let Some((id, admin)) = args.past.wanted() {
        return past::explain(id, admin, args.format).await;
    }
    // Required without a refusal of the past.
    let file = args.config.as_deref().ok_or("--config FILE is missing")?;
    let config = Config::load(file)?;
    // A failure of a fetch is one of the steps.
    telemetry::start_log(&Log { level: LogLevel::Error, ..config.log })?;
    let request = args.request.read()?;
    match args.token.claims(&config)? {
        Some(claims) => explain_claims(args, &config, request, &claims),
        None => explain_request(args, &config, request).await,
    }
}

/// Decides with the keys that `serve` would use.
async fn explain_request(
    args: &ExplainArgs,
    config: &Config,
    mut request: CaseRequest,
) -> Result<(String, ExitCode), Failure> {
    args.token.add_token(&mut request, config)?;
    let at_door = AtDoor::new(request, args.request.proxy(), config)?;
    let clock = args.now.map_or(Clock::System, Clock::Fixed);
    // The request arrives when the keys have been opened: the wait for the first ones is not part of its time.
    let beside = Beside::open(config, clock, &at_door.access_request()).await?;
    let access_request = at_door.access_request();
    let decision = beside.authorizer().explain(&access_request).await;
    let keys = beside.keys(&decision);
    let keys = keys.map(|KeysStep { outcome, detail }| Keys { outcome, detail, are_own: false });
    let explanation = Explanation::new(&decision, &access_request, at_door.door(), keys, config);
    Ok(printed(&explanation, args.format))
}

/// Decides claims as those of a token that their provider has signed.
fn explain_claims(
    args: &ExplainArgs,
    config: &Config,
    mut request: CaseRequest,
    claims: &CaseToken,
) -> Result<(String, ExitCode), Failure> {
    let now = args.now.unwrap_or_else(|| Clock::System.now());
    let issuers = Issuers::new(config)?;
    let added = issuers.add_token(&mut request, claims, now)?;
    let at_door = AtDoor::new(request, args.request.proxy(), config)?;
    let access_request = at_door.access_request();
    let decision = issuers.evaluate(&access_request, now);
    let added = if added.is_empty() { "nothing".to_owned() } else { added.join(", ") };
    let detail = format!("the claims are taken as signed by {}; added: {added}", claims.provider);
    let keys = Some(Keys { outcome: "none", detail, are_own: true });
    let explanation = Explanation::new(&decision, &access_request, at_door.door(), keys, config);
    Ok(printed(&explanation, args.format))
}

/// The text in this format, with the exit code of the verdict.
fn printed(explanation: &Explanation<'_>, format: Format) -> (String, ExitCode) {
    let code = match explanation.verdict() {
        Verdict::Allow(_) => ExitCode::SUCCESS,
        Verdict::Deny(_) => ExitCode::from(DENIED),
        Verdict::Unavailable(_) => ExitCode::from(UNAVAILABLE),
    };
    let text = match format {
        Format::Text => explanation.to_text(),
        Format::Json => format!("{}\n", explanation.to_json()),
    };
    (text, code)
}
