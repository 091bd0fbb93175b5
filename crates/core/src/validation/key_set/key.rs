//! One verifying key: what it may verify, and its identity.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{self, ParsedPublicKey, RsaParameters, RsaPublicKeyComponents};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::validation::algorithm::Algorithm;
use crate::validation::digest::Thumbprint;
use crate::validation::kid::Kid;

/// What stands for a tenant in the `issuer` member of a key.
const TENANT_PLACEHOLDER: &str = "{tenantid}";

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
    declared_use: Option<&'static str>,
    /// The public key; `None` for a shared secret.
    public: Option<PublicKey>,
    material: Material,
    /// The `issuer` member, which several issuers write into a set that they share.
    issuer: Option<Box<str>>,
    /// What about the document is not as the RFCs say.
    note: Option<&'static str>,
    /// Whether it has verified a token: a used key that is withdrawn is reported.
    used: AtomicBool,
}

/// The required members of the key in the canonical form of RFC 7638 §3.
pub(super) struct PublicKey {
    canonical: String,
    thumbprint: Thumbprint,
}

impl PublicKey {
    pub(super) fn new(canonical: String) -> Self {
        Self { thumbprint: Thumbprint::of_canonical(&canonical), canonical }
    }
}

pub(super) enum Material {
    Rsa(Box<RsaKey>),
    P256(ParsedPublicKey),
    P384(ParsedPublicKey),
    P521(ParsedPublicKey),
    Ed25519(ParsedPublicKey),
    Secret(Box<[u8]>),
}

/// An RSA public key. It is parsed once for each algorithm that a token has used it with, not for each token.
pub(super) struct RsaKey {
    /// Modulus and exponent, big-endian without leading zeros.
    n: Vec<u8>,
    e: Vec<u8>,
    parsed: [OnceLock<Option<ParsedPublicKey>>; 6],
}

impl RsaKey {
    pub(super) fn new(n: Vec<u8>, e: Vec<u8>) -> Self {
        Self { n, e, parsed: Default::default() }
    }

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
    /// A key that has verified no token. `alg` is what the issuer binds it to.
    pub(super) fn new(
        kid: Option<Kid>,
        alg: Option<Algorithm>,
        declared_use: Option<&'static str>,
        material: Material,
        public: Option<PublicKey>,
        note: Option<&'static str>,
    ) -> Self {
        Self { kid, alg, declared_use, public, material, issuer: None, note, used: AtomicBool::new(false) }
    }

    /// The same key, which serves the issuer that this text names.
    pub(super) fn of_issuer(self, issuer: Option<&str>) -> Self {
        Self { issuer: issuer.map(Into::into), ..self }
    }

    /// Whether it may verify tokens of this issuer, in a set of several issuers: one without an `issuer` member serves all
    /// of them. In the member `{tenantid}` stands for one segment of a path, as Entra ID writes it.
    pub fn serves(&self, issuer: &str) -> bool {
        let Some(named) = self.issuer.as_deref() else { return true };
        let Some((before, after)) = named.split_once(TENANT_PLACEHOLDER) else { return named == issuer };
        let tenant = issuer.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
        tenant.is_some_and(|tenant| !tenant.is_empty() && !tenant.contains('/'))
    }

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

    /// The `use` (RFC 7517 §4.2), if declared: `sig`, or `jwt-svid` in a SPIFFE bundle.
    pub fn key_use(&self) -> Option<&'static str> {
        self.declared_use
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

    /// The `issuer` member, if any: the only one whose tokens it verifies, in a set of several issuers.
    pub fn issuer(&self) -> Option<&str> {
        self.issuer.as_deref()
    }

    /// The key as a JWK (RFC 7517 §4) with the members that this service supports; `None` for a shared secret.
    pub fn public_jwk(&self) -> Option<serde_json::Value> {
        let mut jwk: serde_json::Value = serde_json::from_str(&self.public.as_ref()?.canonical).ok()?;
        let members = jwk.as_object_mut()?;
        let names = [
            ("kid", self.kid().map(Kid::as_str)),
            ("alg", self.alg.map(Algorithm::name)),
            ("use", self.key_use()),
            ("issuer", self.issuer.as_deref()),
        ];
        members.extend(names.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into()))));
        Some(jwk)
    }

    /// What of the key is not written as the RFCs say, if anything; contains nothing of the key.
    pub fn note(&self) -> Option<&'static str> {
        self.note
    }

    /// Whether it has verified a token since it was first seen.
    pub fn was_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether it may verify signatures of this algorithm: by its type, its curve and its `alg`.
    pub fn fits(&self, algorithm: Algorithm) -> bool {
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
    pub(in crate::validation) fn verifies(
        &self,
        algorithm: Algorithm,
        signing_input: &[u8],
        signature: &str,
    ) -> bool {
        let verified = self.verify_signature(algorithm, signing_input, signature);
        if verified {
            self.mark_used();
        }
        verified
    }

    pub(super) fn mark_used(&self) {
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

    pub(super) fn same(&self, other: &Key) -> bool {
        let same_material = match (&self.material, &other.material) {
            (Material::Secret(a), Material::Secret(b)) => a == b,
            _ => self.public.is_some() && self.thumbprint() == other.thumbprint(),
        };
        same_material && self.kid == other.kid && self.alg == other.alg && self.issuer == other.issuer
    }
}

/// The shortest secret that RFC 7518 §3.2 allows, in bytes.
pub(super) fn secret_bytes(algorithm: Algorithm) -> usize {
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
