//! One description of each section of the configuration: its keys, and for each its meaning, its form and its default. The
//! reader, the printer, the JSON Schema and the reference page are made of it.

use serde_json::{Map, Value, json};

use super::cursor::{Cursor, Read};
use super::yaml::Yaml;

/// A section: a mapping whose keys are known.
pub(super) trait Section: Sized {
    /// Its name in the schema and on the reference page.
    const NAME: &'static str;
    /// What it is about.
    const ABOUT: &'static str;

    /// Reads it, and reports all that is wrong.
    fn read(cursor: &Cursor<'_>) -> Read<Self>;

    /// Its keys with their values, in the order of the description; those left out that say nothing.
    fn print(&self) -> Vec<(String, Yaml)>;

    /// Its keys.
    fn keys() -> Vec<Key>;

    /// All of it.
    fn description() -> Description {
        Description { name: Self::NAME, about: Self::ABOUT, keys: Self::keys() }
    }
}

/// A section, for the schema and for people.
pub(super) struct Description {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) keys: Vec<Key>,
}

/// A key of a section.
pub(super) struct Key {
    pub(super) name: &'static str,
    /// What it means.
    pub(super) about: &'static str,
    pub(super) form: FormDescription,
    pub(super) need: Need,
}

/// Whether a key has to be there.
pub(super) enum Need {
    Required,
    /// What counts where it is left out, as it would be written.
    Default(String),
    Optional,
}

/// The form of a value, for the schema and for people.
pub(super) struct FormDescription {
    /// In a few words.
    pub(super) words: String,
    /// As JSON Schema.
    pub(super) schema: Value,
    /// The sections that stand in it.
    pub(super) sections: Vec<Description>,
}

impl FormDescription {
    /// Of a value without sections.
    pub(super) fn new(words: impl Into<String>, schema: Value) -> Self {
        Self { words: words.into(), schema, sections: Vec::new() }
    }
}

/// How a value is written: read, printed and described alike.
pub(super) trait Form {
    /// What it is read into.
    type Value;

    /// Reads it, and reports what is wrong.
    fn read(&self, cursor: &Cursor<'_>) -> Read<Self::Value>;

    /// Prints what is read as the same.
    fn print(&self, value: &Self::Value) -> Yaml;

    /// Says what may stand there.
    fn describe(&self) -> FormDescription;
}

impl Description {
    /// Its schema; sections within it are references.
    pub(super) fn schema(&self) -> Value {
        let properties: Map<String, Value> =
            self.keys.iter().map(|key| (key.name.to_owned(), key.schema())).collect();
        let required: Vec<&str> =
            self.keys.iter().filter(|key| matches!(key.need, Need::Required)).map(|key| key.name).collect();
        let mut schema = json!({
            "description": self.about,
            "type": "object",
            "additionalProperties": false,
            "properties": properties,
        });
        if let Some(members) = schema.as_object_mut().filter(|_| !required.is_empty()) {
            members.insert("required".to_owned(), json!(required));
        }
        schema
    }
}

impl Key {
    fn schema(&self) -> Value {
        let mut schema = self.form.schema.clone();
        let about = match &self.need {
            // A section's own defaults stand with its keys.
            Need::Default(default) if self.form.sections.is_empty() => {
                format!("{} Default: {default}.", self.about)
            }
            Need::Default(_) | Need::Required | Need::Optional => self.about.to_owned(),
        };
        if let Some(members) = schema.as_object_mut() {
            members.insert("description".to_owned(), json!(about));
        }
        schema
    }
}

/// The need of a key with a default.
pub(super) fn default_of<F: Form>(form: &F, default: &F::Value) -> Need {
    Need::Default(form.print(default).inline())
}

/// Whether a value is another than its default.
pub(super) fn differs<T: PartialEq>(value: &T, default: &T) -> bool {
    value != default
}

/// Describes a section.
///
/// ```text
/// section! {
///     /// What it is about.
///     "Name": Type, checked check, later ["key_of_a_later_version"] {
///         /// What the key means.
///         field as "key": FORM, required("what is missing");
///         field: FORM, default(value);
///         field: FORM, unless(value);
///         field: FORM, optional;
///     }
/// }
/// ```
///
/// `default` and `unless` have a default; of the latter only other values are printed. `checked` names a function that
/// gets the value and the mapping, for what concerns several keys.
///
/// Where the keys are not the fields of the type, `read through Draft by make, printed through Shown by show` names two
/// types to be made: in a `Draft` each key is as it was read, and in `Shown` as it is to be printed, `None` where it is not. Then
/// each key names its type: `field: Type = FORM, need;`.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $name:literal: $type:ty $(, checked $check:path)? $(, later [$($later:literal),+ $(,)?])? {
            $(
                $(#[doc = $docs:literal])+
                $field:ident $(as $key:literal)?: $form:expr, $need:ident $(($argument:expr))?;
            )+
        }
    ) => {
        impl $crate::section::Section for $type {
            const NAME: &'static str = $name;
            const ABOUT: &'static str = section!(@docs $($about)+);

            fn read(cursor: &$crate::cursor::Cursor<'_>) -> $crate::cursor::Read<Self> {
                let mapping = cursor.mapping(
                    &[$(section!(@key $field $($key)?)),+],
                    &[$($($later),+)?],
                )?;
                $(let $field = section!(
                    @read mapping, section!(@key $field $($key)?), $form, $need $(($argument))?
                );)+
                let section = Self { $($field: $field?),+ };
                $($check(&section, &mapping)?;)?
                Ok(section)
            }

            fn print(&self) -> Vec<(String, $crate::yaml::Yaml)> {
                let Self { $($field),+ } = self;
                let members = [$((
                    section!(@key $field $($key)?),
                    section!(@print $form, $field, $need $(($argument))?),
                )),+];
                members.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
            }

            fn keys() -> Vec<$crate::section::Key> {
                vec![$($crate::section::Key {
                    name: section!(@key $field $($key)?),
                    about: section!(@docs $($docs)+),
                    form: $crate::section::Form::describe(&$form),
                    need: section!(@need $form, $need $(($argument))?),
                }),+]
            }
        }
    };
    (
        $(#[doc = $about:literal])+
        $name:literal: $type:ty,
        read through $draft:ident by $make:path,
        printed through $shown:ident by $show:path
        $(, later [$($later:literal),+ $(,)?])? {
            $(
                $(#[doc = $docs:literal])+
                $field:ident $(as $key:literal)?: $value:ty = $form:expr, $need:ident $(($argument:expr))?;
            )+
        }
    ) => {
        /// Each key as it was read.
        struct $draft {
            $($field: $crate::cursor::Read<section!(@type $need $value)>,)+
        }

        /// Each key as it is to be printed; `None` where it is not.
        struct $shown {
            $($field: Option<$value>,)+
        }

        impl $crate::section::Section for $type {
            const NAME: &'static str = $name;
            const ABOUT: &'static str = section!(@docs $($about)+);

            fn read(cursor: &$crate::cursor::Cursor<'_>) -> $crate::cursor::Read<Self> {
                let mapping = cursor.mapping(
                    &[$(section!(@key $field $($key)?)),+],
                    &[$($($later),+)?],
                )?;
                let draft = $draft {
                    $($field: section!(
                        @read mapping, section!(@key $field $($key)?), $form, $need $(($argument))?
                    ),)+
                };
                $make(draft, &mapping)
            }

            fn print(&self) -> Vec<(String, $crate::yaml::Yaml)> {
                let $shown { $($field),+ } = $show(self);
                let members = [$((
                    section!(@key $field $($key)?),
                    $field.as_ref().map(|value| $crate::section::Form::print(&$form, value)),
                )),+];
                members.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
            }

            fn keys() -> Vec<$crate::section::Key> {
                vec![$($crate::section::Key {
                    name: section!(@key $field $($key)?),
                    about: section!(@docs $($docs)+),
                    form: $crate::section::Form::describe(&$form),
                    need: section!(@need $form, $need $(($argument))?),
                }),+]
            }
        }
    };

    (@docs $($line:literal)+) => { concat!($($line),+).trim_ascii_start() };
    (@key $field:ident) => { stringify!($field) };
    (@key $field:ident $key:literal) => { $key };
    (@type optional $value:ty) => { Option<$value> };
    (@type $need:ident $value:ty) => { $value };

    (@read $mapping:ident, $key:expr, $form:expr, required($why:expr)) => {
        $mapping.need($key, $why).and_then(|cursor| $crate::section::Form::read(&$form, &cursor))
    };
    (@read $mapping:ident, $key:expr, $form:expr, optional) => {
        $mapping.optional($key, |cursor| $crate::section::Form::read(&$form, &cursor))
    };
    (@read $mapping:ident, $key:expr, $form:expr, $need:ident($default:expr)) => {
        $mapping.or($key, || $default, |cursor| $crate::section::Form::read(&$form, &cursor))
    };

    (@print $form:expr, $field:ident, optional) => {
        $field.as_ref().map(|value| $crate::section::Form::print(&$form, value))
    };
    (@print $form:expr, $field:ident, unless($default:expr)) => {
        $crate::section::differs($field, &$default).then(|| $crate::section::Form::print(&$form, $field))
    };
    (@print $form:expr, $field:ident, $need:ident($argument:expr)) => {
        Some($crate::section::Form::print(&$form, $field))
    };

    (@need $form:expr, required($why:expr)) => { $crate::section::Need::Required };
    (@need $form:expr, optional) => { $crate::section::Need::Optional };
    (@need $form:expr, $need:ident($default:expr)) => {
        $crate::section::default_of(&$form, &$default)
    };
}

pub(super) use section;

#[cfg(test)]
mod tests {
    use super::super::cursor::{Cursor, Findings};
    use super::super::document;
    use super::super::forms::{Count, Flag};
    use super::{Need, Section};

    #[derive(Debug, PartialEq)]
    struct Sample {
        size: usize,
        loud: bool,
        most: Option<usize>,
    }

    section! {
        /// A section of this test.
        "Sample": Sample, later ["colour"] {
            /// How many.
            size: Count { least: 1, most: 9 }, required("how many");
            /// Whether it is heard.
            loud as "is_loud": Flag, unless(false);
            /// No more than these.
            most: Count { least: 1, most: 9 }, optional;
        }
    }

    fn read(text: &str) -> Result<Sample, Vec<String>> {
        let (root, _) = document::parse(text);
        let root = root.expect("YAML");
        let findings = Findings::new(&|_| None);
        let read = Sample::read(&Cursor::root(&root, &findings));
        let errors = findings.into_parts().errors;
        read.map_err(|_| errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_key_that_is_described_is_read_printed_and_in_the_schema() {
        let sample = read("{size: 3, is_loud: true}").expect("valid");
        assert_eq!(sample, Sample { size: 3, loud: true, most: None });
        let printed: Vec<String> =
            sample.print().iter().map(|(key, value)| format!("{key}: {}", value.inline())).collect();
        assert_eq!(printed, ["size: 3", "is_loud: true"]);
        let description = Sample::description();
        let names: Vec<&str> = description.keys.iter().map(|key| key.name).collect();
        assert_eq!(names, ["size", "is_loud", "most"]);
        assert!(matches!(&description.keys[1].need, Need::Default(default) if default == "false"));
        let schema = description.schema();
        assert_eq!(schema["required"], serde_json::json!(["size"]));
        assert_eq!(schema["properties"]["is_loud"]["description"], "Whether it is heard. Default: false.");
    }

    #[test]
    fn all_that_is_wrong_with_a_section_is_told_at_once_where_it_stands() {
        let errors = read("{is_loud: maybe, most: 10, colour: red, siez: 1}").expect_err("wrong");
        for part in [
            "`size` is missing",
            "`true` or `false`",
            "from 1 to 9",
            "colour: not supported yet",
            "siez: unknown key",
        ] {
            assert!(errors.iter().any(|error| error.contains(part)), "{part}: {errors:#?}");
        }
        assert_eq!(errors.len(), 5);
    }
}
