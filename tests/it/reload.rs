//! Reloads while requests are served, in process: which changes are applied, which are kept pending, and how pending
//! changes are applied later.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{NOW, config, fetching, fixed_clock, inline, prompt_refresh, provider};
use portcullis::access_request::AccessRequest;
use portcullis::app::{App, ConfigFile, Hangups};
use portcullis::commands::issuer::{Issuer, SigningAlgorithm, SigningKey};
use portcullis::config::{Config, KeySource, ProviderConfig, RefreshPolicy};
use portcullis::service::{NotReloaded, Service};
use portcullis::validation::provider::Audiences;
use serde_json::json;

/// The timeout of every wait.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A service with one issuer and its key.
struct TestEnv {
    issuer: Issuer,
    key: SigningKey,
    config: Config,
    service: Service,
}

impl TestEnv {
    async fn start() -> Self {
        let issuer = Issuer::start().await.expect("a free port");
        let key = issuer.rotate(SigningAlgorithm::ES256);
        let config = config(vec![of(&issuer, "p")]);
        let service = Service::start(&config, fixed_clock()).expect("no file is needed");
        let env = Self { issuer, key, config, service };
        env.wait_for_keys().await;
        env
    }

    async fn wait_for_keys(&self) {
        for keyed in self.service.authorizer().providers() {
            keyed.keys.first_fetch_ended().await;
        }
    }

    /// The configuration with its first provider changed.
    fn with(&self, change: impl FnOnce(&mut ProviderConfig)) -> Config {
        let mut config = self.config.clone();
        change(&mut config.providers[0]);
        config
    }

    /// The decision for a valid token of the issuer.
    async fn decision(&self) -> String {
        decide(&self.service, &self.key.sign(&self.issuer.claims(NOW))).await
    }

    fn metrics(&self) -> String {
        self.service.publish_gauges();
        self.service.metrics().encode().expect("text")
    }

    #[track_caller]
    fn assert_reloads(&self, applied: u64, rejected: u64) {
        let text = self.metrics();
        for (outcome, count) in [("applied", applied), ("rejected", rejected)] {
            let line = format!("portcullis_config_reloads_total{{outcome=\"{outcome}\"}} {count}\n");
            assert!(text.contains(&line), "not {line}{text}");
        }
    }
}

fn of(issuer: &Issuer, name: &str) -> ProviderConfig {
    fetching(provider(name, issuer.issuer()), issuer, prompt_refresh())
}

/// Changes the key URL to a path that answers 404.
fn break_key_url(provider: &mut ProviderConfig) {
    let KeySource::JwksUri(url) = &mut provider.keys else { panic!("it has a URL") };
    url[0].set_path("/kyes");
}

fn rename(provider: &mut ProviderConfig, name: &str) {
    Arc::make_mut(&mut provider.provider).name = name.to_owned();
}

/// The provider of a token and the reason of the verdict.
async fn decide(service: &Service, token: &str) -> String {
    let token = format!("Bearer {token}");
    let headers = [(&b"authorization"[..], token.as_bytes())];
    let request = AccessRequest::new(
        b"GET",
        b"h",
        b"/",
        headers.into_iter().collect(),
        portcullis::clock::monotonic().into_std(),
    );
    let authorizer = service.authorizer();
    let decision = authorizer.decide("test", &request).await.decision;
    let provider = decision.record.provider().map(|provider| &*provider.name);
    format!("{} {}", provider.unwrap_or_default(), decision.verdict.reason().as_str())
}

fn pending(provider: &str, error: &str) -> Vec<NotReloaded> {
    vec![NotReloaded { provider: provider.to_owned(), error: error.to_owned() }]
}

/// The error of the URL of `break_key_url`.
fn not_found(env: &TestEnv) -> String {
    let mut url: url::Url = env.issuer.jwks_uri().parse().expect("a URL");
    url.set_path("/kyes");
    format!("key set at {url}: the answer's status is 404, not 200")
}

#[tokio::test]
async fn a_key_url_with_a_typo_does_not_change_the_provider() {
    let env = TestEnv::start().await;
    let broken = env.with(|provider| {
        break_key_url(provider);
        Arc::make_mut(&mut provider.provider).audiences = Audiences::AnyOf(vec!["other".to_owned()]);
    });
    assert_eq!(env.service.reload(&broken).await, Ok(pending("p", &not_found(&env))));
    assert_eq!(env.decision().await, "p ok", "the whole provider is kept, not only its keys");
    env.assert_reloads(0, 1);
    let forced = env.issuer.rotate_beside(SigningAlgorithm::ES256);
    let token = forced.sign(&env.issuer.claims(NOW));
    assert_eq!(decide(&env.service, &token).await, "p ok", "its keys are still kept fresh");
    assert_eq!(env.service.reload(&env.config).await, Ok(Vec::new()));
    env.assert_reloads(1, 1);
    assert_eq!(env.issuer.key_fetches(), 2, "the running configuration is requested again");
}

#[tokio::test]
async fn a_pending_change_is_applied_once_its_source_answers() {
    let env = TestEnv::start().await;
    let moved = Issuer::start().await.expect("a free port");
    let new_config = env.with(|provider| {
        provider.keys = KeySource::JwksUri(vec![moved.jwks_uri().parse().expect("a URL")]);
    });
    // The new source publishes no key yet.
    let first = env.service.reload(&new_config).await.expect("valid");
    assert!(first.len() == 1 && first[0].provider == "p", "{first:?}");
    let before = env.service.authorizer();
    assert_eq!(env.service.retry_pending().await, first);
    assert!(Arc::ptr_eq(&before, &env.service.authorizer()), "a failed retry changes nothing");
    env.assert_reloads(0, 1);
    let key = moved.rotate(SigningAlgorithm::ES256);
    assert_eq!(env.service.retry_pending().await, Vec::new());
    assert_eq!(decide(&env.service, &key.sign(&env.issuer.claims(NOW))).await, "p ok");
    assert_eq!(env.decision().await, "p bad_signature", "the old source is not used");
    env.assert_reloads(1, 1);
    let before = env.service.authorizer();
    assert_eq!(env.service.retry_pending().await, Vec::new());
    assert!(Arc::ptr_eq(&before, &env.service.authorizer()), "no change is pending");
    env.assert_reloads(1, 1);
}

#[tokio::test]
async fn a_new_source_is_fetched_once_and_serves_without_a_gap() {
    let env = TestEnv::start().await;
    let moved = Issuer::start().await.expect("a free port");
    moved.publish(&[&env.key]);
    let new_config = env.with(|provider| {
        provider.keys = KeySource::JwksUri(vec![moved.jwks_uri().parse().expect("a URL")]);
    });
    assert_eq!(env.service.reload(&new_config).await, Ok(Vec::new()));
    moved.hold();
    assert_eq!(env.decision().await, "p ok");
    assert_eq!((moved.key_fetches(), env.issuer.key_fetches()), (1, 1));
}

#[tokio::test]
async fn a_provider_renamed_while_its_issuer_is_down_keeps_its_keys() {
    let env = TestEnv::start().await;
    env.issuer.stop().await;
    for name in ["q", "r", "p", "s"] {
        let new_config = env.with(|provider| rename(provider, name));
        assert_eq!(env.service.reload(&new_config).await, Ok(Vec::new()));
        assert_eq!(env.decision().await, format!("{name} ok"));
        env.wait_for_keys().await;
        assert_eq!(env.decision().await, format!("{name} ok"));
    }
    let metrics = env.metrics();
    assert!(metrics.contains("portcullis_jwks_keys{provider=\"s\"} 1\n"), "{metrics}");
    let gauges = ["jwks_keys", "jwks_age_seconds", "jwks_generation", "jwks_waiters"];
    for (gauge, removed) in gauges.iter().flat_map(|gauge| [(gauge, "p"), (gauge, "q"), (gauge, "r")]) {
        let line = format!("portcullis_{gauge}{{provider=\"{removed}\"}}");
        assert!(!metrics.contains(&line), "{line} is there:\n{metrics}");
    }
}

#[tokio::test]
async fn a_removed_name_does_not_return_to_the_gauges_with_a_later_fetch() {
    let env = TestEnv::start().await;
    env.issuer.hold();
    // A waiting request keeps the old key cache and its fetch.
    let token = env.key.with_kid("new").sign(&env.issuer.claims(NOW));
    let ((), ()) = tokio::join!(
        async {
            assert_eq!(decide(&env.service, &token).await, "p key_unknown");
        },
        async {
            env.issuer.wait_for_held(1).await;
            let new_config = env.with(|provider| rename(provider, "q"));
            assert_eq!(env.service.reload(&new_config).await, Ok(Vec::new()));
            env.issuer.release();
        }
    );
    let metrics = env.metrics();
    assert!(!metrics.contains("portcullis_jwks_keys{provider=\"p\"}"), "{metrics}");
}

#[tokio::test]
async fn swapped_provider_names_follow_their_issuers() {
    let (one, two) = (TestEnv::start().await, TestEnv::start().await);
    let before = config(vec![of(&one.issuer, "a"), of(&two.issuer, "b")]);
    assert_eq!(one.service.reload(&before).await, Ok(Vec::new()));
    one.wait_for_keys().await;
    one.issuer.stop().await;
    two.issuer.stop().await;
    let after = config(vec![of(&two.issuer, "a"), of(&one.issuer, "b")]);
    assert_eq!(one.service.reload(&after).await, Ok(Vec::new()));
    assert_eq!(one.decision().await, "b ok");
    assert_eq!(decide(&one.service, &two.key.sign(&two.issuer.claims(NOW))).await, "a ok");
}

#[tokio::test]
async fn a_renamed_provider_with_a_broken_key_url_keeps_its_keys() {
    let env = TestEnv::start().await;
    let new_config = env.with(|provider| {
        break_key_url(provider);
        rename(provider, "q");
    });
    assert_eq!(env.service.reload(&new_config).await, Ok(pending("q", &not_found(&env))));
    assert_eq!(env.decision().await, "q ok");
}

#[tokio::test]
async fn of_two_providers_the_valid_one_is_reloaded() {
    let (env, other) = (TestEnv::start().await, TestEnv::start().await);
    let both = |audience: &str| {
        let mut good = of(&other.issuer, "good");
        Arc::make_mut(&mut good.provider).audiences = Audiences::AnyOf(vec![audience.to_owned()]);
        good
    };
    let before = config(vec![of(&env.issuer, "p"), both("elsewhere")]);
    assert_eq!(env.service.reload(&before).await, Ok(Vec::new()));
    env.wait_for_keys().await;
    let token = other.key.sign(&other.issuer.claims(NOW));
    assert_eq!(decide(&env.service, &token).await, "good audience_mismatch");
    let mut after = config(vec![of(&env.issuer, "p"), both("orders-api")]);
    break_key_url(&mut after.providers[0]);
    assert_eq!(env.service.reload(&after).await, Ok(pending("p", &not_found(&env))));
    assert_eq!(decide(&env.service, &token).await, "good ok");
    assert_eq!(env.decision().await, "p ok");
}

#[tokio::test]
async fn http_options_that_do_not_reach_the_issuer_leave_the_old_ones() {
    let env = TestEnv::start().await;
    let new_config = env.with(|provider| provider.http.ca_file = Some("/nowhere/ca.pem".into()));
    let outcome = env.service.reload(&new_config).await.expect("valid");
    assert!(outcome.len() == 1 && outcome[0].error.contains("/nowhere/ca.pem"), "{outcome:?}");
    assert_eq!(env.decision().await, "p ok");
    env.issuer.stop().await;
    let new_config = env.with(|provider| provider.http.allow_http = true);
    let outcome = env.service.reload(&new_config).await.expect("valid");
    assert_eq!(outcome.len(), 1, "the issuer must be reachable");
    env.issuer.restart().await.expect("its port is free");
    assert_eq!(env.service.retry_pending().await, Vec::new());
    assert_eq!(env.decision().await, "p ok");
}

#[tokio::test]
async fn a_new_issuer_must_answer_before_the_old_one_is_removed() {
    let env = TestEnv::start().await;
    let other = Issuer::start().await.expect("a free port");
    let new_config = config(vec![of(&other, "p")]);
    assert_eq!(env.service.reload(&new_config).await.expect("valid").len(), 1);
    assert_eq!(env.decision().await, "p ok");
    let key = other.rotate(SigningAlgorithm::ES256);
    assert_eq!(env.service.retry_pending().await, Vec::new());
    assert_eq!(decide(&env.service, &key.sign(&other.claims(NOW))).await, "p ok");
    assert_eq!(env.decision().await, " issuer_unknown");
}

#[tokio::test]
async fn a_provider_that_is_new_is_added_without_waiting_for_its_keys() {
    let env = TestEnv::start().await;
    let other = Issuer::start().await.expect("a free port");
    other.hold();
    assert!(env.service.is_serving());
    let new_config = config(vec![of(&env.issuer, "p"), of(&other, "new")]);
    assert_eq!(env.service.reload(&new_config).await, Ok(Vec::new()));
    assert!(env.service.is_serving());
    assert_eq!(env.decision().await, "p ok");
    // The old name at a new issuer is a new provider if the old issuer is renamed.
    let new_config = config(vec![of(&env.issuer, "q"), of(&other, "new"), {
        let mut third = of(&other, "p");
        Arc::make_mut(&mut third.provider).issuer = "https://third.example.com".to_owned();
        third
    }]);
    assert_eq!(env.service.reload(&new_config).await, Ok(Vec::new()));
    assert_eq!(env.decision().await, "q ok");
}

#[tokio::test]
async fn inline_keys_need_no_response() {
    let env = TestEnv::start().await;
    let next = SigningKey::generate("next", SigningAlgorithm::ES256);
    let new_config = config(vec![inline(provider("p", env.issuer.issuer()), &[next.public_jwk()])]);
    assert_eq!(env.service.reload(&new_config).await, Ok(Vec::new()));
    assert_eq!(decide(&env.service, &next.sign(&env.issuer.claims(NOW))).await, "p ok");
    // The change back to a URL needs a response.
    let broken = env.with(break_key_url);
    assert_eq!(env.service.reload(&broken).await, Ok(pending("p", &not_found(&env))));
    assert_eq!(decide(&env.service, &next.sign(&env.issuer.claims(NOW))).await, "p ok");
    assert_eq!(env.service.reload(&env.config).await, Ok(Vec::new()));
    assert_eq!(env.decision().await, "p ok");
}

#[tokio::test]
async fn hanging_sources_are_fetched_concurrently_and_delay_no_request() {
    let (env, slow) = (TestEnv::start().await, Issuer::start().await.expect("a free port"));
    slow.hold();
    let second = TestEnv::start().await;
    let before = config(vec![of(&env.issuer, "p"), of(&second.issuer, "q")]);
    assert_eq!(env.service.reload(&before).await, Ok(Vec::new()));
    env.wait_for_keys().await;
    let mut new_config = before.clone();
    for provider in &mut new_config.providers {
        provider.keys = KeySource::JwksUri(vec![slow.jwks_uri().parse().expect("a URL")]);
        provider.refresh = RefreshPolicy { timeout: Duration::from_millis(400), ..prompt_refresh() };
    }
    let (outcome, ()) = tokio::join!(env.service.reload(&new_config), async {
        // Both are held at the same time: the sources are fetched concurrently.
        let both = tokio::time::timeout(TEST_TIMEOUT, slow.wait_for_held(2)).await;
        assert!(both.is_ok(), "{} requests are held", slow.held());
        assert_eq!(env.decision().await, "p ok");
    });
    let error = format!("key set at {}: no answer within 400 ms", slow.jwks_uri());
    let both = [pending("p", &error), pending("q", &error)].concat();
    assert_eq!(outcome, Ok(both));
    assert_eq!(env.decision().await, "p ok");
}

#[tokio::test]
async fn reloads_are_serialized() {
    let (env, slow) = (TestEnv::start().await, Issuer::start().await.expect("a free port"));
    slow.publish(&[&env.key]);
    slow.hold();
    let first = env.with(|provider| {
        provider.keys = KeySource::JwksUri(vec![slow.jwks_uri().parse().expect("a URL")]);
    });
    let second = env.with(|provider| rename(provider, "second"));
    let second = async {
        slow.wait_for_held(1).await;
        let (outcome, ()) = tokio::join!(env.service.reload(&second), async {
            slow.release();
        });
        outcome
    };
    let (first, second) = tokio::join!(env.service.reload(&first), second);
    assert_eq!((first, second), (Ok(Vec::new()), Ok(Vec::new())));
    assert_eq!(env.decision().await, "second ok", "the later reload is applied last");
}

#[tokio::test]
async fn a_cancelled_reload_changes_nothing() {
    let (env, slow) = (TestEnv::start().await, Issuer::start().await.expect("a free port"));
    slow.hold();
    let new_config = env.with(|provider| {
        provider.keys = KeySource::JwksUri(vec![slow.jwks_uri().parse().expect("a URL")]);
    });
    let before = env.service.authorizer();
    tokio::select! {
        _ = env.service.reload(&new_config) => panic!("nothing has answered"),
        () = slow.wait_for_held(1) => {}
    }
    assert!(Arc::ptr_eq(&before, &env.service.authorizer()));
    assert_eq!(env.service.retry_pending().await, Vec::new(), "no change is pending");
    assert_eq!(env.service.reload(&env.config).await, Ok(Vec::new()));
    env.assert_reloads(1, 0);
}

#[tokio::test]
async fn a_new_provider_with_unreadable_files_rejects_the_whole_configuration() {
    let env = TestEnv::start().await;
    let mut new_config = env.with(|provider| rename(provider, "q"));
    new_config
        .providers
        .push(inline(provider("fixed", "https://fixed.example.com"), &[env.key.public_jwk()]));
    let other = Issuer::start().await.expect("a free port");
    new_config.providers.push(of(&other, "new"));
    new_config.providers[2].http.ca_file = Some("/nowhere/ca.pem".into());
    let error = env.service.reload(&new_config).await.expect_err("the file cannot be read").to_string();
    assert!(error.contains("new") && error.contains("/nowhere/ca.pem"), "{error}");
    assert_eq!(env.decision().await, "p ok");
    env.assert_reloads(0, 1);
    assert!(!env.metrics().contains("portcullis_jwks_keys{provider=\"q\"}"), "{}", env.metrics());
    assert_eq!(env.service.retry_pending().await, Vec::new(), "no change is pending");
}

#[tokio::test]
async fn the_time_of_the_last_full_reload_is_exported_from_the_start() {
    let env = TestEnv::start().await;
    let line = format!("portcullis_config_last_reload_success_timestamp_seconds {NOW}.0\n");
    assert!(env.metrics().contains(&line), "{}", env.metrics());
    env.assert_reloads(0, 0);
}

/// Writes a configuration with this key file.
fn write(file: &Path, name: &str, keys: &Path) {
    let text = format!(
        "listen: {{ext_authz: 127.0.0.1:0}}
providers: [{{name: {name}, issuer: 'https://i.example.com', audiences: [a], jwks_file: {}}}]",
        keys.display()
    );
    std::fs::write(file, text).expect("written");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_recovers_later_is_applied_without_a_change_of_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let keys = ["old", "new"].map(|kid| SigningKey::generate(kid, SigningAlgorithm::ES256));
    let [old, new] = &keys;
    let set = |key: &SigningKey| json!({"keys": [key.public_jwk()]}).to_string();
    std::fs::write(at("old.json"), set(old)).expect("written");
    write(&at("p.yaml"), "p", &at("old.json"));
    let hangups = Hangups::new().expect("a signal handler");
    let (config, file) = ConfigFile::load(&at("p.yaml"), hangups).await.expect("valid");
    let app = App::bind(config, fixed_clock()).await.expect("bound").reloading_from(file);
    let service = app.service();
    let serving = tokio::spawn(app.serve(std::future::pending()));
    let claims = json!({"iss": "https://i.example.com", "aud": "a", "exp": NOW + 60});
    let decided = async |key: &SigningKey| decide(&service, &key.sign(&claims)).await;
    let has_count = |outcome: &str, count: u64| {
        let line = format!("portcullis_config_reloads_total{{outcome=\"{outcome}\"}} {count}\n");
        service.metrics().encode().expect("text").contains(&line)
    };
    let until = async |what: &str, holds: &dyn Fn() -> bool| {
        let wait = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(30), wait).await;
        seen.unwrap_or_else(|_| panic!("timeout: {what}: {}", service.metrics().encode().expect("text")));
    };
    until("serving", &|| service.is_serving()).await;

    std::fs::write(at("new.json"), "not yet").expect("written");
    write(&at("p.yaml"), "p", &at("new.json"));
    until("the new one is rejected", &|| has_count("rejected", 1)).await;
    // Retried more than once, and logged once.
    tokio::time::sleep(Duration::from_secs(35)).await;
    assert!(has_count("rejected", 1) && has_count("applied", 0));
    assert_eq!(decided(old).await, "p ok");

    std::fs::write(at("new.json"), set(new)).expect("written");
    until("it is applied", &|| has_count("applied", 1)).await;
    assert_eq!(decided(new).await, "p ok");

    // A broken file is counted.
    std::fs::write(at("p.yaml"), "providers: [").expect("written");
    until("the broken file is rejected", &|| has_count("rejected", 2)).await;
    write(&at("p.yaml"), "q", &at("new.json"));
    until("the last one is applied", &|| has_count("applied", 2)).await;
    assert_eq!(decided(new).await, "q ok");
    serving.abort();
}
