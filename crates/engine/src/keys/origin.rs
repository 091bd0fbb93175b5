//! When an answer was made, and which of two answers is newer.
//!
//! Between an issuer and this service there are caches, replicas with different clocks, and documents that move, so
//! the order of arrival is not reliable. An answer's own headers are: `Date` and `Age` (RFC 9110 §6.6.1, RFC 9111
//! §5.1). Two answers are compared only here. Pure.
//!
//! # Limits
//! An answer without `Date` and `Age` is regarded as made when it was requested, and so is one whose `Date` is in the
//! future of this machine's clock. A lagging replica that dates its old set with the present time, or a cache that
//! forges `Date`, cannot be distinguished from an issuer that publishes a key again.

use serde::{Deserialize, Serialize};

/// How much the clocks of one issuer's replicas may differ, in seconds: an answer is older than another only by more
/// than this.
pub const TOLERANCE_SECS: i64 = 5;

const MICROS: i64 = 1_000_000;

/// When an answer was made, as far as known. Times are of a clock that never steps, see
/// [`SteadyClock`](crate::clock::SteadyClock).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// When it was requested, in microseconds since the Unix epoch.
    asked: i64,
    /// When it was received.
    received: i64,
    /// Its `Age`: seconds in caches (RFC 9111 §5.1).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    age: Option<i64>,
    /// Its `Date`, in seconds since the Unix epoch (RFC 9110 §6.6.1). Never later than `received`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    date: Option<i64>,
    /// Whether it is a 304, which confirms an earlier answer and contains no keys.
    #[serde(skip_serializing_if = "is_false", default)]
    revalidated: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl Origin {
    /// An answer requested and received at these times, in microseconds since the Unix epoch, with its `Age` and its
    /// `Date` in seconds.
    pub fn new(asked: i64, received: i64, age: Option<i64>, date: Option<i64>) -> Self {
        let received = received.max(asked);
        // A date in the future shows only that one of the two clocks is wrong.
        let date = date.map(|date| date.min(received.div_euclid(MICROS)));
        Self { asked, received, age: age.map(|age| age.max(0)), date, revalidated: false }
    }

    /// An answer of which only the times of request and receipt are known.
    pub fn at(asked: i64, received: i64) -> Self {
        Self::new(asked, received, None, None)
    }

    /// The same for a 304 (RFC 9110 §15.4.5).
    #[must_use]
    pub fn revalidation(self) -> Self {
        Self { revalidated: true, ..self }
    }

    /// The same for a clock that is ahead by this many microseconds.
    pub fn shifted(self, by: i64) -> Self {
        let (asked, received) = (self.asked.saturating_add(by), self.received.saturating_add(by));
        Self { revalidated: self.revalidated, ..Self::new(asked, received, self.age, self.date) }
    }

    /// The same, or as if requested at `latest` if it is later than `now`: it was written under a wrong clock.
    pub fn clamped(self, now: i64, latest: i64) -> Self {
        if self.received <= now && self.asked <= now {
            return self;
        }
        let (asked, received) = (self.asked.min(latest), self.received.min(latest));
        Self { revalidated: self.revalidated, ..Self::new(asked, received, self.age, self.date) }
    }

    /// The same, made before the other one: it is the answer of a source that stands in for another.
    #[must_use]
    pub fn before(self, other: &Origin) -> Self {
        let asked = self.asked.min(other.asked.saturating_sub(1));
        Self { revalidated: self.revalidated, ..Self::new(asked, self.received, self.age, self.date) }
    }

    /// The later of each time of two answers.
    pub fn later_of(self, other: Self) -> Self {
        let date = self.date.max(other.date);
        Self::new(self.asked.max(other.asked), self.received.max(other.received), None, date)
    }

    /// Whether it was requested before the other one.
    pub fn is_requested_before(&self, other: &Origin) -> bool {
        self.asked < other.asked
    }

    /// Whether it was received before the other one was requested. The times of different processes were each derived
    /// from two clock readings, so they have to differ by more than the readings can.
    pub fn is_received_before(&self, other: &Origin) -> bool {
        const READING_MICROS: i64 = 250_000;
        self.received.saturating_add(READING_MICROS) < other.asked
    }

    /// Whether it has been in a cache, by its `Age`.
    pub fn has_age(&self) -> bool {
        self.age.is_some_and(|age| age > 0)
    }

    /// Whether it has been in a cache for more than a moment, by its `Age` or its `Date`.
    pub fn is_from_cache(&self) -> bool {
        let dated =
            self.date.is_some_and(|date| date.saturating_add(TOLERANCE_SECS) < self.asked.div_euclid(MICROS));
        self.has_age() || dated
    }

    /// When it was received, in microseconds since the Unix epoch.
    pub fn received(&self) -> i64 {
        self.received
    }

    /// Whether this answer was provably made before the other one: it was requested earlier, or it is older by its
    /// `Date` or its `Age` by more than [`TOLERANCE_SECS`].
    pub fn is_older_than(&self, other: &Origin) -> bool {
        let by_date = match (self.date, other.date) {
            (Some(own), Some(other)) => own.saturating_add(TOLERANCE_SECS) < other,
            _ => false,
        };
        let by_age =
            self.latest_by_request().saturating_add(TOLERANCE_SECS * MICROS) < other.latest_by_request();
        self.asked < other.asked || by_date || by_age
    }

    /// Whether this answer was provably made after the other one: it was requested after the other was received, and
    /// it is not older by `Date` or `Age`, without any tolerance. Of two with the same `Date`, which has whole
    /// seconds, only one that comes from no cache is newer. A 304 never is: the validators of some servers stay the
    /// same when the content changes.
    pub fn is_newer_than(&self, other: &Origin) -> bool {
        let by_date = match (self.date, other.date) {
            (Some(own), Some(other)) => own > other || (own == other && self.age.is_none()),
            _ => true,
        };
        !self.revalidated && by_date && self.earliest_by_age() >= other.latest_by_age()
    }

    /// RFC 9111 §4.2.3 measures the age from the time of the request.
    fn latest_by_request(&self) -> i64 {
        self.asked.saturating_sub(self.age_micros())
    }

    /// An age is truncated to whole seconds.
    fn earliest_by_age(&self) -> i64 {
        let truncated = if self.age.is_some() { MICROS } else { 0 };
        self.latest_by_request().saturating_sub(truncated)
    }

    fn latest_by_age(&self) -> i64 {
        self.received.saturating_sub(self.age_micros())
    }

    fn age_micros(&self) -> i64 {
        self.age.unwrap_or_default().saturating_mul(MICROS)
    }
}
