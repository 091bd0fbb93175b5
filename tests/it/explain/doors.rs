//! `explain --door` and the `door` of a case: what passes at one door is refused at another, as `serve` does.

use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use serde_json::json;

use super::{Folder, NOW, explain, json_of};

const DOORS: [&str; 7] = ["envoy", "envoy-http", "nginx", "haproxy", "caddy", "traefik", "tower"];

/// A provider with a claim header, and a rule that looks at paths, below these listeners.
fn sections(key: &SigningKey) -> String {
    let jwks = json!({"keys": [key.public_jwk()]});
    format!(
        "providers:
  - {{name: p, issuer: https://i, audiences: [a], jwks: {jwks}, claim_headers: {{x-user: sub}}}}
rules:
  - {{name: orders, match: {{path_prefix: /orders, methods: [GET]}}, by_name: true}}
"
    )
}

fn token(key: &SigningKey) -> String {
    key.sign(&json!({"iss": "https://i", "aud": "a", "sub": "alice", "exp": NOW + 60}))
}

#[test]
fn a_request_is_judged_as_the_door_would() {
    let (key, folder) = (SigningKey::generate("k", SigningAlgorithm::ES256), Folder::new());
    let config = folder.config(&sections(&key));
    let header = format!("authorization: Bearer {}", token(&key));
    // What each door answers: `.` allows, `m` is request_malformed, `e` is no decision.
    for (arguments, expected) in [
        (&["--path", "/orders"][..], "......."),
        (&["--path", "/orders", "--header", "x_user: mallory"], "..mmmm."),
        (&["--path", "/orders", "--header", "x-user: mallory"], ".mmmmm."),
        (&["--path", "/orders", "--header", "x-rewrite-url: /x"], "..mmmm."),
        // The proxy sets it itself.
        (&["--path", "/orders", "--header", "x-original-uri: /x"], "...mmm."),
        (&["--path", "/orders", "--header", "x-forwarded-uri: /x"], "..m...."),
        (&["--path", "/orders", "--header", "x-original-method: DELETE"], "......."),
        (&["--path", "/x", "--rule", "orders"], ".e....e"),
        (&["--path", "/orders", "--source-address", "192.0.2.7"], ".eeeee."),
        (&["--path", "/orders a"], "memmmme"),
        (&["--path", "/orders/\u{1}"], "meeeeee"),
        (&["--path", "/orders", "--method", "get"], "mmmmmmm"),
        (&["--path", "/orders", "--header", "host: other.example.com"], "......."),
        (&["--path", "/orders", "--proxy", "192.0.2.7"], "..mmmm."),
    ] {
        let found = DOORS.map(|door| {
            let more = ["--header", &header, "--format", "json", "--door", door];
            let output = explain(&config, &[arguments, &more].concat());
            if output.status.code() == Some(1) {
                let error = String::from_utf8_lossy(&output.stderr);
                assert!(error.contains(&format!("at the door {door}: ")), "{error}");
                return 'e';
            }
            let decision = json_of(&output);
            assert_eq!(decision["door"], door);
            match decision["reason"].as_str() {
                Some("ok") => '.',
                Some("request_malformed") => 'm',
                _ => panic!("{door}: {arguments:?}: {decision}"),
            }
        });
        assert_eq!(found.iter().collect::<String>(), expected, "{arguments:?}");
    }
}

#[test]
fn the_door_is_that_of_the_configuration_with_its_client_headers() {
    let (key, folder) = (SigningKey::generate("k", SigningAlgorithm::ES256), Folder::new());
    let header = format!("authorization: Bearer {}", token(&key));
    for (listen, door, reason) in [
        ("{}", "envoy", "ok"),
        ("{ext_authz: '127.0.0.1:0', forward_auth: {address: '127.0.0.1:0', profile: caddy}}", "envoy", "ok"),
        ("{forward_auth: {address: '127.0.0.1:0', profile: caddy}}", "caddy", "request_malformed"),
        (
            "{forward_auth: {address: '127.0.0.1:0', profile: nginx, client_headers: overwrite}}",
            "nginx",
            "ok",
        ),
    ] {
        let config = folder.file("p.yaml", format!("listen: {listen}\n{}", sections(&key)));
        let arguments = ["--path", "/orders", "--header", "x-user: mallory", "--header", &header];
        let decision = json_of(&explain(&config, &[&arguments[..], &["--format", "json"]].concat()));
        assert_eq!((&decision["door"], &decision["reason"]), (&json!(door), &json!(reason)), "{listen}");
    }
}
