//! The request to explain, from arguments or from a file.

use std::fs::File;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::Failure;
use crate::config::DoorKind;
use crate::config::cases::CaseRequest;

/// The largest file that is read.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// The request, as arguments or as a file.
#[derive(Args, Debug)]
pub(super) struct RequestArgs {
    /// The method
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    method: String,
    /// The path with its query, as the client sends it
    #[arg(long, value_name = "PATH", default_value = "/")]
    path: String,
    /// The host
    #[arg(long, value_name = "HOST", default_value = "localhost")]
    host: String,
    /// A header, `name: value`; can be repeated
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// The whole request as JSON: {"method", "host", "path", "headers": {name: value}}
    #[arg(long, value_name = "FILE", conflicts_with_all = ["method", "path", "host", "headers"])]
    request: Option<PathBuf>,
    /// The rule that the proxy's route names, as `portcullis_rule` does in Envoy
    #[arg(long, value_name = "NAME")]
    rule: Option<String>,
    /// The client's address
    #[arg(long, value_name = "IP")]
    source_address: Option<String>,
    /// The identity in the client's certificate
    #[arg(long, value_name = "NAME")]
    source_principal: Option<String>,
    /// Judge the request as this door would, by default the first one of the configuration. `envoy` is gRPC
    #[arg(long, value_name = "DOOR", value_parser = door())]
    door: Option<DoorKind>,
    /// The address of the proxy at a door that trusts some alone, by default a trusted one
    #[arg(long, value_name = "IP", value_parser = address)]
    proxy: Option<IpAddr>,
}

/// Parses the name of a door. The error does not repeat the text.
fn door() -> impl TypedValueParser<Value = DoorKind> {
    let find = |name: String| DoorKind::named().find(|(known, _)| *known == name).map(|(_, door)| door);
    let names = DoorKind::named().map(|(name, _)| name);
    PossibleValuesParser::new(names).try_map(move |name| find(name).ok_or("unknown door"))
}

/// Parses an address. The error does not repeat the text.
fn address(text: &str) -> Result<IpAddr, &'static str> {
    text.parse().map_err(|_| "expected an IP address")
}

/// Parses a header. The error does not repeat the text, because without a colon it may be the token.
fn header(text: &str) -> Result<(String, String), &'static str> {
    const EXPECTED: &str = "expected NAME: VALUE, such as 'Authorization: Bearer ...'";
    let (name, value) = text.split_once(':').ok_or(EXPECTED)?;
    // RFC 9110 §5.1 allows no whitespace before the colon.
    let is_name = !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
    if !is_name {
        return Err(EXPECTED);
    }
    Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
}

/// The format of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestFile {
    method: String,
    host: String,
    path: String,
    #[serde(default)]
    headers: Map<String, Value>,
}

impl RequestArgs {
    /// The address of the proxy, if it is given.
    pub(super) fn proxy(&self) -> Option<IpAddr> {
        self.proxy
    }

    /// # Errors
    /// The file cannot be read or is not a request.
    pub(super) fn read(&self) -> Result<CaseRequest, Failure> {
        let (method, host, path, headers) = match &self.request {
            None => (self.method.clone(), self.host.clone(), self.path.clone(), self.headers.clone()),
            Some(file) => {
                // A path that does not exist is not repeated, because it may be a token.
                let opened = File::open(file).map_err(|error| format!("the file of --request: {error}"))?;
                let RequestFile { method, host, path, headers } =
                    read_file(opened).map_err(|error| format!("{}: {error}", file.display()))?;
                let headers = flatten(headers).map_err(|error| format!("{}: {error}", file.display()))?;
                (method, host, path, headers)
            }
        };
        Ok(CaseRequest {
            method,
            host,
            path,
            headers,
            rule: self.rule.clone(),
            source_address: self.source_address.clone(),
            source_principal: self.source_principal.clone(),
            door: self.door,
        })
    }
}

/// Parses the file. Errors contain only the position, because serde's text would quote the file and a token in it.
fn read_file(file: File) -> Result<RequestFile, String> {
    let mut text = String::new();
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| {
        format!(
            "line {}, column {}: expected {{\"method\", \"host\", \"path\", \"headers\": {{name: value}}}}",
            error.line(),
            error.column()
        )
    })
}

/// Flattens the headers; a repeated header is a list.
fn flatten(headers: Map<String, Value>) -> Result<Vec<(String, String)>, String> {
    let mut flat = Vec::new();
    for (index, (name, value)) in headers.into_iter().enumerate() {
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            let Value::String(value) = value else {
                return Err(format!("header {} is neither a string nor a list of strings", index + 1));
            };
            flat.push((name.to_ascii_lowercase(), value));
        }
    }
    Ok(flat)
}
