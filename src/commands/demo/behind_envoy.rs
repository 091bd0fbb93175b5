//! `demo --behind-envoy DIR`: the files to put an Envoy in front of the demo's service, and an upstream behind it.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use axum::Router;
use axum::http::Request;
use axum::http::header::AUTHORIZATION;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::environment::Environment;
use crate::commands::{Failure, recipe};
use crate::config::Config;

/// Where Envoy listens, in the file that is written.
const ENVOY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10_000);

/// The first line of Envoy's file: one without it is not the demo's.
const MARK: &str = "# Written by `portcullis demo --behind-envoy`, and overwritten by the next one.\n";

/// The folder with the files, and the upstream. Dropping it stops the upstream and removes the file with the token.
pub(super) struct BehindEnvoy {
    folder: PathBuf,
    upstream: JoinHandle<io::Result<()>>,
}

impl BehindEnvoy {
    /// Starts the upstream and writes Envoy's file.
    pub(super) async fn start(folder: &Path, environment: &Environment) -> Result<Self, Failure> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let upstream = listener.local_addr()?;
        let file = format!("{MARK}{}", envoy_file(environment, upstream)?);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| named(folder, &error))?;
        refuse_other_files(folder)?;
        let serving = tokio::spawn(axum::serve(listener, Router::new().fallback(echo)).into_future());
        let this = Self { folder: folder.to_owned(), upstream: serving };
        this.replace("envoy.yaml", &file)?;
        Ok(this)
    }

    /// Writes the header with this token, for curl. The token is useless outside the demo.
    pub(super) fn write(&self, token: &str) -> Result<(), Failure> {
        self.replace("authorization", &format!("authorization: Bearer {token}\n"))
    }

    /// Replaces a file as a whole, since curl may be reading it.
    fn replace(&self, name: &str, text: &str) -> Result<(), Failure> {
        let (file, new) = (self.folder.join(name), self.folder.join(format!(".{name}.new")));
        // One of a demo that was killed. A symbolic link is not followed.
        let _left = fs::remove_file(&new);
        let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
        let written = written.and_then(|mut new| new.write_all(text.as_bytes()));
        written.map_err(|error| named(&new, &error))?;
        Ok(fs::rename(&new, &file).map_err(|error| named(&file, &error))?)
    }

    /// What to do next.
    pub(super) fn lines(&self) -> String {
        let folder = quoted(&self.folder.display().to_string());
        format!(
            "
An issuer, the service and an upstream are running. Start Envoy in another terminal (and one that runs already anew):

    envoy -c {folder}/envoy.yaml

Then send a request without a token (401), and one with a token of the issuer's current key (200, and what the upstream got):

    curl -i -w '\\n' http://{ENVOY}/orders; curl -i -H @{folder}/authorization http://{ENVOY}/orders

Press Ctrl-C to stop.
"
        )
    }
}

impl Drop for BehindEnvoy {
    fn drop(&mut self) {
        self.upstream.abort();
        // If this fails, a useless token remains.
        let _ignored = fs::remove_file(self.folder.join("authorization"));
    }
}

/// A path as the shell takes it.
fn quoted(path: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-".contains(letter);
    match path.chars().all(is_plain) {
        true => path.to_owned(),
        false => format!("'{}'", path.replace('\'', "'\\''")),
    }
}

/// Refuses a folder whose files are somebody else's: they would be overwritten, and one removed in the end.
fn refuse_other_files(folder: &Path) -> Result<(), Failure> {
    let envoy = folder.join("envoy.yaml");
    let is_own = fs::read_to_string(&envoy).is_ok_and(|text| text.starts_with(MARK));
    let other =
        ["envoy.yaml", "authorization"].map(|name| folder.join(name)).into_iter().find(|file| file.exists());
    match other {
        Some(other) if !is_own => {
            Err(format!("{} is not the demo's: choose another folder", other.display()).into())
        }
        _ => Ok(()),
    }
}

fn named(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// The file that `recipe envoy` prints for the service, with the addresses of the demo.
fn envoy_file(environment: &Environment, upstream: SocketAddr) -> Result<String, Failure> {
    let ext_authz = format!("ext_authz: {}", environment.ext_authz());
    let configuration = environment.configuration().replace("ext_authz: 127.0.0.1:0", &ext_authz);
    let config = Config::parse(&configuration, &|_| None).map_err(|errors| errors.to_string())?;
    let mut file = recipe::envoy_file(&config)?;
    for (printed, here) in [
        ("{address: 0.0.0.0, port_value: 10000}", ENVOY),
        ("{address: 127.0.0.1, port_value: 8080}", upstream),
    ] {
        let here = format!("{{address: {}, port_value: {}}}", here.ip(), here.port());
        file = file.replace(printed, &here);
    }
    Ok(file)
}

/// Answers with the request as it arrived, without the token.
async fn echo(request: Request<axum::body::Body>) -> String {
    let mut text = format!("The upstream got {} {} with:\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        let value = match *name == AUTHORIZATION {
            true => "(the token)".into(),
            false => String::from_utf8_lossy(value.as_bytes()),
        };
        text += &format!("  {name}: {value}\n");
    }
    text
}
