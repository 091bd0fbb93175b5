//! G13 and G22: an issuer that is slow in any of the ways there are costs its own tokens the wait and
//! nobody else anything.

use portcullis::commands::issuer::SigningKey;

use super::answer::{Answer, Gate, Step, set_of};
use super::certificates::Authority;
use super::house::{
    House, IMPATIENT, ISSUER, PROMPT, Table, configured, eventually, folder, key, provider, status, token,
    token_of,
};
use super::key_server::{KeyServer, Layer};
use crate::support::{NOW, Running, fixed_clock};

#[tokio::test]
async fn an_answer_that_does_not_end_is_given_up_and_the_connection_with_it() {
    let mut table = Table::default();
    let set = |new: &SigningKey| Answer::status(200).body(set_of(&[new]));
    let says = "no answer within 500 ms";
    let cut = |answer: Answer| {
        let Some(Step::Send(whole)) = answer.into_steps().into_iter().next() else { panic!("bytes") };
        Answer::raw(vec![Step::Send(whole[..whole.len() - 1].to_vec()), Step::Stay])
    };
    type Slow<'a> = (&'a str, Box<dyn Fn(&SigningKey) -> Answer>);
    let slow: [Slow<'_>; 7] = [
        ("no answer", Box::new(|_| Answer::raw(vec![Step::Stay]))),
        ("half a status line", Box::new(|_| Answer::bytes("HTTP/1.1 2").then(Step::Stay))),
        ("all but the last byte", Box::new(move |new| cut(set(new)))),
        ("no last chunk", Box::new(move |new| cut(set(new).chunked(10, "")))),
        ("no close", Box::new(move |new| set(new).without_length().then(Step::Stay))),
        (
            "1xx for ever",
            Box::new(|_| Answer::raw(vec![Step::Forever(b"HTTP/1.1 103 Early Hints\r\n\r\n".into())])),
        ),
        (
            "a body that drips",
            Box::new(|_| Answer::status(200).without_length().then(Step::Forever(b" ".into()))),
        ),
    ];
    for (what, answer) in slow {
        let house = House::start(IMPATIENT).await;
        table.refuses_in(&house, what, says, answer).await;
        house.server.wait_for_gone(1).await;
    }
    table.judge();
}

#[tokio::test]
async fn headers_that_drip_for_ever_are_given_up() {
    let house = House::start(IMPATIENT).await;
    let mut table = Table::default();
    let drip = Answer::bytes("HTTP/1.1 200 OK\r\n").then(Step::Forever(b"x: y\r\n".into()));
    let new = key("new");
    house.server.always(drip);
    table.note("headers", house.faults(&new, "keys_unavailable").await);
    table.judge();
    // By their number or by the time, whichever comes first.
    house.server.wait_for_gone(1).await;
    house.is(&house.key, "ok").await;
}

#[tokio::test]
async fn a_body_without_end_or_over_the_limit_is_given_up_at_the_limit() {
    const SMALL: &str =
        "refresh: {interval: 1h, min_spacing: 10ms, wait: 10s, timeout: 10s, max_bytes: 1KiB}";
    let mut table = Table::default();
    let says = "longer than 1024 bytes";
    let padded = |new: &SigningKey, size: usize| {
        let set = set_of(&[new]);
        format!("{}{set}", " ".repeat(size - set.len()))
    };
    let house = House::start(SMALL).await;
    let endless = |_: &SigningKey| Answer::status(200).without_length().then(Step::Forever(vec![b' '; 100]));
    table.refuses_in(&house, "endless", says, endless).await;
    house.server.wait_for_gone(1).await;
    let counted = |new: &SigningKey| Answer::status(200).body(padded(new, 1025));
    table.refuses(SMALL, "one byte over", says, counted).await;
    let chunked = |new: &SigningKey| Answer::status(200).body(padded(new, 1025)).chunked(64, "");
    table.refuses(SMALL, "one byte over, in chunks", says, chunked).await;
    let told = |new: &SigningKey| {
        let huge = u64::MAX.to_string();
        Answer::status(200).header("content-length", huge).body(padded(new, 1025)).without_length()
    };
    table.refuses(SMALL, "the longest length there is", "", told).await;
    let error = |_: &SigningKey| Answer::status(500).without_length().then(Step::Forever(vec![b' '; 100]));
    table.refuses(SMALL, "an error page without end", "status is 500", error).await;
    table.judge();

    let house = House::start(SMALL).await;
    let new = key("new");
    house.server.always(Answer::status(200).body(padded(&new, 1024)));
    house.is(&new, "ok").await;
}

#[tokio::test]
async fn a_handshake_that_stalls_is_given_up_like_any_other_silence() {
    let (folder, authority) = (folder(), Authority::new());
    let certified = authority.signs(&["localhost"]);
    let http = format!("{IMPATIENT}, http: {{ca_file: '{}'}}", authority.write(folder.path()).display());
    let server = KeyServer::start_with(certified.layer()).await;
    let keys = format!("jwks_uri: '{}'", server.https("/keys"));
    let house = House::of(server, &keys, &http).await;
    let new = key("new");
    house.server.always(Answer::keys(&[&new]));
    // Silent from the first byte; after the head of a record; and after a whole one, which is no ServerHello.
    for (i, steps) in [
        vec![Step::Stay],
        vec![Step::Send(vec![22, 3, 3, 1, 0]), Step::Stay],
        vec![Step::Send(vec![22, 3, 3, 0, 4, 2, 0, 1, 0]), Step::Stay],
    ]
    .into_iter()
    .enumerate()
    {
        house.server.over(Layer::Rude(steps));
        house.is(&new, "keys_unavailable").await;
        house.server.wait_for_gone(i + 1).await;
        house.is(&house.key, "ok").await;
        assert!(house.last_error().await.contains("no answer within 500 ms"));
    }
    house.server.over(certified.layer());
    house.comes_to_know(&new).await;
}

#[tokio::test]
async fn while_one_issuer_stalls_another_ones_rotation_is_survived_and_known_keys_serve() {
    const OTHER: &str = "https://other.example.com";
    let (stalling, well) = (KeyServer::start().await, KeyServer::start().await);
    let (a, b) = (key("a"), key("b"));
    stalling.always(Answer::keys(&[&a]));
    well.always(Answer::keys(&[&b]));
    let at = |server: &KeyServer| format!("jwks_uri: '{}'", server.http("/keys"));
    let config = configured(&[
        provider("stalling", ISSUER, &at(&stalling), PROMPT),
        provider("well", OTHER, &at(&well), PROMPT),
    ]);
    let service = Running::start(config, fixed_clock()).await;
    let gate = Gate::new();
    let (new_a, new_b) = (key("new"), key("new"));
    stalling.always(Answer::keys(&[&new_a]).behind(&gate));
    well.always(Answer::keys(&[&new_b]));
    let waiting = token(&new_a);
    let (answer, ()) = tokio::join!(service.bearer(&waiting), async {
        stalling.request(2).await;
        for (token, reason) in [
            (token(&a), "ok"),
            (token_of(OTHER, &b, NOW + 60), "ok"),
            (token_of(OTHER, &new_b, NOW + 60), "ok"),
            (token_of(OTHER, &b, NOW + 60), "key_unknown"),
            // The other one's new key of the same name verifies nothing here.
            (token_of(OTHER, &new_a, NOW + 60), "bad_signature"),
        ] {
            assert_eq!(service.bearer(&token).await.faults(reason, &[]), Vec::<String>::new());
        }
        gate.open();
    });
    assert_eq!(answer.faults("ok", &[]), Vec::<String>::new());
}

#[tokio::test]
async fn an_issuer_that_is_broken_from_the_start_keeps_readiness_and_nobody_elses_tokens() {
    const OTHER: &str = "https://other.example.com";
    let well = KeyServer::start().await;
    let b = key("b");
    well.always(Answer::keys(&[&b]));
    // Nobody listens where somebody did.
    let gone = KeyServer::start().await.http("/keys");
    let config = configured(&[
        provider("broken", ISSUER, &format!("jwks_uri: '{gone}'"), PROMPT),
        provider("well", OTHER, &format!("jwks_uri: '{}'", well.http("/keys")), PROMPT),
    ]);
    let service = Running::start_without_keys(config, fixed_clock()).await;
    eventually("the other one has keys", async || {
        status(&service, "well").await["keys"].as_array().is_some_and(|keys| !keys.is_empty())
    })
    .await;
    let answer = service.bearer(&token_of(OTHER, &b, NOW + 60)).await;
    assert_eq!(answer.faults("ok", &[]), Vec::<String>::new());
    let answer = service.bearer(&token(&b)).await;
    assert_eq!(answer.faults("keys_unavailable", &[]), Vec::<String>::new());
    let waits = service.admin("/readyz").await;
    assert!(waits.starts_with("no keys yet: broken: ") && waits.contains("refused"), "{waits}");
    assert!(!waits.contains("http"), "{waits}");
}
