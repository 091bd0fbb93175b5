//! The `rules` section: who may do what.

use std::collections::HashMap;

use portcullis_core::rules::condition::Condition;
use portcullis_core::rules::host::HostPattern;
use portcullis_core::rules::{ClaimRequirement, Effect, Match, PathPattern, Requirements, Rule, Rules};
use portcullis_core::validation::json::{Json, JsonLimits};
use portcullis_core::validation::provider::ClaimPath;

use super::ProviderConfig;
use super::cursor::{Cursor, Entry, Mapping};
use super::dangers::warn_of_rules;
use super::providers::{read_name, read_token};

/// `providers` are those that could be read: a rule may name no other.
pub(super) fn read_rules(cursor: &Cursor<'_>, providers: Option<&[ProviderConfig]>) -> Option<Rules> {
    let elements = cursor.elements()?;
    let rules: Vec<Option<Rule>> = elements.iter().map(|element| read_rule(element, providers)).collect();
    let mut first: HashMap<&str, usize> = HashMap::new();
    let mut unique = Some(());
    for (element, rule) in elements.iter().zip(&rules) {
        let Some(rule) = rule else { continue };
        if let Some(line) = first.insert(&rule.name, element.line()) {
            unique = element.refuse(format!("another rule, in line {line}, has this name already"));
        }
    }
    unique?;
    let rules: Vec<Rule> = rules.into_iter().collect::<Option<_>>()?;
    warn_of_rules(&elements, &rules);
    Some(Rules::new(rules))
}

fn read_rule(cursor: &Cursor<'_>, providers: Option<&[ProviderConfig]>) -> Option<Rule> {
    let known = ["name", "match", "ambiguous_paths", "allow", "deny", "providers", "require"];
    let mapping = cursor.mapping(&known, &[])?;
    let name = mapping
        .need("name", "how logs and the proxy's `portcullis_rule` call the rule")
        .and_then(|cursor| read_name(&cursor));
    let matches = mapping.or("match", Match::default(), read_match);
    let ambiguous_paths =
        mapping.or("ambiguous_paths", false, |cursor| cursor.one_of(&[("allow", true), ("refuse", false)]));
    let effect = read_effect(&mapping, providers);
    Some(Rule { name: name?, matches: matches?, ambiguous_paths: ambiguous_paths?, effect: effect? })
}

fn read_match(cursor: Cursor<'_>) -> Option<Match> {
    let mapping = cursor.mapping(&["path", "path_prefix", "path_regex", "methods", "hosts"], &[])?;
    let read_pattern = |key: &str, read: fn(&str) -> Result<PathPattern, String>| {
        mapping.optional(key, |cursor| match read(&cursor.text()?) {
            Ok(pattern) => Some(pattern),
            Err(message) => cursor.refuse(message),
        })
    };
    let patterns = [
        read_pattern("path", PathPattern::exact),
        read_pattern("path_prefix", PathPattern::prefix),
        read_pattern("path_regex", PathPattern::regex),
    ];
    let methods = mapping.or("methods", Vec::new(), |cursor| {
        cursor.list(
            "an empty list matches nothing; leave the key out for every method",
            read_method,
            |a, b| a == b,
        )
    });
    let hosts = mapping.or("hosts", Vec::new(), |cursor| {
        cursor
            .list("an empty list matches nothing; leave the key out for every host", read_host, |a, b| a == b)
    });
    let patterns: Option<Vec<Option<PathPattern>>> = patterns.into_iter().collect();
    let mut patterns = patterns?.into_iter().flatten();
    let path = patterns.next();
    if patterns.next().is_some() {
        return cursor.refuse("expected one of `path`, `path_prefix`, `path_regex`: write a rule for each");
    }
    Some(Match { path, methods: methods?, hosts: hosts? })
}

/// In upper case: methods are compared with their case (RFC 9110 §9.1), and `get` is no method that there is.
fn read_method(cursor: &Cursor<'_>) -> Option<String> {
    let method = read_token(cursor)?;
    let upper = method.to_ascii_uppercase();
    if method != upper {
        return cursor.refuse(format!("methods are in upper case: write {upper}"));
    }
    Some(method)
}

fn read_host(cursor: &Cursor<'_>) -> Option<HostPattern> {
    match HostPattern::parse(&cursor.text()?) {
        Ok(pattern) => Some(pattern),
        Err(message) => cursor.refuse(message),
    }
}

fn read_effect(mapping: &Mapping<'_>, providers: Option<&[ProviderConfig]>) -> Option<Effect> {
    const ALLOWED: [(&str, Effect); 2] = [("anonymous", Effect::Anonymous), ("preflight", Effect::Preflight)];
    let allow = mapping.optional("allow", |cursor| {
        let names = ALLOWED.map(|(name, _)| name);
        let text = cursor.text()?;
        match ALLOWED.into_iter().find(|(name, _)| *name == text) {
            Some((_, effect)) => Some(effect),
            None => cursor.refuse(format!("expected one of: {}", names.join(", "))),
        }
    });
    let deny = mapping.optional("deny", |cursor| match cursor.boolean()? {
        true => Some(Effect::Deny),
        false => cursor.refuse("expected `true`; to deny nothing, take the key out"),
    });
    let requirements = read_requirements(mapping, providers);
    let given = ["allow", "deny", "providers", "require"].into_iter().filter_map(|key| mapping.get(key));
    let (allow, deny, requirements) = (allow?, deny?, requirements?);
    if let Some(effect) = allow.or(deny) {
        let mut given = given;
        // The first is the effect itself.
        given.next();
        return match given.next() {
            None => Some(effect),
            Some(other) => other.refuse("has no effect beside `allow` or `deny`: keep one"),
        };
    }
    Some(Effect::Require(requirements))
}

fn read_requirements(mapping: &Mapping<'_>, providers: Option<&[ProviderConfig]>) -> Option<Requirements> {
    let named = mapping.or("providers", Vec::new(), |cursor| {
        let one = |element: &Cursor<'_>| read_provider_name(element, providers);
        cursor.list("an empty list lets nobody in; leave the key out for every provider", one, |a, b| a == b)
    });
    let require = mapping.or("require", Requirements::default(), read_require);
    Some(Requirements { providers: named?, ..require? })
}

fn read_provider_name(cursor: &Cursor<'_>, providers: Option<&[ProviderConfig]>) -> Option<String> {
    let name = cursor.text()?;
    // Where the providers themselves are wrong, that is what is told.
    let is_known = |known: &ProviderConfig| known.provider.name == name;
    match providers {
        Some(providers) if !providers.iter().any(is_known) => {
            let names: Vec<&str> = providers.iter().map(|known| known.provider.name.as_str()).collect();
            cursor.refuse(format!("no provider has this name; there are: {}", names.join(", ")))
        }
        _ => Some(name),
    }
}

fn read_require(cursor: Cursor<'_>) -> Option<Requirements> {
    let mapping = cursor.mapping(&["scopes", "claims", "condition"], &[])?;
    let scopes = mapping.or("scopes", Vec::new(), |cursor| {
        cursor.list("an empty list asks for nothing: take the key out", read_scope, |a, b| a == b)
    });
    let claims = mapping.or("claims", Vec::new(), read_claims);
    let condition = mapping.optional("condition", |cursor| match Condition::compile(&cursor.text()?) {
        Ok(condition) => Some(condition),
        Err(message) => cursor.refuse(message),
    });
    Some(Requirements { providers: Vec::new(), scopes: scopes?, claims: claims?, condition: condition? })
}

/// A scope-token of RFC 6749 §3.3: it is told in a challenge.
fn read_scope(cursor: &Cursor<'_>) -> Option<String> {
    let scope = cursor.text()?;
    let plain = |byte: u8| (0x21..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
    if !scope.bytes().all(plain) {
        return cursor.refuse("expected one scope: printable ASCII without spaces, quotes and backslashes");
    }
    Some(scope)
}

fn read_claims(cursor: Cursor<'_>) -> Option<Vec<ClaimRequirement>> {
    let requirement = |entry: Entry<'_>| {
        let claim = match ClaimPath::parse(entry.key) {
            Ok(claim) => Some(claim),
            Err(message) => entry.refuse_key(message),
        };
        let any_of = if entry.value.is_list() {
            let empty = "an empty list lets nobody in: name at least one value";
            entry.value.list(empty, read_claim_value, |a, b| a == b)
        } else {
            read_claim_value(&entry.value).map(|value| vec![value])
        };
        Some(ClaimRequirement { claim: claim?, any_of: any_of? })
    };
    let entries = cursor.entries()?;
    if entries.is_empty() {
        return cursor.refuse("an empty mapping asks for nothing: take the key out");
    }
    let requirements: Vec<Option<ClaimRequirement>> = entries.into_iter().map(requirement).collect();
    requirements.into_iter().collect()
}

fn read_claim_value(cursor: &Cursor<'_>) -> Option<Json> {
    let value = Json::parse(cursor.json()?.to_string().as_bytes(), &JsonLimits::default()).ok();
    match value {
        Some(value @ (Json::String(_) | Json::Number(_) | Json::Bool(_))) => Some(value),
        _ => cursor.refuse("expected a string, a number, `true` or `false`"),
    }
}
