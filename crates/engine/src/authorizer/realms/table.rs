//! The realms in memory, and which of them is evicted if there are too many.
//!
//! Pure: the time is an argument. A realm is verified once one of its tokens was, and only then may it evict another
//! one: the one whose last verified token is the oldest. Unverified tokens have no effect on that. Realms that are
//! not verified yet have a limit of their own.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// The limit of realms on trial; and the least limit of returning ones, if verified ones leave less.
pub(super) const ON_TRIAL: usize = 32;

const NEVER: i64 = i64::MIN;

/// When a realm was last requested, and when one of its tokens was last verified, in microseconds of one clock.
/// Written without a lock.
#[derive(Debug)]
pub(super) struct Usage {
    requested: AtomicI64,
    verified: AtomicI64,
}

impl Usage {
    /// Of a realm that is requested at this time.
    pub(super) fn requested_at(now: i64) -> Self {
        Self { requested: AtomicI64::new(now), verified: AtomicI64::new(NEVER) }
    }

    /// A token names the realm; ignored once one was verified.
    pub(super) fn record_request(&self, now: i64) {
        if self.verified().is_none() {
            self.requested.store(now, Ordering::Relaxed);
        }
    }

    /// A token was verified. Returns whether it was the first one.
    pub(super) fn record_verified(&self, now: i64) -> bool {
        let first = self.verified().is_none();
        self.verified.store(now, Ordering::Relaxed);
        first
    }

    /// When a token was last verified.
    pub(super) fn verified(&self) -> Option<i64> {
        Some(self.verified.load(Ordering::Relaxed)).filter(|at| *at != NEVER)
    }
}

/// Why a realm is in memory; in ascending order of rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RealmState {
    /// Its name is new, and its first fetch is in progress; the queue limits their number.
    FirstFetch,
    /// Its name is new, and there are keys for it: an issuer may answer with keys for any name.
    OnTrial,
    /// Its name is known, and no token was verified since its keys were loaded again.
    Returning,
    /// A token was verified.
    Verified,
}

/// A realm in memory.
pub(super) struct Realm<T> {
    pub(super) value: T,
    pub(super) usage: Arc<Usage>,
    pub(super) state: RealmState,
}

/// The realms in memory. At most `max` are verified; returning ones may use the remaining capacity, and [`ON_TRIAL`]
/// at least.
pub(super) struct RealmTable<T> {
    realms: HashMap<String, Realm<T>>,
    counts: Counts,
    max: usize,
}

/// The number of realms in each state.
#[derive(Default)]
struct Counts {
    first_fetch: usize,
    on_trial: usize,
    returning: usize,
    verified: usize,
}

impl Counts {
    fn count_mut(&mut self, state: RealmState) -> &mut usize {
        match state {
            RealmState::FirstFetch => &mut self.first_fetch,
            RealmState::OnTrial => &mut self.on_trial,
            RealmState::Returning => &mut self.returning,
            RealmState::Verified => &mut self.verified,
        }
    }
}

impl<T> RealmTable<T> {
    pub(super) fn new(max: usize) -> Self {
        Self { realms: HashMap::new(), counts: Counts::default(), max }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Realm<T>> {
        self.realms.get(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Realm<T>)> {
        self.realms.iter()
    }

    /// Inserts a realm and returns those that are evicted for it.
    #[must_use = "evicted realms are to be dropped outside of the lock"]
    pub(super) fn insert(&mut self, name: &str, realm: Realm<T>) -> Vec<(String, Realm<T>)> {
        let before = self.remove(name);
        *self.counts.count_mut(realm.state) += 1;
        self.realms.insert(name.to_owned(), realm);
        let mut evicted = self.evict();
        evicted.extend(before);
        evicted
    }

    /// Raises the state of the realm with this usage, if it is still in memory and not in a higher state already.
    #[must_use = "evicted realms are to be dropped outside of the lock"]
    pub(super) fn promote(
        &mut self,
        name: &str,
        usage: &Arc<Usage>,
        to: RealmState,
    ) -> Vec<(String, Realm<T>)> {
        let lower = |realm: &&mut Realm<T>| Arc::ptr_eq(&realm.usage, usage) && realm.state < to;
        let Some(realm) = self.realms.get_mut(name).filter(lower) else { return Vec::new() };
        *self.counts.count_mut(realm.state) -= 1;
        *self.counts.count_mut(to) += 1;
        realm.state = to;
        self.evict()
    }

    /// Removes the realm with this usage, if its first fetch was in progress until now.
    pub(super) fn remove_failed(&mut self, name: &str, usage: &Arc<Usage>) -> Option<(String, Realm<T>)> {
        let realm = self.realms.get(name)?;
        let failed = realm.state == RealmState::FirstFetch && Arc::ptr_eq(&realm.usage, usage);
        if failed { self.remove(name) } else { None }
    }

    fn remove(&mut self, name: &str) -> Option<(String, Realm<T>)> {
        let (name, realm) = self.realms.remove_entry(name)?;
        *self.counts.count_mut(realm.state) -= 1;
        Some((name, realm))
    }

    fn evict(&mut self) -> Vec<(String, Realm<T>)> {
        let mut evicted = Vec::new();
        let verified = |usage: &Usage| usage.verified.load(Ordering::Relaxed);
        let requested = |usage: &Usage| usage.requested.load(Ordering::Relaxed);
        self.evict_beyond(RealmState::Verified, self.max, verified, &mut evicted);
        let remaining = self.max.saturating_sub(self.counts.verified).max(ON_TRIAL);
        self.evict_beyond(RealmState::Returning, remaining, requested, &mut evicted);
        self.evict_beyond(RealmState::OnTrial, ON_TRIAL, requested, &mut evicted);
        evicted
    }

    /// Evicts the realms in this state beyond `max`, the least recent first.
    fn evict_beyond(
        &mut self,
        state: RealmState,
        max: usize,
        last_use: impl Fn(&Usage) -> i64,
        evicted: &mut Vec<(String, Realm<T>)>,
    ) {
        for _ in max..*self.counts.count_mut(state) {
            let in_state = self.realms.iter().filter(|(_, realm)| realm.state == state);
            let oldest = in_state.min_by_key(|(_, realm)| last_use(&realm.usage));
            let Some(name) = oldest.map(|(name, _)| name.clone()) else { return };
            evicted.extend(self.remove(&name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(table: &mut RealmTable<()>, name: &str, state: RealmState, now: i64) -> Vec<String> {
        let usage = Arc::new(Usage::requested_at(now));
        if state == RealmState::Verified {
            usage.record_verified(now);
        }
        let evicted = table.insert(name, Realm { value: (), usage, state });
        evicted.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn the_least_recently_verified_is_evicted_whichever_is_requested_most() {
        let mut table = RealmTable::new(2);
        insert(&mut table, "a", RealmState::Verified, 1);
        insert(&mut table, "b", RealmState::Verified, 2);
        table.get("a").expect("is in memory").usage.record_request(90);
        assert_eq!(insert(&mut table, "c", RealmState::Verified, 3), ["a"]);
        table.get("b").expect("is in memory").usage.record_verified(4);
        assert_eq!(insert(&mut table, "d", RealmState::Verified, 5), ["c"]);
    }

    #[test]
    fn unverified_realms_evict_no_verified_one() {
        let mut table = RealmTable::new(2);
        insert(&mut table, "a", RealmState::Verified, 1);
        insert(&mut table, "b", RealmState::Verified, 2);
        let mut evicted = Vec::new();
        for i in 0..1000 {
            evicted.extend(insert(&mut table, &format!("made{i}"), RealmState::OnTrial, 10 + i));
            evicted.extend(insert(&mut table, &format!("old{i}"), RealmState::Returning, 10 + i));
        }
        assert!(table.get("a").is_some() && table.get("b").is_some());
        assert_eq!(evicted.len(), 2000 - 2 * ON_TRIAL);
        assert_eq!(evicted[..2], ["made0", "old0"], "the longest without a caller is evicted first");
    }

    #[test]
    fn returning_realms_use_the_capacity_that_verified_ones_leave() {
        let mut table = RealmTable::new(100);
        for i in 0..100 {
            let name = format!("old{i}");
            assert_eq!(insert(&mut table, &name, RealmState::Returning, i), [""; 0]);
            assert_eq!(
                insert(&mut table, &format!("made{i}"), RealmState::OnTrial, i).len(),
                usize::from(i >= 32)
            );
        }
        assert_eq!(insert(&mut table, "one more", RealmState::Returning, 100), ["old0"]);
        let usage = Arc::clone(&table.get("old50").expect("is in memory").usage);
        assert!(usage.record_verified(200));
        assert!(!usage.record_verified(201));
        let evicted = table.promote("old50", &usage, RealmState::Verified);
        assert!(evicted.is_empty(), "it replaces itself");
    }

    #[test]
    fn a_realm_of_the_same_name_that_was_opened_later_is_distinguished() {
        let mut table = RealmTable::new(2);
        insert(&mut table, "a", RealmState::FirstFetch, 1);
        let before = Arc::clone(&table.get("a").expect("is in memory").usage);
        assert_eq!(insert(&mut table, "a", RealmState::FirstFetch, 2), ["a"]);
        assert!(table.remove_failed("a", &before).is_none());
        assert!(table.promote("a", &before, RealmState::OnTrial).is_empty());
        assert_eq!(table.get("a").expect("is in memory").state, RealmState::FirstFetch);
        let now = Arc::clone(&table.get("a").expect("is in memory").usage);
        assert!(table.remove_failed("a", &now).is_some());
        assert_eq!((table.counts.first_fetch, table.realms.len()), (0, 0));
    }
}
