//! Errors of fetches and of discovery documents.

use std::fmt;
use std::time::Duration;

use url::Url;

use crate::files::FileErrorKind;
use crate::validation::key_set::KeySetError;

/// The most characters of a URL that an error shows.
const MAX_URL_CHARS: usize = 512;

/// Why a fetch returned no key set. Contains nothing of an answer's body.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FetchError {
    /// It did not end within this time.
    TimedOut(Duration),
    /// No connection, or a broken one.
    Transport(String),
    /// A certificate or key file for TLS cannot be used; names the file and the reason.
    TlsFile(String),
    /// A status other than 200, including a redirect that is not followed, and 304 to an unconditional request.
    Status {
        /// The status.
        status: u16,
        /// `Retry-After` (RFC 9110 §10.2.3), if present.
        retry_after: Option<Duration>,
    },
    /// Longer than this many bytes.
    TooLarge(usize),
    /// The file cannot be read.
    File(FileErrorKind),
    /// The answer is not a key set, or has no usable key.
    KeySet(KeySetError),
    /// The discovery document is invalid for this issuer.
    Discovery(DiscoveryError),
    /// A redirect that is not followed.
    Redirect {
        /// The status.
        status: u16,
        /// Its target without a query, escaped and truncated.
        target: String,
    },
    /// An error with the document that was requested.
    At {
        /// What was requested.
        document: Document,
        /// Its URL without a query.
        url: String,
        /// Why it is not available.
        error: Box<FetchError>,
    },
    /// The errors of several URLs, in their order.
    All(Vec<FetchError>),
    /// The fetch panicked: a bug.
    Panicked,
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FetchError::TimedOut(limit) => write!(f, "no answer within {} ms", limit.as_millis()),
            FetchError::Transport(message) | FetchError::TlsFile(message) => f.write_str(message),
            FetchError::Status { status, .. } => write!(f, "the answer's status is {status}, not 200"),
            FetchError::TooLarge(limit) => write!(f, "the answer is longer than {limit} bytes"),
            FetchError::File(kind) => kind.fmt(f),
            FetchError::KeySet(error) => error.fmt(f),
            FetchError::Discovery(error) => error.fmt(f),
            FetchError::Redirect { status, target } => write!(
                f,
                "the answer is a redirect ({status}) to {target}, which is not followed: only those within the host are, and never from https to http"
            ),
            FetchError::At { document, url, error } => write!(f, "{document} at {url}: {error}"),
            FetchError::All(errors) => {
                let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
                f.write_str(&texts.join("; "))
            }
            FetchError::Panicked => f.write_str("the fetch panicked: report this as a bug"),
        }
    }
}

impl std::error::Error for FetchError {}

/// What a fetch requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    /// A key set.
    KeySet,
    /// A discovery document.
    Discovery,
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Document::KeySet => "key set",
            Document::Discovery => "discovery document",
        })
    }
}

impl FetchError {
    /// With what was requested.
    #[must_use]
    pub fn at(self, document: Document, url: &Url) -> Self {
        let mut url = url.clone();
        url.set_query(None);
        url.set_fragment(None);
        // A document can name a URL of any length.
        let url = url.as_str().chars().take(MAX_URL_CHARS).collect();
        FetchError::At { document, url, error: Box::new(self) }
    }

    /// The error of one URL, or those of several.
    pub(super) fn of_all(mut errors: Vec<FetchError>) -> Self {
        match errors.len() {
            1 => errors.remove(0),
            _ => FetchError::All(errors),
        }
    }

    /// The text without URLs, for readers who may not know them.
    pub fn without_url(&self) -> String {
        match self {
            FetchError::At { error, .. } => error.without_url(),
            FetchError::Redirect { status, .. } => {
                format!("the answer is a redirect ({status}) that is not followed")
            }
            FetchError::All(errors) => {
                let texts: Vec<String> = errors.iter().map(FetchError::without_url).collect();
                texts.join("; ")
            }
            error => error.to_string(),
        }
    }

    /// The error without what was requested; the last one of several.
    pub fn cause(&self) -> &FetchError {
        match self {
            FetchError::At { error, .. } => error.cause(),
            FetchError::All(errors) => errors.last().map_or(self, FetchError::cause),
            error => error,
        }
    }

    /// The errors of several URLs, or this one.
    pub(super) fn parts(&self) -> &[FetchError] {
        match self {
            FetchError::All(errors) => errors,
            error => std::slice::from_ref(error),
        }
    }

    /// Whether both are the same failure, whatever numbers their texts have: durations, times and addresses of one host differ
    /// from one attempt to the next.
    pub fn is_like(&self, other: &FetchError) -> bool {
        match (self, other) {
            (FetchError::TimedOut(_), FetchError::TimedOut(_)) => true,
            (FetchError::Status { status: one, .. }, FetchError::Status { status: other, .. }) => {
                one == other
            }
            (FetchError::Transport(one), FetchError::Transport(other)) => {
                let is_number = |byte: &u8| byte.is_ascii_digit();
                one.bytes().filter(|byte| !is_number(byte)).eq(other.bytes().filter(|byte| !is_number(byte)))
            }
            (
                FetchError::At { document, url, error },
                FetchError::At { document: other_document, url: other_url, error: other },
            ) => document == other_document && url == other_url && error.is_like(other),
            (FetchError::All(some), FetchError::All(others)) => {
                some.len() == others.len() && some.iter().zip(others).all(|(one, other)| one.is_like(other))
            }
            _ => self == other,
        }
    }

    /// `Retry-After` of the answer, if present.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.cause() {
            FetchError::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Why a discovery document is rejected. Contains nothing of the document.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiscoveryError {
    /// Not a JSON object with `issuer` and `jwks_uri`.
    NotADocument,
    /// Its `issuer` is not exactly the configured one (Discovery §4.3).
    IssuerMismatch,
    /// Its `jwks_uri` is not an absolute http or https URL, or is http though the document came over https.
    BadJwksUri,
    /// Its `jwks_uri` is on another host than the document, which the configuration does not allow.
    OtherHost,
}

impl fmt::Display for DiscoveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DiscoveryError::NotADocument => {
                "not a discovery document: a JSON object with `issuer` and `jwks_uri` is expected"
            }
            DiscoveryError::IssuerMismatch => "the discovery document's `issuer` is not the configured one",
            DiscoveryError::BadJwksUri => "the discovery document's `jwks_uri` is not a URL that can be trusted",
            DiscoveryError::OtherHost => {
                "the discovery document's `jwks_uri` is on another host: if that is intended, configure it as `jwks_uri`"
            }
        })
    }
}
