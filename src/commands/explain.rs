//! `portcullis explain`: decides one request as `serve` does, and prints why.
//!
//! The authorizer decides, and its record is printed step by step. The output never contains the token, its signature
//! or the client's cookies.

mod past;
mod request;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use http::header::COOKIE;
use http::{HeaderName, HeaderValue};
use serde_json::{Value, json};

use self::request::OwnedRequest;
use super::{Failure, output};
use crate::authorizer::{Authorizer, KeyedProvider};
use crate::clock::{self, Clock};
use crate::config::{Config, Log, LogLevel};
use crate::decision::{Decision, Step};
use crate::identity::RemovedHeader;
use crate::reason::Outcome;
use crate::service::Service;
use crate::telemetry;
use crate::telemetry::Trigger;
use crate::validation::UnixTime;
use crate::validation::provider::Provider;
use crate::verdict::{DenialResponse, Verdict};

/// The exit codes besides success.
const DENIED: u8 = 2;
const UNAVAILABLE: u8 = 3;

/// Decide one request as `serve` does, and explain the decision
///
/// The request is treated as one that Envoy sends over gRPC. Keys are fetched as at the start of `serve`; a snapshot
/// is used if the issuer is down. Exits with 0 if the request is allowed, 2 if it is denied, 3 if the keys are not
/// available, and 1 if there is no decision. With --decision, a refusal of the running service is explained instead.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  portcullis explain --config portcullis.yaml --path /orders --header \"Authorization: Bearer $TOKEN\"
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
    // Warnings of fetches are logged; the decision is printed.
    telemetry::start_log(&Log { level: LogLevel::Warn, ..config.log })?;
    let request = OwnedRequest::read(&args.request)?;
    let clock = args.now.map_or(Clock::System, Clock::Fixed);
    let service = Service::start_beside(&config, clock)?;
    let authorizer = service.authorizer();
    for keyed in authorizer.providers() {
        keyed.keys.first_fetch_ended().await;
    }
    let access_request = request.access_request();
    let decision = authorizer.explain(&access_request).await;
    let code = match &decision.verdict {
        Verdict::Allow(_) => ExitCode::SUCCESS,
        Verdict::Deny(_) => ExitCode::from(DENIED),
        Verdict::Unavailable(_) => ExitCode::from(UNAVAILABLE),
    };
    let explanation = Explanation::new(&decision, &authorizer, &request);
    Ok((
        match args.format {
            Format::Text => explanation.to_text(),
            Format::Json => format!("{}\n", explanation.to_json()),
        },
        code,
    ))
}

/// The printed explanation.
struct Explanation<'a> {
    decision: &'a Decision<'a>,
    status: u16,
    set: Vec<(HeaderName, String)>,
    remove: &'a [RemovedHeader],
    remove_query: &'a [String],
}

impl<'a> Explanation<'a> {
    fn new(decision: &'a Decision<'a>, authorizer: &Authorizer, request: &OwnedRequest) -> Self {
        let request = request.access_request();
        let allowed = match decision.allowed(authorizer.responses(), &request.headers) {
            Ok(allowed) => allowed,
            Err(denial) => {
                let DenialResponse { status, headers, .. } = *denial;
                let set = headers.into_iter().map(|(name, value)| (name, text(&value))).collect();
                return Self { decision, status, set, remove: &[], remove_query: &[] };
            }
        };
        let changes = allowed.changes();
        let providers = authorizer.providers();
        let recorded = decision.record.provider();
        let is_recorded = |keyed: &&Arc<KeyedProvider>| {
            Some(&keyed.provider.name) == recorded.map(|recorded| &recorded.name)
        };
        let provider = providers.iter().find(is_recorded).map(|keyed| &*keyed.provider);
        let set = changes.set().map(|(name, value)| (name.clone(), redacted(name, value, provider)));
        let (remove, remove_query) = (&*changes.remove, &*changes.remove_query);
        Self { decision, status: 200, set: set.collect(), remove, remove_query }
    }

    fn reason(&self) -> Outcome {
        self.decision.verdict.reason()
    }

    /// Why the request waited for newer keys, or `none`.
    fn refresh(&self) -> &'static str {
        self.decision.record.refreshed_for().map_or("none", |cause| Trigger::Forced(cause).as_str())
    }

    fn to_json(&self) -> Value {
        let (decision, record) = (self.decision, &self.decision.record);
        let key = record.verified_by().map(
            |(key, algorithm)| json!({"kid": key.kid(), "alg": algorithm.name(), "thumbprint": key.thumbprint()}),
        );
        let step = |step: Step<'_>| json!({"step": step.name.as_str(), "outcome": step.outcome, "detail": step.detail()});
        let steps: Vec<Value> = record.steps().map(step).collect();
        let set: serde_json::Map<String, Value> =
            self.set.iter().map(|(name, value)| (name.to_string(), value.as_str().into())).collect();
        let removed: Vec<&str> = self.remove.iter().map(RemovedHeader::as_str).collect();
        json!({
            "verdict": decision.verdict.as_str(),
            "reason": self.reason().as_str(),
            "status": self.status,
            "provider": record.provider().map(|provider| &provider.name),
            "rule": record.rule().map(|rule| &rule.name),
            "key": key,
            "refresh": self.refresh(),
            "headers": {"set": set, "remove": removed, "remove_query": self.remove_query},
            "steps": steps,
        })
    }

    fn to_text(&self) -> String {
        let (decision, record) = (self.decision, &self.decision.record);
        let mut text =
            format!("{}: {} ({})\n\n", decision.verdict.as_str(), self.reason().as_str(), self.status);
        let steps: Vec<Step<'_>> = record.steps().collect();
        let widest = steps.iter().map(|step| step.outcome.chars().count()).max().unwrap_or_default();
        for step in &steps {
            let (name, outcome, detail) = (step.name.as_str(), &step.outcome, step.detail());
            text.push_str(format!("{name:<8}  {outcome:<widest$}  {detail}").trim_end());
            text.push('\n');
        }
        let title = match decision.verdict {
            Verdict::Allow(_) => "the upstream gets",
            Verdict::Deny(_) | Verdict::Unavailable(_) => "the client gets",
        };
        text.push_str(&format!("\n{title}\n"));
        for (name, value) in &self.set {
            text.push_str(&format!("  {name}: {value}\n"));
        }
        for header in self.remove {
            // Escaped, because a client may have sent any octets.
            text.push_str(&format!("  no {}\n", header.as_str().escape_debug()));
        }
        for name in self.remove_query {
            text.push_str(&format!("  no query parameter {name}\n"));
        }
        text
    }
}

/// A header's value with the token's payload and the client's cookies replaced.
pub(super) fn redacted(name: &HeaderName, value: &HeaderValue, provider: Option<&Provider>) -> String {
    if provider.is_some_and(|provider| provider.payload_header.as_ref() == Some(name)) {
        format!("(the token's payload, {} bytes)", value.len())
    } else if name == COOKIE {
        "(the cookies without the token)".to_owned()
    } else {
        text(value)
    }
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}
