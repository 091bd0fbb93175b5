//! Parses a JWK Set (RFC 7517 §5) into keys that can verify signatures, and lists the skipped ones with a reason.
//!
//! An unusable key is skipped and listed; the other keys of the set are used. Only verifying keys are kept; private
//! keys are never stored. This module fetches nothing.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{self, ParsedPublicKey, RsaParameters, RsaPublicKeyComponents};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::algorithm::Algorithm;
use super::digest::Thumbprint;
use super::json::{Json, JsonLimits};
use super::kid::Kid;

/// Keys beyond this many are skipped.
const MAX_KEYS: usize = 1_000;

/// Limits on one key. Keys of real issuers have a dozen members, and chains of a few certificates.
const KEY_LIMITS: JsonLimits = JsonLimits { values: 4_096, depth: 32 };

/// The keys of one provider, in the order of the document.
#[derive(Clone, Debug, Default)]
pub struct KeySet {
    keys: Vec<Arc<Key>>,
    /// The positions in `keys`, sorted by `kid`, those of one `kid` in the order of the document: each token asks for one
    /// `kid`, and a set that is compared with another one does so for each key. Usually there are two or three keys, which
    /// a hash table would not find sooner.
    by_kid: Vec<usize>,
    skipped: Vec<SkippedKey>,
}

/// A key of the document that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedKey {
    /// Its `kid`, if it has one that can be shown.
    pub kid: Option<Kid>,
    /// Why it cannot be used; contains nothing of the key.
    pub reason: &'static str,
}

/// Reasons of keys that are not for signatures.
const OTHER_USE: &str = "`use` is not `sig`";
const OTHER_OPERATIONS: &str = "`key_ops` does not allow `verify`";

impl SkippedKey {
    /// Whether tokens may be signed with it, as far as the document says. The others are for encryption.
    pub fn may_sign(&self) -> bool {
        ![OTHER_USE, OTHER_OPERATIONS].contains(&self.reason)
    }
}

/// A document that is not a key set, or has no usable key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeySetError {
    /// Not JSON, or not an object with one `keys` array (RFC 7517 §5).
    NotAKeySet,
    /// None of this many keys can be used; the reason is that of the first one.
    NothingUsable {
        /// How many keys the document has.
        skipped: usize,
        /// Why the first one cannot be used.
        reason: Option<&'static str>,
    },
}

impl fmt::Display for KeySetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeySetError::NotAKeySet => {
                f.write_str("not a JWK Set: a JSON object with a `keys` array is expected")
            }
            KeySetError::NothingUsable { reason: None, .. } => f.write_str("the key set is empty"),
            KeySetError::NothingUsable { skipped, reason: Some(reason) } => {
                write!(f, "none of the {skipped} keys of the set can be used, the first because: {reason}")
            }
        }
    }
}

impl std::error::Error for KeySetError {}

/// Where a document is from: only the configuration may contain shared secrets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Fetched,
    Configuration,
}

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

impl KeySet {
    /// Parses a set from an issuer or from a file.
    ///
    /// # Errors
    /// The document is not a key set or has no usable key; either fails the fetch.
    pub fn parse(document: &[u8]) -> Result<Self, KeySetError> {
        Self::read(document, Origin::Fetched)
    }

    /// Parses a set from the configuration, which may contain `oct` keys.
    ///
    /// # Errors
    /// As [`KeySet::parse`]; also, any key that cannot be used is an error, which the author of the configuration
    /// has to see.
    pub fn parse_inline(document: &[u8]) -> Result<Self, KeySetError> {
        let set = Self::read(document, Origin::Configuration)?;
        match set.skipped.first() {
            None => Ok(set),
            Some(first) => {
                Err(KeySetError::NothingUsable { skipped: set.skipped.len(), reason: Some(first.reason) })
            }
        }
    }

    fn read(document: &[u8], origin: Origin) -> Result<Self, KeySetError> {
        let text = std::str::from_utf8(document).map_err(|_| KeySetError::NotAKeySet)?;
        // Serde would accept an array for a struct.
        if !text.trim_start().starts_with('{') {
            return Err(KeySetError::NotAKeySet);
        }
        let document: Document<'_> = serde_json::from_str(text).map_err(|_| KeySetError::NotAKeySet)?;
        let (mut keys, mut skipped) = (Vec::new(), Vec::new());
        for raw in document.keys {
            let jwk = Json::parse(raw.get().as_bytes(), &KEY_LIMITS);
            let read = match &jwk {
                _ if keys.len() >= MAX_KEYS => Err("too many keys in the set"),
                Ok(jwk @ Json::Object(_)) => Key::read(jwk, origin),
                _ => Err("not an object, or with a repeated member"),
            };
            match read {
                Ok(key) => keys.push(Arc::new(key)),
                Err(reason) if skipped.len() < MAX_KEYS => {
                    let kid = jwk.as_ref().ok().and_then(|jwk| jwk.member("kid")).and_then(Json::as_str);
                    let kid = kid.and_then(|kid| Kid::new(kid).ok());
                    skipped.push(SkippedKey { kid, reason });
                }
                Err(_) => {}
            }
        }
        if keys.is_empty() {
            let reason = skipped.first().map(|key| key.reason);
            return Err(KeySetError::NothingUsable { skipped: skipped.len(), reason });
        }
        Ok(Self::of(keys, skipped))
    }

    fn of(keys: Vec<Arc<Key>>, skipped: Vec<SkippedKey>) -> Self {
        let mut by_kid: Vec<usize> = (0..keys.len()).collect();
        // Stable.
        by_kid.sort_by_key(|at| keys.get(*at).and_then(|key| key.kid()).map(Kid::as_str));
        Self { keys, by_kid, skipped }
    }

    /// The keys with this `kid`, or without any, in the order of the document.
    fn named<'s>(&'s self, kid: Option<&'s Kid>) -> impl Iterator<Item = &'s Arc<Key>> + use<'s> {
        let kid_at = |at: &usize| self.keys.get(*at).and_then(|key| key.kid()).map(Kid::as_str);
        let kid = kid.map(Kid::as_str);
        let from = self.by_kid.partition_point(|at| kid_at(at) < kid);
        let named = self.by_kid.get(from..).unwrap_or_default().iter().filter_map(|at| self.keys.get(*at));
        named.take_while(move |key| key.kid().map(Kid::as_str) == kid)
    }

    /// The keys that may verify a token with this `kid` and `alg`: without `kid`, every key that fits the
    /// algorithm; with one, only keys with exactly that `kid` (RFC 7515 §4.1.4). A key without a `kid` is used only
    /// for tokens without one.
    pub fn fitting<'s>(
        &'s self,
        kid: Option<&'s Kid>,
        algorithm: Algorithm,
    ) -> impl Iterator<Item = &'s Arc<Key>> + use<'s> {
        let named = kid.map(|kid| self.named(Some(kid)));
        let all = kid.is_none().then(|| self.keys.iter());
        let keys = named.into_iter().flatten().chain(all.into_iter().flatten());
        keys.filter(move |key| key.fits(algorithm))
    }

    /// The usable keys.
    pub fn keys(&self) -> &[Arc<Key>] {
        &self.keys
    }

    /// The skipped keys.
    pub fn skipped(&self) -> &[SkippedKey] {
        &self.skipped
    }

    /// Shares the keys that are also in an older set, to keep their usage flags.
    pub fn adopt(&mut self, older: &KeySet) {
        for key in &mut self.keys {
            // Its `kid` is the same too, so that the order by `kid` remains.
            if let Some(same) = older.find(key) {
                *key = Arc::clone(same);
            }
        }
    }

    /// The keys that are in an older set but not in this one.
    pub fn lacks<'o>(&self, older: &'o KeySet) -> impl Iterator<Item = &'o Arc<Key>> {
        older.keys.iter().filter(|old| !self.has(old))
    }

    /// Whether it contains this key.
    pub fn has(&self, key: &Key) -> bool {
        self.find(key).is_some()
    }

    /// Whether it contains this key, which is then used to accept a token again.
    pub(crate) fn accepts_again(&self, key: &Key) -> bool {
        self.find(key).inspect(|known| known.mark_used()).is_some()
    }

    fn find<'s>(&'s self, key: &'s Key) -> Option<&'s Arc<Key>> {
        self.named(key.kid()).find(|known| std::ptr::eq(&raw const ***known, key) || known.same(key))
    }

    /// Whether it contains a key with the same material.
    pub fn has_material_of(&self, key: &Key) -> bool {
        self.keys.iter().any(|known| known.thumbprint().is_some() && known.thumbprint() == key.thumbprint())
    }

    /// The keys that pass the filter; the others are listed as skipped with this reason.
    pub fn filtered(&self, is_allowed: impl Fn(&Key) -> bool, reason: &'static str) -> Self {
        let (mut keys, mut skipped) = (Vec::new(), self.skipped.clone());
        for key in &self.keys {
            if is_allowed(key) {
                keys.push(Arc::clone(key));
            } else if skipped.len() < MAX_KEYS {
                skipped.push(SkippedKey { kid: key.kid.clone(), reason });
            }
        }
        Self::of(keys, skipped)
    }

    /// This set with more keys, up to the maximum.
    pub fn with(&self, more: impl IntoIterator<Item = Arc<Key>>) -> Self {
        let keys = self.keys.iter().cloned().chain(more).take(MAX_KEYS).collect();
        Self::of(keys, self.skipped.clone())
    }

    /// Whether both sets verify the same tokens: the same keys by name and material, in any order.
    pub fn same_keys(&self, other: &KeySet) -> bool {
        let contains = |a: &KeySet, b: &KeySet| a.keys.iter().all(|key| b.has(key));
        self.keys.len() == other.keys.len() && contains(self, other) && contains(other, self)
    }
}

/// The identity of a published key: its `kid`, its `alg` and its material.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyName {
    kid: Option<Kid>,
    alg: Option<String>,
    thumbprint: Thumbprint,
}

impl KeyName {
    /// The `kid` of the key, if any.
    pub fn kid(&self) -> Option<&Kid> {
        self.kid.as_ref()
    }

    /// Whether both have the same material.
    pub fn is_same_material(&self, other: &KeyName) -> bool {
        self.thumbprint == other.thumbprint
    }

    /// Whether this key has the same material, whatever its `kid` and `alg`.
    pub fn is_material_of(&self, key: &Key) -> bool {
        key.thumbprint() == Some(self.thumbprint)
    }
}

/// A verifying key with its permitted uses.
pub struct Key {
    kid: Option<Kid>,
    /// The algorithm that the issuer binds the key to (RFC 7517 §4.4).
    alg: Option<Algorithm>,
    declares_use: bool,
    /// The public key; `None` for a shared secret.
    public: Option<PublicKey>,
    material: Material,
    /// Whether it has verified a token: a used key that is withdrawn is reported.
    used: AtomicBool,
}

/// The required members of the key in the canonical form of RFC 7638 §3.
struct PublicKey {
    canonical: String,
    thumbprint: Thumbprint,
}

impl PublicKey {
    fn new(canonical: String) -> Self {
        Self { thumbprint: Thumbprint::of_canonical(&canonical), canonical }
    }
}

enum Material {
    Rsa(Box<RsaKey>),
    P256(ParsedPublicKey),
    P384(ParsedPublicKey),
    P521(ParsedPublicKey),
    Ed25519(ParsedPublicKey),
    Secret(Box<[u8]>),
}

/// An RSA public key. It is parsed once for each algorithm that a token has used it with, not for each token.
struct RsaKey {
    /// Modulus and exponent, big-endian without leading zeros.
    n: Vec<u8>,
    e: Vec<u8>,
    parsed: [OnceLock<Option<ParsedPublicKey>>; 6],
}

impl RsaKey {
    fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let [rs256, rs384, rs512, ps256, ps384, ps512] = &self.parsed;
        let (parsed, parameters): (_, &'static RsaParameters) = match algorithm {
            Algorithm::RS256 => (rs256, &signature::RSA_PKCS1_2048_8192_SHA256),
            Algorithm::RS384 => (rs384, &signature::RSA_PKCS1_2048_8192_SHA384),
            Algorithm::RS512 => (rs512, &signature::RSA_PKCS1_2048_8192_SHA512),
            Algorithm::PS256 => (ps256, &signature::RSA_PSS_2048_8192_SHA256),
            Algorithm::PS384 => (ps384, &signature::RSA_PSS_2048_8192_SHA384),
            Algorithm::PS512 => (ps512, &signature::RSA_PSS_2048_8192_SHA512),
            _ => return false,
        };
        let components = || RsaPublicKeyComponents { n: &self.n, e: &self.e };
        let parsed = parsed.get_or_init(|| components().to_parsed_public_key(parameters).ok());
        parsed.as_ref().is_some_and(|key| key.verify_sig(message, signature).is_ok())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).field("kty", &self.kty()).finish_non_exhaustive()
    }
}

impl Key {
    /// The `kid`, if any.
    pub fn kid(&self) -> Option<&Kid> {
        self.kid.as_ref()
    }

    /// RFC 7517 §4.1.
    pub fn kty(&self) -> &'static str {
        match self.material {
            Material::Rsa(_) => "RSA",
            Material::P256(_) | Material::P384(_) | Material::P521(_) => "EC",
            Material::Ed25519(_) => "OKP",
            Material::Secret(_) => "oct",
        }
    }

    /// The `alg` (RFC 7517 §4.4), if any.
    pub fn alg(&self) -> Option<Algorithm> {
        self.alg
    }

    /// The `use` (RFC 7517 §4.2): `sig`, if declared.
    pub fn key_use(&self) -> Option<&'static str> {
        self.declares_use.then_some("sig")
    }

    /// The identity of a published key; `None` for a shared secret, which is never published.
    pub fn name(&self) -> Option<KeyName> {
        let thumbprint = self.thumbprint()?;
        Some(KeyName { kid: self.kid.clone(), alg: self.alg.map(|alg| alg.name().to_owned()), thumbprint })
    }

    /// Its thumbprint; `None` for a shared secret, whose hash it would be.
    pub fn thumbprint(&self) -> Option<Thumbprint> {
        self.public.as_ref().map(|public| public.thumbprint)
    }

    /// The key as a JWK (RFC 7517 §4) with the members that this service supports; `None` for a shared secret.
    pub fn public_jwk(&self) -> Option<serde_json::Value> {
        let mut jwk: serde_json::Value = serde_json::from_str(&self.public.as_ref()?.canonical).ok()?;
        let members = jwk.as_object_mut()?;
        let names = [
            ("kid", self.kid().map(Kid::as_str)),
            ("alg", self.alg.map(Algorithm::name)),
            ("use", self.key_use()),
        ];
        members.extend(names.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into()))));
        Some(jwk)
    }

    /// Whether it has verified a token since it was first seen.
    pub fn was_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    fn fits(&self, algorithm: Algorithm) -> bool {
        use Algorithm::*;
        let by_type = match (&self.material, algorithm) {
            (Material::Rsa(_), RS256 | RS384 | RS512 | PS256 | PS384 | PS512)
            | (Material::P256(_), ES256)
            | (Material::P384(_), ES384)
            | (Material::P521(_), ES512)
            | (Material::Ed25519(_), EdDSA) => true,
            (Material::Secret(bytes), HS256 | HS384 | HS512) => bytes.len() >= secret_bytes(algorithm),
            _ => false,
        };
        by_type && self.alg.is_none_or(|alg| alg == algorithm)
    }

    /// Whether this key verifies the signature. The caller has selected the key with [`KeySet::fitting`].
    pub(super) fn verifies(&self, algorithm: Algorithm, signing_input: &[u8], signature: &str) -> bool {
        let verified = self.verify_signature(algorithm, signing_input, signature);
        if verified {
            self.mark_used();
        }
        verified
    }

    fn mark_used(&self) {
        // Stores only once: a store for each token would cause contention between the cores.
        if !self.was_used() {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    fn verify_signature(&self, algorithm: Algorithm, signing_input: &[u8], signature: &str) -> bool {
        let Ok(signature) = URL_SAFE_NO_PAD.decode(signature) else { return false };
        let verifies = |key: &ParsedPublicKey| key.verify_sig(signing_input, &signature).is_ok();
        match (&self.material, algorithm) {
            (Material::Rsa(key), algorithm) => key.verifies(algorithm, signing_input, &signature),
            (Material::P256(key), Algorithm::ES256)
            | (Material::P384(key), Algorithm::ES384)
            | (Material::P521(key), Algorithm::ES512)
            | (Material::Ed25519(key), Algorithm::EdDSA) => verifies(key),
            (Material::Secret(bytes), algorithm) => hmac_algorithm(algorithm).is_some_and(|algorithm| {
                hmac::verify(&hmac::Key::new(algorithm, bytes), signing_input, &signature).is_ok()
            }),
            _ => false,
        }
    }

    fn same(&self, other: &Key) -> bool {
        let same_material = match (&self.material, &other.material) {
            (Material::Secret(a), Material::Secret(b)) => a == b,
            _ => self.public.is_some() && self.thumbprint() == other.thumbprint(),
        };
        same_material && self.kid == other.kid && self.alg == other.alg
    }

    fn read(jwk: &Json, origin: Origin) -> Result<Self, &'static str> {
        let kid = match text(jwk, "kid", "`kid` is not a string")? {
            None => None,
            Some(kid) => Some(Kid::new(kid).map_err(|_| "`kid` is longer than 1024 bytes")?),
        };
        let declares_use = check_use(jwk)?;
        let alg = match text(jwk, "alg", "`alg` is not a string")? {
            None => None,
            Some(name) => {
                Some(Algorithm::from_name(name).ok_or("`alg` is not a supported signature algorithm")?)
            }
        };
        let kty = text(jwk, "kty", "`kty` is not a string")?.ok_or("`kty` is missing")?;
        // RFC 7518 §6.2.2 and §6.3.2: each of these is part of the private key or reveals it.
        let private = ["d", "p", "q", "dp", "dq", "qi", "oth"];
        if kty != "oct" && private.iter().any(|name| jwk.member(name).is_some()) {
            return Err("its private key is published: anyone could sign with it");
        }
        let (material, public) = match kty {
            "RSA" => read_rsa(jwk)?,
            "EC" => read_ec(jwk)?,
            "OKP" => read_okp(jwk)?,
            "oct" if origin == Origin::Configuration => read_secret(jwk, alg)?,
            "oct" => {
                return Err("a shared secret (`kty: oct`) is accepted only in the configuration");
            }
            _ => return Err("`kty` is not supported"),
        };
        let key = Key { kid, alg, declares_use, public, material, used: AtomicBool::new(false) };
        match alg {
            Some(alg) if !key.fits(alg) => Err("`alg` does not belong to the key's type or curve"),
            _ => Ok(key),
        }
    }
}

/// RFC 7517 §4.2, §4.3: checks that the key may verify signatures. Returns whether `use` is present.
fn check_use(jwk: &Json) -> Result<bool, &'static str> {
    let declared = match text(jwk, "use", "`use` is not a string")? {
        None => false,
        Some("sig") => true,
        Some(_) => return Err(OTHER_USE),
    };
    match jwk.member("key_ops") {
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

fn read_rsa(jwk: &Json) -> Result<(Material, Option<PublicKey>), &'static str> {
    // RFC 7518 §6.3.1.1 forbids leading zero octets, but Java's BigInteger writes one.
    let n = without_leading_zeros(bytes(jwk, "n")?);
    let e = without_leading_zeros(bytes(jwk, "e")?);
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
    Ok((Material::Rsa(Box::new(RsaKey { n, e, parsed: Default::default() })), Some(public)))
}

fn read_ec(jwk: &Json) -> Result<(Material, Option<PublicKey>), &'static str> {
    let crv = text(jwk, "crv", "`crv` is not a string")?.ok_or("`crv` is missing")?;
    let (algorithm, length) = match crv {
        "P-256" => (&signature::ECDSA_P256_SHA256_FIXED, 32),
        "P-384" => (&signature::ECDSA_P384_SHA384_FIXED, 48),
        "P-521" => (&signature::ECDSA_P521_SHA512_FIXED, 66),
        _ => return Err("`crv` is not supported"),
    };
    let (x, y) = (bytes(jwk, "x")?, bytes(jwk, "y")?);
    if x.len() != length || y.len() != length {
        return Err("a coordinate has the wrong length (RFC 7518 §6.2.1.2)");
    }
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

fn read_okp(jwk: &Json) -> Result<(Material, Option<PublicKey>), &'static str> {
    match text(jwk, "crv", "`crv` is not a string")? {
        Some("Ed25519") => {}
        Some(_) => return Err("`crv` is not supported"),
        None => return Err("`crv` is missing"),
    }
    let x = bytes(jwk, "x")?;
    let parsed = ParsedPublicKey::new(&signature::ED25519, &x).map_err(|_| "not an Ed25519 public key")?;
    let mut unsigned = x.clone();
    if let Some(last) = unsigned.last_mut() {
        *last &= 0x7f;
    }
    if SMALL_ORDER.iter().any(|point| point.as_slice() == unsigned) {
        return Err("the Ed25519 point has small order");
    }
    let public =
        PublicKey::new(format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, URL_SAFE_NO_PAD.encode(&x)));
    Ok((Material::Ed25519(parsed), Some(public)))
}

fn read_secret(jwk: &Json, alg: Option<Algorithm>) -> Result<(Material, Option<PublicKey>), &'static str> {
    let bytes = bytes(jwk, "k")?;
    if bytes.len() < secret_bytes(alg.unwrap_or(Algorithm::HS256)) {
        return Err("the shared secret is shorter than its hash (RFC 7518 §3.2)");
    }
    Ok((Material::Secret(bytes.into()), None))
}

/// The shortest secret that RFC 7518 §3.2 allows, in bytes.
fn secret_bytes(algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::HS512 => 64,
        Algorithm::HS384 => 48,
        _ => 32,
    }
}

fn hmac_algorithm(algorithm: Algorithm) -> Option<hmac::Algorithm> {
    match algorithm {
        Algorithm::HS256 => Some(hmac::HMAC_SHA256),
        Algorithm::HS384 => Some(hmac::HMAC_SHA384),
        Algorithm::HS512 => Some(hmac::HMAC_SHA512),
        _ => None,
    }
}

fn text<'j>(jwk: &'j Json, name: &str, wrong_type: &'static str) -> Result<Option<&'j str>, &'static str> {
    match jwk.member(name) {
        None => Ok(None),
        Some(Json::String(text)) => Ok(Some(text)),
        Some(_) => Err(wrong_type),
    }
}

fn bytes(jwk: &Json, name: &str) -> Result<Vec<u8>, &'static str> {
    let encoded =
        jwk.member(name).and_then(Json::as_str).ok_or("a member of the key is missing or not a string")?;
    URL_SAFE_NO_PAD.decode(encoded).map_err(|_| "a member of the key is not base64url")
}

fn without_leading_zeros(bytes: Vec<u8>) -> Vec<u8> {
    bytes.into_iter().skip_while(|byte| *byte == 0).collect()
}
