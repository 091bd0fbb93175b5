//! From one configuration to another while requests are served, in process: what is taken over, what stays as it
//! was, and how that comes to be whole later.

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

/// Longer than anything takes that happens at all.
const PATIENCE: Duration = Duration::from_secs(20);

/// A service of one issuer, which has a key.
struct House {
    issuer: Issuer,
    key: SigningKey,
    config: Config,
    service: Service,
}

impl House {
    async fn start() -> Self {
        let issuer = Issuer::start().await.expect("a free port");
        let key = issuer.rotate(SigningAlgorithm::ES256);
        let config = config(vec![of(&issuer, "p")]);
        let service = Service::start(&config, fixed_clock()).expect("no file is needed");
        let house = Self { issuer, key, config, service };
        house.has_keys().await;
        house
    }

    async fn has_keys(&self) {
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

    /// What becomes of a good token of the issuer.
    async fn asked(&self) -> String {
        decide(&self.service, &self.key.sign(&self.issuer.claims(NOW))).await
    }

    fn metrics(&self) -> String {
        self.service.publish_gauges();
        self.service.metrics().encode().expect("text")
    }

    #[track_caller]
    fn has_counted(&self, applied: u64, rejected: u64) {
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

/// With keys at another path of the same host, where there are none.
fn misspelt(provider: &mut ProviderConfig) {
    let KeySource::JwksUri(url) = &mut provider.keys else { panic!("it has a URL") };
    url.set_path("/kyes");
}

fn renamed(provider: &mut ProviderConfig, name: &str) {
    Arc::make_mut(&mut provider.provider).name = name.to_owned();
}

/// The provider that a token was of and the reason of the verdict.
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

fn kept(provider: &str, error: &str) -> Vec<NotReloaded> {
    vec![NotReloaded { provider: provider.to_owned(), error: error.to_owned() }]
}

const NOT_FOUND: &str = "the answer's status is 404, not 200";

#[tokio::test]
async fn a_key_url_with_a_typo_leaves_the_provider_as_it_was() {
    let house = House::start().await;
    let broken = house.with(|provider| {
        misspelt(provider);
        Arc::make_mut(&mut provider.provider).audiences = Audiences::AnyOf(vec!["other".to_owned()]);
    });
    assert_eq!(house.service.reload(&broken).await, Ok(kept("p", NOT_FOUND)));
    assert_eq!(house.asked().await, "p ok", "with all that it says, not its keys alone");
    house.has_counted(0, 1);
    let forced = house.issuer.rotate_beside(SigningAlgorithm::ES256);
    let token = forced.sign(&house.issuer.claims(NOW));
    assert_eq!(decide(&house.service, &token).await, "p ok", "its keys are still kept fresh");
    assert_eq!(house.service.reload(&house.config).await, Ok(Vec::new()));
    house.has_counted(1, 1);
    assert_eq!(house.issuer.key_fetches(), 2, "what is asked for again is what runs");
}

#[tokio::test]
async fn what_stayed_as_it_was_is_taken_over_once_its_source_answers() {
    let house = House::start().await;
    let moved = Issuer::start().await.expect("a free port");
    let wanted = house.with(|provider| {
        provider.keys = KeySource::JwksUri(moved.jwks_uri().parse().expect("a URL"));
    });
    // It publishes no key yet.
    let first = house.service.reload(&wanted).await.expect("valid");
    assert!(first.len() == 1 && first[0].provider == "p", "{first:?}");
    let before = house.service.authorizer();
    assert_eq!(house.service.retry_pending().await, first);
    assert!(Arc::ptr_eq(&before, &house.service.authorizer()), "a try that brings nothing changes nothing");
    house.has_counted(0, 1);
    let key = moved.rotate(SigningAlgorithm::ES256);
    assert_eq!(house.service.retry_pending().await, Vec::new());
    assert_eq!(decide(&house.service, &key.sign(&house.issuer.claims(NOW))).await, "p ok");
    assert_eq!(house.asked().await, "p bad_signature", "the old source is let go");
    house.has_counted(1, 1);
    let before = house.service.authorizer();
    assert_eq!(house.service.retry_pending().await, Vec::new());
    assert!(Arc::ptr_eq(&before, &house.service.authorizer()), "nothing is left to be tried");
    house.has_counted(1, 1);
}

#[tokio::test]
async fn a_source_that_answers_is_asked_once_and_serves_without_a_gap() {
    let house = House::start().await;
    let moved = Issuer::start().await.expect("a free port");
    moved.publish(&[&house.key]);
    let wanted = house.with(|provider| {
        provider.keys = KeySource::JwksUri(moved.jwks_uri().parse().expect("a URL"));
    });
    assert_eq!(house.service.reload(&wanted).await, Ok(Vec::new()));
    moved.hold();
    assert_eq!(house.asked().await, "p ok");
    assert_eq!((moved.key_fetches(), house.issuer.key_fetches()), (1, 1));
}

#[tokio::test]
async fn a_provider_that_is_renamed_while_its_issuer_is_away_keeps_its_keys_each_time() {
    let house = House::start().await;
    house.issuer.stop().await;
    for name in ["q", "r", "p", "s"] {
        let wanted = house.with(|provider| renamed(provider, name));
        assert_eq!(house.service.reload(&wanted).await, Ok(Vec::new()));
        assert_eq!(house.asked().await, format!("{name} ok"));
        house.has_keys().await;
        assert_eq!(house.asked().await, format!("{name} ok"));
    }
    let metrics = house.metrics();
    assert!(metrics.contains("portcullis_jwks_keys{provider=\"s\"} 1\n"), "{metrics}");
    let gauges = ["jwks_keys", "jwks_age_seconds", "jwks_generation", "jwks_waiters"];
    for (gauge, gone) in gauges.iter().flat_map(|gauge| [(gauge, "p"), (gauge, "q"), (gauge, "r")]) {
        let line = format!("portcullis_{gauge}{{provider=\"{gone}\"}}");
        assert!(!metrics.contains(&line), "{line} is there:\n{metrics}");
    }
}

#[tokio::test]
async fn a_name_that_is_gone_does_not_come_back_into_the_gauges_with_a_fetch_that_ends_later() {
    let house = House::start().await;
    house.issuer.hold();
    // A request that waits keeps the old keys, and with them their fetch.
    let token = house.key.with_kid("new").sign(&house.issuer.claims(NOW));
    let ((), ()) = tokio::join!(
        async {
            assert_eq!(decide(&house.service, &token).await, "p key_unknown");
        },
        async {
            house.issuer.wait_for_held(1).await;
            let wanted = house.with(|provider| renamed(provider, "q"));
            assert_eq!(house.service.reload(&wanted).await, Ok(Vec::new()));
            house.issuer.release();
        }
    );
    let metrics = house.metrics();
    assert!(!metrics.contains("portcullis_jwks_keys{provider=\"p\"}"), "{metrics}");
}

#[tokio::test]
async fn names_that_two_providers_exchange_go_with_their_issuers() {
    let (one, two) = (House::start().await, House::start().await);
    let before = config(vec![of(&one.issuer, "a"), of(&two.issuer, "b")]);
    assert_eq!(one.service.reload(&before).await, Ok(Vec::new()));
    one.has_keys().await;
    one.issuer.stop().await;
    two.issuer.stop().await;
    let after = config(vec![of(&two.issuer, "a"), of(&one.issuer, "b")]);
    assert_eq!(one.service.reload(&after).await, Ok(Vec::new()));
    assert_eq!(one.asked().await, "b ok");
    assert_eq!(decide(&one.service, &two.key.sign(&two.issuer.claims(NOW))).await, "a ok");
}

#[tokio::test]
async fn a_provider_that_is_renamed_and_misspelt_stays_under_its_new_name() {
    let house = House::start().await;
    let wanted = house.with(|provider| {
        misspelt(provider);
        renamed(provider, "q");
    });
    assert_eq!(house.service.reload(&wanted).await, Ok(kept("q", NOT_FOUND)));
    assert_eq!(house.asked().await, "q ok");
}

#[tokio::test]
async fn of_two_providers_the_one_that_is_not_broken_is_taken_over() {
    let (house, other) = (House::start().await, House::start().await);
    let both = |audience: &str| {
        let mut good = of(&other.issuer, "good");
        Arc::make_mut(&mut good.provider).audiences = Audiences::AnyOf(vec![audience.to_owned()]);
        good
    };
    let before = config(vec![of(&house.issuer, "p"), both("elsewhere")]);
    assert_eq!(house.service.reload(&before).await, Ok(Vec::new()));
    house.has_keys().await;
    let token = other.key.sign(&other.issuer.claims(NOW));
    assert_eq!(decide(&house.service, &token).await, "good audience_mismatch");
    let mut after = config(vec![of(&house.issuer, "p"), both("orders-api")]);
    misspelt(&mut after.providers[0]);
    assert_eq!(house.service.reload(&after).await, Ok(kept("p", NOT_FOUND)));
    assert_eq!(decide(&house.service, &token).await, "good ok");
    assert_eq!(house.asked().await, "p ok");
}

#[tokio::test]
async fn http_options_that_do_not_reach_the_issuer_leave_the_old_ones() {
    let house = House::start().await;
    let wanted = house.with(|provider| provider.http.ca_file = Some("/nowhere/ca.pem".into()));
    let outcome = house.service.reload(&wanted).await.expect("valid");
    assert!(outcome.len() == 1 && outcome[0].error.contains("/nowhere/ca.pem"), "{outcome:?}");
    assert_eq!(house.asked().await, "p ok");
    house.issuer.stop().await;
    let wanted = house.with(|provider| provider.http.allow_http = true);
    let outcome = house.service.reload(&wanted).await.expect("valid");
    assert_eq!(outcome.len(), 1, "they have to reach it");
    house.issuer.restart().await.expect("its port is free");
    assert_eq!(house.service.retry_pending().await, Vec::new());
    assert_eq!(house.asked().await, "p ok");
}

#[tokio::test]
async fn an_issuer_that_is_another_now_has_to_answer_before_the_old_one_is_refused() {
    let house = House::start().await;
    let other = Issuer::start().await.expect("a free port");
    let wanted = config(vec![of(&other, "p")]);
    assert_eq!(house.service.reload(&wanted).await.expect("valid").len(), 1);
    assert_eq!(house.asked().await, "p ok");
    let key = other.rotate(SigningAlgorithm::ES256);
    assert_eq!(house.service.retry_pending().await, Vec::new());
    assert_eq!(decide(&house.service, &key.sign(&other.claims(NOW))).await, "p ok");
    assert_eq!(house.asked().await, " issuer_unknown");
}

#[tokio::test]
async fn a_provider_that_is_new_is_added_without_waiting_for_its_keys() {
    let house = House::start().await;
    let other = Issuer::start().await.expect("a free port");
    other.hold();
    assert!(house.service.is_serving());
    let wanted = config(vec![of(&house.issuer, "p"), of(&other, "new")]);
    assert_eq!(house.service.reload(&wanted).await, Ok(Vec::new()));
    assert!(house.service.is_serving());
    assert_eq!(house.asked().await, "p ok");
    // The name of the old one at a new issuer, beside the old one's issuer under a new name, is new as well.
    let wanted = config(vec![of(&house.issuer, "q"), of(&other, "new"), {
        let mut third = of(&other, "p");
        Arc::make_mut(&mut third.provider).issuer = "https://third.example.com".to_owned();
        third
    }]);
    assert_eq!(house.service.reload(&wanted).await, Ok(Vec::new()));
    assert_eq!(house.asked().await, "q ok");
}

#[tokio::test]
async fn keys_that_stand_in_the_configuration_need_no_answer() {
    let house = House::start().await;
    let next = SigningKey::generate("next", SigningAlgorithm::ES256);
    let wanted = config(vec![inline(provider("p", house.issuer.issuer()), &[next.public_jwk()])]);
    assert_eq!(house.service.reload(&wanted).await, Ok(Vec::new()));
    assert_eq!(decide(&house.service, &next.sign(&house.issuer.claims(NOW))).await, "p ok");
    // And back to a URL, which has to answer.
    let broken = house.with(misspelt);
    assert_eq!(house.service.reload(&broken).await, Ok(kept("p", NOT_FOUND)));
    assert_eq!(decide(&house.service, &next.sign(&house.issuer.claims(NOW))).await, "p ok");
    assert_eq!(house.service.reload(&house.config).await, Ok(Vec::new()));
    assert_eq!(house.asked().await, "p ok");
}

#[tokio::test]
async fn sources_that_hang_are_tried_at_one_time_and_hold_up_no_request() {
    let (house, slow) = (House::start().await, Issuer::start().await.expect("a free port"));
    slow.hold();
    let second = House::start().await;
    let before = config(vec![of(&house.issuer, "p"), of(&second.issuer, "q")]);
    assert_eq!(house.service.reload(&before).await, Ok(Vec::new()));
    house.has_keys().await;
    let mut wanted = before.clone();
    for provider in &mut wanted.providers {
        provider.keys = KeySource::JwksUri(slow.jwks_uri().parse().expect("a URL"));
        provider.refresh = RefreshPolicy { timeout: Duration::from_millis(400), ..prompt_refresh() };
    }
    let (outcome, ()) = tokio::join!(house.service.reload(&wanted), async {
        // Both are held at the same time: the one is not waited for before the other is asked.
        let both = tokio::time::timeout(PATIENCE, slow.wait_for_held(2)).await;
        assert!(both.is_ok(), "{} is asked", slow.held());
        assert_eq!(house.asked().await, "p ok");
    });
    let error = "no answer within 400 ms";
    let both = [kept("p", error), kept("q", error)].concat();
    assert_eq!(outcome, Ok(both));
    assert_eq!(house.asked().await, "p ok");
}

#[tokio::test]
async fn reloads_come_one_after_the_other() {
    let (house, slow) = (House::start().await, Issuer::start().await.expect("a free port"));
    slow.publish(&[&house.key]);
    slow.hold();
    let first = house.with(|provider| {
        provider.keys = KeySource::JwksUri(slow.jwks_uri().parse().expect("a URL"));
    });
    let second = house.with(|provider| renamed(provider, "second"));
    let second = async {
        slow.wait_for_held(1).await;
        let (outcome, ()) = tokio::join!(house.service.reload(&second), async {
            slow.release();
        });
        outcome
    };
    let (first, second) = tokio::join!(house.service.reload(&first), second);
    assert_eq!((first, second), (Ok(Vec::new()), Ok(Vec::new())));
    assert_eq!(house.asked().await, "second ok", "the later one counts");
}

#[tokio::test]
async fn a_reload_that_is_given_up_has_changed_nothing() {
    let (house, slow) = (House::start().await, Issuer::start().await.expect("a free port"));
    slow.hold();
    let wanted = house.with(|provider| {
        provider.keys = KeySource::JwksUri(slow.jwks_uri().parse().expect("a URL"));
    });
    let before = house.service.authorizer();
    tokio::select! {
        _ = house.service.reload(&wanted) => panic!("nothing has answered"),
        () = slow.wait_for_held(1) => {}
    }
    assert!(Arc::ptr_eq(&before, &house.service.authorizer()));
    assert_eq!(house.service.retry_pending().await, Vec::new(), "nothing is left to be tried");
    assert_eq!(house.service.reload(&house.config).await, Ok(Vec::new()));
    house.has_counted(1, 0);
}

#[tokio::test]
async fn a_new_provider_whose_files_cannot_be_read_makes_all_of_the_configuration_broken() {
    let house = House::start().await;
    let mut wanted = house.with(|provider| renamed(provider, "q"));
    wanted.providers.push(inline(provider("fixed", "https://fixed.example.com"), &[house.key.public_jwk()]));
    let other = Issuer::start().await.expect("a free port");
    wanted.providers.push(of(&other, "new"));
    wanted.providers[2].http.ca_file = Some("/nowhere/ca.pem".into());
    let error = house.service.reload(&wanted).await.expect_err("it cannot be read").to_string();
    assert!(error.contains("new") && error.contains("/nowhere/ca.pem"), "{error}");
    assert_eq!(house.asked().await, "p ok");
    house.has_counted(0, 1);
    assert!(!house.metrics().contains("portcullis_jwks_keys{provider=\"q\"}"), "{}", house.metrics());
    assert_eq!(house.service.retry_pending().await, Vec::new(), "nothing is tried again by itself");
}

#[tokio::test]
async fn the_time_of_the_last_whole_reload_is_told_from_the_start_on() {
    let house = House::start().await;
    let line = format!("portcullis_config_last_reload_success_timestamp_seconds {NOW}.0\n");
    assert!(house.metrics().contains(&line), "{}", house.metrics());
    house.has_counted(0, 0);
}

/// A file with a configuration whose keys are in that file.
fn write(file: &Path, name: &str, keys: &Path) {
    let text = format!(
        "listen: {{ext_authz: 127.0.0.1:0}}
providers: [{{name: {name}, issuer: 'https://i.example.com', audiences: [a], jwks_file: {}}}]",
        keys.display()
    );
    std::fs::write(file, text).expect("written");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_comes_up_later_is_taken_over_without_anybody_touching_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let keys = ["old", "new"].map(|kid| SigningKey::generate(kid, SigningAlgorithm::ES256));
    let [old, new] = &keys;
    let set = |key: &SigningKey| json!({"keys": [key.public_jwk()]}).to_string();
    std::fs::write(at("old.json"), set(old)).expect("written");
    write(&at("p.yaml"), "p", &at("old.json"));
    let hangups = Hangups::new().expect("a signal can be listened for");
    let (config, file) = ConfigFile::load(&at("p.yaml"), hangups).await.expect("valid");
    let app = App::bind(config, fixed_clock()).await.expect("bound").reloading_from(file);
    let service = app.service();
    let serving = tokio::spawn(app.serve(std::future::pending()));
    let claims = json!({"iss": "https://i.example.com", "aud": "a", "exp": NOW + 60});
    let decided = async |key: &SigningKey| decide(&service, &key.sign(&claims)).await;
    let counted = |outcome: &str, count: u64| {
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
        seen.unwrap_or_else(|_| panic!("never: {what}: {}", service.metrics().encode().expect("text")));
    };
    until("serving", &|| service.is_serving()).await;

    std::fs::write(at("new.json"), "not yet").expect("written");
    write(&at("p.yaml"), "p", &at("new.json"));
    until("the new one is refused", &|| counted("rejected", 1)).await;
    // Tried again more than once, and told once.
    tokio::time::sleep(Duration::from_secs(35)).await;
    assert!(counted("rejected", 1) && counted("applied", 0));
    assert_eq!(decided(old).await, "p ok");

    std::fs::write(at("new.json"), set(new)).expect("written");
    until("it is taken over", &|| counted("applied", 1)).await;
    assert_eq!(decided(new).await, "p ok");

    // A broken file counts; what it would have said is not waited for.
    std::fs::write(at("p.yaml"), "providers: [").expect("written");
    until("the broken file is refused", &|| counted("rejected", 2)).await;
    write(&at("p.yaml"), "q", &at("new.json"));
    until("the last one is taken over", &|| counted("applied", 2)).await;
    assert_eq!(decided(new).await, "q ok");
    serving.abort();
}
