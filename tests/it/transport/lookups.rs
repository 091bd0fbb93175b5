//! Names of issuers that a name server never answers for: the system's resolver blocks a thread for each, and the
//! trouble of one issuer is not another's.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::answer::Answer;
use super::house::{ISSUER, PROMPT, counted_in, eventually, folder, key, provider, token_of, wall_time};
use super::key_server::KeyServer;
use super::process::{Process, portcullis_with_mounts};

/// Nobody else's, and this machine's.
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 53, 27, 16);

const REALMS: usize = 500;

/// Its keys are looked for again and again, and each time soon given up.
const RESTLESS: &str = "refresh: {interval: 1h, min_spacing: 10ms, wait: 100ms, timeout: 100ms}";

/// How many questions a name server that never answers has been asked; `None` where this user may not be one.
fn mute_name_server() -> Option<Arc<AtomicUsize>> {
    let socket = UdpSocket::bind((NAME_SERVER, 53)).ok()?;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    // It ends with the process of the test.
    std::thread::spawn(move || {
        while socket.recv_from(&mut [0; 512]).is_ok() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    Some(asked)
}

/// The binary where that name server is the one of the system.
fn beside_the_name_server(folder: &Path) -> Option<Command> {
    let file = folder.join("resolv.conf");
    std::fs::write(&file, format!("nameserver {NAME_SERVER}\n")).expect("written");
    portcullis_with_mounts("mount --bind \"$0\" /etc/resolv.conf", &file)
}

#[tokio::test]
async fn names_that_are_never_answered_cost_few_threads_and_no_other_issuers_rotation() {
    let (folder, server) = (folder(), KeyServer::start().await);
    let (Some(asked), Some(command)) = (mute_name_server(), beside_the_name_server(folder.path())) else {
        eprintln!("only root can have a name server and a mount namespace of its own: nothing was tried");
        return;
    };
    let names: Vec<String> = (0..REALMS).map(|number| format!("r{number}")).collect();
    let slow = "https://slow.example.com/{realm}";
    let keys = format!("jwks_uri: '{slow}/keys', realms: [{}], max_realms: {REALMS}", names.join(", "));
    let other = format!("jwks_uri: '{}'", server.http("/keys"));
    let known = key("known");
    server.always(Answer::keys(&[&known]));
    let providers = [provider("slow", slow, &keys, RESTLESS), provider("demo", ISSUER, &other, PROMPT)];
    let process = Process::serve_by(command, folder.path(), &providers).await;
    eventually("it serves", async || process.bearer(&known).await.is_allowed()).await;
    for name in &names {
        // No key of theirs will ever be seen: they are as good as unsigned.
        let token = token_of(&slow.replace("{realm}", name), &known, wall_time() + 600);
        tokio::spawn(process.token(token));
    }
    eventually("the name server is asked", async || asked.load(Ordering::SeqCst) > 0).await;
    let mut rotations = 0;
    eventually("realms' keys have been looked for several times", async || {
        let new = key(&format!("new-{rotations}"));
        server.always(Answer::keys(&[&new]));
        assert_eq!(process.bearer(&new).await.reason(), "ok", "at its first try, rotation {rotations}");
        let threads = process.threads();
        assert!(threads < 64, "{threads} threads, rotation {rotations}");
        rotations += 1;
        let page = process.admin("/metrics").await;
        let failed = |name: &String| {
            let labels = format!(r#"provider="slow/{name}",trigger="startup",outcome="failed""#);
            counted_in(&page, &format!("portcullis_jwks_fetches_total{{{labels}}}"))
        };
        rotations >= 20 && names.iter().map(failed).sum::<u64>() >= 4 * REALMS as u64
    })
    .await;
}
