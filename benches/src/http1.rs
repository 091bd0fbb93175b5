//! Requests over HTTP/1.1 connections that stay open, one at a time on each: as many as a server answers, or so many a
//! second.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

type Failure = Box<dyn Error + Send + Sync>;

/// Headers of a response, at most.
const MAX_HEADERS: usize = 64;

/// Where requests go, on how many connections, and what they ask, one after the other.
#[derive(Clone)]
pub struct HttpLoad {
    pub address: SocketAddr,
    pub connections: usize,
    /// Whole requests, without a body or with all of it.
    pub requests: Arc<Vec<Bytes>>,
    /// The status of the responses.
    pub expected: u16,
}

impl HttpLoad {
    /// As many as are answered within this time.
    ///
    /// # Errors
    /// A connection ended, or a response is not the expected one.
    pub async fn saturate(&self, time: Duration) -> Result<u64, Failure> {
        let end = Instant::now() + time;
        let mut tasks = Vec::new();
        for number in 0..self.connections {
            let load = self.clone();
            let mut connection = Connection::open(self.address).await?;
            tasks.push(tokio::spawn(async move {
                let mut answered = 0u64;
                let requests = load.requests.iter().cycle().skip(number % load.requests.len());
                for request in requests {
                    if Instant::now() >= end {
                        break;
                    }
                    connection.expect(request, load.expected).await?;
                    answered += 1;
                }
                Ok::<_, Failure>(answered)
            }));
        }
        let mut answered = 0;
        for task in tasks {
            answered += task.await??;
        }
        Ok(answered)
    }

    /// So many a second for this time: how long each took from the moment at which it was due, in order of length.
    ///
    /// # Errors
    /// A connection ended, or a response is not the expected one.
    pub async fn at_rate(&self, rate: u32, time: Duration) -> Result<Vec<Duration>, Failure> {
        let mut queues = Vec::new();
        let mut tasks = Vec::new();
        for number in 0..self.connections {
            let (queue, mut due) = mpsc::unbounded_channel::<Instant>();
            queues.push(queue);
            let load = self.clone();
            let mut connection = Connection::open(self.address).await?;
            tasks.push(tokio::spawn(async move {
                let mut took = Vec::new();
                let request = &load.requests[number % load.requests.len()];
                while let Some(due) = due.recv().await {
                    connection.expect(request, load.expected).await?;
                    took.push(due.elapsed());
                }
                Ok::<_, Failure>(took)
            }));
        }
        let start = Instant::now();
        let total = (time.as_secs_f64() * f64::from(rate)) as u32;
        for (number, queue) in (0..total).zip(queues.iter().cycle()) {
            let due = start + Duration::from_secs(1) * number / rate;
            // A timer of tokio is late by up to a millisecond, several times what a response takes.
            while Instant::now() < due {
                tokio::task::yield_now().await;
            }
            // It fails only if the task has ended, which reports its own error below.
            let _sent = queue.send(due);
        }
        drop(queues);
        let mut took = Vec::new();
        for task in tasks {
            took.append(&mut task.await??);
        }
        took.sort_unstable();
        Ok(took)
    }

    /// The status of the response to this request.
    ///
    /// # Errors
    /// The connection fails.
    pub async fn status(&self, request: &Bytes) -> Result<u16, Failure> {
        Connection::open(self.address).await?.ask(request).await
    }
}

struct Connection {
    address: SocketAddr,
    stream: TcpStream,
    buffer: BytesMut,
}

impl Connection {
    async fn open(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { address, stream, buffer: BytesMut::with_capacity(4096) })
    }

    async fn expect(&mut self, request: &Bytes, expected: u16) -> Result<(), Failure> {
        let status = self.ask(request).await?;
        if status != expected {
            return Err(format!("the response's status is {status}, not {expected}").into());
        }
        Ok(())
    }

    /// Sends a request, and reads its response. Connects again if the server closes the connection with it, as NGINX does
    /// after a thousand requests.
    async fn ask(&mut self, request: &Bytes) -> Result<u16, Failure> {
        self.stream.write_all(request).await?;
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err("the connection ended before the response".into());
            }
            let Some(head) = Head::parse(&self.buffer)? else { continue };
            while self.buffer.len() < head.length {
                if self.stream.read_buf(&mut self.buffer).await? == 0 {
                    return Err("the connection ended within the response".into());
                }
            }
            self.buffer.advance(head.length);
            if head.closes {
                *self = Self::open(self.address).await?;
            }
            return Ok(head.status);
        }
    }
}

/// What has to be known of a response.
struct Head {
    status: u16,
    /// Of the whole response, in bytes.
    length: usize,
    closes: bool,
}

impl Head {
    /// None if there is more to read.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, Failure> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(head) = response.parse(bytes)? else { return Ok(None) };
        let value = |name: &str| {
            let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
            header.map(|header| String::from_utf8_lossy(header.value))
        };
        if value("transfer-encoding").is_some() {
            return Err("a response in chunks, which this client does not read".into());
        }
        let body: usize = value("content-length").map_or(Ok(0), |length| length.parse())?;
        let closes = value("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        Ok(Some(Self { status: response.code.unwrap_or(0), length: head + body, closes }))
    }
}
