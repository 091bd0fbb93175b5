//! The configurations that the repository shows: the one of `deploy/`, the recipes for rules, and the blocks of README and
//! `docs/`.

use std::fs;
use std::path::{Path, PathBuf};

/// Every complete configuration by the name of its file.
pub fn configurations() -> Vec<(String, String)> {
    let recipes =
        files("docs/rules").into_iter().filter(|path| !path.to_string_lossy().ends_with(".cases.yaml"));
    let whole = recipes.chain([at("deploy/portcullis.yaml")]).map(|path| (named(&path), read(&path)));
    let pages = files("docs/issuers").into_iter().chain(["README.md", "docs/rules.md"].map(at));
    let blocks = pages.flat_map(|page| {
        let text = read(&page);
        let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
        let configurations =
            blocks.filter(|block| block.contains("providers:\n") && block.contains("listen:"));
        configurations.map(|block| (named(&page), with_files(unindented(block)))).collect::<Vec<_>>()
    });
    whole.chain(blocks).collect()
}

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn named(path: &Path) -> String {
    path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(path).display().to_string()
}

fn files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(at(folder)).expect("a folder of the repository");
    entries.map(|entry| entry.expect("a file").path()).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("a text of the repository")
}

/// The files of a pod, which are read when a configuration is loaded.
const POD_FILES: [&str; 2] = [
    "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
    "/var/run/secrets/kubernetes.io/serviceaccount/token",
];

/// A block of a list item, whose lines are all indented by the item.
fn unindented(block: &str) -> String {
    let indent = block.len() - block.trim_start_matches(' ').len();
    block.lines().map(|line| format!("{}\n", line.get(indent..).unwrap_or_default())).collect()
}

/// With a file of the repository instead of those of a pod.
fn with_files(configuration: String) -> String {
    let file = at("LICENSE").display().to_string();
    POD_FILES.iter().fold(configuration, |text, pod_file| text.replace(pod_file, &file))
}
