//! HTTP dates (RFC 9110 §5.6.7) for every time that a clock can have.
//!
//! This crate replaces the crate with this name on crates.io (see `[patch.crates-io]` in the `Cargo.toml` of
//! Portcullis) and provides what `hyper` and `headers` use of it. The original panics for times before 1970 or
//! after 9999, and hyper formats a date for each HTTP/1.1 request, whether it is sent or not. This crate formats
//! times of the years 0000 to 9999 exactly, and all others as the nearest valid date.

#![forbid(unsafe_code)]

mod calendar;
mod read;

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use calendar::Civil;

/// The first and the last second that IMF-fixdate can represent, as seconds since the Unix epoch: `Sat, 01 Jan 0000
/// 00:00:00 GMT` and `Fri, 31 Dec 9999 23:59:59 GMT`.
const FIRST: i64 = -62_167_219_200;
const LAST: i64 = 253_402_300_799;

/// An HTTP date with a resolution of one second, for the years 0000 to 9999.
///
/// It is formatted as IMF-fixdate and parsed in all three forms that a recipient has to accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HttpDate {
    /// Seconds since the Unix epoch, from [`FIRST`] to [`LAST`].
    seconds: i64,
}

/// A text that is not an HTTP date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error(());

impl HttpDate {
    /// This many seconds after the Unix epoch, or the nearest valid date.
    fn nearest(seconds: i64) -> Self {
        Self { seconds: seconds.clamp(FIRST, LAST) }
    }
}

impl From<SystemTime> for HttpDate {
    /// The second of a time, or the first or last valid one.
    fn from(time: SystemTime) -> Self {
        let seconds = match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_secs()).unwrap_or(LAST),
            Err(error) => {
                let before = error.duration();
                let partial_second = u64::from(before.subsec_nanos() > 0);
                i64::try_from(before.as_secs().saturating_add(partial_second))
                    .map_or(FIRST, i64::wrapping_neg)
            }
        };
        Self::nearest(seconds)
    }
}

impl From<HttpDate> for SystemTime {
    /// The start of that second; the Unix epoch if the system cannot represent it.
    fn from(date: HttpDate) -> Self {
        let distance = Duration::from_secs(date.seconds.unsigned_abs());
        let time = if date.seconds < 0 {
            Self::UNIX_EPOCH.checked_sub(distance)
        } else {
            Self::UNIX_EPOCH.checked_add(distance)
        };
        time.unwrap_or(Self::UNIX_EPOCH)
    }
}

impl fmt::Display for HttpDate {
    /// IMF-fixdate, which has 29 octets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Civil { weekday, year, month, day, hour, minute, second } = Civil::of(self.seconds);
        let (weekday, month) = (weekday.short(), month.name());
        write!(f, "{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
    }
}

impl FromStr for HttpDate {
    type Err = Error;

    /// Parses IMF-fixdate and the two obsolete forms. A two-digit year is one of 1970 to 2069; §5.6.7 would use the
    /// current year, but this crate reads no clock. A 60th second is the one after the 59th.
    ///
    /// # Errors
    /// The text has none of these forms, the date does not exist, or the day of the week is wrong.
    fn from_str(text: &str) -> Result<Self, Error> {
        read::date(text).and_then(|civil| civil.seconds()).map(Self::nearest).ok_or(Error(()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an HTTP date")
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests;
