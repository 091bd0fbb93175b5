//! The static check of a condition: every name known, every operand of a type that can go where it
//! stands, and what of the request and the token is read.
//!
//! It refuses only what is certain to be wrong: a claim can be of any type, and so goes anywhere. It
//! never evaluates against a request.

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

/// Deeper trees are refused: evaluation descends once for each level.
const MAX_DEPTH: usize = 24;

/// How many comprehensions may stand inside one another.
const MAX_LOOPS: usize = 2;

/// A compiled pattern that is larger is refused.
const MAX_PATTERN_BYTES: usize = 256 * 1024;

/// The members of `request`, in the order of the documentation.
const REQUEST: [&str; 7] =
    ["method", "path", "host", "headers", "query", "source_address", "source_principal"];

/// The variables.
const VARIABLES: [&str; 3] = ["claims", "request", "now"];

/// Names that stand for types, to compare with what `type()` says.
const TYPES: [&str; 10] =
    ["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"];

/// The macros that loop, as they are written.
const LOOPS: [&str; 6] = ["all", "exists", "exists_one", "existsOne", "filter", "map"];

/// Methods that hold the beginning or the end of a text against something: as with `==`, a second value joined to the
/// first changes what they say.
const COMPARING: [&str; 2] = ["startsWith", "endsWith"];

/// Functions whose argument is read at once where it is written out.
const CONVERSIONS: [&str; 6] = ["bool", "double", "duration", "int", "timestamp", "uint"];

/// Which members of a map are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// All of them, or which ones is not known.
    pub all: bool,
    /// These at least.
    pub names: BTreeSet<String>,
}

impl Members {
    /// These and those of another.
    pub fn add(&mut self, other: &Members) {
        self.all |= other.all;
        self.names.extend(other.names.iter().cloned());
    }

    /// Whether anything is read at all.
    pub fn any(&self) -> bool {
        self.all || !self.names.is_empty()
    }

    /// Whether this one is read.
    pub fn has(&self, name: &str) -> bool {
        self.all || self.names.contains(name)
    }
}

/// What a condition that has passed is about.
#[derive(Debug, Default)]
pub(super) struct Checked {
    pub(super) claims: Members,
    pub(super) headers: Members,
    /// Those of `headers` that stand where a whole value, its beginning or its end is compared.
    pub(super) compared_headers: BTreeSet<String>,
    pub(super) query: Members,
    /// The other members of `request` that are read.
    pub(super) request: BTreeSet<&'static str>,
    pub(super) now: bool,
    /// The patterns of `matches`, compiled.
    pub(super) patterns: Vec<(String, Regex)>,
    /// Every member name that the author wrote: what an error may repeat.
    pub(super) written: BTreeSet<String>,
}

/// Checks a whole condition.
///
/// # Errors
/// The first thing that is certain to be wrong, and where.
pub(super) fn check(expr: &IdedExpr, info: &SourceInfo) -> Result<Checked, Fault> {
    let mut checker = Checker { info, found: Checked::default(), locals: Vec::new(), depth: 0, loops: 0 };
    let kind = checker.kind(expr)?;
    if kind.may_be(&[Bool]) {
        return Ok(checker.found);
    }
    Err(checker.fault(expr, format!("a condition is true or false, and this is of type {kind}")))
}

/// The maps whose members are read one by one where they are named.
#[derive(Clone, Copy)]
enum Place {
    Claims,
    Headers,
    Query,
}

struct Checker<'a> {
    info: &'a SourceInfo,
    found: Checked,
    /// The variables of the comprehensions around.
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
                Err(self.fault(expr, format!("there are no messages here, such as `{}`", message.type_name)))
            }
            Expr::Unspecified => Err(self.fault(expr, "there is nothing to evaluate here")),
        }
    }

    fn map_key(&mut self, key: &'a IdedExpr) -> Result<(), Fault> {
        let kind = self.kind(key)?;
        if kind.may_be(&[Text, Int, Uint, Bool]) {
            return Ok(());
        }
        Err(self.fault(key, format!("{} cannot be the key of a map", kind.one())))
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
                self.found.claims.all = true;
                Ok(Claims)
            }
            "now" => {
                self.found.now = true;
                Ok(Timestamp)
            }
            "request" => {
                Err(self
                    .fault(expr, format!("`request` is not a value of its own; it has {}", listed(&REQUEST))))
            }
            name if TYPES.contains(&name) => Ok(Type),
            name => Err(self.unknown_name(expr, name)),
        }
    }

    fn unknown_name(&self, expr: &IdedExpr, name: &str) -> Fault {
        if let Some(member) = REQUEST.iter().find(|member| **member == name) {
            return self.fault(expr, format!("`{name}` is not known; did you mean `request.{member}`?"));
        }
        let locals = self.locals.iter().map(|(local, _)| *local).filter(|local| !local.starts_with('@'));
        let hint = match nearest(name, VARIABLES.into_iter().chain(locals)) {
            Some(known) => format!("did you mean `{known}`?"),
            None => format!("there are {}", listed(&VARIABLES)),
        };
        self.fault(expr, format!("`{name}` is not known; {hint}"))
    }

    /// Notes one member as read, and says what it is.
    fn member(&mut self, expr: &IdedExpr, place: Place, name: &str) -> Result<Kind, Fault> {
        self.found.written.insert(name.to_owned());
        let (members, kind) = match place {
            Place::Claims => (&mut self.found.claims, Any),
            Place::Query => (&mut self.found.query, Text),
            Place::Headers => {
                let lower = name.to_ascii_lowercase();
                if name != lower {
                    return Err(self.fault(
                        expr,
                        format!("names of headers are lower case here: write `request.headers[\"{lower}\"]`"),
                    ));
                }
                (&mut self.found.headers, Text)
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
            self.found.written.insert(select.field.clone());
            match self.kind(&select.operand)? {
                Any | Map | Claims => Any,
                Texts => Text,
                other => {
                    return Err(self
                        .fault(expr, format!("{} has no members, such as `{}`", other.one(), select.field)));
                }
            }
        };
        Ok(if select.test { Bool } else { kind })
    }

    /// A member of `request`, read or asked for.
    fn request(&mut self, expr: &IdedExpr, field: &str, asked_for: bool) -> Result<Kind, Fault> {
        let Some(known) = REQUEST.iter().find(|member| **member == field) else {
            let hint = match nearest(field, REQUEST) {
                Some(near) => format!("did you mean `request.{near}`?"),
                None => format!("it has {}", listed(&REQUEST)),
            };
            return Err(self.fault(expr, format!("`request` has no `{field}`; {hint}")));
        };
        self.found.written.insert(field.to_owned());
        let members = match *known {
            "headers" => &mut self.found.headers,
            "query" => &mut self.found.query,
            other => {
                self.found.request.insert(other);
                return Ok(Text);
            }
        };
        // Whether the map is there says nothing of what is in it, but it has to be there.
        members.all |= !asked_for;
        self.found.request.insert(known);
        Ok(Texts)
    }

    fn call(&mut self, expr: &'a IdedExpr, call: &'a CallExpr) -> Result<Kind, Fault> {
        match (call.func_name.as_str(), &call.target, call.args.as_slice()) {
            (operators::INDEX, None, [whole, index]) => self.index(expr, whole, index),
            (operators::IN, None, [element, whole]) => self.is_in(expr, element, whole),
            (operators::CONDITIONAL, None, [condition, yes, no]) => {
                self.truth(condition, "? :")?;
                let (yes, no) = (self.kind(yes)?, self.kind(no)?);
                Ok(if yes == no { yes } else { Any })
            }
            (name @ (operators::LOGICAL_AND | operators::LOGICAL_OR), None, [left, right]) => {
                self.truth(left, sign(name))?;
                self.truth(right, sign(name))
            }
            (operators::LOGICAL_NOT | operators::NOT_STRICTLY_FALSE, None, [operand]) => {
                self.truth(operand, "!")
            }
            (operators::NEGATE, None, [operand]) => match self.kind(operand)? {
                kind @ (Any | Int | Double) => Ok(kind),
                kind => Err(self.fault(expr, format!("`-` does not go with {}", kind.one()))),
            },
            (name, None, [left, right]) if is_operator(name) => {
                self.note_compared([left, right]);
                let (left, right) = (self.kind(left)?, self.kind(right)?);
                binary(name, left, right).ok_or_else(|| {
                    self.fault(
                        expr,
                        format!("`{}` does not go with {} and {}", sign(name), left.one(), right.one()),
                    )
                })
            }
            _ => self.function(expr, call),
        }
    }

    /// An operand that has to be true or false.
    fn truth(&mut self, operand: &'a IdedExpr, sign: &str) -> Result<Kind, Fault> {
        let kind = self.kind(operand)?;
        if kind.may_be(&[Bool]) {
            return Ok(Bool);
        }
        Err(self
            .fault(operand, format!("`{sign}` goes with what is true or false, and this is {}", kind.one())))
    }

    fn index(&mut self, expr: &'a IdedExpr, whole: &'a IdedExpr, index: &'a IdedExpr) -> Result<Kind, Fault> {
        if let (Some(place), Some(name)) = (place(whole), text(index)) {
            return self.member(index, place, name);
        }
        if let Some(name) = text(index) {
            self.found.written.insert(name.to_owned());
        }
        let (kind, by) = (self.kind(whole)?, self.kind(index)?);
        let (takes, gives): (&[Kind], Kind) = match kind {
            Texts => (&[Text], Text),
            Claims => (&[Text], Any),
            List => (&[Int, Uint, Double], Any),
            Any | Map => (&[Text, Int, Uint, Double, Bool], Any),
            other => {
                return Err(self.fault(expr, format!("{} has no elements to take one from", other.one())));
            }
        };
        if by.may_be(takes) {
            return Ok(gives);
        }
        Err(self.fault(index, format!("{} has no element for {}", kind.one(), by.one())))
    }

    fn is_in(
        &mut self,
        expr: &'a IdedExpr,
        element: &'a IdedExpr,
        whole: &'a IdedExpr,
    ) -> Result<Kind, Fault> {
        if let (Some(place), Some(name)) = (place(whole), text(element)) {
            self.member(element, place, name)?;
            return Ok(Bool);
        }
        self.note_compared([element]);
        let kind = self.kind(element)?;
        if let Expr::List(list) = &whole.expr {
            for candidate in &list.elements {
                let other = self.kind(candidate)?;
                if !kind.comparable(other) {
                    return Err(self.fault(
                        candidate,
                        format!("{} is never equal to this, which is {}", kind.one(), other.one()),
                    ));
                }
            }
            return Ok(Bool);
        }
        match self.kind(whole)? {
            Any | List => Ok(Bool),
            Map if kind.may_be(&[Text, Int, Uint, Double, Bool]) => Ok(Bool),
            Texts | Claims if kind.may_be(&[Text]) => Ok(Bool),
            Text => Err(self.fault(expr, "`in` looks into lists and maps; a string has `.contains()`")),
            other => Err(self.fault(expr, format!("{} is never in {}", kind.one(), other.one()))),
        }
    }

    fn function(&mut self, expr: &'a IdedExpr, call: &'a CallExpr) -> Result<Kind, Fault> {
        let name = call.func_name.as_str();
        let of_style =
            |signature: &&Signature| signature.name == name && signature.method == call.target.is_some();
        if !SIGNATURES.iter().any(|signature| of_style(&signature)) {
            return Err(self.unknown_function(expr, call));
        }
        let arguments: Vec<&IdedExpr> = call.target.as_deref().into_iter().chain(&call.args).collect();
        let kinds = arguments.iter().map(|argument| self.kind(argument)).collect::<Result<Vec<_>, _>>()?;
        let of_count: Vec<&Signature> = SIGNATURES
            .iter()
            .filter(of_style)
            .filter(|signature| signature.takes.len() == kinds.len())
            .collect();
        let Some(first) = of_count.first() else {
            return Err(self.fault(expr, format!("`{name}` does not take that many arguments")));
        };
        for (place, (argument, kind)) in arguments.iter().zip(&kinds).enumerate() {
            let fits =
                |signature: &&Signature| signature.takes.get(place).is_some_and(|takes| kind.may_be(takes));
            if !of_count.iter().any(fits) {
                return Err(self.fault(argument, format!("`{name}` does not go with {}", kind.one())));
            }
        }
        self.written_out(expr, name, &arguments)?;
        if COMPARING.contains(&name) {
            self.note_compared(arguments.iter().copied());
        }
        Ok(first.gives)
    }

    /// Notes which of these are headers.
    fn note_compared<'e>(&mut self, operands: impl IntoIterator<Item = &'e IdedExpr>) {
        let names = operands.into_iter().filter_map(header).map(str::to_owned);
        self.found.compared_headers.extend(names);
    }

    /// What has to be written out, or is, is read now.
    fn written_out(&mut self, expr: &IdedExpr, name: &str, arguments: &[&IdedExpr]) -> Result<(), Fault> {
        match (name, arguments) {
            ("matches", [_, pattern]) => self.pattern(pattern),
            // The library ignores what follows a duration that it could read, so none is read late.
            ("duration", [argument]) if !text(argument).is_some_and(is_duration) => {
                Err(self.fault(argument, "a duration is written out, such as `duration(\"1h30m\")`"))
            }
            (_, [argument]) if CONVERSIONS.contains(&name) && matches!(argument.expr, Expr::Literal(_)) => {
                if constant(expr) {
                    return Ok(());
                }
                Err(self.fault(argument, format!("`{name}` cannot read this")))
            }
            _ => Ok(()),
        }
    }

    fn pattern(&mut self, pattern: &IdedExpr) -> Result<(), Fault> {
        let Some(text) = text(pattern) else {
            return Err(self.fault(pattern, "the pattern of `matches` is written out, as a string"));
        };
        let compiled = RegexBuilder::new(text)
            .size_limit(MAX_PATTERN_BYTES)
            .build()
            .map_err(|error| self.fault(pattern, unfit_pattern(&error)))?;
        if self.found.patterns.iter().all(|(known, _)| known != text) {
            self.found.patterns.push((text.to_owned(), compiled));
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
            Some(near) => format!("; did you mean `{near}`?"),
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
            other => return Err(self.fault(expr, format!("{} has no elements to go through", other.one()))),
        };
        let name = comprehension.iter_var.as_str();
        if name.starts_with('.') || VARIABLES.contains(&name) || TYPES.contains(&name) {
            return Err(self.fault(expr, format!("`{name}` is taken; name the element otherwise")));
        }
        if self.loops >= MAX_LOOPS {
            return Err(self.fault(expr, format!("more than {MAX_LOOPS} loops inside one another")));
        }
        let outside = self.locals.len();
        let accumulated = self.kind(&comprehension.accu_init)?;
        self.locals.push((&comprehension.accu_var, accumulated));
        self.locals.push((name, element));
        self.loops += 1;
        self.kind(&comprehension.loop_cond)?;
        self.kind(&comprehension.loop_step)?;
        self.loops -= 1;
        let result = self.kind(&comprehension.result);
        self.locals.truncate(outside);
        result
    }
}

/// The map that an expression names, not yet noted as read. No element of a loop has such a name.
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

/// The name of the header whose value this is.
fn header(expr: &IdedExpr) -> Option<&str> {
    match &expr.expr {
        Expr::Select(select) if !select.test => {
            matches!(place(&select.operand), Some(Place::Headers)).then_some(select.field.as_str())
        }
        Expr::Call(call) if call.func_name == operators::INDEX => match call.args.as_slice() {
            [whole, index] if matches!(place(whole), Some(Place::Headers)) => text(index),
            _ => None,
        },
        _ => None,
    }
}

fn is_request(expr: &IdedExpr) -> bool {
    matches!(&expr.expr, Expr::Ident(name) if name == "request")
}

/// A string that is written out.
fn text(expr: &IdedExpr) -> Option<&str> {
    match &expr.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

fn is_operator(name: &str) -> bool {
    name.starts_with('_')
}

/// An operator as it is written: the library knows it as `_==_`.
fn sign(name: &str) -> &str {
    name.trim_matches('_')
}

/// Whether the whole text is a duration: numbers with units, and a sign before all of them.
fn is_duration(text: &str) -> bool {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    if unsigned == "0" {
        return true;
    }
    let mut rest = unsigned;
    while !rest.is_empty() {
        let number = rest.trim_start_matches(|char: char| char.is_ascii_digit() || char == '.');
        let digits = rest.strip_suffix(number).unwrap_or_default();
        let behind = ["ns", "us", "ms", "h", "m", "s"].iter().find_map(|unit| number.strip_prefix(unit));
        match behind {
            Some(behind) if digits.parse::<f64>().is_ok() => rest = behind,
            _ => return false,
        }
    }
    !unsigned.is_empty()
}

fn unfit_pattern(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(_) => "this pattern is too large".to_owned(),
        // The library draws the place over several lines; the last one says what is wrong.
        other => {
            let text = other.to_string();
            let last = text.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
            format!("this is not a pattern: {last}")
        }
    }
}

fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The name that was probably meant.
fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(slips, candidate)| *slips <= (candidate.len() / 3).clamp(1, 2))
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, candidate)| candidate)
}
