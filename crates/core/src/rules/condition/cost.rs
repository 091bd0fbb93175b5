//! How much work a condition can make of an input of a given size, found on its text alone.
//!
//! An upper bound, never an estimate: what it lets pass is evaluated without a further look.

use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};

/// The largest input that any condition takes: values, and one more for every [`TEXT_UNIT`] bytes of text.
pub(super) const MAX_INPUT: u64 = 10_000;

/// A condition that cannot take this much is refused when it is loaded: ordinary tokens would not fit.
const MIN_INPUT: u64 = 200;

/// Steps that one evaluation may take, each of them well under a microsecond.
const MAX_WORK: u64 = 1_000_000;

/// This many bytes of text count as one value: that is about what comparing or copying them costs.
const TEXT_UNIT: usize = 16;

/// The size of a text, beyond the value that it is.
pub(super) fn text_size(length: usize) -> u64 {
    u64::try_from(length / TEXT_UNIT).unwrap_or(u64::MAX)
}

/// The largest input on which the condition stays within its work; `None` where that is too little.
pub(super) fn largest_input(expr: &IdedExpr) -> Option<u64> {
    let fits = |input| Walk { input, locals: Vec::new() }.bound(expr).work <= MAX_WORK;
    if !fits(MIN_INPUT) {
        return None;
    }
    let (mut fitting, mut beyond) = (MIN_INPUT, MAX_INPUT + 1);
    while beyond - fitting > 1 {
        let middle = fitting.midpoint(beyond);
        if fits(middle) { fitting = middle } else { beyond = middle }
    }
    Some(fitting)
}

/// The most that an expression can cost, and the most that its value can hold.
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

    /// One step more, and one for each unit of what it touches.
    fn touching(self, touched: u64) -> Bound {
        Bound { work: self.work.saturating_add(touched).saturating_add(1), ..self }
    }

    fn of_size(self, size: u64) -> Bound {
        Bound { size, ..self }
    }
}

struct Walk<'a> {
    /// The size of everything that the condition is asked about, taken together.
    input: u64,
    /// The variables of comprehensions with their sizes.
    locals: Vec<(&'a str, u64)>,
}

impl<'a> Walk<'a> {
    fn bound(&mut self, expr: &'a IdedExpr) -> Bound {
        match &expr.expr {
            // The check has refused these.
            Expr::Unspecified | Expr::Struct(_) => Bound::default(),
            Expr::Literal(literal) => Bound { work: 1, size: literal_size(literal) },
            Expr::Ident(name) => {
                let local = self.locals.iter().rev().find(|(local, _)| local == name);
                Bound { work: 1, size: local.map_or(self.input.max(1), |(_, size)| *size) }
            }
            Expr::Select(select) => {
                let operand = self.bound(&select.operand).touching(0);
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

    /// A value made of copies of others.
    fn copied(&mut self, parts: impl Iterator<Item = &'a IdedExpr>) -> Bound {
        let parts = parts.fold(Bound::default(), |sum, part| sum.and(self.bound(part)));
        parts.touching(parts.size).and(Bound { work: 0, size: 1 })
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
            | operators::NOT_STRICTLY_FALSE => sum.touching(0).of_size(1),
            operators::CONDITIONAL => sum.touching(0).of_size(sizes().max().unwrap_or(1)),
            operators::EQUALS | operators::NOT_EQUALS => sum.touching(sizes().min().unwrap_or(1)).of_size(1),
            operators::IN => sum.touching(sizes().next_back().unwrap_or(1)).of_size(1),
            operators::INDEX => self.index(call, &parts, sum),
            operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS => {
                sum.touching(sum.size).of_size(1)
            }
            _ => sum.touching(sum.size).and(Bound { work: 0, size: 1 }),
        }
    }

    /// By a string or an integer that is written out an element is found at once; what fails to index
    /// copies the whole into its error.
    fn index(&self, call: &CallExpr, parts: &[Bound], sum: Bound) -> Bound {
        let whole = parts.first().map_or(1, |part| part.size);
        let at_once = matches!(
            call.args.last().map(|index| &index.expr),
            Some(Expr::Literal(LiteralValue::String(_) | LiteralValue::Int(_)))
        );
        sum.touching(if at_once { 0 } else { whole }).of_size(whole)
    }

    /// The elements of a range together are no larger than the range. So the steps together cost no more
    /// than if all of them had the smallest element and one had everything.
    fn comprehension(&mut self, comprehension: &'a ComprehensionExpr) -> Bound {
        let range = self.bound(&comprehension.iter_range);
        let smallest = self.step(comprehension, 1);
        let everything = self.step(comprehension, range.size);
        let steps = smallest.times(range.size).and(everything);
        let collects = matches!(comprehension.accu_init.expr, Expr::List(_));
        let size = if collects { steps.size } else { 1 };
        Bound { work: range.work, size: 0 }.and(steps).touching(0).of_size(size)
    }

    fn step(&mut self, comprehension: &'a ComprehensionExpr, element: u64) -> Bound {
        let before = self.locals.len();
        // What is collected is not copied from step to step; its size is summed up by the caller.
        self.locals.push((&comprehension.accu_var, 0));
        self.locals.push((&comprehension.iter_var, element));
        let condition = self.bound(&comprehension.loop_cond);
        let step = self.bound(&comprehension.loop_step);
        self.locals.truncate(before);
        Bound { work: condition.work, size: 0 }.and(step).touching(element)
    }
}

fn literal_size(literal: &LiteralValue) -> u64 {
    1 + match literal {
        LiteralValue::String(text) => text_size(text.inner().len()),
        LiteralValue::Bytes(bytes) => text_size(bytes.inner().len()),
        _ => 0,
    }
}
