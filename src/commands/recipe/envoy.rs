//! Envoy with ext_authz: `deploy/envoy/envoy-grpc.yaml` and `deploy/envoy/envoy-http.yaml`.
//!
//! Over gRPC Portcullis sets and removes any header itself, so that file has no claim headers.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::HeaderName;
use http::header::{CONTENT_TYPE, VARY};

use super::Recipe;
use super::door::{Door, DoorAddress, HttpDoor, grpc_door, http_door};
use super::facts::{Facts, duration};
use super::template::Values;
use crate::config::Profile;

const OVER_GRPC: &str = include_str!("templates/envoy-grpc.yaml");
const OVER_HTTP: &str = include_str!("templates/envoy-http.yaml");

/// The file for a gRPC door.
pub(super) fn over_grpc(facts: &Facts<'_>) -> Result<Recipe, String> {
    let mut warnings = Vec::new();
    let door = grpc_door(facts.config, &mut warnings)?;
    warn_of_metadata(facts, &mut warnings);
    let text = common(facts, &door).fill(OVER_GRPC);
    Ok(Recipe { text, warnings })
}

/// The file for an HTTP door with `profile: envoy`.
pub(super) fn over_http(facts: &Facts<'_>) -> Result<Recipe, String> {
    let mut warnings = Vec::new();
    let door = http_door(facts.config, Profile::Envoy, &mut warnings)?;
    facts.warn_of_queries(&mut warnings);
    warn_of_metadata(facts, &mut warnings);
    let (status, code) = error_status(facts, &mut warnings);
    let denial_headers = facts.denial_headers(&[CONTENT_TYPE, VARY], &mut warnings);
    let health = Health::of(facts, &door);
    let values = common(facts, &door.door)
        .lines("claims_from_client", claims_from_client(facts))
        .lines("allowed_upstream_headers", allowed_upstream_headers(facts))
        .lines("denial_headers", denial_headers.iter().map(|name| pattern(name)).collect())
        .lines("health_port", health.port())
        .lines("health_checks", health.checks(facts))
        .text("error_status", status)
        .text("error_code", code);
    Ok(Recipe { text: values.fill(OVER_HTTP), warnings })
}

/// What both files have.
fn common(facts: &Facts<'_>, door: &Door<'_>) -> Values {
    let cluster_type = match door.address {
        DoorAddress::Tcp(_) => "STRICT_DNS",
        DoorAddress::Unix(_) => "STATIC",
    };
    let overrides = facts.overrides();
    Values::default()
        .text("cluster_type", cluster_type)
        .text("address", address(door.address))
        .lines("tls", tls(door))
        .lines("overrides", overrides.map(|name| format!("- {{remove: {name}}}")).collect())
        .lines("forwarded_host", forwarded_host(facts))
        .text("wait", duration(facts.longest_wait()))
        .text("timeout", format!("{}s", facts.timeout(Duration::from_millis(500)).as_secs_f64()))
        .text("waiters", facts.most_waiters())
        .text("drain_delay", duration(facts.config.shutdown.drain_delay))
}

fn address(address: DoorAddress<'_>) -> String {
    match address {
        DoorAddress::Tcp(address) => format!("socket_address: {}", socket_address(address)),
        DoorAddress::Unix(path) => format!("pipe: {{path: {}}}", quoted(&path.to_string_lossy())),
    }
}

fn socket_address(address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        // A colon has a meaning of its own.
        IpAddr::V6(ip) => format!("\"{ip}\""),
    };
    format!("{{address: {ip}, port_value: {}}}", address.port())
}

/// A double-quoted scalar (YAML 1.2 §7.3.1): everything but printable ASCII is escaped.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        // Writing to a string cannot fail.
        let _infallible = match character {
            '"' | '\\' => write!(quoted, "\\{character}"),
            ' '..='~' => write!(quoted, "{character}"),
            _ if u32::from(character) <= 0xffff => write!(quoted, "\\u{:04x}", u32::from(character)),
            _ => write!(quoted, "\\U{:08x}", u32::from(character)),
        };
    }
    quoted.push('"');
    quoted
}

fn owned<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    lines.into_iter().map(str::to_owned).collect()
}

fn tls(door: &Door<'_>) -> Vec<String> {
    if door.tls.is_none() {
        return Vec::new();
    }
    let mut lines = owned([
        "# Change the authority of Portcullis's certificate, and the name in the certificate.",
        "transport_socket:",
        "  name: envoy.transport_sockets.tls",
        "  typed_config:",
        "    \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "    sni: portcullis",
        "    common_tls_context:",
        "      alpn_protocols: [h2]",
        "      validation_context:",
        "        trusted_ca: {filename: /etc/envoy/portcullis-ca.pem}",
        "        match_typed_subject_alt_names:",
        "          - {san_type: DNS, matcher: {exact: portcullis}}",
    ]);
    if door.wants_client_certificate() {
        lines.extend(owned([
            "      tls_certificates:",
            "        - certificate_chain: {filename: /etc/envoy/portcullis-client.pem}",
            "          private_key: {filename: /etc/envoy/portcullis-client-key.pem}",
        ]));
    }
    lines
}

fn forwarded_host(facts: &Facts<'_>) -> Vec<String> {
    if facts.is_trusted("x-forwarded-host") {
        return Vec::new();
    }
    owned([
        "# Overwrites the client's value.",
        "request_headers_to_add:",
        "  - header: {key: x-forwarded-host, value: \"%REQ(:AUTHORITY)%\"}",
        "    append_action: OVERWRITE_IF_EXISTS_OR_ADD",
    ])
}

fn claims_from_client(facts: &Facts<'_>) -> Vec<String> {
    if facts.claims().is_empty() {
        return Vec::new();
    }
    let mut lines = owned([
        "# Claim headers: those of the client are removed before authorization. Portcullis denies (400) a",
        "# request that still has one for which it has a value, so that a header that was added to",
        "# portcullis.yaml but not here cannot be forged.",
    ]);
    lines.extend(facts.claims().iter().map(|name| format!("- {{remove: {}}}", plain_or_quoted(name))));
    lines
}

fn allowed_upstream_headers(facts: &Facts<'_>) -> Vec<String> {
    let rewritten = facts.removed_tokens().rewritten;
    if facts.claims().is_empty() && rewritten.is_empty() {
        return Vec::new();
    }
    let mut lines = owned([
        "# Claim headers: set only from the authorization response. Envoy removes the headers in",
        "# x-envoy-auth-headers-to-remove: claim headers without a value, look-alikes such as x_auth_subject and,",
        "# with forward_token: false, the token.",
        "allowed_upstream_headers:",
        "  patterns:",
    ]);
    lines.extend(facts.claims().iter().map(|name| format!("    {}", pattern(name))));
    for rewritten in rewritten {
        let name = rewritten.header().to_ascii_lowercase();
        lines.extend([format!("    # {}", rewritten.remainder()), format!("    - {{exact: {name}}}")]);
    }
    lines
}

fn pattern(name: &HeaderName) -> String {
    format!("- {{exact: {}}}", plain_or_quoted(name))
}

/// A name such as `true` or `1-0` is not text without quotes.
fn plain_or_quoted(name: &HeaderName) -> String {
    let name = name.as_str();
    let is_text = name.starts_with(|first: char| first.is_ascii_lowercase()) && name.contains('-');
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if is_text && is_plain { name.to_owned() } else { quoted(name) }
}

/// Envoy's status without an authorization response, as a number and in Envoy's words: the one for missing keys, which
/// Envoy treats as no response from 500 on.
fn error_status(facts: &Facts<'_>, warnings: &mut Vec<String>) -> (u16, String) {
    const UNAVAILABLE: &str = "ServiceUnavailable";
    match facts.config.responses.keys_unavailable_status {
        ..=499 | 503 => (503, UNAVAILABLE.to_owned()),
        status @ (500..=508 | 510 | 511) => (status, status.to_string()),
        status => {
            warnings.push(format!(
                "responses.keys_unavailable_status: Envoy does not know {status}, so the file answers 503"
            ));
            (503, UNAVAILABLE.to_owned())
        }
    }
}

fn warn_of_metadata(facts: &Facts<'_>, warnings: &mut Vec<String>) {
    if facts.config.responses.resource_metadata.is_some() {
        warnings.push(
            "responses.resource_metadata: no door for Envoy serves the document: route its path to an HTTP door with another profile, or serve it elsewhere"
                .to_owned(),
        );
    }
}

/// How Envoy learns that a replica drains: at the admin door, since on the HTTP door every path is an authorization
/// request.
enum Health {
    /// The admin door has the door's IP address, this port, and no TLS.
    Checked(u16),
    /// Envoy would need another address or other TLS settings for it than for the door.
    Unchecked,
}

impl Health {
    fn of(facts: &Facts<'_>, door: &HttpDoor<'_>) -> Self {
        let is_same_host = |admin: SocketAddr| {
            admin.ip() == door.address.ip() || (admin.ip().is_unspecified() && admin.port() != 0)
        };
        match &facts.config.listen.admin {
            Some(admin) if admin.tls.is_none() && door.door.tls.is_none() && is_same_host(admin.address) => {
                Health::Checked(admin.address.port())
            }
            _ => Health::Unchecked,
        }
    }

    fn port(&self) -> Vec<String> {
        match self {
            Health::Checked(port) => vec![
                "# The admin door, because on the HTTP door every path is an authorization request."
                    .to_owned(),
                format!("health_check_config: {{port_value: {port}}}"),
            ],
            Health::Unchecked => Vec::new(),
        }
    }

    fn checks(&self, facts: &Facts<'_>) -> Vec<String> {
        match self {
            Health::Checked(_) => vec![
                format!(
                    "# Removes a replica when it starts to drain, within its shutdown.drain_delay ({}). If no replica is healthy, Envoy",
                    duration(facts.config.shutdown.drain_delay)
                ),
                "# uses all of them (panic mode), so this never rejects a request by itself.".to_owned(),
                "health_checks:".to_owned(),
                "  - timeout: 1s".to_owned(),
                "    interval: 1s".to_owned(),
                "    no_traffic_interval: 1s".to_owned(),
                "    unhealthy_threshold: 1".to_owned(),
                "    healthy_threshold: 1".to_owned(),
                "    # The admin door answers only to its own hosts, addresses and localhost.".to_owned(),
                "    http_health_check: {path: /readyz, host: localhost}".to_owned(),
            ],
            Health::Unchecked => owned([
                "# No health check: /readyz is at the admin door, which is off, has another address or uses TLS settings of its",
                "# own. A replica that drains is used until its connections close.",
            ]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_scalar_has_no_character_with_a_meaning_of_its_own() {
        assert_eq!(quoted("/run/a b.sock"), r#""/run/a b.sock""#);
        assert_eq!(quoted("a\"}\\\n\u{85}\u{2028}é😀"), r#""a\"}\\\u000a\u0085\u2028\u00e9\U0001f600""#);
    }

    #[test]
    fn a_header_name_that_yaml_reads_as_another_type_is_quoted() {
        for (name, expected) in [
            ("x-auth-subject", "x-auth-subject"),
            ("true", "\"true\""),
            ("null", "\"null\""),
            ("1-0", "\"1-0\""),
            ("-x", "\"-x\""),
            ("x!", "\"x!\""),
        ] {
            assert_eq!(plain_or_quoted(&HeaderName::from_static(name)), expected);
        }
    }
}
