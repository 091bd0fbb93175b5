//! The expected numbers of instructions: a file with one line for each operation, and the comparison with it.

use std::path::Path;

use crate::Failure;

/// How many percent above the expected number fail, and how many below it are reported.
const TOLERANCE: u64 = 3;

const HEAD: &str = "\
# Instructions of one operation, counted by callgrind. tests/run instructions fails if one is more than 3 % above.
# After an intended change: UPDATE_INSTRUCTIONS=1 tests/run instructions, then read the diff.
";

/// Writes the counts as the expected ones.
///
/// # Errors
/// The file cannot be written.
pub fn write(file: &Path, counts: &[(String, u64)]) -> Result<(), Failure> {
    let lines: String = counts.iter().map(|(name, count)| format!("{count:>9} {name}\n")).collect();
    std::fs::write(file, format!("{HEAD}{lines}"))?;
    print!("{lines}");
    Ok(())
}

/// Compares the counts with the expected ones and prints both.
///
/// # Errors
/// One is above the tolerance, or the file has other operations.
pub fn compare(file: &Path, counts: &[(String, u64)]) -> Result<(), Failure> {
    let expected = read(&std::fs::read_to_string(file)?)?;
    let is_same_list = expected.iter().map(|(name, _)| name).eq(counts.iter().map(|(name, _)| name));
    if !is_same_list {
        return Err(format!("{} has other operations: update it", file.display()).into());
    }
    let mut above = Vec::new();
    for ((name, expected), (_, count)) in expected.iter().zip(counts) {
        let percent = (*count as f64 / *expected as f64 - 1.0) * 100.0;
        let note = match () {
            () if is_above(*count, *expected) => "ABOVE",
            () if is_above(*expected, *count) => "below: lower the expected number",
            () => "",
        };
        println!("{count:>9} {expected:>9} {percent:>+6.1} %  {name} {note}");
        if is_above(*count, *expected) {
            above.push(&**name);
        }
    }
    match above[..] {
        [] => Ok(()),
        _ => Err(format!("more instructions than {TOLERANCE} % above the expected: {}", above.join("; ")).into()),
    }
}

fn is_above(count: u64, other: u64) -> bool {
    count * 100 > other * (100 + TOLERANCE)
}

fn read(text: &str) -> Result<Vec<(String, u64)>, Failure> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let read = lines.map(|line| {
        let (count, name) = line.trim().split_once(' ').ok_or("a line without a name")?;
        Ok((name.to_owned(), count.parse()?))
    });
    read.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_fails_above_the_tolerance_only() {
        for (count, above) in [(1_000, false), (1_030, false), (1_031, true), (500, false)] {
            assert_eq!(is_above(count, 1_000), above, "{count}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let counts = vec![("Check, cached token".to_owned(), 20_000), ("screen".to_owned(), 9)];
        let file = std::env::temp_dir().join(format!("portcullis-expected-{}", std::process::id()));
        write(&file, &counts).unwrap();
        let read = read(&std::fs::read_to_string(&file).unwrap());
        std::fs::remove_file(&file).unwrap();
        assert_eq!(read.unwrap(), counts);
    }
}
