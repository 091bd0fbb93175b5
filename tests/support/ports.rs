//! Ports for programs that have to be told where to listen: whatever can is told port 0 and says what it got.
//!
//! They lie below those that the system gives to whoever binds port 0 or connects, and each is kept for as long as
//! the test process lives: nobody else takes one between the moment at which it is given out and the bind.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self, UnixListener};
use std::sync::{Mutex, PoisonError};

/// Below Linux's `net.ipv4.ip_local_port_range`, which begins at 32768.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// Ports of this process: each is an abstract socket's name, which one process on this machine can have at a time.
static KEPT: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

/// A port at which nobody listens on any address, and which no other test is given.
pub fn free_port() -> u16 {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    // Test binaries that run side by side begin at different ones.
    let ports = PORTS.end - PORTS.start;
    let first = (std::process::id() * 101 % u32::from(ports)) as u16;
    let port = (0..ports).map(|step| PORTS.start + (first + step) % ports).find_map(|port| {
        let name = net::SocketAddr::from_abstract_name(format!("portcullis-test-port-{port}")).ok()?;
        let keeper = UnixListener::bind_addr(&name).ok()?;
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).ok()?;
        kept.push(keeper);
        Some(port)
    });
    port.expect("a port that nobody has")
}

/// The same, on the loopback interface.
pub fn free_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port()).into()
}
