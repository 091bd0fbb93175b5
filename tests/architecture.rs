//! The walls of the crate, held by reading its sources: which room may use what, and that every file
//! says what it is for.

use std::fs;
use std::path::{Path, PathBuf};

/// Every source file with its path below `src/`.
fn sources() -> Vec<(String, String)> {
    fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).expect("a folder of the sources can be read") {
            let path = entry.expect("an entry of a folder can be read").path();
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    assert!(files.len() > 20, "the sources were not found: {files:?}");
    files
        .into_iter()
        .map(|file| {
            let name = file.strip_prefix(&root).expect("below src").to_string_lossy().into_owned();
            (name, fs::read_to_string(file).expect("a source file can be read"))
        })
        .collect()
}

/// The code of a file: no comments, so that a room may speak of another without using it.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Whether a file belongs to a room: the room's own file, or one in its folder.
fn is_in(file: &str, room: &str) -> bool {
    file == format!("{room}.rs") || file.starts_with(&format!("{room}/"))
}

/// Only these rooms may contain this text.
#[track_caller]
fn only_in(rooms: &[&str], text: &str) {
    let mut found = false;
    for (file, source) in sources() {
        if code(&source).contains(text) {
            assert!(
                rooms.iter().any(|room| is_in(&file, room)),
                "{file} uses `{text}`, which belongs to {rooms:?}"
            );
            found = true;
        }
    }
    assert!(found, "nobody uses `{text}`: the wall stands nowhere");
}

#[test]
fn every_file_says_what_it_is_for() {
    for (file, source) in sources() {
        assert!(source.starts_with("//! "), "{file} does not begin with //!");
    }
}

#[test]
fn libraries_and_clocks_stay_in_their_rooms() {
    only_in(&["keys"], "reqwest");
    only_in(&["keys", "files/tests"], "tempfile");
    only_in(&["server", "certificates"], "tokio_rustls");
    only_in(&["certificates"], "x509_parser");
    only_in(&["server", "commands"], "hyper_util");
    only_in(&["keys", "server"], "h2::");
    only_in(&["keys"], "use headers::");
    only_in(&["validation"], "jsonwebtoken");
    only_in(&["rules"], "cel::");
    only_in(&["rules"], "chrono::");
    only_in(&["rules"], "regex::");
    only_in(&["clock"], "SystemTime::now");
    only_in(&["clock"], "Instant::now");
    only_in(&["proto", "ext_authz"], "envoy::");
    only_in(&["telemetry"], "prometheus_client");
    only_in(&["config"], "saphyr_parser");
    only_in(&["main", "commands"], "clap");
    only_in(&["verdict", "authorizer"], "Allowed::");
    only_in(&["rules"], "Anonymous(");
}

#[test]
fn dependencies_point_down() {
    // Each room and the rooms that it may use, in the order of the design.
    let core = [
        "access_request",
        "bearer_token",
        "certificates",
        "clock",
        "config",
        "files",
        "identity",
        "protected_headers",
        "reason",
        "rules",
        "validation",
        "verdict",
    ];
    let allowed: [(&str, &[&str]); 24] = [
        ("clock", &["validation"]),
        ("files", &["clock"]),
        ("certificates", &["clock", "validation"]),
        ("validation", &[]),
        ("reason", &[]),
        ("rules", &["access_request", "validation"]),
        ("config", &["access_request", "protected_headers", "reason", "rules", "validation"]),
        ("access_request", &["clock"]),
        ("bearer_token", &["access_request", "clock", "validation"]),
        ("protected_headers", &["access_request", "bearer_token", "rules", "validation"]),
        ("identity", &["access_request", "bearer_token", "protected_headers", "rules", "validation"]),
        ("verdict", &["access_request", "config", "identity", "reason", "rules", "validation"]),
        ("telemetry", &["clock", "config", "keys", "reason", "validation"]),
        ("supervise", &["clock", "telemetry"]),
        ("keys", &["certificates", "clock", "config", "files", "supervise", "telemetry", "validation"]),
        ("authorizer", &["keys", "telemetry"]),
        ("proto", &[]),
        ("service", &["authorizer", "keys", "supervise", "telemetry"]),
        ("server", &["service", "telemetry"]),
        ("ext_authz", &["proto", "server", "service"]),
        ("forward_auth", &["authorizer", "server", "service"]),
        ("admin", &["authorizer", "keys", "server", "service"]),
        ("app", &["admin", "ext_authz", "forward_auth", "server", "service", "supervise"]),
        ("commands", &["app", "authorizer", "ext_authz", "keys", "server", "service", "telemetry"]),
    ];
    for (file, source) in sources() {
        let Some((room, uses)) = allowed.iter().find(|(room, _)| is_in(&file, room)) else {
            assert!(["lib.rs", "main.rs"].contains(&file.as_str()), "{file} belongs to no room of this test");
            continue;
        };
        let above_the_core =
            !core.contains(room) && !["telemetry", "supervise", "keys", "proto"].contains(room);
        for used in code(&source).split("crate::").skip(1) {
            let used: String = used.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            let fine = used == *room
                || used.is_empty()
                || uses.contains(&used.as_str())
                || (above_the_core && core.contains(&used.as_str()));
            assert!(fine, "{file} uses crate::{used}, which {room} must not");
        }
    }
}

#[test]
fn nothing_prints_where_nobody_may_read() {
    for (file, source) in sources() {
        for forbidden in ["print!(", "println!(", "dbg!("] {
            assert!(!code(&source).contains(forbidden), "{file} uses `{forbidden}`");
        }
    }
    only_in(&["commands/output"], "io::stdout()");
    only_in(&["commands/output", "telemetry/log"], "io::stderr()");
}

#[test]
fn the_core_does_no_io_and_never_waits() {
    for (file, source) in sources() {
        if [
            "validation",
            "bearer_token",
            "identity",
            "protected_headers",
            "reason",
            "rules",
            "verdict",
            "access_request",
        ]
        .iter()
        .any(|room| is_in(&file, room))
        {
            for forbidden in ["async ", ".await", "std::fs", "Tcp", "Udp", "std::env", "tokio::", "tracing::"]
            {
                assert!(!code(&source).contains(forbidden), "{file} uses `{forbidden}`");
            }
        }
    }
}

#[test]
fn nothing_from_outside_can_trip_an_unwrap_or_an_index() {
    for (file, source) in sources() {
        // A file of its own with the tests of a module: declared there under `cfg(test)`.
        if file.ends_with("/tests.rs") {
            continue;
        }
        let code = code(&source);
        let code = code.split("#[cfg(test)]").next().unwrap_or_default();
        for forbidden in [".unwrap()", "panic!(", "unreachable!()", "todo!(", "unimplemented!("] {
            assert!(!code.contains(forbidden), "{file} uses `{forbidden}`");
        }
    }
}
