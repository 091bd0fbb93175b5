//! G12, G18 and G24: what an issuer or a cache says of an answer's future counts within bounds, and a 304
//! counts for the very answer that it is about.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use portcullis::commands::issuer::SigningKey;
use portcullis::validation::UnixTime;
use serde_json::Value;

use super::answer::{Answer, set_of};
use super::house::{
    BUSY, House, ISSUER, PROMPT, configured, eventually, fetches, key, provider, status, token,
};
use super::key_server::{KeyServer, Request};
use crate::support::{NOW, Running, fixed_clock};

const NOON: &str = "Sun, 06 Nov 1994 12:00:00 GMT";
const TEN_MINUTES_LATER: &str = "Sun, 06 Nov 1994 12:10:00 GMT";

/// In how many seconds the next scheduled fetch is due, at most.
fn due_in(status: &Value) -> i64 {
    let at = status["next_refresh_at"].as_str().expect("a time");
    (0..7200).find(|seconds| at == rfc3339(NOW + seconds)).unwrap_or_else(|| panic!("{at}"))
}

fn rfc3339(seconds: i64) -> String {
    portcullis::clock::rfc3339(UnixTime::from_secs(seconds))
}

/// When the next scheduled fetch is due after an answer with these headers, at an interval of an hour and
/// a spacing of a minute: that spacing, the ten minutes that were asked for, or that interval.
async fn due_after(headers: &[(&str, &str)]) -> &'static str {
    const REFRESH: &str = "refresh: {interval: 1h, min_spacing: 1m, timeout: 10s}";
    let server = KeyServer::start().await;
    let known = key("known");
    server.always(Answer::keys(&[&known]).headers(headers));
    let keys = format!("jwks_uri: '{}'", server.http("/keys"));
    let service =
        Running::start(configured(&[provider("demo", ISSUER, &keys, REFRESH)]), fixed_clock()).await;
    match due_in(&status(&service, "demo").await) {
        // Never at once: the spacing holds, less the time that this test takes.
        30..=60 => "spacing",
        61..=600 => "asked",
        601..=3600 => "interval",
        seconds => panic!("{seconds}"),
    }
}

#[tokio::test]
async fn freshness_narrows_the_interval_and_never_widens_it() {
    let long = "x".repeat(1 << 14);
    let directives = format!("{}max-age=600", "x-directive=1, ".repeat(1000));
    let cases: &[(&[(&str, &str)], &str)] = &[
        (&[], "interval"),
        (&[("cache-control", "max-age=600")], "asked"),
        (&[("cache-control", "public, MAX-AGE=600, immutable")], "asked"),
        (&[("cache-control", "public"), ("cache-control", "max-age=600")], "asked"),
        (&[("cache-control", &directives)], "asked"),
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
        (&[("cache-control", "max-age=1200"), ("age", "600")], "asked"),
        (&[("cache-control", "max-age=600"), ("age", "600")], "spacing"),
        (&[("cache-control", "max-age=600"), ("age", "4294967295")], "spacing"),
        (&[("cache-control", "max-age=600"), ("age", "-600")], "asked"),
        (&[("cache-control", "max-age=600"), ("age", "young")], "asked"),
        (&[("date", NOON), ("expires", TEN_MINUTES_LATER)], "asked"),
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

/// How long the clock leaves an issuer alone that was well and then answers a token's fetch like this: for
/// a moment, for the ten minutes that were asked for, or for the interval of an hour.
async fn peace_after(status_code: u16, headers: &[(&str, &str)]) -> &'static str {
    let house = House::start(PROMPT).await;
    let new = key("new");
    house.server.always(Answer::status(status_code).headers(headers));
    house.is(&new, "keys_unavailable").await;
    let peace = match due_in(&house.status().await) {
        ..=60 => "none",
        61..=600 => "asked",
        _ => "interval",
    };
    // A token that needs it is another matter.
    house.server.always(Answer::keys(&[&new]));
    house.comes_to_know(&new).await;
    peace
}

#[tokio::test]
async fn an_issuer_that_asks_for_peace_has_it_from_the_clock_within_the_interval() {
    for (status_code, headers, peace) in [
        (429, &[("retry-after", "600")][..], "asked"),
        (503, &[("retry-after", "600")], "asked"),
        (503, &[("retry-after", TEN_MINUTES_LATER), ("date", NOON)], "asked"),
        (503, &[("retry-after", "86400")], "interval"),
        (503, &[("retry-after", "4294967296")], "interval"),
        (503, &[("retry-after", "Thu, 06 Nov 2994 12:00:00 GMT"), ("date", NOON)], "interval"),
        (503, &[], "none"),
        (503, &[("retry-after", "0")], "none"),
        (503, &[("retry-after", "-600")], "none"),
        (503, &[("retry-after", "soon")], "none"),
        (503, &[("retry-after", NOON), ("date", TEN_MINUTES_LATER)], "none"),
    ] {
        assert_eq!(peace_after(status_code, headers).await, peace, "{status_code} {headers:?}");
    }
}

#[tokio::test]
async fn only_who_is_busy_or_away_can_ask_for_peace() {
    for status_code in [302, 304, 400, 403, 404, 500] {
        assert_eq!(peace_after(status_code, &[("retry-after", "600")]).await, "none", "{status_code}");
    }
}

#[tokio::test]
async fn what_a_cache_may_answer_is_asked_of_the_issuer_when_a_token_forces_it() {
    let house = House::start(PROMPT).await;
    let new = key("new");
    // A cache in between that answers with what it has, unless told not to.
    let (cached, fresh) = (Answer::keys(&[&house.key]).header("age", "100"), Answer::keys(&[&new]));
    house.server.on(move |request| match request.header("cache-control") {
        Some("no-cache") => fresh.clone(),
        _ => cached.clone(),
    });
    house.is(&new, "ok").await;

    let busy = House::start(BUSY).await;
    for number in 1..=3 {
        let scheduled = busy.server.request(number).await;
        assert_eq!(scheduled.header("cache-control"), None, "caches are there for the rest");
    }
}

/// A service that is fetching all the time from a server that answers like this.
async fn busy_with(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> (KeyServer, Running) {
    let server = KeyServer::start().await;
    server.on(answer);
    let keys = format!("jwks_uri: '{}'", server.http("/keys"));
    let config = configured(&[provider("demo", ISSUER, &keys, BUSY)]);
    let service = Running::start_without_keys(config, fixed_clock()).await;
    (server, service)
}

fn tag_of(request: &Request) -> Option<&str> {
    request.header("if-none-match")
}

/// The validators of the scheduled request that follows an answer with these headers.
async fn asked_after(headers: &[(&str, &str)]) -> (Option<String>, Option<String>) {
    let answer = Answer::keys(&[&key("a")]).headers(headers);
    let (server, _service) = busy_with(move |_| answer.clone()).await;
    let asked = server.request(2).await;
    let value = |name: &str| asked.header(name).map(str::to_owned);
    (value("if-none-match"), value("if-modified-since"))
}

#[tokio::test]
async fn what_a_token_forces_believes_no_validator_and_no_304() {
    // A server whose file keeps its length and its time, and with them its tag.
    let (old, new) = (key("old"), key("new"));
    let house = House::start(PROMPT).await;
    let publish = |key: &SigningKey| {
        let whole = Answer::keys(&[key]).headers(&[("etag", "\"same\""), ("last-modified", NOON)]);
        house.server.on(move |request| match tag_of(request).or(request.header("if-modified-since")) {
            Some(_) => Answer::status(304).header("etag", "\"same\"").without_length(),
            None => whole.clone(),
        });
    };
    publish(&old);
    house.is(&old, "ok").await;
    publish(&new);
    house.is(&new, "ok").await;
    house.is(&old, "key_unknown").await;
}

#[tokio::test]
async fn one_scheduled_fetch_in_ten_believes_no_validator_and_one_that_lied_is_never_sent_again() {
    let (old, new) = (key("old"), key("new"));
    let whole = |key: &SigningKey| Answer::keys(&[key]).header("etag", "\"same\"");
    let (before, after) = (whole(&old), whole(&new));
    let moved_on = Arc::new(AtomicBool::new(false));
    let published = Arc::clone(&moved_on);
    let (server, service) = busy_with(move |request| match tag_of(request) {
        Some(_) => Answer::status(304).header("etag", "\"same\"").without_length(),
        None if published.load(Ordering::SeqCst) => after.clone(),
        None => before.clone(),
    })
    .await;
    server.request(2).await;
    moved_on.store(true, Ordering::SeqCst);
    eventually("it is seen by the clock alone", async || {
        service.bearer(&token(&old)).await.reason() == "key_unknown"
    })
    .await;
    let requests = server.requests();
    let scheduled = requests.iter().filter(|request| request.header("cache-control").is_none());
    let unasked = scheduled.skip(1).position(|request| tag_of(request).is_none());
    assert!(unasked.is_none_or(|position| position <= 9), "{unasked:?}");
    let seen = server.requests().len();
    server.request(seen + 25).await;
    let requests = server.requests();
    assert!(requests.iter().skip(seen + 2).all(|request| tag_of(request).is_none()), "it lied");
}

#[tokio::test]
async fn a_304_behind_a_redirect_is_of_another_place_and_the_set_is_asked_for_as_a_whole() {
    let (old, new) = (key("old"), key("new"));
    let (here, there) = (Answer::keys(&[&old]).header("etag", "\"1\""), Answer::keys(&[&new]));
    let moved = Arc::new(AtomicBool::new(false));
    let redirecting = Arc::clone(&moved);
    let (server, service) = busy_with(move |request| match request.target.as_str() {
        "/keys" if redirecting.load(Ordering::SeqCst) => Answer::to("/elsewhere"),
        "/keys" => here.clone(),
        _ if tag_of(request) == Some("\"1\"") => Answer::status(304).header("etag", "\"1\"").without_length(),
        _ => there.clone().header("etag", "\"1\""),
    })
    .await;
    server.request(2).await;
    moved.store(true, Ordering::SeqCst);
    // A token of the new key would force a fetch, which sends no tag.
    eventually("the new set is found by the clock alone", async || {
        service.bearer(&token(&old)).await.reason() == "key_unknown"
    })
    .await;
    assert!(service.bearer(&token(&new)).await.is_allowed());
    let requests = server.requests();
    let believed = requests.iter().filter(|request| request.target != "/keys" && tag_of(request).is_some());
    // One fetch in ten sends no tag anyway.
    assert!(believed.count() <= 1, "asked for as a whole at once");
}

#[tokio::test]
async fn a_validator_is_sent_back_where_it_is_one_and_short() {
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
        assert_eq!(asked_after(headers).await, expected, "{headers:.100?}");
    }
}

#[tokio::test]
async fn an_entity_tag_beyond_measure_is_an_error_and_nothing_is_kept_of_it() {
    let house = House::start(PROMPT).await;
    let new = key("new");
    house.server.always(Answer::keys(&[&new]).header("etag", format!("\"{}\"", "x".repeat(1 << 20))));
    house.is(&new, "keys_unavailable").await;
    house.server.always(Answer::keys(&[&new]));
    house.comes_to_know(&new).await;
    assert!(house.server.requests().iter().all(|request| request.header("if-none-match").is_none()));
}

#[tokio::test]
async fn a_304_confirms_the_set_in_hand_again_and_again_until_there_is_another() {
    let server = KeyServer::start().await;
    let (old, new) = (key("old"), key("new"));
    let tagged = |keys: &[&_], tag: &str| {
        let (tag, whole) = (tag.to_owned(), Answer::keys(keys).header("etag", tag));
        move |request: &super::key_server::Request| {
            let same = request.header("if-none-match") == Some(&tag);
            if same { Answer::status(304).header("etag", &tag).without_length() } else { whole.clone() }
        }
    };
    server.on(tagged(&[&old], "\"1\""));
    let keys = format!("jwks_uri: '{}'", server.http("/keys"));
    let service = Running::start(configured(&[provider("demo", ISSUER, &keys, BUSY)]), fixed_clock()).await;
    server.request(50).await;
    eventually("fifty are counted", async || fetches(&service, "scheduled", "unchanged").await >= 49).await;
    assert_eq!(fetches(&service, "startup", "renewed").await, 1);
    assert_eq!(fetches(&service, "scheduled", "failed").await, 0);
    let house = House { server, key: old, service };
    assert_eq!(house.status().await["generation"], 1);
    house.is(&house.key, "ok").await;
    house.is(&new, "key_unknown").await;

    house.server.on(tagged(&[&new], "\"2\""));
    eventually("the other set is in hand", async || house.status().await["generation"] == 2).await;
    house.is(&new, "ok").await;
    house.is(&house.key, "key_unknown").await;
}

#[tokio::test]
async fn a_304_may_end_with_the_connection_or_claim_a_length_but_not_bring_keys() {
    for odd in [
        Answer::status(304).without_length(),
        Answer::status(304).header("content-length", "1000").without_length(),
        Answer::status(304)
            .header("cache-control", "max-age=60")
            .header("etag", "W/\"other\"")
            .without_length(),
        Answer::status(304).body(set_of(&[&key("smuggled")])),
    ] {
        let (a, smuggled) = (key("a"), key("smuggled"));
        let whole = Answer::keys(&[&a]).header("etag", "\"1\"");
        let (server, service) =
            busy_with(move |request| if tag_of(request).is_some() { odd.clone() } else { whole.clone() })
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
    let house = House::start(PROMPT).await;
    let new = key("new");
    house.server.always(Answer::status(304).without_length());
    house.is(&new, "keys_unavailable").await;
    assert!(house.last_error().await.contains("status is 304"));
    house.is(&house.key, "ok").await;

    // At the start too, and there is nothing that it could confirm.
    let server = KeyServer::start().await;
    server.always(Answer::status(304).header("etag", "\"1\"").without_length());
    let keys = format!("jwks_uri: '{}'", server.http("/keys"));
    let config = configured(&[provider("demo", ISSUER, &keys, PROMPT)]);
    let service = Running::start_without_keys(config, fixed_clock()).await;
    server.request(3).await;
    let waits = service.admin("/readyz").await;
    assert_eq!(waits, "no keys yet: demo: the answer's status is 304, not 200\n");
    assert!(server.requests().iter().all(|request| request.header("if-none-match").is_none()));
}

#[tokio::test]
async fn a_tag_is_of_the_answer_that_came_last_and_counts() {
    // The tag of an answer that was refused is never sent: a 304 for it would keep the old set for ever.
    for bad in [
        Answer::status(500).header("etag", "\"bad\""),
        Answer::status(200).header("etag", "\"bad\"").body("<html>"),
        Answer::status(200).header("etag", "\"bad\"").body(r#"{"keys":[]}"#),
        Answer::bytes("HTTP/1.1 200 OK\r\netag: \"bad\"\r\ncontent-length: 100\r\n\r\n{"),
        Answer::to("http://localhost/").header("etag", "\"bad\""),
    ] {
        let good = Answer::keys(&[&key("a")]).header("etag", "\"a\"");
        let turn = AtomicUsize::new(0);
        let (server, _service) = busy_with(move |_| match turn.fetch_add(1, Ordering::SeqCst) {
            0 => good.clone(),
            _ => bad.clone(),
        })
        .await;
        server.request(5).await;
        let requests = server.requests();
        // What may be a cache's fault is asked again past the caches, with no tag.
        let due = requests.iter().skip(1).filter(|request| request.header("cache-control").is_none());
        let tags: Vec<_> = due.map(tag_of).collect();
        assert!(!tags.is_empty() && tags.iter().all(|tag| *tag == Some("\"a\"")), "{tags:?}");
    }
}

#[tokio::test]
async fn a_tag_of_one_url_is_not_held_against_another_behind_the_same_redirect() {
    let house = House::start(PROMPT).await;
    let (b, c) = (key("b"), key("c"));
    // Two files that count their versions each by itself; the key URL leads to one and then to the other.
    let publish = |leads_to: &'static str| {
        let (at_b, at_c) = (Answer::keys(&[&b]), Answer::keys(&[&c]));
        house.server.on(move |request| match request.target.as_str() {
            "/keys" => Answer::to(leads_to),
            _ if request.header("if-none-match") == Some("\"1\"") => Answer::status(304).without_length(),
            "/b" => at_b.clone().header("etag", "\"1\""),
            _ => at_c.clone().header("etag", "\"1\""),
        });
    };
    publish("/b");
    house.is(&b, "ok").await;
    publish("/c");
    house.is(&c, "ok").await;
}

#[tokio::test]
async fn the_clock_on_the_wall_starts_no_fetch_and_stops_none() {
    // It stands still, and what is scheduled happens.
    let house = House::start(BUSY).await;
    house.server.request(10).await;
    assert_eq!(house.status().await["fetched_at"], rfc3339(NOW));
}

#[tokio::test]
async fn sets_that_were_fetched_at_one_moment_are_not_fetched_again_at_one_moment() {
    let server = KeyServer::start().await;
    server.always(Answer::keys(&[&key("a")]));
    let providers: Vec<String> = (0..50)
        .map(|i| {
            let keys = format!("jwks_uri: '{}'", server.http("/keys"));
            provider(&format!("p{i}"), &format!("https://issuer-{i}.example.com"), &keys, PROMPT)
        })
        .collect();
    let service = Running::start(configured(&providers), fixed_clock()).await;
    let page: Value = serde_json::from_str(&service.admin("/keys").await).expect("JSON");
    let mut times: Vec<i64> = page["providers"].as_array().expect("a list").iter().map(due_in).collect();
    times.sort_unstable();
    times.dedup();
    assert!(times.len() > 20, "of the last six minutes of an hour: {times:?}");
}
