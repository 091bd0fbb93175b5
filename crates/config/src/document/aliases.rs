//! Expands anchors, aliases and merge keys. Every use of an anchor gets a copy of its value, and the total size of
//! the copies of one document is limited.

use std::collections::{HashMap, HashSet};

use super::super::error::Position;
use super::{Member, Node, Value};

#[cfg(test)]
mod tests;

/// The most values and bytes of text in all copies of one document. A document of a few lines could otherwise
/// expand without limit.
const MAX_VALUES: usize = 100_000;
const MAX_BYTES: usize = 4 << 20;

/// The values with an anchor, by the number that the parser assigns: a redefined anchor has another number.
pub(super) struct Anchors {
    anchored: HashMap<usize, Node>,
    budget: Budget,
}

/// What may still be copied.
struct Budget {
    values: usize,
    bytes: usize,
}

/// Why an alias or an anchor is refused.
pub(super) enum Refusal {
    /// The alias is inside the value of its own anchor.
    Recursive,
    /// The copies exceed the limit.
    TooLarge,
}

impl Refusal {
    pub(super) fn message(&self) -> String {
        match self {
            Self::Recursive => {
                "this alias is inside the value of its own anchor: write the value itself".to_owned()
            }
            Self::TooLarge => format!(
                "anchors and aliases expand to more than {MAX_VALUES} values or {} MiB of text in \
                 this file: use fewer of them",
                MAX_BYTES >> 20
            ),
        }
    }
}

impl Default for Anchors {
    fn default() -> Self {
        Self { anchored: HashMap::new(), budget: Budget { values: MAX_VALUES, bytes: MAX_BYTES } }
    }
}

impl Anchors {
    /// Stores a copy of a value for later aliases. Number 0 means that there is no anchor.
    ///
    /// # Errors
    /// The copy exceeds the limit.
    pub(super) fn store(&mut self, anchor: usize, node: &Node) -> Result<(), Refusal> {
        if anchor != 0 {
            let copy = self.budget.copy(node, None)?;
            self.anchored.insert(anchor, copy);
        }
        Ok(())
    }

    /// The value of an alias in this line. The parser has seen its anchor.
    ///
    /// # Errors
    /// The alias is inside the value, or the copy exceeds the limit.
    pub(super) fn resolve(&mut self, anchor: usize, line: usize) -> Result<Node, Refusal> {
        let node = self.anchored.get(&anchor).ok_or(Refusal::Recursive)?;
        self.budget.copy(node, Some(line))
    }
}

impl Budget {
    /// A copy in which every value has the line of its alias. Of nested aliases the outer one is recorded: it is in
    /// the place where the value is used. The recursion is bounded by the document's depth.
    fn copy(&mut self, node: &Node, alias: Option<usize>) -> Result<Node, Refusal> {
        let place = |at: Position| Position { alias: alias.or(at.alias), ..at };
        self.values = self.values.checked_sub(1).ok_or(Refusal::TooLarge)?;
        let value = match &node.value {
            Value::Scalar { text, plain } => {
                self.charge(text)?;
                Value::Scalar { text: text.clone(), plain: *plain }
            }
            Value::Sequence(nodes) => {
                let copies: Result<Vec<Node>, Refusal> =
                    nodes.iter().map(|node| self.copy(node, alias)).collect();
                Value::Sequence(copies?)
            }
            Value::Mapping(members) => {
                let copy = |Member { key, at, node }: &Member| {
                    self.charge(key)?;
                    Ok(Member { key: key.clone(), at: place(*at), node: self.copy(node, alias)? })
                };
                let copies: Result<Vec<Member>, Refusal> = members.iter().map(copy).collect();
                Value::Mapping(copies?)
            }
            Value::Refused => Value::Refused,
        };
        Ok(Node { at: place(node.at), value })
    }

    fn charge(&mut self, text: &str) -> Result<(), Refusal> {
        self.bytes = self.bytes.checked_sub(text.len()).ok_or(Refusal::TooLarge)?;
        Ok(())
    }
}

/// The depth of nested collections.
pub(super) fn depth(node: &Node) -> usize {
    let inner = match &node.value {
        Value::Sequence(nodes) => nodes.iter().map(depth).max(),
        Value::Mapping(members) => members.iter().map(|member| depth(&member.node)).max(),
        Value::Scalar { .. } | Value::Refused => return 0,
    };
    inner.unwrap_or(0).saturating_add(1)
}

/// The members that `<<` adds to a mapping.
pub(super) struct Merge {
    /// The index of the mapping's own member before which it is written.
    pub(super) index: usize,
    pub(super) at: Position,
    pub(super) members: Vec<Member>,
}

impl Merge {
    /// Reads the value of a `<<`: a mapping, or a list of mappings. Of duplicate keys the first one applies.
    ///
    /// # Errors
    /// The position of another value.
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

    /// Inserts them at the position of the `<<`. The mapping's own keys take precedence.
    pub(super) fn into_mapping(self, own: &mut Vec<Member>) {
        let mut known: HashSet<String> = own.iter().map(|member| member.key.clone()).collect();
        let new = self.members.into_iter().filter(|member| known.insert(member.key.clone()));
        let index = self.index.min(own.len());
        own.splice(index..index, new);
    }
}
