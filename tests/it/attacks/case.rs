//! A case of a table, and what must hold for each whatever the table is about.

use crate::support::{Answer, TestEnv};

/// One token, and the reason that must come back.
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

/// Sends every case as a bearer token to a house whose forced refreshes start at once.
///
/// Besides the reason, and all that is true of every answer: what no key could mend causes no fetch
/// of the key set (P5), and what a key could mend causes exactly one (P2).
///
/// # Panics
/// At the end, with every case that went wrong.
pub async fn judge(house: &TestEnv, cases: Vec<Case>) {
    let mut wrong = Vec::new();
    for Case { id, what, token, reason } in cases {
        let before = house.issuer.key_fetches();
        let answer = house.service.bearer(&token).await;
        let mut faults = answer.faults(reason, &parts(&token));
        let fetches = house.issuer.key_fetches() - before;
        let expected = u64::from(matches!(reason, "key_unknown" | "bad_signature"));
        if fetches != expected {
            faults.push(format!("{fetches} fetches, not {expected}"));
        }
        if !faults.is_empty() {
            wrong.push(format!("{id} {what:.80}: {}", faults.join("; ")));
        }
    }
    report(&wrong);
}

/// Holds one answer against its reason; gives what is wrong with it, under the case's name.
pub fn hold(id: &str, what: &str, answer: &Answer, reason: &str, secrets: &[&str]) -> Vec<String> {
    let faults = answer.faults(reason, secrets);
    let named = |fault: &String| format!("{id} {what:.80}: {fault}");
    faults.iter().map(named).collect()
}

/// # Panics
/// Something is wrong.
pub fn report(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} cases went wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// A token and each of its parts: what no answer may repeat.
pub fn parts(token: &str) -> Vec<&str> {
    std::iter::once(token).chain(token.split('.')).collect()
}
