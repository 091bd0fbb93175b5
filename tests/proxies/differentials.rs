//! What is judged is what the upstream does: a table of requests that proxies, Portcullis and frameworks read
//! differently, sent byte by byte through every real proxy under its shipped files, to an upstream that keeps what
//! it gets. Whatever reaches it has to be, in every reading, what the rules allow to the client that sent it.
//!
//! The cases are in `differentials/table.rs`, what has to hold in `differentials/judge.rs`, and the plain requests that have to pass
//! in `differentials/plain.rs`. It never looks inside the service.
//!
//! A proxy more is a line in `differentials/stage.rs` and a name at the end of this file.

mod claims;
pub mod client;
mod differences;
pub mod head;
pub mod judge;
pub mod message;
mod plain;
mod readings;
pub mod stage;
pub mod table;
mod upstream;

use std::collections::BTreeSet;

use tokio::sync::Mutex;

use message::{Case, Who, case, get};
use plain::Plain;
use stage::{CLAIM_HEADERS, Outcome, PROXIES, Proxy, Stage};
use upstream::Received;

/// One more than they name: a file that was not changed with the configuration.
const ONE_MORE: &str = "claim_headers: {x-auth-subject: sub, x-auth-tenant: tenant_id, \
     x-auth-roles: /realm_access/roles, x-auth-email: email}";

/// One proxy after the other: together they would time each other out on a small machine.
static TURN: Mutex<()> = Mutex::const_new(());

/// Nothing of the table goes around the door.
async fn nothing_goes_around(name: &str) {
    let _turn = TURN.lock().await;
    let stage = Stage::set(proxy(name), CLAIM_HEADERS).await;
    let cases = table::cases();
    let names: BTreeSet<&str> = cases.iter().map(|case| &case.name[..]).collect();
    assert_eq!(names.len(), cases.len(), "a name stands twice");
    let wrong = judged(&stage, &cases).await;
    report(name, wrong, &cases);
}

/// The file of the proxy lags behind `claim_headers`.
async fn a_file_that_lags_behind_lets_no_identity_through(name: &str) {
    let _turn = TURN.lock().await;
    let stage = Stage::set(proxy(name), ONE_MORE).await;
    let mut cases = Vec::new();
    for field in
        ["X-Auth-Email: root@evil", "x_auth_email: root@evil", "X-Auth-Email:\r\nX-Auth-Email: root@evil"]
    {
        cases.push(case(format!("10 {field:?} on an open path"), Who::Nobody, get("/public/x").with(field)));
        cases.push(case(format!("10 {field:?} beside a token"), Who::Alice, get("/x").with(field)));
    }
    let wrong = judged(&stage, &cases).await;
    report(name, wrong, &cases);
}

/// With `forward_token: false` and the lines that the proxy's file has for it, no token reaches the upstream,
/// judged or not, and everything else of a cookie does.
async fn a_hidden_token_never_arrives(name: &str) {
    let _turn = TURN.lock().await;
    let provider = format!("forward_token: false\n    {CLAIM_HEADERS}");
    let stage = Stage::set_hiding_tokens(proxy(name), &provider).await;
    let cookie = "Cookie: a=b; access_token={token}; c=d";
    let cases = [
        case("14 a token in its header", Who::Alice, get("/x")),
        case("14 a token beside a cookie", Who::Alice, get("/x").with("Cookie: a=b; c=d")),
        case("14 a token in a cookie", Who::Alice, get("/x").without_token().with(cookie)),
        case("14 a token on an open path", Who::Alice, get("/open/x")),
        case(
            "14 a token in a cookie on an open path",
            Who::Alice,
            get("/open/x").without_token().with(cookie),
        ),
        case("14 a token in both", Who::Alice, get("/x").with(cookie)),
    ];
    let (outcomes, _) = stage.play(&cases).await;
    let token = stage.token(Who::Alice).expect("Alice has one");
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
        wrong.extend(told(case, outcome, &faults));
    }
    report(name, wrong, &cases);
}

/// Whatever a claim holds, the upstream sees it as one header of the encoding that is promised.
async fn claims_arrive_as_they_are(name: &str) {
    let _turn = TURN.lock().await;
    let stage = Stage::set(proxy(name), CLAIM_HEADERS).await;
    let mut values = claims::values();
    let cases: Vec<(Case, Option<String>)> = values
        .iter()
        .map(|value| (case("claim", Who::Alice, get("/x")), Some(stage.token_with("sub", value.as_str()))))
        .collect();
    let (outcomes, _) = stage.play_with(cases).await;
    let mut wrong = Vec::new();
    for (value, outcome) in values.drain(..).zip(&outcomes) {
        let expected = claims::encoded(&value);
        let seen: Vec<String> = outcome.received.iter().flat_map(subjects).collect();
        if seen != [expected.clone()] {
            let statuses: Vec<u16> = outcome.answers.iter().map(|answer| answer.status).collect();
            let clip = |text: &str| text.chars().take(60).collect::<String>();
            let seen: Vec<String> = seen.iter().map(|text| clip(text)).collect();
            wrong.push(format!("{:?} arrives as {seen:?} {statuses:?}", clip(&value)));
        }
    }
    assert!(wrong.is_empty(), "{} claims went wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn subjects(received: &Received) -> Vec<String> {
    let head = head::Head::read(&received.head);
    head.values("x-auth-subject")
        .into_iter()
        .map(|value| String::from_utf8_lossy(value).into_owned())
        .collect()
}

/// Plain requests pass as they are.
async fn plain_requests_pass(name: &str) {
    let _turn = TURN.lock().await;
    let stage = Stage::set(proxy(name), CLAIM_HEADERS).await;
    let mut plain = plain::requests();
    if matches!(proxy(name).profile, "envoy" | "traefik" | "haproxy") {
        plain.extend(plain::over_http2());
    }
    let cases: Vec<Case> = plain.iter().map(|plain| plain.case.clone()).collect();
    let (outcomes, _) = stage.play(&cases).await;
    let mut wrong = Vec::new();
    for (plain, outcome) in plain.iter().zip(&outcomes) {
        let mut faults = passed(plain, outcome);
        for received in &outcome.received {
            faults.extend(judge::faults(&plain.case, stage.token(plain.case.who), received));
        }
        wrong.extend(told(&plain.case, outcome, &faults));
    }
    report(name, wrong, &cases);
}

/// What is wrong with requests that reached the upstream, for every case.
async fn judged(stage: &Stage, cases: &[Case]) -> Vec<(String, String)> {
    let (outcomes, unmarked) = stage.play(cases).await;
    let mut wrong = Vec::new();
    for (case, outcome) in cases.iter().zip(&outcomes) {
        let mut faults = Vec::new();
        for received in &outcome.received {
            faults.extend(judge::faults(case, stage.token(case.who), received));
        }
        wrong.extend(told(case, outcome, &faults));
    }
    // Whoever sends something so odd that its mark is lost is taken for nobody.
    let nobody = case("of no case", Who::Nobody, get("/"));
    for received in unmarked {
        let faults = judge::faults(&nobody, None, &received);
        let outcome = Outcome { answers: Vec::new(), received: vec![received] };
        wrong.extend(told(&nobody, &outcome, &faults));
    }
    wrong
}

/// What a plain request lacks.
fn passed(plain: &Plain, outcome: &Outcome) -> Vec<String> {
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

fn told(case: &Case, outcome: &Outcome, faults: &[String]) -> Option<(String, String)> {
    let statuses: Vec<u16> = outcome.answers.iter().map(|answer| answer.status).collect();
    let faults: BTreeSet<&String> = faults.iter().collect();
    let faults: Vec<&str> = faults.into_iter().map(|fault| &fault[..]).collect();
    (!faults.is_empty()).then(|| (case.name.clone(), format!("{} {statuses:?}", faults.join("; "))))
}

/// # Panics
/// Something is wrong.
fn report(proxy: &str, wrong: Vec<(String, String)>, cases: &[Case]) {
    let names: Vec<&str> = cases.iter().map(|case| &case.name[..]).collect();
    let wrong = differences::beyond(proxy, wrong, &names);
    assert!(wrong.is_empty(), "{} cases went wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn proxy(name: &str) -> Proxy {
    PROXIES.into_iter().find(|proxy| proxy.name == name).expect("it is a proxy of the table")
}

/// The tests of each proxy, which `stage.rs` names.
macro_rules! behind {
    ($($name:ident),+ $(,)?) => {
        $(mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn nothing_goes_around() {
                super::nothing_goes_around(stringify!($name)).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn a_file_that_lags_behind_lets_no_identity_through() {
                super::a_file_that_lags_behind_lets_no_identity_through(stringify!($name)).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn a_hidden_token_never_arrives() {
                super::a_hidden_token_never_arrives(stringify!($name)).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn claims_arrive_as_they_are() {
                super::claims_arrive_as_they_are(stringify!($name)).await;
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

behind!(nginx, haproxy, caddy_2_6, caddy_2_10, caddy_2_11, traefik, envoy_grpc, envoy_http);

/// Its filter is a program of its own, which has to hold where many threads run it.
#[tokio::test(flavor = "multi_thread")]
async fn haproxys_filter_of_trailers_holds_under_load() {
    let _turn = TURN.lock().await;
    let stage = Stage::set(proxy("haproxy"), CLAIM_HEADERS).await;
    let trailers: Vec<Case> =
        table::cases().into_iter().filter(|case| case.name.starts_with("12 the trailer")).collect();
    let again = |round| trailers.iter().cloned().map(move |case| numbered(case, round));
    let cases: Vec<Case> = (0..ROUNDS).flat_map(again).collect();
    let wrong = judged(&stage, &cases).await;
    report("haproxy", wrong, &cases);
}

/// How often each trailer is sent under load.
const ROUNDS: usize = 40;

fn numbered(case: Case, round: usize) -> Case {
    Case { name: format!("round {round}: {}", case.name), ..case }
}
