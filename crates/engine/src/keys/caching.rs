//! Caching headers of an answer: how long it stays fresh, how to revalidate it, and when to retry.
//!
//! Pure, without a clock: dates are relative to the answer's own `Date`.

use std::time::{Duration, SystemTime};

use headers::{
    Age, CacheControl, Date, ETag, Expires, Header, HeaderMap, HeaderMapExt, HeaderValue, LastModified,
};
use reqwest::header::{
    AGE, CACHE_CONTROL, DATE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, RETRY_AFTER,
};

/// A longer entity tag is not stored: it would be sent with every request.
const MAX_ETAG_BYTES: usize = 256;

/// How long the answer stays fresh (RFC 9111 §4.2.1): `max-age`, or else `Expires` minus `Date`, minus its `Age`.
///
/// `None` if the headers do not tell. `no-cache` and `no-store` are treated so: they forbid to store an answer, which
/// cannot be followed when signatures are to be verified, and issuers send them by default (Keycloak, Spring
/// Security). So are malformed values.
pub(super) fn fresh_for(headers: &HeaderMap) -> Option<Duration> {
    // Directives are case-insensitive (RFC 9111 §5.2); the parser accepts lower case alone.
    let to_lower_case =
        |value: &HeaderValue| HeaderValue::from_bytes(&value.as_bytes().to_ascii_lowercase()).ok();
    let control: Vec<HeaderValue> = headers.get_all(CACHE_CONTROL).iter().filter_map(to_lower_case).collect();
    let control = CacheControl::decode(&mut control.iter()).ok();
    if control.as_ref().is_some_and(|control| control.no_cache() || control.no_store()) {
        return None;
    }
    let lifetime = control.and_then(|control| control.max_age()).or_else(|| expires_in(headers))?;
    let age = headers.typed_get::<Age>().map_or(Duration::ZERO, |age| age.into());
    Some(lifetime.saturating_sub(age))
}

/// When an answer was made: the seconds of its `Age` (RFC 9111 §5.1), and its `Date` (RFC 9110 §6.6.1) in seconds
/// since the Unix epoch. Of several ages the largest is used, of several dates the oldest; a malformed age still
/// shows that a cache was involved.
pub(super) fn age_and_date(headers: &HeaderMap) -> (Option<i64>, Option<i64>) {
    let ages = headers.get_all(AGE).iter().flat_map(|value| {
        let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
        text.split(',').map(|one| one.trim().parse::<u32>().map_or(1, i64::from)).collect::<Vec<_>>()
    });
    let since_epoch = |date: SystemTime| date.duration_since(SystemTime::UNIX_EPOCH).ok();
    let dates = headers.get_all(DATE).iter().filter_map(date).filter_map(since_epoch);
    (ages.max(), dates.filter_map(|date| i64::try_from(date.as_secs()).ok()).min())
}

/// By how many seconds a clock is ahead of that of the sender, which wrote `Date` between these two times of the clock, in
/// microseconds since the Unix epoch; negative if it is behind. `None` without `Date`, and with an `Age`: then it is the
/// time at which a cache received the answer. A cache that sends no `Age` makes the clock seem to be ahead.
pub(super) fn clock_ahead(headers: &HeaderMap, requested_at: i64, received: i64) -> Option<i64> {
    const MICROS: i64 = 1_000_000;
    let (age, date) = age_and_date(headers);
    let date = date.filter(|_| age.is_none_or(|age| age == 0))?;
    // `Date` is cut to whole seconds.
    let least = requested_at.div_euclid(MICROS).saturating_sub(date.saturating_add(1));
    let most = received.div_euclid(MICROS).saturating_sub(date);
    Some(if least > 0 { least } else { most.min(0) })
}

/// The headers that identify caches, for the log: short, and on one line.
pub(super) fn cache_headers(headers: &HeaderMap) -> String {
    const NAMES: [&str; 7] =
        ["date", "age", "cache-control", "via", "x-cache", "cf-cache-status", "cache-status"];
    const MAX_CHARS: usize = 64;
    let lines = NAMES.into_iter().filter_map(|name| {
        let value = String::from_utf8_lossy(headers.get(name)?.as_bytes()).into_owned();
        let value: String = value.chars().take(MAX_CHARS).flat_map(char::escape_debug).collect();
        Some(format!("{name}: {value}"))
    });
    lines.collect::<Vec<_>>().join("; ")
}

fn expires_in(headers: &HeaderMap) -> Option<Duration> {
    let expires = SystemTime::from(headers.typed_get::<Expires>()?);
    let date = SystemTime::from(headers.typed_get::<Date>()?);
    Some(expires.duration_since(date).unwrap_or_default())
}

/// `Retry-After` (RFC 9110 §10.2.3): seconds or a date.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?;
    if let Ok(seconds) = value.to_str().ok()?.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = date(value)?;
    Some(until.duration_since(date(headers.get(DATE)?)?).unwrap_or_default())
}

fn date(value: &HeaderValue) -> Option<SystemTime> {
    Date::decode(&mut std::iter::once(value)).ok().map(Into::into)
}

/// The conditional headers of a revalidation (RFC 9110 §13.1).
///
/// A date is used if there is no entity tag, and only if it is strong: two changes within a second have one date
/// (§8.8.2.2).
pub(super) fn validators(headers: &HeaderMap) -> Option<HeaderMap> {
    let mut validators = HeaderMap::new();
    if headers.typed_get::<ETag>().is_some() {
        let tag = headers.get(ETAG).filter(|tag| tag.len() <= MAX_ETAG_BYTES)?;
        validators.insert(IF_NONE_MATCH, tag.clone());
        return Some(validators);
    }
    let modified = SystemTime::from(headers.typed_get::<LastModified>()?);
    let date = SystemTime::from(headers.typed_get::<Date>()?);
    if date.duration_since(modified).is_ok_and(|since| since >= Duration::from_secs(1)) {
        validators.insert(IF_MODIFIED_SINCE, headers.get(LAST_MODIFIED)?.clone());
        return Some(validators);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: &str = "Sun, 06 Nov 1994 12:00:00 GMT";
    const A_MINUTE_LATER: &str = "Sun, 06 Nov 1994 12:01:00 GMT";

    fn map(headers: &[(&'static str, &str)]) -> HeaderMap {
        let value = |value: &str| HeaderValue::from_str(value).expect("a header value");
        headers.iter().map(|(name, text)| (name.parse().expect("a header name"), value(text))).collect()
    }

    #[test]
    fn freshness_is_the_stated_lifetime_minus_the_age() {
        for (headers, seconds) in [
            (&[][..], None),
            (&[("cache-control", "max-age=60")], Some(60)),
            (&[("cache-control", "public, MAX-AGE=60, must-revalidate")], Some(60)),
            (&[("cache-control", "max-age=0")], Some(0)),
            (&[("cache-control", "max-age=315360000")], Some(315_360_000)),
            (&[("cache-control", "max-age=99999999999999999999")], None),
            (&[("cache-control", "max-age=-1")], None),
            (&[("cache-control", "max-age=soon")], None),
            (&[("cache-control", "s-maxage=60")], None),
            (&[("cache-control", "no-cache")], None),
            (&[("cache-control", "no-cache, no-store, max-age=0, must-revalidate"), ("expires", "0")], None),
            (&[("cache-control", "max-age=60"), ("age", "20")], Some(40)),
            (&[("cache-control", "max-age=60"), ("age", "100")], Some(0)),
            (&[("cache-control", "max-age=60"), ("age", "old")], Some(60)),
            (&[("expires", A_MINUTE_LATER), ("date", NOON)], Some(60)),
            (&[("expires", NOON), ("date", A_MINUTE_LATER)], Some(0)),
            (&[("expires", A_MINUTE_LATER)], None),
            (&[("expires", "0"), ("date", NOON)], None),
            (&[("cache-control", "max-age=5"), ("expires", A_MINUTE_LATER), ("date", NOON)], Some(5)),
        ] {
            assert_eq!(fresh_for(&map(headers)), seconds.map(Duration::from_secs), "{headers:?}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        for (headers, seconds) in [
            (&[][..], None),
            (&[("retry-after", "120")], Some(120)),
            (&[("retry-after", "-1")], None),
            (&[("retry-after", "later")], None),
            (&[("retry-after", A_MINUTE_LATER), ("date", NOON)], Some(60)),
            (&[("retry-after", NOON), ("date", A_MINUTE_LATER)], Some(0)),
            (&[("retry-after", A_MINUTE_LATER)], None),
        ] {
            assert_eq!(retry_after(&map(headers)), seconds.map(Duration::from_secs), "{headers:?}");
        }
    }

    #[test]
    fn an_answer_is_revalidated_by_entity_tag_or_by_a_strong_date() {
        let long = format!("\"{}\"", "x".repeat(MAX_ETAG_BYTES));
        for (headers, expected) in [
            (&[][..], None),
            (&[("etag", "\"a\"")], Some(("if-none-match", "\"a\""))),
            (&[("etag", "W/\"a\"")], Some(("if-none-match", "W/\"a\""))),
            (&[("etag", "a")], None),
            (&[("etag", &long), ("last-modified", NOON), ("date", A_MINUTE_LATER)], None),
            (
                &[("etag", "\"a\""), ("last-modified", NOON), ("date", A_MINUTE_LATER)],
                Some(("if-none-match", "\"a\"")),
            ),
            (&[("last-modified", NOON), ("date", A_MINUTE_LATER)], Some(("if-modified-since", NOON))),
            (&[("last-modified", NOON), ("date", NOON)], None),
            (&[("last-modified", NOON)], None),
        ] {
            let expected = expected.map(|(name, value)| map(&[(name, value)]));
            assert_eq!(validators(&map(headers)), expected, "{headers:?}");
        }
    }
}
