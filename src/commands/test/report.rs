//! Renders the results of cases: text for people, and JUnit's XML for CI.

use std::path::Path;

use super::compare::Outcome;
use crate::config::cases::Case;
use crate::telemetry::without_tokens;

/// The results of one file.
pub(super) struct Tested<'c> {
    /// The file.
    pub(super) file: &'c Path,
    /// Each case and its result.
    pub(super) outcomes: Vec<(&'c Case, Outcome)>,
}

impl Tested<'_> {
    /// The number of cases that are not as expected.
    pub(super) fn failed(&self) -> usize {
        self.outcomes.iter().filter(|(_, outcome)| !outcome.differences.is_empty()).count()
    }
}

/// The cases that are not as expected, each with its differences and steps; at the end the number of all.
pub(super) fn text(tested: &[Tested<'_>]) -> String {
    let mut text = String::new();
    for Tested { file, outcomes } in tested {
        for (case, outcome) in outcomes.iter().filter(|(_, outcome)| !outcome.differences.is_empty()) {
            let name = one_line(&case.name);
            text.push_str(&format!("{}:{}: {name}\n{}\n", file.display(), case.line, details(outcome)));
        }
    }
    let (cases, failed) = totals(tested);
    match failed {
        0 => text + &format!("{cases} case(s): all as expected\n"),
        failed => text + &format!("{cases} case(s): {failed} not as expected\n"),
    }
}

/// The number of all cases, and of those that are not as expected.
fn totals(tested: &[Tested<'_>]) -> (usize, usize) {
    let cases = tested.iter().map(|tested| tested.outcomes.len()).sum();
    (cases, tested.iter().map(Tested::failed).sum())
}

/// The differences, and below them the steps.
fn details(outcome: &Outcome) -> String {
    let differences = outcome.differences.iter().map(|line| format!("  {}\n", one_line(line)));
    let steps = outcome.steps.iter().map(|line| format!("    {}\n", one_line(line)));
    differences.chain(steps).collect()
}

/// Text without a token, whose control characters are escaped: names and headers of cases may have both.
fn one_line(text: &str) -> String {
    let text = without_tokens(text);
    let escaped = |letter: char| match letter.is_control() {
        true => letter.escape_default().collect(),
        false => String::from(letter),
    };
    text.chars().map(escaped).collect()
}

/// A `testsuite` for each file, a `testcase` for each case, and a `failure` in each that is not as expected.
pub(super) fn junit(tested: &[Tested<'_>]) -> String {
    let (cases, failed) = totals(tested);
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuites name=\"portcullis test\" tests=\"{cases}\" failures=\"{failed}\" errors=\"0\">\n"
    );
    for suite in tested {
        let file = xml_text(&one_line(&suite.file.display().to_string()));
        let (tests, failures) = (suite.outcomes.len(), suite.failed());
        xml.push_str(&format!(
            "  <testsuite name=\"{file}\" tests=\"{tests}\" failures=\"{failures}\" errors=\"0\">\n"
        ));
        for (case, outcome) in &suite.outcomes {
            let (name, line) = (xml_text(&one_line(&case.name)), case.line);
            xml.push_str(&format!(
                "    <testcase name=\"{name}\" classname=\"{file}\" file=\"{file}\" line=\"{line}\""
            ));
            xml.push_str(
                &failure(outcome)
                    .map_or_else(|| "/>\n".to_owned(), |failure| format!(">\n{failure}    </testcase>\n")),
            );
        }
        xml.push_str("  </testsuite>\n");
    }
    xml + "</testsuites>\n"
}

/// What is not as expected; `None` if nothing.
fn failure(outcome: &Outcome) -> Option<String> {
    let lines: Vec<String> = outcome.differences.iter().map(|line| one_line(line)).collect();
    let message = (!lines.is_empty()).then(|| xml_text(&lines.join("; ")))?;
    Some(format!("      <failure message=\"{message}\">{}</failure>\n", xml_text(&details(outcome))))
}

/// Text for an attribute in double quotes or for content. Characters that XML 1.0 §2.2 does not allow are replaced.
fn xml_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\n' | '\t' => out.push(letter),
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            letter => out.push(letter),
        }
    }
    out
}
