//! The service: health, reflection, sockets, TLS, reload, drain, and the process of `portcullis serve`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::pki::Pki;
use crate::support::ports::free_port;
use crate::support::serving::Serving;
use crate::support::subprocess::StartCommand;
use crate::support::{
    self, Answer, Ask, Running, config, fetching, fixed_clock, inline, prompt_refresh, provider, raw,
    with_http_doors,
};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use portcullis::app::App;
use portcullis::commands::issuer::{Issuer, SigningAlgorithm, SigningKey};
use portcullis::config::{BindAddress, Config, RefreshPolicy, Shutdown, TlsFiles};
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio_stream::StreamExt;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

const TEST_TIMEOUT: Duration = Duration::from_secs(20);

fn key() -> SigningKey {
    SigningKey::generate("a", SigningAlgorithm::ES256)
}

/// A configuration with one inline key.
fn simple(key: &SigningKey) -> Config {
    config(vec![inline(provider("p", "https://issuer.example.com"), &[key.public_jwk()])])
}

fn token(key: &SigningKey) -> String {
    key.sign(&json!({"iss": "https://issuer.example.com", "aud": "orders-api", "sub": "alice", "exp": support::NOW + 60}))
}

async fn connect(app: &App) -> Channel {
    let address = app.ext_authz_address().expect("TCP");
    Endpoint::try_from(format!("http://{address}")).expect("a URL").connect().await.expect("listening")
}

async fn health(channel: &Channel, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.to_owned() };
    HealthClient::new(channel.clone()).check(request).await.expect("answered").into_inner().status()
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, wait).await.unwrap_or_else(|_| panic!("timeout: {what}"));
}

#[tokio::test]
async fn health_is_not_serving_before_the_keys_and_during_a_drain_and_requests_in_flight_are_answered() {
    let issuer = Issuer::start().await.expect("bound");
    let key = issuer.rotate(SigningAlgorithm::ES256);
    issuer.hold();
    let mut config = config(vec![fetching(provider("p", issuer.issuer()), &issuer, prompt_refresh())]);
    config.shutdown = Shutdown { drain_delay: Duration::from_millis(300), grace: Duration::from_secs(10) };
    let app = App::bind(config, fixed_clock()).await.expect("bound");
    let channel = connect_later(&app);
    let (shutdown, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(app.serve(async move {
        let _stopped = stopped.await;
    }));
    let channel = channel.await;
    let names = ["", "envoy.service.auth.v3.Authorization"];
    issuer.wait_for_held(1).await;
    for name in names {
        assert_eq!(health(&channel, name).await, ServingStatus::NotServing);
    }
    issuer.release();
    for name in names {
        eventually("serving", async || health(&channel, name).await == ServingStatus::Serving).await;
    }

    // A request that waits for a new key is in flight at shutdown.
    issuer.hold();
    let new = issuer.rotate(SigningAlgorithm::ES256);
    let check =
        Ask::default().header("authorization", format!("Bearer {}", new.sign(&issuer.claims(support::NOW))));
    let in_flight = tokio::spawn({
        let mut client = AuthorizationClient::new(channel.clone());
        async move { client.check(check.into_check()).await }
    });
    issuer.wait_for_held(1).await;
    shutdown.send(()).expect("listening");
    for name in names {
        eventually("draining", async || health(&channel, name).await == ServingStatus::NotServing).await;
    }
    // After the delay connections get a GOAWAY, with the request still open.
    tokio::time::sleep(Duration::from_millis(400)).await;
    issuer.release();
    let answer = in_flight.await.expect("no panic").expect("answered").into_inner();
    assert!(Answer::read(answer).is_allowed());
    tokio::time::timeout(TEST_TIMEOUT, serving).await.expect("stopped").expect("no panic");
    drop(key);
}

/// Connects once the service accepts.
fn connect_later(app: &App) -> impl Future<Output = Channel> + use<> {
    let address = app.ext_authz_address().expect("TCP");
    async move {
        Endpoint::try_from(format!("http://{address}")).expect("a URL").connect().await.expect("listening")
    }
}

#[tokio::test]
async fn requests_that_never_end_are_aborted_after_the_grace_period() {
    let issuer = Issuer::start().await.expect("bound");
    issuer.rotate(SigningAlgorithm::ES256);
    let long_timeouts =
        RefreshPolicy { wait: TEST_TIMEOUT * 10, timeout: TEST_TIMEOUT * 10, ..prompt_refresh() };
    let mut config = config(vec![fetching(provider("p", issuer.issuer()), &issuer, long_timeouts)]);
    config.shutdown = Shutdown { drain_delay: Duration::ZERO, grace: Duration::from_millis(100) };
    let app = App::bind(config, fixed_clock()).await.expect("bound");
    let channel = connect_later(&app);
    let service = app.service();
    let (shutdown, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(app.serve(async move {
        let _stopped = stopped.await;
    }));
    let channel = channel.await;
    eventually("keys", async || service.is_serving()).await;
    issuer.hold();
    let new = issuer.rotate(SigningAlgorithm::ES256);
    let check =
        Ask::default().header("authorization", format!("Bearer {}", new.sign(&issuer.claims(support::NOW))));
    let in_flight =
        tokio::spawn(async move { AuthorizationClient::new(channel).check(check.into_check()).await });
    issuer.wait_for_held(1).await;
    shutdown.send(()).expect("listening");
    tokio::time::timeout(TEST_TIMEOUT, serving).await.expect("stopped").expect("no panic");
    assert!(in_flight.await.expect("no panic").is_err());
}

#[tokio::test]
async fn reflection_serves_the_descriptors_of_envoy() {
    let app = App::bind(simple(&key()), fixed_clock()).await.expect("bound");
    let channel = connect_later(&app);
    tokio::spawn(app.serve(std::future::pending()));
    let mut client = ServerReflectionClient::new(channel.await);
    let ask = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let requests = tokio_stream::iter([
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("envoy.service.auth.v3.AttributeContext".to_owned())),
    ]);
    let mut answers = client.server_reflection_info(requests).await.expect("answered").into_inner();
    let mut next =
        async || answers.next().await.expect("an answer").expect("no error").message_response.expect("set");
    let MessageResponse::ListServicesResponse(services) = next().await else { panic!("not a list") };
    let names: Vec<_> = services.service.iter().map(|service| service.name.as_str()).collect();
    assert!(
        names.contains(&"envoy.service.auth.v3.Authorization") && names.contains(&"grpc.health.v1.Health"),
        "{names:?}"
    );
    let MessageResponse::FileDescriptorResponse(files) = next().await else { panic!("not a descriptor") };
    let file = <prost_types::FileDescriptorProto as prost::Message>::decode(
        files.file_descriptor_proto[0].as_slice(),
    );
    let context = file
        .expect("a descriptor")
        .message_type
        .into_iter()
        .find(|m| m.name() == "AttributeContext")
        .expect("there");
    let http = context.nested_type.iter().find(|message| message.name() == "HttpRequest").expect("there");
    let entry =
        http.nested_type.iter().find(|message| message.name() == "HeadersEntry").expect("a map entry");
    assert!(entry.options.as_ref().is_some_and(|options| options.map_entry()));
    assert!(http.field.iter().any(|field| field.name() == "raw_body"), "unread fields are listed too");
}

#[tokio::test]
async fn a_socket_file_serves_with_its_mode_and_a_stale_one_is_replaced() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("authz.sock");
    let signer = key();
    let mut config = simple(&signer);
    config.listen.ext_authz[0].address = BindAddress::Unix { path: path.clone(), mode: Some(0o660) };

    // A stale file of a process that has ended.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    let app = App::bind(config.clone(), fixed_clock()).await.expect("a stale file is replaced");
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o660);
    let error = App::bind(config.clone(), fixed_clock()).await.expect_err("another process listens");
    assert!(error.to_string().contains("listen.ext_authz") && error.to_string().contains("another process"));
    tokio::spawn(app.serve(std::future::pending()));

    let channel = connect_to_file(path).await;
    let check = Ask::default().header("authorization", format!("Bearer {}", token(&signer))).into_check();
    let answer = AuthorizationClient::new(channel).check(check).await.expect("answered").into_inner();
    assert!(Answer::read(answer).is_allowed());

    let file = directory.path().join("a-file");
    std::fs::write(&file, "precious").expect("written");
    config.listen.ext_authz[0].address = BindAddress::Unix { path: file.clone(), mode: None };
    let error = App::bind(config, fixed_clock()).await.expect_err("not a socket");
    assert!(error.to_string().contains("not a socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).expect("there"), "precious");
}

#[tokio::test]
async fn a_new_process_started_during_a_drain_keeps_its_socket_file() {
    let issuer = Issuer::start().await.expect("bound");
    issuer.rotate(SigningAlgorithm::ES256);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("authz.sock");
    let mut config = config(vec![fetching(provider("p", issuer.issuer()), &issuer, prompt_refresh())]);
    config.listen.ext_authz[0].address = BindAddress::Unix { path: path.clone(), mode: None };
    config.shutdown = Shutdown { drain_delay: Duration::ZERO, grace: Duration::from_secs(10) };
    let old = App::bind(config.clone(), fixed_clock()).await.expect("bound");
    let (shutdown, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(old.serve(async move {
        let _stopped = stopped.await;
    }));
    // An endless stream keeps the old process until its grace period is over.
    let channel = connect_to_file(path.clone()).await;
    let watch = HealthClient::new(channel).watch(HealthCheckRequest::default()).await.expect("watched");
    shutdown.send(()).expect("listening");
    eventually("the socket file is removed", async || !path.exists()).await;
    let new = App::bind(config, fixed_clock()).await.expect("the old one accepts no connections");
    drop(watch);
    tokio::time::timeout(TEST_TIMEOUT, serving).await.expect("stopped").expect("no panic");
    assert!(path.exists(), "the file of the new one stays");
    drop(new);
    assert!(!path.exists(), "and is removed with it");
}

/// Connects to a socket file.
async fn connect_to_file(path: std::path::PathBuf) -> Channel {
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
    });
    Endpoint::from_static("http://unused").connect_with_connector(connector).await.expect("listening")
}

#[tokio::test]
async fn mutual_tls_rejects_clients_without_a_certificate() {
    let (pki, signer) = (Pki::new(), key());
    let mut config = simple(&signer);
    config.listen.ext_authz[0].tls = Some(pki.files());
    let app = App::bind(config, fixed_clock()).await.expect("bound");
    let port = app.ext_authz_address().expect("TCP").port();
    tokio::spawn(app.serve(std::future::pending()));
    let ask = async |tls: ClientTlsConfig| {
        let endpoint = Endpoint::try_from(format!("https://localhost:{port}")).expect("a URL");
        let endpoint = endpoint.tls_config(tls.ca_certificate(Certificate::from_pem(&pki.ca))).expect("TLS");
        let check = Ask::default().header("authorization", format!("Bearer {}", token(&signer))).into_check();
        match endpoint.connect().await {
            Ok(channel) => {
                AuthorizationClient::new(channel).check(check).await.map(tonic::Response::into_inner).ok()
            }
            Err(_) => None,
        }
    };
    assert!(ask(ClientTlsConfig::new()).await.is_none(), "without a certificate");
    let identity = Identity::from_pem(&pki.client.0, &pki.client.1);
    let answer = ask(ClientTlsConfig::new().identity(identity)).await.expect("answered");
    assert!(Answer::read(answer).is_allowed());
}

#[tokio::test]
async fn invalid_tls_files_fail_the_start_with_their_key_and_path() {
    let pki = Pki::new();
    let mut config = simple(&key());
    let missing = pki.directory.path().join("missing.pem");
    config.listen.ext_authz[0].tls = Some(TlsFiles { cert_file: missing.clone(), ..pki.files() });
    let error = App::bind(config, fixed_clock()).await.expect_err("the file is missing").to_string();
    assert!(
        error.contains("listen.ext_authz.tls.cert_file") && error.contains(missing.to_str().expect("text"))
    );
}

#[tokio::test]
async fn an_occupied_port_stops_the_start() {
    let app = App::bind(simple(&key()), fixed_clock()).await.expect("bound");
    let mut config = simple(&key());
    config.listen.ext_authz[0].address = BindAddress::Tcp(app.ext_authz_address().expect("TCP"));
    let error = App::bind(config, fixed_clock()).await.expect_err("taken").to_string();
    assert!(error.starts_with("listen.ext_authz: 127.0.0.1:"), "{error}");
    let _channel = connect(&app);
}

#[tokio::test]
async fn a_check_of_any_size_up_to_the_limit_is_decided_and_a_larger_one_is_refused_and_counted() {
    use envoy_types::pb::envoy::service::auth::v3::CheckRequest;
    use prost::Message;
    const MAX: usize = 6 << 20;
    let signer = key();
    let mut config = simple(&signer);
    config.limits.message_bytes = MAX;
    let service = Running::start(config, fixed_clock()).await;
    let sized = |length: usize| -> CheckRequest {
        let ask = Ask::default().header("authorization", format!("Bearer {}", token(&signer)));
        let mut check = ask.into_check();
        let http = |check: &mut CheckRequest, body: usize| {
            let request = check.attributes.as_mut().and_then(|attributes| attributes.request.as_mut());
            let http = request.and_then(|request| request.http.as_mut()).expect("an HTTP request");
            http.body = "b".repeat(body);
        };
        http(&mut check, length - 1000);
        let context = check.encoded_len() - (length - 1000);
        http(&mut check, length - context);
        assert_eq!(check.encoded_len(), length);
        check
    };
    for (length, allowed) in
        [(MAX - 1, true), (MAX, true), (MAX + 1, false), (10 * MAX, false), (4_000, true)]
    {
        let answer = Answer::read(service.send(sized(length)).await.expect("answered"));
        assert_eq!(answer.is_allowed(), allowed, "{length}");
    }
    let page = service.admin("/metrics").await;
    let malformed = page.lines().find(|line| line.contains("reason=\"request_malformed\""));
    assert!(malformed.is_some_and(|line| line.ends_with("} 2")), "{malformed:?}");
}

/// `portcullis serve`, killed when dropped.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

impl Served {
    fn start(config: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command.args(["serve", "--config"]).arg(config).stderr(Stdio::piped());
        Self(command.start().expect("the binary runs"))
    }

    /// Reads the log until a line has all of these.
    fn wait_for(log: &mut impl BufRead, texts: &[&str]) -> String {
        let mut output = String::new();
        loop {
            let mut line = String::new();
            let read = log.read_line(&mut line).expect("the log is text");
            assert!(read > 0, "the log ended without {texts:?}:\n{output}");
            if texts.iter().all(|text| line.contains(text)) {
                return line;
            }
            output.push_str(&line);
        }
    }

    fn signal(&self, signal: &str) {
        let killed = Command::new("kill").args([signal, &self.0.id().to_string()]).run().expect("kill runs");
        assert!(killed.success());
    }
}

fn write_config(file: &Path, ports: (u16, u16), issuer: &Issuer, extra: &str) {
    let text = format!(
        "listen: {{ext_authz: 127.0.0.1:{}, admin: 127.0.0.1:{}}}
shutdown: {{drain_delay: 0s, grace: 1s}}
providers:
  - name: demo
    issuer: {}
    audiences: [orders-api]
    jwks_uri: {}
{extra}",
        ports.0,
        ports.1,
        issuer.issuer(),
        issuer.jwks_uri()
    );
    std::fs::write(file, text).expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_applies_valid_reloads_rejects_invalid_ones_and_exits_with_0_on_sigterm() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("p.yaml");
    let issuer = Issuer::start().await.expect("bound");
    let key = issuer.rotate(SigningAlgorithm::ES256);
    let ports = (0, 0);
    write_config(&file, ports, &issuer, "");
    let mut served = Served::start(&file);
    let mut log = BufReader::new(served.0.stderr.take().expect("piped"));
    let line = Served::wait_for(&mut log, &["\"serving\""]);
    let serving = Serving::read(&line).expect("the line has the addresses");
    let channel = Endpoint::try_from(format!("http://{}", serving.grpc()))
        .expect("a URL")
        .connect()
        .await
        .expect("listening");
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    let now = i64::try_from(now).expect("a time of this age");
    let ask = async || {
        let check =
            Ask::default().header("authorization", format!("Bearer {}", key.sign(&issuer.claims(now))));
        let answer = AuthorizationClient::new(channel.clone()).check(check.into_check()).await;
        Answer::read(answer.expect("answered").into_inner())
    };
    assert!(!ask().await.set.contains_key("x-auth-subject"));

    write_config(&file, ports, &issuer, "    claim_headers: {x-auth-subject: sub}\n");
    served.signal("-HUP");
    Served::wait_for(&mut log, &["configuration reloaded"]);
    assert_eq!(ask().await.set["x-auth-subject"], "alice");
    assert_eq!(issuer.key_fetches(), 1, "the keys were carried over");

    write_config(&file, ports, &issuer, "    claim_headers: {host: sub}\ncolour: red\n");
    let line = Served::wait_for(&mut log, &["not reloaded", "claim_headers.host"]);
    assert!(line.contains("line 8"), "{line}");
    Served::wait_for(&mut log, &["not reloaded", "colour"]);
    assert_eq!(ask().await.set["x-auth-subject"], "alice", "the last valid configuration is used");

    let moved = (ports.0, free_port());
    write_config(&file, moved, &issuer, "");
    Served::wait_for(&mut log, &["listeners reloaded"]);
    Served::wait_for(&mut log, &["configuration reloaded"]);
    assert!(!ask().await.set.contains_key("x-auth-subject"));
    write_config(&file, moved, &issuer, "    claim_headers: {x-auth-subject: sub}\n");
    Served::wait_for(&mut log, &["configuration reloaded"]);

    // A key URL that answers 404: the log has the provider and the error.
    let text = std::fs::read_to_string(&file).expect("there").replace("demo/keys", "demo/kyes");
    assert!(text.contains("demo/kyes"), "{text}");
    std::fs::write(&file, text).expect("written");
    let line = Served::wait_for(&mut log, &["\"ERROR\"", "provider not reloaded", "\"demo\""]);
    assert!(line.contains("the answer's status is 404, not 200"), "{line}");
    Served::wait_for(&mut log, &["reloaded partially"]);
    assert_eq!(ask().await.set["x-auth-subject"], "alice");
    let page = reqwest::get(format!("http://127.0.0.1:{}/metrics", moved.1)).await.expect("answered");
    let page = page.text().await.expect("text");
    for counted in ["{outcome=\"applied\"} 3", "{outcome=\"rejected\"} 2"] {
        assert!(page.contains(&format!("portcullis_config_reloads_total{counted}\n")), "{page}");
    }

    served.signal("-TERM");
    assert_eq!(served.0.wait().expect("stopped").code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_exits_on_sigterm_while_a_file_read_blocks() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (file, pipe) = (directory.path().join("p.yaml"), directory.path().join("pipe"));
    let made = Command::new("mkfifo").arg(&pipe).run().expect("mkfifo runs");
    assert!(made.success());
    let issuer = Issuer::start().await.expect("bound");
    issuer.rotate(SigningAlgorithm::ES256);
    write_config(&file, (0, 0), &issuer, "");
    let mut served = Served::start(&pipe);
    let mut log = BufReader::new(served.0.stderr.take().expect("piped"));
    // Reading it again for changes blocks until another writer opens it.
    std::fs::write(&pipe, std::fs::read(&file).expect("there")).expect("is read");
    Served::wait_for(&mut log, &["\"serving\""]);
    served.signal("-TERM");
    Served::wait_for(&mut log, &["\"stopped\""]);
    let ended = async {
        loop {
            match served.0.try_wait().expect("a child process") {
                Some(status) => return status,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let status = tokio::time::timeout(TEST_TIMEOUT, ended).await.expect("stopped");
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_replaced_by_a_pipe_is_read_again_once_it_is_a_file() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (file, other) = (directory.path().join("p.yaml"), directory.path().join("other"));
    let issuer = Issuer::start().await.expect("bound");
    issuer.rotate(SigningAlgorithm::ES256);
    let ports = (0, 0);
    write_config(&file, ports, &issuer, "");
    let mut served = Served::start(&file);
    let mut log = BufReader::new(served.0.stderr.take().expect("piped"));
    Served::wait_for(&mut log, &["\"serving\""]);
    let made = Command::new("mkfifo").arg(&other).run().expect("mkfifo runs");
    assert!(made.success());
    std::fs::rename(&other, &file).expect("is replaced");
    served.signal("-HUP");
    Served::wait_for(&mut log, &["not reloaded", "cannot be read within"]);
    write_config(&other, ports, &issuer, "    claim_headers: {x-auth-subject: sub}\n");
    std::fs::rename(&other, &file).expect("is replaced");
    Served::wait_for(&mut log, &["configuration reloaded"]);
}

#[test]
fn serve_exits_with_1_and_an_error_on_a_broken_configuration() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("p.yaml");
    std::fs::write(&file, "listen: {ext_authz: 1}\n").expect("written");
    let output =
        Command::new(env!("CARGO_BIN_EXE_portcullis")).args(["serve", "--config"]).arg(&file).run_and_read();
    let output = output.expect("the binary runs");
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("listen.ext_authz") && errors.contains("`providers` is missing"), "{errors}");
}

#[test]
fn serve_exits_with_1_if_no_listener_is_for_a_proxy() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("p.yaml");
    let text = "listen: {admin: '127.0.0.1:0'}\nproviders: [{name: p, issuer: 'https://p.example', audiences: [a]}]\n";
    std::fs::write(&file, text).expect("written");
    let output =
        Command::new(env!("CARGO_BIN_EXE_portcullis")).args(["serve", "--config"]).arg(&file).run_and_read();
    let output = output.expect("the binary runs");
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("listen: there is no listener for a proxy: set `ext_authz`"), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_a_grpc_listener_serves_http() {
    let mut config = with_http_doors(simple(&key()));
    config.listen.ext_authz.clear();
    let app = App::bind(config, fixed_clock()).await.expect("port 0 can be bound");
    assert_eq!(app.ext_authz_addresses(), []);
    let doors = app.forward_auth_addresses();
    let serving = tokio::spawn(app.serve(std::future::pending()));
    let headers = [("host", "a"), ("x-original-method", "GET"), ("x-original-uri", "/")];
    let status = tokio::task::block_in_place(|| raw::status(doors[0], "GET / HTTP/1.1", &headers));
    assert_eq!(status, 401);
    serving.abort();
}

#[tokio::test]
async fn two_services_in_one_process_share_nothing() {
    let (one, two) = (key(), key());
    let first = Running::start(simple(&one), fixed_clock()).await;
    let second = Running::start(simple(&two), fixed_clock()).await;
    assert!(first.bearer(&token(&one)).await.is_allowed());
    assert!(!second.bearer(&token(&one)).await.is_allowed());
    assert!(first.admin("/metrics").await.contains("reason=\"ok\""));
    assert!(!second.admin("/metrics").await.contains("reason=\"ok\""));
}
