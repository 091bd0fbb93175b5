//! The cache of verified tokens, in process: what it saves, and what it must not outlive.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use portcullis::authorizer::TokenCacheConfig;
use portcullis::clock::{Clock, SimulatedClock};
use portcullis::commands::issuer::{Issuer, SigningAlgorithm, SigningKey, with_claim};
use portcullis::config::Profile;
use portcullis::validation::UnixTime;
use portcullis_tower::AuthorizationLayer;
use tower::{Layer, ServiceExt as _};

use crate::support::{
    NOW, Running, config, fetching, fixed_clock, inline, prompt_refresh, provider, with_http_doors,
};

/// A counter or gauge of the service.
async fn metric(service: &Running, name: &str) -> u64 {
    let metrics = service.admin("/metrics").await;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} is not in\n{metrics}")).parse().expect("a number")
}

async fn hits(service: &Running) -> u64 {
    metric(service, "portcullis_token_cache_total{outcome=\"hit\"}").await
}

/// The statuses of every HTTP door and of the layer, for a request with this token.
async fn statuses(service: &Running, token: &str) -> Vec<u16> {
    let client = reqwest::Client::builder().no_proxy().build().expect("a plain client");
    let mut statuses = Vec::new();
    for (_, profile) in Profile::NAMED {
        let request = client
            .get(format!("http://{}/", service.http_door(profile)))
            .bearer_auth(token)
            .header("x-original-method", "GET")
            .header("x-original-uri", "/")
            .header("x-original-url", "https://api.example.com/");
        let request = match profile {
            Profile::Haproxy | Profile::Caddy | Profile::Traefik => request
                .header("x-forwarded-method", "GET")
                .header("x-forwarded-uri", "/")
                .header("x-forwarded-host", "api.example.com"),
            Profile::Nginx | Profile::IngressNginx | Profile::Envoy => request,
        };
        statuses.push(request.send().await.expect("the door responds").status().as_u16());
    }
    let layer = AuthorizationLayer::new(Arc::clone(service.shared_service()));
    let request = axum::http::Request::get("/")
        .header("host", "api.example.com")
        .header("authorization", format!("Bearer {token}"))
        .body(Body::empty())
        .expect("a request");
    let routes = layer.layer(Router::new().fallback(any(async || "ok")));
    statuses.push(routes.oneshot(request).await.expect("never fails").status().as_u16());
    statuses
}

#[tokio::test]
async fn a_cached_token_is_denied_at_every_door_once_a_fetch_shows_its_key_withdrawn() {
    let issuer = Issuer::start().await.expect("bound");
    let old = issuer.rotate(SigningAlgorithm::ES256);
    let config = config(vec![fetching(provider("p", issuer.issuer()), &issuer, prompt_refresh())]);
    let service = Running::start(with_http_doors(config), fixed_clock()).await;
    let token = old.sign(&issuer.claims(NOW));
    let doors = statuses(&service, &token).await;
    assert!(doors.iter().all(|status| *status == 200), "{doors:?}");
    assert_eq!(service.bearer(&token).await.reason(), "ok");
    assert_eq!(hits(&service).await, doors.len() as u64, "all but the first");

    let new = issuer.rotate(SigningAlgorithm::ES256);
    assert_eq!(service.bearer(&new.sign(&issuer.claims(NOW))).await.reason(), "ok", "fetches the keys");
    let before = hits(&service).await;
    assert_eq!(service.bearer(&token).await.reason(), "key_unknown");
    let doors = statuses(&service, &token).await;
    assert!(doors.iter().all(|status| *status == 401), "{doors:?}");
    assert_eq!(hits(&service).await, before);
    assert_eq!(metric(&service, "portcullis_token_cache_entries").await, 1, "it is removed");

    issuer.publish(&[&old, &new]);
    assert_eq!(service.bearer(&token).await.reason(), "ok", "its key is published again");
}

#[tokio::test]
async fn a_cached_token_is_denied_once_the_configuration_of_its_provider_requires_more() {
    let key = SigningKey::generate("k", SigningAlgorithm::ES256);
    let issuer = "https://issuer.example.com";
    let with = |adjust: &dyn Fn(&mut portcullis::validation::provider::Provider)| {
        let mut rules = provider("p", issuer);
        adjust(&mut rules);
        config(vec![inline(rules, &[key.public_jwk()])])
    };
    let service = Running::start(with(&|_| {}), fixed_clock()).await;
    let claims = serde_json::json!({"iss": issuer, "aud": "orders-api", "sub": "alice", "exp": NOW + 60});
    let token = key.sign(&claims);
    for _ in 0..2 {
        assert_eq!(service.bearer(&token).await.reason(), "ok");
    }
    assert_eq!(hits(&service).await, 1);
    let stricter = with(&|rules| {
        rules.required_claims =
            vec![portcullis::validation::provider::ClaimPath::parse("tenant_id").expect("a claim's name")];
    });
    service.service().reload(&stricter).await.expect("valid");
    assert_eq!(service.bearer(&token).await.reason(), "claim_missing");
    let enough = key.sign(&with_claim(claims, "tenant_id", "acme"));
    assert_eq!(service.bearer(&enough).await.reason(), "ok");
}

#[tokio::test]
async fn a_flood_of_one_time_tokens_does_not_evict_the_tokens_in_use() {
    const IN_USE: u64 = 40;
    let key = SigningKey::generate("k", SigningAlgorithm::ES256);
    let issuer = "https://issuer.example.com";
    let mut config = config(vec![inline(provider("p", issuer), &[key.public_jwk()])]);
    config.token_cache = TokenCacheConfig { entries: 100 };
    let service = Running::start(config, fixed_clock()).await;
    let token = |id: u64| {
        key.sign(
            &serde_json::json!({"iss": issuer, "aud": "orders-api", "exp": NOW + 60, "jti": id.to_string()}),
        )
    };
    let in_use: Vec<String> = (0..IN_USE).map(token).collect();
    for _ in 0..3 {
        for token in &in_use {
            assert!(service.bearer(token).await.is_allowed());
        }
    }
    for id in 1_000..2_000 {
        assert!(service.bearer(&token(id)).await.is_allowed());
    }
    let before = hits(&service).await;
    for token in &in_use {
        assert!(service.bearer(token).await.is_allowed());
    }
    let kept = hits(&service).await - before;
    assert!(kept >= IN_USE * 9 / 10, "{kept} of {IN_USE} were still cached");
    let entries = metric(&service, "portcullis_token_cache_entries").await;
    assert!(entries <= 100, "{entries}");
}

#[tokio::test]
async fn a_set_of_tokens_that_replaces_another_one_is_cached_as_well() {
    const IN_USE: u64 = 60;
    let key = SigningKey::generate("k", SigningAlgorithm::EdDSA);
    let issuer = "https://issuer.example.com";
    let mut config = config(vec![inline(provider("p", issuer), &[key.public_jwk()])]);
    config.token_cache = TokenCacheConfig { entries: 100 };
    let service = Running::start(config, fixed_clock()).await;
    for generation in 0..5 {
        let token = |id: u64| {
            let id = format!("{generation}-{id}");
            key.sign(&serde_json::json!({"iss": issuer, "aud": "orders-api", "exp": NOW + 60, "jti": id}))
        };
        let in_use: Vec<String> = (0..IN_USE).map(token).collect();
        let mut kept = 0;
        for _ in 0..6 {
            let before = hits(&service).await;
            for token in &in_use {
                assert!(service.bearer(token).await.is_allowed());
            }
            kept = hits(&service).await - before;
        }
        assert!(kept >= IN_USE * 9 / 10, "{kept} of {IN_USE} of generation {generation} are cached");
    }
}

#[tokio::test]
async fn tokens_that_have_expired_are_removed_within_a_minute_of_requests() {
    let key = SigningKey::generate("k", SigningAlgorithm::EdDSA);
    let issuer = "https://issuer.example.com";
    let config = config(vec![inline(provider("p", issuer), &[key.public_jwk()])]);
    let clock = Arc::new(SimulatedClock::starting_at(UnixTime::from_secs(NOW)));
    let service = Running::start(config, Clock::Simulated(Arc::clone(&clock))).await;
    let token = |id: u64, exp: i64| {
        key.sign(&serde_json::json!({"iss": issuer, "aud": "orders-api", "exp": exp, "jti": id.to_string()}))
    };
    let until_there_are = async |expected| {
        let waiting = async {
            while metric(&service, "portcullis_token_cache_entries").await != expected {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("the others are removed");
    };
    // A clock that is ahead for a while does not delay the next removal.
    assert!(service.bearer(&token(9, NOW + 60)).await.is_allowed());
    clock.step_ms(1_000_000_000);
    assert!(service.bearer(&token(8, NOW + 1_000_060)).await.is_allowed());
    until_there_are(1).await;
    clock.step_ms(-1_000_000_000);
    for id in 0..3 {
        assert!(service.bearer(&token(id, NOW + 60)).await.is_allowed());
    }
    assert_eq!(metric(&service, "portcullis_token_cache_entries").await, 4);
    clock.step_ms(200_000);
    assert!(service.bearer(&token(3, NOW + 600)).await.is_allowed());
    until_there_are(2).await;
}

#[tokio::test]
async fn a_token_with_many_small_claims_counts_as_the_entries_whose_memory_it_takes() {
    let key = SigningKey::generate("k", SigningAlgorithm::EdDSA);
    let issuer = "https://issuer.example.com";
    let mut config = config(vec![inline(provider("p", issuer), &[key.public_jwk()])]);
    config.token_cache = TokenCacheConfig { entries: 100 };
    let service = Running::start(config, fixed_clock()).await;
    // About 2,000 bytes of text and 24,000 of memory.
    let many = vec![1; 1_000];
    for id in 0..50 {
        let claims =
            serde_json::json!({"iss": issuer, "aud": "orders-api", "exp": NOW + 60, "jti": id, "many": many});
        assert!(service.bearer(&key.sign(&claims)).await.is_allowed());
    }
    let entries = metric(&service, "portcullis_token_cache_entries").await;
    assert!((1..=9).contains(&entries), "{entries}");
}

#[tokio::test]
async fn tokens_that_are_denied_and_a_cache_without_entries_hold_nothing() {
    let key = SigningKey::generate("k", SigningAlgorithm::ES256);
    let issuer = "https://issuer.example.com";
    let claims = serde_json::json!({"iss": issuer, "aud": "orders-api", "exp": NOW + 60});
    let start = async |entries| {
        let mut config = config(vec![inline(provider("p", issuer), &[key.public_jwk()])]);
        config.token_cache = TokenCacheConfig { entries };
        Running::start(config, fixed_clock()).await
    };
    let service = start(10).await;
    let impostor = SigningKey::generate("k", SigningAlgorithm::ES256);
    for token in [impostor.sign(&claims), key.sign(&with_claim(claims.clone(), "exp", NOW - 3_600))] {
        for _ in 0..2 {
            assert!(!service.bearer(&token).await.is_allowed());
        }
    }
    assert_eq!(metric(&service, "portcullis_token_cache_entries").await, 0);
    let disabled = start(0).await;
    for _ in 0..3 {
        assert!(disabled.bearer(&key.sign(&claims)).await.is_allowed());
    }
    assert_eq!((hits(&disabled).await, metric(&disabled, "portcullis_token_cache_entries").await), (0, 0));
}
