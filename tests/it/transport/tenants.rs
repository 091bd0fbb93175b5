//! Many realms of one provider over the wire: what tokens force is paid from one account, whatever the realms are
//! called, since it is one issuer that is asked.

use std::sync::Arc;

use portcullis::commands::issuer::SigningKey;
use tokio::task::JoinHandle;

use super::answer::{Answer, Gate};
use super::house::{configured, counted, eventually, folder, key, provider, token_of, wall_time};
use super::key_server::{KeyServer, Request};
use super::process::Process;
use crate::support::{NOW, Running, fixed_clock};

/// Each cause may force one fetch, and then none for as long as a test lasts.
const RARE: &str =
    "refresh: {interval: 1h, min_spacing: 10m, min_spacing_bad_signature: 10m, wait: 1s, timeout: 10s}";

/// A service of one provider with these realms, the keys of each of which it has, and their server.
struct Tenants {
    server: KeyServer,
    service: Running,
    names: Vec<String>,
    /// Every realm has published it from the start.
    known: SigningKey,
}

impl Tenants {
    async fn start(names: Vec<String>, refresh: &str) -> Arc<Self> {
        let tenants = Self::without_keys(names, refresh).await;
        for name in &tenants.names {
            tenants.is(name, &tenants.known, "ok").await;
        }
        tenants
    }

    /// The same before the first token.
    async fn without_keys(names: Vec<String>, refresh: &str) -> Arc<Self> {
        let (server, known) = (KeyServer::start().await, key("known"));
        server.always(Answer::keys(&[&known]));
        let place = server.http("/{realm}");
        let keys = format!("jwks_uri: '{place}', realms: [{}]", names.join(", "));
        let service =
            Running::start(configured(&[provider("many", &place, &keys, refresh)]), fixed_clock()).await;
        Arc::new(Self { server, service, names, known })
    }

    fn token(&self, name: &str, key: &SigningKey) -> String {
        token_of(&self.server.http(&format!("/{name}")), key, NOW + 60)
    }

    async fn reason(&self, name: &str, key: &SigningKey) -> String {
        self.service.bearer(&self.token(name, key)).await.reason().to_owned()
    }

    /// The same, asked now and answered when it is.
    fn asking(self: &Arc<Self>, name: &str, key: &SigningKey) -> JoinHandle<String> {
        let (this, name, key) = (Arc::clone(self), name.to_owned(), key.clone());
        tokio::spawn(async move { this.reason(&name, &key).await })
    }

    async fn is(&self, name: &str, key: &SigningKey, reason: &str) {
        assert_eq!(self.reason(name, key).await, reason, "{name}");
    }

    /// The realms of the fetches that tokens have forced since their first keys were had, in their order.
    fn forced(&self) -> Vec<String> {
        let forced = |request: &&Request| request.header("cache-control") == Some("no-cache");
        let name = |request: &Request| request.target.trim_start_matches('/').to_owned();
        self.server.requests().iter().skip(self.names.len()).filter(forced).map(name).collect()
    }

    /// Waits until so many callers of this realm wait.
    async fn wait_for_callers(&self, name: &str, callers: u64) {
        let waiting = format!("portcullis_jwks_waiters{{provider=\"many/{name}\"}}");
        eventually("they wait", async || counted(&self.service, &waiting).await == callers).await;
    }
}

#[tokio::test]
async fn the_first_tokens_of_realms_spend_nothing_of_what_a_rotation_needs() {
    let names = (0..20).map(|number| format!("r{number}")).collect();
    let tenants = Tenants::start(names, RARE).await;
    let new = key("new");
    tenants.server.always(Answer::keys(&[&new]));
    tenants.is("r7", &new, "ok").await;
    assert_eq!(tenants.forced(), ["r7"]);
}

#[tokio::test]
async fn the_first_token_of_a_realm_passes_caches_by_and_is_content_with_them_while_the_issuer_is_down() {
    let names = ["stale", "down", "absent"].map(str::to_owned).to_vec();
    let (tenants, new) = (Tenants::without_keys(names, RARE).await, key("new"));
    let (kept, fresh) = (Answer::keys(&[&tenants.known]).header("age", "100"), Answer::keys(&[&new]));
    tenants.server.on(move |request| match (request.header("cache-control"), request.target.as_str()) {
        (Some("no-cache"), "/stale") => fresh.clone(),
        (_, "/absent") => Answer::status(404),
        (Some("no-cache"), _) => Answer::status(503),
        _ => kept.clone(),
    });
    tenants.is("stale", &new, "ok").await;
    tenants.is("down", &tenants.known, "ok").await;
    tenants.is("absent", &new, "keys_unavailable").await;
    assert_eq!(tenants.server.asked_for("/absent"), 1, "what does not exist costs one request");
}

#[tokio::test]
async fn the_first_tokens_of_a_hundred_realms_are_allowed_whatever_a_cache_has() {
    // In the binary, whose threads race to begin the first fetch and to ask for it.
    let (folder, server, new) = (folder(), KeyServer::start().await, key("new"));
    let (kept, fresh) = (Answer::keys(&[&key("old")]).header("age", "100"), Answer::keys(&[&new]));
    server.on(move |request| match request.header("cache-control") {
        Some("no-cache") => fresh.clone(),
        _ => kept.clone(),
    });
    let names: Vec<String> = (0..100).map(|number| format!("r{number}")).collect();
    let place = server.http("/{realm}");
    let keys = format!("jwks_uri: '{place}', realms: [{}]", names.join(", "));
    let process = Process::serve(folder.path(), &[provider("many", &place, &keys, RARE)], &[]).await;
    for name in &names {
        let token = token_of(&place.replace("{realm}", name), &new, wall_time() + 600);
        assert_eq!(process.token(token).await.reason(), "ok", "{name}");
    }
    assert_eq!(server.requests().len(), names.len());
}

#[tokio::test]
async fn tokens_of_sixty_realms_force_one_fetch_a_spacing_in_all() {
    let names = (0..60).map(|number| format!("r{number}")).collect();
    let tenants = Tenants::start(names, RARE).await;
    for kid in ["made-up", "known"] {
        for _ in 0..5 {
            let key = key(kid);
            let asked: Vec<_> = tenants.names.iter().map(|name| tenants.asking(name, &key)).collect();
            for asked in asked {
                let reason = asked.await.expect("answered");
                let expected = ["keys_unavailable", "key_unknown", "bad_signature"];
                assert!(expected.contains(&reason.as_str()), "{reason}");
            }
        }
    }
    // One for each cause.
    assert_eq!(tenants.forced().len(), 2, "{:?}", tenants.forced());
    for name in &tenants.names {
        tenants.is(name, &tenants.known, "ok").await;
    }
}

#[tokio::test]
async fn a_realm_whose_callers_wait_is_served_before_the_one_that_was_served_last() {
    const SPACED: &str = "refresh: {interval: 1h, min_spacing: 100ms, wait: 10s, timeout: 10s}";
    let others: Vec<String> = (0..9).map(|number| format!("other-{number}")).collect();
    let names = others.iter().map(String::as_str).chain(["flooded"]).map(str::to_owned).collect();
    let tenants = Tenants::start(names, SPACED).await;
    let (new, gate) = (key("new"), Gate::new());
    let (flooded, rotated) = (Answer::keys(&[&tenants.known]).behind(&gate), Answer::keys(&[&new]));
    tenants.server.on(move |request| match request.target.as_str() {
        "/flooded" => flooded.clone(),
        _ => rotated.clone(),
    });
    let made_up = key("made-up");
    let before = tenants.server.requests().len();
    let mut flood = vec![tenants.asking("flooded", &made_up)];
    tenants.server.request(before + 1).await;
    // These come while that fetch is under way, which cannot serve them.
    flood.extend((0..20).map(|_| tenants.asking("flooded", &made_up)));
    tenants.wait_for_callers("flooded", 21).await;
    let mut waiting = Vec::new();
    for name in &others {
        waiting.push(tenants.asking(name, &new));
        tenants.wait_for_callers(name, 1).await;
    }
    gate.open();
    for waiting in waiting {
        assert_eq!(waiting.await.expect("answered"), "ok");
    }
    for flood in flood {
        assert_eq!(flood.await.expect("answered"), "key_unknown");
    }
    let mut in_turn = vec!["flooded"];
    in_turn.extend(others.iter().map(String::as_str));
    in_turn.push("flooded");
    assert_eq!(tenants.forced(), in_turn);
}
