//! Section H: logs, metrics and pages never contain a token, a secret, or a line that a client forged.

use portcullis::clock::Clock;
use portcullis::commands::issuer::{Issuer, SigningAlgorithm, SigningKey, with_claim};
use portcullis::validation::algorithm::Algorithm;
use portcullis::validation::provider::TokenSource;
use serde_json::{Value, json};

use super::forge::{base64url, hmac, split, with_signature};
use crate::support::log::{Format, capture, logged};
use crate::support::{Ask, NOW, Running, config, fetching, fixed_clock, inline, prompt_refresh, provider};

use SigningAlgorithm::{ES256, HS256};

#[tokio::test]
async fn no_token_and_no_secret_is_in_logs_metrics_or_pages() {
    capture();
    let issuer = Issuer::start().await.expect("bound");
    let key = issuer.rotate(ES256);
    let private_half = base64url([0x42; 32]);
    let mut leaked = SigningKey::generate("leaked", ES256).public_jwk();
    leaked["d"] = json!(private_half);
    let published_secret = hmac(Some("published"), HS256, &[0x43; 32]).public_jwk();
    issuer.publish_json(json!({"keys": [key.public_jwk(), leaked, published_secret]}));
    let secret = hmac(Some("secret"), HS256, b"the-shared-secret-of-this-very-test");
    let mut fetched = provider("fetched", issuer.issuer());
    fetched.token_from = vec![
        TokenSource::default(),
        TokenSource::Cookie("access_token".to_owned()),
        TokenSource::Query("t".to_owned()),
    ];
    let mut shared = provider("shared", "https://shared.example");
    shared.algorithms = vec![Algorithm::HS256];
    let config =
        config(vec![fetching(fetched, &issuer, prompt_refresh()), inline(shared, &[secret.public_jwk()])]);
    let debugged = format!("{config:?} {config:#?}");
    let service = Running::start(config, fixed_clock()).await;

    let claims = issuer.claims(NOW);
    let attacker = SigningKey::generate("key-1", ES256);
    let good = key.sign(&claims);
    let shared = secret.sign(&with_claim(claims.clone(), "iss", "https://shared.example"));
    let marked = with_claim(claims.clone(), "email", "alice.marker@example.com");
    let tokens = vec![
        (good.clone(), "ok"),
        (key.sign(&marked), "ok"),
        (shared.clone(), "ok"),
        (with_signature(&shared, &[1; 32]), "bad_signature"),
        (attacker.sign(&claims), "bad_signature"),
        (attacker.with_kid("unknown").sign(&claims), "key_unknown"),
        (attacker.with_kid(None).sign(&claims), "key_unknown"),
        (key.sign(&with_claim(claims.clone(), "exp", 1)), "expired"),
        (key.sign(&with_claim(claims.clone(), "aud", "other-audience")), "audience_mismatch"),
        (key.sign(&with_claim(claims.clone(), "iss", "https://other.example")), "issuer_unknown"),
        (key.sign(&with_claim(claims.clone(), "sub", 7)), "claim_malformed"),
        (key.sign(&with_claim(claims.clone(), "tenant_id", "x".repeat(9_000))), "claim_too_large"),
        (key.sign(&with_claim(claims.clone(), "fill", "x".repeat(20_000))), "token_too_large"),
        (format!("{good}="), "malformed"),
        (format!("{good}.{good}"), "malformed"),
        ("opaque-token-of-another-kind".to_owned(), "malformed"),
        (format!("{}.{}.", base64url(r#"{"alg":"none"}"#), split(&good).1), "algorithm_not_allowed"),
    ];
    let mut secrets: Vec<String> = vec![
        private_half,
        base64url([0x43; 32]),
        base64url("the-shared-secret-of-this-very-test"),
        "the-shared-secret".to_owned(),
        "alice.marker".to_owned(),
        "dXNlcjpwYXNzd29yZA".to_owned(),
        "session-of-alice".to_owned(),
    ];
    let (mut answers, mut pages) = (String::new(), String::new());
    for (token, reason) in &tokens {
        let answer = service.bearer(token).await;
        assert_eq!(answer.reason(), *reason, "{token:.60}");
        if *reason != "ok" {
            answers += &format!("{answer:?}");
        }
        for ask in [
            Ask::default().header("cookie", format!("sid=session-of-alice; access_token={token}")),
            Ask::default().path(format!("/orders?t={token}&u=session-of-alice")),
            Ask::default().header("authorization", format!("Bearer {token}")).path(format!("/?t={good}x")),
            Ask::default().raw_header("authorization", format!("Bearer {token}\u{1}\r\n")),
            Ask::default().header("authorization", format!("DPoP {token}")),
        ] {
            if let Some(id) = service.ask(ask).await.metadata.get("decision_id") {
                pages += &service.admin(&format!("/decisions/{id}")).await;
            }
        }
        secrets.push(token.clone());
        secrets.extend(token.split('.').map(str::to_owned));
    }
    service.ask(Ask::default().header("authorization", "Basic dXNlcjpwYXNzd29yZA==")).await;

    let outputs = [
        logged(Format::Json),
        logged(Format::Text),
        service.admin("/metrics").await,
        service.admin("/keys").await,
        service.admin("/readyz").await,
        service.service().metrics().encode().expect("metrics are text"),
        debugged,
        pages,
    ]
    .join("\n");
    assert!(!answers.contains("other-audience"), "details are for operators, not for clients");
    assert!(!answers.contains("ask the issuer"), "so is the advice");
    // The test would pass if the service logged nothing, so check that it does.
    for word in [
        "key set refreshed",
        "request denied",
        "bad_signature",
        "key skipped",
        "\"DEBUG\"",
        "portcullis_decisions_total",
        "\"steps\":",
        "other-audience",
    ] {
        assert!(outputs.contains(word), "H1: nothing about {word} in {outputs:.2000}");
    }
    for secret in secrets.iter().filter(|secret| secret.len() >= 8) {
        assert!(!outputs.contains(secret.as_str()), "H1 H2 F13: {secret:.60} is shown");
    }
}

/// Names that would forge lines, colours and JSON members.
const FORGERIES: [&str; 8] = [
    "a\nlevel=ERROR forged",
    "a\r\n{\"level\":\"ERROR\",\"message\":\"forged\"}",
    "\u{1b}[2J\u{1b}[31mforged",
    "a\",\"verdict\":\"allow\",\"x\":\"",
    "a\u{0}\u{7}\u{8}\u{7f}\u{9b}31m",
    "a\u{2028}b\u{2029}c\u{85}d",
    "\u{202e}reversed",
    "%s%n${jndi:ldap://x}",
];

#[tokio::test]
async fn an_untrusted_name_cannot_escape_its_log_field() {
    capture();
    let issuer = Issuer::start().await.expect("bound");
    let key = SigningKey::generate("real", ES256);
    // Names from an issuer are untrusted too.
    let mut keys = vec![key.public_jwk()];
    for forgery in FORGERIES {
        keys.push(SigningKey::generate(forgery, ES256).public_jwk());
        keys.push(json!({"kty": "none", "kid": forgery}));
    }
    keys.push(json!({"kty": "none", "kid": "k".repeat(1024)}));
    issuer.publish_json(json!({"keys": keys}));
    let providers = vec![fetching(provider("demo", issuer.issuer()), &issuer, prompt_refresh())];
    let service = Running::start(config(providers), fixed_clock()).await;
    let claims = issuer.claims(NOW);
    let long = "k".repeat(8 * 1024);
    let mut asked = 0;
    for forgery in FORGERIES.into_iter().chain([long.as_str()]) {
        for (token, reason) in [
            (key.with_kid(format!("{forgery}?").as_str()).sign(&claims), "key_unknown"),
            (key.sign(&with_claim(claims.clone(), "iss", forgery)), "issuer_unknown"),
            (key.sign(&with_claim(claims.clone(), "aud", forgery)), "audience_mismatch"),
            (key.sign(&with_claim(claims.clone(), "sub", forgery)), "ok"),
        ] {
            let reason = match reason {
                "ok" if forgery == long => "claim_too_large",
                "key_unknown" if forgery == long => "malformed",
                reason => reason,
            };
            let answer = service.bearer(&token).await;
            assert_eq!(answer.reason(), reason, "H3 {forgery:.40?}");
            asked += 1;
        }
    }
    for json in [true, false] {
        let text = if json { logged(Format::Json) } else { logged(Format::Text) };
        let mut decided = 0;
        for line in text.split_terminator('\n') {
            let control = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202e}');
            // JSON may contain a line separator unescaped, but no line end, no colour code and no additional member.
            let is_control = |c: char| if json { c.is_ascii_control() } else { control(c) };
            assert!(!line.contains(is_control), "H3 {line:?}");
            assert!(line.len() < 8 * 1024, "H3: a line of {} bytes", line.len());
            decided += usize::from(line.contains("request denied") || line.contains("request allowed"));
            if json {
                let line: Value = serde_json::from_str(line).expect("a line of JSON");
                assert_ne!(line["level"], "ERROR", "H3 {line}");
                assert_eq!(line["message"].as_str().map(|text| text.contains("forged")), Some(false));
            } else {
                assert!(!line.starts_with("level=") && !line.starts_with('{'), "H3 {line}");
            }
        }
        assert_eq!(decided, asked, "H3: one line a decision");
    }
}

#[tokio::test]
async fn a_thousand_unknown_names_add_no_metric_series() {
    let key = SigningKey::generate("real", ES256);
    let issuer = "https://issuer.example";
    let providers = vec![inline(provider("demo", issuer), &[key.public_jwk()])];
    let service = Running::start(config(providers), fixed_clock()).await;
    let claims = json!({"iss": issuer, "aud": "orders-api", "sub": "alice", "exp": NOW + 300});
    let ask = async |i: usize| {
        let name = format!("made-up-{i}");
        let by_kid = key.with_kid(name.as_str()).sign(&claims);
        let by_issuer = key.sign(&with_claim(claims.clone(), "iss", format!("https://{name}")));
        let by_subject = key.sign(&with_claim(claims.clone(), "sub", name.as_str()));
        assert_eq!(service.bearer(&by_kid).await.reason(), "key_unknown");
        assert_eq!(service.bearer(&by_issuer).await.reason(), "issuer_unknown");
        assert_eq!(service.bearer(&by_subject).await.reason(), "ok");
        let elsewhere = Ask::default().path(format!("/{name}")).header(name.clone(), name.clone());
        assert_eq!(service.ask(elsewhere).await.reason(), "token_missing");
    };
    let series = || {
        let text = service.service().metrics().encode().expect("metrics are text");
        assert!(!text.contains("made-up"), "H4 {text:.2000}");
        text.lines().count()
    };
    ask(0).await;
    let before = series();
    for i in 1..=1_000 {
        ask(i).await;
    }
    assert_eq!(series(), before, "H4");
}

#[tokio::test]
async fn the_system_clock_has_the_same_verdicts_as_a_fixed_one() {
    let key = SigningKey::generate("real", ES256);
    let issuer = "https://issuer.example";
    let providers = vec![inline(provider("demo", issuer), &[key.public_jwk()])];
    let service = Running::start(config(providers), Clock::System).await;
    let now = Clock::System.now().as_secs_f64() as i64;
    for (exp, reason) in [(now + 60, "ok"), (now - 60, "expired"), (0, "expired")] {
        let claims = json!({"iss": issuer, "aud": "orders-api", "exp": exp});
        assert_eq!(service.bearer(&key.sign(&claims)).await.reason(), reason, "D9");
    }
}
