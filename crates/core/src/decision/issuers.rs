//! The issuers of a configuration, for words about a token whose `iss` is none of them: whether it almost is one.
//!
//! It selects no provider: `iss` is compared exactly (RFC 8725 §3.8), elsewhere.

use std::collections::HashMap;

use crate::validation::provider::{Provider, SelectedBy};

/// The placeholder for a realm's name in the issuer of a provider with several.
pub const REALM_PLACEHOLDER: &str = "{realm}";

/// A longer issuer is not compared: none of a configuration is so long.
const MAX_BYTES: usize = 1_024;

/// Names and issuers of all providers.
#[derive(Clone, Debug, Default)]
pub(super) struct Issuers {
    /// In the order of the providers.
    all: Vec<Named>,
    /// The SPIFFE IDs of trust domains, in the order of the providers.
    trust_domains: Vec<String>,
    /// The positions of those without a placeholder, by what remains without scheme, port, case and final slash.
    by_likeness: HashMap<String, usize>,
}

/// A provider's issuer.
#[derive(Clone, Debug)]
struct Named {
    provider: String,
    issuer: String,
}

/// An issuer of the configuration that a token's `iss` almost is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Near {
    pub(super) provider: String,
    /// How the token's issuer differs, or that its realm is not one of the provider's.
    pub(super) difference: Difference,
}

/// How an issuer differs from that of a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    /// By these parts alone.
    Parts(String),
    /// By a realm that the configuration does not allow.
    Realm(String),
}

impl Issuers {
    pub(super) fn add(&mut self, provider: &Provider) {
        let Provider { name, issuer, .. } = provider;
        if provider.selected_by == SelectedBy::TrustDomain {
            return self.trust_domains.push(issuer.clone());
        }
        if !issuer.contains(REALM_PLACEHOLDER) {
            self.by_likeness.entry(likeness(issuer)).or_insert(self.all.len());
        }
        self.all.push(Named { provider: name.clone(), issuer: issuer.clone() });
    }

    /// The SPIFFE IDs of the trust domains, in the order of the providers.
    pub(super) fn trust_domains(&self) -> &[String] {
        &self.trust_domains
    }

    /// The issuers in the order of the providers, without trust domains.
    pub(super) fn all(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|named| &*named.issuer)
    }

    /// The issuer that this one almost is. The time does not depend on the number of providers without realms.
    pub(super) fn near(&self, issuer: &str) -> Option<Near> {
        if issuer.len() > MAX_BYTES {
            return None;
        }
        if let Some(near) = self.by_likeness.get(&likeness(issuer)).and_then(|at| self.all.get(*at)) {
            return near.unless_equal(issuer, &near.issuer);
        }
        self.all.iter().find_map(|named| named.near_realm(issuer))
    }
}

impl Named {
    /// That it differs from `wanted`; `None` if it is the same.
    fn unless_equal(&self, issuer: &str, wanted: &str) -> Option<Near> {
        let difference = Difference::Parts(differences(issuer, wanted));
        (issuer != wanted).then(|| Near { provider: self.provider.clone(), difference })
    }

    /// Whether the issuer is or almost is one of this provider's realms.
    fn near_realm(&self, issuer: &str) -> Option<Near> {
        let (prefix, suffix) = self.issuer.split_once(REALM_PLACEHOLDER)?;
        let like = likeness(issuer);
        let (like_prefix, like_suffix) = (without_scheme_and_port(prefix), suffix.trim_end_matches('/'));
        let realm = like.strip_prefix(&like_prefix.to_ascii_lowercase())?;
        let realm = realm.strip_suffix(&like_suffix.to_ascii_lowercase())?;
        if realm.is_empty() || realm.contains('/') {
            return None;
        }
        // The name with its case: both texts end alike.
        let kept = issuer.trim_end_matches('/');
        let end = kept.len().checked_sub(like_suffix.len())?;
        let realm = kept.get(end.checked_sub(realm.len())?..end)?;
        let wanted = format!("{prefix}{realm}{suffix}");
        let not_allowed =
            || Near { provider: self.provider.clone(), difference: Difference::Realm(realm.to_owned()) };
        Some(self.unless_equal(issuer, &wanted).unwrap_or_else(not_allowed))
    }
}

/// The parts of an issuer (RFC 8414 §2): scheme, host, port and path.
struct Parts<'i> {
    scheme: &'i str,
    host: &'i str,
    port: &'i str,
    path: &'i str,
}

impl<'i> Parts<'i> {
    fn of(issuer: &'i str) -> Self {
        let (scheme, rest) = issuer.split_once("://").unwrap_or(("", issuer));
        let (authority, path) =
            rest.split_at_checked(rest.find('/').unwrap_or(rest.len())).unwrap_or((rest, ""));
        let port =
            authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
        let (host, port) = port.unwrap_or((authority, ""));
        Self { scheme, host, port, path }
    }
}

fn without_scheme_and_port(issuer: &str) -> String {
    let Parts { host, path, .. } = Parts::of(issuer);
    format!("{host}{path}")
}

/// What two issuers have in common that differ by scheme, port, case or a final slash alone.
fn likeness(issuer: &str) -> String {
    without_scheme_and_port(issuer).trim_end_matches('/').to_ascii_lowercase()
}

/// The parts by which two issuers of one likeness differ.
fn differences(issuer: &str, wanted: &str) -> String {
    let (one, other) = (Parts::of(issuer), Parts::of(wanted));
    let rest = |parts: &Parts<'_>| format!("{}{}", parts.host, parts.path.trim_end_matches('/'));
    let slashes = |parts: &Parts<'_>| parts.path.len() - parts.path.trim_end_matches('/').len();
    let found = [
        (!one.scheme.eq_ignore_ascii_case(other.scheme), "the scheme"),
        (one.port != other.port, "the port"),
        (
            rest(&one) != rest(&other)
                || (one.scheme != other.scheme && one.scheme.eq_ignore_ascii_case(other.scheme)),
            "upper and lower case",
        ),
        (slashes(&one) != slashes(&other), "a slash at the end"),
    ];
    let found: Vec<&str> = found.into_iter().filter(|(differs, _)| *differs).map(|(_, part)| part).collect();
    found.join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuers(all: &[(&str, &str)]) -> Issuers {
        let mut issuers = Issuers::default();
        for (provider, issuer) in all {
            let named = Named { provider: (*provider).to_owned(), issuer: (*issuer).to_owned() };
            if !issuer.contains(REALM_PLACEHOLDER) {
                issuers.by_likeness.insert(likeness(issuer), issuers.all.len());
            }
            issuers.all.push(named);
        }
        issuers
    }

    #[test]
    fn an_issuer_that_differs_by_scheme_port_case_or_a_slash_is_near() {
        let known = issuers(&[
            ("a", "https://sso.example.com/realms/acme"),
            ("b", "accounts.google.com"),
            ("c", "https://many.example.com/t/{realm}/v2"),
            ("d", "https://[::1]:8443"),
        ]);
        for (issuer, provider, differs) in [
            ("https://sso.example.com/realms/acme/", "a", "a slash at the end"),
            ("http://sso.example.com/realms/acme", "a", "the scheme"),
            ("https://sso.example.com:443/realms/acme", "a", "the port"),
            ("https://SSO.example.com/realms/acme", "a", "upper and lower case"),
            ("HTTPS://sso.example.com/realms/acme", "a", "upper and lower case"),
            (
                "http://sso.example.com:8080/realms/Acme/",
                "a",
                "the scheme and the port and upper and lower case and a slash at the end",
            ),
            ("https://accounts.google.com", "b", "the scheme"),
            ("https://many.example.com/t/acme/v2/", "c", "a slash at the end"),
            ("http://many.example.com/t/Acme/v2", "c", "the scheme"),
            ("https://[::1]", "d", "the port"),
        ] {
            let near = known.near(issuer).unwrap_or_else(|| panic!("{issuer}"));
            assert_eq!(near.difference, Difference::Parts(differs.to_owned()), "{issuer}");
            assert_eq!(near.provider, provider);
        }
        let realm = known.near("https://many.example.com/t/Evil/v2").expect("of the template");
        assert_eq!(realm.difference, Difference::Realm("Evil".to_owned()));
        for issuer in [
            "",
            "https://sso.example.com/realms/acme",
            "https://sso.example.com/realms/acm",
            "https://sso.example.com.evil/realms/acme",
            "https://many.example.com/t//v2",
            "https://many.example.com/t/a/b/v2",
            "https://many.example.com/t/v2",
            "é",
            &"x".repeat(5_000),
        ] {
            assert_eq!(known.near(issuer), None, "{issuer}");
        }
    }
}
