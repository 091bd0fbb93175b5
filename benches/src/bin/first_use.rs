//! How long requests that need no verification take while others bring tokens whose signatures are verified on the same
//! core: one after the other, and many at once.
//!
//!     first_use PORTCULLIS
//!
//! The server runs on core 0; start this on another one.

use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use portcullis_benches::load::Load;
use portcullis_benches::process::{Server, free};
use portcullis_benches::request::{check, claims};
use portcullis_issuer::{Issuer, SigningAlgorithm, SigningKey, with_claim};

type Failure = Box<dyn Error + Send + Sync>;

const TIME: Duration = Duration::from_secs(4);

/// Requests a second that need no verification, whose latency is measured.
const MEASURED: u32 = 500;

/// New tokens a second, and how many of them arrive together.
const NEW: [(u32, u32); 6] = [(0, 1), (500, 1), (2_000, 1), (500, 10), (500, 100), (2_000, 100)];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let program = std::env::args().nth(1).ok_or("usage: first_use PORTCULLIS")?;
    let folder = std::env::temp_dir().join(format!("portcullis-first-use-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = measure(&program, &folder).await;
    std::fs::remove_dir_all(&folder)?;
    result
}

async fn measure(program: &str, folder: &Path) -> Result<(), Failure> {
    let issuer = Issuer::start().await?;
    let keys = [("rs", SigningAlgorithm::RS256), ("es", SigningAlgorithm::ES256)]
        .map(|(kid, algorithm)| SigningKey::generate(kid, algorithm));
    issuer.publish(&keys.each_ref());
    let address = free()?;
    let file = folder.join("portcullis.yaml");
    // Without a cache every token is a new one. A rule lets the measured requests pass, whose tokens are not evaluated.
    let text = format!(
        "listen: {{ext_authz: {address}}}
token_cache: {{entries: 0}}
providers:
  - {{name: sso, issuer: '{}', audiences: [orders-api], jwks_uri: '{}'}}
rules:
  - {{name: open, match: {{path_prefix: /open}}, allow: anonymous}}
",
        issuer.issuer(),
        issuer.jwks_uri()
    );
    std::fs::write(&file, text)?;
    let _server = Server::start(0, program, &["serve", "--config", file.to_str().ok_or("a path of text")?])?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let claims = claims(&issuer, SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    println!("| new tokens a second | together | algorithm | connection | p50 ms | p99 ms | p99.9 ms |");
    println!("|---|---|---|---|---|---|---|");
    for key in &keys {
        let token = key.sign(&with_claim(claims.clone(), "jti", "one"));
        for (rate, together) in NEW {
            for connection in ["another", "the same"] {
                let took = latencies(address, &token, rate, together, connection).await?;
                let at = |share: f64| {
                    let took = took.get((took.len() as f64 * share) as usize);
                    took.map_or(0.0, |took| took.as_secs_f64() * 1e3)
                };
                let algorithm = if key.kid() == Some("rs") { "RS256" } else { "ES256" };
                println!(
                    "| {rate} | {together} | {algorithm} | {connection} | {:.2} | {:.2} | {:.2} |",
                    at(0.5),
                    at(0.99),
                    at(0.999)
                );
            }
        }
    }
    Ok(())
}

/// The latencies of the requests that need no verification.
async fn latencies(
    address: SocketAddr,
    token: &str,
    rate: u32,
    together: u32,
    connection: &str,
) -> Result<Vec<Duration>, Failure> {
    let load =
        |body: Bytes| Load { address, connections: 1, streams: 1, bodies: Arc::new(vec![body]), expected: 0 };
    let (cheap, new) = (load(check("/open", token, 0)), load(check("/orders", token, 0)));
    let cheap = cheap.connected().await?;
    let new = if connection == "another" { new.connected().await? } else { cheap.with_load(new) };
    let (measured, _new) =
        tokio::try_join!(cheap.at_rate(MEASURED, 1, TIME), new.at_rate(rate, together, TIME))?;
    Ok(measured)
}
