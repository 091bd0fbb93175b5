//! Section F: what an issuer, or an attacker in its place, may publish as its key set.

use std::time::Duration;

use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use portcullis::validation::key_set::{KeySet, KeySetError};
use serde_json::{Value, json};

use super::case::{assert_no_errors, case, check_answer, check_cases};
use super::forge::{base64url, hmac, signed};
use crate::support::TestEnv;

use SigningAlgorithm::{ES256, ES384, ES512, EdDSA, HS256, HS384, HS512, RS256};

/// The JWK with these members changed; null removes one.
fn changed(jwk: &Value, members: &Value) -> Value {
    let mut jwk = jwk.clone();
    for (name, value) in members.as_object().into_iter().flatten() {
        match value {
            Value::Null => drop(jwk.as_object_mut().map(|jwk| jwk.remove(name))),
            value => jwk[name] = value.clone(),
        }
    }
    jwk
}

/// An odd number of this many bits, otherwise arbitrary.
fn modulus(bits: usize) -> String {
    let mut number = vec![0xa5; bits.div_ceil(8)];
    number[0] = 0xff >> ((8 - bits % 8) % 8);
    if let Some(last) = number.last_mut() {
        *last |= 1;
    }
    base64url(number)
}

/// Every unusual key with its row, and whether it is used.
fn unusual_keys() -> Vec<(&'static str, Value, bool)> {
    let rsa = SigningKey::pooled(0, "odd", RS256).public_jwk();
    let es = SigningKey::generate("odd", ES256).public_jwk();
    let es384 = SigningKey::generate("odd", ES384).public_jwk();
    let es512 = SigningKey::generate("odd", ES512).public_jwk();
    let ed = SigningKey::generate("odd", EdDSA).public_jwk();
    let n = rsa["n"].as_str().expect("a modulus").to_owned();
    let x = es["x"].clone();
    let with = |jwk: &Value, members: Value| changed(jwk, &members);
    let p256_p = base64url([&[0xff; 4][..], &[0, 0, 0, 1], &[0; 12], &[0xff; 12]].concat());
    let point = |first: u8, middle: u8, last: u8| {
        let mut point = [middle; 32];
        (point[0], point[31]) = (first, last);
        base64url(point)
    };
    vec![
        ("F1", with(&rsa, json!({"use": "enc"})), false),
        ("F1", with(&es, json!({"use": "enc"})), false),
        ("F1", with(&es, json!({"use": "SIG"})), false),
        ("F1", with(&es, json!({"use": ""})), false),
        ("F1", with(&es, json!({"use": ["sig"]})), false),
        ("F1", with(&es, json!({"use": null})), true),
        ("F2", with(&es, json!({"key_ops": ["encrypt"]})), false),
        ("F2", with(&es, json!({"key_ops": ["sign"]})), false),
        ("F2", with(&es, json!({"key_ops": []})), false),
        ("F2", with(&es, json!({"key_ops": "verify"})), false),
        ("F2", with(&es, json!({"key_ops": ["verify", "verify"]})), false),
        ("F2", with(&es, json!({"key_ops": ["Verify"]})), false),
        ("F2", with(&es, json!({"key_ops": ["verify"], "use": "enc"})), false),
        ("F2", with(&es, json!({"key_ops": ["verify"]})), true),
        ("F3", with(&rsa, json!({"n": modulus(512)})), false),
        ("F3", with(&rsa, json!({"n": modulus(1024)})), false),
        ("F3", with(&rsa, json!({"n": modulus(2047)})), false),
        ("F4", with(&rsa, json!({"e": "AQ"})), false),
        ("F4", with(&rsa, json!({"e": "Ag"})), false),
        ("F4", with(&rsa, json!({"e": "AA"})), false),
        ("F4", with(&rsa, json!({"e": ""})), false),
        ("F4", with(&rsa, json!({"e": "AQAA"})), false),
        ("F4", with(&rsa, json!({"e": base64url([2, 0, 0, 0, 1])})), false),
        ("F4", with(&rsa, json!({"e": base64url([1; 64])})), false),
        ("F4", with(&rsa, json!({"e": n})), false),
        ("F4", with(&rsa, json!({"n": ""})), false),
        ("F4", with(&rsa, json!({"n": base64url([0; 256])})), false),
        ("F4", with(&rsa, json!({"n": base64url([0xfe; 256])})), false),
        ("F4", with(&rsa, json!({"n": modulus(8200)})), false),
        ("F4", with(&rsa, json!({"n": modulus(16384)})), false),
        ("F4", with(&rsa, json!({"e": "Aw"})), true), // 3 is small, and legal
        ("F6", with(&es, json!({"y": x})), false),
        ("F6", with(&es, json!({"x": base64url([0; 32]), "y": base64url([0; 32])})), false),
        ("F6", with(&es, json!({"x": base64url([0xff; 32])})), false),
        ("F6", with(&es, json!({"x": p256_p})), false),
        ("F6", with(&es, json!({"x": base64url([1; 31])})), false),
        ("F6", with(&es, json!({"x": base64url([1; 33])})), false),
        ("F6", with(&es, json!({"x": ""})), false),
        ("F6", with(&es, json!({"y": null})), false),
        ("F6", with(&es, json!({"x": es384["x"], "y": es384["y"]})), false),
        ("F6", with(&es512, json!({"x": base64url([1; 65])})), false),
        ("F6", with(&ed, json!({"x": base64url([1; 31])})), false),
        ("F6", with(&ed, json!({"x": base64url([1; 33])})), false),
        ("C7", with(&ed, json!({"x": point(0, 0, 0)})), false),
        ("C7", with(&ed, json!({"x": point(1, 0, 0)})), false),
        ("C7", with(&ed, json!({"x": point(1, 0, 0x80)})), false),
        ("C7", with(&ed, json!({"x": point(0xec, 0xff, 0x7f)})), false),
        ("C7", with(&ed, json!({"x": point(0xed, 0xff, 0x7f)})), false),
        ("C7", with(&ed, json!({"x": point(0xee, 0xff, 0x7f)})), false),
        ("C7", with(&ed, json!({"x": point(0xee, 0xff, 0xff)})), false),
        ("F7", with(&es, json!({"crv": null})), false),
        ("F7", with(&es, json!({"crv": "secp256k1"})), false),
        ("F7", with(&es, json!({"crv": "p-256"})), false),
        ("F7", with(&es, json!({"crv": "P-192"})), false),
        ("F7", with(&es, json!({"crv": "Ed25519"})), false),
        ("F7", with(&es, json!({"crv": 256})), false),
        ("F7", with(&ed, json!({"crv": "X25519"})), false),
        ("F7", with(&ed, json!({"crv": "Ed448"})), false),
        ("F7", with(&ed, json!({"crv": "P-256"})), false),
        ("F7", with(&ed, json!({"crv": null})), false),
        ("F8", json!({"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA", "kid": "odd"}), false),
        ("F8", with(&rsa, json!({"kty": "NEW"})), false),
        ("F8", with(&rsa, json!({"kty": "rsa"})), false),
        ("F8", with(&rsa, json!({"kty": null})), false),
        ("F8", with(&rsa, json!({"kty": ["RSA"]})), false),
        ("F8", with(&es, json!({"kty": "EC2"})), false),
        ("F9", with(&rsa, json!({"n": format!("{n}=")})), true), // padding: see `written`
        ("F9", with(&rsa, json!({"n": format!("{n}*")})), false),
        ("F9", with(&rsa, json!({"n": format!("{n}A=B")})), false),
        ("F9", with(&rsa, json!({"n": "not base64"})), false),
        ("F9", with(&rsa, json!({"n": null})), false),
        ("F9", with(&rsa, json!({"e": null})), false),
        ("F9", with(&rsa, json!({"e": 65537})), false),
        ("F9", with(&rsa, json!({"n": [1, 2, 3]})), false),
        ("F9", with(&rsa, json!({"kid": 7})), true), // the text of its digits
        ("F9", with(&rsa, json!({"kid": true})), false),
        ("F9", with(&rsa, json!({"kid": {"odd": 1}})), false),
        ("F9", with(&rsa, json!({"kid": ["odd"]})), false),
        ("F9", with(&rsa, json!({"kid": "k".repeat(1025)})), false),
        ("F9", with(&rsa, json!({"kid": "k".repeat(1024)})), true),
        ("F9", with(&rsa, json!({"kid": null})), true),
        ("F9", Value::Null, false),
        ("F9", json!("RSA"), false),
        ("F9", json!(1), false),
        ("F9", json!([]), false),
        ("F9", json!({}), false),
        ("F9", json!([rsa.clone()]), false),
        ("F12", hmac(Some("odd"), HS256, &[7; 32]).public_jwk(), false),
        ("F12", json!({"kty": "oct", "k": ""}), false),
        ("F13", with(&rsa, json!({"d": "AQAB"})), false),
        ("F13", with(&rsa, json!({"d": ""})), false),
        ("F13", with(&rsa, json!({"p": "AQAB", "q": "AQAB"})), false),
        ("F13", with(&rsa, json!({"dp": "AQAB"})), false),
        ("F13", with(&rsa, json!({"dq": "AQAB"})), false),
        ("F13", with(&rsa, json!({"qi": "AQAB"})), false),
        ("F13", with(&rsa, json!({"oth": []})), false),
        ("F13", with(&es, json!({"d": "AQAB"})), false),
        ("F13", with(&ed, json!({"d": "AQAB"})), false),
        ("F17", with(&rsa, json!({"x5c": ["bm90IGEgY2VydGlmaWNhdGU="]})), true),
        ("F17", with(&rsa, json!({"x5c": 7, "x5t": [], "x5u": "http://127.0.0.1:1/"})), true),
        ("F18", with(&rsa, json!({"alg": "SHA256"})), false),
        ("F18", with(&rsa, json!({"alg": "RSA-OAEP"})), false),
        ("F18", with(&rsa, json!({"alg": "rs256"})), false),
        ("F18", with(&rsa, json!({"alg": "none"})), false),
        ("F18", with(&rsa, json!({"alg": "HS256"})), false),
        ("F18", with(&rsa, json!({"alg": "ES256"})), false),
        ("F18", with(&rsa, json!({"alg": 256})), false),
        ("F18", with(&es, json!({"alg": "ES384"})), false),
        ("F18", with(&es, json!({"alg": "ECDH-ES"})), false),
        ("F18", with(&es512, json!({"alg": "ES521"})), false),
        ("F18", with(&ed, json!({"alg": "Ed25519"})), true), // RFC 9864
        ("F18", with(&es, json!({"alg": "ESP256"})), true),
        ("F18", with(&es, json!({"alg": "ESP384"})), false),
        ("F18", with(&ed, json!({"alg": "Ed448"})), false),
        ("F18", with(&rsa, json!({"alg": "Ed25519"})), false),
        ("F18", with(&es512, json!({"alg": null})), true),
        (
            "F19",
            with(&es, json!({"exp": 1, "nbf": 9e9, "iat": "x", "revoked": {"reason": "x"}, "": 0})),
            true,
        ),
        ("F20", with(&rsa, json!({"n": format!("AA{}", base64url([0]))})), false),
    ]
}

#[test]
fn one_unusual_key_is_skipped_and_the_others_are_kept() {
    let good = SigningKey::generate("good", ES256).public_jwk();
    let mut wrong = Vec::new();
    for (id, odd, used) in unusual_keys() {
        for keys in [json!([odd, good]), json!([good, odd])] {
            let document = json!({"keys": keys}).to_string();
            match KeySet::parse(document.as_bytes()) {
                Err(error) => wrong.push(format!("{id} {odd:.200}: {error}")),
                Ok(set) => {
                    let counts = (set.keys().len(), set.skipped().len());
                    if counts != (1 + usize::from(used), usize::from(!used)) {
                        let reason = set.skipped().first().map(|key| key.reason);
                        wrong.push(format!("{id} used and skipped: {counts:?}, {reason:?}: {odd:.200}"));
                    }
                    if !set.keys().iter().any(|key| key.kid().is_some_and(|kid| kid.as_str() == "good")) {
                        wrong.push(format!("{id} the good key is gone: {odd:.200}"));
                    }
                }
            }
        }
        let alone = KeySet::parse(json!({"keys": [odd]}).to_string().as_bytes());
        if alone.is_ok() != used {
            wrong.push(format!("{id} alone: {alone:?}"));
        }
    }
    assert_no_errors(&wrong);
}

/// The thumbprint and the note of the only key of a set.
fn read(jwk: &Value) -> Result<(Option<String>, Option<&'static str>), KeySetError> {
    let set = KeySet::parse(json!({"keys": [jwk]}).to_string().as_bytes())?;
    let key = &set.keys()[0];
    Ok((key.thumbprint().map(|thumbprint| thumbprint.to_string()), key.note()))
}

#[test]
fn a_key_whose_numbers_are_not_written_as_the_rfc_says_is_the_same_key_with_a_note() {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
    let decoded = |number: &Value| URL_SAFE_NO_PAD.decode(number.as_str().expect("text")).expect("base64url");
    let rsa = SigningKey::pooled(0, "odd", RS256).public_jwk();
    let n = decoded(&rsa["n"]);
    let lines: String =
        STANDARD.encode(&n).chars().enumerate().fold(String::new(), |mut text, (at, letter)| {
            text.push_str(if at > 0 && at % 64 == 0 { "\r\n " } else { "" });
            text.push(letter);
            text
        });
    let right = read(&rsa).expect("usable");
    assert_eq!(right.1, None);
    for written in [STANDARD.encode(&n), STANDARD_NO_PAD.encode(&n), lines] {
        let (thumbprint, note) = read(&changed(&rsa, &json!({"n": written}))).expect("usable");
        assert_eq!(thumbprint, right.0, "{written}");
        assert!(note.is_some_and(|note| note.contains("standard base64")), "{note:?}");
    }
    // A coordinate with a leading zero octet, which some libraries leave out, and one with another octet for the sign.
    let (short, es) = std::iter::repeat_with(|| SigningKey::generate("odd", ES256).public_jwk())
        .find_map(|jwk| (decoded(&jwk["x"])[0] == 0).then(|| (decoded(&jwk["x"])[1..].to_vec(), jwk)))
        .expect("one in 256 has one");
    let signed = [&[0], &decoded(&es["y"])[..]].concat();
    for other in [json!({"x": base64url(short)}), json!({"y": base64url(signed)})] {
        let (thumbprint, note) = read(&changed(&es, &other)).expect("usable");
        assert_eq!(thumbprint, read(&es).expect("usable").0);
        assert!(note.is_some_and(|note| note.contains("length of the curve")), "{note:?}");
    }
    let (_, note) = read(&changed(&es, &json!({"kid": 7}))).expect("usable");
    assert!(note.is_some_and(|note| note.contains("`kid` is a number")), "{note:?}");
}

#[test]
fn null_in_an_optional_member_of_a_key_is_as_if_it_were_absent() {
    let nulls = ["alg", "use", "key_ops", "kid", "x5c", "x5t", "x5u", "d", "p", "oth"];
    let nulls: serde_json::Map<String, Value> =
        nulls.map(|name| (name.to_owned(), Value::Null)).into_iter().collect();
    for algorithm in [RS256, ES256, EdDSA] {
        let jwk = SigningKey::generate("odd", algorithm).public_jwk();
        let material = ["kty", "crv", "n", "e", "x", "y"].into_iter();
        let bare: Value = material.filter_map(|name| Some((name, jwk.get(name)?.clone()))).collect();
        let mut with_nulls = bare.clone();
        with_nulls.as_object_mut().expect("an object").extend(nulls.clone());
        assert_eq!(read(&with_nulls), read(&bare), "{algorithm}");
        assert!(read(&bare).is_ok(), "{algorithm}");
    }
}

#[test]
fn what_is_not_a_key_set_is_an_error() {
    let good = SigningKey::generate("good", ES256).public_jwk().to_string();
    let set = format!(r#"{{"keys":[{good}]}}"#);
    assert!(KeySet::parse(set.as_bytes()).is_ok());
    let pem = "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n";
    let mut wrong = Vec::new();
    for (id, document) in [
        ("F10", r#"{"keys":[]}"#.to_owned()),
        ("F11", String::new()),
        ("F11", "{}".to_owned()),
        ("F11", "null".to_owned()),
        ("F11", "[]".to_owned()),
        ("F11", format!("[{good}]")),
        ("F11", format!("[[{good}]]")),
        ("F11", good.clone()),
        ("F11", format!(r#"{{"keys":{good}}}"#)),
        ("F11", format!(r#"{{"keys":{{"good":{good}}}}}"#)),
        ("F11", r#"{"keys":null}"#.to_owned()),
        ("F11", r#"{"keys":"x"}"#.to_owned()),
        ("F11", format!(r#"{{"Keys":[{good}]}}"#)),
        ("F11", format!(r#"{{"good":{}}}"#, Value::from(pem))),
        ("F11", pem.to_owned()),
        ("F11", "<html><body>Sign in</body></html>".to_owned()),
        ("F15", format!(r#"{{"keys":[{good}],"keys":[]}}"#)),
        ("F15", format!(r#"{{"keys":[],"keys":[{good}]}}"#)),
        ("F19", format!("{set},")),
        ("F19", format!("{set}x")),
        ("F19", format!("{set}{set}")),
        ("F19", set.replace("]}", ",]}")),
        ("F19", format!("/* keys */{set}")),
        ("F19", format!("\u{feff}\u{feff}{set}")),
        ("F19", format!("{set}\u{feff}")),
        ("F19", set.replace('"', "'")),
        ("F19", set[..set.len() - 1].to_owned()),
        ("F19", "[".repeat(100_000)),
        ("F19", format!(r#"{{"keys":{}"#, "[".repeat(100_000))),
    ] {
        if KeySet::parse(document.as_bytes()).is_ok() {
            wrong.push(format!("{id} accepted: {document:.200}"));
        }
    }
    assert!(KeySet::parse(format!("\u{feff}{set}").as_bytes()).is_ok(), "F19: a byte-order mark");
    let utf16: Vec<u8> = set.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(KeySet::parse(&utf16).err(), Some(KeySetError::NotAKeySet), "F19");
    assert_eq!(KeySet::parse(&[set.as_bytes(), b"\xff"].concat()).err(), Some(KeySetError::NotAKeySet));
    // A repeated member within a key invalidates only that key.
    for twice in [r#""kid":"other""#, r#""kty":"EC""#, r#""x5c":[],"x5c":[]"#, r#""\u006bid":"other""#] {
        let with_repeated_member = format!("{},{twice}}}", good.trim_end_matches('}'));
        let document = format!(r#"{{"keys":[{with_repeated_member},{good}]}}"#);
        let parsed = KeySet::parse(document.as_bytes());
        let counts = parsed.map(|set| (set.keys().len(), set.skipped().len()));
        if counts != Ok((1, 1)) {
            wrong.push(format!("F15 {twice}: {counts:?}"));
        }
    }
    // Deep nesting within a key invalidates only that key.
    let deep = format!(r#"{{"keys":[{{"x":{}1{}}},{good}]}}"#, "[".repeat(5_000), "]".repeat(5_000));
    assert_eq!(KeySet::parse(deep.as_bytes()).map(|set| set.keys().len()), Ok(1));
    assert_no_errors(&wrong);
}

#[test]
fn a_shared_secret_of_the_configuration_is_as_long_as_its_hash() {
    for (algorithm, shortest) in [(HS256, 32), (HS384, 48), (HS512, 64)] {
        for (length, usable) in [(0, false), (shortest - 1, false), (shortest, true)] {
            let jwk = hmac(Some("s"), algorithm, &vec![7; length]).public_jwk();
            let document = json!({"keys": [jwk]}).to_string();
            let inline = KeySet::parse_inline(document.as_bytes());
            assert_eq!(inline.is_ok(), usable, "H7 {algorithm} {length}");
            assert!(KeySet::parse(document.as_bytes()).is_err(), "F12 {algorithm} {length}");
        }
    }
}

#[tokio::test]
async fn a_fetched_set_is_used_with_its_good_keys_and_lists_the_others() {
    let good = SigningKey::generate("good", ES256);
    let env = TestEnv::start(&[&good], |_| {}).await;
    let encrypting = SigningKey::generate("enc", ES256);
    let leaked = SigningKey::generate("leaked", EdDSA);
    let rsa = SigningKey::pooled(0, "java", RS256);
    let secret = hmac(Some("secret"), HS256, &[7; 32]);
    let java = |number: &Value| {
        use base64::Engine as _;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let bytes = URL_SAFE_NO_PAD.decode(number.as_str().expect("a number")).expect("base64url");
        base64url([&[0], &bytes[..]].concat())
    };
    let jwk = rsa.public_jwk();
    let mut identity = [0; 32];
    identity[0] = 1;
    let mut keys: Vec<Value> =
        unusual_keys().into_iter().filter(|(_, _, used)| !used).map(|(_, jwk, _)| jwk).collect();
    let odd = keys.len();
    keys.extend([
        changed(&encrypting.public_jwk(), &json!({"use": "enc"})),
        changed(&leaked.public_jwk(), &json!({"d": base64url([9; 32])})),
        secret.public_jwk(),
        json!({"kty": "OKP", "crv": "Ed25519", "kid": "small", "x": base64url(identity)}),
        changed(&jwk, &json!({"n": java(&jwk["n"]), "e": java(&jwk["e"])})),
        good.public_jwk(),
    ]);
    env.issuer.publish_json(json!({"keys": keys}));
    let claims = env.claims();
    // The first token with a new kid fetches the set (F20: a leading zero, as Java writes it).
    assert_eq!(env.service.bearer(&rsa.sign(&claims)).await.reason(), "ok", "F20");
    // With a point of small order, this signature verifies any message.
    let header = r#"{"alg":"EdDSA","kid":"small"}"#;
    let unsigned = signed(&good, header, &claims);
    let forged = super::forge::with_signature(&unsigned, &[&identity[..], &[0; 32]].concat());
    check_cases(
        &env,
        vec![
            case("F9", "a good key among odd ones", good.sign(&claims), "ok"),
            case("F20", "again", rsa.sign(&claims), "ok"),
            case("F1", "use: enc", encrypting.sign(&claims), "key_unknown"),
            case("F13", "a private half", leaked.sign(&claims), "key_unknown"),
            case("F12", "oct", secret.sign(&claims), "algorithm_not_allowed"),
            case("C7", "small order", forged, "key_unknown"),
        ],
    )
    .await;
    let keys_page: Value = serde_json::from_str(&env.service.admin("/keys").await).expect("JSON");
    let provider = &keys_page["providers"][0];
    assert_eq!(provider["keys"].as_array().map(Vec::len), Some(2), "{keys_page:#}");
    assert_eq!(provider["keys"][0]["note"], Value::Null, "{keys_page:#}");
    assert_eq!(provider["skipped"].as_array().map(Vec::len), Some(odd + 4), "{keys_page:#}");
}

#[tokio::test]
async fn a_set_without_usable_keys_is_a_failed_fetch_and_the_old_one_stays() {
    let good = SigningKey::generate("good", ES256);
    let env = TestEnv::start(&[&good], |_| {}).await;
    let claims = env.claims();
    let fresh = SigningKey::generate("fresh", ES256);
    let mut wrong = Vec::new();
    for document in [
        json!({"keys": []}),
        json!({"keys": [{"kty": "oct", "k": "AAAA"}]}),
        json!({"keys": [null]}),
        json!({"keys": {}}),
        json!([]),
        json!(null),
        json!("keys"),
        good.public_jwk(),
        json!({"error": "down for maintenance"}),
    ] {
        env.issuer.publish_json(document.clone());
        let what = document.to_string();
        let answer = env.service.bearer(&fresh.sign(&claims)).await;
        wrong.extend(check_answer("F10 F11", &what, &answer, "keys_unavailable", &[]));
        let answer = env.service.bearer(&good.sign(&claims)).await;
        wrong.extend(check_answer("F10 F11", &format!("the old key, {what}"), &answer, "ok", &[]));
    }
    assert_no_errors(&wrong);
    let keys_page = env.service.admin("/keys").await;
    assert!(keys_page.contains("not a JWK Set"), "{keys_page}");
    env.issuer.publish(&[&fresh]);
    // A running fetch may still receive the last bad document; the next one receives the key.
    let recovered = async {
        while env.service.bearer(&fresh.sign(&claims)).await.reason() != "ok" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), recovered).await.expect("F10: it recovers");
    let gone = env.service.bearer(&good.sign(&claims)).await;
    assert_eq!(gone.reason(), "key_unknown", "a withdrawn key is not used");
}

#[tokio::test]
async fn ten_thousand_keys_cost_bounded_work() {
    let good = SigningKey::generate("good", ES256);
    let template = SigningKey::generate("filler", ES256).public_jwk();
    let fillers = (0..10_000).map(|i| changed(&template, &json!({"kid": format!("filler-{i}")})));
    let first: Vec<Value> = std::iter::once(good.public_jwk()).chain(fillers.clone()).collect();
    let last: Vec<Value> = fillers.chain([good.public_jwk()]).collect();
    let parse = |keys: Vec<Value>| KeySet::parse(json!({"keys": keys}).to_string().as_bytes());
    let first = parse(first).expect("a key set");
    assert_eq!((first.keys().len(), first.skipped().len()), (1_000, 1_000), "F16");
    assert!(first.keys().iter().any(|key| key.kid().is_some_and(|kid| kid.as_str() == "good")), "F16");
    let last = parse(last).expect("a key set");
    assert!(
        !last.keys().iter().any(|key| key.kid().is_some_and(|kid| kid.as_str() == "good")),
        "F16 over the limit"
    );

    // As many keys as fit into a document of 1 MiB; a token without a kid is verified with sixteen of them.
    let env = TestEnv::start(&[&good], |_| {}).await;
    let keys: Vec<Value> = (0..900)
        .map(|i| changed(&template, &json!({"kid": format!("filler-{i}")})))
        .chain([good.public_jwk()])
        .collect();
    env.issuer.publish_json(json!({"keys": keys}));
    let claims = env.claims();
    let stranger = SigningKey::generate(None, ES256);
    check_cases(
        &env,
        vec![
            case("F16", "brings the set", stranger.sign(&claims), "key_unknown"),
            case("F16", "by name", good.sign(&claims), "ok"),
            case("F16", "without a name", good.with_kid(None).sign(&claims), "key_unknown"),
        ],
    )
    .await;
}
