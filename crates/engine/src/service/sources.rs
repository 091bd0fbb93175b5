//! Where a provider's keys come from: the source as it is configured, asked once to see whether it answers,
//! and a cache made of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;
use tokio::time::timeout;

use crate::authorizer::KeyedProvider;
use crate::authorizer::{KeySource, ProviderConfig};
use crate::keys::RefreshPolicy;
use crate::keys::budget::Budget;
use crate::keys::discovery::Discovery;
use crate::keys::fetch::{FetchContext, ChangeFuture, Fetch, Fetched, FetchFuture, FileKeys};
use crate::keys::fetch_error::FetchError;
use crate::keys::folder::FileThreads;
use crate::keys::http::HttpKeys;
use crate::keys::http_client::HttpClient;
use crate::keys::names::{RealmName, RealmNames};
use crate::keys::snapshot::SnapshotFile;
use crate::keys::{KeyCache, KeyCacheContext, MAX_SNAPSHOT_WAIT};
use crate::supervise::Tasks;
use crate::validation::provider::Provider;

use super::ServiceError;

/// How long a cache may take to take in an answer that is there already: it waits for its snapshot first.
const TAKE_IN: Duration = MAX_SNAPSHOT_WAIT.saturating_add(Duration::from_secs(1));

/// One of the issuers that a provider stands for.
#[derive(Clone)]
pub(super) struct Realm {
    pub(super) name: RealmName,
    /// One client for all of them: it holds the authorities that are trusted.
    pub(super) http: Arc<HttpClient>,
    /// It is one issuer that their tokens make us ask.
    pub(super) budget: Arc<Budget>,
    /// Their snapshots are on one disk.
    pub(super) files: FileThreads,
}

/// What fetches the keys of one issuer.
struct Source {
    fetch: Arc<dyn Fetch>,
    /// Where that is: whose a snapshot is.
    place: String,
}

/// A provider of one issuer whose source has answered with keys.
pub(super) struct Answered {
    config: ProviderConfig,
    realm: Option<Realm>,
    source: Source,
}

impl Answered {
    /// Asks the source once, within the provider's own timeout. Nothing is counted, logged or written.
    ///
    /// # Errors
    /// Why there are no keys: what the fetch says, or that no HTTP client can be made.
    pub(super) async fn by(
        config: ProviderConfig,
        realm: Option<Realm>,
        context: KeyCacheContext,
    ) -> Result<Self, String> {
        let Source { fetch, place } = match Source::of(&config, realm.as_ref(), &context) {
            Ok(Some(source)) => source,
            Ok(None) => return Err("its keys stand in the configuration".to_owned()),
            Err(error) => return Err(error.to_string()),
        };
        let limit = config.refresh.timeout;
        let fetch_context = FetchContext::first(&context.clock, limit);
        let fetched = timeout(limit, fetch.fetch(fetch_context)).await;
        let fetched =
            fetched.unwrap_or(Err(FetchError::TimedOut(limit))).map_err(|error| error.to_string())?;
        let first = Mutex::new(Some(fetched));
        let source = Source { fetch: Arc::new(WithFirst { first, rest: fetch }), place };
        Ok(Self { config, realm, source })
    }

    /// The provider of the one issuer.
    pub(super) fn config(&self) -> &ProviderConfig {
        &self.config
    }

    /// Its realm, of a provider that stands for many.
    pub(super) fn realm(&self) -> Option<&RealmName> {
        self.realm.as_ref().map(|realm| &realm.name)
    }

    /// The provider, with a cache that has taken the answer in. `before` is a cache of the same source, `known` one of
    /// the same issuer, whatever its source.
    ///
    /// # Errors
    /// Why the cache did not take it.
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
        let ended = timeout(TAKE_IN, keys.first_fetch_ended()).await;
        match keys.status().last_error {
            Some(error) => Err(error.to_string()),
            None if ended.is_err() || !keys.has_keys() => Err("its answer was not taken in".to_owned()),
            None => Ok(keyed(&config, realm.map(|realm| realm.name), Arc::new(keys))),
        }
    }
}

/// A source whose first answer is there already.
struct WithFirst {
    first: Mutex<Option<Fetched>>,
    rest: Arc<dyn Fetch>,
}

impl Fetch for WithFirst {
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
    /// `None` where the keys stand in the configuration.
    fn of(
        config: &ProviderConfig,
        realm: Option<&Realm>,
        context: &KeyCacheContext,
    ) -> Result<Option<Self>, ServiceError> {
        let RefreshPolicy { max_bytes, interval, .. } = config.refresh;
        let http = || realm.map_or_else(|| http_client(config, context), |realm| Ok(Arc::clone(&realm.http)));
        // A realm is opened by a token.
        let begun = |keys: HttpKeys| Arc::new(if realm.is_some() { keys.opened_by_token() } else { keys });
        let (fetch, place): (Arc<dyn Fetch>, String) = match &config.keys {
            KeySource::Inline(_) => return Ok(None),
            KeySource::File(path) => (Arc::new(FileKeys::at(path, max_bytes)), path.display().to_string()),
            KeySource::JwksUri(url) => (begun(HttpKeys::at(url.clone(), http()?)), url.to_string()),
            KeySource::Discovery(url) => {
                // Half an interval: a forced fetch mostly costs one request, a scheduled one asks the document
                // again.
                let discovery = Discovery::new(url.clone(), &config.provider.issuer, interval / 2);
                (begun(HttpKeys::discovered(discovery, http()?)), url.to_string())
            }
        };
        Ok(Some(Self { fetch, place }))
    }
}

/// The keys of a provider, which begin with those of `before`, a cache of the same source, where there is one.
///
/// # Errors
/// No HTTP client can be made with what the configuration says of it.
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
    let file = snapshot_dir
        .as_deref()
        .map(|folder| SnapshotFile::new(folder, &file_name, issuer, &source.place, max_bytes).with_threads(&files));
    let key_name = realm.map_or_else(|| name.clone(), |realm| format!("{name}/{}", realm.name));
    let (refresh, mut context) = (config.refresh.clone(), context.clone());
    if realm.is_some() {
        // One realm of many takes no traffic away from the others.
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
    let ProviderConfig { provider, refresh, ready_without_keys, .. } = config.clone();
    KeyedProvider { provider, realm, keys, refresh, ready_without_keys }
}

/// Whether both have the keys of the same issuer from the same place.
pub(super) fn same_source(a: &ProviderConfig, b: &ProviderConfig) -> bool {
    a.provider.issuer == b.provider.issuer
        && match (&a.keys, &b.keys) {
            (KeySource::JwksUri(a), KeySource::JwksUri(b))
            | (KeySource::Discovery(a), KeySource::Discovery(b)) => a == b,
            (KeySource::File(a), KeySource::File(b)) => a == b,
            (KeySource::Inline(a), KeySource::Inline(b)) => a.same_keys(b),
            _ => false,
        }
}

/// The client for what a provider fetches.
///
/// # Errors
/// None can be made with what the configuration says of it.
pub(super) fn http_client(
    config: &ProviderConfig,
    context: &KeyCacheContext,
) -> Result<Arc<HttpClient>, ServiceError> {
    let RefreshPolicy { max_bytes, timeout, .. } = config.refresh;
    let name = &config.provider.name;
    let supervisor = context.supervisor();
    let client = aside(|| HttpClient::new(name, config.http.clone(), max_bytes, timeout, &supervisor));
    client.map(Arc::new).map_err(|error| {
        ServiceError(format!("providers: {}: no HTTP client: {error}", config.provider.name))
    })
}

/// Does what reads files while others take over this thread's decisions.
fn aside<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(work),
        // There is one thread alone, that of a test or of a command.
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
    use crate::validation::provider::{Audiences, TokenSource, TokenTypes};

    fn config() -> ProviderConfig {
        let provider = Provider {
            name: "p".to_owned(),
            issuer: "https://sso.example.com".to_owned(),
            audiences: Audiences::Any,
            algorithms: Algorithm::default_set(),
            clock_skew: Duration::ZERO,
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
            keys: KeySource::JwksUri("https://sso.example.com/keys".parse().expect("a URL")),
            http: IssuerHttp::default(),
            refresh: RefreshPolicy { snapshot_dir: Some("/nowhere".into()), ..RefreshPolicy::default() },
            realms: None,
            ready_without_keys: false,
        }
    }

    const JWKS: &[u8] =
        br#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_taken_in_though_the_disk_of_the_snapshot_does_not_answer() {
        let config = config();
        let keys = KeySet::parse(JWKS).expect("a key set");
        let first = Mutex::new(Some(Fetched::locally(keys, String::new(), 0, 0)));
        let fetch = Arc::new(WithFirst { first, rest: Arc::new(FileKeys::at(Path::new("/"), 1)) });
        let realm = Realm {
            name: RealmName::new("a").expect("a name"),
            http: http_client(&config, &KeyCacheContext::default()).expect("is made"),
            budget: Arc::default(),
            files: FileThreads::taken(),
        };
        let source = Source { fetch, place: "https://sso.example.com/keys".to_owned() };
        let answered = Answered { config, realm: Some(realm), source };
        let taken_in = answered.keyed(None, None, &KeyCacheContext::default()).await;
        assert!(taken_in.expect("is taken in").keys.has_keys());
    }
}
