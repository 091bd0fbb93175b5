//! Recognizes authorization requests of proxies that are configured for another door. It only names them, for the log: the
//! doors decide nothing, and a client can send most of what is recognized here itself.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request};

/// The path of a Check, with upstream's package and service.
pub(crate) const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The path of a Check in the former version of Envoy's API, which Envoy has removed.
const CHECK_V2: &str = "/envoy.service.auth.v2.Authorization/Check";

/// The headers with which proxies describe the client's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `X-Original-Method`, `X-Original-URI` and `X-Original-URL`.
    Original,
    /// `X-Forwarded-Method` and `X-Forwarded-Uri`.
    Forwarded,
}

impl Dialect {
    /// The dialect of a request; `None` if it has neither, or both.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let has = |names: &[&str]| names.iter().any(|name| headers.contains_key(*name));
        let original = has(&["x-original-method", "x-original-uri", "x-original-url"]);
        let forwarded = has(&["x-forwarded-method", "x-forwarded-uri"]);
        match (original, forwarded) {
            (true, false) => Some(Self::Original),
            (false, true) => Some(Self::Forwarded),
            _ => None,
        }
    }
}

/// Whether headers of this request describe a client's request, as those of authorization requests do.
pub(crate) fn describes_request(headers: &HeaderMap) -> bool {
    const NAMES: [&str; 5] =
        ["x-original-method", "x-original-uri", "x-original-url", "x-forwarded-method", "x-forwarded-uri"];
    NAMES.iter().any(|name| headers.contains_key(*name))
}

/// Whether this is Envoy's gRPC Check.
pub(crate) fn is_check<B>(request: &Request<B>) -> bool {
    is_grpc(request) && matches!(request.uri().path(), CHECK | CHECK_V2)
}

/// Whether this is a gRPC call.
pub(crate) fn is_grpc<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dialect_is_recognized_only_if_the_headers_of_the_other_are_absent() {
        for (names, expected) in [
            (&["x-original-method", "host"][..], Some(Dialect::Original)),
            (&["x-original-url"], Some(Dialect::Original)),
            (&["x-forwarded-uri"], Some(Dialect::Forwarded)),
            (&["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"], None),
            (&["x-forwarded-method", "x-original-uri"], None),
            (&[], None),
        ] {
            let mut request = Request::builder();
            for name in names {
                request = request.header(*name, "x");
            }
            let request = request.body(()).expect("these headers are valid");
            assert_eq!(Dialect::of(request.headers()), expected, "{names:?}");
        }
    }

    #[test]
    fn a_check_is_a_grpc_call_of_either_version() {
        let request = |path: &str, content_type: &str| {
            Request::post(path).header("content-type", content_type).body(()).expect("it is valid")
        };
        assert!(is_check(&request(CHECK, "application/grpc")));
        assert!(is_check(&request(CHECK_V2, "application/grpc+proto")));
        assert!(!is_check(&request(CHECK, "text/plain")));
        assert!(!is_check(&request("/orders", "application/grpc")));
    }
}
