//! Warnings about settings that are valid but probably not intended.

use std::net::IpAddr;

use ipnet::IpNet;
use url::{Host, Url};

use portcullis_core::rules::{Effect, HeaderMatch, Match, PathPattern, Rule};
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
    matches.paths.is_empty() || ANY_PATHS.iter().all(|path| matches.paths.iter().any(|one| one.matches(path)))
}

/// Whether every request that matches `later` also matches `earlier`.
fn covers(earlier: &Rule, later: &Rule) -> bool {
    let (ours, theirs) = (&earlier.matches, &later.matches);
    let has_method = |method: &String| ours.methods.contains(method);
    let has_host = |host| ours.hosts.iter().any(|ours| ours.covers(host));
    let has_header = |header: &HeaderMatch| {
        let mut same = theirs.headers.iter().filter(|theirs| theirs.name == header.name);
        same.any(|theirs| theirs.any_of.iter().all(|value| header.any_of.contains(value)))
    };
    covers_paths(&ours.paths, &theirs.paths)
        && (ours.methods.is_empty() || (!theirs.methods.is_empty() && theirs.methods.iter().all(has_method)))
        && (ours.hosts.is_empty() || (!theirs.hosts.is_empty() && theirs.hosts.iter().all(has_host)))
        && ours.headers.iter().all(has_header)
        && (earlier.effect != Effect::Preflight || later.effect == Effect::Preflight)
}

/// Whether every path that matches one of `later` also matches one of `earlier`; empty is every path.
fn covers_paths(earlier: &[PathPattern], later: &[PathPattern]) -> bool {
    if earlier.is_empty() {
        return true;
    }
    let covers_one = |later: &PathPattern| {
        earlier.iter().any(|earlier| match (earlier, later) {
            (PathPattern::Prefix(_), PathPattern::Prefix(below)) => earlier.matches(below),
            (earlier, PathPattern::Exact(exact)) => earlier.matches(exact),
            (earlier, later) => earlier == later,
        })
    };
    match later {
        [] => earlier.contains(&PathPattern::Prefix(String::new())),
        later => later.iter().all(covers_one),
    }
}
