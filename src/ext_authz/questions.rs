//! The questions of a reflection stream, taken in as they come: what its client does not take answers to would else stay
//! with the HTTP library for as long as the stream lives, as much of it as a Check may be large.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::sync::mpsc;

/// So many bytes of questions has one stream. They are names, and there are few.
const MOST: usize = 64 * 1024;

/// The questions of one stream, as its service reads them.
pub(super) struct Questions(mpsc::UnboundedReceiver<Bytes>);

impl Questions {
    /// Takes in those of this body until it ends, has brought too many, or nobody reads them any more. To whoever reads, the
    /// questions end there.
    pub(super) fn of<B>(body: B) -> Self
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let (come, questions) = mpsc::unbounded_channel();
        tokio::spawn(record_fetch(body, come));
        Self(questions)
    }
}

async fn record_fetch<B: Body<Data = Bytes> + Unpin>(mut body: B, come: mpsc::UnboundedSender<Bytes>) {
    let mut left = MOST;
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = come.closed() => return,
        };
        let Some(Ok(frame)) = frame else { return };
        let Ok(bytes) = frame.into_data() else { return };
        let Some(rest) = left.checked_sub(bytes.len()) else { return };
        left = rest;
        // A copy: the piece is part of a larger buffer.
        if !bytes.is_empty() && come.send(Bytes::copy_from_slice(&bytes)).is_err() {
            return;
        }
    }
}

impl Body for Questions {
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

    /// A body whose pieces a test hands in.
    fn pieces() -> (mpsc::UnboundedSender<Bytes>, Questions) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (sender, Questions(receiver))
    }

    #[tokio::test]
    async fn all_come_until_they_are_too_many() {
        let few = Questions::of(Full::new(Bytes::from_static(b"question")));
        let read = few.collect().await.unwrap_or_else(|never| match never {});
        assert_eq!(read.to_bytes(), &b"question"[..]);

        let (more, body) = pieces();
        for _ in 0..=MOST / 1024 {
            more.send(vec![0; 1024].into()).expect("it is read");
        }
        let read = Questions::of(body).collect().await.unwrap_or_else(|never| match never {});
        assert_eq!(read.to_bytes().len(), MOST);
        assert!(more.is_closed(), "nothing more is taken in");
    }

    #[tokio::test]
    async fn none_are_taken_in_that_nobody_reads() {
        let (more, body) = pieces();
        drop(Questions::of(body));
        more.closed().await;
    }
}
