//! Headers of a client's request that must not reach the upstream unchanged, and checks of what a client sends
//! about its connection.
//!
//! Pure. The upstream relies on what the decision evaluated: identity, the method, the path, the host, and the
//! headers that a rule reads. So a client must not send a header that an upstream would take for one of these, in
//! any spelling that servers fold into one name (CGI, WSGI, Rack and PHP turn `-` into `_`, others turn every
//! character that is neither a letter nor a digit into it).

use std::cmp::Ordering;

use http::HeaderName;
use percent_encoding::percent_decode;

use crate::access_request::AccessRequest;
use crate::bearer_token::source_header;
use crate::rules::query::folded;
use crate::rules::{Rules, path};
use crate::validation::provider::{Provider, TokenSource};

/// Headers that some frameworks use instead of the path or the host of the request line.
pub static PATH_AND_HOST: [HeaderName; 18] = [
    HeaderName::from_static("x-original-url"),
    HeaderName::from_static("x-rewrite-url"),
    HeaderName::from_static("x-original-uri"),
    HeaderName::from_static("x-forwarded-uri"),
    HeaderName::from_static("x-forwarded-path"),
    HeaderName::from_static("x-forwarded-prefix"),
    // Gunicorn removes this prefix from the path if it trusts the address of its proxy, by default loopback; the
    // next one is from a snippet that many WSGI apps use.
    HeaderName::from_static("script-name"),
    HeaderName::from_static("x-script-name"),
    HeaderName::from_static("x-forwarded-script-name"),
    HeaderName::from_static("x-traversal-path"),
    HeaderName::from_static("x-forwarded-base"),
    HeaderName::from_static("x-original-path"),
    HeaderName::from_static("x-override-url"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-host"),
    HeaderName::from_static("x-original-host"),
    HeaderName::from_static("x-http-host-override"),
    HeaderName::from_static("forwarded"),
];

/// Headers that some frameworks use instead of the method.
pub static METHOD: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
];

/// The headers that are protected under one configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProtectedHeaders {
    claims: Vec<HeaderName>,
    overrides: Vec<HeaderName>,
    read: Vec<String>,
    reads_all: bool,
    not_forwarded: Vec<TokenSource>,
    /// All names above but those of the query, by their length and as [`folded_byte`] folds them; sorted.
    by_length: Vec<Vec<Box<[u8]>>>,
    /// The positions in `claims`, sorted by length and name.
    claims_by_name: Vec<usize>,
}

/// Why a header of a client's request is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protected {
    /// A claim header with its own name: the answer sets or removes it.
    Claim,
    /// A header that overrides the method, the path or the host.
    Override,
    /// Another spelling of one of these, or of a header that the decision reads.
    LookAlike,
}

impl ProtectedHeaders {
    /// The protected headers of a configuration. Override headers are protected if rules match by what they
    /// override, except the `trusted` ones, which an outer proxy sets.
    pub fn new<'a>(
        providers: impl Iterator<Item = &'a Provider>,
        rules: &Rules,
        trusted: &[HeaderName],
    ) -> Self {
        let mut overrides: Vec<HeaderName> = Vec::new();
        if rules.match_paths() || rules.match_hosts() {
            overrides.extend_from_slice(&PATH_AND_HOST);
        }
        if rules.match_methods() {
            overrides.extend_from_slice(&METHOD);
        }
        overrides.retain(|name| !trusted.contains(name));
        let by_rules = rules.headers_read();
        let mut protected = Self {
            overrides,
            read: by_rules.names.into_iter().chain(trusted.iter().map(HeaderName::to_string)).collect(),
            reads_all: by_rules.all,
            ..Self::default()
        };
        for provider in providers {
            protected.add(provider);
        }
        protected.index();
        protected
    }

    /// Fills `by_length` and `claims_by_name`: what is asked for every header and every claim header of a request must not
    /// take a look at all of these names.
    fn index(&mut self) {
        let named = self.claims.iter().chain(&self.overrides).map(HeaderName::as_str);
        let names = named.chain(self.read.iter().map(String::as_str));
        let folded = names.map(|name| name.bytes().map(folded_byte).collect::<Box<[u8]>>());
        let mut by_length: Vec<Vec<Box<[u8]>>> = Vec::new();
        for name in folded {
            if by_length.len() <= name.len() {
                by_length.resize_with(name.len() + 1, Vec::new);
            }
            by_length.get_mut(name.len()).into_iter().for_each(|names| names.push(name.clone()));
        }
        by_length.iter_mut().for_each(|names| names.sort_unstable());
        self.by_length = by_length;
        self.claims_by_name = (0..self.claims.len()).collect();
        let claims = &self.claims;
        self.claims_by_name.sort_unstable_by_key(|at| {
            let name = claims.get(*at).map_or("", HeaderName::as_str);
            (name.len(), name)
        });
    }

    /// The position of the claim header with this name, in any case, among [`ProtectedHeaders::claims`].
    pub(crate) fn claim_position(&self, name: &[u8]) -> Option<usize> {
        let compare = |at: &usize| {
            let known = self.claims.get(*at).map_or("", HeaderName::as_str).as_bytes();
            known.len().cmp(&name.len()).then_with(|| first_difference(known, name, u8::to_ascii_lowercase))
        };
        let found = self.claims_by_name.binary_search_by(compare).ok()?;
        self.claims_by_name.get(found).copied()
    }

    /// Whether the name is that of a protected header, of one that the decision reads, or a look-alike.
    fn is_known(&self, name: &[u8]) -> bool {
        let is_folded_to = |names: &Vec<Box<[u8]>>| {
            names.binary_search_by(|known| first_difference(known, name, |byte| folded_byte(*byte))).is_ok()
        };
        self.by_length.get(name.len()).is_some_and(is_folded_to)
    }

    fn add(&mut self, provider: &Provider) {
        let claims = provider.claim_headers.iter().map(|header| &header.header);
        extend_unique(&mut self.claims, claims.chain(&provider.payload_header).cloned());
        let read = provider.token_from.iter().filter_map(source_header);
        extend_unique(&mut self.read, read.map(|name| name.to_string()));
        if !provider.forward_token {
            extend_unique(&mut self.not_forwarded, provider.token_from.iter().cloned());
        }
    }

    /// The claim headers of all providers.
    pub fn claims(&self) -> &[HeaderName] {
        &self.claims
    }

    /// The headers that override what rules match by.
    pub fn overrides(&self) -> &[HeaderName] {
        &self.overrides
    }

    /// The headers that a decision reads, except those of its door. They are text: a condition may name one that
    /// Envoy sends along with the headers and that is not a header, such as `:path`.
    pub fn read(&self) -> &[String] {
        &self.read
    }

    /// The places of tokens that are not forwarded to the upstream.
    pub fn not_forwarded(&self) -> &[TokenSource] {
        &self.not_forwarded
    }

    /// Whether the query contains a token that is not forwarded, in a form that only some programs recognize.
    pub fn is_token_disguised(&self, target: &[u8]) -> bool {
        self.not_forwarded.iter().any(|source| match source {
            TokenSource::Query(name) => is_disguised(path::query(target), name),
            TokenSource::Header { .. } | TokenSource::Cookie(_) | TokenSource::WebSocketProtocol(_) => false,
        })
    }

    /// The protected header, or the one that the decision reads, that servers take a header of this name for; `None` if
    /// there is none in this configuration.
    pub(crate) fn original_of<'s>(&'s self, name: &[u8], set_by_proxy: &'s [HeaderName]) -> Option<&'s str> {
        let named = self.claims.iter().chain(&self.overrides).chain(set_by_proxy).map(HeaderName::as_str);
        named.chain(self.read.iter().map(String::as_str)).find(|known| is_look_alike(name, known))
    }

    /// Why a header of this name is protected; `None` if it may pass. `set_by_proxy` are the headers that the
    /// door's own proxy sets.
    pub fn kind_of(&self, name: &[u8], set_by_proxy: &[HeaderName]) -> Option<Protected> {
        // Most headers are neither known nor alike.
        let is_like_set_by_proxy = || set_by_proxy.iter().any(|known| is_look_alike(name, known.as_str()));
        if !self.reads_all && !self.is_known(name) && !is_like_set_by_proxy() {
            return None;
        }
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        let is_named = |names: &'_ [HeaderName]| names.iter().any(|known| is(known.as_str()));
        if self.claim_position(name).is_some() {
            return Some(Protected::Claim);
        }
        if is_named(set_by_proxy) {
            return None;
        }
        // Override headers are checked before the headers that are read: a condition that reads one does not make
        // it trusted.
        if is_named(&self.overrides) {
            return Some(Protected::Override);
        }
        if self.read.iter().any(|known| is(known)) {
            return None;
        }
        let named = self.claims.iter().chain(&self.overrides).chain(set_by_proxy).map(HeaderName::as_str);
        let mut all = named.chain(self.read.iter().map(String::as_str));
        let is_alike = all.any(|known| is_look_alike(name, known));
        let is_folded = || name.iter().any(|byte| !byte.is_ascii_alphanumeric() && *byte != b'-');
        (is_alike || (self.reads_all && is_folded())).then_some(Protected::LookAlike)
    }

    /// Checks whether the headers about the connection (RFC 9110 §7.6.1) leave the request as it is evaluated.
    ///
    /// # Errors
    /// The problem, for the log: an upgrade to HTTP/2 without TLS, after which the upstream accepts requests
    /// without a decision, or a header that the decision depends on and that a proxy would remove on the way.
    pub fn check_connection(&self, request: &AccessRequest<'_>) -> Result<(), &'static str> {
        let headers = &request.headers;
        let is_h2c = |item: &[u8]| item.to_ascii_lowercase().starts_with(b"h2c");
        if headers.all("http2-settings").next().is_some() || items(request, "upgrade").any(is_h2c) {
            return Err("an upgrade to h2c: allow only websocket upgrades in the proxy's configuration");
        }
        let is_protected = |item: &[u8]| {
            item.eq_ignore_ascii_case(b"host")
                || self.kind_of(item, request.set_by_proxy).is_some()
                || self
                    .read
                    .iter()
                    .map(String::as_str)
                    .chain(request.set_by_proxy.iter().map(HeaderName::as_str))
                    .any(|known| item.eq_ignore_ascii_case(known.as_bytes()))
        };
        if ["connection", "proxy-connection"].into_iter().any(|name| items(request, name).any(is_protected)) {
            return Err("Connection names a header that the decision depends on");
        }
        if items(request, "trailer").any(is_protected) {
            return Err("Trailer names a header that the decision depends on");
        }
        Ok(())
    }
}

fn extend_unique<T: PartialEq>(known: &mut Vec<T>, more: impl Iterator<Item = T>) {
    for one in more {
        if !known.contains(&one) {
            known.push(one);
        }
    }
}

/// The items of a list header (RFC 9110 §5.6.1), over all its lines.
fn items<'a>(request: &AccessRequest<'a>, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
    let lines: Vec<&[u8]> = request.headers.all(name).collect();
    lines.into_iter().flat_map(|line| line.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

/// Whether only some programs find a parameter of this name in the query: they decode and fold names, or end a
/// parameter at a `;`. A proxy that is asked to remove the parameter would not remove it.
fn is_disguised(query: &[u8], name: &str) -> bool {
    let name_end =
        |parameter: &'_ [u8]| parameter.iter().position(|byte| *byte == b'=').unwrap_or(parameter.len());
    let is_protected = |parameter: &[u8]| {
        let name_of = parameter.get(..name_end(parameter)).unwrap_or_default();
        let spaced: Vec<u8> = name_of.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
        folded(&percent_decode(&spaced).decode_utf8_lossy()) == folded(name)
    };
    query.split(|byte| *byte == b'&').any(|pair| {
        let is_removed = pair.get(..name_end(pair)) == Some(name.as_bytes());
        pair.split(|byte| *byte == b';').skip(usize::from(is_removed)).any(is_protected)
    })
}

/// Whether a server that turns header names into variables (RFC 3875 §4.1.18) maps both to the same one: most turn
/// `-` into `_`, some also `.`, and lighttpd every character but letters and digits.
fn is_look_alike(sent: &[u8], known: &str) -> bool {
    sent.len() == known.len()
        && sent.iter().zip(known.bytes()).all(|(a, b)| folded_byte(*a) == folded_byte(b))
}

/// How a known name compares with a sent one of the same length, whose bytes are normalized in this way.
fn first_difference(known: &[u8], sent: &[u8], normalized: impl Fn(&u8) -> u8) -> Ordering {
    let pairs = known.iter().zip(sent).map(|(known, sent)| known.cmp(&normalized(sent)));
    pairs.into_iter().find(|ordering| ordering.is_ne()).unwrap_or(Ordering::Equal)
}

fn folded_byte(byte: u8) -> u8 {
    match byte {
        byte if byte.is_ascii_alphanumeric() => byte.to_ascii_lowercase(),
        _ => b'-',
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access_request::tests::arrived;
    use crate::rules::condition::Condition;
    use crate::rules::{Effect, Match, PathPattern, Requirements, Rule};

    static OF_THE_PROXY: [HeaderName; 1] = [HeaderName::from_static("x-original-uri")];

    fn rule(matches: Match, condition: Option<&str>) -> Rule {
        let condition = condition.map(|source| Condition::compile(source).expect("a condition"));
        Rule {
            name: "rule".to_owned(),
            matches,
            by_name: false,
            ambiguous_paths: false,
            effect: Effect::Require(Requirements { condition, ..Requirements::default() }),
        }
    }

    fn protected(rules: Vec<Rule>) -> ProtectedHeaders {
        let mut protected = ProtectedHeaders::new(
            [].into_iter(),
            &Rules::new(rules),
            &[HeaderName::from_static("x-forwarded-host")],
        );
        protected.claims.push(HeaderName::from_static("x-auth-subject"));
        protected.read.push("x-token".to_owned());
        protected.index();
        protected
    }

    #[test]
    fn a_look_alike_has_the_same_length_and_letters() {
        for (sent, expected) in [
            ("x_auth_subject", true),
            ("x.auth.subject", true),
            ("X_Auth-Subject", true),
            ("x-auth-subject", true),
            ("x-auth-subjects", false),
            ("xauthsubject", false),
            ("x-auth-sub ject", false),
        ] {
            assert_eq!(is_look_alike(sent.as_bytes(), "x-auth-subject"), expected, "{sent}");
        }
    }

    #[test]
    fn a_parameter_that_only_some_programs_see_is_disguised() {
        for (query, expected) in [
            ("access_token=a", false),
            ("access_token=a&x=1", false),
            ("x=access_token=a", false),
            ("x=1;y=2", false),
            ("access_tokens=a", false),
            ("%61ccess_token=a", true),
            ("access.token=a", true),
            ("ACCESS_TOKEN=a", true),
            ("+access_token=a", true),
            ("access_token[]=a", true),
            ("x=1;access_token=a", true),
            ("x;access_token=a", true),
            ("access_token;x=a", true),
            ("access_token=a;%61ccess_token=b", true),
        ] {
            assert_eq!(is_disguised(query.as_bytes(), "access_token"), expected, "{query}");
        }
    }

    #[test]
    fn a_header_is_protected_if_the_decision_depends_on_it() {
        use Protected::{Claim, LookAlike, Override};
        let by_path = Match { paths: vec![PathPattern::Prefix("/a".to_owned())], ..Match::default() };
        let by_method = Match { methods: vec!["GET".to_owned()], ..Match::default() };
        let everything = protected(vec![
            rule(by_path, Some(r#"request.headers["x-tenant"] == "acme""#)),
            rule(by_method, None),
        ]);
        let nothing = protected(Vec::new());
        for (name, with_rules, without) in [
            ("X-Auth-Subject", Some(Claim), Some(Claim)),
            ("x_auth_subject", Some(LookAlike), Some(LookAlike)),
            ("x-token", None, None),
            ("x_token", Some(LookAlike), Some(LookAlike)),
            ("x-tenant", None, None),
            ("X_Tenant", Some(LookAlike), None),
            ("x-original-url", Some(Override), None),
            ("x_original_url", Some(LookAlike), None),
            ("x-original-uri", None, None),
            ("x_original_uri", Some(LookAlike), Some(LookAlike)),
            ("x-http-method-override", Some(Override), None),
            ("x-forwarded-host", None, None),
            ("x_forwarded_host", Some(LookAlike), Some(LookAlike)),
            ("x-other", None, None),
            ("x_other", None, None),
        ] {
            let kind = |protected: &ProtectedHeaders| protected.kind_of(name.as_bytes(), &OF_THE_PROXY);
            assert_eq!((kind(&everything), kind(&nothing)), (with_rules, without), "{name}");
        }
    }

    #[test]
    fn every_claim_header_has_its_position_in_any_case() {
        let mut protected = protected(Vec::new());
        protected.claims = ["x-b", "x-auth-subject", "x-a", "x-ab"].map(HeaderName::from_static).to_vec();
        protected.index();
        for (at, name) in protected.claims.iter().enumerate() {
            let shouted = name.as_str().to_ascii_uppercase();
            assert_eq!(protected.claim_position(shouted.as_bytes()), Some(at), "{name}");
            assert_eq!(protected.kind_of(shouted.as_bytes(), &[]), Some(Protected::Claim), "{name}");
        }
        for other in ["", "x-", "x-aa", "x_a", "x-c"] {
            assert_eq!(protected.claim_position(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_preflight_is_recognized_by_its_request_method_only() {
        let preflight = Rule { effect: Effect::Preflight, ..rule(Match::default(), None) };
        let kind = protected(vec![preflight]).kind_of(b"x-http-method-override", &[]);
        assert_eq!(kind, Some(Protected::Override));
    }

    #[test]
    fn if_a_condition_may_read_any_header_every_foldable_name_is_protected() {
        let any = protected(vec![rule(Match::default(), Some("request.headers[claims.name] == 'x'"))]);
        assert_eq!(any.kind_of(b"x_other", &[]), Some(Protected::LookAlike));
        assert_eq!(any.kind_of(b"x-other", &[]), None);
    }

    #[test]
    fn connection_headers_cannot_bypass_the_decision() {
        for (name, value, expected) in [
            ("connection", "keep-alive, Upgrade", true),
            ("upgrade", "websocket", true),
            ("upgrade", "h2c", false),
            ("Upgrade", "websocket, H2C", false),
            ("upgrade", "h2c/1", false),
            ("HTTP2-Settings", "", false),
            ("connection", "close, X-Auth-Subject", false),
            ("connection", "x_auth_subject", false),
            ("proxy-connection", "x-token", false),
            ("connection", "Host", false),
            ("connection", "x-original-uri", false),
            ("connection", "x-other", true),
            ("trailer", "X-Auth-Subject", false),
            ("trailer", "Grpc-Status", true),
        ] {
            let headers = [(name.as_bytes(), value.as_bytes())].into_iter().collect();
            let mut request = AccessRequest::new(b"GET", b"api.example.com", b"/", headers, arrived());
            request.set_by_proxy = &OF_THE_PROXY;
            let checked = protected(Vec::new()).check_connection(&request);
            assert_eq!(checked.is_ok(), expected, "{name}: {value}");
        }
    }
}
