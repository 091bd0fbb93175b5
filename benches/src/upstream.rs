//! The app behind a proxy: a constant response, on the core of the load.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Headers of a request, at most.
const MAX_HEADERS: usize = 96;

/// The header that says who the client is.
const SUBJECT: &str = "x-auth-subject";

/// A running app. Its connections end with the runtime.
pub struct Upstream {
    pub address: SocketAddr,
    identified: Arc<AtomicU64>,
}

impl Upstream {
    /// Starts on a free port of the loopback interface.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let identified = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&identified);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let counter = Arc::clone(&counter);
                tokio::spawn(async move {
                    // A proxy may close a connection at any time.
                    let _ended = serve(stream, &counter).await;
                });
            }
        });
        Ok(Self { address, identified })
    }

    /// How many requests had the header `x-auth-subject`.
    pub fn identified(&self) -> u64 {
        self.identified.load(Ordering::Relaxed)
    }
}

async fn serve(mut stream: TcpStream, identified: &AtomicU64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = BytesMut::with_capacity(8192);
    while stream.read_buf(&mut buffer).await? > 0 {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let parsed = request.parse(&buffer).map_err(io::Error::other)?;
        let httparse::Status::Complete(length) = parsed else { continue };
        if request.headers.iter().any(|header| header.name.eq_ignore_ascii_case(SUBJECT)) {
            identified.fetch_add(1, Ordering::Relaxed);
        }
        buffer.advance(length);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await?;
    }
    Ok(())
}
