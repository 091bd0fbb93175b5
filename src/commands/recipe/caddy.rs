//! Caddy with forward_auth: `deploy/caddy/Caddyfile`.

use crate::commands::requirements::Rewritten;
use std::time::Duration;

use http::HeaderName;

use super::Recipe;
use super::door::{HttpDoor, http_door};
use super::facts::{Facts, duration, size, variable, written};
use super::template::Values;
use crate::config::Profile;

const TEMPLATE: &str = include_str!("templates/Caddyfile");

/// Caddy sets it, so the file does not remove it.
const OWN: &str = "x-forwarded-host";

pub(super) fn recipe(facts: &Facts<'_>) -> Result<Recipe, String> {
    let mut warnings = Vec::new();
    let door = http_door(facts.config, Profile::Caddy, &mut warnings)?;
    let removed = facts.removed_headers()?;
    facts.warn_of_queries(&mut warnings);
    facts.warn_of_shared_headers(&mut warnings);
    facts.warn_of_dropped_headers(&mut warnings);
    if facts.is_trusted(OWN) {
        warnings.push(
            "trusted_headers: Caddy replaces X-Forwarded-Host, unless its outer proxy is in the servers' trusted_proxies".to_owned(),
        );
    }
    let overrides = facts.overrides().filter(|name| name.as_str() != OWN);
    let values = Values::default()
        .text("door", door.address)
        .lines("tls", tls(&door))
        .lines("metadata", metadata(facts, &door, &mut warnings))
        .lines("claims_from_client", claims_from_client(facts))
        .lines("overrides", overrides.map(remove).collect())
        .lines("cookies_from_client", cookies_from_client(facts))
        .lines("copied", copied(facts))
        .lines("empty_claims", empty_claims(facts))
        .lines("tokens_to_app", tokens_to_app(facts, &removed))
        .text("token_size", size(facts.config.limits.token_bytes))
        .text("header_size", facts.longest_header() / 1024 * 4)
        .text("wait", duration(facts.longest_wait()))
        .text("timeout", duration(facts.timeout(Duration::from_secs(1))));
    Ok(Recipe { text: values.fill(TEMPLATE), warnings })
}

fn owned<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    lines.into_iter().map(str::to_owned).collect()
}

fn remove(name: &HeaderName) -> String {
    format!("request_header -{}", written(name))
}

fn claims_from_client(facts: &Facts<'_>) -> Vec<String> {
    if facts.claims().is_empty() {
        return Vec::new();
    }
    let mut lines = owned([
        "# Claim headers: those of the client are removed before authorization. Portcullis denies (400) a request that still",
        "# has one, so that a header that was added to portcullis.yaml but not here cannot be forged.",
    ]);
    lines.extend(facts.claims().iter().map(remove));
    lines
}

fn cookies_from_client(facts: &Facts<'_>) -> Vec<String> {
    let lines = facts.removed_tokens().rewritten.into_iter().flat_map(|rewritten| {
        let header = rewritten.header();
        [format!("# Used below. {}", rewritten.remainder()), format!("request_header -X-Answer-{header}")]
    });
    lines.collect()
}

fn copied(facts: &Facts<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    if !facts.claims().is_empty() {
        let names: Vec<String> = facts.claims().iter().map(written).collect();
        lines.push("# Claim headers: set only from the authorization response.".to_owned());
        lines.push(format!("copy_headers {}", names.join(" ")));
    }
    for rewritten in facts.removed_tokens().rewritten {
        lines.push(format!("copy_headers {0}>X-Answer-{0}", rewritten.header()));
    }
    lines
}

fn empty_claims(facts: &Facts<'_>) -> Vec<String> {
    if facts.claims().is_empty() {
        return Vec::new();
    }
    let comment = "# Claim headers: Portcullis sends an empty header if there is no value, and older versions of Caddy copy it.";
    let removed = facts.claims().iter().flat_map(|name| {
        let (shown, variable) = (written(name), variable(name));
        [
            format!("@no_{variable} header_regexp {shown} ^$"),
            format!("request_header @no_{variable} -{shown}"),
        ]
    });
    std::iter::once(comment.to_owned()).chain(removed).collect()
}

fn tokens_to_app(facts: &Facts<'_>, removed: &[&HeaderName]) -> Vec<String> {
    let rewritten = facts.removed_tokens().rewritten;
    if removed.is_empty() && rewritten.is_empty() {
        return owned(["# The app gets the token too: forward_token is true."]);
    }
    let mut lines = owned(["# The app does not get the token: forward_token is false."]);
    lines.extend(removed.iter().map(|name| remove(name)));
    for rewritten in rewritten {
        let header = rewritten.header();
        let matcher = match rewritten {
            Rewritten::Cookies => "@cookies",
            Rewritten::Protocols => "@protocols",
        };
        lines.extend([
            format!("# {} Older versions of Caddy copy a missing header as {{...}}.", rewritten.remainder()),
            format!("request_header -{header}"),
            format!("{matcher} header_regexp X-Answer-{header} ^[^{{]"),
            format!("request_header {matcher} {header} {{http.request.header.X-Answer-{header}}}"),
            format!("request_header -X-Answer-{header}"),
        ]);
    }
    lines
}

/// The transport's lines for a door with TLS.
fn tls(door: &HttpDoor<'_>) -> Vec<String> {
    if door.door.tls.is_none() {
        return Vec::new();
    }
    let mut lines = owned([
        "# Change the authority of Portcullis's certificate, and the name in the certificate.",
        "tls",
        "tls_trusted_ca_certs /etc/caddy/portcullis-ca.pem",
        "tls_server_name portcullis",
    ]);
    if door.door.wants_client_certificate() {
        lines.extend(owned([
            "tls_client_auth /etc/caddy/portcullis-client.pem /etc/caddy/portcullis-client-key.pem",
        ]));
    }
    lines
}

fn metadata(facts: &Facts<'_>, door: &HttpDoor<'_>, warnings: &mut Vec<String>) -> Vec<String> {
    let Some(path) = facts.metadata_path(warnings) else { return Vec::new() };
    let mut lines = vec![
        "# The metadata of the resource (RFC 9728), served by Portcullis without a token.".to_owned(),
        format!("handle {path} {{"),
    ];
    lines.extend(owned(["\trequest_header -X-Forwarded-Uri", "\trequest_header -X-Forwarded-Method"]));
    let tls = tls(door);
    if tls.is_empty() {
        lines.push(format!("\treverse_proxy {}", door.address));
    } else {
        lines.push(format!("\treverse_proxy {} {{", door.address));
        lines.push("\t\ttransport http {".to_owned());
        lines.extend(tls.iter().map(|line| format!("\t\t\t{line}")));
        lines.extend(owned(["\t\t}", "\t}"]));
    }
    lines.push("}".to_owned());
    lines
}
