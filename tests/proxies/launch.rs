//! Starts each real proxy under its shipped files of `deploy/`, where nothing but addresses is changed.
//!
//! It knows nothing of what is then asked of them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::real::{
    MAX_ATTEMPTS, Process, TIMEOUT, debian_command, deploy_file, eventually, folder, free_address,
    local_port, program_path, uncomment, wait_for_envoy,
};

/// What a proxy's configuration has to name.
pub struct Places {
    /// The HTTP door.
    pub door: SocketAddr,
    /// The gRPC door.
    pub ext_authz: SocketAddr,
    /// The operator's door.
    pub admin: SocketAddr,
    /// Where it forwards to.
    pub upstream: SocketAddr,
}

/// A proxy that was started.
pub struct Started {
    pub process: Process,
    listens: Listens,
    /// Where its files are; they go with it.
    _folder: TempDir,
}

/// How it is known where a proxy listens.
#[derive(Clone, Copy)]
enum Listens {
    /// It was told.
    At(SocketAddr),
    /// Envoy was told port 0, and says by its administrator's door what it got.
    AsItsAdminSays,
    /// Caddy was told port 0, and says in its log what it got.
    AsItsLogSays,
}

/// The file in which Envoy writes where its administrator's door is.
const ADMIN_FILE: &str = "admin";

/// Starts a proxy and waits until it listens, at this address. One that was told where, and finds somebody else there,
/// is started once more.
pub async fn listening(start: fn(&Places) -> Started, places: &Places) -> (Started, SocketAddr) {
    for _ in 0..MAX_ATTEMPTS {
        let mut started = start(places);
        if let Some(address) = started.address().await {
            return (started, address);
        }
    }
    panic!("{MAX_ATTEMPTS} addresses in a row were taken");
}

impl Started {
    /// Where it listens, once it does; none where somebody else had the address.
    async fn address(&mut self) -> Option<SocketAddr> {
        if matches!(self.listens, Listens::AsItsAdminSays) {
            let admin_file = self._folder.path().join(ADMIN_FILE);
            return Some(wait_for_envoy(&mut self.process, &admin_file).await);
        }
        eventually("the proxy listens", TIMEOUT, async || {
            if self.process.failed_to_bind() {
                return Some(None);
            }
            self.process.assert_running();
            match self.listens {
                Listens::At(address) => self.process.listens_on(address.port()).then_some(Some(address)),
                _ => caddys_address(&self.process.log()).map(Some),
            }
        })
        .await
    }
}

/// The address of the one listener whose port Caddy has chosen.
fn caddys_address(log: &str) -> Option<SocketAddr> {
    let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let line = lines.find(|line| line["msg"] == "port 0 listener")?;
    let bound: SocketAddr = line["actual_address"].as_str()?.parse().ok()?;
    Some((Ipv4Addr::LOCALHOST, bound.port()).into())
}

/// Debian's NGINX.
pub fn nginx(places: &Places) -> Started {
    run_nginx(nginx_configuration(places))
}

/// The same with the lines for `forward_token: false`.
pub fn nginx_hiding_tokens(places: &Places) -> Started {
    let lines = [
        "proxy_set_header Authorization \"\";",
        "auth_request_set $auth_cookie $upstream_http_cookie;",
        "proxy_set_header Cookie $auth_cookie;",
    ];
    run_nginx(uncomment(&nginx_configuration(places), &lines))
}

/// The shipped file with these addresses.
pub fn nginx_configuration(places: &Places) -> String {
    deploy_file(
        "nginx/nginx.conf",
        &[
            ("server 127.0.0.1:9192;", format!("server {};", places.door)),
            ("server 127.0.0.1:8080;", format!("server {};", places.upstream)),
        ],
    )
}

/// Debian's NGINX under this text.
pub fn run_nginx(text: String) -> Started {
    let (folder, address) = (folder(), free_address());
    assert_eq!(text.matches("listen 10000;").count(), 1);
    let text = text.replace("listen 10000;", &format!("listen {address};"));
    // Where Debian's build keeps its files belongs to the system's NGINX.
    let own = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {}/{kind};\n", folder.path().display()));
    let text = text.replacen("http {\n", &format!("http {{\n    access_log off;\n{}", own.concat()), 1);
    let config = folder.path().join("nginx.conf");
    fs::write(&config, text).expect("the folder can be written to");
    let mut command = debian_command("usr/sbin/nginx");
    command.arg("-p").arg(folder.path()).arg("-c").arg(&config).args(["-e", "stderr"]);
    command.arg("-g").arg(format!("daemon off; pid {}/pid;", folder.path().display()));
    let process = Process::start("nginx", &mut command, folder.path());
    Started { process, listens: Listens::At(address), _folder: folder }
}

/// Debian's HAProxy.
pub fn haproxy(places: &Places) -> Started {
    let (config, action) = haproxy_configuration(places);
    run_haproxy(&config, &action)
}

/// The same with the lines for `forward_token: false`.
pub fn haproxy_hiding_tokens(places: &Places) -> Started {
    let (config, action) = haproxy_configuration(places);
    let config = uncomment(&config, &["http-request del-header authorization"]);
    run_haproxy(&config, &action.replace("local FROM_ANSWER = {}", "local FROM_ANSWER = { \"cookie\" }"))
}

fn haproxy_configuration(places: &Places) -> (String, String) {
    let config = deploy_file(
        "haproxy/haproxy.cfg",
        &[("server app 127.0.0.1:8080", format!("server app {}", places.upstream))],
    );
    let action = deploy_file(
        "haproxy/portcullis.lua",
        &[("http://127.0.0.1:9192/", format!("http://{}/", places.door))],
    );
    (config, action)
}

fn run_haproxy(config: &str, action: &str) -> Started {
    let (folder, address) = (folder(), free_address());
    assert_eq!(config.matches("bind :10000").count(), 1);
    let config = config.replace("bind :10000", &format!("bind {address}"));
    fs::write(folder.path().join("haproxy.cfg"), config).expect("the folder can be written to");
    fs::write(folder.path().join("portcullis.lua"), action).expect("the folder can be written to");
    let mut command = debian_command("usr/sbin/haproxy");
    command.current_dir(folder.path()).args(["-db", "-f", "haproxy.cfg"]);
    let process = Process::start("haproxy", &mut command, folder.path());
    Started { process, listens: Listens::At(address), _folder: folder }
}

/// Debian's Caddy.
pub fn caddy(places: &Places) -> Started {
    run_caddy(debian_command("usr/bin/caddy"), &caddy_configuration(places))
}

/// The same with the lines for `forward_token: false`.
pub fn caddy_hiding_tokens(places: &Places) -> Started {
    run_caddy(debian_command("usr/bin/caddy"), &caddy_configuration_hiding_tokens(places))
}

/// Caddy 2.10, built from its module.
pub fn caddy_2_10(places: &Places) -> Started {
    run_caddy(caddy_2_10_program(), &caddy_configuration(places))
}

/// The same with the lines for `forward_token: false`.
pub fn caddy_2_10_hiding_tokens(places: &Places) -> Started {
    run_caddy(caddy_2_10_program(), &caddy_configuration_hiding_tokens(places))
}

/// Caddy 2.11, built from its module.
pub fn caddy_2_11(places: &Places) -> Started {
    run_caddy(caddy_2_11_program(), &caddy_configuration(places))
}

/// The same with the lines for `forward_token: false`.
pub fn caddy_2_11_hiding_tokens(places: &Places) -> Started {
    run_caddy(caddy_2_11_program(), &caddy_configuration_hiding_tokens(places))
}

fn caddy_2_10_program() -> Command {
    Command::new(program_path("PORTCULLIS_TEST_CADDY_2_10", ".cache/caddy-2.10"))
}

fn caddy_2_11_program() -> Command {
    Command::new(program_path("PORTCULLIS_TEST_CADDY_2_11", ".cache/caddy-2.11"))
}

fn caddy_configuration_hiding_tokens(places: &Places) -> String {
    let lines = [
        "copy_headers Cookie>X-Answer-Cookie",
        "request_header -Authorization",
        "request_header -Cookie",
        "@cookies header_regexp X-Answer-Cookie ^[^{]",
        "request_header @cookies Cookie {http.request.header.X-Answer-Cookie}",
    ];
    // Before the question and behind it.
    let text = caddy_configuration(places)
        .replace("# request_header -X-Answer-Cookie", "request_header -X-Answer-Cookie");
    uncomment(&text, &lines)
}

fn caddy_configuration(places: &Places) -> String {
    deploy_file(
        "caddy/Caddyfile",
        &[
            (":10000 {", ":0 {".to_owned()),
            ("forward_auth 127.0.0.1:9192", format!("forward_auth {}", places.door)),
            ("reverse_proxy 127.0.0.1:8080", format!("reverse_proxy {}", places.upstream)),
        ],
    )
}

fn run_caddy(mut command: Command, text: &str) -> Started {
    let folder = folder();
    // Its admin door is on a fixed port.
    let config = folder.path().join("Caddyfile");
    let text = text.replacen("{\n\tservers {\n", "{\n\tadmin off\n\tservers {\n", 1);
    fs::write(&config, text).expect("the folder can be written to");
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&config);
    for variable in ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
        command.env(variable, folder.path());
    }
    let process = Process::start("caddy", &mut command, folder.path());
    Started { process, listens: Listens::AsItsLogSays, _folder: folder }
}

/// Traefik, built from its module.
pub fn traefik(places: &Places) -> Started {
    let routes = traefik_routes(places);
    run_traefik(&routes)
}

/// The same with the lines for `forward_token: false`.
pub fn traefik_hiding_tokens(places: &Places) -> Started {
    let routes = uncomment(&traefik_routes(places), &["- Cookie", "Authorization: \"\""]);
    run_traefik(&routes)
}

fn traefik_routes(places: &Places) -> String {
    deploy_file(
        "traefik/dynamic.yaml",
        &[
            ("http://127.0.0.1:9192/", format!("http://{}/", places.door)),
            ("http://127.0.0.1:8080", format!("http://{}", places.upstream)),
        ],
    )
}

fn run_traefik(routes: &str) -> Started {
    let (folder, address) = (folder(), free_address());
    let main = deploy_file("traefik/traefik.yaml", &[("address: :10000", format!("address: '{address}'"))]);
    fs::write(folder.path().join("traefik.yaml"), main).expect("the folder can be written to");
    fs::write(folder.path().join("dynamic.yaml"), routes).expect("the folder can be written to");
    let mut command = Command::new(program_path("PORTCULLIS_TEST_TRAEFIK", ".cache/traefik"));
    command.current_dir(folder.path()).arg("--configFile=traefik.yaml");
    let process = Process::start("traefik", &mut command, folder.path());
    Started { process, listens: Listens::At(address), _folder: folder }
}

/// Envoy that asks over HTTP.
pub fn envoy_http(places: &Places) -> Started {
    run_envoy_http(&envoy_http_configuration(places))
}

/// The same with the line for `forward_token: false`.
pub fn envoy_http_hiding_tokens(places: &Places) -> Started {
    run_envoy_http(&uncomment(&envoy_http_configuration(places), &["- {exact: cookie}"]))
}

fn envoy_http_configuration(places: &Places) -> String {
    deploy_file(
        "envoy/envoy-http.yaml",
        &[
            ("address: 127.0.0.1, port_value: 9901", local_port(0)),
            ("address: 0.0.0.0, port_value: 10000", local_port(0)),
            ("address: 127.0.0.1, port_value: 9192", local_port(places.door.port())),
            ("port_value: 9193", format!("port_value: {}", places.admin.port())),
            ("address: 127.0.0.1, port_value: 8080", local_port(places.upstream.port())),
        ],
    )
}

fn run_envoy_http(text: &str) -> Started {
    let folder = folder();
    let config = folder.path().join("envoy.yaml");
    fs::write(&config, text).expect("the folder can be written to");
    let mut command = Command::new(program_path("PORTCULLIS_TEST_ENVOY", ".cache/envoy"));
    // Hot restart would make two Envoys on one machine find each other.
    command.args(["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]);
    command.arg("--admin-address-path").arg(folder.path().join(ADMIN_FILE)).arg("--config-path").arg(config);
    let process = Process::start("envoy", &mut command, folder.path());
    Started { process, listens: Listens::AsItsAdminSays, _folder: folder }
}

/// Envoy that asks over gRPC. Portcullis says itself what is removed: no line is switched on to hide tokens.
pub fn envoy_grpc(places: &Places) -> Started {
    let folder = folder();
    let text = deploy_file(
        "envoy/envoy-grpc.yaml",
        &[
            ("address: 127.0.0.1, port_value: 9901", local_port(0)),
            ("address: 0.0.0.0, port_value: 10000", local_port(0)),
            ("address: 127.0.0.1, port_value: 9191", local_port(places.ext_authz.port())),
            ("address: 127.0.0.1, port_value: 8080", local_port(places.upstream.port())),
        ],
    );
    let config = folder.path().join("envoy.yaml");
    fs::write(&config, text).expect("the folder can be written to");
    let mut command = Command::new(program_path("PORTCULLIS_TEST_ENVOY", ".cache/envoy"));
    command.args(["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]);
    command.arg("--admin-address-path").arg(folder.path().join(ADMIN_FILE)).arg("--config-path").arg(config);
    let process = Process::start("envoy", &mut command, folder.path());
    Started { process, listens: Listens::AsItsAdminSays, _folder: folder }
}
