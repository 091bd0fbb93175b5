//! The parser: one pass from text to a tree, without recursion.
//!
//! Values are kept on one stack and members on another until their array or object ends and takes its own from the
//! top: each gets an allocation of exact size, and a document that is refused early costs only what was parsed.
//!
//! `serde_json` is not used: it provides the digits of a number only as raw text, which has to be scanned again for
//! each level, and an event-based parser was slower still. The tests compare this parser with `serde_json`.

mod scan;

use std::sync::Arc;

use ecow::EcoString;

use self::scan::Scan;
use super::{Json, JsonError, JsonLimits};

/// Up to this many members, comparing each pair is cheaper than sorting.
const FEW_MEMBERS: usize = 16;

pub(super) fn read(bytes: &[u8], limits: &JsonLimits) -> Result<Json, JsonError> {
    let text = std::str::from_utf8(bytes).map_err(|_| JsonError::NotJson)?;
    Reader::new(text, limits).document()
}

/// An open object or array, with the index of its first value on the stack.
enum Open {
    Array { from: usize },
    Object { from: usize },
}

struct Reader<'a> {
    scan: Scan<'a>,
    /// How many more members and elements are allowed.
    values_left: usize,
    depth: usize,
    open: Vec<Open>,
    elements: Vec<Json>,
    members: Vec<(EcoString, Json)>,
    /// Names of members without a value yet; those of enclosing objects are below.
    names: Vec<EcoString>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, limits: &JsonLimits) -> Self {
        Self {
            scan: Scan::new(text),
            values_left: limits.values,
            depth: limits.depth,
            open: Vec::new(),
            elements: Vec::new(),
            members: Vec::new(),
            names: Vec::new(),
        }
    }

    fn document(&mut self) -> Result<Json, JsonError> {
        loop {
            let Some(mut value) = self.begin_value()? else { continue };
            // The end of one value may also end the enclosing ones.
            loop {
                match self.end_value(value)? {
                    Ended::Document(document) => return Ok(document),
                    Ended::Parent(parent) => value = parent,
                    Ended::Nothing => break,
                }
            }
        }
    }

    /// A complete value, or `None` if an array or object has begun and its first value comes next.
    fn begin_value(&mut self) -> Result<Option<Json>, JsonError> {
        let value = match self.scan.after_space() {
            Some(b'[') => {
                self.open_collection(Open::Array { from: self.elements.len() })?;
                if !self.scan.consume_if(b']') {
                    return Ok(None);
                }
                self.close_collection()?
            }
            Some(b'{') => {
                self.open_collection(Open::Object { from: self.members.len() })?;
                if !self.scan.consume_if(b'}') {
                    self.name()?;
                    return Ok(None);
                }
                self.close_collection()?
            }
            Some(b'"') => Json::String(self.scan.string()?),
            Some(b't') => self.scan.literal("rue", Json::Bool(true))?,
            Some(b'f') => self.scan.literal("alse", Json::Bool(false))?,
            Some(b'n') => self.scan.literal("ull", Json::Null)?,
            Some(first @ (b'-' | b'0'..=b'9')) => Json::Number(self.scan.number(first)?.into()),
            _ => return Err(JsonError::NotJson),
        };
        Ok(Some(value))
    }

    fn open_collection(&mut self, collection: Open) -> Result<(), JsonError> {
        if self.open.len() >= self.depth {
            return Err(JsonError::TooDeep);
        }
        self.open.push(collection);
        Ok(())
    }

    fn name(&mut self) -> Result<(), JsonError> {
        if self.scan.after_space() != Some(b'"') {
            return Err(JsonError::NotJson);
        }
        self.names.push(self.scan.string()?);
        match self.scan.after_space() {
            Some(b':') => Ok(()),
            _ => Err(JsonError::NotJson),
        }
    }

    /// Stores a value in its parent, and reads on to the next value or to the end of the parent.
    fn end_value(&mut self, value: Json) -> Result<Ended, JsonError> {
        let in_object = match self.open.last() {
            None if self.scan.after_space().is_none() => return Ok(Ended::Document(value)),
            None => return Err(JsonError::NotJson),
            Some(Open::Array { .. }) => false,
            Some(Open::Object { .. }) => true,
        };
        self.values_left = self.values_left.checked_sub(1).ok_or(JsonError::TooManyValues)?;
        if in_object {
            let name = self.names.pop().ok_or(JsonError::NotJson)?;
            self.members.push((name, value));
        } else {
            self.elements.push(value);
        }
        match (self.scan.after_space(), in_object) {
            (Some(b','), true) => self.name().map(|()| Ended::Nothing),
            (Some(b','), false) => Ok(Ended::Nothing),
            (Some(b'}'), true) | (Some(b']'), false) => self.close_collection().map(Ended::Parent),
            _ => Err(JsonError::NotJson),
        }
    }

    fn close_collection(&mut self) -> Result<Json, JsonError> {
        match self.open.pop() {
            Some(Open::Array { from }) => Ok(Json::Array(self.elements.drain(from..).collect())),
            Some(Open::Object { from }) => {
                let members: Arc<[(EcoString, Json)]> = self.members.drain(from..).collect();
                if has_repeated_name(&members) { Err(JsonError::NotJson) } else { Ok(Json::Object(members)) }
            }
            None => Err(JsonError::NotJson),
        }
    }
}

/// What the end of a value completed.
enum Ended {
    /// Nothing: another value follows.
    Nothing,
    /// The enclosing array or object.
    Parent(Json),
    /// The document: there is no parent, and nothing follows.
    Document(Json),
}

fn has_repeated_name(members: &[(EcoString, Json)]) -> bool {
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
    // Sorting is fast for every choice of names.
    let mut names: Vec<&str> = members.iter().map(|(name, _)| &**name).collect();
    names.sort_unstable();
    names.windows(2).any(|pair| matches!(pair, [a, b] if a == b))
}

#[cfg(test)]
mod tests;
