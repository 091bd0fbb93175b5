//! From an issuer's discovery document to the URL of its key set (OpenID Connect Discovery §4, RFC 8414 §3).
//!
//! The URL is remembered for a while, so that a forced refresh mostly costs one request; after a fetch that
//! did not succeed, or was given up half-way, it is asked for again.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use url::Url;

use crate::clock::{self, Instant};

use super::fetch::FetchError;
use super::http::HttpReader;
use super::schedule::Trigger;

/// Why a discovery document is of no use. Holds nothing of the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiscoveryError {
    /// Not a JSON object with `issuer` and `jwks_uri`.
    NotADocument,
    /// Its `issuer` is not exactly the configured one (Discovery §4.3).
    IssuerMismatch,
    /// Its `jwks_uri` is not an absolute http or https URL, or is http where the document came by https.
    BadJwksUri,
    /// Its `jwks_uri` is on another host than the document: who may put keys there, nobody has said.
    OtherHost,
}

impl fmt::Display for DiscoveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DiscoveryError::NotADocument => {
                "not a discovery document: a JSON object with `issuer` and `jwks_uri` is expected"
            }
            DiscoveryError::IssuerMismatch => "the discovery document's `issuer` is not the configured one",
            DiscoveryError::BadJwksUri => "the discovery document's `jwks_uri` is no URL that can be trusted",
            DiscoveryError::OtherHost => {
                "the discovery document's `jwks_uri` is on another host: if that is as it should be, configure it as `jwks_uri`"
            }
        })
    }
}

/// A discovery document and what was last read from it.
pub struct Discovery {
    document: Url,
    issuer: String,
    remember_for: Duration,
    remembered: Mutex<Option<Found>>,
}

/// What a discovery document said, and when.
pub struct Found {
    /// Where the key set is.
    pub jwks_uri: Url,
    read: Instant,
}

#[derive(Deserialize)]
struct Document {
    issuer: String,
    jwks_uri: String,
}

impl Discovery {
    /// The document at this URL, which must be `issuer`'s. What it says is believed for `remember_for`.
    pub fn new(document: Url, issuer: &str, remember_for: Duration) -> Self {
        Self { document, issuer: issuer.to_owned(), remember_for, remembered: Mutex::new(None) }
    }

    /// Where the key set is. It is forgotten with this, until a fetch that succeeded puts it back.
    ///
    /// # Errors
    /// The document cannot be had or is of no use.
    pub async fn take(&self, http: &HttpReader, trigger: Trigger) -> Result<Found, FetchError> {
        let remembered = self.remembered().take();
        if let Some(found) = remembered.filter(|found| clock::elapsed_since(found.read) < self.remember_for) {
            return Ok(found);
        }
        let jwks_uri =
            self.check(&http.get(self.document.clone(), trigger).await?).map_err(FetchError::Discovery)?;
        Ok(Found { jwks_uri, read: clock::monotonic() })
    }

    /// There were keys where it said.
    pub fn put_back(&self, found: Found) {
        *self.remembered() = Some(found);
    }

    fn check(&self, document: &[u8]) -> Result<Url, DiscoveryError> {
        let document: Document =
            serde_json::from_slice(document).map_err(|_| DiscoveryError::NotADocument)?;
        if document.issuer != self.issuer {
            return Err(DiscoveryError::IssuerMismatch);
        }
        let url = Url::parse(&document.jwks_uri).map_err(|_| DiscoveryError::BadJwksUri)?;
        let plain = url.username().is_empty() && url.password().is_none();
        let trusted = match url.scheme() {
            "https" => plain,
            "http" => plain && self.document.scheme() == "http",
            _ => false,
        };
        if !trusted {
            Err(DiscoveryError::BadJwksUri)
        } else if url.host() != self.document.host() {
            Err(DiscoveryError::OtherHost)
        } else {
            Ok(url)
        }
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, Option<Found>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_counts_only_for_its_own_issuer_and_a_url_that_can_be_trusted() {
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
                Err(DiscoveryError::OtherHost),
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
}
