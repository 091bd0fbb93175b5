//! What a changed configuration means beside the one before, by the text of both: a file that was cut off, or overwritten
//! in part, while it was written can be valid, and open what neither version of it would.

use std::collections::HashMap;

use super::document::{self, Member, Node, Value};
use super::error::member_path;

/// The sections that decide nothing and open nothing.
const BESIDE: [&str; 2] = ["log", "shutdown"];

/// What of a provider decides nothing. Where its keys are, and how they are had, says who is believed.
const BESIDE_OF_PROVIDER: [&str; 1] = ["ready_without_keys"];

/// How one configuration differs from the one before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// What it lacks that the one before had: rules, providers, resources, listeners and other sections, whatever was said
    /// of them, and a list that became shorter; by name where there is one, in the order of the file. A value that was
    /// exchanged for another is none of it, but for a `deny` or a `default: deny` that says something else.
    pub lost: Vec<String>,
    /// Whether anything is added, gone or exchanged that decisions or listeners go by: all but comments, `log`, `shutdown` and
    /// `ready_without_keys`.
    pub decides: bool,
    /// Whether the last line has no end, though the one of the configuration before had: it may go on.
    pub unfinished: bool,
}

impl Change {
    /// From the text of a valid configuration to the text of another. Of a text that is no YAML all that can be said is that
    /// it may decide anything.
    pub fn between(before: &str, after: &str) -> Self {
        let unfinished = before.ends_with('\n') && !after.ends_with('\n');
        let (Some(had), Some(has)) = (document::parse(before).0, document::parse(after).0) else {
            return Self { lost: Vec::new(), decides: true, unfinished };
        };
        let mut lost = Lost(Vec::new());
        for section in deciding("", &had) {
            lost.within(&section.key, &section.key, &section.node, member(&has, &section.key));
        }
        Self { lost: lost.0, decides: !decide_alike("", &had, &has), unfinished }
    }
}

/// The members of what stands at this path, without those that decide nothing.
fn deciding<'n>(path: &str, node: &'n Node) -> impl Iterator<Item = &'n Member> {
    let members: &[Member] = match &node.value {
        Value::Mapping(members) => members,
        _ => &[],
    };
    // Directly below a provider alone: deeper keys have other meanings.
    let of_provider = path.starts_with("providers ") && path.ends_with('"') || path == "providers[]";
    let beside: &[&str] = match path {
        "" => &BESIDE,
        _ if of_provider => &BESIDE_OF_PROVIDER,
        _ => &[],
    };
    members.iter().filter(move |member| !beside.contains(&member.key.as_str()))
}

/// Whether both say the same, wherever it stands and in whatever order the keys of a mapping come.
fn decide_alike(path: &str, one: &Node, other: &Node) -> bool {
    match (&one.value, &other.value) {
        (Value::Mapping(_), Value::Mapping(_)) => {
            let same = |had: &Member| {
                let path = member_path(path, &had.key);
                member(other, &had.key).is_some_and(|has| decide_alike(&path, &had.node, has))
            };
            deciding(path, one).count() == deciding(path, other).count() && deciding(path, one).all(same)
        }
        (Value::Sequence(one), Value::Sequence(other)) => {
            let path = format!("{path}[]");
            let mut pairs = one.iter().zip(other);
            one.len() == other.len() && pairs.all(|(one, other)| decide_alike(&path, one, other))
        }
        (one, other) => one == other,
    }
}

struct Lost(Vec<String>);

impl Lost {
    /// Compares what stands at a place; `key` is the last step of its path.
    fn within(&mut self, path: &str, key: &str, had: &Node, has: Option<&Node>) {
        let Some(has) = has.filter(|has| !is_nothing(has) || is_nothing(had)) else {
            return self.whole(path, had);
        };
        match (&had.value, &has.value) {
            (Value::Mapping(_), Value::Mapping(_)) => {
                for had in deciding(path, had) {
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
        lost("jwks_uri: https://p/keys", "jwks_file: /keys", &["providers \"p\".jwks_uri"]);
        let at = BEFORE.find("rules:").expect("there");
        assert_eq!(losses(BEFORE, BEFORE.split_at(at).0), ["rules \"admin\"", "rules \"blocked\""]);
    }

    #[test]
    fn what_is_exchanged_or_added_is_no_loss_and_decides() {
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
    fn comments_the_log_the_end_and_whether_keys_are_waited_for_decide_nothing() {
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
    fn every_section_that_is_gone_is_a_loss() {
        for section in ["trusted_proxies", "trusted_headers", "responses", "limits", "resources"] {
            let before = format!("{BEFORE}{section}: {{a: 1}}\n");
            assert_eq!(losses(&before, BEFORE), [section]);
        }
    }

    #[test]
    fn a_last_line_that_may_go_on_is_told() {
        let unfinished = |before: &str, after: &str| Change::between(before, after).unfinished;
        assert!(unfinished(BEFORE, BEFORE.trim_end()));
        assert!(!unfinished(BEFORE.trim_end(), BEFORE.trim_end()));
        assert!(!unfinished("a: /internal/", "a: /int"), "there was none before");
        assert!(!unfinished("a: /internal/", "a: /int\n"));
    }

    /// What two providers are set to, written once.
    const SHARED: &str = "\
x-refresh: &refresh {wait: 1s}
providers:
  - {name: p, refresh: *refresh}
  - {name: q, refresh: {<<: *refresh, timeout: 1s}}
";

    #[test]
    fn a_change_behind_an_alias_is_one_wherever_the_alias_stands() {
        let change = Change::between(SHARED, &SHARED.replace("wait: 1s", "wait: 2s"));
        assert_eq!((change.decides, change.lost), (true, vec![]));
        assert_eq!(
            losses(SHARED, &SHARED.replace("wait: 1s", "interval: 1s")),
            ["providers \"p\".refresh.wait", "providers \"q\".refresh.wait"]
        );
    }

    #[test]
    fn the_same_with_and_without_aliases_decides_nothing() {
        let written_out = "\
providers:
  - {name: p, refresh: {wait: 1s}}
  - {name: q, refresh: {timeout: 1s, wait: 1s}}
";
        assert_eq!(Change::between(SHARED, written_out), Change::default());
        assert_eq!(Change::between(written_out, SHARED), Change::default());
    }

    #[test]
    fn what_stands_below_an_x_key_and_is_used_nowhere_decides_nothing() {
        let noted = format!("{SHARED}x-note: &note {{deny: true}}\n");
        assert_eq!(Change::between(&noted, SHARED), Change::default());
        assert_eq!(Change::between(&noted, &noted.replace("true", "false")), Change::default());
    }

    #[test]
    fn what_is_no_yaml_may_decide_anything() {
        assert!(Change::between(BEFORE, "a: [").decides);
        assert!(Change::between(BEFORE, "").decides);
    }

    #[test]
    fn wherever_the_file_is_cut_something_of_rules_or_what_stands_before_them_is_lost() {
        let rules_end = BEFORE.find("log:").expect("there");
        for end in 1..rules_end {
            let cut = BEFORE.split_at(end).0;
            let parsed = super::document::parse(cut);
            if parsed.0.is_some() && parsed.1.is_empty() {
                let change = Change::between(BEFORE, cut);
                assert!(change.unfinished || !change.lost.is_empty(), "cut behind {cut:?}");
            }
        }
    }
}
