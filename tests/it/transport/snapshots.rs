//! G8 and G9: the last valid set stays in use while the issuer is down, and with a snapshot after a restart; only an
//! unmodified file that no other user can write is used.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use portcullis::clock::{Clock, SimulatedClock, SteadyClock};
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use portcullis::keys::origin::Origin;
use portcullis::keys::published::Published;
use portcullis::keys::snapshot::{ClockReading, SnapshotFile};
use portcullis::validation::key_set::KeySet;
use portcullis::validation::{Kid, UnixTime};
use serde_json::{Value, json};

use super::answer::Answer;
use super::env::{
    IMMEDIATE_REFRESH, ISSUER, TestEnv, capture, configured, eventually, fetches, folder, key, logged,
    provider, status, token, token_of,
};
use super::key_server::KeyServer;
use super::process::Process;
use crate::support::subprocess::StartCommand;
use crate::support::{NOW, Running, fixed_clock};

/// A provider with snapshots in this folder.
fn with_snapshots(server: &KeyServer, issuer: &str, folder: &Path) -> String {
    let refresh = IMMEDIATE_REFRESH.replace('{', &format!("{{snapshot_dir: '{}', ", folder.display()));
    provider("demo", issuer, &format!("jwks_uri: '{}'", server.http("/keys")), &refresh)
}

/// Runs a service until it has written a snapshot of this key's set and stops it; returns its issuer, which is down.
async fn write_snapshot(folder: &Path, known: &SigningKey) -> KeyServer {
    let server = KeyServer::start().await;
    server.respond_with(Answer::keys(&[known]));
    let service = Running::start(configured(&[with_snapshots(&server, ISSUER, folder)]), fixed_clock()).await;
    let file = folder.join("demo.json");
    eventually("a snapshot", async || file.exists()).await;
    drop(service);
    server.respond_with(Answer::status(503));
    server
}

/// The reason for a token of this key and the log of a service that starts while the issuer is down.
async fn start_again(
    server: &KeyServer,
    issuer: &str,
    folder: &Path,
    known: &SigningKey,
) -> (String, String) {
    start_at(NOW, server, issuer, folder, known).await
}

/// The same, at another time.
async fn start_at(
    now: i64,
    server: &KeyServer,
    issuer: &str,
    folder: &Path,
    known: &SigningKey,
) -> (String, String) {
    capture();
    let config = configured(&[with_snapshots(server, issuer, folder)]);
    let clock = Clock::Fixed(UnixTime::from_secs(now));
    let service = Running::start_without_keys(config, clock).await;
    let token = token_of(issuer, known, now + 60);
    let answer = service.bearer(&token).await;
    assert_eq!(answer.faults(answer.reason(), &[]), Vec::<String>::new());
    let ready = service.admin("/readyz").await;
    assert_eq!(ready == "ok\n", answer.is_allowed(), "{ready}");
    (answer.reason().to_owned(), logged())
}

#[tokio::test]
async fn a_start_while_the_issuer_is_down_serves_the_snapshot_and_the_issuer_when_it_is_back() {
    let (folder, known, new) = (folder(), key("known"), key("new"));
    let server = write_snapshot(folder.path(), &known).await;
    let config = configured(&[with_snapshots(&server, ISSUER, folder.path())]);
    let service = Running::start(config, fixed_clock()).await;
    let env = TestEnv { server, key: known, service };
    env.expect_reason(&env.key, "ok").await;
    env.expect_reason(&new, "keys_unavailable").await;
    assert!(env.last_error().await.contains("503"));
    env.server.respond_with(Answer::keys(&[&new]));
    env.wait_until_known(&new).await;
    env.expect_reason(&env.key, "key_unknown").await;
    // The withdrawal is written to the file for the next start.
    let file = folder.path().join("demo.json");
    eventually("the snapshot follows", async || {
        fs::read_to_string(&file).expect("the file exists").contains("\"kid\":\"new\"")
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_is_private_and_has_public_keys_only() {
    let folder = folder();
    let server = KeyServer::start().await;
    let mut rich = key("rich").public_jwk();
    rich["x5c"] = json!(["certificate"]);
    let mut private = SigningKey::generate("private", SigningAlgorithm::RS256).public_jwk();
    private["d"] = json!("private-half");
    let shared = json!({"kty": "oct", "kid": "shared", "k": "c2hhcmVkLXNlY3JldC1zaGFyZWQtc2VjcmV0LXNoYXJl"});
    let document = json!({"keys": [rich, private, shared, key("plain").public_jwk()], "extra": "extra"});
    server.respond_with(Answer::status(200).body(document.to_string()));
    let snapshot_dir = folder.path().join("made/when/missing");
    let service =
        Running::start(configured(&[with_snapshots(&server, ISSUER, &snapshot_dir)]), fixed_clock()).await;
    let file = snapshot_dir.join("demo.json");
    eventually("a snapshot", async || file.exists()).await;
    let text = fs::read_to_string(&file).expect("text");
    for absent in ["private-half", "c2hhcmVk", "certificate", "extra"] {
        assert!(!text.contains(absent), "{absent} in {text}");
    }
    assert!(text.contains("\"rich\"") && text.contains("\"plain\""), "{text}");
    let mode = |path: &Path| fs::metadata(path).expect("the file exists").permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(&snapshot_dir)), (0o600, 0o700));
    let names: Vec<_> =
        fs::read_dir(&snapshot_dir).expect("a folder").map(|entry| entry.expect("one").file_name()).collect();
    assert_eq!(names, ["demo.json"], "no partial file remains");
    drop(service);
}

type Tampering = (&'static str, fn(&Path), &'static str);

#[tokio::test]
async fn a_modified_snapshot_or_one_that_others_can_write_is_rejected_and_logged() {
    fn change(file: &Path, change: impl FnOnce(String) -> String) {
        fs::write(file, change(fs::read_to_string(file).expect("text"))).expect("written");
    }
    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
    }
    fn parent(file: &Path) -> &Path {
        file.parent().expect("a folder")
    }
    /// Changes the content and keeps the digest.
    fn content(file: &Path, edit: impl FnOnce(&mut Value)) {
        change(file, |text| {
            let mut sealed: Value = serde_json::from_str(&text).expect("JSON");
            edit(&mut sealed["content"]);
            sealed.to_string()
        });
    }
    let tamperings: [Tampering; 21] = [
        ("empty", |file| fs::write(file, "").expect("written"), "damaged"),
        ("cut off", |file| change(file, |text| text[..text.len() - 1].to_owned()), "damaged"),
        ("doubled", |file| change(file, |text| text.repeat(2)), "damaged"),
        ("no JSON", |file| fs::write(file, "<html>").expect("written"), "damaged"),
        ("no text", |file| fs::write(file, [0xff, 0xfe, 0]).expect("written"), "damaged"),
        ("null", |file| fs::write(file, "null").expect("written"), "damaged"),
        ("nested without end", |file| fs::write(file, "[".repeat(1 << 20)).expect("written"), "damaged"),
        ("longer than any", |file| fs::write(file, " ".repeat(4 << 20)).expect("written"), "longer than"),
        ("another key", |file| content(file, |c| c["keys"][0] = key("known").public_jwk()), "damaged"),
        (
            "another issuer",
            |file| content(file, |c| c["issuer"] = json!("https://evil.example.com")),
            "damaged",
        ),
        ("another time", |file| content(file, |c| c["fetched_at"] = json!(1_800_000_001.0)), "damaged"),
        (
            "a digest of nothing",
            |file| {
                change(file, |text| {
                    let mut sealed: Value = serde_json::from_str(&text).expect("JSON");
                    sealed["sha256"] = json!("");
                    sealed.to_string()
                });
            },
            "damaged",
        ),
        (
            "no digest",
            |file| {
                change(file, |text| {
                    let sealed: Value = serde_json::from_str(&text).expect("JSON");
                    json!({"content": sealed["content"]}).to_string()
                });
            },
            "damaged",
        ),
        ("for all to write", |file| mode(file, 0o602), "anyone may write it (mode 0602"),
        ("for its group to write", |file| mode(file, 0o620), "its group may write it (mode 0620"),
        (
            "in a folder for its group to write",
            |file| mode(parent(file), 0o770),
            "its group may write its folder",
        ),
        ("in a folder for all to write", |file| mode(parent(file), 0o777), "anyone may write its folder"),
        (
            "a link",
            |file| {
                let elsewhere = file.with_extension("elsewhere");
                fs::rename(file, &elsewhere).expect("ours");
                symlink(elsewhere, file).expect("made");
            },
            "not a regular file",
        ),
        (
            "a link to nothing",
            |file| {
                fs::remove_file(file).expect("ours");
                symlink("/nonexistent", file).expect("made");
            },
            "not a regular file",
        ),
        (
            "a folder",
            |file| {
                fs::remove_file(file).expect("ours");
                fs::create_dir(file).expect("made");
            },
            "not a regular file",
        ),
        (
            "a socket",
            |file| {
                fs::remove_file(file).expect("ours");
                drop(std::os::unix::net::UnixListener::bind(file).expect("bound"));
            },
            "not a regular file",
        ),
    ];
    let mut failures = Vec::new();
    for (what, tamper, expected) in tamperings {
        let (folder, known) = (folder(), key("known"));
        let server = write_snapshot(folder.path(), &known).await;
        tamper(&folder.path().join("demo.json"));
        let (reason, log) = start_again(&server, ISSUER, folder.path(), &known).await;
        let is_logged =
            log.lines().any(|line| line.contains("key snapshot not used") && line.contains(expected));
        if reason != "keys_unavailable" || !is_logged {
            failures.push(format!("{what}: {reason}, {log}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test]
async fn a_snapshot_is_used_only_by_the_provider_that_wrote_it() {
    let (folder, known) = (folder(), key("known"));
    let server = write_snapshot(folder.path(), &known).await;
    let (reason, _) = start_again(&server, ISSUER, folder.path(), &known).await;
    assert_eq!(reason, "ok");
    let (reason, log) = start_again(&server, "https://other.example.com", folder.path(), &known).await;
    assert_eq!(reason, "keys_unavailable");
    assert!(log.contains("it belongs to another issuer"), "{log}");
    // The same issuer with another key URL, which is down too.
    let elsewhere = KeyServer::start().await;
    let (reason, log) = start_again(&elsewhere, ISSUER, folder.path(), &known).await;
    assert_eq!(reason, "keys_unavailable");
    assert!(log.contains("from another source"), "{log}");
    // Another provider name has no snapshot.
    let named = with_snapshots(&server, ISSUER, folder.path()).replace("name: demo", "name: other");
    let service = Running::start_without_keys(configured(&[named]), fixed_clock()).await;
    assert_eq!(service.bearer(&token(&known)).await.reason(), "keys_unavailable");
}

#[tokio::test]
async fn a_snapshot_expires_by_the_wall_clock_and_a_wrong_clock_affects_only_the_snapshot() {
    const DAY: i64 = 24 * 3600;
    for (now, reason, expected) in [
        (NOW + DAY - 60, "ok", "serving keys from snapshot"),
        (NOW + DAY + 1, "keys_unavailable", "older than max_stale"),
        (NOW + 3650 * DAY, "keys_unavailable", "older than max_stale"),
        (NOW - 300, "ok", "serving keys from snapshot"),
        (NOW - 301, "keys_unavailable", "from the future"),
        (1, "keys_unavailable", "from the future"),
    ] {
        let (folder, known) = (folder(), key("known"));
        let server = write_snapshot(folder.path(), &known).await;
        let (found, log) = start_at(now, &server, ISSUER, folder.path(), &known).await;
        assert_eq!(found, reason, "{now}");
        assert!(log.contains(expected), "{now}: {log}");
        // A fetched set is used regardless of the clock.
        server.respond_with(Answer::keys(&[&known]));
        let config = configured(&[with_snapshots(&server, ISSUER, folder.path())]);
        let service = Running::start(config, Clock::Fixed(UnixTime::from_secs(now))).await;
        let answer = service.bearer(&token_of(ISSUER, &known, now + 60)).await;
        assert_eq!(answer.faults("ok", &[]), Vec::<String>::new(), "{now}");
    }
}

#[tokio::test]
async fn a_pipe_instead_of_a_snapshot_does_not_block_the_start() {
    let (folder, known) = (folder(), key("known"));
    let server = write_snapshot(folder.path(), &known).await;
    let file = folder.path().join("demo.json");
    fs::remove_file(&file).expect("ours");
    assert!(Command::new("mkfifo").arg(&file).run().expect("mkfifo runs").success());
    // A separate process, because opening the pipe blocks forever.
    let process = Process::serve(folder.path(), &[with_snapshots(&server, ISSUER, folder.path())], &[]).await;
    assert_eq!(process.bearer(&known).await.reason(), "keys_unavailable");
    let (code, log) = process.terminate().await;
    assert_eq!(code, Some(0));
    assert!(log.contains("it is not a regular file"), "{log}");
}

#[tokio::test]
async fn a_snapshot_of_another_user_is_refused() {
    let (folder, known) = (folder(), key("known"));
    let server = write_snapshot(folder.path(), &known).await;
    let file = folder.path().join("demo.json");
    if chown(&file, Some(54_321), None).is_err() {
        eprintln!("skipped: no permission to change the owner");
        return;
    }
    let (reason, log) = start_again(&server, ISSUER, folder.path(), &known).await;
    assert_eq!(reason, "keys_unavailable");
    assert!(log.contains("it belongs to another user"), "{log}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_affects_only_the_snapshot() {
    let folder = folder();
    let (blocked, known, new) = (folder.path().join("file"), key("known"), key("new"));
    fs::write(&blocked, "no folder").expect("written");
    let server = KeyServer::start().await;
    server.respond_with(Answer::keys(&[&known]));
    capture();
    let service =
        Running::start(configured(&[with_snapshots(&server, ISSUER, &blocked)]), fixed_clock()).await;
    let env = TestEnv { server, key: known, service };
    eventually("logged", async || logged().contains("key snapshot not written")).await;
    env.server.respond_with(Answer::keys(&[&new]));
    env.expect_reason(&new, "ok").await;
    assert_eq!(fs::read_to_string(&blocked).expect("the file exists"), "no folder");
}

#[tokio::test]
async fn a_set_is_used_up_to_max_stale_and_then_the_reason_is_keys_unavailable() {
    const REFRESH: &str = "refresh: {interval: 100ms, min_spacing: 10ms, max_stale: 100ms, wait: 10s}";
    let env = TestEnv::start(REFRESH).await;
    env.server.respond_with(Answer::status(503));
    eventually("the set is too old", async || {
        let reason = env.service.bearer(&token(&env.key)).await.reason().to_owned();
        assert!(["ok", "keys_unavailable"].contains(&reason.as_str()), "{reason}");
        reason == "keys_unavailable"
    })
    .await;
    eventually("a scheduled fetch fails", async || fetches(&env.service, "scheduled", "failed").await > 0)
        .await;
    env.server.respond_with(Answer::keys(&[&env.key]));
    eventually("the key is known again", async || env.service.bearer(&token(&env.key)).await.is_allowed())
        .await;
    assert_eq!(status(&env.service, "demo").await["last_error"], json!(null));
}

#[tokio::test]
async fn an_older_set_removes_no_key_from_a_newer_file_and_restores_none() {
    let folder = folder();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).expect("own folder");
    let clock = Clock::Fixed(UnixTime::from_secs(NOW));
    let steady = SteadyClock::start(&clock);
    let file = SnapshotFile::new(folder.path(), "p", ISSUER, "https://sso.example.com/keys", 1 << 20);
    let [a, b, withdrawn] = ["a", "b", "withdrawn"].map(key);
    let set = |keys: &[&SigningKey]| {
        let keys: Vec<Value> = keys.iter().map(|key| json!(key.public_jwk())).collect();
        Arc::new(KeySet::parse(json!({"keys": keys}).to_string().as_bytes()).expect("a key set"))
    };
    let now = steady.now_micros();
    let store = async |keys, seconds_ago: i64| {
        let requested_at = now - seconds_ago * 1_000_000;
        let published = Published::restored(keys, Origin::at(requested_at, requested_at), Vec::new());
        let wall = UnixTime::from_secs(NOW - seconds_ago);
        file.store(published, wall, ClockReading::of(&clock, &steady))
            .await
            .expect("the folder can be written to");
    };
    store(set(&[&a, &b]), 10).await;
    store(set(&[&a, &withdrawn]), 60).await;
    let read = file.read(ClockReading::of(&clock, &steady), Duration::from_secs(3600)).await;
    let read = read.expect("a snapshot").expect("is there");
    let kids = read.published.keys().keys().iter().filter_map(|key| key.kid()).map(Kid::as_str);
    let kids: Vec<&str> = kids.collect();
    assert_eq!(kids, ["a", "b"]);
    assert_eq!(read.fetched_at.as_secs_f64(), (NOW - 10) as f64);
}

#[tokio::test]
async fn a_set_that_waited_for_the_lock_does_not_replace_a_newer_file_written_meanwhile() {
    let folder = folder();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).expect("own folder");
    let simulated = Arc::new(SimulatedClock::starting_at(UnixTime::from_secs(NOW)));
    let clock = Clock::Simulated(Arc::clone(&simulated));
    let steady = SteadyClock::start(&clock);
    let file = SnapshotFile::new(folder.path(), "p", ISSUER, "https://sso.example.com/keys", 1 << 20);
    let [old, new] = ["old", "new"].map(key);
    let published = |key: &SigningKey, requested_at: i64| {
        let keys =
            KeySet::parse(json!({"keys": [key.public_jwk()]}).to_string().as_bytes()).expect("a key set");
        Published::restored(Arc::new(keys), Origin::at(requested_at, requested_at), Vec::new())
    };
    let older = published(&old, steady.now_micros());
    // The reading of the process that has to wait.
    let reading = ClockReading::of(&clock, &steady);
    simulated.sleep(Duration::from_secs(10));
    let newer = published(&new, steady.now_micros());
    let stored = file.store(newer, clock.now(), ClockReading::of(&clock, &steady)).await;
    stored.expect("the folder can be written to");
    file.store(older, UnixTime::from_secs(NOW), reading).await.expect("the folder can be written to");
    let read = file.read(ClockReading::of(&clock, &steady), Duration::from_secs(3600)).await;
    let read = read.expect("a snapshot").expect("is there");
    let kids = read.published.keys().keys().iter().filter_map(|key| key.kid()).map(Kid::as_str);
    assert_eq!(kids.collect::<Vec<_>>(), ["new"]);
}
