//! Buffers the requests of a reflection stream as they arrive. If the client does not read the responses, the HTTP
//! library would otherwise hold them for the life of the stream, up to the size of a large Check.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::sync::mpsc;

/// The maximum size of all requests of a stream, which are a few names.
const MAX_BYTES: usize = 64 * 1024;

/// The buffered requests of one stream.
pub(super) struct BufferedRequests(mpsc::UnboundedReceiver<Bytes>);

impl BufferedRequests {
    /// Buffers this body until it ends, exceeds the limit, or is no longer read. The reader then sees its end.
    pub(super) fn new<B>(body: B) -> Self
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(forward(body, sender));
        Self(receiver)
    }
}

async fn forward<B: Body<Data = Bytes> + Unpin>(mut body: B, sender: mpsc::UnboundedSender<Bytes>) {
    let mut remaining = MAX_BYTES;
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = sender.closed() => return,
        };
        let Some(Ok(frame)) = frame else { return };
        let Ok(bytes) = frame.into_data() else { return };
        let Some(rest) = remaining.checked_sub(bytes.len()) else { return };
        remaining = rest;
        // Copied, because the frame is part of a larger buffer.
        if !bytes.is_empty() && sender.send(Bytes::copy_from_slice(&bytes)).is_err() {
            return;
        }
    }
}

impl Body for BufferedRequests {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    /// A body whose frames a test sends.
    fn channel_body() -> (mpsc::UnboundedSender<Bytes>, BufferedRequests) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (sender, BufferedRequests(receiver))
    }

    #[tokio::test]
    async fn requests_are_buffered_up_to_the_limit() {
        let small = BufferedRequests::new(Full::new(Bytes::from_static(b"request")));
        let read = small.collect().await.unwrap_or_else(|never| match never {});
        assert_eq!(read.to_bytes(), &b"request"[..]);

        let (sender, body) = channel_body();
        for _ in 0..=MAX_BYTES / 1024 {
            sender.send(vec![0; 1024].into()).expect("it is read");
        }
        let read = BufferedRequests::new(body).collect().await.unwrap_or_else(|never| match never {});
        assert_eq!(read.to_bytes().len(), MAX_BYTES);
        assert!(sender.is_closed(), "nothing more is buffered");
    }

    #[tokio::test]
    async fn nothing_is_buffered_without_a_reader() {
        let (sender, body) = channel_body();
        drop(BufferedRequests::new(body));
        sender.closed().await;
    }
}
