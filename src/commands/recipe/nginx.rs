//! NGINX with auth_request: `deploy/nginx/nginx.conf`.
//!
//! auth_request passes on neither the body of a denial nor a status other than 401 and 403, so the file makes them again
//! from Portcullis's headers.

use crate::commands::requirements::Rewritten;
use std::time::Duration;

use http::HeaderName;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, VARY,
};

use super::Recipe;
use super::door::{HttpDoor, http_door};
use super::facts::{Facts, duration, size, variable, written};
use super::template::Values;
use crate::config::Profile;

const TEMPLATE: &str = include_str!("templates/nginx.conf");

/// The headers of `responses.cors`. The file has them in any case: without a value NGINX adds no header.
static CORS: [HeaderName; 4] =
    [ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_EXPOSE_HEADERS, VARY];

/// Statuses that the file answers for other denials.
const OTHER_DENIALS: [u16; 4] = [400, 401, 403, 431];

/// Statuses that mean something else within NGINX.
const OWN_STATUSES: [u16; 7] = [444, 494, 495, 496, 497, 498, 499];

const UNAVAILABLE: &str =
    r#"{"error":"temporarily_unavailable","error_description":"the token cannot be verified at the moment"}"#;

pub(super) fn recipe(facts: &Facts<'_>) -> Result<Recipe, String> {
    let mut warnings = Vec::new();
    let door = http_door(facts.config, Profile::Nginx, &mut warnings)?;
    let removed = facts.removed_headers()?;
    facts.warn_of_queries(&mut warnings);
    facts.warn_of_shared_headers(&mut warnings);
    facts.warn_of_dropped_headers(&mut warnings);
    if facts.has_bodies() {
        warnings.push(
            "responses.body: auth_request does not pass on bodies, so the file has the default ones"
                .to_owned(),
        );
    }
    let denial_headers = denial_headers(facts, &mut warnings);
    let tls = tls(&door);
    let values = Values::default()
        .text("door", door.address)
        .text("scheme", door.scheme())
        .lines("metadata", metadata(facts, &door, &tls, &mut warnings))
        .lines("tls", tls)
        .lines("claims_from_answer", claims_from_answer(facts))
        .lines("claims_to_app", claims_to_app(facts))
        .lines("claims_from_client", claims_from_client(facts))
        .lines("tokens_to_app", tokens_to_app(facts, &removed))
        .lines("forwarded_host_to_app", forwarded_host(facts))
        .lines("overrides_to_app", emptied(facts, &["x-forwarded-host"]))
        .lines("overrides_from_client", emptied(facts, &["x-original-uri"]))
        .lines(
            "denial_headers_from_answer",
            each(&denial_headers, |name, variable| {
                format!(
                    "auth_request_set $denial_header_{variable} $upstream_http_{};",
                    super::facts::variable(name)
                )
            }),
        )
        .lines(
            "denial_headers_to_client",
            each(&denial_headers, |name, variable| {
                format!("add_header {} $denial_header_{variable} always;", written(name))
            }),
        )
        .lines("unavailable", unavailable(facts, &mut warnings))
        .text("token_size", size(facts.config.limits.token_bytes))
        .text("claims_size", size(facts.config.limits.claim_header_bytes))
        .text("header_buffer", facts.longest_header() / 1024)
        .text("answer_buffer", facts.answer_size() / 1024)
        .text("wait", duration(facts.longest_wait()))
        .text("timeout", duration(facts.timeout(Duration::from_secs(1))));
    Ok(Recipe { text: values.fill(TEMPLATE), warnings })
}

/// A line for each name and its variable.
fn each(names: &[&HeaderName], line: impl Fn(&HeaderName, &str) -> String) -> Vec<String> {
    names.iter().map(|name| line(name, &variable(name))).collect()
}

/// Directives that remove the override headers of the client, except some.
fn emptied(facts: &Facts<'_>, except: &[&str]) -> Vec<String> {
    let names = facts.overrides().filter(|name| !except.contains(&name.as_str()));
    names.map(|name| format!("proxy_set_header {} \"\";", written(name))).collect()
}

fn claims_from_answer(facts: &Facts<'_>) -> Vec<String> {
    let set = facts.claims().iter().map(variable);
    let mut lines: Vec<String> =
        set.map(|name| format!("auth_request_set $claim_{name} $upstream_http_{name};")).collect();
    if !lines.is_empty() {
        lines.insert(0, "# Claim headers.".to_owned());
    }
    lines
}

fn claims_to_app(facts: &Facts<'_>) -> Vec<String> {
    let mut lines: Vec<String> = facts
        .claims()
        .iter()
        .map(|name| format!("proxy_set_header {} $claim_{};", written(name), variable(name)))
        .collect();
    if !lines.is_empty() {
        let comment =
            "# Claim headers: without a value NGINX sends no header at all, even if the client sent one.";
        lines.insert(0, comment.to_owned());
    }
    lines
}

fn claims_from_client(facts: &Facts<'_>) -> Vec<String> {
    if facts.claims().is_empty() {
        return Vec::new();
    }
    let comment = [
        "# Claim headers: those of the client are removed before authorization. Portcullis denies (400) a request",
        "# that still has one, so that a header that was added to portcullis.yaml but not here cannot be forged.",
    ];
    let removed = facts.claims().iter().map(|name| format!("proxy_set_header {} \"\";", written(name)));
    comment.into_iter().map(str::to_owned).chain(removed).collect()
}

fn tokens_to_app(facts: &Facts<'_>, removed: &[&HeaderName]) -> Vec<String> {
    let rewritten = facts.removed_tokens().rewritten;
    if removed.is_empty() && rewritten.is_empty() {
        return vec!["# The app gets the token too: forward_token is true.".to_owned()];
    }
    let mut lines = vec!["# The app does not get the token: forward_token is false.".to_owned()];
    lines.extend(removed.iter().map(|name| format!("proxy_set_header {} \"\";", written(name))));
    for rewritten in rewritten {
        let (name, variable) = match rewritten {
            Rewritten::Cookies => ("cookie", "cookies"),
            Rewritten::Protocols => ("sec_websocket_protocol", "protocols"),
        };
        lines.push(format!("# {}", rewritten.remainder()));
        lines.push(format!("auth_request_set $remaining_{variable} $upstream_http_{name};"));
        lines.push(format!("proxy_set_header {} $remaining_{variable};", rewritten.header()));
    }
    lines
}

fn forwarded_host(facts: &Facts<'_>) -> Vec<String> {
    match facts.is_trusted("x-forwarded-host") {
        true => Vec::new(),
        false => vec!["proxy_set_header X-Forwarded-Host $host;".to_owned()],
    }
}

fn denial_headers<'a>(facts: &'a Facts<'_>, warnings: &mut Vec<String>) -> Vec<&'a HeaderName> {
    CORS.iter().chain(facts.denial_headers(&CORS, warnings)).collect()
}

/// Directives for a door with TLS.
fn tls(door: &HttpDoor<'_>) -> Vec<String> {
    if door.door.tls.is_none() {
        return Vec::new();
    }
    let mut lines = vec![
        "# Change the authority of Portcullis's certificate, and the name in the certificate.",
        "proxy_ssl_trusted_certificate /etc/nginx/portcullis-ca.pem;",
        "proxy_ssl_verify on;",
        "proxy_ssl_server_name on;",
        "proxy_ssl_name portcullis;",
    ];
    if door.door.wants_client_certificate() {
        lines.push("proxy_ssl_certificate /etc/nginx/portcullis-client.pem;");
        lines.push("proxy_ssl_certificate_key /etc/nginx/portcullis-client-key.pem;");
    }
    lines.into_iter().map(str::to_owned).collect()
}

fn metadata(
    facts: &Facts<'_>,
    door: &HttpDoor<'_>,
    tls: &[String],
    warnings: &mut Vec<String>,
) -> Vec<String> {
    let Some(path) = facts.metadata_path(warnings) else { return Vec::new() };
    let mut lines = vec![
        "# The metadata of the resource (RFC 9728), served by Portcullis without a token.".to_owned(),
        format!("location = {path} {{"),
        format!("    proxy_pass {}://portcullis;", door.scheme()),
    ];
    lines.extend(tls.iter().map(|line| format!("    {line}")));
    let rest = [
        "    proxy_set_header Host $host;",
        "    proxy_set_header X-Original-URI \"\";",
        "    proxy_set_header X-Original-Method \"\";",
        "}",
    ];
    lines.extend(rest.map(str::to_owned));
    lines
}

/// The answer if the issuer's keys are not available, if its status is not the one without an authorization response.
fn unavailable(facts: &Facts<'_>, warnings: &mut Vec<String>) -> Vec<String> {
    match facts.config.responses.keys_unavailable_status {
        503 => Vec::new(),
        status if OTHER_DENIALS.contains(&status) => {
            warnings.push(format!(
                "responses.keys_unavailable_status: NGINX cannot tell {status} from the denials with this status, and answers with their body"
            ));
            Vec::new()
        }
        status if OWN_STATUSES.contains(&status) => {
            warnings.push(format!(
                "responses.keys_unavailable_status: {status} has a meaning of its own in NGINX, so the file answers 503"
            ));
            Vec::new()
        }
        status => vec![
            format!("if ($denial_status = {status}) {{"),
            format!("    return {status} '{UNAVAILABLE}';"),
            "}".to_owned(),
        ],
    }
}
