//! Where a proxy differs on purpose: what it refuses by itself, or hands on in a form of its own. Each line is said
//! in `docs/security.md` too. One that no longer holds fails the test, so that the list stays true.

/// A case and the proxies (as `differentials.rs` names them) for which it does not hold, and why.
pub struct Difference {
    /// Its name, or the beginning of several and a `*`.
    /// Its name, or the beginning and the end of several with a `*` in between.
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
        why: "octets that a target may not have (RFC 9112 §3) are refused; browsers encode them",
    },
    Difference {
        case: "plain unicode in a query",
        proxies: &["envoy_grpc", "envoy_http", "haproxy"],
        why: "octets that a target may not have (RFC 9112 §3) are refused; browsers encode them",
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
        why: "where rules look at hosts, a request without one is malformed; NGINX says the name in its file",
    },
    Difference { case: "plain /x?a=b;c", proxies: &["traefik"], why: "a `;` in a query is handed on as `&`" },
    Difference {
        case: "plain HTTP/2 /x?a=b;c",
        proxies: &["traefik"],
        why: "a `;` in a query is handed on as `&`",
    },
    Difference {
        case: "plain trailer",
        proxies: &["haproxy"],
        why: "a request with trailers is refused, since HAProxy cannot take one away",
    },
    Difference {
        case: "12 the trailer*announced",
        proxies: &["caddy_2_11"],
        why: "trailers are handed on, and Caddy has no word for taking one away",
    },
];

impl Difference {
    fn is_about(&self, case: &str) -> bool {
        match self.case.split_once('*') {
            Some((beginning, end)) => case.starts_with(beginning) && case.ends_with(end),
            None => case == self.case,
        }
    }
}

/// What is wrong beyond the differences of this proxy. `wrong` has the case's name and what it says.
pub fn beyond(proxy: &str, wrong: Vec<(String, String)>, cases: &[&str]) -> Vec<String> {
    let here: Vec<&Difference> =
        DIFFERENCES.iter().filter(|difference| difference.proxies.contains(&proxy)).collect();
    let known = |name: &str| here.iter().any(|difference| difference.is_about(name));
    let tried = here.iter().filter(|difference| cases.iter().any(|case| difference.is_about(case)));
    let stale = tried.filter(|difference| !wrong.iter().any(|(name, _)| difference.is_about(name)));
    let stale: Vec<String> = stale
        .map(|difference| format!("{} holds now, and yet: {}", difference.case, difference.why))
        .collect();
    let wrong = wrong.into_iter().filter(|(name, _)| !known(name));
    wrong.map(|(name, text)| format!("{name}: {text}")).chain(stale).collect()
}
