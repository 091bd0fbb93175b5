//! The `rules` and `responses` sections, and the keys of a provider that shape what goes out.

use portcullis::config::Config;
use portcullis::reason::{DenyReason, Refusal};
use portcullis::rules::{Effect, PathPattern};

use super::{MINIMAL, parse, provider_with, refused};

/// `MINIMAL` with one rule, which is line 8 and has a name.
fn rule(text: &str) -> String {
    format!("{MINIMAL}rules:\n  - {{name: r, {text}}}\n")
}

#[test]
fn a_rule_that_says_what_cannot_be_is_refused_where_it_stands() {
    let long = "match: {path_regex: '(a{1000}){1000}'}, deny: true".to_owned();
    for (text, path, message) in [
        ("match: {path: admin}, deny: true", "match.path", "begins with one slash"),
        ("match: {path: '/a%2fb'}, deny: true", "match.path", "%2f"),
        ("match: {path: '/a;b'}, deny: true", "match.path", "semicolons"),
        ("match: {path: '/a?b=c'}, deny: true", "match.path", "leave the query out"),
        ("match: {path: ''}, deny: true", "match.path", "missing"),
        ("match: {path_prefix: '*'}, deny: true", "match.path_prefix", "begins with one slash"),
        ("match: {path: '/a/../b'}, deny: true", "match.path", "`..` as segments"),
        ("match: {path_prefix: '/a//b'}, deny: true", "match.path_prefix", "`//`"),
        ("match: {methods: [get]}, deny: true", "match.methods[0]", "write GET"),
        ("match: {path_regex: '('}, deny: true", "match.path_regex", "unclosed group"),
        ("match: {path_regex: 'a)(b'}, deny: true", "match.path_regex", "unopened group"),
        ("match: {path_regex: '(?=a)'}, deny: true", "match.path_regex", "look-around"),
        (&long, "match.path_regex", "size limit"),
        ("match: {path: /a, path_prefix: /b}, deny: true", "match", "a rule for each"),
        ("match: {methods: []}, deny: true", "match.methods", "leave the key out"),
        ("match: {methods: [GET, GET]}, deny: true", "match.methods[1]", "second time"),
        ("match: {methods: ['GET POST']}, deny: true", "match.methods[0]", "expected a name"),
        ("match: {methods: GET}, deny: true", "match.methods", "a list"),
        ("match: {hosts: ['a:80']}, deny: true", "match.hosts[0]", "without a port"),
        ("match: {hosts: ['https://a']}, deny: true", "match.hosts[0]", "without a port"),
        ("match: {hosts: ['*']}, deny: true", "match.hosts[0]", "*.example.com"),
        ("match: {hosts: [a.example.com, A.Example.com]}, deny: true", "match.hosts[1]", "second time"),
        ("match: {header: x}, deny: true", "match.header", "unknown key"),
        ("ambiguous_paths: yes", "ambiguous_paths", "allow, refuse"),
        ("allow: everybody", "allow", "anonymous, preflight"),
        ("deny: false", "deny", "take the key out"),
        ("allow: anonymous, deny: true", "deny", "has no effect beside"),
        ("allow: anonymous, require: {scopes: [a]}", "require", "has no effect beside"),
        ("deny: true, providers: [p]", "providers", "has no effect beside"),
        ("providers: [q]", "providers[0]", "there are: p"),
        ("providers: []", "providers", "lets nobody in"),
        ("require: {scopes: []}", "require.scopes", "take the key out"),
        ("require: {scopes: ['a b']}", "require.scopes[0]", "without spaces"),
        ("require: {scopes: a}", "require.scopes", "a list"),
        ("require: {claims: {}}", "require.claims", "take the key out"),
        ("require: {claims: {roles: []}}", "require.claims.roles", "lets nobody in"),
        ("require: {claims: {roles: [null]}}", "require.claims.roles[0]", "a string, a number"),
        ("require: {claims: {roles: {a: b}}}", "require.claims.roles", "a string, a number"),
        ("require: {claims: {'/a~b': [x]}}", "require.claims[\"/a~b\"]", "JSON Pointer"),
        ("require: {condition: ''}", "require.condition", "missing"),
        ("require: {condition: 'claims.sub =='}", "require.condition", ""),
        ("require: {scope: a}", "require.scope", "did you mean `scopes`"),
        ("requires: {}", "requires", "did you mean `require`"),
    ] {
        refused(&rule(text), &[(8, &format!("rules[0].{path}"), message)]);
    }
    refused(&format!("{MINIMAL}rules: {{}}\n"), &[(7, "rules", "a list")]);
    refused(&format!("{MINIMAL}rules:\n  - {{deny: true}}\n"), &[(8, "rules[0]", "`name` is missing")]);
    let twice = format!("{MINIMAL}rules:\n  - {{name: r, deny: true}}\n  - {{name: r, allow: anonymous}}\n");
    refused(&twice, &[(9, "rules[1]", "in line 8")]);
}

#[test]
fn a_rule_that_names_a_provider_which_is_wrong_elsewhere_is_not_blamed() {
    let text = rule("providers: [p]").replace("audiences: [a]", "audiences: []");
    refused(&text, &[(6, "providers[0].audiences", "accepts no token")]);
    let text = rule("providers: [p]").replace("name: p", "name: [p]");
    refused(&text, &[(4, "providers[0].name", "not a list")]);
    let both = rule("providers: [q]").replace("audiences: [a]", "audiences: []");
    let told =
        [(6, "providers[0].audiences", "accepts no token"), (8, "rules[0].providers[0]", "there are: p")];
    refused(&both, &told);
}

#[test]
fn a_rule_is_read_as_it_is_written() {
    let config = parse(&rule("match: {path_prefix: /caf\u{e9}/}, require: {claims: {a: 1, b: [x, true]}}"));
    let config = config.expect("valid");
    let read = &config.rules.all()[0];
    assert_eq!(read.matches.path, Some(PathPattern::Prefix("/caf%C3%A9".into())));
    let Effect::Require(requirements) = &read.effect else { panic!("{read:?}") };
    assert_eq!(requirements.claims.len(), 2);
    let nothing = parse(&rule("ambiguous_paths: allow")).expect("a rule may ask for a valid token alone");
    assert!(nothing.rules.all()[0].ambiguous_paths);
}

const EVERYTHING: &str = r#"rules:
  - {name: a, match: {path: /a, methods: [GET], hosts: ['*.example.com', '[::1]']}, allow: anonymous}
  - {name: b, match: {path_regex: '/b/.*'}, deny: true}
  - {name: c, allow: preflight, ambiguous_paths: allow}
  - name: d
    match: {path_prefix: /}
    providers: [p]
    require:
      scopes: ['x:y']
      claims: {/a/b: [x, 1, true], 'https://n': [1.5]}
      condition: 'claims.sub == "${literal}"'
responses:
  resource_metadata: https://api.example.com/.well-known/oauth-protected-resource
  body: {expired: 'gone', bad_signature: '{"a": 1}'}
  headers: {token_missing: {X-Login: 'https://x', b: c}, rule_denied: {location: '/'}}
"#;

#[test]
fn rules_and_responses_are_printed_as_they_are_read() {
    let text = format!("{MINIMAL}{}", EVERYTHING.replace("${literal}", "$${literal}"));
    let config = parse(&text).expect("valid");
    let printed = config.to_yaml();
    let again = parse(&printed).unwrap_or_else(|errors| panic!("{errors}\n{printed}"));
    assert_eq!(again.rules, config.rules, "{printed}");
    assert_eq!(again.responses, config.responses);
    assert_eq!(again.to_yaml(), printed);
    assert!(printed.contains("$${literal}"), "{printed}");
    let json =
        config.responses.custom[&Refusal::Denied(DenyReason::BadSignature)].body.as_ref().expect("a body");
    assert_eq!(json.media_type, "application/json");
    let text = config.responses.custom[&Refusal::Denied(DenyReason::Expired)].body.as_ref().expect("a body");
    assert_eq!(text.media_type, "text/plain; charset=utf-8");
    assert_eq!(config.responses.custom[&Refusal::Denied(DenyReason::TokenMissing)].headers[0].0, "x-login");
}

#[test]
fn what_shapes_a_denial_is_checked() {
    let with = |line: &str| format!("{MINIMAL}responses: {{{line}}}\n");
    for (line, path, message) in [
        ("resource_metadata: api.example.com", "resource_metadata", "the URL of"),
        ("resource_metadata: 'https://a/#b'", "resource_metadata", "the URL of"),
        ("resource_metadata: 'file:///a'", "resource_metadata", "the URL of"),
        ("body: x", "body", "a mapping"),
        ("body: {ok: x}", "body.ok", "the reason of a denial"),
        ("body: {nonsense: x}", "body.nonsense", "rule_denied"),
        ("body: {expired: ''}", "body.expired", "missing"),
        ("headers: {expired: x}", "headers.expired", "a mapping"),
        ("headers: {expired: {'a b': x}}", "headers.expired[\"a b\"]", "name of a header"),
        ("headers: {expired: {WWW-Authenticate: x}}", "headers.expired.WWW-Authenticate", "leave it out"),
        ("headers: {expired: {content-length: '1'}}", "headers.expired.content-length", "leave it out"),
        ("headers: {expired: {Set-Cookie: a=b}}", "headers.expired.Set-Cookie", "leave it out"),
        ("headers: {expired: {X-Accel-Redirect: /x}}", "headers.expired.X-Accel-Redirect", "leave it out"),
        ("headers: {expired: {x-envoy-overloaded: x}}", "headers.expired.x-envoy-overloaded", "leave it out"),
        ("headers: {expired: {Cache-Control: public}}", "headers.expired.Cache-Control", "leave it out"),
        ("headers: {expired: {a: \"x\\ny\"}}", "headers.expired.a", "printable ASCII"),
        ("headers: {expired: {a: é}}", "headers.expired.a", "printable ASCII"),
    ] {
        refused(&with(line), &[(7, &format!("responses.{path}"), message)]);
    }
}

#[test]
fn what_a_provider_gives_out_is_checked() {
    for (line, path, message) in [
        (
            "claim_headers: {x-a: {claim: a, encoding: hex}}",
            "claim_headers.x-a.encoding",
            "percent, base64url",
        ),
        ("claim_headers: {x-a: {encoding: base64url}}", "claim_headers.x-a", "`claim` is missing"),
        ("claim_headers: {x-a: {claim: a, as: b}}", "claim_headers.x-a.as", "unknown key"),
        ("payload_header: authorization", "payload_header", "belongs to HTTP"),
        ("payload_header: x_payload", "payload_header", "with `-`"),
        ("metadata_claims: []", "metadata_claims", "take the key out"),
        ("metadata_claims: ['/~']", "metadata_claims[0]", "JSON Pointer"),
        ("realm: 'a\"b'", "realm", "without quotes"),
    ] {
        refused(&provider_with(line), &[(7, &format!("providers[0].{path}"), message)]);
    }
    let both = provider_with("claim_headers: {X-All: sub}\n    payload_header: x-all");
    refused(&both, &[(8, "providers[0].payload_header", "choose another")]);
    let token = provider_with("token_from: [{header: x-token}]\n    payload_header: x-token");
    refused(&token, &[(8, "providers[0].payload_header", "a token comes in this header")]);
    let fine = provider_with(
        "claim_headers: {x-a: {claim: /a/b, encoding: base64url}}\n    payload_header: x-all\n    metadata_claims: [sub, /a/b]\n    realm: acme",
    );
    let config = parse(&fine).expect("valid");
    let printed = config.to_yaml();
    let again = Config::parse(&printed, &|_| None).unwrap_or_else(|errors| panic!("{errors}\n{printed}"));
    assert_eq!(again.providers[0].provider, config.providers[0].provider);
}

#[test]
fn the_configuration_of_the_readme_is_valid_as_it_stands() {
    let readme = include_str!("../../../README.md");
    let blocks = readme.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    // The first block is part of a list, and set in by as much.
    let blocks: Vec<String> = blocks
        .map(|block| {
            let set_in = block.len() - block.trim_start().len();
            block.lines().map(|line| format!("{}\n", line.get(set_in..).unwrap_or_default())).collect()
        })
        .collect();
    // The last one is another `listen`.
    let [first, rules, listen] = &blocks[..] else { panic!("{blocks:#?}") };
    let text = format!("{first}{rules}");
    let (_, behind) = text.split_once('\n').expect("`listen` is the first line");
    assert!(parse(&format!("{listen}{behind}")).is_ok(), "{listen}");
    let config = parse(&text).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    assert_eq!(config.rules.all().len(), 3);
    assert_eq!(config.warnings, []);
}
