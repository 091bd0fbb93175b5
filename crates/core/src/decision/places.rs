//! Where each setting is in the configuration, for advice.
//!
//! The configuration fills it in. Without it a setting is named by its key and the name of its provider or rule.

use std::collections::HashMap;

/// Where the settings of a configuration file are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigPlaces {
    /// By the provider's name.
    providers: HashMap<String, ConfigSection>,
    /// By the rule's name.
    rules: HashMap<String, ConfigSection>,
    /// What is not in a list.
    top: ConfigSection,
}

/// A mapping of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigSection {
    /// Its path in the document, such as `providers[0]`; empty for the document.
    pub path: String,
    /// Its first line, counted from 1; 0 if it is unknown.
    pub line: usize,
    /// The line of each key that the file has, by its path in the mapping, such as `audiences` or `require.scopes`.
    pub keys: Vec<(Box<str>, usize)>,
}

/// A setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting<'n> {
    /// A key of the provider with this name; with an empty key, the provider.
    Provider(&'n str, &'n str),
    /// A key of the rule with this name; with an empty key, the rule.
    Rule(&'n str, &'n str),
    /// Another key, by its path in the document.
    Top(&'n str),
}

impl ConfigPlaces {
    /// The places of a document, and of the providers and rules with these names.
    pub fn new(
        top: ConfigSection,
        providers: impl IntoIterator<Item = (String, ConfigSection)>,
        rules: impl IntoIterator<Item = (String, ConfigSection)>,
    ) -> Self {
        Self { top, providers: providers.into_iter().collect(), rules: rules.into_iter().collect() }
    }

    /// The setting by its path in the document, with its line: `providers[0].audiences (line 12)`.
    pub(super) fn name(&self, setting: Setting<'_>) -> String {
        let (section, key) = match setting {
            Setting::Provider(name, key) => (self.providers.get(name), key),
            Setting::Rule(name, key) => (self.rules.get(name), key),
            Setting::Top(key) => (Some(&self.top), key),
        };
        match (section, setting) {
            (Some(section), _) => section.name(key),
            (None, Setting::Provider(name, "")) => format!("the provider `{name}`"),
            (None, Setting::Rule(name, "")) => format!("the rule `{name}`"),
            (None, Setting::Provider(name, key)) => format!("`{key}` of the provider `{name}`"),
            (None, Setting::Rule(name, key)) => format!("`{key}` of the rule `{name}`"),
            (None, Setting::Top(key)) => key.to_owned(),
        }
    }
}

impl ConfigSection {
    fn name(&self, key: &str) -> String {
        let path = match (&*self.path, key) {
            (path, "") => path.to_owned(),
            ("", key) => key.to_owned(),
            (path, key) => format!("{path}.{key}"),
        };
        let line = self.keys.iter().find(|(known, _)| **known == *key).map(|(_, line)| *line);
        match line {
            Some(line) => format!("{path} (line {line})"),
            None if self.line == 0 => path,
            None if key.is_empty() => format!("{path} (line {})", self.line),
            // A default applies.
            None if self.path.is_empty() => format!("{path} (not in the file)"),
            None => format!("{path} (not in the file; {} is in line {})", self.path, self.line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_named_by_its_path_and_line_or_else_by_its_owner() {
        let provider =
            ConfigSection { path: "providers[0]".to_owned(), line: 3, keys: vec![("audiences".into(), 5)] };
        let top =
            ConfigSection { path: String::new(), line: 1, keys: vec![("limits.token_bytes".into(), 9)] };
        let places = ConfigPlaces::new(top, [("demo".to_owned(), provider)], []);
        for (setting, expected) in [
            (Setting::Provider("demo", "audiences"), "providers[0].audiences (line 5)"),
            (Setting::Provider("demo", ""), "providers[0] (line 3)"),
            (
                Setting::Provider("demo", "clock_skew"),
                "providers[0].clock_skew (not in the file; providers[0] is in line 3)",
            ),
            (Setting::Provider("other", "audiences"), "`audiences` of the provider `other`"),
            (Setting::Rule("admin", "require.scopes"), "`require.scopes` of the rule `admin`"),
            (Setting::Rule("admin", ""), "the rule `admin`"),
            (Setting::Top("limits.token_bytes"), "limits.token_bytes (line 9)"),
            (Setting::Top("trusted_proxies"), "trusted_proxies (not in the file)"),
        ] {
            assert_eq!(places.name(setting), expected);
        }
        let none = ConfigPlaces::default();
        assert_eq!(none.name(Setting::Top("trusted_proxies")), "trusted_proxies");
    }
}
