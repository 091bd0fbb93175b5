//! The gRPC door: `envoy.service.auth.v3.Authorization`, `grpc.health.v1` and reflection.
//!
//! It converts a CheckRequest into an [`AccessRequest`] without copying its headers, and a decision into a
//! CheckResponse. It decides nothing.
//!
//! # Architecture invariant
//! Every response sets `status`, because Envoy treats an unset one as OK. Responses are built in `allow` and `deny`
//! only.

mod buffered;
pub mod client;
mod message;
mod response;
mod size;
mod until_stopped;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::HeaderName;
use http::header::CONTENT_TYPE;
use http_body_util::Full;
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service as _;

use crate::access_request::{AccessRequest, Headers};
use crate::authorizer::Decided;
use crate::clock;
use crate::identity::UpstreamChanges;
use crate::proto::FILE_DESCRIPTOR_SET;
use crate::proto::envoy::config::core::v3::address::Address;
use crate::proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use crate::proto::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use crate::proto::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer};
use crate::proto::envoy::service::auth::v3::check_response::HttpResponse;
use crate::proto::envoy::service::auth::v3::{
    CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
};
use crate::proto::envoy::r#type::v3::HttpStatus;
use crate::proto::google::rpc;
use crate::server::{self, Door, RequestBody, Stop};
use crate::service::Service;
use crate::validation::json::Json;
use crate::verdict::DenialResponse;

use self::buffered::BufferedRequests;
use self::message::{IncompleteMessages, ReadError};
use self::response::ResponseBody;
use self::until_stopped::UntilStopped;

/// The `door` label.
const DOOR: &str = "ext_authz";

/// A message of at most this size stays in its receive buffer; tonic's has at least 8 KiB.
const SMALL_MESSAGE: usize = 4 * 1024;

/// The path of the Check method, with upstream's package and service.
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

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
        let message = message.map_err(|error| error.unwrap_or(ReadError::Truncated)).and_then(decode);
        response::unary(&self.checks.check(ReceivedCheck { received_at, timeout, message }).await)
    }

    /// Passes any other call to tonic. A health request is read first, and the number of endless streams is limited.
    async fn other(
        &self,
        request: http::Request<RequestBody>,
        peer: server::Peer,
        stop: &Stop,
    ) -> http::Response<Body> {
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

/// A unary call with a message that includes its prefix.
fn unary_request(path: &'static str, message: Bytes) -> http::Request<Body> {
    let mut request = http::Request::new(Body::new(Full::new(message)));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static(path);
    *request.version_mut() = http::Version::HTTP_2;
    request.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    request
}

/// Decodes a message that includes its prefix.
fn decode(mut message: Bytes) -> Result<CheckRequest, ReadError> {
    const UNCOMPRESSED: u8 = 0;
    if message.first() != Some(&UNCOMPRESSED) {
        return Err(ReadError::NotACheck);
    }
    message.advance(message.len().min(EMPTY.len()));
    size::check(&message)?;
    CheckRequest::decode(message).map_err(|_| ReadError::NotACheck)
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
    message: Result<CheckRequest, ReadError>,
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

/// The key in `context_extensions` with which a route names its rule.
const NAMED_RULE: &[u8] = b"portcullis_rule";

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
    async fn check(&self, check: ReceivedCheck) -> CheckResponse {
        let ReceivedCheck { received_at, timeout, message } = check;
        let read_error = message.as_ref().err().copied();
        let authorizer = self.service.authorizer();
        // A request without attributes has no headers and no token, and is denied for that.
        let attributes = compact(message.unwrap_or_default()).attributes.unwrap_or_default();
        let http = attributes.request.and_then(|request| request.http).unwrap_or_default();
        let source = attributes.source.as_ref();
        // Entries of one key arrive in order; as in a map, the last one applies.
        let mut extensions = attributes.context_extensions.iter().rev();
        let named_rule = extensions.find(|entry| entry.key == NAMED_RULE).map(|entry| entry.value.as_ref());
        let (method, host) = (http.method.as_ref(), http.host.as_ref());
        let access_request = AccessRequest {
            timeout,
            description_error: read_error.map(ReadError::as_str),
            source_address: source.and_then(source_address),
            source_principal: source.and_then(|peer| text(&peer.principal)),
            named_rule,
            ..AccessRequest::new(method, host, &http.path, headers(&http), received_at.into_std())
        };
        if access_request.headers.is_empty() && read_error.is_none() {
            self.warn_headerless();
        }
        let decided = authorizer.decide(DOOR, &access_request).await;
        let caller = access_request.headers.caller();
        match decided.decision.allowed(authorizer.responses(), caller) {
            Ok(allowed) => allow(allowed.changes(), &decided),
            Err(denial) => deny(*denial, &decided),
        }
    }
}

/// The request without the body, which no decision reads.
///
/// All fields share the receive buffer. A body in it would be held while the request waits, and tonic's buffer for a
/// large message is twice as large as the message. In both cases the remaining fields are moved into a buffer of their
/// own size.
fn compact(mut request: CheckRequest) -> CheckRequest {
    let attributes = request.attributes.as_mut().and_then(|attributes| attributes.request.as_mut());
    let mut had_body = false;
    if let Some(http) = attributes.and_then(|request| request.http.as_mut()) {
        had_body = !(http.body.is_empty() && http.raw_body.is_empty());
        http.body.clear();
        http.raw_body.clear();
    }
    if !had_body && request.encoded_len() <= SMALL_MESSAGE {
        return request;
    }
    CheckRequest::decode(Bytes::from(request.encode_to_vec())).unwrap_or_default()
}

/// The address of a client on TCP or UDP.
fn source_address(peer: &Peer) -> Option<&str> {
    let Address::SocketAddress(socket) = peer.address.as_ref()?.address.as_ref()?;
    text(&socket.address)
}

/// A proto3 string field, where empty means unset.
fn text(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field).ok().filter(|text| !text.is_empty())
}

/// All headers that Envoy sent, as a map or, with `encode_raw_headers`, as a list.
fn headers(http: &HttpRequest) -> Headers<'_> {
    let map = http.headers.iter().map(|entry| (entry.key.as_ref(), entry.value.as_ref()));
    let list = http.header_map.iter().flat_map(|map| &map.headers).map(|header| {
        let value =
            if header.raw_value.is_empty() { header.value.as_bytes() } else { header.raw_value.as_ref() };
        (header.key.as_bytes(), value)
    });
    map.chain(list).collect()
}

fn allow(changes: &UpstreamChanges, decided: &Decided<'_>) -> CheckResponse {
    let ok = OkHttpResponse {
        headers: changes.set.iter().map(|(name, value)| header(name, value)).collect(),
        headers_to_remove: changes.remove.iter().map(|header| header.as_str().to_owned()).collect(),
        query_parameters_to_remove: changes.remove_query.clone(),
        ..OkHttpResponse::default()
    };
    CheckResponse {
        status: Some(rpc::Status { code: tonic::Code::Ok as i32, ..rpc::Status::default() }),
        http_response: Some(HttpResponse::OkResponse(ok)),
        dynamic_metadata: Some(metadata(decided)),
    }
}

fn deny(denial: DenialResponse, decided: &Decided<'_>) -> CheckResponse {
    let denied = DeniedHttpResponse {
        status: Some(HttpStatus { code: i32::from(denial.status) }),
        headers: denial.headers.iter().map(|(name, value)| header(name, value)).collect(),
        body: denial.body,
    };
    CheckResponse {
        status: Some(rpc::Status {
            code: denial.kind.grpc_code(),
            message: denial.description.to_owned(),
            ..rpc::Status::default()
        }),
        http_response: Some(HttpResponse::DeniedResponse(denied)),
        dynamic_metadata: Some(metadata(decided)),
    }
}

/// A header that replaces the client's on every version of Envoy. `append` stays unset, because versions before 2026
/// read only that field and later ones read an unset pair as "append".
fn header(name: &HeaderName, value: &http::HeaderValue) -> HeaderValueOption {
    // Lossless, because every value was made from text.
    let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
    HeaderValueOption {
        header: Some(HeaderValue { key: name.to_string(), value, ..HeaderValue::default() }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    }
}

fn metadata(decided: &Decided<'_>) -> Struct {
    let Decided { id, decision } = decided;
    let record = &decision.record;
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let mut fields = BTreeMap::from([
        ("reason".to_owned(), text(decision.verdict.reason().as_str())),
        ("decision_id".to_owned(), text(&id.to_string())),
    ]);
    let named = [
        ("provider", record.provider().map(|provider| &*provider.name)),
        ("subject", decision.subject()),
        ("rule", record.rule().map(|rule| &*rule.name)),
    ];
    for (name, value) in named {
        if let Some(value) = value {
            fields.insert(name.to_owned(), text(value));
        }
    }
    let claims: BTreeMap<String, Value> =
        record.shared_claims().map(|(path, claim)| (path.to_string(), value(claim))).collect();
    if !claims.is_empty() {
        let claims = Struct { fields: claims };
        fields.insert("claims".to_owned(), Value { kind: Some(Kind::StructValue(claims)) });
    }
    Struct { fields }
}

/// A claim as a metadata value. A number that a double cannot represent exactly becomes a string.
fn value(claim: &Json) -> Value {
    /// Integers below this are exact (IEEE 754 binary64).
    const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
    let kind = match claim {
        Json::Null => Kind::NullValue(0),
        Json::Bool(truth) => Kind::BoolValue(*truth),
        Json::Number(digits) => match digits.parse::<f64>() {
            Ok(number) if number.abs() < MAX_EXACT => Kind::NumberValue(number),
            _ => Kind::StringValue(digits.to_string()),
        },
        Json::String(text) => Kind::StringValue(text.to_string()),
        Json::Array(members) => Kind::ListValue(ListValue { values: members.iter().map(value).collect() }),
        Json::Object(members) => {
            let fields = members.iter().map(|(name, member)| (name.to_string(), value(member)));
            Kind::StructValue(Struct { fields: fields.collect() })
        }
    };
    Value { kind: Some(kind) }
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
    use crate::proto::envoy::service::auth::v3::AttributeContext;
    use crate::proto::envoy::service::auth::v3::attribute_context::http_request::HeadersEntry;
    use crate::proto::envoy::service::auth::v3::attribute_context::{self, ContextExtensionsEntry};

    #[test]
    fn a_request_holds_neither_its_body_nor_spare_capacity_and_loses_nothing_else() {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let request = |body: &str, raw_body: &str| {
            let headers = vec![HeadersEntry { key: bytes("authorization"), value: bytes("Bearer a.b.c") }];
            let (body, raw_body) = (bytes(body), bytes(raw_body));
            let http = HttpRequest { path: bytes("/p"), headers, body, raw_body, ..HttpRequest::default() };
            let attributes = AttributeContext {
                source: Some(Peer { principal: bytes("spiffe://a/b"), address: None }),
                request: Some(attribute_context::Request { http: Some(http) }),
                context_extensions: vec![ContextExtensionsEntry { key: bytes("k"), value: bytes("v") }],
            };
            CheckRequest { attributes: Some(attributes) }
        };
        for (body, raw_body) in [("text", ""), ("", "octets"), ("text", "octets")] {
            let message = Bytes::from(request(body, raw_body).encode_to_vec());
            let held = compact(CheckRequest::decode(message.clone()).expect("a request"));
            assert_eq!(held, request("", ""));
            assert!(message.is_unique(), "the buffer of the message is still in use");
        }
        let mut large = request("", "");
        let http =
            large.attributes.as_mut().and_then(|attributes| attributes.request.as_mut()?.http.as_mut());
        http.expect("it is there").path = bytes(&"/p".repeat(SMALL_MESSAGE));
        let message = Bytes::from(large.encode_to_vec());
        assert_eq!(compact(CheckRequest::decode(message.clone()).expect("a request")), large);
        assert!(message.is_unique(), "the buffer of a large message is still in use");

        let message = Bytes::from(request("", "").encode_to_vec());
        let held = compact(CheckRequest::decode(message.clone()).expect("a request"));
        assert!(!message.is_unique(), "a small message without a body is not copied");
        assert_eq!(held, request("", ""));
    }

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
