//! Tools to build attack tokens: manually assembled parts and signatures, the orders of the curves, and an RSA key that signs
//! any block.
//! It shares no code with the service.

use aws_lc_rs::digest::{SHA256, SHA384, digest};
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use serde_json::{Value, json};

/// Base64url without padding.
pub fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A token of these parts, unsigned.
pub fn token(header: &str, payload: &str, signature: &[u8]) -> String {
    format!("{}.{}.{}", base64url(header), base64url(payload), base64url(signature))
}

/// A correctly signed token with this header, JSON or not.
pub fn signed(key: &SigningKey, header: &str, claims: &Value) -> String {
    key.sign_raw(header.as_bytes(), claims.to_string().as_bytes())
}

/// Header, payload and signature as encoded in a token.
pub fn split(token: &str) -> (&str, &str, &str) {
    let (input, signature) = token.rsplit_once('.').expect("a token of three parts");
    let (header, payload) = input.split_once('.').expect("a token of three parts");
    (header, payload, signature)
}

/// The decoded signature of a token.
pub fn signature_of(token: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(split(token).2).expect("a signed token")
}

/// The token with another signature.
pub fn with_signature(token: &str, signature: &[u8]) -> String {
    let (header, payload, _) = split(token);
    format!("{header}.{payload}.{}", base64url(signature))
}

/// The header of a token that this key signs.
pub fn header_text(key: &SigningKey) -> String {
    key.header().to_string()
}

/// An HMAC key with any secret.
pub fn hmac(kid: Option<&str>, algorithm: SigningAlgorithm, secret: &[u8]) -> SigningKey {
    SigningKey::hmac(kid, algorithm, secret).expect("an HS algorithm")
}

/// The order of the curve of an ES algorithm, big-endian (SEC 2 §2).
pub fn curve_order(algorithm: SigningAlgorithm) -> Vec<u8> {
    unhex(match algorithm {
        SigningAlgorithm::ES256 => "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551",
        SigningAlgorithm::ES384 => {
            "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973"
        }
        SigningAlgorithm::ES512 => {
            "01fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffa51868783bf2f966b7fcc0148f709a5d03bb5c9b8899c47aebb6fb71e91386409"
        }
        other => panic!("{other} is not on a curve of a known order"),
    })
}

/// The order of Ed25519's base point, little-endian (RFC 8032 §5.1).
pub fn ed25519_order() -> [u8; 32] {
    let mut order = [0; 32];
    order[..16].copy_from_slice(&unhex("edd3f55c1a631258d69cf7a2def9de14"));
    order[31] = 0x10;
    order
}

fn unhex(text: &str) -> Vec<u8> {
    let digits =
        |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hexadecimal");
    text.as_bytes().chunks(2).map(digits).collect()
}

/// `a + b` of big-endian numbers of the same length; `None` on overflow.
pub fn plus(a: &[u8], b: &[u8]) -> Option<Vec<u8>> {
    let mut sum = vec![0; a.len()];
    let mut carry = 0;
    for i in (0..a.len()).rev() {
        let digit = u16::from(a[i]) + u16::from(b[i]) + carry;
        sum[i] = digit as u8;
        carry = digit >> 8;
    }
    (carry == 0).then_some(sum)
}

/// `a - b` of big-endian numbers of the same length; `a` must be the larger one.
pub fn minus(a: &[u8], b: &[u8]) -> Vec<u8> {
    let mut difference = vec![0; a.len()];
    let mut borrow = 0;
    for i in (0..a.len()).rev() {
        let digit = i16::from(a[i]) - i16::from(b[i]) - borrow;
        difference[i] = digit as u8;
        borrow = i16::from(digit < 0);
    }
    difference
}

/// A small number as big-endian bytes of this length.
pub fn small(number: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    bytes[length - 1] = number;
    bytes
}

/// The ASN.1 form of an ECDSA signature, which JWS does not use.
pub fn ecdsa_der(fixed: &[u8]) -> Vec<u8> {
    let (r, s) = fixed.split_at(fixed.len() / 2);
    der(0x30, &[der_integer(r), der_integer(s)].concat())
}

/// A DER value.
pub fn der(tag: u8, contents: &[u8]) -> Vec<u8> {
    let length = contents.len();
    let mut value = vec![tag];
    match length {
        0..0x80 => value.push(length as u8),
        0x80..0x100 => value.extend([0x81, length as u8]),
        _ => value.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    value.extend(contents);
    value
}

fn der_integer(number: &[u8]) -> Vec<u8> {
    let mut digits: Vec<u8> = number.iter().copied().skip_while(|digit| *digit == 0).collect();
    if digits.first().is_none_or(|first| *first >= 0x80) {
        digits.insert(0, 0);
    }
    der(0x02, &digits)
}

fn member(jwk: &Value, name: &str) -> Vec<u8> {
    let text = jwk[name].as_str().expect("a member of the JWK");
    URL_SAFE_NO_PAD.decode(text).expect("base64url")
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----", lines.join("\n"))
}

fn ssh(kind: &str, fields: &[&[u8]]) -> String {
    let mut blob = Vec::new();
    for field in [kind.as_bytes()].into_iter().chain(fields.iter().copied()) {
        blob.extend((field.len() as u32).to_be_bytes());
        blob.extend(field);
    }
    format!("{kind} {}", STANDARD.encode(blob))
}

/// Every form in which vulnerable software has used a public key as an HMAC secret, by name.
pub fn public_forms(jwk: &Value) -> Vec<(String, Vec<u8>)> {
    let mut forms: Vec<(String, Vec<u8>)> = vec![
        ("the JWK, compact".to_owned(), jwk.to_string().into_bytes()),
        ("the JWK, pretty".to_owned(), format!("{jwk:#}").into_bytes()),
        ("the key set".to_owned(), json!({"keys": [jwk]}).to_string().into_bytes()),
        ("nothing".to_owned(), Vec::new()),
    ];
    let (spki, ssh_line) = match jwk["kty"].as_str() {
        Some("RSA") => {
            let (n, e) = (member(jwk, "n"), member(jwk, "e"));
            let pkcs1 = der(0x30, &[der_integer(&n), der_integer(&e)].concat());
            let text = pem("RSA PUBLIC KEY", &pkcs1);
            forms.push(("PKCS#1 PEM".to_owned(), text.clone().into_bytes()));
            forms.push(("PKCS#1 PEM, new line".to_owned(), format!("{text}\n").into_bytes()));
            forms.push(("the modulus".to_owned(), n.clone()));
            forms.push((
                "the modulus, base64url".to_owned(),
                jwk["n"].to_string().trim_matches('"').as_bytes().to_vec(),
            ));
            let algorithm = der(0x30, &[der(0x06, &unhex("2a864886f70d010101")), der(0x05, &[])].concat());
            let spki = der(0x30, &[algorithm, der(0x03, &[&[0][..], &pkcs1].concat())].concat());
            forms.push(("PKCS#1 DER".to_owned(), pkcs1));
            let signed_n = [&[0][..], &n].concat();
            (spki, ssh("ssh-rsa", &[&e, &signed_n]))
        }
        Some("EC") => {
            let point = [&[4][..], &member(jwk, "x"), &member(jwk, "y")].concat();
            let (curve, nist) = match jwk["crv"].as_str() {
                Some("P-256") => ("2a8648ce3d030107", "nistp256"),
                Some("P-384") => ("2b81040022", "nistp384"),
                _ => ("2b81040023", "nistp521"),
            };
            let algorithm =
                der(0x30, &[der(0x06, &unhex("2a8648ce3d0201")), der(0x06, &unhex(curve))].concat());
            let spki = der(0x30, &[algorithm, der(0x03, &[&[0][..], &point].concat())].concat());
            let line = ssh(&format!("ecdsa-sha2-{nist}"), &[nist.as_bytes(), &point]);
            forms.push(("x".to_owned(), member(jwk, "x")));
            forms.push(("the point".to_owned(), point));
            (spki, line)
        }
        Some("OKP") => {
            let x = member(jwk, "x");
            let algorithm = der(0x30, &der(0x06, &unhex("2b6570")));
            let spki = der(0x30, &[algorithm, der(0x03, &[&[0][..], &x].concat())].concat());
            let line = ssh("ssh-ed25519", &[&x]);
            forms.push(("x".to_owned(), x));
            (spki, line)
        }
        _ => return forms,
    };
    let text = pem("PUBLIC KEY", &spki);
    let crlf = text.replace('\n', "\r\n");
    forms.push(("SPKI PEM, new line".to_owned(), format!("{text}\n").into_bytes()));
    forms.push(("SPKI PEM, CRLF".to_owned(), crlf.into_bytes()));
    forms.push(("SPKI PEM".to_owned(), text.into_bytes()));
    forms.push(("SPKI DER".to_owned(), spki));
    forms.push(("OpenSSH, comment".to_owned(), format!("{ssh_line} demo@host\n").into_bytes()));
    forms.push(("OpenSSH".to_owned(), ssh_line.into_bytes()));
    forms
}

/// A 2048-bit RSA key that signs any block, which no library offers.
pub struct RawRsa {
    n: Vec<u8>,
    e: Vec<u8>,
    d: Vec<u8>,
}

impl RawRsa {
    /// A fresh key.
    pub fn generate() -> Self {
        let pair = KeyPair::generate(KeySize::Rsa2048).expect("AWS-LC makes RSA keys");
        let pkcs8 = pair.as_der().expect("AWS-LC writes PKCS#8");
        // RFC 5208: version, algorithm, and RFC 8017's RSAPrivateKey: version, n, e, d, ...
        let outer = der_values(&der_values(pkcs8.as_ref())[0]);
        let numbers = der_values(&der_values(&outer[2])[0]);
        let number = |i: usize| without_zeros(&numbers[i]);
        Self { n: number(1), e: number(2), d: number(3) }
    }

    /// The JWK to publish under this `kid`; without `alg`, so that it is for every RSA algorithm.
    pub fn jwk(&self, kid: &str) -> Value {
        json!({"kty": "RSA", "kid": kid, "n": base64url(&self.n), "e": base64url(&self.e)})
    }

    /// The modulus.
    pub fn modulus(&self) -> &[u8] {
        &self.n
    }

    /// RFC 8017 §5.2.1 of the unchanged block.
    pub fn sign_block(&self, block: &[u8]) -> Vec<u8> {
        power(block, &self.d, &self.n)
    }

    /// The block of RFC 8017 §9.2: type 1, as much padding as fits, and `end`.
    pub fn padded(&self, end: &[u8]) -> Vec<u8> {
        let mut block = vec![0, 1];
        block.resize(self.n.len() - end.len() - 1, 0xff);
        block.push(0);
        block.extend(end);
        block
    }
}

/// DigestInfo for SHA-256 (RFC 8017 §9.2).
pub fn digest_info(message: &[u8]) -> Vec<u8> {
    let algorithm = der(0x30, &[der(0x06, &unhex("608648016503040201")), der(0x05, &[])].concat());
    der(0x30, &[algorithm, der(0x04, digest(&SHA256, message).as_ref())].concat())
}

/// DigestInfo for SHA-256 with absent instead of NULL parameters.
pub fn digest_info_without_null(message: &[u8]) -> Vec<u8> {
    let algorithm = der(0x30, &der(0x06, &unhex("608648016503040201")));
    der(0x30, &[algorithm, der(0x04, digest(&SHA256, message).as_ref())].concat())
}

/// The hash of a PSS mask.
#[derive(Clone, Copy)]
pub enum MaskHash {
    /// As in RFC 7518 §3.5 for PS256.
    Sha256,
    /// Another one.
    Sha384,
}

/// EMSA-PSS (RFC 8017 §9.1.1) of SHA-256 with a salt of any length.
pub fn pss_block(message: &[u8], length: usize, salt: usize, mask: MaskHash) -> Vec<u8> {
    let salt = vec![0x5a; salt];
    let inner = [&[0; 8][..], digest(&SHA256, message).as_ref(), &salt].concat();
    let hash = digest(&SHA256, &inner);
    let hash = hash.as_ref();
    let masked = length - hash.len() - 1;
    let mut block = vec![0; masked - salt.len() - 1];
    block.push(1);
    block.extend(&salt);
    let mut counter = 0_u32;
    let mut mask_bytes: Vec<u8> = Vec::new();
    while mask_bytes.len() < masked {
        let seed = [hash, &counter.to_be_bytes()].concat();
        let algorithm = match mask {
            MaskHash::Sha256 => &SHA256,
            MaskHash::Sha384 => &SHA384,
        };
        mask_bytes.extend(digest(algorithm, &seed).as_ref());
        counter += 1;
    }
    block.iter_mut().zip(mask_bytes).for_each(|(byte, mask)| *byte ^= mask);
    block[0] &= 0x7f;
    block.extend(hash);
    block.push(0xbc);
    block
}

/// The contents of consecutive DER values.
fn der_values(mut der: &[u8]) -> Vec<Vec<u8>> {
    let mut values = Vec::new();
    while let [_, length, rest @ ..] = der {
        let (length, rest) = match *length {
            short if short < 0x80 => (usize::from(short), rest),
            long => {
                let (digits, rest) = rest.split_at(usize::from(long & 0x7f));
                (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
            }
        };
        let (contents, rest) = rest.split_at(length);
        values.push(contents.to_vec());
        der = rest;
    }
    values
}

fn without_zeros(number: &[u8]) -> Vec<u8> {
    number.iter().copied().skip_while(|digit| *digit == 0).collect()
}

/// `base ^ exponent mod modulus`, big-endian, by Montgomery's method. The modulus is odd.
fn power(base: &[u8], exponent: &[u8], modulus: &[u8]) -> Vec<u8> {
    let n = limbs(modulus, modulus.len().div_ceil(8));
    let inverse = (0..6).fold(1_u64, |x, _| x.wrapping_mul(2_u64.wrapping_sub(n[0].wrapping_mul(x))));
    let inverse = inverse.wrapping_neg();
    // 2^(128 k) mod n, by doubling.
    let mut square = limbs(&[1], n.len());
    for _ in 0..128 * n.len() {
        square = doubled(&square, &n);
    }
    let base = multiplied(&limbs(base, n.len()), &square, &n, inverse);
    let mut result = multiplied(&limbs(&[1], n.len()), &square, &n, inverse);
    for bit in exponent.iter().flat_map(|byte| (0..8).rev().map(move |i| byte >> i & 1)) {
        result = multiplied(&result, &result, &n, inverse);
        if bit == 1 {
            result = multiplied(&result, &base, &n, inverse);
        }
    }
    result = multiplied(&result, &limbs(&[1], n.len()), &n, inverse);
    let bytes: Vec<u8> = result.iter().rev().flat_map(|limb| limb.to_be_bytes()).collect();
    bytes[bytes.len() - modulus.len()..].to_vec()
}

fn limbs(number: &[u8], count: usize) -> Vec<u64> {
    let mut limbs = vec![0; count];
    for (i, digit) in number.iter().rev().enumerate() {
        limbs[i / 8] |= u64::from(*digit) << (8 * (i % 8));
    }
    limbs
}

fn doubled(a: &[u64], n: &[u64]) -> Vec<u64> {
    let top = a[a.len() - 1] >> 63;
    let twice: Vec<u64> = (0..a.len()).map(|i| a[i] << 1 | if i == 0 { 0 } else { a[i - 1] >> 63 }).collect();
    reduced(&twice, top, n)
}

/// `a`, or `a - n` if `a` with this limb above it is at least `n`.
fn reduced(a: &[u64], above: u64, n: &[u64]) -> Vec<u64> {
    let mut difference = vec![0; a.len()];
    let mut borrow = false;
    for i in 0..a.len() {
        let (digit, first) = a[i].overflowing_sub(n[i]);
        let (digit, second) = digit.overflowing_sub(u64::from(borrow));
        difference[i] = digit;
        borrow = first || second;
    }
    if above == 0 && borrow { a.to_vec() } else { difference }
}

fn multiplied(a: &[u64], b: &[u64], n: &[u64], inverse: u64) -> Vec<u64> {
    let k = n.len();
    let mut t = vec![0_u64; k + 2];
    let add = |t: &mut Vec<u64>, x: u64, by: &[u64]| {
        let mut carry = 0_u128;
        for j in 0..k {
            let sum = u128::from(t[j]) + u128::from(x) * u128::from(by[j]) + carry;
            t[j] = sum as u64;
            carry = sum >> 64;
        }
        let sum = u128::from(t[k]) + carry;
        t[k] = sum as u64;
        t[k + 1] += (sum >> 64) as u64;
    };
    for x in a {
        add(&mut t, *x, b);
        let m = t[0].wrapping_mul(inverse);
        add(&mut t, m, n);
        t.remove(0);
        t.push(0);
    }
    reduced(&t[..k], t[k], n)
}

#[test]
fn unmodified_blocks_are_valid() {
    let rsa = RawRsa::generate();
    let verify = |parameters, signature: &[u8]| {
        aws_lc_rs::signature::RsaPublicKeyComponents { n: &rsa.n, e: &rsa.e }
            .verify(parameters, b"message", signature)
            .is_ok()
    };
    let pkcs1 = rsa.sign_block(&rsa.padded(&digest_info(b"message")));
    assert!(verify(&aws_lc_rs::signature::RSA_PKCS1_2048_8192_SHA256, &pkcs1));
    let pss = rsa.sign_block(&pss_block(b"message", rsa.n.len(), 32, MaskHash::Sha256));
    assert!(verify(&aws_lc_rs::signature::RSA_PSS_2048_8192_SHA256, &pss));
}
