//! Tests the meaning of conditions, the refused ones, and the limits.

use proptest::prelude::*;

use super::*;
use crate::validation::json::JsonLimits;

const CLAIMS: &str = r#"{
    "sub": "alice", "tenant_id": "acme", "admin": true, "level": 3, "big": 18446744073709551615,
    "least": -9223372036854775808, "ratio": 1.5, "nothing": null, "iat": 1700000000,
    "roles": ["admin", "dev"], "realm_access": {"roles": ["ops"]}, "https://x/y": "z",
    "groups": [{"name": "a", "roles": ["r"]}, {"name": "b", "roles": ["admin"]}]
}"#;

fn json(text: &str) -> Json {
    // Larger than a token's limits: these tests reach the condition's own limits.
    let limits = JsonLimits { values: 1_000_000, depth: 64 };
    Json::parse(text.as_bytes(), &limits).expect("the claims of this test are JSON")
}

fn facts(claims: &Json) -> Facts<'_> {
    Facts {
        claims,
        method: "GET",
        path: "/orders/17",
        host: "api.example.com",
        headers: vec![
            ("x-tenant".into(), "acme".into()),
            ("accept".into(), "text/html".into()),
            ("x-secret".into(), "SECRET".into()),
        ],
        query: vec![("page".into(), "2".into())],
        source_address: Some("192.0.2.1"),
        source_principal: None,
        now: UnixTime::from_epoch(std::time::Duration::from_millis(1_700_000_100_500)),
    }
}

#[track_caller]
fn compiled(source: &str) -> Condition {
    match Condition::compile(source) {
        Ok(condition) => condition,
        Err(error) => panic!("{source}: {error}"),
    }
}

#[test]
fn a_condition_is_evaluated_as_cel_defines_it() {
    let claims = json(CLAIMS);
    for (source, expected) in [
        (r#"claims.tenant_id == request.headers["x-tenant"]"#, true),
        (r#"claims.tenant_id != request.headers.accept"#, true),
        (r#""admin" in claims.roles"#, true),
        (r#""root" in claims.roles"#, false),
        (r#"claims.realm_access.roles.exists(r, r in ["admin", "ops"])"#, true),
        (r#"claims.roles.all(r, r.startsWith("a"))"#, false),
        (r#"claims.roles.filter(r, r != "dev").size() == 1"#, true),
        (r#"claims.roles.map(r, r + "!")[0] == "admin!""#, true),
        (r#"claims.roles.exists_one(r, r == "dev")"#, true),
        (r#"claims.groups.exists(g, g.name == "b" && g.roles.exists(r, r == "admin"))"#, true),
        (r#"claims["https://x/y"] == "z""#, true),
        ("has(claims.sub)", true),
        ("has(claims.missing)", false),
        ("!has(claims.missing) || claims.missing == 1", true),
        (r#""sub" in claims && !("other" in claims)"#, true),
        ("has(claims.nothing) && claims.nothing == null", true),
        ("claims.admin", true),
        ("claims.level == 3 && claims.level == 3.0 && claims.level == 3u", true),
        ("claims.level > 2.5 && claims.ratio < 2", true),
        ("claims.big == 18446744073709551615u && claims.big > 5", true),
        ("claims.least < 0", true),
        ("claims.level == '3'", false),
        ("claims.missing == 1 && false", false),
        ("false && claims.missing == 1", false),
        ("claims.missing == 1 || true", true),
        ("claims.admin ? true : claims.missing", true),
        ("int(now) == 1700000100", true),
        ("now - timestamp(claims.iat) < duration('1h')", true),
        ("now - timestamp(claims.iat) < duration('1m40s')", false),
        ("now > timestamp('2023-11-14T22:14:00Z')", true),
        ("now.getFullYear() == 2023 && now.getHours('+01:00') == 23", true),
        ("request.method == 'GET' && request.path.startsWith('/orders/')", true),
        ("request.host.endsWith('.example.com')", true),
        (r#"request.path.matches("^/orders/[0-9]+$") && !matches(request.path, r"^\d+$")"#, true),
        ("request.query.page == '2' && !has(request.query.other)", true),
        ("int(request.query['page']) == 2", true),
        ("request.source_address == '192.0.2.1' && !has(request.source_principal)", true),
        ("request.headers.exists(name, name == 'accept') && size(request.headers) == 3", true),
        ("has(request.headers) && has(request.path)", true),
        ("type(claims.level) == int && type(claims.sub) == string", true),
        ("claims.roles == ['admin', 'dev'] && claims.realm_access == {'roles': ['ops']}", true),
        ("'''a\n\"b''' != \"\\u00e9\\x41\\101\" // a comment", true),
    ] {
        assert_eq!(compiled(source).holds(&facts(&claims)), Ok(expected), "{source}");
    }
}

#[test]
fn a_condition_that_cannot_be_evaluated_is_undecided() {
    let claims = json(CLAIMS);
    for (source, expected) in [
        ("claims.missing == 'x'", "there is no `missing`"),
        ("claims.missing != 'x'", "there is no `missing`"),
        ("!(claims.missing == 'x')", "there is no `missing`"),
        ("claims.realm_access.missing == 1", "there is no `missing`"),
        ("claims[request.headers['x-secret']] == 1", "there is no member with that name"),
        ("request.source_principal == 'x'", "there is no `source_principal`"),
        ("request.headers['x-absent'] == 'x'", "there is no `x-absent`"),
        ("claims.sub", "the condition is of type string, not bool"),
        ("claims.sub && true", "`&&` cannot be applied to (string, bool)"),
        ("claims.sub > 1", "`>` cannot be applied to (string, int)"),
        ("claims.sub.x == 1", "`.` cannot be applied to (string, string)"),
        ("'a' in claims.level", "`in` cannot be applied to (string, int)"),
        ("claims.sub.startsWith(claims.level)", "`startsWith` cannot be applied to (string, int)"),
        ("claims.level.matches('x')", "`matches` cannot be applied to (int, string)"),
        ("claims.roles[5] == 'x'", "a list index is out of range"),
        ("claims.roles[-1] == 'x'", "a list index is out of range"),
        ("claims.roles[0.5] == 'x'", "a value cannot be a list index"),
        ("claims.level / 0 == 1", "a division by zero"),
        ("claims.level % 0 == 1", "a division by zero"),
        ("claims.least / -1 == 1", "`div` overflows"),
        ("claims.least % -1 == 1", "`rem` overflows"),
        ("-claims.least == 1", "`negate` overflows"),
        ("claims.least - 1 == 1", "`sub` overflows"),
        ("claims.big + 1u == 1u", "`add` overflows"),
        ("claims.level + 1.5 == 4.5", "`add` cannot be applied to values of these types"),
        ("int(claims.sub) == 1", "`int` failed"),
        ("timestamp(claims.least) < now", "`timestamp` failed"),
        ("timestamp(claims.sub) < now", "`timestamp` failed"),
        ("timestamp('9999-12-31T23:59:59Z') + duration('1s') > now", "`add` overflows"),
        ("now.getHours(claims.sub) == 1", "`timezone` failed"),
        ("claims.roles.all(r, r == 1 || r)", "`||` cannot be applied to (bool, string)"),
        ("{claims.sub: 1, 'alice': 2} == claims.realm_access", "a map has a duplicate key"),
    ] {
        let undecided = compiled(source).holds(&facts(&claims));
        assert_eq!(undecided, Err(Undecided(expected.to_owned())), "{source}");
    }
}

#[test]
fn a_condition_that_always_fails_is_refused_when_it_is_loaded() {
    for (source, expected) in [
        ("", "the condition is empty"),
        (" \n ", "the condition is empty"),
        ("claims.x ==", "column 12: Syntax error: mismatched input '<EOF>'"),
        ("'é' == == 1", "column 8: Syntax error: extraneous input '=='"),
        ("claims.x == 1 1", "column 15: Syntax error: extraneous input '1' expecting <EOF>"),
        ("claim.sub == 'a'", "column 1: unknown name `claim`; did you mean `claims`?"),
        ("path == '/'", "column 1: unknown name `path`; did you mean `request.path`?"),
        (
            "true\n  && jwt.sub == 1",
            "line 2, column 6: unknown name `jwt`; known names are `claims`, `request`, `now`",
        ),
        ("request.methd == 'GET'", "column 8: `request` has no `methd`; did you mean `request.method`?"),
        ("has(request.body)", "column 4: `request` has no `body`; it has `method`,"),
        ("size(request) == 1", "column 6: `request` is not a value: use one of its members `method`,"),
        ("request['path'] == '/'", "column 1: `request` is not a value"),
        ("lower(claims.x) == 'a'", "column 6: there is no function `lower`"),
        ("'a'.startswith('b')", "column 15: there is no function `startswith`; did you mean `startsWith`?"),
        ("'a'.startsWith()", "column 15: `startsWith` does not take that many arguments"),
        ("contains('a', 'b')", "column 9: `contains` is written `x.contains()`"),
        ("claims.a.int() == 1", "column 13: `int` is written `int(x)`"),
        ("claims.a.exists(x)", "column 16: `exists` is written `list.exists(x, ...x...)`"),
        ("has(claims.x, 1)", "column 4: `has` is written `has(claims.name)`"),
        ("optional.of(1) == 1", "column 12: there is no function `of`"),
        ("'x'", "column 1: a condition has to be bool, not string"),
        ("claims.size()", "column 12: a condition has to be bool, not int"),
        ("1 + 1", "column 3: a condition has to be bool, not int"),
        ("claims.roles.map(r, r)", "column 17: a condition has to be bool, not list"),
        ("true && 1", "column 9: `&&` needs a bool, not an int"),
        ("request.path || true", "column 8: `||` needs a bool, not a string"),
        ("!'x'", "column 2: `!` needs a bool, not a string"),
        ("1 ? true : false", "column 1: `? :` needs a bool, not an int"),
        ("claims.a.exists(x, 1)", "column 20: `||` needs a bool, not an int"),
        ("request.method == 1", "column 16: `==` cannot be applied to a string and an int"),
        ("request.path == null", "column 14: `==` cannot be applied to a string and a null"),
        ("now > 5", "column 5: `>` cannot be applied to a timestamp and an int"),
        ("request.path + 1 == 'x'", "column 14: `+` cannot be applied to a string and an int"),
        ("1 + 1.5 == claims.x", "column 3: `+` cannot be applied to an int and a double"),
        ("-request.path == 'x'", "column 1: `-` cannot be applied to a string"),
        ("request.path.x == 'x'", "column 13: a string has no members, such as `x`"),
        ("request.path[0] == 'x'", "column 13: a string cannot be indexed"),
        ("request.path.exists(x, x == 'a')", "column 20: a string cannot be iterated"),
        ("request.headers[1] == 'x'", "column 17: a map cannot be indexed with an int"),
        ("claims[1] == 'x'", "column 8: a map cannot be indexed with an int"),
        ("claims.a in request.path", "column 10: `in` needs a list or a map; use `.contains()` for a string"),
        ("request.method in ['GET', 1]", "column 27: a string is never equal to an int"),
        ("1 in request.query", "column 3: an int cannot be in a map"),
        ("{1.5: 2} == claims.x", "column 2: a double cannot be a map key"),
        ("size(1) == 1", "column 6: `size` cannot be applied to an int"),
        (
            "request.headers['X-Tenant'] == 'x'",
            "column 17: header names are in lower case: write `request.headers[\"x-tenant\"]`",
        ),
        ("'X-A' in request.headers", "column 1: header names are in lower case"),
        ("request.path.matches(claims.x)", "column 28: the pattern of `matches` has to be a string literal"),
        ("request.path.matches('(')", "column 22: not a valid pattern: unclosed group"),
        ("request.path.matches('(a{1000}){1000}')", "column 22: the pattern is too large"),
        ("duration(claims.x) < duration('1h')", "column 16: a duration has to be a literal, such as"),
        ("duration('1h, or so') == claims.x", "column 10: a duration has to be a literal, such as"),
        ("duration('9999999h') == claims.x", "column 10: `duration` cannot convert this"),
        ("timestamp('2023-01-01') < now", "column 11: `timestamp` cannot convert this"),
        ("Account{id: 1} == claims", "column 8: messages are not supported, such as `Account`"),
        ("claims.?a == 1", "column 7: unsupported syntax '.?'"),
        (".claims.a == 1", "column 2: unknown name `.claims`; did you mean `claims`?"),
        (
            "claims.a.exists(claims, claims == 1)",
            "column 16: `claims` is reserved; choose another name for the element",
        ),
        ("if == 1", "column 1: reserved identifier: if"),
        ("9999999999999999999 == claims.x", "column 1: invalid int literal"),
    ] {
        let error = Condition::compile(source).expect_err(source);
        assert!(error.starts_with(expected), "{source}: {error}");
        assert!(error.chars().count() <= MAX_ERROR + 40 && !error.contains('\n'), "{source}: {error}");
    }
}

#[test]
fn a_text_that_is_too_long_or_too_deep_never_reaches_the_parser() {
    for (source, expected) in [
        ("(".repeat(4000), "column 16: nested more than 32 levels deep"),
        ("[".repeat(4000), "column 16: nested more than 32 levels deep"),
        ("{1:".repeat(1300), "column 46: nested more than 32 levels deep"),
        ("!".repeat(4000), "column 32: nested more than 32 levels deep"),
        ("-".repeat(4000), "column 32: nested more than 32 levels deep"),
        (format!("claims{}", ".a".repeat(2000)), "column 69: nested more than 32 levels deep"),
        (format!("claims{}", "[0]".repeat(1300)), "column 97: nested more than 32 levels deep"),
        (format!("1{}", "+1".repeat(2000)), "column 64: nested more than 32 levels deep"),
        ("a?".repeat(2000), "column 64: nested more than 32 levels deep"),
        ("a in ".repeat(800), "column 158: nested more than 32 levels deep"),
        ("(".repeat(10_000), "the condition is longer than 4096 bytes"),
        (" ".repeat(5000), "the condition is empty"),
    ] {
        let error = Condition::compile(&source).expect_err(&source);
        assert_eq!(error, expected, "{source:.20}");
    }
}

#[test]
fn nesting_that_the_scan_misses_is_refused_by_the_parser() {
    for bracket in ["(", "[", "{1:", "true && (", "a.b(", "[a.b(", "!(", "a ? (", "a[", "a in ["] {
        let source = bracket.repeat(400);
        assert!(compile_on_thread(&source).is_err(), "{source:.20}");
    }
}

#[test]
fn text_that_the_parser_would_read_differently_is_refused() {
    for (source, expected) in [
        ("(", "column 1: this bracket is not closed"),
        ("([)]", "column 3: unmatched `)`"),
        ("true)", "column 5: unmatched `)`"),
        ("'a", "column 1: this string is not closed"),
        ("'a\n' == 'b'", "line 1, column 1: this string is not closed on its line"),
        ("'''a''", "column 1: this string is not closed"),
        (r"'\' == a", "column 1: this string is not closed"),
        (r"'\q' == 'a'", "column 2: unknown escape"),
        (r"'\u00' == 'a'", "column 2: unknown escape"),
        (r"'\477' == 'a'", "column 2: unknown escape"),
        ("rb'a' == 'a'", "column 1: a string cannot follow `rb`"),
        ("a`b`", "column 2: unexpected character '`'"),
        ("a & b", "column 3: unexpected character '&'"),
        ("claims.é", "column 8: unexpected character 'é'"),
        ("a \u{7f}", "column 3: unexpected character '\\u{7f}'"),
    ] {
        let error = Condition::compile(source).expect_err(source);
        assert!(error.starts_with(expected), "{source}: {error}");
    }
    for source in [
        "'((((((((((((((((((((((((((((((((((((' == claims.x",
        r#"r"\" == claims.x"#,
        r#"br'\' == claims.x || b"""a"b""" == claims.x"#,
        "claims.x == '' || claims.x == '''''' || claims.x == '''it's'''",
        "claims.x // ((((((((((((((((((((((((((((((((\n == 1",
    ] {
        compiled(source);
    }
}

#[test]
fn the_deepest_condition_fits_on_the_stack_of_a_worker() {
    let claims = json(r#"{"x": 1}"#);
    for source in [
        format!("{}claims.x{} == 1", "(".repeat(15), ")".repeat(15)),
        format!("{}claims.x{} == []", "[".repeat(15), "]".repeat(15)),
        format!("{}claims.x{} == 1", "dyn(".repeat(15), ")".repeat(15)),
        format!("claims.x{} == 1", " + 1".repeat(20)),
        format!("claims{} == 1", ".x".repeat(22)),
        format!("{}true", "false ? true : ".repeat(22)),
        format!("{}true{}", "true && false || true && (".repeat(7), ")".repeat(7)),
        format!("{}true{}", "false || (".repeat(15), ")".repeat(15)),
        format!("true{}", " && true".repeat(500)),
    ] {
        let condition = compiled(&source);
        // Tokio's workers have 2 MiB; other frames are below this one.
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .stack_size(1 << 20)
                .spawn_scoped(scope, || drop(condition.holds(&facts(&claims))))
                .expect("a thread starts");
        });
    }
}

#[test]
fn a_condition_reports_what_it_reads() {
    for (source, reads) in [
        ("true", ""),
        ("claims.path == 'path'", "claims"),
        ("has(claims.x)", "claims"),
        ("'x' in claims", "claims"),
        ("request.path == '/'", "path"),
        ("has(request.path)", "path"),
        ("'/a'.startsWith(request.path)", "path"),
        ("[1].exists(x, request.path == claims.x)", "claims path"),
        ("request.host == 'h'", "host"),
        ("request.headers.host == 'h'", "headers"),
        ("request.headers.exists(name, name == 'path')", "headers"),
        ("'path' in request.query", "query"),
    ] {
        let condition = compiled(source);
        let read = [
            (condition.reads_claims(), "claims"),
            (condition.reads_path(), "path"),
            (condition.reads_host(), "host"),
            (condition.reads_headers(), "headers"),
            (condition.query().any(), "query"),
        ];
        let read: Vec<&str> = read.iter().filter(|(reads, _)| *reads).map(|(_, name)| *name).collect();
        assert_eq!(read.join(" "), reads, "{source}");
    }
}

#[test]
fn a_condition_that_could_take_too_long_is_refused_or_left_undecided() {
    let doubling = format!("claims.a{}.size() == 1", ".map(x, [x, x, x, x])".repeat(10));
    for source in [
        "claims.a.exists(x, claims.b.exists(y, claims.c == [x, y, claims.d, claims.e, claims.f]))",
        "claims.a.map(x, claims).map(x, claims).size() == 1",
        &doubling,
    ] {
        let error = Condition::compile(source).expect_err(source);
        assert_eq!(error, "the condition could take too much work: loop over fewer elements", "{source}");
    }
    let error = Condition::compile("[1].all(x, [1].all(y, [1].all(z, true)))").expect_err("three loops");
    assert_eq!(error, "column 30: more than 2 nested loops");

    let list = |length: usize| json(&format!(r#"{{"a": [{}]}}"#, vec!["1"; length].join(",")));
    let too_large = Undecided("the request and its claims are too large for the condition".to_owned());
    for (source, fits, does_not) in [
        ("1 in claims.a", 9_900, 10_001),
        ("claims.a.exists(x, x == 1)", 9_900, 10_001),
        ("claims.a.all(x, x in claims.a)", 200, 2_000),
    ] {
        let condition = compiled(source);
        assert_eq!(condition.holds(&facts(&list(fits))), Ok(true), "{source}");
        assert_eq!(condition.holds(&facts(&list(does_not))), Err(too_large.clone()), "{source}");
    }
    let claims = json(&format!(r#"{{"a": "{}", "b": 1}}"#, "x".repeat(200_000)));
    assert_eq!(compiled("claims.a == 'x'").holds(&facts(&claims)), Err(too_large));
    assert_eq!(
        compiled("claims.b == 1").holds(&facts(&claims)),
        Ok(true),
        "claims that are not read do not count"
    );
}

#[test]
fn an_error_text_is_short_and_contains_no_value() {
    let claims = json(r#"{"s": "SECRET", "l": ["SECRET"], "m": {"SECRET": 1}, "n": 7}"#);
    for source in [
        "claims.s > 1",
        "claims.s + 1 == 1",
        "claims.l + 1 == 1",
        "claims.n / 0 == 1",
        "claims.m[claims.s] > claims.l",
        "claims.n[claims.s] == 1",
        "claims.m[claims.n] == 1",
        "claims[claims.s] == 1",
        "{claims.l: 1} == claims.m",
        "{claims.s: 1, claims.l[0]: 2} == claims.m",
        "int(claims.s) == 1",
        "timestamp(claims.s) < now",
        "now.getHours(claims.s) == 1",
        "claims.l[claims.s] == 1",
        "claims.s.matches('x') || claims.l",
        "request.headers[claims.s] == 'x'",
    ] {
        let undecided = compiled(source).holds(&facts(&claims)).expect_err(source).to_string();
        assert!(!undecided.contains("SECRET") && !undecided.contains('7'), "{source}: {undecided}");
    }
    let long = compiled(&format!("claims['{}\\n'] == 1", "k".repeat(300))).holds(&facts(&claims));
    let undecided = long.expect_err("the claim is missing").to_string();
    assert!(undecided.chars().count() <= MAX_ERROR && !undecided.contains('\n'), "{undecided}");
}

#[test]
fn invalid_input_is_undecided() {
    let claims = json(CLAIMS);
    let mut twice = facts(&claims);
    twice.headers.push(("x-tenant".into(), "other".into()));
    assert!(compiled("claims.tenant_id == request.headers['x-tenant']").holds(&twice).is_err());
    let far = json(r#"{"far": 1e400, "near": 1}"#);
    assert!(compiled("claims.far > 1").holds(&facts(&far)).is_err());
    assert_eq!(compiled("claims.near == 1").holds(&facts(&far)), Ok(true));
    let long = json(
        r#"{"id": 18446744073709551617, "other": 18446744073709551618, "largest": 18446744073709551615}"#,
    );
    assert!(compiled("claims.id == claims.other").holds(&facts(&long)).is_err(), "as doubles they are equal");
    assert_eq!(compiled("claims.largest == 18446744073709551615u").holds(&facts(&long)), Ok(true));
    let mut beyond = facts(&claims);
    beyond.now = UnixTime::from_secs(i64::MAX);
    assert!(compiled("now > timestamp(0)").holds(&beyond).is_err());
    assert!(compiled("!has(claims.x)").holds(&facts(&json("[1]"))).is_err());
}

/// Pieces of expressions, so that random ones are partly valid.
fn token_sequence() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "claims",
        "request",
        "now",
        ".a",
        ".path",
        ".headers",
        "[",
        "]",
        "(",
        ")",
        "{",
        "}",
        "'a'",
        "\"\"\"",
        "'",
        "\\",
        "r'",
        "b'\\x41'",
        "1",
        "0x",
        "-0x8000000000000000",
        "1u",
        "1.5",
        "1e",
        ".5",
        "-",
        "!",
        "+",
        "*",
        "/",
        "%",
        "==",
        "<",
        "in",
        " ",
        "&&",
        "||",
        "?",
        ":",
        ",",
        ".exists(x, ",
        ".map(",
        "has(",
        "x",
        "_",
        "if",
        "null",
        "true",
        "// ",
        "\n",
        "é",
        "`",
        "@result",
        ".?",
        "[?",
        "duration('1h')",
        "timestamp(",
        "int(",
        ".matches('a')",
        "..",
        "'\\u00e9'",
        "99999999999999999999",
        "type(",
        "dyn(",
        "google.protobuf.Any{",
    ]);
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

/// Claims with edge cases for arithmetic, conversions and the calendar.
fn value() -> impl Strategy<Value = String> {
    let edges = vec![
        "null",
        "true",
        "0",
        "-1",
        "1",
        "-9223372036854775808",
        "9223372036854775807",
        "18446744073709551615",
        "18446744073709551616",
        "-0.0",
        "1e308",
        "5e-324",
        "0.5",
        "253402300799",
        "-62135596800",
        "1e400",
        "\"\"",
        "\"true\"",
        "\"-9223372036854775808\"",
        "\"nan\"",
        "\"-inf\"",
        "\"9999-12-31T23:59:59.999999999Z\"",
        "\"0001-01-01T00:00:00+23:59\"",
        "\"2016-12-31T23:59:60Z\"",
        "\"-23:59\"",
        "\"+23:59\"",
        "\"Asia/Kolkata\"",
        "\":\"",
        "\"99:99\"",
        "\"é\"",
        "\"\\u0000\"",
    ];
    let leaf = prop_oneof![
        prop::sample::select(edges).prop_map(str::to_owned),
        any::<i64>().prop_map(|number| number.to_string()),
        "[ -~é]{0,8}".prop_map(|text| serde_json::Value::from(text).to_string()),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|values| format!("[{}]", values.join(","))),
            prop::collection::btree_map("[abk]", inner, 0..3).prop_map(|members| {
                let members: Vec<_> =
                    members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
}

const SET: [&str; 36] = [
    "claims.a == claims.b",
    "claims.a < claims.b",
    "claims.a + claims.b == claims.a",
    "claims.a - claims.b == claims.a",
    "claims.a * claims.b == claims.a",
    "claims.a / claims.b == claims.a",
    "claims.a % claims.b == claims.a",
    "-claims.a == claims.b",
    "claims.a[claims.b] == 1",
    "claims.a in claims.b",
    "claims.a.k == claims.b",
    "has(claims.a.k)",
    "{claims.a: claims.b} == claims",
    "[claims.a, claims.b] == claims.a",
    "claims.a ? claims.b : !claims.a",
    "claims.a && claims.b || claims.a",
    "claims.a.exists(x, x == claims.b)",
    "claims.a.all(x, claims.b.exists(y, x < y))",
    "claims.a.map(x, x + claims.b).size() > 0",
    "claims.a.filter(x, x).exists_one(x, x)",
    "size(claims.a) == claims.b.size()",
    "int(claims.a) == int(claims.b)",
    "uint(claims.a) - uint(claims.b) > 0u",
    "double(claims.a) / double(claims.b) > 0.0",
    "string(claims.a) + string(claims.b) == ''",
    "bytes(claims.a) + bytes(claims.b) == b''",
    "bool(claims.a) && bool(claims.b)",
    "timestamp(claims.a) - timestamp(claims.b) > duration('-1ns')",
    "string(timestamp(claims.a) + duration('2562047h')) == claims.b",
    "timestamp(claims.a) - duration('2562047h') > now",
    "timestamp(claims.a).getDayOfYear(claims.b) + timestamp(claims.a).getMonth(claims.b) > 0",
    "timestamp(claims.a).getFullYear() + now.getHours(claims.b) + now.getMilliseconds() > 0",
    "(now - timestamp(claims.a)).getMilliseconds() > 0",
    "claims.a.contains(claims.b) || claims.a.startsWith(claims.b) || claims.b.endsWith(claims.a)",
    "claims.a.matches('^(a|b)+é$')",
    "type(claims.a) == type(claims.b) || claims[claims.a] == claims.b",
];

proptest! {
    #[test]
    fn no_text_makes_compiling_panic(source in prop_oneof![token_sequence(), any::<String>(), "\\PC{0,40}"]) {
        if let Err(error) = Condition::compile(&source) {
            prop_assert!(error != PARSE_PANICKED, "{}", source);
        }
    }

    #[test]
    fn no_claims_make_evaluating_panic(a in value(), b in value()) {
        let set: &[Condition] = {
            static SET_COMPILED: LazyLock<Vec<Condition>> =
                LazyLock::new(|| SET.iter().map(|source| compiled(source)).collect());
            &SET_COMPILED
        };
        let claims = json(&format!(r#"{{"a": {a}, "b": {b}}}"#));
        for condition in set {
            if let Err(undecided) = condition.holds(&facts(&claims)) {
                prop_assert!(undecided.0 != PANICKED, "{:?} with {} and {}", condition, a, b);
            }
        }
    }
}
