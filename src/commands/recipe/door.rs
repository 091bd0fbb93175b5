//! The door that a proxy asks, and the address at which the proxy reaches it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use crate::config::{BindAddress, Config, GrpcListener, Profile, TlsFiles, listener_key};

/// A door, as a proxy sees it.
#[derive(Debug)]
pub(super) struct Door<'a> {
    /// Where the proxy connects to.
    pub(super) address: DoorAddress<'a>,
    pub(super) tls: Option<&'a TlsFiles>,
    /// Its path in the configuration.
    pub(super) key: String,
}

/// The address of a door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DoorAddress<'a> {
    Tcp(SocketAddr),
    Unix(&'a Path),
}

impl Door<'_> {
    /// Whether the proxy must present a certificate of its own.
    pub(super) fn wants_client_certificate(&self) -> bool {
        self.tls.is_some_and(|tls| tls.client_ca_file.is_some())
    }
}

/// An HTTP door and its address, which is never a socket file.
pub(super) struct HttpDoor<'a> {
    pub(super) door: Door<'a>,
    pub(super) address: SocketAddr,
}

impl HttpDoor<'_> {
    /// `https` if the door uses TLS.
    pub(super) fn scheme(&self) -> &'static str {
        if self.door.tls.is_some() { "https" } else { "http" }
    }
}

/// The first HTTP door with this profile.
///
/// # Errors
/// There is none, or its port is not known.
pub(super) fn http_door<'a>(
    config: &'a Config,
    profile: Profile,
    warnings: &mut Vec<String>,
) -> Result<HttpDoor<'a>, String> {
    let doors = &config.listen.forward_auth;
    let fits = |(_, door): &(usize, &crate::config::HttpListener)| door.profile == profile;
    let name = profile.name();
    let Some((index, listener)) = doors.iter().enumerate().find(fits) else {
        return Err(no_door(config, profile));
    };
    let key = listener_key("forward_auth", index, doors.len());
    if doors.iter().filter(|door| door.profile == profile).count() > 1 {
        warnings.push(format!("several doors have the profile {name}: the file has the address of {key}"));
    }
    let address = reachable(listener.address, &key, warnings)?;
    let door = Door { address: DoorAddress::Tcp(address), tls: listener.tls.as_ref(), key };
    warn_of_tls(&door, warnings);
    Ok(HttpDoor { door, address })
}

fn no_door(config: &Config, profile: Profile) -> String {
    let line = format!("{{address: 127.0.0.1:9192, profile: {}}}", profile.name());
    let what = format!("no door has the profile {}", profile.name());
    match config.listen.forward_auth.len() {
        0 => format!("{what}: add to `listen` the line\n  forward_auth: {line}"),
        _ => {
            format!("{what}: make `listen.forward_auth` a list, and add with a port of its own\n    - {line}")
        }
    }
}

/// The first gRPC door.
///
/// # Errors
/// There is none, or its port is not known.
pub(super) fn grpc_door<'a>(config: &'a Config, warnings: &mut Vec<String>) -> Result<Door<'a>, String> {
    let doors = &config.listen.ext_authz;
    let Some(GrpcListener { address, tls }) = doors.first() else {
        return Err("there is no gRPC door: add to `listen` the line\n  ext_authz: 127.0.0.1:9191".to_owned());
    };
    let key = listener_key("ext_authz", 0, doors.len());
    if doors.len() > 1 {
        warnings.push(format!("there are several gRPC doors: the file has the address of {key}"));
    }
    let address = match address {
        BindAddress::Tcp(address) => DoorAddress::Tcp(reachable(*address, &key, warnings)?),
        BindAddress::Unix { path, .. } => DoorAddress::Unix(path),
    };
    let door = Door { address, tls: tls.as_ref(), key };
    warn_of_tls(&door, warnings);
    Ok(door)
}

/// The address for a proxy on this machine.
fn reachable(address: SocketAddr, key: &str, warnings: &mut Vec<String>) -> Result<SocketAddr, String> {
    if address.port() == 0 {
        return Err(format!(
            "{key} has a port that the system chooses, which no file can name: set one, as in 127.0.0.1:9192"
        ));
    }
    let loopback = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        _ => return Ok(address),
    };
    let connect = SocketAddr::new(loopback, address.port());
    warnings.push(format!(
        "{key} listens on every address: the file has {connect}, for a proxy on the same machine; change it for any other"
    ));
    Ok(connect)
}

fn warn_of_tls(door: &Door<'_>, warnings: &mut Vec<String>) {
    if door.tls.is_none() {
        return;
    }
    let key = &door.key;
    warnings.push(format!("{key} uses TLS: change the file of the authority, and the name if there is one"));
    if door.wants_client_certificate() {
        warnings.push(format!(
            "{key} wants a client certificate: change the files of the proxy's certificate and key"
        ));
    }
}
