//! The HTTP client that reaches issuers: TLS, proxy, bounds, and what went wrong in few words.
//!
//! Nothing is followed to another host, nothing leads from https to http, what is read is bounded after
//! decompression, requests of one provider at one time are bounded, and its names are resolved within a share of
//! threads of its own. Files of certificates and keys are followed: what is taken of them has come to rest, and a request
//! waits for none of them.
//!
//! # Architecture invariant
//! The one home of `reqwest`.

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
use super::transport::{Answer, Doubt, Getting, Request, Transport};
use crate::files::{Contents, FileSet, Followed, Unreadable};
use crate::supervise::{Supervisor, Task};

/// Redirects are followed this often, on the same host.
const MAX_REDIRECTS: usize = 5;

/// Of an error's causes this many are told, each in so many characters.
const MAX_CAUSES: usize = 8;
const MAX_CAUSE_CHARS: usize = 120;

/// Requests of one provider, all of its realms together, that may be under way at one time.
const MAX_UNDER_WAY: usize = 48;

/// Of these, the ones that no token waits for.
const MAX_IN_BACKGROUND: usize = 40;

/// How often files of certificates are looked at.
const FILE_POLL: Duration = Duration::from_secs(2);

/// The task that follows them.
const FOLLOW_FILES: &str = "follow certificate files";

/// Names of one provider that may be looked up at one time, each on a thread: the system's resolver blocks.
const MAX_LOOKUPS: usize = 4;

const ACCEPTED: HeaderValue = HeaderValue::from_static("application/jwk-set+json, application/json");

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
pub struct HttpClient {
    max_bytes: usize,
    /// The longest that one fetch may take.
    timeout: Duration,
    client: Arc<ArcSwap<Client>>,
    under_way: Semaphore,
    in_background: Semaphore,
    /// Who exchanges the client when the files have changed that it is made from.
    _follower: Option<Follower>,
}

/// A task that ends with the client.
struct Follower(JoinHandle<()>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a client is made of, besides the contents of files.
struct Recipe {
    options: IssuerHttp,
    lookups: Arc<Lookups>,
    timeout: Duration,
}

impl HttpClient {
    /// A client of this provider that reads at most `max_bytes` of an answer. The files of `options` are read now, and
    /// followed from then on. Blocks, and needs a tokio runtime.
    ///
    /// On a machine without certificates of authorities, such as a bare container, it reaches http
    /// alone unless `ca_file` is given, and the log says so.
    ///
    /// # Errors
    /// A file cannot be read or does not hold what it should.
    pub fn new(
        provider: &str,
        options: IssuerHttp,
        max_bytes: usize,
        timeout: Duration,
        supervisor: &Supervisor,
    ) -> Result<Self, FetchError> {
        let lookups = Arc::new(Lookups(Arc::new(Semaphore::new(MAX_LOOKUPS))));
        let files = FileSet::new(files(&options), certificates::MAX_FILE_BYTES);
        let recipe = Recipe { options, lookups, timeout };
        let contents = files.read_regular()?;
        let client = Arc::new(ArcSwap::from_pointee(client(&recipe, &contents)?));
        let follower = contents.can_change().then(|| {
            let followed = Arc::new(Mutex::new(Followed::since(files, contents, FILE_POLL)));
            let (recipe, client) = (Arc::new(recipe), Arc::clone(&client));
            let owner = provider.to_owned();
            let follow = move || {
                follow_files(owner.clone(), Arc::clone(&followed), Arc::clone(&recipe), Arc::clone(&client))
            };
            Follower(supervisor.keep(Task::of(provider, FOLLOW_FILES), follow))
        });
        let under_way = Semaphore::new(MAX_UNDER_WAY);
        let in_background = Semaphore::new(MAX_IN_BACKGROUND);
        Ok(Self { max_bytes, timeout, client, under_way, in_background, _follower: follower })
    }

    async fn send(&self, request: Request) -> Result<Answer, FetchError> {
        let _place = self.place(request.doubt).await?;
        let client = self.client.load_full();
        let sent = client.get(request.url).headers(request.headers).header(ACCEPT, ACCEPTED).send();
        let mut response = sent.await.map_err(|error| self.told(error))?;
        let (status, url) = (response.status(), response.url().clone());
        let headers = std::mem::take(response.headers_mut());
        let mut body = Vec::new();
        // Nobody reads another answer's body.
        while let Some(chunk) = if status == StatusCode::OK {
            response.chunk().await.map_err(|error| self.told(error))?
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

    /// Silence is told as such, wherever it was met.
    fn told(&self, error: reqwest::Error) -> FetchError {
        if error.is_timeout() { FetchError::TimedOut(self.timeout) } else { error.into() }
    }

    /// What a token waits for finds a place before what was merely due.
    async fn place(
        &self,
        doubt: Doubt,
    ) -> Result<(SemaphorePermit<'_>, Option<SemaphorePermit<'_>>), FetchError> {
        let background = match doubt {
            Doubt::Forced => None,
            Doubt::Nothing | Doubt::Caches => {
                Some(self.in_background.acquire().await.map_err(|_| FetchError::BrokeOff)?)
            }
        };
        let place = self.under_way.acquire().await.map_err(|_| FetchError::BrokeOff)?;
        Ok((place, background))
    }
}

/// Exchanges the client whenever the files have changed and come to rest. Files that cannot be used change nothing.
async fn follow_files(
    provider: String,
    followed: Arc<Mutex<Followed>>,
    recipe: Arc<Recipe>,
    current: Arc<ArcSwap<Client>>,
) {
    let mut followed = followed.lock().await;
    loop {
        let contents = followed.changed(|error| kept(&provider, &error.into())).await;
        let recipe = Arc::clone(&recipe);
        match spawn_blocking(move || client(&recipe, &contents)).await {
            Ok(Ok(client)) => {
                current.store(Arc::new(client));
                tracing::info!(%provider, "the changed files of certificates are used from now on");
            }
            Ok(Err(error)) => kept(&provider, &error),
            Err(_) => kept(&provider, &FetchError::BrokeOff),
        }
    }
}

fn kept(provider: &str, error: &FetchError) {
    tracing::warn!(%provider, %error, "the files before the change keep being used");
}

impl From<Unreadable> for FetchError {
    fn from(error: Unreadable) -> Self {
        FetchError::TlsFile(error.to_string())
    }
}

impl Transport for HttpClient {
    fn get(&self, request: Request) -> Getting<'_> {
        Box::pin(self.send(request))
    }
}

/// The system's resolver within a share of threads: names that are never answered hold up their own provider alone.
struct Lookups(Arc<Semaphore>);

impl Resolve for Lookups {
    fn resolve(&self, name: Name) -> Resolving {
        let share = Arc::clone(&self.0);
        Box::pin(async move {
            let place = share.acquire_owned().await?;
            let addresses = spawn_blocking(move || {
                let addresses =
                    (name.as_str(), 0).to_socket_addrs().map(Iterator::collect::<Vec<SocketAddr>>);
                // The place is given back when the thread is, not when somebody gives up.
                drop(place);
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

fn client(recipe: &Recipe, contents: &Contents) -> Result<Client, FetchError> {
    let Recipe { options, lookups, timeout } = recipe;
    let builder = Client::builder()
        .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::custom(follow))
        .dns_resolver(Arc::clone(lookups))
        // reqwest's own reads the clock in a way that panics before 1970.
        .tls_backend_preconfigured(tls(options, contents)?)
        // Shared by the addresses of a name: one that is dead leaves time for the others.
        .connect_timeout(*timeout / 4 * 3)
        // Fetches are minutes apart, and a kept connection whose other end died without a word would
        // cost the one that matters its time.
        .pool_max_idle_per_host(0);
    let builder = match &options.proxy {
        None => builder.no_proxy(),
        Some(proxy) => {
            builder.proxy(Proxy::all(proxy.with_credentials().clone())?.no_proxy(NoProxy::from_env()))
        }
    };
    Ok(builder.build()?)
}

/// Who is trusted and what is shown. Each file by itself, so that what is wrong is told of the right one.
fn tls(options: &IssuerHttp, contents: &Contents) -> Result<ClientTls, FetchError> {
    let read = |file: &Path| contents.of(file).map(|bytes| &**bytes).unwrap_or_default();
    let shown = options.client_certificate.as_ref().map(|ClientCertificate { cert_file, key_file }| {
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
        None => match Trusted::by_the_system() {
            Err(error) if shown.is_none() => {
                tracing::warn!(%error, "no certificates to check https issuers with: install ca-certificates");
                Trusted::by(&[]).map_err(FetchError::Transport)?
            }
            trusted => trusted.map_err(FetchError::Transport)?,
        },
    };
    certificates::client(trusted, shown.transpose()?).map_err(FetchError::Transport)
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
