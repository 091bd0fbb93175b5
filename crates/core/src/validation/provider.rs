//! The rules of a provider for its tokens, without its keys.
//!
//! Only data: nothing here fetches, waits or reads a clock.

use std::fmt;
use std::time::Duration;

use http::HeaderName;
use http::header::AUTHORIZATION;

use super::algorithm::Algorithm;
use super::json::Json;
use super::key_set::KeyUse;

/// The rules for the tokens of one issuer.
#[derive(Clone, Debug, PartialEq)]
pub struct Provider {
    /// Name in the configuration, and the `provider` label of logs and metrics.
    pub name: String,
    /// Compared exactly with `iss` (RFC 8725 §3.8), or with the SPIFFE ID of the trust domain of `sub`.
    pub issuer: String,
    /// Which of the two.
    pub selected_by: SelectedBy,
    /// The audiences that are accepted (RFC 7519 §4.1.3).
    pub audiences: Audiences,
    /// The claims that name audiences; default `aud` alone. One that names an accepted audience is enough. Never empty.
    pub audience_claims: Vec<ClaimPath>,
    /// The `alg` values that are accepted (RFC 8725 §3.1); never empty.
    pub algorithms: Vec<Algorithm>,
    /// Leeway for `exp` and `nbf`; default 30 s, at most 10 min.
    pub clock_skew: Duration,
    /// How far ahead `exp` may be, leeway not included; default any time.
    pub max_lifetime: Option<Duration>,
    /// The `typ` values that are accepted.
    pub token_types: TokenTypes,
    /// Claims that must be present and neither null nor empty.
    pub required_claims: Vec<ClaimPath>,
    /// Whether a key with an `issuer` member verifies only tokens of that issuer, since the key set is that of several
    /// issuers. Default false.
    pub keys_name_issuers: bool,
    /// Where a request may carry the token; never empty.
    pub token_from: Vec<TokenSource>,
    /// Whether the token is forwarded to the upstream; default true.
    pub forward_token: bool,
    /// The request headers that the upstream gets, each with its claim.
    pub claim_headers: Vec<ClaimHeader>,
    /// The request header with all claims for the upstream: the token's payload in base64url, as it was sent (RFC
    /// 7515 §3.1). Default none.
    pub payload_header: Option<HeaderName>,
    /// The claims that the proxy gets as dynamic metadata. Default none.
    pub metadata_claims: Vec<ClaimPath>,
    /// The `realm` of this provider's challenges (RFC 9110 §11.5); default `responses.realm`.
    pub realm: Option<String>,
}

/// What of a token selects its provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SelectedBy {
    /// `iss`.
    #[default]
    Issuer,
    /// The trust domain of the SPIFFE ID in `sub`, of a token without `iss` (JWT-SVID §3.1).
    TrustDomain,
}

impl SelectedBy {
    /// The `typ` values that are accepted unless the provider names some, beside none (RFC 9068 §2.1, RFC 7519 §5.1;
    /// JWT-SVID §2.3). In lower case.
    pub fn default_types(self) -> &'static [&'static str] {
        match self {
            SelectedBy::Issuer => &["at+jwt", "jwt"],
            SelectedBy::TrustDomain => &["jwt", "jose"],
        }
    }

    /// The keys of a set that may verify its tokens.
    pub fn key_use(self) -> KeyUse {
        match self {
            SelectedBy::Issuer => KeyUse::Signatures,
            SelectedBy::TrustDomain => KeyUse::Svids,
        }
    }

    /// The algorithms that are accepted unless the provider names some: all asymmetric ones, of JWT-SVIDs only those of
    /// RFC 7518 (JWT-SVID §2.1).
    pub fn default_algorithms(self) -> Vec<Algorithm> {
        let mut algorithms = Algorithm::default_set();
        if self == SelectedBy::TrustDomain {
            algorithms.retain(|algorithm| *algorithm != Algorithm::EdDSA);
        }
        algorithms
    }
}

/// The audiences of which a token must name at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audiences {
    /// At least one of these, compared exactly; never empty.
    AnyOf(Vec<String>),
    /// `any_audience: true`: any value is accepted; the claim may be absent, but must not be malformed.
    Any,
}

/// The `typ` header values that are accepted (RFC 7515 §4.1.9, RFC 8725 §3.11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenTypes {
    /// One of [`SelectedBy::default_types`], or no `typ`.
    Default,
    /// One of these; `typ` is required. Kept in lower case without an `application/` prefix.
    AnyOf(Vec<String>),
}

/// One place of a request where a token may be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TokenSource {
    /// A header: the credentials after the scheme, or the whole value if no scheme is set.
    Header {
        /// Its name.
        name: HeaderName,
        /// Compared without regard to case (RFC 9110 §11.1).
        scheme: Option<String>,
    },
    /// A cookie of this exact name (RFC 6265 §5.4).
    Cookie(String),
    /// A query parameter of this exact decoded name (RFC 6750 §2.3).
    Query(String),
    /// The item behind this one in `Sec-WebSocket-Protocol` (RFC 6455 §11.3.4), where a page can put a token.
    WebSocketProtocol(String),
}

impl fmt::Display for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenSource::Header { name, scheme: Some(scheme) } => write!(f, "header {name} ({scheme})"),
            TokenSource::Header { name, scheme: None } => write!(f, "header {name}"),
            TokenSource::Cookie(name) => write!(f, "cookie {name}"),
            TokenSource::Query(name) => write!(f, "query parameter {name}"),
            TokenSource::WebSocketProtocol(name) => {
                write!(f, "header sec-websocket-protocol (behind {name})")
            }
        }
    }
}

impl Default for TokenSource {
    fn default() -> Self {
        TokenSource::Header { name: AUTHORIZATION, scheme: Some("Bearer".to_owned()) }
    }
}

/// A request header for the upstream with the value of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimHeader {
    /// Its name.
    pub header: HeaderName,
    /// The claim that it carries.
    pub claim: ClaimPath,
    /// How the claim is encoded as a header value.
    pub encoding: Encoding,
}

/// How a claim is encoded as a header value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// As text, arrays joined with commas; octets that a header cannot contain, and `%`, are percent-encoded.
    #[default]
    Percent,
    /// The whole value in base64url without padding: the text of a string, the JSON of anything else.
    Base64Url,
}

impl Encoding {
    /// Every encoding by its name in the configuration.
    pub const NAMED: [(&'static str, Encoding); 2] =
        [("percent", Encoding::Percent), ("base64url", Encoding::Base64Url)];
}

/// The path of a claim: an exact member name, including dots, or a JSON Pointer (RFC 6901) if the text starts with
/// a slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimPath {
    text: String,
    segments: Vec<String>,
}

impl ClaimPath {
    /// Parses a member name or a pointer.
    ///
    /// # Errors
    /// The text is empty, or is a pointer with a `~` that is not `~0` or `~1`.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("a claim's name must not be empty");
        }
        let segments = match text.strip_prefix('/') {
            None => vec![text.to_owned()],
            Some(pointer) => pointer.split('/').map(unescape).collect::<Result<_, _>>()?,
        };
        Ok(Self { text: text.to_owned(), segments })
    }

    /// `aud` (RFC 7519 §4.1.3).
    pub fn aud() -> Self {
        Self { text: "aud".to_owned(), segments: vec!["aud".to_owned()] }
    }

    /// The claim's value, if every step of the path exists.
    pub fn resolve<'a>(&self, claims: &'a Json) -> Option<&'a Json> {
        self.segments.iter().try_fold(claims, |value, segment| value.step(segment))
    }
}

impl fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn unescape(segment: &str) -> Result<String, &'static str> {
    let mut out = String::with_capacity(segment.len());
    let mut chars = segment.chars();
    while let Some(c) = chars.next() {
        match c {
            '~' => match chars.next() {
                Some('0') => out.push('~'),
                Some('1') => out.push('/'),
                _ => {
                    return Err("in a JSON Pointer `~` is written `~0` and a slash in a name `~1`");
                }
            },
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::json::JsonLimits;

    fn resolve(path: &str, document: &str) -> Option<String> {
        let json = Json::parse(document.as_bytes(), &JsonLimits::default())
            .expect("the document of this test is JSON");
        ClaimPath::parse(path).expect("the path of this test is valid").resolve(&json).map(Json::to_compact)
    }

    #[test]
    fn a_pointer_is_resolved_and_a_name_is_compared() {
        let document = r#"{"a":{"b":[1,{"c":2}]},"a.b":3,"https://x/y":4,"":5,"m~n":{"/":6}}"#;
        for (path, expected) in [
            ("/a/b/0", Some("1")),
            ("/a/b/1/c", Some("2")),
            ("/a/b/01", None),
            ("/a/b/-", None),
            ("/a/b/2", None),
            ("/a/b/x", None),
            ("a.b", Some("3")),
            ("https://x/y", Some("4")),
            ("/", Some("5")),
            ("/m~0n/~1", Some("6")),
            ("a/b", None),
            ("__proto__", None),
        ] {
            assert_eq!(resolve(path, document).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_path_that_is_empty_or_wrongly_escaped_is_refused() {
        for path in ["", "/~", "/~2", "/a~"] {
            assert!(ClaimPath::parse(path).is_err(), "{path}");
        }
    }
}
