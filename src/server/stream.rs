//! The byte stream of a connection: TCP or Unix socket, with a wrapper that reports reads and writes to its state.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::framing::Framing;
use super::state::ConnectionState;

/// How many HTTP/2 requests are read before reading pauses. While data arrives, the HTTP library keeps reading; meanwhile
/// rejected requests go uncounted and no response is sent.
const MAX_REQUESTS_PER_READ: u64 = 32;

/// How many bytes of HTTP/1 are read at a time. Hyper's buffer grows with what one read returns and keeps that size
/// until the connection closes, so pipelined requests would make it larger than any one of them.
const MAX_HTTP1_READ: usize = 4 * 1024;

/// An accepted connection.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Calls a method on the inner stream.
macro_rules! delegate {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream.get_mut() {
            Stream::Tcp($inner) => $call,
            Stream::Unix($inner) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Tcp(stream) => stream.is_write_vectored(),
            Stream::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// A stream that reports every read and write to the connection's state.
#[derive(Debug)]
pub(super) struct MonitoredStream<S> {
    stream: S,
    framing: Framing,
    state: Arc<ConnectionState>,
    /// The number of requests received when reading last paused.
    paused_at: u64,
    /// Whether the last flush is pending. A TCP flush never is.
    flushing: bool,
    /// Whether the writer is to join small buffers instead of passing several.
    joined_writes: bool,
}

impl<S> MonitoredStream<S> {
    pub(super) fn new(stream: S, state: Arc<ConnectionState>) -> Self {
        Self { stream, framing: Framing::new(), state, paused_at: 0, flushing: false, joined_writes: false }
    }

    /// Has h2 join up to 16 KiB of small frames in one write. It would otherwise make a write for each frame of more than
    /// 256 bytes, and so for most responses.
    pub(super) fn with_joined_writes(self) -> Self {
        Self { joined_writes: true, ..self }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for MonitoredStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, framing, state, paused_at, .. } = self.get_mut();
        if framing.streams().saturating_sub(*paused_at) >= MAX_REQUESTS_PER_READ {
            *paused_at = framing.streams();
            state.pause();
        }
        // A connection that floods is about to be closed: the rest of what was received is not read.
        if state.is_paused() || state.is_flooded() {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        if framing.is_http2() {
            ready!(Pin::new(stream).poll_read(cx, buf))?;
        } else {
            let max = buf.remaining().min(MAX_HTTP1_READ);
            let mut limited = ReadBuf::new(buf.initialize_unfilled_to(max));
            ready!(Pin::new(stream).poll_read(cx, &mut limited))?;
            let read = limited.filled().len();
            buf.advance(read);
        }
        if let Some(bytes) = buf.filled().get(before..).filter(|bytes| !bytes.is_empty()) {
            state.record_read(framing, bytes);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for MonitoredStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, state, .. } = self.get_mut();
        let written = Pin::new(stream).poll_write(cx, buf);
        state.record_write(written.is_pending());
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, state, .. } = self.get_mut();
        let written = Pin::new(stream).poll_write_vectored(cx, bufs);
        state.record_write(written.is_pending());
        written
    }

    fn is_write_vectored(&self) -> bool {
        !self.joined_writes && self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, state, flushing, .. } = self.get_mut();
        let flushed = Pin::new(stream).poll_flush(cx);
        if flushed.is_pending() || *flushing {
            state.record_write(flushed.is_pending());
        }
        *flushing = flushed.is_pending();
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    /// The sizes of the reads of a long input with this beginning.
    async fn reads(beginning: &[u8]) -> Vec<usize> {
        let mut sent = beginning.to_vec();
        sent.resize(beginning.len() + 100_000, 0);
        let mut stream = MonitoredStream::new(&*sent, Arc::new(ConnectionState::new(Arc::default())));
        let mut buffer = vec![0; 32 * 1024];
        let mut reads = Vec::new();
        while let read @ 1.. = stream.read(&mut buffer).await.expect("it is in memory") {
            reads.push(read);
        }
        assert_eq!(reads.iter().sum::<usize>(), sent.len(), "nothing is lost");
        reads
    }

    #[tokio::test]
    async fn reads_of_http1_are_small_and_reads_of_http2_fill_the_buffer() {
        let http1 = reads(b"GET / HTTP/1.1\r\n\r\n").await;
        assert!(http1.iter().all(|read| *read <= MAX_HTTP1_READ), "{http1:?}");
        let http2 = reads(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
        assert!(http2.contains(&(32 * 1024)), "{http2:?}");
    }
}
