//! G16 and G17: which addresses may be configured. What a token or an issuer says never adds one.

use portcullis::config::Config;
use serde_json::json;

use super::answer::Answer;
use super::house::{
    House, ISSUER, PROMPT, configuration_faults, configured, key, provider, status, text, token,
};
use super::key_server::KeyServer;
use crate::support::{NOW, Running, fixed_clock};

#[test]
fn plain_http_is_for_this_machine_alone_however_its_address_is_written() {
    const REFUSED: &str = "use https";
    for (host, says) in [
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
        ("0.0.0.0", REFUSED),
        ("[::]", REFUSED),
        ("[::ffff:10.0.0.1]", REFUSED),
        ("[::127.0.0.1]", REFUSED),
        ("[64:ff9b::7f00:1]", REFUSED),
        ("128.0.0.1", REFUSED),
        ("126.255.255.255", REFUSED),
        ("10.0.0.1", REFUSED),
        ("192.168.0.1", REFUSED),
        ("169.254.169.254", REFUSED),
        ("2852039166", REFUSED),
        ("0xa9fea9fe", REFUSED),
        ("[fe80::1]", REFUSED),
        ("[fd00:ec2::254]", REFUSED),
        ("localhost.example.com", REFUSED),
        ("localhost.", REFUSED),
        ("127.0.0.1.example.com", REFUSED),
        ("127.0.0.1.nip.io", REFUSED),
        ("localhosts", REFUSED),
        ("sso.localhost", REFUSED),
        ("keycloak", REFUSED),
        ("metadata.google.internal", REFUSED),
        ("localhost@example.com", "user name"),
        ("127.0.0.1:x@example.com", "user name"),
        ("example.com\\@localhost", "absolute http or https URL"),
        ("example.com#@localhost", "no `#` part"),
        ("256.0.0.1", "absolute http or https URL"),
        ("[::1", "absolute http or https URL"),
    ] {
        for key in ["jwks_uri", "discovery_uri"] {
            let faults = configuration_faults(&format!("{key}: 'http://{host}/keys'"), PROMPT);
            let right = if says.is_empty() { faults.is_empty() } else { faults.contains(says) };
            assert!(right, "{key} {host}: {faults:?}");
            // Said on purpose it is another matter, but for what is no address at all.
            let faults = configuration_faults(&format!("{key}: 'http://{host}/keys'"), "allow_http: true");
            assert_eq!(faults.is_empty(), says.is_empty() || says == REFUSED, "{key} {host}: {faults:?}");
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
    // Where keys come from elsewhere, the issuer is a name and no address.
    let named = parse("http://sso.example.com", "jwks_uri: 'https://sso.example.com/keys'");
    assert_eq!(named, "");
}

#[test]
fn credentials_in_a_url_are_refused_and_not_repeated() {
    for url in ["https://anna:hunter2@sso.example.com/keys", "https://:hunter2@sso.example.com/keys"] {
        for key in ["jwks_uri", "discovery_uri"] {
            let faults = configuration_faults(&format!("{key}: '{url}'"), PROMPT);
            assert!(faults.contains("user name or a password"), "{faults}");
            assert!(!faults.contains("hunter2"), "{faults}");
        }
    }
}

#[tokio::test]
async fn no_address_in_a_token_is_ever_asked() {
    let house = House::start(PROMPT).await;
    let elsewhere = KeyServer::start().await;
    let stranger = key("stranger");
    elsewhere.always(Answer::keys(&[&stranger]));
    let url = elsewhere.http("/keys");
    let good = json!({"iss": ISSUER, "aud": "orders-api", "exp": NOW + 60});
    for (claims, reason) in [
        (json!({"iss": elsewhere.http(""), "aud": "orders-api", "exp": NOW + 60}), "issuer_unknown"),
        (good.clone(), "key_unknown"),
    ] {
        let token = stranger.with_kid(url.as_str()).sign(&claims);
        let answer = house.service.bearer(&token).await;
        assert_eq!(answer.faults(reason, &[]), Vec::<String>::new());
    }
    assert_eq!(elsewhere.connections(), 0);
    let asked: Vec<String> = house.server.requests().iter().map(|request| request.target.clone()).collect();
    assert!(asked.iter().all(|target| target == "/keys"), "a kid adds nothing to what is asked: {asked:?}");
}

#[tokio::test]
async fn an_address_where_nobody_is_is_an_error_that_repeats_no_url() {
    let gone = KeyServer::start().await.http("/realms/secret-tenant/keys?key=hunter2");
    let config = configured(&[provider("demo", ISSUER, &format!("jwks_uri: '{gone}'"), PROMPT)]);
    let service = Running::start_without_keys(config, fixed_clock()).await;
    let answer = service.bearer(&token(&key("any"))).await;
    assert_eq!(answer.faults("keys_unavailable", &[]), Vec::<String>::new());
    let error = status(&service, "demo").await["last_error"].to_string();
    assert!(error.contains("refused"), "{error}");
    assert!(!error.contains("secret-tenant") && !error.contains("hunter2"), "{error}");
}
