//! The state of one connection: incomplete input, requests in flight and unread output, with their timeouts. It does no
//! IO and takes no lock.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;

use super::framing::{Framing, Progress};
use super::protocol::Protocol;
use crate::clock::{self, Instant};

/// The timeout for the first request.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(75);

/// The idle timeout between two HTTP/1 requests. It is longer than that of any proxy, so that the proxy closes the
/// connection and never sends a request on one that was just closed: NGINX 60 s, Go and Traefik 90 s, Caddy 2 min,
/// Envoy 1 h.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(65 * 60);

/// The timeout of a preface, a frame or a header block from its first byte to its last.
const INCOMPLETE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may read nothing of what is sent to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// How often the timeouts are checked, and so by how much they may be exceeded.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// How many frames that belong to no request are allowed at once, and how many more each second. No client with
/// requests sends as many.
const MAX_IDLE_FRAMES: u64 = 10_000;
const IDLE_FRAMES_PER_SECOND: u64 = 100;

/// How many rejected requests are tolerated at first, plus one for each `REQUESTS_PER_REJECTION` valid ones: a proxy's
/// connection carries many clients, of which only some are hostile. Beyond that it gets a GOAWAY, and is closed if this
/// many more arrive after the client has had time to see it.
const MAX_REJECTED: u64 = 16;
const MAX_REJECTED_AFTER_GOAWAY: u64 = 64;
const REQUESTS_PER_REJECTION: u64 = 8;

/// The number of time spans, each `WRITE_TIMEOUT` long. A response belongs to the span in which it started; one that is
/// still open two spans later is stuck.
const SPANS: usize = 4;

/// State shared by a connection's task, its stream and its responses.
#[derive(Debug)]
pub(super) struct ConnectionState {
    started: Instant,
    /// What the client speaks, if it is not HTTP/2.
    protocol: OnceLock<Protocol>,
    /// Whether the client has sent a request or its HTTP/2 settings.
    established: AtomicBool,
    /// Requests that the HTTP library has dispatched.
    requests: AtomicU64,
    /// Dispatched requests that are too large.
    too_large: AtomicU64,
    /// HTTP/2 streams that the client has opened, whether they are dispatched or not.
    streams: AtomicU64,
    /// Rejected requests that have been counted.
    rejected: AtomicU64,
    in_flight: AtomicUsize,
    /// Requests in flight without a response yet.
    unanswered: AtomicUsize,
    /// The requests in flight on all connections of the listener.
    load: Arc<Load>,
    /// Whether the listener is stopped: later requests are answered, but the drain does not wait for them.
    stopped: AtomicBool,
    flooded: AtomicBool,
    /// Whether reading is paused until the HTTP library has processed its input.
    paused: AtomicBool,
    /// When the last request ended, and when something was last read. These and the following are milliseconds since `started` plus one, so that 0 means
    /// unset.
    idle_since: AtomicU64,
    read_at: AtomicU64,
    incomplete_since: AtomicU64,
    blocked_since: AtomicU64,
    /// Open responses by the span in which they started.
    responses: [AtomicU32; SPANS],
    /// Notified when every request has its response.
    answered: Notify,
    /// Notified when the client floods.
    pub(super) flood: Notify,
    /// Notified when the connection is to be closed.
    pub(super) closed: Notify,
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CloseCause {
    /// The client sent nothing.
    Silent,
    /// The client did not complete a preface, a frame or a header block.
    Unfinished,
    /// The client does not read what is sent to it.
    Unread,
    /// The client sends too many frames that belong to no request, or too many requests that are rejected.
    Flood,
}

/// How the number of rejected requests compares with the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejections {
    /// Within the limit.
    Tolerated,
    /// Above the limit: the connection is shut down gracefully.
    TooMany,
    /// Far above the limit: the connection is closed.
    Excessive,
}

impl CloseCause {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            CloseCause::Silent => "silent",
            CloseCause::Unfinished => "unfinished",
            CloseCause::Unread => "unread",
            CloseCause::Flood => "flood",
        }
    }
}

impl ConnectionState {
    /// The state of a new connection.
    pub(super) fn new(load: Arc<Load>) -> Self {
        Self {
            started: clock::awake(),
            protocol: OnceLock::new(),
            established: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            too_large: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(0),
            load,
            stopped: AtomicBool::new(false),
            flooded: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            idle_since: AtomicU64::new(1),
            read_at: AtomicU64::new(1),
            incomplete_since: AtomicU64::new(0),
            blocked_since: AtomicU64::new(0),
            responses: [const { AtomicU32::new(0) }; SPANS],
            answered: Notify::new(),
            flood: Notify::new(),
            closed: Notify::new(),
        }
    }

    fn now(&self) -> u64 {
        let since = clock::awake().saturating_duration_since(self.started);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX - 1).saturating_add(1)
    }

    /// Whether at least `timeout` has passed since this time, if it is set.
    fn has_elapsed(&self, since: &AtomicU64, timeout: Duration) -> bool {
        let since = since.load(Ordering::Relaxed);
        since != 0 && self.now().saturating_sub(since) >= timeout.as_millis() as u64
    }

    /// Records bytes received from the client.
    pub(super) fn record_read(&self, framing: &mut Framing, bytes: &[u8]) {
        /// Empty lines before a request are ignored (RFC 9112 §2.2).
        fn are_line_ends(bytes: &[u8]) -> bool {
            bytes.iter().all(|byte| matches!(byte, b'\r' | b'\n'))
        }
        let (progress, now) = (framing.feed(bytes), self.now());
        self.streams.store(framing.streams(), Ordering::Relaxed);
        self.read_at.store(now, Ordering::Relaxed);
        if let Progress::Other(protocol) = progress {
            self.protocol.get_or_init(|| protocol);
        }
        match progress {
            // Only the HTTP/1 parser knows when a head is complete; the dispatched request clears the timeout.
            Progress::Other(_) if !self.is_busy() && !are_line_ends(bytes) => {
                set_once(&self.incomplete_since, now);
            }
            Progress::Other(_) => {}
            Progress::Complete => self.incomplete_since.store(0, Ordering::Relaxed),
            Progress::Started => self.incomplete_since.store(now, Ordering::Relaxed),
            Progress::Incomplete => set_once(&self.incomplete_since, now),
        }
        if framing.is_http2() {
            self.established.store(true, Ordering::Relaxed);
            let allowed = MAX_IDLE_FRAMES.saturating_add(now / 1000 * IDLE_FRAMES_PER_SECOND);
            if framing.idle_frames() > allowed && !self.flooded.swap(true, Ordering::Relaxed) {
                self.flood.notify_one();
            }
        }
    }

    /// What the client speaks, if it has sent something that is not HTTP/2.
    pub(super) fn protocol(&self) -> Option<Protocol> {
        self.protocol.get().copied()
    }

    /// The time since something was last read.
    pub(super) fn since_read(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.read_at.load(Ordering::Relaxed)))
    }

    /// Whether streams are open that were not dispatched. They wait for that, or were rejected.
    pub(super) fn has_undispatched(&self) -> bool {
        self.streams.load(Ordering::Relaxed) > self.requests.load(Ordering::Relaxed)
    }

    /// Records that a dispatched request is too large.
    pub(super) fn record_too_large(&self) {
        self.too_large.fetch_add(1, Ordering::Relaxed);
    }

    /// Pauses reading until `resume`.
    pub(super) fn pause(&self) {
        self.paused.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Whether the client floods, and the connection is to be closed for it.
    pub(super) fn is_flooded(&self) -> bool {
        self.flooded.load(Ordering::Relaxed)
    }

    /// Ends a pause. Returns whether there was one.
    pub(super) fn resume(&self) -> bool {
        self.paused.swap(false, Ordering::Relaxed)
    }

    /// The number of requests rejected since the last call, by their size or by the HTTP library, which does not dispatch
    /// what it cannot read. To be called while the connection is pending; returns 0 while writes are blocked, because
    /// the library then holds back streams without rejecting them.
    pub(super) fn take_rejected(&self) -> u64 {
        let by_library =
            self.streams.load(Ordering::Relaxed).saturating_sub(self.requests.load(Ordering::Relaxed));
        let rejected = by_library.saturating_add(self.too_large.load(Ordering::Relaxed));
        if self.blocked_since.load(Ordering::Relaxed) != 0 {
            return 0;
        }
        rejected.saturating_sub(self.rejected.swap(rejected, Ordering::Relaxed))
    }

    /// Whether too many requests were rejected.
    pub(super) fn rejections(&self) -> Rejections {
        let tolerated = self.requests.load(Ordering::Relaxed) / REQUESTS_PER_REJECTION;
        let excess = self.rejected.load(Ordering::Relaxed).saturating_sub(tolerated);
        if excess > MAX_REJECTED_AFTER_GOAWAY {
            Rejections::Excessive
        } else if excess > MAX_REJECTED {
            Rejections::TooMany
        } else {
            Rejections::Tolerated
        }
    }

    /// Records whether a write was blocked.
    pub(super) fn record_write(&self, blocked: bool) {
        if blocked {
            set_once(&self.blocked_since, self.now());
        } else {
            self.blocked_since.store(0, Ordering::Relaxed);
        }
    }

    /// Records a request with a complete head. `http1` means that no frame has shown its end.
    pub(super) fn record_request(&self, http1: bool) {
        self.established.store(true, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        // It was just read.
        self.idle_since.store(self.read_at.load(Ordering::Relaxed), Ordering::Relaxed);
        if http1 {
            self.incomplete_since.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a request as in flight until the guard is dropped.
    pub(super) fn start_request(self: &Arc<Self>) -> RequestGuard {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        self.load.increment();
        let unanswered = !self.stopped.load(Ordering::Relaxed);
        if unanswered {
            self.unanswered.fetch_add(1, Ordering::AcqRel);
        }
        RequestGuard { state: Arc::clone(self), unanswered, response_span: None }
    }

    /// Excludes later requests from the drain.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// The number of requests in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Whether the client has sent a request or its HTTP/2 settings.
    pub(super) fn is_established(&self) -> bool {
        self.established.load(Ordering::Relaxed)
    }

    /// Whether a request is in flight.
    pub(super) fn is_busy(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) > 0
    }

    /// Whether it has a request, or how long it has had none.
    pub(super) fn activity(&self) -> Activity {
        let idle = self.now().saturating_sub(self.idle_since.load(Ordering::Relaxed));
        let idle = Duration::from_millis(idle);
        match (self.is_busy(), self.requests.load(Ordering::Relaxed)) {
            (true, _) => Activity::Busy,
            (false, 0) => Activity::Unused(idle),
            (false, _) => Activity::Idle(idle),
        }
    }

    /// Waits until every request from before the stop has its response.
    pub(super) async fn until_answered(&self) {
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            // Registers for the notification before the check, so that none in between is missed.
            answered.as_mut().enable();
            if self.unanswered.load(Ordering::Acquire) == 0 {
                return;
            }
            answered.await;
        }
    }

    /// The timeout that is exceeded, if any.
    pub(super) fn exceeded_timeout(&self) -> Option<CloseCause> {
        let silent = !self.is_established() && self.now() > FIRST_REQUEST_TIMEOUT.as_millis() as u64;
        if self.has_elapsed(&self.incomplete_since, INCOMPLETE_TIMEOUT) {
            Some(CloseCause::Unfinished)
        } else if self.has_elapsed(&self.blocked_since, WRITE_TIMEOUT) || self.has_stuck_responses() {
            Some(CloseCause::Unread)
        } else {
            silent.then_some(CloseCause::Silent)
        }
    }

    fn span(&self) -> usize {
        (self.now() / WRITE_TIMEOUT.as_millis() as u64) as usize % SPANS
    }

    /// Whether a response is open that started at least one full span ago.
    fn has_stuck_responses(&self) -> bool {
        let stuck = (self.span() + SPANS - 2) % SPANS;
        self.responses.get(stuck).is_some_and(|open| open.load(Ordering::Relaxed) > 0)
    }
}

/// Sets this time, unless it is set.
fn set_once(since: &AtomicU64, now: u64) {
    if since.load(Ordering::Relaxed) == 0 {
        since.store(now, Ordering::Relaxed);
    }
}

/// The requests in flight at one listener, limited because their memory adds up.
#[derive(Debug, Default)]
pub(super) struct Load {
    in_flight: AtomicUsize,
    /// Notified when there are too many.
    pub(super) overloaded: Notify,
}

impl Load {
    /// More than `max_waiters` allows to wait for keys by default.
    pub(super) const MAX_IN_FLIGHT: usize = 20_000;

    fn increment(&self) {
        if self.in_flight.fetch_add(1, Ordering::AcqRel) >= Self::MAX_IN_FLIGHT {
            self.overloaded.notify_one();
        }
    }

    fn decrement(&self) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The activity of a connection, which decides whether it may be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    /// It has had no request since it was accepted, for this long.
    Unused(Duration),
    /// It has had requests, but none for this long.
    Idle(Duration),
    /// A request is in flight.
    Busy,
}

/// Counts a request as in flight, from its headers to the end of its response.
#[derive(Debug)]
pub(super) struct RequestGuard {
    state: Arc<ConnectionState>,
    unanswered: bool,
    response_span: Option<usize>,
}

impl RequestGuard {
    /// Records that the response is ready for the client to read. Later calls do nothing.
    pub(super) fn response_ready(&mut self) {
        if self.response_span.is_some() {
            return;
        }
        self.mark_answered();
        let span = self.state.span();
        if let Some(open) = self.state.responses.get(span) {
            open.fetch_add(1, Ordering::Relaxed);
            self.response_span = Some(span);
        }
    }
}

impl RequestGuard {
    fn mark_answered(&mut self) {
        if std::mem::take(&mut self.unanswered) && self.state.unanswered.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.state.answered.notify_waiters();
        }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.mark_answered();
        self.state.load.decrement();
        if let Some(open) = self.response_span.and_then(|span| self.state.responses.get(span)) {
            open.fetch_sub(1, Ordering::Relaxed);
        }
        self.state.idle_since.store(self.state.now(), Ordering::Relaxed);
        self.state.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn advance(time: Duration) {
        tokio::time::advance(time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_times_out_and_an_established_one_never_does() {
        let silent = ConnectionState::new(Arc::default());
        let established = ConnectionState::new(Arc::default());
        let mut framing = Framing::new();
        established.record_read(&mut framing, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        established.record_read(&mut framing, &[0, 0, 0, 4, 0, 0, 0, 0, 0]);
        advance(FIRST_REQUEST_TIMEOUT - Duration::from_millis(1)).await;
        assert_eq!(silent.exceeded_timeout(), None);
        advance(Duration::from_millis(1)).await;
        assert_eq!(silent.exceeded_timeout(), Some(CloseCause::Silent));
        advance(FIRST_REQUEST_TIMEOUT * 10).await;
        assert_eq!(established.exceeded_timeout(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_input_times_out_however_often_a_byte_arrives() {
        for beginning in ["PRI", "GET / HTTP/1.1\r\n"] {
            let state = ConnectionState::new(Arc::default());
            let mut framing = Framing::new();
            state.record_read(&mut framing, beginning.as_bytes());
            for _ in 0..9 {
                advance(Duration::from_secs(1)).await;
                state.record_read(&mut framing, b"x");
            }
            // The first byte that does not match the preface shows that it is HTTP/1, whose timeout starts then.
            assert_eq!(state.exceeded_timeout(), None, "{beginning}");
            advance(Duration::from_secs(1)).await;
            assert_eq!(state.exceeded_timeout(), Some(CloseCause::Unfinished), "{beginning}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_dispatched_request_completes_http_1_input() {
        let state = Arc::new(ConnectionState::new(Arc::default()));
        state.record_read(&mut Framing::new(), b"GET / HTTP/1.1\r\n");
        state.record_request(true);
        let guard = state.start_request();
        advance(INCOMPLETE_TIMEOUT * 3).await;
        assert_eq!(state.exceeded_timeout(), None);
        assert_eq!(state.activity(), Activity::Busy);
        drop(guard);
        advance(Duration::from_secs(2)).await;
        assert_eq!(state.activity(), Activity::Idle(Duration::from_secs(2)));
    }

    #[test]
    fn rejections_are_tolerated_up_to_a_share_of_the_requests() {
        let state = ConnectionState::new(Arc::default());
        let reject = |times: u64| {
            for _ in 0..times {
                state.record_request(false);
                state.record_too_large();
            }
            state.take_rejected()
        };
        assert_eq!((reject(18), state.rejections()), (18, Rejections::Tolerated), "18 requests add two");
        assert_eq!((reject(1), state.rejections()), (1, Rejections::TooMany));
        (0..8).for_each(|_| state.record_request(false));
        assert_eq!((state.take_rejected(), state.rejections()), (0, Rejections::Tolerated));
        reject(51);
        assert_eq!(state.rejections(), Rejections::TooMany);
        reject(5);
        assert_eq!(state.rejections(), Rejections::Excessive);
    }

    #[test]
    fn streams_that_the_http_library_holds_back_are_not_rejected() {
        let state = ConnectionState::new(Arc::default());
        state.streams.store(3, Ordering::Relaxed);
        state.record_request(false);
        state.record_write(true);
        assert_eq!(state.take_rejected(), 0);
        state.record_write(false);
        assert_eq!((state.take_rejected(), state.take_rejected()), (2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_is_not_read_times_out_and_a_request_that_is_still_decided_does_not() {
        let state = Arc::new(ConnectionState::new(Arc::default()));
        state.record_request(true);
        let mut guard = state.start_request();
        advance(WRITE_TIMEOUT * 5).await;
        assert_eq!(state.exceeded_timeout(), None, "not answered yet");
        guard.response_ready();
        let mut waited = Duration::ZERO;
        while state.exceeded_timeout().is_none() {
            advance(Duration::from_secs(1)).await;
            waited += Duration::from_secs(1);
            assert!(waited < WRITE_TIMEOUT * 3);
        }
        assert!(waited > WRITE_TIMEOUT);
        drop(guard);
        assert_eq!(state.exceeded_timeout(), None);
        state.record_write(true);
        advance(WRITE_TIMEOUT).await;
        assert_eq!(state.exceeded_timeout(), Some(CloseCause::Unread));
        state.record_write(false);
        assert_eq!(state.exceeded_timeout(), None);
    }
}
