//! The token that everything is asked with, and tokens that must be refused.

use std::error::Error;
use std::time::{SystemTime, UNIX_EPOCH};

use portcullis_issuer::{Issuer, SigningAlgorithm, SigningKey, with_claim};

use crate::request::claims;

type Failure = Box<dyn Error + Send + Sync>;

/// Tokens of one issuer, signed with RS256.
pub struct Tokens {
    /// Of about 800 bytes.
    pub valid: String,
    /// With the signature of the right key, and long expired.
    pub expired: String,
    /// Valid, apart from its signature: another key with the same name.
    pub forged: String,
}

impl Tokens {
    /// Publishes a key, and signs tokens with it.
    ///
    /// # Errors
    /// The clock is before 1970.
    pub fn of(issuer: &Issuer) -> Result<Self, Failure> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let claims = claims(issuer, now);
        let [key, other] = [(); 2].map(|()| SigningKey::generate("rs", SigningAlgorithm::RS256));
        issuer.publish(&[&key]);
        Ok(Self {
            valid: key.sign(&claims),
            expired: key.sign(&with_claim(claims.clone(), "exp", 1_000_000_000)),
            forged: other.sign(&claims),
        })
    }

    /// Those that must be refused.
    pub fn refused(&self) -> [&str; 2] {
        [&self.expired, &self.forged]
    }
}
