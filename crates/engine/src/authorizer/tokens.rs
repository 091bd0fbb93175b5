//! Tokens whose signature was verified, so that it is not verified again for the next request.
//!
//! Keyed by the SHA-256 of the token: no token is kept. Whether an entry still counts is decided by the core, with the
//! current keys and the current time ([`crate::decision::VerifiedToken`]); one that does not is removed. Only accepted
//! signatures are cached: tokens that were refused take no room.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use tokio::runtime::Handle;

use crate::decision::VerifiedToken;
use crate::telemetry::{Metrics, TokenCacheMetrics};
use crate::validation::UnixTime;
use crate::validation::digest::Sha256Digest;
use crate::validation::json::SharedValues;

/// Longer tokens count as several entries, one for each of these bytes that has begun, and so do those whose claims take
/// more memory than this: many small values take many times their text.
const BYTES_OF_AN_ENTRY: usize = 1024;
const MEMORY_OF_AN_ENTRY: usize = 2048;

/// The entries of a shard, at least: many times as many as the largest token counts for.
const ENTRIES_OF_A_SHARD: usize = 1024;

/// At most as many shards, each with a lock of its own.
const MAX_SHARDS: usize = 256;

/// The share of the entries that are tokens which came again. The rest is for new ones: a set of tokens that replaces
/// another one, as each that expires is replaced, has to be seen again in the rest, or among the names of evicted tokens,
/// of which there are as many as entries.
const HOT_SHARE: f64 = 0.7;
const EVICTED_NAMES: f64 = 1.0;

/// How often expired tokens are removed, in seconds.
const SWEEP_INTERVAL: i64 = 60;

/// The cache of verified tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenCacheConfig {
    /// The most tokens of up to 1 KiB; 0 disables the cache. Default 10,000.
    pub entries: usize,
}

impl Default for TokenCacheConfig {
    fn default() -> Self {
        Self { entries: 10_000 }
    }
}

type Tokens = Cache<Sha256Digest, Arc<VerifiedToken>, BySize>;

/// The verified tokens of one configuration. When it is full, tokens that were seen only once go before those that
/// come again (S3-FIFO): a flood of one-time tokens does not evict the tokens in use.
pub(super) struct TokenCache {
    /// `None` if it is disabled.
    tokens: Option<Arc<Tokens>>,
    /// What the tokens have in common.
    shared: Mutex<SharedValues>,
    /// When expired tokens are removed next, in seconds since the Unix epoch.
    next_sweep: AtomicI64,
    metrics: TokenCacheMetrics,
}

impl TokenCache {
    pub(super) fn new(config: TokenCacheConfig, metrics: &Metrics) -> Self {
        let tokens = (config.entries > 0).then(|| new_cache(config.entries)).flatten().map(Arc::new);
        let metrics = metrics.token_cache();
        Self { tokens, shared: Mutex::default(), next_sweep: AtomicI64::new(0), metrics }
    }

    /// The name of a token in the cache; `None` if the cache is disabled.
    pub(super) fn name(&self, token: &str) -> Option<Sha256Digest> {
        self.tokens.as_ref().map(|_| Sha256Digest::of(token.as_bytes()))
    }

    /// The token of this name, if it was verified before.
    pub(super) fn get(&self, name: &Sha256Digest) -> Option<Arc<VerifiedToken>> {
        self.tokens.as_ref()?.get(name)
    }

    /// Counts whether a request was decided with a cached token.
    pub(super) fn count(&self, is_hit: bool) {
        self.metrics.count(is_hit);
    }

    /// Keeps a token that was verified, at this time.
    pub(super) fn insert(&self, name: Sha256Digest, token: &Arc<VerifiedToken>, now: UnixTime) {
        let Some(tokens) = &self.tokens else { return };
        // A request does not wait for another one: its token takes more memory then.
        let token = match self.shared.try_lock() {
            Ok(mut shared) => Arc::new(token.share(&mut shared)),
            Err(_) => Arc::clone(token),
        };
        tokens.insert(name, token);
        self.sweep_if_due(tokens, now);
    }

    /// Removes a token that no longer counts, unless another request has verified it again.
    pub(super) fn remove(&self, name: &Sha256Digest, outdated: &Arc<VerifiedToken>) {
        if let Some(tokens) = &self.tokens {
            let _removed = tokens.remove_if(name, |token| Arc::ptr_eq(token, outdated));
        }
    }

    /// Sets the metric of the number of entries.
    pub(super) fn publish_entries(&self) {
        self.metrics.set_entries(self.tokens.as_ref().map_or(0, |tokens| tokens.len()));
    }

    /// Removes expired tokens, which would take room and be held in memory until they are evicted.
    fn sweep_if_due(&self, tokens: &Arc<Tokens>, now: UnixTime) {
        let seconds = now.as_secs_f64() as i64;
        let due = self.next_sweep.load(Ordering::Relaxed);
        let next = seconds.saturating_add(SWEEP_INTERVAL);
        // The clock may have been ahead when it was set.
        let is_due = (seconds >= due || due > next)
            && self.next_sweep.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if !is_due {
            return;
        }
        // Claims of tokens that have expired do not stay here either.
        if let Ok(mut shared) = self.shared.try_lock() {
            *shared = SharedValues::default();
        }
        let tokens = Arc::clone(tokens);
        let sweep = move || tokens.retain(|_, token| token.expires() > now);
        // A request does not wait for it, unless it is decided outside of a runtime.
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(sweep)),
            Err(_) => sweep(),
        }
    }
}

/// `None` if the options are incomplete, which they are not.
fn new_cache(entries: usize) -> Option<Tokens> {
    let options = OptionsBuilder::new()
        .estimated_items_capacity(entries)
        .weight_capacity(u64::try_from(entries).unwrap_or(u64::MAX))
        // Rounded up to a power of two.
        .shards((entries / ENTRIES_OF_A_SHARD / 2 + 1).min(MAX_SHARDS))
        .hot_allocation(HOT_SHARE)
        .ghost_allocation(EVICTED_NAMES)
        .build()
        .ok()?;
    Some(Cache::with_options(options, BySize, DefaultHashBuilder::default(), DefaultLifecycle::default()))
}

/// How many entries a token counts as.
#[derive(Clone)]
struct BySize;

impl Weighter<Sha256Digest, Arc<VerifiedToken>> for BySize {
    fn weight(&self, _name: &Sha256Digest, token: &Arc<VerifiedToken>) -> u64 {
        let by_text = token.bytes().div_ceil(BYTES_OF_AN_ENTRY);
        let by_memory = token.claims_memory().div_ceil(MEMORY_OF_AN_ENTRY);
        u64::try_from(by_text.max(by_memory).max(1)).unwrap_or(u64::MAX)
    }
}
