//! Starts each real proxy with its files of `deploy/`, where only addresses are changed.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::real::{
    MAX_ATTEMPTS, Process, TIMEOUT, debian_command, deploy_file, eventually, folder, free_address,
    local_port, program_path, uncomment, wait_for_envoy,
};

/// The addresses in a proxy's configuration.
pub struct Addresses {
    /// The HTTP door.
    pub forward_auth: SocketAddr,
    /// The gRPC door.
    pub ext_authz: SocketAddr,
    /// The admin door.
    pub admin: SocketAddr,
    /// The upstream.
    pub upstream: SocketAddr,
}

/// A proxy process.
pub struct RunningProxy {
    pub process: Process,
    address: AddressSource,
    /// Its files.
    _folder: TempDir,
}

/// Where the address of a proxy is known from.
#[derive(Clone, Copy)]
enum AddressSource {
    /// Its configuration.
    Fixed(SocketAddr),
    /// Envoy's admin interface: Envoy binds port 0.
    Admin,
    /// Caddy's log: Caddy binds port 0.
    Log,
}

/// The file that Envoy writes the address of its admin interface to.
const ADMIN_FILE: &str = "admin";

/// Starts a proxy, waits until it listens, and returns its address. Starts it again if its port is in use.
pub async fn start_proxy(
    start: fn(&Addresses) -> RunningProxy,
    addresses: &Addresses,
) -> (RunningProxy, SocketAddr) {
    for _ in 0..MAX_ATTEMPTS {
        let mut proxy = start(addresses);
        if let Some(address) = proxy.address().await {
            return (proxy, address);
        }
    }
    panic!("{MAX_ATTEMPTS} ports in a row are in use");
}

impl RunningProxy {
    /// Waits until the proxy listens, and returns its address; `None` if the port is in use.
    async fn address(&mut self) -> Option<SocketAddr> {
        if matches!(self.address, AddressSource::Admin) {
            let admin_file = self._folder.path().join(ADMIN_FILE);
            return Some(wait_for_envoy(&mut self.process, &admin_file).await);
        }
        eventually("the proxy listens", TIMEOUT, async || {
            if self.process.failed_to_bind() {
                return Some(None);
            }
            self.process.assert_running();
            match self.address {
                AddressSource::Fixed(address) => {
                    self.process.listens_on(address.port()).then_some(Some(address))
                }
                _ => address_in_caddy_log(&self.process.log()).map(Some),
            }
        })
        .await
    }
}

/// The address that Caddy logs for its listener on port 0.
fn address_in_caddy_log(log: &str) -> Option<SocketAddr> {
    let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let line = lines.find(|line| line["msg"] == "port 0 listener")?;
    let bound: SocketAddr = line["actual_address"].as_str()?.parse().ok()?;
    Some((Ipv4Addr::LOCALHOST, bound.port()).into())
}

/// Debian's NGINX.
pub fn nginx(addresses: &Addresses) -> RunningProxy {
    run_nginx(nginx_configuration(addresses))
}

/// The same with the lines for `forward_token: false` uncommented.
pub fn nginx_stripping_tokens(addresses: &Addresses) -> RunningProxy {
    let lines = [
        "proxy_set_header Authorization \"\";",
        "auth_request_set $auth_cookie $upstream_http_cookie;",
        "proxy_set_header Cookie $auth_cookie;",
    ];
    run_nginx(uncomment(&nginx_configuration(addresses), &lines))
}

/// The same whose authorization requests name the rule `orders`.
pub fn nginx_naming_a_rule(addresses: &Addresses) -> RunningProxy {
    run_nginx(naming_a_rule(
        &nginx_configuration(addresses),
        "proxy_pass http://portcullis;",
        "proxy_pass http://portcullis/rule/orders;",
    ))
}

/// The text with another URL of the authorization request, where it occurs first.
fn naming_a_rule(text: &str, url: &str, named: &str) -> String {
    assert!(text.contains(url), "{url}");
    text.replacen(url, named, 1)
}

/// The file of `deploy/` with these addresses.
pub fn nginx_configuration(addresses: &Addresses) -> String {
    deploy_file(
        "nginx/nginx.conf",
        &[
            ("server 127.0.0.1:9192;", format!("server {};", addresses.forward_auth)),
            ("server 127.0.0.1:8080;", format!("server {};", addresses.upstream)),
        ],
    )
}

/// Debian's NGINX with this configuration.
pub fn run_nginx(text: String) -> RunningProxy {
    let (folder, address) = (folder(), free_address());
    assert_eq!(text.matches("listen 10000;").count(), 1);
    let text = text.replace("listen 10000;", &format!("listen {address};"));
    // The default folders of Debian's build belong to the system's NGINX.
    let own = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {}/{kind};\n", folder.path().display()));
    let text = text.replacen("http {\n", &format!("http {{\n    access_log off;\n{}", own.concat()), 1);
    let config = folder.path().join("nginx.conf");
    fs::write(&config, text).expect("the folder can be written to");
    let mut command = debian_command("usr/sbin/nginx");
    command.arg("-p").arg(folder.path()).arg("-c").arg(&config).args(["-e", "stderr"]);
    command.arg("-g").arg(format!("daemon off; pid {}/pid;", folder.path().display()));
    let process = Process::start("nginx", &mut command, folder.path());
    RunningProxy { process, address: AddressSource::Fixed(address), _folder: folder }
}

/// Debian's HAProxy.
pub fn haproxy(addresses: &Addresses) -> RunningProxy {
    let (config, action) = haproxy_configuration(addresses);
    run_haproxy(&config, &action)
}

/// The same with the lines for `forward_token: false` uncommented.
pub fn haproxy_stripping_tokens(addresses: &Addresses) -> RunningProxy {
    let (config, action) = haproxy_configuration(addresses);
    let config = uncomment(&config, &["http-request del-header authorization"]);
    run_haproxy(&config, &action.replace("local FROM_RESPONSE = {}", "local FROM_RESPONSE = { \"cookie\" }"))
}

/// The same whose authorization requests name the rule `orders`.
pub fn haproxy_naming_a_rule(addresses: &Addresses) -> RunningProxy {
    let (config, action) = haproxy_configuration(addresses);
    let url = format!("http://{}/", addresses.forward_auth);
    run_haproxy(&config, &naming_a_rule(&action, &url, &format!("{url}rule/orders")))
}

fn haproxy_configuration(addresses: &Addresses) -> (String, String) {
    let config = deploy_file(
        "haproxy/haproxy.cfg",
        &[("server app 127.0.0.1:8080", format!("server app {}", addresses.upstream))],
    );
    let action = deploy_file(
        "haproxy/portcullis.lua",
        &[("http://127.0.0.1:9192/", format!("http://{}/", addresses.forward_auth))],
    );
    (config, action)
}

fn run_haproxy(config: &str, action: &str) -> RunningProxy {
    let (folder, address) = (folder(), free_address());
    assert_eq!(config.matches("bind :10000").count(), 1);
    let config = config.replace("bind :10000", &format!("bind {address}"));
    fs::write(folder.path().join("haproxy.cfg"), config).expect("the folder can be written to");
    fs::write(folder.path().join("portcullis.lua"), action).expect("the folder can be written to");
    let mut command = debian_command("usr/sbin/haproxy");
    command.current_dir(folder.path()).args(["-db", "-f", "haproxy.cfg"]);
    let process = Process::start("haproxy", &mut command, folder.path());
    RunningProxy { process, address: AddressSource::Fixed(address), _folder: folder }
}

/// Debian's Caddy.
pub fn caddy(addresses: &Addresses) -> RunningProxy {
    run_caddy(debian_command("usr/bin/caddy"), &caddy_configuration(addresses))
}

/// The same with the lines for `forward_token: false` uncommented.
pub fn caddy_stripping_tokens(addresses: &Addresses) -> RunningProxy {
    run_caddy(debian_command("usr/bin/caddy"), &caddy_configuration_stripping_tokens(addresses))
}

/// Caddy 2.10, built from its module.
pub fn caddy_2_10(addresses: &Addresses) -> RunningProxy {
    run_caddy(caddy_2_10_program(), &caddy_configuration(addresses))
}

/// The same with the lines for `forward_token: false` uncommented.
pub fn caddy_2_10_stripping_tokens(addresses: &Addresses) -> RunningProxy {
    run_caddy(caddy_2_10_program(), &caddy_configuration_stripping_tokens(addresses))
}

/// Caddy 2.11, built from its module.
pub fn caddy_2_11(addresses: &Addresses) -> RunningProxy {
    run_caddy(caddy_2_11_program(), &caddy_configuration(addresses))
}

/// The same with the lines for `forward_token: false` uncommented.
pub fn caddy_2_11_stripping_tokens(addresses: &Addresses) -> RunningProxy {
    run_caddy(caddy_2_11_program(), &caddy_configuration_stripping_tokens(addresses))
}

/// Debian's, whose authorization requests name the rule `orders`.
pub fn caddy_naming_a_rule(addresses: &Addresses) -> RunningProxy {
    let text = naming_a_rule(&caddy_configuration(addresses), "uri /?", "uri /rule/orders?");
    run_caddy(debian_command("usr/bin/caddy"), &text)
}

fn caddy_2_10_program() -> Command {
    Command::new(program_path("PORTCULLIS_TEST_CADDY_2_10", ".cache/caddy-2.10"))
}

fn caddy_2_11_program() -> Command {
    Command::new(program_path("PORTCULLIS_TEST_CADDY_2_11", ".cache/caddy-2.11"))
}

fn caddy_configuration_stripping_tokens(addresses: &Addresses) -> String {
    let lines = [
        "copy_headers Cookie>X-Answer-Cookie",
        "request_header -Authorization",
        "request_header -Cookie",
        "@cookies header_regexp X-Answer-Cookie ^[^{]",
        "request_header @cookies Cookie {http.request.header.X-Answer-Cookie}",
    ];
    // It occurs twice: before and after the ext_authz request.
    let text = caddy_configuration(addresses)
        .replace("# request_header -X-Answer-Cookie", "request_header -X-Answer-Cookie");
    uncomment(&text, &lines)
}

fn caddy_configuration(addresses: &Addresses) -> String {
    deploy_file(
        "caddy/Caddyfile",
        &[
            (":10000 {", ":0 {".to_owned()),
            ("forward_auth 127.0.0.1:9192", format!("forward_auth {}", addresses.forward_auth)),
            ("reverse_proxy 127.0.0.1:8080", format!("reverse_proxy {}", addresses.upstream)),
        ],
    )
}

fn run_caddy(mut command: Command, text: &str) -> RunningProxy {
    let folder = folder();
    // The admin API has a fixed port.
    let config = folder.path().join("Caddyfile");
    let text = text.replacen("{\n\tservers {\n", "{\n\tadmin off\n\tservers {\n", 1);
    fs::write(&config, text).expect("the folder can be written to");
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&config);
    for variable in ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
        command.env(variable, folder.path());
    }
    let process = Process::start("caddy", &mut command, folder.path());
    RunningProxy { process, address: AddressSource::Log, _folder: folder }
}

/// Traefik, built from its module.
pub fn traefik(addresses: &Addresses) -> RunningProxy {
    let routes = traefik_routes(addresses);
    run_traefik(&routes)
}

/// The same with the lines for `forward_token: false` uncommented.
pub fn traefik_stripping_tokens(addresses: &Addresses) -> RunningProxy {
    let routes = uncomment(&traefik_routes(addresses), &["- Cookie", "Authorization: \"\""]);
    run_traefik(&routes)
}

/// The same whose authorization requests name the rule `orders`.
pub fn traefik_naming_a_rule(addresses: &Addresses) -> RunningProxy {
    let url = format!("http://{}/", addresses.forward_auth);
    run_traefik(&naming_a_rule(&traefik_routes(addresses), &url, &format!("{url}rule/orders")))
}

fn traefik_routes(addresses: &Addresses) -> String {
    deploy_file(
        "traefik/dynamic.yaml",
        &[
            ("http://127.0.0.1:9192/", format!("http://{}/", addresses.forward_auth)),
            ("http://127.0.0.1:8080", format!("http://{}", addresses.upstream)),
        ],
    )
}

fn run_traefik(routes: &str) -> RunningProxy {
    let (folder, address) = (folder(), free_address());
    let main = deploy_file("traefik/traefik.yaml", &[("address: :10000", format!("address: '{address}'"))]);
    fs::write(folder.path().join("traefik.yaml"), main).expect("the folder can be written to");
    fs::write(folder.path().join("dynamic.yaml"), routes).expect("the folder can be written to");
    let mut command = Command::new(program_path("PORTCULLIS_TEST_TRAEFIK", ".cache/traefik"));
    command.current_dir(folder.path()).arg("--configFile=traefik.yaml");
    let process = Process::start("traefik", &mut command, folder.path());
    RunningProxy { process, address: AddressSource::Fixed(address), _folder: folder }
}

/// Envoy with ext_authz over HTTP.
pub fn envoy_http(addresses: &Addresses) -> RunningProxy {
    run_envoy_http(&envoy_http_configuration(addresses))
}

/// The same with the line for `forward_token: false` uncommented.
pub fn envoy_http_stripping_tokens(addresses: &Addresses) -> RunningProxy {
    run_envoy_http(&uncomment(&envoy_http_configuration(addresses), &["- {exact: cookie}"]))
}

fn envoy_http_configuration(addresses: &Addresses) -> String {
    deploy_file(
        "envoy/envoy-http.yaml",
        &[
            ("address: 127.0.0.1, port_value: 9901", local_port(0)),
            ("address: 0.0.0.0, port_value: 10000", local_port(0)),
            ("address: 127.0.0.1, port_value: 9192", local_port(addresses.forward_auth.port())),
            ("port_value: 9193", format!("port_value: {}", addresses.admin.port())),
            ("address: 127.0.0.1, port_value: 8080", local_port(addresses.upstream.port())),
        ],
    )
}

fn run_envoy_http(text: &str) -> RunningProxy {
    let folder = folder();
    let config = folder.path().join("envoy.yaml");
    fs::write(&config, text).expect("the folder can be written to");
    let mut command = Command::new(program_path("PORTCULLIS_TEST_ENVOY", ".cache/envoy"));
    // Hot restart would connect two Envoys on one machine.
    command.args(["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]);
    command.arg("--admin-address-path").arg(folder.path().join(ADMIN_FILE)).arg("--config-path").arg(config);
    let process = Process::start("envoy", &mut command, folder.path());
    RunningProxy { process, address: AddressSource::Admin, _folder: folder }
}

/// Envoy with ext_authz over gRPC. Portcullis removes tokens itself, so no line is uncommented for that.
pub fn envoy_grpc(addresses: &Addresses) -> RunningProxy {
    let folder = folder();
    let text = deploy_file(
        "envoy/envoy-grpc.yaml",
        &[
            ("address: 127.0.0.1, port_value: 9901", local_port(0)),
            ("address: 0.0.0.0, port_value: 10000", local_port(0)),
            ("address: 127.0.0.1, port_value: 9191", local_port(addresses.ext_authz.port())),
            ("address: 127.0.0.1, port_value: 8080", local_port(addresses.upstream.port())),
        ],
    );
    let config = folder.path().join("envoy.yaml");
    fs::write(&config, text).expect("the folder can be written to");
    let mut command = Command::new(program_path("PORTCULLIS_TEST_ENVOY", ".cache/envoy"));
    command.args(["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]);
    command.arg("--admin-address-path").arg(folder.path().join(ADMIN_FILE)).arg("--config-path").arg(config);
    let process = Process::start("envoy", &mut command, folder.path());
    RunningProxy { process, address: AddressSource::Admin, _folder: folder }
}
