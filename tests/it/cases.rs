//! `portcullis test` of the built binary: it decides cases as the service would, says what differs, and never shows a
//! token.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

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
        std::fs::write(&path, text).expect("written");
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
    let cases = "
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
  expect: {reason: token_missing, headers: {www-authenticate: Bearer, x-user: null}}
- {name: a folded method, request: {method: get, path: /orders}, token: none, expect: {reason: request_malformed}}
";
    let (code, out, err) = Folder::new().test(cases, &[]);
    assert_eq!((code, &*out, &*err), (Some(0), "12 case(s): all as expected\n", ""));
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
    insta::assert_snapshot!("test_differs", out);
    let (code, out, err) = folder.test(cases, &["--format", "junit"]);
    assert_eq!((code, &*err), (Some(1), ""));
    insta::assert_snapshot!("test_differs_junit", out);
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
- {name: g, request: {path: /x}, token: none, expect: {verdict: deny}}
- {name: g, request: {path: /x}, token: none, expect: {verdict: deny}}
";
    let (code, out, err) = folder.test(cases, &[]);
    assert_eq!((code, &*out), (Some(1), ""));
    insta::assert_snapshot!("test_errors", err);
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
        assert!(out.contains("multiple_tokens"), "{out}");
        for part in ["eyJhbGci", "eyJzdWI", "c2lnbmF0dXJl"] {
            assert!(!out.contains(part), "{out}");
        }
    }
}
