//! The bytes of a connection: TCP or a socket file, plain or TLS, and watched as they come and go.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::framing::Framing;
use super::state::ConnectionState;

/// So many requests of HTTP/2 are read at a time. The library reads on for as long as something comes, and meanwhile nobody
/// sees what it refuses, and no answer goes out.
const AT_A_TIME: u64 = 32;

/// So many bytes of HTTP/1 are read at a time. The library's buffer grows with what one read brings, and stays so large until
/// the connection ends: requests that come one behind the other would make it larger than any of them is.
const OF_HTTP1_AT_A_TIME: usize = 4 * 1024;

/// What was accepted.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Calls the same method of what a variant holds.
macro_rules! either {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream.get_mut() {
            Stream::Tcp($inner) => $call,
            Stream::Unix($inner) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Tcp(stream) => stream.is_write_vectored(),
            Stream::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// A stream, whose connection's state hears of every byte.
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    framing: Framing,
    state: Arc<ConnectionState>,
    /// How many requests had come when reading last paused.
    paused_at: u64,
    /// Whether the last flush could not be done. TCP's always can.
    flushing: bool,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, state: Arc<ConnectionState>) -> Self {
        Self { stream, framing: Framing::new(), state, paused_at: 0, flushing: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, framing, state, paused_at, .. } = self.get_mut();
        if framing.streams().saturating_sub(*paused_at) >= AT_A_TIME {
            *paused_at = framing.streams();
            state.pause();
        }
        if state.is_paused() {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        if framing.is_http2() {
            ready!(Pin::new(stream).poll_read(cx, buf))?;
        } else {
            let most = buf.remaining().min(OF_HTTP1_AT_A_TIME);
            let mut some = ReadBuf::new(buf.initialize_unfilled_to(most));
            ready!(Pin::new(stream).poll_read(cx, &mut some))?;
            let read = some.filled().len();
            buf.advance(read);
        }
        if let Some(bytes) = buf.filled().get(before..).filter(|bytes| !bytes.is_empty()) {
            state.heard(framing, bytes);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, state, .. } = self.get_mut();
        let written = Pin::new(stream).poll_write(cx, buf);
        state.wrote(written.is_pending());
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, state, .. } = self.get_mut();
        let written = Pin::new(stream).poll_write_vectored(cx, bufs);
        state.wrote(written.is_pending());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, state, flushing, .. } = self.get_mut();
        let flushed = Pin::new(stream).poll_flush(cx);
        if flushed.is_pending() || *flushing {
            state.wrote(flushed.is_pending());
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

    /// How much each read brings of what begins with this and goes on for long.
    async fn reads(beginning: &[u8]) -> Vec<usize> {
        let mut sent = beginning.to_vec();
        sent.resize(beginning.len() + 100_000, 0);
        let mut watched = Watched::new(&*sent, Arc::new(ConnectionState::new(Arc::default())));
        let mut room = vec![0; 32 * 1024];
        let mut reads = Vec::new();
        while let read @ 1.. = watched.read(&mut room).await.expect("it is in memory") {
            reads.push(read);
        }
        assert_eq!(reads.iter().sum::<usize>(), sent.len(), "nothing is lost");
        reads
    }

    #[tokio::test]
    async fn of_http1_little_is_read_at_a_time_and_of_http2_what_there_is_room_for() {
        let of_http1 = reads(b"GET / HTTP/1.1\r\n\r\n").await;
        assert!(of_http1.iter().all(|read| *read <= OF_HTTP1_AT_A_TIME), "{of_http1:?}");
        let of_http2 = reads(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
        assert!(of_http2.contains(&(32 * 1024)), "{of_http2:?}");
    }
}
