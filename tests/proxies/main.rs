//! What holds behind, beside and in front of real programs: proxies, Keycloak, web frameworks, and the tools that read
//! the files of `deploy/`. `tests/run proxies` installs them.

mod behind;
mod caddy;
mod differentials;
mod drill;
mod envoy;
mod envoy_http;
mod envoy_rules;
mod frameworks;
mod haproxy;
mod keycloak;
mod kubernetes;
mod launch;
mod nginx;
mod nginx_keys;
mod promtool;
#[path = "../support/mod.rs"]
mod support;
mod traefik;
