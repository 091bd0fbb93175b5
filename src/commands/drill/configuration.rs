//! The configuration with which a gateway trusts the drill's issuer: used by the Portcullis inside the drill, and
//! printed for another gateway.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde_json::json;

use super::network::{GatewayLocation, is_loopback};
use super::plan::{FETCH_TIMEOUT, SPACING};
use super::target::TargetUrl;
use crate::commands::issuer::Issuer;

/// The ext_authz address of the examples in `deploy/`.
const EXT_AUTHZ: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9191);

/// The admin port of those examples, and an alternative if the gateway uses that port.
const ADMIN_PORTS: [u16; 2] = [9193, 9194];

/// An issuer that a gateway is to trust.
#[derive(Clone, Debug)]
pub(super) struct TrustedIssuer {
    /// The address on which it listens.
    pub(super) address: SocketAddr,
    /// The `iss` of its tokens.
    pub(super) issuer: String,
    /// The URL of its key set.
    pub(super) jwks_uri: String,
    /// The audience of its tokens.
    pub(super) audience: String,
}

impl TrustedIssuer {
    /// This issuer, with tokens for `audience`.
    pub(super) fn new(issuer: &Issuer, audience: &str) -> Self {
        Self {
            address: issuer.address(),
            issuer: issuer.issuer().to_owned(),
            jwks_uri: issuer.jwks_uri(),
            audience: audience.to_owned(),
        }
    }

    /// A Portcullis configuration with listeners on these addresses.
    pub(super) fn configuration(&self, ext_authz: SocketAddr, admin: SocketAddr) -> String {
        let spacing = SPACING.as_millis();
        // Plain http from another machine must be allowed explicitly.
        let allowed = if is_loopback(self.address.ip()) { "" } else { "\n    allow_http: true" };
        format!(
            "listen: {{ext_authz: '{ext_authz}', admin: '{admin}'}}
providers:
  - name: drill
    issuer: {}
    audiences: [{}]
    jwks_uri: {}{allowed}
    refresh: {{min_spacing: {spacing}ms, min_spacing_bad_signature: {spacing}ms, timeout: {}ms}}
shutdown: {{drain_delay: 0s, grace: 1s}}
log: {{format: text, level: error}}
",
            self.issuer,
            // JSON is valid YAML; `$${` escapes a variable.
            json!(self.audience).to_string().replace("${", "$${"),
            self.jwks_uri,
            FETCH_TIMEOUT.as_millis()
        )
    }

    /// Instructions for the gateway at this location, with a configuration that is valid there.
    pub(super) fn instructions(&self, url: &TargetUrl, location: &GatewayLocation, wait: Duration) -> String {
        let (ext_authz, admin) = listeners(url, location);
        format!(
            "The gateway must trust this issuer:
  issuer:   {}
  key set:  {}
  audience: {}

The complete configuration of a Portcullis:

{}
Waiting up to {} s until a first token is allowed ...
",
            self.issuer,
            self.jwks_uri,
            self.audience,
            self.configuration(ext_authz, admin),
            wait.as_secs()
        )
    }
}

/// The listener addresses of a Portcullis that is the target, or that runs next to a target gateway.
fn listeners(url: &TargetUrl, location: &GatewayLocation) -> (SocketAddr, SocketAddr) {
    let target = location.addresses.first().filter(|_| matches!(url, TargetUrl::Grpc(_)));
    let ext_authz = match target {
        None => EXT_AUTHZ,
        Some(target) if is_loopback(target.ip()) => *target,
        // Only that machine knows which of its addresses is reachable from here.
        Some(target) if target.is_ipv4() => (Ipv4Addr::UNSPECIFIED, target.port()).into(),
        Some(target) => (Ipv6Addr::UNSPECIFIED, target.port()).into(),
    };
    let [default, alternative] = ADMIN_PORTS;
    let admin = if ext_authz.port() == default { alternative } else { default };
    (ext_authz, (Ipv4Addr::LOCALHOST, admin).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, KeySource};

    fn trusted(address: &str, audience: &str) -> TrustedIssuer {
        TrustedIssuer {
            address: address.parse().expect("an address"),
            issuer: format!("http://{address}/realms/demo"),
            jwks_uri: format!("http://{address}/realms/demo/keys"),
            audience: audience.to_owned(),
        }
    }

    fn location(address: &str) -> GatewayLocation {
        GatewayLocation {
            addresses: vec![address.parse().expect("an address")],
            source: None,
            is_local: false,
        }
    }

    /// The configuration in the instructions.
    fn printed(trusted: &TrustedIssuer, url: &str, location: &GatewayLocation) -> String {
        let url = TargetUrl::parse(url, "/").expect("a target");
        let text = trusted.instructions(&url, location, Duration::from_secs(1));
        let (_, rest) = text.split_once("configuration of a Portcullis:\n\n").expect("an introduction");
        let (configuration, _) = rest.split_once("\nWaiting").expect("an end");
        configuration.to_owned()
    }

    #[test]
    fn the_printed_configuration_is_valid_on_the_machine_of_the_gateway() {
        for issuer in [
            "127.0.0.1:9195",
            "127.9.9.9:1",
            "[::1]:9195",
            "[::ffff:127.0.0.1]:9195",
            "10.0.0.5:9195",
            "192.168.1.2:80",
            "203.0.113.7:9195",
            "[2001:db8::5]:9195",
            "[fd00::5]:9195",
            "[::ffff:10.0.0.5]:9195",
        ] {
            for (url, gateway) in [
                ("grpc://127.0.0.1:9191", "127.0.0.1:9191"),
                ("grpc://127.0.0.1:9193", "127.0.0.1:9193"),
                ("grpc://localhost:9191", "[::1]:9191"),
                ("grpc://10.0.0.7:9193", "10.0.0.7:9193"),
                ("grpc://[2001:db8::7]:9191", "[2001:db8::7]:9191"),
                ("http://10.0.0.7:10000", "10.0.0.7:10000"),
            ] {
                let trusted = trusted(issuer, "orders-api");
                let text = printed(&trusted, url, &location(gateway));
                let config = Config::parse(&text, &|_| None)
                    .unwrap_or_else(|errors| panic!("{issuer}, {url}: {errors}\n{text}"));
                let [provider] = &config.providers[..] else { panic!("one provider: {text}") };
                let KeySource::JwksUri(keys) = &provider.keys else { panic!("keys by URL: {text}") };
                assert_eq!(keys[0].as_str(), url::Url::parse(&trusted.jwks_uri).expect("a URL").as_str());
            }
        }
    }

    #[test]
    fn plain_http_is_allowed_only_if_another_machine_fetches() {
        let allowed = |issuer| {
            printed(&trusted(issuer, "a"), "grpc://h:1", &location("10.0.0.7:1")).contains("allow_http: true")
        };
        assert!(!allowed("127.0.0.1:9195") && !allowed("[::ffff:127.0.0.1]:9195"));
        assert!(allowed("10.0.0.5:9195") && allowed("[2001:db8::5]:9195"));
    }

    #[test]
    fn a_portcullis_is_configured_to_listen_on_the_target_address() {
        for (url, gateway, ext_authz, admin) in [
            ("grpc://localhost:7000", "127.0.0.1:7000", "127.0.0.1:7000", 9193),
            ("grpc://[::1]:9193", "[::1]:9193", "[::1]:9193", 9194),
            ("grpc://h:7000", "10.0.0.7:7000", "0.0.0.0:7000", 9193),
            ("grpc://h:7000", "[2001:db8::7]:7000", "[::]:7000", 9193),
            ("http://h:7000", "10.0.0.7:7000", "127.0.0.1:9191", 9193),
        ] {
            let url = TargetUrl::parse(url, "/").expect("a target");
            let expected = (ext_authz.parse().expect("an address"), (Ipv4Addr::LOCALHOST, admin).into());
            assert_eq!(listeners(&url, &location(gateway)), expected, "{url:?}");
        }
    }

    #[test]
    fn an_audience_is_escaped_for_yaml() {
        for audience in ["a, b]", "${HOME}", "$${HOME}", "it's: \"one\" # no comment", "\\n\u{e9}"] {
            let text = printed(&trusted("127.0.0.1:1", audience), "grpc://h:1", &location("10.0.0.7:1"));
            let config = Config::parse(&text, &|_| None).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
            let [provider] = &config.providers[..] else { panic!("one provider: {text}") };
            let audiences = format!("{:?}", provider.provider.audiences);
            assert!(audiences.contains(&format!("{audience:?}")), "{audiences}");
        }
    }
}
