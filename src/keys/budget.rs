//! How many fetches tokens may force, and who may wait for them: an account for each cause, shared by all realms of a provider, since it is the
//! issuer that is spared.
//!
//! Pure: no IO, no clock; it is told the time. A fetch costs its slot whether it succeeds or fails. Realms that wait
//! for a slot are served in the order of when they were served last, the longest ago first: however many are flooded, one
//! that is not waits for one slot.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::clock::Instant;
use crate::validation::StaleCause;

use super::published::Withdrawn;
use super::waiting::Waiting;

/// The budget of one provider, shared by the key caches of its realms.
#[derive(Debug, Default)]
pub struct Budget {
    accounts: Mutex<Accounts>,
    /// Told when somebody left a line, so that those behind look again.
    moved_up: Notify,
    waiting: Waiting,
    /// What was withdrawn, by the names of key caches that are gone and may come back.
    withdrawn: Mutex<HashMap<String, Vec<Withdrawn>>>,
}

/// The state of a budget.
#[derive(Debug, Default)]
pub struct Accounts {
    members: u64,
    unknown_kid: Account,
    bad_signature: Account,
}

/// What one cause may force. It counts from the last fetch that this cause forced.
#[derive(Debug, Default)]
struct Account {
    /// When the next fetch may start; at any time where there has been none.
    free_at: Option<Instant>,
    /// Those that wait, in the order in which they came.
    line: Vec<Member>,
    /// When each was served last, as a count of all that were; never is 0.
    served: HashMap<Member, u64>,
    count: u64,
}

impl Account {
    /// How many are served before this member: those that were served longer ago, and of equals who came first.
    fn before(&self, member: Member) -> usize {
        let last = |one: &Member| self.served.get(one).copied().unwrap_or_default();
        let (own, place) = (last(&member), self.line.iter().position(|one| *one == member));
        let earlier = |(at, one): &(usize, &Member)| {
            **one != member && (last(one), *at) < (own, place.unwrap_or(usize::MAX))
        };
        self.line.iter().enumerate().filter(earlier).count()
    }
}

/// A key cache that draws on a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member(u64);

impl Budget {
    /// No code that holds the lock can panic half-way, so a poisoned one is still sound.
    pub(super) fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who waits for any of the fetches that this budget pays.
    pub(super) fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    /// Resolves when somebody has left a line.
    pub(super) fn moved_up(&self) -> Notified<'_> {
        self.moved_up.notified()
    }

    /// Some may have left their lines: those behind look again.
    pub(super) fn tell_moved_up(&self) {
        self.moved_up.notify_waiters();
    }

    /// A member that is gone: it stands in no line any more, and nothing is known of it.
    pub(super) fn resign(&self, member: Member) {
        let mut accounts = self.accounts();
        for cause in [StaleCause::UnknownKid, StaleCause::BadSignature] {
            accounts.account(cause).served.remove(&member);
        }
        let stood = accounts.leave(member);
        drop(accounts);
        if stood {
            self.moved_up.notify_waiters();
        }
    }

    /// Remembers what was withdrawn of a key cache that goes, in case it comes back: of so many caches at most.
    pub(super) fn remember_withdrawn(&self, name: &str, withdrawn: Vec<Withdrawn>) {
        const MOST_CACHES: usize = 1_024;
        const MOST_KEYS: usize = 32;
        if withdrawn.is_empty() {
            return;
        }
        let mut all = self.withdrawn();
        if all.len() >= MOST_CACHES
            && !all.contains_key(name)
            && let Some(any) = all.keys().next().cloned()
        {
            all.remove(&any);
        }
        let surplus = withdrawn.len().saturating_sub(MOST_KEYS);
        all.insert(name.to_owned(), withdrawn.into_iter().skip(surplus).collect());
    }

    /// What was withdrawn of an earlier key cache of this name.
    pub(super) fn withdrawn_of(&self, name: &str) -> Vec<Withdrawn> {
        self.withdrawn().get(name).cloned().unwrap_or_default()
    }

    fn withdrawn(&self) -> MutexGuard<'_, HashMap<String, Vec<Withdrawn>>> {
        self.withdrawn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Accounts {
    /// One more key cache. It counts as served now: realms that are opened one after the other do not go before one
    /// that has been there.
    pub fn join(&mut self) -> Member {
        self.members += 1;
        let member = Member(self.members);
        for cause in [StaleCause::UnknownKid, StaleCause::BadSignature] {
            let account = self.account(cause);
            account.served.insert(member, account.count + 1);
        }
        member
    }

    /// Puts a member in line for a fetch, if it is not there already.
    pub fn stand_in_line(&mut self, cause: StaleCause, member: Member) {
        let line = &mut self.account(cause).line;
        if !line.contains(&member) {
            line.push(member);
        }
    }

    /// When this member's turn comes at the earliest, now or later.
    pub fn turn(&self, cause: StaleCause, member: Member, spacing: Duration, now: Instant) -> Instant {
        let account = self.account_ref(cause);
        let before = account.before(member);
        let first = account.free_at.map_or(now, |free_at| now.max(free_at));
        first + spacing.saturating_mul(u32::try_from(before).unwrap_or(u32::MAX))
    }

    /// Takes the slot for this member, if its turn has come.
    pub fn take(&mut self, cause: StaleCause, member: Member, spacing: Duration, now: Instant) -> bool {
        let account = self.account(cause);
        let free = account.free_at.is_none_or(|free_at| free_at <= now);
        if !free || !account.line.contains(&member) || account.before(member) > 0 {
            return false;
        }
        account.line.retain(|one| *one != member);
        // Two apart: who joins comes in between.
        account.count += 2;
        account.served.insert(member, account.count);
        account.free_at = Some(now + spacing);
        true
    }

    /// Takes a member out of every line; whether it stood in one.
    pub fn leave(&mut self, member: Member) -> bool {
        let mut stood = false;
        for cause in [StaleCause::UnknownKid, StaleCause::BadSignature] {
            let line = &mut self.account(cause).line;
            let before = line.len();
            line.retain(|one| *one != member);
            stood |= line.len() < before;
        }
        stood
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
    fn all_members_together_have_one_slot_in_a_spacing_and_who_was_served_last_is_last() {
        let now = clock::monotonic();
        let mut accounts = Accounts::default();
        let members: Vec<Member> = (0..3).map(|_| accounts.join()).collect();
        let mut served = Vec::new();
        for tick in 0..9_u32 {
            let now = now + SECOND / 2 * tick;
            for (i, member) in members.iter().enumerate() {
                accounts.stand_in_line(UnknownKid, *member);
                if accounts.take(UnknownKid, *member, SECOND, now) {
                    served.push(i);
                }
            }
        }
        assert_eq!(served, [0, 1, 2, 0, 1]);
    }

    #[test]
    fn one_that_has_forced_nothing_lately_waits_for_one_slot_however_many_are_flooded() {
        let mut now = clock::monotonic();
        let mut accounts = Accounts::default();
        let flooded: Vec<Member> = (0..5).map(|_| accounts.join()).collect();
        let quiet = accounts.join();
        for _ in 0..10 {
            flooded.iter().for_each(|member| accounts.stand_in_line(UnknownKid, *member));
            assert!(flooded.iter().any(|member| accounts.take(UnknownKid, *member, SECOND, now)));
            now += SECOND;
        }
        flooded.iter().for_each(|member| accounts.stand_in_line(UnknownKid, *member));
        accounts.stand_in_line(UnknownKid, quiet);
        assert_eq!(accounts.turn(UnknownKid, quiet, SECOND, now), now);
        assert!(!flooded.iter().any(|member| accounts.take(UnknownKid, *member, SECOND, now)));
        assert!(accounts.take(UnknownKid, quiet, SECOND, now));
    }

    #[test]
    fn realms_that_are_opened_one_after_the_other_do_not_go_before_one_that_was_there() {
        let mut now = clock::monotonic();
        let mut accounts = Accounts::default();
        let tenant = accounts.join();
        accounts.stand_in_line(UnknownKid, tenant);
        assert!(accounts.take(UnknownKid, tenant, SECOND, now), "served once");
        for _ in 0..5 {
            now += SECOND;
            let made_up = accounts.join();
            accounts.stand_in_line(UnknownKid, made_up);
            accounts.stand_in_line(UnknownKid, tenant);
            assert!(!accounts.take(UnknownKid, made_up, SECOND, now));
            assert!(accounts.take(UnknownKid, tenant, SECOND, now));
            now += SECOND;
            assert!(accounts.take(UnknownKid, made_up, SECOND, now));
        }
    }

    #[test]
    fn a_turn_is_told_by_the_place_in_line_and_comes_sooner_when_somebody_leaves() {
        let now = clock::monotonic();
        let mut accounts = Accounts::default();
        let (a, b, c) = (accounts.join(), accounts.join(), accounts.join());
        for member in [a, b, c] {
            accounts.stand_in_line(UnknownKid, member);
        }
        assert_eq!(accounts.turn(UnknownKid, c, SECOND, now), now + 2 * SECOND);
        assert_eq!(accounts.turn(BadSignature, c, SECOND, now), now, "the other cause has its own account");
        assert!(accounts.leave(b));
        assert!(!accounts.leave(b));
        assert_eq!(accounts.turn(UnknownKid, c, SECOND, now), now + SECOND);
        assert!(accounts.take(UnknownKid, a, SECOND, now));
        assert!(!accounts.take(UnknownKid, c, SECOND, now), "the slot is spent");
        assert!(accounts.take(UnknownKid, c, SECOND, now + SECOND));
    }
}
