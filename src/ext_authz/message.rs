//! The one message of a Check, taken in as it comes: in memory that grows with what has come and not with what its
//! prefix claims, whole within a few seconds, and together with all other unfinished ones within a bound.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::Body;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::server::Peer;

/// How long a message may take, from its request's headers to its last byte, and how long no byte of it may come.
const WHOLE: Duration = Duration::from_secs(10);
const NEXT: Duration = Duration::from_secs(5);

/// The flag and the length before a message (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX: usize = 5;

/// All unfinished messages of one door may hold so many of the largest, and at least so many bytes.
const LARGEST_AT_ONCE: usize = 4;
const AT_LEAST: usize = 64 * 1024 * 1024;

/// What an unfinished message counts for, beside its bytes: its stream, which holds as much.
const OVERHEAD: usize = 16 * 1024;

/// By how much room for a message grows at least.
const GROWTH: usize = 16 * 1024;

/// Why a Check has no message that can be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// It is larger than allowed.
    TooLarge,
    /// It did not come in time.
    TooLate,
    /// Others had come too, and it was the largest of those that were unfinished.
    CrowdedOut,
    /// It ended before it was whole.
    Torn,
    /// It is compressed, or no CheckRequest.
    NoCheck,
    /// It has more fields than are decoded.
    TooMany,
}

impl Unread {
    /// What the log says.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Unread::TooLarge => "a Check larger than limits.message_bytes",
            Unread::TooLate => "a Check of which no byte came for 5 s, or that was not whole within 10 s",
            Unread::CrowdedOut => {
                "a Check that was not whole when all unfinished ones together were four times limits.message_bytes"
            }
            Unread::Torn => "a Check that ended before its message was whole",
            Unread::NoCheck => "a Check that is compressed, or whose message is no CheckRequest",
            Unread::TooMany => "a Check with more than 10,000 headers",
        }
    }
}

/// Reads the body of a Check to the end of its message: with its prefix, and nothing that comes behind. Nothing is read
/// on once that is there, or cannot be.
///
/// # Errors
/// The message is not to be had; `None` where its client is gone.
pub(super) async fn read<B>(
    mut body: B,
    max: usize,
    unfinished: &Arc<Unfinished>,
    peer: Peer,
) -> Result<Bytes, Option<Unread>>
where
    B: Body<Data = Bytes> + Unpin,
{
    // Most come in one piece, and are there already.
    let first = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await;
    let first = match first {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        Poll::Ready(Some(Err(_))) => return Err(None),
        Poll::Ready(None) => return Err(Some(Unread::Torn)),
        Poll::Pending => Bytes::new(),
    };
    if let Some(length) = length(&first, max)?
        && first.len() >= length
    {
        return Ok(first.slice(..length));
    }
    let place = unfinished.enter(peer);
    tokio::select! {
        read = timeout(WHOLE, read_on(first, body, max, &place)) => read.unwrap_or(Err(Some(Unread::TooLate))),
        () = place.crowded_out.notified() => Err(Some(Unread::CrowdedOut)),
    }
}

async fn read_on<B>(first: Bytes, mut body: B, max: usize, place: &Place) -> Result<Bytes, Option<Unread>>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut come: Vec<u8> = Vec::new();
    let mut piece = first;
    loop {
        let wanted = length(&come, max)?.unwrap_or(PREFIX);
        let taken = piece.len().min(wanted.saturating_sub(come.len()));
        let room = come.len() + taken;
        if room > come.capacity() {
            // Never more than half as much again as has come, nor than is wanted.
            let grown = (room + room / 2).max(GROWTH).min(wanted.max(room));
            come.reserve_exact(grown - come.len());
            place.holds(come.capacity());
        }
        come.extend(piece.get(..taken).unwrap_or_default());
        piece.advance(taken);
        if come.len() == wanted && wanted > PREFIX || length(&come, max)? == Some(come.len()) {
            return Ok(come.into());
        }
        if !piece.is_empty() {
            continue;
        }
        let next = timeout(NEXT, std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)));
        piece = match next.await.map_err(|_| Some(Unread::TooLate))? {
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(_)) => return Err(None),
            None => return Err(Some(Unread::Torn)),
        };
    }
}

/// How long a message is with its prefix, once that has come.
fn length(come: &[u8], max: usize) -> Result<Option<usize>, Option<Unread>> {
    let Some([_compressed, a, b, c, d]) = come.first_chunk::<PREFIX>() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX);
    if length > max { Err(Some(Unread::TooLarge)) } else { Ok(Some(length + PREFIX)) }
}

/// All messages that have begun and are not whole. Where they hold too much together, some go of whoever has most of them:
/// of the address, and there of the connection, the largest first and of equal ones the oldest. So who floods is in its
/// own way.
#[derive(Debug)]
pub(super) struct Unfinished {
    max: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    held: usize,
    next: u64,
    peers: HashMap<Peer, BTreeSet<(usize, Reverse<u64>)>>,
    crowded_out: HashMap<u64, Arc<Notify>>,
}

impl Unfinished {
    /// Of messages that may each be so large.
    pub(super) fn new(message_bytes: usize) -> Self {
        let max = message_bytes.saturating_mul(LARGEST_AT_ONCE).max(AT_LEAST);
        Self { max, inner: Mutex::default() }
    }

    /// Nothing that holds the lock can panic half-way.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(self: &Arc<Self>, peer: Peer) -> Place {
        let crowded_out = Arc::new(Notify::new());
        let mut inner = self.inner();
        let id = inner.next;
        inner.next = inner.next.wrapping_add(1);
        inner.crowded_out.insert(id, Arc::clone(&crowded_out));
        inner.add(peer, id, OVERHEAD);
        inner.make_room(self.max);
        drop(inner);
        Place { id, peer, size: OVERHEAD.into(), crowded_out, unfinished: Arc::clone(self) }
    }
}

impl Inner {
    fn add(&mut self, peer: Peer, id: u64, size: usize) {
        self.peers.entry(peer).or_default().insert((size, Reverse(id)));
        self.held = self.held.saturating_add(size);
    }

    /// Whether it was still there.
    fn take(&mut self, peer: Peer, id: u64, size: usize) -> bool {
        let Some(messages) = self.peers.get_mut(&peer) else { return false };
        if !messages.remove(&(size, Reverse(id))) {
            return false;
        }
        if messages.is_empty() {
            self.peers.remove(&peer);
        }
        self.held = self.held.saturating_sub(size);
        true
    }

    /// Several at a time, since who has most takes a look at all to find.
    fn make_room(&mut self, max: usize) {
        if self.held <= max {
            return;
        }
        while self.held > max / 8 * 7 {
            let Some(peer) = self.has_most() else { return };
            let messages = self.peers.get(&peer).map(BTreeSet::len).unwrap_or_default();
            for _ in 0..messages.div_ceil(2) {
                let largest = self.peers.get(&peer).and_then(|messages| messages.last().copied());
                let Some((size, Reverse(id))) = largest.filter(|_| self.held > max / 8 * 7) else { break };
                self.take(peer, id, size);
                if let Some(crowded_out) = self.crowded_out.remove(&id) {
                    crowded_out.notify_one();
                }
            }
        }
    }

    /// The connection with most messages, and of equally many with most bytes, of the address of which that is true.
    fn has_most(&self) -> Option<Peer> {
        let of = |messages: &BTreeSet<(usize, _)>| {
            (messages.len(), messages.iter().map(|(size, _)| *size).sum::<usize>())
        };
        let mut addresses: HashMap<Option<IpAddr>, (usize, usize)> = HashMap::new();
        for (peer, messages) in &self.peers {
            let (count, held) = of(messages);
            let (counts, helds) = addresses.entry(peer.address).or_default();
            *counts += count;
            *helds += held;
        }
        let (address, _) = addresses.into_iter().max_by_key(|(_, most)| *most)?;
        let connections = self.peers.iter().filter(|(peer, _)| peer.address == address);
        connections.max_by_key(|(_, messages)| of(messages)).map(|(peer, _)| *peer)
    }
}

/// An unfinished message among the others.
#[derive(Debug)]
struct Place {
    id: u64,
    peer: Peer,
    size: AtomicUsize,
    crowded_out: Arc<Notify>,
    unfinished: Arc<Unfinished>,
}

impl Place {
    /// It holds so many bytes now.
    fn holds(&self, bytes: usize) {
        let size = bytes.saturating_add(OVERHEAD);
        let mut inner = self.unfinished.inner();
        if inner.take(self.peer, self.id, self.size.load(Ordering::Relaxed)) {
            self.size.store(size, Ordering::Relaxed);
            inner.add(self.peer, self.id, size);
            inner.make_room(self.unfinished.max);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.unfinished.inner();
        inner.take(self.peer, self.id, *self.size.get_mut());
        inner.crowded_out.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Frame;
    use std::convert::Infallible;
    use std::task::Context;
    use tokio::sync::mpsc;

    const MIB: usize = 1024 * 1024;

    const HERE: Peer = Peer { address: None, connection: 0 };

    /// A body whose pieces a test hands in.
    struct Pieces(mpsc::UnboundedReceiver<Bytes>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
        }
    }

    fn pieces(ready: &[&[u8]]) -> (mpsc::UnboundedSender<Bytes>, Pieces) {
        let (sender, receiver) = mpsc::unbounded_channel();
        for piece in ready {
            sender.send(Bytes::copy_from_slice(piece)).expect("open");
        }
        (sender, Pieces(receiver))
    }

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(length).expect("short").to_be_bytes());
        bytes.extend((0..length).map(|place| place as u8));
        bytes
    }

    #[tokio::test]
    async fn a_message_is_the_same_however_it_is_cut() {
        let unfinished = Arc::new(Unfinished::new(MIB));
        let mut sent = message(40);
        let whole = sent.clone();
        sent.extend([1, 2, 3]);
        for first in 0..sent.len() {
            for second in first..sent.len() {
                let (_open, body) = pieces(&[&sent[..first], &sent[first..second], &sent[second..]]);
                let read = read(body, MIB, &unfinished, HERE).await;
                assert_eq!(read.as_deref(), Ok(whole.as_slice()), "cut at {first} and {second}");
            }
        }
        let (_open, body) = pieces(&[&message(0)]);
        assert_eq!(read(body, MIB, &unfinished, HERE).await.as_deref(), Ok(&[0u8; 5][..]));
        assert_eq!(unfinished.inner().held, 0, "nothing is left behind");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_whole_in_time_or_at_its_end_or_too_large_is_told_apart() {
        let unfinished = Arc::new(Unfinished::new(100));
        let read = async |pieces_: &[&[u8]], end: bool| {
            let (open, body) = pieces(pieces_);
            let open = (!end).then_some(open);
            let read = read(body, 100, &unfinished, HERE).await;
            drop(open);
            read
        };
        assert_eq!(read(&[], false).await, Err(Some(Unread::TooLate)));
        assert_eq!(read(&[&message(100)[..104]], false).await, Err(Some(Unread::TooLate)));
        assert_eq!(read(&[&message(100)[..104]], true).await, Err(Some(Unread::Torn)));
        assert_eq!(read(&[], true).await, Err(Some(Unread::Torn)));
        assert_eq!(read(&[&[0, 0]], true).await, Err(Some(Unread::Torn)));
        // Told by its prefix, before any of it has come.
        for prefix in [message(101)[..5].to_vec(), vec![0, 255, 255, 255, 255]] {
            assert_eq!(read(&[&prefix], false).await, Err(Some(Unread::TooLarge)));
            assert_eq!(read(&[&prefix[..2], &prefix[2..]], false).await, Err(Some(Unread::TooLarge)));
        }
        assert!(read(&[&message(100)], false).await.is_ok());
        assert_eq!(unfinished.inner().held, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_grows_with_what_has_come_and_not_with_what_is_claimed() {
        let unfinished = Arc::new(Unfinished::new(64 * MIB));
        let (open, body) = pieces(&[&message(64 * MIB)[..10]]);
        let reading = tokio::spawn({
            let unfinished = Arc::clone(&unfinished);
            async move { read(body, 64 * MIB, &unfinished, HERE).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(unfinished.inner().held, GROWTH + OVERHEAD);
        let mut come = 10;
        while come < 10 * MIB {
            open.send(vec![0; 16_384].into()).expect("open");
            come += 16_384;
            tokio::task::yield_now().await;
            assert!(unfinished.inner().held <= come + come / 2 + GROWTH + OVERHEAD);
        }
        assert_eq!(reading.await.expect("ends"), Err(Some(Unread::TooLate)));
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_hold_too_much_who_has_most_gives_way_the_largest_first_and_then_the_oldest() {
        let (here, there) = (Some([10, 0, 0, 1].into()), Some([10, 0, 0, 2].into()));
        // Of another address, and of another connection of the same one.
        for (honest, flooding) in [(here, there), (there, there)] {
            let unfinished = Arc::new(Unfinished::new(AT_LEAST / LARGEST_AT_ONCE));
            let honest = unfinished.enter(Peer { address: honest, connection: 1 });
            honest.holds(AT_LEAST / 4);
            let gone = |place: &Place| !unfinished.inner().crowded_out.contains_key(&place.id);
            // As many as fit beside it, each far smaller than the honest one, of several connections.
            let small = |connection| unfinished.enter(Peer { address: flooding, connection });
            let most = (3 * AT_LEAST / 4 / OVERHEAD - 1) as u64;
            let flood: Vec<Place> = (0..most).map(|number| small(2 + number % 10)).collect();
            assert!(!flood.iter().any(gone));
            let one_more = small(2);
            assert!(!gone(&honest), "the flood is in its own way");
            flood.iter().find(|place| gone(place)).expect("of it").crowded_out.notified().await;
            assert!(flood.iter().filter(|place| gone(place)).count() > 100, "several at a time");
            drop((honest, flood, one_more));
            let inner = unfinished.inner();
            assert!(inner.held == 0 && inner.peers.is_empty() && inner.crowded_out.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_one_connection_the_largest_goes_first_and_then_the_oldest() {
        let unfinished = Arc::new(Unfinished::new(AT_LEAST / LARGEST_AT_ONCE));
        let gone = |place: &Place| !unfinished.inner().crowded_out.contains_key(&place.id);
        let [oldest, large, other, newest] = [(); 4].map(|()| unfinished.enter(HERE));
        large.holds(AT_LEAST / 2);
        for place in [&oldest, &other, &newest] {
            place.holds(AT_LEAST / 4);
        }
        assert_eq!([&oldest, &large, &other, &newest].map(gone), [false, true, false, false]);
        let more = unfinished.enter(HERE);
        more.holds(AT_LEAST / 4);
        assert_eq!([&oldest, &other, &newest, &more].map(gone), [true, false, false, false]);
    }
}
