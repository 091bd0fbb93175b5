//! Equal parts of many documents, kept in memory once: tokens of one issuer repeat its name, scopes, roles and the names
//! of claims.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use ecow::EcoString;

use super::Json;

/// A power of two, so that a hash selects a slot by its lowest bits.
const SLOTS: usize = 4_096;

/// Values that take more memory than this are not remembered, in bytes: few tokens have the same ones, and this bounds
/// what a slot holds.
const MAX_MEMORY: usize = 1024;

/// Texts up to this length take no memory of their own.
const INLINE_BYTES: usize = EcoString::INLINE_LIMIT;

/// Values that were part of earlier documents: as many as there are slots, each until another value with the same slot
/// replaces it. A document whose equal part was replaced keeps a copy of its own.
#[derive(Debug)]
pub struct SharedValues {
    /// Empty until the first document. `Json::Null` is an empty slot.
    slots: Vec<Json>,
    hashes: RandomState,
}

/// A value, its hash, and the memory that it takes in bytes, as if it shared none of it.
struct Shared {
    value: Json,
    hash: u64,
    memory: usize,
}

impl Default for SharedValues {
    fn default() -> Self {
        Self { slots: Vec::new(), hashes: RandomState::new() }
    }
}

impl SharedValues {
    /// The same document, with its parts replaced by equal ones of earlier documents.
    pub fn share(&mut self, document: &Json) -> Json {
        if self.slots.is_empty() {
            self.slots.resize(SLOTS, Json::Null);
        }
        self.with_shared_parts(document).value
    }

    /// A part of a document.
    fn part(&mut self, value: &Json) -> Shared {
        let shared = self.with_shared_parts(value);
        let takes_memory = match &shared.value {
            Json::String(text) => text.len() > INLINE_BYTES,
            Json::Array(elements) => !elements.is_empty(),
            Json::Object(members) => !members.is_empty(),
            Json::Null | Json::Bool(_) | Json::Number(_) => false,
        };
        if takes_memory { self.remembered(shared) } else { shared }
    }

    /// A value whose parts are shared, but not the value itself.
    fn with_shared_parts(&mut self, value: &Json) -> Shared {
        let mut hasher = self.hashes.build_hasher();
        std::mem::discriminant(value).hash(&mut hasher);
        let mut memory = size_of::<Json>();
        let mut part = |this: &mut Self, value: &Json, hasher: &mut _| {
            let part = this.part(value);
            Hasher::write_u64(hasher, part.hash);
            memory = memory.saturating_add(part.memory);
            part.value
        };
        let mut names = 0usize;
        let value = match value {
            Json::Null => Json::Null,
            Json::Bool(is) => {
                is.hash(&mut hasher);
                Json::Bool(*is)
            }
            Json::Number(digits) => {
                digits.hash(&mut hasher);
                memory = memory.saturating_add(digits.len());
                Json::Number(digits.clone())
            }
            Json::String(text) => {
                text.hash(&mut hasher);
                memory = memory.saturating_add(text.len());
                Json::String(text.clone())
            }
            Json::Array(elements) => {
                Json::Array(elements.iter().map(|element| part(self, element, &mut hasher)).collect())
            }
            Json::Object(members) => {
                let shared = members.iter().map(|(name, value)| {
                    name.hash(&mut hasher);
                    names = names.saturating_add(size_of::<EcoString>()).saturating_add(name.len());
                    (self.text(name), part(self, value, &mut hasher))
                });
                Json::Object(shared.collect())
            }
        };
        Shared { value, hash: hasher.finish(), memory: memory.saturating_add(names) }
    }

    /// A name.
    fn text(&mut self, text: &EcoString) -> EcoString {
        if text.len() <= INLINE_BYTES {
            return text.clone();
        }
        match self.part(&Json::String(text.clone())).value {
            Json::String(shared) => shared,
            _ => text.clone(),
        }
    }

    /// The equal value of an earlier document; or this one, which is remembered for later ones.
    fn remembered(&mut self, new: Shared) -> Shared {
        let slot = usize::try_from(new.hash & (SLOTS as u64 - 1)).ok().and_then(|at| self.slots.get_mut(at));
        match slot.filter(|_| new.memory <= MAX_MEMORY) {
            Some(known) if *known == new.value => Shared { value: known.clone(), ..new },
            Some(slot) => {
                slot.clone_from(&new.value);
                new
            }
            None => new,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::json::JsonLimits;

    fn parsed(text: &str) -> Json {
        Json::parse(text.as_bytes(), &JsonLimits::default()).expect("a document")
    }

    fn text_address(document: &Json, name: &str) -> *const u8 {
        document.member(name).and_then(Json::as_str).expect("a text").as_ptr()
    }

    fn elements_address(document: &Json, name: &str) -> *const Json {
        match document.member(name) {
            Some(Json::Array(elements)) => elements.as_ptr(),
            other => panic!("{other:?} is no array"),
        }
    }

    #[test]
    fn documents_stay_equal_and_share_their_equal_parts() {
        let mut values = SharedValues::default();
        let text = r#"{"iss": "https://sso.example.com", "a name that is not short": [1, "ä", {"x": null}, true, {}, []],
            "jti": "the first one of several", "n": 12345678901234567890}"#;
        let (first, second) = (parsed(text), parsed(&text.replace("first", "other")));
        let (shared_first, shared_second) = (values.share(&first), values.share(&second));
        assert_eq!((&shared_first, &shared_second), (&first, &second));
        let name = "a name that is not short";
        assert_eq!(text_address(&shared_first, "iss"), text_address(&shared_second, "iss"));
        assert_eq!(elements_address(&shared_first, name), elements_address(&shared_second, name));
        assert_ne!(text_address(&shared_first, "jti"), text_address(&shared_second, "jti"));
        assert_ne!(elements_address(&first, name), elements_address(&second, name));
    }

    #[test]
    fn large_parts_are_not_remembered() {
        let mut values = SharedValues::default();
        let text = "x".repeat(MAX_MEMORY);
        let elements = vec!["0"; MAX_MEMORY / size_of::<Json>()].join(",");
        let document = parsed(&format!(r#"{{"text": "{text}", "elements": [{elements}], "o": ["{text}"]}}"#));
        let (first, second) = (values.share(&document), values.share(&document));
        assert_ne!(elements_address(&first, "elements"), elements_address(&second, "elements"));
        assert!(values.slots.iter().all(|slot| *slot == Json::Null));
    }

    #[test]
    fn more_values_than_slots_replace_each_other() {
        let mut values = SharedValues::default();
        for number in 0..3 * SLOTS {
            let document = parsed(&format!(r#"{{"sub": "the subject with number {number}"}}"#));
            assert_eq!(values.share(&document), document);
        }
        assert_eq!(values.slots.len(), SLOTS);
    }
}
