//! The HTTP door behind a real NGINX under `deploy/nginx/nginx.conf`. What has to hold is said in
//! `support/behind.rs`.

#[path = "support/behind.rs"]
mod behind;
#[path = "support/proxies.rs"]
mod proxies;
#[path = "support/real.rs"]
mod real;

use reqwest::StatusCode;

use behind::{Recipe, Stage};
use proxies::{Places, Started, nginx_configuration, run_nginx};

const RECIPE: Recipe =
    Recipe { profile: "nginx", start: proxies::nginx, service_down: StatusCode::SERVICE_UNAVAILABLE };

/// With the location that is there as a comment.
fn start_with_metadata(places: Places) -> Started {
    let mut text = String::new();
    let mut inside = false;
    for line in nginx_configuration(&places).lines() {
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
    a_good_token_passes_with_its_claims_as_headers,
    a_denial_reaches_the_client_with_its_challenge,
    rules_say_who_may_do_what,
    a_clients_own_identity_headers_never_reach_the_upstream,
    what_a_client_says_in_a_proxys_headers_is_noise,
    rotations_under_load_refuse_no_good_token,
    before_any_keys_can_be_had_the_answer_is_503,
    when_the_service_is_down_nothing_passes,
    a_proxy_that_is_not_trusted_gets_403_whatever_it_says,
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
