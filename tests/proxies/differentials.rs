//! Differential tests: a table of requests that proxies, Portcullis and frameworks interpret differently, sent byte by
//! byte through every real proxy with its files of `deploy/` to an upstream that records what it receives. Every
//! interpretation of a request that reaches the upstream has to be allowed by the rules for the client that sent it.
//!
//! The cases are in `differentials/table.rs`, the assertions in `differentials/judge.rs`, and ordinary requests that
//! have to pass in `differentials/plain.rs`. The tests never use the internals of the service.
//!
//! To add a proxy, add it in `differentials/env.rs` and to the list at the end of this file.

mod claims;
pub mod client;
mod differences;
pub mod env;
pub mod head;
pub mod judge;
pub mod message;
mod plain;
mod readings;
pub mod table;
mod upstream;

use std::collections::BTreeSet;

use tokio::sync::Mutex;

use env::{CLAIM_HEADERS, Outcome, PROXIES, Proxy, TestEnv};
use message::{Caller, Case, case, get};
use plain::Plain;
use upstream::Received;

/// One header more than the files of `deploy/` name: an outdated proxy file.
const ADDITIONAL_CLAIM_HEADER: &str = "claim_headers: {x-auth-subject: sub, x-auth-tenant: tenant_id, \
     x-auth-roles: /realm_access/roles, x-auth-email: email}";

/// Held by each test: parallel tests would cause timeouts on a small machine.
static SERIAL: Mutex<()> = Mutex::const_new(());

/// No case of the table bypasses the check.
async fn nothing_bypasses_the_check(name: &str) {
    let _serial = SERIAL.lock().await;
    let env = TestEnv::start(proxy(name), CLAIM_HEADERS).await;
    let cases = table::cases();
    let names: BTreeSet<&str> = cases.iter().map(|case| &case.name[..]).collect();
    assert_eq!(names.len(), cases.len(), "names are unique");
    let wrong = failures(&env, &cases).await;
    report(name, wrong, &cases);
}

/// The file of the proxy does not name a header of `claim_headers`.
async fn an_outdated_proxy_file_lets_no_identity_through(name: &str) {
    let _serial = SERIAL.lock().await;
    let env = TestEnv::start(proxy(name), ADDITIONAL_CLAIM_HEADER).await;
    let mut cases = Vec::new();
    for field in
        ["X-Auth-Email: root@evil", "x_auth_email: root@evil", "X-Auth-Email:\r\nX-Auth-Email: root@evil"]
    {
        cases.push(case(
            format!("10 {field:?} on an open path"),
            Caller::Anonymous,
            get("/public/x").with(field),
        ));
        cases.push(case(format!("10 {field:?} with a token"), Caller::Alice, get("/x").with(field)));
    }
    let wrong = failures(&env, &cases).await;
    report(name, wrong, &cases);
}

/// With `forward_token: false` and the lines for it in the proxy's file, no token reaches the upstream, verified or
/// not, and other cookies do.
async fn a_stripped_token_never_arrives(name: &str) {
    let _serial = SERIAL.lock().await;
    let provider = format!("forward_token: false\n    {CLAIM_HEADERS}");
    let env = TestEnv::start_with_recipe(proxy(name), &provider).await;
    let cookie = "Cookie: a=b; access_token={token}; c=d";
    let cases = [
        case("14 a token in its header", Caller::Alice, get("/x")),
        case("14 a token beside a cookie", Caller::Alice, get("/x").with("Cookie: a=b; c=d")),
        case("14 a token in a cookie", Caller::Alice, get("/x").without_token().with(cookie)),
        case("14 a token on an open path", Caller::Alice, get("/open/x")),
        case(
            "14 a token in a cookie on an open path",
            Caller::Alice,
            get("/open/x").without_token().with(cookie),
        ),
        case("14 a token in both", Caller::Alice, get("/x").with(cookie)),
    ];
    let (outcomes, _) = env.run(&cases).await;
    let token = env.token(Caller::Alice).expect("Alice has one");
    let mut wrong = Vec::new();
    for (case, outcome) in cases.iter().zip(&outcomes) {
        let mut faults = Vec::new();
        if outcome.received.len() != 1 {
            faults.push(format!("it arrived {} times", outcome.received.len()));
        }
        for received in &outcome.received {
            faults.extend(judge::faults(case, None, received));
            let head = String::from_utf8_lossy(&received.head).to_ascii_lowercase();
            if head.contains("access_token") || head.contains(&token.to_ascii_lowercase()) {
                faults.push("the token arrived".to_owned());
            }
            if case.name.contains("cookie") && !(head.contains("a=b") && head.contains("c=d")) {
                faults.push("other cookies did not arrive".to_owned());
            }
        }
        wrong.extend(failure(case, outcome, &faults));
    }
    report(name, wrong, &cases);
}

/// Any claim value reaches the upstream as one header in the documented encoding.
async fn claims_arrive_unchanged(name: &str) {
    let _serial = SERIAL.lock().await;
    let env = TestEnv::start(proxy(name), CLAIM_HEADERS).await;
    let mut values = claims::values();
    let cases: Vec<(Case, Option<String>)> = values
        .iter()
        .map(|value| (case("claim", Caller::Alice, get("/x")), Some(env.token_with("sub", value.as_str()))))
        .collect();
    let (outcomes, _) = env.run_with_tokens(cases).await;
    let mut wrong = Vec::new();
    for (value, outcome) in values.drain(..).zip(&outcomes) {
        let expected = claims::encoded(&value);
        let received: Vec<String> = outcome.received.iter().flat_map(subjects).collect();
        if received != [expected.clone()] {
            let statuses: Vec<u16> = outcome.answers.iter().map(|answer| answer.status).collect();
            let clip = |text: &str| text.chars().take(60).collect::<String>();
            let received: Vec<String> = received.iter().map(|text| clip(text)).collect();
            wrong.push(format!("{:?} arrives as {received:?} {statuses:?}", clip(&value)));
        }
    }
    assert!(wrong.is_empty(), "{} claims fail:\n{}", wrong.len(), wrong.join("\n"));
}

fn subjects(received: &Received) -> Vec<String> {
    let head = head::Head::read(&received.head);
    head.values("x-auth-subject")
        .into_iter()
        .map(|value| String::from_utf8_lossy(value).into_owned())
        .collect()
}

/// Ordinary requests pass unchanged.
async fn plain_requests_pass(name: &str) {
    let _serial = SERIAL.lock().await;
    let env = TestEnv::start(proxy(name), CLAIM_HEADERS).await;
    let mut plain = plain::requests();
    if matches!(proxy(name).profile, "envoy" | "traefik" | "haproxy") {
        plain.extend(plain::over_http2());
    }
    let cases: Vec<Case> = plain.iter().map(|plain| plain.case.clone()).collect();
    let (outcomes, _) = env.run(&cases).await;
    let mut wrong = Vec::new();
    for (plain, outcome) in plain.iter().zip(&outcomes) {
        let mut faults = plain_faults(plain, outcome);
        for received in &outcome.received {
            faults.extend(judge::faults(&plain.case, env.token(plain.case.caller), received));
        }
        wrong.extend(failure(&plain.case, outcome, &faults));
    }
    report(name, wrong, &cases);
}

/// The faults of the requests that reached the upstream, for every case.
async fn failures(env: &TestEnv, cases: &[Case]) -> Vec<(String, String)> {
    let (outcomes, unmarked) = env.run(cases).await;
    let mut wrong = Vec::new();
    for (case, outcome) in cases.iter().zip(&outcomes) {
        let mut faults = Vec::new();
        for received in &outcome.received {
            faults.extend(judge::faults(case, env.token(case.caller), received));
        }
        wrong.extend(failure(case, outcome, &faults));
    }
    // A request that lost its mark is attributed to an anonymous client.
    let unknown = case("of no case", Caller::Anonymous, get("/"));
    for received in unmarked {
        let faults = judge::faults(&unknown, None, &received);
        let outcome = Outcome { answers: Vec::new(), received: vec![received] };
        wrong.extend(failure(&unknown, &outcome, &faults));
    }
    wrong
}

/// How the outcome differs from the expected one of an ordinary request.
fn plain_faults(plain: &Plain, outcome: &Outcome) -> Vec<String> {
    let mut faults = Vec::new();
    if outcome.received.len() != plain.times {
        faults.push(format!("it arrived {} times, not {}", outcome.received.len(), plain.times));
    }
    let finals: Vec<u16> =
        outcome.answers.iter().map(|answer| answer.status).filter(|&status| status != 100).collect();
    if plain.status != 0 && finals != vec![plain.status; plain.times] {
        faults.push(format!("the answers are {finals:?}"));
    }
    for received in &outcome.received {
        let target = head::Head::read(&received.head).target;
        if !plain.targets.iter().any(|allowed| allowed.as_bytes() == target) {
            faults.push(format!("its target is {:?}", String::from_utf8_lossy(&target)));
        }
        let content = if plain.status == 101 { &received.tunnel } else { &received.body };
        if *content != plain.content {
            faults.push(format!("its content has {} bytes, not {}", content.len(), plain.content.len()));
        }
    }
    faults
}

/// The name of the case and a line with its faults, if it has any.
fn failure(case: &Case, outcome: &Outcome, faults: &[String]) -> Option<(String, String)> {
    let statuses: Vec<u16> = outcome.answers.iter().map(|answer| answer.status).collect();
    let faults: BTreeSet<&String> = faults.iter().collect();
    let faults: Vec<&str> = faults.into_iter().map(|fault| &fault[..]).collect();
    (!faults.is_empty()).then(|| (case.name.clone(), format!("{} {statuses:?}", faults.join("; "))))
}

/// # Panics
/// A case fails, except for known differences.
fn report(proxy: &str, wrong: Vec<(String, String)>, cases: &[Case]) {
    let names: Vec<&str> = cases.iter().map(|case| &case.name[..]).collect();
    let wrong = differences::unexpected(proxy, wrong, &names);
    assert!(wrong.is_empty(), "{} cases fail:\n{}", wrong.len(), wrong.join("\n"));
}

fn proxy(name: &str) -> Proxy {
    PROXIES.into_iter().find(|proxy| proxy.name == name).expect("a proxy of PROXIES")
}

/// The tests of each proxy of `env.rs`.
macro_rules! proxy_tests {
    ($($name:ident),+ $(,)?) => {
        $(mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn nothing_bypasses_the_check() {
                super::nothing_bypasses_the_check(stringify!($name)).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn an_outdated_proxy_file_lets_no_identity_through() {
                super::an_outdated_proxy_file_lets_no_identity_through(stringify!($name)).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn a_stripped_token_never_arrives() {
                super::a_stripped_token_never_arrives(stringify!($name)).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn claims_arrive_unchanged() {
                super::claims_arrive_unchanged(stringify!($name)).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn plain_requests_pass() {
                super::plain_requests_pass(stringify!($name)).await;
            }
        })+

        #[test]
        fn every_proxy_is_tested() {
            let named = PROXIES.map(|proxy| proxy.name);
            assert_eq!(named[..], [$(stringify!($name)),+]);
        }
    };
}

proxy_tests!(nginx, haproxy, caddy_2_6, caddy_2_10, caddy_2_11, traefik, envoy_grpc, envoy_http);

/// HAProxy's filter is a Lua program that many threads run.
#[tokio::test(flavor = "multi_thread")]
async fn the_trailer_filter_of_haproxy_works_under_load() {
    let _serial = SERIAL.lock().await;
    let env = TestEnv::start(proxy("haproxy"), CLAIM_HEADERS).await;
    let trailers: Vec<Case> =
        table::cases().into_iter().filter(|case| case.name.starts_with("12 the trailer")).collect();
    let in_round = |round| trailers.iter().cloned().map(move |case| numbered(case, round));
    let cases: Vec<Case> = (0..ROUNDS).flat_map(in_round).collect();
    let wrong = failures(&env, &cases).await;
    report("haproxy", wrong, &cases);
}

/// How often each trailer is sent under load.
const ROUNDS: usize = 40;

fn numbered(case: Case, round: usize) -> Case {
    Case { name: format!("round {round}: {}", case.name), ..case }
}
