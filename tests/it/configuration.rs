//! The configuration, from text to what runs or to everything that is wrong. Nothing is served here.

mod dangers;
mod printed;
mod realms;
mod rules;
mod schema;

use std::process::Command;

use portcullis::config::{BindAddress, Config, KeySource, Profile, RefreshPolicy};
use portcullis::validation::algorithm::Algorithm;
use portcullis::validation::provider::{Audiences, TokenSource};
use proptest::prelude::*;

const EXAMPLE: &str = include_str!("../../deploy/portcullis.yaml");

const MINIMAL: &str = "
listen: {ext_authz: 127.0.0.1:0}
providers:
  - name: p
    issuer: https://sso.example.com
    audiences: [a]
";

/// 35 bytes in base64url: long enough for HS256 and too short for HS384.
const SECRET: &str = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldCE";

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
    let [file, tls, plain] = &*config.listen.ext_authz else { panic!("three doors") };
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
    assert!(parse(&printed).is_err(), "a key without its material is no key");
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
        assert!(printed.contains("shown; restore"), "that it is left out is said: {printed}");
        let again = parse(&printed).unwrap_or_else(|errors| panic!("{errors}\n{printed}"));
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
fn a_variable_within_a_variable_is_refused_by_its_name_where_it_stands() {
    for value in ["'${A:-${B}}'", "'${A:-${B:-S3CRET}}'", "'x${A:-$${B}}'", "'${A${B}}'", "'${A:-${B}'"] {
        let text = format!("{MINIMAL}rules:\n  - {{name: r, deny: true, match: {{path: {value}}}}}\n");
        refused(&text, &[(8, "rules[0].match.path", "`${` inside `${A")]);
        let errors = parse(&text).expect_err("refused");
        assert!(!errors.contains("S3CRET"), "{errors}");
    }
    let set = Config::parse(&provider_with("realm: '${A:-${B}}'"), &|_| Some("set".to_owned()));
    assert!(set.is_err(), "also where the first is set, so that it does not depend on the environment");
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
    assert!(parse(&text).is_err(), "a quoted number is text");
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
            (4, "providers[0].name", "letters, digits"),
            (5, "providers[0].issuer", "cannot be discovered"),
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
    let later = format!("{MINIMAL}token_cache: {{entries: 0}}\ntracing: {{}}\n");
    refused(&later, &[(7, "token_cache", "not supported yet"), (8, "tracing", "not supported yet")]);
}

#[test]
fn a_wrong_value_of_a_provider_is_refused_where_it_stands() {
    let unasked = format!("jwks: {{keys: [{{kty: oct, k: {SECRET}}}]}}");
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
        ("algorithms: [HS256]", "algorithms", "inline `jwks`"),
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
        ("ready_without_keys: 1", "ready_without_keys", "`true` or `false`"),
        ("forward_token: 1", "forward_token", "`true` or `false`"),
        ("claim_headers: {host: sub}", "claim_headers.host", "belongs to HTTP"),
        ("claim_headers: {':path': sub}", "claim_headers.:path", "header name"),
        ("claim_headers: {Content-Length: sub}", "claim_headers.Content-Length", "belongs to HTTP"),
        ("claim_headers: {transfer-encoding: sub}", "claim_headers.transfer-encoding", "belongs to HTTP"),
        ("claim_headers: {x_user: sub}", "claim_headers.x_user", "with `-`"),
        ("claim_headers: {x-user: ''}", "claim_headers.x-user", "missing"),
        ("claim_headers: {x-user: sub, X-User: sub}", "claim_headers.X-User", "already"),
        ("refresh: {min_spacing: 0s}", "refresh.min_spacing", "duration from"),
        ("refresh: {interval: 1s, min_spacing: 2s}", "refresh.interval", "shorter than `min_spacing`"),
        ("refresh: {max_stale: 1m}", "refresh.max_stale", "shorter than `interval`"),
        ("refresh: {max_waiters: 0}", "refresh.max_waiters", "whole number"),
        ("refresh: {max_waiting_bytes: 1000KiB}", "refresh.max_waiting_bytes", "size from"),
        ("refresh: {max_bytes: 1TB}", "refresh.max_bytes", "a size"),
        ("refresh: {max_bytes: 65GiB}", "refresh.max_bytes", "size from"),
        ("jwks: {keys: []}", "jwks", "empty"),
        ("jwks: []", "jwks", "JWK Set"),
        ("jwks: {keys: [{kty: oct, k: c2hvcnQ}]}", "jwks.keys[0]", "shorter than its hash"),
        ("jwks: {keys: [{kty: EC, crv: P-256, x: AA, y: AA}]}", "jwks.keys[0]", "wrong length"),
        ("jwks: {keys: [{kty: oct, kid: 2024, k: x}]}", "jwks.keys[0]", "`kid` is not a string"),
        ("jwks: {keys: 1}", "jwks", "JWK Set"),
        ("jwks: '{\"keys\": []}'", "jwks", "JWK Set"),
        (&unasked, "jwks.keys[0]", "HS256, HS384 or HS512 in `algorithms`"),
        ("refresh: {interval: 500ms}", "refresh.interval", "(500ms) must not be shorter"),
        ("refresh: {interval: 25h}", "refresh.interval", "from 10ms to 24h"),
        ("refresh: {timeout: 0s}", "refresh.timeout", "from 10ms to 1m"),
        ("refresh: [1]", "refresh", "a mapping is expected"),
        ("refresh: {wait: [2s]}", "refresh.wait", "not a list or a mapping"),
        ("refresh: {wait: *x}", "refresh.wait", "no anchor has this alias's name so far"),
        ("clock_skew: !!str 1s", "clock_skew", "tags"),
        ("clock_skew: {a: 1", "", "not YAML"),
        ("clock_skew: 'x", "", "not YAML"),
        ("jwks_uri: http:/x/y", "jwks_uri", "http or https"),
        ("jwks_uri: \"http://x\\n/y\"", "jwks_uri", "http or https"),
        ("jwks_file: /tmp\n    jwks_uri: http://x/y", "", "keep one of them"),
        ("token_types: [JWT, application/jwt]", "token_types[1]", "second time"),
        ("token_types: [application/]", "token_types[0]", "media type"),
        ("token_types: ['a b']", "token_types[0]", "media type"),
        ("token_from: [{header: X-T, scheme: A}, {header: x-t, scheme: a}]", "token_from[1]", "second time"),
        ("token_from: [{header: X-T}, {header: x-t}]", "token_from[1]", "second time"),
        ("token_from: [{query: 'a%5Fb'}]", "token_from[0].query", "without them"),
        ("token_from: [{query: 'a+b'}]", "token_from[0].query", "without them"),
        ("token_from: [{cookie: a}, {cookie: a}]", "token_from[1]", "second time"),
        ("token_from: [{header: Cookie}]", "token_from[0].header", "write `cookie: NAME`"),
        ("token_from: [{header: Connection}]", "token_from[0].header", "the connection's or the proxy's own"),
        (
            "token_from: [{header: X-Forwarded-Uri}]",
            "token_from[0].header",
            "the connection's or the proxy's own",
        ),
        ("token_from: [{query: a, scheme: b}]", "token_from[0]", "one of"),
        (
            "claim_headers: {x-token: sub}\n    token_from: [{header: X_Token}]",
            "claim_headers.x-token",
            "a token comes",
        ),
        (
            "payload_header: x-token\n    token_from: [{header: x~token, scheme: a}]",
            "payload_header",
            "a token comes",
        ),
        ("claim_headers: {1: sub}", "claim_headers.1", "must be text"),
        ("claim_headers: {x.user: sub}", "claim_headers[\"x.user\"]", "with `-`"),
        ("claim_headers: {proxy: sub}", "claim_headers.proxy", "belongs to HTTP"),
        ("claim_headers: {x-envoy-auth: sub}", "claim_headers.x-envoy-auth", "belongs to HTTP"),
        ("claim_headers: {cookie: sub}", "claim_headers.cookie", "belongs to HTTP"),
        ("claim_headers: {Set-Cookie: sub}", "claim_headers.Set-Cookie", "belongs to HTTP"),
        ("claim_headers: {x-accel-redirect: sub}", "claim_headers.x-accel-redirect", "belongs to HTTP"),
        ("claim_headers: {x-rewrite-url: sub}", "claim_headers.x-rewrite-url", "belongs to HTTP"),
        (
            "claim_headers: {x-http-method-override: sub}",
            "claim_headers.x-http-method-override",
            "belongs to HTTP",
        ),
        ("required_claims: {a: b}", "required_claims", "a list"),
        ("allow_http: 1", "allow_http", "`true` or `false`"),
        ("jwks_uri: http://keys.example.com/k", "jwks_uri", "say `allow_http: true`"),
        ("jwks_uri: http://127.0.0.1.example.com/k", "jwks_uri", "use https"),
        ("jwks_uri: http://169.254.169.254/k", "jwks_uri", "use https"),
        ("discovery_uri: http://keycloak:8080/d", "discovery_uri", "use https"),
        ("http: [1]", "http", "a mapping is expected"),
        ("http: {ca: x}", "http.ca", "unknown key"),
        ("http: {proxy: 'socks5://p:1'}", "http.proxy", "forward proxy"),
        ("http: {proxy: 'proxy:3128'}", "http.proxy", "forward proxy"),
        ("http: {proxy: 'http://p/path'}", "http.proxy", "forward proxy"),
        ("http: {proxy: 'http://p?a=b'}", "http.proxy", "forward proxy"),
        ("http: {client_cert_file: /c.pem}", "http", "belong together"),
        ("http: {client_key_file: /c.pem}", "http", "belong together"),
        ("http: {ca_file: ''}", "http.ca_file", "missing"),
        ("refresh: {snapshot_dir: }", "refresh.snapshot_dir", "missing"),
        ("\"a\\nb\": 1", "[\"a\\nb\"]", "unknown key"),
        ("jwks_file: ", "jwks_file", "missing"),
        ("name2: ${NOT_SET}", "name2", "did you mean `name`"),
        ("clock_skew: ${NOT_SET}", "clock_skew", "NOT_SET is not set"),
    ] {
        let text = provider_with(line);
        if message == "not YAML" {
            let errors = Config::parse(&text, &|_| None).expect_err("not YAML");
            assert!(errors.to_string().contains(message), "{line}: {errors}");
            continue;
        }
        let path = match path {
            "" => "providers[0]".to_owned(),
            key if key.starts_with('[') => format!("providers[0]{key}"),
            key => format!("providers[0].{key}"),
        };
        let line_number = match &*path {
            "providers[0].audiences" => 6,
            "providers[0]" => 4,
            _ => 7,
        };
        refused(&text, &[(line_number, &path, message)]);
    }
}

#[test]
fn an_http_door_has_an_address_and_a_profile_and_there_may_be_several() {
    let with = |doors: &str| {
        MINIMAL.replace(
            "{ext_authz: 127.0.0.1:0}",
            &format!("{{ext_authz: 127.0.0.1:0, forward_auth: {doors}}}"),
        )
    };
    let one = parse(&with("{address: 0.0.0.0:9192, profile: nginx}")).expect("one mapping");
    assert_eq!(one.listen.forward_auth[0].profile, Profile::Nginx);
    let two = "[{address: 127.0.0.1:1, profile: caddy}, {address: 127.0.0.1:2, profile: envoy}]";
    let doors = parse(&with(two)).expect("a list").listen.forward_auth;
    assert_eq!(doors.iter().map(|door| door.profile).collect::<Vec<_>>(), [Profile::Caddy, Profile::Envoy]);
    for (doors, path, message) in [
        ("{profile: nginx}", "listen.forward_auth", "`address` is missing"),
        ("{address: 127.0.0.1:1}", "listen.forward_auth", "`profile` is missing"),
        ("127.0.0.1:1", "listen.forward_auth", "a mapping is expected"),
        ("{address: 127.0.0.1:1, profile: apache}", "listen.forward_auth.profile", "nginx, haproxy, caddy"),
        ("{address: 'unix:/x', profile: nginx}", "listen.forward_auth.address", "an IP address and a port"),
        ("[{address: 127.0.0.1:1, profile: nginx, mode: a}]", "listen.forward_auth[0].mode", "unknown key"),
        (
            "{address: 127.0.0.1:1, profile: nginx, tls: {cert_file: /c}}",
            "listen.forward_auth.tls",
            "`key_file`",
        ),
    ] {
        refused(&with(doors), &[(2, path, message)]);
    }
}

#[test]
fn trusted_proxies_are_networks_or_addresses() {
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
    assert_eq!(parse(&with("[]")).expect("nobody is fine too").trusted_proxies, []);
    for (networks, path, message) in [
        ("[10.0.0.1/8]", "trusted_proxies[0]", "write 10.0.0.0/8"),
        ("[localhost]", "trusted_proxies[0]", "a network or an address"),
        ("[10.0.0.0/33]", "trusted_proxies[0]", "a network or an address"),
        ("10.0.0.0/8", "trusted_proxies", "a list"),
    ] {
        refused(&with(networks), &[(7, path, message)]);
    }
}

#[test]
fn plain_http_is_for_this_machine_alone_unless_asked_for() {
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
    refused(&discovered_by_http, &[(5, "providers[0].issuer", "use https")]);
    assert!(parse(&format!("{discovered_by_http}    allow_http: true\n")).is_ok());
}

#[test]
fn a_proxys_password_is_never_printed() {
    let text = provider_with("http: {proxy: 'http://anna:hunter2@proxy.example.com:3128'}");
    let config = parse(&text).expect("a proxy may have credentials");
    let proxy = config.providers[0].http.proxy.as_ref().expect("a proxy");
    assert_eq!(proxy.with_credentials().password(), Some("hunter2"));
    let printed = config.to_yaml();
    assert!(printed.contains("proxy.example.com:3128"), "{printed}");
    for text in [printed, format!("{config:?}")] {
        assert!(!text.contains("hunter2") && !text.contains("anna"), "{text}");
    }
}

#[test]
fn providers_are_told_apart_even_where_one_is_wrong_elsewhere() {
    let twice =
        format!("{MINIMAL}  - {{name: p, issuer: 'https://sso.example.com', audiences: [], color: red}}\n");
    refused(
        &twice,
        &[
            (7, "providers[1].name", "in line 4, is this one's name already"),
            (7, "providers[1].issuer", "in line 5, has this issuer already"),
            (7, "providers[1].audiences", "any_audience: true"),
            (7, "providers[1].color", "unknown key"),
        ],
    );
}

#[test]
fn every_element_of_a_list_is_looked_at() {
    let text = provider_with(
        "algorithms: [none, RS256, rs256, RS256]
    required_claims: ['/~', a, '']
    token_from:
      - {cookie: 'a b'}
      - {header: a}
      - {header: A}
    claim_headers: {host: sub, x_a: '/~', x-b: sub}",
    );
    refused(
        &text,
        &[
            (7, "providers[0].algorithms[0]", "not a supported algorithm"),
            (7, "providers[0].algorithms[2]", "not a supported algorithm"),
            (7, "providers[0].algorithms[3]", "second time"),
            (8, "providers[0].required_claims[0]", "~0"),
            (8, "providers[0].required_claims[2]", "missing"),
            (10, "providers[0].token_from[0].cookie", "a name of"),
            (12, "providers[0].token_from[2]", "second time"),
            (13, "providers[0].claim_headers.host", "belongs to HTTP"),
            (13, "providers[0].claim_headers.x_a", "with `-`"),
            (13, "providers[0].claim_headers.x_a", "~0"),
        ],
    );
}

#[test]
fn shared_secrets_and_their_algorithms_go_together() {
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
    for (algorithms, keys, line, path, message) in [
        ("HS512", secret.clone(), 7, "algorithms", "no key of `jwks` can verify HS512"),
        ("HS256, HS384", named.clone(), 7, "algorithms", "no key of `jwks` can verify HS384"),
        ("HS256", okp.to_owned(), 7, "algorithms", "no key of `jwks` can verify HS256"),
        ("EdDSA", format!("{okp}{named}"), 11, "jwks.keys[1]", "name HS256, HS384 or HS512"),
        ("RS256", okp.to_owned(), 9, "jwks", "no key fits any of `algorithms`"),
        ("HS256", format!("{secret}      - {{kty: oct, k: c2hvcnQ}}\n"), 11, "jwks.keys[1]", "shorter than"),
    ] {
        refused(&with(algorithms, &keys), &[(line, &format!("providers[0].{path}"), message)]);
    }
}

#[test]
fn keys_are_discovered_only_below_an_issuer_that_is_a_plain_url() {
    for (issuer, message) in [
        ("acme", "absolute http or https URL"),
        ("https://u:p@sso.example.com", "user name or a password"),
        ("https://sso.example.com?tenant=a", "nothing below it"),
        ("'https://sso.example.com#a'", "no `#` part"),
        ("ftp://sso.example.com", "absolute http or https URL"),
    ] {
        let text = MINIMAL.replace("https://sso.example.com", issuer);
        refused(&text, &[(5, "providers[0].issuer", message)]);
        let text = format!("{text}    jwks_uri: https://sso.example.com/keys\n");
        assert!(parse(&text).is_ok(), "an issuer is any text where it is not fetched from: {issuer}");
    }
    let text = MINIMAL.replace("https://sso.example.com", "https://sso.example.com/realms/a/");
    let config = parse(&text).expect("the issuer is a URL");
    let KeySource::Discovery(url) = &config.providers[0].keys else { panic!("not discovered") };
    assert_eq!(url.path(), "/realms/a/.well-known/openid-configuration");
    assert_eq!(config.providers[0].provider.issuer, "https://sso.example.com/realms/a/");
}

#[test]
fn a_wrong_door_answer_limit_or_delay_is_refused_where_it_stands() {
    let long = format!("listen: {{ext_authz: 'unix:/{}'}}", "x".repeat(107));
    let admin = |members: &str| format!("listen: {{ext_authz: '127.0.0.1:0', admin: {{{members}}}}}");
    let hosts = |hosts: &str| admin(&format!("address: '127.0.0.1:1', hosts: {hosts}"));
    let names = |members: &str| {
        format!(
            "listen: {{ext_authz: {{address: '127.0.0.1:1', tls: {{cert_file: a, key_file: b, {members}}}}}}}"
        )
    };
    for (door, path, message) in [
        ("listen: {ext_authz: 'host.example.com:1'}", "listen.ext_authz", "IP address and a port"),
        ("listen: {ext_authz: 'localhost:'}", "listen.ext_authz", "IP address and a port"),
        ("listen: {ext_authz: ':x'}", "listen.ext_authz", "IP address and a port"),
        ("listen: {ext_authz: '127.0.0.1'}", "listen.ext_authz", "IP address and a port"),
        ("listen: {ext_authz: '127.0.0.1:65536'}", "listen.ext_authz", "IP address and a port"),
        ("listen: {ext_authz: 'unix:run/x'}", "listen.ext_authz", "absolute path"),
        ("listen: {ext_authz: \"unix:/a\\0b\"}", "listen.ext_authz", "NUL"),
        (&long, "listen.ext_authz", "at most 107 bytes"),
        ("listen: {ext_authz: []}", "listen.ext_authz", "at least one"),
        ("listen: {ext_authz: [a]}", "listen.ext_authz[0]", "IP address and a port"),
        ("listen: {ext_authz: [[]]}", "listen.ext_authz[0]", "not a list"),
        (
            "listen: {ext_authz: ['127.0.0.1:1', {address: '127.0.0.1:1'}]}",
            "listen.ext_authz[1]",
            "second time",
        ),
        (
            "listen: {ext_authz: ['unix:/x', '127.0.0.1:1', {address: 'unix:/x', mode: '0660'}]}",
            "listen.ext_authz[2]",
            "second time",
        ),
        ("listen: {ext_authz: {}}", "listen.ext_authz", "`address` is missing"),
        (
            "listen: {ext_authz: {address: '127.0.0.1:1', mode: '0660'}}",
            "listen.ext_authz.mode",
            "socket file",
        ),
        ("listen: {ext_authz: {address: 'unix:/x', mode: '999'}}", "listen.ext_authz.mode", "octal"),
        ("listen: {ext_authz: {address: 'unix:/x', mode: '01777'}}", "listen.ext_authz.mode", "octal"),
        (
            "listen: {ext_authz: {address: '127.0.0.1:1', tls: {cert_file: a}}}",
            "listen.ext_authz.tls",
            "`key_file` is missing",
        ),
        ("listen: {admin: 127.0.0.1:1}", "listen", "`ext_authz` is missing"),
        (
            "listen: {ext_authz: '127.0.0.1:1', admin: '127.0.0.1:1'}",
            "listen.admin",
            "one of `ext_authz` already",
        ),
        (
            "listen: {ext_authz: 'unix:/x', forward_auth: {address: '127.0.0.1:1', profile: nginx}, admin: '127.0.0.1:1'}",
            "listen.admin",
            "one of `forward_auth` already",
        ),
        (
            "listen: {ext_authz: 'unix:/x', forward_auth: [{address: '[::]:1', profile: nginx}, {address: '[::]:1', profile: envoy}]}",
            "listen.forward_auth",
            "one of `forward_auth` already",
        ),
        (&admin("hosts: [a]"), "listen.admin", "`address` is missing"),
        (&admin("address: ops:1"), "listen.admin.address", "IP address and a port"),
        (
            &admin("address: '127.0.0.1:1', allow_refresh: true"),
            "listen.admin.allow_refresh",
            "not supported yet",
        ),
        (&hosts("[]"), "listen.admin.hosts", "take the key out"),
        (&hosts("ops.example.com"), "listen.admin.hosts", "a list"),
        (&hosts("[Ops.example.com]"), "listen.admin.hosts[0]", "lower case"),
        (&hosts("['ops.example.com:9193']"), "listen.admin.hosts[0]", "without scheme, port"),
        (&hosts("['https://ops.example.com']"), "listen.admin.hosts[0]", "without scheme, port"),
        (&hosts("['*.example.com']"), "listen.admin.hosts[0]", "wildcard"),
        (&hosts("[ops.example.com.]"), "listen.admin.hosts[0]", "name of a host"),
        (&hosts("['10.0.0.1']"), "listen.admin.hosts[0]", "an address always counts"),
        (&hosts("['[::1]']"), "listen.admin.hosts[0]", "an address always counts"),
        (&hosts("[a.example, a.example]"), "listen.admin.hosts[1]", "second time"),
        (&names("client_names: [a]"), "listen.ext_authz.tls.client_names", "add `client_ca_file`"),
        (
            &names("client_ca_file: c, client_names: []"),
            "listen.ext_authz.tls.client_names",
            "lets no client in",
        ),
        (
            &names("client_ca_file: c, client_names: ['*.a']"),
            "listen.ext_authz.tls.client_names[0]",
            "without wildcard",
        ),
        (&names("client_ca_file: c, client_names: ['a:1']"), "listen.ext_authz.tls.client_names[0]", "a URI"),
        (
            &names("client_ca_file: c, client_names: ['10.0.0.1']"),
            "listen.ext_authz.tls.client_names[0]",
            "a DNS name",
        ),
        (
            &names("client_ca_file: c, client_names: [a, A]"),
            "listen.ext_authz.tls.client_names[1]",
            "second time",
        ),
        ("listen:", "listen", "a mapping is expected"),
    ] {
        refused(&MINIMAL.replace("listen: {ext_authz: 127.0.0.1:0}", door), &[(2, path, message)]);
    }
    let long = format!("responses: {{realm: {}}}", "x".repeat(129));
    for (line, path, message) in [
        ("responses: {realm: 'a\"b'}", "responses.realm", "without quotes"),
        ("responses: {realm: é}", "responses.realm", "printable ASCII"),
        ("responses: {realm: ''}", "responses.realm", "missing"),
        (&long, "responses.realm", "at most 128"),
        ("responses: {keys_unavailable_status: 399}", "responses.keys_unavailable_status", "from 400 to 599"),
        ("responses: {keys_unavailable_status: 5e2}", "responses.keys_unavailable_status", "whole number"),
        (
            "responses: {keys_unavailable_status: '503'}",
            "responses.keys_unavailable_status",
            "without quotes",
        ),
        ("limits: {token_bytes: 0}", "limits.token_bytes", "size from"),
        ("limits: {token_bytes: 99999999999999999999}", "limits.token_bytes", "a size"),
        ("limits: {token_values: 63}", "limits.token_values", "from 64 to 100000"),
        ("limits: {token_values: 4KiB}", "limits.token_values", "from 64 to 100000"),
        ("limits: {token_depth: 65}", "limits.token_depth", "from 4 to 64"),
        ("limits: {message_bytes: 63KiB}", "limits.message_bytes", "size from"),
        ("limits: {message_bytes: 1025MiB}", "limits.message_bytes", "size from"),
        ("limits: {connections: 0}", "limits.connections", "from 1 to 1000000"),
        ("limits: {connections: 1000001}", "limits.connections", "from 1 to 1000000"),
        ("limits: {claim_header_bytes: 49KiB}", "limits.claim_header_bytes", "size from"),
        ("shutdown: {grace: 11m}", "shutdown.grace", "from 0s to 10m"),
        ("shutdown: {drain_delay: 3}", "shutdown.drain_delay", "with its unit"),
        ("log: {format: xml}", "log.format", "json, text"),
        ("log: {level: INFO}", "log.level", "error, warn, info"),
        ("log: {level: '${NOT_SET}'}", "log.level", "NOT_SET is not set"),
        ("log: {level: ${NOT_SET}}", "", "with its quotes"),
        ("log: {level: '${open'}", "log.level", "without its `}`"),
        ("Log: {}", "Log", "did you mean `log`"),
        ("1: x", "1", "a key must be text"),
        ("null: x", "null", "a key must be text"),
        ("? [a]\n: x", "", "a key must be text"),
        ("limits: {'<<': {token_bytes: 1KiB}}", "limits[\"<<\"]", "unknown key"),
        ("log: !!map {}", "log", "tags"),
    ] {
        refused(&format!("{MINIMAL}{line}\n"), &[(7, path, message)]);
    }
}

#[test]
fn what_is_wrong_as_yaml_is_reported_beside_everything_else() {
    refused(
        "listen: {ext_authz: 127.0.0.1:0}
listen: {}
providers: &all
  - name: p
    name: q
    issuer: https://i
    audiences: *all
log: {level: loud}
",
        &[
            (2, "listen", "a second time, first in line 1"),
            (5, "providers[0].name", "a second time, first in line 4"),
            (7, "providers[0].audiences", "inside of the value that it means"),
            (8, "log.level", "error, warn"),
        ],
    );
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
fn a_huge_file_is_refused_or_read_in_no_time() {
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
fn what_is_not_one_plain_document_is_refused() {
    let deep = "[".repeat(100_000);
    let block = (0..1000).map(|i| format!("{}a:\n", " ".repeat(i))).collect::<String>();
    for (text, line, message) in [
        ("", 0, "empty"),
        ("# nothing\n", 0, "empty"),
        ("listen", 1, "mapping is expected"),
        ("a: &x b\n*x : 1", 2, "an alias cannot be a key"),
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
        let told = errors.iter().find(|error| error.message.contains(message));
        let told = told.unwrap_or_else(|| panic!("{text:.40}: {errors}"));
        if !message.is_empty() {
            assert_eq!(told.at.map_or(0, |at| at.line), line, "{text:.40}: {told}");
        }
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
    fn whatever_stands_in_a_value_is_printed_so_that_it_is_read_again(
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
