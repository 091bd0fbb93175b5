//! The response of a unary gRPC call that succeeded: one message in one buffer, and its trailers. Written without tonic's
//! codec, which costs as much as a decision with a cached token.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const OK: HeaderValue = HeaderValue::from_static("0");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// The body of a response of a gRPC listener.
pub(crate) enum ResponseBody {
    /// A message, and then the trailers.
    Message(Unary),
    /// A response of tonic.
    Tonic(Body),
}

/// What is left to send of a unary response.
pub(crate) struct Unary {
    message: Option<Bytes>,
    are_trailers_sent: bool,
}

impl Default for ResponseBody {
    fn default() -> Self {
        ResponseBody::Tonic(Body::default())
    }
}

/// A successful response with this message, which has its prefix.
pub(super) fn unary(message: Bytes) -> Response<ResponseBody> {
    let body = Unary { message: Some(message), are_trailers_sent: false };
    let mut response = Response::new(ResponseBody::Message(body));
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.get_mut() {
            ResponseBody::Message(unary) => Poll::Ready(unary.next_frame().map(Ok)),
            ResponseBody::Tonic(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Message(unary) => unary.are_trailers_sent,
            ResponseBody::Tonic(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // Not exact: gRPC has no use for a content-length.
            ResponseBody::Message(_) => SizeHint::default(),
            ResponseBody::Tonic(body) => body.size_hint(),
        }
    }
}

impl Unary {
    fn next_frame(&mut self) -> Option<Frame<Bytes>> {
        if let Some(message) = self.message.take() {
            return Some(Frame::data(message));
        }
        if std::mem::replace(&mut self.are_trailers_sent, true) {
            return None;
        }
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert(GRPC_STATUS, OK);
        Some(Frame::trailers(trailers))
    }
}
