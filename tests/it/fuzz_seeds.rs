//! The seeds of the fuzz targets, tried with what the targets check. The targets themselves need nightly:
//! `cargo +nightly fuzz run path fuzz/corpus/path fuzz/seeds/path`.

#[path = "../../fuzz/checks.rs"]
mod checks;

use std::fs;
use std::path::Path;

/// What is in a folder of seeds.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let files = fs::read_dir(folder).expect("a folder of seeds");
    files.map(|file| fs::read(file.expect("an entry").path()).expect("a seed")).collect()
}

#[test]
fn what_the_fuzz_targets_check_holds_for_their_seeds() {
    let (paths, tokens) = (seeds("path"), seeds("token"));
    assert!(paths.len() > 10 && tokens.len() > 10);
    paths.iter().for_each(|target| checks::path(target));
    let keys = checks::keys();
    tokens.iter().for_each(|text| checks::token(text, &keys));
}
