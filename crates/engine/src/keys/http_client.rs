//! The HTTP client of issuers: TLS, proxy, limits, and short error messages.
//!
//! No redirect is followed to another host or from https to http. The size of an answer is limited after
//! decompression, and so are the concurrent requests of one provider; its names are resolved on a limited number of
//! threads. Certificate and key files are reloaded when they have changed and settled, and no request waits for this.
//!
//! # Architecture invariant
//! The only module that uses `reqwest`.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT, HeaderValue};
use reqwest::{Client, NoProxy, Proxy, StatusCode, redirect};
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio::task::{JoinHandle, spawn_blocking};

use super::issuer_http::{ClientCertificate, IssuerHttp};
use crate::certificates::{self, ClientTls, PairError, Trusted};

use super::fetch_error::FetchError;
use super::transport::{Answer, Request, RequestMode, ResponseFuture, Transport};
use crate::files::{Contents, FileError, FileSet, WatchedFiles};
use crate::supervise::{Supervisor, Task};

/// The most redirects that are followed, on the same host.
const MAX_REDIRECTS: usize = 5;

/// The most causes of an error that are shown, and the length of each.
const MAX_CAUSES: usize = 8;
const MAX_CAUSE_CHARS: usize = 120;

/// Concurrent requests of one provider, all of its realms together.
const MAX_REQUESTS: usize = 48;

/// How many of them may be without a waiting token.
const MAX_BACKGROUND_REQUESTS: usize = 40;

/// How often certificate files are polled.
const FILE_POLL: Duration = Duration::from_secs(2);

/// The task that polls them.
const WATCH_FILES: &str = "follow certificate files";

/// Concurrent name lookups of one provider, each on a thread: the system's resolver blocks.
const MAX_LOOKUPS: usize = 4;

const ACCEPTED: HeaderValue = HeaderValue::from_static("application/jwk-set+json, application/json");

impl From<reqwest::Error> for FetchError {
    /// reqwest's text without the URL, and its causes, which operators need. The peer's GOAWAY text is omitted, and
    /// names of its certificate are truncated.
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let causes =
            std::iter::successors(Some(&error as &(dyn std::error::Error + 'static)), |error| error.source());
        let text = |cause: &(dyn std::error::Error + 'static)| match cause {
            cause if cause.is::<h2::Error>() => "HTTP/2 error".to_owned(),
            cause => cause.to_string().chars().take(MAX_CAUSE_CHARS).flat_map(char::escape_debug).collect(),
        };
        FetchError::Transport(causes.take(MAX_CAUSES).map(text).collect::<Vec<_>>().join(": "))
    }
}

/// A client with the limits and the credentials of one provider.
pub struct HttpClient {
    max_bytes: usize,
    /// The longest that a fetch may take.
    timeout: Duration,
    client: Arc<ArcSwap<Client>>,
    requests: Semaphore,
    background_requests: Semaphore,
    /// Replaces the client when its files have changed.
    _watcher: Option<Watcher>,
}

/// A task that is aborted with the client.
struct Watcher(JoinHandle<()>);

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a client is built from, besides the contents of files.
struct ClientOptions {
    options: IssuerHttp,
    lookups: Arc<Lookups>,
    timeout: Duration,
}

impl HttpClient {
    /// A client of this provider that reads at most `max_bytes` of an answer. The files of `options` are read now and
    /// watched from then on. Blocks, and needs a tokio runtime.
    ///
    /// On a machine without CA certificates, such as a bare container, it reaches http issuers alone unless `ca_file`
    /// is given, and a warning is logged.
    ///
    /// # Errors
    /// A file cannot be read or is invalid.
    pub fn new(
        provider: &str,
        options: IssuerHttp,
        max_bytes: usize,
        timeout: Duration,
        supervisor: &Supervisor,
    ) -> Result<Self, FetchError> {
        let lookups = Arc::new(Lookups(Arc::new(Semaphore::new(MAX_LOOKUPS))));
        let files = FileSet::new(files(&options), certificates::MAX_FILE_BYTES);
        let client_options = ClientOptions { options, lookups, timeout };
        let contents = files.read_regular()?;
        let client = Arc::new(ArcSwap::from_pointee(client(&client_options, &contents)?));
        let watcher = contents.can_change().then(|| {
            let watched = Arc::new(Mutex::new(WatchedFiles::since(files, contents, FILE_POLL)));
            let (client_options, client) = (Arc::new(client_options), Arc::clone(&client));
            let provider_name = provider.to_owned();
            let run = move || {
                watch_files(
                    provider_name.clone(),
                    Arc::clone(&watched),
                    Arc::clone(&client_options),
                    Arc::clone(&client),
                )
            };
            Watcher(supervisor.keep(Task::of(provider, WATCH_FILES), run))
        });
        let requests = Semaphore::new(MAX_REQUESTS);
        let background_requests = Semaphore::new(MAX_BACKGROUND_REQUESTS);
        Ok(Self { max_bytes, timeout, client, requests, background_requests, _watcher: watcher })
    }

    async fn send(&self, request: Request) -> Result<Answer, FetchError> {
        let _permit = self.permit(request.mode).await?;
        let client = self.client.load_full();
        let sent = client.get(request.url).headers(request.headers).header(ACCEPT, ACCEPTED).send();
        let mut response = sent.await.map_err(|error| self.fetch_error(error))?;
        let (status, url) = (response.status(), response.url().clone());
        let headers = std::mem::take(response.headers_mut());
        let mut body = Vec::new();
        // Bodies of other statuses are not read.
        while let Some(chunk) = if status == StatusCode::OK {
            response.chunk().await.map_err(|error| self.fetch_error(error))?
        } else {
            None
        } {
            if body.len() + chunk.len() > self.max_bytes {
                return Err(FetchError::TooLarge(self.max_bytes));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, url, headers, body })
    }

    /// Reports a timeout as such, wherever it occurred.
    fn fetch_error(&self, error: reqwest::Error) -> FetchError {
        if error.is_timeout() { FetchError::TimedOut(self.timeout) } else { error.into() }
    }

    /// A request that a token waits for is not queued behind scheduled ones.
    async fn permit(
        &self,
        mode: RequestMode,
    ) -> Result<(SemaphorePermit<'_>, Option<SemaphorePermit<'_>>), FetchError> {
        let background = match mode {
            RequestMode::Forced => None,
            RequestMode::Scheduled | RequestMode::NoCache => {
                Some(self.background_requests.acquire().await.map_err(|_| FetchError::Panicked)?)
            }
        };
        let permit = self.requests.acquire().await.map_err(|_| FetchError::Panicked)?;
        Ok((permit, background))
    }
}

/// Replaces the client when the files have changed and settled. Invalid files change nothing.
async fn watch_files(
    provider: String,
    watched: Arc<Mutex<WatchedFiles>>,
    client_options: Arc<ClientOptions>,
    current: Arc<ArcSwap<Client>>,
) {
    let mut watched = watched.lock().await;
    loop {
        let contents = watched.changed(|error| log_not_reloaded(&provider, &error.into())).await;
        let client_options = Arc::clone(&client_options);
        match spawn_blocking(move || client(&client_options, &contents)).await {
            Ok(Ok(client)) => {
                current.store(Arc::new(client));
                tracing::info!(%provider, "TLS files reloaded");
            }
            Ok(Err(error)) => log_not_reloaded(&provider, &error),
            Err(_) => log_not_reloaded(&provider, &FetchError::Panicked),
        }
    }
}

fn log_not_reloaded(provider: &str, error: &FetchError) {
    tracing::warn!(%provider, %error, hint = "the previous files stay in use", "TLS files not reloaded");
}

impl From<FileError> for FetchError {
    fn from(error: FileError) -> Self {
        FetchError::TlsFile(error.to_string())
    }
}

impl Transport for HttpClient {
    fn get(&self, request: Request) -> ResponseFuture<'_> {
        Box::pin(self.send(request))
    }
}

/// The system's resolver on a limited number of threads: names that are never resolved block their own provider
/// alone.
struct Lookups(Arc<Semaphore>);

impl Resolve for Lookups {
    fn resolve(&self, name: Name) -> Resolving {
        let semaphore = Arc::clone(&self.0);
        Box::pin(async move {
            let permit = semaphore.acquire_owned().await?;
            let addresses = spawn_blocking(move || {
                let addresses =
                    (name.as_str(), 0).to_socket_addrs().map(Iterator::collect::<Vec<SocketAddr>>);
                // The permit is released when the thread ends, not when the caller gives up.
                drop(permit);
                addresses
            });
            Ok(Box::new(addresses.await??.into_iter()) as Addrs)
        })
    }
}

fn files(options: &IssuerHttp) -> Vec<PathBuf> {
    let certificate = options.client_certificate.as_ref();
    let pair =
        certificate.into_iter().flat_map(|ClientCertificate { cert_file, key_file }| [cert_file, key_file]);
    options.ca_file.iter().chain(pair).cloned().collect()
}

fn client(client_options: &ClientOptions, contents: &Contents) -> Result<Client, FetchError> {
    let ClientOptions { options, lookups, timeout } = client_options;
    let builder = Client::builder()
        .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::custom(redirect))
        .dns_resolver(Arc::clone(lookups))
        // reqwest's default reads the clock in a way that panics before 1970.
        .tls_backend_preconfigured(tls(options, contents)?)
        // Shared by the addresses of a name: an unreachable one leaves time for the others.
        .connect_timeout(*timeout / 4 * 3)
        // Fetches are minutes apart, and a pooled connection that died silently would delay an urgent fetch.
        .pool_max_idle_per_host(0);
    let builder = match &options.proxy {
        None => builder.no_proxy(),
        Some(proxy) => {
            builder.proxy(Proxy::all(proxy.with_credentials().clone())?.no_proxy(NoProxy::from_env()))
        }
    };
    Ok(builder.build()?)
}

/// The trusted authorities and the client certificate. Each file is read separately, so that an error names the right
/// one.
fn tls(options: &IssuerHttp, contents: &Contents) -> Result<ClientTls, FetchError> {
    let read = |file: &Path| contents.of(file).map(|bytes| &**bytes).unwrap_or_default();
    let certificate = options.client_certificate.as_ref().map(|ClientCertificate { cert_file, key_file }| {
        let chain = certificates::chain(read(cert_file)).map_err(|cause| unusable(cert_file, &cause))?;
        let key = certificates::private_key(read(key_file)).map_err(|cause| unusable(key_file, &cause))?;
        certificates::pair(&chain, key).map_err(|error| match error {
            PairError::Certificate(cause) => unusable(cert_file, &cause),
            PairError::Key(cause) => unusable(key_file, &cause),
            PairError::Mismatch(cause) => unusable(key_file, &format!("{cause} ({})", cert_file.display())),
        })
    });
    let trusted = match &options.ca_file {
        Some(file) => certificates::issuer_authorities(read(file))
            .and_then(|authorities| Trusted::by(&authorities))
            .map_err(|cause| unusable(file, &cause))?,
        None => match Trusted::system() {
            Err(error) if certificate.is_none() => {
                tracing::warn!(%error, hint = "install ca-certificates", "no CA certificates found");
                Trusted::by(&[]).map_err(FetchError::Transport)?
            }
            trusted => trusted.map_err(FetchError::Transport)?,
        },
    };
    certificates::client(trusted, certificate.transpose()?).map_err(FetchError::Transport)
}

fn unusable(file: &Path, message: &str) -> FetchError {
    FetchError::TlsFile(format!("{}: {message}", file.display()))
}

/// Allows redirects within a host, and never from https to http; another port only together with https.
fn redirect(attempt: redirect::Attempt<'_>) -> redirect::Action {
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
