//! The HTTP door behind a real Traefik with `deploy/traefik`. The tests are in `suite.rs`.

use reqwest::StatusCode;

use crate::launch;
use crate::suite::{self, Proxy, proxy_tests};

const PROXY: Proxy = Proxy {
    profile: "traefik",
    start: launch::traefik,
    start_with_recipe: launch::traefik_with_recipe,
    status_when_down: StatusCode::INTERNAL_SERVER_ERROR,
    keeps_empty_headers: true,
};

proxy_tests!(PROXY);
proxy_tests!(
    PROXY,
    a_door_with_mutual_tls_is_asked_with_the_proxys_certificate,
    the_resource_metadata_needs_no_token,
);

#[tokio::test(flavor = "multi_thread")]
async fn a_router_names_its_rule() {
    suite::a_route_names_its_rule(Proxy { start: launch::traefik_naming_a_rule, ..PROXY }).await;
}
