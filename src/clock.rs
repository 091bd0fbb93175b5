//! The one place where time is read.
//!
//! Wall time judges tokens and is handed to the core as an argument. Monotonic time paces refreshes
//! and deadlines, so that a clock that is set back neither stops nor hurries them; it is tokio's, so
//! that tests can pause it. Clippy forbids the standard library's clocks elsewhere.

#![allow(clippy::disallowed_methods, reason = "this is the room that the lint sends everybody to")]

use std::time::{Duration, SystemTime};

pub use tokio::time::Instant;

use crate::validation::UnixTime;

/// Where wall time comes from.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's clock.
    #[default]
    System,
    /// Always this time; for explaining a decision of the past.
    Fixed(UnixTime),
}

impl Clock {
    /// The wall time. A machine's clock before 1970 reads as 1970.
    pub fn now(&self) -> UnixTime {
        match self {
            Clock::System => UnixTime::from_epoch(
                SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
            ),
            Clock::Fixed(time) => *time,
        }
    }
}

/// Monotonic time.
pub fn monotonic() -> Instant {
    Instant::now()
}

/// A wall time as RFC 3339 in UTC, to the second.
pub fn rfc3339(time: UnixTime) -> String {
    time::OffsetDateTime::from_unix_timestamp(time.as_secs_f64() as i64)
        .ok()
        .and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_default()
}

/// Reads a time: RFC 3339, or seconds since the Unix epoch.
///
/// # Errors
/// It is neither.
pub fn parse_time(text: &str) -> Result<UnixTime, &'static str> {
    if let Ok(seconds) = text.parse::<i64>() {
        return Ok(UnixTime::from_secs(seconds));
    }
    time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)
        .map(|time| UnixTime::from_secs(time.unix_timestamp()))
        .map_err(|_| "expected RFC 3339, such as 2026-01-31T12:00:00Z, or Unix seconds")
}

/// How long ago a monotonic instant was; zero for one that is yet to come.
pub fn elapsed_since(instant: Instant) -> Duration {
    monotonic().saturating_duration_since(instant)
}
