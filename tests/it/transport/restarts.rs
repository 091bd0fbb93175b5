//! Restarts and concurrent processes with the real binary: it is killed, and its snapshots remain. Withdrawn keys verify
//! nothing, no matter which process observed the withdrawal.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis::commands::issuer::SigningKey;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::answer::{Answer, Gate};
use super::env::{
    IMMEDIATE_REFRESH, ISSUER, eventually, folder, key, metric_in, provider, token_of, wall_time,
};
use super::key_server::KeyServer;
use super::process::Process;

/// The provider `demo` with snapshots in a subfolder of this folder.
fn with_snapshots(server: &KeyServer, folder: &Path) -> Vec<String> {
    let refresh = IMMEDIATE_REFRESH
        .replace('{', &format!("{{snapshot_dir: '{}', ", folder.join("snapshots").display()));
    vec![provider("demo", ISSUER, &format!("jwks_uri: '{}'", server.http("/keys")), &refresh)]
}

async fn serve(server: &KeyServer, folder: &Path) -> Process {
    Process::serve(folder, &with_snapshots(server, folder), &[]).await
}

async fn waiting(process: &Process) -> u64 {
    metric_in(&process.admin("/metrics").await, r#"portcullis_jwks_waiters{provider="demo"}"#)
}

#[tokio::test]
async fn a_key_withdrawn_while_no_process_ran_verifies_nothing_at_a_start_with_a_slow_issuer() {
    let (folder, server) = (folder(), KeyServer::start().await);
    let (withdrawn, new, gate) = (key("withdrawn"), key("new"), Gate::new());
    server.respond_with(Answer::keys(&[&withdrawn]));
    let process = serve(&server, folder.path()).await;
    eventually("the key is known", async || process.bearer(&withdrawn).await.is_allowed()).await;
    eventually("a snapshot", async || Snapshot::read(&folder.path().join("snapshots/demo.json")).is_some())
        .await;
    drop(process);
    server.respond_with(Answer::keys(&[&new]).gated_by(&gate));
    let before = server.requests().len();
    let process = serve(&server, folder.path()).await;
    server.request(before + 1).await;
    let check: Vec<_> = (0..30)
        .map(|_| tokio::spawn(process.token(token_of(ISSUER, &withdrawn, wall_time() + 600))))
        .collect();
    eventually("all requests wait", async || waiting(&process).await == 30).await;
    gate.open();
    for check in check {
        assert_eq!(check.await.expect("answered").reason(), "key_unknown");
    }
    assert_eq!(process.bearer(&new).await.reason(), "ok");
}

/// A complete snapshot.
#[derive(Debug, PartialEq)]
struct Snapshot {
    kids: Vec<String>,
}

#[derive(Deserialize)]
struct Sealed<'a> {
    sha256: String,
    #[serde(borrow)]
    content: &'a RawValue,
}

impl Snapshot {
    /// `None` if there is no file.
    ///
    /// # Panics
    /// The file is damaged.
    fn read(file: &Path) -> Option<Self> {
        let text = fs::read_to_string(file).ok()?;
        let sealed: Sealed<'_> =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let digest = URL_SAFE_NO_PAD.encode(digest(&SHA256, sealed.content.get().as_bytes()));
        assert_eq!(sealed.sha256, digest, "{text}");
        let content: Value = serde_json::from_str(sealed.content.get()).expect("JSON");
        let keys = content["keys"].as_array().expect("a list").iter();
        Some(Self { kids: keys.map(|key| key["kid"].as_str().expect("a name").to_owned()).collect() })
    }

    /// The number of the set, whose only key has it as its `kid`.
    fn number(&self) -> usize {
        assert_eq!(self.kids.len(), 1, "a withdrawn key is in the snapshot: {:?}", self.kids);
        self.kids[0].parse().expect("a number")
    }
}

/// Reads a snapshot continuously until it is stopped.
struct SnapshotWatcher {
    done: Arc<AtomicBool>,
    reads: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl SnapshotWatcher {
    /// # Panics
    /// On `stop`, if the file was ever incomplete, older than before, or missing.
    fn start(file: PathBuf) -> Self {
        let (done, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (is_done, counter) = (Arc::clone(&done), Arc::clone(&reads));
        let thread = std::thread::spawn(move || {
            let mut newest = None;
            while !is_done.load(Ordering::SeqCst) {
                let snapshot = Snapshot::read(&file).map(|snapshot| snapshot.number());
                assert!(snapshot >= newest, "{newest:?} was read before {snapshot:?}");
                newest = snapshot;
                counter.fetch_add(1, Ordering::SeqCst);
                std::thread::yield_now();
            }
        });
        Self { done, reads, thread }
    }

    fn stop(self) {
        self.done.store(true, Ordering::SeqCst);
        self.thread.join().expect("the file was always complete and never older than before");
        assert!(self.reads.load(Ordering::SeqCst) > 100);
    }
}

/// The only key of the set with this number; the previous key is withdrawn.
fn numbered(number: usize) -> SigningKey {
    key(&number.to_string())
}

#[tokio::test]
async fn a_process_killed_while_two_write_one_folder_leaves_a_complete_file_that_is_never_older() {
    let (folder, server) = (folder(), KeyServer::start().await);
    let file = folder.path().join("snapshots/demo.json");
    let (mut current, mut withdrawn) = (numbered(0), numbered(0));
    server.respond_with(Answer::keys(&[&current]));
    let mut first = serve(&server, folder.path()).await;
    eventually("the key is known", async || first.bearer(&current).await.is_allowed()).await;
    let watch = SnapshotWatcher::start(file.clone());
    for number in 1..=50 {
        let second = serve(&server, folder.path()).await;
        eventually("the key is known", async || second.bearer(&current).await.is_allowed()).await;
        let before = server.requests().len();
        withdrawn = std::mem::replace(&mut current, numbered(number));
        server.respond_with(Answer::keys(&[&current]));
        let token = || token_of(ISSUER, &current, wall_time() + 600);
        let (at_first, at_second) = (tokio::spawn(first.token(token())), tokio::spawn(second.token(token())));
        // The process is killed during a fetch, at the start of a write, or after one process has written.
        match number % 3 {
            0 => drop(server.request(before + 1).await),
            1 => assert_eq!(at_first.await.expect("answered").reason(), "ok", "at its first try"),
            _ => {
                eventually("a new file", async || {
                    Snapshot::read(&file).is_some_and(|snapshot| snapshot.number() == number)
                })
                .await
            }
        }
        drop(std::mem::replace(&mut first, second));
        assert_eq!(at_second.await.expect("answered").reason(), "ok", "at its first try");
        assert_eq!(first.bearer(&withdrawn).await.reason(), "key_unknown");
        eventually("a snapshot of the confirmed set", async || {
            Snapshot::read(&file).is_some_and(|snapshot| snapshot.number() == number)
        })
        .await;
    }
    drop(first);
    watch.stop();
    // In an outage the next process has the last confirmed set without withdrawn keys.
    server.respond_with(Answer::status(503));
    let last = serve(&server, folder.path()).await;
    eventually("the key is known", async || last.bearer(&current).await.is_allowed()).await;
    assert_eq!(last.bearer(&withdrawn).await.reason(), "keys_unavailable");
}
