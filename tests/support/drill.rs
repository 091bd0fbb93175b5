//! `portcullis drill`, run as a user does.

use std::net::SocketAddr;
use std::process::{Command, Output};

use serde_json::Value;

/// Time enough for every kind of rotation.
pub const SHORT: [&str; 6] = ["--duration", "4s", "--rotations", "5", "--attack-rate", "50"];

/// Runs a drill to its end.
pub fn drill(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.arg("drill").args(arguments).output().expect("the binary runs")
}

/// The same, beside what goes on in this test.
pub async fn drill_beside(arguments: Vec<String>) -> Output {
    tokio::task::spawn_blocking(move || drill(&arguments.iter().map(String::as_str).collect::<Vec<_>>()))
        .await
        .expect("does not panic")
}

/// The arguments of a drill of this target, as JSON.
pub fn arguments(fixed: &[&str], target: String, issuer: SocketAddr) -> Vec<String> {
    let own = ["--format", "json", "--target", &target, "--issuer-address", &issuer.to_string()];
    fixed.iter().chain(&own).map(|argument| (*argument).to_owned()).collect()
}

/// The result, which is JSON.
pub fn result(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}\n{}", String::from_utf8_lossy(&output.stdout), text(&output.stderr))
    })
}

/// What was written, as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
