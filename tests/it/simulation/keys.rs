//! The keys of a simulation and their tokens, made once for all worlds: names and material apart, so that a name can
//! come with other material.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use serde_json::json;

/// The issuer of every token.
pub const ISSUER: &str = "https://issuer.example.com";

/// A published key: the number of its name, and that of its material.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub name: u8,
    pub material: u8,
}

const MATERIALS: u8 = 64;

static PAIRS: LazyLock<Vec<SigningKey>> =
    LazyLock::new(|| (0..=MATERIALS).map(|_| SigningKey::generate(None, SigningAlgorithm::EdDSA)).collect());

static SHOWN: LazyLock<Mutex<HashMap<Key, String>>> = LazyLock::new(Mutex::default);

/// Tokens by their `kid`, the material that signed them, and whether they have expired.
type Tokens = HashMap<(String, u8, bool), String>;

static TOKENS: LazyLock<Mutex<Tokens>> = LazyLock::new(Mutex::default);

impl Key {
    fn signing(self) -> SigningKey {
        let kid = format!("k{}", self.name);
        PAIRS[usize::from(self.material % MATERIALS)].with_kid(kid.as_str())
    }
}

/// What the issuer publishes of these keys.
pub fn jwks(keys: &[Key]) -> String {
    let mut shown = SHOWN.lock().expect("no world has panicked here");
    let keys: Vec<&str> = {
        for key in keys {
            shown.entry(*key).or_insert_with(|| key.signing().public_jwk().to_string());
        }
        keys.iter().map(|key| shown[key].as_str()).collect()
    };
    format!("{{\"keys\":[{}]}}", keys.join(","))
}

/// A token that is good as long as its key is published.
pub fn good(key: Key) -> String {
    token(format!("k{}", key.name), key.material % MATERIALS, 4_102_444_800)
}

/// A token under this key's name that somebody else signed.
pub fn forged(key: Key) -> String {
    token(format!("k{}", key.name), MATERIALS, 4_102_444_800)
}

/// A token under a name that nobody has published.
pub fn made_up(number: u8) -> String {
    token(format!("made-up-{number}"), MATERIALS, 4_102_444_800)
}

/// A token that has expired in 1970, under a name that nobody has published.
pub fn expired(number: u8) -> String {
    token(format!("made-up-{number}"), MATERIALS, 1_000)
}

fn token(kid: String, material: u8, exp: i64) -> String {
    let mut tokens = TOKENS.lock().expect("no world has panicked here");
    tokens
        .entry((kid.clone(), material, exp < 4_000_000_000))
        .or_insert_with(|| {
            let claims = json!({"iss": ISSUER, "aud": "orders-api", "sub": "alice", "exp": exp});
            PAIRS[usize::from(material)].with_kid(kid.as_str()).sign(&claims)
        })
        .clone()
}
