//! An HTTP request for keys and its answer, independent of the transport: the client of
//! [`http_client`](super::http_client), or a simulation.

use std::future::Future;
use std::pin::Pin;

use http::StatusCode;
use http::header::{CACHE_CONTROL, HeaderMap, HeaderValue, LOCATION};
use url::Url;

use super::caching;
use super::fetch_error::FetchError;
use super::origin::Origin;

/// The longest part of a redirect's target that is shown.
const MAX_TARGET_CHARS: usize = 128;

/// Sends requests to an issuer.
pub trait Transport: Send + Sync {
    /// Sends a request and follows allowed redirects. The body is read only for a 200.
    fn get(&self, request: Request) -> ResponseFuture<'_>;
}

/// The future of an answer.
pub type ResponseFuture<'t> = Pin<Box<dyn Future<Output = Result<Answer, FetchError>> + Send + 't>>;

/// A GET request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The URL.
    pub url: Url,
    /// Headers in addition to the client's own.
    pub headers: HeaderMap,
    /// What the request is for.
    pub mode: RequestMode,
}

/// What a request is for: whether caches may answer it, and whether a token waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestMode {
    /// A scheduled fetch; caches may answer.
    Scheduled,
    /// The last answer was older than the one before; caches must not answer.
    NoCache,
    /// A token failed against the current set; caches must not answer, and the token waits.
    Forced,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// The final URL, after redirects.
    pub url: Url,
    /// Its headers.
    pub headers: HeaderMap,
    /// The body of a 200, decompressed; empty for any other status.
    pub body: Vec<u8>,
}

impl Request {
    /// A request without headers except `Cache-Control: no-cache` (RFC 9111 §5.2.1.4), if caches must not answer.
    pub fn new(url: Url, mode: RequestMode) -> Self {
        let mut headers = HeaderMap::new();
        if mode != RequestMode::Scheduled {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        }
        Self { url, headers, mode }
    }
}

impl Answer {
    /// When it was made, as far as its headers say; it was requested and received at these times, in microseconds
    /// since the Unix epoch.
    pub fn origin(&self, asked: i64, received: i64) -> Origin {
        let (age, date) = caching::age_and_date(&self.headers);
        Origin::new(asked, received, age, date)
    }

    /// The target of a redirect that was not followed (RFC 9110 §10.2.2), without its query.
    fn redirect_target(&self) -> Option<String> {
        let location = self.headers.get(LOCATION).filter(|_| self.status.is_redirection())?;
        let location = String::from_utf8_lossy(location.as_bytes());
        let mut target = self.url.join(&location).ok()?;
        if !matches!(target.scheme(), "http" | "https") {
            return Some(format!("a {} URL", target.scheme()));
        }
        target.set_query(None);
        target.set_fragment(None);
        // Neither fails for a URL with a host.
        let _without_name = target.set_username("");
        let _without_password = target.set_password(None);
        let shown = target.as_str().chars().take(MAX_TARGET_CHARS).flat_map(char::escape_debug);
        Some(shown.collect())
    }

    /// The body of a 200.
    ///
    /// # Errors
    /// The status is not 200.
    pub fn into_body(self) -> Result<Vec<u8>, FetchError> {
        if self.status == StatusCode::OK {
            return Ok(self.body);
        }
        if let Some(target) = self.redirect_target() {
            return Err(FetchError::Redirect { status: self.status.as_u16(), target });
        }
        // RFC 9110 §15.6.4, RFC 6585 §4: only these two statuses carry a delay.
        let busy = matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS);
        let retry_after = busy.then(|| caching::retry_after(&self.headers)).flatten();
        Err(FetchError::Status { status: self.status.as_u16(), retry_after })
    }
}
