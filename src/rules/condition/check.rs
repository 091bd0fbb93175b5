//! Whether a condition can be true or false at all: types, names and functions, before any request.
//!
//! What comes from outside (a claim, a member of a list) has a type that nobody knows yet; everything else is
//! known, and what cannot fit is refused here. Nothing is evaluated.

use std::collections::HashMap;

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators,
};
use regex::Regex;

/// Deeper expressions are refused: the evaluator is recursive.
const MAX_DEPTH: usize = 64;
/// The compiled form of one pattern of `matches` may take this much memory, in bytes.
const MAX_PATTERN_BYTES: usize = 1 << 20;

const REQUEST_FIELDS: [(&str, Type); 7] = [
    ("method", Type::String),
    ("path", Type::String),
    ("host", Type::String),
    ("headers", Type::Headers),
    ("query", Type::Texts),
    ("source_address", Type::String),
    ("source_principal", Type::String),
];

/// Functions of a time or a duration; the former may be told a time zone.
const TIME_PARTS: [&str; 10] = [
    "getFullYear",
    "getMonth",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getHours",
    "getMinutes",
    "getSeconds",
    "getMilliseconds",
];

/// What is known of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    /// Anything: it comes from a token, or out of a list.
    Unknown,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Time,
    Duration,
    List,
    Map,
    /// A map from texts to texts.
    Texts,
    /// The same, with names in lower case.
    Headers,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Type::Unknown => "anything",
            Type::Null => "null",
            Type::Bool => "a boolean",
            Type::Int | Type::Uint => "a whole number",
            Type::Double => "a number",
            Type::String => "a string",
            Type::Bytes => "bytes",
            Type::Time => "a timestamp",
            Type::Duration => "a duration",
            Type::List => "a list",
            Type::Map | Type::Texts | Type::Headers => "a map",
        }
    }

    fn is_number(self) -> bool {
        matches!(self, Type::Int | Type::Uint | Type::Double)
    }

    fn is_map(self) -> bool {
        matches!(self, Type::Map | Type::Texts | Type::Headers)
    }

    /// Whether it can be one of these.
    fn may_be(self, wanted: &[Type]) -> bool {
        self == Type::Unknown || wanted.contains(&self)
    }

    /// Whether two values can be equal.
    fn is_like(self, other: Type) -> bool {
        let either_unknown = self == Type::Unknown || other == Type::Unknown;
        either_unknown
            || self == other
            || (self.is_number() && other.is_number())
            || (self.is_map() && other.is_map())
    }
}

/// What is wrong, and the expression that it is wrong with.
pub(super) struct Fault {
    pub(super) at: u64,
    pub(super) message: String,
}

/// What a condition uses.
#[derive(Default)]
pub(super) struct Checked {
    pub(super) patterns: HashMap<String, Regex>,
    pub(super) reads_path: bool,
    pub(super) reads_host: bool,
}

/// Checks a whole condition.
///
/// # Errors
/// The first thing that is wrong.
pub(super) fn check(expression: &IdedExpr) -> Result<Checked, Fault> {
    let mut checker = Checker::default();
    let result = checker.type_of(expression, 0)?;
    if !result.may_be(&[Type::Bool]) {
        let message = format!("a condition has to be true or false, and this is {}", result.name());
        return Err(Fault { at: expression.id, message });
    }
    Ok(checker.found)
}

#[derive(Default)]
struct Checker {
    found: Checked,
    /// Names that a macro has brought in, innermost last.
    local: Vec<(String, Type)>,
    inside_macro: bool,
}

type Typed = Result<Type, Fault>;

fn fault<T>(at: &IdedExpr, message: impl Into<String>) -> Result<T, Fault> {
    Err(Fault { at: at.id, message: message.into() })
}

impl Checker {
    fn type_of(&mut self, expression: &IdedExpr, depth: usize) -> Typed {
        if depth > MAX_DEPTH {
            return fault(expression, "too deep: split it into several claims, or into several rules");
        }
        let depth = depth + 1;
        match &expression.expr {
            Expr::Literal(literal) => Ok(literal_type(literal)),
            Expr::Ident(name) => self.variable(expression, name),
            Expr::Select(select) => self.select(expression, select, depth),
            Expr::Call(call) => self.call(expression, call, depth),
            Expr::List(list) => {
                for element in &list.elements {
                    self.type_of(element, depth)?;
                }
                Ok(Type::List)
            }
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.type_of(&entry.key, depth)?;
                        self.type_of(&entry.value, depth)?;
                    }
                }
                Ok(Type::Map)
            }
            Expr::Comprehension(comprehension) => self.comprehension(expression, comprehension, depth),
            Expr::Struct(_) | Expr::Unspecified => fault(expression, "messages cannot be made here"),
        }
    }

    fn variable(&self, expression: &IdedExpr, name: &str) -> Typed {
        if let Some((_, of_macro)) = self.local.iter().rev().find(|(local, _)| local == name) {
            return Ok(*of_macro);
        }
        match name {
            "claims" => Ok(Type::Map),
            "now" => Ok(Type::Time),
            "request" => fault(expression, format!("write one of its fields: {}", request_fields())),
            _ => fault(expression, format!("`{name}` is not known; there are claims, request and now")),
        }
    }

    fn select(&mut self, expression: &IdedExpr, select: &SelectExpr, depth: usize) -> Typed {
        let SelectExpr { operand, field, test } = select;
        if operand.expr == Expr::Ident("request".to_owned()) {
            let Some((_, known)) = REQUEST_FIELDS.iter().find(|(name, _)| name == field) else {
                return fault(expression, format!("a request has no `{field}`; it has {}", request_fields()));
            };
            self.found.reads_path |= field == "path";
            self.found.reads_host |= field == "host";
            return Ok(if *test { Type::Bool } else { *known });
        }
        let of = self.type_of(operand, depth)?;
        let member = match of {
            Type::Headers if field.bytes().any(|byte| byte.is_ascii_uppercase()) => {
                return fault(expression, lower_case(field));
            }
            Type::Headers | Type::Texts => Type::String,
            Type::Map | Type::Unknown => Type::Unknown,
            other => return fault(expression, format!("{} has no member `{field}`", other.name())),
        };
        Ok(if *test { Type::Bool } else { member })
    }

    fn call(&mut self, expression: &IdedExpr, call: &CallExpr, depth: usize) -> Typed {
        let mut types = Vec::new();
        for argument in call.target.as_deref().into_iter().chain(&call.args) {
            types.push(self.type_of(argument, depth)?);
        }
        let name = call.func_name.as_str();
        let typed = match (call.target.is_some(), types.as_slice()) {
            (false, [condition, one, other]) if name == operators::CONDITIONAL => {
                let same = if one == other { *one } else { Type::Unknown };
                condition.may_be(&[Type::Bool]).then_some(same)
            }
            (false, [one]) if !name.starts_with(|c: char| c.is_ascii_lowercase()) => prefix(name, *one),
            (false, [left, right]) if !name.starts_with(|c: char| c.is_ascii_lowercase()) => {
                self.infix(expression, call, *left, *right)?
            }
            (false, [one]) => conversion(name, *one),
            (true, [text, pattern]) if name == "matches" => {
                self.pattern(expression, call.args.first())?;
                (text.may_be(&[Type::String]) && *pattern == Type::String).then_some(Type::Bool)
            }
            (true, types) => method(name, types),
            (false, _) => None,
        };
        match typed {
            Some(typed) => Ok(typed),
            None => {
                let types: Vec<&str> = types.iter().map(|one| one.name()).collect();
                fault(expression, format!("`{}` does not go with {}", readable(name), types.join(" and ")))
            }
        }
    }

    /// `None` where the operator does not go with these.
    fn infix(
        &self,
        expression: &IdedExpr,
        call: &CallExpr,
        left: Type,
        right: Type,
    ) -> Result<Option<Type>, Fault> {
        let either = |known: Type, other: Type| if known == Type::Unknown { other } else { known };
        Ok(match call.func_name.as_str() {
            operators::LOGICAL_AND | operators::LOGICAL_OR => {
                (left.may_be(&[Type::Bool]) && right.may_be(&[Type::Bool])).then_some(Type::Bool)
            }
            operators::EQUALS | operators::NOT_EQUALS => left.is_like(right).then_some(Type::Bool),
            operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS => {
                let ordered = [
                    Type::Bool,
                    Type::Int,
                    Type::Uint,
                    Type::Double,
                    Type::String,
                    Type::Bytes,
                    Type::Time,
                    Type::Duration,
                ];
                let both = left.may_be(&ordered) && right.may_be(&ordered);
                (both && left.is_like(right)).then_some(Type::Bool)
            }
            operators::IN => match right {
                Type::Headers | Type::Texts => left.may_be(&[Type::String]).then_some(Type::Bool),
                right => right.may_be(&[Type::List, Type::Map]).then_some(Type::Bool),
            },
            operators::INDEX => self.index(expression, call, left, right)?,
            operators::ADD => {
                let sum = sum(left, right);
                let grows = !matches!(
                    either(left, right),
                    Type::Int | Type::Uint | Type::Double | Type::Time | Type::Duration
                );
                if self.inside_macro && grows && sum.is_some() {
                    return fault(expression, "texts and lists cannot be joined inside a macro");
                }
                sum
            }
            operators::SUBSTRACT => match (left, right) {
                (Type::Time, Type::Time) => Some(Type::Duration),
                (Type::Time, Type::Unknown) => Some(Type::Unknown),
                (Type::Time, Type::Duration) => Some(Type::Time),
                (Type::Duration, Type::Duration) => Some(Type::Duration),
                (Type::Unknown, Type::Time | Type::Duration) | (Type::Duration, Type::Unknown) => {
                    Some(Type::Unknown)
                }
                _ => arithmetic(left, right),
            },
            operators::MULTIPLY | operators::DIVIDE | operators::MODULO => arithmetic(left, right),
            _ => None,
        })
    }

    fn index(
        &self,
        expression: &IdedExpr,
        call: &CallExpr,
        of: Type,
        by: Type,
    ) -> Result<Option<Type>, Fault> {
        if of == Type::Headers
            && let Some(Expr::Literal(LiteralValue::String(name))) = call.args.get(1).map(|index| &index.expr)
            && name.inner().bytes().any(|byte| byte.is_ascii_uppercase())
        {
            return fault(expression, lower_case(name.inner()));
        }
        Ok(match of {
            Type::Headers | Type::Texts => by.may_be(&[Type::String]).then_some(Type::String),
            Type::List => by.may_be(&[Type::Int, Type::Uint]).then_some(Type::Unknown),
            Type::Map | Type::Unknown => {
                by.may_be(&[Type::String, Type::Int, Type::Uint, Type::Bool]).then_some(Type::Unknown)
            }
            _ => None,
        })
    }

    /// A pattern is compiled once, here, and so has to stand in the condition itself.
    fn pattern(&mut self, expression: &IdedExpr, argument: Option<&IdedExpr>) -> Result<(), Fault> {
        let Some(Expr::Literal(LiteralValue::String(pattern))) = argument.map(|argument| &argument.expr)
        else {
            return fault(expression, "`matches` needs its pattern as a text in quotes");
        };
        let regex = regex::RegexBuilder::new(pattern.inner())
            .size_limit(MAX_PATTERN_BYTES)
            .dfa_size_limit(MAX_PATTERN_BYTES)
            .build();
        match regex {
            Ok(regex) => {
                self.found.patterns.insert(pattern.inner().to_owned(), regex);
                Ok(())
            }
            Err(error) => {
                let error = error.to_string();
                fault(
                    expression,
                    format!("not a regular expression: {}", error.lines().last().unwrap_or_default()),
                )
            }
        }
    }

    /// What `all`, `exists`, `exists_one`, `map` and `filter` are made into.
    fn comprehension(
        &mut self,
        expression: &IdedExpr,
        comprehension: &ComprehensionExpr,
        depth: usize,
    ) -> Typed {
        let ComprehensionExpr {
            iter_range,
            iter_var,
            iter_var2,
            accu_var,
            accu_init,
            loop_cond,
            loop_step,
            result,
        } = comprehension;
        if self.inside_macro {
            return fault(expression, "a macro inside another one could run for too long");
        }
        let range = self.type_of(iter_range, depth)?;
        if !range.may_be(&[Type::List, Type::Map, Type::Texts, Type::Headers]) {
            return fault(
                iter_range,
                format!("a list or a map is needed here, and this is {}", range.name()),
            );
        }
        if ["claims", "request", "now"].contains(&iter_var.as_str()) {
            return fault(expression, format!("`{iter_var}` is taken: choose another name"));
        }
        let gathered = self.type_of(accu_init, depth)?;
        let outside = self.local.len();
        let member = if matches!(range, Type::Headers | Type::Texts) { Type::String } else { Type::Unknown };
        self.local.push((iter_var.clone(), member));
        self.local.extend(iter_var2.iter().map(|second| (second.clone(), Type::Unknown)));
        self.local.push((accu_var.clone(), gathered));
        self.inside_macro = true;
        let checked = self.loop_of(accu_var, loop_cond, loop_step, result, depth);
        self.inside_macro = false;
        self.local.truncate(outside);
        checked
    }

    fn loop_of(
        &mut self,
        accu_var: &str,
        condition: &IdedExpr,
        step: &IdedExpr,
        result: &IdedExpr,
        depth: usize,
    ) -> Typed {
        self.type_of(condition, depth)?;
        self.step(accu_var, step, depth)?;
        self.type_of(result, depth)
    }

    /// The macros' own `gathered + [member]` is the only joining inside them, also where `filter` and the map
    /// with a test choose whether to do it.
    fn step(&mut self, accu_var: &str, step: &IdedExpr, depth: usize) -> Result<(), Fault> {
        if let Expr::Call(call) = &step.expr {
            let gathers = |argument: Option<&IdedExpr>| {
                argument.is_some_and(|argument| argument.expr == Expr::Ident(accu_var.to_owned()))
            };
            match (call.func_name.as_str(), call.args.as_slice()) {
                (operators::ADD, [_, added]) if gathers(call.args.first()) => {
                    return self.type_of(added, depth + 1).map(drop);
                }
                (operators::CONDITIONAL, [condition, one, other]) => {
                    let tested = self.type_of(condition, depth + 1)?;
                    if !tested.may_be(&[Type::Bool]) {
                        return fault(
                            condition,
                            format!("a test is needed here, and this is {}", tested.name()),
                        );
                    }
                    self.step(accu_var, one, depth + 1)?;
                    return self.step(accu_var, other, depth + 1);
                }
                _ => {}
            }
        }
        self.type_of(step, depth).map(drop)
    }
}

fn request_fields() -> String {
    REQUEST_FIELDS.map(|(name, _)| name).join(", ")
}

fn lower_case(name: &str) -> String {
    format!("names of headers are in lower case here: {}", name.to_ascii_lowercase())
}

fn literal_type(literal: &LiteralValue) -> Type {
    match literal {
        LiteralValue::Boolean(_) => Type::Bool,
        LiteralValue::Bytes(_) => Type::Bytes,
        LiteralValue::Double(_) => Type::Double,
        LiteralValue::Int(_) => Type::Int,
        LiteralValue::Null => Type::Null,
        LiteralValue::String(_) => Type::String,
        LiteralValue::UInt(_) => Type::Uint,
    }
}

fn prefix(name: &str, of: Type) -> Option<Type> {
    match name {
        operators::LOGICAL_NOT => of.may_be(&[Type::Bool]).then_some(Type::Bool),
        operators::NEGATE => of.may_be(&[Type::Int, Type::Double]).then_some(of),
        operators::NOT_STRICTLY_FALSE => Some(Type::Bool),
        _ => None,
    }
}

/// CEL adds and divides only what is of one type.
fn arithmetic(left: Type, right: Type) -> Option<Type> {
    match (left, right) {
        (Type::Unknown, right) if right == Type::Unknown || right.is_number() => Some(right),
        (left, Type::Unknown) if left.is_number() => Some(left),
        (left, right) if left == right && left.is_number() => Some(left),
        _ => None,
    }
}

fn sum(left: Type, right: Type) -> Option<Type> {
    match (left, right) {
        (Type::Time, Type::Duration | Type::Unknown) | (Type::Duration | Type::Unknown, Type::Time) => {
            Some(Type::Time)
        }
        (Type::Duration, Type::Unknown) | (Type::Unknown, Type::Duration) => Some(Type::Unknown),
        (Type::Unknown, joined @ (Type::String | Type::List | Type::Bytes))
        | (joined @ (Type::String | Type::List | Type::Bytes), Type::Unknown) => Some(joined),
        (left, right)
            if left == right && matches!(left, Type::String | Type::List | Type::Bytes | Type::Duration) =>
        {
            Some(left)
        }
        _ => arithmetic(left, right),
    }
}

/// The functions of one argument that are not called on it.
fn conversion(name: &str, of: Type) -> Option<Type> {
    let numbers = [Type::Int, Type::Uint, Type::Double, Type::String];
    match name {
        "size" => sized(of),
        "int" => (of.may_be(&numbers) || of == Type::Time).then_some(Type::Int),
        "uint" => of.may_be(&numbers).then_some(Type::Uint),
        "double" => of.may_be(&numbers).then_some(Type::Double),
        "bool" => of.may_be(&[Type::Bool, Type::String]).then_some(Type::Bool),
        "string" => (!matches!(of, Type::List | Type::Null) && !of.is_map()).then_some(Type::String),
        "timestamp" => of.may_be(&[Type::String, Type::Int, Type::Time]).then_some(Type::Time),
        "duration" => of.may_be(&[Type::String, Type::Duration]).then_some(Type::Duration),
        "dyn" => Some(Type::Unknown),
        _ => None,
    }
}

fn sized(of: Type) -> Option<Type> {
    (of.may_be(&[Type::String, Type::Bytes, Type::List]) || of.is_map()).then_some(Type::Int)
}

/// The functions that are called on something: `types` has that first.
fn method(name: &str, types: &[Type]) -> Option<Type> {
    match (name, types) {
        ("size", [of]) => sized(*of),
        ("startsWith" | "endsWith" | "contains", [text, part]) => {
            (text.may_be(&[Type::String]) && part.may_be(&[Type::String])).then_some(Type::Bool)
        }
        (part, [of]) if TIME_PARTS.contains(&part) => {
            of.may_be(&[Type::Time, Type::Duration]).then_some(Type::Int)
        }
        (part, [of, zone]) if TIME_PARTS.contains(&part) => {
            (of.may_be(&[Type::Time]) && zone.may_be(&[Type::String])).then_some(Type::Int)
        }
        _ => None,
    }
}

/// An operator as it is written.
fn readable(name: &str) -> &str {
    match name {
        operators::CONDITIONAL => "?:",
        operators::INDEX => "[]",
        operators::IN => "in",
        name => name.trim_matches('_'),
    }
}
