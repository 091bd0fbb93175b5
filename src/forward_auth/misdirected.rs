//! Requests at an HTTP door that a proxy of another kind sends, for the log alone: the decision reads only what the profile
//! says.

use http::Request;

use crate::config::Profile;
use crate::misdirected::{Dialect, is_check};
use crate::server::Misdirected;

/// What is wrong with a request of another kind of proxy. Behind Envoy and proxies that describe the client's request only in
/// part, a client can send what is recognized here.
pub(super) fn of<B>(profile: Profile, request: &Request<B>) -> Option<Misdirected> {
    if is_check(request) {
        return Some(Misdirected {
            found: "Envoy's gRPC Check",
            hint: "listen.forward_auth serves HTTP alone: have Envoy ask listen.ext_authz, or configure http_service in its \
                   filter and `profile: envoy` here",
        });
    }
    match (Dialect::of(request.headers())?, profile) {
        (Dialect::Original, Profile::Nginx | Profile::IngressNginx) => None,
        (Dialect::Forwarded, Profile::Haproxy | Profile::Caddy | Profile::Traefik) => None,
        (Dialect::Original, _) => Some(Misdirected {
            found: "X-Original-* headers, as NGINX sends them",
            hint: "this listener of listen.forward_auth has the profile of another proxy: set `profile: nginx` or ingress-nginx, or configure \
                   the proxy as in deploy/",
        }),
        (Dialect::Forwarded, _) => Some(Misdirected {
            found: "X-Forwarded-Method or X-Forwarded-Uri, as HAProxy, Caddy and Traefik send them",
            hint: "this listener of listen.forward_auth has the profile of another proxy: set that of the proxy that asks, \
                   or configure the proxy as in deploy/",
        }),
    }
}
