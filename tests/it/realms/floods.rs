//! Tokens that nobody signed, of names that somebody made up and of names that are real: what they cost the tenants.

use std::sync::Arc;
use std::time::Duration;

use portcullis::clock;
use tokio::time::sleep;

use super::world::{
    SECOND, World, configuration, decide, files, flood, folder, serve, served_before, tenants, unsigned,
    until,
};

/// Made-up names a second in the attack that this is about.
const RATE: u32 = 344;

#[tokio::test(start_paused = true)]
async fn after_a_restart_made_up_names_cost_the_tenants_of_before_nothing() {
    let names = tenants(12);
    for without in ["no file", "@tenant", "@@realms"] {
        let folder = served_before(&names).await;
        for file in files(folder.path(), without) {
            std::fs::remove_file(folder.path().join(file)).expect("is ours");
        }
        let world = World::keeping(&names, Some(folder.path().to_owned()));
        let authorizer = world.authorizer("realms: '[a-z0-9]+'");
        let attack = tokio::spawn(flood(Arc::clone(&authorizer), RATE, 20 * SECOND));
        sleep(3 * SECOND).await;
        assert_eq!(serve(&world, &authorizer, &names, 8, 2 * SECOND).await, [], "without {without}");
        attack.await.expect("is sent");
        let made_up = world.asked_in_all() - names.len();
        assert!(made_up <= 16 + 24, "{made_up} for a burst of 16 and one a second");
    }
}

#[tokio::test(start_paused = true)]
async fn an_issuer_with_keys_for_any_name_pushes_no_tenant_out_and_leaves_no_files_behind() {
    let (names, folder) = (tenants(32), folder());
    let world = World::keeping(&names, Some(folder.path().to_owned()));
    let authorizer = world.authorizer("realms: '[a-z0-9]+'\nmax_realms: 32\nrefresh: {min_spacing: 50ms}");
    assert_eq!(serve(&world, &authorizer, &names, 1, SECOND).await, []);
    world.knows_anybody();
    let attack = tokio::spawn(flood(Arc::clone(&authorizer), RATE, 10 * SECOND));
    assert_eq!(serve(&world, &authorizer, &names, 15, SECOND).await, []);
    attack.await.expect("is sent");
    for name in &names {
        assert_eq!(world.asked(name), 1, "{name} was never pushed out");
    }
    assert!(world.asked_in_all() > 200, "the flood had its slots");
    assert!(authorizer.providers().len() <= 32 + 32 + 16, "{}", authorizer.providers().len());
    until("snapshots of names on trial alone", || files(folder.path(), "@made").len() <= 32).await;
    assert_eq!(files(folder.path(), "@tenant").len(), 32);
}

#[tokio::test(start_paused = true)]
async fn a_new_tenant_with_steady_traffic_gets_in_under_a_flood_after_one_wait_and_one_spacing() {
    let world = World::of(&tenants(1));
    let authorizer = world.authorizer("realms: '[a-z0-9]+'\nrefresh: {min_spacing: 1s, wait: 2s}");
    let attack = tokio::spawn(flood(Arc::clone(&authorizer), RATE, 30 * SECOND));
    sleep(10 * SECOND).await;
    let came = clock::monotonic();
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let (authorizer, token) = (Arc::clone(&authorizer), world.token("tenant0"));
        waiting.push(tokio::spawn(async move {
            let reason = decide(&authorizer, &token).await;
            (reason == "ok").then(|| clock::elapsed_since(came))
        }));
        sleep(SECOND / 2).await;
    }
    let mut allowed = Vec::new();
    for one in waiting {
        allowed.push(one.await.expect("is decided"));
    }
    let first = allowed.iter().flatten().min().expect("it got in");
    assert!(*first <= 3 * SECOND + SECOND / 10, "{first:?} for a wait of 2 s, a spacing of 1 s and a fetch");
    let after = allowed.iter().skip(7);
    assert!(after.clone().all(Option::is_some), "from then on nothing holds it back: {allowed:?}");
    attack.await.expect("is sent");
}

#[tokio::test(start_paused = true)]
async fn tokens_that_nobody_signed_for_tenants_of_before_cost_those_nothing() {
    let (real, retired) = (tenants(8), (0..24).map(|i| format!("tenantx{i}")).collect::<Vec<_>>());
    let folder = served_before(&[&real[..], &retired[..]].concat()).await;
    // Eight fit into memory, and these are known from a list of 32; 24 of them are gone from the issuer.
    let world = World::keeping(&real, Some(folder.path().to_owned()));
    let authorizer = world.authorizer("realms: '[a-z0-9]+'\nmax_realms: 8");
    for round in 0..40 {
        for name in retired.iter().chain(&real) {
            let (authorizer, token) = (Arc::clone(&authorizer), unsigned(name));
            tokio::spawn(async move { decide(&authorizer, &token).await });
        }
        sleep(SECOND / 4).await;
        if round % 4 == 3 {
            assert_eq!(serve(&world, &authorizer, &real, 1, SECOND / 4).await, []);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_is_pushed_out_before_its_token_was_verified_comes_back_with_it() {
    let names = tenants(40);
    let folder = served_before(&names).await;
    let world = World::keeping(&names, Some(folder.path().to_owned()));
    let authorizer = world.authorizer("realms: '[a-z0-9]+'\nmax_realms: 10");
    let (real, others) = names.split_first().expect("forty");
    // Without a snapshot it waits for its issuer, while all the others are opened.
    std::fs::remove_file(folder.path().join(format!("keycloak@{real}.json"))).expect("is there");
    let first = {
        let (authorizer, token) = (Arc::clone(&authorizer), world.token(real));
        tokio::spawn(async move { decide(&authorizer, &token).await })
    };
    sleep(SECOND / 100).await;
    for name in others {
        let (authorizer, token) = (Arc::clone(&authorizer), unsigned(name));
        tokio::spawn(async move { decide(&authorizer, &token).await });
    }
    assert_eq!(first.await.expect("is decided"), "ok");
    let held = authorizer.providers();
    assert!(held.iter().any(|keyed| keyed.realm.as_ref().is_some_and(|name| name.as_str() == real)));
    assert_eq!(held.len(), 1 + 32, "a verified one, and as many that are not as there may be");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_does_not_exist_is_unavailable_at_once_for_ten_seconds_and_costs_one_fetch() {
    let world = World::of(&[]);
    let authorizer = world.authorizer("realms: '[a-z0-9]+'");
    world.publish("late");
    let (token, key) = (world.token("late"), world.withdraw("late"));
    assert_eq!(decide(&authorizer, &token).await, "keys_unavailable");
    world.put_back("late", key);
    let asked = clock::monotonic();
    for _ in 0..9 {
        let before = clock::monotonic();
        assert_eq!(decide(&authorizer, &token).await, "keys_unavailable");
        assert_eq!(clock::elapsed_since(before), Duration::ZERO, "nobody waits");
        sleep(SECOND).await;
    }
    assert_eq!(world.asked("late"), 1);
    sleep((10 * SECOND).saturating_sub(clock::elapsed_since(asked))).await;
    assert_eq!(decide(&authorizer, &token).await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_tenant_whose_keys_are_gone_for_a_while_is_not_taken_for_one_that_does_not_exist() {
    let names = tenants(2);
    let world = World::of(&names);
    let authorizer = world.authorizer("realms: '[a-z0-9]+'\nmax_realms: 1");
    for name in &names {
        assert_eq!(decide(&authorizer, &world.token(name)).await, "ok");
    }
    // The first one has been pushed out of memory, and is known.
    let (token, key) = (world.token("tenant0"), world.withdraw("tenant0"));
    assert_eq!(decide(&authorizer, &token).await, "keys_unavailable");
    world.put_back("tenant0", key);
    sleep(SECOND).await;
    assert_eq!(decide(&authorizer, &token).await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_realm_whose_issuer_fails_is_unavailable_and_is_tried_again_with_the_next_token() {
    let world = World::of(&tenants(1));
    let authorizer = world.authorizer("realms: '[a-z0-9]+'");
    let token = world.token("tenant0");
    world.is_away_with(503);
    assert_eq!(decide(&authorizer, &token).await, "keys_unavailable");
    world.is_back();
    sleep(SECOND / 100).await;
    assert_eq!(authorizer.providers().len(), 0, "its trial has ended");
    assert_eq!(decide(&authorizer, &token).await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_what_is_known_of_realms_and_who_was_verified_least_lately() {
    let names = tenants(12);
    let world = World::of(&names);
    let config = configuration("realms: '[a-z0-9]+'\nmax_realms: 8");
    let before = world.template_of(&config, None);
    let authorizer = world.authorizer_of(&config, &before);
    let (first, rest) = names.split_at(4);
    // Four are pushed out, and of the others the last four are verified once more.
    for name in first.iter().chain(rest).chain(&rest[4..]) {
        assert_eq!(decide(&authorizer, &world.token(name)).await, "ok");
        sleep(SECOND).await;
    }
    let after = world.template_of(&config, Some(&before));
    let authorizer = world.authorizer_of(&config, &after);
    let held = || {
        let known = after.known();
        let held = known.iter().map(|keyed| keyed.realm.as_ref().expect("a realm").to_string()).collect();
        std::collections::BTreeSet::from_iter::<Vec<String>>(held)
    };
    assert_eq!(held(), rest.iter().cloned().collect());
    for name in first {
        assert_eq!(decide(&authorizer, &world.token(name)).await, "ok");
    }
    assert_eq!(held(), first.iter().chain(&rest[4..]).cloned().collect());
    // Names that are made up have the slots; one that is known needs none.
    for i in 0..100 {
        let (authorizer, token) = (world.authorizer_of(&config, &after), unsigned(&format!("made{i}")));
        tokio::spawn(async move { decide(&authorizer, &token).await });
    }
    sleep(SECOND / 10).await;
    let asked = clock::monotonic();
    assert_eq!(decide(&authorizer, &world.token(&rest[0])).await, "ok");
    assert!(clock::elapsed_since(asked) < SECOND / 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn while_one_realm_is_being_opened_nobody_else_waits_and_it_is_opened_once() {
    let (gate, gated) = std::sync::mpsc::channel::<()>();
    let gated = std::sync::Mutex::new(gated);
    let (opening, mut opened) = tokio::sync::mpsc::unbounded_channel();
    let names = ["slow".to_owned(), "quick".to_owned(), "new".to_owned()];
    let world = World::watched(&names, None, move |name| {
        opening.send(name.to_owned()).expect("the test listens");
        if name == "slow" {
            gated.lock().expect("one opener").recv().expect("the test lets it go");
        }
    });
    let authorizer = world.authorizer("realms: '[a-z]+'\nrefresh: {wait: 20s}");
    assert_eq!(decide(&authorizer, &world.token("quick")).await, "ok");
    assert_eq!(opened.recv().await.as_deref(), Some("quick"));
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let (authorizer, token) = (Arc::clone(&authorizer), world.token("slow"));
            tokio::spawn(async move { decide(&authorizer, &token).await })
        })
        .collect();
    assert_eq!(opened.recv().await.as_deref(), Some("slow"));
    // In tasks of their own, so that a lock that is held fails this test and does not hang it.
    for name in ["quick", "new"] {
        let (authorizer, token) = (Arc::clone(&authorizer), world.token(name));
        let decided = tokio::spawn(async move { decide(&authorizer, &token).await });
        let decided = tokio::time::timeout(10 * SECOND, decided).await.expect("nobody holds it up");
        assert_eq!(decided.expect("is decided"), "ok", "{name}");
    }
    assert_eq!(authorizer.providers().len(), 2);
    gate.send(()).expect("it waits");
    for one in waiting {
        assert_eq!(one.await.expect("is decided"), "ok");
    }
    assert_eq!(opened.recv().await.as_deref(), Some("new"));
    assert!(opened.try_recv().is_err(), "each was opened once");
}

#[tokio::test(start_paused = true)]
async fn callers_beyond_the_bounds_of_the_line_are_told_at_once_and_a_caller_waits_until_its_deadline() {
    let world = World::of(&[]);
    world.is_away_with(503);
    let authorizer = world.authorizer("realms: '[a-z0-9]+'\nrefresh: {max_waiters: 100, min_spacing: 5m}");
    let ask = |name: String| {
        let authorizer = Arc::clone(&authorizer);
        tokio::spawn(async move {
            let came = clock::monotonic();
            assert_eq!(decide(&authorizer, &unsigned(&name)).await, "keys_unavailable");
            clock::elapsed_since(came)
        })
    };
    let burst: Vec<_> = (0..16).map(|i| ask(format!("burst{i}"))).collect();
    for one in burst {
        assert!(one.await.expect("is decided") < SECOND);
    }
    let line: Vec<_> = (0..60).map(|i| ask(format!("n{i}"))).collect();
    let mut took = Vec::new();
    for one in line {
        took.push(one.await.expect("is decided"));
    }
    let (waited, told): (Vec<_>, Vec<_>) = took.into_iter().partition(|took| *took == 2 * SECOND);
    assert_eq!((waited.len(), told), (50, vec![Duration::ZERO; 10]));
}
