//! A client that sends the raw bytes of a case and reads the responses.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::message::{Case, Frame, Step};

/// How long the client waits for more bytes: some proxies wait for the rest of an incomplete request. No assertion
/// depends on it.
const READ_TIMEOUT: Duration = Duration::from_millis(2500);

/// An HTTP/1 response.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// The values of the placeholders in a case.
pub struct Placeholders<'a> {
    pub token: Option<&'a str>,
    pub mark: &'a str,
}

impl Placeholders<'_> {
    fn expand(&self, bytes: &[u8]) -> Vec<u8> {
        let line = self.token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let expanded = replace(bytes, b"{authorization}", line.as_bytes());
        let expanded = replace(&expanded, b"{token}", self.token.unwrap_or_default().as_bytes());
        replace(&expanded, b"{case}", self.mark.as_bytes())
    }
}

/// Replaces every `from` by `to`.
pub fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = find(rest, from) {
        let (before, after) = rest.split_at(at);
        result.extend_from_slice(before);
        result.extend_from_slice(to);
        rest = &after[from.len()..];
    }
    result.extend_from_slice(rest);
    result
}

/// The position of the first `part` in `bytes`.
pub fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// Sends a case on a new connection and returns the responses, including 1xx.
pub async fn send(address: SocketAddr, case: &Case, placeholders: &Placeholders<'_>) -> Vec<Answer> {
    let stream = TcpStream::connect(address).await.expect("the proxy listens");
    let mut connection =
        Connection { stream, read: Vec::new(), answers: Vec::new(), head_only: is_head(case) };
    let mut is_http2 = false;
    for step in &case.steps {
        let proceed = match step {
            Step::Send(bytes) => connection.write(&placeholders.expand(bytes)).await,
            Step::Expect100 => connection.answer().await == Some(100),
            Step::Expect101 => connection.answer().await == Some(101),
            Step::ExpectNot101 => connection.answer().await.is_some_and(|status| status != 101),
            Step::Expect200 => connection.tunnel_opens().await,
            Step::Http2(frames) => {
                if !is_http2 {
                    is_http2 = connection.write(PREFACE).await;
                }
                connection.write(&encode_frames(frames, placeholders)).await
            }
        };
        if !proceed {
            break;
        }
    }
    if is_http2 {
        connection.read_frames().await;
    } else {
        connection.read_answers(case.answers).await;
    }
    connection.answers
}

/// Sends a request on a new connection and returns the first final response.
pub async fn exchange(address: SocketAddr, request: &[u8]) -> Option<Answer> {
    let stream = TcpStream::connect(address).await.ok()?;
    let head_only = request.starts_with(b"HEAD ");
    let mut connection = Connection { stream, read: Vec::new(), answers: Vec::new(), head_only };
    connection.write(request).await;
    connection.read_answers(1).await;
    connection.answers.into_iter().find(|answer| answer.status >= 200)
}

fn is_head(case: &Case) -> bool {
    matches!(case.steps.first(), Some(Step::Send(bytes)) if bytes.starts_with(b"HEAD "))
}

struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
    answers: Vec<Answer>,
    /// Responses have no body.
    head_only: bool,
}

impl Connection {
    /// Whether the write succeeds. A proxy that has refused the request may close the connection early.
    async fn write(&mut self, bytes: &[u8]) -> bool {
        matches!(timeout(READ_TIMEOUT, self.stream.write_all(bytes)).await, Ok(Ok(())))
    }

    /// Whether more bytes arrive in time.
    async fn read_more(&mut self) -> bool {
        matches!(timeout(READ_TIMEOUT, self.stream.read_buf(&mut self.read)).await, Ok(Ok(1..)))
    }

    /// The status of the next response.
    async fn answer(&mut self) -> Option<u16> {
        loop {
            if let Some((answer, length)) = first_answer(&self.read, self.head_only) {
                self.read.drain(..length);
                let status = answer.status;
                self.answers.push(answer);
                return Some(status);
            }
            if !self.read_more().await {
                return None;
            }
        }
    }

    /// Whether the response to CONNECT is 200. What follows its head is the tunnel.
    async fn tunnel_opens(&mut self) -> bool {
        self.head_only = true;
        self.answer().await == Some(200)
    }

    /// Reads until `wanted` final responses have arrived or no more bytes arrive.
    async fn read_answers(&mut self, wanted: usize) {
        while self.answers.iter().filter(|answer| answer.status >= 200).count() < wanted {
            let switched = self.answers.iter().any(|answer| answer.status == 101);
            if switched {
                // What follows is another protocol.
                while self.read.is_empty() && self.read_more().await {}
                return;
            }
            if self.answer().await.is_none() {
                self.read_until_close();
                return;
            }
        }
    }

    /// Reads a response whose body ends with the connection.
    fn read_until_close(&mut self) {
        if let Some(end) = find(&self.read, b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&self.read[..end]).into_owned();
            self.answers.push(Answer { status: status(&head), body: self.read.split_off(end + 4) });
        }
    }

    /// Reads HTTP/2 frames until a stream or the connection ends.
    async fn read_frames(&mut self) {
        loop {
            while let Some((kind, flags, length)) = first_frame(&self.read) {
                self.read.drain(..length);
                let ended = matches!(kind, 0 | 1) && flags & 1 == 1;
                match kind {
                    // Acknowledges SETTINGS.
                    4 if flags & 1 == 0 => drop(self.write(&[0, 0, 0, 4, 1, 0, 0, 0, 0]).await),
                    // RST_STREAM, GOAWAY.
                    3 | 7 => return,
                    _ if ended => return,
                    _ => {}
                }
            }
            if !self.read_more().await {
                return;
            }
        }
    }
}

/// The first complete response and its length in bytes.
fn first_answer(bytes: &[u8], head_only: bool) -> Option<(Answer, usize)> {
    let end = find(bytes, b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end - 4]).into_owned();
    let status = status(&head);
    let field = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
    };
    if head_only || status < 200 || matches!(status, 204 | 304) {
        return Some((Answer { status, body: Vec::new() }, end));
    }
    if let Some(length) = field("content-length").and_then(|length| length.parse::<usize>().ok()) {
        let body = bytes.get(end..end + length)?.to_vec();
        return Some((Answer { status, body }, end + length));
    }
    if field("transfer-encoding").is_some() {
        let (body, _, length) = decode_chunked(&bytes[end..])?;
        return Some((Answer { status, body }, end + length));
    }
    // The body ends with the connection.
    None
}

fn status(head: &str) -> u16 {
    head.split(' ')
        .nth(1)
        .and_then(|status| status.get(..3))
        .and_then(|status| status.parse().ok())
        .unwrap_or(0)
}

/// A chunked body, its trailer section and its length in bytes; `None` if incomplete.
pub fn decode_chunked(bytes: &[u8]) -> Option<(Vec<u8>, Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let line = find(bytes.get(at..)?, b"\n")?;
        let size = String::from_utf8_lossy(&bytes[at..at + line]).into_owned();
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        at += line + 1;
        if size == 0 {
            break;
        }
        body.extend_from_slice(bytes.get(at..at + size)?);
        at += size + 2;
    }
    let trailers = at;
    loop {
        let line = find(bytes.get(at..)?, b"\n")?;
        at += line + 1;
        if line <= 1 {
            return Some((body, bytes[trailers..at].to_vec(), at));
        }
    }
}

/// The HTTP/2 connection preface and empty SETTINGS.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The type, the flags and the length in bytes of the first frame.
fn first_frame(bytes: &[u8]) -> Option<(u8, u8, usize)> {
    let [a, b, c, kind, flags, ..] = *bytes else { return None };
    let length = 9 + (usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c));
    (bytes.len() >= length).then_some((kind, flags, length))
}

/// Encodes frames on stream 1.
fn encode_frames(frames: &[Frame], placeholders: &Placeholders<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        let (kind, flags, payload) = match frame {
            // END_HEADERS, and END_STREAM for the last frame.
            Frame::Headers { fields, last } => (1, 4 | u8::from(*last), header_block(fields, placeholders)),
            Frame::Data(data) => (0, 0, placeholders.expand(data)),
        };
        let length = u32::try_from(payload.len()).expect("is small").to_be_bytes();
        bytes.extend_from_slice(&length[1..]);
        bytes.extend_from_slice(&[kind, flags, 0, 0, 0, 1]);
        bytes.extend_from_slice(&payload);
    }
    bytes
}

/// Encodes fields as literals without indexing (RFC 7541 §6.2.2) and without Huffman coding.
fn header_block(fields: &[(Vec<u8>, Vec<u8>)], placeholders: &Placeholders<'_>) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        if placeholders.token.is_none() && find(value, b"{token}").is_some() {
            continue;
        }
        block.push(0);
        literal(&mut block, &placeholders.expand(name));
        literal(&mut block, &placeholders.expand(value));
    }
    block
}

fn literal(block: &mut Vec<u8>, octets: &[u8]) {
    let mut length = octets.len();
    if let Ok(short @ 0..127) = u8::try_from(length) {
        block.push(short);
    } else {
        block.push(127);
        length -= 127;
        while length >= 128 {
            block.push(u8::try_from(length % 128).expect("is below 128") | 128);
            length /= 128;
        }
        block.push(u8::try_from(length).expect("is below 128"));
    }
    block.extend_from_slice(octets);
}
