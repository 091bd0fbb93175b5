//! The forms of configuration values.

use std::fmt::Display;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::cursor::{Cursor, Read, show_duration};
use super::section::{Form, FormDescription, Section};
use super::yaml::Yaml;

/// A reference to an environment variable.
const VARIABLE: &str = r"\$\{";

/// YAML numbers and booleans are accepted as text.
pub(super) fn text_schema() -> Value {
    json!({"type": ["string", "number", "boolean"]})
}

/// `true` or `false`.
pub(super) struct Flag;

impl Form for Flag {
    type Value = bool;

    fn read(&self, cursor: &Cursor<'_>) -> Read<bool> {
        cursor.boolean()
    }

    fn print(&self, value: &bool) -> Yaml {
        Yaml::word(value)
    }

    fn describe(&self) -> FormDescription {
        let schema = json!({"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": VARIABLE}]});
        FormDescription::new("`true` or `false`", schema)
    }
}

/// A duration with a unit, within limits.
pub(super) struct Time {
    pub(super) min: Duration,
    pub(super) max: Duration,
}

impl Form for Time {
    type Value = Duration;

    fn read(&self, cursor: &Cursor<'_>) -> Read<Duration> {
        cursor.duration(self.min, self.max)
    }

    fn print(&self, value: &Duration) -> Yaml {
        Yaml::word(show_duration(*value))
    }

    fn describe(&self) -> FormDescription {
        let (min, max) = (show_duration(self.min), show_duration(self.max));
        let schema = json!({"type": "string", "pattern": format!(r"^[0-9]+ *(ms|s|m|h)$|{VARIABLE}")});
        FormDescription::new(format!("a duration, {min} to {max}"), schema)
    }
}

/// A size in bytes, within limits.
pub(super) struct Size {
    pub(super) min: usize,
    pub(super) max: usize,
}

impl Form for Size {
    type Value = usize;

    fn read(&self, cursor: &Cursor<'_>) -> Read<usize> {
        cursor.bytes(self.min, self.max)
    }

    fn print(&self, value: &usize) -> Yaml {
        Yaml::word(show_size(*value))
    }

    fn describe(&self) -> FormDescription {
        let (min, max) = (show_size(self.min), show_size(self.max));
        let schema = json!({"anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": format!(r"^[0-9]+ *(B|KiB|MiB|GiB)?$|{VARIABLE}")},
        ]});
        FormDescription::new(format!("a size, {min} to {max}"), schema)
    }
}

/// A size in the largest unit without a fraction; it is parsed as the same value.
fn show_size(bytes: usize) -> String {
    let units = [("GiB", 1_usize << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = units.into_iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{bytes}B"), |(name, unit)| format!("{}{name}", bytes / unit))
}

/// An integer, within limits.
pub(super) struct Count {
    pub(super) min: u32,
    pub(super) max: u32,
}

impl Form for Count {
    type Value = usize;

    fn read(&self, cursor: &Cursor<'_>) -> Read<usize> {
        cursor.count(self.min, self.max)
    }

    fn print(&self, value: &usize) -> Yaml {
        Yaml::word(value)
    }

    fn describe(&self) -> FormDescription {
        let Self { min, max } = self;
        let schema = json!({"anyOf": [
            {"type": "integer", "minimum": min, "maximum": max},
            {"type": "string", "pattern": VARIABLE},
        ]});
        FormDescription::new(format!("a number, {min} to {max}"), schema)
    }
}

/// One of several words.
pub(super) struct Choice<T: 'static>(pub(super) &'static [(&'static str, T)]);

impl<T: Clone + PartialEq> Form for Choice<T> {
    type Value = T;

    fn read(&self, cursor: &Cursor<'_>) -> Read<T> {
        cursor.one_of(self.0)
    }

    fn print(&self, value: &T) -> Yaml {
        let named = self.0.iter().find(|(_, known)| known == value);
        Yaml::word(named.map_or("", |(name, _)| name))
    }

    fn describe(&self) -> FormDescription {
        let names: Vec<&str> = self.0.iter().map(|(name, _)| *name).collect();
        let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        let summary = match quoted.as_slice() {
            [only] => only.clone(),
            several => format!("one of {}", several.join(", ")),
        };
        FormDescription::new(summary, json!({"enum": names}))
    }
}

/// A text with a parser and a formatter.
pub(super) struct Text<T> {
    pub(super) read: fn(&Cursor<'_>) -> Read<T>,
    pub(super) show: fn(&T) -> String,
    /// A short description.
    pub(super) summary: &'static str,
}

impl<T> Form for Text<T> {
    type Value = T;

    fn read(&self, cursor: &Cursor<'_>) -> Read<T> {
        (self.read)(cursor)
    }

    fn print(&self, value: &T) -> Yaml {
        Yaml::text((self.show)(value))
    }

    fn describe(&self) -> FormDescription {
        FormDescription::new(self.summary, text_schema())
    }
}

/// The formatter of most values.
pub(super) fn shown<T: Display>(value: &T) -> String {
    value.to_string()
}

/// Any text.
pub(super) const fn any_text(summary: &'static str) -> Text<String> {
    Text { read: |cursor| cursor.text(), show: shown, summary }
}

/// A file, which has to be readable.
pub(super) const FILE: Text<PathBuf> =
    Text { read: |cursor| cursor.file(), show: |path| path.display().to_string(), summary: "a file" };

/// A section.
pub(super) struct Sub<S>(PhantomData<S>);

impl<S> Sub<S> {
    pub(super) const NEW: Self = Self(PhantomData);
}

impl<S: Section> Form for Sub<S> {
    type Value = S;

    fn read(&self, cursor: &Cursor<'_>) -> Read<S> {
        S::read(cursor)
    }

    fn print(&self, value: &S) -> Yaml {
        Yaml::Mapping(value.print())
    }

    fn describe(&self) -> FormDescription {
        FormDescription {
            summary: format!("[{}](#{})", S::NAME, S::NAME.to_ascii_lowercase()),
            schema: json!({"$ref": format!("#/$defs/{}", S::NAME)}),
            sections: vec![S::description()],
        }
    }
}

/// A section, or one text instead of it.
pub(super) struct Short<S> {
    /// Reads the text.
    pub(super) read: fn(&Cursor<'_>) -> Read<S>,
    /// A short description of the text.
    pub(super) summary: &'static str,
}

impl<S: Section> Form for Short<S> {
    type Value = S;

    fn read(&self, cursor: &Cursor<'_>) -> Read<S> {
        if cursor.is_mapping() { S::read(cursor) } else { (self.read)(cursor) }
    }

    fn print(&self, value: &S) -> Yaml {
        Yaml::Mapping(value.print())
    }

    fn describe(&self) -> FormDescription {
        let section = Sub::<S>::NEW.describe();
        FormDescription {
            summary: format!("{}, or {}", self.summary, section.summary),
            schema: json!({"anyOf": [text_schema(), section.schema]}),
            sections: section.sections,
        }
    }
}

/// A list without duplicates; never empty.
pub(super) struct List<F: Form> {
    pub(super) of: F,
    /// What to do about an empty list.
    pub(super) empty: &'static str,
    pub(super) same: fn(&F::Value, &F::Value) -> bool,
}

impl<F: Form> Form for List<F> {
    type Value = Vec<F::Value>;

    fn read(&self, cursor: &Cursor<'_>) -> Read<Self::Value> {
        cursor.list(self.empty, |element| self.of.read(element), self.same)
    }

    fn print(&self, value: &Self::Value) -> Yaml {
        Yaml::List(value.iter().map(|item| self.of.print(item)).collect())
    }

    fn describe(&self) -> FormDescription {
        let FormDescription { summary, schema, sections } = self.of.describe();
        let schema = json!({"type": "array", "minItems": 1, "items": schema});
        FormDescription { summary: format!("a list: {summary}"), schema, sections }
    }
}

/// A list, which may be empty.
pub(super) struct Each<F>(pub(super) F);

impl<F: Form> Form for Each<F> {
    type Value = Vec<F::Value>;

    fn read(&self, cursor: &Cursor<'_>) -> Read<Self::Value> {
        cursor.each(|element| self.0.read(element))
    }

    fn print(&self, value: &Self::Value) -> Yaml {
        Yaml::List(value.iter().map(|item| self.0.print(item)).collect())
    }

    fn describe(&self) -> FormDescription {
        let FormDescription { summary, schema, sections } = self.0.describe();
        let schema = json!({"type": "array", "items": schema});
        FormDescription { summary: format!("a list: {summary}"), schema, sections }
    }
}

/// A list, or its only element.
pub(super) struct OneOr<L, F> {
    pub(super) one: F,
    pub(super) list: L,
}

impl<F: Form, L: Form<Value = Vec<F::Value>>> Form for OneOr<L, F> {
    type Value = Vec<F::Value>;

    fn read(&self, cursor: &Cursor<'_>) -> Read<Self::Value> {
        if cursor.is_list() { self.list.read(cursor) } else { Ok(vec![self.one.read(cursor)?]) }
    }

    fn print(&self, value: &Self::Value) -> Yaml {
        match value.as_slice() {
            [only] => self.one.print(only),
            several => Yaml::List(several.iter().map(|item| self.one.print(item)).collect()),
        }
    }

    fn describe(&self) -> FormDescription {
        let FormDescription { summary, schema, sections } = self.one.describe();
        let schema = json!({"anyOf": [schema, self.list.describe().schema]});
        FormDescription { summary: format!("{summary}; one or a list"), schema, sections }
    }
}

/// Whether two elements are equal.
pub(super) fn equal<T: PartialEq>(one: &T, other: &T) -> bool {
    one == other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_shown_in_the_largest_unit_that_fits() {
        for (bytes, shown) in [(0, "0B"), (1, "1B"), (1024, "1KiB"), (1536, "1536B"), (48 << 20, "48MiB")] {
            assert_eq!(show_size(bytes), shown);
        }
    }
}
