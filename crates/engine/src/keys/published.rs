//! What an issuer is known to publish: the current keys, the origin of the answer that contained them, and the keys
//! that answers have shown to be withdrawn.
//!
//! The only module in which an answer changes this, in memory, for a snapshot and at a start. Pure.
//!
//! - An answer that is not older than the current one replaces the set. Keys that it lacks are withdrawn.
//! - An answer that is older withdraws nothing: a key that it lacks may have been published since. A key that was
//!   never seen before is added from it, since the clocks of replicas differ and a valid token must not be denied
//!   because of a date alone; but not if the answer comes from a cache.
//! - Keys are withdrawn by their material, whatever their `kid`. A withdrawn key is accepted again only from an
//!   answer that is provably newer than the last one that lacked it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::validation::Kid;
use crate::validation::key_set::{Key, KeyName, KeySet};

use super::origin::Origin;

/// The most recently withdrawn keys are kept; as many as a set may have.
const MAX_WITHDRAWN: usize = 1_000;

/// Why a key of an answer is not used.
const WITHDRAWN: &str = "it was withdrawn, and this answer is not provably newer than the one that lacked it";

/// What an issuer is known to publish.
#[derive(Clone, Debug, Default)]
pub struct Published {
    keys: Arc<KeySet>,
    /// The origin of the current answer; `None` before the first.
    origin: Option<Origin>,
    withdrawn: Arc<Vec<Withdrawn>>,
    /// Current keys that older answers have added.
    added_keys: Arc<Vec<AddedKey>>,
}

/// A current key that was added by an answer older than the current one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedKey {
    /// The key.
    pub key: KeyName,
    /// The origin of the answer that added it.
    pub by: Origin,
}

/// A key that was withdrawn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawn {
    /// The key.
    pub key: KeyName,
    /// The origin of the last answer that lacked it.
    pub shown_by: Origin,
}

/// The effect of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The keys have changed.
    Renewed,
    /// The keys are the same.
    Unchanged,
    /// The answer is older than the current one, or has no key that may be used. It withdrew nothing; it may have
    /// added keys that were never seen.
    Older {
        /// Whether it added a key, or withdrew one that an older answer had added.
        added: bool,
    },
}

impl Published {
    /// The keys of a snapshot or an earlier cache, and what was withdrawn until then.
    pub fn restored(keys: Arc<KeySet>, origin: Origin, withdrawn: Vec<Withdrawn>) -> Self {
        Self { keys, origin: Some(origin), withdrawn: Arc::new(withdrawn), ..Self::default() }
    }

    /// Marks keys as added by older answers: a later one of the same clock may withdraw them. Entries that are not
    /// current keys are dropped.
    #[must_use]
    pub fn with_added_keys(self, added_keys: impl IntoIterator<Item = AddedKey>) -> Self {
        let mut merged: Vec<AddedKey> = Vec::new();
        let is_current = |entry: &AddedKey| self.keys.keys().iter().any(|key| entry.key.is_material_of(key));
        for entry in added_keys.into_iter().filter(is_current) {
            match merged.iter_mut().find(|known| known.key.is_same_material(&entry.key)) {
                Some(known) => known.by = known.by.later_of(entry.by),
                None => merged.push(entry),
            }
        }
        Self { added_keys: Arc::new(merged), ..self }
    }

    /// The keys of the configuration.
    pub fn configured(keys: Arc<KeySet>) -> Self {
        Self { keys, ..Self::default() }
    }

    /// No keys, and these withdrawn ones.
    pub fn without_keys(withdrawn: Vec<Withdrawn>) -> Self {
        Self { withdrawn: Arc::new(withdrawn), ..Self::default() }
    }

    /// Forgets the origin: the next answer replaces the set, whatever its date. Withdrawn keys stay withdrawn.
    #[must_use]
    pub fn without_origin(&self) -> Self {
        Self { origin: None, ..self.clone() }
    }

    /// The current keys.
    pub fn keys(&self) -> &Arc<KeySet> {
        &self.keys
    }

    /// Their names; a shared secret has none.
    pub fn key_names(&self) -> Vec<KeyName> {
        self.keys.keys().iter().filter_map(|key| key.name()).collect()
    }

    /// The origin of the current answer.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// The current keys that older answers have added.
    pub fn added_keys(&self) -> &[AddedKey] {
        &self.added_keys
    }

    /// The withdrawn keys.
    pub fn withdrawn(&self) -> &[Withdrawn] {
        &self.withdrawn
    }

    /// Whether a key with this `kid` was withdrawn, whatever its material.
    pub fn was_withdrawn(&self, kid: &Kid) -> bool {
        self.withdrawn.iter().any(|withdrawn| withdrawn.key.kid() == Some(kid))
    }

    /// An origin before that of the current set, and before every answer that has shown the withdrawal of a key.
    pub fn before_all(&self, origin: Origin) -> Origin {
        let shown = self.withdrawn.iter().map(|withdrawn| &withdrawn.shown_by);
        self.origin.iter().chain(shown).fold(origin, |origin, other| origin.before(other))
    }

    /// The state after an answer.
    pub fn apply(&self, answer: &KeySet, origin: Origin) -> (Self, Effect) {
        let is_allowed = |key: &Key| {
            let withdrawn = self.withdrawn.iter().find(|withdrawn| withdrawn.key.is_material_of(key));
            withdrawn.is_none_or(|withdrawn| origin.is_newer_than(&withdrawn.shown_by))
        };
        let mut usable = answer.filtered(is_allowed, WITHDRAWN);
        usable.adopt(&self.keys);
        let older = self.origin.is_some_and(|current| origin.is_older_than(&current));
        if older || usable.keys().is_empty() {
            return self.add_unseen(answer, &usable, origin);
        }
        let changed = self.origin.is_none() || !self.keys.same_keys(&usable);
        let withdrawn = self.update_withdrawn(answer, &usable, origin);
        let effect = if changed { Effect::Renewed } else { Effect::Unchanged };
        (Self::restored(Arc::new(usable), origin, withdrawn), effect)
    }

    /// Withdraws keys that another process, or an earlier one, has found to be withdrawn.
    pub fn without(&self, withdrawn: &[Withdrawn]) -> Self {
        let mut all = self.withdrawn.to_vec();
        for entry in withdrawn {
            record_withdrawn(&mut all, entry.key.clone(), entry.shown_by);
        }
        let is_kept = |key: &Key| {
            let withdrawn = withdrawn.iter().find(|withdrawn| withdrawn.key.is_material_of(key));
            withdrawn.is_none_or(|withdrawn| {
                self.origin.is_some_and(|origin| origin.is_newer_than(&withdrawn.shown_by))
            })
        };
        let keys = self.keys.filtered(is_kept, WITHDRAWN);
        all.retain(|withdrawn| !keys.keys().iter().any(|key| withdrawn.key.is_material_of(key)));
        let origin = self.origin.filter(|_| !keys.keys().is_empty());
        Self { keys: Arc::new(keys), origin, withdrawn: Arc::new(most_recent(all)), ..self.clone() }
    }

    /// Withdraws those of these earlier keys that the current set lacks.
    #[must_use]
    pub fn withdraw_missing(&self, earlier: &[KeyName]) -> Self {
        let Some(origin) = self.origin else { return self.clone() };
        let mut withdrawn = self.withdrawn.to_vec();
        let is_current = |entry: &KeyName| self.keys.keys().iter().any(|key| entry.is_material_of(key));
        let is_known = |entry: &KeyName| self.withdrawn.iter().any(|known| known.key.is_same_material(entry));
        let missing = earlier.iter().filter(|entry| !is_current(entry) && !is_known(entry));
        missing.for_each(|entry| record_withdrawn(&mut withdrawn, entry.clone(), origin));
        Self { withdrawn: Arc::new(most_recent(withdrawn)), ..self.clone() }
    }

    fn add_unseen(&self, answer: &KeySet, usable: &KeySet, origin: Origin) -> (Self, Effect) {
        if origin.has_age() {
            return (self.clone(), Effect::Older { added: false });
        }
        let is_unseen = |key: &&Arc<Key>| !self.keys.has(key) && !self.is_withdrawn(key);
        let unseen: Vec<&Arc<Key>> = usable.keys().iter().filter(is_unseen).collect();
        // A key that an older answer has added may be withdrawn by a later one of the same clock.
        let contains = |key: &KeyName| answer.keys().iter().any(|entry| key.is_material_of(entry));
        let (removed, remaining): (Vec<_>, Vec<_>) = self
            .added_keys
            .iter()
            .cloned()
            .partition(|entry| !contains(&entry.key) && !origin.is_older_than(&entry.by));
        if unseen.is_empty() && removed.is_empty() {
            return (self.clone(), Effect::Older { added: false });
        }
        let is_kept = |key: &Key| !removed.iter().any(|removed| removed.key.is_material_of(key));
        let keys = self.keys.filtered(is_kept, WITHDRAWN).with(unseen.iter().map(|key| Arc::clone(key)));
        let unseen = unseen.iter().filter_map(|key| Some(AddedKey { key: key.name()?, by: origin }));
        let added_keys = remaining.into_iter().chain(unseen).collect();
        let mut withdrawn = self.withdrawn.to_vec();
        removed.into_iter().for_each(|removed| record_withdrawn(&mut withdrawn, removed.key, origin));
        let (keys, withdrawn) = (Arc::new(keys), Arc::new(most_recent(withdrawn)));
        let published = Self { keys, withdrawn, added_keys: Arc::new(added_keys), ..self.clone() };
        (published, Effect::Older { added: true })
    }

    fn is_withdrawn(&self, key: &Key) -> bool {
        self.withdrawn.iter().any(|withdrawn| withdrawn.key.is_material_of(key))
    }

    fn update_withdrawn(&self, answer: &KeySet, usable: &KeySet, origin: Origin) -> Vec<Withdrawn> {
        let mut withdrawn: Vec<Withdrawn> = self
            .withdrawn
            .iter()
            .filter(|entry| !usable.keys().iter().any(|key| entry.key.is_material_of(key)))
            .cloned()
            .collect();
        for entry in &mut withdrawn {
            if !answer.keys().iter().any(|key| entry.key.is_material_of(key))
                && !origin.is_older_than(&entry.shown_by)
            {
                entry.shown_by = entry.shown_by.later_of(origin);
            }
        }
        let removed = answer.lacks(&self.keys).filter(|key| !answer.has_material_of(key));
        removed.filter_map(|key| key.name()).for_each(|key| record_withdrawn(&mut withdrawn, key, origin));
        most_recent(withdrawn)
    }
}

fn record_withdrawn(withdrawn: &mut Vec<Withdrawn>, key: KeyName, shown_by: Origin) {
    match withdrawn.iter_mut().find(|known| known.key.is_same_material(&key)) {
        Some(known) => known.shown_by = known.shown_by.later_of(shown_by),
        None => withdrawn.push(Withdrawn { key, shown_by }),
    }
}

/// The most recently withdrawn keys.
fn most_recent(mut withdrawn: Vec<Withdrawn>) -> Vec<Withdrawn> {
    if withdrawn.len() > MAX_WITHDRAWN {
        withdrawn.sort_by_key(|entry| std::cmp::Reverse(entry.shown_by.received()));
        withdrawn.truncate(MAX_WITHDRAWN);
    }
    withdrawn
}
