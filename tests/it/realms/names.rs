//! The list of known realm names: when it is read and written.

use std::path::PathBuf;
use std::sync::Arc;

use portcullis::authorizer::NameStorage;
use portcullis::clock;
use tokio::sync::oneshot;
use tokio::time::{advance, sleep};

use super::world::{
    SECOND, World, configuration, decide, files, flood, folder, folder_served_before, forged, names_in,
    tenants, until,
};

fn listed(folder: &std::path::Path) -> usize {
    let list = std::fs::read_to_string(folder.join("keycloak@@realms.json"));
    list.unwrap_or_default().matches("tenant").count()
}

#[tokio::test(start_paused = true)]
async fn a_new_name_is_written_immediately_and_later_ones_at_most_every_five_seconds() {
    let (names, folder) = (tenants(3), folder());
    let world = World::with_snapshots(&names, Some(folder.path().to_owned()));
    let config = configuration("realms: '[a-z0-9]+'");
    let template = world.template_of(&config, None);
    let authorizer = world.authorizer_of(&config, &template);
    assert_eq!(decide(&authorizer, &world.token("tenant0")).await, "ok");
    until("the first one is written", || listed(folder.path()) == 1).await;
    assert_eq!(decide(&authorizer, &world.token("tenant1")).await, "ok");
    assert_eq!(decide(&authorizer, &world.token("tenant0")).await, "ok");
    sleep(4 * SECOND).await;
    assert_eq!(listed(folder.path()), 1);
    sleep(SECOND).await;
    until("the second one is written", || listed(folder.path()) == 2).await;
    assert_eq!(decide(&authorizer, &world.token("tenant2")).await, "ok");
    template.save_names();
    until("shutdown does not wait for the spacing", || listed(folder.path()) == 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_of_the_list_is_retried() {
    let (names, above) = (tenants(1), folder());
    let folder: PathBuf = above.path().join("snapshots");
    std::fs::write(&folder, "no folder").expect("is written");
    let world = World::with_snapshots(&names, Some(folder.clone()));
    let authorizer = world.authorizer("realms: '[a-z0-9]+'");
    assert_eq!(decide(&authorizer, &world.token("tenant0")).await, "ok");
    sleep(20 * SECOND).await;
    std::fs::remove_file(&folder).expect("is ours");
    sleep(6 * SECOND).await;
    until("it is written", || listed(&folder) == 1).await;
}

/// Runs a test whose only blocking thread is busy until the sender is used, like a hanging disk.
fn while_files_hang(test: impl AsyncFnOnce(oneshot::Sender<()>)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .max_blocking_threads(1)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (release, released) = oneshot::channel();
        tokio::task::spawn_blocking(move || released.blocking_recv());
        test(release).await;
    });
}

/// A folder with the state of a service that has served these names.
fn before(names: &[String]) -> tempfile::TempDir {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(folder_served_before(names))
}

#[test]
fn no_realm_is_new_before_the_names_are_read() {
    let names = tenants(12);
    let folder = before(&names);
    while_files_hang(async |release| {
        let world = World::with_snapshots(&names, Some(folder.path().to_owned()));
        let authorizer = world.authorizer("realms: '[a-z0-9]+'");
        let ask = |token: String| {
            let authorizer = Arc::clone(&authorizer);
            tokio::spawn(async move { decide(&authorizer, &token).await })
        };
        let unknown: Vec<_> = (0..100).map(|i| ask(forged(&format!("made{i}")))).collect();
        let real: Vec<_> = names.iter().map(|name| ask(world.token(name))).collect();
        advance(SECOND).await;
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        assert_eq!(world.total_fetches(), 0);
        release.send(()).expect("the thread waits");
        for one in real {
            assert_eq!(one.await.expect("is decided"), "ok");
        }
        assert!(world.total_fetches() <= 12 + 17);
        drop(unknown);
    });
}

#[test]
fn new_names_wait_at_most_five_seconds_for_a_hanging_disk() {
    let folder = folder();
    while_files_hang(async |release| {
        // Without snapshots, which may delay keys too.
        let world = World::of(&tenants(1));
        let config = configuration("realms: '[a-z0-9]+'\nrefresh: {wait: 20s}");
        let template = world.template_in(&config, names_in(folder.path()), None);
        let authorizer = world.authorizer_of(&config, &template);
        let (started, token) = (clock::monotonic(), world.token("tenant0"));
        let decided = tokio::spawn(async move { decide(&authorizer, &token).await });
        for _ in 0..70 {
            advance(SECOND / 10).await;
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            assert!(decided.is_finished() == (clock::elapsed_since(started) > 5 * SECOND + SECOND / 10));
            if decided.is_finished() {
                break;
            }
        }
        assert_eq!(decided.await.expect("is decided"), "ok");
        release.send(()).expect("the thread waits");
    });
}

#[tokio::test(start_paused = true)]
async fn a_frequently_verified_tenant_stays_in_the_list() {
    let (names, folder) = (tenants(12), folder());
    let world = World::with_snapshots(&names, Some(folder.path().to_owned()));
    let config = configuration("realms: '[a-z0-9]+'\nmax_realms: 2");
    let template = world.template_of(&config, None);
    let authorizer = world.authorizer_of(&config, &template);
    for name in &names[1..] {
        for name in [&names[0], name] {
            assert_eq!(decide(&authorizer, &world.token(name)).await, "ok");
            sleep(SECOND / 10).await;
        }
    }
    sleep(5 * SECOND).await;
    let path = folder.path().join("keycloak@@realms.json");
    let list = || std::fs::read_to_string(&path).unwrap_or_default();
    until("the last one is written", || list().contains("\"tenant11\"")).await;
    assert!(list().contains("\"tenant0\""), "{}", list());
    assert_eq!(listed(folder.path()), 8, "four times max_realms");
}

#[tokio::test(start_paused = true)]
async fn a_known_realm_on_trial_keeps_its_snapshot_when_it_is_evicted() {
    let names = tenants(1);
    let folder = folder_served_before(&names).await;
    let world = World::with_snapshots(&names, Some(folder.path().to_owned()));
    let config = configuration("realms: '[a-z0-9]+'\nrefresh: {min_spacing: 50ms}");
    let before = world.template_in(&config, NameStorage::InMemory, None);
    assert_eq!(decide(&world.authorizer_of(&config, &before), &world.token("tenant0")).await, "ok");
    // Its keys are moved to a template that knows it only from the list.
    let after = world.template_with(&config, names_in(folder.path()), &before.known(), None);
    let authorizer = Arc::new(world.authorizer_of(&config, &after));
    world.serve_any_name();
    flood(Arc::clone(&authorizer), 20, 5 * SECOND).await;
    assert!(
        !after
            .known()
            .iter()
            .any(|keyed| keyed.realm.as_ref().is_some_and(|name| name.as_str() == "tenant0")),
        "the realm was not evicted"
    );
    until("snapshots of names on trial alone", || files(folder.path(), "@made").len() <= 32).await;
    assert_eq!(files(folder.path(), "@tenant"), ["keycloak@tenant0.json"]);
}
