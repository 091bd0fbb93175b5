//! Gateways that are wrong on purpose: which tokens are good they know, and then they answer good ones, forged
//! ones or both as no gateway should.
//!
//! What they send is octets, so that nothing tidies it up.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use h2::server::{Connection, SendResponse};
use http::{HeaderMap, Request, Response};
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{DecodingKey, Validation, decode, decode_header};
use prost::Message;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A gateway that listens until it is dropped.
pub struct Gateway {
    pub address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.serving.abort();
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
        Self::start(move |stream| {
            let (goods, forged) = (Arc::clone(&goods), forged.clone());
            async move {
                let mut stream = stream;
                while let Some(authorization) = authorization(&mut stream).await {
                    let answer = if is_good(issuer, &authorization).await {
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
        Self::start(move |stream| async move {
            let Ok(mut connection): Result<Connection<_, Bytes>, _> = h2::server::handshake(stream).await
            else {
                return;
            };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(check(request, respond, issuer, forged));
            }
        })
        .await
    }

    async fn start<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("is bound");
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
        Self { address, serving }
    }
}

/// Whether a token is good by the keys that the issuer publishes at this very moment: whoever asks for them each
/// time needs no luck with a rotation.
async fn is_good(issuer: SocketAddr, authorization: &str) -> bool {
    let Some(token) = authorization.strip_prefix("Bearer ") else { return false };
    let Ok(header) = decode_header(token) else { return false };
    let Some(published) = key_set(issuer).await else { return false };
    let Some(key) = header.kid.and_then(|kid| published.find(&kid).cloned()) else { return false };
    let mut rules = Validation::new(header.alg);
    rules.set_audience(&["orders-api"]);
    rules.set_issuer(&[format!("http://{issuer}/realms/demo")]);
    let key = DecodingKey::from_jwk(&key).expect("a key that can be used");
    decode::<Value>(token, &key, &rules).is_ok()
}

async fn key_set(issuer: SocketAddr) -> Option<JwkSet> {
    let mut stream = TcpStream::connect(issuer).await.ok()?;
    let request = format!("GET /realms/demo/keys HTTP/1.1\r\nhost: {issuer}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    serde_json::from_str(body).ok()
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
    issuer: SocketAddr,
    forged: Stream,
) {
    let Some(authorization) = authorization_of(request.into_body()).await else { return };
    let answer = if is_good(issuer, &authorization).await { Stream::Allow } else { forged };
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
