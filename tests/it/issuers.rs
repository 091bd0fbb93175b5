//! `docs/issuers/`: the configuration of each page works against an issuer of the shape that the page describes, and its traps
//! are refused for the reason that it says. The issuers are made here from their public documentation; no key or token is anybody's.

mod clouds;
mod page;
mod pipelines;
mod servers;

use std::fs;

use portcullis::config::Config;

use page::{FOLDER, Page};

/// The pages, without the index.
fn pages() -> Vec<Page> {
    let files = fs::read_dir(FOLDER).expect("the folder is there");
    let names = files.map(|file| file.expect("readable").path().file_stem().expect("a name").to_owned());
    let mut names: Vec<String> = names.map(|name| name.into_string().expect("a plain name")).collect();
    names.retain(|name| name != "README");
    names.sort();
    names.iter().map(|name| Page::read(name)).collect()
}

#[test]
fn every_page_is_in_the_index_and_the_readme_points_to_it() {
    let index = fs::read_to_string(format!("{FOLDER}/README.md")).expect("the index is there");
    let pages = pages();
    assert_eq!(pages.len(), 13, "one page for each issuer that the index promises");
    for page in &pages {
        assert!(index.contains(&format!("({}.md)", page.name)), "{} is not in the index", page.name);
    }
    let rows = index.lines().filter(|line| line.starts_with("| [")).count();
    assert_eq!(rows, pages.len(), "the index has rows of other pages");
    assert!(include_str!("../../README.md").contains("(docs/issuers/README.md)"));
}

#[test]
fn every_configuration_of_a_page_is_read_without_an_error_or_a_warning() {
    for page in pages() {
        let blocks = page.blocks("yaml");
        assert!(!blocks.is_empty(), "{} has no configuration", page.name);
        for block in &blocks {
            let parsed = Config::parse(block, &|_| None);
            let config = parsed.unwrap_or_else(|errors| panic!("{}: {errors}", page.name));
            assert!(config.warnings.is_empty(), "{}: {:?}", page.name, config.warnings);
        }
    }
}

#[test]
fn every_page_has_a_token_its_traps_and_a_way_to_try_it_in_few_lines() {
    for page in pages() {
        assert!(!page.blocks("json").is_empty(), "{} has no token", page.name);
        for part in ["## Traps", "## Try it"] {
            assert!(page.text.contains(part), "{} has no part {part:?}", page.name);
        }
        let lines = page.text.lines().count();
        assert!(lines <= 70, "{} has {lines} lines", page.name);
    }
}
