//! Reads the message of a Check, in memory that grows with the received bytes rather than with the length in the
//! prefix, within a timeout, and within a memory limit for all incomplete messages.

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

/// The timeout of a message from its request's headers to its last byte, and between two of its frames.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
const FRAME_TIMEOUT: Duration = Duration::from_secs(5);

/// The flag and the length before a message (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX: usize = 5;

/// The memory limit of all incomplete messages: this many of the maximum size, but at least this many bytes.
const MAX_LARGE_MESSAGES: usize = 4;
const MIN_LIMIT: usize = 64 * 1024 * 1024;

/// What an incomplete message counts for in addition to its bytes: the memory of its stream, which was measured to be 3.5
/// KiB.
const OVERHEAD: usize = 4 * 1024;

/// The minimum size of a buffer.
const MIN_BUFFER: usize = 16 * 1024;

/// The message of a Check cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadError {
    /// It is larger than allowed.
    TooLarge,
    /// It timed out.
    TimedOut,
    /// It was evicted because incomplete messages exceeded their memory limit.
    Evicted,
    /// It ended early.
    Truncated,
    /// It is compressed, or not a CheckRequest.
    NotACheck,
    /// It has too many fields.
    TooManyFields,
}

impl ReadError {
    /// The text for the log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            ReadError::TooLarge => "a Check larger than limits.message_bytes",
            ReadError::TimedOut => "a Check without a byte for 5 s, or not complete within 10 s",
            ReadError::Evicted => {
                "a Check that was evicted because all incomplete ones exceeded four times limits.message_bytes"
            }
            ReadError::Truncated => "a Check that ended before its message was complete",
            ReadError::NotACheck => "a Check that is compressed, or whose message is not a CheckRequest",
            ReadError::TooManyFields => "a Check with more than 10,000 headers",
        }
    }
}

/// Reads the body of a Check to the end of its message and returns it with its prefix. Nothing after the message is
/// read.
///
/// # Errors
/// The message cannot be read; `None` if the client has disconnected.
pub(super) async fn read<B>(
    mut body: B,
    max: usize,
    incomplete: &Arc<IncompleteMessages>,
    peer: Peer,
) -> Result<Bytes, Option<ReadError>>
where
    B: Body<Data = Bytes> + Unpin,
{
    // Most messages are one frame that has already been received.
    let first = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await;
    let first = match first {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        Poll::Ready(Some(Err(_))) => return Err(None),
        Poll::Ready(None) => return Err(Some(ReadError::Truncated)),
        Poll::Pending => Bytes::new(),
    };
    if let Some(length) = length(&first, max)?
        && first.len() >= length
    {
        return Ok(first.slice(..length));
    }
    let entry = incomplete.register(peer);
    tokio::select! {
        read = timeout(MESSAGE_TIMEOUT, read_rest(first, body, max, &entry)) => {
            read.unwrap_or(Err(Some(ReadError::TimedOut)))
        }
        () = entry.evicted.notified() => Err(Some(ReadError::Evicted)),
    }
}

async fn read_rest<B>(
    first: Bytes,
    mut body: B,
    max: usize,
    entry: &IncompleteMessage,
) -> Result<Bytes, Option<ReadError>>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut buffer: Vec<u8> = Vec::new();
    let mut frame = first;
    loop {
        let expected = length(&buffer, max)?.unwrap_or(PREFIX);
        let taken = frame.len().min(expected.saturating_sub(buffer.len()));
        let size = buffer.len() + taken;
        if size > buffer.capacity() {
            // At most half more than the received bytes, and not more than expected.
            let capacity = (size + size / 2).max(MIN_BUFFER).min(expected.max(size));
            buffer.reserve_exact(capacity - buffer.len());
            entry.set_size(buffer.capacity());
        }
        buffer.extend(frame.get(..taken).unwrap_or_default());
        frame.advance(taken);
        if buffer.len() == expected && expected > PREFIX || length(&buffer, max)? == Some(buffer.len()) {
            return Ok(buffer.into());
        }
        if !frame.is_empty() {
            continue;
        }
        let next = timeout(FRAME_TIMEOUT, std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)));
        frame = match next.await.map_err(|_| Some(ReadError::TimedOut))? {
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(_)) => return Err(None),
            None => return Err(Some(ReadError::Truncated)),
        };
    }
}

/// The length of a message with its prefix, once the prefix has been received.
fn length(received: &[u8], max: usize) -> Result<Option<usize>, Option<ReadError>> {
    let Some([_compressed, a, b, c, d]) = received.first_chunk::<PREFIX>() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX);
    if length > max { Err(Some(ReadError::TooLarge)) } else { Ok(Some(length + PREFIX)) }
}

/// All incomplete messages of a door. When they exceed the memory limit, messages are evicted from the address with the
/// most of them, and there from the connection with the most: the largest first, and of equal size the oldest. So a
/// flood evicts its own messages.
#[derive(Debug)]
pub(super) struct IncompleteMessages {
    max: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    total: usize,
    next: u64,
    peers: HashMap<Peer, BTreeSet<(usize, Reverse<u64>)>>,
    evictions: HashMap<u64, Arc<Notify>>,
}

impl IncompleteMessages {
    /// With the limit for messages of this maximum size.
    pub(super) fn new(message_bytes: usize) -> Self {
        let max = message_bytes.saturating_mul(MAX_LARGE_MESSAGES).max(MIN_LIMIT);
        Self { max, inner: Mutex::default() }
    }

    /// Code that holds the lock cannot panic, so a poisoned lock is still consistent.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(self: &Arc<Self>, peer: Peer) -> IncompleteMessage {
        let evicted = Arc::new(Notify::new());
        let mut inner = self.inner();
        let id = inner.next;
        inner.next = inner.next.wrapping_add(1);
        inner.evictions.insert(id, Arc::clone(&evicted));
        inner.add(peer, id, OVERHEAD);
        inner.evict(self.max);
        drop(inner);
        IncompleteMessage { id, peer, size: OVERHEAD.into(), evicted, messages: Arc::clone(self) }
    }
}

impl Inner {
    fn add(&mut self, peer: Peer, id: u64, size: usize) {
        self.peers.entry(peer).or_default().insert((size, Reverse(id)));
        self.total = self.total.saturating_add(size);
    }

    /// Removes a message. Returns whether it was registered.
    fn remove(&mut self, peer: Peer, id: u64, size: usize) -> bool {
        let Some(messages) = self.peers.get_mut(&peer) else { return false };
        if !messages.remove(&(size, Reverse(id))) {
            return false;
        }
        if messages.is_empty() {
            self.peers.remove(&peer);
        }
        self.total = self.total.saturating_sub(size);
        true
    }

    /// Evicts several messages at a time, because finding the busiest connection is a scan of all.
    fn evict(&mut self, max: usize) {
        if self.total <= max {
            return;
        }
        while self.total > max / 8 * 7 {
            let Some(peer) = self.busiest() else { return };
            let messages = self.peers.get(&peer).map(BTreeSet::len).unwrap_or_default();
            for _ in 0..messages.div_ceil(2) {
                let largest = self.peers.get(&peer).and_then(|messages| messages.last().copied());
                let Some((size, Reverse(id))) = largest.filter(|_| self.total > max / 8 * 7) else { break };
                self.remove(peer, id, size);
                if let Some(evicted) = self.evictions.remove(&id) {
                    evicted.notify_one();
                }
            }
        }
    }

    /// The connection with the most messages, or with the most bytes among equals, of the address with the most.
    fn busiest(&self) -> Option<Peer> {
        let totals = |messages: &BTreeSet<(usize, _)>| {
            (messages.len(), messages.iter().map(|(size, _)| *size).sum::<usize>())
        };
        let mut addresses: HashMap<Option<IpAddr>, (usize, usize)> = HashMap::new();
        for (peer, messages) in &self.peers {
            let (count, bytes) = totals(messages);
            let (total_count, total_bytes) = addresses.entry(peer.address).or_default();
            *total_count += count;
            *total_bytes += bytes;
        }
        let (address, _) = addresses.into_iter().max_by_key(|(_, most)| *most)?;
        let connections = self.peers.iter().filter(|(peer, _)| peer.address == address);
        connections.max_by_key(|(_, messages)| totals(messages)).map(|(peer, _)| *peer)
    }
}

/// The registration of an incomplete message, removed on drop.
#[derive(Debug)]
struct IncompleteMessage {
    id: u64,
    peer: Peer,
    size: AtomicUsize,
    evicted: Arc<Notify>,
    messages: Arc<IncompleteMessages>,
}

impl IncompleteMessage {
    /// Updates the number of bytes that it holds.
    fn set_size(&self, bytes: usize) {
        let size = bytes.saturating_add(OVERHEAD);
        let mut inner = self.messages.inner();
        if inner.remove(self.peer, self.id, self.size.load(Ordering::Relaxed)) {
            self.size.store(size, Ordering::Relaxed);
            inner.add(self.peer, self.id, size);
            inner.evict(self.messages.max);
        }
    }
}

impl Drop for IncompleteMessage {
    fn drop(&mut self) {
        let mut inner = self.messages.inner();
        inner.remove(self.peer, self.id, *self.size.get_mut());
        inner.evictions.remove(&self.id);
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

    /// A body whose frames a test sends.
    struct ChannelBody(mpsc::UnboundedReceiver<Bytes>);

    impl Body for ChannelBody {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.poll_recv(cx).map(|frame| frame.map(|frame| Ok(Frame::data(frame))))
        }
    }

    fn channel_body(ready: &[&[u8]]) -> (mpsc::UnboundedSender<Bytes>, ChannelBody) {
        let (sender, receiver) = mpsc::unbounded_channel();
        for frame in ready {
            sender.send(Bytes::copy_from_slice(frame)).expect("open");
        }
        (sender, ChannelBody(receiver))
    }

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(length).expect("short").to_be_bytes());
        bytes.extend((0..length).map(|index| index as u8));
        bytes
    }

    #[tokio::test]
    async fn a_message_is_the_same_however_it_is_split_into_frames() {
        let incomplete = Arc::new(IncompleteMessages::new(MIB));
        let mut sent = message(40);
        let message_bytes = sent.clone();
        sent.extend([1, 2, 3]);
        for first in 0..sent.len() {
            for second in first..sent.len() {
                let (_open, body) = channel_body(&[&sent[..first], &sent[first..second], &sent[second..]]);
                let read = read(body, MIB, &incomplete, HERE).await;
                assert_eq!(read.as_deref(), Ok(message_bytes.as_slice()), "cut at {first} and {second}");
            }
        }
        let (_open, body) = channel_body(&[&message(0)]);
        assert_eq!(read(body, MIB, &incomplete, HERE).await.as_deref(), Ok(&[0u8; 5][..]));
        assert_eq!(incomplete.inner().total, 0, "nothing remains registered");
    }

    #[tokio::test(start_paused = true)]
    async fn timeouts_truncation_and_too_large_messages_are_different_errors() {
        let incomplete = Arc::new(IncompleteMessages::new(100));
        let read = async |frames: &[&[u8]], end: bool| {
            let (open, body) = channel_body(frames);
            let open = (!end).then_some(open);
            let read = read(body, 100, &incomplete, HERE).await;
            drop(open);
            read
        };
        assert_eq!(read(&[], false).await, Err(Some(ReadError::TimedOut)));
        assert_eq!(read(&[&message(100)[..104]], false).await, Err(Some(ReadError::TimedOut)));
        assert_eq!(read(&[&message(100)[..104]], true).await, Err(Some(ReadError::Truncated)));
        assert_eq!(read(&[], true).await, Err(Some(ReadError::Truncated)));
        assert_eq!(read(&[&[0, 0]], true).await, Err(Some(ReadError::Truncated)));
        // Rejected by its prefix, before any of the message is received.
        for prefix in [message(101)[..5].to_vec(), vec![0, 255, 255, 255, 255]] {
            assert_eq!(read(&[&prefix], false).await, Err(Some(ReadError::TooLarge)));
            assert_eq!(read(&[&prefix[..2], &prefix[2..]], false).await, Err(Some(ReadError::TooLarge)));
        }
        assert!(read(&[&message(100)], false).await.is_ok());
        assert_eq!(incomplete.inner().total, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_grows_with_the_received_bytes_and_not_with_the_length_in_the_prefix() {
        let incomplete = Arc::new(IncompleteMessages::new(64 * MIB));
        let (open, body) = channel_body(&[&message(64 * MIB)[..10]]);
        let reading = tokio::spawn({
            let incomplete = Arc::clone(&incomplete);
            async move { read(body, 64 * MIB, &incomplete, HERE).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(incomplete.inner().total, MIN_BUFFER + OVERHEAD);
        let mut received = 10;
        while received < 10 * MIB {
            open.send(vec![0; 16_384].into()).expect("open");
            received += 16_384;
            tokio::task::yield_now().await;
            assert!(incomplete.inner().total <= received + received / 2 + MIN_BUFFER + OVERHEAD);
        }
        assert_eq!(reading.await.expect("ends"), Err(Some(ReadError::TimedOut)));
    }

    #[tokio::test(start_paused = true)]
    async fn messages_of_the_busiest_connection_are_evicted_the_largest_first_and_then_the_oldest() {
        let (here, there) = (Some([10, 0, 0, 1].into()), Some([10, 0, 0, 2].into()));
        // Of another address, and of another connection of the same one.
        for (honest, flooding) in [(here, there), (there, there)] {
            let incomplete = Arc::new(IncompleteMessages::new(MIN_LIMIT / MAX_LARGE_MESSAGES));
            let honest = incomplete.register(Peer { address: honest, connection: 1 });
            honest.set_size(MIN_LIMIT / 4);
            let is_evicted =
                |entry: &IncompleteMessage| !incomplete.inner().evictions.contains_key(&entry.id);
            // As many as still fit, each far smaller than the honest message, from several connections.
            let small = |connection| incomplete.register(Peer { address: flooding, connection });
            let most = (3 * MIN_LIMIT / 4 / OVERHEAD - 1) as u64;
            let flood: Vec<IncompleteMessage> = (0..most).map(|number| small(2 + number % 10)).collect();
            assert!(!flood.iter().any(is_evicted));
            let one_more = small(2);
            assert!(!is_evicted(&honest), "the flood evicts its own messages");
            flood.iter().find(|entry| is_evicted(entry)).expect("one of the flood").evicted.notified().await;
            assert!(flood.iter().filter(|entry| is_evicted(entry)).count() > 100, "several at a time");
            drop((honest, flood, one_more));
            let inner = incomplete.inner();
            assert!(inner.total == 0 && inner.peers.is_empty() && inner.evictions.is_empty());
        }
    }

    #[test]
    fn ten_thousand_requests_of_one_proxy_may_wait_for_their_messages() {
        let incomplete = Arc::new(IncompleteMessages::new(1024 * 1024));
        let entries: Vec<IncompleteMessage> = (0..10_000).map(|_| incomplete.register(HERE)).collect();
        assert_eq!(incomplete.inner().evictions.len(), entries.len(), "none is evicted");
    }

    #[tokio::test(start_paused = true)]
    async fn of_one_connection_the_largest_message_is_evicted_first_and_then_the_oldest() {
        let incomplete = Arc::new(IncompleteMessages::new(MIN_LIMIT / MAX_LARGE_MESSAGES));
        let is_evicted = |entry: &IncompleteMessage| !incomplete.inner().evictions.contains_key(&entry.id);
        let [oldest, large, other, newest] = [(); 4].map(|()| incomplete.register(HERE));
        large.set_size(MIN_LIMIT / 2);
        for entry in [&oldest, &other, &newest] {
            entry.set_size(MIN_LIMIT / 4);
        }
        assert_eq!([&oldest, &large, &other, &newest].map(is_evicted), [false, true, false, false]);
        let more = incomplete.register(HERE);
        more.set_size(MIN_LIMIT / 4);
        assert_eq!([&oldest, &other, &newest, &more].map(is_evicted), [true, false, false, false]);
    }
}
