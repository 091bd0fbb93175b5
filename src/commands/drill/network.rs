//! Finds the gateway's addresses, and the address by which it can reach the drill's issuer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{UdpSocket, lookup_host};

/// The default issuer address with a target, fixed so that the target can be configured in advance.
const ISSUER_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9195);

/// The network location of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GatewayLocation {
    /// Its resolved addresses; never empty.
    pub(super) addresses: Vec<SocketAddr>,
    /// The local source address of connections to it; `None` without a route.
    pub(super) source: Option<IpAddr>,
    /// Whether it is on this machine and can reach loopback addresses.
    pub(super) is_local: bool,
}

impl GatewayLocation {
    /// Resolves `HOST:PORT`. Nothing is sent to the gateway.
    ///
    /// # Errors
    /// The name has no address.
    pub(super) async fn resolve(authority: &str) -> Result<Self, String> {
        let failed = |why: String| format!("--target {authority}: the name cannot be resolved: {why}");
        let addresses = lookup_host(authority).await.map_err(|error| failed(error.to_string()))?;
        let addresses: Vec<SocketAddr> = addresses.collect();
        if addresses.is_empty() {
            return Err(failed("it has no address".to_owned()));
        }
        let mut location = Self { addresses: Vec::new(), source: None, is_local: false };
        for address in &addresses {
            let source = source_address(*address).await;
            // The source address of a connection to a local address is that address.
            location.is_local |= is_loopback(address.ip()) || source == Some(address.ip());
            location.source = location.source.or(source);
        }
        Ok(Self { addresses, ..location })
    }
}

/// The local source address for a destination. Connecting a datagram socket sends nothing.
async fn source_address(address: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await.ok()?;
    socket.connect(address).await.ok()?;
    socket.local_addr().ok().map(|local| local.ip())
}

/// Whether the address is reachable from this machine only.
pub(super) fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// The address on which the issuer listens: the given one, or a free port for the Portcullis inside the drill (no
/// `gateway`), or [`ISSUER_ADDRESS`] for another gateway. The issuer's name and the URL of its keys contain it, so the
/// gateway must be able to reach it.
///
/// # Errors
/// The gateway cannot reach it.
pub(super) fn issuer_address(
    given: Option<SocketAddr>,
    gateway: Option<&GatewayLocation>,
) -> Result<SocketAddr, String> {
    let default = if gateway.is_some() { ISSUER_ADDRESS } else { (Ipv4Addr::LOCALHOST, 0).into() };
    let address = given.unwrap_or(default);
    let refused = |why: &str| {
        let source = gateway.map_or(Some(Ipv4Addr::LOCALHOST.into()), |gateway| gateway.source);
        let example = source.map_or(String::new(), |source| {
            format!(", such as --issuer-address {}", SocketAddr::new(source, address.port()))
        });
        Err(format!(
            "the issuer's address {address} {why}: use an address of this machine that the gateway can reach{example}"
        ))
    };
    let ip = address.ip().to_canonical();
    if ip.is_unspecified() {
        return refused("is unspecified and cannot be used in a URL");
    }
    if matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
        return refused("is link-local and cannot be used in a URL");
    }
    if ip.is_loopback() && gateway.is_some_and(|gateway| !gateway.is_local) {
        return refused("is reachable from this machine only, and the gateway is on another");
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(gateway: &str, source: &str, is_local: bool) -> GatewayLocation {
        GatewayLocation {
            addresses: vec![gateway.parse().expect("an address")],
            source: Some(source.parse().expect("an address")),
            is_local,
        }
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_issuer_address_that_the_gateway_can_reach_is_accepted() {
        let here = location("127.0.0.1:9191", "127.0.0.1", true);
        let own = location("10.0.0.5:9191", "10.0.0.5", true);
        let far = location("10.0.0.7:9191", "10.0.0.5", false);
        for (given, gateway, expected) in [
            (None, None, "127.0.0.1:0"),
            (None, Some(&here), "127.0.0.1:9195"),
            (None, Some(&own), "127.0.0.1:9195"),
            (Some("[::1]:7"), Some(&here), "[::1]:7"),
            (Some("[::ffff:127.0.0.1]:7"), Some(&own), "[::ffff:127.0.0.1]:7"),
            (Some("10.0.0.5:7"), Some(&far), "10.0.0.5:7"),
            (Some("10.0.0.5:7"), None, "10.0.0.5:7"),
            (Some("[2001:db8::5]:7"), Some(&far), "[2001:db8::5]:7"),
        ] {
            assert_eq!(issuer_address(given.map(address), gateway), Ok(address(expected)), "{given:?}");
        }
    }

    #[test]
    fn an_address_that_the_gateway_cannot_reach_is_refused_with_an_example() {
        let far = location("10.0.0.7:9191", "10.0.0.5", false);
        let no_route = GatewayLocation { source: None, ..far.clone() };
        for (given, gateway, expected) in [
            (None, Some(&far), "--issuer-address 10.0.0.5:9195"),
            (None, Some(&no_route), "use an address of this machine that the gateway can reach"),
            (Some("127.0.0.9:7"), Some(&far), "--issuer-address 10.0.0.5:7"),
            (Some("[::ffff:127.0.0.1]:7"), Some(&far), "--issuer-address 10.0.0.5:7"),
            (Some("0.0.0.0:7"), Some(&far), "--issuer-address 10.0.0.5:7"),
            (Some("[::]:7"), Some(&far), "cannot be used in a URL"),
            (Some("[::ffff:0.0.0.0]:7"), None, "--issuer-address 127.0.0.1:7"),
            (Some("0.0.0.0:7"), None, "--issuer-address 127.0.0.1:7"),
            (Some("[fe80::1%2]:7"), Some(&far), "is link-local"),
        ] {
            let error = issuer_address(given.map(address), gateway).expect_err("is not reached");
            assert!(error.contains(expected), "{given:?}: {error}");
        }
    }

    #[tokio::test]
    async fn a_gateway_at_a_loopback_address_is_on_this_machine() {
        for (authority, expected) in [("127.0.0.1:80", "127.0.0.1:80"), ("127.9.9.9:80", "127.9.9.9:80")] {
            let location = GatewayLocation::resolve(authority).await.expect("is an address");
            assert_eq!(location.addresses, [address(expected)]);
            assert!(location.is_local, "{location:?}");
        }
        let error = GatewayLocation::resolve("127.0.0.1:none").await.expect_err("has no port");
        assert!(error.contains("cannot be resolved"), "{error}");
    }
}
