//! Rules, in process: which rule a request matches, what it requires, and that every listener gives the same verdict.
//! The same table goes through a real Envoy in tests/proxies/envoy_rules.rs.

use crate::support::rule_cases::{Bearer, Case, PATH_CASES, RULE_CASES, RulesFixture};
use crate::support::{Ask, NOW, Running, fixed_clock, raw, with_http_doors};
use portcullis::access_request::AccessRequest;
use portcullis::config::{Config, Profile};
use portcullis::rules::{RequirementRejection, Requirements, Rule, RuleRejection};
use portcullis::validation::UnixTime;
use portcullis::validation::json::{Json, JsonLimits};
use portcullis::validation::provider::{Audiences, TokenSource};
use serde_json::Value;

/// The configuration of the tables, optionally with other rules.
fn configuration(fixture: &RulesFixture, rules: Option<&str>) -> Config {
    let mut text = fixture.providers_and_rules();
    if let Some(rules) = rules {
        text.truncate(text.find("rules:").expect("the rules come last"));
        text.push_str(rules);
    }
    let listen = "listen: {ext_authz: '127.0.0.1:0', admin: '127.0.0.1:0'}\n";
    let config = Config::parse(&format!("{listen}{text}"), &|_| None);
    with_http_doors(config.unwrap_or_else(|errors| panic!("{errors}")))
}

async fn service(fixture: &RulesFixture, rules: Option<&str>) -> Running {
    Running::start(configuration(fixture, rules), fixed_clock()).await
}

fn ask(fixture: &RulesFixture, case: &Case) -> Ask {
    let ask = Ask::default().method(case.method).host(case.host).path(case.target);
    let ask = case.headers.iter().fold(ask, |ask, (name, value)| ask.header(*name, *value));
    match fixture.token(case.bearer, NOW) {
        Some(token) => ask.header("authorization", format!("Bearer {token}")),
        None => ask,
    }
}

fn every_case() -> impl Iterator<Item = &'static Case> {
    RULE_CASES.iter().chain(PATH_CASES)
}

/// The result of the core library for a case: the rule's name and the reason.
fn evaluate(config: &Config, case: &Case) -> (String, &'static str) {
    let Case { method, host, target, .. } = *case;
    let headers = case.headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
    let request = AccessRequest::new(
        method.as_bytes(),
        host.as_bytes(),
        target.as_bytes(),
        headers,
        portcullis::clock::monotonic().into_std(),
    );
    let rule = match config.rules.choose(&request) {
        Ok(rule) => rule,
        Err(RuleRejection::NoSuchRule) => return (String::new(), "rule_denied"),
        Err(_) => return (String::new(), "request_malformed"),
    };
    let name = rule.map_or(String::new(), |rule| rule.name.clone());
    if rule.and_then(Rule::anonymous).is_some() {
        return (name, "anonymous");
    }
    if rule.is_some_and(|rule| rule.requirements().is_none()) {
        return (name, "rule_denied");
    }
    let (provider, claims) = match case.bearer {
        Bearer::None if rule.is_some_and(|rule| rule.without_token().is_some()) => {
            return (name, "anonymous");
        }
        Bearer::None => return (name, "token_missing"),
        Bearer::Expired => return (name, "expired"),
        Bearer::Partner => ("partner", "{}"),
        Bearer::With(claims) => ("test", claims),
    };
    let claims = RulesFixture::claims(claims);
    let audiences = match rule.and_then(Rule::requirements).and_then(|required| required.audiences.clone()) {
        Some(Audiences::AnyOf(audiences)) => audiences,
        _ => vec!["orders-api".to_owned()],
    };
    let is_wanted = |aud: &Value| audiences.iter().any(|wanted| aud == wanted);
    match &claims["aud"] {
        Value::Null => return (name, "claim_missing"),
        Value::Array(several) if !several.iter().any(is_wanted) => return (name, "audience_mismatch"),
        one @ Value::String(_) if !is_wanted(one) => return (name, "audience_mismatch"),
        _ => {}
    }
    let claims = claims.to_string();
    let claims = Json::parse(claims.as_bytes(), &JsonLimits::default()).expect("JSON");
    let check = |requirements: &Requirements| {
        requirements.check(provider, &claims, &request, UnixTime::from_secs(NOW))
    };
    let reason = match rule.and_then(Rule::requirements).map_or(Ok(()), check) {
        Ok(()) => "ok",
        Err(RequirementRejection::Scope) => "insufficient_scope",
        Err(_) => "rule_denied",
    };
    (name, reason)
}

#[test]
fn the_core_library_evaluates_every_case_of_the_tables() {
    let config = configuration(&RulesFixture::new(), None);
    let mut failures = Vec::new();
    for case in every_case() {
        let (rule, reason) = evaluate(&config, case);
        if reason != case.reason || (reason != "request_malformed" && rule != case.rule) {
            failures.push(format!("{case:?}: {rule} {reason}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test]
async fn every_case_of_the_tables_gets_its_verdict_under_its_rule() {
    let fixture = RulesFixture::new();
    let service = service(&fixture, None).await;
    let mut failures = Vec::new();
    for case in every_case() {
        let answer = service.ask(ask(&fixture, case)).await;
        let rule = answer.metadata.get("rule").map_or("", String::as_str);
        let mut faults = answer.faults(case.reason, &[]);
        if answer.http_status != i32::from(case.status()) {
            faults.push(format!("status {}", answer.http_status));
        }
        // An ambiguous path is rejected before a rule is chosen.
        if rule != case.rule && case.reason != "request_malformed" {
            faults.push(format!("rule {rule:?}"));
        }
        if !faults.is_empty() {
            failures.push(format!("{case:?}: {faults:?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test]
async fn a_header_that_overrides_the_method_or_the_path_is_removed() {
    let fixture = RulesFixture::new();
    let service = service(&fixture, None).await;
    let token = fixture.token(Bearer::With("{}"), NOW).expect("a token");
    for name in ["x-http-method-override", "X-HTTP-Method", "x-original-url", "x_rewrite_url", "forwarded"] {
        let ask = Ask::default().method("POST").path("/else").header(name, "DELETE");
        let answer = service.ask(ask.header("authorization", format!("Bearer {token}"))).await;
        assert_eq!(answer.reason(), "ok", "{name}");
        let is_removed = answer.removed.iter().any(|removed| removed.eq_ignore_ascii_case(name));
        assert!(is_removed, "{name}: {:?}", answer.removed);
    }
}

#[tokio::test]
async fn other_spellings_of_a_header_that_a_condition_reads_are_removed() {
    let fixture = RulesFixture::new();
    let service = service(&fixture, None).await;
    let token = fixture.token(Bearer::With("{}"), NOW).expect("a token");
    for forged in ["x_tenant", "X.Tenant"] {
        let ask = Ask::default().path("/tenants/acme/x").header("x-tenant", "acme").header(forged, "evil");
        let answer = service.ask(ask.header("authorization", format!("Bearer {token}"))).await;
        assert_eq!(answer.reason(), "ok");
        assert!(answer.removed.iter().any(|name| name.eq_ignore_ascii_case(forged)), "{:?}", answer.removed);
    }
}

#[tokio::test]
async fn no_upgrade_to_h2c_and_no_nominated_header_passes_even_where_no_token_is_needed() {
    let fixture = RulesFixture::new();
    let service = service(&fixture, None).await;
    for (name, value) in [
        ("upgrade", "h2c"),
        ("upgrade", "websocket, H2C"),
        ("http2-settings", "AAMAAABkAAQAAP__"),
        ("connection", "close, X-Auth-Subject"),
        ("connection", "x-tenant"),
        ("connection", "Host"),
        ("trailer", "x-auth-tenant"),
    ] {
        let answer = service.ask(Ask::default().path("/healthz").header(name, value)).await;
        assert_eq!(answer.faults("request_malformed", &[]), [""; 0], "{name}: {value}");
    }
    let ask = Ask::default().path("/healthz").header("connection", "Upgrade").header("upgrade", "websocket");
    assert_eq!(service.ask(ask).await.reason(), "anonymous");
}

#[tokio::test]
async fn an_unforwarded_token_is_removed_from_anonymous_requests_too() {
    let fixture = RulesFixture::new();
    let mut config = configuration(&fixture, None);
    for one in &mut config.providers {
        let mut provider = (*one.provider).clone();
        provider.forward_token = false;
        provider.token_from =
            vec![TokenSource::default(), TokenSource::Cookie("t".into()), TokenSource::Query("t".into())];
        one.provider = provider.into();
    }
    let service = Running::start(config, fixed_clock()).await;
    let anonymous = |path: &str| Ask::default().path(path);
    let answer = service.ask(anonymous("/healthz").header("authorization", "Bearer x.y.z")).await;
    assert!(answer.removed.iter().any(|name| name == "authorization"), "{:?}", answer.removed);
    let answer = service.ask(anonymous("/healthz").header("authorization", "Basic dTpw")).await;
    assert!(!answer.removed.iter().any(|name| name == "authorization"), "another scheme is not removed");
    // Envoy joins two lines like this.
    let answer = service.ask(anonymous("/healthz").header("authorization", "Basic dTpw,Bearer x.y.z")).await;
    assert!(answer.removed.iter().any(|name| name == "authorization"), "{:?}", answer.removed);
    let answer = service.ask(anonymous("/healthz").header("cookie", "a=1; t=x.y.z")).await;
    assert_eq!(answer.set.get("cookie").map(String::as_str), Some("a=1"));
    // PHP parses it as a cookie of that name.
    let answer = service.ask(anonymous("/healthz").header("cookie", "a=1; t[0]=x.y.z; b=2")).await;
    assert_eq!(answer.set.get("cookie").map(String::as_str), Some("a=1; b=2"));
    let answer = service.ask(anonymous("/healthz").header("cookie", "a=1; tt=2")).await;
    assert_eq!(answer.set.get("cookie"), None, "unchanged");
    let answer = service.ask(anonymous("/healthz?t=x.y.z")).await;
    assert_eq!(answer.removed_query, ["t"]);
    for target in ["/healthz?%74=x.y.z", "/healthz?T=x.y.z", "/healthz?a=b;t=x.y.z"] {
        assert_eq!(
            service.ask(anonymous(target)).await.faults("request_malformed", &[]),
            [""; 0],
            "{target}"
        );
    }
    // Envoy joins two lines like this.
    let answer = service.ask(anonymous("/healthz").header("cookie", "a=1; b=2,t=x.y.z; c=3")).await;
    assert_eq!(answer.set.get("cookie").map(String::as_str), Some("a=1; c=3"));
}

/// The status of an HTTP listener.
fn http_status(service: &Running, profile: Profile, fixture: &RulesFixture, case: &Case) -> u16 {
    let Case { method, host, target, .. } = *case;
    let url = format!("http://{host}{target}");
    let (line, mut headers) = match profile {
        Profile::IngressNginx => (
            "GET / HTTP/1.1".to_owned(),
            vec![("host", "door"), ("x-original-method", method), ("x-original-url", url.as_str())],
        ),
        Profile::Envoy => (format!("{method} {target} HTTP/1.1"), vec![("host", host)]),
        Profile::Nginx => (
            "GET / HTTP/1.1".to_owned(),
            vec![("host", host), ("x-original-method", method), ("x-original-uri", target)],
        ),
        Profile::Haproxy | Profile::Caddy | Profile::Traefik => (
            "GET / HTTP/1.1".to_owned(),
            vec![
                ("host", "door"),
                ("x-forwarded-method", method),
                ("x-forwarded-uri", target),
                ("x-forwarded-host", host),
            ],
        ),
    };
    // The controller replaces the client's.
    let is_replaced = |name: &str| profile == Profile::IngressNginx && name == "x-original-url";
    headers.extend(case.headers.iter().filter(|(name, _)| !is_replaced(name)));
    let token = fixture.token(case.bearer, NOW).map(|token| format!("Bearer {token}"));
    headers.extend(token.as_ref().map(|token| ("authorization", token.as_str())));
    raw::status(service.http_door(profile), &line, &headers)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_http_listener_gives_the_verdicts_of_the_tables() {
    let fixture = RulesFixture::new();
    let service = service(&fixture, None).await;
    for (name, profile) in Profile::NAMED {
        // hyper drops a fragment before the listener sees it. Envoy rejects such a request itself.
        let fragment = |case: &&Case| profile == Profile::Envoy && case.target.contains('#');
        for case in every_case().filter(|case| !fragment(case)) {
            let status = tokio::task::block_in_place(|| http_status(&service, profile, &fixture, case));
            assert_eq!(status, case.status(), "{name}: {case:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_path_of_a_proxys_request_names_the_rule_and_nothing_that_a_client_sends() {
    let fixture = RulesFixture::new();
    let service = service(&fixture, None).await;
    let token = fixture.token(Bearer::With("{}"), NOW).expect("a token");
    let bearer = format!("Bearer {token}");
    let status = |profile: Profile, target: &str, path: &str, with_token: bool| {
        let url = format!("http://api.example.com{path}");
        let mut headers = match profile {
            Profile::Envoy => vec![("host", "api.example.com")],
            Profile::IngressNginx => {
                vec![("host", "door"), ("x-original-method", "GET"), ("x-original-url", url.as_str())]
            }
            Profile::Nginx => {
                vec![("host", "api.example.com"), ("x-original-method", "GET"), ("x-original-uri", path)]
            }
            Profile::Haproxy | Profile::Caddy | Profile::Traefik => vec![
                ("host", "door"),
                ("x-forwarded-method", "GET"),
                ("x-forwarded-uri", path),
                ("x-forwarded-host", "api.example.com"),
            ],
        };
        headers.extend(with_token.then_some(("authorization", bearer.as_str())));
        let line = format!("GET {target} HTTP/1.1");
        tokio::task::block_in_place(|| raw::status(service.http_door(profile), &line, &headers))
    };
    for (name, profile) in Profile::NAMED.into_iter().filter(|(_, profile)| *profile != Profile::Envoy) {
        for (target, path, with_token, expected) in [
            ("/rule/health", "/internal/x", false, 200),
            ("/rule/by-name", "/internal/x", true, 200),
            ("/rule/by-name", "/healthz", false, 401),
            ("/rule/blocked", "/healthz", true, 403),
            // There is no such rule, or routes may not name it.
            ("/rule/public", "/public", false, 403),
            ("/rule/nobody", "/healthz", false, 403),
            ("/rule/", "/healthz", false, 403),
            ("/rule/health/", "/healthz", false, 403),
            ("/rule/heal%74h", "/healthz", false, 403),
            // Proxies pass on the client's query.
            ("/rule/blocked?/rule/health", "/healthz", false, 403),
            ("/?/rule/health", "/internal/x", false, 403),
            ("/auth?rule=health", "/internal/x", false, 403),
            ("/rule", "/healthz", false, 200),
            ("/auth/rule/health", "/internal/x", false, 403),
            ("/auth", "/rule/health", false, 401),
        ] {
            assert_eq!(status(profile, target, path, with_token), expected, "{name} {target} {path}");
        }
    }
    // This one forwards the client's own request line.
    assert_eq!(status(Profile::Envoy, "/rule/health", "", false), 401);
}

#[tokio::test]
async fn a_rule_named_by_the_route_replaces_matching_and_an_unknown_name_is_denied() {
    let fixture = RulesFixture::new();
    let service = service(&fixture, None).await;
    let bearer = |ask: Ask| {
        let token = fixture.token(Bearer::With("{}"), NOW).expect("a token");
        ask.header("authorization", format!("Bearer {token}"))
    };
    for (ask, reason) in [
        (bearer(Ask::default().path("/internal/x").rule("by-name")), "ok"),
        (Ask::default().path("/healthz").rule("by-name"), "token_missing"),
        (Ask::default().path("/internal/x").rule("health"), "anonymous"),
        (bearer(Ask::default().path("/else").rule("blocked")), "rule_denied"),
        (bearer(Ask::default().path("/else").rule("admin")), "rule_denied"),
        (bearer(Ask::default().path("/else").rule("nobody")), "rule_denied"),
        (bearer(Ask::default().path("/else").rule("")), "rule_denied"),
        (bearer(Ask::default().path("/else").rule("By-name")), "rule_denied"),
        (Ask::default().path("/healthz").rule("nobody"), "rule_denied"),
        // There is such a rule, but routes may not name it.
        (bearer(Ask::default().path("/public").rule("public")), "rule_denied"),
        // The match of a named rule is ignored, and so is the form of the path.
        (bearer(Ask::default().path("/a%2fb").rule("by-name")), "ok"),
        // A condition that reads the path needs a valid one.
        (
            bearer(Ask::default().path("/tenants/acme/a%2fb").header("x-tenant", "acme").rule("tenant")),
            "request_malformed",
        ),
        // A preflight rule applies to preflights only.
        (Ask::default().path("/else").rule("preflight"), "rule_denied"),
        (
            Ask::default()
                .method("OPTIONS")
                .header("origin", "https://app.example.com")
                .header("access-control-request-method", "GET")
                .rule("preflight"),
            "anonymous",
        ),
    ] {
        let answer = service.ask(ask.clone()).await;
        assert_eq!(answer.faults(reason, &[]), [""; 0], "{ask:?}");
    }
    let open = self::service(&fixture, Some("rules:\n  - {name: open, allow: anonymous}\n")).await;
    assert_eq!(open.ask(Ask::default()).await.reason(), "anonymous");
    assert_eq!(open.ask(Ask::default().rule("nobody")).await.faults("rule_denied", &[]), [""; 0]);
    // A request header does not select a rule.
    let answer =
        service.ask(bearer(Ask::default().path("/internal/x").header("portcullis_rule", "by-name"))).await;
    assert_eq!(answer.reason(), "rule_denied");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_rule_matches_is_denied_if_the_default_says_so() {
    let fixture = RulesFixture::new();
    let rules = "rules:
  - {name: open, match: {path: /open}, allow: anonymous}
  - {name: named, by_name: true, match: {path: /named}}
default: deny
";
    let service = service(&fixture, Some(rules)).await;
    let token = fixture.token(Bearer::With("{}"), NOW).expect("a token");
    let bearer = |ask: Ask| ask.header("authorization", format!("Bearer {token}"));
    for (ask, reason) in [
        (Ask::default().path("/open"), "anonymous"),
        (Ask::default().path("/else"), "rule_denied"),
        (bearer(Ask::default().path("/else")), "rule_denied"),
        (bearer(Ask::default().path("/named")), "ok"),
        (bearer(Ask::default().path("/else").rule("named")), "ok"),
        (bearer(Ask::default().path("/else").rule("open")), "rule_denied"),
    ] {
        let answer = service.ask(ask.clone()).await;
        assert_eq!(answer.faults(reason, &[]), [""; 0], "{ask:?}");
    }
    for profile in [Profile::Nginx, Profile::Envoy] {
        let case = Case { target: "/else", bearer: Bearer::With("{}"), ..RULE_CASES[0] };
        let status = tokio::task::block_in_place(|| http_status(&service, profile, &fixture, &case));
        assert_eq!(status, 403, "{profile:?}");
    }
}

#[tokio::test]
async fn a_target_without_a_path_is_rejected_if_rules_match_paths() {
    // E23: the other forms of RFC 9112 §3.2, and invalid targets.
    let fixture = RulesFixture::new();
    let service = service(&fixture, None).await;
    for (method, target) in [
        ("OPTIONS", "*"),
        ("CONNECT", "api.example.com:443"),
        ("GET", "http://api.example.com/public"),
        ("GET", "public"),
        ("GET", ""),
        ("GET", "?/public"),
        ("GET", "!"),
    ] {
        let ask = Ask::default().method(method).path(target);
        assert_eq!(service.ask(ask).await.faults("request_malformed", &[]), [""; 0], "{method} {target}");
    }
}

#[tokio::test]
async fn identity_headers_are_removed_from_anonymous_requests_too() {
    let fixture = RulesFixture::new();
    let service = service(&fixture, None).await;
    let ask = Ask::default()
        .path("/healthz")
        .header("x-auth-subject", "root")
        .header("x_auth_tenant", "root")
        .header("x.auth.roles", "root");
    let answer = service.ask(ask).await;
    assert_eq!(answer.reason(), "anonymous");
    assert!(answer.set.is_empty());
    for name in ["x-auth-subject", "x-auth-tenant", "x-auth-roles", "x_auth_tenant", "x.auth.roles"] {
        assert!(answer.removed.iter().any(|removed| removed == name), "{name} of {:?}", answer.removed);
    }
}

#[tokio::test]
async fn paths_and_hosts_are_not_validated_if_no_rule_matches_them() {
    let fixture = RulesFixture::new();
    let rules = "rules:\n  - {name: post, match: {methods: [POST]}, deny: true}\n";
    let service = service(&fixture, Some(rules)).await;
    let token = fixture.token(Bearer::With("{}"), NOW).expect("a token");
    for (path, host) in [("/a%2fb", "api.example.com"), ("*", ""), ("/a;b\\c", "a,b"), ("/%ff", "u@h")] {
        let ask = Ask::default().path(path).host(host).header("authorization", format!("Bearer {token}"));
        assert_eq!(service.ask(ask).await.reason(), "ok", "{path} {host}");
    }
}

#[tokio::test]
async fn an_invalid_host_is_rejected_if_a_rule_matches_hosts() {
    let fixture = RulesFixture::new();
    let service = service(&fixture, None).await;
    for host in ["", "a,b", "user@api.example.com", "api.example.com:80:80", "a..b", "api example.com"] {
        let ask = Ask::default().host(host).path("/healthz");
        assert_eq!(service.ask(ask).await.faults("request_malformed", &[]), [""; 0], "{host:?}");
    }
}

#[tokio::test]
async fn a_missing_scope_is_in_the_challenge() {
    let fixture = RulesFixture::new();
    let service = service(&fixture, None).await;
    let token = fixture.token(Bearer::With("{}"), NOW).expect("a token");
    let ask =
        Ask::default().method("POST").path("/orders").header("authorization", format!("Bearer {token}"));
    let answer = service.ask(ask).await;
    assert_eq!(
        answer.www_authenticate(),
        Some(
            "Bearer realm=\"portcullis\", error=\"insufficient_scope\", \
             error_description=\"the token lacks a scope that is needed here\", scope=\"orders:read orders:write\""
        )
    );
    let body: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(body["error"], "insufficient_scope");
}

#[tokio::test]
async fn a_condition_sees_who_asks_and_what_fails_in_it_is_a_denial() {
    let fixture = RulesFixture::new();
    let rules = "rules:
  - {name: from, match: {path: /from}, require: {condition: 'request.source_address == \"10.1.2.3\" && request.source_principal == \"spiffe://a/b\"'}}
  - {name: query, match: {path: /query}, require: {condition: 'request.query[\"tenant\"] == claims.tenant_id'}}
  - {name: method, match: {path: /method}, require: {condition: 'request.method == \"GET\" && request.host == \"api.example.com\"'}}
  - {name: fresh, match: {path: /fresh}, require: {condition: 'now - timestamp(claims.auth_time) < duration(\"1h\")'}}
";
    let service = service(&fixture, Some(rules)).await;
    let good = fixture.token(Bearer::With("{}"), NOW).expect("a token");
    for (ask, reason) in [
        (Ask::default().path("/from").from("10.1.2.3", "spiffe://a/b"), "ok"),
        (Ask::default().path("/from").from("10.1.2.4", "spiffe://a/b"), "rule_denied"),
        (Ask::default().path("/from"), "rule_denied"),
        (Ask::default().path("/query?tenant=acme"), "ok"),
        (Ask::default().path("/query?tenant=ac%6de"), "ok"),
        (Ask::default().path("/query?tenant=acme&tenant=acme"), "rule_denied"),
        (Ask::default().path("/query?tenant=globex"), "rule_denied"),
        (Ask::default().path("/query?x=1&tenant=acme&y=%ff"), "ok"),
        (Ask::default().path("/query?tenant=acme;x=1"), "rule_denied"),
        (Ask::default().path("/query?tenant=acme&Tenant=globex"), "rule_denied"),
        (Ask::default().path("/query?tenant=acme&tenant[]=globex"), "rule_denied"),
        (Ask::default().path("/query?tenant=acme&x=a;b"), "rule_denied"),
        (Ask::default().path("/query"), "rule_denied"),
        (Ask::default().path("/method").host("API.example.com:8443"), "ok"),
        (Ask::default().path("/method").method("POST"), "rule_denied"),
        (Ask::default().path("/fresh"), "rule_denied"),
    ] {
        let ask = ask.header("authorization", format!("Bearer {good}"));
        assert_eq!(service.ask(ask.clone()).await.faults(reason, &[]), [""; 0], "{ask:?}");
    }
    for (auth_time, reason) in [(NOW - 60, "ok"), (NOW - 7200, "rule_denied")] {
        let claims = format!("{{\"auth_time\": {auth_time}}}");
        let token = fixture.token(Bearer::With(claims.leak()), NOW).expect("a token");
        let ask = Ask::default().path("/fresh").header("authorization", format!("Bearer {token}"));
        assert_eq!(service.ask(ask).await.reason(), reason, "{auth_time}");
    }
}
