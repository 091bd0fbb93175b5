//! What real frameworks read of the requests that came through: the octets that the upstream of `differentials.rs` got
//! behind every proxy are sent to small apps in Python, JavaScript, Go, PHP, Ruby and Java, and none may run what
//! the rules do not allow to the client, nor see another identity than the one that was judged.
//!
//! `differentials/readings.rs` models such readings; this holds them against the programs themselves.

mod apps;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::differentials::client::{exchange, replaced};
use crate::differentials::head::Head;
use crate::differentials::judge::{self, Reading};
use crate::differentials::message::{Case, Who};
use crate::differentials::stage::{self, CLAIM_HEADERS, Proxy, Stage};
use crate::differentials::table;
use apps::App;

/// Requests that an app gets at one time; its server has as many threads.
const ABREAST: usize = 4;

/// A request that came through, from this client, and the case and the proxy that it was first seen with.
type Through = BTreeMap<(Who, Vec<u8>), String>;

#[tokio::test(flavor = "multi_thread")]
async fn no_framework_reads_more_than_was_judged() {
    let cases = table::cases();
    let mut through = Through::new();
    for proxy in stage::PROXIES {
        collect(proxy, &cases, &mut through).await;
    }
    let through = Arc::new(through);
    let mut replays = JoinSet::new();
    for app in apps::start().await {
        replays.spawn(replay(app, Arc::clone(&through)));
    }
    let wrong: Vec<String> = replays.join_all().await.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{} readings went wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Adds what reached the upstream behind this proxy, without what is different each time.
async fn collect(proxy: Proxy, cases: &[Case], through: &mut Through) {
    let stage = Stage::set(proxy, CLAIM_HEADERS).await;
    let (outcomes, _) = stage.play(cases).await;
    for (number, (case, outcome)) in cases.iter().zip(outcomes).enumerate() {
        for received in outcome.received {
            // A preflight is anybody's, and apps answer it without a look at who asks.
            if judge::is_preflight(&Head::read(&received.head)) || !received.tunnel.is_empty() {
                continue;
            }
            let token = stage.token(case.who).unwrap_or("{token}");
            let octets = replaced(&received.octets, token.as_bytes(), b"token");
            let octets = replaced(&octets, stage::mark(number).as_bytes(), b"marked");
            let seen = format!("{} behind {}", case.name, proxy.name);
            through.entry((case.who, without_random_lines(&octets))).or_insert(seen);
        }
    }
}

/// Without the lines that proxies make up for each request.
fn without_random_lines(octets: &[u8]) -> Vec<u8> {
    let mut kept = Vec::new();
    for line in octets.split_inclusive(|&byte| byte == b'\n') {
        if !line.to_ascii_lowercase().starts_with(b"x-request-id: ") {
            kept.extend_from_slice(line);
        }
    }
    kept
}

async fn replay(app: App, through: Arc<Through>) -> BTreeSet<String> {
    let turns = Arc::new(Semaphore::new(ABREAST));
    let mut clients = JoinSet::new();
    for ((who, octets), seen) in through.iter() {
        let (who, octets, seen) = (*who, octets.clone(), seen.clone());
        let (turns, address, name) = (Arc::clone(&turns), app.address, app.name);
        clients.spawn(async move {
            let _turn = turns.acquire().await.expect("is never closed");
            let answer = exchange(address, &octets).await?;
            // Whatever else it answers, it did not run what it was asked for.
            let reading = reading(serde_json::from_slice(&answer.body).ok()?);
            let faults = judge::faults_of_reading(who, &reading);
            (!faults.is_empty()).then(|| format!("{name}: {seen}: {}", faults.join("; ")))
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
