//! Numbers of instructions: read from callgrind's profiles, and compared with a file of expected ones.

use std::path::Path;

use crate::Failure;

/// How many percent above the expected number fail; as many below it are reported.
const TOLERANCE: u64 = 5;

/// How the symbols of AWS-LC begin.
const AWS_LC: &str = "aws_lc_";

const HEAD: &str = "\
# Instructions of one operation without those of AWS-LC, counted by callgrind. tests/run instructions fails if one is more
# than 5 % above. After an intended change: UPDATE_INSTRUCTIONS=1 tests/run instructions, then read the diff.
";

/// The instructions of one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// The operation.
    pub name: String,
    /// Those that are compared.
    pub instructions: u64,
    /// Those of AWS-LC.
    pub aws_lc: u64,
}

impl Count {
    /// Reads a profile of callgrind (without compressed strings) in which the operation was done this many times.
    ///
    /// # Errors
    /// The profile counts nothing.
    pub fn of_profile(name: &str, profile: &str, times: u64) -> Result<Self, &'static str> {
        let (mut instructions, mut aws_lc) = (0, 0);
        let mut in_aws_lc = false;
        let mut lines = profile.lines();
        while let Some(line) = lines.next() {
            if let Some(function) = line.strip_prefix("fn=") {
                in_aws_lc = function.starts_with(AWS_LC);
            } else if line.starts_with("calls=") {
                // The next line has the cost within the called function, which has lines of its own.
                let _inclusive = lines.next();
            } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
                let cost: u64 = line.split(' ').nth(1).and_then(|cost| cost.parse().ok()).unwrap_or_default();
                *(if in_aws_lc { &mut aws_lc } else { &mut instructions }) += cost;
            }
        }
        match instructions {
            0 => Err("callgrind has counted nothing"),
            _ => {
                Ok(Self { name: name.to_owned(), instructions: instructions / times, aws_lc: aws_lc / times })
            }
        }
    }
}

/// Writes the counts as the expected ones.
///
/// # Errors
/// The file cannot be written.
pub fn write(file: &Path, counts: &[Count]) -> Result<(), Failure> {
    let lines: String =
        counts.iter().map(|count| format!("{:>9} {}\n", count.instructions, count.name)).collect();
    std::fs::write(file, format!("{HEAD}{lines}"))?;
    print!("{lines}");
    Ok(())
}

/// Compares the counts with the expected ones and prints both.
///
/// # Errors
/// One is above the tolerance, or the file has other operations.
pub fn compare(file: &Path, counts: &[Count]) -> Result<(), Failure> {
    let expected = read(&std::fs::read_to_string(file)?)?;
    if !expected.iter().map(|(name, _)| name).eq(counts.iter().map(|count| &count.name)) {
        return Err(format!("{} has other operations: update it", file.display()).into());
    }
    println!("    count  expected  change    AWS-LC  operation");
    let mut above = Vec::new();
    for ((_, expected), count) in expected.iter().zip(counts) {
        let Count { name, instructions, aws_lc } = count;
        let percent = (*instructions as f64 / *expected as f64 - 1.0) * 100.0;
        let note = match () {
            () if is_above(*instructions, *expected) => {
                above.push(&**name);
                ": TOO MANY"
            }
            () if is_above(*expected, *instructions) => ": fewer, lower the expected number",
            () => "",
        };
        println!("{instructions:>9} {expected:>9} {percent:>+6.1}% {aws_lc:>9}  {name}{note}");
    }
    match above[..] {
        [] => Ok(()),
        _ => {
            Err(format!("more than {TOLERANCE} % above the expected instructions: {}", above.join("; "))
                .into())
        }
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
        for (count, above) in [(1_000, false), (1_050, false), (1_051, true), (500, false)] {
            assert_eq!(is_above(count, 1_000), above, "{count}");
        }
    }

    #[test]
    fn the_cost_of_a_function_is_counted_once_and_that_of_aws_lc_apart() {
        let profile = "events: Ir\n\nfn=caller\n10 50\n+2 30\ncfn=aws_lc_0_47_0_sha256\ncalls=4 0 \n* 400\n\
                       fl=a.rs\nfn=aws_lc_0_47_0_sha256\n0 400\n\ntotals: 480\n";
        let count = Count { name: "one".to_owned(), instructions: 8, aws_lc: 40 };
        assert_eq!(Count::of_profile("one", profile, 10), Ok(count));
        assert!(Count::of_profile("one", "events: Ir\n", 10).is_err());
    }

    #[test]
    fn what_is_written_is_read() {
        let count = Count { name: "Check, cached token".to_owned(), instructions: 20_000, aws_lc: 9 };
        let file = std::env::temp_dir().join(format!("portcullis-expected-{}", std::process::id()));
        write(&file, &[count]).unwrap();
        let read = read(&std::fs::read_to_string(&file).unwrap());
        std::fs::remove_file(&file).unwrap();
        assert_eq!(read.unwrap(), [("Check, cached token".to_owned(), 20_000)]);
    }
}
