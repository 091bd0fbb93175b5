//! `validate` checks certificate and key files: it reports the errors of a start with their positions, and warns of
//! certificates that expire soon.

use std::path::Path;
use std::process::Command;

use crate::support::pki::{Authority, expired, write};
use crate::support::snapshots::settings;
use crate::support::subprocess::StartCommand;
use rcgen::CertificateParams;

/// A configuration with these lines in the TLS of a listener, whose certificate, key and authority are in the folder.
fn listener(name: &str) -> String {
    let files = "{cert_file: DIR/cert.pem, key_file: DIR/key.pem, client_ca_file: DIR/ca.pem}";
    let (grpc, http, admin) = match name {
        "listen.ext_authz" => {
            (format!("{{address: '127.0.0.1:0', tls: {files}}}"), String::new(), String::new())
        }
        "listen.ext_authz[1]" => (
            format!("['unix:/run/p.sock', {{address: '127.0.0.1:0', tls: {files}}}]"),
            String::new(),
            String::new(),
        ),
        "listen.forward_auth[0]" => {
            let http = format!("[{{address: '127.0.0.1:0', profile: nginx, tls: {files}}}]");
            ("127.0.0.1:0".to_owned(), http, String::new())
        }
        _ => ("127.0.0.1:0".to_owned(), String::new(), format!("{{address: '127.0.0.1:0', tls: {files}}}")),
    };
    let line =
        |key: &str, value: &str| if value.is_empty() { String::new() } else { format!("  {key}: {value}\n") };
    format!(
        "listen:\n{}{}{}providers: [{{name: p, issuer: 'https://i.example', audiences: [a]}}]\n",
        line("ext_authz", &grpc),
        line("forward_auth", &http),
        line("admin", &admin)
    )
}

fn issuer() -> String {
    "listen: {ext_authz: 127.0.0.1:0}
providers:
  - name: p
    issuer: https://i.example
    audiences: [a]
    http: {ca_file: DIR/ca.pem, client_cert_file: DIR/cert.pem, client_key_file: DIR/key.pem}
"
    .to_owned()
}

/// The exit code and the standard error, with the path of the folder replaced.
fn validate(folder: &Path, text: &str) -> (Option<i32>, String) {
    let path = folder.to_str().expect("text");
    let file = write(folder, "p.yaml", &text.replace("DIR", path));
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["validate", "--config"])
        .arg(file)
        .run_and_read();
    let output = output.expect("it runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).replace(path, "DIR"))
}

struct Folder {
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Folder {
    /// With valid files.
    fn new() -> Self {
        let folder =
            Self { folder: tempfile::tempdir().expect("a folder"), authority: Authority::new("ours") };
        folder.put("ca.pem", &folder.authority.pem);
        let certified = folder.authority.issue(&["localhost"]);
        folder.put("cert.pem", &certified.pem);
        folder.put("key.pem", &certified.key);
        folder
    }

    fn put(&self, name: &str, text: &str) {
        write(self.folder.path(), name, text);
    }
}

const LISTENERS: [&str; 4] =
    ["listen.ext_authz", "listen.ext_authz[1]", "listen.forward_auth[0]", "listen.admin"];

#[test]
fn unusable_tls_files_are_configuration_errors() {
    let folder = Folder::new();
    let (own, other) = (&folder.authority, Authority::new("other"));
    let certified = own.issue(&["localhost"]);
    let broken = format!("{}{}", own.pem, other.pem.replace("-----END", "-----ENT"));
    let leaf = own.issue(&["leaf"]).pem;
    for (name, text, key, message) in [
        (
            "key.pem",
            &*certified.key,
            "key_file",
            "DIR/key.pem: the key belongs to another certificate (DIR/cert.pem)",
        ),
        ("key.pem", "", "key_file", "DIR/key.pem: no private key in PEM form"),
        ("cert.pem", "", "cert_file", "DIR/cert.pem: no certificate in PEM form"),
        (
            "cert.pem",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "cert_file",
            "DIR/cert.pem: the certificate in line 1 cannot be decoded",
        ),
        ("ca.pem", "", "client_ca_file", "DIR/ca.pem: no certificate in PEM form"),
        ("ca.pem", &leaf, "client_ca_file", "DIR/ca.pem: certificate 1 is not an authority"),
        ("ca.pem", &broken, "client_ca_file", "DIR/ca.pem: the section that begins in line"),
    ] {
        for listener_key in LISTENERS {
            let before = std::fs::read_to_string(folder.folder.path().join(name)).expect("there");
            folder.put(name, text);
            let (code, stderr) = validate(folder.folder.path(), &listener(listener_key));
            let expected = format!(": {listener_key}.tls.{key}: {message}");
            assert!(stderr.contains(&expected), "{stderr}\ninstead of {expected}");
            assert!(
                stderr.starts_with("DIR/p.yaml:") && !stderr.starts_with("DIR/p.yaml: "),
                "without a position: {stderr}"
            );
            assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{stderr}");
            folder.put(name, &before);
            let unchanged = validate(folder.folder.path(), &listener(listener_key));
            assert_eq!(unchanged, (Some(0), String::new()), "{listener_key}");
        }
        let before = std::fs::read_to_string(folder.folder.path().join(name)).expect("there");
        folder.put(name, text);
        let (code, stderr) = validate(folder.folder.path(), &issuer());
        let key = match key {
            "client_ca_file" => "ca_file",
            "key_file" => "client_key_file",
            _ => "client_cert_file",
        };
        let expected = format!(": providers[0].http.{key}: {message}");
        assert!(stderr.starts_with("DIR/p.yaml:6:") && stderr.contains(&expected), "{stderr}");
        assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{stderr}");
        folder.put(name, &before);
        assert_eq!(validate(folder.folder.path(), &issuer()), (Some(0), String::new()));
    }
}

#[test]
fn all_errors_are_reported_together_and_once() {
    let folder = Folder::new();
    folder.put("key.pem", "");
    folder.put("ca.pem", "");
    let text =
        format!("{}log: {{level: loud}}\n", listener("listen.admin").replace("cert.pem", "missing.pem"));
    let (code, stderr) = validate(folder.folder.path(), &text);
    assert_errors("tls_files_of_a_listener_that_cannot_be_had", code, &stderr);

    let (code, stderr) = validate(folder.folder.path(), &issuer().replace("cert.pem", "missing.pem"));
    assert_errors("tls_files_of_an_issuers_client_that_cannot_be_had", code, &stderr);

    let text = format!("{}log: {{level: loud}}\n", listener("listen.admin"));
    let (code, stderr) = validate(folder.folder.path(), &text);
    assert_errors("tls_files_that_cannot_serve", code, &stderr);
}

/// Asserts the errors by a snapshot.
#[track_caller]
fn assert_errors(name: &str, code: Option<i32>, stderr: &str) {
    assert_eq!(code, Some(1), "{stderr}");
    settings(&[]).bind(|| insta::assert_snapshot!(name, stderr));
}

#[test]
fn expired_and_soon_expiring_certificates_are_warnings() {
    let folder = Folder::new();
    let days = |days: i64| {
        let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970");
        let at = now.as_secs() as i64 + days * 24 * 60 * 60;
        move |params: &mut CertificateParams| {
            params.not_after = rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(at as u64);
        }
    };
    let mut warnings = Vec::new();
    for (what, certified) in [
        ("expired", folder.authority.issue_with(&["localhost"], expired)),
        ("soon", folder.authority.issue_with(&["localhost"], days(13))),
        ("later", folder.authority.issue_with(&["localhost"], days(15))),
    ] {
        folder.put("cert.pem", &certified.pem);
        folder.put("key.pem", &certified.key);
        for (text, key) in [
            (listener("listen.admin"), "listen.admin.tls.cert_file"),
            (issuer(), "providers[0].http.client_cert_file"),
        ] {
            let (code, stderr) = validate(folder.folder.path(), &text);
            assert_eq!(code, Some(0), "{stderr}");
            let warned = stderr.contains(&format!(": warning: {key}: DIR/cert.pem: a certificate "));
            assert_eq!(warned, what != "later", "{what}: {stderr}");
            warnings.push((
                what,
                stderr.contains("expired on 2020-01-01T00:00:00Z"),
                stderr.contains("expires soon, on "),
            ));
        }
    }
    let expected = [("expired", true, false), ("soon", false, true), ("later", false, false)];
    assert_eq!(warnings, expected.into_iter().flat_map(|one| [one, one]).collect::<Vec<_>>());
}
