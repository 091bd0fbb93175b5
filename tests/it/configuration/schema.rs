//! The JSON Schema in `deploy/`: it is the current version, has the same keys as the parser, and accepts what the parser
//! accepts.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use portcullis::config::{Config, json_schema_text, reference_text};
use serde_json::{Value, json};

use super::{EXAMPLE, LISTENERS, MINIMAL, provider_with};

fn schema() -> Value {
    serde_json::from_str(&json_schema_text()).expect("the schema is JSON")
}

/// If set, the files are written instead of compared.
const UPDATE: &str = "UPDATE_CONFIGURATION";

#[test]
fn the_schema_in_deploy_and_the_reference_in_docs_are_current() {
    for (file, text) in
        [("deploy/portcullis.schema.json", json_schema_text()), ("docs/configuration.md", reference_text())]
    {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        if std::env::var_os(UPDATE).is_some() {
            fs::write(&path, &text).expect("the folder can be written to");
        }
        let shipped = fs::read_to_string(&path).unwrap_or_default();
        assert!(shipped == text, "{file} is not current: run this test with {UPDATE}=1");
    }
}

#[test]
fn every_default_of_the_reference_applies_if_the_key_is_absent() {
    let printed = Config::parse(MINIMAL, &|_| None).expect("valid").to_yaml();
    let reference = reference_text();
    for (key, default) in [("clock_skew", "30s"), ("interval", "5m"), ("max_waiting_bytes", "48MiB")] {
        assert!(printed.contains(&format!("{key}: {default}\n")), "{printed}");
        let row = reference.lines().find(|line| line.starts_with(&format!("| `{key}` |"))).expect("a row");
        assert!(row.ends_with(&format!("| `{default}` |")), "{row}");
    }
}

/// For each mapping of the schema, a document with an unknown key in it.
fn unknown_key_in(mapping: &str) -> String {
    let rule = |text: &str| format!("{MINIMAL}rules:\n  - {{name: r, {text}}}\n");
    let listen = |text: &str| MINIMAL.replace("{ext_authz: 127.0.0.1:0}", text);
    match mapping {
        "Configuration" => format!("{MINIMAL}Zq: 1\n"),
        "Listen" => listen("{ext_authz: 127.0.0.1:0, Zq: 1}"),
        "GrpcListener" => listen("{ext_authz: {address: 127.0.0.1:0, Zq: 1}}"),
        "AdminListener" => listen("{ext_authz: 127.0.0.1:0, admin: {address: 127.0.0.1:0, Zq: 1}}"),
        "HttpListener" => {
            listen("{ext_authz: 127.0.0.1:0, forward_auth: {address: 127.0.0.1:0, profile: nginx, Zq: 1}}")
        }
        "Tls" => listen("{ext_authz: {address: 127.0.0.1:0, tls: {Zq: 1}}}"),
        "Provider" => provider_with("Zq: 1"),
        "Http" => provider_with("http: {Zq: 1}"),
        "TokenSource" => provider_with("token_from: [{Zq: 1}]"),
        "EncodedClaim" => provider_with("claim_headers: {x-a: {Zq: 1}}"),
        "Refresh" => provider_with("refresh: {Zq: 1}"),
        "Rule" => rule("Zq: 1"),
        "Match" => rule("match: {Zq: 1}"),
        "Require" => rule("require: {Zq: 1}"),
        "Responses" => format!("{MINIMAL}responses: {{Zq: 1}}\n"),
        "Cors" => format!("{MINIMAL}responses: {{cors: {{Zq: 1}}}}\n"),
        "Limits" => format!("{MINIMAL}limits: {{Zq: 1}}\n"),
        "TokenCache" => format!("{MINIMAL}token_cache: {{Zq: 1}}\n"),
        "Shutdown" => format!("{MINIMAL}shutdown: {{Zq: 1}}\n"),
        "Log" => format!("{MINIMAL}log: {{Zq: 1}}\n"),
        other => panic!("no document for {other}: add one"),
    }
}

#[test]
fn the_schema_knows_the_keys_that_the_reader_knows() {
    let schema = schema();
    let mut mappings: Vec<(&str, &Value)> = vec![("Configuration", &schema["properties"])];
    for (name, definition) in schema["$defs"].as_object().expect("definitions") {
        if let Some(properties) = definition.get("properties") {
            assert_eq!(definition["additionalProperties"], json!(false), "{name}");
            mappings.push((name, properties));
        }
    }
    assert!(mappings.len() > 15);
    for (name, properties) in mappings {
        let errors = Config::parse(&unknown_key_in(name), &|_| None).expect_err(name);
        let known = errors
            .iter()
            .find_map(|error| error.message.strip_prefix("unknown key; known keys: "))
            .unwrap_or_else(|| panic!("{name}: {errors}"));
        let known: BTreeSet<&str> = known.split(", ").collect();
        let described: BTreeSet<&str> =
            properties.as_object().expect("properties").keys().map(String::as_str).collect();
        assert_eq!(described, known, "{name}");
    }
}

#[test]
fn the_example_shows_every_key() {
    let schema = schema();
    let definitions = schema["$defs"].as_object().expect("definitions").values();
    for properties in definitions.chain([&schema]).filter_map(|one| one.get("properties")) {
        for key in properties.as_object().expect("properties").keys() {
            assert!(EXAMPLE.contains(&format!("{key}:")), "{key}");
        }
    }
}

/// A YAML document as JSON, as editors validate it against a schema.
fn document(yaml: &str) -> Value {
    serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

#[test]
fn the_schema_accepts_what_the_reader_accepts_and_no_wrong_types() {
    let schema = jsonschema::validator_for(&schema()).expect("a schema");
    let rules = r"
rules:
  - {name: a, match: {path: /a, methods: [GET], hosts: ['*.example.com']}, allow: anonymous}
  - {name: b, deny: true}
  - {name: c, providers: [p], require: {scopes: [x], claims: {a: [1, x, true], b: x}, condition: 'true'}}
responses:
  keys_unavailable_status: ${STATUS:-503}
  body: {expired: x}
  headers: {expired: {a: b}}
";
    for text in [
        EXAMPLE.to_owned(),
        MINIMAL.to_owned(),
        LISTENERS.to_owned(),
        format!("{MINIMAL}{rules}"),
        provider_with("refresh: {interval: '${INTERVAL:-5m}', max_bytes: 2048, max_waiters: 5}"),
        provider_with("allow_http: ${ALLOW:-true}"),
        MINIMAL.replace("issuer: https://sso.example.com", "spiffe: example.org\n    jwks_file: bundle.json"),
        format!("x-b: &b {{wait: 1s}}\nx-c: 1\n{}", provider_with("refresh: {<<: *b, timeout: 1s}")),
        MINIMAL.replace("https://sso.example.com", "https://sso.example.com/{realm}\n    realms: [a, b]"),
        MINIMAL.replace("https://sso.example.com", "https://sso.example.com/{realm}\n    realms: '[a-z]+'"),
        provider_with("claim_headers: {x-a: sub, x-b: {claim: /b, encoding: base64url}}"),
        format!(
            "{MINIMAL}limits: {{token_bytes: 1KiB, token_values: 100, token_depth: 4}}\nlog: {{level: debug}}\n"
        ),
    ] {
        Config::parse(&text, &|_| None).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        let errors: Vec<String> =
            schema.iter_errors(&document(&text)).map(|error| error.to_string()).collect();
        assert_eq!(errors, [""; 0], "{text}");
    }
    for text in [
        format!("{MINIMAL}Zq: 1\n"),
        format!("{MINIMAL}log: {{x-b: 1}}\n"),
        format!("{MINIMAL}log: {{level: loud}}\n"),
        format!("{MINIMAL}rules: {{}}\n"),
        format!("{MINIMAL}limits: {{token_depth: 3}}\n"),
        format!("{MINIMAL}limits: {{connections: 0}}\n"),
        MINIMAL.replace("127.0.0.1:0", "[]"),
        format!("{MINIMAL}rules:\n  - {{name: a, deny: false}}\n"),
        format!("{MINIMAL}responses: {{keys_unavailable_status: 200}}\n"),
        provider_with("refresh: {interval: 5}"),
        provider_with("algorithms: [none]"),
        provider_with("algorithms: []"),
        provider_with("realm: null"),
        MINIMAL.replace("    issuer: https://sso.example.com\n", ""),
        provider_with("spiffe: example.org\n    jwks_file: bundle.json"),
    ] {
        assert!(Config::parse(&text, &|_| None).is_err(), "{text}");
        assert!(!schema.is_valid(&document(&text)), "{text}");
    }
}
