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
