//! Bounds the work of a condition for an input of a given size, from its expression.
//!
//! It is an upper bound, not an estimate: the evaluation of an accepted condition needs no further checks.

use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};

/// The largest input of any condition: the number of values, plus one for every [`TEXT_UNIT`] bytes of text.
pub(super) const MAX_INPUT: u64 = 10_000;

/// A condition that cannot take this much input is refused when it is loaded: ordinary tokens would not fit.
const MIN_INPUT: u64 = 200;

/// The most steps of one evaluation; each takes well under a microsecond.
const MAX_WORK: u64 = 1_000_000;

/// This many bytes of text count as one value, which is about the cost of comparing or copying them.
const TEXT_UNIT: usize = 16;

/// The size of a text, not counting the value itself.
pub(super) fn text_size(length: usize) -> u64 {
    u64::try_from(length / TEXT_UNIT).unwrap_or(u64::MAX)
}

/// The largest input for which the work is within its limit; `None` if that is below the minimum.
pub(super) fn largest_input(expr: &IdedExpr) -> Option<u64> {
    let fits = |input| Estimator { input, locals: Vec::new() }.bound(expr).work <= MAX_WORK;
    if !fits(MIN_INPUT) {
        return None;
    }
    let (mut largest, mut too_large) = (MIN_INPUT, MAX_INPUT + 1);
    while too_large - largest > 1 {
        let middle = largest.midpoint(too_large);
        if fits(middle) { largest = middle } else { too_large = middle }
    }
    Some(largest)
}

/// The maximum work of an expression and the maximum size of its value.
#[derive(Clone, Copy, Default)]
struct Bound {
    work: u64,
    size: u64,
}

impl Bound {
    fn and(self, other: Bound) -> Bound {
        Bound { work: self.work.saturating_add(other.work), size: self.size.saturating_add(other.size) }
    }

    fn times(self, count: u64) -> Bound {
        Bound { work: self.work.saturating_mul(count), size: self.size.saturating_mul(count) }
    }

    /// Adds one step, and one for each unit of the touched size.
    fn with_touched(self, touched: u64) -> Bound {
        Bound { work: self.work.saturating_add(touched).saturating_add(1), ..self }
    }

    fn of_size(self, size: u64) -> Bound {
        Bound { size, ..self }
    }
}

struct Estimator<'a> {
    /// The size of the whole input.
    input: u64,
    /// The variables of comprehensions with their sizes.
    locals: Vec<(&'a str, u64)>,
}

impl<'a> Estimator<'a> {
    fn bound(&mut self, expr: &'a IdedExpr) -> Bound {
        match &expr.expr {
            // The check refuses these.
            Expr::Unspecified | Expr::Struct(_) => Bound::default(),
            Expr::Literal(literal) => Bound { work: 1, size: literal_size(literal) },
            Expr::Ident(name) => {
                let local = self.locals.iter().rev().find(|(local, _)| local == name);
                Bound { work: 1, size: local.map_or(self.input.max(1), |(_, size)| *size) }
            }
            Expr::Select(select) => {
                let operand = self.bound(&select.operand).with_touched(0);
                if select.test { operand.of_size(1) } else { operand }
            }
            Expr::List(list) => self.copied(list.elements.iter()),
            Expr::Map(map) => self.copied(map.entries.iter().flat_map(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
                EntryExpr::StructField(field) => vec![&field.value],
            })),
            Expr::Call(call) => self.call(call),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
        }
    }

    /// A value that is made of copies of others.
    fn copied(&mut self, parts: impl Iterator<Item = &'a IdedExpr>) -> Bound {
        let parts = parts.fold(Bound::default(), |sum, part| sum.and(self.bound(part)));
        parts.with_touched(parts.size).and(Bound { work: 0, size: 1 })
    }

    fn call(&mut self, call: &'a CallExpr) -> Bound {
        let operands = call.target.as_deref().into_iter().chain(&call.args);
        let parts: Vec<Bound> = operands.map(|part| self.bound(part)).collect();
        let sum = parts.iter().copied().fold(Bound::default(), Bound::and);
        let sizes = || parts.iter().map(|part| part.size);
        match call.func_name.as_str() {
            operators::LOGICAL_AND
            | operators::LOGICAL_OR
            | operators::LOGICAL_NOT
            | operators::NOT_STRICTLY_FALSE => sum.with_touched(0).of_size(1),
            operators::CONDITIONAL => sum.with_touched(0).of_size(sizes().max().unwrap_or(1)),
            operators::EQUALS | operators::NOT_EQUALS => {
                sum.with_touched(sizes().min().unwrap_or(1)).of_size(1)
            }
            operators::IN => sum.with_touched(sizes().next_back().unwrap_or(1)).of_size(1),
            operators::INDEX => self.index(call, &parts, sum),
            operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS => {
                sum.with_touched(sum.size).of_size(1)
            }
            _ => sum.with_touched(sum.size).and(Bound { work: 0, size: 1 }),
        }
    }

    /// A literal string or integer index is constant time; a failing index copies the whole operand into its error.
    fn index(&self, call: &CallExpr, parts: &[Bound], sum: Bound) -> Bound {
        let operand_size = parts.first().map_or(1, |part| part.size);
        let is_literal = matches!(
            call.args.last().map(|index| &index.expr),
            Some(Expr::Literal(LiteralValue::String(_) | LiteralValue::Int(_)))
        );
        sum.with_touched(if is_literal { 0 } else { operand_size }).of_size(operand_size)
    }

    /// The elements of a range together are not larger than the range. So all steps together cost at most as much
    /// as if every step had the smallest element and one step had the whole range.
    fn comprehension(&mut self, comprehension: &'a ComprehensionExpr) -> Bound {
        let range = self.bound(&comprehension.iter_range);
        let smallest_step = self.step(comprehension, 1);
        let largest_step = self.step(comprehension, range.size);
        let steps = smallest_step.times(range.size).and(largest_step);
        let is_list = matches!(comprehension.accu_init.expr, Expr::List(_));
        let size = if is_list { steps.size } else { 1 };
        Bound { work: range.work, size: 0 }.and(steps).with_touched(0).of_size(size)
    }

    fn step(&mut self, comprehension: &'a ComprehensionExpr, element: u64) -> Bound {
        let before = self.locals.len();
        // The accumulator is not copied between steps; the caller adds up its size.
        self.locals.push((&comprehension.accu_var, 0));
        self.locals.push((&comprehension.iter_var, element));
        let condition = self.bound(&comprehension.loop_cond);
        let step = self.bound(&comprehension.loop_step);
        self.locals.truncate(before);
        Bound { work: condition.work, size: 0 }.and(step).with_touched(element)
    }
}

fn literal_size(literal: &LiteralValue) -> u64 {
    1 + match literal {
        LiteralValue::String(text) => text_size(text.inner().len()),
        LiteralValue::Bytes(bytes) => text_size(bytes.inner().len()),
        _ => 0,
    }
}
