//! Warnings about settings that are valid but probably not intended.

mod listen;
mod paths;
mod rules;
mod tokens;

use std::net::IpAddr;

use ipnet::IpNet;
use url::{Host, Url};

use portcullis_core::validation::provider::{Audiences, TokenSource};

use super::ProviderConfig;
use super::cursor::Cursor;

pub(super) use self::listen::warn_of_listeners;
pub(super) use self::rules::warn_of_rules;
pub(super) use self::tokens::warn_of_shared_places;

/// Domains that are never public (RFC 2606, 6761, 6762, 8375, 9476), and those of Kubernetes.
const PRIVATE_SUFFIXES: [&str; 9] =
    [".internal", ".local", ".localhost", ".test", ".lan", ".home.arpa", ".alt", ".svc", ".cluster.local"];

/// Warnings about one provider.
pub(super) fn warn_of_provider(element: &Cursor<'_>, config: &ProviderConfig) {
    if let Some(any) = element.peek("any_audience")
        && config.provider.audiences == Audiences::Any
    {
        any.warn("tokens for every other service of this issuer are accepted");
    }
    if let Some(sources) = element.peek("token_from")
        && config.provider.token_from.iter().any(|source| matches!(source, TokenSource::Query(_)))
    {
        sources
            .warn("tokens in queries end up in logs and in Referer headers of other sites (RFC 6750 §2.3)");
    }
    for key in ["claim_headers", "required_claims", "metadata_claims"] {
        element.peek(key).iter().for_each(rules::warn_of_claims);
    }
    let key = ["jwks_uri", "discovery_uri", "issuer"].into_iter().find_map(|key| element.peek(key));
    let is_plain = |url: &Url| url.scheme() == "http" && is_public(url);
    if let Some(key) = key.filter(|_| config.keys.urls().iter().any(is_plain)) {
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

/// Warnings about networks that may describe requests.
pub(super) fn warn_of_network(cursor: &Cursor<'_>, network: &IpNet) {
    if network.prefix_len() == 0 {
        cursor.warn("any peer that reaches an HTTP door can describe any request, and so bypass the rules");
    }
}
