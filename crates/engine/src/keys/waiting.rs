//! Who waits for keys: how many requests, and what they hold in memory together. Both are bounded.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::policy::RefreshPolicy;

/// Those who wait for the keys of one provider, all of its realms together.
#[derive(Debug, Default)]
pub struct Waiting {
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

/// A place among those who wait, given back when dropped.
#[derive(Debug)]
pub struct Place<'w> {
    among: &'w Waiting,
    bytes: usize,
}

impl Waiting {
    /// A place for a request that holds so many bytes; `None` where there is none within the policy.
    pub fn place(&self, bytes: usize, policy: &RefreshPolicy) -> Option<Place<'_>> {
        if !add_within(&self.requests, 1, policy.max_waiters) {
            return None;
        }
        if !add_within(&self.bytes, bytes, policy.max_waiting_bytes) {
            self.requests.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Place { among: self, bytes })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.among.requests.fetch_sub(1, Ordering::AcqRel);
        self.among.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Whether there was room for so much more.
fn add_within(sum: &AtomicUsize, more: usize, most: usize) -> bool {
    let add = |sum: usize| sum.checked_add(more).filter(|sum| *sum <= most);
    sum.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).is_ok()
}
