//! The `listen` section: the addresses of the listeners and their TLS settings.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use url::Url;

use portcullis_core::access_request::ClaimHeaders;
use portcullis_engine::authorizer::MAX_REFUSALS;

use super::cursor::{Cursor, Mapping, Read};
use super::forms::{Choice, Count, Each, FILE, List, OneOr, Short, Sub, Text, equal, shown};
use super::section::section;
use super::{AdminListener, BindAddress, GrpcListener, HttpListener, Listen, Profile, TlsFiles};

/// The path of a socket has to fit into a `sockaddr_un` with its final NUL (`man 7 unix`).
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// The longest host name (RFC 1035 §2.3.4).
const MAX_HOST_BYTES: usize = 253;

section! {
    /// Where the service listens.
    "Listen": Listen, checked refuse_shared_addresses {
        /// gRPC for Envoy; off if absent.
        ext_authz: OneOr { one: GRPC, list: GRPC_LIST }, unless(Vec::new());
        /// HTTP for other proxies; off if absent.
        forward_auth: OneOr { one: HTTP, list: Each(HTTP) }, unless(Vec::new());
        /// For operators: /livez, /readyz, /metrics, /keys, /decisions/ID. Default: off.
        admin: Short { read: read_admin_address, summary: "`host:port`" }, optional;
    }
}

const GRPC: Short<GrpcListener> = Short { read: read_grpc_address, summary: "`host:port` or `unix:/path`" };
const GRPC_LIST: List<Short<GrpcListener>> = List {
    of: GRPC,
    empty: "an empty list opens no listener: remove the key",
    same: |one, other| same_address(&one.address, &other.address),
};
const HTTP: Sub<HttpListener> = Sub::NEW;

section! {
    /// A gRPC listener.
    "GrpcListener": GrpcListener,
    read through GrpcDraft by make_grpc,
    printed through GrpcShown by show_grpc {
        /// `host:port` or `unix:/path`.
        address: BindAddress = BIND_ADDRESS, required("`host:port` or `unix:/path`");
        /// TLS. Default: plain text.
        tls: TlsFiles = Sub::<TlsFiles>::NEW, optional;
        /// Permission bits of a socket file, in octal, such as \"0660\". Default: set by the umask.
        mode: u32 = MODE, optional;
    }
}

section! {
    /// The admin listener.
    "AdminListener": AdminListener, later ["allow_refresh"] {
        /// `host:port`.
        address: SOCKET_ADDRESS, required("the address of the admin listener, `host:port`");
        /// TLS. Default: plain text.
        tls: Sub::<TlsFiles>::NEW, optional;
        /// Names that are accepted in a request's Host in addition to addresses and localhost.
        hosts: List {
            of: Text { read: read_host, show: shown, summary: "the name of a host" },
            empty: "an empty list names no host: remove the key; addresses and localhost are always accepted",
            same: equal,
        }, unless(Vec::new());
        /// How many of the latest refusals are kept in memory for /decisions/ID. 0 keeps none.
        refusals: Count { min: 0, max: MAX_REFUSALS }, default(AdminListener::REFUSALS);
    }
}

section! {
    /// An HTTP listener, for the proxy of one profile.
    "HttpListener": HttpListener, later ["client_certificate"] {
        /// `host:port`.
        address: SOCKET_ADDRESS, required("the address for the proxy, `host:port`");
        /// The proxy in front: it determines how the original request is described.
        profile: Choice(&Profile::NAMED),
            required("the proxy in front: nginx, ingress-nginx, haproxy, caddy, traefik or envoy");
        /// overwrite: the proxy overwrites every claim header of a client. If absent, a request with a claim header is
        /// denied.
        client_headers: Choice(&[("overwrite", ClaimHeaders::Overwritten)]), unless(ClaimHeaders::MaybeKept);
        /// TLS. Default: plain text.
        tls: Sub::<TlsFiles>::NEW, optional;
    }
}

section! {
    /// PEM files of a listener. They are reloaded when they change.
    "Tls": TlsFiles, checked check_tls {
        /// The certificate chain.
        cert_file: FILE, required("the certificate chain, PEM");
        /// The private key.
        key_file: FILE, required("the private key, PEM");
        /// If set, clients must present a certificate of this authority. Default: no client certificates.
        client_ca_file: FILE, optional;
        /// A DNS name or URI of the client's certificate has to be one of these; any if absent.
        client_names: List {
            of: Text { read: read_client_name, show: shown, summary: "a DNS name or a URI" },
            empty: "an empty list accepts no client: remove the key to accept every name",
            same: equal,
        }, unless(Vec::new());
    }
}

const SOCKET_ADDRESS: Text<SocketAddr> =
    Text { read: |cursor| read_socket_address(cursor, &cursor.text()?), show: shown, summary: "`host:port`" };
const BIND_ADDRESS: Text<BindAddress> = Text {
    read: read_bind_address,
    show: |address| match address {
        BindAddress::Tcp(address) => address.to_string(),
        BindAddress::Unix { path, .. } => format!("unix:{}", path.display()),
    },
    summary: "`host:port` or `unix:/path`",
};
const MODE: Text<u32> =
    Text { read: read_mode, show: |mode| format!("{mode:04o}"), summary: "permission bits in octal" };

fn make_grpc(draft: GrpcDraft, mapping: &Mapping<'_>) -> Read<GrpcListener> {
    let GrpcDraft { address, tls, mode } = draft;
    let address = match (address?, mode?) {
        (BindAddress::Tcp(_), Some(_)) => {
            return mapping.refuse_at("mode", "applies only to a socket file, `unix:/path`: remove it");
        }
        (BindAddress::Unix { path, .. }, mode) => BindAddress::Unix { path, mode },
        (address, None) => address,
    };
    Ok(GrpcListener { address, tls: tls? })
}

fn show_grpc(listener: &GrpcListener) -> GrpcShown {
    let GrpcListener { address, tls } = listener;
    let mode = match address {
        BindAddress::Unix { mode, .. } => *mode,
        BindAddress::Tcp(_) => None,
    };
    GrpcShown { address: Some(address.clone()), tls: tls.clone(), mode }
}

fn read_grpc_address(cursor: &Cursor<'_>) -> Read<GrpcListener> {
    Ok(GrpcListener { address: read_bind_address(cursor)?, tls: None })
}

fn read_admin_address(cursor: &Cursor<'_>) -> Read<AdminListener> {
    let address = read_socket_address(cursor, &cursor.text()?)?;
    Ok(AdminListener { address, tls: None, hosts: Vec::new(), refusals: AdminListener::REFUSALS })
}

/// Refuses a shared address. Duplicates within `ext_authz` have been reported by its list.
fn refuse_shared_addresses(listen: &Listen, mapping: &Mapping<'_>) -> Read<()> {
    let grpc = listen.ext_authz.iter().map(|listener| ("ext_authz", listener.address.clone()));
    let http =
        listen.forward_auth.iter().map(|listener| ("forward_auth", BindAddress::Tcp(listener.address)));
    let admin = listen.admin.iter().map(|listener| ("admin", BindAddress::Tcp(listener.address)));
    let mut used: Vec<(&str, BindAddress)> = Vec::new();
    for (key, address) in grpc.chain(http).chain(admin) {
        if let Some((other, _)) = used.iter().find(|(_, known)| same_address(known, &address)) {
            return mapping.refuse_at(key, format!("this address is already used by `{other}`"));
        }
        used.push((key, address));
    }
    Ok(())
}

/// Whether two addresses are the same, so that the second cannot be bound. Port 0 is a new port each time.
fn same_address(one: &BindAddress, other: &BindAddress) -> bool {
    match (one, other) {
        (BindAddress::Tcp(one), BindAddress::Tcp(other)) => one == other && one.port() != 0,
        (BindAddress::Unix { path: one, .. }, BindAddress::Unix { path: other, .. }) => one == other,
        _ => false,
    }
}

/// A host name of a `Host` header, without its port.
fn read_host(cursor: &Cursor<'_>) -> Read<String> {
    let text = cursor.text()?;
    if is_address(&text) {
        return cursor.refuse("addresses are always accepted: list only names");
    }
    if text != text.to_ascii_lowercase() {
        return cursor.refuse("host names are in lower case: write it in lower case");
    }
    if !is_host_name(&text) {
        return cursor
            .refuse("expected the name of a host without scheme, port, path or wildcard: ops.example.com");
    }
    Ok(text)
}

fn is_address(text: &str) -> bool {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok()
}

/// Labels of letters, digits, `-` and `_`, separated by dots.
fn is_host_name(text: &str) -> bool {
    let is_label_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    text.len() <= MAX_HOST_BYTES
        && text.split('.').all(|label| (1..=63).contains(&label.len()) && label.bytes().all(is_label_byte))
}

fn read_bind_address(cursor: &Cursor<'_>) -> Read<BindAddress> {
    let text = cursor.text()?;
    match text.strip_prefix("unix:") {
        Some(path) if path.len() > MAX_SOCKET_PATH_BYTES || path.contains('\0') => cursor.refuse(format!(
            "a socket file's path has at most {MAX_SOCKET_PATH_BYTES} bytes, none of them NUL"
        )),
        Some(path) if path.starts_with('/') => {
            Ok(BindAddress::Unix { path: PathBuf::from(path), mode: None })
        }
        Some(_) => cursor.refuse("a socket file needs an absolute path: unix:/run/portcullis/authz.sock"),
        None => read_socket_address(cursor, &text).map(BindAddress::Tcp),
    }
}

/// An address without a host is every IPv4 address, like `0.0.0.0`; `localhost` is `127.0.0.1`.
fn read_socket_address(cursor: &Cursor<'_>, text: &str) -> Read<SocketAddr> {
    let host = |name: &str, address: &str| text.strip_prefix(name).map(|port| format!("{address}{port}"));
    let written = host("localhost:", "127.0.0.1:").or_else(|| host(":", "0.0.0.0:"));
    match written.as_deref().unwrap_or(text).parse() {
        Ok(address) => Ok(address),
        Err(_) => cursor.refuse(
            "expected an IP address and a port: 0.0.0.0:9191, :9191, 127.0.0.1:9193, localhost:9193 or [::]:9191",
        ),
    }
}

fn read_mode(cursor: &Cursor<'_>) -> Read<u32> {
    match u32::from_str_radix(&cursor.text()?, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => cursor.refuse("expected permission bits in octal: \"0660\""),
    }
}

fn check_tls(files: &TlsFiles, mapping: &Mapping<'_>) -> Read<()> {
    mapping.cursor().record_listener(files);
    if !files.client_names.is_empty() && files.client_ca_file.is_none() {
        return mapping.refuse_at(
            "client_names",
            "names are checked only in certificates of a trusted authority: add `client_ca_file`",
        );
    }
    Ok(())
}

/// A DNS name, in lower case, or a URI as it is in the certificate.
fn read_client_name(cursor: &Cursor<'_>) -> Read<String> {
    let text = cursor.text()?;
    // `envoy.mesh:443` would be a URI with the scheme `envoy.mesh`, which is never intended.
    let is_uri = text.contains("://") || text.starts_with("urn:");
    let is_plain = text.is_ascii() && !text.contains(char::is_whitespace);
    if is_uri && is_plain && Url::parse(&text).is_ok() {
        return Ok(text);
    }
    if is_host_name(&text) && !is_address(&text) {
        return Ok(text.to_ascii_lowercase());
    }
    cursor.refuse(
        "expected a DNS name without wildcard or a URI of the client's certificate: envoy.mesh or spiffe://example.org/envoy",
    )
}
