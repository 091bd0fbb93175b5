//! The HTTP door behind a real Traefik with `deploy/traefik`. The tests are in `suite.rs`.

use reqwest::StatusCode;

use crate::launch;
use crate::suite::{Proxy, proxy_tests};

const PROXY: Proxy = Proxy {
    profile: "traefik",
    start: launch::traefik,
    start_stripping_tokens: launch::traefik_stripping_tokens,
    status_when_down: StatusCode::INTERNAL_SERVER_ERROR,
};

proxy_tests!(PROXY);
