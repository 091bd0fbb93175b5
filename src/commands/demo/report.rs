//! The output of the demo: paragraphs, steps and a table at the end, in plain text of at most [`WIDTH`] columns unless
//! a step has an unexpected result.

use std::io;

use crate::commands::output::Reader;

/// The widest line.
const WIDTH: usize = 100;

/// The indentation of a step's text.
const INDENT: usize = 4;

/// A completed step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// The name of the step.
    pub(super) step: String,
    /// The token that was sent.
    pub(super) token: String,
    /// The expected and the actual response.
    pub(super) response: Comparison<String>,
    /// The expected number of key-set fetches, which may be a limit, and the number that the issuer counted.
    pub(super) fetches: Comparison<String>,
    /// Whether both are as expected.
    pub(super) as_expected: bool,
}

/// An expected and an actual value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Comparison<T> {
    pub(super) expected: T,
    pub(super) actual: T,
}

/// Prints the report. Once the reader has closed the output nothing more is printed; other write errors abort the demo.
pub(super) struct Report {
    print: fn(&str) -> io::Result<Reader>,
    reader: Reader,
}

impl Report {
    /// A report printed with this function.
    pub(super) fn new(print: fn(&str) -> io::Result<Reader>) -> Self {
        Self { print, reader: Reader::Open }
    }

    /// Whether the reader has not closed the output.
    pub(super) fn is_open(&self) -> bool {
        self.reader == Reader::Open
    }

    /// Prints a line.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        if self.is_open() {
            self.reader = (self.print)(&format!("{text}\n"))?;
        }
        Ok(())
    }

    /// Prints a wrap paragraph.
    pub(super) fn paragraph(&mut self, text: &str) -> io::Result<()> {
        self.line(&wrap(text, "", 0))
    }

    /// Prints the description of a step.
    pub(super) fn step(&mut self, number: usize, text: &str) -> io::Result<()> {
        self.line(&wrap(text, &format!("{number:>2}."), INDENT))
    }

    /// Prints the result of a step.
    pub(super) fn outcome(&mut self, text: &str) -> io::Result<()> {
        self.line(&wrap(text, "    ->", INDENT + 3))
    }

    /// Prints the table.
    pub(super) fn table(&mut self, rows: &[Row]) -> io::Result<()> {
        self.line(&table(rows))
    }
}

/// Wraps words into indented lines of at most [`WIDTH`] columns. `label` is put into the indentation of the first line.
fn wrap(text: &str, label: &str, indent: usize) -> String {
    let mut lines = Vec::new();
    let mut line = format!("{label:<indent$}");
    let mut is_empty = true;
    for word in text.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(line);
            line = " ".repeat(indent);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    lines.push(line);
    lines.join("\n")
}

/// The steps, one per line, and the number of those with the expected result.
fn table(rows: &[Row]) -> String {
    let mut cells = vec![["#", "step", "token", "expected", "got", "fetches", "got"].map(str::to_owned)];
    cells.extend(rows.iter().enumerate().map(|(index, row)| {
        let Row { step, token, response, fetches, .. } = row.clone();
        let number = (index + 1).to_string();
        [number, step, token, response.expected, response.actual, fetches.expected, fetches.actual]
    }));
    let mut widths = [0; 7];
    for line in &cells {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for (line, row) in cells.iter().zip(std::iter::once(None).chain(rows.iter().map(Some))) {
        text.push_str(&align(line, &widths));
        text.push_str(if row.is_some_and(|row| !row.as_expected) { "  <- UNEXPECTED\n" } else { "\n" });
        if row.is_none() {
            text.push_str(&"-".repeat(widths.iter().sum::<usize>() + GAP.len() * (widths.len() - 1)));
            text.push('\n');
        }
    }
    let as_expected = rows.iter().filter(|row| row.as_expected).count();
    text.push_str(&format!("\n{as_expected} of {} steps had the expected result.", rows.len()));
    text
}

/// The space between two columns.
const GAP: &str = "  ";

/// Aligns the cells of a line. Numbers, in the first and the last two columns, are right-align.
fn align(cells: &[String; 7], widths: &[usize; 7]) -> String {
    let columns = cells.iter().zip(widths).enumerate().map(|(column, (cell, &width))| match column {
        0 | 5 | 6 => format!("{cell:>width$}"),
        _ => format!("{cell:<width$}"),
    });
    columns.collect::<Vec<_>>().join(GAP)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: &str, expected: &str, actual: &str) -> Row {
        Row {
            step: step.into(),
            token: "key-1".into(),
            response: Comparison { expected: expected.into(), actual: actual.into() },
            fetches: Comparison { expected: "<=2".into(), actual: "1".into() },
            as_expected: expected == actual,
        }
    }

    #[test]
    fn the_table_is_aligned_and_marks_unexpected_results() {
        let text = table(&[row("good", "allow", "allow"), row("expired", "401 expired", "allow")]);
        assert_eq!(
            text,
            "\
#  step     token  expected     got    fetches  got
---------------------------------------------------
1  good     key-1  allow        allow      <=2    1
2  expired  key-1  401 expired  allow      <=2    1  <- UNEXPECTED

1 of 2 steps had the expected result."
        );
    }

    #[test]
    fn words_are_wrapped_within_the_width_and_indented() {
        let text = wrap(&"word ".repeat(60), " 7.", 4);
        assert!(text.starts_with(" 7. word"));
        assert!(text.lines().skip(1).all(|line| line.starts_with("    word")));
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
        assert_eq!(text.matches("word").count(), 60);
    }
}
