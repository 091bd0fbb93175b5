//! What is legal in a configuration and probably not meant: told, never refused.

use std::net::IpAddr;

use ipnet::IpNet;
use url::{Host, Url};

use portcullis_core::rules::{Effect, Match, PathPattern, Rule};

use super::cursor::Cursor;
use super::{KeySource, ProviderConfig};

/// Domains that no public name ends with (RFC 2606, 6761, 6762, 8375, 9476), and Kubernetes' own.
const PRIVATE_SUFFIXES: [&str; 9] =
    [".internal", ".local", ".localhost", ".test", ".lan", ".home.arpa", ".alt", ".svc", ".cluster.local"];

/// Paths that a pattern which means them all matches.
const ANY_PATHS: [&str; 2] = ["/", "/any/path.at-all"];

/// Of one provider.
pub(super) fn warn_of_provider(element: &Cursor<'_>, config: &ProviderConfig) {
    if let Some(any) = element.peek("any_audience") {
        any.warn("a token that was meant for any other service of this issuer is accepted here");
    }
    let (KeySource::JwksUri(url) | KeySource::Discovery(url)) = &config.keys else { return };
    let written = ["jwks_uri", "discovery_uri", "issuer"].into_iter().find_map(|key| element.peek(key));
    if let Some(written) = written.filter(|_| url.scheme() == "http" && is_public(url)) {
        written.warn("keys come by http from a public host: whoever is on the way can exchange them, and so sign tokens");
    }
}

/// Whether a host can be reached from everywhere, as far as its name tells.
fn is_public(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => {
            name.contains('.') && !PRIVATE_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
        }
        Some(Host::Ipv4(address)) => {
            !(address.is_private() || address.is_loopback() || address.is_link_local())
        }
        Some(Host::Ipv6(address)) => match address.to_canonical() {
            IpAddr::V4(address) => {
                !(address.is_private() || address.is_loopback() || address.is_link_local())
            }
            IpAddr::V6(address) => {
                !(address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local())
            }
        },
        None => false,
    }
}

/// Of the rules, each with the place where it stands.
pub(super) fn warn_of_rules(elements: &[Cursor<'_>], rules: &[Rule]) {
    for (i, (element, rule)) in elements.iter().zip(rules).enumerate() {
        let earlier = rules.iter().zip(elements).take(i);
        if let Some((covering, at)) = earlier.into_iter().find(|(earlier, _)| covers(earlier, rule)) {
            element.warn(format!(
                "can never match: `{}`, in line {}, comes first and matches all that this one does",
                covering.name,
                at.line()
            ));
        }
        let everywhere = is_everywhere(&rule.matches);
        if rule.effect == Effect::Anonymous && everywhere {
            element.warn("lets everybody pass to every path: name the paths that are public");
        }
        if rule.ambiguous_paths {
            let at = element.peek("ambiguous_paths");
            at.as_ref().unwrap_or(element).warn(
                "paths such as /files/a%2fb pass: right only if the upstream does not decode them before it looks at them",
            );
        }
    }
}

/// Of the networks that may describe requests.
pub(super) fn warn_of_network(cursor: &Cursor<'_>, network: &IpNet) {
    if network.prefix_len() == 0 {
        cursor
            .warn("whoever reaches an HTTP door can say which request is judged, and so have any other pass");
    }
}

fn is_everywhere(matches: &Match) -> bool {
    match &matches.path {
        None => true,
        Some(pattern) => ANY_PATHS.iter().all(|path| pattern.matches(path)),
    }
}

/// Whether every request that `later` is about is one that `earlier` is about.
fn covers(earlier: &Rule, later: &Rule) -> bool {
    let (Match { path: e_path, methods: e_methods, hosts: e_hosts }, Match { path, methods, hosts }) =
        (&earlier.matches, &later.matches);
    let all_in = |ours: &[String], theirs: &[String]| {
        !theirs.is_empty() && theirs.iter().all(|one| ours.contains(one))
    };
    let path_covered = match (e_path, path) {
        (None, _) => true,
        (Some(PathPattern::Prefix(prefix)), Some(PathPattern::Prefix(below))) => {
            PathPattern::Prefix(prefix.clone()).matches(below)
        }
        (Some(earlier), Some(PathPattern::Exact(exact))) => earlier.matches(exact),
        (Some(earlier), Some(later)) => earlier == later,
        (Some(earlier), None) => *earlier == PathPattern::Prefix(String::new()),
    };
    path_covered
        && (e_methods.is_empty() || all_in(e_methods, methods))
        && (e_hosts.is_empty()
            || (!hosts.is_empty() && hosts.iter().all(|host| e_hosts.iter().any(|ours| ours.covers(host)))))
        && (earlier.effect != Effect::Preflight || later.effect == Effect::Preflight)
}
