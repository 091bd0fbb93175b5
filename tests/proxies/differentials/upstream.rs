//! An upstream that records what it receives, byte by byte, and accepts everything: it answers every request that it
//! can frame with 200 and every upgrade with 101, and then records and echoes what follows. It answers an upgrade of a
//! target with `refuses-upgrades` with 200, and parses what follows as the next request.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::client::{decode_chunked, find};

/// A received request.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// The request line and the header section, including the empty line.
    pub head: Vec<u8>,
    pub body: Vec<u8>,
    /// The trailer section.
    pub trailers: Vec<u8>,
    /// The bytes after a protocol switch.
    pub tunnel: Vec<u8>,
    /// The raw bytes of head, body and trailers.
    pub octets: Vec<u8>,
}

type Recorded = Arc<Mutex<Vec<Received>>>;

/// Listens until it is dropped.
pub struct Upstream {
    pub address: SocketAddr,
    recorded: Recorded,
    server: JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Upstream {
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("is bound");
        let recorded = Recorded::default();
        let shared = Arc::clone(&recorded);
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { address, recorded, server }
    }

    /// All received requests.
    pub fn received(&self) -> Vec<Received> {
        self.recorded.lock().expect("not poisoned").clone()
    }
}

/// Serves one connection.
async fn serve(mut stream: TcpStream, recorded: Recorded) {
    let mut read = Vec::new();
    loop {
        let Some(end) = read_until(&mut stream, &mut read, end_of_head).await else {
            // An incomplete request is recorded too.
            if !read.is_empty() {
                record(&recorded, Received { head: read, ..Received::default() });
            }
            return;
        };
        let head: Vec<u8> = read.drain(..end).collect();
        let number =
            record(&recorded, Received { head: head.clone(), octets: head.clone(), ..Received::default() });
        let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
        if let Some(answer) = switch_protocols(&text, &head) {
            if stream.write_all(answer.as_bytes()).await.is_ok() {
                tunnel(stream, read, &recorded, number).await;
            }
            return;
        }
        if text.contains("100-continue") && stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_err()
        {
            return;
        }
        let Some((body, trailers, length)) = read_body(&mut stream, &mut read, &text).await else { return };
        let octets: Vec<u8> = head.iter().copied().chain(read.drain(..length)).collect();
        update(&recorded, number, |received| {
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

/// Records a request and returns its index.
fn record(recorded: &Recorded, received: Received) -> usize {
    let mut all = recorded.lock().expect("not poisoned");
    all.push(received);
    all.len() - 1
}

fn update(recorded: &Recorded, number: usize, change: impl FnOnce(&mut Received)) {
    if let Some(received) = recorded.lock().expect("not poisoned").get_mut(number) {
        change(received);
    }
}

/// Reads until `parse` returns a value.
async fn read_until<T>(
    stream: &mut TcpStream,
    read: &mut Vec<u8>,
    parse: impl Fn(&[u8]) -> Option<T>,
) -> Option<T> {
    loop {
        if let Some(value) = parse(read) {
            return Some(value);
        }
        if stream.read_buf(read).await.ok()? == 0 {
            return None;
        }
    }
}

/// The end of a header section for a parser that accepts a bare LF as a line end.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let ends = [&b"\r\n\r\n"[..], b"\n\n", b"\n\r\n"];
    ends.iter().filter_map(|end| find(bytes, end).map(|at| at + end.len())).min()
}

/// Reads the body of a request with this head: the body, the trailer section, and the length of both in bytes.
async fn read_body(
    stream: &mut TcpStream,
    read: &mut Vec<u8>,
    head: &str,
) -> Option<(Vec<u8>, Vec<u8>, usize)> {
    if head.contains("\ntransfer-encoding") {
        return read_until(stream, read, decode_chunked).await;
    }
    let length = head.split_once("\ncontent-length:").map_or("0", |(_, rest)| rest);
    let length: usize = length.lines().next()?.trim().parse().ok()?;
    read_until(stream, read, |bytes| bytes.get(..length).map(|body| (body.to_vec(), Vec::new(), length)))
        .await
}

/// The response that switches protocols, if the request asks for that.
fn switch_protocols(text: &str, head: &[u8]) -> Option<String> {
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

/// Records and echoes all bytes.
async fn tunnel(mut stream: TcpStream, mut read: Vec<u8>, recorded: &Recorded, number: usize) {
    loop {
        update(recorded, number, |received| received.tunnel.extend_from_slice(&read));
        if stream.write_all(&read).await.is_err() {
            return;
        }
        read.clear();
        if !matches!(stream.read_buf(&mut read).await, Ok(1..)) {
            return;
        }
    }
}
