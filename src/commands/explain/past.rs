//! A refusal of the running service, asked for at its admin address by the decision's id.

use std::process::ExitCode;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::uri::{Authority, Uri};
use axum::http::{Request, StatusCode};
use clap::Args;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::timeout;

use super::super::Failure;
use super::{DENIED, Format, UNAVAILABLE};
use crate::telemetry::on_one_line;

/// The timeout of the request.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The largest response that is read: a refusal has at most about 16 KiB, and escapes in JSON.
const MAX_BYTES: usize = 256 * 1024;

/// The members that the text shows below its first line, in this order; the others are steps or part of that line.
const SHOWN: [&str; 11] =
    ["time", "door", "method", "host", "path", "client", "provider", "realm", "rule", "kid", "took_us"];

/// A refusal of the past.
#[derive(Args, Debug)]
pub(super) struct PastArgs {
    /// Explain this refusal of a running service: the decision_id in its log or in the proxy's metadata
    #[arg(long, value_name = "ID", value_parser = decision_id, requires = "admin",
        conflicts_with_all = ["method", "path", "host", "headers", "request", "rule", "source_address",
            "source_principal", "now", "door", "proxy", "token", "claims", "provider"])]
    decision: Option<String>,
    /// The admin address of the service, with --decision
    #[arg(long, value_name = "HOST:PORT", value_parser = admin, requires = "decision")]
    admin: Option<Authority>,
}

/// Parses an id. The error does not repeat the text, because it may be a token.
fn decision_id(text: &str) -> Result<String, &'static str> {
    let is_id = text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if is_id && !text.is_empty() {
        Ok(text.to_owned())
    } else {
        Err("expected the decision_id of a log line, such as 3f8a9c0d1e2b4a5f-1c")
    }
}

/// Parses the address. The error does not repeat the text, because a URL may contain a password.
fn admin(text: &str) -> Result<Authority, &'static str> {
    let authority: Option<Authority> = text.parse().ok();
    let is_address = |authority: &Authority| authority.port_u16().is_some() && !text.contains('@');
    authority.filter(is_address).ok_or("expected HOST:PORT, such as 127.0.0.1:9193")
}

impl PastArgs {
    /// The id and where to ask for it, if a refusal of the past is wanted.
    pub(super) fn wanted(&self) -> Option<(&str, &Authority)> {
        self.decision.as_deref().zip(self.admin.as_ref())
    }
}

/// Asks for the refusal and prints it in this format. The exit code is its verdict.
///
/// # Errors
/// There is no answer, or the service has no such refusal.
pub(super) async fn explain(
    id: &str,
    admin: &Authority,
    format: Format,
) -> Result<(String, ExitCode), Failure> {
    let answered = timeout(TIMEOUT, ask(id, admin)).await;
    let (status, body) =
        answered.map_err(|_| format!("{admin}: no response in {} s", TIMEOUT.as_secs()))??;
    let refusal: Option<Value> = serde_json::from_slice(&body).ok().filter(Value::is_object);
    let Some(refusal) = refusal.filter(|_| status == StatusCode::OK || status == StatusCode::NOT_FOUND)
    else {
        let hint = "is it the admin address, and is its Host in listen.admin.hosts?";
        return Err(format!("{admin}: unexpected response with status {}: {hint}", status.as_u16()).into());
    };
    if status == StatusCode::NOT_FOUND {
        return Err(format!("{admin}: {}", text(&refusal, "error_description")).into());
    }
    let code = match text(&refusal, "verdict").as_str() {
        "unavailable" => ExitCode::from(UNAVAILABLE),
        _ => ExitCode::from(DENIED),
    };
    let printed = match format {
        Format::Text => to_text(&refusal),
        Format::Json => format!("{refusal}\n"),
    };
    Ok((printed, code))
}

async fn ask(id: &str, admin: &Authority) -> Result<(StatusCode, Vec<u8>), Failure> {
    let path = format!("/decisions/{id}");
    let uri = Uri::builder().scheme("http").authority(admin.clone()).path_and_query(path).build()?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let response = client.request(Request::get(uri).body(Body::empty())?).await;
    let response = response.map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        format!("{admin}: {error}{cause}")
    })?;
    let status = response.status();
    let body = to_bytes(Body::new(response.into_body()), MAX_BYTES).await;
    Ok((status, body.map_err(|error| format!("{admin}: {error}"))?.to_vec()))
}

fn to_text(refusal: &Value) -> String {
    let mut shown = format!("{}: {}\n\n", text(refusal, "verdict"), text(refusal, "reason"));
    for name in SHOWN {
        let value = text(refusal, name);
        if !value.is_empty() {
            shown.push_str(&format!("{name:<8}  {value}\n"));
        }
    }
    shown.push('\n');
    let steps = refusal.get("steps").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let lines: Vec<[String; 3]> =
        steps.iter().map(|step| ["step", "outcome", "detail"].map(|name| text(step, name))).collect();
    let widest = lines.iter().map(|[_, outcome, _]| outcome.chars().count()).max().unwrap_or_default();
    for [name, outcome, detail] in lines {
        shown.push_str(format!("{name:<8}  {outcome:<widest$}  {detail}").trim_end());
        shown.push('\n');
    }
    let advice = text(refusal, "advice");
    if !advice.is_empty() {
        shown.push_str(&format!("\nadvice: {advice}\n"));
    }
    shown
}

/// A member as text without control characters; empty if it is absent or null.
fn text(object: &Value, name: &str) -> String {
    match object.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
        Some(other) => on_one_line(&other.to_string()),
    }
}
