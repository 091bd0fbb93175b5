//! Serves one connection with hyper, HTTP/1.1 or HTTP/2, within the limits that every listener has.

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

use super::state::{CHECK_INTERVAL, CloseCause, ConnectionState, IDLE_TIMEOUT, Rejections, RequestGuard};
use super::stream::{MonitoredStream, Stream};
use super::tls::HandshakeError;
use super::{
    BoxError, Door, LogSampler, MAX_HEAD_BYTES, MAX_HEADER_BYTES, MAX_HEADERS, Peer, Stop, Tls,
    record_rejected,
};
use crate::clock;

/// The timeout of a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How many requests a client may open and cancel before they are accepted. When a proxy's client disconnects, all of
/// its requests are cancelled in one batch, and the other requests on the proxy's connection must not fail for that.
/// The limit is above the number of requests that are read at a time, which bounds what is held. The number of
/// malformed requests is limited by `ConnectionState::rejections`, because hyper counts them over the whole life of the
/// connection.
const MAX_PENDING_RESETS: usize = 4096;

/// The interval of HTTP/2 pings and the timeout of their acknowledgement.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// HTTP/2 flow-control windows of a stream and of a connection, sized for a proxy with a high round-trip time.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// The most bytes of a body that are discarded, and the time to receive them: a proxy sends a body with the head or not
/// at all.
const MAX_DISCARDED_BODY: u64 = 64 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_millis(100);

/// The largest HTTP/1.1 head after which the connection is kept: hyper keeps the read buffer of a larger one until the
/// connection closes.
const MAX_KEPT_HEAD: usize = 16 * 1024;

/// How long an idle connection has to send its last bytes after the listener is stopped, and how long a client may
/// continue after GOAWAY.
const LINGER: Duration = Duration::from_millis(500);

/// A connection and the door that serves its requests.
pub(super) struct Connection<D> {
    pub(super) door: Arc<D>,
    pub(super) peer: Peer,
    pub(super) state: Arc<ConnectionState>,
    /// Limits the log lines about rejected requests.
    pub(super) rejected_log: Arc<LogSampler>,
}

impl<D: Door> Connection<D> {
    /// Serves the connection until it closes, exceeds a timeout or is evicted, or until the listener is stopped and no
    /// request is in flight.
    pub(super) async fn serve(self, stream: Stream, tls: Option<Tls>, mut stop: Stop) {
        let Some(tls) = tls else { return self.serve_http(stream, stop).await };
        let handshake = tokio::select! {
            handshake = timeout(HANDSHAKE_TIMEOUT, tls.handshake(stream)) => handshake,
            () = self.state.closed.notified() => return,
            () = stop.requested() => return,
        };
        let metrics = self.door.service().metrics();
        match handshake {
            Ok(Ok(stream)) => self.serve_http(stream, stop).await,
            Ok(Err(error)) => tls.record_failure(metrics, &error),
            Err(_) => tls.record_failure(metrics, &HandshakeError::timed_out()),
        }
    }

    async fn serve_http<S>(self, stream: S, mut stop: Stop)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { door, peer, state, .. } = &self;
        let io = TokioIo::new(MonitoredStream::new(stream, Arc::clone(state)));
        let respond = {
            let (door, peer, state) = (Arc::clone(door), *peer, Arc::clone(state));
            hyper::service::service_fn(move |request: Request<Incoming>| {
                // Recorded as soon as hyper dispatches it: streams not dispatched by then count as rejected by hyper.
                state.record_request(request.version() != Version::HTTP_2);
                let size = header_bytes(request.headers());
                if size.is_none() {
                    state.record_too_large();
                }
                respond(Arc::clone(&door), request, size, peer, Arc::clone(&state))
            })
        };
        let builder = builder(door.speaks_http1(), door.max_streams());
        let connection = builder.serve_connection(io, respond);
        tokio::pin!(connection);
        let (mut stopping, mut goaway_at) = (false, None);
        loop {
            tokio::select! {
                step = step(connection.as_mut(), state) => match step {
                    Step::Closed(rejected) => {
                        self.record_rejected(rejected);
                        break;
                    }
                    Step::Rejected(requests) => {
                        self.record_rejected(requests);
                        let rejections = state.rejections();
                        if rejections != Rejections::Tolerated && goaway_at.is_none() {
                            goaway_at = Some(clock::monotonic());
                            self.record_close(CloseCause::Flood);
                            connection.as_mut().graceful_shutdown();
                        }
                        // More requests may arrive until the client has seen GOAWAY, and valid ones may be in flight.
                        let seen_goaway = goaway_at.is_some_and(|at| at.elapsed() >= LINGER);
                        if rejections == Rejections::Excessive && seen_goaway {
                            break;
                        }
                    }
                },
                () = sleep(CHECK_INTERVAL) => {
                    if let Some(cause) = state.exceeded_timeout() {
                        break self.record_close(cause);
                    }
                }
                () = state.flood.notified() => break self.record_close(CloseCause::Flood),
                () = state.closed.notified() => {
                    // GOAWAY tells an HTTP/2 client which requests it may retry.
                    connection.as_mut().graceful_shutdown();
                    let finish = async {
                        while let Step::Rejected(requests) = step(connection.as_mut(), state).await {
                            self.record_rejected(requests);
                        }
                    };
                    let _ended = timeout(LINGER, finish).await;
                    break;
                }
                () = stop_requested(&mut stop, state), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = until_drained(state), if stopping => break,
            }
        }
    }

    fn record_rejected(&self, requests: u64) {
        record_rejected(&*self.door, requests, &self.rejected_log);
    }

    fn record_close(&self, cause: CloseCause) {
        let (door, cause) = (self.door.name(), cause.as_str());
        tracing::debug!(door, cause, "connection closed");
        self.door.service().metrics().connection_closed(door, cause);
    }
}

/// The outcome of polling a connection.
enum Step {
    /// It is closed, with the number of rejected requests not reported before.
    Closed(u64),
    /// It is open, with the number of newly rejected requests.
    Rejected(u64),
}

/// Drives a connection until it is closed, or until it is pending and has rejected requests.
async fn step<C>(mut connection: Pin<&mut C>, state: &ConnectionState) -> Step
where
    C: Future<Output = Result<(), BoxError>>,
{
    poll_fn(|cx| match connection.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(Step::Closed(rejected_at_close(result, state))),
        Poll::Pending => {
            if state.resume() {
                cx.waker().wake_by_ref();
            }
            match state.take_rejected() {
                0 => Poll::Pending,
                requests => Poll::Ready(Step::Rejected(requests)),
            }
        }
    })
    .await
}

/// How many requests hyper rejected when it closed a connection. An HTTP/1 parse error is one request. Over HTTP/2 it
/// is the streams that were not dispatched, unless the client closed the connection.
fn rejected_at_close(result: Result<(), BoxError>, state: &ConnectionState) -> u64 {
    let Err(error) = result else { return state.take_rejected() };
    if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
        return 1;
    }
    let mut causes = successors(Some(&*error as &(dyn Error + 'static)), |&error| error.source());
    let by_library = causes.any(|cause| cause.downcast_ref().is_some_and(h2::Error::is_library));
    if by_library { state.take_rejected() } else { 0 }
}

/// The HTTP limits that hyper enforces.
fn builder(http1: bool, streams: u32) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    if !http1 {
        builder = builder.http2_only();
    }
    // `respond` sets the `Date` header, and omits it when the clock is past the year 9999, where hyper's would be
    // wrong. For HTTP/1.1 hyper still formats a date and discards it; `crates/httpdate` keeps that from panicking.
    builder
        .http1()
        .auto_date_header(false)
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .auto_date_header(false)
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(streams)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(None)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEAD_BYTES as u32);
    builder
}

/// The door's response to a request, or status 431 if `size` is `None` because its headers are too large.
async fn respond<D: Door>(
    door: Arc<D>,
    mut request: Request<Incoming>,
    size: Option<usize>,
    peer: Peer,
    state: Arc<ConnectionState>,
) -> Result<Response<TrackedBody<D::Body>>, Infallible> {
    let mut guard = door.blocks_drain(&request).then(|| state.start_request());
    let must_close = request.version() != Version::HTTP_2
        && (size.is_none_or(|size| size > MAX_KEPT_HEAD) || !discard_body(&mut request).await);
    let mut response = if size.is_some() {
        // Boxed, so that its state is freed before the response is sent.
        Box::pin(door.answer(request, peer)).await
    } else {
        let mut response = Response::new(D::Body::default());
        *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        response
    };
    if let Some(guard) = &mut guard {
        guard.response_ready();
    }
    if door.speaks_http1()
        && let Some(date) = clock::http_date()
    {
        response.headers_mut().insert(DATE, date);
    }
    if must_close {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| TrackedBody { body, _guard: guard }))
}

/// The total size of all names and values; `None` if they are too large or too many.
fn header_bytes(headers: &HeaderMap) -> Option<usize> {
    if headers.len() > MAX_HEADERS {
        return None;
    }
    let bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    (bytes <= MAX_HEADER_BYTES).then_some(bytes)
}

/// Discards an HTTP/1.1 body. Returns whether all of it was received.
async fn discard_body(request: &mut Request<Incoming>) -> bool {
    let body = request.body();
    if body.is_end_stream() {
        return true;
    }
    // A client that expects 100 (Continue) does not get it.
    if body.size_hint().lower() > MAX_DISCARDED_BODY || request.headers().contains_key(EXPECT) {
        return false;
    }
    let body = request.body_mut();
    let mut remaining = MAX_DISCARDED_BODY;
    let discard = async {
        while let Some(frame) = body.frame().await {
            let bytes = frame.ok()?.data_ref().map_or(0, Bytes::len);
            remaining = remaining.checked_sub(bytes as u64)?;
        }
        Some(())
    };
    matches!(timeout(DISCARD_TIMEOUT, discard).await, Ok(Some(())))
}

/// Waits until the listener is stopped. A new connection gets a moment more, because its first request may be on its
/// way.
async fn stop_requested(stop: &mut Stop, state: &ConnectionState) {
    stop.requested().await;
    if !state.is_established() {
        sleep(LINGER).await;
    }
}

/// Waits until every request received before the stop has its response and the time to send it.
async fn until_drained(state: &ConnectionState) {
    sleep(LINGER).await;
    state.stop();
    state.until_answered().await;
    sleep(LINGER).await;
}

/// A response body whose request stays in flight until it ends.
pub(super) struct TrackedBody<B> {
    body: B,
    _guard: Option<RequestGuard>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for TrackedBody<B> {
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
