//! Canonical hosts for comparison in rules: without port and trailing dot, in lower case.
//!
//! Pure.

use std::net::Ipv6Addr;

/// The host of a `Host` header or an `:authority`; `None` if it has no canonical form: user information, several
/// hosts, or octets that a host name cannot contain.
pub fn canonical(authority: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(authority).ok()?;
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        return is_port(port).then(|| format!("[{address}]"));
    }
    let (host, port) = text.split_at_checked(text.find(':').unwrap_or(text.len()))?;
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_name = !host.is_empty()
        && !host.starts_with('.')
        && !host.ends_with('.')
        && !host.contains("..")
        && host.bytes().all(is_allowed);
    (is_name && is_port(port)).then(|| host.to_ascii_lowercase())
}

/// Empty, a colon and digits, or a colon only (RFC 3986 §3.2.3).
fn is_port(text: &str) -> bool {
    text.is_empty()
        || text.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The hosts that a rule applies to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// This host.
    Exact(String),
    /// Every host below this domain, at any depth, but not the domain itself. Begins with a dot.
    Subdomain(String),
}

impl HostPattern {
    /// Reads `api.example.com`, `[::1]` or `*.example.com`.
    ///
    /// # Errors
    /// The problem, for the author of the rule.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "expected a host without a port, such as api.example.com or *.example.com";
        let (name, is_suffix) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let has_port = if name.starts_with('[') { !name.ends_with(']') } else { name.contains(':') };
        let host = canonical(name.as_bytes()).filter(|_| !has_port).ok_or(EXPECTED)?;
        Ok(if is_suffix { HostPattern::Subdomain(format!(".{host}")) } else { HostPattern::Exact(host) })
    }

    /// Whether this pattern matches every host that the other one matches.
    pub fn covers(&self, other: &HostPattern) -> bool {
        match (self, other) {
            (ours, HostPattern::Exact(host)) => ours.matches(host),
            (HostPattern::Subdomain(ours), HostPattern::Subdomain(theirs)) => theirs.ends_with(ours.as_str()),
            (HostPattern::Exact(_), HostPattern::Subdomain(_)) => false,
        }
    }

    /// Whether a canonical host matches.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            HostPattern::Exact(name) => name == host,
            HostPattern::Subdomain(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
        }
    }
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HostPattern::Exact(name) => f.write_str(name),
            HostPattern::Subdomain(suffix) => write!(f, "*{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_case_and_trailing_dot_are_ignored() {
        for (authority, expected) in [
            ("api.example.com", Some("api.example.com")),
            ("API.Example.COM:8443", Some("api.example.com")),
            ("api.example.com.", Some("api.example.com")),
            ("api.example.com.:443", Some("api.example.com")),
            ("api.example.com:", Some("api.example.com")),
            ("127.0.0.1:80", Some("127.0.0.1")),
            ("[::1]:80", Some("[::1]")),
            ("[0:0::1]", Some("[::1]")),
            ("", None),
            (".", None),
            ("..", None),
            ("a..b", None),
            ("api.example.com..", None),
            (".example.com", None),
            ("user@api.example.com", None),
            ("api.example.com,evil.example", None),
            ("api.example.com:80:80", None),
            ("api.example.com:http", None),
            ("api example.com", None),
            ("::1", None),
            ("[::1", None),
            ("[evil]", None),
            ("[::1]x", None),
            ("api.example.com/admin", None),
        ] {
            assert_eq!(canonical(authority.as_bytes()).as_deref(), expected, "{authority}");
        }
        assert_eq!(canonical(b"\xff"), None);
    }

    #[test]
    fn a_wildcard_matches_one_or_more_labels() {
        for (pattern, host, expected) in [
            ("api.example.com", "api.example.com", true),
            ("API.example.com", "api.example.com", true),
            ("api.example.com", "x.api.example.com", false),
            ("*.example.com", "api.example.com", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "badexample.com", false),
            ("[::1]", "[::1]", true),
        ] {
            let pattern = HostPattern::parse(pattern).expect("the pattern of this test is one");
            assert_eq!(pattern.matches(host), expected, "{pattern} {host}");
        }
        for text in ["", "*", "*.", "a:80", "[::1]:80", "*.*.com", "a*.example.com", "http://a"] {
            assert!(HostPattern::parse(text).is_err(), "{text}");
        }
    }
}
