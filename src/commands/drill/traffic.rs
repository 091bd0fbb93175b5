//! The tokens of a drill: good ones, and those of an attack. No two are the same, so that no cache of tokens
//! hides anything.

use serde_json::{Value, json};

use super::plan::Rotation;
use crate::commands::embedded::unix_now;
use crate::commands::issuer::{SigningAlgorithm, SigningKey, with_claim};

/// The algorithms of the issuer, in turn.
const ALGORITHMS: [SigningAlgorithm; 4] =
    [SigningAlgorithm::RS256, SigningAlgorithm::ES256, SigningAlgorithm::PS256, SigningAlgorithm::EdDSA];

/// The issuer's RSA key pairs come from these many; the attacker has another.
const PAIRS: usize = 3;

/// What is wrong with a bad token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Bad {
    /// A `kid` that nobody has published.
    MadeUpKid,
    /// The signature of another key under the name of the present one.
    Signature,
    /// Signed by the issuer's key, and expired.
    Expired,
    /// Signed by the issuer's key, for somebody else.
    WrongAudience,
    /// Of an issuer that nobody trusts.
    WrongIssuer,
    /// `alg: none`, and no signature.
    Unsigned,
    /// Signed by a key that the issuer has withdrawn, or made anew under the same name.
    Withdrawn,
}

impl Bad {
    /// In the order in which they come.
    pub(super) const ALL: [Bad; 7] = [
        Bad::MadeUpKid,
        Bad::Signature,
        Bad::Expired,
        Bad::WrongAudience,
        Bad::WrongIssuer,
        Bad::Unsigned,
        Bad::Withdrawn,
    ];

    /// What it is, in a few words.
    pub(super) fn name(self) -> &'static str {
        match self {
            Bad::MadeUpKid => "made-up kid",
            Bad::Signature => "bad signature under a known kid",
            Bad::Expired => "expired",
            Bad::WrongAudience => "wrong audience",
            Bad::WrongIssuer => "unknown issuer",
            Bad::Unsigned => "no signature (alg none)",
            Bad::Withdrawn => "key withdrawn or made anew",
        }
    }
}

/// The keys that the issuer goes through, and the attacker's.
pub(super) struct Keys {
    issuer: String,
    attackers: Vec<SigningKey>,
}

impl Keys {
    /// Makes those that take time to make.
    pub(super) fn new(issuer: &str) -> Self {
        let attackers = ALGORITHMS
            .into_iter()
            .map(|algorithm| SigningKey::pooled(PAIRS, "attacker", algorithm))
            .collect();
        for pair in 0..PAIRS {
            SigningKey::pooled(pair, None, SigningAlgorithm::RS256);
        }
        Self { issuer: issuer.to_owned(), attackers }
    }

    /// The issuer's first key.
    pub(super) fn first(&self) -> SigningKey {
        SigningKey::pooled(0, "drill-0", SigningAlgorithm::RS256)
    }

    /// The key of this rotation, counted from 1.
    pub(super) fn next(&self, rotation: Rotation, number: usize, current: &SigningKey) -> SigningKey {
        let fresh = format!("drill-{number}");
        let (kid, algorithm) = match rotation {
            Rotation::SameKid => (current.kid().map(str::to_owned), current.algorithm()),
            Rotation::Algorithm => (Some(fresh), following(current.algorithm())),
            Rotation::AtUse | Rotation::Announced | Rotation::Withdrawn => (Some(fresh), current.algorithm()),
        };
        SigningKey::pooled(number % PAIRS, kid.as_deref(), algorithm)
    }

    /// A good token of this key.
    pub(super) fn good(&self, key: &SigningKey, audience: &str) -> String {
        key.sign(&self.claims(audience))
    }

    /// A bad token, while this key is the present one and `withdrawn` is one that is not any more. Where there
    /// is no such key, [`Bad::Withdrawn`] is [`Bad::MadeUpKid`]; what was made is given back with it.
    pub(super) fn bad(
        &self,
        kind: Bad,
        key: &SigningKey,
        withdrawn: Option<&SigningKey>,
        audience: &str,
    ) -> (Bad, String) {
        let claims = self.claims(audience);
        let token = match (kind, withdrawn) {
            (Bad::Signature, _) => self.attacker(key.algorithm()).sign_with_header(&key.header(), &claims),
            (Bad::Expired, _) => key.sign(&with_claim(claims, "exp", unix_now() - 3600)),
            (Bad::WrongAudience, _) => key.sign(&with_claim(claims, "aud", "somebody-else")),
            (Bad::WrongIssuer, _) => {
                self.attacker(key.algorithm()).sign(&with_claim(claims, "iss", "https://issuer.invalid"))
            }
            (Bad::Unsigned, _) => {
                let header = json!({"alg": "none", "typ": "JWT", "kid": key.kid()});
                let signed = key.sign_with_header(&header, &claims);
                signed.rsplit_once('.').map_or(String::new(), |(input, _)| format!("{input}."))
            }
            (Bad::Withdrawn, Some(withdrawn)) => withdrawn.sign(&claims),
            (Bad::MadeUpKid | Bad::Withdrawn, _) => {
                let kid = format!("made-up-{:016x}", rand::random::<u64>());
                let token = self.attacker(SigningAlgorithm::EdDSA).with_kid(kid.as_str()).sign(&claims);
                return (Bad::MadeUpKid, token);
            }
        };
        (kind, token)
    }

    fn attacker(&self, algorithm: SigningAlgorithm) -> &SigningKey {
        let fitting = self.attackers.iter().find(|key| key.algorithm() == algorithm);
        fitting.expect("the attacker has a key of each of the issuer's algorithms")
    }

    fn claims(&self, audience: &str) -> Value {
        let now = unix_now();
        json!({
            "iss": self.issuer,
            "sub": "alice",
            "aud": audience,
            "iat": now,
            "exp": now + 300,
            "jti": format!("{:016x}", rand::random::<u64>()),
            "tenant_id": "acme",
        })
    }
}

fn following(algorithm: SigningAlgorithm) -> SigningAlgorithm {
    let mut following = ALGORITHMS.into_iter().cycle().skip_while(|one| *one != algorithm).skip(1);
    following.next().unwrap_or(algorithm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rotation_brings_other_material_and_a_name_as_it_says() {
        let keys = Keys::new("https://issuer");
        let mut current = keys.first();
        for (number, rotation) in Rotation::ALL.into_iter().cycle().take(25).enumerate() {
            let next = keys.next(rotation, number + 1, &current);
            let (mut old, mut new) = (current.public_jwk(), next.public_jwk());
            assert_eq!(old["kid"] == new["kid"], rotation == Rotation::SameKid, "{rotation:?}");
            assert_eq!(old["alg"] != new["alg"], rotation == Rotation::Algorithm, "{rotation:?}");
            for jwk in [&mut old, &mut new] {
                jwk["kid"] = Value::Null;
                jwk["alg"] = Value::Null;
            }
            assert_ne!(old, new, "{rotation:?}");
            current = next;
        }
    }

    #[test]
    fn no_two_tokens_are_the_same() {
        let keys = Keys::new("https://issuer");
        let key = keys.first();
        let mut tokens: Vec<String> = Vec::new();
        for _ in 0..3 {
            tokens.push(keys.good(&key, "a"));
            tokens.extend(Bad::ALL.map(|kind| keys.bad(kind, &key, Some(&key), "a").1));
        }
        let count = tokens.len();
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(tokens.len(), count);
    }
}
