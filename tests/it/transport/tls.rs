//! G17: the certificate of an issuer is verified with the configured authorities, and a client certificate is sent; their
//! files may change while the service runs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::answer::{Answer, Step};
use super::certificates::{
    Authority, Certified, expired, for_authorities, for_clients, not_yet_valid, self_signed,
};
use super::env::{
    IMMEDIATE_REFRESH, ISSUER, TestEnv, configured, eventually, folder, key, provider, start_faults, status,
    token,
};
use super::key_server::{KeyServer, Layer};
use super::process::Process;
use crate::support::{Running, fixed_clock};

/// A certificate with a SHA-1 signature of a trusted authority.
const SHA1: [&str; 4] = [
    include_str!("sha1/ca.pem"),
    include_str!("sha1/key.pem"),
    include_str!("sha1/weak.pem"),
    include_str!("sha1/sound.pem"),
];

/// The options of a provider with this `ca_file`.
fn trusting(ca_file: &Path) -> String {
    format!("{IMMEDIATE_REFRESH}, http: {{ca_file: '{}'}}", ca_file.display())
}

/// Checks a token at a service with this key server; returns `allowed` or the error in `/keys`.
async fn error_of(layer: Layer, host: &str, more: &str) -> String {
    let server = KeyServer::start_with(layer).await;
    let known = key("known");
    server.respond_with(Answer::keys(&[&known]));
    let keys = format!("jwks_uri: 'https://{host}:{}/keys'", server.address().port());
    let config = configured(&[provider("demo", ISSUER, &keys, more)]);
    let service = Running::start_without_keys(config, fixed_clock()).await;
    let answer = service.bearer(&token(&known)).await;
    if answer.is_allowed() {
        return "allowed".to_owned();
    }
    assert_eq!(answer.faults("keys_unavailable", &[]), Vec::<String>::new());
    assert_eq!(server.requests().len(), 0, "no request to an untrusted server");
    let mut error = String::new();
    eventually("an error", async || {
        error = status(&service, "demo").await["last_error"].as_str().unwrap_or_default().to_owned();
        !error.is_empty()
    })
    .await;
    error
}

#[tokio::test]
async fn only_a_certificate_of_the_configured_authority_for_this_host_and_time_is_trusted() {
    let (folder, authority, other) = (folder(), Authority::new(), Authority::new());
    let more = trusting(&authority.write(folder.path()));
    for (what, host, certified, expected) in [
        ("good", "localhost", authority.issue(&["localhost"]), "allowed"),
        ("by address", "127.0.0.1", authority.issue(&["127.0.0.1"]), "allowed"),
        ("one of several names", "localhost", authority.issue(&["a.example.com", "localhost"]), "allowed"),
        ("expired", "localhost", authority.issue_with(&["localhost"], expired), "it expired on "),
        (
            "not yet valid",
            "localhost",
            authority.issue_with(&["localhost"], not_yet_valid),
            "it is not valid before ",
        ),
        ("of another authority", "localhost", other.issue(&["localhost"]), "no trusted authority signed it"),
        ("self-signed", "localhost", self_signed(&["localhost"]), ""),
        (
            "for another host",
            "localhost",
            authority.issue(&["example.com"]),
            "it is not for localhost (issued for example.com, signed by ",
        ),
        ("for hosts below it", "localhost", authority.issue(&["*.localhost"]), "it is not for localhost"),
        ("for every host", "localhost", authority.issue(&["*"]), ""),
        ("for another address", "127.0.0.1", authority.issue(&["127.0.0.2"]), "it is not for 127.0.0.1"),
        ("for no host", "localhost", authority.issue(&[]), ""),
        (
            "for clients alone",
            "localhost",
            authority.issue_with(&["localhost"], for_clients),
            "does not include servers",
        ),
        (
            "an authority's",
            "localhost",
            authority.issue_with(&["localhost"], for_authorities),
            "is an authority's, not a server's",
        ),
    ] {
        let error = error_of(certified.layer(), host, &more).await;
        assert!(
            error.contains(expected) && (error == "allowed") == (expected == "allowed"),
            "{what}: {error}"
        );
        assert!(error.len() < 400, "{what}: {error}");
        assert!(!error.contains("Other(") && !error.contains("Error"), "words, not names: {what}: {error}");
    }
}

#[tokio::test]
async fn a_signature_by_sha_1_is_not_trusted() {
    let folder = folder();
    let [ca, key, weak, sound] = SHA1;
    let file = folder.path().join("ca.pem");
    fs::write(&file, ca).expect("written");
    let certified =
        |certificate: &str| Certified { certificate: certificate.to_owned(), key: key.to_owned() };
    assert_eq!(error_of(certified(sound).layer(), "localhost", &trusting(&file)).await, "allowed");
    assert_ne!(error_of(certified(weak).layer(), "localhost", &trusting(&file)).await, "allowed");
}

#[tokio::test]
async fn a_ca_file_replaces_the_authorities_of_the_system() {
    let (folder, own, system_authority) = (folder(), Authority::new(), Authority::new());
    let system_file = folder.path().join("system.pem");
    fs::write(&system_file, &system_authority.pem).expect("written");
    // A bundle of several certificates with text between them.
    let bundle = folder.path().join("bundle.pem");
    fs::write(&bundle, format!("# ours\n{}\nold:\n{}", Authority::new().pem, own.pem)).expect("written");
    let known = key("known");
    let system_path = system_file.to_str().expect("text");
    for (authority, more, system, allowed) in [
        (&system_authority, IMMEDIATE_REFRESH.to_owned(), system_path, true),
        (&system_authority, trusting(&bundle), system_path, false),
        (&own, IMMEDIATE_REFRESH.to_owned(), system_path, false),
        (&own, trusting(&bundle), system_path, true),
        // A container without system authorities.
        (&own, trusting(&bundle), "/nonexistent", true),
        (&own, IMMEDIATE_REFRESH.to_owned(), "/nonexistent", false),
    ] {
        let server = KeyServer::start_with(authority.issue(&["localhost"]).layer()).await;
        server.respond_with(Answer::keys(&[&known]));
        let keys = format!("jwks_uri: '{}'", server.https("/keys"));
        let environment = [("SSL_CERT_FILE", system), ("SSL_CERT_DIR", "/nonexistent")];
        let process =
            Process::serve(folder.path(), &[provider("demo", ISSUER, &keys, &more)], &environment).await;
        if allowed {
            eventually("the issuer is trusted", async || process.bearer(&known).await.is_allowed()).await;
        } else {
            eventually("the issuer is not trusted", async || {
                process.last_error().await.contains("no trusted authority signed")
            })
            .await;
            assert_eq!(process.bearer(&known).await.reason(), "keys_unavailable");
        }
    }
}

#[tokio::test]
async fn outdated_tls_is_rejected() {
    let (folder, authority) = (folder(), Authority::new());
    let more = trusting(&authority.write(folder.path()));
    // A ServerHello of TLS 1.0 or 1.1: version, random, no session, a legacy cipher suite, no compression.
    let hello = |version: u8| {
        let body = [&[3, version][..], &[7; 32], &[0, 0xc0, 0x13, 0]].concat();
        let length = u8::try_from(body.len()).expect("short");
        let record = [&[22, 3, version, 0, length + 4, 2, 0, 0, length][..], &body].concat();
        Layer::Raw(vec![Step::Send(record), Step::KeepOpen])
    };
    for (what, layer) in [
        ("TLS 1.0", hello(1)),
        ("TLS 1.1", hello(2)),
        ("an alert", Layer::Raw(vec![Step::Send(vec![21, 3, 3, 0, 2, 2, 70])])),
        ("http", Layer::Raw(vec![Step::Send(b"HTTP/1.1 400 Bad Request\r\n\r\n".into())])),
        ("a close", Layer::Raw(Vec::new())),
        (
            "a record that is too long",
            Layer::Raw(vec![Step::Send([&[22, 3, 3, 0xff, 0xff][..], &[0; 70_000]].concat())]),
        ),
    ] {
        let error = error_of(layer, "localhost", &more).await;
        assert!(error != "allowed" && !error.contains("no answer within"), "{what}: {error}");
    }
}

#[tokio::test]
async fn a_certificate_that_stays_wrong_is_told_once_and_no_library_says_it_beside() {
    let (folder, authority) = (folder(), Authority::new());
    let server = KeyServer::start_with(authority.issue(&["localhost"]).layer()).await;
    let (known, keys) = (key("known"), format!("jwks_uri: '{}'", server.https("/keys")));
    let environment = [("SSL_CERT_FILE", "/nonexistent"), ("PORTCULLIS_LOG", "trace")];
    // Of the system's authorities, of a file, and of none.
    for more in [IMMEDIATE_REFRESH.to_owned(), trusting(&Authority::new().write(folder.path()))] {
        let process =
            Process::serve(folder.path(), &[provider("demo", ISSUER, &keys, &more)], &environment).await;
        let failed = |page: &str| {
            let counted = page.lines().filter(|line| line.starts_with("portcullis_jwks_fetches_total"));
            let counts = counted.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
            counts.sum::<u64>()
        };
        eventually("several fetches fail", async || {
            assert_eq!(process.bearer(&known).await.reason(), "keys_unavailable");
            failed(&process.admin("/metrics").await) >= 4
        })
        .await;
        let (_, log) = process.terminate().await;
        let is_told = |line: &&str| line.contains("certificate") && !line.contains("request denied");
        let told = log.lines().filter(is_told);
        assert_eq!(told.count(), 1, "{log}");
        assert!(!log.contains("log.target"), "{log}");
    }
}

#[tokio::test]
async fn names_in_a_certificate_make_no_long_log_lines() {
    let (folder, authority) = (folder(), Authority::new());
    let names: Vec<String> =
        (0..300).map(|i| format!("host-{i}.some.very.long.domain.example.com")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let layer = authority.issue(&names).layer();
    let error = error_of(layer, "localhost", &trusting(&authority.write(folder.path()))).await;
    assert!(error.len() <= 1024, "{} bytes: {error:.300}", error.len());
}

#[tokio::test]
async fn a_client_certificate_is_sent_on_request_only() {
    let (folder, authority) = (folder(), Authority::new());
    let server = authority.issue(&["localhost"]);
    let layer = server.layer_with_client_auth(&authority);
    let ca_file = authority.write(folder.path());
    let with = |certified: &Certified| {
        let (cert_file, key_file) = certified.write(folder.path());
        format!(
            "{IMMEDIATE_REFRESH}, http: {{ca_file: '{}', client_cert_file: '{}', client_key_file: '{}'}}",
            ca_file.display(),
            cert_file.display(),
            key_file.display()
        )
    };
    let own = authority.issue_with(&["client"], for_clients);
    assert_eq!(error_of(layer.clone(), "localhost", &with(&own)).await, "allowed");
    let error = error_of(layer.clone(), "localhost", &trusting(&ca_file)).await;
    assert!(error != "allowed", "without one");
    for (what, wrong) in [
        ("of another authority", Authority::new().issue_with(&["client"], for_clients)),
        ("expired", authority.issue_with(&["client"], expired)),
        ("of its own", self_signed(&["client"])),
    ] {
        let error = error_of(layer.clone(), "localhost", &with(&wrong)).await;
        assert!(error != "allowed" && !error.is_empty(), "{what}: {error}");
        assert!(!error.contains("PRIVATE KEY"), "{what}");
    }
    // Not sent without a certificate request.
    let quiet = KeyServer::start_with(server.layer()).await;
    let keys = format!("jwks_uri: '{}'", quiet.https("/keys"));
    let env = TestEnv::with_server(quiet, &keys, &with(&own)).await;
    assert!(!env.server.request(1).await.with_certificate);
}

#[tokio::test]
async fn changed_files_are_applied_once_consistent_and_broken_ones_are_ignored() {
    let (folder, old, new) = (folder(), Authority::new(), Authority::new());
    let ca_file = old.write(folder.path());
    let (cert_file, key_file) = old.issue_with(&["client"], for_clients).write(folder.path());
    let more = format!(
        "{IMMEDIATE_REFRESH}, http: {{ca_file: '{}', client_cert_file: '{}', client_key_file: '{}'}}",
        ca_file.display(),
        cert_file.display(),
        key_file.display()
    );
    let server = KeyServer::start_with(old.issue(&["localhost"]).layer_with_client_auth(&old)).await;
    let keys = format!("jwks_uri: '{}'", server.https("/keys"));
    let env = TestEnv::with_server(server, &keys, &more).await;
    assert!(env.server.request(1).await.with_certificate);
    let expect_fetch = async |keys: &str| {
        let next = key(keys);
        env.server.respond_with(Answer::keys(&[&next]));
        env.wait_until_known(&next).await;
    };

    for broken in ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        for file in [&ca_file, &cert_file, &key_file] {
            let sound = fs::read(file).expect("there");
            fs::write(file, broken).expect("written");
            expect_fetch(&format!("in spite of {broken:?}")).await;
            fs::write(file, sound).expect("written");
        }
    }
    fs::remove_file(&ca_file).expect("there");
    expect_fetch("without a file").await;

    // All files are replaced; in between they do not match.
    env.server.set_layer(new.issue(&["localhost"]).layer_with_client_auth(&new));
    let next = key("next");
    env.server.respond_with(Answer::keys(&[&next]));
    env.expect_reason(&next, "keys_unavailable").await;
    new.write(folder.path());
    env.expect_reason(&next, "keys_unavailable").await;
    let own = new.issue_with(&["client"], for_clients);
    fs::write(&cert_file, &own.certificate).expect("written");
    env.expect_reason(&next, "keys_unavailable").await;
    fs::write(&key_file, &own.key).expect("written");
    env.wait_until_known(&next).await;

    // The old authority is no longer trusted.
    env.server.set_layer(old.issue(&["localhost"]).layer());
    env.expect_reason(&key("later"), "keys_unavailable").await;
    assert!(env.last_error().await.contains("no trusted authority signed it"));
}

#[tokio::test]
async fn a_removed_authority_is_not_trusted_even_if_time_and_length_of_its_file_stay() {
    let (folder, old, new) = (folder(), Authority::new(), Authority::new());
    let longest = old.pem.len().max(new.pem.len());
    let padded =
        |authority: &Authority| format!("{}{}", authority.pem, "\n".repeat(longest - authority.pem.len()));
    let ca_file = folder.path().join("ca.pem");
    fs::write(&ca_file, padded(&old)).expect("written");
    let time = fs::metadata(&ca_file).expect("there").modified().expect("a time");
    let server = KeyServer::start_with(old.issue(&["localhost"]).layer()).await;
    let keys = format!("jwks_uri: '{}'", server.https("/keys"));
    let env = TestEnv::with_server(server, &keys, &trusting(&ca_file)).await;
    fs::write(&ca_file, padded(&new)).expect("written");
    let opened = fs::File::options().write(true).open(&ca_file).expect("there");
    opened.set_times(fs::FileTimes::new().set_modified(time)).expect("set");
    let after = fs::metadata(&ca_file).expect("there");
    assert_eq!((after.modified().expect("a time"), after.len()), (time, longest as u64));
    env.server.set_layer(new.issue(&["localhost"]).layer());
    let next = key("next");
    env.server.respond_with(Answer::keys(&[&next]));
    env.wait_until_known(&next).await;
    env.server.set_layer(old.issue(&["localhost"]).layer());
    env.expect_reason(&key("later"), "keys_unavailable").await;
    assert!(env.last_error().await.contains("no trusted authority signed it"));
}

#[tokio::test]
async fn files_behind_a_replaced_link_are_reloaded() {
    // As Kubernetes updates a secret: one link to the data is replaced.
    let (folder, old, new) = (folder(), Authority::new(), Authority::new());
    for (name, authority) in [("1", &old), ("2", &new)] {
        fs::create_dir(folder.path().join(name)).expect("made");
        authority.write(&folder.path().join(name));
    }
    let (data, ca_file) = (folder.path().join("..data"), folder.path().join("ca.pem"));
    symlink("1", &data).expect("made");
    symlink("..data/ca.pem", &ca_file).expect("made");
    let server = KeyServer::start_with(old.issue(&["localhost"]).layer()).await;
    let keys = format!("jwks_uri: '{}'", server.https("/keys"));
    let env = TestEnv::with_server(server, &keys, &trusting(&ca_file)).await;
    env.server.set_layer(new.issue(&["localhost"]).layer());
    let next = key("next");
    env.server.respond_with(Answer::keys(&[&next]));
    env.expect_reason(&next, "keys_unavailable").await;
    symlink("2", folder.path().join("..data_tmp")).expect("made");
    fs::rename(folder.path().join("..data_tmp"), &data).expect("replaced");
    env.wait_until_known(&next).await;
}

#[tokio::test]
async fn files_that_cannot_be_used_stop_the_start_and_are_named() {
    let (folder, authority) = (folder(), Authority::new());
    let at = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).expect("written");
        file.display().to_string()
    };
    let (own, other) = (authority.issue(&["client"]), authority.issue(&["client"]));
    let (cert, key_file) = (at("cert.pem", &own.certificate), at("key.pem", &own.key));
    let missing = folder.path().join("missing.pem").display().to_string();
    let folder_path = folder.path().display().to_string();
    let keys = "jwks_uri: 'https://localhost/keys'";
    let http = |members: String| format!("http: {{{members}}}");

    let mut wrong = Vec::new();
    for (what, ca_file) in [
        ("missing", missing.clone()),
        ("a folder", folder_path.clone()),
        ("empty", at("empty.pem", "")),
        ("not PEM", at("der.pem", "0\u{82}\u{1}garbage")),
        ("a key and no certificate", key_file.clone()),
        ("a certificate cut off", at("cut.pem", &own.certificate[..100])),
        (
            "PEM around garbage",
            at("garbage.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ),
    ] {
        let faults = start_faults(keys, &http(format!("ca_file: '{ca_file}'"))).await;
        if !faults.contains(&ca_file) || !faults.contains("demo") {
            wrong.push(format!("ca_file, {what}: {faults:?}"));
        }
    }
    for (what, cert_file, client_key, named) in [
        ("no certificate", &missing, &key_file, &missing),
        ("no key", &cert, &missing, &missing),
        ("a folder", &folder_path, &key_file, &folder_path),
        ("exchanged", &at("ca.pem", &authority.pem), &at("other.key", &other.key), &String::from("ca.pem")),
        ("no PEM", &at("text.pem", "text"), &key_file, &String::from("text.pem")),
        ("the key twice", &key_file, &key_file, &key_file),
        ("the certificate twice", &cert, &cert, &cert),
        ("another's key", &cert, &at("other.pem", &other.key), &cert),
    ] {
        let members = format!("client_cert_file: '{cert_file}', client_key_file: '{client_key}'");
        let faults = start_faults(keys, &http(members)).await;
        if !faults.contains(named) || !faults.contains("demo") || faults.contains("BEGIN") {
            wrong.push(format!("client certificate, {what}: {faults:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for alone in [format!("client_cert_file: '{cert}'"), format!("client_key_file: '{key_file}'")] {
        let faults = start_faults(keys, &http(alone)).await;
        assert!(faults.contains("belong together"), "{faults}");
    }
    let both = format!("client_cert_file: '{cert}', client_key_file: '{key_file}'");
    assert_eq!(start_faults(keys, &http(both)).await, "");
}

#[tokio::test]
async fn http_2_is_used_with_an_issuer_that_offers_it() {
    let (folder, authority) = (folder(), Authority::new());
    let Layer::Tls(config) = authority.issue(&["localhost"]).layer_with_alpn(&["h2", "http/1.1"]) else {
        panic!("TLS")
    };
    let server = KeyServer::start_with(Layer::Http2(config)).await;
    let keys = format!("jwks_uri: '{}'", server.https("/keys"));
    let env = TestEnv::with_server(server, &keys, &trusting(&authority.write(folder.path()))).await;
    let new = key("new");
    env.server.respond_with(Answer::keys(&[&new]));
    env.expect_reason(&new, "ok").await;
    env.server.respond_with(Answer::status(500));
    env.expect_reason(&key("newest"), "keys_unavailable").await;
}

#[tokio::test]
async fn goaway_debug_data_makes_no_long_lines_and_is_not_repeated() {
    let (folder, authority) = (folder(), Authority::new());
    let more = trusting(&authority.write(folder.path()));
    let certified = authority.issue(&["localhost"]);
    let Layer::Tls(config) = certified.layer_with_alpn(&["h2"]) else { panic!("TLS") };
    // SETTINGS, and a GOAWAY (RFC 9113 §6.8) with long debug data.
    let goaway = [&[0; 8][..], &b"the password is hunter2 ".repeat(300)].concat();
    let length = u32::try_from(goaway.len()).expect("short").to_be_bytes();
    let mut frames = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    frames.extend([&length[1..], &[7, 0, 0, 0, 0, 0], &goaway[..4], &[0, 0, 0, 11], &goaway[8..]].concat());
    let error = error_of(Layer::RawTls(config, vec![Step::Send(frames)]), "localhost", &more).await;
    assert!(error != "allowed" && !error.contains("no answer within"), "{error:.300}");
    assert!(error.len() <= 1024 && !error.contains("hunter2"), "{} bytes: {error:.300}", error.len());
}

#[tokio::test]
async fn authorities_that_do_not_verify_the_issuer_are_not_applied_by_a_reload() {
    let (folders, authority, other) = ([folder(), folder()], Authority::new(), Authority::new());
    let server = KeyServer::start_with(authority.issue(&["localhost"]).layer()).await;
    let keys = format!("jwks_uri: '{}'", server.https("/keys"));
    let env = TestEnv::with_server(server, &keys, &trusting(&authority.write(folders[0].path()))).await;
    let wrong = trusting(&other.write(folders[1].path()));
    let wanted = configured(&[provider("demo", ISSUER, &keys, &wrong)]);
    let pending = env.service.service().reload(&wanted).await.expect("valid");
    assert!(pending.len() == 1 && pending[0].error.contains("no trusted authority signed it"), "{pending:?}");
    let new = key("new");
    env.server.respond_with(Answer::keys(&[&new]));
    env.expect_reason(&new, "ok").await;
    // The server now has a certificate of the new authority.
    env.server.set_layer(other.issue(&["localhost"]).layer());
    assert_eq!(env.service.service().retry_pending().await, Vec::new());
    env.expect_reason(&new, "ok").await;
}
