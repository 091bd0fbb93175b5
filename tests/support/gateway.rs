//! Faulty gateways for the drill: they know which tokens are valid, and answer valid tokens, forged tokens or both
//! wrongly.
//!
//! They write raw bytes, so that no HTTP library corrects the response.

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
    server: JoinHandle<()>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The bytes of a response, and what happens to the connection afterwards.
#[derive(Clone)]
pub struct Answer {
    bytes: Arc<[u8]>,
    after: AfterAnswer,
}

/// What a gateway does with a connection after it has written its response.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum AfterAnswer {
    /// Answers the next request.
    KeepAlive,
    /// Closes the connection.
    Close,
    /// Keeps the connection open until the client closes it.
    Hang,
    /// Waits until the client closes the connection, and writes the response only then.
    AnswerAfterClose,
}

impl Answer {
    pub fn new(bytes: impl Into<Vec<u8>>, after: AfterAnswer) -> Self {
        Self { bytes: bytes.into().into(), after }
    }

    /// A complete response with this status line and this body.
    pub fn complete(status: &str, body: &[u8]) -> Self {
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
        Self::new([head.as_bytes(), body].concat(), AfterAnswer::KeepAlive)
    }
}

/// How a gRPC gateway answers a forged token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Resets the stream.
    Reset,
    /// Ends the stream with this `grpc-status` and no message.
    Status(&'static str),
    /// Keeps the stream open.
    Hang,
    /// Allows the request.
    Allow,
}

impl Gateway {
    /// Serves HTTP/1.1. Answers the n-th valid token with `good(n)` and each forged one with `forged`.
    pub async fn http(issuer: SocketAddr, good: fn(u64) -> Answer, forged: Answer) -> Self {
        let count = Arc::new(AtomicU64::new(0));
        Self::start(move |stream| {
            let (count, forged) = (Arc::clone(&count), forged.clone());
            async move {
                let mut stream = stream;
                while let Some(authorization) = authorization(&mut stream).await {
                    let answer = if is_good(issuer, &authorization).await {
                        good(count.fetch_add(1, Ordering::SeqCst))
                    } else {
                        forged.clone()
                    };
                    if write_answer(&mut stream, &answer).await != AfterAnswer::KeepAlive {
                        break;
                    }
                }
            }
        })
        .await
    }

    /// Serves ext_authz over gRPC and allows valid tokens.
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
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
        Self { address, server }
    }
}

/// Whether a token is valid under the keys that the issuer publishes now. Fetches them each time, so that no
/// rotation is missed.
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

/// The `authorization` header of the next request, `None` at the end of the connection.
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

async fn write_answer(stream: &mut TcpStream, answer: &Answer) -> AfterAnswer {
    if answer.after == AfterAnswer::AnswerAfterClose {
        wait_until_closed(stream).await;
    }
    // The client may have closed the connection.
    let _written = stream.write_all(&answer.bytes).await;
    if answer.after == AfterAnswer::Hang {
        wait_until_closed(stream).await;
    }
    answer.after
}

async fn wait_until_closed(stream: &mut TcpStream) {
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
        // Sending fails if the client has closed the connection.
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

/// The `authorization` header of the request in a CheckRequest.
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
