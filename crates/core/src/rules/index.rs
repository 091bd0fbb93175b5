//! Finds the first rule that applies to a request, without a look at every rule.
//!
//! Pure. Rules are grouped by their host and path; only those whose host and path can match are looked at, in order.
//! Whether a rule applies is decided by the rule itself. Rules with a regular expression are looked at one by one.

use std::collections::BTreeMap;

use super::host::HostPattern;
use super::{PathPattern, Rule};

/// The positions of rules, by what a request must have.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct RuleIndex {
    any_host: ByPath,
    hosts: BTreeMap<String, ByPath>,
    /// By the domain with its leading dot.
    subdomains: BTreeMap<String, ByPath>,
    by_name: BTreeMap<Vec<u8>, usize>,
}

/// The positions of rules with the same host, by path; each list is in order.
#[derive(Clone, Debug, Default, PartialEq)]
struct ByPath {
    exact: BTreeMap<String, Vec<usize>>,
    prefixes: BTreeMap<String, Vec<usize>>,
    longest_prefix: usize,
    others: Vec<usize>,
}

impl RuleIndex {
    pub(super) fn new(rules: &[Rule]) -> Self {
        let mut index = Self::default();
        for (at, rule) in rules.iter().enumerate() {
            index.by_name.entry(rule.name.as_bytes().to_vec()).or_insert(at);
            let paths = &rule.matches.paths;
            if rule.matches.hosts.is_empty() {
                index.any_host.add(paths, at);
            }
            for host in &rule.matches.hosts {
                let of_host = match host {
                    HostPattern::Exact(host) => index.hosts.entry(host.clone()).or_default(),
                    HostPattern::Subdomain(domain) if domain.starts_with('.') => {
                        index.subdomains.entry(domain.clone()).or_default()
                    }
                    HostPattern::Subdomain(_) => &mut index.any_host,
                };
                of_host.add(paths, at);
            }
        }
        index
    }

    /// The position of the first rule with this name.
    pub(super) fn named(&self, name: &[u8]) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The first position that applies, of those whose host and path can match this canonical host and path.
    pub(super) fn first(
        &self,
        host: Option<&str>,
        path: Option<&str>,
        applies: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let of_host = host.into_iter().flat_map(|host| self.of_host(host));
        let lists = of_host.chain([&self.any_host]).flat_map(|by_path| by_path.of_path(path));
        lists.fold(None, |first: Option<usize>, list| {
            let earlier = list.iter().copied().take_while(|at| first.is_none_or(|first| *at < first));
            earlier.into_iter().find(|at| applies(*at)).or(first)
        })
    }

    fn of_host<'s>(&'s self, host: &'s str) -> impl Iterator<Item = &'s ByPath> {
        // The domain itself is not below it.
        let domains = host.match_indices('.').filter(|(at, _)| *at > 0).filter_map(|(at, _)| host.get(at..));
        let is_any = !self.subdomains.is_empty();
        let subdomains = domains.take_while(move |_| is_any).filter_map(|domain| self.subdomains.get(domain));
        self.hosts.get(host).into_iter().chain(subdomains)
    }
}

impl ByPath {
    fn add(&mut self, paths: &[PathPattern], at: usize) {
        if paths.is_empty() {
            self.others.push(at);
        }
        for path in paths {
            let list = match path {
                PathPattern::Exact(path) => self.exact.entry(path.clone()).or_default(),
                PathPattern::Prefix(prefix) => {
                    self.longest_prefix = self.longest_prefix.max(prefix.len());
                    self.prefixes.entry(prefix.clone()).or_default()
                }
                PathPattern::Regex(_) => &mut self.others,
            };
            if list.last() != Some(&at) {
                list.push(at);
            }
        }
    }

    fn of_path<'s>(&'s self, path: Option<&'s str>) -> impl Iterator<Item = &'s Vec<usize>> {
        let path = path.unwrap_or_default();
        // A prefix ends before a slash, or where the path ends.
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        let ends = ends.take_while(|end| *end <= self.longest_prefix && !self.prefixes.is_empty());
        let prefixes = ends.filter_map(|end| self.prefixes.get(path.get(..end)?));
        self.exact.get(path).into_iter().chain(prefixes).chain([&self.others])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::access_request::{AccessRequest, Headers, tests::arrived};
    use crate::rules::{Effect, Match, Rules};

    fn path_pattern() -> impl Strategy<Value = PathPattern> {
        let text = "(/[ab]{0,2}){0,3}/?";
        prop_oneof![
            text.prop_map(PathPattern::Exact),
            // Also prefixes that no configuration has: with a trailing slash.
            text.prop_map(PathPattern::Prefix),
            Just(PathPattern::regex("/a/.*").expect("an expression")),
        ]
    }

    fn host_pattern() -> impl Strategy<Value = HostPattern> {
        let text = "(a|b)(\\.(a|b)){0,2}";
        prop_oneof![
            text.prop_map(HostPattern::Exact),
            text.prop_map(|text| HostPattern::Subdomain(format!(".{text}"))),
            text.prop_map(HostPattern::Subdomain),
        ]
    }

    fn rules() -> impl Strategy<Value = Vec<Rule>> {
        let method =
            prop_oneof![Just(Vec::new()), Just(vec!["GET".to_owned()]), Just(vec!["PUT".to_owned()])];
        let paths = prop::collection::vec(path_pattern(), 0..3);
        let matches = (paths, prop::collection::vec(host_pattern(), 0..3), method)
            .prop_map(|(paths, hosts, methods)| Match { paths, methods, hosts, headers: Vec::new() });
        let rule = matches.prop_map(|matches| Rule {
            name: String::new(),
            matches,
            by_name: false,
            ambiguous_paths: false,
            effect: Effect::Deny,
        });
        prop::collection::vec(rule, 0..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_first_rule_is_that_of_a_search_through_all(
            rules in rules(),
            path in prop_oneof![Just(None), "(/[ab]{0,2}){0,4}".prop_map(Some)],
            host in prop_oneof![Just(None), "(a|b)(\\.(a|b)){0,3}".prop_map(Some)],
        ) {
            let request = AccessRequest::new(b"GET", b"", b"/", Headers::default(), arrived());
            let (path, host) = (path.as_deref(), host.as_deref());
            let applies = |rule: &Rule| rule.applies_to(&request, path, host);
            let indexed = RuleIndex::new(&rules).first(host, path, |at| applies(&rules[at]));
            prop_assert_eq!(indexed, rules.iter().position(applies));
        }
    }

    #[test]
    fn a_rule_is_found_by_its_name() {
        let rule = |name: &str| Rule {
            name: name.to_owned(),
            matches: Match::default(),
            by_name: false,
            ambiguous_paths: false,
            effect: Effect::Deny,
        };
        let index = RuleIndex::new(Rules::new(vec![rule("a"), rule("b")]).all());
        assert_eq!([b"a", b"b", b"c"].map(|name| index.named(name)), [Some(0), Some(1), None]);
    }
}
