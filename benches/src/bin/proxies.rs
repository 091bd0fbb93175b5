//! What a request costs behind a real proxy, with and without Portcullis: processor time of the proxy and of Portcullis, each
//! by itself, and latency.
//!
//!     proxies PORTCULLIS ENVOY NGINX_ROOT [ROUNDS] [TABLE...]
//!
//! NGINX_ROOT is a folder with Debian's package of NGINX. Servers run on core 0; start this on another one, on which the load
//! and the upstream are. Run it at the top of the tree.

use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use portcullis_benches::envoy::{self, Addresses};
use portcullis_benches::files::Text;
use portcullis_benches::http1::HttpLoad;
use portcullis_benches::nginx;
use portcullis_benches::process::{Server, free};
use portcullis_benches::request::http;
use portcullis_benches::table::{Asked, Row, Slices, Table, measure};
use portcullis_benches::tokens::Tokens;
use portcullis_benches::upstream::Upstream;
use portcullis_issuer::Issuer;

type Failure = Box<dyn Error + Send + Sync>;

type MakeTable = fn(&Bench) -> Result<Table, Failure>;

/// The tables, by name.
const TABLES: [(&str, MakeTable); 3] =
    [("envoy", Bench::envoy), ("nginx", Bench::nginx), ("settings", Bench::settings)];

const LONG: Slices = Slices { busy: Duration::from_secs(2), paced: Duration::from_secs(2) };
/// For many rows that hardly differ: more rounds in the same time, so that slow phases of the machine meet all rows.
const SHORT: Slices = Slices { busy: Duration::from_millis(250), paced: Duration::ZERO };

/// Clients, each with a connection and one request at a time.
const CONNECTIONS: usize = 64;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [portcullis, envoy, nginx, rest @ ..] = &*arguments else {
        return Err("usage: proxies PORTCULLIS ENVOY NGINX_ROOT [ROUNDS] [TABLE...]".into());
    };
    let (rounds, names) = match rest {
        [rounds, names @ ..] => (rounds.parse()?, names),
        [] => (3, rest),
    };
    let folder = std::env::temp_dir().join(format!("portcullis-proxies-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let [portcullis, envoy, nginx] = [portcullis, envoy, nginx].map(String::clone);
    let result = run(Programs { portcullis, envoy, nginx }, rounds, names, &folder).await;
    std::fs::remove_dir_all(&folder)?;
    result
}

struct Programs {
    portcullis: String,
    envoy: String,
    nginx: String,
}

async fn run(programs: Programs, rounds: usize, names: &[String], folder: &Path) -> Result<(), Failure> {
    let bench = Bench::start(programs, folder).await?;
    let mut tables = Vec::new();
    for (name, table) in TABLES {
        if names.is_empty() || names.iter().any(|one| one == name) {
            tables.push(table(&bench)?);
        }
    }
    for row in tables.iter().flat_map(|table: &Table| &table.rows) {
        row.verify(Some(&bench.upstream)).await.map_err(|error| bench.explained(&*error))?;
    }
    measure(&mut tables, rounds).await?;
    tables.iter().for_each(Table::print);
    Ok(())
}

/// One Portcullis for all proxies, and what they need.
struct Bench {
    programs: Programs,
    folder: PathBuf,
    issuer: Issuer,
    tokens: Tokens,
    upstream: Upstream,
    portcullis: Rc<Server>,
    doors: Doors,
}

/// Where Portcullis listens.
struct Doors {
    ext_authz: SocketAddr,
    socket: PathBuf,
    nginx: SocketAddr,
    envoy: SocketAddr,
    admin: SocketAddr,
}

impl Bench {
    async fn start(programs: Programs, folder: &Path) -> Result<Self, Failure> {
        let issuer = Issuer::start().await?;
        let tokens = Tokens::of(&issuer)?;
        let upstream = Upstream::start().await?;
        let doors = Doors {
            ext_authz: free()?,
            socket: folder.join("authz.sock"),
            nginx: free()?,
            envoy: free()?,
            admin: free()?,
        };
        let file = folder.join("portcullis.yaml");
        std::fs::write(&file, doors.configuration(&issuer))?;
        let arguments = ["serve", "--config", file.to_str().ok_or("a path of text")?];
        let portcullis = Server::start(0, &programs.portcullis, &arguments)?;
        let (folder, portcullis) = (folder.to_owned(), Rc::new(portcullis));
        Ok(Self { programs, folder, issuer, tokens, upstream, portcullis, doors })
    }

    fn envoy(&self) -> Result<Table, Failure> {
        let cache = "                          jwt_cache_config: {jwt_cache_size: 100}\n";
        let rows = vec![
            self.envoy_row("no filter", envoy::no_filter)?,
            self.envoy_row("jwt_authn", |to| envoy::jwt_authn(to, &self.issuer, ""))?,
            self.envoy_row("jwt_authn with its token cache", |to| envoy::jwt_authn(to, &self.issuer, cache))?,
            self.envoy_row("Portcullis over TCP", envoy::grpc)?,
            self.envoy_row("Portcullis over a socket file", envoy::grpc_over_socket_file)?,
            self.envoy_row("Portcullis over HTTP", envoy::http)?,
        ];
        let servers = &["Envoy", "Portcullis"];
        Ok(Table { title: "Envoy", servers, rows, references: vec![0, 1, 2], slices: LONG })
    }

    fn settings(&self) -> Result<Table, Failure> {
        let mut rows = vec![
            self.envoy_row("as shipped", envoy::grpc)?,
            self.envoy_row("socket file", envoy::grpc_over_socket_file)?,
        ];
        for setting in envoy::settings(self.doors.ext_authz) {
            rows.push(self.envoy_row(setting.0, |to| envoy::grpc_with(to, &setting))?);
        }
        rows.push(self.envoy_row("without the access log", envoy::grpc_without_log)?);
        rows.push(self.envoy_row("over HTTP, as shipped", envoy::http)?);
        rows.push(self.envoy_row("over HTTP/1.1", envoy::http_1)?);
        let servers = &["Envoy", "Portcullis"];
        Ok(Table { title: "Settings of ext_authz", servers, rows, references: vec![0], slices: SHORT })
    }

    /// An Envoy of its own with one worker, and this configuration.
    fn envoy_row(
        &self,
        name: &str,
        configuration: impl FnOnce(&Addresses<'_>) -> Result<Text, Failure>,
    ) -> Result<Row, Failure> {
        let addresses = Addresses {
            proxy: free()?,
            proxy_admin: free()?,
            ext_authz: self.doors.ext_authz,
            socket: &self.doors.socket,
            forward_auth: self.doors.envoy,
            admin: self.doors.admin,
            upstream: self.upstream.address,
        };
        let text = configuration(&addresses).map_err(|error| format!("{name}: {error}"))?;
        let file = self.folder.join(format!("envoy-{}.yaml", addresses.proxy.port()));
        std::fs::write(&file, text.as_str())?;
        let config = file.to_str().ok_or("a path of text")?;
        let arguments =
            ["--disable-hot-restart", "--concurrency", "1", "--log-level", "error", "--config-path", config];
        let log = file.with_extension("log");
        let server = Server::start_with_log(0, &self.programs.envoy, &arguments, &log)?;
        Ok(self.row(name, server, addresses.proxy, &text))
    }

    fn nginx(&self) -> Result<Table, Failure> {
        let rows = vec![
            self.nginx_row("NGINX alone", nginx::alone)?,
            self.nginx_row("auth_request", Ok)?,
            self.nginx_row("auth_request, 32 idle connections", nginx::few_idle_connections)?,
        ];
        Ok(Table {
            title: "NGINX",
            servers: &["NGINX", "Portcullis"],
            rows,
            references: vec![0],
            slices: LONG,
        })
    }

    /// An NGINX of its own in a single process, and its configuration with this change.
    fn nginx_row(
        &self,
        name: &str,
        change: impl FnOnce(Text) -> Result<Text, Failure>,
    ) -> Result<Row, Failure> {
        let address = free()?;
        let folder = self.folder.join(format!("nginx-{}", address.port()));
        std::fs::create_dir_all(&folder)?;
        let shipped = nginx::auth_request(address, self.doors.nginx, self.upstream.address, &folder)?;
        let text = change(shipped)?;
        let file = folder.join("nginx.conf");
        std::fs::write(&file, text.as_str())?;
        let root = &self.programs.nginx;
        let architecture = std::env::consts::ARCH;
        let libraries = format!(
            "LD_LIBRARY_PATH={root}/usr/lib/{architecture}-linux-gnu:{root}/lib/{architecture}-linux-gnu"
        );
        // A worker of a master process would not end with it.
        let global = format!("daemon off; master_process off; pid {}/pid;", folder.display());
        let program = format!("{root}/usr/sbin/nginx");
        let [folder, file] = [&folder, &file].map(|path| path.to_string_lossy().into_owned());
        let arguments = [&libraries, &program, "-p", &folder, "-c", &file, "-e", "stderr", "-g", &global];
        let log = self.folder.join(format!("nginx-{}.log", address.port()));
        let server = Server::start_with_log(0, "env", &arguments, &log)?;
        Ok(self.row(name, server, address, &text))
    }

    /// A row for this proxy. Portcullis takes part if the configuration has it.
    fn row(&self, name: &str, proxy: Server, address: SocketAddr, configuration: &Text) -> Row {
        let has = |text: &str| configuration.as_str().contains(text);
        let mut servers = vec![Rc::new(proxy)];
        if has("filters.http.ext_authz\n") || has("auth_request /") {
            servers.push(Rc::clone(&self.portcullis));
        }
        let refused = if servers.len() > 1 || has("filters.http.jwt_authn\n") {
            self.tokens.refused().map(|token| http("/orders/1", token, "")).to_vec()
        } else {
            Vec::new()
        };
        let requests = Arc::new(vec![http("/orders/1", &self.tokens.valid, "")]);
        let load = HttpLoad { address, connections: CONNECTIONS, requests, expected: 200 };
        Row::new(name, servers, Asked::Http(load), refused)
    }

    /// An error together with what the proxies said.
    fn explained(&self, error: &(dyn Error + Send + Sync)) -> Failure {
        let mut text = error.to_string();
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                let said = std::fs::read_to_string(entry.path()).unwrap_or_default();
                text.extend(said.lines().rev().take(5).map(|line| format!("\n  {line}")));
            }
        }
        text.into()
    }
}

impl Doors {
    fn configuration(&self, issuer: &Issuer) -> String {
        format!(
            "listen:
  ext_authz: [{}, 'unix:{}']
  forward_auth: [{{address: '{}', profile: nginx}}, {{address: '{}', profile: envoy}}]
  admin: {}
providers:
  - name: sso
    issuer: {}
    audiences: [orders-api]
    jwks_uri: {}
    claim_headers: {{x-auth-subject: sub, x-auth-tenant: tenant_id}}
",
            self.ext_authz,
            self.socket.display(),
            self.nginx,
            self.envoy,
            self.admin,
            issuer.issuer(),
            issuer.jwks_uri()
        )
    }
}
