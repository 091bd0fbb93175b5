//! Why, for every reason: what was found, what would have done, and what to do about it.

use std::collections::BTreeSet;

use portcullis::commands::issuer::{SigningAlgorithm, SigningKey, with_claim, without_claim};
use portcullis::reason::Refusal;
use serde_json::{Value, json};

use super::{Folder, NOW, explain, json_of};
use crate::support::snapshots::settings;

/// A configuration with a rule or a limit for each reason.
const SECTIONS: &str = "  forward_auth: {address: '127.0.0.1:0', profile: nginx}
providers:
  - name: staff
    issuer: https://staff.example.com
    max_lifetime: 24h
    audiences: [orders-api]
    jwks: JWKS
    algorithms: [ES256]
    required_claims: [tenant]
    claim_headers:
      x-user: sub
  - name: partners
    issuer: https://partners.example.com/
    audiences: [orders-api]
    token_types: [at+jwt]
    jwks: JWKS
    token_from: [{cookie: session}]
  - name: realms
    issuer: https://sso.example.com/realms/{realm}
    realms: [acme]
    audiences: [orders-api]
  - name: away
    issuer: https://away.example.com
    audiences: [orders-api]
    jwks_uri: http://127.0.0.1:1/keys
    allow_http: true
    refresh: {wait: 200ms, timeout: 200ms}
default: deny
rules:
  - {name: health, match: {path: [/healthz, /health/z]}, allow: anonymous}
  - {name: blocked, match: {path_prefix: /blocked}, deny: true}
  - name: orders
    match: {path_prefix: /orders, methods: [GET]}
  - name: write
    by_name: true
    match: {path_prefix: /write}
    require:
      scopes: ['orders:read', 'orders:write']
  - {name: roles, match: {path_prefix: /roles}, require: {claims: {roles: [admin, ops]}}}
  - {name: partners, match: {path_prefix: /partners}, providers: [partners]}
  - {name: own, match: {path_prefix: /own}, audiences: [own-api]}
  - {name: condition, match: {path_prefix: /condition}, require: {condition: \"claims.tenant == 'acme'\"}}
  - {name: undecided, match: {path_prefix: /undecided}, require: {condition: \"claims.level > 3\"}}
limits: {token_bytes: 2KiB, claim_header_bytes: 64}
";

struct World {
    folder: Folder,
    config: std::path::PathBuf,
    key: SigningKey,
    /// Published for the issuer under another kid.
    other: SigningKey,
}

impl World {
    fn new() -> Self {
        let folder = Folder::new();
        let key = SigningKey::generate("first", SigningAlgorithm::ES256);
        let other = SigningKey::generate("second", SigningAlgorithm::ES384);
        let jwks = json!({"keys": [key.public_jwk(), other.public_jwk()]}).to_string();
        let config = folder.config(&SECTIONS.replace("JWKS", &jwks)).to_owned();
        let text = std::fs::read_to_string(&config).expect("written");
        let text =
            text.replacen("listen: {ext_authz: '127.0.0.1:0'}", "listen:\n  ext_authz: '127.0.0.1:0'", 1);
        std::fs::write(&config, text).expect("written");
        Self { folder, config, key, other }
    }

    fn claims() -> Value {
        json!({"iss": "https://staff.example.com", "aud": "orders-api", "sub": "alice", "exp": NOW + 300, "tenant": "globex"})
    }

    fn with(claim: &str, value: impl Into<Value>) -> Value {
        with_claim(Self::claims(), claim, value)
    }
}

/// The token of a case.
enum Bearer {
    None,
    Text(String),
    /// A token with these claims, signed as it should be.
    Claims(Value),
    /// A token with these claims in a cookie.
    Cookie(Value),
}

fn cases(world: &World) -> Vec<(&'static str, Vec<String>, Bearer)> {
    use Bearer::{Claims, Cookie, None, Text};
    let World { key, other, .. } = world;
    let header = |name: &str, value: Value| {
        let mut header = key.header();
        header[name] = value;
        Text(key.sign_with_header(&header, &World::claims()))
    };
    let good = || Claims(World::claims());
    let partner = |claim: &str, value: Value| {
        with_claim(with_claim(World::claims(), "iss", "https://partners.example.com/"), claim, value)
    };
    let at = |arguments: &[&str]| arguments.iter().map(|one| (*one).to_owned()).collect::<Vec<String>>();
    let orders = at(&["--path", "/orders/7"]);
    let path = |path: &str| at(&["--path", path]);
    let nginx = |more: &[&str]| [at(&["--path", "/orders/7", "--door", "nginx"]), at(more)].concat();
    let unknown = key.with_kid("third");
    let of_second = key.with_kid("second");
    let forged = SigningKey::generate("first", SigningAlgorithm::ES256);
    vec![
        ("no token", orders.clone(), None),
        ("another scheme", at(&["--path", "/orders", "--header", "authorization: Basic dXNlcjpwYXNz"]), None),
        ("a token in a place of another provider", orders.clone(), Cookie(World::claims())),
        ("two tokens", at(&["--path", "/orders", "--header", "cookie: session=a.b.c"]), good()),
        (
            "two lines of one header",
            at(&["--path", "/orders", "--header", "authorization: Bearer a.b.c"]),
            good(),
        ),
        ("no text of a token", at(&["--path", "/orders", "--header", "authorization: Bearer\tabc"]), None),
        ("an opaque token", orders.clone(), Text("opaque".to_owned())),
        ("an encrypted token", orders.clone(), Text("a.b.c.d.e".to_owned())),
        ("a broken header", orders.clone(), Text("abc.e30.c2ln".to_owned())),
        ("a critical extension", orders.clone(), header("crit", json!(["x"]))),
        ("a token that is too large", orders.clone(), Claims(World::with("x", "x".repeat(2_000)))),
        (
            "an unsigned token",
            orders.clone(),
            Text("eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL3N0YWZmLmV4YW1wbGUuY29tIn0.".to_owned()),
        ),
        ("an alg that is not allowed", orders.clone(), Text(other.sign(&World::claims()))),
        ("no alg", orders.clone(), header("alg", Value::Null)),
        ("a typ that is not allowed", orders.clone(), header("typ", json!("id+jwt"))),
        ("no typ", at(&["--path", "/orders"]), {
            let mut header = key.header();
            header.as_object_mut().expect("an object").remove("typ");
            Text(key.sign_with_header(&header, &partner("x", json!(1))))
        }),
        ("an unknown issuer", orders.clone(), Claims(World::with("iss", "https://evil.example.com/\n\"x"))),
        ("an issuer with a slash", orders.clone(), Claims(World::with("iss", "https://staff.example.com/"))),
        (
            "an issuer with another scheme",
            orders.clone(),
            Claims(World::with("iss", "http://partners.example.com/")),
        ),
        (
            "an issuer with a port",
            orders.clone(),
            Claims(World::with("iss", "https://staff.example.com:443")),
        ),
        ("an issuer in upper case", orders.clone(), Claims(World::with("iss", "https://Staff.example.com"))),
        (
            "a realm that is not allowed",
            orders.clone(),
            Claims(World::with("iss", "https://sso.example.com/realms/evil")),
        ),
        ("no issuer", orders.clone(), Claims(without_claim(World::claims(), "iss"))),
        ("another audience", orders.clone(), Claims(World::with("aud", "billing"))),
        ("other audiences", orders.clone(), Claims(World::with("aud", json!(["a", "b", "c", "d", "e"])))),
        ("no audience of the rule", path("/own"), good()),
        ("no audience", orders.clone(), Claims(without_claim(World::claims(), "aud"))),
        ("expired", orders.clone(), Claims(World::with("exp", NOW - 40))),
        ("expired long ago", orders.clone(), Claims(World::with("exp", 1))),
        ("not yet valid", orders.clone(), Claims(World::with("nbf", NOW + 90))),
        ("a long lifetime", orders.clone(), Claims(World::with("exp", NOW + 10 * 24 * 3600))),
        (
            "its audience in azp",
            orders.clone(),
            Claims(with_claim(World::with("aud", "account"), "azp", "orders-api")),
        ),
        (
            "its audience in client_id alone",
            orders.clone(),
            Claims(with_claim(World::with("aud", Value::Null), "client_id", "orders-api")),
        ),
        ("no exp", orders.clone(), Claims(World::with("exp", Value::Null))),
        ("an empty claim", orders.clone(), Claims(World::with("tenant", ""))),
        ("an exp that is no number", orders.clone(), Claims(World::with("exp", "tomorrow"))),
        ("an aud that is no string", orders.clone(), Claims(World::with("aud", json!(["orders-api", 1])))),
        ("a kid that is not published", orders.clone(), Text(unknown.sign(&World::claims()))),
        ("a kid of another alg", orders.clone(), Text(of_second.sign(&World::claims()))),
        ("a forged signature", orders.clone(), Text(forged.sign(&World::claims()))),
        ("no kid", orders.clone(), Text(forged.with_kid(Option::None).sign(&World::claims()))),
        ("a missing scope", path("/write"), Claims(World::with("scope", "orders:read profile"))),
        ("no scope", path("/write"), good()),
        ("a claim with another value", path("/roles"), Claims(World::with("roles", json!(["user", 7])))),
        ("a claim that is missing", path("/roles"), good()),
        ("a token of another provider", path("/partners"), good()),
        ("a condition that is not met", path("/condition"), good()),
        ("a condition that cannot be evaluated", path("/undecided"), good()),
        ("a rule that denies", path("/blocked"), good()),
        ("no rule", path("/else"), good()),
        ("a rule that a route may not name", at(&["--rule", "orders"]), good()),
        ("a rule that does not exist", at(&["--rule", "wrtie"]), good()),
        ("an ambiguous path", path("/orders/a%2Fb"), good()),
        ("a dot segment", path("/orders/../x"), good()),
        ("repeated slashes", path("/health//z"), None),
        ("a needless encoding", path("/%6frders"), good()),
        ("a method in lower case", at(&["--path", "/orders", "--method", "get"]), good()),
        ("a target with a space", path("/orders/a b"), good()),
        ("an upgrade to h2c", at(&["--path", "/orders", "--header", "upgrade: h2c"]), good()),
        ("a look-alike", nginx(&["--header", "x_user: mallory"]), good()),
        ("a claim header", nginx(&["--header", "x-user: mallory"]), good()),
        ("an override", nginx(&["--header", "x-rewrite-url: /healthz"]), good()),
        ("an untrusted proxy", nginx(&["--proxy", "192.0.2.1"]), good()),
        ("claim headers that are too large", orders.clone(), Claims(World::with("sub", "x".repeat(200)))),
        ("keys that cannot be fetched", orders, Claims(World::with("iss", "https://away.example.com"))),
    ]
}

#[test]
fn every_refusal_says_what_was_found_what_would_have_done_and_what_to_do() {
    let world = World::new();
    let (mut shown, mut reasons) = (String::new(), BTreeSet::new());
    for (name, mut arguments, bearer) in cases(&world) {
        let token = match bearer {
            Bearer::None => None,
            Bearer::Text(token) => Some((token, "authorization: Bearer ")),
            Bearer::Claims(claims) => Some((world.key.sign(&claims), "authorization: Bearer ")),
            Bearer::Cookie(claims) => Some((world.key.sign(&claims), "cookie: session=")),
        };
        if let Some((token, place)) = &token {
            arguments.extend(["--header".to_owned(), format!("{place}{token}")]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let json = explain(&world.config, &[&arguments[..], &["--format", "json"]].concat());
        let printed = String::from_utf8_lossy(&json.stdout).into_owned();
        let decision = json_of(&json);
        let text = String::from_utf8(explain(&world.config, &arguments).stdout).expect("text");
        let last = decision["steps"].as_array().and_then(|steps| steps.last()).expect("a step").clone();
        let (detail, advice) = (&last["detail"], &decision["advice"]);
        for part in [detail, advice] {
            assert!(part.as_str().is_some_and(|part| !part.is_empty()), "{name}: {decision}");
        }
        assert!(text.ends_with(&format!("\nadvice: {}\n", advice.as_str().expect("text"))), "{text}");
        // Every line of the step has the detail, but for a rule that denies, whose step is its choice.
        assert!(text.contains(detail.as_str().expect("text")), "{name}: {text}");
        if let Some((token, _)) = &token {
            for part in token.split('.').filter(|part| part.len() > 8) {
                assert!(!printed.contains(part) && !text.contains(part), "{name}: {text}");
            }
        }
        let (reason, step) = (&decision["reason"], &last["step"]);
        reasons.insert(reason.as_str().expect("text").to_owned());
        shown.push_str(&format!(
            "{name}\n  {} at {}\n  {}\n  {}\n\n",
            reason.as_str().unwrap_or_default(),
            step.as_str().unwrap_or_default(),
            detail.as_str().unwrap_or_default(),
            advice.as_str().unwrap_or_default(),
        ));
    }
    let cause = [("could not be fetched: .*", "could not be fetched: CAUSE")];
    settings(&cause).bind(|| insta::assert_snapshot!("explain_reasons", shown));
    let all: BTreeSet<String> = Refusal::named().map(|refusal| refusal.as_str().to_owned()).collect();
    assert_eq!(reasons, all, "a case for each reason");
    drop(world.folder);
}
