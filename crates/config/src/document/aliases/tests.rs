//! Tests the configurations that aliases produce, and the errors of invalid aliases.

use std::fmt::Write as _;
use std::time::Duration;

use super::{MAX_BYTES, MAX_VALUES};
use crate::document::{Member, Node, Value, parse};
use crate::{Config, ConfigError};

const HEAD: &str = "listen: {ext_authz: 127.0.0.1:0}\n";

fn read(text: &str) -> Config {
    Config::parse(text, &|_| None).unwrap_or_else(|errors| panic!("{errors}\nfor\n{text}"))
}

/// The errors of an invalid document.
fn errors_of(text: &str) -> Vec<String> {
    let errors = Config::parse(text, &|_| None).expect_err(text);
    errors.iter().map(ToString::to_string).collect()
}

/// The document, and its errors in the order in which they were found.
fn parsed(text: &str) -> (Option<Node>, Vec<ConfigError>) {
    let (root, errors) = parse(text, "");
    (root, errors.into_found())
}

/// The document on one line, with aliases expanded and keys in order.
fn expanded(text: &str) -> String {
    let (root, errors) = parsed(text);
    assert_eq!(errors, [], "{text}");
    shown(&root.expect("a document").value)
}

fn shown(value: &Value) -> String {
    match value {
        Value::Scalar { text, .. } => format!("{text:?}"),
        Value::Sequence(nodes) => {
            let shown = |node: &Node| shown(&node.value) + ", ";
            "[".to_owned() + &nodes.iter().map(shown).collect::<String>() + "]"
        }
        Value::Mapping(members) => {
            let shown = |one: &Member| format!("{:?}: {}, ", one.key, shown(&one.node.value));
            "{".to_owned() + &members.iter().map(shown).collect::<String>() + "}"
        }
        Value::Refused => "refused".to_owned(),
    }
}

#[track_caller]
fn same(aliased: &str, written_out: &str) {
    assert_eq!(expanded(aliased), expanded(written_out), "{aliased}");
}

#[test]
fn what_pyyaml_writes_is_read() {
    let config = read(&format!(
        "{HEAD}providers:
- audiences: &id001
  - a
  - b
  issuer: https://p
  name: p
  refresh: &id002
    wait: 1s
- audiences: *id001
  issuer: https://q
  name: q
  refresh: *id002
"
    ));
    let [p, q] = config.providers.as_slice() else { panic!("two providers") };
    assert_eq!(p.provider.audiences, q.provider.audiences);
    assert_eq!(q.refresh.wait, Duration::from_secs(1));
    assert_eq!(p.refresh, q.refresh);
}

#[test]
fn shared_settings_are_merged_as_in_a_compose_file() {
    let config = read(&format!(
        "x-common: &common
  interval: 7m
  wait: 1s
{HEAD}providers:
  - name: p
    issuer: https://p
    audiences: [a]
    refresh:
      <<: *common
      wait: 3s
  - name: q
    issuer: https://q
    audiences: [a]
    refresh:
      timeout: 4s
      <<: *common
"
    ));
    let waits =
        config.providers.iter().map(|one| (one.refresh.interval.as_secs(), one.refresh.wait.as_secs()));
    assert_eq!(waits.collect::<Vec<_>>(), [(420, 3), (420, 1)]);
    let printed = config.to_yaml();
    assert!(printed.matches("interval: 7m").count() == 2 && !printed.contains(['&', '*']), "{printed}");
}

#[test]
fn every_kind_of_value_may_have_an_anchor_and_be_an_alias() {
    same("a: &x 1\nb: *x", "a: '1'\nb: '1'");
    same("a: &x [1, 2]\nb: [*x, 3, *x]", "a: [1, 2]\nb: [[1, 2], 3, [1, 2]]");
    same("a: &x {b: &y {c: 1}}\nd: *y\ne: *x", "a: {b: {c: 1}}\nd: {c: 1}\ne: {b: {c: 1}}");
    same("&k key: 1\nb: *k", "key: 1\nb: key");
    same("- &x 1\n- *x", "[1, 1]");
    same("a: &x\nb: *x\nc: &y ''\nd: *y", "a: ''\nb: ''\nc: ''\nd: ''");
    same("&root\na: 1", "a: 1");
    same("a: &x |\n  text\nb: *x", "a: \"text\\n\"\nb: \"text\\n\"");
    for name in ["é", "a.b-c/d", "*", "&", "<<", "'", "1", "a:b", "!x", "\u{1F511}"] {
        same(&format!("a: &{name} 1\nb: *{name}\n"), "a: 1\nb: 1");
    }
}

#[test]
fn quoted_text_stays_quoted_through_an_alias() {
    let text = format!("{HEAD}x-n: &n '12'\nlimits: {{connections: *n}}\nproviders: []\n");
    assert!(errors_of(&text)[0].contains("limits.connections: expected a number without quotes"), "{text}");
}

#[test]
fn a_redefined_anchor_applies_from_there_on() {
    same("a: &x 1\nb: *x\nc: &x 2\nd: *x", "a: 1\nb: 1\nc: 2\nd: 2");
    same("a: &x [1, &x 2, *x]\nb: *x", "a: [1, 2, 2]\nb: 2");
}

#[test]
fn a_merge_adds_keys_and_never_replaces_them() {
    let base = "a: &a {k: 1, l: 1}\nb: &b {l: 2, m: 2}\n";
    for (merged, written_out) in [
        ("{<<: *a}", "{k: 1, l: 1}"),
        ("{l: 3, <<: *a}", "{l: 3, k: 1}"),
        ("{<<: *a, l: 3}", "{k: 1, l: 3}"),
        ("{<<: [*a, *b], n: 3}", "{k: 1, l: 1, m: 2, n: 3}"),
        ("{z: 0, <<: [*b, *a]}", "{z: 0, l: 2, m: 2, k: 1}"),
        ("{<<: {k: 4}}", "{k: 4}"),
        ("{<<: [{k: 4}, *a]}", "{k: 4, l: 1}"),
        ("{<<: {<<: *a, k: 5}}", "{l: 1, k: 5}"),
        ("{<<: []}", "{}"),
        ("{<<: {}}", "{}"),
        ("{'<<': *a}", "{'<<': {k: 1, l: 1}}"),
        ("{\"<<\": 1, <<: *a}", "{'<<': 1, k: 1, l: 1}"),
    ] {
        same(
            &format!("{base}c: {merged}"),
            &format!("a: {{k: 1, l: 1}}\nb: {{l: 2, m: 2}}\nc: {written_out}"),
        );
    }
    same("a: &l [{k: 1}, {k: 2, l: 2}]\nb: {<<: *l}", "a: [{k: 1}, {k: 2, l: 2}]\nb: {k: 1, l: 2}");
    same("x-a: &a {b: {c: 1}}\n<<: *a", "b: {c: 1}");
}

#[test]
fn an_invalid_merge_is_reported_with_its_position() {
    for (text, place) in [
        ("b: {<<: 1}", "line 1, column 9: b[\"<<\"]: expected a mapping or a list"),
        ("b: {<<: }", "line 1, column 7: b[\"<<\"]: expected a mapping or a list"),
        ("a: &a x\nb: {<<: *a}", "line 1, column 4: b[\"<<\"]: expected a mapping or a list"),
        ("a: &a {c: 1}\nb: {<<: [*a, 2]}", "line 2, column 14: b[\"<<\"]: expected a mapping or a list"),
        ("a: &a {c: 1}\nb: {<<: [[*a]]}", "line 2, column 10: b[\"<<\"]: expected a mapping or a list"),
        ("a: &a {c: 1}\nb: {<<: *a, <<: *a}", "line 2, column 13: b[\"<<\"]: duplicate key, first in line 2"),
        ("b: {<<: *a}", "line 1, column 9: b[\"<<\"]: unknown anchor"),
        ("b: &b {<<: *b}", "line 1, column 12: b[\"<<\"]: this alias is inside the value of its own anchor"),
        ("b: {<<: {c: 1, c: 2}}", "line 1, column 16: b[\"<<\"].c: duplicate key, first in line 1"),
    ] {
        let (_, errors) = parsed(text);
        let reported = errors.first().map(ToString::to_string).unwrap_or_default();
        assert!(errors.len() == 1 && reported.starts_with(place), "{text}: {errors:?}");
    }
}

#[test]
fn an_alias_before_or_inside_its_anchor_is_reported_with_its_position() {
    for (text, place) in [
        ("a: *x\nb: &x 1", "line 1, column 4: a: unknown anchor"),
        ("hosts: [*.example.com]", "line 1, column 9: hosts[0]: unknown anchor"),
        ("a: &x [1, *x]", "line 1, column 11: a[1]: this alias is inside"),
        ("a: &x {b: {c: *x}}", "line 1, column 15: a.b.c: this alias is inside"),
        ("a: 1\nb: &x [&x [*x]]", "line 2, column 12: b[0][0]: this alias is inside"),
        ("a: &x 1\n*x : 2", "line 2, column 1: an alias cannot be a key"),
        ("a: &x !!int 1", "line 1, column 4: a: tags are not supported"),
    ] {
        let (_, errors) = parsed(text);
        let reported = errors.first().map(ToString::to_string).unwrap_or_default();
        assert!(errors.len() == 1 && reported.starts_with(place), "{text}: {errors:?}");
    }
}

#[test]
fn an_error_in_an_aliased_value_is_reported_with_both_positions() {
    let text = format!(
        "x-wrong: &wrong
  wait: soon
  wiat: 1s
{HEAD}providers:
  - {{name: p, issuer: https://p, audiences: [a], refresh: *wrong}}
  - name: q
    issuer: https://q
    audiences: [a]
    refresh:
      <<: *wrong
"
    );
    let wait = "expected a duration with its unit: 250ms, 30s, 5m or 24h";
    assert_eq!(
        errors_of(&text),
        [
            format!("line 2, column 9: providers[0].refresh.wait: {wait} (by the alias in line 6)"),
            format!("line 2, column 9: providers[1].refresh.wait: {wait} (by the alias in line 11)"),
            "line 3, column 3: providers[0].refresh.wiat: unknown key; did you mean `wait`? (by the alias in line 6)"
                .to_owned(),
            "line 3, column 3: providers[1].refresh.wiat: unknown key; did you mean `wait`? (by the alias in line 11)"
                .to_owned(),
        ]
    );
}

#[test]
fn of_nested_aliases_the_outer_one_is_reported() {
    let text = format!(
        "x-wait: &wait soon
x-refresh: &refresh
  wait: *wait
{HEAD}providers:
  - {{name: p, issuer: https://p, audiences: [a], refresh: *refresh}}
"
    );
    let [error] = errors_of(&text).try_into().expect("one error");
    assert!(error.starts_with("line 1, column 9: providers[0].refresh.wait: "), "{error}");
    assert!(error.ends_with(" (by the alias in line 6)"), "{error}");
}

#[test]
fn a_top_level_key_with_x_is_not_read_and_one_below_is() {
    let provider = "providers: [{name: p, issuer: https://p, audiences: [a]}]\n";
    read(&format!(
        "x-a: {{jwks_file: /does/not/exist, wait: '${{UNSET}}', x: '${{'}}\nx-: [1]\n'x-b':\n{HEAD}{provider}"
    ));
    for (text, unknown) in [
        (format!("{HEAD}{provider}X-a: 1\n"), "X-a: unknown key"),
        (format!("{HEAD}{provider}x_a: 1\n"), "x_a: unknown key"),
        (format!("{HEAD}{provider}x: 1\n"), "x: unknown key"),
        (format!("{HEAD}{provider}log: {{x-a: 1}}\n"), "log.x-a: unknown key"),
    ] {
        let reported = errors_of(&text);
        assert!(reported.len() == 1 && reported[0].contains(unknown), "{reported:?}");
    }
}

#[test]
fn files_below_an_x_key_are_checked_only_if_an_alias_uses_them() {
    let directory = std::env::temp_dir().join(format!("portcullis-aliases-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let file = directory.join("p.yaml");
    let text = format!(
        "x-keys: &keys {{jwks_file: /does/not/exist}}\n{HEAD}providers:\n  - {{name: p, issuer: i, audiences: [a], "
    );
    std::fs::write(&file, format!("{text}jwks_uri: https://p}}\n")).expect("the file is written");
    let unused = Config::load(&file).map(drop);
    std::fs::write(&file, format!("{text}<<: *keys}}\n")).expect("the file is written");
    let used = Config::load(&file).map(drop).map_err(|errors| errors.to_string());
    std::fs::remove_dir_all(&directory).expect("the directory is removed");
    assert_eq!(unused, Ok(()));
    let reported = used.expect_err("the file is not there");
    assert!(reported.contains(":1:27: providers[0].jwks_file: /does/not/exist cannot be read"), "{reported}");
    assert!(reported.ends_with("(by the alias in line 4)"), "{reported}");
}

#[test]
fn no_error_contains_an_aliased_secret() {
    const SECRET: &str = "hunter2-hunter2";
    let secret = |name: &str| (name == "S").then(|| SECRET.to_owned());
    let text = format!(
        "x-s: &s ${{S}}\n{HEAD}providers: *s\nlog: {{level: *s, format: *s}}\nlimits: {{connections: *s}}\n"
    );
    let errors = Config::parse(&text, &secret).expect_err("wrong everywhere").to_string();
    assert!(errors.lines().count() > 3 && !errors.contains(SECRET), "{errors}");

    // Unquoted text that begins with a YAML indicator is taken for a name.
    for text in
        ["jwks: *hunter2-hunter2", "jwks: &hunter2-hunter2 [*hunter2-hunter2]", "jwks: !hunter2-hunter2 x"]
    {
        let errors = Config::parse(&format!("{HEAD}{text}\n"), &|_| None).expect_err(text).to_string();
        assert!(!errors.contains(SECRET), "{errors}");
    }
}

/// A document with `levels` lists, each ten times as large as the previous one.
fn tenfold(levels: usize) -> String {
    let mut text = "a0: &a0 [x]\n".to_owned();
    for level in 1..=levels {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        writeln!(text, "a{level}: &a{level} [{aliases}]").expect("a text takes more");
    }
    text
}

#[track_caller]
fn assert_too_large(text: &str, line: usize) {
    let (root, errors) = parsed(text);
    assert!(root.is_none());
    let [error] = errors.as_slice() else { panic!("{errors:?}") };
    assert!(error.message.contains("expand to more than 100000 values or 4 MiB of text"), "{error}");
    assert_eq!(error.at.map(|at| at.line), Some(line), "{error}");
}

#[test]
fn the_expansion_of_a_few_lines_is_limited() {
    assert_eq!(parsed(&tenfold(4)).1, []);
    assert_too_large(&tenfold(5), 6);
    assert_too_large(&tenfold(25), 6);
    let scalar = format!("a: &a {}\nb:\n", "x".repeat(MAX_BYTES / 5));
    assert_eq!(parsed(&format!("{scalar}{}", "  - *a\n".repeat(4))).1, []);
    assert_too_large(&format!("{scalar}{}", "  - *a\n".repeat(5)), 7);
    assert_too_large(&format!("{scalar}{}", "  - *a\n".repeat(10_000)), 7);
    let keys = format!("a: &a {{? '{}' : 1}}\nb:\n", "k".repeat(MAX_BYTES / 5 - 1));
    assert_too_large(&format!("{keys}{}", "  - *a\n".repeat(10)), 7);
    assert_too_large(&format!("{keys}{}", "  - {<<: [*a]}\n".repeat(10)), 7);
}

#[test]
fn anchors_without_aliases_are_limited_too() {
    let values = "x, ".repeat(9_000);
    let nested = |levels: usize| format!("{}{values}{}", "&a [".repeat(levels), "]".repeat(levels));
    assert_eq!(parsed(&nested(MAX_VALUES / 9_001)).1, []);
    assert_too_large(&nested(MAX_VALUES / 9_001 + 1), 1);
}

#[test]
fn depth_is_counted_through_aliases() {
    let deep = |inner: usize, outer: usize| {
        format!(
            "a: &a {}{}\nb: {}*a{}",
            "[".repeat(inner),
            "]".repeat(inner),
            "[".repeat(outer),
            "]".repeat(outer)
        )
    };
    assert_eq!(parsed(&deep(16, 15)).1, []);
    let (_, errors) = parsed(&deep(16, 16));
    assert!(errors.len() == 1 && errors[0].to_string().starts_with("line 2, column 20: b"), "{errors:?}");
    assert_eq!(errors[0].message, "nested too deeply");
    let mut doubling = "a0: &a0 [x]\n".to_owned();
    for level in 1..1_000 {
        writeln!(doubling, "a{level}: &a{level} [*a{}]", level - 1).expect("a text takes more");
    }
    let (_, errors) = parsed(&doubling);
    assert_eq!(errors[0].message, "nested too deeply");
}

#[test]
fn a_long_chain_of_merges_is_read_or_refused_as_too_large() {
    let chain = |more: &dyn Fn(usize) -> String| {
        let mut text = "c0: &c0 {k: 0}\n".to_owned();
        for level in 1..999 {
            writeln!(text, "c{level}: &c{level} {{<<: *c{}{}}}", level - 1, more(level))
                .expect("a text takes more");
        }
        text
    };
    let text = chain(&|_| String::new());
    assert!(expanded(&text).ends_with(r#""c998": {"k": "0", }, }"#));
    let (_, errors) = parsed(&chain(&|level| format!(", k{level}: 1")));
    assert!(errors.len() == 1 && errors[0].message.contains("more than 100000 values"), "{errors:?}");
}

#[test]
fn a_merge_does_not_make_a_mapping_longer_than_one_may_be() {
    let keys = |from: usize| (from..from + 600).map(|i| format!("k{i}: 1, ")).collect::<String>();
    let text = format!("a: &a {{{}}}\nb: &b {{{}}}\nc: {{<<: [*a, *b]}}\n", keys(0), keys(600));
    let (_, errors) = parsed(&text);
    assert!(
        errors.len() == 1 && errors[0].to_string().starts_with("line 3, column 4: c: more than 1000"),
        "{errors:?}"
    );
    let text = format!("a: &a {{{}}}\nb: &b {{{}}}\nc: {{<<: [*a, *b]}}\n", keys(0), keys(300));
    assert_eq!(expanded(&text).matches(": ").count(), 600 + 600 + 900 + 3);
}
