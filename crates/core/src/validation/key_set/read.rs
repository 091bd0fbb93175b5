//! Reads one key of a set (RFC 7517 §4). The issuer is trusted for its keys, so that a key whose numbers are not written as
//! the RFCs say is read all the same, with a note; tokens are not read like this.

use std::borrow::Cow;

use aws_lc_rs::signature::{self, ParsedPublicKey};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::key::{Key, Material, PublicKey, RsaKey, secret_bytes};
use super::{NO_SIGNATURE, OTHER_OPERATIONS, OTHER_SVID, OTHER_USE, Origin};
use crate::validation::algorithm::Algorithm;
use crate::validation::json::Json;
use crate::validation::kid::Kid;

/// Base64url with padding or without.
const ANY_PADDING: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A longer `issuer` member names no issuer of a provider.
const MAX_ISSUER_BYTES: usize = 1_024;

/// The `use` of keys that sign JWT-SVIDs (JWT-SVID §6.1).
const JWT_SVID: &str = "jwt-svid";

/// The notes of keys that are not written as the RFCs say.
const STANDARD_BASE64: &str =
    "a number is in standard base64, with padding or with white space instead of base64url (RFC 7518 §2)";
const OTHER_LENGTH: &str = "a coordinate does not have the length of the curve (RFC 7518 §6.2.1.2)";
const NUMERIC_KID: &str = "`kid` is a number instead of a string (RFC 7517 §4.5)";

/// The material of a key, and its public part unless it is a secret.
type Read = Result<(Material, Option<PublicKey>), &'static str>;

/// Whether this entry is one of a SPIFFE bundle, by its `use` (SPIFFE Trust Domain and Bundle §4.2.2).
pub(super) fn is_of_bundle(jwk: &Json) -> bool {
    jwk.member("use").and_then(Json::as_str).is_some_and(|declared| declared.ends_with("-svid"))
}

/// Which values of `use` are read.
#[derive(Clone, Copy)]
pub(super) enum Uses {
    /// `sig` or none.
    Signatures,
    /// `jwt-svid`.
    Svids,
    /// Each of these.
    Any,
}

/// Reads a key.
///
/// # Errors
/// Why it cannot be used; contains nothing of the key.
pub(super) fn key(jwk: &Json, origin: Origin, uses: Uses) -> Result<Key, &'static str> {
    let mut reader = Reader { jwk, note: None };
    let kid = reader.kid()?;
    let declared_use = check_use(jwk, uses)?;
    let alg = match text(jwk, "alg", "`alg` is not a string")? {
        None => None,
        Some(name) => Some(Algorithm::from_name(name).ok_or("`alg` is not a supported signature algorithm")?),
    };
    let kty = text(jwk, "kty", "`kty` is not a string")?.ok_or("`kty` is missing")?;
    // RFC 7518 §6.2.2 and §6.3.2: each of these is part of the private key or reveals it.
    let private = ["d", "p", "q", "dp", "dq", "qi", "oth"];
    if kty != "oct" && private.iter().any(|name| present(jwk, name).is_some()) {
        return Err("its private key is published: anyone could sign with it");
    }
    let (material, public) = match kty {
        "RSA" => reader.rsa()?,
        "EC" => reader.ec()?,
        "OKP" => reader.okp()?,
        "oct" if origin == Origin::Configuration => secret(jwk, alg)?,
        "oct" => return Err("a shared secret (`kty: oct`) is accepted only in the configuration"),
        _ => return Err("`kty` is not supported"),
    };
    let issuer = present(jwk, "issuer").map(|issuer| {
        // One that cannot be read names no issuer.
        issuer.as_str().filter(|issuer| issuer.len() <= MAX_ISSUER_BYTES).unwrap_or_default()
    });
    let key = Key::new(kid, alg, declared_use, material, public, reader.note).of_issuer(issuer);
    match alg {
        Some(alg) if !key.fits(alg) => Err("`alg` does not belong to the key's type or curve"),
        _ => Ok(key),
    }
}

/// Reads the members of a key, and notes the first one that is not written as the RFCs say.
struct Reader<'j> {
    jwk: &'j Json,
    note: Option<&'static str>,
}

impl Reader<'_> {
    fn note(&mut self, note: &'static str) {
        self.note.get_or_insert(note);
    }

    /// RFC 7517 §4.5: a string. A number is read as the text of its digits.
    fn kid(&mut self) -> Result<Option<Kid>, &'static str> {
        let text: &str = match present(self.jwk, "kid") {
            None => return Ok(None),
            Some(Json::String(text)) => text,
            Some(Json::Number(digits)) => {
                self.note(NUMERIC_KID);
                digits
            }
            Some(_) => return Err("`kid` is not a string"),
        };
        Kid::new(text).map(Some).map_err(|_| "`kid` is longer than 1024 bytes")
    }

    fn rsa(&mut self) -> Read {
        // RFC 7518 §6.3.1.1 forbids leading zero octets, but Java's BigInteger writes one.
        let n = without_leading_zeros(self.bytes("n")?);
        let e = without_leading_zeros(self.bytes("e")?);
        let bits = n.len() * 8 - n.first().map_or(0, |first| first.leading_zeros() as usize);
        if bits < 2048 {
            return Err("the RSA modulus has fewer than 2048 bits (RFC 7518 §3.3)");
        }
        if bits > 8192 {
            return Err("the RSA modulus has more than 8192 bits");
        }
        let exponent = e.iter().take(9).fold(0_u128, |value, byte| value << 8 | u128::from(*byte));
        let odd = |number: &[u8]| number.last().is_some_and(|last| last & 1 == 1);
        if !odd(&n) || !odd(&e) || !(3..1 << 33).contains(&exponent) {
            return Err("the RSA modulus or exponent is invalid");
        }
        let public = PublicKey::new(format!(
            r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#,
            URL_SAFE_NO_PAD.encode(&e),
            URL_SAFE_NO_PAD.encode(&n)
        ));
        Ok((Material::Rsa(Box::new(RsaKey::new(n, e))), Some(public)))
    }

    fn ec(&mut self) -> Read {
        let crv = text(self.jwk, "crv", "`crv` is not a string")?.ok_or("`crv` is missing")?;
        let (algorithm, length) = match crv {
            "P-256" => (&signature::ECDSA_P256_SHA256_FIXED, 32),
            "P-384" => (&signature::ECDSA_P384_SHA384_FIXED, 48),
            "P-521" => (&signature::ECDSA_P521_SHA512_FIXED, 66),
            _ => return Err("`crv` is not supported"),
        };
        let (x, y) = (self.coordinate("x", length)?, self.coordinate("y", length)?);
        let point = [&[0x04], x.as_slice(), y.as_slice()].concat();
        let parsed = ParsedPublicKey::new(algorithm, &point).map_err(|_| "the point is not on the curve")?;
        let public = PublicKey::new(format!(
            r#"{{"crv":"{crv}","kty":"EC","x":"{}","y":"{}"}}"#,
            URL_SAFE_NO_PAD.encode(&x),
            URL_SAFE_NO_PAD.encode(&y)
        ));
        let material = match length {
            32 => Material::P256(parsed),
            48 => Material::P384(parsed),
            _ => Material::P521(parsed),
        };
        Ok((material, Some(public)))
    }

    /// A coordinate of this length. Several libraries leave leading zero octets out, or write one for the sign.
    fn coordinate(&mut self, name: &str, length: usize) -> Result<Vec<u8>, &'static str> {
        let written = self.bytes(name)?;
        if written.len() == length {
            return Ok(written);
        }
        let number = without_leading_zeros(written);
        let missing = length.checked_sub(number.len()).ok_or("a coordinate is longer than the curve's")?;
        if number.is_empty() {
            return Err("a coordinate is empty or zero");
        }
        self.note(OTHER_LENGTH);
        Ok([vec![0; missing], number].concat())
    }

    fn okp(&mut self) -> Read {
        match text(self.jwk, "crv", "`crv` is not a string")? {
            Some("Ed25519") => {}
            Some(_) => return Err("`crv` is not supported"),
            None => return Err("`crv` is missing"),
        }
        let x = self.bytes("x")?;
        let parsed =
            ParsedPublicKey::new(&signature::ED25519, &x).map_err(|_| "not an Ed25519 public key")?;
        let mut unsigned = x.clone();
        if let Some(last) = unsigned.last_mut() {
            *last &= 0x7f;
        }
        if SMALL_ORDER.iter().any(|point| point.as_slice() == unsigned) {
            return Err("the Ed25519 point has small order");
        }
        let public = PublicKey::new(format!(
            r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#,
            URL_SAFE_NO_PAD.encode(&x)
        ));
        Ok((Material::Ed25519(parsed), Some(public)))
    }

    /// The bytes of a member, in base64url or in standard base64, with padding and white space or without.
    fn bytes(&mut self, name: &str) -> Result<Vec<u8>, &'static str> {
        let encoded = encoded(self.jwk, name)?;
        if let Ok(bytes) = URL_SAFE_NO_PAD.decode(encoded) {
            return Ok(bytes);
        }
        let url_safe: Cow<'_, [u8]> = encoded
            .bytes()
            .filter(|byte| !byte.is_ascii_whitespace())
            .map(|byte| match byte {
                b'+' => b'-',
                b'/' => b'_',
                byte => byte,
            })
            .collect();
        let bytes = ANY_PADDING.decode(&*url_safe).map_err(|_| "a member of the key is not base64url")?;
        self.note(STANDARD_BASE64);
        Ok(bytes)
    }
}

/// A shared secret of the configuration, which is written as the RFC says.
fn secret(jwk: &Json, alg: Option<Algorithm>) -> Read {
    let bytes = URL_SAFE_NO_PAD.decode(encoded(jwk, "k")?);
    let bytes = bytes.map_err(|_| "a member of the key is not base64url")?;
    if bytes.len() < secret_bytes(alg.unwrap_or(Algorithm::HS256)) {
        return Err("the shared secret is shorter than its hash (RFC 7518 §3.2)");
    }
    Ok((Material::Secret(bytes.into()), None))
}

/// RFC 7517 §4.2, §4.3: checks that the key may verify signatures. Returns `use`, if it is present.
fn check_use(jwk: &Json, uses: Uses) -> Result<Option<&'static str>, &'static str> {
    let declared = match (text(jwk, "use", "`use` is not a string")?, uses) {
        (None, Uses::Signatures | Uses::Any) => None,
        (Some("sig"), Uses::Signatures | Uses::Any) => Some("sig"),
        (Some(JWT_SVID), Uses::Svids | Uses::Any) => Some(JWT_SVID),
        (_, Uses::Signatures) => return Err(OTHER_USE),
        (_, Uses::Svids) => return Err(OTHER_SVID),
        (_, Uses::Any) => return Err(NO_SIGNATURE),
    };
    match present(jwk, "key_ops") {
        None => Ok(declared),
        // RFC 7517 §4.3 defines eight.
        Some(Json::Array(operations)) if operations.len() > 16 => Err("`key_ops` has too many operations"),
        Some(Json::Array(operations)) => {
            let repeated = operations
                .iter()
                .enumerate()
                .any(|(i, operation)| operations.iter().skip(i + 1).any(|o| o == operation));
            if repeated {
                Err("`key_ops` repeats an operation")
            } else if operations.iter().any(|operation| operation.as_str() == Some("verify")) {
                Ok(declared)
            } else {
                Err(OTHER_OPERATIONS)
            }
        }
        Some(_) => Err("`key_ops` is not an array"),
    }
}

/// The points of order 1, 2, 4 and 8, little-endian without the sign bit, and the non-canonical encodings of the
/// first two. With such a key, anyone can create a valid signature without a private key.
const SMALL_ORDER: [[u8; 32]; 7] = [
    [0; 32],
    first(0x01, 0x00, 0x00),
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5,
        0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a,
        0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ],
    first(0xec, 0xff, 0x7f),
    first(0xed, 0xff, 0x7f),
    first(0xee, 0xff, 0x7f),
];

const fn first(first: u8, middle: u8, last: u8) -> [u8; 32] {
    let mut point = [middle; 32];
    point[0] = first;
    point[31] = last;
    point
}

/// A member that is not null: several serializers write null for an absent one.
fn present<'j>(jwk: &'j Json, name: &str) -> Option<&'j Json> {
    jwk.member(name).filter(|value| **value != Json::Null)
}

fn text<'j>(jwk: &'j Json, name: &str, wrong_type: &'static str) -> Result<Option<&'j str>, &'static str> {
    match present(jwk, name) {
        None => Ok(None),
        Some(Json::String(text)) => Ok(Some(text)),
        Some(_) => Err(wrong_type),
    }
}

fn encoded<'j>(jwk: &'j Json, name: &str) -> Result<&'j str, &'static str> {
    present(jwk, name).and_then(Json::as_str).ok_or("a member of the key is missing or not a string")
}

fn without_leading_zeros(bytes: Vec<u8>) -> Vec<u8> {
    bytes.into_iter().skip_while(|byte| *byte == 0).collect()
}
