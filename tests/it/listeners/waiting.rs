//! What a connection holds while one of its requests waits for keys, or its client takes no answers.

use std::time::Duration;

use portcullis::commands::issuer::{Issuer, SigningAlgorithm};
use portcullis::keys::RefreshPolicy;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::time::timeout;

use super::house::{House, Kind};
use super::http2::{
    self, ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, WINDOW_UPDATE, block,
    frame, greeting,
};
use crate::support::{NOW, fetching, prompt_refresh, provider};

/// As much of one body as a client may send before it is read.
const BODY: usize = 2 * 1024 * 1024;
const LARGEST_FRAME: usize = 16 * 1024;

/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);

/// How much of the connection's window has been given back, where it is so much.
async fn given_back(connection: &mut (impl AsyncRead + Unpin)) -> usize {
    let mut given_back = 0;
    while given_back < BODY / 2 {
        let frame = http2::next(connection).await.expect("it is open");
        if frame.kind == WINDOW_UPDATE && frame.stream == 0 {
            let increment = u32::from_be_bytes(frame.payload.try_into().expect("four octets"));
            // The window that the listener begins with is larger.
            given_back += Some(increment as usize).filter(|increment| *increment <= BODY).unwrap_or_default();
        }
    }
    given_back
}

/// A service whose issuer answers nobody any more, and a token of a key that it has not fetched.
async fn waiting(issuer: &Issuer) -> (House, String) {
    issuer.rotate(SigningAlgorithm::ES256);
    let house = House::open_with(|config| {
        let refresh = RefreshPolicy { wait: LONG, timeout: LONG, ..prompt_refresh() };
        config.providers = vec![fetching(provider("p", issuer.issuer()), issuer, refresh)];
    })
    .await;
    issuer.hold();
    let new = issuer.rotate_beside(SigningAlgorithm::ES256);
    (house, format!("Bearer {}", new.sign(&issuer.claims(NOW))))
}

/// The headers of a request with this credential.
fn bearing(credential: &str) -> Vec<u8> {
    let mut headers = http2::get("/");
    headers.extend(block(&[("authorization", credential)]));
    headers
}

#[tokio::test]
async fn who_waits_is_answered_although_others_on_the_connection_are_refused_in_a_flood() {
    let issuer = Issuer::start().await.expect("a free port");
    let (house, credential) = waiting(&issuer).await;
    let mut connection = house.connect(Kind::Http).await;
    let ends = END_HEADERS | END_STREAM;
    let honest = frame(HEADERS, ends, 1, &bearing(&credential));
    connection.write_all(&[greeting(&[]), honest].concat()).await.expect("it is read");
    issuer.wait_for_held(1).await;
    // What comes before the client can know that it should go: as many as fit into a few segments.
    tokio::time::pause();
    let flood =
        (3..).step_by(2).take(1500).flat_map(|stream| frame(HEADERS, ends, stream, &http2::get("/<")));
    connection.write_all(&flood.collect::<Vec<u8>>()).await.expect("it is read");
    let (mut told, mut refused) = (false, 0);
    while refused < 1500 {
        let frame = http2::next(&mut connection).await.expect("it is open");
        told |= frame.kind == GOAWAY;
        refused += u32::from(frame.kind == RST_STREAM);
    }
    assert!(told, "it should go");
    tokio::time::resume();
    issuer.release();
    assert!(http2::answered(&mut connection, 1).await);
}

#[tokio::test]
async fn no_body_is_held_for_a_request_that_waits_at_the_http_door() {
    let issuer = Issuer::start().await.expect("a free port");
    let (house, credential) = waiting(&issuer).await;
    let mut sent =
        [frame(SETTINGS, ACK, 0, &[]), frame(HEADERS, END_HEADERS, 1, &bearing(&credential))].concat();
    for _ in 0..BODY / LARGEST_FRAME {
        sent.extend(frame(DATA, 0, 1, &[b'x'; LARGEST_FRAME]));
    }
    let mut connection = house.connect(Kind::Http).await;
    connection.write_all(&greeting(&[])).await.expect("it is read");
    // The window of a stream counts once the client knows of it.
    while http2::next(&mut connection).await.expect("it is open").kind != SETTINGS {}
    connection.write_all(&sent).await.expect("it is read");
    issuer.wait_for_held(1).await;
    let given_back = timeout(Duration::from_secs(20), given_back(&mut connection)).await;
    assert!(given_back.is_ok(), "what has come is held");
}

#[tokio::test]
async fn no_questions_are_held_of_a_stream_whose_answers_are_not_taken() {
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let house = House::open().await;
    for kind in Kind::GRPC {
        let mut connection = house.connect(kind).await;
        connection.write_all(&greeting(&[(INITIAL_WINDOW_SIZE, 0)])).await.expect("it is read");
        while http2::next(&mut connection).await.expect("it is open").kind != SETTINGS {}
        let mut sent = frame(SETTINGS, ACK, 0, &[]);
        let call = http2::call("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo");
        sent.extend(frame(HEADERS, END_HEADERS, 1, &call));
        // `list_services`, again and again.
        let questions = [0, 0, 0, 0, 2, 0x3a, 0].repeat(LARGEST_FRAME / 7);
        for _ in 0..BODY / LARGEST_FRAME {
            sent.extend(frame(DATA, 0, 1, &questions));
        }
        connection.write_all(&sent).await.expect("it is read");
        let given_back = timeout(Duration::from_secs(20), given_back(&mut connection)).await;
        assert!(given_back.is_ok(), "{kind:?}: what has come is held");
    }
}

#[tokio::test]
async fn nothing_waits_for_a_stream_that_the_listener_had_to_reset() {
    let issuer = Issuer::start().await.expect("a free port");
    let (house, credential) = waiting(&issuer).await;
    let mut connection = house.connect(Kind::Http).await;
    let ends = END_HEADERS | END_STREAM;
    let request = |stream| frame(HEADERS, ends, stream, &bearing(&credential));
    connection.write_all(&[greeting(&[]), request(1)].concat()).await.expect("it is read");
    issuer.wait_for_held(1).await;
    // Each is good, and then its window is opened too far (RFC 9113 §6.9.1): more of them than the library bears by default.
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
    let _writing = sending.await.expect("no panic").expect("it is read");
    let one_waits = async {
        loop {
            house.service.publish_gauges();
            if house.own_metric("portcullis_jwks_waiters", "provider=\"p\"") == 1.0 {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    assert!(timeout(Duration::from_secs(20), one_waits).await.is_ok(), "others wait for nobody");
    issuer.release();
    assert!(http2::answered(&mut reading, 1).await);
}
