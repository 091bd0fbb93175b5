//! The walls as functions of sources: each says what breaks it.

use std::collections::{BTreeMap, BTreeSet};

use super::sources::Source;

/// Where a room uses one that it may not, is none that has a place, or where rooms hold each other. Each room comes with those that
/// it may use; a name that is no room's, such as one that is handed on from another crate, everybody may use.
pub fn uses_only(sources: &[Source], rooms: &[(&str, &[&str])]) -> Vec<String> {
    let mut violations = Vec::new();
    let known: BTreeMap<&str, &[&str]> = rooms.iter().copied().collect();
    for source in sources {
        let Some(may) = known.get(source.room()) else {
            violations.push(format!("{} belongs to no room", source.file));
            continue;
        };
        let used: BTreeSet<&str> =
            source.own.iter().filter_map(|path| path.first()).map(String::as_str).collect();
        let forbidden = used
            .into_iter()
            .filter(|used| known.contains_key(used) && *used != source.room() && !may.contains(used));
        violations.extend(forbidden.map(|used| format!("{} uses the room `{used}`", source.file)));
    }
    let needs = rooms
        .iter()
        .map(|(room, may)| ((*room).to_owned(), may.iter().map(|room| (*room).to_owned()).collect()));
    violations.extend(
        components(&needs.collect()).into_iter().map(|circle| format!("rooms hold each other: {circle}")),
    );
    violations
}

/// Where this path, or a longer one that ends or begins with it, is named outside of these modules; or nowhere.
pub fn belongs_to(sources: &[Source], path: &str, modules: &[&str]) -> Vec<String> {
    let wanted: Vec<String> = path.split("::").map(str::to_owned).collect();
    let names = |source: &Source| match wanted.len() {
        1 => source.others.iter().chain(&source.own).any(|path| path.first() == wanted.first()),
        length => source.others.iter().any(|path| path.windows(length).any(|part| part == wanted)),
    };
    let using: Vec<&Source> = sources.iter().filter(|source| names(source)).collect();
    if using.is_empty() {
        return vec![format!("nobody uses {path}: the wall stands nowhere")];
    }
    let outside = using.into_iter().filter(|source| !modules.iter().any(|module| source.is_in(module)));
    outside.map(|source| format!("{} uses {path}, which belongs to {modules:?}", source.file)).collect()
}

/// The modules of a crate that hold each other, by the files that they are: each circle as the names of its modules.
pub fn circles(sources: &[Source]) -> Vec<String> {
    let files: BTreeSet<Vec<String>> = sources.iter().map(|source| source.module.clone()).collect();
    // The longest module that a path leads to.
    let module = |path: &Vec<String>| {
        (1..=path.len()).rev().map(|length| path[..length].to_vec()).find(|path| files.contains(path))
    };
    let mut needs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources {
        let used = source.own.iter().filter_map(module);
        // A module and those within it are one house: what it hands on from there is its own.
        let used = used.filter(|used| !used.starts_with(&source.module) && !source.module.starts_with(used));
        needs.entry(source.module.join("::")).or_default().extend(used.map(|path| path.join("::")));
    }
    components(&needs)
}

/// The groups of more than one that can each be reached from each other, in order.
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
