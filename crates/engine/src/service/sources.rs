//! The source of a provider's keys: created from its configuration, fetched once to check that it answers, and turned
//! into a cache.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;
use tokio::time::timeout;
use url::Url;

use crate::authorizer::KeyedProvider;
use crate::authorizer::{KeySource, ProviderConfig};
use crate::keys::RefreshPolicy;
use crate::keys::budget::Budget;
use crate::keys::discovery::Discovery;
use crate::keys::fetch::{ChangeFuture, Fetch, FetchContext, FetchFuture, Fetched, FileKeys, fetch_within};
use crate::keys::folder::FileThreads;
use crate::keys::http::HttpKeys;
use crate::keys::http_client::HttpClient;
use crate::keys::names::{RealmName, RealmNames};
use crate::keys::snapshot::SnapshotFile;
use crate::keys::{KeyCache, KeyCacheContext, MAX_SNAPSHOT_WAIT};
use crate::supervise::Tasks;
use crate::validation::provider::{Provider, SelectedBy};

use super::ServiceError;

/// How long a cache may take to record an answer that was received already: it waits for its snapshot first.
const RECORD_TIMEOUT: Duration = MAX_SNAPSHOT_WAIT.saturating_add(Duration::from_secs(1));

/// A realm of a template.
#[derive(Clone)]
pub(super) struct Realm {
    pub(super) name: RealmName,
    /// Shared by all realms: it has the trusted authorities.
    pub(super) http: Arc<HttpClient>,
    /// Shared by all realms: their tokens make this service fetch from the same issuer.
    pub(super) budget: Arc<Budget>,
    /// Shared by all realms: their snapshots are on the same disk.
    pub(super) files: FileThreads,
}

/// The source of one issuer's keys.
struct Source {
    fetch: Arc<dyn Fetch>,
    /// Its URL or path, which a snapshot must match.
    location: String,
}

/// A provider of one issuer whose source has answered with keys.
pub(super) struct Answered {
    config: ProviderConfig,
    realm: Option<Realm>,
    source: Source,
}

impl Answered {
    /// Fetches from the source once, within the provider's timeout. Nothing is counted, logged or written.
    ///
    /// # Errors
    /// Why there are no keys: the error of the fetch, or of creating an HTTP client.
    pub(super) async fn fetch(
        config: ProviderConfig,
        realm: Option<Realm>,
        context: KeyCacheContext,
    ) -> Result<Self, String> {
        let (source, fetched) = fetch_once(&config, realm.as_ref(), &context).await?;
        let Source { fetch, location } = source;
        let first = Mutex::new(Some(fetched));
        let source = Source { fetch: Arc::new(PrefetchedSource { first, rest: fetch }), location };
        Ok(Self { config, realm, source })
    }

    /// The configuration of this issuer.
    pub(super) fn config(&self) -> &ProviderConfig {
        &self.config
    }

    /// The realm, if the provider is a template.
    pub(super) fn realm(&self) -> Option<&RealmName> {
        self.realm.as_ref().map(|realm| &realm.name)
    }

    /// The provider, with a cache that has recorded the answer. `before` is a cache of the same source, `known` one
    /// of the same issuer, whatever its source.
    ///
    /// # Errors
    /// Why the cache did not record it.
    pub(super) async fn keyed(
        self,
        before: Option<&KeyCache>,
        known: Option<&KeyCache>,
        context: &KeyCacheContext,
    ) -> Result<KeyedProvider, String> {
        let Self { config, realm, source } = self;
        let keys = cache(&config, realm.as_ref(), source, before, context);
        if let Some(known) = known {
            keys.learn_from(known);
        }
        let end = timeout(RECORD_TIMEOUT, keys.first_fetch_ended()).await;
        match keys.status().last_error {
            Some(error) => Err(error.to_string()),
            None if end.is_err() || !keys.has_keys() => Err("its answer was not recorded in time".to_owned()),
            None => Ok(keyed(&config, realm.map(|realm| realm.name), Arc::new(keys))),
        }
    }
}

/// Fetches from the source of a provider once, within its timeout. Nothing is counted, logged or written.
///
/// # Errors
/// Why there are no keys: the error of the fetch, or of creating an HTTP client.
async fn fetch_once(
    config: &ProviderConfig,
    realm: Option<&Realm>,
    context: &KeyCacheContext,
) -> Result<(Source, Fetched), String> {
    let source = match Source::of(config, realm, context) {
        Ok(Some(source)) => source,
        Ok(None) => return Err("its keys are in the configuration".to_owned()),
        Err(error) => return Err(error.to_string()),
    };
    let limit = config.refresh.timeout;
    let fetched = fetch_within(limit, &*source.fetch, FetchContext::first(&context.clock, limit)).await;
    Ok((source, fetched.map_err(|error| error.to_string())?))
}

/// Fetches the keys of a provider of one issuer once. See [`fetch_once`].
pub(super) async fn fetch_keys(
    config: &ProviderConfig,
    context: &KeyCacheContext,
) -> Result<Fetched, String> {
    fetch_once(config, None, context).await.map(|(_, fetched)| fetched)
}

/// A source whose first answer was received already.
struct PrefetchedSource {
    first: Mutex<Option<Fetched>>,
    rest: Arc<dyn Fetch>,
}

impl Fetch for PrefetchedSource {
    fn fetch(&self, context: FetchContext) -> FetchFuture<'_> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        match first {
            Some(first) => Box::pin(async { Ok(first) }),
            None => self.rest.fetch(context),
        }
    }

    fn change(&self) -> Option<ChangeFuture<'_>> {
        self.rest.change()
    }
}

impl Source {
    /// `None` if the keys are in the configuration.
    fn of(
        config: &ProviderConfig,
        realm: Option<&Realm>,
        context: &KeyCacheContext,
    ) -> Result<Option<Self>, ServiceError> {
        let RefreshPolicy { max_bytes, interval, .. } = config.refresh;
        let http = || realm.map_or_else(|| http_client(config, context), |realm| Ok(Arc::clone(&realm.http)));
        let key_use = config.provider.selected_by.key_use();
        // Realms are opened by tokens.
        let http_keys = |keys: HttpKeys| {
            Arc::new(if realm.is_some() { keys.opened_by_token() } else { keys }.of_use(key_use))
        };
        let (fetch, location): (Arc<dyn Fetch>, String) = match &config.keys {
            KeySource::Inline(_) => return Ok(None),
            KeySource::File(path) => {
                let keys = FileKeys::at(path, max_bytes).of_use(key_use);
                (Arc::new(keys), path.display().to_string())
            }
            KeySource::JwksUri(urls) => {
                let location: Vec<&str> = urls.iter().map(Url::as_str).collect();
                (http_keys(HttpKeys::at(urls.clone(), http()?)), location.join(" "))
            }
            KeySource::Discovery(url) => {
                // Half an interval: a forced fetch usually costs one request, a scheduled one reads the document
                // again.
                let discovery = Discovery::new(url.clone(), &config.provider.issuer, interval / 2);
                (http_keys(HttpKeys::discovered(discovery, http()?)), url.to_string())
            }
        };
        Ok(Some(Self { fetch, location }))
    }
}

/// The keys of a provider. They start with those of `before`, a cache of the same source, if there is one.
///
/// # Errors
/// An HTTP client cannot be created from the configuration.
pub(super) fn key_cache(
    config: &ProviderConfig,
    realm: Option<&Realm>,
    before: Option<&KeyCache>,
    context: &KeyCacheContext,
) -> Result<Arc<KeyCache>, ServiceError> {
    let cache = match (&config.keys, Source::of(config, realm, context)?) {
        (_, Some(source)) => cache(config, realm, source, before, context),
        (KeySource::Inline(keys), None) => {
            KeyCache::fixed(&config.provider.name, Arc::clone(keys), context.clone())
        }
        (_, None) => return Err(ServiceError(format!("providers: {}: no keys", config.provider.name))),
    };
    Ok(Arc::new(cache))
}

fn cache(
    config: &ProviderConfig,
    realm: Option<&Realm>,
    source: Source,
    before: Option<&KeyCache>,
    context: &KeyCacheContext,
) -> KeyCache {
    let Provider { name, issuer, .. } = &*config.provider;
    let RefreshPolicy { max_bytes, ref snapshot_dir, .. } = config.refresh;
    let file_name = realm.map_or_else(|| name.clone(), |realm| RealmNames::snapshot_name(name, &realm.name));
    let files = realm.map(|realm| realm.files.clone()).unwrap_or_default();
    let file = snapshot_dir.as_deref().map(|folder| {
        SnapshotFile::new(folder, &file_name, issuer, &source.location, max_bytes).with_threads(&files)
    });
    let key_name = realm.map_or_else(|| name.clone(), |realm| format!("{name}/{}", realm.name));
    let (refresh, mut context) = (config.refresh.clone(), context.clone());
    context.clock_skew = config.provider.clock_skew;
    if realm.is_some() {
        // The failing tasks of one realm do not make the service unready.
        context.tasks = Tasks::default();
    }
    let budget = match realm {
        Some(realm) => Arc::clone(&realm.budget),
        None => before.map(|before| Arc::clone(before.budget())).unwrap_or_default(),
    };
    let cache = KeyCache::fetched(&key_name, refresh, source.fetch, context, before, file, budget);
    if realm.is_some() { cache.temporary() } else { cache }
}

/// A provider of one issuer with its keys.
pub(super) fn keyed(config: &ProviderConfig, realm: Option<RealmName>, keys: Arc<KeyCache>) -> KeyedProvider {
    let ProviderConfig { provider, refresh, ready_without_keys, shared, .. } = config.clone();
    KeyedProvider { provider, realm, shared, keys, refresh, ready_without_keys }
}

/// Whether both have the keys of the same issuer from the same source.
pub(super) fn same_source(a: &ProviderConfig, b: &ProviderConfig) -> bool {
    a.provider.issuer == b.provider.issuer
        && match (&a.keys, &b.keys) {
            (KeySource::JwksUri(a), KeySource::JwksUri(b)) => a == b,
            (KeySource::Discovery(a), KeySource::Discovery(b)) => a == b,
            (KeySource::File(a), KeySource::File(b)) => a == b,
            (KeySource::Inline(a), KeySource::Inline(b)) => a.same_keys(b),
            _ => false,
        }
}

/// The HTTP client of a provider.
///
/// # Errors
/// It cannot be created from the configuration.
pub(super) fn http_client(
    config: &ProviderConfig,
    context: &KeyCacheContext,
) -> Result<Arc<HttpClient>, ServiceError> {
    let RefreshPolicy { max_bytes, timeout, .. } = config.refresh;
    let name = &config.provider.name;
    let supervisor = context.supervisor();
    let mut http = config.http.clone();
    if let Some(token) = &mut http.bearer_token {
        token.named.extend(named_hosts(config));
    }
    let client = run_blocking(|| HttpClient::new(name, http, max_bytes, timeout, &supervisor));
    client.map(Arc::new).map_err(|error| {
        ServiceError(format!("providers: {}: no HTTP client: {error}", config.provider.name))
    })
}

/// The hosts that the configuration of this provider names, in the form in which a URL has them.
fn named_hosts(config: &ProviderConfig) -> Vec<(String, u16)> {
    // A trust domain is no host.
    let issuer = Some(&config.provider).filter(|provider| provider.selected_by == SelectedBy::Issuer);
    let issuer = issuer.and_then(|provider| Url::parse(&provider.issuer).ok());
    let urls = config.keys.urls().iter().chain(&issuer);
    urls.filter_map(|url| {
        Some((url.host_str()?.trim_matches(['[', ']']).to_owned(), url.port_or_known_default()?))
    })
    .collect()
}

/// Runs blocking work while other threads take over this one's tasks.
fn run_blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(work),
        // A runtime of one thread, in a test or a command.
        _ => work(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::keys::IssuerHttp;
    use crate::validation::algorithm::Algorithm;
    use crate::validation::key_set::KeySet;
    use crate::validation::provider::{Audiences, ClaimPath, TokenSource, TokenTypes};

    fn config() -> ProviderConfig {
        let provider = Provider {
            name: "p".to_owned(),
            issuer: "https://sso.example.com".to_owned(),
            selected_by: SelectedBy::Issuer,
            audiences: Audiences::Any,
            algorithms: Algorithm::default_set(),
            clock_skew: Duration::ZERO,
            audience_claims: vec![ClaimPath::aud()],
            max_lifetime: None,
            keys_name_issuers: false,
            token_types: TokenTypes::Default,
            required_claims: Vec::new(),
            token_from: vec![TokenSource::default()],
            forward_token: true,
            claim_headers: Vec::new(),
            payload_header: None,
            metadata_claims: Vec::new(),
            realm: None,
        };
        ProviderConfig {
            provider: Arc::new(provider),
            keys: KeySource::JwksUri(vec!["https://sso.example.com/keys".parse().expect("a URL")]),
            http: IssuerHttp::default(),
            refresh: RefreshPolicy { snapshot_dir: Some("/nowhere".into()), ..RefreshPolicy::default() },
            realms: None,
            shared: None,
            ready_without_keys: false,
        }
    }

    const JWKS: &[u8] =
        br#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_recorded_though_the_disk_of_the_snapshot_does_not_respond() {
        let config = config();
        let keys = KeySet::parse(JWKS).expect("a key set");
        let first = Mutex::new(Some(Fetched::local(keys, String::new(), 0, 0)));
        let fetch = Arc::new(PrefetchedSource { first, rest: Arc::new(FileKeys::at(Path::new("/"), 1)) });
        let realm = Realm {
            name: RealmName::new("a").expect("a name"),
            http: http_client(&config, &KeyCacheContext::default()).expect("is made"),
            budget: Arc::default(),
            files: FileThreads::exhausted(),
        };
        let source = Source { fetch, location: "https://sso.example.com/keys".to_owned() };
        let answered = Answered { config, realm: Some(realm), source };
        let recorded = answered.keyed(None, None, &KeyCacheContext::default()).await;
        assert!(recorded.expect("is recorded").keys.has_keys());
    }
}
