//! The built binary on a machine whose clock cannot be right: before 1970, after 9999, and as far as a clock goes. Whoever
//! asks is answered, nothing is allowed, and nothing panics. The clock is another library's, which is preloaded: see
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
use process::{IMPOSSIBLE, PATIENCE, Served, portcullis, run};

/// What `/readyz` says by a clock before the build.
const UNSET: &str = "the system clock is earlier than the build time of this program";

/// Configurations with every kind of listener, and who asks there.
struct House {
    folder: TempDir,
    pki: Pki,
    key: SigningKey,
}

impl House {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
            pki: Pki::new(),
            key: SigningKey::generate("k", SigningAlgorithm::ES256),
        }
    }

    /// The files of a listener with TLS.
    fn tls(&self) -> String {
        let at = |name: &str| self.pki.directory.path().join(name).display().to_string();
        format!("cert_file: '{}', key_file: '{}'", at("cert.pem"), at("key.pem"))
    }

    /// The keys as they stand in a configuration.
    fn inline(&self) -> String {
        format!("jwks: {}", json!({"keys": [self.key.public_jwk()]}))
    }

    /// A configuration of all listeners but one, whose keys are these: a process has one operator's door.
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

    /// The same with the operator's door by TLS alone.
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

    /// A token that is good by the clock of the test.
    fn token(&self) -> String {
        let now = UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
        self.key.sign(&json!({"iss": "https://i.example.com", "aud": "a", "exp": now + 600}))
    }

    /// Those who ask over HTTP/1.1 and over HTTP/2, and know `localhost` to be here.
    fn clients(&self, address: SocketAddr) -> [(&'static str, Client); 2] {
        let builder = || self.client(address);
        let [http1, http2] = [builder().http1_only(), builder().http2_prior_knowledge()];
        [("HTTP/1.1", http1), ("HTTP/2", http2)]
            .map(|(protocol, builder)| (protocol, builder.build().expect("a client")))
    }

    fn client(&self, address: SocketAddr) -> ClientBuilder {
        let ca = Certificate::from_pem(self.pki.ca.as_bytes()).expect("PEM");
        Client::builder().no_proxy().timeout(PATIENCE).tls_certs_only([ca]).resolve("localhost", address)
    }

    /// What a page is answered over each version of HTTP, twice on one connection.
    async fn pages(&self, scheme: &str, address: SocketAddr, path: &str) -> Vec<(String, u16, String)> {
        let mut answers = Vec::new();
        for (protocol, client) in self.clients(address) {
            for _ in 0..2 {
                let url = format!("{scheme}://localhost:{}{path}", address.port());
                let what = format!("{url} by {protocol}");
                let answer = client.get(url).bearer_auth(self.token()).send().await;
                let answer = answer.unwrap_or_else(|error| panic!("{what}: {error:?}"));
                let status = answer.status().as_u16();
                answers.push((what, status, answer.text().await.expect("text")));
            }
        }
        answers
    }

    /// What a Check is answered, twice on one connection.
    async fn check(&self, scheme: &str, address: SocketAddr) -> [i32; 2] {
        let endpoint = Endpoint::try_from(format!("{scheme}://{address}")).expect("a URL").timeout(PATIENCE);
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

    /// Every listener answers a good token with this status, and the operator's pages with 200, but for `/readyz`.
    async fn answers(&self, at: &Serving, status: u16, ready: (u16, &str)) {
        for (scheme, address) in [("http", at.ext_authz[0]), ("https", at.ext_authz[1])] {
            assert_eq!(self.check(scheme, address).await, [i32::from(status); 2], "{scheme} {address}");
        }
        for (scheme, address) in [("http", at.forward_auth[0]), ("https", at.forward_auth[1])] {
            for (what, answered, body) in self.pages(scheme, address, "/orders").await {
                assert_eq!(answered, status, "{what}: {body}");
            }
        }
        self.operator_is_answered(at, "http", ready).await;
    }

    async fn operator_is_answered(&self, at: &Serving, scheme: &str, (ready, says): (u16, &str)) {
        for (path, status, says) in
            [("/livez", 200, "ok"), ("/readyz", ready, says), ("/metrics", 200, "# EOF"), ("/keys", 200, "{")]
        {
            for (what, answered, body) in self.pages(scheme, at.admin(), path).await {
                assert!(answered == status && body.contains(says), "{what}: {answered} {body}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_cannot_be_right_leaves_nobody_at_any_listener_without_an_answer() {
    let house = House::new();
    let (config, admin) = (house.config(&house.inline()), house.admin_tls());
    for clock in IMPOSSIBLE {
        // A token of today has expired long ago where the clock is ahead.
        let (status, ready) =
            if clock.is_before_the_build() { (503, (503, UNSET)) } else { (401, (200, "ok")) };
        let served = Served::start(clock.portcullis(), &config);
        house.answers(&served.serving, status, ready).await;
        let log = served.ends();
        for line in log.lines() {
            assert!(line.contains(&format!("\"timestamp\":\"{}", clock.year)), "{clock:?}: {line}");
        }

        let served = Served::start(clock.portcullis(), &admin);
        house.operator_is_answered(&served.serving, "https", ready).await;
        served.ends();
    }

    // The same by a clock that is right.
    let served = Served::start(portcullis(), &config);
    house.answers(&served.serving, 200, (200, "ok")).await;
    served.ends();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_certificate_counts_by_no_clock_that_cannot_be_right() {
    let house = House::new();
    let config = house.config(&house.inline());
    let (certificate, key) = &house.pki.client;
    let identity = Identity::from_pem(format!("{certificate}{key}").as_bytes()).expect("a certificate");
    let ask = async |served: &Served| {
        let address = served.serving.forward_auth[2];
        let client = house.client(address).identity(identity.clone()).build().expect("a client");
        let url = format!("https://localhost:{}/orders", address.port());
        client.get(url).bearer_auth(house.token()).send().await
    };
    for clock in IMPOSSIBLE {
        let mut served = Served::start(clock.portcullis(), &config);
        let answer = ask(&served).await;
        assert!(answer.is_err(), "{clock:?}: {answer:?}");
        let line = served.wait_for("TLS handshakes failed");
        let cause = if clock.is_before_the_build() { "\"not_yet_valid\"" } else { "\"expired\"" };
        assert!(line.contains("listen.forward_auth[2]") && line.contains(cause), "{clock:?}: {line}");
        served.ends();
    }
    let served = Served::start(portcullis(), &config);
    let answer = ask(&served).await.expect("answered");
    assert_eq!(answer.status(), 200);
    served.ends();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_fetched_over_https_by_no_clock_at_which_the_issuers_certificate_does_not_count() {
    let (house, issuer) = (House::new(), HttpsIssuer::start().await);
    issuer.publishes(json!({"keys": [house.key.public_jwk()]}).to_string());
    let ca = issuer.authority(house.folder.path());
    let keys = format!("jwks_uri: '{}'", issuer.url());
    let configured = [
        house.config(&format!("{keys}\n    http: {{ca_file: '{}'}}", ca.display())),
        // By the authorities of the system, which are these.
        house.write("system.yaml", "  ext_authz: '127.0.0.1:0'", &keys),
    ];
    let of_the_system = [("SSL_CERT_FILE", ca.clone()), ("SSL_CERT_DIR", "/nonexistent".into())];
    let bearer = format!("authorization: Bearer {}", house.token());
    for config in configured {
        for clock in IMPOSSIBLE {
            let before = issuer.connections();
            let mut command = clock.portcullis();
            command.envs(of_the_system.clone());
            let mut served = Served::start(command, &config);
            let why =
                if clock.is_before_the_build() { "certificate not valid yet" } else { "certificate expired" };
            let line = served.wait_for("key set refresh failed");
            assert!(line.contains(why) && issuer.connections() > before, "{clock:?}: {line}");
            served.ends();

            let mut explain = clock.portcullis();
            explain
                .args(["explain", "--header", &bearer, "--config"])
                .arg(&config)
                .envs(of_the_system.clone());
            let (code, said) = run(&mut explain);
            assert!(code == Some(clock.explained()) && said.contains(why), "{clock:?}: {said}");
        }
        let mut explain = portcullis();
        explain.args(["explain", "--header", &bearer, "--config"]).arg(&config).envs(of_the_system.clone());
        let (code, said) = run(&mut explain);
        assert_eq!(code, Some(0), "by a clock that is right: {said}");
    }
}

#[test]
fn validate_and_explain_do_their_work_by_any_clock() {
    let house = House::new();
    let config = house.config(&house.inline());
    let bearer = format!("authorization: Bearer {}", house.token());
    for clock in IMPOSSIBLE {
        let (code, said) = run(clock.portcullis().args(["validate", "--print", "--config"]).arg(&config));
        let warning = if clock.is_before_the_build() { "is not valid before" } else { "expired on" };
        assert!(code == Some(0) && said.contains(warning), "{clock:?}: {said}");

        let (code, said) =
            run(clock.portcullis().args(["explain", "--header", &bearer, "--config"]).arg(&config));
        assert_eq!(code, Some(clock.explained()), "{clock:?}: {said}");
    }
}
