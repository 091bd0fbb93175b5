//! The resources that a connection uses while one of its requests waits for keys, or its client does not read responses.

use std::time::Duration;

use portcullis::commands::issuer::{Issuer, SigningAlgorithm};
use portcullis::keys::RefreshPolicy;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::time::timeout;

use super::environment::{Kind, ListenerEnv};
use super::http2::{
    self, ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame,
    header_block, preface,
};
use crate::support::{NOW, fetching, prompt_refresh, provider};

/// The number of body bytes that a client may send before they are read.
const BODY: usize = 2 * 1024 * 1024;
const LARGEST_FRAME: usize = 16 * 1024;

/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);

/// The window that the peer has returned for the connection, if it is that much.
async fn window_returned(connection: &mut (impl AsyncRead + Unpin)) -> usize {
    let mut window_returned = 0;
    while window_returned < BODY / 2 {
        let frame = http2::next(connection).await.expect("it is open");
        if frame.kind == WINDOW_UPDATE && frame.stream == 0 {
            let increment = u32::from_be_bytes(frame.payload.try_into().expect("four octets"));
            // The initial window of the listener is larger.
            window_returned +=
                Some(increment as usize).filter(|increment| *increment <= BODY).unwrap_or_default();
        }
    }
    window_returned
}

/// A service whose issuer no longer responds, and a token with a key that it has not fetched.
pub async fn waiting(issuer: &Issuer) -> (ListenerEnv, String) {
    issuer.rotate(SigningAlgorithm::ES256);
    let env = ListenerEnv::open_with(|config| {
        let refresh = RefreshPolicy { wait: LONG, timeout: LONG, ..prompt_refresh() };
        config.providers = vec![fetching(provider("p", issuer.issuer()), issuer, refresh)];
    })
    .await;
    issuer.hold();
    let new = issuer.rotate_beside(SigningAlgorithm::ES256);
    (env, format!("Bearer {}", new.sign(&issuer.claims(NOW))))
}

/// The headers of a request with this credential.
fn request_headers(credential: &str) -> Vec<u8> {
    let mut headers = http2::get("/");
    headers.extend(header_block(&[("authorization", credential)]));
    headers
}

#[tokio::test]
async fn a_waiting_request_is_served_while_a_flood_on_its_connection_is_rejected() {
    let issuer = Issuer::start().await.expect("a free port");
    let (env, credential) = waiting(&issuer).await;
    let mut connection = env.connect(Kind::Http).await;
    let ends = END_HEADERS | END_STREAM;
    let waiting_request = frame(HEADERS, ends, 1, &request_headers(&credential));
    connection.write_all(&[preface(&[]), waiting_request].concat()).await.expect("written");
    issuer.wait_for_held(1).await;
    // Sent before the client can know of the GOAWAY: as many as fit into a few segments.
    tokio::time::pause();
    let flood =
        (3..).step_by(2).take(1500).flat_map(|stream| frame(HEADERS, ends, stream, &http2::get("/<")));
    connection.write_all(&flood.collect::<Vec<u8>>()).await.expect("written");
    let (mut has_goaway, mut refused) = (false, 0);
    while refused < 1500 {
        let frame = http2::next(&mut connection).await.expect("it is open");
        has_goaway |= frame.kind == GOAWAY;
        refused += u32::from(frame.kind == RST_STREAM);
    }
    assert!(has_goaway, "GOAWAY was received");
    tokio::time::resume();
    issuer.release();
    assert!(http2::answered(&mut connection, 1).await);
}

#[tokio::test]
async fn no_body_is_buffered_for_a_waiting_http_request() {
    let issuer = Issuer::start().await.expect("a free port");
    let (env, credential) = waiting(&issuer).await;
    let mut sent =
        [frame(SETTINGS, ACK, 0, &[]), frame(HEADERS, END_HEADERS, 1, &request_headers(&credential))]
            .concat();
    for _ in 0..BODY / LARGEST_FRAME {
        sent.extend(frame(DATA, 0, 1, &[b'x'; LARGEST_FRAME]));
    }
    let mut connection = env.connect(Kind::Http).await;
    connection.write_all(&preface(&[])).await.expect("written");
    // The window of a stream applies once the client knows of it.
    while http2::next(&mut connection).await.expect("it is open").kind != SETTINGS {}
    connection.write_all(&sent).await.expect("written");
    issuer.wait_for_held(1).await;
    let window_returned = timeout(Duration::from_secs(20), window_returned(&mut connection)).await;
    assert!(window_returned.is_ok(), "the body is buffered");
}

#[tokio::test]
async fn no_requests_are_buffered_for_a_stream_whose_responses_are_not_read() {
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let env = ListenerEnv::open().await;
    for kind in Kind::GRPC {
        let mut connection = env.connect(kind).await;
        connection.write_all(&preface(&[(INITIAL_WINDOW_SIZE, 0)])).await.expect("written");
        while http2::next(&mut connection).await.expect("it is open").kind != SETTINGS {}
        let mut sent = frame(SETTINGS, ACK, 0, &[]);
        let call = http2::call("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo");
        sent.extend(frame(HEADERS, END_HEADERS, 1, &call));
        // `list_services`, repeated.
        let requests = [0, 0, 0, 0, 2, 0x3a, 0].repeat(LARGEST_FRAME / 7);
        for _ in 0..BODY / LARGEST_FRAME {
            sent.extend(frame(DATA, 0, 1, &requests));
        }
        connection.write_all(&sent).await.expect("written");
        let window_returned = timeout(Duration::from_secs(20), window_returned(&mut connection)).await;
        assert!(window_returned.is_ok(), "{kind:?}: the body is buffered");
    }
}

#[tokio::test]
async fn no_request_waits_for_a_reset_stream() {
    let issuer = Issuer::start().await.expect("a free port");
    let (env, credential) = waiting(&issuer).await;
    let mut connection = env.connect(Kind::Http).await;
    let ends = END_HEADERS | END_STREAM;
    let request = |stream| frame(HEADERS, ends, stream, &request_headers(&credential));
    connection.write_all(&[preface(&[]), request(1)].concat()).await.expect("written");
    issuer.wait_for_held(1).await;
    // Each request is valid, and then its window overflows (RFC 9113 §6.9.1): more often than the library allows by default.
    let too_far = (u32::MAX >> 1).to_be_bytes();
    let one = |stream| [request(stream), frame(WINDOW_UPDATE, 0, stream, &too_far)].concat();
    let flood = (3..).step_by(2).take(1500).flat_map(one).collect::<Vec<u8>>();
    let (mut reading, mut writing) = tokio::io::split(connection);
    let sending = tokio::spawn(async move { writing.write_all(&flood).await.map(|()| writing) });
    let mut reset = 0;
    while reset < 1500 {
        let frame = http2::next(&mut reading).await.expect("it is open");
        reset += u32::from(frame.kind == RST_STREAM);
    }
    let _writing = sending.await.expect("no panic").expect("written");
    let one_waits = async {
        loop {
            env.service.publish_gauges();
            if env.own_metric("portcullis_jwks_waiters", "provider=\"p\"") == 1.0 {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    assert!(timeout(Duration::from_secs(20), one_waits).await.is_ok(), "requests are blocked");
    issuer.release();
    assert!(http2::answered(&mut reading, 1).await);
}
