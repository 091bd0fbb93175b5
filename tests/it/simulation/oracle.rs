//! What a process can know of its issuer by the answers that it was given, for telling whether it does what it should.

use std::collections::HashMap;

use tokio::time::Instant;

use super::process::Cause;

/// A key by its name and its thumbprint.
pub type Shown = (String, String);

/// What the answers of one process have shown.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    forced: Vec<(Cause, Instant)>,
    keys: HashMap<Shown, ShownKeys>,
    /// When the last fetch failed.
    pub last_failure: Option<Instant>,
}

/// When an answer was asked for, made, and received: true time in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Times {
    pub made: u64,
    pub asked: u64,
    pub received: u64,
    /// When it was made by the clock of who made it.
    pub dated: i64,
}

/// What the clocks of replicas may differ by.
const TOLERANCE: i64 = 5_000_000;

/// The last answer that had a key, and the last one that lacked it and was asked for once the other was there: of
/// two that overlap, or whose clocks differ by more than what is tolerated, nobody can say which one was first.
#[derive(Clone, Copy, Debug, Default)]
struct ShownKeys {
    had: Times,
    /// The latest date of an answer that had it.
    dated: i64,
    lacked: Option<Times>,
    /// When this process was first shown that the key is gone.
    gone_since: Option<Instant>,
    /// Whether an answer that came later lacked it, whenever that was made.
    seemed_gone: bool,
}

impl Seen {
    pub fn forced(&mut self, cause: Cause, at: Instant) {
        self.forced.push((cause, at));
    }

    pub fn failed(&mut self) {
        self.last_failure = Some(Instant::now());
    }

    /// An answer has these keys.
    pub fn answer(&mut self, keys: &[Shown], times: Times) {
        for (key, seen) in &mut self.keys {
            seen.seemed_gone |= !keys.contains(key);
            // What a cache has kept tells its age in whole seconds.
            let apart = if times.made < times.asked { TOLERANCE as u64 } else { 0 };
            let later = times.made > seen.had.made + apart
                && times.asked >= seen.had.received
                && times.dated + TOLERANCE >= seen.dated;
            if !keys.contains(key) && later && seen.lacked.is_none_or(|lacked| lacked < times) {
                seen.lacked = Some(times);
                seen.gone_since.get_or_insert_with(Instant::now);
            }
        }
        for key in keys {
            let first = ShownKeys { dated: times.dated, ..ShownKeys::default() };
            let seen = self.keys.entry(key.clone()).or_insert(first);
            seen.had = seen.had.max(times);
            seen.dated = seen.dated.max(times.dated);
            // Where no time passes between two, the order in which they came is that in which they were made.
            if seen.lacked.is_none_or(|lacked| lacked <= times) {
                seen.gone_since = None;
            }
        }
    }

    /// Whether answers have shown before this moment that the key is gone, and none that is newer had it.
    pub fn gone_before(&self, key: &Shown, moment: Instant) -> bool {
        self.keys.get(key).is_some_and(|seen| seen.gone_since.is_some_and(|since| since < moment))
    }

    /// Whether any answer lacked the key after another had it.
    pub fn ever_gone(&self, key: &Shown) -> bool {
        self.keys.get(key).is_some_and(|seen| seen.lacked.is_some())
    }

    /// Whether an answer lacked the key that came after another which had it: to who does not know when it was made, the
    /// key may be gone.
    pub fn ever_seemed_gone(&self, key: &Shown) -> bool {
        self.keys.get(key).is_some_and(|seen| seen.seemed_gone)
    }

    /// Whether a key of this name and other material was shown.
    pub fn knows_name_otherwise(&self, key: &Shown) -> bool {
        self.keys.keys().any(|(name, thumbprint)| *name == key.0 && *thumbprint != key.1)
    }

    /// The keys that are gone by all that was shown.
    pub fn gone(&self) -> Vec<Shown> {
        self.keys.iter().filter(|(_, seen)| seen.gone_since.is_some()).map(|(key, _)| key.clone()).collect()
    }

    /// What a process that starts now knows, where two before it have left all that they knew.
    pub fn left_behind(all: &[Seen]) -> Self {
        let mut left = Self::default();
        for (key, seen) in all.iter().flat_map(|one| &one.keys) {
            let known = left.keys.entry(key.clone()).or_default();
            known.had = known.had.max(seen.had);
            known.dated = known.dated.max(seen.dated);
            known.lacked = known.lacked.max(seen.lacked);
            known.seemed_gone |= seen.seemed_gone;
        }
        for seen in left.keys.values_mut() {
            seen.gone_since = seen.lacked.is_some_and(|lacked| lacked > seen.had).then(Instant::now);
        }
        left
    }

    /// Whether all that it knows to be gone was shown to it at this moment or later.
    pub fn learnt_since(&self, moment: Instant) -> bool {
        self.keys.values().all(|seen| seen.gone_since.is_none_or(|since| since >= moment))
    }

    /// P3: two fetches that one cause forced closer to each other than its spacing.
    pub fn too_close(&self, cause: Cause, spacing: std::time::Duration) -> bool {
        let starts: Vec<Instant> = self.forced.iter().filter(|one| one.0 == cause).map(|one| one.1).collect();
        starts.windows(2).any(|pair| pair[1] - pair[0] < spacing)
    }
}
