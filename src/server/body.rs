//! The body of a request, as the library that serves the connection delivers it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::BoxError;

/// The body of a request.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// Of a connection served with hyper.
    Hyper(Incoming),
    /// Of a connection served with h2.
    H2(StreamBody),
}

/// The body of an HTTP/2 stream. What is read, and at its drop what is not, is returned to the client's windows.
#[derive(Debug)]
pub(crate) struct StreamBody {
    stream: RecvStream,
    is_data_read: bool,
}

impl StreamBody {
    /// The body that arrives on this stream.
    pub(super) fn new(stream: RecvStream) -> Self {
        Self { stream, is_data_read: false }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.is_data_read {
            if let Some(data) = ready!(self.stream.poll_data(cx)) {
                return Poll::Ready(ignore_early_end(data.map(|data| {
                    // Fails only for more than was received.
                    let _released = self.stream.flow_control().release_capacity(data.len());
                    Frame::data(data)
                })));
            }
            self.is_data_read = true;
        }
        let trailers = ready!(self.stream.poll_trailers(cx)).transpose();
        Poll::Ready(trailers.and_then(|trailers| ignore_early_end(trailers.map(Frame::trailers))))
    }
}

/// A reset with NO_ERROR ends a body without an error (RFC 9113 §8.1).
fn ignore_early_end<T>(read: Result<T, h2::Error>) -> Option<Result<T, h2::Error>> {
    Some(read).filter(|read| !read.as_ref().is_err_and(|error| error.reason() == Some(Reason::NO_ERROR)))
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            RequestBody::Hyper(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Into::into)))
            }
            RequestBody::H2(body) => {
                body.poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Hyper(body) => body.is_end_stream(),
            RequestBody::H2(body) => body.stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Hyper(body) => body.size_hint(),
            // A content-length is checked by h2; nothing reads it here.
            RequestBody::H2(_) => SizeHint::default(),
        }
    }
}
