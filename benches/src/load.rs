//! Checks over HTTP/2: as many as a server answers, or so many a second.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use envoy_types::pb::envoy::service::auth::v3::CheckResponse;
use h2::client::SendRequest;
use http::Request;
use prost::Message;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

type Failure = Box<dyn Error + Send + Sync>;

/// Where requests go, how many at a time, and what they ask, one after the other.
#[derive(Clone)]
pub struct Load {
    pub address: SocketAddr,
    pub connections: usize,
    pub streams: usize,
    pub bodies: Arc<Vec<Bytes>>,
    /// The gRPC code within the answers.
    pub expected: i32,
}

impl Load {
    async fn connect(&self) -> Result<SendRequest<Bytes>, Failure> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (client, connection) = h2::client::Builder::new()
            .initial_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .handshake(stream)
            .await?;
        tokio::spawn(async move {
            let _ended = connection.await;
        });
        Ok(client)
    }

    /// As many as are answered within this time.
    ///
    /// # Errors
    /// A connection ended, or an answer is not the expected one.
    pub async fn saturate(&self, time: Duration) -> Result<u64, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let timer = tokio::spawn(async move {
            tokio::time::sleep(time).await;
            stopping.store(true, Ordering::Relaxed);
        });
        let answered = self.send(usize::MAX, &stop).await;
        timer.abort();
        answered
    }

    /// Each of the bodies once.
    ///
    /// # Errors
    /// A connection ended, or an answer is not the expected one.
    pub async fn once(&self) -> Result<u64, Failure> {
        self.send(self.bodies.len(), &Arc::default()).await
    }

    /// This many, or as many as are answered before the stop.
    async fn send(&self, most: usize, stop: &Arc<AtomicBool>) -> Result<u64, Failure> {
        let answered = Arc::new(AtomicU64::new(0));
        let next = Arc::new(AtomicUsize::new(0));
        let mut tasks = Vec::new();
        for _ in 0..self.connections {
            let client = self.connect().await?;
            for _ in 0..self.streams {
                let (load, mut client) = (self.clone(), client.clone());
                let (stop, answered, next) = (Arc::clone(stop), Arc::clone(&answered), Arc::clone(&next));
                tasks.push(tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= most {
                            break;
                        }
                        client = client.ready().await?;
                        let body = &load.bodies[number % load.bodies.len()];
                        expect(&mut client, body, load.expected).await?;
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<_, Failure>(())
                }));
            }
        }
        for task in tasks {
            task.await??;
        }
        Ok(answered.load(Ordering::Relaxed))
    }

    /// So many a second for this time, whether or not answers come: how long each took, in order of length.
    ///
    /// # Errors
    /// A connection ended, or an answer is not the expected one.
    pub async fn at_rate(&self, rate: u32, time: Duration) -> Result<Vec<Duration>, Failure> {
        self.connected().await?.at_rate(rate, 1, time).await
    }

    /// The code of the answer to this message.
    ///
    /// # Errors
    /// The connection fails, or the answer is not a `CheckResponse`.
    pub async fn code(&self, body: &Bytes) -> Result<i32, Failure> {
        let mut client = self.connect().await?.ready().await?;
        ask(&mut client, body).await
    }

    /// With its connections open.
    ///
    /// # Errors
    /// The server does not accept them.
    pub async fn connected(&self) -> Result<Connected, Failure> {
        let mut clients = Vec::new();
        for _ in 0..self.connections {
            clients.push(self.connect().await?);
        }
        Ok(Connected { load: self.clone(), clients })
    }
}

/// A load whose connections are open.
pub struct Connected {
    load: Load,
    clients: Vec<SendRequest<Bytes>>,
}

impl Connected {
    /// Another load over the same connections.
    pub fn with_load(&self, load: Load) -> Self {
        Self { load, clients: self.clients.clone() }
    }

    /// So many a second for this time, as many of them together as it says, whether or not answers come: how long each
    /// took, in order of length.
    ///
    /// # Errors
    /// A connection ended, or an answer is not the expected one.
    pub async fn at_rate(&self, rate: u32, together: u32, time: Duration) -> Result<Vec<Duration>, Failure> {
        let took = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        let start = Instant::now();
        let total = (time.as_secs_f64() * f64::from(rate)) as u32;
        for i in 0..total {
            let due = start + Duration::from_secs(1) * (i - i % together) / rate;
            // A timer of tokio is late by up to a millisecond, several times what a response takes.
            while Instant::now() < due {
                tokio::task::yield_now().await;
            }
            let mut client = self.clients[i as usize % self.clients.len()].clone().ready().await?;
            let (load, took) = (self.load.clone(), Arc::clone(&took));
            tasks.push(tokio::spawn(async move {
                let body = &load.bodies[i as usize % load.bodies.len()];
                expect(&mut client, body, load.expected).await?;
                took.lock().await.push(due.elapsed());
                Ok::<_, Failure>(())
            }));
        }
        for task in tasks {
            task.await??;
        }
        let mut took = std::mem::take(&mut *took.lock().await);
        took.sort_unstable();
        Ok(took)
    }
}

async fn expect(client: &mut SendRequest<Bytes>, body: &Bytes, expected: i32) -> Result<(), Failure> {
    let code = ask(client, body).await?;
    if code != expected {
        return Err(format!("the answer's code is {code}, not {expected}").into());
    }
    Ok(())
}

async fn ask(client: &mut SendRequest<Bytes>, body: &Bytes) -> Result<i32, Failure> {
    let request = Request::post("http://authz/envoy.service.auth.v3.Authorization/Check")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "2000m")
        .body(())?;
    let (response, mut stream) = client.send_request(request, false)?;
    stream.send_data(body.clone(), true)?;
    let mut answer = response.await?.into_body();
    let mut message = BytesMut::new();
    while let Some(data) = answer.data().await {
        let data = data?;
        answer.flow_control().release_capacity(data.len())?;
        message.extend_from_slice(&data);
    }
    let _trailers = answer.trailers().await?;
    let message = message.get(5..).ok_or("an answer without a message")?;
    Ok(CheckResponse::decode(message)?.status.map_or(-1, |status| status.code))
}
