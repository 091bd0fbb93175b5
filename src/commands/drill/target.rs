//! The gateway under test: an ext_authz service, asked as Envoy asks, or anything that takes HTTP requests.

use std::fmt;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::AUTHORIZATION;
use axum::http::{Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::ext_authz::client::CheckClient;

/// How long a request waits for its answer: longer than any service should keep it waiting for keys.
const PATIENCE: Duration = Duration::from_secs(5);

/// Of an answer's body this much is read, so that its connection can be used again.
const MAX_BODY_BYTES: usize = 1 << 20;

/// What became of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The request passed.
    Allowed,
    /// It did not, with this status.
    Refused(u16),
    /// Nobody answered, or not in time.
    NoAnswer(String),
}

/// A gateway that can be asked about tokens.
pub(super) enum Target {
    /// An ext_authz service at this address, connected to when it is first asked.
    Grpc(String, OnceCell<CheckClient>),
    /// A gateway; 2xx is allowed.
    Http(Uri, Client<HttpConnector, Body>),
}

impl Target {
    /// An ext_authz service.
    pub(super) fn grpc(address: impl fmt::Display) -> Self {
        Target::Grpc(address.to_string(), OnceCell::new())
    }

    /// `grpc://HOST:PORT` or `http://HOST:PORT`; the latter is asked for `path`.
    ///
    /// # Errors
    /// It is neither.
    pub(super) fn parse(url: &str, path: &str) -> Result<Self, String> {
        let expected = || format!("--target {url}: expected grpc://HOST:PORT or http://HOST:PORT");
        let (scheme, authority) = url.trim_end_matches('/').split_once("://").ok_or_else(expected)?;
        let has_port = authority.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok() && !authority.contains(['/', '@', '?', '#'])
        });
        match scheme {
            "grpc" if has_port => Ok(Target::grpc(authority)),
            "http" if has_port => {
                let uri = Uri::builder().scheme("http").authority(authority).path_and_query(path).build();
                let uri = uri.map_err(|error| format!("--path {path}: {error}"))?;
                let mut connector = HttpConnector::new();
                connector.set_nodelay(true);
                Ok(Target::Http(uri, Client::builder(TokioExecutor::new()).build(connector)))
            }
            _ => Err(expected()),
        }
    }

    /// Sends one request with this token, once.
    pub(super) async fn ask(&self, token: &str) -> Outcome {
        match timeout(PATIENCE, self.ask_patiently(token)).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::NoAnswer("no answer in time".to_owned()),
        }
    }

    async fn ask_patiently(&self, token: &str) -> Outcome {
        let bearer = format!("Bearer {token}");
        match self {
            Target::Grpc(address, client) => {
                let client = match client.get_or_try_init(|| CheckClient::connect(address)).await {
                    Ok(client) => client,
                    Err(error) => return Outcome::NoAnswer(error.to_string()),
                };
                match client.check(&[("authorization", &bearer)], PATIENCE).await {
                    Ok(answer) if answer.allowed => Outcome::Allowed,
                    Ok(answer) => Outcome::Refused(answer.http_status),
                    Err(error) => Outcome::NoAnswer(error.to_string()),
                }
            }
            Target::Http(uri, client) => match get(client, uri, &bearer).await {
                Ok(status) if status.is_success() => Outcome::Allowed,
                Ok(status) => Outcome::Refused(status.as_u16()),
                Err(error) => Outcome::NoAnswer(error.to_string()),
            },
        }
    }
}

async fn get(
    client: &Client<HttpConnector, Body>,
    uri: &Uri,
    bearer: &str,
) -> Result<StatusCode, Box<dyn std::error::Error + Send + Sync>> {
    let request = Request::get(uri.clone()).header(AUTHORIZATION, bearer).body(Body::empty())?;
    let response = client.request(request).await?;
    let status = response.status();
    axum::body::to_bytes(Body::new(response.into_body()), MAX_BODY_BYTES).await?;
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_target_is_a_scheme_a_host_and_a_port() {
        for good in ["grpc://127.0.0.1:9191", "http://localhost:80", "http://[::1]:80/"] {
            assert!(Target::parse(good, "/orders?a=b").is_ok(), "{good}");
        }
        for bad in [
            "",
            "127.0.0.1:9191",
            "https://h:443",
            "grpc://h",
            "grpc://:1",
            "http://h:99999",
            "http://u:p@h:80",
            "http://h:80/x",
        ] {
            let error = Target::parse(bad, "/").err().unwrap_or_else(|| panic!("accepted {bad}"));
            assert!(error.contains("expected grpc://"), "{error}");
        }
        assert!(Target::parse("http://h:80", "no path").is_err());
    }
}
