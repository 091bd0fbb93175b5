//! Where each setting is in the configuration, for advice and for the log.
//!
//! The configuration fills it in. Without it a setting is named by its key and the name of its provider or rule.

use std::collections::{BTreeSet, HashMap};

/// The keys that name the source of a provider's keys.
const KEY_SOURCES: [&str; 4] = ["jwks_uri", "discovery_uri", "jwks_file", "jwks"];

/// Where the settings of a configuration file are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigPlaces {
    /// By the provider's name.
    providers: HashMap<String, ConfigSection>,
    /// By the rule's name.
    rules: HashMap<String, ConfigSection>,
    /// What is not in a list.
    top: ConfigSection,
    /// The providers that run with settings of an earlier file.
    outdated: BTreeSet<String>,
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
        Self {
            top,
            providers: providers.into_iter().collect(),
            rules: rules.into_iter().collect(),
            outdated: BTreeSet::new(),
        }
    }

    /// The same, but these providers run with settings of an earlier file: they have no lines in this one.
    #[must_use]
    pub fn without_providers<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Self {
        let mut places = self.clone();
        for name in names {
            places.providers.remove(name);
            places.outdated.insert(name.to_owned());
        }
        places
    }

    /// The provider without a place.
    fn unplaced(&self, name: &str) -> String {
        match self.outdated.contains(name) {
            false => format!("the provider `{name}`"),
            true => format!("the provider `{name}`, which still runs with its previous configuration"),
        }
    }

    /// The source of the keys of the provider with this name, by its path and line: `providers[0].jwks_uri (line 7)`.
    pub fn key_source(&self, provider: &str) -> String {
        let Some(section) = self.providers.get(provider) else {
            return format!("the source of keys of {}", self.unplaced(provider));
        };
        let is_written = |key: &&str| section.keys.iter().any(|(written, _)| **written == **key);
        // Without one the discovery document is below the issuer.
        section.name(KEY_SOURCES.into_iter().find(is_written).unwrap_or("issuer"))
    }

    /// A text that names settings, such as `limits.connections`, with the line of each that the file has. A name with neither
    /// `.` nor `_` is taken for a word.
    pub fn with_lines(&self, text: &str) -> String {
        let is_name =
            |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '[' | ']');
        let mut written = String::with_capacity(text.len());
        for part in text.split_inclusive(|letter| !is_name(letter)) {
            let name = part.trim_end_matches(|letter| !is_name(letter)).trim_end_matches('.');
            written.push_str(name);
            let line = self.top.line_of(name).filter(|_| name.contains(['.', '_']));
            if let Some(line) = line {
                written.push_str(&format!(" (line {line})"));
            }
            written.push_str(part.get(name.len()..).unwrap_or_default());
        }
        written
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
            (None, Setting::Provider(name, "")) => self.unplaced(name),
            (None, Setting::Rule(name, "")) => format!("the rule `{name}`"),
            (None, Setting::Provider(name, key)) => format!("`{key}` of {}", self.unplaced(name)),
            (None, Setting::Rule(name, key)) => format!("`{key}` of the rule `{name}`"),
            (None, Setting::Top(key)) => key.to_owned(),
        }
    }
}

impl ConfigSection {
    /// The line of a key that the file has.
    fn line_of(&self, key: &str) -> Option<usize> {
        self.keys.iter().find(|(known, _)| **known == *key).map(|(_, line)| *line)
    }

    fn name(&self, key: &str) -> String {
        let path = match (&*self.path, key) {
            (path, "") => path.to_owned(),
            ("", key) => key.to_owned(),
            (path, key) => format!("{path}.{key}"),
        };
        match self.line_of(key) {
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

    fn section(path: &str, line: usize, keys: &[(&str, usize)]) -> ConfigSection {
        let keys = keys.iter().map(|(key, line)| ((*key).into(), *line)).collect();
        ConfigSection { path: path.to_owned(), line, keys }
    }

    #[test]
    fn names_of_settings_in_a_text_get_the_lines_that_they_have_in_the_file() {
        let top =
            [("limits.connections", 4), ("trusted_proxies", 7), ("listen.ext_authz[1]", 3), ("rules", 9)];
        let places = ConfigPlaces::new(section("", 1, &top), [], []);
        for (text, expected) in [
            ("raise limits.connections or a limit", "raise limits.connections (line 4) or a limit"),
            ("add it to trusted_proxies.", "add it to trusted_proxies (line 7)."),
            ("`trusted_proxies`: é", "`trusted_proxies (line 7)`: é"),
            ("listen.ext_authz[1]", "listen.ext_authz[1] (line 3)"),
            (
                "rules of limits.connection and x.limits.connections",
                "rules of limits.connection and x.limits.connections",
            ),
            ("", ""),
            ("...", "..."),
        ] {
            assert_eq!(places.with_lines(text), expected);
        }
        assert_eq!(ConfigPlaces::default().with_lines("limits.connections"), "limits.connections");
    }

    #[test]
    fn the_source_of_keys_is_named_by_its_key_or_else_by_the_issuer_that_it_is_below() {
        for (keys, expected) in [
            (&[("issuer", 5), ("jwks_uri", 6)][..], "providers[0].jwks_uri (line 6)"),
            (&[("jwks_file", 4), ("spiffe", 5)], "providers[0].jwks_file (line 4)"),
            (&[("issuer", 5)], "providers[0].issuer (line 5)"),
        ] {
            let provider = ("demo".to_owned(), section("providers[0]", 3, keys));
            let places = ConfigPlaces::new(ConfigSection::default(), [provider], []);
            assert_eq!(places.key_source("demo"), expected);
            assert_eq!(places.key_source("x"), "the source of keys of the provider `x`");
        }
    }

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
