//! Properties with random inputs: no input makes the service panic (P6), and only an unchanged token that its issuer signed is
//! ever allowed (P7).
//! Most tests call the core directly, which takes microseconds; those about requests use gRPC. A panic in the service would
//! lose the response and fail the test.

use std::cell::Cell;
use std::sync::Arc;

use envoy_types::pb::envoy::service::auth::v3::CheckRequest;
use http::HeaderName;
use percent_encoding::percent_decode_str;
use portcullis::access_request::AccessRequest;
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey, with_claim};
use portcullis::identity::{self, upstream_changes};
use portcullis::protected_headers::ProtectedHeaders;
use portcullis::validation::json::{Json, JsonLimits};
use portcullis::validation::key_set::KeySet;
use portcullis::validation::provider::{Provider, TokenSource};
use portcullis::validation::{self, Permanent, StaleCause, TokenLimits, UnixTime, ValidationError};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use prost::Message as _;
use serde_json::{Value, json};

use super::forge::base64url;
use crate::support::{
    Answer, Ask, NOW, Running, TestEnv, claim_headers, config, fixed_clock, inline, provider,
};

use SigningAlgorithm::{ES256, ES384, ES512, EdDSA, PS256, RS256};

const ISSUER: &str = "https://issuer.example";

/// No files of failed cases: the failing input is printed, and becomes a case of a table.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

fn rules() -> Provider {
    provider("demo", ISSUER)
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": "orders-api", "sub": "alice", "iat": NOW, "exp": NOW + 300})
}

fn key_set(keys: &[&SigningKey]) -> KeySet {
    let keys: Vec<Value> = keys.iter().map(|key| key.public_jwk()).collect();
    KeySet::parse(json!({"keys": keys}).to_string().as_bytes()).expect("the keys are usable")
}

/// The verdict of the core on a token. It must be the same if the token is parked before its signature is verified.
fn verify_token(token: &str, rules: &Provider, keys: &KeySet) -> Result<(), ValidationError> {
    let now = UnixTime::from_secs(NOW);
    let limits = TokenLimits::default();
    let token = validation::parse(token, &limits)?;
    let screened = validation::screen(token, rules, now)?;
    let validated = validation::try_validate(&screened, keys, now);
    let parked = screened.park();
    match (validated, parked.verify(keys, now)) {
        (Ok(validated), Ok(parked)) => {
            let parked = parked.read(&limits).expect("these bytes have been read before");
            assert_eq!((validated.claims(), validated.algorithm()), (parked.claims(), parked.algorithm()));
            assert!(Arc::ptr_eq(validated.key(), parked.key()));
            Ok(())
        }
        (validated, parked) => {
            let refused = validated.map(drop);
            assert_eq!(refused, parked.map(drop));
            refused
        }
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ((NOW - 100)..(NOW + 100)).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(json!(ISSUER)),
        Just(json!("orders-api")),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(".{0,6}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Whether the claims are good, without code of the service (RFC 7519 §4.1 and docs/attacks.md).
fn good_claims(claims: &Value) -> bool {
    let number = |name: &str| match &claims[name] {
        Value::Null => Some(None),
        Value::Number(number) => number.as_f64().map(Some),
        _ => None,
    };
    let (exp, nbf, iat) = (number("exp"), number("nbf"), number("iat"));
    let now = NOW as f64;
    let times = exp.is_some_and(|exp| exp.is_some_and(|exp| now < exp + 30.0))
        && nbf.is_some_and(|nbf| nbf.is_none_or(|nbf| nbf <= now + 30.0))
        && iat.is_some();
    let audience = match &claims["aud"] {
        Value::String(one) => one == "orders-api",
        Value::Array(several) => {
            several.iter().all(Value::is_string) && several.contains(&json!("orders-api"))
        }
        _ => false,
    };
    times && audience && claims["iss"] == ISSUER && matches!(claims["sub"], Value::Null | Value::String(_))
}

#[test]
fn a_signed_token_is_accepted_exactly_when_its_claims_are_good() {
    let key = SigningKey::generate("es", ES256);
    let keys = key_set(&[&key]);
    let rules = rules();
    let (good, bad) = (Cell::new(0), Cell::new(0));
    let members = prop::collection::vec(
        (prop::sample::select(vec!["iss", "aud", "sub", "exp", "nbf", "iat", "jti", ""]), any_json()),
        0..4,
    );
    TestRunner::new(cases(1_500))
        .run(&members, |members| {
            let claims = members.into_iter().fold(claims(), |mut claims, (name, value)| {
                claims[name] = value;
                claims
            });
            let verdict = verify_token(&key.sign(&claims), &rules, &keys);
            prop_assert_eq!(verdict.is_ok(), good_claims(&claims), "{} {:?}", claims, verdict);
            match verdict {
                Ok(()) => good.set(good.get() + 1),
                Err(ValidationError::Stale(cause)) => prop_assert!(false, "{cause:?}"),
                Err(ValidationError::Permanent(_)) => bad.set(bad.get() + 1),
            }
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
    let (good, bad) = (good.get(), bad.get());
    assert!(good > 20 && bad > 20, "both kinds came up: {good} good, {bad} bad");
}

#[test]
fn a_good_token_with_any_one_octet_changed_is_refused() {
    const OTHERS: &[u8] = b"AZaz09-_.=+/ \0\n~";
    let rules = rules();
    for algorithm in [ES256, EdDSA, ES384, ES512, RS256, PS256] {
        let key = SigningKey::pooled(0, "k", algorithm);
        let keys = key_set(&[&key]);
        let good = key.sign(&claims());
        assert_eq!(verify_token(&good, &rules, &keys), Ok(()), "{algorithm}");
        let refused = |token: &str, what: &str, at: usize| {
            assert!(verify_token(token, &rules, &keys).is_err(), "{algorithm} {what} at {at}: {token}");
        };
        for at in 0..good.len() {
            let (front, back) = good.split_at(at);
            for other in OTHERS.iter().map(|other| char::from(*other)) {
                if !back.starts_with(other) {
                    refused(&format!("{front}{other}{}", &back[1..]), "replaced", at);
                }
                refused(&format!("{front}{other}{back}"), "inserted", at);
            }
            refused(&format!("{front}{}", &back[1..]), "removed", at);
            refused(front, "cut", at);
            refused(&back[1..], "cut in front", at);
        }
        refused(&format!("{good}A"), "longer", good.len());
        refused(&format!("{good}{good}"), "twice", good.len());
    }
}

#[test]
fn a_good_signature_with_any_one_bit_flipped_is_refused() {
    let rules = rules();
    for algorithm in [ES256, EdDSA, RS256, PS256] {
        let key = SigningKey::pooled(0, "k", algorithm);
        let keys = key_set(&[&key]);
        let good = key.sign(&claims());
        let signature = super::forge::signature_of(&good);
        for bit in 0..signature.len() * 8 {
            let mut flipped = signature.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let verdict = verify_token(&super::forge::with_signature(&good, &flipped), &rules, &keys);
            let refused = Err(ValidationError::Stale(StaleCause::BadSignature));
            assert_eq!(verdict, refused, "C8 {algorithm} bit {bit}");
        }
    }
}

#[test]
fn a_token_that_expires_while_it_waits_for_keys_is_expired_and_not_stale() {
    let (rules, key) = (rules(), SigningKey::generate("k", ES256));
    let text = key.sign(&claims());
    let token = validation::parse(&text, &TokenLimits::default()).expect("well formed");
    let screened = validation::screen(token, &rules, UnixTime::from_secs(NOW)).expect("good for 300 s");
    let keys = key_set(&[&key]);
    // With the leeway of 30 s.
    let last = UnixTime::from_secs(NOW + 329);
    assert!(validation::try_validate(&screened, &keys, last).is_ok());
    for keys in [keys, KeySet::default()] {
        let late = validation::try_validate(&screened, &keys, UnixTime::from_secs(NOW + 330));
        assert_eq!(late.map(drop), Err(ValidationError::Permanent(Permanent::Expired)));
        let parked = screened.clone().park();
        let late = parked.verify(&keys, UnixTime::from_secs(NOW + 330));
        assert_eq!(late.map(drop), Err(ValidationError::Permanent(Permanent::Expired)));
    }
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn unsigned_text_is_refused(
        parts in prop::collection::vec(".{0,40}", 0..6),
        header in any_json(),
        payload in any_json(),
        signature in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let key = SigningKey::generate("es", ES256);
        let (rules, keys) = (rules(), key_set(&[&key]));
        prop_assert!(verify_token(&parts.join("."), &rules, &keys).is_err());
        let by_value = |header: &Value, payload: &Value| {
            let token = super::forge::token(&header.to_string(), &payload.to_string(), &signature);
            verify_token(&token, &rules, &keys)
        };
        prop_assert!(by_value(&header, &payload).is_err());
        // Everything is valid but the signature: the best forgery.
        prop_assert!(by_value(&key.header(), &claims()).is_err());
        prop_assert!(by_value(&key.header(), &payload).is_err());
        prop_assert!(by_value(&header, &claims()).is_err());
    }

    #[test]
    fn a_key_set_of_any_octets_is_read_or_refused(
        octets in prop::collection::vec(any::<u8>(), 0..200),
        document in any_json(),
        name in prop::sample::select(vec!["kty", "crv", "x", "y", "n", "e", "alg", "use", "kid", "key_ops", "d", "k"]),
        value in any_json(),
        number in prop::collection::vec(any::<u8>(), 0..300),
        at in any::<prop::sample::Index>(),
    ) {
        let read = |document: &[u8]| {
            // A parsed key set can be used, and never verifies what was not signed.
            if let Ok(keys) = KeySet::parse(document) {
                let forged = super::forge::token(r#"{"alg":"ES256"}"#, &claims().to_string(), &number);
                prop_assert!(verify_token(&forged, &rules(), &keys).is_err());
            }
            let _ = KeySet::parse_inline(document);
            Ok(())
        };
        read(&octets)?;
        read(json!({"keys": document}).to_string().as_bytes())?;
        for key in [
            SigningKey::generate("k", ES256), SigningKey::generate("k", EdDSA),
            SigningKey::generate("k", ES512), SigningKey::pooled(0, "k", RS256),
        ] {
            let mut jwk = key.public_jwk();
            jwk[name] = value.clone();
            read(json!({"keys": [jwk]}).to_string().as_bytes())?;
            let mut jwk = key.public_jwk();
            jwk[name] = json!(base64url(&number));
            let mut text = json!({"keys": [jwk]}).to_string().into_bytes();
            read(&text)?;
            let at = at.index(text.len());
            text[at] = number.first().copied().unwrap_or_default();
            read(&text)?;
        }
    }

    #[test]
    fn different_claims_have_different_header_values(claim in ".{0,40}", members in prop::collection::vec("[ -~é]{1,8}", 2..5)) {
        let mut rules = rules();
        rules.claim_headers = claim_headers(&[("x-text", "text"), ("x-list", "list")]);
        let claims = json!({"text": claim, "list": members});
        let claims = Json::parse(claims.to_string().as_bytes(), &JsonLimits::default()).expect("JSON");
        let source = TokenSource::default();
        let request = AccessRequest::new(b"GET", b"api.example.com", b"/", std::iter::empty().collect(), portcullis::clock::monotonic().into_std());
        let (protected, places) = (ProtectedHeaders::default(), [&source]);
        let headers = identity::claim_headers(&claims, &rules, "", 8 * 1024).expect("small enough");
        let changes = upstream_changes(&headers, &rules, &protected, &request, &places).expect("nothing to remove");
        let header = |name: &str| {
            changes.set().find(|(set, _)| *set == name).map(|(_, value)| value.to_str().expect("text"))
        };
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        match header("x-text") {
            None => prop_assert_eq!(claim, ""),
            Some(value) => {
                prop_assert!(value.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{:?}", value);
                prop_assert_eq!(value.trim(), value, "HTTP strips white space at the ends");
                prop_assert_eq!(decoded(value), claim);
            }
        }
        let list: Vec<String> =
            header("x-list").unwrap_or_default().split(',').map(|member| decoded(member.trim())).collect();
        prop_assert_eq!(list, members);
    }
}

#[test]
fn a_request_of_any_octets_is_answered_and_never_allowed() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let key = SigningKey::generate("es", ES256);
    let mut rules = rules();
    rules.forward_token = false;
    rules.token_from = vec![
        TokenSource::default(),
        TokenSource::Cookie("c".to_owned()),
        TokenSource::Query("q".to_owned()),
        TokenSource::Header { name: HeaderName::from_static("x-token"), scheme: None },
    ];
    let service = runtime.block_on(async {
        Running::start(config(vec![inline(rules, &[key.public_jwk()])]), fixed_clock()).await
    });
    let name = prop_oneof![
        Just("authorization".to_owned()),
        Just("cookie".to_owned()),
        Just("x-token".to_owned()),
        Just("content-type".to_owned()),
        Just("x_auth_subject".to_owned()),
        ".{0,12}",
    ];
    let value = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..60),
        "[Bb]earer [A-Za-z0-9_.=-]{0,40}".prop_map(String::into_bytes),
        "c=[A-Za-z0-9_.=-]{0,20}(; ?c=.{0,8})?".prop_map(String::into_bytes),
    ];
    let headers = prop::collection::vec((name, value), 0..6);
    TestRunner::new(cases(400))
        .run(&(headers, ".{0,40}", ".{0,40}"), |(headers, path, text)| {
            let mut ask = Ask::default().path(path).header("x-token", text);
            for (name, value) in headers {
                ask = ask.raw_header(name, value);
            }
            let answer = runtime.block_on(service.ask(ask));
            prop_assert!(!answer.is_allowed(), "{answer:?}");
            prop_assert!([400, 401].contains(&answer.http_status), "{answer:?}");
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));

    // Bytes that may not be a CheckRequest, with a good token in some of them.
    let good = runtime.block_on(async { service.bearer(&key.sign(&claims())).await });
    assert_eq!(good.reason(), "ok");
    let message = Ask::default().header("authorization", "Bearer x.y.z").into_check().encode_to_vec();
    TestRunner::new(cases(400))
        .run(&(any::<prop::sample::Index>(), any::<u8>()), |(at, octet)| {
            let mut octets = message.clone();
            let at = at.index(octets.len());
            octets[at] = octet;
            if let Ok(check) = CheckRequest::decode(octets.as_slice())
                && let Ok(answer) = runtime.block_on(service.send(check))
            {
                prop_assert!(!Answer::read(answer).is_allowed());
            }
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}

#[tokio::test]
async fn no_number_of_tokens_that_fail_the_screen_causes_a_fetch() {
    let key = SigningKey::generate("es", ES256);
    let env = TestEnv::start(&[&key], |_| {}).await;
    let claims = env.claims();
    let before = env.issuer.requests().len();
    let stranger = SigningKey::generate("unknown", ES256);
    for i in 0..300 {
        let token = match i % 6 {
            0 => stranger.sign(&with_claim(claims.clone(), "exp", i)),
            1 => stranger.sign(&with_claim(claims.clone(), "aud", format!("other-{i}"))),
            2 => stranger.sign(&with_claim(claims.clone(), "iss", format!("https://{i}.example"))),
            3 => stranger.sign(&with_claim(claims.clone(), "nbf", NOW + 31 + i)),
            4 => format!("{}.{}", stranger.sign(&claims), i),
            _ => stranger.sign_with_header(&json!({"alg": "HS256", "kid": i.to_string()}), &claims),
        };
        let answer = env.service.bearer(&token).await;
        assert!(!answer.is_allowed(), "P5");
    }
    assert_eq!(env.issuer.requests().len(), before, "P5");
}
