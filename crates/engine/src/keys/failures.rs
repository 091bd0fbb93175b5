//! Failures of fetches as the log tells them: each kind once, then a count, until a fetch succeeds.
//!
//! Pure.

use std::time::Duration;

use crate::clock::Instant;

use super::fetch_error::FetchError;

/// The most kinds that are told at once in one outage: an issuer, or a path to it, has few ways to fail.
const MAX_KINDS: usize = 16;

/// Lines that would be one too many are not logged more often: another kind than that of the last line, and the end of an
/// outage of an issuer that comes and goes.
const QUIET: Duration = Duration::from_secs(60);

/// How often failures that are not told are counted in a line.
const COUNTED_EVERY: Duration = Duration::from_secs(3_600);

/// The failures since the last success.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// The first failure of each kind.
    told: Vec<FetchError>,
    /// The failure of the last line.
    last_told: Option<FetchError>,
    /// When the first one was.
    since: Option<Instant>,
    /// When a line was last logged.
    last_line: Option<Instant>,
    /// When the end of an outage was last logged.
    last_end: Option<Instant>,
    count: u64,
}

/// What the log says about a failure.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// The failure: it is the first one of its kind, or of another kind than the last one that was told.
    Told,
    /// How many there have been since the last success, and for how long.
    Counted(Count),
    /// Nothing.
    None,
}

/// Consecutive failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) failures: u64,
    /// The time since the first one.
    pub(super) lasting: Duration,
}

impl Failures {
    /// Notes a failure.
    pub(super) fn failed(&mut self, error: &FetchError, now: Instant) -> Line {
        let since = *self.since.get_or_insert(now);
        self.count = self.count.saturating_add(1);
        let is_past =
            |then: Option<Instant>, time| then.is_none_or(|then| now.saturating_duration_since(then) >= time);
        let is_told = |part: &FetchError| self.told.iter().any(|told| told.is_like(part));
        let is_new = self.told.len() < MAX_KINDS && !error.parts().iter().all(is_told);
        let differs = !self.last_told.as_ref().is_some_and(|last| last.is_like(error));
        if is_new || (differs && is_past(self.last_line, QUIET)) {
            let unknown = error.parts().iter().filter(|part| !is_told(part)).cloned();
            let unknown: Vec<FetchError> = unknown.take(MAX_KINDS.saturating_sub(self.told.len())).collect();
            self.told.extend(unknown);
            (self.last_told, self.last_line) = (Some(error.clone()), Some(now));
            return Line::Told;
        }
        if is_past(self.last_line, COUNTED_EVERY) {
            self.last_line = Some(now);
            let lasting = now.saturating_duration_since(since);
            return Line::Counted(Count { failures: self.count, lasting });
        }
        Line::None
    }

    /// Notes a success. Returns what it ends, if there were failures; nothing shortly after the last end, since an issuer
    /// that comes and goes is one outage.
    pub(super) fn succeeded(&mut self, now: Instant) -> Option<Count> {
        let since = self.since?;
        if self.last_end.is_some_and(|end| now.saturating_duration_since(end) < QUIET) {
            return None;
        }
        let count = Count { failures: self.count, lasting: now.saturating_duration_since(since) };
        *self = Self { last_end: Some(now), ..Self::default() };
        Some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn transport(text: &str) -> FetchError {
        FetchError::Transport(text.to_owned())
    }

    fn status(status: u16, retry_after: Option<u64>) -> FetchError {
        FetchError::Status { status, retry_after: retry_after.map(Duration::from_secs) }
    }

    #[test]
    fn each_kind_is_told_once_whatever_time_its_text_has_and_counted_each_hour() {
        let (mut failures, start) = (Failures::default(), clock::monotonic());
        for (minutes, error, expected) in [
            (0, transport("it expired 40 s ago, at 2026-11-29T10:30:13Z"), Line::Told),
            (1, transport("it expired 100 s ago, at 2026-11-29T10:30:13Z"), Line::None),
            (2, status(503, Some(7)), Line::Told),
            (3, status(503, Some(120)), Line::None),
            (4, status(503, None), Line::None),
            (5, status(502, None), Line::Told),
            (6, FetchError::TimedOut(Duration::from_millis(2_000)), Line::Told),
            (7, FetchError::TimedOut(Duration::from_millis(1_371)), Line::None),
            (8, FetchError::TimedOut(Duration::from_millis(2)), Line::None),
            // Another kind than that of the last line, which is a minute ago.
            (8, transport("it expired 1 s ago, at 2026-11-29T10:30:13Z"), Line::Told),
            (8, status(503, None), Line::None),
            (9, status(503, None), Line::Told),
            (68, status(503, None), Line::None),
            (
                69,
                status(503, None),
                Line::Counted(Count { failures: 14, lasting: Duration::from_secs(69 * 60) }),
            ),
        ] {
            let now = start + Duration::from_secs(minutes * 60);
            assert_eq!(failures.failed(&error, now), expected, "{minutes}: {error}");
        }
        let end = start + Duration::from_secs(70 * 60);
        let count = Count { failures: 14, lasting: Duration::from_secs(70 * 60) };
        assert_eq!(failures.succeeded(end), Some(count));
        assert_eq!(failures.succeeded(end), None);
        assert_eq!(failures.failed(&status(503, None), end), Line::Told, "another outage");
    }

    #[test]
    fn an_issuer_that_fails_in_ever_new_ways_is_counted_in_the_end() {
        let (mut failures, start) = (Failures::default(), clock::monotonic());
        let lines = (0..1_000).map(|at| failures.failed(&status(at, None), start));
        assert_eq!(lines.filter(|line| *line == Line::Told).count(), MAX_KINDS);
        // What it is now is told all the same, later.
        assert_eq!(failures.failed(&status(401, None), start + QUIET), Line::Told);
        assert_eq!(failures.failed(&status(402, None), start + QUIET), Line::None);
    }

    #[test]
    fn two_urls_that_fail_in_known_ways_make_no_new_kind() {
        let (mut failures, start) = (Failures::default(), clock::monotonic());
        let all = |one, other| FetchError::All(vec![status(one, None), status(other, None)]);
        let lines = (0..100).map(|at| failures.failed(&all(500 + at % 5, 500 + at / 5 % 5), start));
        assert_eq!(lines.filter(|line| *line == Line::Told).count(), 5);
    }

    #[test]
    fn an_issuer_that_comes_and_goes_is_told_about_once_a_minute() {
        let (mut failures, start) = (Failures::default(), clock::monotonic());
        let (mut told, mut ended) = (0, Vec::new());
        for second in 0..120 {
            let now = start + Duration::from_secs(second);
            told += usize::from(failures.failed(&status(503, None), now) == Line::Told);
            ended.extend(failures.succeeded(now + Duration::from_millis(500)).map(|count| count.failures));
        }
        assert_eq!((told, ended), (3, vec![1, 60]));
    }

    #[test]
    fn failures_are_alike_only_with_the_same_document_at_the_same_place() {
        use crate::keys::fetch_error::Document;
        let at = |path: &str, document| {
            let url = format!("https://sso.example.com{path}").parse().expect("a URL");
            status(503, None).at(document, &url)
        };
        let one = at("/a", Document::KeySet);
        assert!(one.is_like(&at("/a", Document::KeySet)));
        for other in [at("/b", Document::KeySet), at("/a", Document::Discovery), status(503, None)] {
            assert!(!one.is_like(&other), "{other}");
        }
        let all = |errors: &[FetchError]| FetchError::All(errors.to_vec());
        assert!(all(&[one.clone(), status(1, Some(1))]).is_like(&all(&[one.clone(), status(1, None)])));
        let twice = [one.clone(), one.clone()];
        assert!(!all(&[one]).is_like(&all(&twice)));
    }
}
