//! Serves connections of listeners for HTTP/1.1 and HTTP/2, with hyper.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, DATE, EXPECT, HeaderValue};
use http::{Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::{self, Builder, HttpServerConnExec};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::body::RequestBody;
use super::driver::Driver;
use super::limits::{
    CONNECTION_WINDOW, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT, MAX_HEAD_BYTES, MAX_HEADERS,
    MAX_PENDING_RESETS, STREAM_WINDOW,
};
use super::respond::{Received, Responder, too_large};
use super::state::{IDLE_TIMEOUT, RequestGuard};
use super::stream::MonitoredStream;
use super::{BoxError, Door};
use crate::clock;

/// The most bytes of a body that are discarded, and the time to receive them: a proxy sends a body with the head or not
/// at all.
const MAX_DISCARDED_BODY: u64 = 64 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_millis(100);

/// The largest HTTP/1.1 head after which the connection is kept: hyper keeps the read buffer of a larger one until the
/// connection closes.
const MAX_KEPT_HEAD: usize = 16 * 1024;

/// A connection over this stream.
pub(super) fn connection<D: Door, S>(responder: Responder<D>, stream: MonitoredStream<S>) -> impl Driver
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let builder = builder(responder.door().max_streams());
    let responder = Arc::new(responder);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let request = request.map(RequestBody::Hyper);
        let received = responder.receive(&request);
        respond(Arc::clone(&responder), request, received)
    });
    builder.serve_connection(TokioIo::new(stream), service).into_owned()
}

impl<I, S, B> Driver for auto::Connection<'_, I, S, TokioExecutor>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Future: 'static,
    S::Error: Into<BoxError>,
    B: Body<Error: Into<BoxError>> + 'static,
    TokioExecutor: HttpServerConnExec<S::Future, B>,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        auto::Connection::graceful_shutdown(self);
    }
}

/// The HTTP limits that hyper enforces.
fn builder(streams: u32) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // `respond` sets the `Date` header, and omits it when the clock is past the year 9999, where hyper's would be
    // wrong. For HTTP/1.1 hyper still formats a date and discards it; `crates/httpdate` keeps that from panicking.
    builder
        .http1()
        .auto_date_header(false)
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES as usize);
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
        .max_header_list_size(MAX_HEAD_BYTES);
    builder
}

/// The door's response to a request, or status 431 if its headers are too large.
async fn respond<D: Door>(
    responder: Arc<Responder<D>>,
    mut request: Request<RequestBody>,
    received: Received,
) -> Result<Response<TrackedBody<D::Body>>, Infallible> {
    let Received { mut guard, header_bytes } = received;
    let must_close = request.version() != Version::HTTP_2
        && (header_bytes.is_none_or(|size| size > MAX_KEPT_HEAD) || !discard_body(&mut request).await);
    let mut response = match header_bytes {
        // Boxed, so that its state is freed before the response is sent.
        Some(_) => Box::pin(responder.answer(request)).await,
        None => too_large(),
    };
    if let Some(guard) = &mut guard {
        guard.response_ready();
    }
    if let Some(date) = clock::http_date() {
        response.headers_mut().insert(DATE, date);
    }
    if must_close {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| TrackedBody { body, _guard: guard }))
}

/// Discards an HTTP/1.1 body. Returns whether all of it was received.
async fn discard_body(request: &mut Request<RequestBody>) -> bool {
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

/// A response body whose request stays in flight until it ends.
struct TrackedBody<B> {
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
