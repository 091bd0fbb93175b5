//! One connection: HTTP/1.1 or HTTP/2 by hyper, within the bounds that every listener has, until its end.

use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::iter::successors;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, DATE, EXPECT, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{sleep, timeout};

use super::state::{ConnectionState, Flight, LOOK, Overdue, PAUSE, Patience};
use super::stream::{Stream, Watched};
use super::tls::HandshakeError;
use super::{
    BoxError, Door, MAX_HEAD_BYTES, MAX_HEADER_BYTES, MAX_HEADERS, Peer, Rarely, Stop, Tls, count_unread,
};
use crate::clock;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// So many requests may come and be cancelled before they can be looked at: a client of a proxy that goes away has all of its
/// requests cancelled in one piece, and the others on the proxy's connection must not pay for that. More than is read at a
/// time, so that no more than that is held. How many requests may be malformed is not the library's to say, which would
/// count for as long as the connection lives (see `ConnectionState::patience`).
const CANCELLED_AT_ONCE: usize = 4096;

/// How often HTTP/2 is pinged, and how long an answer to that may take.
const PING: Duration = Duration::from_secs(60);
const PONG: Duration = Duration::from_secs(20);

/// What a client may send of one message, and of all on a connection, before it has been read: for a proxy far away.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// So much of a body is passed over where it comes within so long: a proxy sends it with the head or not at all.
const PASSED_OVER: u64 = 64 * 1024;
const BODY: Duration = Duration::from_millis(100);

/// What was read of larger headers over HTTP/1.1 is held in a buffer until the connection ends.
const LARGE_HEAD: usize = 16 * 1024;

/// How long a connection without a request in flight has for its last bytes, once the listener is stopped, and how long one
/// may go on after it was told to go.
const LAST_BYTES: Duration = Duration::from_millis(500);

/// A connection, and what its requests are answered by.
pub(super) struct Connection<D> {
    pub(super) door: Arc<D>,
    pub(super) peer: Peer,
    pub(super) state: Arc<ConnectionState>,
    /// When the log is told of requests that could not be answered.
    pub(super) unread: Arc<Rarely>,
}

impl<D: Door> Connection<D> {
    /// Serves it until it ends, lasts too long at something, has to make room, or the listener is stopped and no request
    /// is in flight.
    pub(super) async fn serve(self, stream: Stream, tls: Option<Tls>, mut stop: Stop) {
        let Some(tls) = tls else { return self.converse(stream, stop).await };
        let shaken = tokio::select! {
            shaken = timeout(HANDSHAKE, tls.handshake(stream)) => shaken,
            () = self.state.closed.notified() => return,
            () = stop.asked_for() => return,
        };
        let metrics = self.door.service().metrics();
        match shaken {
            Ok(Ok(stream)) => self.converse(stream, stop).await,
            Ok(Err(error)) => tls.refused(metrics, &error),
            Err(_) => tls.refused(metrics, &HandshakeError::timed_out()),
        }
    }

    async fn converse<S>(self, stream: S, mut stop: Stop)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { door, peer, state, .. } = &self;
        let io = TokioIo::new(Watched::new(stream, Arc::clone(state)));
        let answer = {
            let (door, peer, state) = (Arc::clone(door), *peer, Arc::clone(state));
            hyper::service::service_fn(move |request: Request<Incoming>| {
                // Before the library goes on: whatever it has not handed over by then, it has refused.
                state.request(request.version() != Version::HTTP_2);
                let size = header_bytes(request.headers());
                if size.is_none() {
                    state.refuse();
                }
                answer(Arc::clone(&door), request, size, peer, Arc::clone(&state))
            })
        };
        let builder = builder(door.speaks_http1(), door.max_streams());
        let connection = builder.serve_connection(io, answer);
        tokio::pin!(connection);
        let (mut stopping, mut told_to_go) = (false, None);
        loop {
            tokio::select! {
                step = step(connection.as_mut(), state) => match step {
                    Step::Ended(refused) => {
                        self.count_unread(refused);
                        break;
                    }
                    Step::Refused(requests) => {
                        self.count_unread(requests);
                        let patience = state.patience();
                        if patience != Patience::Left && told_to_go.is_none() {
                            told_to_go = Some(clock::monotonic());
                            self.count_closed(Overdue::Flood);
                            connection.as_mut().graceful_shutdown();
                        }
                        // Before it can know, more may come, and requests of others may be in flight.
                        let knows = told_to_go.is_some_and(|told| told.elapsed() >= LAST_BYTES);
                        if patience == Patience::Over && knows {
                            break;
                        }
                    }
                },
                () = sleep(LOOK) => {
                    if let Some(overdue) = state.overdue() {
                        break self.count_closed(overdue);
                    }
                }
                () = state.flood.notified() => break self.count_closed(Overdue::Flood),
                () = state.closed.notified() => {
                    // Whoever speaks HTTP/2 is told which requests it may send again.
                    connection.as_mut().graceful_shutdown();
                    let last = async {
                        while let Step::Refused(requests) = step(connection.as_mut(), state).await {
                            self.count_unread(requests);
                        }
                    };
                    let _ended = timeout(LAST_BYTES, last).await;
                    break;
                }
                () = leave(&mut stop, state), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = left_alone(state), if stopping => break,
            }
        }
    }

    fn count_unread(&self, requests: u64) {
        count_unread(&*self.door, requests, &self.unread);
    }

    fn count_closed(&self, overdue: Overdue) {
        let (door, cause) = (self.door.name(), overdue.as_str());
        tracing::debug!(door, cause, "a connection is closed");
        self.door.service().metrics().connection_closed(door, cause);
    }
}

/// What came of a connection.
enum Step {
    /// It has ended, with so many requests refused that are not counted.
    Ended(u64),
    /// So many requests have been refused, and it goes on.
    Refused(u64),
}

/// Goes on with a connection until it ends, or until it has done all that it can and refused something.
async fn step<C>(mut connection: Pin<&mut C>, state: &ConnectionState) -> Step
where
    C: Future<Output = Result<(), BoxError>>,
{
    poll_fn(|cx| match connection.as_mut().poll(cx) {
        Poll::Ready(ended) => Poll::Ready(Step::Ended(refused_at_end(ended, state))),
        Poll::Pending => {
            if state.resume() {
                cx.waker().wake_by_ref();
            }
            match state.newly_refused() {
                0 => Poll::Pending,
                requests => Poll::Ready(Step::Refused(requests)),
            }
        }
    })
    .await
}

/// How many requests the library has refused when it ended a connection. HTTP/1 tells by its error; of HTTP/2 are left what
/// has not been handed over, unless it was the client that ended it.
fn refused_at_end(ended: Result<(), BoxError>, state: &ConnectionState) -> u64 {
    let Err(error) = ended else { return state.newly_refused() };
    if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
        return 1;
    }
    let mut causes = successors(Some(&*error as &(dyn Error + 'static)), |&error| error.source());
    let by_library = causes.any(|cause| cause.downcast_ref().is_some_and(h2::Error::is_library));
    if by_library { state.newly_refused() } else { 0 }
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
        .header_read_timeout(PAUSE)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .auto_date_header(false)
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .max_concurrent_streams(streams)
        .max_pending_accept_reset_streams(CANCELLED_AT_ONCE)
        .max_local_error_reset_streams(None)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEAD_BYTES as u32);
    builder
}

/// The door's answer to a request of this size; 431 where it has none, for that it is too large.
async fn answer<D: Door>(
    door: Arc<D>,
    mut request: Request<Incoming>,
    size: Option<usize>,
    peer: Peer,
    state: Arc<ConnectionState>,
) -> Result<Response<Counted<D::Body>>, Infallible> {
    let mut flight = door.is_awaited(&request).then(|| state.flight());
    let leaves_something = request.version() != Version::HTTP_2
        && (size.is_none_or(|size| size > LARGE_HEAD) || !is_passed_over(&mut request).await);
    let mut response = if size.is_some() {
        // What it holds is not needed while the answer is sent.
        Box::pin(door.answer(request, peer)).await
    } else {
        let mut refusal = Response::new(D::Body::default());
        *refusal.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        refusal
    };
    if let Some(flight) = &mut flight {
        flight.answered();
    }
    if door.speaks_http1()
        && let Some(date) = clock::http_date()
    {
        response.headers_mut().insert(DATE, date);
    }
    if leaves_something {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| Counted { body, _flight: flight }))
}

/// How long all names and values are together; `None` where they are too long or too many.
fn header_bytes(headers: &HeaderMap) -> Option<usize> {
    if headers.len() > MAX_HEADERS {
        return None;
    }
    let bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    (bytes <= MAX_HEADER_BYTES).then_some(bytes)
}

/// Passes over a body, which nobody reads over HTTP/1.1; whether nothing is left of it.
async fn is_passed_over(request: &mut Request<Incoming>) -> bool {
    let body = request.body();
    if body.is_end_stream() {
        return true;
    }
    // Who waits to be told to send it is not told so.
    if body.size_hint().lower() > PASSED_OVER || request.headers().contains_key(EXPECT) {
        return false;
    }
    let body = request.body_mut();
    let mut left = PASSED_OVER;
    let passing = async {
        while let Some(frame) = body.frame().await {
            let bytes = frame.ok()?.data_ref().map_or(0, Bytes::len);
            left = left.checked_sub(bytes as u64)?;
        }
        Some(())
    };
    matches!(timeout(BODY, passing).await, Ok(Some(())))
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
