//! The HTTP door behind a real NGINX under `deploy/nginx/nginx.conf`. What has to hold is said in
//! `behind.rs`.

use std::io::{Read, Write};
use std::net::TcpStream;

use reqwest::StatusCode;

use crate::behind::{self, Recipe, Stage, tests_behind};
use crate::launch::{self, Places, Started, nginx_configuration, run_nginx};
use crate::support::real;

const RECIPE: Recipe =
    Recipe { profile: "nginx", start: launch::nginx, service_down: StatusCode::SERVICE_UNAVAILABLE };

/// With the location that is there as a comment.
fn start_with_metadata(places: &Places) -> Started {
    let mut text = String::new();
    let mut inside = false;
    for line in nginx_configuration(places).lines() {
        inside |= line.trim_start().starts_with("# location = /.well-known/");
        let line = if inside { line.replacen("# ", "", 1) } else { line.to_owned() };
        inside &= line.trim() != "}";
        text.push_str(&line);
        text.push('\n');
    }
    run_nginx(text)
}

tests_behind!(
    RECIPE,
    any_claim_value_arrives_whole_and_as_one_header,
    a_good_token_passes_with_its_claims_as_headers,
    a_denial_reaches_the_client_with_its_challenge,
    rules_say_who_may_do_what,
    a_clients_own_identity_headers_never_reach_the_upstream,
    what_a_client_says_in_a_proxys_headers_is_noise,
    rotations_under_load_refuse_no_good_token,
    before_any_keys_can_be_had_the_answer_is_503,
    when_the_service_is_down_nothing_passes,
    a_proxy_that_is_not_trusted_gets_403_whatever_it_says,
    denials_come_as_portcullis_made_them,
    large_claim_headers_and_a_large_token_pass,
    a_websocket_passes_with_a_token_and_not_without,
    no_upgrade_but_a_websocket_passes,
    a_client_cannot_have_our_headers_taken_away,
    a_trailer_never_reaches_the_upstream,
    what_frameworks_believe_is_true_or_not_there,
    several_hosts_are_not_the_last_of_them,
    the_upstream_gets_the_path_that_is_judged_and_no_absolute_uri,
    a_query_of_any_octets_passes,
);

#[tokio::test]
async fn the_metadata_of_the_resource_is_for_everybody() {
    let recipe = Recipe { start: start_with_metadata, ..RECIPE };
    let url = "https://api.example.com/.well-known/oauth-protected-resource";
    let stage = Stage::set(recipe, &format!("responses: {{resource_metadata: '{url}'}}\n")).await;
    let denied = stage.client.get(stage.url("/orders")).send().await.expect("NGINX answers");
    let challenge = denied.headers()["www-authenticate"].to_str().expect("text");
    assert!(challenge.ends_with(&format!("resource_metadata=\"{url}\"")), "{challenge}");
    let request = stage.client.get(stage.url("/.well-known/oauth-protected-resource"));
    let request = request.header("x-original-uri", "/orders").header("x-original-method", "GET");
    let answer = request.send().await.expect("NGINX answers");
    assert_eq!(answer.status(), StatusCode::OK);
    let document: serde_json::Value = real::json(answer).await;
    assert_eq!(document["resource"], "https://api.example.com");
    assert_eq!(document["authorization_servers"], serde_json::json!([stage.issuer.issuer()]));
    assert_eq!(stage.upstream.received(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_upstream_never_sees_a_token() {
    behind::the_upstream_never_sees_a_token(Recipe { start: launch::nginx_hiding_tokens, ..RECIPE }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_http_1_0_without_a_host_is_for_the_name_in_the_configuration() {
    let rules = "rules: [{name: health, match: {path: /healthz}, allow: anonymous}]\n";
    let stage = Stage::set(RECIPE, rules).await;
    for (path, status) in [("/healthz", "200"), ("/orders", "401")] {
        let mut stream = TcpStream::connect(stage.address()).expect("NGINX listens");
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).expect("NGINX reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("NGINX answers");
        assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
    }
    assert_eq!(stage.upstream.received(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_the_upstream_pass_as_they_are() {
    let refusing = axum::Router::new().fallback(async |request: axum::extract::Request| {
        let status = request.uri().path().trim_start_matches('/').parse().expect("a status");
        (StatusCode::from_u16(status).expect("a status"), "the app's own words")
    });
    let (address, server) = real::serve_http(refusing).await;
    let stage = Stage::set_in_front_of(RECIPE, address, "").await;
    for status in [200, 400, 401, 403, 404, 500, 503] {
        let request = stage.client.get(stage.url(&format!("/{status}"))).bearer_auth(stage.token());
        let answer = request.send().await.expect("NGINX answers");
        assert_eq!(answer.status().as_u16(), status);
        assert_eq!(answer.text().await.expect("a body"), "the app's own words");
    }
    server.abort();
}
