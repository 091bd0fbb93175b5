//! Formats the report of a drill as a table or as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::counts::{Attack, Good, RotationCounts, Statuses};
use super::plan::Rotation;
use super::report::Report;
use super::traffic::BadToken;

/// The report as a table.
pub(super) fn table(report: &Report) -> String {
    let mut table = String::new();
    // Writing to a string cannot fail.
    let mut line = |text: String| {
        let _infallible = writeln!(table, "{text}");
    };
    let (elapsed, faults) = (report.elapsed.as_secs_f64(), report.counts.faults);
    line(format!("{}, {elapsed:.0} s, {faults} faults of the issuer", report.gateway));
    line(String::new());
    counts(report).into_iter().for_each(&mut line);
    line(String::new());
    rotations(report).into_iter().for_each(&mut line);
    line(String::new());
    forged(report).into_iter().for_each(&mut line);
    line(String::new());
    let not_proved = report.not_proved();
    if !not_proved.is_empty() {
        line("Not proved:".to_owned());
        not_proved.iter().for_each(|what| line(format!("  {what}")));
    }
    if !report.completed {
        line("Stopped early: the results are incomplete.".to_owned());
    }
    let failures = report.failures();
    line(if failures.is_empty() {
        "Passed: no good token was refused, and every forged token that was sent was refused.".to_owned()
    } else {
        format!("Failed: {}.", failures.join("; "))
    });
    table
}

fn counts(report: &Report) -> Vec<String> {
    let Good { sent, refused, unavailable, unanswered, statuses, not_sent, slowest } = &report.counts.good;
    let attack = report.counts.attack();
    let with = |statuses: &Statuses| {
        let each: Vec<String> = statuses.iter().map(|(status, count)| format!("{status}: {count}")).collect();
        if each.is_empty() { String::new() } else { format!("   by status {}", each.join(", ")) }
    };
    vec![
        format!("good tokens sent        {sent:>8}"),
        format!(
            "good tokens refused     {refused:>8}   of these unavailable {unavailable}, unanswered {unanswered}{}",
            with(statuses)
        ),
        format!("slowest wait            {:>8}   ms", slowest.as_millis()),
        format!("forged tokens sent      {:>8}", attack.sent),
        format!("forged tokens allowed   {:>8}", attack.allowed),
        format!("forged tokens refused   {:>8}{}", attack.refused(), with(&attack.statuses)),
        format!("forged, no response     {:>8}", attack.unanswered),
        format!(
            "not sent by the drill   {:>8}   of these good {not_sent}, forged {}",
            not_sent + attack.not_sent,
            attack.not_sent
        ),
        format!("key-set fetches         {:>8}   bound {}", report.fetches, report.fetch_bound()),
    ]
}

fn rotations(report: &Report) -> Vec<String> {
    let head =
        format!("{:<34}{:>6}{:>22}{:>22}", "rotation", "times", "first token refused", "slowest first token");
    let row = |rotation: Rotation| {
        let RotationCounts { count, first_refused, first_not_sent, slowest_first } =
            report.counts.rotations.get(&rotation).cloned().unwrap_or_default();
        let slowest_first = format!("{} ms", slowest_first.as_millis());
        let unsent =
            if first_not_sent == 0 { String::new() } else { format!("   {first_not_sent} not sent") };
        format!("{:<34}{count:>6}{first_refused:>22}{slowest_first:>22}{unsent}", rotation.name())
    };
    [head].into_iter().chain(Rotation::ALL.map(row)).collect()
}

fn forged(report: &Report) -> Vec<String> {
    let columns =
        |name: &str, [sent, allowed, refused, unanswered, not_sent]: [&dyn std::fmt::Display; 5]| {
            format!("{name:<34}{sent:>6}{allowed:>10}{refused:>10}{unanswered:>12}{not_sent:>10}")
        };
    let head = columns("forged token", [&"sent", &"allowed", &"refused", &"no response", &"not sent"]);
    let row = |kind: BadToken| {
        let attack = report.counts.bad.get(&kind).cloned().unwrap_or_default();
        let Attack { sent, allowed, unanswered, not_sent, .. } = &attack;
        columns(kind.name(), [sent, allowed, &attack.refused(), unanswered, not_sent])
    };
    [head].into_iter().chain(BadToken::ALL.map(row)).collect()
}

/// The report as a JSON object.
pub(super) fn json(report: &Report) -> Value {
    let Good { sent, refused, unavailable, unanswered, statuses, not_sent, slowest } = &report.counts.good;
    let attack = report.counts.attack();
    let by_kind = BadToken::ALL.map(|kind| {
        let mut counts = forged_counts(&report.counts.bad.get(&kind).cloned().unwrap_or_default());
        counts.insert("kind".to_owned(), json!(kind.name()));
        Value::Object(counts)
    });
    let mut forged = forged_counts(&attack);
    forged.insert("by_kind".to_owned(), json!(by_kind));
    json!({
        "gateway": report.gateway,
        "passed": report.passed(),
        "failures": report.failures(),
        "not_proved": report.not_proved(),
        "completed": report.completed,
        "elapsed_seconds": report.elapsed.as_secs_f64(),
        "faults": report.counts.faults,
        "good": {
            "sent": sent,
            "refused": refused,
            "unavailable": unavailable,
            "unanswered": unanswered,
            "by_status": by_status(statuses),
            "not_sent": not_sent,
            "slowest_ms": milliseconds(*slowest),
        },
        "forged": forged,
        "not_sent": {
            "count": not_sent + attack.not_sent,
            "because": report.counts.not_sent_because,
        },
        "rotations": report.counts.rotations.iter().map(rotation).collect::<Vec<_>>(),
        "fetches": {
            "count": report.fetches,
            "bound": report.fetch_bound(),
            "within_bound": report.fetches <= report.fetch_bound(),
        },
    })
}

fn forged_counts(attack: &Attack) -> Map<String, Value> {
    [
        ("sent", json!(attack.sent)),
        ("allowed", json!(attack.allowed)),
        ("refused", json!(attack.refused())),
        ("unanswered", json!(attack.unanswered)),
        ("by_status", by_status(&attack.statuses)),
        ("not_sent", json!(attack.not_sent)),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

fn rotation((rotation, rotated): (&Rotation, &RotationCounts)) -> Value {
    json!({
        "kind": rotation.name(),
        "count": rotated.count,
        "first_refused": rotated.first_refused,
        "first_not_sent": rotated.first_not_sent,
        "slowest_first_ms": milliseconds(rotated.slowest_first),
    })
}

fn by_status(statuses: &Statuses) -> Value {
    statuses.iter().map(|(status, count)| (status.to_string(), json!(count))).collect::<Map<_, _>>().into()
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
