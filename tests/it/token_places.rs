//! Providers whose `token_from` overlap: the issuer of a token selects the provider, and the provider says where its tokens
//! may be.

use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use portcullis::config::Config;
use serde_json::json;

use crate::support::{Ask, NOW, Running, fixed_clock};

const BEARER: &str = "token_from: [{header: authorization, scheme: Bearer}]";
const WHOLE: &str = "token_from: [{header: authorization}]";

fn key() -> SigningKey {
    SigningKey::pooled(0, "k", SigningAlgorithm::RS256)
}

/// The providers `a` and `b` with one key and these lines, behind this listener.
fn parse(listen: &str, a: &str, b: &str) -> Config {
    let jwks = json!({"keys": [key().public_jwk()]});
    let provider = |name: &str, lines: &str| {
        format!(
            "  - name: {name}\n    issuer: https://{name}.example.com\n    audiences: [orders]\n    jwks: {jwks}\n    {lines}\n"
        )
    };
    let text = format!(
        "listen: {{{listen}, admin: '127.0.0.1:0'}}\nproviders:\n{}{}",
        provider("a", a),
        provider("b", b)
    );
    Config::parse(&text, &|_| None).unwrap_or_else(|errors| panic!("{errors}"))
}

fn token_of(provider: &str) -> String {
    let issuer = format!("https://{provider}.example.com");
    key().sign(&json!({"iss": issuer, "aud": "orders", "exp": NOW + 60}))
}

#[tokio::test]
async fn one_header_has_tokens_with_a_scheme_of_one_provider_and_whole_tokens_of_another() {
    let not_forwarded = format!("{WHOLE}\n    forward_token: false");
    for (a, b) in [(BEARER, WHOLE), (BEARER, &*not_forwarded)] {
        for is_swapped in [false, true] {
            let (first, second) = if is_swapped { (b, a) } else { (a, b) };
            let (bearer, whole) = if is_swapped { ("b", "a") } else { ("a", "b") };
            let service =
                Running::start(parse("ext_authz: '127.0.0.1:0'", first, second), fixed_clock()).await;
            for (lines, reason) in [
                (vec![format!("Bearer {}", token_of(bearer))], "ok"),
                (vec![format!("bearer  {}", token_of(bearer))], "ok"),
                (vec![token_of(whole)], "ok"),
                // Each provider has its tokens in its own places alone.
                (vec![format!("Bearer {}", token_of(whole))], "token_missing"),
                (vec![token_of(bearer)], "token_missing"),
                // One request has one token.
                (vec![format!("Bearer {}", token_of(bearer)), token_of(whole)], "malformed"),
                (vec![token_of(whole), format!("Bearer {}", token_of(bearer))], "malformed"),
                (vec![format!("Basic {}", token_of(whole))], "malformed"),
                (vec!["Bearer".to_owned()], "malformed"),
            ] {
                let ask = lines.iter().fold(Ask::default(), |ask, line| ask.header("authorization", line));
                let answer = service.ask(ask).await;
                assert_eq!(answer.faults(reason, &[]), Vec::<String>::new(), "{first} {second}: {lines:?}");
                let is_removed = answer.removed.iter().any(|name| name == "authorization");
                let is_whole = lines.len() == 1 && *lines[0] == token_of(whole);
                let expected = is_whole && b == not_forwarded;
                assert_eq!(is_removed, expected, "{first} {second}: {lines:?}");
            }
        }
    }
}

#[tokio::test]
async fn one_place_of_two_providers_has_tokens_of_either_and_is_emptied_of_those_that_are_not_forwarded() {
    for (place, header, value, rest) in [
        (BEARER, "authorization", "Bearer {}", None),
        (WHOLE, "authorization", "{}", None),
        ("token_from: [{cookie: t}]", "cookie", "t={}", None),
        ("token_from: [{cookie: t}]", "cookie", "t={}; a=1", Some("a=1")),
        ("token_from: [{websocket_protocol: bearer}]", "sec-websocket-protocol", "bearer, {}", None),
        ("token_from: [{websocket_protocol: bearer}]", "sec-websocket-protocol", "bearer, {}, x", Some("x")),
    ] {
        let b = format!("{place}\n    forward_token: false");
        let service = Running::start(parse("ext_authz: '127.0.0.1:0'", place, &b), fixed_clock()).await;
        for provider in ["a", "b"] {
            let value = value.replace("{}", &token_of(provider));
            let answer = service.ask(Ask::default().header(header, value)).await;
            assert_eq!(answer.faults("ok", &[]), Vec::<String>::new(), "{place}");
            let is_removed = answer.removed.iter().any(|name| name == header);
            let left = answer.set.get(header).map(String::as_str);
            let expected = if provider == "a" { (false, None) } else { (rest.is_none(), rest) };
            assert_eq!((is_removed, left), expected, "{place}: {provider}");
        }
    }
}

#[tokio::test]
async fn a_second_token_in_a_spelling_that_some_programs_take_for_the_same_never_reaches_the_upstream() {
    let not_forwarded = "token_from: [{cookie: t}, {cookie: access_token}, {websocket_protocol: bearer}, \
                         {websocket_protocol: token}]\n    forward_token: false";
    let shared = "token_from: [{cookie: access_token}, {websocket_protocol: bearer}]";
    let also_shared = format!("{shared}\n    forward_token: false");
    for (a, b, header, sent, left) in [
        (BEARER, not_forwarded, "cookie", "t={b}; access.token=other; z=1", Some("z=1")),
        (BEARER, not_forwarded, "cookie", "access.token=other; t={b}; t.=x", Some("t.=x")),
        (BEARER, not_forwarded, "cookie", "t={b}; ok=1 access_token=other; z=1", Some("z=1")),
        (BEARER, not_forwarded, "cookie", "t={b}; ok=1 access_token =other; z=1", Some("z=1")),
        (BEARER, not_forwarded, "cookie", "t={b}; ok=1 access_token = other; z=a==", Some("z=a==")),
        (BEARER, not_forwarded, "cookie", "t={b}; ok=1\taccess_token=other; z=a b", Some("z=a b")),
        (BEARER, not_forwarded, "sec-websocket-protocol", "bearer, {b}, TOKEN, other, chat", Some("chat")),
        (
            shared,
            &also_shared,
            "cookie",
            "access.token=other; access_token={a}; z=1",
            Some("access_token={a}; z=1"),
        ),
        (shared, &also_shared, "cookie", "access_token={a}; z=1", None),
        (
            shared,
            &also_shared,
            "sec-websocket-protocol",
            "bearer, {a}, BEARER, other, x",
            Some("bearer, {a}, x"),
        ),
        (
            shared,
            &also_shared,
            "sec-websocket-protocol",
            "bearer, {a}, BEARER, {a}, x",
            Some("bearer, {a}, x"),
        ),
    ] {
        let service = Running::start(parse("ext_authz: '127.0.0.1:0'", a, b), fixed_clock()).await;
        let (of_a, of_b) = (token_of("a"), token_of("b"));
        let written = |text: &str| text.replace("{a}", &of_a).replace("{b}", &of_b);
        let answer = service.ask(Ask::default().header(header, written(sent))).await;
        assert_eq!(answer.faults("ok", &[]), Vec::<String>::new(), "{sent}");
        assert_eq!(answer.set.get(header).cloned(), left.map(written), "{sent}");
    }
}

#[test]
fn a_header_with_tokens_that_are_forwarded_for_one_provider_alone_is_warned_about_behind_proxies_with_a_file()
{
    let not_forwarded = |place: &str| format!("{place}\n    forward_token: false");
    let mixed = "token_from: [{header: x-token}, {cookie: t}]";
    for (profile, a, b, header) in [
        ("nginx", BEARER, not_forwarded(WHOLE), Some("authorization")),
        ("nginx", BEARER, not_forwarded(BEARER), Some("authorization")),
        ("haproxy", mixed, not_forwarded("token_from: [{header: x-token, scheme: T}]"), Some("x-token")),
        // What remains of cookies comes with the answer to each request.
        ("caddy", mixed, not_forwarded("token_from: [{cookie: t}]"), None),
        ("traefik", "forward_token: true", not_forwarded(BEARER), Some("authorization")),
        ("traefik", BEARER, not_forwarded("token_from: [{header: x-token}]"), None),
        ("nginx", BEARER, WHOLE.to_owned(), None),
        // Envoy removes what the answer to each request says.
        ("envoy", BEARER, not_forwarded(WHOLE), None),
    ] {
        let listen = format!("forward_auth: {{address: '127.0.0.1:0', profile: {profile}}}");
        let config = parse(&listen, a, &b);
        let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
        let expected = header.map(|header| {
            format!("tokens in {header} are forwarded, but those of b (line 8) are not: behind {profile}")
        });
        assert_eq!(warnings.len(), usize::from(expected.is_some()), "{warnings:?}");
        for (warning, expected) in warnings.iter().zip(expected) {
            assert!(warning.contains(&expected) && warning.contains("providers[0]."), "{warning}");
        }
    }
}
