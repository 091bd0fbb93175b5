//! Reading a key set from its URL, or from the one that a discovery document names.
//!
//! Only a 200 with a usable set counts, or a 304 by the very place whose validators were sent. A fetch that a token
//! forces doubts what is in hand: it sends no validators, passes caches by, and where the remembered URL does not bring
//! what is wanted it asks the discovery document again. One that was due may be answered by a cache; where that answer
//! is not newer than the set in hand and differs from it, it is asked again without caches.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use http::header::HeaderMap;
use url::Url;

use crate::validation::key_set::{Key, KeySet};

use super::caching;
use super::discovery::{Discovery, Otherwise, Said};
use super::fetch::{Ask, Fetch, Fetched, Fetching};
use super::fetch_error::FetchError;
use super::schedule::Doubts;
use super::transport::{Answer, Doubt, Request, Transport};
use crate::telemetry::Trigger;

/// One in so many scheduled fetches sends no validators: those of some servers do not change with the content.
const CONDITIONAL_IN_A_ROW: u32 = 9;

/// Of the time that a fetch may take this part is kept from what is asked besides the key set, so that the set which
/// has come is not lost for it.
const KEPT: Duration = Duration::from_millis(20);

/// Keys at a URL that is known from the start, or that a discovery document names.
pub struct HttpKeys {
    transport: Arc<dyn Transport>,
    location: Location,
    begins: Begins,
    known: Mutex<Known>,
}

/// What the first fetch is for.
enum Begins {
    /// A start of the service.
    WithTheService,
    /// A token, so that what caches have may be older than its key.
    WithAToken,
}

enum Location {
    KeySet(Url),
    Discovery(Discovery),
}

/// What is known of earlier answers.
#[derive(Default)]
struct Known {
    last: Option<Last>,
    /// A place whose validators stayed the same when the content changed: they are never sent there again.
    lying: Option<Url>,
}

/// The last set that came with validators from the very URL that was asked.
#[derive(Clone)]
struct Last {
    url: Url,
    /// How to ask whether it has changed.
    validators: HeaderMap,
    keys: Arc<KeySet>,
    fresh_for: Option<Duration>,
    /// How often in a row they may be sent yet.
    may_ask: u32,
}

impl HttpKeys {
    /// Keys at `jwks_uri`.
    pub fn at(jwks_uri: Url, transport: Arc<dyn Transport>) -> Self {
        Self::new(Location::KeySet(jwks_uri), transport)
    }

    /// Keys at the URL that a discovery document names.
    pub fn discovered(discovery: Discovery, transport: Arc<dyn Transport>) -> Self {
        Self::new(Location::Discovery(discovery), transport)
    }

    fn new(location: Location, transport: Arc<dyn Transport>) -> Self {
        Self { transport, location, begins: Begins::WithTheService, known: Mutex::default() }
    }

    /// The same, opened by a token: the first fetch passes caches by, unless the issuer does not answer then.
    #[must_use]
    pub fn for_a_token(self) -> Self {
        Self { begins: Begins::WithAToken, ..self }
    }

    async fn read(&self, ask: &Ask) -> Result<Fetched, FetchError> {
        let doubt = match ask.doubts {
            Doubts::Nothing | Doubts::Validators => Doubt::Nothing,
            Doubts::Everything => Doubt::Forced,
        };
        if matches!(self.begins, Begins::WithAToken) && ask.trigger == Trigger::Startup {
            return self.read_past_caches(ask).await;
        }
        let fetched = self.locate_and_read(doubt, ask).await;
        if doubt == Doubt::Nothing && is_suspect(&fetched, ask) {
            let again = within(ask, self.locate_and_read(Doubt::Caches, ask)).await;
            return again.map_or(fetched, Ok);
        }
        fetched
    }

    async fn read_past_caches(&self, ask: &Ask) -> Result<Fetched, FetchError> {
        // Half of the time is kept for the caches.
        let half = ask.deadline.saturating_duration_since(ask.clock.monotonic()) / 2;
        match tokio::time::timeout(half, self.locate_and_read(Doubt::Caches, ask)).await {
            Ok(Ok(fetched)) => Ok(fetched),
            // The issuer has answered: there are no keys.
            Ok(Err(error @ FetchError::Status { status: ..500, .. })) => Err(error),
            Ok(Err(_)) | Err(_) => self.locate_and_read(Doubt::Nothing, ask).await,
        }
    }

    async fn locate_and_read(&self, doubt: Doubt, ask: &Ask) -> Result<Fetched, FetchError> {
        let discovery = match &self.location {
            Location::KeySet(url) => return self.read_set(url, doubt, ask).await,
            Location::Discovery(discovery) => discovery,
        };
        let remembered = discovery.remembered(&ask.clock);
        let Some(url) = remembered else {
            let url = self.locate(discovery, doubt, ask).await?;
            return self.read_discovered(discovery, &url, doubt, ask).await;
        };
        let fetched = self.read_discovered(discovery, &url, doubt, ask).await;
        if let Ok(fetched) = &fetched {
            if doubt == Doubt::Nothing || ask.wanted.is_met_by(&fetched.keys, ask.published.keys()) {
                return Ok(Fetched { place_asked: false, ..fetched.clone() });
            }
            // Whom it serves does not wait for the document.
            ask.interim.tell(fetched);
        }
        let elsewhere = within(ask, async {
            let Said { jwks_uri: moved_to, otherwise } =
                discovery.ask(&*self.transport, doubt, &ask.clock).await?;
            if moved_to == url {
                // The document confirms the place; what was had there stands.
                discovery.note(&url, fetched.is_ok());
                return match otherwise {
                    Some(otherwise) => self.read_if_wanted(discovery, otherwise, doubt, ask).await,
                    None => Ok(None),
                };
            }
            self.read_discovered(discovery, &moved_to, doubt, ask).await.map(Some)
        });
        match elsewhere.await {
            Some(Some(moved)) => Ok(moved),
            Some(None) | None => fetched,
        }
    }

    /// Reads the set at a place that only a document names which is older by its date. It counts where it has what is
    /// wanted, besides keys that were withdrawn: no key that verifies a good token is passed by for a date alone.
    async fn read_if_wanted(
        &self,
        discovery: &Discovery,
        otherwise: Otherwise,
        doubt: Doubt,
        ask: &Ask,
    ) -> Result<Option<Fetched>, FetchError> {
        let fetched = self.read_set(&otherwise.jwks_uri, doubt, ask).await?;
        let known = |key: &Key| !ask.published.withdrawn().iter().any(|one| one.key.is_material_of(key));
        let unseen = fetched.keys.filtered(known, "it was withdrawn");
        if !ask.wanted.is_met_by(&unseen, ask.published.keys()) {
            return Ok(None);
        }
        discovery.adopt(otherwise);
        Ok(Some(fetched))
    }

    /// Where the document says that the keys are; where it cannot be had, what it said last.
    async fn locate(&self, discovery: &Discovery, doubt: Doubt, ask: &Ask) -> Result<Url, FetchError> {
        let asked = discovery.ask(&*self.transport, doubt, &ask.clock);
        let Some(last) = discovery.last() else { return asked.await.map(|said| said.jwks_uri) };
        // Half of the time is kept for the keys.
        let left = ask.deadline.saturating_duration_since(ask.clock.monotonic()) / 2;
        match tokio::time::timeout(left, asked).await {
            Ok(Err(error @ FetchError::Discovery(_))) => Err(error),
            Ok(Ok(said)) => Ok(said.jwks_uri),
            Ok(Err(_)) | Err(_) => Ok(last),
        }
    }

    async fn read_discovered(
        &self,
        discovery: &Discovery,
        url: &Url,
        doubt: Doubt,
        ask: &Ask,
    ) -> Result<Fetched, FetchError> {
        // Until it has succeeded, so that a fetch that is given up half-way counts as one that failed.
        discovery.note(url, false);
        let fetched = self.read_set(url, doubt, ask).await;
        discovery.note(url, fetched.is_ok());
        fetched
    }

    async fn read_set(&self, url: &Url, doubt: Doubt, ask: &Ask) -> Result<Fetched, FetchError> {
        let conditional = ask.doubts == Doubts::Nothing
            && doubt == Doubt::Nothing
            && self.lock().lying.as_ref() != Some(url);
        let last = self.lock().last.clone().filter(|last| last.url == *url);
        let asked_of = last.as_ref().filter(|last| conditional && last.may_ask > 0);
        let mut request = Request::new(url.clone(), doubt);
        if let Some(last) = asked_of {
            request.headers.extend(last.validators.clone());
        }
        let mut asked = ask.clock.now_micros();
        let mut answer = self.transport.get(request).await?;
        if let Some(last) = asked_of.filter(|_| answer.status == StatusCode::NOT_MODIFIED) {
            if answer.url == *url {
                return Ok(self.confirmed(last, &answer, asked, ask));
            }
            // Another place speaks of an answer of its own, which nobody has seen.
            asked = ask.clock.now_micros();
            answer = self.transport.get(Request::new(url.clone(), doubt)).await?;
        }
        let validators = caching::validators(&answer.headers);
        let here = answer.url == *url;
        let fetched = read_answer(answer, asked, ask)?;
        // What was said elsewhere, behind a redirect, may be said of another place the next time.
        self.remember(url, last, validators.filter(|_| here), &fetched, doubt);
        Ok(fetched)
    }

    /// A 304: the set that came with these validators is still the one.
    fn confirmed(&self, last: &Last, answer: &Answer, asked: i64, ask: &Ask) -> Fetched {
        // What it does not say anew stays as it was (RFC 9111 §4.3.4).
        let fresh_for = caching::fresh_for(&answer.headers).or(last.fresh_for);
        let validators = caching::validators(&answer.headers).unwrap_or_else(|| last.validators.clone());
        let (keys, may_ask) = (Arc::clone(&last.keys), last.may_ask.saturating_sub(1));
        let mut fetched = fetched(Arc::clone(&keys), answer, fresh_for, asked, ask);
        fetched.origin = fetched.origin.of_a_revalidation();
        self.lock().last = Some(Last { url: last.url.clone(), validators, keys, fresh_for, may_ask });
        fetched
    }

    fn remember(
        &self,
        url: &Url,
        before: Option<Last>,
        validators: Option<HeaderMap>,
        fetched: &Fetched,
        doubt: Doubt,
    ) {
        let differs = before.as_ref().is_some_and(|before| !before.keys.same_keys(&fetched.keys));
        let same_validators = before.is_some_and(|before| Some(&before.validators) == validators.as_ref());
        let mut known = self.lock();
        if differs && same_validators {
            known.lying = Some(url.clone());
        }
        // A set that nobody would have seen without a token is looked at once more as a whole.
        let may_ask = if differs && doubt == Doubt::Forced { 0 } else { CONDITIONAL_IN_A_ROW };
        known.last = validators.map(|validators| Last {
            url: url.clone(),
            validators,
            keys: Arc::clone(&fetched.keys),
            fresh_for: fetched.fresh_for,
            may_ask,
        });
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fetch for HttpKeys {
    fn fetch(&self, ask: Ask) -> Fetching<'_> {
        Box::pin(async move { self.read(&ask).await })
    }
}

/// Whether a cache may be to blame for what came: no keys at all, others than are in hand by an answer that is not newer,
/// or one that was withdrawn.
fn is_suspect(fetched: &Result<Fetched, FetchError>, ask: &Ask) -> bool {
    match fetched {
        Ok(fetched) => {
            let stale = ask.published.origin().is_some_and(|in_hand| !fetched.origin.is_newer_than(in_hand));
            let withdrawn =
                |key: &Arc<Key>| ask.published.withdrawn().iter().any(|one| one.key.is_material_of(key));
            (stale && !fetched.keys.same_keys(ask.published.keys()))
                || fetched.keys.keys().iter().any(withdrawn)
        }
        Err(error) => matches!(error, FetchError::KeySet(_) | FetchError::Discovery(_)),
    }
}

fn read_answer(answer: Answer, asked: i64, ask: &Ask) -> Result<Fetched, FetchError> {
    let fresh_for = caching::fresh_for(&answer.headers);
    let mut fetched = fetched(Arc::default(), &answer, fresh_for, asked, ask);
    fetched.keys = Arc::new(KeySet::parse(&answer.into_body()?).map_err(FetchError::KeySet)?);
    Ok(fetched)
}

fn fetched(
    keys: Arc<KeySet>,
    answer: &Answer,
    fresh_for: Option<Duration>,
    asked: i64,
    ask: &Ask,
) -> Fetched {
    let mut place = answer.url.clone();
    place.set_query(None);
    place.set_fragment(None);
    Fetched {
        keys,
        origin: answer.origin(asked, ask.clock.now_micros()),
        place: place.into(),
        caches: caching::traces_of_caches(&answer.headers),
        fresh_for,
        place_asked: true,
    }
}

/// What is asked besides, as long as the fetch may take; `None` where it brought nothing.
async fn within<T>(ask: &Ask, asked: impl Future<Output = Result<T, FetchError>>) -> Option<T> {
    let left = ask.deadline.saturating_duration_since(ask.clock.monotonic()).saturating_sub(KEPT);
    tokio::time::timeout(left, asked).await.ok()?.ok()
}
