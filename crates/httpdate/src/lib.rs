//! Dates of HTTP (RFC 9110 §5.6.7), for every time that a clock can show.
//!
//! It stands in for the crate of this name on crates.io (see `[patch.crates-io]` in the `Cargo.toml` of Portcullis) and
//! has what `hyper` and `headers` use of that. The other one panics at a time before 1970 or after 9999, and hyper makes
//! a date for each request over HTTP/1.1, whether it sends that or not. Here such a time is written as it is where four
//! digits can say its year, and otherwise as the nearest date that they can.

#![forbid(unsafe_code)]

mod calendar;
mod read;

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use calendar::Civil;

/// Seconds from the Unix epoch to the first and to the last second that IMF-fixdate has digits for:
/// `Sat, 01 Jan 0000 00:00:00 GMT` and `Fri, 31 Dec 9999 23:59:59 GMT`.
const FIRST: i64 = -62_167_219_200;
const LAST: i64 = 253_402_300_799;

/// A date of HTTP, to the second, of a year from 0000 to 9999.
///
/// It is written as IMF-fixdate and read in all three forms that a recipient has to accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HttpDate {
    /// Since the Unix epoch, from [`FIRST`] to [`LAST`].
    seconds: i64,
}

/// A text that is no date of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error(());

impl HttpDate {
    /// That many seconds after the Unix epoch, or the nearest time that a date of HTTP can say.
    fn nearest(seconds: i64) -> Self {
        Self { seconds: seconds.clamp(FIRST, LAST) }
    }
}

impl From<SystemTime> for HttpDate {
    /// The second in which a time lies, or the first or last one of all dates where it is beyond them.
    fn from(time: SystemTime) -> Self {
        let seconds = match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_secs()).unwrap_or(LAST),
            Err(error) => {
                let before = error.duration();
                let begun = u64::from(before.subsec_nanos() > 0);
                i64::try_from(before.as_secs().saturating_add(begun)).map_or(FIRST, i64::wrapping_neg)
            }
        };
        Self::nearest(seconds)
    }
}

impl From<HttpDate> for SystemTime {
    /// The beginning of that second; the Unix epoch where the system has no such time.
    fn from(date: HttpDate) -> Self {
        let away = Duration::from_secs(date.seconds.unsigned_abs());
        let time = if date.seconds < 0 {
            Self::UNIX_EPOCH.checked_sub(away)
        } else {
            Self::UNIX_EPOCH.checked_add(away)
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

    /// Reads IMF-fixdate and the two obsolete forms. Two digits of a year stand for one from 1970 to 2069: no clock is
    /// read here, by which §5.6.7 would have it. A 60th second is the one after the 59th.
    ///
    /// # Errors
    /// The text is none of them to the letter, there is no such date, or it is another day of the week.
    fn from_str(text: &str) -> Result<Self, Error> {
        read::date(text).and_then(|civil| civil.seconds()).map(Self::nearest).ok_or(Error(()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no date of HTTP")
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests;
