//! The input of a decision: one request, as the client sent it.
//!
//! All data is borrowed from the buffers of the door. This module decides nothing.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use http::HeaderName;

/// The memory that a header takes besides its text, here and in the list of a door: six pointers and six lengths.
const HEADER_OVERHEAD: usize = 96;

/// One request to authorize.
#[derive(Clone, Debug)]
pub struct AccessRequest<'a> {
    /// The method.
    pub method: &'a [u8],
    /// The host of the request, with its port if it has one.
    pub host: &'a [u8],
    /// The request target with its query, as the proxy received it.
    pub path: &'a [u8],
    /// The request's headers.
    pub headers: Headers<'a>,
    /// When the door received it.
    pub arrived: Instant,
    /// How long the proxy waits for the answer, counted from the arrival; `None` if unknown.
    pub timeout: Option<Duration>,
    /// The address of the client, as the proxy reports it; `None` if unknown.
    pub source_address: Option<&'a str>,
    /// The identity in the client's certificate, as the proxy reports it; `None` if unknown.
    pub source_principal: Option<&'a str>,
    /// The rule that the proxy's own configuration names for this request, if any.
    pub named_rule: Option<&'a [u8]>,
    /// The peer that describes the request in headers of its own; `None` if the door received the request itself.
    pub described_by: Option<IpAddr>,
    /// Why the request cannot be evaluated, if the proxy did not describe it completely.
    pub description_error: Option<&'static str>,
    /// The memory that the request takes while it waits, in bytes.
    pub held_bytes: usize,
    /// What the proxy can remove from the request before it forwards it.
    pub removal: Removal,
    /// What the proxy does with claim headers that the client sent.
    pub claim_headers: ClaimHeaders,
    /// The headers that the proxy itself sets for the door: it overwrites the client's.
    pub set_by_proxy: &'static [HeaderName],
}

impl<'a> AccessRequest<'a> {
    /// A request that arrived at this time, from a proxy that reports nothing else and can remove headers and query
    /// parameters. It holds these parts in memory and nothing else.
    pub fn new(
        method: &'a [u8],
        host: &'a [u8],
        path: &'a [u8],
        headers: Headers<'a>,
        arrived: Instant,
    ) -> Self {
        let held_bytes = method.len() + host.len() + path.len() + headers.held_bytes();
        Self {
            method,
            host,
            path,
            headers,
            held_bytes,
            arrived,
            timeout: None,
            source_address: None,
            source_principal: None,
            named_rule: None,
            described_by: None,
            description_error: None,
            removal: Removal::HeadersAndQuery,
            claim_headers: ClaimHeaders::Overwritten,
            set_by_proxy: &[],
        }
    }
}

/// What a proxy can remove from a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Removal {
    /// Headers of any name, and query parameters: Envoy over gRPC.
    HeadersAndQuery,
    /// Headers of any name: Envoy over HTTP.
    Headers,
    /// The headers that its own configuration names, and no others.
    NamedHeaders,
}

/// What the proxy does with a claim header that the client sent and that the answer sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClaimHeaders {
    /// The answer's value replaces it.
    Overwritten,
    /// It is replaced only if the proxy's own configuration names the header, which the door cannot know.
    MaybeKept,
}

/// What kind of client waits for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Any client that is not gRPC.
    Http,
    /// A gRPC client: the proxy derives the gRPC status from the HTTP status.
    Grpc,
    /// A gRPC-Web client, which reads the gRPC status from a header.
    GrpcWeb,
}

/// The headers of a request, in the order of arrival. Names are compared without regard to case.
#[derive(Clone, Debug, Default)]
pub struct Headers<'a>(Vec<(&'a [u8], &'a [u8])>);

impl<'a> Headers<'a> {
    /// The values of every header of this name, which is in lower case.
    pub fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'a [u8]> + use<'a, 's> {
        self.0
            .iter()
            .filter(move |(header, _)| header.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| *value)
    }

    /// The value of this header, whose name is in lower case; `None` if it is absent or repeated.
    pub fn only<'s>(&'s self, name: &'s str) -> Option<&'a [u8]> {
        let mut values = self.all(name);
        let value = values.next()?;
        values.next().is_none().then_some(value)
    }

    /// The size of all names and values, in bytes.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// The memory that they take, in bytes.
    fn held_bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len() + HEADER_OVERHEAD).sum()
    }

    /// Whether there are no headers.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name and value of every header, as they were sent.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + '_ {
        self.0.iter().copied()
    }

    /// What kind of client sent them.
    pub fn caller(&self) -> Caller {
        const GRPC: &[u8] = b"application/grpc";
        let subtype = self.all("content-type").find_map(|value| {
            let (grpc, rest) = value.split_at_checked(GRPC.len())?;
            grpc.eq_ignore_ascii_case(GRPC).then_some(rest)
        });
        match subtype {
            None => Caller::Http,
            Some(rest) if rest.get(..4).is_some_and(|rest| rest.eq_ignore_ascii_case(b"-web")) => {
                Caller::GrpcWeb
            }
            Some(_) => Caller::Grpc,
        }
    }
}

impl<'a> FromIterator<(&'a [u8], &'a [u8])> for Headers<'a> {
    fn from_iter<I: IntoIterator<Item = (&'a [u8], &'a [u8])>>(headers: I) -> Self {
        Self(headers.into_iter().collect())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::Instant;

    /// The arrival time of a test's request; no test depends on it.
    #[allow(clippy::disallowed_methods, reason = "there is no other way to have an instant")]
    pub(crate) fn arrived() -> Instant {
        Instant::now()
    }
}
