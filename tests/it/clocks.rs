//! The built binary with a clock that is certainly wrong: before 1970, after 9999, and at the limits of the system's time.
//! Every request gets a response, none is allowed, and nothing panics. The clock comes from a preloaded library: see
//! `support/clock_shim.c`.

mod issuer;
mod process;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use reqwest::{Certificate, Client, ClientBuilder, Identity};
use serde_json::json;
use tempfile::TempDir;
use tonic::transport::{self, ClientTlsConfig, Endpoint};

use crate::support::pki::Pki;
use crate::support::serving::Serving;
use crate::support::{Answer, Ask};
use issuer::HttpsIssuer;
use process::{Server, TIMEOUT, WRONG_CLOCKS, portcullis, run};

/// The error of `/readyz` if the clock is before the build time.
const CLOCK_NOT_SET: &str = "the system clock is earlier than the build time of this program";

/// Configurations with every kind of listener, and clients for them.
struct Env {
    folder: TempDir,
    pki: Pki,
    key: SigningKey,
}

impl Env {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
            pki: Pki::new(),
            key: SigningKey::generate("k", SigningAlgorithm::ES256),
        }
    }

    /// The certificate settings of a TLS listener.
    fn tls(&self) -> String {
        let at = |name: &str| self.pki.directory.path().join(name).display().to_string();
        format!("cert_file: '{}', key_file: '{}'", at("cert.pem"), at("key.pem"))
    }

    /// The keys as a `jwks` setting.
    fn inline(&self) -> String {
        format!("jwks: {}", json!({"keys": [self.key.public_jwk()]}))
    }

    /// A configuration with these keys and all listeners except the admin listener with TLS: a process has only one admin
    /// listener.
    fn config(&self, keys: &str) -> PathBuf {
        let tls = self.tls();
        let ca = self.pki.directory.path().join("ca.pem").display().to_string();
        self.write(
            "p.yaml",
            &format!(
                "  ext_authz: ['127.0.0.1:0', {{address: '127.0.0.1:0', tls: {{{tls}}}}}]
  forward_auth:
    - {{address: '127.0.0.1:0', profile: envoy}}
    - {{address: '127.0.0.1:0', profile: envoy, tls: {{{tls}}}}}
    - {{address: '127.0.0.1:0', profile: envoy, tls: {{{tls}, client_ca_file: '{ca}'}}}}
  admin: '127.0.0.1:0'"
            ),
            keys,
        )
    }

    /// The same with only TLS on the admin listener.
    fn admin_tls(&self) -> PathBuf {
        let tls = self.tls();
        let listen =
            format!("  ext_authz: '127.0.0.1:0'\n  admin: {{address: '127.0.0.1:0', tls: {{{tls}}}}}");
        self.write("admin.yaml", &listen, &self.inline())
    }

    fn write(&self, name: &str, listen: &str, keys: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        let text = format!(
            "listen:
{listen}
shutdown: {{drain_delay: 0s}}
providers:
  - name: p
    issuer: https://i.example.com
    audiences: [a]
    {keys}
"
        );
        std::fs::write(&path, text).expect("written");
        path
    }

    /// A token that is valid now.
    fn token(&self) -> String {
        let now = UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
        self.key.sign(&json!({"iss": "https://i.example.com", "aud": "a", "exp": now + 600}))
    }

    /// Clients for HTTP/1.1 and HTTP/2 that resolve `localhost` to this address.
    fn clients(&self, address: SocketAddr) -> [(&'static str, Client); 2] {
        let builder = || self.client(address);
        let [http1, http2] = [builder().http1_only(), builder().http2_prior_knowledge()];
        [("HTTP/1.1", http1), ("HTTP/2", http2)]
            .map(|(protocol, builder)| (protocol, builder.build().expect("a client")))
    }

    fn client(&self, address: SocketAddr) -> ClientBuilder {
        let ca = Certificate::from_pem(self.pki.ca.as_bytes()).expect("PEM");
        Client::builder().no_proxy().timeout(TIMEOUT).tls_certs_only([ca]).resolve("localhost", address)
    }

    /// The responses to a GET over each version of HTTP, two on each connection.
    async fn get_each(&self, scheme: &str, address: SocketAddr, path: &str) -> Vec<(String, u16, String)> {
        let mut responses = Vec::new();
        for (protocol, client) in self.clients(address) {
            for _ in 0..2 {
                let url = format!("{scheme}://localhost:{}{path}", address.port());
                let what = format!("{url} by {protocol}");
                let answer = client.get(url).bearer_auth(self.token()).send().await;
                let answer = answer.unwrap_or_else(|error| panic!("{what}: {error:?}"));
                let status = answer.status().as_u16();
                responses.push((what, status, answer.text().await.expect("text")));
            }
        }
        responses
    }

    /// The HTTP statuses of two Checks on one connection.
    async fn check(&self, scheme: &str, address: SocketAddr) -> [i32; 2] {
        let endpoint = Endpoint::try_from(format!("{scheme}://{address}")).expect("a URL").timeout(TIMEOUT);
        let ca = transport::Certificate::from_pem(&self.pki.ca);
        let tls = ClientTlsConfig::new().ca_certificate(ca).domain_name("localhost");
        let endpoint = if scheme == "https" { endpoint.tls_config(tls).expect("TLS") } else { endpoint };
        let mut client = AuthorizationClient::new(endpoint.connect().await.expect("it listens"));
        let mut statuses = [0; 2];
        for status in &mut statuses {
            let bearer = Ask::default().header("authorization", format!("Bearer {}", self.token()));
            let answered = client.check(bearer.into_check()).await;
            let answered = answered.unwrap_or_else(|error| panic!("{scheme} {address}: {error:?}"));
            *status = Answer::read(answered.into_inner()).http_status;
        }
        statuses
    }

    /// Asserts that every listener responds with this status to a valid token, and the admin pages with 200, except `/readyz`.
    async fn assert_responses(&self, at: &Serving, status: u16, ready: (u16, &str)) {
        for (scheme, address) in [("http", at.ext_authz[0]), ("https", at.ext_authz[1])] {
            assert_eq!(self.check(scheme, address).await, [i32::from(status); 2], "{scheme} {address}");
        }
        for (scheme, address) in [("http", at.forward_auth[0]), ("https", at.forward_auth[1])] {
            for (what, answered, body) in self.get_each(scheme, address, "/orders").await {
                assert_eq!(answered, status, "{what}: {body}");
            }
        }
        self.assert_admin_responses(at, "http", ready).await;
    }

    async fn assert_admin_responses(&self, at: &Serving, scheme: &str, (ready, expected): (u16, &str)) {
        for (path, status, expected) in [
            ("/livez", 200, "ok"),
            ("/readyz", ready, expected),
            ("/metrics", 200, "# EOF"),
            ("/keys", 200, "{"),
        ] {
            for (what, answered, body) in self.get_each(scheme, at.admin(), path).await {
                assert!(answered == status && body.contains(expected), "{what}: {status} {body}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_listener_responds_with_a_wrong_clock() {
    let env = Env::new();
    let (config, admin) = (env.config(&env.inline()), env.admin_tls());
    for clock in WRONG_CLOCKS {
        // With a clock in the future, the token has expired.
        let (status, ready) =
            if clock.is_before_the_build() { (503, (503, CLOCK_NOT_SET)) } else { (401, (200, "ok")) };
        let server = Server::start(clock.portcullis(), &config);
        env.assert_responses(&server.serving, status, ready).await;
        let log = server.stop();
        for line in log.lines() {
            assert!(line.contains(&format!("\"timestamp\":\"{}", clock.year)), "{clock:?}: {line}");
        }

        let server = Server::start(clock.portcullis(), &admin);
        env.assert_admin_responses(&server.serving, "https", ready).await;
        server.stop();
    }

    // The same with the right clock.
    let server = Server::start(portcullis(), &config);
    env.assert_responses(&server.serving, 200, (200, "ok")).await;
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_certificate_is_valid_with_a_wrong_clock() {
    let env = Env::new();
    let config = env.config(&env.inline());
    let (certificate, key) = &env.pki.client;
    let identity = Identity::from_pem(format!("{certificate}{key}").as_bytes()).expect("a certificate");
    let ask = async |server: &Server| {
        let address = server.serving.forward_auth[2];
        let client = env.client(address).identity(identity.clone()).build().expect("a client");
        let url = format!("https://localhost:{}/orders", address.port());
        client.get(url).bearer_auth(env.token()).send().await
    };
    for clock in WRONG_CLOCKS {
        let mut server = Server::start(clock.portcullis(), &config);
        let answer = ask(&server).await;
        assert!(answer.is_err(), "{clock:?}: {answer:?}");
        let line = server.wait_for("TLS handshakes failed");
        let cause = if clock.is_before_the_build() { "\"not_yet_valid\"" } else { "\"expired\"" };
        assert!(line.contains("listen.forward_auth[2]") && line.contains(cause), "{clock:?}: {line}");
        server.stop();
    }
    let server = Server::start(portcullis(), &config);
    let answer = ask(&server).await.expect("answered");
    assert_eq!(answer.status(), 200);
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_keys_are_fetched_over_https_with_a_clock_at_which_the_issuers_certificate_is_not_valid() {
    let (env, issuer) = (Env::new(), HttpsIssuer::start().await);
    issuer.publish(json!({"keys": [env.key.public_jwk()]}).to_string());
    let ca = issuer.authority(env.folder.path());
    let keys = format!("jwks_uri: '{}'", issuer.url());
    let configured = [
        env.config(&format!("{keys}\n    http: {{ca_file: '{}'}}", ca.display())),
        // With the system's CA certificates, which the environment sets to these.
        env.write("system.yaml", "  ext_authz: '127.0.0.1:0'", &keys),
    ];
    let system_cas = [("SSL_CERT_FILE", ca.clone()), ("SSL_CERT_DIR", "/nonexistent".into())];
    let bearer = format!("authorization: Bearer {}", env.token());
    for config in configured {
        for clock in WRONG_CLOCKS {
            let before = issuer.connections();
            let mut command = clock.portcullis();
            command.envs(system_cas.clone());
            let mut server = Server::start(command, &config);
            let cause = if clock.is_before_the_build() { "it is not valid before" } else { "it expired on" };
            let line = server.wait_for("key set refresh failed");
            assert!(line.contains(cause) && issuer.connections() > before, "{clock:?}: {line}");
            server.stop();

            let mut explain = clock.portcullis();
            explain.args(["explain", "--header", &bearer, "--config"]).arg(&config).envs(system_cas.clone());
            let before = issuer.connections();
            let (code, output) = run(&mut explain);
            let (expected, opened) = (Some(clock.explain_exit_code()), issuer.connections() - before);
            assert_eq!((code, opened), (expected, 0), "no key could change that: {clock:?}: {output}");
        }
        let mut explain = portcullis();
        explain.args(["explain", "--header", &bearer, "--config"]).arg(&config).envs(system_cas.clone());
        let (code, output) = run(&mut explain);
        assert_eq!(code, Some(0), "with the right clock: {output}");
    }
}

#[test]
fn validate_and_explain_work_with_any_clock() {
    let env = Env::new();
    let config = env.config(&env.inline());
    let bearer = format!("authorization: Bearer {}", env.token());
    for clock in WRONG_CLOCKS {
        let (code, output) = run(clock.portcullis().args(["validate", "--print", "--config"]).arg(&config));
        let warning = if clock.is_before_the_build() { "is not valid before" } else { "expired on" };
        assert!(code == Some(0) && output.contains(warning), "{clock:?}: {output}");

        let (code, output) =
            run(clock.portcullis().args(["explain", "--header", &bearer, "--config"]).arg(&config));
        assert_eq!(code, Some(clock.explain_exit_code()), "{clock:?}: {output}");
    }
}
