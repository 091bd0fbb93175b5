//! The Kubernetes controller ingress-nginx with its annotations for external authentication:
//! `deploy/ingress-nginx/ingress.yaml`.
//!
//! Its users cannot add headers to the authorization request, so Portcullis denies what other files remove.

use super::Recipe;
use super::door::{HttpDoor, http_door};
use super::facts::{Facts, size, written};
use super::template::Values;
use crate::config::Profile;

const TEMPLATE: &str = include_str!("templates/ingress.yaml");

/// The controller sets it for the upstream.
const OWN: &str = "x-forwarded-host";

pub(super) fn recipe(facts: &Facts<'_>) -> Result<Recipe, String> {
    let mut warnings = Vec::new();
    // The address is that of a Service, so what the door's own address means to this machine is of no interest.
    let door = http_door(facts.config, Profile::IngressNginx, &mut Vec::new())?;
    if door.door.wants_client_certificate() {
        return Err(format!(
            "{} wants a client certificate, and ingress-nginx cannot present one: add a door without client_ca_file for it",
            door.door.key
        ));
    }
    facts.removed_headers()?;
    facts.warn_of_queries(&mut warnings);
    facts.warn_of_shared_headers(&mut warnings);
    facts.warn_of_dropped_headers(&mut warnings);
    warn(facts, &door, &mut warnings);
    let overrides = facts.overrides().filter(|name| name.as_str() != OWN);
    let values = Values::default()
        .text(
            "url",
            format!("{}://portcullis.default.svc.cluster.local:{}/", door.scheme(), door.address.port()),
        )
        .lines("response_headers", response_headers(facts)?)
        .lines("tokens", tokens(facts)?)
        .lines("metadata", metadata(facts, &door, &mut warnings))
        .lines("overrides", overrides.map(|name| format!("{}: \"\"", written(name))).collect())
        .text("token_size", size(facts.config.limits.token_bytes))
        .text("claims_size", size(facts.config.limits.claim_header_bytes))
        .text("header_buffer", facts.longest_header() / 1024)
        .text("answer_buffer", facts.answer_size() / 1024);
    Ok(Recipe { text: values.fill(TEMPLATE), warnings })
}

fn warn(facts: &Facts<'_>, door: &HttpDoor<'_>, warnings: &mut Vec<String>) {
    let key = &door.door.key;
    if door.address.ip().is_loopback() && !is_every_address(facts, door) {
        warnings.push(format!(
            "{key} listens on loopback, which the controller's pods cannot reach: use 0.0.0.0"
        ));
    }
    if facts.config.trusted_proxies.iter().all(|network| network.addr().is_loopback()) {
        warnings
            .push("trusted_proxies has only loopback: add the addresses of the controller's pods".to_owned());
    }
    if door.door.tls.is_some() {
        warnings.push(format!("{key} uses TLS, and ingress-nginx does not verify its certificate"));
    }
    let responses = &facts.config.responses;
    if facts.has_bodies()
        || responses.cors.is_some()
        || responses.custom.values().any(|one| !one.headers.is_empty())
    {
        warnings.push(
            "responses: ingress-nginx passes on neither bodies nor headers of a denial, except WWW-Authenticate of a 401".to_owned(),
        );
    }
}

/// Whether the door has been configured with the unspecified address, which [`http_door`] replaces.
fn is_every_address(facts: &Facts<'_>, door: &HttpDoor<'_>) -> bool {
    facts.config.listen.forward_auth.iter().any(|listener| {
        listener.profile == Profile::IngressNginx
            && listener.address.ip().is_unspecified()
            && listener.address.port() == door.address.port()
    })
}

fn response_headers(facts: &Facts<'_>) -> Result<Vec<String>, String> {
    let mut names: Vec<String> = facts.claims().iter().map(written).collect();
    names.extend(facts.removed_headers()?.into_iter().map(written));
    names.extend(facts.removed_tokens().rewritten.iter().map(|rewritten| rewritten.header().to_owned()));
    if names.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![
        "# Claim headers: set only from the authorization response; without a value NGINX sends no header at all, even if the".to_owned(),
        "# client sent one. Portcullis denies a request with a claim header of the client, unless its door has".to_owned(),
        "# `client_headers: overwrite`.".to_owned(),
        format!("nginx.ingress.kubernetes.io/auth-response-headers: {}", names.join(",")),
    ])
}

fn tokens(facts: &Facts<'_>) -> Result<Vec<String>, String> {
    let removed = facts.removed_headers()?;
    let line = match removed.is_empty() && facts.removed_tokens().rewritten.is_empty() {
        true => "# The app gets the token too: forward_token is true.",
        false => {
            "# The app does not get the token (forward_token: false): auth-response-headers replaces its header."
        }
    };
    Ok(vec![line.to_owned()])
}

/// An Ingress of its own for the metadata of the resource, which needs no token.
fn metadata(facts: &Facts<'_>, door: &HttpDoor<'_>, warnings: &mut Vec<String>) -> Vec<String> {
    let Some(path) = facts.metadata_path(warnings) else { return Vec::new() };
    let before = [
        "---",
        "# The metadata of the resource (RFC 9728), served by Portcullis without a token. Change the host.",
        "apiVersion: networking.k8s.io/v1",
        "kind: Ingress",
        "metadata:",
        "  name: resource-metadata",
        "spec:",
        "  ingressClassName: nginx",
        "  rules:",
        "    - host: app.example.com",
        "      http:",
        "        paths:",
    ];
    let mut lines: Vec<String> = before.into_iter().map(str::to_owned).collect();
    lines.push(format!("          - path: {path}"));
    lines.push("            pathType: Exact".to_owned());
    lines.push("            backend:".to_owned());
    lines.push(format!(
        "              service: {{name: portcullis, port: {{number: {}}}}}",
        door.address.port()
    ));
    lines
}
