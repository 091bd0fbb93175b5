//! One serving loop for every listener: it accepts, speaks TLS and HTTP, holds the bounds that all of them have, and
//! drains. What is said is each `Door`'s; it knows none of them.
//!
//! # Bounds
//! - Open connections: `limits.connections`, and what the limit on open files leaves. Beyond, a connection that never had
//!   a request makes room, the oldest first, else one that was idle for 10 s, else one of the address that has most.
//! - Silence: 75 s before the first request, and 65 min between two over HTTP/1.1. Over HTTP/2 a ping each 60 s is to be
//!   answered within 20 s.
//! - 10 s for a TLS handshake, and for a preface, a frame or a header block from its first byte to its last.
//! - 30 to 60 s for an answer to be taken; above 20,000 requests in flight the connection with most of them is closed.
//! - Headers: 512, and 128 KiB of names and values; a request with more is answered 431. Over HTTP/1.1 a head of more than
//!   16 KiB ends its connection, which else would keep a buffer of that size.
//! - Bodies over HTTP/1.1, which nobody reads: up to 64 KiB are passed over, and a larger one ends its connection.
//! - Streams of one connection: `Door::max_streams`. Floods of CONTINUATION and of empty DATA end the connection (by h2), and
//!   so do those of other frames that are of no request, and of requests that cannot be answered. Requests that are cancelled
//!   are borne: a proxy's connection is that of all its clients.

mod accept;
mod connection;
mod descriptors;
mod framing;
mod socket;
mod state;
mod stream;
pub mod tls;

use std::future::Future;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::sync::watch;

use crate::clock::{self, Instant};
use crate::reason::DenyReason;
use crate::service::Service;
use crate::verdict::Verdict;

pub(crate) use accept::Listener;
pub use descriptors::raise_limit;
pub(crate) use descriptors::{Connections, for_connections};
pub use socket::BindError;
pub(crate) use socket::Socket;
pub(crate) use tls::{Alpn, Tls};

/// Streams that one connection may have open: waiting requests of a whole herd, and still a bound.
const MAX_STREAMS: u32 = 16_384;

/// Of one request, names and values together: the largest that a proxy's file in `deploy/` lets through.
const MAX_HEADER_BYTES: usize = 128 * 1024;
const MAX_HEADERS: usize = 512;

/// Of one request, its target and what HTTP itself needs beside the headers' names and values: the HTTP library reads no
/// more.
const MAX_HEAD_BYTES: usize = 2 * MAX_HEADER_BYTES;

/// An error of any kind, as HTTP libraries have them.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    /// Where the connection comes from; `None` over a socket file.
    pub(crate) address: Option<IpAddr>,
    /// Which connection it is, of all that this process has had.
    pub(crate) connection: u64,
}

/// What a listener says.
pub(crate) trait Door: Send + Sync + 'static {
    /// The body of an answer. The default is an empty one.
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + Default + Send + Unpin + 'static;

    /// The `door` label.
    fn name(&self) -> &'static str;

    /// Whether HTTP/1.1 is spoken beside HTTP/2, and answers have a date.
    fn speaks_http1(&self) -> bool {
        true
    }

    /// Whether its answers are decisions, and what it cannot answer is one too.
    fn decides(&self) -> bool {
        true
    }

    /// The service behind it.
    fn service(&self) -> &Service;

    /// Open connections at a time.
    fn max_connections(&self) -> usize {
        self.service().authorizer().limits().connections
    }

    /// Streams of HTTP/2 that one connection may have open.
    fn max_streams(&self) -> u32 {
        MAX_STREAMS
    }

    /// Answers a request of this peer.
    fn answer(
        &self,
        request: Request<Incoming>,
        peer: Peer,
    ) -> impl Future<Output = Response<Self::Body>> + Send;

    /// Whether a drain waits for the end of the answer, and a client has to take it. Not so where it has no end of its
    /// own.
    fn is_awaited(&self, _request: &Request<Incoming>) -> bool {
        true
    }
}

/// Counts requests that this door could not be asked as decisions, and logs it once in a while.
fn count_unread(door: &impl Door, requests: u64, rarely: &Rarely) {
    let (name, verdict) = (door.name(), Verdict::Deny(DenyReason::RequestMalformed));
    for _ in 0..requests {
        if door.decides() {
            door.service().metrics().decision(name, verdict.as_str(), verdict.reason(), "", Duration::ZERO);
        }
        if let Some(times) = rarely.due() {
            tracing::warn!(
                door = name,
                times,
                "requests were refused: malformed HTTP, or too many or too large headers"
            );
        }
    }
}

/// When listeners are to stop.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// When the sender says so, or is gone.
    pub(crate) fn new() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Waits for it.
    pub(crate) async fn asked_for(&mut self) {
        let _gone = self.0.wait_for(|stop| *stop).await;
    }
}

/// Says when something that may happen often is worth a line in the log.
#[derive(Debug, Default)]
pub(crate) struct Rarely(Mutex<(Option<Instant>, u64)>);

impl Rarely {
    /// How long it is silent after each.
    const PAUSE: Duration = Duration::from_secs(10);

    /// It has happened: how often since the last line, where another is due.
    pub(crate) fn due(&self) -> Option<u64> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (then, times) = &mut *last;
        *times = times.saturating_add(1);
        let now = clock::monotonic();
        if then.is_some_and(|then| now.saturating_duration_since(then) < Self::PAUSE) {
            return None;
        }
        *then = Some(now);
        Some(std::mem::take(times))
    }
}
