//! SPIFFE IDs (SPIFFE-ID §2), the subjects of JWT-SVIDs (JWT-SVID §3.1).

/// What every SPIFFE ID begins with. The specification requires lower case of those who write one (§2.1).
const PREFIX: &str = "spiffe://";

/// The longest SPIFFE ID, in bytes (§2.3).
const MAX_BYTES: usize = 2_048;

/// The longest name of a trust domain, in bytes (§2.3).
const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// Whether this is the name of a trust domain (§2.1): at most 255 lower-case letters, digits, `.`, `-` and `_`.
pub fn is_trust_domain(name: &str) -> bool {
    let is_allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_');
    !name.is_empty() && name.len() <= MAX_TRUST_DOMAIN_BYTES && name.bytes().all(is_allowed)
}

/// The SPIFFE ID of a trust domain, which has no path.
pub fn id_of(trust_domain: &str) -> String {
    format!("{PREFIX}{trust_domain}")
}

/// The name of the trust domain with this SPIFFE ID.
pub fn name_of(id: &str) -> &str {
    id.strip_prefix(PREFIX).unwrap_or(id)
}

/// Whether a text is meant as a SPIFFE ID, valid or not.
pub(super) fn is_meant(text: &str) -> bool {
    text.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

/// The SPIFFE ID of the trust domain of this SPIFFE ID: its part without the path. `None` if it is not valid (§2.1, §2.2).
pub fn trust_domain_id(id: &str) -> Option<&str> {
    let rest = id.strip_prefix(PREFIX).filter(|_| id.len() <= MAX_BYTES)?;
    let (trust_domain, path) = rest.split_at_checked(rest.find('/').unwrap_or(rest.len()))?;
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let is_segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(is_allowed);
    let is_path = path.is_empty() || path.split('/').skip(1).all(is_segment);
    (is_trust_domain(trust_domain) && is_path).then(|| id.get(..PREFIX.len() + trust_domain.len()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_id_has_the_id_of_its_trust_domain_and_anything_else_has_none() {
        for (id, expected) in [
            ("spiffe://example.org", Some("spiffe://example.org")),
            ("spiffe://example.org/ns/prod/sa/orders", Some("spiffe://example.org")),
            ("spiffe://k8s-west_1.example.org/9eebccd2", Some("spiffe://k8s-west_1.example.org")),
            ("spiffe://10.0.0.1/A.b-C_d/...", Some("spiffe://10.0.0.1")),
            ("spiffe://example.org/", None),
            ("spiffe://example.org//a", None),
            ("spiffe://example.org/a/", None),
            ("spiffe://example.org/./a", None),
            ("spiffe://example.org/a/../b", None),
            ("spiffe://example.org/%61", None),
            ("spiffe://example.org/a b", None),
            ("spiffe://example.org/ä", None),
            ("spiffe://example.org?a", None),
            ("spiffe://example.org#a", None),
            ("spiffe://example.org:8443/a", None),
            ("spiffe://user@example.org/a", None),
            ("spiffe://Example.org/a", None),
            ("SPIFFE://example.org/a", None),
            ("spiffe:///a", None),
            ("spiffe://", None),
            ("spiffe:/example.org/a", None),
            ("https://example.org/a", None),
            ("example.org", None),
            ("", None),
        ] {
            assert_eq!(trust_domain_id(id), expected, "{id}");
        }
    }

    #[test]
    fn the_longest_names_are_accepted_and_longer_ones_are_not() {
        let domain = "d".repeat(MAX_TRUST_DOMAIN_BYTES);
        assert!(is_trust_domain(&domain) && !is_trust_domain(&format!("{domain}d")));
        let id = |length: usize| format!("spiffe://d/{}", "p".repeat(length - "spiffe://d/".len()));
        assert_eq!(trust_domain_id(&id(MAX_BYTES)), Some("spiffe://d"));
        assert_eq!(trust_domain_id(&id(MAX_BYTES + 1)), None);
        assert!(is_meant("Spiffe://x") && !is_meant("spiffe:/") && !is_meant("spiffé://x"));
    }
}
