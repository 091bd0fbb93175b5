//! A configuration file that is rewritten in place, truncated, replaced or removed, in process with a paused clock.

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

/// The number of replacement files, for their names.
static REPLACEMENTS: AtomicU64 = AtomicU64::new(0);

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

/// Two versions of the rules, and the paths that both of them deny.
struct Pair {
    versions: [&'static str; 2],
    /// Denied for a valid token with the scope `w`, and for a request without a token.
    denied: &'static [&'static str],
    /// Denied for a request without a token.
    not_public: &'static [&'static str],
}

/// Pairs of versions of which some prefix of the second, or its prefix and the rest of the first, is valid and allows what both
/// versions deny.
fn pairs() -> Vec<Pair> {
    let pair = |first, second, denied| Pair { versions: [first, second], denied, not_public: denied };
    let public_pair = |first, second, not_public| Pair { versions: [first, second], denied: &[], not_public };
    vec![
        pair(rules()[0], rules()[1], &["/admin/users", "/internal/keys"]),
        // An added rule, truncated before its match.
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
        // A condition that becomes wider, and a later one that makes it narrower.
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
        // One rule becomes two.
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
        // A scope that more clients have, with a claim that few have.
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
        // Two rules swap their paths, at the same length.
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
        // Everything is denied, and then all but a part of it.
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

/// Two configurations that deny the same paths and differ otherwise.
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

/// A service that reloads its configuration file.
struct ConfigEnv {
    folder: TempDir,
    key: SigningKey,
    service: Arc<Service>,
    serve_task: JoinHandle<()>,
}

impl Drop for ConfigEnv {
    fn drop(&mut self) {
        self.serve_task.abort();
    }
}

impl ConfigEnv {
    async fn start() -> Self {
        Self::start_with(rules()[0]).await
    }

    async fn start_with(rules: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let key = SigningKey::generate("k", SigningAlgorithm::ES256);
        fs::write(folder.path().join("p.yaml"), head(&key) + rules).expect("written");
        Self::reload_from(folder, key).await
    }

    async fn reload_from(folder: TempDir, key: SigningKey) -> Self {
        let hangups = Hangups::new().expect("a signal can be listened for");
        let loaded = ConfigFile::load(&folder.path().join("p.yaml"), hangups).await;
        let (config, file) = loaded.expect("valid");
        let app = App::bind(config, fixed_clock()).await.expect("bound").reloading_from(file);
        let service = app.service();
        let serve_task = tokio::spawn(async move { app.serve(std::future::pending()).await });
        Self { folder, key, service, serve_task }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("p.yaml")
    }

    /// Both versions as complete files.
    fn versions(&self) -> [String; 2] {
        rules().map(|rules| head(&self.key) + rules)
    }

    fn write(&self, text: &str) {
        fs::write(self.file(), text).expect("written");
    }

    /// Writes a complete file and moves a symbolic link to it over the configuration.
    fn replace_file(&self, text: &str) {
        let name = format!("{}.yaml", REPLACEMENTS.fetch_add(1, Ordering::Relaxed));
        fs::write(self.folder.path().join(&name), text).expect("written");
        // The timestamps of the file system have a resolution of some milliseconds.
        std::thread::sleep(Duration::from_millis(12));
        symlink(name, self.folder.path().join("link")).expect("linked");
        fs::rename(self.folder.path().join("link"), self.file()).expect("renamed");
        std::thread::sleep(Duration::from_millis(12));
    }

    /// The reason for a valid token with the scope `w` at this path.
    async fn reason_for(&self, path: &str) -> &'static str {
        let claims = json!({"iss": "https://i.example.com", "aud": "a", "exp": NOW + 60, "scope": "w"});
        let token = format!("Bearer {}", self.key.sign(&claims));
        self.reason_with(path, &[(&b"authorization"[..], token.as_bytes())]).await
    }

    async fn reason_with(&self, path: &str, headers: &[(&[u8], &[u8])]) -> &'static str {
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

    /// Asserts that these paths are denied.
    async fn assert_denied(&self, denied: &[&str], not_public: &[&str], what: &str) {
        let is_allowed = |reason| matches!(reason, "ok" | "anonymous");
        for path in denied {
            assert!(!is_allowed(self.reason_for(path).await), "{path} is allowed with this:\n{what}");
        }
        for path in not_public {
            assert!(!is_allowed(self.reason_with(path, &[]).await), "{path} is public with this:\n{what}");
        }
    }

    fn rule_names(&self) -> Vec<String> {
        let authorizer = self.service.authorizer();
        authorizer.rules().all().iter().map(|rule| rule.name.clone()).collect()
    }

    /// The number of seconds until these are the rules; `None` if they are not within a minute.
    async fn seconds_until(&self, names: &[&str]) -> Option<u64> {
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

/// A deterministic pseudo-random number generator.
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: usize) -> usize {
        // Knuth's MMIX generator.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % end
    }
}

/// A partially written version: truncated, or followed by the rest of the other one.
fn torn(version: &str, other: &str, end: usize) -> [String; 2] {
    let written = &version[..end];
    [written.to_owned(), format!("{written}{}", other.get(end..).unwrap_or_default())]
}

fn line_ends(text: &str) -> Vec<usize> {
    text.match_indices('\n').map(|(at, _)| at + 1).collect()
}

#[tokio::test(start_paused = true)]
async fn a_configuration_torn_at_any_line_allows_nothing_that_both_versions_deny() {
    for Pair { versions, denied, not_public } in pairs() {
        let env = ConfigEnv::start_with(versions[0]).await;
        let versions = versions.map(|rules| head(&env.key) + rules);
        for (version, other) in [(&versions[0], &versions[1]), (&versions[1], &versions[0])] {
            for end in line_ends(version) {
                for torn in torn(version, other, end) {
                    env.replace_file(other);
                    sleep(16 * SECOND).await;
                    env.write(&torn);
                    // It is detected within two seconds.
                    sleep(9 * SECOND).await;
                    env.assert_denied(denied, not_public, &torn).await;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_torn_and_replaced_configurations_allow_nothing_that_both_versions_deny() {
    let mut numbers = Rng(29);
    for Pair { versions, denied, not_public } in pairs() {
        let env = ConfigEnv::start_with(versions[0]).await;
        let versions = versions.map(|rules| head(&env.key) + rules);
        for _ in 0..150 {
            let which = numbers.below(2);
            let (whole, other) = (&versions[which], &versions[1 - which]);
            let [cut, mixed] = torn(whole, other, numbers.below(whole.len()));
            let torn = if numbers.below(2) == 0 { cut } else { mixed };
            env.write(&torn);
            for _ in 0..numbers.below(5) {
                sleep(2 * SECOND).await;
                env.assert_denied(denied, not_public, &torn).await;
            }
            match numbers.below(2) {
                0 => env.write(whole),
                _ => env.replace_file(whole),
            }
            for _ in 0..=numbers.below(10) {
                sleep(2 * SECOND).await;
                env.assert_denied(denied, not_public, whole).await;
            }
        }
        // Both have been applied many times.
        assert!(env.reloads("applied") > 20, "{}", env.reloads("applied"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_during_a_write_waits_for_its_end() {
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
    let env = tokio::select! {
        env = ConfigEnv::reload_from(folder, key) => env,
        () = writer => panic!("it does not end"),
    };
    assert_eq!(env.rule_names(), ["health", "admin", "blocked", "rest"]);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_decisions_applies_after_ten_seconds_and_an_atomic_replacement_without_removals_after_two_checks()
 {
    let env = ConfigEnv::start().await;
    let before = ["health", "admin", "blocked", "rest"];
    let more = ["health", "admin", "blocked", "rest", "more"];
    let [first, _] = env.versions();
    let added = format!("{first}  - name: more\n    match: {{path: /more}}\n    deny: true\n");
    let is_settled = |seconds: Option<u64>| seconds.is_some_and(|seconds| (10..=15).contains(&seconds));
    let is_immediate = |seconds: Option<u64>| seconds.is_some_and(|seconds| seconds <= 5);
    env.write(&added);
    assert!(is_settled(env.seconds_until(&more).await), "added in place");
    env.replace_file(&first);
    assert!(is_settled(env.seconds_until(&before).await), "a rule is gone");
    env.replace_file(&added);
    assert!(is_immediate(env.seconds_until(&more).await), "added as a whole");
    // The disk becomes full in the middle of the write, at the end of a line.
    let cut = first.find("  - name: blocked").expect("there");
    env.write(&first[..cut]);
    assert!(is_settled(env.seconds_until(&["health", "admin"]).await));
    assert_eq!(env.reason_for("/internal/x").await, "ok", "the truncated file is in use");
    env.replace_file(&first);
    assert!(is_immediate(env.seconds_until(&before).await));
    let applied = env.reloads("applied");
    env.write(&format!("# A comment, and less in the log.\n{first}log: {{level: error}}\n"));
    sleep(5 * SECOND).await;
    assert_eq!(env.reloads("applied"), applied + 1, "no decision depends on it");
}

#[tokio::test(start_paused = true)]
async fn a_partial_last_line_never_applies_unless_the_file_was_replaced_atomically() {
    let env = ConfigEnv::start().await;
    let before = env.rule_names();
    let [first, _] = env.versions();
    // The disk becomes full in the middle of a line.
    let cut = format!("{first}  - name: more\n    allow: anonymous\n    match: {{path: /a}} # a comm");
    env.write(&cut);
    sleep(300 * SECOND).await;
    assert_eq!((env.reloads("applied"), env.reloads("rejected")), (0, 1), "counted once");
    assert_eq!(env.rule_names(), before);
    env.replace_file(&format!("{cut}ent"));
    sleep(5 * SECOND).await;
    assert_eq!((env.reloads("applied"), env.rule_names().len()), (1, before.len() + 1));
}

#[tokio::test(start_paused = true)]
async fn a_change_settles_even_if_its_comments_keep_changing() {
    let env = ConfigEnv::start().await;
    let [first, second] = env.versions();
    let cut = &first[..first.find("  - name: rest").expect("there")];
    // Written every five seconds, with the time of day.
    for second in 0..5 {
        env.write(&format!("# {second}\n{cut}"));
        sleep(5 * SECOND).await;
    }
    assert_eq!(env.rule_names(), ["health", "admin", "blocked"]);
    // A different content in between restarts the delay.
    for turn in 0..20 {
        env.write(if turn % 2 == 0 { &second } else { &first });
        sleep(5 * SECOND).await;
    }
    assert_eq!(env.rule_names(), ["health", "admin", "blocked"]);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_does_not_settle_is_counted_after_a_minute() {
    let env = ConfigEnv::start().await;
    let [first, second] = env.versions();
    let write = async |turns: u32| {
        for turn in 0..turns {
            env.write(&format!("# {turn}\n{first}"));
            sleep(SECOND).await;
        }
    };
    write(50).await;
    assert_eq!(env.reloads("rejected"), 0);
    write(150).await;
    assert_eq!((env.reloads("applied"), env.reloads("rejected")), (0, 1), "once");
    env.write(&first);
    sleep(5 * SECOND).await;
    write(70).await;
    assert_eq!(env.reloads("rejected"), 1, "the file in use came back");
    env.write(&first);
    sleep(15 * SECOND).await;
    for turn in 0..40 {
        env.write(if turn % 2 == 0 { &second } else { &first });
        sleep(3 * SECOND).await;
    }
    assert_eq!((env.reloads("applied"), env.reloads("rejected")), (0, 2), "and again for the next series");
}

#[tokio::test(start_paused = true)]
async fn a_key_source_affects_decisions_and_a_partial_name_never_applies() {
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
    let env = ConfigEnv::reload_from(folder, old).await;
    let accepts = async |env: &ConfigEnv, key: &SigningKey| {
        let claims = json!({"iss": "https://i.example.com", "aud": "a", "exp": NOW + 60});
        let token = format!("Bearer {}", key.sign(&claims));
        env.reason_with("/", &[(&b"authorization"[..], token.as_bytes())]).await == "ok"
    };
    sleep(SECOND).await;
    assert!(accepts(&env, &env.key).await);
    env.write(&torn);
    for _ in 0..60 {
        sleep(SECOND).await;
        assert!(!accepts(&env, &other).await, "a key of neither version");
    }
    env.write(&whole);
    sleep(15 * SECOND).await;
    assert_eq!((env.reloads("applied"), env.reloads("rejected")), (1, 1));
    assert!(accepts(&env, &env.key).await);
}

#[tokio::test(start_paused = true)]
async fn a_pending_change_restarts_with_the_next_one_and_is_dropped_with_the_old_file() {
    let env = ConfigEnv::start().await;
    let names = env.rule_names();
    let [first, _] = env.versions();
    let cut = |name: &str| first[..first.find(name).expect("there")].to_owned();
    for _ in 0..4 {
        for end in ["  - name: blocked", "  - name: rest"] {
            env.write(&cut(end));
            sleep(9 * SECOND).await;
            assert_eq!(env.rule_names(), names);
        }
    }
    env.write(&first);
    sleep(60 * SECOND).await;
    assert_eq!((env.rule_names(), env.reloads("applied")), (names, 0));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_missing_for_a_while_and_returns_unchanged_is_no_reload() {
    let env = ConfigEnv::start().await;
    let [first, second] = env.versions();
    fs::remove_file(env.file()).expect("removed");
    sleep(30 * SECOND).await;
    env.assert_denied(&["/admin/users", "/internal/keys"], &[], "no file").await;
    env.write(&first);
    sleep(30 * SECOND).await;
    assert_eq!((env.reloads("applied"), env.reloads("rejected")), (0, 0));
    fs::remove_file(env.file()).expect("removed");
    sleep(30 * SECOND).await;
    env.write(&second);
    let seconds = env.seconds_until(&["blocked", "more", "admin", "health", "rest"]).await;
    assert!(seconds.is_some(), "a different file is a reload");
}

#[tokio::test(start_paused = true)]
async fn a_replaced_link_is_detected_and_so_is_a_change_between_the_load_and_the_first_check() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = SigningKey::generate("k", SigningAlgorithm::ES256);
    for (name, rules) in ["1", "2"].into_iter().zip(rules()) {
        fs::create_dir(folder.path().join(name)).expect("made");
        fs::write(folder.path().join(name).join("p.yaml"), head(&key) + rules).expect("written");
    }
    symlink("1", folder.path().join("..data")).expect("linked");
    symlink("..data/p.yaml", folder.path().join("p.yaml")).expect("linked");
    let env = ConfigEnv::reload_from(folder, key).await;
    // Before the first check of the file.
    symlink("2", env.folder.path().join("..data_tmp")).expect("linked");
    fs::rename(env.folder.path().join("..data_tmp"), env.folder.path().join("..data")).expect("renamed");
    assert!(env.seconds_until(&["blocked", "more", "admin", "health", "rest"]).await.is_some());
}
