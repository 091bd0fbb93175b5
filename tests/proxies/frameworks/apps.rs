//! Starts the apps, each under its own server. Each answers with its framework's interpretation of the request.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tokio::task::{JoinSet, LocalSet};

use crate::differentials::client::{Answer, exchange};
use crate::support::real::{Process, TIMEOUT, folder, program_path, start_on_free_port};
use crate::support::subprocess::StartCommand;

/// A running app.
pub struct App {
    pub name: &'static str,
    pub address: SocketAddr,
    process: Process,
    _folder: TempDir,
}

/// Makes the command that serves on a port, with a folder for its files.
type Start = fn(&Path, u16) -> Command;

/// The apps.
const APPS: [(&str, Start); 11] = [
    ("Flask under waitress", |_, port| python("wsgi_apps.py", &["waitress"], port)),
    ("Flask under cheroot", |_, port| python("wsgi_apps.py", &["cheroot"], port)),
    ("Django under gunicorn", |_, port| python("wsgi_apps.py", &["gunicorn"], port)),
    ("Django under wsgiref", |_, port| python("wsgi_apps.py", &["wsgiref"], port)),
    ("Starlette under uvicorn", |_, port| python("asgi_app.py", &[], port)),
    ("Node", |_, port| node("node_app.js", port)),
    ("Express", |_, port| node("express_app.js", port)),
    ("Go", go),
    ("PHP", |_, port| {
        let mut command = Command::new("php");
        command.arg("-S").arg(format!("127.0.0.1:{port}")).arg(source("router.php"));
        command
    }),
    ("Rack under Puma", |_, port| {
        let mut command = Command::new("puma");
        command.arg("--bind").arg(format!("tcp://127.0.0.1:{port}")).arg(source("config.ru"));
        command
    }),
    ("a servlet of Tomcat", |folder, port| {
        let mut command = Command::new("java");
        command.arg(format!("-Djava.io.tmpdir={}", folder.display()));
        command.arg("-cp").arg(installed("tomcat-embed-core.jar"));
        command.arg(source("Servlet.java")).arg(port.to_string());
        command
    }),
];

/// Starts every app and waits until it answers.
pub async fn start() -> Vec<App> {
    let start_all = async {
        let mut starting = JoinSet::new();
        for (name, command) in APPS {
            starting.spawn_local(async move {
                let start = |address| App::start(name, command, address);
                start_on_free_port(name, TIMEOUT, start, async |app, _| app.answers().await).await.0
            });
        }
        starting.join_all().await
    };
    LocalSet::new().run_until(start_all).await
}

impl App {
    fn start(name: &'static str, command: Start, address: SocketAddr) -> Self {
        let folder = folder();
        let mut command = command(folder.path(), address.port());
        // Files that they write stay in the folder.
        command.current_dir(folder.path()).env("HOME", folder.path());
        let process = Process::start(name, &mut command, folder.path());
        Self { name, address, process, _folder: folder }
    }

    async fn answers(&self) -> bool {
        if tokio::net::TcpStream::connect(self.address).await.is_err() {
            return false;
        }
        let request = b"GET /x HTTP/1.1\r\nHost: api.example.com\r\n\r\n";
        exchange(self.address, request).await.is_some_and(|answer: Answer| answer.status == 200)
    }
}

impl AsMut<Process> for App {
    fn as_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn source(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/proxies/frameworks/apps").join(file)
}

fn installed(file: &str) -> PathBuf {
    program_path("PORTCULLIS_TEST_FRAMEWORKS", ".cache/frameworks").join(file)
}

fn python(file: &str, arguments: &[&str], port: u16) -> Command {
    let mut command = Command::new(installed("python/bin/python3"));
    command.arg("-B").arg(source(file)).args(arguments).arg(port.to_string());
    command
}

fn node(file: &str, port: u16) -> Command {
    let mut command = Command::new("node");
    command.env("NODE_PATH", installed("node/node_modules")).arg(source(file)).arg(port.to_string());
    command
}

fn go(folder: &Path, port: u16) -> Command {
    let program = folder.join("app");
    let built = Command::new("go").arg("build").arg("-o").arg(&program).arg(source("main.go")).run();
    assert!(built.is_ok_and(|status| status.success()), "go builds the app");
    assert!(fs::exists(&program).is_ok_and(|exists| exists), "the app exists");
    let mut command = Command::new(program);
    command.arg(port.to_string());
    command
}
