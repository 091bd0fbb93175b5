//! What is remembered of names: those of realms that had keys, which nobody made up, and those of which the issuer
//! has just said that they do not exist. Pure: it is told the time, and both are bounded.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::clock::Instant;

/// How long the issuer's word counts that a realm does not exist.
const ABSENT_FOR: Duration = Duration::from_secs(10);

/// How many names of which it has said so are remembered.
const MOST_ABSENT: usize = 4096;

/// The names that had keys, with the time of the last verified token, in microseconds of one clock; before zero
/// where a list of an earlier process has them.
#[derive(Debug)]
pub(super) struct Names {
    verified: HashMap<String, i64>,
    most: usize,
    /// Whether those of an earlier process are among them.
    pub(super) read: bool,
    /// Whether there is one that the list beside the snapshots lacks.
    pub(super) unsaved: bool,
}

impl Names {
    pub(super) fn new(most: usize) -> Self {
        Self { verified: HashMap::new(), most, read: false, unsaved: false }
    }

    /// How many there may be.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// From now on at most so many.
    pub(super) fn bound(&mut self, most: usize) {
        self.most = most;
        self.trim();
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.verified.contains_key(name)
    }

    /// Whether one more pushes another out.
    pub(super) fn is_full(&self) -> bool {
        self.verified.len() >= self.most
    }

    /// A token of this realm was verified. Where there are too many names, the least recent one goes.
    pub(super) fn note(&mut self, name: &str, at: i64) {
        match self.verified.get_mut(name) {
            Some(last) => *last = at.max(*last),
            None => {
                self.verified.insert(name.to_owned(), at);
                self.unsaved = true;
                self.trim();
            }
        }
    }

    /// What memory has seen of realms since they were noted.
    pub(super) fn refresh(&mut self, verified: impl IntoIterator<Item = (String, i64)>) {
        for (name, at) in verified {
            if let Some(last) = self.verified.get_mut(&name) {
                *last = at.max(*last);
            }
        }
    }

    /// Names of an earlier process, the most recent one first. What this one has seen is more recent.
    pub(super) fn record_fetch(&mut self, names: impl IntoIterator<Item = String>) {
        for (name, before) in names.into_iter().zip(1..) {
            self.verified.entry(name).or_insert(-before);
        }
        self.read = true;
        self.trim();
    }

    /// All, the most recent one first.
    pub(super) fn in_order(&self) -> Vec<String> {
        let mut all: Vec<_> = self.verified.iter().collect();
        all.sort_by_key(|(name, at)| (std::cmp::Reverse(**at), *name));
        all.into_iter().map(|(name, _)| name.clone()).collect()
    }

    fn trim(&mut self) {
        if self.verified.len() == self.most + 1 {
            let least = self.verified.iter().min_by_key(|(_, at)| **at).map(|(name, _)| name.clone());
            self.verified.remove(&least.unwrap_or_default());
        } else if self.verified.len() > self.most {
            let kept = self.in_order().into_iter().take(self.most);
            self.verified = kept.filter_map(|name| self.verified.remove_entry(&name)).collect();
        }
    }
}

/// The names of which the issuer has just said that they do not exist.
#[derive(Debug, Default)]
pub(super) struct Absent {
    until: HashMap<String, Instant>,
    /// In the order of their times, which is that in which they came.
    order: VecDeque<(Instant, String)>,
}

impl Absent {
    /// The issuer has said so at this time.
    pub(super) fn note(&mut self, name: &str, now: Instant) {
        let until = now + ABSENT_FOR;
        self.until.insert(name.to_owned(), until);
        self.order.push_back((until, name.to_owned()));
        self.forget(now);
    }

    /// Whether it has said so lately.
    pub(super) fn contains(&self, name: &str, now: Instant) -> bool {
        self.until.get(name).is_some_and(|until| now < *until)
    }

    fn forget(&mut self, now: Instant) {
        while self.order.len() > MOST_ABSENT || self.order.front().is_some_and(|(until, _)| *until <= now) {
            let Some((until, name)) = self.order.pop_front() else { return };
            // One that was said to be absent again since counts from then on.
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
    fn the_name_that_was_verified_least_lately_goes_when_there_are_too_many() {
        let mut names = Names::new(3);
        names.record_fetch(["old1", "old2"].map(str::to_owned));
        assert!(names.read && !names.unsaved);
        names.note("a", 1);
        assert!(names.unsaved && names.is_full());
        names.note("old1", 2);
        names.note("b", 3);
        assert_eq!(names.in_order(), ["b", "old1", "a"]);
        names.note("c", 4);
        assert_eq!(names.in_order(), ["c", "b", "old1"]);
    }

    #[test]
    fn names_of_an_earlier_process_come_after_those_of_this_one_and_are_bounded() {
        let mut names = Names::new(3);
        names.note("a", 0);
        names.record_fetch(["old1", "a", "old2", "old3"].map(str::to_owned));
        assert_eq!(names.in_order(), ["a", "old1", "old2"]);
        names.bound(1);
        assert_eq!(names.in_order(), ["a"]);
    }

    #[test]
    fn a_name_is_absent_for_ten_seconds_and_the_oldest_of_too_many_is_forgotten() {
        let start = clock::monotonic();
        let mut absent = Absent::default();
        absent.note("a", start);
        assert!(absent.contains("a", start + Duration::from_millis(9_999)));
        assert!(!absent.contains("a", start + ABSENT_FOR));
        assert!(!absent.contains("b", start));
        for i in 0..MOST_ABSENT - 1 {
            absent.note(&format!("n{i}"), start);
        }
        assert!(absent.contains("a", start));
        absent.note("one more", start);
        assert!(!absent.contains("a", start));
        assert!(absent.contains("n0", start) && absent.contains("one more", start));
        absent.note("last", start + ABSENT_FOR);
        assert_eq!((absent.until.len(), absent.order.len()), (1, 1), "what is over is forgotten");
    }

    #[test]
    fn a_name_that_is_said_to_be_absent_twice_counts_from_the_last_time() {
        let start = clock::monotonic();
        let later = start + ABSENT_FOR / 2;
        let mut absent = Absent::default();
        absent.note("a", start);
        absent.note("a", later);
        absent.note("b", start + ABSENT_FOR);
        assert!(absent.contains("a", start + ABSENT_FOR));
        assert!(!absent.contains("a", later + ABSENT_FOR));
    }
}
