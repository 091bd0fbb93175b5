//! How real frameworks interpret forwarded requests. The bytes that the upstream of `differentials.rs` received behind
//! every proxy are sent to small apps in Python, JavaScript, Go, PHP, Ruby and Java. No app may run a handler that the
//! rules deny to the client, or see an identity other than the verified one.
//!
//! `differentials/readings.rs` models these interpretations; this module tests the programs themselves.

mod apps;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::differentials::client::{exchange, replace};
use crate::differentials::env::{self, CLAIM_HEADERS, Proxy, TestEnv};
use crate::differentials::head::Head;
use crate::differentials::judge::{self, Reading};
use crate::differentials::message::{Caller, Case};
use crate::differentials::table;
use apps::App;

/// The number of concurrent requests to an app; no more than its server has threads.
const CONCURRENCY: usize = 4;

/// Forwarded requests by client and bytes, with the case and the proxy of the first occurrence.
type Forwarded = BTreeMap<(Caller, Vec<u8>), String>;

#[tokio::test(flavor = "multi_thread")]
async fn no_framework_reads_more_than_was_checked() {
    let cases = table::cases();
    let mut forwarded = Forwarded::new();
    for proxy in env::PROXIES {
        collect(proxy, &cases, &mut forwarded).await;
    }
    let forwarded = Arc::new(forwarded);
    let mut replays = JoinSet::new();
    for app in apps::start().await {
        replays.spawn(replay(app, Arc::clone(&forwarded)));
    }
    let wrong: Vec<String> = replays.join_all().await.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{} readings are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Adds the requests that reached the upstream behind this proxy, without values that vary between runs.
async fn collect(proxy: Proxy, cases: &[Case], forwarded: &mut Forwarded) {
    let env = TestEnv::start(proxy, CLAIM_HEADERS).await;
    let (outcomes, _) = env.run(cases).await;
    for (number, (case, outcome)) in cases.iter().zip(outcomes).enumerate() {
        for received in outcome.received {
            // Any client may send a preflight, and apps answer it without authentication.
            if judge::is_preflight(&Head::read(&received.head)) || !received.tunnel.is_empty() {
                continue;
            }
            let token = env.token(case.caller).unwrap_or("{token}");
            let octets = replace(&received.octets, token.as_bytes(), b"token");
            let octets = replace(&octets, env::mark(number).as_bytes(), b"marked");
            let origin = format!("{} behind {}", case.name, proxy.name);
            forwarded.entry((case.caller, without_random_lines(&octets))).or_insert(origin);
        }
    }
}

/// Without the lines that proxies generate for each request.
fn without_random_lines(octets: &[u8]) -> Vec<u8> {
    let mut result = Vec::new();
    for line in octets.split_inclusive(|&byte| byte == b'\n') {
        if !line.to_ascii_lowercase().starts_with(b"x-request-id: ") {
            result.extend_from_slice(line);
        }
    }
    result
}

async fn replay(app: App, forwarded: Arc<Forwarded>) -> BTreeSet<String> {
    let permits = Arc::new(Semaphore::new(CONCURRENCY));
    let mut clients = JoinSet::new();
    for ((caller, octets), origin) in forwarded.iter() {
        let (caller, octets, origin) = (*caller, octets.clone(), origin.clone());
        let (permits, address, name) = (Arc::clone(&permits), app.address, app.name);
        clients.spawn(async move {
            let _permit = permits.acquire().await.expect("is never closed");
            let answer = exchange(address, &octets).await?;
            // A response that is not JSON comes from no handler.
            let reading = reading(serde_json::from_slice(&answer.body).ok()?);
            let faults = judge::faults_of_reading(caller, &reading);
            (!faults.is_empty()).then(|| format!("{name}: {origin}: {}", faults.join("; ")))
        });
    }
    clients.join_all().await.into_iter().flatten().collect()
}

fn reading(answer: Value) -> Reading {
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    Reading {
        admin: answer["handler"] == "admin",
        method: text("method"),
        path: text("path"),
        host: text("host"),
        identity: vec![
            ("x-auth-subject", text("subject")),
            ("x-auth-tenant", text("tenant")),
            ("x-auth-roles", text("roles")),
        ],
    }
}
