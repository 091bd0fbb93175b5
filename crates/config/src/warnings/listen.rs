//! Warnings about listeners.

use std::net::SocketAddr;

use crate::cursor::Cursor;
use crate::{BindAddress, Listen, TlsFiles};

/// Warnings about listeners that others can reach, and about addresses that cannot both be bound.
pub(in super::super) fn warn_of_listeners(listen: &Cursor<'_>, config: &Listen) {
    if config.ext_authz.is_empty() && config.forward_auth.is_empty() {
        listen.warn("there is no listener for a proxy: `serve` needs `ext_authz` or `forward_auth`");
    }
    let mut bound: Vec<(SocketAddr, &'static str)> = Vec::new();
    for listener in &config.ext_authz {
        let BindAddress::Tcp(address) = listener.address else { continue };
        if address.ip().is_unspecified() && !has_client_certificates(listener.tls.as_ref()) {
            warn_at(
                listen,
                "ext_authz",
                "every host that reaches this address can ask for decisions: bind an address that only the proxy reaches, or set `tls` with `client_ca_file`",
            );
        }
        bound.push((address, "ext_authz"));
    }
    bound.extend(config.forward_auth.iter().map(|listener| (listener.address, "forward_auth")));
    if let Some(admin) = &config.admin {
        if admin.address.ip().is_unspecified() && !has_client_certificates(admin.tls.as_ref()) {
            warn_at(
                listen,
                "admin",
                "every host that reaches this address can read the configuration and the metrics: bind 127.0.0.1, or set `tls` with `client_ca_file`",
            );
        }
        bound.push((admin.address, "admin"));
    }
    for (at, (address, key)) in bound.iter().enumerate() {
        let mut earlier = bound.iter().take(at);
        if let Some((other, other_key)) = earlier.find(|(other, _)| overlap(*other, *address)) {
            warn_at(
                listen,
                key,
                &format!("{address} and {other} of `{other_key}` cannot both be bound: use another port"),
            );
        }
    }
}

fn warn_at(listen: &Cursor<'_>, key: &str, message: &str) {
    listen.peek(key).as_ref().unwrap_or(listen).warn(message);
}

fn has_client_certificates(tls: Option<&TlsFiles>) -> bool {
    tls.is_some_and(|tls| tls.client_ca_file.is_some())
}

/// Whether one of two different addresses is every address of the machine, with the same port.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |all: SocketAddr, other: SocketAddr| {
        // An IPv6 listener for every address accepts IPv4 connections, too.
        all.ip().is_unspecified() && (all.is_ipv6() || other.is_ipv4())
    };
    one.port() == other.port()
        && one.port() != 0
        && one != other
        && (covers(one, other) || covers(other, one))
}
