//! The bytes that a key server sends: a list of steps, after which the connection is closed. Answers are not validated.

use std::net::SocketAddr;

use portcullis::commands::issuer::SigningKey;
use serde_json::{Value, json};
use tokio::sync::watch;

/// One action of a server on a connection.
#[derive(Clone)]
pub enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends these bytes repeatedly until the client closes the connection.
    Repeat(Vec<u8>),
    /// Waits until the gate is open.
    Wait(Gate),
    /// Keeps the connection open without sending until the client closes it.
    KeepOpen,
    /// Tunnels the connection to this address.
    Tunnel(SocketAddr),
    /// Forwards the request to this address in origin form and returns the response.
    Relay(SocketAddr),
}

/// A gate that a test opens once for all current and later waiters.
#[derive(Clone)]
pub struct Gate(watch::Sender<bool>);

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Opens the gate.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    pub(super) async fn wait(&self) {
        let mut opened = self.0.subscribe();
        let _opened = opened.wait_for(|open| *open).await;
    }
}

/// An answer to one request.
#[derive(Clone)]
pub struct Answer {
    head: String,
    body: Vec<u8>,
    length: Length,
    steps: Vec<Step>,
}

/// How the end of the body is signalled.
#[derive(Clone, Copy, PartialEq)]
enum Length {
    ContentLength,
    Unspecified,
}

impl Answer {
    /// A status and no body.
    pub fn status(status: u16) -> Self {
        Self::with_status_line(&format!("HTTP/1.1 {status} Status"))
    }

    /// An answer with this status line.
    pub fn with_status_line(status_line: &str) -> Self {
        Self {
            head: format!("{status_line}\r\n"),
            body: Vec::new(),
            length: Length::ContentLength,
            steps: Vec::new(),
        }
    }

    /// A 200 with the JWK Set of these keys.
    pub fn keys(keys: &[&SigningKey]) -> Self {
        Self::status(200).header("content-type", "application/json").body(set_of(keys))
    }

    /// A redirect to this location.
    pub fn redirect(location: impl AsRef<str>) -> Self {
        Self::status(302).header("location", location)
    }

    /// A discovery document.
    pub fn document(issuer: &str, jwks_uri: impl Into<Value>) -> Self {
        let document = json!({"issuer": issuer, "jwks_uri": jwks_uri.into()});
        Self::status(200).body(document.to_string())
    }

    /// Only these steps, without HTTP.
    pub fn raw(steps: Vec<Step>) -> Self {
        Self { head: String::new(), body: Vec::new(), length: Length::Unspecified, steps }
    }

    /// Only these bytes.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self::raw(vec![Step::Send(bytes.into())])
    }

    /// With this header.
    pub fn header(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.head.push_str(&format!("{name}: {}\r\n", value.as_ref()));
        self
    }

    /// With these headers.
    pub fn headers(self, headers: &[(&str, &str)]) -> Self {
        headers.iter().fold(self, |answer, (name, value)| answer.header(name, value))
    }

    /// With this body and its `content-length` unless [`Self::without_length`] is called.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Without `content-length`: the body ends with the connection or is chunked.
    pub fn without_length(mut self) -> Self {
        self.length = Length::Unspecified;
        self
    }

    /// The body in chunks of this many bytes, followed by these trailers.
    pub fn chunked(mut self, size: usize, trailers: &str) -> Self {
        let mut body = Vec::new();
        for chunk in self.body.chunks(size) {
            body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            body.extend_from_slice(chunk);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
        self.body = body;
        self.without_length().header("transfer-encoding", "chunked")
    }

    /// Runs this step after the body.
    pub fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Sent once the gate is open.
    pub fn gated_by(self, gate: &Gate) -> Self {
        let mut steps = vec![Step::Wait(gate.clone())];
        steps.extend(self.into_steps());
        Self::raw(steps)
    }

    /// The status and the body, for HTTP/2.
    pub fn into_status_and_body(self) -> (u16, Vec<u8>) {
        let status = self.head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.expect("a status line with a status"), self.body)
    }

    /// The steps in order.
    pub fn into_steps(self) -> Vec<Step> {
        let Self { mut head, body, length, steps } = self;
        if head.is_empty() {
            return steps;
        }
        if length == Length::ContentLength {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let bytes = [head.into_bytes(), body].concat();
        std::iter::once(Step::Send(bytes)).chain(steps).collect()
    }
}

/// The JWK Set of these keys.
pub fn set_of(keys: &[&SigningKey]) -> String {
    let keys: Vec<Value> = keys.iter().map(|key| key.public_jwk()).collect();
    json!({ "keys": keys }).to_string()
}
