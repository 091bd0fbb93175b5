//! What a key server sends, byte for byte: a list of steps that is played to the end, after which the
//! connection is closed. It knows nothing of what is right.

use std::net::SocketAddr;

use portcullis::commands::issuer::SigningKey;
use serde_json::{Value, json};
use tokio::sync::watch;

/// One thing that a server does on a connection.
#[derive(Clone)]
pub enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends these bytes over and over, until the client has gone.
    Forever(Vec<u8>),
    /// Waits until it is opened by hand.
    Wait(Gate),
    /// Keeps the connection open, silent, until the client has gone.
    Stay,
    /// Joins the connection to this address, both ways.
    Tunnel(SocketAddr),
    /// Sends the request on to this address, as if it had been asked there, and what comes back.
    Relay(SocketAddr),
}

/// A door that is opened by hand, once, for all who wait and who come.
#[derive(Clone)]
pub struct Gate(watch::Sender<bool>);

impl Gate {
    /// Shut.
    pub fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Lets everybody through.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    pub(super) async fn pass(&self) {
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

/// How the end of the body is told.
#[derive(Clone, Copy, PartialEq)]
enum Length {
    Counted,
    Unsaid,
}

impl Answer {
    /// A status and no body.
    pub fn status(status: u16) -> Self {
        Self::begins(&format!("HTTP/1.1 {status} Told"))
    }

    /// This status line.
    pub fn begins(status_line: &str) -> Self {
        Self {
            head: format!("{status_line}\r\n"),
            body: Vec::new(),
            length: Length::Counted,
            steps: Vec::new(),
        }
    }

    /// A good answer with the public halves of these keys.
    pub fn keys(keys: &[&SigningKey]) -> Self {
        Self::status(200).header("content-type", "application/json").body(set_of(keys))
    }

    /// A redirect to there.
    pub fn to(location: impl AsRef<str>) -> Self {
        Self::status(302).header("location", location)
    }

    /// A discovery document.
    pub fn document(issuer: &str, jwks_uri: impl Into<Value>) -> Self {
        let document = json!({"issuer": issuer, "jwks_uri": jwks_uri.into()});
        Self::status(200).body(document.to_string())
    }

    /// Nothing of HTTP's own: these steps alone.
    pub fn raw(steps: Vec<Step>) -> Self {
        Self { head: String::new(), body: Vec::new(), length: Length::Unsaid, steps }
    }

    /// These bytes alone.
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

    /// With this body, and its length unless it is said otherwise.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Without a length: the body ends with the connection, or says itself where it ends.
    pub fn without_length(mut self) -> Self {
        self.length = Length::Unsaid;
        self
    }

    /// The body in chunks of this many bytes, and these lines behind the last one.
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

    /// What is done behind the body.
    pub fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Held back until the gate is opened.
    pub fn behind(self, gate: &Gate) -> Self {
        let mut steps = vec![Step::Wait(gate.clone())];
        steps.extend(self.into_steps());
        Self::raw(steps)
    }

    /// What of it can be said in HTTP/2 as well.
    pub fn into_status_and_body(self) -> (u16, Vec<u8>) {
        let status = self.head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.expect("a status line with a status"), self.body)
    }

    /// In the order in which they are done.
    pub fn into_steps(self) -> Vec<Step> {
        let Self { mut head, body, length, steps } = self;
        if head.is_empty() {
            return steps;
        }
        if length == Length::Counted {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let whole = [head.into_bytes(), body].concat();
        std::iter::once(Step::Send(whole)).chain(steps).collect()
    }
}

/// The JWK Set of these keys.
pub fn set_of(keys: &[&SigningKey]) -> String {
    let keys: Vec<Value> = keys.iter().map(|key| key.public_jwk()).collect();
    json!({ "keys": keys }).to_string()
}
