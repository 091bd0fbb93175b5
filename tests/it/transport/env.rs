//! The test environment: a service configured by text, its key server, its admin endpoints, and tables of responses.

use std::fmt::Display;
use std::time::Duration;

use portcullis::app::App;
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use portcullis::config::Config;
use serde_json::{Value, json};

use super::answer::Answer;
use super::key_server::KeyServer;
pub use crate::support::log::capture;
use crate::support::{NOW, Running, fixed_clock, log};

/// The timeout of every wait.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The default issuer. It is a name only and never contacted.
pub const ISSUER: &str = "https://issuer.example.com";

/// No scheduled fetch after the first, and forced fetches start immediately.
pub const IMMEDIATE_REFRESH: &str = "refresh: {interval: 1h, min_spacing: 10ms, min_spacing_bad_signature: 10ms, \
                          wait: 1m, timeout: 10s}";

/// Like [`IMMEDIATE_REFRESH`], with a short fetch timeout.
pub const SHORT_TIMEOUT: &str = "refresh: {interval: 1h, min_spacing: 10ms, min_spacing_bad_signature: 10ms, \
                             wait: 1m, timeout: 500ms}";

/// Frequent scheduled fetches.
pub const FREQUENT_REFRESH: &str = "refresh: {interval: 20ms, min_spacing: 10ms, min_spacing_bad_signature: 10ms, \
                        wait: 1m, timeout: 10s}";

/// A signing key.
pub fn key(kid: &str) -> SigningKey {
    SigningKey::generate(kid, SigningAlgorithm::ES256)
}

/// A token with valid claims, signed by this key.
pub fn token(key: &SigningKey) -> String {
    token_of(ISSUER, key, NOW + 60)
}

/// The same with another issuer and `exp`.
pub fn token_of(issuer: &str, key: &SigningKey, exp: i64) -> String {
    key.sign(&json!({"iss": issuer, "aud": "orders-api", "sub": "alice", "exp": exp}))
}

/// A provider in YAML: `keys` is the source of keys, `more` is further members.
pub fn provider(name: &str, issuer: &str, keys: &str, more: &str) -> String {
    format!("  - {{name: {name}, issuer: '{issuer}', audiences: [orders-api], {keys}, {more}}}\n")
}

/// A configuration text with these providers, on ports that the system chooses.
pub fn text(providers: &[String]) -> String {
    format!(
        "listen: {{ext_authz: 127.0.0.1:0, admin: 127.0.0.1:0}}
log: {{level: trace}}
shutdown: {{drain_delay: 0s, grace: 1s}}
providers:
{}",
        providers.concat()
    )
}

/// A configuration with these providers.
pub fn configured(providers: &[String]) -> Config {
    let text = text(providers);
    Config::parse(&text, &|_| None).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

/// The configuration errors of one provider; empty if it is valid.
pub fn configuration_faults(keys: &str, more: &str) -> String {
    let parsed = Config::parse(&text(&[provider("demo", ISSUER, keys, more)]), &|_| None);
    parsed.err().map(|errors| errors.to_string()).unwrap_or_default()
}

/// Why a service with one provider cannot start; empty if it starts.
pub async fn start_faults(keys: &str, more: &str) -> String {
    match Config::parse(&text(&[provider("demo", ISSUER, keys, more)]), &|_| None) {
        Err(errors) => errors.to_string(),
        Ok(config) => {
            App::bind(config, fixed_clock()).await.err().map(|error| error.to_string()).unwrap_or_default()
        }
    }
}

/// A service with one provider, `demo`, and its key server.
pub struct TestEnv {
    /// Publishes only `key` at first, at every path.
    pub server: KeyServer,
    /// The published key.
    pub key: SigningKey,
    /// The service, which has fetched the key.
    pub service: Running,
}

impl TestEnv {
    /// Over plain http.
    pub async fn start(more: &str) -> Self {
        let server = KeyServer::start().await;
        let keys = format!("jwks_uri: '{}'", server.http("/keys"));
        Self::with_server(server, &keys, more).await
    }

    /// With this server.
    pub async fn with_server(server: KeyServer, keys: &str, more: &str) -> Self {
        let key = key("old");
        server.respond_with(Answer::keys(&[&key]));
        let config = configured(&[provider("demo", ISSUER, keys, more)]);
        let service = Running::start(config, fixed_clock()).await;
        Self { server, key, service }
    }

    /// Checks a token of this key and returns the differences from the expected reason.
    pub async fn faults(&self, key: &SigningKey, reason: &str) -> Vec<String> {
        self.service.bearer(&token(key)).await.faults(reason, &[])
    }

    /// # Panics
    /// The answer to a token of this key has another reason or is malformed.
    pub async fn expect_reason(&self, key: &SigningKey, reason: &str) {
        assert_eq!(self.faults(key, reason).await, Vec::<String>::new());
    }

    /// Waits until a token of this key is allowed. Until then the reason must be `keys_unavailable`.
    pub async fn wait_until_known(&self, key: &SigningKey) {
        eventually("the key is known", async || {
            let answer = self.service.bearer(&token(key)).await;
            let expected = answer.is_allowed() || answer.reason() == "keys_unavailable";
            assert!(expected, "{}", answer.reason());
            answer.is_allowed()
        })
        .await;
    }

    /// The status of the provider in `/keys`.
    pub async fn status(&self) -> Value {
        status(&self.service, "demo").await
    }

    /// The error of the last fetch; empty if it succeeded.
    pub async fn last_error(&self) -> String {
        self.status().await["last_error"].as_str().unwrap_or_default().to_owned()
    }

    /// The value of a metric, 0 if absent.
    pub async fn metric_value(&self, metric: &str) -> u64 {
        metric_value(&self.service, metric).await
    }
}

/// The status of a provider in `/keys`.
pub async fn status(service: &Running, name: &str) -> Value {
    let page: Value = serde_json::from_str(&service.admin("/keys").await).expect("JSON");
    let providers = page["providers"].as_array().expect("a list");
    providers.iter().find(|provider| provider["name"] == name).expect("the provider is listed").clone()
}

/// The value of a metric with its labels, 0 if absent.
pub async fn metric_value(service: &Running, metric: &str) -> u64 {
    metric_in(&service.admin("/metrics").await, metric)
}

/// The value of a metric with its labels in this text, 0 if absent.
pub fn metric_in(page: &str, metric: &str) -> u64 {
    let value = page.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().expect("a count"))
}

/// The number of fetches of `demo` with this outcome.
pub async fn fetches(service: &Running, trigger: &str, outcome: &str) -> u64 {
    let labels = format!(r#"provider="demo",trigger="{trigger}",outcome="{outcome}""#);
    metric_value(service, &format!("portcullis_jwks_fetches_total{{{labels}}}")).await
}

/// # Panics
/// The condition does not hold before the timeout.
pub async fn eventually(what: impl Display, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, wait).await.unwrap_or_else(|_| panic!("timeout: {what}"));
}

/// The failures of a table of responses.
#[derive(Default)]
pub struct Table(Vec<String>);

impl Table {
    /// With this response, which is built from an unknown key, the current set stays, tokens of the key get
    /// `keys_unavailable`, and `/keys` shows a short error that contains `expected`. The next valid response is
    /// applied.
    pub async fn rejects(
        &mut self,
        more: &str,
        what: &str,
        expected: &str,
        answer: impl FnOnce(&SigningKey) -> Answer,
    ) {
        let env = TestEnv::start(more).await;
        self.rejects_in(&env, what, expected, answer).await;
    }

    /// The same in this environment.
    pub async fn rejects_in(
        &mut self,
        env: &TestEnv,
        what: &str,
        expected: &str,
        answer: impl FnOnce(&SigningKey) -> Answer,
    ) {
        let new = key("new");
        env.server.respond_with(answer(&new));
        self.record(what, env.faults(&new, "keys_unavailable").await);
        self.record(what, env.faults(&env.key, "ok").await);
        let error = env.last_error().await;
        let slow = "no answer within";
        if error.is_empty() || !error.contains(expected) || error.contains(slow) != expected.contains(slow) {
            self.0.push(format!("{what}: {error:?} does not contain {expected:?}"));
        }
        if error.len() > 300 {
            self.0.push(format!("{what}: an error of {} bytes: {error:.300}", error.len()));
        }
        env.server.respond_with(Answer::keys(&[&new]));
        env.wait_until_known(&new).await;
    }

    /// With this response, which is built from an unknown key, the first token of the key is allowed.
    pub async fn accepts(&mut self, what: &str, answer: impl FnOnce(&SigningKey) -> Answer) {
        let env = TestEnv::start(IMMEDIATE_REFRESH).await;
        let new = key("new");
        env.server.respond_with(answer(&new));
        let mut faults = env.faults(&new, "ok").await;
        if !faults.is_empty() {
            faults.push(env.last_error().await);
        }
        self.record(what, faults);
    }

    /// Records the failures of a case.
    pub fn record(&mut self, what: &str, faults: Vec<String>) {
        self.0.extend(faults.into_iter().map(|fault| format!("{what}: {fault}")));
    }

    /// # Panics
    /// A case failed.
    pub fn assert_ok(self) {
        assert!(self.0.is_empty(), "{} failures:\n{}", self.0.len(), self.0.join("\n"));
    }
}

/// The log of this thread since [`capture`], as JSON.
pub fn logged() -> String {
    log::logged(log::Format::Json)
}

/// A folder that only this user can write.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build folder can be written to")
}

/// The current wall time.
pub fn wall_time() -> i64 {
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    i64::try_from(now).expect("a time of this age")
}
