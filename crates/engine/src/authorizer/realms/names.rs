//! Names of realms: known ones, which had keys, and absent ones, which the issuer has just reported as missing. Pure:
//! the time is an argument, and both are bounded.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::clock::Instant;

/// How long a name stays absent after the issuer's answer.
const ABSENT_FOR: Duration = Duration::from_secs(10);

/// The limit of absent names.
const MAX_ABSENT: usize = 4096;

/// The known names, with the time of the last verified token, in microseconds of one clock; negative for names from a
/// stored list.
#[derive(Debug)]
pub(super) struct Names {
    verified: HashMap<String, i64>,
    max: usize,
    /// Whether the stored names were added.
    pub(super) read: bool,
    /// Whether the stored list lacks one of them.
    pub(super) unsaved: bool,
}

impl Names {
    pub(super) fn new(max: usize) -> Self {
        Self { verified: HashMap::new(), max, read: false, unsaved: false }
    }

    /// The limit.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Changes the limit.
    pub(super) fn set_max(&mut self, max: usize) {
        self.max = max;
        self.evict();
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.verified.contains_key(name)
    }

    /// Whether one more evicts another.
    pub(super) fn is_full(&self) -> bool {
        self.verified.len() >= self.max
    }

    /// A token of this realm was verified. If there are too many names, the least recent one is evicted.
    pub(super) fn record(&mut self, name: &str, at: i64) {
        match self.verified.get_mut(name) {
            Some(last) => *last = at.max(*last),
            None => {
                self.verified.insert(name.to_owned(), at);
                self.unsaved = true;
                self.evict();
            }
        }
    }

    /// Updates the times from the realms in memory.
    pub(super) fn refresh(&mut self, verified: impl IntoIterator<Item = (String, i64)>) {
        for (name, at) in verified {
            if let Some(last) = self.verified.get_mut(&name) {
                *last = at.max(*last);
            }
        }
    }

    /// Adds the names of a stored list, the most recent one first. Names of this process are more recent.
    pub(super) fn add_stored(&mut self, names: impl IntoIterator<Item = String>) {
        for (name, before) in names.into_iter().zip(1..) {
            self.verified.entry(name).or_insert(-before);
        }
        self.read = true;
        self.evict();
    }

    /// All names, the most recent one first.
    pub(super) fn in_order(&self) -> Vec<String> {
        let mut all: Vec<_> = self.verified.iter().collect();
        all.sort_by_key(|(name, at)| (std::cmp::Reverse(**at), *name));
        all.into_iter().map(|(name, _)| name.clone()).collect()
    }

    fn evict(&mut self) {
        if self.verified.len() == self.max + 1 {
            let oldest = self.verified.iter().min_by_key(|(_, at)| **at).map(|(name, _)| name.clone());
            self.verified.remove(&oldest.unwrap_or_default());
        } else if self.verified.len() > self.max {
            let remaining = self.in_order().into_iter().take(self.max);
            self.verified = remaining.filter_map(|name| self.verified.remove_entry(&name)).collect();
        }
    }
}

/// The names that the issuer has just reported as missing.
#[derive(Debug, Default)]
pub(super) struct AbsentNames {
    until: HashMap<String, Instant>,
    /// In the order of their times.
    order: VecDeque<(Instant, String)>,
}

impl AbsentNames {
    /// Called when the issuer has reported the name as missing.
    pub(super) fn insert(&mut self, name: &str, now: Instant) {
        let until = now + ABSENT_FOR;
        self.until.insert(name.to_owned(), until);
        self.order.push_back((until, name.to_owned()));
        self.remove_expired(now);
    }

    /// Whether it was reported as missing lately.
    pub(super) fn contains(&self, name: &str, now: Instant) -> bool {
        self.until.get(name).is_some_and(|until| now < *until)
    }

    fn remove_expired(&mut self, now: Instant) {
        while self.order.len() > MAX_ABSENT || self.order.front().is_some_and(|(until, _)| *until <= now) {
            let Some((until, name)) = self.order.pop_front() else { return };
            // A later report of the same name replaces this one.
            if self.until.get(&name) == Some(&until) {
                self.until.remove(&name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn the_least_recently_verified_name_is_evicted() {
        let mut names = Names::new(3);
        names.add_stored(["old1", "old2"].map(str::to_owned));
        assert!(names.read && !names.unsaved);
        names.record("a", 1);
        assert!(names.unsaved && names.is_full());
        names.record("old1", 2);
        names.record("b", 3);
        assert_eq!(names.in_order(), ["b", "old1", "a"]);
        names.record("c", 4);
        assert_eq!(names.in_order(), ["c", "b", "old1"]);
    }

    #[test]
    fn stored_names_come_after_those_of_this_process_and_are_limited() {
        let mut names = Names::new(3);
        names.record("a", 0);
        names.add_stored(["old1", "a", "old2", "old3"].map(str::to_owned));
        assert_eq!(names.in_order(), ["a", "old1", "old2"]);
        names.set_max(1);
        assert_eq!(names.in_order(), ["a"]);
    }

    #[test]
    fn a_name_is_absent_for_ten_seconds_and_the_oldest_is_removed_beyond_the_limit() {
        let start = clock::monotonic();
        let mut absent = AbsentNames::default();
        absent.insert("a", start);
        assert!(absent.contains("a", start + Duration::from_millis(9_999)));
        assert!(!absent.contains("a", start + ABSENT_FOR));
        assert!(!absent.contains("b", start));
        for i in 0..MAX_ABSENT - 1 {
            absent.insert(&format!("n{i}"), start);
        }
        assert!(absent.contains("a", start));
        absent.insert("one more", start);
        assert!(!absent.contains("a", start));
        assert!(absent.contains("n0", start) && absent.contains("one more", start));
        absent.insert("last", start + ABSENT_FOR);
        assert_eq!((absent.until.len(), absent.order.len()), (1, 1), "expired names are removed");
    }

    #[test]
    fn a_second_report_extends_the_time_of_an_absent_name() {
        let start = clock::monotonic();
        let later = start + ABSENT_FOR / 2;
        let mut absent = AbsentNames::default();
        absent.insert("a", start);
        absent.insert("a", later);
        absent.insert("b", start + ABSENT_FOR);
        assert!(absent.contains("a", start + ABSENT_FOR));
        assert!(!absent.contains("a", later + ABSENT_FOR));
    }
}
