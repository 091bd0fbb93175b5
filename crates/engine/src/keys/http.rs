//! Reads a key set from its URL, or from the one that a discovery document names.
//!
//! Only a 200 with a usable set is accepted, or a 304 from the very URL whose validators were sent. A forced fetch
//! sends no validators and bypasses caches, and if the remembered URL does not return the wanted keys it asks the
//! discovery document again. A cache may answer a scheduled fetch; if that answer is not newer than the current set
//! and differs from it, it is requested again without caches.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use http::header::HeaderMap;
use url::Url;

use crate::validation::key_set::{Key, KeySet, KeyUse};

use super::caching;
use super::discovery::{Alternative, Discovery, Located};
use super::fetch::{Fetch, FetchContext, FetchFuture, Fetched};
use super::fetch_error::{Document, FetchError};
use super::schedule::FetchMode;
use super::transport::{Answer, Request, RequestMode, Transport};
use crate::telemetry::Trigger;

/// After this many conditional requests one is unconditional: some servers do not change validators with the content.
const MAX_CONDITIONAL_IN_A_ROW: u32 = 9;

/// This part of a fetch's time is reserved, so that a key set that was received is not lost to additional requests.
const RESERVED: Duration = Duration::from_millis(20);

/// Keys at a configured URL, or at the one that a discovery document names.
pub struct HttpKeys {
    transport: Arc<dyn Transport>,
    location: Location,
    opened_by: OpenedBy,
    history: Mutex<History>,
    key_use: KeyUse,
}

/// What opened the source.
enum OpenedBy {
    /// The start of the service.
    Start,
    /// A token, whose key may be newer than the answer of a cache.
    Token,
}

enum Location {
    /// Asked in this order if one fails.
    KeySets(Vec<Url>),
    Discovery(Box<Discovery>),
}

/// What is known of earlier answers.
#[derive(Default)]
struct History {
    last: Option<LastAnswer>,
    /// A URL whose validators stayed the same when the content changed: they are never sent there again.
    unreliable: Option<Url>,
}

/// The last set that was received with validators from the requested URL itself.
#[derive(Clone)]
struct LastAnswer {
    url: Url,
    /// The conditional headers.
    validators: HeaderMap,
    keys: Arc<KeySet>,
    fresh_for: Option<Duration>,
    /// How many more conditional requests may be sent in a row.
    conditional_left: u32,
}

impl HttpKeys {
    /// Keys at the first of these URLs that answers with them.
    pub fn at(jwks_uris: Vec<Url>, transport: Arc<dyn Transport>) -> Self {
        Self::new(Location::KeySets(jwks_uris), transport)
    }

    /// Keys at the URL that a discovery document names.
    pub fn discovered(discovery: Discovery, transport: Arc<dyn Transport>) -> Self {
        Self::new(Location::Discovery(Box::new(discovery)), transport)
    }

    fn new(location: Location, transport: Arc<dyn Transport>) -> Self {
        let (opened_by, history) = (OpenedBy::Start, Mutex::default());
        Self { transport, location, opened_by, history, key_use: KeyUse::default() }
    }

    /// Those of this use.
    #[must_use]
    pub fn of_use(self, key_use: KeyUse) -> Self {
        Self { key_use, ..self }
    }

    /// For a source that a token opens: the first fetch bypasses caches, unless that fails.
    #[must_use]
    pub fn opened_by_token(self) -> Self {
        Self { opened_by: OpenedBy::Token, ..self }
    }

    async fn read(&self, context: &FetchContext) -> Result<Fetched, FetchError> {
        let mode = match context.mode {
            FetchMode::Conditional | FetchMode::Unconditional => RequestMode::Scheduled,
            FetchMode::Forced => RequestMode::Forced,
        };
        if matches!(self.opened_by, OpenedBy::Token) && context.trigger == Trigger::Startup {
            return self.read_without_caches(context).await;
        }
        let fetched = self.locate_and_read(mode, context).await;
        if mode == RequestMode::Scheduled && is_suspect(&fetched, context) {
            let again = within_deadline(context, self.locate_and_read(RequestMode::NoCache, context)).await;
            return again.map_or(fetched, Ok);
        }
        fetched
    }

    async fn read_without_caches(&self, context: &FetchContext) -> Result<Fetched, FetchError> {
        // Half of the time is reserved for a request that caches may answer.
        let half = context.deadline.saturating_duration_since(context.clock.monotonic()) / 2;
        match tokio::time::timeout(half, self.locate_and_read(RequestMode::NoCache, context)).await {
            Ok(Ok(fetched)) => Ok(fetched),
            // The issuer has answered: there are no keys.
            Ok(Err(error)) if matches!(error.cause(), FetchError::Status { status: ..500, .. }) => Err(error),
            Ok(Err(_)) | Err(_) => self.locate_and_read(RequestMode::Scheduled, context).await,
        }
    }

    async fn locate_and_read(
        &self,
        mode: RequestMode,
        context: &FetchContext,
    ) -> Result<Fetched, FetchError> {
        let discovery = match &self.location {
            Location::KeySets(urls) => return self.read_first(urls, mode, context).await,
            Location::Discovery(discovery) => discovery,
        };
        let cached = discovery.cached(&context.clock);
        let Some(url) = cached else {
            let (url, passed_over) = self.locate(discovery, mode, context).await?;
            let fetched = self.read_discovered(discovery, &url, mode, context).await?;
            return Ok(Fetched { passed_over, ..fetched });
        };
        let fetched = self.read_discovered(discovery, &url, mode, context).await;
        if let Ok(fetched) = &fetched {
            if mode == RequestMode::Scheduled
                || context.wanted.is_satisfied_by(&fetched.keys, context.published.keys())
            {
                return Ok(Fetched { location_asked: false, ..fetched.clone() });
            }
            // The callers that it serves do not wait for the document.
            context.interim.send(fetched);
        }
        let (mut failed, began) = (None, context.clock.monotonic());
        let other = within_deadline(context, async {
            let other = self.read_elsewhere(discovery, &url, fetched.is_ok(), mode, context).await;
            other.inspect_err(|error| failed = Some(error.clone()))
        });
        match other.await {
            Some(Some(fetched)) => Ok(fetched),
            Some(None) => fetched,
            None => {
                let waited = context.clock.monotonic().saturating_duration_since(began);
                let failed = failed.unwrap_or_else(|| discovery.error(FetchError::TimedOut(waited)));
                fetched.map(|fetched| Fetched { passed_over: Some(failed), ..fetched })
            }
        }
    }

    /// Reads the set at another URL than this one, if the document names one; `None` if it does not.
    async fn read_elsewhere(
        &self,
        discovery: &Discovery,
        url: &Url,
        has_keys: bool,
        mode: RequestMode,
        context: &FetchContext,
    ) -> Result<Option<Fetched>, FetchError> {
        let Located { jwks_uri, alternative } =
            discovery.read(&*self.transport, mode, &context.clock).await?;
        if jwks_uri != *url {
            return self.read_discovered(discovery, &jwks_uri, mode, context).await.map(Some);
        }
        // The document confirms the URL, so its result is used.
        discovery.set_verified(url, has_keys);
        match alternative {
            Some(alternative) => self.read_if_wanted(discovery, alternative, mode, context).await,
            None => Ok(None),
        }
    }

    /// Reads the first set that is available. One that does not answer leaves most of the time to the others.
    async fn read_first(
        &self,
        urls: &[Url],
        mode: RequestMode,
        context: &FetchContext,
    ) -> Result<Fetched, FetchError> {
        let mut failed = Vec::new();
        for (at, url) in urls.iter().enumerate() {
            let left = context.deadline.saturating_duration_since(context.clock.monotonic());
            let waiting = u32::try_from(urls.len().saturating_sub(at)).unwrap_or(u32::MAX).max(1);
            let share = left / waiting / 2;
            let is_last = at + 1 == urls.len();
            let read = self.read_set(url, mode, context);
            // The caller limits the time of the last one, as that of a single one.
            let read = if is_last { Ok(read.await) } else { tokio::time::timeout(share, read).await };
            match read.unwrap_or_else(|_| Err(FetchError::TimedOut(share).at(Document::KeySet, url))) {
                Ok(fetched) => {
                    let passed_over = (!failed.is_empty()).then(|| FetchError::of_all(failed));
                    // Each URL has numbers of its own: those of the first one count.
                    let keys = match at {
                        0 => fetched.keys,
                        _ => Arc::new(KeySet::clone(&fetched.keys).with_sequence(None)),
                    };
                    return Ok(Fetched { keys, rank: at, passed_over, ..fetched });
                }
                Err(error) => failed.push(error),
            }
        }
        Err(FetchError::of_all(failed))
    }

    /// Reads the set at a URL that is named only by a document which is older by its date. It is used if it has the
    /// wanted keys, withdrawn ones excepted: no key that verifies a valid token is ignored because of a date alone.
    async fn read_if_wanted(
        &self,
        discovery: &Discovery,
        alternative: Alternative,
        mode: RequestMode,
        context: &FetchContext,
    ) -> Result<Option<Fetched>, FetchError> {
        let fetched = self.read_set(&alternative.jwks_uri, mode, context).await?;
        let is_not_withdrawn =
            |key: &Key| !context.published.withdrawn().iter().any(|entry| entry.key.is_material_of(key));
        let unseen = fetched.keys.filtered(is_not_withdrawn, "it was withdrawn");
        if !context.wanted.is_satisfied_by(&unseen, context.published.keys()) {
            return Ok(None);
        }
        discovery.accept(alternative);
        Ok(Some(fetched))
    }

    /// The URL that the document names, or the last one if the document is unavailable, with the reason.
    async fn locate(
        &self,
        discovery: &Discovery,
        mode: RequestMode,
        context: &FetchContext,
    ) -> Result<(Url, Option<FetchError>), FetchError> {
        context.asking.set(Document::Discovery, discovery.document());
        let read = discovery.read(&*self.transport, mode, &context.clock);
        let Some(last) = discovery.last() else {
            return read.await.map(|located| (located.jwks_uri, None));
        };
        // Half of the time is reserved for the keys.
        let remaining = context.deadline.saturating_duration_since(context.clock.monotonic()) / 2;
        match tokio::time::timeout(remaining, read).await {
            Ok(Err(error)) if matches!(error.cause(), FetchError::Discovery(_)) => Err(error),
            Ok(Ok(located)) => Ok((located.jwks_uri, None)),
            Ok(Err(error)) => Ok((last, Some(error))),
            Err(_) => Ok((last, Some(discovery.error(FetchError::TimedOut(remaining))))),
        }
    }

    async fn read_discovered(
        &self,
        discovery: &Discovery,
        url: &Url,
        mode: RequestMode,
        context: &FetchContext,
    ) -> Result<Fetched, FetchError> {
        // False until it has succeeded, so that a cancelled fetch is treated as failed.
        discovery.set_verified(url, false);
        let fetched = self.read_set(url, mode, context).await;
        discovery.set_verified(url, fetched.is_ok());
        fetched
    }

    async fn read_set(
        &self,
        url: &Url,
        mode: RequestMode,
        context: &FetchContext,
    ) -> Result<Fetched, FetchError> {
        self.request_set(url, mode, context).await.map_err(|error| error.at(Document::KeySet, url))
    }

    fn read_answer(
        &self,
        answer: Answer,
        requested_at: i64,
        context: &FetchContext,
    ) -> Result<Fetched, FetchError> {
        let fresh_for = caching::fresh_for(&answer.headers);
        let mut fetched = fetched(Arc::default(), &answer, fresh_for, requested_at, context);
        let keys = KeySet::parse_for(&answer.into_body()?, self.key_use).map_err(FetchError::KeySet)?;
        fetched.keys = Arc::new(keys);
        Ok(fetched)
    }

    async fn request_set(
        &self,
        url: &Url,
        mode: RequestMode,
        context: &FetchContext,
    ) -> Result<Fetched, FetchError> {
        context.asking.set(Document::KeySet, url);
        let conditional = context.mode == FetchMode::Conditional
            && mode == RequestMode::Scheduled
            && self.lock().unreliable.as_ref() != Some(url);
        let last = self.lock().last.clone().filter(|last| last.url == *url);
        let revalidated = last.as_ref().filter(|last| conditional && last.conditional_left > 0);
        let mut request = Request::new(url.clone(), mode);
        if let Some(last) = revalidated {
            request.headers.extend(last.validators.clone());
        }
        let mut requested_at = context.clock.now_micros();
        let mut answer = self.transport.get(request).await?;
        if let Some(last) = revalidated.filter(|_| answer.status == StatusCode::NOT_MODIFIED) {
            if answer.url == *url {
                return Ok(self.confirmed(last, &answer, requested_at, context));
            }
            // A 304 from another URL confirms an answer that was never received.
            requested_at = context.clock.now_micros();
            answer = self.transport.get(Request::new(url.clone(), mode)).await?;
        }
        let validators = caching::validators(&answer.headers);
        let same_url = answer.url == *url;
        let fetched = self.read_answer(answer, requested_at, context)?;
        // Validators of a redirected answer may belong to another URL the next time.
        self.remember(url, last, validators.filter(|_| same_url), &fetched, mode);
        Ok(fetched)
    }

    /// A 304: the set that was received with these validators is still current.
    fn confirmed(
        &self,
        last: &LastAnswer,
        answer: &Answer,
        requested_at: i64,
        context: &FetchContext,
    ) -> Fetched {
        // Headers that it lacks keep their values (RFC 9111 §4.3.4).
        let fresh_for = caching::fresh_for(&answer.headers).or(last.fresh_for);
        let validators = caching::validators(&answer.headers).unwrap_or_else(|| last.validators.clone());
        let (keys, conditional_left) = (Arc::clone(&last.keys), last.conditional_left.saturating_sub(1));
        let mut fetched = fetched(Arc::clone(&keys), answer, fresh_for, requested_at, context);
        fetched.origin = fetched.origin.revalidation();
        self.lock().last =
            Some(LastAnswer { url: last.url.clone(), validators, keys, fresh_for, conditional_left });
        fetched
    }

    fn remember(
        &self,
        url: &Url,
        before: Option<LastAnswer>,
        validators: Option<HeaderMap>,
        fetched: &Fetched,
        mode: RequestMode,
    ) {
        let differs = before.as_ref().is_some_and(|before| !before.keys.same_keys(&fetched.keys));
        let same_validators = before.is_some_and(|before| Some(&before.validators) == validators.as_ref());
        let mut history = self.lock();
        if differs && same_validators {
            history.unreliable = Some(url.clone());
        }
        // A change that was found only because of a token is followed by an unconditional request.
        let conditional_left =
            if differs && mode == RequestMode::Forced { 0 } else { MAX_CONDITIONAL_IN_A_ROW };
        history.last = validators.map(|validators| LastAnswer {
            url: url.clone(),
            validators,
            keys: Arc::clone(&fetched.keys),
            fresh_for: fetched.fresh_for,
            conditional_left,
        });
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fetch for HttpKeys {
    fn fetch(&self, context: FetchContext) -> FetchFuture<'_> {
        Box::pin(async move { self.read(&context).await })
    }
}

/// Whether a cache may have caused this result: no keys, other keys than the current ones from an answer that is not
/// newer, or a withdrawn key.
fn is_suspect(fetched: &Result<Fetched, FetchError>, context: &FetchContext) -> bool {
    match fetched {
        Ok(fetched) => {
            let stale =
                context.published.origin().is_some_and(|current| !fetched.origin.is_newer_than(current));
            let withdrawn = |key: &Arc<Key>| {
                context.published.withdrawn().iter().any(|entry| entry.key.is_material_of(key))
            };
            (stale && !fetched.keys.same_keys(context.published.keys()))
                || fetched.keys.keys().iter().any(withdrawn)
        }
        Err(error) => matches!(error.cause(), FetchError::KeySet(_) | FetchError::Discovery(_)),
    }
}

fn fetched(
    keys: Arc<KeySet>,
    answer: &Answer,
    fresh_for: Option<Duration>,
    requested_at: i64,
    context: &FetchContext,
) -> Fetched {
    let mut location = answer.url.clone();
    location.set_query(None);
    location.set_fragment(None);
    Fetched {
        keys,
        origin: answer.origin(requested_at, context.clock.now_micros()),
        location: location.into(),
        caches: caching::cache_headers(&answer.headers),
        fresh_for,
        ahead: caching::clock_ahead(&answer.headers, requested_at, context.clock.now_micros()),
        location_asked: true,
        rank: 0,
        passed_over: None,
    }
}

/// Runs an additional request within the time of the fetch; `None` if it failed.
async fn within_deadline<T>(
    context: &FetchContext,
    request: impl Future<Output = Result<T, FetchError>>,
) -> Option<T> {
    let remaining =
        context.deadline.saturating_duration_since(context.clock.monotonic()).saturating_sub(RESERVED);
    tokio::time::timeout(remaining, request).await.ok()?.ok()
}
