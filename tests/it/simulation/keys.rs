//! The keys of the simulation and their tokens, generated once for all worlds. Names and material are separate, so that a
//! name can get other material.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use serde_json::json;

/// The issuer of every token.
pub const ISSUER: &str = "https://issuer.example.com";

/// A published key: the number of its name and the number of its material.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub name: u8,
    pub material: u8,
}

const MATERIALS: u8 = 64;

static KEY_PAIRS: LazyLock<Vec<SigningKey>> =
    LazyLock::new(|| (0..=MATERIALS).map(|_| SigningKey::generate(None, SigningAlgorithm::EdDSA)).collect());

static PUBLIC_JWKS: LazyLock<Mutex<HashMap<Key, String>>> = LazyLock::new(Mutex::default);

/// Tokens by their `kid`, the material that signed them, and whether they have expired.
type Tokens = HashMap<(String, u8, bool), String>;

static TOKENS: LazyLock<Mutex<Tokens>> = LazyLock::new(Mutex::default);

impl Key {
    fn signing_key(self) -> SigningKey {
        let kid = format!("k{}", self.name);
        KEY_PAIRS[usize::from(self.material % MATERIALS)].with_kid(kid.as_str())
    }
}

/// The JWK Set of these keys.
pub fn jwks(keys: &[Key]) -> String {
    let mut jwks = PUBLIC_JWKS.lock().expect("not poisoned");
    let keys: Vec<&str> = {
        for key in keys {
            jwks.entry(*key).or_insert_with(|| key.signing_key().public_jwk().to_string());
        }
        keys.iter().map(|key| jwks[key].as_str()).collect()
    };
    format!("{{\"keys\":[{}]}}", keys.join(","))
}

/// A token that is valid as long as its key is published.
pub fn valid(key: Key) -> String {
    token(format!("k{}", key.name), key.material % MATERIALS, 4_102_444_800)
}

/// A token with this key's `kid` that another key signed.
pub fn forged(key: Key) -> String {
    token(format!("k{}", key.name), MATERIALS, 4_102_444_800)
}

/// A token with an unknown `kid`.
pub fn unknown_kid(number: u8) -> String {
    token(format!("unknown-{number}"), MATERIALS, 4_102_444_800)
}

/// A token with an unknown `kid` that expired in 1970.
pub fn expired(number: u8) -> String {
    token(format!("unknown-{number}"), MATERIALS, 1_000)
}

fn token(kid: String, material: u8, exp: i64) -> String {
    let mut tokens = TOKENS.lock().expect("not poisoned");
    tokens
        .entry((kid.clone(), material, exp < 4_000_000_000))
        .or_insert_with(|| {
            let claims = json!({"iss": ISSUER, "aud": "orders-api", "sub": "alice", "exp": exp});
            KEY_PAIRS[usize::from(material)].with_kid(kid.as_str()).sign(&claims)
        })
        .clone()
}
