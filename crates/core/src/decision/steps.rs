//! The steps of a decision, for people: what each found, and what the last one wanted where it refused.

use std::borrow::Cow;

/// A step of a decision, in the order in which they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum StepName {
    /// Whether the request can be judged as it is described.
    Request,
    /// The rule that it falls under.
    Rule,
    /// Where the token is.
    Token,
    /// The time of day.
    Clock,
    /// The provider of the token's issuer.
    Provider,
    /// What can be said of the token without a key.
    Screen,
    /// Whether newer keys had to be waited for.
    Refresh,
    /// The key that verifies it.
    Key,
    /// What the rule requires besides.
    Require,
    /// What the upstream gets.
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
            StepName::Refresh => "refresh",
            StepName::Key => "key",
            StepName::Require => "require",
            StepName::Headers => "headers",
        }
    }
}

/// One step as an explanation shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step<'r> {
    /// Which one.
    pub name: StepName,
    /// How it came out, in a word or as a reason.
    pub outcome: Cow<'r, str>,
    /// What was found; may be empty.
    pub found: Cow<'r, str>,
    /// What was wanted instead, where the decision ended here.
    pub wanted: Option<Cow<'r, str>>,
}

impl Step<'_> {
    /// What was found and what was wanted, in one line; may be empty.
    pub fn detail(&self) -> String {
        join(&self.found, self.wanted.as_deref())
    }
}

/// In one line, which anybody who sends a token can make long.
pub(super) fn join(found: &str, wanted: Option<&str>) -> String {
    const LONGEST: usize = 1_024;
    let mut line = match wanted {
        None => found.to_owned(),
        Some(wanted) if found.is_empty() => format!("wanted {wanted}"),
        Some(wanted) => format!("{found}; wanted {wanted}"),
    };
    if let Some((end, _)) = line.char_indices().nth(LONGEST) {
        line.truncate(end);
        line.push_str("...");
    }
    line
}
