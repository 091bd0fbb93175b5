//! Section C: invalid signatures and invalid base64url.

use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use serde_json::json;

use super::case::{Case, assert_no_errors, case, check_answer, check_cases};
use super::forge::{
    MaskHash, RawRsa, base64url, curve_order, digest_info, digest_info_without_null, ecdsa_der,
    ed25519_order, minus, plus, pss_block, signature_of, small, split, with_signature,
};
use crate::support::{Ask, NOW, Running, TestEnv, config, fixed_clock, inline, provider};

use SigningAlgorithm::{ES256, ES384, ES512, EdDSA, RS256};

#[tokio::test]
async fn an_ecdsa_signature_of_special_numbers_or_in_another_form_is_refused() {
    let keys = [ES256, ES384, ES512].map(|algorithm| SigningKey::generate(algorithm.name(), algorithm));
    let env = TestEnv::start(&keys.each_ref(), |_| {}).await;
    let mut cases = Vec::new();
    for key in &keys {
        let algorithm = key.algorithm();
        let good = key.sign(&env.claims());
        let signature = signature_of(&good);
        let length = signature.len() / 2;
        let (r, s) = signature.split_at(length);
        let n = curve_order(algorithm);
        let (zero, one) = (small(0, length), small(1, length));
        let below = minus(&n, &one);
        let above = plus(&n, &one).expect("no order is all ones");
        let all_ones = vec![0xff; length];
        let numbers =
            [("0", &zero), ("1", &one), ("n-1", &below), ("n", &n), ("n+1", &above), ("all ones", &all_ones)];
        let mut add = |id, what: &str, signature: &[u8], reason| {
            let what = format!("{algorithm} {what}");
            cases.push(case(id, what, with_signature(&good, signature), reason));
        };
        add("C1", "unchanged", &signature, "ok");
        for (r_name, special_r) in numbers {
            for (s_name, special_s) in numbers {
                add(
                    "C1",
                    &format!("r={r_name} s={s_name}"),
                    &[&special_r[..], special_s].concat(),
                    "bad_signature",
                );
            }
            add("C1", &format!("r={r_name}"), &[&special_r[..], s].concat(), "bad_signature");
            add("C1", &format!("s={r_name}"), &[r, &special_r[..]].concat(), "bad_signature");
        }
        add("C1", "s and r", &[s, r].concat(), "bad_signature");
        if let Some(unreduced) = plus(r, &n) {
            add("C1", "r+n", &[&unreduced[..], s].concat(), "bad_signature");
        }
        // (r, n-s) is also a valid signature of the same token: RFC 7518 §3.4 does not require a low s.
        add("C1", "n-s", &[r, &minus(&n, s)].concat(), "ok");
        let der = ecdsa_der(&signature);
        add("C2", "DER", &der, "bad_signature");
        add(
            "C2",
            "DER, padded to the length",
            &[&der[..], &vec![0; 2 * length]].concat()[..2 * length],
            "bad_signature",
        );
        add("C3", "a trailing zero", &[&signature[..], &[0]].concat(), "bad_signature");
        add("C3", "a leading zero", &[&[0], &signature[..]].concat(), "bad_signature");
        add("C3", "leading zeros of both", &[&[0], r, &[0], s].concat(), "bad_signature");
        add("C3", "first half", r, "bad_signature");
        add("C3", "twice", &[&signature[..], &signature[..]].concat(), "bad_signature");
        add("C3", "without the last octet", &signature[..2 * length - 1], "bad_signature");
        add("C3", "without the first octet", &signature[1..], "bad_signature");
        for octets in [1, 8, 64, 96, 132, 1000] {
            add("C3", &format!("{octets} zeros"), &vec![0; octets], "bad_signature");
        }
    }
    check_cases(&env, cases).await;
}

#[tokio::test]
async fn an_ed25519_signature_that_is_not_canonical_is_refused() {
    let key = SigningKey::generate("ed", EdDSA);
    let env = TestEnv::start(&[&key], |_| {}).await;
    let good = key.sign(&env.claims());
    let signature = signature_of(&good);
    let (r, s) = signature.split_at(32);
    // Little-endian here, big-endian in `plus`.
    let reversed = |number: &[u8]| number.iter().rev().copied().collect::<Vec<u8>>();
    let order = reversed(&ed25519_order());
    let mut cases = vec![case("C7", "unchanged", good.clone(), "ok")];
    let mut add = |what: &str, signature: &[u8]| {
        cases.push(case("C7", what, with_signature(&good, signature), "bad_signature"));
    };
    let mut unreduced = reversed(s);
    for times in 1..=14 {
        let Some(next) = plus(&unreduced, &order) else { break };
        unreduced = next;
        add(&format!("S + {times} L"), &[r, &reversed(&unreduced)].concat());
    }
    add("S = L", &[r, &ed25519_order()].concat());
    add("S = 0", &[r, &[0; 32]].concat());
    let mut flipped = r.to_vec();
    flipped[31] ^= 0x80;
    add("R with the other sign", &[&flipped[..], s].concat());
    // Points of small order, and encodings that are not reduced.
    let mut identity = [0; 32];
    identity[0] = 1;
    let mut unreduced_identity = [0xff; 32];
    (unreduced_identity[0], unreduced_identity[31]) = (0xee, 0x7f);
    for point in [[0; 32], identity, unreduced_identity, [0xff; 32]] {
        add("R of small order, S = 0", &[&point[..], &[0; 32]].concat());
        add("R of small order", &[&point[..], s].concat());
    }
    add("S and R", &[s, r].concat());
    for length in [1, 32, 63, 65, 96, 128] {
        add(&format!("{length} octets"), &signature.repeat(2)[..length]);
    }
    check_cases(&env, cases).await;
}

#[tokio::test]
async fn an_rsa_signature_is_refused_unless_its_block_is_exactly_right() {
    let rsa = RawRsa::generate();
    let filler = SigningKey::generate("es", ES256);
    let env = TestEnv::start(&[&filler], |_| {}).await;
    env.issuer.publish_json(json!({"keys": [rsa.jwk("raw"), filler.public_jwk()]}));
    let claims = env.claims().to_string();
    let input_of = |alg: &str| {
        let header = json!({"alg": alg, "kid": "raw"}).to_string();
        format!("{}.{}", base64url(header), base64url(&claims))
    };
    let token = |input: &str, signature: &[u8]| format!("{input}.{}", base64url(signature));
    let input = input_of("RS256");
    let message = input.as_bytes();
    let good = rsa.sign_block(&rsa.padded(&digest_info(message)));
    // The first token is allowed after the one fetch that returns the key.
    let first = env.service.bearer(&token(&input, &good)).await;
    assert_eq!(first.reason(), "ok");

    let n = rsa.modulus();
    let length = n.len();
    let mut cases = vec![case("C5", "unchanged", token(&input, &good), "ok")];
    let mut add = |id, what: &str, signature: &[u8]| {
        cases.push(case(id, what, token(&input, signature), "bad_signature"));
    };
    add("C5", "0", &small(0, length));
    add("C5", "1", &small(1, length));
    add("C5", "n-1", &minus(n, &small(1, length)));
    add("C5", "n", n);
    add("C5", "all ones", &vec![0xff; length]);
    let wide = |number: &[u8]| [&[0], number].concat();
    let unreduced = plus(&wide(&good), &wide(n)).expect("an octet to spare");
    add("C5", "s+n", &unreduced);
    if unreduced[0] == 0 {
        add("C5", "s+n in the right length", &unreduced[1..]);
    }
    add("C5", "n-s", &minus(n, &good));
    add("C5", "a leading zero", &wide(&good));
    add("C5", "a trailing zero", &[&good[..], &[0]].concat());
    add("C5", "without the last octet", &good[..length - 1]);
    add("C5", "without the first octet", &good[1..]);
    add("C5", "twice", &good.repeat(2));
    add("C5", "8 KiB", &vec![1; 8 * 1024]);

    let info = digest_info(message);
    let block = rsa.padded(&info);
    let mut altered = |what: &str, block: &[u8]| add("C4", what, &rsa.sign_block(block));
    // Bleichenbacher 2006: short padding, the hash, and garbage after it.
    let mut short = vec![0, 1];
    short.extend([0xff; 8]);
    short.push(0);
    short.extend(&info);
    short.resize(length, 0xaa);
    altered("garbage after the hash", &short);
    let mut none = vec![0, 1, 0];
    none.extend(&info);
    none.resize(length, 0);
    altered("no padding at all", &none);
    altered("no NULL", &rsa.padded(&digest_info_without_null(message)));
    let mut long_form = info.clone();
    long_form.splice(1..2, [0x81, info[1]]);
    altered("a length in BER's long form", &rsa.padded(&long_form));
    let mut long_null = info.clone();
    long_null[1] += 1;
    long_null[3] += 1;
    let null = 2 + 2 + 11 + 1;
    long_null.splice(null..=null, [0x81, 0x00]);
    altered("NULL with a long length", &rsa.padded(&long_null));
    altered("the hash without DigestInfo", &rsa.padded(&info[info.len() - 32..]));
    altered("garbage after DigestInfo", &rsa.padded(&[&info[..], &[0]].concat()));
    altered("another message", &rsa.padded(&digest_info(b"other")));
    for (at, octet, what) in [
        (0, 1, "the first octet is not zero"),
        (1, 2, "block type 2"),
        (1, 0, "block type 0"),
        (2, 0xfe, "padding other than ff"),
        (10, 0, "a zero within the padding"),
    ] {
        let mut block = block.clone();
        block[at] = octet;
        altered(what, &block);
    }

    let input = input_of("PS256");
    let message = input.as_bytes();
    let mut pss = |id, what: &str, block: &[u8], reason| {
        cases.push(case(id, what, token(&input, &rsa.sign_block(block)), reason));
    };
    pss("C6", "as it should be", &pss_block(message, length, 32, MaskHash::Sha256), "ok");
    for salt in [0, 1, 20, 31, 33, 48, 64, length - 32 - 2] {
        let what = format!("a salt of {salt} octets");
        pss("C6", &what, &pss_block(message, length, salt, MaskHash::Sha256), "bad_signature");
    }
    pss(
        "C6",
        "another hash for the mask",
        &pss_block(message, length, 32, MaskHash::Sha384),
        "bad_signature",
    );
    let mut trailer = pss_block(message, length, 32, MaskHash::Sha256);
    trailer[length - 1] = 0xcc;
    pss("C6", "another trailer", &trailer, "bad_signature");
    pss("C6", "a PKCS#1 block", &rsa.padded(&digest_info(message)), "bad_signature");
    check_cases(&env, cases).await;
}

#[tokio::test]
async fn a_signed_token_cannot_be_changed() {
    let keys = [
        SigningKey::generate("es", ES256),
        SigningKey::pooled(0, "rsa", RS256),
        SigningKey::generate("ed", EdDSA),
    ];
    let env = TestEnv::start(&keys.each_ref(), |_| {}).await;
    let mut cases = Vec::new();
    for key in &keys {
        let good = key.sign(&env.claims());
        let (header, payload, signature) = split(&good);
        let what = key.algorithm().name();
        let mut bytes = signature_of(&good);
        for at in [0, bytes.len() / 2, bytes.len() - 1] {
            bytes[at] ^= 0x10;
            cases.push(case("C8", what, with_signature(&good, &bytes), "bad_signature"));
            bytes[at] ^= 0x10;
        }
        for length in [1, bytes.len() / 2, bytes.len() - 1] {
            cases.push(case("C8", what, with_signature(&good, &bytes[..length]), "bad_signature"));
        }
        let mut admin = env.claims();
        admin["sub"] = json!("admin");
        let other_payload = base64url(admin.to_string());
        cases.push(case("C9", what, format!("{header}.{other_payload}.{signature}"), "bad_signature"));
        let mut other = key.header();
        other["x"] = json!(1);
        let other_header = base64url(other.to_string());
        cases.push(case("C9", what, format!("{other_header}.{payload}.{signature}"), "bad_signature"));
        let later = key.sign(&portcullis::commands::issuer::with_claim(env.claims(), "jti", 2));
        let spliced = format!("{header}.{payload}.{}", split(&later).2);
        cases.push(case("C9", format!("{what}, spliced"), spliced, "bad_signature"));
    }
    check_cases(&env, cases).await;
}

#[tokio::test]
async fn base64url_is_parsed_strictly() {
    let key = SigningKey::generate("es", ES256);
    let env = TestEnv::start(&[&key], |_| {}).await;
    // The length leaves unused bits in every part.
    let header = r#"{"alg":"ES256","kid":"es"}"#;
    let claims = env.claims();
    let padded = |length: usize| {
        let mut text = claims.to_string();
        while text.len() % 3 != length {
            text.push(' ');
        }
        text
    };
    let good = key.sign_raw(format!("{header} ").trim_end().as_bytes(), padded(1).as_bytes());
    let (h, p, s) = split(&good);
    let join = |h: &str, p: &str, s: &str| format!("{h}.{p}.{s}");
    let mut cases = vec![case("C10", "unchanged", good.clone(), "ok")];
    let mut add = |id, what: &str, token: String| cases.push(case(id, what, token, "malformed"));
    for pad in ["=", "==", "===", "%3D"] {
        add("C10", "padded header", join(&format!("{h}{pad}"), p, s));
        add("C10", "padded payload", join(h, &format!("{p}{pad}"), s));
        add("C10", "padded signature", join(h, p, &format!("{s}{pad}")));
    }
    for junk in ["+", "/", " ", "\r\n", "\t", "\0", "~", "é", "*", "\u{7f}"] {
        let within = |part: &str| {
            let (front, back) = part.split_at(4);
            format!("{front}{junk}{back}")
        };
        let instead = |part: &str| {
            let (front, back) = part.split_at(4);
            format!("{front}{junk}{}", &back[1..])
        };
        for change in [&within as &dyn Fn(&str) -> String, &instead] {
            add("C11", &format!("{junk:?} in the header"), join(&change(h), p, s));
            add("C11", &format!("{junk:?} in the payload"), join(h, &change(p), s));
            add("C11", &format!("{junk:?} in the signature"), join(h, p, &change(s)));
        }
    }
    let standard = |part: &str| part.replace('-', "+").replace('_', "/");
    if standard(s) != s {
        add("C11", "the standard alphabet", join(h, p, &standard(s)));
    }
    let unused_bits = |part: &str| {
        const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let (front, last) = part.split_at(part.len() - 1);
        let value = ALPHABET.iter().position(|c| last.as_bytes() == [*c]).expect("base64url");
        assert_eq!(value % 4, 0, "a part whose last character has unused bits");
        format!("{front}{}", char::from(ALPHABET[value + 1]))
    };
    add("C12", "in the header", join(&unused_bits(h), p, s));
    add("C12", "in the payload", join(h, &unused_bits(p), s));
    add("C12", "in the signature", join(h, p, &unused_bits(s)));
    let one_over = |part: &str| {
        let mut part = part.to_owned();
        while part.len() % 4 != 1 {
            part.push('A');
        }
        part
    };
    add("C13", "in the header", join(&one_over(h), p, s));
    add("C13", "in the payload", join(h, &one_over(p), s));
    add("C13", "in the signature", join(h, p, &one_over(s)));
    add("C13", "one character", join(h, p, "A"));
    for behind in [",", ";", "\0", " x", ", x", "\u{a0}", "\n\nx", "#", "?", "&x=1", "\""] {
        add("C14", &format!("{behind:?}"), format!("{good}{behind}"));
    }
    add("C14", "a second token", format!("{good} {good}"));
    add("C14", "a second token after a comma", format!("{good},{good}"));
    add("C14", "a second scheme", format!("{good}, Bearer {good}"));
    check_cases(&env, cases).await;
}

#[tokio::test]
async fn a_token_is_decided_up_to_the_limit_and_denied_above_it() {
    let key = SigningKey::generate("es", ES256);
    let env = TestEnv::start(&[&key], |_| {}).await;
    // The longest token of at most `bytes`.
    let of_length = |bytes: usize| {
        let mut claims = env.claims();
        let mut fill = bytes.saturating_sub(key.sign(&claims).len()) * 3 / 4;
        loop {
            claims["fill"] = json!("x".repeat(fill));
            let token = key.sign(&claims);
            if token.len() <= bytes {
                return token;
            }
            fill -= 1;
        }
    };
    let limit = 16 * 1024;
    let within = of_length(limit);
    assert!(within.len() > limit - 3);
    let mut just_over = env.claims();
    just_over["fill"] = json!("x".repeat(limit * 3 / 4));
    let cases: Vec<Case> = vec![
        case("C15", "8 KiB", of_length(8 * 1024), "ok"),
        case("C15", "16 KiB", within, "ok"),
        case("C15", "over 16 KiB", key.sign(&just_over), "token_too_large"),
        case("C15", "64 KiB", of_length(64 * 1024), "token_too_large"),
        case("C15", "1 MiB", of_length(1 << 20), "token_too_large"),
        case("C15", "16 KiB and an octet of junk", "A".repeat(limit + 1), "token_too_large"),
    ];
    check_cases(&env, cases).await;
    // A message over limits.message_bytes is not read, and the next call is served.
    let check = Ask::default().header("authorization", format!("Bearer {}", "A".repeat(16 << 20)));
    assert_eq!(env.service.ask(check).await.reason(), "request_malformed");
    assert_eq!(env.service.bearer(&key.sign(&env.claims())).await.reason(), "ok");
}

/// C8 for the bits of a signature, without gRPC: `arbitrary.rs` does so for every octet of a whole token.
#[tokio::test]
async fn an_inline_key_is_as_strict_as_a_fetched_one() {
    let key = SigningKey::generate("es", ES256);
    let rules = provider("demo", "https://issuer.example");
    let service = Running::start(config(vec![inline(rules, &[key.public_jwk()])]), fixed_clock()).await;
    let claims = json!({
        "iss": "https://issuer.example", "aud": "orders-api", "sub": "alice", "exp": NOW + 300,
    });
    let good = key.sign(&claims);
    let mut wrong = check_answer("C8", "unchanged", &service.bearer(&good).await, "ok", &[]);
    let signature = signature_of(&good);
    for bit in (0..signature.len() * 8).step_by(7) {
        let mut flipped = signature.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let answer = service.bearer(&with_signature(&good, &flipped)).await;
        wrong.extend(check_answer("C8", &format!("bit {bit}"), &answer, "bad_signature", &[]));
    }
    assert_no_errors(&wrong);
}
