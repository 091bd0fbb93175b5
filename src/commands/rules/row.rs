//! A row of the table: the requests of one rule, and what they need.

use crate::config::{Config, ProviderConfig};
use crate::rules::{Effect, Match, PathPattern, Requirements, Rule, Unmatched};
use crate::validation::provider::Audiences;

/// Kinds of paths.
pub(super) const PREFIX: &str = "path_prefix";
pub(super) const REGEX: &str = "path_regex";

/// The effect of a rule that lets requests with a token pass.
const TOKEN: &str = "require token";
const DENY: &str = "deny";
/// The effect of a rule that applies to preflights alone.
pub(super) const PREFLIGHT: &str = "allow preflight";

/// The requests of one rule, or those that no rule matches, and what they need.
pub(in super::super) struct Row {
    /// The name of the rule; `None` in the last row.
    pub(in super::super) rule: Option<String>,
    /// The paths, each with its kind; as every part of the requests, any if empty.
    pub(in super::super) paths: Vec<(&'static str, String)>,
    pub(in super::super) methods: Vec<String>,
    pub(in super::super) hosts: Vec<String>,
    /// Each header with the values that match.
    pub(in super::super) headers: Vec<(String, Vec<String>)>,
    /// Whether a proxy's route can name the rule.
    pub(in super::super) by_name: bool,
    /// Whether paths that programs read differently are accepted.
    pub(in super::super) ambiguous_paths: bool,
    /// What the rule does.
    pub(in super::super) effect: &'static str,
    /// The providers whose tokens are accepted; none if no token is.
    pub(in super::super) providers: Vec<String>,
    /// The accepted audiences of each of them; `None` is any.
    pub(in super::super) audiences: Vec<(String, Option<Vec<String>>)>,
    pub(in super::super) scopes: Vec<String>,
    /// Each claim with the values that are accepted, as JSON.
    pub(in super::super) claims: Vec<(String, Vec<String>)>,
    pub(in super::super) condition: Option<String>,
}

impl Row {
    /// Every rule in order, and what no rule matches.
    pub(super) fn all(config: &Config) -> Vec<Self> {
        let rules = config.rules.all().iter().map(|rule| Self::of_rule(rule, &config.providers));
        rules.chain([Self::unmatched(config)]).collect()
    }

    /// The row of this rule, or of what no rule matches.
    pub(in super::super) fn of(rule: Option<&Rule>, config: &Config) -> Self {
        match rule {
            Some(rule) => Self::of_rule(rule, &config.providers),
            None => Self::unmatched(config),
        }
    }

    fn of_rule(rule: &Rule, providers: &[ProviderConfig]) -> Self {
        let Match { paths, methods, hosts, headers } = &rule.matches;
        let mut methods = methods.clone();
        // RFC 9110 §9.3.2: who may GET may HEAD.
        if methods.iter().any(|method| method == "GET") && !methods.iter().any(|method| method == "HEAD") {
            methods.push("HEAD".to_owned());
        }
        let effect = match rule.effect {
            Effect::Deny => DENY,
            Effect::Anonymous => "allow anonymous",
            Effect::Preflight => PREFLIGHT,
            Effect::Optional(_) => "allow optional",
            Effect::Require(_) => TOKEN,
        };
        let row = Self {
            rule: Some(rule.name.clone()),
            paths: paths.iter().map(path_parts).collect(),
            methods,
            hosts: hosts.iter().map(ToString::to_string).collect(),
            headers: headers.iter().map(|header| (header.name.clone(), header.any_of.clone())).collect(),
            by_name: rule.by_name,
            ambiguous_paths: rule.ambiguous_paths,
            ..Self::of_effect(effect)
        };
        match rule.requirements() {
            None => row,
            Some(requirements) => row.requiring(requirements, providers),
        }
    }

    fn unmatched(config: &Config) -> Self {
        match config.rules.unmatched() {
            Unmatched::Deny => Self::of_effect(DENY),
            Unmatched::Token => Self::of_effect(TOKEN).requiring(&Requirements::default(), &config.providers),
        }
    }

    fn of_effect(effect: &'static str) -> Self {
        Self {
            rule: None,
            paths: Vec::new(),
            methods: Vec::new(),
            hosts: Vec::new(),
            headers: Vec::new(),
            by_name: false,
            ambiguous_paths: false,
            effect,
            providers: Vec::new(),
            audiences: Vec::new(),
            scopes: Vec::new(),
            claims: Vec::new(),
            condition: None,
        }
    }

    fn requiring(self, requirements: &Requirements, providers: &[ProviderConfig]) -> Self {
        let Requirements { providers: named, audiences, scopes, claims, condition } = requirements;
        let providers = providers.iter().map(|config| &*config.provider);
        let accepted: Vec<_> =
            providers.filter(|provider| named.is_empty() || named.contains(&provider.name)).collect();
        let audiences = accepted.iter().map(|provider| {
            let audiences = match audiences.as_ref().unwrap_or(&provider.audiences) {
                Audiences::AnyOf(audiences) => Some(audiences.clone()),
                Audiences::Any => None,
            };
            (provider.name.clone(), audiences)
        });
        let claims = claims.iter().map(|required| {
            (required.claim.to_string(), required.any_of.iter().map(|value| value.to_compact()).collect())
        });
        Self {
            audiences: audiences.collect(),
            providers: accepted.iter().map(|provider| provider.name.clone()).collect(),
            scopes: scopes.clone(),
            claims: claims.collect(),
            condition: condition.as_ref().map(|condition| condition.source().to_owned()),
            ..self
        }
    }
}

/// The kind of a pattern, as in the configuration, and its text.
fn path_parts(pattern: &PathPattern) -> (&'static str, String) {
    match pattern {
        PathPattern::Exact(path) => ("path", path.clone()),
        PathPattern::Prefix(prefix) if prefix.is_empty() => (PREFIX, "/".to_owned()),
        PathPattern::Prefix(prefix) => (PREFIX, prefix.clone()),
        PathPattern::Regex(regex) => (REGEX, regex.source().to_owned()),
    }
}
