//! Tests that a key set finds its keys by `kid` as if it looked at each of them.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use portcullis_core::validation::Kid;
use portcullis_core::validation::algorithm::Algorithm;
use portcullis_core::validation::key_set::{Key, KeySet};
use portcullis_issuer::{SigningAlgorithm, SigningKey};
use serde_json::{Value, json};

fn key(kid: Option<&str>) -> SigningKey {
    SigningKey::generate(kid, SigningAlgorithm::EdDSA)
}

fn set(keys: &[&SigningKey]) -> KeySet {
    let keys: Vec<Value> = keys.iter().map(|key| key.public_jwk()).collect();
    KeySet::parse(json!({"keys": keys}).to_string().as_bytes()).expect("usable keys")
}

fn positions<'k>(set: &KeySet, keys: impl Iterator<Item = &'k Arc<Key>>) -> Vec<Option<usize>> {
    keys.map(|key| set.keys().iter().position(|known| Arc::ptr_eq(known, key))).collect()
}

#[test]
fn keys_of_one_kid_are_found_in_the_order_of_the_document() {
    let kids = [Some("b"), Some("a"), None, Some("b"), Some(""), Some("b"), None];
    let signers = kids.map(key);
    let set = set(&signers.each_ref());
    let found = |kid: Option<&str>| {
        let kid = kid.map(|kid| Kid::new(kid).expect("it is short"));
        positions(&set, set.fitting(kid.as_ref(), Algorithm::EdDSA))
    };
    for (kid, expected) in [
        (Some("a"), &[1][..]),
        (Some("b"), &[0, 3, 5]),
        (Some(""), &[4]),
        (Some("c"), &[]),
        (Some("aa"), &[]),
    ] {
        assert_eq!(found(kid), expected.iter().copied().map(Some).collect::<Vec<_>>(), "{kid:?}");
    }
    // A token without a `kid` may have been signed by any key.
    assert_eq!(found(None), (0..kids.len()).map(Some).collect::<Vec<_>>());
    assert_eq!(set.fitting(None, Algorithm::ES256).count(), 0);
}

#[test]
fn a_set_has_exactly_its_keys_however_it_was_made() {
    let signers = [Some("b"), Some("a"), None, Some("b"), None].map(key);
    let [b, a, unnamed, other_b, other_unnamed] = &signers;
    let (some, all) = (set(&[b, unnamed]), set(&signers.each_ref()));
    let strangers = || all.lacks(&some).map(|_| ()).count();
    assert_eq!(strangers(), 0, "all of some are in it");
    assert_eq!(positions(&all, some.lacks(&all)), [Some(1), Some(3), Some(4)]);
    let more = some.with(some.lacks(&all).cloned());
    assert!(more.same_keys(&all) && all.same_keys(&more) && !more.same_keys(&some));
    let filtered = more.filtered(|key| key.kid().is_some(), "it has no name");
    assert!(filtered.same_keys(&set(&[other_b, a, b])));
    assert!(
        set(&[other_unnamed]).lacks(&filtered).count() == 3 && !filtered.same_keys(&set(&[a, b, unnamed]))
    );
    let mut adopting = set(&[a, b]);
    adopting.adopt(&all);
    assert_eq!(positions(&all, adopting.keys().iter()), [Some(1), Some(0)]);
}
