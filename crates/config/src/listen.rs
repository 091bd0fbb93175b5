//! The `listen` section: where the doors are and the TLS that is spoken there.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use url::Url;

use portcullis_core::access_request::ClaimHeaders;

use super::cursor::{Cursor, Mapping};
use super::{AdminListener, BindAddress, GrpcListener, HttpListener, Listen, Profile, TlsFiles};

/// A socket's path has to fit into a `sockaddr_un` with its final NUL (`man 7 unix`).
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// The longest name of a host (RFC 1035 §2.3.4).
const MAX_HOST_BYTES: usize = 253;

pub(super) fn read_listen(cursor: Cursor<'_>) -> Option<Listen> {
    let mapping = cursor.mapping(&["ext_authz", "forward_auth", "admin"], &[])?;
    let ext_authz = mapping
        .need("ext_authz", "the address of the gRPC door")
        .and_then(|cursor| read_grpc_listeners(&cursor));
    let admin = mapping.optional("admin", |cursor| read_admin(&cursor));
    let forward_auth = mapping.or("forward_auth", Vec::new(), |cursor| {
        if cursor.is_list() {
            cursor.each(read_http_listener)
        } else {
            Some(vec![read_http_listener(&cursor)?])
        }
    });
    let listen = Listen { ext_authz: ext_authz?, forward_auth: forward_auth?, admin: admin? };
    refuse_shared_addresses(&mapping, &listen)?;
    Some(listen)
}

/// Two doors at one address. Of the gRPC doors themselves their list has told.
fn refuse_shared_addresses(mapping: &Mapping<'_>, listen: &Listen) -> Option<()> {
    let grpc = listen.ext_authz.iter().map(|listener| ("ext_authz", listener.address.clone()));
    let http =
        listen.forward_auth.iter().map(|listener| ("forward_auth", BindAddress::Tcp(listener.address)));
    let admin = listen.admin.iter().map(|listener| ("admin", BindAddress::Tcp(listener.address)));
    let mut earlier: Vec<(&str, BindAddress)> = Vec::new();
    for (key, address) in grpc.chain(http).chain(admin) {
        if let Some((other, _)) = earlier.iter().find(|(_, known)| same_place(known, &address)) {
            return mapping.get(key)?.refuse(format!("an address of this door is one of `{other}` already"));
        }
        earlier.push((key, address));
    }
    Some(())
}

/// One gRPC door or a list of them.
fn read_grpc_listeners(cursor: &Cursor<'_>) -> Option<Vec<GrpcListener>> {
    if !cursor.is_list() {
        return Some(vec![read_grpc_listener(cursor)?]);
    }
    cursor.list("at least one address of the gRPC door is needed", read_grpc_listener, |one, other| {
        same_place(&one.address, &other.address)
    })
}

/// Whether the second of two cannot be bound. Port 0 is another one each time.
fn same_place(one: &BindAddress, other: &BindAddress) -> bool {
    match (one, other) {
        (BindAddress::Tcp(one), BindAddress::Tcp(other)) => one == other && one.port() != 0,
        (BindAddress::Unix { path: one, .. }, BindAddress::Unix { path: other, .. }) => one == other,
        _ => false,
    }
}

fn read_admin(cursor: &Cursor<'_>) -> Option<AdminListener> {
    if !cursor.is_mapping() {
        let address = read_socket_address(cursor, &cursor.text()?)?;
        return Some(AdminListener { address, tls: None, hosts: Vec::new() });
    }
    let mapping = cursor.mapping(&["address", "tls", "hosts"], &["allow_refresh"])?;
    let address = mapping
        .need("address", "where operators ask, `host:port`")
        .and_then(|cursor| read_socket_address(&cursor, &cursor.text()?));
    let tls = mapping.optional("tls", read_tls);
    let hosts = mapping.or("hosts", Vec::new(), |cursor| {
        let empty = "an empty list names no host: take the key out; an address and localhost always count";
        cursor.list(empty, read_host, |one, other| one == other)
    });
    Some(AdminListener { address: address?, tls: tls?, hosts: hosts? })
}

/// A host as a `Host` header names it, without its port.
fn read_host(cursor: &Cursor<'_>) -> Option<String> {
    let text = cursor.text()?;
    if is_address(&text) {
        return cursor.refuse("an address always counts: only names stand here");
    }
    if text != text.to_ascii_lowercase() {
        return cursor.refuse("write it in lower case, as it is compared");
    }
    if !is_host_name(&text) {
        return cursor
            .refuse("expected the name of a host without scheme, port, path or wildcard: ops.example.com");
    }
    Some(text)
}

fn is_address(text: &str) -> bool {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok()
}

/// Labels of letters, digits, `-` and `_`, joined by dots.
fn is_host_name(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    text.len() <= MAX_HOST_BYTES
        && text.split('.').all(|label| (1..=63).contains(&label.len()) && label.bytes().all(letter))
}

fn read_http_listener(cursor: &Cursor<'_>) -> Option<HttpListener> {
    let mapping = cursor.mapping(&["address", "profile", "client_headers", "tls"], &[])?;
    let address = mapping
        .need("address", "where the proxy asks, `host:port`")
        .and_then(|cursor| read_socket_address(&cursor, &cursor.text()?));
    let profile = mapping
        .need("profile", "the proxy that asks: nginx, haproxy, caddy, traefik or envoy")
        .and_then(|cursor| cursor.one_of(&Profile::NAMED));
    let client_headers = mapping.or("client_headers", ClaimHeaders::PerhapsKept, |cursor| {
        cursor.one_of(&[("overwrite", ClaimHeaders::Overwritten)])
    });
    let tls = mapping.optional("tls", read_tls);
    Some(HttpListener { address: address?, profile: profile?, client_headers: client_headers?, tls: tls? })
}

fn read_grpc_listener(cursor: &Cursor<'_>) -> Option<GrpcListener> {
    if !cursor.is_mapping() {
        return Some(GrpcListener { address: read_bind_address(cursor)?, tls: None });
    }
    let mapping = cursor.mapping(&["address", "tls", "mode"], &[])?;
    let address =
        mapping.need("address", "`host:port` or `unix:/path`").and_then(|cursor| read_bind_address(&cursor));
    let tls = mapping.optional("tls", read_tls);
    let mode = mapping.optional("mode", |cursor| read_mode(&cursor));
    let address = match (address?, mode?) {
        (BindAddress::Tcp(_), Some(_)) => {
            return mapping.get("mode")?.refuse("goes with a socket file, `unix:/path`, alone: take it out");
        }
        (BindAddress::Unix { path, .. }, mode) => BindAddress::Unix { path, mode },
        (address, None) => address,
    };
    Some(GrpcListener { address, tls: tls? })
}

fn read_bind_address(cursor: &Cursor<'_>) -> Option<BindAddress> {
    let text = cursor.text()?;
    match text.strip_prefix("unix:") {
        Some(path) if path.len() > MAX_SOCKET_PATH_BYTES || path.contains('\0') => cursor.refuse(format!(
            "a socket file's path has at most {MAX_SOCKET_PATH_BYTES} bytes, none of them NUL"
        )),
        Some(path) if path.starts_with('/') => {
            Some(BindAddress::Unix { path: PathBuf::from(path), mode: None })
        }
        Some(_) => {
            cursor.refuse("a socket file is named by its absolute path: unix:/run/portcullis/authz.sock")
        }
        None => read_socket_address(cursor, &text).map(BindAddress::Tcp),
    }
}

fn read_socket_address(cursor: &Cursor<'_>, text: &str) -> Option<SocketAddr> {
    match text.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            cursor.refuse("expected an IP address and a port: 0.0.0.0:9191, 127.0.0.1:9193 or [::]:9191")
        }
    }
}

fn read_mode(cursor: &Cursor<'_>) -> Option<u32> {
    match u32::from_str_radix(&cursor.text()?, 8) {
        Ok(mode) if mode <= 0o777 => Some(mode),
        _ => cursor.refuse("expected permission bits in octal: \"0660\""),
    }
}

fn read_tls(cursor: Cursor<'_>) -> Option<TlsFiles> {
    let mapping = cursor.mapping(&["cert_file", "key_file", "client_ca_file", "client_names"], &[])?;
    let cert_file = mapping.need("cert_file", "the certificate chain, PEM").and_then(|cursor| cursor.file());
    let key_file = mapping.need("key_file", "the private key, PEM").and_then(|cursor| cursor.file());
    let client_ca_file = mapping.optional("client_ca_file", |cursor| cursor.file());
    let client_names = read_client_names(&mapping);
    let files = TlsFiles {
        cert_file: cert_file?,
        key_file: key_file?,
        client_ca_file: client_ca_file?,
        client_names: client_names?,
    };
    cursor.note_listener(&files);
    Some(files)
}

fn read_client_names(tls: &Mapping<'_>) -> Option<Vec<String>> {
    let names = tls.or("client_names", Vec::new(), |cursor| {
        let empty = "an empty list lets no client in: take the key out to accept every name";
        cursor.list(empty, read_client_name, |one, other| one == other)
    })?;
    if !names.is_empty() && tls.get("client_ca_file").is_none() {
        return tls.get("client_names")?.refuse(
            "names count only in certificates of an authority that is trusted: add `client_ca_file`",
        );
    }
    Some(names)
}

/// A DNS name, in lower case, or a URI as it stands in the certificate.
fn read_client_name(cursor: &Cursor<'_>) -> Option<String> {
    let text = cursor.text()?;
    // `envoy.mesh:443` would be a URI too, of the scheme `envoy.mesh`, and is meant for none.
    let is_uri = text.contains("://") || text.starts_with("urn:");
    let clean = text.is_ascii() && !text.contains(char::is_whitespace);
    if is_uri && clean && Url::parse(&text).is_ok() {
        return Some(text);
    }
    if is_host_name(&text) && !is_address(&text) {
        return Some(text.to_ascii_lowercase());
    }
    cursor.refuse(
        "expected a DNS name without wildcard or a URI of the client's certificate: envoy.mesh or spiffe://example.org/envoy",
    )
}
