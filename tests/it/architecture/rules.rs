//! The dependency rules as functions of sources: each returns its violations.

use std::collections::{BTreeMap, BTreeSet};

use super::sources::Source;

/// Violations: a module uses one that it may not use, has no entry in the list, or is part of a cycle. Each module is listed
/// with those that it may use. A name that is not a listed module, such as a re-export from another crate, is always allowed.
pub fn uses_only(sources: &[Source], modules: &[(&str, &[&str])]) -> Vec<String> {
    let mut violations = Vec::new();
    let known: BTreeMap<&str, &[&str]> = modules.iter().copied().collect();
    for source in sources {
        let Some(may) = known.get(source.top_module()) else {
            violations.push(format!("{} is in no listed module", source.file));
            continue;
        };
        let used: BTreeSet<&str> =
            source.own.iter().filter_map(|path| path.first()).map(String::as_str).collect();
        let forbidden = used
            .into_iter()
            .filter(|used| known.contains_key(used) && *used != source.top_module() && !may.contains(used));
        violations.extend(forbidden.map(|used| format!("{} uses the module `{used}`", source.file)));
    }
    let needs = modules.iter().map(|(top_module, may)| {
        ((*top_module).to_owned(), may.iter().map(|top_module| (*top_module).to_owned()).collect())
    });
    violations.extend(components(&needs.collect()).into_iter().map(|cycle| format!("module cycle: {cycle}")));
    violations
}

/// Uses of this path (or of a longer one that starts or ends with it) outside of these modules; also a violation if there is no
/// use at all.
pub fn used_only_in(sources: &[Source], path: &str, modules: &[&str]) -> Vec<String> {
    let wanted: Vec<String> = path.split("::").map(str::to_owned).collect();
    let names = |source: &Source| match wanted.len() {
        1 => source.others.iter().chain(&source.own).any(|path| path.first() == wanted.first()),
        length => source.others.iter().any(|path| path.windows(length).any(|part| part == wanted)),
    };
    let using: Vec<&Source> = sources.iter().filter(|source| names(source)).collect();
    if using.is_empty() {
        return vec![format!("no file uses {path}: remove the rule")];
    }
    let outside = using.into_iter().filter(|source| !modules.iter().any(|module| source.is_in(module)));
    outside.map(|source| format!("{} uses {path}, which belongs to {modules:?}", source.file)).collect()
}

/// The module cycles of a crate, by file: each cycle as the names of its modules.
pub fn cycles(sources: &[Source]) -> Vec<String> {
    let files: BTreeSet<Vec<String>> = sources.iter().map(|source| source.module.clone()).collect();
    // The longest module path that is a prefix of the path.
    let module = |path: &Vec<String>| {
        (1..=path.len()).rev().map(|length| path[..length].to_vec()).find(|path| files.contains(path))
    };
    let mut needs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources {
        let used = source.own.iter().filter_map(module);
        // A module and its submodules are one unit: what it re-exports from them is its own.
        let used = used.filter(|used| !used.starts_with(&source.module) && !source.module.starts_with(used));
        needs.entry(source.module.join("::")).or_default().extend(used.map(|path| path.join("::")));
    }
    components(&needs)
}

/// The strongly connected components with more than one member, in order.
fn components(needs: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let reached = |from: &String| {
        let mut all = BTreeSet::new();
        let mut next: Vec<&String> = needs.get(from).into_iter().flatten().collect();
        while let Some(one) = next.pop() {
            if all.insert(one.clone()) {
                next.extend(needs.get(one).into_iter().flatten());
            }
        }
        all
    };
    let reach: BTreeMap<&String, BTreeSet<String>> = needs.keys().map(|name| (name, reached(name))).collect();
    let group = |name: &String| -> BTreeSet<String> {
        let all = &reach[name];
        all.iter().filter(|other| reach.get(other).is_some_and(|back| back.contains(name))).cloned().collect()
    };
    let groups: BTreeSet<BTreeSet<String>> =
        needs.keys().map(group).filter(|group| group.len() > 1).collect();
    groups.into_iter().map(|group| group.into_iter().collect::<Vec<_>>().join(", ")).collect()
}
