//! G8 and G9: the last good set outlives its issuer, and with a snapshot the process; but only as it was
//! written, and where nobody else can write.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use portcullis::clock::{Clock, SteadyClock};
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use portcullis::keys::origin::Origin;
use portcullis::keys::published::Published;
use portcullis::keys::snapshot::{ClockReading, SnapshotFile};
use portcullis::validation::key_set::KeySet;
use portcullis::validation::{Kid, UnixTime};
use serde_json::{Value, json};

use super::answer::Answer;
use super::house::{
    House, ISSUER, PROMPT, capture, configured, eventually, fetches, folder, key, logged, provider, status,
    token, token_of,
};
use super::key_server::KeyServer;
use super::process::Process;
use crate::support::{NOW, Running, fixed_clock};

/// A provider whose last good set is kept in this folder.
fn keeping(server: &KeyServer, issuer: &str, folder: &Path) -> String {
    let refresh = PROMPT.replace('{', &format!("{{snapshot_dir: '{}', ", folder.display()));
    provider("demo", issuer, &format!("jwks_uri: '{}'", server.http("/keys")), &refresh)
}

/// A service that has written a snapshot of this key's set and is gone; its issuer is down since.
async fn left_behind(folder: &Path, known: &SigningKey) -> KeyServer {
    let server = KeyServer::start().await;
    server.always(Answer::keys(&[known]));
    let service = Running::start(configured(&[keeping(&server, ISSUER, folder)]), fixed_clock()).await;
    let file = folder.join("demo.json");
    eventually("a snapshot", async || file.exists()).await;
    drop(service);
    server.always(Answer::status(503));
    server
}

/// What a service that starts while the issuer is down says to a token of this key, and what it logs.
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
    let config = configured(&[keeping(server, issuer, folder)]);
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
    let server = left_behind(folder.path(), &known).await;
    let config = configured(&[keeping(&server, ISSUER, folder.path())]);
    let service = Running::start(config, fixed_clock()).await;
    let house = House { server, key: known, service };
    house.is(&house.key, "ok").await;
    house.is(&new, "keys_unavailable").await;
    assert!(house.last_error().await.contains("503"));
    house.server.always(Answer::keys(&[&new]));
    house.comes_to_know(&new).await;
    house.is(&house.key, "key_unknown").await;
    // What is withdrawn stays so for the next start: the file follows.
    let file = folder.path().join("demo.json");
    eventually("the snapshot follows", async || {
        fs::read_to_string(&file).expect("there at any time").contains("\"kid\":\"new\"")
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_is_its_owners_and_has_no_more_than_is_needed() {
    let folder = folder();
    let server = KeyServer::start().await;
    let mut rich = key("rich").public_jwk();
    rich["x5c"] = json!(["certificate"]);
    let mut private = SigningKey::generate("private", SigningAlgorithm::RS256).public_jwk();
    private["d"] = json!("private-half");
    let shared = json!({"kty": "oct", "kid": "shared", "k": "c2hhcmVkLXNlY3JldC1zaGFyZWQtc2VjcmV0LXNoYXJl"});
    let document = json!({"keys": [rich, private, shared, key("plain").public_jwk()], "extra": "extra"});
    server.always(Answer::status(200).body(document.to_string()));
    let place = folder.path().join("made/when/missing");
    let service = Running::start(configured(&[keeping(&server, ISSUER, &place)]), fixed_clock()).await;
    let file = place.join("demo.json");
    eventually("a snapshot", async || file.exists()).await;
    let text = fs::read_to_string(&file).expect("text");
    for absent in ["private-half", "c2hhcmVk", "certificate", "extra"] {
        assert!(!text.contains(absent), "{absent} in {text}");
    }
    assert!(text.contains("\"rich\"") && text.contains("\"plain\""), "{text}");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(&place)), (0o600, 0o700));
    let names: Vec<_> =
        fs::read_dir(&place).expect("a folder").map(|entry| entry.expect("one").file_name()).collect();
    assert_eq!(names, ["demo.json"], "nothing half-written stays");
    drop(service);
}

type Tampering = (&'static str, fn(&Path), &'static str);

#[tokio::test]
async fn a_snapshot_that_is_not_as_it_was_written_or_that_others_can_write_is_refused_and_told() {
    fn change(file: &Path, change: impl FnOnce(String) -> String) {
        fs::write(file, change(fs::read_to_string(file).expect("text"))).expect("written");
    }
    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
    }
    fn parent(file: &Path) -> &Path {
        file.parent().expect("a folder")
    }
    /// The content as somebody else would like it, under the digest of what it was.
    fn content(file: &Path, exchange: impl FnOnce(&mut Value)) {
        change(file, |text| {
            let mut sealed: Value = serde_json::from_str(&text).expect("JSON");
            exchange(&mut sealed["content"]);
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
    let mut wrong = Vec::new();
    for (what, tamper, says) in tamperings {
        let (folder, known) = (folder(), key("known"));
        let server = left_behind(folder.path(), &known).await;
        tamper(&folder.path().join("demo.json"));
        let (reason, log) = start_again(&server, ISSUER, folder.path(), &known).await;
        let told = log.lines().any(|line| line.contains("key snapshot not used") && line.contains(says));
        if reason != "keys_unavailable" || !told {
            wrong.push(format!("{what}: {reason}, {log}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_snapshot_is_for_the_very_provider_that_wrote_it() {
    let (folder, known) = (folder(), key("known"));
    let server = left_behind(folder.path(), &known).await;
    let (reason, _) = start_again(&server, ISSUER, folder.path(), &known).await;
    assert_eq!(reason, "ok");
    let (reason, log) = start_again(&server, "https://other.example.com", folder.path(), &known).await;
    assert_eq!(reason, "keys_unavailable");
    assert!(log.contains("it belongs to another issuer"), "{log}");
    // The same issuer whose keys are elsewhere now, and down there as well.
    let elsewhere = KeyServer::start().await;
    let (reason, log) = start_again(&elsewhere, ISSUER, folder.path(), &known).await;
    assert_eq!(reason, "keys_unavailable");
    assert!(log.contains("from another source"), "{log}");
    // Under another name there is none.
    let named = keeping(&server, ISSUER, folder.path()).replace("name: demo", "name: other");
    let service = Running::start_without_keys(configured(&[named]), fixed_clock()).await;
    assert_eq!(service.bearer(&token(&known)).await.reason(), "keys_unavailable");
}

#[tokio::test]
async fn a_snapshot_counts_by_the_clock_on_the_wall_and_a_wrong_clock_costs_the_snapshot_alone() {
    const DAY: i64 = 24 * 3600;
    for (now, reason, says) in [
        (NOW + DAY - 60, "ok", "serving keys from snapshot"),
        (NOW + DAY + 1, "keys_unavailable", "older than max_stale"),
        (NOW + 3650 * DAY, "keys_unavailable", "older than max_stale"),
        (NOW - 300, "ok", "serving keys from snapshot"),
        (NOW - 301, "keys_unavailable", "from the future"),
        (1, "keys_unavailable", "from the future"),
    ] {
        let (folder, known) = (folder(), key("known"));
        let server = left_behind(folder.path(), &known).await;
        let (found, log) = start_at(now, &server, ISSUER, folder.path(), &known).await;
        assert_eq!(found, reason, "{now}");
        assert!(log.contains(says), "{now}: {log}");
        // The issuer's word is not older for it.
        server.always(Answer::keys(&[&known]));
        let config = configured(&[keeping(&server, ISSUER, folder.path())]);
        let service = Running::start(config, Clock::Fixed(UnixTime::from_secs(now))).await;
        let answer = service.bearer(&token_of(ISSUER, &known, now + 60)).await;
        assert_eq!(answer.faults("ok", &[]), Vec::<String>::new(), "{now}");
    }
}

#[tokio::test]
async fn a_pipe_in_the_place_of_a_snapshot_stops_no_start() {
    let (folder, known) = (folder(), key("known"));
    let server = left_behind(folder.path(), &known).await;
    let file = folder.path().join("demo.json");
    fs::remove_file(&file).expect("ours");
    assert!(Command::new("mkfifo").arg(&file).status().expect("mkfifo runs").success());
    // In a process of its own, since whoever opens the pipe waits for ever.
    let process = Process::serve(folder.path(), &[keeping(&server, ISSUER, folder.path())], &[]).await;
    assert_eq!(process.bearer(&known).await.reason(), "keys_unavailable");
    let (code, log) = process.ends().await;
    assert_eq!(code, Some(0));
    assert!(log.contains("it is not a regular file"), "{log}");
}

#[tokio::test]
async fn a_snapshot_of_another_user_is_refused() {
    let (folder, known) = (folder(), key("known"));
    let server = left_behind(folder.path(), &known).await;
    let file = folder.path().join("demo.json");
    if chown(&file, Some(54_321), None).is_err() {
        eprintln!("only root can give a file away: nothing was tried");
        return;
    }
    let (reason, log) = start_again(&server, ISSUER, folder.path(), &known).await;
    assert_eq!(reason, "keys_unavailable");
    assert!(log.contains("it belongs to another user"), "{log}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_costs_the_snapshot_and_nothing_else() {
    let folder = folder();
    let (blocked, known, new) = (folder.path().join("file"), key("known"), key("new"));
    fs::write(&blocked, "no folder").expect("written");
    let server = KeyServer::start().await;
    server.always(Answer::keys(&[&known]));
    capture();
    let service = Running::start(configured(&[keeping(&server, ISSUER, &blocked)]), fixed_clock()).await;
    let house = House { server, key: known, service };
    eventually("it is told", async || logged().contains("key snapshot not written")).await;
    house.server.always(Answer::keys(&[&new]));
    house.is(&new, "ok").await;
    assert_eq!(fs::read_to_string(&blocked).expect("there"), "no folder");
}

#[tokio::test]
async fn a_set_serves_no_longer_than_max_stale_and_then_nobody_is_blamed() {
    const REFRESH: &str = "refresh: {interval: 100ms, min_spacing: 10ms, max_stale: 100ms, wait: 10s}";
    let house = House::start(REFRESH).await;
    house.server.always(Answer::status(503));
    eventually("nobody can say", async || {
        let reason = house.service.bearer(&token(&house.key)).await.reason().to_owned();
        assert!(["ok", "keys_unavailable"].contains(&reason.as_str()), "{reason}");
        reason == "keys_unavailable"
    })
    .await;
    house.server.always(Answer::keys(&[&house.key]));
    eventually("it is back", async || house.service.bearer(&token(&house.key)).await.is_allowed()).await;
    assert!(fetches(&house.service, "scheduled", "failed").await > 0);
    assert_eq!(status(&house.service, "demo").await["last_error"], json!(null));
}

#[tokio::test]
async fn an_older_set_takes_no_key_out_of_a_newer_file_and_brings_none_back() {
    let folder = folder();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).expect("own folder");
    let clock = Clock::Fixed(UnixTime::from_secs(NOW));
    let line = SteadyClock::start(&clock);
    let file = SnapshotFile::new(folder.path(), "p", ISSUER, "https://sso.example.com/keys", 1 << 20);
    let [a, b, gone] = ["a", "b", "gone"].map(key);
    let set = |keys: &[&SigningKey]| {
        let keys: Vec<Value> = keys.iter().map(|key| json!(key.public_jwk())).collect();
        Arc::new(KeySet::parse(json!({"keys": keys}).to_string().as_bytes()).expect("a key set"))
    };
    let now = line.now_micros();
    let store = async |keys, seconds_ago: i64| {
        let asked = now - seconds_ago * 1_000_000;
        let published = Published::restored(keys, Origin::at(asked, asked), Vec::new());
        let wall = UnixTime::from_secs(NOW - seconds_ago);
        file.store(published, wall, ClockReading::of(&clock, &line))
            .await
            .expect("the folder can be written to");
    };
    store(set(&[&a, &b]), 10).await;
    store(set(&[&a, &gone]), 60).await;
    let read = file.read(ClockReading::of(&clock, &line), Duration::from_secs(3600)).await;
    let read = read.expect("a snapshot").expect("is there");
    let kids = read.published.keys().keys().iter().filter_map(|key| key.kid()).map(Kid::as_str);
    let kids: Vec<&str> = kids.collect();
    assert_eq!(kids, ["a", "b"]);
    assert_eq!(read.fetched_at.as_secs_f64(), (NOW - 10) as f64);
}
