//! The gRPC door: `envoy.service.auth.v3.Authorization`, `grpc.health.v1` and reflection.
//!
//! It converts a CheckRequest into an [`AccessRequest`] without copying its headers, and a decision into a
//! CheckResponse. It decides nothing.

mod buffered;
mod check_request;
mod check_response;
pub mod client;
mod message;
mod protobuf;
mod response;
mod until_stopped;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::CONTENT_TYPE;
use http_body_util::Full;
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service as _;

use crate::access_request::{AccessRequest, Headers};
use crate::authorizer::{Authorizer, Decided};
use crate::clock;
use crate::config::cases::CaseRequest;
use crate::misdirected::{self, CHECK};
use crate::proto::FILE_DESCRIPTOR_SET;
use crate::server::{self, Door, LogSampler, Misdirected, RequestBody, Stop};
use crate::service::Service;

use self::buffered::BufferedRequests;
use self::check_request::CheckRequest;
use self::message::{IncompleteMessages, ReadError};
use self::response::ResponseBody;
use self::until_stopped::UntilStopped;

/// The `door` label.
const DOOR: &str = "ext_authz";

/// The health methods, whose request is one message.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";

/// Methods whose response streams are endless.
const ENDLESS_METHODS: [&str; 3] = [
    HEALTH_WATCH,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// The maximum number of open endless streams on all listeners.
const MAX_ENDLESS_STREAMS: usize = 1024;

/// The maximum size of a health or reflection request, which contains a name.
const MAX_NAME_MESSAGE: usize = 4 * 1024;

/// The gRPC services, shared by all gRPC listeners.
#[derive(Clone)]
pub(crate) struct GrpcServices {
    service: Arc<Service>,
    checks: Checks,
    others: Routes,
    incomplete: Arc<IncompleteMessages>,
    endless_permits: Arc<Semaphore>,
    misdirected_log: Arc<LogSampler>,
}

impl GrpcServices {
    /// The services, and the task that updates their health.
    ///
    /// # Errors
    /// Reflection rejects our descriptors; a test covers that.
    pub(crate) fn new(
        service: Arc<Service>,
        message_bytes: usize,
    ) -> Result<(Self, Health), tonic_reflection::server::Error> {
        let (reporter, health_service) = tonic_health::server::health_reporter();
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let others = Routes::new(health_service.max_decoding_message_size(MAX_NAME_MESSAGE))
            .add_service(reflection().build_v1()?.max_decoding_message_size(MAX_NAME_MESSAGE))
            .add_service(reflection().build_v1alpha()?.max_decoding_message_size(MAX_NAME_MESSAGE))
            .prepare();
        let checks = Checks { service: Arc::clone(&service), headerless_logged: Arc::default() };
        let services = Self {
            service: Arc::clone(&service),
            checks,
            others,
            incomplete: Arc::new(IncompleteMessages::new(message_bytes)),
            endless_permits: Arc::new(Semaphore::new(MAX_ENDLESS_STREAMS)),
            misdirected_log: Arc::default(),
        };
        Ok((services, Health { service, reporter }))
    }

    /// The door of one listener, whose endless streams end at this stop.
    pub(crate) fn door(&self, stop: Stop) -> GrpcDoor {
        GrpcDoor { services: self.clone(), stop }
    }

    /// Responds to a Check. Its message is read and decoded first; one that cannot be read gets a decision too. The
    /// headers of the gRPC call are dropped before.
    async fn check(
        &self,
        request: http::Request<RequestBody>,
        peer: server::Peer,
    ) -> http::Response<ResponseBody> {
        let received_at = clock::monotonic();
        let max = self.service.authorizer().limits().message_bytes;
        let (parts, body) = request.into_parts();
        let timeout = parts.headers.get("grpc-timeout").and_then(|value| grpc_timeout(value.as_bytes()));
        drop(parts);
        let message = message::read(body, max, &self.incomplete, peer).await;
        // A client that has disconnected reads no response, so any error will do.
        let message = message.map_err(|error| error.unwrap_or(ReadError::Truncated)).and_then(without_prefix);
        response::unary(self.checks.check(ReceivedCheck { received_at, timeout, message }).await)
    }

    /// Passes any other call to tonic. A health request is read first, and the number of endless streams is limited.
    async fn other(
        &self,
        request: http::Request<RequestBody>,
        peer: server::Peer,
        stop: &Stop,
    ) -> http::Response<Body> {
        if let Some(misdirected) = misdirected(&request) {
            misdirected.log(DOOR, &self.service, peer.address, &self.misdirected_log);
        }
        let path = request.uri().path();
        let endless =
            ENDLESS_METHODS.contains(&path).then(|| Arc::clone(&self.endless_permits).try_acquire_owned());
        let permit = match endless {
            None => None,
            Some(Ok(permit)) => Some(permit),
            Some(Err(_)) => {
                return Status::resource_exhausted("too many endless streams are open").into_http();
            }
        };
        let health_method = [HEALTH_CHECK, HEALTH_WATCH].into_iter().find(|method| *method == path);
        let request = match health_method {
            None if permit.is_some() => request.map(|body| Body::new(BufferedRequests::new(body))),
            None => request.map(Body::new),
            Some(path) => {
                match message::read(request.into_body(), MAX_NAME_MESSAGE, &self.incomplete, peer).await {
                    Ok(message) => unary_request(path, message),
                    Err(_) => {
                        return Status::invalid_argument("the request message is incomplete").into_http();
                    }
                }
            }
        };
        let mut others = self.others.clone();
        let response = others.call(request).await;
        let response = response.unwrap_or_else(|never| match never {});
        match permit {
            Some(permit) => response.map(|body| Body::new(UntilStopped::new(body, stop.clone(), permit))),
            None => response,
        }
    }
}

/// What is wrong with a request that is no Check; `None` for the other methods that this door has.
fn misdirected<B>(request: &http::Request<B>) -> Option<Misdirected> {
    const SERVICES: [&str; 2] = ["/grpc.health.v1.", "/grpc.reflection."];
    if misdirected::is_check(request) {
        return Some(Misdirected {
            found: "a Check of version 2 of Envoy's API",
            hint: "set transport_api_version: V3 in Envoy's filter",
        });
    }
    if !misdirected::is_grpc(request) {
        return Some(Misdirected::HTTP_FOR_GRPC);
    }
    let is_known = SERVICES.iter().any(|service| request.uri().path().starts_with(service));
    (!is_known).then_some(Misdirected {
        found: "a gRPC call of a service that is not Envoy's authorization service",
        hint: "listen.ext_authz serves no other service: check the cluster of the caller's requests",
    })
}

/// A unary call with a message that includes its prefix.
fn unary_request(path: &'static str, message: Bytes) -> http::Request<Body> {
    let mut request = http::Request::new(Body::new(Full::new(message)));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static(path);
    *request.version_mut() = http::Version::HTTP_2;
    request.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    request
}

/// The message after its prefix.
fn without_prefix(mut message: Bytes) -> Result<Bytes, ReadError> {
    const UNCOMPRESSED: u8 = 0;
    if message.first() != Some(&UNCOMPRESSED) {
        return Err(ReadError::NotACheck);
    }
    message.advance(message.len().min(EMPTY.len()));
    Ok(message)
}

/// The door of one gRPC listener.
pub(crate) struct GrpcDoor {
    services: GrpcServices,
    stop: Stop,
}

/// An empty message with its prefix.
const EMPTY: Bytes = Bytes::from_static(&[0; 5]);

/// A Check: when it was received, its caller's timeout, and its message.
struct ReceivedCheck {
    received_at: clock::Instant,
    timeout: Option<Duration>,
    message: Result<Bytes, ReadError>,
}

impl Door for GrpcDoor {
    type Body = ResponseBody;

    fn name(&self) -> &'static str {
        DOOR
    }

    fn speaks_http1(&self) -> bool {
        false
    }

    fn service(&self) -> &Service {
        &self.services.service
    }

    async fn answer(
        &self,
        request: http::Request<RequestBody>,
        peer: server::Peer,
    ) -> http::Response<ResponseBody> {
        if request.uri().path() == CHECK {
            return self.services.check(request, peer).await;
        }
        self.services.other(request, peer, &self.stop).await.map(ResponseBody::Tonic)
    }

    fn blocks_drain(&self, request: &http::Request<RequestBody>) -> bool {
        !ENDLESS_METHODS.contains(&request.uri().path())
    }
}

/// The grpc.health.v1 status of the server and of its service.
#[derive(Clone)]
pub(crate) struct Health {
    service: Arc<Service>,
    reporter: tonic_health::server::HealthReporter,
}

impl Health {
    /// Updates the status. Never returns.
    pub(crate) async fn follow(self) {
        loop {
            let status = if self.service.is_serving() {
                tonic_health::ServingStatus::Serving
            } else {
                tonic_health::ServingStatus::NotServing
            };
            self.reporter.set_service_status("", status).await;
            self.reporter.set_service_status("envoy.service.auth.v3.Authorization", status).await;
            self.service.serving_may_have_changed().notified().await;
        }
    }
}

/// Decides CheckRequests.
#[derive(Clone)]
struct Checks {
    service: Arc<Service>,
    /// Whether a request without headers was logged.
    headerless_logged: Arc<AtomicBool>,
}

impl Checks {
    /// Warns once about a request without headers. No client can cause one: Envoy is configured to send none.
    fn warn_headerless(&self) {
        if !self.headerless_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                hint = "remove allowed_headers from Envoy's ext_authz filter, so that it sends all headers",
                "request without headers"
            );
        }
    }
}

impl Checks {
    /// The response to a Check, with its prefix. A Check that has to wait holds its own fields and not the buffer in
    /// which it was received.
    async fn check(&self, mut check: ReceivedCheck) -> Bytes {
        if let Some(response) = self.check_now(&check) {
            return response;
        }
        check.message = check.message.and_then(|message| check_request::detached(&message));
        let (authorizer, access_request) = (self.service.authorizer(), check.access_request());
        let decided = authorizer.decide(DOOR, &access_request).await;
        response_to(&access_request, &authorizer, &decided)
    }

    /// The response to a Check; `None` if it has to wait for keys.
    fn check_now(&self, check: &ReceivedCheck) -> Option<Bytes> {
        let (authorizer, access_request) = (self.service.authorizer(), check.access_request());
        if access_request.headers.is_empty() && access_request.description_error.is_none() {
            self.warn_headerless();
        }
        let decided = authorizer.try_decide(DOOR, &access_request).ok()?;
        Some(response_to(&access_request, &authorizer, &decided))
    }
}

impl ReceivedCheck {
    fn access_request(&self) -> AccessRequest<'_> {
        let read =
            self.message.as_ref().map_err(|error| *error).and_then(|message| check_request::read(message));
        let description_error = read.as_ref().err().copied().map(ReadError::as_str);
        AccessRequest {
            timeout: self.timeout,
            description_error,
            ..access_request(read.unwrap_or_default(), self.received_at)
        }
    }
}

fn response_to(request: &AccessRequest<'_>, authorizer: &Authorizer, decided: &Decided<'_>) -> Bytes {
    match decided.decision.allowed(authorizer.responses(), &request.headers) {
        Ok(allowed) => check_response::allow(allowed.changes(), decided),
        Err(denial) => check_response::deny(&denial, decided),
    }
}

fn access_request(check: CheckRequest<'_>, received_at: clock::Instant) -> AccessRequest<'_> {
    let (source_address, source_principal) = (text(check.source_address), text(check.source_principal));
    let headers: Headers<'_> = check.headers.into_iter().chain(check.raw_headers).collect();
    let request = AccessRequest::new(check.method, check.host, check.path, headers, received_at.into_std());
    AccessRequest { source_address, source_principal, named_rule: check.named_rule, ..request }
}

/// A client's request as this door describes it, for commands that judge it without a proxy.
pub(crate) fn described(client: &CaseRequest) -> AccessRequest<'_> {
    fn bytes(text: Option<&String>) -> &[u8] {
        text.map(String::as_bytes).unwrap_or_default()
    }
    let headers = client.headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    let check = CheckRequest {
        method: client.method.as_bytes(),
        host: client.host.as_bytes(),
        path: client.path.as_bytes(),
        headers: headers.collect(),
        source_address: bytes(client.source_address.as_ref()),
        source_principal: bytes(client.source_principal.as_ref()),
        named_rule: client.rule.as_ref().map(String::as_bytes),
        ..CheckRequest::default()
    };
    access_request(check, clock::monotonic())
}

/// A string of proto3, where empty means unset.
fn text(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field).ok().filter(|text| !text.is_empty())
}

/// Parses the `grpc-timeout` of a call: at most eight digits and a unit. Anything else is ignored.
fn grpc_timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(amount * 3600)),
        b'M' => Some(Duration::from_secs(amount * 60)),
        b'S' => Some(Duration::from_secs(amount)),
        b'm' => Some(Duration::from_millis(amount)),
        b'u' => Some(Duration::from_micros(amount)),
        b'n' => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_timeout_is_digits_and_a_unit() {
        for (text, expected) in [
            ("2S", Some(Duration::from_secs(2))),
            ("200m", Some(Duration::from_millis(200))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("0n", Some(Duration::ZERO)),
            ("5u", Some(Duration::from_micros(5))),
            ("1M", Some(Duration::from_secs(60))),
            ("", None),
            ("S", None),
            ("2", None),
            ("-2S", None),
            ("2s", None),
            ("123456789S", None),
            ("1 S", None),
        ] {
            assert_eq!(grpc_timeout(text.as_bytes()), expected, "{text}");
        }
    }
}
