//! G13 and G22: a slow issuer delays only its own tokens that need newer keys.

use portcullis::commands::issuer::SigningKey;

use super::answer::{Answer, Gate, Step, set_of};
use super::certificates::Authority;
use super::env::{
    IMMEDIATE_REFRESH, ISSUER, SHORT_TIMEOUT, Table, TestEnv, configured, eventually, folder, key, provider,
    status, token, token_of,
};
use super::key_server::{KeyServer, Layer};
use crate::support::{NOW, Running, fixed_clock};

#[tokio::test]
async fn an_answer_that_does_not_end_times_out_and_its_connection_is_closed() {
    let mut table = Table::default();
    let set = |new: &SigningKey| Answer::status(200).body(set_of(&[new]));
    let expected = "no answer within 500 ms";
    let cut = |answer: Answer| {
        let Some(Step::Send(bytes)) = answer.into_steps().into_iter().next() else { panic!("bytes") };
        Answer::raw(vec![Step::Send(bytes[..bytes.len() - 1].to_vec()), Step::KeepOpen])
    };
    type Slow<'a> = (&'a str, Box<dyn Fn(&SigningKey) -> Answer>);
    let slow: [Slow<'_>; 7] = [
        ("no answer", Box::new(|_| Answer::raw(vec![Step::KeepOpen]))),
        ("half a status line", Box::new(|_| Answer::bytes("HTTP/1.1 2").then(Step::KeepOpen))),
        ("all but the last byte", Box::new(move |new| cut(set(new)))),
        ("no last chunk", Box::new(move |new| cut(set(new).chunked(10, "")))),
        ("no close", Box::new(move |new| set(new).without_length().then(Step::KeepOpen))),
        (
            "endless 1xx",
            Box::new(|_| Answer::raw(vec![Step::Repeat(b"HTTP/1.1 103 Early Hints\r\n\r\n".into())])),
        ),
        (
            "a body that drips",
            Box::new(|_| Answer::status(200).without_length().then(Step::Repeat(b" ".into()))),
        ),
    ];
    for (what, answer) in slow {
        let env = TestEnv::start(SHORT_TIMEOUT).await;
        table.rejects_in(&env, what, expected, answer).await;
        env.server.wait_for_disconnects(1).await;
    }
    table.assert_ok();
}

#[tokio::test]
async fn endless_headers_are_aborted() {
    let env = TestEnv::start(SHORT_TIMEOUT).await;
    let mut table = Table::default();
    let endless = Answer::bytes("HTTP/1.1 200 OK\r\n").then(Step::Repeat(b"x: y\r\n".into()));
    let new = key("new");
    env.server.respond_with(endless);
    table.record("headers", env.faults(&new, "keys_unavailable").await);
    table.assert_ok();
    // The limit of headers or the timeout, whichever is reached first.
    env.server.wait_for_disconnects(1).await;
    env.expect_reason(&env.key, "ok").await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_aborted_at_the_limit() {
    const SMALL: &str =
        "refresh: {interval: 1h, min_spacing: 10ms, wait: 10s, timeout: 10s, max_bytes: 1KiB}";
    let mut table = Table::default();
    let expected = "longer than 1024 bytes";
    let padded = |new: &SigningKey, size: usize| {
        let set = set_of(&[new]);
        format!("{}{set}", " ".repeat(size - set.len()))
    };
    let env = TestEnv::start(SMALL).await;
    let endless = |_: &SigningKey| Answer::status(200).without_length().then(Step::Repeat(vec![b' '; 100]));
    table.rejects_in(&env, "endless", expected, endless).await;
    env.server.wait_for_disconnects(1).await;
    let counted = |new: &SigningKey| Answer::status(200).body(padded(new, 1025));
    table.rejects(SMALL, "one byte over", expected, counted).await;
    let chunked = |new: &SigningKey| Answer::status(200).body(padded(new, 1025)).chunked(64, "");
    table.rejects(SMALL, "one byte over, in chunks", expected, chunked).await;
    let declared = |new: &SigningKey| {
        let huge = u64::MAX.to_string();
        Answer::status(200).header("content-length", huge).body(padded(new, 1025)).without_length()
    };
    table.rejects(SMALL, "the longest length there is", "", declared).await;
    let error = |_: &SigningKey| Answer::status(500).without_length().then(Step::Repeat(vec![b' '; 100]));
    table.rejects(SMALL, "an error page without end", "status is 500", error).await;
    table.assert_ok();

    let env = TestEnv::start(SMALL).await;
    let new = key("new");
    env.server.respond_with(Answer::status(200).body(padded(&new, 1024)));
    env.expect_reason(&new, "ok").await;
}

#[tokio::test]
async fn a_stalled_handshake_times_out() {
    let (folder, authority) = (folder(), Authority::new());
    let certified = authority.issue(&["localhost"]);
    let http = format!("{SHORT_TIMEOUT}, http: {{ca_file: '{}'}}", authority.write(folder.path()).display());
    let server = KeyServer::start_with(certified.layer()).await;
    let keys = format!("jwks_uri: '{}'", server.https("/keys"));
    let env = TestEnv::with_server(server, &keys, &http).await;
    let new = key("new");
    env.server.respond_with(Answer::keys(&[&new]));
    // Silent from the first byte, after a record header, and after a complete record that is not a ServerHello.
    for (i, steps) in [
        vec![Step::KeepOpen],
        vec![Step::Send(vec![22, 3, 3, 1, 0]), Step::KeepOpen],
        vec![Step::Send(vec![22, 3, 3, 0, 4, 2, 0, 1, 0]), Step::KeepOpen],
    ]
    .into_iter()
    .enumerate()
    {
        env.server.set_layer(Layer::Raw(steps));
        env.expect_reason(&new, "keys_unavailable").await;
        env.server.wait_for_disconnects(i + 1).await;
        env.expect_reason(&env.key, "ok").await;
        assert!(env.last_error().await.contains("no answer within 500 ms"));
    }
    env.server.set_layer(certified.layer());
    env.wait_until_known(&new).await;
}

#[tokio::test]
async fn while_one_issuer_stalls_rotations_of_others_and_known_keys_work() {
    const OTHER: &str = "https://other.example.com";
    let (stalling, healthy) = (KeyServer::start().await, KeyServer::start().await);
    let (a, b) = (key("a"), key("b"));
    stalling.respond_with(Answer::keys(&[&a]));
    healthy.respond_with(Answer::keys(&[&b]));
    let at = |server: &KeyServer| format!("jwks_uri: '{}'", server.http("/keys"));
    let config = configured(&[
        provider("stalling", ISSUER, &at(&stalling), IMMEDIATE_REFRESH),
        provider("healthy", OTHER, &at(&healthy), IMMEDIATE_REFRESH),
    ]);
    let service = Running::start(config, fixed_clock()).await;
    let gate = Gate::new();
    let (new_a, new_b) = (key("new"), key("new"));
    stalling.respond_with(Answer::keys(&[&new_a]).gated_by(&gate));
    healthy.respond_with(Answer::keys(&[&new_b]));
    let waiting = token(&new_a);
    let (answer, ()) = tokio::join!(service.bearer(&waiting), async {
        stalling.request(2).await;
        for (token, reason) in [
            (token(&a), "ok"),
            (token_of(OTHER, &b, NOW + 60), "ok"),
            (token_of(OTHER, &new_b, NOW + 60), "ok"),
            (token_of(OTHER, &b, NOW + 60), "key_unknown"),
            // A key of another issuer with the same kid verifies nothing here.
            (token_of(OTHER, &new_a, NOW + 60), "bad_signature"),
        ] {
            assert_eq!(service.bearer(&token).await.faults(reason, &[]), Vec::<String>::new());
        }
        gate.open();
    });
    assert_eq!(answer.faults("ok", &[]), Vec::<String>::new());
}

#[tokio::test]
async fn an_issuer_broken_from_the_start_affects_readiness_and_no_other_tokens() {
    const OTHER: &str = "https://other.example.com";
    let healthy = KeyServer::start().await;
    let b = key("b");
    healthy.respond_with(Answer::keys(&[&b]));
    // A port that is closed.
    let unreachable = KeyServer::start().await.http("/keys");
    let config = configured(&[
        provider("broken", ISSUER, &format!("jwks_uri: '{unreachable}'"), IMMEDIATE_REFRESH),
        provider("healthy", OTHER, &format!("jwks_uri: '{}'", healthy.http("/keys")), IMMEDIATE_REFRESH),
    ]);
    let service = Running::start_without_keys(config, fixed_clock()).await;
    eventually("the healthy provider has keys", async || {
        status(&service, "healthy").await["keys"].as_array().is_some_and(|keys| !keys.is_empty())
    })
    .await;
    let answer = service.bearer(&token_of(OTHER, &b, NOW + 60)).await;
    assert_eq!(answer.faults("ok", &[]), Vec::<String>::new());
    let answer = service.bearer(&token(&b)).await;
    assert_eq!(answer.faults("keys_unavailable", &[]), Vec::<String>::new());
    let readiness = service.admin("/readyz").await;
    // Another test may have got the port in the meantime, and closes what it did not expect.
    let reasons = ["refused", "reset"];
    assert!(readiness.starts_with("no keys yet: broken: "), "{readiness}");
    assert!(reasons.iter().any(|reason| readiness.contains(reason)), "{readiness}");
    assert!(!readiness.contains("http"), "{readiness}");
}
