//! Signing keys of the embedded issuer, and the tokens that they sign, well-formed or not.
//!
//! It signs with AWS-LC directly and shares no code with `validation`, so that an error there is not hidden by the
//! same error here. `serve` must not use it: it holds private keys, and it signs any input, including hostile
//! headers.

#![allow(clippy::indexing_slicing, reason = "no external input: lengths are those of keys made in this file")]

use std::fmt;
use std::sync::{Arc, OnceLock};

use aws_lc_rs::rand::{SystemRandom, fill};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaEncoding, RsaKeyPair,
};
use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// The number of RSA key pairs of [`SigningKey::pooled`], per process.
const POOL_SIZE: usize = 4;

/// Why `Unspecified` of AWS-LC cannot occur when this file generates a key or signs.
const AWS_LC_CANNOT_FAIL: &str = "the key is well-formed, its size and algorithm are ours and supported: AWS-LC fails only without memory or entropy";

/// The signature algorithms (RFC 7518 §3.1, RFC 8037) that a [`SigningKey`] signs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // each is named as in the registry
pub enum SigningAlgorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    ES512,
    EdDSA,
    HS256,
    HS384,
    HS512,
}

impl SigningAlgorithm {
    /// Every algorithm, the symmetric ones last.
    pub const ALL: [Self; 13] = [
        Self::RS256,
        Self::RS384,
        Self::RS512,
        Self::PS256,
        Self::PS384,
        Self::PS512,
        Self::ES256,
        Self::ES384,
        Self::ES512,
        Self::EdDSA,
        Self::HS256,
        Self::HS384,
        Self::HS512,
    ];

    /// The value of `alg`.
    pub fn name(self) -> &'static str {
        match self {
            Self::RS256 => "RS256",
            Self::RS384 => "RS384",
            Self::RS512 => "RS512",
            Self::PS256 => "PS256",
            Self::PS384 => "PS384",
            Self::PS512 => "PS512",
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::ES512 => "ES512",
            Self::EdDSA => "EdDSA",
            Self::HS256 => "HS256",
            Self::HS384 => "HS384",
            Self::HS512 => "HS512",
        }
    }

    fn primitive(self) -> Primitive {
        match self {
            Self::RS256 => Primitive::Rsa(&signature::RSA_PKCS1_SHA256),
            Self::RS384 => Primitive::Rsa(&signature::RSA_PKCS1_SHA384),
            Self::RS512 => Primitive::Rsa(&signature::RSA_PKCS1_SHA512),
            Self::PS256 => Primitive::Rsa(&signature::RSA_PSS_SHA256),
            Self::PS384 => Primitive::Rsa(&signature::RSA_PSS_SHA384),
            Self::PS512 => Primitive::Rsa(&signature::RSA_PSS_SHA512),
            Self::ES256 => Primitive::Ecdsa("P-256", 32, &signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            Self::ES384 => Primitive::Ecdsa("P-384", 48, &signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            Self::ES512 => Primitive::Ecdsa("P-521", 66, &signature::ECDSA_P521_SHA512_FIXED_SIGNING),
            Self::EdDSA => Primitive::Ed25519,
            Self::HS256 => Primitive::Hmac(hmac::HMAC_SHA256, &digest::SHA256),
            Self::HS384 => Primitive::Hmac(hmac::HMAC_SHA384, &digest::SHA384),
            Self::HS512 => Primitive::Hmac(hmac::HMAC_SHA512, &digest::SHA512),
        }
    }
}

impl fmt::Display for SigningAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The primitive of an algorithm.
enum Primitive {
    Rsa(&'static dyn RsaEncoding),
    /// The curve's name in a JWK, the length of a coordinate, and the signer.
    Ecdsa(&'static str, usize, &'static EcdsaSigningAlgorithm),
    Ed25519,
    Hmac(hmac::Algorithm, &'static digest::Algorithm),
}

#[derive(Clone)]
enum Material {
    Rsa(Arc<RsaKeyPair>),
    Ecdsa(Arc<EcdsaKeyPair>),
    Ed25519(Arc<Ed25519KeyPair>),
    Hmac(Arc<[u8]>),
}

/// A private key with its `kid` and algorithm. Clones share the key pair.
#[derive(Clone)]
pub struct SigningKey {
    kid: Option<String>,
    algorithm: SigningAlgorithm,
    material: Material,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("kid", &self.kid)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    /// Generates a key: RSA of 2048 bits, the algorithm's curve, or a random secret as long as its hash.
    ///
    /// `kid` is a `&str`, or `None` for a key (and tokens) without one. RSA takes CPU time, a tenth of a second and
    /// more; [`SigningKey::pooled`] avoids that.
    pub fn generate<'a>(kid: impl Into<Option<&'a str>>, algorithm: SigningAlgorithm) -> Self {
        let material = match algorithm.primitive() {
            Primitive::Rsa(_) => Material::Rsa(generate_rsa()),
            Primitive::Ecdsa(_, _, signer) => {
                Material::Ecdsa(Arc::new(EcdsaKeyPair::generate(signer).expect(AWS_LC_CANNOT_FAIL)))
            }
            Primitive::Ed25519 => {
                Material::Ed25519(Arc::new(Ed25519KeyPair::generate().expect(AWS_LC_CANNOT_FAIL)))
            }
            Primitive::Hmac(_, hash) => {
                let mut secret = vec![0; hash.output_len()];
                fill(&mut secret).expect(AWS_LC_CANNOT_FAIL);
                Material::Hmac(secret.into())
            }
        };
        Self { kid: kid.into().map(str::to_owned), algorithm, material }
    }

    /// As [`SigningKey::generate`], but an RSA key pair is from a process-wide pool of four: the same `slot` (modulo
    /// four) is the same key pair, whatever its `kid` and algorithm.
    pub fn pooled<'a>(slot: usize, kid: impl Into<Option<&'a str>>, algorithm: SigningAlgorithm) -> Self {
        static POOL: [OnceLock<Arc<RsaKeyPair>>; POOL_SIZE] = [const { OnceLock::new() }; POOL_SIZE];
        match algorithm.primitive() {
            Primitive::Rsa(_) => Self {
                kid: kid.into().map(str::to_owned),
                algorithm,
                material: Material::Rsa(Arc::clone(POOL[slot % POOL_SIZE].get_or_init(generate_rsa))),
            },
            _ => Self::generate(kid, algorithm),
        }
    }

    /// An HMAC key with this secret, any bytes (for example another key's public part); `None` unless the algorithm
    /// is HS256, HS384 or HS512.
    pub fn hmac<'a>(
        kid: impl Into<Option<&'a str>>,
        algorithm: SigningAlgorithm,
        secret: &[u8],
    ) -> Option<Self> {
        matches!(algorithm.primitive(), Primitive::Hmac(..)).then(|| Self {
            kid: kid.into().map(str::to_owned),
            algorithm,
            material: Material::Hmac(secret.into()),
        })
    }

    /// The same key pair with another `kid`, or none.
    pub fn with_kid<'a>(&self, kid: impl Into<Option<&'a str>>) -> Self {
        Self { kid: kid.into().map(str::to_owned), ..self.clone() }
    }

    /// The same key pair with another algorithm; `None` if it does not support that (an elliptic curve has one
    /// algorithm, RSA six, a secret three).
    pub fn with_alg(&self, algorithm: SigningAlgorithm) -> Option<Self> {
        let is_supported = match (&self.material, algorithm.primitive()) {
            (Material::Rsa(_), Primitive::Rsa(_))
            | (Material::Hmac(_), Primitive::Hmac(..))
            | (Material::Ed25519(_), Primitive::Ed25519) => true,
            (Material::Ecdsa(_), Primitive::Ecdsa(..)) => algorithm == self.algorithm,
            _ => false,
        };
        is_supported.then(|| Self { algorithm, ..self.clone() })
    }

    /// The `kid` of the JWK and the tokens.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// The algorithm of the JWK and the tokens.
    pub fn algorithm(&self) -> SigningAlgorithm {
        self.algorithm
    }

    /// The JWK to publish: `kty`, `use: sig`, `alg`, `kid` if there is one, and the public key.
    ///
    /// For an HMAC key this is the secret itself, as in an inline `jwks`.
    pub fn public_jwk(&self) -> Value {
        let mut jwk = match &self.material {
            Material::Rsa(pair) => {
                let (modulus, exponent) = rsa_numbers(pair.public_key().as_ref())
                    .expect("AWS-LC encodes an RSA public key as RFC 8017's RSAPublicKey");
                json!({"kty": "RSA", "n": encode(modulus), "e": encode(exponent)})
            }
            Material::Ecdsa(pair) => {
                let Primitive::Ecdsa(curve, length, _) = self.algorithm.primitive() else {
                    unreachable!("an ECDSA key pair is only ever made with its own algorithm")
                };
                // SEC 1 §2.3.3, uncompressed: 0x04, x, y.
                let point = pair.public_key().as_ref();
                let (x, y) = point[1..].split_at(length);
                json!({"kty": "EC", "crv": curve, "x": encode(x), "y": encode(y)})
            }
            Material::Ed25519(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": encode(pair.public_key().as_ref())})
            }
            Material::Hmac(secret) => json!({"kty": "oct", "k": encode(secret)}),
        };
        jwk["use"] = json!("sig");
        jwk["alg"] = json!(self.algorithm.name());
        if let Some(kid) = &self.kid {
            jwk["kid"] = json!(kid);
        }
        jwk
    }

    /// The header of tokens of [`SigningKey::sign`]: `alg`, `typ: JWT`, and `kid` if there is one.
    pub fn header(&self) -> Value {
        let mut header = json!({"alg": self.algorithm.name(), "typ": "JWT"});
        if let Some(kid) = &self.kid {
            header["kid"] = json!(kid);
        }
        header
    }

    /// A token with these claims: a compact JWS.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_with_header(&self.header(), claims)
    }

    /// A token with this header, unchecked; the signature is this key's, by its own algorithm.
    pub fn sign_with_header(&self, header: &Value, claims: &Value) -> String {
        self.sign_raw(header.to_string().as_bytes(), claims.to_string().as_bytes())
    }

    /// A correctly signed token of any bytes, JSON or not.
    pub fn sign_raw(&self, header: &[u8], payload: &[u8]) -> String {
        let mut token = encode(header);
        token.push('.');
        token.push_str(&encode(payload));
        let signature = self.signature(token.as_bytes());
        token.push('.');
        token.push_str(&encode(&signature));
        token
    }

    /// The signature of the signing input, before base64url.
    pub fn signature(&self, signing_input: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match (&self.material, self.algorithm.primitive()) {
            (Material::Rsa(pair), Primitive::Rsa(encoding)) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &random, signing_input, &mut signature).expect(AWS_LC_CANNOT_FAIL);
                signature
            }
            (Material::Ecdsa(pair), _) => {
                pair.sign(&random, signing_input).expect(AWS_LC_CANNOT_FAIL).as_ref().to_vec()
            }
            (Material::Ed25519(pair), _) => pair.sign(signing_input).as_ref().to_vec(),
            (Material::Hmac(secret), Primitive::Hmac(algorithm, _)) => {
                hmac::sign(&hmac::Key::new(algorithm, secret), signing_input).as_ref().to_vec()
            }
            (Material::Rsa(_) | Material::Hmac(_), _) => {
                unreachable!("every constructor pairs the material with an algorithm of its kind")
            }
        }
    }
}

fn generate_rsa() -> Arc<RsaKeyPair> {
    Arc::new(RsaKeyPair::generate(KeySize::Rsa2048).expect(AWS_LC_CANNOT_FAIL))
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Modulus and exponent of an `RSAPublicKey` (RFC 8017), a DER sequence of the two, without leading zeroes.
fn rsa_numbers(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (sequence, _) = der_value(der, 0x30)?;
    let (modulus, rest) = der_value(sequence, 0x02)?;
    let (exponent, _) = der_value(rest, 0x02)?;
    Some((without_zeroes(modulus), without_zeroes(exponent)))
}

/// The content of the DER value at the front, if it has this tag, and the rest.
fn der_value(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let [first, length, rest @ ..] = der else {
        return None;
    };
    if *first != tag {
        return None;
    }
    if *length < 0x80 {
        return rest.split_at_checked(usize::from(*length));
    }
    let (length, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
    if length.len() > size_of::<usize>() {
        return None;
    }
    let length = length.iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte));
    rest.split_at_checked(length)
}

fn without_zeroes(number: &[u8]) -> &[u8] {
    let zeroes = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeroes..]
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{RsaPublicKeyComponents, UnparsedPublicKey};

    use super::*;

    fn decode(text: &Value) -> Vec<u8> {
        URL_SAFE_NO_PAD.decode(text.as_str().expect("a string")).expect("base64url")
    }

    /// Verifies with AWS-LC from the JWK alone.
    fn verifies(jwk: &Value, token: &str) -> bool {
        let (input, signature) = token.rsplit_once('.').expect("three parts");
        let (input, signature) = (input.as_bytes(), decode(&json!(signature)));
        let rsa = |parameters| {
            let key = RsaPublicKeyComponents { n: decode(&jwk["n"]), e: decode(&jwk["e"]) };
            key.verify(parameters, input, &signature).is_ok()
        };
        let point = |algorithm: &'static dyn signature::VerificationAlgorithm| {
            let bytes = [vec![4], decode(&jwk["x"]), decode(&jwk["y"])].concat();
            let key = UnparsedPublicKey::new(algorithm, bytes);
            key.verify(input, &signature).is_ok()
        };
        let mac = |algorithm| {
            let key = hmac::Key::new(algorithm, &decode(&jwk["k"]));
            hmac::verify(&key, input, &signature).is_ok()
        };
        match jwk["alg"].as_str().expect("alg") {
            "RS256" => rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
            "RS384" => rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
            "RS512" => rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
            "PS256" => rsa(&signature::RSA_PSS_2048_8192_SHA256),
            "PS384" => rsa(&signature::RSA_PSS_2048_8192_SHA384),
            "PS512" => rsa(&signature::RSA_PSS_2048_8192_SHA512),
            "ES256" => point(&signature::ECDSA_P256_SHA256_FIXED),
            "ES384" => point(&signature::ECDSA_P384_SHA384_FIXED),
            "ES512" => point(&signature::ECDSA_P521_SHA512_FIXED),
            "EdDSA" => UnparsedPublicKey::new(&signature::ED25519, decode(&jwk["x"]))
                .verify(input, &signature)
                .is_ok(),
            "HS256" => mac(hmac::HMAC_SHA256),
            "HS384" => mac(hmac::HMAC_SHA384),
            "HS512" => mac(hmac::HMAC_SHA512),
            other => panic!("unknown algorithm {other}"),
        }
    }

    #[test]
    fn every_algorithm_verifies_under_its_own_jwk_and_no_other() {
        for algorithm in SigningAlgorithm::ALL {
            let key = SigningKey::pooled(0, "a", algorithm);
            let other = SigningKey::pooled(1, "b", algorithm);
            let token = key.sign(&json!({"sub": "alice"}));
            assert!(verifies(&key.public_jwk(), &token), "{algorithm}");
            assert!(!verifies(&other.public_jwk(), &token), "{algorithm}");
            let altered = token.replacen('.', "A.", 1);
            assert!(!verifies(&key.public_jwk(), &altered), "{algorithm}");
        }
    }

    #[test]
    fn the_jwk_has_the_members_and_lengths_of_its_type() {
        let lengths = |algorithm, members: &[(&str, usize)]| {
            let jwk = SigningKey::pooled(0, "k", algorithm).public_jwk();
            assert_eq!(jwk["alg"], algorithm.name());
            assert_eq!(jwk["use"], "sig");
            assert_eq!(jwk["kid"], "k");
            for (member, length) in members {
                assert_eq!(decode(&jwk[member]).len(), *length, "{algorithm} {member}");
            }
            (jwk["kty"].clone(), jwk["crv"].clone())
        };
        use SigningAlgorithm as Alg;
        for rsa in [Alg::RS256, Alg::PS512] {
            assert_eq!(lengths(rsa, &[("n", 256), ("e", 3)]), (json!("RSA"), json!(null)));
        }
        let ec = [(Alg::ES256, "P-256", 32), (Alg::ES384, "P-384", 48), (Alg::ES512, "P-521", 66)];
        for (algorithm, curve, length) in ec {
            assert_eq!(lengths(algorithm, &[("x", length), ("y", length)]), (json!("EC"), json!(curve)));
            let signature = SigningKey::generate("k", algorithm).signature(b"input");
            assert_eq!(signature.len(), 2 * length, "r and s, not DER");
        }
        assert_eq!(lengths(Alg::EdDSA, &[("x", 32)]), (json!("OKP"), json!("Ed25519")));
        assert_eq!(lengths(Alg::HS384, &[("k", 48)]), (json!("oct"), json!(null)));
    }

    #[test]
    fn a_key_pair_supports_other_kids_and_the_algorithms_of_its_kind() {
        use SigningAlgorithm as Alg;
        let key = SigningKey::pooled(0, "first", Alg::RS256);
        let renamed = key.with_kid(None);
        assert_eq!(renamed.public_jwk().get("kid"), None);
        assert_eq!(renamed.header().get("kid"), None);
        assert_eq!(renamed.public_jwk()["n"], key.public_jwk()["n"]);
        let pss = key.with_alg(Alg::PS384).expect("RSA signs PS384");
        assert!(verifies(&pss.public_jwk(), &pss.sign(&json!({}))));
        assert!(key.with_alg(Alg::ES256).is_none());
        assert!(SigningKey::generate("k", Alg::ES256).with_alg(Alg::ES384).is_none());
        assert!(SigningKey::hmac("k", Alg::RS256, b"secret").is_none());
        let empty = SigningKey::hmac("k", Alg::HS256, b"").expect("HS256 takes any secret");
        assert_eq!(empty.public_jwk()["k"], "");
    }

    #[test]
    fn header_and_payload_may_be_any_bytes() {
        let key = SigningKey::generate("k", SigningAlgorithm::EdDSA);
        let token = key.sign_raw(b"\xff{", b"");
        let (header, rest) = token.split_once('.').expect("a dot");
        assert_eq!(decode(&json!(header)), b"\xff{");
        assert!(rest.starts_with('.'));
        assert!(verifies(&key.public_jwk(), &token));
        assert!(!format!("{key:?}").contains("material"));
    }

    #[test]
    fn a_truncated_der_value_is_none() {
        let key = SigningKey::pooled(0, None, SigningAlgorithm::RS256);
        let Material::Rsa(pair) = &key.material else { panic!("RS256 is RSA") };
        let der = pair.public_key().as_ref();
        for end in 0..der.len() {
            assert_eq!(rsa_numbers(&der[..end]), None);
        }
    }
}
