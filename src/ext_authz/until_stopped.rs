//! Ends endless streams, such as a health Watch, when the listener is stopped.

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

/// How long a stream has to report NOT_SERVING if the drain has no delay.
const LAST_MESSAGE: Duration = Duration::from_millis(50);

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// A response body that ends at a drain with gRPC's UNAVAILABLE, so that its client goes to another replica.
pub(super) struct UntilStopped {
    body: Body,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

impl UntilStopped {
    /// Wraps a body, which holds the permit of an endless stream.
    pub(super) fn new(body: Body, mut stop: Stop, permit: OwnedSemaphorePermit) -> Self {
        let stopped = async move {
            stop.requested().await;
            sleep(LAST_MESSAGE).await;
        };
        Self { body, stopped: Box::pin(stopped), ended: false, _permit: permit }
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
        // Pending messages come first, such as NOT_SERVING on a health Watch.
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
