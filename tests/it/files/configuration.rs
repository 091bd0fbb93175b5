//! A configuration file that is rewritten in place, cut off, exchanged or gone, in process and on a paused clock.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// Names the files that were exchanged for others.
static EXCHANGES: AtomicU64 = AtomicU64::new(0);

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

/// Two versions of the rules, and what both of them close.
struct Pair {
    versions: [&'static str; 2],
    /// To a valid token with the scope `w`, and to a request without one.
    closed: &'static [&'static str],
    /// To a request without a token.
    not_public: &'static [&'static str],
}

/// Versions of which some beginning of the second, or its beginning and the end of the first, is valid and opens what both close.
fn pairs() -> Vec<Pair> {
    let pair = |first, second, closed| Pair { versions: [first, second], closed, not_public: closed };
    let public_pair = |first, second, not_public| Pair { versions: [first, second], closed: &[], not_public };
    vec![
        pair(rules()[0], rules()[1], &["/admin/users", "/internal/keys"]),
        // A rule that is added, cut off before it says what it matches.
        public_pair(
            "rules:
  - name: first
    match: {path_prefix: /first/}
    deny: true
",
            "rules:
  - name: first
    match: {path_prefix: /first/}
    deny: true
  - name: public
    allow: anonymous
    match:
      path_prefix: /public/
",
            &["/other", "/first/x"],
        ),
        // A condition that becomes wider, and another that makes it narrower behind it.
        public_pair(
            "rules:
  - name: public
    allow: anonymous
    match:
      path_prefix: /public/
",
            "rules:
  - name: public
    allow: anonymous
    match:
      path_prefix: /
      methods: [OPTIONS]
",
            &["/other"],
        ),
        // What one rule denied two deny.
        pair(
            "rules:
  - name: denied
    deny: true
    match:
      path_prefix: /admin/
  - name: rest
    match: {path_prefix: /}
",
            "rules:
  - name: denied
    deny: true
    match:
      path_prefix: /admin/two/
  - name: rest
    match: {path_prefix: /}
    require: {scopes: [none]}
",
            &["/admin/one", "/admin/two/x"],
        ),
        // A scope that more have, with a claim that few have.
        pair(
            "rules:
  - name: write
    match: {path_prefix: /}
    require:
      scopes: [w:all]
",
            "rules:
  - name: write
    match: {path_prefix: /}
    require:
      scopes: [w]
      claims:
        role: [admin]
",
            &["/other"],
        ),
        // Two rules that exchange their paths, at the same length.
        pair(
            "rules:
  - name: one
    match: {path_prefix: /one/}
    require: {scopes: [admin]}
  - name: two
    match: {path_prefix: /two/}
    deny: true
  - name: rest
    match: {path_prefix: /}
",
            "rules:
  - name: one
    match: {path_prefix: /two/}
    require: {scopes: [admin]}
  - name: two
    match: {path_prefix: /one/}
    deny: true
  - name: rest
    match: {path_prefix: /}
",
            &["/one/x", "/two/x"],
        ),
        // All is denied, and then a part of it is not.
        pair(
            "rules:
  - name: rest
    match: {path_prefix: /}
    deny: true
",
            "rules:
  - name: open
    match:
      path_prefix: /
      methods: [OPTIONS]
  - name: rest
    match: {path_prefix: /}
    deny: true
",
            &["/other"],
        ),
    ]
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
        Self::under(rules()[0]).await
    }

    async fn under(rules: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let key = SigningKey::generate("k", SigningAlgorithm::ES256);
        fs::write(folder.path().join("p.yaml"), head(&key) + rules).expect("written");
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

    /// Writes a whole file elsewhere, and lets the configuration's name lead there.
    fn exchange(&self, text: &str) {
        let name = format!("{}.yaml", EXCHANGES.fetch_add(1, Ordering::Relaxed));
        fs::write(self.folder.path().join(&name), text).expect("written");
        // The clock of the file system has ticks of some milliseconds.
        std::thread::sleep(Duration::from_millis(12));
        symlink(name, self.folder.path().join("link")).expect("linked");
        fs::rename(self.folder.path().join("link"), self.file()).expect("renamed");
        std::thread::sleep(Duration::from_millis(12));
    }

    /// What becomes of a valid token with the scope `w` at this path.
    async fn asked(&self, path: &str) -> &'static str {
        let claims = json!({"iss": "https://i.example.com", "aud": "a", "exp": NOW + 60, "scope": "w"});
        let token = format!("Bearer {}", self.key.sign(&claims));
        self.asked_with(path, &[(&b"authorization"[..], token.as_bytes())]).await
    }

    async fn asked_with(&self, path: &str, headers: &[(&[u8], &[u8])]) -> &'static str {
        let headers = headers.iter().copied().collect();
        let request = AccessRequest::new(
            b"GET",
            b"h",
            path.as_bytes(),
            headers,
            portcullis::clock::monotonic().into_std(),
        );
        self.service.authorizer().decide("test", &request).await.decision.verdict.reason().as_str()
    }

    /// Asks for what is closed.
    async fn stays_closed(&self, closed: &[&str], not_public: &[&str], what: &str) {
        let passes = |reason| matches!(reason, "ok" | "anonymous");
        for path in closed {
            assert!(!passes(self.asked(path).await), "{path} is open under this:\n{what}");
        }
        for path in not_public {
            assert!(!passes(self.asked_with(path, &[]).await), "{path} is public under this:\n{what}");
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

/// What a version is while it is written, as far as it has come: cut off, or the rest is still that of the other one.
fn torn(version: &str, other: &str, end: usize) -> [String; 2] {
    let written = &version[..end];
    [written.to_owned(), format!("{written}{}", other.get(end..).unwrap_or_default())]
}

fn line_ends(text: &str) -> Vec<usize> {
    text.match_indices('\n').map(|(at, _)| at + 1).collect()
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_is_torn_at_any_line_opens_nothing_that_both_close() {
    for Pair { versions, closed, not_public } in pairs() {
        let house = House::under(versions[0]).await;
        let versions = versions.map(|rules| head(&house.key) + rules);
        for (version, other) in [(&versions[0], &versions[1]), (&versions[1], &versions[0])] {
            for end in line_ends(version) {
                for torn in torn(version, other, end) {
                    house.exchange(other);
                    sleep(16 * SECOND).await;
                    house.write(&torn);
                    // It is seen after two seconds at the latest.
                    sleep(9 * SECOND).await;
                    house.stays_closed(closed, not_public, &torn).await;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_torn_and_swapped_configurations_open_nothing_that_both_close() {
    let mut numbers = Numbers(29);
    for Pair { versions, closed, not_public } in pairs() {
        let house = House::under(versions[0]).await;
        let versions = versions.map(|rules| head(&house.key) + rules);
        for _ in 0..150 {
            let which = numbers.below(2);
            let (whole, other) = (&versions[which], &versions[1 - which]);
            let [cut, mixed] = torn(whole, other, numbers.below(whole.len()));
            let torn = if numbers.below(2) == 0 { cut } else { mixed };
            house.write(&torn);
            for _ in 0..numbers.below(5) {
                sleep(2 * SECOND).await;
                house.stays_closed(closed, not_public, &torn).await;
            }
            match numbers.below(2) {
                0 => house.write(whole),
                _ => house.exchange(whole),
            }
            for _ in 0..=numbers.below(10) {
                sleep(2 * SECOND).await;
                house.stays_closed(closed, not_public, whole).await;
            }
        }
        // Both have served again and again.
        assert!(house.reloads("applied") > 20, "{}", house.reloads("applied"));
    }
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
async fn what_decides_otherwise_counts_after_ten_seconds_and_what_came_whole_and_lacks_nothing_after_two_looks()
 {
    let house = House::start().await;
    let before = ["health", "admin", "blocked", "rest"];
    let more = ["health", "admin", "blocked", "rest", "more"];
    let [first, _] = house.versions();
    let added = format!("{first}  - name: more\n    match: {{path: /more}}\n    deny: true\n");
    let rested = |seconds: Option<u64>| seconds.is_some_and(|seconds| (10..=15).contains(&seconds));
    let at_once = |seconds: Option<u64>| seconds.is_some_and(|seconds| seconds <= 5);
    house.write(&added);
    assert!(rested(house.comes_to(&more).await), "added in place");
    house.exchange(&first);
    assert!(rested(house.comes_to(&before).await), "a rule is gone");
    house.exchange(&added);
    assert!(at_once(house.comes_to(&more).await), "added as a whole");
    // The disk is full in the middle, for good, at the end of a line.
    let cut = first.find("  - name: blocked").expect("there");
    house.write(&first[..cut]);
    assert!(rested(house.comes_to(&["health", "admin"]).await));
    assert_eq!(house.asked("/internal/x").await, "ok", "it was taken as it stands there");
    house.exchange(&first);
    assert!(at_once(house.comes_to(&before).await));
    let applied = house.reloads("applied");
    house.write(&format!("# A comment, and less in the log.\n{first}log: {{level: error}}\n"));
    sleep(5 * SECOND).await;
    assert_eq!(house.reloads("applied"), applied + 1, "nothing of it decides");
}

#[tokio::test(start_paused = true)]
async fn half_a_last_line_never_counts_unless_the_file_came_whole() {
    let house = House::start().await;
    let before = house.rule_names();
    let [first, _] = house.versions();
    // The disk is full in the middle of a line; all that was there is there.
    let cut = format!("{first}  - name: more\n    allow: anonymous\n    match: {{path: /a}} # a comm");
    house.write(&cut);
    sleep(300 * SECOND).await;
    assert_eq!((house.reloads("applied"), house.reloads("rejected")), (0, 1), "counted once");
    assert_eq!(house.rule_names(), before);
    house.exchange(&format!("{cut}ent"));
    sleep(5 * SECOND).await;
    assert_eq!((house.reloads("applied"), house.rule_names().len()), (1, before.len() + 1));
}

#[tokio::test(start_paused = true)]
async fn a_change_whose_comments_go_on_changing_rests_all_the_same() {
    let house = House::start().await;
    let [first, second] = house.versions();
    let cut = &first[..first.find("  - name: rest").expect("there")];
    // Written every five seconds, with the time of day.
    for second in 0..5 {
        house.write(&format!("# {second}\n{cut}"));
        sleep(5 * SECOND).await;
    }
    assert_eq!(house.rule_names(), ["health", "admin", "blocked"]);
    // One that says something else in between begins anew.
    for turn in 0..20 {
        house.write(if turn % 2 == 0 { &second } else { &first });
        sleep(5 * SECOND).await;
    }
    assert_eq!(house.rule_names(), ["health", "admin", "blocked"]);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_does_not_come_to_rest_is_counted_after_a_minute() {
    let house = House::start().await;
    let [first, second] = house.versions();
    let write = async |turns: u32| {
        for turn in 0..turns {
            house.write(&format!("# {turn}\n{first}"));
            sleep(SECOND).await;
        }
    };
    write(50).await;
    assert_eq!(house.reloads("rejected"), 0);
    write(150).await;
    assert_eq!((house.reloads("applied"), house.reloads("rejected")), (0, 1), "once");
    house.write(&first);
    sleep(5 * SECOND).await;
    write(70).await;
    assert_eq!(house.reloads("rejected"), 1, "it is what was taken for a moment alone");
    house.write(&first);
    sleep(15 * SECOND).await;
    for turn in 0..40 {
        house.write(if turn % 2 == 0 { &second } else { &first });
        sleep(3 * SECOND).await;
    }
    assert_eq!(
        (house.reloads("applied"), house.reloads("rejected")),
        (0, 2),
        "and again when it begins again"
    );
}

#[tokio::test(start_paused = true)]
async fn where_keys_come_from_decides_and_half_a_name_of_it_never_counts() {
    let folder = tempfile::tempdir().expect("a folder");
    let [old, other] = ["old", "other"].map(|kid| SigningKey::generate(kid, SigningAlgorithm::ES256));
    for (name, key) in [("old.json", &old), ("keys.json", &other), ("keys.json-production", &old)] {
        let set = json!({"keys": [key.public_jwk()]}).to_string();
        fs::write(folder.path().join(name), set).expect("written");
    }
    let text = |name: &str| {
        let keys = folder.path().join(name);
        format!(
            "listen:\n  ext_authz: 127.0.0.1:0\nproviders:\n  - name: p\n    issuer: https://i.example.com\n    \
             audiences: [a]\n    jwks_file: {}",
            keys.display()
        )
    };
    let [first, torn, whole] =
        [text("old.json") + "\n", text("keys.json"), text("keys.json-production") + "\n"];
    fs::write(folder.path().join("p.yaml"), &first).expect("written");
    let house = House::following(folder, old).await;
    let accepts = async |house: &House, key: &SigningKey| {
        let claims = json!({"iss": "https://i.example.com", "aud": "a", "exp": NOW + 60});
        let token = format!("Bearer {}", key.sign(&claims));
        house.asked_with("/", &[(&b"authorization"[..], token.as_bytes())]).await == "ok"
    };
    sleep(SECOND).await;
    assert!(accepts(&house, &house.key).await);
    house.write(&torn);
    for _ in 0..60 {
        sleep(SECOND).await;
        assert!(!accepts(&house, &other).await, "a key that neither version names");
    }
    house.write(&whole);
    sleep(15 * SECOND).await;
    assert_eq!((house.reloads("applied"), house.reloads("rejected")), (1, 1));
    assert!(accepts(&house, &house.key).await);
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
    house.stays_closed(&["/admin/users", "/internal/keys"], &[], "no file").await;
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
