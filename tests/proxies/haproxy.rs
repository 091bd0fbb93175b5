//! The HTTP door behind a real HAProxy with `deploy/haproxy`. The tests are in `suite.rs`.

use reqwest::StatusCode;

use crate::launch;
use crate::suite::{self, Proxy, proxy_tests};

const PROXY: Proxy = Proxy {
    profile: "haproxy",
    start: launch::haproxy,
    start_with_recipe: launch::haproxy_with_recipe,
    status_when_down: StatusCode::SERVICE_UNAVAILABLE,
    keeps_empty_headers: false,
};

proxy_tests!(PROXY);
proxy_tests!(PROXY, the_resource_metadata_needs_no_token);

#[tokio::test(flavor = "multi_thread")]
async fn a_frontend_names_its_rule() {
    suite::a_route_names_its_rule(Proxy { start: launch::haproxy_naming_a_rule, ..PROXY }).await;
}
