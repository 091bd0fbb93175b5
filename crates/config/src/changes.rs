//! Compares two configurations by their texts: a file that was truncated or partly overwritten during a write can
//! be valid, and can allow requests that neither of its versions would allow.

use std::collections::HashMap;

use super::document::{self, Member, Node, Value};
use super::error::member_path;

/// The sections that affect no decision and no listener.
const NOT_DECIDING: [&str; 2] = ["log", "shutdown"];

/// The keys of a provider that affect no decision. The location of its keys does: it determines which keys are
/// trusted.
const NOT_DECIDING_IN_PROVIDER: [&str; 1] = ["ready_without_keys"];

/// The difference between two configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// What was removed: rules, providers, resources, listeners and other sections, whatever their values, and
    /// elements of lists; by name if there is one, in the order of the file. A replaced value is not listed, except
    /// a replaced `deny: true` or `default: deny`.
    pub lost: Vec<String>,
    /// Whether anything that affects decisions or listeners was added, removed or replaced: everything except
    /// comments, `log`, `shutdown` and `ready_without_keys`.
    pub decides: bool,
    /// Whether the last line has no line end although the previous configuration had one: the file may be
    /// incomplete.
    pub unfinished: bool,
}

impl Change {
    /// The change from the text of a valid configuration to another text. If that text is not YAML, it may affect
    /// any decision.
    pub fn between(before: &str, after: &str) -> Self {
        let unfinished = before.ends_with('\n') && !after.ends_with('\n');
        let (Some(before), Some(after)) = (document::parse(before, "").0, document::parse(after, "").0)
        else {
            return Self { lost: Vec::new(), decides: true, unfinished };
        };
        let mut lost = Removed(Vec::new());
        for section in deciding_members("", &before) {
            lost.compare(&section.key, &section.key, &section.node, member(&after, &section.key));
        }
        Self { lost: lost.0, decides: !is_equivalent("", &before, &after), unfinished }
    }
}

/// The members at this path that affect decisions.
fn deciding_members<'n>(path: &str, node: &'n Node) -> impl Iterator<Item = &'n Member> {
    let members: &[Member] = match &node.value {
        Value::Mapping(members) => members,
        _ => &[],
    };
    // Only directly below a provider: deeper keys have other meanings.
    let of_provider = path.starts_with("providers ") && path.ends_with('"') || path == "providers[]";
    let not_deciding: &[&str] = match path {
        "" => &NOT_DECIDING,
        _ if of_provider => &NOT_DECIDING_IN_PROVIDER,
        _ => &[],
    };
    members.iter().filter(move |member| !not_deciding.contains(&member.key.as_str()))
}

/// Whether both have the same content, regardless of positions and the order of keys.
fn is_equivalent(path: &str, one: &Node, other: &Node) -> bool {
    match (&one.value, &other.value) {
        (Value::Mapping(_), Value::Mapping(_)) => {
            let same = |before: &Member| {
                let path = member_path(path, &before.key);
                member(other, &before.key).is_some_and(|after| is_equivalent(&path, &before.node, after))
            };
            deciding_members(path, one).count() == deciding_members(path, other).count()
                && deciding_members(path, one).all(same)
        }
        (Value::Sequence(one), Value::Sequence(other)) => {
            let path = format!("{path}[]");
            let mut pairs = one.iter().zip(other);
            one.len() == other.len() && pairs.all(|(one, other)| is_equivalent(&path, one, other))
        }
        (one, other) => one == other,
    }
}

struct Removed(Vec<String>);

impl Removed {
    /// Compares the values at a path; `key` is the last step of the path.
    fn compare(&mut self, path: &str, key: &str, before: &Node, after: Option<&Node>) {
        let Some(after) = after.filter(|after| !is_null(after) || is_null(before)) else {
            return self.removed(path, before);
        };
        match (&before.value, &after.value) {
            (Value::Mapping(_), Value::Mapping(_)) => {
                for before in deciding_members(path, before) {
                    self.compare(
                        &member_path(path, &before.key),
                        &before.key,
                        &before.node,
                        member(after, &before.key),
                    );
                }
            }
            (Value::Sequence(before), Value::Sequence(after)) => self.compare_lists(path, before, after),
            // A list may be written as its only element.
            (Value::Sequence(before), _) => self.compare_lists(path, before, std::slice::from_ref(after)),
            (Value::Mapping(_), Value::Sequence(list)) => self.compare(path, key, before, list.first()),
            (Value::Mapping(_), Value::Scalar { .. }) => self.0.push(path.to_owned()),
            (Value::Scalar { text: before, .. }, Value::Scalar { text: after, .. }) => {
                let is_restrictive = matches!((key, before.as_str()), ("deny", "true") | ("default", "deny"));
                if is_restrictive && before != after {
                    self.0.push(format!("{path}: {before}"));
                }
            }
            (Value::Scalar { .. } | Value::Mapping(_) | Value::Refused, _) => {}
        }
    }

    fn compare_lists(&mut self, path: &str, before: &[Node], after: &[Node]) {
        let named: Option<Vec<(&Node, &str)>> =
            before.iter().map(|node| name(node).map(|name| (node, name))).collect();
        if let Some(named) = named.filter(|named| !named.is_empty()) {
            let after: HashMap<&str, &Node> =
                after.iter().filter_map(|node| name(node).map(|name| (name, node))).collect();
            for (before, name_before) in named {
                self.compare(
                    &format!("{path} {name_before:?}"),
                    path,
                    before,
                    after.get(name_before).copied(),
                );
            }
            return;
        }
        if after.len() < before.len() {
            let count = before.len() - after.len();
            self.0.push(format!("{path} ({count} of {})", before.len()));
        }
        for (index, (before, after)) in before.iter().zip(after).enumerate() {
            self.compare(&format!("{path}[{index}]"), path, before, Some(after));
        }
    }

    /// The whole value was removed: of a list with named elements, each element is listed.
    fn removed(&mut self, path: &str, before: &Node) {
        match &before.value {
            Value::Sequence(list) if list.iter().any(|node| name(node).is_some()) => {
                self.compare_lists(path, list, &[]);
            }
            _ => self.0.push(path.to_owned()),
        }
    }
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

/// `key:` without a value, or an explicit null.
fn is_null(node: &Node) -> bool {
    matches!(&node.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null"))
}

#[cfg(test)]
mod tests {
    use super::Change;

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

    fn losses(before: &str, after: &str) -> Vec<String> {
        Change::between(before, after).lost
    }

    #[track_caller]
    fn lost(from: &str, to: &str, expected: &[&str]) {
        assert!(BEFORE.contains(from), "{from}");
        assert_eq!(losses(BEFORE, &BEFORE.replacen(from, to, 1)), expected, "{from} -> {to}");
    }

    #[test]
    fn removed_parts_are_listed_by_name() {
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
        lost("jwks_uri: https://p/keys", "jwks_file: /keys", &["providers \"p\".jwks_uri"]);
        let at = BEFORE.find("rules:").expect("there");
        assert_eq!(losses(BEFORE, BEFORE.split_at(at).0), ["rules \"admin\"", "rules \"blocked\""]);
    }

    #[test]
    fn replaced_or_added_parts_are_not_lost_but_decide() {
        for (from, to) in [
            ("/internal/", "/other/"),
            ("scopes: [a, b]", "scopes: [c, d, e]"),
            ("    deny: true\n", "    deny: true\n  - name: more\n    match: {path: /x}\n"),
            ("127.0.0.1:9194", "127.0.0.1:9195"),
            ("ext_authz: 127.0.0.1:9191", "ext_authz: [127.0.0.1:9191]"),
            ("default: deny\n", "default: deny\ntrusted_proxies: [10.0.0.0/8]\n"),
            ("[GET, POST]", "[POST, GET]"),
            ("https://p/keys", "https://p/key"),
        ] {
            lost(from, to, &[]);
            assert!(Change::between(BEFORE, &BEFORE.replacen(from, to, 1)).decides, "{from} -> {to}");
        }
        assert_eq!(losses("default: token\n", "default: deny\n"), [""; 0]);
    }

    #[test]
    fn comments_log_shutdown_and_ready_without_keys_decide_nothing() {
        for (from, to) in [
            (
                "    jwks_uri: https://p/keys\n",
                "    jwks_uri: https://p/keys\n    ready_without_keys: true\n",
            ),
            ("log: {level: info}\n", ""),
            ("log: {level: info}\n", "log: {level: warn}\nshutdown: {grace: 1s}\n"),
            ("default: deny\n", "# Nothing else.\ndefault: deny # at all\n"),
            ("path_prefix: /admin/, methods: [GET, POST]", "methods: [GET, POST], path_prefix: /admin/"),
        ] {
            let change = Change::between(BEFORE, &BEFORE.replacen(from, to, 1));
            assert_eq!(change, Change::default(), "{from} -> {to}");
        }
    }

    #[test]
    fn every_removed_section_is_lost() {
        for section in ["trusted_proxies", "trusted_headers", "responses", "limits", "resources"] {
            let before = format!("{BEFORE}{section}: {{a: 1}}\n");
            assert_eq!(losses(&before, BEFORE), [section]);
        }
    }

    #[test]
    fn an_unfinished_last_line_is_reported() {
        let unfinished = |before: &str, after: &str| Change::between(before, after).unfinished;
        assert!(unfinished(BEFORE, BEFORE.trim_end()));
        assert!(!unfinished(BEFORE.trim_end(), BEFORE.trim_end()));
        assert!(!unfinished("a: /internal/", "a: /int"), "there was none before");
        assert!(!unfinished("a: /internal/", "a: /int\n"));
    }

    /// The settings of two providers, written once.
    const SHARED: &str = "\
x-refresh: &refresh {wait: 1s}
providers:
  - {name: p, refresh: *refresh}
  - {name: q, refresh: {<<: *refresh, timeout: 1s}}
";

    #[test]
    fn a_change_through_an_alias_counts_at_every_use() {
        let change = Change::between(SHARED, &SHARED.replace("wait: 1s", "wait: 2s"));
        assert_eq!((change.decides, change.lost), (true, vec![]));
        assert_eq!(
            losses(SHARED, &SHARED.replace("wait: 1s", "interval: 1s")),
            ["providers \"p\".refresh.wait", "providers \"q\".refresh.wait"]
        );
    }

    #[test]
    fn expanding_aliases_decides_nothing() {
        let written_out = "\
providers:
  - {name: p, refresh: {wait: 1s}}
  - {name: q, refresh: {timeout: 1s, wait: 1s}}
";
        assert_eq!(Change::between(SHARED, written_out), Change::default());
        assert_eq!(Change::between(written_out, SHARED), Change::default());
    }

    #[test]
    fn an_unused_x_key_decides_nothing() {
        let noted = format!("{SHARED}x-note: &note {{deny: true}}\n");
        assert_eq!(Change::between(&noted, SHARED), Change::default());
        assert_eq!(Change::between(&noted, &noted.replace("true", "false")), Change::default());
    }

    #[test]
    fn invalid_yaml_may_decide_anything() {
        assert!(Change::between(BEFORE, "a: [").decides);
        assert!(Change::between(BEFORE, "").decides);
    }

    #[test]
    fn a_truncated_file_is_unfinished_or_has_lost_parts() {
        let rules_end = BEFORE.find("log:").expect("there");
        for end in 1..rules_end {
            let cut = BEFORE.split_at(end).0;
            let parsed = super::document::parse(cut, "");
            if parsed.0.is_some() && parsed.1.is_empty() {
                let change = Change::between(BEFORE, cut);
                assert!(change.unfinished || !change.lost.is_empty(), "cut behind {cut:?}");
            }
        }
    }
}
