//! What one configuration has and another lacks, by the text of both: a file that was cut off while it was written can be
//! valid, and what is missing at its end would have closed something.

use std::collections::HashMap;

use super::document::{self, Node, Value};
use super::error::member_path;

/// The sections that say who may do what, and where.
const SECTIONS: [&str; 5] = ["listen", "providers", "resources", "default", "rules"];

/// What of a provider says only where its keys are and how they are fetched: it is exchanged for something else.
const ABOUT_FETCHING: [&str; 7] =
    ["jwks_uri", "discovery_uri", "jwks_file", "jwks", "refresh", "http", "ready_without_keys"];

/// What a configuration lacks that the one before had: rules, providers, resources and listeners, whatever was said of
/// them, and a list that became shorter; by name where there is one, in the order of the file. A value that was exchanged
/// for another is none of it, but for a `deny` or a `default: deny` that says something else. A last line without an end may
/// go on, unless the one before ended with the same.
///
/// Both are the text of a valid configuration; of one that is none there is nothing to say.
pub fn losses(before: &str, after: &str) -> Vec<String> {
    let (Some(had), Some(has)) = (document::parse(before).0, document::parse(after).0) else {
        return Vec::new();
    };
    let mut lost = Lost(Vec::new());
    for section in SECTIONS {
        if let Some(had) = member(&had, section) {
            lost.within(section, section, had, member(&has, section));
        }
    }
    let last_line = |text: &str| text.rsplit('\n').next().unwrap_or_default().to_owned();
    if !after.ends_with('\n') && last_line(before) != last_line(after) {
        lost.0.push("the end of the last line".to_owned());
    }
    lost.0
}

struct Lost(Vec<String>);

impl Lost {
    /// Compares what stands at a place; `key` is the last step of its path.
    fn within(&mut self, path: &str, key: &str, had: &Node, has: Option<&Node>) {
        let Some(has) = has.filter(|has| !is_nothing(has) || is_nothing(had)) else {
            return self.whole(path, had);
        };
        match (&had.value, &has.value) {
            (Value::Mapping(members), Value::Mapping(_)) => {
                for had in members.iter().filter(|member| !is_about_fetching(path, &member.key)) {
                    self.within(&member_path(path, &had.key), &had.key, &had.node, member(has, &had.key));
                }
            }
            (Value::Sequence(had), Value::Sequence(has)) => self.within_list(path, had, has),
            // A list may be written as its only element.
            (Value::Sequence(had), _) => self.within_list(path, had, std::slice::from_ref(has)),
            (Value::Mapping(_), Value::Sequence(list)) => self.within(path, key, had, list.first()),
            (Value::Mapping(_), Value::Scalar { .. }) => self.0.push(path.to_owned()),
            (Value::Scalar { text: had, .. }, Value::Scalar { text: has, .. }) => {
                let closes = matches!((key, had.as_str()), ("deny", "true") | ("default", "deny"));
                if closes && had != has {
                    self.0.push(format!("{path}: {had}"));
                }
            }
            (Value::Scalar { .. } | Value::Mapping(_) | Value::Refused, _) => {}
        }
    }

    fn within_list(&mut self, path: &str, had: &[Node], has: &[Node]) {
        let named: Option<Vec<(&Node, &str)>> =
            had.iter().map(|node| name(node).map(|name| (node, name))).collect();
        if let Some(named) = named.filter(|named| !named.is_empty()) {
            let has: HashMap<&str, &Node> =
                has.iter().filter_map(|node| name(node).map(|name| (name, node))).collect();
            for (had, called) in named {
                self.within(&format!("{path} {called:?}"), path, had, has.get(called).copied());
            }
            return;
        }
        if has.len() < had.len() {
            let count = had.len() - has.len();
            self.0.push(format!("{path} ({count} of {})", had.len()));
        }
        for (index, (had, has)) in had.iter().zip(has).enumerate() {
            self.within(&format!("{path}[{index}]"), path, had, Some(has));
        }
    }

    /// All that stood there is gone: of a list of what has names, each of it.
    fn whole(&mut self, path: &str, had: &Node) {
        match &had.value {
            Value::Sequence(list) if list.iter().any(|node| name(node).is_some()) => {
                self.within_list(path, list, &[]);
            }
            _ => self.0.push(path.to_owned()),
        }
    }
}

fn is_about_fetching(path: &str, key: &str) -> bool {
    // Directly below a provider alone: deeper keys have other meanings.
    path.starts_with("providers ") && path.ends_with('"') && ABOUT_FETCHING.contains(&key)
}

fn member<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    let Value::Mapping(members) = &node.value else { return None };
    members.iter().find(|member| member.key == key).map(|member| &member.node)
}

fn name(node: &Node) -> Option<&str> {
    match &member(node, "name")?.value {
        Value::Scalar { text, .. } => Some(text),
        _ => None,
    }
}

/// `key:` with nothing behind it, or what YAML has for that.
fn is_nothing(node: &Node) -> bool {
    matches!(&node.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null"))
}

#[cfg(test)]
mod tests {
    use super::losses;

    const BEFORE: &str = "\
listen:
  ext_authz: 127.0.0.1:9191
  forward_auth:
    - {address: 127.0.0.1:9192, profile: nginx, tls: {cert_file: c, key_file: k}}
    - {address: 127.0.0.1:9193, profile: caddy}
  admin: 127.0.0.1:9194
providers:
  - name: p
    issuer: https://p
    audiences: [a, b]
    required_claims: [tenant]
    jwks_uri: https://p/keys
  - name: q
    issuer: https://q
    audiences: [a]
default: deny
rules:
  - name: admin
    match: {path_prefix: /admin/, methods: [GET, POST]}
    require:
      scopes: [a, b]
  - name: blocked
    match: {path_prefix: /internal/}
    deny: true
log: {level: info}
";

    #[track_caller]
    fn lost(from: &str, to: &str, expected: &[&str]) {
        assert!(BEFORE.contains(from), "{from}");
        assert_eq!(losses(BEFORE, &BEFORE.replacen(from, to, 1)), expected, "{from} -> {to}");
    }

    #[test]
    fn what_is_gone_is_told_by_name() {
        lost(
            "  - name: blocked\n    match: {path_prefix: /internal/}\n    deny: true\n",
            "",
            &["rules \"blocked\""],
        );
        lost("    deny: true\n", "", &["rules \"blocked\".deny"]);
        lost("deny: true", "deny: false", &["rules \"blocked\".deny: true"]);
        lost("    match: {path_prefix: /internal/}\n", "", &["rules \"blocked\".match"]);
        lost(", methods: [GET, POST]", "", &["rules \"admin\".match.methods"]);
        lost("    require:\n      scopes: [a, b]\n", "", &["rules \"admin\".require"]);
        lost("scopes: [a, b]", "scopes: [a]", &["rules \"admin\".require.scopes (1 of 2)"]);
        lost("default: deny\n", "", &["default"]);
        lost("default: deny\n", "default: token\n", &["default: deny"]);
        lost("  admin: 127.0.0.1:9194\n", "", &["listen.admin"]);
        lost(", tls: {cert_file: c, key_file: k}", "", &["listen.forward_auth[0].tls"]);
        lost("    - {address: 127.0.0.1:9193, profile: caddy}\n", "", &["listen.forward_auth (1 of 2)"]);
        lost("    required_claims: [tenant]\n", "", &["providers \"p\".required_claims"]);
        lost("required_claims: [tenant]", "required_claims:", &["providers \"p\".required_claims"]);
        lost("  - name: q\n    issuer: https://q\n    audiences: [a]\n", "", &["providers \"q\""]);
        lost("name: blocked", "name: other", &["rules \"blocked\""]);
        let at = BEFORE.find("rules:").expect("there");
        assert_eq!(losses(BEFORE, &BEFORE[..at]), ["rules \"admin\"", "rules \"blocked\""]);
    }

    #[test]
    fn what_is_exchanged_or_added_or_about_fetching_is_no_loss() {
        for (from, to) in [
            ("/internal/", "/other/"),
            ("scopes: [a, b]", "scopes: [c, d, e]"),
            ("    deny: true\n", "    deny: true\n  - name: more\n    match: {path: /x}\n"),
            ("jwks_uri: https://p/keys", "jwks_file: /keys"),
            ("log: {level: info}\n", ""),
            ("127.0.0.1:9194", "127.0.0.1:9195"),
            ("ext_authz: 127.0.0.1:9191", "ext_authz: [127.0.0.1:9191]"),
        ] {
            lost(from, to, &[]);
        }
        assert_eq!(losses("default: token\n", "default: deny\n"), [""; 0]);
        assert_eq!(losses(BEFORE, BEFORE), [""; 0]);
    }

    #[test]
    fn a_last_line_that_may_go_on_is_a_loss() {
        assert_eq!(losses(BEFORE, BEFORE.trim_end()), ["the end of the last line"]);
        assert_eq!(losses(BEFORE.trim_end(), BEFORE.trim_end()), [""; 0]);
        let other = BEFORE.replacen("127.0.0.1:9194", "127.0.0.1:9195", 1);
        assert_eq!(losses(BEFORE.trim_end(), other.trim_end()), [""; 0]);
        assert_eq!(losses("a: /internal/", "a: /int"), ["the end of the last line"]);
    }

    #[test]
    fn wherever_the_file_is_cut_something_of_rules_or_what_stands_before_them_is_lost() {
        let rules_end = BEFORE.find("log:").expect("there");
        for end in 1..rules_end {
            let cut = &BEFORE[..end];
            let parsed = super::document::parse(cut);
            if parsed.0.is_some() && parsed.1.is_empty() {
                assert_ne!(losses(BEFORE, cut), [""; 0], "cut behind {cut:?}");
            }
        }
    }
}
