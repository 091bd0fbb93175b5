//! The configuration, from text to what runs or to everything that is wrong. Nothing is served here.

use std::process::Command;

use portcullis::config::{BindAddress, Config, KeySource, RefreshPolicy};
use portcullis::validation::algorithm::Algorithm;
use portcullis::validation::provider::{Audiences, TokenSource};
use proptest::prelude::*;

const EXAMPLE: &str = include_str!("../deploy/portcullis.yaml");

const MINIMAL: &str = "
listen: {ext_authz: 127.0.0.1:0}
providers:
  - name: p
    issuer: https://sso.example.com
    audiences: [a]
";

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, &|name| (name == "STATUS").then(|| "429".to_owned()))
        .map_err(|errors| errors.to_string())
}

/// `MINIMAL` with one more key in the provider, which is line 7.
fn provider_with(line: &str) -> String {
    format!("{MINIMAL}    {line}\n")
}

/// Expects these errors: line, path, and a part of the message.
#[track_caller]
fn refused(text: &str, expected: &[(usize, &str, &str)]) {
    let errors = match Config::parse(text, &|_| None) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(errors) => errors,
    };
    let got: Vec<_> = errors
        .iter()
        .map(|error| (error.at.map_or(0, |at| at.line), &*error.path, &*error.message))
        .collect();
    assert_eq!(got.len(), expected.len(), "{got:#?}\nfor\n{text}");
    for (got, expected) in got.iter().zip(expected) {
        assert_eq!((got.0, got.1), (expected.0, expected.1), "{got:?}\nfor\n{text}");
        assert!(got.2.contains(expected.2), "{got:?}\nfor\n{text}");
    }
}

#[test]
fn the_shortest_configuration_has_every_default() {
    let config = parse(MINIMAL).expect("the shortest configuration is valid");
    let provider = &config.providers[0];
    assert_eq!(provider.refresh, RefreshPolicy::default());
    assert_eq!(provider.provider.audiences, Audiences::AnyOf(vec!["a".into()]));
    assert_eq!(provider.provider.algorithms, Algorithm::default_set());
    assert_eq!(provider.provider.token_from, [TokenSource::default()]);
    assert!(provider.provider.forward_token);
    assert_eq!(config.responses.keys_unavailable_status, 503);
    assert_eq!(config.listen.admin, None);
    let KeySource::Discovery(url) = &provider.keys else { panic!("{:?}", provider.keys) };
    assert_eq!(url.as_str(), "https://sso.example.com/.well-known/openid-configuration");
}

#[test]
fn the_example_configuration_is_valid_and_says_the_defaults() {
    let config = parse(EXAMPLE).expect("the example is valid");
    assert_eq!(config.providers[0].refresh, RefreshPolicy::default());
    assert_eq!(config.providers[0].provider.algorithms, Algorithm::default_set());
    let minimal = parse(MINIMAL).expect("the shortest configuration is valid");
    assert_eq!(config.responses, minimal.responses);
    assert_eq!(config.limits, minimal.limits);
    assert_eq!(config.shutdown, minimal.shutdown);
    assert_eq!(config.log, minimal.log);
}

#[test]
fn the_printed_configuration_is_read_as_the_same() {
    for text in [EXAMPLE, MINIMAL] {
        let printed = parse(text).expect("the configuration is valid").to_yaml();
        let again = parse(&printed).unwrap_or_else(|errors| panic!("{errors}\n{printed}"));
        assert_eq!(again.to_yaml(), printed);
        assert_eq!(again.providers[0].provider, parse(text).expect("valid").providers[0].provider);
    }
}

#[test]
fn an_inline_secret_is_never_printed() {
    let secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldCE";
    let text = provider_with(&format!(
        "jwks: {{keys: [{{kty: oct, kid: k, k: {secret}}}]}}\n    algorithms: [HS256]"
    ));
    let config = parse(&text).expect("the secret is long enough");
    assert!(!config.to_yaml().contains(secret));
    assert!(!format!("{config:?}").contains(secret));
}

#[test]
fn values_are_typed_after_their_variables_are_expanded() {
    let text = format!("{MINIMAL}responses: {{keys_unavailable_status: \"${{STATUS}}\"}}\n");
    assert!(parse(&text).is_err(), "a quoted number is text");
    for (status, expected) in [("${STATUS}", 429), ("${OTHER:-500}", 500)] {
        let text = format!("{MINIMAL}responses:\n  keys_unavailable_status: {status}\n");
        let config = parse(&text).expect("the status is a number after expansion");
        assert_eq!(config.responses.keys_unavailable_status, expected);
    }
}

#[test]
fn a_socket_file_may_have_a_mode() {
    let text = MINIMAL.replace("127.0.0.1:0", "{address: 'unix:/run/p.sock', mode: \"0660\"}");
    let config = parse(&text).expect("a socket file with a mode is valid");
    let BindAddress::Unix { mode, .. } = config.listen.ext_authz.address else { panic!("not a socket file") };
    assert_eq!(mode, Some(0o660));
}

#[test]
fn every_error_is_reported_at_once_with_its_place() {
    refused(
        "
listen: {ext_authz: localhost, admin: 1}
providers:
  - name: a b
    issuer: x
    audiences: []
    clock_skew: 30
    refresh:
      wait: 2
      tiemout: 2s
  - name: q
log: {level: loud}
colour: red
",
        &[
            (2, "listen.ext_authz", "IP address and a port"),
            (2, "listen.admin", "IP address and a port"),
            (4, "providers[0]", "is not a URL"),
            (4, "providers[0].name", "letters, digits"),
            (6, "providers[0].audiences", "any_audience: true"),
            (7, "providers[0].clock_skew", "with its unit"),
            (9, "providers[0].refresh.wait", "with its unit"),
            (10, "providers[0].refresh.tiemout", "did you mean `timeout`"),
            (11, "providers[1]", "`issuer` is missing"),
            (11, "providers[1]", "`audiences` is missing"),
            (12, "log.level", "error, warn, info"),
            (13, "colour", "unknown key"),
        ],
    );
}

#[test]
fn keys_of_later_work_are_refused_and_never_ignored() {
    let later = "listen: {ext_authz: 127.0.0.1:0, forward_auth: {address: 127.0.0.1:1, profile: nginx}}
providers:
  - {name: p, issuer: 'https://i', audiences: [a], http: {}, refresh: {snapshot_dir: /var/lib}}
rules: []
responses: {resource_metadata: 'https://r'}
trusted_proxies: []
token_cache: {entries: 0}
tracing: {}
";
    let not_yet = "not supported yet";
    refused(
        later,
        &[
            (1, "listen.forward_auth", not_yet),
            (3, "providers[0].http", not_yet),
            (3, "providers[0].refresh.snapshot_dir", not_yet),
            (4, "rules", not_yet),
            (5, "responses.resource_metadata", not_yet),
            (6, "trusted_proxies", not_yet),
            (7, "token_cache", not_yet),
            (8, "tracing", not_yet),
        ],
    );
}

#[test]
fn a_wrong_value_of_a_provider_is_refused_where_it_stands() {
    for (line, path, message) in [
        ("any_audience: true", "audiences", "contradict"),
        ("any_audience: yes", "any_audience", "`true` or `false`"),
        ("jwks_uri: ftp://x/y", "jwks_uri", "http or https"),
        ("jwks_uri: https://u:p@x/y", "jwks_uri", "user name or a password"),
        ("jwks_uri: /keys", "jwks_uri", "http or https"),
        ("jwks_uri: 'https://x/#f'", "jwks_uri", "`#`"),
        ("algorithms: []", "algorithms", "accepts no token"),
        ("algorithms: [RS256, RS256]", "algorithms[1]", "second time"),
        ("algorithms: [none]", "algorithms[0]", "not a supported algorithm"),
        ("algorithms: [rs256]", "algorithms[0]", "not a supported algorithm"),
        ("algorithms: [HS256]", "", "inline `jwks`"),
        ("clock_skew: -1s", "clock_skew", "with its unit"),
        ("clock_skew: 11m", "clock_skew", "duration from"),
        ("clock_skew: 99999999999999999999s", "clock_skew", "with its unit"),
        ("clock_skew: 9999999999999999999h", "clock_skew", "with its unit"),
        ("token_types: []", "token_types", "accepts no token"),
        ("required_claims: tenant_id", "required_claims", "a list"),
        ("required_claims: ['/a~2']", "required_claims[0]", "~0"),
        ("token_from: []", "token_from", "finds no token"),
        ("token_from: [{cookie: a, query: b}]", "token_from[0]", "one of"),
        ("token_from: [{cookie: 'a b'}]", "token_from[0].cookie", "a name of"),
        ("forward_token: 1", "forward_token", "`true` or `false`"),
        ("claim_headers: {host: sub}", "claim_headers.host", "belongs to HTTP"),
        ("claim_headers: {':path': sub}", "claim_headers.:path", "header name"),
        ("claim_headers: {Content-Length: sub}", "claim_headers.Content-Length", "belongs to HTTP"),
        ("claim_headers: {transfer-encoding: sub}", "claim_headers.transfer-encoding", "belongs to HTTP"),
        ("claim_headers: {x_user: sub}", "claim_headers.x_user", "with `-`"),
        ("claim_headers: {x-user: ''}", "claim_headers.x-user", "missing"),
        ("claim_headers: {x-user: sub, X-User: sub}", "claim_headers.X-User", "already"),
        ("refresh: {min_spacing: 0s}", "refresh.min_spacing", "duration from"),
        ("refresh: {interval: 1s, min_spacing: 2s}", "refresh", "shorter than `min_spacing`"),
        ("refresh: {max_stale: 1m}", "refresh", "shorter than `interval`"),
        ("refresh: {max_waiters: 0}", "refresh.max_waiters", "whole number"),
        ("refresh: {max_bytes: 1TB}", "refresh.max_bytes", "a size"),
        ("refresh: {max_bytes: 65GiB}", "refresh.max_bytes", "size from"),
        ("jwks: {keys: []}", "jwks", "empty"),
        ("jwks: []", "jwks", "JWK Set"),
        ("jwks: {keys: [{kty: oct, k: c2hvcnQ}]}", "jwks", "shorter than its hash"),
        ("jwks: {keys: [{kty: EC, crv: P-256, x: AA, y: AA}]}", "jwks", "wrong length"),
        ("jwks_file: ", "jwks_file", "missing"),
        ("name2: ${NOT_SET}", "name2", "did you mean `name`"),
        ("clock_skew: ${NOT_SET}", "clock_skew", "NOT_SET is not set"),
    ] {
        let path = if path.is_empty() { "providers[0]".to_owned() } else { format!("providers[0].{path}") };
        let line_number = if path == "providers[0].audiences" { 6 } else { 7 };
        let line_number = if path == "providers[0]" { 4 } else { line_number };
        refused(&provider_with(line), &[(line_number, &path, message)]);
    }
    let twice = format!("{MINIMAL}  - {{name: p, issuer: 'https://sso.example.com', audiences: [a]}}\n");
    refused(&twice, &[(7, "providers[1]", "named `p`"), (7, "providers[1]", "this issuer")]);
}

#[test]
fn what_is_not_one_plain_document_is_refused() {
    let deep = "[".repeat(100_000);
    let block = (0..1000).map(|i| format!("{}a:\n", " ".repeat(i))).collect::<String>();
    for (text, line, message) in [
        ("", 0, "empty"),
        ("# nothing\n", 0, "empty"),
        ("listen", 1, "mapping is expected"),
        ("a: &x 1\nb: *x", 1, "anchors"),
        ("a: !!str 1", 1, "tags"),
        ("a: 1\na: 2", 2, "second time"),
        ("? [a]\n: 1", 1, "a key must be text"),
        ("a: 1\n---\nb: 2", 2, "only one document"),
        ("a: \"", 1, "not YAML"),
        ("a:\n\t- 1", 2, "not YAML"),
        (&deep, 1, ""),
        (&block, 0, ""),
    ] {
        let errors = Config::parse(text, &|_| None).expect_err("refused");
        let first = errors.iter().next().expect("at least one error");
        if !message.is_empty() {
            assert_eq!(first.at.map_or(0, |at| at.line), line, "{text:.40}: {first}");
        }
        assert!(first.message.contains(message), "{text:.40}: {first}");
    }
}

#[test]
fn validate_prints_every_error_with_file_line_and_path_and_exits_with_1() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("p.yaml");
    let text = provider_with("jwks_file: /does/not/exist");
    std::fs::write(&file, &text).expect("the file can be written");
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_portcullis")).arg("validate").args(args).output();
        let output = output.expect("the binary runs");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let path = file.to_str().expect("the path is text");
    let (code, _, errors) = run(&["--config", path]);
    assert_eq!(code, Some(1));
    assert!(
        errors.contains("p.yaml: line 7, column 16: providers[0].jwks_file: /does/not/exist: "),
        "{errors}"
    );

    std::fs::write(&file, MINIMAL).expect("the file can be written");
    let (code, output, _) = run(&["--config", path]);
    assert_eq!((code, output.contains("is valid; 1 provider")), (Some(0), true), "{output}");
    let (code, output, _) = run(&["--config", path, "--print"]);
    assert_eq!((code, output.contains("max_stale: 24h")), (Some(0), true), "{output}");

    std::fs::write(&file, b"\xff\xfe").expect("the file can be written");
    assert_eq!(run(&["--config", path]).0, Some(1));
    assert_eq!(run(&["--config", directory.path().to_str().expect("text")]).0, Some(1));
    assert_eq!(run(&["--config", "/does/not/exist"]).0, Some(1));
    std::fs::write(&file, vec![b'#'; 2 << 20]).expect("the file can be written");
    let (code, _, errors) = run(&["--config", path]);
    assert_eq!((code, errors.contains("longer than")), (Some(1), true), "{errors}");
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC*") {
        let _result = parse(&text);
    }

    #[test]
    fn no_piece_of_a_configuration_makes_the_reader_panic(
        start in 0..EXAMPLE.len(),
        length in 0..2000_usize,
        filler in "[\\[\\]{}:,&*!|>'\"%@`#\n -]{0,8}",
    ) {
        let end = (start + length).min(EXAMPLE.len());
        let (Some(head), Some(tail)) = (EXAMPLE.get(..start), EXAMPLE.get(end..)) else { return Ok(()) };
        let _result = parse(&format!("{head}{filler}{tail}"));
    }
}
