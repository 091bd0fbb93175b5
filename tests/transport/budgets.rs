//! G2 to G4, G21 and G23 over the wire: what tokens can make an issuer suffer, and what a fetch under way
//! means while everything around it changes.

use std::collections::BTreeSet;

use portcullis::app::App;
use tokio::sync::oneshot;

use crate::answer::{Answer, Gate};
use crate::house::{
    BUSY, House, ISSUER, PATIENCE, PROMPT, configured, counted, eventually, fetches, folder, key, provider,
    token,
};
use crate::key_server::KeyServer;
use crate::process::Process;
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
async fn a_refused_token_that_comes_again_is_refused_again_without_a_fetch_until_the_set_changes() {
    let house = House::start(RARE).await;
    let (later, other) = (key("later"), key("old"));
    // An ES256 signature is made anew each time: this is one token.
    let again = token(&later);
    for _ in 0..50 {
        // The budget is spent by the first, so whoever had to wait for a fetch would be told so.
        let answer = house.service.bearer(&again).await;
        assert_eq!(answer.faults("key_unknown", &[]), Vec::<String>::new());
    }
    house.is(&later, "keys_unavailable").await;
    assert_eq!(house.server.requests().len(), 2);
    // By the other cause's budget another set comes, in which its key is.
    house.server.always(Answer::keys(&[&later, &other]));
    house.is(&other, "ok").await;
    assert_eq!(house.service.bearer(&again).await.faults("ok", &[]), Vec::<String>::new());
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
async fn a_fetch_that_failed_gives_its_budget_back_once() {
    // Told to be left alone, the clock starts no fetch that would serve the token as well.
    let down = || Answer::status(503).header("retry-after", "3600");
    let refresh = RARE.replace("min_spacing: 10m", "min_spacing: 10ms");
    let house = House::start(&refresh).await;
    let rekeyed = key("old");
    house.server.always(down());
    house.is(&rekeyed, "keys_unavailable").await;
    house.server.always(Answer::keys(&[&rekeyed]));
    eventually("it is tried again", async || house.service.bearer(&token(&rekeyed)).await.is_allowed()).await;
    assert_eq!(house.server.requests().len(), 3);

    // After two failures the next turn is far.
    let house = House::start(&refresh).await;
    house.server.always(down());
    eventually("it is tried again, in vain", async || {
        let answer = house.service.bearer(&token(&rekeyed)).await;
        assert!(!answer.is_allowed());
        house.server.requests().len() == 3
    })
    .await;
    house.server.always(Answer::keys(&[&rekeyed]));
    eventually("the second has ended", async || {
        fetches(&house.service, "bad_signature", "failed").await == 2
    })
    .await;
    for _ in 0..20 {
        house.is(&rekeyed, "bad_signature").await;
    }
    assert_eq!(house.server.requests().len(), 3);
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
    let ended = tokio::time::timeout(PATIENCE, serving).await.expect("it ends").expect("no panic");
    assert_eq!(ended, Ok(()));
    // The fetch goes with the service.
    server.wait_for_gone(1).await;
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
    let (code, log) = process.ends().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}
