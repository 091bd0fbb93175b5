#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code)]
mod checks;

use std::sync::LazyLock;

use portcullis::validation::key_set::KeySet;

static KEYS: LazyLock<KeySet> = LazyLock::new(checks::keys);

libfuzzer_sys::fuzz_target!(|text: &[u8]| checks::token(text, &KEYS));
