//! Parses the three forms of an HTTP date (RFC 9110 §5.6.7). Case and spaces are significant.

use crate::calendar::{Civil, Month, Weekday};

/// The fields of a text; the date may not exist.
pub(crate) fn date(text: &str) -> Option<Civil> {
    imf_fixdate(text).or_else(|| rfc850(text)).or_else(|| asctime(text))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn imf_fixdate(text: &str) -> Option<Civil> {
    let (weekday, rest) = text.split_once(", ")?;
    let mut parts = rest.split(' ');
    let (day, month, year) = (parts.next()?, parts.next()?, parts.next()?);
    let (time, zone) = (parts.next()?, parts.next()?);
    let clock = ends_in_gmt(time, zone, parts)?;
    civil(day_of_week(weekday, Weekday::short)?, number(year, 4)?, month, number(day, 2)?, clock)
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`
fn rfc850(text: &str) -> Option<Civil> {
    let (weekday, rest) = text.split_once(", ")?;
    let mut parts = rest.split(' ');
    let (date, time, zone) = (parts.next()?, parts.next()?, parts.next()?);
    let clock = ends_in_gmt(time, zone, parts)?;
    let mut parts = date.split('-');
    let (day, month, year) = (parts.next()?, parts.next()?, parts.next()?);
    let year = number(year, 2).filter(|_| parts.next().is_none())?;
    let year = if year < 70 { 2000 + year } else { 1900 + year };
    civil(day_of_week(weekday, Weekday::long)?, year, month, number(day, 2)?, clock)
}

/// `Sun Nov  6 08:49:37 1994`, with a space before a one-digit day.
fn asctime(text: &str) -> Option<Civil> {
    let (weekday, rest) = text.split_once(' ')?;
    let (month, rest) = rest.split_once(' ')?;
    let (day, rest) = match rest.strip_prefix(' ') {
        Some(rest) => rest.split_once(' ').map(|(day, rest)| (number(day, 1), rest))?,
        None => rest.split_once(' ').map(|(day, rest)| (number(day, 2), rest))?,
    };
    let (time, year) = rest.split_once(' ')?;
    civil(day_of_week(weekday, Weekday::short)?, number(year, 4)?, month, day?, time_of_day(time)?)
}

fn civil(
    weekday: Weekday,
    year: i64,
    month: &str,
    day: i64,
    (hour, minute, second): (i64, i64, i64),
) -> Option<Civil> {
    Some(Civil { weekday, year, month: Month::named(month)?, day, hour, minute, second })
}

/// The time of day, if the zone is GMT and no text follows.
fn ends_in_gmt<'a>(
    time: &str,
    zone: &str,
    mut rest: impl Iterator<Item = &'a str>,
) -> Option<(i64, i64, i64)> {
    time_of_day(time).filter(|_| zone == "GMT" && rest.next().is_none())
}

fn time_of_day(text: &str) -> Option<(i64, i64, i64)> {
    let mut parts = text.split(':');
    let mut two = || parts.next().and_then(|part| number(part, 2));
    let time = (two()?, two()?, two()?);
    parts.next().is_none().then_some(time)
}

fn day_of_week(text: &str, name: fn(Weekday) -> &'static str) -> Option<Weekday> {
    Weekday::all().find(|day| name(*day) == text)
}

/// Exactly this many digits, without a sign.
fn number(text: &str, digits: usize) -> Option<i64> {
    let is_number = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}
