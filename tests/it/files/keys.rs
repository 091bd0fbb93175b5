//! A key file that is rewritten, and providers that readiness does not wait for: in process, with a paused clock.

use std::fs::{self, File, FileTimes};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use portcullis::access_request::AccessRequest;
use portcullis::clock::{Clock, SimulatedClock};
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use portcullis::config::Config;
use portcullis::service::Service;
use portcullis::validation::UnixTime;
use serde_json::json;
use tokio::time::sleep;

use crate::support::subprocess::StartCommand;
use crate::support::{NOW, Running, config, fixed_clock, inline, provider};

const SECOND: Duration = Duration::from_secs(1);

fn key(kid: &str) -> SigningKey {
    SigningKey::generate(kid, SigningAlgorithm::ES256)
}

fn set_of(key: &SigningKey) -> String {
    json!({"keys": [key.public_jwk()]}).to_string()
}

/// A service with the keys of this file, which are refreshed once an hour.
async fn service_with_key_file(file: &Path) -> Service {
    let text = format!(
        "listen: {{ext_authz: 127.0.0.1:0}}
providers:
  - {{name: p, issuer: 'https://i.example.com', audiences: [a], jwks_file: '{}', refresh: {{interval: 1h}}}}",
        file.display()
    );
    let config = Config::parse(&text, &|_| None).expect("valid");
    let service = Service::start(&config, fixed_clock()).expect("no file of TLS");
    for keyed in service.authorizer().providers() {
        keyed.keys.first_fetch_ended().await;
    }
    service
}

async fn reason_for(service: &Service, key: &SigningKey) -> &'static str {
    let claims = json!({"iss": "https://i.example.com", "aud": "a", "exp": NOW + 60});
    let token = format!("Bearer {}", key.sign(&claims));
    let headers = [(&b"authorization"[..], token.as_bytes())].into_iter().collect();
    let request = AccessRequest::new(b"GET", b"h", b"/", headers, portcullis::clock::monotonic().into_std());
    service.authorizer().decide("test", &request).await.decision.verdict.reason().as_str()
}

/// The kids of the current keys, read without a token, which could force a fetch.
fn kids(service: &Service) -> Vec<String> {
    let keys = service.authorizer().providers()[0].keys.status().keys;
    keys.keys().iter().filter_map(|key| key.kid().map(|kid| kid.as_str().to_owned())).collect()
}

#[tokio::test(start_paused = true)]
async fn a_key_withdrawn_in_place_with_the_same_time_and_length_is_removed_within_five_seconds() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys.json");
    let (old, new) = (key("old"), key("new"));
    fs::write(&file, set_of(&old)).expect("written");
    let time = fs::metadata(&file).expect("there").modified().expect("a time");
    let service = service_with_key_file(&file).await;
    assert_eq!(reason_for(&service, &old).await, "ok");
    assert_eq!(set_of(&old).len(), set_of(&new).len());
    fs::write(&file, set_of(&new)).expect("written");
    let opened = File::options().write(true).open(&file).expect("there");
    opened.set_times(FileTimes::new().set_modified(time)).expect("set");
    sleep(5 * SECOND).await;
    assert_eq!(kids(&service), ["new"]);
    assert_eq!(reason_for(&service, &old).await, "key_unknown");
    assert_eq!(reason_for(&service, &new).await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_truncated_empty_or_missing_key_file_removes_no_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys.json");
    let (old, new) = (key("old"), key("new"));
    fs::write(&file, set_of(&old)).expect("written");
    let service = service_with_key_file(&file).await;
    let text = set_of(&new);
    for end in (0..text.len()).step_by(17) {
        fs::write(&file, &text[..end]).expect("written");
        sleep(2 * SECOND).await;
        assert_eq!(kids(&service), ["old"], "{}", &text[..end]);
    }
    fs::remove_file(&file).expect("removed");
    sleep(60 * SECOND).await;
    assert_eq!(kids(&service), ["old"]);
    fs::write(&file, &text).expect("written");
    sleep(5 * SECOND).await;
    assert_eq!(kids(&service), ["new"]);
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_key_file_is_reported_and_counted_before_the_next_fetch_is_due() {
    type Change = fn(&Path);
    let removed: Change = |file| fs::remove_file(file).expect("removed");
    let huge: Change = |file| {
        let file = File::options().write(true).open(file).expect("there");
        file.set_len(1 << 40).expect("as long as that");
    };
    let folder: Change = |file| {
        fs::remove_file(file).expect("removed");
        fs::create_dir(file).expect("made");
    };
    let pipe: Change = |file| {
        fs::remove_file(file).expect("removed");
        assert!(std::process::Command::new("mkfifo").arg(file).run().expect("mkfifo runs").success());
    };
    for (change, cause) in [
        (removed, "the file cannot be read: entity not found"),
        (huge, "longer than 1048576 bytes"),
        (folder, "it is not a regular file"),
        (pipe, "it is not a regular file"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("keys.json");
        let known = key("known");
        fs::write(&file, set_of(&known)).expect("written");
        let service = service_with_key_file(&file).await;
        let status = || service.authorizer().providers()[0].keys.status();
        change(&file);
        sleep(5 * SECOND).await;
        let error = status().last_error.map(|error| error.to_string()).unwrap_or_default();
        assert!(error.ends_with(cause), "{error}");
        let failed = || {
            let text = service.metrics().encode().expect("text");
            let line =
                text.lines().find(|line| line.contains("_jwks_fetches_total") && line.contains("fail"));
            line.and_then(|line| line.rsplit(' ').next()?.parse::<u32>().ok()).unwrap_or_default()
        };
        assert!(failed() > 0, "{cause}");
        // Later retries are as frequent as for any failing source, not one for each check of the file.
        sleep(300 * SECOND).await;
        assert!(failed() <= 12, "{} times: {cause}", failed());
        assert_eq!(reason_for(&service, &known).await, "ok");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_file_created_after_the_start_is_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys.json");
    let known = key("known");
    let service = service_with_key_file(&file).await;
    sleep(300 * SECOND).await;
    assert!(!service.is_serving());
    fs::write(&file, set_of(&known)).expect("written");
    sleep(5 * SECOND).await;
    assert!(service.is_serving());
    assert_eq!(reason_for(&service, &known).await, "ok");
}

/// Two issuers: one has keys, the other one is unreachable.
fn config_with_unreachable_issuer(ready_without_keys: bool) -> (Config, SigningKey) {
    let known = key("known");
    let up = inline(provider("up", "https://i.example.com"), &[known.public_jwk()]);
    let text = format!(
        "listen: {{ext_authz: 127.0.0.1:0}}
providers:
  - {{name: down, issuer: 'https://down.example.com', audiences: [a], jwks_uri: 'http://127.0.0.1:9/keys?key=secret',
      ready_without_keys: {ready_without_keys}}}"
    );
    let down = Config::parse(&text, &|_| None).expect("valid").providers.remove(0);
    (config(vec![up, down]), known)
}

#[tokio::test]
async fn readyz_names_the_pending_provider_and_the_error_without_a_query() {
    let (config, _) = config_with_unreachable_issuer(false);
    let running = Running::start_without_keys(config, fixed_clock()).await;
    let providers = running.service().authorizer().providers();
    for keyed in providers {
        keyed.keys.first_fetch_ended().await;
    }
    let page = running.admin("/readyz").await;
    assert!(page.starts_with("no keys yet: down: ") && page.contains("refused"), "{page}");
    assert!(!page.contains("secret") && page.lines().count() == 1, "{page}");
}

#[tokio::test]
async fn an_optional_provider_does_not_delay_readiness() {
    let (config, _) = config_with_unreachable_issuer(true);
    let running = Running::start_without_keys(config, fixed_clock()).await;
    assert!(running.service().is_serving());
    assert_eq!(running.admin("/readyz").await, "ok\n");
}

#[tokio::test(start_paused = true)]
async fn a_clock_before_the_build_denies_every_token_until_it_is_set() {
    const DAY: i64 = 24 * 60 * 60;
    let known = key("known");
    let simulated = Arc::new(
        SimulatedClock::starting_at(UnixTime::from_secs(5)).built_at(UnixTime::from_secs(NOW - DAY)),
    );
    let mut config = config(vec![inline(provider("p", "https://i.example.com"), &[known.public_jwk()])]);
    Arc::make_mut(&mut config.providers[0].provider).audiences =
        portcullis::validation::provider::Audiences::AnyOf(vec!["a".to_owned()]);
    let service = Service::start(&config, Clock::Simulated(Arc::clone(&simulated))).expect("no file");
    assert!(!service.is_serving());
    assert!(!service.clock_is_plausible());
    assert_eq!(reason_for(&service, &known).await, "keys_unavailable");
    // Half a day before the build may be due to a time zone; two days before it are not.
    simulated.step_ms((NOW - 3 * DAY) * 1000);
    assert_eq!(reason_for(&service, &known).await, "keys_unavailable");
    simulated.step_ms((DAY + DAY / 2) * 1000);
    assert_eq!(reason_for(&service, &known).await, "ok");
    assert!(service.is_serving());
    // It may be set back as well.
    simulated.step_ms(-NOW * 1000 / 2);
    assert_eq!(reason_for(&service, &known).await, "keys_unavailable");
    assert!(!service.is_serving());
}
