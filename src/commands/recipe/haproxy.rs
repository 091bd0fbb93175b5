//! HAProxy: `deploy/haproxy/haproxy.cfg`, which calls the Lua action of `deploy/haproxy/portcullis.lua`. The action is the
//! same for every configuration.

use std::time::Duration;

use http::HeaderName;

use super::Recipe;
use super::door::{HttpDoor, http_door};
use super::facts::{Facts, duration, size};
use super::template::Values;
use crate::config::Profile;

const TEMPLATE: &str = include_str!("templates/haproxy.cfg");

/// The name in Portcullis's certificate, as in the files of other proxies.
const SERVER_NAME: &str = "portcullis";

/// The authority of Portcullis's certificate.
const CA_FILE: &str = "/etc/haproxy/portcullis-ca.pem";

pub(super) fn recipe(facts: &Facts<'_>) -> Result<Recipe, String> {
    let mut warnings = Vec::new();
    let door = http_door(facts.config, Profile::Haproxy, &mut warnings)?;
    if door.door.wants_client_certificate() {
        return Err(format!(
            "{} wants a client certificate, and HAProxy's HTTP client cannot present one: add a door without client_ca_file for it",
            door.door.key
        ));
    }
    let removed = facts.removed_headers()?;
    facts.warn_of_queries(&mut warnings);
    facts.warn_of_shared_headers(&mut warnings);
    facts.warn_of_dropped_headers(&mut warnings);
    let metadata = facts.metadata_path(&mut warnings);
    let removed_tokens = facts.removed_tokens();
    let others = removed_tokens.rewritten.iter().map(|rewritten| rewritten.header().to_ascii_lowercase());
    let others: Vec<String> = others.collect();
    let others = if others.is_empty() { "-".to_owned() } else { others.join(",") };
    let overrides = facts.overrides().filter(|name| name.as_str() != "x-forwarded-host");
    let values = Values::default()
        .text("url", format!("{}://{}/", door.scheme(), door.address))
        .lines("tls", tls(&door))
        .text("timeout", facts.timeout(Duration::from_secs(1)).as_millis())
        .text("claims", list(facts.claims()))
        .text("others", &others)
        .text("server_name", if door.door.tls.is_some() { SERVER_NAME } else { "-" })
        .lines("forwarded_host", forwarded_host(facts))
        .lines("overrides", overrides.map(|name| format!("http-request del-header {name}")).collect())
        .lines("tokens_to_app", tokens_to_app(facts, &removed))
        .lines("metadata", metadata_acl(metadata))
        .text("unless_metadata", metadata.map_or("", |_| " unless metadata"))
        .text("or_metadata", metadata.map_or("", |_| " or metadata"))
        .lines(
            "metadata_backend",
            metadata.map(|_| "use_backend portcullis if metadata".to_owned()).into_iter().collect(),
        )
        .lines("backend_of_metadata", metadata.map(|_| backend(&door)).unwrap_or_default())
        .text("token_size", size(facts.config.limits.token_bytes))
        .text("claims_size", size(facts.config.limits.claim_header_bytes))
        .text("buffer", facts.answer_size())
        .text("wait", duration(facts.longest_wait()));
    let text = values.fill(TEMPLATE).trim_end().to_owned() + "\n";
    Ok(Recipe { text, warnings })
}

/// The argument of the Lua action.
fn list(names: &[HeaderName]) -> String {
    match names {
        [] => "-".to_owned(),
        names => names.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(","),
    }
}

fn tls(door: &HttpDoor<'_>) -> Vec<String> {
    if door.door.tls.is_none() {
        return Vec::new();
    }
    vec![
        "# Change the authority of Portcullis's certificate, and below the name in the certificate (portcullis).".to_owned(),
        format!("httpclient.ssl.ca-file {CA_FILE}"),
        "httpclient.ssl.verify required".to_owned(),
    ]
}

fn forwarded_host(facts: &Facts<'_>) -> Vec<String> {
    if facts.is_trusted("x-forwarded-host") {
        return Vec::new();
    }
    let lines = [
        "http-request del-header x-forwarded-host",
        "http-request set-header x-forwarded-host %[req.fhdr(host)] if { req.fhdr(host) -m found }",
    ];
    lines.map(str::to_owned).into()
}

fn tokens_to_app(facts: &Facts<'_>, removed: &[&HeaderName]) -> Vec<String> {
    if removed.is_empty() && facts.removed_tokens().rewritten.is_empty() {
        return vec!["# The app gets the token too: forward_token is true.".to_owned()];
    }
    let mut lines = vec!["# The app does not get the token: forward_token is false.".to_owned()];
    lines.extend(removed.iter().map(|name| format!("http-request del-header {name}")));
    lines
}

fn metadata_acl(path: Option<&str>) -> Vec<String> {
    let Some(path) = path else { return Vec::new() };
    vec![
        "# The metadata of the resource (RFC 9728), served by Portcullis without a token.".to_owned(),
        format!("acl metadata path -m str {path}"),
    ]
}

fn backend(door: &HttpDoor<'_>) -> Vec<String> {
    let tls = match door.door.tls {
        Some(_) => {
            format!(" ssl verify required verifyhost {SERVER_NAME} sni str({SERVER_NAME}) ca-file {CA_FILE}")
        }
        None => String::new(),
    };
    vec![
        "backend portcullis".to_owned(),
        "    http-request del-header ^x-forwarded-(uri|method)$ -m reg".to_owned(),
        format!("    server portcullis {}{tls}", door.address),
    ]
}
