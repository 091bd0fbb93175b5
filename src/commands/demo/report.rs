//! What the demo prints: paragraphs, steps as they happen, and the table at the end. Plain text, never wider
//! than [`WIDTH`] as long as all goes as told.

use std::io;

use crate::commands::output::Reader;

/// The widest line.
const WIDTH: usize = 100;

/// How far the text of a step is indented.
const INDENT: usize = 4;

/// A step that has been played.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// What the step is about.
    pub(super) step: String,
    /// The token that was sent.
    pub(super) token: String,
    /// The answer that was told, and the one that came.
    pub(super) answer: Told<String>,
    /// The key-set fetches that were told, in words, and those that the issuer counted.
    pub(super) fetches: Told<String>,
    /// Whether both came as told. Fetches may be told as a limit.
    pub(super) as_told: bool,
}

/// Something told before it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told<T> {
    /// What was told.
    pub(super) expected: T,
    /// What came.
    pub(super) got: T,
}

/// The page that is printed on. One that nobody reads any more is as good as any other; one that cannot be printed on
/// ends the demo.
pub(super) struct Report {
    print: fn(&str) -> io::Result<Reader>,
    reader: Reader,
}

impl Report {
    /// Prints by this.
    pub(super) fn new(print: fn(&str) -> io::Result<Reader>) -> Self {
        Self { print, reader: Reader::There }
    }

    /// Whether somebody reads it.
    pub(super) fn is_read(&self) -> bool {
        self.reader == Reader::There
    }

    /// Prints a text as it is, with an end of line.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        if self.is_read() {
            self.reader = (self.print)(&format!("{text}\n"))?;
        }
        Ok(())
    }

    /// Prints a paragraph, wrapped.
    pub(super) fn paragraph(&mut self, text: &str) -> io::Result<()> {
        self.line(&wrapped(text, "", 0))
    }

    /// Prints what a step is about, before it is played.
    pub(super) fn step(&mut self, number: usize, text: &str) -> io::Result<()> {
        self.line(&wrapped(text, &format!("{number:>2}."), INDENT))
    }

    /// Prints what came of it.
    pub(super) fn outcome(&mut self, text: &str) -> io::Result<()> {
        self.line(&wrapped(text, "    ->", INDENT + 3))
    }

    /// Prints the table.
    pub(super) fn table(&mut self, rows: &[Row]) -> io::Result<()> {
        self.line(&table(rows))
    }
}

/// Words in lines of at most [`WIDTH`], each line indented. `label` stands in the first line's indent.
fn wrapped(text: &str, label: &str, indent: usize) -> String {
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

/// The steps, one a line, and how many came out as told.
fn table(rows: &[Row]) -> String {
    let mut cells = vec![["#", "step", "token", "expected", "got", "fetches", "got"].map(str::to_owned)];
    cells.extend(rows.iter().enumerate().map(|(index, row)| {
        let Row { step, token, answer, fetches, .. } = row.clone();
        let number = (index + 1).to_string();
        [number, step, token, answer.expected, answer.got, fetches.expected, fetches.got]
    }));
    let mut widths = [0; 7];
    for line in &cells {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for (line, row) in cells.iter().zip(std::iter::once(None).chain(rows.iter().map(Some))) {
        text.push_str(&aligned(line, &widths));
        text.push_str(if row.is_some_and(|row| !row.as_told) { "  <- NOT AS TOLD\n" } else { "\n" });
        if row.is_none() {
            text.push_str(&"-".repeat(widths.iter().sum::<usize>() + GAP.len() * (widths.len() - 1)));
            text.push('\n');
        }
    }
    let as_told = rows.iter().filter(|row| row.as_told).count();
    text.push_str(&format!("\n{as_told} of {} steps came out as told.", rows.len()));
    text
}

/// Between two columns.
const GAP: &str = "  ";

/// The cells of a line: numbers, which are in the first and the last two columns, to the right.
fn aligned(cells: &[String; 7], widths: &[usize; 7]) -> String {
    let columns = cells.iter().zip(widths).enumerate().map(|(column, (cell, &width))| match column {
        0 | 5 | 6 => format!("{cell:>width$}"),
        _ => format!("{cell:<width$}"),
    });
    columns.collect::<Vec<_>>().join(GAP)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: &str, expected: &str, got: &str) -> Row {
        Row {
            step: step.into(),
            token: "key-1".into(),
            answer: Told { expected: expected.into(), got: got.into() },
            fetches: Told { expected: "<=2".into(), got: "1".into() },
            as_told: expected == got,
        }
    }

    #[test]
    fn the_table_is_aligned_and_points_at_what_did_not_come_as_told() {
        let text = table(&[row("good", "allow", "allow"), row("expired", "401 expired", "allow")]);
        assert_eq!(
            text,
            "\
#  step     token  expected     got    fetches  got
---------------------------------------------------
1  good     key-1  allow        allow      <=2    1
2  expired  key-1  401 expired  allow      <=2    1  <- NOT AS TOLD

1 of 2 steps came out as told."
        );
    }

    #[test]
    fn words_are_wrapped_within_the_width_and_indented() {
        let text = wrapped(&"word ".repeat(60), " 7.", 4);
        assert!(text.starts_with(" 7. word"));
        assert!(text.lines().skip(1).all(|line| line.starts_with("    word")));
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
        assert_eq!(text.matches("word").count(), 60);
    }
}
