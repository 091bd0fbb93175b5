//! The realms whose keys are in memory, and which of them goes when there are too many.
//!
//! Pure: it is told the time. A realm counts as verified once a token of it has been, and only then may it push
//! another one out: the one whose last verified token is the oldest. Tokens that nobody signed count for nothing
//! there. What has not been verified yet has places of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Realms on trial at one time; and known ones that wait for a verified token, where verified ones leave no room.
pub(super) const ON_TRIAL: usize = 32;

const NEVER: i64 = i64::MIN;

/// When a realm was last asked for, and when a token of it was last verified, in microseconds of one clock.
/// Written without a lock.
#[derive(Debug)]
pub(super) struct Uses {
    called: AtomicI64,
    verified: AtomicI64,
}

impl Uses {
    /// Of a realm that is asked for at this time.
    pub(super) fn called_at(now: i64) -> Self {
        Self { called: AtomicI64::new(now), verified: AtomicI64::new(NEVER) }
    }

    /// A token names it. Of a realm that has had a verified one that says nothing.
    pub(super) fn call(&self, now: i64) {
        if self.verified().is_none() {
            self.called.store(now, Ordering::Relaxed);
        }
    }

    /// A token of it was verified. Tells whether it was the first one.
    pub(super) fn verify(&self, now: i64) -> bool {
        let first = self.verified().is_none();
        self.verified.store(now, Ordering::Relaxed);
        first
    }

    /// When a token of it was last verified.
    pub(super) fn verified(&self) -> Option<i64> {
        Some(self.verified.load(Ordering::Relaxed)).filter(|at| *at != NEVER)
    }
}

/// Why a realm is in memory; the higher ones come last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RealmState {
    /// Its name is new, and its first fetch under way; the line bounds how many.
    FirstFetch,
    /// Its name is new and there are keys for it: the issuer may have some for any name.
    OnTrial,
    /// Its name had keys, and no token was verified since they were fetched again.
    Returning,
    /// A token of it was verified.
    Verified,
}

/// A realm in memory.
pub(super) struct Realm<T> {
    pub(super) what: T,
    pub(super) uses: Arc<Uses>,
    pub(super) state: RealmState,
}

/// The realms in memory. At most `most` are verified; those that return have what these leave, and [`ON_TRIAL`] at
/// least.
pub(super) struct Held<T> {
    realms: HashMap<String, Realm<T>>,
    counts: Counts,
    most: usize,
}

/// How many realms have which standing.
#[derive(Default)]
struct Counts {
    first_fetch: usize,
    on_trial: usize,
    returning: usize,
    verified: usize,
}

impl Counts {
    fn of(&mut self, state: RealmState) -> &mut usize {
        match state {
            RealmState::FirstFetch => &mut self.first_fetch,
            RealmState::OnTrial => &mut self.on_trial,
            RealmState::Returning => &mut self.returning,
            RealmState::Verified => &mut self.verified,
        }
    }
}

impl<T> Held<T> {
    pub(super) fn new(most: usize) -> Self {
        Self { realms: HashMap::new(), counts: Counts::default(), most }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Realm<T>> {
        self.realms.get(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Realm<T>)> {
        self.realms.iter()
    }

    /// Takes one in, and gives those that have to go for it.
    #[must_use = "what goes is to be dropped outside of the lock"]
    pub(super) fn admit(&mut self, name: &str, realm: Realm<T>) -> Vec<(String, Realm<T>)> {
        let before = self.take(name);
        *self.counts.of(realm.state) += 1;
        self.realms.insert(name.to_owned(), realm);
        let mut gone = self.trim();
        gone.extend(before);
        gone
    }

    /// Gives this standing to the realm that was taken in with these uses, if it is still here and has not risen as
    /// high by another way.
    #[must_use = "what goes is to be dropped outside of the lock"]
    pub(super) fn raise(&mut self, name: &str, uses: &Arc<Uses>, to: RealmState) -> Vec<(String, Realm<T>)> {
        let lower = |realm: &&mut Realm<T>| Arc::ptr_eq(&realm.uses, uses) && realm.state < to;
        let Some(realm) = self.realms.get_mut(name).filter(lower) else { return Vec::new() };
        *self.counts.of(realm.state) -= 1;
        *self.counts.of(to) += 1;
        realm.state = to;
        self.trim()
    }

    /// Takes out the realm that was taken in with these uses, if its first fetch was under way until now.
    pub(super) fn take_failed(&mut self, name: &str, uses: &Arc<Uses>) -> Option<(String, Realm<T>)> {
        let realm = self.realms.get(name)?;
        let failed = realm.state == RealmState::FirstFetch && Arc::ptr_eq(&realm.uses, uses);
        if failed { self.take(name) } else { None }
    }

    fn take(&mut self, name: &str) -> Option<(String, Realm<T>)> {
        let (name, realm) = self.realms.remove_entry(name)?;
        *self.counts.of(realm.state) -= 1;
        Some((name, realm))
    }

    fn trim(&mut self) -> Vec<(String, Realm<T>)> {
        let mut gone = Vec::new();
        let verified = |uses: &Uses| uses.verified.load(Ordering::Relaxed);
        let called = |uses: &Uses| uses.called.load(Ordering::Relaxed);
        self.keep(RealmState::Verified, self.most, verified, &mut gone);
        let left = self.most.saturating_sub(self.counts.verified).max(ON_TRIAL);
        self.keep(RealmState::Returning, left, called, &mut gone);
        self.keep(RealmState::OnTrial, ON_TRIAL, called, &mut gone);
        gone
    }

    /// Takes out those of this standing that are more than `most`, the longest ago first.
    fn keep(
        &mut self,
        state: RealmState,
        most: usize,
        last: impl Fn(&Uses) -> i64,
        gone: &mut Vec<(String, Realm<T>)>,
    ) {
        for _ in most..*self.counts.of(state) {
            let of_standing = self.realms.iter().filter(|(_, realm)| realm.state == state);
            let oldest = of_standing.min_by_key(|(_, realm)| last(&realm.uses));
            let Some(name) = oldest.map(|(name, _)| name.clone()) else { return };
            gone.extend(self.take(&name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(held: &mut Held<()>, name: &str, state: RealmState, now: i64) -> Vec<String> {
        let uses = Arc::new(Uses::called_at(now));
        if state == RealmState::Verified {
            uses.verify(now);
        }
        let gone = held.admit(name, Realm { what: (), uses, state });
        gone.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn the_least_recently_verified_goes_whoever_is_called_most() {
        let mut held = Held::new(2);
        admit(&mut held, "a", RealmState::Verified, 1);
        admit(&mut held, "b", RealmState::Verified, 2);
        held.get("a").expect("is held").uses.call(90);
        assert_eq!(admit(&mut held, "c", RealmState::Verified, 3), ["a"]);
        held.get("b").expect("is held").uses.verify(4);
        assert_eq!(admit(&mut held, "d", RealmState::Verified, 5), ["c"]);
    }

    #[test]
    fn what_was_not_verified_pushes_no_verified_realm_out() {
        let mut held = Held::new(2);
        admit(&mut held, "a", RealmState::Verified, 1);
        admit(&mut held, "b", RealmState::Verified, 2);
        let mut gone = Vec::new();
        for i in 0..1000 {
            gone.extend(admit(&mut held, &format!("made{i}"), RealmState::OnTrial, 10 + i));
            gone.extend(admit(&mut held, &format!("old{i}"), RealmState::Returning, 10 + i));
        }
        assert!(held.get("a").is_some() && held.get("b").is_some());
        assert_eq!(gone.len(), 2000 - 2 * ON_TRIAL);
        assert_eq!(gone[..2], ["made0", "old0"], "the longest without a caller goes first");
    }

    #[test]
    fn known_realms_that_return_have_the_room_that_verified_ones_leave() {
        let mut held = Held::new(100);
        for i in 0..100 {
            let name = format!("old{i}");
            assert_eq!(admit(&mut held, &name, RealmState::Returning, i), [""; 0]);
            assert_eq!(
                admit(&mut held, &format!("made{i}"), RealmState::OnTrial, i).len(),
                usize::from(i >= 32)
            );
        }
        assert_eq!(admit(&mut held, "one more", RealmState::Returning, 100), ["old0"]);
        let uses = Arc::clone(&held.get("old50").expect("is held").uses);
        assert!(uses.verify(200));
        assert!(!uses.verify(201));
        let gone = held.raise("old50", &uses, RealmState::Verified);
        assert!(gone.is_empty(), "it takes its own place");
    }

    #[test]
    fn a_realm_of_the_same_name_that_was_opened_later_is_another_one() {
        let mut held = Held::new(2);
        admit(&mut held, "a", RealmState::FirstFetch, 1);
        let before = Arc::clone(&held.get("a").expect("is held").uses);
        assert_eq!(admit(&mut held, "a", RealmState::FirstFetch, 2), ["a"]);
        assert!(held.take_failed("a", &before).is_none());
        assert!(held.raise("a", &before, RealmState::OnTrial).is_empty());
        assert_eq!(held.get("a").expect("is held").state, RealmState::FirstFetch);
        let now = Arc::clone(&held.get("a").expect("is held").uses);
        assert!(held.take_failed("a", &now).is_some());
        assert_eq!((held.counts.first_fetch, held.realms.len()), (0, 0));
    }
}
