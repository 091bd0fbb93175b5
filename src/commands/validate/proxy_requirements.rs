//! What the configuration of the proxy in front of each HTTP door must do, because the door cannot.

use std::fmt::Write as _;

use http::HeaderName;

use super::super::requirements::{RemovedTokens, protected_headers};
use crate::access_request::ClaimHeaders;
use crate::config::{Config, HttpListener, Profile};
use crate::protected_headers::ProtectedHeaders;

/// A paragraph for each HTTP door. Envoy's gRPC mode has no requirements, because its response sets and removes any
/// header.
pub(super) fn requirements(config: &Config) -> String {
    let protected = protected_headers(config);
    let doors = config.listen.forward_auth.iter().enumerate();
    doors.fold(String::new(), |mut text, (index, door)| {
        // Writing to a string cannot fail.
        let _infallible = write_door(&mut text, index, door, &protected);
        text
    })
}

fn write_door(
    text: &mut String,
    index: usize,
    door: &HttpListener,
    protected: &ProtectedHeaders,
) -> std::fmt::Result {
    writeln!(
        text,
        "listen.forward_auth[{index}] (profile {}): the proxy configuration must (`portcullis recipe {}` prints one)",
        door.profile.name(),
        if door.profile == Profile::Envoy { "envoy-http" } else { door.profile.name() }
    )?;
    let list = |names: &[HeaderName]| names.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", ");
    let claims = list(protected.claims());
    if !claims.is_empty() {
        if door.client_headers == ClaimHeaders::MaybeKept {
            writeln!(text, "  - remove from the client's request before authorization: {claims}")?;
        }
        writeln!(text, "  - set for the upstream only from the authorization response: {claims}")?;
    }
    match door.profile {
        Profile::Envoy => writeln!(
            text,
            "  - send all headers here (allowed_headers): a header that is not sent cannot be removed"
        )?,
        _ if protected.overrides().is_empty() => {}
        Profile::IngressNginx => writeln!(
            text,
            "  - expect 400 for a request with one of these, which its annotations cannot remove: {}",
            list(protected.overrides())
        )?,
        _ => writeln!(
            text,
            "  - remove from the client's request before authorization, except its own: {}",
            list(protected.overrides())
        )?,
    }
    writeln!(text, "  - allow no upgrade except websocket")?;
    let removed = RemovedTokens::of(protected);
    if door.profile != Profile::Envoy {
        for name in removed.headers {
            writeln!(text, "  - remove from the request to the upstream: {name} (forward_token: false)")?;
        }
    }
    for rewritten in removed.rewritten {
        writeln!(
            text,
            "  - set for the upstream from the authorization response: {} (forward_token: false)",
            rewritten.header().to_ascii_lowercase()
        )?;
    }
    for name in removed.queries {
        writeln!(
            text,
            "  - expect 400 for a token in the query ({name}): forward_token is false, and no HTTP door can remove it"
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requirements_for_a_proxy_follow_from_the_configuration() {
        let text = "
listen:
  ext_authz: 127.0.0.1:0
  forward_auth:
    - {address: 127.0.0.1:0, profile: nginx}
    - {address: 127.0.0.1:0, profile: caddy, client_headers: overwrite}
    - {address: 127.0.0.1:0, profile: envoy}
trusted_headers: [x-forwarded-host]
providers:
  - name: p
    issuer: https://sso.example.com
    audiences: [api]
    forward_token: false
    token_from: [{header: authorization, scheme: Bearer}, {cookie: t}, {query: t}]
    claim_headers: {x-auth-subject: sub}
    payload_header: x-auth-payload
rules:
  - {name: public, match: {path: /public}, allow: anonymous}
";
        let config = Config::parse(text, &|_| None).expect("is valid");
        let text = requirements(&config);
        let doors: Vec<&str> = text.split("listen.forward_auth").skip(1).collect();
        let [nginx, caddy, envoy] = doors.as_slice() else { panic!("{text}") };
        let has = |door: &str, lines: &[(&str, bool)]| {
            for (line, expected) in lines {
                assert_eq!(door.contains(line), *expected, "{line} in {door}");
            }
        };
        has(
            nginx,
            &[
                ("before authorization: x-auth-subject, x-auth-payload\n", true),
                ("except its own: x-original-url", true),
                ("x-forwarded-host", false),
                ("x-http-method-override", false),
                ("to the upstream: authorization (forward_token: false)", true),
                ("from the authorization response: cookie", true),
                ("a token in the query (t)", true),
            ],
        );
        has(
            caddy,
            &[
                ("before authorization: x-auth-subject", false),
                ("authorization response: x-auth-subject", true),
            ],
        );
        has(envoy, &[("allowed_headers", true), ("to the upstream: authorization", false)]);
    }
}
