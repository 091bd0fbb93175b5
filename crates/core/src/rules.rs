//! Authorization rules: which rule a request matches, and whether a verified token meets its requirements.
//!
//! Pure. The first rule that matches applies, unless the proxy names one; a request that matches no rule needs a
//! valid token of any provider, or is denied. A rule is chosen before the token is evaluated, and its requirements are checked
//! against claims with a verified signature.
//!
//! # Architecture invariant
//! The permission to pass without a token is an [`Anonymous`], which only rules with such an effect produce.

pub mod condition;
mod header;
pub mod host;
mod index;
pub mod path;
pub mod query;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::fmt;

use regex::Regex;

use crate::access_request::{AccessRequest, Headers};
use crate::validation::UnixTime;
use crate::validation::json::Json;
use crate::validation::provider::{Audiences, ClaimPath};

pub use self::header::HeaderMatch;

use self::condition::{Condition, Facts, Members};
use self::header::Ambiguous;
use self::host::HostPattern;
use self::index::RuleIndex;
use self::path::{NotPlain, RequestPath};

/// The most memory that one compiled regular expression may take, in bytes.
const MAX_REGEX_BYTES: usize = 1 << 20;

/// One rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its name in the configuration, logs and metadata, by which a proxy can name it.
    pub name: String,
    /// Whether a proxy's route may name it; default false.
    pub by_name: bool,
    /// The requests that the rule applies to.
    pub matches: Match,
    /// Whether the rule accepts ambiguous paths; default false.
    pub ambiguous_paths: bool,
    /// The effect on these requests.
    pub effect: Effect,
}

/// The requests that a rule applies to: those that match every part.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Match {
    /// One of these; empty is any path.
    pub paths: Vec<PathPattern>,
    /// In upper case, as requests have to write them if any rule names methods; `GET` also matches `HEAD` (RFC 9110
    /// §9.3.2). Empty is any method.
    pub methods: Vec<String>,
    /// Empty is any host.
    pub hosts: Vec<HostPattern>,
    /// All of these.
    pub headers: Vec<HeaderMatch>,
}

/// The paths that a rule applies to, in canonical form.
#[derive(Clone, Debug, PartialEq)]
pub enum PathPattern {
    /// This path.
    Exact(String),
    /// This path and all paths below it. Has no trailing slash.
    Prefix(String),
    /// Every path that this expression matches completely.
    Regex(FullMatchRegex),
}

/// A regular expression for a complete text, in time that is linear in its length.
#[derive(Clone, Debug)]
pub struct FullMatchRegex {
    source: String,
    anchored: Regex,
}

impl FullMatchRegex {
    /// Compiles an expression.
    ///
    /// # Errors
    /// The problem, for the author of the rule.
    pub fn parse(source: &str) -> Result<Self, String> {
        let build = |pattern: &str| {
            let mut builder = regex::RegexBuilder::new(pattern);
            let built = builder.size_limit(MAX_REGEX_BYTES).dfa_size_limit(MAX_REGEX_BYTES).build();
            built.map_err(|error| error.to_string())
        };
        if source.contains(|letter: char| letter.is_whitespace() || letter.is_control()) {
            return Err(
                "contains white space, which no path has: write it in one line, in single quotes".to_owned()
            );
        }
        // The expression is compiled alone first: `a)(b` must not become valid because of the added group.
        build(source)?;
        Ok(Self { source: source.to_owned(), anchored: build(&format!("^(?:{source})$"))? })
    }

    /// The original text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it matches the complete text.
    pub fn matches(&self, text: &str) -> bool {
        self.anchored.is_match(text)
    }
}

impl PartialEq for FullMatchRegex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// The effect of a rule.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Every request is denied.
    Deny,
    /// Every request is allowed, and no token is evaluated.
    Anonymous,
    /// CORS preflight requests are allowed; the rule applies to no other requests.
    Preflight,
    /// Requests without a token are allowed, those with a valid one of these providers and audiences too; a token that
    /// is not valid is denied. Has no other requirements.
    Optional(Requirements),
    /// Requests with a valid token that meets these requirements are allowed.
    Require(Requirements),
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Effect::Deny => "every request is denied",
            Effect::Anonymous => "every request is allowed, no token is evaluated",
            Effect::Preflight => "CORS preflights are allowed, no token is evaluated",
            Effect::Optional(_) => "no token is needed, but one that is sent has to be valid",
            Effect::Require(_) => "a valid token that meets the rule is needed",
        })
    }
}

/// The requirements for a valid token; all have to be met.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Requirements {
    /// Names of the providers whose tokens are accepted; empty accepts all providers.
    pub providers: Vec<String>,
    /// Instead of the audiences of the token's provider; `None` leaves those.
    pub audiences: Option<Audiences>,
    /// Each has to be in `scope` or in `scp`.
    pub scopes: Vec<String>,
    /// Each claim needs at least one of the values.
    pub claims: Vec<ClaimRequirement>,
    /// The condition has to be true.
    pub condition: Option<Condition>,
}

/// A claim that has to equal one of several values, or to be an array that contains one of them.
#[derive(Clone, Debug, PartialEq)]
pub struct ClaimRequirement {
    /// The claim.
    pub claim: ClaimPath,
    /// Strings, numbers and booleans; never empty.
    pub any_of: Vec<Json>,
}

/// A permission to pass without a token. Only [`Rule::anonymous`] and [`Rule::without_token`] create it.
#[derive(Debug)]
pub struct Anonymous(());

/// Why no rule can be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RuleRejection {
    /// The proxy names a rule that does not exist, that routes may not name, or that does not apply to such requests.
    NoSuchRule,
    /// Programs interpret the path differently.
    AmbiguousPath,
    /// Programs resolve the target to different paths.
    NotPlainPath,
    /// The path matches different rules with and without its repeated slashes, or a condition reads it.
    RepeatedSlashes,
    /// The path matches different rules before and after needless percent-encodings are decoded.
    NeedlessEncoding,
    /// The host has no canonical form.
    MalformedHost,
    /// The method is not an upper-case token, and programs differ about its meaning.
    MalformedMethod,
    /// A header that a rule reads has several lines, one line that may contain several values, or an encoding that
    /// cannot be decoded.
    SeveralValues(String),
}

impl From<NotPlain> for RuleRejection {
    fn from(_: NotPlain) -> Self {
        RuleRejection::NotPlainPath
    }
}

/// Why a valid token does not meet a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequirementRejection {
    /// It belongs to another provider.
    Provider,
    /// It lacks a scope.
    Scope,
    /// A claim has none of the required values.
    Claim(String),
    /// The condition is not true.
    Condition,
    /// The condition cannot be evaluated, for this reason, which contains no value of the request.
    Undecided(String),
}

impl fmt::Display for RequirementRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequirementRejection::Provider => f.write_str("the rule accepts tokens of other providers"),
            RequirementRejection::Scope => f.write_str("a scope is missing"),
            RequirementRejection::Claim(claim) => write!(f, "{claim} has none of the required values"),
            RequirementRejection::Condition => f.write_str("the condition is not true"),
            RequirementRejection::Undecided(why) => write!(f, "the condition cannot be evaluated: {why}"),
        }
    }
}

/// What is required where no rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unmatched {
    /// A valid token of any provider. The default.
    #[default]
    Token,
    /// Nothing is enough: the request is denied.
    Deny,
}

/// All rules, in the order of evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    rules: Vec<Rule>,
    index: RuleIndex,
    unmatched: Unmatched,
    match_paths: bool,
    match_hosts: bool,
    match_methods: bool,
    match_headers: bool,
}

impl Rules {
    /// A list of rules; their names are unique.
    pub fn new(rules: Vec<Rule>) -> Self {
        let match_paths = rules.iter().any(Rule::matches_paths);
        let match_hosts = rules.iter().any(|rule| !rule.matches.hosts.is_empty() || rule.reads_host());
        let match_methods = rules.iter().any(Rule::matches_methods);
        let match_headers = rules.iter().any(|rule| !rule.matches.headers.is_empty());
        let unmatched = Unmatched::default();
        let index = RuleIndex::new(&rules);
        Self { rules, index, unmatched, match_paths, match_hosts, match_methods, match_headers }
    }

    /// The same rules, with this requirement where none of them matches.
    #[must_use]
    pub fn with_unmatched(self, unmatched: Unmatched) -> Self {
        Self { unmatched, ..self }
    }

    /// What is required where no rule matches.
    pub fn unmatched(&self) -> Unmatched {
        self.unmatched
    }

    /// Whether any rule matches by path, or has a condition that reads it.
    pub fn match_paths(&self) -> bool {
        self.match_paths
    }

    /// Whether any rule matches by host, or has a condition that reads it.
    pub fn match_hosts(&self) -> bool {
        self.match_hosts
    }

    /// Whether any rule matches by method or applies to preflight requests, or has a condition that reads the
    /// method.
    pub fn match_methods(&self) -> bool {
        self.match_methods
    }

    /// The headers that any rule reads.
    pub fn headers_read(&self) -> Members {
        let mut read = Members::default();
        for rule in &self.rules {
            read.names.extend(rule.matches.headers.iter().map(|header| header.name.clone()));
            if rule.effect == Effect::Preflight {
                read.names.extend(PREFLIGHT_HEADERS.map(str::to_owned));
            }
            if let Some(condition) = rule.condition() {
                read.add(condition.headers());
            }
        }
        read
    }

    /// The rules in order.
    pub fn all(&self) -> &[Rule] {
        &self.rules
    }

    /// Every scope that any rule requires, without duplicates.
    pub fn scopes(&self) -> BTreeSet<&str> {
        let requirements = self.rules.iter().filter_map(Rule::requirements);
        requirements.flat_map(|requirements| &requirements.scopes).map(String::as_str).collect()
    }

    /// The rule for this request; `None` if none matches: see [`Rules::unmatched`].
    ///
    /// # Errors
    /// [`RuleRejection`]; the request must not pass.
    pub fn choose(&self, request: &AccessRequest<'_>) -> Result<Option<&Rule>, RuleRejection> {
        if self.match_methods && !is_method(request.method) {
            return Err(RuleRejection::MalformedMethod);
        }
        let rule = match request.named_rule {
            Some(name) => Some(self.named_rule(name, request)?),
            None => self.matching(request)?,
        };
        if let Some(name) = rule.and_then(|rule| rule.header_with_several_values(&request.headers)) {
            return Err(RuleRejection::SeveralValues(name.to_owned()));
        }
        Ok(rule)
    }

    /// The first rule that matches. If the path has repeated slashes, the same rule has to match whether they are
    /// merged or not; if it has needless percent-encodings, whether they are decoded or not: upstreams of both
    /// kinds exist, and one would serve `/%70ublic` by another route than `/public`.
    fn matching(&self, request: &AccessRequest<'_>) -> Result<Option<&Rule>, RuleRejection> {
        if self.rules.is_empty() {
            return Ok(None);
        }
        let path = if self.match_paths { Some(path::canonical(request.path)?) } else { None };
        let host = match self.match_hosts {
            true => Some(host::canonical(request.host).ok_or(RuleRejection::MalformedHost)?),
            false => None,
        };
        let first = |path: Option<&str>| {
            let applies = |at: usize| {
                self.rules.get(at).is_some_and(|rule| rule.applies_to(request, path, host.as_deref()))
            };
            self.index.first(host.as_deref(), path, applies)
        };
        let at = first(path.as_ref().map(RequestPath::as_str));
        let rule = at.and_then(|at| self.rules.get(at));
        let Some(path) = path else { return self.with_clear_headers(at, request, None, host.as_deref()) };
        if path.is_ambiguous() && !rule.is_some_and(|rule| rule.ambiguous_paths) {
            return Err(RuleRejection::AmbiguousPath);
        }
        if path.unmerged().is_some_and(|unmerged| first(Some(unmerged)) != at || reads_path(rule)) {
            return Err(RuleRejection::RepeatedSlashes);
        }
        if path.as_written().is_some_and(|written| first(Some(written)) != at) {
            return Err(RuleRejection::NeedlessEncoding);
        }
        self.with_clear_headers(at, request, Some(path.as_str()), host.as_deref())
    }

    /// The rule at this position, unless another one may be meant: a rule that comes first has an ambiguous header among
    /// those that it matches by.
    fn with_clear_headers(
        &self,
        at: Option<usize>,
        request: &AccessRequest<'_>,
        path: Option<&str>,
        host: Option<&str>,
    ) -> Result<Option<&Rule>, RuleRejection> {
        if self.match_headers {
            let evaluated = self.rules.iter().take(at.map_or(self.rules.len(), |at| at + 1));
            for rule in evaluated.filter(|rule| rule.applies_to_line(request, path, host)) {
                let ambiguous =
                    rule.matches.headers.iter().find(|header| header.matches(&request.headers).is_err());
                if let Some(HeaderMatch { name, .. }) = ambiguous {
                    return Err(RuleRejection::SeveralValues(name.clone()));
                }
            }
        }
        Ok(at.and_then(|at| self.rules.get(at)))
    }

    /// The rule that the proxy names, if routes may name it. Its `matches` are ignored: the proxy has matched already.
    fn named_rule(&self, name: &[u8], request: &AccessRequest<'_>) -> Result<&Rule, RuleRejection> {
        let rule = self.index.named(name).and_then(|at| self.rules.get(at));
        let rule = rule.filter(|rule| rule.by_name).ok_or(RuleRejection::NoSuchRule)?;
        if rule.effect == Effect::Preflight && !is_preflight(request) {
            return Err(RuleRejection::NoSuchRule);
        }
        if rule.reads_path() {
            let path = path::canonical(request.path)?;
            if path.is_ambiguous() && !rule.ambiguous_paths {
                return Err(RuleRejection::AmbiguousPath);
            }
            if path.unmerged().is_some() {
                return Err(RuleRejection::RepeatedSlashes);
            }
        }
        if rule.reads_host() && host::canonical(request.host).is_none() {
            return Err(RuleRejection::MalformedHost);
        }
        Ok(rule)
    }
}

fn reads_path(rule: Option<&Rule>) -> bool {
    rule.is_some_and(Rule::reads_path)
}

/// Whether a method is a token (RFC 9110 §5.6.2) without lower-case letters. Methods are case-sensitive (§9.1), but
/// many frameworks fold their case.
pub fn is_method(method: &[u8]) -> bool {
    let is_valid =
        |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(byte);
    !method.is_empty() && method.iter().all(is_valid)
}

impl Rule {
    /// The permission to pass without a token, if the rule gives one.
    pub fn anonymous(&self) -> Option<Anonymous> {
        matches!(self.effect, Effect::Anonymous | Effect::Preflight).then_some(Anonymous(()))
    }

    /// The permission for a request that has no token, if the rule gives one.
    pub fn without_token(&self) -> Option<Anonymous> {
        matches!(self.effect, Effect::Optional(_)).then_some(Anonymous(()))
    }

    /// The requirements for a token; `None` if none is evaluated.
    pub fn requirements(&self) -> Option<&Requirements> {
        match &self.effect {
            Effect::Require(requirements) | Effect::Optional(requirements) => Some(requirements),
            Effect::Deny | Effect::Anonymous | Effect::Preflight => None,
        }
    }

    fn applies_to(&self, request: &AccessRequest<'_>, path: Option<&str>, host: Option<&str>) -> bool {
        let headers = &self.matches.headers;
        self.applies_to_line(request, path, host)
            && headers.iter().all(|header| matches!(header.matches(&request.headers), Ok(true)))
    }

    /// Whether everything but the headers matches.
    fn applies_to_line(&self, request: &AccessRequest<'_>, path: Option<&str>, host: Option<&str>) -> bool {
        let Match { paths, methods, hosts, headers: _ } = &self.matches;
        (methods.is_empty() || methods.iter().any(|method| method_matches(method, request.method)))
            && (hosts.is_empty()
                || host.is_some_and(|host| hosts.iter().any(|pattern| pattern.matches(host))))
            && (paths.is_empty()
                || path.is_some_and(|path| paths.iter().any(|pattern| pattern.matches(path))))
            && (self.effect != Effect::Preflight || is_preflight(request))
    }

    fn matches_paths(&self) -> bool {
        !self.matches.paths.is_empty() || self.reads_path()
    }

    fn condition(&self) -> Option<&Condition> {
        self.requirements().and_then(|requirements| requirements.condition.as_ref())
    }

    /// A preflight request is recognized by its method too.
    fn matches_methods(&self) -> bool {
        !self.matches.methods.is_empty()
            || self.effect == Effect::Preflight
            || self.condition().is_some_and(Condition::reads_method)
    }

    /// A header that the condition reads and for which the upstream may use another value: it has several lines, or
    /// it is compared and contains a comma, with which proxies join lines (RFC 9110 §5.3).
    fn header_with_several_values(&self, headers: &Headers<'_>) -> Option<&str> {
        let condition = self.condition()?;
        let several = |name: &&String| {
            let is_compared = condition.compared_headers().contains(*name);
            let mut lines = headers.all(name);
            let first = lines.next();
            lines.next().is_some() || (is_compared && first.is_some_and(|value| value.contains(&b',')))
        };
        condition.headers().names.iter().find(several).map(String::as_str)
    }

    fn reads_path(&self) -> bool {
        self.condition().is_some_and(Condition::reads_path)
    }

    fn reads_host(&self) -> bool {
        self.condition().is_some_and(Condition::reads_host)
    }
}

impl PathPattern {
    /// A pattern for one exact path.
    ///
    /// # Errors
    /// The problem, for the author of the rule.
    pub fn exact(text: &str) -> Result<Self, String> {
        canonical_path(text).map(PathPattern::Exact)
    }

    /// A pattern for a path and all paths below it, by complete segments: `/admin` and `/admin/` are the same.
    ///
    /// # Errors
    /// The problem, for the author of the rule.
    pub fn prefix(text: &str) -> Result<Self, String> {
        let path = canonical_path(text)?;
        Ok(PathPattern::Prefix(path.strip_suffix('/').unwrap_or(&path).to_owned()))
    }

    /// A regular expression for the complete path.
    ///
    /// # Errors
    /// The problem, for the author of the rule.
    pub fn regex(text: &str) -> Result<Self, String> {
        FullMatchRegex::parse(text).map(PathPattern::Regex)
    }

    /// Whether a canonical path matches.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            PathPattern::Exact(exact) => exact == path,
            PathPattern::Prefix(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            PathPattern::Regex(regex) => regex.matches(path),
        }
    }
}

/// The canonical form of a path in a rule.
fn canonical_path(text: &str) -> Result<String, String> {
    if text.contains('?') {
        return Err("a rule matches the path only: remove the query".to_owned());
    }
    match path::canonical(text.as_bytes()) {
        Ok(path) if path.unmerged().is_none() && !path.is_ambiguous() => Ok(path.as_str().to_owned()),
        _ => Err(
            "expected a path that begins with one slash, without `.` and `..` as segments, `//`, %2f, %5c, \
                  backslashes, semicolons and `#`"
                .to_owned(),
        ),
    }
}

/// Whether a rule's method matches that of a request. A resource that supports GET supports HEAD (RFC 9110 §9.3.2).
fn method_matches(named_rule: &str, method: &[u8]) -> bool {
    named_rule.as_bytes() == method || (named_rule == "GET" && method == b"HEAD")
}

/// The headers that identify a preflight request.
const PREFLIGHT_HEADERS: [&str; 2] = ["origin", "access-control-request-method"];

/// Whether this is a preflight request (Fetch §4.8), which browsers send without credentials.
fn is_preflight(request: &AccessRequest<'_>) -> bool {
    let given =
        |name| request.headers.only(name).is_some_and(|value| !value.is_empty() && !value.contains(&b','));
    request.method == b"OPTIONS" && PREFLIGHT_HEADERS.into_iter().all(given)
}

impl Requirements {
    /// Checks the claims of a verified token against the requirements.
    ///
    /// # Errors
    /// The first requirement that is not met.
    pub fn check(
        &self,
        provider: &str,
        claims: &Json,
        request: &AccessRequest<'_>,
        now: UnixTime,
    ) -> Result<(), RequirementRejection> {
        if !self.providers.is_empty() && !self.providers.iter().any(|name| name == provider) {
            return Err(RequirementRejection::Provider);
        }
        if !self.scopes.iter().all(|scope| has_scope(claims, scope)) {
            return Err(RequirementRejection::Scope);
        }
        if let Some(unmet) = self.claims.iter().find(|requirement| !requirement.is_met(claims)) {
            return Err(RequirementRejection::Claim(unmet.claim.to_string()));
        }
        match &self.condition {
            None => Ok(()),
            Some(condition) => match evaluate_condition(condition, claims, request, now) {
                Ok(true) => Ok(()),
                Ok(false) => Err(RequirementRejection::Condition),
                Err(why) => Err(RequirementRejection::Undecided(why)),
            },
        }
    }
}

/// Whether a scope is granted by `scope` (RFC 8693 §4.2) or by `scp`: a word of a string, or a member of an array.
pub(crate) fn has_scope(claims: &Json, wanted: &str) -> bool {
    ["scope", "scp"].into_iter().filter_map(|name| claims.member(name)).any(|granted| match granted {
        Json::String(words) => words.split(' ').any(|word| word == wanted),
        Json::Array(members) => members.iter().any(|member| member.as_str() == Some(wanted)),
        _ => false,
    })
}

impl ClaimRequirement {
    fn is_met(&self, claims: &Json) -> bool {
        let is_wanted = |value: &Json| self.any_of.iter().any(|wanted| is_same(value, wanted));
        match self.claim.resolve(claims) {
            None => false,
            Some(Json::Array(members)) => members.iter().any(is_wanted),
            Some(value) => is_wanted(value),
        }
    }
}

/// Equality of values of one type: `1` equals `1.0`, but not `"1"` or `true`.
fn is_same(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Number(a), Json::Number(b)) => match (a.parse::<i128>(), b.parse::<i128>()) {
            (Ok(a), Ok(b)) => a == b,
            _ => {
                a == b
                    || matches!((a.parse::<f64>(), b.parse::<f64>()), (Ok(a), Ok(b)) if a.is_finite() && a == b)
            }
        },
        (a, b) => a == b,
    }
}

fn evaluate_condition(
    condition: &Condition,
    claims: &Json,
    request: &AccessRequest<'_>,
    now: UnixTime,
) -> Result<bool, String> {
    let path = path::canonical(request.path);
    let host = host::canonical(request.host).unwrap_or_default();
    let method = String::from_utf8_lossy(request.method);
    let headers = condition.reads_headers().then(|| joined_headers(&request.headers)).transpose();
    let headers =
        headers.map_err(|Ambiguous| "a header has an encoding that cannot be decoded".to_owned())?;
    let query = match condition.query() {
        read if read.any() => query::form(path::query(request.path), read)?,
        _ => Vec::new(),
    };
    let facts = Facts {
        claims,
        method: &method,
        path: path.as_ref().map(RequestPath::as_str).unwrap_or_default(),
        host: &host,
        headers: headers.into_iter().flatten().collect(),
        query,
        source_address: request.source_address,
        source_principal: request.source_principal,
        now,
    };
    condition.holds(&facts).map_err(|undecided| undecided.to_string())
}

/// Values by name: several values of one name are joined with commas (RFC 9110 §5.3).
type Joined<'a> = BTreeMap<Cow<'a, str>, Cow<'a, str>>;

/// Values of the Model Context Protocol are decoded.
fn joined_headers<'a>(headers: &Headers<'a>) -> Result<Joined<'a>, Ambiguous> {
    let mut joined = Joined::new();
    for (name, value) in headers.iter() {
        let name = String::from_utf8_lossy(name);
        let name = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(name.to_ascii_lowercase())
        } else {
            name
        };
        let value = match header::decoded(&name, value)? {
            Cow::Borrowed(value) => String::from_utf8_lossy(value),
            Cow::Owned(value) => Cow::Owned(String::from_utf8_lossy(&value).into_owned()),
        };
        join(&mut joined, name, value);
    }
    Ok(joined)
}

fn join<'a>(joined: &mut Joined<'a>, name: Cow<'a, str>, value: Cow<'a, str>) {
    match joined.entry(name) {
        btree_map::Entry::Vacant(entry) => drop(entry.insert(value)),
        btree_map::Entry::Occupied(mut known) => {
            let known = known.get_mut().to_mut();
            known.push(',');
            known.push_str(&value);
        }
    }
}
