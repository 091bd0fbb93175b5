//! Runs `portcullis drill` as a subprocess.

use std::net::SocketAddr;
use std::process::{Command, Output};

use serde_json::Value;

use super::subprocess::StartCommand;

/// A short drill, long enough for every kind of rotation.
pub const SHORT: [&str; 6] = ["--duration", "4s", "--rotations", "5", "--attack-rate", "50"];

/// Runs a drill and waits for it to exit.
pub fn drill(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.arg("drill").args(arguments).run_and_read().expect("the binary runs")
}

/// Runs a drill on a blocking thread, so that the runtime of the test goes on.
pub async fn drill_async(arguments: Vec<String>) -> Output {
    tokio::task::spawn_blocking(move || drill(&arguments.iter().map(String::as_str).collect::<Vec<_>>()))
        .await
        .expect("does not panic")
}

/// The arguments of a drill of this target with a JSON result.
pub fn arguments(fixed: &[&str], target: String, issuer: SocketAddr) -> Vec<String> {
    let own = ["--format", "json", "--target", &target, "--issuer-address", &issuer.to_string()];
    fixed.iter().chain(&own).map(|argument| (*argument).to_owned()).collect()
}

/// Parses the JSON result.
pub fn result(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}\n{}", String::from_utf8_lossy(&output.stdout), text(&output.stderr))
    })
}

/// The bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
