//! The gateway under test: an ext_authz service, called as Envoy does, or an HTTP server.
//!
//! The outcome of an HTTP request is the status of its response. The body does not change it: a gateway that lets a
//! forged token through and then aborts the body has let it through.

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::error::Error;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{iter, vec};

use axum::body::{Body, HttpBody, to_bytes};
use axum::http::header::AUTHORIZATION;
use axum::http::uri::Authority;
use axum::http::{Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;
use rustix::io::Errno;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::timeout;
use tower::Service;

use crate::ext_authz::client::{CheckClient, os_error};

/// The timeout of a request, longer than any service should wait for keys.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How much of a response body is read so that its connection can be reused.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// The timeout of reading a response body.
const BODY_TIMEOUT: Duration = Duration::from_millis(250);

/// The maximum number of bodies that are read concurrently. The connection of any other is closed.
const MAX_BODIES: usize = 256;

/// Local errors, with which nothing reaches the gateway: no descriptors, memory, ports or route, or a local firewall.
const LOCAL_ERRORS: [Errno; 11] = [
    Errno::MFILE,
    Errno::NFILE,
    Errno::NOMEM,
    Errno::NOBUFS,
    Errno::ADDRNOTAVAIL,
    Errno::ADDRINUSE,
    Errno::AGAIN,
    Errno::ACCESS,
    Errno::PERM,
    Errno::NETDOWN,
    Errno::NETUNREACH,
];

/// The outcome of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The request was allowed.
    Allowed,
    /// The request was refused with this status. A redirect is one; it is never followed.
    Refused(u16),
    /// There was no response in time.
    NoResponse(String),
    /// The token could not be sent because of a local error.
    NotSent(String),
}

/// The URL of a gateway on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TargetUrl {
    /// An ext_authz service.
    Grpc(Authority),
    /// An HTTP gateway, with the path of the requests.
    Http(Uri),
}

impl TargetUrl {
    /// Parses `grpc://HOST:PORT` or `http://HOST:PORT`; requests to the latter have this path.
    ///
    /// # Errors
    /// It is neither.
    pub(super) fn parse(url: &str, path: &str) -> Result<Self, String> {
        // The values are not repeated: a URL may contain a password, a path a token.
        let expected = || "--target: expected grpc://HOST:PORT or http://HOST:PORT".to_owned();
        let (scheme, authority) = url.trim_end_matches('/').split_once("://").ok_or_else(expected)?;
        let authority: Authority = authority.parse().map_err(|_| expected())?;
        let is_valid = !authority.host().is_empty()
            && authority.port_u16().is_some_and(|port| port > 0)
            && !authority.as_str().contains('@');
        match scheme {
            "grpc" if is_valid => Ok(Self::Grpc(authority)),
            "http" if is_valid => {
                let uri = Uri::builder().scheme("http").authority(authority).path_and_query(path).build();
                Ok(Self::Http(uri.map_err(|error| format!("--path: {error}"))?))
            }
            _ => Err(expected()),
        }
    }

    /// `HOST:PORT`.
    pub(super) fn authority(&self) -> &str {
        match self {
            Self::Grpc(authority) => authority.as_str(),
            Self::Http(uri) => uri.authority().map_or("", Authority::as_str),
        }
    }
}

/// A gateway that receives tokens.
pub(super) enum Target {
    /// An ext_authz service at this address, connected on first use.
    Grpc(String, OnceCell<CheckClient>),
    /// An HTTP gateway; 2xx means allowed.
    Http(HttpGateway),
}

/// An HTTP gateway.
pub(super) struct HttpGateway {
    uri: Uri,
    client: Client<HttpConnector<FixedResolver>, Body>,
    bodies: Arc<Semaphore>,
}

impl Target {
    /// The gateway of this URL, whose name is resolved to these addresses for the whole drill, because without
    /// descriptors a lookup fails like one of a missing name.
    pub(super) fn new(url: &TargetUrl, addresses: Vec<SocketAddr>) -> Self {
        match url {
            TargetUrl::Grpc(authority) => Target::Grpc(authority.to_string(), OnceCell::new()),
            TargetUrl::Http(uri) => {
                let mut connector = HttpConnector::new_with_resolver(FixedResolver(addresses));
                connector.set_nodelay(true);
                let client = Client::builder(TokioExecutor::new()).build(connector);
                let bodies = Arc::new(Semaphore::new(MAX_BODIES));
                Target::Http(HttpGateway { uri: uri.clone(), client, bodies })
            }
        }
    }

    /// An ext_authz service at this address.
    pub(super) fn grpc(address: SocketAddr) -> Self {
        Target::Grpc(address.to_string(), OnceCell::new())
    }

    /// Sends one request with this token, once.
    pub(super) async fn send(&self, token: &str) -> Outcome {
        let bearer = format!("Bearer {token}");
        let request = async {
            match self {
                Target::Grpc(address, client) => check(address, client, &bearer).await,
                Target::Http(gateway) => gateway.get(&bearer).await,
            }
        };
        match timeout(REQUEST_TIMEOUT, request).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::NoResponse("no response in time".to_owned()),
        }
    }
}

async fn check(address: &str, client: &OnceCell<CheckClient>, bearer: &str) -> Outcome {
    let answer = match client.get_or_try_init(|| CheckClient::connect(address)).await {
        Ok(client) => client.check(&[("authorization", bearer)], REQUEST_TIMEOUT).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(answer) if answer.allowed => Outcome::Allowed,
        Ok(answer) => Outcome::Refused(answer.http_status),
        Err(error) => failure(error.os_error(), error.to_string()),
    }
}

impl HttpGateway {
    async fn get(&self, bearer: &str) -> Outcome {
        let request = Request::get(self.uri.clone()).header(AUTHORIZATION, bearer).body(Body::empty());
        let request = match request {
            Ok(request) => request,
            Err(error) => return Outcome::NotSent(error.to_string()),
        };
        match self.client.request(request).await {
            Ok(response) => {
                let status = response.status();
                self.discard_body(Body::new(response.into_body()));
                by_status(status)
            }
            Err(error) => failure(os_error(&error), error_chain(&error)),
        }
    }

    /// Reads the body in the background.
    fn discard_body(&self, body: Body) {
        if body.is_end_stream() {
            return;
        }
        // Without a permit the body is dropped, which closes its connection.
        if let Ok(permit) = Arc::clone(&self.bodies).try_acquire_owned() {
            tokio::spawn(async move {
                // The outcome is known; an error here only closes the connection.
                let _read = timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY_BYTES)).await;
                drop(permit);
            });
        }
    }
}

fn by_status(status: StatusCode) -> Outcome {
    if status.is_success() {
        return Outcome::Allowed;
    }
    // An informational response without a final one, such as an unrequested 101.
    if status.is_informational() {
        return Outcome::NoResponse(format!("the response ended with status {}", status.as_u16()));
    }
    Outcome::Refused(status.as_u16())
}

fn failure(os_error: Option<i32>, message: String) -> Outcome {
    let is_local = os_error.is_some_and(|code| LOCAL_ERRORS.iter().any(|errno| errno.raw_os_error() == code));
    if is_local { Outcome::NotSent(message) } else { Outcome::NoResponse(message) }
}

/// An error with its sources.
fn error_chain(error: &(dyn Error + 'static)) -> String {
    let chain = iter::successors(Some(error), |&error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A resolver that returns fixed addresses.
#[derive(Clone, Debug)]
pub(super) struct FixedResolver(Vec<SocketAddr>);

impl Service<Name> for FixedResolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _name: Name) -> Self::Future {
        ready(Ok(self.0.clone().into_iter()))
    }
}
