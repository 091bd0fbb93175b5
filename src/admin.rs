//! The operator's door: `/livez`, `/readyz`, `/metrics`, `/keys`. It decides nothing, changes nothing,
//! and shows the public half of keys alone.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};

use crate::authorizer::KeyedProvider;
use crate::clock;
use crate::keys::KeyStatus;
use crate::keys::schedule::Trigger;
use crate::service::Service;

/// The routes.
pub fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/keys", get(keys))
        .with_state(service)
}

/// 200 once every provider has had keys, while no task keeps failing, and until the service drains.
async fn readyz(State(service): State<Arc<Service>>) -> Response {
    if service.is_serving() {
        return "ok\n".into_response();
    }
    if service.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    let failing = service.tasks().failing().into_iter().map(|task| format!("task keeps failing: {task}\n"));
    let waiting = service.authorizer().providers();
    let waiting = waiting.iter().filter(|keyed| keyed.realm.is_none() && !keyed.keys.has_keys());
    let waiting = waiting.map(|keyed| format!("no keys yet: {}\n", keyed.provider.name));
    (StatusCode::SERVICE_UNAVAILABLE, failing.chain(waiting).collect::<String>()).into_response()
}

async fn metrics(State(service): State<Arc<Service>>) -> Response {
    service.publish_gauges();
    match service.metrics().encode() {
        Ok(text) => {
            ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
                .into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn keys(State(service): State<Arc<Service>>) -> Response {
    let authorizer = service.authorizer();
    let mut providers = authorizer.providers();
    providers.sort_by_cached_key(|keyed| keyed.key_name());
    let providers: Vec<Value> = providers.iter().map(|keyed| describe(keyed)).collect();
    let body = json!({ "providers": providers }).to_string();
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
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
