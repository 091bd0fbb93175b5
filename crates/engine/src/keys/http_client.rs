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
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use reqwest::{Client, NoProxy, Proxy, StatusCode, redirect};
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio::task::{JoinHandle, spawn_blocking};
use url::{Host, Url};

use super::issuer_http::{BearerTokenFile, ClientCertificate, ForwardProxy, IssuerHttp};
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
        if let Some(text) = certificates::handshake_fault(&error) {
            return FetchError::Transport(text);
        }
        let causes =
            std::iter::successors(Some(&error as &(dyn std::error::Error + 'static)), |error| error.source());
        let text = |cause: &(dyn std::error::Error + 'static)| match cause {
            cause if cause.is::<h2::Error>() => "HTTP/2 error".to_owned(),
            cause => cause.to_string().chars().take(MAX_CAUSE_CHARS).flat_map(char::escape_debug).collect(),
        };
        let causes: Vec<String> = causes.take(MAX_CAUSES).map(text).collect();
        let text = causes.join(": ");
        // The URL is right then.
        let is_of_proxy = causes.iter().any(|cause| cause.contains("tunnel") || cause.contains("socks"));
        FetchError::Transport(match is_of_proxy {
            // Of a name that the proxy alone knows.
            true if text.contains("resolving for socks proxy") => {
                format!("{text}: with socks5h instead of socks5 the forward proxy looks the name up")
            }
            true => format!("the forward proxy (http.proxy, or HTTPS_PROXY of the environment): {text}"),
            false => text,
        })
    }
}

/// A client with the limits and the credentials of one provider.
pub struct HttpClient {
    max_bytes: usize,
    /// The longest that a fetch may take.
    timeout: Duration,
    current: Arc<ArcSwap<Current>>,
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

/// What the current files make.
struct Current {
    client: Client,
    token: Option<BearerToken>,
}

/// A token, and the hosts that get it.
struct BearerToken {
    credentials: HeaderValue,
    hosts: Vec<(String, Option<u16>)>,
    /// Whether requests to this machine may leave it, through a proxy.
    may_leave: bool,
}

impl BearerToken {
    /// Whether a request to this URL gets it: over https, or to this machine and not through a proxy.
    fn is_for(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let is_named = self.hosts.iter().any(|(named, port)| {
            named.eq_ignore_ascii_case(host)
                && port.is_none_or(|port| url.port_or_known_default() == Some(port))
        });
        is_named && (url.scheme() == "https" || (is_loopback(url) && !self.may_leave))
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
        let current = Arc::new(ArcSwap::from_pointee(current(&client_options, &contents)?));
        let watcher = contents.can_change().then(|| {
            let watched = Arc::new(Mutex::new(WatchedFiles::since(files, contents, FILE_POLL)));
            let (client_options, current) = (Arc::new(client_options), Arc::clone(&current));
            let provider_name = provider.to_owned();
            let run = move || {
                watch_files(
                    provider_name.clone(),
                    Arc::clone(&watched),
                    Arc::clone(&client_options),
                    Arc::clone(&current),
                )
            };
            Watcher(supervisor.keep(Task::of(provider, WATCH_FILES), run))
        });
        let requests = Semaphore::new(MAX_REQUESTS);
        let background_requests = Semaphore::new(MAX_BACKGROUND_REQUESTS);
        Ok(Self { max_bytes, timeout, current, requests, background_requests, _watcher: watcher })
    }

    async fn send(&self, request: Request) -> Result<Answer, FetchError> {
        let _permit = self.permit(request.mode).await?;
        let current = self.current.load_full();
        let token = current.token.as_ref().filter(|token| token.is_for(&request.url));
        let mut sending = current.client.get(request.url).headers(request.headers).header(ACCEPT, ACCEPTED);
        if let Some(token) = token {
            // Not sent to the target of a redirect to another host or port.
            sending = sending.header(AUTHORIZATION, token.credentials.clone());
        }
        let mut response = sending.send().await.map_err(|error| self.fetch_error(error))?;
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
    applied: Arc<ArcSwap<Current>>,
) {
    let mut watched = watched.lock().await;
    loop {
        let contents = watched.changed(|error| log_not_reloaded(&provider, &error.into())).await;
        let client_options = Arc::clone(&client_options);
        match spawn_blocking(move || current(&client_options, &contents)).await {
            Ok(Ok(current)) => {
                applied.store(Arc::new(current));
                tracing::info!(%provider, "TLS files reloaded");
            }
            Ok(Err(error)) => log_not_reloaded(&provider, &error),
            Err(_) => log_not_reloaded(&provider, &FetchError::Panicked),
        }
    }
}

fn log_not_reloaded(provider: &str, error: &FetchError) {
    tracing::warn!(%provider, %error, hint = "the previous files stay in use", "files of http not reloaded");
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
    let token = options.bearer_token.as_ref().map(|token| &token.file);
    options.ca_file.iter().chain(pair).chain(token).cloned().collect()
}

fn current(client_options: &ClientOptions, contents: &Contents) -> Result<Current, FetchError> {
    let options = &client_options.options;
    let may_leave = matches!(options.proxy, ForwardProxy::Url(_));
    let token = options.bearer_token.as_ref().map(|token| bearer_token(token, contents, may_leave));
    Ok(Current { client: client(client_options, contents)?, token: token.transpose()? })
}

/// The token of a file.
fn bearer_token(
    token: &BearerTokenFile,
    contents: &Contents,
    may_leave: bool,
) -> Result<BearerToken, FetchError> {
    let BearerTokenFile { file, hosts, named } = token;
    let text = contents.of(file).map(|bytes| bytes.trim_ascii()).unwrap_or_default();
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(byte);
    if text.is_empty() || !text.iter().all(is_token) {
        return Err(unusable(file, "not one bearer token (RFC 6750 §2.1)"));
    }
    let credentials = HeaderValue::from_bytes(&[b"Bearer ", text].concat());
    let mut credentials = credentials.map_err(|_| unusable(file, "not one bearer token (RFC 6750 §2.1)"))?;
    credentials.set_sensitive(true);
    let any_port = hosts.iter().map(|host| (host.clone(), None));
    let with_port = named.iter().map(|(host, port)| (host.clone(), Some(*port)));
    Ok(BearerToken { credentials, hosts: any_port.chain(with_port).collect(), may_leave })
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
    // The library's own reading of the environment would add proxies to these.
    let mut builder = builder.no_proxy();
    for proxy in proxies(&options.proxy)? {
        builder = builder.proxy(proxy);
    }
    Ok(builder.build()?)
}

/// The forward proxies of a client.
fn proxies(configured: &ForwardProxy) -> Result<Vec<Proxy>, FetchError> {
    match configured {
        ForwardProxy::None => Ok(Vec::new()),
        ForwardProxy::Url(url) => {
            Ok(vec![Proxy::all(url.with_credentials().clone())?.no_proxy(NoProxy::from_env())])
        }
        ForwardProxy::Environment => {
            // Go and curl do not send requests to this machine through a proxy, or do not if NO_PROXY says so.
            let without =
                variable(["NO_PROXY", "no_proxy"]).map_or_else(String::new, |(_, hosts)| no_proxy(&hosts));
            let without =
                NoProxy::from_string(&format!("{without}localhost,127.0.0.0/8,::1,::ffff:127.0.0.0/104"));
            let http = environment_proxy(["HTTP_PROXY", "http_proxy"])?.map(Proxy::http).transpose()?;
            let https = environment_proxy(["HTTPS_PROXY", "https_proxy"])?.map(Proxy::https).transpose()?;
            Ok([http, https].into_iter().flatten().map(|proxy| proxy.no_proxy(without.clone())).collect())
        }
    }
}

/// The hosts of NO_PROXY as the library reads them, each with a comma after it: between them may be spaces as in curl, before
/// one `*.`, and behind one a port as in Go, which is ignored.
fn no_proxy(hosts: &str) -> String {
    let hosts = hosts.split([',', ' ', '\t']).filter(|host| !host.is_empty());
    let hosts = hosts.map(|host| {
        let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
        match host.rsplit_once(':') {
            Some((name, port)) if !name.contains(':') && port.bytes().all(|byte| byte.is_ascii_digit()) => {
                name
            }
            _ => host,
        }
    });
    hosts.map(|host| format!("{host},")).collect()
}

/// The schemes of a proxy's URL: over HTTP, and SOCKS (RFC 1928) with the addresses or the names of hosts.
pub const PROXY_SCHEMES: [&str; 4] = ["http", "https", "socks5", "socks5h"];

/// The URL in the first of these variables that is set and not empty. As in Go and curl, the scheme is http if there is none.
fn environment_proxy(names: [&'static str; 2]) -> Result<Option<Url>, FetchError> {
    let Some((name, value)) = variable(names) else { return Ok(None) };
    let text = if value.contains("://") { value } else { format!("http://{value}") };
    let url = Url::parse(&text).ok().filter(|url| PROXY_SCHEMES.contains(&url.scheme()) && url.has_host());
    let url = url.ok_or_else(|| {
        FetchError::Transport(format!(
            "{name} of the environment is not the http, https, socks5 or socks5h URL of a proxy: correct it, or set `proxy: none`"
        ))
    });
    url.map(Some)
}

fn variable(names: [&'static str; 2]) -> Option<(&'static str, String)> {
    let read = |name| Some((name, std::env::var(name).ok()?.trim().to_owned()));
    names.into_iter().filter_map(read).find(|(_, value)| !value.is_empty())
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        None => false,
    }
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
