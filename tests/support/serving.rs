//! Where `portcullis serve` listens, by what it says of itself at its start.

use std::net::SocketAddr;

use serde_json::Value;

/// The addresses of a service whose configuration has port 0 everywhere.
#[derive(Clone, Debug)]
pub struct Serving {
    /// Those of `listen.ext_authz` that are on TCP, in its order.
    pub ext_authz: Vec<SocketAddr>,
    /// Those of `listen.forward_auth`, in its order.
    pub forward_auth: Vec<SocketAddr>,
    /// That of `listen.admin`.
    pub admin: Option<SocketAddr>,
}

impl Serving {
    /// From the line of its log that says so, as JSON; none where the line is another.
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

    /// The one gRPC listener.
    pub fn grpc(&self) -> SocketAddr {
        self.ext_authz[0]
    }

    /// The one HTTP listener of a proxy.
    pub fn http(&self) -> SocketAddr {
        self.forward_auth[0]
    }

    /// The operator's.
    pub fn admin(&self) -> SocketAddr {
        self.admin.expect("listen.admin is configured")
    }
}
