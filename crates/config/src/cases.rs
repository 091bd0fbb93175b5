//! Files of test cases: requests, the claims of their tokens, and the decisions that are expected. They are read with
//! the reader of configurations, so that all errors are reported at once, each with its line and path.

use std::collections::HashMap;
use std::path::Path;

use http::{HeaderName, HeaderValue};
use serde_json::{Map, Value};

use portcullis_core::reason::{Grant, Outcome, Refusal};

use super::cursor::{Cursor, Entry, Mapping, Read, ReadContext, ReadOutput, all};
use super::document;
use super::error::ConfigErrors;
use super::read::{read_file, text_of};
use super::{Config, DoorKind, ProviderConfig};

/// What is shown instead of a file name that may be something else.
const UNNAMED: &str = "(the file of cases)";

/// A request and what is expected of its decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Its name; unique in the file.
    pub name: String,
    /// Its line in the file, counted from 1.
    pub line: usize,
    /// The request without its token.
    pub request: CaseRequest,
    /// The token; `None` if the request has none.
    pub token: Option<CaseToken>,
    /// What is expected.
    pub expect: Expected,
}

/// A request without its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseRequest {
    /// The method; default `GET`.
    pub method: String,
    /// The host; default `localhost`.
    pub host: String,
    /// The path with its query.
    pub path: String,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The rule that the proxy's route names.
    pub rule: Option<String>,
    /// The client's address.
    pub source_address: Option<String>,
    /// The identity in the client's certificate.
    pub source_principal: Option<String>,
    /// The door; by default that of the configuration ([`DoorKind::of`]).
    pub door: Option<DoorKind>,
}

/// The token of a case.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseToken {
    /// The name of the provider that issues it.
    pub provider: String,
    /// The claims, as they are in the file.
    pub claims: Map<String, Value>,
}

/// What is expected of a decision; at least one of the parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Whether the request is allowed.
    pub is_allowed: Option<bool>,
    /// The reason, by its name in metrics and logs.
    pub reason: Option<&'static str>,
    /// The rule that applies; the inner `None` means that no rule matches.
    pub rule: Option<Option<String>>,
    /// Headers of the request to the upstream if it is allowed, of the answer if it is denied; `None` is a header that
    /// is not there.
    pub headers: Vec<(HeaderName, Option<String>)>,
}

impl Case {
    /// Reads the cases of a file, for this configuration, with the environment of the process.
    ///
    /// # Errors
    /// All errors.
    pub fn load(file: &Path, config: &Config) -> Result<Vec<Self>, ConfigErrors> {
        let text = read_file(file).and_then(text_of).map_err(ConfigErrors::for_file);
        let cases = text.and_then(|text| Self::parse(&text, config, &|name| std::env::var(name).ok()));
        cases.map_err(|errors| errors.in_file_or(file, Path::new(UNNAMED)))
    }

    /// Reads cases from a text, as [`Case::load`]. `variable` returns the value of an environment variable.
    ///
    /// # Errors
    /// All errors.
    pub fn parse(
        text: &str,
        config: &Config,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Vec<Self>, ConfigErrors> {
        let (root, mut errors) = document::parse(text, "the file is empty; expected a list of cases");
        let Some(root) = root else { return Err(ConfigErrors::new(errors)) };
        let context = ReadContext::new(variable);
        let cases = read_cases(&Cursor::root(&root, &context), config);
        let ReadOutput { errors: found, .. } = context.into_parts();
        errors.append(found);
        match cases {
            Ok(cases) if errors.is_empty() => Ok(cases),
            _ => Err(ConfigErrors::new(errors)),
        }
    }
}

/// A list, or a mapping with `cases` if the file has `x-` keys for anchors.
fn read_cases(root: &Cursor<'_>, config: &Config) -> Read<Vec<Case>> {
    let list = match root.is_mapping() {
        true => root.mapping(&["cases"], &[])?.required("cases", "the list of cases")?,
        false => root.clone(),
    };
    let elements = list.elements()?;
    if elements.is_empty() {
        return list.refuse("an empty list tests nothing: write a case");
    }
    let cases: Vec<Read<Case>> = elements.iter().map(|element| read_case(element, config)).collect();
    let mut first: HashMap<&str, usize> = HashMap::new();
    let mut unique = Ok(());
    for (element, case) in elements.iter().zip(&cases) {
        let Ok(case) = case else { continue };
        if let Some(line) = first.insert(&case.name, element.line()) {
            unique = element.refuse(format!("another case, in line {line}, has the same name"));
        }
    }
    unique?;
    cases.into_iter().collect()
}

fn read_case(cursor: &Cursor<'_>, config: &Config) -> Read<Case> {
    let mapping = cursor.mapping(&["name", "request", "claims", "token", "provider", "expect"], &[])?;
    let name = mapping.required("name", "what the case shows").and_then(|name| name.text());
    let request = mapping.required("request", "at least its `path`");
    let request = request.and_then(|request| read_request(&request, config));
    let token = read_token(&mapping, config);
    let expect = mapping.required("expect", "one or more of `verdict`, `reason`, `rule`, `headers`");
    let expect = expect.and_then(|expect| read_expected(&expect, config));
    Ok(Case { name: name?, line: cursor.line(), request: request?, token: token?, expect: expect? })
}

fn read_request(cursor: &Cursor<'_>, config: &Config) -> Read<CaseRequest> {
    let known = ["method", "host", "path", "headers", "rule", "source_address", "source_principal", "door"];
    let mapping = cursor.mapping(&known, &[])?;
    let optional = |key| mapping.optional(key, |value| value.text());
    let (method, host) = (optional("method"), optional("host"));
    let path = mapping.required("path", "the path with its query").and_then(|path| path.text());
    let headers = mapping.or("headers", Vec::new, |headers| read_headers(&headers));
    let rule = mapping.optional("rule", |rule| read_rule_name(&rule, config));
    let (source_address, source_principal) = (optional("source_address"), optional("source_principal"));
    let door = mapping.optional("door", |door| door.one_of(&DoorKind::named().collect::<Vec<_>>()));
    Ok(CaseRequest {
        method: method?.unwrap_or_else(|| "GET".to_owned()),
        host: host?.unwrap_or_else(|| "localhost".to_owned()),
        path: path?,
        headers: headers?,
        rule: rule?,
        source_address: source_address?,
        source_principal: source_principal?,
        door: door?,
    })
}

/// Names with one value or a list of values.
fn read_headers(cursor: &Cursor<'_>) -> Read<Vec<(String, String)>> {
    let read = |entry: Entry<'_>| {
        let name = header_name(&entry)?;
        let values = match entry.value.is_list() {
            true => entry.value.each(header_value)?,
            false => vec![header_value(&entry.value)?],
        };
        Ok(values.into_iter().map(|value| (name.to_string(), value)).collect::<Vec<_>>())
    };
    Ok(all(cursor.entries()?.into_iter().map(read))?.concat())
}

fn header_name(entry: &Entry<'_>) -> Read<HeaderName> {
    match HeaderName::from_bytes(entry.key.as_bytes()) {
        Ok(name) => Ok(name),
        Err(_) => entry.refuse_key("not a header name"),
    }
}

fn header_value(cursor: &Cursor<'_>) -> Read<String> {
    // A header may be empty, but has to be written so.
    let value = match cursor.is_quoted_empty() {
        true => String::new(),
        false => cursor.text()?,
    };
    match HeaderValue::from_str(&value) {
        Ok(_) => Ok(value),
        Err(_) => cursor.refuse("not a header value: it has characters that no header can have"),
    }
}

/// The rule's name has to be that of a rule: a case for a rule that was renamed tests nothing.
fn read_rule_name(cursor: &Cursor<'_>, config: &Config) -> Read<String> {
    let name = cursor.text()?;
    if config.rules.all().iter().any(|rule| rule.name == name) {
        return Ok(name);
    }
    let names: Vec<&str> = config.rules.all().iter().map(|rule| &*rule.name).collect();
    cursor.refuse(format!("no rule has this name; known names: {}", names.join(", ")))
}

fn read_token(mapping: &Mapping<'_>, config: &Config) -> Read<Option<CaseToken>> {
    let provider = mapping.optional("provider", |name| find_provider(&name, config));
    let none = mapping.optional("token", |token| token.one_of(&[("none", ())]));
    let claims = mapping.optional("claims", |claims| match claims.json()? {
        Value::Object(claims) => Ok(claims),
        _ => claims.refuse("expected a mapping of claims, `{}` if none matters"),
    });
    let (provider, none, claims) = (provider?, none?, claims?);
    let claims = match (claims, none) {
        (None, None) => {
            return mapping.refuse("expected `claims`, the claims of the token, or `token: none`");
        }
        (Some(_), Some(())) => return mapping.refuse_at("token", "contradicts `claims`: keep one"),
        (None, Some(())) if provider.is_some() => {
            return mapping.refuse_at("provider", "has no effect without a token: remove it");
        }
        (None, Some(())) => return Ok(None),
        (Some(claims), None) => claims,
    };
    let provider = match (provider, config.providers.as_slice()) {
        (Some(provider), _) | (None, [provider]) => provider,
        (None, providers) => {
            let names: Vec<&str> = providers.iter().map(|config| &*config.provider.name).collect();
            return mapping.refuse(format!(
                "`provider` is missing: the issuer of the token, one of {}",
                names.join(", ")
            ));
        }
    };
    if provider.realms.is_some() && !claims.contains_key("iss") {
        return mapping.refuse_at("claims", "`iss` is missing: the issuer of one realm of this provider");
    }
    Ok(Some(CaseToken { provider: provider.provider.name.clone(), claims }))
}

fn find_provider<'c>(cursor: &Cursor<'_>, config: &'c Config) -> Read<&'c ProviderConfig> {
    let name = cursor.text()?;
    let mut providers = config.providers.iter();
    if let Some(found) = providers.find(|config| config.provider.name == name) {
        return Ok(found);
    }
    let names: Vec<&str> = config.providers.iter().map(|config| &*config.provider.name).collect();
    cursor.refuse(format!("no provider has this name; known names: {}", names.join(", ")))
}

fn read_expected(cursor: &Cursor<'_>, config: &Config) -> Read<Expected> {
    let mapping = cursor.mapping(&["verdict", "reason", "rule", "headers"], &[])?;
    let verdict = |verdict: Cursor<'_>| verdict.one_of(&[("allow", true), ("deny", false)]);
    let is_allowed = mapping.optional("verdict", verdict);
    let reason = mapping.optional("reason", |reason| reason.one_of(&reasons()));
    let rule = mapping.optional("rule", |rule| match rule.is_null() {
        true => Ok(None),
        false => read_rule_name(&rule, config).map(Some),
    });
    let headers = mapping.or("headers", Vec::new, |headers| {
        all(headers.entries()?.into_iter().map(|entry| {
            let name = header_name(&entry)?;
            let value = if entry.value.is_null() { None } else { Some(header_value(&entry.value)?) };
            Ok((name, value))
        }))
    });
    let expected = Expected { is_allowed: is_allowed?, reason: reason?, rule: rule?, headers: headers? };
    if expected == Expected::default() {
        return cursor.refuse("expects nothing: write one or more of `verdict`, `reason`, `rule`, `headers`");
    }
    Ok(expected)
}

/// The reasons that a decision without a fetch can have, by name.
fn reasons() -> Vec<(&'static str, &'static str)> {
    let granted = [Grant::Token, Grant::Anonymous].map(Outcome::Granted);
    let denied = Refusal::named().filter(|refusal| matches!(refusal, Refusal::Denied(_)));
    let names = granted.into_iter().chain(denied.map(Outcome::Refused)).map(Outcome::as_str);
    names.map(|name| (name, name)).collect()
}
