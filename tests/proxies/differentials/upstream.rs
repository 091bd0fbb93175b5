//! An upstream that keeps what it gets, byte by byte, and says yes to everything: every request that it can frame
//! is answered with 200, every upgrade with 101, and what then follows is kept and sent back. An upgrade of a target
//! with `refuses-upgrades` is answered as any other request, and what follows is the next.
//!
//! It never judges what it gets.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::client::{dechunked, find};

/// One request as it arrived.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// The request line and the header section, with the empty line.
    pub head: Vec<u8>,
    pub body: Vec<u8>,
    /// The trailer section.
    pub trailers: Vec<u8>,
    /// What followed once the protocol was switched.
    pub tunnel: Vec<u8>,
    /// Head, body and trailers as they were framed.
    pub octets: Vec<u8>,
}

type Kept = Arc<Mutex<Vec<Received>>>;

/// Listens until it is dropped.
pub struct Upstream {
    pub address: SocketAddr,
    kept: Kept,
    serving: JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Upstream {
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("is bound");
        let kept = Kept::default();
        let keep = Arc::clone(&kept);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&keep)));
            }
        });
        Self { address, kept, serving }
    }

    /// All that has arrived.
    pub fn received(&self) -> Vec<Received> {
        self.kept.lock().expect("nobody panicked").clone()
    }
}

/// Serves one connection.
async fn serve(mut stream: TcpStream, kept: Kept) {
    let mut read = Vec::new();
    loop {
        let Some(end) = until(&mut stream, &mut read, end_of_head).await else {
            // What never became a request shows as one.
            if !read.is_empty() {
                keep(&kept, Received { head: read, ..Received::default() });
            }
            return;
        };
        let head: Vec<u8> = read.drain(..end).collect();
        let number =
            keep(&kept, Received { head: head.clone(), octets: head.clone(), ..Received::default() });
        let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
        if let Some(answer) = switch(&text, &head) {
            if stream.write_all(answer.as_bytes()).await.is_ok() {
                tunnel(stream, read, &kept, number).await;
            }
            return;
        }
        if text.contains("100-continue") && stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_err()
        {
            return;
        }
        let Some((body, trailers, length)) = body(&mut stream, &mut read, &text).await else { return };
        let octets: Vec<u8> = head.iter().copied().chain(read.drain(..length)).collect();
        with(&kept, number, |received| {
            (received.body, received.trailers, received.octets) = (body, trailers, octets);
        });
        let content = if text.starts_with("head ") { "" } else { "ok" };
        let answer =
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{content}");
        if stream.write_all(answer.as_bytes()).await.is_err() || is_last(&text) {
            return;
        }
    }
}

fn is_last(head: &str) -> bool {
    head.lines().next().is_some_and(|line| line.ends_with("http/1.0"))
}

fn keep(kept: &Kept, received: Received) -> usize {
    let mut all = kept.lock().expect("nobody panicked");
    all.push(received);
    all.len() - 1
}

fn with(kept: &Kept, number: usize, change: impl FnOnce(&mut Received)) {
    if let Some(received) = kept.lock().expect("nobody panicked").get_mut(number) {
        change(received);
    }
}

/// Reads until `whole` finds something.
async fn until<T>(
    stream: &mut TcpStream,
    read: &mut Vec<u8>,
    whole: impl Fn(&[u8]) -> Option<T>,
) -> Option<T> {
    loop {
        if let Some(found) = whole(read) {
            return Some(found);
        }
        if stream.read_buf(read).await.ok()? == 0 {
            return None;
        }
    }
}

/// Where a header section ends, for a reader that takes a bare LF for a line end too.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let ends = [&b"\r\n\r\n"[..], b"\n\n", b"\n\r\n"];
    ends.iter().filter_map(|end| find(bytes, end).map(|at| at + end.len())).min()
}

/// Body, trailer section and length in bytes of the body of a request with this head.
async fn body(stream: &mut TcpStream, read: &mut Vec<u8>, head: &str) -> Option<(Vec<u8>, Vec<u8>, usize)> {
    if head.contains("\ntransfer-encoding") {
        return until(stream, read, dechunked).await;
    }
    let length = head.split_once("\ncontent-length:").map_or("0", |(_, rest)| rest);
    let length: usize = length.lines().next()?.trim().parse().ok()?;
    until(stream, read, |bytes| bytes.get(..length).map(|body| (body.to_vec(), Vec::new(), length))).await
}

/// The answer that switches the protocol, where the request asks for that.
fn switch(text: &str, head: &[u8]) -> Option<String> {
    if text.starts_with("connect ") {
        return Some("HTTP/1.1 200 OK\r\n\r\n".to_owned());
    }
    let field = |name: &str| {
        let head = String::from_utf8_lossy(head).into_owned();
        let mut lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
    };
    let protocol = field("upgrade").filter(|_| !text.contains("refuses-upgrades"))?;
    let key = field("sec-websocket-key").unwrap_or_default();
    let accept =
        digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes());
    Some(format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        STANDARD.encode(accept)
    ))
}

/// Keeps and sends back whatever comes.
async fn tunnel(mut stream: TcpStream, mut read: Vec<u8>, kept: &Kept, number: usize) {
    loop {
        with(kept, number, |received| received.tunnel.extend_from_slice(&read));
        if stream.write_all(&read).await.is_err() {
            return;
        }
        read.clear();
        if !matches!(stream.read_buf(&mut read).await, Ok(1..)) {
            return;
        }
    }
}
