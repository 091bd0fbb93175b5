//! Section D: the payload, its claims, and their headers for the upstream.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use portcullis::clock::Clock;
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey, with_claim, without_claim};
use portcullis::config::Limits;
use portcullis::validation::UnixTime;
use portcullis::validation::provider::{Audiences, ClaimPath};
use serde_json::{Value, json};

use super::case::{Case, assert_no_errors, case, check_answer, check_cases, parts};
use super::forge::{header_text, split};
use crate::support::{Ask, NOW, Running, TestEnv, claim_headers, config, fixed_clock, inline, provider};

const ISSUER: &str = "https://issuer.example/realms/demo";

async fn env(adjust: impl FnOnce(&mut portcullis::validation::provider::Provider)) -> TestEnv {
    TestEnv::start(&[&SigningKey::generate("es", SigningAlgorithm::ES256)], adjust).await
}

/// A signed token with the good claims of the environment, in which `member` is the raw text of one.
fn raw(env: &TestEnv, name: &str, member: &str) -> String {
    let claims = without_claim(env.claims(), name).to_string();
    let payload = format!("{},\"{name}\":{member}}}", claims.trim_end_matches('}'));
    env.key.sign_raw(header_text(&env.key).as_bytes(), payload.as_bytes())
}

#[tokio::test]
async fn a_payload_that_is_not_one_json_object_without_repetitions_is_malformed() {
    let env = env(|_| {}).await;
    let claims = env.claims().to_string();
    let open = claims.trim_end_matches('}');
    let mut cases = Vec::new();
    let mut payload = |id, what: &str, bytes: &[u8], reason| {
        let token = env.key.sign_raw(header_text(&env.key).as_bytes(), bytes);
        cases.push(case(id, what, token, reason));
    };
    for text in [
        "",
        " ",
        "{",
        "[]",
        r#""x""#,
        "null",
        "true",
        "1",
        "{}{}",
        "exp=1",
        "<xml/>",
        "\u{0}",
        r#"[{"sub":"alice"}]"#,
    ] {
        payload("D1", text, text.as_bytes(), "malformed");
    }
    payload("D1", "in an array", format!("[{claims}]").as_bytes(), "malformed");
    payload("D1", "as a string", Value::from(claims.as_str()).to_string().as_bytes(), "malformed");
    payload("D1", "trailing data", format!("{claims} x").as_bytes(), "malformed");
    payload("D1", "a BOM", format!("\u{feff}{claims}").as_bytes(), "malformed");
    payload("D1", "a trailing comma", format!("{open},}}").as_bytes(), "malformed");
    payload("D1", "a comment", format!("{open}/**/}}").as_bytes(), "malformed");
    payload("D1", "not UTF-8", &[open.as_bytes(), b",\"x\":\"\xff\"}"].concat(), "malformed");
    payload("D1", "a lone surrogate", format!("{open},\"x\":\"\\ud800\"}}").as_bytes(), "malformed");
    payload(
        "D1",
        "UTF-16",
        &claims.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<_>>(),
        "malformed",
    );
    payload("D1", "spread over lines", claims.replace(',', " ,\r\n\t").as_bytes(), "ok");
    for twice in [
        r#""sub":"admin""#,
        r#""aud":"orders-api""#,
        r#""exp":9999999999"#,
        r#""iss":"x""#,
        r#""\u0073ub":"admin""#,
        r#""x":1,"x":1"#,
        r#""x":{"roles":[],"roles":["admin"]}"#,
        r#""x":[[{"a":1,"a":1}]]"#,
    ] {
        payload("D2", twice, format!("{open},{twice}}}").as_bytes(), "malformed");
        payload("D2", twice, format!("{{{twice},{}", &claims[1..]).as_bytes(), "malformed");
    }
    check_cases(&env, cases).await;
}

#[tokio::test]
async fn a_time_is_any_json_number_and_nothing_else() {
    let env = env(|_| {}).await;
    let mut cases = Vec::new();
    let mut exp = |id, text: &str, reason| {
        cases.push(case(id, format!("exp {text:.40}"), raw(&env, "exp", text), reason));
    };
    for text in [
        "NaN",
        "Infinity",
        "-Infinity",
        "nan",
        "0x77777777",
        "+1800000300",
        "01800000300",
        "1.",
        ".5",
        "1e",
        "1e+",
        "--1",
        "1_000",
        "١٢٣",
        "1800000300L",
        "undefined",
    ] {
        exp("D3", text, "malformed");
    }
    for text in ["1e400", "-1e400", "1e999999999999", "-1E+400"] {
        exp("D3", text, "claim_malformed");
    }
    for text in ["18000003E+2", "1.8000003e9", "1800000300.0", "180000030000e-2"] {
        exp("D3", text, "ok");
    }
    for text in [
        r#""1800000300""#,
        r#""""#,
        "true",
        "false",
        "[]",
        "[1800000300]",
        "{}",
        r#"{"exp":1800000300}"#,
        r#""2099-01-01T00:00:00Z""#,
        r#""never""#,
    ] {
        exp("D4", text, "claim_malformed");
    }
    exp("D4", "null", "claim_missing");
    for text in [
        "1800000000.5",
        "9007199254740993",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "1e300",
        "253402300800",
        "340282366920938463463374607431768211456",
    ] {
        exp("D6", text, "ok");
    }
    for text in [
        "1234.5",
        "-9223372036854775808",
        "-9223372036854775809",
        "-18446744073709551616",
        "-1e300",
        "1e-400",
        "1799999969.999",
        "1799999970.0",
    ] {
        exp("D6", text, "expired");
    }
    for text in ["0", "-0", "-1", "0.0", "1"] {
        exp("D7", text, "expired");
    }
    for (text, reason) in [
        ("1800000000", "ok"),
        ("1799999971", "ok"),
        ("1799999970.001", "ok"),
        ("1799999970", "expired"),
        ("1799999969", "expired"),
    ] {
        exp("D9", text, reason);
    }
    exp("D12", "10413792000", "ok"); // the year 2300: no longest life is set
    let digits = "9".repeat(11_000);
    exp("D33", &digits, "claim_malformed");
    exp("D33", &format!("1800000300.{digits}"), "ok");

    for name in ["nbf", "iat"] {
        for text in [r#""1""#, r#""""#, "true", "[]", "{}", "1e400", "[1]"] {
            cases.push(case("D5", format!("{name} {text}"), raw(&env, name, text), "claim_malformed"));
        }
        // Null is treated as absent.
        cases.push(case("D5", format!("{name} null"), raw(&env, name, "null"), "ok"));
    }
    for (name, text, reason) in [
        ("nbf", "1800000030", "ok"),
        ("nbf", "1800000030.5", "not_yet_valid"),
        ("nbf", "1800000031", "not_yet_valid"),
        ("nbf", "9223372036854775807", "not_yet_valid"),
        ("nbf", "1e300", "not_yet_valid"),
        ("nbf", "-1e300", "ok"),
        ("nbf", "0", "ok"),
    ] {
        cases.push(case("D9", format!("{name} {text}"), raw(&env, name, text), reason));
    }
    for (name, text, reason) in [
        ("nbf", "1800000301", "not_yet_valid"),
        ("iat", "1900000000", "ok"),
        ("iat", "-1", "ok"),
        ("iat", "1e300", "ok"),
    ] {
        cases.push(case("D11", format!("{name} {text}"), raw(&env, name, text), reason));
    }
    let sign = |claims: Value| env.key.sign(&claims);
    cases.push(case("D8", "no exp", sign(without_claim(env.claims(), "exp")), "claim_missing"));
    let nothing = without_claim(without_claim(env.claims(), "iat"), "nbf");
    cases.push(case("D11", "neither iat nor nbf", sign(nothing), "ok"));
    check_cases(&env, cases).await;
}

#[tokio::test]
async fn a_wrong_clock_denies_and_does_not_panic() {
    let key = SigningKey::generate("es", SigningAlgorithm::ES256);
    let claims = json!({
        "iss": ISSUER, "aud": "orders-api", "sub": "alice", "iat": NOW, "nbf": NOW, "exp": NOW + 300,
    });
    let mut wrong = Vec::new();
    for (now, reason) in [
        (NOW, "ok"),
        (-1, "not_yet_valid"),
        (0, "not_yet_valid"),
        (i64::MIN, "not_yet_valid"),
        (i64::MAX, "expired"),
        (NOW + 330, "expired"),
        (NOW - 31, "not_yet_valid"),
    ] {
        let providers = vec![inline(provider("demo", ISSUER), &[key.public_jwk()])];
        let clock = Clock::Fixed(UnixTime::from_secs(now));
        let service = Running::start(config(providers), clock).await;
        let answer = service.bearer(&key.sign(&claims)).await;
        wrong.extend(check_answer("D13", &format!("now {now}"), &answer, reason, &[]));
        assert!(service.admin("/keys").await.starts_with('{'), "the admin page responds");
    }
    assert_no_errors(&wrong);
}

#[tokio::test]
async fn an_issuer_is_compared_exactly() {
    let key = SigningKey::generate("es", SigningAlgorithm::ES256);
    let providers = vec![inline(provider("demo", ISSUER), &[key.public_jwk()])];
    let service = Running::start(config(providers), fixed_clock()).await;
    let mut wrong = Vec::new();
    let mut cases: Vec<(&str, Option<Value>, &str)> = vec![
        ("D14", Some(json!(ISSUER)), "ok"),
        ("D14", None, "claim_missing"),
        ("D14", Some(Value::Null), "claim_missing"),
        ("D14", Some(json!(1)), "claim_malformed"),
        ("D14", Some(json!([ISSUER])), "claim_malformed"),
        ("D14", Some(json!({"iss": ISSUER})), "claim_malformed"),
        ("D14", Some(json!(true)), "claim_malformed"),
        ("D14", Some(json!("")), "issuer_unknown"),
    ];
    for text in [
        "https://issuer.example/realms/demo/",
        "https://ISSUER.example/realms/demo",
        "HTTPS://issuer.example/realms/demo",
        "http://issuer.example/realms/demo",
        "https://issuer.example:443/realms/demo",
        " https://issuer.example/realms/demo",
        "https://issuer.example/realms/demo ",
        "https://issuer.example/realms/Demo",
        "https://issuer.example/realms/%64emo",
        "https://issuer.example/realms/x/../demo",
        "https://issuer.example//realms/demo",
        "https://issuer.example./realms/demo",
        "https://issuer.example/realms/demo?",
        "https://issuer.example/realms/demo#",
        "https://user@issuer.example/realms/demo",
        "issuer.example/realms/demo",
        "https://issuer.example.evil.test/realms/demo",
        "https://issuer.example/realms/dem\u{43e}",
        "https://issuer.example/realms/demo\u{0}",
        "https://issuer.example/realms/demo\n",
        "https://issuer.example/realms",
        "https://issuer.example/realms/demo2",
        "demo",
        "*",
    ] {
        cases.push(("D15", Some(json!(text)), "issuer_unknown"));
    }
    for (id, issuer, reason) in cases {
        let mut claims = json!({"aud": "orders-api", "sub": "alice", "exp": NOW + 300});
        let what = format!("{issuer:?}");
        if let Some(issuer) = issuer {
            claims["iss"] = issuer;
        }
        let token = key.sign(&claims);
        let answer = service.bearer(&token).await;
        wrong.extend(check_answer(id, &what, &answer, reason, &parts(&token)));
    }
    assert_no_errors(&wrong);
}

#[tokio::test]
async fn an_audience_is_compared_exactly_and_has_only_strings() {
    let strict = env(|rules| {
        rules.audiences =
            Audiences::AnyOf(vec!["orders-api".to_owned(), "https://api.example.com".to_owned()]);
    })
    .await;
    let any = env(|rules| rules.audiences = Audiences::Any).await;
    let mut strict_cases = vec![case(
        "D17",
        "missing",
        strict.key.sign(&without_claim(strict.claims(), "aud")),
        "claim_missing",
    )];
    let mut any_cases = vec![case(
        "D17",
        "missing where any will do",
        any.key.sign(&without_claim(any.claims(), "aud")),
        "ok",
    )];
    for (id, aud, strict_reason, any_reason) in [
        ("D18", r#"["x","orders-api"]"#, "ok", "ok"),
        ("D18", r#"["orders-api","orders-api"]"#, "ok", "ok"),
        ("D18", r#""https://api.example.com""#, "ok", "ok"),
        ("D19", "[]", "audience_mismatch", "ok"),
        ("D19", r#""""#, "audience_mismatch", "ok"),
        ("D19", r#"[""]"#, "audience_mismatch", "ok"),
        ("D19", "null", "claim_missing", "ok"),
        ("D19", "1", "claim_malformed", "claim_malformed"),
        ("D19", "true", "claim_malformed", "claim_malformed"),
        ("D19", "{}", "claim_malformed", "claim_malformed"),
        ("D19", r#"{"orders-api":1}"#, "claim_malformed", "claim_malformed"),
        ("D19", r#"[["orders-api"]]"#, "claim_malformed", "claim_malformed"),
        ("D19", r#"[1,"orders-api"]"#, "claim_malformed", "claim_malformed"),
        ("D19", r#"["orders-api",null]"#, "claim_malformed", "claim_malformed"),
        ("D20", r#""orders""#, "audience_mismatch", "ok"),
        ("D20", r#""orders-api2""#, "audience_mismatch", "ok"),
        ("D20", r#""my-orders-api""#, "audience_mismatch", "ok"),
        ("D20", r#""Orders-API""#, "audience_mismatch", "ok"),
        ("D20", r#"" orders-api""#, "audience_mismatch", "ok"),
        ("D20", r#""orders-api ""#, "audience_mismatch", "ok"),
        ("D20", r#""orders-api,other""#, "audience_mismatch", "ok"),
        ("D20", r#""other orders-api""#, "audience_mismatch", "ok"),
        ("D20", r#""orders-api\u0000""#, "audience_mismatch", "ok"),
        ("D20", r#""*""#, "audience_mismatch", "ok"),
        ("D20", r#""https://api.example.com/""#, "audience_mismatch", "ok"),
        ("D20", r#""http://api.example.com""#, "audience_mismatch", "ok"),
        ("D20", r#""api.example.com""#, "audience_mismatch", "ok"),
        ("D20", r#""https://API.example.com""#, "audience_mismatch", "ok"),
        ("D20", r#""https://api.example.com:443""#, "audience_mismatch", "ok"),
    ] {
        strict_cases.push(case(id, aud, raw(&strict, "aud", aud), strict_reason));
        any_cases.push(case(id, aud, raw(&any, "aud", aud), any_reason));
    }
    check_cases(&strict, strict_cases).await;
    check_cases(&any, any_cases).await;
}

#[tokio::test]
async fn a_required_claim_must_be_present_and_not_empty() {
    let path = |text| ClaimPath::parse(text).expect("a valid path");
    let env = env(|rules| {
        rules.required_claims = vec![path("tenant_id"), path("/a/b"), path("https://x.test/c")];
    })
    .await;
    let good = with_claim(with_claim(env.claims(), "/a/b", "v"), "https://x.test/c", 0);
    let mut cases: Vec<Case> = vec![case("D22", "all there", env.key.sign(&good), "ok")];
    for (claim, value) in [
        ("tenant_id", json!(null)),
        ("tenant_id", json!("")),
        ("tenant_id", json!([])),
        ("tenant_id", json!({})),
        ("a", json!("b")),
        ("a", json!(["b"])),
        ("a", json!({"B": "v"})),
        ("https://x.test/c", json!("")),
    ] {
        let token = env.key.sign(&with_claim(good.clone(), claim, value.clone()));
        cases.push(case("D22", format!("{claim} {value}"), token, "claim_missing"));
    }
    for claim in ["tenant_id", "a", "https://x.test/c"] {
        let token = env.key.sign(&without_claim(good.clone(), claim));
        cases.push(case("D22", format!("no {claim}"), token, "claim_missing"));
    }
    // A claim name with slashes is not a path.
    let nested = with_claim(without_claim(good, "https://x.test/c"), "/https:/~1/x.test/c", 1);
    cases.push(case("D27", "a name is not a path", env.key.sign(&nested), "claim_missing"));
    check_cases(&env, cases).await;
}

/// The header `x-c` that the upstream gets for the claim `c`, or its removal.
#[tokio::test]
async fn a_claim_becomes_one_valid_header_line_or_none() {
    let env = env(|rules| rules.claim_headers = claim_headers(&[("x-c", "c")])).await;
    let mut wrong = Vec::new();
    for (id, claim, expected) in [
        ("D22", "null", None),
        ("D22", r#""""#, None),
        ("D23", r#""a\r\nx-admin: 1""#, Some("a%0D%0Ax-admin: 1")),
        ("D23", r#""a\nb""#, Some("a%0Ab")),
        ("D23", r#""a\u0000b\u001b[31m\u007f\t""#, Some("a%00b%1B[31m%7F%09")),
        ("D23", r#""a\u0085\u2028b""#, Some("a%C2%85%E2%80%A8b")),
        ("D23", r#""100%0D%0A""#, Some("100%250D%250A")),
        ("D24", r#""Zoë""#, Some("Zo%C3%AB")),
        ("D24", r#""\ud83d\ude00""#, Some("%F0%9F%98%80")),
        ("D24", r#""a\u202eb""#, Some("a%E2%80%AEb")),
        ("D24", r#""\u00a0""#, Some("%C2%A0")),
        // HTTP strips white space around a value (RFC 9110 §5.5): "admin " must not become "admin".
        ("D24", r#""admin ""#, Some("admin%20")),
        ("D24", r#"" admin""#, Some("%20admin")),
        ("D24", r#""   ""#, Some("%20%20%20")),
        ("D24", r#"" ""#, Some("%20")),
        ("D24", r#""two words""#, Some("two words")),
        ("D24", r#"["a "," b","c d"]"#, Some("a%20,%20b,c d")),
        ("D28", "[]", None),
        ("D28", "[null]", None),
        ("D28", "{}", Some("{}")),
        ("D29", r#"["a","b,admin","c d"]"#, Some("a,b%2Cadmin,c d")),
        ("D29", r#""a,admin""#, Some("a,admin")),
        ("D30", "true", Some("true")),
        ("D30", "false", Some("false")),
        ("D30", "1", Some("1")),
        ("D30", "1.0", Some("1.0")),
        ("D30", "1E2", Some("1E2")),
        ("D30", "12345678901234567890123", Some("12345678901234567890123")),
        ("D30", r#"[1,true,"1",[2,3]]"#, Some("1,true,1,[2%2C3]")),
        ("D31", r#"{"__proto__":{"admin":true},"":1}"#, Some(r#"{"__proto__":{"admin":true},"":1}"#)),
        ("D31", r#"{"k\r\n":"v\r\n"}"#, Some(r#"{"k\r\n":"v\r\n"}"#)),
    ] {
        let token = raw(&env, "c", claim);
        let ask = Ask::default()
            .header("authorization", format!("Bearer {token}"))
            .header("x-c", "sent by the client");
        let answer = env.service.ask(ask).await;
        wrong.extend(check_answer(id, claim, &answer, "ok", &[]));
        let set = answer.set.get("x-c").map(String::as_str);
        if set != expected || answer.removed.iter().any(|name| name == "x-c") == set.is_some() {
            wrong.push(format!("{id} {claim}: set {set:?}, removed {:?}", answer.removed));
        }
    }
    assert_no_errors(&wrong);
}

#[tokio::test]
async fn a_path_selects_only_its_own_claim() {
    let env = env(|rules| {
        rules.claim_headers = claim_headers(&[
            ("x-sub", "sub"),
            ("x-roles", "/realm_access/roles"),
            ("x-client", "/resource_access/my-app.v1/roles/1"),
            ("x-url", "https://example.com/claims"),
            ("x-groups", "cognito:groups"),
            ("x-escaped", "/a~1b/m~0n"),
            ("x-proto", "__proto__"),
            ("x-constructor", "/constructor/name"),
            ("x-empty", "/"),
            ("x-through-string", "/sub/0"),
            ("x-length", "/realm_access/roles/length"),
            ("x-dotted", "realm_access.roles"),
        ]);
    })
    .await;
    let mut claims = env.claims();
    for (name, value) in [
        ("realm_access", json!({"roles": ["user", "ops"]})),
        (
            "resource_access",
            json!({"my-app.v1": {"roles": ["a", "b"]}, "my-app": {"v1": {"roles": ["x", "y"]}}}),
        ),
        ("https://example.com/claims", json!("url")),
        ("cognito:groups", json!(["g1", "g2"])),
        ("a/b", json!({"m~n": "escaped"})),
    ] {
        claims[name] = value;
    }
    let answer = env.service.bearer(&env.key.sign(&claims)).await;
    let expected: BTreeMap<String, String> = [
        ("x-sub", "alice"),
        ("x-roles", "user,ops"),
        ("x-client", "b"),
        ("x-url", "url"),
        ("x-groups", "g1,g2"),
        ("x-escaped", "escaped"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    assert_eq!(answer.set, expected, "D26 D27 D28 D31");
    let mut removed = answer.removed;
    removed.sort();
    assert_eq!(
        removed,
        ["x-constructor", "x-dotted", "x-empty", "x-length", "x-proto", "x-through-string"],
        "D28 D31"
    );
    claims["__proto__"] = json!({"polluted": true});
    claims[""] = json!("empty");
    let answer = env.service.bearer(&env.key.sign(&claims)).await;
    assert_eq!(answer.set["x-proto"], r#"{"polluted":true}"#, "D31: plain data");
    assert_eq!(answer.set["x-empty"], "empty", "D31");
}

#[tokio::test]
async fn a_subject_is_a_string_or_nothing() {
    let env = env(|_| {}).await;
    let mut cases = Vec::new();
    for text in ["1", "1.5", "true", "[]", "{}", r#"["alice"]"#, r#"{"sub":"alice"}"#] {
        cases.push(case("D22", format!("sub {text}"), raw(&env, "sub", text), "claim_malformed"));
    }
    check_cases(&env, cases).await;
    for sub in [Some("null"), Some(r#""""#), None] {
        let token = match sub {
            Some(text) => raw(&env, "sub", text),
            None => env.key.sign(&without_claim(env.claims(), "sub")),
        };
        let answer = env.service.bearer(&token).await;
        assert_eq!(answer.faults("ok", &[]), Vec::<String>::new(), "D22 {sub:?}");
        assert_eq!(answer.set.get("x-auth-subject"), None, "D22 {sub:?}");
        assert!(answer.removed.contains(&"x-auth-subject".to_owned()), "D22 {sub:?}");
    }
}

#[tokio::test]
async fn claims_of_any_size_are_bounded_in_headers_and_in_time() {
    let key = SigningKey::generate("es", SigningAlgorithm::ES256);
    let mut rules = provider("demo", ISSUER);
    rules.claim_headers = claim_headers(&[("x-c", "c"), ("x-auth-subject", "sub")]);
    let mut config = config(vec![inline(rules, &[key.public_jwk()])]);
    config.limits =
        Limits { token_bytes: 3 << 20, token_values: 200_000, token_depth: 32, ..Limits::default() };
    let service = Running::start(config, fixed_clock()).await;
    let open = format!(r#"{{"iss":"{ISSUER}","aud":"orders-api","sub":"alice","exp":{}"#, NOW + 300);
    let sign = |more: &str| {
        let payload = format!("{open},{more}}}");
        key.sign_raw(header_text(&key).as_bytes(), payload.as_bytes())
    };
    let members = |count: usize, name: &dyn Fn(usize) -> String| {
        (0..count).map(|i| format!("{:?}:{i}", name(i))).collect::<Vec<_>>().join(",")
    };
    let groups = vec![r#""group""#; 100_000].join(",");
    let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    let exactly = 8 * 1024 - "x-c".len() - "x-auth-subjectalice".len();
    let mut wrong = Vec::new();
    for (id, what, more, reason) in [
        ("D25", "100 KiB", format!(r#""c":"{}""#, "x".repeat(100 * 1024)), "claim_too_large"),
        ("D25", "8 KiB to the octet", format!(r#""c":"{}""#, "x".repeat(exactly)), "ok"),
        ("D25", "one octet more", format!(r#""c":"{}""#, "x".repeat(exactly + 1)), "claim_too_large"),
        ("D25", "8 KiB once encoded", format!(r#""c":"{}""#, "é".repeat(2_000)), "claim_too_large"),
        ("D25", "100,000 groups", format!(r#""c":[{groups}]"#), "claim_too_large"),
        (
            "D25",
            "a large object",
            format!(r#""c":{{{}}}"#, members(5_000, &|i| i.to_string())),
            "claim_too_large",
        ),
        ("D25", "large, and no header's", format!(r#""d":"{}""#, "x".repeat(100 * 1024)), "ok"),
        ("D25", "30 deep", format!(r#""c":{}"#, nested(30)), "ok"),
        ("D25", "100,000 deep", format!(r#""c":{}"#, nested(100_000)), "malformed"),
        ("D31", "50,000 members", members(50_000, &|i| format!("m{i}")), "ok"),
        (
            "D33",
            "members that collide in weak hashes",
            members(50_000, &|i| "Aa".repeat(i % 16) + &"BB".repeat(16 - i % 16) + &i.to_string()),
            "ok",
        ),
        ("D33", "a million digits", format!(r#""c":{}"#, "7".repeat(1_000_000)), "claim_too_large"),
        ("D33", "a million digits in nbf", format!(r#""nbf":0.{}"#, "7".repeat(1_000_000)), "ok"),
    ] {
        let token = sign(&more);
        #[allow(clippy::disallowed_methods, reason = "a test may take the time")]
        let before = Instant::now();
        let answer = service.bearer(&token).await;
        let elapsed = before.elapsed();
        wrong.extend(check_answer(id, what, &answer, reason, &[]));
        // Generous, for a busy machine and a debug build; quadratic work takes minutes.
        if elapsed > Duration::from_secs(5) {
            wrong.push(format!("{id} {what}: elapsed {elapsed:?}"));
        }
    }
    assert_no_errors(&wrong);
}

#[tokio::test]
async fn a_token_with_more_values_or_deeper_than_the_limits_is_malformed_and_a_thousand_roles_are_allowed() {
    let env = env(|_| {}).await;
    let own = env.claims().as_object().expect("claims").len();
    let ones = |count: usize| format!("[{}]", vec!["1"; count].join(","));
    let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    let header = |more: &str| {
        let header = header_text(&env.key);
        let header = format!("{},{more}}}", header.trim_end_matches('}'));
        env.key.sign_raw(header.as_bytes(), env.claims().to_string().as_bytes())
    };
    // A token as Keycloak issues it: realm roles, client roles, groups and scopes.
    let roles = |what: &str, count: usize| (0..count).map(|i| format!("{what}-{i}")).collect::<Vec<_>>();
    let mut like_keycloak = env.claims();
    let accounts = roles("client", 20).into_iter().map(|name| (name, json!({"roles": ["view", "manage"]})));
    for (name, value) in [
        ("realm_access", json!({"roles": roles("r", 1_000)})),
        ("resource_access", accounts.collect::<serde_json::Map<_, _>>().into()),
        ("groups", roles("/g", 50).into()),
        ("scope", "openid email profile".into()),
        ("email_verified", true.into()),
        ("allowed-origins", json!(["https://shop.example.com"])),
    ] {
        like_keycloak = with_claim(like_keycloak, name, value);
    }
    check_cases(
        &env,
        vec![
            case("D25", "a thousand roles", env.key.sign(&like_keycloak), "ok"),
            case("D25", "as many values as the limit", raw(&env, "x", &ones(4_096 - own - 1)), "ok"),
            case("D25", "one value more", raw(&env, "x", &ones(4_096 - own)), "malformed"),
            case("A29", "as deep as the limit", raw(&env, "x", &nested(15)), "ok"),
            case("A29", "one deeper", raw(&env, "x", &nested(16)), "malformed"),
            case("A29", "a header as deep as the limit", header(&format!("\"x\":{}", nested(15))), "ok"),
            case("A29", "a header that is deeper", header(&format!("\"x\":{}", nested(16))), "malformed"),
            case("A29", "a header of many values", header(&format!("\"x\":{}", ones(4_100))), "malformed"),
        ],
    )
    .await;
}

#[tokio::test]
async fn no_claim_of_an_unverified_token_is_forwarded() {
    let env = env(|_| {}).await;
    let attacker = SigningKey::generate("es", SigningAlgorithm::ES256);
    let forged = attacker.sign(&with_claim(env.claims(), "sub", "marker-of-attacker"));
    let answer = env.service.bearer(&forged).await;
    let mut secrets = parts(&forged);
    secrets.push("marker-of-attacker");
    assert_eq!(answer.faults("bad_signature", &secrets), Vec::<String>::new(), "D34");
    let names: Vec<&String> = answer.metadata.keys().collect();
    assert_eq!(names, ["decision_id", "provider", "reason"], "D34");
    // A token bound to its client's key is treated as a plain one: no proof of possession is required.
    let bound =
        with_claim(env.claims(), "cnf", json!({"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}));
    let answer = env.service.bearer(&env.key.sign(&bound)).await;
    assert_eq!(answer.reason(), "ok", "D32");
    // The same good token several times: there is no replay detection (H14).
    let good = env.key.sign(&with_claim(env.claims(), "jti", "once"));
    for _ in 0..3 {
        assert_eq!(env.service.bearer(&good).await.reason(), "ok", "H14 {}", split(&good).0);
    }
}
