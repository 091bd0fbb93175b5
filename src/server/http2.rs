//! Serves connections of listeners for HTTP/2 only, with h2.
//!
//! A request that can be answered immediately, as almost every Check, is answered by the connection's own task: it needs
//! no task of its own, and the responses to all requests of one read are written together. A request that has to wait
//! continues in a task.

mod exchange;
mod keep_alive;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{self, Handshake, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};

use super::body::{RequestBody, StreamBody};
use super::driver::Driver;
use super::limits::{
    CONNECTION_WINDOW, MAX_FRAME, MAX_HEAD_BYTES, MAX_PENDING_RESETS, MAX_SEND_BUFFER, STREAM_WINDOW,
};
use super::respond::{Responder, too_large};
use super::stream::MonitoredStream;
use super::{BoxError, Door};
use crate::clock;

use self::exchange::Exchange;
use self::keep_alive::{KeepAlive, NoPong};

/// How many requests are accepted before the first of them is answered. Their responses are written together.
const MAX_ACCEPTED: usize = 32;

/// How many requests a connection's task answers before it yields, and for how long. Further requests that were read
/// with these get tasks, so that neither other connections wait for them nor one core has to answer all of them.
const MAX_ANSWERED_INLINE: usize = 64;
const MAX_INLINE_TIME: Duration = Duration::from_millis(2);

/// A connection.
pub(super) struct Http2<S, D: Door> {
    responder: Responder<D>,
    phase: Phase<S>,
    is_shutting_down: bool,
    /// Requests that were read and have not been polled.
    accepted: Vec<Exchange<D::Body>>,
    /// Requests that were polled when reading paused before their data. It resumes with the next poll.
    deferred: Vec<Exchange<D::Body>>,
}

enum Phase<S> {
    Handshake(Handshake<MonitoredStream<S>, Bytes>),
    Serving(server::Connection<MonitoredStream<S>, Bytes>, Option<KeepAlive>),
}

/// A connection over this stream.
pub(super) fn connection<D: Door, S>(responder: Responder<D>, stream: MonitoredStream<S>) -> Http2<S, D>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = builder(responder.door().max_streams()).handshake(stream.with_joined_writes());
    let phase = Phase::Handshake(handshake);
    Http2 { responder, phase, is_shutting_down: false, accepted: Vec::new(), deferred: Vec::new() }
}

/// The HTTP limits that h2 enforces.
fn builder(streams: u32) -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(streams)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(None)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEAD_BYTES)
        .max_send_buffer_size(MAX_SEND_BUFFER);
    builder
}

impl<S, D> Driver for Http2<S, D>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: Door,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        let this = self.get_mut();
        this.is_shutting_down = true;
        if let Phase::Serving(connection, _) = &mut this.phase {
            connection.graceful_shutdown();
        }
    }
}

impl<S, D> Future for Http2<S, D>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: Door,
{
    type Output = Result<(), BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { responder, phase, is_shutting_down, accepted, deferred } = self.get_mut();
        if let Phase::Handshake(handshake) = phase {
            let mut connection = ready!(Pin::new(handshake).poll(cx))?;
            if *is_shutting_down {
                connection.graceful_shutdown();
            }
            let keep_alive = connection.ping_pong().map(KeepAlive::new);
            *phase = Phase::Serving(connection, keep_alive);
        }
        let Phase::Serving(connection, keep_alive) = phase else { return Poll::Pending };
        let pong = keep_alive.as_mut().map_or(Poll::Pending, |pings| pings.poll(cx, responder.state()));
        if let Poll::Ready(NoPong) = pong {
            connection.abrupt_shutdown(Reason::NO_ERROR);
        }
        let mut serving = Serving { connection, responder, accepted, deferred };
        // A response wakes the task that polled last, which would be this one: it is to be woken by what comes later.
        let mut closed = serving.accept(&mut Context::from_waker(Waker::noop()));
        let mut inline = Inline::default();
        serving.answer_deferred(cx, &mut inline);
        loop {
            serving.answer(cx, &mut inline);
            if closed.is_ready() {
                return closed.map_err(Into::into);
            }
            // Writes the responses.
            closed = serving.accept(cx);
            if serving.accepted.is_empty() {
                return closed.map_err(Into::into);
            }
        }
    }
}

/// A connection after its handshake.
struct Serving<'a, S, D: Door> {
    connection: &'a mut server::Connection<MonitoredStream<S>, Bytes>,
    responder: &'a Responder<D>,
    accepted: &'a mut Vec<Exchange<D::Body>>,
    deferred: &'a mut Vec<Exchange<D::Body>>,
}

impl<S, D> Serving<'_, S, D>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: Door,
{
    /// Writes what there is to write, and accepts the requests that were received. Pending if there may be more, whose
    /// arrival wakes the task if none were accepted.
    fn accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        while let Some(request) = ready!(self.connection.poll_accept(cx)) {
            let (request, reply) = request?;
            self.accepted.push(self.exchange(request, reply));
            if self.accepted.len() >= MAX_ACCEPTED || !self.responder.state().has_undispatched() {
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn exchange(&self, request: Request<RecvStream>, reply: SendResponse<Bytes>) -> Exchange<D::Body> {
        let request = request.map(|stream| RequestBody::H2(StreamBody::new(stream)));
        let received = self.responder.receive(&request);
        match received.header_bytes {
            Some(_) => Exchange::new(Box::pin(self.responder.answer(request)), reply, received.guard),
            None => Exchange::new(Box::pin(std::future::ready(too_large())), reply, received.guard),
        }
    }

    /// Answers the requests whose data may have been read since they were polled. The others continue in tasks.
    fn answer_deferred(&mut self, cx: &mut Context<'_>, inline: &mut Inline) {
        for exchange in self.deferred.drain(..) {
            if let Some(waiting) = inline.poll(exchange, cx) {
                tokio::spawn(waiting);
            }
        }
    }

    /// Answers the accepted requests. Those that have to wait continue in tasks, unless they wait only for what is about
    /// to be read.
    fn answer(&mut self, cx: &mut Context<'_>, inline: &mut Inline) {
        let is_paused = self.responder.state().is_paused();
        for exchange in self.accepted.drain(..) {
            match inline.poll(exchange, cx) {
                Some(waiting) if is_paused => self.deferred.push(waiting),
                Some(waiting) => drop(tokio::spawn(waiting)),
                None => {}
            }
        }
    }
}

/// What the connection's task has answered since it was woken.
#[derive(Default)]
struct Inline {
    requests: usize,
    started: Option<clock::Instant>,
}

impl Inline {
    /// Polls a request within the limits. Returns it if it was not answered.
    fn poll<B>(&mut self, mut exchange: Exchange<B>, cx: &mut Context<'_>) -> Option<Exchange<B>>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let is_answered = !self.is_exhausted() && Pin::new(&mut exchange).poll(cx).is_ready();
        (!is_answered).then_some(exchange)
    }

    /// Counts a request. Returns whether it is beyond the limits.
    fn is_exhausted(&mut self) -> bool {
        self.requests = self.requests.saturating_add(1);
        // The second request reads the clock first: most wakes are for one.
        match self.started {
            None if self.requests > 1 => self.started = Some(clock::awake()),
            None => return false,
            Some(started) if started.elapsed() > MAX_INLINE_TIME => return true,
            Some(_) => {}
        }
        self.requests > MAX_ANSWERED_INLINE
    }
}

#[cfg(test)]
mod tests;
