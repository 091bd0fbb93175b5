//! Host names of issuers that a name server never answers: the system resolver blocks a thread for each lookup, and other
//! issuers are not affected.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::answer::Answer;
use super::env::{
    IMMEDIATE_REFRESH, ISSUER, eventually, folder, key, metric_in, provider, token_of, wall_time,
};
use super::key_server::KeyServer;
use super::process::{Process, portcullis_with_mounts};

/// An unused loopback address.
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 53, 27, 16);

const REALMS: usize = 500;

/// Frequent fetches with a short timeout.
const FREQUENT_ATTEMPTS: &str = "refresh: {interval: 1h, min_spacing: 10ms, wait: 100ms, timeout: 100ms}";

/// Starts a name server that never answers and returns its number of queries; `None` if this user cannot bind port 53.
fn silent_name_server() -> Option<Arc<AtomicUsize>> {
    let socket = UdpSocket::bind((NAME_SERVER, 53)).ok()?;
    let queries = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&queries);
    // The thread ends with the test process.
    std::thread::spawn(move || {
        while socket.recv_from(&mut [0; 512]).is_ok() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    Some(queries)
}

/// The binary with that name server as the system's.
fn command_with_name_server(folder: &Path) -> Option<Command> {
    let file = folder.join("resolv.conf");
    std::fs::write(&file, format!("nameserver {NAME_SERVER}\n")).expect("written");
    portcullis_with_mounts("mount --bind \"$0\" /etc/resolv.conf", &file)
}

#[tokio::test]
async fn unanswered_lookups_use_few_threads_and_do_not_affect_other_issuers() {
    let (folder, server) = (folder(), KeyServer::start().await);
    let (Some(queries), Some(command)) = (silent_name_server(), command_with_name_server(folder.path()))
    else {
        eprintln!("skipped: no permission for a name server and a mount namespace");
        return;
    };
    let names: Vec<String> = (0..REALMS).map(|number| format!("r{number}")).collect();
    let slow = "https://slow.example.com/{realm}";
    let keys = format!("jwks_uri: '{slow}/keys', realms: [{}], max_realms: {REALMS}", names.join(", "));
    let other = format!("jwks_uri: '{}'", server.http("/keys"));
    let known = key("known");
    server.respond_with(Answer::keys(&[&known]));
    let providers = [
        provider("slow", slow, &keys, FREQUENT_ATTEMPTS),
        provider("demo", ISSUER, &other, IMMEDIATE_REFRESH),
    ];
    let process = Process::serve_by(command, folder.path(), &providers).await;
    eventually("the key is known", async || process.bearer(&known).await.is_allowed()).await;
    for name in &names {
        // Their keys are never fetched, so the signature does not matter.
        let token = token_of(&slow.replace("{realm}", name), &known, wall_time() + 600);
        tokio::spawn(process.token(token));
    }
    eventually("the name server is queried", async || queries.load(Ordering::SeqCst) > 0).await;
    let mut rotations = 0;
    eventually("the keys of the realms are fetched several times", async || {
        let new = key(&format!("new-{rotations}"));
        server.respond_with(Answer::keys(&[&new]));
        assert_eq!(process.bearer(&new).await.reason(), "ok", "at its first try, rotation {rotations}");
        let threads = process.threads();
        assert!(threads < 64, "{threads} threads, rotation {rotations}");
        rotations += 1;
        let page = process.admin("/metrics").await;
        let failed = |name: &String| {
            let labels = format!(r#"provider="slow/{name}",trigger="startup",outcome="failed""#);
            metric_in(&page, &format!("portcullis_jwks_fetches_total{{{labels}}}"))
        };
        rotations >= 20 && names.iter().map(failed).sum::<u64>() >= 4 * REALMS as u64
    })
    .await;
}
