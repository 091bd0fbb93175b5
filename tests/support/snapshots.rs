//! Settings for snapshot tests. Each snapshot is a file of `snapshots/` in the folder of the test. Values that vary
//! between runs, such as ports, are redacted.

use std::path::Path;

/// Redactions of every snapshot: a regular expression and its replacement.
const REDACTIONS: [(&str, &str); 3] = [
    (r"127\.0\.0\.1:[1-9]\d{3,4}", "127.0.0.1:PORT"),
    (r"thumbprint [A-Za-z0-9_-]{43}", "thumbprint THUMBPRINT"),
    (r"(-> .*), \d+ ms\n", "$1, N ms\n"),
];

/// Settings with [`REDACTIONS`] and these.
pub fn settings(redactions: &[(&str, &str)]) -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    for (pattern, replacement) in REDACTIONS.iter().chain(redactions) {
        settings.add_filter(pattern, *replacement);
    }
    // The name of the file says what the snapshot shows.
    settings.set_omit_expression(true);
    settings.set_prepend_module_to_snapshot(false);
    settings
}

/// Replaces the path of a temporary folder.
pub fn redact_path(text: &str, folder: &Path) -> String {
    text.replace(folder.to_str().expect("a plain path"), "FOLDER")
}
