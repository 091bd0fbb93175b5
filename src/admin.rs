//! The admin door: `/livez`, `/readyz`, `/metrics`, `/keys`, `/decisions/ID`. It decides nothing, changes nothing and
//! shows only public keys, and of refused requests what the log has.
//!
//! A page in an operator's browser may resolve its own name to this address (DNS rebinding); the browser then sends
//! that name as the Host. Only the host names that the configuration allows are answered.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tower::Service as _;

use crate::authorizer::{KeyedProvider, RecentRefusal};
use crate::clock;
use crate::keys::KeyStatus;
use crate::misdirected;
use crate::server::{Door, LogSampler, Misdirected, Peer, RequestBody};
use crate::service::Service;
use crate::telemetry::Trigger;

/// The `door` label.
const DOOR: &str = "admin";

/// Concurrent streams per connection, few because each one may hold a large page.
const MAX_STREAMS: u32 = 32;

/// The beginning of the pages of refused requests. An unknown one is none of this door's mistakes.
const DECISIONS: &str = "/decisions/";

/// What to change if a proxy sends its requests here.
const PROXIES: &str = "listen.admin is for operators alone: have the proxy ask listen.ext_authz (Envoy's gRPC) or a listener of \
                       listen.forward_auth";

/// A request for a page that does not exist. A proxy that asks here gets such requests of its clients.
const UNKNOWN_PAGE: Misdirected =
    Misdirected { found: "a request for a page that does not exist", hint: PROXIES };

/// The door of the admin listener.
pub(crate) struct AdminDoor {
    service: Arc<Service>,
    router: Router,
    /// Host names that are allowed in addition to addresses and localhost.
    hosts: Vec<String>,
    misdirected_log: LogSampler,
}

impl AdminDoor {
    /// A door whose Host may be an address, localhost or one of these names.
    pub(crate) fn new(service: Arc<Service>, hosts: Vec<String>) -> Self {
        Self { router: router(Arc::clone(&service)), service, hosts, misdirected_log: LogSampler::default() }
    }

    fn is_host_allowed(&self, request: &Request<RequestBody>) -> bool {
        let authority = request.uri().authority().map(|authority| authority.as_str());
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let host = hosts.next().map(|host| host.to_str().unwrap_or_default());
        // Both the authority and the Host must be allowed. A request with neither does not come from a browser.
        hosts.next().is_none()
            && [authority, host].into_iter().flatten().all(|host| is_allowed(host, &self.hosts))
    }
}

/// Whether a Host is an address, localhost or one of the names, whatever its port and case.
fn is_allowed(host: &str, names: &[String]) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let name = name.strip_suffix('.').unwrap_or(name);
    !host.contains('@')
        && (address.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || names.iter().any(|allowed| allowed.eq_ignore_ascii_case(name)))
}

impl Door for AdminDoor {
    type Body = Body;

    fn name(&self) -> &'static str {
        DOOR
    }

    fn decides(&self) -> bool {
        false
    }

    fn service(&self) -> &Service {
        &self.service
    }

    fn max_streams(&self) -> u32 {
        MAX_STREAMS
    }

    async fn answer(&self, request: Request<RequestBody>, peer: Peer) -> Response {
        let misdirected = authorization_request(&request);
        let is_decision = request.uri().path().starts_with(DECISIONS);
        let mut response = if misdirected.is_some() {
            // 200 would allow the client's request.
            (StatusCode::MISDIRECTED_REQUEST, "the admin listener authorizes nothing\n").into_response()
        } else if self.is_host_allowed(&request) {
            // The body is dropped, because it would be held while the page is rendered.
            let response = self.router.clone().call(request.map(|_unread| Body::empty())).await;
            response.unwrap_or_else(|never| match never {})
        } else {
            let text = "the Host is not in listen.admin.hosts: use an IP address or localhost, or add the name there\n";
            (StatusCode::MISDIRECTED_REQUEST, text).into_response()
        };
        let is_unknown = response.status() == StatusCode::NOT_FOUND && !is_decision;
        if let Some(misdirected) = misdirected.or(is_unknown.then_some(UNKNOWN_PAGE)) {
            misdirected.log(DOOR, &self.service, peer.address, &self.misdirected_log);
        }
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }
}

/// What is wrong with an authorization request of a proxy; `None` if this is none. Envoy's HTTP requests look like those of
/// any client.
fn authorization_request<B>(request: &Request<B>) -> Option<Misdirected> {
    let found = if misdirected::is_check(request) {
        "Envoy's gRPC Check"
    } else if misdirected::describes_request(request.headers()) {
        "an authorization request over HTTP"
    } else {
        return None;
    };
    Some(Misdirected { found, hint: PROXIES })
}

/// The routes.
fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/keys", get(keys))
        .route("/decisions/{id}", get(decision))
        .with_state(Pages { service, render_permit: Arc::new(Semaphore::new(1)) })
}

/// Renders the pages. With thousands of realms a page takes many milliseconds, so it is rendered on a blocking thread,
/// one at a time, and delays no decision.
#[derive(Clone)]
struct Pages {
    service: Arc<Service>,
    render_permit: Arc<Semaphore>,
}

impl Pages {
    async fn render<T: Send + 'static>(
        &self,
        render: impl FnOnce(&Service) -> T + Send + 'static,
    ) -> Option<T> {
        let permit = Arc::clone(&self.render_permit).acquire_owned().await.ok()?;
        let service = Arc::clone(&self.service);
        let page = spawn_blocking(move || {
            let _permit = permit;
            render(&service)
        });
        page.await.ok()
    }
}

/// 200 if every provider has had keys, no task keeps failing and the service is not draining.
async fn readyz(State(Pages { service, .. }): State<Pages>) -> Response {
    if service.is_serving() {
        return "ok\n".into_response();
    }
    if service.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    let failing = service.tasks().failing().into_iter().map(|task| format!("task keeps failing: {task}\n"));
    let clock_not_set = (!service.clock_is_plausible()).then(|| {
        "the system clock is earlier than the build time of this program: set the clock\n".to_owned()
    });
    let mut waiting = service.authorizer().providers();
    waiting.retain(|keyed| keyed.is_awaited());
    waiting.sort_by_cached_key(|keyed| keyed.key_name());
    let waiting = waiting.iter().map(|keyed| {
        // The text contains no data from the issuer and no URL.
        let error = keyed.keys.status().last_error;
        let error = error.map(|error| format!(": {}", error.without_url())).unwrap_or_default();
        format!("no keys yet: {}{error}\n", keyed.provider.name)
    });
    let causes = failing.chain(clock_not_set).chain(waiting).collect::<String>();
    (StatusCode::SERVICE_UNAVAILABLE, causes).into_response()
}

async fn metrics(State(pages): State<Pages>) -> Response {
    let page = pages.render(|service| {
        service.publish_gauges();
        service.metrics().encode().ok()
    });
    match page.await.flatten() {
        Some(text) => {
            ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
                .into_response()
        }
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn keys(State(pages): State<Pages>) -> Response {
    let page = pages.render(|service| {
        let authorizer = service.authorizer();
        let mut providers = authorizer.providers();
        providers.sort_by_cached_key(|keyed| keyed.key_name());
        let providers: Vec<Value> = providers.iter().map(|keyed| describe(keyed)).collect();
        json!({ "providers": providers }).to_string()
    });
    match page.await {
        Some(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// A refusal among the latest ones. A page is small, so it is rendered here.
async fn decision(State(Pages { service, .. }): State<Pages>, Path(id): Path<String>) -> Response {
    let refusals = service.refusals();
    let (status, body) = match (refusals.find(&id), refusals.capacity()) {
        (Some(refusal), _) => (StatusCode::OK, describe_refusal(&refusal)),
        (None, 0) => (StatusCode::NOT_FOUND, not_found("refusals are not kept: set listen.admin.refusals")),
        (None, kept) => {
            let text = format!("not among the latest {kept} refusals; allowed requests are not kept");
            (StatusCode::NOT_FOUND, not_found(&text))
        }
    };
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

fn not_found(description: &str) -> Value {
    json!({"error": "not_found", "error_description": description})
}

fn describe_refusal(refusal: &RecentRefusal) -> Value {
    let RecentRefusal { id, time, took_us, door, verdict, reason, provider, realm, rule, .. } = refusal;
    let RecentRefusal { method, host, path, client, kid, detail, advice, steps, .. } = refusal;
    let steps: Vec<Value> = steps
        .iter()
        .map(|step| json!({"step": step.step, "outcome": step.outcome, "detail": step.detail}))
        .collect();
    json!({
        "id": id.to_string(),
        "time": clock::rfc3339(*time),
        "took_us": took_us,
        "door": door,
        "verdict": verdict,
        "reason": reason,
        "provider": provider,
        "realm": realm,
        "rule": rule,
        "method": method,
        "host": host,
        "path": path,
        "client": client,
        "kid": kid,
        "detail": detail,
        "advice": advice,
        "steps": steps,
    })
}

fn describe(keyed: &KeyedProvider) -> Value {
    let KeyStatus { keys, generation, fetched_at, age, next_refresh_at, last_trigger, last_error } =
        keyed.keys.status();
    let usable: Vec<Value> = keys
        .keys()
        .iter()
        .map(|key| {
            json!({
                "kid": key.kid(),
                "kty": key.kty(),
                "alg": key.alg().map(|alg| alg.name()),
                "use": key.key_use(),
                "thumbprint": key.thumbprint(),
                "issuer": key.issuer(),
                "note": key.note(),
            })
        })
        .collect();
    let skipped: Vec<Value> =
        keys.skipped().iter().map(|key| json!({"kid": key.kid, "reason": key.reason})).collect();
    json!({
        "name": keyed.key_name(),
        "issuer": keyed.provider.issuer,
        "generation": generation,
        "fetched_at": fetched_at.map(clock::rfc3339),
        "age_seconds": age.map(|age| age.as_secs_f64()),
        "next_refresh_at": next_refresh_at.map(clock::rfc3339),
        "last_trigger": last_trigger.map(Trigger::as_str),
        "last_error": last_error.map(|error| error.to_string()),
        "keys": usable,
        "skipped": skipped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_an_address_localhost_or_a_name_that_is_allowed() {
        let names = ["ops.example.com".to_owned()];
        for host in [
            "127.0.0.1:9193",
            "10.0.0.7",
            "[::1]:9193",
            "[::1]",
            "localhost",
            "LocalHost:1",
            "localhost.",
            "ops.example.com",
            "OPS.example.com:9193",
            "ops.example.com.",
        ] {
            assert!(is_allowed(host, &names), "{host}");
        }
        for host in [
            "",
            "evil.example.com",
            "ops.example.com.evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil",
            "::1",
            "user@localhost",
            "localhost@evil.example",
            "a b",
            "0x7f000001",
            "127.1",
            "ops.example.com:80:80",
        ] {
            assert!(!is_allowed(host, &names), "{host}");
        }
    }
}
