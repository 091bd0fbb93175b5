//! Traefik with ForwardAuth: `deploy/traefik/dynamic.yaml`, a file of its file provider.

use std::time::Duration;

use http::HeaderName;

use super::Recipe;
use super::door::{HttpDoor, http_door};
use super::facts::{Facts, written};
use super::template::Values;
use crate::config::Profile;

const TEMPLATE: &str = include_str!("templates/traefik.yaml");

/// Traefik sets it, so the file does not remove it.
const OWN: &str = "x-forwarded-host";

/// How long ForwardAuth waits; there is no setting for it.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn recipe(facts: &Facts<'_>) -> Result<Recipe, String> {
    let mut warnings = Vec::new();
    let door = http_door(facts.config, Profile::Traefik, &mut warnings)?;
    let removed = facts.removed_headers()?;
    facts.warn_of_queries(&mut warnings);
    facts.warn_of_shared_headers(&mut warnings);
    if facts.longest_wait() >= TIMEOUT {
        warnings.push(
            "refresh.wait: Traefik waits 30 s for an authorization response: use a shorter wait".to_owned(),
        );
    }
    if facts.is_trusted(OWN) {
        warnings.push(
            "trusted_headers: Traefik replaces X-Forwarded-Host, unless its outer proxy is in the entry point's forwardedHeaders.trustedIPs"
                .to_owned(),
        );
    }
    let overrides = facts.overrides().filter(|name| name.as_str() != OWN);
    let metadata = facts.metadata_path(&mut warnings);
    let values = Values::default()
        .text("url", url(&door))
        .lines("tls", tls(&door))
        .lines("claims_from_client", claims_from_client(facts))
        .lines("overrides", overrides.map(removed_line).collect())
        .lines("copied", copied(facts))
        .lines("tokens_to_app", tokens_to_app(facts, &removed))
        .lines("metadata_router", metadata.map(router).unwrap_or_default())
        .lines("metadata_middleware", metadata.map(|_| middleware()).unwrap_or_default())
        .lines("metadata_service", metadata.map(|_| service(&door)).unwrap_or_default())
        .lines("metadata_transport", metadata.map(|_| transport(&door)).unwrap_or_default());
    Ok(Recipe { text: values.fill(TEMPLATE), warnings })
}

fn url(door: &HttpDoor<'_>) -> String {
    format!("{}://{}/", door.scheme(), door.address)
}

fn owned<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    lines.into_iter().map(str::to_owned).collect()
}

fn removed_line(name: &HeaderName) -> String {
    format!("{}: \"\"", written(name))
}

fn claims_from_client(facts: &Facts<'_>) -> Vec<String> {
    if facts.claims().is_empty() {
        return Vec::new();
    }
    let mut lines = owned([
        "# Claim headers: Portcullis denies (400) a request that still has one, so that a header that was added to",
        "# portcullis.yaml but not here cannot be forged. It also denies x_auth_subject and other look-alikes, which",
        "# Traefik cannot remove.",
    ]);
    lines.extend(facts.claims().iter().map(removed_line));
    lines
}

fn copied(facts: &Facts<'_>) -> Vec<String> {
    let rewritten = facts.removed_tokens().rewritten;
    if facts.claims().is_empty() && rewritten.is_empty() {
        return Vec::new();
    }
    let mut lines = owned([
        "# Claim headers: set only from the authorization response. One without a value reaches the app as an empty",
        "# header, since Traefik has no condition that could remove it: the app must treat it like a missing one.",
        "# Traefik removes headers that the client's Connection header names before authorization, and drops trailers.",
        "authResponseHeaders:",
    ]);
    lines.extend(facts.claims().iter().map(|name| format!("  - {}", written(name))));
    for rewritten in rewritten {
        lines.extend([format!("  # {}", rewritten.remainder()), format!("  - {}", rewritten.header())]);
    }
    lines
}

fn tokens_to_app(facts: &Facts<'_>, removed: &[&HeaderName]) -> Vec<String> {
    if removed.is_empty() && facts.removed_tokens().rewritten.is_empty() {
        return owned(["# The app gets the token too: forward_token is true."]);
    }
    let mut lines = owned(["# The app does not get the token: forward_token is false."]);
    lines.extend(removed.iter().map(|name| removed_line(name)));
    lines
}

fn tls(door: &HttpDoor<'_>) -> Vec<String> {
    if door.door.tls.is_none() {
        return Vec::new();
    }
    let mut lines = owned([
        "# Change the authority of Portcullis's certificate. The certificate must be for the host of the address.",
        "tls:",
        "  ca: /etc/traefik/portcullis-ca.pem",
    ]);
    if door.door.wants_client_certificate() {
        lines.extend(owned([
            "  cert: /etc/traefik/portcullis-client.pem",
            "  key: /etc/traefik/portcullis-client-key.pem",
        ]));
    }
    lines
}

fn router(path: &str) -> Vec<String> {
    vec![
        "# The metadata of the resource (RFC 9728), served by Portcullis without a token.".to_owned(),
        "metadata:".to_owned(),
        format!("  rule: Path(`{path}`)"),
        "  service: portcullis".to_owned(),
        "  middlewares: [metadata]".to_owned(),
    ]
}

/// Portcullis takes a request with one of these headers for an authorization request.
fn middleware() -> Vec<String> {
    owned([
        "metadata:",
        "  headers:",
        "    customRequestHeaders:",
        "      X-Forwarded-Uri: \"\"",
        "      X-Forwarded-Method: \"\"",
    ])
}

fn service(door: &HttpDoor<'_>) -> Vec<String> {
    let mut lines = owned(["portcullis:", "  loadBalancer:"]);
    if door.door.tls.is_some() {
        lines.extend(owned(["    serversTransport: portcullis"]));
    }
    lines.extend(owned(["    servers:"]));
    lines.push(format!("      - url: {}", url(door)));
    lines
}

/// The TLS settings of the service.
fn transport(door: &HttpDoor<'_>) -> Vec<String> {
    if door.door.tls.is_none() {
        return Vec::new();
    }
    let mut lines =
        owned(["serversTransports:", "  portcullis:", "    rootCAs: [/etc/traefik/portcullis-ca.pem]"]);
    if door.door.wants_client_certificate() {
        lines.extend(owned([
            "    certificates:",
            "      - certFile: /etc/traefik/portcullis-client.pem",
            "        keyFile: /etc/traefik/portcullis-client-key.pem",
        ]));
    }
    lines
}
