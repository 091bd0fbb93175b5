//! Answers that are older than what is in hand, documents that move, and what a restart may believe: a key that is
//! gone is gone, and a new one is found, whatever stands between the service and its issuer.

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
use super::house::{
    BUSY, House, ISSUER, PROMPT, capture, configured, eventually, fetches, folder, key, logged, provider,
    token,
};
use super::key_server::KeyServer;
use crate::support::{NOW, Running, fixed_clock};

/// A time as HTTP writes it, some seconds from the present of these tests.
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

/// An answer that a cache has kept for ten minutes.
fn kept(keys: &[&SigningKey]) -> Answer {
    dated(keys, -600).header("age", "600")
}

#[tokio::test]
async fn an_older_answer_from_a_cache_takes_nothing_away_and_brings_no_withdrawn_key_back() {
    capture();
    let house = House::start(BUSY).await;
    let new = key("new");
    house.server.always(dated(&[&new], 0));
    house.is(&new, "ok").await;
    house.is(&house.key, "key_unknown").await;
    // From now on everything is answered by an edge that has an old answer, no-cache or not.
    house.server.always(kept(&[&house.key]));
    let older = async || fetches(&house.service, "scheduled", "older").await;
    eventually("older answers are counted", async || older().await >= 5).await;
    for _ in 0..5 {
        house.is(&new, "ok").await;
        let reason = house.service.bearer(&token(&house.key)).await.reason().to_owned();
        assert!(["key_unknown", "keys_unavailable"].contains(&reason.as_str()), "{reason}");
    }
    assert_eq!(house.status().await["keys"].as_array().map(Vec::len), Some(1));
    let log = logged();
    assert!(log.contains("older key set received") && log.contains("age: 600"), "{log}");
}

#[tokio::test]
async fn an_older_answer_that_was_due_is_asked_again_without_caches_at_once() {
    // It has a key that was withdrawn, or lacks one that is there.
    for overlap in [false, true] {
        is_asked_again_without_caches(overlap).await;
    }
}

async fn is_asked_again_without_caches(overlap: bool) {
    let house = House::start(BUSY).await;
    let new = key("new");
    let published = if overlap { vec![&house.key, &new] } else { vec![&new] };
    let (fresh, stale) = (dated(&published, 0), kept(&[&house.key]));
    house.server.on(move |request| match request.header("cache-control") {
        Some("no-cache") => fresh.clone(),
        _ => stale.clone(),
    });
    house.is(&new, "ok").await;
    let before = house.server.requests().len();
    // One that was due while the token's own fetch was under way may have been answered before that and taken in behind
    // it: it is older, and was no other than the set in hand when it came.
    house.server.request(before + 2).await;
    let older = fetches(&house.service, "scheduled", "older").await;
    house.server.request(before + 10).await;
    let requests = house.server.requests();
    let asked: Vec<bool> =
        requests.iter().skip(before).map(|one| one.header("cache-control").is_some()).collect();
    assert!(asked.windows(2).all(|pair| pair[0] != pair[1]), "each is asked again once: {asked:?}");
    house.is(&new, "ok").await;
    assert_eq!(fetches(&house.service, "scheduled", "older").await, older);
}

#[tokio::test]
async fn a_key_that_was_never_seen_counts_even_by_an_answer_whose_clock_is_behind() {
    let house = House::start(PROMPT).await;
    let (b, c) = (key("b"), key("c"));
    house.server.always(dated(&[&house.key, &b], 0));
    house.is(&b, "ok").await;
    // A replica whose clock is a minute behind has the key that the token was signed with.
    house.server.always(dated(&[&house.key, &c], -60));
    house.is(&c, "ok").await;
    house.is(&b, "ok").await;
    // Once its date has caught up, what it lacks is withdrawn.
    house.server.always(dated(&[&house.key, &c], 1));
    house.is(&key("made-up"), "key_unknown").await;
    house.is(&b, "key_unknown").await;
}

#[tokio::test]
async fn a_withdrawn_key_counts_again_by_an_answer_that_is_newer_than_the_one_that_lacked_it() {
    let house = House::start(PROMPT).await;
    let new = key("new");
    house.server.always(dated(&[&new], -10));
    house.is(&new, "ok").await;
    house.is(&house.key, "key_unknown").await;
    for seconds in [-11, -14, -600] {
        house.server.always(dated(&[&new, &house.key], seconds));
        let reason = house.service.bearer(&token(&house.key)).await.reason().to_owned();
        assert!(["key_unknown", "keys_unavailable"].contains(&reason.as_str()), "{seconds}: {reason}");
    }
    house.server.always(dated(&[&new, &house.key], -9));
    house.is(&house.key, "ok").await;
    house.is(&new, "ok").await;
}

#[tokio::test]
async fn a_forced_fetch_asks_the_document_again_where_the_remembered_url_brings_nothing_new() {
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
    let config = configured(&[provider("demo", &issuer, "allow_http: true", PROMPT)]);
    let service = Running::start(config, fixed_clock()).await;
    let bearer = async |key: &SigningKey| {
        service.bearer(&super::house::token_of(&issuer, key, NOW + 60)).await.reason().to_owned()
    };
    assert_eq!(bearer(&old).await, "ok");
    // The old place still answers, with the old set.
    moved.store(true, Ordering::SeqCst);
    assert_eq!(bearer(&new).await, "ok");
    assert_eq!(bearer(&old).await, "key_unknown");
}

#[tokio::test]
async fn a_document_that_is_older_by_its_date_alone_leads_to_a_key_that_a_token_needs() {
    let (server, old, new) = (KeyServer::start().await, key("old"), key("new"));
    let issuer = server.http("");
    let moved = Arc::new(AtomicBool::new(false));
    let (has_moved, base) = (Arc::clone(&moved), issuer.clone());
    let (at_old, at_new) = (Answer::keys(&[&old]), Answer::keys(&[&new]));
    server.on(move |request| match request.target.as_str() {
        "/old" => at_old.clone(),
        "/new" => at_new.clone(),
        // Of a replica whose clock is a minute behind.
        _ if has_moved.load(Ordering::SeqCst) => {
            Answer::document(&base, format!("{base}/new")).header("date", date(-60))
        }
        _ => Answer::document(&base, format!("{base}/old")).header("date", date(0)),
    });
    let config = configured(&[provider("demo", &issuer, "allow_http: true", PROMPT)]);
    let service = Running::start(config, fixed_clock()).await;
    let bearer = async |key: &SigningKey| {
        service.bearer(&super::house::token_of(&issuer, key, NOW + 60)).await.reason().to_owned()
    };
    assert_eq!(bearer(&old).await, "ok");
    moved.store(true, Ordering::SeqCst);
    assert_eq!(bearer(&key("made-up")).await, "key_unknown");
    assert_eq!(bearer(&new).await, "ok");
}

#[tokio::test]
async fn after_a_restart_too_an_answer_by_the_same_clock_takes_away_what_an_older_one_has_brought() {
    let (folder, server, old) = (folder(), KeyServer::start().await, key("old"));
    let [first, second] = ["new", "newer"].map(key);
    server.always(dated(&[&old], 0));
    let service = start(&server, folder.path(), PROMPT).await;
    eventually("a snapshot", async || kept_kids(folder.path()) == ["old"]).await;
    // A replica whose clock is a minute behind is the only one that is left.
    server.always(dated(&[&first], -60));
    assert_eq!(service.bearer(&token(&first)).await.reason(), "ok");
    eventually("the snapshot follows", async || kept_kids(folder.path()) == ["old", "new"]).await;
    drop(service);
    server.always(dated(&[&second], -60));
    let service = start(&server, folder.path(), PROMPT).await;
    assert_eq!(service.bearer(&token(&second)).await.reason(), "ok");
    assert_ne!(service.bearer(&token(&first)).await.reason(), "ok");
    eventually("nor has the snapshot", async || !kept_kids(folder.path()).contains(&"new".to_owned())).await;
}

/// A provider whose last good set is kept in this folder.
fn keeping(server: &KeyServer, folder: &Path, refresh: &str) -> String {
    let refresh = refresh.replace('{', &format!("{{snapshot_dir: '{}', ", folder.display()));
    provider("demo", ISSUER, &format!("jwks_uri: '{}'", server.http("/keys")), &refresh)
}

async fn start(server: &KeyServer, folder: &Path, refresh: &str) -> Running {
    Running::start_without_keys(configured(&[keeping(server, folder, refresh)]), fixed_clock()).await
}

fn kept_kids(folder: &Path) -> Vec<String> {
    let Ok(text) = fs::read_to_string(folder.join("demo.json")) else { return Vec::new() };
    let snapshot: Value = serde_json::from_str(&text).expect("whole at any time");
    let keys = snapshot["content"]["keys"].as_array().cloned().unwrap_or_default();
    keys.iter().map(|key| key["kid"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn at_a_start_the_issuer_is_asked_before_the_snapshot_counts() {
    let (folder, server, old, new) = (folder(), KeyServer::start().await, key("old"), key("new"));
    server.always(Answer::keys(&[&old]));
    let service = start(&server, folder.path(), PROMPT).await;
    eventually("a snapshot", async || kept_kids(folder.path()) == ["old"]).await;
    drop(service);
    // Withdrawn while nobody ran, and the issuer takes its time.
    let gate = Gate::new();
    server.always(Answer::keys(&[&new]).behind(&gate));
    let service = start(&server, folder.path(), PROMPT).await;
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
async fn what_was_withdrawn_before_a_restart_stays_so_whatever_an_edge_answers() {
    let (folder, server, old, new) = (folder(), KeyServer::start().await, key("old"), key("new"));
    server.always(dated(&[&old], -20));
    let service = start(&server, folder.path(), PROMPT).await;
    assert_eq!(service.bearer(&token(&old)).await.reason(), "ok");
    server.always(dated(&[&new], -10));
    assert_eq!(service.bearer(&token(&new)).await.reason(), "ok");
    eventually("the snapshot follows", async || kept_kids(folder.path()) == ["new"]).await;
    drop(service);
    server.always(kept(&[&old]));
    let service = start(&server, folder.path(), PROMPT).await;
    for _ in 0..5 {
        let reason = service.bearer(&token(&old)).await.reason().to_owned();
        assert!(["key_unknown", "keys_unavailable"].contains(&reason.as_str()), "{reason}");
    }
    assert_eq!(service.bearer(&token(&new)).await.reason(), "ok", "the snapshot is newer");
}

#[tokio::test]
async fn a_snapshot_of_another_process_is_never_replaced_by_an_older_set() {
    let (folder, server, old, new) = (folder(), KeyServer::start().await, key("old"), key("new"));
    server.always(dated(&[&old], -20));
    let service = start(&server, folder.path(), PROMPT).await;
    eventually("a snapshot", async || kept_kids(folder.path()) == ["old"]).await;
    drop(service);
    // Two on one folder. The first has read the old file, and its own fetches fail.
    server.always(Answer::status(503));
    let outdated = start(&server, folder.path(), BUSY).await;
    eventually("the file's key serves", async || outdated.bearer(&token(&old)).await.is_allowed()).await;
    server.always(dated(&[&new], -10));
    let current = start(&server, folder.path(), PROMPT).await;
    eventually("the newer set is kept", async || kept_kids(folder.path()) == ["new"]).await;
    let newer = fs::read(folder.path().join("demo.json")).expect("there");
    drop((current, outdated));
    // One that gets an old answer at its start, with nothing in hand that would tell it, beside one that knows more.
    let shared = super::house::folder();
    server.always(kept(&[&old]));
    let misled = start(&server, shared.path(), BUSY).await;
    eventually("it has the old key", async || misled.bearer(&token(&old)).await.is_allowed()).await;
    eventually("it keeps it", async || kept_kids(shared.path()) == ["old"]).await;
    let partial = shared.path().join("partial");
    fs::write(&partial, newer).expect("written");
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o600)).expect("ours");
    fs::rename(&partial, shared.path().join("demo.json")).expect("ours");
    let seen = server.requests().len();
    server.request(seen + 30).await;
    assert_eq!(kept_kids(shared.path()), ["new"]);
}

/// A small file system in memory, gone with this value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where this user may mount nothing.
    fn mount(at: &Path) -> Option<Self> {
        fs::create_dir(at).expect("made");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k,mode=0700", "none"]).arg(at).status();
        mount.is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }

    fn fill(&self) {
        let filler = self.0.join("filler");
        let mut size = 64 << 10;
        // Down to the last page.
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
        let _gone = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn on_a_full_disk_a_snapshot_with_a_withdrawn_key_is_removed_and_no_restart_accepts_it() {
    let (folder, server, old, new) = (folder(), KeyServer::start().await, key("old"), key("new"));
    let Some(disk) = SmallDisk::mount(&folder.path().join("disk")) else {
        eprintln!("only root can mount a small disk: nothing was tried");
        return;
    };
    server.always(Answer::keys(&[&old]));
    let service = start(&server, &disk.0, PROMPT).await;
    eventually("a snapshot", async || kept_kids(&disk.0) == ["old"]).await;
    disk.fill();
    server.always(Answer::keys(&[&new]));
    assert_eq!(service.bearer(&token(&new)).await.reason(), "ok");
    eventually("the old one is removed", async || !disk.0.join("demo.json").exists()).await;
    drop(service);
    server.always(Answer::status(503));
    let service = start(&server, &disk.0, PROMPT).await;
    assert_eq!(service.bearer(&token(&old)).await.reason(), "keys_unavailable");
    // With room again the next set is kept.
    fs::remove_file(disk.0.join("filler")).expect("ours");
    server.always(Answer::keys(&[&new]));
    eventually("it is back", async || service.bearer(&token(&new)).await.is_allowed()).await;
    eventually("a snapshot", async || kept_kids(&disk.0) == ["new"]).await;
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
    let config = configured(&[provider("demo", &issuer, "allow_http: true", PROMPT)]);
    let service = Running::start_without_keys(config, fixed_clock()).await;
    server.request(2).await;
    let waits = service.admin("/readyz").await;
    assert!(waits.starts_with("no keys yet: demo: not a discovery document"), "{waits}");
    assert_eq!(server.asked_for("/keys"), 0);
}

#[tokio::test]
async fn an_issuer_whose_clock_was_set_back_is_believed_after_a_few_answers() {
    let house = House::start(BUSY).await;
    let new = key("new");
    house.server.always(dated(&[&new], 0));
    house.is(&new, "ok").await;
    // The same keys, and then others, by a clock that is a day behind.
    let last = key("last");
    house.server.always(dated(&[&last], -86_400));
    house.comes_to_know(&last).await;
    eventually("what is gone is gone by that clock too", async || {
        house.service.bearer(&token(&new)).await.reason() == "key_unknown"
    })
    .await;
}

#[tokio::test]
async fn a_copy_that_a_cache_has_kept_brings_no_key_that_the_newer_answer_lacks() {
    let house = House::start(PROMPT).await;
    let (new, unseen) = (key("new"), key("unseen"));
    house.server.always(dated(&[&new], 0));
    house.is(&new, "ok").await;
    let renamed = house.key.with_kid("renamed");
    for copy in [kept(&[&unseen]), kept(&[&renamed]), dated(&[&unseen], -600).header("age", "600, 600")] {
        house.server.always(copy);
        for gone in [&unseen, &renamed, &house.key] {
            let reason = house.service.bearer(&token(gone)).await.reason().to_owned();
            assert!(["key_unknown", "keys_unavailable"].contains(&reason.as_str()), "{reason}");
        }
        house.is(&new, "ok").await;
    }
}

#[tokio::test]
async fn a_document_that_cannot_be_had_moves_no_keys() {
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
    // What the document says is remembered for half an interval.
    let config = configured(&[provider("demo", &issuer, "allow_http: true", BUSY)]);
    let service = Running::start(config, fixed_clock()).await;
    down.store(true, Ordering::SeqCst);
    eventually("the new key is found where the keys were", async || {
        service.bearer(&super::house::token_of(&issuer, &new, NOW + 60)).await.is_allowed()
    })
    .await;
}

#[tokio::test]
async fn what_is_due_and_brings_a_withdrawn_key_is_asked_again_past_the_caches() {
    let house = House::start(BUSY).await;
    let new = key("new");
    // A cache that dates its copy anew, and heeds no-cache.
    let (copy, fresh) = (Answer::keys(&[&house.key]), Answer::keys(&[&new]));
    house.server.on(move |request| match request.header("cache-control") {
        Some(_) => fresh.clone(),
        None => copy.clone(),
    });
    house.is(&new, "ok").await;
    let seen = house.server.requests().len();
    house.server.request(seen + 10).await;
    house.is(&house.key, "key_unknown").await;
    house.is(&new, "ok").await;
}

#[tokio::test]
async fn a_reload_to_another_source_knows_what_was_withdrawn_at_the_old_one() {
    let (before, after) = (KeyServer::start().await, KeyServer::start().await);
    let (old, new) = (key("old"), key("new"));
    let at = |server: &KeyServer| {
        configured(&[provider("demo", ISSUER, &format!("jwks_uri: '{}'", server.http("/keys")), PROMPT)])
    };
    before.always(dated(&[&old], -20));
    let service = Service::start(&at(&before), fixed_clock()).expect("no file is needed");
    let reason = async |key: &SigningKey| {
        let value = format!("Bearer {}", token(key));
        let headers = [(&b"authorization"[..], value.as_bytes())].into_iter().collect();
        let request =
            AccessRequest::new(b"GET", b"h", b"/", headers, portcullis::clock::monotonic().into_std());
        service.authorizer().decide("test", &request).await.decision.verdict.reason().as_str()
    };
    assert_eq!(reason(&old).await, "ok");
    before.always(dated(&[&new], -10));
    assert_eq!(reason(&new).await, "ok");
    // The other place answers from an old copy.
    after.always(kept(&[&old, &new]));
    assert_eq!(service.reload(&at(&after)).await, Ok(Vec::new()));
    assert_ne!(reason(&old).await, "ok");
    assert_eq!(reason(&new).await, "ok");
}
