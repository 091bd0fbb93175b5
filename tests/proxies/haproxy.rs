//! The HTTP door behind a real HAProxy with `deploy/haproxy`. The tests are in `suite.rs`.

use reqwest::StatusCode;

use crate::launch;
use crate::suite::{self, Proxy, proxy_tests};

const PROXY: Proxy = Proxy {
    profile: "haproxy",
    start: launch::haproxy,
    start_stripping_tokens: launch::haproxy_stripping_tokens,
    status_when_down: StatusCode::SERVICE_UNAVAILABLE,
};

proxy_tests!(PROXY);

#[tokio::test(flavor = "multi_thread")]
async fn a_frontend_names_its_rule() {
    suite::a_route_names_its_rule(Proxy { start: launch::haproxy_naming_a_rule, ..PROXY }).await;
}
