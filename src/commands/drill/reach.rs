//! Where the gateway is, seen from the drill, and by which address it can reach the drill's issuer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{UdpSocket, lookup_host};

/// Where the issuer of a drill with a target is, so that the target can be configured beforehand.
const ISSUER_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9195);

/// Where a gateway is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// What its name stands for; never empty.
    pub(super) addresses: Vec<SocketAddr>,
    /// The address of this machine by which it is reached; none where there is no route.
    pub(super) from: Option<IpAddr>,
    /// Whether it is on this machine, so that the loopback interface reaches back.
    pub(super) is_here: bool,
}

impl Place {
    /// Looks up `HOST:PORT`. Nothing is sent to the gateway.
    ///
    /// # Errors
    /// The name stands for no address.
    pub(super) async fn locate(authority: &str) -> Result<Self, String> {
        let failed = |why: String| format!("--target {authority}: the name cannot be resolved: {why}");
        let addresses = lookup_host(authority).await.map_err(|error| failed(error.to_string()))?;
        let addresses: Vec<SocketAddr> = addresses.collect();
        if addresses.is_empty() {
            return Err(failed("it has no address".to_owned()));
        }
        let mut place = Self { addresses: Vec::new(), from: None, is_here: false };
        for address in &addresses {
            let from = source_of(*address).await;
            // To its own addresses a machine speaks from the very same one.
            place.is_here |= is_loopback(address.ip()) || from == Some(address.ip());
            place.from = place.from.or(from);
        }
        Ok(Self { addresses, ..place })
    }
}

/// The address from which this machine would speak to that one. Connecting a datagram socket sends nothing.
async fn source_of(address: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await.ok()?;
    socket.connect(address).await.ok()?;
    socket.local_addr().ok().map(|local| local.ip())
}

/// Whether only this machine reaches it.
pub(super) fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Where the issuer has to listen: the given address, or else a free port for the Portcullis inside the drill
/// (no `gateway`) and [`ISSUER_ADDRESS`] for another one. It becomes part of the issuer's name and of the URL of
/// its keys, so the gateway has to reach it just so.
///
/// # Errors
/// The gateway cannot.
pub(super) fn issuer_address(
    given: Option<SocketAddr>,
    gateway: Option<&Place>,
) -> Result<SocketAddr, String> {
    let default = if gateway.is_some() { ISSUER_ADDRESS } else { (Ipv4Addr::LOCALHOST, 0).into() };
    let address = given.unwrap_or(default);
    let refused = |why: &str| {
        let from = gateway.map_or(Some(Ipv4Addr::LOCALHOST.into()), |gateway| gateway.from);
        let example = from.map_or(String::new(), |from| {
            format!(", such as --issuer-address {}", SocketAddr::new(from, address.port()))
        });
        Err(format!(
            "the issuer's address {address} {why}: name an address of this machine that the gateway reaches{example}"
        ))
    };
    let ip = address.ip().to_canonical();
    if ip.is_unspecified() {
        return refused("is every address of this machine, and so none that stands in a URL");
    }
    if matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
        return refused("is valid on one link alone, and stands in no URL");
    }
    if ip.is_loopback() && gateway.is_some_and(|gateway| !gateway.is_here) {
        return refused("is reached from this machine alone, and the gateway is on another");
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(gateway: &str, from: &str, is_here: bool) -> Place {
        Place {
            addresses: vec![gateway.parse().expect("an address")],
            from: Some(from.parse().expect("an address")),
            is_here,
        }
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_issuer_is_where_its_gateway_reaches_it() {
        let here = place("127.0.0.1:9191", "127.0.0.1", true);
        let own = place("10.0.0.5:9191", "10.0.0.5", true);
        let far = place("10.0.0.7:9191", "10.0.0.5", false);
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
    fn an_address_that_its_gateway_cannot_reach_is_refused_with_one_that_it_can() {
        let far = place("10.0.0.7:9191", "10.0.0.5", false);
        let nowhere = Place { from: None, ..far.clone() };
        for (given, gateway, expected) in [
            (None, Some(&far), "--issuer-address 10.0.0.5:9195"),
            (None, Some(&nowhere), "name an address of this machine that the gateway reaches"),
            (Some("127.0.0.9:7"), Some(&far), "--issuer-address 10.0.0.5:7"),
            (Some("[::ffff:127.0.0.1]:7"), Some(&far), "--issuer-address 10.0.0.5:7"),
            (Some("0.0.0.0:7"), Some(&far), "--issuer-address 10.0.0.5:7"),
            (Some("[::]:7"), Some(&far), "stands in a URL"),
            (Some("[::ffff:0.0.0.0]:7"), None, "--issuer-address 127.0.0.1:7"),
            (Some("0.0.0.0:7"), None, "--issuer-address 127.0.0.1:7"),
            (Some("[fe80::1%2]:7"), Some(&far), "on one link alone"),
        ] {
            let error = issuer_address(given.map(address), gateway).expect_err("is not reached");
            assert!(error.contains(expected), "{given:?}: {error}");
        }
    }

    #[tokio::test]
    async fn a_gateway_at_a_loopback_address_is_on_this_machine() {
        for (authority, expected) in [("127.0.0.1:80", "127.0.0.1:80"), ("127.9.9.9:80", "127.9.9.9:80")] {
            let place = Place::locate(authority).await.expect("is an address");
            assert_eq!(place.addresses, [address(expected)]);
            assert!(place.is_here, "{place:?}");
        }
        let error = Place::locate("127.0.0.1:none").await.expect_err("has no port");
        assert!(error.contains("cannot be resolved"), "{error}");
    }
}
