//! Many realms of one provider over the wire: all realms share one budget of forced fetches, because they share one issuer.

use std::sync::Arc;

use portcullis::commands::issuer::SigningKey;
use tokio::task::JoinHandle;

use super::answer::{Answer, Gate};
use super::env::{configured, eventually, folder, key, metric_value, provider, token_of, wall_time};
use super::key_server::{KeyServer, Request};
use super::process::Process;
use crate::support::{NOW, Running, fixed_clock};

/// Each cause forces at most one fetch during a test.
const LONG_SPACING: &str =
    "refresh: {interval: 1h, min_spacing: 10m, min_spacing_bad_signature: 10m, wait: 1s, timeout: 10s}";

/// A service with one provider with these realms, all of their keys fetched, and their key server.
struct Tenants {
    server: KeyServer,
    service: Running,
    names: Vec<String>,
    /// The key that every realm publishes at the start.
    known: SigningKey,
}

impl Tenants {
    async fn start(names: Vec<String>, refresh: &str) -> Arc<Self> {
        let tenants = Self::without_keys(names, refresh).await;
        for name in &tenants.names {
            tenants.expect_reason(name, &tenants.known, "ok").await;
        }
        tenants
    }

    /// The same without any fetched key.
    async fn without_keys(names: Vec<String>, refresh: &str) -> Arc<Self> {
        let (server, known) = (KeyServer::start().await, key("known"));
        server.respond_with(Answer::keys(&[&known]));
        let url = server.http("/{realm}");
        let keys = format!("jwks_uri: '{url}', realms: [{}]", names.join(", "));
        let service =
            Running::start(configured(&[provider("many", &url, &keys, refresh)]), fixed_clock()).await;
        Arc::new(Self { server, service, names, known })
    }

    fn token(&self, name: &str, key: &SigningKey) -> String {
        token_of(&self.server.http(&format!("/{name}")), key, NOW + 60)
    }

    async fn reason(&self, name: &str, key: &SigningKey) -> String {
        self.service.bearer(&self.token(name, key)).await.reason().to_owned()
    }

    /// The same in a spawned task.
    fn spawn_check(self: &Arc<Self>, name: &str, key: &SigningKey) -> JoinHandle<String> {
        let (tenants, name, key) = (Arc::clone(self), name.to_owned(), key.clone());
        tokio::spawn(async move { tenants.reason(&name, &key).await })
    }

    async fn expect_reason(&self, name: &str, key: &SigningKey, reason: &str) {
        assert_eq!(self.reason(name, key).await, reason, "{name}");
    }

    /// The realms of the forced fetches after the first fetches, in order.
    fn forced(&self) -> Vec<String> {
        let forced = |request: &&Request| request.header("cache-control") == Some("no-cache");
        let name = |request: &Request| request.target.trim_start_matches('/').to_owned();
        self.server.requests().iter().skip(self.names.len()).filter(forced).map(name).collect()
    }

    /// Waits until tenants many requests of tenants realm wait.
    async fn wait_for_waiters(&self, name: &str, waiters: u64) {
        let waiting = format!("portcullis_jwks_waiters{{provider=\"many/{name}\"}}");
        eventually("requests wait", async || metric_value(&self.service, &waiting).await == waiters).await;
    }
}

#[tokio::test]
async fn the_first_tokens_of_realms_spend_no_budget_of_forced_fetches() {
    let names = (0..20).map(|number| format!("r{number}")).collect();
    let tenants = Tenants::start(names, LONG_SPACING).await;
    let new = key("new");
    tenants.server.respond_with(Answer::keys(&[&new]));
    tenants.expect_reason("r7", &new, "ok").await;
    assert_eq!(tenants.forced(), ["r7"]);
}

#[tokio::test]
async fn the_first_token_of_a_realm_bypasses_caches_and_uses_them_while_the_issuer_is_down() {
    let names = ["stale", "down", "absent"].map(str::to_owned).to_vec();
    let (tenants, new) = (Tenants::without_keys(names, LONG_SPACING).await, key("new"));
    let (cached, fresh) = (Answer::keys(&[&tenants.known]).header("age", "100"), Answer::keys(&[&new]));
    tenants.server.on(move |request| match (request.header("cache-control"), request.target.as_str()) {
        (Some("no-cache"), "/stale") => fresh.clone(),
        (_, "/absent") => Answer::status(404),
        (Some("no-cache"), _) => Answer::status(503),
        _ => cached.clone(),
    });
    tenants.expect_reason("stale", &new, "ok").await;
    tenants.expect_reason("down", &tenants.known, "ok").await;
    tenants.expect_reason("absent", &new, "keys_unavailable").await;
    assert_eq!(tenants.server.requests_for("/absent"), 1, "a missing realm costs one request");
}

#[tokio::test]
async fn the_first_tokens_of_a_hundred_realms_are_allowed_despite_a_stale_cache() {
    // The binary is multi-threaded: starting the first fetch races with requesting it.
    let (folder, server, new) = (folder(), KeyServer::start().await, key("new"));
    let (cached, fresh) = (Answer::keys(&[&key("old")]).header("age", "100"), Answer::keys(&[&new]));
    server.on(move |request| match request.header("cache-control") {
        Some("no-cache") => fresh.clone(),
        _ => cached.clone(),
    });
    let names: Vec<String> = (0..100).map(|number| format!("r{number}")).collect();
    let url = server.http("/{realm}");
    let keys = format!("jwks_uri: '{url}', realms: [{}]", names.join(", "));
    let process = Process::serve(folder.path(), &[provider("many", &url, &keys, LONG_SPACING)], &[]).await;
    for name in &names {
        let token = token_of(&url.replace("{realm}", name), &new, wall_time() + 600);
        assert_eq!(process.token(token).await.reason(), "ok", "{name}");
    }
    assert_eq!(server.requests().len(), names.len());
}

#[tokio::test]
async fn tokens_of_sixty_realms_force_one_fetch_per_spacing_in_total() {
    let names = (0..60).map(|number| format!("r{number}")).collect();
    let tenants = Tenants::start(names, LONG_SPACING).await;
    for kid in ["made-up", "known"] {
        for _ in 0..5 {
            let key = key(kid);
            let checks: Vec<_> = tenants.names.iter().map(|name| tenants.spawn_check(name, &key)).collect();
            for check in checks {
                let reason = check.await.expect("answered");
                let expected = ["keys_unavailable", "key_unknown", "bad_signature"];
                assert!(expected.contains(&reason.as_str()), "{reason}");
            }
        }
    }
    // One for each cause.
    assert_eq!(tenants.forced().len(), 2, "{:?}", tenants.forced());
    for name in &tenants.names {
        tenants.expect_reason(name, &tenants.known, "ok").await;
    }
}

#[tokio::test]
async fn a_waiting_realm_is_served_before_the_most_recently_served_one() {
    const SPACED: &str = "refresh: {interval: 1h, min_spacing: 100ms, wait: 1m, timeout: 1m}";
    let others: Vec<String> = (0..9).map(|number| format!("other-{number}")).collect();
    let names = others.iter().map(String::as_str).chain(["flooded"]).map(str::to_owned).collect();
    let tenants = Tenants::start(names, SPACED).await;
    let (new, gate) = (key("new"), Gate::new());
    let (flooded, rotated) = (Answer::keys(&[&tenants.known]).gated_by(&gate), Answer::keys(&[&new]));
    tenants.server.on(move |request| match request.target.as_str() {
        "/flooded" => flooded.clone(),
        _ => rotated.clone(),
    });
    let made_up = key("made-up");
    let before = tenants.server.requests().len();
    let mut flood = vec![tenants.spawn_check("flooded", &made_up)];
    tenants.server.request(before + 1).await;
    // These arrive during that fetch, which cannot serve them.
    flood.extend((0..20).map(|_| tenants.spawn_check("flooded", &made_up)));
    tenants.wait_for_waiters("flooded", 21).await;
    let mut waiting = Vec::new();
    for name in &others {
        waiting.push(tenants.spawn_check(name, &new));
        tenants.wait_for_waiters(name, 1).await;
    }
    gate.open();
    for waiting in waiting {
        assert_eq!(waiting.await.expect("answered"), "ok");
    }
    for flood in flood {
        assert_eq!(flood.await.expect("answered"), "key_unknown");
    }
    let mut expected_order = vec!["flooded"];
    expected_order.extend(others.iter().map(String::as_str));
    expected_order.push("flooded");
    assert_eq!(tenants.forced(), expected_order);
}
