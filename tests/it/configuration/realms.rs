//! A provider for many issuers: `{realm}` and the allowed realms.

use portcullis::config::AllowedRealms;
use portcullis::keys::names::RealmName;

use super::{Errors, MINIMAL, SECRET, parse};

const TEMPLATE: &str = "https://sso.example.com/realms/{realm}";

/// `MINIMAL` with this issuer on line 5, and these lines after the audiences, from line 7 on.
fn with(issuer: &str, lines: &str) -> String {
    let lines: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    format!("{}{lines}", MINIMAL.replace("issuer: https://sso.example.com", &format!("issuer: '{issuer}'")))
}

#[test]
fn realms_are_a_list_or_a_pattern_for_the_whole_name() {
    for (realms, allowed, refused) in [
        ("[acme, globex]", vec!["acme", "globex"], vec!["evil", "acmeglobex", "", "ACME"]),
        ("'[a-z]+'", vec!["acme", "z"], vec!["acme1", "ACME", "", "a/b"]),
        ("'a|bc'", vec!["a", "bc"], vec!["abc", "ac", "b"]),
        // A name that cannot be a URL segment is not a realm, whatever the pattern allows.
        ("'.*'", vec!["acme", "a.b", "~"], vec!["", ".", "..", "a/b", "a%2fb", "a?b", "é", "a b"]),
    ] {
        let config = parse(&with(TEMPLATE, &format!("realms: {realms}"))).expect("valid");
        let read = config.providers[0].realms.as_ref().expect("realms");
        assert_eq!(read.most, 256);
        let is_allowed = |name: &str| RealmName::new(name).is_some_and(|name| read.allowed.contains(&name));
        for name in allowed {
            assert!(is_allowed(name), "{realms} {name}");
        }
        for name in refused.iter().map(|name| (*name).to_owned()).chain(["a".repeat(129)]) {
            assert!(!is_allowed(&name), "{realms} {name}");
        }
    }
}

#[test]
fn a_realm_has_the_issuer_and_the_key_url_of_its_template() {
    for (lines, url) in [
        ("realms: [acme]", "https://sso.example.com/realms/acme/.well-known/openid-configuration"),
        (
            "realms: [acme]\njwks_uri: 'https://keys.example.com/{realm}/keys?v=1'",
            "https://keys.example.com/acme/keys?v=1",
        ),
        (
            "realms: [acme]\ndiscovery_uri: 'https://sso.example.com/x/{realm}'",
            "https://sso.example.com/x/acme",
        ),
    ] {
        let text = with(TEMPLATE, lines);
        let config = parse(&text).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        let template = &config.providers[0];
        let acme = RealmName::new("acme").expect("a name");
        let realm = template.of_realm(template.realms.as_ref().expect("realms"), &acme);
        assert_eq!(realm.provider.issuer, "https://sso.example.com/realms/acme");
        let [read] = realm.keys.urls() else { panic!("one URL") };
        assert_eq!(read.as_str(), url);
        let printed = config.to_yaml();
        // The template with the realm inserted again.
        let whole = printed.replace("?...", "?v=1");
        let again = parse(&whole).unwrap_or_else(|errors| panic!("{errors}\n{printed}"));
        assert_eq!(again.providers[0].realms, template.realms);
        assert_eq!(again.to_yaml(), printed);
    }
}

#[test]
fn a_realm_in_the_issuer_is_read_back_exactly() {
    let config = parse(&with("https://sso.example.com/{realm}/oidc", "realms: '.*'")).expect("valid");
    let issuer = &config.providers[0].realms.as_ref().expect("realms").issuer;
    for (text, realm) in [
        ("https://sso.example.com/acme/oidc", Some("acme")),
        ("https://sso.example.com/acme/oidc/", None),
        ("https://sso.example.com/acme", None),
        ("https://sso.example.com//oidc", None),
        ("https://sso.example.com/oidc", None),
        ("https://sso.example.com/a/b/oidc", None),
        ("https://SSO.example.com/acme/oidc", None),
        ("http://sso.example.com/acme/oidc", None),
    ] {
        assert_eq!(issuer.realm_of(text).as_ref().map(RealmName::as_str), realm, "{text}");
    }
}

#[test]
fn invalid_realms_are_errors_with_their_place() {
    let mut errors = Errors::default();
    let jwks = format!("realms: [a]\nalgorithms: [HS256]\njwks: {{keys: [{{kty: oct, k: {SECRET}}}]}}");
    for (issuer, lines) in [
        (TEMPLATE, ""),
        ("https://sso.example.com", "realms: [a]"),
        ("https://sso.example.com", "max_realms: 5"),
        ("https://{realm}.example.com/x", "realms: [a]"),
        ("https://sso.example.com/r-{realm}", "realms: [a]"),
        ("https://sso.example.com/{realm}x", "realms: [a]"),
        ("https://sso.example.com/{realm}/{realm}", "realms: [a]"),
        (TEMPLATE, "realms: []"),
        (TEMPLATE, "realms: [a, a]"),
        (TEMPLATE, "realms: [a/b]"),
        (TEMPLATE, "realms: ['..']"),
        (TEMPLATE, "realms: '('"),
        (TEMPLATE, "realms: '(a{1000}){1000}'"),
        (TEMPLATE, "realms: {a: b}"),
        (TEMPLATE, "realms: [a]\nmax_realms: 0"),
        (TEMPLATE, "realms: [a, b]\njwks_uri: https://other.example.com/realms/b/keys"),
        (
            TEMPLATE,
            "realms: [a]\njwks_uri: ['https://sso.example.com/common/keys', 'https://sso.example.com/realms/a']",
        ),
        (TEMPLATE, "realms: [a]\njwks_uri: 'https://sso.example.com/k?realm={realm}'"),
        (TEMPLATE, "realms: [a]\ndiscovery_uri: https://sso.example.com/d"),
        (TEMPLATE, "realms: [a]\njwks_file: /keys.json"),
        (TEMPLATE, &jwks),
    ] {
        errors.of(&with(issuer, lines));
    }
    errors.compare("invalid_realms_are_errors_with_their_place");
}

#[test]
fn a_list_keeps_its_order() {
    let config = parse(&with(TEMPLATE, "realms: [b, a]\nmax_realms: 1")).expect("valid");
    let realms = config.providers[0].realms.as_ref().expect("realms");
    assert_eq!(
        realms.allowed,
        AllowedRealms::Listed(["b", "a"].into_iter().filter_map(RealmName::new).collect())
    );
    assert_eq!(realms.most, 1);
}

#[test]
fn two_equal_templates_are_refused_whatever_realms_they_allow() {
    let text = with(TEMPLATE, "realms: [a]");
    let second =
        format!("  - name: second\n    issuer: '{TEMPLATE}'\n    realms: [b]\n    audiences: [orders-api]\n");
    let mut errors = Errors::default();
    errors.of(&format!("{text}{second}"));
    errors.compare("two_equal_templates_are_refused_whatever_realms_they_allow");
}

#[test]
fn a_key_set_of_one_realm_for_all_of_them_is_a_warning_if_a_pattern_allows_its_name() {
    let issuer = "https://login.example.com/{realm}/v2.0";
    for (realms, warned) in [("'[0-9a-f-]{36}'", false), ("'[a-z]+'", true), ("[acme]", false)] {
        let keys = "jwks_uri: https://login.example.com/common/discovery/v2.0/keys";
        let config = parse(&with(issuer, &format!("realms: {realms}\n{keys}"))).expect("valid");
        let is_warned =
            config.warnings.iter().any(|warning| warning.message.contains("the keys of the realm common"));
        assert_eq!(is_warned, warned, "{realms}");
        assert!(config.providers[0].shared.is_some() && config.providers[0].realms.is_none());
    }
}
