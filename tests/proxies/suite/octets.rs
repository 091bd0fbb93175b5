//! Tests with raw requests that no client library sends: upgrades, headers that `Connection` nominates, trailers,
//! override headers. The client writes raw bytes, and the upstream records the bytes that it receives.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Proxy, SERIAL, TestEnv};
use crate::support::real::TIMEOUT;

/// The example of RFC 6455 §1.3.
const WEBSOCKET_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const WEBSOCKET_ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// `Hello` in a text frame of a client and of a server (RFC 6455 §5.7).
const MASKED: [u8; 11] = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
const UNMASKED: [u8; 7] = [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f];

/// Answers the request of each connection with 200, or any upgrade with 101 and then echoes one WebSocket frame.
struct RawUpstream {
    address: SocketAddr,
    received: Arc<Mutex<Vec<String>>>,
    server: JoinHandle<()>,
}

impl RawUpstream {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("is bound");
        let received = Arc::new(Mutex::new(Vec::new()));
        let requests = Arc::clone(&received);
        let server = tokio::spawn(async move {
            loop {
                let (stream, _peer) = listener.accept().await.expect("accepts until it is aborted");
                tokio::spawn(answer(stream, Arc::clone(&requests)));
            }
        });
        Self { address, received, server }
    }

    /// The requests received since the last call, each with head and body.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.received.lock().expect("not poisoned"))
    }
}

impl Drop for RawUpstream {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Ignores a request that the proxy aborts.
async fn answer(mut stream: TcpStream, requests: Arc<Mutex<Vec<String>>>) {
    let Some(request) = read_request(&mut stream).await else { return };
    requests.lock().expect("not poisoned").push(request.clone());
    let Some(protocol) = header(&request, "upgrade") else {
        let _sent =
            stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await;
        return;
    };
    let key = header(&request, "sec-websocket-key").unwrap_or_default();
    let hash =
        digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes());
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: {protocol}\r\nsec-websocket-accept: {}\r\n\r\n",
        STANDARD.encode(hash)
    );
    let mut frame = [0; MASKED.len()];
    if stream.write_all(head.as_bytes()).await.is_ok() && stream.read_exact(&mut frame).await.is_ok() {
        let [kind, length, a, b, c, d, payload @ ..] = frame;
        let mask = [a, b, c, d];
        let unmasked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
        let answer: Vec<u8> = [kind, length & 0x7f].into_iter().chain(unmasked).collect();
        let _sent = stream.write_all(&answer).await;
    }
}

/// Head and body, with trailers.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut octets = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&octets).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = header(head, "content-length").map_or(0, |length| length.parse().expect("a number"));
            let complete = match header(head, "transfer-encoding") {
                Some(_chunked) => body.ends_with("\r\n\r\n"),
                None => body.len() >= length,
            };
            if complete {
                return Some(text);
            }
        }
        if stream.read_buf(&mut octets).await.ok()? == 0 {
            return None;
        }
    }
}

/// The first value of this header.
fn header<'a>(head: &'a str, wanted: &str) -> Option<&'a str> {
    let lines = head.split("\r\n\r\n").next().unwrap_or_default().lines().skip(1);
    let headers = lines.filter_map(|line| line.split_once(':'));
    headers.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
}

/// Sends raw bytes and returns the head of the response.
async fn send(address: SocketAddr, request: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).await.expect("the proxy listens");
    stream.write_all(request.as_bytes()).await.expect("the proxy reads");
    let mut answer = Vec::new();
    let read_head = async {
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.expect("the proxy answers"));
        }
    };
    timeout(TIMEOUT, read_head).await.expect("the proxy answers in time");
    (stream, String::from_utf8_lossy(&answer).into_owned())
}

/// The status in the head of a response.
fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("an HTTP response")
}

/// A GET request with these header lines.
fn get(path: &str, token: Option<&str>, lines: &str) -> String {
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    format!("GET {path} HTTP/1.1\r\nHost: api.example.com\r\n{token}{lines}\r\n")
}

pub async fn a_websocket_passes_with_a_token_and_not_without(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let upstream = RawUpstream::start().await;
    let env = TestEnv::start_with_upstream(proxy, upstream.address, "").await;
    let token = env.token();
    upstream.take();
    let handshake = format!(
        "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {WEBSOCKET_KEY}\r\n"
    );
    let (mut stream, head) = send(env.address(), &get("/orders", Some(&token), &handshake)).await;
    assert_eq!(status(&head), 101, "{head}");
    assert_eq!(header(&head, "sec-websocket-accept"), Some(WEBSOCKET_ACCEPT));
    stream.write_all(&MASKED).await.expect("the proxy reads");
    let mut frame = [0; UNMASKED.len()];
    timeout(TIMEOUT, stream.read_exact(&mut frame)).await.expect("in time").expect("a complete frame");
    assert_eq!(frame, UNMASKED);
    let requests = upstream.take();
    assert_eq!(requests.len(), 1);
    assert_eq!(header(&requests[0], "x-auth-subject"), Some("alice"));
    let (_stream, head) = send(env.address(), &get("/orders", None, &handshake)).await;
    assert_eq!(status(&head), 401, "{head}");
    assert_eq!(upstream.take().len(), 0);
}

pub async fn no_upgrade_but_a_websocket_passes(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let upstream = RawUpstream::start().await;
    let rules = "rules: [{name: open, match: {path_prefix: /open}, allow: anonymous}]\n";
    let env = TestEnv::start_with_upstream(proxy, upstream.address, rules).await;
    upstream.take();
    for lines in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: Upgrade\r\nUpgrade: H2C\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket/13\r\n",
        "Connection: xUpgrade\r\nUpgrade: websocket\r\n",
        "Upgrade: h2c\r\n",
        "Proxy-Connection: Upgrade\r\nUpgrade: h2c\r\n",
    ] {
        let (_stream, head) = send(env.address(), &get("/open", None, lines)).await;
        let requests = upstream.take();
        for request in &requests {
            assert!(matches!(header(request, "upgrade"), None | Some("websocket")), "{lines}: {request}");
            assert!(!request.to_ascii_lowercase().contains("h2c"), "{lines}: {request}");
            assert!(!request.to_ascii_lowercase().contains("http2-settings"), "{lines}: {request}");
        }
        match requests.len() {
            0 => assert!((400..500).contains(&status(&head)), "{lines}: {head}"),
            _ => assert!(matches!(status(&head), 101 | 200), "{lines}: {head}"),
        }
    }
}

pub async fn a_client_cannot_nominate_identity_headers_for_removal(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let upstream = RawUpstream::start().await;
    let env = TestEnv::start_with_upstream(proxy, upstream.address, "").await;
    let token = env.token();
    let upgrade =
        format!("Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {WEBSOCKET_KEY}\r\n");
    for lines in [
        "Connection: close, X-Auth-Subject, X-Auth-Tenant\r\n",
        "Connection: x-auth-subject\r\nConnection: close, x-auth-tenant\r\n",
        "Connection: close\r\nKeep-Alive: X-Auth-Subject\r\nProxy-Connection: X-Auth-Subject, X-Auth-Tenant\r\n",
        &format!("Connection: Upgrade, X-Auth-Subject, X-Auth-Tenant\r\n{upgrade}"),
    ] {
        upstream.take();
        let (_stream, head) = send(env.address(), &get("/orders", Some(&token), lines)).await;
        for request in upstream.take() {
            assert_eq!(header(&request, "x-auth-subject"), Some("alice"), "{lines}: {request}");
            assert_eq!(header(&request, "x-auth-tenant"), Some("acme"), "{lines}: {request}");
            let nominated = header(&request, "connection").unwrap_or_default().to_ascii_lowercase();
            assert!(!nominated.contains("x-auth"), "{lines}: {request}");
        }
        assert!(matches!(status(&head), 101 | 200 | 400), "{lines}: {head}");
    }
}

pub async fn a_trailer_never_reaches_the_upstream(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let upstream = RawUpstream::start().await;
    let env = TestEnv::start_with_upstream(proxy, upstream.address, "").await;
    let head = format!(
        "POST /orders HTTP/1.1\r\nHost: api.example.com\r\nAuthorization: Bearer {}\r\nTransfer-Encoding: chunked\r\n",
        env.token()
    );
    upstream.take();
    let plain = format!("{head}\r\n5\r\nhello\r\n0\r\n\r\n");
    let (_stream, answer) = send(env.address(), &plain).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert_eq!(upstream.take().len(), 1, "a body in chunks passes");
    let large = format!("186a0\r\n{}\r\n", "x".repeat(100_000));
    for body in ["5\r\nhello\r\n", "", &large] {
        for declared in ["Trailer: X-Auth-Roles\r\n", ""] {
            let request = format!("{head}{declared}\r\n{body}0\r\nX-Auth-Roles: mallory\r\n\r\n");
            let (_stream, answer) = send(env.address(), &request).await;
            for request in upstream.take() {
                assert!(!request.contains("mallory"), "{declared}{request}");
            }
            assert!(matches!(status(&answer), 200 | 400), "{declared}{answer}");
        }
    }
}

pub async fn override_headers_are_correct_or_absent(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let upstream = RawUpstream::start().await;
    let env = TestEnv::start_with_upstream(proxy, upstream.address, "").await;
    let names = [
        "X-Original-URL",
        "X-Original-URI",
        "X-Original-Host",
        "X-Original-Method",
        "X-Rewrite-URL",
        "X-Forwarded-Uri",
        "X-Forwarded-Path",
        "X-Forwarded-Prefix",
        "X-Forwarded-Method",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded-Port",
        "X-Forwarded-Scheme",
        "X-Forwarded-Server",
        "X-Forwarded-Ssl",
        "X-Host",
        "X-Real-IP",
        "Forwarded",
        "X-HTTP-Method-Override",
        "X-HTTP-Method",
        "X-Method-Override",
    ];
    for name in names {
        upstream.take();
        let lines = format!("Connection: close\r\n{name}: mallory\r\n{name}: mallory\r\n");
        let (_stream, head) = send(env.address(), &get("/orders", Some(&env.token()), &lines)).await;
        let requests = upstream.take();
        assert_eq!((status(&head), requests.len()), (200, 1), "{name}: {head}");
        assert!(!requests[0].contains("mallory"), "{name}: {}", requests[0]);
        assert_eq!(header(&requests[0], "x-forwarded-host"), Some("api.example.com"), "{name}");
    }
}

pub async fn several_hosts_do_not_select_the_last(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let upstream = RawUpstream::start().await;
    let rules = "rules: [{name: public, match: {hosts: [public.example.com]}, allow: anonymous}]\n";
    let env = TestEnv::start_with_upstream(proxy, upstream.address, rules).await;
    upstream.take();
    for hosts in [
        "Host: admin.example.com,public.example.com\r\n",
        "Host: public.example.com,admin.example.com\r\n",
        "Host: admin.example.com\r\nHost: public.example.com\r\n",
        "Host: public.example.com\r\nHost: admin.example.com\r\n",
    ] {
        let request = format!("GET /orders HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
        let (_stream, head) = send(env.address(), &request).await;
        assert!(matches!(status(&head), 400 | 401), "{hosts}: {head}");
        assert_eq!(upstream.take().len(), 0, "{hosts}");
    }
}

/// Some applications parse the path of an absolute URI differently from the proxy.
pub async fn the_upstream_gets_the_path_that_is_checked_and_no_absolute_uri(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let upstream = RawUpstream::start().await;
    let rules = "rules: [{name: open, match: {path_prefix: /open}, allow: anonymous}]\n";
    let env = TestEnv::start_with_upstream(proxy, upstream.address, rules).await;
    upstream.take();
    for (target, host) in [
        ("http://api.example.com/open/x", "Host: api.example.com\r\n"),
        ("http://api.example.com?x=/open/x", "Host: api.example.com?x=\r\n"),
        ("http://api.example.com?x=/open/x", "Host: api.example.com\r\n"),
        ("http://api.example.com?x=/open/x", ""),
        ("http://a\\orders?/open/x", "Host: a\\orders?\r\n"),
        ("http://a\\orders?/open/x", ""),
        ("/open/x", "Host: api.example.com/orders?\r\n"),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\n{host}Connection: close\r\n\r\n");
        let (_stream, head) = send(env.address(), &request).await;
        for request in upstream.take() {
            let (line, lines) = request.split_once("\r\n").expect("a request line");
            assert_eq!(line, "GET /open/x HTTP/1.1", "{target} {host}");
            assert!(!lines.contains("/orders") && !lines.contains("?"), "{target} {host}: {lines}");
        }
        assert!(matches!(status(&head), 200 | 400 | 401 | 404), "{target} {host}: {head}");
    }
}

pub async fn a_query_of_any_octets_passes(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let upstream = RawUpstream::start().await;
    let env = TestEnv::start_with_upstream(proxy, upstream.address, "").await;
    for query in [r#"a="b""#, "a=<b>", "a={b}|c^d`e", "a[]=1&a[]=2", "a=%ff", "?", "a=/../b", r"a=\"] {
        upstream.take();
        let request = get(&format!("/orders?{query}"), Some(&env.token()), "Connection: close\r\n");
        let (_stream, head) = send(env.address(), &request).await;
        let requests = upstream.take();
        assert_eq!((status(&head), requests.len()), (200, 1), "{query}: {head}");
        assert!(requests[0].starts_with(&format!("GET /orders?{query} ")), "{}", requests[0]);
    }
}
