//! Failures of fetches as the log tells them: each kind once, then a count, until a fetch succeeds.
//!
//! Pure.

use std::time::Duration;

use crate::clock::Instant;

use super::fetch_error::FetchError;

/// The most kinds that are told at once in one outage: an issuer, or a path to it, has few ways to fail.
const MAX_KINDS: usize = 16;

/// A line about another kind than that of the last line, or about a new outage, is not logged sooner after the last one: an
/// issuer that comes and goes would fill the log.
const QUIET: Duration = Duration::from_secs(60);

/// How often failures that are not told are counted in a line.
const COUNTED_EVERY: Duration = Duration::from_secs(3_600);

/// The failures since the last success, and what was told of those before.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// The failures that were told, one of each kind.
    told: Vec<FetchError>,
    /// When a line was last logged, and the failure that it told.
    last_line: Option<(Instant, FetchError)>,
    /// When the first failure since the last success was.
    since: Option<Instant>,
    /// The failures since the last success.
    count: u64,
    /// Whether one of them was told, so that their end is, too.
    is_open: bool,
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
        let since_line = self.last_line.as_ref().map(|(at, _)| now.saturating_duration_since(*at));
        let is_past = |time: Duration| since_line.is_none_or(|since| since >= time);
        if self.since.is_none() && is_past(QUIET) {
            self.told.clear();
        }
        let since = *self.since.get_or_insert(now);
        self.count = self.count.saturating_add(1);
        let is_told = |part: &FetchError| self.told.iter().any(|told| told.is_like(part));
        let is_new = self.told.len() < MAX_KINDS && !error.parts().iter().all(is_told);
        let differs = !self.last_line.as_ref().is_some_and(|(_, last)| last.is_like(error));
        if is_new || (is_past(QUIET) && (differs || !self.is_open)) {
            let unknown = error.parts().iter().filter(|part| !is_told(part)).cloned();
            let unknown: Vec<FetchError> = unknown.take(MAX_KINDS.saturating_sub(self.told.len())).collect();
            self.told.extend(unknown);
            (self.last_line, self.is_open) = (Some((now, error.clone())), true);
            return Line::Told;
        }
        if self.is_open && is_past(COUNTED_EVERY) {
            self.last_line = Some((now, error.clone()));
            let lasting = now.saturating_duration_since(since);
            return Line::Counted(Count { failures: self.count, lasting });
        }
        Line::None
    }

    /// Notes a success. Returns what it ends, if a failure was told since the last one.
    pub(super) fn succeeded(&mut self, now: Instant) -> Option<Count> {
        let (since, failures) = (self.since.take()?, std::mem::take(&mut self.count));
        let lasting = now.saturating_duration_since(since);
        std::mem::take(&mut self.is_open).then_some(Count { failures, lasting })
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
    fn an_issuer_that_comes_and_goes_is_told_once_a_minute_and_never_left_as_failing() {
        let (mut failures, start) = (Failures::default(), clock::monotonic());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let (mut told, mut ended) = (Vec::new(), Vec::new());
        for second in 0..130 {
            if failures.failed(&status(503, None), at(second)) == Line::Told {
                told.push(second);
            }
            ended.extend(failures.succeeded(at(second)).map(|count| (second, count.failures)));
        }
        assert_eq!((told, ended), (vec![0, 60, 120], vec![(0, 1), (60, 1), (120, 1)]));
        // An outage that begins soon after a line is told once the line is a minute ago.
        assert_eq!(failures.failed(&status(503, None), at(130)), Line::None);
        assert_eq!(failures.failed(&status(503, None), at(179)), Line::None);
        assert_eq!(failures.failed(&status(503, None), at(180)), Line::Told);
        assert_eq!(failures.failed(&status(503, None), at(900)), Line::None);
        let count = Count { failures: 4, lasting: Duration::from_secs(800) };
        assert_eq!(failures.succeeded(at(930)), Some(count));
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
