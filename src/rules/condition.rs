//! The condition of a rule, in CEL (the Common Expression Language): compiled and checked when the
//! configuration is read, evaluated for each request that its rule is about.
//!
//! Pure. What cannot be evaluated is never true. Evaluation is bounded: a condition is short and not deep,
//! goes through a list or a map but never through one inside another, and sees a bounded number of values.

mod check;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};
use std::thread;

use cel::common::ast::IdedExpr;
use cel::extractors::This;
use cel::{Context, Env, ExecutionError, Value};
use regex::Regex;

use crate::validation::UnixTime;
use crate::validation::json::Json;

use self::check::Checked;

/// A longer condition, in bytes, is refused.
const MAX_SOURCE_BYTES: usize = 4096;
/// Of brackets within brackets.
const MAX_BRACKETS: usize = 32;
/// Of prefix operators, and of choices (`?:`).
const MAX_REPEATED: usize = 64;
/// The parser is recursive and goes as deep as the text lets it: on a stack of its own, in bytes, of which
/// only what is used is ever there.
const PARSER_STACK: usize = 256 << 20;
/// Claims with more values than this are not looked at.
const MAX_VALUES: usize = 10_000;

/// The functions and operators of CEL, without optional values.
static LANGUAGE: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib().with_optional_support(false)));

/// A condition that can be evaluated.
#[derive(Clone)]
pub struct Condition(Arc<Compiled>);

struct Compiled {
    source: String,
    expression: IdedExpr,
    /// The expressions that `matches` is called with.
    patterns: Arc<HashMap<String, Regex>>,
    reads_path: bool,
    reads_host: bool,
}

/// What a condition sees.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// `claims`.
    pub claims: &'a Json,
    /// `request.method`.
    pub method: &'a str,
    /// `request.path`, in canonical form.
    pub path: &'a str,
    /// `request.host`, in canonical form.
    pub host: &'a str,
    /// `request.headers`; names in lower case, several values joined.
    pub headers: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    /// `request.query`, decoded; several values joined.
    pub query: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    /// `request.source_address`; `None` where it is not known, and then no member.
    pub source_address: Option<&'a str>,
    /// `request.source_principal`; `None` where it is not known, and then no member.
    pub source_principal: Option<&'a str>,
    /// `now`.
    pub now: UnixTime,
}

/// Why a condition has no answer. Holds no value of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undecided(&'static str);

impl fmt::Display for Undecided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Condition {
    /// Reads a condition and checks that it can be true or false.
    ///
    /// # Errors
    /// What is wrong, and where, for whoever wrote it.
    pub fn compile(source: &str) -> Result<Self, String> {
        bound(source)?;
        thread::scope(|scope| {
            let compile = || {
                // A panic of the parser is a condition that nobody can read.
                catch_unwind(AssertUnwindSafe(|| compile(source)))
                    .unwrap_or_else(|_| Err("cannot be read".to_owned()))
            };
            let parsing = thread::Builder::new().stack_size(PARSER_STACK).spawn_scoped(scope, compile);
            let parsed = parsing.map_err(|error| format!("cannot be read here: {error}"))?.join();
            parsed.unwrap_or_else(|_| Err("cannot be read".to_owned()))
        })
        .map(|compiled| Self(Arc::new(compiled)))
    }

    /// As it was written.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// Whether it reads the request's path, which then has to be one that everybody reads in the same way.
    pub fn reads_path(&self) -> bool {
        self.0.reads_path
    }

    /// Whether it reads the request's host, which then has to be one.
    pub fn reads_host(&self) -> bool {
        self.0.reads_host
    }

    /// Whether it is true of these facts.
    ///
    /// # Errors
    /// It cannot be evaluated: it needs what is not there, or what is there is of another type.
    pub fn holds(&self, facts: &Facts<'_>) -> Result<bool, Undecided> {
        if facts.claims.count_values(MAX_VALUES + 1) > MAX_VALUES {
            return Err(Undecided("the claims have too many values"));
        }
        let evaluate = || {
            let context = self.context(facts)?;
            Value::resolve(&self.0.expression, &context).map_err(|error| Undecided(in_words(&error)))
        };
        // What the evaluator cannot cope with must not take a worker with it.
        let value =
            catch_unwind(AssertUnwindSafe(evaluate)).unwrap_or(Err(Undecided("the evaluation broke off")))?;
        match value {
            Value::Bool(truth) => Ok(truth),
            _ => Err(Undecided("the result is neither true nor false")),
        }
    }

    fn context(&self, facts: &Facts<'_>) -> Result<Context<'static, 'static>, Undecided> {
        let mut context = Context::with_env(Arc::clone(&LANGUAGE));
        context.add_variable_from_value("claims", value(facts.claims));
        context.add_variable_from_value("request", request(facts));
        context.add_variable_from_value("now", timestamp(facts.now).ok_or(Undecided("the time is no date"))?);
        let patterns = Arc::clone(&self.0.patterns);
        let matches = move |This(text): This<Arc<String>>, pattern: Arc<String>| {
            // Every pattern is a literal and has been compiled.
            patterns.get(&*pattern).is_some_and(|regex| regex.is_match(&text))
        };
        context.add_function("matches", matches).map_err(|_| Undecided("`matches` cannot be used"))?;
        Ok(context)
    }
}

impl PartialEq for Condition {
    fn eq(&self, other: &Self) -> bool {
        self.0.source == other.0.source
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Condition").field(&self.0.source).finish()
    }
}

/// Refuses what would take the parser too deep or too long.
fn bound(source: &str) -> Result<(), String> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(format!("longer than {MAX_SOURCE_BYTES} bytes"));
    }
    let (mut depth, mut deepest, mut prefixes, mut choices) = (0_usize, 0_usize, 0_usize, 0_usize);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'!' | b'-' => prefixes += 1,
            b'?' => choices += 1,
            _ => {}
        }
    }
    if deepest > MAX_BRACKETS {
        return Err(format!("more than {MAX_BRACKETS} brackets within one another"));
    }
    if prefixes > MAX_REPEATED || choices > MAX_REPEATED {
        return Err(format!("more than {MAX_REPEATED} of `!` and `-`, or of `?`"));
    }
    Ok(())
}

fn compile(source: &str) -> Result<Compiled, String> {
    let (expression, positions) = LANGUAGE.parser().parse_with_source_info(source).map_err(|errors| {
        let first = errors.errors.first();
        first.map_or_else(
            || "cannot be read".to_owned(),
            |error| format!("column {}: {}", error.pos.1, on_one_line(&error.msg)),
        )
    })?;
    let Checked { patterns, reads_path, reads_host } = check::check(&expression).map_err(|fault| {
        let start = positions.offset_for(fault.at).map_or(0, |(start, _)| start);
        format!("column {}: {}", u64::from(start) + 1, fault.message)
    })?;
    let source = source.to_owned();
    Ok(Compiled { source, expression, patterns: Arc::new(patterns), reads_path, reads_host })
}

fn on_one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

/// The evaluator's own words would show what it has seen.
fn in_words(error: &ExecutionError) -> &'static str {
    match error {
        ExecutionError::NoSuchKey(_) => "it reads a member that is not there",
        ExecutionError::UndeclaredReference(_) => "it reads what is not there",
        ExecutionError::NoSuchOverload(_)
        | ExecutionError::UnexpectedType { .. }
        | ExecutionError::ValuesNotComparable(..)
        | ExecutionError::UnsupportedTargetType { .. }
        | ExecutionError::NotSupportedAsMethod { .. }
        | ExecutionError::UnsupportedBinaryOperator(..)
        | ExecutionError::UnsupportedIndex(..)
        | ExecutionError::UnsupportedKeyType(_) => "a value is of another type",
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => "it divides by zero",
        ExecutionError::Overflow(..) => "a number is too large",
        ExecutionError::IndexOutOfBounds(_) => "it reads beyond the end of a list",
        ExecutionError::FunctionError { .. } => "a function cannot make anything of a value",
        _ => "the evaluation failed",
    }
}

/// A claim as CEL has it. A whole number is one; what none of its numbers can hold is a double.
fn value(claim: &Json) -> Value {
    match claim {
        Json::Null => Value::Null,
        Json::Bool(truth) => Value::Bool(*truth),
        Json::Number(digits) => match (digits.parse(), digits.parse(), digits.parse()) {
            (Ok(int), _, _) => Value::Int(int),
            (_, Ok(uint), _) => Value::UInt(uint),
            (_, _, Ok(double)) => Value::Float(double),
            _ => Value::Null,
        },
        Json::String(text) => text_value(text),
        Json::Array(members) => Value::List(Arc::new(members.iter().map(value).collect())),
        Json::Object(members) => members
            .iter()
            .map(|(name, member)| (name.to_string(), value(member)))
            .collect::<HashMap<_, _>>()
            .into(),
    }
}

fn request(facts: &Facts<'_>) -> Value {
    let table = |entries: &BTreeMap<Cow<'_, str>, Cow<'_, str>>| -> Value {
        let entries = entries.iter().map(|(name, value)| (name.to_string(), text_value(value)));
        entries.collect::<HashMap<_, _>>().into()
    };
    let mut members = HashMap::from([
        ("method".to_owned(), text_value(facts.method)),
        ("path".to_owned(), text_value(facts.path)),
        ("host".to_owned(), text_value(facts.host)),
        ("headers".to_owned(), table(&facts.headers)),
        ("query".to_owned(), table(&facts.query)),
    ]);
    for (name, text) in
        [("source_address", facts.source_address), ("source_principal", facts.source_principal)]
    {
        if let Some(text) = text {
            members.insert(name.to_owned(), text_value(text));
        }
    }
    members.into()
}

fn text_value(text: &str) -> Value {
    Value::String(Arc::new(text.to_owned()))
}

fn timestamp(time: UnixTime) -> Option<Value> {
    let seconds = time.as_secs_f64();
    let nanoseconds = (seconds.rem_euclid(1.0) * 1e9) as u32;
    let time = chrono::DateTime::from_timestamp(seconds.floor() as i64, nanoseconds.min(999_999_999))?;
    Some(Value::Timestamp(time.fixed_offset()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLAIMS: &str = r#"{
        "sub": "alice", "tenant_id": "acme", "level": 3, "ratio": 0.5, "big": 18446744073709551615,
        "huge": 123456789012345678901234567890, "verified": true, "none": null, "auth_time": 1799999000,
        "roles": ["user", "ops"], "empty": [], "realm_access": {"roles": ["admin"]}, "least": -9223372036854775808,
        "https://x/y": 1, "a.b": 2, "numbers": [1, 2, 3], "words": "read write"
    }"#;

    fn holds_of(source: &str, claims: &str) -> Result<bool, Undecided> {
        let claims = Json::parse(claims.as_bytes()).expect("the claims of this test are JSON");
        let table = |entries: &[(&'static str, &'static str)]| {
            entries.iter().map(|(name, value)| (Cow::from(*name), Cow::from(*value))).collect()
        };
        let facts = Facts {
            claims: &claims,
            method: "GET",
            path: "/tenants/acme/orders",
            host: "api.example.com",
            headers: table(&[("x-tenant", "acme"), ("accept", "a,b")]),
            query: table(&[("page", "2")]),
            source_address: Some("10.1.2.3"),
            source_principal: None,
            now: UnixTime::from_secs(1_800_000_000),
        };
        let condition = Condition::compile(source).unwrap_or_else(|error| panic!("{source}: {error}"));
        condition.holds(&facts)
    }

    #[test]
    fn a_condition_is_true_or_false_of_a_request() {
        for (source, expected) in [
            ("claims.tenant_id == request.headers[\"x-tenant\"]", true),
            ("request.path.startsWith(\"/tenants/\" + claims.tenant_id + \"/\")", true),
            ("claims.sub == 'bob'", false),
            ("'ops' in claims.roles", true),
            ("'op' in claims.roles", false),
            ("claims.realm_access.roles.exists(r, r in ['admin', 'ops'])", true),
            ("claims.roles.all(r, r != 'admin')", true),
            ("claims.roles.exists_one(r, r.startsWith('o'))", true),
            ("claims.roles.filter(r, r == 'ops').size() == 1", true),
            ("claims.numbers.map(n, n + 1) == [2, 3, 4]", true),
            ("claims.numbers.map(n, n > 1, n * 2) == [4, 6]", true),
            ("claims.empty.all(r, r == 1)", true),
            ("claims.empty.exists(r, r == 1)", false),
            ("claims[\"https://x/y\"] == 1 && claims['a.b'] == 2", true),
            ("has(claims.sub) && !has(claims.missing)", true),
            ("has(request.source_address) && !has(request.source_principal)", true),
            ("has(claims.missing) && claims.missing == 1", false),
            ("!has(claims.missing) || claims.missing == 1", true),
            ("claims.none == null", true),
            ("claims.verified", true),
            ("claims.verified ? claims.level > 2 : false", true),
            ("claims.level >= 3 && claims.level < 3.5 && claims.level == 3.0", true),
            ("claims.ratio < 1", true),
            ("claims.big > 0", true),
            ("claims.huge > 1.0", true),
            ("'page' in request.query && request.query.page == '2'", true),
            ("request.headers.exists(name, name.startsWith('x-'))", true),
            ("request.headers.accept == 'a,b'", true),
            ("request.method == 'GET' && request.host.endsWith('.example.com')", true),
            ("request.source_address.startsWith('10.')", true),
            ("int(now) == 1800000000", true),
            ("now > timestamp('2026-01-01T00:00:00Z')", true),
            ("now - timestamp(claims.auth_time) < duration('1h')", true),
            ("now.getFullYear() == 2027 && now.getHours('+02:00') == 10", true),
            ("now - duration('1h') < now && now + duration('1h') > now", true),
            ("claims.sub.matches('^al')", true),
            ("request.path.matches('^/tenants/[a-z]+/orders$')", true),
            ("claims.sub.matches('^ice')", false),
            ("claims.words.contains('write')", true),
            ("size(claims.roles) == 2 && claims.sub.size() == 5", true),
            ("string(claims.level) == '3' && int('3') == claims.level", true),
            ("true", true),
            // What is decided without it does not need to be there.
            ("claims.sub == 'alice' || claims.missing", true),
            ("claims.missing || claims.sub == 'alice'", true),
            ("claims.sub == 'bob' && claims.missing", false),
            ("claims.missing && claims.sub == 'bob'", false),
            // Of another type is another value.
            ("claims.level == '3'", false),
            ("claims.sub == 1", false),
        ] {
            assert_eq!(holds_of(source, CLAIMS), Ok(expected), "{source}");
        }
    }

    #[test]
    fn what_cannot_be_evaluated_is_never_true_and_shows_no_value() {
        for (source, why) in [
            ("claims.missing == 'x'", "a member that is not there"),
            ("!(claims.missing == 'x')", "a member that is not there"),
            ("claims.missing || claims.sub == 'bob'", "a member that is not there"),
            ("claims.sub.deeper == 1", "of another type"),
            ("claims.sub > 1", "of another type"),
            ("claims.sub", "neither true nor false"),
            ("claims.level", "neither true nor false"),
            ("request.headers['x-none'] == 'a'", "a member that is not there"),
            ("request.source_principal == 'a'", "a member that is not there"),
            ("claims.roles[2] == 'a'", "the end of a list"),
            ("claims.roles[-1] == 'a'", "the end of a list"),
            ("claims.level / 0 == 1", "by zero"),
            ("claims.level % 0 == 1", "by zero"),
            ("claims.least / -1 == 1", "too large"),
            ("claims.least % -1 == 1", "too large"),
            ("-claims.least == 1", "too large"),
            ("claims.least - 1 < 0", "too large"),
            ("claims.level * 9223372036854775807 > 0", "too large"),
            ("int(claims.sub) == 1", "make anything of"),
            ("int(claims.big) == 1", "make anything of"),
            ("timestamp(claims.sub) < now", "make anything of"),
            ("timestamp(claims.least) < now", ""),
            ("now + duration('9000000000000s') > now", ""),
            ("duration(claims.sub) < duration('1s')", "make anything of"),
            ("claims.verified.matches('a')", ""),
            ("claims.roles.exists(r, r.size() > claims.missing)", ""),
        ] {
            let undecided = holds_of(source, CLAIMS).expect_err(source).to_string();
            assert!(undecided.contains(why), "{source}: {undecided}");
            assert!(!undecided.contains("alice"), "{undecided}");
        }
    }

    #[test]
    fn claims_with_very_many_values_are_not_looked_at() {
        let claims = format!("{{\"many\": [{}0]}}", "0,".repeat(MAX_VALUES));
        assert!(holds_of("claims.many.exists(n, n == 1)", &claims).is_err());
    }

    #[test]
    fn what_can_never_be_true_or_false_is_refused_with_its_place() {
        let long = format!("claims.a == '{}'", "x".repeat(MAX_SOURCE_BYTES));
        let pattern = "claims.a.matches('(a{1000}){1000}')".to_owned();
        for (source, message) in [
            ("", ""),
            ("claims.sub ==", "column"),
            ("claims.sub = 'a'", "column 12"),
            ("'a", "column 1"),
            ("claim.sub == 'a'", "column 1: `claim` is not known; there are claims, request and now"),
            ("claims.sub == sub", "column 15: `sub` is not known"),
            ("request.methd == 'GET'", "a request has no `methd`; it has method, path"),
            ("request == 1", "write one of its fields"),
            ("request['path'] == 'a'", "write one of its fields"),
            ("has(request.uri)", "a request has no `uri`"),
            ("'a'", "has to be true or false, and this is a string"),
            ("1 + 1", "this is a whole number"),
            ("size(claims.roles)", "this is a whole number"),
            ("claims.roles.map(r, r)", "this is a list"),
            ("request.headers", "this is a map"),
            ("now", "this is a timestamp"),
            ("request.method == 1", "`==` does not go with a string and a whole number"),
            ("request.method == null", "a string and null"),
            ("now > 5", "`>` does not go with a timestamp and a whole number"),
            ("request.path + 1 == 'a'", "`+` does not go with a string and a whole number"),
            ("1 + 1.0 == 2.0", "`+` does not go with"),
            ("'a' - 'b' == 'c'", "`-` does not go with"),
            ("!request.path", "`!` does not go with a string"),
            ("-request.path == 1", "`-` does not go with a string"),
            ("request.path && true", "`&&` does not go with a string and a boolean"),
            ("request.path ? true : false", "`?:` does not go with"),
            ("now.size() == 1", "`size` does not go with a timestamp"),
            ("1 in 'abc'", "`in` does not go with"),
            ("1 in request.headers", "`in` does not go with"),
            ("request.headers[1] == 'a'", "`[]` does not go with"),
            ("request.headers['X-Tenant'] == 'a'", "in lower case here: x-tenant"),
            ("request.headers.Authorization == 'a'", "in lower case here: authorization"),
            ("request.headers['x-a'].foo == 1", "a string has no member `foo`"),
            ("request.path.foo == 1", "a string has no member `foo`"),
            ("claims.a.frobnicate()", "`frobnicate` does not go with"),
            ("frobnicate(claims.a)", "`frobnicate` does not go with"),
            ("claims.a.startsWith()", "`startsWith` does not go with"),
            ("claims.a.startsWith('a', 'b')", "`startsWith` does not go with"),
            ("claims.a.startsWith(1)", "`startsWith` does not go with anything and a whole number"),
            ("claims.a.matches(claims.b)", "its pattern as a text in quotes"),
            ("claims.a.matches('(')", "not a regular expression"),
            ("claims.a.matches('(?=b)')", "look-around"),
            (&pattern, "size limit"),
            ("claims.a.all(x, claims.b.all(y, x == y))", "a macro inside another one"),
            ("claims.a.exists(x, 'a' + x == 'b')", "cannot be joined inside a macro"),
            ("claims.a.exists(claims, claims == 1)", "`claims` is taken"),
            ("request.path.all(x, x == 'a')", "a list or a map is needed here"),
            ("claims.a.filter(x, 1).size() == 1", "a test is needed here"),
            ("claims.?a == 1", "column"),
            ("optional.of(1).hasValue()", "`optional` is not known"),
            ("google.protobuf.Duration{seconds: 1} == duration('1s')", "messages cannot be made"),
            ("dyn(1)", ""),
            (&long, "longer than"),
        ] {
            match Condition::compile(source) {
                // Nothing is known of it, so it may be true.
                Ok(_) => assert_eq!(source, "dyn(1)"),
                Err(error) => assert!(error.contains(message), "{source}: {error}"),
            }
        }
    }

    #[test]
    fn what_is_read_of_a_request_is_known() {
        for (source, path, host) in [
            ("request.path == '/'", true, false),
            ("has(request.path)", true, false),
            ("claims.a || request.host == 'a'", false, true),
            ("claims.a.exists(x, x == request.path)", true, false),
            ("claims.path == 'request.path'", false, false),
        ] {
            let condition = Condition::compile(source).expect("valid");
            assert_eq!((condition.reads_path(), condition.reads_host()), (path, host), "{source}");
        }
    }

    #[test]
    fn depth_is_bounded_before_it_can_overflow_a_stack() {
        let chain = |link: &str, count: usize| format!("claims{}", link.repeat(count));
        for source in [
            "(".repeat(4000),
            "[".repeat(4000),
            format!("{}true", "!".repeat(4000)),
            format!("{}1 == 1", "- ".repeat(2000)),
            format!("{}true{}", "(".repeat(2000), ")".repeat(2000)),
            "true ? ".repeat(500),
            chain(".a", 2000),
            chain("['a']", 700),
            format!("{}true", "true && ".repeat(500)),
            format!("1{} == 1", " + 1".repeat(1000)),
            "claims.a.size() ".repeat(200),
        ] {
            let _result = Condition::compile(&source);
        }
        assert!(Condition::compile(&chain(".a", 2000)).is_err_and(|error| error.contains("too deep")));
        assert!(Condition::compile(&chain(".a", 40)).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_text_makes_the_compiler_panic(source in "[claims.request()\\[\\]{}'\"!?:&|=<>+*/%0-9 exists,\\\\\u{e9}-]{0,60}") {
            let _result = Condition::compile(&source);
        }

        #[test]
        fn no_claims_make_an_evaluation_panic(number in any::<i64>(), text in "\\PC{0,12}", double in any::<f64>()) {
            let claims = serde_json::json!({"n": number, "t": text, "d": if double.is_finite() { double } else { 0.0 }, "l": [number, text]});
            for source in [
                "claims.n + 1 > claims.n * 2 - claims.n / 3 % 7",
                "timestamp(claims.n) + duration('1h') > now - duration(claims.t)",
                "int(claims.d) == claims.n || uint(claims.d) == 1u || double(claims.t) > 1.0",
                "now.getHours(claims.t) == 1 || timestamp(claims.t).getMonth() == 1",
                "claims.l[claims.n] == claims.t || claims.t.contains(claims.t) || -claims.n > 0",
                "string(timestamp(claims.n)) == claims.t || string(duration(claims.t)) == ''",
            ] {
                let _result = holds_of(source, &claims.to_string());
            }
        }
    }
}
