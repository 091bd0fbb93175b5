//! From an issuer's discovery document to the URL of its key set (OpenID Connect Discovery §4, RFC 8414 §3).
//!
//! The URL is remembered for a while, so that a forced refresh mostly costs one request. A document that is older
//! than the one that was read before changes nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use url::Url;

use crate::clock::SteadyClock;

use super::fetch_error::{DiscoveryError, FetchError};
use super::origin::Origin;
use super::transport::{Doubt, Request, Transport};

/// After so many documents in a row that are older by their date alone it is the clock there that was set back.
const OLDER_IN_A_ROW: u32 = 2;

/// A discovery document and what was last read from it.
pub struct Discovery {
    document: Url,
    issuer: String,
    remember_for: Duration,
    remembered: Mutex<Option<Remembered>>,
}

/// What a discovery document said, and when.
#[derive(Clone)]
struct Remembered {
    /// Where the key set is.
    jwks_uri: Url,
    origin: Origin,
    /// Whether keys were had there by the last fetch.
    proven: bool,
    /// How many documents in a row were older, though no cache says to have kept them.
    older_in_a_row: u32,
}

/// What the discovery document says.
pub(super) struct Said {
    /// Where the key set is.
    pub(super) jwks_uri: Url,
    /// Where it is by a document that is older than the one before by its date alone: clocks of replicas differ.
    pub(super) otherwise: Option<Otherwise>,
}

/// What a document says that does not count.
pub(super) struct Otherwise {
    pub(super) jwks_uri: Url,
    origin: Origin,
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

    /// Where the key set is by a document that was read a while ago at most, if keys were there the last time.
    pub(super) fn remembered(&self, clock: &SteadyClock) -> Option<Url> {
        let longest = i64::try_from(self.remember_for.as_micros()).unwrap_or(i64::MAX);
        let remembered = self.lock();
        let fresh = |one: &&Remembered| clock.now_micros().saturating_sub(one.origin.received()) < longest;
        remembered.as_ref().filter(|one| one.proven).filter(fresh).map(|one| one.jwks_uri.clone())
    }

    /// Where the key set was said to be the last time.
    pub(super) fn last(&self) -> Option<Url> {
        self.lock().as_ref().map(|one| one.jwks_uri.clone())
    }

    /// Where the key set is, by the document as it is now. One that is older than the one before does not count; what it
    /// says all the same is told, where no cache has kept it.
    ///
    /// # Errors
    /// The document cannot be had or is of no use.
    pub(super) async fn ask(
        &self,
        transport: &dyn Transport,
        doubt: Doubt,
        clock: &SteadyClock,
    ) -> Result<Said, FetchError> {
        let request = Request::new(self.document.clone(), doubt);
        let asked = clock.now_micros();
        let answer = transport.get(request).await?;
        let origin = answer.origin(asked, clock.now_micros());
        let jwks_uri = self.check(&answer.into_body()?).map_err(FetchError::Discovery)?;
        let mut remembered = self.lock();
        // One that leads to no keys is not held against another.
        let newer = |one: &&mut Remembered| {
            let believed = origin.has_age() || one.older_in_a_row < OLDER_IN_A_ROW;
            one.proven && believed && origin.is_older_than(&one.origin)
        };
        if let Some(newer) = remembered.as_mut().filter(newer) {
            newer.older_in_a_row += u32::from(!origin.has_age());
            let otherwise =
                (!origin.has_age() && jwks_uri != newer.jwks_uri).then_some(Otherwise { jwks_uri, origin });
            return Ok(Said { jwks_uri: newer.jwks_uri.clone(), otherwise });
        }
        let same = remembered.as_ref().is_some_and(|one| one.proven && one.jwks_uri == jwks_uri);
        *remembered =
            Some(Remembered { jwks_uri: jwks_uri.clone(), origin, proven: same, older_in_a_row: 0 });
        Ok(Said { jwks_uri, otherwise: None })
    }

    /// The document that was older by its date alone was right: there the keys are.
    pub(super) fn adopt(&self, Otherwise { jwks_uri, origin }: Otherwise) {
        *self.lock() = Some(Remembered { jwks_uri, origin, proven: true, older_in_a_row: 0 });
    }

    /// Whether there were keys at this URL: if there were, it is believed for a while.
    pub(super) fn note(&self, jwks_uri: &Url, proven: bool) {
        if let Some(remembered) = self.lock().as_mut().filter(|one| one.jwks_uri == *jwks_uri) {
            remembered.proven = proven;
        }
    }

    fn check(&self, document: &[u8]) -> Result<Url, DiscoveryError> {
        // A struct could be read from an array too.
        if document.trim_ascii_start().first() != Some(&b'{') {
            return Err(DiscoveryError::NotADocument);
        }
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

    fn lock(&self) -> MutexGuard<'_, Option<Remembered>> {
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
}
