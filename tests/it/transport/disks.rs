//! A disk that does not answer: a FUSE file system without a server. Opening a file blocks until it is unmounted.

use std::path::Path;
use std::process::Command;

use super::answer::Answer;
use super::env::{IMMEDIATE_REFRESH, ISSUER, eventually, folder, key, provider, token_of, wall_time};
use super::key_server::KeyServer;
use super::process::{Process, portcullis_with_mounts};

const REALMS: usize = 600;

/// The binary with such a disk at this path. The process itself holds the FUSE descriptor and never serves it.
fn command_with_hanging_disk(path: &Path) -> Option<Command> {
    let mount = "mount -i -t fuse -o fd=9,rootmode=40000,user_id=0,group_id=0 mute \"$0\"";
    portcullis_with_mounts(&format!("exec 9<>/dev/fuse && {mount}"), path)
}

#[tokio::test]
async fn snapshots_on_a_hanging_disk_delay_no_request_and_do_not_affect_other_issuers() {
    let (folder, server) = (folder(), KeyServer::start().await);
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).expect("the folder can be written to");
    let Some(command) = command_with_hanging_disk(&disk) else {
        eprintln!("skipped: a file system cannot be mounted");
        return;
    };
    let known = key("known");
    server.respond_with(Answer::keys(&[&known]));
    let names: Vec<String> = (0..REALMS).map(|number| format!("r{number}")).collect();
    let url = server.http("/realms/{realm}");
    let refresh = IMMEDIATE_REFRESH.replace('{', &format!("{{snapshot_dir: '{}', ", disk.display()));
    let keys = format!("jwks_uri: '{url}', realms: [{}], max_realms: {REALMS}", names.join(", "));
    // By host name, which needs a lookup.
    let other = format!("jwks_uri: 'http://localhost:{}/keys'", server.address().port());
    let providers =
        [provider("many", &url, &keys, &refresh), provider("demo", ISSUER, &other, IMMEDIATE_REFRESH)];
    let process = Process::serve_by(command, folder.path(), &providers).await;
    eventually("the key is known", async || process.bearer(&known).await.is_allowed()).await;
    for name in &names {
        let token = token_of(&url.replace("{realm}", name), &key("known"), wall_time() + 600);
        tokio::spawn(process.token(token));
    }
    eventually("the keys of every realm are requested", async || {
        let requests = server.requests();
        names.iter().all(|name| requests.iter().any(|one| one.target.ends_with(&format!("/{name}"))))
    })
    .await;
    // A fetched realm has its keys without a snapshot.
    let token = token_of(&url.replace("{realm}", "r0"), &known, wall_time() + 600);
    assert_eq!(process.token(token).await.reason(), "ok");
    for rotation in 0..20 {
        let new = key(&format!("new-{rotation}"));
        server.respond_with(Answer::keys(&[&new]));
        assert_eq!(process.bearer(&new).await.reason(), "ok", "at its first try, rotation {rotation}");
        assert_eq!(process.admin("/livez").await, "ok\n");
        let threads = process.threads();
        assert!(threads < 64, "{threads} threads, rotation {rotation}");
    }
}
