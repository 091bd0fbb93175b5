//! G16 and G17: which addresses may be configured. Tokens and issuers never add one.

use portcullis::config::Config;
use serde_json::json;

use super::answer::Answer;
use super::env::{
    IMMEDIATE_REFRESH, ISSUER, TestEnv, configuration_faults, configured, key, provider, status, text, token,
};
use super::key_server::KeyServer;
use crate::support::{NOW, Running, fixed_clock};

#[test]
fn plain_http_is_allowed_for_loopback_only_in_every_notation() {
    const USE_HTTPS: &str = "use https";
    for (host, expected) in [
        ("localhost", ""),
        ("LOCALHOST:8080", ""),
        ("127.0.0.1", ""),
        ("127.255.255.254", ""),
        ("127.1", ""),
        ("2130706433", ""),
        ("0x7f000001", ""),
        ("0177.0.0.1", ""),
        ("[::1]", ""),
        ("[0:0:0:0:0:0:0:1]:8080", ""),
        ("[::ffff:127.0.0.1]", ""),
        ("0.0.0.0", USE_HTTPS),
        ("[::]", USE_HTTPS),
        ("[::ffff:10.0.0.1]", USE_HTTPS),
        ("[::127.0.0.1]", USE_HTTPS),
        ("[64:ff9b::7f00:1]", USE_HTTPS),
        ("128.0.0.1", USE_HTTPS),
        ("126.255.255.255", USE_HTTPS),
        ("10.0.0.1", USE_HTTPS),
        ("192.168.0.1", USE_HTTPS),
        ("169.254.169.254", USE_HTTPS),
        ("2852039166", USE_HTTPS),
        ("0xa9fea9fe", USE_HTTPS),
        ("[fe80::1]", USE_HTTPS),
        ("[fd00:ec2::254]", USE_HTTPS),
        ("localhost.example.com", USE_HTTPS),
        ("localhost.", USE_HTTPS),
        ("127.0.0.1.example.com", USE_HTTPS),
        ("127.0.0.1.nip.io", USE_HTTPS),
        ("localhosts", USE_HTTPS),
        ("sso.localhost", USE_HTTPS),
        ("keycloak", USE_HTTPS),
        ("metadata.google.internal", USE_HTTPS),
        ("localhost@example.com", "user name"),
        ("127.0.0.1:x@example.com", "user name"),
        ("example.com\\@localhost", "absolute http or https URL"),
        ("example.com#@localhost", "must not have a `#` part"),
        ("256.0.0.1", "absolute http or https URL"),
        ("[::1", "absolute http or https URL"),
    ] {
        for key in ["jwks_uri", "discovery_uri"] {
            let faults = configuration_faults(&format!("{key}: 'http://{host}/keys'"), IMMEDIATE_REFRESH);
            let right = if expected.is_empty() { faults.is_empty() } else { faults.contains(expected) };
            assert!(right, "{key} {host}: {faults:?}");
            // `allow_http` permits every valid URL.
            let faults = configuration_faults(&format!("{key}: 'http://{host}/keys'"), "allow_http: true");
            assert_eq!(
                faults.is_empty(),
                expected.is_empty() || expected == USE_HTTPS,
                "{key} {host}: {faults:?}"
            );
        }
    }
}

#[test]
fn an_issuer_below_which_keys_are_discovered_follows_the_same_rule() {
    let parse = |issuer: &str, more: &str| {
        let text = text(&[provider("demo", issuer, "token_types: [JWT]", more)]);
        Config::parse(&text, &|_| None).err().map(|errors| errors.to_string()).unwrap_or_default()
    };
    assert!(parse("http://sso.example.com", "").contains("use https"));
    assert!(parse("http://169.254.169.254", "").contains("allow_http: true"));
    for fine in ["https://sso.example.com", "http://localhost:8080/realms/acme", "http://[::1]:8080"] {
        assert_eq!(parse(fine, ""), "", "{fine}");
    }
    assert_eq!(parse("http://sso.example.com", "allow_http: true"), "");
    // With `jwks_uri` the issuer is a name only.
    let named = parse("http://sso.example.com", "jwks_uri: 'https://sso.example.com/keys'");
    assert_eq!(named, "");
}

#[test]
fn credentials_in_a_url_are_rejected_and_not_repeated() {
    for url in ["https://anna:hunter2@sso.example.com/keys", "https://:hunter2@sso.example.com/keys"] {
        for key in ["jwks_uri", "discovery_uri"] {
            let faults = configuration_faults(&format!("{key}: '{url}'"), IMMEDIATE_REFRESH);
            assert!(faults.contains("user name or a password"), "{faults}");
            assert!(!faults.contains("hunter2"), "{faults}");
        }
    }
}

#[tokio::test]
async fn an_address_in_a_token_is_never_contacted() {
    let env = TestEnv::start(IMMEDIATE_REFRESH).await;
    let other = KeyServer::start().await;
    let unknown = key("unknown");
    other.respond_with(Answer::keys(&[&unknown]));
    let url = other.http("/keys");
    let good = json!({"iss": ISSUER, "aud": "orders-api", "exp": NOW + 60});
    for (claims, reason) in [
        (json!({"iss": other.http(""), "aud": "orders-api", "exp": NOW + 60}), "issuer_unknown"),
        (good.clone(), "key_unknown"),
    ] {
        let token = unknown.with_kid(url.as_str()).sign(&claims);
        let answer = env.service.bearer(&token).await;
        assert_eq!(answer.faults(reason, &[]), Vec::<String>::new());
    }
    assert_eq!(other.connections(), 0);
    let targets: Vec<String> = env.server.requests().iter().map(|request| request.target.clone()).collect();
    assert!(targets.iter().all(|target| target == "/keys"), "a kid does not change the request: {targets:?}");
}

#[tokio::test]
async fn an_unreachable_address_is_an_error_with_its_url_but_no_query_and_without_it_for_a_probe() {
    let unreachable = KeyServer::start().await.http("/realms/secret-tenant/keys?key=hunter2");
    let config =
        configured(&[provider("demo", ISSUER, &format!("jwks_uri: '{unreachable}'"), IMMEDIATE_REFRESH)]);
    let service = Running::start_without_keys(config, fixed_clock()).await;
    let answer = service.bearer(&token(&key("any"))).await;
    assert_eq!(answer.faults("keys_unavailable", &[]), Vec::<String>::new());
    let error = status(&service, "demo").await["last_error"].to_string();
    assert!(error.contains("refused"), "{error}");
    assert!(error.contains("/realms/secret-tenant/keys: ") && !error.contains("hunter2"), "{error}");
    let probed = service.admin("/readyz").await;
    assert!(probed.contains("refused") && !probed.contains("secret-tenant"), "{probed}");
}
