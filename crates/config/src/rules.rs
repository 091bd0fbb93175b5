//! The `rules` section: authorization rules.

use std::collections::HashMap;

use portcullis_core::rules::condition::Condition;
use portcullis_core::rules::host::HostPattern;
use portcullis_core::rules::{ClaimRequirement, Effect, Match, PathPattern, Requirements, Rule, Rules};
use portcullis_core::validation::json::{Json, JsonLimits};
use portcullis_core::validation::provider::ClaimPath;

use serde_json::json;

use super::cursor::{Cursor, Entry, Mapping, Read, all};
use super::forms::{Choice, Each, List, Sub, Text, any_text, equal, shown, text_schema};
use super::providers::{NAME, read_token};
use super::section::{Form, FormDescription, Section, section};
use super::warnings::warn_of_rules;
use super::yaml::{Yaml, own_key};

/// The rules, with unique names.
pub(super) struct RuleList;

impl Form for RuleList {
    type Value = Rules;

    fn read(&self, cursor: &Cursor<'_>) -> Read<Rules> {
        let elements = cursor.elements()?;
        let rules: Vec<Read<Rule>> = elements.iter().map(Rule::read).collect();
        let mut first: HashMap<&str, usize> = HashMap::new();
        let mut unique = Ok(());
        for (element, rule) in elements.iter().zip(&rules) {
            let Ok(rule) = rule else { continue };
            if let Some(line) = first.insert(&rule.name, element.line()) {
                unique = element.refuse(format!("another rule, in line {line}, has the same name"));
            }
        }
        unique?;
        let rules: Vec<Rule> = rules.into_iter().collect::<Read<_>>()?;
        warn_of_rules(&elements, &rules);
        Ok(Rules::new(rules))
    }

    fn print(&self, value: &Rules) -> Yaml {
        Yaml::List(value.all().iter().map(|rule| Sub::<Rule>::NEW.print(rule)).collect())
    }

    fn describe(&self) -> FormDescription {
        Each(Sub::<Rule>::NEW).describe()
    }
}

/// Refuses unknown names of providers, also in rules that are invalid elsewhere. A provider that is invalid
/// elsewhere still has its name.
pub(super) fn check_provider_names(root: &Cursor<'_>) {
    fn list<'a>(cursor: Option<Cursor<'a>>) -> Option<Vec<Cursor<'a>>> {
        cursor.filter(Cursor::is_list).and_then(|list| list.elements().ok())
    }
    let Some(providers) = list(root.peek("providers")) else { return };
    // If a name cannot be read, only that is reported, not the rules that use it.
    let names: Option<Vec<String>> =
        providers.iter().map(|provider| provider.peek("name")?.peek_text().ok()).collect();
    let Some(names) = names else { return };
    // As they are written: a variable may hold a secret.
    let names_of = providers.iter().filter_map(|provider| provider.peek("name"));
    let written: Vec<&str> = names_of.filter_map(|name| name.peek_written()).collect();
    for rule in list(root.peek("rules")).unwrap_or_default() {
        for named in list(rule.peek("providers")).unwrap_or_default() {
            let Ok(name) = named.peek_text() else { continue };
            if !names.contains(&name) {
                let known = written.join(", ");
                let _reported =
                    named.refuse::<()>(format!("no provider has this name; known names: {known}"));
            }
        }
    }
}

section! {
    /// One rule. The first rule that matches applies; without a match a valid token of any provider is enough.
    "Rule": Rule,
    read through RuleDraft by make_rule,
    printed through RuleShown by show_rule,
    later ["audiences", "by_name", "stream_lifetime", "mode", "external_url", "resource"] {
        /// Its name in logs, by which a route can name it.
        name: String = NAME, required("its name in logs and in the proxy's `portcullis_rule`");
        /// The requests that the rule applies to: those that match every part; all if absent.
        matches as "match": Match = Sub::<Match>::NEW, unless(Match::default());
        /// Whether the rule accepts ambiguous paths, which programs interpret differently.
        ambiguous_paths: bool = Choice(&[("allow", true), ("refuse", false)]), unless(false);
        /// Every request is allowed, or every CORS preflight; no token is evaluated.
        allow: Effect = Choice(&ALLOWED), optional;
        /// Every request is denied.
        deny: Effect = Always, optional;
        /// The providers whose tokens are accepted; all if absent.
        providers: Vec<String> = List {
            of: any_text("a provider's name"),
            empty: "an empty list denies every token; remove the key to accept every provider",
            same: equal,
        }, unless(Vec::new());
        /// The requirements for a valid token; all have to be met.
        require: Requirements = Sub::<Requirements>::NEW, unless(Requirements::default());
    }
}

static ALLOWED: [(&str, Effect); 2] = [("anonymous", Effect::Anonymous), ("preflight", Effect::Preflight)];

fn make_rule(draft: RuleDraft, mapping: &Mapping<'_>) -> Read<Rule> {
    let RuleDraft { name, matches, ambiguous_paths, allow, deny, providers, require } = draft;
    let effect = make_effect(allow, deny, providers, require, mapping);
    Ok(Rule { name: name?, matches: matches?, ambiguous_paths: ambiguous_paths?, effect: effect? })
}

fn make_effect(
    allow: Read<Option<Effect>>,
    deny: Read<Option<Effect>>,
    providers: Read<Vec<String>>,
    require: Read<Requirements>,
    mapping: &Mapping<'_>,
) -> Read<Effect> {
    let present =
        ["allow", "deny", "providers", "require"].into_iter().filter(|key| mapping.get(key).is_some());
    let (allow, deny, providers, require) = (allow?, deny?, providers?, require?);
    let Some(effect) = allow.or(deny) else {
        return Ok(Effect::Require(Requirements { providers, ..require }));
    };
    // The first key is the effect itself.
    match present.into_iter().nth(1) {
        None => Ok(effect),
        Some(other) => mapping.refuse_at(other, "has no effect with `allow` or `deny`: keep one"),
    }
}

fn show_rule(rule: &Rule) -> RuleShown {
    let Rule { name, matches, ambiguous_paths, effect } = rule.clone();
    let mut shown = RuleShown {
        name: Some(name),
        matches: Some(matches).filter(|matches| *matches != Match::default()),
        ambiguous_paths: Some(ambiguous_paths).filter(|allowed| *allowed),
        allow: None,
        deny: None,
        providers: None,
        require: None,
    };
    match effect {
        Effect::Deny => shown.deny = Some(effect),
        Effect::Anonymous | Effect::Preflight => shown.allow = Some(effect),
        Effect::Require(mut requirements) => {
            let providers = std::mem::take(&mut requirements.providers);
            shown.providers = Some(providers).filter(|providers| !providers.is_empty());
            shown.require = Some(requirements).filter(|required| *required != Requirements::default());
        }
    }
    shown
}

/// Only `true`: every request is denied.
struct Always;

impl Form for Always {
    type Value = Effect;

    fn read(&self, cursor: &Cursor<'_>) -> Read<Effect> {
        match cursor.boolean()? {
            true => Ok(Effect::Deny),
            false => cursor.refuse("expected `true`; to deny nothing, remove the key"),
        }
    }

    fn print(&self, _: &Effect) -> Yaml {
        Yaml::word(true)
    }

    fn describe(&self) -> FormDescription {
        FormDescription::new("`true`", json!({"const": true}))
    }
}

section! {
    /// The requests that a rule applies to: those that match every part. Only one of the three paths is allowed.
    "Match": Match,
    read through MatchDraft by make_match,
    printed through MatchShown by show_match,
    later ["headers"] {
        /// This path, in canonical form.
        path: PathPattern = Path { read: PathPattern::exact, summary: "a path" }, optional;
        /// This path and all paths below it, by complete segments.
        path_prefix: PathPattern = Path { read: PathPattern::prefix, summary: "a path" }, optional;
        /// A regular expression for the complete path.
        path_regex: PathPattern = Path { read: PathPattern::regex, summary: "a regular expression" }, optional;
        /// Methods in upper case; GET also matches HEAD. Every method if absent.
        methods: Vec<String> = List {
            of: Text { read: read_method, show: shown, summary: "a method in upper case" },
            empty: "an empty list matches nothing; remove the key for every method",
            same: equal,
        }, unless(Vec::new());
        /// Hosts without ports; *.example.com is every host below it. Every host if absent.
        hosts: Vec<HostPattern> = List {
            of: Text { read: read_host, show: shown, summary: "a host" },
            empty: "an empty list matches nothing; remove the key for every host",
            same: equal,
        }, unless(Vec::new());
    }
}

/// A path pattern of one of the three kinds.
struct Path {
    read: fn(&str) -> Result<PathPattern, String>,
    summary: &'static str,
}

impl Form for Path {
    type Value = PathPattern;

    fn read(&self, cursor: &Cursor<'_>) -> Read<PathPattern> {
        match (self.read)(&cursor.text()?) {
            Ok(pattern) => Ok(pattern),
            Err(message) => cursor.refuse(message),
        }
    }

    fn print(&self, value: &PathPattern) -> Yaml {
        match value {
            PathPattern::Exact(path) => Yaml::text(path),
            PathPattern::Prefix(prefix) => Yaml::text(format!("{prefix}/")),
            PathPattern::Regex(regex) => Yaml::text(regex.source()),
        }
    }

    fn describe(&self) -> FormDescription {
        FormDescription::new(self.summary, text_schema())
    }
}

fn make_match(draft: MatchDraft, mapping: &Mapping<'_>) -> Read<Match> {
    let MatchDraft { path, path_prefix, path_regex, methods, hosts } = draft;
    let mut patterns = [path?, path_prefix?, path_regex?].into_iter().flatten();
    let path = patterns.next();
    if patterns.next().is_some() {
        return mapping.refuse("expected one of `path`, `path_prefix`, `path_regex`: write a rule for each");
    }
    Ok(Match { path, methods: methods?, hosts: hosts? })
}

fn show_match(matches: &Match) -> MatchShown {
    let Match { path, methods, hosts } = matches.clone();
    let mut shown = MatchShown {
        path: None,
        path_prefix: None,
        path_regex: None,
        methods: Some(methods).filter(|methods| !methods.is_empty()),
        hosts: Some(hosts).filter(|hosts| !hosts.is_empty()),
    };
    match path {
        None => {}
        exact @ Some(PathPattern::Exact(_)) => shown.path = exact,
        prefix @ Some(PathPattern::Prefix(_)) => shown.path_prefix = prefix,
        regex @ Some(PathPattern::Regex(_)) => shown.path_regex = regex,
    }
    shown
}

/// A method in upper case: methods are case-sensitive (RFC 9110 §9.1), and `get` does not exist.
fn read_method(cursor: &Cursor<'_>) -> Read<String> {
    let method = read_token(cursor)?;
    let upper = method.to_ascii_uppercase();
    if method != upper {
        return cursor.refuse(format!("methods are in upper case: write {upper}"));
    }
    Ok(method)
}

fn read_host(cursor: &Cursor<'_>) -> Read<HostPattern> {
    match HostPattern::parse(&cursor.text()?) {
        Ok(pattern) => Ok(pattern),
        Err(message) => cursor.refuse(message),
    }
}

section! {
    /// The requirements for a valid token; all have to be met.
    "Require": Requirements,
    read through RequireDraft by make_requirements,
    printed through RequireShown by show_requirements,
    later ["acr", "max_age"] {
        /// Each has to be in scope or scp.
        scopes: Vec<String> = List {
            of: Text { read: read_scope, show: shown, summary: "a scope" },
            empty: "an empty list requires nothing: remove the key",
            same: equal,
        }, unless(Vec::new());
        /// Each claim needs at least one of its values.
        claims: Vec<ClaimRequirement> = ClaimValues, unless(Vec::new());
        /// A CEL expression over claims, request and now that has to be true.
        condition: Condition = Text {
            read: read_condition,
            show: |condition| condition.source().to_owned(),
            summary: "a CEL expression",
        }, optional;
    }
}

fn make_requirements(draft: RequireDraft, _: &Mapping<'_>) -> Read<Requirements> {
    let RequireDraft { scopes, claims, condition } = draft;
    Ok(Requirements { providers: Vec::new(), scopes: scopes?, claims: claims?, condition: condition? })
}

fn show_requirements(requirements: &Requirements) -> RequireShown {
    let Requirements { scopes, claims, condition, .. } = requirements.clone();
    RequireShown {
        scopes: Some(scopes).filter(|scopes| !scopes.is_empty()),
        claims: Some(claims).filter(|claims| !claims.is_empty()),
        condition,
    }
}

fn read_condition(cursor: &Cursor<'_>) -> Read<Condition> {
    match Condition::compile(&cursor.text()?) {
        Ok(condition) => Ok(condition),
        Err(message) => cursor.refuse(message),
    }
}

/// A scope-token of RFC 6749 §3.3, which is sent in a challenge.
fn read_scope(cursor: &Cursor<'_>) -> Read<String> {
    let scope = cursor.text()?;
    let is_allowed = |byte: u8| (0x21..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
    if !scope.bytes().all(is_allowed) {
        return cursor.refuse("expected one scope: printable ASCII without spaces, quotes and backslashes");
    }
    Ok(scope)
}

/// Claims, each with its accepted values.
struct ClaimValues;

impl Form for ClaimValues {
    type Value = Vec<ClaimRequirement>;

    fn read(&self, cursor: &Cursor<'_>) -> Read<Vec<ClaimRequirement>> {
        let entries = cursor.entries()?;
        if entries.is_empty() {
            return cursor.refuse("an empty mapping requires nothing: remove the key");
        }
        all(entries.into_iter().map(read_claim_requirement))
    }

    fn print(&self, value: &Vec<ClaimRequirement>) -> Yaml {
        let scalar = |value: &Json| match value {
            Json::String(text) => Yaml::text(text),
            other => Yaml::word(other.to_compact()),
        };
        let member = |ClaimRequirement { claim, any_of }: &ClaimRequirement| {
            (own_key(claim), Yaml::List(any_of.iter().map(scalar).collect()))
        };
        Yaml::Mapping(value.iter().map(member).collect())
    }

    fn describe(&self) -> FormDescription {
        let values = json!({"anyOf": [text_schema(), {"type": "array", "items": text_schema()}]});
        FormDescription::new(
            "a mapping of claims (names, or JSON Pointers) to values, one or a list",
            json!({"type": "object", "additionalProperties": values}),
        )
    }
}

fn read_claim_requirement(entry: Entry<'_>) -> Read<ClaimRequirement> {
    let claim = match ClaimPath::parse(entry.key) {
        Ok(claim) => Ok(claim),
        Err(message) => entry.refuse_key(message),
    };
    let any_of = if entry.value.is_list() {
        let empty = "an empty list denies every token: list at least one value";
        entry.value.list(empty, read_claim_value, |a, b| a == b)
    } else {
        read_claim_value(&entry.value).map(|value| vec![value])
    };
    Ok(ClaimRequirement { claim: claim?, any_of: any_of? })
}

fn read_claim_value(cursor: &Cursor<'_>) -> Read<Json> {
    let value = Json::parse(cursor.json()?.to_string().as_bytes(), &JsonLimits::default()).ok();
    match value {
        Some(value @ (Json::String(_) | Json::Number(_) | Json::Bool(_))) => Ok(value),
        _ => cursor.refuse("expected a string, a number, `true` or `false`"),
    }
}
