//! A configuration file that is rewritten in place, cut off, exchanged or gone, in process and on a paused clock.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use portcullis::access_request::AccessRequest;
use portcullis::app::{App, ConfigFile, Hangups};
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use portcullis::service::Service;
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::support::{NOW, fixed_clock};

const SECOND: Duration = Duration::from_secs(1);

/// What both versions close: to a valid token without a scope, and to everybody.
const CLOSED: [&str; 2] = ["/admin/users", "/internal/keys"];

/// The beginning of a configuration with this key.
pub fn head(key: &SigningKey) -> String {
    let jwks = json!({"keys": [key.public_jwk()]});
    format!(
        "listen:
  ext_authz: 127.0.0.1:0
providers:
  - name: p
    issuer: https://i.example.com
    audiences: [a]
    jwks: {jwks}
"
    )
}

/// Two configurations that close the same and are otherwise different.
pub fn rules() -> [&'static str; 2] {
    [
        "rules:
  - name: health
    match: {path: /healthz}
    allow: anonymous
  - name: admin
    match:
      path_prefix: /admin/
      methods: [GET, POST]
    require:
      scopes:
        - admin
  - name: blocked
    match:
      path_prefix: /internal/
    deny: true
  - name: rest
    match: {path_prefix: /}
",
        "rules:
  - name: blocked
    match:
      path_prefix: /internal/
    deny: true
  - name: more
    match: {path: /more}
    deny: true
  - name: admin
    match:
      path_prefix: /admin/
    require:
      claims:
        role: [admin]
      scopes:
        - admin
        - write
  - name: health
    match: {path: /healthz}
    allow: anonymous
  - name: rest
    match: {path_prefix: /}
",
    ]
}

/// A service that follows its configuration file.
struct House {
    folder: TempDir,
    key: SigningKey,
    service: Arc<Service>,
    serving: JoinHandle<()>,
}

impl Drop for House {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl House {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let key = SigningKey::generate("k", SigningAlgorithm::ES256);
        fs::write(folder.path().join("p.yaml"), head(&key) + rules()[0]).expect("written");
        Self::following(folder, key).await
    }

    async fn following(folder: TempDir, key: SigningKey) -> Self {
        let hangups = Hangups::new().expect("a signal can be listened for");
        let loaded = ConfigFile::load(&folder.path().join("p.yaml"), hangups).await;
        let (config, file) = loaded.expect("valid");
        let app = App::bind(config, fixed_clock()).await.expect("bound").reloading_from(file);
        let service = app.service();
        let serving = tokio::spawn(async move { app.serve(std::future::pending()).await });
        Self { folder, key, service, serving }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("p.yaml")
    }

    /// Both versions as whole files.
    fn versions(&self) -> [String; 2] {
        rules().map(|rules| head(&self.key) + rules)
    }

    fn write(&self, text: &str) {
        fs::write(self.file(), text).expect("written");
    }

    /// What becomes of a valid token without any scope at this path.
    async fn asked(&self, path: &str) -> &'static str {
        let claims = json!({"iss": "https://i.example.com", "aud": "a", "exp": NOW + 60});
        let token = format!("Bearer {}", self.key.sign(&claims));
        let headers = [(&b"authorization"[..], token.as_bytes())].into_iter().collect();
        let request = AccessRequest::new(b"GET", b"h", path.as_bytes(), headers);
        self.service.authorizer().decide("test", &request).await.verdict.reason().as_str()
    }

    /// Asks for what is closed.
    async fn stays_closed(&self, what: &str) {
        for path in CLOSED {
            let reason = self.asked(path).await;
            assert_ne!(reason, "ok", "{path} is open under this:\n{what}");
        }
    }

    fn rule_names(&self) -> Vec<String> {
        let authorizer = self.service.authorizer();
        authorizer.rules().all().iter().map(|rule| rule.name.clone()).collect()
    }

    /// How many seconds it takes until these are the rules; `None` where they are not within a minute.
    async fn comes_to(&self, names: &[&str]) -> Option<u64> {
        for second in 0..60 {
            if self.rule_names() == names {
                return Some(second);
            }
            sleep(SECOND).await;
        }
        None
    }

    fn reloads(&self, outcome: &str) -> u64 {
        let text = self.service.metrics().encode().expect("text");
        let name = format!("portcullis_config_reloads_total{{outcome=\"{outcome}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name)).expect("a sample");
        line.parse().expect("a number")
    }
}

/// Numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        // Knuth's MMIX generator.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % end
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_torn_and_swapped_configurations_open_nothing_that_both_close() {
    let house = House::start().await;
    let versions = house.versions();
    let mut numbers = Numbers(29);
    let mut torn = 0;
    while torn < 1_000 {
        let whole = &versions[numbers.below(2)];
        // At the end of a line half of the time, else anywhere; written in place, and left so for up to eight seconds.
        let ends: Vec<usize> = whole.match_indices('\n').map(|(at, _)| at + 1).collect();
        let end = match numbers.below(2) {
            0 => ends[numbers.below(ends.len())],
            _ => numbers.below(whole.len()),
        };
        let cut = &whole[..end];
        house.write(cut);
        for _ in 0..numbers.below(5) {
            sleep(2 * SECOND).await;
            house.stays_closed(cut).await;
        }
        house.write(whole);
        for _ in 0..numbers.below(8) {
            sleep(2 * SECOND).await;
            house.stays_closed(whole).await;
        }
        torn += 1;
    }
    house.write(&versions[0]);
    let names = ["health", "admin", "blocked", "rest"];
    assert!(house.comes_to(&names).await.is_some(), "{:?}", house.rule_names());
    assert_eq!(house.asked("/other").await, "ok");
    // Both have served again and again.
    assert!(house.reloads("applied") > 200, "{}", house.reloads("applied"));
}

#[tokio::test(start_paused = true)]
async fn a_start_in_the_middle_of_a_write_waits_for_its_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = SigningKey::generate("k", SigningAlgorithm::ES256);
    let whole = head(&key) + rules()[0];
    let file = folder.path().join("p.yaml");
    fs::write(&file, "").expect("written");
    let writer = async {
        // A line every 20 ms.
        for (end, _) in whole.match_indices('\n') {
            fs::write(&file, &whole[..=end]).expect("written");
            sleep(Duration::from_millis(20)).await;
        }
        std::future::pending::<()>().await;
    };
    let house = tokio::select! {
        house = House::following(folder, key) => house,
        () = writer => panic!("it does not end"),
    };
    assert_eq!(house.rule_names(), ["health", "admin", "blocked", "rest"]);
}

#[tokio::test(start_paused = true)]
async fn what_takes_nothing_away_counts_after_two_looks_and_what_does_after_ten_seconds() {
    let house = House::start().await;
    let before = ["health", "admin", "blocked", "rest"];
    let [first, _] = house.versions();
    house.write(&format!("{first}  - name: more\n    match: {{path: /more}}\n    deny: true\n"));
    let more = ["health", "admin", "blocked", "rest", "more"];
    assert!(house.comes_to(&more).await.is_some_and(|seconds| seconds <= 5));
    // The disk is full in the middle, for good.
    let cut = first.find("  - name: blocked").expect("there");
    house.write(&first[..cut]);
    let seconds = house.comes_to(&["health", "admin"]).await;
    assert!(seconds.is_some_and(|seconds| (10..=15).contains(&seconds)), "{seconds:?}");
    assert_eq!(house.asked("/internal/x").await, "ok", "it was taken as it stands there");
    house.write(&first);
    assert!(house.comes_to(&before).await.is_some_and(|seconds| seconds <= 5));
}

#[tokio::test(start_paused = true)]
async fn a_change_that_waits_begins_anew_with_the_next_one_and_is_forgotten_with_the_old_file() {
    let house = House::start().await;
    let names = house.rule_names();
    let [first, _] = house.versions();
    let cut = |name: &str| first[..first.find(name).expect("there")].to_owned();
    for _ in 0..4 {
        for end in ["  - name: blocked", "  - name: rest"] {
            house.write(&cut(end));
            sleep(9 * SECOND).await;
            assert_eq!(house.rule_names(), names);
        }
    }
    house.write(&first);
    sleep(60 * SECOND).await;
    assert_eq!((house.rule_names(), house.reloads("applied")), (names, 0));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_gone_for_a_while_and_comes_back_as_it_was_is_no_reload() {
    let house = House::start().await;
    let [first, second] = house.versions();
    fs::remove_file(house.file()).expect("removed");
    sleep(30 * SECOND).await;
    house.stays_closed("no file").await;
    house.write(&first);
    sleep(30 * SECOND).await;
    assert_eq!((house.reloads("applied"), house.reloads("rejected")), (0, 0));
    fs::remove_file(house.file()).expect("removed");
    sleep(30 * SECOND).await;
    house.write(&second);
    let seconds = house.comes_to(&["blocked", "more", "admin", "health", "rest"]).await;
    assert!(seconds.is_some(), "another one is");
}

#[tokio::test(start_paused = true)]
async fn an_exchanged_link_is_seen_and_so_is_a_change_between_the_load_and_the_first_look() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = SigningKey::generate("k", SigningAlgorithm::ES256);
    for (name, rules) in ["1", "2"].into_iter().zip(rules()) {
        fs::create_dir(folder.path().join(name)).expect("made");
        fs::write(folder.path().join(name).join("p.yaml"), head(&key) + rules).expect("written");
    }
    symlink("1", folder.path().join("..data")).expect("linked");
    symlink("..data/p.yaml", folder.path().join("p.yaml")).expect("linked");
    let house = House::following(folder, key).await;
    // Nobody has looked yet.
    symlink("2", house.folder.path().join("..data_tmp")).expect("linked");
    fs::rename(house.folder.path().join("..data_tmp"), house.folder.path().join("..data")).expect("renamed");
    assert!(house.comes_to(&["blocked", "more", "admin", "health", "rest"]).await.is_some());
}
