//! Parses a JWK Set (RFC 7517 §5) into keys that can verify signatures, and lists the skipped ones with a reason.
//!
//! An unusable key is skipped and listed; the other keys of the set are used. Only verifying keys are kept; private
//! keys are never stored. This module fetches nothing.

mod key;
mod read;

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

pub use key::{Key, KeyName};

use super::algorithm::Algorithm;
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
    /// See [`KeySet::sequence`].
    sequence: Option<u64>,
}

/// Which keys of a set are read, by their `use` (RFC 7517 §4.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyUse {
    /// Those for signatures: `sig` or none.
    #[default]
    Signatures,
    /// Those for JWT-SVIDs: in a SPIFFE bundle those of the use `jwt-svid` alone (SPIFFE Trust Domain and Bundle §4.2.2). The
    /// sets of the Workload API and of SPIRE's discovery provider have no `use` of a bundle; of these the keys for signatures.
    Svids,
    /// Both: keys that were chosen before, for a snapshot, or by the author of the configuration.
    Any,
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
const OTHER_SVID: &str = "`use` is not `jwt-svid`, in a SPIFFE bundle";
const NO_SIGNATURE: &str = "`use` is neither `sig` nor `jwt-svid`";
const OTHER_OPERATIONS: &str = "`key_ops` does not allow `verify`";

impl SkippedKey {
    /// Whether tokens may be signed with it, as far as the document says. The others are for encryption.
    pub fn may_sign(&self) -> bool {
        ![OTHER_USE, OTHER_SVID, NO_SIGNATURE, OTHER_OPERATIONS].contains(&self.reason)
    }
}

/// A document that is not a key set, or has no usable key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeySetError {
    /// Not JSON, or not an object with one `keys` array (RFC 7517 §5).
    NotAKeySet,
    /// A discovery document (OpenID Connect Discovery §3), which names the key set's URL.
    DiscoveryDocument,
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
            KeySetError::DiscoveryDocument => f.write_str(
                "this is a discovery document, not a key set: configure its URL as `discovery_uri`, or its `jwks_uri`",
            ),
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
    #[serde(borrow)]
    spiffe_sequence: Option<&'a RawValue>,
}

impl KeySet {
    /// Parses a set from an issuer or from a file: its keys for signatures.
    ///
    /// # Errors
    /// The document is not a key set or has no usable key; either fails the fetch.
    pub fn parse(document: &[u8]) -> Result<Self, KeySetError> {
        Self::parse_for(document, KeyUse::Signatures)
    }

    /// The same for keys of another use.
    ///
    /// # Errors
    /// As [`KeySet::parse`].
    pub fn parse_for(document: &[u8], key_use: KeyUse) -> Result<Self, KeySetError> {
        Self::read(document, Origin::Fetched, key_use)
    }

    /// Parses a set from the configuration, which may contain `oct` keys.
    ///
    /// # Errors
    /// As [`KeySet::parse`]; also, any key that cannot be used is an error, which the author of the configuration
    /// has to see.
    pub fn parse_inline(document: &[u8]) -> Result<Self, KeySetError> {
        let set = Self::read(document, Origin::Configuration, KeyUse::Any)?;
        match set.skipped.first() {
            None => Ok(set),
            Some(first) => {
                Err(KeySetError::NothingUsable { skipped: set.skipped.len(), reason: Some(first.reason) })
            }
        }
    }

    fn read(document: &[u8], origin: Origin, key_use: KeyUse) -> Result<Self, KeySetError> {
        let text =
            std::str::from_utf8(without_byte_order_mark(document)).map_err(|_| KeySetError::NotAKeySet)?;
        // Serde would accept an array for a struct.
        if !text.trim_start().starts_with('{') {
            return Err(KeySetError::NotAKeySet);
        }
        let document: Document<'_> = serde_json::from_str(text).map_err(|_| not_a_key_set(text))?;
        let parsed = |raw: &RawValue| Json::parse(raw.get().as_bytes(), &KEY_LIMITS);
        let entries: Vec<_> = document.keys.into_iter().map(parsed).collect();
        let uses = match key_use {
            KeyUse::Signatures => read::Uses::Signatures,
            KeyUse::Svids if entries.iter().flatten().any(read::is_of_bundle) => read::Uses::Svids,
            KeyUse::Svids => read::Uses::Signatures,
            KeyUse::Any => read::Uses::Any,
        };
        let (mut keys, mut skipped) = (Vec::new(), Vec::new());
        for jwk in entries {
            let read = match &jwk {
                _ if keys.len() >= MAX_KEYS => Err("too many keys in the set"),
                Ok(jwk @ Json::Object(_)) => read::key(jwk, origin, uses),
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
        let sequence = document.spiffe_sequence.filter(|_| key_use == KeyUse::Svids);
        let sequence = sequence.and_then(|digits| digits.get().parse().ok());
        Ok(Self::of(keys, skipped).with_sequence(sequence))
    }

    /// The number of a bundle, which grows with each change of it (SPIFFE Trust Domain and Bundle §4.1.1); `None` for a set that
    /// is no bundle, or has none.
    pub fn sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// This set with another number, or none.
    #[must_use]
    pub fn with_sequence(self, sequence: Option<u64>) -> Self {
        Self { sequence, ..self }
    }

    fn of(keys: Vec<Arc<Key>>, skipped: Vec<SkippedKey>) -> Self {
        let mut by_kid: Vec<usize> = (0..keys.len()).collect();
        // Stable.
        by_kid.sort_by_key(|at| keys.get(*at).and_then(|key| key.kid()).map(Kid::as_str));
        Self { keys, by_kid, skipped, sequence: None }
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
                skipped.push(SkippedKey { kid: key.kid().cloned(), reason });
            }
        }
        Self::of(keys, skipped).with_sequence(self.sequence)
    }

    /// This set with more keys, up to the maximum.
    pub fn with(&self, more: impl IntoIterator<Item = Arc<Key>>) -> Self {
        let keys = self.keys.iter().cloned().chain(more).take(MAX_KEYS).collect();
        Self::of(keys, self.skipped.clone()).with_sequence(self.sequence)
    }

    /// Whether both sets verify the same tokens: the same keys by name and material, in any order.
    pub fn same_keys(&self, other: &KeySet) -> bool {
        let contains = |a: &KeySet, b: &KeySet| a.keys.iter().all(|key| b.has(key));
        self.keys.len() == other.keys.len() && contains(self, other) && contains(other, self)
    }
}

/// What else an object without `keys` is.
fn not_a_key_set(text: &str) -> KeySetError {
    #[derive(Deserialize)]
    struct Discovery<'a> {
        #[serde(borrow, rename = "jwks_uri")]
        _jwks_uri: &'a RawValue,
    }
    match serde_json::from_str::<Discovery<'_>>(text) {
        Ok(_) => KeySetError::DiscoveryDocument,
        Err(_) => KeySetError::NotAKeySet,
    }
}

/// The document after a byte-order mark, which RFC 8259 §8.1 lets readers ignore.
pub fn without_byte_order_mark(document: &[u8]) -> &[u8] {
    document.strip_prefix(b"\xef\xbb\xbf").unwrap_or(document)
}
