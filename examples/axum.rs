//! The authorizer inside an axum service, as a layer in front of its routes: no proxy, no door, the same
//! decision.
//!
//! ```sh
//! cargo run --example axum -- portcullis.yaml
//! curl -i -H "Authorization: Bearer $TOKEN" http://127.0.0.1:3000/orders
//! ```
//!
//! Of the configuration the providers, limits and responses count; its doors stay closed.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::HOST;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use portcullis::access_request::{AccessRequest, Caller, Removal};
use portcullis::authorizer::Authorizer;
use portcullis::clock::{self, Clock};
use portcullis::config::Config;
use portcullis::service::Service;
use portcullis::telemetry;
use portcullis::verdict::{Decision, Verdict};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args().nth(1).ok_or("usage: axum CONFIG")?;
    let config = Config::load(Path::new(&file))?;
    telemetry::start_log(&config.log)?;
    let service = Arc::new(Service::start(&config, Clock::System)?);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app(service)).await?;
    Ok(())
}

fn app(service: Arc<Service>) -> Router {
    Router::new()
        .route(
            "/orders",
            get(async |request: Request| {
                format!("orders of {:?}\n", request.headers().get("x-auth-subject"))
            }),
        )
        .layer(middleware::from_fn_with_state(service, authorize))
}

/// Lets a request pass with the changes that the verdict asks for, or answers in its place.
async fn authorize(State(service): State<Arc<Service>>, mut request: Request, next: Next) -> Response {
    let authorizer = service.authorizer();
    let (decision, caller) = {
        let headers = request.headers().iter();
        let host = request.headers().get(HOST).map_or(&b""[..], HeaderValue::as_bytes);
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).as_bytes();
        let method = request.method().as_str().as_bytes();
        let headers = headers.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())).collect();
        let access_request = AccessRequest {
            removal: Removal::Headers,
            ..AccessRequest::new(method, host, path, headers, clock::monotonic().into_std())
        };
        (authorizer.decide("library", &access_request).await, access_request.headers.caller())
    };
    let Verdict::Allow(allowed) = &decision.verdict else {
        return deny(&decision, &authorizer, caller);
    };
    let headers = request.headers_mut();
    for name in &allowed.changes().remove {
        headers.remove(name);
    }
    for (name, value) in &allowed.changes().set {
        match (HeaderName::try_from(name), HeaderValue::from_bytes(value.as_bytes())) {
            (Ok(name), Ok(value)) => headers.insert(name, value),
            // Half of the changes would be worse than none.
            _ => return status(StatusCode::INTERNAL_SERVER_ERROR),
        };
    }
    next.run(request).await
}

fn deny(decision: &Decision, authorizer: &Authorizer, caller: Caller) -> Response {
    let denial = decision.denial(authorizer.responses(), caller);
    let mut response = Response::builder().status(denial.status);
    for (name, value) in denial.headers {
        response = response.header(name, value);
    }
    response.body(Body::from(denial.body)).unwrap_or_else(|_| status(StatusCode::INTERNAL_SERVER_ERROR))
}

fn status(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
    use serde_json::json;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn the_layer_lets_good_tokens_pass_with_their_claims_and_answers_all_others() {
        let key = SigningKey::generate("k", SigningAlgorithm::ES256);
        let jwks = json!({"keys": [key.public_jwk()]});
        let text = format!(
            "listen: {{ext_authz: 127.0.0.1:0}}
providers:
  - {{name: p, issuer: https://sso.example.com, audiences: [a], claim_headers: {{x-auth-subject: sub}}, jwks: {jwks}}}"
        );
        let config = Config::parse(&text, &|_| None).expect("valid");
        let service = Arc::new(Service::start(&config, Clock::System).expect("inline keys need no client"));
        let exp = Clock::System.now().as_secs_f64() as i64 + 60;
        let token =
            key.sign(&json!({"iss": "https://sso.example.com", "aud": "a", "sub": "alice", "exp": exp}));
        let ask = async |token: &str| {
            let request = Request::get("/orders").header("x-auth-subject", "mallory");
            let request = request.header("authorization", format!("Bearer {token}"));
            let response =
                app(Arc::clone(&service)).oneshot(request.body(Body::empty()).expect("a request")).await;
            let response = response.expect("never fails");
            let status = response.status();
            let body = axum::body::to_bytes(response.into_body(), 1000).await.expect("short");
            (status, String::from_utf8_lossy(&body).into_owned())
        };
        assert_eq!(ask(&token).await, (StatusCode::OK, "orders of Some(\"alice\")\n".to_owned()));
        let (status, body) = ask(&format!("{token}x")).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert!(body.contains("invalid_token"), "{body}");
    }
}
