//! Starts each real proxy with its files of `deploy/`, where only addresses are changed, or with the file that
//! `portcullis recipe` prints for the configuration of the service.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::real::{
    MAX_ATTEMPTS, Portcullis, Process, TIMEOUT, debian_command, deploy_file, eventually, folder,
    free_address, local_port, printed_file, program_path, replaced, wait_for_envoy,
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
    /// The configuration of the service, with these addresses.
    pub config: String,
    /// The folder of the proxy's certificates, instead of the one in the printed file.
    pub certificates: Option<PathBuf>,
}

impl Addresses {
    /// The addresses of this service, and of the upstream that the proxy forwards to.
    pub fn new(portcullis: &Portcullis, upstream: SocketAddr) -> Self {
        let Portcullis { forward_auth, ext_authz, admin, ref config, .. } = *portcullis;
        Self { forward_auth, ext_authz, admin, upstream, config: config.clone(), certificates: None }
    }

    /// The file that `portcullis recipe` prints for the service.
    pub fn printed_file(&self, proxy: &str) -> String {
        let text = printed_file(proxy, &self.config);
        let Some(folder) = &self.certificates else { return text };
        let folder = format!("{}/portcullis-", folder.display());
        ["nginx", "caddy", "haproxy", "traefik", "envoy"]
            .into_iter()
            .fold(text, |text, owner| text.replace(&format!("/etc/{owner}/portcullis-"), &folder))
    }
}

/// A proxy process.
pub struct RunningProxy {
    pub process: Process,
    address: AddressSource,
    /// Its files.
    folder: TempDir,
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
    /// The address of Envoy's admin interface.
    pub fn admin(&self) -> String {
        fs::read_to_string(self.folder.path().join(ADMIN_FILE)).expect("Envoy has written it")
    }

    /// Waits until the proxy listens, and returns its address; `None` if the port is in use.
    async fn address(&mut self) -> Option<SocketAddr> {
        if matches!(self.address, AddressSource::Admin) {
            let admin_file = self.folder.path().join(ADMIN_FILE);
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
    let door = ("server 127.0.0.1:9192;", format!("server {};", addresses.forward_auth));
    run_nginx(with_upstream_of_nginx(&replaced(&deploy_file("nginx/nginx.conf"), &[door]), addresses))
}

/// The same with the printed file.
pub fn nginx_with_recipe(addresses: &Addresses) -> RunningProxy {
    run_nginx(with_upstream_of_nginx(&addresses.printed_file("nginx"), addresses))
}

/// The same with the printed file, whose authorization requests name the rule `orders`.
pub fn nginx_naming_a_rule(addresses: &Addresses) -> RunningProxy {
    let named = "proxy_pass http://portcullis/rule/orders;";
    let text = naming_a_rule(&addresses.printed_file("nginx"), "proxy_pass http://portcullis;", named);
    run_nginx(with_upstream_of_nginx(&text, addresses))
}

/// The text with another URL of the authorization request, where it occurs first.
fn naming_a_rule(text: &str, url: &str, named: &str) -> String {
    assert!(text.contains(url), "{url}");
    text.replacen(url, named, 1)
}

fn with_upstream_of_nginx(text: &str, addresses: &Addresses) -> String {
    replaced(text, &[("server 127.0.0.1:8080;", format!("server {};", addresses.upstream))])
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
    RunningProxy { process, address: AddressSource::Fixed(address), folder }
}

/// Debian's HAProxy.
pub fn haproxy(addresses: &Addresses) -> RunningProxy {
    let door = ("http://127.0.0.1:9192/", format!("http://{}/", addresses.forward_auth));
    run_haproxy(&replaced(&deploy_file("haproxy/haproxy.cfg"), &[door]), addresses)
}

/// The same with the printed file.
pub fn haproxy_with_recipe(addresses: &Addresses) -> RunningProxy {
    run_haproxy(&addresses.printed_file("haproxy"), addresses)
}

/// The same with the printed file, whose authorization requests name the rule `orders`.
pub fn haproxy_naming_a_rule(addresses: &Addresses) -> RunningProxy {
    let url = format!("http://{}/", addresses.forward_auth);
    let text = naming_a_rule(&addresses.printed_file("haproxy"), &url, &format!("{url}rule/orders"));
    run_haproxy(&text, addresses)
}

fn run_haproxy(text: &str, addresses: &Addresses) -> RunningProxy {
    let (folder, address) = (folder(), free_address());
    let own = [
        ("bind :10000", format!("bind {address}")),
        ("server app 127.0.0.1:8080", format!("server app {}", addresses.upstream)),
    ];
    fs::write(folder.path().join("haproxy.cfg"), replaced(text, &own)).expect("the folder can be written to");
    let action = deploy_file("haproxy/portcullis.lua");
    fs::write(folder.path().join("portcullis.lua"), action).expect("the folder can be written to");
    let mut command = debian_command("usr/sbin/haproxy");
    command.current_dir(folder.path()).args(["-db", "-f", "haproxy.cfg"]);
    let process = Process::start("haproxy", &mut command, folder.path());
    RunningProxy { process, address: AddressSource::Fixed(address), folder }
}

/// Debian's Caddy.
pub fn caddy(addresses: &Addresses) -> RunningProxy {
    run_caddy(debian_command("usr/bin/caddy"), &shipped_caddyfile(addresses), addresses)
}

/// The same with the printed file.
pub fn caddy_with_recipe(addresses: &Addresses) -> RunningProxy {
    run_caddy(debian_command("usr/bin/caddy"), &addresses.printed_file("caddy"), addresses)
}

/// Caddy 2.10, built from its module.
pub fn caddy_2_10(addresses: &Addresses) -> RunningProxy {
    run_caddy(caddy_2_10_program(), &shipped_caddyfile(addresses), addresses)
}

/// The same with the printed file.
pub fn caddy_2_10_with_recipe(addresses: &Addresses) -> RunningProxy {
    run_caddy(caddy_2_10_program(), &addresses.printed_file("caddy"), addresses)
}

/// Caddy 2.11, built from its module.
pub fn caddy_2_11(addresses: &Addresses) -> RunningProxy {
    run_caddy(caddy_2_11_program(), &shipped_caddyfile(addresses), addresses)
}

/// The same with the printed file.
pub fn caddy_2_11_with_recipe(addresses: &Addresses) -> RunningProxy {
    run_caddy(caddy_2_11_program(), &addresses.printed_file("caddy"), addresses)
}

/// Debian's, whose authorization requests name the rule `orders`.
pub fn caddy_naming_a_rule(addresses: &Addresses) -> RunningProxy {
    let text = naming_a_rule(&addresses.printed_file("caddy"), "uri /?", "uri /rule/orders?");
    run_caddy(debian_command("usr/bin/caddy"), &text, addresses)
}

fn caddy_2_10_program() -> Command {
    Command::new(program_path("PORTCULLIS_TEST_CADDY_2_10", ".cache/caddy-2.10"))
}

fn caddy_2_11_program() -> Command {
    Command::new(program_path("PORTCULLIS_TEST_CADDY_2_11", ".cache/caddy-2.11"))
}

fn shipped_caddyfile(addresses: &Addresses) -> String {
    let door = ("forward_auth 127.0.0.1:9192", format!("forward_auth {}", addresses.forward_auth));
    replaced(&deploy_file("caddy/Caddyfile"), &[door])
}

fn run_caddy(mut command: Command, text: &str, addresses: &Addresses) -> RunningProxy {
    let folder = folder();
    let config = folder.path().join("Caddyfile");
    let own = [
        (":10000 {", ":0 {".to_owned()),
        ("reverse_proxy 127.0.0.1:8080", format!("reverse_proxy {}", addresses.upstream)),
        // The admin API has a fixed port.
        ("{\n\tservers {\n", "{\n\tadmin off\n\tservers {\n".to_owned()),
    ];
    let text = replaced(text, &own);
    fs::write(&config, text).expect("the folder can be written to");
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&config);
    for variable in ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
        command.env(variable, folder.path());
    }
    let process = Process::start("caddy", &mut command, folder.path());
    RunningProxy { process, address: AddressSource::Log, folder }
}

/// Traefik, built from its module.
pub fn traefik(addresses: &Addresses) -> RunningProxy {
    let door = ("http://127.0.0.1:9192/", format!("http://{}/", addresses.forward_auth));
    run_traefik(&replaced(&deploy_file("traefik/dynamic.yaml"), &[door]), addresses)
}

/// The same with the printed file.
pub fn traefik_with_recipe(addresses: &Addresses) -> RunningProxy {
    run_traefik(&addresses.printed_file("traefik"), addresses)
}

/// The same with the printed file, whose authorization requests name the rule `orders`.
pub fn traefik_naming_a_rule(addresses: &Addresses) -> RunningProxy {
    let url = format!("http://{}/", addresses.forward_auth);
    run_traefik(
        &naming_a_rule(&addresses.printed_file("traefik"), &url, &format!("{url}rule/orders")),
        addresses,
    )
}

fn run_traefik(routes: &str, addresses: &Addresses) -> RunningProxy {
    let (folder, address) = (folder(), free_address());
    let upstream = ("http://127.0.0.1:8080", format!("http://{}", addresses.upstream));
    let routes = replaced(routes, &[upstream]);
    let main = deploy_file("traefik/traefik.yaml");
    let main = replaced(&main, &[("address: :10000", format!("address: '{address}'"))]);
    fs::write(folder.path().join("traefik.yaml"), main).expect("the folder can be written to");
    fs::write(folder.path().join("dynamic.yaml"), routes).expect("the folder can be written to");
    let mut command = Command::new(program_path("PORTCULLIS_TEST_TRAEFIK", ".cache/traefik"));
    command.current_dir(folder.path()).arg("--configFile=traefik.yaml");
    let process = Process::start("traefik", &mut command, folder.path());
    RunningProxy { process, address: AddressSource::Fixed(address), folder }
}

/// Envoy with ext_authz over HTTP.
pub fn envoy_http(addresses: &Addresses) -> RunningProxy {
    let doors = [
        ("address: 127.0.0.1, port_value: 9192", local_port(addresses.forward_auth.port())),
        ("port_value: 9193", format!("port_value: {}", addresses.admin.port())),
    ];
    run_envoy(&replaced(&deploy_file("envoy/envoy-http.yaml"), &doors), addresses)
}

/// The same with the printed file.
pub fn envoy_http_with_recipe(addresses: &Addresses) -> RunningProxy {
    run_envoy(&addresses.printed_file("envoy-http"), addresses)
}

/// Envoy with ext_authz over gRPC.
pub fn envoy_grpc(addresses: &Addresses) -> RunningProxy {
    let door = ("address: 127.0.0.1, port_value: 9191", local_port(addresses.ext_authz.port()));
    run_envoy(&replaced(&deploy_file("envoy/envoy-grpc.yaml"), &[door]), addresses)
}

/// The same with the printed file.
pub fn envoy_grpc_with_recipe(addresses: &Addresses) -> RunningProxy {
    run_envoy(&addresses.printed_file("envoy"), addresses)
}

fn run_envoy(text: &str, addresses: &Addresses) -> RunningProxy {
    let own = [
        ("address: 127.0.0.1, port_value: 9901", local_port(0)),
        ("address: 0.0.0.0, port_value: 10000", local_port(0)),
        ("address: 127.0.0.1, port_value: 8080", local_port(addresses.upstream.port())),
    ];
    let folder = folder();
    let config = folder.path().join("envoy.yaml");
    fs::write(&config, replaced(text, &own)).expect("the folder can be written to");
    let mut command = Command::new(program_path("PORTCULLIS_TEST_ENVOY", ".cache/envoy"));
    // Hot restart would connect two Envoys on one machine.
    command.args(["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]);
    command.arg("--admin-address-path").arg(folder.path().join(ADMIN_FILE)).arg("--config-path").arg(config);
    let process = Process::start("envoy", &mut command, folder.path());
    RunningProxy { process, address: AddressSource::Admin, folder }
}
