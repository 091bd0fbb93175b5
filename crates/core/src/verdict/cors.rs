//! The headers with which a page of another origin can read a denial: CORS, in the Fetch standard.
//!
//! Without them the page's script learns only that the request failed, and not that the user has to log in. They are
//! sent with denials alone: the answer to an allowed request is the application's.
//!
//! A browser sets `Origin`, and scripts cannot change it; any other client may send any value. The header changes no
//! verdict, only which page may read it, so its look-alikes are not protected headers.

use std::fmt;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, VARY,
};
use http::{HeaderName, HeaderValue};
use url::{Host, Url};

use crate::access_request::{Caller, Headers};

const EXPECTED: &str =
    "expected the origin of a page, without a path: https://app.example.com or https://*.example.org";

/// Which pages can read a denial.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    /// The origins of these pages; [`OriginPattern::Any`] only alone and without credentials.
    pub allow_origins: Vec<OriginPattern>,
    /// Whether a page can read the denial of a request that was sent with cookies. Default false.
    pub allow_credentials: bool,
}

impl Cors {
    /// The headers that depend on the request's origin, which nothing else may set.
    pub const HEADERS: [HeaderName; 3] =
        [ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_ALLOW_CREDENTIALS, VARY];

    /// The headers of a denial of the request with these headers.
    pub(super) fn headers(&self, request: &Headers<'_>) -> Vec<(HeaderName, HeaderValue)> {
        // The denial differs by Origin even where the request has none, and a cache must know that.
        let mut headers = vec![(VARY, HeaderValue::from_static("Origin"))];
        let Some(allowed) = self.allowed_origin(request) else { return headers };
        headers.push((ACCESS_CONTROL_ALLOW_ORIGIN, allowed));
        if self.allow_credentials {
            headers.push((ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true")));
        }
        let exposed = match request.caller() {
            Caller::Http | Caller::Grpc => "WWW-Authenticate",
            // A denied call has its status in headers.
            Caller::GrpcWeb => "WWW-Authenticate, Grpc-Status, Grpc-Message",
        };
        headers.push((ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(exposed)));
        headers
    }

    /// The value of `Access-Control-Allow-Origin`; `None` if the page cannot read the denial.
    fn allowed_origin(&self, request: &Headers<'_>) -> Option<HeaderValue> {
        if self.allow_origins.contains(&OriginPattern::Any) {
            return Some(HeaderValue::from_static("*"));
        }
        // Several lines, or one with several origins, come from no browser.
        let origin = std::str::from_utf8(request.only("origin")?).ok()?;
        let is_allowed = self.allow_origins.iter().any(|pattern| pattern.matches(origin));
        HeaderValue::from_str(origin).ok().filter(|_| is_allowed)
    }
}

/// The origins of pages, as the Fetch standard serializes them: scheme, host in lower case, and the port unless it is
/// the scheme's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPattern {
    /// Every page, also one without an origin of its own.
    Any,
    /// This origin.
    Exact(String),
    /// The hosts below a domain, at any depth, but not the domain itself.
    Subdomain {
        /// The scheme with `://`.
        scheme: String,
        /// The domain with the dot before it, and with the port if there is one.
        suffix: String,
    },
}

impl OriginPattern {
    /// Reads `https://app.example.com`, `https://*.example.org:8443` or `*`.
    ///
    /// # Errors
    /// What to write instead. It contains nothing of the text but its origin.
    ///
    /// ```
    /// use portcullis_core::verdict::OriginPattern;
    ///
    /// let pages = OriginPattern::parse("https://*.example.org").expect("a pattern");
    /// assert!(pages.matches("https://app.example.org"));
    /// assert!(!pages.matches("https://example.org"));
    /// ```
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(OriginPattern::Any);
        }
        if text == "null" {
            return Err(
                "every site can make a page of this origin: list the origins of your pages".to_owned()
            );
        }
        let (scheme, authority) = text.split_once("://").ok_or(EXPECTED)?;
        let below = authority.strip_prefix("*.");
        let url = format!("{scheme}://{}", below.unwrap_or(authority));
        let url = Url::parse(&url).ok().filter(|url| !url.authority().contains('*')).ok_or(EXPECTED)?;
        let (scheme, host) = serialized(&url).ok_or(EXPECTED)?;
        let pattern = match below {
            None => OriginPattern::Exact(format!("{scheme}{host}")),
            Some(_) if matches!(url.host(), Some(Host::Ipv4(_) | Host::Ipv6(_))) => {
                return Err("nothing is below an address: list the origins of your pages".to_owned());
            }
            Some(_) => OriginPattern::Subdomain { scheme, suffix: format!(".{host}") },
        };
        match pattern.to_string() {
            written if written == text => Ok(pattern),
            written => Err(format!("a browser sends this origin in another form: write {written}")),
        }
    }

    /// Whether a page of this origin is meant.
    pub fn matches(&self, origin: &str) -> bool {
        match self {
            OriginPattern::Any => true,
            OriginPattern::Exact(known) => known == origin,
            OriginPattern::Subdomain { scheme, suffix } => origin
                .strip_prefix(scheme.as_str())
                .and_then(|authority| authority.strip_suffix(suffix.as_str()))
                .is_some_and(|labels| labels.split('.').all(is_label)),
        }
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OriginPattern::Any => f.write_str("*"),
            OriginPattern::Exact(origin) => f.write_str(origin),
            OriginPattern::Subdomain { scheme, suffix } => write!(f, "{scheme}*{suffix}"),
        }
    }
}

/// The scheme with `://`, and host and port as in `Origin`; `None` if pages of this URL have no origin of their own.
fn serialized(url: &Url) -> Option<(String, String)> {
    let host = url.host_str().filter(|host| !host.is_empty() && url.scheme() != "file")?;
    // Hosts of schemes that the URL standard does not know, those of apps and extensions, keep their case there.
    let host = host.to_ascii_lowercase();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    Some((format!("{}://", url.scheme()), format!("{host}{port}")))
}

/// A part of a host's name, as browsers write it.
fn is_label(label: &str) -> bool {
    let is_allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    !label.is_empty() && label.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(origins: &[&str], allow_credentials: bool) -> Cors {
        let parse =
            |text: &&str| OriginPattern::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        Cors { allow_origins: origins.iter().map(parse).collect(), allow_credentials }
    }

    /// The headers of a denial of a request with these header lines.
    fn sent(cors: &Cors, lines: &[(&str, &str)]) -> Vec<String> {
        let headers = lines.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        let header =
            |(name, value): (HeaderName, HeaderValue)| format!("{name}: {}", value.to_str().expect("text"));
        cors.headers(&headers).into_iter().map(header).collect()
    }

    #[test]
    fn an_origin_matches_exactly_or_by_labels_below_a_domain() {
        let of_app = [("https://app.example.com", true)];
        let table: [(&str, &[(&str, bool)]); 5] = [
            (
                "https://app.example.com",
                &[
                    of_app[0],
                    ("http://app.example.com", false),
                    ("https://app.example.com:8443", false),
                    ("https://app.example.com:443", false),
                    ("https://app.example.com/", false),
                    ("https://app.example.com.", false),
                    ("https://APP.example.com", false),
                    ("https://app.example.com.evil.example", false),
                    ("https://app.example.com,https://app.example.com", false),
                    ("https://evil.example", false),
                    ("null", false),
                    ("", false),
                ],
            ),
            (
                "https://*.example.org",
                &[
                    ("https://a.example.org", true),
                    ("https://a.b-c.d_1.example.org", true),
                    ("https://example.org", false),
                    ("https://.example.org", false),
                    ("https://a..example.org", false),
                    ("https://badexample.org", false),
                    ("https://evil.example/.example.org", false),
                    ("https://evil.example:1.example.org", false),
                    ("https://evil.example#.example.org", false),
                    ("https://user@a.example.org", false),
                    ("https://A.example.org", false),
                    ("http://a.example.org", false),
                    ("https://a.example.org:8443", false),
                    ("https://a.example.org.evil.example", false),
                    ("https://a.example.org, https://b.example.org", false),
                    ("null", false),
                ],
            ),
            (
                "https://*.example.org:8443",
                &[
                    ("https://a.example.org:8443", true),
                    ("https://a.example.org", false),
                    ("https://a.example.org:18443", false),
                ],
            ),
            ("http://[::1]:3000", &[("http://[::1]:3000", true), ("http://[::1]", false)]),
            ("capacitor://localhost", &[("capacitor://localhost", true), ("https://localhost", false)]),
        ];
        for (pattern, origins) in table {
            let cors = cors(&[pattern], false);
            for (origin, expected) in origins {
                let is_sent = sent(&cors, &[("Origin", origin)])
                    .contains(&format!("access-control-allow-origin: {origin}"));
                assert_eq!(is_sent, *expected, "{pattern} {origin}");
            }
        }
    }

    #[test]
    fn a_page_of_a_listed_origin_gets_its_own_origin_and_every_denial_varies_by_it() {
        let with_credentials = cors(&["https://app.example.com", "https://*.example.org"], true);
        let origin = ("origin", "https://app.example.com");
        assert_eq!(
            sent(&with_credentials, &[origin]),
            [
                "vary: Origin",
                "access-control-allow-origin: https://app.example.com",
                "access-control-allow-credentials: true",
                "access-control-expose-headers: WWW-Authenticate",
            ]
        );
        let nothing = ["vary: Origin"];
        for lines in [
            &[][..],
            &[("origin", "https://evil.example")],
            &[("origin", "null")],
            &[("origin", "*")],
            &[origin, origin],
            &[origin, ("Origin", "https://evil.example")],
        ] {
            assert_eq!(sent(&with_credentials, lines), nothing, "{lines:?}");
        }
        let grpc_web = [origin, ("content-type", "application/grpc-web")];
        assert_eq!(
            sent(&cors(&["https://app.example.com"], false), &grpc_web),
            [
                "vary: Origin",
                "access-control-allow-origin: https://app.example.com",
                "access-control-expose-headers: WWW-Authenticate, Grpc-Status, Grpc-Message",
            ]
        );
        assert!(sent(&cors(&["*"], false), &[]).contains(&"access-control-allow-origin: *".to_owned()));
    }

    #[test]
    fn what_no_browser_sends_is_refused_with_what_to_write() {
        for (text, write) in [
            ("https://app.example.com/", "https://app.example.com"),
            ("https://app.example.com/login?token=secret#x", "https://app.example.com"),
            ("https://user:secret@app.example.com", "https://app.example.com"),
            ("https://app.example.com:443", "https://app.example.com"),
            ("HTTPS://APP.example.com", "https://app.example.com"),
            ("https://*.Example.org:443/", "https://*.example.org"),
            ("https://bücher.example", "https://xn--bcher-kva.example"),
            ("capacitor://Localhost", "capacitor://localhost"),
        ] {
            let error = OriginPattern::parse(text).expect_err(text);
            assert_eq!(error, format!("a browser sends this origin in another form: write {write}"));
        }
        for text in [
            "",
            "null",
            "app.example.com",
            "//app.example.com",
            "https://",
            "https://*",
            "https://*.",
            "https://a*.example.com",
            "https://app.*.com",
            "https://*.*.com",
            "https://*.127.0.0.1",
            "https://*.[::1]",
            "*.example.com",
            "*://app.example.com",
            "file:///tmp/page.html",
            "https://a b",
            "https://app.example.com:99999",
        ] {
            let error = OriginPattern::parse(text).expect_err(text);
            assert!(error.contains("origin"), "{text}: {error}");
        }
    }
}
