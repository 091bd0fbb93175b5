//! Makes the tokens of a drill, good ones and those of the attack. All are different, so that a token cache does not
//! affect the result.

use serde_json::{Value, json};

use super::plan::Rotation;
use crate::commands::embedded::unix_now;
use crate::commands::issuer::{SigningAlgorithm, SigningKey, with_claim};

/// The algorithms that the issuer cycles through.
const ALGORITHMS: [SigningAlgorithm; 4] =
    [SigningAlgorithm::RS256, SigningAlgorithm::ES256, SigningAlgorithm::PS256, SigningAlgorithm::EdDSA];

/// The number of RSA key pairs that the issuer cycles through; the attacker has another.
const KEY_PAIRS: usize = 3;

/// The kind of a bad token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum BadToken {
    /// A `kid` that was never published.
    MadeUpKid,
    /// The signature of another key under the `kid` of the current one.
    Signature,
    /// Signed by the issuer's key, but expired.
    Expired,
    /// Signed by the issuer's key, for another audience.
    WrongAudience,
    /// From an untrusted issuer.
    WrongIssuer,
    /// `alg: none` and no signature.
    Unsigned,
    /// Signed by a key that the issuer has withdrawn, or replaced under the same `kid`.
    Withdrawn,
}

impl BadToken {
    /// All kinds in the order in which they are sent.
    pub(super) const ALL: [BadToken; 7] = [
        BadToken::MadeUpKid,
        BadToken::Signature,
        BadToken::Expired,
        BadToken::WrongAudience,
        BadToken::WrongIssuer,
        BadToken::Unsigned,
        BadToken::Withdrawn,
    ];

    /// A short description.
    pub(super) fn name(self) -> &'static str {
        match self {
            BadToken::MadeUpKid => "made-up kid",
            BadToken::Signature => "bad signature under a known kid",
            BadToken::Expired => "expired",
            BadToken::WrongAudience => "wrong audience",
            BadToken::WrongIssuer => "unknown issuer",
            BadToken::Unsigned => "no signature (alg none)",
            BadToken::Withdrawn => "key withdrawn or made anew",
        }
    }
}

/// The keys of the issuer and of the attacker.
pub(super) struct Keys {
    issuer: String,
    attackers: Vec<SigningKey>,
}

impl Keys {
    /// Generates the keys that take time.
    pub(super) fn new(issuer: &str) -> Self {
        let attackers = ALGORITHMS
            .into_iter()
            .map(|algorithm| SigningKey::pooled(KEY_PAIRS, "attacker", algorithm))
            .collect();
        for pair in 0..KEY_PAIRS {
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
            Rotation::Algorithm => (Some(fresh), next_algorithm(current.algorithm())),
            Rotation::AtUse | Rotation::Announced | Rotation::Withdrawn => (Some(fresh), current.algorithm()),
        };
        SigningKey::pooled(number % KEY_PAIRS, kid.as_deref(), algorithm)
    }

    /// A good token signed by this key.
    pub(super) fn good(&self, key: &SigningKey, audience: &str) -> String {
        key.sign(&self.claims(audience))
    }

    /// A bad token, with the current key and a withdrawn one. Without a withdrawn key [`BadToken::Withdrawn`] becomes
    /// [`BadToken::MadeUpKid`]; the kind that was made is returned with the token.
    pub(super) fn bad(
        &self,
        kind: BadToken,
        key: &SigningKey,
        withdrawn: Option<&SigningKey>,
        audience: &str,
    ) -> (BadToken, String) {
        let claims = self.claims(audience);
        let token = match (kind, withdrawn) {
            (BadToken::Signature, _) => {
                self.attacker(key.algorithm()).sign_with_header(&key.header(), &claims)
            }
            (BadToken::Expired, _) => key.sign(&with_claim(claims, "exp", unix_now() - 3600)),
            (BadToken::WrongAudience, _) => key.sign(&with_claim(claims, "aud", "somebody-else")),
            (BadToken::WrongIssuer, _) => {
                self.attacker(key.algorithm()).sign(&with_claim(claims, "iss", "https://issuer.invalid"))
            }
            (BadToken::Unsigned, _) => {
                let header = json!({"alg": "none", "typ": "JWT", "kid": key.kid()});
                let signed = key.sign_with_header(&header, &claims);
                signed.rsplit_once('.').map_or(String::new(), |(input, _)| format!("{input}."))
            }
            (BadToken::Withdrawn, Some(withdrawn)) => withdrawn.sign(&claims),
            (BadToken::MadeUpKid | BadToken::Withdrawn, _) => {
                let kid = format!("made-up-{:016x}", rand::random::<u64>());
                let token = self.attacker(SigningAlgorithm::EdDSA).with_kid(kid.as_str()).sign(&claims);
                return (BadToken::MadeUpKid, token);
            }
        };
        (kind, token)
    }

    fn attacker(&self, algorithm: SigningAlgorithm) -> &SigningKey {
        let key = self.attackers.iter().find(|key| key.algorithm() == algorithm);
        key.expect("the attacker has a key of each of the issuer's algorithms")
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

fn next_algorithm(current: SigningAlgorithm) -> SigningAlgorithm {
    let mut algorithms = ALGORITHMS.into_iter().cycle().skip_while(|algorithm| *algorithm != current).skip(1);
    algorithms.next().unwrap_or(current)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rotation_has_new_key_material_and_the_kid_and_algorithm_of_its_kind() {
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
            tokens.extend(BadToken::ALL.map(|kind| keys.bad(kind, &key, Some(&key), "a").1));
        }
        let count = tokens.len();
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(tokens.len(), count);
    }
}
