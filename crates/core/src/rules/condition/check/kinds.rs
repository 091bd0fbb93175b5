//! The static kinds of values, and the operators and functions that accept them.

use std::fmt;

use cel::common::ast::{LiteralValue, operators};

/// The static kind of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Any kind: known only during evaluation.
    Any,
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Null,
    List,
    Map,
    /// A map from text to text: headers, query parameters.
    Texts,
    /// A map from text to anything: the claims.
    Claims,
    Timestamp,
    Duration,
    Type,
}

pub(super) use Kind::{
    Any, Bool, Bytes, Claims, Double, Duration, Int, List, Map, Null, Text, Texts, Timestamp, Type, Uint,
};

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Any => "dyn",
            Bool => "bool",
            Int => "int",
            Uint => "uint",
            Double => "double",
            Text => "string",
            Bytes => "bytes",
            Null => "null",
            List => "list",
            Map | Texts | Claims => "map",
            Timestamp => "timestamp",
            Duration => "duration",
            Type => "type",
        })
    }
}

impl Kind {
    /// The kind with its article.
    pub(super) fn with_article(self) -> String {
        format!("{} {self}", if self == Int { "an" } else { "a" })
    }

    pub(super) fn is_map(self) -> bool {
        matches!(self, Map | Texts | Claims)
    }

    pub(super) fn is_number(self) -> bool {
        matches!(self, Int | Uint | Double)
    }

    /// Whether it is, or may be, one of these.
    pub(super) fn may_be(self, kinds: &[Kind]) -> bool {
        self == Any || kinds.contains(&self)
    }

    /// Whether `==` can be true between them.
    pub(super) fn comparable(self, other: Kind) -> bool {
        self == Any
            || other == Any
            || self == other
            || (self.is_number() && other.is_number())
            || (self.is_map() && other.is_map())
    }
}

/// A signature of a function; the receiver of a method is its first argument.
pub(super) struct Signature {
    pub(super) name: &'static str,
    pub(super) method: bool,
    pub(super) takes: &'static [&'static [Kind]],
    pub(super) returns: Kind,
}

const fn function(name: &'static str, takes: &'static [&'static [Kind]], returns: Kind) -> Signature {
    Signature { name, method: false, takes, returns }
}

const fn method(name: &'static str, takes: &'static [&'static [Kind]], returns: Kind) -> Signature {
    Signature { name, method: true, takes, returns }
}

const SIZED: &[Kind] = &[Text, Bytes, List, Map, Texts, Claims];
const ANYTHING: &[Kind] =
    &[Bool, Int, Uint, Double, Text, Bytes, Null, List, Map, Texts, Claims, Timestamp, Duration, Type];
const TEXT: &[Kind] = &[Text];
const TIME: &[Kind] = &[Timestamp];
const TIMES: &[Kind] = &[Timestamp, Duration];

pub(super) const SIGNATURES: [Signature; 37] = [
    function("size", &[SIZED], Int),
    method("size", &[SIZED], Int),
    method("contains", &[TEXT, TEXT], Bool),
    method("startsWith", &[TEXT, TEXT], Bool),
    method("endsWith", &[TEXT, TEXT], Bool),
    method("matches", &[TEXT, TEXT], Bool),
    function("matches", &[TEXT, TEXT], Bool),
    function("bool", &[&[Bool, Text]], Bool),
    function("bytes", &[&[Bytes, Text]], Bytes),
    function("double", &[&[Double, Int, Uint, Text]], Double),
    function("int", &[&[Int, Uint, Double, Text, Timestamp]], Int),
    function("uint", &[&[Uint, Int, Double, Text]], Uint),
    function("string", &[&[Text, Bool, Int, Uint, Double, Bytes, Timestamp, Duration]], Text),
    function("timestamp", &[&[Timestamp, Text, Int]], Timestamp),
    function("duration", &[&[Duration, Text]], Duration),
    function("type", &[ANYTHING], Type),
    function("dyn", &[ANYTHING], Any),
    method("getFullYear", &[TIME], Int),
    method("getFullYear", &[TIME, TEXT], Int),
    method("getMonth", &[TIME], Int),
    method("getMonth", &[TIME, TEXT], Int),
    method("getDayOfYear", &[TIME], Int),
    method("getDayOfYear", &[TIME, TEXT], Int),
    method("getDayOfMonth", &[TIME], Int),
    method("getDayOfMonth", &[TIME, TEXT], Int),
    method("getDate", &[TIME], Int),
    method("getDate", &[TIME, TEXT], Int),
    method("getDayOfWeek", &[TIME], Int),
    method("getDayOfWeek", &[TIME, TEXT], Int),
    method("getHours", &[TIMES], Int),
    method("getHours", &[TIME, TEXT], Int),
    method("getMinutes", &[TIMES], Int),
    method("getMinutes", &[TIME, TEXT], Int),
    method("getSeconds", &[TIMES], Int),
    method("getSeconds", &[TIME, TEXT], Int),
    method("getMilliseconds", &[TIMES], Int),
    method("getMilliseconds", &[TIME, TEXT], Int),
];

pub(super) fn literal_kind(literal: &LiteralValue) -> Kind {
    match literal {
        LiteralValue::Boolean(_) => Bool,
        LiteralValue::Bytes(_) => Bytes,
        LiteralValue::Double(_) => Double,
        LiteralValue::Int(_) => Int,
        LiteralValue::Null => Null,
        LiteralValue::String(_) => Text,
        LiteralValue::UInt(_) => Uint,
    }
}

/// The kind of an operator's result; `None` if the operator always fails.
pub(super) fn binary(name: &str, left: Kind, right: Kind) -> Option<Kind> {
    match name {
        operators::EQUALS | operators::NOT_EQUALS => left.comparable(right).then_some(Bool),
        operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS => {
            let ordered = [Bool, Int, Uint, Double, Text, Bytes, Timestamp, Duration];
            (left.may_be(&ordered) && right.may_be(&ordered) && left.comparable(right)).then_some(Bool)
        }
        operators::ADD => match (left, right) {
            (Timestamp, Duration | Any) | (Duration | Any, Timestamp) => Some(Timestamp),
            (Duration, Any) | (Any, Duration) => Some(Any),
            _ => same(left, right, &[Int, Uint, Double, Text, Bytes, List, Duration]),
        },
        operators::SUBSTRACT => match (left, right) {
            (Timestamp, Timestamp) | (Any, Timestamp) => Some(Duration),
            (Timestamp, Duration) => Some(Timestamp),
            (Timestamp | Any, Any) | (Any, Duration) => Some(Any),
            _ => same(left, right, &[Int, Uint, Double, Duration]),
        },
        operators::MULTIPLY | operators::DIVIDE => same(left, right, &[Int, Uint, Double]),
        operators::MODULO => same(left, right, &[Int, Uint]),
        _ => None,
    }
}

/// The common kind, if it is one of these.
fn same(left: Kind, right: Kind, kinds: &[Kind]) -> Option<Kind> {
    let fits = left.may_be(kinds) && right.may_be(kinds) && (left == right || left == Any || right == Any);
    fits.then_some(if left == Any { right } else { left })
}
