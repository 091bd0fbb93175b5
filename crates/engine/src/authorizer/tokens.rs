//! Tokens whose signature was verified, so that it is not verified again for the next request.
//!
//! Keyed by the SHA-256 of the token: no token is kept. Whether an entry still counts is decided by the core, with the
//! current keys and the current time ([`crate::decision::VerifiedToken`]). Only accepted signatures are cached: tokens
//! that were refused take no room.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::decision::VerifiedToken;
use crate::telemetry::{Metrics, TokenCacheMetrics};
use crate::validation::digest::Sha256Digest;

/// Longer tokens count as several entries, one for each of these bytes that has begun: their claims take as much more
/// memory.
const BYTES_OF_AN_ENTRY: usize = 1024;

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

/// The verified tokens of one configuration. When it is full, tokens that were seen only once go before those that
/// come again (S3-FIFO): a flood of one-time tokens does not evict the tokens in use.
pub(super) struct TokenCache {
    /// `None` if it is disabled.
    tokens: Option<Cache<Sha256Digest, Arc<VerifiedToken>, BySize>>,
    metrics: TokenCacheMetrics,
}

impl TokenCache {
    pub(super) fn new(config: TokenCacheConfig, metrics: &Metrics) -> Self {
        let capacity = u64::try_from(config.entries).unwrap_or(u64::MAX);
        let tokens = (config.entries > 0).then(|| Cache::with_weighter(config.entries, capacity, BySize));
        let metrics = metrics.token_cache();
        metrics.set_entries(0);
        Self { tokens, metrics }
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

    /// Keeps a token that was verified.
    pub(super) fn insert(&self, name: Sha256Digest, token: Arc<VerifiedToken>) {
        let Some(tokens) = &self.tokens else { return };
        tokens.insert(name, token);
        self.metrics.set_entries(tokens.len());
    }
}

/// How many entries a token counts as.
#[derive(Clone)]
struct BySize;

impl Weighter<Sha256Digest, Arc<VerifiedToken>> for BySize {
    fn weight(&self, _name: &Sha256Digest, token: &Arc<VerifiedToken>) -> u64 {
        u64::try_from(token.bytes() / BYTES_OF_AN_ENTRY + 1).unwrap_or(u64::MAX)
    }
}
