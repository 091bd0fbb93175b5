//! What the file of the proxy in front of each door has to hold under one configuration: what no door can do by itself.

use std::fmt::Write as _;

use http::HeaderName;

use crate::access_request::ClaimHeaders;
use crate::bearer_token::source_header;
use crate::config::{Config, HttpListener, Profile};
use crate::protected_headers::ProtectedHeaders;
use crate::validation::provider::TokenSource;

/// A paragraph for each HTTP door, empty where there is none. Envoy's gRPC mode needs nothing of its file: the answer
/// sets and removes what it likes.
pub(super) fn needs(config: &Config) -> String {
    let providers = config.providers.iter().map(|config| &*config.provider);
    let protected = ProtectedHeaders::new(providers, &config.rules, &config.trusted_headers);
    let doors = config.listen.forward_auth.iter().enumerate();
    doors.fold(String::new(), |mut text, (number, door)| {
        // Writing to a string cannot fail.
        let _written = write_door(&mut text, number, door, &protected);
        text
    })
}

fn write_door(
    text: &mut String,
    number: usize,
    door: &HttpListener,
    protected: &ProtectedHeaders,
) -> std::fmt::Result {
    writeln!(
        text,
        "listen.forward_auth[{number}] (profile {}): the proxy's file has to",
        door.profile.name()
    )?;
    let list = |names: &[HeaderName]| names.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", ");
    let claims = list(protected.claims());
    if !claims.is_empty() {
        if door.client_headers == ClaimHeaders::MaybeKept {
            writeln!(text, "  - remove from the client's request before it asks: {claims}")?;
        }
        writeln!(text, "  - set for the upstream from the answer, and only from it: {claims}")?;
    }
    if door.profile == Profile::Envoy {
        writeln!(
            text,
            "  - send every header here (allowed_headers), or none that is hidden can be removed"
        )?;
    } else if !protected.overrides().is_empty() {
        writeln!(
            text,
            "  - remove from the client's request before it asks, but for its own: {}",
            list(protected.overrides())
        )?;
    }
    writeln!(text, "  - let no upgrade but websocket through")?;
    for source in protected.not_forwarded() {
        match (source, door.profile) {
            (TokenSource::Query(name), _) => {
                writeln!(
                    text,
                    "  - expect 400 for a token in the query ({name}): forward_token is false, and no HTTP door can remove it"
                )?;
            }
            (TokenSource::Cookie(_), _) => {
                writeln!(text, "  - set for the upstream from the answer: cookie (forward_token: false)")?
            }
            (TokenSource::Header { .. }, Profile::Envoy) => {}
            (source, _) => {
                if let Some(name) = source_header(source) {
                    writeln!(text, "  - remove before the upstream sees it: {name} (forward_token: false)")?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_proxys_file_has_to_hold_follows_the_configuration() {
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
        let said = needs(&config);
        let doors: Vec<&str> = said.split("listen.forward_auth").skip(1).collect();
        let [nginx, caddy, envoy] = doors.as_slice() else { panic!("{said}") };
        let has = |door: &str, lines: &[(&str, bool)]| {
            for (line, expected) in lines {
                assert_eq!(door.contains(line), *expected, "{line} in {door}");
            }
        };
        has(
            nginx,
            &[
                ("before it asks: x-auth-subject, x-auth-payload\n", true),
                ("but for its own: x-original-url", true),
                ("x-forwarded-host", false),
                ("x-http-method-override", false),
                ("sees it: authorization (forward_token: false)", true),
                ("from the answer: cookie", true),
                ("a token in the query (t)", true),
            ],
        );
        has(caddy, &[("before it asks: x-auth-subject", false), ("only from it: x-auth-subject", true)]);
        has(envoy, &[("allowed_headers", true), ("sees it: authorization", false)]);
    }
}
