//! The doors by name, for commands that judge a request as one of them would.

use super::{Config, Profile};

/// Headers of the connection and of the body, with which proxies do not ask (RFC 9110, section 7.6.1).
pub const CONNECTION_HEADERS: [&str; 10] = [
    "connection",
    "proxy-connection",
    "keep-alive",
    "upgrade",
    "http2-settings",
    "te",
    "trailer",
    "transfer-encoding",
    "content-length",
    "expect",
];

/// A door, with the proxy in front of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoorKind {
    /// Envoy's ext_authz over gRPC.
    Grpc,
    /// HTTP, for the proxy of this profile.
    Http(Profile),
    /// The layer in a Rust service.
    Tower,
}

impl DoorKind {
    /// Every door by its name: the profiles have theirs, but for Envoy's, which is that of the gRPC door.
    pub fn named() -> impl Iterator<Item = (&'static str, DoorKind)> {
        let profiles = Profile::NAMED.into_iter().map(|(name, profile)| match profile {
            Profile::Envoy => ("envoy-http", DoorKind::Http(profile)),
            _ => (name, DoorKind::Http(profile)),
        });
        [("envoy", DoorKind::Grpc)].into_iter().chain(profiles).chain([("tower", DoorKind::Tower)])
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::named().find(|(_, door)| *door == self).map_or("", |(name, _)| name)
    }

    /// The door of this configuration, if no other is named: gRPC, unless only HTTP listeners are configured; then that
    /// of the first one.
    pub fn of(config: &Config) -> Self {
        let listen = &config.listen;
        match listen.forward_auth.first().filter(|_| listen.ext_authz.is_empty()) {
            Some(listener) => DoorKind::Http(listener.profile),
            None => DoorKind::Grpc,
        }
    }
}
