//! The reader: from events to a tree, without recursion.
//!
//! Values wait on one stack, members on another, until their array or object ends and takes its own off the top:
//! each has exactly the room it needs, and a document that is refused half-way has cost no more than it had.

use json_event_parser::{JsonEvent, SliceJsonParser};

use super::{Json, JsonError, JsonLimits};

/// Below this many members a comparison each is cheaper than to sort them.
const FEW_MEMBERS: usize = 16;

/// `json_event_parser` skips it; RFC 8259 §8.1 lets nobody send one.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// An object or array that has begun: where its own begin on the stack of their kind.
enum Open {
    Array { from: usize },
    Object { from: usize },
}

struct Reader {
    left: usize,
    most_open: usize,
    open: Vec<Open>,
    elements: Vec<Json>,
    members: Vec<(Box<str>, Json)>,
    /// Names whose values have not ended yet, those of enclosing objects below.
    names: Vec<Box<str>>,
}

pub(super) fn read(bytes: &[u8], limits: &JsonLimits) -> Result<Json, JsonError> {
    if bytes.starts_with(BYTE_ORDER_MARK) {
        return Err(JsonError::NotJson);
    }
    let mut parser = SliceJsonParser::new(bytes);
    let mut reader = Reader {
        left: limits.values,
        most_open: limits.depth,
        open: Vec::new(),
        elements: Vec::new(),
        members: Vec::new(),
        names: Vec::new(),
    };
    let mut document = None;
    loop {
        match parser.parse_next().map_err(|_| JsonError::NotJson)? {
            JsonEvent::Eof => return document.ok_or(JsonError::NotJson),
            event => document = reader.take(event)?.or(document),
        }
    }
}

impl Reader {
    /// The document, once its last event has come.
    fn take(&mut self, event: JsonEvent<'_>) -> Result<Option<Json>, JsonError> {
        let value = match event {
            JsonEvent::StartArray => {
                return self.begin(Open::Array { from: self.elements.len() });
            }
            JsonEvent::StartObject => {
                return self.begin(Open::Object { from: self.members.len() });
            }
            JsonEvent::ObjectKey(name) => {
                self.names.push(name.into());
                return Ok(None);
            }
            JsonEvent::EndArray | JsonEvent::EndObject => self.end()?,
            JsonEvent::String(text) => Json::String(text.into()),
            JsonEvent::Number(digits) => Json::Number(digits.as_ref().into()),
            JsonEvent::Boolean(truth) => Json::Bool(truth),
            JsonEvent::Null => Json::Null,
            JsonEvent::Eof => return Err(JsonError::NotJson),
        };
        self.place(value)
    }

    fn begin(&mut self, opened: Open) -> Result<Option<Json>, JsonError> {
        if self.open.len() >= self.most_open {
            return Err(JsonError::TooDeep);
        }
        self.open.push(opened);
        Ok(None)
    }

    fn end(&mut self) -> Result<Json, JsonError> {
        match self.open.pop() {
            Some(Open::Array { from }) => Ok(Json::Array(self.elements.drain(from..).collect())),
            Some(Open::Object { from }) => {
                let members: Box<[(Box<str>, Json)]> = self.members.drain(from..).collect();
                if repeats_a_name(&members) { Err(JsonError::NotJson) } else { Ok(Json::Object(members)) }
            }
            None => Err(JsonError::NotJson),
        }
    }

    /// Puts a value where it belongs: into what is open, or out as the document.
    fn place(&mut self, value: Json) -> Result<Option<Json>, JsonError> {
        let Some(open) = self.open.last() else { return Ok(Some(value)) };
        self.left = self.left.checked_sub(1).ok_or(JsonError::TooManyValues)?;
        match open {
            Open::Array { .. } => self.elements.push(value),
            Open::Object { .. } => {
                let name = self.names.pop().ok_or(JsonError::NotJson)?;
                self.members.push((name, value));
            }
        }
        Ok(None)
    }
}

fn repeats_a_name(members: &[(Box<str>, Json)]) -> bool {
    if members.len() <= FEW_MEMBERS {
        let mut rest = members;
        while let Some(((name, _), others)) = rest.split_first() {
            if others.iter().any(|(other, _)| other == name) {
                return true;
            }
            rest = others;
        }
        return false;
    }
    // Sorted, since no choice of names makes that slow.
    let mut names: Vec<&str> = members.iter().map(|(name, _)| &**name).collect();
    names.sort_unstable();
    names.windows(2).any(|pair| matches!(pair, [a, b] if a == b))
}

#[cfg(test)]
mod tests;
