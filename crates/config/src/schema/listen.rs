//! The schema of the `listen` section.

#![allow(dead_code, reason = "of these types only the schema is used")]

use schemars::JsonSchema;

use super::{ClientHeaders, ProfileName, Text};

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Listen {
    /// gRPC for Envoy: IP:PORT, unix:/PATH, or a mapping; one or a list of them.
    ext_authz: GrpcDoors,
    /// HTTP for other proxies: one door or a list of them. Left out: off.
    forward_auth: Option<HttpDoors>,
    /// For operators: /livez, /readyz, /metrics, /keys. IP:PORT or a mapping; left out: off.
    admin: Option<AdminDoor>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum GrpcDoors {
    One(GrpcDoor),
    Several(#[schemars(length(min = 1))] Vec<GrpcDoor>),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum GrpcDoor {
    Address(Text),
    Mapping(GrpcListener),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct GrpcListener {
    /// IP:PORT or unix:/PATH.
    address: Text,
    tls: Option<Tls>,
    /// Permission bits of a socket file, in octal: "0660".
    mode: Option<Text>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum AdminDoor {
    Address(Text),
    Mapping(AdminListener),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct AdminListener {
    /// IP:PORT.
    address: Text,
    tls: Option<Tls>,
    /// Names that a request's Host may have besides an address and localhost. Default: none.
    #[schemars(length(min = 1))]
    hosts: Option<Vec<Text>>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum HttpDoors {
    One(HttpListener),
    Several(Vec<HttpListener>),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct HttpListener {
    /// IP:PORT.
    address: Text,
    /// The proxy that asks: how it tells what request it asks about.
    profile: ProfileName,
    /// overwrite: the proxy overwrites every claim header of a client. Left out: a request that carries one is refused.
    client_headers: Option<ClientHeaders>,
    tls: Option<Tls>,
}

/// PEM files of a TLS listener.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Tls {
    /// The certificate chain.
    cert_file: Text,
    /// The private key.
    key_file: Text,
    /// Clients must present a certificate of this authority.
    client_ca_file: Option<Text>,
    /// A DNS name or URI of the client's certificate has to be one of these. Default: any.
    #[schemars(length(min = 1))]
    client_names: Option<Vec<Text>>,
}
