//! What a connection does that its doors and clients cannot see in a test of the whole service.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::client::{self, ResponseFuture, SendRequest};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio::io::duplex;
use tokio::sync::{Notify, mpsc};
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::server::respond::Responder;
use crate::server::state::ConnectionState;
use crate::server::stream::MonitoredStream;
use crate::server::{Door, Peer, RequestBody};
use crate::service::Service;

/// Longer than any test.
const LONG: Duration = Duration::from_secs(60);

/// The size of a large response, and the window of a client that receives little at a time.
const LARGE: usize = 100_000;
const SMALL_WINDOW: u32 = 1000;

/// The default window (RFC 9113 §6.9.2).
const DEFAULT_WINDOW: u32 = 65_535;

/// A door whose response depends on the path.
struct TestDoor {
    /// Reports the start and the end of each request that waits.
    waiting: mpsc::UnboundedSender<&'static str>,
    release: Arc<Notify>,
}

struct ReportEnd(mpsc::UnboundedSender<&'static str>);

impl Drop for ReportEnd {
    fn drop(&mut self) {
        let _test_ended = self.0.send("end");
    }
}

impl Door for TestDoor {
    type Body = Full<Bytes>;

    fn name(&self) -> &'static str {
        "test"
    }

    fn service(&self) -> &Service {
        panic!("no connection needs it")
    }

    async fn answer(&self, request: Request<RequestBody>, _peer: Peer) -> Response<Full<Bytes>> {
        match request.uri().path() {
            "/panic" => panic!("in the first poll"),
            "/late-panic" => {
                yield_now().await;
                panic!("in a later poll")
            }
            "/wait" => {
                let _end = ReportEnd(self.waiting.clone());
                let _test_ended = self.waiting.send("start");
                self.release.notified().await;
            }
            "/large" => return Response::new(Full::from(vec![7; LARGE])),
            _ => {}
        }
        Response::new(Full::default())
    }
}

/// A client of a connection with this door.
struct Client {
    requests: SendRequest<Bytes>,
    state: Arc<ConnectionState>,
    waiting: mpsc::UnboundedReceiver<&'static str>,
    release: Arc<Notify>,
}

impl Client {
    /// A client whose streams have this window.
    async fn connect(window: u32) -> Self {
        let (sender, waiting) = mpsc::unbounded_channel();
        let release = Arc::new(Notify::new());
        let state = Arc::new(ConnectionState::new(Arc::default()));
        let (near, far) = duplex(64 * 1024);
        let peer = Peer { address: None, connection: 0 };
        let door = Arc::new(TestDoor { waiting: sender, release: Arc::clone(&release) });
        let responder = Responder::new(door, peer, Arc::clone(&state));
        let connection = super::connection(responder, MonitoredStream::new(far, Arc::clone(&state)));
        tokio::spawn({
            let state = Arc::clone(&state);
            async move {
                let mut connection = pin!(connection);
                // As in the loop of a connection.
                poll_fn(|cx| {
                    let polled = connection.as_mut().poll(cx);
                    if state.resume() {
                        cx.waker().wake_by_ref();
                    }
                    polled
                })
                .await
            }
        });
        let (requests, connection) =
            client::Builder::new().initial_window_size(window).handshake(near).await.expect("a handshake");
        tokio::spawn(connection);
        Self { requests, state, waiting, release }
    }

    /// Sends a request without a body.
    async fn send(&mut self, path: &str) -> ResponseFuture {
        let request = Request::get(format!("http://localhost{path}")).body(()).expect("a request");
        poll_fn(|cx| self.requests.poll_ready(cx)).await.expect("it is open");
        self.requests.send_request(request, true).expect("sent").0
    }

    /// The status of the response, or why the stream was reset.
    async fn status(&mut self, path: &str) -> Result<StatusCode, Option<Reason>> {
        let response = timeout(LONG, self.send(path).await).await.expect("in time");
        response.map(|response| response.status()).map_err(|error| error.reason())
    }

    async fn until_idle(&self) {
        let idle = async {
            while self.state.is_busy() {
                yield_now().await;
            }
        };
        timeout(LONG, idle).await.expect("in time");
    }
}

#[tokio::test]
async fn a_panic_resets_its_own_stream_only() {
    let mut client = Client::connect(DEFAULT_WINDOW).await;
    let waiting = client.send("/wait").await;
    assert_eq!(client.waiting.recv().await, Some("start"));
    for path in ["/panic", "/late-panic"] {
        assert_eq!(client.status(path).await, Err(Some(Reason::INTERNAL_ERROR)), "{path}");
        assert_eq!(client.status("/").await, Ok(StatusCode::OK), "after {path}");
    }
    client.release.notify_one();
    assert_eq!(waiting.await.expect("answered").status(), StatusCode::OK);
    client.until_idle().await;
}

#[tokio::test]
async fn a_cancelled_request_is_dropped_while_it_waits() {
    let mut client = Client::connect(DEFAULT_WINDOW).await;
    let cancelled = client.send("/wait").await;
    assert_eq!(client.waiting.recv().await, Some("start"));
    assert_eq!(client.status("/").await, Ok(StatusCode::OK), "others are answered meanwhile");
    assert!(client.state.is_busy());
    drop(cancelled);
    assert_eq!(timeout(LONG, client.waiting.recv()).await, Ok(Some("end")));
    client.until_idle().await;
}

#[tokio::test]
async fn a_request_that_waits_ends_with_its_connection() {
    let mut client = Client::connect(DEFAULT_WINDOW).await;
    let (_first, _second) = (client.send("/wait").await, client.send("/wait").await);
    for _ in 0..2 {
        assert_eq!(client.waiting.recv().await, Some("start"));
    }
    let Client { requests, mut waiting, .. } = client;
    drop((requests, _first, _second));
    for _ in 0..2 {
        assert_eq!(timeout(LONG, waiting.recv()).await, Ok(Some("end")));
    }
}

#[tokio::test]
async fn a_response_larger_than_the_window_is_held_back_until_the_client_reads() {
    let mut client = Client::connect(SMALL_WINDOW).await;
    let response = client.send("/large").await.await.expect("answered");
    for _ in 0..100 {
        assert_eq!(client.status("/").await, Ok(StatusCode::OK));
    }
    assert!(client.state.is_busy(), "it is not buffered");
    let mut body = response.into_body();
    let (mut received, mut largest) = (0, 0);
    while let Some(data) = timeout(LONG, body.data()).await.expect("in time") {
        let data = data.expect("the stream is open");
        assert!(data.iter().all(|byte| *byte == 7));
        received += data.len();
        largest = largest.max(data.len());
        body.flow_control().release_capacity(data.len()).expect("received");
    }
    assert_eq!(received, LARGE);
    assert!(largest <= SMALL_WINDOW as usize);
    client.until_idle().await;
}

#[tokio::test]
async fn a_response_that_is_held_back_is_dropped_when_the_client_cancels_it() {
    let mut client = Client::connect(SMALL_WINDOW).await;
    let response = client.send("/large").await.await.expect("answered");
    assert_eq!(client.status("/").await, Ok(StatusCode::OK));
    assert!(client.state.is_busy());
    drop(response);
    client.until_idle().await;
}

#[tokio::test]
async fn requests_beyond_what_is_answered_inline_are_answered() {
    let mut client = Client::connect(DEFAULT_WINDOW).await;
    let mut responses = Vec::new();
    for _ in 0..1000 {
        responses.push(client.send("/").await);
    }
    for response in responses {
        let response = timeout(LONG, response).await.expect("in time");
        assert_eq!(response.expect("answered").status(), StatusCode::OK);
    }
    client.until_idle().await;
}
