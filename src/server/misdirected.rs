//! Connections and requests that belong to another listener, or to none: what arrived, and what to change. They are only
//! logged: nothing here has an influence on a response.

use std::net::IpAddr;

use super::LogSampler;
use super::protocol::Protocol;
use crate::service::Service;

/// What arrived at a listener by mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Misdirected {
    /// What arrived.
    pub(crate) found: &'static str,
    /// What to change.
    pub(crate) hint: &'static str,
}

impl Misdirected {
    /// HTTP that is no gRPC call, at a listener for gRPC alone.
    pub(crate) const HTTP_FOR_GRPC: Self = Self {
        found: "an HTTP request that is no gRPC call",
        hint: "listen.ext_authz serves Envoy's gRPC alone: send the requests of other proxies to a listener of \
               listen.forward_auth with the proxy's profile",
    };

    /// What is wrong with a connection that begins with this protocol; `None` if the listener serves it.
    pub(super) fn connection(protocol: Protocol, serves_http1: bool) -> Option<Self> {
        Some(match protocol {
            Protocol::Http1 if serves_http1 => return None,
            Protocol::Http1 => Self {
                found: "HTTP/1.1",
                hint: "listen.ext_authz serves Envoy's gRPC alone, over HTTP/2: send the requests of other proxies to a \
                       listener of listen.forward_auth with the proxy's profile; in Envoy's cluster set \
                       http2_protocol_options",
            },
            Protocol::Tls => Self {
                found: "TLS",
                hint: "this listener has no TLS: have the proxy connect without it, or set `tls` of the listener",
            },
            Protocol::Proxy => Self {
                found: "the PROXY protocol",
                hint: "have the proxy connect without it: no listener reads it",
            },
            Protocol::Unknown => Self {
                found: "bytes that are neither HTTP nor TLS",
                hint: "check which program connects to this address",
            },
        })
    }

    /// Logs a sample of what arrived at this door.
    pub(crate) fn log(
        self,
        door: &'static str,
        service: &Service,
        peer: Option<IpAddr>,
        sampler: &LogSampler,
    ) {
        if let Some(times) = sampler.sample() {
            let Self { found, hint } = self;
            let hint = service.places().with_lines(hint);
            let peer = peer.map(tracing::field::display);
            tracing::warn!(door, peer, found, hint, times, "request at the wrong listener");
        }
    }
}
