//! One description of each section of the configuration: its keys with their meaning, form and default. The reader,
//! the printer, the JSON Schema and the reference page are generated from it.

use serde_json::{Map, Value, json};

use super::cursor::{Cursor, Read};
use super::yaml::Yaml;

/// A section: a mapping with known keys.
pub(super) trait Section: Sized {
    /// Its name in the schema and on the reference page.
    const NAME: &'static str;
    /// Its description.
    const DESCRIPTION: &'static str;

    /// Reads the section, and reports all errors.
    fn read(cursor: &Cursor<'_>) -> Read<Self>;

    /// Its keys and values, in the order of the description; keys that are not set are left out.
    fn print(&self) -> Vec<(String, Yaml)>;

    /// Its keys.
    fn keys() -> Vec<Key>;

    /// The complete description.
    fn description() -> Description {
        Description { name: Self::NAME, description: Self::DESCRIPTION, keys: Self::keys() }
    }
}

/// A section, for the schema and the reference page.
pub(super) struct Description {
    pub(super) name: &'static str,
    pub(super) description: &'static str,
    pub(super) keys: Vec<Key>,
}

/// A key of a section.
pub(super) struct Key {
    pub(super) name: &'static str,
    /// Its description.
    pub(super) description: &'static str,
    pub(super) form: FormDescription,
    pub(super) requirement: Requirement,
}

/// Whether a key is required.
pub(super) enum Requirement {
    Required,
    /// The value of an absent key, as it would be written.
    Default(String),
    /// One of the keys that have this is required.
    Alternative,
    Optional,
}

/// The form of a value, for the schema and the reference page.
pub(super) struct FormDescription {
    /// A short description.
    pub(super) summary: String,
    /// The JSON Schema.
    pub(super) schema: Value,
    /// The sections inside the value.
    pub(super) sections: Vec<Description>,
}

impl FormDescription {
    /// The form of a value without sections.
    pub(super) fn new(summary: impl Into<String>, schema: Value) -> Self {
        Self { summary: summary.into(), schema, sections: Vec::new() }
    }
}

/// The form of a value: it is read, printed and described in the same way.
pub(super) trait Form {
    /// The type of the parsed value.
    type Value;

    /// Reads the value, and reports all errors.
    fn read(&self, cursor: &Cursor<'_>) -> Read<Self::Value>;

    /// Prints the value so that it is read as the same value.
    fn print(&self, value: &Self::Value) -> Yaml;

    /// Describes the accepted values.
    fn describe(&self) -> FormDescription;
}

impl Description {
    /// Its JSON Schema; nested sections are references.
    pub(super) fn schema(&self) -> Value {
        let properties: Map<String, Value> =
            self.keys.iter().map(|key| (key.name.to_owned(), key.schema())).collect();
        let required: Vec<&str> = self
            .keys
            .iter()
            .filter(|key| matches!(key.requirement, Requirement::Required))
            .map(|key| key.name)
            .collect();
        let mut schema = json!({
            "description": self.description,
            "type": "object",
            "additionalProperties": false,
            "properties": properties,
        });
        let is_alternative = |key: &&Key| matches!(key.requirement, Requirement::Alternative);
        let alternatives: Vec<Value> =
            self.keys.iter().filter(is_alternative).map(|key| json!({"required": [key.name]})).collect();
        if let Some(members) = schema.as_object_mut() {
            if !required.is_empty() {
                members.insert("required".to_owned(), json!(required));
            }
            if !alternatives.is_empty() {
                members.insert("oneOf".to_owned(), json!(alternatives));
            }
        }
        schema
    }
}

impl Key {
    fn schema(&self) -> Value {
        let mut schema = self.form.schema.clone();
        let description = match &self.requirement {
            // A section has its own defaults.
            Requirement::Default(default) if self.form.sections.is_empty() => {
                format!("{} Default: {default}.", self.description)
            }
            Requirement::Default(_)
            | Requirement::Required
            | Requirement::Alternative
            | Requirement::Optional => self.description.to_owned(),
        };
        if let Some(members) = schema.as_object_mut() {
            members.insert("description".to_owned(), json!(description));
        }
        schema
    }
}

/// The default of a key.
pub(super) fn default_of<F: Form>(form: &F, default: &F::Value) -> Requirement {
    Requirement::Default(form.print(default).inline())
}

/// Whether a value differs from its default.
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
///         field: FORM, alternative;
///     }
/// }
/// ```
///
/// `default` and `unless` have a default; with `unless`, only other values are printed. Of the keys that are `alternative`,
/// which `make` gets as optional ones, one is required. `checked` names a function
/// that gets the value and the mapping, for checks that involve several keys.
///
/// If the keys are not the fields of the type, `read through Draft by make, printed through Shown by show` names
/// two types to generate: a `Draft` has every key as it was read, and `Shown` every key as it is printed, `None` if
/// it is not. Then each key has its type: `field: Type = FORM, requirement;`.
macro_rules! section {
    (
        $(#[doc = $description:literal])+
        $name:literal: $type:ty $(, checked $check:path)? $(, later [$($later:literal),+ $(,)?])? {
            $(
                $(#[doc = $docs:literal])+
                $field:ident $(as $key:literal)?: $form:expr, $requirement:ident $(($argument:expr))?;
            )+
        }
    ) => {
        impl $crate::section::Section for $type {
            const NAME: &'static str = $name;
            const DESCRIPTION: &'static str = section!(@docs $($description)+);

            fn read(cursor: &$crate::cursor::Cursor<'_>) -> $crate::cursor::Read<Self> {
                let mapping = cursor.mapping(
                    &[$(section!(@key $field $($key)?)),+],
                    &[$($($later),+)?],
                )?;
                $(let $field = section!(
                    @read mapping, section!(@key $field $($key)?), $form, $requirement $(($argument))?
                );)+
                let section = Self { $($field: $field?),+ };
                $($check(&section, &mapping)?;)?
                Ok(section)
            }

            fn print(&self) -> Vec<(String, $crate::yaml::Yaml)> {
                let Self { $($field),+ } = self;
                let members = [$((
                    section!(@key $field $($key)?),
                    section!(@print $form, $field, $requirement $(($argument))?),
                )),+];
                members.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
            }

            fn keys() -> Vec<$crate::section::Key> {
                vec![$($crate::section::Key {
                    name: section!(@key $field $($key)?),
                    description: section!(@docs $($docs)+),
                    form: $crate::section::Form::describe(&$form),
                    requirement: section!(@requirement $form, $requirement $(($argument))?),
                }),+]
            }
        }
    };
    (
        $(#[doc = $description:literal])+
        $name:literal: $type:ty,
        read through $draft:ident by $make:path,
        printed through $shown:ident by $show:path
        $(, later [$($later:literal),+ $(,)?])? {
            $(
                $(#[doc = $docs:literal])+
                $field:ident $(as $key:literal)?: $value:ty = $form:expr, $requirement:ident $(($argument:expr))?;
            )+
        }
    ) => {
        /// Every key as it was read.
        struct $draft {
            $($field: $crate::cursor::Read<section!(@type $requirement $value)>,)+
        }

        /// Every key as it is printed; `None` if it is not.
        struct $shown {
            $($field: Option<$value>,)+
        }

        impl $crate::section::Section for $type {
            const NAME: &'static str = $name;
            const DESCRIPTION: &'static str = section!(@docs $($description)+);

            fn read(cursor: &$crate::cursor::Cursor<'_>) -> $crate::cursor::Read<Self> {
                let mapping = cursor.mapping(
                    &[$(section!(@key $field $($key)?)),+],
                    &[$($($later),+)?],
                )?;
                let draft = $draft {
                    $($field: section!(
                        @read mapping, section!(@key $field $($key)?), $form, $requirement $(($argument))?
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
                    description: section!(@docs $($docs)+),
                    form: $crate::section::Form::describe(&$form),
                    requirement: section!(@requirement $form, $requirement $(($argument))?),
                }),+]
            }
        }
    };

    (@docs $($line:literal)+) => { concat!($($line),+).trim_ascii_start() };
    (@key $field:ident) => { stringify!($field) };
    (@key $field:ident $key:literal) => { $key };
    (@type optional $value:ty) => { Option<$value> };
    (@type alternative $value:ty) => { Option<$value> };
    (@type $requirement:ident $value:ty) => { $value };

    (@read $mapping:ident, $key:expr, $form:expr, required($why:expr)) => {
        $mapping.required($key, $why).and_then(|cursor| $crate::section::Form::read(&$form, &cursor))
    };
    (@read $mapping:ident, $key:expr, $form:expr, optional) => {
        $mapping.optional($key, |cursor| $crate::section::Form::read(&$form, &cursor))
    };
    (@read $mapping:ident, $key:expr, $form:expr, alternative) => {
        section!(@read $mapping, $key, $form, optional)
    };
    (@read $mapping:ident, $key:expr, $form:expr, $requirement:ident($default:expr)) => {
        $mapping.or($key, || $default, |cursor| $crate::section::Form::read(&$form, &cursor))
    };

    (@print $form:expr, $field:ident, optional) => {
        $field.as_ref().map(|value| $crate::section::Form::print(&$form, value))
    };
    (@print $form:expr, $field:ident, unless($default:expr)) => {
        $crate::section::differs($field, &$default).then(|| $crate::section::Form::print(&$form, $field))
    };
    (@print $form:expr, $field:ident, $requirement:ident($argument:expr)) => {
        Some($crate::section::Form::print(&$form, $field))
    };

    (@requirement $form:expr, required($why:expr)) => { $crate::section::Requirement::Required };
    (@requirement $form:expr, alternative) => { $crate::section::Requirement::Alternative };
    (@requirement $form:expr, optional) => { $crate::section::Requirement::Optional };
    (@requirement $form:expr, $requirement:ident($default:expr)) => {
        $crate::section::default_of(&$form, &$default)
    };
}

pub(super) use section;

#[cfg(test)]
mod tests {
    use super::super::cursor::{Cursor, ReadContext};
    use super::super::document;
    use super::super::forms::{Count, Flag};
    use super::{Requirement, Section};

    #[derive(Debug, PartialEq)]
    struct Sample {
        size: usize,
        loud: bool,
        max: Option<usize>,
    }

    section! {
        /// A section of this test.
        "Sample": Sample, later ["colour"] {
            /// How many.
            size: Count { min: 1, max: 9 }, required("how many");
            /// Whether it is loud.
            loud as "is_loud": Flag, unless(false);
            /// No more than these.
            max: Count { min: 1, max: 9 }, optional;
        }
    }

    fn read(text: &str) -> Result<Sample, Vec<String>> {
        let (root, _) = document::parse(text, "empty");
        let root = root.expect("YAML");
        let context = ReadContext::new(&|_| None);
        let read = Sample::read(&Cursor::root(&root, &context));
        let errors = context.into_parts().errors;
        read.map_err(|_| errors.into_found().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_described_key_is_read_printed_and_in_the_schema() {
        let sample = read("{size: 3, is_loud: true}").expect("valid");
        assert_eq!(sample, Sample { size: 3, loud: true, max: None });
        let printed: Vec<String> =
            sample.print().iter().map(|(key, value)| format!("{key}: {}", value.inline())).collect();
        assert_eq!(printed, ["size: 3", "is_loud: true"]);
        let description = Sample::description();
        let names: Vec<&str> = description.keys.iter().map(|key| key.name).collect();
        assert_eq!(names, ["size", "is_loud", "max"]);
        assert!(
            matches!(&description.keys[1].requirement, Requirement::Default(default) if default == "false")
        );
        let schema = description.schema();
        assert_eq!(schema["required"], serde_json::json!(["size"]));
        assert_eq!(schema["properties"]["is_loud"]["description"], "Whether it is loud. Default: false.");
    }

    #[test]
    fn all_errors_of_a_section_are_reported_with_their_places() {
        let errors = read("{is_loud: maybe, max: 10, colour: red, siez: 1}").expect_err("wrong");
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
