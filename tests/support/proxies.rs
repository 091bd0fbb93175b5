//! Starts each real proxy under its shipped files of `deploy/`, where nothing but addresses is changed.
//!
//! It knows nothing of what is then asked of them.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use tempfile::TempDir;

use crate::real::{Process, debian, folder, local_port, part, shipped};

/// What a proxy's configuration has to name.
pub struct Places {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The HTTP door.
    pub door: SocketAddr,
    /// The operator's door.
    pub admin: SocketAddr,
    /// Where it forwards to.
    pub upstream: SocketAddr,
    /// What stands in its files as a comment and is switched on: each text, and what stands there instead.
    pub switched_on: &'static [(&'static str, &'static str)],
}

impl Places {
    /// A shipped file with these addresses, and with what is switched on in it.
    fn shipped(&self, file: &str, changes: &[(&str, String)]) -> String {
        let text = shipped(file, changes);
        self.switched_on.iter().fold(text, |text, (from, to)| text.replace(from, to))
    }
}

/// A proxy that was started.
pub struct Started {
    pub process: Process,
    /// Where its files are; they go with it.
    pub folder: TempDir,
}

/// Debian's NGINX.
pub fn nginx(places: Places) -> Started {
    let text = nginx_configuration(&places);
    run_nginx(text)
}

/// The shipped file with these addresses.
pub fn nginx_configuration(places: &Places) -> String {
    places.shipped(
        "nginx/nginx.conf",
        &[
            ("server 127.0.0.1:9192;", format!("server {};", places.door)),
            ("server 127.0.0.1:8080;", format!("server {};", places.upstream)),
            ("listen 10000;", format!("listen {};", places.listen)),
        ],
    )
}

/// Debian's NGINX under this text.
pub fn run_nginx(text: String) -> Started {
    let folder = folder();
    // Where Debian's build keeps its files belongs to the system's NGINX.
    let own = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {}/{kind};\n", folder.path().display()));
    let text = text.replacen("http {\n", &format!("http {{\n    access_log off;\n{}", own.concat()), 1);
    let config = folder.path().join("nginx.conf");
    fs::write(&config, text).expect("the folder can be written to");
    let mut command = debian("usr/sbin/nginx");
    command.arg("-p").arg(folder.path()).arg("-c").arg(&config).args(["-e", "stderr"]);
    command.arg("-g").arg(format!("daemon off; pid {}/pid;", folder.path().display()));
    let process = Process::start("nginx", &mut command, folder.path());
    Started { process, folder }
}

/// Debian's Caddy.
pub fn caddy(places: Places) -> Started {
    run_caddy(places, debian("usr/bin/caddy"))
}

/// Caddy 2.10, built from its module.
pub fn caddy_2_10(places: Places) -> Started {
    run_caddy(places, Command::new(part("PORTCULLIS_TEST_CADDY_2_10", ".cache/caddy-2.10")))
}

/// Caddy 2.11, built from its module.
pub fn caddy_2_11(places: Places) -> Started {
    run_caddy(places, Command::new(part("PORTCULLIS_TEST_CADDY_2_11", ".cache/caddy-2.11")))
}

fn run_caddy(places: Places, mut command: Command) -> Started {
    let folder = folder();
    let text = places.shipped(
        "caddy/Caddyfile",
        &[
            // With an address it would serve no other Host.
            (":10000 {", format!(":{} {{", places.listen.port())),
            ("forward_auth 127.0.0.1:9192", format!("forward_auth {}", places.door)),
            ("reverse_proxy 127.0.0.1:8080", format!("reverse_proxy {}", places.upstream)),
        ],
    );
    // Its admin door is on a fixed port.
    let config = folder.path().join("Caddyfile");
    fs::write(&config, format!("{{\n\tadmin off\n}}\n{text}")).expect("the folder can be written to");
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&config);
    for variable in ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
        command.env(variable, folder.path());
    }
    let process = Process::start("caddy", &mut command, folder.path());
    Started { process, folder }
}

/// Debian's HAProxy.
pub fn haproxy(places: Places) -> Started {
    let folder = folder();
    let config = places.shipped(
        "haproxy/haproxy.cfg",
        &[
            ("bind :10000", format!("bind {}", places.listen)),
            ("server app 127.0.0.1:8080", format!("server app {}", places.upstream)),
        ],
    );
    let action = places
        .shipped("haproxy/portcullis.lua", &[("http://127.0.0.1:9192/", format!("http://{}/", places.door))]);
    fs::write(folder.path().join("haproxy.cfg"), config).expect("the folder can be written to");
    fs::write(folder.path().join("portcullis.lua"), action).expect("the folder can be written to");
    let mut command = debian("usr/sbin/haproxy");
    command.current_dir(folder.path()).args(["-db", "-f", "haproxy.cfg"]);
    let process = Process::start("haproxy", &mut command, folder.path());
    Started { process, folder }
}

/// Traefik, built from its module.
pub fn traefik(places: Places) -> Started {
    let folder = folder();
    let main = places
        .shipped("traefik/traefik.yaml", &[("address: :10000", format!("address: '{}'", places.listen))]);
    let routes = places.shipped(
        "traefik/dynamic.yaml",
        &[
            ("http://127.0.0.1:9192/", format!("http://{}/", places.door)),
            ("http://127.0.0.1:8080", format!("http://{}", places.upstream)),
        ],
    );
    fs::write(folder.path().join("traefik.yaml"), main).expect("the folder can be written to");
    fs::write(folder.path().join("dynamic.yaml"), routes).expect("the folder can be written to");
    let mut command = Command::new(part("PORTCULLIS_TEST_TRAEFIK", ".cache/traefik"));
    command.current_dir(folder.path()).arg("--configFile=traefik.yaml");
    let process = Process::start("traefik", &mut command, folder.path());
    Started { process, folder }
}

/// Envoy that asks over HTTP.
pub fn envoy_http(places: Places) -> Started {
    let folder = folder();
    let text = places.shipped(
        "envoy/envoy-http.yaml",
        &[
            ("address: 127.0.0.1, port_value: 9901", local_port(0)),
            ("address: 0.0.0.0, port_value: 10000", local_port(places.listen.port())),
            ("address: 127.0.0.1, port_value: 9192", local_port(places.door.port())),
            ("port_value: 9193", format!("port_value: {}", places.admin.port())),
            ("address: 127.0.0.1, port_value: 8080", local_port(places.upstream.port())),
        ],
    );
    let config = folder.path().join("envoy.yaml");
    fs::write(&config, text).expect("the folder can be written to");
    let mut command = Command::new(part("PORTCULLIS_TEST_ENVOY", ".cache/envoy"));
    // Hot restart would make two Envoys on one machine find each other.
    command.args(["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]);
    command.arg("--config-path").arg(config);
    let process = Process::start("envoy", &mut command, folder.path());
    Started { process, folder }
}
