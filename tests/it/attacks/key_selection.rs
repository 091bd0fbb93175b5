//! Section B: the selection of the key.

use portcullis::commands::issuer::{Issuer, SigningAlgorithm, SigningKey, with_claim};
use serde_json::{Value, json};

use super::case::{assert_no_errors, case, check_answer, check_cases, parts};
use super::forge::signed;
use crate::support::{
    NOW, Running, TestEnv, config, fetching, fixed_clock, inline, prompt_refresh, provider,
};

use SigningAlgorithm::{ES256, ES384, RS256};

#[tokio::test]
async fn a_token_is_verified_only_with_the_key_that_it_names() {
    let first = SigningKey::generate("first", ES256);
    let second = SigningKey::generate("second", ES256);
    let env = TestEnv::start(&[&first, &second], |_| {}).await;
    let claims = env.claims();
    let mut cases = vec![
        case("B1", "kid absent", first.with_kid(None).sign(&claims), "ok"),
        case("B2", "kid absent, several fit", second.with_kid(None).sign(&claims), "ok"),
        case("B3", "another key of the set", second.with_kid("first").sign(&claims), "bad_signature"),
        case("B4", "unknown, yet a key would fit", first.with_kid("third").sign(&claims), "key_unknown"),
    ];
    for kid in ["1", "{}", "[]", r#"["first"]"#, "true", "1.5", r#"{"first":1}"#] {
        let header = format!(r#"{{"alg":"ES256","kid":{kid}}}"#);
        cases.push(case("B5", kid, signed(&first, &header, &claims), "malformed"));
    }
    for kid in [
        "../../../../dev/null",
        "/dev/null",
        "/proc/self/environ",
        "..\\..\\first",
        "./first",
        "first/../first",
        "' OR '1'='1",
        "first' UNION SELECT 'x",
        "*)(uid=*",
        "$(id)",
        "`id`",
        "|id",
        "; sleep 5",
        "http://127.0.0.1:1/x",
        "file:///etc/passwd",
        "first\0",
        "\0",
        "first\r\nx-admin: 1",
        "first\n{\"level\":\"ERROR\"}",
        "\u{1b}[31mfirst",
        "${jndi:ldap://x}",
        "{{7*7}}",
        "%s%n",
        "first%00",
        "%66irst",
    ] {
        cases.push(case("B6", kid, first.with_kid(kid).sign(&claims), "key_unknown"));
    }
    let longest = "k".repeat(1024);
    for kid in [
        "",
        " ",
        "first ",
        " first",
        "First",
        "FIRST",
        "fir\u{455}t",
        "ﬁrst",
        "first\u{200b}",
        "fi\u{301}rst",
    ]
    .into_iter()
    .chain([longest.as_str()])
    {
        cases.push(case("B7", kid, first.with_kid(kid).sign(&claims), "key_unknown"));
    }
    // No key may have such a kid, so it causes no fetch.
    for kid in ["k".repeat(1025), "k".repeat(8 * 1024)] {
        cases.push(case("B7", "too long", first.with_kid(kid.as_str()).sign(&claims), "malformed"));
    }
    let huge = "k".repeat(1 << 20);
    cases.push(case("B7", "1 MiB", first.with_kid(huge.as_str()).sign(&claims), "token_too_large"));
    check_cases(&env, cases).await;
}

#[tokio::test]
async fn all_keys_with_the_same_kid_are_tried_and_work_is_bounded() {
    let kids = |count: usize| (0..count).map(|i| format!("key-{i}")).collect::<Vec<_>>();
    let many: Vec<SigningKey> =
        kids(20).iter().map(|kid| SigningKey::generate(kid.as_str(), ES256)).collect();
    let env = TestEnv::start(&many.iter().collect::<Vec<_>>(), |_| {}).await;
    let claims = env.claims();
    check_cases(
        &env,
        vec![
            case("B2", "the sixteenth", many[15].with_kid(None).sign(&claims), "ok"),
            case("B2", "the seventeenth", many[16].with_kid(None).sign(&claims), "key_unknown"),
            case("B2", "the seventeenth by name", many[16].sign(&claims), "ok"),
        ],
    )
    .await;

    let same_kid = [SigningKey::generate("twin", ES256), SigningKey::generate("twin", ES256)];
    let others = [SigningKey::pooled(0, "twin", RS256), SigningKey::generate("twin", ES384)];
    let stranger = SigningKey::generate("twin", ES256);
    let env = TestEnv::start(&[&same_kid[0], &others[0], &same_kid[1], &others[1]], |_| {}).await;
    let claims = env.claims();
    let mut cases = Vec::new();
    // Twice, since the response must not depend on earlier requests.
    for _ in 0..2 {
        for key in &same_kid {
            cases.push(case("B8", "one of two of a name", key.sign(&claims), "ok"));
        }
        for key in &others {
            cases.push(case("B9", key.algorithm().name(), key.sign(&claims), "ok"));
        }
        cases.push(case("B8", "neither", stranger.sign(&claims), "bad_signature"));
    }
    check_cases(&env, cases).await;
}

#[tokio::test]
async fn a_key_without_a_kid_verifies_only_tokens_without_a_kid() {
    let without_kid = SigningKey::generate(None, ES256);
    let env = TestEnv::start(&[&without_kid], |_| {}).await;
    let claims = env.claims();
    let cases = vec![
        case("B10", "no kid", without_kid.sign(&claims), "ok"),
        case("B10", "a kid", without_kid.with_kid("any").sign(&claims), "key_unknown"),
        case("B10", "an empty kid", without_kid.with_kid("").sign(&claims), "key_unknown"),
    ];
    check_cases(&env, cases).await;
}

#[tokio::test]
async fn one_issuers_key_never_verifies_anothers_token() {
    let (ours, theirs) = (Issuer::start().await.expect("bound"), Issuer::start().await.expect("bound"));
    // Both use the kid "key-1".
    let (our_key, their_key) = (ours.rotate(ES256), theirs.rotate(ES256));
    let their_other = SigningKey::generate("theirs", ES256);
    theirs.publish(&[&their_key, &their_other]);
    assert_eq!(our_key.kid(), their_key.kid());
    let providers = vec![
        fetching(provider("ours", ours.issuer()), &ours, prompt_refresh()),
        fetching(provider("theirs", theirs.issuer()), &theirs, prompt_refresh()),
    ];
    let service = Running::start(config(providers), fixed_clock()).await;
    let forged = |key: &SigningKey, issuer: &Issuer| key.sign(&issuer.claims(NOW));
    let mut wrong = Vec::new();
    for (id, what, token, reason, provider) in [
        ("B11", "ours by ours", forged(&our_key, &ours), "ok", "ours"),
        ("B11", "theirs by theirs", forged(&their_key, &theirs), "ok", "theirs"),
        ("B11", "ours by theirs", forged(&their_key, &ours), "bad_signature", "ours"),
        ("B12", "theirs by ours", forged(&our_key, &theirs), "bad_signature", "theirs"),
        ("D16", "ours by another of theirs", forged(&their_other, &ours), "key_unknown", "ours"),
        (
            "D16",
            "ours by theirs without kid",
            forged(&their_key.with_kid(None), &ours),
            "key_unknown",
            "ours",
        ),
    ] {
        let before = (ours.key_fetches(), theirs.key_fetches());
        let answer = service.bearer(&token).await;
        wrong.extend(check_answer(id, what, &answer, reason, &parts(&token)));
        if answer.metadata.get("provider").map(String::as_str) != Some(provider) {
            wrong.push(format!("{id} {what}: {:?}", answer.metadata));
        }
        let fetched = (ours.key_fetches() - before.0, theirs.key_fetches() - before.1);
        let one = u64::from(reason != "ok");
        let expected = if provider == "ours" { (one, 0) } else { (0, one) };
        if fetched != expected {
            wrong.push(format!("{id} {what}: fetches {fetched:?}, not {expected:?}"));
        }
    }
    assert_no_errors(&wrong);
}

#[tokio::test]
async fn a_flood_of_unknown_kids_keeps_the_current_keys() {
    let key = SigningKey::generate("real", ES256);
    let mut rules = provider("demo", "https://issuer.example");
    rules.claim_headers.clear();
    let service = Running::start(config(vec![inline(rules, &[key.public_jwk()])]), fixed_clock()).await;
    let claims: Value = with_claim(
        json!({"sub": "alice", "aud": "orders-api", "exp": NOW + 300}),
        "iss",
        "https://issuer.example",
    );
    for i in 0..500 {
        let kid = format!("made-up-{i}");
        let answer = service.bearer(&key.with_kid(kid.as_str()).sign(&claims)).await;
        assert_eq!(answer.reason(), "key_unknown");
    }
    assert_eq!(service.bearer(&key.sign(&claims)).await.reason(), "ok");
}
