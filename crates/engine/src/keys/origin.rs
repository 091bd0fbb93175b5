//! Where an answer came from and when it was made, and which of two answers is the newer one.
//!
//! Between an issuer and this service stand caches, replicas whose clocks differ, and documents that move, so the
//! order in which answers arrive says little. What an answer says of itself does: `Date` and `Age` (RFC 9110
//! §6.6.1, RFC 9111 §5.1). This is the one place where two answers are compared. Pure.
//!
//! # What cannot be told
//! An answer without `Date` and `Age` counts as made when it was asked for, and so does one whose `Date` lies in
//! the future of this machine's clock. A replica that lags and dates its old set with the present time, or a cache
//! that forges `Date`, cannot be told from an issuer that publishes a key again.

use serde::{Deserialize, Serialize};

/// How much the clocks of one issuer's replicas may differ: an answer counts as older than another only if it is so
/// by more than this.
pub const TOLERANCE_SECS: i64 = 5;

const MICROS: i64 = 1_000_000;

/// When an answer was made, as far as it can be known. Times are on one line that never steps, see
/// [`SteadyClock`](crate::clock::SteadyClock).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// When it was asked for, in microseconds since the Unix epoch.
    asked: i64,
    /// When it was there.
    received: i64,
    /// Seconds that it says it has spent in caches (RFC 9111 §5.1).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    age: Option<i64>,
    /// When it says that it was made, in seconds since the Unix epoch (RFC 9110 §6.6.1). Never later than `received`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    date: Option<i64>,
    /// Whether it is the word that an earlier answer still holds (304), and not an answer with keys in it.
    #[serde(skip_serializing_if = "is_false", default)]
    revalidated: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl Origin {
    /// An answer asked for and received at these times, microseconds since the Unix epoch, with what its `Age` and
    /// its `Date` say, in seconds.
    pub fn new(asked: i64, received: i64, age: Option<i64>, date: Option<i64>) -> Self {
        let received = received.max(asked);
        // A date ahead of our clock tells nothing but that one of the two clocks is wrong.
        let date = date.map(|date| date.min(received.div_euclid(MICROS)));
        Self { asked, received, age: age.map(|age| age.max(0)), date, revalidated: false }
    }

    /// An answer of which nothing is known but when it was asked for and received.
    pub fn at(asked: i64, received: i64) -> Self {
        Self::new(asked, received, None, None)
    }

    /// The same of an answer that says nothing but that an earlier one still holds (RFC 9110 §15.4.5).
    #[must_use]
    pub fn of_a_revalidation(self) -> Self {
        Self { revalidated: true, ..self }
    }

    /// The same on a line of time that is ahead by so many microseconds.
    pub fn shifted(self, by: i64) -> Self {
        let (asked, received) = (self.asked.saturating_add(by), self.received.saturating_add(by));
        Self { revalidated: self.revalidated, ..Self::new(asked, received, self.age, self.date) }
    }

    /// The same, or as if asked for at `latest` where it lies ahead of `now`: it was written under a clock that was
    /// wrong.
    pub fn not_ahead_of(self, now: i64, latest: i64) -> Self {
        if self.received <= now && self.asked <= now {
            return self;
        }
        let (asked, received) = (self.asked.min(latest), self.received.min(latest));
        Self { revalidated: self.revalidated, ..Self::new(asked, received, self.age, self.date) }
    }

    /// What neither of two answers is later than.
    pub fn later_of(self, other: Self) -> Self {
        let date = self.date.max(other.date);
        Self::new(self.asked.max(other.asked), self.received.max(other.received), None, date)
    }

    /// Whether it was asked for before the other one.
    pub fn is_asked_before(&self, other: &Origin) -> bool {
        self.asked < other.asked
    }

    /// Whether it was there before the other one was asked for. Of two that different processes have written down, whose
    /// lines of time were each read off two clocks, that is so by more than those readings may be apart.
    pub fn is_there_before(&self, other: &Origin) -> bool {
        const READING_MICROS: i64 = 250_000;
        self.received.saturating_add(READING_MICROS) < other.asked
    }

    /// Whether it says that it has spent time in caches.
    pub fn has_age(&self) -> bool {
        self.age.is_some_and(|age| age > 0)
    }

    /// Whether it says that a cache has had it for more than a moment.
    pub fn is_kept(&self) -> bool {
        let dated =
            self.date.is_some_and(|date| date.saturating_add(TOLERANCE_SECS) < self.asked.div_euclid(MICROS));
        self.has_age() || dated
    }

    /// When it was there, in microseconds since the Unix epoch.
    pub fn received(&self) -> i64 {
        self.received
    }

    /// Whether this answer was provably made before the other one: it was asked for earlier, or it is older by its
    /// `Date` or by its `Age` by more than [`TOLERANCE_SECS`].
    pub fn is_older_than(&self, other: &Origin) -> bool {
        let by_date = match (self.date, other.date) {
            (Some(own), Some(other)) => own.saturating_add(TOLERANCE_SECS) < other,
            _ => false,
        };
        let by_age =
            self.latest_of_asking().saturating_add(TOLERANCE_SECS * MICROS) < other.latest_of_asking();
        self.asked < other.asked || by_date || by_age
    }

    /// Whether this answer was provably made after the other one, as far as the two say: asked for once the other
    /// was there, and not older by `Date` or `Age`, without any tolerance. Of two with one `Date`, which has whole
    /// seconds, only one that comes from no cache counts as newer. The word that an earlier answer still holds never does:
    /// the validators of some servers stay the same when the content changes.
    pub fn is_newer_than(&self, other: &Origin) -> bool {
        let by_date = match (self.date, other.date) {
            (Some(own), Some(other)) => own > other || (own == other && self.age.is_none()),
            _ => true,
        };
        !self.revalidated && by_date && self.earliest_by_age() >= other.latest_by_age()
    }

    /// RFC 9111 §4.2.3 counts the age from when the answer was asked for.
    fn latest_of_asking(&self) -> i64 {
        self.asked.saturating_sub(self.age_micros())
    }

    /// An age is cut to whole seconds.
    fn earliest_by_age(&self) -> i64 {
        let cut = if self.age.is_some() { MICROS } else { 0 };
        self.latest_of_asking().saturating_sub(cut)
    }

    fn latest_by_age(&self) -> i64 {
        self.received.saturating_sub(self.age_micros())
    }

    fn age_micros(&self) -> i64 {
        self.age.unwrap_or_default().saturating_mul(MICROS)
    }
}
