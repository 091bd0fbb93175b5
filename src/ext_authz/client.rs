//! A client of the gRPC door, or of any other ext_authz service, that behaves as Envoy does. `demo` and `drill` use it.
//!
//! It interprets a response as Envoy does, so that an incomplete one counts as the allow that it would be. The service
//! itself never uses it.

use std::error::Error;
use std::time::Duration;
use std::{fmt, io, iter};

use prost_types::value::Kind;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use crate::proto::envoy::config::core::v3::HeaderValueOption;
use crate::proto::envoy::service::auth::v3::attribute_context::http_request::HeadersEntry;
use crate::proto::envoy::service::auth::v3::attribute_context::{self, HttpRequest};
use crate::proto::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use crate::proto::envoy::service::auth::v3::check_response::HttpResponse;
use crate::proto::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};

/// The connect timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to an ext_authz service. Clones share it.
#[derive(Clone, Debug)]
pub struct CheckClient {
    inner: AuthorizationClient<Channel>,
}

/// The service's response to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether Envoy allows the request.
    pub allowed: bool,
    /// The status that the client gets: 200 if allowed, and Envoy's default, 403, if a denial names none.
    pub http_status: u16,
    /// The `reason` in the metadata; empty if there is none.
    pub reason: String,
    /// Headers set for the upstream, or in the denial.
    pub headers_set: Vec<(String, String)>,
    /// Headers removed from the request to the upstream.
    pub headers_removed: Vec<String>,
    /// The body of the denial.
    pub body: String,
}

/// The call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoAnswer {
    message: String,
    os_error: Option<i32>,
}

impl NoAnswer {
    fn from_error(error: &(dyn Error + 'static)) -> Self {
        Self { message: error.to_string(), os_error: os_error(error) }
    }

    /// The number of the underlying operating system error, if any.
    pub fn os_error(&self) -> Option<i32> {
        self.os_error
    }
}

/// The number of the first operating system error in this chain.
pub fn os_error(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut chain = iter::successors(Some(error), |&error| error.source());
    chain.find_map(|error| error.downcast_ref::<io::Error>()?.raw_os_error())
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for NoAnswer {}

impl CheckClient {
    /// Connects to `host:port` without TLS.
    ///
    /// # Errors
    /// The address is invalid, or the connection fails.
    pub async fn connect(address: impl fmt::Display) -> Result<Self, NoAnswer> {
        let endpoint = Endpoint::try_from(format!("http://{address}"));
        let endpoint = endpoint.map_err(|error| NoAnswer::from_error(&error))?;
        let endpoint = endpoint.tcp_nodelay(true).connect_timeout(CONNECT_TIMEOUT);
        let channel = endpoint.connect().await.map_err(|error| NoAnswer::from_error(&error))?;
        Ok(Self { inner: AuthorizationClient::new(channel) })
    }

    /// Checks `GET /orders` with these headers, whose names are in lower case. The timeout applies to the call and is
    /// sent to the service.
    ///
    /// # Errors
    /// The service did not respond in time.
    pub async fn check(&self, headers: &[(&str, &str)], timeout: Duration) -> Result<Answer, NoAnswer> {
        let mut request = Request::new(check_request(headers));
        request.set_timeout(timeout);
        let response = self.inner.clone().check(request).await;
        match response {
            Ok(response) => Ok(answer(response.into_inner())),
            Err(status) => Err(NoAnswer::from_error(&status)),
        }
    }
}

fn check_request(headers: &[(&str, &str)]) -> CheckRequest {
    let entry = |(name, value): &(&str, &str)| HeadersEntry {
        key: name.as_bytes().to_vec().into(),
        value: value.as_bytes().to_vec().into(),
    };
    let http = HttpRequest {
        method: "GET".into(),
        host: "api.example.com".into(),
        path: "/orders".into(),
        scheme: "https".into(),
        protocol: "HTTP/1.1".into(),
        headers: headers.iter().map(entry).collect(),
        ..HttpRequest::default()
    };
    let request = attribute_context::Request { http: Some(http) };
    CheckRequest {
        attributes: Some(AttributeContext { request: Some(request), ..AttributeContext::default() }),
    }
}

fn answer(response: CheckResponse) -> Answer {
    // Envoy treats an unset status as OK.
    let allowed = response.status.as_ref().is_none_or(|status| status.code == tonic::Code::Ok as i32);
    let reason = reason(&response).unwrap_or_default();
    let (status, headers, headers_removed, body) = match response.http_response {
        Some(HttpResponse::OkResponse(ok)) => (None, ok.headers, ok.headers_to_remove, String::new()),
        Some(HttpResponse::DeniedResponse(denied)) => {
            let status = denied.status.and_then(|status| u16::try_from(status.code).ok());
            (status, denied.headers, Vec::new(), denied.body)
        }
        None => (None, Vec::new(), Vec::new(), String::new()),
    };
    let http_status = if allowed { 200 } else { status.unwrap_or(403) };
    Answer { allowed, http_status, reason, headers_set: pairs(headers), headers_removed, body }
}

fn reason(response: &CheckResponse) -> Option<String> {
    match &response.dynamic_metadata.as_ref()?.fields.get("reason")?.kind {
        Some(Kind::StringValue(reason)) => Some(reason.clone()),
        _ => None,
    }
}

fn pairs(options: Vec<HeaderValueOption>) -> Vec<(String, String)> {
    options.into_iter().filter_map(|option| option.header).map(|header| (header.key, header.value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::envoy::service::auth::v3::DeniedHttpResponse;
    use crate::proto::google::rpc::Status;

    #[test]
    fn a_response_without_a_status_is_an_allow_as_for_envoy() {
        let answer = answer(CheckResponse::default());
        assert!(answer.allowed);
        assert_eq!((answer.http_status, answer.reason.as_str()), (200, ""));
    }

    #[test]
    fn a_denial_without_a_status_is_envoys_403() {
        let status = Some(Status { code: tonic::Code::PermissionDenied as i32, ..Status::default() });
        let denied = Some(HttpResponse::DeniedResponse(DeniedHttpResponse::default()));
        let answer = answer(CheckResponse { status, http_response: denied, dynamic_metadata: None });
        assert!(!answer.allowed);
        assert_eq!(answer.http_status, 403);
    }
}
