//! The queue of names whose callers wait for the realm to be opened, and the rate at which they are opened.
//!
//! Pure: the time is an argument, and nothing is opened here. Known names have a burst as large as their limit; new
//! ones a burst of [`BURST`] and one more with each spacing, and at most [`MAX_FIRST_FETCHES`] of their first fetches
//! are in progress. Of the names of a lane the one that has had a waiting caller for the longest without a break is
//! next, so a name that is sent once costs one caller's wait.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::clock::Instant;
use crate::keys::names::RealmName;

/// New names that may be opened in a burst.
pub(super) const BURST: usize = 16;

/// First fetches of new names that may be in progress at the same time.
pub(super) const MAX_FIRST_FETCHES: usize = 16;
/// New names that may be queued at the same time.
const MAX_NAMES: usize = 1024;

/// What is known of a name when it is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// It had keys, or it is in a configured list of which all names fit in memory.
    Known,
    /// It may be made up.
    New,
}

/// The queue is full.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct QueueFull;

/// What to open next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Open this name; [`RealmQueue::opened`] has to follow, and for a new one [`RealmQueue::first_fetch_ended`].
    Open(RealmName, Class),
    /// Nothing before this time, unless something changes.
    At(Instant),
    /// Nothing until something changes.
    Later,
    /// The queue is empty.
    Empty,
}

/// Identifies a name's stay in the queue, as opposed to a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// The queued names, each with a `C` that notifies its callers.
pub(super) struct RealmQueue<C> {
    entries: HashMap<RealmName, Entry<C>>,
    known: Lane,
    new: Lane,
    last_ticket: u64,
    first_fetches: usize,
    /// Whether the stored names have been read: before that no name is treated as new.
    classified: bool,
}

struct Entry<C> {
    ticket: Ticket,
    class: Class,
    callers: usize,
    opening: bool,
    notify: C,
}

/// The names of one class.
struct Lane {
    /// Queued names by their tickets: the longest wait first.
    order: BTreeMap<u64, RealmName>,
    bucket: TokenBucket,
    names: usize,
    max_names: usize,
    /// Callers besides the first one of each name.
    extra_callers: usize,
    max_extra_callers: usize,
}

impl<C> RealmQueue<C> {
    /// An empty queue. Of known names `max_known` may be opened in a burst. At most `max_callers` wait in each lane;
    /// so that the callers of one name do not keep other names out, the first caller of each new name has one of
    /// 1,024 places, and further callers share the rest.
    pub(super) fn new(spacing: Duration, max_known: usize, max_callers: usize, now: Instant) -> Self {
        let max_names = MAX_NAMES.min(max_callers.div_ceil(2));
        let lane = |burst, max_names, max_extra_callers| Lane {
            order: BTreeMap::new(),
            bucket: TokenBucket {
                burst,
                available: burst,
                refilled_at: now,
                spacing: spacing.max(Duration::from_millis(1)),
            },
            names: 0,
            max_names,
            extra_callers: 0,
            max_extra_callers,
        };
        Self {
            entries: HashMap::new(),
            known: lane(max_known, usize::MAX, max_callers),
            new: lane(BURST, max_names, max_callers.saturating_sub(max_names)),
            last_ticket: 0,
            first_fetches: 0,
            classified: false,
        }
    }

    /// Queues one more caller for this name. Returns what notifies it.
    ///
    /// # Errors
    /// The queue is full.
    pub(super) fn join(
        &mut self,
        name: &RealmName,
        class: Class,
        notify: impl FnOnce() -> C,
    ) -> Result<(Ticket, &C), QueueFull> {
        let existing = self.entries.get(name);
        let class = existing.map_or(class, |entry| entry.class);
        let lane = match class {
            Class::Known => &mut self.known,
            Class::New => &mut self.new,
        };
        match existing {
            None if lane.names >= lane.max_names => return Err(QueueFull),
            Some(entry) if entry.callers > 0 && lane.extra_callers >= lane.max_extra_callers => {
                return Err(QueueFull);
            }
            None => lane.names += 1,
            Some(entry) => lane.extra_callers += usize::from(entry.callers > 0),
        }
        let entry = self.entries.entry(name.clone()).or_insert_with(|| {
            self.last_ticket += 1;
            lane.order.insert(self.last_ticket, name.clone());
            Entry { ticket: Ticket(self.last_ticket), class, callers: 0, opening: false, notify: notify() }
        });
        entry.callers += 1;
        Ok((entry.ticket, &entry.notify))
    }

    /// Removes a caller. A name without callers is removed from the queue.
    pub(super) fn leave(&mut self, name: &str, ticket: Ticket) {
        let Some(entry) = self.entries.get_mut(name).filter(|entry| entry.ticket == ticket) else { return };
        let lane = match entry.class {
            Class::Known => &mut self.known,
            Class::New => &mut self.new,
        };
        lane.extra_callers -= usize::from(entry.callers > 1);
        entry.callers = entry.callers.saturating_sub(1);
        if entry.callers == 0 && !entry.opening {
            lane.order.remove(&ticket.0);
            lane.names -= 1;
            self.entries.remove(name);
        }
    }

    /// Whether no name waits to be opened.
    pub(super) fn is_empty(&self) -> bool {
        self.known.order.is_empty() && self.new.order.is_empty()
    }

    /// Called when the stored names have been read: known names are moved to their lane.
    pub(super) fn classify(&mut self, is_known: impl Fn(&RealmName) -> bool) {
        self.classified = true;
        for (name, entry) in &mut self.entries {
            if entry.class == Class::New && !entry.opening && is_known(name) {
                entry.class = Class::Known;
                let (ticket, extra_callers) = (entry.ticket.0, entry.callers.saturating_sub(1));
                self.known.order.extend(self.new.order.remove_entry(&ticket));
                (self.new.names, self.known.names) = (self.new.names - 1, self.known.names + 1);
                (self.new.extra_callers, self.known.extra_callers) =
                    (self.new.extra_callers - extra_callers, self.known.extra_callers + extra_callers);
            }
        }
    }

    /// What to open next.
    pub(super) fn next(&mut self, now: Instant) -> Next {
        if self.is_empty() {
            return Next::Empty;
        }
        let known = self.known.next(now);
        let may_open = self.classified && self.first_fetches < MAX_FIRST_FETCHES;
        let (next, class) = match known {
            LaneNext::Open(_) => (known, Class::Known),
            _ if !may_open => (known, Class::Known),
            _ => (self.new.next(now).or_earlier(known), Class::New),
        };
        match next {
            LaneNext::Open(name) => {
                self.first_fetches += usize::from(class == Class::New);
                if let Some(entry) = self.entries.get_mut(&name) {
                    entry.opening = true;
                }
                Next::Open(name, class)
            }
            LaneNext::At(time) => Next::At(time),
            LaneNext::Nothing => Next::Later,
        }
    }

    /// A name was opened, or could not be. Returns what notifies its callers.
    pub(super) fn opened(&mut self, name: &str) -> Option<C> {
        let entry = self.entries.remove(name)?;
        let lane = match entry.class {
            Class::Known => &mut self.known,
            Class::New => &mut self.new,
        };
        lane.order.remove(&entry.ticket.0);
        lane.names -= 1;
        lane.extra_callers -= entry.callers.saturating_sub(1);
        Some(entry.notify)
    }

    /// The first fetch of a new name has ended, or never started.
    pub(super) fn first_fetch_ended(&mut self) {
        self.first_fetches = self.first_fetches.saturating_sub(1);
    }
}

enum LaneNext {
    Open(RealmName),
    At(Instant),
    Nothing,
}

impl LaneNext {
    fn or_earlier(self, other: LaneNext) -> LaneNext {
        match (self, other) {
            (LaneNext::At(a), LaneNext::At(b)) => LaneNext::At(a.min(b)),
            (LaneNext::Nothing, other) => other,
            (next, _) => next,
        }
    }
}

impl Lane {
    fn next(&mut self, now: Instant) -> LaneNext {
        if self.order.is_empty() {
            return LaneNext::Nothing;
        }
        match self.bucket.take(now) {
            Ok(()) => self.order.pop_first().map_or(LaneNext::Nothing, |(_, name)| LaneNext::Open(name)),
            Err(next) => LaneNext::At(next),
        }
    }
}

/// A token bucket: a burst, and one more with each spacing.
struct TokenBucket {
    burst: usize,
    available: usize,
    refilled_at: Instant,
    spacing: Duration,
}

impl TokenBucket {
    /// Takes a token.
    ///
    /// # Errors
    /// The bucket is empty until this time.
    fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let elapsed = now.saturating_duration_since(self.refilled_at);
        let refilled = elapsed.as_nanos() / self.spacing.as_nanos();
        self.available =
            self.available.saturating_add(usize::try_from(refilled).unwrap_or(usize::MAX)).min(self.burst);
        // Below the burst few were added, and the elapsed part of the next spacing is kept.
        self.refilled_at = match u32::try_from(refilled) {
            Ok(refilled) if self.available < self.burst => self.refilled_at + self.spacing * refilled,
            _ => now,
        };
        if self.available == 0 {
            return Err(self.refilled_at + self.spacing);
        }
        self.available -= 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
