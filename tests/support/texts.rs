//! Texts for people, held against snapshots: each is a file of `snapshots/` beside the test. What is different each time,
//! such as a port, is replaced by a word.

use std::path::Path;

/// What is different each time, and what stands for it. Put on every text.
const CHANGES: [(&str, &str); 3] = [
    (r"127\.0\.0\.1:[1-9]\d{3,4}", "127.0.0.1:PORT"),
    (r"thumbprint [A-Za-z0-9_-]{43}", "thumbprint THUMBPRINT"),
    (r"(-> .*), \d+ ms\n", "$1, N ms\n"),
];

/// Settings with [`CHANGES`] and these.
pub fn settings(changes: &[(&str, &str)]) -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    for (what, by) in CHANGES.iter().chain(changes) {
        settings.add_filter(what, *by);
    }
    // What a text is a snapshot of is said by the name of its file.
    settings.set_omit_expression(true);
    settings.set_prepend_module_to_snapshot(false);
    settings
}

/// The text with a folder of this run replaced.
pub fn without(text: &str, folder: &Path) -> String {
    text.replace(folder.to_str().expect("a plain path"), "FOLDER")
}
