//! What anchors, aliases and merge keys stand for: values that are written once and count in several
//! places. Each place gets a copy, and the copies of one document are bounded together.

use std::collections::{HashMap, HashSet};

use super::super::error::Position;
use super::{Member, Node, Value};

#[cfg(test)]
mod tests;

/// The copies of one document may have this many values, and this many bytes of text. A document of a few
/// lines could otherwise stand for more than any memory holds.
const MAX_VALUES: usize = 100_000;
const MAX_BYTES: usize = 4 << 20;

/// The values that have an anchor, by the number that the parser gives it: an anchor whose name is used a second
/// time has another.
pub(super) struct Anchors {
    written: HashMap<usize, Node>,
    budget: Budget,
}

/// What may still be copied.
struct Budget {
    values: usize,
    bytes: usize,
}

/// What is wrong with an alias, or with the anchor that is one too many.
pub(super) enum Refusal {
    /// Its value has not ended: it stands inside of it.
    Encloses,
    /// The copies would be more than the bound.
    TooMuch,
}

impl Refusal {
    pub(super) fn message(&self) -> String {
        match self {
            Self::Encloses => {
                "this alias stands inside of the value that it means: write the value itself".to_owned()
            }
            Self::TooMuch => format!(
                "with this, what anchors and aliases stand for is more than {MAX_VALUES} values or {} MiB of text in \
                 this file: use fewer of them",
                MAX_BYTES >> 20
            ),
        }
    }
}

impl Default for Anchors {
    fn default() -> Self {
        Self { written: HashMap::new(), budget: Budget { values: MAX_VALUES, bytes: MAX_BYTES } }
    }
}

impl Anchors {
    /// Keeps a copy of a value for the aliases to come. Nothing is kept without an anchor, which is number 0.
    ///
    /// # Errors
    /// The copy is more than the bound.
    pub(super) fn keep(&mut self, anchor: usize, node: &Node) -> Result<(), Refusal> {
        if anchor != 0 {
            let copy = self.budget.copy(node, None)?;
            self.written.insert(anchor, copy);
        }
        Ok(())
    }

    /// The value that an alias in this line stands for. The parser has seen its anchor.
    ///
    /// # Errors
    /// The value encloses the alias, or the copy is more than the bound.
    pub(super) fn meant(&mut self, anchor: usize, line: usize) -> Result<Node, Refusal> {
        let node = self.written.get(&anchor).ok_or(Refusal::Encloses)?;
        self.budget.copy(node, Some(line))
    }
}

impl Budget {
    /// A copy whose every value says which line's alias it is by. Of an alias within an alias the outer one counts: it is
    /// the one that stands where the value is used. Values within values are no more than the document's depth.
    fn copy(&mut self, node: &Node, alias: Option<usize>) -> Result<Node, Refusal> {
        let place = |at: Position| Position { alias: alias.or(at.alias), ..at };
        self.values = self.values.checked_sub(1).ok_or(Refusal::TooMuch)?;
        let value = match &node.value {
            Value::Scalar { text, plain } => {
                self.take(text)?;
                Value::Scalar { text: text.clone(), plain: *plain }
            }
            Value::Sequence(nodes) => {
                let copies: Result<Vec<Node>, Refusal> =
                    nodes.iter().map(|node| self.copy(node, alias)).collect();
                Value::Sequence(copies?)
            }
            Value::Mapping(members) => {
                let copy = |Member { key, at, node }: &Member| {
                    self.take(key)?;
                    Ok(Member { key: key.clone(), at: place(*at), node: self.copy(node, alias)? })
                };
                let copies: Result<Vec<Member>, Refusal> = members.iter().map(copy).collect();
                Value::Mapping(copies?)
            }
            Value::Refused => Value::Refused,
        };
        Ok(Node { at: place(node.at), value })
    }

    fn take(&mut self, text: &str) -> Result<(), Refusal> {
        self.bytes = self.bytes.checked_sub(text.len()).ok_or(Refusal::TooMuch)?;
        Ok(())
    }
}

/// How many collections stand within one another here.
pub(super) fn depth(node: &Node) -> usize {
    let within = match &node.value {
        Value::Sequence(nodes) => nodes.iter().map(depth).max(),
        Value::Mapping(members) => members.iter().map(|member| depth(&member.node)).max(),
        Value::Scalar { .. } | Value::Refused => return 0,
    };
    within.unwrap_or(0).saturating_add(1)
}

/// What `<<` brings into a mapping.
pub(super) struct Merge {
    /// Before which of the mapping's own members it stands.
    pub(super) index: usize,
    pub(super) at: Position,
    pub(super) members: Vec<Member>,
}

impl Merge {
    /// Of the value of a `<<`: a mapping, or a list of mappings. A key that several have counts as the first has it.
    ///
    /// # Errors
    /// Where something else stands.
    pub(super) fn of(index: usize, at: Position, node: Node) -> Result<Self, Position> {
        let mappings = match node.value {
            Value::Sequence(nodes) => nodes,
            _ => vec![node],
        };
        let mut members = Vec::new();
        for Node { at, value } in mappings {
            match value {
                Value::Mapping(more) => members.extend(more),
                // Reported already.
                Value::Refused => {}
                Value::Scalar { .. } | Value::Sequence(_) => return Err(at),
            }
        }
        Ok(Self { index, at, members })
    }

    /// Puts them where the `<<` stands. The mapping's own keys win.
    pub(super) fn into_mapping(self, own: &mut Vec<Member>) {
        let mut known: HashSet<String> = own.iter().map(|member| member.key.clone()).collect();
        let new = self.members.into_iter().filter(|member| known.insert(member.key.clone()));
        let index = self.index.min(own.len());
        own.splice(index..index, new);
    }
}
