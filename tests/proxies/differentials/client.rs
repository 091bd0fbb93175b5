//! A client that sends what a case says, octet by octet, and reads the answers.
//!
//! It never judges them.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::message::{Case, Frame, Step};

/// How long a proxy may be silent until the client gives up: some wait for more of what never comes. Nothing is
/// judged by it.
const SILENCE: Duration = Duration::from_millis(2500);

/// An answer of HTTP/1.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// What takes the place of the placeholders.
pub struct Filling<'a> {
    pub token: Option<&'a str>,
    pub mark: &'a str,
}

impl Filling<'_> {
    fn fill(&self, bytes: &[u8]) -> Vec<u8> {
        let line = self.token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let filled = replaced(bytes, b"{authorization}", line.as_bytes());
        let filled = replaced(&filled, b"{token}", self.token.unwrap_or_default().as_bytes());
        replaced(&filled, b"{case}", self.mark.as_bytes())
    }
}

/// `bytes` with `to` wherever `from` stands.
pub fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
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

/// Where `part` first stands in `bytes`.
pub fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// Sends what the case says, on a connection of its own, and gives the answers that came (1xx among them).
pub async fn send(address: SocketAddr, case: &Case, filling: &Filling<'_>) -> Vec<Answer> {
    let stream = TcpStream::connect(address).await.expect("the proxy listens");
    let mut connection =
        Connection { stream, read: Vec::new(), answers: Vec::new(), head_only: is_head(case) };
    let mut opened = false;
    for step in &case.steps {
        let goes_on = match step {
            Step::Send(bytes) => connection.write(&filling.fill(bytes)).await,
            Step::Continue => connection.answer().await == Some(100),
            Step::Switched => connection.answer().await == Some(101),
            Step::Refused => connection.answer().await.is_some_and(|status| status != 101),
            Step::Answered => connection.opens_tunnel().await,
            Step::Http2(frames) => {
                if !opened {
                    opened = connection.write(PREFACE).await;
                }
                connection.write(&octets(frames, filling)).await
            }
        };
        if !goes_on {
            break;
        }
    }
    if opened {
        connection.read_frames().await;
    } else {
        connection.read_answers(case.answers).await;
    }
    connection.answers
}

/// Sends these octets on a connection of their own and gives the first final answer.
pub async fn exchange(address: SocketAddr, octets: &[u8]) -> Option<Answer> {
    let stream = TcpStream::connect(address).await.ok()?;
    let head_only = octets.starts_with(b"HEAD ");
    let mut connection = Connection { stream, read: Vec::new(), answers: Vec::new(), head_only };
    connection.write(octets).await;
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
    /// Its answers have no body.
    head_only: bool,
}

impl Connection {
    /// Whether it could be written. A proxy that refused may close before it has read all.
    async fn write(&mut self, bytes: &[u8]) -> bool {
        matches!(timeout(SILENCE, self.stream.write_all(bytes)).await, Ok(Ok(())))
    }

    /// Whether anything more came.
    async fn more(&mut self) -> bool {
        matches!(timeout(SILENCE, self.stream.read_buf(&mut self.read)).await, Ok(Ok(1..)))
    }

    /// The status of the next answer.
    async fn answer(&mut self) -> Option<u16> {
        loop {
            if let Some((answer, length)) = first_answer(&self.read, self.head_only) {
                self.read.drain(..length);
                let status = answer.status;
                self.answers.push(answer);
                return Some(status);
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// Whether the answer is 200, whose head alone counts: what follows CONNECT's is a tunnel.
    async fn opens_tunnel(&mut self) -> bool {
        self.head_only = true;
        self.answer().await == Some(200)
    }

    /// Reads until there are so many final answers, or there is no more.
    async fn read_answers(&mut self, wanted: usize) {
        while self.answers.iter().filter(|answer| answer.status >= 200).count() < wanted {
            let switched = self.answers.iter().any(|answer| answer.status == 101);
            if switched {
                // What comes now is another protocol's.
                while self.read.is_empty() && self.more().await {}
                return;
            }
            if self.answer().await.is_none() {
                self.read_unended();
                return;
            }
        }
    }

    /// An answer whose body ends with the connection.
    fn read_unended(&mut self) {
        if let Some(end) = find(&self.read, b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&self.read[..end]).into_owned();
            self.answers.push(Answer { status: status(&head), body: self.read.split_off(end + 4) });
        }
    }

    /// Reads frames of HTTP/2 until a stream ends, or the connection does.
    async fn read_frames(&mut self) {
        loop {
            while let Some((kind, flags, length)) = first_frame(&self.read) {
                self.read.drain(..length);
                let ended = matches!(kind, 0 | 1) && flags & 1 == 1;
                match kind {
                    // SETTINGS want to be acknowledged.
                    4 if flags & 1 == 0 => drop(self.write(&[0, 0, 0, 4, 1, 0, 0, 0, 0]).await),
                    // RST_STREAM, GOAWAY.
                    3 | 7 => return,
                    _ if ended => return,
                    _ => {}
                }
            }
            if !self.more().await {
                return;
            }
        }
    }
}

/// The first whole answer and its length in bytes.
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
        let (body, _, length) = dechunked(&bytes[end..])?;
        return Some((Answer { status, body }, end + length));
    }
    // It ends with the connection.
    None
}

fn status(head: &str) -> u16 {
    head.split(' ')
        .nth(1)
        .and_then(|status| status.get(..3))
        .and_then(|status| status.parse().ok())
        .unwrap_or(0)
}

/// A chunked body, its trailer section and its length in bytes; none where it is not whole.
pub fn dechunked(bytes: &[u8]) -> Option<(Vec<u8>, Vec<u8>, usize)> {
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

/// The connection preface of HTTP/2 and empty SETTINGS.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The kind, the flags and the length in bytes of the first frame.
fn first_frame(bytes: &[u8]) -> Option<(u8, u8, usize)> {
    let [a, b, c, kind, flags, ..] = *bytes else { return None };
    let length = 9 + (usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c));
    (bytes.len() >= length).then_some((kind, flags, length))
}

/// Frames of stream 1.
fn octets(frames: &[Frame], filling: &Filling<'_>) -> Vec<u8> {
    let mut octets = Vec::new();
    for frame in frames {
        let (kind, flags, payload) = match frame {
            // END_HEADERS, and END_STREAM where it is the last.
            Frame::Headers { fields, last } => (1, 4 | u8::from(*last), header_block(fields, filling)),
            Frame::Data(data) => (0, 0, filling.fill(data)),
        };
        let length = u32::try_from(payload.len()).expect("is small").to_be_bytes();
        octets.extend_from_slice(&length[1..]);
        octets.extend_from_slice(&[kind, flags, 0, 0, 0, 1]);
        octets.extend_from_slice(&payload);
    }
    octets
}

/// Literals without indexing and without Huffman (RFC 7541 §6.2.2): every octet as it is.
fn header_block(fields: &[(Vec<u8>, Vec<u8>)], filling: &Filling<'_>) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        if filling.token.is_none() && find(value, b"{token}").is_some() {
            continue;
        }
        block.push(0);
        literal(&mut block, &filling.fill(name));
        literal(&mut block, &filling.fill(value));
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
