//! Which PEM files are read and which are rejected.

use std::sync::OnceLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair, SanType,
    date_time_ymd,
};

use super::*;

/// The certificate of an authority, and its issuer.
fn authority() -> (String, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "authority");
    (params.self_signed(&key).expect("a certificate").pem(), Issuer::new(params, key))
}

/// A certificate with these names, and its key.
fn leaf(names: &[&str]) -> (String, String) {
    let (_, issuer) = authority();
    let key = KeyPair::generate().expect("a key");
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let params = CertificateParams::new(names).expect("names");
    (params.signed_by(&key, &issuer).expect("a certificate").pem(), key.serialize_pem())
}

#[track_caller]
fn assert_rejected<T>(read: Result<T, String>, expected: &str) {
    let message = read.err().unwrap_or_default();
    assert!(message.contains(expected), "{message:?} instead of {expected:?}");
}

#[test]
fn a_file_with_a_broken_part_is_rejected() {
    let (one, two) = (authority().0, authority().0);
    let both = format!("# two of them\n{one}\nold:\n{two}");
    assert_eq!(client_authorities(both.as_bytes()).expect("both").len(), 2);
    assert_eq!(client_authorities(both.replace('\n', "\r\n").as_bytes()).expect("both").len(), 2);
    let lines: Vec<&str> = two.lines().collect();
    let (_, key) = leaf(&["a"]);
    for (second, expected) in [
        (two.replace("-----END CERTIFICATE-----", ""), "does not end"),
        (two.replace("-----END CERTIFICATE-----", "-----END CERTIFICATE----"), "does not end"),
        (two.replace("-----END CERTIFICATE-----", "-----END CERT-----"), "does not end"),
        (two.replace("-----BEGIN CERTIFICATE-----", ""), "does not begin"),
        (two.replace("-----BEGIN CERTIFICATE-----", "----BEGIN CERTIFICATE-----"), "does not begin"),
        (
            two.replace("-----BEGIN CERTIFICATE-----", "-----BEGIN CERTIFICATE----"),
            "malformed section marker",
        ),
        (
            two.replace("-----BEGIN CERTIFICATE-----", " -----BEGIN CERTIFICATE-----"),
            "malformed section marker",
        ),
        (
            two.replace("CERTIFICATE", "TRUSTED CERTIFICATE"),
            "`TRUSTED CERTIFICATE`, which is not allowed here",
        ),
        (two.replace(lines[2], ""), "cannot be decoded"),
        (two.replace(lines[2], "????"), "cannot be decoded"),
        (format!("{}\n{}", lines[..3].join("\n"), lines[lines.len() - 1]), "cannot be decoded"),
        (format!("{}\n{two}", lines[..3].join("\n")), "does not end"),
        (lines[..3].join("\n"), "does not end"),
        (key, "which is not allowed here"),
    ] {
        assert_rejected(client_authorities(format!("{one}\n{second}").as_bytes()), expected);
        assert_rejected(client_authorities(format!("{second}\n{one}").as_bytes()), expected);
    }
    assert_rejected(client_authorities(&[0xff, 0xfe]), "not text");
    for empty in ["", "# nothing\n", "MIIB"] {
        assert_rejected(client_authorities(empty.as_bytes()), "no certificate");
        assert_rejected(chain(empty.as_bytes()), "no certificate");
        assert_rejected(private_key(empty.as_bytes()), "no private key");
    }
}

#[test]
fn a_certificate_that_may_not_sign_is_not_an_authority() {
    let (ca, _) = authority();
    let (leaf, _) = leaf(&["a"]);
    assert_rejected(client_authorities(leaf.as_bytes()), "certificate 1 is not an authority");
    assert_rejected(
        client_authorities(format!("{ca}{leaf}").as_bytes()),
        "certificate 2 is not an authority",
    );
    assert_rejected(
        issuer_authorities(format!("{ca}{leaf}").as_bytes()),
        "certificate 2 is not an authority",
    );

    // A server with a self-signed certificate: valid as an issuer's authority, not as a client's.
    let key = KeyPair::generate().expect("a key");
    let own = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let own = own.self_signed(&key).expect("a certificate").pem();
    assert_rejected(client_authorities(own.as_bytes()), "certificate 1 is not an authority");
    assert_eq!(issuer_authorities(own.as_bytes()).expect("itself").len(), 1);
}

#[test]
fn a_file_has_one_private_key_that_is_not_encrypted() {
    let (certificate, key) = leaf(&["a"]);
    let with_certificate = format!(
        "{certificate}-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n{key}"
    );
    assert!(private_key(with_certificate.as_bytes()).is_ok(), "with_certificate its certificate");
    assert_eq!(chain(with_certificate.as_bytes()).expect("the certificate").len(), 1);
    assert_rejected(private_key(format!("{key}{key}").as_bytes()), "several private keys");
    assert_rejected(private_key(key.replace("PRIVATE", "ENCRYPTED PRIVATE").as_bytes()), "encrypted");
    let old =
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    assert_rejected(private_key(old.as_bytes()), "encrypted");
    assert_rejected(private_key(certificate.as_bytes()), "no private key");
    assert_rejected(private_key(key.replace("PRIVATE KEY", "PUBLIC KEY").as_bytes()), "`PUBLIC KEY`");
    let body = key.lines().nth(1).expect("a body").to_owned();
    let broken = key.replace(&body, "????");
    assert_rejected(private_key(broken.as_bytes()), "in line 1 cannot be decoded");
    let message =
        private_key(key.replace("-----END PRIVATE KEY-----", "").as_bytes()).err().unwrap_or_default();
    assert!(!message.contains(&body), "{message}");
}

#[test]
fn a_key_is_accepted_only_with_its_own_certificate() {
    let ((one, key), (other, _)) = (leaf(&["a"]), leaf(&["b"]));
    let key = || private_key(key.as_bytes()).expect("a key");
    let of = |pem: &str| chain(pem.as_bytes()).expect("certificates");
    assert_eq!(pair(&of(&format!("{one}{other}")), key()).expect("they fit").cert.len(), 2);
    let mismatch = |pem: &str| match pair(&of(pem), key()) {
        Err(PairError::Mismatch(cause)) => cause,
        other => panic!("{other:?}"),
    };
    assert!(mismatch(&other).contains("another certificate"));
    assert!(mismatch(&format!("{other}{one}")).contains("put that first"));
    let nonsense = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let nonsense = private_key(nonsense.as_bytes()).expect("base64");
    assert!(matches!(pair(&of(&one), nonsense), Err(PairError::Key(_))));
}

#[test]
fn a_client_is_identified_by_a_complete_name_of_its_certificate() {
    let named = |names: Vec<SanType>, wanted: &str| {
        let (_, issuer) = authority();
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.subject_alt_names = names;
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        is_named(&super::names(certificate.der()), &["other.mesh".to_owned(), wanted.to_owned()])
    };
    let dns = |name: &str| vec![SanType::DnsName(name.try_into().expect("ASCII"))];
    let uri = |name: &str| vec![SanType::URI(name.try_into().expect("ASCII"))];
    let spiffe = "spiffe://example.org/envoy";
    for (names, wanted, expected) in [
        (dns("envoy.mesh"), "envoy.mesh", true),
        (dns("Envoy.Mesh"), "envoy.mesh", true),
        ([dns("a.mesh"), dns("envoy.mesh")].concat(), "envoy.mesh", true),
        (dns("*.mesh"), "envoy.mesh", false),
        (dns("envoy.mesh.example"), "envoy.mesh", false),
        (dns("x.envoy.mesh"), "envoy.mesh", false),
        (dns("envoy.mesh."), "envoy.mesh", false),
        (uri(spiffe), spiffe, true),
        (uri("spiffe://example.org/Envoy"), spiffe, false),
        (uri("spiffe://EXAMPLE.org/envoy"), spiffe, false),
        (uri("spiffe://example.org/envoy/"), spiffe, false),
        (dns(spiffe), spiffe, false),
        (uri("envoy.mesh"), "envoy.mesh", false),
        (vec![SanType::Rfc822Name("envoy.mesh".try_into().expect("ASCII"))], "envoy.mesh", false),
        (Vec::new(), "envoy.mesh", false),
    ] {
        assert_eq!(named(names.clone(), wanted), expected, "{names:?} for {wanted}");
    }
    // The common name is ignored.
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(DnType::CommonName, "envoy.mesh");
    let certificate = params.self_signed(&key).expect("a certificate");
    assert!(!is_named(&names(certificate.der()), &["envoy.mesh".to_owned()]));
    // A second extension with names makes both invalid.
    let mut params = CertificateParams::new(vec!["envoy.mesh".to_owned()]).expect("a name");
    let again = CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 0x03, 0x82, 0x01, b'a']);
    params.custom_extensions.push(again);
    let certificate = params.self_signed(&key).expect("a certificate");
    assert!(!is_named(&names(certificate.der()), &["envoy.mesh".to_owned()]));
    assert!(names(&CertificateDer::from(vec![0x30])).is_empty());
}

#[test]
fn the_earliest_expiry_in_a_file_is_warned_about_from_two_weeks_before() {
    let key = KeyPair::generate().expect("a key");
    let until = |year| {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(year, 1, 1));
        params.self_signed(&key).expect("a certificate").pem()
    };
    let both = chain(format!("{}{}", until(2040), until(2030)).as_bytes()).expect("certificates");
    let validity = Validity::of_all(&both).expect("some");
    let at = |time: &str| validity.warning(clock::parse_time(time).expect("a time")).unwrap_or_default();
    assert_eq!(at("2029-12-18T00:00:00Z"), "");
    assert_eq!(at("2029-12-18T00:00:01Z"), "a certificate expires soon, on 2030-01-01T00:00:00Z");
    assert_eq!(at("2030-01-01T00:00:00Z"), "a certificate expires soon, on 2030-01-01T00:00:00Z");
    assert_eq!(at("2030-01-01T00:00:01Z"), "a certificate expired on 2030-01-01T00:00:00Z");
    assert_eq!(at("2019-12-31T23:59:59Z"), "a certificate is not valid before 2020-01-01T00:00:00Z");
    assert_eq!(Validity::of_all(&[]), None);
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let body = BASE64.encode(&bytes);
        let wrapped = |label: &str| format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n").into_bytes();
        for pem in [bytes.clone(), wrapped(CERTIFICATE), wrapped("PRIVATE KEY"), wrapped("EC PRIVATE KEY")] {
            let _results = (chain(&pem), client_authorities(&pem), issuer_authorities(&pem));
            if let Ok(key) = private_key(&pem) {
                let _result = pair(&[], key);
            }
        }
    }

    #[test]
    fn a_certificate_with_other_bytes_in_it_is_read_or_refused(at in 0..400_usize, byte: u8) {
        let (pem, key) = LEAF.get_or_init(|| leaf(&["a", "b.example"]));
        let mut der = chain(pem.as_bytes()).expect("one")[0].der.to_vec();
        let at = at % der.len();
        der[at] = byte;
        let other = CertificateDer::from(der.clone());
        let _result = names(&other);
        let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", BASE64.encode(&der));
        if let Ok(read) = chain(pem.as_bytes()) {
            prop_assert_eq!(&*read[0].der, &*der);
            let _result = (pair(&read, private_key(key.as_bytes()).expect("a key")).is_ok(), root_store(&read).is_ok());
        }
    }
}

static LEAF: OnceLock<(String, String)> = OnceLock::new();
