//! What a door hands in: one request that wants to pass, as it was sent.
//!
//! Everything is borrowed from the door's own buffers. Nothing here decides.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use http::HeaderName;

/// What a header holds besides its text, here and in a door's own list: six pointers and as many lengths.
const HEADER_OVERHEAD: usize = 96;

/// One request that wants to pass.
#[derive(Clone, Debug)]
pub struct AccessRequest<'a> {
    /// The method.
    pub method: &'a [u8],
    /// The host that it was sent to, with its port where it names one.
    pub host: &'a [u8],
    /// The request target with its query, as the proxy received it.
    pub path: &'a [u8],
    /// The request's headers.
    pub headers: Headers<'a>,
    /// When the door received it.
    pub arrived: Instant,
    /// How long the proxy waits for the answer, counted from the arrival; `None` where it does not say.
    pub timeout: Option<Duration>,
    /// The address of the client, as the proxy knows it; `None` where it does not say.
    pub source_address: Option<&'a str>,
    /// The identity that the client's certificate proves to the proxy; `None` where it does not say.
    pub source_principal: Option<&'a str>,
    /// The rule that the proxy's own configuration names for this request, where it names one.
    pub named_rule: Option<&'a [u8]>,
    /// Who says in headers of its own what the request is; `None` where the door has it at first hand.
    pub described_by: Option<IpAddr>,
    /// Why nobody can judge it, where the proxy did not say what the request is.
    pub flaw: Option<&'static str>,
    /// What it holds in memory while it waits, in bytes.
    pub held_bytes: usize,
    /// What the proxy can take away from the request before the upstream sees it.
    pub removal: Removal,
    /// What becomes of claim headers that the client itself sent.
    pub claim_headers: ClaimHeaders,
    /// The headers in which the proxy itself speaks to the door: it overwrites the client's.
    pub of_the_proxy: &'static [HeaderName],
}

impl<'a> AccessRequest<'a> {
    /// A request that arrived at this time, from a proxy that says no more than this and can take away what it is told.
    /// It holds these parts in memory and nothing else.
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
            flaw: None,
            removal: Removal::HeadersAndQuery,
            claim_headers: ClaimHeaders::Overwritten,
            of_the_proxy: &[],
        }
    }
}

/// What a proxy can take away from a request when it is told to.
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

/// What becomes of a claim header that the client itself sent and that the answer sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClaimHeaders {
    /// The answer's value takes its place.
    Overwritten,
    /// Only if the proxy's own configuration names that header, which the door cannot know.
    PerhapsKept,
}

/// What kind of client waits for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Any HTTP client.
    Http,
    /// A gRPC client: a proxy makes the gRPC status of the HTTP one.
    Grpc,
    /// A gRPC-Web client, to which the gRPC status is a header.
    GrpcWeb,
}

/// The headers of a request, in the order in which they came. Names are compared without their case.
#[derive(Clone, Debug, Default)]
pub struct Headers<'a>(Vec<(&'a [u8], &'a [u8])>);

impl<'a> Headers<'a> {
    /// The values of every header of this name, a lower-case one.
    pub fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'a [u8]> + use<'a, 's> {
        self.0
            .iter()
            .filter(move |(header, _)| header.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| *value)
    }

    /// The value of this header, a lower-case name; `None` where there is none or more than one.
    pub fn only<'s>(&'s self, name: &'s str) -> Option<&'a [u8]> {
        let mut values = self.all(name);
        let value = values.next()?;
        values.next().is_none().then_some(value)
    }

    /// Their names and values together, in bytes.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// What they hold in memory, in bytes.
    fn held_bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len() + HEADER_OVERHEAD).sum()
    }

    /// Whether there is not a single header.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every header's name and value as they were sent.
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

    /// When a request of a test arrived: that makes no difference.
    #[allow(clippy::disallowed_methods, reason = "there is no other way to have an instant")]
    pub(crate) fn arrived() -> Instant {
        Instant::now()
    }
}
