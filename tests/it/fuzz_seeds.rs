//! The seeds of the fuzz targets, run with the checks of the targets. The targets need a nightly toolchain:
//! `cargo +nightly fuzz run path fuzz/corpus/path fuzz/seeds/path`.

#[path = "../../fuzz/checks.rs"]
mod checks;

use std::fs;
use std::path::Path;

/// The files of a seed folder.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let files = fs::read_dir(folder).expect("a folder of seeds");
    files.map(|file| fs::read(file.expect("an entry").path()).expect("a seed")).collect()
}

#[test]
fn the_seeds_pass_the_checks_of_the_fuzz_targets() {
    let (paths, tokens) = (seeds("path"), seeds("token"));
    assert!(paths.len() > 10 && tokens.len() > 10);
    paths.iter().for_each(|target| checks::path(target));
    let keys = checks::keys();
    tokens.iter().for_each(|text| checks::token(text, &keys));
}
