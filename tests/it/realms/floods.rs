//! Floods of forged tokens with unknown and known realm names: their effect on the tenants.

use std::sync::Arc;
use std::time::Duration;

use portcullis::clock;
use tokio::time::sleep;

use super::world::{
    SECOND, World, configuration, decide, files, flood, folder, folder_served_before, forged, serve, tenants,
    until,
};

/// Unknown realm names per second.
const RATE: u32 = 344;

#[tokio::test(start_paused = true)]
async fn after_a_restart_unknown_names_do_not_affect_known_tenants() {
    let names = tenants(12);
    for without in ["no file", "@tenant", "@@realms"] {
        let folder = folder_served_before(&names).await;
        for file in files(folder.path(), without) {
            std::fs::remove_file(folder.path().join(file)).expect("is ours");
        }
        let world = World::with_snapshots(&names, Some(folder.path().to_owned()));
        let authorizer = world.authorizer("realms: '[a-z0-9]+'");
        let attack = tokio::spawn(flood(Arc::clone(&authorizer), RATE, 20 * SECOND));
        sleep(3 * SECOND).await;
        assert_eq!(serve(&world, &authorizer, &names, 8, 2 * SECOND).await, [], "without {without}");
        attack.await.expect("is sent");
        let unknown = world.total_fetches() - names.len();
        assert!(unknown <= 16 + 24, "{unknown} for a burst of 16 and one per second");
    }
}

#[tokio::test(start_paused = true)]
async fn an_issuer_with_keys_for_any_name_evicts_no_tenant_and_leaves_no_files() {
    let (names, folder) = (tenants(32), folder());
    let world = World::with_snapshots(&names, Some(folder.path().to_owned()));
    let authorizer = world.authorizer("realms: '[a-z0-9]+'\nmax_realms: 32\nrefresh: {min_spacing: 50ms}");
    assert_eq!(serve(&world, &authorizer, &names, 1, SECOND).await, []);
    world.serve_any_name();
    let attack = tokio::spawn(flood(Arc::clone(&authorizer), RATE, 10 * SECOND));
    assert_eq!(serve(&world, &authorizer, &names, 15, SECOND).await, []);
    attack.await.expect("is sent");
    for name in &names {
        assert_eq!(world.fetches(name), 1, "{name} was evicted");
    }
    assert!(world.total_fetches() > 200, "the flood opened realms");
    assert!(authorizer.providers().len() <= 32 + 32 + 16, "{}", authorizer.providers().len());
    until("snapshots of names on trial alone", || files(folder.path(), "@made").len() <= 32).await;
    assert_eq!(files(folder.path(), "@tenant").len(), 32);
}

#[tokio::test(start_paused = true)]
async fn a_new_tenant_with_steady_traffic_is_served_during_a_flood_after_one_wait_and_one_spacing() {
    let world = World::of(&tenants(1));
    let authorizer = world.authorizer("realms: '[a-z0-9]+'\nrefresh: {min_spacing: 1s, wait: 2s}");
    let attack = tokio::spawn(flood(Arc::clone(&authorizer), RATE, 30 * SECOND));
    sleep(10 * SECOND).await;
    let started = clock::monotonic();
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let (authorizer, token) = (Arc::clone(&authorizer), world.token("tenant0"));
        waiting.push(tokio::spawn(async move {
            let reason = decide(&authorizer, &token).await;
            (reason == "ok").then(|| clock::elapsed_since(started))
        }));
        sleep(SECOND / 2).await;
    }
    let mut allowed = Vec::new();
    for one in waiting {
        allowed.push(one.await.expect("is decided"));
    }
    let first = allowed.iter().flatten().min().expect("the tenant is served");
    assert!(*first <= 3 * SECOND + SECOND / 10, "{first:?} for a wait of 2 s, a spacing of 1 s and a fetch");
    let after = allowed.iter().skip(7);
    assert!(after.clone().all(Option::is_some), "not delayed after that: {allowed:?}");
    attack.await.expect("is sent");
}

#[tokio::test(start_paused = true)]
async fn forged_tokens_of_retired_tenants_do_not_affect_known_ones() {
    let (real, retired) = (tenants(8), (0..24).map(|i| format!("tenantx{i}")).collect::<Vec<_>>());
    let folder = folder_served_before(&[&real[..], &retired[..]].concat()).await;
    // Memory has room for eight; the list has 32 known names, of which the issuer has removed 24.
    let world = World::with_snapshots(&real, Some(folder.path().to_owned()));
    let authorizer = world.authorizer("realms: '[a-z0-9]+'\nmax_realms: 8");
    for round in 0..40 {
        for name in retired.iter().chain(&real) {
            let (authorizer, token) = (Arc::clone(&authorizer), forged(name));
            tokio::spawn(async move { decide(&authorizer, &token).await });
        }
        sleep(SECOND / 4).await;
        if round % 4 == 3 {
            assert_eq!(serve(&world, &authorizer, &real, 1, SECOND / 4).await, []);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_evicted_before_its_token_is_verified_is_reopened_with_it() {
    let names = tenants(40);
    let folder = folder_served_before(&names).await;
    let world = World::with_snapshots(&names, Some(folder.path().to_owned()));
    let authorizer = world.authorizer("realms: '[a-z0-9]+'\nmax_realms: 10");
    let (real, others) = names.split_first().expect("forty");
    // Without a snapshot it waits for its issuer while all others are opened.
    std::fs::remove_file(folder.path().join(format!("keycloak@{real}.json"))).expect("is there");
    let first = {
        let (authorizer, token) = (Arc::clone(&authorizer), world.token(real));
        tokio::spawn(async move { decide(&authorizer, &token).await })
    };
    sleep(SECOND / 100).await;
    for name in others {
        let (authorizer, token) = (Arc::clone(&authorizer), forged(name));
        tokio::spawn(async move { decide(&authorizer, &token).await });
    }
    assert_eq!(first.await.expect("is decided"), "ok");
    let open = authorizer.providers();
    assert!(open.iter().any(|keyed| keyed.realm.as_ref().is_some_and(|name| name.as_str() == real)));
    assert_eq!(open.len(), 1 + 32, "one verified realm and the maximum of unverified ones");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_name_is_unavailable_immediately_for_ten_seconds_and_costs_one_fetch() {
    let world = World::of(&[]);
    let authorizer = world.authorizer("realms: '[a-z0-9]+'");
    world.publish("late");
    let (token, key) = (world.token("late"), world.withdraw("late"));
    assert_eq!(decide(&authorizer, &token).await, "keys_unavailable");
    world.republish("late", key);
    let started = clock::monotonic();
    for _ in 0..9 {
        let before = clock::monotonic();
        assert_eq!(decide(&authorizer, &token).await, "keys_unavailable");
        assert_eq!(clock::elapsed_since(before), Duration::ZERO, "no wait");
        sleep(SECOND).await;
    }
    assert_eq!(world.fetches("late"), 1);
    sleep((10 * SECOND).saturating_sub(clock::elapsed_since(started))).await;
    assert_eq!(decide(&authorizer, &token).await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_tenant_whose_keys_are_temporarily_missing_is_not_treated_as_unknown() {
    let names = tenants(2);
    let world = World::of(&names);
    let authorizer = world.authorizer("realms: '[a-z0-9]+'\nmax_realms: 1");
    for name in &names {
        assert_eq!(decide(&authorizer, &world.token(name)).await, "ok");
    }
    // The first one is evicted from memory and still in the list.
    let (token, key) = (world.token("tenant0"), world.withdraw("tenant0"));
    assert_eq!(decide(&authorizer, &token).await, "keys_unavailable");
    world.republish("tenant0", key);
    sleep(SECOND).await;
    assert_eq!(decide(&authorizer, &token).await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_realm_whose_issuer_fails_is_unavailable_and_retried_with_the_next_token() {
    let world = World::of(&tenants(1));
    let authorizer = world.authorizer("realms: '[a-z0-9]+'");
    let token = world.token("tenant0");
    world.set_status(503);
    assert_eq!(decide(&authorizer, &token).await, "keys_unavailable");
    world.clear_status();
    sleep(SECOND / 100).await;
    assert_eq!(authorizer.providers().len(), 0, "its trial is over");
    assert_eq!(decide(&authorizer, &token).await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_known_realms_and_their_order_of_verification() {
    let names = tenants(12);
    let world = World::of(&names);
    let config = configuration("realms: '[a-z0-9]+'\nmax_realms: 8");
    let before = world.template_of(&config, None);
    let authorizer = world.authorizer_of(&config, &before);
    let (first, rest) = names.split_at(4);
    // Four are evicted, and the last four of the others are verified once more.
    for name in first.iter().chain(rest).chain(&rest[4..]) {
        assert_eq!(decide(&authorizer, &world.token(name)).await, "ok");
        sleep(SECOND).await;
    }
    let after = world.template_of(&config, Some(&before));
    let authorizer = world.authorizer_of(&config, &after);
    let open = || {
        let known = after.known();
        let open = known.iter().map(|keyed| keyed.realm.as_ref().expect("a realm").to_string()).collect();
        std::collections::BTreeSet::from_iter::<Vec<String>>(open)
    };
    assert_eq!(open(), rest.iter().cloned().collect());
    for name in first {
        assert_eq!(decide(&authorizer, &world.token(name)).await, "ok");
    }
    assert_eq!(open(), first.iter().chain(&rest[4..]).cloned().collect());
    // Unknown names use the budget; a known one needs none.
    for i in 0..100 {
        let (authorizer, token) = (world.authorizer_of(&config, &after), forged(&format!("made{i}")));
        tokio::spawn(async move { decide(&authorizer, &token).await });
    }
    sleep(SECOND / 10).await;
    let started = clock::monotonic();
    assert_eq!(decide(&authorizer, &world.token(&rest[0])).await, "ok");
    assert!(clock::elapsed_since(started) < SECOND / 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn opening_one_realm_does_not_block_others_and_happens_once() {
    let (gate, gated) = std::sync::mpsc::channel::<()>();
    let gated = std::sync::Mutex::new(gated);
    let (opening, mut opened) = tokio::sync::mpsc::unbounded_channel();
    let names = ["slow".to_owned(), "quick".to_owned(), "new".to_owned()];
    let world = World::with_callback(&names, None, move |name| {
        opening.send(name.to_owned()).expect("the test listens");
        if name == "slow" {
            gated.lock().expect("one opener").recv().expect("the test releases it");
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
    // Spawned, so that a held lock fails this test instead of blocking it.
    for name in ["quick", "new"] {
        let (authorizer, token) = (Arc::clone(&authorizer), world.token(name));
        let decided = tokio::spawn(async move { decide(&authorizer, &token).await });
        let decided = tokio::time::timeout(10 * SECOND, decided).await.expect("not blocked");
        assert_eq!(decided.expect("is decided"), "ok", "{name}");
    }
    assert_eq!(authorizer.providers().len(), 2);
    gate.send(()).expect("the opener waits");
    for one in waiting {
        assert_eq!(one.await.expect("is decided"), "ok");
    }
    assert_eq!(opened.recv().await.as_deref(), Some("new"));
    assert!(opened.try_recv().is_err(), "each was opened once");
}

#[tokio::test(start_paused = true)]
async fn requests_beyond_the_queue_limit_are_denied_immediately_and_others_wait_until_their_deadline() {
    let world = World::of(&[]);
    world.set_status(503);
    let authorizer = world.authorizer("realms: '[a-z0-9]+'\nrefresh: {max_waiters: 100, min_spacing: 5m}");
    let ask = |name: String| {
        let authorizer = Arc::clone(&authorizer);
        tokio::spawn(async move {
            let started = clock::monotonic();
            assert_eq!(decide(&authorizer, &forged(&name)).await, "keys_unavailable");
            clock::elapsed_since(started)
        })
    };
    let burst: Vec<_> = (0..16).map(|i| ask(format!("burst{i}"))).collect();
    for one in burst {
        assert!(one.await.expect("is decided") < SECOND);
    }
    let queued: Vec<_> = (0..60).map(|i| ask(format!("n{i}"))).collect();
    let mut durations = Vec::new();
    for one in queued {
        durations.push(one.await.expect("is decided"));
    }
    let (waited, rejected): (Vec<_>, Vec<_>) =
        durations.into_iter().partition(|elapsed| *elapsed == 2 * SECOND);
    assert_eq!((waited.len(), rejected), (50, vec![Duration::ZERO; 10]));
}
