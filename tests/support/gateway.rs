//! Gateways that are wrong on purpose: which tokens are good they learn from a real Portcullis in this process,
//! and then they answer good ones, forged ones or both as no gateway should.
//!
//! What they send is octets, so that nothing tidies it up.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use h2::server::{Connection, SendResponse};
use http::{HeaderMap, Request, Response};
use portcullis::app::App;
use portcullis::clock::Clock;
use portcullis::config::Config;
use portcullis::ext_authz::client::CheckClient;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Longer than the truth takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway that listens until it is dropped.
pub struct Gateway {
    pub address: SocketAddr,
    serving: Vec<JoinHandle<()>>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.serving.iter().for_each(JoinHandle::abort);
    }
}

/// What is written as the answer to a token, and what becomes of the connection.
#[derive(Clone)]
pub struct Answer {
    octets: Arc<[u8]>,
    then: Then,
}

/// What a gateway does with a connection once it has written its answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The next request is answered.
    GoOn,
    /// It is closed.
    Close,
    /// It stays open until the client closes it.
    Hang,
    /// The same, and only then is the answer written.
    AnswerLate,
}

impl Answer {
    pub fn new(octets: impl Into<Vec<u8>>, then: Then) -> Self {
        Self { octets: octets.into().into(), then }
    }

    /// A whole answer with this line and this body.
    pub fn whole(status: &str, body: &[u8]) -> Self {
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
        Self::new([head.as_bytes(), body].concat(), Then::GoOn)
    }
}

/// What becomes of a forged token's stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// It is reset.
    Reset,
    /// It ends with this status of gRPC's and without an answer.
    Status(&'static str),
    /// It stays open.
    Hang,
    /// The answer allows.
    Allow,
}

impl Gateway {
    /// Takes HTTP/1.1. The n-th good token is answered by `good(n)`, each forged one by `forged`.
    pub async fn http(issuer: SocketAddr, good: fn(u64) -> Answer, forged: Answer) -> Self {
        let goods = Arc::new(AtomicU64::new(0));
        Self::start(issuer, move |stream, truth| {
            let (goods, forged) = (Arc::clone(&goods), forged.clone());
            async move {
                let mut stream = stream;
                while let Some(authorization) = authorization(&mut stream).await {
                    let answer = if is_good(&truth, &authorization).await {
                        good(goods.fetch_add(1, Ordering::SeqCst))
                    } else {
                        forged.clone()
                    };
                    if answer_with(&mut stream, &answer).await != Then::GoOn {
                        break;
                    }
                }
            }
        })
        .await
    }

    /// Speaks ext_authz and allows good tokens.
    pub async fn grpc(issuer: SocketAddr, forged: Stream) -> Self {
        Self::start(issuer, move |stream, truth| async move {
            let Ok(mut connection): Result<Connection<_, Bytes>, _> = h2::server::handshake(stream).await
            else {
                return;
            };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(check(request, respond, truth.clone(), forged));
            }
        })
        .await
    }

    async fn start<F: Future<Output = ()> + Send + 'static>(
        issuer: SocketAddr,
        serve: impl Fn(TcpStream, CheckClient) -> F + Send + 'static,
    ) -> Self {
        let (truth, judging) = truth(issuer).await;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("is bound");
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, truth.clone()));
            }
        });
        Self { address, serving: vec![judging, accepting] }
    }
}

/// A Portcullis that trusts the drill's issuer, which need not be up yet.
async fn truth(issuer: SocketAddr) -> (CheckClient, JoinHandle<()>) {
    let text = format!(
        "listen: {{ext_authz: '127.0.0.1:0', admin: '127.0.0.1:0'}}
providers:
  - name: drill
    issuer: http://{issuer}/realms/demo
    audiences: [orders-api]
    jwks_uri: http://{issuer}/realms/demo/keys
    refresh: {{min_spacing: 500ms, min_spacing_bad_signature: 500ms, timeout: 300ms}}
"
    );
    let config = Config::parse(&text, &|_| None).unwrap_or_else(|errors| panic!("{errors}"));
    let app = App::bind(config, Clock::System).await.expect("port 0 can be bound");
    let address = app.ext_authz_address().expect("the gRPC door is on TCP");
    let serving = tokio::spawn(async move {
        app.serve(std::future::pending()).await.expect("no door breaks");
    });
    (CheckClient::connect(address).await.expect("it listens"), serving)
}

async fn is_good(truth: &CheckClient, authorization: &str) -> bool {
    let answer = truth.check(&[("authorization", authorization)], PATIENCE).await;
    answer.is_ok_and(|answer| answer.allowed)
}

/// The `authorization` of the next request; none at the connection's end.
async fn authorization(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let head = String::from_utf8(head).expect("a head is text");
    let mut lines = head.lines();
    lines.find_map(|line| line.strip_prefix("authorization: ")).map(str::to_owned)
}

async fn answer_with(stream: &mut TcpStream, answer: &Answer) -> Then {
    if answer.then == Then::AnswerLate {
        until_closed(stream).await;
    }
    // Whoever has read enough, or waited long enough, may have left.
    let _written = stream.write_all(&answer.octets).await;
    if answer.then == Then::Hang {
        until_closed(stream).await;
    }
    answer.then
}

async fn until_closed(stream: &mut TcpStream) {
    while stream.read(&mut [0]).await.is_ok_and(|read| read > 0) {}
}

async fn check(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    truth: CheckClient,
    forged: Stream,
) {
    let Some(authorization) = authorization_of(request.into_body()).await else { return };
    let answer = if is_good(&truth, &authorization).await { Stream::Allow } else { forged };
    match answer {
        Stream::Reset => respond.send_reset(h2::Reason::INTERNAL_ERROR),
        Stream::Hang => std::future::pending().await,
        // What cannot be sent goes to a client that has left.
        Stream::Status(status) => drop(respond.send_response(head(Some(status)), true)),
        Stream::Allow => {
            let Ok(mut body) = respond.send_response(head(None), false) else { return };
            let message = CheckResponse::default().encode_to_vec();
            let length = u32::try_from(message.len()).expect("is small").to_be_bytes();
            let framed = [&[0][..], &length, &message].concat();
            let _sent = body.send_data(framed.into(), false);
            let trailers = HeaderMap::from_iter([(
                "grpc-status".parse().expect("a name"),
                "0".parse().expect("a value"),
            )]);
            let _sent = body.send_trailers(trailers);
        }
    }
}

fn head(status: Option<&str>) -> Response<()> {
    let mut head = Response::builder().header("content-type", "application/grpc");
    if let Some(status) = status {
        head = head.header("grpc-status", status);
    }
    head.body(()).expect("a valid head")
}

/// The `authorization` of the request that is checked.
async fn authorization_of(mut body: h2::RecvStream) -> Option<String> {
    let mut framed = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.ok()?;
        body.flow_control().release_capacity(data.len()).ok()?;
        framed.extend_from_slice(&data);
    }
    let request = CheckRequest::decode(framed.get(5..)?).expect("a request of ext_authz");
    let http = request.attributes?.request?.http?;
    http.headers.get("authorization").cloned()
}
