//! What a server takes when nothing asks: its size, the time until it is ready, its memory; and its memory with many tokens
//! in its cache. Fails if it is more than it may be.
//!
//!     footprint PORTCULLIS
//!
//! The server runs on core 0; start this on another one.

use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use portcullis_benches::load::Load;
use portcullis_benches::process::{Server, free};
use portcullis_benches::request::{check, claims};
use portcullis_issuer::{Issuer, SigningAlgorithm, SigningKey, with_claim};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

type Failure = Box<dyn Error + Send + Sync>;

/// What it may be at most. The goals are 15 MB for the binary and when idle, and 120 MB with the tokens.
const MAX_BINARY_BYTES: u64 = 18_500_000;
const MAX_IDLE_KIB: u64 = 17 * 1024;
const MAX_FULL_KIB: u64 = 120_000_000 / 1024;

const TOKENS: usize = 100_000;
const STARTS: usize = 5;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let program = std::env::args().nth(1).ok_or("usage: footprint PORTCULLIS")?;
    let folder = std::env::temp_dir().join(format!("portcullis-footprint-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = measure(&program, &folder).await;
    std::fs::remove_dir_all(&folder)?;
    result
}

async fn measure(program: &str, folder: &Path) -> Result<(), Failure> {
    let issuer = Issuer::start().await?;
    let key = SigningKey::generate("ed", SigningAlgorithm::EdDSA);
    issuer.publish(&[&key]);
    let (mut ready, mut idle) = (Vec::new(), Vec::new());
    for start in 0..STARTS {
        let (server, address, took) = started(program, folder, &issuer, start).await?;
        ready.push(took);
        tokio::time::sleep(Duration::from_secs(1)).await;
        idle.push(server.resident_kib());
        if start + 1 == STARTS {
            fill(address, &issuer, &key).await?;
            let full = server.resident_kib();
            ready.sort_unstable();
            idle.sort_unstable();
            let (ready, idle) = (ready[STARTS / 2], idle[STARTS / 2]);
            return judge(std::fs::metadata(program)?.len(), ready, idle, full);
        }
    }
    Ok(())
}

/// A server that is ready, the address of its gRPC listener, and how long it took.
async fn started(
    program: &str,
    folder: &Path,
    issuer: &Issuer,
    number: usize,
) -> Result<(Server, SocketAddr, Duration), Failure> {
    let (address, admin) = (free()?, free()?);
    let file = folder.join(format!("{number}.yaml"));
    let text = format!(
        "listen: {{ext_authz: {address}, admin: {admin}}}
token_cache: {{entries: {TOKENS}}}
providers:
  - name: sso
    issuer: {}
    audiences: [orders-api]
    claim_headers: {{x-auth-subject: sub, x-auth-tenant: tenant_id}}
",
        issuer.issuer()
    );
    std::fs::write(&file, text)?;
    // As in a container, whose configuration was written before: one that may still be being written is read twice.
    let link = folder.join(format!("{number}.link"));
    tokio::time::sleep(Duration::from_millis(20)).await;
    std::os::unix::fs::symlink(&file, &link)?;
    let began = Instant::now();
    let server = Server::start(0, program, &["serve", "--config", link.to_str().ok_or("a path of text")?])?;
    while !is_ready(admin).await {
        if began.elapsed() > Duration::from_secs(10) {
            return Err("it is not ready after 10 s".into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok((server, address, began.elapsed()))
}

async fn is_ready(admin: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(admin).await else { return false };
    let request = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let mut answer = Vec::new();
    let answered = async {
        stream.write_all(request).await?;
        stream.read_to_end(&mut answer).await
    };
    answered.await.is_ok() && answer.starts_with(b"HTTP/1.1 200 ")
}

/// Sends as many tokens as the cache holds, each once.
async fn fill(address: SocketAddr, issuer: &Issuer, key: &SigningKey) -> Result<(), Failure> {
    let claims = claims(issuer, SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    let token = |number| key.sign(&with_claim(claims.clone(), "jti", format!("{number:032x}")));
    println!("a token has {} bytes", token(0).len());
    let bodies = (0..TOKENS).map(|number| check("/orders/1", &token(number), 0)).collect();
    let load = Load { address, connections: 4, streams: 8, bodies: Arc::new(bodies), expected: 0 };
    load.once().await?;
    Ok(())
}

fn judge(binary: u64, ready: Duration, idle: u64, full: u64) -> Result<(), Failure> {
    let mib = |kib: u64| kib as f64 / 1024.0;
    println!("binary             {:.1} MB", binary as f64 / 1e6);
    println!("ready after        {:.0} ms", ready.as_secs_f64() * 1e3);
    println!("idle               {:.1} MiB", mib(idle));
    println!("{TOKENS} tokens      {:.1} MiB", mib(full));
    let limits = [
        ("the binary, in bytes", binary, MAX_BINARY_BYTES),
        ("idle memory, in KiB", idle, MAX_IDLE_KIB),
        ("memory with tokens, in KiB", full, MAX_FULL_KIB),
    ];
    let exceeded = limits.iter().find(|(_, measured, most)| measured > most);
    exceeded
        .map_or(Ok(()), |(what, measured, most)| Err(format!("{what}: {measured}, at most {most}").into()))
}
