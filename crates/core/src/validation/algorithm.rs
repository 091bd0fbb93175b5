//! The JWS algorithms that this service verifies (RFC 7518 §3, RFC 8037 §3).
//!
//! An algorithm is bound to one key type and, for elliptic curves, to one curve. The `alg` of a token is used only
//! if the provider's allow-list contains it (RFC 8725 §3.1).

use std::fmt;

/// A JWS `alg` value (RFC 7518 §3.1), compared case-sensitively (RFC 7515 §4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// HMAC with SHA-256; only for keys in the configuration.
    HS256,
    /// HMAC with SHA-384; only for keys in the configuration.
    HS384,
    /// HMAC with SHA-512; only for keys in the configuration.
    HS512,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RS256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    RS384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    RS512,
    /// RSASSA-PSS with SHA-256.
    PS256,
    /// RSASSA-PSS with SHA-384.
    PS384,
    /// RSASSA-PSS with SHA-512.
    PS512,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// ECDSA on P-384 with SHA-384.
    ES384,
    /// ECDSA on P-521 with SHA-512.
    ES512,
    /// EdDSA on Ed25519 (RFC 8037 §3.1); Ed448 is not supported.
    EdDSA,
}

impl Algorithm {
    /// Every supported algorithm.
    pub const ALL: [Algorithm; 13] = [
        Algorithm::HS256,
        Algorithm::HS384,
        Algorithm::HS512,
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
        Algorithm::ES256,
        Algorithm::ES384,
        Algorithm::ES512,
        Algorithm::EdDSA,
    ];

    /// The fully specified names of RFC 9864, which name the curve too. [`Algorithm::name`] is the former one.
    pub const FULLY_SPECIFIED: [(&str, Algorithm); 4] = [
        ("Ed25519", Algorithm::EdDSA),
        ("ESP256", Algorithm::ES256),
        ("ESP384", Algorithm::ES384),
        ("ESP512", Algorithm::ES512),
    ];

    /// The algorithm with this exact name, if it is supported.
    pub fn from_name(name: &str) -> Option<Self> {
        let former = Self::ALL.into_iter().find(|algorithm| algorithm.name() == name);
        former.or_else(|| {
            let specified = Self::FULLY_SPECIFIED.into_iter().find(|(specified, _)| *specified == name);
            specified.map(|(_, algorithm)| algorithm)
        })
    }

    /// The name in a token's header.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::HS256 => "HS256",
            Algorithm::HS384 => "HS384",
            Algorithm::HS512 => "HS512",
            Algorithm::RS256 => "RS256",
            Algorithm::RS384 => "RS384",
            Algorithm::RS512 => "RS512",
            Algorithm::PS256 => "PS256",
            Algorithm::PS384 => "PS384",
            Algorithm::PS512 => "PS512",
            Algorithm::ES256 => "ES256",
            Algorithm::ES384 => "ES384",
            Algorithm::ES512 => "ES512",
            Algorithm::EdDSA => "EdDSA",
        }
    }

    /// Whether the key is a shared secret. Such a key is never fetched over the network.
    pub fn is_symmetric(self) -> bool {
        matches!(self, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)
    }

    /// The algorithms that are allowed if the configuration names none: all asymmetric ones.
    pub fn default_set() -> Vec<Self> {
        Self::ALL.into_iter().filter(|algorithm| !algorithm.is_symmetric()).collect()
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
