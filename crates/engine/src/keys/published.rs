//! What an issuer is known to publish: the keys in hand, when the answer that brought them was made, and the keys
//! that answers have shown to be withdrawn.
//!
//! The one place where an answer changes that, in memory, for a snapshot and at a start. Pure.
//!
//! - An answer that is not older than the one in hand replaces the set. What it lacks is withdrawn.
//! - An answer that is older takes nothing away: what it lacks may have been published since. A key that was never
//!   seen before is taken from it all the same, since the clocks of replicas differ and a good token must not be
//!   refused for a date alone; but not from one that a cache has kept.
//! - Keys are withdrawn by their material, whatever they are called. One that was counts again only by an answer that is provably newer than the last one which lacked
//!   it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::validation::Kid;
use crate::validation::key_set::{Key, KeyName, KeySet};

use super::origin::Origin;

/// Withdrawn keys that are remembered, the latest of them; as many as a set may have.
const MAX_WITHDRAWN: usize = 1_000;

/// Why a key of an answer is not used.
const WITHDRAWN: &str = "it was withdrawn, and this answer is not provably newer than the one that showed it";

/// What an issuer is known to publish.
#[derive(Clone, Debug, Default)]
pub struct Published {
    keys: Arc<KeySet>,
    /// Of the answer that brought the keys; none before the first.
    origin: Option<Origin>,
    withdrawn: Arc<Vec<Withdrawn>>,
    /// Keys in hand that older answers have brought.
    brought: Arc<Vec<Brought>>,
}

/// A key in hand that an answer has brought which is older than the one in hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brought {
    /// Which key.
    pub key: KeyName,
    /// Of the answer that brought it.
    pub by: Origin,
}

/// A key that was withdrawn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawn {
    /// Which key.
    pub key: KeyName,
    /// Of the last answer that lacked it.
    pub shown_by: Origin,
}

/// What an answer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The keys are others than before.
    Renewed,
    /// The keys are the same.
    Unchanged,
    /// The answer is older than the one in hand, or has no key that may be used any more. It took nothing away; it may
    /// have added keys that were never seen.
    Older {
        /// Whether it did, or has shown that such a key is gone.
        added: bool,
    },
}

impl Published {
    /// Keys that a snapshot or an earlier cache held, and what was withdrawn until then.
    pub fn restored(keys: Arc<KeySet>, origin: Origin, withdrawn: Vec<Withdrawn>) -> Self {
        Self { keys, origin: Some(origin), withdrawn: Arc::new(withdrawn), ..Self::default() }
    }

    /// The same, where older answers have brought some of the keys: a later one by the clock of those may take them away.
    /// Of keys that are not in hand nothing is kept.
    #[must_use]
    pub fn with_brought(self, brought: impl IntoIterator<Item = Brought>) -> Self {
        let mut kept: Vec<Brought> = Vec::new();
        let in_hand = |one: &Brought| self.keys.keys().iter().any(|key| one.key.is_material_of(key));
        for one in brought.into_iter().filter(in_hand) {
            match kept.iter_mut().find(|known| known.key.is_same_material(&one.key)) {
                Some(known) => known.by = known.by.later_of(one.by),
                None => kept.push(one),
            }
        }
        Self { brought: Arc::new(kept), ..self }
    }

    /// Keys of the configuration, which no answer brought.
    pub fn configured(keys: Arc<KeySet>) -> Self {
        Self { keys, ..Self::default() }
    }

    /// No keys, and what was withdrawn before.
    pub fn without_keys(withdrawn: Vec<Withdrawn>) -> Self {
        Self { withdrawn: Arc::new(withdrawn), ..Self::default() }
    }

    /// The same, but that it no longer counts when it was made: the next answer replaces it, whatever its date. What was
    /// withdrawn stays so.
    #[must_use]
    pub fn undated(&self) -> Self {
        Self { origin: None, ..self.clone() }
    }

    /// The keys in hand.
    pub fn keys(&self) -> &Arc<KeySet> {
        &self.keys
    }

    /// Their names; a shared secret has none to tell.
    pub fn key_names(&self) -> Vec<KeyName> {
        self.keys.keys().iter().filter_map(|key| key.name()).collect()
    }

    /// When the answer that brought them was made.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// The keys in hand that older answers have brought.
    pub fn brought(&self) -> &[Brought] {
        &self.brought
    }

    /// The keys that were withdrawn.
    pub fn withdrawn(&self) -> &[Withdrawn] {
        &self.withdrawn
    }

    /// Whether a key of this name was withdrawn, whatever its material.
    pub fn was_withdrawn(&self, kid: &Kid) -> bool {
        self.withdrawn.iter().any(|withdrawn| withdrawn.key.kid() == Some(kid))
    }

    /// What is published after an answer.
    pub fn after(&self, answer: &KeySet, origin: Origin) -> (Self, Effect) {
        let may_count = |key: &Key| {
            let withdrawn = self.withdrawn.iter().find(|withdrawn| withdrawn.key.is_material_of(key));
            withdrawn.is_none_or(|withdrawn| origin.is_newer_than(&withdrawn.shown_by))
        };
        let mut usable = answer.filtered(may_count, WITHDRAWN);
        usable.adopt(&self.keys);
        let older = self.origin.is_some_and(|in_hand| origin.is_older_than(&in_hand));
        if older || usable.keys().is_empty() {
            return self.with_unseen(answer, &usable, origin);
        }
        let changed = self.origin.is_none() || !self.keys.same_keys(&usable);
        let withdrawn = self.withdrawn_after(answer, &usable, origin);
        let effect = if changed { Effect::Renewed } else { Effect::Unchanged };
        (Self::restored(Arc::new(usable), origin, withdrawn), effect)
    }

    /// The same with what another process, or this one before, has found to be withdrawn.
    pub fn without(&self, withdrawn: &[Withdrawn]) -> Self {
        let mut all = self.withdrawn.to_vec();
        for one in withdrawn {
            note(&mut all, one.key.clone(), one.shown_by);
        }
        let still = |key: &Key| {
            let gone = withdrawn.iter().find(|withdrawn| withdrawn.key.is_material_of(key));
            gone.is_none_or(|gone| self.origin.is_some_and(|origin| origin.is_newer_than(&gone.shown_by)))
        };
        let keys = self.keys.filtered(still, WITHDRAWN);
        all.retain(|withdrawn| !keys.keys().iter().any(|key| withdrawn.key.is_material_of(key)));
        let origin = self.origin.filter(|_| !keys.keys().is_empty());
        Self { keys: Arc::new(keys), origin, withdrawn: Arc::new(bounded(all)), ..self.clone() }
    }

    /// The same where these keys were published before, elsewhere or too long ago to count: those that the set in hand
    /// lacks are withdrawn.
    #[must_use]
    pub fn after_earlier(&self, earlier: &[KeyName]) -> Self {
        let Some(origin) = self.origin else { return self.clone() };
        let mut withdrawn = self.withdrawn.to_vec();
        let in_hand = |one: &KeyName| self.keys.keys().iter().any(|key| one.is_material_of(key));
        let is_known = |one: &KeyName| self.withdrawn.iter().any(|known| known.key.is_same_material(one));
        let gone = earlier.iter().filter(|one| !in_hand(one) && !is_known(one));
        gone.for_each(|one| note(&mut withdrawn, one.clone(), origin));
        Self { withdrawn: Arc::new(bounded(withdrawn)), ..self.clone() }
    }

    fn with_unseen(&self, answer: &KeySet, usable: &KeySet, origin: Origin) -> (Self, Effect) {
        if origin.has_age() {
            return (self.clone(), Effect::Older { added: false });
        }
        let is_unseen = |key: &&Arc<Key>| !self.keys.has(key) && !self.has_withdrawn(key);
        let unseen: Vec<&Arc<Key>> = usable.keys().iter().filter(is_unseen).collect();
        // What an older answer has brought, a later one by the same clock may take away again.
        let shown = |key: &KeyName| answer.keys().iter().any(|one| key.is_material_of(one));
        let (gone, still): (Vec<_>, Vec<_>) =
            self.brought.iter().cloned().partition(|one| !shown(&one.key) && !origin.is_older_than(&one.by));
        if unseen.is_empty() && gone.is_empty() {
            return (self.clone(), Effect::Older { added: false });
        }
        let stays = |key: &Key| !gone.iter().any(|gone| gone.key.is_material_of(key));
        let keys = self.keys.filtered(stays, WITHDRAWN).with(unseen.iter().map(|key| Arc::clone(key)));
        let unseen = unseen.iter().filter_map(|key| Some(Brought { key: key.name()?, by: origin }));
        let brought = still.into_iter().chain(unseen).collect();
        let mut withdrawn = self.withdrawn.to_vec();
        gone.into_iter().for_each(|gone| note(&mut withdrawn, gone.key, origin));
        let (keys, withdrawn) = (Arc::new(keys), Arc::new(bounded(withdrawn)));
        let published = Self { keys, withdrawn, brought: Arc::new(brought), ..self.clone() };
        (published, Effect::Older { added: true })
    }

    fn has_withdrawn(&self, key: &Key) -> bool {
        self.withdrawn.iter().any(|withdrawn| withdrawn.key.is_material_of(key))
    }

    fn withdrawn_after(&self, answer: &KeySet, usable: &KeySet, origin: Origin) -> Vec<Withdrawn> {
        let mut withdrawn: Vec<Withdrawn> = self
            .withdrawn
            .iter()
            .filter(|one| !usable.keys().iter().any(|key| one.key.is_material_of(key)))
            .cloned()
            .collect();
        for one in &mut withdrawn {
            if !answer.keys().iter().any(|key| one.key.is_material_of(key))
                && !origin.is_older_than(&one.shown_by)
            {
                one.shown_by = one.shown_by.later_of(origin);
            }
        }
        let gone = answer.lacks(&self.keys).filter(|gone| !answer.has_material_of(gone));
        gone.filter_map(|gone| gone.name()).for_each(|gone| note(&mut withdrawn, gone, origin));
        bounded(withdrawn)
    }
}

fn note(withdrawn: &mut Vec<Withdrawn>, key: KeyName, shown_by: Origin) {
    match withdrawn.iter_mut().find(|known| known.key.is_same_material(&key)) {
        Some(known) => known.shown_by = known.shown_by.later_of(shown_by),
        None => withdrawn.push(Withdrawn { key, shown_by }),
    }
}

/// The latest of them.
fn bounded(mut withdrawn: Vec<Withdrawn>) -> Vec<Withdrawn> {
    if withdrawn.len() > MAX_WITHDRAWN {
        withdrawn.sort_by_key(|one| std::cmp::Reverse(one.shown_by.received()));
        withdrawn.truncate(MAX_WITHDRAWN);
    }
    withdrawn
}
