//! Free ports for programs that need a fixed port. Programs that can bind port 0 do that and report the port.
//!
//! The ports are below Linux's ephemeral ports, and each is reserved until the test process exits, so that no other
//! test takes it before the program binds it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self, UnixListener};
use std::sync::{Mutex, PoisonError};

/// Below Linux's `net.ipv4.ip_local_port_range`, which begins at 32768.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// Ports reserved by this process, each by an abstract socket name, which only one process can bind.
static RESERVED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

/// Reserves a port that is free on every address.
pub fn free_port() -> u16 {
    let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
    // Test binaries that run in parallel begin at different ports.
    let ports = PORTS.end - PORTS.start;
    let first = (std::process::id() * 101 % u32::from(ports)) as u16;
    let port = (0..ports).map(|step| PORTS.start + (first + step) % ports).find_map(|port| {
        let name = net::SocketAddr::from_abstract_name(format!("portcullis-test-port-{port}")).ok()?;
        let reservation = UnixListener::bind_addr(&name).ok()?;
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).ok()?;
        reserved.push(reservation);
        Some(port)
    });
    port.expect("a free port")
}

/// A free port on the loopback interface.
pub fn free_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port()).into()
}
