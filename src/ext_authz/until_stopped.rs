//! Streams that have no end of their own, such as a health Watch: they end when the listener is stopped.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::sleep;
use tonic::Code;
use tonic::body::Body;

use crate::server::Stop;

/// How long a stream has to say that nothing should be sent here any more, where a drain has no delay.
const LAST_WORD: Duration = Duration::from_millis(50);

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The body of an answer, which ends at a drain as one that cannot go on (gRPC's UNAVAILABLE): its client asks another
/// replica.
pub(super) struct UntilStopped {
    body: Body,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
    ended: bool,
    _place: OwnedSemaphorePermit,
}

impl UntilStopped {
    /// Of one of those that may be open at a time.
    pub(super) fn new(body: Body, mut stop: Stop, place: OwnedSemaphorePermit) -> Self {
        let stopped = async move {
            stop.asked_for().await;
            sleep(LAST_WORD).await;
        };
        Self { body, stopped: Box::pin(stopped), ended: false, _place: place }
    }
}

impl http_body::Body for UntilStopped {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        // What the stream has to say comes first: of health, that nothing should be sent here any more.
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        if self.stopped.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.ended = true;
        let status = HeaderValue::from(Code::Unavailable as i32);
        Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::from_iter([(GRPC_STATUS, status)])))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
