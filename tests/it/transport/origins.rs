//! Responses older than the current set, moving key URLs, and snapshots after a restart: a withdrawn key stays withdrawn and
//! a new one is found, regardless of caches and replicas.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use portcullis::access_request::AccessRequest;
use portcullis::commands::issuer::SigningKey;
use portcullis::service::Service;
use serde_json::{Value, json};

use super::answer::{Answer, Gate};
use super::env::{
    FREQUENT_REFRESH, IMMEDIATE_REFRESH, ISSUER, TestEnv, capture, configured, eventually, fetches, folder,
    key, logged, provider, token,
};
use super::key_server::KeyServer;
use crate::support::subprocess::StartCommand;
use crate::support::{NOW, Running, fixed_clock};

/// An HTTP date this many seconds after the current time of the tests.
fn date(from_now: i64) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp(NOW + from_now).expect("a time");
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    at.format(&format).expect("a date")
}

fn dated(keys: &[&SigningKey], from_now: i64) -> Answer {
    Answer::keys(keys).header("date", date(from_now))
}

/// A response that a cache has stored for ten minutes.
fn cached(keys: &[&SigningKey]) -> Answer {
    dated(keys, -600).header("age", "600")
}

#[tokio::test]
async fn an_older_cached_answer_removes_no_key_and_restores_no_withdrawn_one() {
    capture();
    let env = TestEnv::start(FREQUENT_REFRESH).await;
    let new = key("new");
    env.server.respond_with(dated(&[&new], 0));
    env.expect_reason(&new, "ok").await;
    env.expect_reason(&env.key, "key_unknown").await;
    // From now on a cache answers every request with an old response, despite no-cache.
    env.server.respond_with(cached(&[&env.key]));
    let older = async || fetches(&env.service, "scheduled", "older").await;
    eventually("older answers are counted", async || older().await >= 5).await;
    for _ in 0..5 {
        env.expect_reason(&new, "ok").await;
        let reason = env.service.bearer(&token(&env.key)).await.reason().to_owned();
        assert!(["key_unknown", "keys_unavailable"].contains(&reason.as_str()), "{reason}");
    }
    assert_eq!(env.status().await["keys"].as_array().map(Vec::len), Some(1));
    let log = logged();
    assert!(log.contains("older key set received") && log.contains("age: 600"), "{log}");
}

#[tokio::test]
async fn an_older_answer_to_a_scheduled_fetch_is_retried_without_caches() {
    // It has a withdrawn key, or lacks a published one.
    for overlap in [false, true] {
        is_retried_without_caches(overlap).await;
    }
}

async fn is_retried_without_caches(overlap: bool) {
    let env = TestEnv::start(FREQUENT_REFRESH).await;
    let new = key("new");
    let published = if overlap { vec![&env.key, &new] } else { vec![&new] };
    let (fresh, stale) = (dated(&published, 0), cached(&[&env.key]));
    env.server.on(move |request| match request.header("cache-control") {
        Some("no-cache") => fresh.clone(),
        _ => stale.clone(),
    });
    env.expect_reason(&new, "ok").await;
    let before = env.server.requests().len();
    // A scheduled fetch during the token's own fetch may have been answered before it and applied after it: it is older,
    // and equal to the set that was current when it was received.
    env.server.request(before + 2).await;
    let older = fetches(&env.service, "scheduled", "older").await;
    env.server.request(before + 10).await;
    let requests = env.server.requests();
    let without_caches: Vec<bool> =
        requests.iter().skip(before).map(|one| one.header("cache-control").is_some()).collect();
    assert!(
        without_caches.windows(2).all(|pair| pair[0] != pair[1]),
        "each is retried once: {without_caches:?}"
    );
    env.expect_reason(&new, "ok").await;
    assert_eq!(fetches(&env.service, "scheduled", "older").await, older);
}

#[tokio::test]
async fn a_new_key_is_accepted_even_from_a_replica_whose_clock_is_behind() {
    let env = TestEnv::start(IMMEDIATE_REFRESH).await;
    let (b, c) = (key("b"), key("c"));
    env.server.respond_with(dated(&[&env.key, &b], 0));
    env.expect_reason(&b, "ok").await;
    // A replica whose clock is one minute behind has the signing key of the token.
    env.server.respond_with(dated(&[&env.key, &c], -60));
    env.expect_reason(&c, "ok").await;
    env.expect_reason(&b, "ok").await;
    // Once its date has caught up, the missing key is withdrawn.
    env.server.respond_with(dated(&[&env.key, &c], 1));
    env.expect_reason(&key("made-up"), "key_unknown").await;
    env.expect_reason(&b, "key_unknown").await;
}

#[tokio::test]
async fn a_withdrawn_key_is_accepted_again_from_an_answer_newer_than_the_one_without_it() {
    let env = TestEnv::start(IMMEDIATE_REFRESH).await;
    let new = key("new");
    env.server.respond_with(dated(&[&new], -10));
    env.expect_reason(&new, "ok").await;
    env.expect_reason(&env.key, "key_unknown").await;
    for seconds in [-11, -14, -600] {
        env.server.respond_with(dated(&[&new, &env.key], seconds));
        let reason = env.service.bearer(&token(&env.key)).await.reason().to_owned();
        assert!(["key_unknown", "keys_unavailable"].contains(&reason.as_str()), "{seconds}: {reason}");
    }
    env.server.respond_with(dated(&[&new, &env.key], -9));
    env.expect_reason(&env.key, "ok").await;
    env.expect_reason(&new, "ok").await;
}

#[tokio::test]
async fn a_forced_fetch_requests_the_document_again_if_the_cached_url_has_no_new_key() {
    let (server, old, new) = (KeyServer::start().await, key("old"), key("new"));
    let issuer = server.http("");
    let moved = Arc::new(AtomicBool::new(false));
    let (has_moved, base) = (Arc::clone(&moved), issuer.clone());
    let (at_old, at_new) = (Answer::keys(&[&old]), Answer::keys(&[&new]));
    server.on(move |request| match request.target.as_str() {
        "/old" => at_old.clone(),
        "/new" => at_new.clone(),
        _ if has_moved.load(Ordering::SeqCst) => Answer::document(&base, format!("{base}/new")),
        _ => Answer::document(&base, format!("{base}/old")),
    });
    let config = configured(&[provider("demo", &issuer, "allow_http: true", IMMEDIATE_REFRESH)]);
    let service = Running::start(config, fixed_clock()).await;
    let bearer = async |key: &SigningKey| {
        service.bearer(&super::env::token_of(&issuer, key, NOW + 60)).await.reason().to_owned()
    };
    assert_eq!(bearer(&old).await, "ok");
    // The old URL still serves the old set.
    moved.store(true, Ordering::SeqCst);
    assert_eq!(bearer(&new).await, "ok");
    assert_eq!(bearer(&old).await, "key_unknown");
}

#[tokio::test]
async fn a_document_that_is_older_only_by_its_date_is_used_for_a_needed_key() {
    let (server, old, new) = (KeyServer::start().await, key("old"), key("new"));
    let issuer = server.http("");
    let moved = Arc::new(AtomicBool::new(false));
    let (has_moved, base) = (Arc::clone(&moved), issuer.clone());
    let (at_old, at_new) = (Answer::keys(&[&old]), Answer::keys(&[&new]));
    server.on(move |request| match request.target.as_str() {
        "/old" => at_old.clone(),
        "/new" => at_new.clone(),
        // From a replica whose clock is one minute behind.
        _ if has_moved.load(Ordering::SeqCst) => {
            Answer::document(&base, format!("{base}/new")).header("date", date(-60))
        }
        _ => Answer::document(&base, format!("{base}/old")).header("date", date(0)),
    });
    let config = configured(&[provider("demo", &issuer, "allow_http: true", IMMEDIATE_REFRESH)]);
    let service = Running::start(config, fixed_clock()).await;
    let bearer = async |key: &SigningKey| {
        service.bearer(&super::env::token_of(&issuer, key, NOW + 60)).await.reason().to_owned()
    };
    assert_eq!(bearer(&old).await, "ok");
    moved.store(true, Ordering::SeqCst);
    assert_eq!(bearer(&key("made-up")).await, "key_unknown");
    assert_eq!(bearer(&new).await, "ok");
}

#[tokio::test]
async fn after_a_restart_an_answer_with_the_same_clock_still_removes_keys_of_an_older_one() {
    let (folder, server, old) = (folder(), KeyServer::start().await, key("old"));
    let [first, second] = ["new", "newer"].map(key);
    server.respond_with(dated(&[&old], 0));
    let service = start(&server, folder.path(), IMMEDIATE_REFRESH).await;
    eventually("a snapshot", async || snapshot_kids(folder.path()) == ["old"]).await;
    // Only a replica whose clock is one minute behind remains.
    server.respond_with(dated(&[&first], -60));
    assert_eq!(service.bearer(&token(&first)).await.reason(), "ok");
    eventually("the snapshot follows", async || snapshot_kids(folder.path()) == ["old", "new"]).await;
    drop(service);
    server.respond_with(dated(&[&second], -60));
    let service = start(&server, folder.path(), IMMEDIATE_REFRESH).await;
    assert_eq!(service.bearer(&token(&second)).await.reason(), "ok");
    assert_ne!(service.bearer(&token(&first)).await.reason(), "ok");
    eventually("the snapshot follows", async || !snapshot_kids(folder.path()).contains(&"new".to_owned()))
        .await;
}

/// A provider with snapshots in this folder.
fn with_snapshots(server: &KeyServer, folder: &Path, refresh: &str) -> String {
    let refresh = refresh.replace('{', &format!("{{snapshot_dir: '{}', ", folder.display()));
    provider("demo", ISSUER, &format!("jwks_uri: '{}'", server.http("/keys")), &refresh)
}

async fn start(server: &KeyServer, folder: &Path, refresh: &str) -> Running {
    Running::start_without_keys(configured(&[with_snapshots(server, folder, refresh)]), fixed_clock()).await
}

fn snapshot_kids(folder: &Path) -> Vec<String> {
    let Ok(text) = fs::read_to_string(folder.join("demo.json")) else { return Vec::new() };
    let snapshot: Value = serde_json::from_str(&text).expect("the file is always complete");
    let keys = snapshot["content"]["keys"].as_array().cloned().unwrap_or_default();
    keys.iter().map(|key| key["kid"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn at_a_start_the_issuer_is_asked_before_the_snapshot_is_used() {
    let (folder, server, old, new) = (folder(), KeyServer::start().await, key("old"), key("new"));
    server.respond_with(Answer::keys(&[&old]));
    let service = start(&server, folder.path(), IMMEDIATE_REFRESH).await;
    eventually("a snapshot", async || snapshot_kids(folder.path()) == ["old"]).await;
    drop(service);
    // The key is withdrawn while no process runs, and the issuer is slow.
    let gate = Gate::new();
    server.respond_with(Answer::keys(&[&new]).gated_by(&gate));
    let service = start(&server, folder.path(), IMMEDIATE_REFRESH).await;
    let before = token(&old);
    let (answer, ()) = tokio::join!(service.bearer(&before), async {
        server.request(2).await;
        assert_eq!(service.admin("/readyz").await, "no keys yet: demo\n");
        gate.open();
    });
    assert_eq!(answer.reason(), "key_unknown");
    assert_eq!(service.bearer(&token(&new)).await.reason(), "ok");
}

#[tokio::test]
async fn a_key_withdrawn_before_a_restart_stays_withdrawn_despite_an_old_cached_answer() {
    let (folder, server, old, new) = (folder(), KeyServer::start().await, key("old"), key("new"));
    server.respond_with(dated(&[&old], -20));
    let service = start(&server, folder.path(), IMMEDIATE_REFRESH).await;
    assert_eq!(service.bearer(&token(&old)).await.reason(), "ok");
    server.respond_with(dated(&[&new], -10));
    assert_eq!(service.bearer(&token(&new)).await.reason(), "ok");
    eventually("the snapshot follows", async || snapshot_kids(folder.path()) == ["new"]).await;
    drop(service);
    server.respond_with(cached(&[&old]));
    let service = start(&server, folder.path(), IMMEDIATE_REFRESH).await;
    for _ in 0..5 {
        let reason = service.bearer(&token(&old)).await.reason().to_owned();
        assert!(["key_unknown", "keys_unavailable"].contains(&reason.as_str()), "{reason}");
    }
    assert_eq!(service.bearer(&token(&new)).await.reason(), "ok", "the snapshot is newer");
}

#[tokio::test]
async fn a_snapshot_of_another_process_is_never_replaced_by_an_older_set() {
    let (folder, server, old, new) = (folder(), KeyServer::start().await, key("old"), key("new"));
    server.respond_with(dated(&[&old], -20));
    let service = start(&server, folder.path(), IMMEDIATE_REFRESH).await;
    eventually("a snapshot", async || snapshot_kids(folder.path()) == ["old"]).await;
    drop(service);
    // Two processes with one folder. The first has read the old file, and its own fetches fail.
    server.respond_with(Answer::status(503));
    let outdated = start(&server, folder.path(), FREQUENT_REFRESH).await;
    eventually("the key of the snapshot is used", async || outdated.bearer(&token(&old)).await.is_allowed())
        .await;
    server.respond_with(dated(&[&new], -10));
    let current = start(&server, folder.path(), IMMEDIATE_REFRESH).await;
    eventually("a snapshot of the newer set", async || snapshot_kids(folder.path()) == ["new"]).await;
    let newer = fs::read(folder.path().join("demo.json")).expect("the file exists");
    drop((current, outdated));
    // A process that gets an old response at its start and has no newer set, while another process writes a newer one.
    let shared = super::env::folder();
    server.respond_with(cached(&[&old]));
    let outdated = start(&server, shared.path(), FREQUENT_REFRESH).await;
    eventually("the old key is known", async || outdated.bearer(&token(&old)).await.is_allowed()).await;
    eventually("a snapshot", async || snapshot_kids(shared.path()) == ["old"]).await;
    let partial = shared.path().join("partial");
    fs::write(&partial, newer).expect("written");
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o600)).expect("ours");
    fs::rename(&partial, shared.path().join("demo.json")).expect("ours");
    let count = server.requests().len();
    server.request(count + 30).await;
    assert_eq!(snapshot_kids(shared.path()), ["new"]);
}

/// A small tmpfs, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` if this user has no permission to mount.
    fn mount(at: &Path) -> Option<Self> {
        fs::create_dir(at).expect("made");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k,mode=0700", "none"]).arg(at).run();
        mount.is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }

    fn fill(&self) {
        let filler = self.0.join("filler");
        let mut size = 64 << 10;
        // Fills the disk to the last page.
        while size > 0 {
            if fs::write(&filler, vec![0; size]).is_ok() {
                return;
            }
            size -= 4096;
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("-l").arg(&self.0).run();
    }
}

#[tokio::test]
async fn on_a_full_disk_a_snapshot_with_a_withdrawn_key_is_removed_and_no_restart_accepts_it() {
    let (folder, server, old, new) = (folder(), KeyServer::start().await, key("old"), key("new"));
    let Some(disk) = SmallDisk::mount(&folder.path().join("disk")) else {
        eprintln!("skipped: no permission to mount");
        return;
    };
    server.respond_with(Answer::keys(&[&old]));
    let service = start(&server, &disk.0, IMMEDIATE_REFRESH).await;
    eventually("a snapshot", async || snapshot_kids(&disk.0) == ["old"]).await;
    disk.fill();
    server.respond_with(Answer::keys(&[&new]));
    assert_eq!(service.bearer(&token(&new)).await.reason(), "ok");
    eventually("the old snapshot is removed", async || !disk.0.join("demo.json").exists()).await;
    drop(service);
    server.respond_with(Answer::status(503));
    let service = start(&server, &disk.0, IMMEDIATE_REFRESH).await;
    assert_eq!(service.bearer(&token(&old)).await.reason(), "keys_unavailable");
    // With free space the next set is written.
    fs::remove_file(disk.0.join("filler")).expect("ours");
    server.respond_with(Answer::keys(&[&new]));
    eventually("the new key is known", async || service.bearer(&token(&new)).await.is_allowed()).await;
    eventually("a snapshot", async || snapshot_kids(&disk.0) == ["new"]).await;
}

#[tokio::test]
async fn a_discovery_document_is_an_object() {
    let server = KeyServer::start().await;
    let issuer = server.http("");
    let keys = Answer::keys(&[&key("a")]);
    let document = json!([issuer, server.http("/keys")]).to_string();
    server.on(move |request| match request.target.as_str() {
        "/keys" => keys.clone(),
        _ => Answer::status(200).body(document.clone()),
    });
    let config = configured(&[provider("demo", &issuer, "allow_http: true", IMMEDIATE_REFRESH)]);
    let service = Running::start_without_keys(config, fixed_clock()).await;
    server.request(2).await;
    let readiness = service.admin("/readyz").await;
    assert!(readiness.starts_with("no keys yet: demo: not a discovery document"), "{readiness}");
    assert_eq!(server.requests_for("/keys"), 0);
}

#[tokio::test]
async fn an_issuer_whose_clock_was_set_back_is_accepted_after_a_few_answers() {
    let env = TestEnv::start(FREQUENT_REFRESH).await;
    let new = key("new");
    env.server.respond_with(dated(&[&new], 0));
    env.expect_reason(&new, "ok").await;
    // Other keys with a clock that is one day behind.
    let last = key("last");
    env.server.respond_with(dated(&[&last], -86_400));
    env.wait_until_known(&last).await;
    eventually("the withdrawal is applied by that clock too", async || {
        env.service.bearer(&token(&new)).await.reason() == "key_unknown"
    })
    .await;
}

#[tokio::test]
async fn a_cached_copy_adds_no_key_that_the_newer_answer_lacks() {
    let env = TestEnv::start(IMMEDIATE_REFRESH).await;
    let (new, unseen) = (key("new"), key("unseen"));
    env.server.respond_with(dated(&[&new], 0));
    env.expect_reason(&new, "ok").await;
    let renamed = env.key.with_kid("renamed");
    for copy in [cached(&[&unseen]), cached(&[&renamed]), dated(&[&unseen], -600).header("age", "600, 600")] {
        env.server.respond_with(copy);
        for withdrawn in [&unseen, &renamed, &env.key] {
            let reason = env.service.bearer(&token(withdrawn)).await.reason().to_owned();
            assert!(["key_unknown", "keys_unavailable"].contains(&reason.as_str()), "{reason}");
        }
        env.expect_reason(&new, "ok").await;
    }
}

#[tokio::test]
async fn an_unavailable_document_does_not_change_the_key_url() {
    let (server, old, new) = (KeyServer::start().await, key("old"), key("new"));
    let issuer = server.http("");
    let down = Arc::new(AtomicBool::new(false));
    let (is_down, base) = (Arc::clone(&down), issuer.clone());
    let (before, after) = (Answer::keys(&[&old]), Answer::keys(&[&new]));
    server.on(move |request| match (request.target.as_str(), is_down.load(Ordering::SeqCst)) {
        ("/keys", false) => before.clone(),
        ("/keys", true) => after.clone(),
        (_, true) => Answer::status(503),
        (_, false) => Answer::document(&base, format!("{base}/keys")),
    });
    // The key URL of the document is cached for half an interval.
    let config = configured(&[provider("demo", &issuer, "allow_http: true", FREQUENT_REFRESH)]);
    let service = Running::start(config, fixed_clock()).await;
    down.store(true, Ordering::SeqCst);
    eventually("the new key is found where the keys were", async || {
        service.bearer(&super::env::token_of(&issuer, &new, NOW + 60)).await.is_allowed()
    })
    .await;
}

#[tokio::test]
async fn a_scheduled_answer_with_a_withdrawn_key_is_retried_without_caches() {
    let env = TestEnv::start(FREQUENT_REFRESH).await;
    let new = key("new");
    // A cache that sends a new Date with its copy and honours no-cache.
    let (copy, fresh) = (Answer::keys(&[&env.key]), Answer::keys(&[&new]));
    env.server.on(move |request| match request.header("cache-control") {
        Some(_) => fresh.clone(),
        None => copy.clone(),
    });
    env.expect_reason(&new, "ok").await;
    let count = env.server.requests().len();
    env.server.request(count + 10).await;
    env.expect_reason(&env.key, "key_unknown").await;
    env.expect_reason(&new, "ok").await;
}

#[tokio::test]
async fn a_reload_to_another_source_knows_what_was_withdrawn_at_the_old_one() {
    let (before, after) = (KeyServer::start().await, KeyServer::start().await);
    let (old, new) = (key("old"), key("new"));
    let at = |server: &KeyServer| {
        configured(&[provider(
            "demo",
            ISSUER,
            &format!("jwks_uri: '{}'", server.http("/keys")),
            IMMEDIATE_REFRESH,
        )])
    };
    before.respond_with(dated(&[&old], -20));
    let service = Service::start(&at(&before), fixed_clock()).expect("no file is needed");
    let reason = async |key: &SigningKey| {
        let value = format!("Bearer {}", token(key));
        let headers = [(&b"authorization"[..], value.as_bytes())].into_iter().collect();
        let request =
            AccessRequest::new(b"GET", b"h", b"/", headers, portcullis::clock::monotonic().into_std());
        service.authorizer().decide("test", &request).await.decision.verdict.reason().as_str()
    };
    assert_eq!(reason(&old).await, "ok");
    before.respond_with(dated(&[&new], -10));
    assert_eq!(reason(&new).await, "ok");
    // The other URL serves an old copy.
    after.respond_with(cached(&[&old, &new]));
    assert_eq!(service.reload(&at(&after)).await, Ok(Vec::new()));
    assert_ne!(reason(&old).await, "ok");
    assert_eq!(reason(&new).await, "ok");
}
