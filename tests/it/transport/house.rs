//! A service under a configuration that is given as text, beside a key server; what an operator sees of
//! it; and how a table of answers is tried.

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

/// Longer than anything takes that happens at all.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The issuer of all tokens that do not say otherwise. It is a name; nobody asks there.
pub const ISSUER: &str = "https://issuer.example.com";

/// Nothing is fetched by itself once there are keys, and what a token forces starts at once.
pub const PROMPT: &str = "refresh: {interval: 1h, min_spacing: 10ms, min_spacing_bad_signature: 10ms, \
                          wait: 10s, timeout: 10s}";

/// The same, where a fetch that hangs is soon given up.
pub const IMPATIENT: &str = "refresh: {interval: 1h, min_spacing: 10ms, min_spacing_bad_signature: 10ms, \
                             wait: 10s, timeout: 500ms}";

/// Fetched all the time.
pub const BUSY: &str = "refresh: {interval: 20ms, min_spacing: 10ms, min_spacing_bad_signature: 10ms, \
                        wait: 10s, timeout: 10s}";

/// A key that signs.
pub fn key(kid: &str) -> SigningKey {
    SigningKey::generate(kid, SigningAlgorithm::ES256)
}

/// A good token, but for whose key it is.
pub fn token(key: &SigningKey) -> String {
    token_of(ISSUER, key, NOW + 60)
}

/// The same, of another issuer and with another end.
pub fn token_of(issuer: &str, key: &SigningKey, exp: i64) -> String {
    key.sign(&json!({"iss": issuer, "aud": "orders-api", "sub": "alice", "exp": exp}))
}

/// A provider as YAML says it: `keys` is where they are, `more` is further members of the mapping.
pub fn provider(name: &str, issuer: &str, keys: &str, more: &str) -> String {
    format!("  - {{name: {name}, issuer: '{issuer}', audiences: [orders-api], {keys}, {more}}}\n")
}

/// The text of a configuration with these providers, on ports that the system chooses.
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

/// What is wrong with the configuration of one provider; empty where nothing is.
pub fn configuration_faults(keys: &str, more: &str) -> String {
    let parsed = Config::parse(&text(&[provider("demo", ISSUER, keys, more)]), &|_| None);
    parsed.err().map(|errors| errors.to_string()).unwrap_or_default()
}

/// Why a service of one provider cannot start, be it for its configuration or for what it finds.
pub async fn start_faults(keys: &str, more: &str) -> String {
    match Config::parse(&text(&[provider("demo", ISSUER, keys, more)]), &|_| None) {
        Err(errors) => errors.to_string(),
        Ok(config) => {
            App::bind(config, fixed_clock()).await.err().map(|error| error.to_string()).unwrap_or_default()
        }
    }
}

/// A service with one provider, `demo`, and the server of its keys.
pub struct House {
    /// Publishes `key` alone at first, whatever it is asked for.
    pub server: KeyServer,
    /// The key that it publishes.
    pub key: SigningKey,
    /// The service. It has the key.
    pub service: Running,
}

impl House {
    /// Over plain http.
    pub async fn start(more: &str) -> Self {
        let server = KeyServer::start().await;
        let keys = format!("jwks_uri: '{}'", server.http("/keys"));
        Self::of(server, &keys, more).await
    }

    /// Over whatever the server speaks.
    pub async fn of(server: KeyServer, keys: &str, more: &str) -> Self {
        let key = key("old");
        server.always(Answer::keys(&[&key]));
        let config = configured(&[provider("demo", ISSUER, keys, more)]);
        let service = Running::start(config, fixed_clock()).await;
        Self { server, key, service }
    }

    /// Holds the answer to a token that this key signed against a reason; gives what is wrong.
    pub async fn faults(&self, key: &SigningKey, reason: &str) -> Vec<String> {
        self.service.bearer(&token(key)).await.faults(reason, &[])
    }

    /// # Panics
    /// The answer to a token that this key signed has another reason, or is wrong in itself.
    pub async fn is(&self, key: &SigningKey, reason: &str) {
        assert_eq!(self.faults(key, reason).await, Vec::<String>::new());
    }

    /// Asks until a token that this key signed is allowed. Until then nobody may be blamed.
    pub async fn comes_to_know(&self, key: &SigningKey) {
        eventually("the key is known", async || {
            let answer = self.service.bearer(&token(key)).await;
            let blameless = answer.is_allowed() || answer.reason() == "keys_unavailable";
            assert!(blameless, "{}", answer.reason());
            answer.is_allowed()
        })
        .await;
    }

    /// What `/keys` says of the provider.
    pub async fn status(&self) -> Value {
        status(&self.service, "demo").await
    }

    /// Why the last fetch failed; empty where it did not.
    pub async fn last_error(&self) -> String {
        self.status().await["last_error"].as_str().unwrap_or_default().to_owned()
    }

    /// The value of a metric, 0 where it is not there.
    pub async fn counted(&self, metric: &str) -> u64 {
        counted(&self.service, metric).await
    }
}

/// What `/keys` says of a provider.
pub async fn status(service: &Running, name: &str) -> Value {
    let page: Value = serde_json::from_str(&service.admin("/keys").await).expect("JSON");
    let providers = page["providers"].as_array().expect("a list");
    providers.iter().find(|provider| provider["name"] == name).expect("it is there").clone()
}

/// The value of a metric with its labels, 0 where it is not there.
pub async fn counted(service: &Running, metric: &str) -> u64 {
    counted_in(&service.admin("/metrics").await, metric)
}

/// The value of a metric with its labels on this page, 0 where it is not there.
pub fn counted_in(page: &str, metric: &str) -> u64 {
    let value = page.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().expect("a count"))
}

/// How many fetches of `demo` ended like this.
pub async fn fetches(service: &Running, trigger: &str, outcome: &str) -> u64 {
    let labels = format!(r#"provider="demo",trigger="{trigger}",outcome="{outcome}""#);
    counted(service, &format!("portcullis_jwks_fetches_total{{{labels}}}")).await
}

/// # Panics
/// It never holds.
pub async fn eventually(what: impl Display, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// What went wrong in a table of answers.
#[derive(Default)]
pub struct Table(Vec<String>);

impl Table {
    /// With this answer, which is made of a key that is not known, the set in hand stays, tokens of the key
    /// are nobody's fault, and `/keys` says this among the reasons, in few words; and the next good answer
    /// is taken.
    pub async fn refuses(
        &mut self,
        more: &str,
        what: &str,
        says: &str,
        answer: impl FnOnce(&SigningKey) -> Answer,
    ) {
        let house = House::start(more).await;
        self.refuses_in(&house, what, says, answer).await;
    }

    /// The same, in this house.
    pub async fn refuses_in(
        &mut self,
        house: &House,
        what: &str,
        says: &str,
        answer: impl FnOnce(&SigningKey) -> Answer,
    ) {
        let new = key("new");
        house.server.always(answer(&new));
        self.note(what, house.faults(&new, "keys_unavailable").await);
        self.note(what, house.faults(&house.key, "ok").await);
        let error = house.last_error().await;
        let slow = "no answer within";
        if error.is_empty() || !error.contains(says) || error.contains(slow) != says.contains(slow) {
            self.0.push(format!("{what}: {error:?} does not say {says:?}"));
        }
        if error.len() > 300 {
            self.0.push(format!("{what}: an error of {} bytes: {error:.300}", error.len()));
        }
        house.server.always(Answer::keys(&[&new]));
        house.comes_to_know(&new).await;
    }

    /// With this answer, which is made of a key that is not known, a token of the key is allowed at its
    /// first try.
    pub async fn accepts(&mut self, what: &str, answer: impl FnOnce(&SigningKey) -> Answer) {
        let house = House::start(PROMPT).await;
        let new = key("new");
        house.server.always(answer(&new));
        let mut faults = house.faults(&new, "ok").await;
        if !faults.is_empty() {
            faults.push(house.last_error().await);
        }
        self.note(what, faults);
    }

    /// What was found wrong with a case.
    pub fn note(&mut self, what: &str, faults: Vec<String>) {
        self.0.extend(faults.into_iter().map(|fault| format!("{what}: {fault}")));
    }

    /// # Panics
    /// Anything was wrong.
    pub fn judge(self) {
        assert!(self.0.is_empty(), "{} wrong:\n{}", self.0.len(), self.0.join("\n"));
    }
}

/// What was logged on this thread since [`listen`], as JSON.
pub fn logged() -> String {
    log::logged(log::Format::Json)
}

/// A folder that only this user can write to.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build folder can be written to")
}

/// The wall time of a process of its own.
pub fn wall_time() -> i64 {
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    i64::try_from(now).expect("a time of this age")
}
