//! Known differences of proxies: requests that a proxy refuses itself or forwards in another form. They are documented in
//! `docs/security.md`. A difference that no longer exists fails the test.

/// A case, the proxies for which it fails (as `differentials.rs` names them), and the reason.
pub struct Difference {
    /// The name of the case, or the beginning and the end of several names with a `*` in between.
    pub case: &'static str,
    pub proxies: &'static [&'static str],
    pub why: &'static str,
}

const ENVOY: &[&str] = &["envoy_grpc", "envoy_http"];

/// Every difference.
pub const DIFFERENCES: &[Difference] = &[
    Difference {
        case: "plain /files/a%2Fb",
        proxies: ENVOY,
        why: "path_with_escaped_slashes_action refuses an encoded slash before Portcullis is asked",
    },
    Difference {
        case: "plain unicode as it is",
        proxies: &["envoy_grpc", "envoy_http", "haproxy"],
        why: "octets that are not allowed in a target (RFC 9112 §3) are refused; browsers encode them",
    },
    Difference {
        case: "plain unicode in a query",
        proxies: &["envoy_grpc", "envoy_http", "haproxy"],
        why: "octets that are not allowed in a target (RFC 9112 §3) are refused; browsers encode them",
    },
    Difference {
        case: "plain HTTP/1.0",
        proxies: ENVOY,
        why: "HTTP/1.0 is answered 426 unless accept_http_10 is set",
    },
    Difference {
        case: "plain HTTP/1.0 without Host",
        proxies: ENVOY,
        why: "HTTP/1.0 is answered 426 unless accept_http_10 is set",
    },
    Difference {
        case: "plain HTTP/1.0 without Host",
        proxies: &["caddy_2_6", "caddy_2_10", "caddy_2_11", "haproxy", "traefik"],
        why: "if rules match hosts, a request without one is malformed; NGINX sends the name in its file",
    },
    Difference { case: "plain /x?a=b;c", proxies: &["traefik"], why: "a `;` in a query is forwarded as `&`" },
    Difference {
        case: "plain HTTP/2 /x?a=b;c",
        proxies: &["traefik"],
        why: "a `;` in a query is forwarded as `&`",
    },
    Difference {
        case: "plain trailer",
        proxies: &["haproxy"],
        why: "a request with trailers is refused, since HAProxy cannot remove a trailer",
    },
    Difference {
        case: "12 the trailer*announced",
        proxies: &["caddy_2_11"],
        why: "trailers are forwarded, and Caddy has no directive that removes one",
    },
];

impl Difference {
    fn matches(&self, case: &str) -> bool {
        match self.case.split_once('*') {
            Some((beginning, end)) => case.starts_with(beginning) && case.ends_with(end),
            None => case == self.case,
        }
    }
}

/// The failures that are not known differences of this proxy, and the known differences that no longer exist. `wrong`
/// contains the names of failed cases and their faults.
pub fn unexpected(proxy: &str, wrong: Vec<(String, String)>, cases: &[&str]) -> Vec<String> {
    let differences: Vec<&Difference> =
        DIFFERENCES.iter().filter(|difference| difference.proxies.contains(&proxy)).collect();
    let known = |name: &str| differences.iter().any(|difference| difference.matches(name));
    let tried = differences.iter().filter(|difference| cases.iter().any(|case| difference.matches(case)));
    let stale = tried.filter(|difference| !wrong.iter().any(|(name, _)| difference.matches(name)));
    let stale: Vec<String> = stale
        .map(|difference| {
            format!("{} passes despite the known difference: {}", difference.case, difference.why)
        })
        .collect();
    let wrong = wrong.into_iter().filter(|(name, _)| !known(name));
    wrong.map(|(name, text)| format!("{name}: {text}")).chain(stale).collect()
}
