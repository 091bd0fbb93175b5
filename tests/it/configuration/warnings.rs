//! Valid but dangerous settings: each is a warning with its position, not an error.

use super::{MINIMAL, parse, provider_with};
use crate::support::subprocess::StartCommand;

/// The warnings of a valid configuration: line, path and message.
#[track_caller]
fn warnings(text: &str) -> Vec<(usize, String, String)> {
    let config = parse(text).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    config
        .warnings
        .into_iter()
        .map(|warning| (warning.at.map_or(0, |at| at.line), warning.path, warning.message))
        .collect()
}

fn rules(lines: &[&str]) -> String {
    let rules: String =
        lines.iter().enumerate().map(|(i, line)| format!("  - {{name: r{i}, {line}}}\n")).collect();
    format!("{MINIMAL}rules:\n{rules}")
}

#[test]
fn dangerous_settings_are_warnings_with_their_place() {
    let any = MINIMAL.replace("audiences: [a]", "any_audience: true");
    let http = "jwks_uri: http://sso.example.com/keys\n    allow_http: true";
    let everywhere = &["match: {path_prefix: /}, allow: anonymous"];
    for (text, line, path, message) in [
        (any, 6, "providers[0].any_audience", "every other service of this issuer"),
        (provider_with(http), 7, "providers[0].jwks_uri", "from a public host"),
        (
            provider_with(&http.replace("sso.example.com", "203.0.113.9")),
            7,
            "providers[0].jwks_uri",
            "public",
        ),
        (
            provider_with(&http.replace("sso.example.com", "[2001:4860::1]")),
            7,
            "providers[0].jwks_uri",
            "public",
        ),
        (rules(everywhere), 8, "rules[0]", "every path"),
        (rules(&["allow: anonymous"]), 8, "rules[0]", "every path"),
        (rules(&["match: {methods: [GET]}, allow: anonymous"]), 8, "rules[0]", "every path"),
        (rules(&["match: {path_regex: '/.*'}, allow: anonymous"]), 8, "rules[0]", "every path"),
        (
            rules(&["match: {path: /a}, deny: true", "ambiguous_paths: allow"]),
            9,
            "rules[1].ambiguous_paths",
            "does not decode them",
        ),
        (
            format!("{MINIMAL}trusted_proxies: [10.0.0.0/8, 0.0.0.0/0]\n"),
            7,
            "trusted_proxies[1]",
            "bypass the rules",
        ),
    ] {
        let got = warnings(&text);
        let [(got_line, got_path, got_message)] = got.as_slice() else { panic!("{got:?} for\n{text}") };
        assert_eq!((*got_line, got_path.as_str()), (line, path), "{got_message}");
        assert!(got_message.contains(message), "{got_message}");
    }
}

#[test]
fn a_rule_that_can_never_match_is_a_warning_that_names_the_covering_rule() {
    for (first, second, never) in [
        ("deny: true", "match: {path: /a}, deny: true", true),
        ("deny: true", "allow: preflight", true),
        ("allow: preflight", "deny: true", false),
        ("allow: preflight", "match: {path: /a}, allow: preflight", true),
        ("match: {path_prefix: /a}, deny: true", "match: {path_prefix: /a/b}, deny: true", true),
        ("match: {path_prefix: /a}, deny: true", "match: {path_prefix: /a/}, deny: true", true),
        ("match: {path_prefix: /a}, deny: true", "match: {path_prefix: /ab}, deny: true", false),
        ("match: {path_prefix: /a}, deny: true", "match: {path: /a/b}, deny: true", true),
        ("match: {path_prefix: /a/b}, deny: true", "match: {path_prefix: /a}, deny: true", false),
        ("match: {path_prefix: /}, deny: true", "require: {scopes: [x]}", true),
        ("match: {path_regex: '/a.*'}, deny: true", "match: {path: /ab}, deny: true", true),
        ("match: {path_regex: '/a.*'}, deny: true", "match: {path_regex: '/a.*'}, deny: true", true),
        ("match: {path_regex: '/a.*'}, deny: true", "match: {path_prefix: /a}, deny: true", false),
        ("match: {methods: [GET, HEAD]}, deny: true", "match: {methods: [GET]}, deny: true", true),
        ("match: {methods: [GET]}, deny: true", "match: {methods: [GET, HEAD]}, deny: true", false),
        ("match: {methods: [GET]}, deny: true", "match: {path: /a}, deny: true", false),
        (
            "match: {hosts: ['*.a.com']}, deny: true",
            "match: {hosts: [x.a.com, '*.y.a.com']}, deny: true",
            true,
        ),
        ("match: {hosts: ['*.a.com']}, deny: true", "match: {hosts: [a.com]}, deny: true", false),
        ("match: {hosts: [x.a.com]}, deny: true", "match: {hosts: ['*.a.com']}, deny: true", false),
        ("match: {hosts: [x.a.com]}, deny: true", "match: {path: /a}, deny: true", false),
    ] {
        let got = warnings(&rules(&[first, second]));
        let warned = got.iter().any(|(line, path, message)| {
            (*line, path.as_str()) == (9, "rules[1]") && message.contains("can never match: `r0`, in line 8")
        });
        assert_eq!(warned, never, "{first} then {second}: {got:?}");
    }
}

#[test]
fn ordinary_settings_cause_no_warning() {
    let private = |host: &str| provider_with(&format!("jwks_uri: http://{host}/keys\n    allow_http: true"));
    for text in [
        MINIMAL.to_owned(),
        include_str!("../../../deploy/portcullis.yaml").to_owned(),
        private("keycloak"),
        private("keycloak.internal:8080"),
        private("keycloak.auth.svc.cluster.local"),
        private("10.1.2.3"),
        private("[fd00::1]"),
        private("[::ffff:10.0.0.1]"),
        private("localhost"),
        provider_with("jwks_uri: https://sso.example.com/keys\n    allow_http: true"),
        rules(&[
            "match: {path: /healthz}, allow: anonymous",
            "match: {path_prefix: /public}, allow: anonymous",
        ]),
        rules(&["match: {path_prefix: /files}, ambiguous_paths: refuse", "match: {path: /a}, deny: true"]),
    ] {
        assert_eq!(warnings(&text), [], "{text}");
    }
}

#[test]
fn validate_prints_warnings_as_editors_follow_them_and_succeeds() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let file = folder.path().join("portcullis.yaml");
    std::fs::write(&file, rules(&["allow: anonymous"])).expect("can be written");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["validate", "--config"])
        .arg(&file)
        .run_and_read()
        .expect("the binary runs");
    assert!(output.status.success());
    let warned = String::from_utf8(output.stderr).expect("text");
    let expected = format!("{}:8:5: warning: rules[0]: allows every request to every path", file.display());
    assert!(warned.starts_with(&expected), "{warned}");
}
