//! What holds for every listener: connections that sent nothing, never finish, never read or never end are closed in time, and
//! other clients are served meanwhile.
//! Time is tokio's and paused: it advances when all tasks are idle.

mod admin;
mod environment;
pub mod http2;
mod misdirected;
mod refusals;
mod socket_files;
mod streams;
mod tls;
mod waiting;

use std::ops::RangeInclusive;
use std::time::Duration;

use portcullis::clock;
use tokio::io::AsyncWriteExt;
use tokio::time::sleep;

use environment::{Connection, Kind, ListenerEnv, until_closed};
use http2::{DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, frame, preface};

/// The interval between checks of a connection, in seconds.
const CHECK_INTERVAL: u64 = 5;

fn seconds(range: RangeInclusive<u64>) -> RangeInclusive<Duration> {
    Duration::from_secs(*range.start())
        ..=Duration::from_secs(*range.end() + CHECK_INTERVAL) + Duration::from_millis(1600)
}

/// Sends these bytes on a new connection.
async fn send(env: &ListenerEnv, kind: Kind, bytes: &[u8]) -> Connection {
    let mut connection = env.connect(kind).await;
    connection.write_all(bytes).await.expect("written");
    connection.flush().await.expect("sent");
    connection
}

/// Asserts that a connection with these bytes is closed after so many seconds, while other clients are served.
async fn assert_closed(kinds: &[Kind], what: &str, bytes: &[u8], after: RangeInclusive<u64>) {
    let env = ListenerEnv::open().await;
    for kind in kinds {
        let mut connection = send(&env, *kind, bytes).await;
        let started_at = clock::monotonic();
        env.assert_all_respond(what).await;
        until_closed(&mut connection).await;
        let elapsed = started_at.elapsed();
        assert!(seconds(after.clone()).contains(&elapsed), "{kind:?}: {what}: closed after {elapsed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_closed() {
    assert_closed(&Kind::ALL, "a silent connection", b"", 75..=75).await;
}

#[tokio::test(start_paused = true)]
async fn a_partial_preface_times_out() {
    assert_closed(&Kind::ALL, "a partial preface", &http2::PREFACE[..10], 10..=10).await;
    assert_closed(&Kind::ALL, "a preface without SETTINGS", http2::PREFACE, 10..=10).await;
}

#[tokio::test(start_paused = true)]
async fn a_partial_header_block_times_out() {
    let mut half_a_frame = preface(&[]);
    half_a_frame.extend(&frame(HEADERS, END_HEADERS, 1, &http2::get("/"))[..15]);
    assert_closed(&Kind::ALL, "a partial frame", &half_a_frame, 10..=10).await;
    let mut no_continuation = preface(&[]);
    no_continuation.extend(frame(HEADERS, END_STREAM, 1, &http2::get("/")));
    assert_closed(&Kind::ALL, "a partial header block", &no_continuation, 10..=10).await;
    let half = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx-hal";
    assert_closed(&Kind::HTTP_1, "a partial HTTP/1.1 header block", half, 10..=10).await;
}

#[tokio::test(start_paused = true)]
async fn a_byte_per_second_does_not_extend_the_timeout() {
    let mut frame_of_headers = preface(&[]);
    frame_of_headers.extend(&frame(HEADERS, END_HEADERS, 1, &[0; 4000])[..15]);
    let prefixes: [(&[Kind], &[u8]); 3] = [
        (&Kind::ALL, b"PRI * HTTP"),
        (&Kind::ALL, &frame_of_headers),
        (&Kind::HTTP_1, b"GET /livez HTTP/1.1\r\nx: "),
    ];
    let env = ListenerEnv::open().await;
    for (kinds, prefix) in prefixes {
        for kind in kinds {
            let (mut reader, mut writer) = tokio::io::split(send(&env, *kind, prefix).await);
            let rest = &http2::PREFACE[prefix.len().min(http2::PREFACE.len())..];
            let next = rest.first().copied().unwrap_or(b'x');
            let drip_task = tokio::spawn(async move {
                let mut byte = next;
                while writer.write_all(&[byte]).await.is_ok() && writer.flush().await.is_ok() {
                    // The second byte makes a preface invalid; HTTP/1.1 continues.
                    byte = b'x';
                    sleep(Duration::from_secs(1)).await;
                }
            });
            let elapsed = until_closed(&mut reader).await;
            drip_task.abort();
            // A paused clock runs ahead of the sockets on a busy machine; a timeout that is extended never ends.
            assert!(elapsed <= Duration::from_secs(60), "{kind:?}: {elapsed:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_partial_handshake_times_out() {
    let env = ListenerEnv::open().await;
    for kind in Kind::ALL.into_iter().filter(|kind| kind.is_tls()) {
        for bytes in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
            let mut connection = env.connect_raw(kind).await;
            connection.write_all(bytes).await.expect("sent");
            let elapsed = until_closed(&mut connection).await;
            assert!(seconds(10..=10).contains(&elapsed), "{kind:?}: {elapsed:?}");
            let timeouts = env.metric("portcullis_tls_handshakes_refused_total", "cause=\"timeout\"");
            assert!(timeouts > 0.0, "{kind:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_http_1_connection_is_closed_after_the_longest_proxy_timeout() {
    let env = ListenerEnv::open().await;
    for kind in Kind::HTTP_1 {
        let mut connection = send(&env, kind, b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        let elapsed = until_closed(&mut connection).await;
        // The longest idle timeout of a proxy is Envoy's: an hour.
        assert!(seconds(3900..=3900).contains(&elapsed), "{kind:?}: {elapsed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_http_2_connection_stays_open_only_while_it_answers_pings() {
    let env = ListenerEnv::open().await;
    for kind in Kind::ALL {
        let mut bytes = preface(&[]);
        bytes.extend(kind.request(1));
        let mut connection = send(&env, kind, &bytes).await;
        let (started_at, mut pongs) = (clock::monotonic(), 0);
        while let Some(frame) = http2::next(&mut connection).await {
            if frame.kind == PING && frame.flags & http2::ACK == 0 && pongs < 5 {
                pongs += 1;
                let pong = http2::frame(PING, http2::ACK, 0, &frame.payload);
                connection.write_all(&pong).await.expect("written");
            }
        }
        let elapsed = started_at.elapsed();
        assert!(seconds(6 * 60 + 20..=6 * 60 + 20).contains(&elapsed), "{kind:?}: {elapsed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_client_does_not_read_is_closed() {
    let env = ListenerEnv::open().await;
    // A flow-control window of 0 (RFC 9113 §6.9.2): the response body can never be sent.
    for kind in Kind::ALL {
        let (path, body) = match kind {
            Kind::Admin | Kind::AdminTls => (http2::get("/metrics"), None),
            Kind::Http | Kind::HttpTls => (http2::get("/x"), None),
            _ => (http2::call("/envoy.service.auth.v3.Authorization/Check"), Some([0; 5])),
        };
        let mut bytes = preface(&[(4, 0)]);
        let end = if body.is_none() { END_STREAM } else { 0 };
        bytes.extend(frame(HEADERS, END_HEADERS | end, 1, &path));
        bytes.extend(body.iter().flat_map(|body| frame(DATA, END_STREAM, 1, body)));
        let mut connection = send(&env, kind, &bytes).await;
        let started_at = clock::monotonic();
        env.assert_all_respond("a client that does not read").await;
        while let Some(frame) = http2::next(&mut connection).await {
            if frame.kind == PING && frame.flags & http2::ACK == 0 {
                // An error means that it was closed; the next read ends the loop.
                let _closed = connection.write_all(&http2::frame(PING, http2::ACK, 0, &frame.payload)).await;
            }
        }
        let elapsed = started_at.elapsed();
        assert!(seconds(30..=60).contains(&elapsed), "{kind:?}: {elapsed:?}");
        assert!(env.metric("portcullis_connections_closed_total", "cause=\"unread\"") > 0.0);
    }
    // Endless requests, until the socket buffers are full of responses.
    for kind in Kind::HTTP_1 {
        let connection = env.connect(kind).await;
        let (mut reader, mut writer) = tokio::io::split(connection);
        let request = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(100);
        let started_at = clock::monotonic();
        while writer.write_all(&request).await.is_ok() && writer.flush().await.is_ok() {}
        let elapsed = started_at.elapsed();
        assert!(seconds(30..=60).contains(&elapsed), "{kind:?}: {elapsed:?}");
        until_closed(&mut reader).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_cancelled_requests_blocks_no_other_request() {
    let env = ListenerEnv::open().await;
    for kind in Kind::ALL {
        let mut connection = send(&env, kind, &preface(&[])).await;
        // As from a proxy whose client has disconnected: cancelled before any of them is handled.
        let cancelled = (1..20_000).step_by(2).flat_map(|stream| {
            [kind.request(stream), frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
        });
        let bytes = cancelled.chain(kind.request(20_001)).collect::<Vec<u8>>();
        let (mut reader, mut writer) = tokio::io::split(connection);
        let flood = tokio::spawn(async move { writer.write_all(&bytes).await.map(|()| writer) });
        env.assert_all_respond("cancelled requests").await;
        assert!(http2::answered(&mut reader, 20_001).await, "{kind:?}");
        let writer = flood.await.expect("no panic").expect("written");
        connection = reader.unsplit(writer);
        connection.write_all(&kind.request(20_003)).await.expect("written");
        assert!(http2::answered(&mut connection, 20_003).await, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn silent_connections_at_the_limit_block_no_client() {
    let env = ListenerEnv::open_with(|config| config.limits.connections = 8).await;
    for kind in Kind::ALL {
        // Connections without a request.
        let mut silent = Vec::new();
        for _ in 0..50 {
            silent.push(env.connect_raw(kind).await);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        env.assert_all_respond("a listener is full").await;
        assert!(env.metric("portcullis_connections_refused_total", kind.door()) >= 42.0, "{kind:?}");
        assert!(env.metric("portcullis_connections", kind.door()) <= 24.0, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_only_for_requests() {
    let grace = Duration::from_secs(500);
    let prefixes: [&[u8]; 4] =
        [b"", b"PRI * HT", &preface(&[]), b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"];
    for prefix in prefixes {
        let mut env = ListenerEnv::open_with(|config| config.shutdown.grace = grace).await;
        let mut connections = Vec::new();
        for kind in Kind::ALL {
            connections.push(send(&env, kind, prefix).await);
            connections.push(env.connect_raw(kind).await);
        }
        env.shut_down();
        let elapsed = env.wait_stopped().await;
        // Without the drain, the first of these connections times out after ten seconds.
        assert!(elapsed < Duration::from_secs(5), "{:?}: {elapsed:?}", String::from_utf8_lossy(prefix));
        for mut connection in connections {
            until_closed(&mut connection).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_health_watch_ends_at_a_drain_after_not_serving() {
    for kind in Kind::GRPC {
        let mut env = ListenerEnv::open_with(|config| config.shutdown.grace = Duration::from_secs(500)).await;
        let mut bytes = preface(&[]);
        bytes.extend(frame(HEADERS, END_HEADERS, 1, &http2::call("/grpc.health.v1.Health/Watch")));
        bytes.extend(frame(DATA, END_STREAM, 1, &[0; 5]));
        let mut watch = send(&env, kind, &bytes).await;
        let message = |status: u8| vec![0, 0, 0, 0, 2, 8, status];
        let mut messages = Vec::new();
        let mut is_shutting_down = false;
        while let Some(frame) = http2::next(&mut watch).await {
            if frame.stream == 1 && frame.kind == DATA {
                messages.push(frame.payload);
            }
            if frame.stream == 1 && frame.kind == HEADERS && frame.flags & END_STREAM != 0 {
                // The only field of the trailers is compressed; its value is not tested here.
                messages.push(Vec::new());
            }
            if !is_shutting_down && !messages.is_empty() {
                is_shutting_down = true;
                env.shut_down();
            }
        }
        assert_eq!(messages, [message(1), message(2), Vec::new()], "{kind:?}: serving, not serving, the end");
        assert!(env.wait_stopped().await < Duration::from_secs(2), "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_health_watch_does_not_time_out() {
    let env = ListenerEnv::open().await;
    for kind in Kind::GRPC {
        let mut bytes = preface(&[]);
        bytes.extend(frame(HEADERS, END_HEADERS, 1, &http2::call("/grpc.health.v1.Health/Watch")));
        bytes.extend(frame(DATA, END_STREAM, 1, &[0; 5]));
        let mut watch = send(&env, kind, &bytes).await;
        let mut pings = 0;
        while pings < 10 {
            let frame = http2::next(&mut watch).await;
            let frame = frame.unwrap_or_else(|| panic!("{kind:?}: closed after {pings} minutes"));
            if frame.kind == PING && frame.flags == 0 {
                pings += 1;
                watch.write_all(&http2::frame(PING, http2::ACK, 0, &frame.payload)).await.expect("written");
            }
        }
    }
}

/// A Check as HTTP/2 frames, on this stream.
fn check(stream: u32, message: &[u8]) -> Vec<u8> {
    let mut bytes =
        frame(HEADERS, END_HEADERS, stream, &http2::call("/envoy.service.auth.v3.Authorization/Check"));
    for piece in message.chunks(16_384) {
        bytes.extend(frame(DATA, 0, stream, piece));
    }
    bytes
}

/// A gRPC message: its prefix and so many bytes of an unknown field.
fn message(length: usize) -> Vec<u8> {
    // Field 100 with a length of two to five bytes; this number of bytes makes it four.
    let inner = u32::try_from(length - 6).expect("short");
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(length).expect("short").to_be_bytes());
    bytes.extend([0xa2, 0x06]);
    bytes.extend((0..3).map(|place| (inner >> (7 * place)) as u8 | 0x80));
    bytes.push((inner >> 21) as u8 & 0x7f);
    bytes.resize(length + 5, 0);
    bytes
}

#[tokio::test(start_paused = true)]
async fn a_check_is_decided_when_its_message_is_complete_and_denied_after_five_seconds_without_data() {
    let env = ListenerEnv::open().await;
    let whole = message(10_000);
    for kind in Kind::GRPC {
        for (lacking, at_least) in [(0, 0), (1, 5), (9_990, 5), (10_003, 5), (10_005, 5)] {
            let mut bytes = preface(&[]);
            bytes.extend(check(1, &whole[..whole.len() - lacking]));
            let mut connection = send(&env, kind, &bytes).await;
            let started_at = clock::monotonic();
            assert!(http2::answered(&mut connection, 1).await, "{kind:?} without the last {lacking}");
            let elapsed = started_at.elapsed().as_secs();
            assert!(
                (at_least..=at_least + 1).contains(&elapsed),
                "{kind:?} without the last {lacking}: {elapsed} s"
            );
        }
    }
    let refused = env.metric("portcullis_decisions_total", "reason=\"request_malformed\"");
    assert!((refused - 12.0).abs() < 0.5, "{refused} refused");
}

#[tokio::test(start_paused = true)]
async fn checks_that_never_end_block_no_others() {
    let env = ListenerEnv::open_with(|config| config.limits.message_bytes = 1 << 20).await;
    let mut floods = Vec::new();
    let prefix = &message(1 << 20)[..100];
    for kind in Kind::GRPC {
        let mut bytes = preface(&[]);
        for stream in (1..32_000).step_by(2) {
            bytes.extend(check(stream, prefix));
        }
        let mut connection = env.connect(kind).await;
        floods.push(tokio::spawn(async move {
            let _closed = connection.write_all(&bytes).await;
            until_closed(&mut connection).await;
        }));
    }
    tokio::task::yield_now().await;
    for kind in Kind::GRPC {
        let mut bytes = preface(&[]);
        bytes.extend(check(1, &message(5_000)));
        let mut connection = send(&env, kind, &bytes).await;
        let started_at = clock::monotonic();
        assert!(http2::answered(&mut connection, 1).await, "{kind:?}");
        assert!(started_at.elapsed() < Duration::from_secs(1), "{kind:?}");
    }
    floods.iter().for_each(|flood| flood.abort());
}

#[tokio::test(start_paused = true)]
async fn a_request_too_large_to_be_read_is_counted_at_every_listener_that_decides() {
    let env = ListenerEnv::open().await;
    let mut expected = 0.0;
    let malformed =
        |env: &ListenerEnv| env.metric("portcullis_decisions_total", "reason=\"request_malformed\"");
    for kind in Kind::ALL {
        let mut block = http2::get("/livez");
        while block.len() < 300 << 10 {
            block.extend(http2::header_block(&[("x-large", &"l".repeat(120))]));
        }
        let mut bytes = preface(&[]);
        let pieces: Vec<&[u8]> = block.chunks(16_384).collect();
        for (place, piece) in pieces.iter().enumerate() {
            let kind = if place == 0 { HEADERS } else { http2::CONTINUATION };
            let flags = if place == 0 { END_STREAM } else { 0 };
            let last = if place + 1 == pieces.len() { END_HEADERS } else { 0 };
            bytes.extend(frame(kind, flags | last, 1, piece));
        }
        let mut connection = env.connect(kind).await;
        connection.write_all(&bytes).await.expect("written");
        assert!(http2::answered(&mut connection, 1).await, "{kind:?}");
        drop(connection);
        tokio::time::sleep(Duration::from_secs(2 * CHECK_INTERVAL)).await;
        expected += if kind.door() == "admin" { 0.0 } else { 1.0 };
        assert!((malformed(&env) - expected).abs() < 0.5, "{kind:?}: {} of {expected}", malformed(&env));
    }
    for kind in [Kind::Http, Kind::HttpTls] {
        let mut connection = env.connect(kind).await;
        let request = format!("GET / HTTP/1.1\r\nx-large: {}\r\n\r\n", "l".repeat(300 << 10));
        let _read = connection.write_all(request.as_bytes()).await;
        until_closed(&mut connection).await;
        expected += 1.0;
        assert!((malformed(&env) - expected).abs() < 0.5, "{kind:?}: {} of {expected}", malformed(&env));
    }
}

#[tokio::test]
async fn endless_streams_are_limited_and_block_no_client() {
    const STREAMS: u32 = 16_384;
    /// The limit for health watches and reflection, of all listeners together.
    const ENDLESS: u32 = 1024;
    for kind in Kind::GRPC {
        let env = ListenerEnv::open().await;
        let (mut reader, mut writer) = tokio::io::split(send(&env, kind, &preface(&[])).await);
        let open_task = tokio::spawn(async move {
            for stream in (1..).step_by(2).take(STREAMS as usize) {
                let watch = http2::call("/grpc.health.v1.Health/Watch");
                let mut bytes = frame(HEADERS, END_HEADERS, stream, &watch);
                bytes.extend(frame(DATA, END_STREAM, stream, &[0; 5]));
                writer.write_all(&bytes).await.expect("written");
            }
            writer.flush().await.expect("sent");
            writer
        });
        let (mut open, mut refused) = (0, 0);
        while open + refused < STREAMS {
            let next = http2::next(&mut reader).await.expect("the connection is open");
            let ends = next.kind == HEADERS && next.flags & END_STREAM != 0;
            refused += u32::from(ends);
            open += u32::from(next.kind == HEADERS && !ends);
        }
        assert_eq!((open, refused), (ENDLESS, STREAMS - ENDLESS), "{kind:?}");
        env.assert_all_respond("many streams are open").await;
        drop(open_task.await.expect("no panic"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_frames_without_a_request_closes_its_connection() {
    let env = ListenerEnv::open().await;
    let update = 1u32.to_be_bytes();
    let frames = [
        (PING, 0, &[7; 8][..]),
        (http2::SETTINGS, 0, &[]),
        (http2::WINDOW_UPDATE, 0, &update),
        (2, 1, &[0; 5]),
        (0xf0, 1, &[]),
    ];
    for kind in Kind::ALL {
        for (number, stream, payload) in frames {
            let connection = send(&env, kind, &preface(&[])).await;
            let (mut reader, mut writer) = tokio::io::split(connection);
            let flood = frame(number, 0, stream, payload).repeat(1000);
            let flood_task = tokio::spawn(async move {
                for _ in 0..1000 {
                    if writer.write_all(&flood).await.is_err() || writer.flush().await.is_err() {
                        return true;
                    }
                }
                false
            });
            until_closed(&mut reader).await;
            assert!(flood_task.await.expect("no panic"), "{kind:?}: frames {number} were accepted");
        }
    }
    assert!(env.metric("portcullis_connections_closed_total", "cause=\"flood\"") > 0.0);
    env.assert_all_respond("floods are over").await;
}

#[tokio::test]
async fn an_invalid_check_is_decided_counted_and_never_an_error() {
    let env = ListenerEnv::open().await;
    let prefixed = |flag: u8, message: &[u8]| {
        let length = u32::try_from(message.len()).expect("short").to_be_bytes();
        [&[flag], &length[..], message].concat()
    };
    let many = [0x1a, 0].repeat(100_000);
    let within = |number: u8, inner: &[u8]| {
        let mut bytes = vec![number << 3 | 2];
        prost::encoding::encode_varint(inner.len() as u64, &mut bytes);
        bytes.extend(inner);
        bytes
    };
    let many = within(1, &within(4, &within(2, &many)));
    let messages = [
        prefixed(1, b""),
        prefixed(7, b""),
        prefixed(0, &[0xff; 40]),
        prefixed(0, &[0x0b, 0x0c]),
        prefixed(0, &many),
    ];
    let mut expected = 0.0;
    for kind in Kind::GRPC {
        for (place, message) in messages.iter().enumerate() {
            let mut connection = send(&env, kind, &preface(&[])).await;
            // Until the window of the connection is open.
            while http2::next(&mut connection).await.expect("it stays").kind != http2::WINDOW_UPDATE {}
            connection.write_all(&http2::frame(http2::SETTINGS, http2::ACK, 0, &[])).await.expect("written");
            connection.write_all(&check(1, message)).await.expect("written");
            assert!(http2::answered(&mut connection, 1).await, "{kind:?}: {place}");
            expected += 1.0;
            let counted = env.metric("portcullis_decisions_total", "reason=\"request_malformed\"");
            assert!((counted - expected).abs() < 0.5, "{kind:?}: {place}: {counted} of {expected}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_client_can_prolong_a_drain() {
    for kind in Kind::GRPC {
        let mut env = ListenerEnv::open_with(|config| config.shutdown.grace = Duration::from_secs(500)).await;
        // An unsendable response, and messages that never end, before and after the shutdown signal.
        let mut bytes = preface(&[(4, 0)]);
        bytes.extend(check(1, &[0; 5]));
        let (mut reader, mut writer) = tokio::io::split(send(&env, kind, &bytes).await);
        assert!(http2::answered(&mut reader, 1).await);
        let asking = tokio::spawn(async move {
            for stream in (3..).step_by(2) {
                if writer.write_all(&check(stream, &[0; 3])).await.is_err() {
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        });
        sleep(Duration::from_secs(1)).await;
        env.shut_down();
        let elapsed = env.wait_stopped().await;
        assert!(elapsed < Duration::from_secs(15), "{kind:?}: {elapsed:?}");
        asking.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_break_after_a_request_does_not_start_another() {
    let env = ListenerEnv::open().await;
    for kind in Kind::HTTP_1 {
        let mut connection = send(&env, kind, b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        sleep(Duration::from_secs(1)).await;
        connection.write_all(b"\r\n").await.expect("written");
        connection.flush().await.expect("sent");
        let elapsed = until_closed(&mut connection).await;
        assert!(elapsed > Duration::from_secs(60), "{kind:?}: {elapsed:?}");
    }
}
