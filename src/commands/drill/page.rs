//! What the drill prints: what to configure, and the result as a table or as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::plan::{FETCH_TIMEOUT, Rotation, SPACING};
use super::tally::{Attack, Good, Report, Rotated};
use super::traffic::Bad;
use crate::commands::issuer::Issuer;

/// A configuration of Portcullis that trusts the drill's issuer, with these doors.
pub(super) fn configuration(issuer: &Issuer, audience: &str, doors: &str) -> String {
    let spacing = SPACING.as_millis();
    format!(
        "listen: {doors}
providers:
  - name: drill
    issuer: {}
    audiences: [{}]
    jwks_uri: {}
    refresh: {{min_spacing: {spacing}ms, min_spacing_bad_signature: {spacing}ms, timeout: {}ms}}
shutdown: {{drain_delay: 0s, grace: 1s}}
log: {{format: text, level: error}}
",
        issuer.issuer(),
        json!(audience),
        issuer.jwks_uri(),
        FETCH_TIMEOUT.as_millis()
    )
}

/// What the gateway under test has to trust.
pub(super) fn instructions(issuer: &Issuer, audience: &str, wait: Duration) -> String {
    format!(
        "The gateway has to trust this issuer:
  issuer:   {}
  key set:  {}
  audience: {audience}

For a Portcullis this is all of its configuration:

{}
Waiting up to {} s for a first token to be allowed ...
",
        issuer.issuer(),
        issuer.jwks_uri(),
        configuration(issuer, audience, "{ext_authz: 127.0.0.1:9191, admin: 127.0.0.1:9193}"),
        wait.as_secs()
    )
}

/// The result as a table.
pub(super) fn table(report: &Report) -> String {
    let Good { sent, refused, unavailable, unanswered, slowest } = report.tally.good;
    let attack = report.tally.attack();
    let mut page = String::new();
    // Writing into a string does not fail.
    let mut line = |text: String| {
        let _written = writeln!(page, "{text}");
    };
    line(format!(
        "{}, {:.0} s, {} faults of the issuer",
        report.gateway,
        report.elapsed.as_secs_f64(),
        report.tally.faults
    ));
    line(String::new());
    line(format!("good tokens sent        {sent:>8}"));
    line(format!(
        "good tokens refused     {refused:>8}   of these unavailable {unavailable}, unanswered {unanswered}"
    ));
    line(format!("slowest wait            {:>8}   ms", slowest.as_millis()));
    line(format!("forged tokens sent      {:>8}", attack.sent));
    line(format!("forged tokens allowed   {:>8}", attack.allowed));
    line(format!("key-set fetches         {:>8}   bound {}", report.fetches, report.fetch_bound()));
    line(String::new());
    line(format!(
        "{:<34}{:>6}{:>22}{:>22}",
        "rotation", "times", "first token refused", "slowest first token"
    ));
    for rotation in Rotation::ALL {
        let Rotated { count, first_refused, slowest_first } =
            report.tally.rotations.get(&rotation).cloned().unwrap_or_default();
        let slowest_first = format!("{} ms", slowest_first.as_millis());
        line(format!("{:<34}{count:>6}{first_refused:>22}{slowest_first:>22}", rotation.name()));
    }
    line(String::new());
    line(format!("{:<34}{:>6}{:>22}", "forged token", "sent", "allowed"));
    for kind in Bad::ALL {
        let Attack { sent, allowed } = report.tally.bad.get(&kind).cloned().unwrap_or_default();
        line(format!("{:<34}{sent:>6}{allowed:>22}", kind.name()));
    }
    line(String::new());
    line(match (report.passed(), sent) {
        _ if !report.completed => "Stopped before its end: this is the drill so far.".to_owned(),
        (true, _) => "Passed: no good token was refused, and no forged one allowed.".to_owned(),
        (false, 0) => "Failed: no good token was sent.".to_owned(),
        (false, _) => {
            format!("Failed: {refused} good tokens were refused, {} forged ones allowed.", attack.allowed)
        }
    });
    page
}

/// The same as one JSON object.
pub(super) fn json(report: &Report) -> Value {
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let Good { sent, refused, unavailable, unanswered, slowest } = report.tally.good;
    let attack = report.tally.attack();
    let by_kind: Vec<Value> = report
        .tally
        .bad
        .iter()
        .map(|(kind, attack)| json!({"kind": kind.name(), "sent": attack.sent, "allowed": attack.allowed}))
        .collect();
    let rotations: Vec<Value> = report
        .tally
        .rotations
        .iter()
        .map(|(rotation, Rotated { count, first_refused, slowest_first })| {
            json!({
                "kind": rotation.name(),
                "count": count,
                "first_refused": first_refused,
                "slowest_first_ms": milliseconds(*slowest_first),
            })
        })
        .collect();
    json!({
        "gateway": report.gateway,
        "passed": report.passed(),
        "completed": report.completed,
        "elapsed_seconds": report.elapsed.as_secs_f64(),
        "faults": report.tally.faults,
        "good": {
            "sent": sent,
            "refused": refused,
            "unavailable": unavailable,
            "unanswered": unanswered,
            "slowest_ms": milliseconds(slowest),
        },
        "forged": {"sent": attack.sent, "allowed": attack.allowed, "by_kind": by_kind},
        "rotations": rotations,
        "fetches": {
            "count": report.fetches,
            "bound": report.fetch_bound(),
            "within_bound": report.fetches <= report.fetch_bound(),
        },
    })
}
