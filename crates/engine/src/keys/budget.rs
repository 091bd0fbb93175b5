//! The budget of forced fetches and the queue of those that wait for them: one account for each cause, shared by all
//! realms of a provider, since the budget protects their common issuer.
//!
//! Pure: no IO, no clock; the time is an argument. A fetch uses its slot whether it succeeds or fails. Realms with
//! callers that still wait when the slot is free are served before those whose callers are gone or were denied; each
//! of the two groups in the order of their last slot, the longest ago first. However many realms are flooded, another
//! one waits for one slot.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::clock::Instant;
use crate::validation::StaleCause;

use crate::validation::key_set::KeyName;

use super::published::Withdrawn;
use super::waiting::Waiting;

/// The budget of one provider, shared by the key caches of its realms.
#[derive(Debug, Default)]
pub struct Budget {
    accounts: Mutex<Accounts>,
    /// Notified when a member has left a queue, so that those behind check their turn.
    queue_changed: Notify,
    waiting: Waiting,
    /// What is known of the keys of dropped caches, by name, in case they are opened again.
    known_keys: Mutex<HashMap<String, KnownKeys>>,
}

/// The state of a budget.
#[derive(Debug, Default)]
pub struct Accounts {
    members: u64,
    unknown_kid: Account,
    bad_signature: Account,
}

/// The account of one cause, charged by the fetches that it forces.
#[derive(Debug, Default)]
struct Account {
    /// When the next slot is free; `None` before the first fetch.
    next_slot: Option<Instant>,
    /// The waiting members in the order of their arrival.
    queue: Vec<Queued>,
    /// The number of each member's last slot; 0 for none.
    served: HashMap<Member, u64>,
    count: u64,
}

/// A queued member.
#[derive(Clone, Copy, Debug)]
struct Queued {
    member: Member,
    /// The number of its last slot.
    served: u64,
    /// The latest deadline of its waiting callers; `None` if all were denied.
    awaited_until: Option<Instant>,
}

/// The lowest is served first: awaited members before others, then by their last slot, then by arrival.
type Rank = (bool, u64, usize);

impl Account {
    /// Whether a caller will still wait when the next slot is free. That time decides, not the present, so that the
    /// order is stable until then.
    fn is_awaited(&self, entry: &Queued) -> bool {
        entry.awaited_until.is_some_and(|until| self.next_slot.is_none_or(|slot| slot < until))
    }

    fn rank(&self, index: usize, entry: &Queued) -> Rank {
        (!self.is_awaited(entry), entry.served, index)
    }

    /// The rank of a queued member.
    fn rank_of(&self, member: Member) -> Option<Rank> {
        let index = self.queue.iter().position(|entry| entry.member == member)?;
        self.queue.get(index).map(|entry| self.rank(index, entry))
    }

    /// The rank of a member that is queued now, with a waiting caller.
    fn rank_of_new(&self, member: Member) -> Rank {
        (false, self.served.get(&member).copied().unwrap_or_default(), usize::MAX)
    }

    /// How many members are served before this rank.
    fn before(&self, rank: Rank) -> usize {
        self.queue.iter().enumerate().filter(|(index, entry)| self.rank(*index, entry) < rank).count()
    }

    fn earliest_start(&self, rank: Rank, spacing: Duration, now: Instant) -> Instant {
        let first = self.next_slot.map_or(now, |next_slot| now.max(next_slot));
        first + spacing.saturating_mul(u32::try_from(self.before(rank)).unwrap_or(u32::MAX))
    }
}

/// What is known of the keys of a dropped cache.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownKeys {
    /// The withdrawn keys.
    pub(super) withdrawn: Vec<Withdrawn>,
    /// The keys of the set: those that the first answer of the next cache lacks are withdrawn.
    pub(super) keys: Vec<KeyName>,
}

/// A key cache that uses a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member(u64);

impl Budget {
    /// No code that holds the lock can panic midway, so a poisoned lock is still sound.
    pub(super) fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The requests that wait for fetches of this budget.
    pub(super) fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    /// Completes when a member has left a queue.
    pub(super) fn queue_changed(&self) -> Notified<'_> {
        self.queue_changed.notified()
    }

    /// Notifies members that others may have left their queues.
    pub(super) fn notify_queue(&self) {
        self.queue_changed.notify_waiters();
    }

    /// Removes a member from the queues and from the accounts.
    pub(super) fn remove(&self, member: Member) {
        let mut accounts = self.accounts();
        for cause in [StaleCause::UnknownKid, StaleCause::BadSignature] {
            accounts.account(cause).served.remove(&member);
        }
        let was_queued = accounts.dequeue(member);
        drop(accounts);
        if was_queued {
            self.queue_changed.notify_waiters();
        }
    }

    /// Stores what is known of a cache's keys when it is dropped, in case it is opened again; for a limited number of
    /// caches.
    pub(super) fn store_known(&self, name: &str, mut known_keys: KnownKeys) {
        const MAX_CACHES: usize = 1_024;
        const MAX_KEYS: usize = 32;
        if known_keys.withdrawn.is_empty() && known_keys.keys.is_empty() {
            return;
        }
        known_keys.withdrawn.sort_by_key(|entry| std::cmp::Reverse(entry.shown_by.received()));
        known_keys.withdrawn.truncate(MAX_KEYS);
        known_keys.keys.truncate(MAX_KEYS);
        let mut all = self.known_keys();
        if all.len() >= MAX_CACHES
            && !all.contains_key(name)
            && let Some(any) = all.keys().next().cloned()
        {
            all.remove(&any);
        }
        all.insert(name.to_owned(), known_keys);
    }

    /// What is known of the keys of an earlier cache of this name.
    pub(super) fn load_known(&self, name: &str) -> KnownKeys {
        self.known_keys().get(name).cloned().unwrap_or_default()
    }

    fn known_keys(&self) -> MutexGuard<'_, HashMap<String, KnownKeys>> {
        self.known_keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Accounts {
    /// Adds a key cache. It ranks as if it had just had a slot, so that realms that are opened one after the other
    /// get no priority over an older one.
    pub fn join(&mut self) -> Member {
        self.members += 1;
        let member = Member(self.members);
        for cause in [StaleCause::UnknownKid, StaleCause::BadSignature] {
            let account = self.account(cause);
            account.served.insert(member, account.count + 1);
        }
        member
    }

    /// Queues a member for a fetch, with a caller that waits until `until`, or none that was denied. A member without
    /// waiting callers is queued again at the end.
    pub fn enqueue(&mut self, cause: StaleCause, member: Member, until: Option<Instant>) {
        let account = self.account(cause);
        if let Some(index) = account.queue.iter().position(|entry| entry.member == member) {
            let Some(entry) = account.queue.get(index).copied() else { return };
            if until.is_none() {
                return;
            }
            if account.is_awaited(&entry) {
                account.queue.iter_mut().filter(|entry| entry.member == member).for_each(|entry| {
                    entry.awaited_until = entry.awaited_until.max(until);
                });
                return;
            }
            account.queue.remove(index);
        }
        // A removed member would never take its slot and would block those behind it.
        if let Some(served) = account.served.get(&member).copied() {
            account.queue.push(Queued { member, served, awaited_until: until });
        }
    }

    /// Whether this member is in a queue.
    pub fn is_queued(&self, member: Member) -> bool {
        let contains = |account: &Account| account.queue.iter().any(|entry| entry.member == member);
        contains(&self.unknown_kid) || contains(&self.bad_signature)
    }

    /// The earliest start of this member's fetch.
    pub fn earliest_start(
        &self,
        cause: StaleCause,
        member: Member,
        spacing: Duration,
        now: Instant,
    ) -> Instant {
        let account = self.account_ref(cause);
        let rank = account.rank_of(member).unwrap_or_else(|| account.rank_of_new(member));
        account.earliest_start(rank, spacing, now)
    }

    /// The same, provided that a caller waits for it.
    pub fn earliest_start_if_awaited(
        &self,
        cause: StaleCause,
        member: Member,
        spacing: Duration,
        now: Instant,
    ) -> Instant {
        let account = self.account_ref(cause);
        let awaited = account.rank_of(member).filter(|(idle, ..)| !idle);
        account.earliest_start(awaited.unwrap_or_else(|| account.rank_of_new(member)), spacing, now)
    }

    /// Takes the slot for this member, if it is its turn.
    pub fn take_slot(&mut self, cause: StaleCause, member: Member, spacing: Duration, now: Instant) -> bool {
        let account = self.account(cause);
        let free = account.next_slot.is_none_or(|next_slot| next_slot <= now);
        if !free || account.rank_of(member).is_none_or(|rank| account.before(rank) > 0) {
            return false;
        }
        account.queue.retain(|entry| entry.member != member);
        // Increased by two, so that a member that is added ranks in between.
        account.count += 2;
        account.served.insert(member, account.count);
        account.next_slot = Some(now + spacing);
        true
    }

    /// Removes a member from every queue; returns whether it was in one.
    pub fn dequeue(&mut self, member: Member) -> bool {
        let mut was_queued = false;
        for cause in [StaleCause::UnknownKid, StaleCause::BadSignature] {
            let queue = &mut self.account(cause).queue;
            let before = queue.len();
            queue.retain(|entry| entry.member != member);
            was_queued |= queue.len() < before;
        }
        was_queued
    }

    fn account(&mut self, cause: StaleCause) -> &mut Account {
        match cause {
            StaleCause::UnknownKid => &mut self.unknown_kid,
            StaleCause::BadSignature => &mut self.bad_signature,
        }
    }

    fn account_ref(&self, cause: StaleCause) -> &Account {
        match cause {
            StaleCause::UnknownKid => &self.unknown_kid,
            StaleCause::BadSignature => &self.bad_signature,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use StaleCause::{BadSignature, UnknownKid};

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn members_share_one_slot_per_spacing_and_take_turns() {
        let now = clock::monotonic();
        let mut accounts = Accounts::default();
        let members: Vec<Member> = (0..3).map(|_| accounts.join()).collect();
        let mut served = Vec::new();
        for tick in 0..9_u32 {
            let now = now + SECOND / 2 * tick;
            for (i, member) in members.iter().enumerate() {
                accounts.enqueue(UnknownKid, *member, Some(now + 60 * SECOND));
                if accounts.take_slot(UnknownKid, *member, SECOND, now) {
                    served.push(i);
                }
            }
        }
        assert_eq!(served, [0, 1, 2, 0, 1]);
    }

    #[test]
    fn a_quiet_member_waits_for_one_slot_however_many_are_flooded() {
        let mut now = clock::monotonic();
        let mut accounts = Accounts::default();
        let flooded: Vec<Member> = (0..5).map(|_| accounts.join()).collect();
        let quiet = accounts.join();
        for _ in 0..10 {
            flooded.iter().for_each(|member| accounts.enqueue(UnknownKid, *member, Some(now + 60 * SECOND)));
            assert!(flooded.iter().any(|member| accounts.take_slot(UnknownKid, *member, SECOND, now)));
            now += SECOND;
        }
        flooded.iter().for_each(|member| accounts.enqueue(UnknownKid, *member, Some(now + 60 * SECOND)));
        accounts.enqueue(UnknownKid, quiet, Some(now + 60 * SECOND));
        assert_eq!(accounts.earliest_start(UnknownKid, quiet, SECOND, now), now);
        assert!(!flooded.iter().any(|member| accounts.take_slot(UnknownKid, *member, SECOND, now)));
        assert!(accounts.take_slot(UnknownKid, quiet, SECOND, now));
    }

    #[test]
    fn newly_opened_realms_get_no_priority_over_an_older_one() {
        let mut now = clock::monotonic();
        let mut accounts = Accounts::default();
        let tenant = accounts.join();
        accounts.enqueue(UnknownKid, tenant, Some(now + 60 * SECOND));
        assert!(accounts.take_slot(UnknownKid, tenant, SECOND, now), "served once");
        for _ in 0..5 {
            now += SECOND;
            let made_up = accounts.join();
            accounts.enqueue(UnknownKid, made_up, Some(now + 60 * SECOND));
            accounts.enqueue(UnknownKid, tenant, Some(now + 60 * SECOND));
            assert!(!accounts.take_slot(UnknownKid, made_up, SECOND, now));
            assert!(accounts.take_slot(UnknownKid, tenant, SECOND, now));
            now += SECOND;
            assert!(accounts.take_slot(UnknownKid, made_up, SECOND, now));
        }
    }

    #[test]
    fn the_earliest_start_follows_from_the_position_in_the_queue() {
        let now = clock::monotonic();
        let mut accounts = Accounts::default();
        let (a, b, c) = (accounts.join(), accounts.join(), accounts.join());
        for member in [a, b, c] {
            accounts.enqueue(UnknownKid, member, Some(now + 60 * SECOND));
        }
        assert_eq!(accounts.earliest_start(UnknownKid, c, SECOND, now), now + 2 * SECOND);
        assert_eq!(
            accounts.earliest_start(BadSignature, c, SECOND, now),
            now,
            "the other cause has its own account"
        );
        assert!(accounts.dequeue(b));
        assert!(!accounts.dequeue(b));
        assert_eq!(accounts.earliest_start(UnknownKid, c, SECOND, now), now + SECOND);
        assert!(accounts.take_slot(UnknownKid, a, SECOND, now));
        assert!(!accounts.take_slot(UnknownKid, c, SECOND, now), "the slot is spent");
        assert!(accounts.take_slot(UnknownKid, c, SECOND, now + SECOND));
    }

    #[test]
    fn an_awaited_member_is_served_before_those_whose_callers_were_denied_or_are_gone() {
        let now = clock::monotonic();
        let mut accounts = Accounts::default();
        let (first, tenant) = (accounts.join(), accounts.join());
        accounts.enqueue(UnknownKid, first, Some(now + SECOND));
        assert!(accounts.take_slot(UnknownKid, first, SECOND, now));
        let flooded: Vec<Member> = (0..100).map(|_| accounts.join()).collect();
        for member in &flooded {
            accounts.enqueue(UnknownKid, *member, None);
        }
        accounts.enqueue(UnknownKid, first, Some(now + SECOND / 2));
        let slot = now + SECOND;
        assert_eq!(accounts.earliest_start_if_awaited(UnknownKid, tenant, SECOND, now), slot);
        accounts.enqueue(UnknownKid, tenant, Some(now + 2 * SECOND));
        assert_eq!(accounts.earliest_start(UnknownKid, tenant, SECOND, now), slot);
        assert!(!flooded.iter().any(|member| accounts.take_slot(UnknownKid, *member, SECOND, slot)));
        assert!(accounts.take_slot(UnknownKid, tenant, SECOND, slot));
        assert!(accounts.take_slot(UnknownKid, first, SECOND, slot + SECOND), "served longest ago of those");
        assert!(flooded.iter().any(|member| accounts.take_slot(
            UnknownKid,
            *member,
            SECOND,
            slot + 2 * SECOND
        )));
    }

    #[test]
    fn a_member_without_waiting_callers_is_queued_again_behind_awaited_ones() {
        let now = clock::monotonic();
        let mut accounts = Accounts::default();
        let (flooded, tenant) = (accounts.join(), accounts.join());
        accounts.enqueue(UnknownKid, flooded, None);
        accounts.enqueue(UnknownKid, tenant, Some(now + 2 * SECOND));
        accounts.enqueue(UnknownKid, flooded, Some(now + 2 * SECOND));
        assert!(!accounts.take_slot(UnknownKid, flooded, SECOND, now));
        assert!(accounts.take_slot(UnknownKid, tenant, SECOND, now));
    }

    #[test]
    fn a_removed_member_blocks_no_other() {
        let now = clock::monotonic();
        let budget = Budget::default();
        let removed = budget.accounts().join();
        let tenant = budget.accounts().join();
        budget.remove(removed);
        budget.accounts().enqueue(UnknownKid, removed, Some(now + SECOND));
        budget.accounts().enqueue(UnknownKid, tenant, Some(now + SECOND));
        assert!(budget.accounts().take_slot(UnknownKid, tenant, SECOND, now));
    }
}
