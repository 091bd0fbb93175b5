//! Warnings about rules that are valid but do not mean what they seem to: a rule that falls open does so without an error
//! at run time, so it has to be found here.

use portcullis_core::rules::condition::Condition;
use portcullis_core::rules::{Effect, HeaderMatch, Match, PathPattern, Requirements, Rule, Rules, Unmatched};
use portcullis_core::validation::json::Json;
use portcullis_core::validation::provider::SelectedBy;

use super::paths::Paths;
use crate::cursor::Cursor;
use crate::{CONNECTION_HEADERS, Config, HttpListener, Listen, Profile};

/// Paths that a pattern for every path matches.
const ANY_PATHS: [&str; 2] = ["/", "/any/path.at-all"];

/// Headers about the client that it can send itself, and that proxies extend or pass on.
const FROM_CLIENTS: [&str; 8] = [
    "x-forwarded-for",
    "x-original-forwarded-for",
    "x-real-ip",
    "x-client-ip",
    "true-client-ip",
    "x-cluster-client-ip",
    "x-forwarded-proto",
    "x-remote-user",
];

/// Headers that some proxies set or remove before they ask, beside those of the connection.
const NOT_ASKED_WITH: [&str; 5] =
    ["host", "x-request-id", "x-forwarded-port", "x-forwarded-scheme", "proxy-authorization"];

/// The largest integer up to which doubles represent every integer exactly.
const MAX_EXACT: u64 = 1 << 53;

/// Warnings about the rules, each with its position.
pub(in super::super) fn warn_of_rules(root: &Cursor<'_>, config: &Config) {
    let rules = &config.rules;
    let list = root.peek("rules");
    let elements = list.as_ref().and_then(|list| list.elements().ok()).unwrap_or_default();
    warn_of_default(root, list.as_ref(), rules);
    let mut paths = Paths::new();
    for (at, (element, rule)) in elements.iter().zip(rules.all()).enumerate() {
        warn_if_unreachable(element, rule, &elements, rules.all().get(..at).unwrap_or_default(), &mut paths);
        if rule.effect == Effect::Anonymous && matches_every_path(&rule.matches) {
            element.warn("allows every request to every path: name the public paths");
        }
        if rule.ambiguous_paths {
            let at = element.peek("ambiguous_paths");
            at.as_ref().unwrap_or(element).warn(
                "paths such as /files/a%2fb are accepted: safe only if the upstream does not decode them",
            );
        }
        if let Some(matches) = element.peek("match") {
            warn_of_patterns(&matches, &rule.matches, &mut paths);
            warn_of_methods(&matches);
            if rules.unmatched() == Unmatched::Token {
                warn_of_what_is_left(&matches, rule, rules.all(), &mut paths);
            }
        }
        if let Some(require) = element.peek("require") {
            warn_of_requirements(&require, rule, rules.unmatched());
            warn_of_workloads(&require, rule, config);
        }
        warn_of_headers(element, rule, config);
    }
}

/// A warning about a rule for workloads of a trust domain that accepts tokens of issuers, too: these may write any `sub`.
fn warn_of_workloads(require: &Cursor<'_>, rule: &Rule, config: &Config) {
    let Some(Requirements { providers, claims, condition, .. }) = rule.requirements() else { return };
    let is_accepted = |name: &String| providers.is_empty() || providers.contains(name);
    let of = |selected_by: SelectedBy| {
        let all = config.providers.iter().map(|config| &config.provider);
        let named =
            all.filter(move |provider| provider.selected_by == selected_by).map(|provider| &provider.name);
        named.filter(|name| is_accepted(name)).map(String::as_str).collect::<Vec<_>>()
    };
    let is_id = |value: &Json| value.as_str().is_some_and(|text| text.starts_with("spiffe://"));
    let names_workload = claims.iter().any(|required| required.any_of.iter().any(is_id))
        || condition.as_ref().is_some_and(|condition| condition.source().contains("spiffe://"));
    let (workloads, issuers) = (of(SelectedBy::TrustDomain), of(SelectedBy::Issuer));
    if names_workload && !workloads.is_empty() && !issuers.is_empty() {
        require.warn(format!(
            "tokens of {} with such a claim pass, too: write `providers: [{}]` in this rule",
            issuers.join(", "),
            workloads.join(", ")
        ));
    }
}

/// Warnings about what no rule matches.
fn warn_of_default(root: &Cursor<'_>, list: Option<&Cursor<'_>>, rules: &Rules) {
    let is_catch_all = |rule: &Rule| {
        let Match { methods, hosts, headers, .. } = &rule.matches;
        let matches_all = methods.is_empty() && hosts.is_empty() && headers.is_empty();
        matches_all && matches_every_path(&rule.matches) && rule.effect != Effect::Preflight
    };
    match (root.peek("default"), list) {
        (None, Some(list)) if !rules.all().is_empty() && !rules.all().iter().any(is_catch_all) => list.warn(
            "a request that no rule matches needs only a valid token: write `default: deny`, or `default: token` if that is meant",
        ),
        (Some(default), _) if rules.unmatched() == Unmatched::Deny && rules.all().is_empty() => {
            default.warn("every request is denied: write rules");
        }
        _ => {}
    }
}

/// A warning about a rule all of whose requests match rules before it.
fn warn_if_unreachable(
    element: &Cursor<'_>,
    rule: &Rule,
    elements: &[Cursor<'_>],
    earlier: &[Rule],
    paths: &mut Paths,
) {
    // A route may name it.
    if rule.by_name {
        return;
    }
    let candidates: Vec<(&Rule, &Cursor<'_>)> =
        earlier.iter().zip(elements).filter(|(earlier, _)| covers_but_for_paths(earlier, rule)).collect();
    let wanted = &rule.matches.paths;
    let one = candidates.iter().find(|(candidate, _)| {
        let patterns = &candidate.matches.paths;
        patterns.is_empty() || paths.covers(patterns.iter(), wanted)
    });
    if let Some((Rule { name, .. }, at)) = one {
        let line = at.line();
        element.warn(format!(
            "can never match: `{name}`, in line {line}, comes first and matches every request of this rule"
        ));
        return;
    }
    let together = candidates.iter().flat_map(|(candidate, _)| &candidate.matches.paths);
    if candidates.len() > 1 && paths.covers(together, wanted) {
        element.warn("can never match: rules before it match every request of this rule");
    }
}

fn matches_every_path(matches: &Match) -> bool {
    matches.paths.is_empty() || ANY_PATHS.iter().all(|path| matches.paths.iter().any(|one| one.matches(path)))
}

/// Whether every request that matches `later` by its method, host and headers also matches `earlier` by these.
fn covers_but_for_paths(earlier: &Rule, later: &Rule) -> bool {
    let (ours, theirs) = (&earlier.matches, &later.matches);
    let has_method = |method: &String| {
        ours.methods.contains(method) || (method == "HEAD" && ours.methods.iter().any(|ours| ours == "GET"))
    };
    (ours.methods.is_empty() || (!theirs.methods.is_empty() && theirs.methods.iter().all(has_method)))
        && covers_hosts_and_headers(ours, theirs)
        && (earlier.effect != Effect::Preflight || later.effect == Effect::Preflight)
}

fn covers_hosts_and_headers(ours: &Match, theirs: &Match) -> bool {
    let has_host = |host| ours.hosts.iter().any(|ours| ours.covers(host));
    let has_header = |header: &HeaderMatch| {
        let mut same = theirs.headers.iter().filter(|theirs| theirs.name == header.name);
        same.any(|theirs| theirs.any_of.iter().all(|value| header.any_of.contains(value)))
    };
    (ours.hosts.is_empty() || (!theirs.hosts.is_empty() && theirs.hosts.iter().all(has_host)))
        && ours.headers.iter().all(has_header)
}

/// The elements of a list, or the only value that is written instead of one.
fn values<'a>(cursor: Option<Cursor<'a>>) -> Vec<Cursor<'a>> {
    match cursor {
        Some(list) if list.is_list() => list.elements().unwrap_or_default(),
        one => one.into_iter().collect(),
    }
}

/// Warnings about patterns that match other paths than they seem to.
fn warn_of_patterns(matches: &Cursor<'_>, rule: &Match, paths: &mut Paths) {
    for key in ["path", "path_prefix"] {
        for pattern in values(matches.peek(key)) {
            if let Some(why) = pattern.peek_text().ok().as_deref().and_then(literal_wildcard) {
                pattern.warn(why);
            }
        }
    }
    for (pattern, known) in values(matches.peek("path_regex")).iter().zip(&rule.paths) {
        let PathPattern::Regex(regex) = known else { continue };
        let source = regex.source();
        let is_literal = source.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/_~%-".contains(&byte));
        if paths.matches_nothing(known) {
            pattern.warn("matches no path: paths begin with `/`, have no query, and encoded bytes are in upper case, as in %C3");
        } else if is_literal {
            pattern.warn(format!(
                "matches this path alone, and none below it: write `path: {source}`, or `path_prefix: {source}`"
            ));
        } else if source.starts_with('^') && !source.ends_with('$') && !source.ends_with(".*") {
            pattern.warn(
                "has to match the whole path, and none below it: `^` changes nothing; write `path_prefix`, or `(/.*)?` at its end",
            );
        } else if source.ends_with("/*") {
            pattern.warn("`/*` repeats the slash: write `/.*` for every path below");
        }
    }
}

/// Why the text of a `path` or `path_prefix` seems to be more than a text.
fn literal_wildcard(text: &str) -> Option<&'static str> {
    let is_parameter = |segment: &str| {
        segment.starts_with(':')
            || (segment.starts_with('{') && segment.ends_with('}'))
            || (segment.starts_with('<') && segment.ends_with('>'))
    };
    if text.contains('*') {
        Some(
            "`*` is no wildcard here: `path_prefix` covers all paths below it without one; for others write `path_regex`",
        )
    } else if text.split('/').any(is_parameter) {
        Some("a parameter is matched literally here: write `path_regex`, with `[^/]+` in its place")
    } else if text.ends_with('$') || text.contains("[^") || text.contains(".+") {
        Some("is matched literally here: write `path_regex` for a regular expression")
    } else {
        None
    }
}

fn warn_of_methods(matches: &Cursor<'_>) {
    for method in values(matches.peek("methods")) {
        let text = method.peek_text().unwrap_or_default();
        if text == "*" {
            method.warn("is the name of a method here: remove `methods` for every method");
        } else if text.contains('|') {
            method.warn("is the name of one method here: write a list, as in [GET, POST]");
        }
    }
}

/// Warnings about requests beside those of a rule that asks for something, for which a valid token is enough.
fn warn_of_what_is_left(matches: &Cursor<'_>, rule: &Rule, all: &[Rule], paths: &mut Paths) {
    let is_covered = |paths: &mut Paths, is_candidate: &dyn Fn(&Match) -> bool, wanted: &[PathPattern]| {
        let candidates = all.iter().map(|other| &other.matches).filter(|other| is_candidate(other));
        candidates.clone().any(|other| other.paths.is_empty())
            || paths.covers(candidates.flat_map(|other| &other.paths), wanted)
    };
    let ours = &rule.matches;
    let reaches = |other: &Match| covers_hosts_and_headers(other, ours);
    if !ours.headers.is_empty()
        && let Some(headers) = matches.peek("headers")
    {
        let without = Match { headers: Vec::new(), ..ours.clone() };
        let is_candidate = |other: &Match| {
            covers_hosts_and_headers(other, &without)
                && (other.methods.is_empty() || other.methods == ours.methods)
        };
        if !is_covered(paths, &is_candidate, &ours.paths) {
            headers.warn("a request without these headers needs only a valid token: add a rule for it, or write `default: deny`");
        }
    }
    if !asks_for_something(&rule.effect) {
        return;
    }
    if let Some(methods) = matches.peek("methods")
        && !is_covered(paths, &|other| other.methods.is_empty() && reaches(other), &ours.paths)
    {
        methods.warn("the other methods of these paths need only a valid token: add a rule for them without `methods`, or write `default: deny`");
    }
    for (written, pattern) in values(matches.peek("path")).iter().zip(&ours.paths) {
        let PathPattern::Exact(path) = pattern else { continue };
        let other = match path.strip_suffix('/') {
            Some(without) if !without.is_empty() => without.to_owned(),
            Some(_) => continue,
            None => format!("{path}/"),
        };
        let other_path = [PathPattern::Exact(other.clone())];
        if !is_covered(paths, &|other| reaches(other), &other_path) {
            let upper = path.to_ascii_uppercase();
            written.warn(format!(
                "{other} and {upper}, which many frameworks serve as well, need only a valid token: write `default: deny`; `path_prefix` covers the first, a `path_regex` with `(?i)` both"
            ));
        }
    }
}

/// Whether a request needs more than a valid token.
fn asks_for_something(effect: &Effect) -> bool {
    match effect {
        Effect::Deny => true,
        Effect::Require(requirements) => *requirements != Requirements::default(),
        Effect::Anonymous | Effect::Preflight | Effect::Optional(_) => false,
    }
}

/// Warnings about the claims in a list, or in the values of a mapping.
pub(super) fn warn_of_claims(cursor: &Cursor<'_>) {
    let named = match cursor.is_mapping() {
        true => cursor.entries().unwrap_or_default().into_iter().map(|entry| entry.value).collect(),
        false => cursor.elements().unwrap_or_default(),
    };
    for value in named {
        let claim = value.peek("claim").unwrap_or(value);
        let name = claim.peek_text().unwrap_or_default();
        warn_of_claim_name(&claim, &name);
    }
}

/// A warning about a name that is probably meant as the path to a claim inside another one.
fn warn_of_claim_name(cursor: &Cursor<'_>, name: &str) {
    let is_word = |text: &str| {
        let mut letters = text.chars();
        letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
            && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_' || letter == '-')
    };
    let path = name.strip_prefix("$.").unwrap_or(name);
    let is_path = path != name || path.contains('.');
    if is_path && path.split('.').all(is_word) {
        let pointer = path.replace('.', "/");
        cursor.warn(format!(
            "{name} is the name of one claim, dots and all: a claim inside another one is /{pointer}; write /{name} if the name has dots"
        ));
    }
}

/// Warnings about requirements that other values, or other methods, meet than it seems.
fn warn_of_requirements(require: &Cursor<'_>, rule: &Rule, unmatched: Unmatched) {
    for claim in require.peek("claims").and_then(|claims| claims.entries().ok()).unwrap_or_default() {
        warn_of_claim_name(&claim.value, claim.key);
    }
    let requirements = rule.requirements();
    let numbers = requirements.into_iter().flat_map(|requirements| &requirements.claims);
    let mut numbers = numbers.flat_map(|claim| &claim.any_of).filter_map(|value| match value {
        Json::Number(digits) => Some(&**digits),
        _ => None,
    });
    if let (Some(claims), Some(number)) = (require.peek("claims"), numbers.find(|number| is_rounded(number)))
    {
        claims.warn(rounding(number));
    }
    let condition = requirements.and_then(|requirements| requirements.condition.as_ref());
    let (Some(written), Some(condition)) = (require.peek("condition"), condition) else { return };
    if let Some(number) = condition.rounded() {
        written.warn(rounding(number));
    }
    if condition.reads_method() && rule.matches.methods.is_empty() && unmatched == Unmatched::Token {
        written.warn("a method that `request.method` is not compared with, such as HEAD, needs only the rest of the condition: name methods in `match.methods`, with a rule for the others, or write `default: deny`");
    }
}

/// Whether numbers with other digits equal this one after rounding to a double.
fn is_rounded(number: &str) -> bool {
    match number.parse::<i128>() {
        Ok(integer) => integer.unsigned_abs() > MAX_EXACT.into(),
        Err(_) => {
            number.parse::<f64>().is_ok_and(|number| number.abs() > MAX_EXACT as f64 || number.fract() != 0.0)
        }
    }
}

fn rounding(number: &str) -> String {
    format!(
        "{number} equals other numbers, too: those with a fraction or an exponent are rounded to 64-bit floating point; compare a string, or an integer up to 2^53"
    )
}

/// Warnings about headers that a client can send itself.
fn warn_of_headers(element: &Cursor<'_>, rule: &Rule, config: &Config) {
    let condition = rule.requirements().and_then(|requirements| requirements.condition.as_ref());
    let by_condition = condition.into_iter().flat_map(|condition| &condition.headers().names);
    let by_match = rule.matches.headers.iter().map(|header| &header.name);
    let mut read = by_condition.chain(by_match);
    let is_asked_with = |name: &str| !CONNECTION_HEADERS.contains(&name) && !NOT_ASKED_WITH.contains(&name);
    if let Some(name) = read.clone().find(|name| !is_asked_with(name.as_str())) {
        element.warn(format!(
            "reads {name}, which belongs to the connection or to the proxy: proxies remove or replace it before they ask, so that the rule may never match; for the host write `hosts` or `request.host`"
        ));
    }
    let names_host = !rule.matches.hosts.is_empty() || condition.is_some_and(Condition::reads_host);
    let is_ingress = |door: &HttpListener| door.profile == Profile::IngressNginx;
    if names_host && config.listen.forward_auth.iter().any(is_ingress) {
        element.warn(
            "behind ingress-nginx a client can have another host judged than the one that its request is routed by (a request line with a whole URL): name a rule that says `by_name: true` in each Ingress's auth-url, /rule/NAME",
        );
    }
    if let Some(name) = read.find(|name| is_from_client(name, config)) {
        element.warn(format!(
            "reads {name}, which a client can send itself and a proxy of `listen` extends or passes on: use `request.source_address` or a certificate"
        ));
    }
}

/// Whether the proxy in front of some door passes on the client's value of a header that says who the client is.
fn is_from_client(name: &str, config: &Config) -> bool {
    FROM_CLIENTS.contains(&name) && !is_overwritten(name, &config.listen)
}

/// Whether the proxies of all doors, configured as in `deploy/`, overwrite or remove this header before they ask. Without a
/// door, a program that embeds the service asks.
fn is_overwritten(name: &str, listen: &Listen) -> bool {
    let grpc = listen.ext_authz.iter().map(|_| Profile::Envoy);
    let mut profiles = grpc.chain(listen.forward_auth.iter().map(|door| door.profile)).peekable();
    let overwritten: fn(Profile) -> &'static [&'static str] = |profile| match profile {
        // The question has the client's headers; those of the proxy are set for the upstream alone.
        Profile::Nginx | Profile::IngressNginx => &[],
        Profile::Haproxy | Profile::Caddy | Profile::Traefik => {
            &["x-forwarded-for", "x-real-ip", "x-forwarded-proto"]
        }
        // x-forwarded-for is extended.
        Profile::Envoy => &["x-real-ip", "x-forwarded-proto"],
    };
    profiles.peek().is_some() && profiles.all(|profile| overwritten(profile).contains(&name))
}
