//! The gateway under test: an ext_authz service, asked as Envoy asks, or anything that takes HTTP requests.
//!
//! An answer over HTTP is its status. Once the head has come, nothing that becomes of the body changes the
//! outcome: whoever lets a forged token through and then cuts the body off has let it through.

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

/// How long a request waits for its answer: longer than any service should keep it waiting for keys.
const PATIENCE: Duration = Duration::from_secs(5);

/// Of an answer's body this much is read, so that its connection can be used again.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// And for so long.
const BODY_PATIENCE: Duration = Duration::from_millis(250);

/// Bodies that are read at a time. The connection of any other is closed.
const BODIES_AT_A_TIME: usize = 256;

/// Errors of this machine, by which nothing has reached the gateway: no descriptors, memory, ports or route, or
/// a firewall of its own.
const OURS: [Errno; 11] = [
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

/// What became of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The request passed.
    Allowed,
    /// It did not, with this status. A redirect is one: it is never followed.
    Refused(u16),
    /// Nobody answered, or not in time.
    NoAnswer(String),
    /// The drill could not send it, for a reason of its own machine.
    NotSent(String),
}

/// Where a gateway is, as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TargetUrl {
    /// An ext_authz service.
    Grpc(Authority),
    /// A gateway, with the path of the requests.
    Http(Uri),
}

impl TargetUrl {
    /// `grpc://HOST:PORT` or `http://HOST:PORT`; the latter is asked for `path`.
    ///
    /// # Errors
    /// It is neither.
    pub(super) fn parse(url: &str, path: &str) -> Result<Self, String> {
        // Neither is repeated: a URL may have a password, a path a token.
        let expected = || "--target: expected grpc://HOST:PORT or http://HOST:PORT".to_owned();
        let (scheme, authority) = url.trim_end_matches('/').split_once("://").ok_or_else(expected)?;
        let authority: Authority = authority.parse().map_err(|_| expected())?;
        let whole = !authority.host().is_empty()
            && authority.port_u16().is_some_and(|port| port > 0)
            && !authority.as_str().contains('@');
        match scheme {
            "grpc" if whole => Ok(Self::Grpc(authority)),
            "http" if whole => {
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

/// A gateway that can be asked about tokens.
pub(super) enum Target {
    /// An ext_authz service at this address, connected to when it is first asked.
    Grpc(String, OnceCell<CheckClient>),
    /// A gateway; 2xx is allowed.
    Http(HttpGateway),
}

/// A gateway that takes HTTP requests.
pub(super) struct HttpGateway {
    uri: Uri,
    client: Client<HttpConnector<Resolved>, Body>,
    bodies: Arc<Semaphore>,
}

impl Target {
    /// The gateway of this URL, whose name stands for these addresses as long as the drill takes: where there
    /// are no descriptors a lookup fails like one of a name that is gone.
    pub(super) fn new(url: &TargetUrl, addresses: Vec<SocketAddr>) -> Self {
        match url {
            TargetUrl::Grpc(authority) => Target::Grpc(authority.to_string(), OnceCell::new()),
            TargetUrl::Http(uri) => {
                let mut connector = HttpConnector::new_with_resolver(Resolved(addresses));
                connector.set_nodelay(true);
                let client = Client::builder(TokioExecutor::new()).build(connector);
                let bodies = Arc::new(Semaphore::new(BODIES_AT_A_TIME));
                Target::Http(HttpGateway { uri: uri.clone(), client, bodies })
            }
        }
    }

    /// An ext_authz service at this address.
    pub(super) fn grpc(address: SocketAddr) -> Self {
        Target::Grpc(address.to_string(), OnceCell::new())
    }

    /// Sends one request with this token, once.
    pub(super) async fn ask(&self, token: &str) -> Outcome {
        let bearer = format!("Bearer {token}");
        let asking = async {
            match self {
                Target::Grpc(address, client) => check(address, client, &bearer).await,
                Target::Http(gateway) => gateway.get(&bearer).await,
            }
        };
        match timeout(PATIENCE, asking).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::NoAnswer("no answer in time".to_owned()),
        }
    }
}

async fn check(address: &str, client: &OnceCell<CheckClient>, bearer: &str) -> Outcome {
    let answer = match client.get_or_try_init(|| CheckClient::connect(address)).await {
        Ok(client) => client.check(&[("authorization", bearer)], PATIENCE).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(answer) if answer.allowed => Outcome::Allowed,
        Ok(answer) => Outcome::Refused(answer.http_status),
        Err(error) => without_answer(error.os_error(), error.to_string()),
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
                self.read_rest(Body::new(response.into_body()));
                by_status(status)
            }
            Err(error) => without_answer(os_error(&error), told(&error)),
        }
    }

    /// Reads the body beside everything else, so that nobody waits for it.
    fn read_rest(&self, body: Body) {
        if body.is_end_stream() {
            return;
        }
        // Where there is no place the body is dropped, which closes its connection.
        if let Ok(place) = Arc::clone(&self.bodies).try_acquire_owned() {
            tokio::spawn(async move {
                // The outcome is known; what went wrong here closes the connection, and that is all.
                let _read = timeout(BODY_PATIENCE, to_bytes(body, MAX_BODY_BYTES)).await;
                drop(place);
            });
        }
    }
}

fn by_status(status: StatusCode) -> Outcome {
    if status.is_success() {
        return Outcome::Allowed;
    }
    // A last answer that promises another one, such as 101 to somebody who asked for no other protocol.
    if status.is_informational() {
        return Outcome::NoAnswer(format!("the answer ended with status {}", status.as_u16()));
    }
    Outcome::Refused(status.as_u16())
}

fn without_answer(os_error: Option<i32>, message: String) -> Outcome {
    let ours = os_error.is_some_and(|code| OURS.iter().any(|errno| errno.raw_os_error() == code));
    if ours { Outcome::NotSent(message) } else { Outcome::NoAnswer(message) }
}

/// An error with its causes.
fn told(error: &(dyn Error + 'static)) -> String {
    let chain = iter::successors(Some(error), |&error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The resolver of a name that was looked up before.
#[derive(Clone, Debug)]
pub(super) struct Resolved(Vec<SocketAddr>);

impl Service<Name> for Resolved {
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
