//! What `validate` says of the files of certificates and keys that a configuration names: what a listener or an
//! issuer's client would say at the start, each in its place, and what ends soon.

use std::path::Path;
use std::process::Command;

use crate::support::pki::{Authority, expired, write};
use crate::support::snapshots::settings;
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

/// The exit code, and what is said on standard error with the folder's name taken out.
fn validate(folder: &Path, text: &str) -> (Option<i32>, String) {
    let here = folder.to_str().expect("text");
    let file = write(folder, "p.yaml", &text.replace("DIR", here));
    let run =
        Command::new(env!("CARGO_BIN_EXE_portcullis")).args(["validate", "--config"]).arg(file).output();
    let run = run.expect("it runs");
    (run.status.code(), String::from_utf8_lossy(&run.stderr).replace(here, "DIR"))
}

struct Folder {
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Folder {
    /// With files that are in order.
    fn new() -> Self {
        let this = Self { folder: tempfile::tempdir().expect("a folder"), authority: Authority::new("ours") };
        this.put("ca.pem", &this.authority.pem);
        let certified = this.authority.issue(&["localhost"]);
        this.put("cert.pem", &certified.pem);
        this.put("key.pem", &certified.key);
        this
    }

    fn put(&self, name: &str, text: &str) {
        write(self.folder.path(), name, text);
    }
}

const LISTENERS: [&str; 4] =
    ["listen.ext_authz", "listen.ext_authz[1]", "listen.forward_auth[0]", "listen.admin"];

#[test]
fn tls_files_that_cannot_serve_are_no_valid_configuration() {
    let folder = Folder::new();
    let (ours, other) = (&folder.authority, Authority::new("other"));
    let certified = ours.issue(&["localhost"]);
    let broken = format!("{}{}", ours.pem, other.pem.replace("-----END", "-----ENT"));
    let leaf = ours.issue(&["leaf"]).pem;
    for (name, text, key, says) in [
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
            let (code, said) = validate(folder.folder.path(), &listener(listener_key));
            let expected = format!(": {listener_key}.tls.{key}: {says}");
            assert!(said.contains(&expected), "{said}\ninstead of {expected}");
            assert!(
                said.starts_with("DIR/p.yaml:") && !said.starts_with("DIR/p.yaml: "),
                "with its place: {said}"
            );
            assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
            folder.put(name, &before);
            let whole = validate(folder.folder.path(), &listener(listener_key));
            assert_eq!(whole, (Some(0), String::new()), "{listener_key}");
        }
        let before = std::fs::read_to_string(folder.folder.path().join(name)).expect("there");
        folder.put(name, text);
        let (code, said) = validate(folder.folder.path(), &issuer());
        let key = match key {
            "client_ca_file" => "ca_file",
            "key_file" => "client_key_file",
            _ => "client_cert_file",
        };
        let expected = format!(": providers[0].http.{key}: {says}");
        assert!(said.starts_with("DIR/p.yaml:6:") && said.contains(&expected), "{said}");
        assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
        folder.put(name, &before);
        assert_eq!(validate(folder.folder.path(), &issuer()), (Some(0), String::new()));
    }
}

#[test]
fn everything_that_is_wrong_is_said_at_once_and_once() {
    let folder = Folder::new();
    folder.put("key.pem", "");
    folder.put("ca.pem", "");
    let text =
        format!("{}log: {{level: loud}}\n", listener("listen.admin").replace("cert.pem", "missing.pem"));
    let (code, said) = validate(folder.folder.path(), &text);
    told("tls_files_of_a_listener_that_cannot_be_had", code, &said);

    let (code, said) = validate(folder.folder.path(), &issuer().replace("cert.pem", "missing.pem"));
    told("tls_files_of_an_issuers_client_that_cannot_be_had", code, &said);

    let text = format!("{}log: {{level: loud}}\n", listener("listen.admin"));
    let (code, said) = validate(folder.folder.path(), &text);
    told("tls_files_that_cannot_serve", code, &said);
}

/// Errors, which are this text.
#[track_caller]
fn told(name: &str, code: Option<i32>, said: &str) {
    assert_eq!(code, Some(1), "{said}");
    settings(&[]).bind(|| insta::assert_snapshot!(name, said));
}

#[test]
fn what_has_expired_or_soon_will_is_a_warning() {
    let folder = Folder::new();
    let days = |days: i64| {
        let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970");
        let at = now.as_secs() as i64 + days * 24 * 60 * 60;
        move |params: &mut CertificateParams| {
            params.not_after = rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(at as u64);
        }
    };
    let mut told = Vec::new();
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
            let (code, said) = validate(folder.folder.path(), &text);
            assert_eq!(code, Some(0), "{said}");
            let warned = said.contains(&format!(": warning: {key}: DIR/cert.pem: a certificate "));
            assert_eq!(warned, what != "later", "{what}: {said}");
            told.push((
                what,
                said.contains("expired on 2020-01-01T00:00:00Z"),
                said.contains("expires soon, on "),
            ));
        }
    }
    let expected = [("expired", true, false), ("soon", false, true), ("later", false, false)];
    assert_eq!(told, expected.into_iter().flat_map(|one| [one, one]).collect::<Vec<_>>());
}
