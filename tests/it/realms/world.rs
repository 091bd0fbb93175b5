//! A provider with a realm pattern and its issuer on a paused clock, without a network: the real authorizer and key caches,
//! and an in-memory issuer.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis::access_request::AccessRequest;
use portcullis::authorizer::{
    Authorizer, KeyedProvider, NameStorage, OpenRealm, RealmProviders, RequestPolicy, TokenCacheConfig,
};
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use portcullis::config::{Config, RefreshPolicy};
use portcullis::keys::fetch::{Fetch, FetchContext, FetchFuture, Fetched};
use portcullis::keys::fetch_error::FetchError;
use portcullis::keys::names::RealmNames;
use portcullis::keys::snapshot::SnapshotFile;
use portcullis::keys::{KeyCache, KeyCacheContext};
use portcullis::validation::key_set::KeySet;
use serde_json::json;
use tokio::time::sleep;

use crate::support::{NOW, fixed_clock};

pub const SECOND: Duration = Duration::from_secs(1);

const ISSUER: &str = "https://sso.example.com/realms/{realm}";

/// The issuer of many realms.
#[derive(Clone)]
pub struct World(Arc<Inner>);

struct Inner {
    keys: Mutex<HashMap<String, SigningKey>>,
    /// The key for unknown names; without one they get 404.
    default_key: Mutex<Option<SigningKey>>,
    /// The status of every response while the issuer is down.
    status: Mutex<Option<u16>>,
    latency: Duration,
    fetches: Mutex<BTreeMap<String, usize>>,
    /// Called before a realm is opened.
    opening: Box<dyn Fn(&str) + Send + Sync>,
    folder: Option<PathBuf>,
}

impl World {
    /// With these realms, without snapshots.
    pub fn of(names: &[String]) -> Self {
        Self::with_snapshots(names, None)
    }

    /// The same, with snapshots in this folder.
    pub fn with_snapshots(names: &[String], folder: Option<PathBuf>) -> Self {
        Self::with_callback(names, folder, |_| {})
    }

    /// The same with a callback before a realm is opened.
    pub fn with_callback(
        names: &[String],
        folder: Option<PathBuf>,
        opening: impl Fn(&str) + Send + Sync + 'static,
    ) -> Self {
        let world = Self(Arc::new(Inner {
            keys: Mutex::default(),
            default_key: Mutex::default(),
            status: Mutex::default(),
            latency: Duration::from_millis(50),
            fetches: Mutex::default(),
            opening: Box::new(opening),
            folder,
        }));
        names.iter().for_each(|name| world.publish(name));
        world
    }

    pub fn publish(&self, name: &str) {
        let key = SigningKey::generate("k", SigningAlgorithm::ES256);
        self.0.keys.lock().unwrap().insert(name.to_owned(), key);
    }

    pub fn withdraw(&self, name: &str) -> SigningKey {
        self.0.keys.lock().unwrap().remove(name).expect("is published")
    }

    pub fn republish(&self, name: &str, key: SigningKey) {
        self.0.keys.lock().unwrap().insert(name.to_owned(), key);
    }

    /// Serves keys for every name from now on.
    pub fn serve_any_name(&self) {
        let key = SigningKey::generate("k", SigningAlgorithm::ES256);
        *self.0.default_key.lock().unwrap() = Some(key);
    }

    /// Answers with this status from now on.
    pub fn set_status(&self, status: u16) {
        *self.0.status.lock().unwrap() = Some(status);
    }

    pub fn clear_status(&self) {
        *self.0.status.lock().unwrap() = None;
    }

    /// A valid token of a published realm.
    pub fn token(&self, name: &str) -> String {
        let key = self.0.keys.lock().unwrap().get(name).cloned().expect("is published");
        key.sign(&claims(name))
    }

    /// The number of fetches of a realm.
    pub fn fetches(&self, name: &str) -> usize {
        self.0.fetches.lock().unwrap().get(name).copied().unwrap_or_default()
    }

    /// The total number of fetches.
    pub fn total_fetches(&self) -> usize {
        self.0.fetches.lock().unwrap().values().sum()
    }

    /// An authorizer for the realms that these lines allow.
    pub fn authorizer(&self, lines: &str) -> Arc<Authorizer> {
        let config = configuration(lines);
        Arc::new(self.authorizer_of(&config, &self.template_of(&config, None)))
    }

    pub fn authorizer_of(&self, config: &Config, template: &Arc<RealmProviders>) -> Authorizer {
        let policy = RequestPolicy {
            token_cache: TokenCacheConfig::default(),
            rules: config.rules.clone(),
            limits: config.limits,
            responses: config.responses.clone(),
            trusted_proxies: config.trusted_proxies.clone(),
            trusted_headers: config.trusted_headers.clone(),
        };
        Authorizer::new(Vec::new(), vec![Arc::clone(template)], policy, fixed_clock(), Arc::default())
    }

    pub fn template_of(&self, config: &Config, before: Option<&RealmProviders>) -> Arc<RealmProviders> {
        let storage = self.0.folder.as_deref().map_or(NameStorage::InMemory, names_in);
        self.template_in(config, storage, before)
    }

    /// The same with this storage of names.
    pub fn template_in(
        &self,
        config: &Config,
        storage: NameStorage,
        before: Option<&RealmProviders>,
    ) -> Arc<RealmProviders> {
        let known = before.map(|before| before.known()).unwrap_or_default();
        self.template_with(config, storage, &known, before)
    }

    /// The same, with keys of these realms.
    pub fn template_with(
        &self,
        config: &Config,
        storage: NameStorage,
        known: &[Arc<KeyedProvider>],
        before: Option<&RealmProviders>,
    ) -> Arc<RealmProviders> {
        let template = config.providers[0].clone();
        let realms = template.realms.clone().expect("a template");
        let known = known.iter().map(|old| KeyedProvider {
            shared: None,
            provider: Arc::clone(&old.provider),
            realm: old.realm.clone(),
            keys: Arc::clone(&old.keys),
            refresh: old.refresh.clone(),
            ready_without_keys: old.ready_without_keys,
        });
        RealmProviders::new(template, realms, self.open(), storage, known.collect(), before)
    }

    fn open(&self) -> OpenRealm {
        let world = self.clone();
        let context = KeyCacheContext { clock: fixed_clock(), ..KeyCacheContext::default() };
        Arc::new(move |config, name| {
            (world.0.opening)(name.as_str());
            let file = world.0.folder.as_ref().map(|folder| {
                let file = RealmNames::snapshot_name("keycloak", name);
                SnapshotFile::new(folder, &file, &config.provider.issuer, "there", 1 << 20)
            });
            let policy = config.refresh.clone();
            Some(Arc::new(world.cache(name.as_str(), name.as_str(), policy, context.clone(), file)))
        })
    }

    /// The keys of a realm, under this name in the metrics.
    pub fn keys(&self, label: &str, name: &str, context: KeyCacheContext) -> KeyCache {
        self.cache(label, name, RefreshPolicy::default(), context, None)
    }

    fn cache(
        &self,
        label: &str,
        name: &str,
        policy: RefreshPolicy,
        context: KeyCacheContext,
        file: Option<SnapshotFile>,
    ) -> KeyCache {
        let fetch = Arc::new(RealmKeys { world: self.clone(), name: name.to_owned() });
        KeyCache::fetched(label, policy, fetch, context, None, file, Arc::default()).temporary()
    }
}

/// The list of names in this folder.
pub fn names_in(folder: &Path) -> NameStorage {
    NameStorage::File(RealmNames::new(folder, "keycloak", ISSUER))
}

/// The configuration of a provider with a realm pattern and these additional lines.
pub fn configuration(lines: &str) -> Config {
    let lines: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    let text = format!(
        "listen: {{ext_authz: '127.0.0.1:0'}}
providers:
  - name: keycloak
    issuer: '{ISSUER}'
    jwks_uri: '{ISSUER}/keys'
    audiences: [orders-api]
{lines}"
    );
    Config::parse(&text, &|_| None).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

fn claims(name: &str) -> serde_json::Value {
    json!({"iss": ISSUER.replace("{realm}", name), "aud": "orders-api", "exp": NOW + 300})
}

/// A token with an invalid signature.
pub fn forged(name: &str) -> String {
    let [header, payload] = [json!({"alg": "ES256", "kid": "k"}), claims(name)]
        .map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    format!("{header}.{payload}.{}", URL_SAFE_NO_PAD.encode([7; 64]))
}

/// The reason of the decision for this token.
pub async fn decide(authorizer: &Authorizer, token: &str) -> &'static str {
    let value = format!("Bearer {token}");
    let headers = [(&b"authorization"[..], value.as_bytes())];
    let request = AccessRequest::new(
        b"GET",
        b"h",
        b"/",
        headers.into_iter().collect(),
        portcullis::clock::monotonic().into_std(),
    );
    authorizer.decide("test", &request).await.decision.verdict.reason().as_str()
}

/// Sends forged tokens, each with another realm name, at this rate for this duration, without waiting for the decisions.
pub async fn flood(authorizer: Arc<Authorizer>, per_second: u32, duration: Duration) {
    let interval = Duration::from_secs(1) / per_second;
    let sent =
        u32::try_from(duration.as_nanos() / interval.as_nanos()).expect("a number that is sent in a test");
    for i in 0..sent {
        let authorizer = Arc::clone(&authorizer);
        tokio::spawn(async move { decide(&authorizer, &forged(&format!("made{i}"))).await });
        sleep(interval).await;
    }
}

/// Sends a valid token of each of these realms this many times, with this interval. Returns the reasons of denied tokens.
pub async fn serve(
    world: &World,
    authorizer: &Arc<Authorizer>,
    names: &[String],
    times: usize,
    interval: Duration,
) -> Vec<(String, &'static str)> {
    let mut sent = Vec::new();
    for _ in 0..times {
        for name in names {
            let (authorizer, token, name) = (Arc::clone(authorizer), world.token(name), name.clone());
            sent.push(tokio::spawn(async move { (name, decide(&authorizer, &token).await) }));
        }
        sleep(interval).await;
    }
    let mut denied = Vec::new();
    for one in sent {
        let (name, reason) = one.await.expect("is decided");
        if reason != "ok" {
            denied.push((name, reason));
        }
    }
    denied
}

impl Fetch for RealmKeys {
    fn fetch(&self, context: FetchContext) -> FetchFuture<'_> {
        Box::pin(async move {
            let requested_at = context.clock.now_micros();
            let issuer = &self.world.0;
            *issuer.fetches.lock().unwrap().entry(self.name.clone()).or_default() += 1;
            sleep(issuer.latency).await;
            if let Some(status) = *issuer.status.lock().unwrap() {
                return Err(FetchError::Status { status, retry_after: None });
            }
            let key = issuer.keys.lock().unwrap().get(&self.name).cloned();
            match key.or_else(|| issuer.default_key.lock().unwrap().clone()) {
                None => Err(FetchError::Status { status: 404, retry_after: None }),
                Some(key) => {
                    let set = json!({ "keys": [key.public_jwk()] }).to_string();
                    let keys = KeySet::parse(set.as_bytes()).map_err(FetchError::KeySet)?;
                    Ok(Fetched::local(keys, self.name.clone(), requested_at, context.clock.now_micros()))
                }
            }
        })
    }
}

struct RealmKeys {
    world: World,
    name: String,
}

/// This many names.
pub fn tenants(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("tenant{i}")).collect()
}

/// A folder for snapshots.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder")
}

/// The files of this folder whose names contain this text.
pub fn files(folder: &Path, with: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("is there");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text"));
    names.filter(|name| name.contains(with) && !name.starts_with('.')).collect()
}

/// Polls until the condition holds. Writes run on other threads, which the paused clock does not affect.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if condition() {
            return;
        }
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(2))).await.expect("sleeps");
    }
    panic!("timeout: {what}");
}

/// The folder of a process that has served these tenants and has ended.
pub async fn folder_served_before(names: &[String]) -> tempfile::TempDir {
    let folder = folder();
    let world = World::with_snapshots(names, Some(folder.path().to_owned()));
    let authorizer = world.authorizer("realms: '[a-z0-9]+'");
    for some in names.chunks(8) {
        assert_eq!(serve(&world, &authorizer, some, 1, 10 * SECOND).await, []);
    }
    until("every tenant has a snapshot", || files(folder.path(), "@tenant").len() == names.len()).await;
    let list = folder.path().join("keycloak@@realms.json");
    let listed = || std::fs::read_to_string(&list).unwrap_or_default().matches("tenant").count();
    sleep(6 * SECOND).await;
    until("every tenant is in the list", || listed() == names.len()).await;
    folder
}
