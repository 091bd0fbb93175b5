//! A case of a table, and the checks of every case.

use crate::support::{Answer, TestEnv};

/// A token and its expected reason.
pub struct Case {
    id: &'static str,
    what: String,
    token: String,
    reason: &'static str,
}

/// A case of the row `id`.
pub fn case(
    id: &'static str,
    what: impl Into<String>,
    token: impl Into<String>,
    reason: &'static str,
) -> Case {
    Case { id, what: what.into(), token: token.into(), reason }
}

/// Sends every case as a bearer token to a service whose forced refreshes start immediately.
/// Also checks what holds for every response: if no key can make a token valid, it causes no fetch of the key set (P5);
/// otherwise it causes exactly one (P2).
///
/// # Panics
/// Some cases failed; the message has all of them.
pub async fn check_cases(env: &TestEnv, cases: Vec<Case>) {
    let mut errors = Vec::new();
    for Case { id, what, token, reason } in cases {
        let before = env.issuer.key_fetches();
        let answer = env.service.bearer(&token).await;
        let mut faults = answer.faults(reason, &parts(&token));
        let fetches = env.issuer.key_fetches() - before;
        let expected = u64::from(matches!(reason, "key_unknown" | "bad_signature"));
        if fetches != expected {
            faults.push(format!("{fetches} fetches, not {expected}"));
        }
        if !faults.is_empty() {
            errors.push(format!("{id} {what:.80}: {}", faults.join("; ")));
        }
    }
    assert_no_errors(&errors);
}

/// Checks a response against the expected reason; returns the errors with the case's name.
pub fn check_answer(id: &str, what: &str, answer: &Answer, reason: &str, secrets: &[&str]) -> Vec<String> {
    let faults = answer.faults(reason, secrets);
    let named = |fault: &String| format!("{id} {what:.80}: {fault}");
    faults.iter().map(named).collect()
}

/// # Panics
/// There are errors.
pub fn assert_no_errors(errors: &[String]) {
    assert!(errors.is_empty(), "{} cases failed:\n{}", errors.len(), errors.join("\n"));
}

/// A token and each of its parts, which no response may repeat.
pub fn parts(token: &str) -> Vec<&str> {
    std::iter::once(token).chain(token.split('.')).collect()
}
