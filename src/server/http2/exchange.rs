//! One request and its response, as a future that ends when the response was passed on for sending. It ends early when
//! the client cancels the request.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Response};
use http_body::Body;

use crate::server::state::RequestGuard;

/// A response that is being produced.
type Answer<B> = Pin<Box<dyn Future<Output = Response<B>> + Send>>;

/// A request that has not been answered, or whose response has not been sent.
pub(super) struct Exchange<B> {
    stage: Stage<B>,
    reply: SendResponse<Bytes>,
    guard: Option<RequestGuard>,
}

enum Stage<B> {
    Answering(Answer<B>),
    Sending(Sending<B>),
}

/// A response whose headers were sent.
struct Sending<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// What is left of the last frame of data, and whether it is the last one of the body.
    data: Bytes,
    is_last: bool,
}

/// Why a response was not sent.
enum Failure {
    /// The client cancelled the request, or the connection is closed.
    Cancelled,
    /// The stream is to be reset.
    Internal,
}

impl<B> Exchange<B> {
    /// A request with this answer. The guard counts it as in flight.
    pub(super) fn new(answer: Answer<B>, reply: SendResponse<Bytes>, guard: Option<RequestGuard>) -> Self {
        Self { stage: Stage::Answering(answer), reply, guard }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Future for Exchange<B> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        // A panic is of this request alone, also when it is polled by the task of its connection.
        let polled = catch_unwind(AssertUnwindSafe(|| this.poll_exchange(cx)));
        if let Err(Failure::Internal) = ready!(polled.unwrap_or(Poll::Ready(Err(Failure::Internal)))) {
            this.reply.send_reset(Reason::INTERNAL_ERROR);
        }
        Poll::Ready(())
    }
}

impl<B: Body<Data = Bytes> + Unpin> Exchange<B> {
    fn poll_exchange(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        loop {
            match &mut self.stage {
                Stage::Answering(answer) => {
                    let Poll::Ready(response) = answer.as_mut().poll(cx) else {
                        let _reset = ready!(self.reply.poll_reset(cx));
                        return Poll::Ready(Err(Failure::Cancelled));
                    };
                    match self.send_head(response)? {
                        // Frees the memory of the request.
                        Some(sending) => self.stage = Stage::Sending(sending),
                        None => return Poll::Ready(Ok(())),
                    }
                }
                Stage::Sending(sending) => {
                    let sent = sending.poll(cx);
                    if sent.is_pending()
                        && let Some(guard) = self.guard.as_mut()
                    {
                        guard.response_ready();
                    }
                    return sent;
                }
            }
        }
    }

    /// Sends the headers of the response. Returns what remains to be sent.
    fn send_head(&mut self, response: Response<B>) -> Result<Option<Sending<B>>, Failure> {
        let (head, body) = response.into_parts();
        let mut head = Response::from_parts(head, ());
        let is_empty = body.is_end_stream();
        if !is_empty && let Some(length) = body.size_hint().exact() {
            head.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
        }
        let stream = self.reply.send_response(head, is_empty)?;
        Ok((!is_empty).then_some(Sending { body, stream, data: Bytes::new(), is_last: false }))
    }
}

impl<B: Body<Data = Bytes> + Unpin> Sending<B> {
    /// Sends the rest of the response, as far as the client's windows allow: h2 would hold what exceeds them.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        loop {
            if !self.data.is_empty() {
                ready!(self.poll_send_data(cx))?;
            }
            if self.is_last {
                return Poll::Ready(Ok(()));
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                let _reset = ready!(self.stream.poll_reset(cx));
                return Poll::Ready(Err(Failure::Cancelled));
            };
            let Some(frame) = frame else {
                return Poll::Ready(Ok(self.stream.send_data(Bytes::new(), true)?));
            };
            let frame = frame.map_err(|_| Failure::Internal)?;
            match frame.into_data() {
                Ok(data) => (self.data, self.is_last) = (data, self.body.is_end_stream()),
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        return Poll::Ready(Ok(self.stream.send_trailers(trailers)?));
                    }
                }
            }
            if self.is_last && self.data.is_empty() {
                return Poll::Ready(Ok(self.stream.send_data(Bytes::new(), true)?));
            }
        }
    }

    /// Sends all of the data. Pending while a window is used up.
    fn poll_send_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        while !self.data.is_empty() {
            self.stream.reserve_capacity(self.data.len());
            let fits = self.data.len().min(self.stream.capacity());
            if fits == 0 {
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(_)) => continue,
                    Some(Err(_)) | None => return Poll::Ready(Err(Failure::Cancelled)),
                }
            }
            let data = self.data.split_to(fits);
            self.stream.send_data(data, self.is_last && self.data.is_empty())?;
        }
        Poll::Ready(Ok(()))
    }
}

impl From<h2::Error> for Failure {
    /// A response is not sent if the stream is closed or, which no door does, if it has headers of HTTP/1.1.
    fn from(_error: h2::Error) -> Self {
        Failure::Internal
    }
}
