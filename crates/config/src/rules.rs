//! The `rules` section: authorization rules.

use std::collections::{HashMap, HashSet};

use http::HeaderName;

use portcullis_core::rules::condition::Condition;
use portcullis_core::rules::host::HostPattern;
use portcullis_core::rules::{
    ClaimRequirement, Effect, HeaderMatch, Match, PathPattern, Requirements, Rule, Rules,
};
use portcullis_core::validation::json::{Json, JsonLimits};
use portcullis_core::validation::provider::{Audiences, ClaimPath};

use serde_json::json;

use super::cursor::{Cursor, Entry, Mapping, Read, all};
use super::forms::{Choice, Each, Flag, List, OneOr, Sub, Text, any_text, equal, shown, text_schema};
use super::providers::NAME;
use super::section::{Form, FormDescription, Section, section};
use super::token_sources::read_token;
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
    later ["stream_lifetime", "mode", "external_url", "resource"] {
        /// Its name in logs, by which a route can name it.
        name: String = NAME, required("its name in logs and for routes");
        /// Whether a proxy's route may name the rule, and so select it for requests that it does not match: Envoy's route
        /// metadata or context_extensions, or the path /rule/NAME at an HTTP door.
        by_name: bool = Flag, unless(false);
        /// The requests that the rule applies to: those that match every part; all if absent.
        matches as "match": Match = Sub::<Match>::NEW, unless(Match::default());
        /// Whether the rule accepts ambiguous paths, which programs interpret differently.
        ambiguous_paths: bool = Choice(&[("allow", true), ("refuse", false)]), unless(false);
        /// anonymous allows every request and preflight every CORS preflight, and no token is evaluated. optional allows
        /// requests without a token, and evaluates one that is sent.
        allow: Allow = Choice(&Allow::NAMED), optional;
        /// Every request is denied.
        deny: () = Always, optional;
        /// The providers whose tokens are accepted; all if absent.
        providers: Vec<String> = List {
            of: any_text("a provider's name"),
            empty: "an empty list denies every token; remove the key to accept every provider",
            same: equal,
        }, unless(Vec::new());
        /// Instead of the audiences of the token's provider: at least one has to be in aud.
        audiences: Vec<String> = List {
            of: any_text("an audience"),
            empty: "an empty list denies every token; remove the key for the audiences of the provider",
            same: equal,
        }, unless(Vec::new());
        /// The requirements for a valid token; all have to be met.
        require: Requirements = Sub::<Requirements>::NEW, unless(Requirements::default());
    }
}

/// The values of `allow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Allow {
    Anonymous,
    Preflight,
    Optional,
}

impl Allow {
    const NAMED: [(&'static str, Allow); 3] =
        [("anonymous", Allow::Anonymous), ("preflight", Allow::Preflight), ("optional", Allow::Optional)];
}

fn make_rule(draft: RuleDraft, mapping: &Mapping<'_>) -> Read<Rule> {
    let RuleDraft { name, by_name, matches, ambiguous_paths, allow, deny, providers, audiences, require } =
        draft;
    let requirements = all_of(providers, audiences, require);
    let effect = make_effect(allow, deny, requirements, mapping);
    Ok(Rule {
        name: name?,
        by_name: by_name?,
        matches: matches?,
        ambiguous_paths: ambiguous_paths?,
        effect: effect?,
    })
}

/// The requirements of the rule, which are written in three places.
fn all_of(
    providers: Read<Vec<String>>,
    audiences: Read<Vec<String>>,
    require: Read<Requirements>,
) -> Read<Requirements> {
    let (providers, audiences, require) = (providers?, audiences?, require?);
    let audiences = Some(audiences).filter(|audiences| !audiences.is_empty()).map(Audiences::AnyOf);
    Ok(Requirements { providers, audiences, ..require })
}

fn make_effect(
    allow: Read<Option<Allow>>,
    deny: Read<Option<()>>,
    requirements: Read<Requirements>,
    mapping: &Mapping<'_>,
) -> Read<Effect> {
    let (allow, deny, requirements) = (allow?, deny?, requirements?);
    let without_effect = |with: &[&str], why: &str| {
        with.iter().find(|key| mapping.get(key).is_some()).map_or(Ok(()), |key| mapping.refuse_at(key, why))
    };
    let Some(allow) = allow else {
        if deny.is_none() {
            return Ok(Effect::Require(requirements));
        }
        without_effect(&["providers", "audiences", "require"], "has no effect with `deny`: keep one")?;
        return Ok(Effect::Deny);
    };
    without_effect(&["deny"], "contradicts `allow`: keep one")?;
    if allow == Allow::Optional {
        without_effect(
            &["require"],
            "protects nothing with `allow: optional`, since requests without a token pass: keep one",
        )?;
        return Ok(Effect::Optional(requirements));
    }
    without_effect(&["providers", "audiences", "require"], "has no effect with this `allow`: keep one")?;
    Ok(if allow == Allow::Preflight { Effect::Preflight } else { Effect::Anonymous })
}

fn show_rule(rule: &Rule) -> RuleShown {
    let Rule { name, by_name, matches, ambiguous_paths, effect } = rule.clone();
    let allow = match effect {
        Effect::Anonymous => Some(Allow::Anonymous),
        Effect::Preflight => Some(Allow::Preflight),
        Effect::Optional(_) => Some(Allow::Optional),
        Effect::Deny | Effect::Require(_) => None,
    };
    let deny = (effect == Effect::Deny).then_some(());
    let mut requirements = rule.requirements().cloned().unwrap_or_default();
    let providers = std::mem::take(&mut requirements.providers);
    let audiences = match requirements.audiences.take() {
        Some(Audiences::AnyOf(audiences)) => audiences,
        Some(Audiences::Any) | None => Vec::new(),
    };
    RuleShown {
        name: Some(name),
        by_name: Some(by_name).filter(|by_name| *by_name),
        matches: Some(matches).filter(|matches| *matches != Match::default()),
        ambiguous_paths: Some(ambiguous_paths).filter(|allowed| *allowed),
        allow,
        deny,
        providers: Some(providers).filter(|providers| !providers.is_empty()),
        audiences: Some(audiences).filter(|audiences| !audiences.is_empty()),
        require: Some(requirements).filter(|required| *required != Requirements::default()),
    }
}

/// Only `true`: every request is denied.
struct Always;

impl Form for Always {
    type Value = ();

    fn read(&self, cursor: &Cursor<'_>) -> Read<()> {
        match cursor.boolean()? {
            true => Ok(()),
            false => cursor.refuse("expected `true`; to deny nothing, remove the key"),
        }
    }

    fn print(&self, (): &()) -> Yaml {
        Yaml::word(true)
    }

    fn describe(&self) -> FormDescription {
        FormDescription::new("`true`", json!({"const": true}))
    }
}

section! {
    /// The requests that a rule applies to: those that match every part. Only one of the three kinds of paths is allowed.
    "Match": Match,
    read through MatchDraft by make_match,
    printed through MatchShown by show_match {
        /// This path, in canonical form; of a list, any of them.
        path: Vec<PathPattern> = paths(PathPattern::exact, "a path"), unless(Vec::new());
        /// This path and all paths below it, by complete segments; of a list, any of them.
        path_prefix: Vec<PathPattern> = paths(PathPattern::prefix, "a path"), unless(Vec::new());
        /// A regular expression for the complete path; of a list, any of them.
        path_regex: Vec<PathPattern> = paths(PathPattern::regex, "a regular expression"), unless(Vec::new());
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
        /// Headers that a request has to have, all of them, each with one of its values. A request without one of them does
        /// not match.
        headers: Vec<HeaderMatch> = HeaderValues, unless(Vec::new());
    }
}

/// A path pattern of one of the three kinds.
struct Path {
    read: fn(&str) -> Result<PathPattern, String>,
    summary: &'static str,
}

/// One path or several.
const fn paths(
    read: fn(&str) -> Result<PathPattern, String>,
    summary: &'static str,
) -> OneOr<List<Path>, Path> {
    let path = Path { read, summary };
    let empty = "an empty list matches nothing; remove the key for every path";
    OneOr { one: Path { ..path }, list: List { of: path, empty, same: equal } }
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
    let MatchDraft { path, path_prefix, path_regex, methods, hosts, headers } = draft;
    let kinds = [path?, path_prefix?, path_regex?];
    if kinds.iter().filter(|paths| !paths.is_empty()).count() > 1 {
        return mapping.refuse("expected one of `path`, `path_prefix`, `path_regex`: write a rule for each");
    }
    Ok(Match { paths: kinds.concat(), methods: methods?, hosts: hosts?, headers: headers? })
}

fn show_match(matches: &Match) -> MatchShown {
    let Match { paths, methods, hosts, headers } = matches.clone();
    let of_kind = |is_kind: fn(&PathPattern) -> bool| {
        let paths: Vec<PathPattern> = paths.iter().filter(|path| is_kind(path)).cloned().collect();
        Some(paths).filter(|paths| !paths.is_empty())
    };
    MatchShown {
        path: of_kind(|path| matches!(path, PathPattern::Exact(_))),
        path_prefix: of_kind(|path| matches!(path, PathPattern::Prefix(_))),
        path_regex: of_kind(|path| matches!(path, PathPattern::Regex(_))),
        methods: Some(methods).filter(|methods| !methods.is_empty()),
        hosts: Some(hosts).filter(|hosts| !hosts.is_empty()),
        headers: Some(headers).filter(|headers| !headers.is_empty()),
    }
}

/// Headers, each with its accepted values.
struct HeaderValues;

impl Form for HeaderValues {
    type Value = Vec<HeaderMatch>;

    fn read(&self, cursor: &Cursor<'_>) -> Read<Vec<HeaderMatch>> {
        let entries = cursor.entries()?;
        if entries.is_empty() {
            return cursor.refuse("an empty mapping matches everything: remove the key");
        }
        let mut names = HashSet::new();
        all(entries.into_iter().map(|entry| read_header_match(entry, &mut names)))
    }

    fn print(&self, value: &Vec<HeaderMatch>) -> Yaml {
        let member = |HeaderMatch { name, any_of }: &HeaderMatch| {
            (name.clone(), Yaml::List(any_of.iter().map(Yaml::text).collect()))
        };
        Yaml::Mapping(value.iter().map(member).collect())
    }

    fn describe(&self) -> FormDescription {
        let values = json!({"anyOf": [text_schema(), {"type": "array", "items": text_schema()}]});
        FormDescription::new(
            "a mapping of header names to values, one or a list",
            json!({"type": "object", "additionalProperties": values}),
        )
    }
}

fn read_header_match(entry: Entry<'_>, names: &mut HashSet<String>) -> Read<HeaderMatch> {
    let name = match HeaderName::from_bytes(entry.key.as_bytes()) {
        Ok(name) if names.insert(name.to_string()) => Ok(name.to_string()),
        Ok(_) => entry.refuse_key("the same header is here twice"),
        Err(_) => entry.refuse_key("expected the name of a header"),
    };
    let any_of = if entry.value.is_list() {
        entry.value.list(
            "an empty list matches nothing: list at least one value",
            read_header_value,
            |a, b| a == b,
        )
    } else {
        read_header_value(&entry.value).map(|value| vec![value])
    };
    Ok(HeaderMatch { name: name?, any_of: any_of? })
}

/// A value that a header can have in one line: a comma may join several.
fn read_header_value(cursor: &Cursor<'_>) -> Read<String> {
    let value = cursor.text()?;
    if value.is_empty() || value.trim() != value || value.contains(|one: char| one == ',' || one.is_control())
    {
        return cursor.refuse("expected a value without commas, control characters and white space around it: no request matches another one");
    }
    Ok(value)
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
    Ok(Requirements { scopes: scopes?, claims: claims?, condition: condition?, ..Requirements::default() })
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
