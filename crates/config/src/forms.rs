//! The forms that values of the configuration have.

use std::fmt::Display;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::cursor::{Cursor, Read, show_duration};
use super::section::{Form, FormDescription, Section};
use super::yaml::Yaml;

/// A variable of the environment, somewhere in a text.
const VARIABLE: &str = r"\$\{";

/// What YAML takes for a number or a truth is read as text too.
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

/// A duration with its unit, in these bounds.
pub(super) struct Time {
    pub(super) least: Duration,
    pub(super) most: Duration,
}

impl Form for Time {
    type Value = Duration;

    fn read(&self, cursor: &Cursor<'_>) -> Read<Duration> {
        cursor.duration(self.least, self.most)
    }

    fn print(&self, value: &Duration) -> Yaml {
        Yaml::word(show_duration(*value))
    }

    fn describe(&self) -> FormDescription {
        let (least, most) = (show_duration(self.least), show_duration(self.most));
        let schema = json!({"type": "string", "pattern": format!(r"^[0-9]+ *(ms|s|m|h)$|{VARIABLE}")});
        FormDescription::new(format!("a duration, {least} to {most}"), schema)
    }
}

/// A size, in bytes within these bounds.
pub(super) struct Size {
    pub(super) least: usize,
    pub(super) most: usize,
}

impl Form for Size {
    type Value = usize;

    fn read(&self, cursor: &Cursor<'_>) -> Read<usize> {
        cursor.bytes(self.least, self.most)
    }

    fn print(&self, value: &usize) -> Yaml {
        Yaml::word(show_size(*value))
    }

    fn describe(&self) -> FormDescription {
        let (least, most) = (show_size(self.least), show_size(self.most));
        let schema = json!({"anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": format!(r"^[0-9]+ *(B|KiB|MiB|GiB)?$|{VARIABLE}")},
        ]});
        FormDescription::new(format!("a size, {least} to {most}"), schema)
    }
}

/// A size in the largest unit that writes it without a fraction; what is read again as the same.
fn show_size(bytes: usize) -> String {
    let units = [("GiB", 1_usize << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let fitting = units.into_iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit));
    fitting.map_or_else(|| format!("{bytes}B"), |(name, unit)| format!("{}{name}", bytes / unit))
}

/// A whole number of things that are counted, in these bounds.
pub(super) struct Count {
    pub(super) least: u32,
    pub(super) most: u32,
}

impl Form for Count {
    type Value = usize;

    fn read(&self, cursor: &Cursor<'_>) -> Read<usize> {
        cursor.count(self.least, self.most)
    }

    fn print(&self, value: &usize) -> Yaml {
        Yaml::word(value)
    }

    fn describe(&self) -> FormDescription {
        let Self { least, most } = self;
        let schema = json!({"anyOf": [
            {"type": "integer", "minimum": least, "maximum": most},
            {"type": "string", "pattern": VARIABLE},
        ]});
        FormDescription::new(format!("a number, {least} to {most}"), schema)
    }
}

/// One of these words.
pub(super) struct Words<T: 'static>(pub(super) &'static [(&'static str, T)]);

impl<T: Clone + PartialEq> Form for Words<T> {
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
        let words = match quoted.as_slice() {
            [only] => only.clone(),
            several => format!("one of {}", several.join(", ")),
        };
        FormDescription::new(words, json!({"enum": names}))
    }
}

/// A text that is read into something, and printed as it is shown.
pub(super) struct Text<T> {
    pub(super) read: fn(&Cursor<'_>) -> Read<T>,
    pub(super) show: fn(&T) -> String,
    /// What it is.
    pub(super) words: &'static str,
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
        FormDescription::new(self.words, text_schema())
    }
}

/// What [`Text`] shows of most values.
pub(super) fn shown<T: Display>(value: &T) -> String {
    value.to_string()
}

/// A text that may be any.
pub(super) const fn any_text(words: &'static str) -> Text<String> {
    Text { read: |cursor| cursor.text(), show: shown, words }
}

/// A file, which has to be readable.
pub(super) const FILE: Text<PathBuf> =
    Text { read: |cursor| cursor.file(), show: |path| path.display().to_string(), words: "a file" };

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
            words: format!("[{}](#{})", S::NAME, S::NAME.to_ascii_lowercase()),
            schema: json!({"$ref": format!("#/$defs/{}", S::NAME)}),
            sections: vec![S::description()],
        }
    }
}

/// A section, or one text instead of it.
pub(super) struct Short<S> {
    /// Reads what stands instead of the section.
    pub(super) read: fn(&Cursor<'_>) -> Read<S>,
    /// What that is.
    pub(super) words: &'static str,
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
            words: format!("{}, or {}", self.words, section.words),
            schema: json!({"anyOf": [text_schema(), section.schema]}),
            sections: section.sections,
        }
    }
}

/// A list without two elements that are the same; never empty.
pub(super) struct List<F: Form> {
    pub(super) of: F,
    /// What to do about a list of none.
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
        let FormDescription { words, schema, sections } = self.of.describe();
        let schema = json!({"type": "array", "minItems": 1, "items": schema});
        FormDescription { words: format!("a list: {words}"), schema, sections }
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
        let FormDescription { words, schema, sections } = self.0.describe();
        let schema = json!({"type": "array", "items": schema});
        FormDescription { words: format!("a list: {words}"), schema, sections }
    }
}

/// A list, or its one element.
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
        self.list.print(value)
    }

    fn describe(&self) -> FormDescription {
        let FormDescription { words, schema, sections } = self.one.describe();
        let schema = json!({"anyOf": [schema, self.list.describe().schema]});
        FormDescription { words: format!("{words}; one or a list"), schema, sections }
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
