//! G10 to G12: only a 200 with a usable key set is accepted.

use portcullis::commands::issuer::SigningKey;

use super::answer::{Answer, Gate, Step, set_of};
use super::env::{IMMEDIATE_REFRESH, Table, TestEnv, key};

const HTTP: &str = "HTTP/1.1 200 OK\r\n";

#[tokio::test]
async fn only_a_200_is_accepted_regardless_of_the_body() {
    let mut table = Table::default();
    let statuses = [
        201, 202, 203, 205, 206, 207, 226, 300, 301, 302, 303, 305, 307, 308, 400, 401, 403, 404, 407, 408,
        410, 418, 421, 425, 429, 451, 500, 501, 502, 503, 504, 511, 599, 999,
    ];
    for status in statuses {
        let expected = format!("status is {status}, not 200");
        let answer = |new: &SigningKey| Answer::status(status).body(set_of(&[new]));
        table.rejects(IMMEDIATE_REFRESH, &status.to_string(), &expected, answer).await;
    }
    // A 304 to an unconditional request, and statuses without a body.
    for status in [204, 304] {
        let expected = format!("status is {status}, not 200");
        let answer = |_: &SigningKey| Answer::status(status).without_length();
        table.rejects(IMMEDIATE_REFRESH, &status.to_string(), &expected, answer).await;
    }
    let half = |new: &SigningKey| {
        let set = set_of(&[new]);
        let range = format!("bytes 0-{}/{}", set.len() - 1, set.len());
        Answer::status(206).header("content-range", range).body(set)
    };
    table.rejects(IMMEDIATE_REFRESH, "206 of it all", "status is 206", half).await;
    table.assert_ok();
}

#[tokio::test]
async fn a_body_that_is_not_a_key_set_is_an_error_and_the_old_set_stays() {
    let mut table = Table::default();
    let page = "<!doctype html><title>Sign in</title><form action=/login>";
    let utf_16 = |new: &SigningKey| set_of(&[new]).encode_utf16().flat_map(u16::to_le_bytes).collect();
    let latin_1 = |new: &SigningKey| {
        let set = set_of(&[new]).replace("new", "n\u{e9}w");
        set.chars().map(|c| u8::try_from(u32::from(c)).expect("latin")).collect()
    };
    type Body = Box<dyn FnOnce(&SigningKey) -> Vec<u8>>;
    let bodies: [(&str, Body); 10] = [
        ("nothing", Box::new(|_| Vec::new())),
        ("a page to sign in at", Box::new(move |_| page.into())),
        ("a page of a captive portal, and the set behind it", {
            Box::new(move |new| format!("{page}{}", set_of(&[new])).into())
        }),
        ("half of it", Box::new(|new| set_of(&[new]).into_bytes()[..60].to_vec())),
        ("all but the last brace", {
            Box::new(|new| set_of(&[new]).trim_end_matches('}').to_owned().into_bytes())
        }),
        ("the set twice", Box::new(|new| set_of(&[new]).repeat(2).into())),
        ("UTF-16", Box::new(utf_16)),
        ("Latin-1", Box::new(latin_1)),
        ("a key without its set", Box::new(|new| new.public_jwk().to_string().into())),
        ("an empty set", Box::new(|_| r#"{"keys": []}"#.into())),
    ];
    for (what, body) in bodies {
        let answer =
            |new: &SigningKey| Answer::status(200).header("content-type", "application/json").body(body(new));
        table.rejects(IMMEDIATE_REFRESH, what, "key", answer).await;
    }
    table.assert_ok();
}

#[tokio::test]
async fn a_key_set_of_any_content_type_is_accepted() {
    let mut table = Table::default();
    for content_type in [
        "application/jwk-set+json",
        "text/html; charset=utf-7",
        "application/octet-stream",
        "image/png",
        "no type at all",
        "",
    ] {
        let answer =
            |new: &SigningKey| Answer::status(200).header("content-type", content_type).body(set_of(&[new]));
        table.accepts(content_type, answer).await;
    }
    table.accepts("none", |new| Answer::status(200).body(set_of(&[new]))).await;
    table.assert_ok();
}

#[tokio::test]
async fn every_valid_http_framing_is_accepted() {
    let mut table = Table::default();
    let set = |new: &SigningKey| Answer::status(200).body(set_of(&[new]));
    table.accepts("chunked", |new| set(new).chunked(7, "")).await;
    table.accepts("a byte at a time", |new| set(new).chunked(1, "")).await;
    let trailers = "x-checksum: 1\r\netag: \"trailer\"\r\n";
    table.accepts("trailers", |new| set(new).chunked(100, trailers)).await;
    table.accepts("ended by the close", |new| set(new).without_length()).await;
    let old =
        |new: &SigningKey| Answer::with_status_line("HTTP/1.0 200 OK").body(set_of(&[new])).without_length();
    table.accepts("HTTP/1.0", old).await;
    table
        .accepts("no reason phrase", |new| Answer::with_status_line("HTTP/1.1 200").body(set_of(&[new])))
        .await;
    let early = |new: &SigningKey| {
        let before = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
        prefixed(before, set(new))
    };
    table.accepts("1xx before it", early).await;
    table.accepts("bytes behind the end", |new| set(new).then(Step::Send(b"HTTP/1.1 500".into()))).await;
    table
        .accepts("a chunk extension", |new| {
            let set = set_of(&[new]);
            let body = format!("{:x};name=value\r\n{set}\r\n0\r\n\r\n", set.len());
            Answer::status(200).header("transfer-encoding", "chunked").body(body).without_length()
        })
        .await;
    table.assert_ok();
}

/// The same answer after these bytes.
fn prefixed(before: &str, answer: Answer) -> Answer {
    let mut steps = vec![Step::Send(before.into())];
    steps.extend(answer.into_steps());
    Answer::raw(steps)
}

#[tokio::test]
async fn an_invalid_or_incomplete_http_response_is_an_error() {
    let mut table = Table::default();
    let set = |new: &SigningKey| Answer::status(200).body(set_of(&[new]));
    let mut rejects = async |what: &str, answer: &dyn Fn(&SigningKey) -> Answer| {
        table.rejects(IMMEDIATE_REFRESH, what, "", answer).await;
    };
    rejects("closed immediately", &|_| Answer::bytes("")).await;
    rejects("no HTTP", &|new| Answer::bytes(set_of(&[new]))).await;
    rejects("another protocol", &|_| Answer::bytes("SSH-2.0-OpenSSH_9.9\r\n")).await;
    rejects("HTTP/3.0", &|new| Answer::with_status_line("HTTP/3.0 200 OK").body(set_of(&[new]))).await;
    rejects("no status", &|new| Answer::with_status_line("HTTP/1.1 OK").body(set_of(&[new]))).await;
    rejects("a status of four digits", &|new| {
        Answer::with_status_line("HTTP/1.1 2000 OK").body(set_of(&[new]))
    })
    .await;
    rejects("closed in the head", &|_| Answer::bytes("HTTP/1.1 200 OK\r\ncontent-le")).await;
    rejects("shorter than its length", &|new| {
        let set = set_of(&[new]);
        let more = (set.len() + 1).to_string();
        Answer::status(200).header("content-length", more).body(set).without_length()
    })
    .await;
    rejects("longer than its length", &|new| {
        let set = set_of(&[new]);
        let fewer = (set.len() - 1).to_string();
        Answer::status(200).header("content-length", fewer).body(set).without_length()
    })
    .await;
    rejects("two lengths", &|new| {
        let set = set_of(&[new]);
        Answer::status(200).header("content-length", "2").body(set)
    })
    .await;
    rejects("a negative length", &|new| {
        Answer::status(200).header("content-length", "-1").body(set_of(&[new])).without_length()
    })
    .await;
    rejects("chunked, closed before the last chunk", &|new| {
        let chunk = format!("{:x}\r\n{}\r\n", set_of(&[new]).len(), set_of(&[new]));
        Answer::status(200).header("transfer-encoding", "chunked").body(chunk).without_length()
    })
    .await;
    rejects("a chunk without a size", &|new| {
        let chunk = format!("zz\r\n{}\r\n0\r\n\r\n", set_of(&[new]));
        Answer::status(200).header("transfer-encoding", "chunked").body(chunk).without_length()
    })
    .await;
    rejects("a chunk of nearly endless size", &|new| {
        let chunk = format!("fffffffffffffff\r\n{}", set_of(&[new]));
        Answer::status(200).header("transfer-encoding", "chunked").body(chunk).without_length()
    })
    .await;
    rejects("a chunk size that overflows", &|new| {
        let chunk = format!("10000000000000000f\r\n{}", set_of(&[new]));
        Answer::status(200).header("transfer-encoding", "chunked").body(chunk).without_length()
    })
    .await;
    rejects("a switch of protocols", &|new| {
        let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
        prefixed(switch, set(new))
    })
    .await;
    table.assert_ok();
}

#[tokio::test]
async fn oversized_headers_and_trailers_are_an_error() {
    let mut table = Table::default();
    let set = |new: &SigningKey| Answer::status(200).body(set_of(&[new]));
    let many: String = (0..20_000).map(|i| format!("x-{i}: {i}\r\n")).collect();
    let long = "x".repeat(2 << 20);
    let mut rejects = async |what: &str, answer: &dyn Fn(&SigningKey) -> Answer| {
        table.rejects(IMMEDIATE_REFRESH, what, "", answer).await;
    };
    let head = |lines: &str, new: &SigningKey| Answer::bytes(format!("{HTTP}{lines}\r\n{}", set_of(&[new])));
    rejects("20,000 headers", &|new| head(&many, new)).await;
    rejects("a header of 2 MiB", &|new| head(&format!("x: {long}\r\n"), new)).await;
    rejects("a name of 2 MiB", &|new| head(&format!("{long}: x\r\n"), new)).await;
    rejects("a status line of 2 MiB", &|new| {
        Answer::with_status_line(&format!("HTTP/1.1 200 {long}")).body(set_of(&[new]))
    })
    .await;
    rejects("20,000 trailers", &|new| set(new).chunked(100, &many)).await;
    rejects("a trailer of 2 MiB", &|new| set(new).chunked(100, &format!("x: {long}\r\n"))).await;
    rejects("a chunk extension of 2 MiB", &|new| {
        let body = format!("5;{long}\r\n{}\r\n0\r\n\r\n", set_of(&[new]));
        Answer::status(200).header("transfer-encoding", "chunked").body(body).without_length()
    })
    .await;
    table.assert_ok();
}

#[tokio::test]
async fn response_headers_of_an_issuer_are_not_sent_back() {
    let env = TestEnv::start(IMMEDIATE_REFRESH).await;
    let first = env.server.request(1).await;
    assert_eq!((first.method.as_str(), first.target.as_str()), ("GET", "/keys"));
    let names: Vec<&str> = first.headers.iter().map(|(name, _)| name.as_str()).collect();
    let known = ["accept", "accept-encoding", "host", "user-agent"];
    assert!(names.iter().all(|name| known.contains(name)), "{names:?}");

    let (b, c) = (key("b"), key("c"));
    env.server.respond_with(
        Answer::keys(&[&b])
            .header("set-cookie", "session=1; Path=/")
            .header("www-authenticate", "Basic realm=keys")
            .header("strict-transport-security", "max-age=31536000")
            .header("alt-svc", "h3=\":443\"; ma=86400"),
    );
    env.expect_reason(&b, "ok").await;
    env.server.respond_with(Answer::keys(&[&c]));
    env.expect_reason(&c, "ok").await;
    let last = env.server.request(3).await;
    let names: Vec<&str> = last.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.iter().all(|name| known.contains(name) || *name == "cache-control"), "{names:?}");
}

#[tokio::test]
async fn a_waiting_token_is_verified_with_the_fetched_set() {
    let env = TestEnv::start(IMMEDIATE_REFRESH).await;
    let (new, gate) = (key("new"), Gate::new());
    env.server.respond_with(Answer::keys(&[&new]).gated_by(&gate));
    let (answer, ()) = tokio::join!(env.faults(&new, "ok"), async {
        env.server.request(2).await;
        env.expect_reason(&env.key, "ok").await;
        gate.open();
    });
    assert_eq!(answer, Vec::<String>::new());
    assert_eq!(env.server.connections(), 2);
}
