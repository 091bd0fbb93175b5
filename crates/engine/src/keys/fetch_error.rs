//! Why a fetch brought no key set, and why a discovery document is of no use.

use std::fmt;
use std::time::Duration;

use crate::files::Why;
use crate::validation::key_set::KeySetError;

/// Why a fetch brought no key set. Holds nothing of an answer's body.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FetchError {
    /// Not done within this time.
    TimedOut(Duration),
    /// No connection, or a broken one.
    Transport(String),
    /// A file of certificates or keys for TLS cannot be used; says which and why.
    TlsFile(String),
    /// A status other than 200, a redirect that is not followed included; and 304 where nothing was asked
    /// to be compared.
    Status {
        /// The status.
        status: u16,
        /// How long the issuer wants to be left alone (RFC 9110 §10.2.3), where it says so.
        retry_after: Option<Duration>,
    },
    /// Longer than this many bytes.
    TooLarge(usize),
    /// The file cannot be read.
    File(Why),
    /// The answer is no key set, or nothing in it is usable.
    KeySet(KeySetError),
    /// The discovery document is not one for this issuer.
    Discovery(DiscoveryError),
    /// A fault of this service: the fetch broke off.
    BrokeOff,
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FetchError::TimedOut(limit) => write!(f, "no answer within {} ms", limit.as_millis()),
            FetchError::Transport(what) | FetchError::TlsFile(what) => f.write_str(what),
            FetchError::Status { status, .. } => write!(f, "the answer's status is {status}, not 200"),
            FetchError::TooLarge(limit) => write!(f, "the answer is longer than {limit} bytes"),
            FetchError::File(why) => why.fmt(f),
            FetchError::KeySet(error) => error.fmt(f),
            FetchError::Discovery(error) => error.fmt(f),
            FetchError::BrokeOff => f.write_str("the fetch broke off by a fault of this service"),
        }
    }
}

impl std::error::Error for FetchError {}

impl FetchError {
    /// How long the issuer wants to be left alone, where it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            FetchError::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Why a discovery document is of no use. Holds nothing of the document.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
