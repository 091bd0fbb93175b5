//! The output of `validate --print` is parsed as the same configuration, for all keys and values. Also: secrets that no error
//! and no output shows.

use portcullis::config::Config;
use portcullis::rules::{Effect, Requirements};

use super::{Errors, MINIMAL, parse};

/// Strings with a meaning in YAML, in variable expansion or in neither.
const TEXTS: [&str; 44] = [
    "a",
    "$",
    "$$",
    "$a",
    "$}",
    "a: b",
    "a:",
    ":",
    "::",
    "a #b",
    "#",
    "a\"b",
    "\"",
    "'",
    "a'b",
    "\\",
    "a\\n",
    "a\nb",
    "\n",
    "a\r\nb",
    "\t",
    "a\tb",
    " a ",
    "-",
    "- a",
    "?",
    "? a",
    "!",
    "!!str a",
    "&a",
    "*a",
    "|",
    ">",
    "%a",
    "@a",
    "`",
    "{a: b}",
    "[a, b]",
    "true",
    "1",
    "~",
    "null",
    "é\u{85}\u{2028}\u{2029}\u{feff}\u{7f}\u{9f}\u{1b}\u{1}",
    "🦀\u{ffff}\u{10ffff}",
];

/// Additional strings for values.
const EXPANDED: [&str; 6] = ["${A}", "$${A}", "$$${A}", "a${", "$${$${", "${A:-b}"];

fn as_yaml(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn requirements(config: &Config) -> &Requirements {
    match &config.rules.all()[0].effect {
        Effect::Require(requirements) => requirements,
        other => panic!("{other}"),
    }
}

#[test]
fn any_key_or_value_is_printed_in_a_form_that_reads_back() {
    let long = "\u{1}".repeat(2000);
    let texts = TEXTS.into_iter().chain([long.as_str()]);
    let values = TEXTS.into_iter().chain(EXPANDED).chain([long.as_str()]);
    let keys = texts.map(|text| (text, "a"));
    for (key, value) in keys.chain(values.map(|text| ("a", text))) {
        let (as_key, as_value) = (as_yaml(key), as_yaml(&value.replace("${", "$${")));
        let text = format!(
            "{MINIMAL}    required_claims: [{as_value}]
    claim_headers: {{x-a: {as_value}}}
rules:
  - {{name: r, require: {{claims: {{{as_key}: [{as_value}, 1]}}}}}}
responses: {{body: {{expired: {as_value}}}}}
"
        );
        // A key of this length needs YAML's explicit key indicator.
        let text = if key == long { text.replace(&as_key, &format!("? {as_key}")) } else { text };
        let config = parse(&text).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        assert_eq!(requirements(&config).claims[0].claim.to_string(), key);
        let printed = config.to_yaml();
        let again = parse(&printed).unwrap_or_else(|errors| panic!("{errors}\n{printed}"));
        assert_eq!(requirements(&again), requirements(&config), "{printed}");
        assert_eq!(again.providers[0].provider, config.providers[0].provider, "{printed}");
        assert_eq!(again.responses, config.responses, "{printed}");
        assert_eq!(again.to_yaml(), printed);
    }
}

#[test]
fn a_variable_in_a_key_is_refused_since_only_values_are_expanded() {
    let mut errors = Errors::default();
    for key in ["${CLAIM}", "$${CLAIM}", "a${", "/a/${CLAIM:-b}"] {
        let text = format!("{MINIMAL}rules:\n  - {{name: r, require: {{claims: {{'{key}': a}}}}}}\n");
        errors.of(&text);
    }
    errors.compare("a_variable_in_a_key_is_refused_since_only_values_are_expanded");
}

/// Only the owner of a variable may see its value.
const SECRET: &str = "(s3cret-of-the-environment";

#[test]
fn no_error_quotes_what_a_variable_holds() {
    let variable = |name: &str| (name == "SECRET").then(|| SECRET.to_owned());
    for (at, text) in [
        ("path_regex", "rules: [{name: r, match: {path_regex: '/a${SECRET}'}, deny: true}]"),
        ("path", "rules: [{name: r, match: {path: '${SECRET}'}, deny: true}]"),
        ("hosts", "rules: [{name: r, match: {hosts: ['${SECRET}']}, deny: true}]"),
        ("methods", "rules: [{name: r, match: {methods: ['${SECRET}']}, deny: true}]"),
        ("condition", "rules: [{name: r, require: {condition: 'a ${SECRET}'}}]"),
        ("scopes", "rules: [{name: r, require: {scopes: ['${SECRET} b']}}]"),
        ("providers", "rules: [{name: r, providers: ['${SECRET}']}]"),
        ("trusted_proxies", "trusted_proxies: ['${SECRET}']"),
        ("trusted_headers", "trusted_headers: ['${SECRET}']"),
        ("level", "log: {level: '${SECRET}'}"),
        ("grace", "shutdown: {grace: '${SECRET}'}"),
        ("token_bytes", "limits: {token_bytes: '${SECRET}'}"),
        ("expired", "responses: {headers: {expired: {x-a: \"${SECRET}\\0\"}}}"),
    ] {
        let text = format!("{MINIMAL}{text}\n");
        let errors = Config::parse(&text, &variable).expect_err(&text).to_string();
        assert!(errors.contains(at), "{text}: {errors}");
        assert!(!errors.contains("s3cret"), "{text}: {errors}");
    }
    // A variable that every process has.
    let path = std::env::var("PATH").expect("set");
    for key in ["jwks_file: '/${PATH}'", "http: {ca_file: '${PATH}'}"] {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("p.yaml");
        let text = format!(
            "listen: {{ext_authz: 127.0.0.1:0}}\nproviders: [{{name: p, issuer: https://i, audiences: [a], {key}}}]\n"
        );
        std::fs::write(&file, text).expect("written");
        let errors = Config::load(&file).expect_err(key).to_string();
        assert!(errors.contains("${PATH} cannot be read"), "{key}: {errors}");
        assert!(!errors.contains(&path), "{key}: {errors}");
    }
}

#[test]
fn a_secret_in_place_of_a_key_is_not_shown() {
    let secret = "c3VwZXItc2VjcmV0LWhzLWtleS0wMTIz";
    for text in [format!("{MINIMAL}{secret}: a\n"), format!("{MINIMAL}limits: {{{secret}, kid: one}}\n")] {
        let errors = parse(&text).expect_err(&text).to_string();
        assert!(errors.contains("unknown key, which is not shown") && !errors.contains(secret), "{errors}");
    }
}
