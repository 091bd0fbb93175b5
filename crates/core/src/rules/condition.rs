//! The condition of a rule: a CEL expression over the token's claims and the request. It is checked when it is
//! loaded, and its evaluation is bounded.
//!
//! Pure: the time is an argument. A failed evaluation is never true: a missing claim, a value of a wrong type, too
//! much input or a panic of the library leave the condition undecided. Errors never contain text of a request or a
//! token.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

use cel::common::ast::IdedExpr;
use cel::common::types::{
    CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelTimestamp, CelUInt,
};
use cel::common::value::{CowVal, Val};
use cel::{Context, Env, ExecutionError, FunctionContext, Value};
use ecow::EcoString;

use crate::validation::UnixTime;
use crate::validation::json::Json;

mod check;
mod cost;
mod syntax;

pub use check::Members;

use check::Checked;

/// The longest error text, in characters.
const MAX_ERROR: usize = 200;

/// The error after a panic of the parser.
const PARSE_PANICKED: &str = "the condition cannot be parsed";

/// The error after a panic of the evaluation.
const PANICKED: &str = "the evaluation panicked";

/// The stack of the parser: several times what it needs for the deepest source that the scan accepts, and enough
/// for the parser's own limit on brackets in case the scan misses some.
const PARSER_STACK: usize = 32 << 20;

/// The functions of the library, without its syntax for optional values.
static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib().with_optional_support(false)));

/// A condition that has been checked.
#[derive(Clone)]
pub struct Condition(Arc<Compiled>);

struct Compiled {
    source: String,
    expr: IdedExpr,
    checked: Checked,
    largest_input: u64,
}

/// The input of a condition.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The claims of the verified token; an empty object for a request without one.
    pub claims: &'a Json,
    /// The method.
    pub method: &'a str,
    /// The canonical path, without the query.
    pub path: &'a str,
    /// The host, without port, case and trailing dot.
    pub host: &'a str,
    /// The headers, each name once and in lower case. May be empty if [`Condition::reads_headers`] is false.
    pub headers: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// The query parameters, each name once. May be empty if [`Condition::query`] has none.
    pub query: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// The address of the client, as the proxy reports it.
    pub source_address: Option<&'a str>,
    /// The identity in the client's certificate, as the proxy reports it.
    pub source_principal: Option<&'a str>,
    /// The time of the decision.
    pub now: UnixTime,
}

/// Why a condition cannot be evaluated, on one line, for the log. Contains no value of a claim or a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecided(String);

impl fmt::Display for Undecided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Undecided {}

impl Undecided {
    fn new(text: impl AsRef<str>) -> Self {
        Self(one_line(text.as_ref()))
    }
}

/// An error in a source and the index of its character.
#[derive(Debug)]
struct Fault {
    at: Option<usize>,
    text: String,
}

impl Fault {
    fn new(at: Option<usize>, text: impl Into<String>) -> Self {
        Self { at, text: text.into() }
    }

    fn render(&self, source: &str) -> String {
        let text = one_line(&self.text);
        let Some(at) = self.at else { return text };
        let (mut line, mut column) = (1, 1);
        for char in source.chars().take(at) {
            (line, column) = if char == '\n' { (line + 1, 1) } else { (line, column + 1) };
        }
        if source.trim_end().contains('\n') {
            format!("line {line}, column {column}: {text}")
        } else {
            format!("column {column}: {text}")
        }
    }
}

/// Formats a text on one line of bounded length.
fn one_line(text: &str) -> String {
    let mut line: String =
        text.chars().map(|char| if char.is_control() { ' ' } else { char }).take(MAX_ERROR + 1).collect();
    if line.chars().count() > MAX_ERROR {
        line = line.chars().take(MAX_ERROR - 1).chain(['…']).collect();
    }
    line
}

impl Condition {
    /// Parses and checks a condition.
    ///
    /// # Errors
    /// The source is not an expression, uses an unknown name, can never be a boolean, or could take too much work;
    /// the text says what and where, for the author.
    pub fn compile(source: &str) -> Result<Condition, String> {
        match syntax::scan(source).and_then(|()| compile_on_thread(source)) {
            Ok(compiled) => Ok(Condition(Arc::new(compiled))),
            Err(fault) => Err(fault.render(source)),
        }
    }

    /// The text that it was compiled from.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// Whether it reads the claims, and therefore needs a token.
    pub fn reads_claims(&self) -> bool {
        self.0.checked.claims.any()
    }

    /// Whether it reads `request.path`, which then has to be unambiguous.
    pub fn reads_path(&self) -> bool {
        self.0.checked.request.contains("path")
    }

    /// Whether it reads `request.host`.
    pub fn reads_host(&self) -> bool {
        self.0.checked.request.contains("host")
    }

    /// Whether it reads any of `request.headers`.
    pub fn reads_headers(&self) -> bool {
        self.0.checked.headers.any()
    }

    /// Whether it reads `request.method`.
    pub fn reads_method(&self) -> bool {
        self.0.checked.request.contains("method")
    }

    /// The first number in the source that other numbers of a token equal, too, because CEL rounds them to a double:
    /// one with a fraction, or an integer beyond 2^53.
    pub fn rounded(&self) -> Option<&str> {
        self.0.checked.rounded.as_deref()
    }

    /// Which of `request.headers` it reads, by their names in lower case.
    pub fn headers(&self) -> &Members {
        &self.0.checked.headers
    }

    /// The headers whose complete value, or its beginning or end, the condition compares.
    pub fn compared_headers(&self) -> &BTreeSet<String> {
        &self.0.checked.compared_headers
    }

    /// Which of `request.query` it reads.
    pub fn query(&self) -> &Members {
        &self.0.checked.query
    }

    /// Whether the condition is true for this input.
    ///
    /// # Errors
    /// It cannot be evaluated: a value is missing or of a wrong type, the input is too large, or the evaluation
    /// failed.
    pub fn holds(&self, facts: &Facts<'_>) -> Result<bool, Undecided> {
        catch_unwind(AssertUnwindSafe(|| self.evaluate(facts)))
            .unwrap_or_else(|_| Err(Undecided::new(PANICKED)))
    }

    fn evaluate(&self, facts: &Facts<'_>) -> Result<bool, Undecided> {
        let compiled = &self.0;
        let mut context = Context::with_env(Arc::clone(&ENV));
        let mut input = Input { remaining: compiled.largest_input };
        if compiled.checked.claims.any() {
            context.add_variable_as_val("claims", input.claims(facts.claims, &compiled.checked.claims)?);
        }
        context.add_variable_as_val("request", input.request(facts, &compiled.checked)?);
        if compiled.checked.now {
            context.add_variable_as_val("now", Box::new(timestamp(facts.now)?));
        }
        if !compiled.checked.patterns.is_empty() {
            let compiled = Arc::clone(compiled);
            let matches: Function = Box::new(move |call| matches(call, &compiled.checked));
            if context.add_function("matches", matches).is_err() {
                return Err(Undecided::new("`matches` is not available"));
            }
        }
        let value = Value::resolve_val(&compiled.expr, &context).map_err(|error| self.undecided(&error))?;
        match value.downcast_ref::<CelBool>() {
            Some(holds) => Ok(*holds.inner()),
            None => {
                Err(Undecided::new(format!("the condition is of type {}, not bool", value.get_type().name())))
            }
        }
    }

    /// Error texts without values, which the library's own texts contain.
    fn undecided(&self, error: &ExecutionError) -> Undecided {
        let written_by_author = |name: &str| self.0.checked.written.contains(name);
        Undecided::new(match error {
            // The name may be a value of the request; it is shown only if the author wrote it.
            ExecutionError::NoSuchKey(name) if written_by_author(name) => format!("there is no `{}`", name),
            ExecutionError::NoSuchKey(_) => "there is no member with that name".to_owned(),
            ExecutionError::NoSuchOverload(overload) => format!(
                "`{}` cannot be applied to ({})",
                overload.function().trim_matches(['_', '@']),
                overload.argument_types().join(", ")
            ),
            ExecutionError::UnexpectedType { .. } => "a value has an unexpected type".to_owned(),
            ExecutionError::UnsupportedBinaryOperator(operator, ..) => {
                format!("`{operator}` cannot be applied to values of these types")
            }
            ExecutionError::ValuesNotComparable(..) => "two values cannot be compared".to_owned(),
            ExecutionError::FunctionError { function, .. } => format!("`{function}` failed"),
            ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
                "a division by zero".to_owned()
            }
            ExecutionError::Overflow(operator, ..) => format!("`{operator}` overflows"),
            ExecutionError::IndexOutOfBounds(_) => "a list index is out of range".to_owned(),
            ExecutionError::UnsupportedKeyType(_) => "a value cannot be a map key".to_owned(),
            ExecutionError::UnsupportedIndex(..) => "a value cannot be a list index".to_owned(),
            ExecutionError::DuplicateKey(_) => "a map has a duplicate key".to_owned(),
            _ => "the evaluation failed".to_owned(),
        })
    }
}

impl PartialEq for Condition {
    fn eq(&self, other: &Self) -> bool {
        self.0.source == other.0.source
    }
}

impl Eq for Condition {}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Condition").field(&self.0.source).finish()
    }
}

/// Compiles on a separate thread with a known stack size: in a debug build the parser takes more than 100 KiB for
/// one bracket. The thread also contains panics of the parser.
fn compile_on_thread(source: &str) -> Result<Compiled, Fault> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("condition".to_owned())
            .stack_size(PARSER_STACK)
            .spawn_scoped(scope, || compile(source))
            .map_err(|_| Fault::new(None, "no thread is available to parse the condition"))?
            .join()
            .unwrap_or_else(|_| Err(Fault::new(None, PARSE_PANICKED)))
    })
}

fn compile(source: &str) -> Result<Compiled, Fault> {
    let (expr, info) = ENV.parser().parse_with_source_info(source).map_err(|errors| {
        let first = errors.errors.first();
        Fault::new(
            first.and_then(|error| offset(source, error.pos)),
            first.map_or("the condition is not an expression", |error| {
                // Drops the list of all possible tokens, which is of no use to the author.
                error.msg.split(" expecting {").next().unwrap_or_default()
            }),
        )
    })?;
    let checked = check::check(&expr, &info)?;
    let Some(largest_input) = cost::largest_input(&expr) else {
        return Err(Fault::new(None, "the condition could take too much work: loop over fewer elements"));
    };
    Ok(Compiled { source: source.to_owned(), expr, checked, largest_input })
}

/// The index of the character at a line and a column, both counted from one.
fn offset(source: &str, (line, column): (isize, isize)) -> Option<usize> {
    let before = usize::try_from(line).ok()?.checked_sub(1)?;
    let column = usize::try_from(column).ok()?.checked_sub(1)?;
    let skipped: usize = source.split_inclusive('\n').take(before).map(|line| line.chars().count()).sum();
    Some(skipped + column)
}

/// Whether a constant expression can be evaluated.
fn constant(expr: &IdedExpr) -> bool {
    Value::resolve_val(expr, &Context::with_env(Arc::clone(&ENV))).is_ok()
}

/// The type of a function that is added to a context.
type Function = Box<
    dyn for<'b, 'v> Fn(&mut FunctionContext<'b, 'v>) -> Result<CowVal<'b, 'v>, ExecutionError> + Send + Sync,
>;

/// `matches` with the patterns that were compiled when the condition was loaded: it searches the text, as CEL
/// defines it, in time linear in the text.
fn matches<'b, 'v>(
    call: &mut FunctionContext<'b, 'v>,
    checked: &Checked,
) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let operands: Vec<&CowVal<'b, 'v>> = call.this.iter().chain(&call.args).collect();
    if let [text, pattern] = operands.as_slice()
        && let Some(text) = text.downcast_ref::<CelString<'_>>()
        && let Some(pattern) = pattern.downcast_ref::<CelString<'_>>()
        && let Some((_, regex)) = checked.patterns.iter().find(|(known, _)| known == pattern.inner())
    {
        return Ok(CowVal::owned(CelBool::from(regex.is_match(text.inner()))));
    }
    let types = operands.iter().map(|operand| operand.get_type().name().to_owned()).collect();
    Err(ExecutionError::no_such_overload("matches", types))
}

fn timestamp(now: UnixTime) -> Result<CelTimestamp, Undecided> {
    let seconds = now.as_secs_f64();
    // The conversion saturates; out-of-range values are refused by `chrono`.
    let (whole, part) = (seconds.floor() as i64, (seconds - seconds.floor()) * 1e9);
    chrono::DateTime::from_timestamp(whole, part as u32)
        .map(|time| CelTimestamp::from(time.fixed_offset()))
        .ok_or_else(|| Undecided::new("the time is out of range"))
}

type Boxed<'v> = Box<dyn Val + 'v>;
type Entries<'v> = HashMap<CelMapKey<'v>, Boxed<'v>>;

/// Converts the input for the library, and counts its size against the maximum.
struct Input {
    remaining: u64,
}

impl Input {
    fn take(&mut self, size: u64) -> Result<(), Undecided> {
        self.remaining = self
            .remaining
            .checked_sub(size)
            .ok_or_else(|| Undecided::new("the request and its claims are too large for the condition"))?;
        Ok(())
    }

    fn text<'v>(&mut self, text: &'v str) -> Result<CelString<'v>, Undecided> {
        self.take(1 + cost::text_size(text.len()))?;
        Ok(CelString::from(text))
    }

    fn claims<'v>(&mut self, claims: &'v Json, members: &Members) -> Result<Boxed<'v>, Undecided> {
        let Json::Object(claims) = claims else {
            return Err(Undecided::new("the claims are not an object"));
        };
        let read = claims.iter().filter(|(name, _)| members.has(name));
        self.object(read)
    }

    fn object<'v>(
        &mut self,
        members: impl Iterator<Item = &'v (EcoString, Json)>,
    ) -> Result<Boxed<'v>, Undecided> {
        self.take(1)?;
        let mut entries = Entries::new();
        for (name, value) in members {
            let name = CelMapKey::String(self.text(name)?);
            let value = self.json(value)?;
            entries.insert(name, value);
        }
        Ok(Box::new(CelMap::from(entries)))
    }

    fn json<'v>(&mut self, value: &'v Json) -> Result<Boxed<'v>, Undecided> {
        match value {
            Json::Object(members) => self.object(members.iter()),
            Json::String(text) => Ok(Box::new(self.text(text)?)),
            Json::Array(elements) => {
                self.take(1)?;
                let elements: Vec<_> =
                    elements.iter().map(|element| self.json(element)).collect::<Result<_, _>>()?;
                Ok(Box::new(CelList::from(elements)))
            }
            scalar => {
                self.take(1)?;
                scalar_value(scalar)
            }
        }
    }

    /// `request` with the members that the condition reads.
    fn request<'v>(&mut self, facts: &'v Facts<'_>, checked: &Checked) -> Result<Boxed<'v>, Undecided> {
        let mut entries = Entries::new();
        let texts = [
            ("method", Some(facts.method)),
            ("path", Some(facts.path)),
            ("host", Some(facts.host)),
            ("source_address", facts.source_address),
            ("source_principal", facts.source_principal),
        ];
        for (name, text) in texts {
            if let Some(text) = text.filter(|_| checked.request.contains(name)) {
                entries.insert(CelMapKey::from(name), Box::new(self.text(text)?));
            }
        }
        let maps = [("headers", &facts.headers, &checked.headers), ("query", &facts.query, &checked.query)];
        for (name, texts, members) in maps {
            if members.any() || checked.request.contains(name) {
                entries.insert(CelMapKey::from(name), self.texts(texts, members)?);
            }
        }
        Ok(Box::new(CelMap::from(entries)))
    }

    fn texts<'v>(
        &mut self,
        texts: &'v [(Cow<'_, str>, Cow<'_, str>)],
        members: &Members,
    ) -> Result<Boxed<'v>, Undecided> {
        self.take(1)?;
        let mut entries = Entries::new();
        for (name, text) in texts.iter().filter(|(name, _)| members.has(name)) {
            let (name, text) = (CelMapKey::String(self.text(name)?), self.text(text)?);
            // It is unknown which of two values the upstream would use.
            if entries.insert(name, Box::new(text)).is_some() {
                return Err(Undecided::new("a header or query parameter is repeated"));
            }
        }
        Ok(Box::new(CelMap::from(entries)))
    }
}

/// A scalar value.
fn scalar_value<'v>(scalar: &Json) -> Result<Boxed<'v>, Undecided> {
    Ok(match scalar {
        Json::Bool(value) => Box::new(CelBool::from(*value)),
        Json::Number(digits) => return number(digits),
        _ => Box::new(CelNull),
    })
}

/// An int if the digits fit, otherwise a uint; a double if there is a fraction or an exponent. An integer beyond 64 bits is
/// none of these: as a double it would equal other integers.
fn number<'v>(digits: &str) -> Result<Boxed<'v>, Undecided> {
    if let Ok(int) = digits.parse::<i64>() {
        return Ok(Box::new(CelInt::from(int)));
    }
    if let Ok(uint) = digits.parse::<u64>() {
        return Ok(Box::new(CelUInt::from(uint)));
    }
    let is_integer = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    match digits.parse::<f64>() {
        Ok(double) if double.is_finite() && !is_integer => Ok(Box::new(CelDouble::from(double))),
        _ => Err(Undecided::new("a claim is a number out of range")),
    }
}

#[cfg(test)]
mod tests;
