//! Text with placeholders, `<<name>>`, which none of the proxies' languages has.
//!
//! A placeholder alone in its line stands for any number of lines, which get its indentation; without lines it vanishes,
//! with one of two blank lines around it. Any other placeholder stands for text within its line. What is filled in is
//! not looked at again. This module knows no proxy, and does not make a value safe for one.

use std::collections::BTreeMap;

/// The values of placeholders.
#[derive(Debug, Default)]
pub(super) struct Values(BTreeMap<&'static str, Vec<String>>);

impl Values {
    /// Sets a text within a line.
    pub(super) fn text(mut self, name: &'static str, text: impl ToString) -> Self {
        self.0.insert(name, vec![text.to_string()]);
        self
    }

    /// Sets whole lines.
    pub(super) fn lines(mut self, name: &'static str, lines: Vec<String>) -> Self {
        self.0.insert(name, lines);
        self
    }

    /// The lines of a placeholder; none if it is unknown, which a test of the templates detects.
    fn get(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// The template with these values.
    pub(super) fn fill(&self, template: &str) -> String {
        let mut text = String::new();
        let mut is_after_blank = false;
        for line in template.lines() {
            for filled in self.fill_line(line) {
                let is_blank = filled.trim().is_empty();
                if !(is_blank && is_after_blank) {
                    text.push_str(filled.trim_end());
                    text.push('\n');
                }
                is_after_blank = is_blank;
            }
        }
        text
    }

    fn fill_line(&self, line: &str) -> Vec<String> {
        let trimmed = line.trim_start();
        let indentation = line.strip_suffix(trimmed).unwrap_or_default();
        let alone = trimmed.strip_prefix("<<").and_then(|rest| rest.strip_suffix(">>"));
        if let Some(name) = alone.filter(|name| !name.contains("<<")) {
            return self.get(name).iter().map(|filled| format!("{indentation}{filled}")).collect();
        }
        let (mut filled, mut rest) = (String::new(), line);
        while let Some((before, name, after)) = next_placeholder(rest) {
            filled.push_str(before);
            filled.extend(self.get(name).iter().map(String::as_str));
            rest = after;
        }
        filled.push_str(rest);
        vec![filled]
    }
}

/// The text before the next placeholder, its name, and the text after it.
fn next_placeholder(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once("<<")?;
    let (name, after) = rest.split_once(">>")?;
    Some((before, name, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_is_filled_within_its_line_or_by_lines_with_its_indentation() {
        let values = Values::default()
            .text("a", "1")
            .text("b", 2)
            .lines("c", vec!["x".into(), String::new(), "y".into()]);
        let filled = values.fill("# <<a>>, <<b>>;\n  <<c>>\n<<\n");
        assert_eq!(filled, "# 1, 2;\n  x\n\n  y\n<<\n");
    }

    #[test]
    fn a_placeholder_without_lines_vanishes_with_a_blank_line() {
        assert_eq!(Values::default().fill("a\n\n  <<none>>\n\nb\n"), "a\n\nb\n");
        assert_eq!(Values::default().fill("a\n<<none>>\nb\n"), "a\nb\n");
    }

    #[test]
    fn what_is_filled_in_is_not_filled_again() {
        let values = Values::default().text("a", "<<b>>").text("b", "no");
        assert_eq!(values.fill("x <<a>>\n<<a>>\n"), "x <<b>>\n<<b>>\n");
    }
}
