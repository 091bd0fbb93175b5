//! Requests that are rejected before the listener handles them, because they are too large or malformed: each is counted. Also:
//! unread parts of HTTP/1.1 requests.

use std::time::Duration;

use portcullis::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use super::environment::{Connection, Kind, ListenerEnv, until_closed};
use super::http2::{self, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, frame, preface};
use super::{seconds, send};

/// A request whose header block adds a field to the dynamic table (RFC 7541 §6.2.1), and then has one byte for each reference
/// to it.
fn bomb(kind: Kind, stream: u32, fields: usize) -> Vec<u8> {
    let mut block = match kind.door() {
        "ext_authz" => http2::call("/grpc.health.v1.Health/Check"),
        _ => http2::get("/livez"),
    };
    block.extend([0x40, 1, b'a', 0]);
    block.extend(vec![0xbe; fields]);
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)
}

/// The number of decisions for requests that could not be parsed.
fn malformed(env: &ListenerEnv, kind: Kind) -> f64 {
    let labels = format!("door=\"{}\",verdict=\"deny\",reason=\"request_malformed\"", kind.door());
    env.metric("portcullis_decisions_total", &labels)
}

/// The expected count: every request, if the listener decides.
fn expected_count(kind: Kind, requests: u32) -> f64 {
    if kind.door() == "admin" { 0.0 } else { f64::from(requests) }
}

#[tokio::test]
async fn requests_that_are_large_only_when_decoded_are_rejected_and_too_many_close_their_connection() {
    let env = ListenerEnv::open().await;
    for kind in Kind::ALL {
        // Rejected by the listener, and by the library.
        for fields in [1000, 16_000] {
            let closed = format!("door=\"{}\",cause=\"flood\"", kind.door());
            let floods = || env.metric("portcullis_connections_closed_total", &closed);
            let (before, floods_before) = (malformed(&env, kind), floods());
            let mut connection = send(&env, kind, &preface(&[])).await;
            let requests = (1..).step_by(2);
            for stream in requests.clone().take(16) {
                connection.write_all(&bomb(kind, stream, fields)).await.expect("written");
                assert!(http2::answered(&mut connection, stream).await, "{kind:?}: {fields}");
            }
            assert_eq!(malformed(&env, kind) - before, expected_count(kind, 16), "{kind:?}: {fields}");
            connection.write_all(&kind.request(33)).await.expect("written");
            assert!(http2::answered(&mut connection, 33).await, "{kind:?}: a few are accepted");

            let (mut has_goaway, mut streams) = (false, requests.skip(17));
            while !has_goaway {
                let stream = streams.next().filter(|stream| *stream < 50).expect("GOAWAY");
                connection.write_all(&bomb(kind, stream, fields)).await.expect("written");
                let mut answered = false;
                while !answered {
                    let frame = http2::next(&mut connection).await.expect("it is not closed yet");
                    has_goaway |= frame.kind == GOAWAY;
                    answered = frame.kind == HEADERS && frame.stream == stream;
                }
            }
            let (mut reading, mut writing) = tokio::io::split(connection);
            let flood = tokio::spawn(async move {
                // More than can be sent in the time that the client has to see GOAWAY.
                for stream in streams.take(1_000_000) {
                    if writing.write_all(&bomb(kind, stream, fields)).await.is_err() {
                        return true;
                    }
                }
                false
            });
            until_closed(&mut reading).await;
            assert!(flood.await.expect("no panic"), "{kind:?}: {fields}: the flood was accepted");
            assert_eq!(floods() - floods_before, 1.0, "{kind:?}: {fields}");
        }
        env.assert_all_respond("a flood is over").await;
    }
}

#[tokio::test]
async fn rejected_requests_of_one_client_do_not_close_a_proxys_connection() {
    let env = ListenerEnv::open().await;
    for kind in Kind::ALL {
        let mut connection = send(&env, kind, &preface(&[])).await;
        for round in 0..50 {
            for place in 0..9 {
                let stream = 1 + 2 * (9 * round + place);
                let bytes = if place == 0 { bomb(kind, stream, 1000) } else { kind.request(stream) };
                connection.write_all(&bytes).await.expect("written");
                let mut answered = false;
                while !answered {
                    let frame = http2::next(&mut connection).await.expect("it is not closed");
                    assert_ne!(frame.kind, GOAWAY, "{kind:?}: {stream}");
                    answered = frame.kind == HEADERS && frame.stream == stream;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rejected_requests_do_not_extend_the_timeout_of_a_client_that_does_not_read() {
    let env = ListenerEnv::open().await;
    for kind in Kind::GRPC {
        // A flow-control window of 0: no response can be sent.
        let (mut reader, mut writer) = tokio::io::split(send(&env, kind, &preface(&[(4, 0)])).await);
        let requests = tokio::spawn(async move {
            for first in (1..).step_by(20) {
                let mut bytes = bomb(kind, first, 1000);
                bytes.extend((1..10).flat_map(|place| kind.request(first + 2 * place)));
                if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
                    return;
                }
                sleep(Duration::from_secs(3)).await;
            }
        });
        let elapsed = until_closed(&mut reader).await;
        requests.abort();
        assert!(seconds(30..=60).contains(&elapsed), "{kind:?}: {elapsed:?}");
    }
}

#[tokio::test]
async fn requests_that_the_http_library_rejects_are_counted_once() {
    let env = ListenerEnv::open().await;
    for kind in Kind::ALL {
        let before = malformed(&env, kind);
        let mut connection = send(&env, kind, &preface(&[])).await;
        let mut block = http2::get("/livez");
        block.extend(http2::header_block(&[("connection", "close")]));
        connection.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).await.expect("written");
        while http2::next(&mut connection).await.expect("it stays").kind != RST_STREAM {}
        // Frames after the rejection, such as trailers, are not another rejected request.
        connection.write_all(&kind.request(3)).await.expect("written");
        assert!(http2::answered(&mut connection, 3).await, "{kind:?}");
        connection.write_all(&frame(PING, 0, 0, &[7; 8])).await.expect("written");
        while http2::next(&mut connection).await.expect("it stays").kind != PING {}
        assert_eq!(malformed(&env, kind) - before, expected_count(kind, 1), "{kind:?}");
    }
    for kind in Kind::HTTP_1 {
        for (request, refusals) in [
            ("NONSENSE\r\n\r\n", 1),
            ("GET / HTTP/1.1\r\nx : a\r\n\r\n", 1),
            ("GET / HTTP/7.1\r\n\r\n", 1),
            ("GET / HTTP/1.1\r\nhost: a\r\n", 0),
            ("", 0),
        ] {
            let before = malformed(&env, kind);
            let mut connection = send(&env, kind, request.as_bytes()).await;
            connection.shutdown().await.expect("open");
            until_closed(&mut connection).await;
            // It may be closed a moment before it is counted.
            let started_at = clock::monotonic();
            while malformed(&env, kind) - before < expected_count(kind, refusals)
                && started_at.elapsed() < Duration::from_secs(10)
            {
                tokio::task::yield_now().await;
            }
            assert_eq!(
                malformed(&env, kind) - before,
                expected_count(kind, refusals),
                "{kind:?}: {request:?}"
            );
        }
    }
}

#[tokio::test]
async fn requests_of_a_disconnected_client_are_not_counted_as_rejected() {
    let env = ListenerEnv::open().await;
    for kind in Kind::ALL {
        let before = malformed(&env, kind);
        for _ in 0..50 {
            let mut bytes = preface(&[]);
            bytes.extend((1..20).step_by(2).flat_map(|stream| kind.request(stream)));
            // A partial message.
            bytes.extend(frame(HEADERS, END_HEADERS, 21, &http2::get("/livez")));
            bytes.extend(&frame(DATA, END_STREAM, 21, &[0; 50])[..20]);
            drop(send(&env, kind, &bytes).await);
        }
        env.assert_all_respond("many are gone").await;
        let refused = malformed(&env, kind) - before;
        assert!(refused < 0.5, "{kind:?}: {refused}");
    }
}

/// All responses to these bytes, until the connection is closed.
async fn answers(connection: &mut Connection, bytes: &[u8]) -> String {
    connection.write_all(bytes).await.expect("written");
    connection.flush().await.expect("it is sent");
    let mut answers = Vec::new();
    // An error ends the connection too.
    let _end = connection.read_to_end(&mut answers).await;
    String::from_utf8_lossy(&answers).to_lowercase()
}

#[tokio::test(start_paused = true)]
async fn an_unread_http_1_body_closes_its_connection_and_the_response_says_so() {
    const LAST: &str = "GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let env = ListenerEnv::open().await;
    let body = |length: usize| format!("content-length: {length}\r\n\r\n{}", "b".repeat(length));
    let chunk = "b".repeat(0x6000);
    for (what, rest, stays) in [
        ("no body", "\r\n".to_owned(), true),
        ("an empty body", body(0), true),
        ("a small body", body(60_000), true),
        ("small chunks", format!("transfer-encoding: chunked\r\n\r\n6000\r\n{chunk}\r\n0\r\n\r\n"), true),
        ("a body that is never sent", "content-length: 10\r\n\r\n".to_owned(), false),
        ("a large body", "content-length: 70000\r\n\r\n".to_owned(), false),
        ("a body that is asked for", "expect: 100-continue\r\ncontent-length: 10\r\n\r\n".to_owned(), false),
        ("headers that fit", format!("x: {}\r\n\r\n", "x".repeat(16_000)), true),
        ("large headers", format!("x: {}\r\n\r\n", "x".repeat(17_000)), false),
    ] {
        for kind in Kind::HTTP_1 {
            let mut connection = env.connect(kind).await;
            let mut bytes = format!("POST /livez HTTP/1.1\r\nhost: localhost\r\n{rest}");
            if stays {
                bytes.push_str(LAST);
            }
            let answers = answers(&mut connection, bytes.as_bytes()).await;
            let times = |text: &str| answers.matches(text).count();
            let expected = if stays { (2, 1, 0) } else { (1, 1, 0) };
            let counts = (times("http/1.1 "), times("connection: close"), times("100 continue"));
            assert_eq!(counts, expected, "{kind:?}: {what}: {answers}");
        }
    }
}
