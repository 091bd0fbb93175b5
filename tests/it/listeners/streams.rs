//! Many requests on one connection of a gRPC listener: none holds up another, or uses up what they share.

use std::time::Duration;

use portcullis::commands::issuer::Issuer;
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

use super::environment::{Kind, ListenerEnv};
use super::http2::{
    self, ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame,
    preface,
};
use super::waiting::waiting;
use super::{check, send};
use crate::support::Ask;

/// Longer than any test.
const LONG: Duration = Duration::from_secs(60);

const LARGEST_FRAME: usize = 16 * 1024;

/// The Check of a request with this credential, whose stream it ends.
fn check_of(stream: u32, credential: &str) -> Vec<u8> {
    let message = Ask::default().header("authorization", credential).into_check().encode_to_vec();
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    let headers = http2::call("/envoy.service.auth.v3.Authorization/Check");
    let framed = [&[0], &length[..], &message].concat();
    [frame(HEADERS, END_HEADERS, stream, &headers), frame(DATA, END_STREAM, stream, &framed)].concat()
}

#[tokio::test]
async fn data_after_a_message_does_not_use_up_the_window_of_the_connection() {
    const UNREAD: usize = 6 * LARGEST_FRAME;
    let env = ListenerEnv::open().await;
    for kind in Kind::GRPC {
        let mut connection = send(&env, kind, &preface(&[])).await;
        connection.write_all(&frame(SETTINGS, ACK, 0, &[])).await.expect("written");
        let (mut window, mut sent, mut stream) = (65_535, 0, 1);
        // Four times the window of the connection.
        while sent < 16 << 20 {
            let mut bytes = check(stream, &[0; 5]);
            for _ in 0..UNREAD / LARGEST_FRAME {
                bytes.extend(frame(DATA, 0, stream, &[0; LARGEST_FRAME]));
            }
            bytes.extend(frame(DATA, END_STREAM, stream, &[]));
            let mut has_answer = true;
            if window >= UNREAD + 5 {
                connection.write_all(&bytes).await.expect("written");
                window -= UNREAD + 5;
                sent += UNREAD + 5;
                has_answer = false;
            }
            while !has_answer || window < UNREAD + 5 {
                let next = timeout(LONG, http2::next(&mut connection)).await;
                let next = next.unwrap_or_else(|_| panic!("{kind:?}: the window is used up after {sent}"));
                let next = next.expect("it is open");
                has_answer |= next.stream == stream && next.kind == HEADERS;
                if next.stream == 0 && next.kind == WINDOW_UPDATE {
                    let increment = u32::from_be_bytes(next.payload.try_into().expect("four octets"));
                    window += increment as usize;
                }
            }
            stream += 2;
        }
    }
}

#[tokio::test]
async fn a_burst_of_requests_is_answered_completely() {
    const REQUESTS: u32 = 1000;
    let env = ListenerEnv::open().await;
    for kind in Kind::GRPC {
        // The connection's window does not limit the responses.
        let mut bytes = [preface(&[]), frame(WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes())].concat();
        for number in 0..REQUESTS {
            bytes.extend(check_of(1 + 2 * number, "Bearer none"));
        }
        let (mut reader, mut writer) = tokio::io::split(env.connect(kind).await);
        let sending = tokio::spawn(async move {
            writer.write_all(&bytes).await.expect("written");
            writer.flush().await.expect("sent");
            writer
        });
        let (mut heads, mut messages, mut ends) = (0, 0, 0);
        while ends < REQUESTS {
            let next = timeout(LONG, http2::next(&mut reader)).await.expect("in time").expect("it is open");
            assert_ne!(next.kind, RST_STREAM, "{kind:?}");
            let ends_stream = next.flags & END_STREAM != 0;
            heads += u32::from(next.kind == HEADERS && !ends_stream);
            messages += u32::from(next.kind == DATA);
            ends += u32::from(next.kind == HEADERS && ends_stream);
        }
        assert_eq!((heads, messages), (REQUESTS, REQUESTS), "{kind:?}");
        drop(sending.await.expect("no panic"));
    }
}

#[tokio::test]
async fn checks_are_answered_while_others_of_their_connection_wait_for_keys() {
    let issuer = Issuer::start().await.expect("a free port");
    let (env, credential) = waiting(&issuer).await;
    let waiters = || {
        env.service.publish_gauges();
        env.own_metric("portcullis_jwks_waiters", "provider=\"p\"")
    };
    let until_waiting = async |count: f64| {
        let waiting = async {
            while waiters() != count {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("{} wait, not {count}", waiters()));
    };
    for kind in Kind::GRPC {
        let mut connection = send(&env, kind, &preface(&[])).await;
        let two = [check_of(1, &credential), check_of(3, &credential)].concat();
        connection.write_all(&two).await.expect("written");
        until_waiting(2.0).await;
        for stream in [5, 7] {
            connection.write_all(&check_of(stream, "Bearer none")).await.expect("written");
            assert!(http2::answered(&mut connection, stream).await, "{kind:?}");
        }
        connection.write_all(&frame(RST_STREAM, 0, 1, &8u32.to_be_bytes())).await.expect("written");
        until_waiting(1.0).await;
        drop(connection);
        until_waiting(0.0).await;
    }
    let mut connection = send(&env, Kind::Grpc, &preface(&[])).await;
    connection.write_all(&check_of(1, &credential)).await.expect("written");
    until_waiting(1.0).await;
    issuer.release();
    assert!(http2::answered(&mut connection, 1).await);
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_pinged_a_minute_after_its_last_frame() {
    let env = ListenerEnv::open().await;
    for kind in Kind::GRPC {
        let mut connection = send(&env, kind, &preface(&[])).await;
        for stream in (1..21).step_by(2) {
            connection.write_all(&kind.request(stream)).await.expect("written");
            let mut is_answered = false;
            while !is_answered {
                let next = http2::next(&mut connection).await.expect("it is open");
                assert_ne!(next.kind, PING, "{kind:?}");
                is_answered = next.stream == stream && next.kind == HEADERS && next.flags & END_STREAM != 0;
            }
            sleep(Duration::from_secs(40)).await;
        }
        let silent_at = portcullis::clock::monotonic();
        while http2::next(&mut connection).await.expect("it is open").kind != PING {}
        let elapsed = silent_at.elapsed().as_secs();
        assert!((18..=25).contains(&elapsed), "{kind:?}: {elapsed} s after 40 s");
    }
}
