//! Section A: the algorithm and the other parameters of a token header.

use portcullis::commands::issuer::{Issuer, SigningAlgorithm, SigningKey, with_claim};
use portcullis::validation::algorithm::Algorithm;
use portcullis::validation::provider::TokenTypes;
use serde_json::{Value, json};

use super::case::{Case, assert_no_errors, case, check_answer, check_cases, parts};
use super::forge::{
    base64url, header_text, hmac, public_forms, signature_of, signed, split, token, with_signature,
};
use crate::support::{Running, TestEnv, config, fixed_clock, inline, provider};

fn every_kind() -> [SigningKey; 5] {
    [
        SigningKey::generate("es", SigningAlgorithm::ES256),
        SigningKey::pooled(0, "rsa", SigningAlgorithm::RS256),
        SigningKey::generate("ed", SigningAlgorithm::EdDSA),
        SigningKey::generate("es384", SigningAlgorithm::ES384),
        SigningKey::generate("es512", SigningAlgorithm::ES512),
    ]
}

#[tokio::test]
async fn a_token_without_a_signature_is_refused_in_every_form() {
    let keys = every_kind();
    let env = TestEnv::start(&keys.each_ref(), |_| {}).await;
    let claims = env.claims();
    let payload = claims.to_string();
    let rsa = &keys[1];
    let mut cases: Vec<Case> = keys
        .iter()
        .map(|key| case("A0", format!("good {}", key.algorithm()), key.sign(&claims), "ok"))
        .collect();
    for alg in ["none", "None", "NONE", "nOnE"] {
        let id = if alg == "none" { "A1" } else { "A2" };
        for kid in ["", r#","kid":"rsa""#] {
            let header = format!(r#"{{"alg":"{alg}"{kid}}}"#);
            cases.push(case(id, &header, token(&header, &payload, &[]), "algorithm_not_allowed"));
            let real = signed(rsa, &header, &claims);
            cases.push(case("A3", &header, real, "algorithm_not_allowed"));
            let junk = token(&header, &payload, b"signature");
            cases.push(case("A3", &header, junk, "algorithm_not_allowed"));
        }
        let header = format!(r#"{{"alg":"{alg}"}}"#);
        let two_parts = token(&header, &payload, &[]).trim_end_matches('.').to_owned();
        cases.push(case("A1", format!("{alg}, two parts"), two_parts, "malformed"));
    }
    for key in &keys {
        let what = key.algorithm().name();
        let good = key.sign(&claims);
        let (header, payload, _) = split(&good);
        cases.push(case("A4", what, format!("{header}.{payload}."), "malformed"));
        cases.push(case("A4", what, format!("{header}.{payload}"), "malformed"));
        cases.push(case("A4", what, format!("{header}.{payload}.="), "malformed"));
        cases.push(case("A4", what, with_signature(&good, &[0]), "bad_signature"));
        let zeros = vec![0; signature_of(&good).len()];
        cases.push(case("A4", what, with_signature(&good, &zeros), "bad_signature"));
    }
    check_cases(&env, cases).await;
}

#[tokio::test]
async fn a_public_key_is_never_an_hmac_secret() {
    use SigningAlgorithm::{HS256, HS384, HS512};
    let keys = every_kind();
    // The issuer also publishes a real HMAC key, which must not be used either.
    let oct = hmac(Some("oct"), HS256, &[7; 64]);
    let env = TestEnv::start(&[&keys[0], &keys[1], &keys[2], &keys[3], &keys[4], &oct], |_| {}).await;
    let claims = env.claims();
    let mut cases = vec![
        case("A8", "the oct key of the set", oct.sign(&claims), "algorithm_not_allowed"),
        case("A8", "without kid", oct.with_kid(None).sign(&claims), "algorithm_not_allowed"),
    ];
    for key in &keys {
        let id = if key.algorithm() == SigningAlgorithm::RS256 { "A5" } else { "A6" };
        for (form, secret) in public_forms(&key.public_jwk()) {
            for kid in [None, key.kid()] {
                let forged = hmac(kid, HS256, &secret).sign(&claims);
                cases.push(case(id, &form, forged, "algorithm_not_allowed"));
            }
        }
    }
    check_cases(&env, cases).await;

    // HMAC is allowed because of a secret in the configuration: key types are still kept apart.
    let secret = hmac(Some("secret"), HS256, &[9; 64]);
    let mut rules = provider("demo", "https://issuer.example");
    rules.algorithms = Algorithm::ALL.to_vec();
    let mut jwks: Vec<Value> = keys.iter().map(SigningKey::public_jwk).collect();
    jwks.push(secret.public_jwk());
    let service = Running::start(config(vec![inline(rules, &jwks)]), fixed_clock()).await;
    let claims = with_claim(claims, "iss", "https://issuer.example");
    let good = service.bearer(&secret.sign(&claims)).await;
    let mut wrong = check_answer("A8", "the configured secret", &good, "ok", &[]);
    for key in &keys {
        for (form, secret) in public_forms(&key.public_jwk()) {
            for algorithm in [HS256, HS384, HS512] {
                for (kid, reason) in [
                    (None, "key_unknown"),
                    (key.kid(), "key_unknown"),
                    // Bound to HS256 by its `alg`.
                    (Some("secret"), if algorithm == HS256 { "bad_signature" } else { "key_unknown" }),
                ] {
                    let forged = hmac(kid, algorithm, &secret).sign(&claims);
                    let answer = service.bearer(&forged).await;
                    let what = format!("{} {form} {algorithm} {kid:?}", key.algorithm());
                    wrong.extend(check_answer("A5-A7", &what, &answer, reason, &parts(&forged)));
                }
            }
        }
    }
    assert_no_errors(&wrong);
}

#[tokio::test]
async fn an_algorithm_is_valid_only_with_a_key_for_it() {
    use SigningAlgorithm::{PS256, PS384, PS512, RS256, RS384};
    let keys = every_kind();
    let pss = SigningKey::pooled(1, "pss", PS256);
    let env = TestEnv::start(&[&keys[0], &keys[1], &keys[2], &keys[3], &keys[4], &pss], |rules| {
        rules.algorithms.retain(|algorithm| *algorithm != Algorithm::PS512);
    })
    .await;
    let claims = env.claims();
    let rsa = &keys[1];
    let swapped = |key: &SigningKey, algorithm| {
        key.with_alg(algorithm).expect("an RSA key signs with it").sign(&claims)
    };
    let mut cases = vec![
        case("A9", "not on the provider's list", swapped(rsa, PS512), "algorithm_not_allowed"),
        case("A10", "a PKCS#1 key, PSS", swapped(rsa, PS256), "key_unknown"),
        case("A10", "a PKCS#1 key, another hash", swapped(rsa, RS384), "key_unknown"),
        case("A10", "a PSS key, PKCS#1", swapped(&pss, RS256), "key_unknown"),
        case("A10", "a PSS key, another hash", swapped(&pss, PS384), "key_unknown"),
        case("A10", "a PSS key as it is", pss.sign(&claims), "ok"),
    ];
    // The kid of one key and the alg of each other one, with every signature.
    for named in &keys {
        for other in &keys {
            let (kid, alg) = (named.kid().unwrap_or_default(), other.algorithm());
            let header = format!(r#"{{"alg":"{alg}","kid":"{kid}"}}"#);
            for signer in &keys {
                let reason = match (named.kid() == other.kid(), named.kid() == signer.kid()) {
                    (true, true) => "ok",
                    (true, false) => "bad_signature",
                    (false, _) => "key_unknown",
                };
                let what = format!("{header} by {}", signer.algorithm());
                cases.push(case("A11", what, signed(signer, &header, &claims), reason));
            }
        }
    }
    for alg in [
        "ED25519",
        "ed25519",
        "Ed448",
        "ESP521",
        "eddsa",
        "EdDSA ",
        "ES521",
        "ES256K",
        "rs256",
        "Rs256",
        "RS256 ",
        " RS256",
        "RS256\\u0000",
        "RS-256",
        "RSA256",
        "SHA256",
        "InvalidAlg",
        "RS1",
        "PS1",
        "HS1",
        "RSA-OAEP",
        "dir",
        "A128KW",
        "HS256",
        "HS512",
        "ML-DSA-44",
        "RS256,ES256",
        "*",
        "",
        "ＲＳ256",
    ] {
        for key in [&keys[0], rsa] {
            let header = format!(r#"{{"alg":"{alg}","kid":"{}"}}"#, key.kid().unwrap_or_default());
            cases.push(case("A12", &header, signed(key, &header, &claims), "algorithm_not_allowed"));
        }
    }
    for alg in ["null", "256", "true", "[]", r#"["RS256"]"#, "{}", r#"{"RS256":1}"#, "1.5e3"] {
        let header = format!(r#"{{"alg":{alg},"kid":"rsa"}}"#);
        cases.push(case("A13", &header, signed(rsa, &header, &claims), "algorithm_not_allowed"));
    }
    for header in [r#"{"typ":"JWT"}"#, "{}", r#"{"ALG":"RS256"}"#, r#"{"Alg":"RS256","kid":"rsa"}"#] {
        cases.push(case("A13", header, signed(rsa, header, &claims), "algorithm_not_allowed"));
    }
    check_cases(&env, cases).await;
}

#[tokio::test]
async fn keys_and_addresses_inside_a_token_are_never_used() {
    let keys = every_kind();
    let env = TestEnv::start(&keys.each_ref(), |_| {}).await;
    let attacker_server = Issuer::start().await.expect("port 0 can be bound");
    let attacker = SigningKey::generate("attacker", SigningAlgorithm::ES256);
    attacker_server.publish(&[&attacker]);
    let claims = env.claims();
    let certificate =
        rcgen::generate_simple_self_signed(["issuer.example".to_owned()]).expect("a certificate can be made");
    let chain = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(certificate.cert.der())
    };
    let extras: Vec<(&str, Value)> = vec![
        ("A14", json!({"jwk": attacker.public_jwk()})),
        ("A14", json!({"jwk": {"kty": "oct", "k": "AAAA"}})),
        ("A14", json!({"jwk": null})),
        ("A15", json!({"jku": attacker_server.jwks_uri()})),
        ("A15", json!({"jku": format!("http://user@{}/", attacker_server.address())})),
        ("A15", json!({"jku": "http://169.254.169.254/latest/meta-data"})),
        ("A15", json!({"jku": "file:///etc/passwd"})),
        ("A15", json!({"jku": 7})),
        ("A16", json!({"x5u": attacker_server.jwks_uri()})),
        ("A16", json!({"x5c": [chain.clone()]})),
        ("A16", json!({"x5t": "AAAA", "x5t#S256": "AAAA"})),
        ("A16", json!({"iss": attacker_server.issuer(), "url": attacker_server.jwks_uri()})),
        ("A15", json!({"openid-configuration": attacker_server.discovery_uri()})),
    ];
    let mut cases = Vec::new();
    for (id, extra) in &extras {
        let with = |key: &SigningKey, kid: Option<&str>| {
            let mut header = key.header();
            match kid {
                Some(kid) => header["kid"] = json!(kid),
                None => drop(header.as_object_mut().map(|header| header.remove("kid"))),
            }
            for (name, value) in extra.as_object().into_iter().flatten() {
                header[name] = value.clone();
            }
            key.sign_with_header(&header, &claims)
        };
        let what = extra.to_string();
        cases.push(case(id, &what, with(&attacker, Some("attacker")), "key_unknown"));
        cases.push(case(id, &what, with(&attacker, None), "key_unknown"));
        cases.push(case(id, &what, with(&attacker, Some("es")), "bad_signature"));
        cases.push(case("A17", &what, with(&keys[0], Some("es")), "ok"));
        cases.push(case("A17", &what, with(&keys[0], None), "ok"));
    }
    check_cases(&env, cases).await;
    assert_eq!(attacker_server.requests(), Vec::<String>::new(), "no request to the attacker's server");
}

#[tokio::test]
async fn parameters_that_change_what_a_token_means_are_refused() {
    let key = SigningKey::generate("es", SigningAlgorithm::ES256);
    let env = TestEnv::start(&[&key], |_| {}).await;
    let claims = env.claims();
    let mut cases = Vec::new();
    let mut header = |id, extra: &str, reason| {
        let header = format!(r#"{{"alg":"ES256","kid":"es",{extra}}}"#);
        cases.push(case(id, extra, signed(&key, &header, &claims), reason));
    };
    header("A18", r#""crit":["exp-ext"],"exp-ext":1"#, "malformed");
    header("A18", r#""crit":["http://example.com/x"],"http://example.com/x":true"#, "malformed");
    for crit in [
        "[]",
        r#""exp""#,
        "[null]",
        r#"["alg"]"#,
        r#"["kid"]"#,
        r#"["missing"]"#,
        r#"["x","x"]"#,
        "null",
        "{}",
        "true",
        "0",
        r#"[["x"]]"#,
        r#"[""]"#,
    ] {
        header("A19", &format!(r#""crit":{crit},"x":1"#), "malformed");
    }
    for b64 in [
        r#""b64":false,"crit":["b64"]"#,
        r#""b64":true,"crit":["b64"]"#,
        r#""b64":false"#,
        r#""b64":true"#,
        r#""b64":null"#,
        r#""b64":"false""#,
    ] {
        header("A20", b64, "malformed");
    }
    for cty in ["JWT", "jwt", "application/jwt", "Application/JWT"] {
        // Several signers write it over claims, which are no nested token.
        header("A23", &format!(r#""cty":"{cty}""#), "ok");
    }
    header("A23", r#""cty":null"#, "ok");
    header("A23", r#""cty":1"#, "malformed");
    header("A24", r#""zip":"DEF""#, "malformed");
    header("A24", r#""zip":null"#, "malformed");
    header("A24", r#""enc":"A256GCM""#, "ok"); // without meaning in a JWS: ignored (RFC 7515 §4)

    let inner = key.sign(&claims);
    let plain = header_text(&key);
    let nested = key.sign_raw(br#"{"alg":"ES256","kid":"es","cty":"JWT"}"#, inner.as_bytes());
    let nested_silently = key.sign_raw(plain.as_bytes(), inner.as_bytes());
    let quoted = key.sign_raw(plain.as_bytes(), format!("\"{inner}\"").as_bytes());
    // RFC 1951, one stored block of `{}`.
    let deflated = key
        .sign_raw(br#"{"alg":"ES256","kid":"es","zip":"DEF"}"#, &[0x01, 0x02, 0x00, 0xfd, 0xff, b'{', b'}']);
    cases.push(case("A23", "a token as payload", nested, "malformed"));
    cases.push(case("A23", "a token as payload, no cty", nested_silently, "malformed"));
    cases.push(case("A23", "a token as a JSON string", quoted, "malformed"));
    cases.push(case("A24", "a deflated payload", deflated, "malformed"));
    check_cases(&env, cases).await;
}

#[tokio::test]
async fn the_type_of_a_token_is_compared_as_a_media_type() {
    let key = SigningKey::generate("es", SigningAlgorithm::ES256);
    let sign = |env: &TestEnv, typ: Option<&str>| {
        let typ = typ.map(|typ| format!(r#","typ":{typ}"#)).unwrap_or_default();
        signed(&key, &format!(r#"{{"alg":"ES256","kid":"es"{typ}}}"#), &env.claims())
    };
    let by_default = TestEnv::start(&[&key], |_| {}).await;
    let access_only = TestEnv::start(&[&key], |rules| {
        rules.token_types = TokenTypes::AnyOf(vec!["at+jwt".to_owned()]);
    })
    .await;
    let mut open = Vec::new();
    let mut strict = Vec::new();
    for (id, typ, expected_open, expected_strict) in [
        ("A21", None, "ok", "type_not_allowed"),
        ("A21", Some(r#""JWT""#), "ok", "type_not_allowed"),
        ("A21", Some(r#""at+jwt""#), "ok", "ok"),
        ("A21", Some(r#""dpop+jwt""#), "type_not_allowed", "type_not_allowed"),
        ("A21", Some(r#""logout+jwt""#), "type_not_allowed", "type_not_allowed"),
        ("A21", Some(r#""secevent+jwt""#), "type_not_allowed", "type_not_allowed"),
        ("A21", Some(r#""id_token+jwt""#), "type_not_allowed", "type_not_allowed"),
        ("A21", Some(r#""""#), "type_not_allowed", "type_not_allowed"),
        ("A21", Some(r#""JOSE""#), "type_not_allowed", "type_not_allowed"),
        ("A21", Some("null"), "ok", "type_not_allowed"),
        ("A21", Some("1"), "malformed", "malformed"),
        ("A21", Some(r#"["at+jwt"]"#), "malformed", "malformed"),
        ("A22", Some(r#""AT+JWT""#), "ok", "ok"),
        ("A22", Some(r#""application/at+jwt""#), "ok", "ok"),
        ("A22", Some(r#""Application/AT+jwt""#), "ok", "ok"),
        ("A22", Some(r#""jwt""#), "ok", "type_not_allowed"),
        ("A22", Some(r#""application/jwt""#), "ok", "type_not_allowed"),
        ("A22", Some(r#""text/at+jwt""#), "type_not_allowed", "type_not_allowed"),
        ("A22", Some(r#""application/application/at+jwt""#), "type_not_allowed", "type_not_allowed"),
        ("A22", Some(r#"" at+jwt""#), "type_not_allowed", "type_not_allowed"),
        ("A22", Some(r#""at+jwt;v=1""#), "type_not_allowed", "type_not_allowed"),
        ("A22", Some(r#""at jwt""#), "type_not_allowed", "type_not_allowed"),
    ] {
        let what = format!("{typ:?}");
        open.push(case(id, &what, sign(&by_default, typ), expected_open));
        strict.push(case(id, &what, sign(&access_only, typ), expected_strict));
    }
    check_cases(&by_default, open).await;
    check_cases(&access_only, strict).await;
}

#[tokio::test]
async fn a_token_without_three_parts_of_which_two_are_json_objects_is_malformed() {
    let key = SigningKey::generate("es", SigningAlgorithm::ES256);
    let env = TestEnv::start(&[&key], |_| {}).await;
    let claims = env.claims();
    let good = key.sign(&claims);
    let (header, payload, signature) = split(&good);
    let flattened = json!({"protected": header, "payload": payload, "signature": signature}).to_string();
    let general = json!({
        "payload": payload, "signatures": [{"protected": header, "signature": signature}],
    })
    .to_string();
    let jwe = [r#"{"alg":"dir","enc":"A256GCM"}"#, "", "initialize", "ciphertext", "tag-tag"]
        .map(base64url)
        .join(".");
    let mut cases = vec![
        case("A25", "a JWE", jwe, "malformed"),
        case("A25", "five parts, a good token in front", format!("{good}.AA.AA"), "malformed"),
        case("A26", "flattened", flattened.clone(), "malformed"),
        case("A26", "flattened, base64url", base64url(flattened), "malformed"),
        case("A26", "general", general, "malformed"),
        case("A27", "100,000 dots", ".".repeat(100_000), "token_too_large"),
        case("A27", "16,000 dots", ".".repeat(16_000), "malformed"),
        case("A27", "four parts", format!("{good}.{signature}"), "malformed"),
        case("A27", "a trailing dot", format!("{good}."), "malformed"),
        case("A27", "a leading dot", format!(".{good}"), "malformed"),
        case("A27", "two dots", good.replacen('.', "..", 1), "malformed"),
        case("A27", "no payload", format!("{header}..{signature}"), "malformed"),
        case("A27", "no header", format!(".{payload}.{signature}"), "malformed"),
    ];
    for text in [".", "..", "...", "a", "a.b", "a.b.c", "a.b.c.d", "e30.e30", "-._.~"] {
        cases.push(case("A27", text, text, "malformed"));
    }
    cases.push(case("A27", "empty objects", "e30.e30.", "algorithm_not_allowed"));
    let mut raw_header = |id, what: &str, bytes: &[u8], reason| {
        let signed = key.sign_raw(bytes, claims.to_string().as_bytes());
        cases.push(case(id, what, signed, reason));
    };
    for text in [
        r#"{"alg":"none","alg":"ES256","kid":"es"}"#,
        r#"{"alg":"ES256","alg":"none","kid":"es"}"#,
        r#"{"alg":"ES256","alg":"ES256","kid":"es"}"#,
        r#"{"alg":"ES256","\u0061lg":"none","kid":"es"}"#,
        r#"{"alg":"ES256","kid":"x","kid":"es"}"#,
        r#"{"alg":"ES256","kid":"es","x":{"y":1,"y":2}}"#,
        r#"{"alg":"ES256","kid":"es","typ":"JWT","typ":"JWT"}"#,
    ] {
        raw_header("A28", text, text.as_bytes(), "malformed");
    }
    let object = r#"{"alg":"ES256","kid":"es"}"#;
    for text in [
        "",
        "[]",
        r#""x""#,
        "null",
        "true",
        "1",
        "{",
        "}",
        "{}{}",
        "{}x",
        "alg=ES256",
        r#"["alg","ES256"]"#,
        r#"{"alg":"ES256","kid":"es",}"#,
        r#"{'alg':'ES256'}"#,
        r#"{alg:"ES256"}"#,
        r#"{"alg":"ES256"/* */}"#,
    ] {
        raw_header("A29", text, text.as_bytes(), "malformed");
    }
    raw_header("A29", "BOM", format!("\u{feff}{object}").as_bytes(), "malformed");
    raw_header("A29", "trailing bytes", format!("{object}x").as_bytes(), "malformed");
    raw_header("A29", "two objects", format!("{object}{object}").as_bytes(), "malformed");
    raw_header("A29", "trailing NUL", format!("{object}\0").as_bytes(), "malformed");
    raw_header("A29", "white space", format!(" \r\n\t{object}\n").as_bytes(), "ok");
    raw_header("A29", "10,000 brackets", "[".repeat(10_000).as_bytes(), "malformed");
    for (depth, reason) in [(15, "ok"), (16, "malformed"), (5_000, "malformed")] {
        let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let text = format!(r#"{{"alg":"ES256","kid":"es","x":{deep}}}"#);
        raw_header("A29", &format!("{depth} deep"), text.as_bytes(), reason);
    }
    let utf16: Vec<u8> = object.encode_utf16().flat_map(u16::to_le_bytes).collect();
    raw_header("A30", "UTF-16", &utf16, "malformed");
    raw_header("A30", "not UTF-8", b"{\"alg\":\"ES256\",\"kid\":\"es\xff\"}", "malformed");
    raw_header("A30", "overlong", b"{\"alg\":\"ES256\",\"kid\":\"\xc1\xa5s\"}", "malformed");
    raw_header("A30", "a surrogate in bytes", b"{\"alg\":\"ES256\",\"kid\":\"\xed\xa0\x80\"}", "malformed");
    raw_header("A30", "a lone surrogate", br#"{"alg":"ES256","kid":"\ud800"}"#, "malformed");
    raw_header("A30", "a reversed pair", br#"{"alg":"ES256","kid":"\udc00\ud800"}"#, "malformed");
    raw_header("A30", "a bare control", b"{\"alg\":\"ES256\",\"kid\":\"es\x01\"}", "malformed");
    raw_header("A30", "NUL in kid", br#"{"alg":"ES256","kid":"es\u0000"}"#, "key_unknown");
    raw_header("A30", "an escaped kid", br#"{"alg":"ES256","kid":"\u0065s"}"#, "ok");
    check_cases(&env, cases).await;
}
