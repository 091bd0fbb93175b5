//! The reader: one pass from text to a tree, without recursion.
//!
//! Values wait on one stack, members on another, until their array or object ends and takes its own off the top:
//! each has exactly the room it needs, and a document that is refused half-way has cost no more than it had.
//!
//! It is our own: `serde_json` gives a number's digits only as raw text, which has to be scanned again for each
//! level, and a reader of events that was tried costs more than that. The tests hold it against `serde_json`.

mod scan;

use self::scan::Scan;
use super::{Json, JsonError, JsonLimits};

/// Below this many members a comparison each is cheaper than to sort them.
const FEW_MEMBERS: usize = 16;

pub(super) fn read(bytes: &[u8], limits: &JsonLimits) -> Result<Json, JsonError> {
    let text = std::str::from_utf8(bytes).map_err(|_| JsonError::NotJson)?;
    Reader::new(text, limits).document()
}

/// An object or array that has begun: where its own begin on the stack of their kind.
enum Open {
    Array { from: usize },
    Object { from: usize },
}

struct Reader<'a> {
    scan: Scan<'a>,
    /// How many more members and elements may come.
    left: usize,
    depth: usize,
    open: Vec<Open>,
    elements: Vec<Json>,
    members: Vec<(Box<str>, Json)>,
    /// Names whose values have not ended yet, those of enclosing objects below.
    names: Vec<Box<str>>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, limits: &JsonLimits) -> Self {
        Self {
            scan: Scan::new(text),
            left: limits.values,
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
            // One value's end may be the end of those around it.
            loop {
                match self.end_value(value)? {
                    Ended::Document(document) => return Ok(document),
                    Ended::Around(around) => value = around,
                    Ended::Nothing => break,
                }
            }
        }
    }

    /// A whole value, or `None` where an array or object has begun and its first value comes next.
    fn begin_value(&mut self) -> Result<Option<Json>, JsonError> {
        let value = match self.scan.after_space() {
            Some(b'[') => {
                self.begin(Open::Array { from: self.elements.len() })?;
                if !self.scan.take_if(b']') {
                    return Ok(None);
                }
                self.end()?
            }
            Some(b'{') => {
                self.begin(Open::Object { from: self.members.len() })?;
                if !self.scan.take_if(b'}') {
                    self.name()?;
                    return Ok(None);
                }
                self.end()?
            }
            Some(b'"') => Json::String(self.scan.string()?),
            Some(b't') => self.scan.word("rue", Json::Bool(true))?,
            Some(b'f') => self.scan.word("alse", Json::Bool(false))?,
            Some(b'n') => self.scan.word("ull", Json::Null)?,
            Some(first @ (b'-' | b'0'..=b'9')) => Json::Number(self.scan.number(first)?.into()),
            _ => return Err(JsonError::NotJson),
        };
        Ok(Some(value))
    }

    fn begin(&mut self, opened: Open) -> Result<(), JsonError> {
        if self.open.len() >= self.depth {
            return Err(JsonError::TooDeep);
        }
        self.open.push(opened);
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

    /// Puts a value where it belongs, and reads on to the next one or to the end of what is around it.
    fn end_value(&mut self, value: Json) -> Result<Ended, JsonError> {
        let in_object = match self.open.last() {
            None if self.scan.after_space().is_none() => return Ok(Ended::Document(value)),
            None => return Err(JsonError::NotJson),
            Some(Open::Array { .. }) => false,
            Some(Open::Object { .. }) => true,
        };
        self.left = self.left.checked_sub(1).ok_or(JsonError::TooManyValues)?;
        if in_object {
            let name = self.names.pop().ok_or(JsonError::NotJson)?;
            self.members.push((name, value));
        } else {
            self.elements.push(value);
        }
        match (self.scan.after_space(), in_object) {
            (Some(b','), true) => self.name().map(|()| Ended::Nothing),
            (Some(b','), false) => Ok(Ended::Nothing),
            (Some(b'}'), true) | (Some(b']'), false) => self.end().map(Ended::Around),
            _ => Err(JsonError::NotJson),
        }
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
}

/// What ended with a value.
enum Ended {
    /// Nothing: another value follows.
    Nothing,
    /// The array or object around it.
    Around(Json),
    /// The document: there was nothing around it, and nothing follows.
    Document(Json),
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
