//! An OpenID Connect issuer in this process: it signs tokens, publishes and rotates its keys, counts the requests for
//! them, and fails on request. `demo`, `drill` and the tests use it.
//!
//! `serve` must not use it, and it must not share code with `validation`, which it tests. It reads no clock: the time
//! of the claims is an argument.
//!
//! ```no_run
//! # use portcullis_issuer::{Issuer, SigningAlgorithm};
//! # async fn example() -> std::io::Result<()> {
//! let issuer = Issuer::start().await?;
//! let key = issuer.rotate(SigningAlgorithm::ES256);
//! let token = key.sign(&issuer.claims(1_700_000_000));
//! println!("curl {} # then: Authorization: Bearer {token}", issuer.jwks_uri());
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod server;
mod signing_key;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use tokio::sync::Mutex;

pub use server::Fault;
use server::{REALM_PATH, Released, Server, State};
pub use signing_key::{SigningAlgorithm, SigningKey};

/// A running issuer. Clones are handles to the same one; it stops with the last.
#[derive(Clone)]
pub struct Issuer {
    shared: Arc<Shared>,
}

struct Shared {
    state: Arc<State>,
    server: Mutex<Server>,
    address: SocketAddr,
    rotations: AtomicU64,
}

impl Issuer {
    /// Starts on a free port of the loopback interface, with an empty key set. Needs a tokio runtime.
    pub async fn start() -> io::Result<Self> {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// Starts at this address, which is also the one in its issuer identifier.
    pub async fn start_at(address: SocketAddr) -> io::Result<Self> {
        let (mut server, listener) = Server::bind(address).await?;
        let address = server.address();
        let state = Arc::new(State::new(format!("http://{address}{REALM_PATH}")));
        server.run(listener, Arc::clone(&state));
        Ok(Self {
            shared: Arc::new(Shared {
                state,
                server: Mutex::new(server),
                address,
                rotations: AtomicU64::new(0),
            }),
        })
    }

    /// The issuer identifier, the value of `iss`: `http://127.0.0.1:PORT/realms/demo`.
    pub fn issuer(&self) -> &str {
        self.shared.state.issuer()
    }

    /// The URL of the key set.
    pub fn jwks_uri(&self) -> String {
        self.shared.state.jwks_uri()
    }

    /// The URL of the discovery document.
    pub fn discovery_uri(&self) -> String {
        self.shared.state.discovery_uri()
    }

    /// The address that it listens on, or did before [`Issuer::stop`].
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Stops: when this returns, every connection is closed and new ones are refused. The rest (published keys,
    /// counts, fault) is unchanged, and the port stays reserved.
    pub async fn stop(&self) {
        self.shared.server.lock().await.stop().await;
    }

    /// Starts again on the same port, after stopping if it is running.
    pub async fn restart(&self) -> io::Result<()> {
        let state = Arc::clone(&self.shared.state);
        self.shared.server.lock().await.restart(state).await
    }

    /// Publishes these keys instead of the previous ones.
    pub fn publish(&self, keys: &[&SigningKey]) {
        let keys: Vec<Value> = keys.iter().map(|key| key.public_jwk()).collect();
        self.publish_json(json!({ "keys": keys }));
    }

    /// Publishes any JSON as the key set.
    pub fn publish_json(&self, document: Value) {
        self.shared.state.settings().published = document;
    }

    /// The published key set.
    pub fn published(&self) -> Value {
        self.shared.state.settings().published.clone()
    }

    /// Generates a key and publishes it instead of all others. Its `kid` is `key-1`, `key-2`, … and is never reused.
    /// An RSA key takes CPU time on this thread, see [`SigningKey::generate`].
    pub fn rotate(&self, algorithm: SigningAlgorithm) -> SigningKey {
        let key = self.generate_key(algorithm);
        self.publish(&[&key]);
        key
    }

    /// Generates a key and publishes it before the published ones.
    pub fn rotate_beside(&self, algorithm: SigningAlgorithm) -> SigningKey {
        let key = self.generate_key(algorithm);
        let mut settings = self.shared.state.settings();
        let mut keys = vec![key.public_jwk()];
        if let Some(Value::Array(old)) = settings.published.get_mut("keys") {
            keys.append(old);
        }
        settings.published = json!({ "keys": keys });
        drop(settings);
        key
    }

    /// Removes every key with this `kid` from the published set.
    pub fn withdraw(&self, kid: &str) {
        let mut settings = self.shared.state.settings();
        if let Some(Value::Array(keys)) = settings.published.get_mut("keys") {
            keys.retain(|key| key["kid"] != kid);
        }
    }

    fn generate_key(&self, algorithm: SigningAlgorithm) -> SigningKey {
        let number = self.shared.rotations.fetch_add(1, Ordering::Relaxed) + 1;
        SigningKey::generate(format!("key-{number}").as_str(), algorithm)
    }

    /// Sets the `cache-control` header of both documents; none initially.
    pub fn set_cache_control(&self, value: Option<&str>) {
        self.shared.state.settings().cache_control = value.map(str::to_owned);
    }

    /// Sets or clears a fault of the key endpoint, for requests that arrive from now on.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.shared.state.settings().key_fault = fault;
    }

    /// Sets or clears a fault of the discovery endpoint, for requests that arrive from now on.
    pub fn set_discovery_fault(&self, fault: Option<Fault>) {
        self.shared.state.settings().discovery_fault = fault;
    }

    /// How many requests for the key set have arrived, answered or not.
    pub fn key_fetches(&self) -> u64 {
        self.shared.state.counts().keys
    }

    /// How many requests for the discovery document have arrived, answered or not.
    pub fn discovery_fetches(&self) -> u64 {
        self.shared.state.counts().discovery
    }

    /// The paths of the last 1024 requests, those answered 404 included, oldest first.
    pub fn requests(&self) -> Vec<String> {
        self.shared.state.requests()
    }

    /// Waits until `count` requests for the key set have arrived since the start.
    pub async fn wait_for_fetches(&self, count: u64) {
        let state = &self.shared.state;
        state.wait_until(|counts| counts.keys >= count).await;
    }

    /// Holds each request for the key set from now on until it is released. It is answered with the key set, and the
    /// fault, at the time of its arrival.
    pub fn hold(&self) {
        self.shared.state.settings().holding = true;
    }

    /// Waits until `count` requests are held. A request is no longer held when its client disconnects.
    pub async fn wait_for_held(&self, count: usize) {
        let state = &self.shared.state;
        state.wait_until(|counts| counts.held >= count).await;
    }

    /// How many requests are held.
    pub fn held(&self) -> usize {
        self.shared.state.counts().held
    }

    /// Answers all held requests and stops holding; returns how many there were.
    pub fn release(&self) -> usize {
        self.release_all(Released::AsArrived)
    }

    /// As [`Issuer::release`], but with the key set that is published now.
    pub fn release_with_current(&self) -> usize {
        self.release_all(Released::Current)
    }

    /// Answers the request that has been held longest and continues holding; false if there was none.
    pub fn release_one(&self) -> bool {
        let state = &self.shared.state;
        state.release(&mut state.settings(), 1, Released::AsArrived) == 1
    }

    fn release_all(&self, released: Released) -> usize {
        let state = &self.shared.state;
        let mut settings = state.settings();
        settings.holding = false;
        state.release(&mut settings, usize::MAX, released)
    }

    /// The claims of a valid token: this issuer, `sub` "alice", `aud` "orders-api", `tenant_id` "acme", issued now
    /// and valid for 300 seconds.
    pub fn claims(&self, now_unix: i64) -> Value {
        json!({
            "iss": self.issuer(),
            "sub": "alice",
            "aud": "orders-api",
            "iat": now_unix,
            "exp": now_unix.saturating_add(300),
            "tenant_id": "acme",
        })
    }
}

/// Sets a claim: `claim` is a member's name, or with a leading slash a JSON Pointer (RFC 6901) through objects, which
/// are created if missing.
pub fn with_claim(mut claims: Value, claim: &str, value: impl Into<Value>) -> Value {
    let mut target = &mut claims;
    for name in path(claim) {
        if !target.is_object() {
            *target = json!({});
        }
        target = &mut target[name];
    }
    *target = value.into();
    claims
}

/// Removes a claim, named as for [`with_claim`].
pub fn without_claim(mut claims: Value, claim: &str) -> Value {
    let mut names = path(claim);
    let last = names.pop();
    let parent = names.into_iter().try_fold(&mut claims, |target, name| target.get_mut(name));
    if let (Some(Value::Object(members)), Some(last)) = (parent, last) {
        members.remove(&last);
    }
    claims
}

fn path(claim: &str) -> Vec<String> {
    match claim.strip_prefix('/') {
        None => vec![claim.to_owned()],
        Some(pointer) => pointer.split('/').map(|name| name.replace("~1", "/").replace("~0", "~")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn send_request(issuer: &Issuer, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(issuer.address()).await.expect("is up");
        let request = format!("GET {path} HTTP/1.1\r\nhost: issuer\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("is listening");
        stream
    }

    async fn read(mut stream: TcpStream) -> String {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("ends in order");
        String::from_utf8(answer).expect("is text")
    }

    async fn get(issuer: &Issuer, path: &str) -> String {
        read(send_request(issuer, path).await).await
    }

    async fn keys(issuer: &Issuer) -> String {
        get(issuer, "/realms/demo/keys").await
    }

    fn json_body(answer: &str) -> Value {
        let (_, body) = answer.split_once("\r\n\r\n").expect("head and body");
        serde_json::from_str(body).expect("JSON")
    }

    #[tokio::test]
    async fn serves_both_documents_and_counts() {
        let issuer = Issuer::start().await.expect("binds");
        let key = issuer.rotate(SigningAlgorithm::ES256);
        issuer.set_cache_control(Some("max-age=60"));
        let discovery = json_body(&get(&issuer, "/realms/demo/.well-known/openid-configuration").await);
        assert_eq!(discovery["issuer"], issuer.issuer());
        assert_eq!(discovery["jwks_uri"], issuer.jwks_uri());
        assert!(issuer.jwks_uri().ends_with("/realms/demo/keys"));
        let answer = keys(&issuer).await;
        assert!(answer.contains("cache-control: max-age=60\r\n"));
        assert_eq!(json_body(&answer), json!({"keys": [key.public_jwk()]}));
        assert!(get(&issuer, "/other?x").await.starts_with("HTTP/1.1 404 "));
        assert_eq!((issuer.key_fetches(), issuer.discovery_fetches()), (1, 1));
        issuer.wait_for_fetches(1).await;
        assert_eq!(
            issuer.requests(),
            ["/realms/demo/.well-known/openid-configuration", "/realms/demo/keys", "/other"]
        );
    }

    #[tokio::test]
    async fn rotation_replaces_adds_and_withdraws() {
        let issuer = Issuer::start().await.expect("binds");
        let kids = || -> Vec<String> {
            let published = issuer.published();
            let keys = published["keys"].as_array().expect("keys").iter();
            keys.map(|key| key["kid"].as_str().expect("kid").to_owned()).collect()
        };
        issuer.rotate(SigningAlgorithm::EdDSA);
        issuer.rotate(SigningAlgorithm::EdDSA);
        assert_eq!(kids(), ["key-2"]);
        issuer.rotate_beside(SigningAlgorithm::ES384);
        assert_eq!(kids(), ["key-3", "key-2"]);
        issuer.withdraw("key-2");
        assert_eq!(kids(), ["key-3"]);
    }

    #[tokio::test]
    async fn a_held_answer_is_what_was_published_on_arrival_and_the_oldest_is_released_first() {
        let issuer = Issuer::start().await.expect("binds");
        let first = issuer.rotate(SigningAlgorithm::EdDSA);
        issuer.hold();
        let held_first = send_request(&issuer, "/realms/demo/keys").await;
        issuer.wait_for_held(1).await;
        let second = issuer.rotate(SigningAlgorithm::EdDSA);
        let held_second = send_request(&issuer, "/realms/demo/keys").await;
        issuer.wait_for_held(2).await;
        let third = issuer.rotate(SigningAlgorithm::EdDSA);
        assert_eq!(issuer.key_fetches(), 2);

        assert!(issuer.release_one());
        let answer = json_body(&read(held_first).await);
        assert_eq!(answer["keys"][0], first.public_jwk());
        assert_eq!(issuer.held(), 1, "the second is still held");
        assert!(issuer.release_one());
        let answer = json_body(&read(held_second).await);
        assert_eq!(answer["keys"][0], second.public_jwk());
        assert!(!issuer.release_one());

        let held_third = send_request(&issuer, "/realms/demo/keys").await;
        issuer.wait_for_held(1).await;
        issuer.withdraw(third.kid().expect("has a kid"));
        assert_eq!(issuer.release_with_current(), 1);
        assert_eq!(json_body(&read(held_third).await), json!({"keys": []}));
        assert!(keys(&issuer).await.starts_with("HTTP/1.1 200 "), "no hold");
    }

    #[tokio::test]
    async fn a_request_is_no_longer_held_when_its_client_disconnects() {
        let issuer = Issuer::start().await.expect("binds");
        issuer.hold();
        let held = send_request(&issuer, "/realms/demo/keys").await;
        issuer.wait_for_held(1).await;
        drop(held);
        let state = &issuer.shared.state;
        state.wait_until(|counts| counts.held == 0).await;
        assert_eq!(issuer.release(), 0);
    }

    #[tokio::test]
    async fn half_a_body_arrives_and_then_the_connection_closes() {
        let issuer = Issuer::start().await.expect("binds");
        issuer.rotate(SigningAlgorithm::EdDSA);
        let complete = issuer.published().to_string();
        issuer.set_fault(Some(Fault::HalfBody));
        let answer = keys(&issuer).await;
        assert!(answer.contains(&format!("content-length: {}\r\n", complete.len())));
        let (_, body) = answer.split_once("\r\n\r\n").expect("head and body");
        assert_eq!(body, complete.split_at(complete.len() / 2).0);

        issuer.set_fault(Some(Fault::StalledBody));
        let mut stream = send_request(&issuer, "/realms/demo/keys").await;
        let mut answer = Vec::new();
        while !answer.ends_with(&complete.as_bytes()[..complete.len() / 2]) {
            assert_ne!(stream.read_buf(&mut answer).await.expect("open"), 0);
        }
        issuer.stop().await;
        let end = stream.read_buf(&mut answer).await;
        assert!(matches!(end, Ok(0) | Err(_)), "open until the server stops");
    }

    #[tokio::test]
    async fn every_fault_answers_as_documented_until_it_is_cleared() {
        let issuer = Issuer::start().await.expect("binds");
        issuer.rotate(SigningAlgorithm::EdDSA);
        let fault = async |fault| {
            issuer.set_fault(Some(fault));
            keys(&issuer).await
        };
        let status = fault(Fault::Status(503)).await;
        assert!(status.starts_with("HTTP/1.1 503 "));
        let none = fault(Fault::Status(7)).await;
        assert!(none.starts_with("HTTP/1.1 500 "));
        let html = fault(Fault::Html).await;
        assert!(html.contains("content-type: text/html") && html.contains("<!doctype html>"));
        let empty_set = fault(Fault::EmptySet).await;
        assert_eq!(json_body(&empty_set), json!({"keys": []}));
        let empty_body = fault(Fault::EmptyBody).await;
        assert!(empty_body.starts_with("HTTP/1.1 200 ") && empty_body.ends_with("\r\n\r\n"));
        let slow = fault(Fault::Slow(Duration::from_millis(1))).await;
        assert_eq!(json_body(&slow), issuer.published());
        assert_eq!(fault(Fault::DropConnection).await, "");
        let redirect = fault(Fault::Redirect("http://elsewhere/".into())).await;
        assert!(redirect.starts_with("HTTP/1.1 302 "));
        assert!(redirect.contains("location: http://elsewhere/\r\n"));
        let raw = fault(Fault::Raw { status: 201, content_type: "x/y".into(), body: b"[".to_vec() }).await;
        assert!(raw.starts_with("HTTP/1.1 201 ") && raw.ends_with("\r\n\r\n["));
        let huge = fault(Fault::Huge(1_000_000)).await;
        assert!(huge.contains("transfer-encoding: chunked"));
        assert!(huge.len() > 1_000_000);
        assert_eq!(huge.matches(' ').count() / 100_000, 9, "spaces up to size");

        issuer.set_fault(Some(Fault::Hang));
        let fetches = issuer.key_fetches();
        let hanging = send_request(&issuer, "/realms/demo/keys").await;
        issuer.wait_for_fetches(fetches + 1).await;
        issuer.set_fault(None);
        assert_eq!(json_body(&keys(&issuer).await), issuer.published());
        drop(hanging);

        issuer.set_discovery_fault(Some(Fault::Status(404)));
        assert!(keys(&issuer).await.starts_with("HTTP/1.1 200 "));
        let path = "/realms/demo/.well-known/openid-configuration";
        assert!(get(&issuer, path).await.starts_with("HTTP/1.1 404 "));
    }

    #[tokio::test]
    async fn a_stopped_issuer_refuses_connections_and_restarts_at_the_same_address() {
        let issuer = Issuer::start().await.expect("binds");
        let key = issuer.rotate(SigningAlgorithm::EdDSA);
        let mut idle = TcpStream::connect(issuer.address()).await.expect("is up");
        for _ in 0..3 {
            issuer.stop().await;
            issuer.stop().await;
            let refused = TcpStream::connect(issuer.address()).await;
            assert_eq!(refused.expect_err("is down").kind(), io::ErrorKind::ConnectionRefused);
            issuer.restart().await.expect("the port is ours");
            let answer = json_body(&keys(&issuer).await);
            assert_eq!(answer["keys"][0], key.public_jwk());
        }
        let end = idle.read(&mut [0]).await;
        assert!(matches!(end, Ok(0) | Err(_)), "no connection outlives stop");
        let address = issuer.address();
        let handle = issuer.clone();
        drop(issuer);
        assert!(keys(&handle).await.starts_with("HTTP/1.1 200 "));
        drop(handle);
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn claims_are_set_and_removed_by_name_or_pointer() {
        let claims = json!({"aud": "orders-api", "a.b": 1});
        let claims = with_claim(claims, "/realm_access/roles", json!(["admin"]));
        let claims = with_claim(claims, "a/b", true);
        let claims = with_claim(claims, "/x~1y", 1);
        assert_eq!(
            claims,
            json!({
                "aud": "orders-api", "a.b": 1, "a/b": true, "x/y": 1,
                "realm_access": {"roles": ["admin"]}
            })
        );
        let claims = without_claim(claims, "a.b");
        let claims = without_claim(claims, "/realm_access/roles");
        let claims = without_claim(claims, "/not/there");
        assert_eq!(claims, json!({"aud": "orders-api", "a/b": true, "x/y": 1, "realm_access": {}}));
    }
}
