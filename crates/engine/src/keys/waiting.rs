//! Limits on waiting requests: their number, and the memory that they hold together.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::policy::RefreshPolicy;

/// The requests that wait for the keys of one provider, all of its realms together.
#[derive(Debug, Default)]
pub struct Waiting {
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

/// A permit to wait, released when dropped.
#[derive(Debug)]
pub struct WaitPermit<'w> {
    waiting: &'w Waiting,
    bytes: usize,
}

impl Waiting {
    /// A permit for a request that holds this many bytes; `None` if a limit of the policy is reached.
    pub fn acquire(&self, bytes: usize, policy: &RefreshPolicy) -> Option<WaitPermit<'_>> {
        if !add_within(&self.requests, 1, policy.max_waiters) {
            return None;
        }
        if !add_within(&self.bytes, bytes, policy.max_waiting_bytes) {
            self.requests.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(WaitPermit { waiting: self, bytes })
    }
}

impl Drop for WaitPermit<'_> {
    fn drop(&mut self) {
        self.waiting.requests.fetch_sub(1, Ordering::AcqRel);
        self.waiting.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Adds `more` unless the sum would exceed `limit`.
fn add_within(sum: &AtomicUsize, more: usize, limit: usize) -> bool {
    let add = |sum: usize| sum.checked_add(more).filter(|sum| *sum <= limit);
    sum.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).is_ok()
}
