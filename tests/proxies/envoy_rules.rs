//! The rule and path cases through a real Envoy, with and without path normalization.
//!
//! The tests assert what a client and an upstream observe, never the internals of the service.

use portcullis::clock::Clock;

use crate::support::raw;
use crate::support::real::{Envoy, Portcullis, Upstream, client};
use crate::support::rule_cases::{Bearer, Case, PATH_CASES, RULE_CASES, RulesFixture};

fn now() -> i64 {
    Clock::System.now().as_secs_f64() as i64
}

/// The service, Envoy and an upstream.
struct TestEnv {
    envoy: Envoy,
    upstream: Upstream,
    _portcullis: Portcullis,
}

impl TestEnv {
    async fn start(configuration: &str, changes: &[(&str, String)]) -> Self {
        let portcullis = Portcullis::serve(configuration).await;
        portcullis.ready().await;
        let upstream = Upstream::start().await;
        let envoy = Envoy::start_with(portcullis.ext_authz, upstream.address, changes).await;
        Self { envoy, upstream, _portcullis: portcullis }
    }
}

/// Sends every case through an Envoy with these replacements in its configuration, and compares the statuses.
async fn check(changes: &[(&str, String)], expected: impl Fn(&Case) -> u16) {
    let fixture = RulesFixture::new();
    let env = TestEnv::start(&fixture.providers_and_rules(), changes).await;
    let mut wrong = Vec::new();
    for case in RULE_CASES.iter().chain(PATH_CASES) {
        let line = format!("{} {} HTTP/1.1", case.method, case.target);
        let token = fixture.token(case.bearer, now()).map(|token| format!("Bearer {token}"));
        let mut headers = vec![("host", case.host)];
        headers.extend(case.headers);
        headers.extend(token.as_ref().map(|token| ("authorization", token.as_str())));
        let before = env.upstream.received();
        let address = env.envoy.address();
        let status = tokio::task::block_in_place(|| raw::status(address, &line, &headers));
        let passed = env.upstream.received() > before;
        // Envoy itself refuses a method that HTTP does not define.
        let expected = if case.method == "GETT" { 400 } else { expected(case) };
        if status != expected || passed != (status == 200) {
            wrong.push(format!("{case:?}: {status}, passed: {passed}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_case_gets_its_status_from_an_envoy_that_normalizes_paths() {
    check(&[], |case| case.normalized.unwrap_or(case.status())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_case_gets_its_status_from_an_envoy_that_does_not_normalize_paths() {
    let changes = [
        ("normalize_path: true", "normalize_path: false".to_owned()),
        ("merge_slashes: true", "merge_slashes: false".to_owned()),
        (
            "path_with_escaped_slashes_action: REJECT_REQUEST",
            "path_with_escaped_slashes_action: KEEP_UNCHANGED".to_owned(),
        ),
    ];
    check(&changes, Case::status).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_of_envoy_names_the_rule() {
    let fixture = RulesFixture::new();
    let route = "route: {cluster: upstream}";
    let named = |rule: &str| {
        format!(
            "{route}
                          typed_per_filter_config:
                            envoy.filters.http.ext_authz:
                              \"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute
                              check_settings: {{context_extensions: {{portcullis_rule: {rule}}}}}"
        )
    };
    let token = fixture.token(Bearer::With("{}"), now()).expect("a token");
    for (rule, path, bearer, expected) in [
        ("health", "/internal/x", false, 200),
        ("by-name", "/internal/x", true, 200),
        ("by-name", "/healthz", false, 401),
        ("blocked", "/healthz", true, 403),
        ("nobody", "/healthz", true, 403),
        ("public", "/public", false, 403),
    ] {
        let env = TestEnv::start(&fixture.providers_and_rules(), &[(route, named(rule))]).await;
        let mut request = client().get(env.envoy.url(path)).header("portcullis_rule", "health");
        if bearer {
            request = request.bearer_auth(&token);
        }
        let status = request.send().await.expect("Envoy answers").status();
        assert_eq!(status.as_u16(), expected, "{rule} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metadata_of_a_route_of_envoy_names_the_rule_and_no_metadata_that_a_client_fills() {
    let fixture = RulesFixture::new();
    let route = "route: {cluster: upstream}";
    let namespaces = "route_metadata_context_namespaces: [portcullis]";
    // A filter that fills the metadata of the request from a header, and an ext_authz that sends it.
    let filled = format!("{namespaces}\n                      metadata_context_namespaces: [portcullis]");
    let mutation = "- name: envoy.filters.http.header_mutation";
    let from_header = format!(
        "- name: envoy.filters.http.header_to_metadata
                    typed_config:
                      \"@type\": type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config
                      request_rules:
                        - header: x-rule
                          on_header_present: {{metadata_namespace: portcullis, key: rule}}
                  {mutation}"
    );
    let token = fixture.token(Bearer::With("{}"), now()).expect("a token");
    for (rule, path, bearer, expected) in [
        (Some("health"), "/internal/x", false, 200),
        (Some("by-name"), "/internal/x", true, 200),
        (Some("by-name"), "/healthz", false, 401),
        (Some("public"), "/public", false, 403),
        (Some("nobody"), "/healthz", true, 403),
        (None, "/internal/x", true, 403),
        (None, "/healthz", false, 200),
    ] {
        let metadata = rule.map_or(String::new(), |rule| {
            format!(
                "\n                          metadata: {{filter_metadata: {{portcullis: {{rule: {rule}}}}}}}"
            )
        });
        let changes = [
            (route, format!("{route}{metadata}")),
            (namespaces, filled.clone()),
            (mutation, from_header.clone()),
        ];
        let env = TestEnv::start(&fixture.providers_and_rules(), &changes).await;
        let mut request = client().get(env.envoy.url(path)).header("x-rule", "health");
        if bearer {
            request = request.bearer_auth(&token);
        }
        let status = request.send().await.expect("Envoy answers").status();
        assert_eq!(status.as_u16(), expected, "{rule:?} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_removed_from_the_upstream_request_wherever_it_was_found() {
    let fixture = RulesFixture::new();
    let sources =
        "token_from: [{header: authorization, scheme: Bearer}, {cookie: session}, {query: access_token}]";
    let configuration = fixture.providers_and_rules().replacen(
        "    claim_headers:",
        &format!("    {sources}\n    forward_token: false\n    claim_headers:"),
        1,
    );
    let env = TestEnv::start(&configuration, &[]).await;
    let token = fixture.token(Bearer::With("{}"), now()).expect("a token");
    let url = |path: String| client().get(env.envoy.url(&path));
    let both = url(format!("/else?a=1&access_token={token}&b=2")).bearer_auth(&token);
    for request in [
        url("/else".to_owned()).bearer_auth(&token),
        url("/else".to_owned()).header("cookie", format!("a=1; session={token}; b=2")),
        url(format!("/else?a=1&access_token={token}&b=2")),
        both.header("cookie", format!("session={token}")),
    ] {
        let answer = request.send().await.expect("Envoy answers");
        assert_eq!(answer.status().as_u16(), 200);
        let received = answer.text().await.expect("text");
        assert!(!received.contains(&token), "{received}");
        assert!(received.contains("alice"), "{received}");
    }
    let answer = url(format!("/else?a=1&access_token={token}&b=2")).send().await.expect("Envoy answers");
    let received = answer.text().await.expect("text");
    let received: serde_json::Value = serde_json::from_str(&received).expect("the upstream's JSON");
    assert_eq!(received[":path"], "/else?a=1&b=2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_sees_the_client_address_of_envoy_and_grpc_web_gets_its_status() {
    let fixture = RulesFixture::new();
    let configuration = fixture.providers_and_rules().replacen(
        "rules:",
        "rules:
  - {name: here, match: {path: /here}, require: {condition: 'request.source_address == \"127.0.0.1\"'}}
  - {name: there, match: {path: /there}, require: {condition: 'request.source_address == \"10.0.0.1\"'}}",
        1,
    );
    let env = TestEnv::start(&configuration, &[]).await;
    let token = fixture.token(Bearer::With("{}"), now()).expect("a token");
    for (path, expected) in [("/here", 200), ("/there", 403)] {
        let request = client().get(env.envoy.url(path)).bearer_auth(&token);
        let request = request.header("x-forwarded-for", "10.0.0.1");
        assert_eq!(request.send().await.expect("Envoy answers").status().as_u16(), expected, "{path}");
    }
    let call = client().post(env.envoy.url("/else")).header("content-type", "application/grpc-web+proto");
    let denied = call.send().await.expect("Envoy answers");
    assert_eq!((denied.status().as_u16(), denied.headers()["grpc-status"].as_bytes()), (401, &b"16"[..]));
    assert_eq!(denied.headers()["grpc-message"], "a bearer token is required");
    assert_eq!(denied.text().await.expect("text"), "");
}
