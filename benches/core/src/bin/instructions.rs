//! Counts the instructions of the hot path with callgrind, and compares them with the expected ones. Fails if a count is
//! more than the tolerance above.
//!
//!     instructions EXPECTED            compare with this file
//!     instructions --update EXPECTED   write the file
//!
//! Callgrind counts only within [`measured`], and writes a profile for each call of it: nothing of the start is in it. Keys
//! and tokens are made before, without callgrind. The instructions of AWS-LC are printed and not compared: they depend on
//! the processor, and callgrind has neither AVX-512 nor the SHA extensions.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;

use portcullis_benches::request::check;
use portcullis_core_benches::door::{Door, TOGETHER};
use portcullis_core_benches::engine::Engine;
use portcullis_core_benches::instructions::{self, Count};
use portcullis_core_benches::steps::Steps;
use portcullis_core_benches::{Failure, fixture};
use portcullis_issuer::{SigningAlgorithm, with_claim};
use serde_json::{Value, json};

/// How often each operation is done.
const TIMES: usize = 20 * TOGETHER;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--measure", folder] => measure(Path::new(folder)),
        ["--update", file] => instructions::write(Path::new(file), &count()?),
        [file] => instructions::compare(Path::new(file), &count()?),
        _ => Err("usage: instructions [--update] EXPECTED".into()),
    }
}

/// Runs the operations in a process under callgrind.
fn count() -> Result<Vec<Count>, Failure> {
    let folder = std::env::temp_dir().join(format!("portcullis-instructions-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let counted = prepare(&folder).and_then(|()| count_in(&folder));
    std::fs::remove_dir_all(&folder)?;
    counted
}

fn count_in(folder: &Path) -> Result<Vec<Count>, Failure> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--compress-strings=no"])
        .arg("--toggle-collect=*::measured")
        .arg("--dump-after=*::measured")
        .arg(format!("--callgrind-out-file={}", folder.join("profile").display()))
        .arg(std::env::current_exe()?)
        .arg("--measure")
        .arg(folder)
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let names = String::from_utf8(output.stdout)?;
    let counts = names.lines().enumerate().map(|(i, name)| {
        // The profiles are numbered from 1.
        let profile = std::fs::read_to_string(folder.join(format!("profile.{}", i + 1)))?;
        Count::of_profile(name, &profile, TIMES as u64).map_err(Into::into)
    });
    counts.collect()
}

/// Makes the keys and tokens: under callgrind an RSA key would take half a minute.
fn prepare(folder: &Path) -> Result<(), Failure> {
    let key = fixture::key(SigningAlgorithm::RS256);
    let claims = fixture::claims();
    let prepared = json!({
        "keys": fixture::key_set(&[&key]),
        "token": key.sign(&claims),
        "expired": key.sign(&with_claim(claims, "exp", 1_000_000_000)),
    });
    std::fs::write(folder.join("prepared.json"), prepared.to_string())?;
    Ok(())
}

/// What [`prepare`] has made.
struct Prepared(BTreeMap<String, Value>);

impl Prepared {
    fn token(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap_or_default()
    }

    fn configuration(&self, more: &str) -> String {
        fixture::configuration(&self.0["keys"], "", more)
    }
}

/// Counted by callgrind: everything that this calls.
#[inline(never)]
fn measured(operation: &mut dyn FnMut() -> Result<(), Failure>) -> Result<(), Failure> {
    black_box(operation())
}

/// Names an operation and measures it, warm.
fn row(name: &str, mut operations: impl FnMut() -> Result<(), Failure>) -> Result<(), Failure> {
    operations()?;
    println!("{name}");
    measured(&mut operations)
}

fn measure(folder: &Path) -> Result<(), Failure> {
    let prepared = Prepared(serde_json::from_slice(&std::fs::read(folder.join("prepared.json"))?)?);
    let rules = fixture::rules(49, fixture::CONDITION);
    let checks = [
        ("Check, cached token", "", "token", 0),
        ("Check, cached token, 50 rules and a condition", &rules, "token", 0),
        ("Check, expired token", "", "expired", 16),
        ("Check, first use of an RS256 token", "token_cache: {entries: 0}\n", "token", 0),
    ];
    for (name, more, token, expected) in checks {
        let mut door = Door::open(&prepared.configuration(more))?;
        let message = check("/orders/1", prepared.token(token), 0);
        let code = door.code_of(&message)?;
        if code != expected {
            return Err(format!("{name}: the code is {code}, not {expected}").into());
        }
        row(name, || door.answer(&message, TIMES, TOGETHER))?;
    }
    engine(&prepared)?;
    core(&prepared)
}

/// The decision without a door.
fn engine(prepared: &Prepared) -> Result<(), Failure> {
    let engine = Engine::start(&prepared.configuration(""))?;
    let headers = fixture::browser_headers(prepared.token("token"), 0);
    row("decision, cached token", || repeat(|| engine.decide(&headers, "/orders/1")))
}

/// The steps of a decision.
fn core(prepared: &Prepared) -> Result<(), Failure> {
    let steps = Steps::new(&prepared.configuration(&fixture::rules(49, fixture::CONDITION)))?;
    let token = prepared.token("token");
    row("screen", || repeat(|| steps.screened(token)))?;
    let screened = steps.screened(token)?;
    let validated = steps.validated(&screened)?;
    let claim_headers = steps.claim_headers(&validated)?;
    let headers = fixture::browser_headers(token, 0);
    fixture::with_request("/orders/1", &headers, |request| {
        row("rule, the last of 50", || repeat(|| steps.rule(request)))?;
        let rule = steps.rule(request)?.ok_or("no rule")?;
        row("condition", || {
            repeat(|| steps.meets(rule, &validated, request).map_err(|unmet| unmet.to_string().into()))
        })?;
        row("changes for the upstream", || repeat(|| steps.changes(&claim_headers, request)))
    })
}

fn repeat<T>(operation: impl Fn() -> Result<T, Failure>) -> Result<(), Failure> {
    (0..TIMES).try_for_each(|_| operation().map(|result| drop(black_box(result))))
}
