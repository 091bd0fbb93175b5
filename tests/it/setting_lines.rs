//! Messages of a running service name settings by their path and their line in the file, also after a reload.

use portcullis::app::App;
use portcullis::clock::Clock;
use portcullis::config::{Config, Profile};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Ask, NOW, Running, fixed_clock, log};
use crate::transport::answer::Answer;
use crate::transport::env::{ISSUER, eventually, key};
use crate::transport::key_server::KeyServer;

/// A configuration whose key set and whose proxy are not there, with this text before it. Its first line is empty.
fn text(before: &str, jwks_uri: &str) -> String {
    format!(
        "
{before}listen:
  ext_authz: ['127.0.0.1:0', '127.0.0.1:0']
  forward_auth: {{address: '127.0.0.1:0', profile: nginx}}
  admin: 127.0.0.1:0
trusted_proxies: [192.0.2.0/24]
providers:
  - name: demo
    issuer: {ISSUER}
    jwks_uri: {jwks_uri}
    audiences: [orders]
    refresh: {{min_spacing: 10ms, timeout: 1s}}
  - name: realms
    issuer: https://sso.example.com/{{realm}}
    realms: [a]
    jwks_uri: {jwks_uri}/{{realm}}
    audiences: [orders]
"
    )
}

fn parse(text: &str) -> Config {
    Config::parse(text, &|_| None).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The one line with this message.
async fn line(message: &str) -> String {
    let mut lines = Vec::new();
    eventually("a line", async || {
        lines = log::lines(message);
        !lines.is_empty()
    })
    .await;
    assert_eq!(lines.len(), 1, "{lines:#?}");
    lines.remove(0)
}

async fn send(address: std::net::SocketAddr, bytes: &[u8]) {
    let mut connection = TcpStream::connect(address).await.expect("connected");
    connection.write_all(bytes).await.expect("sent");
    let _closed = connection.read_to_end(&mut Vec::new()).await;
}

#[tokio::test]
async fn a_line_of_the_log_names_the_setting_that_it_is_about_with_its_line() {
    const ASK: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    // Nobody listens there.
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("an address");
    let keys = format!("http://{closed}/keys");
    log::capture();
    let service = Running::start_without_keys(parse(&text("", &keys)), fixed_clock()).await;
    let failed = line("key set refresh failed").await;
    assert!(failed.contains("setting=\"providers[0].jwks_uri (line 10)\""), "{failed}");

    send(service.http_door(Profile::Nginx), ASK).await;
    let untrusted = line("untrusted peer denied").await;
    assert!(untrusted.contains("add it to trusted_proxies (line 6) if it is your proxy"), "{untrusted}");

    // Of a later configuration.
    log::capture();
    service.service().reload(&parse(&text("# one\n# two\n", &keys))).await.expect("reloaded");
    send(service.grpc_address(), ASK).await;
    let wrong = line("request at the wrong listener").await;
    for part in ["listen.ext_authz (line 5) serves Envoy's gRPC alone", "listen.forward_auth (line 6)"] {
        assert!(wrong.contains(part), "{wrong}");
    }
}

#[tokio::test]
async fn an_address_that_cannot_be_bound_is_named_by_the_line_of_its_listener() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = taken.local_addr().expect("an address").to_string();
    let text = text("", "https://sso.example.com/keys")
        .replace("['127.0.0.1:0', '127.0.0.1:0']", &format!("\n    - 127.0.0.1:0\n    - {address}"));
    let error = App::bind(parse(&text), Clock::System).await.expect_err("it is in use").to_string();
    assert!(error.starts_with(&format!("listen.ext_authz[1] (line 5): {address}: ")), "{error}");
}

#[tokio::test]
async fn a_provider_that_keeps_its_previous_configuration_has_no_line_of_the_new_file() {
    let (server, known) = (KeyServer::start().await, key("known"));
    server.respond_with(Answer::keys(&[&known]));
    let of = |keys: &str, audience: &str| {
        let text = text("", keys).replace("audiences: [orders]", &format!("audiences: [{audience}]"));
        parse(text.split("  - name: realms").next().expect("the first provider"))
    };
    let service = Running::start(of(&server.http("/keys"), "old"), fixed_clock()).await;
    // Nobody listens there.
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("an address");
    let kept =
        service.service().reload(&of(&format!("http://{closed}/keys"), "new")).await.expect("reloaded");
    assert_eq!(kept.len(), 1);
    let claims = json!({"iss": ISSUER, "aud": "new", "exp": NOW + 60});
    let answer = service.bearer(&known.sign(&claims)).await;
    let refused = service.admin(&format!("/decisions/{}", answer.metadata["decision_id"])).await;
    let advice = serde_json::from_str::<Value>(&refused).expect("JSON")["advice"].to_string();
    let expected = "`audiences` of the provider `demo`, which still runs with its previous configuration";
    assert!(advice.contains(expected) && !advice.contains("line"), "{advice}");
}

#[tokio::test]
async fn a_check_that_is_too_large_names_the_limit_with_its_line() {
    let limits = "limits:\n  message_bytes: 64KiB\n";
    let service =
        Running::start_without_keys(parse(&text(limits, "https://sso.example.com/keys")), fixed_clock())
            .await;
    let answer = service.ask(Ask::default().header("x-large", "x".repeat(100_000))).await;
    assert_eq!(answer.reason(), "request_malformed");
    let page = service.admin(&format!("/decisions/{}", answer.metadata["decision_id"])).await;
    assert!(page.contains("raise limits.message_bytes (line 3)"), "{page}");
}
