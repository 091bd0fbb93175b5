//! The settings of key refresh.

use std::path::PathBuf;
use std::time::Duration;

/// How a provider's keys are kept fresh. [`crate::keys`] describes the refresh rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshPolicy {
    /// Time between scheduled fetches, with jitter; shorter if the issuer says that its keys stay fresh for less (RFC
    /// 9111 §4.2), but never shorter than `min_spacing`; default 5 min.
    pub interval: Duration,
    /// Least time between fetches forced by an unknown `kid`; default 1 s.
    pub min_spacing: Duration,
    /// Least time between fetches forced by a bad signature under a known `kid`; default 10 s.
    pub min_spacing_bad_signature: Duration,
    /// Requests that may wait for a refresh at the same time; default 10000.
    pub max_waiters: usize,
    /// Memory that those requests may hold together, in bytes: headers and path of each; default 48 MiB.
    pub max_waiting_bytes: usize,
    /// The longest that a request waits for a refresh; default 2 s.
    pub wait: Duration,
    /// The longest that a fetch may take; default 2 s.
    pub timeout: Duration,
    /// How long the last good set serves while the issuer cannot be reached; default 24 h.
    pub max_stale: Duration,
    /// The largest key set or discovery document that is read, in bytes after decompression; default 1 MiB.
    pub max_bytes: usize,
    /// Where the last good set is stored for a start while the issuer is unavailable; default none.
    pub snapshot_dir: Option<PathBuf>,
}

impl Default for RefreshPolicy {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(300),
            min_spacing: Duration::from_secs(1),
            min_spacing_bad_signature: Duration::from_secs(10),
            max_waiters: 10_000,
            max_waiting_bytes: 48 << 20,
            wait: Duration::from_secs(2),
            timeout: Duration::from_secs(2),
            max_stale: Duration::from_secs(24 * 60 * 60),
            max_bytes: 1024 * 1024,
            snapshot_dir: None,
        }
    }
}
