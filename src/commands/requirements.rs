//! What a configuration requires of the proxy in front of an HTTP door, whichever proxy it is: `validate` lists it, and
//! `recipe` prints the proxy's file that does it.

use http::HeaderName;

use crate::config::Config;
use crate::protected_headers::ProtectedHeaders;
use crate::validation::provider::TokenSource;

/// The headers that the decisions of this configuration protect.
pub(super) fn protected_headers(config: &Config) -> ProtectedHeaders {
    let providers = config.providers.iter().map(|config| &*config.provider);
    ProtectedHeaders::new(providers, &config.rules, &config.trusted_headers)
}

/// The places of tokens that the upstream must not get (`forward_token: false`).
#[derive(Debug, Default)]
pub(super) struct RemovedTokens<'a> {
    /// These headers are removed.
    pub(super) headers: Vec<&'a HeaderName>,
    /// What remains of these headers is in the authorization response.
    pub(super) rewritten: Vec<Rewritten>,
    /// No HTTP door can have these query parameters removed: it denies the request.
    pub(super) queries: Vec<&'a str>,
}

impl<'a> RemovedTokens<'a> {
    pub(super) fn of(protected: &'a ProtectedHeaders) -> Self {
        let mut removed = Self::default();
        for source in protected.not_forwarded() {
            match source {
                TokenSource::Header { name, .. } if removed.headers.contains(&name) => {}
                TokenSource::Header { name, .. } => removed.headers.push(name),
                TokenSource::Cookie(_) => removed.rewrite(Rewritten::Cookies),
                TokenSource::WebSocketProtocol(_) => removed.rewrite(Rewritten::Protocols),
                TokenSource::Query(name) => removed.queries.push(name),
            }
        }
        removed
    }

    fn rewrite(&mut self, header: Rewritten) {
        if !self.rewritten.contains(&header) {
            self.rewritten.push(header);
        }
    }
}

/// A header of which a token is only a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rewritten {
    Cookies,
    Protocols,
}

impl Rewritten {
    /// The header's name.
    pub(super) fn header(self) -> &'static str {
        match self {
            Self::Cookies => "Cookie",
            Self::Protocols => "Sec-WebSocket-Protocol",
        }
    }

    /// What remains of it.
    pub(super) fn remainder(self) -> &'static str {
        match self {
            Self::Cookies => "The cookies without the token.",
            Self::Protocols => "The protocols of a WebSocket without the token.",
        }
    }
}
