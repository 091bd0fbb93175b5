//! Scheduled refreshes, and the keys while the issuer is unreachable: with a paused clock and without a network. The wire side
//! is tested in `tests/it/transport.rs`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::support::log;
use crate::support::script::{
    RetryError, SECOND, Script, ask, ask_with, fetching, policy, settle, still_stale, verifier, warm,
    warm_with,
};
use portcullis::clock::{self, Clock, Instant, SteadyClock};
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use portcullis::config::RefreshPolicy;
use portcullis::keys::budget::Accounts;
use portcullis::keys::folder::{FolderError, FolderItem};
use portcullis::keys::origin::Origin;
use portcullis::keys::published::Published;
use portcullis::keys::schedule::{
    AnswerSource, Caller, FetchEnd, FetchMode, RefreshOutcome, Schedule, StartedFetch,
};
use portcullis::keys::snapshot::{ClockReading, Snapshot, SnapshotError, SnapshotFile};
use portcullis::keys::{KeyCache, KeyCacheContext};
use portcullis::telemetry::Trigger;
use portcullis::validation::StaleCause::{self, BadSignature, UnknownKid};
use portcullis::validation::algorithm::Algorithm;
use portcullis::validation::key_set::KeySet;
use portcullis::validation::provider::{Audiences, ClaimPath, Provider, SelectedBy, TokenTypes};
use portcullis::validation::{self, TokenLimits, UnixTime};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{advance, sleep};

const MINUTE: Duration = Duration::from_secs(60);

const SUCCEEDED: FetchEnd = FetchEnd::Succeeded { fresh_for: None, source: AnswerSource::Issuer };

fn started_fetch(number: u64, trigger: Trigger, mode: FetchMode) -> StartedFetch {
    StartedFetch { number, trigger, mode }
}

/// A schedule after its first fetch with this result.
fn after(accounts: &mut Accounts, ending: FetchEnd, jitter: f64, now: Instant) -> Schedule {
    let mut schedule = Schedule::new(RefreshPolicy::default(), accounts.join(), now);
    assert_eq!(
        schedule.start(accounts, now),
        Some(started_fetch(1, Trigger::Startup, FetchMode::Conditional))
    );
    schedule.finish(accounts, 1, ending, jitter, now);
    schedule
}

fn caller(schedule: &Schedule, cause: StaleCause, deadline: Instant) -> Caller {
    Caller { arrival: schedule.started(), cause, deadline }
}

#[test]
fn the_issuers_freshness_applies_between_the_spacing_and_the_interval() {
    let now = clock::monotonic();
    for (fresh_for, earliest, latest) in [
        (None, 270 * SECOND, 300 * SECOND),
        (Some(100 * SECOND), 90 * SECOND, 100 * SECOND),
        (Some(Duration::ZERO), SECOND, SECOND),
        (Some(Duration::from_millis(1050)), SECOND, Duration::from_millis(1050)),
        (Some(10 * 365 * 24 * 60 * MINUTE), 270 * SECOND, 300 * SECOND),
        (Some(Duration::MAX), 270 * SECOND, 300 * SECOND),
    ] {
        let next = |jitter| {
            let ending = FetchEnd::Succeeded { fresh_for, source: AnswerSource::Issuer };
            after(&mut Accounts::default(), ending, jitter, now).next_scheduled() - now
        };
        assert_eq!((next(1.0), next(0.0)), (earliest, latest), "{fresh_for:?}");
    }
}

#[test]
fn a_retry_after_is_respected_up_to_the_interval() {
    let now = clock::monotonic();
    for (retry_after, latest) in [
        (None, SECOND),
        (Some(Duration::ZERO), SECOND),
        (Some(2 * MINUTE), 2 * MINUTE),
        (Some(Duration::MAX), 5 * MINUTE),
    ] {
        let mut accounts = Accounts::default();
        let mut schedule = after(&mut accounts, FetchEnd::Failed { retry_after }, 0.0, now);
        assert_eq!(schedule.next_scheduled() - now, latest, "{retry_after:?}");
        let later = now + SECOND;
        let caller = caller(&schedule, UnknownKid, later);
        let outcome = schedule.join_or_demand(&mut accounts, caller, later);
        assert_eq!(outcome, RefreshOutcome::Demanded, "a token that needs a fetch still causes one");
    }
}

#[test]
fn a_failed_fetch_uses_as_much_budget_as_a_successful_one() {
    // After a Retry-After there is no scheduled retry, which would serve the caller as well.
    let failed = FetchEnd::Failed { retry_after: Some(2 * MINUTE) };
    let mut now = clock::monotonic();
    let mut accounts = Accounts::default();
    let mut schedule = after(&mut accounts, SUCCEEDED, 0.0, now);
    for (number, ending) in [(2, failed), (3, SUCCEEDED), (4, failed), (5, SUCCEEDED)] {
        let join_or_demand = |schedule: &mut Schedule, accounts: &mut Accounts, wait| {
            let caller = caller(schedule, BadSignature, now + wait);
            schedule.join_or_demand(accounts, caller, now)
        };
        assert_eq!(join_or_demand(&mut schedule, &mut accounts, Duration::ZERO), RefreshOutcome::Demanded);
        assert_eq!(
            schedule.start(&mut accounts, now),
            Some(started_fetch(number, Trigger::Forced(BadSignature), FetchMode::Forced))
        );
        schedule.finish(&mut accounts, number, ending, 0.0, now);
        let almost = 10 * SECOND - Duration::from_millis(1);
        assert_eq!(
            join_or_demand(&mut schedule, &mut accounts, almost),
            RefreshOutcome::TooLate,
            "{ending:?}"
        );
        assert_eq!(
            join_or_demand(&mut schedule, &mut accounts, 10 * SECOND),
            RefreshOutcome::Demanded,
            "{ending:?}"
        );
        now += 10 * SECOND;
    }
}

#[test]
fn a_fetch_demanded_by_the_other_cause_is_available_to_all_callers_that_it_serves() {
    let mut now = clock::monotonic();
    let mut accounts = Accounts::default();
    let mut schedule = after(&mut accounts, SUCCEEDED, 0.0, now);
    for cause in [BadSignature, UnknownKid] {
        let caller = caller(&schedule, cause, now + SECOND);
        assert_eq!(schedule.join_or_demand(&mut accounts, caller, now), RefreshOutcome::Demanded);
        let StartedFetch { number, .. } = schedule.start(&mut accounts, now).expect("is due");
        schedule.finish(&mut accounts, number, SUCCEEDED, 0.0, now);
    }
    now += SECOND / 10;
    let unknown = caller(&schedule, UnknownKid, now + 2 * SECOND);
    assert_eq!(schedule.join_or_demand(&mut accounts, unknown, now), RefreshOutcome::Demanded, "in 0.9 s");
    let rekeyed = caller(&schedule, BadSignature, now + 2 * SECOND);
    assert_eq!(
        schedule.join_or_demand(&mut accounts, rekeyed, now),
        RefreshOutcome::Demanded,
        "its own turn is in 9.9 s"
    );
}

#[test]
fn a_concurrent_fetch_starts_if_a_caller_can_wait_only_for_one() {
    let duration = Duration::from_millis(2400);
    let policy = RefreshPolicy { wait: 5 * SECOND, timeout: 5 * SECOND, ..RefreshPolicy::default() };
    let mut now = clock::monotonic();
    let mut accounts = Accounts::default();
    let mut schedule = Schedule::new(policy, accounts.join(), now);
    let start = schedule.start(&mut accounts, now).expect("the first is due");
    schedule.finish(&mut accounts, start.number, SUCCEEDED, 0.0, now + duration);
    now += MINUTE;
    let made_up = caller(&schedule, UnknownKid, now + 5 * SECOND);
    assert_eq!(schedule.join_or_demand(&mut accounts, made_up, now), RefreshOutcome::Demanded);
    assert!(schedule.start(&mut accounts, now).is_some());
    let first_start = now;
    now += SECOND / 10;
    let long_caller = caller(&schedule, UnknownKid, now + 60 * SECOND);
    assert_eq!(schedule.join_or_demand(&mut accounts, long_caller, now), RefreshOutcome::Demanded);
    let start = schedule.next_start(&accounts, now).expect("when it has to be");
    assert!(start > first_start + duration, "both fit one after the other: {:?}", start - first_start);
    let good = caller(&schedule, UnknownKid, now + Duration::from_millis(4200));
    assert_eq!(schedule.join_or_demand(&mut accounts, good, now), RefreshOutcome::Demanded);
    let start = schedule.next_start(&accounts, now).expect("in time");
    assert!(start >= first_start + SECOND, "within the spacing");
    assert!(start + duration < good.deadline, "so that it ends in time");
    assert_eq!(
        schedule.start(&mut accounts, start),
        Some(started_fetch(3, Trigger::Forced(UnknownKid), FetchMode::Forced))
    );
    assert_eq!(schedule.join_or_demand(&mut accounts, good, start), RefreshOutcome::InProgress);
    schedule.finish(&mut accounts, 3, SUCCEEDED, 0.0, start + duration / 2);
    assert_eq!(
        schedule.join_or_demand(&mut accounts, good, start),
        RefreshOutcome::Fresh,
        "it counts, whatever the other does"
    );
}

#[tokio::test(start_paused = true)]
async fn a_near_scheduled_fetch_serves_a_bad_signature_whose_forced_fetch_is_far_away() {
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, policy()).await;
    script.set_fresh_for(SECOND * 3 / 2);
    let forged = verifier("a", Some("forged".to_owned()));
    assert_eq!(ask_with(&cache, 2 * SECOND, forged).await, Err(still_stale(BadSignature)));
    script.publish(&["a"]);
    let new = verifier("a", Some(script.thumbprint("a")));
    assert_eq!(ask_with(&cache, 2 * SECOND, new).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_set_that_the_issuer_calls_fresh_for_a_minute_is_fetched_each_minute() {
    let script = Script::publishing(&["a"]);
    script.set_fresh_for(MINUTE);
    let cache = warm(&script, policy()).await;
    let initial = script.fetches();
    sleep(10 * MINUTE).await;
    let fetches = script.fetches() - initial;
    assert!((10..=12).contains(&fetches), "{fetches}");
    assert!(cache.status().age.is_some_and(|age| age <= MINUTE));
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_is_down_with_a_retry_after_gets_no_scheduled_fetches() {
    let script = Script::publishing(&["a"]);
    script.set_retry_after(10 * MINUTE);
    script.set_down(true);
    let context = KeyCacheContext::default();
    let cache = fetching(&script, policy(), context);
    sleep(9 * MINUTE).await;
    assert_eq!(script.fetches(), 1);
    sleep(2 * MINUTE).await;
    assert_eq!(script.fetches(), 2);
    drop(cache);
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_is_down_at_the_start_is_found_within_ten_seconds_of_its_recovery_without_requests() {
    for outage in [45 * SECOND, 10 * MINUTE, 3 * 60 * MINUTE] {
        let script = Script::publishing(&["a"]);
        script.set_down(true);
        let cache = fetching(&script, policy(), KeyCacheContext::default());
        sleep(outage).await;
        assert!(!cache.has_keys());
        script.set_down(false);
        sleep(10 * SECOND).await;
        assert!(cache.has_keys(), "after {outage:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_waits_for_the_next_fetch_when_it_is_sent_again() {
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, policy()).await;
    assert_eq!(ask(&cache, "b").await, Err(still_stale(UnknownKid)));
    // Published half a second late.
    advance(SECOND / 2).await;
    script.publish(&["a", "b"]);
    assert_eq!(ask(&cache, "b").await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn callers_beyond_max_waiters_are_counted() {
    let script = Script::publishing(&["a"]);
    let context = KeyCacheContext::default();
    let few = RefreshPolicy { max_waiters: 1, ..policy() };
    let cache = warm_with(&script, few, context.clone()).await;
    let gate = script.hold();
    let pending = tokio::spawn({
        let cache = Arc::clone(&cache);
        async move { ask(&cache, "b").await }
    });
    settle().await;
    assert_eq!(ask(&cache, "b").await, Err(RetryError::Unavailable));
    cache.publish_gauges();
    let metrics = context.metrics.encode().expect("metrics can be written");
    for line in [
        r#"portcullis_jwks_waiters_rejected_total{provider="p"} 1"#,
        r#"portcullis_jwks_waiters{provider="p"} 1"#,
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    gate.add_permits(1);
    assert_eq!(pending.await.expect("does not panic"), Err(still_stale(UnknownKid)));
}

/// Whether a token that this key signed verifies with these keys.
fn verified(keys: &KeySet, key: &SigningKey, issuer: &str) -> bool {
    let rules = Provider {
        name: "p".into(),
        issuer: issuer.into(),
        audiences: Audiences::Any,
        algorithms: Algorithm::default_set(),
        clock_skew: Duration::ZERO,
        audience_claims: vec![ClaimPath::aud()],
        max_lifetime: None,
        keys_name_issuers: false,
        selected_by: SelectedBy::Issuer,
        token_types: TokenTypes::Default,
        required_claims: Vec::new(),
        token_from: Vec::new(),
        forward_token: true,
        claim_headers: Vec::new(),
        payload_header: None,
        metadata_claims: Vec::new(),
        realm: None,
    };
    let text = key.sign(&json!({"iss": issuer, "exp": 2_000}));
    let now = UnixTime::from_secs(1_000);
    let token = validation::parse(&text, &TokenLimits::default()).expect("a token");
    let screened = validation::screen(token, &rules, now).expect("passes the screen");
    validation::try_validate(&screened, keys, now).is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_key_is_logged_once_and_only_if_it_was_in_use() {
    log::capture();
    let script = Script::publishing(&["used", "unused", "staying"]);
    let cache = warm(&script, policy()).await;
    for kid in ["used", "staying"] {
        assert!(verified(&cache.status().keys, &script.key(kid), "i"), "{kid}");
    }
    script.withdraw("unused");
    // That it was used is remembered across the refresh in between.
    assert_eq!(ask(&cache, "b").await, Err(still_stale(UnknownKid)));
    assert_eq!(log::warnings("signing key withdrawn"), 0);
    script.withdraw("used");
    for _ in 0..3 {
        advance(SECOND).await;
        assert_eq!(ask(&cache, "b").await, Err(still_stale(UnknownKid)));
    }
    assert_eq!(log::warnings("signing key withdrawn"), 1);
    assert_eq!(log::warnings("\"kid\":\"used\""), 1);
}

#[tokio::test(start_paused = true)]
async fn a_set_without_usable_keys_is_logged_once_and_the_last_good_one_stays_in_use() {
    log::capture();
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, policy()).await;
    let keys = script.take_all();
    for _ in 0..3 {
        assert_eq!(ask(&cache, "b").await, Err(RetryError::Unavailable));
        advance(SECOND).await;
    }
    assert_eq!(log::warnings("no usable key published"), 1);
    assert_eq!(ask(&cache, "a").await, Ok(()));
    script.put_back(keys);
    sleep(20 * MINUTE).await;
    script.take_all();
    assert_eq!(ask(&cache, "b").await, Err(RetryError::Unavailable));
    assert_eq!(log::warnings("no usable key published"), 2, "another time is logged again");
}

#[tokio::test(start_paused = true)]
async fn a_set_past_half_of_max_stale_is_logged_once() {
    log::capture();
    let script = Script::publishing(&["a"]);
    let cache = warm(&script, RefreshPolicy::default()).await;
    script.set_down(true);
    sleep(11 * 60 * MINUTE).await;
    assert_eq!(log::warnings("key set past half of max_stale"), 0);
    sleep(6 * 60 * MINUTE).await;
    assert_eq!(log::warnings("key set past half of max_stale"), 1);
    assert_eq!(
        log::lines("key set refresh failed").len(),
        1,
        "the same failure is logged once, at any level"
    );
    assert_eq!(log::lines("key set refresh still fails").len(), 16, "and counted each hour");
    assert_eq!(ask(&cache, "a").await, Ok(()));
    sleep(8 * 60 * MINUTE).await;
    assert_eq!(ask(&cache, "a").await, Err(RetryError::Unavailable), "past max_stale the keys are not used");
    script.set_down(false);
    sleep(MINUTE * 6).await;
    assert_eq!(ask(&cache, "a").await, Ok(()));
    assert_eq!(log::lines("key set refresh works again").len(), 1);
    script.set_down(true);
    sleep(13 * 60 * MINUTE).await;
    assert_eq!(log::warnings("key set past half of max_stale"), 2, "another outage is logged again");
}

const ISSUER: &str = "https://sso.example.com";
const SOURCE: &str = "https://sso.example.com/keys";
const NOW: i64 = 1_800_000_000;

fn now() -> UnixTime {
    UnixTime::from_secs(NOW)
}

fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build folder can be written to")
}

fn snapshot_in(folder: &Path) -> SnapshotFile {
    SnapshotFile::new(folder, "p", ISSUER, SOURCE, 1 << 20)
}

/// A cache that loads and stores its snapshot in this folder.
fn cache_with_snapshot(script: &Script, folder: &Path) -> KeyCache {
    let context = KeyCacheContext { clock: Clock::Fixed(now()), ..KeyCacheContext::default() };
    {
        let (fetch, file) = (Arc::new(script.clone()), Some(snapshot_in(folder)));
        KeyCache::fetched("p", policy(), fetch, context, None, file, Arc::default())
    }
}

fn micros(at: UnixTime) -> i64 {
    (at.as_secs_f64() * 1e6) as i64
}

fn reading(at: UnixTime) -> ClockReading {
    let clock = Clock::Fixed(at);
    ClockReading::of(&clock, &SteadyClock::start(&clock))
}

/// Stores these keys, confirmed at this time.
async fn store(file: &SnapshotFile, keys: KeySet, at: UnixTime) {
    let published = Published::restored(Arc::new(keys), Origin::at(micros(at), micros(at)), Vec::new());
    file.store(published, at, reading(at)).await.expect("can be written");
}

/// The snapshot in the file, or the reason why it is not used.
async fn read_snapshot(file: &SnapshotFile) -> Result<Option<Snapshot>, SnapshotError> {
    let snapshot = file.read(reading(now()), MINUTE).await?;
    match snapshot.as_ref().and_then(|snapshot| snapshot.unusable.clone()) {
        Some(unusable) => Err(unusable),
        None => Ok(snapshot),
    }
}

/// Waits until the snapshot in this folder has exactly these kids.
async fn wait_for_snapshot(folder: &Path, kids: &[&str]) {
    for _ in 0..10_000 {
        let snapshot = read_snapshot(&snapshot_in(folder)).await.expect("a whole snapshot, at any time");
        let stored = snapshot.map(|snapshot| {
            snapshot
                .published
                .keys()
                .keys()
                .iter()
                .filter_map(|key| key.kid().map(|kid| kid.as_str().to_owned()))
                .collect::<Vec<_>>()
        });
        if stored.is_some_and(|stored| stored == kids) {
            return;
        }
        sleep(Duration::from_millis(1)).await;
    }
    panic!("no snapshot of {kids:?}");
}

#[tokio::test(start_paused = true)]
async fn a_restart_during_an_outage_uses_the_keys_of_the_snapshot() {
    let folder = folder();
    let below = folder.path().join("made/when/missing");
    let script = Script::publishing(&["a"]);
    let cache = cache_with_snapshot(&script, &below);
    wait_for_snapshot(&below, &["a"]).await;
    script.publish(&["a", "b"]);
    assert_eq!(ask(&cache, "b").await, Ok(()));
    wait_for_snapshot(&below, &["a", "b"]).await;
    drop(cache);

    script.set_down(true);
    let cache = cache_with_snapshot(&script, &below);
    assert!(!cache.has_keys(), "the issuer is tried first");
    assert_eq!(ask(&cache, "b").await, Ok(()));
    assert!(cache.has_keys());
    assert_eq!(ask(&cache, "c").await, Err(RetryError::Unavailable), "keys unavailable");
    let status = cache.status();
    assert_eq!((status.generation, status.fetched_at), (1, Some(now())));

    script.set_down(false);
    sleep(MINUTE).await;
    assert_eq!(cache.status().generation, 1, "the same keys, confirmed");
    assert_eq!(ask(&cache, "c").await, Err(still_stale(UnknownKid)));
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_ages_while_no_process_runs() {
    let folder = folder();
    let keys = Script::publishing(&["a"]).key_set();
    let written = UnixTime::from_secs(NOW - 7_000);
    store(&snapshot_in(folder.path()), keys, written).await;
    let script = Script::publishing(&["a"]);
    script.set_down(true);
    let cache = cache_with_snapshot(&script, folder.path());
    assert_eq!(ask(&cache, "a").await, Ok(()));
    assert_eq!(cache.status().age, Some(7_000 * SECOND));
    sleep(201 * SECOND).await;
    assert_eq!(ask(&cache, "a").await, Err(RetryError::Unavailable), "max_stale is 7200 s");
}

#[tokio::test]
async fn a_snapshot_is_readable_only_by_its_owner_and_has_no_private_key() {
    let folder = folder();
    let signing = SigningKey::generate("a", SigningAlgorithm::ES256);
    let mut odd = SigningKey::generate("b", SigningAlgorithm::RS256).public_jwk();
    odd["d"] = json!("cHJpdmF0ZQ");
    let mut with_x5c = signing.public_jwk();
    with_x5c["x5c"] = json!(["certificate"]);
    let document = json!({"keys": [with_x5c, odd]}).to_string();
    let keys = KeySet::parse(document.as_bytes()).expect("one key is usable");
    let file = snapshot_in(folder.path());
    store(&file, keys.clone(), now()).await;
    let mode = fs::metadata(file.path()).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = fs::read_to_string(file.path()).expect("is text");
    let written: Value = serde_json::from_str(&text).expect("is JSON");
    assert_eq!(written["content"]["keys"], json!([signing.public_jwk()]));
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "no partial file remains");
    let read = read_snapshot(&file).await.expect("is whole").expect("is there");
    assert!(read.published.keys().same_keys(&keys));
}

/// A change of a snapshot, and the expected result.
type Change = (&'static str, fn(&SnapshotFile), Result<(), SnapshotError>);

fn change(file: &SnapshotFile, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(file.path()).expect("is text");
    fs::write(file.path(), change(text)).expect("can be written");
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("is ours");
}

#[tokio::test]
async fn a_snapshot_that_is_damaged_foreign_or_open_to_others_is_refused_with_the_reason() {
    use SnapshotError::*;

    let open = |item, mode| Err(Folder(FolderError::OthersMayWrite { item, mode }));
    let no_file = || Err(Folder(FolderError::NotAFile));
    let changes: [Change; 14] = [
        ("empty", |file| change(file, |_| String::new()), Err(Damaged)),
        ("truncated", |file| change(file, |text| text[..text.len() / 2].to_owned()), Err(Damaged)),
        (
            "one key exchanged",
            |file| change(file, |text| text.replace("\"kid\":\"a\"", "\"kid\":\"b\"")),
            Err(Damaged),
        ),
        ("not text", |file| fs::write(file.path(), [0xff; 100]).expect("can be written"), Err(Damaged)),
        (
            "huge",
            |file| change(file, |text| text + &" ".repeat(3 << 20)),
            Err(Folder(FolderError::TooLarge(3 << 20))),
        ),
        ("a bare key set", |file| change(file, |_| Script::publishing(&["a"]).jwks()), Err(Damaged)),
        ("writable for all", |file| set_mode(&file.path(), 0o606), open(FolderItem::File, 0o100_606)),
        ("writable for its group", |file| set_mode(&file.path(), 0o620), open(FolderItem::File, 0o100_620)),
        (
            "in a folder that is writable for all",
            |file| set_mode(file.path().parent().expect("a folder"), 0o777),
            open(FolderItem::Folder, 0o040_777),
        ),
        (
            "in a folder that is writable for its group",
            |file| set_mode(file.path().parent().expect("a folder"), 0o770),
            open(FolderItem::Folder, 0o040_770),
        ),
        (
            "a link",
            |file| {
                let target = file.path().with_extension("elsewhere");
                fs::rename(file.path(), &target).expect("can be moved");
                symlink(target, file.path()).expect("can be made");
            },
            no_file(),
        ),
        (
            "a folder",
            |file| {
                fs::remove_file(file.path()).expect("is ours");
                fs::create_dir(file.path()).expect("can be made");
            },
            no_file(),
        ),
        (
            "a socket",
            |file| {
                fs::remove_file(file.path()).expect("is ours");
                drop(std::os::unix::net::UnixListener::bind(file.path()).expect("can be bound"));
            },
            no_file(),
        ),
        ("in a folder like /tmp", |file| set_mode(file.path().parent().expect("a folder"), 0o1777), Ok(())),
    ];
    for (what, change, expected) in changes {
        let folder = folder();
        let file = snapshot_in(folder.path());
        store(&file, Script::publishing(&["a"]).key_set(), now()).await;
        assert!(read_snapshot(&file).await.expect("is whole").is_some());
        change(&file);
        assert_eq!(read_snapshot(&file).await.map(|_| ()), expected, "{what}");
    }
    for (issuer, source, at, expected) in [
        ("https://evil.example.com", SOURCE, NOW, OtherIssuer),
        (ISSUER, "https://evil.example.com/keys", NOW, OtherSource),
        (ISSUER, SOURCE, NOW - 61, TooOld),
        (ISSUER, SOURCE, NOW + 301, FromTheFuture),
    ] {
        let folder = folder();
        let foreign = SnapshotFile::new(folder.path(), "p", issuer, source, 1 << 20);
        store(&foreign, Script::publishing(&["a"]).key_set(), UnixTime::from_secs(at)).await;
        assert_eq!(read_snapshot(&snapshot_in(folder.path())).await.map(|_| ()), Err(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn an_unusable_snapshot_is_logged_and_replaced_by_the_next_fetch() {
    log::capture();
    let folder = folder();
    fs::write(folder.path().join("p.json"), "{").expect("can be written");
    let script = Script::publishing(&["a"]);
    let cache = cache_with_snapshot(&script, folder.path());
    assert_eq!(ask(&cache, "a").await, Ok(()));
    assert_eq!(log::warnings("it is damaged"), 1);
    for _ in 0..10_000 {
        if read_snapshot(&snapshot_in(folder.path())).await.is_ok() {
            return;
        }
        sleep(Duration::from_millis(1)).await;
    }
    panic!("the damaged snapshot is still there");
}

/// A response with a key of the old source, whose `Date` differs from the start by so many seconds.
async fn respond_with_old_key(script: &Script, old_source: &Script, date: i64, cache: &KeyCache) {
    script.put_back(vec![script.key("b"), old_source.key("a")]);
    script.set_age_and_date(None, Some(NOW + date));
    assert!(ask(cache, "made-up").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_key_from_a_snapshot_that_the_first_response_lacks_returns_only_with_a_newer_response() {
    for (source, at) in [("https://sso.example.com/elsewhere", NOW - 1), (SOURCE, NOW - 100_000)] {
        let (folder, old_source, script) = (folder(), Script::publishing(&["a"]), Script::publishing(&["b"]));
        let file = SnapshotFile::new(folder.path(), "p", ISSUER, source, 1 << 20);
        store(&file, old_source.key_set(), UnixTime::from_secs(at)).await;
        script.set_age_and_date(None, Some(NOW));
        let cache = cache_with_snapshot(&script, folder.path());
        assert_eq!(ask(&cache, "b").await, Ok(()));
        respond_with_old_key(&script, &old_source, -600, &cache).await;
        assert!(ask(&cache, "a").await.is_err(), "with an older response");
        sleep(10 * SECOND).await;
        respond_with_old_key(&script, &old_source, 8, &cache).await;
        assert_eq!(ask(&cache, "a").await, Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_of_the_old_source_that_the_new_one_lacks_returns_only_with_a_newer_response() {
    let (old_source, script) = (Script::publishing(&["a"]), Script::publishing(&["b"]));
    let context = || KeyCacheContext { clock: Clock::Fixed(now()), ..KeyCacheContext::default() };
    let old = warm_with(&old_source, policy(), context()).await;
    script.set_age_and_date(None, Some(NOW));
    let cache = fetching(&script, policy(), context());
    cache.learn_from(&old);
    assert_eq!(ask(&cache, "b").await, Ok(()));
    respond_with_old_key(&script, &old_source, -600, &cache).await;
    assert!(ask(&cache, "a").await.is_err(), "with an older response");
}

#[tokio::test(start_paused = true)]
async fn an_unwritable_snapshot_is_logged_once_and_the_keys_stay_in_use() {
    log::capture();
    let folder = folder();
    let blocked = folder.path().join("file");
    fs::write(&blocked, "no folder").expect("can be written");
    let script = Script::publishing(&["a"]);
    let cache = cache_with_snapshot(&script, &blocked);
    for kid in ["b", "c", "d"] {
        script.publish(&[kid]);
        assert_eq!(ask(&cache, kid).await, Ok(()));
        advance(SECOND).await;
        settle().await;
    }
    sleep(SECOND).await;
    assert_eq!(log::warnings("key snapshot not written"), 1);
}
