//! The `rules` and `responses` sections, and the keys of a provider that change responses and upstream requests.

use portcullis::config::Config;
use portcullis::reason::{DenyReason, Refusal};
use portcullis::rules::{Effect, PathPattern};

use super::{Errors, MINIMAL, parse, provider_with};

/// `MINIMAL` with one named rule on line 8.
fn rule(text: &str) -> String {
    format!("{MINIMAL}rules:\n  - {{name: r, {text}}}\n")
}

#[test]
fn invalid_rules_are_errors_with_their_place() {
    let mut errors = Errors::default();
    let long = "match: {path_regex: '(a{1000}){1000}'}, deny: true".to_owned();
    for text in [
        "match: {path: admin}, deny: true",
        "match: {path: '/a%2fb'}, deny: true",
        "match: {path: '/a;b'}, deny: true",
        "match: {path: '/a?b=c'}, deny: true",
        "match: {path: ''}, deny: true",
        "match: {path_prefix: '*'}, deny: true",
        "match: {path: '/a/../b'}, deny: true",
        "match: {path_prefix: '/a//b'}, deny: true",
        "match: {methods: [get]}, deny: true",
        "match: {path_regex: '('}, deny: true",
        "match: {path_regex: 'a)(b'}, deny: true",
        "match: {path_regex: '(?=a)'}, deny: true",
        &long,
        "match: {path: /a, path_prefix: /b}, deny: true",
        "match: {methods: []}, deny: true",
        "match: {methods: [GET, GET]}, deny: true",
        "match: {methods: ['GET POST']}, deny: true",
        "match: {methods: GET}, deny: true",
        "match: {hosts: ['a:80']}, deny: true",
        "match: {hosts: ['https://a']}, deny: true",
        "match: {hosts: ['*']}, deny: true",
        "match: {hosts: [a.example.com, A.Example.com]}, deny: true",
        "match: {header: x}, deny: true",
        "match: {path: []}, deny: true",
        "match: {path: [/a, /a]}, deny: true",
        "match: {path: [/a], path_regex: [/b]}, deny: true",
        "match: {path_prefix: [/a, b]}, deny: true",
        "match: {headers: {}}, deny: true",
        "match: {headers: {'x y': a}}, deny: true",
        "match: {headers: {x: a, X: b}}, deny: true",
        "match: {headers: {x: []}}, deny: true",
        "match: {headers: {x: 'a,b'}}, deny: true",
        "match: {headers: {x: ['']}}, deny: true",
        "match: {headers: {x: [a, a]}}, deny: true",
        "match: {headers: x}, deny: true",
        "by_name: yes",
        "audiences: []",
        "audiences: [a, a]",
        "ambiguous_paths: yes",
        "allow: everybody",
        "deny: false",
        "allow: anonymous, deny: true",
        "allow: anonymous, require: {scopes: [a]}",
        "deny: true, providers: [p]",
        "deny: true, audiences: [a]",
        "allow: anonymous, audiences: [a]",
        "allow: optional, require: {scopes: [a]}",
        "allow: optional, deny: true",
        "providers: [q]",
        "providers: []",
        "require: {scopes: []}",
        "require: {scopes: ['a b']}",
        "require: {scopes: a}",
        "require: {claims: {}}",
        "require: {claims: {roles: []}}",
        "require: {claims: {roles: [null]}}",
        "require: {claims: {roles: {a: b}}}",
        "require: {claims: {'/a~b': [x]}}",
        "require: {condition: ''}",
        "require: {condition: 'claims.sub =='}",
        "require: {scope: a}",
        "requires: {}",
    ] {
        errors.of(&rule(text));
    }
    errors.of(&format!("{MINIMAL}rules: {{}}\n"));
    errors.of(&format!("{MINIMAL}default: anonymous\n"));
    errors.of(&format!("{MINIMAL}rules:\n  - {{deny: true}}\n"));
    let twice = format!("{MINIMAL}rules:\n  - {{name: r, deny: true}}\n  - {{name: r, allow: anonymous}}\n");
    errors.of(&twice);
    errors.compare("invalid_rules_are_errors_with_their_place");
}

#[test]
fn a_rule_with_an_invalid_provider_is_not_an_error() {
    let mut errors = Errors::default();
    let text = rule("providers: [p]").replace("audiences: [a]", "audiences: []");
    errors.of(&text);
    let text = rule("providers: [p]").replace("name: p", "name: [p]");
    errors.of(&text);
    let both = rule("providers: [q]").replace("audiences: [a]", "audiences: []");
    errors.of(&both);
    errors.compare("a_rule_with_an_invalid_provider_is_not_an_error");
}

#[test]
fn a_rule_is_read_as_it_is_written() {
    let config = parse(&rule("match: {path_prefix: /caf\u{e9}/}, require: {claims: {a: 1, b: [x, true]}}"));
    let config = config.expect("valid");
    let read = &config.rules.all()[0];
    assert_eq!(read.matches.paths, [PathPattern::Prefix("/caf%C3%A9".into())]);
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
  cors: {allow_origins: ['https://app.example.com', 'https://*.example.org:8443'], allow_credentials: true}
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
fn custom_responses_are_checked() {
    let mut errors = Errors::default();
    let with = |line: &str| format!("{MINIMAL}responses: {{{line}}}\n");
    for line in [
        "resource_metadata: api.example.com",
        "resource_metadata: 'https://a/#b'",
        "resource_metadata: 'file:///a'",
        "body: x",
        "body: {ok: x}",
        "body: {nonsense: x}",
        "body: {expired: ''}",
        "headers: {expired: x}",
        "headers: {expired: {'a b': x}}",
        "headers: {expired: {WWW-Authenticate: x}}",
        "headers: {expired: {content-length: '1'}}",
        "headers: {expired: {Set-Cookie: a=b}}",
        "headers: {expired: {X-Accel-Redirect: /x}}",
        "headers: {expired: {x-envoy-overloaded: x}}",
        "headers: {expired: {Cache-Control: public}}",
        "headers: {expired: {a: \"x\\ny\"}}",
        "headers: {expired: {a: é}}",
        "cors: {}",
        "cors: {allow_origins: []}",
        "cors: {allow_origins: [app.example.com, 'https://app.example.com/', 'https://*', 'null']}",
        "cors: {allow_origins: ['https://*.Example.org:443'], allow_credentials: yes}",
        "cors: {allow_origins: ['https://a.example', 'https://a.example']}",
        "cors: {allow_origins: ['*', 'https://app.example.com']}",
        "cors: {allow_origins: ['*'], allow_credentials: true}",
        "cors: {allow_origins: ['*']}, headers: {expired: {Vary: Accept}}",
    ] {
        errors.of(&with(line));
    }
    errors.compare("custom_responses_are_checked");
}

#[test]
fn claim_headers_and_metadata_are_checked() {
    let mut errors = Errors::default();
    for line in [
        "claim_headers: {x-a: {claim: a, encoding: hex}}",
        "claim_headers: {x-a: {encoding: base64url}}",
        "claim_headers: {x-a: {claim: a, as: b}}",
        "payload_header: authorization",
        "payload_header: x_payload",
        "metadata_claims: []",
        "metadata_claims: ['/~']",
        "realm: 'a\"b'",
    ] {
        errors.of(&provider_with(line));
    }
    let both = provider_with("claim_headers: {X-All: sub}\n    payload_header: x-all");
    errors.of(&both);
    let token = provider_with("token_from: [{header: x-token}]\n    payload_header: x-token");
    errors.of(&token);
    let fine = provider_with(
        "claim_headers: {x-a: {claim: /a/b, encoding: base64url}}\n    payload_header: x-all\n    metadata_claims: [sub, /a/b]\n    realm: acme",
    );
    let config = parse(&fine).expect("valid");
    let printed = config.to_yaml();
    let again = Config::parse(&printed, &|_| None).unwrap_or_else(|errors| panic!("{errors}\n{printed}"));
    assert_eq!(again.providers[0].provider, config.providers[0].provider);
    errors.compare("claim_headers_and_metadata_are_checked");
}

#[test]
fn the_configuration_of_the_readme_is_valid_as_it_stands() {
    let readme = include_str!("../../../README.md");
    let blocks = readme.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    // The first block is a list item and indented.
    let blocks: Vec<String> = blocks
        .map(|block| {
            let set_in = block.len() - block.trim_start().len();
            block.lines().map(|line| format!("{}\n", line.get(set_in..).unwrap_or_default())).collect()
        })
        .collect();
    // The last one is another `listen`; the third has cases for the rules.
    let [first, rules, _, listen] = &blocks[..] else { panic!("{blocks:#?}") };
    let text = format!("{first}{rules}");
    let (_, behind) = text.split_once('\n').expect("`listen` is the first line");
    assert!(parse(&format!("{listen}{behind}")).is_ok(), "{listen}");
    let config = parse(&text).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    assert_eq!(config.rules.all().len(), 3);
    assert_eq!(config.warnings, []);
}
