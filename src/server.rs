//! The serving loop of every listener: it accepts connections, terminates TLS, serves HTTP, enforces the common limits
//! and drains. Each listener's `Door` produces the responses; the server depends on no door. Listeners for HTTP/2 only are
//! served with h2 alone, because hyper's task for each request costs as much as a Check; the others with hyper.
//!
//! # Bounds
//! - Open connections: `limits.connections`, and what the limit on open files leaves. At the limit one kind of
//!   connection is closed, in this order: those that have had no request yet (oldest first), one that has been idle for
//!   10 s, one of the address with the most connections.
//! - Idle time: 75 s before the first request, and 65 min between two requests over HTTP/1.1. Over HTTP/2 a ping is
//!   sent every 60 s and must be acknowledged within 20 s.
//! - 10 s for a TLS handshake, and for a preface, a frame or a header block from its first byte to its last.
//! - 30 to 60 s for a client to read a response. Above 20,000 requests in flight the connection with the most of them
//!   is closed.
//! - Headers: 512 headers, and 128 KiB of names and values; a larger request gets status 431. Over HTTP/1.1 a head of
//!   more than 16 KiB closes the connection, which would otherwise keep a buffer of that size.
//! - Bodies over HTTP/1.1, which are never read: up to 64 KiB are discarded; a larger one closes the connection.
//! - Streams per connection: `Door::max_streams`. Floods of CONTINUATION and of empty DATA frames close the connection
//!   (in h2); so do floods of other frames that belong to no request, of settings, and of requests that cannot be
//!   answered. Cancelled requests do not count: a proxy's connection carries the requests of all its clients.

mod accept;
mod body;
mod connection;
mod descriptors;
mod driver;
mod framing;
mod http1_or_2;
mod http2;
mod limits;
mod misdirected;
mod protocol;
mod respond;
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
use tokio::sync::watch;

use crate::clock::{self, Instant};
use crate::reason::DenyReason;
use crate::service::Service;
use crate::verdict::Verdict;

pub(crate) use accept::Listener;
pub(crate) use body::RequestBody;
pub use descriptors::raise_limit;
pub(crate) use descriptors::{Connections, for_connections};
pub(crate) use misdirected::Misdirected;
pub use socket::BindError;
pub(crate) use socket::Socket;
pub(crate) use tls::{Alpn, Tls};

/// Concurrent HTTP/2 streams per connection: enough for every request that waits for newer keys.
const MAX_STREAMS: u32 = 16_384;

/// The boxed error type of the HTTP libraries.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The client of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    /// The remote address of the connection; `None` for a Unix socket.
    pub(crate) address: Option<IpAddr>,
    /// The number of the connection, unique within this process.
    pub(crate) connection: u64,
}

/// The request handler of a listener.
pub(crate) trait Door: Send + Sync + 'static {
    /// The body of a response. The default is an empty one.
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + Default + Send + Unpin + 'static;

    /// The `door` label.
    fn name(&self) -> &'static str;

    /// Whether HTTP/1.1 is served as well as HTTP/2, and responses have a `Date` header.
    fn speaks_http1(&self) -> bool {
        true
    }

    /// Whether its responses are decisions; rejected requests are then counted as decisions too.
    fn decides(&self) -> bool {
        true
    }

    /// The service that it serves.
    fn service(&self) -> &Service;

    /// The maximum number of open connections.
    fn max_connections(&self) -> usize {
        self.service().authorizer().limits().connections
    }

    /// The maximum number of concurrent HTTP/2 streams per connection.
    fn max_streams(&self) -> u32 {
        MAX_STREAMS
    }

    /// Responds to a request of this peer.
    fn answer(
        &self,
        request: Request<RequestBody>,
        peer: Peer,
    ) -> impl Future<Output = Response<Self::Body>> + Send;

    /// Whether a drain waits for the end of the response and the client must read it in time. False for endless
    /// streams.
    fn blocks_drain(&self, _request: &Request<RequestBody>) -> bool {
        true
    }
}

/// What to change if requests on a socket file are rejected: h2 rejects an authority that is no host.
const SOCKET_AUTHORITY: &str = "gRPC clients of grpc-core, Java and Swift send the path of the socket file as :authority: set \
                                grpc.default_authority to localhost there (in Envoy's google_grpc with channel_args)";

/// Counts requests that could not be read as decisions of this door, and logs a sample.
fn record_rejected(door: &impl Door, peer: Peer, requests: u64, log: &LogSampler) {
    count_rejected(door, requests);
    let hint = (peer.address.is_none() && !door.speaks_http1()).then_some(SOCKET_AUTHORITY);
    for _ in 0..requests {
        if let Some(times) = log.sample() {
            tracing::warn!(
                door = door.name(),
                times,
                cause = "malformed HTTP, or too many or too large headers",
                hint,
                "HTTP requests rejected"
            );
        }
    }
}

/// Counts requests that could not be read as decisions of this door.
fn count_rejected(door: &impl Door, requests: u64) {
    let verdict = Verdict::Deny(DenyReason::RequestMalformed);
    for _ in (0..requests).filter(|_| door.decides()) {
        door.service().metrics().decision(door.name(), &verdict, "", Duration::ZERO);
    }
}

/// The stop signal of a listener.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// A signal that is set when the sender sends `true` or is dropped.
    pub(crate) fn new() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Waits until the stop is requested.
    pub(crate) async fn requested(&mut self) {
        let _sender_dropped = self.0.wait_for(|stop| *stop).await;
    }
}

/// Limits the rate of one kind of log line.
#[derive(Debug, Default)]
pub(crate) struct LogSampler(Mutex<(Option<Instant>, u64)>);

impl LogSampler {
    /// The minimum time between two lines.
    const INTERVAL: Duration = Duration::from_secs(10);

    /// Counts an event. Returns the number of events since the last line if another line is due.
    pub(crate) fn sample(&self) -> Option<u64> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (then, times) = &mut *last;
        *times = times.saturating_add(1);
        let now = clock::monotonic();
        if then.is_some_and(|then| now.saturating_duration_since(then) < Self::INTERVAL) {
            return None;
        }
        *then = Some(now);
        Some(std::mem::take(times))
    }
}
