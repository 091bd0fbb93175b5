//! G2 to G4, G21 and G23 over the wire: the load that tokens can cause at an issuer, and reloads and shutdowns during a
//! fetch.

use std::collections::BTreeSet;

use portcullis::app::{App, ConfigFile, Hangups};
use tokio::sync::oneshot;

use super::answer::{Answer, Gate};
use super::env::{
    FREQUENT_REFRESH, IMMEDIATE_REFRESH, ISSUER, SHORT_TIMEOUT, TEST_TIMEOUT, TestEnv, configured,
    eventually, fetches, folder, key, metric_value, provider, text, token,
};
use super::key_server::KeyServer;
use super::process::Process;
use crate::support::{Ask, fixed_clock};

/// Each cause forces at most one fetch during a test.
const LONG_SPACING: &str =
    "refresh: {interval: 1h, min_spacing: 10m, min_spacing_bad_signature: 10m, wait: 1s, timeout: 10s}";

#[tokio::test]
async fn a_flood_of_forged_signatures_costs_one_fetch_per_spacing_and_is_denied() {
    let env = TestEnv::start(LONG_SPACING).await;
    for _ in 0..100 {
        env.expect_reason(&key("old"), "bad_signature").await;
    }
    assert_eq!(env.server.requests().len(), 2);
    env.expect_reason(&env.key, "ok").await;
    assert_eq!(fetches(&env.service, "bad_signature", "unchanged").await, 1);
}

#[tokio::test]
async fn a_flood_of_unknown_kids_costs_one_fetch_per_spacing_and_unchecked_ones_are_unavailable() {
    let env = TestEnv::start(LONG_SPACING).await;
    env.expect_reason(&key("first"), "key_unknown").await;
    for i in 0..100 {
        env.expect_reason(&key(&format!("made-up-{i}")), "keys_unavailable").await;
    }
    assert_eq!(env.server.requests().len(), 2);
    env.expect_reason(&env.key, "ok").await;
}

#[tokio::test]
async fn a_repeated_denied_token_is_unavailable_until_the_next_fetch() {
    let env = TestEnv::start(LONG_SPACING).await;
    let later = key("later");
    // ES256 signatures are randomized: this test reuses one token.
    let again = token(&later);
    let reason = async || env.service.bearer(&again).await.reason().to_owned();
    assert_eq!(reason().await, "key_unknown");
    // Its key may have been published meanwhile, and the next fetch is due much later.
    for _ in 0..20 {
        assert_eq!(reason().await, "keys_unavailable");
    }
    assert_eq!(env.server.requests().len(), 2);
    // A fetch by the other cause's budget returns a set with its key.
    let other = key("old");
    env.server.respond_with(Answer::keys(&[&later, &other]));
    env.expect_reason(&other, "ok").await;
    assert_eq!(reason().await, "ok");
    assert_eq!(env.server.requests().len(), 3);
}

#[tokio::test]
async fn a_denial_applies_to_one_token_and_no_other_with_the_same_kid() {
    let env = TestEnv::start(LONG_SPACING).await;
    let known = env.key.kid().expect("named").to_owned();
    let forged = key(&known);
    env.expect_reason(&forged, "bad_signature").await;
    env.expect_reason(&forged, "bad_signature").await;
    env.expect_reason(&env.key, "ok").await;
    // The same claims with the same kid and a new signature: another token, whose next fetch is due much later.
    env.expect_reason(&key(&known), "bad_signature").await;
    assert_eq!(env.server.requests().len(), 2);
}

#[tokio::test]
async fn a_failed_fetch_consumes_its_budget_like_a_successful_one() {
    // Retry-After suppresses scheduled fetches, which would also serve the token.
    let down = Answer::status(503).header("retry-after", "3600");
    let env = TestEnv::start(&LONG_SPACING.replace("min_spacing: 10m", "min_spacing: 10ms")).await;
    let rekeyed = key("old");
    env.server.respond_with(down);
    env.expect_reason(&rekeyed, "keys_unavailable").await;
    for _ in 0..20 {
        env.expect_reason(&rekeyed, "bad_signature").await;
    }
    assert_eq!(env.server.requests().len(), 2);
}

#[tokio::test]
async fn an_issuer_that_fails_forced_fetches_only_is_not_asked_beyond_the_budget() {
    // The origin is overloaded, and a cache in front of it answers requests without no-cache.
    const REFRESH: &str =
        "refresh: {interval: 1h, min_spacing: 10ms, min_spacing_bad_signature: 10m, wait: 1m}";
    let env = TestEnv::start(REFRESH).await;
    let cached = Answer::keys(&[&env.key]);
    env.server.on(move |request| match request.header("cache-control") {
        Some(_) => Answer::status(500),
        None => cached.clone(),
    });
    let forged = key("old");
    env.expect_reason(&forged, "keys_unavailable").await;
    for _ in 0..50 {
        env.expect_reason(&forged, "bad_signature").await;
    }
    let forced = env.server.requests().iter().filter(|one| one.header("cache-control").is_some()).count();
    assert_eq!(forced, 1);
    assert_eq!(fetches(&env.service, "bad_signature", "failed").await, 1);
}

#[tokio::test]
async fn a_rekeyed_token_is_served_by_a_fetch_that_an_unknown_kid_forced() {
    const REFRESH: &str =
        "refresh: {interval: 1h, min_spacing: 500ms, min_spacing_bad_signature: 10m, wait: 1m, timeout: 1m}";
    let env = TestEnv::start(REFRESH).await;
    // Both budgets are spent, and the next fetch for unknown kids is due soon.
    env.expect_reason(&key("old"), "bad_signature").await;
    env.expect_reason(&key("made-up"), "key_unknown").await;
    let rekeyed = key("old");
    env.server.respond_with(Answer::keys(&[&rekeyed]));
    let made_up = key("made-up-too");
    let (made_up, rekeyed) = tokio::join!(env.faults(&made_up, "key_unknown"), env.faults(&rekeyed, "ok"));
    assert_eq!((made_up, rekeyed), (Vec::new(), Vec::new()));
    assert_eq!(env.server.requests().len(), 4);
}

#[tokio::test]
async fn a_scheduled_fetch_with_a_waiting_token_sends_no_validator() {
    // The budget of bad signatures is spent, and the next scheduled fetch is due soon.
    const REFRESH: &str = "refresh: {interval: 500ms, min_spacing: 10ms, min_spacing_bad_signature: 10m, wait: 1m, timeout: 1m}";
    let env = TestEnv::start(REFRESH).await;
    let tagged = |key: &_| Answer::keys(&[key]).header("etag", "\"same\"");
    let publish = |key: &_| {
        let full = tagged(key);
        env.server.on(move |request| match request.header("if-none-match") {
            Some(_) => Answer::status(304).header("etag", "\"same\"").without_length(),
            None => full.clone(),
        });
    };
    publish(&env.key);
    env.expect_reason(&key("old"), "bad_signature").await;
    let rekeyed = key("old");
    publish(&rekeyed);
    env.expect_reason(&rekeyed, "ok").await;
    assert_eq!(fetches(&env.service, "bad_signature", "unchanged").await, 1);
}

#[tokio::test]
async fn requests_beyond_max_waiters_are_denied_immediately_and_counted() {
    let refresh = IMMEDIATE_REFRESH.replace('{', "{max_waiters: 2, ");
    let env = TestEnv::start(&refresh).await;
    let (new, gate) = (key("new"), Gate::new());
    env.server.respond_with(Answer::keys(&[&new]).gated_by(&gate));
    let waits = || env.faults(&new, "ok");
    let (first, second, ()) = tokio::join!(waits(), waits(), async {
        let waiting = r#"portcullis_jwks_waiters{provider="demo"}"#;
        eventually("two wait", async || env.metric_value(waiting).await == 2).await;
        for _ in 0..5 {
            env.expect_reason(&new, "keys_unavailable").await;
        }
        let refused = env.service.bearer(&token(&new)).await;
        let page = env.service.admin(&format!("/decisions/{}", refused.metadata["decision_id"])).await;
        assert!(page.contains("providers[0].refresh.max_waiters (line "), "{page}");
        env.expect_reason(&env.key, "ok").await;
        gate.open();
    });
    assert_eq!((first, second), (Vec::new(), Vec::new()));
    let rejected = r#"portcullis_jwks_waiters_rejected_total{provider="demo"}"#;
    assert_eq!(metric_value(&env.service, rejected).await, 6);
    assert_eq!(env.server.requests().len(), 2);
}

#[tokio::test]
async fn requests_beyond_max_waiting_bytes_are_denied_immediately_and_counted() {
    let refresh = IMMEDIATE_REFRESH.replace('{', "{max_waiting_bytes: 1MiB, ");
    let env = TestEnv::start(&refresh).await;
    let (new, gate) = (key("new"), Gate::new());
    env.server.respond_with(Answer::keys(&[&new]).gated_by(&gate));
    let with = |name: &str, bytes: usize| {
        let authorization = format!("Bearer {}", token(&new));
        Ask::default().header("authorization", authorization).header(name, "x".repeat(bytes))
    };
    let waiting = async |bytes: usize| env.service.ask(with("cookie", bytes)).await.faults("ok", &[]);
    let (first, second, ()) = tokio::join!(waiting(500 << 10), waiting(500 << 10), async {
        let waiting = r#"portcullis_jwks_waiters{provider="demo"}"#;
        eventually("two wait", async || env.metric_value(waiting).await == 2).await;
        let long = 30 << 10;
        for ask in [with("cookie", long), with("x-a", 0).path("/".repeat(long)), with(&"n".repeat(long), 0)] {
            let faults = env.service.ask(ask).await.faults("keys_unavailable", &[]);
            assert_eq!(faults, Vec::<String>::new());
        }
        gate.open();
    });
    assert_eq!((first, second), (Vec::new(), Vec::new()));
    let rejected = r#"portcullis_jwks_waiters_rejected_total{provider="demo"}"#;
    assert_eq!(metric_value(&env.service, rejected).await, 3);
}

#[tokio::test]
async fn a_smaller_set_withdraws_keys() {
    // G21: a rollback cannot be distinguished from a withdrawal (RFC 7517 §9.1); removed keys are denied immediately.
    let env = TestEnv::start(IMMEDIATE_REFRESH).await;
    let (b, c) = (key("b"), key("c"));
    env.server.respond_with(Answer::keys(&[&env.key, &b, &c]));
    env.expect_reason(&b, "ok").await;
    env.server.respond_with(Answer::keys(&[&env.key]));
    env.expect_reason(&key("d"), "key_unknown").await;
    env.expect_reason(&b, "key_unknown").await;
    env.expect_reason(&env.key, "ok").await;
}

#[tokio::test]
async fn a_set_is_replaced_atomically_while_tokens_are_verified() {
    let env = TestEnv::start(FREQUENT_REFRESH).await;
    let sets: Vec<Vec<_>> = (0..2).map(|set| (0..8).map(|i| key(&format!("{set}-{i}"))).collect()).collect();
    let answers: Vec<Answer> = sets.iter().map(|set| Answer::keys(&set.iter().collect::<Vec<_>>())).collect();
    let turn = std::sync::atomic::AtomicUsize::new(0);
    env.server.on(move |_| {
        let turn = turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        answers[turn % answers.len()].clone()
    });
    let mut observed = BTreeSet::new();
    let (mut allowed, mut checks) = (0, 0);
    eventually("both sets are observed many times", async || {
        let kids: BTreeSet<String> = env.status().await["keys"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|key| key["kid"].as_str().expect("a name").split('-').next().expect("a set").to_owned())
            .collect();
        assert_eq!(kids.len(), 1, "one set at a time: {kids:?}");
        observed.extend(kids);
        // A token of a key that is added and removed is allowed or has an unknown key.
        let answer = env.service.bearer(&token(&sets[checks % 2][checks % 8])).await;
        assert!(["ok", "key_unknown"].contains(&answer.reason()), "{}", answer.reason());
        allowed += usize::from(answer.is_allowed());
        checks += 1;
        observed.contains("0") && observed.contains("1") && allowed > 20 && env.server.requests().len() > 50
    })
    .await;
}

#[tokio::test]
async fn a_drain_does_not_wait_for_an_issuer() {
    let (server, known, gate) = (KeyServer::start().await, key("known"), Gate::new());
    server.respond_with(Answer::keys(&[&known]).gated_by(&gate));
    let config = configured(&[provider(
        "demo",
        ISSUER,
        &format!("jwks_uri: '{}'", server.http("/keys")),
        IMMEDIATE_REFRESH,
    )]);
    let app = App::bind(config, fixed_clock()).await.expect("bound");
    let (shutdown, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(app.serve(async move {
        let _stopped = stopped.await;
    }));
    server.request(1).await;
    shutdown.send(()).expect("the receiver is alive");
    tokio::time::timeout(TEST_TIMEOUT, serving).await.expect("the service stops").expect("no panic");
    // The fetch is cancelled with the service.
    server.wait_for_disconnects(1).await;
}

#[tokio::test]
async fn a_drain_during_a_reload_cancels_it() {
    let (folder, server, known) = (folder(), KeyServer::start().await, key("known"));
    server.respond_with(Answer::keys(&[&known]));
    // A fetch that is not cancelled lasts longer than the test.
    let refresh = IMMEDIATE_REFRESH.replace("timeout: 10s", "timeout: 1m");
    let at = |path: &str| provider("demo", ISSUER, &format!("jwks_uri: '{}'", server.http(path)), &refresh);
    let file = folder.path().join("portcullis.yaml");
    std::fs::write(&file, text(&[at("/keys")])).expect("written");
    let hangups = Hangups::new().expect("a signal handler");
    let (config, read) = ConfigFile::load(&file, hangups).await.expect("valid");
    let app = App::bind(config, fixed_clock()).await.expect("bound").reloading_from(read);
    let (shutdown, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(app.serve(async move {
        let _stopped = stopped.await;
    }));
    server.request(1).await;
    server.respond_with(Answer::keys(&[&known]).gated_by(&Gate::new()));
    std::fs::write(&file, text(&[at("/others")])).expect("written");
    eventually("the new URL is requested", async || server.requests_for("/others") > 0).await;
    shutdown.send(()).expect("the receiver is alive");
    tokio::time::timeout(TEST_TIMEOUT, serving).await.expect("the service stops").expect("no panic");
    server.wait_for_disconnects(1).await;
}

#[tokio::test]
async fn a_change_during_a_reload_is_applied_after_it() {
    let (folder, server, known) = (folder(), KeyServer::start().await, key("known"));
    let answer = Answer::keys(&[&known]);
    server.on(move |request| match request.target.as_str() {
        "/keys" => answer.clone(),
        _ => answer.clone().gated_by(&Gate::new()),
    });
    let at = |name: &str, path: &str| {
        provider(name, ISSUER, &format!("jwks_uri: '{}'", server.http(path)), SHORT_TIMEOUT)
    };
    let process = Process::serve(folder.path(), &[at("first", "/keys")], &[]).await;
    eventually("the key is known", async || process.bearer(&known).await.is_allowed()).await;
    process.change(&[at("hanging", "/hangs")]);
    process.signal("-HUP");
    eventually("the trial is under way", async || server.requests_for("/hangs") > 0).await;
    // Two signals, and one change notification of the file.
    for name in ["second", "third"] {
        process.change(&[at(name, "/keys")]);
        process.signal("-HUP");
    }
    assert_eq!(process.bearer(&known).await.reason(), "ok");
    eventually("the last configuration is applied", async || {
        process.bearer(&known).await.metadata["provider"] == "third"
    })
    .await;
    let (_, log) = process.terminate().await;
    let line = log.lines().find(|line| line.contains("provider not reloaded")).expect("logged");
    assert!(line.contains("hanging") && line.contains("no answer within 500 ms"), "{line}");
}

#[tokio::test]
async fn a_reload_and_a_shutdown_during_a_fetch_lose_no_request() {
    let (folder, server, known) = (folder(), KeyServer::start().await, key("known"));
    server.respond_with(Answer::keys(&[&known]));
    let at = |more: &str| provider("demo", ISSUER, &format!("jwks_uri: '{}'", server.http("/keys")), more);
    let process = Process::serve(folder.path(), &[at(IMMEDIATE_REFRESH)], &[]).await;
    eventually("the key is known", async || process.bearer(&known).await.is_allowed()).await;

    // The cache is replaced by one with another policy during a fetch.
    let (new, gate) = (key("new"), Gate::new());
    server.respond_with(Answer::keys(&[&new]).gated_by(&gate));
    let before = server.requests().len();
    let waiting = process.bearer(&new);
    let (answer, ()) = tokio::join!(waiting, async {
        server.request(before + 1).await;
        process.change(&[at(&IMMEDIATE_REFRESH.replace("interval: 1h", "interval: 2h"))]);
        process.signal("-HUP");
        // The new cache fetches too and uses the keys of the old one meanwhile.
        server.request(before + 2).await;
        assert_eq!(process.bearer(&known).await.reason(), "ok");
        gate.open();
    });
    // A request that waited at the old cache is answered: allowed or keys_unavailable.
    assert!(["ok", "keys_unavailable"].contains(&answer.reason()), "{}", answer.reason());
    eventually("the new key is known", async || process.bearer(&new).await.is_allowed()).await;

    let gate = Gate::new();
    server.respond_with(Answer::keys(&[&new]).gated_by(&gate));
    let before = server.requests().len();
    let last = key("last");
    let (answer, ()) = tokio::join!(process.bearer(&last), async {
        server.request(before + 1).await;
        process.signal("-TERM");
        // During shutdown it still answers waiting requests.
        gate.open();
    });
    assert_eq!(answer.reason(), "key_unknown");
    let (code, log) = process.wait().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}
