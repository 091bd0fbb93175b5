//! G19 and G20: a discovery document must have the configured issuer and a `jwks_uri` on its own host; a moved key URL is
//! found.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::answer::{Answer, Step, set_of};
use super::certificates::Authority;
use super::env::{
    IMMEDIATE_REFRESH, ISSUER, TestEnv, configuration_faults, configured, eventually, folder, key,
    metric_value, provider, status, token, token_of,
};
use super::key_server::{KeyServer, Layer, Request};
use crate::support::{NOW, Running, fixed_clock};

const DOCUMENT: &str = "/.well-known/openid-configuration";

/// A service with discovery at this server and without keys.
async fn discovering(server: &KeyServer) -> Running {
    let keys = format!("discovery_uri: '{}'", server.http(DOCUMENT));
    Running::start_without_keys(
        configured(&[provider("demo", ISSUER, &keys, IMMEDIATE_REFRESH)]),
        fixed_clock(),
    )
    .await
}

/// Answers `/keys` with these keys, and everything else with this document.
fn publishing(document: Answer, keys: Answer) -> impl Fn(&Request) -> Answer + Send + Sync + 'static {
    move |request| if request.target == "/keys" { keys.clone() } else { document.clone() }
}

#[tokio::test]
async fn a_document_is_rejected_unless_it_has_this_issuer_and_its_keys_are_on_its_host() {
    const OTHER_HOST: &str = "another host: if that is intended, configure it as `jwks_uri`";
    const NO_DOCUMENT: &str = "not a discovery document";
    const NO_URL: &str = "not a URL that can be trusted";
    const OTHER_ISSUER: &str = "is not the configured one";
    let server = KeyServer::start().await;
    let (port, good) = (server.address().port(), server.http("/keys"));
    let document =
        |issuer: &str, jwks_uri: Value| json!({"issuer": issuer, "jwks_uri": jwks_uri}).to_string();
    let at = |jwks_uri: String| document(ISSUER, jwks_uri.into());
    let of = |issuer: &str| document(issuer, json!(good));
    let cases = [
        // The issuer must match exactly (OpenID Connect Discovery §4.3).
        (of("https://evil.example.com"), OTHER_ISSUER),
        (of("https://issuer.example.com/"), OTHER_ISSUER),
        (of("https://ISSUER.example.com"), OTHER_ISSUER),
        (of("https://issuer.example.com:443"), OTHER_ISSUER),
        (of("http://issuer.example.com"), OTHER_ISSUER),
        (of(" https://issuer.example.com"), OTHER_ISSUER),
        (of("https://issuer.example.com\0"), OTHER_ISSUER),
        (of("https://\u{456}ssuer.example.com"), OTHER_ISSUER),
        (of(""), OTHER_ISSUER),
        // The form of the document.
        (json!({"issuer": ISSUER}).to_string(), NO_DOCUMENT),
        (json!({"jwks_uri": good}).to_string(), NO_DOCUMENT),
        (json!({"issuer": [ISSUER], "jwks_uri": good}).to_string(), NO_DOCUMENT),
        (document(ISSUER, json!(null)), NO_DOCUMENT),
        (document(ISSUER, json!([good])), NO_DOCUMENT),
        (document(ISSUER, json!({"url": good})), NO_DOCUMENT),
        (json!([document(ISSUER, json!(good))]).to_string(), NO_DOCUMENT),
        (of(ISSUER).repeat(2), NO_DOCUMENT),
        (format!("{{\"jwks_uri\": \"{good}\", {}", &of(ISSUER)[1..]), NO_DOCUMENT),
        (format!("{{\"issuer\": \"https://evil.example.com\", {}", &of(ISSUER)[1..]), NO_DOCUMENT),
        (of(ISSUER)[..40].to_owned(), NO_DOCUMENT),
        ("<html>".to_owned(), NO_DOCUMENT),
        (String::new(), NO_DOCUMENT),
        (set_of(&[&key("inline")]), NO_DOCUMENT),
        // The key URL.
        (at("/keys".to_owned()), NO_URL),
        (at("keys".to_owned()), NO_URL),
        (at(format!("//127.0.0.1:{port}/keys")), NO_URL),
        (at(String::new()), NO_URL),
        (at("file:///etc/passwd".to_owned()), NO_URL),
        (at("data:application/json,{\"keys\":[]}".to_owned()), NO_URL),
        (at("javascript:keys".to_owned()), NO_URL),
        (at(format!("ftp://127.0.0.1:{port}/keys")), NO_URL),
        (at(format!("http://user:password@127.0.0.1:{port}/keys")), NO_URL),
        (at(format!("http://user@127.0.0.1:{port}/keys")), NO_URL),
        (at("http://127.0.0.1:99999/keys".to_owned()), NO_URL),
        (at(format!("http://localhost:{port}/keys")), OTHER_HOST),
        (at(format!("http://127.0.0.2:{port}/keys")), OTHER_HOST),
        (at(format!("http://[::1]:{port}/keys")), OTHER_HOST),
        (at(format!("http://[::ffff:127.0.0.1]:{port}/keys")), OTHER_HOST),
        (at("http://169.254.169.254/latest/meta-data/".to_owned()), OTHER_HOST),
        (at("https://keys.example.com/keys".to_owned()), OTHER_HOST),
    ];
    let known = key("known");
    for (document, expected) in cases {
        server.on(publishing(Answer::status(200).body(document.clone()), Answer::keys(&[&known])));
        let service = discovering(&server).await;
        let answer = service.bearer(&token(&known)).await;
        assert_eq!(answer.faults("keys_unavailable", &[]), Vec::<String>::new(), "{document}");
        let error = status(&service, "demo").await["last_error"].to_string();
        assert!(error.contains(expected) && error.len() < 200, "{document}: {error}");
        assert!(service.admin("/readyz").await.contains("no keys yet"));
    }
    assert_eq!(server.requests_for("/keys"), 0);
}

#[tokio::test]
async fn a_document_may_have_other_members_and_another_port_or_notation_of_its_host() {
    let server = KeyServer::start().await;
    let elsewhere = KeyServer::start().await;
    let known = key("known");
    elsewhere.respond_with(Answer::keys(&[&known]));
    let port = server.address().port();
    for jwks_uri in [
        server.http("/keys"),
        elsewhere.http("/keys"),
        // Other notations of the same address, which parse as the same.
        format!("HTTP://127.0.0.1:{port}/keys"),
        format!("http://127.1:{port}/keys"),
        format!("http://2130706433:{port}/keys"),
        format!("http://0x7f.0.0.1:{port}/keys"),
        format!("http://127.0.0.1:{port}/a/../keys#fragment"),
    ] {
        let document = json!({
            "issuer": ISSUER, "jwks_uri": jwks_uri, "jwks": {"keys": []}, "claims_supported": ["sub", {}],
            "registration_endpoint": "http://169.254.169.254/", "x": "x".repeat(1 << 16),
        });
        server.on(publishing(Answer::status(200).body(document.to_string()), Answer::keys(&[&known])));
        let service = discovering(&server).await;
        let answer = service.bearer(&token(&known)).await;
        assert_eq!(answer.faults("ok", &[]), Vec::<String>::new(), "{jwks_uri}");
    }
}

#[tokio::test]
async fn a_document_over_https_may_not_name_an_http_key_url() {
    let (folder, authority) = (folder(), Authority::new());
    let more =
        format!("{IMMEDIATE_REFRESH}, http: {{ca_file: '{}'}}", authority.write(folder.path()).display());
    let (secure, plain) =
        (KeyServer::start_with(authority.issue(&["localhost"]).layer()).await, KeyServer::start().await);
    let known = key("known");
    let by_http = format!("http://localhost:{}/keys", plain.address().port());
    plain.respond_with(Answer::keys(&[&known]));
    secure.on(publishing(Answer::document(ISSUER, by_http), Answer::keys(&[&known])));
    let keys = format!("discovery_uri: '{}'", secure.https(DOCUMENT));
    let config = configured(&[provider("demo", ISSUER, &keys, &more)]);
    let service = Running::start_without_keys(config, fixed_clock()).await;
    let answer = service.bearer(&token(&known)).await;
    assert_eq!(answer.faults("keys_unavailable", &[]), Vec::<String>::new());
    assert_eq!(plain.connections(), 0);

    secure.on(publishing(Answer::document(ISSUER, secure.https("/keys")), Answer::keys(&[&known])));
    eventually("the keys are fetched by https", async || service.bearer(&token(&known)).await.is_allowed())
        .await;
}

#[tokio::test]
async fn a_missing_document_is_an_error_like_a_wrong_one() {
    let server = KeyServer::start().await;
    let known = key("known");
    let good = Answer::document(ISSUER, server.http("/keys"));
    let long = json!({"issuer": ISSUER, "jwks_uri": server.http("/keys"), "x": "x".repeat(2 << 20)});
    for (document, expected) in [
        (Answer::status(404), "404"),
        (Answer::status(304).without_length(), "304"),
        (Answer::redirect("http://localhost/document"), "302"),
        (Answer::status(200).body(long.to_string()), "longer than"),
        (Answer::status(200).without_length().then(Step::Repeat(vec![b' '; 1 << 16])), "longer than"),
        (Answer::bytes("HTTP/1.1 200 OK\r\n"), ""),
    ] {
        server.on(publishing(document, Answer::keys(&[&known])));
        let service = discovering(&server).await;
        let answer = service.bearer(&token(&known)).await;
        assert_eq!(answer.faults("keys_unavailable", &[]), Vec::<String>::new(), "{expected}");
        let error = status(&service, "demo").await["last_error"].to_string();
        assert!(error.contains(expected) && error != "null", "{error}");
        server.on(publishing(good.clone(), Answer::keys(&[&known])));
        eventually("the key is known", async || service.bearer(&token(&known)).await.is_allowed()).await;
    }
    // A redirect within the host is followed for documents too.
    let moved = Answer::keys(&[&known]);
    server.on(move |request| match request.target.as_str() {
        DOCUMENT => Answer::redirect("/document"),
        "/keys" => moved.clone(),
        _ => good.clone(),
    });
    let service = discovering(&server).await;
    assert_eq!(service.bearer(&token(&known)).await.faults("ok", &[]), Vec::<String>::new());
}

#[tokio::test]
async fn moved_keys_are_found_by_the_current_document() {
    const REFRESH: &str = "refresh: {interval: 200ms, min_spacing: 10ms, wait: 10s, timeout: 10s}";
    let server = KeyServer::start().await;
    let (old, new, newest) = (key("old"), key("new"), key("newest"));
    let publish = |server: &KeyServer, path: &'static str, keys: &[&_], former: Answer| {
        let (document, keys) = (Answer::document(ISSUER, server.http(path)), Answer::keys(keys));
        server.on(move |request| match request.target.as_str() {
            DOCUMENT => document.clone(),
            target if target == path => keys.clone(),
            _ => former.clone(),
        });
    };
    publish(&server, "/a", &[&old], Answer::status(404));
    let keys = format!("discovery_uri: '{}'", server.http(DOCUMENT));
    let service =
        Running::start(configured(&[provider("demo", ISSUER, &keys, REFRESH)]), fixed_clock()).await;
    let env = TestEnv { server, key: old, service };
    // The former URL still serves the old set.
    publish(&env.server, "/b", &[&new], Answer::keys(&[&env.key]));
    eventually("the new URL is requested", async || env.server.requests_for("/b") > 0).await;
    env.wait_until_known(&new).await;
    env.expect_reason(&env.key, "key_unknown").await;
    // The former URL answers 410.
    publish(&env.server, "/c", &[&newest], Answer::status(410));
    env.wait_until_known(&newest).await;
}

#[tokio::test]
async fn a_forced_fetch_bypasses_a_cache_with_an_old_document() {
    let server = KeyServer::start().await;
    let (old, new) = (key("old"), key("new"));
    let (at_a, at_b) = (server.http("/a"), server.http("/b"));
    let (before, after) = (Answer::keys(&[&old]), Answer::keys(&[&new]));
    let moved = Arc::new(AtomicBool::new(false));
    let has_moved = Arc::clone(&moved);
    server.on(move |request| {
        let no_cache = request.header("cache-control") == Some("no-cache");
        match (request.target.as_str(), has_moved.load(Ordering::SeqCst)) {
            (DOCUMENT, true) if no_cache => Answer::document(ISSUER, at_b.as_str()),
            (DOCUMENT, _) => Answer::document(ISSUER, at_a.as_str()).header("age", "1000"),
            ("/a", false) => before.clone(),
            ("/b", true) => after.clone(),
            _ => Answer::status(404),
        }
    });
    let keys = format!("discovery_uri: '{}'", server.http(DOCUMENT));
    let service =
        Running::start(configured(&[provider("demo", ISSUER, &keys, IMMEDIATE_REFRESH)]), fixed_clock())
            .await;
    moved.store(true, Ordering::SeqCst);
    let env = TestEnv { server, key: old, service };
    env.wait_until_known(&new).await;
}

#[tokio::test]
async fn an_entity_tag_of_one_url_is_not_sent_to_another() {
    let server = KeyServer::start().await;
    let (old, new) = (key("old"), key("new"));
    let publish = |server: &KeyServer, path: &'static str, keys: &[&_]| {
        let document = Answer::document(ISSUER, server.http(path));
        let full = Answer::keys(keys).header("etag", "\"1\"");
        server.on(move |request| match request.target.as_str() {
            DOCUMENT => document.clone(),
            target if target != path => Answer::status(404),
            _ if request.header("if-none-match") == Some("\"1\"") => Answer::status(304).without_length(),
            _ => full.clone(),
        });
    };
    publish(&server, "/a", &[&old]);
    let keys = format!("discovery_uri: '{}'", server.http(DOCUMENT));
    let service =
        Running::start(configured(&[provider("demo", ISSUER, &keys, IMMEDIATE_REFRESH)]), fixed_clock())
            .await;
    let env = TestEnv { server, key: old, service };
    publish(&env.server, "/b", &[&new]);
    env.wait_until_known(&new).await;
    env.expect_reason(&env.key, "key_unknown").await;
    publish(&env.server, "/a", &[&env.key]);
    eventually("the first URL is requested again", async || {
        env.service.bearer(&token(&env.key)).await.is_allowed()
    })
    .await;
}

#[tokio::test]
async fn an_issuer_on_ipv6_of_this_machine_is_reached_by_http() {
    let keys = "jwks_uri: 'http://[::1]:1/keys'";
    assert_eq!(configuration_faults(keys, IMMEDIATE_REFRESH), "");
    let Some(server) = KeyServer::start_at(std::net::Ipv6Addr::LOCALHOST.into(), Layer::Plain).await else {
        eprintln!("skipped: no IPv6");
        return;
    };
    // Discovery at the issuer itself, the usual configuration.
    let issuer = format!("http://{}", server.address());
    let known = key("known");
    let document = Answer::document(&issuer, server.http("/keys"));
    server.on(publishing(document, Answer::keys(&[&known])));
    let config = configured(&[provider("demo", &issuer, "token_types: [JWT]", IMMEDIATE_REFRESH)]);
    let service = Running::start(config, fixed_clock()).await;
    let answer = service.bearer(&token_of(&issuer, &known, NOW + 60)).await;
    assert_eq!(answer.faults("ok", &[]), Vec::<String>::new());
    assert_eq!(server.requests_for(DOCUMENT), 1);
    assert_eq!(metric_value(&service, r#"portcullis_jwks_keys{provider="demo"}"#).await, 1);
}
