//! Requests that nobody can answer: too large or malformed. Each is refused before the door does anything, and counted.
//! And what of a request over HTTP/1.1 is left on its connection.

use std::time::Duration;

use portcullis::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::house::{Connection, House, Kind, until_closed};
use super::http2::{self, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, frame, greeting};
use super::sent;

/// A request whose block has a field for the table (RFC 7541 §6.2.1), and then a byte for each time that it is meant.
fn bomb(kind: Kind, stream: u32, fields: usize) -> Vec<u8> {
    let mut block = match kind.door() {
        "ext_authz" => http2::call("/grpc.health.v1.Health/Check"),
        _ => http2::get("/livez"),
    };
    block.extend([0x40, 1, b'a', 0]);
    block.extend(vec![0xbe; fields]);
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)
}

/// Decisions that nobody was asked for.
fn malformed(house: &House, kind: Kind) -> f64 {
    let labels = format!("door=\"{}\",verdict=\"deny\",reason=\"request_malformed\"", kind.door());
    house.metric("portcullis_decisions_total", &labels)
}

/// Each is counted, where the door decides.
fn counted(kind: Kind, requests: u32) -> f64 {
    if kind.door() == "admin" { 0.0 } else { f64::from(requests) }
}

#[tokio::test]
async fn requests_that_are_large_in_memory_alone_are_refused_and_too_many_end_their_connection() {
    let house = House::open().await;
    for kind in Kind::ALL {
        // What the listener refuses, and what the library does.
        for fields in [1000, 16_000] {
            let closed = format!("door=\"{}\",cause=\"flood\"", kind.door());
            let floods = || house.metric("portcullis_connections_closed_total", &closed);
            let (before, floods_before) = (malformed(&house, kind), floods());
            let mut connection = sent(&house, kind, &greeting(&[])).await;
            let requests = (1..).step_by(2);
            for stream in requests.clone().take(16) {
                connection.write_all(&bomb(kind, stream, fields)).await.expect("it is read");
                assert!(http2::answered(&mut connection, stream).await, "{kind:?}: {fields}");
            }
            assert_eq!(malformed(&house, kind) - before, counted(kind, 16), "{kind:?}: {fields}");
            connection.write_all(&kind.request(33)).await.expect("it is read");
            assert!(http2::answered(&mut connection, 33).await, "{kind:?}: a few are borne");

            let (mut told, mut streams) = (false, requests.skip(17));
            while !told {
                let stream = streams.next().filter(|stream| *stream < 50).expect("it is told to go");
                connection.write_all(&bomb(kind, stream, fields)).await.expect("it is read");
                let mut answered = false;
                while !answered {
                    let frame = http2::next(&mut connection).await.expect("it is not closed yet");
                    told |= frame.kind == GOAWAY;
                    answered = frame.kind == HEADERS && frame.stream == stream;
                }
            }
            let (mut reading, mut writing) = tokio::io::split(connection);
            let flood = tokio::spawn(async move {
                for stream in streams.take(5000) {
                    if writing.write_all(&bomb(kind, stream, fields)).await.is_err() {
                        return true;
                    }
                }
                false
            });
            until_closed(&mut reading).await;
            assert!(flood.await.expect("no panic"), "{kind:?}: {fields}: the flood was borne");
            assert_eq!(floods() - floods_before, 1.0, "{kind:?}: {fields}");
        }
        house.everybody_is_answered("a flood is over").await;
    }
}

#[tokio::test]
async fn one_of_many_clients_of_a_proxy_ends_no_connection_by_requests_that_are_refused() {
    let house = House::open().await;
    for kind in Kind::ALL {
        let mut connection = sent(&house, kind, &greeting(&[])).await;
        for round in 0..50 {
            for place in 0..9 {
                let stream = 1 + 2 * (9 * round + place);
                let bytes = if place == 0 { bomb(kind, stream, 1000) } else { kind.request(stream) };
                connection.write_all(&bytes).await.expect("it is read");
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

#[tokio::test]
async fn what_the_http_library_refuses_by_itself_is_counted_once() {
    let house = House::open().await;
    for kind in Kind::ALL {
        let before = malformed(&house, kind);
        let mut connection = sent(&house, kind, &greeting(&[])).await;
        let mut block = http2::get("/livez");
        block.extend(http2::block(&[("connection", "close")]));
        connection.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).await.expect("it is read");
        while http2::next(&mut connection).await.expect("it stays").kind != RST_STREAM {}
        // What comes after its refusal, trailers among it, is no request that is refused.
        connection.write_all(&kind.request(3)).await.expect("it is read");
        assert!(http2::answered(&mut connection, 3).await, "{kind:?}");
        connection.write_all(&frame(PING, 0, 0, &[7; 8])).await.expect("it is read");
        while http2::next(&mut connection).await.expect("it stays").kind != PING {}
        assert_eq!(malformed(&house, kind) - before, counted(kind, 1), "{kind:?}");
    }
    for kind in Kind::HTTP_1 {
        for (request, refusals) in [
            ("NONSENSE\r\n\r\n", 1),
            ("GET / HTTP/1.1\r\nx : a\r\n\r\n", 1),
            ("GET / HTTP/7.1\r\n\r\n", 1),
            ("GET / HTTP/1.1\r\nhost: a\r\n", 0),
            ("", 0),
        ] {
            let before = malformed(&house, kind);
            let mut connection = sent(&house, kind, request.as_bytes()).await;
            connection.shutdown().await.expect("open");
            until_closed(&mut connection).await;
            // Closed before it is counted, by a moment.
            let began = clock::monotonic();
            while malformed(&house, kind) - before < counted(kind, refusals)
                && began.elapsed() < Duration::from_secs(10)
            {
                tokio::task::yield_now().await;
            }
            assert_eq!(malformed(&house, kind) - before, counted(kind, refusals), "{kind:?}: {request:?}");
        }
    }
}

#[tokio::test]
async fn a_client_that_is_gone_has_refused_its_requests_itself() {
    let house = House::open().await;
    for kind in Kind::ALL {
        let before = malformed(&house, kind);
        for _ in 0..50 {
            let mut bytes = greeting(&[]);
            bytes.extend((1..20).step_by(2).flat_map(|stream| kind.request(stream)));
            // Half a message.
            bytes.extend(frame(HEADERS, END_HEADERS, 21, &http2::get("/livez")));
            bytes.extend(&frame(DATA, END_STREAM, 21, &[0; 50])[..20]);
            drop(sent(&house, kind, &bytes).await);
        }
        house.everybody_is_answered("many are gone").await;
        let refused = malformed(&house, kind) - before;
        assert!(refused < 0.5, "{kind:?}: {refused}");
    }
}

/// All answers to these bytes, until the connection is closed.
async fn answers(connection: &mut Connection, bytes: &[u8]) -> String {
    connection.write_all(bytes).await.expect("it is read");
    connection.flush().await.expect("it is sent");
    let mut answers = Vec::new();
    // An error is an end like any other.
    let _end = connection.read_to_end(&mut answers).await;
    String::from_utf8_lossy(&answers).to_lowercase()
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_a_request_over_http_1_ends_its_connection_and_the_answer_says_so() {
    const LAST: &str = "GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let house = House::open().await;
    let body = |length: usize| format!("content-length: {length}\r\n\r\n{}", "b".repeat(length));
    let chunk = "b".repeat(0x6000);
    for (what, rest, stays) in [
        ("no body", "\r\n".to_owned(), true),
        ("an empty body", body(0), true),
        ("a small body", body(60_000), true),
        ("small chunks", format!("transfer-encoding: chunked\r\n\r\n6000\r\n{chunk}\r\n0\r\n\r\n"), true),
        ("a body that does not come", "content-length: 10\r\n\r\n".to_owned(), false),
        ("a large body", "content-length: 70000\r\n\r\n".to_owned(), false),
        ("a body that is asked for", "expect: 100-continue\r\ncontent-length: 10\r\n\r\n".to_owned(), false),
        ("headers that fit", format!("x: {}\r\n\r\n", "x".repeat(16_000)), true),
        ("large headers", format!("x: {}\r\n\r\n", "x".repeat(17_000)), false),
    ] {
        for kind in Kind::HTTP_1 {
            let mut connection = house.connect(kind).await;
            let mut bytes = format!("POST /livez HTTP/1.1\r\nhost: localhost\r\n{rest}");
            if stays {
                bytes.push_str(LAST);
            }
            let answers = answers(&mut connection, bytes.as_bytes()).await;
            let times = |text: &str| answers.matches(text).count();
            let expected = if stays { (2, 1, 0) } else { (1, 1, 0) };
            let told = (times("http/1.1 "), times("connection: close"), times("100 continue"));
            assert_eq!(told, expected, "{kind:?}: {what}: {answers}");
        }
    }
}
