//! The tables of rules and paths through a real Envoy, which normalizes paths or does not.
//!
//! It asserts what a client and an upstream can see, and must never look inside the service.

#[path = "support/raw.rs"]
mod raw;
#[path = "support/real.rs"]
mod real;
#[path = "support/rulebook.rs"]
mod rulebook;

use portcullis::clock::Clock;

use real::{Envoy, Portcullis, Upstream};
use rulebook::{Case, PATH_CASES, RULE_CASES, Rulebook};

fn now() -> i64 {
    Clock::System.now().as_secs_f64() as i64
}

/// Sends every case through an Envoy with these changes, and holds the statuses against what they must be.
async fn check(changes: &[(&str, String)], expected: impl Fn(&Case) -> u16) {
    let book = Rulebook::open();
    let portcullis = Portcullis::serve(&book.providers_and_rules()).await;
    portcullis.ready().await;
    let upstream = Upstream::start().await;
    let envoy = Envoy::start_with(portcullis.ext_authz, upstream.address, changes).await;
    let mut wrong = Vec::new();
    for case in RULE_CASES.iter().chain(PATH_CASES) {
        let line = format!("{} {} HTTP/1.1", case.method, case.target);
        let token = book.token(case.bearer, now()).map(|token| format!("Bearer {token}"));
        let mut headers = vec![("host", case.host)];
        headers.extend(case.headers);
        headers.extend(token.as_ref().map(|token| ("authorization", token.as_str())));
        let before = upstream.received();
        let address = envoy.address();
        let status = tokio::task::block_in_place(|| raw::status(address, &line, &headers));
        let passed = upstream.received() > before;
        // A method that HTTP does not have is refused by Envoy itself.
        let expected = if case.method == "GETT" { 400 } else { expected(case) };
        if status != expected || passed != (status == 200) {
            wrong.push(format!("{case:?}: {status}, passed: {passed}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tables_hold_behind_an_envoy_that_normalizes_paths() {
    check(&[], |case| case.normalized.unwrap_or(case.status())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tables_hold_behind_an_envoy_that_leaves_paths_as_they_are() {
    let changes = [
        ("normalize_path: true", "normalize_path: false".to_owned()),
        ("merge_slashes: true", "merge_slashes: false".to_owned()),
        (
            "path_with_escaped_slashes_action: REJECT_REQUEST",
            "path_with_escaped_slashes_action: KEEP_UNCHANGED".to_owned(),
        ),
    ];
    check(&changes, Case::status).await;
}
