//! What the path patterns of rules match, as sets of canonical paths: whether a pattern matches any of them, and whether
//! other patterns match all of its paths.
//!
//! Patterns are compiled to automata, and a path that tells them apart is searched in their product. This takes time that
//! grows with the size of the automata, so the steps of one document are limited; beyond that, nothing is known.

use std::cell::OnceCell;
use std::collections::HashSet;

use portcullis_core::rules::PathPattern;
use regex_automata::Anchored;
use regex_automata::dfa::{Automaton, dense};
use regex_automata::util::primitives::StateID;
use regex_automata::util::{start, syntax};

/// The largest automaton, and the most memory to make one, in bytes.
const MAX_AUTOMATON_BYTES: usize = 1 << 20;
const MAX_WORK_BYTES: usize = 4 << 20;

/// The most steps for all questions about one document, and how many an automaton counts for.
const MAX_STEPS: usize = 4_000_000;
const STEPS_OF_AN_AUTOMATON: usize = 20_000;

/// The most patterns that are combined into one automaton.
const MAX_PATTERNS: usize = 256;

/// The longest expression that is compiled, in bytes.
const MAX_EXPRESSION_BYTES: usize = 16 << 10;

/// Canonical paths: segments of the characters that need no percent-encoding, and other bytes encoded in upper case.
const CANONICAL: &str = concat!(
    r#"/(?:[A-Za-z0-9._~!$&'()*+,:=@|^`{}<>"\[\]/-]"#,
    "|%(?:[0189A-F][0-9A-F]|2[0-9A-CF]|3[A-F]|40|5[B-E]|60|7[B-DF]))*"
);

/// Answers questions about patterns of one document.
pub(super) struct Paths {
    /// Made when it is needed first: most configurations have no regular expression.
    canonical: OnceCell<Option<Language>>,
    steps_left: usize,
}

/// The texts that a pattern matches completely.
struct Language(dense::DFA<Vec<u32>>);

impl Paths {
    pub(super) fn new() -> Self {
        Self { canonical: OnceCell::new(), steps_left: MAX_STEPS }
    }

    /// Whether no canonical path matches. `false` if that is unknown.
    pub(super) fn matches_nothing(&mut self, pattern: &PathPattern) -> bool {
        self.is_within(&expression(pattern), None)
    }

    /// Whether every canonical path that matches one of these patterns matches one of the others, too; no pattern matches
    /// every path. `false` if that is unknown.
    pub(super) fn covers<'p>(
        &mut self,
        others: impl Iterator<Item = &'p PathPattern> + Clone,
        patterns: &[PathPattern],
    ) -> bool {
        let all = [PathPattern::Prefix(String::new())];
        let patterns = if patterns.is_empty() { &all } else { patterns };
        if patterns.iter().all(|pattern| covers_plainly(others.clone(), pattern)) {
            return true;
        }
        let is_regex = |pattern: &PathPattern| matches!(pattern, PathPattern::Regex(_));
        // Sets of exact paths and prefixes are only covered plainly.
        if !patterns.iter().any(is_regex) && !others.clone().any(is_regex) {
            return false;
        }
        let count = others.clone().take(MAX_PATTERNS + 1).count();
        if !(1..=MAX_PATTERNS).contains(&count) || self.steps_left < STEPS_OF_AN_AUTOMATON {
            return false;
        }
        let others: Vec<String> = others.map(expression).collect();
        let patterns: Vec<String> = patterns.iter().map(expression).collect();
        let others = others.join("|");
        patterns.iter().all(|pattern| self.is_within(pattern, Some(&others)))
    }

    /// Whether no canonical path matches the first expression and not the second one.
    fn is_within(&mut self, expression: &str, other: Option<&str>) -> bool {
        let other = match other.map(|other| self.language(other)) {
            None => None,
            Some(Some(other)) => Some(other),
            Some(None) => return false,
        };
        let language = self.language(expression);
        let canonical = self.canonical.get_or_init(|| Language::of(CANONICAL));
        let (Some(canonical), Some(language)) = (canonical, language) else { return false };
        is_empty(&[Some(canonical), Some(&language), other.as_ref()], &mut self.steps_left)
    }

    fn language(&mut self, expression: &str) -> Option<Language> {
        self.steps_left = self.steps_left.checked_sub(STEPS_OF_AN_AUTOMATON)?;
        if expression.len() <= MAX_EXPRESSION_BYTES { Language::of(expression) } else { None }
    }
}

/// Whether a pattern without regular expressions, or the same one, covers another one.
fn covers_plainly<'p>(mut others: impl Iterator<Item = &'p PathPattern>, pattern: &PathPattern) -> bool {
    others.any(|other| match (other, pattern) {
        (PathPattern::Prefix(_), PathPattern::Prefix(below)) => other.matches(below),
        (other, PathPattern::Exact(exact)) => other.matches(exact),
        (other, pattern) => other == pattern,
    })
}

/// The regular expression of a pattern.
fn expression(pattern: &PathPattern) -> String {
    match pattern {
        PathPattern::Exact(path) => format!("(?:{})", escaped(path)),
        PathPattern::Prefix(path) => format!("(?:{}(?:/.*)?)", escaped(path)),
        PathPattern::Regex(regex) => format!("(?:{})", regex.source()),
    }
}

fn escaped(text: &str) -> String {
    let escape = |letter: char| {
        let is_special = letter.is_ascii_punctuation();
        is_special.then_some('\\').into_iter().chain([letter])
    };
    text.chars().flat_map(escape).collect()
}

impl Language {
    /// `None` if the expression needs Unicode, which canonical paths do not have, or too much memory.
    fn of(expression: &str) -> Option<Self> {
        let automaton = dense::Builder::new()
            .configure(
                dense::Config::new()
                    .dfa_size_limit(Some(MAX_AUTOMATON_BYTES))
                    .determinize_size_limit(Some(MAX_WORK_BYTES)),
            )
            .syntax(syntax::Config::new().unicode(false).utf8(false))
            .thompson(regex_automata::nfa::thompson::Config::new().utf8(false))
            .build(&format!("^(?:{expression})$"))
            .ok()?;
        Some(Self(automaton))
    }

    fn start(&self) -> Option<StateID> {
        self.0.start_state(&start::Config::new().anchored(Anchored::Yes)).ok()
    }

    fn matches_at(&self, state: StateID) -> bool {
        self.0.is_match_state(self.0.next_eoi_state(state))
    }
}

/// Whether no text is in the first two languages and not in the third one. `false` if that is unknown.
fn is_empty(languages: &[Option<&Language>; 3], steps_left: &mut usize) -> bool {
    type States = [Option<StateID>; 3];
    let starts = languages.map(|language| language.map(Language::start));
    if starts.contains(&Some(None)) {
        return false;
    }
    let first: States = starts.map(Option::flatten);
    let (mut known, mut open) = (HashSet::from([first]), vec![first]);
    let wanted = [true, true, false];
    while let Some(states) = open.pop() {
        let mut machines = languages.iter().zip(states).zip(wanted);
        let is_found = machines.all(|((language, state), wanted)| {
            let matches = language.zip(state).is_some_and(|(language, state)| language.matches_at(state));
            matches == wanted
        });
        if is_found {
            return false;
        }
        for byte in b'!'..=b'~' {
            let Some(left) = steps_left.checked_sub(1) else { return false };
            *steps_left = left;
            let mut next: States = [None; 3];
            for ((next, language), state) in next.iter_mut().zip(languages).zip(states) {
                *next = language.zip(state).map(|(language, state)| language.0.next_state(state, byte));
            }
            let is_over = languages.iter().zip(next).take(2).any(|(language, state)| {
                language.zip(state).is_some_and(|(language, state)| language.0.is_dead_state(state))
            });
            let is_unknown = languages.iter().zip(next).any(|(language, state)| {
                language.zip(state).is_some_and(|(language, state)| language.0.is_quit_state(state))
            });
            if is_unknown {
                return false;
            }
            if !is_over && known.insert(next) {
                open.push(next);
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(path: &str) -> PathPattern {
        PathPattern::exact(path).expect("a path")
    }

    fn prefix(path: &str) -> PathPattern {
        PathPattern::prefix(path).expect("a path")
    }

    fn regex(source: &str) -> PathPattern {
        PathPattern::regex(source).expect("an expression")
    }

    #[test]
    fn an_expression_that_matches_no_canonical_path_is_found() {
        let mut paths = Paths::new();
        for source in ["secret", "secret/.*", "/%c3%a4", "/a#b", "/[?]x", r"/x\\y", "/a;b"] {
            assert!(paths.matches_nothing(&regex(source)), "{source}");
        }
        for source in ["/secret", ".*", "^/x", "/x$", "/(?i)admin", "/%C3%A4", "(/a|b)", "/[a-z]+", r"/\w+"] {
            assert!(!paths.matches_nothing(&regex(source)), "{source}");
        }
    }

    #[test]
    fn coverage_is_decided_for_lists_and_expressions() {
        let mut paths = Paths::new();
        let mut covers = |others: &[&PathPattern], patterns: &[PathPattern]| {
            paths.covers(others.iter().copied(), patterns)
        };
        assert!(covers(&[&regex("/admin(/.*)?")], &[prefix("/admin")]));
        assert!(covers(&[&regex("/admin/.*")], &[regex("/admin/[a-z]+"), exact("/admin/x")]));
        assert!(covers(&[&prefix("/a"), &regex("/b[0-9]")], &[exact("/a/x"), regex("/b[1-3]")]));
        assert!(covers(&[&regex("/.*")], &[]));
        assert!(covers(&[&prefix("/")], &[regex("/[a-z]+")]));
        assert!(covers(&[&prefix("/a"), &prefix("/b")], &[regex("/[ab]/x")]));
        assert!(!covers(&[&regex("/admin/.*")], &[prefix("/admin")]), "/admin itself");
        assert!(!covers(&[&regex("/[a-z]+")], &[regex("/[a-z0-9]+")]));
        assert!(!covers(&[&prefix("/a")], &[]));
        assert!(!covers(&[], &[exact("/a")]));
        assert!(!covers(&[&regex(r"/\p{Greek}+")], &[regex(r"/\p{Greek}")]), "unknown");
    }

    #[test]
    fn an_expression_with_a_large_automaton_is_unknown_after_bounded_work() {
        let mut paths = Paths::new();
        let large = regex("/.*a.{18}");
        assert!(!paths.covers([&large].into_iter(), &[regex("/.*a.{17}")]));
        assert!(!paths.matches_nothing(&large));
    }
}
