//! Configurations of Envoy: those of `deploy/envoy` with the addresses of this run, and with another filter, or another
//! setting, in the place of theirs.

use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;

use portcullis_issuer::Issuer;

use crate::files::Text;

type Failure = Box<dyn Error + Send + Sync>;

const EXT_AUTHZ: &str = "                  - name: envoy.filters.http.ext_authz\n";
const ROUTER: &str = "                  - name: envoy.filters.http.router\n";
const CLUSTER_OF_PORTCULLIS: &str = "    - name: portcullis\n      type: STRICT_DNS\n";
const CLUSTER_OF_UPSTREAM: &str = "    - name: upstream\n      type: STRICT_DNS\n";

/// The last line of the filter's settings.
const SETTINGS: &str = "                      validate_mutations: true\n";
const CLIENT: &str = "envoy_grpc: {cluster_name: portcullis}";
const KEEPALIVE: &str = "connection_keepalive: {interval: 30s, timeout: 5s}";

/// One setting that differs from `envoy-grpc.yaml`: what it is, the text that it replaces, and the text instead.
pub struct Setting(pub &'static str, &'static str, String);

/// Settings that may make a difference. Those that would weaken what Portcullis protects say so.
pub fn settings(ext_authz: SocketAddr) -> Vec<Setting> {
    let more =
        |name, line: &str| Setting(name, SETTINGS, format!("{SETTINGS}                      {line}\n"));
    let google = format!("google_grpc: {{target_uri: \"{ext_authz}\", stat_prefix: portcullis}}");
    let few = "max_concurrent_streams: 16";
    vec![
        more("encode_raw_headers", "encode_raw_headers: true"),
        more(
            "include_peer_certificate and include_tls_session",
            "include_peer_certificate: true\n                      include_tls_session: true",
        ),
        more("metadata_context_namespaces", "metadata_context_namespaces: [envoy.filters.http.jwt_authn]"),
        more("clear_route_cache", "clear_route_cache: true"),
        more("charge_cluster_response_stats: false", "charge_cluster_response_stats: false"),
        more(
            "enable_dynamic_metadata_ingestion: false (no reason in the log)",
            "enable_dynamic_metadata_ingestion: false",
        ),
        more(
            "disallowed_headers: accept-*, user-agent (hidden from rules)",
            "disallowed_headers: {patterns: [{prefix: accept}, {exact: user-agent}]}",
        ),
        more(
            "allowed_headers: authorization (unsafe)",
            "allowed_headers: {patterns: [{exact: authorization}]}",
        ),
        Setting("without validate_mutations (unsafe)", SETTINGS, String::new()),
        Setting("without stat_prefix", "                      stat_prefix: portcullis\n", String::new()),
        Setting("timeout of 200 ms", "timeout: 2.5s", "timeout: 0.2s".to_owned()),
        Setting("skip_envoy_headers", CLIENT, CLIENT.replace('}', ", skip_envoy_headers: true}")),
        Setting("google_grpc", CLIENT, google),
        Setting("connections of 16 streams each", KEEPALIVE, format!("{KEEPALIVE}\n              {few}")),
        Setting(
            "use_oghttp2_codec: false",
            KEEPALIVE,
            format!("{KEEPALIVE}\n              use_oghttp2_codec: false"),
        ),
        Setting("without connection_keepalive", KEEPALIVE, few.replace("16", "1000")),
    ]
}

/// `envoy-grpc.yaml` with this setting.
///
/// # Errors
/// As [`grpc`].
pub fn grpc_with(addresses: &Addresses<'_>, setting: &Setting) -> Result<Text, Failure> {
    let Setting(_, from, to) = setting;
    grpc(addresses)?.with(from, to)
}

/// `envoy-grpc.yaml` without its access log.
///
/// # Errors
/// As [`grpc`].
pub fn grpc_without_log(addresses: &Addresses<'_>) -> Result<Text, Failure> {
    grpc(addresses)?.without("                access_log:\n", "                http_filters:\n")
}

/// `envoy-http.yaml` with HTTP/1.1 to Portcullis.
///
/// # Errors
/// As [`grpc`].
pub fn http_1(addresses: &Addresses<'_>) -> Result<Text, Failure> {
    let http_2 = format!(
        "http2_protocol_options:\n              # Detects a peer that disappeared without closing the connection, which TCP detects only after minutes.\n              {KEEPALIVE}\n"
    );
    http(addresses)?.with(&http_2, "http_protocol_options: {}\n")
}

/// Where everything listens that Envoy has to know.
pub struct Addresses<'a> {
    /// Envoy itself.
    pub proxy: SocketAddr,
    /// Envoy's admin interface.
    pub proxy_admin: SocketAddr,
    /// Portcullis, over gRPC.
    pub ext_authz: SocketAddr,
    /// The same as a socket file.
    pub socket: &'a Path,
    /// Portcullis, over HTTP.
    pub forward_auth: SocketAddr,
    /// Portcullis's health.
    pub admin: SocketAddr,
    pub upstream: SocketAddr,
}

/// `envoy-grpc.yaml`.
///
/// # Errors
/// The file has changed, so that the addresses are not found.
pub fn grpc(addresses: &Addresses<'_>) -> Result<Text, Failure> {
    shipped("envoy/envoy-grpc.yaml", addresses)?
        .with("address: 127.0.0.1, port_value: 9191", &socket(addresses.ext_authz))
}

/// `envoy-grpc.yaml`, with the socket file.
///
/// # Errors
/// As [`grpc`].
pub fn grpc_over_socket_file(addresses: &Addresses<'_>) -> Result<Text, Failure> {
    shipped("envoy/envoy-grpc.yaml", addresses)?
        .with(
            "socket_address: {address: 127.0.0.1, port_value: 9191}",
            &format!("pipe: {{path: {}}}", addresses.socket.display()),
        )?
        .with(CLUSTER_OF_PORTCULLIS, &CLUSTER_OF_PORTCULLIS.replace("STRICT_DNS", "STATIC"))
}

/// `envoy-http.yaml`.
///
/// # Errors
/// As [`grpc`].
pub fn http(addresses: &Addresses<'_>) -> Result<Text, Failure> {
    shipped("envoy/envoy-http.yaml", addresses)?
        .with("address: 127.0.0.1, port_value: 9192", &socket(addresses.forward_auth))?
        .with("port_value: 9193", &format!("port_value: {}", addresses.admin.port()))
}

/// `envoy-grpc.yaml` without its filter ext_authz: nothing is authorized.
///
/// # Errors
/// As [`grpc`].
pub fn no_filter(addresses: &Addresses<'_>) -> Result<Text, Failure> {
    grpc(addresses)?.without(EXT_AUTHZ, ROUTER)?.without(CLUSTER_OF_PORTCULLIS, CLUSTER_OF_UPSTREAM)
}

/// `envoy-grpc.yaml` with jwt_authn instead of ext_authz: the same keys, the same claim headers, the token forwarded; and
/// these lines for its provider.
///
/// # Errors
/// As [`grpc`].
pub fn jwt_authn(addresses: &Addresses<'_>, issuer: &Issuer, provider: &str) -> Result<Text, Failure> {
    let (name, keys, address) = (issuer.issuer(), issuer.jwks_uri(), socket(issuer.address()));
    let filter = format!(
        r#"                  - name: envoy.filters.http.jwt_authn
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication
                      providers:
                        sso:
                          issuer: {name}
                          audiences: [orders-api]
                          forward: true
                          claim_to_headers:
                            - {{header_name: x-auth-subject, claim_name: sub}}
                            - {{header_name: x-auth-tenant, claim_name: tenant_id}}
                          remote_jwks:
                            http_uri: {{uri: "{keys}", cluster: issuer, timeout: 2s}}
                            cache_duration: 300s
{provider}                      rules:
                        - match: {{prefix: /}}
                          requires: {{provider_name: sso}}
"#
    );
    let cluster = format!(
        "    - name: issuer
      type: STATIC
      connect_timeout: 1s
      load_assignment:
        cluster_name: issuer
        endpoints:
          - lb_endpoints:
              - endpoint:
                  address:
                    socket_address: {{{address}}}
"
    );
    no_filter(addresses)?.before(ROUTER, &filter)?.before(CLUSTER_OF_UPSTREAM, &cluster)
}

fn shipped(file: &str, addresses: &Addresses<'_>) -> Result<Text, Failure> {
    Text::of(file)?
        .with("address: 127.0.0.1, port_value: 9901", &socket(addresses.proxy_admin))?
        .with("address: 0.0.0.0, port_value: 10000", &socket(addresses.proxy))?
        .with("address: 127.0.0.1, port_value: 8080", &socket(addresses.upstream))
}

fn socket(address: SocketAddr) -> String {
    format!("address: {}, port_value: {}", address.ip(), address.port())
}
