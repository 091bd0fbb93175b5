//! One HTTP request for keys and its answer, whoever carries them: the client of [`http_client`](super::http_client),
//! or a world that a simulation makes.

use std::future::Future;
use std::pin::Pin;

use http::StatusCode;
use http::header::{CACHE_CONTROL, HeaderMap, HeaderValue};
use url::Url;

use super::caching;
use super::fetch_error::FetchError;
use super::origin::Origin;

/// What carries requests to an issuer.
pub trait Transport: Send + Sync {
    /// Sends a request and follows the redirects that may be followed. The body is read of a 200 alone.
    fn get(&self, request: Request) -> Getting<'_>;
}

/// An answer on its way.
pub type Getting<'t> = Pin<Box<dyn Future<Output = Result<Answer, FetchError>> + Send + 't>>;

/// A GET request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where to.
    pub url: Url,
    /// What is sent besides the client's own.
    pub headers: HeaderMap,
    /// What is doubted, and so whether somebody waits.
    pub doubt: Doubt,
}

/// What of all that is known is doubted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Nothing: it was time to ask.
    Nothing,
    /// What caches have: the last answer was older than the one before.
    Caches,
    /// The set in hand, and with it all that led to it: a token failed against it.
    Forced,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Where it came from, after redirects.
    pub url: Url,
    /// Its headers.
    pub headers: HeaderMap,
    /// The body of a 200, decompressed; of any other status nothing.
    pub body: Vec<u8>,
}

impl Request {
    /// A request without headers but what says that caches are doubted (RFC 9111 §5.2.1.4).
    pub fn new(url: Url, doubt: Doubt) -> Self {
        let mut headers = HeaderMap::new();
        if doubt != Doubt::Nothing {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        }
        Self { url, headers, doubt }
    }
}

impl Answer {
    /// When it was made, as far as it says so; it was asked for and received at these times, in microseconds since
    /// the Unix epoch.
    pub fn origin(&self, asked: i64, received: i64) -> Origin {
        let (age, date) = caching::age_and_date(&self.headers);
        Origin::new(asked, received, age, date)
    }

    /// The body of a 200.
    ///
    /// # Errors
    /// It has another status.
    pub fn into_body(self) -> Result<Vec<u8>, FetchError> {
        if self.status == StatusCode::OK {
            return Ok(self.body);
        }
        // RFC 9110 §15.6.4, RFC 6585 §4: these alone are about time.
        let busy = matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS);
        let retry_after = busy.then(|| caching::retry_after(&self.headers)).flatten();
        Err(FetchError::Status { status: self.status.as_u16(), retry_after })
    }
}
