//! Socket files: own, foreign and stale ones, and their mode.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use portcullis::app::App;
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use portcullis::config::{BindAddress, Config};
use tokio::net::UnixStream;

use crate::support::{config, fixed_clock, inline, provider};

fn listening_at(path: &Path, mode: Option<u32>) -> Config {
    let key = SigningKey::generate("a", SigningAlgorithm::ES256);
    let mut config = config(vec![inline(provider("p", "https://issuer.example.com"), &[key.public_jwk()])]);
    config.listen.ext_authz[0].address = BindAddress::Unix { path: path.to_owned(), mode };
    config
}

#[tokio::test]
async fn a_process_removes_only_its_own_socket_file() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("authz.sock");
    let ours = App::bind(listening_at(&path, None), fixed_clock()).await.expect("bound");
    fs::remove_file(&path).expect("there");
    let successor = std::os::unix::net::UnixListener::bind(&path).expect("bound");
    drop(ours);
    assert!(UnixStream::connect(&path).await.is_ok(), "the successor's file is still there");
    drop(successor);
    let ours = App::bind(listening_at(&path, None), fixed_clock()).await.expect("a stale one is replaced");
    drop(ours);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_listener_whose_backlog_is_full_is_not_stale() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("authz.sock");
    let busy = std::os::unix::net::UnixListener::bind(&path).expect("bound");
    let mut waiting = 0;
    let full = loop {
        match UnixStream::connect(&path).await {
            Ok(_) => waiting += 1,
            Err(error) => break error,
        }
        assert!(waiting < 100_000, "unbounded backlog");
    };
    assert_eq!(full.kind(), std::io::ErrorKind::WouldBlock);
    let refused = App::bind(listening_at(&path, None), fixed_clock()).await.expect_err("it listens");
    assert!(refused.to_string().contains("another process listens on it"), "{refused}");
    drop(busy);
}

#[tokio::test]
async fn a_socket_file_never_has_more_permissions_than_its_mode() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("authz.sock");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut seen = 0;
            while !done.load(Ordering::Relaxed) {
                if let Ok(found) = fs::symlink_metadata(&path) {
                    assert_eq!(found.permissions().mode() & 0o777 & !0o600, 0);
                    seen += 1;
                }
            }
            seen
        });
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let config = listening_at(&path, Some(0o600));
        std::thread::spawn(move || {
            for _ in 0..300 {
                runtime
                    .block_on(async { drop(App::bind(config.clone(), fixed_clock()).await.expect("bound")) });
            }
        })
        .join()
        .expect("no panic");
        done.store(true, Ordering::Relaxed);
        assert!(watcher.join().expect("no panic") > 0, "the mode was never read");
    });
}
