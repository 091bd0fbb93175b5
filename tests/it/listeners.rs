//! What holds at every listener: connections that never speak, never finish, never read or never end are closed in
//! time, and everybody else is answered meanwhile.
//!
//! Time is tokio's and paused: it passes where everybody waits.

mod admin;
mod house;
pub mod http2;
mod refusals;
mod socket_files;
mod tls;
mod waiting;

use std::ops::RangeInclusive;
use std::time::Duration;

use portcullis::clock;
use tokio::io::AsyncWriteExt;
use tokio::time::sleep;

use house::{Connection, House, Kind, until_closed};
use http2::{DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, frame, greeting};

/// Looks at a connection are so far apart.
const LOOK: u64 = 5;

fn seconds(range: RangeInclusive<u64>) -> RangeInclusive<Duration> {
    Duration::from_secs(*range.start())
        ..=Duration::from_secs(*range.end() + LOOK) + Duration::from_millis(600)
}

/// Sends this on a connection, and gives that back.
async fn sent(house: &House, kind: Kind, bytes: &[u8]) -> Connection {
    let mut connection = house.connect(kind).await;
    connection.write_all(bytes).await.expect("it is read");
    connection.flush().await.expect("it is sent");
    connection
}

/// A connection on which this was sent is closed after so many seconds; others are answered.
async fn is_closed(kinds: &[Kind], what: &str, bytes: &[u8], after: RangeInclusive<u64>) {
    let house = House::open().await;
    for kind in kinds {
        let mut connection = sent(&house, *kind, bytes).await;
        let began = clock::monotonic();
        house.everybody_is_answered(what).await;
        until_closed(&mut connection).await;
        let took = began.elapsed();
        assert!(seconds(after.clone()).contains(&took), "{kind:?}: {what}: closed after {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_says_nothing_is_closed() {
    is_closed(&Kind::ALL, "one says nothing", b"", 75..=75).await;
}

#[tokio::test(start_paused = true)]
async fn half_a_preface_is_not_waited_for() {
    is_closed(&Kind::ALL, "one sent half a preface", &http2::PREFACE[..10], 10..=10).await;
    is_closed(&Kind::ALL, "one sent no settings", http2::PREFACE, 10..=10).await;
}

#[tokio::test(start_paused = true)]
async fn half_a_header_block_is_not_waited_for() {
    let mut half_a_frame = greeting(&[]);
    half_a_frame.extend(&frame(HEADERS, END_HEADERS, 1, &http2::get("/"))[..15]);
    is_closed(&Kind::ALL, "one sent half a frame", &half_a_frame, 10..=10).await;
    let mut no_continuation = greeting(&[]);
    no_continuation.extend(frame(HEADERS, END_STREAM, 1, &http2::get("/")));
    is_closed(&Kind::ALL, "one sent half a header block", &no_continuation, 10..=10).await;
    let half = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx-hal";
    is_closed(&Kind::HTTP_1, "one sent half a header block of HTTP/1.1", half, 10..=10).await;
}

#[tokio::test(start_paused = true)]
async fn a_byte_a_second_finishes_nothing() {
    let mut frame_of_headers = greeting(&[]);
    frame_of_headers.extend(&frame(HEADERS, END_HEADERS, 1, &[0; 4000])[..15]);
    let beginnings: [(&[Kind], &[u8]); 3] = [
        (&Kind::ALL, b"PRI * HTTP"),
        (&Kind::ALL, &frame_of_headers),
        (&Kind::HTTP_1, b"GET /livez HTTP/1.1\r\nx: "),
    ];
    let house = House::open().await;
    for (kinds, beginning) in beginnings {
        for kind in kinds {
            let (mut reading, mut writing) = tokio::io::split(sent(&house, *kind, beginning).await);
            let rest = &http2::PREFACE[beginning.len().min(http2::PREFACE.len())..];
            let next = rest.first().copied().unwrap_or(b'x');
            let dripping = tokio::spawn(async move {
                let mut byte = next;
                while writing.write_all(&[byte]).await.is_ok() && writing.flush().await.is_ok() {
                    // Of a preface the second byte breaks it, and HTTP/1.1 goes on.
                    byte = b'x';
                    sleep(Duration::from_secs(1)).await;
                }
            });
            let took = until_closed(&mut reading).await;
            dripping.abort();
            assert!(took <= *seconds(10..=10).end(), "{kind:?}: {took:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_handshake_is_not_waited_for() {
    let house = House::open().await;
    for kind in Kind::ALL.into_iter().filter(|kind| kind.speaks_tls()) {
        for bytes in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
            let mut connection = house.bare(kind).await;
            connection.write_all(bytes).await.expect("sent");
            let took = until_closed(&mut connection).await;
            assert!(seconds(10..=10).contains(&took), "{kind:?}: {took:?}");
            let timeouts = house.metric("portcullis_tls_handshakes_refused_total", "cause=\"timeout\"");
            assert!(timeouts > 0.0, "{kind:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_of_http_1_is_closed_and_never_before_a_proxy_would() {
    let house = House::open().await;
    for kind in Kind::HTTP_1 {
        let mut connection = sent(&house, kind, b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        let took = until_closed(&mut connection).await;
        // Envoy keeps one for an hour, which is the longest.
        assert!(seconds(3900..=3900).contains(&took), "{kind:?}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_http_2_stays_while_it_answers_pings_and_no_longer() {
    let house = House::open().await;
    for kind in Kind::ALL {
        let mut bytes = greeting(&[]);
        bytes.extend(kind.request(1));
        let mut connection = sent(&house, kind, &bytes).await;
        let (began, mut pongs) = (clock::monotonic(), 0);
        while let Some(frame) = http2::next(&mut connection).await {
            if frame.kind == PING && frame.flags & http2::ACK == 0 && pongs < 5 {
                pongs += 1;
                let pong = http2::frame(PING, http2::ACK, 0, &frame.payload);
                connection.write_all(&pong).await.expect("it is read");
            }
        }
        let took = began.elapsed();
        assert!(seconds(6 * 60 + 20..=6 * 60 + 20).contains(&took), "{kind:?}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_its_answers_is_closed() {
    let house = House::open().await;
    // A window of nothing (RFC 9113 §6.9.2): the answer's body can never be sent.
    for kind in Kind::ALL {
        let (path, body) = match kind {
            Kind::Admin | Kind::AdminTls => (http2::get("/metrics"), None),
            Kind::Http | Kind::HttpTls => (http2::get("/x"), None),
            _ => (http2::call("/envoy.service.auth.v3.Authorization/Check"), Some([0; 5])),
        };
        let mut bytes = greeting(&[(4, 0)]);
        let end = if body.is_none() { END_STREAM } else { 0 };
        bytes.extend(frame(HEADERS, END_HEADERS | end, 1, &path));
        bytes.extend(body.iter().flat_map(|body| frame(DATA, END_STREAM, 1, body)));
        let mut connection = sent(&house, kind, &bytes).await;
        let began = clock::monotonic();
        house.everybody_is_answered("one does not read").await;
        while let Some(frame) = http2::next(&mut connection).await {
            if frame.kind == PING && frame.flags & http2::ACK == 0 {
                // An error means that it was closed, which the next read tells.
                let _closed = connection.write_all(&http2::frame(PING, http2::ACK, 0, &frame.payload)).await;
            }
        }
        let took = began.elapsed();
        assert!(seconds(30..=60).contains(&took), "{kind:?}: {took:?}");
        assert!(house.metric("portcullis_connections_closed_total", "cause=\"unread\"") > 0.0);
    }
    // Requests without end, and the socket's buffers full of answers.
    for kind in Kind::HTTP_1 {
        let connection = house.connect(kind).await;
        let (mut reading, mut writing) = tokio::io::split(connection);
        let request = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(100);
        let began = clock::monotonic();
        while writing.write_all(&request).await.is_ok() && writing.flush().await.is_ok() {}
        let took = began.elapsed();
        assert!(seconds(30..=60).contains(&took), "{kind:?}: {took:?}");
        until_closed(&mut reading).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_cancelled_requests_is_in_the_way_of_nobody_not_even_on_its_connection() {
    let house = House::open().await;
    for kind in Kind::ALL {
        let mut connection = sent(&house, kind, &greeting(&[])).await;
        // As a proxy sends them whose client has gone: before any of them has been looked at.
        let cancelled = (1..20_000).step_by(2).flat_map(|stream| {
            [kind.request(stream), frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
        });
        let bytes = cancelled.chain(kind.request(20_001)).collect::<Vec<u8>>();
        let (mut reading, mut writing) = tokio::io::split(connection);
        let flood = tokio::spawn(async move { writing.write_all(&bytes).await.map(|()| writing) });
        house.everybody_is_answered("one cancels").await;
        assert!(http2::answered(&mut reading, 20_001).await, "{kind:?}");
        let writing = flood.await.expect("no panic").expect("it is read");
        connection = reading.unsplit(writing);
        connection.write_all(&kind.request(20_003)).await.expect("it is read");
        assert!(http2::answered(&mut connection, 20_003).await, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn as_many_silent_connections_as_there_may_be_keep_nobody_out() {
    let house = House::open_with(|config| config.limits.connections = 8).await;
    for kind in Kind::ALL {
        // One with a request in flight, which no flood may close: its message never ends, for a while.
        let mut silent = Vec::new();
        for _ in 0..50 {
            silent.push(house.bare(kind).await);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        house.everybody_is_answered("a listener is full").await;
        assert!(house.metric("portcullis_connections_refused_total", kind.door()) >= 42.0, "{kind:?}");
        assert!(house.metric("portcullis_connections", kind.door()) <= 24.0, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_requests_and_for_nothing_else() {
    let grace = Duration::from_secs(500);
    let beginnings: [&[u8]; 4] =
        [b"", b"PRI * HT", &greeting(&[]), b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"];
    for beginning in beginnings {
        let mut house = House::open_with(|config| config.shutdown.grace = grace).await;
        let mut connections = Vec::new();
        for kind in Kind::ALL {
            connections.push(sent(&house, kind, beginning).await);
            connections.push(house.bare(kind).await);
        }
        house.tell_to_end();
        let took = house.ended().await;
        assert!(took < Duration::from_secs(2), "{:?}: {took:?}", String::from_utf8_lossy(beginning));
        for mut connection in connections {
            until_closed(&mut connection).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_health_watch_ends_at_a_drain_after_not_serving() {
    for kind in Kind::GRPC {
        let mut house = House::open_with(|config| config.shutdown.grace = Duration::from_secs(500)).await;
        let mut bytes = greeting(&[]);
        bytes.extend(frame(HEADERS, END_HEADERS, 1, &http2::call("/grpc.health.v1.Health/Watch")));
        bytes.extend(frame(DATA, END_STREAM, 1, &[0; 5]));
        let mut watch = sent(&house, kind, &bytes).await;
        let message = |status: u8| vec![0, 0, 0, 0, 2, 8, status];
        let mut said = Vec::new();
        let mut told = false;
        while let Some(frame) = http2::next(&mut watch).await {
            if frame.stream == 1 && frame.kind == DATA {
                said.push(frame.payload);
            }
            if frame.stream == 1 && frame.kind == HEADERS && frame.flags & END_STREAM != 0 {
                // The trailers' one field is compressed; what it says is gRPC's own to test.
                said.push(Vec::new());
            }
            if !told && !said.is_empty() {
                told = true;
                house.tell_to_end();
            }
        }
        assert_eq!(said, [message(1), message(2), Vec::new()], "{kind:?}: serving, not serving, the end");
        assert!(house.ended().await < Duration::from_secs(2), "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_health_watch_has_no_end_of_its_own_and_is_no_answer_that_nobody_takes() {
    let house = House::open().await;
    for kind in Kind::GRPC {
        let mut bytes = greeting(&[]);
        bytes.extend(frame(HEADERS, END_HEADERS, 1, &http2::call("/grpc.health.v1.Health/Watch")));
        bytes.extend(frame(DATA, END_STREAM, 1, &[0; 5]));
        let mut watch = sent(&house, kind, &bytes).await;
        let mut pings = 0;
        while pings < 10 {
            let frame = http2::next(&mut watch).await;
            let frame = frame.unwrap_or_else(|| panic!("{kind:?}: closed after {pings} minutes"));
            if frame.kind == PING && frame.flags == 0 {
                pings += 1;
                watch
                    .write_all(&http2::frame(PING, http2::ACK, 0, &frame.payload))
                    .await
                    .expect("it is read");
            }
        }
    }
}

/// A Check as it goes over the wire, on this stream.
fn check(stream: u32, message: &[u8]) -> Vec<u8> {
    let mut bytes =
        frame(HEADERS, END_HEADERS, stream, &http2::call("/envoy.service.auth.v3.Authorization/Check"));
    for piece in message.chunks(16_384) {
        bytes.extend(frame(DATA, 0, stream, piece));
    }
    bytes
}

/// A message of gRPC: its prefix and so many bytes of a field that nobody knows.
fn message(length: usize) -> Vec<u8> {
    // Field 100 with a length of two to five bytes, which the number of bytes here makes four.
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
async fn a_check_is_decided_when_its_message_is_whole_and_refused_when_nothing_comes_for_five_seconds() {
    let house = House::open().await;
    let whole = message(10_000);
    for kind in Kind::GRPC {
        for (lacking, at_least) in [(0, 0), (1, 5), (9_990, 5), (10_003, 5), (10_005, 5)] {
            let mut bytes = greeting(&[]);
            bytes.extend(check(1, &whole[..whole.len() - lacking]));
            let mut connection = sent(&house, kind, &bytes).await;
            let began = clock::monotonic();
            assert!(http2::answered(&mut connection, 1).await, "{kind:?} without the last {lacking}");
            let took = began.elapsed().as_secs();
            assert!(
                (at_least..=at_least + 1).contains(&took),
                "{kind:?} without the last {lacking}: {took} s"
            );
        }
    }
    let refused = house.metric("portcullis_decisions_total", "reason=\"request_malformed\"");
    assert!((refused - 12.0).abs() < 0.5, "{refused} refused");
}

#[tokio::test(start_paused = true)]
async fn checks_that_never_end_keep_nobody_elses_out() {
    let house = House::open_with(|config| config.limits.message_bytes = 1 << 20).await;
    let mut floods = Vec::new();
    let beginning = &message(1 << 20)[..100];
    for kind in Kind::GRPC {
        let mut bytes = greeting(&[]);
        for stream in (1..32_000).step_by(2) {
            bytes.extend(check(stream, beginning));
        }
        let mut connection = house.connect(kind).await;
        floods.push(tokio::spawn(async move {
            let _closed = connection.write_all(&bytes).await;
            until_closed(&mut connection).await;
        }));
    }
    tokio::task::yield_now().await;
    for kind in Kind::GRPC {
        let mut bytes = greeting(&[]);
        bytes.extend(check(1, &message(5_000)));
        let mut connection = sent(&house, kind, &bytes).await;
        let began = clock::monotonic();
        assert!(http2::answered(&mut connection, 1).await, "{kind:?}");
        assert!(began.elapsed() < Duration::from_secs(1), "{kind:?}");
    }
    floods.iter().for_each(|flood| flood.abort());
}

#[tokio::test(start_paused = true)]
async fn a_request_too_large_to_be_read_is_counted_at_every_door_that_decides() {
    let house = House::open().await;
    let mut expected = 0.0;
    let malformed =
        |house: &House| house.metric("portcullis_decisions_total", "reason=\"request_malformed\"");
    for kind in Kind::ALL {
        let mut block = http2::get("/livez");
        while block.len() < 300 << 10 {
            block.extend(http2::block(&[("x-large", &"l".repeat(120))]));
        }
        let mut bytes = greeting(&[]);
        let pieces: Vec<&[u8]> = block.chunks(16_384).collect();
        for (place, piece) in pieces.iter().enumerate() {
            let kind = if place == 0 { HEADERS } else { http2::CONTINUATION };
            let flags = if place == 0 { END_STREAM } else { 0 };
            let last = if place + 1 == pieces.len() { END_HEADERS } else { 0 };
            bytes.extend(frame(kind, flags | last, 1, piece));
        }
        let mut connection = house.connect(kind).await;
        connection.write_all(&bytes).await.expect("it is read");
        assert!(http2::answered(&mut connection, 1).await, "{kind:?}");
        drop(connection);
        tokio::time::sleep(Duration::from_secs(2 * LOOK)).await;
        expected += if kind.door() == "admin" { 0.0 } else { 1.0 };
        assert!((malformed(&house) - expected).abs() < 0.5, "{kind:?}: {} of {expected}", malformed(&house));
    }
    for kind in [Kind::Http, Kind::HttpTls] {
        let mut connection = house.connect(kind).await;
        let request = format!("GET / HTTP/1.1\r\nx-large: {}\r\n\r\n", "l".repeat(300 << 10));
        let _read = connection.write_all(request.as_bytes()).await;
        until_closed(&mut connection).await;
        expected += 1.0;
        assert!((malformed(&house) - expected).abs() < 0.5, "{kind:?}: {} of {expected}", malformed(&house));
    }
}

#[tokio::test]
async fn streams_that_never_end_are_few_and_keep_nobody_out() {
    const STREAMS: u32 = 16_384;
    /// Of health watches and reflection, of all listeners together.
    const ENDLESS: u32 = 1024;
    for kind in Kind::GRPC {
        let house = House::open().await;
        let (mut reading, mut writing) = tokio::io::split(sent(&house, kind, &greeting(&[])).await);
        let opening = tokio::spawn(async move {
            for stream in (1..).step_by(2).take(STREAMS as usize) {
                let watch = http2::call("/grpc.health.v1.Health/Watch");
                let mut bytes = frame(HEADERS, END_HEADERS, stream, &watch);
                bytes.extend(frame(DATA, END_STREAM, stream, &[0; 5]));
                writing.write_all(&bytes).await.expect("it is read");
            }
            writing.flush().await.expect("it is sent");
            writing
        });
        let (mut open, mut refused) = (0, 0);
        while open + refused < STREAMS {
            let next = http2::next(&mut reading).await.expect("the connection stays");
            let ends = next.kind == HEADERS && next.flags & END_STREAM != 0;
            refused += u32::from(ends);
            open += u32::from(next.kind == HEADERS && !ends);
        }
        assert_eq!((open, refused), (ENDLESS, STREAMS - ENDLESS), "{kind:?}");
        house.everybody_is_answered("many streams are open").await;
        drop(opening.await.expect("no panic"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_frames_that_are_of_no_request_ends_its_connection() {
    let house = House::open().await;
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
            let connection = sent(&house, kind, &greeting(&[])).await;
            let (mut reading, mut writing) = tokio::io::split(connection);
            let flood = frame(number, 0, stream, payload).repeat(1000);
            let flooding = tokio::spawn(async move {
                for _ in 0..1000 {
                    if writing.write_all(&flood).await.is_err() || writing.flush().await.is_err() {
                        return true;
                    }
                }
                false
            });
            until_closed(&mut reading).await;
            assert!(flooding.await.expect("no panic"), "{kind:?}: frames {number} were borne");
        }
    }
    assert!(house.metric("portcullis_connections_closed_total", "cause=\"flood\"") > 0.0);
    house.everybody_is_answered("floods are over").await;
}

#[tokio::test]
async fn a_check_that_is_no_check_is_decided_counted_and_never_an_error() {
    let house = House::open().await;
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
            let mut connection = sent(&house, kind, &greeting(&[])).await;
            // Until the window of the connection is open.
            while http2::next(&mut connection).await.expect("it stays").kind != http2::WINDOW_UPDATE {}
            connection
                .write_all(&http2::frame(http2::SETTINGS, http2::ACK, 0, &[]))
                .await
                .expect("it is read");
            connection.write_all(&check(1, message)).await.expect("it is read");
            assert!(http2::answered(&mut connection, 1).await, "{kind:?}: {place}");
            expected += 1.0;
            let counted = house.metric("portcullis_decisions_total", "reason=\"request_malformed\"");
            assert!((counted - expected).abs() < 0.5, "{kind:?}: {place}: {counted} of {expected}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_goes_on_asking_or_does_not_read_makes_no_drain_last() {
    for kind in Kind::GRPC {
        let mut house = House::open_with(|config| config.shutdown.grace = Duration::from_secs(500)).await;
        // An answer that cannot be sent, and messages that never end, before the stop and after it.
        let mut bytes = greeting(&[(4, 0)]);
        bytes.extend(check(1, &[0; 5]));
        let (mut reading, mut writing) = tokio::io::split(sent(&house, kind, &bytes).await);
        assert!(http2::answered(&mut reading, 1).await);
        let asking = tokio::spawn(async move {
            for stream in (3..).step_by(2) {
                if writing.write_all(&check(stream, &[0; 3])).await.is_err() {
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        });
        sleep(Duration::from_secs(1)).await;
        house.tell_to_end();
        let took = house.ended().await;
        assert!(took < Duration::from_secs(15), "{kind:?}: {took:?}");
        asking.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_end_after_a_request_begins_none() {
    let house = House::open().await;
    for kind in Kind::HTTP_1 {
        let mut connection = sent(&house, kind, b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        sleep(Duration::from_secs(1)).await;
        connection.write_all(b"\r\n").await.expect("it is read");
        connection.flush().await.expect("it is sent");
        let took = until_closed(&mut connection).await;
        assert!(took > Duration::from_secs(60), "{kind:?}: {took:?}");
    }
}
