//! What the file of the proxy in front of each door has to hold under one configuration: what no door can do by itself.

use std::fmt::Write as _;

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
    let claims = protected.claims().join(", ");
    if !claims.is_empty() {
        if door.client_headers == ClaimHeaders::PerhapsKept {
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
            protected.overrides().join(", ")
        )?;
    }
    writeln!(text, "  - let no upgrade but websocket through")?;
    for source in protected.hidden() {
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
                let name = source_header(source).unwrap_or_default();
                writeln!(text, "  - remove before the upstream sees it: {name} (forward_token: false)")?;
            }
        }
    }
    Ok(())
}
