//! What is known of one connection: what it has begun, what it is owed and what it has not taken; and when that has
//! lasted too long. No IO, and no lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::framing::{Framing, Progress};
use crate::clock::{self, Instant};

/// How long a connection may be silent before its first request.
const SILENCE: Duration = Duration::from_secs(75);

/// How long an HTTP/1 connection may be silent between two requests. Longer than any proxy keeps an idle one, so that the
/// proxy closes it and never asks on one that was just closed: NGINX 60 s, Go and Traefik 90 s, Caddy 2 min, Envoy 1 h.
pub(super) const PAUSE: Duration = Duration::from_secs(65 * 60);

/// How long a preface, a frame or a header block may take from its first byte to its last.
const UNFINISHED: Duration = Duration::from_secs(10);

/// How long a client may take nothing of what is sent to it.
const UNREAD: Duration = Duration::from_secs(30);

/// How often a connection is looked at, and so by how much these may be exceeded.
pub(super) const LOOK: Duration = Duration::from_secs(5);

/// So many frames of no request at once, and in each second after, are nobody's who wants answers.
const IDLE_FRAMES: u64 = 10_000;
const IDLE_FRAMES_A_SECOND: u64 = 100;

/// So many requests that nobody can answer are borne at first, and one more for each so many that could be answered: many
/// clients may come over a proxy's one connection, and only some of them are hostile. Then it is told to go, and closed
/// where it brings so many more after it has had the time to know.
const REFUSED: u64 = 16;
const REFUSED_AFTER_LEAVE: u64 = 64;
const ANSWERED_FOR_EACH: u64 = 8;

/// An answer belongs to the span of time in which it began; one that is not taken within two of them is stuck.
const SPANS: usize = 4;

/// What a connection's task, its bytes and its answers share.
#[derive(Debug)]
pub(super) struct ConnectionState {
    began: Instant,
    /// Whether the client has shown that it speaks HTTP: a request, or the settings of HTTP/2.
    established: AtomicBool,
    /// Requests that the library has handed over.
    requests: AtomicU64,
    /// Of these, too large ones.
    too_large: AtomicU64,
    /// Requests that have come over HTTP/2, whether the library can read them or not.
    streams: AtomicU64,
    /// How many requests nobody could answer, as far as they were counted.
    refused: AtomicU64,
    in_flight: AtomicUsize,
    /// Those of them that have no answer yet.
    undecided: AtomicUsize,
    /// Of all connections of the listener.
    crowd: Arc<Crowd>,
    /// Whether the listener is stopped: requests that come now are answered, and nobody waits for them.
    stopped: AtomicBool,
    flooded: AtomicBool,
    /// Whether nothing is read until the library has done what it can with what it has.
    paused: AtomicBool,
    /// Since when nothing is in flight. This and what follows: milliseconds since `began`, one more than they are, so
    /// that 0 is never.
    idle_since: AtomicU64,
    unfinished_since: AtomicU64,
    blocked_since: AtomicU64,
    /// Answers that have begun and not ended, by their span.
    answers: [AtomicU32; SPANS],
    /// Told when no request is without its answer any more.
    idle: Notify,
    /// Told when what comes is a flood.
    pub(super) flood: Notify,
    /// Told when the connection has to make room.
    pub(super) closed: Notify,
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// It never said anything.
    Silent,
    /// It began something and did not finish it.
    Unfinished,
    /// It does not take what is sent to it.
    Unread,
    /// It sends frames without end that are of no request, or requests that cannot be answered.
    Flood,
}

/// What a connection's share of requests that nobody can answer calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// They are few.
    Left,
    /// It should go.
    Leave,
    /// It goes on all the same.
    Over,
}

impl Overdue {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Overdue::Silent => "silent",
            Overdue::Unfinished => "unfinished",
            Overdue::Unread => "unread",
            Overdue::Flood => "flood",
        }
    }
}

impl ConnectionState {
    /// Of a connection that begins now.
    pub(super) fn new(crowd: Arc<Crowd>) -> Self {
        Self {
            began: clock::monotonic(),
            established: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            too_large: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            undecided: AtomicUsize::new(0),
            crowd,
            stopped: AtomicBool::new(false),
            flooded: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            idle_since: AtomicU64::new(1),
            unfinished_since: AtomicU64::new(0),
            blocked_since: AtomicU64::new(0),
            answers: [const { AtomicU32::new(0) }; SPANS],
            idle: Notify::new(),
            flood: Notify::new(),
            closed: Notify::new(),
        }
    }

    fn now(&self) -> u64 {
        let since = clock::monotonic().saturating_duration_since(self.began);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX - 1).saturating_add(1)
    }

    /// Whether this moment lies so far back.
    fn lasts(&self, since: &AtomicU64, longest: Duration) -> bool {
        let since = since.load(Ordering::Relaxed);
        since != 0 && self.now().saturating_sub(since) >= longest.as_millis() as u64
    }

    /// Sets a moment, unless it is set.
    fn begin(&self, since: &AtomicU64) {
        if since.load(Ordering::Relaxed) == 0 {
            since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Bytes of the client's.
    pub(super) fn heard(&self, framing: &mut Framing, bytes: &[u8]) {
        /// Line ends between requests are passed over (RFC 9112 §2.2).
        fn are_line_ends(bytes: &[u8]) -> bool {
            bytes.iter().all(|byte| matches!(byte, b'\r' | b'\n'))
        }
        let progress = framing.feed(bytes);
        self.streams.store(framing.streams(), Ordering::Relaxed);
        match progress {
            // Only its parser knows what is whole; a request that has begun clears it.
            Progress::Http1 if !self.is_busy() && !are_line_ends(bytes) => self.begin(&self.unfinished_since),
            Progress::Http1 => {}
            Progress::Whole => self.unfinished_since.store(0, Ordering::Relaxed),
            Progress::Begun => self.unfinished_since.store(self.now(), Ordering::Relaxed),
            Progress::Unfinished => self.begin(&self.unfinished_since),
        }
        if framing.is_http2() {
            self.established.store(true, Ordering::Relaxed);
            let allowed = IDLE_FRAMES.saturating_add(self.now() / 1000 * IDLE_FRAMES_A_SECOND);
            if framing.idle_frames() > allowed && !self.flooded.swap(true, Ordering::Relaxed) {
                self.flood.notify_one();
            }
        }
    }

    /// A request that was handed over is too large.
    pub(super) fn refuse(&self) {
        self.too_large.fetch_add(1, Ordering::Relaxed);
    }

    /// Nothing is read until this has been resumed.
    pub(super) fn pause(&self) {
        self.paused.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Ends a pause; whether there was one.
    pub(super) fn resume(&self) -> bool {
        self.paused.swap(false, Ordering::Relaxed)
    }

    /// How many requests have been refused since this was last asked, for their size or by the library, which hands those
    /// over that it can read. To be asked where it has done all that it can: what it waits with while the client takes
    /// nothing is left out.
    pub(super) fn newly_refused(&self) -> u64 {
        let by_library =
            self.streams.load(Ordering::Relaxed).saturating_sub(self.requests.load(Ordering::Relaxed));
        let refused = by_library.saturating_add(self.too_large.load(Ordering::Relaxed));
        if self.blocked_since.load(Ordering::Relaxed) != 0 {
            return 0;
        }
        refused.saturating_sub(self.refused.swap(refused, Ordering::Relaxed))
    }

    /// Whether it has brought too many of those.
    pub(super) fn patience(&self) -> Patience {
        let borne = self.requests.load(Ordering::Relaxed) / ANSWERED_FOR_EACH;
        let excess = self.refused.load(Ordering::Relaxed).saturating_sub(borne);
        if excess > REFUSED_AFTER_LEAVE {
            Patience::Over
        } else if excess > REFUSED {
            Patience::Leave
        } else {
            Patience::Left
        }
    }

    /// The client took what was written, or did not.
    pub(super) fn wrote(&self, blocked: bool) {
        if blocked {
            self.begin(&self.blocked_since);
        } else {
            self.blocked_since.store(0, Ordering::Relaxed);
        }
    }

    /// A request whose header block is whole. `http1` where no frame says so.
    pub(super) fn request(&self, http1: bool) {
        self.established.store(true, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.idle_since.store(self.now(), Ordering::Relaxed);
        if http1 {
            self.unfinished_since.store(0, Ordering::Relaxed);
        }
    }

    /// A request is in flight until what this returns is dropped.
    pub(super) fn flight(self: &Arc<Self>) -> Flight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        self.crowd.enter();
        let undecided = !self.stopped.load(Ordering::Relaxed);
        if undecided {
            self.undecided.fetch_add(1, Ordering::AcqRel);
        }
        Flight { state: Arc::clone(self), undecided, answered_in: None }
    }

    /// From here on nobody waits for requests that begin.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// How many requests are in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Whether the client has shown that it speaks HTTP.
    pub(super) fn is_established(&self) -> bool {
        self.established.load(Ordering::Relaxed)
    }

    /// Whether a request is in flight.
    pub(super) fn is_busy(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) > 0
    }

    /// How long it has been without a request; less worth keeping where it never had one.
    pub(super) fn worth(&self) -> Worth {
        let idle = self.now().saturating_sub(self.idle_since.load(Ordering::Relaxed));
        let idle = Duration::from_millis(idle);
        match (self.is_busy(), self.requests.load(Ordering::Relaxed)) {
            (true, _) => Worth::Busy,
            (false, 0) => Worth::Unproven(idle),
            (false, _) => Worth::Idle(idle),
        }
    }

    /// Waits until every request that is waited for has its answer.
    pub(super) async fn until_decided(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            // From here on it is told, even between the look and the wait.
            idle.as_mut().enable();
            if self.undecided.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }

    /// What has lasted too long.
    pub(super) fn overdue(&self) -> Option<Overdue> {
        let silent = !self.is_established() && self.now() > SILENCE.as_millis() as u64;
        if self.lasts(&self.unfinished_since, UNFINISHED) {
            Some(Overdue::Unfinished)
        } else if self.lasts(&self.blocked_since, UNREAD) || self.has_stuck_answers() {
            Some(Overdue::Unread)
        } else {
            silent.then_some(Overdue::Silent)
        }
    }

    fn span(&self) -> usize {
        (self.now() / UNREAD.as_millis() as u64) as usize % SPANS
    }

    /// Whether an answer is open that began at least one whole span ago.
    fn has_stuck_answers(&self) -> bool {
        let stuck = (self.span() + SPANS - 2) % SPANS;
        self.answers.get(stuck).is_some_and(|open| open.load(Ordering::Relaxed) > 0)
    }
}

/// All requests in flight at one listener. What each holds is small, and many of them are not.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    in_flight: AtomicUsize,
    /// Told when there are too many.
    pub(super) too_many: Notify,
}

impl Crowd {
    /// More than wait in any herd that `max_waiters` lets in by default.
    const MOST: usize = 20_000;

    fn enter(&self) {
        if self.in_flight.fetch_add(1, Ordering::AcqRel) >= Self::MOST {
            self.too_many.notify_one();
        }
    }

    fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Of what use a connection is, when another wants its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Worth {
    /// It has brought no request for so long.
    Unproven(Duration),
    /// It has had requests, and none for so long.
    Idle(Duration),
    /// A request is in flight.
    Busy,
}

/// A request in flight, from its headers to the end of its answer.
#[derive(Debug)]
pub(super) struct Flight {
    state: Arc<ConnectionState>,
    undecided: bool,
    answered_in: Option<usize>,
}

impl Flight {
    /// Its answer is there, for the client to take.
    pub(super) fn answered(&mut self) {
        self.decided();
        let span = self.state.span();
        if let Some(open) = self.state.answers.get(span) {
            open.fetch_add(1, Ordering::Relaxed);
            self.answered_in = Some(span);
        }
    }
}

impl Flight {
    fn decided(&mut self) {
        if std::mem::take(&mut self.undecided) && self.state.undecided.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.state.idle.notify_waiters();
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.decided();
        self.state.crowd.leave();
        if let Some(open) = self.answered_in.and_then(|span| self.state.answers.get(span)) {
            open.fetch_sub(1, Ordering::Relaxed);
        }
        self.state.idle_since.store(self.state.now(), Ordering::Relaxed);
        self.state.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pass(time: Duration) {
        tokio::time::advance(time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_borne_until_its_end_and_for_ever_once_http_is_spoken() {
        let silent = ConnectionState::new(Arc::default());
        let greeted = ConnectionState::new(Arc::default());
        let mut framing = Framing::new();
        greeted.heard(&mut framing, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        greeted.heard(&mut framing, &[0, 0, 0, 4, 0, 0, 0, 0, 0]);
        pass(SILENCE - Duration::from_millis(1)).await;
        assert_eq!(silent.overdue(), None);
        pass(Duration::from_millis(1)).await;
        assert_eq!(silent.overdue(), Some(Overdue::Silent));
        pass(SILENCE * 10).await;
        assert_eq!(greeted.overdue(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_drips_is_unfinished_however_often_a_byte_comes() {
        for beginning in ["PRI", "GET / HTTP/1.1\r\n"] {
            let state = ConnectionState::new(Arc::default());
            let mut framing = Framing::new();
            state.heard(&mut framing, beginning.as_bytes());
            for _ in 0..9 {
                pass(Duration::from_secs(1)).await;
                state.heard(&mut framing, b"x");
            }
            // The first that is no preface shows that it is HTTP/1, which was begun then.
            assert_eq!(state.overdue(), None, "{beginning}");
            pass(Duration::from_secs(1)).await;
            assert_eq!(state.overdue(), Some(Overdue::Unfinished), "{beginning}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_begins_finishes_what_http_1_has_sent() {
        let state = Arc::new(ConnectionState::new(Arc::default()));
        state.heard(&mut Framing::new(), b"GET / HTTP/1.1\r\n");
        state.request(true);
        let flight = state.flight();
        pass(UNFINISHED * 3).await;
        assert_eq!(state.overdue(), None);
        assert_eq!(state.worth(), Worth::Busy);
        drop(flight);
        pass(Duration::from_secs(2)).await;
        assert_eq!(state.worth(), Worth::Idle(Duration::from_secs(2)));
    }

    #[test]
    fn patience_ends_with_refusals_beyond_a_share_of_the_requests() {
        let state = ConnectionState::new(Arc::default());
        let refuse = |times: u64| {
            for _ in 0..times {
                state.request(false);
                state.refuse();
            }
            state.newly_refused()
        };
        assert_eq!((refuse(18), state.patience()), (18, Patience::Left), "two of them for 18 requests");
        assert_eq!((refuse(1), state.patience()), (1, Patience::Leave));
        (0..8).for_each(|_| state.request(false));
        assert_eq!((state.newly_refused(), state.patience()), (0, Patience::Left));
        refuse(51);
        assert_eq!(state.patience(), Patience::Leave);
        refuse(5);
        assert_eq!(state.patience(), Patience::Over);
    }

    #[test]
    fn what_the_library_waits_with_is_not_refused() {
        let state = ConnectionState::new(Arc::default());
        state.streams.store(3, Ordering::Relaxed);
        state.request(false);
        state.wrote(true);
        assert_eq!(state.newly_refused(), 0);
        state.wrote(false);
        assert_eq!((state.newly_refused(), state.newly_refused()), (2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_taken_is_overdue_and_one_that_is_still_decided_is_not() {
        let state = Arc::new(ConnectionState::new(Arc::default()));
        state.request(true);
        let mut flight = state.flight();
        pass(UNREAD * 5).await;
        assert_eq!(state.overdue(), None, "not answered yet");
        flight.answered();
        let mut waited = Duration::ZERO;
        while state.overdue().is_none() {
            pass(Duration::from_secs(1)).await;
            waited += Duration::from_secs(1);
            assert!(waited < UNREAD * 3);
        }
        assert!(waited > UNREAD);
        drop(flight);
        assert_eq!(state.overdue(), None);
        state.wrote(true);
        pass(UNREAD).await;
        assert_eq!(state.overdue(), Some(Overdue::Unread));
        state.wrote(false);
        assert_eq!(state.overdue(), None);
    }
}
