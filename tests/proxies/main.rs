//! Tests with real programs: proxies, Keycloak, web frameworks, and the tools that read the files of `deploy/`.
//! `tests/run proxies` installs them.

#![allow(unreachable_pub, missing_docs, reason = "these lints are for libraries")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests fail by panicking, and print diagnostics"
)]

mod caddy;
mod differentials;
mod drill;
mod envoy;
mod envoy_http;
mod envoy_rules;
mod first_steps;
mod frameworks;
mod haproxy;
mod ingress_nginx;
mod keycloak;
mod kubernetes;
mod launch;
mod nginx;
mod nginx_keys;
mod promtool;
mod suite;
#[path = "../support/mod.rs"]
mod support;
mod traefik;
