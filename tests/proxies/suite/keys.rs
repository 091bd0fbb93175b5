//! Tests of key rotations and outages: of the issuer's keys under load, without keys, and without the service.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use portcullis::commands::issuer::{Issuer, SigningAlgorithm, SigningKey};
use reqwest::StatusCode;
use tokio::task::JoinSet;

use super::{Proxy, SERIAL, TestEnv};
use crate::support::real::{self, TIMEOUT, eventually};

/// The number of clients of the load test, each of which sends one request at a time.
const CLIENTS: u64 = 8;

pub async fn rotations_under_load_refuse_no_good_token(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let mut env = TestEnv::start(proxy, "    refresh: {min_spacing: 100ms}\n").await;
    let current = Arc::new(std::sync::Mutex::new(env.token()));
    let done = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (client, url) = (env.client.clone(), env.url("/orders"));
        let (current, done, sent) = (Arc::clone(&current), Arc::clone(&done), Arc::clone(&sent));
        clients.spawn(async move {
            let mut refused = Vec::new();
            while !done.load(Ordering::SeqCst) {
                let token = current.lock().expect("not poisoned").clone();
                let answer = client.get(&url).bearer_auth(token).send().await.expect("the proxy answers");
                if answer.status() != StatusCode::OK {
                    refused.push(answer.status());
                }
                sent.fetch_add(1, Ordering::SeqCst);
            }
            refused
        });
    }
    for rotation in 1..=3 {
        let before = sent.load(Ordering::SeqCst);
        eventually("the load goes on", TIMEOUT, async || {
            (sent.load(Ordering::SeqCst) >= before + 50).then_some(())
        })
        .await;
        // Tokens of the previous key are still valid after a rotation.
        let next = SigningKey::generate(format!("next-{rotation}").as_str(), SigningAlgorithm::ES256);
        env.issuer.publish(&[&next, &env.key]);
        env.key = next;
        *current.lock().expect("not poisoned") = env.token();
    }
    let before = sent.load(Ordering::SeqCst);
    eventually("the load goes on", TIMEOUT, async || {
        (sent.load(Ordering::SeqCst) >= before + 50).then_some(())
    })
    .await;
    done.store(true, Ordering::SeqCst);
    for refused in clients.join_all().await {
        assert!(refused.is_empty(), "valid tokens are refused: {refused:?}");
    }
}

pub async fn without_keys_the_answer_is_503(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let issuer = Issuer::start().await.expect("a free port");
    let key = issuer.rotate(SigningAlgorithm::ES256);
    issuer.stop().await;
    let env = TestEnv::start_without_keys(proxy, issuer, key, "").await;
    let answer = env.send(&env.token()).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()["retry-after"], "1");
    assert_eq!(real::json(answer).await["error"], "temporarily_unavailable");
    assert_eq!(env.upstream.received(), 0);
    env.issuer.restart().await.expect("its port is free");
    eventually("the issuer is up again and the same token passes", TIMEOUT, async || {
        (env.send(&env.token()).await.status() == StatusCode::OK).then_some(())
    })
    .await;
}

pub async fn when_the_service_is_down_nothing_passes(proxy: Proxy) {
    let _serial = SERIAL.lock().await;
    let mut env = TestEnv::start(proxy, "").await;
    let token = env.token();
    assert_eq!(env.send(&token).await.status(), StatusCode::OK);
    let before = env.upstream.received();
    env.portcullis.process.terminate();
    eventually("the service exits", TIMEOUT, async || env.portcullis.process.exit_status()).await;
    assert_eq!(env.send(&token).await.status(), proxy.status_when_down);
    assert_eq!(env.upstream.received(), before);
}
