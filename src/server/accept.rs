//! Accepts connections, limits their number, and selects the one to close when the limit is reached.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use super::connection::Connection;
use super::state::{Activity, ConnectionState, Load};
use super::stream::Stream;
use super::{Door, LogSampler, Peer, Socket, Stop, Tls};
use crate::clock::{self, Instant};

/// The delay before the next accept after the system lacked descriptors or memory.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The minimum age at which a connection without a request yet may be evicted, and the minimum idle time of the others.
const UNUSED_FOR: Duration = Duration::from_secs(1);
const IDLE_FOR: Duration = Duration::from_secs(10);

/// The maximum number of connections that are being evicted at the same time.
const MAX_EVICTING: usize = 16;

/// The minimum time between two scans of the connections after one that found none to evict.
const SCAN_INTERVAL: Duration = Duration::from_millis(100);

/// The next connection number, shared by all listeners.
static NEXT_CONNECTION: AtomicU64 = AtomicU64::new(0);

/// A door with its socket.
pub(crate) struct Listener<D> {
    door: Arc<D>,
    socket: Mutex<Option<Arc<Socket>>>,
    tls: Option<Tls>,
    open: Arc<Open>,
    /// The number of connections that the limit on open files allows.
    descriptors: Arc<AtomicUsize>,
    refused_log: LogSampler,
    accept_error_log: LogSampler,
    rejected_log: Arc<LogSampler>,
    misdirected_log: Arc<LogSampler>,
}

impl<D: Door> Listener<D> {
    /// Serves a bound socket, which may be shared. `descriptors` caps the connections below the configured limit.
    pub(crate) fn new(door: D, socket: Arc<Socket>, tls: Option<Tls>, descriptors: Arc<AtomicUsize>) -> Self {
        Self {
            door: Arc::new(door),
            socket: Mutex::new(Some(socket)),
            tls,
            open: Arc::default(),
            descriptors,
            refused_log: LogSampler::default(),
            accept_error_log: LogSampler::default(),
            rejected_log: Arc::default(),
            misdirected_log: Arc::default(),
        }
    }

    /// Accepts and serves connections until it is stopped, then waits until the last of them has closed.
    pub(crate) async fn serve(self: Arc<Self>, mut stop: Stop) {
        while let Some(socket) = self.socket() {
            let accepted = tokio::select! {
                () = stop.requested() => break,
                () = self.open.load.overloaded.notified() => {
                    self.close_busiest();
                    continue;
                }
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.spawn_connection(stream, peer, &stop),
                Err(error) => {
                    if let Some(times) = self.accept_error_log.sample() {
                        tracing::warn!(door = self.door.name(), %error, times, "connection not accepted");
                    }
                    sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
        // The socket file is removed before the last connections close: another process may already want to bind the
        // path.
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.open.until_empty().await;
    }

    /// Closes every connection, including those with requests in flight.
    pub(crate) fn close(&self) {
        self.open.close();
    }

    /// Closes the connection with the most requests in flight, because the listener has too many of them.
    fn close_busiest(&self) {
        if let Some(requests) = self.open.inner().close_busiest(Load::MAX_IN_FLIGHT) {
            self.door.service().metrics().connections_refused(self.door.name(), 1);
            if let Some(times) = self.refused_log.sample() {
                tracing::warn!(door = self.door.name(), requests, times, "busiest connection closed");
            }
        }
    }

    fn socket(&self) -> Option<Arc<Socket>> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn spawn_connection(self: &Arc<Self>, stream: Stream, peer: Option<IpAddr>, stop: &Stop) {
        let metrics = self.door.service().metrics();
        let (evicted, slot) = self
            .open
            .register(peer, self.door.max_connections().min(self.descriptors.load(Ordering::Relaxed)));
        let refused = evicted + usize::from(slot.is_none());
        if refused > 0 {
            metrics.connections_refused(self.door.name(), refused);
            if let Some(times) = self.refused_log.sample() {
                tracing::warn!(
                    door = self.door.name(),
                    open = self.open.len(),
                    times,
                    hint = self
                        .door
                        .service()
                        .places()
                        .with_lines("raise limits.connections or the limit on open files"),
                    "connection limit reached"
                );
            }
        }
        let Some(slot) = slot else { return };
        let gauge = ConnectionGauge::increment(&self.door);
        let (tls, stop) = (self.tls.clone(), stop.clone());
        let connection = Connection {
            door: Arc::clone(&self.door),
            peer: Peer { address: peer, connection: NEXT_CONNECTION.fetch_add(1, Ordering::Relaxed) },
            state: Arc::clone(&slot.state),
            rejected_log: Arc::clone(&self.rejected_log),
            misdirected_log: Arc::clone(&self.misdirected_log),
        };
        tokio::spawn(async move {
            let (_gauge, _slot) = (gauge, slot);
            connection.serve(stream, tls, stop).await;
        });
    }
}

/// Counts an open connection in the metrics until it is dropped.
struct ConnectionGauge<D: Door>(Arc<D>);

impl<D: Door> ConnectionGauge<D> {
    fn increment(door: &Arc<D>) -> Self {
        door.service().metrics().connection_opened(door.name());
        Self(Arc::clone(door))
    }
}

impl<D: Door> Drop for ConnectionGauge<D> {
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
    load: Arc<Load>,
    inner: Mutex<Inner>,
    empty: Notify,
}

#[derive(Default)]
struct Inner {
    connections: HashMap<u64, Entry>,
    /// How many of them are being evicted.
    evicting: usize,
    /// When the last scan found no connection to evict.
    failed_scan: Option<Instant>,
    next: u64,
}

struct Entry {
    peer: Option<IpAddr>,
    state: Arc<ConnectionState>,
    evicting: bool,
}

/// The registration of an open connection, removed on drop.
struct Slot {
    id: u64,
    state: Arc<ConnectionState>,
    open: Arc<Open>,
}

impl Open {
    /// Code that holds the lock cannot panic, so a poisoned lock is still consistent.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn len(&self) -> usize {
        self.inner().connections.len()
    }

    /// Closes all connections.
    fn close(&self) {
        self.inner().connections.values().for_each(|entry| entry.state.closed.notify_one());
    }

    /// Registers a new connection. Returns the number of evicted connections, and no slot if the limit is reached.
    fn register(self: &Arc<Self>, peer: Option<IpAddr>, max: usize) -> (usize, Option<Slot>) {
        let mut inner = self.inner();
        let mut evicted = 0;
        if inner.connections.len().saturating_sub(inner.evicting) >= max {
            evicted = inner.evict(peer, max);
            if evicted == 0 {
                return (0, None);
            }
        }
        let id = inner.next;
        inner.next = inner.next.wrapping_add(1);
        let state = Arc::new(ConnectionState::new(Arc::clone(&self.load)));
        inner.connections.insert(id, Entry { peer, state: Arc::clone(&state), evicting: false });
        (evicted, Some(Slot { id, state, open: Arc::clone(self) }))
    }

    async fn until_empty(&self) {
        loop {
            let empty = self.empty.notified();
            tokio::pin!(empty);
            // Registers for the notification before the check, so that none in between is missed.
            empty.as_mut().enable();
            if self.len() == 0 {
                return;
            }
            empty.await;
        }
    }
}

impl Inner {
    /// Closes some connections and returns their number. Unused and long idle ones are closed first; without any, one
    /// of the address with the most connections, if that has more than the newcomer's address.
    fn evict(&mut self, newcomer: Option<IpAddr>, max: usize) -> usize {
        let batch = (max / 8).clamp(1, MAX_EVICTING);
        let now = clock::monotonic();
        let scanned =
            self.failed_scan.is_some_and(|then| now.saturating_duration_since(then) < SCAN_INTERVAL);
        // Connections that are being evicted still hold their descriptors, so their number is limited.
        if scanned || self.evicting >= batch {
            return 0;
        }
        let mut evicted = self.idle_connections(batch, |_| true, UNUSED_FOR, IDLE_FOR);
        if evicted.is_empty()
            && let Some(busiest) = self.larger_peer(newcomer)
        {
            evicted = self.idle_connections(1, |entry| entry.peer == busiest, Duration::ZERO, Duration::ZERO);
        }
        self.failed_scan = evicted.is_empty().then_some(now);
        for id in &evicted {
            if let Some(entry) = self.connections.get_mut(id) {
                entry.evicting = true;
                entry.state.closed.notify_one();
            }
        }
        self.evicting += evicted.len();
        evicted.len()
    }

    /// The eligible connections without a request yet, at most `max`, oldest first; without any, the one idle longest.
    fn idle_connections(
        &self,
        max: usize,
        is_eligible: impl Fn(&Entry) -> bool,
        unused_for: Duration,
        idle_for: Duration,
    ) -> Vec<u64> {
        let (mut unused, mut longest_idle) = (Vec::new(), None);
        for (id, entry) in self.connections.iter().filter(|(_, entry)| !entry.evicting && is_eligible(entry))
        {
            match entry.state.activity() {
                Activity::Unused(age) if age >= unused_for => unused.push((age, Reverse(*id))),
                Activity::Idle(idle) if idle >= idle_for => {
                    longest_idle = longest_idle.max(Some((idle, Reverse(*id))))
                }
                _ => {}
            }
        }
        unused.sort_unstable();
        let mut evicted: Vec<u64> = unused.iter().rev().take(max).map(|(_, Reverse(id))| *id).collect();
        if evicted.is_empty() {
            evicted.extend(longest_idle.map(|(_, Reverse(id))| id));
        }
        evicted
    }

    /// The address with the most connections, if it has more than the newcomer's address would have.
    fn larger_peer(&self, newcomer: Option<IpAddr>) -> Option<Option<IpAddr>> {
        let mut counts: HashMap<Option<IpAddr>, usize> = HashMap::new();
        for entry in self.connections.values().filter(|entry| !entry.evicting) {
            *counts.entry(entry.peer).or_default() += 1;
        }
        let own = counts.get(&newcomer).copied().unwrap_or(0).saturating_add(1);
        let (most, count) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        (count > own && most != newcomer).then_some(most)
    }

    /// Closes the connection with the most requests in flight, of the address with the most of them, and returns their
    /// number. `None` if fewer than `max` are left besides those of the connections that are being closed already.
    fn close_busiest(&mut self, max: usize) -> Option<usize> {
        let mut counts: HashMap<Option<IpAddr>, usize> = HashMap::new();
        for entry in self.connections.values().filter(|entry| !entry.evicting) {
            let count = counts.entry(entry.peer).or_default();
            *count = count.saturating_add(entry.state.in_flight());
        }
        if counts.values().sum::<usize>() < max {
            return None;
        }
        // An attacker with many connections of few requests each does not get a proxy's connection closed.
        let (peer, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        let remaining = self.connections.values_mut().filter(|entry| !entry.evicting && entry.peer == peer);
        let busiest = remaining.max_by_key(|entry| entry.state.in_flight())?;
        busiest.evicting = true;
        busiest.state.closed.notify_one();
        self.evicting += 1;
        Some(busiest.state.in_flight())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut inner = self.open.inner();
        if inner.connections.remove(&self.id).is_some_and(|entry| entry.evicting) {
            inner.evicting = inner.evicting.saturating_sub(1);
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

    fn register(open: &Arc<Open>, max: usize) -> Slot {
        open.register(HERE, max).1.expect("below the limit")
    }

    #[tokio::test(start_paused = true)]
    async fn unused_connections_are_evicted_oldest_first_then_the_one_idle_longest_and_busy_ones_never() {
        let open = Arc::new(Open::default());
        let busy = register(&open, 4);
        let flight = busy.state.start_request();
        let idle = register(&open, 4);
        idle.state.record_request(true);
        drop(idle.state.start_request());
        let old = register(&open, 4);
        tokio::time::advance(UNUSED_FOR).await;
        let young = register(&open, 4);
        let (evicted, fifth) = open.register(HERE, 4);
        assert_eq!(evicted, 1);
        assert!(open.inner().connections[&old.id].evicting && !open.inner().connections[&young.id].evicting);
        // The new connection is too new, the idle one has not been idle for long enough.
        drop(old);
        assert!(open.register(HERE, 4).1.is_none());
        tokio::time::advance(UNUSED_FOR).await;
        let sixth = open.register(HERE, 4).1.expect("the new one is evicted");
        assert!(open.inner().connections[&young.id].evicting);
        drop(young);
        let fifth = fifth.expect("below the limit");
        for slot in [&fifth, &sixth] {
            slot.state.record_request(true);
            drop(slot.state.start_request());
        }
        tokio::time::advance(IDLE_FOR - UNUSED_FOR).await;
        let _seventh = open.register(HERE, 4).1.expect("the idle one is evicted");
        assert!(open.inner().connections[&idle.id].evicting);
        drop((idle, flight, busy, fifth, sixth));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_being_evicted_is_not_waited_for_and_not_evicted_twice() {
        let open = Arc::new(Open::default());
        let first: Vec<Slot> = (0..8).map(|_| register(&open, 8)).collect();
        tokio::time::advance(UNUSED_FOR).await;
        let ninth = register(&open, 8);
        assert_eq!(open.len(), 9);
        // Only as many connections as are being evicted may exceed the limit.
        assert!(open.register(HERE, 8).1.is_none());
        drop(first);
        assert_eq!(open.inner().evicting, 0);
        drop(ninth);
        open.until_empty().await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_address_with_the_most_connections_is_evicted_for_one_with_few_even_after_recent_requests() {
        let open = Arc::new(Open::default());
        let flood: Vec<Slot> = (0..7).map(|_| register(&open, 8)).collect();
        let other = Some([10, 0, 0, 7].into());
        let honest = open.register(other, 8).1.expect("below the limit");
        for slot in flood.iter().chain([&honest]) {
            slot.state.record_request(true);
            drop(slot.state.start_request());
        }
        assert!(open.register(HERE, 8).1.is_none(), "the flood evicts no other address");
        tokio::time::advance(SCAN_INTERVAL).await;
        let second = open.register(other, 8).1.expect("one of the flood is evicted");
        let evicting = |slot: &Slot| open.inner().connections[&slot.id].evicting;
        assert_eq!(flood.iter().filter(|slot| evicting(slot)).count(), 1);
        assert!(!evicting(&honest) && !evicting(&second));
    }

    #[tokio::test]
    async fn the_connection_with_the_most_requests_is_closed_under_overload_and_no_other() {
        let open = Arc::new(Open::default());
        let (few, many) = (register(&open, 8), register(&open, 8));
        let _flights = [few.state.start_request(), many.state.start_request(), many.state.start_request()];
        assert_eq!(open.inner().close_busiest(3), Some(2));
        assert_eq!(open.inner().close_busiest(3), None, "its requests are in flight until it has closed");
        assert!(open.inner().connections[&many.id].evicting && !open.inner().connections[&few.id].evicting);
    }

    #[tokio::test]
    async fn many_connections_of_one_address_with_few_requests_each_get_no_other_address_closed() {
        let open = Arc::new(Open::default());
        let flood: Vec<Slot> = (0..4).map(|_| register(&open, 8)).collect();
        let proxy = open.register(Some([10, 0, 0, 7].into()), 8).1.expect("below the limit");
        let mut flights: Vec<_> = flood.iter().map(|slot| slot.state.start_request()).collect();
        flights.extend((0..3).map(|_| proxy.state.start_request()));
        assert_eq!(open.inner().close_busiest(7), Some(1));
        assert!(!open.inner().connections[&proxy.id].evicting);
    }
}
