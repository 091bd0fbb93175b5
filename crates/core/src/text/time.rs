//! Formats times and durations of tokens for people.

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// A wall time in RFC 3339, UTC, in whole seconds; words for a time that a calendar of four-digit years does not have.
///
/// ```
/// use portcullis_core::text::timestamp;
///
/// assert_eq!(timestamp(1_800_000_000.5), "2027-01-15T08:00:00Z");
/// ```
pub fn timestamp(seconds_since_epoch: f64) -> String {
    const FIRST: f64 = -62_167_219_200.0;
    const END: f64 = 253_402_300_800.0;
    if !(FIRST..END).contains(&seconds_since_epoch) {
        return match seconds_since_epoch < FIRST {
            true => "a time before the year 0".to_owned(),
            false => "a time after the year 9999".to_owned(),
        };
    }
    let seconds = seconds_since_epoch.floor() as i64;
    let (year, month, day) = date(seconds.div_euclid(DAY));
    let second = seconds.rem_euclid(DAY);
    let (hour, minute) = (second / HOUR, second % HOUR / MINUTE);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z", second % MINUTE)
}

/// Year, month and day of this many days after 1970-01-01, in the proleptic Gregorian calendar. A year is counted from
/// March, so that the leap day is its last.
fn date(days: i64) -> (i64, i64, i64) {
    const FROM_MARCH_OF_YEAR_0: i64 = 719_468;
    const DAYS_IN_400_YEARS: i64 = 146_097;
    const DAYS_IN_100_YEARS: i64 = 36_524;
    const DAYS_IN_4_YEARS: i64 = 1_461;
    let days = days + FROM_MARCH_OF_YEAR_0;
    let (cycle, day) = (days.div_euclid(DAYS_IN_400_YEARS), days.rem_euclid(DAYS_IN_400_YEARS));
    // The last century of a cycle and the last year of four years have one more day.
    let century = (day / DAYS_IN_100_YEARS).min(3);
    let day = day - century * DAYS_IN_100_YEARS;
    let (leap, day) = (day / DAYS_IN_4_YEARS, day % DAYS_IN_4_YEARS);
    let year_of_4 = (day / 365).min(3);
    let day = day - year_of_4 * 365;
    let year = cycle * 400 + century * 100 + leap * 4 + year_of_4;
    // Five months from March have 153 days, as have the next five.
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    match month < 10 {
        true => (year, month + 3, day_of_month),
        false => (year + 1, month - 9, day_of_month),
    }
}

/// A duration in its two largest units, without a sign: `40 s`, `2 min 5 s`, `3 d 4 h`.
///
/// ```
/// use portcullis_core::text::duration;
///
/// assert_eq!(duration(-6_900.0), "1 h 55 min");
/// ```
pub fn duration(seconds: f64) -> String {
    const MOST_DAYS: i64 = 1_000_000;
    // The conversion saturates.
    let seconds = seconds.abs().round() as i64;
    let two = |large: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{large} {unit}"),
        small => format!("{large} {unit} {small} {small_unit}"),
    };
    match seconds {
        0..MINUTE => format!("{seconds} s"),
        MINUTE..HOUR => two(seconds / MINUTE, "min", seconds % MINUTE, "s"),
        HOUR..DAY => two(seconds / HOUR, "h", seconds % HOUR / MINUTE, "min"),
        _ if seconds / DAY > MOST_DAYS => format!("over {MOST_DAYS} d"),
        _ => two(seconds / DAY, "d", seconds % DAY / HOUR, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_that_of_the_calendar() {
        for (seconds, expected) in [
            (0.0, "1970-01-01T00:00:00Z"),
            (-0.5, "1969-12-31T23:59:59Z"),
            (951_782_400.0, "2000-02-29T00:00:00Z"),
            (951_868_800.0, "2000-03-01T00:00:00Z"),
            (1_709_164_800.0, "2024-02-29T00:00:00Z"),
            (4_107_542_400.0, "2100-03-01T00:00:00Z"),
            (4_107_542_399.0, "2100-02-28T23:59:59Z"),
            (1_800_000_000.0, "2027-01-15T08:00:00Z"),
            (1_798_761_599.0, "2026-12-31T23:59:59Z"),
            (253_402_300_799.0, "9999-12-31T23:59:59Z"),
            (-62_167_219_200.0, "0000-01-01T00:00:00Z"),
            (253_402_300_800.0, "a time after the year 9999"),
            (1e300, "a time after the year 9999"),
            (-1e300, "a time before the year 0"),
        ] {
            assert_eq!(timestamp(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn a_duration_has_its_two_largest_units() {
        for (seconds, expected) in [
            (0.2, "0 s"),
            (40.0, "40 s"),
            (-59.0, "59 s"),
            (60.0, "1 min"),
            (125.0, "2 min 5 s"),
            (3_600.0, "1 h"),
            (90_000.0, "1 d 1 h"),
            (1e300, "over 1000000 d"),
        ] {
            assert_eq!(duration(seconds), expected, "{seconds}");
        }
    }
}
