//! What a gateway has to be configured with to trust the drill's issuer: for the Portcullis inside the drill, and
//! printed for one elsewhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde_json::json;

use super::plan::{FETCH_TIMEOUT, SPACING};
use super::reach::{Place, is_loopback};
use super::target::TargetUrl;
use crate::commands::issuer::Issuer;

/// Where a Portcullis listens in the deployments that `deploy/` shows.
const EXT_AUTHZ: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9191);

/// The port of the operator's door there, and the one to take where the gateway has that port.
const ADMIN: [u16; 2] = [9193, 9194];

/// What a gateway is told of an issuer.
#[derive(Clone, Debug)]
pub(super) struct Trusted {
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// Its name, the `iss` of its tokens.
    pub(super) issuer: String,
    /// The URL of its key set.
    pub(super) jwks_uri: String,
    /// The audience of its tokens.
    pub(super) audience: String,
}

impl Trusted {
    /// This issuer, with tokens for `audience`.
    pub(super) fn new(issuer: &Issuer, audience: &str) -> Self {
        Self {
            address: issuer.address(),
            issuer: issuer.issuer().to_owned(),
            jwks_uri: issuer.jwks_uri(),
            audience: audience.to_owned(),
        }
    }

    /// A configuration of Portcullis with doors at these addresses.
    pub(super) fn configuration(&self, ext_authz: SocketAddr, admin: SocketAddr) -> String {
        let spacing = SPACING.as_millis();
        // What comes by plain http from another machine has to be asked for.
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
            // JSON is YAML; what looks like a variable is none.
            json!(self.audience).to_string().replace("${", "$${"),
            self.jwks_uri,
            FETCH_TIMEOUT.as_millis()
        )
    }

    /// What the gateway at this place has to trust, in words and as a configuration that is valid there.
    pub(super) fn instructions(&self, url: &TargetUrl, place: &Place, wait: Duration) -> String {
        let (ext_authz, admin) = doors(url, place);
        format!(
            "The gateway has to trust this issuer:
  issuer:   {}
  key set:  {}
  audience: {}

For a Portcullis this is all of its configuration:

{}
Waiting up to {} s for a first token to be allowed ...
",
            self.issuer,
            self.jwks_uri,
            self.audience,
            self.configuration(ext_authz, admin),
            wait.as_secs()
        )
    }
}

/// Where a Portcullis at this place listens, so that it is found there; behind a gateway, beside that one.
fn doors(url: &TargetUrl, place: &Place) -> (SocketAddr, SocketAddr) {
    let target = place.addresses.first().filter(|_| matches!(url, TargetUrl::Grpc(_)));
    let ext_authz = match target {
        None => EXT_AUTHZ,
        Some(target) if is_loopback(target.ip()) => *target,
        // Which of its addresses leads here, that machine alone knows.
        Some(target) if target.is_ipv4() => (Ipv4Addr::UNSPECIFIED, target.port()).into(),
        Some(target) => (Ipv6Addr::UNSPECIFIED, target.port()).into(),
    };
    let [usual, other] = ADMIN;
    let admin = if ext_authz.port() == usual { other } else { usual };
    (ext_authz, (Ipv4Addr::LOCALHOST, admin).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, KeySource};

    fn trusted(address: &str, audience: &str) -> Trusted {
        Trusted {
            address: address.parse().expect("an address"),
            issuer: format!("http://{address}/realms/demo"),
            jwks_uri: format!("http://{address}/realms/demo/keys"),
            audience: audience.to_owned(),
        }
    }

    fn place(address: &str) -> Place {
        Place { addresses: vec![address.parse().expect("an address")], from: None, is_here: false }
    }

    /// The part of the instructions that is a configuration.
    fn printed(trusted: &Trusted, url: &str, place: &Place) -> String {
        let url = TargetUrl::parse(url, "/").expect("a target");
        let text = trusted.instructions(&url, place, Duration::from_secs(1));
        let (_, rest) = text.split_once("configuration:\n\n").expect("an introduction");
        let (configuration, _) = rest.split_once("\nWaiting").expect("an end");
        configuration.to_owned()
    }

    #[test]
    fn the_printed_configuration_is_valid_on_whichever_machine_the_gateway_is() {
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
                let text = printed(&trusted, url, &place(gateway));
                let config = Config::parse(&text, &|_| None)
                    .unwrap_or_else(|errors| panic!("{issuer}, {url}: {errors}\n{text}"));
                let [provider] = &config.providers[..] else { panic!("one provider: {text}") };
                let KeySource::JwksUri(keys) = &provider.keys else { panic!("keys by URL: {text}") };
                assert_eq!(keys.as_str(), url::Url::parse(&trusted.jwks_uri).expect("a URL").as_str());
            }
        }
    }

    #[test]
    fn plain_http_is_asked_for_only_where_another_machine_fetches() {
        let allowed = |issuer| {
            printed(&trusted(issuer, "a"), "grpc://h:1", &place("10.0.0.7:1")).contains("allow_http: true")
        };
        assert!(!allowed("127.0.0.1:9195") && !allowed("[::ffff:127.0.0.1]:9195"));
        assert!(allowed("10.0.0.5:9195") && allowed("[2001:db8::5]:9195"));
    }

    #[test]
    fn a_portcullis_is_told_to_listen_where_the_drill_looks_for_it() {
        for (url, gateway, ext_authz, admin) in [
            ("grpc://localhost:7000", "127.0.0.1:7000", "127.0.0.1:7000", 9193),
            ("grpc://[::1]:9193", "[::1]:9193", "[::1]:9193", 9194),
            ("grpc://h:7000", "10.0.0.7:7000", "0.0.0.0:7000", 9193),
            ("grpc://h:7000", "[2001:db8::7]:7000", "[::]:7000", 9193),
            ("http://h:7000", "10.0.0.7:7000", "127.0.0.1:9191", 9193),
        ] {
            let url = TargetUrl::parse(url, "/").expect("a target");
            let expected = (ext_authz.parse().expect("an address"), (Ipv4Addr::LOCALHOST, admin).into());
            assert_eq!(doors(&url, &place(gateway)), expected, "{url:?}");
        }
    }

    #[test]
    fn an_audience_is_printed_as_it_is_whatever_yaml_would_make_of_it() {
        for audience in ["a, b]", "${HOME}", "$${HOME}", "it's: \"one\" # no comment", "\\n\u{e9}"] {
            let text = printed(&trusted("127.0.0.1:1", audience), "grpc://h:1", &place("10.0.0.7:1"));
            let config = Config::parse(&text, &|_| None).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
            let [provider] = &config.providers[..] else { panic!("one provider: {text}") };
            let audiences = format!("{:?}", provider.provider.audiences);
            assert!(audiences.contains(&format!("{audience:?}")), "{audiences}");
        }
    }
}
