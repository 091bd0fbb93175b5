//! The static check of a condition: unknown names, operands of impossible types, and which parts of the request and
//! the token the condition reads.
//!
//! It refuses only what is certain to fail: a claim may have any type. It never evaluates against a request.

use std::collections::BTreeSet;

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, SourceInfo, operators,
};
use regex::{Regex, RegexBuilder};

use super::{Fault, constant};

mod kinds;

use self::kinds::{
    Any, Bool, Claims, Double, Int, Kind, List, Map, SIGNATURES, Signature, Text, Texts, Timestamp, Type,
    Uint, binary, literal_kind,
};

/// The deepest expression tree: evaluation recurses once per level.
const MAX_DEPTH: usize = 24;

/// The deepest nesting of comprehensions.
const MAX_LOOPS: usize = 2;

/// The largest compiled pattern, in bytes.
const MAX_PATTERN_BYTES: usize = 256 * 1024;

/// The largest integer up to which doubles represent every integer exactly.
const MAX_EXACT: u64 = 1 << 53;

/// The members of `request`, in the order of the documentation.
const REQUEST: [&str; 7] =
    ["method", "path", "host", "headers", "query", "source_address", "source_principal"];

/// The variables.
const VARIABLES: [&str; 3] = ["claims", "request", "now"];

/// The names of types, for comparison with `type()`.
const TYPES: [&str; 10] =
    ["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"];

/// The macros that loop.
const LOOPS: [&str; 6] = ["all", "exists", "exists_one", "existsOne", "filter", "map"];

/// Methods that compare the beginning or the end of a text: as with `==`, a second value joined to the first
/// changes their result.
const COMPARING: [&str; 2] = ["startsWith", "endsWith"];

/// Functions whose literal arguments are checked when the condition is loaded.
const CONVERSIONS: [&str; 6] = ["bool", "double", "duration", "int", "timestamp", "uint"];

/// The members of a map that are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// All of them, or an unknown set.
    pub all: bool,
    /// At least these.
    pub names: BTreeSet<String>,
}

impl Members {
    /// Adds those of another.
    pub fn add(&mut self, other: &Members) {
        self.all |= other.all;
        self.names.extend(other.names.iter().cloned());
    }

    /// Whether any member is read.
    pub fn any(&self) -> bool {
        self.all || !self.names.is_empty()
    }

    /// Whether this member is read.
    pub fn has(&self, name: &str) -> bool {
        self.all || self.names.contains(name)
    }
}

/// The result of the check.
#[derive(Debug, Default)]
pub(super) struct Checked {
    pub(super) claims: Members,
    pub(super) headers: Members,
    /// Those of `headers` whose complete value, beginning or end is compared.
    pub(super) compared_headers: BTreeSet<String>,
    pub(super) query: Members,
    /// The other members of `request` that are read.
    pub(super) request: BTreeSet<&'static str>,
    pub(super) now: bool,
    /// The compiled patterns of `matches`.
    pub(super) patterns: Vec<(String, Regex)>,
    /// Every member name in the source, which an error may repeat.
    pub(super) written: BTreeSet<String>,
    /// The first number in the source that is compared with values that may be rounded.
    pub(super) rounded: Option<String>,
}

/// Checks a complete condition.
///
/// # Errors
/// The first error and its position.
pub(super) fn check(expr: &IdedExpr, info: &SourceInfo) -> Result<Checked, Fault> {
    let mut checker = Checker { info, result: Checked::default(), locals: Vec::new(), depth: 0, loops: 0 };
    let kind = checker.kind(expr)?;
    if kind.may_be(&[Bool]) {
        return Ok(checker.result);
    }
    Err(checker.fault(expr, format!("a condition has to be bool, not {kind}")))
}

/// The maps whose members are read individually.
#[derive(Clone, Copy)]
enum Place {
    Claims,
    Headers,
    Query,
}

struct Checker<'a> {
    info: &'a SourceInfo,
    result: Checked,
    /// The variables of the enclosing comprehensions.
    locals: Vec<(&'a str, Kind)>,
    depth: usize,
    loops: usize,
}

impl<'a> Checker<'a> {
    fn fault(&self, expr: &IdedExpr, text: impl Into<String>) -> Fault {
        let start = self.info.offset_for(expr.id).and_then(|(start, _)| usize::try_from(start).ok());
        Fault::new(start, text)
    }

    fn kind(&mut self, expr: &'a IdedExpr) -> Result<Kind, Fault> {
        if self.depth >= MAX_DEPTH {
            return Err(self.fault(expr, format!("nested more than {MAX_DEPTH} levels deep")));
        }
        self.depth += 1;
        let kind = self.kind_of(expr);
        self.depth -= 1;
        kind
    }

    fn kind_of(&mut self, expr: &'a IdedExpr) -> Result<Kind, Fault> {
        match &expr.expr {
            Expr::Literal(literal) => Ok(literal_kind(literal)),
            Expr::Ident(name) => self.name(expr, name),
            Expr::Select(select) => self.select(expr, select),
            Expr::Call(call) => self.call(expr, call),
            Expr::List(list) => {
                list.elements.iter().try_for_each(|element| self.kind(element).map(drop))?;
                Ok(List)
            }
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.map_key(&entry.key)?;
                        self.kind(&entry.value)?;
                    }
                }
                Ok(Map)
            }
            Expr::Comprehension(comprehension) => self.comprehension(expr, comprehension),
            Expr::Struct(message) => {
                Err(self.fault(expr, format!("messages are not supported, such as `{}`", message.type_name)))
            }
            Expr::Unspecified => Err(self.fault(expr, "there is nothing to evaluate here")),
        }
    }

    fn map_key(&mut self, key: &'a IdedExpr) -> Result<(), Fault> {
        let kind = self.kind(key)?;
        if kind.may_be(&[Text, Int, Uint, Bool]) {
            return Ok(());
        }
        Err(self.fault(key, format!("{} cannot be a map key", kind.with_article())))
    }

    fn local(&self, name: &str) -> Option<Kind> {
        self.locals.iter().rev().find(|(local, _)| *local == name).map(|(_, kind)| *kind)
    }

    fn name(&mut self, expr: &IdedExpr, name: &str) -> Result<Kind, Fault> {
        if let Some(kind) = self.local(name) {
            return Ok(kind);
        }
        match name {
            "claims" => {
                self.result.claims.all = true;
                Ok(Claims)
            }
            "now" => {
                self.result.now = true;
                Ok(Timestamp)
            }
            "request" => Err(self.fault(
                expr,
                format!("`request` is not a value: use one of its members {}", join_names(&REQUEST)),
            )),
            name if TYPES.contains(&name) => Ok(Type),
            name => Err(self.unknown_name(expr, name)),
        }
    }

    fn unknown_name(&self, expr: &IdedExpr, name: &str) -> Fault {
        if let Some(member) = REQUEST.iter().find(|member| **member == name) {
            return self.fault(expr, format!("unknown name `{name}`; did you mean `request.{member}`?"));
        }
        let locals = self.locals.iter().map(|(local, _)| *local).filter(|local| !local.starts_with('@'));
        let hint = match nearest(name, VARIABLES.into_iter().chain(locals)) {
            Some(known) => format!("did you mean `{known}`?"),
            None => format!("known names are {}", join_names(&VARIABLES)),
        };
        self.fault(expr, format!("unknown name `{name}`; {hint}"))
    }

    /// Records that a member is read, and returns its kind.
    fn member(&mut self, expr: &IdedExpr, place: Place, name: &str) -> Result<Kind, Fault> {
        self.result.written.insert(name.to_owned());
        let (members, kind) = match place {
            Place::Claims => (&mut self.result.claims, Any),
            Place::Query => (&mut self.result.query, Text),
            Place::Headers => {
                let lower = name.to_ascii_lowercase();
                if name != lower {
                    return Err(self.fault(
                        expr,
                        format!("header names are in lower case: write `request.headers[\"{lower}\"]`"),
                    ));
                }
                (&mut self.result.headers, Text)
            }
        };
        members.names.insert(name.to_owned());
        Ok(kind)
    }

    fn select(&mut self, expr: &'a IdedExpr, select: &'a SelectExpr) -> Result<Kind, Fault> {
        let kind = if let Some(place) = place(&select.operand) {
            self.member(expr, place, &select.field)?
        } else if is_request(&select.operand) {
            self.request(expr, &select.field, select.test)?
        } else {
            self.result.written.insert(select.field.clone());
            match self.kind(&select.operand)? {
                Any | Map | Claims => Any,
                Texts => Text,
                other => {
                    return Err(self.fault(
                        expr,
                        format!("{} has no members, such as `{}`", other.with_article(), select.field),
                    ));
                }
            }
        };
        Ok(if select.test { Bool } else { kind })
    }

    /// A member of `request`, read or tested with `has`.
    fn request(&mut self, expr: &IdedExpr, field: &str, is_test: bool) -> Result<Kind, Fault> {
        let Some(known) = REQUEST.iter().find(|member| **member == field) else {
            let hint = match nearest(field, REQUEST) {
                Some(suggestion) => format!("did you mean `request.{suggestion}`?"),
                None => format!("it has {}", join_names(&REQUEST)),
            };
            return Err(self.fault(expr, format!("`request` has no `{field}`; {hint}")));
        };
        self.result.written.insert(field.to_owned());
        let members = match *known {
            "headers" => &mut self.result.headers,
            "query" => &mut self.result.query,
            other => {
                self.result.request.insert(other);
                return Ok(Text);
            }
        };
        // Whether the map exists depends on none of its members, but the map has to exist.
        members.all |= !is_test;
        self.result.request.insert(known);
        Ok(Texts)
    }

    fn call(&mut self, expr: &'a IdedExpr, call: &'a CallExpr) -> Result<Kind, Fault> {
        match (call.func_name.as_str(), &call.target, call.args.as_slice()) {
            (operators::INDEX, None, [container, index]) => self.index(expr, container, index),
            (operators::IN, None, [element, container]) => self.is_in(expr, element, container),
            (operators::CONDITIONAL, None, [condition, yes, no]) => {
                self.boolean(condition, "? :")?;
                let (yes, no) = (self.kind(yes)?, self.kind(no)?);
                Ok(if yes == no { yes } else { Any })
            }
            (name @ (operators::LOGICAL_AND | operators::LOGICAL_OR), None, [left, right]) => {
                self.boolean(left, symbol(name))?;
                self.boolean(right, symbol(name))
            }
            (operators::LOGICAL_NOT | operators::NOT_STRICTLY_FALSE, None, [operand]) => {
                self.boolean(operand, "!")
            }
            (operators::NEGATE, None, [operand]) => match self.kind(operand)? {
                kind @ (Any | Int | Double) => Ok(kind),
                kind => Err(self.fault(expr, format!("`-` cannot be applied to {}", kind.with_article()))),
            },
            (name, None, [left, right]) if is_operator(name) => {
                self.record_compared([left, right]);
                self.record_rounded(name, [left, right]);
                let (left, right) = (self.kind(left)?, self.kind(right)?);
                binary(name, left, right).ok_or_else(|| {
                    self.fault(
                        expr,
                        format!(
                            "`{}` cannot be applied to {} and {}",
                            symbol(name),
                            left.with_article(),
                            right.with_article()
                        ),
                    )
                })
            }
            _ => self.function(expr, call),
        }
    }

    /// An operand that has to be a boolean.
    fn boolean(&mut self, operand: &'a IdedExpr, symbol: &str) -> Result<Kind, Fault> {
        let kind = self.kind(operand)?;
        if kind.may_be(&[Bool]) {
            return Ok(Bool);
        }
        Err(self.fault(operand, format!("`{symbol}` needs a bool, not {}", kind.with_article())))
    }

    fn index(
        &mut self,
        expr: &'a IdedExpr,
        container: &'a IdedExpr,
        index: &'a IdedExpr,
    ) -> Result<Kind, Fault> {
        if let (Some(place), Some(name)) = (place(container), text(index)) {
            return self.member(index, place, name);
        }
        if let Some(name) = text(index) {
            self.result.written.insert(name.to_owned());
        }
        let (kind, by) = (self.kind(container)?, self.kind(index)?);
        let (takes, returns): (&[Kind], Kind) = match kind {
            Texts => (&[Text], Text),
            Claims => (&[Text], Any),
            List => (&[Int, Uint, Double], Any),
            Any | Map => (&[Text, Int, Uint, Double, Bool], Any),
            other => {
                return Err(self.fault(expr, format!("{} cannot be indexed", other.with_article())));
            }
        };
        if by.may_be(takes) {
            return Ok(returns);
        }
        Err(self
            .fault(index, format!("{} cannot be indexed with {}", kind.with_article(), by.with_article())))
    }

    fn is_in(
        &mut self,
        expr: &'a IdedExpr,
        element: &'a IdedExpr,
        container: &'a IdedExpr,
    ) -> Result<Kind, Fault> {
        if let (Some(place), Some(name)) = (place(container), text(element)) {
            self.member(element, place, name)?;
            return Ok(Bool);
        }
        self.record_compared([element]);
        let kind = self.kind(element)?;
        if let Expr::List(list) = &container.expr {
            self.record_rounded(operators::EQUALS, &list.elements);
            for candidate in &list.elements {
                let other = self.kind(candidate)?;
                if !kind.comparable(other) {
                    return Err(self.fault(
                        candidate,
                        format!("{} is never equal to {}", kind.with_article(), other.with_article()),
                    ));
                }
            }
            return Ok(Bool);
        }
        match self.kind(container)? {
            Any | List => Ok(Bool),
            Map if kind.may_be(&[Text, Int, Uint, Double, Bool]) => Ok(Bool),
            Texts | Claims if kind.may_be(&[Text]) => Ok(Bool),
            Text => Err(self.fault(expr, "`in` needs a list or a map; use `.contains()` for a string")),
            other => {
                Err(self
                    .fault(expr, format!("{} cannot be in {}", kind.with_article(), other.with_article())))
            }
        }
    }

    fn function(&mut self, expr: &'a IdedExpr, call: &'a CallExpr) -> Result<Kind, Fault> {
        let name = call.func_name.as_str();
        let is_candidate =
            |signature: &&Signature| signature.name == name && signature.method == call.target.is_some();
        if !SIGNATURES.iter().any(|signature| is_candidate(&signature)) {
            return Err(self.unknown_function(expr, call));
        }
        let arguments: Vec<&IdedExpr> = call.target.as_deref().into_iter().chain(&call.args).collect();
        let kinds = arguments.iter().map(|argument| self.kind(argument)).collect::<Result<Vec<_>, _>>()?;
        let by_arity: Vec<&Signature> = SIGNATURES
            .iter()
            .filter(is_candidate)
            .filter(|signature| signature.takes.len() == kinds.len())
            .collect();
        let Some(first) = by_arity.first() else {
            return Err(self.fault(expr, format!("`{name}` does not take that many arguments")));
        };
        for (place, (argument, kind)) in arguments.iter().zip(&kinds).enumerate() {
            let fits =
                |signature: &&Signature| signature.takes.get(place).is_some_and(|takes| kind.may_be(takes));
            if !by_arity.iter().any(fits) {
                return Err(
                    self.fault(argument, format!("`{name}` cannot be applied to {}", kind.with_article()))
                );
            }
        }
        self.check_literals(expr, name, &arguments)?;
        if COMPARING.contains(&name) {
            self.record_compared(arguments.iter().copied());
        }
        Ok(first.returns)
    }

    /// Records which of these are headers.
    fn record_compared<'e>(&mut self, operands: impl IntoIterator<Item = &'e IdedExpr>) {
        let names = operands.into_iter().filter_map(header).map(str::to_owned);
        self.result.compared_headers.extend(names);
    }

    /// Records a number among these operands of a comparison that other numbers equal after rounding: one with a fraction,
    /// or beyond what every integer-valued double is exact for.
    fn record_rounded<'e>(&mut self, operator: &str, operands: impl IntoIterator<Item = &'e IdedExpr>) {
        let is_equality = [operators::EQUALS, operators::NOT_EQUALS].contains(&operator);
        if self.result.rounded.is_none() {
            self.result.rounded = operands.into_iter().find_map(|operand| rounded(operand, is_equality));
        }
    }

    /// Checks literal arguments, and arguments that have to be literals.
    fn check_literals(&mut self, expr: &IdedExpr, name: &str, arguments: &[&IdedExpr]) -> Result<(), Fault> {
        match (name, arguments) {
            ("matches", [_, pattern]) => self.pattern(pattern),
            // The library ignores text after a valid duration, so only literals are accepted.
            ("duration", [argument]) if !text(argument).is_some_and(is_duration) => {
                Err(self.fault(argument, "a duration has to be a literal, such as `duration(\"1h30m\")`"))
            }
            (_, [argument]) if CONVERSIONS.contains(&name) && matches!(argument.expr, Expr::Literal(_)) => {
                if constant(expr) {
                    return Ok(());
                }
                Err(self.fault(argument, format!("`{name}` cannot convert this")))
            }
            _ => Ok(()),
        }
    }

    fn pattern(&mut self, pattern: &IdedExpr) -> Result<(), Fault> {
        let Some(text) = text(pattern) else {
            return Err(self.fault(pattern, "the pattern of `matches` has to be a string literal"));
        };
        let compiled = RegexBuilder::new(text)
            .size_limit(MAX_PATTERN_BYTES)
            .build()
            .map_err(|error| self.fault(pattern, pattern_error(&error)))?;
        if self.result.patterns.iter().all(|(known, _)| known != text) {
            self.result.patterns.push((text.to_owned(), compiled));
        }
        Ok(())
    }

    fn unknown_function(&self, expr: &IdedExpr, call: &CallExpr) -> Fault {
        let name = call.func_name.as_str();
        let known =
            |method| SIGNATURES.iter().filter(move |known| known.method == method).map(|known| known.name);
        let is_method = call.target.is_some();
        if LOOPS.contains(&name) {
            return self.fault(expr, format!("`{name}` is written `list.{name}(x, ...x...)`"));
        }
        if name == operators::HAS {
            return self.fault(expr, "`has` is written `has(claims.name)`");
        }
        if known(!is_method).any(|known| known == name) {
            let written = if is_method { format!("{name}(x)") } else { format!("x.{name}()") };
            return self.fault(expr, format!("`{name}` is written `{written}`"));
        }
        let hint = match nearest(name, known(is_method)) {
            Some(suggestion) => format!("; did you mean `{suggestion}`?"),
            None => String::new(),
        };
        self.fault(expr, format!("there is no function `{name}`{hint}"))
    }

    fn comprehension(
        &mut self,
        expr: &'a IdedExpr,
        comprehension: &'a ComprehensionExpr,
    ) -> Result<Kind, Fault> {
        let element = match self.kind(&comprehension.iter_range)? {
            Any | List | Map => Any,
            Texts | Claims => Text,
            other => return Err(self.fault(expr, format!("{} cannot be iterated", other.with_article()))),
        };
        let name = comprehension.iter_var.as_str();
        if name.starts_with('.') || VARIABLES.contains(&name) || TYPES.contains(&name) {
            return Err(
                self.fault(expr, format!("`{name}` is reserved; choose another name for the element"))
            );
        }
        if self.loops >= MAX_LOOPS {
            return Err(self.fault(expr, format!("more than {MAX_LOOPS} nested loops")));
        }
        let outer_len = self.locals.len();
        let accumulated = self.kind(&comprehension.accu_init)?;
        self.locals.push((&comprehension.accu_var, accumulated));
        self.locals.push((name, element));
        self.loops += 1;
        self.kind(&comprehension.loop_cond)?;
        self.kind(&comprehension.loop_step)?;
        self.loops -= 1;
        let result = self.kind(&comprehension.result);
        self.locals.truncate(outer_len);
        result
    }
}

/// The map that an expression names, before a read is recorded. No loop variable has such a name.
fn place(expr: &IdedExpr) -> Option<Place> {
    match &expr.expr {
        Expr::Ident(name) if name == "claims" => Some(Place::Claims),
        Expr::Select(select) if !select.test && is_request(&select.operand) => match select.field.as_str() {
            "headers" => Some(Place::Headers),
            "query" => Some(Place::Query),
            _ => None,
        },
        _ => None,
    }
}

/// The name of the header that an expression reads.
fn header(expr: &IdedExpr) -> Option<&str> {
    match &expr.expr {
        Expr::Select(select) if !select.test => {
            matches!(place(&select.operand), Some(Place::Headers)).then_some(select.field.as_str())
        }
        Expr::Call(call) if call.func_name == operators::INDEX => match call.args.as_slice() {
            [container, index] if matches!(place(container), Some(Place::Headers)) => text(index),
            _ => None,
        },
        _ => None,
    }
}

/// A number literal that equals other numbers after rounding: an integer beyond what doubles represent exactly, or, if
/// fractions count, one with a fraction.
fn rounded(expr: &IdedExpr, fractions_count: bool) -> Option<String> {
    match &expr.expr {
        Expr::Literal(LiteralValue::Double(number)) => {
            let number = number.inner();
            let is_rounded = number.abs() > MAX_EXACT as f64 || (fractions_count && number.fract() != 0.0);
            is_rounded.then(|| number.to_string())
        }
        Expr::Literal(LiteralValue::Int(number)) if number.inner().unsigned_abs() > MAX_EXACT => {
            Some(number.inner().to_string())
        }
        Expr::Literal(LiteralValue::UInt(number)) if *number.inner() > MAX_EXACT => {
            Some(format!("{}u", number.inner()))
        }
        Expr::Call(call) if call.func_name == operators::NEGATE => {
            let [operand] = call.args.as_slice() else { return None };
            rounded(operand, fractions_count).map(|number| format!("-{number}"))
        }
        _ => None,
    }
}

fn is_request(expr: &IdedExpr) -> bool {
    matches!(&expr.expr, Expr::Ident(name) if name == "request")
}

/// The text of a string literal.
fn text(expr: &IdedExpr) -> Option<&str> {
    match &expr.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

fn is_operator(name: &str) -> bool {
    name.starts_with('_')
}

/// The symbol of an operator: the library calls it `_==_`.
fn symbol(name: &str) -> &str {
    name.trim_matches('_')
}

/// Whether the complete text is a duration: numbers with units, and an optional sign.
fn is_duration(text: &str) -> bool {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    if unsigned == "0" {
        return true;
    }
    let mut rest = unsigned;
    while !rest.is_empty() {
        let number = rest.trim_start_matches(|char: char| char.is_ascii_digit() || char == '.');
        let digits = rest.strip_suffix(number).unwrap_or_default();
        let suffix = ["ns", "us", "ms", "h", "m", "s"].iter().find_map(|unit| number.strip_prefix(unit));
        match suffix {
            Some(suffix) if digits.parse::<f64>().is_ok() => rest = suffix,
            _ => return false,
        }
    }
    !unsigned.is_empty()
}

fn pattern_error(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(_) => "the pattern is too large".to_owned(),
        // The library shows the position over several lines; the last line has the message.
        other => {
            let text = other.to_string();
            let last = text.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
            format!("not a valid pattern: {last}")
        }
    }
}

fn join_names(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The known name that was probably meant.
fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).clamp(1, 2))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
