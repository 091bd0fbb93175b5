//! One connection: HTTP/1.1 or HTTP/2 by hyper, within the bounds that every listener has, until its end.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::DATE;
use http::{Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{sleep, timeout};

use super::state::{ConnectionState, Flight, LOOK, Overdue, SILENCE};
use super::stream::{Stream, Watched};
use super::tls::HandshakeError;
use super::{BoxError, Door, MAX_HEADER_BYTES, MAX_HEADERS, Peer, READ_AHEAD, Stop, Tls};
use crate::clock;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How often HTTP/2 is pinged, and how long an answer to that may take.
const PING: Duration = Duration::from_secs(60);
const PONG: Duration = Duration::from_secs(20);

/// What a client may send of one message, and of all on a connection, before it has been read: for a proxy far away.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// How long a connection without a request in flight has for its last bytes, once the listener is stopped.
const LAST_BYTES: Duration = Duration::from_millis(500);

/// Serves a connection until it ends, lasts too long at something, has to make room, or the listener is stopped and no
/// request is in flight.
pub(super) async fn serve<D: Door>(
    door: Arc<D>,
    stream: Stream,
    peer: Peer,
    tls: Option<Tls>,
    state: Arc<ConnectionState>,
    mut stop: Stop,
) {
    let Some(tls) = tls else { return converse(door, stream, peer, state, stop).await };
    let shaken = tokio::select! {
        shaken = timeout(HANDSHAKE, tls.handshake(stream)) => shaken,
        () = state.closed.notified() => return,
        () = stop.asked_for() => return,
    };
    match shaken {
        Ok(Ok(stream)) => converse(door, stream, peer, state, stop).await,
        Ok(Err(error)) => tls.refused(door.service().metrics(), &error),
        Err(_) => tls.refused(door.service().metrics(), &HandshakeError::timed_out()),
    }
}

async fn converse<D, S>(door: Arc<D>, stream: S, peer: Peer, state: Arc<ConnectionState>, mut stop: Stop)
where
    D: Door,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(Watched::new(stream, Arc::clone(&state)));
    let answer = {
        let (door, state) = (Arc::clone(&door), Arc::clone(&state));
        hyper::service::service_fn(move |request| {
            answer(Arc::clone(&door), request, peer, Arc::clone(&state))
        })
    };
    let builder = builder(door.speaks_http1(), door.max_streams());
    let connection = builder.serve_connection(io, answer);
    tokio::pin!(connection);
    let mut stopping = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if ended.err().is_some_and(is_too_large) {
                    door.unread(1);
                }
                break;
            }
            () = sleep(LOOK) => {
                door.unread(state.take_too_large());
                if let Some(overdue) = state.overdue() {
                    tracing::debug!(door = door.name(), cause = overdue.as_str(), "a connection is closed");
                    door.service().metrics().connection_closed(door.name(), overdue.as_str());
                    break;
                }
            }
            () = state.flood.notified() => {
                door.service().metrics().connection_closed(door.name(), Overdue::Flood.as_str());
                break;
            }
            () = state.closed.notified() => {
                // Whoever speaks HTTP/2 is told which requests it may send again.
                connection.as_mut().graceful_shutdown();
                let _ended = timeout(LAST_BYTES, connection.as_mut()).await;
                break;
            }
            () = leave(&mut stop, &state), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            () = left_alone(&state), if stopping => break,
        }
    }
    door.unread(state.take_too_large());
}

/// The bounds of HTTP that the library holds.
fn builder(http1: bool, streams: u32) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    if !http1 {
        builder = builder.http2_only();
    }
    // The date is ours (see `answer`), and none where the clock stands after 9999: the library's would be wrong there. Over
    // HTTP/1.1 it makes its own all the same and leaves it out; `crates/httpdate` keeps that from panicking.
    builder
        .http1()
        .auto_date_header(false)
        .timer(TokioTimer::new())
        .header_read_timeout(SILENCE)
        .max_headers(READ_AHEAD * MAX_HEADERS)
        .max_buf_size(READ_AHEAD * MAX_HEADER_BYTES);
    builder
        .http2()
        .auto_date_header(false)
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .max_concurrent_streams(streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size((READ_AHEAD * MAX_HEADER_BYTES) as u32);
    builder
}

async fn answer<D: Door>(
    door: Arc<D>,
    request: Request<Incoming>,
    peer: Peer,
    state: Arc<ConnectionState>,
) -> Result<Response<Counted<D::Body>>, Infallible> {
    state.request(request.version() != Version::HTTP_2);
    let mut flight = door.is_awaited(&request).then(|| state.flight());
    let mut response = door.answer(request, peer).await;
    if let Some(flight) = &mut flight {
        flight.answered();
    }
    if door.speaks_http1()
        && let Some(date) = clock::http_date()
    {
        response.headers_mut().insert(DATE, date);
    }
    Ok(response.map(|body| Counted { body, _flight: flight }))
}

/// A request that is too large even to be read is answered 431 by the HTTP library.
fn is_too_large(error: BoxError) -> bool {
    error.downcast::<hyper::Error>().is_ok_and(|error| error.is_parse_too_large())
}

/// Ends when the listener is stopped. A connection that has just come has a moment for its first request, which may be
/// on its way.
async fn leave(stop: &mut Stop, state: &ConnectionState) {
    stop.asked_for().await;
    if !state.is_established() {
        sleep(LAST_BYTES).await;
    }
}

/// Ends when every request that came before has its answer, and had a moment to be sent.
async fn left_alone(state: &ConnectionState) {
    sleep(LAST_BYTES).await;
    state.stop();
    state.until_decided().await;
    sleep(LAST_BYTES).await;
}

/// The body of an answer, which is in flight until its end.
pub(super) struct Counted<B> {
    body: B,
    _flight: Option<Flight>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
