//! The steps of a decision, for explanations: what each step found, and what the last one wanted if it refused.

use std::borrow::Cow;

/// A step of a decision, in the order of evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum StepName {
    /// Whether the request is described well enough to be evaluated.
    Request,
    /// The rule that matches the request.
    Rule,
    /// The token and its place.
    Token,
    /// The system time.
    Clock,
    /// The provider of the token's issuer.
    Provider,
    /// The checks that need no key.
    Screen,
    /// The keys of the issuer, where an explanation had to fetch them first.
    Keys,
    /// Whether the request waited for newer keys.
    Refresh,
    /// The key that verified the token.
    Key,
    /// The requirements of the rule.
    Require,
    /// The headers of the upstream request.
    Headers,
}

impl StepName {
    /// Its name in an explanation.
    pub fn as_str(self) -> &'static str {
        match self {
            StepName::Request => "request",
            StepName::Rule => "rule",
            StepName::Token => "token",
            StepName::Clock => "clock",
            StepName::Provider => "provider",
            StepName::Screen => "screen",
            StepName::Keys => "keys",
            StepName::Refresh => "refresh",
            StepName::Key => "key",
            StepName::Require => "require",
            StepName::Headers => "headers",
        }
    }
}

/// One step of an explanation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step<'r> {
    /// Which step.
    pub name: StepName,
    /// The outcome, as a word or a reason.
    pub outcome: Cow<'r, str>,
    /// What was found; may be empty.
    pub found: Cow<'r, str>,
    /// What was wanted instead, if the request was refused here.
    pub wanted: Option<Cow<'r, str>>,
}

impl Step<'_> {
    /// What was found and what was wanted, in one line; may be empty.
    pub fn detail(&self) -> String {
        joined(&self.found, self.wanted.as_deref())
    }
}

/// Joins both in one line and truncates it: the client controls its length.
pub(super) fn joined(found: &str, wanted: Option<&str>) -> String {
    shortened(match wanted {
        None => found.to_owned(),
        Some(wanted) if found.is_empty() => format!("wanted {wanted}"),
        Some(wanted) => format!("{found}; wanted {wanted}"),
    })
}

/// At most 1,024 characters of a line.
pub(super) fn shortened(mut line: String) -> String {
    const MAX_CHARS: usize = 1_024;
    if let Some((end, _)) = line.char_indices().nth(MAX_CHARS) {
        line.truncate(end);
        line.push_str("...");
    }
    line
}
