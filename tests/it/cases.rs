//! `portcullis test` and `portcullis rules` of the built binary: cases are decided as the service would, with what differs and
//! without a token; the table has every rule; the recipes of docs/rules.md are what they say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::support::rule_cases::{Bearer, Case, PATH_CASES, RULE_CASES, RulesFixture};
use crate::support::shown;
use crate::support::snapshots::settings;
use crate::support::subprocess::StartCommand;

const NOW: &str = "1800000000";

const CONFIG: &str = "
listen: {ext_authz: '127.0.0.1:0'}
providers:
  - name: staff
    issuer: https://staff.example.com
    audiences: [orders-api, billing-api]
    jwks_uri: https://staff.example.com/keys
    claim_headers: {x-user: sub}
  - name: tenants
    issuer: https://sso.example.com/realms/{realm}
    realms: [acme]
    audiences: [orders-api]
default: deny
rules:
  - {name: health, match: {path: /healthz}, allow: anonymous}
  - {name: read, match: {path_prefix: /orders, methods: [GET]}, require: {scopes: ['orders:read']}}
  - {name: any, match: {path_prefix: /any}}
";

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder"));
        folder.file("p.yaml", CONFIG);
        folder
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).expect("written");
        path
    }

    /// The output for these cases: the exit code, standard output and standard error without the folder.
    fn test(&self, cases: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
        let cases = self.file("cases.yaml", cases);
        let output = test_cases(&self.0.path().join("p.yaml"), &[&cases], arguments);
        let folder = format!("{}/", self.0.path().display());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&folder, "");
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }
}

/// `portcullis test` of these files.
fn test_cases(config: &Path, cases: &[&Path], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.arg("test").arg("--config").arg(config).args(["--now", NOW]).args(arguments).args(cases);
    command.env_remove("PORTCULLIS_LOG").run_and_read().expect("the binary runs")
}

#[test]
fn cases_are_decided_with_claims_that_nobody_signed() {
    let cases = r#"
- {name: health, request: {path: /healthz}, token: none, expect: {verdict: allow, reason: anonymous, rule: health}}
- name: a reader
  request: {path: /orders/7, headers: {x-user: mallory}}
  claims: {sub: alice, scope: 'orders:read'}
  provider: staff
  expect: {verdict: allow, reason: ok, rule: read, headers: {x-user: alice, x-none: null}}
- {name: no scope, request: {path: /orders}, claims: {}, provider: staff, expect: {reason: insufficient_scope}}
- {name: no rule, request: {path: /x}, token: none, expect: {verdict: deny, reason: rule_denied, rule: null}}
- {name: expired, request: {path: /any}, claims: {exp: 1}, provider: staff, expect: {reason: expired}}
- {name: no exp, request: {path: /any}, claims: {exp: null}, provider: staff, expect: {reason: claim_missing}}
- {name: other audience, request: {path: /any}, claims: {aud: x}, provider: staff, expect: {reason: audience_mismatch}}
- {name: other issuer, request: {path: /any}, claims: {iss: x}, provider: staff, expect: {reason: issuer_unknown}}
- name: a realm
  request: {path: /any}
  claims: {iss: https://sso.example.com/realms/acme}
  provider: tenants
  expect: {verdict: allow}
- name: no realm
  request: {path: /any}
  claims: {iss: https://sso.example.com/realms/evil}
  provider: tenants
  expect: {verdict: deny, reason: issuer_unknown}
- name: what the client is told
  request: {path: /any}
  token: none
  expect: {reason: token_missing, headers: {www-authenticate: 'Bearer realm="portcullis"', x-user: null}}
- name: a look-alike, which Envoy removes
  request: {path: /any, headers: {x_user: mallory}}
  claims: {}
  provider: staff
  expect: {verdict: allow, headers: {x_user: null}}
- name: a look-alike at a door that cannot remove it
  request: {path: /any, headers: {x_user: mallory}, door: nginx}
  claims: {}
  provider: staff
  expect: {reason: request_malformed}
- {name: a folded method, request: {method: get, path: /orders}, token: none, expect: {reason: request_malformed}}
"#;
    let (code, out, err) = Folder::new().test(cases, &[]);
    assert_eq!((code, &*out, &*err), (Some(0), "14 case(s): all as expected\n", ""));
}

#[test]
fn a_case_that_differs_says_what_was_found_and_wanted_and_which_step_decided() {
    let cases = "
- name: <a> & \"b\"
  request: {path: /orders/7}
  claims: {scope: 'orders:list'}
  provider: staff
  expect: {verdict: allow, rule: any, headers: {x-user: alice}}
- {name: as expected, request: {path: /healthz}, token: none, expect: {verdict: allow}}
";
    let folder = Folder::new();
    let (code, out, err) = folder.test(cases, &[]);
    assert_eq!((code, &*err), (Some(1), ""));
    settings(&[]).bind(|| insta::assert_snapshot!("test_differs", out));
    let (code, out, err) = folder.test(cases, &["--format", "junit"]);
    assert_eq!((code, &*err), (Some(1), ""));
    settings(&[]).bind(|| insta::assert_snapshot!("test_differs_junit", out));
}

#[test]
fn every_error_of_every_file_is_reported_with_its_line() {
    let folder = Folder::new();
    let cases = "
- {name: a, request: {pth: /x}, claims: {}, provider: staff, expect: {verdict: allow}}
- {name: b, request: {path: /x}, expect: {verdict: maybe}}
- {name: c, request: {path: /x}, token: none, claims: {}, expect: {rule: nosuch}}
- {name: d, request: {path: /x}, claims: {}, expect: {}}
- {name: e, request: {path: /x, headers: {'a b': c}}, claims: {}, provider: nobody, expect: {reason: nonsense}}
- {name: f, request: {path: /x}, claims: {}, provider: tenants, expect: {verdict: deny}}
- {name: h, request: {path: /x, door: ngnix}, token: none, expect: {verdict: deny}}
- {name: g, request: {path: /x}, token: none, expect: {verdict: deny}}
- {name: g, request: {path: /x}, token: none, expect: {verdict: deny}}
";
    let (code, out, err) = folder.test(cases, &[]);
    assert_eq!((code, &*out), (Some(1), ""));
    settings(&[]).bind(|| insta::assert_snapshot!("test_errors", err));
    for (text, expected) in
        [("", "is empty"), ("[]", "tests nothing"), ("a: 1", "`cases` is missing"), ("{", "not YAML")]
    {
        let (code, out, err) = folder.test(text, &[]);
        assert_eq!((code, &*out), (Some(1), ""), "{text}");
        assert!(err.contains(expected), "{text}: {err}");
    }
    let (code, _, err) = folder.test(&format!("- {{name: {}}}", "x".repeat(1 << 20)), &[]);
    assert_eq!(code, Some(1));
    assert!(err.contains("longer than"), "{err}");
}

#[test]
fn a_token_in_a_case_is_never_shown() {
    let token = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.c2lnbmF0dXJl";
    let cases = format!(
        "
- {{name: {token}, request: {{path: /any, headers: {{authorization: Bearer {token}}}}}, token: none,
   expect: {{verdict: allow, headers: {{x-user: {token}}}}}}}
- {{name: two, request: {{path: /any, headers: {{authorization: Bearer {token}}}}}, claims: {{}}, provider: staff,
   expect: {{verdict: allow}}}}
"
    );
    for format in ["text", "junit"] {
        let (code, out, err) = Folder::new().test(&cases, &["--format", format]);
        assert_eq!((code, &*err), (Some(1), ""));
        // Envoy joins the lines of a header.
        assert!(out.contains("malformed"), "{out}");
        for part in ["eyJhbGci", "eyJzdWI", "c2lnbmF0dXJl"] {
            assert!(!out.contains(part), "{out}");
        }
    }
}

/// A configuration with rules of every kind.
const EVERY_KIND: &str = "
listen: {ext_authz: '127.0.0.1:0'}
providers:
  - {name: staff, issuer: https://staff.example.com, audiences: [orders-api, billing-api]}
  - {name: partners, issuer: https://partners.example.com, any_audience: true}
rules:
  - {name: preflight, allow: preflight}
  - {name: health, match: {path: [/healthz, /readyz]}, allow: anonymous}
  - {name: docs, match: {path_regex: '/docs/(a|b)_.*'}, allow: optional, providers: [staff]}
  - {name: internal, match: {path_prefix: /internal, headers: {x-env: [prod, test]}}, deny: true}
  - name: orders
    by_name: true
    ambiguous_paths: allow
    match: {path_prefix: /orders, methods: [GET], hosts: ['*.example.com']}
    audiences: [orders-api]
    require:
      scopes: ['orders:read']
      claims: {/realm_access/roles: [admin, 7]}
      condition: |
        claims.tenant == 'a' ||
        claims.tenant == 'b'
  - {name: rest, match: {path_prefix: /}}
";

#[test]
fn the_table_has_every_rule_in_order_and_what_no_rule_matches() {
    let folder = Folder::new();
    let config = folder.file("kinds.yaml", EVERY_KIND);
    for format in ["text", "markdown", "json"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command.arg("rules").arg("--config").arg(&config).args(["--format", format]);
        let Output { status, stdout, stderr } =
            command.env_remove("PORTCULLIS_LOG").run_and_read().expect("the binary runs");
        assert_eq!((status.code(), stderr.len()), (Some(0), 0));
        let table = String::from_utf8(stdout).expect("text");
        settings(&[]).bind(|| insta::assert_snapshot!(format!("rules_{format}"), table));
    }
}

/// A case of the tables as `portcullis test` reads it.
fn written(number: usize, case: &Case) -> Value {
    let headers: Map<String, Value> =
        case.headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    let mut expected = json!({"reason": case.reason});
    if case.reason != "request_malformed" {
        expected["rule"] = if case.rule.is_empty() { Value::Null } else { case.rule.into() };
    }
    let mut written = json!({
        "name": format!("{number}: {} {}{}", case.method, case.host, case.target),
        "request": {"method": case.method, "host": case.host, "path": case.target, "headers": headers},
        "expect": expected,
    });
    let provider = if matches!(case.bearer, Bearer::Partner) { "partner" } else { "test" };
    let claims = match case.bearer {
        Bearer::None => None,
        Bearer::With(more) => Some(RulesFixture::claims(more)),
        Bearer::Partner => Some(json!({"sub": "alice"})),
        Bearer::Expired => Some(json!({"exp": 1})),
    };
    match claims {
        Some(claims) => (written["claims"], written["provider"]) = (claims, provider.into()),
        None => written["token"] = "none".into(),
    }
    written
}

#[test]
fn every_case_of_the_tables_is_decided_as_serve_does() {
    let folder = Folder::new();
    let config =
        format!("listen: {{ext_authz: '127.0.0.1:0'}}\n{}", RulesFixture::new().providers_and_rules());
    folder.file("p.yaml", &config);
    let all: Vec<&Case> = RULE_CASES.iter().chain(PATH_CASES).collect();
    let cases: Vec<Value> = all.iter().enumerate().map(|(number, case)| written(number, case)).collect();
    let (code, out, err) = folder.test(&Value::from(cases).to_string(), &[]);
    assert_eq!((code, &*out, &*err), (Some(0), &*format!("{} case(s): all as expected\n", all.len()), ""));
}

/// The folder of the recipes, and the text about them.
const RECIPES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/rules");
const RECIPES_TEXT: &str = include_str!("../../docs/rules.md");

#[test]
fn every_recipe_is_strictly_valid_and_decides_its_cases_as_the_page_says() {
    let mut recipes = 0;
    for entry in fs::read_dir(RECIPES).expect("the folder of the recipes") {
        let config = entry.expect("a file").path();
        let name = config.file_stem().and_then(|name| name.to_str()).expect("a plain name").to_owned();
        if name.ends_with(".cases") {
            assert!(
                config.with_file_name(name.replace(".cases", ".yaml")).is_file(),
                "{name} has no configuration"
            );
            continue;
        }
        recipes += 1;
        let mut validate = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        let valid = validate.args(["validate", "--strict", "--config"]).arg(&config).run_and_read();
        let valid = valid.expect("the binary runs");
        assert!(valid.status.success(), "{name}: {}", String::from_utf8_lossy(&valid.stderr));
        let tested = test_cases(&config, &[&config.with_file_name(format!("{name}.cases.yaml"))], &[]);
        let printed = String::from_utf8([tested.stdout, tested.stderr].concat()).expect("text");
        assert_eq!(tested.status.code(), Some(0), "{name}: {printed}");
        let text = fs::read_to_string(&config).expect("readable");
        let (_, rules) = text.split_once("\ndefault: ").expect("a default");
        assert!(
            RECIPES_TEXT.contains(&format!("default: {rules}```")),
            "docs/rules.md has other rules than {name}"
        );
        assert!(RECIPES_TEXT.contains(&format!("(rules/{name}.cases.yaml)")), "docs/rules.md has no {name}");
    }
    assert_eq!(recipes, 8);
}

#[test]
fn every_configuration_shown_has_its_table_and_decides_a_case() {
    let shown = shown::configurations();
    assert!(shown.len() >= 23, "eight recipes, deploy/, the README and the issuers: {}", shown.len());
    for (name, text) in shown {
        let folder = Folder::new();
        let config = folder.file("p.yaml", &text);
        for format in ["text", "markdown", "json"] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
            let output = command.args(["rules", "--format", format, "--config"]).arg(&config).run_and_read();
            let output = output.expect("the binary runs");
            assert!(output.status.success() && !output.stdout.is_empty(), "{name}, {format}: {output:?}");
        }
        let case = "[{name: nobody, request: {method: DELETE, path: /nobody}, token: none, expect: {verdict: deny}}]";
        let (code, out, err) = folder.test(case, &[]);
        // Identity is optional for every request under one of the recipes.
        let is_open = name.ends_with("optional.yaml");
        let expected = if is_open { Some(1) } else { Some(0) };
        assert_eq!((code, &*err), (expected, ""), "{name}: {out}");
    }
}

#[test]
fn the_cases_of_the_readme_are_what_its_rules_decide() {
    let readme = include_str!("../../README.md");
    let (_, section) = readme.split_once("\n## Rules\n").expect("the section on rules");
    let mut blocks = section.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let (rules, cases) = (blocks.next().expect("rules"), blocks.next().expect("cases"));
    let folder = Folder::new();
    let provider = "{name: sso, issuer: https://sso.example.com, audiences: [orders-api]}";
    folder.file("p.yaml", &format!("listen: {{ext_authz: '127.0.0.1:0'}}\nproviders: [{provider}]\n{rules}"));
    let (code, out, err) = folder.test(cases, &[]);
    assert_eq!((code, &*out, &*err), (Some(0), "2 case(s): all as expected\n", ""));
}

#[test]
fn a_token_is_signed_with_an_algorithm_and_type_and_carried_in_a_place_that_its_provider_accepts() {
    let secret = "0123456789abcdef0123456789abcdef0123456789A";
    let config = format!(
        "
listen: {{ext_authz: '127.0.0.1:0'}}
providers:
  - name: shared
    issuer: https://a.example.com
    any_audience: true
    algorithms: [HS256]
    token_types: [at+jwt]
    token_from: [{{cookie: session}}]
    forward_token: false
    jwks: {{keys: [{{kty: oct, k: '{secret}'}}]}}
  - {{name: rsa, issuer: https://b.example.com, audiences: [b], algorithms: [RS256], token_from: [{{query: t}}]}}
  - {{name: whole, issuer: https://c.example.com, audiences: [c], token_from: [{{header: x-token}}]}}
"
    );
    let cases = "
- {name: cookie, request: {path: /}, claims: {}, provider: shared, expect: {reason: ok, headers: {cookie: null}}}
- name: one cookie of two
  request: {path: /, headers: {cookie: a=b}}
  claims: {}
  provider: shared
  expect: {reason: ok}
- {name: query, request: {path: '/?a=b'}, claims: {}, provider: rsa, expect: {reason: ok}}
- {name: header, request: {path: /}, claims: {}, provider: whole, expect: {reason: ok}}
";
    let folder = Folder::new();
    folder.file("p.yaml", &config);
    let (code, out, err) = folder.test(cases, &[]);
    assert_eq!((code, &*out, &*err), (Some(0), "4 case(s): all as expected\n", ""));
}
