//! Connections and requests that belong to another listener: one log line names the door, what arrived and what to change.

use std::time::Duration;

use portcullis::config::Profile;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use super::environment::{Connection, Kind, ListenerEnv, until_closed};
use super::http2::{self, DATA, END_HEADERS, END_STREAM, HEADERS, frame, header_block, preface};
use super::send;
use crate::support::log;

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The lines about the wrong listener.
fn lines() -> Vec<String> {
    log::lines("request at the wrong listener")
}

/// Sends bytes, and asserts that there is one line with these parts.
#[track_caller]
fn assert_line(what: &str, parts: &[&str]) {
    let [line] = &lines()[..] else { panic!("{what}: {:?}", lines()) };
    for part in parts.iter().chain(&["WARN", "peer=127.0.0.1", "times=1"]) {
        assert!(line.contains(part), "{what}: {part} is not in {line}");
    }
}

/// A gRPC call with this path and an empty message.
fn call(path: &str) -> Vec<u8> {
    let message = frame(DATA, END_STREAM, 1, &[0; 5]);
    [preface(&[]), frame(HEADERS, END_HEADERS, 1, &http2::call(path)), message].concat()
}

/// An HTTP/2 request with these headers.
fn get(path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let headers = [http2::get(path), header_block(headers)].concat();
    [preface(&[]), frame(HEADERS, END_HEADERS | END_STREAM, 1, &headers)].concat()
}

async fn answered(connection: &mut Connection) {
    assert!(http2::answered(connection, 1).await);
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_another_protocol_is_one_log_line_and_one_denied_request() {
    let http1 = b"GET /orders HTTP/1.1\r\nhost: localhost\r\n\r\n";
    for (kind, sent, parts) in [
        (
            Kind::Grpc,
            &http1[..],
            ["door=\"ext_authz\"", "found=\"HTTP/1.1\"", "listen.forward_auth with the proxy's profile"],
        ),
        (
            Kind::Grpc,
            b"\x16\x03\x01\x00\xc4\x01\x00\x00\xc0\x03\x03 and the rest of a handshake",
            ["door=\"ext_authz\"", "found=\"TLS\"", "set `tls` of the listener"],
        ),
        (
            Kind::Http,
            b"\x16\x03\x01\x00\xc4\x01\x00\x00\xc0\x03\x03 and the rest of a handshake",
            ["door=\"forward_auth\"", "found=\"TLS\"", "set `tls` of the listener"],
        ),
        (
            Kind::Admin,
            b"\x16\x03\x01\x00\xc4\x01\x00\x00\xc0\x03\x03 and the rest of a handshake",
            ["door=\"admin\"", "found=\"TLS\"", "set `tls` of the listener"],
        ),
        (
            Kind::Grpc,
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1024 9191\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            ["door=\"ext_authz\"", "found=\"the PROXY protocol\"", "connect without it"],
        ),
        (
            Kind::Http,
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c12345678901GET / HTTP/1.1\r\n\r\n",
            ["door=\"forward_auth\"", "found=\"the PROXY protocol\"", "connect without it"],
        ),
        (
            Kind::Grpc,
            b"{\"method\": \"GET\", \"path\": \"/\"}",
            ["door=\"ext_authz\"", "found=\"bytes that are neither", "which program connects"],
        ),
    ] {
        let env = ListenerEnv::open().await;
        log::capture();
        let mut connection = send(&env, kind, sent).await;
        until_closed(&mut connection).await;
        let what = format!("{kind:?} {}", String::from_utf8_lossy(sent));
        assert_line(&what, &parts);
        assert_eq!(log::warnings("HTTP requests rejected"), 0, "{what}");
        let labels = format!("door=\"{}\",verdict=\"deny\",reason=\"request_malformed\"", kind.door());
        let denied = env.metric("portcullis_decisions_total", &labels);
        assert_eq!(denied, if kind == Kind::Admin { 0.0 } else { 1.0 }, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_port_check_and_a_probe_are_no_log_line() {
    let env = ListenerEnv::open().await;
    log::capture();
    for kind in [Kind::Grpc, Kind::Http, Kind::Admin] {
        drop(env.connect_raw(kind).await);
        let mut connection = send(&env, kind, &[preface(&[]), kind.request(1)].concat()).await;
        answered(&mut connection).await;
    }
    sleep(Duration::from_secs(11)).await;
    assert_eq!(lines(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_client_without_tls_is_said_to_be_that() {
    let env = ListenerEnv::open().await;
    for kind in [Kind::GrpcTls, Kind::HttpTls, Kind::AdminTls] {
        log::capture();
        let mut connection = env.connect_raw(kind).await;
        connection.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("written");
        until_closed(&mut connection).await;
        let line = log::lines("TLS handshakes failed").concat();
        assert!(
            line.contains("cause=\"protocol\"") && line.contains("no TLS: have the proxy connect with TLS"),
            "{line}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_no_check_is_one_log_line_at_the_grpc_listener() {
    for (sent, parts) in [
        (
            get("/orders", &[]),
            [
                "found=\"an HTTP request that is no gRPC call\"",
                "listen.forward_auth with the proxy's profile",
            ],
        ),
        (
            call("/envoy.service.auth.v2.Authorization/Check"),
            ["found=\"a Check of version 2", "transport_api_version: V3"],
        ),
        (
            call("/orders.Orders/Get"),
            ["found=\"a gRPC call of a service that is not Envoy's", "check the cluster"],
        ),
    ] {
        let env = ListenerEnv::open().await;
        log::capture();
        let mut connection = send(&env, Kind::Grpc, &sent).await;
        answered(&mut connection).await;
        assert_line("grpc", &[&parts[..], &["door=\"ext_authz\""]].concat());
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_of_another_kind_of_proxy_is_one_log_line_at_an_http_listener() {
    let original = [("x-original-method", "GET"), ("x-original-uri", "/orders")];
    let forwarded =
        [("x-forwarded-method", "GET"), ("x-forwarded-uri", "/orders"), ("x-forwarded-host", "a.example")];
    let grpc = ["found=\"Envoy's gRPC Check\"", "have Envoy ask listen.ext_authz"];
    let is_nginx =
        ["found=\"X-Original-* headers, as NGINX sends them\"", "set `profile: nginx` or ingress-nginx"];
    let is_forwarded = ["found=\"X-Forwarded-Method or X-Forwarded-Uri", "set that of the proxy that asks"];
    for (profile, sent, expected) in [
        (Profile::Nginx, call(CHECK), Some(grpc)),
        (Profile::Envoy, call(CHECK), Some(grpc)),
        (Profile::Nginx, get("/", &forwarded), Some(is_forwarded)),
        (Profile::Envoy, get("/", &forwarded), Some(is_forwarded)),
        (Profile::Traefik, get("/", &original), Some(is_nginx)),
        (Profile::Caddy, get("/", &original), Some(is_nginx)),
        (Profile::Haproxy, get("/", &original), Some(is_nginx)),
        (Profile::Envoy, get("/", &original), Some(is_nginx)),
        (Profile::Nginx, get("/", &original), None),
        (Profile::Nginx, get("/", &[&original[..], &forwarded].concat()), None),
        (Profile::Traefik, get("/", &forwarded), None),
        (
            Profile::Envoy,
            get("/orders", &[("x-forwarded-for", "192.0.2.1"), ("x-forwarded-proto", "https")]),
            None,
        ),
    ] {
        let change = |config: &mut portcullis::config::Config| {
            config.listen.forward_auth.iter_mut().for_each(|door| door.profile = profile);
        };
        let env = ListenerEnv::open_with(change).await;
        log::capture();
        let mut connection = send(&env, Kind::Http, &sent).await;
        answered(&mut connection).await;
        match expected {
            Some(parts) => {
                assert_line(&format!("{profile:?}"), &[&parts[..], &["door=\"forward_auth\""]].concat())
            }
            None => assert_eq!(lines(), [""; 0], "{profile:?}"),
        }
    }
}

/// The status line and the body of the admin listener's answer to an HTTP/1.1 request.
async fn admin(env: &ListenerEnv, path: &str, headers: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n");
    let mut connection = send(env, Kind::Admin, request.as_bytes()).await;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.expect("text");
    answer
}

#[tokio::test(start_paused = true)]
async fn an_authorization_request_is_one_log_line_at_the_admin_listener_and_never_allowed() {
    for (path, headers, found) in [
        (
            "/livez",
            "X-Forwarded-Method: GET\r\nX-Forwarded-Uri: /orders\r\n",
            "found=\"an authorization request over HTTP\"",
        ),
        ("/metrics", "X-Original-Method: GET\r\n", "found=\"an authorization request over HTTP\""),
        ("/orders", "", "found=\"a request for a page that does not exist\""),
    ] {
        let env = ListenerEnv::open().await;
        log::capture();
        let answer = admin(&env, path, headers).await;
        let status = if headers.is_empty() { "404" } else { "421" };
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
        assert_line(path, &["door=\"admin\"", found, "have the proxy ask listen.ext_authz"]);
    }
    let env = ListenerEnv::open().await;
    log::capture();
    let mut connection = send(&env, Kind::Admin, &call(CHECK)).await;
    answered(&mut connection).await;
    assert_line("a Check", &["door=\"admin\"", "found=\"Envoy's gRPC Check\""]);
}

#[tokio::test(start_paused = true)]
async fn a_request_of_an_operator_behind_a_proxy_is_answered_and_no_log_line() {
    let env = ListenerEnv::open().await;
    log::capture();
    let forwarded =
        "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Host: localhost\r\nX-Forwarded-Proto: https\r\n";
    assert!(admin(&env, "/livez", forwarded).await.starts_with("HTTP/1.1 200 "));
    assert!(admin(&env, "/decisions/0000000000000000-1", forwarded).await.starts_with("HTTP/1.1 404 "));
    assert_eq!(lines(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn many_misdirected_requests_are_one_log_line_in_ten_seconds() {
    let env = ListenerEnv::open().await;
    log::capture();
    for _ in 0..20 {
        let mut connection = send(&env, Kind::Grpc, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        until_closed(&mut connection).await;
    }
    assert_eq!(lines().len(), 1);
    sleep(Duration::from_secs(11)).await;
    let mut connection = send(&env, Kind::Grpc, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    until_closed(&mut connection).await;
    let [_, second] = &lines()[..] else { panic!("{:?}", lines()) };
    assert!(second.contains("times=20"), "{second}");
}

#[tokio::test(start_paused = true)]
async fn a_grpc_client_that_sends_the_path_of_the_socket_file_as_authority_is_told_what_to_set() {
    let env = ListenerEnv::open().await;
    log::capture();
    for (kind, hinted) in [(Kind::GrpcFile, true), (Kind::Grpc, false)] {
        let headers = header_block(&[
            (":method", "POST"),
            (":scheme", "http"),
            (":path", CHECK),
            (":authority", "/run/portcullis/authz.sock"),
            ("content-type", "application/grpc"),
        ]);
        let sent = [preface(&[]), frame(HEADERS, END_HEADERS | END_STREAM, 1, &headers)].concat();
        let mut connection = send(&env, kind, &sent).await;
        assert!(!http2::answered(&mut connection, 1).await, "{kind:?}: the stream is reset");
        let lines = log::lines("HTTP requests rejected");
        let line = lines.last().expect("a line");
        assert_eq!(line.contains("grpc.default_authority"), hinted, "{kind:?}: {line}");
    }
}
