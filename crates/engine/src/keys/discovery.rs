//! Reads the URL of the key set from an issuer's discovery document (OpenID Connect Discovery §4, RFC 8414 §3).
//!
//! The URL is cached for some time, so that a forced refresh usually costs one request. A document that is older than
//! the last one changes nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use url::Url;

use crate::clock::SteadyClock;
use crate::validation::key_set::without_byte_order_mark;

use super::fetch_error::{DiscoveryError, Document, FetchError};
use super::origin::Origin;
use super::transport::{Request, RequestMode, Transport};

/// After this many consecutive documents that are older by their `Date` alone, the clock of the issuer was set back.
const MAX_OLDER_IN_A_ROW: u32 = 2;

/// A discovery document and its cached content.
pub struct Discovery {
    document: Url,
    issuer: String,
    remember_for: Duration,
    cached: Mutex<Option<Cached>>,
}

/// The content of a discovery document, and its origin.
#[derive(Clone)]
struct Cached {
    /// The URL of the key set.
    jwks_uri: Url,
    origin: Origin,
    /// Whether the last fetch found keys there.
    verified: bool,
    /// How many consecutive documents were older, without coming from a cache.
    older_in_a_row: u32,
}

/// The result of reading the discovery document.
pub(super) struct Located {
    /// The URL of the key set.
    pub(super) jwks_uri: Url,
    /// Another URL, from a document that is older than the last one by its `Date` alone: the clocks of replicas
    /// differ.
    pub(super) alternative: Option<Alternative>,
}

/// The content of a document that was not accepted.
pub(super) struct Alternative {
    pub(super) jwks_uri: Url,
    origin: Origin,
}

#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    jwks_uri: String,
}

impl Discovery {
    /// The document at this URL, which must be `issuer`'s. Its content is cached for `remember_for`.
    pub fn new(document: Url, issuer: &str, remember_for: Duration) -> Self {
        Self { document, issuer: issuer.to_owned(), remember_for, cached: Mutex::new(None) }
    }

    /// The cached URL, if it has not expired and keys were found there last time.
    pub(super) fn cached(&self, clock: &SteadyClock) -> Option<Url> {
        let max_age = i64::try_from(self.remember_for.as_micros()).unwrap_or(i64::MAX);
        let cached = self.lock();
        let fresh = |entry: &&Cached| clock.now_micros().saturating_sub(entry.origin.received()) < max_age;
        cached.as_ref().filter(|entry| entry.verified).filter(fresh).map(|entry| entry.jwks_uri.clone())
    }

    /// The last URL, expired or not.
    pub(super) fn last(&self) -> Option<Url> {
        self.lock().as_ref().map(|entry| entry.jwks_uri.clone())
    }

    /// Its URL.
    pub(super) fn document(&self) -> &Url {
        &self.document
    }

    /// The error of a request for the document.
    pub(super) fn error(&self, error: FetchError) -> FetchError {
        error.at(Document::Discovery, &self.document)
    }

    /// Reads the document. One that is older than the last one is not accepted; its URL is returned as an
    /// alternative, unless the document comes from a cache.
    ///
    /// # Errors
    /// The document is unavailable or invalid.
    pub(super) async fn read(
        &self,
        transport: &dyn Transport,
        mode: RequestMode,
        clock: &SteadyClock,
    ) -> Result<Located, FetchError> {
        let request = Request::new(self.document.clone(), mode);
        let requested_at = clock.now_micros();
        let named = |error: FetchError| self.error(error);
        let answer = transport.get(request).await.map_err(named)?;
        let origin = answer.origin(requested_at, clock.now_micros());
        let body = answer.into_body().map_err(named)?;
        let jwks_uri = self.check(&body).map_err(|error| named(FetchError::Discovery(error)))?;
        let mut cached = self.lock();
        // A last document whose URL had no keys is not compared with.
        let is_newer = |entry: &&mut Cached| {
            let trusted = origin.has_age() || entry.older_in_a_row < MAX_OLDER_IN_A_ROW;
            entry.verified && trusted && origin.is_older_than(&entry.origin)
        };
        if let Some(newer) = cached.as_mut().filter(is_newer) {
            newer.older_in_a_row += u32::from(!origin.has_age());
            let alternative =
                (!origin.has_age() && jwks_uri != newer.jwks_uri).then_some(Alternative { jwks_uri, origin });
            return Ok(Located { jwks_uri: newer.jwks_uri.clone(), alternative });
        }
        let same = cached.as_ref().is_some_and(|entry| entry.verified && entry.jwks_uri == jwks_uri);
        *cached = Some(Cached { jwks_uri: jwks_uri.clone(), origin, verified: same, older_in_a_row: 0 });
        Ok(Located { jwks_uri, alternative: None })
    }

    /// Accepts a document that was older by its `Date` alone: there are keys at its URL.
    pub(super) fn accept(&self, Alternative { jwks_uri, origin }: Alternative) {
        *self.lock() = Some(Cached { jwks_uri, origin, verified: true, older_in_a_row: 0 });
    }

    /// Records whether there are keys at this URL: if so, it is cached.
    pub(super) fn set_verified(&self, jwks_uri: &Url, verified: bool) {
        if let Some(cached) = self.lock().as_mut().filter(|entry| entry.jwks_uri == *jwks_uri) {
            cached.verified = verified;
        }
    }

    /// The URL of the key set. A document that came over https may name any https host; one over http, which anyone on the
    /// way can change, only its own.
    fn check(&self, document: &[u8]) -> Result<Url, DiscoveryError> {
        let document = without_byte_order_mark(document);
        // serde would also read a struct from an array.
        if document.trim_ascii_start().first() != Some(&b'{') {
            return Err(DiscoveryError::NotADocument);
        }
        let document: Metadata =
            serde_json::from_slice(document).map_err(|_| DiscoveryError::NotADocument)?;
        if document.issuer != self.issuer {
            return Err(DiscoveryError::IssuerMismatch);
        }
        let url = Url::parse(&document.jwks_uri).map_err(|_| DiscoveryError::BadJwksUri)?;
        let without_credentials = url.username().is_empty() && url.password().is_none();
        let trusted = match url.scheme() {
            "https" => without_credentials,
            "http" => without_credentials && self.document.scheme() == "http",
            _ => false,
        };
        if !trusted {
            Err(DiscoveryError::BadJwksUri)
        } else if self.document.scheme() != "https" && url.host() != self.document.host() {
            Err(DiscoveryError::OtherHost)
        } else {
            Ok(url)
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Cached>> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_valid_only_for_its_own_issuer_and_a_trusted_url() {
        let document =
            Url::parse("https://sso.example.com/.well-known/openid-configuration").expect("a valid URL");
        let discovery = Discovery::new(document, "https://sso.example.com", Duration::from_secs(1));
        for (text, expected) in [
            (
                r#"{"issuer":"https://sso.example.com","jwks_uri":"https://sso.example.com:8443/k"}"#,
                Ok("https://sso.example.com:8443/k"),
            ),
            (
                r#"{"issuer":"https://sso.example.com","jwks_uri":"https://keys.example.com/k"}"#,
                Ok("https://keys.example.com/k"),
            ),
            (
                "\u{feff}{\"issuer\":\"https://sso.example.com\",\"jwks_uri\":\"https://sso.example.com/k\"}",
                Ok("https://sso.example.com/k"),
            ),
            (
                r#"{"issuer":"https://sso.example.com/","jwks_uri":"https://sso.example.com/k"}"#,
                Err(DiscoveryError::IssuerMismatch),
            ),
            (r#"{"issuer":"https://sso.example.com","jwks_uri":"/k"}"#, Err(DiscoveryError::BadJwksUri)),
            (
                r#"{"issuer":"https://sso.example.com","jwks_uri":"http://sso.example.com/k"}"#,
                Err(DiscoveryError::BadJwksUri),
            ),
            (
                r#"{"issuer":"https://sso.example.com","jwks_uri":"file:///etc/passwd"}"#,
                Err(DiscoveryError::BadJwksUri),
            ),
            (
                r#"{"issuer":"https://sso.example.com","jwks_uri":"https://u:p@sso.example.com/k"}"#,
                Err(DiscoveryError::BadJwksUri),
            ),
            (r#"{"issuer":"https://sso.example.com"}"#, Err(DiscoveryError::NotADocument)),
            (r#"["https://sso.example.com","https://sso.example.com/k"]"#, Err(DiscoveryError::NotADocument)),
            ("<html>", Err(DiscoveryError::NotADocument)),
            ("", Err(DiscoveryError::NotADocument)),
        ] {
            assert_eq!(
                discovery.check(text.as_bytes()).as_ref().map(Url::as_str),
                expected.as_ref().map(|url| *url),
                "{text}"
            );
        }
    }
    #[test]
    fn a_document_that_came_over_http_names_keys_on_its_own_host_only() {
        let document =
            Url::parse("http://sso.example.com/.well-known/openid-configuration").expect("a valid URL");
        let discovery = Discovery::new(document, "https://sso.example.com", Duration::from_secs(1));
        for (jwks_uri, is_accepted) in [
            ("http://sso.example.com/k", true),
            ("https://sso.example.com/k", true),
            ("https://keys.example.com/k", false),
            ("http://keys.example.com/k", false),
        ] {
            let text = format!(r#"{{"issuer":"https://sso.example.com","jwks_uri":"{jwks_uri}"}}"#);
            let expected = if is_accepted { Ok(jwks_uri) } else { Err(&DiscoveryError::OtherHost) };
            assert_eq!(discovery.check(text.as_bytes()).as_ref().map(Url::as_str), expected, "{jwks_uri}");
        }
    }
}
