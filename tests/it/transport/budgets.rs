//! G2 to G4, G21 and G23 over the wire: what tokens can make an issuer suffer, and what a fetch under way
//! means while everything around it changes.

use std::collections::BTreeSet;

use portcullis::app::{App, ConfigFile, Hangups};
use tokio::sync::oneshot;

use super::answer::{Answer, Gate};
use super::house::{
    BUSY, House, IMPATIENT, ISSUER, PATIENCE, PROMPT, configured, counted, eventually, fetches, folder, key,
    provider, text, token,
};
use super::key_server::KeyServer;
use super::process::Process;
use crate::support::{Ask, fixed_clock};

/// Each cause may force one fetch, and then none for as long as a test lasts.
const RARE: &str =
    "refresh: {interval: 1h, min_spacing: 10m, min_spacing_bad_signature: 10m, wait: 1s, timeout: 10s}";

#[tokio::test]
async fn a_flood_of_forged_signatures_costs_one_fetch_a_spacing_and_is_refused() {
    let house = House::start(RARE).await;
    for _ in 0..100 {
        house.is(&key("old"), "bad_signature").await;
    }
    assert_eq!(house.server.requests().len(), 2);
    house.is(&house.key, "ok").await;
    assert_eq!(fetches(&house.service, "bad_signature", "unchanged").await, 1);
}

#[tokio::test]
async fn a_flood_of_made_up_kids_costs_one_fetch_a_spacing_and_blames_nobody_who_was_not_checked() {
    let house = House::start(RARE).await;
    house.is(&key("first"), "key_unknown").await;
    for i in 0..100 {
        house.is(&key(&format!("made-up-{i}")), "keys_unavailable").await;
    }
    assert_eq!(house.server.requests().len(), 2);
    house.is(&house.key, "ok").await;
}

#[tokio::test]
async fn a_refused_token_that_comes_again_is_not_blamed_for_what_nobody_has_looked_up_since() {
    let house = House::start(RARE).await;
    let later = key("later");
    // An ES256 signature is made anew each time: this is one token.
    let again = token(&later);
    let reason = async || house.service.bearer(&again).await.reason().to_owned();
    assert_eq!(reason().await, "key_unknown");
    // Its key may have been published a moment ago, and the next look is far away.
    for _ in 0..20 {
        assert_eq!(reason().await, "keys_unavailable");
    }
    assert_eq!(house.server.requests().len(), 2);
    // By the other cause's budget another set comes, in which its key is.
    let other = key("old");
    house.server.always(Answer::keys(&[&later, &other]));
    house.is(&other, "ok").await;
    assert_eq!(reason().await, "ok");
    assert_eq!(house.server.requests().len(), 3);
}

#[tokio::test]
async fn a_refusal_is_of_one_token_and_no_other_with_the_same_kid() {
    let house = House::start(RARE).await;
    let known = house.key.kid().expect("named").to_owned();
    let forged = key(&known);
    house.is(&forged, "bad_signature").await;
    house.is(&forged, "bad_signature").await;
    house.is(&house.key, "ok").await;
    // The same claims with the same kid, signed anew: another token, whose turn is far.
    house.is(&key(&known), "bad_signature").await;
    assert_eq!(house.server.requests().len(), 2);
}

#[tokio::test]
async fn a_fetch_that_failed_costs_its_budget_what_one_that_succeeds_costs() {
    // Told to be left alone, the clock starts no fetch that would serve the token as well.
    let down = Answer::status(503).header("retry-after", "3600");
    let house = House::start(&RARE.replace("min_spacing: 10m", "min_spacing: 10ms")).await;
    let rekeyed = key("old");
    house.server.always(down);
    house.is(&rekeyed, "keys_unavailable").await;
    for _ in 0..20 {
        house.is(&rekeyed, "bad_signature").await;
    }
    assert_eq!(house.server.requests().len(), 2);
}

#[tokio::test]
async fn an_issuer_that_fails_what_tokens_force_and_answers_the_clock_is_not_asked_beyond_the_budget() {
    // The origin is overloaded, and a cache in front of it answers what caches may answer.
    const REFRESH: &str =
        "refresh: {interval: 1h, min_spacing: 10ms, min_spacing_bad_signature: 10m, wait: 10s}";
    let house = House::start(REFRESH).await;
    let cached = Answer::keys(&[&house.key]);
    house.server.on(move |request| match request.header("cache-control") {
        Some(_) => Answer::status(500),
        None => cached.clone(),
    });
    let forged = key("old");
    house.is(&forged, "keys_unavailable").await;
    for _ in 0..50 {
        house.is(&forged, "bad_signature").await;
    }
    let forced = house.server.requests().iter().filter(|one| one.header("cache-control").is_some()).count();
    assert_eq!(forced, 1);
    assert_eq!(fetches(&house.service, "bad_signature", "failed").await, 1);
}

#[tokio::test]
async fn a_rekeyed_token_is_served_by_the_fetch_that_a_made_up_kid_has_asked_for() {
    const REFRESH: &str = "refresh: {interval: 1h, min_spacing: 500ms, min_spacing_bad_signature: 10m, wait: 10s, timeout: 10s}";
    let house = House::start(REFRESH).await;
    // Both budgets are spent, and the next slot of made-up kids is near.
    house.is(&key("old"), "bad_signature").await;
    house.is(&key("made-up"), "key_unknown").await;
    let rekeyed = key("old");
    house.server.always(Answer::keys(&[&rekeyed]));
    let made_up = key("made-up-too");
    let (made_up, rekeyed) =
        tokio::join!(house.faults(&made_up, "key_unknown"), house.faults(&rekeyed, "ok"));
    assert_eq!((made_up, rekeyed), (Vec::new(), Vec::new()));
    assert_eq!(house.server.requests().len(), 4);
}

#[tokio::test]
async fn a_fetch_that_was_due_believes_no_validator_where_a_token_waits_for_it() {
    // The budget of bad signatures is spent, and the clock's next fetch is near.
    const REFRESH: &str = "refresh: {interval: 500ms, min_spacing: 10ms, min_spacing_bad_signature: 10m, wait: 10s, timeout: 10s}";
    let house = House::start(REFRESH).await;
    let tagged = |key: &_| Answer::keys(&[key]).header("etag", "\"same\"");
    let publish = |key: &_| {
        let whole = tagged(key);
        house.server.on(move |request| match request.header("if-none-match") {
            Some(_) => Answer::status(304).header("etag", "\"same\"").without_length(),
            None => whole.clone(),
        });
    };
    publish(&house.key);
    house.is(&key("old"), "bad_signature").await;
    let rekeyed = key("old");
    publish(&rekeyed);
    house.is(&rekeyed, "ok").await;
    assert_eq!(fetches(&house.service, "bad_signature", "unchanged").await, 1);
}

#[tokio::test]
async fn callers_beyond_max_waiters_are_told_at_once_and_counted() {
    let refresh = PROMPT.replace('{', "{max_waiters: 2, ");
    let house = House::start(&refresh).await;
    let (new, gate) = (key("new"), Gate::new());
    house.server.always(Answer::keys(&[&new]).behind(&gate));
    let waits = || house.faults(&new, "ok");
    let (first, second, ()) = tokio::join!(waits(), waits(), async {
        let waiting = r#"portcullis_jwks_waiters{provider="demo"}"#;
        eventually("two wait", async || house.counted(waiting).await == 2).await;
        for _ in 0..5 {
            house.is(&new, "keys_unavailable").await;
        }
        house.is(&house.key, "ok").await;
        gate.open();
    });
    assert_eq!((first, second), (Vec::new(), Vec::new()));
    let rejected = r#"portcullis_jwks_waiters_rejected_total{provider="demo"}"#;
    assert_eq!(counted(&house.service, rejected).await, 5);
    assert_eq!(house.server.requests().len(), 2);
}

#[tokio::test]
async fn callers_that_hold_more_than_max_waiting_bytes_are_told_at_once_and_counted() {
    let refresh = PROMPT.replace('{', "{max_waiting_bytes: 1MiB, ");
    let house = House::start(&refresh).await;
    let (new, gate) = (key("new"), Gate::new());
    house.server.always(Answer::keys(&[&new]).behind(&gate));
    let with = |name: &str, bytes: usize| {
        let authorization = format!("Bearer {}", token(&new));
        Ask::default().header("authorization", authorization).header(name, "x".repeat(bytes))
    };
    let waiting = async |bytes: usize| house.service.ask(with("cookie", bytes)).await.faults("ok", &[]);
    let (first, second, ()) = tokio::join!(waiting(500 << 10), waiting(500 << 10), async {
        let waiting = r#"portcullis_jwks_waiters{provider="demo"}"#;
        eventually("two wait", async || house.counted(waiting).await == 2).await;
        let long = 30 << 10;
        for ask in [with("cookie", long), with("x-a", 0).path("/".repeat(long)), with(&"n".repeat(long), 0)] {
            let faults = house.service.ask(ask).await.faults("keys_unavailable", &[]);
            assert_eq!(faults, Vec::<String>::new());
        }
        gate.open();
    });
    assert_eq!((first, second), (Vec::new(), Vec::new()));
    let rejected = r#"portcullis_jwks_waiters_rejected_total{provider="demo"}"#;
    assert_eq!(counted(&house.service, rejected).await, 3);
}

#[tokio::test]
async fn a_smaller_set_by_a_sound_connection_is_the_issuers_will() {
    // G21: a rollback cannot be told from a withdrawal (RFC 7517 §9.1); what is gone is refused at once.
    let house = House::start(PROMPT).await;
    let (b, c) = (key("b"), key("c"));
    house.server.always(Answer::keys(&[&house.key, &b, &c]));
    house.is(&b, "ok").await;
    house.server.always(Answer::keys(&[&house.key]));
    house.is(&key("d"), "key_unknown").await;
    house.is(&b, "key_unknown").await;
    house.is(&house.key, "ok").await;
}

#[tokio::test]
async fn a_set_is_exchanged_as_a_whole_while_tokens_are_verified_against_it() {
    let house = House::start(BUSY).await;
    let sets: Vec<Vec<_>> = (0..2).map(|set| (0..8).map(|i| key(&format!("{set}-{i}"))).collect()).collect();
    let answers: Vec<Answer> = sets.iter().map(|set| Answer::keys(&set.iter().collect::<Vec<_>>())).collect();
    let turn = std::sync::atomic::AtomicUsize::new(0);
    house.server.on(move |_| {
        let turn = turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        answers[turn % answers.len()].clone()
    });
    let mut seen = BTreeSet::new();
    let (mut allowed, mut asked) = (0, 0);
    eventually("both have been seen many times", async || {
        let kids: BTreeSet<String> = house.status().await["keys"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|key| key["kid"].as_str().expect("a name").split('-').next().expect("a set").to_owned())
            .collect();
        assert_eq!(kids.len(), 1, "one set at a time: {kids:?}");
        seen.extend(kids);
        // Of a key that comes and goes a token is allowed or its key unknown, and nothing else.
        let answer = house.service.bearer(&token(&sets[asked % 2][asked % 8])).await;
        assert!(["ok", "key_unknown"].contains(&answer.reason()), "{}", answer.reason());
        allowed += usize::from(answer.is_allowed());
        asked += 1;
        seen.contains("0") && seen.contains("1") && allowed > 20 && house.server.requests().len() > 50
    })
    .await;
}

#[tokio::test]
async fn a_drain_does_not_wait_for_an_issuer() {
    let (server, known, gate) = (KeyServer::start().await, key("known"), Gate::new());
    server.always(Answer::keys(&[&known]).behind(&gate));
    let config =
        configured(&[provider("demo", ISSUER, &format!("jwks_uri: '{}'", server.http("/keys")), PROMPT)]);
    let app = App::bind(config, fixed_clock()).await.expect("bound");
    let (shutdown, told) = oneshot::channel::<()>();
    let serving = tokio::spawn(app.serve(async move {
        let _told = told.await;
    }));
    server.request(1).await;
    shutdown.send(()).expect("it listens");
    tokio::time::timeout(PATIENCE, serving).await.expect("it ends").expect("no panic");
    // The fetch goes with the service.
    server.wait_for_gone(1).await;
}

#[tokio::test]
async fn a_drain_in_the_middle_of_a_reload_does_not_wait_for_it_and_ends_its_trials() {
    let (folder, server, known) = (folder(), KeyServer::start().await, key("known"));
    server.always(Answer::keys(&[&known]));
    // What is not ended goes on for longer than the test waits.
    let refresh = PROMPT.replace("timeout: 10s", "timeout: 1m");
    let at = |path: &str| provider("demo", ISSUER, &format!("jwks_uri: '{}'", server.http(path)), &refresh);
    let file = folder.path().join("portcullis.yaml");
    std::fs::write(&file, text(&[at("/keys")])).expect("written");
    let hangups = Hangups::new().expect("a signal can be listened for");
    let (config, read) = ConfigFile::load(&file, hangups).await.expect("valid");
    let app = App::bind(config, fixed_clock()).await.expect("bound").reloading_from(read);
    let (shutdown, told) = oneshot::channel::<()>();
    let serving = tokio::spawn(app.serve(async move {
        let _told = told.await;
    }));
    server.request(1).await;
    server.always(Answer::keys(&[&known]).behind(&Gate::new()));
    std::fs::write(&file, text(&[at("/others")])).expect("written");
    eventually("the new place is asked", async || server.asked_for("/others") > 0).await;
    shutdown.send(()).expect("it listens");
    tokio::time::timeout(PATIENCE, serving).await.expect("it ends").expect("no panic");
    server.wait_for_gone(1).await;
}

#[tokio::test]
async fn what_changes_while_a_reload_is_under_way_is_read_once_that_has_ended() {
    let (folder, server, known) = (folder(), KeyServer::start().await, key("known"));
    let answer = Answer::keys(&[&known]);
    server.on(move |request| match request.target.as_str() {
        "/keys" => answer.clone(),
        _ => answer.clone().behind(&Gate::new()),
    });
    let at = |name: &str, path: &str| {
        provider(name, ISSUER, &format!("jwks_uri: '{}'", server.http(path)), IMPATIENT)
    };
    let process = Process::serve(folder.path(), &[at("first", "/keys")], &[]).await;
    eventually("it serves", async || process.bearer(&known).await.is_allowed()).await;
    process.change(&[at("hanging", "/hangs")]);
    process.signal("-HUP");
    eventually("the trial is under way", async || server.asked_for("/hangs") > 0).await;
    // Told twice, and once more by the file itself.
    for name in ["second", "third"] {
        process.change(&[at(name, "/keys")]);
        process.signal("-HUP");
    }
    assert_eq!(process.bearer(&known).await.reason(), "ok");
    eventually("the last one counts", async || process.bearer(&known).await.metadata["provider"] == "third")
        .await;
    let (_, log) = process.ends().await;
    let told = log.lines().find(|line| line.contains("provider not reloaded")).expect("it is told");
    assert!(told.contains("hanging") && told.contains("no answer within 500 ms"), "{told}");
}

#[tokio::test]
async fn a_reload_and_an_end_in_the_middle_of_a_fetch_harm_nobody() {
    let (folder, server, known) = (folder(), KeyServer::start().await, key("known"));
    server.always(Answer::keys(&[&known]));
    let at = |more: &str| provider("demo", ISSUER, &format!("jwks_uri: '{}'", server.http("/keys")), more);
    let process = Process::serve(folder.path(), &[at(PROMPT)], &[]).await;
    eventually("it serves", async || process.bearer(&known).await.is_allowed()).await;

    // A fetch hangs while its cache is replaced by one with another policy.
    let (new, gate) = (key("new"), Gate::new());
    server.always(Answer::keys(&[&new]).behind(&gate));
    let before = server.requests().len();
    let waiting = process.bearer(&new);
    let (answer, ()) = tokio::join!(waiting, async {
        server.request(before + 1).await;
        process.change(&[at(&PROMPT.replace("interval: 1h", "interval: 2h"))]);
        process.signal("-HUP");
        // The new cache fetches for itself, and carries on with the keys of the old one meanwhile.
        server.request(before + 2).await;
        assert_eq!(process.bearer(&known).await.reason(), "ok");
        gate.open();
    });
    // Who waited at the old cache is answered, be it with what it brought or that nobody can say.
    assert!(["ok", "keys_unavailable"].contains(&answer.reason()), "{}", answer.reason());
    eventually("the new key is known", async || process.bearer(&new).await.is_allowed()).await;

    let gate = Gate::new();
    server.always(Answer::keys(&[&new]).behind(&gate));
    let before = server.requests().len();
    let last = key("last");
    let (answer, ()) = tokio::join!(process.bearer(&last), async {
        server.request(before + 1).await;
        process.signal("-TERM");
        // Told to end, it still answers who waits.
        gate.open();
    });
    assert_eq!(answer.reason(), "key_unknown");
    let (code, log) = process.ended().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}
