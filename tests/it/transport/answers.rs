//! G10 to G12: which answers count as a key set. A 200 with a usable one, and nothing else.

use portcullis::commands::issuer::SigningKey;

use super::answer::{Answer, Gate, Step, set_of};
use super::house::{House, PROMPT, Table, key};

const HTTP: &str = "HTTP/1.1 200 OK\r\n";

#[tokio::test]
async fn only_a_200_counts_whatever_the_body() {
    let mut table = Table::default();
    let told = [
        201, 202, 203, 205, 206, 207, 226, 300, 301, 302, 303, 305, 307, 308, 400, 401, 403, 404, 407, 408,
        410, 418, 421, 425, 429, 451, 500, 501, 502, 503, 504, 511, 599, 999,
    ];
    for status in told {
        let says = format!("status is {status}, not 200");
        let answer = |new: &SigningKey| Answer::status(status).body(set_of(&[new]));
        table.refuses(PROMPT, &status.to_string(), &says, answer).await;
    }
    // A 304 where nothing was asked to be compared, and statuses that have no body.
    for status in [204, 304] {
        let says = format!("status is {status}, not 200");
        let answer = |_: &SigningKey| Answer::status(status).without_length();
        table.refuses(PROMPT, &status.to_string(), &says, answer).await;
    }
    let half = |new: &SigningKey| {
        let set = set_of(&[new]);
        let range = format!("bytes 0-{}/{}", set.len() - 1, set.len());
        Answer::status(206).header("content-range", range).body(set)
    };
    table.refuses(PROMPT, "206 of it all", "status is 206", half).await;
    table.judge();
}

#[tokio::test]
async fn what_is_no_key_set_is_an_error_and_the_old_set_stays() {
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
        table.refuses(PROMPT, what, "key", answer).await;
    }
    table.judge();
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
    table.judge();
}

#[tokio::test]
async fn http_is_read_as_it_may_be_written() {
    let mut table = Table::default();
    let set = |new: &SigningKey| Answer::status(200).body(set_of(&[new]));
    table.accepts("chunked", |new| set(new).chunked(7, "")).await;
    table.accepts("a byte at a time", |new| set(new).chunked(1, "")).await;
    let trailers = "x-checksum: 1\r\netag: \"trailer\"\r\n";
    table.accepts("trailers", |new| set(new).chunked(100, trailers)).await;
    table.accepts("ended by the close", |new| set(new).without_length()).await;
    let old = |new: &SigningKey| Answer::begins("HTTP/1.0 200 OK").body(set_of(&[new])).without_length();
    table.accepts("HTTP/1.0", old).await;
    table.accepts("no reason phrase", |new| Answer::begins("HTTP/1.1 200").body(set_of(&[new]))).await;
    let early = |new: &SigningKey| {
        let before = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
        behind(before, set(new))
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
    table.judge();
}

/// The same answer after these bytes.
fn behind(before: &str, answer: Answer) -> Answer {
    let mut steps = vec![Step::Send(before.into())];
    steps.extend(answer.into_steps());
    Answer::raw(steps)
}

#[tokio::test]
async fn an_answer_that_breaks_http_or_off_is_an_error() {
    let mut table = Table::default();
    let set = |new: &SigningKey| Answer::status(200).body(set_of(&[new]));
    let mut refuses = async |what: &str, answer: &dyn Fn(&SigningKey) -> Answer| {
        table.refuses(PROMPT, what, "", answer).await;
    };
    refuses("closed at once", &|_| Answer::bytes("")).await;
    refuses("no HTTP", &|new| Answer::bytes(set_of(&[new]))).await;
    refuses("another protocol", &|_| Answer::bytes("SSH-2.0-OpenSSH_9.9\r\n")).await;
    refuses("HTTP/3.0", &|new| Answer::begins("HTTP/3.0 200 OK").body(set_of(&[new]))).await;
    refuses("no status", &|new| Answer::begins("HTTP/1.1 OK").body(set_of(&[new]))).await;
    refuses("a status of four digits", &|new| Answer::begins("HTTP/1.1 2000 OK").body(set_of(&[new]))).await;
    refuses("closed in the head", &|_| Answer::bytes("HTTP/1.1 200 OK\r\ncontent-le")).await;
    refuses("shorter than it says", &|new| {
        let set = set_of(&[new]);
        let more = (set.len() + 1).to_string();
        Answer::status(200).header("content-length", more).body(set).without_length()
    })
    .await;
    refuses("longer than it says", &|new| {
        let set = set_of(&[new]);
        let fewer = (set.len() - 1).to_string();
        Answer::status(200).header("content-length", fewer).body(set).without_length()
    })
    .await;
    refuses("two lengths", &|new| {
        let set = set_of(&[new]);
        Answer::status(200).header("content-length", "2").body(set)
    })
    .await;
    refuses("a negative length", &|new| {
        Answer::status(200).header("content-length", "-1").body(set_of(&[new])).without_length()
    })
    .await;
    refuses("chunked, closed before the last chunk", &|new| {
        let chunk = format!("{:x}\r\n{}\r\n", set_of(&[new]).len(), set_of(&[new]));
        Answer::status(200).header("transfer-encoding", "chunked").body(chunk).without_length()
    })
    .await;
    refuses("a chunk without a size", &|new| {
        let chunk = format!("zz\r\n{}\r\n0\r\n\r\n", set_of(&[new]));
        Answer::status(200).header("transfer-encoding", "chunked").body(chunk).without_length()
    })
    .await;
    refuses("a chunk of nearly endless size", &|new| {
        let chunk = format!("fffffffffffffff\r\n{}", set_of(&[new]));
        Answer::status(200).header("transfer-encoding", "chunked").body(chunk).without_length()
    })
    .await;
    refuses("a chunk size that overflows", &|new| {
        let chunk = format!("10000000000000000f\r\n{}", set_of(&[new]));
        Answer::status(200).header("transfer-encoding", "chunked").body(chunk).without_length()
    })
    .await;
    refuses("a switch of protocols", &|new| {
        let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
        behind(switch, set(new))
    })
    .await;
    table.judge();
}

#[tokio::test]
async fn headers_and_trailers_beyond_measure_are_an_error() {
    let mut table = Table::default();
    let set = |new: &SigningKey| Answer::status(200).body(set_of(&[new]));
    let many: String = (0..20_000).map(|i| format!("x-{i}: {i}\r\n")).collect();
    let long = "x".repeat(2 << 20);
    let mut refuses = async |what: &str, answer: &dyn Fn(&SigningKey) -> Answer| {
        table.refuses(PROMPT, what, "", answer).await;
    };
    let head = |lines: &str, new: &SigningKey| Answer::bytes(format!("{HTTP}{lines}\r\n{}", set_of(&[new])));
    refuses("20,000 headers", &|new| head(&many, new)).await;
    refuses("a header of 2 MiB", &|new| head(&format!("x: {long}\r\n"), new)).await;
    refuses("a name of 2 MiB", &|new| head(&format!("{long}: x\r\n"), new)).await;
    refuses("a status line of 2 MiB", &|new| {
        Answer::begins(&format!("HTTP/1.1 200 {long}")).body(set_of(&[new]))
    })
    .await;
    refuses("20,000 trailers", &|new| set(new).chunked(100, &many)).await;
    refuses("a trailer of 2 MiB", &|new| set(new).chunked(100, &format!("x: {long}\r\n"))).await;
    refuses("a chunk extension of 2 MiB", &|new| {
        let body = format!("5;{long}\r\n{}\r\n0\r\n\r\n", set_of(&[new]));
        Answer::status(200).header("transfer-encoding", "chunked").body(body).without_length()
    })
    .await;
    table.judge();
}

#[tokio::test]
async fn nothing_that_an_issuer_says_is_said_back_to_it() {
    let house = House::start(PROMPT).await;
    let first = house.server.request(1).await;
    assert_eq!((first.method.as_str(), first.target.as_str()), ("GET", "/keys"));
    let names: Vec<&str> = first.headers.iter().map(|(name, _)| name.as_str()).collect();
    let known = ["accept", "accept-encoding", "host", "user-agent"];
    assert!(names.iter().all(|name| known.contains(name)), "{names:?}");

    let (b, c) = (key("b"), key("c"));
    house.server.always(
        Answer::keys(&[&b])
            .header("set-cookie", "session=1; Path=/")
            .header("www-authenticate", "Basic realm=keys")
            .header("strict-transport-security", "max-age=31536000")
            .header("alt-svc", "h3=\":443\"; ma=86400"),
    );
    house.is(&b, "ok").await;
    house.server.always(Answer::keys(&[&c]));
    house.is(&c, "ok").await;
    let last = house.server.request(3).await;
    let names: Vec<&str> = last.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.iter().all(|name| known.contains(name) || *name == "cache-control"), "{names:?}");
}

#[tokio::test]
async fn a_token_that_waits_for_an_answer_gets_what_it_brings() {
    let house = House::start(PROMPT).await;
    let (new, gate) = (key("new"), Gate::new());
    house.server.always(Answer::keys(&[&new]).behind(&gate));
    let (answer, ()) = tokio::join!(house.faults(&new, "ok"), async {
        house.server.request(2).await;
        house.is(&house.key, "ok").await;
        gate.open();
    });
    assert_eq!(answer, Vec::<String>::new());
    assert_eq!(house.server.connections(), 2);
}
