//! The HTTP door behind a real NGINX with `deploy/nginx/nginx.conf`. The tests that all proxies share are in `suite.rs`.

use std::io::{Read, Write};
use std::net::TcpStream;

use reqwest::StatusCode;

use crate::launch;
use crate::suite::{self, Proxy, TestEnv, proxy_tests};
use crate::support::real;

const PROXY: Proxy = Proxy {
    profile: "nginx",
    start: launch::nginx,
    start_with_recipe: launch::nginx_with_recipe,
    status_when_down: StatusCode::SERVICE_UNAVAILABLE,
    keeps_empty_headers: false,
};

proxy_tests!(PROXY);
proxy_tests!(
    PROXY,
    a_door_with_mutual_tls_is_asked_with_the_proxys_certificate,
    the_resource_metadata_needs_no_token,
);

#[tokio::test(flavor = "multi_thread")]
async fn an_http_1_0_request_without_a_host_has_the_host_of_the_configuration() {
    let rules = "rules: [{name: health, match: {path: /healthz}, allow: anonymous}]\n";
    let env = TestEnv::start(PROXY, rules).await;
    for (path, status) in [("/healthz", "200"), ("/orders", "401")] {
        let mut stream = TcpStream::connect(env.address()).expect("NGINX listens");
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).expect("NGINX reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("NGINX answers");
        assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
    }
    assert_eq!(env.upstream.received(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_of_the_upstream_pass_unchanged() {
    let app = axum::Router::new().fallback(async |request: axum::extract::Request| {
        let status = request.uri().path().trim_start_matches('/').parse().expect("a status");
        (StatusCode::from_u16(status).expect("a status"), "the body of the app")
    });
    let (address, server) = real::serve_http(app).await;
    let env = TestEnv::start_with_upstream(PROXY, address, "").await;
    for status in [200, 400, 401, 403, 404, 500, 503] {
        let request = env.client.get(env.url(&format!("/{status}"))).bearer_auth(env.token());
        let answer = request.send().await.expect("NGINX answers");
        assert_eq!(answer.status().as_u16(), status);
        assert_eq!(answer.text().await.expect("a body"), "the body of the app");
    }
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_location_names_its_rule() {
    suite::a_route_names_its_rule(Proxy { start: launch::nginx_naming_a_rule, ..PROXY }).await;
}
