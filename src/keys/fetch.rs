//! Reading a key set from where it is: a URL, a discovery document's, or a file. Bounded in size,
//! and in time by the caller.
//!
//! An answer counts only if it is a 200 with a usable key set in it; anything else is a failed fetch,
//! told without a word of the answer's body.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderValue};
use reqwest::redirect;
use tokio::io::AsyncReadExt;
use url::Url;

use crate::validation::key_set::{KeySet, KeySetError};

use super::discovery::{Discovery, DiscoveryError};

/// Redirects are followed this often, on the same host.
const MAX_REDIRECTS: usize = 5;

/// Where keys come from. One implementation per kind of source; tests script their own.
pub trait Fetch: Send + Sync {
    /// Reads the current key set once.
    fn fetch(&self) -> Pin<Box<dyn Future<Output = Result<KeySet, FetchError>> + Send + '_>>;

    /// The file whose changes call for a fetch, where there is one.
    fn watched_file(&self) -> Option<PathBuf> {
        None
    }
}

/// Why a fetch brought no key set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchError {
    /// Not done within this time.
    TimedOut(Duration),
    /// No connection, or a broken one.
    Transport(String),
    /// A status other than 200, a redirect that is not followed included.
    Status(u16),
    /// Longer than this many bytes.
    TooLarge(usize),
    /// The file cannot be read.
    File(std::io::ErrorKind),
    /// The answer is no key set, or nothing in it is usable.
    KeySet(KeySetError),
    /// The discovery document is not one for this issuer.
    Discovery(DiscoveryError),
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FetchError::TimedOut(limit) => write!(f, "no answer within {} ms", limit.as_millis()),
            FetchError::Transport(what) => f.write_str(what),
            FetchError::Status(status) => write!(f, "the answer's status is {status}, not 200"),
            FetchError::TooLarge(limit) => write!(f, "the answer is longer than {limit} bytes"),
            FetchError::File(kind) => write!(f, "the file cannot be read: {kind}"),
            FetchError::KeySet(error) => error.fmt(f),
            FetchError::Discovery(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for FetchError {}

impl From<reqwest::Error> for FetchError {
    /// reqwest's own text without the URL, and its causes, which are what an operator needs.
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        FetchError::Transport(causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
    }
}

/// Keys at a URL that is known from the start, or that a discovery document names.
pub struct HttpKeys {
    http: HttpReader,
    location: Location,
}

enum Location {
    KeySet(Url),
    Discovery(Discovery),
}

impl HttpKeys {
    /// Keys at `jwks_uri`.
    pub fn at(jwks_uri: Url, http: HttpReader) -> Self {
        Self { http, location: Location::KeySet(jwks_uri) }
    }

    /// Keys at the URL that a discovery document names.
    pub fn discovered(discovery: Discovery, http: HttpReader) -> Self {
        Self { http, location: Location::Discovery(discovery) }
    }

    async fn read(&self) -> Result<KeySet, FetchError> {
        match &self.location {
            Location::KeySet(url) => self.read_set(url.clone()).await,
            Location::Discovery(discovery) => {
                let found = discovery.take(&self.http).await?;
                let keys = self.read_set(found.jwks_uri.clone()).await?;
                discovery.put_back(found);
                Ok(keys)
            }
        }
    }

    async fn read_set(&self, url: Url) -> Result<KeySet, FetchError> {
        KeySet::parse(&self.http.get(url).await?).map_err(FetchError::KeySet)
    }
}

impl Fetch for HttpKeys {
    fn fetch(&self) -> Pin<Box<dyn Future<Output = Result<KeySet, FetchError>> + Send + '_>> {
        Box::pin(self.read())
    }
}

/// A client with the bounds of one provider.
pub struct HttpReader {
    client: reqwest::Client,
    max_bytes: usize,
}

impl HttpReader {
    /// A client that reads at most `max_bytes` of an answer and follows redirects only within a host
    /// and never from https to http.
    ///
    /// On a machine without certificates of authorities, such as a bare container, it reaches http
    /// alone, and the log says so.
    ///
    /// # Errors
    /// The client cannot be made for another reason.
    pub fn new(max_bytes: usize) -> Result<Self, FetchError> {
        let builder = || {
            reqwest::Client::builder()
                .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))
                .redirect(redirect::Policy::custom(follow))
                // Fetches are minutes apart, and a kept connection whose other end died without a word would
                // cost the one that matters its time.
                .pool_max_idle_per_host(0)
        };
        let client = builder().build().or_else(|error| {
            let error = FetchError::from(error);
            tracing::warn!(%error, "no certificates to check https issuers with: install ca-certificates");
            builder().tls_certs_only([]).build()
        })?;
        Ok(Self { client, max_bytes })
    }

    /// The body of a 200.
    ///
    /// # Errors
    /// Any other status, a broken connection, or a body over the limit.
    pub async fn get(&self, url: Url) -> Result<Vec<u8>, FetchError> {
        const ACCEPTED: HeaderValue = HeaderValue::from_static("application/jwk-set+json, application/json");
        let mut response = self.client.get(url).header(ACCEPT, ACCEPTED).send().await?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(FetchError::Status(response.status().as_u16()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > self.max_bytes {
                return Err(FetchError::TooLarge(self.max_bytes));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let origin = attempt.previous().first();
    let same_host = origin.is_some_and(|origin| {
        origin.host() == attempt.url().host()
            && (origin.scheme() == attempt.url().scheme() || attempt.url().scheme() == "https")
    });
    if same_host && attempt.previous().len() <= MAX_REDIRECTS { attempt.follow() } else { attempt.stop() }
}

/// Keys in a file.
pub struct FileKeys {
    path: PathBuf,
    max_bytes: usize,
}

impl FileKeys {
    /// Keys in the file at `path`, of which at most `max_bytes` are read.
    pub fn at(path: &Path, max_bytes: usize) -> Self {
        Self { path: path.to_owned(), max_bytes }
    }

    async fn read(&self) -> Result<KeySet, FetchError> {
        let unreadable = |error: std::io::Error| FetchError::File(error.kind());
        let file = tokio::fs::File::open(&self.path).await.map_err(unreadable)?;
        let mut document = Vec::new();
        // One byte more than allowed tells a file that is too long from one that just fits.
        file.take(self.max_bytes as u64 + 1).read_to_end(&mut document).await.map_err(unreadable)?;
        if document.len() > self.max_bytes {
            return Err(FetchError::TooLarge(self.max_bytes));
        }
        KeySet::parse(&document).map_err(FetchError::KeySet)
    }
}

impl Fetch for FileKeys {
    fn fetch(&self) -> Pin<Box<dyn Future<Output = Result<KeySet, FetchError>> + Send + '_>> {
        Box::pin(self.read())
    }

    fn watched_file(&self) -> Option<PathBuf> {
        Some(self.path.clone())
    }
}
