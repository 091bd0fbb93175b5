//! The gRPC door: `envoy.service.auth.v3.Authorization`, `grpc.health.v1` and reflection.
//!
//! Turns a CheckRequest into an [`AccessRequest`] without copying its headers, and a decision into a
//! CheckResponse. It decides nothing.
//!
//! # Architecture invariant
//! Every answer sets `status`: to Envoy an unset one means OK. An answer is built in `allow` or in
//! `deny` and nowhere else.

pub mod client;
mod message;
mod questions;
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
use hyper::body::Incoming;
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
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
use crate::proto::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use crate::proto::envoy::service::auth::v3::check_response::HttpResponse;
use crate::proto::envoy::service::auth::v3::{
    CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
};
use crate::proto::envoy::r#type::v3::HttpStatus;
use crate::proto::google::rpc;
use crate::server::{self, Door, Stop};
use crate::service::Service;
use crate::validation::json::Json;
use crate::verdict::DenialResponse;

use self::message::{Unfinished, Unread};
use self::questions::Questions;
use self::until_stopped::UntilStopped;

/// The `door` label.
const DOOR: &str = "ext_authz";

/// A message of this many bytes or fewer stays in the buffer that it came in; tonic's has at least 8 KiB.
const SMALL_MESSAGE: usize = 4 * 1024;

/// The path of the one method that decides; upstream's package, service and method.
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// Those of health, which are asked with one message.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";

/// Streams that have no end of their own.
const ENDLESS: [&str; 3] = [
    HEALTH_WATCH,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// So many of these at a time, of all listeners together.
const MAX_ENDLESS: usize = 1024;

/// Of a question about health or reflection. It is a name.
const SMALL_QUESTION: usize = 4 * 1024;

/// What every gRPC listener says.
#[derive(Clone)]
pub(crate) struct GrpcServices {
    service: Arc<Service>,
    checks: AuthorizationServer<Checks>,
    others: Routes,
    unfinished: Arc<Unfinished>,
    endless: Arc<Semaphore>,
}

impl GrpcServices {
    /// All services, and what keeps their health true.
    ///
    /// # Errors
    /// Reflection cannot describe our own types, which a test would show.
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
        let others = Routes::new(health_service.max_decoding_message_size(SMALL_QUESTION))
            .add_service(reflection().build_v1()?.max_decoding_message_size(SMALL_QUESTION))
            .add_service(reflection().build_v1alpha()?.max_decoding_message_size(SMALL_QUESTION))
            .prepare();
        let checks = Checks { service: Arc::clone(&service), headerless_told: Arc::default() };
        let services = Self {
            service: Arc::clone(&service),
            // What is too large never gets here.
            checks: AuthorizationServer::new(checks).max_decoding_message_size(usize::MAX),
            others,
            unfinished: Arc::new(Unfinished::new(message_bytes)),
            endless: Arc::new(Semaphore::new(MAX_ENDLESS)),
        };
        Ok((services, Health { service, reporter }))
    }

    /// The door of one listener: streams without an end of their own end at this stop.
    pub(crate) fn until(&self, stop: Stop) -> GrpcDoor {
        GrpcDoor { services: self.clone(), stop }
    }

    /// A Check, whose message is read and decoded first: what cannot be is decided too. Nothing of the call's own headers is
    /// held meanwhile.
    async fn check(&self, request: http::Request<Incoming>, peer: server::Peer) -> http::Response<Body> {
        let at = clock::monotonic();
        let max = self.service.authorizer().limits().message_bytes;
        let (parts, body) = request.into_parts();
        let timeout = parts.headers.get("grpc-timeout").and_then(|value| grpc_timeout(value.as_bytes()));
        drop(parts);
        let read = message::read(body, max, &self.unfinished, peer).await;
        // A client that is gone reads no answer.
        let read = read.map_err(|unread| unread.unwrap_or(Unread::Torn)).and_then(decode);
        let mut request = question(CHECK, EMPTY);
        request.extensions_mut().insert(Arrived { at, timeout, read });
        let mut checks = self.checks.clone();
        let answer = checks.call(request).await;
        answer.unwrap_or_else(|never| match never {})
    }

    /// Anything else, by tonic. A question about health is read first, and streams without an end are few.
    async fn other(
        &self,
        request: http::Request<Incoming>,
        peer: server::Peer,
        stop: &Stop,
    ) -> http::Response<Body> {
        let path = request.uri().path();
        let endless = match ENDLESS.contains(&path).then(|| Arc::clone(&self.endless).try_acquire_owned()) {
            None => None,
            Some(Ok(place)) => Some(place),
            Some(Err(_)) => {
                return Status::resource_exhausted("as many streams without an end are open as may be")
                    .into_http();
            }
        };
        let asked = [HEALTH_CHECK, HEALTH_WATCH].into_iter().find(|asked| *asked == path);
        let request = match asked {
            None if endless.is_some() => request.map(|body| Body::new(Questions::of(body))),
            None => request.map(Body::new),
            Some(path) => {
                match message::read(request.into_body(), SMALL_QUESTION, &self.unfinished, peer).await {
                    Ok(message) => question(path, message),
                    Err(_) => return Status::invalid_argument("the question did not come whole").into_http(),
                }
            }
        };
        let mut others = self.others.clone();
        let answer = others.call(request).await;
        let answer = answer.unwrap_or_else(|never| match never {});
        match endless {
            Some(place) => answer.map(|body| Body::new(UntilStopped::new(body, stop.clone(), place))),
            None => answer,
        }
    }
}

/// A call of one message, which has been read with its prefix.
fn question(path: &'static str, message: Bytes) -> http::Request<Body> {
    let mut request = http::Request::new(Body::new(Full::new(message)));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static(path);
    *request.version_mut() = http::Version::HTTP_2;
    request.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    request
}

/// The request of a message that was read with its prefix.
fn decode(mut message: Bytes) -> Result<CheckRequest, Unread> {
    const PLAIN: u8 = 0;
    if message.first() != Some(&PLAIN) {
        return Err(Unread::NoCheck);
    }
    message.advance(message.len().min(EMPTY.len()));
    size::check(&message)?;
    CheckRequest::decode(message).map_err(|_| Unread::NoCheck)
}

/// What one gRPC listener says.
pub(crate) struct GrpcDoor {
    services: GrpcServices,
    stop: Stop,
}

/// A message without a field.
const EMPTY: Bytes = Bytes::from_static(&[0; 5]);

/// When a Check came, how long its caller waits for the answer, and what it asks.
#[derive(Clone)]
struct Arrived {
    at: clock::Instant,
    timeout: Option<Duration>,
    read: Result<CheckRequest, Unread>,
}

impl Door for GrpcDoor {
    type Body = Body;

    fn name(&self) -> &'static str {
        DOOR
    }

    fn speaks_http1(&self) -> bool {
        false
    }

    fn service(&self) -> &Service {
        &self.services.service
    }

    async fn answer(&self, request: http::Request<Incoming>, peer: server::Peer) -> http::Response<Body> {
        if request.uri().path() == CHECK {
            return self.services.check(request, peer).await;
        }
        self.services.other(request, peer, &self.stop).await
    }

    fn is_awaited(&self, request: &http::Request<Incoming>) -> bool {
        !ENDLESS.contains(&request.uri().path())
    }
}

/// What grpc.health.v1 says, for the whole server and for the one service.
#[derive(Clone)]
pub(crate) struct Health {
    service: Arc<Service>,
    reporter: tonic_health::server::HealthReporter,
}

impl Health {
    /// Keeps it true. Never returns.
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

/// The key of `context_extensions` under which a route names its rule.
const NAMED_RULE: &[u8] = b"portcullis_rule";

/// Makes decisions of messages.
#[derive(Clone)]
struct Checks {
    service: Arc<Service>,
    /// Whether the log has been told of a request without headers.
    headerless_told: Arc<AtomicBool>,
}

impl Checks {
    /// A request without a single header is no client's doing: Envoy was told to send none.
    fn tell_headerless(&self) {
        if !self.headerless_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "a request came without any headers: Envoy's ext_authz filter must send them all, leave \
                 allowed_headers out of it"
            );
        }
    }
}

#[tonic::async_trait]
impl Authorization for Checks {
    async fn check(&self, mut request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let arrived = request.extensions_mut().remove::<Arrived>();
        let Some(Arrived { at, timeout, read }) = arrived else {
            return Err(Status::internal("a Check that did not come by this door"));
        };
        let unread = read.as_ref().err().copied();
        let authorizer = self.service.authorizer();
        // A request without attributes is one without headers: it has no token, and is refused as such.
        let attributes = compact(read.unwrap_or_default()).attributes.unwrap_or_default();
        let http = attributes.request.and_then(|request| request.http).unwrap_or_default();
        let source = attributes.source.as_ref();
        // Entries of one key arrive in order; the last one is the map's.
        let mut extensions = attributes.context_extensions.iter().rev();
        let named_rule = extensions.find(|entry| entry.key == NAMED_RULE).map(|entry| entry.value.as_ref());
        let (method, host) = (http.method.as_ref(), http.host.as_ref());
        let access_request = AccessRequest {
            timeout,
            description_error: unread.map(Unread::as_str),
            source_address: source.and_then(source_address),
            source_principal: source.and_then(|peer| text(&peer.principal)),
            named_rule,
            ..AccessRequest::new(method, host, &http.path, headers(&http), at.into_std())
        };
        if access_request.headers.is_empty() && unread.is_none() {
            self.tell_headerless();
        }
        let decided = authorizer.decide(DOOR, &access_request).await;
        let caller = access_request.headers.caller();
        let response = match decided.decision.allowed(authorizer.responses(), caller) {
            Ok(allowed) => allow(allowed.changes(), &decided),
            Err(denial) => deny(*denial, &decided),
        };
        Ok(Response::new(response))
    }
}

/// The request without the body that came along, which no decision reads.
///
/// All fields share the buffer that the message came in. One of them would hold a body for as long as the request
/// waits, and tonic's buffer for a large message is twice as long as that: then what is left is moved into a
/// buffer of its own size.
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

/// Of a client that comes over TCP or UDP.
fn source_address(peer: &Peer) -> Option<&str> {
    let Address::SocketAddress(socket) = peer.address.as_ref()?.address.as_ref()?;
    text(&socket.address)
}

/// A field that proto3 leaves empty where nothing is known.
fn text(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field).ok().filter(|text| !text.is_empty())
}

/// Every header that Envoy sent, whether as a map or, with `encode_raw_headers`, as a list.
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

/// Replaces what the client sent, on every version of Envoy: `append` stays unset, since versions
/// before 2026 read it alone and later ones read an unset pair as "append".
fn header(name: &HeaderName, value: &http::HeaderValue) -> HeaderValueOption {
    // Nothing is lost: every value was made of text.
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

/// A claim as Envoy's metadata has it. A number that a double does not hold exactly stays text.
fn value(claim: &Json) -> Value {
    /// Whole numbers up to this are exact (IEEE 754 binary64).
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let kind = match claim {
        Json::Null => Kind::NullValue(0),
        Json::Bool(truth) => Kind::BoolValue(*truth),
        Json::Number(digits) => match digits.parse::<f64>() {
            Ok(number) if number.abs() < EXACT => Kind::NumberValue(number),
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

/// The `grpc-timeout` of a call: at most eight digits and a unit. Anything else is as good as none.
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
    fn neither_a_body_nor_room_to_spare_is_held_while_a_request_is_and_nothing_else_is_lost() {
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
        assert!(!message.is_unique(), "what is small and has no body is not copied");
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
