//! The HTTP door behind a real Caddy with `deploy/caddy/Caddyfile`. The tests are in `suite.rs`.

use reqwest::StatusCode;

use crate::launch;
use crate::suite::{self, Proxy, proxy_tests};

const PROXY: Proxy = Proxy {
    profile: "caddy",
    start: launch::caddy,
    start_with_recipe: launch::caddy_with_recipe,
    status_when_down: StatusCode::BAD_GATEWAY,
    keeps_empty_headers: false,
};

proxy_tests!(PROXY);
proxy_tests!(
    PROXY,
    a_door_with_mutual_tls_is_asked_with_the_proxys_certificate,
    the_resource_metadata_needs_no_token,
);

#[tokio::test(flavor = "multi_thread")]
async fn large_claim_headers_and_a_large_token_pass_caddy_2_11() {
    let proxy = Proxy { start: launch::caddy_2_11, ..PROXY };
    suite::large_claim_headers_and_a_large_token_pass(proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_names_its_rule() {
    suite::a_route_names_its_rule(Proxy { start: launch::caddy_naming_a_rule, ..PROXY }).await;
}
