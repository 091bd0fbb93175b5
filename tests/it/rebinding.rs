//! A reload of `portcullis serve` adds, changes, moves and removes listeners under load.

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

/// A gRPC listener on a port that the system chooses.
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
        eventually("the service is ready", TIMEOUT, async || {
            served.process.assert_running();
            client()
                .get(format!("http://{admin}/readyz"))
                .send()
                .await
                .ok()
                .filter(|answer| answer.status() == 200)
        })
        .await;
        served
    }

    /// Changes to these gRPC and HTTP listeners and waits until they are applied.
    async fn reload(&mut self, grpc: &str, http: &[String]) {
        self.write(grpc, http);
        self.reloads += 1;
        self.wait_for_reloads("applied", self.reloads).await;
    }

    fn write(&self, grpc: &str, http: &[String]) {
        fs::write(&self.file, text(grpc, http, &self.key)).expect("written");
        self.process.signal("HUP");
    }

    async fn wait_for_reloads(&self, outcome: &str, times: u64) {
        let sample = format!("portcullis_config_reloads_total{{outcome=\"{outcome}\"}} {times}\n");
        eventually("the reload is counted", TIMEOUT, async || {
            let answer = client().get(format!("http://{}/metrics", self.admin)).send().await.ok()?;
            answer.text().await.ok()?.contains(&sample).then_some(())
        })
        .await;
    }

    fn token(&self) -> String {
        self.key.sign(&json!({
            "iss": "https://issuer.example.com", "aud": "orders-api", "sub": "alice", "exp": 4_000_000_000_i64
        }))
    }

    /// The status of this HTTP listener for a valid token on a new connection; 0 if the connection fails.
    async fn status(&self, listener: SocketAddr) -> u16 {
        let answer = client().get(format!("http://{listener}/")).bearer_auth(self.token()).send().await;
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

fn listener(address: SocketAddr, options: &str) -> String {
    format!("{{address: '{address}', profile: envoy{options}}}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_replaces_listeners_and_loses_no_request() {
    let (kept, moves_from, moves_to) = (free_address(), free_address(), free_address());
    let mut served = Served::start(&[listener(kept, ""), listener(moves_from, "")]).await;
    assert_eq!(served.status(kept).await, 200);
    // One client keeps an HTTP/2 connection (GOAWAY names the last request that is answered), the other opens a connection
    // for each request.
    let (done, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = [false, true].map(|new_connections| {
        let (done, answered, token) = (Arc::clone(&done), Arc::clone(&answered), served.token());
        tokio::spawn(async move {
            let builder = reqwest::Client::builder().no_proxy().timeout(TIMEOUT);
            let builder = if new_connections {
                builder.pool_max_idle_per_host(0)
            } else {
                builder.http2_prior_knowledge()
            };
            let client = builder.build().expect("plain");
            while !done.load(Ordering::Relaxed) {
                let answer = client.get(format!("http://{kept}/")).bearer_auth(&token).send().await;
                assert_eq!(answer.expect("answered").status(), 200);
                answered.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    for round in 0..6 {
        let before = answered.load(Ordering::Relaxed);
        let changed = if round % 2 == 0 { ", client_headers: overwrite" } else { "" };
        let moved = if round % 2 == 0 { moves_to } else { moves_from };
        served.reload(GRPC, &[listener(moved, ""), listener(kept, changed)]).await;
        assert_eq!(served.status(moved).await, 200, "round {round}");
        let removed = if round % 2 == 0 { moves_from } else { moves_to };
        eventually("the address is free", TIMEOUT, async || TcpListener::bind(removed).await.ok()).await;
        eventually("requests are answered", TIMEOUT, async || {
            (answered.load(Ordering::Relaxed) > before + 20).then_some(())
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
async fn an_address_that_cannot_be_bound_changes_nothing() {
    let kept = free_address();
    let served = Served::start(&[listener(kept, "")]).await;
    let occupied = TcpListener::bind("127.0.0.1:0").await.expect("free");
    let occupied_address = occupied.local_addr().expect("bound");
    served.write(GRPC, &[listener(occupied_address, "")]);
    served.wait_for_reloads("rejected", 1).await;
    assert_eq!(served.status(kept).await, 200, "the old listener serves");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_file_is_added_changes_its_mode_and_is_removed() {
    let mut served = Served::start(&[]).await;
    let path: PathBuf = served.file.with_file_name("authz.sock");
    let listeners = |mode: &str| format!("[{GRPC}, {{address: 'unix:{}', mode: '{mode}'}}]", path.display());
    let mode = |path: &Path| {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let metadata = fs::symlink_metadata(path).expect("the file exists");
        (metadata.permissions().mode() & 0o777, metadata.ino())
    };
    let (first, second) = (listeners("0600"), listeners("0660"));
    served.reload(&first, &[]).await;
    assert!(UnixStream::connect(&path).await.is_ok());
    let (first_mode, inode) = mode(&path);
    assert_eq!(first_mode, 0o600);
    served.reload(&second, &[]).await;
    assert_eq!(mode(&path), (0o660, inode), "the same file");
    assert!(UnixStream::connect(&path).await.is_ok());
    served.reload(GRPC, &[]).await;
    eventually("the socket file is removed", Duration::from_secs(10), async || {
        (!path.exists()).then_some(())
    })
    .await;
    assert!(TcpStream::connect(served.grpc).await.is_ok());
}
