//! Shared by the tests against real programs: paths of installed programs, processes that are killed with their
//! test, the built binary, Envoy, and an upstream that echoes what it received.
//!
//! Uses Portcullis only through its command line, configuration and responses. A missing program fails the test.

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
use super::subprocess::StartCommand;

/// How long a program may take to start or to stop; only reached if something is broken.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// The path of an installed program: the value of `variable`, or the path that `tests/run` installs to.
pub fn program_path(variable: &str, default: &str) -> PathBuf {
    let path = std::env::var_os(variable)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(default), PathBuf::from);
    assert!(
        path.exists(),
        "{} is missing: run tests/run, which installs it, or set {variable}",
        path.display()
    );
    path
}

/// A program of a Debian package that `tests/run` unpacked, run with the libraries of that package.
pub fn debian_command(program: &str) -> Command {
    let root = program_path("PORTCULLIS_TEST_PROXIES", ".cache/proxies");
    let mut command = Command::new(root.join(program));
    let architecture = format!("{}-linux-gnu", std::env::consts::ARCH);
    let libraries = ["usr/lib", "lib"].map(|folder| root.join(folder).join(&architecture));
    command.env("LD_LIBRARY_PATH", std::env::join_paths(libraries).expect("no colon in these paths"));
    command
}

/// The text of a file of `deploy/`.
pub fn deploy_file(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file);
    fs::read_to_string(path).expect("the file of deploy/")
}

/// The file that `portcullis recipe` prints for this proxy and the configuration with this text.
pub fn printed_file(proxy: &str, config: &str) -> String {
    let folder = folder();
    let file = folder.path().join("portcullis.yaml");
    fs::write(&file, config).expect("the folder can be written to");
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    let output = command.arg("recipe").arg(proxy).arg("--config").arg(file).run_and_read();
    let output = output.expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The text with replacements. Each replaced text has to occur exactly once.
pub fn replaced(text: &str, replacements: &[(&str, String)]) -> String {
    let mut text = text.to_owned();
    for (from, to) in replacements {
        assert_eq!(text.matches(from).count(), 1, "{from} in {text}");
        text = text.replace(from, to);
    }
    text
}

/// A temporary folder on the file system of the build.
pub fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build folder can be written to")
}

/// Polls until `poll` returns a value.
pub async fn eventually<T>(what: &str, within: Duration, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
    let polling = async {
        loop {
            if let Some(value) = poll().await {
                return value;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(within, polling).await.unwrap_or_else(|_| panic!("{what}: not within {within:?}"))
}

/// An HTTP client that ignores the proxy of the environment.
pub fn client() -> Client {
    Client::builder().no_proxy().timeout(TIMEOUT).build().expect("a plain client")
}

/// A process that is killed on drop. If the test panics, the end of its log is printed.
///
/// It stays in the process group of the test, so that an interrupt from the keyboard reaches both.
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
            .start()
            .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        Self { child, name, log }
    }

    /// The value of this line of `/proc/PID/status`; sizes in KiB.
    pub fn status(&self, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let value = line.and_then(|line| line.split_whitespace().next());
        value.and_then(|value| value.parse().ok()).expect("a number")
    }

    /// The exit status, if the process has exited.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("is our child")
    }

    /// # Panics
    /// The process has exited.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.exit_status() {
            panic!("{} exited: {status}", self.name);
        }
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends this signal, by the shell's built-in `kill`.
    pub fn signal(&self, signal: &str) {
        let kill = format!("kill -s {signal} {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &kill]).run();
        assert!(sent.is_ok_and(|status| status.success()), "{} is running", self.name);
    }

    /// Sends SIGKILL to the process and its children.
    pub fn kill_all(&mut self) {
        assert!(self.send_kill_to_all(), "{} was running", self.name);
        self.child.wait().expect("is our child");
    }

    /// Whether SIGKILL was sent to the process and all of its children.
    fn send_kill_to_all(&self) -> bool {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let kill = format!("kill -s KILL {pid} {children} 2>/dev/null");
        Command::new("sh").args(["-c", &kill]).run().is_ok_and(|status| status.success())
    }

    /// What the process has written so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).expect("the log can be read");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for the addresses of a `portcullis serve` that logs JSON.
    pub async fn serving(&mut self) -> Serving {
        eventually("portcullis logs its addresses", TIMEOUT, async || {
            self.assert_running();
            self.log().lines().find_map(Serving::read)
        })
        .await
    }

    /// Whether the process has exited because its address is in use.
    pub fn failed_to_bind(&mut self) -> bool {
        const BIND_ERRORS: [&str; 3] = ["address already in use", "address in use", "eaddrinuse"];
        self.exit_status().is_some() && {
            let log = self.log().to_ascii_lowercase();
            BIND_ERRORS.iter().any(|error| log.contains(error))
        }
    }

    /// Whether this process listens on the port. A successful connection could be to another process.
    pub fn listens_on(&self, port: u16) -> bool {
        let proc = format!("/proc/{}", self.child.id());
        let tables = ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("{proc}/net/{name}")));
        let (address_end, listening) = (format!(":{port:04X}"), "0A");
        let sockets: Vec<String> = tables
            .iter()
            .flatten()
            .flat_map(|table| table.lines())
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|row| row.len() > 9 && row[1].ends_with(&address_end) && row[3] == listening)
            .map(|row| format!("socket:[{}]", row[9]))
            .collect();
        let descriptors = fs::read_dir(format!("{proc}/fd")).into_iter().flatten().flatten();
        descriptors
            .filter_map(|file| fs::read_link(file.path()).ok())
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
        // The workers of a server outlive its master. A process that was reaped before has no children, and its id may
        // be another's by now.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _sent = self.send_kill_to_all();
        }
        let _reaped = self.child.kill().and_then(|()| self.child.wait());
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

/// How many ports are tried if the port of a program is in use.
pub const MAX_ATTEMPTS: usize = 5;

/// Starts a program that needs a fixed port, and waits until it is ready. Starts it again with another port if the
/// port is in use.
pub async fn start_on_free_port<T: AsMut<Process>>(
    what: &str,
    within: Duration,
    start: impl Fn(SocketAddr) -> T,
    ready: impl AsyncFn(&mut T, SocketAddr) -> bool,
) -> (T, SocketAddr) {
    for _ in 0..MAX_ATTEMPTS {
        let address = free_address();
        let mut started = start(address);
        let bound = eventually(what, within, async || {
            if started.as_mut().failed_to_bind() {
                return Some(false);
            }
            started.as_mut().assert_running();
            ready(&mut started, address).await.then_some(true)
        });
        if bound.await {
            return (started, address);
        }
    }
    panic!("{what}: {MAX_ATTEMPTS} ports in a row are in use");
}

/// `portcullis serve`, the built binary.
pub struct Portcullis {
    pub process: Process,
    pub ext_authz: SocketAddr,
    pub forward_auth: SocketAddr,
    pub admin: SocketAddr,
    /// Its configuration, with the addresses that it has bound instead of those with port 0.
    pub config: String,
    client: Client,
    _folder: TempDir,
}

impl Portcullis {
    /// Serves with a configuration of `providers` and the keys that follow it. Waits until the service listens, not
    /// until it has keys.
    pub async fn serve(providers: &str) -> Self {
        Self::serve_with_profile("envoy", providers).await
    }

    /// Serves with an HTTP door of this profile.
    pub async fn serve_with_profile(profile: &str, providers: &str) -> Self {
        Self::serve_with_tls(profile, "", providers).await
    }

    /// The same with TLS settings of both doors, as in `, tls: {...}`.
    pub async fn serve_with_tls(profile: &str, tls: &str, providers: &str) -> Self {
        Self::serve_command(Command::new(env!("CARGO_BIN_EXE_portcullis")), profile, tls, providers).await
    }

    /// Serves under limits of the shell's `ulimit`, such as `-n 80` for descriptors.
    pub async fn serve_with_ulimit(limits: &str, providers: &str) -> Self {
        let mut command = Command::new("sh");
        let script = format!("ulimit {limits} && exec \"$0\" \"$@\"");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_portcullis")]);
        Self::serve_command(command, "envoy", "", providers).await
    }

    async fn serve_command(mut command: Command, profile: &str, tls: &str, providers: &str) -> Self {
        let folder = folder();
        let config = folder.path().join("portcullis.yaml");
        let text = |[grpc, http, admin]: [SocketAddr; 3]| {
            format!(
                "listen:
  ext_authz: {{address: '{grpc}'{tls}}}
  forward_auth: {{address: '{http}', profile: {profile}{tls}}}
  admin: '{admin}'
{providers}"
            )
        };
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        fs::write(&config, text([any_port; 3])).expect("the folder can be written to");
        command.arg("serve").arg("--config").arg(config);
        let mut process = Process::start("portcullis", &mut command, folder.path());
        let client = client();
        let serving = process.serving().await;
        let (ext_authz, forward_auth, admin) = (serving.grpc(), serving.http(), serving.admin());
        eventually("portcullis is alive", TIMEOUT, async || {
            process.assert_running();
            ok(&client, &format!("http://{admin}/livez")).await
        })
        .await;
        let config = text([ext_authz, forward_auth, admin]);
        Self { process, ext_authz, forward_auth, admin, config, client, _folder: folder }
    }

    /// Waits until `/readyz` answers 200.
    pub async fn ready(&self) {
        let url = format!("http://{}/readyz", self.admin);
        eventually("portcullis is ready", TIMEOUT, async || ok(&self.client, &url).await).await;
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

    /// The number of completed key fetches with this trigger.
    pub async fn fetches(&self, trigger: &str) -> u64 {
        self.metric("portcullis_jwks_fetches_total", &[("trigger", trigger)]).await
    }
}

/// The body of a successful response.
async fn ok(client: &Client, url: &str) -> Option<String> {
    let answer = client.get(url).send().await.ok()?.error_for_status().ok()?;
    answer.text().await.ok()
}

/// A real Envoy with the configuration of `deploy/`, where only ports are changed.
pub struct Envoy {
    _process: Process,
    address: SocketAddr,
    _folder: TempDir,
}

impl Envoy {
    pub async fn start(ext_authz: SocketAddr, upstream: SocketAddr) -> Self {
        Self::start_with(ext_authz, upstream, &[]).await
    }

    /// Starts Envoy with further replacements in the file of `deploy/`.
    pub async fn start_with(ext_authz: SocketAddr, upstream: SocketAddr, changes: &[(&str, String)]) -> Self {
        let binary = program_path("PORTCULLIS_TEST_ENVOY", ".cache/envoy");
        let folder = folder();
        let ports = [
            ("address: 127.0.0.1, port_value: 9901", local_port(0)),
            ("address: 0.0.0.0, port_value: 10000", local_port(0)),
            ("address: 127.0.0.1, port_value: 9191", local_port(ext_authz.port())),
            ("address: 127.0.0.1, port_value: 8080", local_port(upstream.port())),
        ];
        let text = replaced(&deploy_file("envoy/envoy-grpc.yaml"), &[&ports, changes].concat());
        let config = folder.path().join("envoy.yaml");
        fs::write(&config, text).expect("the folder can be written to");

        let admin_file = folder.path().join("admin");
        let mut command = Command::new(binary);
        // Hot restart would connect two Envoys on one machine.
        command.args(["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]);
        command.arg("--admin-address-path").arg(&admin_file).arg("--config-path").arg(config);
        let mut process = Process::start("envoy", &mut command, folder.path());
        let address = wait_for_envoy(&mut process, &admin_file).await;
        Self { _process: process, address, _folder: folder }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Waits for an Envoy that binds port 0 and returns its address, read from its admin interface. The address of the
/// admin interface is in `admin_file`.
pub async fn wait_for_envoy(process: &mut Process, admin_file: &Path) -> SocketAddr {
    let client = client();
    eventually("envoy listens", TIMEOUT, async || {
        process.assert_running();
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

/// A loopback port in the form of the Envoy configurations of `deploy/`.
pub fn local_port(port: u16) -> String {
    format!("address: 127.0.0.1, port_value: {port}")
}

/// An upstream that answers every request with a JSON object of the received headers, and the request target under
/// `:path`.
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
                // Repeated headers are joined, so that a header that the client added is visible.
                let joined = headers.entry(name.as_str()).or_default();
                *joined = if joined.is_empty() { value.into_owned() } else { format!("{joined},{value}") };
            }
            json!(headers).to_string()
        });
        let (address, server) = serve_http(echo).await;
        Self { address, received, server }
    }

    /// The number of received requests.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Serves these routes on port 0 until the task is aborted.
pub async fn serve_http(routes: Router) -> (SocketAddr, JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("is bound");
    let server = tokio::spawn(async move {
        axum::serve(listener, routes).await.expect("accepts until it is aborted");
    });
    (address, server)
}

/// The JSON body of a response.
pub async fn json(answer: Response) -> Value {
    let body = answer.bytes().await.expect("a complete body");
    serde_json::from_slice(&body)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&body)))
}
