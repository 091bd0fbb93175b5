//! The service with its gRPC door in this thread, and a client on the same thread that only writes prepared frames and
//! counts the responses: nearly all that a Check costs here is the server's.

use envoy_types::pb::envoy::service::auth::v3::CheckResponse;
use portcullis::app::App;
use portcullis::clock::Clock;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::{Failure, fixture, frames};

/// How many Checks are sent at a time, unless a measurement is about that.
pub const TOGETHER: usize = 16;

/// The connection window that a server starts with (RFC 9113 §6.9.2).
const FIRST_WINDOW: usize = 65_535;

/// A service, a connection to its gRPC door, and the runtime of both.
pub struct Door {
    runtime: Runtime,
    client: Client,
}

impl Door {
    /// Starts a service with this configuration.
    ///
    /// # Errors
    /// The configuration is invalid, or the service cannot be started.
    pub fn open(configuration: &str) -> Result<Self, Failure> {
        let config = fixture::config(configuration)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(async {
            let app = App::bind(config, Clock::default()).await.map_err(|error| error.to_string())?;
            let address = app.ext_authz_address().ok_or("no gRPC listener on TCP")?;
            tokio::spawn(app.serve(std::future::pending()));
            Client::connect(address).await
        })?;
        Ok(Self { runtime, client })
    }

    /// The gRPC code within the response to a Check.
    ///
    /// # Errors
    /// The connection failed, or the response is not a CheckResponse.
    pub fn code_of(&mut self, check: &[u8]) -> Result<i32, Failure> {
        let mut data = Vec::new();
        self.runtime.block_on(self.client.send(&[check], 1, Some(&mut data)))?;
        let message = data.get(5..).ok_or("a response without a message")?;
        CheckResponse::decode(message)?.status.map(|status| status.code).ok_or_else(|| "no status".into())
    }

    /// Has the same Check answered this many times, with this many open streams at a time.
    ///
    /// # Errors
    /// The connection failed.
    pub fn answer(&mut self, check: &[u8], times: usize, together: usize) -> Result<(), Failure> {
        self.answer_each(&vec![check; times], together)
    }

    /// Has each of these Checks answered once, with this many open streams at a time.
    ///
    /// # Errors
    /// The connection failed.
    pub fn answer_each(&mut self, checks: &[&[u8]], together: usize) -> Result<(), Failure> {
        self.runtime.block_on(self.client.send(checks, together, None))
    }
}

struct Client {
    stream: TcpStream,
    /// The number of the next stream.
    next: u32,
    /// How much data may be sent.
    window: usize,
    /// What was received and is not a complete frame.
    received: Vec<u8>,
}

impl Client {
    async fn connect(address: std::net::SocketAddr) -> Result<Self, Failure> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&frames::preface()).await?;
        Ok(Self { stream, next: 1, window: FIRST_WINDOW, received: Vec::new() })
    }

    /// Opens the streams of a batch before it sends their messages, so that as many are open at a time.
    async fn send(
        &mut self,
        checks: &[&[u8]],
        together: usize,
        mut data: Option<&mut Vec<u8>>,
    ) -> Result<(), Failure> {
        for batch in checks.chunks(together) {
            let mut bytes = Vec::new();
            let streams = || (self.next..).step_by(2).take(batch.len());
            for stream in streams() {
                frames::headers(&mut bytes, stream, stream == 1);
            }
            let streams = streams();
            self.next += 2 * batch.len() as u32;
            let mut unanswered = batch.len();
            for (i, (stream, check)) in streams.zip(batch).enumerate() {
                // What is written at a time is answered, in part, before more is written: neither side waits for the other.
                while self.window < check.len() || (i > 0 && i % TOGETHER == 0 && !bytes.is_empty()) {
                    self.stream.write_all(&std::mem::take(&mut bytes)).await?;
                    unanswered -= self.receive(data.as_deref_mut()).await?;
                }
                self.window -= check.len();
                frames::message(&mut bytes, stream, check);
            }
            self.stream.write_all(&bytes).await?;
            while unanswered > 0 {
                unanswered -= self.receive(data.as_deref_mut()).await?;
            }
        }
        Ok(())
    }

    /// Waits until something was received. Returns how many responses are complete with it.
    async fn receive(&mut self, data: Option<&mut Vec<u8>>) -> Result<usize, Failure> {
        self.received.reserve(64 * 1024);
        if self.stream.read_buf(&mut self.received).await? == 0 {
            return Err("the server has closed the connection".into());
        }
        let received = frames::receive(&mut self.received, data)?;
        self.window += received.window as usize;
        if !received.replies.is_empty() {
            self.stream.write_all(&received.replies).await?;
        }
        Ok(received.answered)
    }
}
