//! Issuers that publish their keys to those who log in alone (`http.bearer_token_file`), and several sources of keys.

use std::fs;
use std::path::Path;

use super::answer::{Answer, Gate, Step};
use super::certificates::Authority;
use super::env::{
    IMMEDIATE_REFRESH, ISSUER, capture, configuration_faults, configured, eventually, folder, key, provider,
    start_faults, status, token,
};
use super::key_server::{KeyServer, Layer, Request};
use crate::support::{Running, fixed_clock, log};

/// The members of a provider that logs in with this file.
fn logging_in(folder: &Path, more: &str) -> String {
    let file = folder.join("token");
    format!("{IMMEDIATE_REFRESH}, http: {{bearer_token_file: '{}'{more}}}", file.display())
}

/// The credentials of a request.
fn credentials(request: &Request) -> Option<String> {
    request.header("authorization").map(str::to_owned)
}

#[tokio::test]
async fn the_token_goes_to_the_hosts_of_the_configuration_and_a_changed_one_is_used() {
    let (folder, server, known) = (folder(), KeyServer::start().await, key("known"));
    fs::write(folder.path().join("token"), "first.token-1\n").expect("written");
    server.on({
        let good = Answer::keys(&[&known]);
        move |request| match request.header("authorization") {
            Some("Bearer first.token-1" | "Bearer second") => good.clone(),
            _ => Answer::status(401),
        }
    });
    let keys = format!("jwks_uri: '{}'", server.http("/openid/v1/jwks"));
    let config = configured(&[provider("demo", ISSUER, &keys, &logging_in(folder.path(), ""))]);
    let service = Running::start(config, fixed_clock()).await;
    assert!(service.bearer(&token(&known)).await.is_allowed());
    fs::write(folder.path().join("token"), "second").expect("written");
    eventually("the new token is sent", async || {
        let _stale = service.bearer(&token(&key("unknown"))).await;
        server.requests().last().and_then(credentials).as_deref() == Some("Bearer second")
    })
    .await;
}

#[tokio::test]
async fn the_token_goes_to_no_host_that_a_document_names_unless_the_configuration_does() {
    let (folder, authority) = (folder(), Authority::new());
    fs::write(folder.path().join("token"), "secret-token").expect("written");
    let ca_file = authority.write(folder.path());
    let issuer_server = KeyServer::start_with(authority.issue(&["localhost"]).layer()).await;
    let other = KeyServer::start_with(authority.issue(&["127.0.0.1"]).layer()).await;
    let known = key("known");
    other.respond_with(Answer::keys(&[&known]));
    let elsewhere = format!("https://{}/keys", other.address());
    for (hosts, sent) in [("", false), (", bearer_token_hosts: [127.0.0.1]", true)] {
        let issuer = issuer_server.https("");
        issuer_server.respond_with(Answer::document(&issuer, elsewhere.as_str()));
        let more = logging_in(folder.path(), &format!(", ca_file: '{}'{hosts}", ca_file.display()));
        let keys = format!("discovery_uri: '{}'", issuer_server.https("/.well-known/openid-configuration"));
        let config = configured(&[provider("demo", &issuer, &keys, &more)]);
        let service = Running::start(config, fixed_clock()).await;
        let allowed = service.bearer(&super::env::token_of(&issuer, &known, crate::support::NOW + 60)).await;
        assert!(allowed.is_allowed(), "{}", allowed.reason());
        let (to_issuer, to_other) = (issuer_server.requests(), other.requests());
        assert!(
            to_issuer.iter().all(|request| credentials(request).as_deref() == Some("Bearer secret-token"))
        );
        let last = to_other.last().and_then(credentials);
        assert_eq!(last.is_some(), sent, "{hosts}");
    }
}

#[tokio::test]
async fn a_token_is_never_sent_in_the_clear_to_another_machine_and_never_shown() {
    capture();
    let (folder, proxy) = (folder(), KeyServer::start().await);
    fs::write(folder.path().join("token"), "secret-token").expect("written");
    proxy.respond_with(Answer::status(401));
    let more = logging_in(folder.path(), &format!(", proxy: '{}'", proxy.http("")));
    let more = format!("allow_http: true, {more}");
    let keys = "jwks_uri: 'http://sso.test/keys'";
    let service =
        Running::start_without_keys(configured(&[provider("demo", ISSUER, keys, &more)]), fixed_clock())
            .await;
    assert_eq!(credentials(&proxy.request(1).await), None, "plain http");
    eventually("an error", async || !status(&service, "demo").await["last_error"].is_null()).await;
    assert_eq!(log::warnings("secret-token"), 0);
    fs::write(folder.path().join("token"), "secret token").expect("written");
    let faults = start_faults(keys, &more).await;
    assert!(faults.contains("not one bearer token") && !faults.contains("secret token"), "{faults}");
    let faults = configuration_faults(keys, "allow_http: true, http: {bearer_token_hosts: [a.example.com]}");
    assert!(faults.contains("there is no token: set `bearer_token_file`"), "{faults}");
    let faults = configuration_faults(
        keys,
        &format!("allow_http: true, {}", logging_in(folder.path(), ", bearer_token_hosts: ['https://a']")),
    );
    assert!(faults.contains("expected a host name or an address"), "{faults}");
}

#[tokio::test]
async fn the_next_source_is_asked_if_one_fails_and_errors_name_all() {
    let (first, second, known, new) =
        (KeyServer::start().await, KeyServer::start().await, key("known"), key("new"));
    second.respond_with(Answer::keys(&[&known]));
    let keys = format!("jwks_uri: ['{}', '{}']", first.http("/keys?secret=1"), second.http("/keys"));
    let config = configured(&[provider("demo", ISSUER, &keys, IMMEDIATE_REFRESH)]);
    let service = Running::start(config, fixed_clock()).await;
    assert!(service.bearer(&token(&known)).await.is_allowed());
    // The first one is asked first again.
    first.respond_with(Answer::keys(&[&new]));
    let before = second.requests().len();
    assert!(service.bearer(&token(&new)).await.is_allowed());
    assert_eq!(second.requests().len(), before);
    for server in [&first, &second] {
        server.respond_with(Answer::status(500));
    }
    assert_eq!(service.bearer(&token(&key("unknown"))).await.reason(), "keys_unavailable");
    let error = status(&service, "demo").await["last_error"].to_string();
    for server in [&first, &second] {
        assert!(
            error.contains(&format!("key set at {}: the answer's status is 500", server.http("/keys"))),
            "{error}"
        );
    }
    assert!(!error.contains("secret"), "{error}");
}

#[tokio::test]
async fn a_source_that_does_not_answer_leaves_time_for_the_next() {
    let (first, second, known) = (KeyServer::start().await, KeyServer::start().await, key("known"));
    let gate = Gate::new();
    first.respond_with(Answer::raw(vec![Step::Wait(gate.clone())]));
    second.respond_with(Answer::keys(&[&known]));
    let keys = format!("jwks_uri: ['{}', '{}']", first.http("/keys"), second.http("/keys"));
    let more = IMMEDIATE_REFRESH.replace("timeout: 10s", "timeout: 1s");
    let service = Running::start(configured(&[provider("demo", ISSUER, &keys, &more)]), fixed_clock()).await;
    assert!(service.bearer(&token(&known)).await.is_allowed());
    gate.open();
}

#[tokio::test]
async fn an_error_of_a_fetch_names_what_is_wrong() {
    let tls = Authority::new();
    for (what, answer, expected) in [
        (
            "a redirect",
            Answer::redirect("https://login.example.com/sign-in?next=/keys"),
            "a redirect (302) to https://login.example.com/sign-in, which is not followed",
        ),
        (
            "credentials",
            Answer::redirect("https://u:p@a.example.com/"),
            "a redirect (302) to https://a.example.com/,",
        ),
        (
            "a document",
            Answer::document(ISSUER, "https://issuer.example.com/keys"),
            "this is a discovery document, not a key set",
        ),
        ("a page", Answer::status(200).body("<html>"), "not a JWK Set"),
    ] {
        let server = KeyServer::start().await;
        server.respond_with(answer);
        let keys = format!("jwks_uri: '{}'", server.http("/keys"));
        let config = configured(&[provider("demo", ISSUER, &keys, IMMEDIATE_REFRESH)]);
        let service = Running::start_without_keys(config, fixed_clock()).await;
        let mut error = String::new();
        eventually("an error", async || {
            error = status(&service, "demo").await["last_error"].as_str().unwrap_or_default().to_owned();
            !error.is_empty()
        })
        .await;
        assert!(error.starts_with(&format!("key set at {}: ", server.http("/keys"))), "{what}: {error}");
        assert!(error.contains(expected), "{what}: {error}");
    }
    // https to a port without TLS.
    let plain = Layer::Raw(vec![Step::Send(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())]);
    let (server, folder) = (KeyServer::start_with(plain).await, folder());
    let ca_file = tls.write(folder.path());
    let keys = format!("jwks_uri: '{}'", server.https("/keys"));
    let more = format!("{IMMEDIATE_REFRESH}, http: {{ca_file: '{}'}}", ca_file.display());
    let service =
        Running::start_without_keys(configured(&[provider("demo", ISSUER, &keys, &more)]), fixed_clock())
            .await;
    eventually("an error", async || {
        let error = status(&service, "demo").await["last_error"].to_string();
        assert!(error == "null" || error.contains("the server's port does not speak TLS"), "{error}");
        error != "null"
    })
    .await;
}

#[tokio::test]
async fn a_source_that_stands_in_for_the_first_one_adds_keys_and_brings_none_back() {
    let (first, second) = (KeyServer::start().await, KeyServer::start().await);
    let [old, new, third] = ["old", "new", "third"].map(key);
    first.respond_with(Answer::keys(&[&old]));
    second.respond_with(Answer::keys(&[&old]));
    let keys = format!("jwks_uri: ['{}', '{}']", first.http("/keys"), second.http("/keys"));
    let service =
        Running::start(configured(&[provider("demo", ISSUER, &keys, IMMEDIATE_REFRESH)]), fixed_clock())
            .await;
    let reason = async |key: &_| service.bearer(&token(key)).await.reason().to_owned();
    assert_eq!(reason(&old).await, "ok");
    first.respond_with(Answer::keys(&[&new]));
    assert_eq!((reason(&new).await, reason(&old).await), ("ok".to_owned(), "key_unknown".to_owned()));
    // The second one still has the old key. It does not show that a key is unknown, so that such tokens are unavailable.
    for answer in [Answer::status(503), Answer::status(200).body(r#"{"keys":[]}"#)] {
        first.respond_with(answer);
        assert_eq!(reason(&key("unknown")).await, "keys_unavailable");
        assert_ne!(reason(&old).await, "ok");
        assert_eq!(reason(&new).await, "ok");
    }
    second.respond_with(Answer::keys(&[&old, &third]));
    assert_eq!(reason(&third).await, "ok", "a key that no answer has withdrawn is added");
    assert_ne!(reason(&old).await, "ok");
    assert_eq!(reason(&new).await, "ok");
}

#[tokio::test]
async fn nothing_goes_in_the_clear_through_a_proxy_because_it_is_meant_for_this_machine() {
    let (folder, proxy) = (folder(), KeyServer::start().await);
    fs::write(folder.path().join("token"), "secret-token").expect("written");
    proxy.respond_with(Answer::status(401));
    let keys = "jwks_uri: 'http://127.0.0.1:1/keys'";
    let more = logging_in(folder.path(), &format!(", proxy: '{}'", proxy.http("")));
    let faults = configuration_faults(keys, &more);
    assert!(faults.contains("keys over plain http can be replaced in transit"), "{faults}");
    let config = configured(&[provider("demo", ISSUER, keys, &format!("allow_http: true, {more}"))]);
    let _service = Running::start_without_keys(config, fixed_clock()).await;
    assert_eq!(credentials(&proxy.request(1).await), None);
}

#[tokio::test]
async fn a_source_that_stands_in_brings_no_withdrawn_key_back_after_a_restart() {
    let (folder, first, second) = (folder(), KeyServer::start().await, KeyServer::start().await);
    let [old, new] = ["old", "new"].map(key);
    first.respond_with(Answer::keys(&[&old, &new]));
    second.respond_with(Answer::keys(&[&old, &new]));
    let keys = format!("jwks_uri: ['{}', '{}']", first.http("/keys"), second.http("/keys"));
    let more = IMMEDIATE_REFRESH
        .replace("wait: 1m", &format!("snapshot_dir: '{}', wait: 1m", folder.path().display()));
    let start =
        async || Running::start(configured(&[provider("demo", ISSUER, &keys, &more)]), fixed_clock()).await;
    let service = start().await;
    assert!(service.bearer(&token(&old)).await.is_allowed());
    first.respond_with(Answer::keys(&[&new]));
    assert!(!service.bearer(&token(&key("unknown"))).await.is_allowed());
    assert!(!service.bearer(&token(&old)).await.is_allowed());
    let is_written = || {
        let mut files = fs::read_dir(folder.path()).expect("a folder").filter_map(Result::ok);
        files.any(|file| fs::read_to_string(file.path()).is_ok_and(|text| text.contains("\"withdrawn\":[{")))
    };
    eventually("the snapshot has the withdrawal", async || is_written()).await;
    drop(service);
    first.respond_with(Answer::status(503));
    let service = start().await;
    assert!(service.bearer(&token(&new)).await.is_allowed());
    assert!(!service.bearer(&token(&old)).await.is_allowed(), "the first one has withdrawn it");
}

#[tokio::test]
async fn a_source_that_is_passed_over_is_told_once_though_another_one_has_the_keys() {
    let (first, second, known) = (KeyServer::start().await, KeyServer::start().await, key("known"));
    let urls = format!("jwks_uri: ['{}', '{}']", first.http("/keys"), second.http("/keys"));
    let document = format!("discovery_uri: '{}'", first.http("/document"));
    let published = Answer::document(ISSUER, second.http("/keys"));
    for (keys, before, what) in [
        (urls, Answer::keys(&[&known]), format!("key set at {}", first.http("/keys"))),
        (document, published, format!("discovery document at {}", first.http("/document"))),
    ] {
        log::capture();
        first.respond_with(before.clone());
        second.respond_with(Answer::keys(&[&known]));
        let more = IMMEDIATE_REFRESH.replace("interval: 1h", "interval: 20ms");
        let config = configured(&[provider("demo", ISSUER, &keys, &more)]);
        let service = Running::start(config, fixed_clock()).await;
        first.respond_with(Answer::status(503));
        let failed = first.requests().len();
        eventually("it is asked again", async || first.requests().len() > failed + 4).await;
        assert!(service.bearer(&token(&known)).await.is_allowed());
        let told = log::lines("a source of keys failed, another one stands in");
        let [told] = &told[..] else { panic!("{told:?}") };
        for part in [&format!("{what}: the answer's status is 503"), "setting=\"providers[0].", "WARN"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        first.respond_with(before);
        eventually("it answers again", async || !log::lines("every source of keys answers again").is_empty())
            .await;
        assert_eq!(log::lines("older key set received"), Vec::<String>::new());
        assert_eq!(log::lines("key set refresh failed"), Vec::<String>::new());
    }
}
