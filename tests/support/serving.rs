//! The addresses of `portcullis serve`, read from the line that it logs when it serves.

use std::net::SocketAddr;

use serde_json::Value;

/// The addresses of a service that binds port 0.
#[derive(Clone, Debug)]
pub struct Serving {
    /// The TCP addresses of `listen.ext_authz`, in order.
    pub ext_authz: Vec<SocketAddr>,
    /// The addresses of `listen.forward_auth`, in order.
    pub forward_auth: Vec<SocketAddr>,
    /// The address of `listen.admin`.
    pub admin: Option<SocketAddr>,
}

impl Serving {
    /// Reads the log line `serving`, as JSON; `None` for any other line.
    pub fn read(line: &str) -> Option<Self> {
        let line: Value = serde_json::from_str(line).ok()?;
        (line["message"] == "serving").then(|| {
            let listed = |name: &str| {
                let addresses = line[name].as_str().unwrap_or_default().split_whitespace();
                addresses.map(|one| one.parse().expect("an address")).collect::<Vec<SocketAddr>>()
            };
            Self {
                ext_authz: listed("ext_authz"),
                forward_auth: listed("forward_auth"),
                admin: listed("admin").first().copied(),
            }
        })
    }

    /// The address of the first gRPC listener.
    pub fn grpc(&self) -> SocketAddr {
        self.ext_authz[0]
    }

    /// The address of the first HTTP listener.
    pub fn http(&self) -> SocketAddr {
        self.forward_auth[0]
    }

    /// The address of the admin listener.
    pub fn admin(&self) -> SocketAddr {
        self.admin.expect("listen.admin is configured")
    }
}
