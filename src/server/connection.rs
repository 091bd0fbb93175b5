//! Serves one connection within the limits that every listener has, whichever library reads and writes its HTTP.

use std::error::Error;
use std::future::poll_fn;
use std::iter::successors;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{sleep, timeout};

use super::driver::Driver;
use super::respond::Responder;
use super::state::{CHECK_INTERVAL, CloseCause, ConnectionState, Rejections};
use super::stream::{MonitoredStream, Stream};
use super::tls::HandshakeError;
use super::{
    BoxError, Door, LogSampler, Misdirected, Peer, Stop, Tls, count_rejected, http1_or_2, http2,
    record_rejected,
};
use crate::clock;

/// The timeout of a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// Limits the log lines about connections that are meant for another listener.
    pub(super) misdirected_log: Arc<LogSampler>,
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

    async fn serve_http<S>(self, stream: S, stop: Stop)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = MonitoredStream::new(stream, Arc::clone(&self.state));
        let responder = Responder::new(Arc::clone(&self.door), self.peer, Arc::clone(&self.state));
        if self.door.speaks_http1() {
            self.drive(http1_or_2::connection(responder, stream), stop).await;
        } else {
            self.drive(http2::connection(responder, stream), stop).await;
        }
    }

    async fn drive(&self, connection: impl Driver, mut stop: Stop) {
        let state = &*self.state;
        tokio::pin!(connection);
        let (mut stopping, mut goaway_at) = (false, None);
        // These go on while requests are rejected, which are turns of the loop.
        let (check, drained) = (sleep(CHECK_INTERVAL), until_drained(state));
        let requested = stop_requested(&mut stop, state);
        tokio::pin!(check, drained, requested);
        loop {
            tokio::select! {
                step = step(connection.as_mut(), state) => match step {
                    Step::Closed(rejected) => {
                        self.record_closed(rejected);
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
                () = &mut check => {
                    check.set(sleep(CHECK_INTERVAL));
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
                () = &mut requested, if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut drained, if stopping => break,
            }
        }
    }

    /// Records what was rejected by the end of the connection. One that is meant for another listener has a log line of its
    /// own, and counts as a rejected request.
    fn record_closed(&self, rejected: u64) {
        let protocol = self.state.protocol();
        match protocol.and_then(|protocol| Misdirected::connection(protocol, self.door.speaks_http1())) {
            Some(misdirected) => {
                count_rejected(&*self.door, rejected.max(1));
                misdirected.log(
                    self.door.name(),
                    self.door.service(),
                    self.peer.address,
                    &self.misdirected_log,
                );
            }
            None => self.record_rejected(rejected),
        }
    }

    fn record_rejected(&self, requests: u64) {
        record_rejected(&*self.door, self.peer, requests, &self.rejected_log);
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
async fn step(mut connection: Pin<&mut impl Driver>, state: &ConnectionState) -> Step {
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

/// How many requests the HTTP library rejected when it closed a connection. An HTTP/1 parse error is one request. Over
/// HTTP/2 it is the streams that were not dispatched, unless the client closed the connection.
fn rejected_at_close(result: Result<(), BoxError>, state: &ConnectionState) -> u64 {
    let Err(error) = result else { return state.take_rejected() };
    if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
        return 1;
    }
    let mut causes = successors(Some(&*error as &(dyn Error + 'static)), |&error| error.source());
    let by_library = causes.any(|cause| cause.downcast_ref().is_some_and(h2::Error::is_library));
    if by_library { state.take_rejected() } else { 0 }
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
