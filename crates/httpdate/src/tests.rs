//! Dates that other calendars confirm (`date -u -d @SECONDS`), and the limits.

use super::*;

/// Seconds since the Unix epoch, and their dates.
const KNOWN: [(i64, &str); 24] = [
    (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
    (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
    (1, "Thu, 01 Jan 1970 00:00:01 GMT"),
    (-1, "Wed, 31 Dec 1969 23:59:59 GMT"),
    (-86_400, "Wed, 31 Dec 1969 00:00:00 GMT"),
    (-86_401, "Tue, 30 Dec 1969 23:59:59 GMT"),
    // Divisible by 4: a leap year.
    (825_552_000, "Thu, 29 Feb 1996 00:00:00 GMT"),
    (825_638_400, "Fri, 01 Mar 1996 00:00:00 GMT"),
    (851_990_400, "Tue, 31 Dec 1996 00:00:00 GMT"),
    // Also divisible by 100: not a leap year.
    (-2_203_977_600, "Wed, 28 Feb 1900 00:00:00 GMT"),
    (-2_203_891_200, "Thu, 01 Mar 1900 00:00:00 GMT"),
    (4_107_456_000, "Sun, 28 Feb 2100 00:00:00 GMT"),
    (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
    // Also divisible by 400: a leap year.
    (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
    (951_868_799, "Tue, 29 Feb 2000 23:59:59 GMT"),
    (951_868_800, "Wed, 01 Mar 2000 00:00:00 GMT"),
    (946_684_799, "Fri, 31 Dec 1999 23:59:59 GMT"),
    (978_220_800, "Sun, 31 Dec 2000 00:00:00 GMT"),
    (2_147_483_648, "Tue, 19 Jan 2038 03:14:08 GMT"),
    (-23_215_049_511, "Sat, 06 May 1234 07:08:09 GMT"),
    (FIRST, "Sat, 01 Jan 0000 00:00:00 GMT"),
    (FIRST + 60 * 86_400, "Wed, 01 Mar 0000 00:00:00 GMT"),
    (LAST - 86_399, "Fri, 31 Dec 9999 00:00:00 GMT"),
    (LAST, "Fri, 31 Dec 9999 23:59:59 GMT"),
];

/// The time that many seconds after the epoch.
fn at(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = SystemTime::UNIX_EPOCH;
    if seconds < 0 { time.checked_sub(distance) } else { time.checked_add(distance) }
        .expect("the system has it")
}

#[test]
fn a_time_is_formatted_as_imf_fixdate_and_parsed_as_the_same_time() {
    for (seconds, text) in KNOWN {
        assert_eq!(HttpDate::from(at(seconds)).to_string(), text, "{seconds}");
        let read: HttpDate = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(SystemTime::from(read), at(seconds), "{text}");
    }
}

#[test]
fn a_time_out_of_range_becomes_the_nearest_date() {
    for seconds in [LAST + 1, LAST + 86_400, 1 << 62, i64::MAX] {
        assert_eq!(HttpDate::from(at(seconds)).to_string(), "Fri, 31 Dec 9999 23:59:59 GMT", "{seconds}");
    }
    for seconds in [FIRST - 1, FIRST - 86_400, -(1 << 62), i64::MIN + 1, i64::MIN] {
        assert_eq!(HttpDate::from(at(seconds)).to_string(), "Sat, 01 Jan 0000 00:00:00 GMT", "{seconds}");
    }
}

#[test]
fn every_day_of_four_hundred_years_follows_the_previous_one_and_is_parsed_as_formatted() {
    let (mut before, mut leap_days) = (HttpDate::from(at(-5 * 86_400)), 0);
    for day in -4..146_097 - 4 {
        let date = HttpDate::from(at(day * 86_400 + 86_399));
        let text = date.to_string();
        assert!(text.len() == 29 && before < date, "{text}");
        assert_eq!(text.parse(), Ok(date), "{text}");
        leap_days += usize::from(text.contains("29 Feb"));
        before = date;
    }
    assert_eq!(leap_days, 97);
}

#[test]
fn a_fraction_of_a_second_is_rounded_down() {
    let half = Duration::from_millis(500);
    for (time, text) in [
        (at(0) + half, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (at(0) - half, "Wed, 31 Dec 1969 23:59:59 GMT"),
        (at(-1) - half, "Wed, 31 Dec 1969 23:59:58 GMT"),
        (at(LAST) + half, "Fri, 31 Dec 9999 23:59:59 GMT"),
        (at(i64::MAX) + half, "Fri, 31 Dec 9999 23:59:59 GMT"),
        (at(i64::MIN) + half, "Sat, 01 Jan 0000 00:00:00 GMT"),
    ] {
        assert_eq!(HttpDate::from(time).to_string(), text);
    }
}

#[test]
fn the_obsolete_forms_are_parsed_too() {
    for (text, seconds) in [
        ("Sunday, 06-Nov-94 08:49:37 GMT", 784_111_777),
        ("Sun Nov  6 08:49:37 1994", 784_111_777),
        ("Wed Nov 16 08:49:37 1994", 784_975_777),
        ("Thursday, 01-Jan-70 00:00:00 GMT", 0),
        ("Tuesday, 31-Dec-69 00:00:00 GMT", 3_155_673_600),
        ("Tuesday, 29-Feb-00 00:00:00 GMT", 951_782_400),
    ] {
        assert_eq!(text.parse(), Ok(HttpDate { seconds }), "{text}");
    }
}

#[test]
fn a_leap_second_is_the_next_one() {
    assert_eq!("Sat, 31 Dec 2016 23:59:60 GMT".parse(), Ok(HttpDate { seconds: 1_483_228_800 }));
    assert_eq!("Fri, 31 Dec 9999 23:59:60 GMT".parse(), Ok(HttpDate { seconds: LAST }));
}

#[test]
fn invalid_dates_are_not_parsed() {
    for text in [
        "",
        "0",
        "-1",
        ", ",
        "Sun, ",
        "Mon, 06 Nov 1994 08:49:37 GMT",
        "sun, 06 Nov 1994 08:49:37 GMT",
        "Sun, 06 nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 gmt",
        "Sun, 06 Nov 1994 08:49:37 UTC",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 GMT ",
        " Sun, 06 Nov 1994 08:49:37 GMT",
        "Sun,  06 Nov 1994 08:49:37 GMT",
        "Sun, 06  Nov 1994 08:49:37 GMT",
        "Sun, 6 Nov 1994 08:49:37 GMT",
        "Sun, +6 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 94 08:49:37 GMT",
        "Sun, 06 Nov 01994 08:49:37 GMT",
        "Sun, 06 Nov 1994 8:49:37 GMT",
        "Sun, 06 Nov 1994 08:49 GMT",
        "Sun, 06 Nov 1994 08:49:37:00 GMT",
        "Sun, 06 Nov 1994 08:49:3\u{667} GMT",
        "Sun, 06 Nov 1994 24:00:00 GMT",
        "Sun, 06 Nov 1994 08:60:37 GMT",
        "Sun, 06 Nov 1994 08:49:61 GMT",
        "Wed, 00 Nov 1994 08:49:37 GMT",
        "Thu, 31 Nov 1994 08:49:37 GMT",
        "Wed, 29 Feb 1995 00:00:00 GMT",
        "Thu, 29 Feb 1900 00:00:00 GMT",
        "Sat, 01 Jan 10000 00:00:00 GMT",
        "Sun, 06-Nov-94 08:49:37 GMT",
        "Sunday, 06-Nov-1994 08:49:37 GMT",
        "Sunday, 06 Nov 94 08:49:37 GMT",
        "Sunday, 06-Nov-94-1 08:49:37 GMT",
        "Sun Nov 6 08:49:37 1994",
        "Sun Nov   6 08:49:37 1994",
        "Sun Nov  06 08:49:37 1994",
        "Sun Nov  6 08:49:37 94",
        "Sun Nov  6 08:49:37 1994 GMT",
    ] {
        assert_eq!(text.parse::<HttpDate>(), Err(Error(())), "{text:?}");
    }
}
