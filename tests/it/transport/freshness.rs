//! G12, G18 and G24: the freshness of a response applies within limits, and a 304 confirms only the response with the same
//! validator.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use portcullis::commands::issuer::SigningKey;
use portcullis::validation::UnixTime;
use serde_json::Value;

use super::answer::{Answer, set_of};
use super::env::{
    FREQUENT_REFRESH, IMMEDIATE_REFRESH, ISSUER, TestEnv, configured, eventually, fetches, key, provider,
    status, token,
};
use super::key_server::{KeyServer, Request};
use crate::support::{NOW, Running, fixed_clock};

const NOON: &str = "Sun, 06 Nov 1994 12:00:00 GMT";
const TEN_MINUTES_LATER: &str = "Sun, 06 Nov 1994 12:10:00 GMT";

/// The seconds until the next scheduled fetch, at most.
fn due_in(status: &Value) -> i64 {
    let at = status["next_refresh_at"].as_str().expect("a time");
    (0..7200).find(|seconds| at == rfc3339(NOW + seconds)).unwrap_or_else(|| panic!("{at}"))
}

fn rfc3339(seconds: i64) -> String {
    portcullis::clock::rfc3339(UnixTime::from_secs(seconds))
}

/// When the next scheduled fetch is due after a response with these headers, with an interval of one hour and a spacing of
/// one minute: after the spacing, the requested ten minutes, or the interval.
async fn due_after(headers: &[(&str, &str)]) -> &'static str {
    const REFRESH: &str = "refresh: {interval: 1h, min_spacing: 1m, timeout: 10s}";
    let server = KeyServer::start().await;
    let known = key("known");
    server.respond_with(Answer::keys(&[&known]).headers(headers));
    let keys = format!("jwks_uri: '{}'", server.http("/keys"));
    let service =
        Running::start(configured(&[provider("demo", ISSUER, &keys, REFRESH)]), fixed_clock()).await;
    match due_in(&status(&service, "demo").await) {
        // At least the spacing, less the duration of this test.
        30..=60 => "spacing",
        61..=600 => "header",
        601..=3600 => "interval",
        seconds => panic!("{seconds}"),
    }
}

#[tokio::test]
async fn freshness_shortens_the_interval_and_never_extends_it() {
    let long = "x".repeat(1 << 14);
    let directives = format!("{}max-age=600", "x-directive=1, ".repeat(1000));
    let cases: &[(&[(&str, &str)], &str)] = &[
        (&[], "interval"),
        (&[("cache-control", "max-age=600")], "header"),
        (&[("cache-control", "public, MAX-AGE=600, immutable")], "header"),
        (&[("cache-control", "public"), ("cache-control", "max-age=600")], "header"),
        (&[("cache-control", &directives)], "header"),
        (&[("cache-control", "max-age=0")], "spacing"),
        (&[("cache-control", "max-age=0, must-revalidate")], "spacing"),
        (&[("cache-control", "max-age=1")], "spacing"),
        (&[("cache-control", "max-age=315360000")], "interval"),
        (&[("cache-control", "max-age=4294967295")], "interval"),
        (&[("cache-control", "max-age=18446744073709551615")], "interval"),
        (&[("cache-control", "max-age=18446744073709551616")], "interval"),
        (&[("cache-control", "max-age=-1")], "interval"),
        (&[("cache-control", "max-age=1.5")], "interval"),
        (&[("cache-control", "max-age=")], "interval"),
        (&[("cache-control", "max-age")], "interval"),
        (&[("cache-control", "max-age=0x10")], "interval"),
        (&[("cache-control", "no-store")], "interval"),
        (
            &[
                ("cache-control", "no-cache, no-store, max-age=0, must-revalidate"),
                ("pragma", "no-cache"),
                ("expires", "0"),
            ],
            "interval",
        ),
        (&[("cache-control", "no-cache, max-age=600")], "interval"),
        (&[("cache-control", ",,,")], "interval"),
        (&[("cache-control", &long)], "interval"),
        (&[("pragma", "no-cache")], "interval"),
        (&[("cache-control", "s-maxage=600")], "interval"),
        (&[("cache-control", "max-age=1200"), ("age", "600")], "header"),
        (&[("cache-control", "max-age=600"), ("age", "600")], "spacing"),
        (&[("cache-control", "max-age=600"), ("age", "4294967295")], "spacing"),
        (&[("cache-control", "max-age=600"), ("age", "-600")], "header"),
        (&[("cache-control", "max-age=600"), ("age", "young")], "header"),
        (&[("date", NOON), ("expires", TEN_MINUTES_LATER)], "header"),
        (&[("date", TEN_MINUTES_LATER), ("expires", NOON)], "spacing"),
        (&[("date", NOON), ("expires", "Thu, 06 Nov 2994 12:00:00 GMT")], "interval"),
        (&[("date", NOON), ("expires", "-1")], "interval"),
        (&[("expires", TEN_MINUTES_LATER)], "interval"),
        (&[("date", "yesterday"), ("expires", TEN_MINUTES_LATER)], "interval"),
        (&[("date", NOON), ("expires", TEN_MINUTES_LATER), ("cache-control", "max-age=0")], "spacing"),
        (&[("expires", TEN_MINUTES_LATER), ("date", NOON), ("age", "600")], "spacing"),
    ];
    for (headers, expected) in cases {
        assert_eq!(due_after(headers).await, *expected, "{headers:.100?}");
    }
}

/// How long no fetch is scheduled after a healthy issuer answers a forced fetch like this: not at all, the requested ten
/// minutes, or the interval of one hour.
async fn backoff_after(status_code: u16, headers: &[(&str, &str)]) -> &'static str {
    let env = TestEnv::start(IMMEDIATE_REFRESH).await;
    let new = key("new");
    env.server.respond_with(Answer::status(status_code).headers(headers));
    env.expect_reason(&new, "keys_unavailable").await;
    let backoff = match due_in(&env.status().await) {
        ..=60 => "none",
        61..=600 => "header",
        _ => "interval",
    };
    // A token may still force a fetch.
    env.server.respond_with(Answer::keys(&[&new]));
    env.wait_until_known(&new).await;
    backoff
}

#[tokio::test]
async fn retry_after_delays_scheduled_fetches_up_to_the_interval() {
    for (status_code, headers, backoff) in [
        (429, &[("retry-after", "600")][..], "header"),
        (503, &[("retry-after", "600")], "header"),
        (503, &[("retry-after", TEN_MINUTES_LATER), ("date", NOON)], "header"),
        (503, &[("retry-after", "86400")], "interval"),
        (503, &[("retry-after", "4294967296")], "interval"),
        (503, &[("retry-after", "Thu, 06 Nov 2994 12:00:00 GMT"), ("date", NOON)], "interval"),
        (503, &[], "none"),
        (503, &[("retry-after", "0")], "none"),
        (503, &[("retry-after", "-600")], "none"),
        (503, &[("retry-after", "soon")], "none"),
        (503, &[("retry-after", NOON), ("date", TEN_MINUTES_LATER)], "none"),
    ] {
        assert_eq!(backoff_after(status_code, headers).await, backoff, "{status_code} {headers:?}");
    }
}

#[tokio::test]
async fn retry_after_applies_to_429_and_503_only() {
    for status_code in [302, 304, 400, 403, 404, 500] {
        assert_eq!(backoff_after(status_code, &[("retry-after", "600")]).await, "none", "{status_code}");
    }
}

#[tokio::test]
async fn a_forced_fetch_bypasses_caches_and_a_scheduled_one_uses_them() {
    let env = TestEnv::start(IMMEDIATE_REFRESH).await;
    let new = key("new");
    // A cache that answers from its store unless the request has no-cache.
    let (cached, fresh) = (Answer::keys(&[&env.key]).header("age", "100"), Answer::keys(&[&new]));
    env.server.on(move |request| match request.header("cache-control") {
        Some("no-cache") => fresh.clone(),
        _ => cached.clone(),
    });
    env.expect_reason(&new, "ok").await;

    let busy = TestEnv::start(FREQUENT_REFRESH).await;
    for number in 1..=3 {
        let scheduled = busy.server.request(number).await;
        assert_eq!(scheduled.header("cache-control"), None, "scheduled fetches use caches");
    }
}

/// A service with frequent fetches from a server that answers like this.
async fn refreshing_from(
    answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
) -> (KeyServer, Running) {
    let server = KeyServer::start().await;
    server.on(answer);
    let keys = format!("jwks_uri: '{}'", server.http("/keys"));
    let config = configured(&[provider("demo", ISSUER, &keys, FREQUENT_REFRESH)]);
    let service = Running::start_without_keys(config, fixed_clock()).await;
    (server, service)
}

fn tag_of(request: &Request) -> Option<&str> {
    request.header("if-none-match")
}

/// The validators of the scheduled request after a response with these headers.
async fn validators_after(headers: &[(&str, &str)]) -> (Option<String>, Option<String>) {
    let answer = Answer::keys(&[&key("a")]).headers(headers);
    let (server, _service) = refreshing_from(move |_| answer.clone()).await;
    let request = server.request(2).await;
    let value = |name: &str| request.header(name).map(str::to_owned);
    (value("if-none-match"), value("if-modified-since"))
}

#[tokio::test]
async fn a_forced_fetch_sends_no_validator() {
    // A server whose entity tag stays the same although the content changes.
    let (old, new) = (key("old"), key("new"));
    let env = TestEnv::start(IMMEDIATE_REFRESH).await;
    let publish = |key: &SigningKey| {
        let full = Answer::keys(&[key]).headers(&[("etag", "\"same\""), ("last-modified", NOON)]);
        env.server.on(move |request| match tag_of(request).or(request.header("if-modified-since")) {
            Some(_) => Answer::status(304).header("etag", "\"same\"").without_length(),
            None => full.clone(),
        });
    };
    publish(&old);
    env.expect_reason(&old, "ok").await;
    publish(&new);
    env.expect_reason(&new, "ok").await;
    env.expect_reason(&old, "key_unknown").await;
}

#[tokio::test]
async fn one_scheduled_fetch_in_ten_sends_no_validator_and_a_wrong_one_is_never_sent_again() {
    let (old, new) = (key("old"), key("new"));
    let full = |key: &SigningKey| Answer::keys(&[key]).header("etag", "\"same\"");
    let (before, after) = (full(&old), full(&new));
    let changed = Arc::new(AtomicBool::new(false));
    let published = Arc::clone(&changed);
    let (server, service) = refreshing_from(move |request| match tag_of(request) {
        Some(_) => Answer::status(304).header("etag", "\"same\"").without_length(),
        None if published.load(Ordering::SeqCst) => after.clone(),
        None => before.clone(),
    })
    .await;
    server.request(2).await;
    changed.store(true, Ordering::SeqCst);
    eventually("a scheduled fetch finds the new set", async || {
        service.bearer(&token(&old)).await.reason() == "key_unknown"
    })
    .await;
    let requests = server.requests();
    let scheduled = requests.iter().filter(|request| request.header("cache-control").is_none());
    let unconditional = scheduled.skip(1).position(|request| tag_of(request).is_none());
    assert!(unconditional.is_none_or(|position| position <= 9), "{unconditional:?}");
    let count = server.requests().len();
    server.request(count + 25).await;
    let requests = server.requests();
    assert!(
        requests.iter().skip(count + 2).all(|request| tag_of(request).is_none()),
        "a wrong validator is sent"
    );
}

#[tokio::test]
async fn a_304_after_a_new_redirect_is_ignored_and_the_full_set_is_requested() {
    let (old, new) = (key("old"), key("new"));
    let (here, there) = (Answer::keys(&[&old]).header("etag", "\"1\""), Answer::keys(&[&new]));
    let moved = Arc::new(AtomicBool::new(false));
    let redirecting = Arc::clone(&moved);
    let (server, service) = refreshing_from(move |request| match request.target.as_str() {
        "/keys" if redirecting.load(Ordering::SeqCst) => Answer::redirect("/elsewhere"),
        "/keys" => here.clone(),
        _ if tag_of(request) == Some("\"1\"") => Answer::status(304).header("etag", "\"1\"").without_length(),
        _ => there.clone().header("etag", "\"1\""),
    })
    .await;
    server.request(2).await;
    moved.store(true, Ordering::SeqCst);
    // A token of the new key would force a fetch, which sends no tag.
    eventually("a scheduled fetch finds the new set", async || {
        service.bearer(&token(&old)).await.reason() == "key_unknown"
    })
    .await;
    assert!(service.bearer(&token(&new)).await.is_allowed());
    let requests = server.requests();
    let conditional =
        requests.iter().filter(|request| request.target != "/keys" && tag_of(request).is_some());
    // One fetch in ten sends no tag anyway.
    assert!(conditional.count() <= 1, "the full set is requested immediately");
}

#[tokio::test]
async fn a_validator_is_sent_if_it_is_valid_and_short() {
    let (longest, long) = (format!("\"{}\"", "x".repeat(254)), format!("\"{}\"", "x".repeat(255)));
    let huge = format!("\"{}\"", "x".repeat(1 << 17));
    let dated = [("last-modified", NOON), ("date", TEN_MINUTES_LATER)];
    let with_etag = |tag| [("etag", tag), dated[0], dated[1]];
    for (headers, tag, date) in [
        (&[][..], None, None),
        (&[("etag", "\"1\"")], Some("\"1\""), None),
        (&[("etag", "W/\"1\"")], Some("W/\"1\""), None),
        (&[("etag", &longest)], Some(&*longest), None),
        (&[("etag", &long)], None, None),
        (&[("etag", &huge)], None, None),
        (&[("etag", "1")], None, None),
        (&[("etag", "*")], None, None),
        (&[("etag", "\"1\", \"2\"")], None, None),
        (&with_etag("\"1\""), Some("\"1\""), None),
        (&dated, None, Some(NOON)),
        (&[("last-modified", NOON), ("date", NOON)], None, None),
        (&[("last-modified", TEN_MINUTES_LATER), ("date", NOON)], None, None),
        (&[("last-modified", NOON)], None, None),
        (&[("last-modified", "yesterday"), ("date", NOON)], None, None),
    ] {
        let expected = (tag.map(str::to_owned), date.map(str::to_owned));
        assert_eq!(validators_after(headers).await, expected, "{headers:.100?}");
    }
}

#[tokio::test]
async fn an_oversized_entity_tag_is_an_error_and_is_never_sent() {
    let env = TestEnv::start(IMMEDIATE_REFRESH).await;
    let new = key("new");
    env.server.respond_with(Answer::keys(&[&new]).header("etag", format!("\"{}\"", "x".repeat(1 << 20))));
    env.expect_reason(&new, "keys_unavailable").await;
    env.server.respond_with(Answer::keys(&[&new]));
    env.wait_until_known(&new).await;
    assert!(env.server.requests().iter().all(|request| request.header("if-none-match").is_none()));
}

#[tokio::test]
async fn a_304_confirms_the_current_set_repeatedly_until_it_changes() {
    let server = KeyServer::start().await;
    let (old, new) = (key("old"), key("new"));
    let tagged = |keys: &[&_], tag: &str| {
        let (tag, full) = (tag.to_owned(), Answer::keys(keys).header("etag", tag));
        move |request: &super::key_server::Request| {
            let same = request.header("if-none-match") == Some(&tag);
            if same { Answer::status(304).header("etag", &tag).without_length() } else { full.clone() }
        }
    };
    server.on(tagged(&[&old], "\"1\""));
    let keys = format!("jwks_uri: '{}'", server.http("/keys"));
    let service =
        Running::start(configured(&[provider("demo", ISSUER, &keys, FREQUENT_REFRESH)]), fixed_clock()).await;
    server.request(50).await;
    eventually("fifty fetches are counted", async || fetches(&service, "scheduled", "unchanged").await >= 49)
        .await;
    assert_eq!(fetches(&service, "startup", "renewed").await, 1);
    assert_eq!(fetches(&service, "scheduled", "failed").await, 0);
    let env = TestEnv { server, key: old, service };
    assert_eq!(env.status().await["generation"], 1);
    env.expect_reason(&env.key, "ok").await;
    env.expect_reason(&new, "key_unknown").await;

    env.server.on(tagged(&[&new], "\"2\""));
    eventually("the other set is current", async || env.status().await["generation"] == 2).await;
    env.expect_reason(&new, "ok").await;
    env.expect_reason(&env.key, "key_unknown").await;
}

#[tokio::test]
async fn a_304_may_end_with_the_connection_or_have_a_length_but_adds_no_keys() {
    for not_modified in [
        Answer::status(304).without_length(),
        Answer::status(304).header("content-length", "1000").without_length(),
        Answer::status(304)
            .header("cache-control", "max-age=60")
            .header("etag", "W/\"other\"")
            .without_length(),
        Answer::status(304).body(set_of(&[&key("smuggled")])),
    ] {
        let (a, smuggled) = (key("a"), key("smuggled"));
        let full = Answer::keys(&[&a]).header("etag", "\"1\"");
        let (server, service) =
            refreshing_from(
                move |request| if tag_of(request).is_some() { not_modified.clone() } else { full.clone() },
            )
            .await;
        server.request(6).await;
        assert_eq!(service.bearer(&token(&smuggled)).await.reason(), "key_unknown");
        assert_eq!(service.bearer(&token(&a)).await.faults("ok", &[]), Vec::<String>::new());
        assert_eq!(fetches(&service, "scheduled", "failed").await, 0);
        assert!(fetches(&service, "scheduled", "unchanged").await > 0);
    }
}

#[tokio::test]
async fn a_304_with_nothing_to_compare_is_an_error() {
    let env = TestEnv::start(IMMEDIATE_REFRESH).await;
    let new = key("new");
    env.server.respond_with(Answer::status(304).without_length());
    env.expect_reason(&new, "keys_unavailable").await;
    assert!(env.last_error().await.contains("status is 304"));
    env.expect_reason(&env.key, "ok").await;

    // Also at the start, without a set that it could confirm.
    let server = KeyServer::start().await;
    server.respond_with(Answer::status(304).header("etag", "\"1\"").without_length());
    let keys = format!("jwks_uri: '{}'", server.http("/keys"));
    let config = configured(&[provider("demo", ISSUER, &keys, IMMEDIATE_REFRESH)]);
    let service = Running::start_without_keys(config, fixed_clock()).await;
    server.request(3).await;
    let readiness = service.admin("/readyz").await;
    assert_eq!(readiness, "no keys yet: demo: the answer's status is 304, not 200\n");
    assert!(server.requests().iter().all(|request| request.header("if-none-match").is_none()));
}

#[tokio::test]
async fn the_entity_tag_of_the_last_accepted_response_is_sent() {
    // The tag of a rejected response is never sent: a 304 to it would confirm the old set forever.
    for bad in [
        Answer::status(500).header("etag", "\"bad\""),
        Answer::status(200).header("etag", "\"bad\"").body("<html>"),
        Answer::status(200).header("etag", "\"bad\"").body(r#"{"keys":[]}"#),
        Answer::bytes("HTTP/1.1 200 OK\r\netag: \"bad\"\r\ncontent-length: 100\r\n\r\n{"),
        Answer::redirect("http://localhost/").header("etag", "\"bad\""),
    ] {
        let good = Answer::keys(&[&key("a")]).header("etag", "\"a\"");
        let turn = AtomicUsize::new(0);
        let (server, _service) = refreshing_from(move |_| match turn.fetch_add(1, Ordering::SeqCst) {
            0 => good.clone(),
            _ => bad.clone(),
        })
        .await;
        server.request(5).await;
        let requests = server.requests();
        // Errors that a cache may cause are retried with no-cache and without a tag.
        let due = requests.iter().skip(1).filter(|request| request.header("cache-control").is_none());
        let tags: Vec<_> = due.map(tag_of).collect();
        assert!(!tags.is_empty() && tags.iter().all(|tag| *tag == Some("\"a\"")), "{tags:?}");
    }
}

#[tokio::test]
async fn an_entity_tag_of_one_url_is_not_sent_to_another_behind_the_same_redirect() {
    let env = TestEnv::start(IMMEDIATE_REFRESH).await;
    let (b, c) = (key("b"), key("c"));
    // Two files with the same entity tag; the key URL redirects to one and then to the other.
    let publish = |location: &'static str| {
        let (at_b, at_c) = (Answer::keys(&[&b]), Answer::keys(&[&c]));
        env.server.on(move |request| match request.target.as_str() {
            "/keys" => Answer::redirect(location),
            _ if request.header("if-none-match") == Some("\"1\"") => Answer::status(304).without_length(),
            "/b" => at_b.clone().header("etag", "\"1\""),
            _ => at_c.clone().header("etag", "\"1\""),
        });
    };
    publish("/b");
    env.expect_reason(&b, "ok").await;
    publish("/c");
    env.expect_reason(&c, "ok").await;
}

#[tokio::test]
async fn the_wall_clock_does_not_affect_scheduled_fetches() {
    // The wall clock is fixed, and scheduled fetches still run.
    let env = TestEnv::start(FREQUENT_REFRESH).await;
    env.server.request(10).await;
    assert_eq!(env.status().await["fetched_at"], rfc3339(NOW));
}

#[tokio::test]
async fn sets_fetched_at_the_same_time_are_refreshed_at_different_times() {
    let server = KeyServer::start().await;
    server.respond_with(Answer::keys(&[&key("a")]));
    let providers: Vec<String> = (0..50)
        .map(|i| {
            let keys = format!("jwks_uri: '{}'", server.http("/keys"));
            provider(&format!("p{i}"), &format!("https://issuer-{i}.example.com"), &keys, IMMEDIATE_REFRESH)
        })
        .collect();
    let service = Running::start(configured(&providers), fixed_clock()).await;
    let page: Value = serde_json::from_str(&service.admin("/keys").await).expect("JSON");
    let mut times: Vec<i64> = page["providers"].as_array().expect("a list").iter().map(due_in).collect();
    times.sort_unstable();
    times.dedup();
    assert!(times.len() > 20, "within the last six minutes of an hour: {times:?}");
}
