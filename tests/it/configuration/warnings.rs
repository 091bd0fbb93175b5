//! Valid but dangerous settings: each is a warning with its position, not an error.

use super::{MINIMAL, parse, provider_with};
use crate::support::subprocess::StartCommand;

/// The warnings of a valid configuration: line, path and message.
#[track_caller]
fn warnings(text: &str) -> Vec<(usize, String, String)> {
    let config = parse(text).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    config
        .warnings
        .into_iter()
        .map(|warning| (warning.at.map_or(0, |at| at.line), warning.path, warning.message))
        .collect()
}

fn rules(lines: &[&str]) -> String {
    let rules: String =
        lines.iter().enumerate().map(|(i, line)| format!("  - {{name: r{i}, {line}}}\n")).collect();
    format!("{MINIMAL}rules:\n{rules}default: deny\n")
}

/// Rules beside which a valid token is enough.
fn open_rules(lines: &[&str]) -> String {
    rules(lines).replace("default: deny", "default: token")
}

#[test]
fn dangerous_settings_are_warnings_with_their_place() {
    let any = MINIMAL.replace("audiences: [a]", "any_audience: true");
    let http = "jwks_uri: http://sso.example.com/keys\n    allow_http: true";
    let everywhere = &["match: {path_prefix: /}, allow: anonymous"];
    for (text, line, path, message) in [
        (any, 6, "providers[0].any_audience", "every other service of this issuer"),
        (provider_with(http), 7, "providers[0].jwks_uri", "from a public host"),
        (
            provider_with(&http.replace("sso.example.com", "203.0.113.9")),
            7,
            "providers[0].jwks_uri",
            "public",
        ),
        (
            provider_with(&http.replace("sso.example.com", "[2001:4860::1]")),
            7,
            "providers[0].jwks_uri",
            "public",
        ),
        (rules(everywhere), 8, "rules[0]", "every path"),
        (rules(&["allow: anonymous"]), 8, "rules[0]", "every path"),
        (rules(&["match: {methods: [GET]}, allow: anonymous"]), 8, "rules[0]", "every path"),
        (rules(&["match: {path_regex: '/.*'}, allow: anonymous"]), 8, "rules[0]", "every path"),
        (
            rules(&["match: {path: /a}, deny: true", "ambiguous_paths: allow"]),
            9,
            "rules[1].ambiguous_paths",
            "does not decode them",
        ),
        (
            format!("{MINIMAL}trusted_proxies: [10.0.0.0/8, 0.0.0.0/0]\n"),
            7,
            "trusted_proxies[1]",
            "bypass the rules",
        ),
    ] {
        let got = warnings(&text);
        let [(got_line, got_path, got_message)] = got.as_slice() else { panic!("{got:?} for\n{text}") };
        assert_eq!((*got_line, got_path.as_str()), (line, path), "{got_message}");
        assert!(got_message.contains(message), "{got_message}");
    }
}

#[test]
fn a_rule_that_can_never_match_is_a_warning_that_names_the_covering_rule() {
    for (first, second, never) in [
        ("deny: true", "match: {path: /a}, deny: true", true),
        ("deny: true", "allow: preflight", true),
        ("allow: preflight", "deny: true", false),
        ("allow: preflight", "match: {path: /a}, allow: preflight", true),
        ("match: {path_prefix: /a}, deny: true", "match: {path_prefix: /a/b}, deny: true", true),
        ("match: {path_prefix: /a}, deny: true", "match: {path_prefix: /a/}, deny: true", true),
        ("match: {path_prefix: /a}, deny: true", "match: {path_prefix: /ab}, deny: true", false),
        ("match: {path_prefix: /a}, deny: true", "match: {path: /a/b}, deny: true", true),
        ("match: {path_prefix: /a/b}, deny: true", "match: {path_prefix: /a}, deny: true", false),
        ("match: {path_prefix: /}, deny: true", "require: {scopes: [x]}", true),
        ("match: {path_regex: '/a.*'}, deny: true", "match: {path: /ab}, deny: true", true),
        ("match: {path_regex: '/a.*'}, deny: true", "match: {path_regex: '/a.*'}, deny: true", true),
        ("match: {path_regex: '/a.*'}, deny: true", "match: {path_prefix: /a}, deny: true", true),
        ("match: {path_regex: '/a/.*'}, deny: true", "match: {path_prefix: /a}, deny: true", false),
        ("match: {path: [/a, /b]}, deny: true", "match: {path: /b}, deny: true", true),
        ("match: {path: [/a, /b]}, deny: true", "match: {path: [/b, /c]}, deny: true", false),
        ("match: {headers: {x: [a, b]}}, deny: true", "match: {headers: {x: a, y: c}}, deny: true", true),
        ("match: {headers: {x: a}}, deny: true", "match: {headers: {x: [a, b]}}, deny: true", false),
        ("match: {headers: {x: a}}, deny: true", "deny: true", false),
        ("deny: true", "by_name: true, match: {path: /a}, deny: true", false),
        ("match: {methods: [GET, HEAD]}, deny: true", "match: {methods: [GET]}, deny: true", true),
        ("match: {methods: [GET]}, deny: true", "match: {methods: [GET, HEAD]}, deny: true", true),
        ("match: {methods: [GET]}, deny: true", "match: {path: /a}, deny: true", false),
        (
            "match: {hosts: ['*.a.com']}, deny: true",
            "match: {hosts: [x.a.com, '*.y.a.com']}, deny: true",
            true,
        ),
        ("match: {hosts: ['*.a.com']}, deny: true", "match: {hosts: [a.com]}, deny: true", false),
        ("match: {hosts: [x.a.com]}, deny: true", "match: {hosts: ['*.a.com']}, deny: true", false),
        ("match: {hosts: [x.a.com]}, deny: true", "match: {path: /a}, deny: true", false),
    ] {
        let got = warnings(&rules(&[first, second]));
        let warned = got.iter().any(|(line, path, message)| {
            (*line, path.as_str()) == (9, "rules[1]") && message.contains("can never match: `r0`, in line 8")
        });
        assert_eq!(warned, never, "{first} then {second}: {got:?}");
    }
}

#[test]
fn a_rule_whose_paths_several_rules_before_it_match_together_is_a_warning() {
    let first = ["match: {path_prefix: /a}, deny: true", "match: {path_regex: '/b/[a-z]*'}, deny: true"];
    for (third, never) in [
        ("match: {path: [/a/x, /b/x]}, deny: true", true),
        ("match: {path_regex: '/(a|b)/[a-y]+'}, deny: true", true),
        ("match: {path_regex: '/(a|b)/[a-y0-9]+'}, deny: true", false),
    ] {
        let got = warnings(&rules(&[first[0], first[1], third]));
        assert_eq!(got.iter().any(|(line, ..)| *line == 10), never, "{third}: {got:?}");
    }
}

#[test]
fn a_pattern_that_cannot_mean_what_it_says_is_a_warning() {
    for (rule, path, message) in [
        ("match: {path_prefix: '/admin/*'}", "match.path_prefix", "`*` is no wildcard here"),
        ("match: {path: '/users/{id}'}", "match.path", "a parameter is matched literally"),
        ("match: {path: ['/x', '/items/:id']}", "match.path[1]", "a parameter is matched literally"),
        ("match: {path_prefix: '/a/<id>'}", "match.path_prefix", "a parameter is matched literally"),
        ("match: {path: '/a$'}", "match.path", "is matched literally"),
        ("match: {path_regex: '/secret'}", "match.path_regex", "matches this path alone"),
        ("match: {path_regex: 'secret/.*'}", "match.path_regex", "matches no path"),
        ("match: {path_regex: ['/a.', '/%c3.*']}", "match.path_regex[1]", "matches no path"),
        ("match: {path_regex: '/(admin|ops)/*'}", "match.path_regex", "repeats the slash"),
        ("match: {methods: ['*']}", "match.methods[0]", "for every method"),
        ("match: {methods: ['GET|POST']}", "match.methods[0]", "write a list, as in [GET, POST]"),
        (
            "require: {claims: {realm_access.roles: [a]}}",
            "require.claims[\"realm_access.roles\"]",
            "is /realm_access/roles",
        ),
        ("require: {claims: {$.tenant_id: [a]}}", "require.claims[\"$.tenant_id\"]", "is /tenant_id"),
        (
            "require: {condition: 'request.headers[\"x-forwarded-for\"] == \"10.0.0.1\"'}",
            "",
            "a client can send itself",
        ),
        ("match: {headers: {X-Client-IP: 10.0.0.1}}", "", "a client can send itself"),
        (
            "match: {headers: {upgrade: websocket}}, deny: true",
            "",
            "belongs to the connection or to the proxy",
        ),
        (
            "require: {condition: 'request.headers[\"host\"] == \"a.example\"'}",
            "",
            "write `hosts` or `request.host`",
        ),
        ("match: {path_regex: '^/admin'}, deny: true", "match.path_regex", "has to match the whole path"),
        ("match: {path_regex: '/%7Euser/.*'}, deny: true", "match.path_regex", "matches no path"),
        ("require: {condition: 'claims.level == 1.5'}", "require.condition", "1.5 equals other numbers"),
        ("require: {condition: '-0.1 != claims.x'}", "require.condition", "-0.1 equals other numbers"),
        ("require: {condition: 'claims.level in [1, 2.5]'}", "require.condition", "2.5 equals other numbers"),
        (
            "require: {condition: 'claims.id >= 9007199254740993'}",
            "require.condition",
            "9007199254740993 equals other numbers",
        ),
        (
            "require: {condition: 'claims.id == 9007199254740993u'}",
            "require.condition",
            "9007199254740993u equals other numbers",
        ),
        ("require: {claims: {level: [1, 1.5]}}", "require.claims", "1.5 equals other numbers"),
        ("require: {claims: {id: [9007199254740993]}}", "require.claims", "equals other numbers"),
    ] {
        let got = warnings(&rules(&[rule]));
        let place = format!("rules[0]{}{path}", if path.is_empty() { "" } else { "." });
        let found = got.iter().any(|(_, at, text)| *at == place && text.contains(message));
        assert!(found, "{rule}: {got:?}");
    }
    for (provider, path) in [
        ("claim_headers: {x-roles: realm_access.roles}", "providers[0].claim_headers.x-roles"),
        ("claim_headers: {x-roles: {claim: realm_access.roles}}", "providers[0].claim_headers.x-roles.claim"),
        ("required_claims: [sub, $.tenant_id]", "providers[0].required_claims[1]"),
    ] {
        let got = warnings(&provider_with(provider));
        assert!(got.iter().any(|(_, at, text)| at == path && text.contains("dots and all")), "{got:?}");
    }
    for rule in [
        "require: {claims: {'https://example.com/roles': [a.b], /realm_access/roles: [a], /kubernetes.io: [x]}}",
        "match: {path_regex: ['/admin(/.*)?', '/a.json', '/v[0-9]+']}",
        "match: {path: [/a/b, '/a:b', /index.html]}, deny: true",
        "match: {methods: [GET, M-SEARCH]}, deny: true",
        "require: {condition: 'request.headers[\"x-tenant\"] == claims.tenant_id'}",
        "require: {condition: 'claims.score > 0.5 && claims.level in [1, 2] && claims.id != 9007199254740992'}",
        "require: {claims: {level: [1, '1.5', -7]}}",
        "require: {condition: 'request.method == \"GET\"'}",
    ] {
        assert_eq!(warnings(&rules(&[rule])), [], "{rule}");
    }
}

#[test]
fn a_header_about_the_client_is_a_warning_where_a_proxy_passes_on_that_of_the_client() {
    let rule = |name: &str| format!("require: {{condition: 'request.headers[\"{name}\"] == \"x\"'}}");
    let door = |profile: &str| format!("forward_auth: {{address: '127.0.0.1:0', profile: {profile}}}");
    let envoy = "ext_authz: 127.0.0.1:0";
    for (listen, name, warned) in [
        (envoy.to_owned(), "x-forwarded-for", true),
        (envoy.to_owned(), "x-real-ip", false),
        (door("envoy"), "x-forwarded-for", true),
        (door("nginx"), "x-real-ip", true),
        (door("nginx"), "x-forwarded-proto", true),
        (door("caddy"), "x-forwarded-for", false),
        (door("traefik"), "x-forwarded-for", false),
        (door("haproxy"), "x-real-ip", false),
        (door("haproxy"), "true-client-ip", true),
        (format!("{}, {envoy}", door("caddy")), "x-forwarded-for", true),
        (String::new(), "x-real-ip", true),
    ] {
        let text = rules(&[&rule(name)]).replace(envoy, &listen);
        let is_warned = warnings(&text).iter().any(|(.., text)| text.contains("can send itself"));
        assert_eq!(is_warned, warned, "{listen}, {name}");
    }
}

#[test]
fn a_condition_on_the_method_names_methods_and_leaves_the_others_to_the_rest_of_it() {
    let condition = "require: {condition: 'request.method != \"DELETE\" || claims.role == \"admin\"'}";
    let got = warnings(&open_rules(&[condition]));
    let place = "rules[0].require.condition";
    assert!(got.iter().any(|(_, at, text)| at == place && text.contains("such as HEAD")), "{got:?}");
    let named = format!("match: {{methods: [GET, DELETE]}}, {condition}");
    let got = warnings(&open_rules(&[&named, "match: {path_prefix: /}, deny: true"]));
    assert!(!got.iter().any(|(_, at, _)| at == place), "{got:?}");
}

#[test]
fn what_a_valid_token_is_enough_for_beside_a_rule_is_a_warning() {
    const ROLE: &str = "require: {claims: {role: [admin]}}";
    for (lines, path, message) in [
        (vec!["match: {path_prefix: /admin, methods: [GET]}, {ROLE}"], "match.methods", "the other methods"),
        (
            vec!["match: {path_prefix: /admin, methods: [GET]}, deny: true"],
            "match.methods",
            "the other methods",
        ),
        (
            vec![
                "match: {path_prefix: /admin, methods: [GET]}, {ROLE}",
                "match: {path_prefix: /admin, methods: [POST]}, {ROLE}",
            ],
            "match.methods",
            "the other methods",
        ),
        (vec!["match: {path: /admin}, {ROLE}"], "match.path", "/admin/ and /ADMIN"),
        (vec!["match: {path: [/admin/]}, deny: true"], "match.path[0]", "/admin and /ADMIN/"),
        (vec!["match: {headers: {x: a}}, {ROLE}"], "match.headers", "without these headers"),
    ] {
        let lines: Vec<String> = lines.iter().map(|line| line.replace("{ROLE}", ROLE)).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let got = warnings(&open_rules(&lines));
        let place = format!("rules[0].{path}");
        assert!(got.iter().any(|(_, at, text)| *at == place && text.contains(message)), "{lines:?}: {got:?}");
        assert_eq!(warnings(&rules(&lines)), [], "with `default: deny`: {lines:?}");
    }
    for lines in [
        &[
            "match: {path_prefix: /admin, methods: [GET]}, deny: true",
            "match: {path_prefix: /admin}, deny: true",
        ][..],
        &[
            "match: {path_prefix: /admin, methods: [GET]}, deny: true",
            "match: {path_regex: '/admin(/.*)?'}, deny: true",
        ],
        &["match: {path: /admin}, deny: true", "match: {path_prefix: /admin}, deny: true"],
        &["match: {path: /healthz, methods: [GET]}, allow: anonymous"],
        &["match: {path: /a, methods: [GET]}, allow: optional"],
        &["match: {path: /a}"],
        &[
            "match: {path_prefix: /mcp, headers: {x: a}}, deny: true",
            "match: {path_prefix: /mcp}, deny: true",
        ],
    ] {
        assert_eq!(warnings(&open_rules(lines)), [], "{lines:?}");
    }
    let unsaid = rules(&["match: {path_prefix: /a}, deny: true"]).replace("default: deny\n", "");
    let got = warnings(&unsaid);
    assert!(got.len() == 1 && got[0].1 == "rules" && got[0].2.contains("`default: deny`"), "{got:?}");
    assert_eq!(
        warnings(&rules(&["deny: true"]).replace("default: deny\n", "")),
        [],
        "a rule matches everything"
    );
    let got = warnings(&format!("{MINIMAL}default: deny\n"));
    assert!(got[0].1 == "default" && got[0].2.contains("every request is denied"), "{got:?}");
}

#[test]
fn listeners_that_others_reach_or_that_cannot_both_be_bound_are_warnings() {
    let with = |listen: &str| warnings(&MINIMAL.replace("ext_authz: 127.0.0.1:0", listen));
    let tls = "tls: {cert_file: a, key_file: b, client_ca_file: c}";
    for (listen, path, message) in [
        ("ext_authz: '0.0.0.0:9191'", "listen.ext_authz", "can ask for decisions"),
        ("ext_authz: '[::]:9191'", "listen.ext_authz", "can ask for decisions"),
        (
            "ext_authz: '127.0.0.1:9191', admin: '0.0.0.0:9193'",
            "listen.admin",
            "the configuration and the metrics",
        ),
        ("ext_authz: '127.0.0.1:9191', admin: '0.0.0.0:9191'", "listen.admin", "cannot both be bound"),
        (
            "ext_authz: '10.0.0.1:9191', forward_auth: {address: '[::]:9191', profile: nginx}",
            "listen.forward_auth",
            "cannot both be bound",
        ),
    ] {
        let got = with(listen);
        assert!(got.iter().any(|(_, at, text)| at == path && text.contains(message)), "{listen}: {got:?}");
    }
    for listen in [
        "ext_authz: 'unix:/run/a.sock', admin: '127.0.0.1:9193'",
        "ext_authz: '127.0.0.1:0', admin: '127.0.0.1:0'",
        "ext_authz: '127.0.0.1:9191', forward_auth: {address: '0.0.0.0:9192', profile: nginx}",
        &format!("ext_authz: {{address: '0.0.0.0:9191', {tls}}}"),
    ] {
        assert_eq!(with(listen), [], "{listen}");
    }
    let got = warnings(&provider_with("token_from: [{query: access_token}]"));
    assert!(got[0].1 == "providers[0].token_from" && got[0].2.contains("Referer"), "{got:?}");
}

#[test]
fn ordinary_settings_cause_no_warning() {
    let private = |host: &str| provider_with(&format!("jwks_uri: http://{host}/keys\n    allow_http: true"));
    for text in [
        MINIMAL.to_owned(),
        include_str!("../../../deploy/portcullis.yaml").to_owned(),
        private("keycloak"),
        private("keycloak.internal:8080"),
        private("keycloak.auth.svc.cluster.local"),
        private("10.1.2.3"),
        private("[fd00::1]"),
        private("[::ffff:10.0.0.1]"),
        private("localhost"),
        provider_with("jwks_uri: https://sso.example.com/keys\n    allow_http: true"),
        rules(&[
            "match: {path: /healthz}, allow: anonymous",
            "match: {path_prefix: /public}, allow: anonymous",
        ]),
        rules(&["match: {path_prefix: /files}, ambiguous_paths: refuse", "match: {path: /a}, deny: true"]),
    ] {
        assert_eq!(warnings(&text), [], "{text}");
    }
}

#[test]
fn validate_prints_warnings_as_editors_follow_them_and_succeeds() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let file = folder.path().join("portcullis.yaml");
    std::fs::write(&file, rules(&["allow: anonymous"])).expect("can be written");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["validate", "--config"])
        .arg(&file)
        .run_and_read()
        .expect("the binary runs");
    assert!(output.status.success());
    let warned = String::from_utf8(output.stderr).expect("text");
    let expected = format!("{}:8:5: warning: rules[0]: allows every request to every path", file.display());
    assert!(warned.starts_with(&expected), "{warned}");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["validate", "--strict", "--config"])
        .arg(&file)
        .run_and_read()
        .expect("the binary runs");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).expect("text");
    assert!(error.starts_with(&expected.replace("warning: ", "")), "{error}");
    assert_eq!(output.stdout, b"");
}

#[test]
fn a_host_that_is_judged_behind_ingress_nginx_is_a_warning() {
    let door = |profile: &str| format!("forward_auth: {{address: '127.0.0.1:0', profile: {profile}}}");
    let envoy = "ext_authz: 127.0.0.1:0";
    for (rule, profile, warned) in [
        ("match: {hosts: [a.example.com]}", "ingress-nginx", true),
        ("require: {condition: 'request.host == \"a.example.com\"'}", "ingress-nginx", true),
        ("match: {path_prefix: /a}", "ingress-nginx", false),
        ("match: {hosts: [a.example.com]}", "nginx", false),
    ] {
        let text = rules(&[rule]).replace(envoy, &door(profile));
        let is_warned = warnings(&text).iter().any(|(.., text)| text.contains("behind ingress-nginx"));
        assert_eq!(is_warned, warned, "{rule} {profile}");
    }
}
