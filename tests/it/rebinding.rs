//! Listeners that a reload of `portcullis serve` adds, changes, moves and takes away, under load.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream, UnixStream};

use crate::support::real::{Process, TIMEOUT, client, eventually, folder, free_address};

/// A gRPC listener that stays where the system has put it.
const GRPC: &str = "'127.0.0.1:0'";

struct Served {
    process: Process,
    file: PathBuf,
    key: SigningKey,
    grpc: SocketAddr,
    admin: SocketAddr,
    reloads: u64,
    _folder: tempfile::TempDir,
}

impl Served {
    async fn start(http: &[String]) -> Self {
        let folder = folder();
        let file = folder.path().join("portcullis.yaml");
        let key = SigningKey::generate("a", SigningAlgorithm::ES256);
        fs::write(&file, text(GRPC, http, &key)).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        let command = command.arg("serve").arg("--config").arg(&file);
        let mut process = Process::start("portcullis", command, folder.path());
        let serving = process.serving().await;
        let (grpc, admin) = (serving.grpc(), serving.admin());
        let mut served = Self { process, file, key, grpc, admin, reloads: 0, _folder: folder };
        eventually("it serves", TIMEOUT, async || {
            served.process.assert_running();
            client()
                .get(format!("http://{admin}/readyz"))
                .send()
                .await
                .ok()
                .filter(|page| page.status() == 200)
        })
        .await;
        served
    }

    /// Goes over to these gRPC and HTTP doors, and waits until it has.
    async fn change(&mut self, grpc: &str, http: &[String]) {
        self.write(grpc, http);
        self.reloads += 1;
        self.counted("applied", self.reloads).await;
    }

    fn write(&self, grpc: &str, http: &[String]) {
        fs::write(&self.file, text(grpc, http, &self.key)).expect("written");
        self.process.signal("HUP");
    }

    async fn counted(&self, outcome: &str, times: u64) {
        let sample = format!("portcullis_config_reloads_total{{outcome=\"{outcome}\"}} {times}\n");
        eventually("the reload", TIMEOUT, async || {
            let page = client().get(format!("http://{}/metrics", self.admin)).send().await.ok()?;
            page.text().await.ok()?.contains(&sample).then_some(())
        })
        .await;
    }

    fn token(&self) -> String {
        self.key.sign(&json!({
            "iss": "https://issuer.example.com", "aud": "orders-api", "sub": "alice", "exp": 4_000_000_000_i64
        }))
    }

    /// What this HTTP door says of a good token, on a connection of its own; 0 where there is none.
    async fn asked(&self, door: SocketAddr) -> u16 {
        let answer = client().get(format!("http://{door}/")).bearer_auth(self.token()).send().await;
        answer.map_or(0, |answer| answer.status().as_u16())
    }
}

fn text(grpc: &str, http: &[String], key: &SigningKey) -> String {
    let keys = json!({"keys": [key.public_jwk()]});
    format!(
        "listen:
  ext_authz: {grpc}
  forward_auth: [{}]
  admin: '127.0.0.1:0'
providers:
  - {{name: p, issuer: 'https://issuer.example.com', audiences: [orders-api], jwks: {keys}}}
",
        http.join(", ")
    )
}

fn door(address: SocketAddr, more: &str) -> String {
    format!("{{address: '{address}', profile: envoy{more}}}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_exchanges_listeners_and_loses_no_request() {
    let (stays, moves_from, moves_to) = (free_address(), free_address(), free_address());
    let mut served = Served::start(&[door(stays, ""), door(moves_from, "")]).await;
    assert_eq!(served.asked(stays).await, 200);
    // One client that keeps its connection, of HTTP/2, which says which requests it still takes when it ends; and one with
    // a new connection for each request.
    let (done, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = [false, true].map(|fresh| {
        let (done, asked, token) = (Arc::clone(&done), Arc::clone(&asked), served.token());
        tokio::spawn(async move {
            let builder = reqwest::Client::builder().no_proxy().timeout(TIMEOUT);
            let builder =
                if fresh { builder.pool_max_idle_per_host(0) } else { builder.http2_prior_knowledge() };
            let client = builder.build().expect("plain");
            while !done.load(Ordering::Relaxed) {
                let answer = client.get(format!("http://{stays}/")).bearer_auth(&token).send().await;
                assert_eq!(answer.expect("answered").status(), 200);
                asked.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    for round in 0..6 {
        let before = asked.load(Ordering::Relaxed);
        let changed = if round % 2 == 0 { ", client_headers: overwrite" } else { "" };
        let moved = if round % 2 == 0 { moves_to } else { moves_from };
        served.change(GRPC, &[door(moved, ""), door(stays, changed)]).await;
        assert_eq!(served.asked(moved).await, 200, "round {round}");
        let gone = if round % 2 == 0 { moves_from } else { moves_to };
        eventually("the place is free", TIMEOUT, async || TcpListener::bind(gone).await.ok()).await;
        eventually("there is load", TIMEOUT, async || {
            (asked.load(Ordering::Relaxed) > before + 20).then_some(())
        })
        .await;
    }
    done.store(true, Ordering::Relaxed);
    for load in load {
        load.await.expect("no request was lost");
    }
    assert!(TcpStream::connect(served.grpc).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_cannot_be_had_changes_nothing() {
    let stays = free_address();
    let served = Served::start(&[door(stays, "")]).await;
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("free");
    let taken_at = taken.local_addr().expect("bound");
    served.write(GRPC, &[door(taken_at, "")]);
    served.counted("rejected", 1).await;
    assert_eq!(served.asked(stays).await, 200, "it serves where it did");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_file_comes_beside_an_address_changes_its_mode_and_goes() {
    let mut served = Served::start(&[]).await;
    let path: PathBuf = served.file.with_file_name("authz.sock");
    let listed = |mode: &str| format!("[{GRPC}, {{address: 'unix:{}', mode: '{mode}'}}]", path.display());
    let mode = |path: &Path| {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let found = fs::symlink_metadata(path).expect("there");
        (found.permissions().mode() & 0o777, found.ino())
    };
    let (first, second) = (listed("0600"), listed("0660"));
    served.change(&first, &[]).await;
    assert!(UnixStream::connect(&path).await.is_ok());
    let (open_to, inode) = mode(&path);
    assert_eq!(open_to, 0o600);
    served.change(&second, &[]).await;
    assert_eq!(mode(&path), (0o660, inode), "the same file");
    assert!(UnixStream::connect(&path).await.is_ok());
    served.change(GRPC, &[]).await;
    eventually("it is gone", Duration::from_secs(10), async || (!path.exists()).then_some(())).await;
    assert!(TcpStream::connect(served.grpc).await.is_ok());
}
