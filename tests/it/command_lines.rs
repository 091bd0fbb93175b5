//! Command lines of the built binary: errors never quote what could be a token, and without a reader of the output, the exit code
//! is still the one of the result.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use portcullis::clock::monotonic;
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use serde_json::json;
use tempfile::TempDir;

use crate::support::snapshots::settings;
use crate::support::subprocess::StartCommand;

const NOW: i64 = 1_800_000_000;
const TIMEOUT: Duration = Duration::from_secs(60);

/// A token that is not a JWT.
const OPAQUE: &str = "s3cr3t-0paque-t0ken";

fn portcullis(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(arguments).env_remove("PORTCULLIS_LOG").env_remove("PORTCULLIS_CONFIG");
    command
}

fn output(arguments: &[&str]) -> Output {
    portcullis(arguments).run_and_read().expect("the binary runs")
}

struct Env {
    folder: TempDir,
    config: String,
    jwt: String,
}

impl Env {
    fn new() -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let key = SigningKey::generate("k", SigningAlgorithm::ES256);
        let text = format!(
            "listen: {{ext_authz: '127.0.0.1:0'}}
providers: [{{name: p, issuer: https://i, audiences: [a], jwks: {}}}]
rules: [{{name: orders, match: {{path_prefix: /orders, methods: [GET]}}, require: {{}}}}]
",
            json!({"keys": [key.public_jwk()]})
        );
        let config = folder.path().join("p.yaml");
        fs::write(&config, text).expect("written");
        let jwt = key.sign(&json!({"iss": "https://i", "aud": "a", "sub": "alice", "exp": NOW + 60}));
        Self { config: config.to_str().expect("a plain path").to_owned(), folder, jwt }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).expect("written");
        path
    }
}

#[test]
fn every_command_has_help() {
    for (command, name) in [
        (&[][..], "help"),
        (&["serve"], "help_serve"),
        (&["validate"], "help_validate"),
        (&["explain"], "help_explain"),
        (&["test"], "help_test"),
        (&["rules"], "help_rules"),
        (&["recipe"], "help_recipe"),
        (&["demo"], "help_demo"),
        (&["drill"], "help_drill"),
    ] {
        let output = output(&[command, &["--help"]].concat());
        let text = String::from_utf8(output.stdout).expect("text");
        assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{text}");
        settings(&[]).bind(|| insta::assert_snapshot!(name, text));
    }
}

#[test]
fn errors_never_quote_what_could_be_a_token() {
    let env = Env::new();
    // T is the token; each command line with its exit code.
    let lines: &[(&[&str], i32)] = &[
        (&["explain", "--header", "Authorization Bearer T"], 1),
        (&["explain", "--header", "T"], 1),
        (&["explain", "--header", "Authorization Bearer T:"], 1),
        (&["explain", "--header", ": T"], 1),
        (&["explain", "--header", "Authorization: Bearer T", "--header"], 1),
        (&["explain", "--heade", "Authorization: Bearer T"], 1),
        (&["explain", "--heade=Authorization: Bearer T"], 1),
        (&["explain", "--T"], 1),
        (&["explain", "-T"], 1),
        (&["explain", "--token", "T"], 1),
        (&["explain", "--token=T"], 1),
        (&["explain", "--tokn", "T"], 1),
        (&["explain", "--tokn=T"], 1),
        (&["explain", "--token", "-T"], 1),
        (&["explain", "--token", "T", "--claims", "T"], 1),
        (&["explain", "--claims", "T"], 1),
        (&["explain", "--claims=T"], 1),
        (&["explain", "--claim", "T"], 1),
        (&["explain", "--provider", "T"], 1),
        (&["explain", "--claims", "T", "--provider", "T"], 1),
        (&["explain", "--door", "T"], 1),
        (&["explain", "--door=T"], 1),
        (&["explain", "--proxy", "T"], 1),
        (&["explain", "--proxy", "T", "--door", "nginx"], 1),
        (&["explain", "--door", "nginx", "--path", "/ T"], 2),
        (&["explain", "--door", "nginx", "--header", "x: \u{1}T"], 1),
        (&["explain", "--door", "nginx", "--rule", "T?"], 1),
        (&["explain", "--door", "envoy-http", "--method", "T T"], 1),
        (&["explain", "--door", "envoy-http", "--path", "T"], 1),
        (&["explain", "--door", "tower", "--host", "T\n"], 1),
        (&["explain", "--decision", "T"], 1),
        (&["explain", "--decision", "T", "--admin", "T"], 1),
        (&["explain", "--admin", "T"], 1),
        (&["explain", "T"], 1),
        (&["explain", "Bearer T"], 1),
        (&["explain", "--", "T"], 1),
        (&["explain", "--request", "T"], 1),
        (&["explain", "--request", "T", "--path", "/"], 1),
        (&["explain", "--now", "T"], 1),
        (&["explain", "--format", "T"], 1),
        (&["explain", "--format=T"], 1),
        (&["explain", "--format", "json", "--format", "T"], 1),
        (&["explain", "--method", "T"], 2),
        (&["explain", "--host", "T"], 2),
        (&["explain", "--path", "T"], 2),
        (&["explain", "--path", "/?access_token=T"], 2),
        (&["explain", "--rule", "T"], 2),
        (&["explain", "--source-address", "T"], 2),
        (&["explain", "--source-principal", "T"], 2),
        (&["explain", "--header", "cookie: a=T"], 2),
        (&["explain", "--header", "Authorization: Basic T"], 2),
        (&["explain", "--header", "Authorization: Bearer T", "--header", "Authorization: Bearer T.x"], 2),
        (&["T"], 1),
        (&["explai", "T"], 1),
        (&["--header", "T"], 1),
        (&["test", "T"], 1),
        (&["test", "--now", "T"], 1),
        (&["test", "--format", "T", "cases.yaml"], 1),
        (&["rules", "T"], 1),
        (&["rules", "--format", "T"], 1),
        (&["recipe", "T"], 1),
        (&["recipe", "nginx", "T"], 1),
        (&["validate", "T"], 1),
        (&["validate", "--print=T"], 1),
        (&["validate", "--schema", "--print", "T"], 1),
        (&["validate", "--config", "T"], 1),
        (&["serve", "--config", "T"], 1),
        (&["serve", "T"], 1),
        (&["serve", "--T"], 1),
        (&["demo", "T"], 1),
        (&["demo", "--once=T"], 1),
        (&["drill", "T"], 1),
        (&["drill", "--target", "grpc://user:T@127.0.0.1:1"], 1),
        (&["drill", "--target", "T"], 1),
        (&["drill", "--target", "http://127.0.0.1:1", "--path", "/ T"], 1),
        (&["drill", "--duration", "T"], 1),
        (&["drill", "--rotations", "T"], 1),
        (&["drill", "--issuer-address", "T"], 1),
        (&["drill", "--format", "T"], 1),
    ];
    for token in [env.jwt.as_str(), OPAQUE] {
        for (line, code) in lines {
            let mut arguments: Vec<String> = line.iter().map(|one| one.replace('T', token)).collect();
            if ["explain", "test", "rules", "recipe"].contains(&line[0]) {
                arguments.splice(1..1, ["--config", &env.config].map(str::to_owned));
            }
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let output = output(&arguments);
            let printed = String::from_utf8([output.stdout, output.stderr].concat()).expect("text");
            assert_eq!(output.status.code(), Some(*code), "{line:?}: {printed}");
            assert!(!printed.is_empty(), "{line:?}");
            for part in token.split('.') {
                assert!(!printed.contains(part), "{line:?} quotes {part}: {printed}");
            }
        }
    }
}

#[test]
fn a_malformed_request_file_is_not_quoted() {
    let env = Env::new();
    let start = r#"{"method": "GET", "host": "h", "path": "/orders", "#;
    for rest in [
        r#""headers": {"authorization": T}}"#,
        r#""headers": {"authorization": "Bearer T}}"#,
        r#""headers": {"authorization T": 1}}"#,
        r#""headers": {"authorization": {"T": "T"}}}"#,
        r#""T": "T"}"#,
        r#""headers": ["T"]}"#,
        r#""headers": "T"}"#,
        "T",
    ] {
        for token in [env.jwt.as_str(), OPAQUE] {
            let request = env.file("request.json", &format!("{start}{rest}").replace('T', token));
            let request = request.to_str().expect("a plain path");
            let output = output(&["explain", "--config", &env.config, "--request", request]);
            let printed = String::from_utf8([output.stdout, output.stderr].concat()).expect("text");
            assert_eq!(output.status.code(), Some(1), "{printed}");
            assert!(printed.contains("request.json"), "{printed}");
            assert!(token.split('.').all(|part| !printed.contains(part)), "{rest}: {printed}");
        }
    }
}

#[test]
fn errors_name_the_argument_or_its_position() {
    let env = Env::new();
    for (line, expected) in [
        (&["explain", "--heder", "x"][..], "argument 4 is unknown"),
        (&["explain", "--heder", "x"], "did you mean --header"),
        (&["explain", "--header", "x"], "--header <NAME: VALUE>: expected NAME: VALUE"),
        (&["explain", "--format", "x"], "--format <FORMAT>: expected one of text, json"),
        (&["explain", "--now", "x"], "--now <TIME>: expected RFC 3339"),
        (&["explain", "--path"], "--path <PATH>: its value is missing"),
        (&["explain", "--request", "x", "--path", "/"], "--request <FILE> cannot be used with --path <PATH>"),
        (&["explain", "--request", "/no/such/file"], "the file of --request: No such file"),
        (&["explain", "--now", "1", "--now", "2"], "--now <TIME> cannot be used more than once"),
        (&["serve"], "missing: --config <FILE>"),
        (&["sevre"], "unknown command"),
        (&["drill", "--rotations", "0"], "--rotations <N>: 0 is not in 1..=10000"),
    ] {
        let mut arguments = line.to_vec();
        if line[0] == "explain" {
            arguments.splice(1..1, ["--config", &env.config]);
        }
        let output = output(&arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(expected), "{line:?}: {error}");
        assert_eq!(output.status.code(), Some(1), "{line:?}");
        assert!(output.stdout.is_empty(), "{line:?}");
    }
}

/// The exit code and the errors of a command with this standard output.
fn exit_code_and_errors(arguments: &[&str], out: Stdio) -> (Option<i32>, String) {
    let process = portcullis(arguments).stdout(out).stderr(Stdio::piped()).start();
    let output = process.and_then(Child::wait_with_output).expect("the binary runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A pipe whose reader is closed.
fn broken_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

#[test]
fn a_broken_pipe_does_not_change_the_exit_code_and_prints_no_error() {
    let env = Env::new();
    let good = format!("authorization: Bearer {}", env.jwt);
    let now = NOW.to_string();
    let explain = ["explain", "--config", &env.config, "--now", &now, "--path", "/orders"];
    // An unreachable issuer.
    let unavailable =
        "providers: [{name: p, issuer: https://i, audiences: [a], jwks_uri: 'http://127.0.0.1:1/keys',
  refresh: {timeout: 1s, wait: 1s}}]";
    let unavailable = env.file("u.yaml", &format!("listen: {{ext_authz: '127.0.0.1:0'}}\n{unavailable}\n"));
    let unavailable = unavailable.to_str().expect("a plain path");
    let cases: [(Vec<&str>, i32); 9] = [
        ([&explain[..], &["--header", &good]].concat(), 0),
        ([&explain[..], &["--header", &good, "--format", "json"]].concat(), 0),
        (explain.to_vec(), 2),
        (vec!["explain", "--config", unavailable, "--now", &now, "--header", &good], 3),
        (vec!["validate", "--config", &env.config], 0),
        (vec!["validate", "--config", &env.config, "--print"], 0),
        (vec!["validate", "--schema"], 0),
        (vec!["--help"], 0),
        (vec!["drill", "--duration", "2s", "--rotations", "1", "--attack-rate", "50"], 0),
    ];
    for (line, code) in cases {
        let (actual, error) = exit_code_and_errors(&line, broken_pipe());
        assert_eq!(actual, Some(code), "{line:?}: {error}");
        assert!(!error.contains("panic") && !error.contains("roken pipe"), "{line:?}: {error}");
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let env = Env::new();
    let full = || File::options().write(true).open("/dev/full").expect("Linux has it").into();
    for line in [
        &["explain", "--config", &env.config][..],
        &["validate", "--config", &env.config],
        &["validate", "--config", &env.config, "--print"],
    ] {
        let (code, error) = exit_code_and_errors(line, full());
        assert_eq!(code, Some(1), "{line:?}: {error}");
        assert!(error.contains("the result cannot be written: No space left"), "{line:?}: {error}");
    }
    for line in [&["--help"][..], &["--version"], &["serve", "--help"]] {
        let (code, error) = exit_code_and_errors(line, full());
        assert_eq!(code, Some(1), "{line:?}: {error}");
        assert!(error.contains("the help cannot be written: No space left"), "{line:?}: {error}");
        assert_eq!(exit_code_and_errors(line, broken_pipe()).0, Some(0), "{line:?}");
    }
}

#[test]
fn an_error_that_cannot_be_printed_has_its_exit_code() {
    for line in [
        &["explain", "--nothing"][..],
        &["validate", "--config", "/no/such/file"],
        &["serve", "--config", "/no"],
    ] {
        let status = portcullis(line).stdout(broken_pipe()).stderr(broken_pipe()).run();
        assert_eq!(status.expect("the binary runs").code(), Some(1), "{line:?}");
    }
}

/// A command, killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

impl Running {
    /// Waits until it exits; returns its exit code.
    fn exit_code(&mut self) -> Option<i32> {
        let deadline = monotonic() + TIMEOUT;
        while monotonic() < deadline {
            if let Some(status) = self.0.try_wait().expect("waits") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not end");
    }
}

fn demo(temp: &Path, out: Stdio) -> Running {
    let mut command = portcullis(&["demo"]);
    command.env("TMPDIR", temp).stdout(out).stderr(Stdio::null());
    Running(command.start().expect("the binary runs"))
}

#[test]
fn a_demo_that_gets_a_signal_removes_its_token() {
    use std::io::{BufRead, BufReader};
    for signal in ["-HUP", "-TERM", "-INT", "-QUIT"] {
        let temp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let mut demo = demo(temp.path(), Stdio::piped());
        let out = BufReader::new(demo.0.stdout.take().expect("piped"));
        let keeps_running =
            out.lines().map(|line| line.expect("text")).any(|line| line.starts_with("Press Ctrl-C to stop"));
        assert!(keeps_running);
        let file_count = || fs::read_dir(temp.path()).expect("a folder").count();
        assert_eq!(file_count(), 1, "the token's file is there");
        let killed = Command::new("kill").args([signal, &demo.0.id().to_string()]).run();
        assert!(killed.expect("kill runs").success());
        assert_eq!(demo.exit_code(), Some(0), "{signal}");
        assert_eq!(file_count(), 0, "{signal}");
    }
}

#[test]
fn a_demo_without_a_reader_runs_to_its_end_and_exits() {
    let temp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    assert_eq!(demo(temp.path(), broken_pipe()).exit_code(), Some(0));
    assert_eq!(fs::read_dir(temp.path()).expect("a folder").count(), 0);
}

#[test]
fn a_drill_claim_that_looks_like_a_variable_is_not_expanded() {
    let line =
        ["drill", "--audience", "${HOME}", "--duration", "2s", "--rotations", "1", "--attack-rate", "50"];
    let output = output(&line);
    let printed = String::from_utf8([output.stdout, output.stderr].concat()).expect("text");
    assert_eq!(output.status.code(), Some(0), "{printed}");
}
