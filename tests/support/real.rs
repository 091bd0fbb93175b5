//! What the tests against real parts share: where the parts are, processes that end with their test, the
//! built binary behind a real Envoy, and an upstream that answers with what it received.
//!
//! It looks at Portcullis from outside alone: its command line, its configuration and its answers. It never
//! lets a missing part pass for a passed test.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

pub use super::ports::free_address;
use super::serving::Serving;

/// How long a part may take to start or to stop; generous, since it only matters where something is wrong.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Where a real part is: in the place that `variable` names, or where `tests/run` puts it.
pub fn part(variable: &str, default: &str) -> PathBuf {
    let path = std::env::var_os(variable)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(default), PathBuf::from);
    assert!(
        path.exists(),
        "{} is missing: run tests/run, which installs it, or set {variable}",
        path.display()
    );
    path
}

/// A program of a Debian package that `tests/run` unpacked, with the libraries that came with it.
pub fn debian(program: &str) -> Command {
    let root = part("PORTCULLIS_TEST_PROXIES", ".cache/proxies");
    let mut command = Command::new(root.join(program));
    let architecture = format!("{}-linux-gnu", std::env::consts::ARCH);
    let libraries = ["usr/lib", "lib"].map(|folder| root.join(folder).join(&architecture));
    command.env("LD_LIBRARY_PATH", std::env::join_paths(libraries).expect("no colon in these paths"));
    command
}

/// A file of `deploy/` with other addresses. Each has to be there, and once.
pub fn shipped(file: &str, changes: &[(&str, String)]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file);
    let mut text = fs::read_to_string(path).expect("the shipped configuration");
    for (from, to) in changes {
        assert_eq!(text.matches(from).count(), 1, "{from} in {file}");
        text = text.replace(from, to);
    }
    text
}

/// The text of a shipped file with these lines of it, which stand there as comments, switched on. Each has to be
/// there, and once.
pub fn switched_on(text: &str, lines: &[&str]) -> String {
    let mut text = text.to_owned();
    for line in lines {
        let comment = format!("# {line}\n");
        assert_eq!(text.matches(&comment).count(), 1, "{comment}");
        text = text.replace(&comment, &format!("{line}\n"));
    }
    text
}

/// A folder of this test's own, on the disk of the build.
pub fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build folder can be written to")
}

/// Looks again and again until there is something to see.
pub async fn eventually<T>(what: &str, within: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let seen = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(within, seen).await.unwrap_or_else(|_| panic!("{what}: not within {within:?}"))
}

/// A client that keeps to this machine, whatever proxy the environment names.
pub fn client() -> Client {
    Client::builder().no_proxy().timeout(PATIENCE).build().expect("a plain client")
}

/// A process that is killed when this is dropped. Where the test failed, the end of its log is shown.
///
/// It stays in the group of the test, so that an interrupt from the keyboard reaches both.
pub struct Process {
    child: Child,
    name: &'static str,
    log: PathBuf,
}

impl Process {
    pub fn start(name: &'static str, command: &mut Command, folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).expect("the log can be written");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        Self { child, name, log }
    }

    /// The value of this line of its `/proc/PID/status`, in KiB where it is a size.
    pub fn status(&self, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let value = line.and_then(|line| line.split_whitespace().next());
        value.and_then(|value| value.parse().ok()).expect("a number")
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("is our child")
    }

    /// Panics where it ended, rather than letting a test wait in vain.
    pub fn must_be_running(&mut self) {
        if let Some(status) = self.ended() {
            panic!("{} ended by itself: {status}", self.name);
        }
    }

    /// Asks it to end, with SIGTERM. By the shell, since its `kill` is built in and always there.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends it this signal.
    pub fn signal(&self, signal: &str) {
        let kill = format!("kill -s {signal} {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &kill]).status();
        assert!(sent.is_ok_and(|status| status.success()), "{} is running", self.name);
    }

    /// Ends it and whatever it has started, at once and without a word to them.
    pub fn kill_all(&mut self) {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let sent = Command::new("sh").args(["-c", &format!("kill -s KILL {pid} {children}")]).status();
        assert!(sent.is_ok_and(|status| status.success()), "{} was running", self.name);
        self.child.wait().expect("is our child");
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).expect("its log is there");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Where it listens, of a `portcullis serve` that logs as JSON.
    pub async fn serving(&mut self) -> Serving {
        eventually("portcullis says where it listens", PATIENCE, async || {
            self.must_be_running();
            self.log().lines().find_map(Serving::read)
        })
        .await
    }

    /// Whether it ended since somebody else had the address at which it was told to listen.
    pub fn found_its_address_taken(&mut self) -> bool {
        const SAYINGS: [&str; 3] = ["address already in use", "address in use", "eaddrinuse"];
        self.ended().is_some() && {
            let log = self.log().to_ascii_lowercase();
            SAYINGS.iter().any(|saying| log.contains(saying))
        }
    }

    /// Whether it is the one who listens at this port. Who only connects may find somebody else there.
    pub fn listens_at(&self, port: u16) -> bool {
        let of = format!("/proc/{}", self.child.id());
        let tables = ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("{of}/net/{name}")));
        let (ending, listening) = (format!(":{port:04X}"), "0A");
        let sockets: Vec<String> = tables
            .iter()
            .flatten()
            .flat_map(|table| table.lines())
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|row| row.len() > 9 && row[1].ends_with(&ending) && row[3] == listening)
            .map(|row| format!("socket:[{}]", row[9]))
            .collect();
        let open = fs::read_dir(format!("{of}/fd")).into_iter().flatten().flatten();
        open.filter_map(|file| fs::read_link(file.path()).ok())
            .any(|file| sockets.iter().any(|socket| file.as_os_str() == &socket[..]))
    }

    fn print_end_of_log(&self) {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let end = &lines[lines.len().saturating_sub(40)..];
        eprintln!("--- the end of {}'s log\n{}\n---", self.name, end.join("\n"));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it ended before and was waited for.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
        if std::thread::panicking() {
            self.print_end_of_log();
        }
    }
}

impl AsMut<Process> for Process {
    fn as_mut(&mut self) -> &mut Process {
        self
    }
}

/// So many addresses in a row that somebody else has taken are no accident.
pub const TRIES: usize = 5;

/// Starts something that has to be told where to listen, and waits until it is ready. Where somebody else has that
/// address by then, it is started once more at another.
pub async fn at_a_free_address<T: AsMut<Process>>(
    what: &str,
    within: Duration,
    start: impl Fn(SocketAddr) -> T,
    ready: impl AsyncFn(&mut T, SocketAddr) -> bool,
) -> (T, SocketAddr) {
    for _ in 0..TRIES {
        let address = free_address();
        let mut started = start(address);
        let has_it = eventually(what, within, async || {
            if started.as_mut().found_its_address_taken() {
                return Some(false);
            }
            started.as_mut().must_be_running();
            ready(&mut started, address).await.then_some(true)
        });
        if has_it.await {
            return (started, address);
        }
    }
    panic!("{what}: {TRIES} addresses in a row were taken");
}

/// `portcullis serve`, the built binary.
pub struct Portcullis {
    pub process: Process,
    pub ext_authz: SocketAddr,
    pub forward_auth: SocketAddr,
    pub admin: SocketAddr,
    client: Client,
    _folder: TempDir,
}

impl Portcullis {
    /// Serves with these `providers` (and whatever else of the configuration follows them). When this
    /// returns it listens; whether it has keys is another matter.
    pub async fn serve(providers: &str) -> Self {
        Self::serve_behind("envoy", providers).await
    }

    /// The same, with an HTTP door of this profile.
    pub async fn serve_behind(profile: &str, providers: &str) -> Self {
        Self::serve_by(Command::new(env!("CARGO_BIN_EXE_portcullis")), profile, providers).await
    }

    /// The same under these limits of the shell, such as `-n 80` for descriptors.
    pub async fn serve_within(limits: &str, providers: &str) -> Self {
        let mut command = Command::new("sh");
        let script = format!("ulimit {limits} && exec \"$0\" \"$@\"");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_portcullis")]);
        Self::serve_by(command, "envoy", providers).await
    }

    async fn serve_by(mut command: Command, profile: &str, providers: &str) -> Self {
        let folder = folder();
        let config = folder.path().join("portcullis.yaml");
        let text = format!(
            "listen:
  ext_authz: '127.0.0.1:0'
  forward_auth: {{address: '127.0.0.1:0', profile: {profile}}}
  admin: '127.0.0.1:0'
{providers}"
        );
        fs::write(&config, text).expect("the folder can be written to");
        command.arg("serve").arg("--config").arg(config);
        let mut process = Process::start("portcullis", &mut command, folder.path());
        let client = client();
        let serving = process.serving().await;
        let (ext_authz, forward_auth, admin) = (serving.grpc(), serving.http(), serving.admin());
        eventually("portcullis is alive", PATIENCE, async || {
            process.must_be_running();
            ok(&client, &format!("http://{admin}/livez")).await
        })
        .await;
        Self { process, ext_authz, forward_auth, admin, client, _folder: folder }
    }

    /// Waits until it has keys.
    pub async fn ready(&self) {
        let url = format!("http://{}/readyz", self.admin);
        eventually("portcullis is ready", PATIENCE, async || ok(&self.client, &url).await).await;
    }

    /// The sum of this metric's samples that have all these labels.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let url = format!("http://{}/metrics", self.admin);
        let answer = self.client.get(url).send().await.expect("the admin door answers");
        let text = answer.text().await.expect("metrics are text");
        let samples = text.lines().filter_map(|line| {
            let (labels_of_line, value) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} ")?;
            let wanted =
                |(label, value): &(&str, &str)| labels_of_line.contains(&format!("{label}=\"{value}\""));
            labels.iter().all(wanted).then(|| value.parse::<f64>().expect("a number"))
        });
        samples.sum::<f64>() as u64
    }

    /// The fetches of keys that this trigger forced and that brought an answer.
    pub async fn fetches(&self, trigger: &str) -> u64 {
        self.metric("portcullis_jwks_fetches_total", &[("trigger", trigger)]).await
    }
}

/// The body where the answer is 200.
async fn ok(client: &Client, url: &str) -> Option<String> {
    let answer = client.get(url).send().await.ok()?.error_for_status().ok()?;
    answer.text().await.ok()
}

/// A real Envoy under the shipped configuration, with other ports and nothing else changed.
pub struct Envoy {
    _process: Process,
    address: SocketAddr,
    _folder: TempDir,
}

impl Envoy {
    pub async fn start(ext_authz: SocketAddr, upstream: SocketAddr) -> Self {
        Self::start_with(ext_authz, upstream, &[]).await
    }

    /// The same with other changes: each a text of the shipped file and what stands there instead.
    pub async fn start_with(ext_authz: SocketAddr, upstream: SocketAddr, changes: &[(&str, String)]) -> Self {
        let binary = part("PORTCULLIS_TEST_ENVOY", ".cache/envoy");
        let folder = folder();
        let ports = [
            ("address: 127.0.0.1, port_value: 9901", local_port(0)),
            ("address: 0.0.0.0, port_value: 10000", local_port(0)),
            ("address: 127.0.0.1, port_value: 9191", local_port(ext_authz.port())),
            ("address: 127.0.0.1, port_value: 8080", local_port(upstream.port())),
        ];
        let text = shipped("envoy/envoy-grpc.yaml", &[&ports, changes].concat());
        let config = folder.path().join("envoy.yaml");
        fs::write(&config, text).expect("the folder can be written to");

        let admin_file = folder.path().join("admin");
        let mut command = Command::new(binary);
        // Hot restart would make two Envoys on one machine find each other.
        command.args(["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]);
        command.arg("--admin-address-path").arg(&admin_file).arg("--config-path").arg(config);
        let mut process = Process::start("envoy", &mut command, folder.path());
        let address = envoy_listens(&mut process, &admin_file).await;
        Self { _process: process, address, _folder: folder }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Where an Envoy listens that was told port 0, by its administrator's door, whose address is in this file.
pub async fn envoy_listens(process: &mut Process, admin_file: &Path) -> SocketAddr {
    let client = client();
    eventually("envoy listens", PATIENCE, async || {
        process.must_be_running();
        let admin = fs::read_to_string(admin_file).ok()?;
        ok(&client, &format!("http://{admin}/ready")).await?;
        let listeners = ok(&client, &format!("http://{admin}/listeners?format=json")).await?;
        let listeners: Value = serde_json::from_str(&listeners).ok()?;
        let bound = &listeners["listener_statuses"][0]["local_address"]["socket_address"];
        let port = u16::try_from(bound["port_value"].as_u64()?).ok()?;
        Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    })
    .await
}

/// A port of this machine, as the shipped configurations of Envoy write it.
pub fn local_port(port: u16) -> String {
    format!("address: 127.0.0.1, port_value: {port}")
}

/// An upstream that answers every request with the headers that it received, as a JSON object, and with its
/// target under `:path`.
pub struct Upstream {
    pub address: SocketAddr,
    received: Arc<AtomicU64>,
    server: JoinHandle<()>,
}

impl Upstream {
    pub async fn start() -> Self {
        let received = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&received);
        let echo = Router::new().fallback(async move |request: Request| {
            count.fetch_add(1, Ordering::SeqCst);
            let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
            let mut headers = BTreeMap::from([(":path", target.to_owned())]);
            for (name, value) in request.headers() {
                let value = String::from_utf8_lossy(value.as_bytes());
                // A second one of the same name must show: it is how a client adds an identity.
                let seen = headers.entry(name.as_str()).or_default();
                *seen = if seen.is_empty() { value.into_owned() } else { format!("{seen},{value}") };
            }
            json!(headers).to_string()
        });
        let (address, server) = serve_http(echo).await;
        Self { address, received, server }
    }

    /// How many requests have reached it.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Serves these routes on a free port until the task is aborted.
pub async fn serve_http(routes: Router) -> (SocketAddr, JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("is bound");
    let server = tokio::spawn(async move {
        axum::serve(listener, routes).await.expect("accepts until it is aborted");
    });
    (address, server)
}

/// The body of an answer, which must be JSON.
pub async fn json(answer: Response) -> Value {
    let body = answer.bytes().await.expect("a whole body");
    serde_json::from_slice(&body)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&body)))
}
