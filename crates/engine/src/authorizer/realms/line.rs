//! Who opens next: the names of realms whose callers wait, and the slots in which they are opened.
//!
//! Pure: it is told the time, and opens nothing itself. Names that had keys have slots of their own, as many as
//! there can be such names; new ones a burst of [`BURST`] and one more with each spacing, and at most
//! [`AT_ONE_TIME`] of their first fetches are under way. Of the names in a lane the one that has had somebody
//! waiting for the longest without a break comes next, so a name that is sent once costs one caller's wait.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::clock::Instant;
use crate::keys::names::RealmName;

/// New names that may be opened in a burst.
pub(super) const BURST: usize = 16;

/// First fetches of new names that may be under way at one time.
pub(super) const AT_ONE_TIME: usize = 16;
/// New names that may wait at one time.
const MOST_NAMES: usize = 1024;

/// What is known of a name when it joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// It had keys, or the configuration names it and has room for all that it names.
    Known,
    /// Anybody may have made it up.
    New,
}

/// Nobody else may join at this time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// Which turn it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This name is to be opened; [`Line::opened`] has to follow, and of a new one [`Line::first_fetch_ended`].
    Open(RealmName, Class),
    /// Nobody's before this time, unless something changes.
    At(Instant),
    /// Nobody's until something changes.
    Later,
    /// Nobody waits.
    Empty,
}

/// One caller's place. Tells its stay from a later one of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// The names that wait, each with a `C` by which its callers are told.
pub(super) struct Line<C> {
    places: HashMap<RealmName, Place<C>>,
    known: Lane,
    new: Lane,
    joined: u64,
    first_fetches: usize,
    /// Whether the names that had keys have been read: before that none is told to be new.
    sorted: bool,
}

struct Place<C> {
    ticket: Ticket,
    class: Class,
    callers: usize,
    opening: bool,
    told: C,
}

/// The names of one class.
struct Lane {
    /// Those that wait, by their tickets: the longest wait first.
    order: BTreeMap<u64, RealmName>,
    slots: Slots,
    names: usize,
    most_names: usize,
    /// Callers besides the first one of each name.
    others: usize,
    most_others: usize,
}

impl<C> Line<C> {
    /// An empty line. Of names that had keys `most_known` may open in a burst. At most `most_callers` wait in each
    /// lane; so that the many callers of one name do not keep other names out, the first caller of each new name
    /// has its place among 1,024, and those after it share the rest.
    pub(super) fn new(spacing: Duration, most_known: usize, most_callers: usize, now: Instant) -> Self {
        let most_names = MOST_NAMES.min(most_callers.div_ceil(2));
        let lane = |burst, most_names, most_others| Lane {
            order: BTreeMap::new(),
            slots: Slots { burst, left: burst, filled: now, spacing: spacing.max(Duration::from_millis(1)) },
            names: 0,
            most_names,
            others: 0,
            most_others,
        };
        Self {
            places: HashMap::new(),
            known: lane(most_known, usize::MAX, most_callers),
            new: lane(BURST, most_names, most_callers.saturating_sub(most_names)),
            joined: 0,
            first_fetches: 0,
            sorted: false,
        }
    }

    /// One more caller waits for this name. Gives what it is told by.
    ///
    /// # Errors
    /// There is no place.
    pub(super) fn join(
        &mut self,
        name: &RealmName,
        class: Class,
        told: impl FnOnce() -> C,
    ) -> Result<(Ticket, &C), Full> {
        let waiting = self.places.get(name);
        let class = waiting.map_or(class, |place| place.class);
        let lane = match class {
            Class::Known => &mut self.known,
            Class::New => &mut self.new,
        };
        match waiting {
            None if lane.names >= lane.most_names => return Err(Full),
            Some(place) if place.callers > 0 && lane.others >= lane.most_others => return Err(Full),
            None => lane.names += 1,
            Some(place) => lane.others += usize::from(place.callers > 0),
        }
        let place = self.places.entry(name.clone()).or_insert_with(|| {
            self.joined += 1;
            lane.order.insert(self.joined, name.clone());
            Place { ticket: Ticket(self.joined), class, callers: 0, opening: false, told: told() }
        });
        place.callers += 1;
        Ok((place.ticket, &place.told))
    }

    /// One caller waits no longer. A name without callers leaves the line.
    pub(super) fn leave(&mut self, name: &str, ticket: Ticket) {
        let Some(place) = self.places.get_mut(name).filter(|place| place.ticket == ticket) else { return };
        let lane = match place.class {
            Class::Known => &mut self.known,
            Class::New => &mut self.new,
        };
        lane.others -= usize::from(place.callers > 1);
        place.callers = place.callers.saturating_sub(1);
        if place.callers == 0 && !place.opening {
            lane.order.remove(&ticket.0);
            lane.names -= 1;
            self.places.remove(name);
        }
    }

    /// Whether no name waits for its turn.
    pub(super) fn is_empty(&self) -> bool {
        self.known.order.is_empty() && self.new.order.is_empty()
    }

    /// The names that had keys have been read: those of them that wait are no longer among the new.
    pub(super) fn sort(&mut self, is_known: impl Fn(&RealmName) -> bool) {
        self.sorted = true;
        for (name, place) in &mut self.places {
            if place.class == Class::New && !place.opening && is_known(name) {
                place.class = Class::Known;
                let (ticket, others) = (place.ticket.0, place.callers.saturating_sub(1));
                self.known.order.extend(self.new.order.remove_entry(&ticket));
                (self.new.names, self.known.names) = (self.new.names - 1, self.known.names + 1);
                (self.new.others, self.known.others) = (self.new.others - others, self.known.others + others);
            }
        }
    }

    /// Whose turn it is.
    pub(super) fn next(&mut self, now: Instant) -> Next {
        if self.is_empty() {
            return Next::Empty;
        }
        let of_known = self.known.next(now);
        let may_open = self.sorted && self.first_fetches < AT_ONE_TIME;
        let (turn, class) = match of_known {
            Turn::Of(_) => (of_known, Class::Known),
            _ if !may_open => (of_known, Class::Known),
            _ => (self.new.next(now).or_earlier(of_known), Class::New),
        };
        match turn {
            Turn::Of(name) => {
                self.first_fetches += usize::from(class == Class::New);
                if let Some(place) = self.places.get_mut(&name) {
                    place.opening = true;
                }
                Next::Open(name, class)
            }
            Turn::At(time) => Next::At(time),
            Turn::Nobodys => Next::Later,
        }
    }

    /// A name was opened, or could not be. Gives what its callers are told by.
    pub(super) fn opened(&mut self, name: &str) -> Option<C> {
        let place = self.places.remove(name)?;
        let lane = match place.class {
            Class::Known => &mut self.known,
            Class::New => &mut self.new,
        };
        lane.order.remove(&place.ticket.0);
        lane.names -= 1;
        lane.others -= place.callers.saturating_sub(1);
        Some(place.told)
    }

    /// The first fetch of a new name has ended, or never began.
    pub(super) fn first_fetch_ended(&mut self) {
        self.first_fetches = self.first_fetches.saturating_sub(1);
    }
}

enum Turn {
    Of(RealmName),
    At(Instant),
    Nobodys,
}

impl Turn {
    fn or_earlier(self, other: Turn) -> Turn {
        match (self, other) {
            (Turn::At(a), Turn::At(b)) => Turn::At(a.min(b)),
            (Turn::Nobodys, other) => other,
            (turn, _) => turn,
        }
    }
}

impl Lane {
    fn next(&mut self, now: Instant) -> Turn {
        if self.order.is_empty() {
            return Turn::Nobodys;
        }
        match self.slots.take(now) {
            Ok(()) => self.order.pop_first().map_or(Turn::Nobodys, |(_, name)| Turn::Of(name)),
            Err(next) => Turn::At(next),
        }
    }
}

/// A burst, and one more with each spacing.
struct Slots {
    burst: usize,
    left: usize,
    filled: Instant,
    spacing: Duration,
}

impl Slots {
    /// Takes one.
    ///
    /// # Errors
    /// None is left before this time.
    fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let since = now.saturating_duration_since(self.filled);
        let come = since.as_nanos() / self.spacing.as_nanos();
        self.left = self.left.saturating_add(usize::try_from(come).unwrap_or(usize::MAX)).min(self.burst);
        // Below the burst few have come, and what has passed of the next spacing counts.
        self.filled = match u32::try_from(come) {
            Ok(come) if self.left < self.burst => self.filled + self.spacing * come,
            _ => now,
        };
        if self.left == 0 {
            return Err(self.filled + self.spacing);
        }
        self.left -= 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
