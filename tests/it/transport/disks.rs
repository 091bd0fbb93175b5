//! A disk that does not answer: a file system in user space whose program never does. Whoever opens a file there waits
//! until the file system is gone.

use std::path::Path;
use std::process::Command;

use super::answer::Answer;
use super::house::{ISSUER, PROMPT, eventually, folder, key, provider, token_of, wall_time};
use super::key_server::KeyServer;
use super::process::{Process, portcullis_with_mounts};

const REALMS: usize = 600;

/// The binary that sees such a disk at this path. The process itself holds the end at which nobody answers.
fn beside_a_mute_disk(path: &Path) -> Option<Command> {
    let mount = "mount -i -t fuse -o fd=9,rootmode=40000,user_id=0,group_id=0 mute \"$0\"";
    portcullis_with_mounts(&format!("exec 9<>/dev/fuse && {mount}"), path)
}

#[tokio::test]
async fn snapshots_on_a_disk_that_does_not_answer_hold_up_no_request_and_no_other_issuers_rotation() {
    let (folder, server) = (folder(), KeyServer::start().await);
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).expect("the folder can be written to");
    let Some(command) = beside_a_mute_disk(&disk) else {
        eprintln!("only root can mount a file system, and not everywhere: nothing was tried");
        return;
    };
    let known = key("known");
    server.always(Answer::keys(&[&known]));
    let names: Vec<String> = (0..REALMS).map(|number| format!("r{number}")).collect();
    let place = server.http("/realms/{realm}");
    let kept = PROMPT.replace('{', &format!("{{snapshot_dir: '{}', ", disk.display()));
    let keys = format!("jwks_uri: '{place}', realms: [{}], max_realms: {REALMS}", names.join(", "));
    // By its name, which has to be looked up.
    let other = format!("jwks_uri: 'http://localhost:{}/keys'", server.address().port());
    let providers = [provider("many", &place, &keys, &kept), provider("demo", ISSUER, &other, PROMPT)];
    let process = Process::serve_by(command, folder.path(), &providers).await;
    eventually("it serves", async || process.bearer(&known).await.is_allowed()).await;
    for name in &names {
        let token = token_of(&place.replace("{realm}", name), &key("known"), wall_time() + 600);
        tokio::spawn(process.token(token));
    }
    eventually("every realm is asked for its keys", async || {
        let requests = server.requests();
        names.iter().all(|name| requests.iter().any(|one| one.target.ends_with(&format!("/{name}"))))
    })
    .await;
    // Who was asked for its keys has them, snapshot or not.
    let token = token_of(&place.replace("{realm}", "r0"), &known, wall_time() + 600);
    assert_eq!(process.token(token).await.reason(), "ok");
    for rotation in 0..20 {
        let new = key(&format!("new-{rotation}"));
        server.always(Answer::keys(&[&new]));
        assert_eq!(process.bearer(&new).await.reason(), "ok", "at its first try, rotation {rotation}");
        assert_eq!(process.admin("/livez").await, "ok\n");
        let threads = process.threads();
        assert!(threads < 64, "{threads} threads, rotation {rotation}");
    }
}
