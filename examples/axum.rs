//! An axum service with the authorization layer: the same decisions without a proxy.
//!
//! ```sh
//! cargo run --example axum -- portcullis.yaml
//! curl -i -H "Authorization: Bearer $TOKEN" http://127.0.0.1:3000/orders
//! ```
//!
//! The example uses the providers, rules, limits and responses of the configuration, but opens no listeners.

#![allow(clippy::print_stdout, reason = "an example prints its address")]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use portcullis::clock::Clock;
use portcullis::config::Config;
use portcullis::service::Service;
use portcullis::telemetry;
use portcullis_tower::{AuthorizationLayer, Claims};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args().nth(1).ok_or("usage: axum CONFIG")?;
    let config = Config::load(Path::new(&file))?;
    telemetry::start_log(&config.log)?;
    let layer = AuthorizationLayer::new(Arc::new(Service::start(&config, Clock::System)?));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, layer.make_service(routes())).await?;
    Ok(())
}

fn routes() -> Router {
    Router::new().route("/orders", get(async |claims: Claims| format!("orders of {:?}\n", claims.subject())))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{Request, StatusCode};
    use http_body_util::BodyExt;
    use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
    use serde_json::json;
    use tower::{Layer, ServiceExt};

    use super::*;

    #[tokio::test]
    async fn the_layer_forwards_good_tokens_with_their_claims_and_denies_all_others() {
        let key = SigningKey::generate("k", SigningAlgorithm::ES256);
        let jwks = json!({"keys": [key.public_jwk()]});
        let text = format!(
            "listen: {{ext_authz: 127.0.0.1:0}}
providers: [{{name: p, issuer: https://sso.example.com, audiences: [a], jwks: {jwks}}}]"
        );
        let config = Config::parse(&text, &|_| None).expect("valid");
        let service = Arc::new(Service::start(&config, Clock::System).expect("inline keys need no client"));
        let exp = Clock::System.now().as_secs_f64() as i64 + 60;
        let token =
            key.sign(&json!({"iss": "https://sso.example.com", "aud": "a", "sub": "alice", "exp": exp}));
        let app = AuthorizationLayer::new(service).layer(routes());
        let ask = async |token: &str| {
            let request = Request::get("/orders").header("authorization", format!("Bearer {token}"));
            let response = app.clone().oneshot(request.body(Body::empty()).expect("a request")).await;
            let (parts, body) = response.expect("never fails").into_parts();
            let body = body.collect().await.expect("a body").to_bytes();
            (parts.status, String::from_utf8_lossy(&body).into_owned())
        };
        assert_eq!(ask(&token).await, (StatusCode::OK, "orders of Some(\"alice\")\n".to_owned()));
        let (status, body) = ask(&format!("{token}x")).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert!(body.contains("invalid_token"), "{body}");
    }
}
