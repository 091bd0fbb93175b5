//! `portcullis serve` as a process of its own, whose environment a test decides: no variable of a proxy
//! is passed on from the machine.

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

use super::house::{ISSUER, PATIENCE, eventually, text, token_of, wall_time};
use crate::support::serving::Serving;
use crate::support::{Answer, Ask};

/// Names of variables by which programs are told of proxies.
const OF_PROXIES: [&str; 4] = ["http_proxy", "https_proxy", "all_proxy", "no_proxy"];

/// The binary, with no variable of a proxy but these.
pub fn portcullis(environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    for name in OF_PROXIES {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command.env_remove("PORTCULLIS_LOG").envs(environment.iter().copied());
    command
}

/// The binary in a mount namespace of its own, made by these commands of a shell, in which `$0` is this path; `None`
/// where this user may not make one.
pub fn portcullis_with_mounts(commands: &str, path: &Path) -> Option<Command> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &format!("{commands} && exec \"$@\"")]).arg(path);
    let mut tried = Command::new("unshare");
    let tried = tried.args(command.get_args()).arg("true").output().ok()?;
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
struct Ends(Child);

/// A service in a process, killed when dropped.
pub struct Process {
    child: Ends,
    channel: Channel,
    file: PathBuf,
    serving: Serving,
    log: Option<JoinHandle<String>>,
}

impl Drop for Ends {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

impl Process {
    /// Serves these providers, whose configuration is put into this folder.
    pub async fn serve(folder: &Path, providers: &[String], environment: &[(&str, &str)]) -> Self {
        Self::serve_by(portcullis(environment), folder, providers).await
    }

    /// The same by this command, which becomes the binary once it has the arguments of one.
    pub async fn serve_by(mut command: Command, folder: &Path, providers: &[String]) -> Self {
        let file = folder.join("portcullis.yaml");
        std::fs::write(&file, text(providers)).expect("written");
        command.args(["serve", "--config"]).arg(&file).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let stderr = child.stderr.take().expect("piped");
        let (tell, told) = oneshot::channel();
        let log = std::thread::spawn(move || read(stderr, tell));
        // From here on it ends, whatever becomes of it.
        let ends = Ends(child);
        let serving = timeout(PATIENCE, told).await.expect("it says where it listens in time");
        let serving = serving.expect("it serves");
        let endpoint = Endpoint::try_from(format!("http://{}", serving.grpc())).expect("a URL");
        Self { child: ends, channel: endpoint.connect_lazy(), file, serving, log: Some(log) }
    }

    /// Asks about a good token, but for whose key it is.
    pub async fn bearer(&self, key: &SigningKey) -> Answer {
        self.token(token_of(ISSUER, key, wall_time() + 600)).await
    }

    /// Asks about a token.
    pub fn token(&self, token: String) -> impl Future<Output = Answer> + Send + use<> {
        let check = Ask::default().header("authorization", format!("Bearer {token}")).into_check();
        let mut client = AuthorizationClient::new(self.channel.clone());
        async move {
            let answer = timeout(PATIENCE, client.check(check)).await.expect("answered in time");
            Answer::read(answer.expect("answered").into_inner())
        }
    }

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.0.id())).expect("it runs");
        let threads = status.lines().find_map(|line| line.strip_prefix("Threads:"));
        threads.and_then(|count| count.trim().parse().ok()).expect("a count")
    }

    /// A page of the operator's door.
    pub async fn admin(&self, path: &str) -> String {
        let url = format!("http://{}{path}", self.serving.admin());
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client");
        client.get(url).send().await.expect("answered").text().await.expect("text")
    }

    /// Why the last fetch failed; empty where it did not.
    pub async fn last_error(&self) -> String {
        let page: Value = serde_json::from_str(&self.admin("/keys").await).expect("JSON");
        page["providers"][0]["last_error"].as_str().unwrap_or_default().to_owned()
    }

    /// Exchanges its configuration file for one with these providers.
    pub fn change(&self, providers: &[String]) {
        std::fs::write(&self.file, text(providers)).expect("written");
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: &str) {
        let id = self.child.0.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// Tells it to end; gives the exit code and everything that it logged.
    pub async fn ends(self) -> (Option<i32>, String) {
        self.signal("-TERM");
        self.ended().await
    }

    /// The same of one that has been told already.
    pub async fn ended(mut self) -> (Option<i32>, String) {
        let mut status = None;
        eventually("it ends", async || {
            status = self.child.0.try_wait().expect("it is ours");
            status.is_some()
        })
        .await;
        let status = status.expect("it has ended");
        let log = self.log.take().expect("not taken before").join().expect("the log is text");
        (status.code(), log)
    }
}

/// Everything that it logs. Tells where it listens as soon as it says so.
fn read(stderr: ChildStderr, tell: oneshot::Sender<Serving>) -> String {
    let (mut log, mut tell) = (String::new(), Some(tell));
    for line in BufReader::new(stderr).lines() {
        let line = line.expect("the log is text");
        if let Some(serving) = Serving::read(&line)
            && let Some(tell) = tell.take()
        {
            // Who gave up waiting has failed.
            let _told = tell.send(serving);
        }
        log.push_str(&line);
        log.push('\n');
    }
    log
}
