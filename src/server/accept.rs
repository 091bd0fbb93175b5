//! Accepting connections: how many at a time, and which one makes room when there are as many as there may be.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use super::connection::Connection;
use super::state::{ConnectionState, Crowd, Worth};
use super::stream::Stream;
use super::{Door, Peer, Rarely, Socket, Stop, Tls};
use crate::clock::{self, Instant};

/// How long nothing is accepted after the system could not give a connection, for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection that has brought no request makes room once it is so old, and one that has once it has been idle for
/// so long.
const UNPROVEN: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(10);

/// How many make room at a time.
const AT_ONCE: usize = 16;

/// How long it takes until connections are looked through again, where none could make room.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Numbers for connections, of all listeners.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

/// A door with its socket.
pub(crate) struct Listener<D> {
    door: Arc<D>,
    socket: Mutex<Option<Arc<Socket>>>,
    tls: Option<Tls>,
    open: Arc<Open>,
    /// As many connections as the machine allows.
    descriptors: Arc<AtomicUsize>,
    refusals: Rarely,
    failures: Rarely,
    unread: Arc<Rarely>,
}

impl<D: Door> Listener<D> {
    /// Of a bound socket, which others may have too. It has at most so many connections at a time, whatever the configuration allows.
    pub(crate) fn new(door: D, socket: Arc<Socket>, tls: Option<Tls>, descriptors: Arc<AtomicUsize>) -> Self {
        Self {
            door: Arc::new(door),
            socket: Mutex::new(Some(socket)),
            tls,
            open: Arc::default(),
            descriptors,
            refusals: Rarely::default(),
            failures: Rarely::default(),
            unread: Arc::default(),
        }
    }

    /// Accepts and serves connections until it is stopped, then waits until the last of them has ended.
    pub(crate) async fn serve(self: Arc<Self>, mut stop: Stop) {
        while let Some(socket) = self.socket() {
            let accepted = tokio::select! {
                () = stop.asked_for() => break,
                () = self.open.crowd.too_many.notified() => {
                    self.close_busiest();
                    continue;
                }
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.record_fetch(stream, peer, &stop),
                Err(error) => {
                    if let Some(times) = self.failures.due() {
                        tracing::warn!(door = self.door.name(), %error, times, "a connection cannot be accepted");
                    }
                    sleep(PAUSE).await;
                }
            }
        }
        // A socket file goes before the last connections do: its path may already be wanted by another process.
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.open.until_empty().await;
    }

    /// Closes every connection, whatever is in flight.
    pub(crate) fn close(&self) {
        self.open.close();
    }

    /// Requests in flight have become too many: who has most of them gives way.
    fn close_busiest(&self) {
        if let Some(requests) = self.open.inner().close_busiest() {
            self.door.service().metrics().connections_refused(self.door.name(), 1);
            if let Some(times) = self.refusals.due() {
                tracing::warn!(
                    door = self.door.name(),
                    requests,
                    times,
                    "a connection with very many requests was closed"
                );
            }
        }
    }

    fn socket(&self) -> Option<Arc<Socket>> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn record_fetch(self: &Arc<Self>, stream: Stream, peer: Option<IpAddr>, stop: &Stop) {
        let metrics = self.door.service().metrics();
        let (made_room, place) =
            self.open.enter(peer, self.door.max_connections().min(self.descriptors.load(Ordering::Relaxed)));
        let refused = made_room + usize::from(place.is_none());
        if refused > 0 {
            metrics.connections_refused(self.door.name(), refused);
            if let Some(times) = self.refusals.due() {
                tracing::warn!(
                    door = self.door.name(),
                    open = self.open.len(),
                    times,
                    "more connections than limits.connections and the limit on open files allow: some were closed"
                );
            }
        }
        let Some(place) = place else { return };
        let counted = Counted::open(&self.door);
        let (tls, stop) = (self.tls.clone(), stop.clone());
        let connection = Connection {
            door: Arc::clone(&self.door),
            peer: Peer { address: peer, connection: CONNECTIONS.fetch_add(1, Ordering::Relaxed) },
            state: Arc::clone(&place.state),
            unread: Arc::clone(&self.unread),
        };
        tokio::spawn(async move {
            let (_counted, _place) = (counted, place);
            connection.serve(stream, tls, stop).await;
        });
    }
}

/// A connection in the metrics, however it ends.
struct Counted<D: Door>(Arc<D>);

impl<D: Door> Counted<D> {
    fn open(door: &Arc<D>) -> Self {
        door.service().metrics().connection_opened(door.name());
        Self(Arc::clone(door))
    }
}

impl<D: Door> Drop for Counted<D> {
    fn drop(&mut self) {
        self.0.service().metrics().connection_ended(self.0.name());
    }
}

impl<D> Drop for Listener<D> {
    fn drop(&mut self) {
        self.open.close();
    }
}

/// The open connections of a listener.
#[derive(Default)]
struct Open {
    crowd: Arc<Crowd>,
    inner: Mutex<Inner>,
    empty: Notify,
}

#[derive(Default)]
struct Inner {
    connections: HashMap<u64, Entry>,
    /// How many of them have been told to make room.
    leaving: usize,
    /// When they were looked through in vain.
    in_vain: Option<Instant>,
    next: u64,
}

struct Entry {
    peer: Option<IpAddr>,
    state: Arc<ConnectionState>,
    leaving: bool,
}

/// What a connection holds among the open ones, until it is dropped.
struct Place {
    id: u64,
    state: Arc<ConnectionState>,
    open: Arc<Open>,
}

impl Open {
    /// Nothing that holds the lock can panic half-way.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn len(&self) -> usize {
        self.inner().connections.len()
    }

    /// Tells all of them to end.
    fn close(&self) {
        self.inner().connections.values().for_each(|entry| entry.state.closed.notify_one());
    }

    /// How many had to make room, and the place of a new one: `None` where there is none.
    fn enter(self: &Arc<Self>, peer: Option<IpAddr>, max: usize) -> (usize, Option<Place>) {
        let mut inner = self.inner();
        let mut made_room = 0;
        if inner.connections.len().saturating_sub(inner.leaving) >= max {
            made_room = inner.make_room(peer, max);
            if made_room == 0 {
                return (0, None);
            }
        }
        let id = inner.next;
        inner.next = inner.next.wrapping_add(1);
        let state = Arc::new(ConnectionState::new(Arc::clone(&self.crowd)));
        inner.connections.insert(id, Entry { peer, state: Arc::clone(&state), leaving: false });
        (made_room, Some(Place { id, state, open: Arc::clone(self) }))
    }

    async fn until_empty(&self) {
        loop {
            let empty = self.empty.notified();
            tokio::pin!(empty);
            // From here on it is told, even between the look and the wait.
            empty.as_mut().enable();
            if self.len() == 0 {
                return;
            }
            empty.await;
        }
    }
}

impl Inner {
    /// Tells some connections to end. Where another address has more of them than the one that comes, they are that
    /// address's; else they have to be of nobody's use: never asked anything for a while, or idle for long.
    fn make_room(&mut self, newcomer: Option<IpAddr>, max: usize) -> usize {
        let at_once = (max / 8).clamp(1, AT_ONCE);
        let now = clock::monotonic();
        let looked = self.in_vain.is_some_and(|then| now.saturating_duration_since(then) < LOOK_AGAIN);
        // Those that leave hold their descriptors for a moment, of which only so many are kept.
        if looked || self.leaving >= at_once {
            return 0;
        }
        let mut leave = self.useless(at_once, |_| true, UNPROVEN, IDLE);
        if leave.is_empty()
            && let Some(crowd) = self.larger_than(newcomer)
        {
            leave = self.useless(1, |entry| entry.peer == crowd, Duration::ZERO, Duration::ZERO);
        }
        self.in_vain = leave.is_empty().then_some(now);
        for id in &leave {
            if let Some(entry) = self.connections.get_mut(id) {
                entry.leaving = true;
                entry.state.closed.notify_one();
            }
        }
        self.leaving += leave.len();
        leave.len()
    }

    /// Of those that may go, so many that never had a request, the oldest first; else the one that was idle longest.
    fn useless(
        &self,
        most: usize,
        may_go: impl Fn(&Entry) -> bool,
        unproven_for: Duration,
        idle_for: Duration,
    ) -> Vec<u64> {
        let (mut unproven, mut idlest) = (Vec::new(), None);
        for (id, entry) in self.connections.iter().filter(|(_, entry)| !entry.leaving && may_go(entry)) {
            match entry.state.worth() {
                Worth::Unproven(age) if age >= unproven_for => unproven.push((age, Reverse(*id))),
                Worth::Idle(idle) if idle >= idle_for => idlest = idlest.max(Some((idle, Reverse(*id)))),
                _ => {}
            }
        }
        unproven.sort_unstable();
        let mut leave: Vec<u64> = unproven.iter().rev().take(most).map(|(_, Reverse(id))| *id).collect();
        if leave.is_empty() {
            leave.extend(idlest.map(|(_, Reverse(id))| id));
        }
        leave
    }

    /// The address that has most connections, if those are more than this one would have.
    fn larger_than(&self, newcomer: Option<IpAddr>) -> Option<Option<IpAddr>> {
        let mut counts: HashMap<Option<IpAddr>, usize> = HashMap::new();
        for entry in self.connections.values().filter(|entry| !entry.leaving) {
            *counts.entry(entry.peer).or_default() += 1;
        }
        let own = counts.get(&newcomer).copied().unwrap_or(0).saturating_add(1);
        let (most, count) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        (count > own && most != newcomer).then_some(most)
    }

    /// Tells the connection with most requests in flight to end; how many it has.
    fn close_busiest(&mut self) -> Option<usize> {
        let staying = self.connections.values_mut().filter(|entry| !entry.leaving);
        let busiest = staying.max_by_key(|entry| entry.state.in_flight())?;
        busiest.leaving = true;
        busiest.state.closed.notify_one();
        self.leaving += 1;
        Some(busiest.state.in_flight())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.open.inner();
        if inner.connections.remove(&self.id).is_some_and(|entry| entry.leaving) {
            inner.leaving = inner.leaving.saturating_sub(1);
        }
        if inner.connections.is_empty() {
            self.open.empty.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));

    fn taken(open: &Arc<Open>, max: usize) -> Place {
        open.enter(HERE, max).1.expect("there is room")
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_asked_makes_room_the_oldest_first_and_then_who_was_idle_longest_and_nobody_busy() {
        let open = Arc::new(Open::default());
        let busy = taken(&open, 4);
        let flight = busy.state.flight();
        let idle = taken(&open, 4);
        idle.state.request(true);
        drop(idle.state.flight());
        let old = taken(&open, 4);
        tokio::time::advance(UNPROVEN).await;
        let young = taken(&open, 4);
        let (made_room, fifth) = open.enter(HERE, 4);
        assert_eq!(made_room, 1);
        assert!(open.inner().connections[&old.id].leaving && !open.inner().connections[&young.id].leaving);
        // The young one is too young, the idle one not idle for long enough.
        drop(old);
        assert!(open.enter(HERE, 4).1.is_none());
        tokio::time::advance(UNPROVEN).await;
        let sixth = open.enter(HERE, 4).1.expect("the young one makes room");
        assert!(open.inner().connections[&young.id].leaving);
        drop(young);
        let fifth = fifth.expect("there was room");
        for place in [&fifth, &sixth] {
            place.state.request(true);
            drop(place.state.flight());
        }
        tokio::time::advance(IDLE - UNPROVEN).await;
        let _seventh = open.enter(HERE, 4).1.expect("the idle one makes room");
        assert!(open.inner().connections[&idle.id].leaving);
        drop((idle, flight, busy, fifth, sixth));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_told_to_leave_is_not_waited_for_and_not_told_twice() {
        let open = Arc::new(Open::default());
        let first: Vec<Place> = (0..8).map(|_| taken(&open, 8)).collect();
        tokio::time::advance(UNPROVEN).await;
        let ninth = taken(&open, 8);
        assert_eq!(open.len(), 9);
        // As many as leave are beyond the bound, and no more.
        assert!(open.enter(HERE, 8).1.is_none());
        drop(first);
        assert_eq!(open.inner().leaving, 0);
        drop(ninth);
        open.until_empty().await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_with_many_connections_makes_room_for_one_with_few_however_busy_it_was_lately() {
        let open = Arc::new(Open::default());
        let flood: Vec<Place> = (0..7).map(|_| taken(&open, 8)).collect();
        let other = Some([10, 0, 0, 7].into());
        let honest = open.enter(other, 8).1.expect("there is room");
        for place in flood.iter().chain([&honest]) {
            place.state.request(true);
            drop(place.state.flight());
        }
        assert!(open.enter(HERE, 8).1.is_none(), "the flood pushes nobody out");
        tokio::time::advance(LOOK_AGAIN).await;
        let second = open.enter(other, 8).1.expect("one of the flood makes room");
        let leaving = |place: &Place| open.inner().connections[&place.id].leaving;
        assert_eq!(flood.iter().filter(|place| leaving(place)).count(), 1);
        assert!(!leaving(&honest) && !leaving(&second));
    }

    #[tokio::test]
    async fn of_too_many_requests_the_connection_with_most_gives_way() {
        let open = Arc::new(Open::default());
        let (few, many) = (taken(&open, 8), taken(&open, 8));
        let _flights = [few.state.flight(), many.state.flight(), many.state.flight()];
        assert_eq!(open.inner().close_busiest(), Some(2));
        assert!(open.inner().connections[&many.id].leaving && !open.inner().connections[&few.id].leaving);
    }
}
