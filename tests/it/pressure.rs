//! The service under resource limits (file descriptors, memory, shutdown time) and under load from reloads and scrapes.

use std::sync::Arc;
use std::time::Duration;

use portcullis::commands::issuer::{Issuer, SigningAlgorithm, SigningKey};
use portcullis::config::Config;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::listeners::http2::{self, DATA, END_HEADERS, HEADERS, frame, preface};
use crate::support::real::{Portcullis, TIMEOUT, client, eventually};
use crate::support::{self, Ask, Running};

fn providers(issuer: &Issuer, refresh: &str) -> String {
    format!(
        "providers:
  - name: demo
    issuer: {}
    jwks_uri: {}
    audiences: [orders-api]
    refresh: {{interval: 1h{refresh}}}
",
        issuer.issuer(),
        issuer.jwks_uri()
    )
}

fn now() -> i64 {
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    i64::try_from(now).expect("a time of this age")
}

/// The status of the HTTP listener for this token.
async fn verdict(portcullis: &Portcullis, token: &str) -> u16 {
    let url = format!("http://{}/orders", portcullis.forward_auth);
    let answer = client().get(url).bearer_auth(token).send().await.expect("answered");
    answer.status().as_u16()
}

/// A Check of which only this beginning of the message is sent.
fn check(stream: u32, beginning: &[u8]) -> Vec<u8> {
    let headers = http2::call("/envoy.service.auth.v3.Authorization/Check");
    [frame(HEADERS, END_HEADERS, stream, &headers), frame(DATA, 0, stream, beginning)].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_leave_descriptors_for_the_admin_listener_key_fetches_and_active_clients() {
    let issuer = Issuer::start().await.expect("bound");
    let key = issuer.rotate(SigningAlgorithm::ES256);
    let portcullis = Portcullis::serve_with_ulimit("-n 80", &providers(&issuer, "")).await;
    portcullis.ready().await;
    assert_eq!(verdict(&portcullis, &key.sign(&issuer.claims(now()))).await, 200);
    let mut idle = Vec::new();
    for address in [portcullis.ext_authz, portcullis.forward_auth, portcullis.admin] {
        for _ in 0..200 {
            idle.push(TcpStream::connect(address).await.expect("the system accepts"));
        }
    }
    eventually("connections are refused", TIMEOUT, async || {
        let refused =
            portcullis.metric("portcullis_connections_refused_total", &[("door", "ext_authz")]).await;
        (refused > 0).then_some(())
    })
    .await;
    // A rotation needs a connection to the issuer, and its first token needs one to the listener.
    let key = issuer.rotate(SigningAlgorithm::ES256);
    let url = format!("http://{}/livez", portcullis.admin);
    eventually("the admin listener answers", TIMEOUT, async || {
        let answered = client().get(&url).send().await;
        answered.ok().filter(|answer| answer.status().is_success())
    })
    .await;
    let token = key.sign(&issuer.claims(now()));
    let first = eventually("the HTTP listener answers", TIMEOUT, async || {
        let url = format!("http://{}/orders", portcullis.forward_auth);
        client().get(url).bearer_auth(&token).send().await.ok().map(|answer| answer.status().as_u16())
    })
    .await;
    assert_eq!(first, 200, "the first token of a new key");
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_with_a_large_declared_length_use_memory_for_received_bytes_only() {
    let issuer = Issuer::start().await.expect("bound");
    issuer.rotate(SigningAlgorithm::ES256);
    let portcullis = Portcullis::serve(&providers(&issuer, "")).await;
    portcullis.ready().await;
    let before = ["VmSize", "VmRSS"].map(|name| portcullis.process.status(name));
    let mut connection = TcpStream::connect(portcullis.ext_authz).await.expect("it listens");
    let mut bytes = preface(&[]);
    let prefix = [&[0][..], &(15u32 << 20).to_be_bytes()].concat();
    for stream in (1..20_000).step_by(2) {
        bytes.extend(check(stream, &prefix));
    }
    connection.write_all(&bytes).await.expect("written");
    // A check on a later connection is answered without delay.
    let mut other = TcpStream::connect(portcullis.ext_authz).await.expect("it listens");
    let small = [preface(&[]), check(1, &[0; 5])].concat();
    other.write_all(&small).await.expect("written");
    assert!(http2::answered(&mut other, 1).await);
    let after = ["VmSize", "VmRSS"].map(|name| portcullis.process.status(name));
    let grown = [0, 1].map(|at| after[at].saturating_sub(before[at]) / 1024);
    assert!(grown[0] < 512 && grown[1] < 192, "address space and memory grew by {grown:?} MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_drain_immediately() {
    let issuer = Issuer::start().await.expect("bound");
    let key = issuer.rotate(SigningAlgorithm::ES256);
    let shutdown_config = format!(
        "{}shutdown: {{drain_delay: 0s, grace: 10m}}\n",
        providers(&issuer, ", wait: 1m, timeout: 1m")
    );
    let mut portcullis = Portcullis::serve(&shutdown_config).await;
    portcullis.ready().await;
    assert_eq!(verdict(&portcullis, &key.sign(&issuer.claims(now()))).await, 200);
    // The request is in flight for a minute, because the issuer does not answer.
    issuer.hold();
    let new = issuer.rotate(SigningAlgorithm::ES256);
    let waiting = {
        let (url, token) = (format!("http://{}/", portcullis.forward_auth), new.sign(&issuer.claims(now())));
        tokio::spawn(async move { client().get(url).bearer_auth(token).send().await })
    };
    issuer.wait_for_held(1).await;
    portcullis.process.terminate();
    eventually("the listener is closed", TIMEOUT, async || {
        TcpStream::connect(portcullis.forward_auth).await.is_err().then_some(())
    })
    .await;
    assert!(portcullis.process.exit_status().is_none(), "a request is in flight");
    portcullis.process.terminate();
    let status =
        eventually("the process exits", Duration::from_secs(10), async || portcullis.process.exit_status())
            .await;
    assert_eq!(status.code(), Some(1), "the drain was not finished");
    assert!(waiting.await.expect("no panic").is_err(), "the request was aborted");
}

/// Sends checks with a valid token on one connection without pause while `operation` runs.
async fn check_during(running: &Running, token: &str, operation: impl Future<Output = ()>) {
    tokio::pin!(operation);
    let mut allowed = 0;
    loop {
        tokio::select! {
            biased;
            () = &mut operation => break,
            answer = running.bearer(token) => {
                assert!(answer.is_allowed(), "after {allowed} checks");
                allowed += 1;
            }
        }
    }
    assert!(allowed > 0, "no check ran during the operation");
}

fn token(key: &SigningKey) -> String {
    key.sign(&serde_json::json!({
        "iss": "https://issuer.example.com", "aud": "orders-api", "sub": "alice", "exp": support::NOW + 600
    }))
}

fn key_and_config() -> (SigningKey, Config) {
    let key = SigningKey::generate("a", SigningAlgorithm::ES256);
    let provider = support::inline(support::provider("p", "https://issuer.example.com"), &[key.public_jwk()]);
    (key, support::config(vec![provider]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_of_ten_thousand_rules_loses_no_check() {
    let (key, config) = key_and_config();
    let running = Running::start(config.clone(), support::fixed_clock()).await;
    let keys = serde_json::json!({"keys": [key.public_jwk()]});
    let mut text = format!(
        "listen: {{ext_authz: 127.0.0.1:0}}
providers:
- {{name: p, issuer: 'https://issuer.example.com', any_audience: true, jwks: {keys}}}
rules:
"
    );
    for rule in 0..10_000 {
        text.push_str(&format!(
            "- {{name: r{rule}, match: {{path_prefix: /r{rule}}}, require: {{scopes: [s{rule}]}}}}\n"
        ));
    }
    let token = token(&key);
    let service = Arc::clone(running.shared_service());
    check_during(&running, &token, async {
        let read = tokio::task::spawn_blocking(move || Config::parse(&text, &|_| None));
        let many = read.await.expect("no panic").expect("it is valid");
        service.reload(&many).await.expect("applied");
    })
    .await;
    assert_eq!(service.authorizer().rules().all().len(), 10_000);
    let last =
        running.ask(Ask::default().path("/r9999/x").header("authorization", format!("Bearer {token}"))).await;
    assert!(!last.is_allowed(), "the last rule requires a scope");
}

#[tokio::test(flavor = "multi_thread")]
async fn scrapes_of_ten_thousand_realms_lose_no_check() {
    let (key, config) = key_and_config();
    let running = Running::start(config, support::fixed_clock()).await;
    let keys = portcullis::validation::key_set::KeySet::default();
    for realm in 0..10_000 {
        running.service().metrics().key_set(
            &format!("p/realm-{realm}"),
            &keys,
            1,
            Some(Duration::from_secs(9)),
        );
    }
    check_during(&running, &token(&key), async {
        for _ in 0..5 {
            let page = running.admin("/metrics").await;
            assert!(page.contains("provider=\"p/realm-9999\"") && page.ends_with("# EOF\n"));
        }
    })
    .await;
}
