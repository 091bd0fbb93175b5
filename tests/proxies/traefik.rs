//! The HTTP door behind a real Traefik with `deploy/traefik`. The tests are in `suite.rs`.

use reqwest::StatusCode;

use crate::launch;
use crate::suite::{self, Proxy, proxy_tests};

const PROXY: Proxy = Proxy {
    profile: "traefik",
    start: launch::traefik,
    start_stripping_tokens: launch::traefik_stripping_tokens,
    status_when_down: StatusCode::INTERNAL_SERVER_ERROR,
};

proxy_tests!(PROXY);

#[tokio::test(flavor = "multi_thread")]
async fn a_router_names_its_rule() {
    suite::a_route_names_its_rule(Proxy { start: launch::traefik_naming_a_rule, ..PROXY }).await;
}
