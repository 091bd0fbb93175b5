//! Pings a client that sends nothing, and notices that it does not acknowledge a ping.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use h2::{Ping, PingPong};
use tokio::time::{Sleep, sleep};

use crate::server::limits::{KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT};
use crate::server::state::ConnectionState;

/// The pings of one connection.
pub(super) struct KeepAlive {
    pings: PingPong,
    /// Ends when the next ping is due, or when the acknowledgement of the last one is overdue.
    timer: Pin<Box<Sleep>>,
    is_pong_due: bool,
}

/// A ping was not acknowledged in time.
pub(super) struct NoPong;

impl KeepAlive {
    /// The pings of a connection whose handshake has just ended.
    pub(super) fn new(pings: PingPong) -> Self {
        Self { pings, timer: Box::pin(sleep(KEEP_ALIVE_INTERVAL)), is_pong_due: false }
    }

    /// Sends a ping if one is due. Ready if the last one was not acknowledged in time.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, state: &ConnectionState) -> Poll<NoPong> {
        loop {
            if self.is_pong_due {
                match self.pings.poll_pong(cx) {
                    Poll::Ready(Ok(_pong)) => {
                        self.is_pong_due = false;
                        self.timer.set(sleep(KEEP_ALIVE_INTERVAL));
                    }
                    // The connection is closed.
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => {
                        ready!(self.timer.as_mut().poll(cx));
                        return Poll::Ready(NoPong);
                    }
                }
            }
            ready!(self.timer.as_mut().poll(cx));
            let rest = KEEP_ALIVE_INTERVAL.saturating_sub(state.since_read());
            if rest.is_zero() {
                // An error means that the connection is closed.
                self.is_pong_due = self.pings.send_ping(Ping::opaque()).is_ok();
                self.timer.set(sleep(KEEP_ALIVE_TIMEOUT));
            } else {
                self.timer.set(sleep(rest));
            }
        }
    }
}
