//! The dependency rules: which crates and modules each crate and module may use, and what only some modules may use. Crate
//! dependencies are read from `cargo metadata`, everything else from the syntax of the sources.

mod api;
mod rules;
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use crate::support::subprocess::StartCommand;
use api::{api_of, file_of, listed, without_example};
use rules::{cycles, used_only_in, uses_only};
use sources::{Source, sources_of};

/// The packages of the workspace and their folders.
const CRATES: [(&str, &str); 7] = [
    ("portcullis", "."),
    ("portcullis-config", "crates/config"),
    ("portcullis-core", "crates/core"),
    ("portcullis-engine", "crates/engine"),
    ("portcullis-issuer", "crates/issuer"),
    ("portcullis-tower", "crates/tower"),
    ("httpdate", "crates/httpdate"),
];

/// The workspace crates that each crate may depend on, and the other crates that it must not depend on, even transitively.
const CRATE_DEPENDENCIES: [(&str, &[&str], &[&str]); 7] = [
    (
        "portcullis-core",
        &[],
        &[
            "tokio", "reqwest", "hyper", "tonic", "axum", "tracing", "rustls", "clap", "schemars", "rustix",
            "socket2", "mio",
        ],
    ),
    (
        "portcullis-engine",
        &["portcullis-core", "httpdate"],
        &["clap", "tonic", "schemars", "axum", "saphyr-parser"],
    ),
    ("portcullis-config", &["portcullis-core", "portcullis-engine"], &["clap", "tonic", "axum"]),
    ("portcullis-issuer", &[], &["reqwest", "tonic", "clap", "portcullis"]),
    ("portcullis-tower", &["portcullis-core", "portcullis-engine"], &["clap", "tonic", "schemars"]),
    ("httpdate", &[], &["tokio"]),
    (
        "portcullis",
        &[
            "portcullis-config",
            "portcullis-core",
            "portcullis-engine",
            "portcullis-issuer",
            "portcullis-tower",
        ],
        &[],
    ),
];

/// The top-level modules of the service, each with the modules that it may use. All may use the other crates.
const SERVICE_MODULES: [(&str, &[&str]); 10] = [
    ("server", &[]),
    ("proto", &[]),
    ("misdirected", &[]),
    ("ext_authz", &["misdirected", "proto", "server"]),
    ("forward_auth", &["misdirected", "server"]),
    ("admin", &["misdirected", "server"]),
    ("app", &["admin", "ext_authz", "forward_auth", "server"]),
    ("commands", &["app", "ext_authz", "forward_auth", "server"]),
    ("main", &[]),
    ("", &[]),
];

/// The top-level modules of the engine, each with the modules that it may use. All may use the core.
const ENGINE_MODULES: [(&str, &[&str]); 10] = [
    ("clock", &[]),
    ("files", &["clock"]),
    ("certificates", &["clock"]),
    ("telemetry", &["clock"]),
    ("supervise", &["clock", "telemetry"]),
    ("keys", &["certificates", "clock", "files", "supervise", "telemetry"]),
    ("authorizer", &["clock", "keys", "telemetry"]),
    ("http_denial", &[]),
    ("service", &["authorizer", "clock", "files", "keys", "supervise", "telemetry"]),
    ("", &[]),
];

/// The top-level modules of the core, each with the modules that it may use.
const CORE_MODULES: [(&str, &[&str]); 11] = [
    ("text", &[]),
    ("validation", &[]),
    ("reason", &[]),
    ("access_request", &[]),
    ("rules", &["access_request", "validation"]),
    ("bearer_token", &["access_request", "validation"]),
    ("protected_headers", &["access_request", "bearer_token", "rules", "validation"]),
    ("identity", &["access_request", "bearer_token", "protected_headers", "rules", "validation"]),
    ("verdict", &["access_request", "identity", "reason", "rules", "validation"]),
    (
        "decision",
        &[
            "access_request",
            "bearer_token",
            "identity",
            "protected_headers",
            "reason",
            "rules",
            "text",
            "validation",
            "verdict",
        ],
    ),
    ("", &[]),
];

/// Paths (by prefix) and macros that only these modules use.
const RESTRICTED_PATHS: [(&str, &[&str]); 20] = [
    ("reqwest", &["keys"]),
    ("h2", &["keys", "server/body", "server/connection", "server/http2"]),
    ("headers", &["keys"]),
    ("tempfile", &["keys"]),
    ("tokio_rustls", &["server", "certificates"]),
    ("rustls_platform_verifier", &["certificates"]),
    ("x509_parser", &["certificates"]),
    ("hyper_util", &["server", "commands"]),
    ("ParsedPublicKey", &["validation"]),
    ("cel", &["rules"]),
    ("chrono", &["rules"]),
    ("regex", &["rules"]),
    ("prometheus_client", &["telemetry"]),
    ("saphyr_parser", &["document"]),
    ("clap", &["commands", "main"]),
    ("SystemTime::now", &["clock"]),
    ("Instant::now", &["clock"]),
    ("io::stdout", &["commands/output"]),
    ("io::stderr", &["commands/output", "telemetry/log"]),
    ("Allowed", &["decision", "verdict"]),
];

/// Paths that no file of the core names: it does no IO, reads no clock, takes no lock and starts no thread.
const FORBIDDEN_IN_CORE: [&str; 12] = [
    "std::fs",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::env",
    "std::process",
    "std::thread",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::sync::Condvar",
    "std::time::SystemTime",
    "std::io",
];

fn all_sources() -> Vec<Source> {
    CRATES.iter().flat_map(|(_, folder)| sources_of(folder)).collect()
}

#[track_caller]
fn assert_none(violations: Vec<String>) {
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    for source in all_sources() {
        assert!(source.text.starts_with("//! "), "{} does not begin with //!", source.file);
    }
}

#[test]
fn modules_use_only_allowed_modules() {
    assert_none(uses_only(&sources_of("."), &SERVICE_MODULES));
    assert_none(uses_only(&sources_of("crates/core"), &CORE_MODULES));
    assert_none(uses_only(&sources_of("crates/engine"), &ENGINE_MODULES));
}

#[test]
fn libraries_clocks_and_streams_are_used_only_in_their_modules() {
    let sources = all_sources();
    for (path, modules) in RESTRICTED_PATHS {
        assert_none(used_only_in(&sources, path, modules));
    }
}

#[test]
fn the_core_does_no_io_and_has_no_async_code() {
    for source in sources_of("crates/core") {
        assert!(!source.is_async, "{} has async code", source.file);
        // The condition parser needs a stack of a known size.
        let may = |forbidden: &str| forbidden == "std::thread" && source.is_in("rules/condition");
        for forbidden in FORBIDDEN_IN_CORE.into_iter().filter(|forbidden| !may(forbidden)) {
            assert!(!source.names(forbidden), "{} uses {forbidden}", source.file);
        }
    }
}

#[test]
fn sources_have_no_unwrap_or_panic() {
    for source in all_sources() {
        assert!(!source.methods.contains("unwrap"), "{} unwraps", source.file);
        // No input reaches the keys that the demo issuer generates.
        if source.is_in("signing_key") {
            continue;
        }
        for forbidden in [
            "panic!",
            "unreachable!",
            "todo!",
            "unimplemented!",
            "print!",
            "println!",
            "eprint!",
            "eprintln!",
            "dbg!",
        ] {
            assert!(!source.names(forbidden), "{} uses {forbidden}", source.file);
        }
    }
}

/// The direct and the transitive dependencies of each package, by name, without those for its tests.
fn packages() -> BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .run_and_read()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let names: BTreeMap<String, String> = array(&metadata["packages"])
        .iter()
        .map(|package| (text(&package["id"]), text(&package["name"])))
        .collect();
    let mut below: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in array(&metadata["resolve"]["nodes"]) {
        let built_in =
            |dependency: &Value| array(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
        let needs =
            array(&node["deps"]).into_iter().filter(built_in).map(|dependency| text(&dependency["pkg"]));
        below.insert(text(&node["id"]), needs.collect());
    }
    let name = |id: &String| names.get(id).cloned().unwrap_or_default();
    let of_package = |id: &String| {
        let direct = below.get(id).cloned().unwrap_or_default();
        let (mut all, mut next) = (BTreeSet::new(), direct.clone());
        while let Some(one) = next.pop_first() {
            if all.insert(one.clone()) {
                next.extend(below.get(&one).cloned().unwrap_or_default());
            }
        }
        (direct.iter().map(name).collect(), all.iter().map(name).collect())
    };
    array(&metadata["workspace_members"]).iter().map(|id| (name(&text(id)), of_package(&text(id)))).collect()
}

#[test]
fn each_crate_depends_only_on_allowed_crates() {
    let packages = packages();
    let members: BTreeSet<&str> = packages.keys().map(String::as_str).collect();
    assert_eq!(
        members,
        CRATE_DEPENDENCIES.iter().map(|(name, ..)| *name).collect(),
        "every crate is listed here"
    );
    assert_eq!(members, CRATES.iter().map(|(name, _)| *name).collect(), "and its sources are listed");
    for (name, may, must_not) in CRATE_DEPENDENCIES {
        let (direct, all) = &packages[name];
        let internal: Vec<_> = direct.iter().filter(|needed| members.contains(needed.as_str())).collect();
        assert!(
            internal.iter().all(|needed| may.contains(&needed.as_str())),
            "{name} depends on {internal:?}"
        );
        let forbidden: Vec<_> = must_not.iter().filter(|forbidden| all.contains(**forbidden)).collect();
        assert!(forbidden.is_empty(), "{name} depends on {forbidden:?}");
    }
    assert!(packages["portcullis"].1.contains("tokio"), "transitive dependencies are included");
}

#[test]
fn every_form_of_a_module_dependency_is_detected() {
    for (file, text) in [
        ("a.rs", "use crate::b;"),
        ("a.rs", "use crate::{c, b};"),
        ("a.rs", "use crate::{c::{self, d}, b::{e, f}};"),
        ("a.rs", "use crate::b as other;"),
        ("a.rs", "pub use super::b::*;"),
        ("a/x/y.rs", "use super::super::super::b::thing;"),
        ("a/x.rs", "mod inner { use super::super::super::b; }"),
        ("a.rs", "fn f(b: crate::b::B) {}"),
        ("a.rs", "fn f() { crate::b::g() }"),
        ("a.rs", "fn f() { h!(1, crate::b::g(2)); }"),
        ("a.rs", "fn f() { crate::b::h!(); }"),
        ("a.rs", "impl<T: crate::b::Trait> X for Y<T> {}"),
        ("a.rs", "#[cfg(not(test))] use crate::b;"),
        ("lib.rs", "mod b; use b::c;"),
    ] {
        let modules: [(&str, &[&str]); 4] = [("a", &["c"]), ("b", &[]), ("c", &[]), ("", &["a"])];
        let seen = uses_only(&[Source::of(file, text)], &modules);
        assert_eq!(seen.len(), 1, "{text} in {file}: {seen:?}");
        assert!(seen[0].contains(file) && seen[0].contains("`b`"), "{seen:?}");
    }
    for text in [
        "use crate::c;",
        "use self::b;",
        "mod b; use b::c;",
        "// use crate::b;",
        "#[cfg(test)] use crate::b;",
        "pub(super) fn b() {}",
    ] {
        let modules: [(&str, &[&str]); 3] = [("a", &["c"]), ("b", &[]), ("c", &[])];
        assert_eq!(uses_only(&[Source::of("a.rs", text)], &modules), [""; 0], "{text}");
    }
    assert_eq!(uses_only(&[Source::of("z.rs", "")], &[("a", &[])]).len(), 1, "a module that is not listed");
    assert_eq!(uses_only(&[], &[("a", &["b"]), ("b", &["a"])]).len(), 1, "modules that depend on each other");
}

#[test]
fn forbidden_uses_and_rules_without_a_use_are_detected() {
    let only_user = Source::of("keys/http.rs", "use reqwest::Client;");
    for text in [
        "use reqwest::{Client, Url};",
        "fn f() -> reqwest::Result<()> {}",
        "fn f() { g!(reqwest::get(1)) }",
        "use reqwest as r;",
    ] {
        let sources = [Source::of("keys/http.rs", "use reqwest::Client;"), Source::of("other.rs", text)];
        assert_eq!(used_only_in(&sources, "reqwest", &["keys"]).len(), 1, "{text}");
    }
    assert_eq!(used_only_in(&[only_user], "reqwest", &["keys"]), [""; 0]);
    assert_eq!(used_only_in(&[], "reqwest", &["keys"]).len(), 1);
    let now = Source::of("a.rs", "fn f() { std::time::Instant::now(); }");
    assert_eq!(used_only_in(&[now], "Instant::now", &["clock"]).len(), 1, "also as the end of a longer path");
}

#[test]
fn async_code_panics_and_io_are_detected() {
    for text in ["async fn f() {}", "fn f() { async {} }", "fn f() { g.await }", "impl X { async fn f() {} }"]
    {
        assert!(Source::of("a.rs", text).is_async, "{text}");
    }
    assert!(Source::of("a.rs", "use std::{fmt, fs::File};").names("std::fs"));
    assert!(Source::of("a.rs", "fn f() { std::fs::read(1); }").names("std::fs"));
    assert!(Source::of("a.rs", "fn f() { assert!(panic!()) }").names("panic!"));
    assert!(Source::of("a.rs", "fn f() { g.unwrap(); }").methods.contains("unwrap"));
    assert!(
        !Source::of("a.rs", "#[cfg(test)] mod tests { fn f() { g.unwrap(); } }").methods.contains("unwrap")
    );
}

#[test]
fn module_cycles_are_detected() {
    let sources = [
        Source::of("a.rs", "mod b; mod c;"),
        Source::of("a/b.rs", "use super::c::X;"),
        Source::of("a/c.rs", "fn f() { super::b::g() }"),
        Source::of("a/d.rs", "use super::b;"),
    ];
    assert_eq!(cycles(&sources), ["a::b, a::c"]);
}

#[test]
fn no_crate_has_module_cycles() {
    for (_, folder) in CRATES {
        assert_none(cycles(&sources_of(folder)));
    }
}

/// If set, the lists are written instead of compared.
const UPDATE: &str = "UPDATE_PUBLIC_API";

#[test]
fn the_public_api_of_the_libraries_is_what_is_listed() {
    for folder in ["crates/core", "crates/engine", "crates/tower"] {
        let (api, file) = (api_of(folder), file_of(folder));
        if std::env::var_os(UPDATE).is_some() {
            std::fs::write(&file, &api).expect("the folder can be written to");
        }
        let known = std::fs::read_to_string(&file).unwrap_or_default();
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<String>>();
        let (is, was) = (lines(&api), lines(&known));
        let more = is.difference(&was).map(|line| format!("+{line}"));
        let less = was.difference(&is).map(|line| format!("-{line}"));
        let changes: Vec<String> = more.chain(less).collect();
        assert!(
            api == known,
            "the public API of {folder} is not what {} lists; set {UPDATE}=1 where that is meant:\n{}",
            file.display(),
            changes.join("\n")
        );
    }
}

#[test]
fn the_list_has_exactly_the_public_items() {
    let sources = [
        Source::of(
            "lib.rs",
            "pub mod a; mod b; pub use b::Reexported; pub use other::Thing; pub fn f() { g() } fn g() {}",
        ),
        Source::of(
            "a.rs",
            "/// Docs.\n#[derive(Debug)] pub struct S { pub x: u8, y: u8 } impl S { pub fn new() -> Self { S } fn h() {} }",
        ),
        Source::of(
            "b.rs",
            "#[non_exhaustive] pub enum Reexported { A(u8) } pub struct Inner; impl Inner { pub fn k() {} } impl Clone for Reexported { fn clone(&self) -> Self { X } }",
        ),
        Source::of("c.rs", "#[cfg(test)] pub fn t() {}"),
    ];
    let expected = "\
pub mod a {
    /// Has private fields.
    #[derive(Debug)]
    pub struct S {
        pub x: u8,
    }
}
#[non_exhaustive]
pub enum Reexported {
    A(u8),
}
pub use other::Thing;
pub fn f() {}
impl Clone for Reexported {}
impl S {
    pub fn new() -> Self {}
}
";
    assert_eq!(listed(&sources), expected);
}

#[test]
fn every_public_item_of_the_layer_has_an_example() {
    assert_none(without_example(&sources_of("crates/tower")));
    let undocumented =
        Source::of("a.rs", "/// Docs.\npub fn f() {} pub struct S; impl S { pub fn g() {} fn h() {} }");
    assert_eq!(without_example(&[undocumented]), ["a.rs: f", "a.rs: S", "a.rs: g"]);
    let documented = Source::of("a.rs", "/// ```\n/// f();\n/// ```\npub fn f() {}");
    assert_eq!(without_example(&[documented]), [""; 0]);
}
