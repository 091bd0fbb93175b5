//! Servers in processes of their own, on a core of their own, and what they cost.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

/// Where servers listen.
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 10_000;

/// A server that is measured. It ends with this.
pub struct Server {
    child: Child,
}

impl Server {
    /// Starts a program on this core.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(core: usize, program: &str, arguments: &[&str]) -> io::Result<Self> {
        let child = command(core, program, arguments).stderr(Stdio::null()).spawn()?;
        Ok(Self { child })
    }

    /// Starts a program on this core; what it says of its errors goes into this file.
    ///
    /// # Errors
    /// It cannot be started, or the file not be written.
    pub fn start_with_log(core: usize, program: &str, arguments: &[&str], log: &Path) -> io::Result<Self> {
        let child = command(core, program, arguments).stderr(File::create(log)?).spawn()?;
        Ok(Self { child })
    }

    /// The processor time that its threads have taken so far, in user and kernel mode.
    pub fn cpu(&self) -> Duration {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let took = threads.into_iter().flatten().flatten().filter_map(|thread| {
            // The first number is the time on a processor in nanoseconds; /proc/PID/stat has hundredths of a second.
            let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(took.sum())
    }

    /// What it holds in memory, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }
}

fn command(core: usize, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string(), program]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// A port that was free a moment ago: servers cannot tell which one they got. It is none of those that Linux gives to
/// outgoing connections (from 32768), of which there are many.
///
/// # Errors
/// No port is free.
pub fn free() -> io::Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let own = u16::try_from(std::process::id() % 100).unwrap_or(0) * 100;
    let ports = FIRST_PORT..FIRST_PORT + PORTS;
    for _ in ports.clone() {
        let port = FIRST_PORT + (own + NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return listener.local_addr();
        }
    }
    Err(io::Error::other(format!("none of the ports {ports:?} is free")))
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}
