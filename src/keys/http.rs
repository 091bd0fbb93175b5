//! Reading a key set from its URL, or from the one that a discovery document names.
//!
//! Only a 200 with a usable set counts, or a 304 where the set of a 200 is in hand; anything else is a
//! failed fetch. Nothing is followed to another host, nothing leads from https to http, and what is read
//! is bounded after decompression.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::header::{ACCEPT, CACHE_CONTROL, HeaderMap, HeaderValue};
use reqwest::{Certificate, Client, ClientBuilder, Identity, NoProxy, Proxy, Response, StatusCode, redirect};
use tokio::task::spawn_blocking;
use url::Url;

use crate::config::{ClientCertificate, IssuerHttp};
use crate::validation::key_set::KeySet;

use super::caching;
use super::discovery::Discovery;
use super::fetch::{Fetch, FetchError, Fetched, FetchedKeys, Fetching, FileStamp};
use super::schedule::Trigger;

/// Redirects are followed this often, on the same host.
const MAX_REDIRECTS: usize = 5;

/// Of an error's causes this many are told, each in so many characters.
const MAX_CAUSES: usize = 8;
const MAX_CAUSE_CHARS: usize = 120;

/// Keys at a URL that is known from the start, or that a discovery document names.
pub struct HttpKeys {
    /// Shared by all realms of a provider.
    http: Arc<HttpReader>,
    location: Location,
    last: Mutex<Option<Last>>,
}

enum Location {
    KeySet(Url),
    Discovery(Discovery),
}

/// Where the set in hand came from, and what was said about it there.
#[derive(Clone)]
struct Last {
    url: Url,
    /// How to ask whether it has changed.
    validators: HeaderMap,
    fresh_for: Option<Duration>,
}

impl HttpKeys {
    /// Keys at `jwks_uri`.
    pub fn at(jwks_uri: Url, http: Arc<HttpReader>) -> Self {
        Self { http, location: Location::KeySet(jwks_uri), last: Mutex::new(None) }
    }

    /// Keys at the URL that a discovery document names.
    pub fn discovered(discovery: Discovery, http: Arc<HttpReader>) -> Self {
        Self { http, location: Location::Discovery(discovery), last: Mutex::new(None) }
    }

    async fn read(&self, trigger: Trigger) -> Result<Fetched, FetchError> {
        match &self.location {
            Location::KeySet(url) => self.read_set(url, trigger).await,
            Location::Discovery(discovery) => {
                let found = discovery.take(&self.http, trigger).await?;
                let fetched = self.read_set(&found.jwks_uri, trigger).await?;
                discovery.put_back(found);
                Ok(fetched)
            }
        }
    }

    async fn read_set(&self, url: &Url, trigger: Trigger) -> Result<Fetched, FetchError> {
        let last = self.last().clone().filter(|last| last.url == *url);
        let ask = last.as_ref().map(|last| last.validators.clone()).unwrap_or_default();
        let response = self.http.send(url.clone(), ask, trigger).await?;
        let at_home = response.url() == url;
        let fresh_for = caching::fresh_for(response.headers());
        let validators = caching::validators(response.headers());
        if let Some(last) = last.filter(|_| response.status() == StatusCode::NOT_MODIFIED) {
            // What it does not say anew stays as it was (RFC 9111 §4.3.4).
            let fresh_for = fresh_for.or(last.fresh_for);
            let validators = validators.unwrap_or(last.validators);
            *self.last() = Some(Last { url: last.url, validators, fresh_for });
            return Ok(Fetched { keys: FetchedKeys::NotModified, fresh_for });
        }
        let body = self.http.body(response).await?;
        let keys = KeySet::parse(&body).map_err(FetchError::KeySet)?;
        // What was said elsewhere, behind a redirect, may be said of another place the next time.
        let here = validators.filter(|_| at_home);
        *self.last() = here.map(|validators| Last { url: url.clone(), validators, fresh_for });
        Ok(Fetched { keys: FetchedKeys::Set(keys), fresh_for })
    }

    fn last(&self) -> MutexGuard<'_, Option<Last>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fetch for HttpKeys {
    fn fetch(&self, trigger: Trigger) -> Fetching<'_> {
        Box::pin(self.read(trigger))
    }
}

impl From<reqwest::Error> for FetchError {
    /// reqwest's own text without the URL, and its causes, which are what an operator needs. What the other
    /// side wrote into a GOAWAY is left out, and names of its certificate are cut short.
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let causes =
            std::iter::successors(Some(&error as &(dyn std::error::Error + 'static)), |error| error.source());
        let text = |cause: &(dyn std::error::Error + 'static)| match cause {
            cause if cause.is::<h2::Error>() => "HTTP/2 broke off".to_owned(),
            cause => cause.to_string().chars().take(MAX_CAUSE_CHARS).flat_map(char::escape_debug).collect(),
        };
        FetchError::Transport(causes.take(MAX_CAUSES).map(text).collect::<Vec<_>>().join(": "))
    }
}

/// A client with the bounds and the credentials of one provider.
pub struct HttpReader {
    options: IssuerHttp,
    max_bytes: usize,
    made: Mutex<Made>,
}

/// A client, and the state of the files that it was made from.
struct Made {
    client: Client,
    stamps: Vec<Option<FileStamp>>,
}

impl HttpReader {
    /// A client that reads at most `max_bytes` of an answer. The files of `options` are read now, and again
    /// when they have changed.
    ///
    /// On a machine without certificates of authorities, such as a bare container, it reaches http
    /// alone unless `ca_file` is given, and the log says so.
    ///
    /// # Errors
    /// A file cannot be read or does not hold what it should.
    pub fn new(options: IssuerHttp, max_bytes: usize) -> Result<Self, FetchError> {
        let client = client(&options)?;
        // Nothing is known of the files' state when they were read: the first fetch reads them again.
        Ok(Self { options, max_bytes, made: Mutex::new(Made { client, stamps: Vec::new() }) })
    }

    /// The body of a 200.
    ///
    /// # Errors
    /// Any other status, a broken connection, or a body over the limit.
    pub async fn get(&self, url: Url, trigger: Trigger) -> Result<Vec<u8>, FetchError> {
        let response = self.send(url, HeaderMap::new(), trigger).await?;
        self.body(response).await
    }

    async fn send(&self, url: Url, mut headers: HeaderMap, trigger: Trigger) -> Result<Response, FetchError> {
        const REVALIDATE: HeaderValue = HeaderValue::from_static("no-cache");
        const ACCEPTED: HeaderValue = HeaderValue::from_static("application/jwk-set+json, application/json");
        if matches!(trigger, Trigger::Forced(_)) {
            // A cache on the way may have the very answer under which the token failed (RFC 9111 §5.2.1.4).
            headers.insert(CACHE_CONTROL, REVALIDATE);
        }
        let request = self.client().await.get(url).headers(headers).header(ACCEPT, ACCEPTED);
        Ok(request.send().await?)
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, FetchError> {
        if response.status() != StatusCode::OK {
            let status = response.status();
            // RFC 9110 §15.6.4, RFC 6585 §4: these alone are about time.
            let busy = matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS);
            let retry_after = busy.then(|| caching::retry_after(response.headers())).flatten();
            return Err(FetchError::Status { status: status.as_u16(), retry_after });
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

    /// The client for the files as they are now; the one before where they cannot be used.
    async fn client(&self) -> Client {
        let mut stamps = Vec::new();
        for file in files(&self.options) {
            stamps.push(FileStamp::of(file).await);
        }
        if self.made().stamps == stamps {
            return self.made().client.clone();
        }
        let options = self.options.clone();
        let made = spawn_blocking(move || client(&options)).await;
        let made = made.unwrap_or_else(|error| Err(FetchError::TlsFile(error.to_string())));
        let mut before = self.made();
        before.stamps = stamps;
        match made {
            Ok(client) => before.client = client,
            Err(error) => tracing::warn!(%error, "the files before the change keep being used"),
        }
        before.client.clone()
    }

    fn made(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn files(options: &IssuerHttp) -> impl Iterator<Item = &Path> {
    let certificate = options.client_certificate.as_ref();
    let pair =
        certificate.into_iter().flat_map(|ClientCertificate { cert_file, key_file }| [cert_file, key_file]);
    options.ca_file.iter().chain(pair).map(AsRef::as_ref)
}

fn client(options: &IssuerHttp) -> Result<Client, FetchError> {
    let builder = || {
        let builder = Client::builder()
            .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::custom(follow))
            // Fetches are minutes apart, and a kept connection whose other end died without a word would
            // cost the one that matters its time.
            .pool_max_idle_per_host(0);
        match &options.proxy {
            None => Ok(builder.no_proxy()),
            Some(proxy) => {
                let proxy = Proxy::all(proxy.with_credentials().clone())?.no_proxy(NoProxy::from_env());
                Ok::<_, FetchError>(builder.proxy(proxy))
            }
        }
    };
    // Each file by itself first, so that what is wrong is told of the right one.
    let usable = |builder: ClientBuilder, file: &Path| {
        builder.build().map(drop).map_err(|error| unusable(file, &FetchError::from(error).to_string()))
    };
    let mut configured = builder()?;
    if let Some(file) = &options.ca_file {
        let authorities = Certificate::from_pem_bundle(&read(file)?).unwrap_or_default();
        if authorities.is_empty() {
            return Err(unusable(file, "no certificate in PEM form"));
        }
        usable(builder()?.tls_certs_only(authorities.clone()), file)?;
        configured = configured.tls_certs_only(authorities);
    }
    if let Some(ClientCertificate { cert_file, key_file }) = &options.client_certificate {
        let pem = [read(cert_file)?, b"\n".to_vec(), read(key_file)?].concat();
        let identity = Identity::from_pem(&pem)
            .map_err(|_| unusable(cert_file, "no certificate in PEM form, or no private key with it"))?;
        usable(builder()?.tls_certs_only([]).identity(identity.clone()), cert_file)?;
        configured = configured.identity(identity);
    }
    match configured.build() {
        Err(error) if options.ca_file.is_none() && options.client_certificate.is_none() => {
            let error = FetchError::from(error);
            tracing::warn!(%error, "no certificates to check https issuers with: install ca-certificates");
            Ok(builder()?.tls_certs_only([]).build()?)
        }
        made => Ok(made?),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, FetchError> {
    std::fs::read(file).map_err(|error| unusable(file, &error.kind().to_string()))
}

fn unusable(file: &Path, what: &str) -> FetchError {
    FetchError::TlsFile(format!("{}: {what}", file.display()))
}

/// Only within a host, and never from https to http; another port only with the step to https.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let allowed = attempt.previous().last().is_some_and(|from| {
        let to = attempt.url();
        let same_port = from.port_or_known_default() == to.port_or_known_default();
        from.host() == to.host()
            && match (from.scheme(), to.scheme()) {
                ("http", "https") => true,
                (from, to) => from == to && same_port,
            }
    });
    if allowed && attempt.previous().len() <= MAX_REDIRECTS { attempt.follow() } else { attempt.stop() }
}
