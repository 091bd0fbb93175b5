//! `portcullis serve` as a separate process whose environment a test sets: proxy variables of the machine are not
//! inherited.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread::JoinHandle;

use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use portcullis::commands::issuer::SigningKey;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use super::env::{ISSUER, TEST_TIMEOUT, eventually, text, token_of, wall_time};
use crate::support::serving::Serving;
use crate::support::subprocess::StartCommand;
use crate::support::{Answer, Ask};

/// The environment variables of proxies.
const PROXY_VARIABLES: [&str; 4] = ["http_proxy", "https_proxy", "all_proxy", "no_proxy"];

/// The binary with only these proxy variables.
pub fn portcullis(environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    for name in PROXY_VARIABLES {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command.env_remove("PORTCULLIS_LOG").envs(environment.iter().copied());
    command
}

/// The binary in a new mount namespace, set up by these shell commands, in which `$0` is this path; `None` if this user has
/// no permission.
pub fn portcullis_with_mounts(commands: &str, path: &Path) -> Option<Command> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &format!("{commands} && exec \"$@\"")]).arg(path);
    let mut tried = Command::new("unshare");
    let tried = tried.args(command.get_args()).arg("true").run_and_read().ok()?;
    if !tried.status.success() {
        return None;
    }
    let binary = portcullis(&[]);
    command.arg(binary.get_program());
    for (name, value) in binary.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Some(command)
}

/// Killed when dropped.
struct KillOnDrop(Child);

/// A service in a process, killed when dropped.
pub struct Process {
    child: KillOnDrop,
    channel: Channel,
    file: PathBuf,
    serving: Serving,
    log: Option<JoinHandle<String>>,
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

impl Process {
    /// Serves these providers with a configuration file in this folder.
    pub async fn serve(folder: &Path, providers: &[String], environment: &[(&str, &str)]) -> Self {
        Self::serve_by(portcullis(environment), folder, providers).await
    }

    /// The same with this command, to which the arguments of the binary are added.
    pub async fn serve_by(mut command: Command, folder: &Path, providers: &[String]) -> Self {
        let file = folder.join("portcullis.yaml");
        std::fs::write(&file, text(providers)).expect("written");
        command.args(["serve", "--config"]).arg(&file).stderr(Stdio::piped());
        let mut child = command.start().expect("the binary runs");
        let stderr = child.stderr.take().expect("piped");
        let (sender, addresses) = oneshot::channel();
        let log = std::thread::spawn(move || read(stderr, sender));
        // From here on the process is killed on every exit.
        let child = KillOnDrop(child);
        let serving = timeout(TEST_TIMEOUT, addresses).await.expect("the addresses are logged in time");
        let serving = serving.expect("the service starts");
        let endpoint = Endpoint::try_from(format!("http://{}", serving.grpc())).expect("a URL");
        Self { child, channel: endpoint.connect_lazy(), file, serving, log: Some(log) }
    }

    /// Checks a token with valid claims, signed by this key.
    pub async fn bearer(&self, key: &SigningKey) -> Answer {
        self.token(token_of(ISSUER, key, wall_time() + 600)).await
    }

    /// Checks a token.
    pub fn token(&self, token: String) -> impl Future<Output = Answer> + Send + use<> {
        let check = Ask::default().header("authorization", format!("Bearer {token}")).into_check();
        let mut client = AuthorizationClient::new(self.channel.clone());
        async move {
            let answer = timeout(TEST_TIMEOUT, client.check(check)).await.expect("answered in time");
            Answer::read(answer.expect("answered").into_inner())
        }
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.0.id())).expect("running");
        let threads = status.lines().find_map(|line| line.strip_prefix("Threads:"));
        threads.and_then(|count| count.trim().parse().ok()).expect("a count")
    }

    /// A page of the admin listener.
    pub async fn admin(&self, path: &str) -> String {
        let url = format!("http://{}{path}", self.serving.admin());
        let client = reqwest::Client::builder().no_proxy().timeout(TEST_TIMEOUT).build().expect("a client");
        client.get(url).send().await.expect("answered").text().await.expect("text")
    }

    /// The error of the last fetch; empty if it succeeded.
    pub async fn last_error(&self) -> String {
        let page: Value = serde_json::from_str(&self.admin("/keys").await).expect("JSON");
        page["providers"][0]["last_error"].as_str().unwrap_or_default().to_owned()
    }

    /// Replaces the configuration file by one with these providers.
    pub fn change(&self, providers: &[String]) {
        std::fs::write(&self.file, text(providers)).expect("written");
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: &str) {
        let id = self.child.0.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).run().expect("kill runs");
        assert!(sent.success());
    }

    /// Sends SIGTERM; returns the exit code and the log.
    pub async fn terminate(self) -> (Option<i32>, String) {
        self.signal("-TERM");
        self.wait().await
    }

    /// Waits for the exit; returns the exit code and the log.
    pub async fn wait(mut self) -> (Option<i32>, String) {
        let mut status = None;
        eventually("the process exits", async || {
            status = self.child.0.try_wait().expect("a child process");
            status.is_some()
        })
        .await;
        let status = status.expect("exited");
        let log = self.log.take().expect("not taken before").join().expect("the log is text");
        (status.code(), log)
    }
}

/// Returns the whole log. Sends the addresses once they are logged.
fn read(stderr: ChildStderr, sender: oneshot::Sender<Serving>) -> String {
    let (mut log, mut sender) = (String::new(), Some(sender));
    for line in BufReader::new(stderr).lines() {
        let line = line.expect("the log is text");
        if let Some(serving) = Serving::read(&line)
            && let Some(sender) = sender.take()
        {
            // The receiver is dropped after a timeout.
            let _sent = sender.send(serving);
        }
        log.push_str(&line);
        log.push('\n');
    }
    log
}
