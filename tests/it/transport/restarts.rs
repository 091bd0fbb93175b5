//! Restarts and processes beside one another as they are: the binary, killed without a word, and a folder of snapshots
//! that outlives it. Keys that were withdrawn verify nothing, whoever was running when that was said.

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
use super::house::{ISSUER, PROMPT, counted_in, eventually, folder, key, provider, token_of, wall_time};
use super::key_server::KeyServer;
use super::process::Process;

/// The provider `demo`, whose snapshots are in a folder of their own below this one.
fn keeping(server: &KeyServer, folder: &Path) -> Vec<String> {
    let refresh = PROMPT.replace('{', &format!("{{snapshot_dir: '{}', ", folder.join("kept").display()));
    vec![provider("demo", ISSUER, &format!("jwks_uri: '{}'", server.http("/keys")), &refresh)]
}

async fn serve(server: &KeyServer, folder: &Path) -> Process {
    Process::serve(folder, &keeping(server, folder), &[]).await
}

async fn waiting(process: &Process) -> u64 {
    counted_in(&process.admin("/metrics").await, r#"portcullis_jwks_waiters{provider="demo"}"#)
}

#[tokio::test]
async fn a_key_that_was_withdrawn_while_nobody_ran_verifies_nothing_at_a_start_however_slow_the_issuer() {
    let (folder, server) = (folder(), KeyServer::start().await);
    let (withdrawn, new, gate) = (key("withdrawn"), key("new"), Gate::new());
    server.always(Answer::keys(&[&withdrawn]));
    let process = serve(&server, folder.path()).await;
    eventually("it serves", async || process.bearer(&withdrawn).await.is_allowed()).await;
    eventually("a snapshot", async || Kept::read(&folder.path().join("kept/demo.json")).is_some()).await;
    drop(process);
    server.always(Answer::keys(&[&new]).behind(&gate));
    let before = server.requests().len();
    let process = serve(&server, folder.path()).await;
    server.request(before + 1).await;
    let asked: Vec<_> = (0..30)
        .map(|_| tokio::spawn(process.token(token_of(ISSUER, &withdrawn, wall_time() + 600))))
        .collect();
    eventually("all of them wait", async || waiting(&process).await == 30).await;
    gate.open();
    for asked in asked {
        assert_eq!(asked.await.expect("answered").reason(), "key_unknown");
    }
    assert_eq!(process.bearer(&new).await.reason(), "ok");
}

/// A snapshot that is whole.
#[derive(Debug, PartialEq)]
struct Kept {
    kids: Vec<String>,
}

#[derive(Deserialize)]
struct Sealed<'a> {
    sha256: String,
    #[serde(borrow)]
    content: &'a RawValue,
}

impl Kept {
    /// `None` where there is no file.
    ///
    /// # Panics
    /// It is not as it was written.
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

    /// Of a set that has one key, named by the set's number.
    fn number(&self) -> usize {
        assert_eq!(self.kids.len(), 1, "a withdrawn key is with it: {:?}", self.kids);
        self.kids[0].parse().expect("a number")
    }
}

/// Looks at a snapshot without a break until it is told to stop.
struct Watch {
    done: Arc<AtomicBool>,
    looks: Arc<AtomicUsize>,
    watching: JoinHandle<()>,
}

impl Watch {
    /// # Panics
    /// When it stops: the file was not whole at any time, or went back, or was gone.
    fn over(file: PathBuf) -> Self {
        let (done, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (is_done, looked) = (Arc::clone(&done), Arc::clone(&looks));
        let watching = std::thread::spawn(move || {
            let mut newest = None;
            while !is_done.load(Ordering::SeqCst) {
                let kept = Kept::read(&file).map(|kept| kept.number());
                assert!(kept >= newest, "{newest:?} was there before {kept:?}");
                newest = kept;
                looked.fetch_add(1, Ordering::SeqCst);
                std::thread::yield_now();
            }
        });
        Self { done, looks, watching }
    }

    fn stop(self) {
        self.done.store(true, Ordering::SeqCst);
        self.watching.join().expect("the file was whole at any time and never older than before");
        assert!(self.looks.load(Ordering::SeqCst) > 100);
    }
}

/// The set of this number has its key alone: the key before it is withdrawn.
fn numbered(number: usize) -> SigningKey {
    key(&number.to_string())
}

#[tokio::test]
async fn of_two_processes_on_one_folder_one_killed_while_it_writes_leaves_a_whole_file_that_never_goes_back()
{
    let (folder, server) = (folder(), KeyServer::start().await);
    let file = folder.path().join("kept/demo.json");
    let (mut current, mut withdrawn) = (numbered(0), numbered(0));
    server.always(Answer::keys(&[&current]));
    let mut first = serve(&server, folder.path()).await;
    eventually("it serves", async || first.bearer(&current).await.is_allowed()).await;
    let watch = Watch::over(file.clone());
    for number in 1..=50 {
        let second = serve(&server, folder.path()).await;
        eventually("it serves", async || second.bearer(&current).await.is_allowed()).await;
        let before = server.requests().len();
        withdrawn = std::mem::replace(&mut current, numbered(number));
        server.always(Answer::keys(&[&current]));
        let token = || token_of(ISSUER, &current, wall_time() + 600);
        let (at_first, at_second) = (tokio::spawn(first.token(token())), tokio::spawn(second.token(token())));
        // Killed at another moment each time: while it fetches, as it begins to write, and once one of the two has.
        match number % 3 {
            0 => drop(server.request(before + 1).await),
            1 => assert_eq!(at_first.await.expect("answered").reason(), "ok", "at its first try"),
            _ => {
                eventually("a new file", async || {
                    Kept::read(&file).is_some_and(|kept| kept.number() == number)
                })
                .await
            }
        }
        drop(std::mem::replace(&mut first, second));
        assert_eq!(at_second.await.expect("answered").reason(), "ok", "at its first try");
        assert_eq!(first.bearer(&withdrawn).await.reason(), "key_unknown");
        eventually("what was confirmed is kept", async || {
            Kept::read(&file).is_some_and(|kept| kept.number() == number)
        })
        .await;
    }
    drop(first);
    watch.stop();
    // In an outage the next one has what was confirmed last and nothing that was withdrawn.
    server.always(Answer::status(503));
    let last = serve(&server, folder.path()).await;
    eventually("it serves", async || last.bearer(&current).await.is_allowed()).await;
    assert_eq!(last.bearer(&withdrawn).await.reason(), "keys_unavailable");
}
