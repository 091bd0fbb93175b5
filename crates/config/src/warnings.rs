//! Warnings about settings that are valid but probably not intended.

use std::net::IpAddr;

use ipnet::IpNet;
use url::{Host, Url};

use portcullis_core::rules::{Effect, Match, PathPattern, Rule};
use portcullis_core::validation::provider::Audiences;

use super::cursor::Cursor;
use super::{KeySource, ProviderConfig};

/// Domains that are never public (RFC 2606, 6761, 6762, 8375, 9476), and those of Kubernetes.
const PRIVATE_SUFFIXES: [&str; 9] =
    [".internal", ".local", ".localhost", ".test", ".lan", ".home.arpa", ".alt", ".svc", ".cluster.local"];

/// Paths that a pattern for every path matches.
const ANY_PATHS: [&str; 2] = ["/", "/any/path.at-all"];

/// Warnings about one provider.
pub(super) fn warn_of_provider(element: &Cursor<'_>, config: &ProviderConfig) {
    if let Some(any) = element.peek("any_audience")
        && config.provider.audiences == Audiences::Any
    {
        any.warn("tokens for every other service of this issuer are accepted");
    }
    let (KeySource::JwksUri(url) | KeySource::Discovery(url)) = &config.keys else { return };
    let key = ["jwks_uri", "discovery_uri", "issuer"].into_iter().find_map(|key| element.peek(key));
    if let Some(key) = key.filter(|_| url.scheme() == "http" && is_public(url)) {
        key.warn("keys are fetched over plain http from a public host: an attacker on the path can replace them and sign tokens");
    }
}

/// Whether a host is public, judging by its name.
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

/// Warnings about the rules, each with its position.
pub(super) fn warn_of_rules(elements: &[Cursor<'_>], rules: &[Rule]) {
    for (i, (element, rule)) in elements.iter().zip(rules).enumerate() {
        let earlier = rules.iter().zip(elements).take(i);
        if let Some((covering, at)) = earlier.into_iter().find(|(earlier, _)| covers(earlier, rule)) {
            element.warn(format!(
                "can never match: `{}`, in line {}, comes first and matches every request of this rule",
                covering.name,
                at.line()
            ));
        }
        let every_path = matches_every_path(&rule.matches);
        if rule.effect == Effect::Anonymous && every_path {
            element.warn("allows every request to every path: name the public paths");
        }
        if rule.ambiguous_paths {
            let at = element.peek("ambiguous_paths");
            at.as_ref().unwrap_or(element).warn(
                "paths such as /files/a%2fb are accepted: safe only if the upstream does not decode them",
            );
        }
    }
}

/// Warnings about networks that may describe requests.
pub(super) fn warn_of_network(cursor: &Cursor<'_>, network: &IpNet) {
    if network.prefix_len() == 0 {
        cursor.warn("any peer that reaches an HTTP door can describe any request, and so bypass the rules");
    }
}

fn matches_every_path(matches: &Match) -> bool {
    match &matches.path {
        None => true,
        Some(pattern) => ANY_PATHS.iter().all(|path| pattern.matches(path)),
    }
}

/// Whether every request that matches `later` also matches `earlier`.
fn covers(earlier: &Rule, later: &Rule) -> bool {
    let (Match { path: e_path, methods: e_methods, hosts: e_hosts }, Match { path, methods, hosts }) =
        (&earlier.matches, &later.matches);
    let covers_all = |ours: &[String], theirs: &[String]| {
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
        && (e_methods.is_empty() || covers_all(e_methods, methods))
        && (e_hosts.is_empty()
            || (!hosts.is_empty() && hosts.iter().all(|host| e_hosts.iter().any(|ours| ours.covers(host)))))
        && (earlier.effect != Effect::Preflight || later.effect == Effect::Preflight)
}
