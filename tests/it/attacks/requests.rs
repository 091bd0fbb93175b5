//! Section E for the ext_authz listener: where a request may carry a token, and how the response changes the request's own
//! headers.

use envoy_types::pb::envoy::service::auth::v3::attribute_context::Request as AttributeRequest;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use http::HeaderName;
use http::header::AUTHORIZATION;
use portcullis::commands::issuer::{Fault, Issuer, SigningAlgorithm, SigningKey, without_claim};
use portcullis::validation::provider::{Provider, TokenSource};
use serde_json::json;

use super::case::{assert_no_errors, check_answer, parts};
use crate::support::{
    Answer, Ask, NOW, Running, TestEnv, config, fetching, fixed_clock, inline, prompt_refresh, provider,
};

const ISSUER: &str = "https://issuer.example";

fn es256(kid: &str) -> SigningKey {
    SigningKey::generate(kid, SigningAlgorithm::ES256)
}

/// A service with a key in the configuration, and two different good tokens.
async fn service(adjust: impl FnOnce(&mut Provider)) -> (Running, String, String) {
    let key = es256("es");
    let mut rules = provider("demo", ISSUER);
    adjust(&mut rules);
    let service = Running::start(config(vec![inline(rules, &[key.public_jwk()])]), fixed_clock()).await;
    let sign =
        |sub: &str| key.sign(&json!({"iss": ISSUER, "aud": "orders-api", "sub": sub, "exp": NOW + 300}));
    (service, sign("alice"), sign("bob"))
}

#[tokio::test]
async fn a_check_without_a_request_is_denied() {
    let (service, ..) = service(|_| {}).await;
    let no_http =
        AttributeContext { request: Some(AttributeRequest::default()), ..AttributeContext::default() };
    for check in [
        CheckRequest::default(),
        CheckRequest { attributes: Some(AttributeContext::default()) },
        CheckRequest { attributes: Some(no_http) },
        Ask::default().into_check(),
        Ask::default().path("").into_check(),
    ] {
        let answer = Answer::read(service.send(check).await.expect("an answer"));
        assert_eq!(answer.faults("token_missing", &[]), Vec::<String>::new(), "E1");
    }
}

#[tokio::test]
async fn without_keys_requests_are_denied_as_keys_unavailable() {
    let issuer = Issuer::start().await.expect("bound");
    let key = issuer.rotate(SigningAlgorithm::ES256);
    let token = key.sign(&issuer.claims(NOW));
    let mut wrong = Vec::new();
    for fault in [
        Fault::Status(500),
        Fault::Status(404),
        Fault::Html,
        Fault::EmptySet,
        Fault::EmptyBody,
        Fault::HalfBody,
        Fault::DropConnection,
        Fault::Redirect("http://127.0.0.1:1/".to_owned()),
        Fault::Redirect("file:///etc/passwd".to_owned()),
    ] {
        let what = format!("{fault:?}");
        issuer.set_fault(Some(fault));
        let providers = vec![fetching(provider("demo", issuer.issuer()), &issuer, prompt_refresh())];
        let service = Running::start_without_keys(config(providers), fixed_clock()).await;
        let answer = service.bearer(&token).await;
        wrong.extend(check_answer("E2 F14", &what, &answer, "keys_unavailable", &parts(&token)));
        if answer.set.get("retry-after").map(String::as_str) != Some("1") {
            wrong.push(format!("E2 {what}: no Retry-After"));
        }
        // A signature without a key must not verify, nor one by an unknown key.
        for forged in [es256("key-1"), es256("default"), es256("")] {
            let forged = forged.sign(&issuer.claims(NOW));
            let answer = service.bearer(&forged).await;
            wrong.extend(check_answer("F14", &what, &answer, "keys_unavailable", &parts(&forged)));
        }
    }
    assert_no_errors(&wrong);
}

#[tokio::test]
async fn a_refresh_that_is_late_is_keys_unavailable() {
    let mut wrong = Vec::new();
    for (what, max_waiters, fault) in [
        ("the issuer hangs", 10, Some(Fault::Hang)),
        ("the issuer stalls", 10, Some(Fault::StalledBody)),
        ("no caller may wait", 0, None),
    ] {
        let issuer = Issuer::start().await.expect("bound");
        let key = issuer.rotate(SigningAlgorithm::ES256);
        let refresh = portcullis::config::RefreshPolicy {
            max_waiters,
            wait: std::time::Duration::from_millis(100),
            ..prompt_refresh()
        };
        let providers = vec![fetching(provider("demo", issuer.issuer()), &issuer, refresh)];
        let service = Running::start(config(providers), fixed_clock()).await;
        issuer.set_fault(fault);
        let claims = issuer.claims(NOW);
        let unknown = es256("unknown").sign(&claims);
        let answer = service.bearer(&unknown).await;
        wrong.extend(check_answer("E2 P7", what, &answer, "keys_unavailable", &parts(&unknown)));
        let answer = service.bearer(&key.sign(&claims)).await;
        wrong.extend(check_answer("E2", &format!("{what}, a known key"), &answer, "ok", &[]));
    }
    assert_no_errors(&wrong);
}

#[tokio::test]
async fn only_the_proxys_configuration_names_a_rule() {
    let (service, good, _) = service(|_| {}).await;
    let bearer = || Ask::default().header("authorization", format!("Bearer {good}"));
    // There is no rule of that name, and an unknown name is a denial; a client header is not a rule name.
    for (ask, extension, reason) in [
        (bearer(), Some("admin"), "rule_denied"),
        (bearer(), Some(""), "rule_denied"),
        (bearer().header("portcullis_rule", "admin"), None, "ok"),
        (bearer().header("x-portcullis-rule", "admin").path("/?portcullis_rule=admin"), None, "ok"),
    ] {
        let mut check = ask.into_check();
        if let (Some(attributes), Some(name)) = (&mut check.attributes, extension) {
            attributes.context_extensions.insert("portcullis_rule".to_owned(), name.to_owned());
        }
        let answer = Answer::read(service.send(check).await.expect("an answer"));
        assert_eq!(answer.faults(reason, &parts(&good)), Vec::<String>::new(), "E28 {extension:?}");
    }
}

#[tokio::test]
async fn the_authorization_header_is_parsed_exactly_as_in_the_rfcs() {
    let (service, good, other) = service(|_| {}).await;
    let encoded = good.replace('.', "%2E");
    let mut wrong = Vec::new();
    for (id, value, reason) in [
        ("E3", format!("Bearer {good},Bearer {good}"), "malformed"),
        ("E3", format!("Bearer {good}, Bearer {other}"), "malformed"),
        ("E3", format!("Bearer {other},{good}"), "malformed"),
        ("E3", format!("Basic dTpw,Bearer {good}"), "malformed"),
        ("E3", format!(",Bearer {good}"), "malformed"),
        ("E3", format!("Bearer,Bearer {good}"), "malformed"),
        ("E6", format!("bearer {good}"), "ok"),
        ("E6", format!("BEARER {good}"), "ok"),
        ("E6", format!("bEaReR {good}"), "ok"),
        ("E6", format!("Bearer   {good}"), "ok"),
        ("E6", format!(" Bearer {good}"), "ok"),
        ("E6", format!("Bearer {good} "), "ok"),
        ("E6", format!("Bearer\t{good}"), "malformed"),
        ("E6", format!("Bearer \t{good}"), "malformed"),
        ("E6", format!("Bearer \r\n {good}"), "malformed"),
        ("E6", format!("Bearer{good}"), "token_missing"),
        ("E6", format!("Bearer:{good}"), "token_missing"),
        ("E6", format!("Bearer={good}"), "token_missing"),
        ("E6", format!("Bearer\u{a0}{good}"), "token_missing"),
        ("E6", format!("Bearer\u{b}{good}"), "token_missing"),
        ("E6", format!("\u{feff}Bearer {good}"), "token_missing"),
        ("E7", format!("Basic {good}"), "token_missing"),
        ("E7", "Basic dXNlcjpwYXNz".to_owned(), "token_missing"),
        ("E7", format!("Negotiate {good}"), "token_missing"),
        ("E7", format!("DPoP {good}"), "token_missing"),
        ("E7", format!("Token {good}"), "token_missing"),
        ("E7", format!("JWT {good}"), "token_missing"),
        ("E7", format!("Bearers {good}"), "token_missing"),
        ("E7", good.clone(), "token_missing"),
        ("E8", String::new(), "token_missing"),
        ("E8", " ".to_owned(), "token_missing"),
        ("E8", "Bearer".to_owned(), "malformed"),
        ("E8", "Bearer ".to_owned(), "malformed"),
        ("E8", "Bearer      ".to_owned(), "malformed"),
        ("E9", format!("Bearer bearer {good}"), "malformed"),
        ("E9", format!("Bearer Bearer {good}"), "malformed"),
        ("E9", format!("Bearer \"{good}\""), "malformed"),
        ("E9", format!("Bearer <{good}>"), "malformed"),
        ("E9", format!("Bearer token={good}"), "malformed"),
        ("E9", format!("Bearer {encoded}"), "malformed"),
        ("E9", format!("Bearer {good}\0"), "malformed"),
        ("E9", format!("Bearer {good}; x=1"), "malformed"),
    ] {
        // As a map, as a list of raw values, and with a name in another case: the same result (E4, E5).
        let requests = [
            ("map", Ask::default().header("authorization", value.clone())),
            ("raw", Ask::default().raw_header("authorization", value.as_bytes())),
            ("case", Ask::default().header("Authorization", value.clone())),
            ("raw case", Ask::default().raw_header("AUTHORIZATION", value.as_bytes())),
        ];
        for (form, ask) in requests {
            let answer = service.ask(ask).await;
            let what = format!("{form} {value:?}");
            wrong.extend(check_answer(id, &what.replace(&good, "GOOD"), &answer, reason, &parts(&good)));
        }
    }
    assert_no_errors(&wrong);
}

#[tokio::test]
async fn raw_headers_are_treated_like_others_and_different_values_are_denied() {
    let (service, good, other) = service(|_| {}).await;
    let bearer = |token: &str| format!("Bearer {token}");
    let raw = |values: &[&str]| {
        values.iter().fold(Ask::default(), |ask, value| ask.raw_header("authorization", *value))
    };
    let mut wrong = Vec::new();
    for (id, what, ask, reason) in [
        ("E3", "two lines, the same", raw(&[&bearer(&good), &bearer(&good)]), "ok"),
        ("E3", "two lines", raw(&[&bearer(&good), &bearer(&other)]), "multiple_tokens"),
        ("E3", "two lines, one bad", raw(&[&bearer(&good), "Bearer x.y.z"]), "multiple_tokens"),
        ("E3", "two lines, bad first", raw(&["Bearer x.y.z", &bearer(&good)]), "multiple_tokens"),
        ("E3", "two lines, one empty", raw(&[&bearer(&good), "Bearer "]), "malformed"),
        ("E3", "good and Basic", raw(&[&bearer(&good), "Basic dTpw"]), "multiple_tokens"),
        ("E3", "Basic and good", raw(&["Basic dTpw", &bearer(&good)]), "multiple_tokens"),
        ("E4", "one line", raw(&[&bearer(&good)]), "ok"),
        ("E4", "nothing", Ask::default().raw_header("x-other", "1"), "token_missing"),
        (
            "E4",
            "not UTF-8",
            Ask::default().raw_header("authorization", b"Bearer \xff\xfe".as_slice()),
            "malformed",
        ),
        (
            "E4",
            "the map and the list differ",
            Ask::default().header("authorization", bearer(&good)).raw_header("authorization", bearer(&other)),
            "multiple_tokens",
        ),
    ] {
        wrong.extend(check_answer(id, what, &service.ask(ask).await, reason, &parts(&good)));
    }
    assert_no_errors(&wrong);
}

#[tokio::test]
async fn a_token_is_used_only_in_a_configured_place_and_only_if_it_is_the_only_one() {
    let (header_only, good, other) = service(|_| {}).await;
    let mut wrong = Vec::new();
    let bearer = format!("Bearer {good}");
    for (id, what, ask, reason) in [
        ("E13", "query", Ask::default().path(format!("/?access_token={good}")), "token_missing"),
        ("E13", "cookie", Ask::default().header("cookie", format!("access_token={good}")), "token_missing"),
        ("E13", "x-token", Ask::default().header("x-token", good.clone()), "token_missing"),
        ("E14", "proxy", Ask::default().header("proxy-authorization", bearer.clone()), "token_missing"),
        (
            "E14",
            "forwarded",
            Ask::default().header("x-forwarded-authorization", bearer.clone()),
            "token_missing",
        ),
        (
            "E14",
            "original",
            Ask::default().header("x-original-authorization", bearer.clone()),
            "token_missing",
        ),
        ("E14", "underscore", Ask::default().header("authorization_", bearer.clone()), "token_missing"),
        (
            "E13",
            "a bad one elsewhere",
            Ask::default().header("authorization", bearer.clone()).path("/?access_token=bad"),
            "ok",
        ),
        (
            "E26",
            "spoofed paths",
            Ask::default()
                .header("authorization", bearer.clone())
                .header("x-envoy-original-path", "/?x")
                .header("x-original-url", "/admin"),
            "ok",
        ),
    ] {
        wrong.extend(check_answer(id, what, &header_only.ask(ask).await, reason, &parts(&good)));
    }
    assert_no_errors(&wrong);
    drop((header_only, good, other));

    let (everywhere, good, other) = service(|rules| {
        rules.token_from = vec![
            TokenSource::default(),
            TokenSource::Cookie("access_token".to_owned()),
            TokenSource::Query("t".to_owned()),
            TokenSource::Header { name: HeaderName::from_static("x-token"), scheme: None },
        ];
    })
    .await;
    let mut wrong = Vec::new();
    let bad = "x.y.z-not-a-token";
    let header = |token: &str| Ask::default().header("authorization", format!("Bearer {token}"));
    let cookie = |value: String| Ask::default().header("cookie", value);
    let query = |query: String| Ask::default().path(format!("/orders?{query}"));
    for (id, what, ask, reason) in [
        (
            "E10",
            "header and cookie, the same",
            header(&good).header("cookie", format!("a=1; access_token={good}")),
            "ok",
        ),
        ("E10", "header and query, the same", header(&good).path(format!("/?t={good}")), "ok"),
        (
            "E10",
            "good header, other cookie",
            header(&good).header("cookie", format!("access_token={other}")),
            "multiple_tokens",
        ),
        (
            "E10",
            "good header, bad cookie",
            header(&good).header("cookie", format!("access_token={bad}")),
            "multiple_tokens",
        ),
        (
            "E10",
            "bad header, good cookie",
            header(bad).header("cookie", format!("access_token={good}")),
            "multiple_tokens",
        ),
        ("E10", "good header, bad query", header(&good).path(format!("/?t={bad}")), "multiple_tokens"),
        ("E10", "bad header, good query", header(bad).path(format!("/?t={good}")), "multiple_tokens"),
        ("E10", "good header, bad x-token", header(&good).header("x-token", bad), "multiple_tokens"),
        ("E10", "x-token alone", Ask::default().header("x-token", good.clone()), "ok"),
        (
            "E10",
            "x-token with a scheme",
            Ask::default().header("x-token", format!("Bearer {good}")),
            "malformed",
        ),
        ("E10", "x-token joined", Ask::default().header("x-token", format!("{good},{good}")), "malformed"),
        (
            "E10",
            "empty header, good cookie",
            Ask::default().header("authorization", "Bearer").header("cookie", format!("access_token={good}")),
            "malformed",
        ),
        ("E11", "once", query(format!("t={good}")), "ok"),
        ("E11", "among others", query(format!("a=1&t={good}&b=2")), "ok"),
        ("E11", "twice the same", query(format!("t={good}&t={good}")), "ok"),
        ("E11", "good and bad", query(format!("t={good}&t={bad}")), "multiple_tokens"),
        ("E11", "bad and good", query(format!("t={bad}&t={good}")), "multiple_tokens"),
        ("E11", "good and another", query(format!("t={good}&t={other}")), "multiple_tokens"),
        ("E11", "an encoded name", query(format!("%74={good}")), "malformed"),
        ("E11", "good, and an encoded name", query(format!("t={good}&%74={bad}")), "malformed"),
        ("E11", "an encoded value", query(format!("t={}", good.replace('.', "%2e"))), "ok"),
        ("E11", "twice encoded", query(format!("t={}", good.replace('.', "%252e"))), "malformed"),
        ("E11", "semicolons", query(format!("a=1;t={good}")), "token_missing"),
        ("E11", "a trailing semicolon", query(format!("t={good};t={bad}")), "malformed"),
        ("E11", "plus", query(format!("t=+{good}")), "malformed"),
        ("E11", "an array", query(format!("t[]={good}")), "token_missing"),
        ("E11", "another case", query(format!("T={good}")), "token_missing"),
        ("E11", "in the fragment", query(format!("a=1#&t={good}")), "token_missing"),
        ("E11", "in the path", Ask::default().path(format!("/t={good}")), "token_missing"),
        ("E11", "a second question mark", query(format!("a=1?t={good}")), "token_missing"),
        ("E11", "empty", query("t=".to_owned()), "token_missing"),
        ("E11", "not UTF-8", query("t=%ff%fe".to_owned()), "malformed"),
        ("E11", "NUL", query(format!("t={good}%00")), "malformed"),
        ("E12", "twice the same", cookie(format!("access_token={good}; access_token={good}")), "ok"),
        (
            "E12",
            "good and bad",
            cookie(format!("access_token={good}; access_token={bad}")),
            "multiple_tokens",
        ),
        (
            "E12",
            "bad and good",
            cookie(format!("access_token={bad}; access_token={good}")),
            "multiple_tokens",
        ),
        ("E12", "quoted (RFC 6265 §4.1.1)", cookie(format!("access_token=\"{good}\"")), "ok"),
        ("E12", "half quoted", cookie(format!("access_token=\"{good}")), "malformed"),
        (
            "E12",
            "two lines, joined by a comma",
            cookie(format!("access_token={good}")).header("cookie", format!("access_token={bad}")),
            "malformed",
        ),
        (
            "E12",
            "two raw lines",
            Ask::default()
                .raw_header("cookie", format!("access_token={good}"))
                .raw_header("cookie", format!("access_token={bad}")),
            "multiple_tokens",
        ),
        ("E12", "a prefix", cookie(format!("__Host-access_token={good}")), "token_missing"),
        ("E12", "another case", cookie(format!("Access_Token={good}")), "token_missing"),
        ("E12", "percent-encoded", cookie(format!("access%5Ftoken={good}")), "token_missing"),
        ("E12", "without a name", cookie(format!("={good}")), "token_missing"),
        ("E12", "empty", cookie("access_token=".to_owned()), "token_missing"),
        ("E12", "old-style attributes", cookie(format!("$Version=1; access_token={good}; $Path=/")), "ok"),
        ("E12", "commas", cookie(format!("a=1, access_token={good}")), "malformed"),
    ] {
        wrong.extend(check_answer(id, what, &everywhere.ask(ask).await, reason, &parts(&good)));
    }
    assert_no_errors(&wrong);
}

#[tokio::test]
async fn a_client_cannot_send_claim_headers() {
    // The claim headers of the other provider are removed too, also for tokens of this one.
    let key = es256("es");
    let (mut ours, mut theirs) = (provider("ours", ISSUER), provider("theirs", "https://other.example"));
    ours.claim_headers =
        crate::support::claim_headers(&[("x-auth-subject", "sub"), ("x-auth-tenant", "tenant_id")]);
    theirs.claim_headers = crate::support::claim_headers(&[("x-their-role", "role")]);
    let keys = [key.public_jwk()];
    let service =
        Running::start(config(vec![inline(ours, &keys), inline(theirs, &keys)]), fixed_clock()).await;
    let token = key.sign(&json!({"iss": ISSUER, "aud": "orders-api", "sub": "alice", "exp": NOW + 300}));
    let spoofed = [
        "x-auth-subject",
        "x_auth_subject",
        "x-auth_subject",
        "x.auth.subject",
        "X_Auth_Subject",
        // lighttpd converts everything but letters and digits to `_`.
        "x~auth~subject",
        "x!auth|subject",
        "x$auth'subject",
        "x-auth-tenant",
        "x_auth_tenant",
        "x-their-role",
        "x_their_role",
    ];
    let unrelated = ["x-auth-subject2", "x-auth-subjec~", "x-auth", "xauthsubject", "x-request-id"];
    let ask = |raw: bool| {
        let start = Ask::default().header("authorization", format!("Bearer {token}"));
        spoofed.into_iter().chain(unrelated).fold(start, |ask, name| {
            if raw { ask.raw_header(name, "root") } else { ask.header(name, "root") }
        })
    };
    for raw in [false, true] {
        let answer = service.ask(ask(raw)).await;
        assert_eq!(answer.faults("ok", &[]), Vec::<String>::new(), "E15");
        assert_eq!(answer.set.get("x-auth-subject").map(String::as_str), Some("alice"), "E15 E17");
        assert_eq!(answer.set.len(), 1, "E15 {:?}", answer.set);
        for name in spoofed.into_iter().filter(|name| *name != "x-auth-subject") {
            assert!(answer.removed.iter().any(|removed| removed == name), "E15 {name} stays");
        }
        assert!(!answer.removed.iter().any(|removed| removed == "x-auth-subject"), "E15");
        for name in unrelated {
            assert!(!answer.removed.iter().any(|removed| removed == name), "E15 {name} is removed");
        }
    }
    // A denial forwards nothing, so nothing has to be removed.
    let denied = service.ask(Ask::default().header("x-auth-subject", "root")).await;
    assert_eq!(denied.faults("token_missing", &["root"]), Vec::<String>::new(), "E15");
}

#[tokio::test]
async fn a_token_that_is_not_forwarded_is_removed_from_every_place() {
    let (service, good, _) = service(|rules| {
        rules.forward_token = false;
        rules.token_from = vec![
            TokenSource::default(),
            TokenSource::Cookie("access_token".to_owned()),
            TokenSource::Query("t".to_owned()),
        ];
    })
    .await;
    let answer = service
        .ask(
            Ask::default()
                .header("authorization", format!("Bearer {good}"))
                .header("cookie", format!("a=1; access_token={good}; b=2; access_token={good}"))
                .path(format!("/?t={good}&u=1")),
        )
        .await;
    assert_eq!(answer.faults("ok", &parts(&good)), Vec::<String>::new());
    assert!(answer.removed.contains(&"authorization".to_owned()), "{:?}", answer.removed);
    assert_eq!(answer.set.get("cookie").map(String::as_str), Some("a=1; b=2"));
    assert_eq!(answer.removed_query, ["t"]);
    let alone = service.ask(Ask::default().header("cookie", format!("access_token={good}"))).await;
    assert!(alone.removed.contains(&"cookie".to_owned()), "{:?}", alone.removed);
    // A cookie header is client text: what remains of it must still be a valid header.
    let odd = Ask::default()
        .raw_header("cookie", format!("access_token={good}; a=\u{1}\r\nx-admin: 1; b=é").into_bytes());
    let answer = service.ask(odd).await;
    assert_eq!(answer.reason(), "ok");
}

#[tokio::test]
async fn a_request_of_any_size_is_decided_or_denied_and_the_next_one_is_served() {
    let (service, good, _) = service(|_| {}).await;
    let mut many = Ask::default().header("authorization", format!("Bearer {good}"));
    for i in 0..5_000 {
        many = many.header(format!("x-header-{i}"), "value");
    }
    let big =
        Ask::default().header("authorization", format!("Bearer {good}")).header("x-big", "x".repeat(1 << 20));
    let long_path = Ask::default()
        .header("authorization", format!("Bearer {good}"))
        .path(format!("/{}", "a/../".repeat(100_000)));
    for (what, ask) in [("5,000 headers", many), ("1 MiB", big), ("a long path", long_path)] {
        let answer = service.ask(ask).await;
        assert_eq!(answer.faults("ok", &[]), Vec::<String>::new(), "E29 {what}");
    }
    let huge = Ask::default()
        .header("authorization", format!("Bearer {good}"))
        .header("x-huge", "x".repeat(8 << 20));
    assert_eq!(service.ask(huge).await.reason(), "ok", "E29 a message of 8 MiB");
    let over = Ask::default()
        .header("authorization", format!("Bearer {good}"))
        .header("x-huge", "x".repeat(16 << 20));
    assert_eq!(service.ask(over).await.reason(), "request_malformed", "E29 over limits.message_bytes");
    assert_eq!(service.bearer(&good).await.reason(), "ok", "E29 the next one");
}

#[tokio::test]
async fn a_denial_reveals_nothing_new_to_its_client() {
    let env = TestEnv::start(&[&es256("es")], |_| {}).await;
    let claims = env.claims();
    let marker = "\"><script>\r\nset-cookie: a=b";
    let mut bodies = std::collections::BTreeMap::<String, Vec<String>>::new();
    for (name, value) in
        [("aud", json!(marker)), ("iss", json!(marker)), ("sub", json!([marker])), ("typ", json!(marker))]
    {
        let mut claims = claims.clone();
        let mut header = env.key.header();
        header[name] = value.clone();
        claims[name] = value;
        let answer = env.service.bearer(&env.key.sign_with_header(&header, &claims)).await;
        let whole = format!("{:?}", answer.response);
        for secret in ["<script", "set-cookie", env.issuer.issuer(), "orders-api"] {
            assert!(!whole.contains(secret), "E31 H5 {name}: {whole}");
        }
        bodies.entry(answer.reason().to_owned()).or_default().push(answer.body);
    }
    assert_eq!(bodies.len(), 4, "{bodies:?}");
    // The response does not reveal whether a kid exists: an unknown kid and a bad signature look the same.
    let forged = es256("es").sign(&claims);
    let unknown = es256("unknown").sign(&claims);
    let (forged, unknown) = (env.service.bearer(&forged).await, env.service.bearer(&unknown).await);
    assert_eq!((forged.reason(), unknown.reason()), ("bad_signature", "key_unknown"));
    assert_eq!(forged.body, unknown.body, "H5");
    assert_eq!(forged.set, unknown.set, "H5");
    assert_eq!(
        forged.response.status.map(|status| status.message),
        unknown.response.status.map(|status| status.message),
        "H5"
    );
    // E32: a missing token is challenged without an error, a bad one with `invalid_token`.
    let missing = env.service.ask(Ask::default()).await;
    assert_eq!(missing.www_authenticate(), Some("Bearer realm=\"portcullis\""), "E32");
    let expired = env.key.sign(&without_claim(claims, "exp"));
    let expired = env.service.bearer(&expired).await;
    let challenge = expired.www_authenticate().expect("a challenge");
    assert!(
        challenge.starts_with("Bearer realm=\"portcullis\", error=\"invalid_token\", error_description=\""),
        "E32 {challenge}"
    );
    // For a gRPC client the same denial has no body.
    let grpc = Ask::default().header("content-type", "application/grpc");
    let answer = env.service.ask(grpc).await;
    assert_eq!((answer.http_status, answer.body.as_str()), (401, ""));
}

#[tokio::test]
async fn two_providers_may_read_the_same_header_with_and_without_a_scheme() {
    let key = SigningKey::generate("es", SigningAlgorithm::ES256);
    let read = |name: &str, issuer: &str, scheme: Option<&str>| {
        let mut rules = provider(name, issuer);
        let (name, scheme) = (AUTHORIZATION, scheme.map(str::to_owned));
        rules.token_from = vec![TokenSource::Header { name, scheme }];
        inline(rules, &[key.public_jwk()])
    };
    let (by_scheme, whole) = ("https://scheme.example.com", "https://whole.example.com");
    let providers = vec![read("w", whole, None), read("s", by_scheme, Some("Bearer"))];
    let service = Running::start(config(providers), fixed_clock()).await;
    let token = |issuer: &str| {
        key.sign(&json!({"iss": issuer, "aud": "orders-api", "sub": "alice", "exp": NOW + 300}))
    };
    let (of_scheme, of_whole) = (token(by_scheme), token(whole));
    let mut wrong = Vec::new();
    for (what, lines, reason) in [
        ("by its scheme", vec![format!("Bearer {of_scheme}")], "ok"),
        ("in another case", vec![format!("BEARER  {of_scheme}")], "ok"),
        ("whole", vec![of_whole.clone()], "ok"),
        ("the other's place", vec![of_scheme.clone()], "token_missing"),
        ("the other's place", vec![format!("Bearer {of_whole}")], "token_missing"),
        ("an unknown scheme", vec![format!("Basic {of_whole}")], "malformed"),
        ("two lines", vec![format!("Bearer {of_scheme}"), of_whole.clone()], "multiple_tokens"),
        ("two lines", vec![of_whole.clone(), format!("Bearer {of_scheme}")], "multiple_tokens"),
    ] {
        let ask = lines
            .into_iter()
            .fold(Ask::default(), |ask, line| ask.raw_header("authorization", line.into_bytes()));
        let answer = service.ask(ask).await;
        wrong.extend(check_answer("E10", what, &answer, reason, &[&of_scheme, &of_whole]));
    }
    assert_no_errors(&wrong);
}
