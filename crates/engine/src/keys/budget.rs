//! How many fetches tokens may force, and who may wait for them: an account for each cause, shared by all realms of a provider, since it is the
//! issuer that is spared.
//!
//! Pure: no IO, no clock; it is told the time. A fetch costs its slot whether it succeeds or fails. Realms with callers
//! that still wait when the slot is free are served before those whose callers are gone or were turned away; each of the
//! two in the order of when they were served last, the longest ago first: however many are flooded, one that is not waits
//! for one slot.

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
    /// Told when somebody left a line, so that those behind look again.
    moved_up: Notify,
    waiting: Waiting,
    /// What was withdrawn, by the names of key caches that are gone and may come back.
    known: Mutex<HashMap<String, Known>>,
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
    line: Vec<InLine>,
    /// When each was served last, as a count of all that were; never is 0.
    served: HashMap<Member, u64>,
    count: u64,
}

/// A member's place.
#[derive(Clone, Copy, Debug)]
struct InLine {
    member: Member,
    /// When it was served last.
    served: u64,
    /// The latest deadline of the callers that wait for it; none where all were turned away.
    awaited_until: Option<Instant>,
}

/// The lowest is served first: who is awaited, was served longest ago, and came first.
type Rank = (bool, u64, usize);

impl Account {
    /// Whether somebody will still wait when the next slot is free. That moment, and not the present, decides, so that
    /// the order stays as it is until then.
    fn is_awaited(&self, one: &InLine) -> bool {
        one.awaited_until.is_some_and(|until| self.free_at.is_none_or(|slot| slot < until))
    }

    fn rank(&self, at: usize, one: &InLine) -> Rank {
        (!self.is_awaited(one), one.served, at)
    }

    /// Of a member that stands in line.
    fn rank_of(&self, member: Member) -> Option<Rank> {
        let at = self.line.iter().position(|one| one.member == member)?;
        self.line.get(at).map(|one| self.rank(at, one))
    }

    /// Of a member that joins the line now, with somebody who waits.
    fn rank_of_new(&self, member: Member) -> Rank {
        (false, self.served.get(&member).copied().unwrap_or_default(), usize::MAX)
    }

    /// How many are served before this rank.
    fn before(&self, rank: Rank) -> usize {
        self.line.iter().enumerate().filter(|(at, one)| self.rank(*at, one) < rank).count()
    }

    fn turn(&self, rank: Rank, spacing: Duration, now: Instant) -> Instant {
        let first = self.free_at.map_or(now, |free_at| now.max(free_at));
        first + spacing.saturating_mul(u32::try_from(self.before(rank)).unwrap_or(u32::MAX))
    }
}

/// What was known of a key cache's keys when it went.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Those that were withdrawn.
    pub(super) withdrawn: Vec<Withdrawn>,
    /// Those that it had: what the first answer of its successor lacks of them is withdrawn.
    pub(super) keys: Vec<KeyName>,
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

    /// Remembers what was known of a key cache's keys when it goes, in case it comes back: of so many caches at most.
    pub(super) fn remember(&self, name: &str, mut known: Known) {
        const MOST_CACHES: usize = 1_024;
        const MOST_KEYS: usize = 32;
        if known.withdrawn.is_empty() && known.keys.is_empty() {
            return;
        }
        known.withdrawn.sort_by_key(|one| std::cmp::Reverse(one.shown_by.received()));
        known.withdrawn.truncate(MOST_KEYS);
        known.keys.truncate(MOST_KEYS);
        let mut all = self.known();
        if all.len() >= MOST_CACHES
            && !all.contains_key(name)
            && let Some(any) = all.keys().next().cloned()
        {
            all.remove(&any);
        }
        all.insert(name.to_owned(), known);
    }

    /// What was known of the keys of an earlier key cache of this name.
    pub(super) fn known_of(&self, name: &str) -> Known {
        self.known().get(name).cloned().unwrap_or_default()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Puts a member in line for a fetch, with a caller that waits until then; none where it was turned away. A member
    /// that nobody waited for any more begins anew behind those that somebody does.
    pub fn stand_in_line(&mut self, cause: StaleCause, member: Member, until: Option<Instant>) {
        let account = self.account(cause);
        if let Some(at) = account.line.iter().position(|one| one.member == member) {
            let Some(one) = account.line.get(at).copied() else { return };
            if until.is_none() {
                return;
            }
            if account.is_awaited(&one) {
                account.line.iter_mut().filter(|one| one.member == member).for_each(|one| {
                    one.awaited_until = one.awaited_until.max(until);
                });
                return;
            }
            account.line.remove(at);
        }
        // One that has resigned would never take its slot, and nobody behind it could.
        if let Some(served) = account.served.get(&member).copied() {
            account.line.push(InLine { member, served, awaited_until: until });
        }
    }

    /// Whether this member stands in any line.
    pub fn stands_in_line(&self, member: Member) -> bool {
        let stands = |account: &Account| account.line.iter().any(|one| one.member == member);
        stands(&self.unknown_kid) || stands(&self.bad_signature)
    }

    /// When this member's turn comes at the earliest, now or later.
    pub fn turn(&self, cause: StaleCause, member: Member, spacing: Duration, now: Instant) -> Instant {
        let account = self.account_ref(cause);
        let rank = account.rank_of(member).unwrap_or_else(|| account.rank_of_new(member));
        account.turn(rank, spacing, now)
    }

    /// The same if there is a caller that waits for it.
    pub fn turn_if_awaited(
        &self,
        cause: StaleCause,
        member: Member,
        spacing: Duration,
        now: Instant,
    ) -> Instant {
        let account = self.account_ref(cause);
        let awaited = account.rank_of(member).filter(|(idle, ..)| !idle);
        account.turn(awaited.unwrap_or_else(|| account.rank_of_new(member)), spacing, now)
    }

    /// Takes the slot for this member, if its turn has come.
    pub fn take(&mut self, cause: StaleCause, member: Member, spacing: Duration, now: Instant) -> bool {
        let account = self.account(cause);
        let free = account.free_at.is_none_or(|free_at| free_at <= now);
        if !free || account.rank_of(member).is_none_or(|rank| account.before(rank) > 0) {
            return false;
        }
        account.line.retain(|one| one.member != member);
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
            line.retain(|one| one.member != member);
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
                accounts.stand_in_line(UnknownKid, *member, Some(now + 60 * SECOND));
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
            flooded
                .iter()
                .for_each(|member| accounts.stand_in_line(UnknownKid, *member, Some(now + 60 * SECOND)));
            assert!(flooded.iter().any(|member| accounts.take(UnknownKid, *member, SECOND, now)));
            now += SECOND;
        }
        flooded
            .iter()
            .for_each(|member| accounts.stand_in_line(UnknownKid, *member, Some(now + 60 * SECOND)));
        accounts.stand_in_line(UnknownKid, quiet, Some(now + 60 * SECOND));
        assert_eq!(accounts.turn(UnknownKid, quiet, SECOND, now), now);
        assert!(!flooded.iter().any(|member| accounts.take(UnknownKid, *member, SECOND, now)));
        assert!(accounts.take(UnknownKid, quiet, SECOND, now));
    }

    #[test]
    fn realms_that_are_opened_one_after_the_other_do_not_go_before_one_that_was_there() {
        let mut now = clock::monotonic();
        let mut accounts = Accounts::default();
        let tenant = accounts.join();
        accounts.stand_in_line(UnknownKid, tenant, Some(now + 60 * SECOND));
        assert!(accounts.take(UnknownKid, tenant, SECOND, now), "served once");
        for _ in 0..5 {
            now += SECOND;
            let made_up = accounts.join();
            accounts.stand_in_line(UnknownKid, made_up, Some(now + 60 * SECOND));
            accounts.stand_in_line(UnknownKid, tenant, Some(now + 60 * SECOND));
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
            accounts.stand_in_line(UnknownKid, member, Some(now + 60 * SECOND));
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

    #[test]
    fn one_that_somebody_waits_for_is_served_before_all_whose_callers_were_turned_away_or_are_gone() {
        let now = clock::monotonic();
        let mut accounts = Accounts::default();
        let (first, tenant) = (accounts.join(), accounts.join());
        accounts.stand_in_line(UnknownKid, first, Some(now + SECOND));
        assert!(accounts.take(UnknownKid, first, SECOND, now));
        let flooded: Vec<Member> = (0..100).map(|_| accounts.join()).collect();
        for member in &flooded {
            accounts.stand_in_line(UnknownKid, *member, None);
        }
        accounts.stand_in_line(UnknownKid, first, Some(now + SECOND / 2));
        let slot = now + SECOND;
        assert_eq!(accounts.turn_if_awaited(UnknownKid, tenant, SECOND, now), slot);
        accounts.stand_in_line(UnknownKid, tenant, Some(now + 2 * SECOND));
        assert_eq!(accounts.turn(UnknownKid, tenant, SECOND, now), slot);
        assert!(!flooded.iter().any(|member| accounts.take(UnknownKid, *member, SECOND, slot)));
        assert!(accounts.take(UnknownKid, tenant, SECOND, slot));
        assert!(accounts.take(UnknownKid, first, SECOND, slot + SECOND), "served longest ago of those");
        assert!(flooded.iter().any(|member| accounts.take(UnknownKid, *member, SECOND, slot + 2 * SECOND)));
    }

    #[test]
    fn one_that_nobody_waited_for_any_more_begins_anew_behind_one_that_somebody_does() {
        let now = clock::monotonic();
        let mut accounts = Accounts::default();
        let (flooded, tenant) = (accounts.join(), accounts.join());
        accounts.stand_in_line(UnknownKid, flooded, None);
        accounts.stand_in_line(UnknownKid, tenant, Some(now + 2 * SECOND));
        accounts.stand_in_line(UnknownKid, flooded, Some(now + 2 * SECOND));
        assert!(!accounts.take(UnknownKid, flooded, SECOND, now));
        assert!(accounts.take(UnknownKid, tenant, SECOND, now));
    }

    #[test]
    fn one_that_has_resigned_holds_up_nobody() {
        let now = clock::monotonic();
        let budget = Budget::default();
        let gone = budget.accounts().join();
        let tenant = budget.accounts().join();
        budget.resign(gone);
        budget.accounts().stand_in_line(UnknownKid, gone, Some(now + SECOND));
        budget.accounts().stand_in_line(UnknownKid, tenant, Some(now + SECOND));
        assert!(budget.accounts().take(UnknownKid, tenant, SECOND, now));
    }
}
