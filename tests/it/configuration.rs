//! The configuration, from text to the effective configuration or to all of its errors. These tests start no service.

mod printed;
mod realms;
mod rules;
mod schema;
mod warnings;

use std::process::Command;

use portcullis::config::{BindAddress, Config, ForwardProxy, KeySource, Profile, RefreshPolicy};
use portcullis::validation::algorithm::Algorithm;
use portcullis::validation::provider::{Audiences, TokenSource};
use proptest::prelude::*;

use crate::support::snapshots::settings;
use crate::support::subprocess::StartCommand;

const EXAMPLE: &str = include_str!("../../deploy/portcullis.yaml");

const MINIMAL: &str = "
listen: {ext_authz: 127.0.0.1:0}
providers:
  - name: p
    issuer: https://sso.example.com
    audiences: [a]
";

/// 35 bytes in base64url: long enough for HS256 but not for HS384.
const SECRET: &str = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldCE";

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, &|name| (name == "STATUS").then(|| "429".to_owned()))
        .map_err(|errors| errors.to_string())
}

/// `MINIMAL` with one more key in the provider, on line 7.
fn provider_with(line: &str) -> String {
    format!("{MINIMAL}    {line}\n")
}

/// Invalid configurations with the reported errors, for comparison with a snapshot.
#[derive(Default)]
struct Errors(String);

impl Errors {
    /// Adds the lines of `text` that are not in `MINIMAL`, followed by the errors.
    #[track_caller]
    fn of(&mut self, text: &str) {
        let errors = match Config::parse(text, &|_| None) {
            Ok(_) => panic!("accepted:\n{text}"),
            Err(errors) => errors,
        };
        let differs = |line: &&str| !line.trim().is_empty() && MINIMAL.lines().all(|other| other != *line);
        for line in text.lines().filter(differs).take(20) {
            let shown: String = line.chars().take(120).collect();
            self.0 += &format!("{shown}\n");
        }
        for error in errors.iter() {
            self.0 += &format!("    ! {error}\n");
        }
    }

    /// Compares everything with the snapshot of this name.
    #[track_caller]
    fn compare(self, name: &str) {
        let mut settings = settings(&[]);
        settings.set_snapshot_path("configuration/errors");
        settings.bind(|| insta::assert_snapshot!(name, self.0));
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
    assert_eq!(config.trusted_proxies, minimal.trusted_proxies);
    assert_eq!(config.limits, minimal.limits);
    assert_eq!(config.shutdown, minimal.shutdown);
    assert_eq!(config.log, minimal.log);
}

/// Every form of every listener.
const LISTENERS: &str = "
listen:
  ext_authz:
    - {address: 'unix:/run/p.sock', mode: '0660'}
    - address: 127.0.0.1:0
      tls: {cert_file: c, key_file: k, client_ca_file: a, client_names: [Envoy.mesh, 'spiffe://example.org/envoy']}
    - 127.0.0.1:0
  forward_auth: {address: 127.0.0.1:0, profile: nginx, tls: {cert_file: c, key_file: k}}
  admin:
    address: 127.0.0.1:0
    hosts: [ops.example.com, ops]
    tls: {cert_file: c, key_file: k}
providers:
  - {name: p, issuer: 'https://sso.example.com', audiences: [a], ready_without_keys: true}
limits: {message_bytes: 1MiB, connections: 5}
";

#[test]
fn every_form_of_a_listener_is_read_and_printed_as_it_is_read() {
    let config = parse(LISTENERS).expect("every form is valid");
    let [file, tls, plain] = &*config.listen.ext_authz else { panic!("three listeners") };
    assert!(matches!(&file.address, BindAddress::Unix { mode: Some(0o660), .. }), "{file:?}");
    let names = &tls.tls.as_ref().expect("with TLS").client_names;
    assert_eq!(names, &["envoy.mesh", "spiffe://example.org/envoy"]);
    assert_eq!(plain.tls, None, "port 0 twice is two ports");
    let admin = config.listen.admin.as_ref().expect("is there");
    assert_eq!(admin.hosts, ["ops.example.com", "ops"]);
    assert!(admin.tls.is_some());
    assert!(config.providers[0].ready_without_keys);
    assert_eq!((config.limits.message_bytes, config.limits.connections), (1 << 20, 5));
    let again = parse(&config.to_yaml()).expect("what is printed is valid");
    assert_eq!((&again.listen, &again.limits), (&config.listen, &config.limits));
    assert!(again.providers[0].ready_without_keys);
}

#[test]
fn the_printed_configuration_is_read_as_the_same() {
    for text in [EXAMPLE, MINIMAL, LISTENERS] {
        let printed = parse(text).expect("the configuration is valid").to_yaml();
        let again = parse(&printed).unwrap_or_else(|errors| panic!("{errors}\n{printed}"));
        assert_eq!(again.to_yaml(), printed);
        assert_eq!(again.providers[0].provider, parse(text).expect("valid").providers[0].provider);
    }
}

#[test]
fn an_inline_secret_is_never_printed() {
    let jwks = format!("jwks: {{keys: [{{kty: oct, kid: k, alg: HS256, k: {SECRET}}}]}}");
    let config = parse(&provider_with(&format!("{jwks}\n    algorithms: [HS256]"))).expect("is long enough");
    let printed = config.to_yaml();
    assert!(!printed.contains(SECRET));
    assert!(!format!("{config:?}").contains(SECRET));
    let redacted = r#"jwks: {keys: [{kid: "k", kty: "oct", alg: "HS256", redacted: "a shared secret"}]}"#;
    assert!(printed.contains(redacted), "{printed}");
    assert!(parse(&printed).is_err(), "a key without its material is invalid");
    let again = parse(&printed.replace(redacted, &jwks)).expect("with the material it is valid again");
    assert_eq!(again.to_yaml(), printed);
}

#[test]
fn no_query_and_no_user_of_a_url_is_printed() {
    let of_realms = MINIMAL.replace(
        "https://sso.example.com",
        "https://sso.example.com/{realm}\n    realms: [a]\n    jwks_uri: 'https://i.example/{realm}/keys?key=S3CRET'",
    );
    let discovered_realms = of_realms.replace("jwks_uri", "discovery_uri");
    for text in [
        provider_with("jwks_uri: 'https://i.example/keys?key=S3CRET'"),
        provider_with("discovery_uri: 'https://i.example/keys?S3CRET'"),
        of_realms,
        discovered_realms,
        provider_with("http: {proxy: 'http://S3CRET:S3CRET@proxy.example:3128'}"),
        format!("{MINIMAL}responses: {{resource_metadata: 'https://api.example/m?key=S3CRET'}}\n"),
    ] {
        let printed = parse(&text).expect("valid").to_yaml();
        assert!(!printed.contains("S3CRET"), "{printed}");
        assert!(printed.contains("shown; restore"), "the omission is mentioned: {printed}");
        // It is not read as a query or a user of that name.
        assert!(text.contains("resource_metadata") || parse(&printed).is_err(), "{printed}");
        let restored = printed.replace("?...", "?key=S3CRET").replace("//...@", "//S3CRET:S3CRET@");
        let again = parse(&restored).unwrap_or_else(|errors| panic!("{errors}\n{restored}"));
        assert_eq!(again.to_yaml(), printed);
    }
    for text in [
        provider_with("jwks_uri: 'https://S3CRET@i.example/keys'"),
        provider_with("jwks_uri: 'ftp://i.example/keys?S3CRET'"),
        provider_with("jwks_uri: 'https://i.example/keys?S3CRET#x'"),
        provider_with("jwks_uri: 'http://i.example/keys?S3CRET'"),
        provider_with("http: {proxy: 'http://proxy.example/?S3CRET'}"),
        format!("{MINIMAL}responses: {{resource_metadata: 'https://S3CRET@api.example/m'}}\n"),
        MINIMAL.replace("https://sso.example.com", "'https://sso.example.com/?S3CRET'"),
    ] {
        let errors = parse(&text).expect_err("refused");
        assert!(!errors.contains("S3CRET"), "{errors}");
    }
}

#[test]
fn a_nested_variable_is_an_error_with_its_name_and_place() {
    let mut errors = Errors::default();
    for value in ["'${A:-${B}}'", "'${A:-${B:-S3CRET}}'", "'x${A:-$${B}}'", "'${A${B}}'", "'${A:-${B}'"] {
        let text = format!("{MINIMAL}rules:\n  - {{name: r, deny: true, match: {{path: {value}}}}}\n");
        errors.of(&text);
        let errors = parse(&text).expect_err("refused");
        assert!(!errors.contains("S3CRET"), "{errors}");
    }
    let set = Config::parse(&provider_with("realm: '${A:-${B}}'"), &|_| Some("set".to_owned()));
    assert!(set.is_err(), "also if the first is set, so that the result does not depend on the environment");
    errors.compare("a_nested_variable_is_an_error_with_its_name_and_place");
}

#[test]
fn an_error_never_shows_a_secret() {
    for keys in [
        "{kty: oct, k: U0VDUkVU}",
        "{kty: oct, k: U0VDUkVU, k: U0VDUkVU}",
        "{kty: oct, k: [U0VDUkVU]}",
        "{kty: RSA, n: U0VDUkVU, e: AQAB, d: U0VDUkVU}",
        "U0VDUkVU",
        "&U {kty: oct, k: U0VDUkVU}",
    ] {
        let text = provider_with(&format!("jwks: {{keys: [{keys}]}}\n    algorithms: [HS256]"));
        let errors = parse(&text).expect_err("no sound key");
        assert!(!errors.contains("U0VDUkVU"), "{errors}");
    }
}

#[test]
fn values_are_typed_after_their_variables_are_expanded() {
    let text = format!("{MINIMAL}responses: {{keys_unavailable_status: \"${{STATUS}}\"}}\n");
    assert!(parse(&text).is_err(), "a quoted number is a string");
    for (status, expected) in [("${STATUS}", 429), ("${OTHER:-500}", 500)] {
        let text = format!("{MINIMAL}responses:\n  keys_unavailable_status: {status}\n");
        let config = parse(&text).expect("the status is a number after expansion");
        assert_eq!(config.responses.keys_unavailable_status, expected);
    }
}

#[test]
fn an_address_may_be_localhost_or_a_port_alone() {
    for (written, address) in
        [("localhost:9193", "127.0.0.1:9193"), ("':9191'", "0.0.0.0:9191"), ("'[::]:9191'", "[::]:9191")]
    {
        let config = parse(&MINIMAL.replace("127.0.0.1:0", written)).expect("an address");
        let BindAddress::Tcp(read) = config.listen.ext_authz[0].address else { panic!("no address") };
        assert_eq!(read.to_string(), address);
    }
}

#[test]
fn a_socket_file_may_have_a_mode() {
    let text = MINIMAL.replace("127.0.0.1:0", "{address: 'unix:/run/p.sock', mode: \"0660\"}");
    let config = parse(&text).expect("a socket file with a mode is valid");
    let BindAddress::Unix { mode, .. } = config.listen.ext_authz[0].address else {
        panic!("not a socket file")
    };
    assert_eq!(mode, Some(0o660));
}

#[test]
fn every_error_is_reported_at_once_with_its_place() {
    let mut errors = Errors::default();
    errors.of("
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
");
    errors.compare("every_error_is_reported_at_once_with_its_place");
}

#[test]
fn keys_of_later_versions_are_known_as_such_and_never_ignored() {
    let mut errors = Errors::default();
    errors.of(
        "
listen:
  ext_authz: 127.0.0.1:0
  forward_auth: {address: 127.0.0.1:0, profile: nginx, client_certificate: {header: client-cert, format: rfc9440}}
  admin: {address: 127.0.0.1:0, allow_refresh: true}
providers:
  - name: p
    issuer: https://sso.example.com
    audiences: [a]
    introspection: {uri: https://sso.example.com/introspect}
    sender_constraint: {dpop: enforce}
    distrust_file: /d
    external_url: https://api.example.com
rules:
  - name: r
    require: {acr: [phr], max_age: 5m}
    stream_lifetime: token
    mode: shadow
    external_url: https://api.example.com
    resource: none
responses: {decision_id_header: x-decision-id}
resources: []
mode: shadow
revocation: {clients: [a]}
tracing: {otlp_endpoint: http://collector:4317}
audit: {path: '-'}
",
    );
    errors.compare("keys_of_later_versions_are_known_as_such_and_never_ignored");
}

#[test]
fn an_error_shows_no_part_of_a_variable_in_any_case_and_no_name_of_another_provider() {
    let secret = "hunter2-very_secret + 2";
    let with = |rule: &str| format!("{MINIMAL}rules:\n  - {{name: r, {rule}}}\n");
    for text in [
        with("match: {methods: ['${S}']}, deny: true"),
        with("require: {condition: '${S}'}"),
        with("require: {condition: '${S}(\"x\")'}"),
        with("providers: [x]").replace("name: p", "name: '${S}'"),
        provider_with("clock_skew: '${S}'"),
    ] {
        let errors = Config::parse(&text, &|_| Some(secret.to_owned())).expect_err("refused").to_string();
        assert!(!errors.to_ascii_lowercase().contains("hunter2"), "{errors}");
    }
}

#[test]
fn unmatchable_patterns_and_redacted_values_are_errors() {
    let mut errors = Errors::default();
    for text in [
        format!(
            "{MINIMAL}rules:\n  - name: r\n    match:\n      path_regex: |\n        /internal/.*\n    deny: true\n"
        ),
        format!("{MINIMAL}rules:\n  - {{name: r, match: {{path_regex: '/a b'}}, deny: true}}\n"),
        format!("{MINIMAL}responses: {{headers: {{expired: {{X-A: '1', x-a: '2'}}}}}}\n"),
        provider_with("jwks_uri: 'https://i.example/keys?...'"),
        provider_with("http: {proxy: 'http://...@proxy.example:3128'}"),
    ] {
        errors.of(&text);
    }
    errors.compare("unmatchable_patterns_and_redacted_values_are_errors");
    let explicit = provider_with("any_audience: false");
    assert_eq!(parse(&explicit).expect("valid").warnings, []);
}

#[test]
fn at_most_a_hundred_errors_are_reported_and_the_rest_is_counted() {
    let rules = "  - {nam: r}\n".repeat(500);
    let errors = Config::parse(&format!("{MINIMAL}rules:\n{rules}"), &|_| None).expect_err("refused");
    assert_eq!(errors.iter().count(), 101);
    assert_eq!(errors.to_string().lines().last(), Some("900 more errors are not shown: correct these first"));
    let long: String = (0..500).map(|i| format!("  - {{name: r{i}, allow: anonymous}}\n")).collect();
    let warnings = parse(&format!("{MINIMAL}rules:\n{long}")).expect("valid").warnings;
    assert_eq!(warnings.len(), 101);
}

#[test]
fn invalid_provider_values_are_errors_with_their_place() {
    let mut errors = Errors::default();
    let unasked = format!("jwks: {{keys: [{{kty: oct, k: {SECRET}}}]}}");
    for line in [
        "any_audience: true",
        "any_audience: yes",
        "jwks_uri: ftp://x/y",
        "jwks_uri: https://u:p@x/y",
        "jwks_uri: /keys",
        "jwks_uri: 'https://x/#f'",
        "algorithms: []",
        "algorithms: [RS256, RS256]",
        "algorithms: [none]",
        "algorithms: [rs256]",
        "algorithms: [HS256]",
        "clock_skew: -1s",
        "clock_skew: 11m",
        "clock_skew: 99999999999999999999s",
        "clock_skew: 9999999999999999999h",
        "token_types: []",
        "required_claims: tenant_id",
        "required_claims: ['/a~2']",
        "token_from: []",
        "token_from: [{cookie: a, query: b}]",
        "token_from: [{cookie: 'a b'}]",
        "ready_without_keys: 1",
        "forward_token: 1",
        "claim_headers: {host: sub}",
        "claim_headers: {':path': sub}",
        "claim_headers: {Content-Length: sub}",
        "claim_headers: {transfer-encoding: sub}",
        "claim_headers: {x_user: sub}",
        "claim_headers: {x-user: ''}",
        "claim_headers: {x-user: sub, X-User: sub}",
        "refresh: {min_spacing: 0s}",
        "refresh: {interval: 1s, min_spacing: 2s}",
        "refresh: {max_stale: 1m}",
        "refresh: {max_waiters: 0}",
        "refresh: {max_waiting_bytes: 1000KiB}",
        "refresh: {max_bytes: 1TB}",
        "refresh: {max_bytes: 65GiB}",
        "jwks: {keys: []}",
        "jwks: []",
        "jwks: {keys: [{kty: oct, k: c2hvcnQ}]}",
        "jwks: {keys: [{kty: EC, crv: P-256, x: AA, y: AA}]}",
        "jwks: {keys: [{kty: oct, kid: 2024, k: x}]}",
        "jwks: {keys: 1}",
        "jwks: '{\"keys\": []}'",
        &unasked,
        "refresh: {interval: 500ms}",
        "refresh: {interval: 25h}",
        "refresh: {timeout: 0s}",
        "refresh: [1]",
        "refresh: {wait: [2s]}",
        "refresh: {wait: *x}",
        "clock_skew: !!str 1s",
        "clock_skew: {a: 1",
        "clock_skew: 'x",
        "jwks_uri: http:/x/y",
        "jwks_uri: \"http://x\\n/y\"",
        "jwks_file: /tmp\n    jwks_uri: http://x/y",
        "token_types: [JWT, application/jwt]",
        "token_types: [application/]",
        "token_types: ['a b']",
        "token_from: [{header: X-T, scheme: A}, {header: x-t, scheme: a}]",
        "token_from: [{header: X-T}, {header: x-t}]",
        "token_from: [{query: 'a%5Fb'}]",
        "token_from: [{query: 'a+b'}]",
        "token_from: [{cookie: a}, {cookie: a}]",
        "token_from: [{header: Cookie}]",
        "token_from: [{header: Connection}]",
        "token_from: [{header: X-Forwarded-Uri}]",
        "token_from: [{query: a, scheme: b}]",
        "claim_headers: {x-token: sub}\n    token_from: [{header: X_Token}]",
        "payload_header: x-token\n    token_from: [{header: x~token, scheme: a}]",
        "claim_headers: {1: sub}",
        "claim_headers: {x.user: sub}",
        "claim_headers: {proxy: sub}",
        "claim_headers: {x-envoy-auth: sub}",
        "claim_headers: {cookie: sub}",
        "claim_headers: {Set-Cookie: sub}",
        "claim_headers: {x-accel-redirect: sub}",
        "claim_headers: {x-rewrite-url: sub}",
        "claim_headers: {x-http-method-override: sub}",
        "required_claims: {a: b}",
        "allow_http: 1",
        "jwks_uri: http://keys.example.com/k",
        "jwks_uri: http://127.0.0.1.example.com/k",
        "jwks_uri: http://169.254.169.254/k",
        "discovery_uri: http://keycloak:8080/d",
        "http: [1]",
        "http: {ca: x}",
        "http: {proxy: 'socks4://p:1'}",
        "http: {proxy: 'proxy:3128'}",
        "http: {proxy: 'http://p/path'}",
        "http: {proxy: 'http://p?a=b'}",
        "http: {client_cert_file: /c.pem}",
        "http: {client_key_file: /c.pem}",
        "http: {ca_file: ''}",
        "refresh: {snapshot_dir: }",
        "\"a\\nb\": 1",
        "jwks_file: ",
        "name2: ${NOT_SET}",
        "clock_skew: ${NOT_SET}",
    ] {
        errors.of(&provider_with(line));
    }
    errors.compare("invalid_provider_values_are_errors_with_their_place");
}

#[test]
fn an_http_listener_has_an_address_and_a_profile_and_there_may_be_several() {
    let mut errors = Errors::default();
    let with = |listeners: &str| {
        MINIMAL.replace(
            "{ext_authz: 127.0.0.1:0}",
            &format!("{{ext_authz: 127.0.0.1:0, forward_auth: {listeners}}}"),
        )
    };
    let one = parse(&with("{address: 0.0.0.0:9192, profile: nginx}")).expect("one mapping");
    assert_eq!(one.listen.forward_auth[0].profile, Profile::Nginx);
    let two = "[{address: 127.0.0.1:1, profile: caddy}, {address: 127.0.0.1:2, profile: envoy}]";
    let listeners = parse(&with(two)).expect("a list").listen.forward_auth;
    assert_eq!(
        listeners.iter().map(|listener| listener.profile).collect::<Vec<_>>(),
        [Profile::Caddy, Profile::Envoy]
    );
    for listeners in [
        "{profile: nginx}",
        "{address: 127.0.0.1:1}",
        "127.0.0.1:1",
        "{address: 127.0.0.1:1, profile: apache}",
        "{address: 'unix:/x', profile: nginx}",
        "[{address: 127.0.0.1:1, profile: nginx, mode: a}]",
        "{address: 127.0.0.1:1, profile: nginx, tls: {cert_file: /c}}",
    ] {
        errors.of(&with(listeners));
    }
    errors.compare("an_http_listener_has_an_address_and_a_profile_and_there_may_be_several");
}

#[test]
fn trusted_proxies_are_networks_or_addresses() {
    let mut errors = Errors::default();
    let with = |networks: &str| format!("{MINIMAL}trusted_proxies: {networks}\n");
    let default = parse(MINIMAL).expect("valid").trusted_proxies;
    let loopback = |text: &str| {
        default.iter().any(|net| net.contains(&text.parse::<std::net::IpAddr>().expect("an address")))
    };
    assert!(loopback("127.0.0.1") && loopback("127.9.9.9") && loopback("::1") && !loopback("10.0.0.1"));
    let some = parse(&with("[10.0.0.0/8, 192.0.2.7, 'fd00::/8']")).expect("valid").trusted_proxies;
    assert_eq!(
        some.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"]
    );
    assert_eq!(parse(&with("[]")).expect("valid").trusted_proxies, []);
    for networks in ["[10.0.0.1/8]", "[localhost]", "[10.0.0.0/33]", "10.0.0.0/8"] {
        errors.of(&with(networks));
    }
    errors.compare("trusted_proxies_are_networks_or_addresses");
}

#[test]
fn plain_http_is_allowed_for_loopback_only_unless_configured() {
    let mut errors = Errors::default();
    for keys in [
        "jwks_uri: http://localhost:8080/k",
        "jwks_uri: http://127.0.0.53/k",
        "jwks_uri: 'http://[::1]:8080/k'",
        "jwks_uri: 'http://[::ffff:127.0.0.1]/k'",
        "discovery_uri: http://localhost/d",
        "jwks_uri: https://keys.example.com/k",
        "jwks_uri: http://keys.example.com/k\n    allow_http: true",
    ] {
        assert!(parse(&provider_with(keys)).is_ok(), "{keys}");
    }
    let discovered_by_http = MINIMAL.replace("https://sso", "http://sso");
    errors.of(&discovered_by_http);
    assert!(parse(&format!("{discovered_by_http}    allow_http: true\n")).is_ok());
    errors.compare("plain_http_is_allowed_for_loopback_only_unless_configured");
}

#[test]
fn a_proxys_password_is_never_printed() {
    let text = provider_with("http: {proxy: 'http://anna:hunter2@proxy.example.com:3128'}");
    let config = parse(&text).expect("a proxy may have credentials");
    let ForwardProxy::Url(proxy) = &config.providers[0].http.proxy else { panic!("a proxy") };
    assert_eq!(proxy.with_credentials().password(), Some("hunter2"));
    let printed = config.to_yaml();
    assert!(printed.contains("proxy.example.com:3128"), "{printed}");
    for text in [printed, format!("{config:?}")] {
        assert!(!text.contains("hunter2") && !text.contains("anna"), "{text}");
    }
}

#[test]
fn duplicate_providers_are_errors_even_if_one_is_invalid_elsewhere() {
    let mut errors = Errors::default();
    let twice =
        format!("{MINIMAL}  - {{name: p, issuer: 'https://sso.example.com', audiences: [], color: red}}\n");
    errors.of(&twice);
    errors.compare("duplicate_providers_are_errors_even_if_one_is_invalid_elsewhere");
}

#[test]
fn a_trust_domain_has_a_name_its_own_keys_and_algorithms_of_its_tokens() {
    let mut errors = Errors::default();
    let keys = "jwks_file: bundle.json";
    let spiffe = |name: &str| MINIMAL.replace("issuer: https://sso.example.com", &format!("spiffe: {name}"));
    errors.of(&spiffe("example.org"));
    errors.of(&format!("{}    discovery_uri: https://example.org/d\n", spiffe("example.org")));
    for name in ["'spiffe://example.org'", "Example.org", "example.org/a", "'example.org:443'", "'{realm}'"] {
        errors.of(&format!("{}    {keys}\n", spiffe(name)));
    }
    for line in ["algorithms: [ES256, EdDSA]", "realms: [a]", "issuer: https://sso.example.com"] {
        errors.of(&format!("{}    {keys}\n    {line}\n", spiffe("example.org")));
    }
    for other in ["spiffe: example.org", "issuer: 'spiffe://example.org'"] {
        let other = format!("  - {{name: q, {other}, {keys}, audiences: [a]}}\n");
        errors.of(&format!("{}    {keys}\n{other}", spiffe("example.org")));
    }
    let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    let svid = format!("jwks: {{keys: [{{kty: OKP, crv: Ed25519, use: jwt-svid, x: {x}}}]}}");
    errors.of(&provider_with(&svid));
    errors.compare("a_trust_domain_has_a_name_its_own_keys_and_algorithms_of_its_tokens");
}

#[test]
fn every_element_of_a_list_is_checked() {
    let mut errors = Errors::default();
    let text = provider_with(
        "algorithms: [none, RS256, rs256, RS256]
    required_claims: ['/~', a, '']
    token_from:
      - {cookie: 'a b'}
      - {header: a}
      - {header: A}
    claim_headers: {host: sub, x_a: '/~', x-b: sub}",
    );
    errors.of(&text);
    errors.compare("every_element_of_a_list_is_checked");
}

#[test]
fn shared_secrets_require_their_algorithms_and_the_reverse() {
    let mut errors = Errors::default();
    let with = |algorithms: &str, keys: &str| {
        provider_with(&format!("algorithms: [{algorithms}]\n    jwks:\n      keys:\n{keys}"))
    };
    let secret = format!("      - {{kty: oct, k: {SECRET}}}\n");
    let named = format!("      - {{kty: oct, alg: HS256, k: {SECRET}}}\n");
    let okp = "      - {kty: OKP, crv: Ed25519, x: 11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo}\n";
    for (algorithms, keys) in [
        ("HS256", secret.clone()),
        ("HS256, EdDSA", format!("{okp}{secret}")),
        ("ES256, EdDSA", okp.to_owned()),
    ] {
        let text = with(algorithms, &keys);
        assert!(parse(&text).is_ok(), "{text}: {:?}", parse(&text));
    }
    for (algorithms, keys) in [
        ("HS512", secret.clone()),
        ("HS256, HS384", named.clone()),
        ("HS256", okp.to_owned()),
        ("EdDSA", format!("{okp}{named}")),
        ("RS256", okp.to_owned()),
        ("HS256", format!("{secret}      - {{kty: oct, k: c2hvcnQ}}\n")),
    ] {
        errors.of(&with(algorithms, &keys));
    }
    errors.compare("shared_secrets_require_their_algorithms_and_the_reverse");
}

#[test]
fn discovery_requires_an_issuer_that_is_a_plain_url() {
    let mut errors = Errors::default();
    for issuer in [
        "acme",
        "https://u:p@sso.example.com",
        "https://sso.example.com?tenant=a",
        "'https://sso.example.com#a'",
        "ftp://sso.example.com",
    ] {
        let text = MINIMAL.replace("https://sso.example.com", issuer);
        errors.of(&text);
        let text = format!("{text}    jwks_uri: https://sso.example.com/keys\n");
        assert!(parse(&text).is_ok(), "an issuer without discovery may be any string: {issuer}");
    }
    let text = MINIMAL.replace("https://sso.example.com", "https://sso.example.com/realms/a/");
    let config = parse(&text).expect("the issuer is a URL");
    let KeySource::Discovery(url) = &config.providers[0].keys else { panic!("not discovered") };
    assert_eq!(url.path(), "/realms/a/.well-known/openid-configuration");
    assert_eq!(config.providers[0].provider.issuer, "https://sso.example.com/realms/a/");
    errors.compare("discovery_requires_an_issuer_that_is_a_plain_url");
}

#[test]
fn invalid_listeners_responses_limits_and_delays_are_errors_with_their_place() {
    let mut errors = Errors::default();
    let long = format!("listen: {{ext_authz: 'unix:/{}'}}", "x".repeat(107));
    let admin = |members: &str| format!("listen: {{ext_authz: '127.0.0.1:0', admin: {{{members}}}}}");
    let hosts = |hosts: &str| admin(&format!("address: '127.0.0.1:1', hosts: {hosts}"));
    let names = |members: &str| {
        format!(
            "listen: {{ext_authz: {{address: '127.0.0.1:1', tls: {{cert_file: a, key_file: b, {members}}}}}}}"
        )
    };
    for listener in [
        "listen: {ext_authz: 'host.example.com:1'}",
        "listen: {ext_authz: 'localhost:'}",
        "listen: {ext_authz: ':x'}",
        "listen: {ext_authz: '127.0.0.1'}",
        "listen: {ext_authz: '127.0.0.1:65536'}",
        "listen: {ext_authz: 'unix:run/x'}",
        "listen: {ext_authz: \"unix:/a\\0b\"}",
        &long,
        "listen: {ext_authz: []}",
        "listen: {ext_authz: [a]}",
        "listen: {ext_authz: [[]]}",
        "listen: {ext_authz: ['127.0.0.1:1', {address: '127.0.0.1:1'}]}",
        "listen: {ext_authz: ['unix:/x', '127.0.0.1:1', {address: 'unix:/x', mode: '0660'}]}",
        "listen: {ext_authz: {}}",
        "listen: {ext_authz: {address: '127.0.0.1:1', mode: '0660'}}",
        "listen: {ext_authz: {address: 'unix:/x', mode: '999'}}",
        "listen: {ext_authz: {address: 'unix:/x', mode: '01777'}}",
        "listen: {ext_authz: {address: '127.0.0.1:1', tls: {cert_file: a}}}",
        "listen: {ext_authz: '127.0.0.1:1', admin: '127.0.0.1:1'}",
        "listen: {ext_authz: 'unix:/x', forward_auth: {address: '127.0.0.1:1', profile: nginx}, admin: '127.0.0.1:1'}",
        "listen: {ext_authz: 'unix:/x', forward_auth: [{address: '[::]:1', profile: nginx}, {address: '[::]:1', profile: envoy}]}",
        &admin("hosts: [a]"),
        &admin("address: ops:1"),
        &admin("address: '127.0.0.1:1', allow_refresh: true"),
        &hosts("[]"),
        &hosts("ops.example.com"),
        &hosts("[Ops.example.com]"),
        &hosts("['ops.example.com:9193']"),
        &hosts("['https://ops.example.com']"),
        &hosts("['*.example.com']"),
        &hosts("[ops.example.com.]"),
        &hosts("['10.0.0.1']"),
        &hosts("['[::1]']"),
        &hosts("[a.example, a.example]"),
        &names("client_names: [a]"),
        &names("client_ca_file: c, client_names: []"),
        &names("client_ca_file: c, client_names: ['*.a']"),
        &names("client_ca_file: c, client_names: ['a:1']"),
        &names("client_ca_file: c, client_names: ['10.0.0.1']"),
        &names("client_ca_file: c, client_names: [a, A]"),
        "listen:",
    ] {
        errors.of(&MINIMAL.replace("listen: {ext_authz: 127.0.0.1:0}", listener));
    }
    let long = format!("responses: {{realm: {}}}", "x".repeat(129));
    for line in [
        "responses: {realm: 'a\"b'}",
        "responses: {realm: é}",
        "responses: {realm: ''}",
        &long,
        "responses: {keys_unavailable_status: 399}",
        "responses: {keys_unavailable_status: 5e2}",
        "responses: {keys_unavailable_status: '503'}",
        "limits: {token_bytes: 0}",
        "limits: {token_bytes: 99999999999999999999}",
        "limits: {token_values: 63}",
        "limits: {token_values: 4KiB}",
        "limits: {token_depth: 65}",
        "limits: {message_bytes: 63KiB}",
        "limits: {message_bytes: 1025MiB}",
        "limits: {connections: 0}",
        "limits: {connections: 1000001}",
        "limits: {claim_header_bytes: 49KiB}",
        "shutdown: {grace: 11m}",
        "shutdown: {drain_delay: 3}",
        "log: {format: xml}",
        "log: {level: INFO}",
        "log: {level: '${NOT_SET}'}",
        "log: {level: ${NOT_SET}}",
        "log: {level: '${open'}",
        "Log: {}",
        "1: x",
        "null: x",
        "? [a]\n: x",
        "limits: {'<<': {token_bytes: 1KiB}}",
        "log: !!map {}",
    ] {
        errors.of(&format!("{MINIMAL}{line}\n"));
    }
    errors.compare("invalid_listeners_responses_limits_and_delays_are_errors_with_their_place");
}

#[test]
fn yaml_errors_are_reported_together_with_all_others() {
    let mut errors = Errors::default();
    errors.of("listen: {ext_authz: 127.0.0.1:0}
listen: {}
providers: &all
  - name: p
    name: q
    issuer: https://i
    audiences: *all
log: {level: loud}
");
    errors.compare("yaml_errors_are_reported_together_with_all_others");
}

#[test]
fn a_variable_never_becomes_structure() {
    let jwks = format!(r#"{{"keys": [{{"kty": "oct", "k": "{SECRET}"}}]}}"#);
    for (line, value, message) in [
        ("jwks: ${V}", &*jwks, "JWK Set"),
        ("audiences2: ${V}", "[a]", "unknown key"),
        ("algorithms: ${V}", "[RS256]", "a list"),
        ("clock_skew: ${V}", "1s\nany_audience: true", "with its unit"),
    ] {
        let read = Config::parse(&provider_with(line), &|_| Some(value.to_owned()));
        let errors = read.expect_err("a list or a mapping is not to be had from a variable").to_string();
        assert!(errors.contains(message), "{line}: {errors}");
        assert!(!errors.contains(SECRET), "{errors}");
    }
    let text = MINIMAL.replace("[a]", "['x${V}y', \"$${V}\", '${V}']");
    let config = Config::parse(&text, &|_| Some("1, b: [c] # d".to_owned())).expect("is text");
    let expected = ["x1, b: [c] # dy", "${V}", "1, b: [c] # d"].map(str::to_owned);
    assert_eq!(config.providers[0].provider.audiences, Audiences::AnyOf(expected.to_vec()));
}

#[test]
fn a_huge_file_is_an_error_or_is_read() {
    let many = |line: &str| line.repeat(10_001);
    let keys: String = (0..1001).map(|i| format!("k{i}: 1\n")).collect();
    let longest = 1 << 20;
    for (text, message) in [
        (keys, "more than 1000 entries"),
        (provider_with(&format!("token_types: [{}]", many("a,"))), "more than 10000 entries"),
        (format!("{MINIMAL}{}", many("  - {}\n")), "more than 10000 entries"),
        ("#".repeat(longest + 1), "longer than"),
        ("#".repeat(longest), "empty"),
        (format!("{}: 1", "k".repeat(1000)), "unknown key"),
        ("[".repeat(longest), "not YAML"),
        ("? ".repeat(longest / 2), "nested too deeply"),
        ("- ".repeat(longest / 2), "nested too deeply"),
        (format!("a: {}", "\n".repeat(longest - 3)), "unknown key"),
        (format!("log: {{level: '{}'}}", "${".repeat(longest / 2 - 10)), "without `}`"),
    ] {
        let errors = Config::parse(&text, &|_| None).expect_err("refused").to_string();
        assert!(errors.contains(message), "{text:.40}: {errors:.300}");
    }
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_are_read() {
    let text = format!("\u{feff}{}", MINIMAL.trim_start().replace('\n', "\r\n"));
    assert!(parse(&text).is_ok(), "{:?}", parse(&text));
}

#[test]
fn anything_but_one_plain_document_is_an_error() {
    let deep = "[".repeat(100_000);
    let block = (0..1000).map(|i| format!("{}a:\n", " ".repeat(i))).collect::<String>();
    let mut errors = Errors::default();
    for text in [
        "",
        "# nothing\n",
        "listen",
        "a: &x b\n*x : 1",
        "a: !!str 1",
        "a: 1\na: 2",
        "? [a]\n: 1",
        "a: 1\n---\nb: 2",
        "a: \"",
        "a:\n\t- 1",
        &deep,
        &block,
    ] {
        errors.of(text);
    }
    errors.compare("anything_but_one_plain_document_is_an_error");
}

#[test]
fn validate_prints_every_error_with_file_line_and_path_and_exits_with_1() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("p.yaml");
    let text = provider_with("jwks_file: /does/not/exist");
    std::fs::write(&file, &text).expect("the file can be written");
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_portcullis")).arg("validate").args(args).run_and_read();
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
        errors.starts_with(&format!("{path}:7:16: providers[0].jwks_file: /does/not/exist cannot be read: ")),
        "{errors}"
    );

    std::fs::write(&file, MINIMAL).expect("the file can be written");
    let (code, output, _) = run(&["--config", path]);
    assert_eq!((code, output.contains("is valid: 1 provider(s): p")), (Some(0), true), "{output}");
    let (code, output, _) = run(&["--config", path, "--print"]);
    assert_eq!((code, output.contains("max_stale: 24h")), (Some(0), true), "{output}");

    std::fs::write(&file, provider_with("jwks_file: /")).expect("the file can be written");
    let (code, _, errors) = run(&["--config", path]);
    assert_eq!((code, errors.contains("/ cannot be read: not a file")), (Some(1), true), "{errors}");

    std::fs::write(&file, "a: 1\nb: &x 2\nc: *x\n").expect("the file can be written");
    let (_, _, errors) = run(&["--config", path]);
    assert!(errors.lines().all(|line| line.starts_with(&format!("{path}:"))), "{errors}");
    assert!(
        errors.contains(&format!("{path}:2:4: c: unknown key")) || errors.contains(":3:1: c: unknown"),
        "{errors}"
    );
    assert_eq!(errors.lines().count(), 5, "{errors}");

    std::fs::write(&file, b"a: 1\nb: \xff\xfe").expect("the file can be written");
    let (code, _, errors) = run(&["--config", path]);
    assert_eq!((code, errors.contains("not UTF-8 text: line 2")), (Some(1), true), "{errors}");
    assert_eq!(run(&["--config", directory.path().to_str().expect("text")]).0, Some(1));
    assert_eq!(run(&["--config", "/does/not/exist"]).0, Some(1));
    std::fs::write(&file, vec![b'#'; 2 << 20]).expect("the file can be written");
    let (code, _, errors) = run(&["--config", path]);
    assert_eq!((code, errors.contains("longer than")), (Some(1), true), "{errors}");
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _result = parse(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_text_makes_the_reader_panic(
        text in "([\\[\\]{}:,&*!|>'\"%@`#\n\r\t\u{85}\u{2028}\u{feff}\u{0} ?a~$.0-]|\\PC){0,60}",
    ) {
        let _result = parse(&text);
    }

    #[test]
    fn any_value_is_printed_in_a_form_that_reads_back(
        issuer in any::<String>(),
        audience in any::<String>(),
        claim in any::<String>(),
    ) {
        let quoted = |text: &str| serde_json::Value::from(text.replace("${", "$${")).to_string();
        let text = format!(
            "listen: {{ext_authz: 127.0.0.1:0}}
providers: [{{name: p, issuer: {}, audiences: [{}], jwks_uri: 'https://i', required_claims: [{}]}}]",
            quoted(&issuer), quoted(&audience), quoted(&claim),
        );
        if let Ok(config) = parse(&text) {
            let printed = config.to_yaml();
            let again = parse(&printed).map_err(|errors| TestCaseError::fail(format!("{errors}\n{printed}")))?;
            prop_assert_eq!(&again.providers[0].provider, &config.providers[0].provider);
        }
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
