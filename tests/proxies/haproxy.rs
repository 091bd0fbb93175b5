//! The HTTP door behind a real HAProxy with `deploy/haproxy`. The tests are in `suite.rs`.

use reqwest::StatusCode;

use crate::launch;
use crate::suite::{Proxy, proxy_tests};

const PROXY: Proxy = Proxy {
    profile: "haproxy",
    start: launch::haproxy,
    start_with_recipe: launch::haproxy_with_recipe,
    status_when_down: StatusCode::SERVICE_UNAVAILABLE,
    keeps_empty_headers: false,
};

proxy_tests!(PROXY);
proxy_tests!(PROXY, the_resource_metadata_needs_no_token);
